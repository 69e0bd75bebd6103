"""Augmented views of people, and what a frozen pose net makes of them: what detectors learn from and are judged on.

Shapes: B batch, J joints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from alpose.runtime.skeleton import Skeleton

from .checkpoint import PoseModel
from .data.augment import AugmentConfig, augment
from .data.crops import CropConfig, Crops
from .data.degrade import degrade, views_of
from .device import DeviceContext
from .feed import Batch
from .passes import Predicted, View, predict


def augmented_views(
    model: PoseModel, crops: Crops, machine: DeviceContext, *, views: int, seed: int,
    augment_by: AugmentConfig | None = None, batch: int = 64, what: str = "looking",
) -> Iterator[Predicted]:  # fmt: skip
    """Run a pose net over views of people.

    Everybody is seen ``views`` times, or once as they are where that is 0. Views differ from the crop by ``augment_by``, or
    are damaged, each with its own strength (:mod:`alpose.trainer.data.degrade`); the seed decides them.

    Raises:
        DataError: there are no people.
    """
    digest = hashlib.sha256(f"{seed}/epck/views".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def view(whole: Batch, unit_B: Tensor) -> View:
        return damaged(whole, unit_B, model.crop, model.skeleton, generator, augment_by)[0]

    yield from predict(
        model, crops, machine, batch=batch, what=what, rounds=max(1, views), view=view if views else None
    )


def damaged(
    whole: Batch, unit_B: Tensor, crop: CropConfig, skeleton: Skeleton, generator: torch.Generator,
    augment_by: AugmentConfig | None = None,
) -> tuple[View, Tensor]:  # fmt: skip
    """Show people from elsewhere and damaged, or moved by ``augment_by`` alone; and the strength of each damage, (B,)."""
    strength_B = torch.rand(len(unit_B), generator=generator)
    how = augment_by or views_of(float(torch.rand((), generator=generator)))
    joints = whole.joints_BJ2.shape[1]
    # Two more points, a threshold apart, are moved like the joints: their distance tells how much the view zoomed.
    ends_B22 = torch.zeros(len(unit_B), 2, 2, device=unit_B.device)
    ends_B22[:, 1, 0] = torch.nan_to_num(unit_B)
    images, moved, counts = augment(
        whole.pixels_BTT3, torch.cat([whole.joints_BJ2, ends_B22], dim=1),
        torch.cat([whole.labelled_BJ, whole.labelled_BJ.new_ones(len(unit_B), 2)], dim=1),
        shape_px=crop.shape_px, flip_order=(*skeleton.flip_order(), joints, joints + 1), config=how,
        generator=generator,
    )  # fmt: skip
    seen_unit_B = (moved[:, joints] - moved[:, joints + 1]).norm(dim=1)
    seen_unit_B = torch.where(unit_B.isfinite(), seen_unit_B, torch.nan)
    images = images if augment_by else degrade(images, strength_B, generator)
    return View(images, moved[:, :joints], counts[:, :joints], seen_unit_B), strength_B
