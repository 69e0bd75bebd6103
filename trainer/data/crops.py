"""Crops of a whole dataset, cut once, in parallel, into one memory-mapped file.

A cache is named by a hash of all that made it: the pictures' content, the boxes, the crop and this file's version. A
second start opens it at once; anything that differs makes another cache. Images that cannot be read are left out
by name and counted; they never stop a run.

Shapes: N people, B batch, J joints, T S height and width of a crop with context.
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

from alpose.runtime.crop import PERSON_MARGIN, Crop, CropKind, CropRule, body_turn, cut
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import read_json, remove_abandoned, replacing, write_json
from alpose.runtime.skeleton import Skeleton, body_axis

from ..foreign.spec import PoseSpec
from ..progress import progress
from .images import ImageError
from .records import Bools, Floats, PoseData, trained

log = logging.getLogger("alpose")

VERSION = 4
"""Raise this when the pixels of a crop change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """How people are cut out."""

    size_px: int = 256
    """Width of the net's input, and its height unless that is stated."""
    margin: float = 1.25
    """Sides of the crop over those of the box."""
    context: float = 0.25
    """Room on each side for rotation, scale and shift in training, as a share of the longer side."""
    height_px: int | None = None
    """Height of the net's input; None: it is square."""
    kind: CropKind = "box"
    fill: int = 0
    """Grey level of what lies outside the frame."""

    def __post_init__(self) -> None:
        try:
            rule = self.rule
        except DataError as error:
            raise ConfigError(str(error)) from None
        if not 0.0 <= self.context <= 1.0:
            raise ConfigError(f"crop: context must be in [0, 1], got {self}")
        if self.context and not rule.around_person:
            raise ConfigError(f"crop: the whole frame ({self.kind}) has no context, got {self.context}: state 0")

    @property
    def rule(self) -> CropRule:
        """The crop as a bundle states it."""
        return CropRule(width_px=self.size_px, height_px=self.shape_px[0], margin=self.margin, kind=self.kind,
                        fill=self.fill)  # fmt: skip

    @property
    def shape_px(self) -> tuple[int, int]:
        """Height and width of the net's input."""
        return (self.height_px or self.size_px, self.size_px)

    @property
    def context_px(self) -> int:
        """Context in crop pixels."""
        return round(self.context * max(self.shape_px))

    def crop_of(
        self, box_4: npt.ArrayLike, frame_size: tuple[int, int] | None = None, turn: float | None = None,
        shared: bool = False,
    ) -> Crop:  # fmt: skip
        """The crop of one person, with context; the arguments are those of :meth:`CropRule.crop_of`.

        ``shared``: others are labelled on the same picture. A net of whole frames then sees the person by themselves, as a monitor
        shows it each of several people: of the whole picture its answer could be anybody's.
        """
        if shared and not self.rule.around_person:
            return self.rule.person_crop(box_4)
        return replace(self.rule.crop_of(box_4, frame_size, turn), context_px=self.context_px)


