"""What a monitor has done: its counters and meters while it runs, and one snapshot of everything.

:class:`~.counters.Counters` may be written by every thread, :class:`Meters` by one at a time; :class:`Stats` is what
``monitor.stats()`` returns. Nothing here waits for another thread, and nothing grows with the number of frames.

Shapes: B bins of the failure probability (64, those of a bundle's histogram).
"""

from __future__ import annotations

import itertools
import math
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from ..bundle.manifest import HISTOGRAM_BINS
from ..drift import DriftReport, bin_of
from .counters import Count, Counters

if TYPE_CHECKING:
    from ..engines.catalog import Opened


def _edges_ns() -> tuple[int, ...]:
    """Upper edges of the latency bins: 1 µs to 10 s, geometric between 1, 2.5, 5 and 10 of every decade.

    Those round numbers are edges, so that the coarser histogram that Prometheus gets is exact.
    """
    edges = [1_000]
    for decade in range(7):
        for low, high, bins in ((1.0, 2.5, 16), (2.5, 5.0, 12), (5.0, 10.0, 12)):
            edges += [round(1_000 * 10**decade * low * (high / low) ** (k / bins)) for k in range(1, bins + 1)]
    return tuple(edges)


EDGES_NS = _edges_ns()
"""Bin i holds durations in (EDGES_NS[i - 1], EDGES_NS[i]]; the first all up to 1 µs, one more all beyond 10 s."""

RELATIVE_ERROR = max(math.sqrt(high / low) for low, high in itertools.pairwise(EDGES_NS)) - 1
"""Of a quantile between 1 µs and 10 s: 3 %."""


class Latency:
    """Durations in 282 bins of equal relative width: quantiles within 3 %, in constant memory.

    One thread at a time adds; any thread reads.
    """

    __slots__ = ("_counts", "_max_ns", "_sum_ns", "refused")

    def __init__(self) -> None:
        self._counts = [0] * (len(EDGES_NS) + 1)
        self._sum_ns = 0
        self._max_ns = 0
        self.refused = 0
        """Durations that were negative, not finite, or beyond 30 years: a clock was wrong."""

    def add(self, seconds: float) -> None:
        """Count one duration."""
        if not 0.0 <= seconds < 1e9:
            self.refused += 1
            return
        ns = int(seconds * 1e9)
        self._counts[bisect_left(EDGES_NS, ns)] += 1
        self._sum_ns += ns
        if ns > self._max_ns:
            self._max_ns = ns

    def merge(self, other: Latency) -> None:
        """Add what another one has counted: of another thread, another device."""
        for place, n in enumerate(other._counts):
            self._counts[place] += n
        self._sum_ns += other._sum_ns
        self._max_ns = max(self._max_ns, other._max_ns)
        self.refused += other.refused

    @property
    def count(self) -> int:
        """Durations counted."""
        return sum(self._counts)

    def quantile(self, share: float) -> float:
        """The smallest duration in seconds that ``share`` of all do not exceed, within 3 %; nan where there is none."""
        return _quantile(self._counts, self._max_ns, share)

    def info(self) -> LatencyInfo:
        """What it knows now."""
        counts, max_ns = self._counts.copy(), self._max_ns
        count, values = sum(counts), [_quantile(counts, max_ns, share) for share in (0.5, 0.99, 0.999)]
        return LatencyInfo(
            count=count,
            sum_s=self._sum_ns / 1e9,
            p50_s=values[0],
            p99_s=values[1],
            p999_s=values[2],
            max_s=max_ns / 1e9 if count else math.nan,
            refused=self.refused,
            counts=tuple(counts),
        )


