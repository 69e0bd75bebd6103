"""Coreset: greedy k-centre, exact, in bounded memory.

The plain loop takes the point farthest from all centres, and then its distance to every other point: one pass over all
embeddings per pick, which is memory bandwidth and nothing else. Here distances are brought up to date only where they
can matter. A point's distance to its nearest centre only shrinks while centres are added, so a distance that was
computed earlier bounds today's from above (lazy greedy; Minoux, 1978). The points with the highest bounds are gathered
into a window that fits a cache, and picks are made there for as long as its best point lies above every bound outside.

Float32 products only bound distances: each comes with the largest error that its rounding can have. Whatever those
bounds leave open is decided by a difference in float64, always summed in the same order, on the host. So the picks are
those of a float64 loop over the whole distance matrix, ties by the lowest row: threads, BLAS and device change nothing.

Shapes: N points, L points that are centres at the start, C centres so far, D embedding, W window, M some rows,
P pairs of a row and a centre. Distances are squared throughout.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.errors import DataError

from ..data.records import Floats
from .selection import Pool, Rows, Selection, check_budget

Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

WINDOW, MOST = 1024, 32_768
"""Rows in the window at first, and at most: 1 MB of 256 float32 lies in a core's cache."""
BATCH = 32
"""Rows that are settled in float64 at once."""
CHUNK = 2**22
"""Numbers in a temporary array."""

ROUNDING = 2.0**-24
"""Of float32, to nearest."""
TINY = 2.0**-120
"""Above what products of numbers that float32 cannot hold any more may lose."""
CHECKED = 16_384
"""Rows that are looked through for NaN at once."""
LARGEST = 1e15
"""Squares of larger numbers, summed, come near the end of float32."""


def choose(pool: Pool, k: int) -> Selection:
    """The method ``coreset``."""
    return Selection(*k_centre(pool.scored.embedding_ND, pool.labelled.embedding_ND, k))


def k_centre(
    embeddings_ND: npt.NDArray[np.floating] | Tensor, labelled_LD: npt.NDArray[np.floating] | Tensor, k: int
) -> tuple[Rows, Floats]:
    """Greedy k-centre (Sener and Savarese 2018): again and again the point farthest from all centres.

    The labelled set is the first set of centres. Euclidean, and a 2-approximation of the best cover.

    Args:
        embeddings_ND: the pool. Tensors are worked on where they are, arrays on the CPU; float32 is what is compared. Float16
            stays as it is and is read in blocks, so that a memory-mapped array may be larger than the memory.
        labelled_LD: of those labelled already; at least one.
        k: how many.

    Returns:
        The rows picked, and every row's distance to the labelled set (N,), before any pick, rounded as float32 products
        round it: to a thousandth of the pool's spread.
    """
    check_budget(k, len(embeddings_ND))
    points_ND, start_LD = torch.as_tensor(embeddings_ND).detach(), torch.as_tensor(labelled_LD).detach().float()
    if points_ND.dtype != torch.float16:
        points_ND = points_ND.to(torch.float32)  # without a copy where it is that already
    if not len(start_LD):
        raise DataError("coreset needs at least one labelled embedding to start from")
    if points_ND.ndim != 2 or start_LD.shape != (len(start_LD), points_ND.shape[1]):
        raise DataError(
            f"coreset compares vectors of one length: embeddings are {tuple(points_ND.shape)}, labelled ones "
            f"{tuple(start_LD.shape)}"
        )
    _refuse_not_finite(points_ND, "the pool")
    _refuse_not_finite(start_LD, "the labelled set")
    return greedy_k_centre(points_ND, start_LD.to(points_ND.device), k)


def _refuse_not_finite(points_ND: Tensor, what: str) -> None:
    """Refuse NaN, which is farther or nearer than everything by the order of comparison, and squares that overflow."""
    bad: list[int] = []
    for number, block_MD in enumerate(points_ND.split(CHECKED)):
        block_MD = block_MD.float()
        if not block_MD.abs().amax() < LARGEST:  # NaN is not less than anything
            rows_M = (~(block_MD.abs() < LARGEST).all(dim=1)).nonzero()[:, 0]
            bad += (number * CHECKED + rows_M).tolist()
    if bad:
        named = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        raise DataError(
            f"coreset: {len(bad)} of {len(points_ND)} embeddings of {what} are not finite, or over {LARGEST:g} (rows "
            f"{named}); nothing was selected: the model's weights or its input are damaged"
        )


