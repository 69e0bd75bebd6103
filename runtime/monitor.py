"""The Monitor: one forward of a net gives the app its pose, and how probable it is that the pose is wrong.

Here is the public class: options, start-up, counters and the end. What happens to a frame is in
:mod:`alpose.runtime.pipeline`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from .bundle import Bundle
from .engines.catalog import AUTO, Opened, Verify, open_engine
from .errors import ConfigError, DataError, QueueError
from .frames import FrameFormat
from .locate.search import Box
from .locate.tracking import Streams
from .logs import FaultIsolation
from .pipeline import Detect, FramePipeline, FrameReader
from .queue import Queue
from .queue.fields import MAX_NAME, is_name
from .queue.recorder import HANDOVER_BYTES, QueueNumbers
from .recording import PREVIOUS_BYTES, QUEUE_START_S, FrameRecorder, host_name, new_device_id
from .telemetry.prometheus import Metrics
from .telemetry.stats import EngineState, Meters, Stats
from .triggers import Budget, Control, Episodes, Trigger, parse
from .types import Engine, Verdict

if TYPE_CHECKING:
    from .telemetry.live import LivePage

log = logging.getLogger("alpose.monitor")


DEFAULT_TRIGGER: Trigger = Episodes(Budget(per_hour=20)) | Control(per_hour=2)
"""Of a Monitor with a queue: the most doubtful moments of an hour, the best frames of each, and two by chance."""


class Monitor:
    """Watches frames with a bundle, and keeps those that are worth labelling.

    ::

        with Monitor("driver.alpose", queue="flagged.db", trigger=Budget(per_hour=20), track=True) as monitor:
            for frame in camera:
                verdict = monitor(frame)

    Use one for each camera's thread. Calls from several threads are safe: they wait for each other. A Monitor is not
    usable in a forked child; make one there. After start-up a call raises because of a wrong frame or box, because the
    engine failed, or because the Monitor was closed, and for no other reason: what goes wrong behind the answer (disk,
    queue, metrics, trigger) is counted, logged at most once a minute, and the verdict comes all the same.

    Args:
        bundle: ``NAME.alpose`` or an opened :class:`Bundle`.
        queue: where frames are kept: a path, or a :class:`Queue` with settings of its own, which stays the caller's to
            close. None: verdicts only.
        trigger: which frames; a :class:`Trigger` or its text. None: :data:`DEFAULT_TRIGGER` if there is a queue.
        engine: see :func:`alpose.runtime.engines.catalog.open_engine`; its golden frames run before this returns.
        threads: of the engine on a CPU; None: two at most.
        device_id: stands in every record. None: made once for a queue and kept in it; without a queue the host's name.
        roi: a fixed region (x0, y0, x1, y1) in which the person is, such as a seat.
        track: follow the person by their own poses. With neither, and no box in a call, the whole frame is looked at.
        detect: like ``track``, and called with a frame while nobody is followed: a detector of the app's own, which
            returns boxes (N, 4) as x0, y0, x1, y1 in pixels. The largest is looked at first. What it raises is counted
            and logged, and costs no frame. :meth:`people` calls it with every frame, and looks at all.
        frame_format: ``rgb``, ``bgr``, ``grey``, ``nv12``, ``nv21``, ``i420``, ``yuyv`` or ``uyvy``; of the YUV ones also with
            ``-bt709``.
        store, clip, redact, max_bytes: settings of a queue that is given by its path; see :class:`Queue`.
        handover_bytes: most pixels that wait to be encoded; beyond it a frame is dropped, counted.
        previous_bytes: most pixels that are held for the beginning of a clip, over all cameras.
        camera: name that stands in every record.
        public_key: the bundle must have been signed by it.
        verify: ``background`` starts without waiting for the golden frames: they run beside the camera, ``verdict.verified``
            is False until they have passed, and if they fail every further call raises :class:`WrongAnswerError`.
        allow_fallback: go on with the CPU where the engine asked for does not run.
        metrics_port: serve Prometheus metrics on this port of the loopback; 0 takes any.
        metrics_file: write them there as text, for node_exporter, every 15 seconds.
        seed: of every random draw; for tests and comparisons. None takes one from the system.

    Raises:
        AlposeError: the bundle, engine, trigger, queue or an option cannot be used; the message says what to do.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        queue: Queue | str | Path | None = None,
        trigger: Trigger | str | None = None,
        engine: str | Engine = AUTO,
        threads: int | None = None,
        device_id: str | None = None,
        *,
        roi: Box | None = None,
        track: bool = False,
        detect: Detect | None = None,
        frame_format: FrameFormat | str = "rgb",
        camera: str = "",
        store: str | None = None,
        clip: tuple[int, int] | None = None,
        redact: str | None = None,
        max_bytes: int | None = None,
        handover_bytes: int = HANDOVER_BYTES,
        previous_bytes: int = PREVIOUS_BYTES,
        public_key: str | Path | None = None,
        allow_fallback: bool = False,
        verify: Verify = "first",
        metrics_port: int | None = None,
        metrics_file: str | Path | None = None,
        seed: int | None = None,
    ) -> None:
        for what, name in (("camera", camera), ("device_id", "" if device_id is None else device_id)):
            if not is_name(name):  # every record would be refused
                raise ConfigError(f"{what} is a name of at most {MAX_NAME} printable letters, got {name!r:.100}")
        if detect is not None and not callable(detect):
            raise ConfigError(f"detect is called with a frame and returns boxes, got {detect!r:.100}")
        if seed is not None and (not isinstance(seed, Integral) or seed < 0):
            raise ConfigError(f"seed is a whole number of at least 0, got {seed!r:.100}")
        given = {"store": store, "clip": clip, "redact": redact, "max_bytes": max_bytes}
        settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if settings and (queue is None or isinstance(queue, Queue)):
            raise ConfigError(
                f"{', '.join(settings)} set up a queue that is given by its path: give queue='flagged.db', or a Queue with "
                "settings of its own"
            )
        self.bundle = _opened(bundle, public_key)
        self.trigger = _policy(trigger, queue is not None)
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._busy = self._closing = False
        meters = Meters()
        counters, faults = meters.counters, FaultIsolation(meters.counters)
        streams = Streams(self.bundle, camera, roi, track or detect is not None, counters)
        form = FrameFormat.named(frame_format)
        self.device_id, self.camera = device_id or host_name(), camera
        with ExitStack() as made:
            opened = open_engine(self.bundle, engine, threads, allow_fallback, verify)
            made.callback(opened.close)
            for attempt in opened.fallbacks:
                counters.add("fallback_total", what=f"engine {attempt.engine}")
            parts = self._parts = _Parts(meters, faults)
            if queue is not None:
                if not isinstance(queue, Queue):
                    queue = made.enter_context(Queue(queue, open_now=False, **settings))
                made.callback(parts.end)
                until_s = time.monotonic() + QUEUE_START_S
                self.device_id = _device_id(queue, device_id, faults)
                parts.recorder = FrameRecorder(
                    queue, self.bundle, self.device_id, camera, counters, handover_bytes=handover_bytes,
                    previous_bytes=previous_bytes, until_s=until_s,
                )  # fmt: skip
                left_s = max(until_s - time.monotonic(), 0.0)
                parts.numbers = QueueNumbers(queue, parts.recorder.recorder, faults.report, min(left_s, 1.0))
            else:
                made.callback(parts.end)
            parts.known = {
                "device": self.device_id,
                "camera": camera,
                "bundle": self.bundle.manifest.name,
                "bundle_sha256": self.bundle.sha256,
            }
            parts.opened = opened
            parts.asked = engine if isinstance(engine, str) else "the one given"
            reader = parts.reader = FrameReader(opened.engine, form)
            parts.pipeline = FramePipeline(self.bundle, self.trigger, reader, streams, parts.recorder, meters, faults,
                                           seed, detect)  # fmt: skip
            parts.metrics = Metrics(parts.stats, metrics_port, metrics_file, counters)
            parts.resources = made.pop_all()
        # After the recorder's own, so that it runs before it: the score log is written as well.
        atexit.register(parts.close)
        self._forgotten = weakref.finalize(self, _close_forgotten, parts)
        self._forgotten.atexit = False
        self._warn()

    def __call__(self, frame: Any, box: npt.ArrayLike | None = None, *, time_ns: int | None = None) -> Verdict:
        """Watch one frame.

        Args:
            frame: uint8, with the shape that the camera's format has: (H, W, 3) for RGB; an array on the host, or on a GPU
                if the engine reads there.
            box: (x0, y0, x1, y1) in pixels, tight around the person, where the app knows it; it goes before roi and
                track.
            time_ns: Unix time at which the frame was taken; left out: now. Budgets and drift then go by these times, so
                that a recording has hours of its own.

        Raises:
            DataError: the frame or box is none; nothing was counted as seen.
            ConfigError: the Monitor was closed, or belongs to another process; the frame lies where the engine does
                not read.
            Exception: the engine's own.
        """
        return self._run([frame], [box], [""], time_ns)[0]

    def batch(
        self,
        frames: Sequence[Any],
        boxes: Sequence[npt.ArrayLike | None] | None = None,
        streams: Sequence[str] | None = None,
        *,
        time_ns: int | Sequence[int] | None = None,
    ) -> list[Verdict]:
        """Watch several persons or cameras with one call of the engine.

        Args:
            frames: one for each; the same one again for several persons on it.
            boxes: one for each, or None.
            streams: names of cameras or persons, the same in every call: tracks, signals and episodes are kept by them.
                A few fixed names: the state of many is forgotten. Left out: by their place, ``0``, ``1`` …
            time_ns: as in a single call; or one for each, of cameras that each have a clock of their own.
        """
        names = [str(place) for place in range(len(frames))] if streams is None else list(streams)
        places = [None] * len(frames) if boxes is None else list(boxes)
        if not len(frames) == len(places) == len(names) or not names:
            raise DataError(
                f"a batch has one frame, box and stream for each person and at least one, got {len(frames)} frames, "
                f"{len(places)} boxes and {len(names)} streams"
            )
        if not all(isinstance(name, str) for name in names):
            raise DataError(f"streams are names, such as 'driver', got {names}")
        if len(set(names)) < len(names):
            raise DataError(f"each person of a batch has a stream of their own, got {names}")
        return self._run(frames, places, names, time_ns)

    def people(self, frame: Any, boxes: Any = None, *, time_ns: int | None = None) -> list[Verdict]:
        """Watch everybody on one frame: one verdict for each person, by one call of the engine (and one more by which a net of
        whole frames finds them).

        ::

            with Monitor("driver.alpose", queue="flagged.db", detect=find_people) as monitor:
                for frame in camera:
                    for verdict in monitor.people(frame):
                        print(verdict.stream, verdict.failure_probability)

        People have names, ``person-1``, ``person-2`` …, which stand in :attr:`Verdict.stream`: a box goes on with the person
        whose box it overlaps most, and a name is kept for fifteen frames for somebody who is not seen. After that it is free
        for somebody else. Signals, episodes and the turn of a crop are remembered by these names.

        Args:
            frame: as in a single call.
            boxes: of the people, (N, 4) as x0, y0, x1, y1 in pixels, tight around each; None: those that ``detect`` finds, or
                the net itself, where it looks at whole frames and finds several. A detector may also give scores, (N, 5) or a
                pair of boxes and scores: a new person needs 0.5, one who was there before 0.3. A box of it that is not finite,
                has no area or lies outside is left out and counted. At most 32 people are looked at.
            time_ns: as in a single call.

        Returns:
            Verdicts in the order of the boxes; empty where nobody is there.

        Raises:
            DataError: the frame or a box is none.
            ConfigError: there are neither boxes nor a detector; the bundle's net looks at whole frames and gives one pose of
                each; the Monitor was closed, or belongs to another process.
            Exception: the engine's own. What a detector raises is counted and logged instead, and nobody is there.
        """
        self._check_process()
        with self._lock:
            if self._closing:
                raise ConfigError("this Monitor was closed: make a new one")
            found, names = self._parts.pipeline.people(frame, boxes)
            if found:
                return self._run([frame] * len(found), found, names, time_ns, everybody=True)
            if self._parts.live is not None and not self._parts.live.closed:
                self._parts.live.see_people(frame, [])
            return []

    def stats(self) -> Stats:
        """Everything that this Monitor knows of itself. Cheap, from any thread, also after :meth:`close`.

        What it says of the queue may be some seconds old; after :meth:`flush` it is exact.
        """
        return self._parts.stats()

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        """Count something of the app's own, such as ``count("source_faults_total", what="broken")``.

        It stands in :meth:`stats` and in the metrics beside the monitor's counters. ``name`` as Prometheus writes it,
        without ``alpose_``; the values of labels are few and known beforehand. From any thread.
        """
        self._parts.meters.counters.add_checked(name, n, labels)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Write all that was kept so far to the disk, now.

        Returns:
            Whether nothing waits any more. False after ``timeout_s``; without one, as soon as writing failed, and after
            a minute where a disk does not answer at all.
        """
        recorder = self._parts.recorder
        if recorder is None or self._parts.closed or os.getpid() != self._pid:
            return True
        written = recorder.recorder.flush(timeout_s)
        if written and self._parts.numbers is not None:
            self._parts.numbers.refresh()
        return written

    def close(self) -> None:
        """Write what waits (for ten seconds at most, the rest is counted), and let go of engine, queue and metrics.

        It returns within 20 seconds, also where a disk hangs or another process holds the queue.

        Safe to call twice; does nothing in a process that was forked off. Called from within a call (a signal's
        handler), it closes when that call is done.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closing = True
            if not self._busy:
                self._forgotten.detach()
                self._parts.close()

    def serve(self, address: str | int) -> LivePage:
        """Show in a browser what this Monitor sees: the picture, the pose, the failure probability, counters, kept frames.

        Light: the camera's thread leaves numbers behind, and copies a frame only while somebody looks. Closes with the
        Monitor.

        Args:
            address: a port of the loopback, ``8080`` (0: any); or ``HOST:PORT``, as ``0.0.0.0:8080``, where everybody who
                reaches the device may look: there is neither a password nor encryption.

        Returns:
            The page; its ``url`` is what to open.

        Raises:
            ConfigError: it is not an address, the port is taken, or this Monitor is served already or was closed.
        """
        from .telemetry.live import LivePage
        from .telemetry.web import address as host_and_port

        with self._lock:
            if self._closing or self._parts.closed:
                raise ConfigError("this Monitor was closed: make a new one")
            if self._parts.live is not None and not self._parts.live.closed:
                raise ConfigError(f"this Monitor is served already, on {self._parts.live.url}")
            parts = self._parts
            page = LivePage(
                *host_and_port(address), skeleton=self.bundle.skeleton, reader=parts.reader, stats=parts.stats,
                faults=parts.faults, queue=parts.recorder.queue if parts.recorder else None,
            )  # fmt: skip
            parts.live = page
            return page

    @property
    def metrics_url(self) -> str | None:
        """Where metrics are served; None where they are not."""
        return self._parts.metrics.url if self._parts.metrics else None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self, frames: Sequence[Any], boxes: Sequence[Any], names: Sequence[str], time_ns: int | Sequence[int] | None,
        everybody: bool = False,
    ) -> list[Verdict]:  # fmt: skip
        self._check_process()
        with self._lock:
            if self._closing:
                raise ConfigError("this Monitor was closed: make a new one")
            self._busy = True
            try:
                background = self._parts.opened.background
                verified = background is None or background.verified
                if background is not None and not verified:
                    background.require()
                verdicts = self._parts.pipeline(frames, boxes, names, time_ns, everybody)
                if self._parts.live is not None and not self._parts.live.closed:
                    if everybody:
                        self._parts.live.see_people(frames[0], verdicts)
                    else:
                        self._parts.live.see(frames, verdicts)
                return verdicts if verified else [replace(verdict, verified=False) for verdict in verdicts]
            finally:
                self._busy = False
                if self._closing:
                    self.close()

    def _check_process(self) -> None:
        """Before the lock: a thread that stayed behind in the parent may hold it."""
        if os.getpid() != self._pid:
            raise ConfigError(
                "this Monitor was made before a fork: engines and queues do not survive one. Make it after"
            )

    def _warn(self) -> None:
        """What a user should know from the start."""
        if self.bundle.calibration is None:
            log.warning(
                "%s was exported without calibration: its failure probabilities rank frames, and mean nothing else. "
                "Budgets work; Catch and drift have nothing to go by",
                self.bundle.folder,
            )
        if self._parts.recorder is None:
            log.warning("no queue was given: verdicts only, no frame is kept")


