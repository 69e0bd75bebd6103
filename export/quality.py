"""How far a calibration can be trusted: measured on people that did not fit it.

Shapes: N people, B bins, K points of a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.trainer.data.records import Bools
from alpose.trainer.measures.joint_calibration import JointReport
from alpose.trainer.measures.metrics import Failure, aurc, auroc, risk_coverage
from alpose.trainer.measures.statistics import bin_of_equal_width, clopper_pearson, ece_equal_width

from .calibration import EVIDENCE, Array, Calibration, check_classes, fit, fitting_half
from .thresholds import CATCHES, CONFIDENCE, CatchThreshold, catch_threshold, check_probabilities

BINS = 10
"""Bins of equal width of the reliability diagram and of the expected calibration error."""

HISTOGRAM_BINS = 64
"""Of the histograms of failure probability on [0, 1]; drift tests compare with them, so the number is fixed."""

COVERAGES = 100
"""Points of the risk-coverage curve."""

REPEATS = 1000
"""Draws that tell which calibration error chance alone produces."""

FEW = 30
"""Fewer failures or successes than this on either half are worth a warning."""


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """People whose failure probability lies in [low, high)."""

    low: float
    high: float
    count: int
    failures: int
    mean_probability: float | None
    """What was predicted; None in an empty bin."""
    rate: float | None
    """What came true."""
    rate_low: float | None
    rate_high: float | None
    """Clopper and Pearson's interval of the rate, 90 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """A calibration with everything that was measured about it; goes into a bundle's manifest."""

    data: str
    """Name of the calibration set."""
    failure: Failure
    profile: str
    """Name of the metric profile."""
    definition: str
    """The definition of failure in plain words."""
    calibration: Calibration
    fitted: int
    """People that fitted the calibration; 0 when an existing one was measured on all."""
    fitted_failures: int
    measured: int
    """People that measured it; all numbers below are theirs alone."""
    measured_failures: int
    undefined: int
    """People left out because their labels do not tell whether they failed."""
    ece: float
    """Expected calibration error over ``BINS`` bins: mean |predicted - observed rate|, weighted by count."""
    ece_by_chance: float
    """95th percentile of the error that a perfect calibration with these probabilities shows on as many people."""
    brier: float
    brier_constant: float
    """Of saying the failure rate for everybody."""
    auroc: float
    auroc_alone: dict[str, float]
    """Of each piece of evidence by itself, on the same people."""
    aurc: float
    aurc_oracle: float
    """With all failures ranked last: the best that is possible."""
    aurc_random: float
    """Without any ranking: the failure rate."""
    bins: tuple[ReliabilityBin, ...]
    coverage: tuple[float, ...]
    """Shares of people kept, the most probable failures dropped first."""
    risk: tuple[float, ...]
    """Failure rate among those kept."""
    thresholds: tuple[CatchThreshold, ...]
    histogram: tuple[int, ...]
    """Counts of failure probability over the whole calibration set, ``HISTOGRAM_BINS`` bins on [0, 1]."""
    histogram_failed: tuple[int, ...]
    """The same over measured failures."""
    histogram_fine: tuple[int, ...]
    """The same over measured successes."""
    warnings: tuple[str, ...]
    joints: JointReport | None = None
    """Of the joints' confidence; None in bundles of schema 1."""

    @property
    def failure_rate(self) -> float:
        """Share of failures among the people that measured."""
        return self.measured_failures / self.measured

    def threshold(self, catch: float) -> CatchThreshold:
        """The threshold for a share of failures; an unknown one is an error that lists the known ones."""
        for candidate in self.thresholds:
            if candidate.catch == catch:
                return candidate
        known = ", ".join(f"{threshold.catch:g}" for threshold in self.thresholds)
        raise DataError(f"there is no threshold for catching {catch:g} of the failures; there are: {known}")


def calibrate(
    evidence_N3: npt.NDArray[np.floating],
    failed_N: Bools,
    ids: Sequence[str],
    *,
    defined_N: Bools | None = None,
    data: str,
    failure: Failure,
    profile: str,
    definition: str,
    catches: Sequence[float] = CATCHES,
    confidence: float = CONFIDENCE,
) -> CalibrationReport:
    """Fit on one half of the people and measure on the other.

    Args:
        evidence_N3: from :func:`alpose.export.calibration.evidence`.
        failed_N: who failed.
        ids: decide the half, see :func:`fitting_half`.
        defined_N: of whom it can be said whether they failed; the others are left out and counted.
        data: name of the calibration set.
        failure: the definition that ``failed_N`` follows.
        profile: name of the metric profile.
        definition: the definition in plain words.
        catches: shares of failures to find thresholds for.
        confidence: of those thresholds.

    Raises:
        DataError: a half is empty or has one class, or evidence is not finite.
    """
    fits_N = fitting_half(ids)
    if not len(fits_N) == len(evidence_N3) == len(failed_N):
        raise DataError(f"calibration: {len(evidence_N3)} rows of evidence, {len(failed_N)} failures and {len(fits_N)} "
                        "ids must belong to the same people")  # fmt: skip
    known_N = np.ones(len(fits_N), dtype=np.bool_) if defined_N is None else defined_N
    first_N, second_N = fits_N & known_N, ~fits_N & known_N
    for half_N, what in ((first_N, "the half that fits the calibration"), (second_N, "the half that measures it")):
        check_classes(failed_N[half_N], int(half_N.sum()), what)
    report = measure(
        fit(evidence_N3[first_N], failed_N[first_N]), evidence_N3[second_N], failed_N[second_N], data=data,
        failure=failure, profile=profile, definition=definition, catches=catches, confidence=confidence,
    )  # fmt: skip
    return _with_fit(report, evidence_N3[known_N], failed_N[first_N], int((~known_N).sum()))


