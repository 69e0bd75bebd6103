"""The expected-PCK head: for every joint the probability that its keypoint is right, and what that says of the image.

Where the heads of Learning Loss compress a feature map and guess one number, this one looks where the pose net looked:
each joint's heatmap, as a distribution over cells, reads what the earlier heatmaps and the features hold at that place.
A small network per joint, with a view of all joints, turns that into the probability that the keypoint lies within the
PCK threshold; one minus their mean is the share of wrong joints to expect (after the true-class probability of
ConfidNet, Corbière et al., NeurIPS 2019, which it applies to every joint).

Shapes: B batch, J joints, C channels, H W heatmap, h w another scale, D evidence of a joint, M hidden units.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from .heads import HeadConfig, LossHead

if TYPE_CHECKING:
    from .hourglass import Features

SHARPNESS = 30.0
"""Maps are scaled to a training peak of this before their softmax: a cell three tenths below the peak weighs nothing."""
DEEPEST = 2
"""The coarser scale whose features are read: a quarter of the heatmap's resolution, where it divides."""
OWN, SHARED = 16, 32
"""Hidden units of each joint, and of all joints together."""
DROPOUT = 0.4
CERTAIN = 1e-4
"""Shares of wrong joints nearer than this to 0 or 1 are told apart no more."""


class ExpectedPckHead(LossHead):
    """Logit of the share of joints that are expected to be wrong; ``confidence`` has the joints one by one.

    ``epck`` reads heatmaps and features, ``epck-slim`` the heights of the peaks alone.
    """

    mean_JD: Tensor
    deviation_JD: Tensor
    grid_P2: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        if config.joints < 1 or not config.peak > 0:
            raise ConfigError(f"{config.name} reads heatmaps: their joints and peak must be positive, got {config}")
        joints, cells = config.joints, config.sizes[0]
        self.scales = scales_read(config)
        self.depth = 2 if config.evidence == "peaks" else 5 + sum(config.widths[scale] for scale in self.scales)
        self.register_buffer("mean_JD", torch.zeros(joints, self.depth))
        self.register_buffer("deviation_JD", torch.ones(joints, self.depth))
        side = (torch.arange(cells) + 0.5) / cells * 2 - 1
        grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1).view(-1, 2)
        self.register_buffer("grid_P2", grid, persistent=False)
        self.per_joint = config.evidence != "peaks"  # two numbers of a joint need no network of their own
        if self.per_joint:
            self.own = nn.Parameter(torch.randn(joints, self.depth, OWN) / math.sqrt(self.depth))
            self.own_bias = nn.Parameter(torch.zeros(joints, 1, OWN))
            self.out_own = nn.Parameter(0.05 * torch.randn(joints, OWN, 1))
        self.shared = nn.Linear(joints * (OWN if self.per_joint else self.depth), SHARED)
        self.out_shared = nn.Linear(SHARED, joints)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, features: Features) -> Tensor:
        """Logit of the expected share of wrong joints, (B,)."""
        return self.logit(self.evidence(features))

    def logit(self, evidence_BJD: Tensor) -> Tensor:
        """The same from what :meth:`evidence` read, (B,)."""
        return self.logit_of(self.logits(evidence_BJD))

    def logit_of(self, logits_BJ: Tensor) -> Tensor:
        """The same from what :meth:`logits` says of the joints, (B,)."""
        return share_to_logit(1 - torch.sigmoid(logits_BJ).mean(dim=1))

    def confidence(self, features: Features) -> Tensor:
        """Probability of each joint that its keypoint is right, (B, J)."""
        return torch.sigmoid(self.logits(self.evidence(features)))

    def logits(self, evidence_BJD: Tensor) -> Tensor:
        """Logit of each joint's probability, (B, J), from what :meth:`evidence` read."""
        scaled_BJD = (evidence_BJD - self.mean_JD) / self.deviation_JD
        if not self.per_joint:
            return self.out_shared(functional.relu(self.shared(scaled_BJD.flatten(1))))
        own_JBM = self.drop(functional.relu(scaled_BJD.transpose(0, 1) @ self.own + self.own_bias))
        shared_BM = self.drop(functional.relu(self.shared(own_JBM.transpose(0, 1).flatten(1))))
        return (own_JBM @ self.out_own)[..., 0].transpose(0, 1) + self.out_shared(shared_BM)

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

    def standardise(self, evidence_NJD: Tensor) -> None:
        """Take mean and deviation of every number of the evidence from the people that train the head."""
        self.mean_JD.copy_(evidence_NJD.mean(dim=0))
        # A number that never changes says nothing, and must not be blown up where it changes one day.
        one_alone = len(evidence_NJD) == 1  # has no deviation
        self.deviation_JD.copy_(evidence_NJD.std(dim=0, correction=int(not one_alone)).clamp_min(1e-3))

    @torch.no_grad()
    def leave_out(self, untaught_J: Tensor, share: float) -> None:
        """Let joints that nobody could teach say of everybody what all joints are on average.

        Their weights are what they were drawn as; in the mean over joints that would be noise.

        Args:
            untaught_J: mask.
            share: of right joints in training, in (0, 1).
        """
        if self.per_joint:
            self.out_own[untaught_J] = 0.0
        self.out_shared.weight[untaught_J] = 0.0
        self.out_shared.bias[untaught_J] = math.log(share / (1 - share))

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


def share_to_logit(share_B: Tensor) -> Tensor:
    """``ln(s / (1 - s))``: what a share of wrong joints becomes, so that a calibration can be linear in it."""
    share_B = share_B.clamp(CERTAIN, 1 - CERTAIN)
    return torch.log(share_B) - torch.log1p(-share_B)


def _read(look_BJP: Tensor, scale_BChw: Tensor, cells: int) -> Tensor:
    """Features averaged where each joint's map looks, (B, J, C)."""
    step = cells // scale_BChw.shape[-1]
    if step > 1:
        look = look_BJP.unflatten(2, (cells, cells))
        look_BJP = functional.avg_pool2d(look, step).flatten(2) * step**2
    return look_BJP @ scale_BChw.flatten(2).transpose(1, 2)