@dataclass(eq=False)
class _Parts:
    """What a Monitor has open. It does not know the Monitor, so that one that the app has forgotten is closed."""

    meters: Meters
    faults: FaultIsolation
    known: dict[str, Any] = field(default_factory=dict)
    """The fields of :class:`Stats` that do not change."""
    pipeline: FramePipeline = field(init=False)
    opened: Opened = field(init=False)
    asked: str = ""
    """What the app called its engine."""
    recorder: FrameRecorder | None = None
    numbers: QueueNumbers | None = None
    metrics: Metrics | None = None
    reader: FrameReader = field(init=False)
    live: LivePage | None = None
    resources: ExitStack = field(default_factory=ExitStack)
    closed: bool = False
    pid: int = field(default_factory=os.getpid)

    def stats(self) -> Stats:
        """See :meth:`Monitor.stats`."""
        return self.meters.stats(
            threshold=self.pipeline.threshold,
            queue=self.numbers.state() if self.numbers else None,
            drift=self.pipeline.drift,
            more_counts=self.numbers.counts() if self.numbers else None,
            engine=EngineState.of(self.opened, self.asked),
            **self.known,
        )

    def close(self) -> None:
        """Close everything, once; nothing in a process that was forked off."""
        if self.closed or os.getpid() != self.pid:
            return
        self.closed = True
        atexit.unregister(self.close)
        self.resources.close()
        self.faults.limited.flush(everything=True)

    def end(self) -> None:
        """Close what lives on the queue: the last frames are on the disk before their number is told a last time."""
        for part in (self.live, self.recorder, self.numbers, self.metrics):
            if part is not None:
                part.close()


