"""Nets of alpose's own that stand for others': an HRNet and a SimCC net for crops of 256 x 192, with the decoding of their papers.

Shapes: B images, J joints, H W the input, h w heatmaps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alpose.trainer.models.hrnet import HRNet, HRNetConfig

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
SIMCC_BINS_PER_PX = 2
SIGMA_CELLS, SIGMA_BINS = 2.0, 6.0


class Heatmaps(nn.Module):
    """An HRNet that gives heatmaps (B, J, H / 4, W / 4) alone."""

    def __init__(self, joints: int) -> None:
        super().__init__()
        self.net = HRNet(HRNetConfig(joints=joints, width=12, modules=(1, 1), blocks=1, stem=16))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.net(images_B3HW)[0][:, -1]

    def loss(self, maps_BJhw: Tensor, joints_BJ2: Tensor) -> Tensor:
        """Against bells; cells that belong to one count more, as most of a map is empty."""
        rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in maps_BJhw.shape[2:]), indexing="ij")
        places = joints_BJ2[..., None, None] / 4
        squared = (columns - places[:, :, 0]).square() + (rows - places[:, :, 1]).square()
        wanted = torch.nan_to_num(torch.exp(-squared / (2 * SIGMA_CELLS**2)))
        known = torch.isfinite(joints_BJ2).all(-1)[..., None, None]
        return ((maps_BJhw - wanted).square() * (0.1 + 2 * wanted) * known).mean()


class SimCC(nn.Module):
    """Two distributions for each joint, (B, J, 2 W) and (B, J, 2 H) (Li et al., ECCV 2022)."""

    def __init__(self, joints: int, height: int = 256, width: int = 192) -> None:
        super().__init__()
        sides = (3, 24, 32, 48, 64, 96)
        self.body = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
            for before, after in pairwise(sides)
        ))  # fmt: skip
        self.joints = nn.Conv2d(sides[-1], joints, 1)
        self.across = nn.Linear(height * width // 32**2, width * SIMCC_BINS_PER_PX)
        self.down = nn.Linear(height * width // 32**2, height * SIMCC_BINS_PER_PX)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        cells = self.joints(self.body(images_B3HW)).flatten(2)
        return self.across(cells), self.down(cells)

    def loss(self, said: tuple[Tensor, Tensor], joints_BJ2: Tensor) -> Tensor:
        """Cross entropy with smoothed bins."""
        total = torch.zeros(())
        known_BJ = torch.isfinite(joints_BJ2).all(-1)
        for axis, logits in enumerate(said):
            apart = torch.arange(logits.shape[2]) - torch.nan_to_num(joints_BJ2[..., axis, None]) * SIMCC_BINS_PER_PX
            wanted = torch.softmax(-(apart**2) / (2 * SIGMA_BINS**2), dim=2)
            total = total - ((wanted * logits.log_softmax(dim=2)).sum(dim=2) * known_BJ).mean()
        return total


def pixels(crops_NHW3: npt.NDArray[np.uint8]) -> Tensor:
    return ((torch.from_numpy(crops_NHW3).float() / 255 - MEAN) / STD).permute(0, 3, 1, 2)


def train(
    net: Heatmaps | SimCC, crops_NHW3: npt.NDArray[np.uint8], joints_NJ2: npt.NDArray[np.float32], steps: int
) -> None:
    """A minute or two: enough to know where people are, not more."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3)
    net.train()
    for _ in range(steps):
        rows = torch.randint(0, len(crops_NHW3), (8,)).numpy()
        loss = net.loss(net(pixels(crops_NHW3[rows])), torch.from_numpy(joints_NJ2[rows]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval()


def export(net: nn.Module, path: Path, outputs: list[str], *, newer: bool) -> None:
    """By the newer or the older of torch's two exporters, with a free batch."""
    how: dict[str, Any] = {"dynamo": False, "opset_version": 17,
                           "dynamic_axes": {name: {0: "batch"} for name in ("input", *outputs)}}  # fmt: skip
    if newer:
        how = {
            "dynamo": True,
            "dynamic_shapes": ({0: torch.export.Dim("batch")},),
            "external_data": False,
            "opset_version": 18,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, on themselves
        torch.onnx.export(net, (torch.zeros(2, 3, 256, 192),), str(path), input_names=["input"], output_names=outputs,
                          verbose=False, **how)  # fmt: skip


def answers(
    net: nn.Module, crops_NHW3: npt.NDArray[np.uint8], decode: Callable[..., npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Keypoints (N, J, 2) by the net in torch and its own decoding."""
    with torch.no_grad():
        said = [net(pixels(crops_NHW3[start : start + 16])) for start in range(0, len(crops_NHW3), 16)]
    return np.concatenate([decode(*(part if isinstance(part, tuple) else (part,))) for part in said])


def highest_cells(maps_BJhw: Tensor) -> npt.NDArray[np.float64]:
    """The highest cell, a quarter towards its higher neighbour, times four (Newell et al., ECCV 2016; HRNet's own)."""
    maps = maps_BJhw.numpy()
    found = np.zeros((*maps.shape[:2], 2))
    for image, joint in np.ndindex(*maps.shape[:2]):
        one = maps[image, joint]
        y, x = np.unravel_index(one.argmax(), one.shape)
        found[image, joint] = x, y
        if 1 < x < one.shape[1] - 1 and 1 < y < one.shape[0] - 1:
            found[image, joint] += 0.25 * np.sign([one[y, x + 1] - one[y, x - 1], one[y + 1, x] - one[y - 1, x]])
    return found * 4


def highest_bins(across_BJX: Tensor, down_BJY: Tensor) -> npt.NDArray[np.float64]:
    """The highest bin of each axis over the bins of a pixel (SimCC's own)."""
    return np.stack([across_BJX.numpy().argmax(axis=2), down_BJY.numpy().argmax(axis=2)], axis=2) / SIMCC_BINS_PER_PX