def _quantile(counts: list[int], max_ns: int, share: float) -> float:
    wanted, seen = max(1, math.ceil(share * sum(counts))), 0
    for place, n in enumerate(counts):
        seen += n
        if seen >= wanted:
            if place == len(EDGES_NS):
                return max_ns / 1e9
            high = EDGES_NS[place]
            middle = math.sqrt(EDGES_NS[place - 1] * high) if place else high
            return min(middle, max_ns) / 1e9
    return math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyInfo:
    """Durations of one part of a frame's way; nan where nothing was timed."""

    count: int
    sum_s: float
    p50_s: float
    p99_s: float
    p999_s: float
    max_s: float
    refused: int = 0
    """Durations that were negative or not finite; they are not counted."""
    counts: tuple[int, ...] = field(repr=False)
    """Durations in every bin of :data:`EDGES_NS` and beyond."""

    def up_to(self, seconds: float) -> int:
        """Durations of at most so many seconds; exact at the edges, among them 1, 2.5 and 5 of every decade."""
        return sum(self.counts[: bisect_right(EDGES_NS, round(seconds * 1e9))])


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

    def info(self) -> ScoreInfo:
        """What it knows now."""
        return ScoreInfo(counts=tuple(self._counts_B), sum=self._sum, refused=self.refused)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreInfo:
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
    """Output → largest deviation; the keypoints' is in pixels of the crop. Empty until the golden frames have passed."""

    @classmethod
    def of(cls, opened: Opened, asked: str) -> EngineState:
        """The state of an engine that was opened; of several golden reports the largest deviations."""
        deviation: dict[str, float] = {}
        for check in (check for report in opened.reports for check in report.checks):
            deviation[check.output] = max(check.deviation, deviation.get(check.output, 0.0))
        name = str(getattr(opened.engine, "name", type(opened.engine).__name__))
        provider = str(getattr(opened.engine, "provider", name))
        return cls(
            name=name, provider=provider, asked=asked, fallback=bool(opened.fallbacks), golden_deviation=deviation
        )


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
    crop: LatencyInfo
    inference: LatencyInfo
    decision: LatencyInfo
    total: LatencyInfo
    scores: ScoreInfo
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
    def persons(self) -> dict[str, int]:
        """Persons on frames, by the same decisions: a frame with two counts once there and twice here."""
        return self.by("persons_total", "decision")

    @property
    def dropped(self) -> dict[str, int]:
        """Records that should have been kept and were not, by reason: one for each person on a frame."""
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
        return _table(self)


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

    def person(self, decision: str, failure_probability: float | None) -> None:
        """Count one person on a frame: what became of them (flagged, control, passed), and their score.

        The score is None where nobody was there whose pose could be wrong.
        """
        self.counters.add("persons_total", decision=decision)
        if failure_probability is not None:
            self.scores.add(failure_probability)

    def call(
        self, decisions: Iterable[str], *, crop_s: float, inference_s: float, decision_s: float, total_s: float
    ) -> None:
        """Count one call: the decision of each frame in it, and how long each part of the call took."""
        for decision in decisions:
            self.counters.add("frames_total", decision=decision)
            self._recent_s.append(time.monotonic())
        self.crop.add(crop_s)
        self.inference.add(inference_s)
        self.decision.add(decision_s)
        self.total.add(total_s)

    def nobody(self) -> None:
        """Count a frame on which a detector found nobody: the net has not looked at it."""
        self.counters.add("frames_total", decision="passed")
        self.counters.add("unoccupied_frames_total")
        self._recent_s.append(time.monotonic())

    def frame(self, decision: str, failure_probability: float | None, **seconds: float) -> None:
        """Count a call with one frame and one person on it."""
        self.person(decision, failure_probability)
        self.call([decision], **seconds)

    @property
    def frames_per_second(self) -> float:
        """Over the last 128 frames and the time since; 0 before the second frame."""
        recent_s = self._recent_s.copy()
        if len(recent_s) < 2:
            return 0.0
        return (len(recent_s) - 1) / max(time.monotonic() - recent_s[0], 1e-9)

    def stats(self, more_counts: Mapping[Count, int] | None = None, **known: Any) -> Stats:
        """Everything at this moment.

        Args:
            more_counts: counters that are kept elsewhere, such as a queue's own.
            known: the fields of :class:`Stats` that the meters do not know: ``device`` to ``bundle_sha256``,
                ``threshold``, ``queue``, ``drift``, ``engine``.
        """
        counts = self.counters.snapshot()
        for key, n in (more_counts or {}).items():
            counts[key] = counts.get(key, 0) + n
        return Stats(
            time_s=time.time(),
            uptime_s=time.monotonic() - self._started_s,
            counts=counts,
            frames_per_second=self.frames_per_second,
            crop=self.crop.info(),
            inference=self.inference.info(),
            decision=self.decision.info(),
            total=self.total.info(),
            scores=self.scores.info(),
            **known,
        )


