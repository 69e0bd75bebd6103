"""Objectives of the pose net and of the loss heads, as pure functions of tensors.

Shapes: B batch, S stacks, J joints, H W heatmap, P pairs of images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from .models.heads import LossHead
    from .training import HeadBatch

Pairing = Literal["disjoint", "all"]
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)

LOSS_FLOOR = 1e-6
"""True losses are floored here before their ratio is taken: two perfect images are equal, not NaN."""


def heatmap_mse(heatmaps_BSJHW: Tensor, target_BJHW: Tensor, labelled_BJ: Tensor) -> Tensor:
    """Mean square error per stack and image over labelled joints, (B, S); 0 for an image without any.

    A joint that is not labelled weighs nothing: it is not pulled towards an empty map, and whatever its target
    holds (NaN too) is not looked at.
    """
    target_BJHW = target_BJHW.masked_fill(~labelled_BJ[..., None, None], 0.0)
    error_BSJ = ((heatmaps_BSJHW.float() - target_BJHW[:, None]) ** 2).mean(dim=(3, 4))
    weight_B1J = labelled_BJ[:, None].to(error_BSJ.dtype)
    return (error_BSJ * weight_B1J).sum(dim=2) / weight_B1J.sum(dim=2).clamp_min(1.0)


def true_loss(heatmaps_BSJHW: Tensor, target_BJHW: Tensor, labelled_BJ: Tensor) -> Tensor:
    """The loss of each image that heads learn to predict: masked MSE averaged over stacks, (B,), detached."""
    return heatmap_mse(heatmaps_BSJHW.detach(), target_BJHW, labelled_BJ).mean(dim=1)


def pairs(batch: int, pairing: Pairing, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Row numbers (P,) and (P,) of the compared images.

    ``disjoint``: i with i + B/2, as in the papers (an odd last image is left over); ``all``: every i < j.
    A batch of one has no pair.
    """
    if pairing == "disjoint":
        half = batch // 2
        first_P = torch.arange(half, device=device)
        return first_P, first_P + half
    upper_2P = torch.triu_indices(batch, batch, offset=1, device=device)
    return upper_2P[0], upper_2P[1]


def margin_ranking(
    predicted_B: Tensor, true_B: Tensor, *, margin: float = 1.0, pairing: Pairing = "disjoint"
) -> Tensor:
    """Learning loss (Yoo and Kweon 2019; LL++ paper, Eq. 1): mean of max(0, -sign(l_i - l_j)(l̂_i - l̂_j) + ξ).

    A tie in the true loss has sign 0: it costs ξ and moves nothing.
    """
    i_P, j_P = pairs(len(predicted_B), pairing, predicted_B.device)
    sign_P = torch.sign(true_B[i_P] - true_B[j_P])
    return _mean(functional.relu(margin - sign_P * (predicted_B[i_P] - predicted_B[j_P])), predicted_B)


def pair_kl(predicted_B: Tensor, true_B: Tensor, *, pairing: Pairing = "disjoint") -> Tensor:
    """LearningLoss++ (LL++ paper, Eq. 3): mean KL(p‖q), p_i = l_i / (l_i + l_j), q = softmax(l̂).

    Written as softplus(d) - p·d - H(p) with d = l̂_i - l̂_j, which is the same number, stable at any d. With the
    floor on the losses p is always defined: equal losses, zeros included, give p = ½.
    """
    i_P, j_P = pairs(len(predicted_B), pairing, predicted_B.device)
    loss_B = true_B.clamp_min(LOSS_FLOOR)
    p_P = loss_B[i_P] / (loss_B[i_P] + loss_B[j_P])
    gap_P = predicted_B[i_P] - predicted_B[j_P]
    entropy_P = -(torch.xlogy(p_P, p_P) + torch.xlogy(1 - p_P, 1 - p_P))
    return _mean(functional.softplus(gap_P) - p_P * gap_P - entropy_P, predicted_B)


def margin_loss(head: LossHead, batch: HeadBatch) -> Tensor:
    """Learning loss of a head on a batch; images whose joints all left the view have no true loss and are in no pair."""
    rows_M, how = batch.seen_M, batch.config
    return margin_ranking(head(batch.features)[rows_M], batch.true_B[rows_M], margin=how.margin, pairing=how.pairing)


def kl_loss(head: LossHead, batch: HeadBatch) -> Tensor:
    """LearningLoss++ of a head on a batch, on the same images."""
    rows_M = batch.seen_M
    return pair_kl(head(batch.features)[rows_M], batch.true_B[rows_M], pairing=batch.config.pairing)


def _mean(values_P: Tensor, like_B: Tensor) -> Tensor:
    """Mean, or a zero that still belongs to the graph when there is no pair (batch of one)."""
    return values_P.mean() if len(values_P) else like_B.sum() * 0.0
