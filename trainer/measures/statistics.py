"""Statistics: mean and sd, the paired t-test, Holm's correction, seeds still to run, the bootstrap, the interval of a
share, monotone logistic regression, and how well probabilities are calibrated.

A value that is not defined is None, with the reason beside it; NaN never leaves this file.

Shapes: a handful of plain floats, one per seed; for the bootstrap N seeds or people, K points of a curve, R resamples;
for probabilities N people, F pieces of evidence, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from alpose.runtime.errors import ConfigError, DataError

Alternative = Literal["two-sided", "less", "greater"]
Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

LEVEL = 0.05
"""Of the tests, unless somebody says otherwise; the papers have 0.1."""
COVERED = 0.95
"""Of the bootstrap intervals."""
RESAMPLES = 2000

SAME = 1e-12
"""Differences that vary by less than this share of the values are rounding, not variance."""

MOST_SEEDS = 10_000
"""A difference that wants more is not going to be settled by seeds."""

BINS = 15
"""Of a calibration error."""

LOGISTIC_RIDGE = 1e-3
"""Weight of the squared slopes, per person: where evidence parts failures from successes entirely, slopes stay finite."""


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
    values_RK = np.array([statistic(times_N) for times_N in draws(count, resamples, np.random.default_rng(seed))])
    if not np.isfinite(values_RK).all():
        raise DataError("bootstrap: the statistic of a resample is not finite; leave out values that are not defined")
    tail = float(stats.norm.sf(math.sqrt(count / (count - 1)) * stats.t.isf((1 - covered) / 2, count - 1)))
    low_K, high_K = np.quantile(values_RK, (tail, 1 - tail), axis=0)
    return low_K, high_K


def draws(count: int, resamples: int, generator: np.random.Generator) -> Iterator[npt.NDArray[np.int64]]:
    """Yield how often each of so many is drawn (N,), when as many are drawn with replacement; R times."""
    for _ in range(resamples):
        yield np.bincount(generator.integers(0, count, count), minlength=count)


def percentiles(value_R: Floats, covered: float = COVERED) -> tuple[float, float] | None:
    """Return the plain percentile interval over the resamples that are defined; None where none is."""
    known_R = value_R[np.isfinite(value_R)]
    if not len(known_R):
        return None
    low, high = np.quantile(known_R, [(1 - covered) / 2, (1 + covered) / 2])
    return float(low), float(high)


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


# --- Shares and probabilities


def clopper_pearson(successes: float, trials: float, tail: float) -> tuple[float, float]:
    """Return bounds of a share, each wrong with at most the probability ``tail`` (Clopper and Pearson, Biometrika 1934).

    Counts need not be whole: weighted draws have an effective number of their own (Korn and Graubard, 1998).
    """
    if not 0 <= successes <= trials or trials <= 0:
        raise DataError(f"an interval needs 0 <= successes <= trials and a trial, got {successes} of {trials}")
    low = special.betaincinv(successes, trials - successes + 1, tail) if successes > 0 else 0.0
    high = special.betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Logistic:
    """``sigmoid(Σ slope · evidence + bias)`` with slopes from 0 up."""

    slope_F: npt.NDArray[np.float64]
    bias: float

    def __call__(self, evidence_NF: Floats) -> npt.NDArray[np.float64]:
        """Probability of failure, (N,)."""
        return np.asarray(special.expit(evidence_NF @ self.slope_F + self.bias), dtype=np.float64)


def fit_logistic(evidence_NF: Floats, failed_N: Bools, *, least: float = 0.0) -> Logistic:
    """Maximum likelihood with slopes that are not negative, by L-BFGS-B on standardised evidence.

    Two imagined people are added, a failure with the worst evidence that was seen and a success with the best: where
    everybody failed, or nobody did, there is an answer all the same.

    Args:
        evidence_NF: of people whose truth is known.
        failed_N: who failed.
        least: slope of standardised evidence, at least; above 0 the order of a single piece of evidence is kept even
            where it points the wrong way.

    Raises:
        DataError: there is nobody, or the evidence is not finite.
    """
    if not len(evidence_NF) or not np.isfinite(evidence_NF).all():
        raise DataError(f"a probability of failure needs finite evidence of people, got that of {len(evidence_NF)}")
    evidence_NF = np.concatenate([evidence_NF, evidence_NF.max(axis=0)[None], evidence_NF.min(axis=0)[None]])
    failed_N = np.append(failed_N, [True, False])
    mean_F, deviation_F = evidence_NF.mean(axis=0), np.maximum(evidence_NF.std(axis=0), 1e-12)
    # What is the same for everybody says nothing; rounding in its mean must not be blown up to evidence.
    deviation_F[np.ptp(evidence_NF, axis=0) == 0] = np.inf
    x_NF = ((evidence_NF - mean_F) / deviation_F).astype(np.float64)
    sign_N = np.where(failed_N, 1.0, -1.0)

    def loss(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        margin_N = sign_N * (x_NF @ parameters[:-1] + parameters[-1])
        pull_N = -sign_N * special.expit(-margin_N)
        gradient = np.append(x_NF.T @ pull_N / len(x_NF) + 2 * LOGISTIC_RIDGE * parameters[:-1], pull_N.mean())
        return float(np.logaddexp(0, -margin_N).mean() + LOGISTIC_RIDGE * (parameters[:-1] ** 2).sum()), gradient

    start = np.zeros(x_NF.shape[1] + 1)
    bounds = [(least, None)] * x_NF.shape[1] + [(None, None)]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    slope_F = found.x[:-1] / deviation_F
    return Logistic(slope_F, float(found.x[-1] - mean_F @ slope_F))


def bins_of_equal_mass(
    probability_N: Floats, failed_N: Bools, bins: int = BINS
) -> tuple[Doubles, Doubles, npt.NDArray[np.int64]]:
    """Return mean probability (B,), share of failures (B,) and people (B,) of bins that hold equally many people.

    Equal probabilities that fall into two bins bring their mean share of failures into both. Fewer people than bins
    make a bin each.

    Raises:
        DataError: a value outside [0, 1].
    """
    wrong_N = (probability_N < 0) | (probability_N > 1)
    if wrong_N.any():
        raise DataError(
            f"{int(wrong_N.sum())} of {len(wrong_N)} scores are not probabilities (first "
            f'{probability_N[wrong_N][0]:g}); calibrate them, or set "probability": false for this detector'
        )
    value_G, group_N, size_G = np.unique(probability_N, return_inverse=True, return_counts=True)
    rate_G = np.bincount(group_N, weights=failed_N) / size_G
    value_N, rate_N = np.repeat(value_G.astype(np.float64), size_G), np.repeat(rate_G, size_G)
    parts = [part for part in np.array_split(np.arange(len(value_N)), bins) if len(part)]
    return (
        np.array([value_N[part].mean() for part in parts]),
        np.array([rate_N[part].mean() for part in parts]),
        np.array([len(part) for part in parts], dtype=np.int64),
    )


def bin_of_equal_width(probability_N: Floats, bins: int) -> npt.NDArray[np.int64]:
    """Return everybody's bin of equal width on [0, 1]; a probability of 1 falls into the last."""
    return np.minimum((probability_N * bins).astype(np.int64), bins - 1)


def ece_equal_mass(probability_N: Floats, failed_N: Bools, bins: int = BINS) -> float | None:
    """Return the expected calibration error over bins of equal mass: mean over people of |mean probability - failure rate|.

    Nguyen and O'Connor, EMNLP 2015: with bins of equal mass no bin rests on a handful of people. None of nobody.
    """
    if not len(probability_N):
        return None
    mean_B, rate_B, count_B = bins_of_equal_mass(probability_N, failed_N, bins)
    return float((count_B * np.abs(mean_B - rate_B)).sum() / count_B.sum())


def ece_equal_width(probability_N: Floats, failed_N: Bools, bins: int) -> float:
    """Return the expected calibration error over bins of equal width (Guo et al., ICML 2017)."""
    excess_B = np.bincount(bin_of_equal_width(probability_N, bins), weights=probability_N - failed_N, minlength=bins)
    return float(np.abs(excess_B).sum() / len(probability_N))
