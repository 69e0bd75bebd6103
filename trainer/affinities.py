"""Who of the labelled people is a neighbour of whom, and with which probability: t-SNE's conditional affinities.

Shapes: N people of the pool, B of them at once, L labelled people, D embedding, K neighbours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from alpose.runtime.errors import ConfigError, DataError

AT_ONCE = 2**20
"""Distances that are held at once: 8 MiB in float64, of which a handful of copies exist."""

TOLERANCE = 1e-9
"""Of the entropy, in nats."""

STEPS = 100
"""A bisection alone would need about 80 to get from one end of the bracket to the tolerance."""


class Neighbours(NamedTuple):
    """The most probable labelled neighbours of everybody in a pool."""

    row_NK: Tensor
    """Rows of the labelled set, the most probable first."""
    weight_NK: Tensor
    """Their probabilities, renormalised: each row sums to 1. float64."""
    mass_N: Tensor
    """What the K held before they were renormalised, of everybody's 1."""
    unsolved: int
    """People for whom no bandwidth gives the perplexity: too many labelled people are equally near."""


def neighbours(points_ND: Tensor, labelled_LD: Tensor, *, perplexity: float, count: int) -> Neighbours:
    """Affinities between a pool and the labelled set (EGL++ paper, Eq. 8), reduced to the ``count`` largest of each row.

    ``q(j|i) ∝ exp(-|h_i - h_j|² β_i)`` over all labelled j, where β_i = 1/(2σ_i²) gives row i the wanted perplexity.
    Nothing but a block of rows is held at a time.

    Args:
        points_ND: embeddings of the pool.
        labelled_LD: embeddings of the labelled set.
        perplexity: e to the entropy in nats, which is 2 to the entropy in bits; less than L.
        count: K.

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
    refuse_not_finite(points_ND, labelled_LD)
    # |a|² + |b|² - 2ab cancels least where the origin is in the middle.
    origin_D = labelled_LD.double().mean(dim=0)
    centres_LD = labelled_LD.double() - origin_D
    parts, unsolved = [], 0
    for block_BD in points_ND.split(max(1, AT_ONCE // len(centres_LD))):
        square_BL = squared_distances(block_BD.double() - origin_D, centres_LD)
        q_BL, solved_B = conditional(square_BL, perplexity)
        weight_BK, row_BK = q_BL.topk(count, dim=1)
        mass_B = weight_BK.sum(dim=1)
        parts.append((row_BK, weight_BK / mass_B[:, None], mass_B))
        unsolved += int((~solved_B).sum())
    row_NK, weight_NK, mass_N = (torch.cat(column) for column in zip(*parts, strict=True))
    return Neighbours(row_NK, weight_NK, mass_N, unsolved)


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


def refuse_not_finite(points_ND: Tensor, labelled_LD: Tensor) -> None:
    """Refuse embeddings, of the pool or of the labelled set, that are not finite, by their rows."""
    for points, what in ((points_ND, "the pool"), (labelled_LD, "the labelled set")):
        bad_N = ~points.isfinite().all(dim=1)
        if bad_N.any():
            raise DataError(f"{int(bad_N.sum())} of {len(bad_N)} embeddings of {what} are not finite (first at row "
                            f"{int(bad_N.nonzero()[0, 0])}): the model's weights or its input are damaged")  # fmt: skip


def squared_distances(block_BD: Tensor, centres_LD: Tensor) -> Tensor:
    """Of every pair (B, L); loses least where the origin is in the middle."""
    squares_BL = (block_BD**2).sum(dim=1)[:, None] + (centres_LD**2).sum(dim=1)
    return (squares_BL - 2 * block_BD @ centres_LD.T).clamp_min(0)
