"""Measures of keypoints beside PCK: COCO's OKS and average precision, PCKh, and the error of faces by the eyes' distance.

Shapes: N people, J joints, T thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import Skeleton

from ..data.records import PoseData

Array = npt.NDArray[Any]

SIGMAS = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062, "hip": 0.107, "knee": 0.087,
    "ankle": 0.089,
}  # fmt: skip
"""COCO's per-joint deviations (cocodataset.org, keypoint evaluation), by the name without its side."""
OKS_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


def sigmas_of(skeleton: Skeleton) -> npt.NDArray[np.float64]:
    """COCO's deviation of each joint by name, (J,); NaN for joints that COCO does not have, which enter no OKS."""
    words = [name.removeprefix("left_").removeprefix("right_") for name in skeleton.joints]
    return np.array([SIGMAS.get(word, np.nan) for word in words])


def oks(distance_NJ: Array, labelled_NJ: Array, area_N: Array, sigma_J: Array) -> npt.NDArray[np.float64]:
    """Object keypoint similarity of each person, (N,); NaN without a labelled joint that has a sigma.

    ``mean over labelled joints of exp(-d² / (2 · area · (2σ)²))``, as pycocotools computes it.

    Args:
        distance_NJ: predicted to labelled position, in frame pixels.
        labelled_NJ: joints with a label.
        area_N: of the person, in square pixels; COCO takes the segment's, where that is not known the box's stands for it.
        sigma_J: from :func:`sigmas_of`.
    """
    counts_NJ = labelled_NJ & np.isfinite(sigma_J)
    variance_NJ = (2 * np.nan_to_num(sigma_J, nan=1.0)) ** 2 * (area_N[:, None] + np.spacing(1)) * 2
    near_NJ = np.exp(-(np.nan_to_num(distance_NJ, nan=np.inf).astype(np.float64) ** 2) / variance_NJ)
    count_N = counts_NJ.sum(axis=1)
    return np.where(count_N > 0, np.where(counts_NJ, near_NJ, 0).sum(axis=1) / np.maximum(count_N, 1), np.nan)


def oks_of(data: PoseData, distance_NJ: Array, joints: Sequence[int] | None = None) -> npt.NDArray[np.float64] | None:
    """OKS of each person with the box's area in place of the segment's, (N,); None where COCO knows none of the joints.

    Args:
        data: people with their labels.
        distance_NJ: predicted to labelled position, in frame pixels.
        joints: those that ``distance_NJ`` speaks of; all by default.
    """
    order = list(range(len(data.skeleton.joints)) if joints is None else joints)
    sigma_J = sigmas_of(data.skeleton)[order]
    if not np.isfinite(sigma_J).any():
        return None
    side_N2 = data.boxes_N4[:, 2:] - data.boxes_N4[:, :2]
    return oks(distance_NJ, data.labelled_NJ[:, order], side_N2.prod(axis=1), sigma_J)


def average_precision(
    oks_N: Array, score_N: Array, thresholds_T: Sequence[float] | Array = OKS_THRESHOLDS
) -> float | None:
    """COCO's AP of one prediction for each labelled person, mean over the thresholds; None of nobody.

    Args:
        oks_N: of each person's prediction; NaN is left out.
        score_N: by which predictions are ranked, higher is surer.
        thresholds_T: of OKS.
    """
    known_N = np.isfinite(oks_N)
    oks_N, score_N = oks_N[known_N], score_N[known_N]
    if not len(oks_N):
        return None
    order_N = np.argsort(-score_N, kind="mergesort")
    found = []
    for threshold in thresholds_T:
        right_N = np.cumsum(oks_N[order_N] >= threshold)
        recall_N, precision_N = right_N / len(oks_N), right_N / np.arange(1, len(oks_N) + 1)
        precision_N = np.maximum.accumulate(precision_N[::-1])[::-1]
        place = np.searchsorted(recall_N, RECALLS, side="left")
        found.append(np.where(place < len(oks_N), precision_N[np.minimum(place, len(oks_N) - 1)], 0.0).mean())
    return float(np.mean(found))


def pckh(distance_NJ: Array, labelled_NJ: Array, head_N: Array, threshold: float = 0.5) -> float | None:
    """Share of labelled joints within ``threshold`` head sizes (0.6 of the head box's diagonal); None without any."""
    counts_NJ = labelled_NJ & (np.isfinite(head_N) & (head_N > 0))[:, None]
    if not counts_NJ.any():
        return None
    right_NJ = distance_NJ < threshold * 0.6 * np.nan_to_num(head_N)[:, None]
    return float((right_NJ & counts_NJ).sum() / counts_NJ.sum())


def interocular_nme(
    distance_NJ: Array, joints_NJ2: Array, labelled_NJ: Array, eyes: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Mean distance of labelled points over that of the outer corners of the eyes, (N,); NaN where that is not known.

    Raises:
        DataError: ``eyes`` does not name two points.
    """
    left, right = eyes
    if left == right or not all(0 <= eye < joints_NJ2.shape[1] for eye in eyes):
        raise DataError(f"the eyes are two of {joints_NJ2.shape[1]} points, got {eyes}")
    between_N = np.linalg.norm(joints_NJ2[:, left].astype(np.float64) - joints_NJ2[:, right], axis=1)
    known_N = labelled_NJ[:, left] & labelled_NJ[:, right] & (between_N > 0)
    total_N = np.where(labelled_NJ, distance_NJ, 0.0).sum(axis=1) / np.maximum(labelled_NJ.sum(axis=1), 1)
    return np.where(known_N, total_N / np.where(known_N, between_N, 1.0), np.nan)


EYES = {"face-68": (36, 45), "face-468": (33, 263)}
"""Outer corners of the eyes, by the name of a skeleton."""
