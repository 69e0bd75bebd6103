"""Pictures made worse, for heads that have to know failures: occluders, blur, bad exposure and noise.

A pose net hardly fails on people that it was trained on, so that a head which sees only these learns little about
failing. Every kind of damage is drawn for each image with its own strength, from none to as given.

Shapes: B batch, H W height and width.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ..device import to_device
from .augment import AugmentConfig

OCCLUDERS = 2
"""Rectangles that may cover a part, each filled with one colour or with a part of another image."""


def views_of(strength: float) -> AugmentConfig:
    """The geometry that goes with a strength in [0, 1]: up to ±90°, ±40 % of scale and ±15 % of shift."""
    return AugmentConfig(
        rotation_deg=30 + 60 * strength, scale=0.2 + 0.2 * strength, shift=0.05 + 0.1 * strength, colour=0.2
    )


def degrade(
    images_B3HW: Tensor,
    strength_B: Tensor,
    generator: torch.Generator,
    noise_on: Literal["host", "device"] | None = None,
) -> Tensor:
    """Worse pictures (B, 3, H, W) in [0, 1].

    Args:
        images_B3HW: in [0, 1]; not changed.
        strength_B: in [0, 1] for each image: how often each kind of damage falls on it, and how large occluders are.
        generator: on the CPU, so that every device draws the same kinds of damage.
        noise_on: where the noise itself is drawn; by default on the device of the images: a hundred milliseconds a batch
            on a CPU, and for the noisy images alone on a GPU, whose noise is then another one.
    """
    device, out = images_B3HW.device, images_B3HW
    for _ in range(OCCLUDERS):
        out = _occlude(out, images_B3HW.flip(0), strength_B.to(device), generator)
    draw_B7, strength_B = torch.rand(len(out), 7, generator=generator), strength_B.cpu()
    blurred_B, kind_B = draw_B7[:, 1] < strength_B, draw_B7[:, 0]
    out = out.clone()
    for chosen_B, damage, *numbers in (
        (blurred_B & (kind_B >= 0.0) & (kind_B < 0.2), partial(_blur, factor=2)),
        (blurred_B & (kind_B >= 0.2) & (kind_B < 0.3), partial(_blur, factor=4)),
        (draw_B7[:, 2] < 0.5 * strength_B, _expose, draw_B7[:, 3], draw_B7[:, 4]),
    ):
        # Who is damaged is known on the CPU: a GPU is not waited for, and nobody else is computed on.
        rows_M = chosen_B.nonzero()[:, 0]
        if len(rows_M):
            here_M = to_device(rows_M, device)
            out[here_M] = damage(out[here_M], *(to_device(number[rows_M], device) for number in numbers))
    noisy_M = (draw_B7[:, 5] < 0.4 * strength_B).nonzero()[:, 0]
    noise = _noise(noisy_M, out, generator, noise_on or ("host" if device.type == "cpu" else "device"))
    if len(noisy_M):
        here_M = to_device(noisy_M, device)
        out[here_M] = _add_noise(out[here_M], noise, to_device(draw_B7[noisy_M, 6], device))
    return out


def _noise(rows_M: Tensor, images: Tensor, generator: torch.Generator, where: Literal["host", "device"]) -> Tensor:
    """Standard normal numbers (M, 3, H, W) for some of the images, on their device."""
    if where == "host":
        return torch.randn(images.shape, generator=generator)[rows_M].to(images.device)
    there = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return torch.randn((len(rows_M), *images.shape[1:]), generator=there, device=images.device)


def _occlude(images: Tensor, others: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
    """A rectangle of a tenth to a half of the side, anywhere, on half of the images at full strength."""
    batch, _, height, width = images.shape
    draw_B6 = torch.rand(batch, 6, generator=generator).to(images.device)
    colour_B3 = torch.rand(batch, 3, generator=generator).to(images.device)
    size_2 = torch.tensor([height, width], device=images.device)
    half_B2 = size_2 * (0.1 + 0.4 * strength_B[:, None] * draw_B6[:, 1:3]) / 2
    middle_B2 = size_2 * draw_B6[:, 3:5]
    row_BH = (torch.arange(height, device=images.device) - middle_B2[:, :1]).abs() < half_B2[:, :1]
    column_BW = (torch.arange(width, device=images.device) - middle_B2[:, 1:]).abs() < half_B2[:, 1:]
    covered = row_BH[:, None, :, None] & column_BW[:, None, None, :] & _image(draw_B6[:, 0] < 0.5 * strength_B)
    filling = torch.where(_image(draw_B6[:, 5] < 0.5), colour_B3[:, :, None, None], others)
    return torch.where(covered, filling, images)


def _blur(images: Tensor, *, factor: int) -> Tensor:
    """Down to a half or a quarter of the resolution, by area, and back."""
    small = functional.avg_pool2d(images, factor)
    return functional.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _expose(images: Tensor, gamma_M: Tensor, gain_M: Tensor) -> Tensor:
    """Gamma within e^±0.9 and gain within e^±0.6, both from uniform draws in [0, 1]."""
    gamma = torch.exp((gamma_M * 2 - 1) * 0.9).view(-1, 1, 1, 1)
    gain = torch.exp((gain_M * 2 - 1) * 0.6).view(-1, 1, 1, 1)
    return (images.clamp_min(1e-4) ** gamma * gain).clamp(0, 1)


def _add_noise(images: Tensor, noise: Tensor, amount_M: Tensor) -> Tensor:
    """Gaussian noise of a standard deviation up to a tenth."""
    return (images + noise * (0.1 * amount_M).view(-1, 1, 1, 1)).clamp(0, 1)


def _image(value_B: Tensor) -> Tensor:
    return value_B.view(-1, 1, 1, 1)
