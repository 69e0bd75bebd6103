"""Durations in a histogram of fixed size, whose quantiles have a known error."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field


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

    def facts(self) -> LatencyFacts:
        """What it knows now."""
        counts, max_ns = self._counts.copy(), self._max_ns
        count, values = sum(counts), [_quantile(counts, max_ns, share) for share in (0.5, 0.99, 0.999)]
        return LatencyFacts(
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
class LatencyFacts:
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
