"""The one crop: where a person is cut from a frame, and how its pixels are resampled.

Training, scoring, evaluation, export and monitor all cut with these functions, so that a number measured
in one place holds in the others.

Coordinates: the centre of pixel (column i, row j) is (x, y) = (i, j); pixel i covers [i - 0.5, i + 0.5].
A crop is a rectangle of that plane, resampled to ``width_px`` by ``height_px`` pixels. What lies outside the
frame has one grey level, ``fill``, which is black unless a net was trained with another.

The resampling is exact integer arithmetic. A net reads the same bits whoever cut them: this file, a graph on a GPU, a
CUDA kernel; so golden frames, score histograms and thresholds carry over, and a difference is an error and never a
rounding. The recipe, which is the whole specification together with :func:`alpose.runtime.resampling.taps`:

1. along y, for every source column: A = sum of weight * (pixel - fill), at most 255 * 2^13; B = floor(A / 2^10 + 1/2),
   eighths of a grey level;
2. along x: C = sum of weight * B, below 2^24; the pixel is floor(C / 2^16 + 1/2) + fill.

Where a whole filter lies within the frame its weights sum to 2^13, so that ``fill`` changes no bit there.

Every number on the way is a whole one below 2^24, or such a number over a power of two. float32 holds all of them, so a
product of float32 matrices (:mod:`alpose.runtime.resampling`) is exact too, in any order of summation and with or without fused multiply-add. (TF32 and
bfloat16 are not enough: a weight has 14 bits.)

A crop that is turned is cut upright first, with as much context as it reaches into, and then turned by bilinear
interpolation in whole numbers (:func:`turned`): what shrinks is filtered before, so nothing is skipped.

Shapes: J joints, H W frame, T S samples down and across the crop (its pixels and twice its context), R rows of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .resampling import Axis, resample

MIN_REGION_PX = 8.0
"""A box smaller than this (a single labelled joint) is widened to it: nothing can be seen in less."""

FARTHEST_PX = 2.0**20
"""A box beyond this is a damaged label, not a person: OpenCV decodes no image with a longer side, and the taps of
a crop grow with its side."""


PERSON_MARGIN = 1.25
"""Around one of several people, for a net that looks at whole frames: room as in a picture of one person."""

PARTS = 2**10
"""A turned crop reads its upright one at whole parts of a pixel, so many to each."""
TURN_UNIT = 2**20
"""Sine and cosine of a turn are whole numbers of this."""
TURNED = 2**13
"""Samples of a turned crop that are made at a time."""

KNOWN_CROPS = 64
"""Crops that are remembered: a fixed box, as that of a seat, gives the same one on every frame."""

CropKind = Literal["box", "turned", "letterbox", "whole"]
"""``box``: around a person, at the net's aspect ratio. ``turned``: the same, turned with the body. ``letterbox``: the whole
frame, its aspect kept. ``whole``: the whole frame, stretched."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of a frame and the grid of pixels that it is resampled to.

    ``x0`` and ``y0`` are the left and top edges, ``width`` and ``height`` its size in frame pixels; ``width_px`` by
    ``height_px`` samples lie across it. ``context_px`` more samples of the same grid lie beyond each edge, which gives
    training the room to rotate and shift: the centre of such a crop is bit for bit the crop without context.

    ``turn`` turns it about its centre, in radians, clockwise as one looks at the frame: the top of the crop then points
    along (sin turn, -cos turn). Both scales of such a crop are the same.
    """

    x0: float
    y0: float
    width: float
    height: float
    width_px: int
    height_px: int
    context_px: int = 0
    fill: int = 0
    turn: float = 0.0

    def __post_init__(self) -> None:
        # Within the widest margin around the farthest box; as a comparison that NaN fails.
        numbers = (abs(self.x0), abs(self.y0), abs(self.width), abs(self.height))
        if not all(value <= 8 * FARTHEST_PX for value in numbers) or self.width <= 0 or self.height <= 0:
            raise DataError(
                f"a crop has finite corners within {8 * FARTHEST_PX:.0f} px and sides greater than 0, got "
                f"x0 {self.x0}, y0 {self.y0}, width {self.width}, height {self.height}: look for NaN or infinity in its box"
            )
        if self.width_px < 1 or self.height_px < 1 or self.context_px < 0 or not 0 <= self.fill <= 255:
            raise DataError(
                f"a crop has width_px and height_px >= 1, context_px >= 0 and fill 0 to 255, got {self.width_px}, "
                f"{self.height_px}, {self.context_px} and {self.fill}"
            )
        if self.turn and not (abs(self.turn) <= 2 * math.pi and math.isclose(self.across.scale, self.down.scale)):
            raise DataError(f"a crop that is turned has one scale and a turn of at most a circle, got {self}")

    @classmethod
    def square(cls, x0: float, y0: float, side: float, size_px: int, context_px: int = 0) -> Crop:
        """An upright square on black."""
        return cls(x0, y0, side, side, size_px, size_px, context_px)

    @property
    def across(self) -> Axis:
        """Its columns."""
        return Axis(self.x0, self.width, self.width_px, self.context_px)

    @property
    def down(self) -> Axis:
        """Its rows."""
        return Axis(self.y0, self.height, self.height_px, self.context_px)

    @property
    def scale(self) -> float:
        """Frame pixels per crop pixel; where the axes differ, their geometric mean."""
        across, down = self.across.scale, self.down.scale
        return across if across == down else math.sqrt(across * down)

    @property
    def reach_4(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of the part of the frame that the filters of its pixels read, without context."""
        crop = replace(self, context_px=0) if self.context_px else self
        if crop.turn:
            crop = crop.upright()
        more_x, more_y = (
            max(axis.scale, 1.0) - axis.scale / 2 + axis.context_px * axis.scale for axis in (crop.across, crop.down)
        )
        return (crop.x0 - more_x, crop.y0 - more_y, crop.x0 + crop.width + more_x, crop.y0 + crop.height + more_y)

    def to_crop(self, points_J2: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Frame coordinates to coordinates in the crop without context."""
        origin_2, scale = _origin_and_scale(self)
        inside_J2 = (points_J2 - origin_2) / scale - 0.5
        if self.turn:
            centre_2 = self._centre_2
            inside_J2 = (inside_J2 - centre_2) @ self._turn_22 + centre_2
        return np.asarray(inside_J2, dtype=np.float32)

    def to_frame(self, points_J2: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
        """Coordinates in the crop without context to frame coordinates."""
        origin_2, scale = _origin_and_scale(self)
        if self.turn:
            centre_2 = self._centre_2
            points_J2 = (points_J2 - centre_2) @ self._turn_22.T + centre_2
        return np.asarray((points_J2 + 0.5) * scale + origin_2, dtype=np.float32)

    def upright(self) -> Crop:
        """What a turned crop is made from: its upright grid with as much context as its corners reach into."""
        sine, cosine = abs(math.sin(self.turn)), abs(math.cos(self.turn))
        wide, high = self.across.samples, self.down.samples
        more_x = (cosine * wide + sine * high - self.width_px) / 2
        more_y = (sine * wide + cosine * high - self.height_px) / 2
        return replace(self, turn=0.0, context_px=max(math.ceil(max(more_x, more_y)) + 1, 0))

    @property
    def _centre_2(self) -> npt.NDArray[np.float64]:
        return np.array([(self.width_px - 1) / 2, (self.height_px - 1) / 2])

    @property
    def _turn_22(self) -> npt.NDArray[np.float64]:
        """From offsets in the crop to offsets in the upright one."""
        sine, cosine = math.sin(self.turn), math.cos(self.turn)
        return np.array([[cosine, -sine], [sine, cosine]])


@lru_cache(maxsize=KNOWN_CROPS)
def _origin_and_scale(crop: Crop) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | float]:
    across, down = crop.across.scale, crop.down.scale
    scale = across if across == down else np.array([across, down])
    origin_2 = np.array([crop.x0, crop.y0], dtype=np.float64)
    for shared in (origin_2, scale):  # by all who ask for this crop
        if isinstance(shared, np.ndarray):
            shared.setflags(write=False)
    return origin_2, scale


@dataclass(frozen=True, slots=True, kw_only=True)
class CropRule:
    """How frames of a person are cut before they enter a net."""

    width_px: int
    height_px: int
    """Size of the net's input."""
    margin: float = 1.25
    """Sides of the crop over those of the box, before it is widened to the input's aspect ratio."""
    kind: CropKind = "box"
    fill: int = 0
    """Grey level of what lies outside the frame."""

    def __post_init__(self) -> None:
        sizes = (self.width_px, self.height_px)
        if not all(8 <= size <= 8192 for size in sizes) or not 1.0 <= self.margin <= 4.0 or not 0 <= self.fill <= 255:
            raise DataError(
                "crop: width_px and height_px must be in [8, 8192], margin in [1, 4] and fill in [0, 255], got "
                f"{self.width_px}, {self.height_px}, {self.margin} and {self.fill}"
            )
        if self.kind not in get_args(CropKind):
            raise DataError(f"crop: kind must be one of {', '.join(get_args(CropKind))}, got {self.kind!r}")

    @property
    def around_person(self) -> bool:
        """Whether it is cut around a person's box; otherwise it is the whole frame, whoever is on it."""
        return self.kind in ("box", "turned")

    def crop_of(
        self, box_4: npt.ArrayLike, frame_size: tuple[int, int] | None = None, turn: float | None = None
    ) -> Crop:
        """The crop around a box, or of the whole frame; :func:`cut` resamples it.

        Args:
            box_4: x0, y0, x1, y1 in frame pixels; of no account where the rule takes the whole frame.
            frame_size: width and height of the frame, which the rules for whole frames need.
            turn: the direction of the body's axis, from :func:`body_turn`; None where it is not known, and for rules that
                do not turn: upright.
        """
        if self.around_person:
            crop = box_crop(box_4, margin=self.margin, width_px=self.width_px, height_px=self.height_px, fill=self.fill)
            return replace(crop, turn=turn) if turn and self.kind == "turned" else crop
        if frame_size is None:
            raise DataError(f"a crop of kind {self.kind} is the whole frame: its width and height must be given")
        width, height = frame_size
        if self.kind == "letterbox":
            # The aspect of the input around the frame; the edges of its pixels, not their centres.
            scale = max(width / self.width_px, height / self.height_px)
            wide, high = scale * self.width_px, scale * self.height_px
            corner = ((width - wide) / 2 - 0.5, (height - high) / 2 - 0.5)
            return Crop(*corner, wide, high, self.width_px, self.height_px, fill=self.fill)
        return Crop(-0.5, -0.5, width, height, self.width_px, self.height_px, fill=self.fill)

    def person_crop(self, box_4: npt.ArrayLike) -> Crop:
        """The crop around one of several people on a frame, upright, also where the rule takes whole frames: then as a picture
        of this person alone would be, :data:`PERSON_MARGIN` around them."""
        margin = self.margin if self.around_person else PERSON_MARGIN
        return box_crop(box_4, margin=margin, width_px=self.width_px, height_px=self.height_px, fill=self.fill)


def box_crop(box_4: npt.ArrayLike, *, margin: float, width_px: int, height_px: int, fill: int = 0) -> Crop:
    """The smallest rectangle of the input's aspect ratio around a box times ``margin``, same centre.

    Args:
        box_4: (x0, y0, x1, y1) in frame pixels; x1 ≥ x0, y1 ≥ y0, none beyond ±2^20.
        margin: factor on both sides; the loaders' boxes are tight around the joints.
        width_px, height_px: size of the resampled crop.
        fill: grey level of what lies outside the frame.
    """
    # Plain floats: for four numbers, arrays would take five times as long.
    try:
        x0, y0, x1, y1 = map(float, box_4.tolist() if isinstance(box_4, np.ndarray) else box_4)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"a box has the four numbers (x0, y0, x1, y1), got {str(box_4)[:100]}") from None
    return _box_crop(x0, y0, x1, y1, margin, width_px, height_px, fill)


