"""``alpose-harvest select``, ``gallery`` and ``mcap``: which frames of an inbox to annotate, and how to look at them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpose.trainer.methods.strategies import DEFAULT, STRATEGIES

from .shared import CHOICES_SHOWN, FORCE, INBOX, JSON, format_names, has_title, in_inbox, require_replaceable

if TYPE_CHECKING:
    from ..select import Chosen


@click.command()
@INBOX
@click.option("--budget", required=True, type=int, metavar="FRAMES", help="Frames that annotators can do.")
@click.option(
    "--strategy",
    default=DEFAULT,
    show_default=True,
    type=click.Choice([*STRATEGIES]),
    help="; ".join(f"{name}: {strategy.what}" for name, strategy in STRATEGIES.items()) + ".",
)
@click.option(
    "--control",
    type=int,
    metavar="FRAMES",
    help="How many frames of the budget go to the control stream. [default: a fifth]",
)
@click.option(
    "--min-distance",
    default=0.05,
    show_default=True,
    type=float,
    metavar="SHARE",
    help="Distance under which two frames are near-duplicates, as a share of what two frames are usually apart.",
)
@click.option("--name", help="Name of the batch. [default: date and time]")
@click.option("--seed", type=click.IntRange(0), metavar="NUMBER", help="Makes what is drawn by chance repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of tables.")
def select(
    inbox: Path, budget: int, strategy: Any, control: int | None, min_distance: float, name: str | None,
    seed: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Choose what to annotate next, out of everything in INBOX: one batch across all devices.

    Writes INBOX/batches/NAME.json, most wanted first, with the reason of every choice. A part of the budget goes to the
    control stream, whose frames are drawn by chance: alpose-harvest report rests on them.

    \b
    alpose-harvest select inbox/ --budget 500
    alpose-harvest select inbox/ --budget 500 --control 0 --strategy top --name hardest

    Exit status: 0 there is a batch; 1 nothing is left to choose, and no batch was written, or an error; 2 wrong usage.
    """
    from ..inbox import Inbox
    from ..screen import say
    from ..select import choose

    with Inbox(inbox) as opened:
        chosen = choose(opened, budget, strategy=strategy, control=control, min_distance=min_distance, name=name,
                        seed=seed)  # fmt: skip
    if as_json:
        click.echo(json.dumps(chosen.to_json(), indent=2))
    else:
        say(_chosen_text(chosen, inbox))


def _chosen_text(chosen: Chosen, inbox: Path) -> str:
    from ..screen import plural, table

    batch = chosen.batch
    lines = [table(("device", "records", "open", "by value", "control stream"), chosen.devices)]
    if chosen.triggers:
        kept = ", ".join(f"{name} {number:,}" for name, number in chosen.triggers)
        lines.append(f"\nkept on their devices for: {kept}")
    if batch.choices:
        shown = [(choice.id, choice.reason) for choice in batch.choices[:CHOICES_SHOWN]]
        lines.append("\n" + table(("most wanted", "why"), shown, right=False))
    if len(batch.choices) > CHOICES_SHOWN:
        lines.append(f"… and {len(batch.choices) - CHOICES_SHOWN:,} more, each with its reason, in {chosen.path}")
    lines.append("")
    lines += [f"left out: {number:,} {reason}" for reason, number in batch.counted.items() if reason != "not chosen"]
    if batch.counted.get("not chosen"):
        lines.append(f"not chosen, and open for the next batch: {batch.counted['not chosen']:,}")
    if len(batch.choices) < batch.budget:
        lines.append(f"the budget was {batch.budget:,}: there was no more to choose")
    lines.append(f"batch {batch.name}: {plural(len(batch.choices), 'frame')}, {chosen.path}")
    if chosen.waiting:
        lines.append(f"next, {plural(chosen.waiting, 'picture')} to fetch: "
                     f"alpose-harvest pull SOURCE --into {inbox} --images {batch.name}")  # fmt: skip
    if chosen.sealed:
        lines.append(f"next, {plural(chosen.sealed, 'picture')} to open: alpose-harvest unseal {inbox}")
    if batch.choices and not chosen.waiting and not chosen.sealed:
        lines.append(f"next: alpose-harvest export {inbox} --to {format_names('|')} --batch {batch.name}")
    return "\n".join(lines)


