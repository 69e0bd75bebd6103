"""Whether agreement with the last frames tells a failure that the head does not see: rendered people who walk, with known joints.

    python -m bench.temporal models/first models/second

Everybody walks before a picture, turns and walks back, beside or behind something that stands there, while light, blur and noise
come and go: a drift. The crop follows the person's true box, so that what joints do between two frames is the pose's motion and
not the person's. A logistic fusion is fitted to half of the scenes and judged on the other half; intervals draw whole scenes.

Shapes: N frames of all scenes in order, F frames of a scene, J joints, P points of a body, E pieces of evidence.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import numpy.typing as npt
import torch

from alpose.runtime.io import write_json
from alpose.runtime.skeleton import LSP
from alpose.trainer import checkpoint
from alpose.trainer.checkpoint import PoseModel
from alpose.trainer.data.crops import prepare
from alpose.trainer.data.records import PoseData, joint_boxes
from alpose.trainer.data.synthetic import background, sample_look
from alpose.trainer.data.synthetic_figure import Figure, paint_figure
from alpose.trainer.data.synthetic_pose import walk
from alpose.trainer.detect.comparing import bootstrap_views
from alpose.trainer.device import DeviceContext, device_context, evaluating
from alpose.trainer.measures.metrics import Failure
from alpose.trainer.measures.statistics import fit_logistic
from alpose.trainer.passes import predict

Floats = npt.NDArray[np.float64]

WIDTH, HEIGHT = 240, 180
FRAMES = 60
"""Of a scene, ten a second."""
LAST = 5
"""Frames that are remembered."""
FAR = 0.25
"""Of the crop's side: a joint that moved farther has been lost, however far it went."""
ROWS: Mapping[str, tuple[str, ...]] = {
    "head": ("head",),
    "agreement alone": ("moved", "unsteady", "apart"),
    "head and agreement": ("head", "moved", "unsteady", "apart"),
    "head, mean of the last frames": ("recent",),
    "head and its mean": ("head", "recent"),
    "everything": ("head", "recent", "moved", "unsteady", "apart"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Scenes:
    """Rendered frames, held in memory."""

    frames: Sequence[npt.NDArray[np.uint8]]
    seed: int

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """One frame, RGB."""
        return self.frames[index]

    def describe(self, index: int) -> str:
        """What the pixels follow from."""
        return f"temporal:v1:{self.seed}:{index}"


def walked(seed: int, scenes: int, frames: int = FRAMES) -> PoseData:
    """So many scenes, one after the other, every joint labelled; ``groups`` says which."""
    pictures: list[npt.NDArray[np.uint8]] = []
    joints: list[Floats] = []
    for scene in range(scenes):
        shown, joints_FJ2 = _scene(np.random.default_rng([seed, scene]), frames)
        pictures += shown
        joints.append(joints_FJ2)
    joints_NJ2 = np.concatenate(joints).astype(np.float32)
    labelled_NJ = np.ones(joints_NJ2.shape[:2], dtype=np.bool_)
    return PoseData(
        name="temporal", skeleton=LSP, ids=tuple(f"temporal/{seed}-{index:05d}" for index in range(len(pictures))),
        images=Scenes(pictures, seed), image_N=np.arange(len(pictures)), joints_NJ2=joints_NJ2, labelled_NJ=labelled_NJ,
        visible_NJ=labelled_NJ, boxes_N4=joint_boxes(joints_NJ2, labelled_NJ),
        groups=tuple(str(index // frames) for index in range(len(pictures))),
    )  # fmt: skip


def _scene(rng: np.random.Generator, frames: int) -> tuple[list[npt.NDArray[np.uint8]], Floats]:
    room_HW3, look = background(rng, WIDTH, HEIGHT, float(rng.uniform(0.1, 0.8))), sample_look(rng)
    unit, pace = float(rng.uniform(0.5, 0.85)) * HEIGHT, float(rng.uniform(0.3, 0.8))
    turn_F = np.interp(np.arange(frames), [0, frames // 2 - 5, frames // 2 + 5, frames], [1.0, 1.0, -1.0, -1.0])
    yaw_F = turn_F * np.pi / 2 * float(rng.uniform(0.2, 1.0)) + float(rng.uniform(-0.5, 0.5))
    yaw_F += np.pi * (rng.random() < 0.3)  # some walk with their back to the camera
    phase_F = np.arange(frames, dtype=np.float64) * pace
    points_FP3, frames_FF33 = walk(int(rng.integers(2**31)), phase_F, yaw_F.astype(np.float64))
    x_F = WIDTH / 2 + np.cumsum(turn_F * rng.uniform(0.5, 2.0)) - 15
    worst, middle, width = float(rng.uniform(0, 1)), float(rng.uniform(0, frames)), float(rng.uniform(8, 25))
    drift_F = worst * np.exp(-0.5 * ((np.arange(frames) - middle) / width) ** 2)
    stands_4 = (*(rng.uniform(0.2, 0.8, 2) * [WIDTH, HEIGHT]), *(rng.uniform(0.03, 0.15, 2) * [WIDTH, 2 * HEIGHT]))
    colour = tuple(rng.uniform(20, 230, 3).tolist())
    shown, joints_FJ2 = [], np.empty((frames, len(LSP), 2))
    for moment in range(frames):
        points_P3 = points_FP3[moment] * unit
        points_P3[:, 0] += x_F[moment]
        points_P3[:, 1] += 0.95 * HEIGHT - points_P3[:, 1].max()
        picture_HW3 = room_HW3.copy()
        paint_figure(picture_HW3, Figure(points_P3, frames_FF33[moment], unit), look)
        x, y, half_x, half_y = (round(float(value)) for value in stands_4)
        cv2.rectangle(picture_HW3, (x - half_x, y - half_y), (x + half_x, y + half_y), colour, cv2.FILLED)
        shown.append(_damaged(picture_HW3, float(drift_F[moment]), rng))
        joints_FJ2[moment] = points_P3[: len(LSP), :2]
    return shown, joints_FJ2


def _damaged(picture_HW3: npt.NDArray[np.uint8], strength: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Darker, blurred and noisier as the strength grows from 0 to 1; the noise is drawn anew for every frame."""
    blurred_HW3 = cv2.GaussianBlur(picture_HW3, (0, 0), 0.3 + 3.0 * strength).astype(np.float32)
    noise_HW3 = rng.normal(0, 3 + 25 * strength, blurred_HW3.shape).astype(np.float32)
    return np.clip(blurred_HW3 * (1 - 0.7 * strength) + noise_HW3, 0, 255).astype(np.uint8)


def watched(model: PoseModel, data: PoseData, machine: DeviceContext, head_name: str = "epck") -> dict[str, Floats]:
    """Keypoints (N, J, 2) in sides of the crop, the head's logit (N,), and the share of right joints (N,)."""
    head = model.heads[head_name]
    with tempfile.TemporaryDirectory() as folder:
        crops = prepare(data, model.crop, Path(folder))
        parts = []
        for seen in predict(model, crops, machine, batch=64, what="watching"):
            with evaluating(head):
                right_B = ((seen.distance_BJ < 1) & seen.counts_BJ).sum(dim=1) / seen.counts_BJ.sum(dim=1)
                parts.append((seen.keypoints_BJ2 / model.crop.size_px, head(seen.features), right_B))
    columns = [torch.cat(column).cpu().double().numpy() for column in zip(*parts, strict=True)]
    return dict(zip(("keypoints", "head", "right"), columns, strict=True))


def evidence(keypoints_FJ2: Floats, head_F: Floats) -> dict[str, Floats]:
    """What one scene tells of its frames, (F,) each; the first frames are compared with as many as there are.

    ``moved``: how far joints went since the last frame; ``unsteady``: from where they would be, had they gone on as before;
    ``apart``: from the median of the last frames. Means over joints, each at most :data:`FAR`. ``recent``: mean of the head.
    """
    before_FJ2, earlier_FJ2 = (keypoints_FJ2[np.maximum(np.arange(len(head_F)) - back, 0)] for back in (1, 2))

    def far(from_FJ2: Floats) -> Floats:
        return np.minimum(np.linalg.norm(keypoints_FJ2 - from_FJ2, axis=2), FAR).mean(axis=1)

    starts = [max(0, end - LAST) for end in range(len(head_F))]
    middle_FJ2 = np.array([np.median(keypoints_FJ2[a : max(b, 1)], axis=0) for b, a in enumerate(starts)])
    recent_F = np.array([head_F[max(0, end - LAST) : end + 1].mean() for end in range(len(head_F))])
    return {"head": head_F, "recent": recent_F, "moved": far(before_FJ2), "unsteady": far(2 * before_FJ2 - earlier_FJ2),
            "apart": far(middle_FJ2)}  # fmt: skip


def compare(seen: Mapping[str, Floats], frames: int = FRAMES) -> tuple[dict[str, Floats], npt.NDArray[np.bool_], Any]:
    """Scores of every row on the second half of the scenes, who failed there, and the scene of each frame."""
    scenes = len(seen["head"]) // frames
    parts = [evidence(seen["keypoints"][row : row + frames], seen["head"][row : row + frames])
             for row in range(0, scenes * frames, frames)]  # fmt: skip
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    failed_N, _ = Failure().failed(seen["right"])
    scene_N = np.arange(len(failed_N)) // frames
    fits_N = scene_N < scenes // 2
    scores = {}
    for row, names in ROWS.items():
        value_NE = np.stack([found[name] for name in names], axis=1)
        scores[row] = np.asarray(fit_logistic(value_NE[fits_N], failed_N[fits_N])(value_NE[~fits_N]), dtype=np.float64)
    return scores, failed_N[~fits_N], scene_N[~fits_N] - scenes // 2


@click.command(help=__doc__)
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--scenes", default=80, show_default=True, type=click.IntRange(4))
@click.option("--seed", default=11, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(models: tuple[Path, ...], scenes: int, seed: int, out: Path | None) -> None:
    """Print a row for each kind of evidence, over all models."""
    machine, data = device_context("cpu", "auto"), walked(seed, scenes)
    made = [compare(watched(checkpoint.load(path), data, machine)) for path in models]
    boot = bootstrap_views(list(ROWS), [np.stack([scores[row] for row in ROWS]) for scores, _, _ in made],
                           [failed for _, failed, _ in made], [scene for _, _, scene in made],
                           same_people=True)  # fmt: skip
    rows = {}
    for row in ROWS:
        level, apart = boot.estimate(row), boot.difference(row, "head", "greater").estimate
        rows[row] = {"auroc": level.mean, "less_head": apart.mean, "low": apart.people.low, "high": apart.people.high}
    failures = [float(failed.mean()) for _, failed, _ in made]
    click.echo(json.dumps({"failures": failures, "rows": rows}, indent=2))
    if out:
        write_json(out, {"scenes": scenes, "frames": FRAMES, "models": len(models), "failures": failures, "rows": rows})


if __name__ == "__main__":
    main()