@lru_cache(maxsize=KNOWN_CROPS)
def _box_crop(
    x0: float, y0: float, x1: float, y1: float, margin: float, width_px: int, height_px: int, fill: int
) -> Crop:
    if not (-math.inf < x0 <= x1 < math.inf and -math.inf < y0 <= y1 < math.inf):  # nor NaN
        raise DataError(f"box {(x0, y0, x1, y1)} is not (x0, y0, x1, y1) with x1 >= x0 and y1 >= y0")
    if min(x0, y0) < -FARTHEST_PX or max(x1, y1) > FARTHEST_PX:
        raise DataError(f"box {(x0, y0, x1, y1)} lies more than {FARTHEST_PX:.0f} px from the frame's corner")
    aspect = width_px / height_px
    height = max(max((x1 - x0) / aspect, y1 - y0) * margin, MIN_REGION_PX * max(1.0, 1 / aspect))
    width = height * aspect
    return Crop((x0 + x1 - width) / 2, (y0 + y1 - height) / 2, width, height, width_px, height_px, fill=fill)


def square_crop(box_4: npt.ArrayLike, *, margin: float, size_px: int) -> Crop:
    """The square around a box: its longer side times ``margin``, same centre, on black; see :func:`box_crop`."""
    return box_crop(box_4, margin=margin, width_px=size_px, height_px=size_px)


