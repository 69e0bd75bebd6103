"""How well a number for each joint tells which joints are wrong, and how far it can be taken for a probability.

Shapes: M people, J joints, L labelled joints of people, K labels of one joint, B bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from alpose.runtime.errors import DataError

from .keypoint_measures import average_precision as average_precision_of_poses
from .metrics import auroc, correlation
from .statistics import bin_of_equal_width, ece_equal_width

Bools = npt.NDArray[np.bool_]

BINS = 10
"""Bins of equal width of the calibration error and of the reliability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JointMeasures:
    """Of one joint, or of all together; None where it cannot be said."""

    name: str
    """Of the joint; of all together ``all``."""
    measured: int
    """Labelled joints."""
    wrong: int
    auroc: float | None
    """Of a wrong joint, by the lowest number."""
    auprc: float | None
    """Average precision of the wrong joints."""
    ece: float | None
    """Expected calibration error over :data:`BINS` bins of equal width; None where the number is no probability."""
    predicted: tuple[float | None, ...] = ()
    """Mean probability in each bin; None in an empty one. Without a probability there are no bins."""
    observed: tuple[float | None, ...] = ()
    """Share of joints that are right there."""
    counts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonMeasures:
    """The joints together and one by one, and what their mean says of a person."""

    together: JointMeasures
    joints: tuple[JointMeasures, ...]
    correlation_pck: float | None
    """Spearman's, of a person's mean over joints with the share of joints that are right."""
    correlation_oks: float | None = None
    """The same with the person's OKS, of the mean over all joints; None where there is no OKS, as of older files."""
    ap: float | None = None
    """COCO's average precision of the poses, one a person, ranked by that mean."""


def measure_joints(
    confidence_MJ: npt.NDArray[np.floating[Any]], right_MJ: Bools, counts_MJ: Bools, names: Sequence[str], *,
    probability: bool = True, oks_M: npt.NDArray[np.floating[Any]] | None = None,
) -> PersonMeasures:  # fmt: skip
    """Every measure of numbers that are higher where a joint is more probably right.

    Args:
        confidence_MJ: the numbers; probabilities of being right, unless ``probability`` says that they are none.
        right_MJ: whether each joint was right.
        counts_MJ: joints of which that can be said.
        names: of the joints.
        probability: whether their calibration is measured.
        oks_M: object keypoint similarity of each person; NaN leaves a person out.

    Raises:
        DataError: no joint is labelled.
    """
    if not counts_MJ.any():
        raise DataError("joint calibration: no joint of the people that measure it is labelled")
    some_M = counts_MJ.any(axis=1)
    # Whoever ranks poses does not know which joints are labelled: for OKS all of them count.
    sure_M = confidence_MJ.mean(axis=1)
    mean_M, pck_M = (_mean(value_MJ, counts_MJ)[some_M] for value_MJ in (confidence_MJ, right_MJ))
    return PersonMeasures(
        together=_measure("all", confidence_MJ[counts_MJ], right_MJ[counts_MJ], probability),
        joints=tuple(_measure(name, confidence_MJ[counts_M, joint], right_MJ[counts_M, joint], probability)
                     for joint, (name, counts_M) in enumerate(zip(names, counts_MJ.T, strict=True))),
        correlation_pck=correlation(mean_M, pck_M)[0],
        correlation_oks=None if oks_M is None else correlation(sure_M, oks_M)[0],
        ap=None if oks_M is None else average_precision_of_poses(oks_M, sure_M),
    )  # fmt: skip


def average_precision(score_L: npt.NDArray[np.floating[Any]], wrong_L: Bools) -> float | None:
    """Area under the precision-recall curve of finding the wrong ones by the highest score; None unless both occur."""
    if not wrong_L.any() or wrong_L.all():
        return None
    return float(average_precision_score(wrong_L, score_L))


def _measure(name: str, sure_K: npt.NDArray[np.floating[Any]], right_K: Bools, probability: bool) -> JointMeasures:
    predicted: tuple[float | None, ...] = ()
    observed: tuple[float | None, ...] = ()
    counts: tuple[int, ...] = ()
    if probability:
        bin_K = bin_of_equal_width(sure_K, BINS)
        count_B = np.bincount(bin_K, minlength=BINS)
        sums = (np.bincount(bin_K, weights=weight, minlength=BINS) for weight in (sure_K, right_K))
        predicted, observed = (
            tuple(float(total / count) if count else None for total, count in zip(sum_B, count_B, strict=True))
            for sum_B in sums
        )
        counts = tuple(count_B.tolist())
    return JointMeasures(
        name=name, measured=len(right_K), wrong=int((~right_K).sum()), auroc=auroc(-sure_K, ~right_K),
        auprc=average_precision(-sure_K, ~right_K),
        ece=ece_equal_width(sure_K, right_K, BINS) if probability and len(right_K) else None,
        predicted=predicted, observed=observed, counts=counts,
    )  # fmt: skip


def _mean(value_MJ: npt.NDArray[Any], counts_MJ: Bools) -> npt.NDArray[np.float64]:
    return np.asarray((value_MJ * counts_MJ).sum(axis=1) / np.maximum(counts_MJ.sum(axis=1), 1), dtype=np.float64)
