"""Is the stream of failure probabilities still like the calibration set? A test that may be looked at at any time.

Every score that enters is ranked among the calibration set and the scores that entered before it; ties inside a bin are
broken by chance. As long as all of these could have come in any order ("exchangeable"), the ranks are independent and
uniform on (0, 1], exactly and for a calibration set of any size (Vovk, Nouretdinov and Gammerman 2003, Testing
exchangeability on-line, ICML: smoothed conformal p-values). The test bets against that. Every bet is fair, so if the
stream is like the calibration set, the money it makes of 1 ever reaches 1 / alpha with probability alpha at most
(Ville's inequality): watching it all day and stopping when one likes is allowed.

Frames of a video are not exchangeable. Of every window of ``every_s`` seconds one score enters, and what that does and
does not repair stands in ``docs/metrics.md``.

Shapes: B bins of the failure probability (64), K bets.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np

from .bundle.manifest import HISTOGRAM_BINS
from .errors import ConfigError, DataError

EVERY_S = 30.0
Direction = Literal["more failures", "fewer failures", "other shape"]

_MORE = ((0.6, 1.0), (0.85, 1.0), (1.0, 1.2), (1.0, 1.7), (1.0, 3.0))
_FEWER = tuple((b, a) for a, b in _MORE)
_OTHER = ((0.6, 0.6), (0.85, 0.85), (1.3, 1.3), (2.5, 2.5))
_RICHEST = 1e250
"""Where money stops growing, long after the alarm: floats end at 1e308."""


@dataclass(frozen=True, slots=True)
class Bet:
    """A bet pays the density of Beta(a, b) at the p-value: 1 on average when p-values are uniform.

    A p-value is small where the failure probability is high, so a < b wins when failures become more, a > b when they
    become fewer, a = b < 1 when both ends fill up and a = b > 1 when the middle does.
    """

    a: float
    b: float
    share: float
    """Of every stake."""
    direction: Direction

    @property
    def log_norm(self) -> float:
        """Logarithm of 1 / B(a, b)."""
        return math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b)


def _bets() -> tuple[Bet, ...]:
    """Half the money is on more failures, which is why anybody runs this test."""
    groups = zip(get_args(Direction), (_MORE, _FEWER, _OTHER), (0.5, 0.25, 0.25), strict=True)
    return tuple(Bet(a, b, share / len(pairs), direction) for direction, pairs, share in groups for a, b in pairs)


BETS = _bets()


def uninvested(n: int) -> float:
    """What is not yet at stake after n observations, of 1.

    It falls to nothing, and so slowly that at any time there is enough left to bet on a change that begins now.
    """
    return 1.0 / math.log2(n + 2)


def bin_of(failure_probability: float) -> int | None:
    """The bin of a score as a bundle's histogram counts it; None for what is not finite.

    What rounding puts beyond [0, 1] belongs to the first or the last bin.
    """
    if not math.isfinite(failure_probability):
        return None
    if not 0.0 <= failure_probability < 1.0:
        return 0 if failure_probability < 0.0 else HISTOGRAM_BINS - 1
    return int(failure_probability * HISTOGRAM_BINS)


class Ranks:
    """Smoothed conformal p-values of binned scores: exactly uniform and independent under exchangeability."""

    __slots__ = ("_count", "_counts_B")

    def __init__(self, histogram_B: Sequence[int]) -> None:
        self._counts_B = [int(count) for count in histogram_B]
        self._count = sum(self._counts_B)

    def p_value(self, place: int, chance: float) -> float:
        """The share of all scores so far, this one among them, that are higher, or equal and favoured by chance.

        Args:
            place: bin of the new score, which joins the others.
            chance: uniform on (0, 1].
        """
        counts_B = self._counts_B
        counts_B[place] += 1
        self._count += 1
        return (sum(counts_B[place + 1 :]) + chance * counts_B[place]) / self._count


class Martingale:
    """Money made by betting that p-values are not uniform; it starts with 1, and every bet is fair.

    A mixture over bets and over the time at which betting starts: before every observation :func:`uninvested` falls,
    and the difference is divided among the bets, which keep all they win from then on. So a change that comes late does
    not find the money lost, and no state grows.
    """

    __slots__ = ("_money_K", "_observed", "evidence")

    def __init__(self) -> None:
        self._money_K = [0.0] * len(BETS)
        self._observed = 0
        self.evidence = 1.0
        """Money now, with what is not invested."""

    def bet(self, p: float) -> None:
        """Take one p-value in (0, 1]."""
        log_p, log_q = math.log(p), math.log(max(1.0 - p, 1e-16))  # 1 - p has no finer steps
        before, self._observed = uninvested(self._observed), self._observed + 1
        cash = uninvested(self._observed)
        stake = before - cash
        money_K = [
            min((money + stake * share) * math.exp(log_norm + a_1 * log_p + b_1 * log_q), _RICHEST)
            for money, (share, log_norm, a_1, b_1) in zip(self._money_K, _TERMS_K, strict=True)
        ]
        self._money_K = money_K
        self.evidence = cash + sum(money_K)

    def direction(self) -> Direction:
        """The kind of bet that has made most of the money."""
        money: dict[Direction, float] = dict.fromkeys(get_args(Direction), 0.0)
        for bet, won in zip(BETS, self._money_K, strict=True):
            money[bet.direction] += won
        return max(money, key=money.__getitem__)


_TERMS_K = tuple((bet.share, bet.log_norm, bet.a - 1.0, bet.b - 1.0) for bet in BETS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """Whether the stream of failure probabilities is still like the calibration set."""

    testing: bool
    """False for a bundle without calibration: there is nothing to compare with."""
    alarm: bool = False
    """True from the alarm on, until a reset."""
    since_s: float | None = None
    """When the alarm was raised, on the clock of the updates."""
    time_s: float | None = None
    """The last update, on the same clock."""
    direction: Direction | None = None
    """What the alarm was about."""
    log10_evidence: float = 0.0
    """Against "like the calibration set", now. Below 0: none."""
    log10_limit: float = 2.0
    """Where the alarm is raised: -log10(alpha)."""
    observed: int = 0
    """Scores that entered the test."""
    every_s: float = EVERY_S
    """One score in so many seconds enters."""
    calibration: int = 0
    """Size of the calibration set."""
    refused: int = 0
    """Scores that were not finite; they are not used."""
    stream: str = ""
    """Which camera or person this is about: of several, the one whose alarm came first, or that has most evidence."""
    streams: Mapping[str, DriftReport] = field(default_factory=dict)
    """The test of each by name, where there are several; ``observed`` and ``refused`` above are of all together."""


class Drift:
    """The test on one device's stream. Constant memory; one thread updates, any thread asks for the report.

    ::

        drift = Drift(bundle.calibration.histogram if bundle.calibration else None)
        drift.update(verdict.failure_probability, time.monotonic())
        drift.report().alarm

    Args:
        histogram_B: the calibration set by failure probability; None or all zeros: no test.
        alpha: largest probability that a stream like the calibration set ever raises an alarm, from this start on.
        every_s: of every window of this length one score enters, picked by chance among all of the window, whatever
            their values: no camera that comes first and no rhythm of the scene is preferred. 0: every score enters.
        seed: of these picks and of the broken ties; None takes one from the system.
    """

    def __init__(
        self,
        histogram_B: Sequence[int] | None,
        *,
        alpha: float = 0.01,
        every_s: float = EVERY_S,
        seed: int | np.random.SeedSequence | None = None,
    ) -> None:
        counts_B = tuple(histogram_B or (0,) * HISTOGRAM_BINS)
        if len(counts_B) != HISTOGRAM_BINS or min(counts_B) < 0:
            raise DataError(f"the calibration histogram must be {HISTOGRAM_BINS} counts, got {str(counts_B)[:80]}")
        if not 0.0 < alpha < 1.0:
            raise ConfigError(f"alpha is a probability between 0 and 1, such as 0.01, got {alpha}")
        if not 0.0 <= every_s < math.inf:
            raise ConfigError(f"every_s must be finite and not negative, got {every_s}")
        self._calibration_B = counts_B
        self._testing = any(counts_B)
        self._alpha = alpha
        self._every_s = every_s
        self._random = np.random.default_rng(seed)
        self._refused = 0
        self._time_s: float | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the stream and the alarm and begin anew; alpha holds again from here on."""
        self._ranks = Ranks(self._calibration_B)
        self._martingale = Martingale()
        self._observed = 0
        self._window_s: float | None = None
        self._in_window = 0
        self._pick = 0
        self._alarm: tuple[float, Direction] | None = None

    def update(self, failure_probability: float, time_s: float) -> None:
        """See one score at a time in seconds; never raises. A window's pick enters when the next window begins."""
        place = bin_of(failure_probability)
        if place is None or not math.isfinite(time_s):
            self._refused += 1
            return
        self._time_s = time_s
        if self._window_s is None:
            self._window_s = time_s
        elif abs(time_s - self._window_s) >= self._every_s:  # a clock that was set back begins a window too
            self._enter(self._pick, time_s)
            self._window_s, self._in_window = time_s, 0
        # The n-th of a window replaces the pick with probability 1 / n: each is then equally likely to stay.
        self._in_window += 1
        if self._in_window == 1 or self._random.random() * self._in_window < 1.0:
            self._pick = place

    def report(self) -> DriftReport:
        """What is known now."""
        since_s, direction = self._alarm or (None, None)
        return DriftReport(
            testing=self._testing,
            alarm=self._alarm is not None,
            since_s=since_s,
            time_s=self._time_s,
            direction=direction,
            log10_evidence=math.log10(self._martingale.evidence),
            log10_limit=-math.log10(self._alpha),
            observed=self._observed,
            every_s=self._every_s,
            calibration=sum(self._calibration_B),
            refused=self._refused,
        )

    def _enter(self, place: int, time_s: float) -> None:
        if not self._testing:
            return
        p = self._ranks.p_value(place, 1.0 - float(self._random.random()))
        self._martingale.bet(p)
        self._observed += 1
        if self._alarm is None and self._martingale.evidence * self._alpha >= 1.0:
            self._alarm = time_s, self._martingale.direction()


