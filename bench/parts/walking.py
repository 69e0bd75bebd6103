"""Rendered people who walk before a fixed or a moving camera, with the box of everybody on every frame: footage to tune a tracker on.

Shapes: F frames, H W frame, P points of a body; boxes are (x0, y0, x1, y1) in frame pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from alpose.trainer.data.synthetic import background, sample_look
from alpose.trainer.data.synthetic_figure import Figure, paint_figure
from alpose.trainer.data.synthetic_pose import walk

Frame = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

WIDTH, HEIGHT, FPS = 640, 480, 10.0
AROUND = 160
"""Pixels of the scene beyond each edge of the first frame, for a camera that moves."""
CAMERAS = ("fixed", "panning", "hand-held")
LEAST_SEEN = 1 / 3
"""A frame on which less of a person is in the picture says nothing of a tracker."""
SKIRT = 0.04
"""Of a body height: what there is around the joints."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One frame."""

    frame_HW3: Frame
    """RGB."""
    box_4: Box | None
    """Around the person, within the frame; None where nobody is there."""
    partial: bool
    """Less than a third of the person is in the picture."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Somebody comes in, crosses, stands, turns round and goes; the room is empty before and after, and light changes in it."""

    seed: int
    camera: str

    def shots(self) -> Iterator[Shot]:
        """All frames, in order."""
        rng = np.random.default_rng([self.seed, 7])
        room_HW3 = background(rng, WIDTH + 2 * AROUND, HEIGHT + 2 * AROUND, float(rng.uniform(0.15, 0.7)))
        x_F, yaw_F, phase_F, present_F = _way(rng)
        body = int(rng.integers(2**31))
        points_FP3, frames_FF33 = walk(body, phase_F, yaw_F)
        unit = float(rng.uniform(0.35, 0.85)) * HEIGHT
        lamp, dark = float(rng.uniform(-0.6, 0.6)), float(rng.uniform(0.5, 0.85))
        feet, look = float(rng.uniform(0.8, 1.0)) * HEIGHT, sample_look(rng)
        pan_F2 = _camera(self.camera, rng, len(x_F))
        light_F = _light(rng, len(x_F))
        for moment in range(len(x_F)):
            pan_2 = pan_F2[moment]
            picture_HW3 = room_HW3.copy()
            shot_box, partial = None, False
            if present_F[moment]:
                points_P3 = points_FP3[moment] * unit
                points_P3[:, 0] += AROUND + x_F[moment]
                points_P3[:, 1] += AROUND + feet - points_P3[:, 1].max()
                _cast(picture_HW3, (float(AROUND + x_F[moment] + lamp * unit), AROUND + feet), unit, dark)
                paint_figure(picture_HW3, Figure(points_P3, frames_FF33[moment], unit), look)
                shot_box, partial = _seen(points_P3[:, :2] - AROUND - pan_2, unit)
            yield Shot(_taken(picture_HW3, pan_2, light_F[moment], rng), shot_box, partial)


def _way(rng: np.random.Generator) -> tuple[npt.NDArray[np.float64], ...]:
    """Where the person is on each frame, how they are turned, the phase of their step, and whether they are there."""
    speed = float(rng.uniform(7, 16))  # px a frame
    side = float(rng.choice([-1.0, 1.0]))
    stop = float(rng.uniform(0.3, 0.7)) * WIDTH
    edge = -150.0 if side > 0 else WIDTH + 150.0
    steps = int(abs(stop - edge) / speed)
    still = int(rng.integers(40, 90))
    turned = int(rng.integers(8, 16))
    empty = 30
    x = [np.full(empty, edge), np.linspace(edge, stop, steps), np.full(still + turned, stop), np.linspace(stop, edge, steps),
         np.full(empty, edge)]  # fmt: skip
    ahead, facing = side * np.pi / 2, float(rng.uniform(-0.6, 0.6))
    yaw = [np.zeros(empty), np.linspace(ahead, ahead, steps), np.linspace(facing, facing, still),
           np.linspace(facing, -ahead, turned), np.full(steps, -ahead), np.zeros(empty)]  # fmt: skip
    stride = float(rng.uniform(0.5, 0.9))
    phase = [
        np.zeros(empty),
        np.arange(steps) * stride,
        np.zeros(still + turned),
        np.arange(steps) * stride,
        np.zeros(empty),
    ]
    there = np.ones(2 * steps + still + turned, dtype=np.bool_)
    return np.concatenate(x), np.concatenate(yaw), np.concatenate(phase), np.pad(there, empty)


