"""Which labelled people are the neighbours of a pool's people, and how much each weighs: the two ways of the EGL++ paper.

:func:`by_affinity` has t-SNE's conditional affinities (Eq. 8). :func:`by_reconstruction` has the weights of locally linear
embedding (Roweis and Saul, Science 2000): those of the K nearest labelled embeddings whose mean comes closest to a person's
own. They sum to 1; to be probabilities they must not be negative either, which the paper adds to the algorithm and so do we.

Shapes: N people of the pool, B of them at once, L labelled people, D embedding, K neighbours, M rows not solved yet.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from alpose.runtime.errors import ConfigError, DataError

AT_ONCE = 2**20
"""Distances that are held at once: 8 MiB in float64, of which a handful of copies exist."""

TOLERANCE, STEPS = 1e-9, 100
"""Of the entropy in nats; a bisection alone would need about 80 steps from the end of the bracket to it."""

REGULARISATION = 1e-3
"""Share of the Gram matrix's trace that is added to its diagonal, as in scikit-learn; the published code of LLE does so
where K is larger than D. Without it the weights of neighbours that lie in a plane with each other are not unique."""
NEGATIVE = 1e-9
"""A weight below 0 by less than this share of the largest is rounding."""
FULL_EXCHANGES, PIVOTS = 3, 500
"""Steps without progress before only one neighbour changes sides at a time, which cannot go round in circles; and steps
at most, of which the worst rows take a few tens."""


class Neighbours(NamedTuple):
    """The labelled neighbours of everybody in a pool."""

    row_NK: Tensor
    """Rows of the labelled set, the heaviest first."""
    weight_NK: Tensor
    """Their weights, none negative; each row sums to 1. float64."""
    mass_N: Tensor
    """For affinities, what the K held before they were renormalised, of everybody's 1; otherwise 1."""
    unsolved: int
    """People without a unique answer: no bandwidth gives the perplexity, as too many labelled people are equally near; or
    they lie on all K of their neighbours, which then share alike."""


