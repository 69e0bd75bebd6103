"""``alpose-harvest select``, ``gallery``, ``export``, ``import`` and ``report``: from an inbox to labelled data."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpose.trainer.methods.strategies import DEFAULT, STRATEGIES

from .pull_commands import INBOX, JSON, NOT_WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .annotation import Written
    from .importing import Imported
    from .inbox import Inbox
    from .select import Chosen

CHOICES_SHOWN = 10
"""Choices that are printed with their reasons; all of them stand in the batch's file."""
FORCE = click.option("--force", is_flag=True, help="Replace a file that is there, whatever it is.")


HEAD_BYTES = 1 << 16
"""Of a page, in which its title stands."""


def _in_inbox(out: Path | None, inbox: Inbox, name: str) -> Path:
    """Where to write: as given, or in the inbox."""
    from alpose.runtime.errors import ConfigError

    if out is None and not inbox.writable:
        raise ConfigError(f"{inbox.folder} cannot be written by this user: say with --out where to write")
    return out or inbox.folder / name


def _require_replaceable(path: Path, is_same: Callable[[Path], bool], force: bool) -> None:
    """What is there is only replaced by a newer state of the same."""
    from alpose.runtime.errors import ConfigError

    if path.exists() and not force and not is_same(path):
        raise ConfigError(
            f"{path} is there already, and is something else: give another --out, or --force to replace it"
        )


def _has_title(title: str, out: Path | None) -> Callable[[Path], bool]:
    """Whether a file is a page with this title; in its own place the name of the folder, before the colon, may have changed."""
    from markupsafe import escape

    wanted = f"<title>{escape(title)}</title>" if out else f"{escape(title[title.rindex(': ') :])}</title>"

    def has(path: Path) -> bool:
        with open(path, "rb") as file:
            return wanted in file.read(HEAD_BYTES).decode(errors="replace")

    return has


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
    from .inbox import Inbox
    from .screen import say
    from .select import choose

    with Inbox(inbox) as opened:
        chosen = choose(opened, budget, strategy=strategy, control=control, min_distance=min_distance, name=name,
                        seed=seed)  # fmt: skip
    if as_json:
        click.echo(json.dumps(chosen.to_json(), indent=2))
    else:
        say(_chosen_text(chosen, inbox))


def _chosen_text(chosen: Chosen, inbox: Path) -> str:
    from .screen import plural, table

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
        lines.append(f"next: alpose-harvest export {inbox} --to {_format_names('|')} --batch {batch.name}")
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

    from .gallery import gather, page_title, render
    from .inbox import Inbox
    from .screen import Progress, plural, say

    with Inbox(inbox) as opened, Progress(str(inbox)) as progress:
        batch = opened.batch(name) if name is not None else None
        path = _in_inbox(out, opened, "gallery.html" if name is None else f"gallery-{name}.html")
        _require_replaceable(path, _has_title(page_title(inbox, batch), out), force)
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

    from .inbox import Inbox
    from .mcap import holds, write_mcap
    from .screen import plural, problem, say

    with Inbox(inbox) as opened:
        path = _in_inbox(out, opened, "flagged.mcap" if name is None else f"{name}.mcap")
        _require_replaceable(path, lambda there: holds(there, inbox if out else None, name), force)
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


def _format_names(separator: str) -> str:
    """The registered formats; they are loaded only where a command needs them."""
    from .formats import FORMATS

    return separator.join(FORMATS)


def _known_format(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """The name of a registered format."""
    from .formats import FORMATS

    if value not in FORMATS:
        raise click.BadParameter(f"{value!r} is not one of {_format_names(', ')}")
    return value


class FormatOption(click.Option):
    """An option whose help lists the registered formats."""

    def make_metavar(self, *_: Any, **__: Any) -> str:
        """All names."""
        return _format_names("|")


class ImportCommand(click.Command):
    """A command whose help ends with the formats that it reads."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line, from the registry."""
        formatter.write_paragraph()
        formatter.write_text(f"Formats: {_format_names(', ')}.")


@click.command()
@INBOX
@click.option("--to", required=True, cls=FormatOption, callback=_known_format, help="The annotation tool.")
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

    from .annotation import advice, write_batch
    from .inbox import Inbox
    from .screen import problem, say

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
    from .formats import format_named
    from .screen import plural

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

    from .importing import import_labels
    from .inbox import Inbox
    from .screen import plural, say

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
    from .screen import listed, plural, table

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

    from .field.labelled import bundle_names, bundles_called, read_labelled, read_tallies
    from .field.page import page_title, render, text
    from .field.report import field_report
    from .screen import problem, say

    called = "-".join(["report", *(re.sub(r"[^0-9A-Za-z._-]", "-", name) for name in names)])
    path = out or dataset / "field" / f"{called}.html"
    _require_replaceable(path, _has_title(page_title(dataset.resolve().name), out), force)
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
