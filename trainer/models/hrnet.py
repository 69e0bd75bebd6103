"""HRNet (Sun, Xiao, Liu and Wang, CVPR 2019): a full-resolution branch all the way, coarser ones beside it.

Written from the paper's section 3 and Figs. 1 and 3. Branches run side by side and are *exchanged* at the end of
every module: each branch becomes the sum of all, brought to its resolution. The pose comes from the finest one.

Where a side halves to a fraction, a strided 3x3 convolution rounds up (25 cells → 13 → 7 → 4). On the way back every
coarse cell covers its 2ᵏ fine ones and what hangs over the edge is cut: the cell below is always the one that saw it.

Shapes: B batch, J joints, C channels, H W heatmap (a quarter of the input side), h w a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from .hourglass import STRIDE, Features, PoseOutput

EXPANSION = 4
"""A bottleneck of the first stage gives four times its middle channels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HRNetConfig:
    """Size of an HRNet; the defaults are HRNet-W32."""

    joints: int
    width: int = 32
    """Channels of the finest branch; every coarser one has twice as many."""
    modules: tuple[int, ...] = (1, 4, 3)
    """Exchange modules of stage 2, stage 3, …; each stage begins one more branch."""
    blocks: int = 4
    """Residual blocks per branch between two exchanges, and bottlenecks of stage 1."""
    stem: int = 64
    """Channels of the stem, and of the bottlenecks' middle."""

    def __post_init__(self) -> None:
        if min(self.joints, self.width, self.blocks, self.stem) < 1:
            raise ConfigError(f"hrnet: joints, width, blocks and stem must be at least 1, got {self}")
        if not self.modules or min(self.modules) < 1:
            raise ConfigError(f"hrnet: modules names at least one stage, each of at least 1, got {self.modules}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each pyramid scale, finest first."""
        return tuple(self.width << level for level in range(len(self.modules) + 1))

    def sizes(self, cells: int) -> tuple[int, ...]:
        """Side of each pyramid scale for heatmaps of ``cells``; halves are rounded up."""
        return tuple(-(-cells >> level) for level in range(len(self.modules) + 1))


class Block(nn.Module):
    """Two 3x3 convolutions around an identity: the unit of every branch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = _conv(channels, channels, 3)
        self.two = _conv(channels, channels, 3, relu=False)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Same shape."""
        return functional.relu(x_BChw + self.two(self.one(x_BChw)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 around a skip: the unit of stage 1."""

    def __init__(self, channels_in: int, middle: int) -> None:
        super().__init__()
        out = middle * EXPANSION
        self.body = nn.Sequential(
            _conv(channels_in, middle, 1), _conv(middle, middle, 3), _conv(middle, out, 1, relu=False)
        )
        self.skip = nn.Identity() if channels_in == out else _conv(channels_in, out, 1, relu=False)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Same height and width, four times ``middle`` channels."""
        return functional.relu(self.body(x_BChw) + self.skip(x_BChw))


class Exchange(nn.Module):
    """One module: every branch goes through its blocks, then each becomes the sum of all (paper, section 3).

    The last module of the net gives the finest branch alone, as nothing would read the others: ``outputs`` = 1.
    """

    def __init__(self, widths: Sequence[int], blocks: int, outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(Block(width) for _ in range(blocks))) for width in widths)
        self.paths = nn.ModuleList(
            nn.ModuleList(_path(widths, source, target) for source in range(len(widths))) for target in range(outputs)
        )

    def forward(self, scales: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The exchanged scales, and what the branches gave before the exchange; finest first."""
        before = tuple(branch(x_BChw) for branch, x_BChw in zip(self.branches, scales, strict=True))
        after = []
        for target, paths in enumerate(self.paths):
            height, width = before[target].shape[-2:]
            total = before[target]
            for source, path in enumerate(paths):  # type: ignore[arg-type, var-annotated]
                if source != target:
                    x_BChw = path(before[source])
                    if source > target:
                        x_BChw = functional.interpolate(x_BChw, scale_factor=2.0 ** (source - target), mode="nearest")
                        x_BChw = x_BChw[..., :height, :width]
                    total = total + x_BChw
            after.append(functional.relu(total))
        return tuple(after), before


class HRNet(nn.Module):
    """(B, 3, 4H, 4W) in [0, 1] to heatmaps and features.

    HRNet-W32 with 17 joints has 28,536,113 parameters: 28,535,552 and the 561 of the last convolution. Table 1 of the
    paper rounds to 28.5 M; the authors' ``pose_hrnet.py`` (MIT; commit 6f69e46, ``w32_256x192_adam_lr1e-3``) counts
    the same, and with the same weights gives the same heatmaps. There is one prediction, so S of the output is 1.

    The pyramid for loss heads is the finest branch after the last exchange, which the heatmaps are read from, and
    the coarser branches as they enter that exchange. So every scale has seen all stages, and none is computed for the
    heads alone. (The official LL++/EGL++ code takes the branches of stage 3, of a net whose channels it changed.)
    """

    def __init__(self, config: HRNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, stem = config.widths, config.stem
        self.stem = nn.Sequential(_conv(3, stem, 3, stride=2), _conv(stem, stem, 3, stride=2))
        wide = stem * EXPANSION
        self.first = nn.Sequential(Bottleneck(stem, stem), *(Bottleneck(wide, stem) for _ in range(config.blocks - 1)))
        self.begin = _conv(wide, widths[0], 3)
        # Stage 2 branches off the wide output of stage 1, every later stage off the coarsest branch so far.
        self.begin_coarser = nn.ModuleList(
            _conv(wide if level == 0 else widths[level], widths[level + 1], 3, stride=2)
            for level in range(len(config.modules))
        )
        last = len(config.modules) - 1
        self.stages = nn.ModuleList(
            nn.ModuleList(
                Exchange(
                    widths[: level + 2],
                    config.blocks,
                    outputs=1 if (level, module) == (last, count - 1) else level + 2,
                )
                for module in range(count)
            )
            for level, count in enumerate(config.modules)
        )
        self.out = nn.Conv2d(config.width, config.joints, 1)

    def forward(self, images_B3HW: Tensor) -> PoseOutput:
        """Raises :class:`ConfigError` for a side that is no multiple of 4."""
        height, width = images_B3HW.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ConfigError(f"an HRNet takes sides that are multiples of {STRIDE} px, got {height}x{width}")
        x = self.first(self.stem(images_B3HW))
        scales: tuple[Tensor, ...] = (self.begin(x),)
        before = scales
        coarsest = x
        for begin, modules in zip(self.begin_coarser, self.stages, strict=True):
            scales = (*scales, begin(coarsest))
            for module in modules:  # type: ignore[attr-defined]
                scales, before = module(scales)
            coarsest = scales[-1]
        finest = scales[0]
        maps = self.out(finest)
        return PoseOutput(maps[:, None], Features((finest, *before[1:]), finest, (maps,)))


def _conv(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution without bias, batch norm, and ReLU unless a sum follows."""
    layers = [
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


def _path(widths: Sequence[int], source: int, target: int) -> nn.Module:
    """From one branch to another: strided 3x3 steps down, which widen at the last; 1x1 up (enlarged by the caller)."""
    if source == target:
        return nn.Identity()
    if source > target:
        return _conv(widths[source], widths[target], 1, relu=False)
    steps = target - source
    same = [_conv(widths[source], widths[source], 3, stride=2) for _ in range(steps - 1)]
    return nn.Sequential(*same, _conv(widths[source], widths[target], 3, stride=2, relu=False))