def _camera(kind: str, rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """How far the view lies from its place at the beginning, px (F, 2)."""
    time_F = np.arange(count) / FPS
    if kind == "panning":  # to one side and back
        return np.stack([100 * np.sin(time_F * rng.uniform(0.15, 0.35)), np.zeros(count)], axis=1)
    if kind == "hand-held":
        shake_F2 = np.cumsum(rng.normal(0, 1.5, (count, 2)), axis=0)
        slow_F2 = np.stack([35 * np.sin(time_F * 0.5), 20 * np.sin(time_F * 0.8)], axis=1)
        return np.clip(shake_F2 - shake_F2.mean(axis=0) + slow_F2, 5 - AROUND, AROUND - 5)
    return np.zeros((count, 2))


def _light(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Brightness of each frame: it drifts, and is stepped once, as by a lamp or an automatic exposure."""
    drift_F = 1 + 0.1 * np.sin(np.arange(count) / FPS * rng.uniform(0.1, 0.3) + rng.uniform(0, 6))
    drift_F[int(rng.integers(count)) :] *= rng.uniform(0.8, 1.25)
    return drift_F


def _seen(points_P2: npt.NDArray[np.float64], unit: float) -> tuple[Box | None, bool]:
    """The person's box within the frame, and whether less than a third of them is in it."""
    low_2, high_2 = points_P2.min(axis=0) - SKIRT * unit, points_P2.max(axis=0) + SKIRT * unit
    inside_low_2, inside_high_2 = np.maximum(low_2, 0), np.minimum(high_2, [WIDTH - 1, HEIGHT - 1])
    if (inside_high_2 <= inside_low_2).any():
        return None, False
    share = float(np.prod(inside_high_2 - inside_low_2) / np.prod(high_2 - low_2))
    (x0, y0), (x1, y1) = inside_low_2.tolist(), inside_high_2.tolist()
    return (x0, y0, x1, y1), share < LEAST_SEEN


def _cast(picture_HW3: Frame, middle_2: tuple[float, float], unit: float, factor: float) -> None:
    """The shadow of somebody on the floor, beside their feet."""
    shade_HW = np.zeros(picture_HW3.shape[:2], dtype=np.float32)
    axes = (round(0.45 * unit), round(0.09 * unit))
    cv2.ellipse(shade_HW, (round(middle_2[0]), round(middle_2[1])), axes, 0, 0, 360, 1.0, cv2.FILLED)
    shade_HW = np.asarray(cv2.GaussianBlur(shade_HW, (0, 0), 0.03 * unit), dtype=np.float32)
    picture_HW3[:] = (picture_HW3 * (1 - (1 - factor) * shade_HW[..., None])).astype(np.uint8)


def _taken(picture_HW3: Frame, pan_2: npt.NDArray[np.float64], light: float, rng: np.random.Generator) -> Frame:
    """The view, in its light, with the noise of a sensor."""
    shift_23 = np.array([[1.0, 0.0, -AROUND - pan_2[0]], [0.0, 1.0, -AROUND - pan_2[1]]])
    view_HW3 = cv2.warpAffine(picture_HW3, shift_23, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR)
    noisy_HW3 = view_HW3.astype(np.float32) * light + rng.normal(0, 3, (HEIGHT, WIDTH, 1)).astype(np.float32)
    return np.clip(noisy_HW3, 0, 255).astype(np.uint8)
