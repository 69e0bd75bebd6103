"""What a frozen pose net of somebody else's says of labelled people and of damaged views of them, stored once.

Heads of such a net learn from this file in seconds. It is written block by block beside the crops, and an interrupted pass
goes on at its last block.

Shapes: N views, P people, B views of a block, J joints that are labelled at all, D evidence of a joint, C pooled features, M numbers of the
coarse maps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.errors import DataError
from alpose.runtime.io import fields_to_json, read_json, write_json

from ..augmented_views import damaged
from ..data.augment import to_input
from ..data.crops import Crops
from ..device import DeviceContext
from ..epck import HeadDataset
from ..feed import Feed
from ..passes import View, threshold_px
from ..progress import progress
from .net import ForeignNet
from .reader import NetReader
from .recognition.graph import digest

VERSION = 3
"""Raise this when the same net and people give other numbers."""
BLOCK = 32
"""Views between two marks of progress."""
FAR = 1e3
"""Distances beyond so many thresholds are this one: a net may answer anything."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Stored views of people; arrays may be memory-mapped."""

    joints: tuple[int, ...]
    """Which joints of the net the J columns are."""
    person_N: Array
    """Row of the person in the crops."""
    strength_N: Array
    """Of the damage, in [0, 1]; -1 for people as they are."""
    evidence_NJD: Array
    """float16."""
    pooled_NC: Array
    """Averages of the taps, float16."""
    maps_NM: Array
    """The taps as :meth:`~.reader.NetReader.coarse` maps, float16."""
    scores_NJ: Array
    own_N: Array
    """The net's own score, averaged over all its joints, as whoever uses the net has it."""
    keypoints_NJ2: Array
    """Pixels of the view."""
    distance_NJ: Array
    """Predicted to labelled position in units of the PCK threshold; NaN where it cannot be measured."""
    counts_NJ: Array
    """Joints that are labelled, in view, and of a person who can be measured."""
    error_N: Array
    """Mean distance over labelled joints as a share of the input's longer side; NaN without any."""

    def __len__(self) -> int:
        return len(self.person_N)

    def take(self, rows_M: Array) -> Evidence:
        """These views, in this order, in memory."""
        return Evidence(self.joints, *(np.asarray(getattr(self, name)[rows_M]) for name in ARRAYS))

    def dataset(self, columns: slice = slice(None)) -> HeadDataset:
        """What :func:`alpose.trainer.epck.fit` learns from, under the name ``evidence``."""
        evidence_NJD = torch.from_numpy(np.asarray(self.evidence_NJD[:, :, columns], np.float32))
        return HeadDataset({"evidence": evidence_NJD}, torch.from_numpy(np.array(self.distance_NJ)),
                           torch.from_numpy(np.array(self.counts_NJ)))  # fmt: skip

    @property
    def image_pck_N(self) -> npt.NDArray[np.float32]:
        """Share of each view's scored joints that are right; NaN where none is scored."""
        count_N = self.counts_NJ.sum(axis=1)
        right_N = (self.counts_NJ & (np.nan_to_num(self.distance_NJ, nan=FAR) < 1)).sum(axis=1)
        return np.where(count_N > 0, right_N / np.maximum(count_N, 1), np.nan).astype(np.float32)


ARRAYS = tuple(name for name in Evidence.__slots__ if name != "joints")


