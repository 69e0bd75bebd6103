"""The stacked hourglass (Newell, Yang and Deng, ECCV 2016), with its multi-scale features exposed once.

It follows the authors' layer table. Two known faults of circulating copies are absent: the input of a stack
reaches the next stack (some copies overwrite it), and a residual block whose channels do not change has no
unused skip convolution (22 % of the parameters elsewhere).

Shapes: B batch, S stacks, J joints, C channels, H W heatmap (a quarter of the input side).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError

STRIDE = 4
"""Input pixels per heatmap cell."""

INPUT_MULTIPLE = 64
"""The stem halves twice and a depth-4 hourglass four times; a side that is no multiple would not add up again."""


class Features(NamedTuple):
    """What the last stack knows, for loss heads and samplers."""

    pyramid: tuple[Tensor, ...]
    """(B, C, h, w) from the finest (heatmap resolution) to the coarsest; each scale may have its own C."""
    penultimate_BCHW: Tensor
    """The layer before the heatmaps, as wide as the finest scale; its global average is what coreset compares."""
    heatmaps: tuple[Tensor, ...] = ()
    """(B, J, H, W) of every stack, the last one last; empty for nets of others, of which only the last are known."""

    def detached(self) -> Features:
        """The same numbers in float32, without a gradient and with memory of their own: for heads that learn."""
        return self.map(lambda value: value.detach().float().clone())

    def map(self, change: Callable[[Tensor], Tensor]) -> Features:
        """Every tensor changed."""
        return Features(
            tuple(change(scale) for scale in self.pyramid),
            change(self.penultimate_BCHW),
            tuple(change(maps) for maps in self.heatmaps),
        )


class PoseOutput(NamedTuple):
    """Heatmaps of every stack, and the features of the last."""

    heatmaps_BSJHW: Tensor
    features: Features


@dataclass(frozen=True, kw_only=True, slots=True)
class HourglassConfig:
    """Size of a stacked hourglass."""

    joints: int
    stacks: int = 2
    channels: int = 256
    depth: int = 4

    def __post_init__(self) -> None:
        if self.joints < 1 or self.stacks < 1 or self.depth < 1:
            raise ConfigError(f"hourglass: joints, stacks and depth must be at least 1, got {self}")
        if self.channels < 8 or self.channels % 8:
            raise ConfigError(f"hourglass: channels must be a multiple of 8, got {self.channels}")

    @property
    def scales(self) -> int:
        """Levels of the feature pyramid."""
        return self.depth + 1

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each pyramid scale, finest first."""
        return (self.channels,) * self.scales

    def sizes(self, cells: int) -> tuple[int, ...]:
        """Side of each pyramid scale for heatmaps of ``cells``."""
        return tuple(cells >> level for level in range(self.scales))


class Residual(nn.Module):
    """Pre-activation bottleneck: 1x1, 3x3, 1x1."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        middle = channels_out // 2
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, middle, 1)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, channels_out, 1)
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same height and width, ``channels_out`` channels."""
        # In place wherever no gradient needs what was there: fresh memory takes a fifth of the time.
        y = self.conv1(functional.relu(self.bn1(x_BCHW), inplace=True))
        y = self.conv2(functional.relu(self.bn2(y), inplace=True))
        y = self.conv3(functional.relu(self.bn3(y), inplace=True))
        return cast(Tensor, y.add_(self.skip(x_BCHW)))


class Hourglass(nn.Module):
    """One hourglass, recursive: halve, go deeper, come back up, add."""

    def __init__(self, depth: int, channels: int) -> None:
        super().__init__()
        self.up = Residual(channels, channels)
        self.low1 = Residual(channels, channels)
        self.low2: Hourglass | Residual = Hourglass(depth - 1, channels) if depth > 1 else Residual(channels, channels)
        self.low3 = Residual(channels, channels)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The output, and the decoder features of every coarser scale (before upsampling), finest first."""
        low = self.low1(functional.max_pool2d(x_BCHW, 2))
        coarser: tuple[Tensor, ...] = ()
        if isinstance(self.low2, Hourglass):
            low, coarser = self.low2(low)
        else:
            low = self.low2(low)
        low = self.low3(low)
        out = self.up(x_BCHW).add_(functional.interpolate(low, scale_factor=2.0, mode="nearest"))
        return out, (low, *coarser)


class StackedHourglass(nn.Module):
    """Stem and stacks: (B, 3, 4H, 4W) in [0, 1] to heatmaps and features."""

    def __init__(self, config: HourglassConfig) -> None:
        super().__init__()
        self.config = config
        channels, joints = config.channels, config.joints
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels // 4, 7, stride=2, padding=3),
            nn.BatchNorm2d(channels // 4),
            nn.ReLU(inplace=True),
            Residual(channels // 4, channels // 2),
            nn.MaxPool2d(2),
            Residual(channels // 2, channels // 2),
            Residual(channels // 2, channels),
        )
        stacks = range(config.stacks)
        between = range(config.stacks - 1)
        self.hourglasses = nn.ModuleList(Hourglass(config.depth, channels) for _ in stacks)
        self.necks = nn.ModuleList(
            nn.Sequential(
                Residual(channels, channels),
                nn.Conv2d(channels, channels, 1),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )
            for _ in stacks
        )
        self.outs = nn.ModuleList(nn.Conv2d(channels, joints, 1) for _ in stacks)
        self.merge_features = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in between)
        self.merge_heatmaps = nn.ModuleList(nn.Conv2d(joints, channels, 1) for _ in between)

    def forward(self, images_B3HW: Tensor) -> PoseOutput:
        """Raises :class:`ConfigError` for a side that is no multiple of 64 (at depth 4)."""
        multiple = STRIDE * 2**self.config.depth
        height, width = images_B3HW.shape[-2:]
        if height % multiple or width % multiple:
            raise ConfigError(
                f"a depth-{self.config.depth} hourglass takes sides that are multiples of {multiple} px, "
                f"got {height}x{width}"
            )
        x = self.stem(images_B3HW)
        heatmaps = []
        for stack, (hourglass, neck, out) in enumerate(zip(self.hourglasses, self.necks, self.outs, strict=True)):
            finest, coarser = hourglass(x)
            penultimate = neck(finest)
            heatmaps.append(out(penultimate))
            if stack < self.config.stacks - 1:
                merged = self.merge_heatmaps[stack](heatmaps[-1]).add_(x)
                x = merged.add_(self.merge_features[stack](penultimate))
        return PoseOutput(torch.stack(heatmaps, dim=1), Features((finest, *coarser), penultimate, tuple(heatmaps)))
