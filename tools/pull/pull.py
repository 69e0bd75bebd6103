"""Download records: manifests first, then the pictures that are wanted, then tell the device that they are here.

Every step can be interrupted and is finished by doing it again. Pictures that were here and are damaged or gone are fetched
again while their device has them. A frame is deleted there only after its pictures have been read again from the inbox's own
files and compared with their hashes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from alpose.runtime.command_line import size
from alpose.runtime.errors import AlposeError, DataError
from alpose.runtime.queue import Queue, acknowledgements
from alpose.runtime.queue.acknowledgements import Acknowledgement
from alpose.runtime.queue.record import decode

from ..inbox import Inbox
from ..inbox_database import Raw
from ..screen import plain
from .reader import ChangedError, open_reader
from .sources import LocalSource, Source, scrubbed

log = logging.getLogger("alpose")

TRIES = 6
"""How often a queue that is checkpointed under the reader, or a line that breaks, is tried again."""
PAUSE_S = 0.2
ACKNOWLEDGED_AT_ONCE = 20_000
"""Ids of one acknowledgement file: a queue reads no larger ones."""

Report = Callable[[str, int, int], None]
"""(what, done, of)."""


@dataclass(slots=True)
class _Counts:
    """What was found at one source; counts of this run alone."""

    url: str
    how: str = ""
    new: int = 0
    known: int = 0
    refused: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def _line(self, counts: Sequence[str], moved_bytes: int, problem: str | None) -> str:
        """For people: what became of the records, and how they were read."""
        found = [f"{self.new:,} new", f"{self.known:,} known", f"{self.refused:,} refused", *counts]
        moved = f"{size(moved_bytes)} moved " if moved_bytes else ""
        return f"{plain(self.url)}: {', '.join(found)}; {moved}{self.how or 'not read'}{'; ENDED EARLY' if problem else ''}"


@dataclass(slots=True)
class Pulled(_Counts):
    """What one source gave."""

    fetched: int = 0
    again: int = 0
    """Fetched before, and damaged or gone in the inbox since: ``fetched`` counts those that came anew."""
    gone: int = 0
    """Not on the device any more, and their pictures are not here: evicted meanwhile."""
    damaged: int = 0
    acknowledged: int = 0
    asked_to_delete: int = 0
    deleted: int = 0
    """Known not to be on the device any more."""
    moved_bytes: int = 0
    tries: int = 0
    problem: str | None = None
    """Why it ended early; everything before that is kept."""
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line for people."""
        counts = [f"{self.fetched:,} fetched", f"{self.acknowledged:,} acknowledged", f"{self.deleted:,} deleted"]
        waiting = self.asked_to_delete - self.deleted
        counts += [f"{waiting:,} asked to delete"] if waiting > 0 else []
        others = ((self.again, "damaged or gone in the inbox"), (self.damaged, "damaged"), (self.gone, "gone"))
        counts += [f"{count:,} {what}" for count, what in others if count]
        return self._line(counts, self.moved_bytes, self.problem)


@dataclass(slots=True)
class Planned(_Counts):
    """What a pull would find and do at one source."""

    would_fetch: int = 0
    would_fetch_bytes: int = 0
    would_acknowledge: int = 0
    would_delete: int = 0
    """Of what is or would be here whole; what was acknowledged before is deleted too."""
    moved_bytes: int = 0
    problem: str | None = None

    @property
    def notes(self) -> list[str]:
        """What somebody should look at: a pull logs its problem itself."""
        return [self.problem] if self.problem else []

    def summary(self) -> str:
        """One line for people."""
        counts = [f"would fetch {self.would_fetch:,} ({size(self.would_fetch_bytes)})",
                  f"acknowledge {self.would_acknowledge:,}", f"delete {self.would_delete:,}"]  # fmt: skip
        return self._line(counts, self.moved_bytes, self.problem)


