"""From the hand-over to the row: frames are encoded, clips gathered, and what is complete is written to the disk.

::

    hand-over ──> encoder thread (ClipAssembler) ── backlog ──> disk thread (QueueWriter) ──> row

The threads are two so that a disk that takes its time (a flash card may stall for seconds) holds up no frame: it waits
encoded, fifty times smaller, in bounded memory. All that is encoded is committed in one transaction: a sync of the disk
costs the same for ten frames as for one. While the disk is full, read-only, locked or gone, writing is tried again and
again, ever more slowly, and a file that moved is opened again.

Counters: ``dropped_frames_total{reason}``, in records, one for each person on a frame; ``dropped_pictures_total{reason}``, where a record goes without one of them;
``write_errors_total{reason}``, attempts that failed; ``fallback_total{what}``; ``internal_errors_total{where}``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ..errors import AlposeError, QueueError
from ..logs import RateLimitedLog
from ..telemetry.counters import Counters
from .clips import ClipAssembler, PendingRecord
from .eviction import Stored
from .handover import HandOver, NewRecord
from .images import PictureEncoder
from .queue import Item, Queue

log = logging.getLogger("alpose.monitor")


BACKLOG_BYTES = 64 << 20
"""Encoded pictures that wait for the disk. Beyond it nothing more is taken from the hand-over."""

BATCH = 64
"""Most records in one transaction."""

RETRY_S = (0.1, 10.0)
"""Between two attempts to write: at first, and at most."""

FLUSH_S = 60.0
"""So long a flush without a time-out waits for a disk that neither writes nor fails."""

IDLE_S = 60.0
"""The encoder looks up so often where nothing comes."""

MOST_REMEMBERED = 4096
"""Sequence numbers and episodes whose records are remembered: an episode ends within seconds."""

REOPEN_AT_ONCE = ("moved", "damaged")
"""After these the path is opened again at once: it leads to a fresh file, or to the one that lies there now."""

REOPEN_LATER = ("read_only", "io")
"""After these it is opened again before the next attempt: a connection does not notice that the disk is well again."""

COUNTED_AS = {"full": "disk_full", "read_only": "readonly"}
"""Reasons of a :class:`QueueError` by which they go in counters; the others keep theirs."""

DROPPED = "dropped_frames_total"
"""The counter that the file keeps too, so that whoever harvests it knows how many frames never reached it."""

REFUSALS = {"too_large": "too_large", "queue_full": "full", "control": "control"}
"""Counted reasons for which a queue keeps no record, and the queue's own names of them. The file counts these itself."""


