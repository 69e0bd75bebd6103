"""``alpose-monitor queue …``: look into a queue, check it, save it, and empty it, without torch and without OpenCV."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from .. import drawing
from ..command_line import duration, print_json, size, table
from ..errors import ConfigError, DataError, DataNotFoundError
from ..io import write_atomically

if TYPE_CHECKING:
    from ..queue import Picture, Queue, Record

QUEUE = click.argument("queue", type=click.Path(path_type=Path, dir_okay=False))
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")
DRY = click.option("--dry-run", is_flag=True, help="Only say what would be removed.")


@click.group(context_settings={"max_content_width": 110})
def queue() -> None:
    """Look into a queue, check it, save what a damaged one holds, and empty it.

    Exit status: 0 success; 1 an error, or check found something wrong; 2 wrong usage.
    """


@queue.command("ls")
@QUEUE
@click.option("--order", default="time", show_default=True, type=click.Choice(["time", "newest", "value"]),
              help="time: oldest first; newest: newest first; value: most valuable first, which is failure probability times "
                   "novelty.")  # fmt: skip
@click.option("--device", help="Only of this device.")
@click.option("--camera", help="Only of this camera.")
@click.option("--reason", help="Only what this trigger kept: budget, control, jump …")
@click.option("--state", type=click.Choice(["queued", "pulled"]), help="Only in this state.  [default: both]")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(0), metavar="RECORDS",
              help="At most so many records; 0: all.")  # fmt: skip
@JSON
def list_records(
    queue: Path, order: Any, device: str | None, camera: str | None, reason: str | None, state: str | None, limit: int,
    as_json: bool,
) -> None:  # fmt: skip
    """List what QUEUE holds: when, how probable a failure, and why it was kept."""
    with reading(queue) as opened:
        facts = opened.info()
        found = (
            record
            for record in opened.iterate(order=order, state=state)
            if (device is None or record.device == device)
            and (camera is None or record.camera == camera)
            and (reason is None or any(name == reason for name, _, _ in record.reasons))
        )
        # One more than is shown tells whether there are more.
        records = list(islice(found, limit + 1)) if limit else list(found)
    more, records = bool(limit) and len(records) > limit, records[: limit or None]
    if as_json:
        value = {"queue": str(queue), "records": [facts_of(record) for record in records], "more": more,
                 "total": facts.records, "bytes": facts.bytes, "file_bytes": facts.file_bytes,
                 "oldest_ns": facts.oldest_ns, "counters": counters_of(facts.counters)}  # fmt: skip
        print_json(value)
        return
    if records:
        rows = [row_of(record) for record in records]
        click.echo("\n".join([*table(HEAD, rows, frozenset({"P(fail)"})), ""]))
    said = f"{facts.records} records, {size(facts.bytes)}; the file has {size(facts.file_bytes + facts.wal_bytes)}"
    said += f"; {len(records)} shown" if more or len(records) < facts.records else ""
    click.echo(said)
    counters = counters_of(facts.counters)
    if counters:
        click.echo("; ".join(f"{name} {count}" for name, count in counters.items()))


@queue.command("show")
@QUEUE
@click.argument("record_id", metavar="[ID]", required=False)
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write the picture: a .jpg or .png.")
@click.option("--draw", "drawn", is_flag=True, help="With --save: draw pose and box on it.")
@click.option("--position", default=0, show_default=True, metavar="FRAME",
              help="With --save: which frame of a clip, counted from the kept one, which is 0.")  # fmt: skip
@click.option("--key", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help="With --save: the private key that opens sealed pictures.")  # fmt: skip
@JSON
def show(
    queue: Path, record_id: str | None, save: Path | None, drawn: bool, position: int, key: Path | None, as_json: bool
) -> None:
    """Print all facts of one record: any beginning of its id that no other has, or the most valuable one."""
    if drawn and save is None:
        raise ConfigError("--draw draws on the picture that --save writes: give --save too")
    with reading(queue) as opened:
        record = the_record(opened, record_id) if record_id else most_valuable(opened)
        pictures = opened.pictures(record.id)
        if save is not None:
            save_picture(opened, record, pictures, save, position=position, drawn=drawn, key=key)
    shown = facts_of(record) | {"pictures": [
        {"position": picture.position, "media_type": picture.media_type, "sealed": picture.sealed,
         "width": picture.width, "height": picture.height, "origin": list(picture.origin), "scale": picture.scale,
         "bytes": len(picture.data), "sha256": picture.sha256} for picture in pictures
    ]}  # fmt: skip
    if as_json:
        print_json(shown)
        return
    width = max(map(len, shown))
    for name, value in shown.items():
        for place, line in enumerate(words_of(name, value)):
            click.echo(f"{name if not place else '':<{width}}  {line}".rstrip())
    if save is not None:
        click.echo(f"{'saved':<{width}}  {save}")


@queue.command()
@QUEUE
@JSON
def check(queue: Path, as_json: bool) -> None:
    """Read QUEUE whole: damaged records, pictures without a record, SQLite's own check. Exit status 1 if any."""
    with reading(queue) as opened:
        report = opened.check()
    damaged = [{"id": damage.id, "row": damage.row, "problem": damage.problem} for damage in report.damaged]
    if as_json:
        print_json({"ok": report.ok, "records": report.records, "pictures": report.pictures,
                               "damaged": damaged, "orphans": report.orphans, "integrity": list(report.integrity)})  # fmt: skip
    else:
        click.echo(f"{queue}: {report.records} records, {report.pictures} pictures: {'ok' if report.ok else 'DAMAGED'}")
        for damage in damaged:
            click.echo(f"  record {damage['id'] or 'without a readable id'} (row {damage['row']}): {damage['problem']}")
        if report.orphans:
            click.echo(f"  {report.orphans} pictures belong to no record")
        for line in report.integrity:
            click.echo(f"  SQLite: {line}")
        if not report.ok:
            click.echo(f"save what is whole with: alpose-monitor queue recover {queue} --into NEW.db")
    raise SystemExit(0 if report.ok else 1)