def pull(
    inbox: Inbox,
    source: Source,
    *,
    images: Collection[str] | None = None,
    acknowledge: bool = False,
    delete: bool = False,
    report: Report = lambda what, done, of: None,
) -> Pulled:
    """Pull one source.

    Args:
        inbox: where to.
        source: where from.
        images: ids whose pictures are fetched; None fetches all, an empty collection none.
        acknowledge: tell the device what is here whole.
        delete: have the device erase it; acknowledges too.
        report: told about progress.
    """
    done = Pulled(source.url)
    number = inbox.source(source.url, datetime.now(timezone.utc).isoformat(timespec="seconds"))
    try:
        there: set[str] = set()
        _again(lambda: _manifests(inbox, source, number, there, done, report), done)
        _check(inbox, number, there, images, done, report)
        _again(lambda: _pictures(inbox, source, number, images, done, report), done)
        if acknowledge or delete:
            _answer(inbox, source, number, there, delete, done, report)
    except (AlposeError, OSError) as error:
        done.problem = _words(error)
        # What is no queue will not be one the next time.
        again = isinstance(error, (OSError, ChangedError)) and not isinstance(error, FileNotFoundError)
        log.warning("%s: %s%s", source.url, done.problem,
                    "; what came before is kept, pull again to go on" if again else "")  # fmt: skip
    return done


def _again(step: Callable[[], None], done: Pulled) -> None:
    """Do a step until the queue holds still and the line holds; every step goes on where it stopped."""
    for number in range(1, TRIES + 1):
        try:
            step()
        except (ChangedError, OSError) as error:
            if isinstance(error, FileNotFoundError) or number == TRIES:
                raise
            done.tries += 1
            log.debug("%s: %s; trying again", done.url, error)
            time.sleep(PAUSE_S * number)
        else:
            return


def _manifests(inbox: Inbox, source: Source, number: int, there: set[str], done: Pulled, report: Report) -> None:
    """Bring the manifests; ``there`` becomes the ids that the device has now."""
    with open_reader(source) as reader:
        try:
            done.how = reader.how
            added = inbox.add(number, reader.raws())
            inbox.add_bundles(reader.bundles())
            inbox.set_tallies(reader.queue(), reader.tallies())
            inbox.set_counters(number, reader.counters())
            asked, now = set(inbox.asked(number)), reader.ids()
            reader.require_unchanged()
            there.clear()
            there.update(now)
        finally:
            done.moved_bytes += reader.moved.bytes
    done.new, done.known, done.refused = done.new + added.new, added.known, added.refused
    # Asked for, and not there any more: now it is known.
    done.deleted += inbox.mark("deleted", asked - there)
    done.gone += inbox.gone(number, there)
    # Asked for, and still there: the answer may have been lost on its way, so it may be given again.
    inbox.unask(asked & there)
    report("manifests", added.new + added.known, added.new + added.known)


def _check(
    inbox: Inbox, number: int, there: Collection[str], images: Collection[str] | None, done: Pulled, report: Report
) -> None:
    """Read the pictures again that the device still has, of those that are to be here: what is not whole is fetched anew."""
    held = [id_ for id_ in inbox.held(number) if id_ in there and (images is None or id_ in images)]
    for place, id_ in enumerate(held, start=1):
        if not inbox.is_whole(id_):
            inbox.lost(id_)
            done.again += 1
        report("checked", place, len(held))


def _pictures(
    inbox: Inbox, source: Source, number: int, images: Collection[str] | None, done: Pulled, report: Report
) -> None:
    waiting = inbox.waiting(number, "fetched")
    wanted = waiting if images is None else [id_ for id_ in waiting if id_ in images]
    if not wanted:
        return
    with open_reader(source) as reader:
        try:
            for place, id_ in enumerate(wanted, start=1):
                if inbox.link_pictures(id_):  # another person on the frame has brought them
                    done.fetched += 1
                    report("pictures", place, len(wanted))
                    continue
                try:
                    pictures = reader.pictures(id_)
                except ChangedError:
                    raise
                except DataError as error:
                    # Torn by a checkpoint, or damaged on the device: the first heals when it is read again.
                    reader.require_unchanged()
                    done.damaged += 1
                    done.notes.append(f"{id_}: {error}")
                    continue
                if pictures is None:
                    done.gone += inbox.mark("deleted", [id_])
                    continue
                inbox.store_pictures(id_, pictures)
                done.fetched += 1
                report("pictures", place, len(wanted))
        finally:
            done.moved_bytes += reader.moved.bytes


