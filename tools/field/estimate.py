"""Design-based estimates: what all frames of a fleet were like, from the few that somebody labelled.

Every labelled frame was drawn with a known probability, and the draws were independent (Poisson sampling). The frames
themselves are fixed: that neighbours in a video resemble each other costs nothing here. Estimates of separate strata
are combined through their intervals, so that an interval whose own sample is small and skewed stays honest.

Sources: Horvitz and Thompson (1952); Hájek (1971); variance under Poisson sampling in Särndal, Swensson and Wretman,
*Model Assisted Survey Sampling* (1992), 3.2 and 5.7; the exact binomial interval with the effective sample size of Korn
and Graubard (1998); the combination of intervals (MOVER) of Zou and Donner (2008, sums) and Donner and Zou (2012, ratios).

Shapes: N labelled frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

from alpose.runtime.errors import DataError
from alpose.trainer.measures.statistics import clopper_pearson

Array = npt.NDArray[np.float64]
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float
    n: int
    """Labelled frames that it rests on."""

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f}, n = {self.n})"

    def scaled(self, factor: float) -> Interval:
        """Times a known number, such as a count of frames."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.n)


def mean(value_N: npt.ArrayLike, probability_N: npt.ArrayLike, *, level: float = LEVEL) -> Interval | None:
    """Hájek's mean of values in [0, 1] over all frames; None without labelled frames.

    The interval is Clopper and Pearson's with the effective sample size: it stays inside [0, 1], and does not shrink to a point when
    every labelled frame says the same. Where every frame was labelled (all probabilities 1) it is a point.
    """
    y_N, p_N = _checked(value_N, probability_N)
    count = len(y_N)
    if not count:
        return None
    if (y_N < 0).any() or (y_N > 1).any():
        raise DataError(f"a mean is taken of values in [0, 1], got {y_N.min():g} to {y_N.max():g}")
    weight_N = 1 / p_N
    value = float((weight_N * y_N).sum() / weight_N.sum())
    if (p_N == 1).all():
        return Interval(value, value, value, count)
    spread = value * (1 - value)
    variance = float(((1 - p_N) * weight_N**2 * (y_N - value) ** 2).sum() / weight_N.sum() ** 2)
    variance *= count / max(count - 1, 1)
    # Kish: what weighting alone leaves of the sample.
    effective = float(weight_N.sum() ** 2 / ((1 - p_N) * weight_N**2).sum())
    if count > 1 and variance > 0 and spread > 0:
        effective = spread / variance
        # Student's t in place of the normal: the variance was estimated.
        effective *= (_z(level) / float(t.ppf((1 + level) / 2, count - 1))) ** 2
    low, high = clopper_pearson(value * effective, effective, (1 - level) / 2)
    return Interval(value, min(value, low), max(value, high), count)


def add(parts: Sequence[Interval]) -> Interval:
    """The sum of independent estimates."""
    value = sum(part.value for part in parts)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts))
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts))
    return Interval(value, value - below, value + above, sum(part.n for part in parts))


def share(part: Interval, rest: Interval) -> Interval | None:
    """part / (part + rest) of two independent, non-negative estimates; None where both are zero.

    Such as recall: failures that were flagged, out of all failures.
    """
    if part.value + part.high <= 0 and rest.value + rest.high <= 0:
        return None
    n = part.n + rest.n
    if part.value <= 0 and rest.value <= 0:
        return None
    # By way of the odds rest / part, whose limits are (Donner and Zou, 2012).
    value = part.value / (part.value + rest.value)
    low_odds = _ratio_limit(rest.value, rest.low, part.value, part.high, sign=-1)
    high_odds = _ratio_limit(rest.value, rest.high, part.value, part.low, sign=1)
    return Interval(value, min(value, 1 / (1 + high_odds)), max(value, 1 / (1 + low_odds)), n)


def _ratio_limit(top: float, top_limit: float, bottom: float, bottom_limit: float, *, sign: int) -> float:
    """One limit of top / bottom: the far one for ``sign`` 1, the near one for -1."""
    divisor = bottom_limit * (2 * bottom - bottom_limit)
    product = top * bottom
    root = math.sqrt(max(0.0, product**2 - top_limit * (2 * top - top_limit) * divisor))
    if divisor <= 0:
        # The bottom may be zero, or its interval is so wide that the parabola turns: the plain quotient is on the safe side.
        return top_limit / bottom_limit if bottom_limit > 0 else (math.inf if sign > 0 else 0.0)
    return max(0.0, (product + sign * root) / divisor)


def _checked(value_N: npt.ArrayLike, probability_N: npt.ArrayLike) -> tuple[Array, Array]:
    y_N, p_N = np.asarray(value_N, dtype=np.float64), np.asarray(probability_N, dtype=np.float64)
    if y_N.shape != p_N.shape or y_N.ndim != 1:
        raise DataError(f"values and probabilities must be of one length, got {y_N.shape} and {p_N.shape}")
    if not np.isfinite(y_N).all():
        raise DataError(f"{int((~np.isfinite(y_N)).sum())} of {len(y_N)} values are not finite: leave them out first")
    if not ((p_N > 0) & (p_N <= 1)).all():
        raise DataError("a probability of having been labelled lies in (0, 1]: frames without one cannot be used here")
    return y_N, p_N


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise DataError(f"level must lie between 0 and 1, got {level}")
    return float(norm.ppf((1 + level) / 2))
