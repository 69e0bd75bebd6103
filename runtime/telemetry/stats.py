"""What a monitor has done: its counters and meters while it runs, and one snapshot of everything.

:class:`Counters` may be written by every thread, :class:`Meters` by one at a time; :class:`Stats` is what
``monitor.stats()`` returns. Nothing here waits for another thread, and nothing grows with the number of frames.

Shapes: B bins of the failure probability (64, those of a bundle's histogram).
"""

from __future__ import annotations

import itertools
import math
import re
import threading
import time
import weakref
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ..bundle.manifest import HISTOGRAM_BINS
from ..drift import DriftReport, bin_of
from ..errors import ConfigError

if TYPE_CHECKING:
    from ..engines.catalog import Opened


COUNTERS: Mapping[str, tuple[str | None, str]] = {
    "frames_total": ("decision", "Frames by what was decided: flagged, control (kept by chance alone), passed."),
    "persons_total": ("decision", "Persons on frames by what was decided; a frame with two counts twice."),
    "source_faults_total": (
        "what",
        "Frames that the source lost before the monitor saw them, and cameras opened again, by what.",
    ),
    "unoccupied_frames_total": (None, "Frames that were searched and showed nobody; they are passed, or control."),
    "dropped_boxes_total": (
        "reason",
        "Boxes of a detector that no pose was looked for in: not_finite, empty, outside, many, score.",
    ),
    "mistaken_people_total": (None, "People of whom there is no answer: a net of whole frames saw somebody near them."),
    "dropped_frames_total": (
        "reason",
        "Records that should have been kept and were not, by reason: one for each person on a frame.",
    ),
    "dropped_pictures_total": ("reason", "Pictures of kept frames that were not kept, by reason."),
    "dropped_scores_total": ("reason", "Chunks of the score log that were not written, by reason."),
    "dropped_tallies_total": (None, "Hours of the tally of frames that were not written."),
    "write_errors_total": ("reason", "Attempts to write the queue that failed and were repeated, by reason."),
    "internal_errors_total": ("where", "Errors that were caught so that the camera could go on, by place."),
    "fallback_total": ("what", "Replacements of what was asked for by what was there."),
    "refused_scores_total": (None, "Failure probabilities that were not finite."),
    "drift_scores_total": (None, "Scores that entered the drift test."),
    # Of the queue's file, since it was made:
    "stored_total": (None, "Records that were stored."),
    "refused_total": ("reason", "Records that the queue did not take, by reason."),
    "evicted_total": ("reason", "Records that the queue gave up, by reason."),
    "evicted_scores_total": ("reason", "Chunks of the score log that the queue gave up, by reason."),
    "evicted_tallies_total": ("reason", "Hours of the tally of frames that the queue gave up, by reason."),
    "deleted_total": ("reason", "Records that were deleted after they had been fetched, or by force."),
    "purged_total": (None, "Records that were purged."),
    "acknowledged_total": (None, "Records that somebody has fetched."),
    "acknowledgement_mismatch_total": (None, "Acknowledged records whose hash was another one."),
    "acknowledgement_refused_total": (None, "Acknowledgement files that could not be applied."),
    "control_demoted_total": (None, "Flagged records that left the control stream."),
    "recovered_total": (None, "Records that were saved from a damaged file."),
    "quarantined_total": (None, "Damaged files that were moved aside."),
    "orphaned_logs_total": (None, "Write-ahead logs of files that went away while they were open."),
    "unreadable_states_total": ("reason", "States of programs that could not be read."),
    "unsaved_states_total": (None, "States of policies for which the queue had no place."),
    "clock_backwards_total": (None, "Times that the wall clock was found behind the queue's own."),
    "clock_implausible_total": (None, "Starts with a wall clock too far ahead to be believed."),
}
"""The counters of alpose: their label, if they have one, and their help. An app may count under other names as well."""

OTHER_METRICS = frozenset({
    "up", "predicted_failure_ratio", "crop_seconds", "inference_seconds", "decision_seconds", "frame_seconds",
    "trigger_threshold", "uptime_seconds", "queue_records", "queue_bytes", "queue_limit_bytes",
    "queue_oldest_timestamp_seconds", "queue_waiting_frames", "queue_failing", "drift_testing", "drift_alarm",
    "drift_evidence_log10", "drift_limit_log10", "engine_info", "engine_fallback", "selftest_max_error_pixels",
    "bundle_info", "device_info",
})  # fmt: skip
"""Metrics that are not counters: a counter may not have the name of one and ``_total``."""

MOST_SERIES = 1000
"""Different names and labels that an app may count under: each costs memory for ever, here and in Prometheus."""
MOST_LETTERS = 128
"""Of the name of a counter or label, and of a label's value."""


def is_counter_name(name: object) -> bool:
    """Whether something is the name of a counter as Prometheus takes it, without ``alpose_``."""
    return isinstance(name, str) and len(name) <= MOST_LETTERS and bool(re.fullmatch("[a-z][a-z0-9_]*_total", name))


