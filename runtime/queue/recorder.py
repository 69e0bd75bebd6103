"""The recorder: takes kept frames from the camera's thread, encodes them, and puts them into the queue.

::

    camera ── hand-over ──> encoder ── backlog ──> writer ──> disk

The camera's thread leaves a copy and goes on: :meth:`Recorder.submit` waits for nothing and raises nothing. The
hand-over is bounded in frames and in bytes; what does not fit is dropped and counted. A thread encodes what has come,
and another commits all that is encoded in one transaction: a sync of the disk costs the same for ten frames as for one.
They are two so that a disk that takes its time (a flash card may stall for seconds) holds up no frame: it waits encoded,
fifty times smaller, in bounded memory. While the disk is full, read-only, locked or gone, writing is tried again and
again, ever more slowly.

Counters: ``dropped_frames_total{reason}``; ``dropped_pictures_total{reason}``, where a record goes without one of them;
``write_errors_total{reason}``, attempts that failed; ``fallback_total{what}``; ``internal_errors_total{where}``.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..counters import Counters
from ..errors import ConfigError
from ..quiet import RateLimited
from .assembly import Assembly, Pending
from .candidate import Candidate, PictureMaker, Region, Shot
from .canonical import MAX_PICTURES
from .handover import HandOver
from .store import Queue
from .writer import BATCH, REFUSALS, Writer

__all__ = ["Candidate", "Recorder", "RecorderState", "Region", "Shot"]

HANDOVER_BYTES = 128 << 20
"""Most pixels that wait to be encoded; a single frame is taken whatever its size."""

BACKLOG_BYTES = 64 << 20
"""Encoded pictures that wait for the disk. Beyond it nothing more is taken from the hand-over."""

CLIP_TIMEOUT_S = 10.0
"""So long a record waits for the frames after it: a camera that stopped must not keep it from the disk."""

RETRY_S = (0.1, 10.0)
"""Between two attempts to write: at first, and at most."""

IDLE_S = 60.0
"""The encoder looks up so often where nothing comes."""

log = logging.getLogger("alpose.monitor")


class _Begin(NamedTuple):
    candidate: Candidate
    number: int
    """In order of submission."""
    frame: int
    """The camera's running number of the frame."""


class _Follow(NamedTuple):
    camera: str
    frame: int
    shot: Shot


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderState:
    """The recorder at one moment."""

    waiting: int
    """Frames handed over, and not yet on the disk."""
    waiting_bytes: int
    """Of memory that they take: pixels and encoded pictures."""
    written: int
    """Records put on the disk so far."""
    obstacle: str | None
    """Why the last attempt to write failed; None when it did not."""
    last_error: str | None
    """The last failure of all, in words."""
    last_error_ns: int | None
    """Its Unix time."""


