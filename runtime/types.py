"""What the parts of the runtime give each other: an engine and its outputs, the time of a frame, and the verdict.

Here is only the form of an engine's outputs; :mod:`alpose.runtime.bundle.golden` checks the numbers.

Shapes: N frames, H W frame, J joints, D dimensions of the embedding.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from .telemetry.counters import Counters
    from .triggers import Reason

MOST_STREAMS = 64
"""Streams that are remembered: names are few. An app that gives every passer-by a new one loses the oldest, counted."""

OUTPUT_NAMES = ("keypoints", "scores", "predicted_loss", "failure_probability", "embedding")
"""The outputs that every graph has, in the order in which it lists them."""

CONFIDENCE = "confidence"
"""The sixth output, of bundles of schema 2. Bundles of schema 1 have the other five."""

PEOPLE = "people"
"""The seventh output, of bundles whose net looks at whole frames and finds several people itself."""
CANDIDATES = 300
"""Of people on a frame, in that output: the ones with the highest scores, before those are left out that overlap others."""

OUTPUT_AXES = {
    "keypoints": ("N", "J", "xy"),
    "scores": ("N", "J"),
    "predicted_loss": ("N",),
    "failure_probability": ("N",),
    "embedding": ("N", "D"),
    CONFIDENCE: ("N", "J"),
    PEOPLE: ("N", "P", "box, score"),
}
"""The axes of every output; N is dynamic, J is the skeleton's, and :data:`AXIS_LENGTHS` has those that never differ."""

AXIS_LENGTHS = {"xy": 2, "P": CANDIDATES, "box, score": 5}


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """An engine's outputs for N frames: five or six float32 arrays, row n of each belongs to frame n.

    Nothing is checked when it is made: an engine with wrong outputs must be able to give them, so that the golden frames
    can say how. :func:`form_problems` checks dtypes and shapes.
    """

    keypoints_NJ2: npt.NDArray[np.float32]
    """x, y in pixels of the input; the centre of pixel (column i, row j) is (i, j)."""
    scores_NJ: npt.NDArray[np.float32]
    """Heatmap peak over the peak that the net was trained towards: about 0 to 1, not clipped."""
    predicted_loss_N: npt.NDArray[np.float32]
    """The loss head's raw output; its unit is the head's own."""
    failure_probability_N: npt.NDArray[np.float32]
    """Calibrated, 0 to 1."""
    embedding_ND: npt.NDArray[np.float32]
    """Rows of unit length."""
    confidence_NJ: npt.NDArray[np.float32] | None = None
    """Calibrated probability that each joint is right, 0 to 1; None where the graph has no such output."""
    people_NP5: npt.NDArray[np.float32] | None = None
    """Candidates for people, the highest scores first: x0, y0, x1, y1 in pixels of the input as keypoints have them, and the
    net's own score, 0 where there is no candidate. None where the graph has no such output."""

    def __len__(self) -> int:
        return len(self.predicted_loss_N)

    def named(self) -> dict[str, npt.NDArray[np.float32]]:
        """The arrays by the names that the graph gives them, in its order."""
        arrays = (self.keypoints_NJ2, self.scores_NJ, self.predicted_loss_N, self.failure_probability_N,
                  self.embedding_ND)  # fmt: skip
        named = dict(zip(OUTPUT_NAMES, arrays, strict=True))
        more = {CONFIDENCE: self.confidence_NJ, PEOPLE: self.people_NP5}
        return named | {name: value for name, value in more.items() if value is not None}


class Engine(Protocol):
    """Anything that computes outputs for frames: ONNX Runtime, TensorRT, PyTorch, or a fake in a test."""

    @property
    def name(self) -> str:
        """For people, as it appears in reports: ``onnxruntime cpu``, ``tensorrt fp16``."""

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Compute the outputs for N ≥ 1 RGB crops of the bundle's size; the arrays belong to the caller.

        Where the graph takes fewer at a time, the engine runs it several times, and says how many in ``max_batch``.
        """


def output_names(confidence: bool, people: bool = False) -> tuple[str, ...]:
    """The outputs of a graph in its order, with or without the joints' confidence, and that with or without people."""
    return (*OUTPUT_NAMES, CONFIDENCE, *((PEOPLE,) if people else ())) if confidence else OUTPUT_NAMES


