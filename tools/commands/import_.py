"""``alpose-harvest import``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..import_ import Imported

SHOWN = 20
"""Ids or problems of one kind that are printed; --json has them all."""


@click.command("import")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE..."
)
@click.option("--into", required=True, type=click.Path(path_type=Path, file_okay=False), help="The dataset.")
@click.option(
    "--inbox",
    default=Path("inbox"),
    show_default=True,
    envvar="ALPOSE_INBOX",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the batch was chosen. [env: ALPOSE_INBOX]",
)
@click.option(
    "--unchanged",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "accept", "skip"]),
    help="Poses that come back from CVAT or as COCO just as they went out: auto takes those before the last corrected one, "
    "in the order of work, for accepted and the rest for not looked at.",
)
@click.option(
    "--on-conflict",
    default="keep",
    show_default=True,
    type=click.Choice(["keep", "replace"]),
    help="When the dataset has another answer for a frame: which one stays. Both are written down.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of a summary.")
def import_(files: tuple[Path, ...], into: Path, inbox: Path, unchanged: Any, on_conflict: Any, as_json: bool) -> None:
    """Bring what annotators did into a COCO keypoints dataset, from COCO files, CVAT archives and Label Studio's JSON.

    The format is told by the content. A part of a batch is enough, and the same file twice changes nothing. What cannot
    be used is named; answers to frames that the inbox does not know are kept in DATASET/field/unknown/.

    \b
    alpose-harvest import exported.zip --into dataset/
    alpose-harvest import tasks-a.json tasks-b.json --into dataset/ --inbox fleet/inbox
    """
    from alpose.runtime.errors import DataNotFoundError

    from ..import_ import bring_in
    from ..inbox import Inbox

    with Inbox(inbox) as opened:
        done = bring_in(opened, files, into, unchanged=unchanged, on_conflict=on_conflict)
    click.echo(json.dumps(_json(done), indent=2) if as_json else _text(done, into))
    if done.merged is None and done.unknown:
        raise DataNotFoundError(
            f"none of these frames is in {inbox}: is that the inbox that the batch was chosen from?"
        )


def _json(done: Imported) -> dict[str, Any]:
    return {**asdict(done), "unknown_path": str(done.unknown_path) if done.unknown_path else None}


def _text(done: Imported, dataset: Path) -> str:
    from ..tables import plural, table

    lines = []
    if any(one.labelled for one in done.joints):
        lines += [
            table(("joint", "labelled", "moved", "median px", "largest px"), [
                (one.joint, f"{one.labelled:,}", f"{one.moved:,}", _px(one.median_px), _px(one.largest_px))
                for one in done.joints
            ]),
            "",
        ]  # fmt: skip
    lines += _listed("problem", done.problems)
    if done.unknown:
        lines += _listed("not in the inbox, or without a picture there", done.unknown)
        lines.append(f"their answers are kept in {done.unknown_path}")
    if done.unopened:
        lines.append(f"{plural(len(done.unopened), 'pose')} came back as they went out, after the last corrected one: taken "
                     "for not looked at; --unchanged accept takes them too")  # fmt: skip
    lines.append(f"{plural(done.corrected, 'pose')} corrected, {done.accepted:,} accepted as they were")
    if done.merged is None:
        lines.append(f"nothing was put into {dataset}")
        return "\n".join(lines)
    merged = done.merged
    if merged.conflicts:
        which = "the new answers" if merged.replaced else "the old ones"
        lines += _listed("another answer was there", merged.conflicts)
        lines.append(f"{which} stand; both are in {dataset / 'field' / 'conflicts'}")
    lines.append(f"{dataset}: {merged.added:,} added, {merged.unchanged:,} there already, {merged.replaced:,} replaced; "
                 f"{plural(merged.total, 'frame')} in all")  # fmt: skip
    lines.append(f"next: alpose-harvest report {dataset}, or alpose-train fit --data {dataset} --from MODEL --out NEW")
    return "\n".join(lines)


def _listed(what: str, things: tuple[str, ...]) -> list[str]:
    more = [f"… and {len(things) - SHOWN:,} more: --json lists them"] if len(things) > SHOWN else []
    return [*(f"{what}: {thing}" for thing in things[:SHOWN]), *more]


def _px(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
