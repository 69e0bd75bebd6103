"""A pool of small pictures, and a small model that scores it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from alpose.runtime.skeleton import LSP
from alpose.trainer.checkpoint import TargetConfig, new_head, new_model, save
from alpose.trainer.data.crops import CropConfig
from alpose.trainer.models.hourglass import HourglassConfig


def own_model(folder: Path) -> Path:
    """A net of ours with fresh weights and three heads."""
    model = new_model(
        HourglassConfig(joints=len(LSP), stacks=1, channels=8, depth=2), LSP, CropConfig(size_px=64), TargetConfig(), 0
    )
    # Norms with the statistics of pictures: with fresh ones a net hardly sees its input.
    for part in model.pose.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    images = np.stack([cv2.resize(pixels(seed), (64, 64)) for seed in range(24)])
    with torch.no_grad():
        model.pose.train()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    model.pose.eval()
    with torch.no_grad():
        model.pose.get_parameter("outs.0.weight").mul_(20.0)
    heads = {name: new_head(model, name, 0) for name in ("ll++", "epck")}
    save(model.with_heads(heads), folder)
    return folder


def pixels(seed: int, height: int = 60, width: int = 80) -> npt.NDArray[np.uint8]:
    """A smooth picture, so that JPEG changes little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def fill(folder: Path, count: int = 12) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        cv2.imwrite(str(folder / f"{number:06d}.{'png' if number % 3 else 'jpg'}"), pixels(number))
    return folder


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF head that says how it is turned."""
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def halves(image_HW3: npt.NDArray[np.uint8]) -> Any:
    """A detector that sees two people side by side."""
    height, width = image_HW3.shape[:2]
    return [[0, 0, width / 2, height - 1], [width / 2, 0, width - 1, height - 1]]
