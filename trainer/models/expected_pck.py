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
SMALLEST = 1e-2
"""Poses smaller than this, in half sides of the map, are no smaller: joints on one spot have neither lengths nor angles."""
POSE_UNITS, POSE_DROPOUT = 64, 0.3
"""Hidden units of all joints together, and how many are dropped, where the pose is read and joints have none of their own."""
HEIGHTS = 3
"""Numbers of the evidence of ``maps`` that are heights of heatmaps; they come first."""
DEEPEST = 2
"""The coarser scale whose features are read: a quarter of the heatmap's resolution, where it divides."""


class ExpectedPckHead(JointNetwork, LossHead):
    """Logit of the share of joints that are expected to be wrong; ``confidence`` has the joints one by one.

    ``epck`` reads heatmaps and features, ``epck-slim`` the heights of the peaks alone; with ``+pose`` both read how the
    joints lie to each other besides.
    """

    grid_P2: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        if config.joints < 1 or not config.peak > 0:
            raise ConfigError(f"{config.name} reads heatmaps: their joints and peak must be positive, got {config}")
        joints, cells = config.joints, config.sizes[0]
        self.scales = scales_read(config)
        self.reads_pose = config.evidence.endswith("+pose")
        self.reads_peaks = config.evidence.startswith("peaks")
        depth = 2 + self.reads_pose if self.reads_peaks else 5 + sum(config.widths[scale] for scale in self.scales)
        depth += self.reads_pose * (2 * joints + 3)
        side = (torch.arange(cells) + 0.5) / cells * 2 - 1
        grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).view(-1, 2)
        self.register_buffer("grid_P2", grid, persistent=False)
        # A few numbers of a joint need no network of their own.
        if not self.reads_peaks:
            self.build(joints, depth)
        elif self.reads_pose:
            self.build(joints, depth, per_joint=False, shared=POSE_UNITS, dropout=POSE_DROPOUT)
        else:
            self.build(joints, depth, per_joint=False, dropout=0.0)

    def forward(self, features: Features) -> Tensor:
        """Logit of the expected share of wrong joints, (B,)."""
        return self.logit(self.evidence(features))

    def confidence(self, features: Features) -> Tensor:
        """Probability of each joint that its keypoint is right, (B, J)."""
        return torch.sigmoid(self.logits(self.evidence(features)))

    def evidence(self, features: Features) -> Tensor:
        """What speaks for or against each keypoint, (B, J, D).

        The peak of the last and of the first map; the first map where the last one looks; where that is, in [-1, 1];
        and the features there. ``peaks`` is the first two alone. With ``+pose`` the places of all joints follow, see
        :func:`lie_of`; ``peaks+pose`` takes the highest cells for the places, and reads the first map there.
        """
        if not features.heatmaps:
            raise ConfigError(f"{self.config.name} reads heatmaps, which this net does not hand over")
        last, first = features.heatmaps[-1], features.heatmaps[0]
        self._check(last)
        peaks = [maps.amax(dim=(2, 3))[..., None] / self.config.peak for maps in (last, first)]
        if self.config.evidence == "peaks":
            return torch.cat(peaks, dim=2)
        if self.reads_peaks:
            highest_BJ1 = last.flatten(2).argmax(dim=2, keepdim=True)
            agreed_BJ1 = first.flatten(2).gather(2, highest_BJ1) / self.config.peak
            return torch.cat([*peaks, agreed_BJ1, lie_of(self.grid_P2[highest_BJ1[..., 0]])], dim=2)
        look_BJP = (last.flatten(2) / self.config.peak * SHARPNESS).softmax(dim=2)
        return self.evidence_of(features, peaks[0], first.flatten(2) / self.config.peak, look_BJP)

    def evidence_of(self, features: Features, peak_BJ1: Tensor, first_BJP: Tensor, look_BJP: Tensor) -> Tensor:
        """:meth:`evidence` where the last map's peaks (B, J, 1), the first map and where the last one looks (B, J, P) are
        known already. The first :data:`HEIGHTS` numbers are heights in the unit of these maps."""
        of_first = [first_BJP.amax(dim=2, keepdim=True), (look_BJP * first_BJP).sum(dim=2, keepdim=True)]
        read = [_read(look_BJP, features.pyramid[scale], self.config.sizes[0]) for scale in self.scales]
        place_BJ2 = look_BJP @ self.grid_P2
        lie = [lie_of(place_BJ2)] if self.reads_pose else []
        return torch.cat([peak_BJ1, *of_first, place_BJ2, *read, *lie], dim=2)

    def _check(self, maps_BJHW: Tensor) -> None:
        joints, cells = self.config.joints, self.config.sizes[0]
        wanted = (joints,) if self.config.evidence == "peaks" else (joints, cells, cells)
        shape = tuple(maps_BJHW.shape[1 : 1 + len(wanted)])
        if shape != wanted:
            raise ConfigError(f"{self.config.name} was built for heatmaps {wanted}, the net gives {shape}")


def lie_of(place_BJ2: Tensor) -> Tensor:
    """How each joint lies to all others, (B, J, 2J + 3): what tells a body that cannot be, or one with its sides exchanged.

    Its place about the centre of all joints, in units of their root mean square; the dot and the cross products with the
    places of all joints, which hold all lengths, angles and sides; and the logarithm of that unit. The products do not
    depend on where the person stands, how large and how turned it is.
    """
    centred_BJ2 = place_BJ2 - place_BJ2.mean(dim=1, keepdim=True)
    unit_B11 = centred_BJ2.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(SMALLEST)
    own_BJ2 = centred_BJ2 / unit_B11
    x_BJ1, y_BJ1 = own_BJ2.split(1, dim=2)
    others_B2J = own_BJ2.transpose(1, 2)
    turned_B2J = torch.cat([y_BJ1, -x_BJ1], dim=2).transpose(1, 2)
    size_BJ1 = unit_B11.log().expand(-1, place_BJ2.shape[1], -1)
    return torch.cat([own_BJ2, own_BJ2 @ others_B2J, own_BJ2 @ turned_B2J, size_BJ1], dim=2)


def scales_read(config: HeadConfig) -> tuple[int, ...]:
    """Scales of the pyramid whose features are read: the finest, and the coarsest of the next ones that divides it."""
    if not config.evidence.startswith("maps+features"):
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
