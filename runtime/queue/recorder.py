"""The recorder: takes kept frames from the camera's thread, and has them encoded and put into the queue.

::

    camera ── Recorder.submit ──> hand-over ──> encoder ── backlog ──> disk        (writer.py: everything after it)

The camera's thread leaves a copy and goes on: :meth:`Recorder.submit` waits for nothing and raises nothing. The
hand-over is bounded in frames and in bytes; what does not fit is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigError
from ..telemetry.counters import Count, Counters
from ..telemetry.stats import QueueState
from .fields import MAX_PICTURES
from .handover import ClipFrame, HandOver, NewRecord
from .images import PictureEncoder
from .queue import Queue
from .reading import QueueInfo
from .record import Candidate, FrameCopy
from .writer import DROPPED, RETRY_S, RecordingThreads

HANDOVER_BYTES = 128 << 20
"""Most pixels that wait to be encoded; a single frame is taken whatever its size."""

FRESH_S = 1.0
"""So old the queue's numbers may be before they are read again."""

CLOSE_S = 10.0
"""So long closing goes on writing what waits."""

END_S = 2.0
"""So long the threads are waited for, at least, when they are told to end."""

CLIP_TIMEOUT_S = 10.0
"""So long a record waits for the frames after it: a camera that stopped must not keep it from the disk."""

MOST_CAMERAS = 64
"""Cameras and people whose clips are gathered at a time: as many streams as a Monitor remembers."""

log = logging.getLogger("alpose.monitor")


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


@dataclass(slots=True, eq=False)
class _Clip:
    """How far the clips of one camera have come."""

    frame: int
    """The running number of its last frame that was handed over."""
    owed: int = 0
    """Frames that its clips still lack."""


