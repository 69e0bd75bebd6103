"""Who of the labelled people is a neighbour of whom, as locally linear embedding has it: what rebuilds an embedding.

The other of the two algorithms that the EGL++ paper names (its section "Conditional Probability"): the weights of the K
nearest labelled embeddings whose mean comes closest to an image's own (Roweis and Saul, Science 2000). They sum to 1; to
be probabilities they must not be negative either, which the paper adds to the algorithm and so do we.

Shapes: N people of the pool, B of them at once, L labelled people, D embedding, K neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alpose.runtime.errors import ConfigError

from .affinities import AT_ONCE, Neighbours, refuse_not_finite, squared_distances

REGULARISATION = 1e-3
"""Share of the Gram matrix's trace that is added to its diagonal, as in scikit-learn; the published code of LLE does so
where K is larger than D. Without it the weights of neighbours that lie in a plane with each other are not unique."""

TOLERANCE = 1e-9
"""Below 0 by less than this share of the largest is rounding."""

FULL_EXCHANGES = 3
"""Steps without progress before only one neighbour changes sides at a time, which cannot go round in circles."""

STEPS = 500
"""A few tens are taken by the worst of rows."""


def neighbours(points_ND: Tensor, labelled_LD: Tensor, *, count: int) -> Neighbours:
    """The ``count`` nearest labelled people of everybody in a pool, weighted by how they rebuild the embedding.

    ``w_i = argmin |h_i - Σ_j w_ij h_j|²`` over ``w_ij >= 0, Σ_j w_ij = 1`` (EGL++ paper, after Roweis and Saul, 2000).
    Most of the weights are 0: those that would be negative without the first constraint, and some more.

    Args:
        points_ND: embeddings of the pool.
        labelled_LD: embeddings of the labelled set.
        count: K.

    Returns:
        Neighbours, the heaviest first; ``mass_N`` is 1 throughout, and ``unsolved`` counts people who lie on all K of
        their neighbours, which then share alike.

    Raises:
        ConfigError: fewer labelled people than neighbours.
        DataError: embeddings that are not finite.
    """
    if count < 1 or len(labelled_LD) < count:
        raise ConfigError(
            f"{count} neighbours want at least {max(1, count)} labelled people, there are {len(labelled_LD)}"
        )
    refuse_not_finite(points_ND, labelled_LD)
    origin_D = labelled_LD.double().mean(dim=0)
    centres_LD = labelled_LD.double() - origin_D
    parts, unsolved = [], 0
    for block_BD in points_ND.split(max(1, AT_ONCE // max(len(centres_LD), count * centres_LD.shape[1]))):
        point_BD = block_BD.double() - origin_D
        row_BK = squared_distances(point_BD, centres_LD).topk(count, dim=1, largest=False)[1]
        gram_BKK = _gram(point_BD, centres_LD[row_BK])
        weight_BK, order_BK = weights_of(gram_BKK).sort(dim=1, descending=True, stable=True)
        parts.append((row_BK.gather(1, order_BK), weight_BK, torch.ones_like(weight_BK[:, 0])))
        unsolved += int((gram_BKK.diagonal(dim1=1, dim2=2).sum(dim=1) == 0).sum())
    row_NK, weight_NK, mass_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return Neighbours(row_NK, weight_NK, mass_N, unsolved)


def _gram(point_BD: Tensor, near_BKD: Tensor) -> Tensor:
    """Products (B, K, K) of the differences between a point and its neighbours."""
    gap_BKD = near_BKD - point_BD[:, None]
    return gap_BKD @ gap_BKD.transpose(1, 2)


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
    for _ in range(STEPS):
        used_MK, weight_MK = used_BK[open_M], weight_BK[open_M]
        slope_MK = (gram_BKK[open_M] @ weight_MK[..., None])[..., 0] - 1
        scale_M1 = weight_MK.abs().amax(dim=1, keepdim=True)
        wrong_MK = torch.where(used_MK, weight_MK < -TOLERANCE * scale_M1, slope_MK < -TOLERANCE)
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