def cut(frame_HW3: npt.NDArray[np.uint8], crop: Crop) -> npt.NDArray[np.uint8]:
    """Resample a crop from a frame: (T, S, 3) uint8.

    The filter is a triangle as wide as the step between samples (bilinear when enlarging, antialiased when
    shrinking), applied first to rows and then to columns. ``cut_slow`` in the tests is its plain twin, bit for bit.
    """
    if frame_HW3.ndim != 3 or frame_HW3.shape[2] != 3 or frame_HW3.dtype != np.uint8 or frame_HW3.size == 0:
        raise DataError(f"a frame is a non-empty uint8 (H, W, 3) array, got {frame_HW3.dtype} {frame_HW3.shape}")
    if crop.turn:
        return turned(cut(frame_HW3, crop.upright()), crop)
    return resample(frame_HW3, crop.down, crop.across, outside=crop.fill, dtype=np.uint8)


def turned(upright_hw3: npt.NDArray[np.uint8], crop: Crop) -> npt.NDArray[np.uint8]:
    """A turned crop (T, S, 3) from the pixels of :meth:`Crop.upright`, by bilinear interpolation in whole numbers.

    For the sample (i, j) of S by T, with u = 2i - (S - 1), v = 2j - (T - 1), c and s the cosine and sine of the turn in parts
    of 2^20 (rounded), and w the width of the upright cut: x = floor((((w - 1) 2^20 + c u - s v) / 2^11) + 1/2) in parts of
    2^10 of a pixel, and likewise y from s u + c v. With the fractions f and g of x and y, the pixel is the sum of its four
    neighbours times (2^10 - f or f) (2^10 - g or g), over 2^20, rounded. All of it fits 64-bit, and the sums 32-bit integers.
    """
    height, width = upright_hw3.shape[:2]
    sine, cosine = (math.floor(value * TURN_UNIT + 0.5) for value in (math.sin(crop.turn), math.cos(crop.turn)))
    wide, high = crop.across.samples, crop.down.samples
    shift = (2 * TURN_UNIT // PARTS).bit_length() - 1
    half, bits = 1 << (shift - 1), PARTS.bit_length() - 1
    u_S = 2 * np.arange(wide, dtype=np.int64) - (wide - 1)
    x_S = (width - 1) * TURN_UNIT + half + cosine * u_S
    y_S = (height - 1) * TURN_UNIT + half + sine * u_S
    # Three colours are fetched at once, as one number, and few rows at a time: what they need stays in the cache.
    words_P = np.zeros((height * width, 4), dtype=np.uint8)
    words_P[:, :3] = upright_hw3.reshape(-1, 3)
    pixels_P = words_P.view("<u4")[:, 0]
    out_TS3 = np.empty((high, wide, 3), dtype=np.uint8)
    stripe = max(TURNED // wide, 1)
    for start in range(0, high, stripe):
        v_R = (2 * np.arange(start, min(start + stripe, high), dtype=np.int64) - (high - 1))[:, None]
        x_RS, y_RS = (x_S - sine * v_R) >> shift, (y_S + cosine * v_R) >> shift
        right_RS, lower_RS = ((places_RS & (PARTS - 1)).astype(np.int32) for places_RS in (x_RS, y_RS))
        left_RS, upper_RS = PARTS - right_RS, PARTS - lower_RS
        first_RS = (y_RS >> bits) * width + (x_RS >> bits)
        near = [pixels_P[first_RS + step].astype(np.int32) for step in (0, 1, width, width + 1)]
        for colour in range(3):
            total_RS, right, below, beyond = ((word_RS >> 8 * colour) & 255 for word_RS in near)
            total_RS *= left_RS
            total_RS += right * right_RS
            below *= left_RS
            below += beyond * right_RS
            total_RS *= upper_RS
            total_RS += below * lower_RS
            total_RS += PARTS * PARTS // 2
            total_RS >>= 2 * bits
            out_TS3[start : start + stripe, :, colour] = total_RS
    return out_TS3


def body_turn(hips_J2: npt.NDArray[np.floating], shoulders_J2: npt.NDArray[np.floating]) -> float | None:
    """The turn of a crop in which the body points up: from the middle of the hips to the middle of the shoulders.

    Args:
        hips_J2, shoulders_J2: one or more points each, in frame pixels.

    Returns:
        radians in (-π, π], clockwise; None where a point is not finite, or the two middles are the same.
    """
    dx, dy = (float(value) for value in shoulders_J2.mean(axis=0) - hips_J2.mean(axis=0))
    if not math.isfinite(dx + dy) or not (dx or dy):
        return None
    return math.atan2(dx, -dy)
