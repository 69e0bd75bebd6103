"""Drawing on frames with numpy alone: smooth lines, discs, rectangles, and a pose.

The queue's pictures are drawn on where there is no OpenCV, and an annotated video should look the same.

Coordinates are those of keypoints: the centre of the first pixel is (0, 0). Colours are RGB, and so are the images;
of a BGR image pass the view ``image[..., ::-1]``. Everything draws in place, and what lies outside is not drawn.

Shapes: H W image, h w the part of it that is touched, J joints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .skeleton import Skeleton, is_left

if TYPE_CHECKING:
    from .queue import Picture, Record

Image = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[float, float]

LEFT: Colour = (64, 156, 255)
RIGHT: Colour = (255, 146, 43)
MIDDLE: Colour = (230, 233, 239)
DARK: Colour = (16, 18, 24)
"""The rim that keeps lines visible on any background."""

UNSURE = 0.15
"""Opacity of a joint whose score is 0: it is where the net guesses, and should look like that."""
SURE = 0.6
"""Score of a joint that is drawn in full."""


def line(image_HW3: Image, start: Point, end: Point, colour: Colour, width: float, opacity: float = 1.0) -> None:
    """A straight line with round ends, ``width`` px wide."""
    radius = width / 2
    if not all(math.isfinite(value) for value in (*start, *end, radius, opacity)):
        return
    part = _part(image_HW3, min(start[0], end[0]) - radius - 1, min(start[1], end[1]) - radius - 1,
                 max(start[0], end[0]) + radius + 2, max(start[1], end[1]) + radius + 2)  # fmt: skip
    if part is None:
        return
    image_hw3, left, top = part
    height, width_px = image_hw3.shape[:2]
    x_w = np.arange(left, left + width_px, dtype=np.float32) - np.float32(start[0])
    y_h1 = (np.arange(top, top + height, dtype=np.float32) - np.float32(start[1]))[:, None]
    dx, dy = end[0] - start[0], end[1] - start[1]
    # The nearest point of the line is this share of the way along it.
    share_hw = np.clip((x_w * dx + y_h1 * dy) / max(dx * dx + dy * dy, 1e-9), 0.0, 1.0)
    distance_hw = np.hypot(x_w - share_hw * dx, y_h1 - share_hw * dy)
    # A pixel is covered in full within the radius, and fades over one pixel: no stairs.
    _blend(image_hw3, np.clip(radius + 0.5 - distance_hw, 0.0, 1.0) * opacity, colour)


def disc(image_HW3: Image, centre: Point, radius: float, colour: Colour, opacity: float = 1.0) -> None:
    """A filled circle."""
    line(image_HW3, centre, centre, colour, 2 * radius, opacity)


def fill(image_HW3: Image, x0: float, y0: float, x1: float, y1: float, colour: Colour, opacity: float = 1.0) -> None:
    """A filled rectangle of the pixels whose columns are in [x0, x1) and rows in [y0, y1), rounded."""
    part = _part(image_HW3, round(x0), round(y0), round(x1), round(y1))
    if part is None:
        return
    if opacity >= 1:
        part[0][...] = colour
    else:
        _blend(part[0], np.full(part[0].shape[:2], opacity, dtype=np.float32), colour)


def frame(image_HW3: Image, colour: Colour, width: int, opacity: float = 1.0) -> None:
    """A border along the inner edge of the image."""
    height, across = image_HW3.shape[:2]
    fill(image_HW3, 0, 0, across, width, colour, opacity)
    fill(image_HW3, 0, height - width, across, height, colour, opacity)
    fill(image_HW3, 0, width, width, height - width, colour, opacity)
    fill(image_HW3, across - width, width, across, height - width, colour, opacity)


def corners(image_HW3: Image, box_4: Sequence[float], colour: Colour, width: float) -> None:
    """The four corners of a box: it is seen, and hides nothing."""
    x0, y0, x1, y1 = box_4
    arm = 0.18 * min(x1 - x0, y1 - y0)
    for rim, shade, opacity in ((1.0, DARK, 0.5), (0.0, colour, 1.0)):
        half = width / 2 + rim
        for x, right in ((x0, arm), (x1, -arm)):
            for y, down in ((y0, arm), (y1, -arm)):
                across, along = sorted((x, x + right)), sorted((y, y + down))
                fill(image_HW3, across[0] - half, y - half, across[1] + half, y + half, shade, opacity)
                fill(image_HW3, x - half, along[0] - half, x + half, along[1] + half, shade, opacity)


def pose(
    image_HW3: Image,
    keypoints_J2: npt.NDArray[np.floating],
    scores_J: npt.NDArray[np.floating],
    skeleton: Skeleton,
    width: float = 3.0,
) -> None:
    """Links and joints, the person's left and right in two colours, fainter the less the net is sure.

    A joint that is not finite is left out with its links.
    """
    opacity_J = np.clip(np.nan_to_num(scores_J) / SURE, UNSURE, 1.0)
    colours = side_colours(skeleton)
    points: list[Point] = [(float(x), float(y)) for x, y in keypoints_J2]
    faintest_first = sorted(skeleton.links, key=lambda link: min(opacity_J[link[0]], opacity_J[link[1]]))
    for rim in (True, False):  # all rims first: none lies over a colour
        for a, b in faintest_first:
            opacity = float(min(opacity_J[a], opacity_J[b]))
            colour = colours[a] if colours[a] == colours[b] else MIDDLE
            if rim:
                line(image_HW3, points[a], points[b], DARK, width + 2, 0.6 * opacity)
            else:
                line(image_HW3, points[a], points[b], colour, width, opacity)
    for joint, point in enumerate(points):
        opacity = float(opacity_J[joint])
        disc(image_HW3, point, width * 0.5 + 2, DARK, opacity)
        disc(image_HW3, point, width * 0.5 + 1, colours[joint], opacity)


def record(image_HW3: Image, kept: Record, picture: Picture, skeleton: Skeleton) -> None:
    """Pose and box of a queue's record on one of its pictures, which may be a part of the frame, or smaller."""
    origin_2 = np.array(picture.origin, dtype=np.float64)
    keypoints_J2 = (kept.keypoints_J2 - origin_2) / picture.scale - 0.5
    (x0, y0), (x1, y1) = (np.array(kept.box, dtype=np.float64).reshape(2, 2) - origin_2) / picture.scale - 0.5
    unit = max(1.0, max(image_HW3.shape) / 800)
    corners(image_HW3, (float(x0), float(y0), float(x1), float(y1)), MIDDLE, 2 * unit)
    if picture.position == 0:  # the pose is that of the kept frame, not of those around it
        pose(image_HW3, keypoints_J2, kept.certainty_J, skeleton, 3 * unit)


