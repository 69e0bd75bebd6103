"""Weighted spherical k-means in numpy: groups of embeddings that look alike to a model, more of them where the weight is.

Shapes: N embeddings, D their axes, K clusters, M of one space.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

ROUNDS = 10
"""Of moving the centres; the groups need not have settled."""
PAIRS = 1 << 24
"""Pairs of an embedding and a centre that are compared at once: bounds the memory, 64 MiB."""


def clusters_of(
    embedding_ND: npt.NDArray[np.floating], weight_N: Floats, space_N: Ints, k: int, rng: np.random.Generator
) -> Ints:
    """Cluster of each embedding, (N,), numbered from 0; spaces (bundles) share no cluster, and have clusters by their weight.

    Args:
        embedding_ND: rows of unit length; float16 is read in chunks.
        weight_N: above 0; how much an embedding pulls a centre, and how probably it is one at the start.
        space_N: embeddings of different spaces cannot be compared.
        k: clusters of all spaces together; more where a space would have none.
        rng: draws the first centres.
    """
    cluster_N, first = np.zeros(len(weight_N), dtype=np.int64), 0
    for space in np.unique(space_N):
        row_M = np.flatnonzero(space_N == space)
        share = float(weight_N[row_M].sum(dtype=np.float64) / weight_N.sum(dtype=np.float64))
        count = min(len(row_M), max(1, round(k * share)))
        cluster_N[row_M] = first + _spherical(embedding_ND, weight_N[row_M], row_M, count, rng)
        first += count
    return cluster_N


def _spherical(
    embedding_ND: npt.NDArray[np.floating], weight_M: Floats, row_M: Ints, k: int, rng: np.random.Generator
) -> Ints:
    """k-means by cosine (Dhillon and Modha, 2001): a centre is the weighted mean of its group, drawn to length 1."""
    p_M = weight_M.astype(np.float64)
    start_K = rng.choice(row_M, k, replace=False, p=p_M / p_M.sum())
    centre_KD = np.asarray(embedding_ND[start_K], dtype=np.float32)
    size, label_M = max(1, PAIRS // k), np.zeros(len(row_M), dtype=np.int64)
    for turn in range(ROUNDS + 1):
        sum_KD = np.zeros_like(centre_KD)
        for first in range(0, len(row_M), size):
            part = slice(first, first + size)
            embedding_PD = np.asarray(embedding_ND[row_M[part]], dtype=np.float32)
            label_M[part] = (embedding_PD @ centre_KD.T).argmax(axis=1)
            if turn < ROUNDS:  # the last labels move no centre
                np.add.at(sum_KD, label_M[part], weight_M[part, None] * embedding_PD)
        length_K1 = np.linalg.norm(sum_KD, axis=1, keepdims=True)
        # A centre that nobody is nearest to stays where it is.
        centre_KD = np.where(length_K1 > 0, sum_KD / np.maximum(length_K1, 1e-12), centre_KD)
    return label_M