def _close_forgotten(parts: _Parts) -> None:
    """Close what a Monitor that nobody holds any more had open."""
    if threading.current_thread().name.startswith("alpose-"):  # one of its own, which could not wait for itself
        threading.Thread(target=parts.close, name="alpose-closing").start()
    else:
        parts.close()


def _opened(bundle: Bundle | str | Path, public_key: str | Path | None) -> Bundle:
    if not isinstance(bundle, Bundle):
        return Bundle.open(bundle, public_key)
    if public_key is not None:
        raise ConfigError("an opened bundle was checked already: give public_key to Bundle.open, or here a path")
    return bundle


def _device_id(queue: Queue, given: str | None, faults: FaultIsolation) -> str:
    """The id that is given, or that the queue keeps of this device; a new one where the disk is full, hangs, or is not there yet.

    The queue then goes on being opened behind the Monitor, and its frames wait for it in bounded memory.
    """
    made = given or new_device_id()
    try:
        kept = queue.within(QUEUE_START_S, lambda: queue.device_id(lambda: made))
        return given or kept
    except QueueError as error:
        if error.reason in ("foreign", "damaged", "closed"):
            raise
        faults.report("queue", error)
        return made


def _policy(trigger: Trigger | str | None, queue: bool) -> Trigger | None:
    if trigger is None:
        return DEFAULT_TRIGGER if queue else None
    policy = parse(trigger) if isinstance(trigger, str) else trigger
    if not isinstance(policy, Trigger):
        raise ConfigError(f"a trigger is a policy such as Budget(per_hour=20), or its text, got {trigger!r}")
    return policy
