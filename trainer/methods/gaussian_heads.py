"""Auxiliary heads that predict a Gaussian: ``aleatoric``, of each joint's position, and ``vl4pose``, of each limb's length.

Both come in two forms. The plain names are the likelihoods as they should be; the names that end in ``-official`` keep what
the published code computes (an objective that also averages over absent joints, a plane's Gaussian with the normaliser of
a line's, a sum of log-likelihoods over peaks, no peaks near the edge), so that the two can be compared.

Shapes: B batch, J joints, L links of the skeleton's tree, P Q peaks of a map, M = B·J maps, H W heatmap, h w a pyramid
scale. Lengths are heatmap cells.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from ..heatmaps import decode
from ..models.auxiliary import AuxiliaryConfig, AuxiliaryHead, Links
from ..models.hourglass import Features
from .options import ScoreOptions

if TYPE_CHECKING:
    from ..training import HeadBatch

Over = Literal["expected", "official-sum"]

APART = 8
"""Cells of a map of 64 that peaks of VL4Pose are apart."""
WIDTH = 128
"""Units between the averaged features and the parameters."""
LOG_VARIANCE_REACH = 10.0
"""Log-variances stay within this of their start: exp() of them never overflows, even in a head that diverges."""

LN_2PI = math.log(2 * math.pi)


# --- Heads


class _AveragedNet(nn.Module):
    """Every scale and the penultimate map averaged → FC → ReLU → FC: (B, outputs)."""

    def __init__(self, config: AuxiliaryConfig, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(sum(config.widths) + config.widths[0], WIDTH)
        self.out = nn.Linear(WIDTH, outputs)

    def forward(self, features: Features) -> Tensor:
        maps = (*features.pyramid, features.penultimate_BCHW)
        averaged = torch.cat([scale_BChw.mean(dim=(2, 3)) for scale_BChw in maps], dim=1)
        result: Tensor = self.out(functional.relu(self.hidden(averaged)))
        return result


class AleatoricHead(AuxiliaryHead):
    """Log-variance of each joint's position (after Kendall and Gal, NeurIPS 2017, Eq. 5, on coordinates)."""

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__(config)
        self.net = _AveragedNet(config, config.joints)
        self.start = 2 * math.log(max(1.0, config.sizes[0] / 32))

    def forward(self, features: Features) -> Tensor:
        """Log-variances s (B, J): ln of squared heatmap cells, per axis."""
        return self.start + _bounded(self.net(features))


class LinkHead(AuxiliaryHead):
    """Length of each link of the skeleton and its log-variance (VL4Pose: Shukla et al., BMVC 2022).

    The net works in an eighth of the map, about a limb: from zero a length in cells takes an Adam of small steps
    longer than the whole training.
    """

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__(config)
        self.net = _AveragedNet(config, 2 * len(config.links))
        self.unit = config.sizes[0] / 8

    def forward(self, features: Features) -> Tensor:
        """(B, L, 2): mean length in heatmap cells, and the log of its variance in squared cells."""
        raw_BL2 = self.net(features).unflatten(1, (-1, 2))
        length_BL = self.unit * functional.softplus(raw_BL2[..., 0])
        log_variance_BL = 2 * math.log(self.unit) + _bounded(raw_BL2[..., 1])
        return torch.stack([length_BL, log_variance_BL], dim=-1)


def _bounded(raw: Tensor) -> Tensor:
    return LOG_VARIANCE_REACH * torch.tanh(raw / LOG_VARIANCE_REACH)


# --- Objectives


def aleatoric_objective(head: AuxiliaryHead, batch: HeadBatch) -> Tensor:
    """Likelihood of the pose net's errors under the predicted variances."""
    official = head.config.official
    residual_BJ2 = _places(batch.maps_BJHW, official) - _places(batch.target_BJHW, official)
    return aleatoric_loss(head(batch.features), residual_BJ2, batch.counts_BJ, official=official)


def link_objective(head: AuxiliaryHead, batch: HeadBatch) -> Tensor:
    """Likelihood of the true link lengths under the predicted ones."""
    true_BJ2 = _places(batch.target_BJHW, head.config.official)
    parent_L, child_L = torch.tensor(head.config.links, device=true_BJ2.device).reshape(-1, 2).unbind(dim=1)
    length_BL = torch.linalg.vector_norm(true_BJ2[:, parent_L] - true_BJ2[:, child_L], dim=2)
    counts_BL = batch.counts_BJ[:, parent_L] & batch.counts_BJ[:, child_L]
    return link_loss(head(batch.features), length_BL, counts_BL, official=head.config.official)


def _places(maps_BJHW: Tensor, official: bool) -> Tensor:
    """Where each map is highest as (x, y) in cells, (B, J, 2); the official form takes whole cells, the first of equals.

    A bell's centre is exact but for the outermost cells, where it is the cell.
    """
    if not official:
        return decode(maps_BJHW)[0]
    place_BJ, width = maps_BJHW.flatten(2).argmax(dim=2), maps_BJHW.shape[3]
    return torch.stack([place_BJ % width, place_BJ // width], dim=2).float()


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


def _mean(loss: Tensor, counts: Tensor, *, over_all: bool) -> Tensor:
    """Mean over what counts; the rest may be NaN or huge, so that it is masked out and not multiplied by 0."""
    kept = loss.masked_fill(~counts, 0.0)
    return kept.mean() if over_all else kept.sum() / counts.sum().clamp_min(1)


# --- Scores


def score(head: AuxiliaryHead, features: Features, heatmaps_BJHW: Tensor, options: ScoreOptions) -> Tensor:
    """The mean log-variance, or minus the log-likelihood of the skeleton, (B,); higher is chosen first."""
    config, said = head.config, head(features)
    if isinstance(head, AleatoricHead):
        return said.mean(dim=1)
    apart = max(1, round(APART * heatmaps_BJHW.shape[-1] / 64))
    count = 1 if config.official else options.peaks
    cells_BJP2, log_weight_BJP = find_peaks(heatmaps_BJHW, count, min_distance=apart, exclude_border=config.official)
    over: Over = "official-sum" if config.official else "expected"
    return -skeleton_likelihood(cells_BJP2, log_weight_BJP, said, config.links, over=over)


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
