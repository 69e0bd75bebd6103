"""The one crop: where a person is cut from a frame, and how its pixels are resampled.

Training, scoring, evaluation, export and monitor all cut with these functions, so that a number measured
in one place holds in the others.

Coordinates: the centre of pixel (column i, row j) is (x, y) = (i, j); pixel i covers [i - 0.5, i + 0.5].
A crop is a square region of that plane, resampled to ``size_px`` by ``size_px`` pixels. What lies outside the
frame is black.

Shapes: J joints, H W frame, S samples across the crop (size_px + 2 context_px), K taps of the resampling filter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import DataError

MIN_REGION_PX = 8.0
"""A box smaller than this (a single labelled joint) is widened to it: nothing can be seen in less."""

FARTHEST_PX = 2.0**20
"""A box beyond this is a damaged label, not a person: OpenCV decodes no image with a longer side, and the taps of
a crop grow with its side."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A square region of a frame and the grid of pixels that it is resampled to.

    ``x0`` and ``y0`` are the left and top edges and ``side`` the length, in frame pixels; ``size_px`` samples
    lie across ``side``. ``context_px`` more samples of the same grid lie beyond each edge, which gives training
    the room to rotate and shift: the centre of such a crop is bit for bit the crop without context.
    """

    x0: float
    y0: float
    side: float
    size_px: int
    context_px: int = 0

    @property
    def scale(self) -> float:
        """Frame pixels per crop pixel."""
        return self.side / self.size_px

    def to_crop(self, points_J2: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Frame coordinates to coordinates in the crop without context."""
        origin_2 = np.array([self.x0, self.y0], dtype=np.float64)
        return np.asarray((points_J2 - origin_2) / self.scale - 0.5, dtype=np.float32)

    def to_frame(self, points_J2: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Coordinates in the crop without context to frame coordinates."""
        origin_2 = np.array([self.x0, self.y0], dtype=np.float64)
        return np.asarray((points_J2 + 0.5) * self.scale + origin_2, dtype=np.float32)


def square_crop(box_4: npt.ArrayLike, *, margin: float, size_px: int) -> Crop:
    """The square around a box: its longer side times ``margin``, same centre.

    Args:
        box_4: (x0, y0, x1, y1) in frame pixels; x1 ≥ x0, y1 ≥ y0, none beyond ±2^20.
        margin: factor on the longer side; the loaders' boxes are tight around the joints.
        size_px: side of the resampled crop.
    """
    values = np.asarray(box_4, dtype=np.float64)
    if values.shape != (4,):
        raise DataError(f"a box has the four numbers (x0, y0, x1, y1), got shape {values.shape}")
    x0, y0, x1, y1 = (float(value) for value in values)
    if not np.isfinite(values).all() or x1 < x0 or y1 < y0:
        raise DataError(f"box {(x0, y0, x1, y1)} is not (x0, y0, x1, y1) with x1 >= x0 and y1 >= y0")
    if np.abs(values).max() > FARTHEST_PX:
        raise DataError(f"box {(x0, y0, x1, y1)} lies more than {FARTHEST_PX:.0f} px from the frame's corner")
    side = max(max(x1 - x0, y1 - y0) * margin, MIN_REGION_PX)
    return Crop((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, size_px)


def cut(frame_HW3: npt.NDArray[np.uint8], crop: Crop) -> npt.NDArray[np.uint8]:
    """Resample a crop from a frame: (S, S, 3) uint8.

    The filter is a triangle as wide as the step between samples (bilinear when enlarging, antialiased when
    shrinking), applied first to rows and then to columns. ``cut_slow`` in the tests is its plain twin.
    """
    if frame_HW3.ndim != 3 or frame_HW3.shape[2] != 3 or frame_HW3.dtype != np.uint8 or frame_HW3.size == 0:
        raise DataError(f"a frame is a non-empty uint8 (H, W, 3) array, got {frame_HW3.dtype} {frame_HW3.shape}")
    height, width, _ = frame_HW3.shape
    row_KS, row_weight_KS = _taps(crop.y0, crop, height)
    column_KS, column_weight_KS = _taps(crop.x0, crop, width)
    # Only the columns that some tap reads are converted to float.
    low, high = int(column_KS.min()), int(column_KS.max()) + 1
    samples = crop.size_px + 2 * crop.context_px
    rows_SW3 = np.zeros((samples, high - low, 3), dtype=np.float32)
    for row_S, weight_S in zip(row_KS, row_weight_KS, strict=True):
        rows_SW3 += frame_HW3[row_S, low:high] * weight_S[:, None, None]
    out_SS3 = np.zeros((samples, samples, 3), dtype=np.float32)
    for column_S, weight_S in zip(column_KS - low, column_weight_KS, strict=True):
        out_SS3 += rows_SW3[:, column_S] * weight_S[None, :, None]
    return np.asarray(np.rint(out_SS3), dtype=np.uint8)


def _taps(start: float, crop: Crop, length: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Source pixels and weights of every sample along one axis; a tap outside the frame weighs nothing."""
    step_S = np.arange(-crop.context_px, crop.size_px + crop.context_px) + 0.5
    centre_S = start + step_S * crop.scale
    support = max(crop.scale, 1.0)
    first_S = np.ceil(centre_S - support).astype(np.intp)
    count = int(np.floor(2 * support)) + 1
    tap_KS = first_S[None] + np.arange(count)[:, None]
    weight_KS = np.maximum(0.0, 1.0 - np.abs(tap_KS - centre_S[None]) / support)
    weight_KS /= weight_KS.sum(axis=0, keepdims=True)
    weight_KS[(tap_KS < 0) | (tap_KS >= length)] = 0.0
    return np.clip(tap_KS, 0, length - 1), weight_KS.astype(np.float32)
