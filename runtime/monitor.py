"""The Monitor: one forward of a net for the app's pose, and for whether it is wrong.

A call reads like this: take the frames, find the persons, cut them out, let the engine answer once, put the joints back
into the frame. Then, guarded, because the app must go on whatever happens: signals, the trigger's decision, drift, books,
and a copy of what is kept for the recorder's thread.

Shapes: J joints.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .engines.auto import AUTO, open_engine
from .errors import ConfigError, DataError
from .eye import Eye
from .frames import FrameFormat
from .guard import Guard
from .judge import Judge
from .keeper import Keeper, host_name, new_device_id
from .moments import FrameClock
from .outputs import Engine
from .prometheus import Metrics
from .queue import Queue
from .queue.record import MAX_NAME, is_name
from .queue.recorder import QueueNumbers
from .sight import Sight, Sighting
from .signals import Signals
from .stats import EngineState, Meters, Stats
from .streams import Streams, where_of
from .triggers import Budget, Control, Episodes, Trigger, parse
from .verdict import Timings, Verdict
from .where import Box, Place

log = logging.getLogger("alpose.monitor")

COUNTER_NAME = re.compile("[a-z][a-z0-9_]*")

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
        engine: see :func:`alpose.runtime.engines.auto.open_engine`; its golden frames are asked before this returns.
        threads: of the engine on a CPU; None: two at most.
        device_id: stands in every record. None: made once for a queue and kept in it; without a queue the host's name.
        roi: a fixed region (x0, y0, x1, y1) in which the person is, such as a seat.
        track: follow the person by their own poses. With neither, and no box in a call, the whole frame is looked at.
        frame_format: ``rgb``, ``bgr`` or ``nv12``.
        camera: name that stands in every record.
        public_key: the bundle must have been signed by it.
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
        frame_format: FrameFormat | str = "rgb",
        camera: str = "",
        public_key: str | Path | None = None,
        allow_fallback: bool = False,
        metrics_port: int | None = None,
        metrics_file: str | Path | None = None,
        seed: int | None = None,
    ) -> None:
        for what, name in (("camera", camera), ("device_id", "" if device_id is None else device_id)):
            if not is_name(name):  # every record would be refused
                raise ConfigError(f"{what} is a name of at most {MAX_NAME} printable letters, got {name!r:.100}")
        self.bundle = _opened(bundle, public_key)
        where = where_of(self.bundle, roi, track)
        form = FrameFormat.named(frame_format)
        self.trigger = _policy(trigger, queue is not None)
        self._meters = Meters()
        self._guard = Guard(self._meters.counters)
        self._clock = FrameClock(self._meters.counters)
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._busy = self._closing = self._closed = False
        self._sequence = 0
        self._keeper: Keeper | None = None
        self._numbers: QueueNumbers | None = None
        self._metrics: Metrics | None = None
        with ExitStack() as made:
            opened = open_engine(self.bundle, engine, threads, allow_fallback)
            made.callback(opened.close)
            for attempt in opened.fallbacks:
                self._meters.counters.add("fallback_total", what=f"engine {attempt.engine}")
            self._engine_state = EngineState.of(opened, engine if isinstance(engine, str) else "the one given")
            self._eye = Eye(opened.engine, form)
            self._streams = Streams(camera, where, partial(Signals, self.bundle.skeleton), self._meters.counters)
            self.device_id, self.camera = device_id or host_name(), camera
            if queue is not None and not isinstance(queue, Queue):
                queue = made.enter_context(Queue(queue))
            made.callback(self._end)
            if queue is not None:
                self.device_id = device_id or queue.device_id(new_device_id)
                self._keeper = Keeper(queue, self.bundle, self.device_id, self._meters.counters)
                self._numbers = QueueNumbers(queue, self._keeper.recorder, self._guard.trouble)
            random = np.random.SeedSequence(seed)
            self._judge = Judge(self.bundle, self.trigger, self._eye, self._keeper, self._guard, random)
            self._metrics = Metrics(self.stats, metrics_port, metrics_file, self._meters.counters)
            self._made = made.pop_all()
        self._warn()

    def __call__(self, frame: Any, box: npt.ArrayLike | None = None, *, time_ns: int | None = None) -> Verdict:
        """Watch one frame.

        Args:
            frame: uint8 (H, W, 3), or (H * 3/2, W) for NV12; an array on the host, or on a GPU if the engine reads there.
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
        return self._watch([frame], [box], [""], time_ns)[0]

    def batch(
        self,
        frames: Sequence[Any],
        boxes: Sequence[npt.ArrayLike | None] | None = None,
        streams: Sequence[str] | None = None,
        *,
        time_ns: int | None = None,
    ) -> list[Verdict]:
        """Watch several persons or cameras with one call of the engine.

        Args:
            frames: one for each; the same one again for several persons on it.
            boxes: one for each, or None.
            streams: names of cameras or persons, the same in every call: tracks, signals and episodes are kept by them.
                A few fixed names: the state of many is forgotten. Left out: by their place, ``0``, ``1`` …
            time_ns: as in a single call.
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
        return self._watch(frames, places, names, time_ns)

    def stats(self) -> Stats:
        """Everything that this Monitor knows of itself. Cheap, from any thread, also after :meth:`close`.

        What it says of the queue may be some seconds old; after :meth:`flush` it is exact.
        """
        return self._meters.stats(
            device=self.device_id,
            camera=self.camera,
            bundle=self.bundle.manifest.name,
            bundle_sha256=self.bundle.sha256,
            threshold=self._judge.threshold,
            queue=self._numbers.state() if self._numbers else None,
            drift=self._judge.drift,
            engine=self._engine_state,
            more_counts=self._numbers.counts() if self._numbers else None,
        )

    def count(self, name: str, n: int = 1, **labels: str) -> None:
        """Count something of the app's own, such as ``count("source_faults_total", what="broken")``.

        It stands in :meth:`stats` and in the metrics beside the monitor's counters. ``name`` as Prometheus writes it,
        without ``alpose_``; the values of labels are few and known beforehand. From any thread.
        """
        wrong = [word for word in (name, *labels) if not COUNTER_NAME.fullmatch(word)]
        if wrong or not name.endswith("_total") or n < 0:
            raise ConfigError(
                f"a counter counts upwards under a name such as broken_frames_total, got {name!r}, {n} and {labels}: small "
                "letters, digits and _, and _total at the end"
            )
        self._meters.counters.add(name, n, **labels)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Write all that was kept so far to the disk, now.

        Returns:
            Whether nothing waits any more. False after ``timeout_s``; without one, as soon as writing failed.
        """
        if self._keeper is None or self._closed or os.getpid() != self._pid:
            return True
        written = self._keeper.flush(timeout_s)
        if self._numbers is not None:
            self._numbers.refresh()
        return written

    def close(self) -> None:
        """Write what waits (for ten seconds at most, the rest is counted), and let go of engine, queue and metrics.

        Safe to call twice; does nothing in a process that was forked off. Called from within a call (a signal's
        handler), it closes when that call is done.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._closing = True
            if self._busy or self._closed:
                return
            self._closed = True
            self._made.close()
            self._guard.quiet.flush(everything=True)

    @property
    def metrics_url(self) -> str | None:
        """Where metrics are served; None where they are not."""
        return self._metrics.url if self._metrics else None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _end(self) -> None:
        """In this order: the last frames are on the disk before anybody tells for the last time how many there are."""
        for part in (self._keeper, self._numbers, self._metrics):
            if part is not None:
                part.close()

    # --- one call

    def _watch(
        self, frames: Sequence[Any], boxes: Sequence[Any], names: Sequence[str], time_ns: int | None
    ) -> list[Verdict]:
        if os.getpid() != self._pid:  # before the lock: a thread that stayed behind in the parent may hold it
            raise ConfigError(
                "this Monitor was made before a fork: engines and queues do not survive one. Make it after"
            )
        with self._lock:
            if self._closing:
                raise ConfigError("this Monitor was closed: make a new one")
            self._busy = True
            try:
                return self._answer(frames, boxes, names, time_ns)
            finally:
                self._busy = False
                if self._closing:
                    self.close()

    def _answer(
        self, frames: Sequence[Any], boxes: Sequence[Any], names: Sequence[str], time_ns: int | None
    ) -> list[Verdict]:
        began_s = time.perf_counter()
        sights = [self._look(*given) for given in zip(frames, boxes, names, strict=True)]
        moment = self._clock(time_ns)
        asked_s = time.perf_counter()
        outputs, cut_s = self._eye.ask([sight.frame for sight in sights], [sight.crop for sight in sights])
        answered_s = time.perf_counter()
        found = [self._judge(sight, outputs, row, moment) for row, sight in enumerate(sights)]
        ended_s = time.perf_counter()
        timings = Timings(
            crop_s=asked_s - began_s + cut_s,
            inference_s=answered_s - asked_s - cut_s,
            decision_s=ended_s - answered_s,
            total_s=ended_s - began_s,
        )
        return [self._verdict(one, kept, timings) for one, kept in found]

    def _look(self, frame: Any, box: npt.ArrayLike | None, name: str) -> Sight:
        """Take a frame and say where to look on it; whatever is wrong with either is the caller's to know."""
        taken = self._eye.take(frame)
        stream = self._streams(name)
        place = stream.where.locate(taken.width, taken.height) if box is None else _given(box)
        return Sight(stream, taken, place, self.bundle.crop.crop_of(place.box_4))

    def _verdict(self, found: Sighting, kept: bool, timings: Timings) -> Verdict:
        decision, seen, place = found.decision, found.seen, found.sight.place
        word = "flagged" if decision.flagged else "control" if decision.keep else "passed"
        self._meters.frame(word, None if found.judged is not seen else seen.failure_probability, crop_s=timings.crop_s, inference_s=timings.inference_s,
                           decision_s=timings.decision_s, total_s=timings.total_s)  # fmt: skip
        verdict = Verdict(
            keypoints=found.keypoints_J2,
            scores=found.scores_J,
            predicted_loss=seen.predicted_loss,
            failure_probability=seen.failure_probability,
            flagged=decision.flagged,
            kept=kept,
            reasons=decision.reasons,
            inclusion_probability=decision.inclusion_probability,
            box=place.box_4,
            place=place.source,
            timings=timings,
            sequence=self._sequence,
            stream=seen.stream,
        )
        self._sequence += 1
        return verdict

    def _warn(self) -> None:
        """What a user should know from the start."""
        if self.bundle.calibration is None:
            log.warning(
                "%s was exported without calibration: its failure probabilities rank frames, and mean nothing else. "
                "Budgets work; Catch and drift have nothing to go by",
                self.bundle.folder,
            )
        if self._keeper is None:
            log.warning("no queue was given: verdicts only, no frame is kept")


def _opened(bundle: Bundle | str | Path, public_key: str | Path | None) -> Bundle:
    if not isinstance(bundle, Bundle):
        return Bundle.open(bundle, public_key)
    if public_key is not None:
        raise ConfigError("an opened bundle was checked already: give public_key to Bundle.open, or here a path")
    return bundle


def _policy(trigger: Trigger | str | None, queue: bool) -> Trigger | None:
    if trigger is None:
        return DEFAULT_TRIGGER if queue else None
    policy = parse(trigger) if isinstance(trigger, str) else trigger
    if not isinstance(policy, Trigger):
        raise ConfigError(f"a trigger is a policy such as Budget(per_hour=20), or its text, got {trigger!r}")
    return policy


def _given(box: npt.ArrayLike) -> Place:
    """An app's box; that it is one is checked when its crop is made."""
    try:
        x0, y0, x1, y1 = map(float, box)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"a box is the four numbers (x0, y0, x1, y1) in pixels, got {str(box)[:100]}") from None
    return Place((x0, y0, x1, y1), "box")