class Recorder:
    """Writes kept frames into a queue, on threads of its own.

    The queue stays its owner's, who closes it after the recorder. What was submitted is also written when the
    interpreter ends without :meth:`close`; a process that is killed loses what was not written yet.

    Args:
        queue: its settings say what is kept, and how.
        depth: most frames that wait to be encoded, however many people are on each.
        handover_bytes: most pixels that wait to be encoded; a single frame is taken whatever its size.
        counters: where drops and errors are counted.
        introduce: called on the disk thread before the first record of every file: here a file learns what it has to
            know of whoever writes it.
        maintenance: called on the disk thread once a minute, and once before it ends: here scores and tallies are
            written. A task that raises is counted, and called again the next time: it must keep what it could not write.
        maintenance_every_s: between two rounds of maintenance.
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
        handover_bytes: int = HANDOVER_BYTES,
        counters: Counters | None = None,
        introduce: Callable[[Queue], object] | None = None,
        maintenance: Sequence[Callable[[Queue], object]] = (),
        maintenance_every_s: float = 60.0,
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
        if not isinstance(handover_bytes, int) or handover_bytes < 0:
            raise ConfigError(f"handover_bytes must not be negative, got {handover_bytes!r}")
        self.counters = counters if counters is not None else Counters()
        self.encoder = PictureEncoder(
            store=queue.store,
            media_type=queue.media_type,
            quality=queue.quality,
            long_side=queue.long_side,
            seal_to=queue.seal_to,
        )
        """Its ``region`` says what of a frame has to be handed over."""
        self._before, self._after = before, after
        self._pid = os.getpid()
        # Changed on the cameras' threads, one at a time.
        self._producers = threading.Lock()
        self._handover = HandOver(depth, handover_bytes)
        self._clips: OrderedDict[str, _Clip] = OrderedDict()
        self._first_frame = 0
        self._closing = False
        self._threads = RecordingThreads(
            queue,
            self.encoder,
            self._handover,
            introduce=introduce or (lambda queue: None),
            maintenance=maintenance,
            maintenance_every_s=maintenance_every_s,
            clip_timeout_s=clip_timeout_s,
            retry_s=retry_s,
            counters=self.counters,
            monotonic=monotonic,
        )
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
        self._handover.dropped += 1
        self.counters.add("dropped_frames_total", reason=reason)
        return False

    def follow(self, camera: str, take: Callable[[], FrameCopy]) -> bool:
        """Offer a camera's next frame to the clips that wait for it. Waits for nothing, raises nothing.

        To be called once for every frame of a camera, before what is found on it is submitted. ``take`` makes a copy of
        the frame; it is called only where a clip wants one. Returns whether one was handed over.
        """
        clip = self._clips.get(camera)
        if clip is None or not clip.owed:
            return False
        try:
            reason = self._forked() or ("closed" if self._closing else None)
            if reason is None:
                copy = take()
                with self._producers:
                    clip.owed -= 1
                    clip.frame += 1
                    if self._handover.room((copy,)):
                        self._handover.add(ClipFrame(camera, clip.frame, copy), (copy,))
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
        if candidate.before and not self._handover.room(candidate.copies):
            self.counters.add("dropped_pictures_total", len(candidate.before), reason="handover_full")
            candidate = replace(candidate, before=())
        if not self._handover.room(candidate.copies):
            return self._threads.writer.obstacle or "handover_full"
        frame = self._begin_clip(candidate.record.camera) if self._after else 0
        self._handover.add(NewRecord(candidate, self._handover.submitted, frame), candidate.copies)
        self._handover.submitted += 1
        return None

    def _begin_clip(self, camera: str) -> int:
        """Let the camera's next frames be handed over; the running number of the present one.

        Of many cameras the one whose clip was begun first is forgotten, and what its clip still lacks is counted.
        """
        clip = self._clips.setdefault(camera, _Clip(self._first_frame))
        self._clips.move_to_end(camera)
        clip.owed = self._after
        if len(self._clips) > MOST_CAMERAS:
            _, oldest = self._clips.popitem(last=False)
            # No number is given twice: records of that camera may still wait for theirs.
            self._first_frame = max(self._first_frame, oldest.frame + self._after + 1)
            if oldest.owed:
                self.counters.add("dropped_pictures_total", oldest.owed, reason="many_streams")
        return clip.frame

    # Any thread.

    @property
    def state(self) -> RecorderState:
        """The recorder at this moment."""
        writer = self._threads.writer
        error, error_ns = writer.last_error or (None, None)
        waiting, encoded_bytes = self._threads.waiting
        return RecorderState(
            waiting=waiting,
            waiting_bytes=self._handover.waiting_bytes + encoded_bytes,
            written=writer.written,
            obstacle=writer.obstacle,
            last_error=error,
            last_error_ns=error_ns,
        )

    def flush(self, timeout_s: float | None = None) -> bool:
        """Write all that was submitted before now, clips as far as they have come.

        Returns:
            True once nothing of it waits any more: it is on the disk, or it was given up, which is counted. False after
            ``timeout_s``; without one, as soon as an attempt to write it has failed.
        """
        return os.getpid() == self._pid and self._threads.flush(timeout_s)

    def close(self, timeout_s: float | None = None) -> bool:
        """Write what waits and end the threads; what is not written within ``timeout_s`` (10) is given up, and counted.

        Returns whether they have ended: a thread in a call that the disk does not answer is left behind, at most two
        seconds later. May be called again; does nothing in a process that was forked off.
        """
        atexit.unregister(self.close)
        if os.getpid() != self._pid:
            return True
        timeout_s = CLOSE_S if timeout_s is None else timeout_s
        until_s = time.monotonic() + timeout_s
        with self._producers:  # whoever is submitting now is counted in
            self._closing = True
        self._threads.flush(timeout_s)
        return self._threads.end(max(until_s - time.monotonic(), END_S))


class QueueNumbers:
    """The queue's numbers, at most a little old, read on a thread of their own: asking for them never waits.

    Args:
        queue: what is read.
        recorder: what writes it.
        on_error: told of what went wrong while reading.
        wait_s: how long to wait for the first numbers.
    """

    def __init__(
        self, queue: Queue, recorder: Recorder, on_error: Callable[[str, Exception], None], wait_s: float = 1.0
    ) -> None:
        self._queue, self._recorder, self._on_error = queue, recorder, on_error
        self._info: QueueInfo | None = None
        self._changed = threading.Condition()
        self._read_s, self._wanted, self._read, self._ending = -FRESH_S, 0, 0, False
        self._thread = threading.Thread(target=self._run, name="alpose-queue-numbers", daemon=True)
        self._thread.start()
        self.refresh(wait_s)

    def state(self) -> QueueState:
        """What is known; where it is old, it is read again in the background for the next time."""
        if time.monotonic() - self._read_s > FRESH_S:
            self._ask()
        info, recorder = self._info, self._recorder.state
        return QueueState(
            path=str(self._queue.path),
            records=info.records if info else 0,
            bytes=info.bytes if info else 0,
            max_bytes=info.max_bytes if info else 0,
            oldest_s=None if info is None or info.oldest_ns is None else info.oldest_ns / 1e9,
            waiting=recorder.waiting,
            last_error=recorder.last_error if recorder.obstacle else None,
        )

    def counts(self) -> dict[Count, int]:
        """The counters that live in the file, but for those that this process counts itself.

        Drops stand in the file for whoever harvests it, with those of former runs and of other monitors.
        """
        return {
            Count(name, (("reason", reason),) if reason else ()): n
            for (name, reason), n in (self._info.counters.items() if self._info else ())
            if name != DROPPED
        }

    def refresh(self, timeout_s: float = 1.0) -> bool:
        """Read them now; whether that was done within the time."""
        wanted = self._ask()
        with self._changed:
            return self._changed.wait_for(lambda: self._read >= wanted or self._ending, timeout_s)

    def close(self) -> None:
        """Read a last time, before the queue is closed; these numbers stay."""
        self.refresh()
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def _ask(self) -> int:
        with self._changed:
            self._wanted = self._read + 1 if self._wanted <= self._read else self._wanted
            self._changed.notify_all()
            return self._wanted

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted > self._read or self._ending)
                if self._ending:
                    return
                wanted = self._wanted
            try:
                self._info = self._queue.info()
            except Exception as error:  # a disk may fail in any way
                if not self._ending:
                    self._on_error("queue_info", error)
            with self._changed:
                self._read_s, self._read = time.monotonic(), wanted
                self._changed.notify_all()