@queue.command()
@click.argument("damaged", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--into", required=True, type=click.Path(path_type=Path, dir_okay=False), help="A file that is made.")
@JSON
def recover(damaged: Path, into: Path, as_json: bool) -> None:
    """Save every whole record of DAMAGED into a new queue; DAMAGED is not changed."""
    from ..queue import recover as save

    if not damaged.exists():
        raise DataNotFoundError(f"{damaged} does not exist: there is nothing to save")
    report = save(damaged, into)
    lost = [{"id": damage.id, "row": damage.row, "problem": damage.problem} for damage in report.lost]
    if as_json:
        print_json({"into": str(into), "records": report.records, "pictures": report.pictures,
                               "bundles": report.bundles, "lost": lost, "orphans": report.orphans,
                               "unreadable": report.unreadable})  # fmt: skip
        return
    click.echo(f"{into}: saved {report.records} records and {report.pictures} pictures of {damaged}")
    for item in lost:
        click.echo(f"  lost record {item['id'] or 'without a readable id'} (row {item['row']}): {item['problem']}")
    if report.orphans:
        click.echo(f"  {report.orphans} pictures whose record is gone were left behind")
    if report.unreadable:
        click.echo(f"  {report.unreadable} rows or ranges of rows could not be read at all")


@queue.command()
@QUEUE
@click.option(
    "--older-than", "older_than_s", type=duration, metavar="TIME", help="What was captured longer ago: 30d, 12h, 90min."
)
@click.option("--everything", is_flag=True, help="All records.")
@click.option("--camera", help="What this camera saw.")
@click.option("--device", help="What this device saw.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="One record; may be repeated.")
@DRY
@YES
@JSON
def purge(
    queue: Path, older_than_s: float | None, everything: bool, camera: str | None, device: str | None,
    ids: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Remove records for good, harvested or not; several conditions must all hold.

    Their bytes are overwritten, and the file shrinks. --everything takes the score log too.
    """
    if not (older_than_s is not None or everything or camera is not None or device is not None or ids):
        raise click.UsageError(
            "say what to remove: --older-than 30d, --camera NAME, --device NAME, --id ID or --everything"
        )
    if everything and (older_than_s is not None or camera is not None or device is not None or ids):
        raise click.UsageError("--everything leaves nothing to choose: give it alone")
    with reading(queue) as opened:
        chosen = [the_record(opened, each).id for each in ids] if ids else None
        now_s = time.time()
        count = sum(
            (older_than_s is None or put_s(record) < now_s - older_than_s)
            and (camera is None or record.camera == camera)
            and (device is None or record.device == device)
            and (chosen is None or record.id in chosen)
            for record in opened.iterate(state=None)
        )
    more = " and the score log" if everything else ""
    if dry_run:
        _say(as_json, f"{queue}: {count} records{more} would be removed", queue, removed=0, would_remove=count)
        return
    if not everything and not count:
        _say(as_json, f"{queue}: no such records", queue, removed=0)
        return
    _ask(f"Remove {count} records{more} of {queue} for good?", yes)
    with writing(queue) as opened:
        removed = opened.purge(
            older_than_s=older_than_s, everything=everything, camera=camera, device=device, ids=chosen
        )
    _say(as_json, f"{queue}: {removed} records removed", queue, removed=removed)


@queue.command()
@QUEUE
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@JSON
def acknowledge(queue: Path, ids: tuple[str, ...], as_json: bool) -> None:
    """Mark records as harvested: they may then be deleted, and go first when room is needed."""
    with reading(queue) as opened:  # what is no queue does not become one
        chosen = [the_record(opened, each).id for each in ids]
    with writing(queue) as opened:
        count = opened.acknowledge(chosen)
    _say(as_json, f"{queue}: {count} records acknowledged", queue, acknowledged=count)


@queue.command()
@QUEUE
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--force", is_flag=True, help="Also those that nobody has acknowledged.")
@DRY
@YES
@JSON
def delete(queue: Path, ids: tuple[str, ...], force: bool, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete records that were acknowledged."""
    with reading(queue) as opened:  # nothing is changed before the question is answered
        records = [the_record(opened, each) for each in ids]
    waiting = [record for record in records if record.state != "pulled"]
    if waiting and not force:
        raise ConfigError(
            f"{len(waiting)} of {len(records)} records were not acknowledged, the first is {waiting[0].id}: harvest "
            "them first, or give --force to lose them"
        )
    if dry_run:
        _say(as_json, f"{queue}: {len(records)} records would be deleted", queue, deleted=0, would_delete=len(records))
        return
    _ask(f"Delete {len(records)} records of {queue}?", yes)
    with writing(queue) as opened:
        count = opened.delete([record.id for record in records], force=force)
    _say(as_json, f"{queue}: {count} records deleted", queue, deleted=count)


@queue.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def keygen(path: Path) -> None:
    """Make a key for sealed frames: PATH (for the server alone) and PATH.pub (for run --seal-to)."""
    from ..bundle.keys import SEALING, generate_key

    click.echo(f"public key: {generate_key(path, SEALING)}")
    click.echo(f"keep {path} off the devices: it opens every frame that was sealed to {path}.pub")


def reading(path: Path) -> Queue:
    """The queue, opened for reading; a context manager."""
    from ..queue import Queue

    _exists(path)
    return Queue(path, readonly=True, on_damage="raise")


def writing(path: Path) -> Queue:
    """The queue, opened for changes; one that is damaged is an error, and is not moved aside."""
    from ..queue import Queue

    _exists(path)
    return Queue(path, on_damage="raise")


def the_record(opened: Queue, beginning: str) -> Record:
    """The one record whose id begins so."""
    beginning = beginning.lower()
    if len(beginning) == 32:
        found = opened.get([beginning])
    else:
        found = list(islice((item for item in opened.iterate(state=None) if item.id.startswith(beginning)), 2))
    if not found:
        raise DataNotFoundError(f"{opened.path} has no record {beginning}; alpose-monitor queue ls lists all")
    if len(found) > 1:
        raise ConfigError(
            f"several records begin with {beginning}, as {found[0].id} and {found[1].id}: give more digits"
        )
    return found[0]


def most_valuable(opened: Queue) -> Record:
    """What a harvest would take first."""
    found = opened.peek(1, order="value", state=None)
    if not found:
        raise DataError(f"{opened.path} holds no record: nothing was kept yet, or all was removed")
    return found[0]


def _ask(question: str, yes: bool) -> None:
    if not yes and not click.confirm(question, err=True):  # standard output is for what was done
        raise click.Abort


def _say(as_json: bool, words: str, queue: Path, **counts: int) -> None:
    """What was done, for people or for programs."""
    if as_json:
        print_json({"queue": str(queue), **counts})
    else:
        click.echo(words)


def _exists(path: Path) -> None:
    if not path.exists():
        raise DataNotFoundError(f"{path} does not exist: a queue is the file that alpose-monitor run --queue makes")


# --- a record in words: a row of a table, all facts, JSON

HEAD = ("id", "captured (UTC)", "P(fail)", "kept for", "place", "device", "picture", "state")

SHORT_ID = 16
"""Digits of an id in a table: its time, and enough of its random part. Commands take any beginning that is unique."""


FACTS = ("id", "captured", "captured_ns", "device", "camera", "bundle", "frame", "box", "place", "failure_probability",
         "predicted_loss", "flagged", "reasons", "threshold", "inclusion_probability", "control_draw", "novelty", "jump",
         "limbs", "episode", "store", "redacted", "occupied", "state", "frame_bytes", "frame_sha256", "sha256", "keypoints", "scores")  # fmt: skip
"""Everything about a record but its embedding, in the order in which it is printed."""


def facts_of(record: Record) -> dict[str, Any]:
    """The :data:`FACTS` of a record as JSON values."""
    known = {
        "captured": _time(record.captured_ns),
        "occupied": record.occupied is not False,
        "frame": [record.frame_width, record.frame_height],
        "box": [float(value) for value in record.box],
        "reasons": [[name, _number(value), _number(limit)] for name, value, limit in record.reasons],
        "keypoints": [[round(float(x), 2), round(float(y), 2)] for x, y in record.keypoints_J2],
        "scores": [round(float(score), 4) for score in record.scores_J],
    }
    return {name: known[name] if name in known else _number(getattr(record, name)) for name in FACTS}


def put_s(record: Record) -> float:
    """When it was put, by the queue's clock (Unix): its id begins with that, in milliseconds."""
    return int(record.id[:12], 16) / 1e3


def row_of(record: Record) -> tuple[str, ...]:
    """Under :data:`HEAD`."""
    names = " + ".join(name for name, _, _ in record.reasons) or ("flagged" if record.flagged else "control")
    picture = f"{record.store} {size(record.frame_bytes)}" if record.frame_bytes else record.store
    if record.redacted and record.frame_bytes:
        picture += f", {record.redacted} redacted"
    device = record.device + (f"/{record.camera}" if record.camera else "")
    return (record.id[:SHORT_ID], _time(record.captured_ns), record.probability_text, names, record.place,
            device, picture, record.state)  # fmt: skip


def words_of(name: str, value: Any) -> Iterator[str]:
    """A fact in one or several lines."""
    if name == "reasons":
        for trigger, seen, limit in value:
            known = seen is not None and limit is not None
            yield f"{trigger} {seen:.4g} {'>=' if seen >= limit else '<'} {limit:.4g}" if known else trigger
        if not value:
            yield "-"
    elif name == "keypoints":
        yield "  ".join(f"{x:.0f},{y:.0f}" for x, y in value)
    elif name == "scores":
        yield "  ".join(f"{score:.2f}" for score in value)
    elif name == "pictures":
        for item in value:
            sealed = ", sealed" if item["sealed"] else ""
            yield f"{item['position']:+d}: {item['media_type']} {item['width']} x {item['height']}, {size(item['bytes'])}{sealed}"
        if not value:
            yield "-"
    elif isinstance(value, list):
        yield "  ".join(f"{item:g}" for item in value)
    elif isinstance(value, float):
        yield f"{value:.6g}"
    else:
        yield "-" if value in (None, "") else str(value)


def counters_of(counters: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Of the queue itself, over its life: ``evicted_total{full}`` → 3."""
    return {f"{name}{{{reason}}}" if reason else name: count for (name, reason), count in sorted(counters.items())}


def _number(value: Any) -> Any:
    """None for NaN, which JSON does not have, and a plain number for numpy's."""
    return (None if value != value else float(value)) if isinstance(value, float) else value


def _time(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9, timezone.utc):%Y-%m-%d %H:%M:%S}"


# --- a record's picture as a file

QUALITY = 95
"""Of a JPEG that has to be encoded anew."""


def save_picture(
    queue: Queue, record: Record, pictures: Sequence[Picture], path: Path, *, position: int = 0, drawn: bool = False,
    key: Path | None = None,
) -> None:  # fmt: skip
    """Write one picture of a record; as its bytes stand in the queue where nothing has to change.

    Raises:
        ConfigError: the name does not end like a picture's, or the picture is sealed and no key was given.
        DataNotFoundError: the record has no such picture.
        DataError: it is damaged.
        OSError: the disk is full, or cannot be written to.
    """
    from ..queue.images import JPEG, PNG, decode, encode

    media_types = {".jpg": JPEG, ".jpeg": JPEG, ".png": PNG}
    media_type = media_types.get(path.suffix.lower())
    if media_type is None:
        raise ConfigError(f"{path}: the name of a picture ends in {', '.join(media_types)}")
    picture = next((item for item in pictures if item.position == position), None)
    if picture is None:
        there = ", ".join(f"{item.position:+d}" for item in pictures) or "none"
        raise DataNotFoundError(f"record {record.id} has no picture at position {position}; it has: {there}")
    data = picture.data
    if picture.sealed:
        if key is None:
            raise ConfigError(f"record {record.id} is sealed: give the private key of the fleet with --key")
        from ..bundle.keys import opener

        data = opener(key)(data)
    if drawn or media_type != picture.media_type:
        rgb_HW3 = np.array(decode(data))
        if drawn:
            drawing.record(rgb_HW3, record, picture, queue.skeleton_of(record))
        encoded = encode(rgb_HW3, media_type, QUALITY, None)
        if encoded.media_type != media_type:
            raise DataError(f"{path}: nothing here encodes JPEG; save it as .png, or pip install simplejpeg")
        data = encoded.data
    write_atomically(path, data)
