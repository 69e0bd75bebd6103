"""People as a frozen pose net sees them, view after view: what a detector learns from, and what it is judged on.

Shapes: N people, B batch, J joints, T crop side with context, S side of the net's input.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.errors import DataError

from .checkpoint import PoseModel
from .data.augment import AugmentConfig, augment, to_input
from .data.crops import Crops
from .data.degrade import degrade, views_of
from .device import Machine, evaluating
from .feed import Batch, Feed
from .heatmaps import decode, to_pixels
from .metrics import Profile, normaliser, profile_of
from .models.hourglass import STRIDE, Features
from .progress import progress


class Glimpse(NamedTuple):
    """One batch of views and what the pose net makes of them."""

    rows_B: npt.NDArray[np.int64]
    images_B3SS: Tensor
    features: Features
    """In float32; the heatmaps are among them."""
    joints_BJ2: Tensor
    """Pixels of the view."""
    counts_BJ: Tensor
    """Joints that are labelled, in view, not skipped by PCK, and of a person who can be measured."""
    distance_BJ: Tensor
    """Predicted to true position in units of the PCK threshold: below 1 is right; NaN where it cannot be measured."""


def glimpses(
    model: PoseModel,
    crops: Crops,
    machine: Machine,
    *,
    views: int,
    seed: int,
    augment_by: AugmentConfig | None = None,
    batch: int = 64,
    what: str = "looking",
) -> Iterator[Glimpse]:
    """Run a pose net over views of people; distances are measured as the ``standard`` profile of PCK does.

    Args:
        model: pose net; it does not change.
        crops: people.
        machine: where.
        views: of each person; 0 is everybody once, as they are.
        seed: decides the views.
        augment_by: how views differ from the crop; None for damaged ones (:mod:`alpose.trainer.data.degrade`), each
            with its own strength.
        batch: views at a time.
        what: name in progress.

    Raises:
        DataError: there is nobody.
    """
    if not len(crops):
        raise DataError(f"{what}: there is nobody to look at")
    feed, unit_N, skip = Feed.open(crops, machine), threshold_px(crops), list(_profile(crops).skip)
    model.to(machine.device)
    generator = torch.Generator().manual_seed(_hash(seed, "views"))
    blocks = np.array_split(np.arange(len(crops)), max(1, math.ceil(len(crops) / batch)))
    rounds = [rows_B for _ in range(max(1, views)) for rows_B in blocks]
    for rows_B in progress(rounds, what, len(rounds)):
        with evaluating(model.pose):  # for each batch: between them the caller's mode is its own
            glimpse = _look(model, feed, rows_B, unit_N, machine, views > 0, augment_by, generator, skip)
        yield glimpse


def _look(
    model: PoseModel, feed: Feed, rows_B: npt.NDArray[np.int64], unit_N: Tensor, machine: Machine, viewed: bool,
    augment_by: AugmentConfig | None, generator: torch.Generator, skip: list[int],
) -> Glimpse:  # fmt: skip
    whole, unit_B = feed.batch(rows_B), unit_N[torch.from_numpy(rows_B)].to(machine.device)
    images, joints_BJ2, counts_BJ = to_input(feed.bare(whole.pixels_BTT3)), whole.joints_BJ2, whole.labelled_BJ
    if viewed:
        images, joints_BJ2, counts_BJ, unit_B = _view(model, whole, unit_B, augment_by, generator)
    images = images.contiguous(memory_format=torch.channels_last)
    with machine.autocast():
        features = model.pose(images).features
    features = features.map(lambda value: value.float())
    cells_BJ2, _ = decode(features.heatmaps[-1])
    distance_BJ = (to_pixels(cells_BJ2, STRIDE) - joints_BJ2).norm(dim=2) / unit_B[:, None]
    counts_BJ = counts_BJ & torch.isfinite(distance_BJ)
    counts_BJ[:, skip] = False
    return Glimpse(rows_B, images, features, joints_BJ2, counts_BJ, distance_BJ)


def threshold_px(crops: Crops) -> Tensor:
    """The PCK threshold of each person in pixels of the crop, (N,); NaN for people without a length to measure by."""
    profile = _profile(crops)
    unit_N = profile.threshold * normaliser(crops.data, profile) / crops.scale_N
    return torch.from_numpy(unit_N.astype(np.float32))


def _view(
    model: PoseModel, whole: Batch, unit_B: Tensor, augment_by: AugmentConfig | None, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Views with their joints, which of them count, and the PCK threshold in pixels of the view."""
    strength_B = torch.rand(len(unit_B), generator=generator)
    how = augment_by or views_of(float(torch.rand((), generator=generator)))
    joints = whole.joints_BJ2.shape[1]
    # Two more points, a threshold apart, are moved like the joints: so much did the view zoom.
    start_B2 = torch.zeros_like(whole.joints_BJ2[:, 0])
    end_B2 = torch.stack([torch.nan_to_num(unit_B), torch.zeros_like(unit_B)], dim=1)
    points = torch.cat([whole.joints_BJ2, start_B2[:, None], end_B2[:, None]], dim=1)
    always_B2 = torch.ones_like(whole.labelled_BJ[:, :1]).expand(-1, 2)
    images, moved, counts = augment(
        whole.pixels_BTT3, points, torch.cat([whole.labelled_BJ, always_B2], dim=1), size_px=model.crop.size_px,
        flip_order=(*model.skeleton.flip_order(), joints, joints + 1), config=how, generator=generator,
    )  # fmt: skip
    seen_unit_B = (moved[:, joints] - moved[:, joints + 1]).norm(dim=1)
    seen_unit_B = torch.where(unit_B.isfinite(), seen_unit_B, torch.nan)
    images = images if augment_by else degrade(images, strength_B, generator)
    return images, moved[:, :joints], counts[:, :joints], seen_unit_B


def _profile(crops: Crops) -> Profile:
    return profile_of("standard", crops.data)


def _hash(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/epck/{purpose}".encode()).digest()[:7], "little")