class Count(NamedTuple):
    """What a counter counts: ``Count("dropped_frames_total", (("reason", "disk_full"),))``."""

    name: str
    """As Prometheus writes it, without ``alpose_``."""
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted by key. Values are few and known beforehand: a reason, never an id."""

    def __str__(self) -> str:
        inner = ",".join(f"{key}={value}" for key, value in self.labels)
        return f"{self.name}{{{inner}}}" if inner else self.name


class Counters:
    """Counts that any thread adds to and that no thread waits for.

    Every thread writes into a dictionary of its own, and a snapshot sums them. With one lock around a shared dictionary
    the camera would wait whenever the interpreter switches threads while the disk thread holds it, which costs
    milliseconds and not the nanoseconds of the addition. A lock of snapshots alone would be no better: a signal's handler
    that closes the Monitor waits for the disk thread, on a thread that may be in the middle of a snapshot.
    """

    def __init__(self) -> None:
        self._mine = threading.local()
        self._numbers = itertools.count()
        self._threads: dict[int, tuple[weakref.ref[_Owner], dict[Count, int]]] = {}
        self._ended = _Ended({}, frozenset())
        self._collecting = threading.Lock()  # who does not get it at once leaves collecting to whoever has it
        self._of_app: dict[str, set[Count]] = {}

    def add_checked(self, name: str, n: int, labels: Mapping[str, str]) -> None:
        """Add to a counter of the app's own; :class:`ConfigError` for anything that a metrics page could not show."""
        words = (*labels, *labels.values())
        if not is_counter_name(name) or type(n) is not int or n < 0:
            raise ConfigError(
                f"a counter counts upwards under a name such as broken_frames_total, got {name!r:.150} and {n!r:.50}: "
                "small letters, digits and _, and _total at the end"
            )
        if not all(isinstance(word, str) and len(word) <= MOST_LETTERS and word.isprintable() for word in words):
            raise ConfigError(
                f"the labels of {name} must be texts of at most {MOST_LETTERS} printable letters, got {labels!r:.200}"
            )
        if not all(re.fullmatch("[a-z][a-z0-9_]*", label) and label not in ("camera", "le") for label in labels):
            raise ConfigError(
                f"the labels of {name} must be words such as reason, not camera or le, got {list(labels)}"
            )
        if name.removesuffix("_total") in OTHER_METRICS:
            raise ConfigError(f"{name} is too near to a metric of alpose: take another name")
        series = self._of_app.setdefault(name, set())
        if name in COUNTERS:
            wanted = {label for label in (COUNTERS[name][0],) if label}
        else:
            wanted = {label for label, _ in next(iter(series)).labels} if series else set(labels)
        if set(labels) != wanted:
            raise ConfigError(
                f"{name} is counted with the labels {sorted(wanted)}, got {sorted(labels)}: take another name"
            )
        key = Count(name, tuple(sorted(labels.items())))
        if key not in series and sum(map(len, self._of_app.values())) >= MOST_SERIES:
            raise ConfigError(
                f"{name} with {dict(labels)} would be one series more than {MOST_SERIES}: the values of labels must be "
                "few, such as reasons, never ids or times"
            )
        series.add(key)
        self.add(name, n, **labels)

    def add(self, name: str, n: int = 1, **labels: str) -> None:
        """Add ``n`` to a counter: ``add("dropped_frames_total", reason="disk_full")``."""
        items = tuple(labels.items())
        key = Count(name, items if len(items) < 2 else tuple(sorted(items)))
        try:
            counts: dict[Count, int] = self._mine.owner.counts
        except AttributeError:
            counts = self._first()
        counts[key] = counts.get(key, 0) + n

    def snapshot(self) -> dict[Count, int]:
        """All counts, sorted by name and labels."""
        self._collect_ended()
        while True:
            ended = self._ended
            threads = self._threads.copy()  # one step, as the copies below: their threads may add meanwhile
            if self._ended is ended:
                break
        total = dict(ended.total)
        for number, (_, counts) in threads.items():
            if number not in ended.threads:
                _add(total, counts.copy())
        return dict(sorted(total.items()))

    def _first(self) -> dict[Count, int]:
        """The dictionary of a thread that counts for the first time."""
        self._collect_ended()
        owner = _Owner()
        self._threads[next(self._numbers)] = weakref.ref(owner), owner.counts
        self._mine.owner = owner
        return owner.counts

    def _collect_ended(self) -> None:
        """Keep the counts of threads that have ended, and not their dictionaries: an app may make a thread per frame."""
        if not self._collecting.acquire(blocking=False):
            return
        try:
            ended = {number: counts for number, (owner, counts) in self._threads.copy().items() if owner() is None}
            if ended:
                total = dict(self._ended.total)
                for number, counts in ended.items():
                    if number not in self._ended.threads:  # an exception came in between the last time
                        _add(total, counts)
                self._ended = _Ended(total, frozenset(ended))  # from here on snapshots pass over their dictionaries
                for number in ended:
                    del self._threads[number]
        finally:
            self._collecting.release()


class _Ended(NamedTuple):
    """What threads that have ended had counted. Replaced as a whole, so that a snapshot sees each of them once."""

    total: dict[Count, int]
    threads: frozenset[int]
    """Those whose dictionaries may still stand beside it."""


def _add(total: dict[Count, int], counts: dict[Count, int]) -> None:
    for key, n in counts.items():
        total[key] = total.get(key, 0) + n


class _Owner:
    """Dies with its thread, also with one that Python did not start."""

    __slots__ = ("__weakref__", "counts")

    def __init__(self) -> None:
        self.counts: dict[Count, int] = {}


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
