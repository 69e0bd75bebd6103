"""Auxiliary heads in use: their objectives, their training on a frozen pose net, and the scores that samplers rank by.

Aleatoric uncertainty and VL4Pose come in two forms. The plain names are the likelihoods as they should be; the names
that end in ``-official`` keep what the published code computes (an objective that also averages over absent joints, a
plane's Gaussian with the normaliser of a line's, a sum of log-likelihoods over peaks, no peaks near the edge), so that
the two can be set side by side.

Shapes: B batch, J joints, L links, K members, P Q peaks of a map, M = B·J maps, H W heatmap. Lengths are heatmap cells.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from .checkpoint import PoseModel
from .data.crops import Crops
from .device import Machine
from .heatmaps import decode
from .models.auxiliary import (
    MEMBERS,
    AuxiliaryConfig,
    AuxiliaryHead,
    AuxiliaryName,
    Links,
    check_skeleton,
    seeded_auxiliary,
    tree_of,
)
from .models.hourglass import Features
from .objectives import heatmap_mse
from .training import Frozen, HeadTraining, average_gradients, on_frozen

Over = Literal["expected", "official-sum"]

PEAKS = 5
"""Candidates per joint of the corrected VL4Pose, by default; the published configuration has one, and so has its form
here."""
APART = 8
"""Cells of a map of 64 that peaks of VL4Pose are apart."""

LN_2PI = math.log(2 * math.pi)


# --- Objectives


def aleatoric_loss(
    log_variance_BJ: Tensor, residual_BJ2: Tensor, counts_BJ: Tensor, *, official: bool = False
) -> Tensor:
    """Negative log-likelihood of residuals r under an isotropic Gaussian of the plane, without its constant ln 2π.

    ``½|r|² exp(-s) + s``, averaged over the joints that count: both axes have variance exp(s), so that s enters twice
    by a half. The published code has ½ s, the normaliser of one axis (the minimum is then at ln|r|² and not at
    ln(|r|²/2)), and divides by all joints, absent ones included.
    """
    weight = 0.5 if official else 1.0
    loss_BJ = 0.5 * residual_BJ2.square().sum(dim=2) * torch.exp(-log_variance_BJ) + weight * log_variance_BJ
    return _mean(loss_BJ, counts_BJ, over_all=official)


def link_loss(parameters_BL2: Tensor, length_BL: Tensor, counts_BL: Tensor, *, official: bool = False) -> Tensor:
    """Negative log-likelihood of link lengths d, without its constant: ``½(µ - d)² exp(-s) + ½ s`` (VL4Pose).

    Averaged over links with two labelled ends; the published code divides by all links.
    """
    mean_BL, log_variance_BL = parameters_BL2.unbind(dim=2)
    loss_BL = 0.5 * (mean_BL - length_BL).square() * torch.exp(-log_variance_BL) + 0.5 * log_variance_BL
    return _mean(loss_BL, counts_BL, over_all=official)


def committee_loss(heatmaps_BKJHW: Tensor, target_BJHW: Tensor, counts_BJ: Tensor, weight_BK: Tensor) -> Tensor:
    """Heatmap MSE of every member on its own resample of people; ``weight_BK`` says how often each person is in it."""
    return (heatmap_mse(heatmaps_BKJHW, target_BJHW, counts_BJ) * weight_BK).mean()


def _mean(loss: Tensor, counts: Tensor, *, over_all: bool) -> Tensor:
    # What does not count may be NaN or huge: masked out, not multiplied by 0.
    kept = loss.masked_fill(~counts, 0.0)
    return kept.mean() if over_all else kept.sum() / counts.sum().clamp_min(1)


def bootstrap_weights(ids: tuple[str, ...], members: int, seed: int) -> Tensor:
    """How often each person is in each member's resample (B, K): Poisson(1), the bootstrap's limit.

    A hash of (seed, member, id) decides, so that a person keeps its weights while the labelled set grows.
    """
    steps = torch.tensor([math.exp(-1) * sum(1 / math.factorial(n) for n in range(top + 1)) for top in range(7)],
                         dtype=torch.float64)  # fmt: skip
    uniform_BK = torch.tensor(
        [[_uniform(seed, member, id_) for member in range(members)] for id_ in ids], dtype=torch.float64
    )
    return torch.searchsorted(steps, uniform_BK, right=True).float()


def _uniform(seed: int, member: int, id_: str) -> float:
    digest = hashlib.sha256(f"{seed}/resample {member}/{id_}".encode()).digest()
    return int.from_bytes(digest[:6], "little") / 2**48


# --- Training


def new_auxiliary(model: PoseModel, name: AuxiliaryName, seed: int, *, members: int = MEMBERS) -> AuxiliaryHead:
    """An auxiliary head with fresh weights that fits a model; they depend on ``seed``, ``name`` and ``members`` alone."""
    check_skeleton(name, model.skeleton)
    net = model.pose.config
    config = AuxiliaryConfig(
        name=name, widths=net.widths, sizes=net.sizes(model.size), joints=len(model.skeleton),
        links=tree_of(model.skeleton), peak=model.target.peak, members=members,
    )  # fmt: skip
    return seeded_auxiliary(config, seed)


def train_auxiliary(
    model: PoseModel,
    heads: Mapping[AuxiliaryName, AuxiliaryHead],
    crops: Crops,
    config: HeadTraining,
    machine: Machine,
    *,
    seed: int,
    validation: float,
    what: str = "auxiliary heads",
) -> dict[str, list[float]]:
    """Train auxiliary heads in place on a frozen pose net, which does not change by a bit; one pass feeds them all.

    Views, batches, rate and epochs are those of the loss heads. Returns each head's mean loss per epoch.
    """

    def step(seen: Frozen, optimisers: Mapping[AuxiliaryName, torch.optim.Optimizer]) -> dict[str, Tensor]:
        features = seen.output.features.detached()
        last_BJHW = seen.output.heatmaps_BSJHW[:, -1].float().clone()
        losses: dict[str, Tensor] = {}
        for name, head in heads.items():
            loss = _loss(head, features, last_BJHW, seen, seed)
            optimisers[name].zero_grad(set_to_none=True)
            loss.backward()
            average_gradients(head, machine)
            optimisers[name].step()
            losses[name] = loss.detach()
        return losses

    return on_frozen(model, heads, step, crops, config, machine, seed=seed, validation=validation, what=what)


def _loss(head: AuxiliaryHead, features: Features, last_BJHW: Tensor, seen: Frozen, seed: int) -> Tensor:
    config, said = head.config, head(features)
    if config.name == "ensemble":
        weight_BK = bootstrap_weights(seen.ids, config.members, seed).to(said.device)
        return committee_loss(said, seen.target_BJHW, seen.counts_BJ, weight_BK)
    # A bell's centre is exact but for the outermost cells, where it is the cell.
    where = _cells if config.official else lambda maps: decode(maps)[0]
    true_BJ2 = where(seen.target_BJHW)
    if config.name.startswith("aleatoric"):
        return aleatoric_loss(said, where(last_BJHW) - true_BJ2, seen.counts_BJ, official=config.official)
    parent_L, child_L = _ends(config.links, said.device)
    length_BL = torch.linalg.vector_norm(true_BJ2[:, parent_L] - true_BJ2[:, child_L], dim=2)
    counts_BL = seen.counts_BJ[:, parent_L] & seen.counts_BJ[:, child_L]
    return link_loss(said, length_BL, counts_BL, official=config.official)


def _ends(links: Links, device: torch.device) -> tuple[Tensor, Tensor]:
    parent_L, child_L = torch.tensor(links, device=device).reshape(-1, 2).unbind(dim=1)
    return parent_L, child_L


def _cells(maps_BJHW: Tensor) -> Tensor:
    """The highest cell of each map as (x, y), (B, J, 2); the first of equals."""
    place_BJ, width = maps_BJHW.flatten(2).argmax(dim=2), maps_BJHW.shape[3]
    return torch.stack([place_BJ % width, place_BJ // width], dim=2).float()


# --- Scores


def auxiliary_score(head: AuxiliaryHead, features: Features, heatmaps_BJHW: Tensor, *, peaks: int = PEAKS) -> Tensor:
    """What a sampler ranks by (B,); higher is chosen first.

    Args:
        head: which decides what the score is: the mean log-variance, minus the log-likelihood of the skeleton, or the
            committee's disagreement.
        features: float32 features of the pose net.
        heatmaps_BJHW: the pose net's maps, scaled to a training peak of 30; only VL4Pose looks at them.
        peaks: candidates per joint of VL4Pose; its official form has one.
    """
    config, said = head.config, head(features)
    if config.name == "ensemble":
        return disagreement(said)
    if config.name.startswith("aleatoric"):
        return said.mean(dim=1)
    apart = max(1, round(APART * heatmaps_BJHW.shape[-1] / 64))
    cells_BJP2, log_weight_BJP = find_peaks(heatmaps_BJHW, 1 if config.official else peaks, min_distance=apart,
                                            exclude_border=config.official)  # fmt: skip
    over: Over = "official-sum" if config.official else "expected"
    return -skeleton_likelihood(cells_BJP2, log_weight_BJP, said, config.links, over=over)


def disagreement(heatmaps_BKJHW: Tensor) -> Tensor:
    """How far apart two members find a joint, in cells: mean over joints and pairs of members, (B,).

    Of the committee's maps only the places of their peaks count. The variance of the maps themselves says how high the
    bells are: a net that knows nothing draws flat maps, about which all members agree, so that it ranks a pool the wrong
    way round.
    """
    members = heatmaps_BKJHW.shape[1]
    return mean_distance(decode(heatmaps_BKJHW.flatten(0, 1))[0].unflatten(0, (-1, members)))


def mean_distance(cells_BKJ2: Tensor) -> Tensor:
    """Between the places that two members name for a joint: mean over joints and pairs of members (B,)."""
    members = cells_BKJ2.shape[1]
    one_P, other_P = torch.triu_indices(members, members, offset=1, device=cells_BKJ2.device)
    apart_BPJ = torch.linalg.vector_norm(cells_BKJ2[:, one_P] - cells_BKJ2[:, other_P], dim=3)
    return apart_BPJ.mean(dim=(1, 2))


def find_peaks(
    heatmaps_BJHW: Tensor, num_peaks: int, *, min_distance: int, exclude_border: bool = False
) -> tuple[Tensor, Tensor]:
    """The highest peaks of each map: cells (B, J, P, 2) as (x, y), and ln softmax of their heights (B, J, P).

    A peak is the highest cell within ``min_distance`` cells in both axes. Places without a peak weigh ln 0 = -inf. A map
    without any (flat, or all of them within ``min_distance`` of an edge that is excluded) has one: its highest cell,
    the first of equals, so that a person cut off by the frame is judged like everybody.
    """
    if num_peaks < 1 or min_distance < 0:
        raise ConfigError(f"peaks: at least 1 and a distance of at least 0, got {num_peaks} and {min_distance}")
    maps_MHW = heatmaps_BJHW.float().flatten(0, 1)
    height, width = maps_MHW.shape[1:]
    window = _highest_near(_highest_near(maps_MHW, min_distance, 1), min_distance, 2)
    is_peak = (maps_MHW == window) & (maps_MHW > maps_MHW.amin(dim=(1, 2), keepdim=True))
    if exclude_border and min_distance:
        inside = torch.zeros_like(is_peak)
        inside[:, min_distance : height - min_distance, min_distance : width - min_distance] = True
        is_peak &= inside
    candidates_MK = maps_MHW.masked_fill(~is_peak, -torch.inf).flatten(1)
    value_MP, place_MP = candidates_MK.topk(min(num_peaks, height * width), dim=1)
    none_M = value_MP[:, 0] == -torch.inf
    value_MP[:, 0] = value_MP[:, 0].masked_fill(none_M, 0.0)
    place_MP[:, 0] = torch.where(none_M, maps_MHW.flatten(1).argmax(dim=1), place_MP[:, 0])
    cells_MP2 = torch.stack([place_MP % width, place_MP // width], dim=2).float()
    shape = heatmaps_BJHW.shape[:2]
    return cells_MP2.unflatten(0, shape), functional.log_softmax(value_MP, dim=1).unflatten(0, shape)


def _highest_near(maps: Tensor, reach: int, dim: int) -> Tensor:
    """Highest within ``reach`` of each cell along an axis: windows of 1, 2, 4, … cells, then the rest."""
    edge = maps.new_full([reach if axis == dim else size for axis, size in enumerate(maps.shape)], -torch.inf)
    highest, width, whole = torch.cat([edge, maps, edge], dim=dim), 1, 2 * reach + 1
    while width < whole:
        step = min(width, whole - width)
        kept = highest.shape[dim] - step
        highest = torch.maximum(highest.narrow(dim, 0, kept), highest.narrow(dim, step, kept))
        width += step
    return highest


def skeleton_likelihood(
    cells_BJP2: Tensor, log_weight_BJP: Tensor, parameters_BL2: Tensor, links: Links, *, over: Over = "expected"
) -> Tensor:
    """Log-likelihood of a person's link lengths under VL4Pose's Gaussians, (B,).

    One choice of a peak p for every joint has ``Σ ln w(p) + Σ ln N(|p_u - p_v|; µ, exp s)`` over joints and links
    (u, v). With one peak per joint both forms below are that number.

    Args:
        cells_BJP2: peaks of every joint.
        log_weight_BJP: ln of their weights, which sum to 1 over P; -inf where there is none.
        parameters_BL2: mean and log-variance of every link's length.
        links: the tree, parents first. A joint in no link does not enter.
        over: ``expected``: ln of the expected likelihood, the sum over *all* choices of peaks by sum-product on the
            tree; it does not depend on the root, and a peak of no weight changes nothing. ``official-sum``: at every
            joint the published code adds up *log*-likelihoods of its peaks, which is neither an expectation nor a
            maximum: a peak of hardly any weight, which should change nothing, lowers the result most.
    """
    said_BJP = list(log_weight_BJP.unbind(dim=1))
    mean_BL, log_variance_BL = parameters_BL2.unbind(dim=2)
    for link in reversed(range(len(links))):  # from the leaves up
        parent, child = links[link]
        length_BPQ = torch.cdist(
            cells_BJP2[:, parent], cells_BJP2[:, child], compute_mode="donot_use_mm_for_euclid_dist"
        )
        mean_B11, log_variance_B11 = mean_BL[:, link, None, None], log_variance_BL[:, link, None, None]
        log_density_BPQ = -0.5 * (
            LN_2PI + log_variance_B11 + (mean_B11 - length_BPQ).square() * torch.exp(-log_variance_B11)
        )
        said_BJP[parent] = said_BJP[parent] + _gather(log_density_BPQ + said_BJP[child][:, None, :], over)
    children = {child for _, child in links}
    roots = {parent for parent, _ in links} - children
    return torch.stack([_gather(said_BJP[root], over) for root in sorted(roots)]).sum(dim=0)


def _gather(log_likelihood: Tensor, over: Over) -> Tensor:
    """Over the peaks of the last axis, those of weight 0 apart."""
    if over == "expected":
        return torch.logsumexp(log_likelihood, dim=-1)
    return torch.where(log_likelihood > -torch.inf, log_likelihood, 0.0).sum(dim=-1)
