"""Samplers: pure functions that choose k rows from arrays. No model, file or dataset enters.

Shapes: N unlabelled people, L labelled people, D embedding, M = k selected rows, in the order they were picked.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError

Method = Literal[
    "random", "coreset", "entropy", "multipeak", "ll", "ll-gap", "ll++", "ll++conv", "oracle-loss", "oracle-pck"
]
METHODS: tuple[Method, ...] = get_args(Method)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def at_random(count: int, k: int, rng: np.random.Generator) -> Rows:
    """k of ``count`` rows, uniform without replacement."""
    _check_budget(k, count)
    return rng.permutation(count)[:k].astype(np.int64)


def top(score_N: Floats, k: int) -> Rows:
    """The k highest scores, highest first; equal scores in the order of their rows.

    -inf marks rows that may not be chosen; NaN is an error.
    """
    if np.isnan(score_N).any():
        rows = np.flatnonzero(np.isnan(score_N))
        raise DataError(f"{len(rows)} of {len(score_N)} scores are NaN (first at row {rows[0]}); nothing was selected")
    _check_budget(k, int((score_N > -np.inf).sum()))
    return np.argsort(-score_N, kind="stable")[:k].astype(np.int64)


def k_centre(embeddings_ND: Floats, labelled_LD: Floats, k: int) -> tuple[Rows, Floats]:
    """Greedy k-centre (coreset, Sener and Savarese 2018): again and again the point farthest from all centres.

    The labelled set is the first set of centres. Exact, Euclidean, and a 2-approximation of the best cover. One
    matrix-vector product per pick in float32, which tells distances apart down to a thousandth of the pool's spread;
    the distance matrix never exists.

    Returns:
        The rows picked, and every row's distance to the labelled set (N,), before any pick.
    """
    _check_budget(k, len(embeddings_ND))
    if not len(labelled_LD):
        raise DataError("coreset needs at least one labelled embedding to start from")
    if not (np.isfinite(embeddings_ND).all() and np.isfinite(labelled_LD).all()):
        raise DataError("coreset: an embedding is not finite; nothing was selected")
    # Centred, because ‖a‖² - 2ab + ‖b‖² loses its digits when all points lie far from the origin.
    centre_D = embeddings_ND.mean(axis=0)
    points_ND = np.ascontiguousarray(embeddings_ND - centre_D, dtype=np.float32)
    square_N = np.einsum("nd,nd->n", points_ND, points_ND)

    def square_distance(centre_D: Floats) -> Floats:
        return np.asarray(np.maximum(square_N - 2 * (points_ND @ centre_D) + centre_D @ centre_D, 0), dtype=np.float32)

    nearest_N = np.full(len(points_ND), np.inf, dtype=np.float32)
    for start_D in (labelled_LD - centre_D).astype(np.float32):
        np.minimum(nearest_N, square_distance(start_D), out=nearest_N)
    before_N = np.sqrt(nearest_N)
    picks_M = np.empty(k, dtype=np.int64)
    for place in range(k):
        pick = int(nearest_N.argmax())
        picks_M[place] = pick
        np.minimum(nearest_N, square_distance(points_ND[pick]), out=nearest_N)
        nearest_N[pick] = -np.inf  # duplicates of a pick stay eligible at distance 0; the pick itself does not
    return picks_M, before_N


def _check_budget(k: int, available: int) -> None:
    if k < 1 or k > available:
        raise ConfigError(f"cannot select {k} from a pool of {available}: lower --budget or --stages")
