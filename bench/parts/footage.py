"""Frames and a bundle to watch them with: a real video and a real model, or stand-ins that anybody can make.

Shapes: F frames, H W frame, N crops, S crop side, J joints.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from alpose.export.bundle_files import golden_bytes, write_bundle
from alpose.export.graph import MonitorGraph
from alpose.export.onnx_graph import to_onnx
from alpose.runtime.bundle import Bundle
from alpose.runtime.bundle.golden import Golden, Tolerances
from alpose.runtime.bundle.manifest import CARD, GOLDEN, MODEL, crop_to_json, tensors
from alpose.runtime.crop import Crop
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.skeleton import LSP
from alpose.runtime.triggers import Control, Threshold, Trigger
from alpose.runtime.types import Outputs
from alpose.trainer.checkpoint import TargetConfig, new_head, new_model
from alpose.trainer.data.crops import CropConfig
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.models.hourglass import HourglassConfig

Frame = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 480, 640
PERSON = (210.0, 40.0, 400.0, 450.0)
"""Where the person is looked for, in every frame: a fixed place, so that every contestant cuts the same."""


@dataclass(frozen=True, slots=True, eq=False)
class Footage:
    """Frames of one camera in an order that spreads what is hard over all of them."""

    source: str
    frames: tuple[Frame, ...]
    """uint8 (480, 640, 3) RGB."""

    def __len__(self) -> int:
        return len(self.frames)


def footage(video: Path | None, count: int) -> Footage:
    """``count`` frames of a video, evenly over its length, or rendered people where there is none."""
    frames = _rendered(count) if video is None else _filmed(video, count)
    order = np.random.default_rng(0).permutation(len(frames))
    source = "rendered people (alpose.trainer.data.synthetic)" if video is None else video.name
    return Footage(source, tuple(frames[place] for place in order))


def _filmed(video: Path, count: int) -> list[Frame]:
    """The middle of each frame, 4:3, scaled to 640 x 480."""
    capture = cv2.VideoCapture(str(video))
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    frames: list[Frame] = []
    step, place = max(1, total // count), 0
    while len(frames) < count:
        there, frame_HW3 = capture.read()
        if not there:
            break
        if place % step == 0:
            frames.append(_fit(cv2.cvtColor(frame_HW3, cv2.COLOR_BGR2RGB)))
        place += 1
    capture.release()
    if not frames:
        raise DataError(f"{video} holds no frame that OpenCV can read: give another video")
    return frames


def _rendered(count: int) -> list[Frame]:
    people = read_people(seed=0, count=min(count, 200), domain="hard")
    return [_fit(people.images.read(index)) for index in range(len(people.ids))]


def _fit(frame_HW3: Frame) -> Frame:
    height, width = frame_HW3.shape[:2]
    keep = min(width, height * WIDTH // HEIGHT)
    left = (width - keep) // 2
    middle = np.ascontiguousarray(frame_HW3[:, left : left + keep])
    return np.ascontiguousarray(cv2.resize(middle, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def random_bundle(folder: Path, *, size_px: int = 128, channels: int = 64) -> Bundle:
    """A bundle around untrained weights of the laptop preset's size: as fast as a trained one, and as wrong as can be."""
    model = new_model(HourglassConfig(joints=len(LSP), stacks=2, channels=channels), LSP, CropConfig(size_px=size_px),
                      TargetConfig(), 0)  # fmt: skip
    graph = MonitorGraph.from_model(model.with_heads({"epck": new_head(model, "epck", 0)}), "epck")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL
        to_onnx(graph, path)
        frames_GHW3 = np.random.default_rng(0).integers(0, 256, (2, size_px, size_px, 3), dtype=np.uint8)
        expected = OnnxEngine(path, threads=1)(frames_GHW3)
        content = path.read_bytes()
    # Untrained heatmaps are noise: their peaks jump at any rounding, so joints are not held to a place.
    tolerances = Tolerances(
        keypoints_px=size_px, score=1.0, predicted_loss=1.0, probability=0.5, embedding=0.5, confidence=0.5
    )
    rule = CropConfig(size_px=size_px).rule
    inputs, outputs = tensors(rule, len(LSP), expected.embedding_ND.shape[1])
    facts: dict[str, Any] = {
        "name": "random", "created": "2026-01-01T00:00:00+00:00", "alpose": "0", "skeleton": LSP.to_json(),
        "crop": crop_to_json(rule), "precision": "fp32", "head": "epck", "inputs": inputs,
        "outputs": outputs, "calibration": None, "parity": {}, "provenance": {"model": "untrained"}, "opset": 18,
    }  # fmt: skip
    files = {MODEL: content, GOLDEN: golden_bytes(Golden(frames_GHW3, expected, tolerances)), CARD: b"<!doctype html>"}
    return Bundle.open(write_bundle(folder, files, facts))


class Recorded:
    """An engine that answers for nothing: in turn what a real one said. Golden frames are asked of the real one."""

    name = "recorded"

    def __init__(self, real: OnnxEngine, crops: list[Frame]) -> None:
        self._real: OnnxEngine | None = real
        self._said = [real(crop_SS3[None]) for crop_SS3 in crops]
        self._place = 0

    def play(self) -> None:
        """From now on nothing is computed."""
        self._real = None

    def __call__(self, frames_NHW3: Frame) -> Outputs:
        """What the real engine says, or said at this place."""
        if self._real is not None:
            return self._real(frames_NHW3)
        if len(frames_NHW3) != 1:
            raise ConfigError(f"one frame at a time was recorded, got {len(frames_NHW3)}")
        said = self._said[self._place]
        self._place = (self._place + 1) % len(self._said)
        return Outputs(*(array.copy() for array in said.named().values()))  # the arrays of an answer are the caller's

    @property
    def failure_probability_N(self) -> npt.NDArray[np.float32]:
        """Of every recorded answer."""
        return np.concatenate([outputs.failure_probability_N for outputs in self._said])


def policy(failure_probability_N: npt.NDArray[np.floating], share: float) -> Trigger:
    """What keeps this share of some frames: by their failure probability, or by chance where it is the same for many."""
    limit = float(np.quantile(failure_probability_N, 1 - share, method="higher"))
    kept = float((failure_probability_N >= limit).mean())
    return Threshold(limit) if kept <= 2 * share else Control(rate=share)


def place_of(bundle: Bundle) -> Crop:
    """The crop of every frame."""
    return bundle.crop.crop_of(PERSON, (WIDTH, HEIGHT))


def box_of(bundle: Bundle) -> tuple[float, float, float, float] | None:
    """The box that the Monitor is given: none where its net looks at whole frames."""
    return PERSON if bundle.crop.around_person else None