def output_shapes(
    frames: int, joints: int, dimensions: int, names: Iterable[str] = OUTPUT_NAMES
) -> dict[str, tuple[int, ...]]:
    """The shape of every output for a batch of ``frames``."""
    length = {"N": frames, "J": joints, "D": dimensions, **AXIS_LENGTHS}
    return {name: tuple(length[axis] for axis in OUTPUT_AXES[name]) for name in names}


def joined(parts: Sequence[Outputs], frames: int) -> Outputs:
    """The first ``frames`` rows of several answers, one after the other."""
    if len(parts) == 1 and len(parts[0]) == frames:
        return parts[0]
    named = [part.named() for part in parts]
    return Outputs(*(np.concatenate([each[name] for each in named])[:frames] for name in named[0]))


def form_problems(
    outputs: Outputs, frames: int, joints: int, dimensions: int, names: Iterable[str] = OUTPUT_NAMES
) -> dict[str, str]:
    """What is wrong with dtype or shape, by output; empty where all is well.

    ``names`` are the outputs that are wanted: one that is not there is a problem, one that nobody wants is not.
    """
    problems = {}
    for name, shape in output_shapes(frames, joints, dimensions, names).items():
        value = outputs.named().get(name)
        if value is None:
            problems[name] = f"is missing, expected a float32 array of shape {shape}"
        elif not isinstance(value, np.ndarray):
            problems[name] = f"is {type(value).__name__}, expected a float32 array of shape {shape}"
        elif value.dtype != np.float32 or value.shape != shape:
            problems[name] = f"is {value.dtype} {value.shape}, expected float32 {shape}"
    return problems


# --- a frame's time, and what a Monitor says of it


@dataclass(frozen=True, slots=True, eq=False)
class FrameTime:
    """When a frame was taken, by the three clocks that matter."""

    wall_ns: int
    """Unix time, as the system or the app has it: for records."""
    monotonic_ns: int
    """The system's monotonic clock."""
    policy_s: float
    """What triggers and drift go by: it never runs backwards, and takes no notice of a clock that is set."""


@dataclass(slots=True)
class _CameraClock:
    """What is known of the clock that gives the times of one camera."""

    offset_s: float
    """From its time to the policy's."""
    given_ns: int
    last_s: float
    """The policy's time of its last frame."""