def measure(
    calibration: Calibration,
    evidence_N3: npt.NDArray[np.floating],
    failed_N: Bools,
    *,
    data: str,
    failure: Failure,
    profile: str,
    definition: str,
    catches: Sequence[float] = CATCHES,
    confidence: float = CONFIDENCE,
) -> CalibrationReport:
    """What an existing calibration is worth on people that did not fit it."""
    probability_N = check_probabilities(calibration.probability(evidence_N3), failed_N)
    lowest_N = calibration.lowest_probability(evidence_N3)
    risk_K, coverage_K = _risk(probability_N, failed_N)
    rate, count = float(failed_N.mean()), len(failed_N)
    return CalibrationReport(
        data=data, failure=failure, profile=profile, definition=definition, calibration=calibration,
        fitted=0, fitted_failures=0, measured=count, measured_failures=int(failed_N.sum()), undefined=0,
        ece=ece_equal_width(probability_N, failed_N, BINS), ece_by_chance=ece_by_chance(probability_N),
        brier=float(((probability_N - failed_N) ** 2).mean()), brier_constant=rate * (1 - rate),
        auroc=_certain(auroc(probability_N.astype(np.float32), failed_N)),
        auroc_alone={name: _certain(auroc(evidence_N3[:, place].astype(np.float32), failed_N))
                     for place, name in enumerate(EVIDENCE)},
        aurc=_certain(aurc(probability_N.astype(np.float32), failed_N)),
        aurc_oracle=_certain(aurc(failed_N.astype(np.float32), failed_N)), aurc_random=rate,
        bins=reliability(probability_N, failed_N),
        coverage=tuple(coverage_K.tolist()), risk=tuple(risk_K.tolist()),
        thresholds=tuple(catch_threshold(probability_N, failed_N, catch, confidence, lowest_N=lowest_N)
                         for catch in catches),
        histogram=histogram(probability_N), histogram_failed=histogram(probability_N[failed_N]),
        histogram_fine=histogram(probability_N[~failed_N]),
        warnings=_warnings(calibration, failed_N, "measured"),
    )  # fmt: skip


def ece_by_chance(probability_N: Array, bins: int = BINS, repeats: int = REPEATS) -> float:
    """95th percentile of the calibration error when every probability is exactly right; seeded, so repeatable.

    The error of a finite set is never 0: this is what it has to be compared with.
    """
    bin_N, rng = bin_of_equal_width(probability_N, bins), np.random.default_rng(0)
    found = np.empty(repeats)
    for repeat in range(repeats):
        excess_N = probability_N - (rng.random(len(probability_N)) < probability_N)
        found[repeat] = np.abs(np.bincount(bin_N, weights=excess_N, minlength=bins)).sum() / len(probability_N)
    return float(np.quantile(found, 0.95))


def reliability(probability_N: Array, failed_N: Bools, bins: int = BINS) -> tuple[ReliabilityBin, ...]:
    """Predicted probability against what came true, bin by bin."""
    bin_N = bin_of_equal_width(probability_N, bins)
    count_B = np.bincount(bin_N, minlength=bins)
    failures_B = np.bincount(bin_N, weights=failed_N, minlength=bins).astype(np.int64)
    sum_B = np.bincount(bin_N, weights=probability_N, minlength=bins)
    found = []
    for place, (count, failed, total) in enumerate(
        zip(count_B.tolist(), failures_B.tolist(), sum_B.tolist(), strict=True)
    ):
        low, high = clopper_pearson(failed, count, 0.05) if count else (None, None)
        mean, rate = (total / count, failed / count) if count else (None, None)
        found.append(ReliabilityBin(place / bins, (place + 1) / bins, count, failed, mean, rate, low, high))
    return tuple(found)


def histogram(probability_N: Array) -> tuple[int, ...]:
    """Counts in bins of equal width on [0, 1]; a probability of 1 falls into the last."""
    return tuple(np.bincount(bin_of_equal_width(probability_N, HISTOGRAM_BINS), minlength=HISTOGRAM_BINS).tolist())


def _risk(probability_N: Array, failed_N: Bools) -> tuple[Array, Array]:
    """At most ``COVERAGES`` points: failure rate among those kept, and the share kept."""
    risk_N = risk_coverage(probability_N.astype(np.float32), failed_N)
    kept_K = np.unique(np.linspace(1, len(risk_N), COVERAGES).round().astype(int))
    return risk_N[kept_K - 1], kept_K / len(risk_N)


def _with_fit(
    report: CalibrationReport, known_N3: npt.NDArray[np.floating], fitted_M: Bools, undefined: int
) -> CalibrationReport:
    """The report of a fresh calibration: with the half that fitted it."""
    whole = histogram(report.calibration.probability(known_N3))
    warnings = (*_warnings(report.calibration, fitted_M, "fitted"), *report.warnings)
    return replace(report, fitted=len(fitted_M), fitted_failures=int(fitted_M.sum()), undefined=undefined,
                   histogram=whole, warnings=tuple(dict.fromkeys(warnings)))  # fmt: skip


def _warnings(calibration: Calibration, failed_N: Bools, what: str) -> tuple[str, ...]:
    """What a reader should know before trusting the numbers."""
    found = []
    if not calibration.weight_3.any():
        found.append("No evidence speaks for failures: everybody gets the same probability, and it is of no use.")
    for count, noun in ((int(failed_N.sum()), "failures"), (int((~failed_N).sum()), "successes")):
        if count < FEW:
            found.append(f"Only {count} {noun} {what}: the numbers are rough.")
    return tuple(found)


def _certain(value: float | None) -> float:
    """Both classes are there, so a measure is defined; None would be a fault of this file."""
    if value is None:
        raise DataError("a measure of failure detection is not defined although failures and successes are there")
    return value
