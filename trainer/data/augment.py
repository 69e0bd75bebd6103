"""Augmentation of whole batches on the training device.

One affine map per image moves pixels and joints alike: rotation, scale, shift, mirror (joints swap sides); then
gain, contrast and colour. Random numbers come from a generator on the CPU, so that every device sees the same, and the
few numbers of the maps are computed there too: a GPU is not waited for.

Shapes: B batch, J joints, H W height and width of the crop without context, T S with context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from ..device import to_device


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Ranges are symmetric and uniform."""

    rotation_deg: float = 45.0
    scale: float = 0.25
    shift: float = 0.1
    """Share of the crop's width, and of its height."""
    flip: float = 0.5
    """Probability of a mirror image."""
    colour: float = 0.2
    """Largest relative change of brightness, contrast and each channel's gain."""

    def __post_init__(self) -> None:
        if not (0 <= self.rotation_deg <= 180 and 0 <= self.scale < 0.9 and 0 <= self.shift <= 0.5):
            raise ConfigError(f"augmentation out of range (rotation 0-180, scale < 0.9, shift <= 0.5): {self}")
        if not (0 <= self.flip <= 1 and 0 <= self.colour < 1):
            raise ConfigError(f"augmentation out of range (flip in [0, 1], colour in [0, 1)): {self}")


def to_input(pixels_BHW3: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) RGB to the net's input (B, 3, H, W) in [0, 1], channels last in memory.

    There is no mean to subtract: black, which pads crops at the frame's edge, is then also what padded
    convolutions see.
    """
    return pixels_BHW3.permute(0, 3, 1, 2).float().div_(255.0)


def augment(
    pixels_BTS3: Tensor, joints_BJ2: Tensor, labelled_BJ: Tensor, *, shape_px: tuple[int, int], flip_order: tuple[int, ...],
    config: AugmentConfig, generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Random views of height and width ``shape_px``: images (B, 3, H, W) in [0, 1], joints in pixels of the view, and which of them count.

    A joint that leaves the view no longer counts: there is nothing there to learn from. Where ``flip_order`` swaps no
    joints, no image is mirrored: left and right are not known, and would be learnt from each other's labels.
    """
    batch, high, wide = pixels_BTS3.shape[:3]
    height, width = shape_px
    size_2, whole_2 = torch.tensor([width, height]), torch.tensor([wide, high])
    device = pixels_BTS3.device
    draw_B9 = torch.rand(batch, 9, generator=generator).mul_(2).sub_(1)
    angle_B = draw_B9[:, 0] * math.radians(config.rotation_deg)
    zoom_B = 1 + draw_B9[:, 1] * config.scale
    shift_B2 = draw_B9[:, 2:4] * config.shift * size_2
    flip = config.flip if any(other != joint for joint, other in enumerate(flip_order)) else 0.0
    mirror_B = (draw_B9[:, 4] + 1) / 2 < flip

    # view → crop with context, about the centres: p = A (v - c) + c' + shift
    sign_B = torch.where(mirror_B, -1.0, 1.0)
    cos_B, sin_B = torch.cos(angle_B) / zoom_B, torch.sin(angle_B) / zoom_B
    forward_B22 = torch.stack(
        [torch.stack([cos_B * sign_B, -sin_B], dim=1), torch.stack([sin_B * sign_B, cos_B], dim=1)], dim=1
    )
    grid_B23 = torch.cat(
        [forward_B22 * (size_2[None, :] / whole_2[:, None]), shift_B2[:, :, None] * (2 / whole_2[:, None])], dim=2
    )
    # A rotation that zooms and mirrors: its inverse, transposed, is itself times the square of the zoom.
    inverse_B22 = forward_B22 * zoom_B.square()[:, None, None]
    grid_B23, inverse_B22, shift_B2, mirror_B, colour_B4, size_2, order_J = (
        to_device(part, device)
        for part in (grid_B23, inverse_B22, shift_B2, mirror_B, draw_B9[:, 5:9] * config.colour, size_2,
                     torch.tensor(flip_order))
    )  # fmt: skip
    images_B3HW = functional.grid_sample(
        pixels_BTS3.permute(0, 3, 1, 2).float(), _grid(grid_B23, height, width), mode="bilinear", padding_mode="zeros", align_corners=False
    )  # fmt: skip

    centre_2 = (size_2 - 1) / 2
    moved_BJ2 = (joints_BJ2 - centre_2 - shift_B2[:, None]) @ inverse_B22 + centre_2
    swapped_BJ2, swapped_BJ = moved_BJ2[:, order_J], labelled_BJ[:, order_J]
    view_BJ2 = torch.where(mirror_B[:, None, None], swapped_BJ2, moved_BJ2)
    counts_BJ = torch.where(mirror_B[:, None], swapped_BJ, labelled_BJ)
    inside_BJ = ((view_BJ2 > -0.5) & (view_BJ2 < size_2 - 0.5)).all(dim=2)
    return _colour(images_B3HW, colour_B4), view_BJ2, counts_BJ & inside_BJ


def _grid(map_B23: Tensor, height: int, width: int) -> Tensor:
    """Places (B, H, W, 2) to sample at, from -1 to 1, as ``affine_grid`` gives them; x and y lie in planes of their own.

    A sum of a row and a column is a third of the time of a product of matrices, and planes are read faster.
    """
    x_W, y_H = (
        (2 * torch.arange(size, device=map_B23.device) + 1) / size - 1 for size in (width, height)
    )  # fmt: skip
    across_B2W, down_B2H = map_B23[:, :, :1] * x_W, map_B23[:, :, 1:2] * y_H + map_B23[:, :, 2:]
    return (across_B2W[:, :, None] + down_B2H[:, :, :, None]).permute(0, 2, 3, 1)


def _colour(images_B3HW: Tensor, draw_B4: Tensor) -> Tensor:
    """Contrast about each image's mean (first draw), and a gain per channel (the others); from [0, 255] to [0, 1].

    All in one product and one sum, in place: ((x - mean) · contrast + mean) · gain.
    """
    mean_B111 = images_B3HW.mean(dim=(1, 2, 3), keepdim=True)
    contrast_B111 = 1 + draw_B4[:, 0, None, None, None]
    gain_B311 = (1 + draw_B4[:, 1:4, None, None]) / 255.0
    offset_B311 = mean_B111 * (1 - contrast_B111) * gain_B311
    return torch.addcmul(offset_B311, images_B3HW, contrast_B111 * gain_B311, out=images_B3HW).clamp_(0, 1)
