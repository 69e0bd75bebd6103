"""The one pass over people: pixels, pose net, decoded keypoints, distance to the labels.

Everything that looks at what a pose net answers goes through :func:`predict`: the scores of a pool, the augmented views
that heads learn from, the detectors that are compared. Each adds only its own reduction of a batch.

Shapes: N people, B batch, S stacks or side of the net's input, T crop side with context, J joints, H W heatmap.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alpose.runtime.errors import DataError

from .checkpoint import PoseModel
from .data.augment import to_input
from .data.crops import Crops
from .device import MEMORY_FORMAT, DeviceContext, evaluating, to_device
from .feed import Batch, Feed
from .heatmaps import decode, to_pixels
from .measures.metrics import normaliser, profile_of
from .models.hourglass import STRIDE, Features
from .progress import progress


class View(NamedTuple):
    """People as the pose net is shown them."""

    images_B3SS: Tensor
    joints_BJ2: Tensor
    """Pixels of the view."""
    labelled_BJ: Tensor
    """Joints that are labelled and inside the view."""
    unit_B: Tensor
    """The PCK threshold in pixels of the view; NaN for a person without a length to measure by."""


class Predicted(NamedTuple):
    """One batch of views and what the pose net makes of them."""

    rows_B: npt.NDArray[np.int64]
    images_B3SS: Tensor
    joints_BJ2: Tensor
    """Pixels of the view."""
    labelled_BJ: Tensor
    heatmaps_BSJHW: Tensor
    """As the net gave them, in its own precision."""
    features: Features
    """In float32; the heatmaps are among them."""
    keypoints_BJ2: Tensor
    """Pixels of the view."""
    peak_BJ: Tensor
    """Height of the last stack's peak as a share of the training peak."""
    distance_BJ: Tensor
    """Predicted to labelled position in units of the PCK threshold: below 1 is right; NaN where it cannot be measured."""
    counts_BJ: Tensor
    """Joints that PCK judges: labelled, in view, not skipped by the profile, of a person who can be measured."""


def predict(
    model: PoseModel, crops: Crops, machine: DeviceContext, *, batch: int, what: str, rounds: int = 1, shared: bool = False,
    view: Callable[[Batch, Tensor], View] | None = None,
) -> Iterator[Predicted]:  # fmt: skip
    """Run a pose net over people; distances are measured as the ``standard`` profile of PCK does.

    Args:
        model: pose net; it does not change.
        crops: people.
        machine: where to compute.
        batch: views at a time.
        what: name in progress.
        rounds: how often everybody is seen; more than one makes sense for views that differ.
        shared: this process of a ``torchrun`` job sees every ``world``-th batch alone; the batches are those of one process.
        view: what the net is shown of a batch and its PCK thresholds in pixels; by default everybody as they are.

    Raises:
        DataError: there is nobody.
    """
    if not len(crops):
        raise DataError(f"{what}: there is nobody to look at")
    # People who are seen once are not worth keeping on the device.
    feed = Feed.open(crops, machine, resident=rounds > 1)
    unit_N, skip = threshold_px(crops), list(profile_of("standard", crops.data).skip)
    with torch.inference_mode(False):  # inside a caller's inference mode the weights would become untrainable tensors
        model.to(machine.device)
    blocks = np.array_split(np.arange(len(crops)), max(1, math.ceil(len(crops) / batch)))
    turns = [rows_B for _ in range(rounds) for rows_B in blocks]
    if shared:
        turns = turns[machine.rank :: machine.world]
    pose = with_weights_in(model.pose, machine.dtype)
    for rows_B, whole in zip(progress(turns, what, len(turns)), feed.stream(turns), strict=True):
        with evaluating(pose):  # for each batch: between them the caller's mode is its own
            unit_B = to_device(unit_N[torch.from_numpy(rows_B)], machine.device)
            if view:
                shown = view(whole, unit_B)
            else:
                shown = View(to_input(feed.bare(whole.pixels_BTT3)), whole.joints_BJ2, whole.labelled_BJ, unit_B)
            predicted = predict_batch(model, rows_B, shown, machine, skip, pose)
        yield predicted


def predict_batch(
    model: PoseModel, rows_B: npt.NDArray[np.int64], shown: View, machine: DeviceContext, skip: list[int],
    pose: nn.Module | None = None,
) -> Predicted:  # fmt: skip
    """What a pose net in eval mode makes of one batch; ``skip`` are joints that PCK does not judge.

    ``pose`` stands for the net of the model, from :func:`with_weights_in`.
    """
    images = shown.images_B3SS.contiguous(memory_format=MEMORY_FORMAT)
    with machine.autocast():
        output = (model.pose if pose is None else pose)(images)
    cells_BJ2, peak_BJ = decode(output.heatmaps_BSJHW[:, -1].float())
    keypoints_BJ2 = to_pixels(cells_BJ2, STRIDE)
    distance_BJ = (keypoints_BJ2 - shown.joints_BJ2).norm(dim=2) / shown.unit_B[:, None]
    counts_BJ = shown.labelled_BJ & torch.isfinite(distance_BJ)
    counts_BJ[:, skip] = False
    return Predicted(
        rows_B, images, shown.joints_BJ2, shown.labelled_BJ, output.heatmaps_BSJHW,
        output.features.map(lambda value: value.float()), keypoints_BJ2, peak_BJ / model.target.peak,
        distance_BJ, counts_BJ,
    )  # fmt: skip


def with_weights_in(pose: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The net with the weights of its convolutions and linear layers in ``dtype`` already, to be run under autocast.

    Autocast rounds them at each call, a hundred small kernels a batch; rounded once they are the same. In float32, or compiled,
    it is the net itself, else a copy; normalisations keep their float32.
    """
    if dtype == torch.float32 or hasattr(pose, "_orig_mod"):
        return pose
    pose = copy.deepcopy(pose)
    for part in pose.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.to(dtype)
    return pose


def threshold_px(crops: Crops) -> Tensor:
    """The PCK threshold of each person in pixels of the crop, (N,); NaN for people without a length to measure by."""
    profile = profile_of("standard", crops.data)
    unit_N = profile.threshold * normaliser(crops.data, profile) / crops.scale_N
    return torch.from_numpy(unit_N.astype(np.float32))