class QueueWriter:
    """Writes records, and maintains the file, in a queue that may fail at any time. Used on the disk thread alone.

    Args:
        queue: where to.
        introduce: called before the first record of every file.
        maintenance: what :meth:`maintain` calls.
        retry_s: between two attempts after a failure, at first and at most.
    """

    def __init__(
        self,
        queue: Queue,
        introduce: Callable[[Queue], object],
        maintenance: Sequence[Callable[[Queue], object]],
        *,
        retry_s: tuple[float, float],
        counters: Counters,
        limited_log: RateLimitedLog,
        monotonic: Callable[[], float],
    ) -> None:
        self._queue, self._introduce, self._maintenance, self._retry_s = queue, introduce, maintenance, retry_s
        self._introduced = False
        self._counters, self._log, self._monotonic = counters, limited_log, monotonic
        self._ids: OrderedDict[int, str] = OrderedDict()
        self._episodes: OrderedDict[int, str] = OrderedDict()
        self._group, self._delay_s = BATCH, 0.0
        self._stale: str | None = None
        """The reason for which the file has to be opened again."""
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

    def write(self, waiting: Sequence[PendingRecord], *, hurried: bool = False) -> int:
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
            self._prepare()
            done = self._put([self._item(pending) for pending in waiting[: self._group]])
        except QueueError as error:
            self.failures += 1
            self.obstacle = self._count(error)
            if error.reason in (*REOPEN_AT_ONCE, *REOPEN_LATER):
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

    def maintain(self, *, first: bool = False, last: bool = False) -> None:
        """Do all maintenance once; a task that raises is counted, and a file that moved is opened again.

        Args:
            first: only introduce the file, which is opened now if it was not yet.
            last: nothing follows; where one task finds the file locked or the disk dead, the others would only wait too.
        """
        for task in (lambda queue: self._prepare(), *(() if first else self._maintenance)):
            try:
                task(self._queue)
            except QueueError as error:
                self.note(self._count(error), "the queue's maintenance waits: %s", error)
                if error.reason in (*REOPEN_AT_ONCE, *REOPEN_LATER):
                    self._stale = error.reason
                if last:
                    return
            except Exception as error:
                self._counters.add("internal_errors_total", where="maintenance")
                self.note("maintenance", "the queue's maintenance failed: %r", error)

    def note(self, kind: str, message: str, *args: object) -> None:
        """Log an error, and keep it as the last one."""
        self.last_error = (message % args, time.time_ns())
        self._log.error(kind, message, *args)

    def _prepare(self) -> None:
        """Open the file again where it has to be, and introduce a new one."""
        if self._stale is not None:
            self._reopen(self._stale)
        if not self._introduced:
            self._introduce(self._queue)
            self._introduced = True

    def _put(self, items: Sequence[Item]) -> int:
        """Put all of them in one transaction; :class:`QueueError` where that fails now."""
        try:
            stored = self._put_somewhere(items)
        except QueueError:
            raise
        except Exception as error:
            # One of them is not a record. The first alone, so that it holds up nobody else.
            if len(items) > 1:
                self._group = 1
                return self._put(items[:1])
            self._counters.add(DROPPED, reason="refused")
            self.note("refused", "a record was refused, and is lost: %r", error)
            return 1
        for outcome in stored:
            if outcome.kept:
                self.written += 1
            else:
                known = (reason for reason, its_own in REFUSALS.items() if its_own == outcome.reason)
                self._counters.add(DROPPED, reason=next(known, "refused"))
        return len(stored)

    def _put_somewhere(self, items: Sequence[Item]) -> list[Stored]:
        """Put them where the path leads now, also if that is another file than before."""
        for again in (False, True):
            try:
                return self._queue.put_many(items)
            except QueueError as error:
                if error.reason not in REOPEN_AT_ONCE:
                    raise
                self.note(self._count(error), "the queue is opened again: %s", error)
                # Opening finds most damage, and moves the file aside by itself; perhaps another process did. What was
                # found by writing alone, when the file has just been opened, is moved aside here.
                self._reopen(error.reason, quarantine=again and error.reason == "damaged")
        return self._queue.put_many(items)

    def _reopen(self, reason: str, *, quarantine: bool = False) -> None:
        self._stale = reason  # until it has worked
        try:
            self._queue.reopen(quarantine=quarantine)
        except QueueError:
            raise
        except (AlposeError, OSError) as error:  # its folder is gone
            raise QueueError("moved", str(error)) from error
        self._stale, self._introduced = None, False

    def _item(self, pending: PendingRecord) -> Item:
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
        reason = COUNTED_AS.get(error.reason, error.reason)
        self._counters.add("write_errors_total", reason=reason)
        return reason


def _remember(known: OrderedDict[int, str], key: int, id: str) -> str:
    """The first id that was given for a key; of too many keys the oldest are forgotten."""
    first = known.setdefault(key, id)
    while len(known) > MOST_REMEMBERED:
        known.popitem(last=False)
    return first