class FrameClock:
    """Gives every call its :class:`~alpose.runtime.types.FrameTime`.

    Times that the app gives (of a recording, or of a camera with a clock of its own) carry the policy's time, so that an
    hour of a video is an hour however fast it is read.
    """

    BACK_S = 1.0
    """Times given by an app may be out of order by this much: a budget sees no step back. By more, the clock was set."""
    AHEAD_S = 86_400.0
    """A step of more than this is not a pause but a clock that was set."""
    SECONDS = (1_500_000_000, 4_000_000_000)
    """Unix time in seconds, 2017 to 2096. As nanoseconds they are the first four seconds of 1970."""
    WEEKS_NS = 5 * 10**15
    """58 days: Unix time in microseconds is less."""
    SHORTEST_NS = 100_000
    """No camera gives two frames in less."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._cameras: dict[str, _CameraClock] = {}
        self._last_s = 0.0

    def __call__(self, time_ns: int | None, camera: str = "") -> FrameTime:
        """The time of a frame; ``time_ns`` is Unix time by the clock of this camera, None for now."""
        monotonic_ns = time.monotonic_ns()
        if time_ns is None:
            self._last_s = max(self._last_s, monotonic_ns * 1e-9)
            return FrameTime(time.time_ns(), monotonic_ns, self._last_s)
        known = self._cameras.get(camera)
        wall_ns = self._checked(time_ns, known.given_ns if known else None)
        wall_s = wall_ns * 1e-9
        if known is None:
            now_s = max(self._last_s, monotonic_ns * 1e-9)
            if len(self._cameras) >= MOST_STREAMS:
                del self._cameras[next(iter(self._cameras))]
            known = self._cameras[camera] = _CameraClock(now_s - wall_s, wall_ns, now_s)
        elif not -self.BACK_S <= wall_s + known.offset_s - known.last_s <= self.AHEAD_S:
            self._counters.add("clock_jumps_total")
            known.offset_s = known.last_s - wall_s
        known.given_ns = wall_ns
        known.last_s = max(known.last_s, wall_s + known.offset_s)
        self._last_s = max(self._last_s, known.last_s)
        return FrameTime(wall_ns, monotonic_ns, self._last_s)

    def _checked(self, time_ns: object, given_ns: int | None) -> int:
        """Unix nanoseconds; :class:`DataError` for seconds, milliseconds or microseconds, and for what is not a time.

        As nanoseconds those lie in the first weeks of 1970, and a step between two frames takes next to no time. A clock
        that starts in 1970 and counts nanoseconds is taken.
        """
        try:
            wall_ns = -1 if isinstance(time_ns, bool) else operator.index(time_ns)  # type: ignore[arg-type]
        except TypeError:
            wall_ns = -1
        wrong = not 0 <= wall_ns < 2**63
        if given_ns is None:
            wrong |= self.SECONDS[0] <= wall_ns < self.SECONDS[1]
        elif wall_ns < self.WEEKS_NS:
            wrong |= 0 < abs(wall_ns - given_ns) < self.SHORTEST_NS
        if wrong:
            raise DataError(f"time_ns is Unix time in whole nanoseconds, such as time.time_ns(), got {time_ns!r:.100}")
        return wall_ns


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one call. All verdicts of a batch have the same ones: they are the call's, not the person's."""

    crop_s: float
    """Taking the frame, finding the person, cutting and resampling."""
    inference_s: float
    """The one call of the engine."""
    decision_s: float
    """Everything after it: joints to the frame, signals, trigger, drift, logs, and the copy of a frame that is kept."""
    total_s: float
    """The whole call."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Verdict:
    """The pose, how far it can be trusted, and whether the frame was kept. Two verdicts are never equal."""

    keypoints: npt.NDArray[np.float32]
    """(J, 2): x, y in pixels of the frame; the centre of the first pixel is (0, 0). May lie outside the frame."""
    scores: npt.NDArray[np.float32]
    """(J,): heatmap peak over its training peak, about 0 to 1, not clipped."""
    confidence: npt.NDArray[np.float32] | None = None
    """(J,): probability that each joint is right, 0 to 1, calibrated where the bundle is. None for bundles of schema 1."""
    predicted_loss: float
    """The loss head's raw output: it ranks images and has no unit."""
    failure_probability: float
    """0 to 1. Calibrated where the bundle is; where it is not, it only ranks. Of no account where nobody is :attr:`occupied`."""
    flagged: bool
    """A trigger wants this frame labelled. Frames of the random control stream are kept without being flagged."""
    kept: bool
    """Handed over to the queue. False where there is no queue, or where the hand-over was full (which is counted)."""
    reasons: tuple[Reason, ...]
    """What fired; on a frame that is not kept, what fired and was held back. ``str(reason)`` is readable."""
    inclusion_probability: float
    """The probability with which the policy kept a frame like this, given all before: for unbiased field reports."""
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1): where the person was looked for, in frame pixels."""
    place: str
    """Where the box came from: ``box`` the app, ``roi`` a fixed region, ``track`` the last pose, ``motion`` where something moves,
    ``search`` a search window, ``whole`` the whole frame."""
    timings: Timings
    sequence: int
    """Running number of this Monitor's verdicts, from 0."""
    stream: str = ""
    """Camera or person, as given to :meth:`Monitor.batch`."""
    occupied: bool = True
    """Whether this is somebody's pose, which can be right or wrong. False where a search found nobody, and where a net of whole
    frames, in the crop of one of several people, saw another."""
    verified: bool = True
    """Whether the engine's golden frames had passed; False only for a Monitor with ``verify="background"``, at its start."""

    @property
    def shown_probability(self) -> float:
        """The failure probability as it is shown to people: NaN where nobody is there, for no pose of an empty room is right."""
        return self.failure_probability if self.occupied else math.nan

    def to_supervision(self) -> Any:
        """The pose as ``supervision.KeyPoints`` of one person, for supervision's annotators, filters and trackers.

        ``xy`` (1, J, 2) as here; the confidence of each joint (1, J) is :attr:`confidence`, or for a bundle without one
        :attr:`scores` clipped to 0..1; ``data`` holds ``failure_probability`` (1,), NaN where nobody is there.

        Raises:
            MissingExtraError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingExtraError("supervision", "to_supervision", "supervision") from error
        sure_J = self.scores if self.confidence is None else self.confidence
        sure_1J = np.clip(np.nan_to_num(sure_J), 0, 1).astype(np.float32)[None]
        # By place: the third argument has had two names.
        key_points = supervision.KeyPoints(self.keypoints.astype(np.float32)[None], None, sure_1J)
        key_points["failure_probability"] = np.array([self.shown_probability])
        return key_points
