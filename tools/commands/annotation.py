"""``alpose-harvest export``, ``import`` and ``report``: to annotators, back, and what their labels say of the field."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .pull import NOT_WHOLE
from .shared import FORCE, INBOX, JSON, FormatOption, format_names, has_title, known_format, require_replaceable

if TYPE_CHECKING:
    from ..annotation.exporting import Written
    from ..annotation.importing import Imported


class ImportCommand(click.Command):
    """A command whose help ends with the formats that it reads."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line, from the registry."""
        formatter.write_paragraph()
        formatter.write_text(f"Formats: {format_names(', ')}.")


@click.command()
@INBOX
@click.option("--to", required=True, cls=FormatOption, callback=known_format, help="The annotation tool.")
@click.option("--batch", help="Name of a batch of select. [default: the newest]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder. [default: BATCH-FORMAT]")
@click.option(
    "--image-url",
    default="/data/local-files/?d=images/",
    show_default=True,
    help="What stands before each file name in Label Studio's tasks: where its browser finds the images.",
)
@click.option("--link", is_flag=True, help="Hard-link the images in place of copying them.")
@click.option("--force", is_flag=True, help="Write the predictions anew over files that somebody has changed.")
@JSON
def export(
    inbox: Path, to: str, batch: str | None, out: Path | None, image_url: str, link: bool, force: bool, as_json: bool
) -> None:  # fmt: skip
    """Write a batch of INBOX for annotators: images in order of priority, with the model's poses to start from.

    What the model expects of itself, and why each frame was kept and chosen, stands where the annotator sees it.

    \b
    alpose-harvest export inbox/ --to cvat
    alpose-harvest export inbox/ --to label-studio --batch week-1 --out work/week-1
    """
    from alpose.runtime.errors import DataError

    from ..annotation.exporting import advice, write_batch
    from ..inbox import Inbox
    from ..screen import problem, say

    with Inbox(inbox) as opened:
        if batch is None and not opened.batches():
            raise DataError(f"{inbox} has no batch: alpose-harvest select {inbox} --budget 500")
        chosen = opened.batches()[-1] if batch is None else opened.batch(batch)
        folder = out or Path(f"{chosen.name}-{to}")
        done = write_batch(opened, chosen, to, folder, image_url=image_url, link=link, force=force)
    if as_json:
        click.echo(json.dumps({"batch": chosen.name, "to": to, "folders": [str(one) for one in done.folders],
                               "frames": done.people, "pictures": done.pictures, "missing": dict(done.missing)}, indent=2))  # fmt: skip
    for line in advice(done.missing, str(inbox), chosen.name):
        problem(line)
    if not done.people:
        raise DataError(f"no frame of batch {chosen.name} can be annotated yet: nothing was written")
    if not as_json:
        say(_written_text(to, chosen.name, done, inbox))


def _written_text(to: str, name: str, done: Written, inbox: Path) -> str:
    from ..formats import format_named
    from ..screen import plural

    people = f" with {done.people:,} people" if done.people > done.pictures else ""
    lines = [
        f"{plural(done.pictures, 'frame')}{people} of batch {name}, most wanted first: {', '.join(map(str, done.folders))}"
    ]
    if len(done.folders) > 1:
        lines.append("one folder a skeleton: annotate and import each by itself")
    readme = done.folders[0] / "README.txt"
    if readme.exists():
        lines.append(f"next: {readme} says how to load and to export it; then")
    else:
        lines.append(
            f"next: correct the poses in a tool that reads and writes the format {to} and keeps file names, then"
        )
    lines.append(f"alpose-harvest import {format_named(to).returns} --inbox {inbox} --into dataset/")
    return "\n".join(lines)


@click.command("import", cls=ImportCommand)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True), metavar="FILE...")
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
    help="Poses that come back just as they went out, in a format that does not say whether anybody has looked: auto takes "
    "those before the last corrected one, in the order of work, for accepted and the rest for not looked at.",
)
@click.option(
    "--on-conflict",
    default="keep",
    show_default=True,
    type=click.Choice(["keep", "replace"]),
    help="When the dataset has another answer for a frame: which one stays. Both are written down.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of a summary.")
