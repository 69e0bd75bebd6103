"""``alpose-train pose describe``: what a net was taken for, and whether its answers on real pictures bear that out.

A wrong order of colours or normalisation does not stop a net, it makes it worse. So it is measured where labels are given, and
drawn in any case.

Shapes: N people, J joints, H W the net's input.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import to_json

from ..data.catalog import open_dataset
from ..data.crops import Crops, crop_config, prepare
from ..data.images import ImageError, ImageFiles
from ..data.records import PoseData
from ..measures.metrics import judge, profile_of
from ..measures.statistics import mean_interval
from ..progress import progress
from .joints import in_skeleton, match_joints
from .net import ForeignNet, open_net
from .reader import NetReader
from .recognition.examination import Part
from .recognition.families import IMAGENET_MEAN, IMAGENET_STD
from .recognition.recognise import Recognised
from .spec import NetInput, PoseSpec
from .trial import Trial, try_net

log = logging.getLogger("alpose")

BATCH = 16
CLEARLY = 0.02
"""Another convention is worth a warning where PCK is higher by more than this, and by more than chance explains."""
COVERED = 0.99
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

Triple = tuple[float, float, float]
NORMALISATIONS: dict[str, tuple[float, Triple, Triple]] = {
    "0 to 1": (1 / 255, (0, 0, 0), (1, 1, 1)),
    "-1 to 1": (1 / 127.5, (1, 1, 1), (1, 1, 1)),
    "0 to 255": (1.0, (0, 0, 0), (1, 1, 1)),
    "ImageNet's mean and std": (1 / 255, IMAGENET_MEAN, IMAGENET_STD),
}


@dataclass(frozen=True)
class Convention:
    """One way to feed the net, and how well it does then."""

    name: str
    options: str
    """What states it; empty for the way that was described."""
    pck: float | None
    more: float = 0.0
    """PCK of an image over that of the way that was described, on average."""
    low: float = 0.0
    high: float = 0.0
    """The 99 % interval of ``more``, over people."""

    @property
    def clearly_better(self) -> bool:
        """Whether it should be stated."""
        return self.more > CLEARLY and self.low > 0


@dataclass(frozen=True)
class Answers:
    """What the net says of some people."""

    keypoints_NJ2: npt.NDArray[np.float32]
    """Pixels of the input."""
    scores_NJ: npt.NDArray[np.float32]
    image_pck_N: npt.NDArray[np.float32]
    """NaN where nothing is labelled."""


@dataclass(frozen=True)
class Sample:
    """The net on real pictures."""

    name: str
    crops: Crops
    joints: tuple[str, ...]
    """That net and labels share; empty without labels."""
    answers: Answers
    conventions: tuple[Convention, ...]
    """The described one first; only that one without labels."""
    better: tuple[Convention, Answers] | None
    """The best of those that are clearly better."""


@dataclass(frozen=True)
class Description:
    """A net's file, what it was taken for, and what it answers."""

    file: Path
    recognised: Recognised
    shapes: dict[str, tuple[int | None, ...]]
    trial: Trial
    sample: Sample | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``spec`` can be given back with ``--spec``."""
        sample = self.sample
        return {
            "file": str(self.file),
            "family": self.recognised.family,
            "spec": to_json(self.recognised.spec),
            "parts": [to_json(part) for part in self.recognised.parts],
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "trial": to_json(self.trial),
            "people": None if sample is None else len(sample.crops),
            "joints": None if sample is None else list(sample.joints),
            "conventions": [] if sample is None else [to_json(one) for one in sample.conventions],
            "better": None if sample is None or sample.better is None else sample.better[0].options,
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        parts = self.recognised.parts
        wide = max(len(part.name) for part in parts)
        lines = [f"{self.file}"]
        for part in parts:
            first, *rest = part.value.split(", ") if part.name in ("hidden", "taps") and part.value else [part.value]
            lines.append(f"  {part.name:{wide}}  {first or 'none'}   [{how(part)}]")
            lines += [f"  {'':{wide}}  {item}" for item in rest]
        if guesses := self.recognised.guesses():
            lines.append(
                f"Guessed: {', '.join(part.name for part in guesses)}. Look at the answers below, or state them."
            )
        lines += self.trial.lines()
        if self.sample is not None:
            lines += sample_lines(self.sample)
        return lines


def how(part: Part) -> str:
    """Where a part comes from and why, in words."""
    return f"{origin(part)}: {part.why}" if part.why else origin(part)


def origin(part: Part) -> str:
    """Where a part comes from, in words."""
    return {"stated": "stated", "graph": "in the file", "family": "of the family", "guess": "guessed"}[part.origin]


def sample_lines(sample: Sample) -> list[str]:
    """What was measured, for a terminal."""
    if not sample.joints:
        return [f"{len(sample.crops)} pictures of {sample.name}: no labels, look at the page"]
    lines = [f"PCK of {len(sample.crops)} people of {sample.name} ({len(sample.joints)} joints in common)"]
    wide = max(len(one.name) for one in sample.conventions)
    for one in sample.conventions:
        more = f"{one.more:+.3f} [{one.low:+.3f}, {one.high:+.3f}]  {one.options}" if one.options else "as described"
        lines.append(f"  {one.name:{wide}}  {_number(one.pck)}  {more}")
    lines.append(verdict(sample))
    return lines


def verdict(sample: Sample) -> str:
    """One sentence: is another convention clearly better?"""
    if sample.better is not None:
        one = sample.better[0]
        return (f"Warning: {one.name} is clearly better, by {one.more:.3f} of PCK (99 % interval {one.low:.3f} to {one.high:.3f}). "
                f"State {one.options}")  # fmt: skip
    lowest = sample.conventions[0].pck
    if lowest is not None and lowest < 0.3:
        return ("Warning: PCK is low however the net is fed. Look at the pictures: is the crop right (--crop, --margin), are x and y "
                "in their order (--columns), is the skeleton the net's (--skeleton)?")  # fmt: skip
    return "No other order of colours or normalisation is clearly better."


def describe(
    file: Path, recognised: Recognised, *, dataset: str | None = None, images: Path | None = None,
    data_root: Path | None = None, cache: Path, people: int = 100, map_joints: str | None = None,
) -> Description:  # fmt: skip
    """Open a net as it was recognised and look at its answers.

    Args:
        file: the ONNX file.
        recognised: what it was taken for.
        dataset: labelled people: a dataset by name, or a folder.
        images: a folder of pictures of one person each, without labels.
        data_root: where the datasets lie that go by a name.
        cache: for crops.
        people: how many are looked at.
        map_joints: see :func:`~.joints.match_joints`.
    """
    spec = recognised.spec
    net = open_net(file, spec)
    reader = NetReader(spec, net.shapes).eval()
    trial, sample = try_net(net, reader), None
    if dataset is not None or images is not None:
        data, joints = (
            _labelled(dataset, data_root, spec, people, map_joints)
            if dataset
            else (_pictures(images, spec, people), ())
        )
        sample = _sample(net, reader, prepare(data, crop_config(spec), cache), joints)
    return Description(file, recognised, net.shapes, trial, sample)


def _labelled(
    dataset: str, data_root: Path | None, spec: PoseSpec, people: int, map_joints: str | None
) -> tuple[PoseData, tuple[str, ...]]:
    """Some people of the part that tests, in the net's skeleton, evenly spread."""
    data = open_dataset(dataset, data_root).test
    order_J = match_joints(spec.skeleton, data.skeleton, map_joints)
    shown = in_skeleton(data, spec.skeleton, order_J)
    usable_N = np.flatnonzero(shown.labelled_NJ.any(axis=1))
    if not len(usable_N):
        raise DataError(f"{data.name}: nobody has a label of a joint that the net has")
    rows = usable_N[np.unique(np.linspace(0, len(usable_N) - 1, min(people, len(usable_N))).round().astype(int))]
    joints = tuple(spec.skeleton.joints[j] for j in np.flatnonzero(order_J >= 0))
    return shown.subset(rows), joints