def by_affinity(points_ND: Tensor, labelled_LD: Tensor, *, perplexity: float, count: int) -> Neighbours:
    """The ``count`` largest t-SNE affinities of everybody in a pool to the labelled people (EGL++ paper, Eq. 8).

    ``q(j|i) ∝ exp(-|h_i - h_j|² β_i)`` over all labelled j, where β_i = 1/(2σ_i²) gives row i the wanted perplexity: e to
    the entropy in nats, less than L.

    Raises:
        ConfigError: fewer labelled people than neighbours, or no more than the perplexity.
        DataError: embeddings that are not finite.
    """
    if len(labelled_LD) < count or len(labelled_LD) <= perplexity:
        raise ConfigError(
            f"{count} neighbours at perplexity {perplexity:g} want at least {max(count, math.floor(perplexity) + 1)} "
            f"labelled people, there are {len(labelled_LD)}"
        )
    if perplexity <= 1 or count < 1:
        raise ConfigError(f"perplexity must be over 1 and neighbours at least 1, got {perplexity:g} and {count}")
    origin_D, centres_LD = _centred(points_ND, labelled_LD)
    parts, unsolved = [], 0
    for block_BD in points_ND.split(max(1, AT_ONCE // len(centres_LD))):
        q_BL, solved_B = conditional(squared_distances(block_BD.double() - origin_D, centres_LD), perplexity)
        weight_BK, row_BK = q_BL.topk(count, dim=1)
        mass_B = weight_BK.sum(dim=1)
        parts.append((row_BK, weight_BK / mass_B[:, None], mass_B))
        unsolved += int((~solved_B).sum())
    row_NK, weight_NK, mass_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return Neighbours(row_NK, weight_NK, mass_N, unsolved)


def by_reconstruction(points_ND: Tensor, labelled_LD: Tensor, *, count: int) -> Neighbours:
    """The ``count`` nearest labelled people of everybody in a pool, weighted by how they rebuild the embedding.

    ``w_i = argmin |h_i - Σ_j w_ij h_j|²`` over ``w_ij >= 0, Σ_j w_ij = 1`` (EGL++ paper, after Roweis and Saul, 2000).
    Most of the weights are 0: those that would be negative without the first constraint, and some more.

    Raises:
        ConfigError: fewer labelled people than neighbours.
        DataError: embeddings that are not finite.
    """
    if count < 1 or len(labelled_LD) < count:
        raise ConfigError(
            f"{count} neighbours want at least {max(1, count)} labelled people, there are {len(labelled_LD)}"
        )
    origin_D, centres_LD = _centred(points_ND, labelled_LD)
    parts, unsolved = [], 0
    for block_BD in points_ND.split(max(1, AT_ONCE // max(len(centres_LD), count * centres_LD.shape[1]))):
        point_BD = block_BD.double() - origin_D
        row_BK = squared_distances(point_BD, centres_LD).topk(count, dim=1, largest=False)[1]
        gap_BKD = centres_LD[row_BK] - point_BD[:, None]
        gram_BKK = gap_BKD @ gap_BKD.transpose(1, 2)
        weight_BK, order_BK = weights_of(gram_BKK).sort(dim=1, descending=True, stable=True)
        parts.append((row_BK.gather(1, order_BK), weight_BK, torch.ones_like(weight_BK[:, 0])))
        unsolved += int((gram_BKK.diagonal(dim1=1, dim2=2).sum(dim=1) == 0).sum())
    row_NK, weight_NK, mass_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return Neighbours(row_NK, weight_NK, mass_N, unsolved)


def _centred(points_ND: Tensor, labelled_LD: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the labelled set and its differences from it, in float64: ``|a|² + |b|² - 2ab`` cancels least there.

    Embeddings that are not finite are refused, by their rows.
    """
    for points, what in ((points_ND, "the pool"), (labelled_LD, "the labelled set")):
        bad_N = ~points.isfinite().all(dim=1)
        if bad_N.any():
            raise DataError(f"{int(bad_N.sum())} of {len(bad_N)} embeddings of {what} are not finite (first at row "
                            f"{int(bad_N.nonzero()[0, 0])}): the model's weights or its input are damaged")  # fmt: skip
    origin_D = labelled_LD.double().mean(dim=0)
    return origin_D, labelled_LD.double() - origin_D


def squared_distances(block_BD: Tensor, centres_LD: Tensor) -> Tensor:
    """Squared distances of every pair (B, L)."""
    squares_BL = (block_BD**2).sum(dim=1)[:, None] + (centres_LD**2).sum(dim=1)
    return (squares_BL - 2 * block_BD @ centres_LD.T).clamp_min(0)


def conditional(square_BL: Tensor, perplexity: float) -> tuple[Tensor, Tensor]:
    """Row-wise ``softmax(-β d²)`` of the wanted perplexity (B, L), and whether there was such a β (B,).

    The row's least d² is subtracted first, so the nearest always weighs exp(0) = 1: without it every weight of a row
    that is far from all others underflows, whatever β. The root is sought in log β, by Newton steps inside a bracket
    that is bisected where they leave it: the entropy falls with β, by β² Var(d²) per unit of log β.

    Where the nearest are equally near and no fewer than the perplexity, they share the row equally.
    """
    gap_BL = square_BL - square_BL.amin(dim=1, keepdim=True)
    # In units of the row's mean, β is of the order of 1 for every row.
    unit_B = gap_BL.mean(dim=1)
    gap_BL = gap_BL / torch.where(unit_B > 0, unit_B, 1.0)[:, None]
    wanted = math.log(perplexity)
    tied_B = (gap_BL == 0).sum(dim=1) >= perplexity
    q_BL = (gap_BL == 0).to(gap_BL.dtype)
    q_BL /= q_BL.sum(dim=1, keepdim=True)
    solved_B = torch.zeros_like(tied_B)

    open_M = (~tied_B).nonzero()[:, 0]
    log_beta_M = torch.zeros(len(open_M), dtype=gap_BL.dtype, device=gap_BL.device)
    low_M, high_M = log_beta_M - 30.0, log_beta_M + 45.0
    gap_ML = gap_BL[open_M]
    for step in range(STEPS):
        if not len(open_M):
            break
        beta_M = log_beta_M.exp()
        p_ML = torch.exp(-beta_M[:, None] * gap_ML)
        total_M = p_ML.sum(dim=1)
        p_ML /= total_M[:, None]
        weighted_ML = p_ML * gap_ML
        mean_M = weighted_ML.sum(dim=1)
        slope_M = beta_M**2 * ((weighted_ML * gap_ML).sum(dim=1) - mean_M**2)
        excess_M = total_M.log() + beta_M * mean_M - wanted
        done_M = excess_M.abs() < TOLERANCE
        last = step == STEPS - 1
        if last or done_M.any():
            stop_M = done_M | last
            q_BL[open_M[stop_M]] = p_ML[stop_M]
            solved_B[open_M[done_M]] = True
        low_M = torch.where(excess_M > 0, log_beta_M, low_M)
        high_M = torch.where(excess_M < 0, log_beta_M, high_M)
        newton_M = log_beta_M + excess_M / slope_M
        inside_M = (newton_M > low_M) & (newton_M < high_M)  # false for NaN
        log_beta_M = torch.where(inside_M, newton_M, (low_M + high_M) / 2)
        if done_M.any():
            keep_M = ~done_M
            open_M, log_beta_M, low_M, high_M = (part[keep_M] for part in (open_M, log_beta_M, low_M, high_M))
            gap_ML = gap_ML[keep_M]
    return q_BL, solved_B


def weights_of(gram_BKK: Tensor, *, signed: bool = False) -> Tensor:
    """Weights (B, K) that minimise ``wᵀ G w`` and sum to 1, none of them negative; ``signed`` leaves that condition out.

    G is made definite by :data:`REGULARISATION`. Without the sign the minimum is ``G⁻¹1``, divided by its sum. With it,
    some weights are 0, and the others are that of their own part of G: which they are is found by block principal
    pivoting (Portugal, Júdice and Vicente, Mathematics of Computation 1994), for all rows at once. The result is exact,
    and the only one there is.

    Args:
        gram_BKK: float64, symmetric, positive semidefinite.
        signed: as LLE has it originally.
    """
    count = gram_BKK.shape[1]
    eye_KK = torch.eye(count, dtype=gram_BKK.dtype, device=gram_BKK.device)
    trace_B = gram_BKK.diagonal(dim1=1, dim2=2).sum(dim=1)
    # In units of the trace nothing overflows. On top of all its neighbours: the identity, and equal weights.
    gram_BKK = gram_BKK / torch.where(trace_B > 0, trace_B, 1.0)[:, None, None]
    gram_BKK = gram_BKK + torch.where(trace_B > 0, REGULARISATION, 1.0)[:, None, None] * eye_KK
    used_BK = torch.ones(gram_BKK.shape[:2], dtype=torch.bool, device=gram_BKK.device)
    weight_BK = _solve(gram_BKK, used_BK)
    if not signed:
        _pivot(gram_BKK, used_BK, weight_BK)
    return weight_BK / weight_BK.sum(dim=1, keepdim=True)


def _pivot(gram_BKK: Tensor, used_BK: Tensor, weight_BK: Tensor) -> None:
    """Bring ``G w = 1 + µ`` with w, µ >= 0 and one of each pair 0 about, in place; starts from w = G⁻¹1."""
    fewest_B = torch.full(used_BK.shape[:1], used_BK.shape[1] + 1, device=used_BK.device)
    left_B = torch.full_like(fewest_B, FULL_EXCHANGES)
    place_K = torch.arange(used_BK.shape[1], device=used_BK.device)
    open_M = torch.arange(len(used_BK), device=used_BK.device)
    for _ in range(PIVOTS):
        used_MK, weight_MK = used_BK[open_M], weight_BK[open_M]
        slope_MK = (gram_BKK[open_M] @ weight_MK[..., None])[..., 0] - 1
        scale_M1 = weight_MK.abs().amax(dim=1, keepdim=True)
        wrong_MK = torch.where(used_MK, weight_MK < -NEGATIVE * scale_M1, slope_MK < -NEGATIVE)
        wrong_M = wrong_MK.sum(dim=1)
        keep_M = wrong_M > 0
        open_M, used_MK, wrong_MK, wrong_M = open_M[keep_M], used_MK[keep_M], wrong_MK[keep_M], wrong_M[keep_M]
        if not len(open_M):
            break
        better_M = wrong_M < fewest_B[open_M]
        fewest_B[open_M] = torch.minimum(fewest_B[open_M], wrong_M)
        left_M = torch.where(better_M, FULL_EXCHANGES, left_B[open_M] - 1)
        left_B[open_M] = left_M
        # Murty's rule: of those on the wrong side, the last one alone.
        last_M1 = torch.where(wrong_MK, place_K, -1).amax(dim=1, keepdim=True)
        exchanged_MK = torch.where((left_M > 0)[:, None], wrong_MK, place_K == last_M1)
        used_BK[open_M] = used_MK ^ exchanged_MK
        weight_BK[open_M] = _solve(gram_BKK[open_M], used_BK[open_M])
    weight_BK.clamp_min_(0)


def _solve(gram_BKK: Tensor, used_BK: Tensor) -> Tensor:
    """``G⁻¹1`` of the part of G that is used, 0 elsewhere."""
    both_BKK = used_BK[:, :, None] & used_BK[:, None, :]
    part_BKK = torch.where(both_BKK, gram_BKK, torch.diag_embed((~used_BK).to(gram_BKK.dtype)))
    solution_BK: Tensor = torch.cholesky_solve(used_BK.to(gram_BKK.dtype)[..., None], torch.linalg.cholesky(part_BKK))[
        ..., 0
    ]
    return solution_BK
