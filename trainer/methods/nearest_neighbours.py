"""For some people of a pool, the labelled people nearest to them, with pictures: the EGL++ paper's Fig. 3.

Those are the first that a method selected, and those whose score is the lowest of all: the two ends of its ranking.

Shapes: N people of the pool, L labelled people, D embedding, Q people looked at, K neighbours of each, U distinct
neighbours, J joints, S crop side.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import torch

from ..cycles.results import Lookalikes
from ..data.crops import Crops
from ..data.records import Floats
from ..scoring import Scored
from .catalog import RANDOM
from .egl import can_be_neighbour, embedding_of
from .neighbour_weights import by_affinity, by_reconstruction
from .options import EglConfig
from .selection import Selection

FIRST, LAST, NEAR = 6, 2, 5
"""People who were selected first, people with the lowest scores, and neighbours of each."""
SIDE_PX = 128
"""Largest side of a crop that is kept: 38 of them are 1.9 MB at most."""


def nearest_neighbours(
    method: str, crops: Crops, pool: Scored, labelled: Crops, labelled_scored: Scored, selection: Selection,
    config: EglConfig,
) -> Lookalikes:  # fmt: skip
    """Pictures of some people and of their nearest labelled ones.

    Nearest is by the embedding that ``egl++`` is set to, for all methods alike; ``egl++`` itself orders and weighs
    neighbours by its own affinities (``egl++-lle`` by its weights). People without a labelled joint in view are
    nobody's neighbours.
    """
    usable_M = np.flatnonzero(can_be_neighbour(labelled))
    first_M = selection.rows_M[:FIRST]
    rows_Q = np.concatenate([first_M, _last(method, selection, len(first_M))])
    row_QK, distance_QK, weight_QK = _near(
        method, embedding_of(pool, config)[rows_Q], embedding_of(labelled_scored, config)[usable_M], config
    )
    rows_U, place = np.unique(row_QK, return_inverse=True)
    near = labelled.subset(usable_M[rows_U])
    small_QSS3, scale = _small(crops.read_bare(rows_Q))
    near_USS3, _ = _small(near.read_bare(np.arange(len(near))))
    return Lookalikes(
        ids=tuple(crops.data.ids[row] for row in rows_Q), first=len(first_M), crops_QSS3=small_QSS3,
        true_QJ2=_scaled(crops.joints_NJ2[rows_Q], scale), labelled_QJ=crops.labelled_NJ[rows_Q],
        predicted_QJ2=_scaled(pool.predicted_NJ2[rows_Q], scale), score_Q=selection.score_N[rows_Q],
        row_QK=place.reshape(row_QK.shape), distance_QK=distance_QK, weight_QK=weight_QK,
        near_ids=near.data.ids, near_crops_USS3=near_USS3, near_true_UJ2=_scaled(near.joints_NJ2, scale),
        near_labelled_UJ=near.labelled_NJ, embedding=config.embedding, skeleton=crops.data.skeleton,
    )  # fmt: skip


def _last(method: str, selection: Selection, first: int) -> npt.NDArray[np.int64]:
    """Rows with the lowest finite scores, the lowest first; none of what was selected, and none for chance."""
    score_N = selection.score_N.astype(np.float64)
    score_N[selection.rows_M] = np.inf
    score_N[~np.isfinite(score_N)] = np.inf
    open_ = 0 if method == RANDOM else min(LAST, first, int(np.isfinite(score_N).sum()))
    return np.argsort(score_N, kind="stable")[:open_].astype(np.int64)


def _near(
    method: str, point_QD: Floats, labelled_LD: Floats, config: EglConfig
) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Rows of the labelled set, distances and weights, each (Q, K), the nearest (or heaviest) first."""
    # One person at a time: all differences at once are large where thousands are labelled.
    distance_QL = np.array([np.linalg.norm(labelled_LD - point_D, axis=1) for point_D in point_QD])
    weight_QL = np.full(distance_QL.shape, np.nan, dtype=np.float32)
    row_QK = np.argsort(distance_QL, axis=1, kind="stable")[:, :NEAR]
    points, labelled = torch.from_numpy(point_QD), torch.from_numpy(labelled_LD)
    if method == "egl++":
        own = by_affinity(points, labelled, perplexity=config.perplexity, count=config.neighbours)
    elif method == "egl++-lle":
        own = by_reconstruction(points, labelled, count=config.neighbours)
    else:
        own = None
    if own is not None:
        row_QK = own.row_NK[:, :NEAR].numpy()
        np.put_along_axis(weight_QL, row_QK, own.weight_NK[:, :NEAR].numpy().astype(np.float32), axis=1)
    return row_QK, np.take_along_axis(distance_QL, row_QK, 1), np.take_along_axis(weight_QL, row_QK, 1)


def _small(crops_MSS3: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], float]:
    """Crops of at most :data:`SIDE_PX`, and what they were multiplied by."""
    side = crops_MSS3.shape[1]
    if side <= SIDE_PX or not len(crops_MSS3):
        return crops_MSS3, 1.0
    shrunk = [cv2.resize(crop_SS3, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA) for crop_SS3 in crops_MSS3]
    return np.stack(shrunk), SIDE_PX / side


def _scaled(joints_MJ2: Floats, scale: float) -> Floats:
    """Pixels of the smaller crop: the centre of the first pixel is at 0, its corner at -½."""
    return ((joints_MJ2 + 0.5) * scale - 0.5).astype(np.float32)
