"""Pictures made worse, for heads that have to know failures: occluders, blur, bad exposure and noise.

A pose net hardly fails on people that it was trained on, so that a head which sees only these learns little about
failing. Every kind of damage is drawn for each image with its own strength, from none to as given.

Shapes: B batch, S side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .augment import AugmentConfig

OCCLUDERS = 2
"""Rectangles that may cover a part, each filled with one colour or with a part of another image."""


def views_of(strength: float) -> AugmentConfig:
    """The geometry that goes with a strength in [0, 1]: up to ±90°, ±40 % of scale and ±15 % of shift."""
    return AugmentConfig(
        rotation_deg=30 + 60 * strength, scale=0.2 + 0.2 * strength, shift=0.05 + 0.1 * strength, colour=0.2
    )


def degrade(images_B3SS: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """Worse pictures (B, 3, S, S) in [0, 1].

    Args:
        images_B3SS: in [0, 1]; not changed.
        strength_B: in [0, 1] for each image: how often each kind of damage falls on it, and how large occluders are.
        generator: on the CPU, so that every device draws the same.
    """
    device = images_B3SS.device
    strength_B = strength_B.to(device)
    out = images_B3SS
    for _ in range(OCCLUDERS):
        out = _occlude(out, images_B3SS.flip(0), strength_B, generator)
    draw_B7 = torch.rand(len(out), 7, generator=generator).to(device)
    out = _blur(out, draw_B7[:, 0], draw_B7[:, 1] < strength_B)
    out = _expose(out, draw_B7[:, 3], draw_B7[:, 4], draw_B7[:, 2] < 0.5 * strength_B)
    noise = torch.randn(out.shape, generator=generator).to(device) * (0.1 * draw_B7[:, 6]).view(-1, 1, 1, 1)
    return torch.where(_image(draw_B7[:, 5] < 0.4 * strength_B), (out + noise).clamp(0, 1), out)


def _occlude(images: Tensor, others: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle of a tenth to a half of the side, anywhere, on half of the images at full strength."""
    batch, _, side, _ = images.shape
    draw_B6 = torch.rand(batch, 6, generator=generator).to(images.device)
    colour_B3 = torch.rand(batch, 3, generator=generator).to(images.device)
    cells_S = torch.arange(side, device=images.device)
    half_B2 = side * (0.1 + 0.4 * strength_B[:, None] * draw_B6[:, 1:3]) / 2
    middle_B2 = side * draw_B6[:, 3:5]
    row_BS = (cells_S - middle_B2[:, :1]).abs() < half_B2[:, :1]
    column_BS = (cells_S - middle_B2[:, 1:]).abs() < half_B2[:, 1:]
    covered = row_BS[:, None, :, None] & column_BS[:, None, None, :] & _image(draw_B6[:, 0] < 0.5 * strength_B)
    filling = torch.where(_image(draw_B6[:, 5] < 0.5), colour_B3[:, :, None, None], others)
    return torch.where(covered, filling, images)


def _blur(images: Tensor, kind_B: Tensor, on_B: Tensor) -> Tensor:
    """A fifth of the images at half, a tenth at a quarter of the resolution, by area and back."""
    for factor, low, high in ((2, 0.0, 0.2), (4, 0.2, 0.3)):
        small = functional.avg_pool2d(images, factor)
        coarse = functional.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
        images = torch.where(_image(on_B & (kind_B >= low) & (kind_B < high)), coarse, images)
    return images


def _expose(images: Tensor, gamma_B: Tensor, gain_B: Tensor, on_B: Tensor) -> Tensor:
    """Gamma within e^±0.9 and gain within e^±0.6, both from uniform draws in [0, 1]."""
    gamma = torch.exp((gamma_B * 2 - 1) * 0.9).view(-1, 1, 1, 1)
    gain = torch.exp((gain_B * 2 - 1) * 0.6).view(-1, 1, 1, 1)
    return torch.where(_image(on_B), (images.clamp_min(1e-4) ** gamma * gain).clamp(0, 1), images)


def _image(value_B: Tensor) -> Tensor:
    return value_B.view(-1, 1, 1, 1)