def crop_config(spec: PoseSpec, context: float = 0.0) -> CropConfig:
    """The crop of somebody else's net. ``context`` is for views of a person; whole frames have none."""
    shape, crop = spec.input, spec.crop
    return CropConfig(
        size_px=shape.width_px, height_px=shape.height_px, margin=crop.margin, kind=crop.kind, fill=crop.fill,
        context=context if crop.kind in ("box", "turned") else 0.0,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Crops:
    """The usable people of a dataset with their pixels at hand."""

    data: PoseData
    config: CropConfig
    pixels_NTS3: npt.NDArray[np.uint8]
    """All people of the cache, memory-mapped; ``row_N`` says which belong here."""
    row_N: npt.NDArray[np.int64]
    scale_N: Floats
    """Frame pixels per crop pixel; of a stretched frame the geometric mean of both axes."""
    joints_NJ2: Floats
    """In pixels of the crop without context."""
    left_out: tuple[str, ...]
    """Names and reasons of people that could not be cut."""
    crop_N: tuple[Crop, ...] = ()
    """Where everybody was cut; empty where it is not known."""

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def labelled_NJ(self) -> Bools:
        """Mask of labelled joints."""
        return self.data.labelled_NJ

    def subset(self, index_M: Sequence[int] | npt.NDArray[np.integer]) -> Crops:
        """These people, in this order, sharing the pixels."""
        rows_M = np.asarray(index_M, dtype=np.int64)
        crop_M = tuple(self.crop_N[row] for row in rows_M) if self.crop_N else ()
        return Crops(self.data.subset(rows_M), self.config, self.pixels_NTS3, self.row_N[rows_M],
                     self.scale_N[rows_M], self.joints_NJ2[rows_M], self.left_out, crop_M)  # fmt: skip

    def distance(self, offset_NJ2: npt.NDArray[np.floating]) -> Floats:
        """Lengths (N, J) in frame pixels of offsets in crop pixels."""
        if self.config.kind != "whole" or not self.crop_N:
            return np.asarray(np.linalg.norm(offset_NJ2, axis=2) * self.scale_N[:, None])
        scale_N2 = np.array([(crop.across.scale, crop.down.scale) for crop in self.crop_N], dtype=np.float32)
        return np.asarray(np.linalg.norm(offset_NJ2 * scale_N2[:, None], axis=2))

    @property
    def side_N(self) -> Floats:
        """The longer side of every crop in frame pixels, which the mean error is a share of."""
        return np.asarray(self.scale_N * max(self.config.shape_px))

    def read(self, index_B: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Pixels (B, T, S, 3) with context."""
        return self.pixels_NTS3[self.row_N[index_B]]

    def read_bare(self, index_B: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Pixels (B, H, W, 3) of the crop, without context, as evaluation and a monitor see it."""
        start = self.config.context_px
        down, across = (slice(start, start + length) for length in self.config.shape_px)
        return self.pixels_NTS3[self.row_N[index_B], down, across]


def label_turns(data: PoseData) -> Floats:
    """The turn of everybody's body by its labels, (N,) radians; NaN where hips or shoulders are not labelled.

    :class:`ConfigError` for a skeleton without hips and shoulders.
    """
    axis = body_axis(data.skeleton)
    if axis is None:
        raise ConfigError(f"crops that turn with the body need hips and shoulders, and {data.skeleton.name!r} has none: "
                          "state another kind of crop, or give the turns")  # fmt: skip
    hips, shoulders = (list(joints) for joints in axis)
    turns = [
        body_turn(joints_J2[hips], joints_J2[shoulders]) if labelled_J[hips + shoulders].all() else None
        for joints_J2, labelled_J in zip(data.joints_NJ2, data.labelled_NJ, strict=True)
    ]
    return np.array([np.nan if turn is None else turn for turn in turns], dtype=np.float32)


def prepare(
    data: PoseData, config: CropConfig, cache: Path, workers: int | None = None, turn_N: Floats | None = None
) -> Crops:
    """Open the cache of a dataset's crops, or make it first.

    Args:
        data: people and their images.
        config: the crop.
        cache: folder for the files.
        workers: threads; by default one per core.
        turn_N: of everybody's crop, in radians, for crops that turn with the body: where a first, upright pass of the net
            found them. NaN is upright. None: by the labels, and upright where these do not say.
    """
    if not len(data):
        raise DataError(f"{data.name}: there is nobody in it to cut out")
    if config.kind != "turned":
        turn_N = None
    elif turn_N is None:
        turn_N = label_turns(data)
    if turn_N is not None and not np.isfinite(turn_N).all():
        log.warning("%s: %d of %d people are cut upright: the direction of their bodies is not known", data.name,
                    int((~np.isfinite(turn_N)).sum()), len(data))  # fmt: skip
    shared_N = _shared(data, config)
    if shared_N.any():
        log.info("%s: %d of %d people share a picture, and a net of whole frames is shown each by themselves", data.name,
                 int(shared_N.sum()), len(data))  # fmt: skip
    key = _key(data, config, turn_N, shared_N)
    path, notes = cache / f"crops-{key}.npy", cache / f"crops-{key}.json"
    if not (path.exists() and notes.exists()):
        _make(data, config, path, notes, workers or os.cpu_count() or 1, turn_N, shared_N)
    shape = (len(data), *_shape(config), 3)
    try:
        noted = read_json(notes)
        reasons = {int(row): str(reason) for row, reason in noted["left_out"].items()}
        sizes = {int(row): (int(size[0]), int(size[1])) for row, size in noted.get("sizes", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{notes} does not say who was left out: delete it") from error
    try:
        pixels_NTS3 = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it") from error
    if pixels_NTS3.shape != shape:
        raise DataError(f"{path} has shape {pixels_NTS3.shape}, expected {shape}: delete it")
    left_out = tuple(f"{data.ids[row]}: {reason}" for row, reason in reasons.items())
    if left_out:
        log.warning("%s: %d of %d people left out (%s%s)", data.name, len(left_out), len(data), "; ".join(left_out[:5]),
                    "; ..." if len(left_out) > 5 else "")  # fmt: skip
    rows_N = np.array([row for row in range(len(data)) if row not in reasons], dtype=np.int64)
    if not len(rows_N):
        raise DataError(f"{data.name}: none of its {len(data)} people could be cut, first: {left_out[0]}")
    kept = data.subset(rows_N)
    crop_N = tuple(
        config.crop_of(box_4, sizes.get(int(row)), _turn(turn_N, int(row)), bool(shared_N[row]))
        for row, box_4 in zip(rows_N, kept.boxes_N4, strict=True)
    )
    joints_NJ2 = np.stack([crop.to_crop(joints) for crop, joints in zip(crop_N, kept.joints_NJ2, strict=True)])
    scale_N = np.array([crop.scale for crop in crop_N], dtype=np.float32)
    return Crops(kept, config, pixels_NTS3, rows_N, scale_N, joints_NJ2, left_out, crop_N)


def unseen_crops(
    people: PoseData,
    skeleton: Skeleton,
    crop: CropConfig,
    cache: Path,
    seen: Collection[str],
    turn_N: Floats | None = None,
) -> Crops:
    """Crops of the people that trained nothing, as a device would see them.

    Args:
        people: labelled.
        skeleton: of the model; another one is an error.
        crop: of the model.
        cache: for the crops.
        seen: who trained the model or chose its epoch, from :func:`~alpose.trainer.data.records.who_trained`: everybody
            on their pictures is left out, and counted in the log.
        turn_N: as in :func:`prepare`.
    """
    crops = prepare(people.with_skeleton(skeleton), replace(crop, context=0.0), cache, turn_N=turn_N)
    unseen_N = ~trained(crops.data, seen)
    if not unseen_N.any():
        raise DataError(f"all {len(crops)} people of {people.name} trained this model: calibrate with others")
    if not unseen_N.all():
        log.warning("%s: %d of %d people trained this model and are left out of its calibration", people.name,
                    int((~unseen_N).sum()), len(unseen_N))  # fmt: skip
    return crops.subset(np.flatnonzero(unseen_N))


def _shape(config: CropConfig) -> tuple[int, int]:
    """Height and width with context."""
    height, width = config.shape_px
    return (height + 2 * config.context_px, width + 2 * config.context_px)


def _turn(turn_N: Floats | None, row: int) -> float | None:
    return float(turn_N[row]) if turn_N is not None and np.isfinite(turn_N[row]) else None


def _shared(data: PoseData, config: CropConfig) -> Bools:
    """Who is on a picture with others, where the crop is the whole picture."""
    if config.rule.around_person:
        return np.zeros(len(data), dtype=bool)
    _, place_N, count_M = np.unique(data.image_N, return_inverse=True, return_counts=True)
    return np.asarray(count_M[place_N.reshape(-1)] > 1)


def _key(data: PoseData, config: CropConfig, turn_N: Floats | None, shared_N: Bools) -> str:
    """Hash of all that makes the pixels: a renamed folder or a corrected label needs no new crops."""
    # What a config had before crops could have any shape always counts, the rest where it is stated: caches stay good.
    stated = {name: value for name, value in asdict(config).items()
              if name in ("size_px", "margin", "context") or value != getattr(CropConfig(), name)}  # fmt: skip
    made_of: list[object] = [VERSION, data.pictures(), data.boxes_N4.tolist(), stated]
    if turn_N is not None:
        made_of.append([None if np.isnan(turn) else turn for turn in turn_N.tolist()])
    if shared_N.any():
        made_of.append({"shared": np.flatnonzero(shared_N).tolist(), "margin": PERSON_MARGIN})
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:20]


def _make(
    data: PoseData, config: CropConfig, path: Path, notes: Path, workers: int, turn_N: Floats | None, shared_N: Bools
) -> None:  # fmt: skip
    """Cut every person into a file beside its place, then rename: an interrupted cache does not exist."""
    remove_abandoned(path.parent, path.name)
    shape = (len(data), *_shape(config), 3)
    sizes: dict[int, tuple[int, int]] = {}
    with replacing(path) as temporary:
        pixels_NTS3 = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)

        reasons: dict[int, str] = {}

        def one(rows: Sequence[int]) -> None:
            """Everybody on one picture, which is decoded once."""
            try:
                frame_HW3 = data.image(rows[0])
            except ImageError as error:
                reasons.update(dict.fromkeys(rows, str(error)))
                return
            size = (frame_HW3.shape[1], frame_HW3.shape[0])
            for row in rows:
                try:
                    crop = config.crop_of(data.boxes_N4[row], size, _turn(turn_N, row), bool(shared_N[row]))
                    pixels_NTS3[row] = cut(frame_HW3, crop)
                    sizes[row] = size
                except DataError as error:
                    reasons[row] = f"no usable box ({error})"

        people_of: dict[int, list[int]] = {}
        for row, picture in enumerate(data.image_N.tolist()):
            people_of.setdefault(picture, []).append(row)

        # The pool gives the parallelism; OpenCV's own threads would only compete with it.
        cv2.setNumThreads(1)
        with ThreadPoolExecutor(workers) as pool:
            for _ in progress(pool.map(one, people_of.values()), f"crops of {data.name}", len(people_of)):
                pass
        pixels_NTS3.flush()
        left_out = dict(sorted(reasons.items()))
        of_frames = {} if config.rule.around_person else {"sizes": sizes}
        write_json(notes, {"left_out": left_out, "people": len(data), **of_frames})
