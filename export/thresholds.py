"""Thresholds that catch a stated share of failures, with a stated confidence, whatever the distribution.

A threshold is the r-th smallest failure probability among n failures that fitted nothing. The share of *future*
failures at or above it, 1 - F(X_(r)), follows Beta(n - r + 1, r), or lies above that where there are ties: the
one-sided tolerance bound of Wilks (Ann. Math. Statist. 1941), also known as conditional split conformal validity
(Vovk 2012). It reaches ``catch`` with probability P(Binomial(n, 1 - catch) >= r). The largest r for which that is at
least the confidence gives the highest threshold that can be guaranteed. No r does when n is too small, and then there
is no threshold, but a number of failures that would do.

The guarantee is for failures that are drawn like those of the calibration, and for each threshold on its own.

Shapes: N people, M failures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betainc

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.data.records import Bools
from alpose.trainer.measures.statistics import clopper_pearson

from .calibration import check_classes

CATCHES = (0.8, 0.9, 0.95)
CONFIDENCE = 0.9
DIGITS = 6
"""Thresholds are rounded down to this many decimals for people to read; rounding down never lowers the catch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatchThreshold:
    """A threshold on the failure probability: frames at or above it are flagged."""

    catch: float
    """Share of failures that it is meant to catch."""
    confidence: float
    """Probability, over calibration sets, that it does."""
    threshold: float | None
    """None when there are too few failures; ``reason`` then says so."""
    reason: str | None
    failures: int
    """Failures that it was measured on."""
    failures_needed: int
    """The fewest failures with which such a threshold exists."""
    flagged: float | None
    """Share of all people at or above it."""
    caught: int | None
    """How many of the failures are at or above it."""
    observed: float | None
    """``caught`` as a share."""
    low: float | None
    high: float | None
    """Clopper and Pearson's bounds of the true catch, each with ``confidence``. They hold although the threshold was
    read off the same failures: the lower one is what chose the threshold, the upper one lies above the exact one."""


def failures_needed(catch: float, confidence: float) -> int:
    """The fewest failures of which the lowest is a valid threshold: ``1 - catch^n >= confidence``."""
    _check_levels(catch, confidence)
    count = math.ceil(math.log(1 - confidence) / math.log(catch))
    # The logarithms may round either way at a whole number.
    return next(n for n in (count - 1, count, count + 1) if n > 0 and rank(n, catch, confidence) is not None)


def rank(failures: int, catch: float, confidence: float) -> int | None:
    """The largest r with ``P(Binomial(failures, 1 - catch) >= r) >= confidence``; None when not even 1 qualifies.

    The r-th smallest of ``failures`` failure probabilities is the highest threshold that the guarantee allows.
    """
    _check_levels(catch, confidence)
    if failures < 1:
        return None
    rank_R = np.arange(1, failures + 1)
    # P(Binomial(n, p) >= r) is the regularised incomplete beta function I_p(r, n - r + 1); it falls with r.
    count = int((betainc(rank_R, failures - rank_R + 1, 1 - catch) >= confidence).sum())
    return count or None


def catch_threshold(
    probability_N: npt.NDArray[np.floating], failed_N: Bools, catch: float, confidence: float = CONFIDENCE,
    *, lowest_N: npt.NDArray[np.floating] | None = None,
) -> CatchThreshold:  # fmt: skip
    """The highest threshold that catches a share of failures with a confidence, also in an engine that rounds.

    Args:
        probability_N: failure probabilities of people that did not fit the calibration.
        failed_N: which of them failed.
        catch: share of failures to catch, in (0, 1).
        confidence: in [0.5, 1).
        lowest_N: the least that an engine may compute in place of each probability; by default no engine rounds.
    """
    probability_N = check_probabilities(probability_N, failed_N)
    failure_M = np.sort(probability_N[failed_N])
    lowest_M = failure_M if lowest_N is None else np.sort(lowest_N[failed_N])
    place, needed = rank(len(failure_M), catch, confidence), failures_needed(catch, confidence)
    common: dict[str, Any] = {
        "catch": catch,
        "confidence": confidence,
        "failures": len(failure_M),
        "failures_needed": needed,
    }
    if place is None:
        reason = (f"{len(failure_M)} failures were measured and {needed} are needed to promise {100 * catch:g} % with "
                  f"{100 * confidence:g} % confidence")  # fmt: skip
        return CatchThreshold(**common, threshold=None, reason=reason, flagged=None, caught=None, observed=None,
                              low=None, high=None)  # fmt: skip
    threshold = math.floor(lowest_M[place - 1] * 10**DIGITS) / 10**DIGITS
    caught = int((failure_M >= threshold).sum())
    low, high = clopper_pearson(caught, len(failure_M), 1 - confidence)
    return CatchThreshold(
        **common, threshold=threshold, reason=None, flagged=float((probability_N >= threshold).mean()), caught=caught,
        observed=caught / len(failure_M), low=low, high=high,
    )  # fmt: skip


def check_probabilities(probability_N: npt.NDArray[np.floating], failed_N: Bools) -> npt.NDArray[np.float64]:
    """As float64; refuses what is not a probability, and sets that are empty or of one class."""
    values_N = np.asarray(probability_N, dtype=np.float64)
    if values_N.ndim != 1:
        raise DataError(f"failure probabilities must be one number per person, got shape {values_N.shape}")
    check_classes(failed_N, len(values_N), "measuring the calibration")
    bad_N = ~((values_N >= 0) & (values_N <= 1))
    if bad_N.any():
        raise DataError(f"{int(bad_N.sum())} of {len(values_N)} failure probabilities are not in [0, 1], first "
                        f"{values_N[bad_N][0]} in row {int(np.flatnonzero(bad_N)[0])}")  # fmt: skip
    return values_N


def _check_levels(catch: float, confidence: float) -> None:
    if not 0 < catch < 1 or not 0.5 <= confidence < 1:
        raise ConfigError(f"catch must lie in (0, 1) and confidence in [0.5, 1), got {catch} and {confidence}")