def _answer(
    inbox: Inbox, source: Source, number: int, there: Collection[str], delete: bool, done: Pulled, report: Report
) -> None:
    """Acknowledge what is here whole, read again from our own files."""
    ids = inbox.waiting(number, "deleted" if delete else "acknowledged")
    whole: dict[str, str] = {}
    for place, id_ in enumerate(ids, start=1):
        if inbox.is_whole(id_):
            whole[id_] = inbox.sha256(id_)
        else:
            inbox.lost(id_)
            then = (
                "the device is not told, and a pull without --images none fetches them again"
                if id_ in there
                else "and the device has them no more: restore the inbox from a backup"
            )
            done.notes.append(f"{id_}: its pictures in {inbox.folder} are damaged or gone: {then}")
        report("verified", place, len(ids))
    if not whole:
        return
    items = list(whole.items())
    for start in range(0, len(items), ACKNOWLEDGED_AT_ONCE):
        part = dict(items[start : start + ACKNOWLEDGED_AT_ONCE])
        name = f"harvest-{time.time_ns()}.json"
        try:
            if isinstance(source, LocalSource):
                acknowledgements.write(source.path, name, Acknowledgement(delete, part))
            else:
                source.acknowledge(name, Acknowledgement(delete, part))
        except Exception as error:  # every file system has errors of its own
            done.notes.append(
                f"{source.url} cannot be written to, so the device is not told: {type(error).__name__}: {scrubbed(str(error))}"
            )
            return
        done.acknowledged += inbox.mark("acknowledged", part)
        if delete:
            done.asked_to_delete += inbox.mark("asked", part)
    if isinstance(source, LocalSource):
        _apply(inbox, source, list(whole), delete, done)


def _apply(inbox: Inbox, source: LocalSource, ids: list[str], delete: bool, done: Pulled) -> None:
    """Let the queue take its acknowledgements now, where this process may write it; its monitor does so otherwise."""
    try:
        with Queue(source.path, on_damage="raise") as queue:
            applied = queue.apply_acknowledgements()
            left = {record.id for record in queue.get(ids)} if delete else set()
    except (AlposeError, OSError) as error:
        done.notes.append(f"{source.url}: its monitor will apply the acknowledgement ({error})")
        return
    if applied.mismatched:
        done.notes.append(
            f"{len(applied.mismatched)} records changed on the device after they were pulled: they stay there"
        )
    if delete:
        done.deleted += inbox.mark("deleted", [id_ for id_ in ids if id_ not in left])


# --- A dry run


def plan(
    inbox: Inbox | None,
    source: Source,
    *,
    images: Collection[str] | None = None,
    acknowledge: bool = False,
    delete: bool = False,
) -> Planned:
    """Look at one source and say what :func:`pull` with the same arguments would do. Only manifests are read; nothing is
    written, here or on a device.

    Args:
        inbox: None where there is none yet.
        source: where from.
        images, acknowledge, delete: as of a pull.
    """
    planned, seen = Planned(source.url), set[str]()
    try:
        with open_reader(source) as reader:
            planned.how = reader.how
            try:
                for raw in reader.raws():
                    _plan_record(planned, inbox, raw, images, seen)
            finally:
                planned.moved_bytes = reader.moved.bytes
            reader.require_unchanged()
    except (AlposeError, OSError) as error:
        planned.problem = _words(error)
    if not (acknowledge or delete):
        planned.would_acknowledge = 0
    if not delete:
        planned.would_delete = 0
    return planned


def _plan_record(
    planned: Planned, inbox: Inbox | None, raw: Raw, images: Collection[str] | None, seen: set[str]
) -> None:
    """``seen``: sha256 of the pictures that are counted already, for several people may be on one."""
    try:
        record, pictures = decode(raw.manifest, raw.arrays, raw.sha256)
        if record.id != raw.id:
            raise DataError("the row's id is not the manifest's")
    except DataError:
        planned.refused += 1
        return
    here = None
    if inbox is not None and inbox.has(raw.id):
        if inbox.sha256(raw.id) != raw.sha256:
            planned.refused += 1
            return
        (here,) = inbox.entries([raw.id])
        planned.known += 1
        if here.fetched and here.source != planned.url:  # came by another way, which answers for it
            return
    else:
        planned.new += 1
    held = bool(here and here.fetched and inbox and inbox.is_whole(raw.id))
    wanted = bool(pictures) and not held and (images is None or raw.id in images)
    if wanted:
        planned.would_fetch += 1
        planned.would_fetch_bytes += sum(picture.size for picture in pictures if picture.sha256 not in seen)
        seen.update(picture.sha256 for picture in pictures)
    if wanted or not pictures or held:
        planned.would_acknowledge += not (here and here.acknowledged)
        planned.would_delete += 1


def _words(error: Exception) -> str:
    return scrubbed(str(error) if isinstance(error, AlposeError) else f"{type(error).__name__}: {error}")
