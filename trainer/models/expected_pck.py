"""The expected-PCK head: for every joint the probability that its keypoint is right, and what that says of the image.

Where the heads of Learning Loss compress a feature map and guess one number, this one looks where the pose net looked:
each joint's heatmap, as a distribution over cells, reads what the earlier heatmaps and the features hold at that place.
A small network per joint, with a view of all joints, turns that into the probability that the keypoint lies within the
PCK threshold; one minus their mean is the share of wrong joints to expect (after the true-class probability of
ConfidNet, Corbière et al., NeurIPS 2019, which it applies to every joint).

Shapes: B batch, J joints, C channels, H W heatmap, h w another scale, D evidence of a joint, M hidden units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from .heads import HeadConfig, LossHead
from .joint_network import JointNetwork

if TYPE_CHECKING:
    from .hourglass import Features

SHARPNESS = 30.0
"""Maps are scaled to a training peak of this before their softmax: a cell three tenths below the peak weighs nothing."""
DEEPEST = 2
"""The coarser scale whose features are read: a quarter of the heatmap's resolution, where it divides."""


class ExpectedPckHead(JointNetwork, LossHead):
    """Logit of the share of joints that are expected to be wrong; ``confidence`` has the joints one by one.

    ``epck`` reads heatmaps and features, ``epck-slim`` the heights of the peaks alone.
    """

    grid_P2: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        if config.joints < 1 or not config.peak > 0:
            raise ConfigError(f"{config.name} reads heatmaps: their joints and peak must be positive, got {config}")
        joints, cells = config.joints, config.sizes[0]
        self.scales = scales_read(config)
        depth = 2 if config.evidence == "peaks" else 5 + sum(config.widths[scale] for scale in self.scales)
        side = (torch.arange(cells) + 0.5) / cells * 2 - 1
        grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).view(-1, 2)
        self.register_buffer("grid_P2", grid, persistent=False)
        # Two numbers of a joint need no network of their own.
        self.build(joints, depth, per_joint=config.evidence != "peaks")

    def forward(self, features: Features) -> Tensor:
        """Logit of the expected share of wrong joints, (B,)."""
        return self.logit(self.evidence(features))

    def confidence(self, features: Features) -> Tensor:
        """Probability of each joint that its keypoint is right, (B, J)."""
        return torch.sigmoid(self.logits(self.evidence(features)))

    def evidence(self, features: Features) -> Tensor:
        """What speaks for or against each keypoint, (B, J, D).

        The peak of the last and of the first map; the first map where the last one looks; where that is, in [-1, 1];
        and the features there. ``peaks`` is the first two alone.
        """
        if not features.heatmaps:
            raise ConfigError(f"{self.config.name} reads heatmaps, which this net does not hand over")
        last, first = features.heatmaps[-1], features.heatmaps[0]
        self._check(last)
        peaks = [maps.amax(dim=(2, 3))[..., None] / self.config.peak for maps in (last, first)]
        if self.config.evidence == "peaks":
            return torch.cat(peaks, dim=2)
        last_BJP, first_BJP = last.flatten(2) / self.config.peak, first.flatten(2) / self.config.peak
        look_BJP = (last_BJP * SHARPNESS).softmax(dim=2)
        agreed_BJ1 = (look_BJP * first_BJP).sum(dim=2, keepdim=True)
        read = [_read(look_BJP, features.pyramid[scale], self.config.sizes[0]) for scale in self.scales]
        return torch.cat([*peaks, agreed_BJ1, look_BJP @ self.grid_P2, *read], dim=2)

    def _check(self, maps_BJHW: Tensor) -> None:
        joints, cells = self.config.joints, self.config.sizes[0]
        wanted = (joints,) if self.config.evidence == "peaks" else (joints, cells, cells)
        shape = tuple(maps_BJHW.shape[1 : 1 + len(wanted)])
        if shape != wanted:
            raise ConfigError(f"{self.config.name} was built for heatmaps {wanted}, the net gives {shape}")


def scales_read(config: HeadConfig) -> tuple[int, ...]:
    """Scales of the pyramid whose features are read: the finest, and the coarsest of the next ones that divides it."""
    if config.evidence != "maps+features":
        return ()
    finest = config.sizes[0]
    coarser = [scale for scale in range(1, min(DEEPEST + 1, len(config.sizes))) if finest % config.sizes[scale] == 0]
    return (0, *coarser[-1:])


def _read(look_BJP: Tensor, scale_BChw: Tensor, cells: int) -> Tensor:
    """Features averaged where each joint's map looks, (B, J, C)."""
    step = cells // scale_BChw.shape[-1]
    if step > 1:
        look = look_BJP.unflatten(2, (cells, cells))
        look_BJP = functional.avg_pool2d(look, step).flatten(2) * step**2
    return look_BJP @ scale_BChw.flatten(2).transpose(1, 2)
