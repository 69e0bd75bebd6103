"""Greedy choice by value times distance, exact, over a million embeddings.

A frame is worth its weight times its distance to all that is chosen already, times what its device is still due. All
three only shrink while frames are chosen, so that a value that was computed earlier is an upper bound of what it is
now: only frames whose bound exceeds the best value known are looked at again (lazy greedy; Minoux, 1978). The choice is
that of the plain loop, which stands in the tests.

Shapes: N candidates, D embedding, K chosen, M looked at again, V devices.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

FARTHEST = 2.0
"""Distance to an empty choice, and the largest there is."""
UNRELATED = 1.0
"""Distance between embeddings of different bundles: their axes mean different things."""
TYPICAL_PAIRS = 4_000
"""Random pairs that tell how far apart the frames of a bundle usually are."""
CHUNK = 65_536
"""Candidates whose distances are computed at once: bounds the memory."""
TOP = 512
"""Frames with the highest bounds that are looked at before the others."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One chosen candidate."""

    row: int
    distance: float
    """To the nearest frame chosen before it."""


def typical_distances(embedding_ND: npt.NDArray[np.floating], space_N: Ints) -> Floats:
    """Median cosine distance of two random frames, by space; 1 where there are no two.

    One net spreads its embeddings over the sphere, another keeps them in a narrow cone: what is near can only be said
    beside what is usual.
    """
    spaces = int(space_N.max()) + 1 if len(space_N) else 0
    typical_S = np.ones(spaces, dtype=np.float32)
    rng = np.random.default_rng(0)
    for space in range(spaces):
        row_M = np.flatnonzero(space_N == space)
        if len(row_M) < 2:
            continue
        a_P, b_P = (np.asarray(embedding_ND[rng.choice(row_M, TYPICAL_PAIRS)], dtype=np.float32) for _ in range(2))
        distance_P = 1.0 - (a_P * b_P).sum(axis=1)
        # A frame beside itself says nothing.
        apart_P = distance_P[distance_P > 1e-3 * max(float(distance_P.max()), 1e-6)]
        if len(apart_P):
            typical_S[space] = max(float(np.median(apart_P)), 1e-6)
    return typical_S


class Nearest:
    """Distance of every candidate to the nearest chosen frame, brought up to date only where it is asked for.

    A distance is the cosine distance over what is typical in its space, and at most :data:`FARTHEST`.

    Args:
        embedding_ND: rows of unit length; float16 is read in chunks.
        space_N: embeddings of different spaces (bundles) are :data:`UNRELATED`.
        typical_S: see :func:`typical_distances`; by default that of the candidates.
    """

    def __init__(self, embedding_ND: npt.NDArray[np.floating], space_N: Ints, typical_S: Floats | None = None) -> None:
        self._embedding_ND, self._space_N = embedding_ND, space_N
        self._typical_S = typical_distances(embedding_ND, space_N) if typical_S is None else typical_S
        spaces = int(space_N.max()) + 1 if len(space_N) else 0
        self._chosen: list[list[Floats]] = [[] for _ in range(spaces)]
        self._count = 0
        self._seen_N = np.zeros(len(space_N), dtype=np.int32)
        """How many frames of its own space a candidate has been compared with."""
        self._others_N = np.zeros(len(space_N), dtype=np.bool_)
        """Whether anything of another space had been chosen by then."""
        self.distance_N: Floats = np.full(len(space_N), FARTHEST, dtype=np.float32)

    def add(self, embedding_D: npt.NDArray[np.floating], space: int) -> None:
        """Choose a frame; it need not be a candidate."""
        while space >= len(self._chosen):
            self._chosen.append([])
        self._chosen[space].append(np.asarray(embedding_D, dtype=np.float32))
        self._count += 1

    def is_fresh(self, row_M: Ints) -> npt.NDArray[np.bool_]:
        """Whether these distances are of today."""
        length_S = np.array([len(chosen) for chosen in self._chosen], dtype=np.int32)
        space_M = self._space_N[row_M]
        alone_M = self._count == length_S[space_M]
        return np.asarray((self._seen_N[row_M] == length_S[space_M]) & (self._others_N[row_M] | alone_M))

    def refresh(self, row_M: Ints) -> None:
        """Bring these distances up to date."""
        for rows in _chunks(row_M):
            for space in np.unique(self._space_N[rows]):
                here = rows[self._space_N[rows] == space]
                chosen = self._chosen[space]
                first = int(self._seen_N[here].min())
                if self._count > len(chosen):
                    self.distance_N[here] = np.minimum(self.distance_N[here], UNRELATED)
                    self._others_N[here] = True
                if first < len(chosen):
                    similar_MK = np.asarray(self._embedding_ND[here], dtype=np.float32) @ np.stack(chosen[first:]).T
                    distance_M = (1.0 - similar_MK.max(axis=1)) / self._typical_S[space]
                    self.distance_N[here] = np.minimum(self.distance_N[here], distance_M)
                self._seen_N[here] = len(chosen)

    def count_below(self, limit: float, chosen: Collection[int], row_M: Ints) -> int:
        """Candidates that were found to be nearer than ``limit`` to the choice, without the chosen themselves.

        Those whose value never came near enough to be compared are not among them.
        """
        below_M = np.flatnonzero(self.distance_N < limit)
        return sum(int(row_M[row]) not in chosen for row in below_M)


