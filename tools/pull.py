"""Bring records home: manifests first, then the pictures that are wanted, then say that they are here.

Every step can be interrupted and is finished by doing it again. A frame is deleted on its device only after its pictures
have been read again from the inbox's own files and held against their hashes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from alpose.runtime.errors import AlposeError, DataError
from alpose.runtime.queue import Queue, acknowledgements
from alpose.runtime.queue.acknowledgements import Acknowledgement

from .inbox import Inbox
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
class Pulled:
    """What one source gave; counts of this pull alone."""

    url: str
    how: str = ""
    new: int = 0
    known: int = 0
    refused: int = 0
    fetched: int = 0
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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


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
        _again(lambda: _manifests(inbox, source, number, done, report), done)
        _again(lambda: _pictures(inbox, source, number, images, done, report), done)
        if acknowledge or delete:
            _answer(inbox, source, number, delete, done, report)
    except (AlposeError, OSError) as error:
        said = str(error) if isinstance(error, AlposeError) else f"{type(error).__name__}: {error}"
        done.problem = scrubbed(said)
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


def _manifests(inbox: Inbox, source: Source, number: int, done: Pulled, report: Report) -> None:
    with open_reader(source) as reader:
        try:
            done.how = reader.how
            added = inbox.add(number, reader.raws())
            inbox.add_bundles(reader.bundles())
            inbox.set_tallies(reader.queue(), reader.tallies())
            inbox.set_counters(number, reader.counters())
            asked, there = set(inbox.asked(number)), reader.ids()
            reader.require_unchanged()
        finally:
            done.moved_bytes += reader.moved.bytes
    done.new, done.known, done.refused = done.new + added.new, added.known, added.refused
    # Asked for, and not there any more: now it is known.
    done.deleted += inbox.mark("deleted", asked - there)
    done.gone += inbox.gone(number, there)
    # Asked for, and still there: the answer may have been lost on its way, so it may be given again.
    inbox.unask(asked & there)
    report("manifests", added.new + added.known, added.new + added.known)


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


def _answer(inbox: Inbox, source: Source, number: int, delete: bool, done: Pulled, report: Report) -> None:
    """Acknowledge what is here whole, read again from our own files."""
    ids = inbox.waiting(number, "deleted" if delete else "acknowledged")
    whole: dict[str, str] = {}
    for place, id_ in enumerate(ids, start=1):
        if inbox.is_whole(id_):
            whole[id_] = inbox.sha256(id_)
        else:
            inbox.lost(id_)
            done.notes.append(f"{id_}: its pictures are not here whole any more: it is fetched again")
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
