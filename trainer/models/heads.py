"""Loss heads: from a pose net's features to one predicted loss per image.

What a head predicts is a ranking (learning loss) or a log-loss up to a constant (LearningLoss++): higher means
"this image is more wrong". Heads take :class:`Features` and never touch the pose net.

Shapes: B batch, C channels, h w a pyramid scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from ..methods.catalog import head_named, resolve
from .hourglass import Features

HeadName = str
"""Of a loss head in the catalog of methods."""

Ending = Literal["conv", "gap"]
Evidence = Literal["peaks", "peaks+pose", "maps", "maps+features", "maps+features+pose"]

MLP_WIDTHS = (128, 64, 32, 16, 8)
"""Hidden widths of the fully connected part, as in the code that was published with the LL++ paper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Which head, and the features it will see."""

    name: HeadName
    channels: int | tuple[int, ...]
    """Of every scale, or of each where they differ, finest first; the penultimate features have the finest's."""
    sizes: tuple[int, ...]
    """Side of each pyramid scale, finest first, such as (64, 32, 16, 8, 4)."""
    ending: Ending = "conv"
    """How ``ll++conv`` ends: a convolution over the whole coarsest map (published code) or its average (paper)."""
    joints: int = 0
    """Of the heatmaps that ``epck`` reads, as the next two."""
    peak: float = 0.0
    """Height that the heatmaps were trained towards."""
    evidence: Evidence = "maps+features"

    def __post_init__(self) -> None:
        if head_named(self.name).group != "loss":
            raise ConfigError(f"{self.name!r} is not a loss head, but an auxiliary one")
        if self.ending not in get_args(Ending):
            raise ConfigError(f"loss head ending {self.ending!r} is not one of {get_args(Ending)}")
        if self.evidence not in get_args(Evidence):
            raise ConfigError(f"loss head evidence {self.evidence!r} is not one of {get_args(Evidence)}")
        falls = all(a >= b for a, b in zip(self.sizes, self.sizes[1:], strict=False))
        if not self.sizes or self.sizes[-1] < 1 or not falls:
            raise ConfigError(f"pyramid sizes must fall from finest to coarsest, got {self.sizes}")
        if len(self.widths) != len(self.sizes) or min(self.widths) < 1:
            raise ConfigError(f"{len(self.sizes)} pyramid scales want as many channels, got {self.channels}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each scale, finest first."""
        return (self.channels,) * len(self.sizes) if isinstance(self.channels, int) else self.channels


class LossHead(nn.Module):
    """Base of all heads: holds its config and says what it returns."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Features) -> Tensor:
        """Predicted loss (B,), also for B = 1."""
        raise NotImplementedError


class MultiScaleGapHead(LossHead):
    """Learning loss as Yoo and Kweon drew it (CVPR 2019, Fig. 2).

    Every scale: global average → FC 128 → ReLU; concatenated → FC 1.
    """

    def __init__(self, config: HeadConfig, width: int = 128) -> None:
        super().__init__(config)
        self.branches = nn.ModuleList(nn.Linear(channels, width) for channels in config.widths)
        self.out = nn.Linear(width * len(config.sizes), 1)

    def forward(self, features: Features) -> Tensor:
        """Predicted loss (B,)."""
        parts = [
            functional.relu(branch(scale_BChw.mean(dim=(2, 3))))
            for branch, scale_BChw in zip(self.branches, features.pyramid, strict=True)
        ]
        return self.out(torch.cat(parts, dim=1))[:, 0]


class GapHead(LossHead):
    """Global average of the penultimate features → fully connected net.

    ``ll-gap`` and ``ll++`` share it; they differ in the objective alone.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.mlp = _mlp(config.widths[0])

    def forward(self, features: Features) -> Tensor:
        """Predicted loss (B,)."""
        return self.mlp(features.penultimate_BCHW.mean(dim=(2, 3)))[:, 0]


class ConvHead(LossHead):
    """The convolutional head of LearningLoss++ (section 4.2): fine features are folded into coarse ones.

    From scale n1 to the next coarser n2: ``F_n2 + ReLU(Conv(F_n1))`` with kernel and stride ⌊n1/n2⌋; where n1 is
    no multiple of n2 a second convolution of stride 1 cuts the rest. The paper writes no ReLU there and the
    published code has one; the code is followed. Then the coarsest map is reduced to one vector.
    """

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.downs = nn.ModuleList(
            _downscale(*widths, *sizes)
            for widths, sizes in zip(pairwise(config.widths), pairwise(config.sizes), strict=True)
        )
        coarsest, channels = config.sizes[-1], config.widths[-1]
        self.reduce: nn.Module = (
            nn.Sequential(nn.Conv2d(channels, channels, coarsest), nn.ReLU())
            if config.ending == "conv"
            else nn.AdaptiveAvgPool2d(1)
        )
        self.mlp = _mlp(channels)

    def forward(self, features: Features) -> Tensor:
        """Predicted loss (B,)."""
        sizes = tuple(tuple(scale_BChw.shape[-2:]) for scale_BChw in features.pyramid)
        if sizes != tuple((size, size) for size in self.config.sizes):
            raise ConfigError(f"this head was built for a square pyramid {self.config.sizes}, the net gives {sizes}")
        x_BChw = features.pyramid[0]
        for down, coarser_BChw in zip(self.downs, features.pyramid[1:], strict=True):
            x_BChw = coarser_BChw + functional.relu(down(x_BChw))
        return self.mlp(self.reduce(x_BChw).flatten(1))[:, 0]


def build_head(config: HeadConfig) -> LossHead:
    """The head that a config names, with the weights that torch's generator gives."""
    head: LossHead = resolve(head_named(config.name).module)(config)
    return head


def _downscale(channels_in: int, channels_out: int, fine: int, coarse: int) -> nn.Module:
    """Convolution from side ``fine`` to side ``coarse`` by the floor-division rule of the paper."""
    step = fine // coarse
    down = nn.Conv2d(channels_in, channels_out, step, stride=step)
    rest = (fine - step) // step + 1 - coarse
    return nn.Sequential(down, nn.Conv2d(channels_out, channels_out, rest + 1)) if rest else down


def _mlp(channels: int, widths: Sequence[int] = MLP_WIDTHS) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip((channels, *widths), (*widths, 1), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