class Drifts:
    """A test for each camera or person: one that drifts is not diluted by others, and the alarm says which it is.

    Constant memory; one thread updates, any thread asks for the report.

    Args:
        histogram_B: the calibration set, as for :class:`Drift`.
        most: streams that are tested at a time; of more, the one that was not seen for the longest time is forgotten, of those
            without an alarm first.
        seed: of the tests' draws.
    """

    def __init__(self, histogram_B: Sequence[int] | None, *, most: int, seed: np.random.SeedSequence) -> None:
        self._histogram_B, self._most, self._seed = histogram_B, most, seed
        self._tests: OrderedDict[str, Drift] = OrderedDict({"": Drift(histogram_B, seed=seed)})
        self._named = False
        self._forgotten = (0, 0)
        """Scores that the forgotten ones observed and refused."""

    def update(self, stream: str, failure_probability: float, time_s: float) -> None:
        """See one score of a stream; never raises."""
        test = self._tests.get(stream)
        if test is None:
            test = self._begin(stream)
        self._tests.move_to_end(stream)
        test.update(failure_probability, time_s)

    def report(self) -> DriftReport:
        """What is known now, of the stream with most to say, and of each."""
        tests = self._tests.copy()  # in one step: its thread may begin one meanwhile
        reports = {stream: replace(test.report(), stream=stream) for stream, test in tests.items()}
        first = min(
            reports.values(),
            key=lambda one: (not one.alarm, one.since_s if one.since_s is not None else 0.0, -one.log10_evidence),
        )
        observed, refused = self._forgotten
        return replace(
            first,
            observed=observed + sum(one.observed for one in reports.values()),
            refused=refused + sum(one.refused for one in reports.values()),
            streams=reports if len(reports) > 1 else {},
        )

    def _begin(self, stream: str) -> Drift:
        if not self._named and self._tests[""].report().time_s is None:
            test = self._tests.pop("")  # nothing has come without a name: the first name takes its place
        else:
            test = Drift(self._histogram_B, seed=self._seed.spawn(1)[0])
        self._named = True
        if len(self._tests) >= self._most:
            quiet = (name for name, other in self._tests.items() if not other.report().alarm)
            gone = self._tests.pop(next(quiet, next(iter(self._tests)))).report()
            self._forgotten = (self._forgotten[0] + gone.observed, self._forgotten[1] + gone.refused)
        self._tests[stream] = test
        return test
