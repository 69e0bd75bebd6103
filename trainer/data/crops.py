"""Crops of a whole dataset, cut once, in parallel, into one memory-mapped file.

A cache is named by a hash of all that made it: the pictures' content, the boxes, the crop and this file's version. A
second start opens it at once; anything that differs makes another cache. Images that cannot be read are left out
by name and counted; they never stop a run.

Shapes: N people, B batch, J joints, S crop side with context.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from alpose.runtime.crop import Crop, cut, square_crop
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import read_json, remove_abandoned, replacing, write_json
from alpose.runtime.skeleton import Skeleton

from ..progress import progress
from .records import Bools, Floats, ImageError, PoseData, trained

log = logging.getLogger("alpose")

VERSION = 4
"""Raise this when the pixels of a crop change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """How people are cut out."""

    size_px: int = 256
    """Side of the net's input."""
    margin: float = 1.25
    """Side of the crop over the longer side of the box."""
    context: float = 0.25
    """Room on each side for rotation, scale and shift in training, as a share of ``size_px``."""

    def __post_init__(self) -> None:
        if self.size_px < 64 or self.size_px % 64:
            raise ConfigError(f"crop: size_px must be a multiple of 64, got {self.size_px}")
        if not 1.0 <= self.margin <= 4.0 or not 0.0 <= self.context <= 1.0:
            raise ConfigError(f"crop: margin must be in [1, 4] and context in [0, 1], got {self}")

    @property
    def context_px(self) -> int:
        """Context in crop pixels."""
        return round(self.context * self.size_px)

    def crop_of(self, box_4: npt.ArrayLike) -> Crop:
        """The crop of one person, with context."""
        bare = square_crop(box_4, margin=self.margin, size_px=self.size_px)
        return Crop(bare.x0, bare.y0, bare.side, bare.size_px, self.context_px)