def _pictures(folder: Path | None, spec: PoseSpec, people: int) -> PoseData:
    """Pictures of a folder, each one person who fills it."""
    if folder is None or not folder.is_dir():
        raise DataNotFoundError(f"{folder} is not a folder of pictures")
    paths = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES))[:people]
    files = ImageFiles(paths, upright=True)
    boxes, kept = [], []
    for row, path in enumerate(paths):
        try:
            height, width = files.read(row).shape[:2]
        except ImageError as error:
            log.warning("left out: %s", error)
            continue
        boxes.append((-0.5, -0.5, width - 0.5, height - 0.5))
        kept.append(path)
    if not kept:
        raise DataError(f"{folder} has no picture that can be read")
    count, joints = len(kept), len(spec.skeleton)
    nothing_NJ = np.zeros((count, joints), np.bool_)
    return PoseData(
        name=folder.name, skeleton=spec.skeleton, ids=tuple(str(path.relative_to(folder)) for path in kept),
        images=ImageFiles(tuple(kept), upright=True), image_N=np.arange(count), joints_NJ2=np.zeros((count, joints, 2), np.float32),
        labelled_NJ=nothing_NJ, visible_NJ=nothing_NJ, boxes_N4=np.asarray(boxes, np.float32),
    )  # fmt: skip


