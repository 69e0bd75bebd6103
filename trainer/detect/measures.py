"""How well one score finds the failures of one model on one set: every number of a row of the report.

Equal scores are never put in order by where they stand in a file: what depends on their order is the mean over all
orders (AURC, budgets, calibration), and a threshold takes them together or not at all (FPR, average precision).

Shapes: N people whose PCK is defined, J joints, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_curve

from alpose.runtime.errors import DataError

from ..measures.metrics import Failure, Judged, augrc, aurc, auroc, correlation, gap_closed
from ..measures.statistics import ece_equal_mass
from .stored import Bools, Floats, SetScores

CATCH = 0.95
"""Share of the failures that a detector must catch before its false alarms are counted."""
BUDGETS = (0.01, 0.05, 0.10)
"""Shares of all people that somebody would look at."""
CHOSEN = 0.10
"""The papers choose 1,000 of LSPET's 10,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """One detector, one base model, one set. Fractions are in [0, 1]; what is not defined is None."""

    auroc: float | None
    """Probability that a failure scores higher than a success, ties half."""
    auprc: float | None
    """Average precision: the area under the precision-recall curve, in steps."""
    aurc: float | None
    """Area under the risk-coverage curve; lower is better."""
    excess_aurc: float | None
    """AURC less that of the best possible order (Geifman et al., ICLR 2019): what the detector itself loses."""
    fpr_at_catch: float | None
    """Share of the successes that are flagged where :data:`CATCH` of the failures are."""
    precision: tuple[float | None, ...]
    """Share of failures among the highest scores, at each of :data:`BUDGETS`."""
    spearman: float | None
    """With the true loss."""
    pearson: float | None
    """With the true loss."""
    calibration_error: float | None
    """Expected calibration error; None where the score is no probability."""
    chosen_pck: float | None
    """PCK of the tenth with the highest scores; lower is better (the papers' table)."""
    gap_closed: float | None
    """How far that lies on the way from the PCK of all (0) to that of the tenth with the lowest PCK (1)."""
    augrc: float | None = None
    """Area under the generalized risk-coverage curve; lower is better. None in files that were written before it."""
    way_to_oracle: float | None = None
    """(AUROC - the best free score's) / (the true loss's AUROC - the best free score's); set by the evaluation."""


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of the people of one set under one base model, those without a PCK left out."""

    judged: Judged
    failed_N: Bools
    true_loss_N: Floats
    pck: float | None
    """Of everybody: what random choice has on average."""
    worst_pck: float | None
    """Of the tenth with the lowest PCK: what an oracle would choose."""

    def __len__(self) -> int:
        return len(self.failed_N)


def truth_of(stored: SetScores, macro: bool, failure: Failure | None = None) -> Truth:
    """The truth about a stored set; ``macro`` as in :class:`~alpose.trainer.measures.metrics.Judged`."""
    counted_N = stored.counted_N
    judged = Judged(stored.right_NJ[counted_N], stored.labelled_NJ[counted_N], macro)
    pck_N, loss_N = judged.image_pck(), stored.true_loss_N[counted_N].astype(np.float64)
    # Few joints give few distinct values: the true loss orders what is equal in PCK.
    tie_N = loss_N / (loss_N.max(initial=0.0) + 1.0) * 1e-3
    worst_pck = chosen_pck(judged, -pck_N + tie_N)
    return Truth(judged, (failure or Failure()).failed(pck_N)[0], loss_N, judged.pck(), worst_pck)


def measure(score_N: Floats, truth: Truth, *, probability: bool = False) -> Measures:
    """Every measure of one score.

    Args:
        score_N: higher = more likely a failure; finite.
        truth: about the same people.
        probability: the score is a probability of failure, so its calibration is measured.

    Raises:
        DataError: scores that are not finite, not one per person, or no probabilities though they are said to be.
    """
    if score_N.shape != (len(truth),) or not np.isfinite(score_N).all():
        bad = int((~np.isfinite(score_N)).sum())
        raise DataError(f"scores of shape {score_N.shape}, {bad} not finite, for {len(truth)} people; give each one")
    score_N, failed_N = score_N.astype(np.float64), truth.failed_N
    area, best = aurc(score_N, failed_N), aurc(failed_N.astype(np.float64), failed_N)
    spearman, pearson = correlation(score_N, truth.true_loss_N)
    pck = chosen_pck(truth.judged, score_N)
    return Measures(
        auroc=auroc(score_N, failed_N),
        auprc=float(average_precision_score(failed_N, score_N)) if failed_N.any() else None,
        aurc=area,
        excess_aurc=None if area is None or best is None else area - best,
        fpr_at_catch=false_alarms(score_N, failed_N),
        precision=tuple(precision_at(score_N, failed_N, budget) for budget in BUDGETS),
        spearman=spearman,
        pearson=pearson,
        calibration_error=ece_equal_mass(score_N, failed_N) if probability else None,
        chosen_pck=pck,
        gap_closed=gap_closed(pck, truth.pck, truth.worst_pck),
        augrc=augrc(score_N, failed_N),
    )


def highest(score_N: Floats, share: float) -> npt.NDArray[np.float64]:
    """Probability (N,) of being among the ``share`` of people with the highest scores, at least one of them.

    1 above the last score that fits, 0 below it, and an equal part for those who have that very score.
    """
    if not len(score_N):
        return np.zeros(0)
    k = max(1, round(share * len(score_N)))
    edge = np.partition(score_N, -k)[-k]
    above_N, tied_N = score_N > edge, score_N == edge
    return above_N + tied_N * ((k - above_N.sum()) / tied_N.sum())


def precision_at(score_N: Floats, failed_N: Bools, share: float) -> float | None:
    """Share of failures among the highest ``share`` of scores, in the mean over all orders of equal scores."""
    if not len(score_N):
        return None
    weight_N = highest(score_N, share)
    return float(weight_N @ failed_N / weight_N.sum())


def chosen_pck(judged: Judged, score_N: Floats, share: float = CHOSEN) -> float | None:
    """PCK of the highest ``share`` of scores: expected right joints over expected joints, as equal scores fall."""
    weight_N1 = highest(score_N, share)[:, None]
    right_J = (weight_N1 * (judged.right_NJ & judged.counts_NJ)).sum(axis=0)
    counts_J = (weight_N1 * judged.counts_NJ).sum(axis=0)
    if not counts_J.any():
        return None
    if not judged.macro:
        return float(right_J.sum() / counts_J.sum())
    return float((right_J[counts_J > 0] / counts_J[counts_J > 0]).mean())


def false_alarms(score_N: Floats, failed_N: Bools, catch: float = CATCH) -> float | None:
    """Share of successes flagged by the highest threshold that flags ``catch`` of the failures; None unless both occur."""
    if failed_N.all() or not failed_N.any():
        return None
    fpr_K, tpr_K, _ = roc_curve(failed_N, score_N, drop_intermediate=False)
    # Shares of a count are compared with a share: a rounding error must not move the threshold.
    return float(fpr_K[np.flatnonzero(tpr_K >= catch - 1e-9)[0]])


def way_to_oracle(value: float | None, free: float | None, oracle: float | None) -> float | None:
    """How far an AUROC lies from the best free score's (0) towards that of the true loss itself (1)."""
    if value is None or free is None or oracle is None or oracle <= free:
        return None
    return (value - free) / (oracle - free)