@dataclass(frozen=True, slots=True)
class Crops:
    """The usable people of a dataset with their pixels at hand."""

    data: PoseData
    config: CropConfig
    pixels_NSS3: npt.NDArray[np.uint8]
    """All people of the cache, memory-mapped; ``row_N`` says which belong here."""
    row_N: npt.NDArray[np.int64]
    scale_N: Floats
    """Frame pixels per crop pixel."""
    joints_NJ2: Floats
    """In pixels of the crop without context."""
    left_out: tuple[str, ...]
    """Names and reasons of people that could not be cut."""

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def labelled_NJ(self) -> Bools:
        """Mask of labelled joints."""
        return self.data.labelled_NJ

    def subset(self, index_M: Sequence[int] | npt.NDArray[np.integer]) -> Crops:
        """These people, in this order, sharing the pixels."""
        rows_M = np.asarray(index_M, dtype=np.int64)
        return Crops(self.data.subset(rows_M), self.config, self.pixels_NSS3, self.row_N[rows_M],
                     self.scale_N[rows_M], self.joints_NJ2[rows_M], self.left_out)  # fmt: skip

    def read(self, index_B: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Pixels (B, S, S, 3) with context."""
        return self.pixels_NSS3[self.row_N[index_B]]

    def read_bare(self, index_B: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Pixels (B, size_px, size_px, 3) of the crop as evaluation and a monitor see it."""
        inside = slice(self.config.context_px, self.config.context_px + self.config.size_px)
        return self.pixels_NSS3[self.row_N[index_B], inside, inside]


def prepare(data: PoseData, config: CropConfig, cache: Path, workers: int | None = None) -> Crops:
    """Open the cache of a dataset's crops, or make it first.

    Args:
        data: people and their images.
        config: the crop.
        cache: folder for the files.
        workers: threads; by default one per core.
    """
    if not len(data):
        raise DataError(f"{data.name}: there is nobody in it to cut out")
    key = _key(data, config)
    path, notes = cache / f"crops-{key}.npy", cache / f"crops-{key}.json"
    if not (path.exists() and notes.exists()):
        _make(data, config, path, notes, workers or os.cpu_count() or 1)
    side = config.size_px + 2 * config.context_px
    try:
        reasons = {int(row): str(reason) for row, reason in read_json(notes)["left_out"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{notes} does not say who was left out: delete it") from error
    try:
        pixels_NSS3 = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it") from error
    if pixels_NSS3.shape != (len(data), side, side, 3):
        raise DataError(f"{path} has shape {pixels_NSS3.shape}, expected {(len(data), side, side, 3)}: delete it")
    left_out = tuple(f"{data.ids[row]}: {reason}" for row, reason in reasons.items())
    if left_out:
        log.warning("%s: %d of %d people left out (%s%s)", data.name, len(left_out), len(data), "; ".join(left_out[:5]),
                    "; ..." if len(left_out) > 5 else "")  # fmt: skip
    rows_N = np.array([row for row in range(len(data)) if row not in reasons], dtype=np.int64)
    if not len(rows_N):
        raise DataError(f"{data.name}: none of its {len(data)} people could be cut, first: {left_out[0]}")
    kept = data.subset(rows_N)
    crop_N = [config.crop_of(box_4) for box_4 in kept.boxes_N4]
    joints_NJ2 = np.stack([crop.to_crop(joints) for crop, joints in zip(crop_N, kept.joints_NJ2, strict=True)])
    scale_N = np.array([crop.scale for crop in crop_N], dtype=np.float32)
    return Crops(kept, config, pixels_NSS3, rows_N, scale_N, joints_NJ2, left_out)


def unseen_crops(people: PoseData, skeleton: Skeleton, crop: CropConfig, cache: Path, seen: Collection[str]) -> Crops:
    """Crops of the people that trained nothing, as a device would see them.

    Args:
        people: labelled.
        skeleton: of the model; another one is an error.
        crop: of the model.
        cache: for the crops.
        seen: who trained the model or chose its epoch, from :func:`~alpose.trainer.data.records.who_trained`: everybody
            on their pictures is left out, and counted in the log.
    """
    crops = prepare(people.with_skeleton(skeleton), replace(crop, context=0.0), cache)
    unseen_N = ~trained(crops.data, seen)
    if not unseen_N.any():
        raise DataError(f"all {len(crops)} people of {people.name} trained this model: calibrate with others")
    if not unseen_N.all():
        log.warning("%s: %d of %d people trained this model and are left out of its calibration", people.name,
                    int((~unseen_N).sum()), len(unseen_N))  # fmt: skip
    return crops.subset(np.flatnonzero(unseen_N))


def _key(data: PoseData, config: CropConfig) -> str:
    """Hash of all that makes the pixels: a renamed folder or a corrected label needs no new crops."""
    made_of = [VERSION, data.pictures(), data.boxes_N4.tolist(), asdict(config)]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:20]


def _make(data: PoseData, config: CropConfig, path: Path, notes: Path, workers: int) -> None:
    """Cut every person into a file beside its place, then rename: an interrupted cache does not exist."""
    remove_abandoned(path.parent, path.name)
    side = config.size_px + 2 * config.context_px
    with replacing(path) as temporary:
        pixels_NSS3 = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(data), side, side, 3))

        def one(row: int) -> str | None:
            try:
                crop = config.crop_of(data.boxes_N4[row])
                pixels_NSS3[row] = cut(data.image(row), crop)
            except ImageError as error:
                return str(error)
            except DataError as error:
                return f"no usable box ({error})"
            return None

        # The pool gives the parallelism; OpenCV's own threads would only compete with it.
        cv2.setNumThreads(1)
        with ThreadPoolExecutor(workers) as pool:
            reasons = list(progress(pool.map(one, range(len(data))), f"crops of {data.name}", len(data)))
        pixels_NSS3.flush()
        left_out = {row: reason for row, reason in enumerate(reasons) if reason}
        write_json(notes, {"left_out": left_out, "people": len(data)})