def collect(
    net: ForeignNet, reader: NetReader, crops: Crops, joints: Sequence[int], machine: DeviceContext, cache: Path, *,
    views: int, seed: int, what: str = "evidence",
) -> Evidence:  # fmt: skip
    """Run a net over people as they are, and over ``views`` damaged views of each; or open what an earlier pass wrote.

    Args:
        net: frozen.
        reader: of its tensors.
        crops: people, labelled in the net's skeleton; with context where there are views.
        joints: those that are labelled at all.
        machine: where views are drawn; the net runs in ONNX Runtime.
        cache: folder for the file.
        views: of every person, each with its own strength of damage.
        seed: of the damage.
        what: name in progress.
    """
    if not len(crops):
        raise DataError(f"{what}: there is nobody to look at")
    rounds = 1 + views
    folder = cache / f"evidence-{_key(net, crops, joints, views, seed)}"
    stored = _open(folder, reader, len(crops) * rounds, len(joints))
    state = folder / "progress.json"
    done = int(read_json(state)["blocks"]) if state.exists() else 0
    blocks = np.array_split(np.arange(len(crops)), max(1, math.ceil(len(crops) / BLOCK)))
    turns = [(turn, rows_B) for turn in range(rounds) for rows_B in blocks]
    if done < len(turns):
        feed, unit_N = Feed.open(crops, machine, resident=False), threshold_px(crops)
        start = sum(len(rows_B) for _, rows_B in turns[:done])
        for place, (turn, rows_B) in enumerate(progress(turns[done:], what, len(turns), done), start=done):
            digest = hashlib.sha256(f"{seed}/{turn}/{int(rows_B[0])}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
            part = _look(net, reader, feed, unit_N, rows_B, list(joints), generator if turn else None)
            for name, value in part.items():
                stored[name][start : start + len(rows_B)] = value
            start += len(rows_B)
            if place % 8 == 7 or place == len(turns) - 1:
                for array in stored.values():
                    array.flush()
                write_json(state, {"blocks": place + 1})
    return Evidence(tuple(joints), **stored)


def _look(
    net: ForeignNet, reader: NetReader, feed: Feed, unit_N: Tensor, rows_B: Array, joints: list[int],
    generator: torch.Generator | None,
) -> dict[str, Array]:  # fmt: skip
    """One block of views: as they are without a generator, damaged with one."""
    crops, whole, unit_B = feed.crops, feed.batch(rows_B), unit_N[torch.from_numpy(rows_B)]
    if generator is None:
        pixels_BHW3 = feed.bare(whole.pixels_BTT3)
        shown = View(to_input(pixels_BHW3), whole.joints_BJ2, whole.labelled_BJ, unit_B)
        strength_B = torch.full((len(rows_B),), -1.0)
        frames_BHW3 = pixels_BHW3.cpu().numpy()
    else:
        shown, strength_B = damaged(whole, unit_B, crops.config, crops.data.skeleton, generator)
        frames_BHW3 = (shown.images_B3SS * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    given = net(np.ascontiguousarray(frames_BHW3))
    tensors = [torch.from_numpy(given[name]) for name in net.spec.tensors]
    with torch.inference_mode():
        reading, pooled_BC, maps_BM = reader(*tensors), reader.pooled(tensors), reader.coarse(tensors)
    keypoints_BJ2 = reading.keypoints_NJ2[:, joints]
    pixels_BJ = (keypoints_BJ2 - shown.joints_BJ2[:, joints].cpu()).norm(dim=2)
    distance_BJ = (pixels_BJ / shown.unit_B.cpu()[:, None]).clamp_max(FAR)
    labelled_BJ = shown.labelled_BJ.cpu()[:, joints]
    # A keypoint that is not a number is as wrong as can be, and a person without a length cannot be measured.
    distance_BJ[torch.isnan(pixels_BJ) & torch.isfinite(shown.unit_B.cpu())[:, None]] = FAR
    count_B, side = labelled_BJ.sum(dim=1), max(net.spec.input.height_px, net.spec.input.width_px)
    error_B = torch.where(labelled_BJ, pixels_BJ.nan_to_num(FAR * side), 0.0).sum(dim=1) / (side * count_B)
    return {
        "person_N": rows_B,
        "strength_N": strength_B.numpy(),
        "evidence_NJD": reading.evidence_NJD[:, joints].clamp(-6e4, 6e4).numpy(),
        "pooled_NC": pooled_BC.nan_to_num().clamp(-6e4, 6e4).numpy(),
        "maps_NM": maps_BM.nan_to_num().clamp(-6e4, 6e4).numpy(),
        "scores_NJ": reading.scores_NJ[:, joints].numpy(),
        "own_N": reading.scores_NJ.mean(dim=1).numpy(),
        "keypoints_NJ2": keypoints_BJ2.numpy(),
        "distance_NJ": distance_BJ.numpy(),
        "counts_NJ": (labelled_BJ & torch.isfinite(distance_BJ)).numpy(),
        "error_N": error_B.numpy(),
    }


def _open(folder: Path, reader: NetReader, views: int, joints: int) -> dict[str, np.memmap[Any, Any]]:
    """The memory-mapped arrays of a folder, made where they are missing."""
    channels = sum(tap.channels for tap in reader.taps.values())
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "person_N": ((), np.int64),
        "strength_N": ((), np.float32),
        "evidence_NJD": ((joints, len(reader.facts)), np.float16),
        "pooled_NC": ((channels,), np.float16),
        "maps_NM": ((sum(channels * side**2 for channels, side in reader.pyramid),), np.float16),
        "scores_NJ": ((joints,), np.float32),
        "own_N": ((), np.float32),
        "keypoints_NJ2": ((joints, 2), np.float32),
        "distance_NJ": ((joints,), np.float32),
        "counts_NJ": ((joints,), np.bool_),
        "error_N": ((), np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    stored = {}
    for name, (shape, number) in shapes.items():
        path = folder / f"{name}.npy"
        if not path.exists():
            # Without a file there is no progress, whatever was noted.
            (folder / "progress.json").unlink(missing_ok=True)
            np.lib.format.open_memmap(path, mode="w+", dtype=number, shape=(views, *shape)).flush()
        array = np.lib.format.open_memmap(path, mode="r+")
        if array.shape != (views, *shape) or array.dtype != number:
            raise DataError(f"{path} has shape {array.shape}, expected {(views, *shape)}: delete the folder")
        stored[name] = array
    return stored


def _key(net: ForeignNet, crops: Crops, joints: Sequence[int], views: int, seed: int) -> str:
    """Hash of all that makes the numbers."""
    data = crops.data
    labels = hashlib.sha256(data.joints_NJ2.tobytes() + data.labelled_NJ.tobytes()).hexdigest()
    crop = fields_to_json(crops.config)
    made_of = [
        VERSION, digest(net.path), fields_to_json(net.spec), list(joints), labels,
        data.people_keys(), crop, views, seed,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:20]