def greedy_k_centre(points_ND: Tensor, start_LD: Tensor, k: int) -> tuple[Rows, npt.NDArray[np.float32]]:
    """The point farthest from all centres, again and again; see :func:`k_centre`.

    Both sets are finite and on one device, the start is float32, the points that or float16; they are not copied as a whole.

    Returns:
        Rows in the order picked, and every row's distance (not squared) to the start (N,).
    """
    threshold = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # the bounds on rounding hold for nothing less
    try:
        with torch.no_grad(), torch.autocast(points_ND.device.type, enabled=False):
            greedy = _Greedy(points_ND, start_LD, k)
            before_N = np.sqrt(greedy.start())
            return greedy.pick(k), before_N
    finally:
        torch.set_float32_matmul_precision(threshold)


class _Greedy:
    """The state of the loop: bounds on the host, points and products on their device."""

    def __init__(self, points_ND: Tensor, start_LD: Tensor, k: int) -> None:
        self.points_ND = points_ND
        count, width = points_ND.shape
        # Products lose their digits where all points lie far from the origin: shifted to their mean.
        self.origin_D = _mean(points_ND)
        # |computed - true| of |x|² - 2xc + |c|², the shift included, is below (D + 8) u (|x| + |c|)² <= slack (x² + c²).
        self.slack = 2 * (width + 16) * ROUNDING
        start_LD = _distinct(start_LD)
        self.count = len(start_LD)
        self.centres_CD = torch.empty(len(start_LD) + k, width, device=points_ND.device)
        self.centres_CD[: self.count] = start_LD - self.origin_D
        self.exact_CD = np.empty(self.centres_CD.shape, dtype=np.float32)
        """The centres as they came, for differences in float64."""
        self.exact_CD[: self.count] = start_LD.numpy(force=True)
        self.square_C = np.empty(len(self.centres_CD))
        self.square_C[: self.count] = _square(self.centres_CD[: self.count])
        self.square_N = np.empty(count)
        self.upper_N = np.full(count, np.inf)
        """Bound on the distance to the nearest centre; below 0 for what was picked."""
        self.is_exact_N = np.zeros(count, dtype=np.bool_)
        """Whether the bound *is* the distance, to the centres that were seen."""
        self.seen_N = np.zeros(count, dtype=np.int32)
        """Centres that the bound knows of."""

    def start(self) -> npt.NDArray[np.float32]:
        """Compare everybody with the start; distances in float32's precision."""
        near_N = np.empty(len(self.upper_N), dtype=np.float32)
        for rows in _chunks(np.arange(len(near_N)), CHUNK // max(self.count, self.points_ND.shape[1])):
            block_MD = self.points_ND[rows[0] : rows[-1] + 1].float() - self.origin_D
            self.square_N[rows] = _square(block_MD)
            near_N[rows], _, self.upper_N[rows] = self._nearest(block_MD, self.square_N[rows], 0)
        self.seen_N[:] = self.count
        return near_N

    def pick(self, k: int) -> Rows:
        """Add k centres, each the farthest point of its time."""
        picks: list[int] = []
        window = WINDOW
        while len(picks) < k:
            found = list(self._pick_in_window(min(window, len(self.upper_N)), k - len(picks)))
            # Few picks per window: it is too small for how fast the bounds fall. Many: it is larger than it need be.
            if len(found) < 16:
                window = min(2 * window, MOST)
            elif len(found) > window // 4:
                window = max(window // 2, WINDOW)
            picks += found or [self._pick_anywhere()]
            if self.upper_N[picks[-1]] == -np.inf:  # the farthest lies on a centre: so does everybody else
                left = np.setdiff1d(np.arange(len(self.upper_N)), picks)
                picks += left[: k - len(picks)].tolist()
        return np.array(picks[:k], dtype=np.int64)

    def _pick_in_window(self, size: int, k: int) -> Iterator[int]:
        """Pick among the rows of highest bound, until a row outside could be farther."""
        if size < len(self.upper_N):
            place_N = np.argpartition(self.upper_N, len(self.upper_N) - size)
            row_W, outside = np.sort(place_N[-size:]), float(self.upper_N[place_N[:-size]].max())
        else:
            row_W, outside = np.arange(size), -1.0
        row_W = row_W[self.upper_N[row_W] >= 0]
        self._refresh(row_W)
        point_WD, square_W = self._gather(row_W), self.square_N[row_W]
        upper_W, is_exact_W = self.upper_N[row_W], self.is_exact_N[row_W]
        for number in range(k):
            if number % 32 == 31 and 2 * (upper_W > outside).sum() < len(row_W):
                # Most of the window cannot be picked in it any more.
                self._put_back(row_W, upper_W, is_exact_W)
                keep = np.flatnonzero(upper_W > outside)
                point_WD, row_W, square_W = point_WD[_index(keep, point_WD)], row_W[keep], square_W[keep]
                upper_W, is_exact_W = upper_W[keep], is_exact_W[keep]
            while len(row_W):
                best = upper_W.max()
                top = np.flatnonzero(upper_W == best)
                if best <= outside or is_exact_W[top].all():
                    break
                unsure = np.flatnonzero(~is_exact_W)
                if len(unsure) > BATCH:
                    unsure = unsure[np.argpartition(upper_W[unsure], len(unsure) - BATCH)[-BATCH:]]
                upper_W[unsure] = self._settle(row_W[unsure], point_WD[_index(unsure, point_WD)])
                is_exact_W[unsure] = True
            if not len(row_W) or best <= outside:
                break
            pick = int(top[0])
            self._add(int(row_W[pick]))
            upper_W[pick] = -1.0 if best > 0 else -np.inf
            self._compare(row_W, point_WD, square_W, upper_W, is_exact_W)
            yield int(row_W[pick])
            if best == 0:
                break
        self._put_back(row_W, upper_W, is_exact_W)

    def _put_back(self, row_W: Rows, upper_W: Doubles, is_exact_W: Bools) -> None:
        self.upper_N[row_W], self.is_exact_N[row_W], self.seen_N[row_W] = upper_W, is_exact_W, self.count

    def _pick_anywhere(self) -> int:
        """One pick among all rows: looks at every bound that is above the best distance known."""
        fresh_M = np.flatnonzero((self.seen_N == self.count) & (self.upper_N >= 0))
        if len(fresh_M) > BATCH:
            fresh_M = fresh_M[np.argpartition(self.upper_N[fresh_M], -BATCH)[-BATCH:]]
        self._make_exact(fresh_M)
        while True:
            best = float(self.upper_N.max(where=self.is_exact_N & (self.seen_N == self.count), initial=-1.0))
            open_M = np.flatnonzero(self.upper_N >= best)
            stale_M = open_M[self.seen_N[open_M] < self.count]
            if len(stale_M):
                self._refresh(stale_M)
                continue
            unsure_M = open_M[~self.is_exact_N[open_M]]
            if not len(unsure_M):
                break
            if len(unsure_M) > MOST // 8:
                unsure_M = unsure_M[np.argpartition(self.upper_N[unsure_M], -MOST // 8)[-MOST // 8 :]]
            self._make_exact(unsure_M)
        row = int(np.argmax(self.upper_N))
        self._add(row)
        self.upper_N[row] = -1.0 if self.upper_N[row] > 0 else -np.inf
        return row

    def _make_exact(self, row_M: Rows) -> None:
        """Settle rows that know every centre."""
        for rows in _chunks(row_M[~self.is_exact_N[row_M]], BATCH):
            self.upper_N[rows] = self._settle(rows, self._gather(rows))
            self.is_exact_N[rows] = True

    def _add(self, row: int) -> None:
        """Make a point a centre."""
        self.centres_CD[self.count] = self.points_ND[row].float() - self.origin_D
        self.exact_CD[self.count] = self.points_ND[row].float().numpy(force=True)
        self.square_C[self.count] = self.square_N[row]
        self.count += 1

    def _compare(
        self, row_W: Rows, point_WD: Tensor, square_W: Doubles, upper_W: Doubles, is_exact_W: Bools
    ) -> None:  # fmt: skip
        """Bring a window up to date with the centre that was added last; what is exact stays exact."""
        new = self.count - 1
        both_W = square_W + self.square_C[new]
        near_W = both_W - 2.0 * (point_WD @ self.centres_CD[new]).numpy(force=True)
        slack_W = self.slack * both_W + TINY
        close_W = near_W - slack_W < upper_W
        for rows in _chunks(np.flatnonzero(close_W & is_exact_W), CHUNK // len(self.origin_D)):
            upper_W[rows] = np.minimum(upper_W[rows], self._difference(row_W[rows], np.full(len(rows), new)))
        blurred = np.flatnonzero(close_W & ~is_exact_W)
        upper_W[blurred] = np.minimum(upper_W[blurred], np.maximum(near_W[blurred], 0) + slack_W[blurred])

    def _refresh(self, row_M: Rows) -> None:
        """Bring the bounds of these rows up to date, by products."""
        stale_M = row_M[self.seen_N[row_M] < self.count]
        # Those that miss about as much go together.
        stale_M = stale_M[np.argsort(self.seen_N[stale_M], kind="stable")]
        for rows in _chunks(stale_M, min(MOST // 8, CHUNK // max(self.count, len(self.origin_D)))):
            point_MD, first = self._gather(rows), int(self.seen_N[rows[0]])
            _, below_M, above_M = self._nearest(point_MD, self.square_N[rows], first)
            self.is_exact_N[rows] &= below_M >= self.upper_N[rows]
            self.upper_N[rows] = np.minimum(self.upper_N[rows], above_M)
            self.seen_N[rows] = self.count

    def _nearest(self, point_MD: Tensor, square_M: Doubles, first: int) -> tuple[Doubles, Doubles, Doubles]:
        """Distance to the nearest centre from ``first`` on, as products give it, and bounds below and above it."""
        square_C = torch.from_numpy(self.square_C[first : self.count].astype(np.float32)).to(point_MD.device)
        gap_MC = torch.addmm(square_C, point_MD, self.centres_CD[first : self.count].T, alpha=-2)
        near_M = np.maximum(gap_MC.amin(dim=1).numpy(force=True) + square_M, 0)
        # The centre found has |c| <= |x| + d. The true one may be another, yet none with |c| > 2|x| + d, which is
        # farther away than d whatever the rounding.
        root_M, norm_M = np.sqrt(near_M), np.sqrt(square_M)
        above_M = near_M + (1.01 * self.slack * (square_M + (norm_M + root_M) ** 2) + TINY)
        below_M = near_M - (1.01 * self.slack * (square_M + (2 * norm_M + root_M) ** 2) + TINY)
        return near_M, below_M, above_M

    def _settle(self, row_M: Rows, point_MD: Tensor) -> Doubles:
        """Distance to the nearest centre, in float64."""
        both_MC = self.square_N[row_M][:, None] + self.square_C[None, : self.count]
        near_MC = both_MC - 2.0 * (point_MD @ self.centres_CD[: self.count].T).numpy(force=True)
        slack_MC = self.slack * both_MC + TINY
        limit_M = (near_MC + slack_MC).min(axis=1)
        place_P, centre_P = np.nonzero(near_MC - slack_MC <= limit_M[:, None])
        nearest_M = np.full(len(row_M), np.inf)
        for pairs in _chunks(np.arange(len(place_P)), CHUNK // len(self.origin_D)):
            np.minimum.at(nearest_M, place_P[pairs], self._difference(row_M[place_P[pairs]], centre_P[pairs]))
        return nearest_M

    def _difference(self, row_P: Rows, centre_P: Rows) -> Doubles:
        """Distances of pairs in float64: the same bits for the same pair, whatever stands beside it."""
        point_PD = self.points_ND[_index(row_P, self.points_ND)].numpy(force=True)
        gap_PD = point_PD.astype(np.float64) - self.exact_CD[centre_P]
        return np.asarray((gap_PD * gap_PD).sum(axis=1))

    def _gather(self, row_M: Rows) -> Tensor:
        return self.points_ND[_index(row_M, self.points_ND)].float() - self.origin_D


def _mean(points_ND: Tensor) -> Tensor:
    total_D = torch.zeros(points_ND.shape[1], dtype=torch.float64, device=points_ND.device)
    for block_MD in points_ND.split(max(1, CHUNK // max(1, points_ND.shape[1]))):
        total_D += block_MD.float().sum(dim=0)
    return (total_D / len(points_ND)).float()


def _square(point_MD: Tensor) -> npt.NDArray[np.float32]:
    return torch.linalg.vecdot(point_MD, point_MD).numpy(force=True)


def _distinct(start_LD: Tensor) -> Tensor:
    """Each centre once: equal ones would have to be told apart again and again, and cannot."""
    first: dict[bytes, int] = {}
    for place, row_D in enumerate(start_LD.numpy(force=True)):
        first.setdefault(row_D.tobytes(), place)
    return start_LD if len(first) == len(start_LD) else start_LD[list(first.values())]


def _index(rows: Rows, like: Tensor) -> Tensor:
    return torch.from_numpy(rows).to(like.device)


def _chunks(row_M: Rows, size: int) -> Iterator[Rows]:
    size = max(1, size)
    for start in range(0, len(row_M), size):
        yield row_M[start : start + size]
