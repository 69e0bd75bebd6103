"""What a monitor has done: its meters while it runs, and one snapshot of everything.

:class:`Meters` is written by the camera thread and the disk thread, :class:`Stats` is what ``monitor.stats()`` gives
out. Nothing here waits for another thread, and nothing grows with the number of frames.

Shapes: B bins of the failure probability (64, those of a bundle's histogram).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from .bundle.golden import GoldenReport
from .bundle.manifest import HISTOGRAM_BINS
from .counters import Count, Counters
from .drift import DriftReport, bin_of
from .latency import Latency, LatencyFacts
from .stats_table import table

__all__ = [
    "Count",
    "Counters",
    "EngineState",
    "Latency",
    "LatencyFacts",
    "Meters",
    "QueueState",
    "ScoreFacts",
    "Scores",
    "Stats",
]


class Scores:
    """Failure probabilities in the bins of a bundle's histogram. One thread at a time adds; any thread reads."""

    __slots__ = ("_counts_B", "_sum", "refused")

    def __init__(self) -> None:
        self._counts_B = [0] * HISTOGRAM_BINS
        self._sum = 0.0
        self.refused = 0
        """Scores that were no numbers."""

    def add(self, failure_probability: float) -> None:
        """Count one; what is beyond [0, 1] goes into the first or last bin, as rounding puts it there."""
        place = bin_of(failure_probability)
        if place is None:
            self.refused += 1
            return
        self._counts_B[place] += 1
        self._sum += min(max(failure_probability, 0.0), 1.0)

    def facts(self) -> ScoreFacts:
        """What it knows now."""
        return ScoreFacts(counts=tuple(self._counts_B), sum=self._sum, refused=self.refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFacts:
    """The failure probabilities so far."""

    counts: tuple[int, ...] = (0,) * HISTOGRAM_BINS
    """Frames in every bin, equal in width over [0, 1]: set beside the bundle's ``calibration.histogram``."""
    sum: float = 0.0
    refused: int = 0
    """Scores that were no numbers."""

    @property
    def mean(self) -> float:
        """The mean failure probability: the share of frames that are wrong if the calibration holds; nan for none."""
        count = sum(self.counts)
        return self.sum / count if count else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """The queue and the hand-over to it."""

    path: str
    records: int
    bytes: int
    max_bytes: int
    oldest_s: float | None
    """Unix time at which the oldest record was captured; None for an empty queue."""
    waiting: int = 0
    """Frames handed over and not yet on disk."""
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """The engine that answers, and how it did on the golden frames at start."""

    name: str
    provider: str
    """What runs, in the engine library's own words."""
    asked: str = ""
    """What the app asked for."""
    fallback: bool = False
    """Whether it is not what was asked for; it was allowed then."""
    golden_deviation: Mapping[str, float] = field(default_factory=dict)
    """Output → largest deviation; the keypoints' is in pixels of the crop."""

    @staticmethod
    def deviations(report: GoldenReport) -> dict[str, float]:
        """``golden_deviation`` of a report."""
        return {check.output: check.deviation for check in report.checks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Everything a monitor knows of itself at one moment. ``str(stats)`` is a table, :meth:`to_json` plain JSON."""

    time_s: float
    """Unix."""
    uptime_s: float
    device: str
    camera: str
    bundle: str
    """Its name."""
    bundle_sha256: str
    counts: Mapping[Count, int]
    """Every counter; the properties below pick from it."""
    frames_per_second: float
    """Over the last frames; it falls when frames stop coming."""
    crop: LatencyFacts
    inference: LatencyFacts
    decision: LatencyFacts
    total: LatencyFacts
    scores: ScoreFacts
    threshold: float | None
    """On the failure probability, now in force; None where the policy has none."""
    queue: QueueState | None
    """None without a queue."""
    drift: DriftReport
    engine: EngineState

    def by(self, name: str, label: str) -> dict[str, int]:
        """The counter ``name`` by one of its labels: ``by("dropped_frames_total", "reason")``."""
        found: dict[str, int] = {}
        for key, n in self.counts.items():
            value = dict(key.labels).get(label)
            if key.name == name and value is not None:
                found[value] = found.get(value, 0) + n
        return found

    @property
    def frames(self) -> dict[str, int]:
        """Frames by decision: flagged, control (kept by chance alone), passed."""
        return self.by("frames_total", "decision")

    @property
    def dropped(self) -> dict[str, int]:
        """Frames that should have been kept and were not, by reason."""
        return self.by("dropped_frames_total", "reason")

    @property
    def evicted(self) -> dict[str, int]:
        """Records that the queue gave up, by reason."""
        return self.by("evicted_total", "reason")

    @property
    def errors(self) -> dict[str, int]:
        """Errors that were caught so that the camera could go on, by place."""
        return self.by("internal_errors_total", "where")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes None, and counters are named ``name{label=value}``.

        The fine bins of the latencies are left out.
        """
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}

    def __str__(self) -> str:
        return table(self)


def _plain(value: Any) -> Any:
    """JSON values of a dataclass, mapping, sequence or number."""
    if isinstance(value, Mapping):  # a key of counts is a tuple whose str is its name
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value) if item.repr}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


class Meters:
    """What a monitor writes into while it runs. One thread at a time calls :meth:`frame`; any thread reads.

    ``counters`` may be written by every thread.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self.crop, self.inference, self.decision, self.total = Latency(), Latency(), Latency(), Latency()
        self.scores = Scores()
        self._started_s = time.monotonic()
        self._recent_s: deque[float] = deque(maxlen=128)

    def frame(
        self, decision: str, failure_probability: float | None, *, crop_s: float, inference_s: float, decision_s: float,
        total_s: float,
    ) -> None:  # fmt: skip
        """Count one frame: what became of it (flagged, control, passed), its score, and how long each part took.

        The score is None where nobody was there whose pose could be wrong.
        """
        self.counters.add("frames_total", decision=decision)
        if failure_probability is not None:
            self.scores.add(failure_probability)
        self.crop.add(crop_s)
        self.inference.add(inference_s)
        self.decision.add(decision_s)
        self.total.add(total_s)
        self._recent_s.append(time.monotonic())

    @property
    def frames_per_second(self) -> float:
        """Over the last 128 frames and the time since; 0 before the second frame."""
        recent_s = self._recent_s.copy()
        if len(recent_s) < 2:
            return 0.0
        return (len(recent_s) - 1) / max(time.monotonic() - recent_s[0], 1e-9)

    def stats(
        self, *, device: str, camera: str, bundle: str, bundle_sha256: str, threshold: float | None,
        queue: QueueState | None, drift: DriftReport, engine: EngineState,
        more_counts: Mapping[Count, int] | None = None,
    ) -> Stats:  # fmt: skip
        """Everything at this moment.

        Args:
            more_counts: counters that are kept elsewhere, such as a queue's own; they must not repeat ours.
            device, camera, bundle, bundle_sha256, threshold, queue, drift, engine: as in :class:`Stats`.
        """
        counts = self.counters.snapshot()
        for key, n in (more_counts or {}).items():
            counts[key] = counts.get(key, 0) + n
        return Stats(
            time_s=time.time(),
            uptime_s=time.monotonic() - self._started_s,
            device=device,
            camera=camera,
            bundle=bundle,
            bundle_sha256=bundle_sha256,
            counts=counts,
            frames_per_second=self.frames_per_second,
            crop=self.crop.facts(),
            inference=self.inference.facts(),
            decision=self.decision.facts(),
            total=self.total.facts(),
            scores=self.scores.facts(),
            threshold=threshold,
            queue=queue,
            drift=drift,
            engine=engine,
        )