def greedy(
    weight_N: Floats,
    near: Nearest,
    embedding_ND: npt.NDArray[np.floating],
    space_N: Ints,
    device_N: Ints,
    k: int,
    *,
    min_distance: float = 0.0,
    fair: bool = True,
    spread: float = 1.0,
) -> Iterator[Pick]:
    """Choose up to ``k`` candidates, the most valuable first.

    Args:
        weight_N: worth of each candidate by itself, 0 or more; 0 is never chosen.
        near: distances; what was chosen in earlier batches is in it already.
        embedding_ND: rows of unit length.
        space_N: see :class:`Nearest`.
        device_N: 0 to V - 1.
        k: how many.
        min_distance: a candidate nearer than this to the choice is a duplicate.
        fair: whether a device is worth less with every frame that it has been given: by 1 / (1 + given / (k / V)).
        spread: power of the distance in the value; with 0 it matters for near-duplicates alone.
    """
    devices = int(device_N.max()) + 1 if len(device_N) else 1
    due = k / devices
    factor_V = np.ones(devices, dtype=np.float32)
    given_V = np.zeros(devices, dtype=np.int64)
    open_N = weight_N > 0
    base_N = np.where(open_N, weight_N * near.distance_N**spread, -1.0).astype(np.float32)
    for _ in range(min(k, int(open_N.sum()))):
        row = _best(base_N, factor_V, weight_N, near, device_N, min_distance, spread)
        if row is None:
            return
        yield Pick(row, float(near.distance_N[row]))
        near.add(embedding_ND[row], int(space_N[row]))
        base_N[row] = -1.0
        if fair:
            given_V[device_N[row]] += 1
            factor_V[device_N[row]] = 1 / (1 + given_V[device_N[row]] / due)


def _best(
    base_N: Floats,
    factor_V: Floats,
    weight_N: Floats,
    near: Nearest,
    device_N: Ints,
    min_distance: float,
    spread: float,
) -> int | None:
    """The candidate of highest value now; looks again at those whose bound is above the best value known."""
    bound_N = base_N * factor_V[device_N]
    row_M = (
        np.argpartition(-bound_N, min(TOP, len(bound_N)) - 1)[:TOP] if len(bound_N) > TOP else np.arange(len(bound_N))
    )
    floor = 0.0
    while True:
        row_M = row_M[bound_N[row_M] > 0]
        stale_M = row_M[~near.is_fresh(row_M)]
        near.refresh(stale_M)
        base_N[stale_M] = weight_N[stale_M] * near.distance_N[stale_M] ** spread
        # A duplicate of what is chosen stays one: distances only shrink.
        base_N[stale_M[near.distance_N[stale_M] < min_distance]] = -1.0
        bound_N[stale_M] = base_N[stale_M] * factor_V[device_N[stale_M]]
        if len(row_M):
            floor = max(floor, float(bound_N[row_M].max()))
        higher_M = np.flatnonzero(bound_N > floor)
        row_M = higher_M[~near.is_fresh(higher_M)]
        if not len(row_M):
            break
    row = int(np.argmax(bound_N))
    return row if bound_N[row] > 0 else None


def _chunks(row_M: Ints) -> Iterator[Ints]:
    for start in range(0, len(row_M), CHUNK):
        yield row_M[start : start + CHUNK]