@click.command()
@INBOX
@click.option("--batch", "name", help="Only what this batch of select has chosen.")
@click.option(
    "--limit", default=2000, show_default=True, type=click.IntRange(1), metavar="FRAMES", help="Frames on the page."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The page. [default: INBOX/gallery.html, or INBOX/gallery-BATCH.html]",
)
@click.option(
    "--sort",
    default="value",
    show_default=True,
    type=click.Choice(["value", "time"]),
    help="Most valuable or newest first; beyond --limit the others are left out.",
)
@FORCE
def gallery(inbox: Path, name: str | None, limit: int, out: Path | None, sort: Any, force: bool) -> None:
    """One offline HTML page with the frames of INBOX and the poses that the model saw.

    Filters by device, reason, bundle and state, a search by id, and a large view with the arrow keys. The page carries
    its thumbnails and shows whole pictures from INBOX where it finds them. Written again, it is renewed; any other file stays,
    unless --force is given.
    """
    from alpose.runtime.command_line import size
    from alpose.runtime.io import write_atomically

    from ..gallery import gather, page_title, render
    from ..inbox import Inbox
    from ..screen import Progress, plural, say

    with Inbox(inbox) as opened, Progress(str(inbox)) as progress:
        batch = opened.batch(name) if name is not None else None
        path = in_inbox(out, opened, "gallery.html" if name is None else f"gallery-{name}.html")
        require_replaceable(path, has_title(page_title(inbox, batch), out), force)
        found = gather(opened, batch=batch, limit=limit, sort=sort,
                       report=lambda done, of: progress.step("frames", done, of))  # fmt: skip
    page = render(found, inbox=inbox, page=path).encode()
    write_atomically(path, page)
    counts = ", ".join(f"{count:,} {state}" for state, count in found.pictures.most_common() if state != "picture")
    left_out = f" of {found.of:,}" if found.of > len(found.cards) else ""
    say(f"{plural(len(found.cards), 'frame')}{left_out}{f'; {counts}' if counts else ''}")
    say(f"page: {path} ({size(len(page))})")


@click.command()
@INBOX
@click.option("--batch", "name", help="Only what this batch of select has chosen. [default: everything]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file. [default: INBOX/flagged.mcap, or INBOX/BATCH.mcap]",
)
@FORCE
@JSON
def mcap(inbox: Path, name: str | None, out: Path | None, force: bool, as_json: bool) -> None:
    """The frames of INBOX with their clips, poses and verdicts as one MCAP file, for Foxglove.

    A topic for the pictures, the poses and the verdicts of each camera, by the time at which they were captured. Pictures that are
    not here, or damaged, are counted; their verdicts are written all the same. Written again, the file is renewed; any other
    file stays, unless --force is given.

    \b
    alpose-harvest mcap inbox/ --out flagged.mcap
    """
    from alpose.runtime.command_line import size
    from alpose.runtime.errors import DataError

    from ..inbox import Inbox
    from ..mcap import holds, write_mcap
    from ..screen import plural, problem, say

    with Inbox(inbox) as opened:
        path = in_inbox(out, opened, "flagged.mcap" if name is None else f"{name}.mcap")
        require_replaceable(path, lambda there: holds(there, inbox if out else None, name), force)
        columns = opened.columns()
        ids = [id_.decode() for id_ in columns.id_N[columns.captured_ns_N.argsort(kind="stable")]]
        if name is not None:
            chosen = {choice.id for choice in opened.batch(name).choices}
            ids = [id_ for id_ in ids if id_ in chosen]
        if not ids:
            raise DataError(f"{inbox} has no record: alpose-harvest pull SOURCE --into {inbox}")
        done = write_mcap(opened, ids, path, batch=name)
    if as_json:
        click.echo(json.dumps({"path": str(path), **asdict(done)}, indent=2))
        return
    for why, count in done.missing.items():
        problem(f"{plural(count, 'picture')} left out, {why}")
    say(f"{plural(done.records, 'record')}, {plural(done.pictures, 'picture')}: {path} ({size(path.stat().st_size)})")