class Recorder:
    """Writes kept frames into a queue, on threads of its own.

    The queue stays its owner's, who closes it after the recorder. What was submitted is also written when the
    interpreter ends without :meth:`close`; a process that is killed loses what was not written yet.

    Args:
        queue: its settings say what is kept, and how.
        depth: most frames that wait to be encoded.
        counters: where drops and errors are counted.
        chores: called on the writer's thread once a minute, and once before it ends: here scores and tallies are
            written. One that raises is counted, and called again the next time: it must keep what it could not write.
        chores_every_s: between two rounds of chores.
        clip_timeout_s: so long a record waits for the frames after it.
        retry_s: between two attempts to write, at first and at most.
        monotonic: seconds.

    Raises:
        ConfigError: settings of the queue that cannot be carried out.
        MissingExtraError: frames are to be sealed, and pynacl is not installed.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        depth: int = 16,
        counters: Counters | None = None,
        chores: Sequence[Callable[[Queue], object]] = (),
        chores_every_s: float = 60.0,
        clip_timeout_s: float = CLIP_TIMEOUT_S,
        retry_s: tuple[float, float] = RETRY_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        before, after = queue.clip
        if min(before, after) < 0 or before + 1 + after > MAX_PICTURES:
            raise ConfigError(f"a clip has 0 to {MAX_PICTURES} frames in all, got {before} before and {after} after")
        if queue.readonly:
            raise ConfigError(f"{queue.path} was opened for reading alone: open it without readonly")
        if depth < 1:
            raise ConfigError(f"depth is at least 1, got {depth}")
        self.counters = counters if counters is not None else Counters()
        self.maker = PictureMaker(
            store=queue.store,
            media_type=queue.media_type,
            quality=queue.quality,
            long_side=queue.long_side,
            seal_to=queue.seal_to,
        )
        """Its ``region`` says what of a frame has to be handed over."""
        self._before, self._after = before, after
        self._monotonic, self._quiet = monotonic, RateLimited(log)
        self._pid = os.getpid()
        # Changed on the cameras' threads, one at a time.
        self._producers = threading.Lock()
        self._handover: HandOver[_Begin | _Follow] = HandOver(depth, HANDOVER_BYTES)
        self._submitted = self._dropped = 0
        self._frames: dict[str, int] = {}
        self._owed: dict[str, int] = {}
        # Changed on the encoder's thread.
        self._assembly = Assembly(
            self.maker, after=after, timeout_s=clip_timeout_s, counters=self.counters, quiet=self._quiet
        )
        self._begun = 0
        # Changed on the writer's thread.
        self._writer = Writer(
            queue,
            (lambda queue: queue.apply_acknowledgements(), lambda queue: queue.tidy(), self._keep_count, *chores),
            retry_s=retry_s,
            counters=self.counters,
            quiet=self._quiet,
            monotonic=monotonic,
        )
        self._chores_every_s, self._chores_at_s = chores_every_s, monotonic() + chores_every_s
        self._told, self._kept_count = 0, dict[str, int]()
        # Between these two and whoever flushes or closes, under the lock of the condition.
        self._changed = threading.Condition()
        self._backlog: list[Pending] = []
        self._backlog_bytes = 0
        self._assembled_below = self._settled_below = self._hurry_below = self._waiters = 0
        self._closing = self._ending = False
        self._encoder = threading.Thread(target=self._encode_all, name="alpose-encoder", daemon=True)
        self._thread = threading.Thread(target=self._write_all, name="alpose-recorder", daemon=True)
        self._encoder.start()
        self._thread.start()
        atexit.register(self.close)

    # The camera's thread.

    def submit(self, candidate: Candidate) -> bool:
        """Hand over a frame; False where it was dropped, which is counted. Waits for nothing, raises nothing."""
        try:
            reason = self._forked()
            if reason is None:
                with self._producers:
                    reason = "closed" if self._closing else self._hand_over(candidate)
        except Exception:
            self.counters.add("internal_errors_total", where="submit")
            reason = "internal"
        if reason is None:
            return True
        self._dropped += 1
        self.counters.add("dropped_frames_total", reason=reason)
        return False

    def follow(self, camera: str, take: Callable[[], Shot]) -> bool:
        """Offer a camera's next frame to the clips that wait for it. Waits for nothing, raises nothing.

        To be called once for every frame of a camera, before what is found on it is submitted. ``take`` makes a copy of
        the frame; it is called only where a clip wants one. Returns whether one was handed over.
        """
        if not self._owed.get(camera):
            return False
        try:
            reason = self._forked() or ("closed" if self._closing else None)
            if reason is None:
                shot = take()
                with self._producers:
                    self._owed[camera] -= 1
                    number = self._frames[camera] = self._frames.get(camera, 0) + 1
                    if self._handover.room(shot.rgb_HW3.nbytes):
                        self._handover.add(_Follow(camera, number, shot), shot.rgb_HW3.nbytes)
                        return True
        except Exception:
            self.counters.add("internal_errors_total", where="follow")
            reason = "internal"
        self.counters.add("dropped_pictures_total", reason=reason or "handover_full")
        return False

    def _forked(self) -> str | None:
        """The threads stay behind in the parent, and an SQLite connection must not be used on both sides of a fork."""
        if os.getpid() == self._pid:
            return None
        if not self._closing:
            self._closing = True
            log.error("this recorder belongs to process %d: make a Monitor after forking, not before", self._pid)
        return "forked"

    def _hand_over(self, candidate: Candidate) -> str | None:
        """Why there is no room for it; None where it was handed over."""
        if len(candidate.before) > self._before:
            candidate = replace(candidate, before=candidate.before[len(candidate.before) - self._before :])
        if candidate.before and not self._handover.room(candidate.nbytes):
            self.counters.add("dropped_pictures_total", len(candidate.before), reason="handover_full")
            candidate = replace(candidate, before=())
        if not self._handover.room(candidate.nbytes):
            return self._writer.obstacle or "handover_full"
        camera = candidate.record.camera
        if self._after:
            self._owed[camera] = self._after
        self._handover.add(_Begin(candidate, self._submitted, self._frames.get(camera, 0)), candidate.nbytes)
        self._submitted += 1
        return None

    # Everybody.

    @property
    def state(self) -> RecorderState:
        """How it stands now."""
        writer = self._writer
        error, error_ns = writer.last_error or (None, None)
        assembled = [*self._assembly.open, *self._assembly.ready]
        encoded_bytes = sum(pending.nbytes for pending in assembled) + self._backlog_bytes
        return RecorderState(
            waiting=self._submitted - self._begun + len(assembled) + len(self._backlog),
            waiting_bytes=self._handover.waiting_bytes + encoded_bytes,
            written=writer.written,
            obstacle=writer.obstacle,
            last_error=error,
            last_error_ns=error_ns,
        )

    def flush(self, timeout_s: float | None = None) -> bool:
        """Have all that was submitted before written now, clips as far as they have come.

        Returns:
            True once nothing of it waits any more: it is on the disk, or it was given up, which is counted. False after
            ``timeout_s``; without one, as soon as an attempt to write it has failed.
        """
        if os.getpid() != self._pid:
            return False
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            target, failures = self._submitted, self._writer.failures
            self._hurry_below = max(self._hurry_below, target)
            self._waiters += 1
            self._handover.wake()
            self._changed.notify_all()
            # The attempt that is under way may have begun before the last frame came: its failure says nothing.
            while self._settled_below < target and self._thread.is_alive() and (
                self._writer.failures <= failures + 1 if until_s is None else time.monotonic() < until_s
            ):  # fmt: skip
                self._changed.wait(1.0 if until_s is None else min(1.0, max(0.0, until_s - time.monotonic())))
            self._waiters -= 1
            return self._settled_below >= target

    def close(self, timeout_s: float = 10.0) -> bool:
        """Write what waits and end the threads; what is not written within ``timeout_s`` is given up, and counted.

        Returns whether they have ended. May be called again; does nothing in a process that was forked off.
        """
        atexit.unregister(self.close)
        if os.getpid() != self._pid:
            return True
        with self._producers:  # whoever is submitting now is counted in
            self._closing = True
        self.flush(timeout_s)
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._handover.wake()
        self._thread.join(max(timeout_s, 1.0))
        return not self._thread.is_alive()

    # The encoder's thread.

    def _encode_all(self) -> None:
        while not self._ending:
            with self._no_end():
                with self._changed:
                    while self._backlog_bytes >= BACKLOG_BYTES and not self._ending:
                        self._changed.wait()
                self._take()
                self._pass_on()

    def _take(self) -> None:
        """Encode what has come, after waiting for the first of it."""
        assembly = self._assembly
        pause_s = self._encoder_pause_s()
        for _ in range(BATCH):
            handed = self._handover.take(pause_s)
            if handed is None:
                # All that was handed over before a flush has been taken: what a clip lacks now, it will not get.
                assembly.close_below(self._hurry_below)
                break
            if isinstance(handed, _Begin):
                self._begin(handed)
                break  # the disk need not wait for the others
            assembly.follow(*handed)
            pause_s = 0.0
        assembly.close_late(self._monotonic())

    def _encoder_pause_s(self) -> float:
        """How long it has nothing to do unless something comes."""
        if self._assembly.ready or self._hurry_below > self._assembled_below:
            return 0.0
        deadline_s = self._assembly.deadline_s
        return IDLE_S if deadline_s is None else min(max(0.0, deadline_s - self._monotonic()), IDLE_S)

    def _begin(self, handed: _Begin) -> None:
        try:
            self._assembly.begin(*handed, self._monotonic())
        except Exception as error:  # encoders raise anything
            self.counters.add("dropped_frames_total", reason="encode_error")
            self._writer.note("encode_error", "a frame could not be encoded, and is lost: %r", error)
        self._begun += 1

    def _pass_on(self) -> None:
        """Hand to the writer what is complete."""
        ready, self._assembly.ready = self._assembly.ready, []
        with self._changed:
            self._backlog += ready
            self._backlog_bytes += sum(pending.nbytes for pending in ready)
            self._assembled_below = min((clip.number for clip in self._assembly.open), default=self._begun)
            self._settle()

    # The writer's thread.

    def _write_all(self) -> None:
        writer = self._writer
        while not self._ending:
            with self._no_end():
                with self._changed:
                    if not self._ending:
                        self._changed.wait(self._writer_pause_s())
                    batch = self._backlog[:BATCH]
                done = writer.write(batch, hurried=self._hurried)
                with self._changed:
                    del self._backlog[:done]
                    self._backlog_bytes -= sum(pending.nbytes for pending in batch[:done])
                    self._settle()
                self._tell()
                if self._monotonic() >= self._chores_at_s:
                    self._keep_house()
        self._keep_house()
        self._encoder.join()
        if lost := self.state.waiting:
            self.counters.add("dropped_frames_total", lost, reason=writer.obstacle or "closed")
            log.error("%d frames were given up at the end: %s", lost, writer.last_error or "there was no time")
        self._tell()
        self._quiet.flush(everything=True)

    def _writer_pause_s(self) -> float:
        """How long nothing has to be done unless something changes."""
        due_s = min(self._chores_at_s, self._writer.retry_at_s) if self._backlog else self._chores_at_s
        return max(0.0, due_s - self._monotonic())

    def _keep_house(self) -> None:
        self._writer.keep_house()
        self._quiet.flush()
        self._chores_at_s = self._monotonic() + self._chores_every_s

    def _keep_count(self, queue: Queue) -> None:
        """Write into the file how many frames never reached it: whoever harvests it has to know."""
        for count, n in self.counters.snapshot().items():
            if count.name != "dropped_frames_total" or (reason := dict(count.labels)["reason"]) in REFUSALS:
                continue
            if n > self._kept_count.get(reason, 0):
                queue.count(count.name, reason, n - self._kept_count.get(reason, 0))
                self._kept_count[reason] = n

    def _tell(self) -> None:
        """Log drops: the camera's thread must not, for a log may write to the disk."""
        if self._dropped > self._told:
            new, self._told = self._dropped - self._told, self._dropped
            self._quiet.warning("dropped", "%d frames found no room on their way to the queue", new)

    # Both.

    @property
    def _hurried(self) -> bool:
        """Somebody waits in :meth:`flush`."""
        return self._waiters > 0 and self._hurry_below > self._settled_below

    def _settle(self) -> None:
        """Say how far it has come; under the lock."""
        oldest = min((pending.number for pending in self._backlog), default=self._assembled_below)
        self._settled_below = min(oldest, self._assembled_below)
        self._changed.notify_all()

    @contextmanager
    def _no_end(self) -> Iterator[None]:
        """A fault of ours must not end the recording of later frames."""
        try:
            yield
        except Exception as error:
            self.counters.add("internal_errors_total", where="recorder")
            self._writer.note("recorder", "the recorder failed, and goes on: %r", error)
            time.sleep(RETRY_S[0])
