"""Statistics over the seeds of a benchmark: mean and sd, the paired t-test, Holm's correction.

A value that is not defined is None, with the reason beside it; NaN never leaves this file.

Shapes: none; everything here is a handful of plain floats, one per seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeGuard, get_args

from scipy import stats

from alpose.runtime.errors import ConfigError, DataError

Alternative = Literal["two-sided", "less", "greater"]

SAME = 1e-12
"""Differences that vary by less than this share of the values are rounding, not variance."""


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


def is_defined(value: float | None) -> TypeGuard[float]:
    """Neither None nor NaN nor infinite."""
    return value is not None and math.isfinite(value)