def side_colours(skeleton: Skeleton) -> tuple[Colour, ...]:
    """A colour for each joint by the side of the person; joints that have no mirrored partner are in the middle."""
    colours = [MIDDLE] * len(skeleton)
    for a, b in skeleton.flip_pairs:
        left, right = (a, b) if is_left(skeleton.joints[a]) or not is_left(skeleton.joints[b]) else (b, a)
        colours[left], colours[right] = LEFT, RIGHT
    return tuple(colours)


def _part(image_HW3: Image, x0: float, y0: float, x1: float, y1: float) -> tuple[Image, int, int] | None:
    """The part of an image that a shape may touch, with its first column and row; None where there is none."""
    height, width = image_HW3.shape[:2]
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = min(width, math.ceil(x1)), min(height, math.ceil(y1))
    return None if left >= right or top >= bottom else (image_HW3[top:bottom, left:right], left, top)


def _blend(image_hw3: Image, opacity_hw: npt.NDArray[np.floating], colour: Colour) -> None:
    # In integers, and only where there is something to blend: drawing must keep up with a video.
    weight_hw = np.rint(opacity_hw * 256).astype(np.int32)
    row_n, column_n = np.nonzero(weight_hw)
    under_n3 = image_hw3[row_n, column_n].astype(np.int32)
    change_n3 = (np.array(colour, dtype=np.int32) - under_n3) * weight_hw[row_n, column_n, None] // 256
    image_hw3[row_n, column_n] = (under_n3 + change_n3).astype(np.uint8)
