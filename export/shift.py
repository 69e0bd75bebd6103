"""What a calibration and its thresholds do on data they were not made for: another domain, or a later day.

Shapes: N people, E pieces of evidence (three).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpose.trainer.data.records import Bools
from alpose.trainer.measures.joint_calibration import JointReport
from alpose.trainer.measures.metrics import auroc
from alpose.trainer.measures.statistics import clopper_pearson, ece_equal_width

from .quality import BINS, CalibrationReport, ReliabilityBin, ece_by_chance, reliability
from .thresholds import check_probabilities


@dataclass(frozen=True, slots=True)
class Catch:
    """One threshold at work."""

    catch: float
    """Share of failures that it was made to catch."""
    threshold: float
    caught: int
    observed: float
    """Share of failures that it did catch."""
    low: float
    high: float
    """Clopper and Pearson's bounds of it, each with the confidence of the threshold."""
    flagged: float
    """Share of all people at or above it."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A calibration at work on data that is not its own."""

    calibrated_on: str
    data: str
    people: int
    failures: int
    ece: float
    ece_by_chance: float
    brier: float
    auroc: float
    bins: tuple[ReliabilityBin, ...]
    catches: tuple[Catch, ...]
    """Thresholds that exist."""
    joints: JointReport | None = None
    """Of the joints' confidence there; None where the bundle gives none."""


def apply(report: CalibrationReport, evidence_N3: npt.NDArray[np.floating], failed_N: Bools, data: str) -> Applied:
    """Measure a finished calibration, with the thresholds it has, on other people.

    Args:
        report: the calibration and its thresholds.
        evidence_N3: of the other people.
        failed_N: who of them failed, by the definition of the report.
        data: name of their dataset.
    """
    return apply_probabilities(report, report.calibration.probability(evidence_N3), failed_N, data)


def apply_probabilities(
    report: CalibrationReport, probability_N: npt.NDArray[np.floating], failed_N: Bools, data: str
) -> Applied:
    """Measure thresholds on the failure probabilities that a bundle itself gives other people; as :func:`apply`."""
    probability_N = check_probabilities(probability_N, failed_N)
    failures = int(failed_N.sum())
    found = []
    for made in report.thresholds:
        if made.threshold is None:
            continue
        flagged_N = probability_N >= made.threshold
        caught = int((flagged_N & failed_N).sum())
        low, high = clopper_pearson(caught, failures, 1 - made.confidence)
        catch = Catch(made.catch, made.threshold, caught, caught / failures, low, high, float(flagged_N.mean()))
        found.append(catch)
    return Applied(
        calibrated_on=report.data, data=data, people=len(failed_N), failures=failures,
        ece=ece_equal_width(probability_N, failed_N, BINS), ece_by_chance=ece_by_chance(probability_N),
        brier=float(((probability_N - failed_N) ** 2).mean()),
        auroc=auroc(probability_N.astype(np.float32), failed_N) or 0.0,
        bins=reliability(probability_N, failed_N), catches=tuple(found),
    )  # fmt: skip
