"""Pose nets as a graph sees them: ours, and anybody's, whose features are tapped by the names of its modules.

Shapes: N batch, S crop side, J joints, H W heatmap, C channels, h w a scale.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alpose.runtime.errors import ConfigError
from alpose.trainer.models.hourglass import Features
from alpose.trainer.models.nets import PoseNet


class Trunk(nn.Module):
    """A pose net as a graph sees it: images (N, 3, S, S) to the last heatmaps (N, J, H, W) and features."""

    def forward(self, images_N3SS: Tensor) -> tuple[Tensor, Features]:
        """Both in the net's own type."""
        raise NotImplementedError


class OwnTrunk(Trunk):
    """A net of ours. An hourglass's heatmaps are not stacked, which nobody would read."""

    def __init__(self, net: PoseNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images_N3SS: Tensor) -> tuple[Tensor, Features]:
        """The last heatmaps, and the features."""
        features = self.net(images_N3SS).features
        return features.heatmaps[-1], features


class TappedTrunk(Trunk):
    """Any net, whose features are the outputs of modules that are named.

    Args:
        net: takes images in [0, 1], scaled by ``(image - mean) / std``.
        taps: modules whose outputs (N, C, h, w) are the pyramid, finest first.
        penultimate: the module before the heatmaps.
        heatmaps: the module that gives them; None where the net itself returns them and nothing else.
        mean: of each colour, in [0, 1].
        std: of each colour.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        taps: Sequence[str],
        penultimate: str,
        heatmaps: str | None = None,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(
                f"mean and std are three numbers for red, green and blue, std positive: got {mean}, {std}"
            )
        if not taps:
            raise ConfigError("taps names no module: give at least one whose output the loss head reads")
        self.names = tuple(dict.fromkeys([*taps, penultimate, *([heatmaps] if heatmaps else [])]))
        known = [name for name, _ in net.named_modules() if name]
        for name in self.names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 3) or known[:8]
                raise ConfigError(f"{type(net).__name__} has no module {name!r}: did you mean {', '.join(near)}?")
        self.net, self.taps, self.penultimate, self.heatmaps = net, tuple(taps), penultimate, heatmaps
        self.plain = not any(mean) and all(value == 1 for value in std)
        self.register_buffer("mean_311", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std_311", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))

    def forward(self, images_N3SS: Tensor) -> tuple[Tensor, Features]:
        """What the named modules gave."""
        if not self.plain:
            images_N3SS = (images_N3SS - self.mean_311) / self.std_311
        with _listening(self.net, self.names) as heard:
            answer = self.net(images_N3SS)
        if self.heatmaps is not None:
            answer = _once(heard, self.heatmaps)
        elif not isinstance(answer, Tensor):
            raise ConfigError(f"{type(self.net).__name__} returns {form(answer)}, not one tensor of heatmaps: name the "
                              "module that gives them with heatmaps=")  # fmt: skip
        return answer, Features(tuple(_once(heard, name) for name in self.taps), _once(heard, self.penultimate))


@contextmanager
def _listening(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """The outputs of modules by name while the net runs; torch.export runs the same hooks."""
    heard: dict[str, list[Any]] = {name: [] for name in names}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: heard[name].append(output)

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _once(heard: Mapping[str, list[Any]], name: str) -> Tensor:
    outputs = heard[name]
    if len(outputs) != 1:
        raise ConfigError(f"module {name!r} runs {len(outputs)} times in a forward pass: name one that runs once")
    if not isinstance(outputs[0], Tensor) or outputs[0].ndim != 4:
        raise ConfigError(f"module {name!r} gives {form(outputs[0])}, a tap needs one tensor (N, C, h, w)")
    return outputs[0]


def form(value: Any) -> str:
    """A value in words, for messages."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