# The table for people.

PARTS = ("crop", "inference", "decision", "total")
SHOWN_APART = ("frames_total", "persons_total", "dropped_frames_total", "evicted_total", "internal_errors_total")
"""Counters that have a line of their own; the others stand together in the last one."""


def _table(stats: Stats) -> str:
    """One line per subject; what did not happen has no line."""
    rows = list(_rows(stats))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _rows(stats: Stats) -> Iterator[tuple[str, str]]:
    frames = stats.frames
    total, uptime = sum(frames.values()), _duration(stats.uptime_s)
    yield "frames", f"{total:,} in {uptime}, {stats.frames_per_second:.1f}/s: {_counts(frames) or 'none yet'}"
    if sum(stats.persons.values()) != total:
        yield "persons", f"{sum(stats.persons.values()):,}: {_counts(stats.persons)}"
    for name in ("dropped", "evicted", "errors"):
        counts: dict[str, int] = getattr(stats, name)
        if counts:
            yield name, f"{sum(counts.values()):,}: {_counts(counts)}"
    yield "scores", _scores(stats)
    for part in PARTS:
        info: LatencyInfo = getattr(stats, part)
        if info.count:
            yield part, _latency(info)
    yield "queue", _queue(stats.queue, stats.time_s)
    yield "drift", _drift(stats.drift)
    yield "engine", _engine(stats.engine)
    yield "bundle", f"{stats.bundle} {stats.bundle_sha256[:12]}"
    yield "device", stats.device + (f", camera {stats.camera}" if stats.camera else "")
    others = {str(key): n for key, n in stats.counts.items() if key.name not in SHOWN_APART}
    if others:
        yield "counters", _counts(others)


def _scores(stats: Stats) -> str:
    limit = "" if stats.threshold is None else f", threshold now {stats.threshold:.3f}"
    refused = f", {stats.scores.refused:,} no numbers" if stats.scores.refused else ""
    mean = f"mean failure probability {stats.scores.mean:.3f}" if sum(stats.scores.counts) else "none yet"
    return f"{mean}{limit}{refused}"


def _latency(info: LatencyInfo) -> str:
    parts = {"p50": info.p50_s, "p99": info.p99_s, "p99.9": info.p999_s, "max": info.max_s}
    return "  ".join(f"{name} {1e3 * value:8.3f}" for name, value in parts.items()) + "  ms"


def _queue(queue: QueueState | None, now_s: float) -> str:
    if queue is None:
        return "none"
    text = f"{queue.records:,} records, {queue.bytes / 2**20:.1f} of {queue.max_bytes / 2**20:.0f} MiB in {queue.path}"
    if queue.oldest_s is not None:
        text += f", oldest {_duration(max(now_s - queue.oldest_s, 0.0))}"
    if queue.waiting:
        text += f", {queue.waiting} waiting"
    return text + (f", LAST ERROR: {queue.last_error}" if queue.last_error else "")


def _drift(drift: DriftReport) -> str:
    if not drift.testing:
        return "not tested: the bundle has no calibration"
    who = f" of {drift.stream}" if drift.stream else ""
    evidence = (
        f"evidence{who} 10^{round(drift.log10_evidence, 1) + 0.0:.1f} of 10^{drift.log10_limit:.1f} after {drift.observed:,} "
        f"score{'s' * (drift.observed != 1)}"
    )
    if not drift.alarm:
        return f"none found, {evidence}" if drift.observed else "no score tested yet"
    ago = _duration((drift.time_s or 0.0) - (drift.since_s or 0.0))
    return f"ALARM {ago} ago: {drift.direction} than in the calibration set, {evidence}"


def _engine(engine: EngineState) -> str:
    text = f"{engine.name} ({engine.provider})"
    if engine.fallback:
        text += f", FALLBACK from {engine.asked}"
    if "keypoints" in engine.golden_deviation:
        text += f", golden keypoints within {engine.golden_deviation['keypoints']:.2g} px"
    return text


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _duration(seconds: float) -> str:
    """As a person says it: 12 s, 5 min, 3.2 h, 4.0 d."""
    for unit, length, digits in (("d", 86_400.0, 1), ("h", 3_600.0, 1), ("min", 60.0, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
