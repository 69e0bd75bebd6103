"""Puts what is ready on the disk, and goes on when that fails: tries again ever more slowly, opens a file that moved.

Everything here runs on the thread that writes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..counters import Counters
from ..errors import AlposeError, QueueError
from ..quiet import RateLimited
from .assembly import Pending
from .facts import Stored
from .store import Item, Queue

BATCH = 64
"""Most records in one transaction."""

MOST_KNOWN = 4096
"""Sequence numbers and episodes whose records are remembered: an episode ends within seconds."""

MENDABLE = ("moved", "damaged")
"""After these the path is opened anew at once: a fresh file, or the one that lies there now."""

STALE = ("read_only", "io")
"""After these it is opened anew before the next attempt: a connection does not notice that the disk is well again."""

WORDS = {"full": "disk_full", "read_only": "readonly"}
"""Reasons of a :class:`QueueError` by which they go in counters; the others keep theirs."""

REFUSALS = {"too_large": "too_large", "queue_full": "full", "control": "control"}
"""Counted reasons for which a queue keeps no record, and its own names of them. The file counts these itself."""


class Writer:
    """Writes records, and keeps house, in a queue that may fail at any time.

    Args:
        queue: where to.
        chores: what :meth:`keep_house` calls.
        retry_s: between two attempts after a failure, at first and at most.
    """

    def __init__(
        self,
        queue: Queue,
        chores: Sequence[Callable[[Queue], object]],
        *,
        retry_s: tuple[float, float],
        counters: Counters,
        quiet: RateLimited,
        monotonic: Callable[[], float],
    ) -> None:
        self._queue, self._chores, self._retry_s = queue, chores, retry_s
        self._counters, self._quiet, self._monotonic = counters, quiet, monotonic
        self._ids: OrderedDict[int, str] = OrderedDict()
        self._episodes: OrderedDict[int, str] = OrderedDict()
        self._group, self._delay_s = BATCH, 0.0
        self._stale: str | None = None
        """The reason for which the file has to be opened anew."""
        self.retry_at_s = 0.0
        """Monotonic; before it no attempt is worth making."""
        self.written = 0
        """Records on the disk."""
        self.failures = 0
        """Attempts that failed."""
        self.obstacle: str | None = None
        """Why the last attempt failed; None when it did not."""
        self.last_error: tuple[str, int] | None = None
        """In words, and Unix time in ns."""

    def write(self, waiting: Sequence[Pending], *, hurried: bool = False) -> int:
        """One attempt to put the first of some records on the disk, if it is time for one.

        Args:
            waiting: in order.
            hurried: somebody waits for it: it is time now, and again soon.

        Returns:
            How many are done with: on the disk, or given up, which is counted.
        """
        if not waiting or (self._monotonic() < self.retry_at_s and not hurried):
            return 0
        try:
            if self._stale is not None:
                self._reopen(self._stale)
            done = self._put([self._item(pending) for pending in waiting[: self._group]])
        except QueueError as error:
            self.failures += 1
            self.obstacle = self._count(error)
            if error.reason in STALE:
                self._stale = error.reason
            self.note(self.obstacle, "frames wait, for the queue cannot be written: %s", error)
            # One at a time from now on: on a disk that is nearly full, one frame may fit where ten do not.
            self._group = 1
            first_s, most_s = self._retry_s
            self._delay_s = first_s if hurried else min(max(2 * self._delay_s, first_s), most_s)
            self.retry_at_s = self._monotonic() + self._delay_s
            return 0
        self.obstacle, self._delay_s, self.retry_at_s = None, 0.0, 0.0
        self._group = min(2 * self._group, BATCH)
        return done

    def keep_house(self) -> None:
        """Call every chore once; one that raises is counted, and a file that moved is opened anew."""
        for chore in self._chores:
            try:
                if self._stale is not None:
                    self._reopen(self._stale)
                chore(self._queue)
            except QueueError as error:
                self.note(self._count(error), "the queue's housekeeping waits: %s", error)
                if error.reason in (*MENDABLE, *STALE):
                    self._stale = error.reason
            except Exception as error:
                self._counters.add("internal_errors_total", where="chores")
                self.note("chores", "the queue's housekeeping failed: %r", error)

    def note(self, kind: str, message: str, *args: object) -> None:
        """Log an error, and keep it as the last one."""
        self.last_error = (message % args, time.time_ns())
        self._quiet.error(kind, message, *args)

    def _put(self, items: Sequence[Item]) -> int:
        """Put all of them in one transaction; :class:`QueueError` where that fails now."""
        try:
            stored = self._put_somewhere(items)
        except QueueError:
            raise
        except Exception as error:
            # One of them is no record. The first alone, so that it holds up nobody else.
            if len(items) > 1:
                self._group = 1
                return self._put(items[:1])
            self._counters.add("dropped_frames_total", reason="refused")
            self.note("refused", "a record was refused, and is lost: %r", error)
            return 1
        for outcome in stored:
            if outcome.kept:
                self.written += 1
            else:
                known = (reason for reason, its_own in REFUSALS.items() if its_own == outcome.reason)
                self._counters.add("dropped_frames_total", reason=next(known, "refused"))
        return len(stored)

    def _put_somewhere(self, items: Sequence[Item]) -> list[Stored]:
        """Put them where the path leads now, also if that is another file than before."""
        for cure in (False, True):
            try:
                return self._queue.put_many(items)
            except QueueError as error:
                if error.reason not in MENDABLE:
                    raise
                self.note(self._count(error), "the queue is opened anew: %s", error)
                # Opening finds most damage, and moves the file aside by itself; perhaps another process did. What was
                # found by writing alone, when the file has just been opened, is moved aside here.
                self._reopen(error.reason, quarantine=cure and error.reason == "damaged")
        return self._queue.put_many(items)

    def _reopen(self, reason: str, *, quarantine: bool = False) -> None:
        self._stale = reason  # until it has worked
        try:
            self._queue.reopen(quarantine=quarantine)
        except QueueError:
            raise
        except (AlposeError, OSError) as error:  # its folder is gone
            raise QueueError("moved", str(error)) from error
        self._stale = None

    def _item(self, pending: Pending) -> Item:
        """What the queue is given; a record gets its id with the first attempt, and keeps it."""
        candidate, pictures = pending.candidate, pending.pictures
        if pending.id is None:
            pending.id = self._queue.new_id()
            _remember(self._ids, candidate.sequence, pending.id)
        frame = next((picture for picture in pictures if picture.position == 0), None)
        record = replace(
            candidate.record,
            id=pending.id,
            episode=None if candidate.episode is None else _remember(self._episodes, candidate.episode, pending.id),
            store=self._queue.store,
            frame_bytes=len(frame.data) if frame else 0,
            frame_sha256=frame.sha256 if frame else None,
        )
        return record, pictures, tuple(self._ids[number] for number in candidate.supersedes if number in self._ids)

    def _count(self, error: QueueError) -> str:
        reason = WORDS.get(error.reason, error.reason)
        self._counters.add("write_errors_total", reason=reason)
        return reason


def _remember(known: OrderedDict[int, str], key: int, id: str) -> str:
    """The first id that was given for a key; of too many keys the oldest are forgotten."""
    first = known.setdefault(key, id)
    while len(known) > MOST_KNOWN:
        known.popitem(last=False)
    return first
