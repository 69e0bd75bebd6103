"""Statistics of a benchmark: mean and sd, the paired t-test, Holm's correction, seeds still to run, the bootstrap.

A value that is not defined is None, with the reason beside it; NaN never leaves this file.

Shapes: a handful of plain floats, one per seed; for the bootstrap N seeds or people, K points of a curve, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

import numpy as np
import numpy.typing as npt
from scipy import stats

from alpose.runtime.errors import ConfigError, DataError

Alternative = Literal["two-sided", "less", "greater"]
Floats = npt.NDArray[np.floating]

LEVEL = 0.05
"""Of the tests, unless somebody says otherwise; the papers have 0.1."""
COVERED = 0.95
"""Of the bootstrap intervals."""
RESAMPLES = 2000

SAME = 1e-12
"""Differences that vary by less than this share of the values are rounding, not variance."""

MOST_SEEDS = 10_000
"""A difference that wants more is not going to be settled by seeds."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and sample standard deviation, in the unit of the values."""

    mean: float | None
    sd: float | None
    """Divides by n - 1."""
    count: int
    """Values that were defined."""
    reason: str | None
    """Why a number is None; None when both are there."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Student's t-test on paired differences."""

    t: float | None
    p: float | None
    count: int
    """Pairs of which both values were defined."""
    reason: str | None
    """Why there is no test; None when there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """How many seeds a paired t-test needs, were the true difference and its scatter those seen so far."""

    seeds: int | None
    """Pairs in all, those at hand included."""
    more: int | None
    """Pairs still to come; 0 where there are enough."""
    difference: float | None
    """Mean of a - b so far, in the unit of the values."""
    sd: float | None
    """Of the differences."""
    level: float
    power: float
    alternative: Alternative
    count: int
    """Pairs so far of which both values were defined."""
    reason: str | None
    """Why there is no number; None when there is one."""

    def __str__(self) -> str:
        test = f"{self.alternative} paired t-test at level {self.level:g}, power {self.power:g}"
        if self.seeds is None or self.more is None:
            return f"{self.reason} ({test})"
        said = f"{self.seeds} seeds settle a difference of {self.difference:.3g} with sd {self.sd:.3g}"
        return f"{said}, {f'{self.more} more' if self.more else 'enough are there'} ({test})"


def mean_sd(values: Sequence[float | None]) -> Summary:
    """Mean and sample sd (n - 1) of the defined values; None and NaN are left out and not counted."""
    known = [value for value in values if is_defined(value)]
    if not known:
        return Summary(None, None, 0, "no value is defined")
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Summary(mean, None, 1, "one value has no standard deviation")
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return Summary(mean, sd, len(known), None)


def paired_t_test(
    a: Sequence[float | None], b: Sequence[float | None], alternative: Alternative = "two-sided"
) -> PairedTest:
    """Paired t-test of ``a`` against ``b``, place by place (``alternative="less"``: a is lower than b).

    Pairs with an undefined side are left out. Fewer than two pairs, or differences that do not vary, have no
    test: ``p`` is then None and ``reason`` says why.
    """
    if alternative not in get_args(Alternative):
        raise ConfigError(f"paired_t_test: alternative is one of {get_args(Alternative)}, got {alternative!r}")
    if len(a) != len(b):
        raise DataError(f"paired_t_test: a has {len(a)} values and b has {len(b)}; pair them by seed first")
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if is_defined(x) and is_defined(y)]
    if len(pairs) < 2:
        return PairedTest(None, None, len(pairs), f"{len(pairs)} pair{'s' * (len(pairs) != 1)}, at least 2 are needed")
    differences = [x - y for x, y in pairs]
    size = max(abs(value) for pair in pairs for value in pair)
    if max(differences) - min(differences) <= SAME * size:
        return PairedTest(None, None, len(pairs), "the differences do not vary over the seeds")
    result = stats.ttest_rel([x for x, _ in pairs], [y for _, y in pairs], alternative=alternative)
    return PairedTest(float(result.statistic), float(result.pvalue), len(pairs), None)


def seeds_to_settle(
    a: Sequence[float | None],
    b: Sequence[float | None],
    *,
    alternative: Alternative = "two-sided",
    level: float = 0.05,
    power: float = 0.8,
) -> Settling:
    """The fewest seeds with which a paired t-test of ``a`` against ``b`` would find the difference seen so far.

    Exact, from the noncentral t distribution: with n pairs the test's statistic has noncentrality √n · difference / sd
    and n - 1 degrees of freedom; the answer is the smallest n that rejects with probability ``power`` or more.

    An estimate for planning: difference and sd are themselves estimates, and of few seeds rough ones. Seeds added
    until a test rejects, with a look after each, reject too often; decide on the number first, then test once. Where
    Holm's correction is applied over m tests, ``level / m`` is the cautious level.

    Returns:
        ``seeds`` is None, with the reason, for fewer than two pairs, differences that do not vary, no difference, one
        in the direction that ``alternative`` does not look at, or more than :data:`MOST_SEEDS`.
    """
    if not (0 < level < 1 and level < power < 1):
        raise ConfigError(f"seeds_to_settle: 0 < level < power < 1, got level {level} and power {power}")
    test = paired_t_test(a, b, alternative)
    pairs = [x - y for x, y in zip(a, b, strict=True) if is_defined(x) and is_defined(y)]
    of = mean_sd(pairs)

    def answer(seeds: int | None, reason: str | None) -> Settling:
        more = None if seeds is None else max(0, seeds - len(pairs))
        return Settling(seeds=seeds, more=more, difference=of.mean, sd=of.sd, level=level, power=power,
                        alternative=alternative, count=len(pairs), reason=reason)  # fmt: skip

    if test.t is None or of.mean is None or of.sd is None:
        return answer(None, test.reason)
    effect = of.mean / of.sd
    if effect == 0:
        return answer(None, "there is no difference so far")
    if (alternative == "less" and effect > 0) or (alternative == "greater" and effect < 0):
        return answer(None, f"the difference so far, {of.mean:.3g}, is not {alternative} than 0")
    if _power(MOST_SEEDS, effect, alternative, level) < power:
        return answer(None, f"more than {MOST_SEEDS} seeds: the difference is {abs(effect):.2g} of its sd")
    low, high = 1, MOST_SEEDS  # power grows with n: too few, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, effect, alternative, level) >= power else (middle, high)
    return answer(high, None)


def _power(pairs: int, effect: float, alternative: Alternative, level: float) -> float:
    """Probability that the t-test on so many pairs rejects, at a true mean of ``effect`` standard deviations."""
    free, shift = pairs - 1, math.sqrt(pairs) * abs(effect)
    edge = stats.t.isf(level if alternative != "two-sided" else level / 2, free)
    right = float(stats.nct.sf(edge, free, shift))
    # Mirrored, not nct.cdf(-edge): that is NaN where it is next to nothing.
    return right + float(stats.nct.sf(edge, free, -shift)) if alternative == "two-sided" else right


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979, Scand. J. Statist. 6).

    The i-th smallest of m is multiplied by m - i + 1; none may fall below the one before it, none passes 1.
    """
    for place, p in enumerate(p_values):
        if not 0 <= p <= 1:
            raise DataError(f"holm: p_values[{place}] = {p} is not in [0, 1]; leave out tests without a p-value")
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def bootstrap(
    statistic: Callable[[npt.NDArray[np.int64]], Floats],
    count: int,
    *,
    covered: float = COVERED,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Floats, Floats] | None:
    """Percentile bootstrap: where a statistic lies when seeds, or people, are drawn again with replacement.

    The percentiles are those of Hesterberg's expanded interval (2015, The American Statistician 69), Φ(∓√(n/(n-1)) t)
    with t of Student's law: plain ones are too narrow for few, and for many they are the same. The interval of a mean
    never reaches outside its values: see :func:`most_covered`.

    Args:
        statistic: from how often each of the ``count`` was drawn (N,) to K values; NaN is an error.
        count: N, what is drawn from, and how often.
        covered: wanted coverage.
        resamples: R.
        seed: of the draws; the same seed gives the same interval.

    Returns:
        Lower and upper ends, each (K,); None for fewer than two, which do not vary.
    """
    if not 0 < covered < 1 or resamples < 1:
        raise ConfigError(f"bootstrap: 0 < covered < 1 and resamples >= 1, got {covered} and {resamples}")
    if count < 2:
        return None
    generator = np.random.default_rng(seed)
    values_RK = np.array(
        [statistic(np.bincount(generator.integers(0, count, count), minlength=count)) for _ in range(resamples)]
    )
    if not np.isfinite(values_RK).all():
        raise DataError("bootstrap: the statistic of a resample is not finite; leave out values that are not defined")
    tail = float(stats.norm.sf(math.sqrt(count / (count - 1)) * stats.t.isf((1 - covered) / 2, count - 1)))
    low_K, high_K = np.quantile(values_RK, (tail, 1 - tail), axis=0)
    return low_K, high_K


def mean_interval(
    values_NK: Floats, *, covered: float = COVERED, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Floats, Floats] | None:
    """:func:`bootstrap` of the mean over N seeds or people, for each of K columns: two ends (K,), or None."""
    count = len(values_NK)
    return bootstrap(
        lambda times_N: times_N @ values_NK / count, count, covered=covered, resamples=resamples, seed=seed
    )


def most_covered(count: int) -> float:
    """How often the range of so many values holds the centre of their (symmetric) law: 1 - 2^(1-n).

    No percentile bootstrap of the mean covers more, whatever was wanted: 5 values at most 94 %, 3 at most 75 %.
    """
    return 1 - 2.0 ** (1 - count)


def is_defined(value: float | None) -> TypeGuard[float]:
    """Neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)
