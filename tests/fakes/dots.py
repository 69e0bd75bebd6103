"""A net that sees dots: hips are red, shoulders green. For crops that turn with the body, and for several people.

Shapes: N crops, H W height and width of a crop.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.crop import CropRule
from alpose.runtime.skeleton import Skeleton
from alpose.runtime.types import CANDIDATES, Outputs

from . import scripted

BODY = Skeleton(
    "body", ("left_hip", "right_hip", "left_shoulder", "right_shoulder"), ((0, 2), (1, 3)), ((0, 1), (2, 3))
)
Bytes = npt.NDArray[np.uint8]


class Dots:
    """Finds the middle of red and of green; ``probability`` is the failure probability that it gives to all but golden frames."""

    name = "dots"

    def __init__(self, golden_NHW3: Bytes, people: bool = False) -> None:
        self.probability = 0.1
        self.people = people
        self.crops: list[Bytes] = []
        """All that it was shown, but for golden frames."""
        self._golden = {frame.tobytes() for frame in golden_NHW3}

    def __call__(self, frames_NHW3: Bytes) -> Outputs:
        asked_N = np.array([frame.tobytes() not in self._golden for frame in frames_NHW3])
        self.crops += [frame.copy() for frame in frames_NHW3[asked_N]]
        probability_N = np.where(asked_N, self.probability, 0.1).astype(np.float32)
        named = answer(frames_NHW3, probability_N)
        if self.people:
            named["people"] = np.stack([people_on(frame) for frame in frames_NHW3])
        return Outputs(*named.values())


def answer(
    frames_NHW3: Bytes, probability_N: npt.NDArray[np.float32] | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """The outputs by name."""
    count, height, width, _ = frames_NHW3.shape
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    weight_NHW2 = frames_NHW3[..., :2].astype(np.float64) + 1e-9
    total_N2 = weight_NHW2.sum(axis=(1, 2))
    x_N2, y_N2 = ((weight_NHW2 * grid[..., None]).sum(axis=(1, 2)) / total_N2 for grid in (x_HW, y_HW))
    points_N22 = np.stack([x_N2, y_N2], axis=2)
    one_N = np.ones(count, dtype=np.float32)
    return {
        "keypoints": points_N22.repeat(2, axis=1).astype(np.float32),
        "scores": np.full((count, 4), 0.9, dtype=np.float32),
        "predicted_loss": frames_NHW3.mean(axis=(1, 2, 3)).astype(np.float32),
        "failure_probability": 0.1 * one_N if probability_N is None else probability_N,
        "embedding": np.eye(1, 3, dtype=np.float32).repeat(count, axis=0),
        "confidence": np.full((count, 4), 0.8, dtype=np.float32),
    }


def people_on(frame_HW3: Bytes) -> npt.NDArray[np.float32]:
    """A candidate (300, 5) for each blue dot, as sure as it is blue: as wide and high as its blue rectangle."""
    found: list[tuple[float, ...]] = []
    left_HW = frame_HW3[..., 2] > 20
    while left_HW.any() and len(found) < CANDIDATES:
        y, x = np.argwhere(left_HW)[0]
        rows = left_HW[y:, x]
        y1 = y + (len(rows) if rows.all() else int(rows.argmin())) - 1
        columns = left_HW[y, x:]
        x1 = x + (len(columns) if columns.all() else int(columns.argmin())) - 1
        found.append((x, y, x1, y1, frame_HW3[y : y1 + 1, x : x1 + 1, 2].mean() / 255))
        left_HW[y : y1 + 1, x : x1 + 1] = False
    out = np.zeros((CANDIDATES, 5), dtype=np.float32)
    if found:
        out[: len(found)] = sorted(found, key=lambda one: -one[4])
    return out


def write_bundle(folder: Path, rule: CropRule, people: bool = False) -> tuple[Path, Dots]:
    """A bundle with such a net, and the net; with ``people`` it finds several on a frame."""
    golden = np.random.default_rng(4).integers(0, 256, (3, rule.height_px, rule.width_px, 3), dtype=np.uint8)
    scripted.write_bundle_of(folder, golden, answer(golden), model=b"no graph", crop=rule, skeleton=BODY,
                             calibration=scripted.calibration(), people=people)  # fmt: skip
    return folder, Dots(golden, people)


def frame_with(people: list[tuple[Any, Any]], height: int = 240, width: int = 320) -> Bytes:
    """A dark frame with a red dot at the hips and a green one at the shoulders of each person."""
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    frame = np.zeros((height, width, 3))
    for hips, shoulders in people:
        for channel, (x, y) in enumerate((hips, shoulders)):
            frame[..., channel] += 250 * np.exp(-((x_HW - x) ** 2 + (y_HW - y) ** 2) / 18)
    return np.rint(np.minimum(frame, 255)).astype(np.uint8)