def _sample(net: ForeignNet, reader: NetReader, crops: Crops, joints: tuple[str, ...]) -> Sample:
    ways = _ways(net.spec.input) if joints else [(*_words(net.spec.input), net.spec.input)]
    found: list[tuple[str, str, Answers]] = []
    for name, options, given in progress(ways, "ways to feed it", len(ways)):
        found.append((name, options, _answer(net.fed(given), reader, crops)))
    base = found[0][2]
    conventions = [
        _compared(name, options if place else "", answers, base, crops)
        for place, (name, options, answers) in enumerate(found)
    ]
    better = [(one, answers) for one, (_, _, answers) in zip(conventions, found, strict=True) if one.clearly_better]
    best = max(better, key=lambda pair: pair[0].more, default=None)
    return Sample(crops.data.name, crops, joints, base, tuple(conventions), best)


def _ways(given: NetInput) -> list[tuple[str, str, NetInput]]:
    """The convention that was described, and the others: every normalisation in both orders of colours."""
    ways = [given, replace(given, colour="bgr" if given.colour == "rgb" else "rgb")]
    if given.number.startswith("float"):
        for scale, mean, std in NORMALISATIONS.values():
            ways.append(replace(given, scale=scale, mean=mean, std=std, colour="rgb"))
            ways.append(replace(given, scale=scale, mean=_reversed(mean), std=_reversed(std), colour="bgr"))
    kept: list[NetInput] = []
    for way in ways:
        if not any(_same(way, other) for other in kept):
            kept.append(way)
    return [(*_words(way), way) for way in kept]


def _reversed(values_3: Triple) -> Triple:
    return values_3[2], values_3[1], values_3[0]


def _same(a: NetInput, b: NetInput) -> bool:
    first, second = (np.array([way.scale, *way.mean, *way.std]) for way in (a, b))
    return a.colour == b.colour and bool(np.allclose(first, second, rtol=1e-3, atol=1e-3))


def _words(given: NetInput) -> tuple[str, str]:
    """A convention's name and the options that state it."""

    def text(values: Triple) -> str:
        return ",".join(f"{value:.6g}" for value in values)

    name = f"scale {given.scale:.4g}, mean {text(given.mean)}, std {text(given.std)}"
    for known, (scale, mean, std) in NORMALISATIONS.items():
        ordered = (mean, std) if given.colour == "rgb" else (_reversed(mean), _reversed(std))
        if _same(given, replace(given, scale=scale, mean=ordered[0], std=ordered[1])):
            name = known
    options = f"--colour {given.colour} --scale {given.scale:.8g} --mean {text(given.mean)} --std {text(given.std)}"
    return f"{given.colour.upper()}, {name}", options


def _answer(net: ForeignNet, reader: NetReader, crops: Crops) -> Answers:
    """The net's keypoints and scores of everybody, and PCK where they are labelled."""
    parts = []
    for start in range(0, len(crops), BATCH):
        rows_B = np.arange(start, min(start + BATCH, len(crops)))
        tensors = net(crops.read_bare(rows_B))
        with torch.no_grad():
            reading = reader(*(torch.from_numpy(tensors[name]) for name in net.spec.tensors))
        parts.append((reading.keypoints_NJ2.numpy(), reading.scores_NJ.numpy()))
    keypoints_NJ2, scores_NJ = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    distance_NJ = np.nan_to_num(crops.distance(keypoints_NJ2 - crops.joints_NJ2), nan=np.inf, posinf=np.inf)
    profile = profile_of("standard", crops.data)
    judged = judge(crops.data, distance_NJ, np.ones_like(scores_NJ), profile)
    return Answers(keypoints_NJ2, scores_NJ, judged.image_pck())


def _compared(name: str, options: str, answers: Answers, base: Answers, crops: Crops) -> Convention:
    more_N = answers.image_pck_N - base.image_pck_N
    more_N = more_N[np.isfinite(more_N)]
    pck = float(np.nanmean(answers.image_pck_N)) if np.isfinite(answers.image_pck_N).any() else None
    ends = mean_interval(more_N[:, None].astype(np.float64), covered=COVERED) if options else None
    if ends is None:
        return Convention(name, options, pck)
    return Convention(name, options, pck, float(more_N.mean()), float(ends[0][0]), float(ends[1][0]))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