@click.pass_context
def import_(
    context: click.Context, files: tuple[Path, ...], into: Path, inbox: Path, unchanged: Any, on_conflict: Any,
    as_json: bool,
) -> None:  # fmt: skip
    """Bring what annotators did into a COCO keypoints dataset, from files in any known format.

    FILE is a file, a ZIP archive or a folder. The format is told by the content. A part of a batch is enough, and the same file twice changes nothing. What cannot
    be used is named; answers to frames that the inbox does not know are kept in DATASET/field/unknown/.

    \b
    alpose-harvest import exported.zip --into dataset/
    alpose-harvest import tasks-a.json tasks-b.json --into dataset/ --inbox fleet/inbox

    Exit status: 0 well done, also where single poses could not be used; 1 nothing was put into the dataset, or an error; 2
    wrong usage; 3 one of several files could not be read.
    """
    from alpose.runtime.errors import DataError

    from ..annotation.importing import import_labels
    from ..inbox import Inbox
    from ..screen import plural, say

    with Inbox(inbox) as opened:
        done = import_labels(opened, files, into, unchanged=unchanged, on_conflict=on_conflict)
    if as_json:
        value = {**asdict(done), "unknown_path": str(done.unknown_path) if done.unknown_path else None}
        click.echo(json.dumps(value, indent=2))
    else:
        say(_imported_text(done, into, unchanged))
    if done.merged is None and done.unknown:
        raise DataError(f"none of these frames is in {inbox}: is that the inbox that the batch was chosen from?")
    if done.merged is None:
        why = [
            *([f"{plural(len(done.unopened), 'pose')} not looked at"] if done.unopened else []),
            *([plural(len(done.problems), "problem")] if done.problems else []),
        ]
        raise DataError(
            f"nothing was put into {into}: {', '.join(why) or 'there is no pose that somebody has looked at'}"
        )
    if done.unread:
        context.exit(NOT_WHOLE)


def _imported_text(done: Imported, dataset: Path, unchanged: str) -> str:
    from ..screen import listed, plural, table

    lines = []
    if any(one.labelled for one in done.joints):
        rows = [(one.joint, one.labelled, one.moved, _px(one.median_px), _px(one.largest_px)) for one in done.joints]
        lines += [table(("joint", "labelled", "moved", "median px", "largest px"), rows), ""]
    lines += listed([f"problem: {one}" for one in done.problems])
    lines += listed([f"left out: {one}" for one in done.notes])
    if done.unknown:
        lines += listed([f"not in the inbox, or without a picture there: {one}" for one in done.unknown])
        lines.append(f"their answers are kept in {done.unknown_path}")
    if done.unopened:
        why = (
            "left out, as --unchanged skip says" if unchanged == "skip"
            else "and none was corrected: nobody may have looked at them" if not done.corrected
            else "after the last corrected one: taken for not looked at"
        )  # fmt: skip
        lines.append(
            f"{plural(len(done.unopened), 'pose')} came back as they went out, {why}; --unchanged accept takes them too"
        )
    lines.append(f"{plural(done.corrected, 'pose')} corrected, {done.accepted:,} accepted as they were")
    if done.nobody:
        lines.append(f"of these, {done.nobody:,} say that nobody is there: neither trained on nor measured by")
    if done.merged is None:
        return "\n".join(lines)
    merged = done.merged
    if merged.conflicts:
        which = "the new answers" if merged.replaced else "the old ones"
        lines += listed([f"another answer was there: {one}" for one in merged.conflicts])
        lines.append(f"{which} stand; both are in {dataset / 'field' / 'conflicts'}")
    lines.append(f"{dataset}: {merged.added:,} added, {merged.unchanged:,} there already, {merged.replaced:,} replaced; "
                 f"{plural(merged.total, 'frame')} in all")  # fmt: skip
    lines.append(f"next: alpose-harvest report {dataset}, or alpose-train fit --data {dataset} --from MODEL --out NEW")
    return "\n".join(lines)


def _px(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


@click.command()
@click.argument("dataset", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page. [default: DATASET/field/report.html, or report-BUNDLE.html there]",
)
@FORCE
@click.option(
    "--level",
    default=0.95,
    show_default=True,
    type=click.FloatRange(0.5, 0.9999),
    metavar="SHARE",
    help="Confidence of every interval, as a share.",
)
@click.option(
    "--bundle",
    "names",
    multiple=True,
    help="Name or sha256 of a bundle: only its frames. May be repeated; needed where bundles call different things a failure.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON in place of a table.")
def report(
    dataset: Path, out: Path | None, force: bool, level: float, names: tuple[str, ...], as_json: bool
) -> None:  # fmt: skip
    """What the labelled frames of DATASET say about all frames of the fleet.

    PCK in the field, recall and precision of the monitor, for the fleet, each device and each bundle: unbiased, with
    intervals, from the probability with which each frame was kept. Says what to change in the trigger. A failure is what
    the frames' bundles were calibrated for (alpose-export --failure).
    """
    from alpose.runtime.io import write_atomically

    from ..field.labelled import bundle_names, bundles_called, read_labelled, read_tallies
    from ..field.page import page_title, render, text
    from ..field.report import field_report
    from ..screen import problem, say

    called = "-".join(["report", *(re.sub(r"[^0-9A-Za-z._-]", "-", name) for name in names)])
    path = out or dataset / "field" / f"{called}.html"
    require_replaceable(path, has_title(page_title(dataset.resolve().name), out), force)
    bundles = bundles_called(dataset, names) if names else None
    found = field_report(read_labelled(dataset, bundles), read_tallies(dataset, bundles), level=level)
    names_known = bundle_names(dataset)
    page = render(found, dataset=dataset.resolve().name, bundles=names_known)
    written = True
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        if out is not None:
            raise
        written = False
        problem(f"the page is not written: {path.parent}: {error.strerror or error}. Say with --out where to write it")
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        say(text(found, names_known))
        if written:
            say(f"\npage: {path}")