class RecordingThreads:
    """The two threads behind a hand-over, and what waits between them. The arguments are those of the recorder."""

    def __init__(
        self,
        queue: Queue,
        encoder: PictureEncoder,
        handover: HandOver,
        *,
        introduce: Callable[[Queue], object],
        maintenance: Sequence[Callable[[Queue], object]],
        maintenance_every_s: float,
        clip_timeout_s: float,
        retry_s: tuple[float, float],
        counters: Counters,
        monotonic: Callable[[], float],
    ) -> None:
        self._handover, self._counters, self._monotonic = handover, counters, monotonic
        self._log = RateLimitedLog(log)
        # Changed on the encoder's thread.
        self._clips = ClipAssembler(
            encoder, after=queue.clip[1], timeout_s=clip_timeout_s, counters=counters, limited_log=self._log
        )
        self._begun = 0
        # Changed on the disk thread.
        self.writer = QueueWriter(
            queue,
            introduce,
            (
                lambda queue: queue.apply_acknowledgements(),
                lambda queue: queue.tidy(),
                self._store_counts,
                *maintenance,
            ),
            retry_s=retry_s,
            counters=counters,
            limited_log=self._log,
            monotonic=monotonic,
        )
        self._maintenance_every_s, self._maintenance_at_s = maintenance_every_s, monotonic() + maintenance_every_s
        self._logged, self._stored_counts = 0, dict[str, int]()
        # Between these two and whoever flushes or closes, under the lock of the condition.
        self._changed = threading.Condition()
        self._backlog: list[PendingRecord] = []
        self._backlog_bytes = 0
        self._assembled_below = self._settled_below = self._hurry_below = self._waiters = 0
        self._ending = self._given_up = False
        self._encoder_thread = threading.Thread(target=self._encode_all, name="alpose-encoder", daemon=True)
        self._disk_thread = threading.Thread(target=self._write_all, name="alpose-recorder", daemon=True)
        self._encoder_thread.start()
        self._disk_thread.start()

    @property
    def waiting(self) -> tuple[int, int]:
        """Frames that were submitted and are not on the disk yet, and the bytes of what is encoded of them."""
        assembled = [*self._clips.open, *self._clips.ready]
        encoded_bytes = sum(pending.nbytes for pending in assembled) + self._backlog_bytes
        return self._handover.submitted - self._begun + len(assembled) + len(self._backlog), encoded_bytes

    def flush(self, timeout_s: float | None) -> bool:
        """Write all that was submitted now; see :meth:`Recorder.flush`."""
        until_s = time.monotonic() + (FLUSH_S if timeout_s is None else timeout_s)
        with self._changed:
            submitted, failures = self._handover.submitted, self.writer.failures
            self._hurry_below = max(self._hurry_below, submitted)
            self._waiters += 1
            self._handover.wake()
            self._changed.notify_all()
            # The attempt that is under way may have begun before the last frame came: its failure says nothing.
            while self._settled_below < submitted and self._disk_thread.is_alive():
                left_s = until_s - time.monotonic()
                if left_s <= 0 or (timeout_s is None and self.writer.failures > failures + 1):
                    break
                self._changed.wait(min(1.0, left_s))
            self._waiters -= 1
            return self._settled_below >= submitted

    def end(self, timeout_s: float) -> bool:
        """End the threads; what still waits is given up, and counted. Whether they have ended within the time."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._handover.wake()
        self._disk_thread.join(timeout_s)
        if self._disk_thread.is_alive():  # in a call that the disk does not answer
            self._give_up(self.writer.obstacle or "hung")
        return not self._disk_thread.is_alive()

    def _give_up(self, reason: str) -> None:
        """Count what will not be written any more, once."""
        with self._changed:
            lost, self._given_up = 0 if self._given_up else self.waiting[0], True
        if lost:
            self._counters.add(DROPPED, lost, reason=reason)
            log.error(
                "%d frames were given up at the end: %s",
                lost,
                self.writer.last_error[0] if self.writer.last_error else "there was no time",
            )

    # The encoder's thread.

    def _encode_all(self) -> None:
        while not self._ending:
            with self._going_on():
                with self._changed:
                    while self._backlog_bytes >= BACKLOG_BYTES and not self._ending:
                        self._changed.wait()
                self._encode_what_came()
                self._pass_on()

    def _encode_what_came(self) -> None:
        """Encode what has come, after waiting for the first of it."""
        pause_s = self._encoder_pause_s()
        for _ in range(BATCH):
            item = self._handover.take(pause_s)
            if item is None:
                # All that was handed over before a flush has been taken: what a clip lacks now, it will not get.
                self._clips.close_below(self._hurry_below)
                break
            if isinstance(item, NewRecord):
                self._begin(item)
                break  # the disk need not wait for the others
            self._clips.follow(*item)
            pause_s = 0.0
        self._clips.close_late(self._monotonic())

    def _encoder_pause_s(self) -> float:
        """How long it has nothing to do unless something comes."""
        if self._clips.ready or self._hurry_below > self._assembled_below:
            return 0.0
        deadline_s = self._clips.deadline_s
        return IDLE_S if deadline_s is None else min(max(0.0, deadline_s - self._monotonic()), IDLE_S)

    def _begin(self, item: NewRecord) -> None:
        try:
            self._clips.begin(*item, self._monotonic())
        except Exception as error:  # encoders raise anything
            self._counters.add(DROPPED, reason="encode_error")
            self.writer.note("encode_error", "a frame could not be encoded, and is lost: %r", error)
        self._begun += 1

    def _pass_on(self) -> None:
        """Hand to the disk thread what is complete."""
        ready, self._clips.ready = self._clips.ready, []
        with self._changed:
            self._backlog += ready
            self._backlog_bytes += sum(pending.nbytes for pending in ready)
            self._assembled_below = min((clip.number for clip in self._clips.open), default=self._begun)
            self._report_progress()

    # The disk thread.

    def _write_all(self) -> None:
        self.writer.maintain(first=True)
        while not self._ending:
            with self._going_on():
                with self._changed:
                    if not self._ending:
                        self._changed.wait(self._disk_pause_s())
                    batch = self._backlog[:BATCH]
                done = self.writer.write(batch, hurried=self._hurried)
                with self._changed:
                    del self._backlog[:done]
                    self._backlog_bytes -= sum(pending.nbytes for pending in batch[:done])
                    self._report_progress()
                self._log_drops()
                if self._monotonic() >= self._maintenance_at_s:
                    self._maintain()
        self._maintain(last=True)
        self._encoder_thread.join()
        self._give_up(self.writer.obstacle or "closed")
        self._log_drops()
        self._log.flush(everything=True)

    def _disk_pause_s(self) -> float:
        """How long nothing has to be done unless something changes."""
        at_s = self._maintenance_at_s
        due_s = min(at_s, self.writer.retry_at_s) if self._backlog else at_s
        return max(0.0, due_s - self._monotonic())

    def _maintain(self, *, last: bool = False) -> None:
        self.writer.maintain(last=last)
        self._log.flush()
        self._maintenance_at_s = self._monotonic() + self._maintenance_every_s

    def _store_counts(self, queue: Queue) -> None:
        """Write into the file how many frames never reached it: whoever harvests it has to know."""
        for count, n in self._counters.snapshot().items():
            if count.name != DROPPED or (reason := dict(count.labels)["reason"]) in REFUSALS:
                continue
            if n > self._stored_counts.get(reason, 0):
                queue.count(count.name, reason, n - self._stored_counts.get(reason, 0))
                self._stored_counts[reason] = n

    def _log_drops(self) -> None:
        dropped = self._handover.dropped
        if dropped > self._logged:
            new, self._logged = dropped - self._logged, dropped
            self._log.warning("dropped", "%d frames found no room on their way to the queue", new)

    # Both threads.

    @property
    def _hurried(self) -> bool:
        """Somebody waits in :meth:`flush`."""
        return self._waiters > 0 and self._hurry_below > self._settled_below

    def _report_progress(self) -> None:
        """Tell whoever waits how far recording has come; called under the lock."""
        oldest = min((pending.number for pending in self._backlog), default=self._assembled_below)
        self._settled_below = min(oldest, self._assembled_below)
        self._changed.notify_all()

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A fault of alpose must not end the recording of later frames."""
        try:
            yield
        except Exception as error:
            self._counters.add("internal_errors_total", where="recorder")
            self.writer.note("recorder", "the recorder failed, and goes on: %r", error)
            time.sleep(RETRY_S[0])
