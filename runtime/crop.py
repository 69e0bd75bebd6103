"""The one crop: where a person is cut from a frame, and how its pixels are resampled.

Training, scoring, evaluation, export and monitor all cut with these functions, so that a number measured
in one place holds in the others.

Coordinates: the centre of pixel (column i, row j) is (x, y) = (i, j); pixel i covers [i - 0.5, i + 0.5].
A crop is a square region of that plane, resampled to ``size_px`` by ``size_px`` pixels. What lies outside the
frame is black.

The resampling is exact integer arithmetic. A net reads the same bits whoever cut them: this file, a graph on a GPU, a
CUDA kernel; so golden frames, score histograms and thresholds carry over, and a difference is an error and never a
rounding. The recipe, which is the whole specification together with :func:`taps`:

1. along y, for every source column: A = sum of weight * pixel, at most 255 * 2^13; B = floor(A / 2^10 + 1/2), eighths
   of a grey level;
2. along x: C = sum of weight * B, below 2^24; the pixel is floor(C / 2^16 + 1/2).

Every number on the way is a whole one below 2^24, or such a number over a power of two. float32 holds all of them, so a
product of float32 matrices is exact too, in any order of summation and with or without fused multiply-add. (TF32 and
bfloat16 are not enough: a weight has 14 bits.)

Shapes: J joints, H W frame, C channels, S samples across the crop (size_px + 2 context_px), K taps of the resampling
filter; L = K + 1; B blocks of R neighbouring samples, M source pixels that a block reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import DataError

MIN_REGION_PX = 8.0
"""A box smaller than this (a single labelled joint) is widened to it: nothing can be seen in less."""

FARTHEST_PX = 2.0**20
"""A box beyond this is a damaged label, not a person: OpenCV decodes no image with a longer side, and the taps of
a crop grow with its side."""


UNIT = 2**13
"""The weights of one sample along one axis sum to this."""
BETWEEN = 2**10
"""What the sums over rows are divided by before they are rounded."""
AFTER = UNIT * UNIT // BETWEEN
"""What the sums over columns are divided by before they are rounded."""

BLOCK = 4
"""Samples that are made by one matrix product. More would multiply by more zeros, fewer would be more calls."""

PRODUCT = 2**18
"""The most multiplications of one matrix product. OpenBLAS hands larger ones to its threads, which then compete with
the engine's; and what is converted to float32 at a time stays small."""


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

    def __post_init__(self) -> None:
        # Within the widest margin around the farthest box; as a comparison that NaN fails.
        corner_and_side = (abs(self.x0), abs(self.y0), abs(self.side))
        if not all(value <= 8 * FARTHEST_PX for value in corner_and_side) or self.side <= 0:
            raise DataError(
                f"a crop has finite corners within {8 * FARTHEST_PX:.0f} px and a side greater than 0, got "
                f"x0 {self.x0}, y0 {self.y0}, side {self.side}: look for NaN or infinity in its box"
            )
        if self.size_px < 1 or self.context_px < 0:
            raise DataError(f"a crop has size_px >= 1 and context_px >= 0, got {self.size_px} and {self.context_px}")

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
    # Plain floats: for four numbers, arrays would take five times as long.
    try:
        x0, y0, x1, y1 = map(float, box_4.tolist() if isinstance(box_4, np.ndarray) else box_4)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"a box has the four numbers (x0, y0, x1, y1), got {str(box_4)[:100]}") from None
    if not (-math.inf < x0 <= x1 < math.inf and -math.inf < y0 <= y1 < math.inf):  # nor NaN
        raise DataError(f"box {(x0, y0, x1, y1)} is not (x0, y0, x1, y1) with x1 >= x0 and y1 >= y0")
    if min(x0, y0) < -FARTHEST_PX or max(x1, y1) > FARTHEST_PX:
        raise DataError(f"box {(x0, y0, x1, y1)} lies more than {FARTHEST_PX:.0f} px from the frame's corner")
    side = max(max(x1 - x0, y1 - y0) * margin, MIN_REGION_PX)
    return Crop((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, size_px)


def cut(frame_HW3: npt.NDArray[np.uint8], crop: Crop) -> npt.NDArray[np.uint8]:
    """Resample a crop from a frame: (S, S, 3) uint8.

    The filter is a triangle as wide as the step between samples (bilinear when enlarging, antialiased when
    shrinking), applied first to rows and then to columns. ``cut_slow`` in the tests is its plain twin, bit for bit.
    """
    if frame_HW3.ndim != 3 or frame_HW3.shape[2] != 3 or frame_HW3.dtype != np.uint8 or frame_HW3.size == 0:
        raise DataError(f"a frame is a non-empty uint8 (H, W, 3) array, got {frame_HW3.dtype} {frame_HW3.shape}")
    return resample(frame_HW3, crop).astype(np.uint8)


def on_grid(crop: Crop, pixels: int) -> Crop:
    """The same crop on a coarser grid, each of whose pixels lies in the middle of this many pixels of the frame."""
    shift = (pixels - 1) / (2 * pixels)
    start = (crop.x0 / pixels - shift, crop.y0 / pixels - shift)
    return Crop(*start, crop.side / pixels, crop.size_px, crop.context_px)


def resample(
    plane_HWC: npt.NDArray[np.uint8], crop: Crop, black: int = 0, wide: int = 1, high: int = 1
) -> npt.NDArray[np.float32]:
    """:func:`cut` for any number of channels, unchecked: (S, S, C), whole numbers held as float32.

    Samples that lie side by side read almost the same pixels, so BLOCK of them are one small matrix times the band
    of the frame that they read.

    Args:
        plane_HWC: H, W and C at least 1.
        crop: in pixels of the frame.
        black: the level of the outside, 0 to 255. It is subtracted from the pixels, and so from the result.
        wide, high: how many pixels of the frame one pixel of this plane covers.
    """
    height, width, channels = plane_HWC.shape
    down, across = on_grid(crop, high), on_grid(crop, wide)
    row_KS, row_weight_KS = taps(down.y0, down, height)
    column_KS, column_weight_KS = taps(across.x0, across, width)
    top, left = row_KS[0, 0], column_KS[0, 0]
    region_HWC = plane_HWC[top : row_KS[-1, -1] + 1, left : column_KS[-1, -1] + 1]
    samples = row_KS.shape[1]
    rows_SV = _rows(region_HWC, *_blocks(row_KS - top, row_weight_KS), black)[:samples]
    columns_SV = _columns(rows_SV, *_blocks(column_KS - left, column_weight_KS), channels)
    return columns_SV[:, : samples * channels].reshape(samples, samples, channels)


def taps(start: float, crop: Crop, length: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The resampling filter along one axis: which source pixels each sample reads, and with what weights.

    Sample s is the sum over k of ``weight_KS[k, s] * frame[index_KS[k, s]]``.

    Args:
        start: where the crop begins on this axis, ``crop.x0`` or ``crop.y0``.
        crop: the rest of its geometry.
        length: of the frame on this axis, in pixels.

    Returns:
        index_KS: source pixels, all within the frame, never decreasing along either axis;
            K = min(ceil(2 max(scale, 1)), length). Where a filter has fewer taps the last pixel is repeated with
            weight 0.
        weight_KS: whole numbers from 0 to 2^13, held as float32 so that they can go into any matrix product. Those of
            a sample sum to 2^13 where its whole filter lies in the frame; the taps outside are missing (black).
    """
    support = max(crop.scale, 1.0)
    step_S = np.arange(-crop.context_px, crop.size_px + crop.context_px) + 0.5
    centre_S = start + step_S * crop.scale
    whole_S = np.floor(centre_S)
    part_S = centre_S - whole_S
    # A triangle over whole numbers is two arithmetic series. Up to the centre: `left` taps that weigh least, least + 1,
    # least + 2, ...; after it: `right` taps that weigh most - 1, most - 2, ... (in units of 1 / support). A running sum
    # in closed form costs nothing for the taps outside the frame, however many there are.
    left_S = np.ceil(support - part_S)
    least_S = support - part_S - (left_S - 1)
    most_S = support + part_S
    right_S = np.ceil(most_S) - 1
    left_sum_S, right_sum_S = (left_S * (least_S + (left_S - 1) / 2), right_S * (most_S - (right_S + 1) / 2))

    count = min(math.ceil(2 * support), length)
    first_S = np.maximum(whole_S - left_S + 1, 0)
    place_LS = np.minimum(first_S + np.arange(-1, count)[:, None], length - 1)
    after_LS = place_LS - whole_S
    before_LS = np.minimum(np.maximum(after_LS + left_S, 0), left_S)
    after_LS = np.minimum(np.maximum(after_LS, 0), right_S)
    sum_LS = before_LS * (least_S + (before_LS - 1) / 2) + after_LS * (most_S - (after_LS + 1) / 2)
    # The running sum is rounded, not the single weight: so they are whole, none is negative, and their sum is exact.
    share_LS = np.floor(sum_LS * (UNIT / (left_sum_S + right_sum_S)) + 0.5)
    return place_LS[1:].astype(np.intp), (share_LS[1:] - share_LS[:-1]).astype(np.float32)


def _blocks(
    index_KS: npt.NDArray[np.intp], weight_KS: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The taps as small dense matrices: first source pixel (B,) and weights (B, R, M) of every block of samples."""
    samples = index_KS.shape[1]
    first_B = index_KS[0, ::BLOCK]
    place_KS = index_KS - first_B.repeat(BLOCK)[:samples]
    reach = int(place_KS[-1].max()) + 1
    place_KS += np.arange(samples) * reach
    shape_BRM = (len(first_B), BLOCK, reach)
    # bincount adds where a pixel is named twice; the last block may have samples that do not exist, all of weight 0.
    dense = np.bincount(place_KS.ravel(), weight_KS.ravel(), math.prod(shape_BRM))
    return first_B, dense.astype(np.float32).reshape(shape_BRM)


def _rows(
    region_HWC: npt.NDArray[np.uint8], first_B: npt.NDArray[np.intp], block_BRM: npt.NDArray[np.float32], black: int
) -> npt.NDArray[np.float32]:
    """Step 1 of the recipe, in stripes of columns: (B R, W C)."""
    height, width, channels = region_HWC.shape
    blocks, rows, reach = block_BRM.shape
    block_BRM = block_BRM / np.float32(BETWEEN)
    out_SV = np.empty((blocks * rows, width * channels), dtype=np.float32)
    stripe = max(PRODUCT // (rows * reach * channels), 16)
    for start in range(0, width, stripe):
        source_HV = region_HWC[:, start : start + stripe].astype(np.float32, order="C").reshape(height, -1)
        if black:
            source_HV -= np.float32(black)
        stripe_SV = out_SV[:, start * channels : (start + stripe) * channels]
        for block, first in enumerate(first_B.tolist()):
            band_MV = source_HV[first : first + reach]  # shorter at the frame's edge, where the weights are 0
            out_RV = stripe_SV[block * rows : (block + 1) * rows]
            np.matmul(block_BRM[block, :, : len(band_MV)], band_MV, out=out_RV)
    out_SV += np.float32(0.5)
    return np.floor(out_SV, out=out_SV)


def _columns(
    rows_SV: npt.NDArray[np.float32], first_B: npt.NDArray[np.intp], block_BRM: npt.NDArray[np.float32], channels: int
) -> npt.NDArray[np.float32]:
    """Step 2 of the recipe, in stripes of rows: (S, B R C).

    The channels of a pixel lie side by side. Instead of moving them apart, which takes longer than all products, each
    weight is repeated on a diagonal of channels by channels.
    """
    blocks, rows, reach = block_BRM.shape
    wide = np.zeros((blocks, reach, channels, rows, channels), dtype=np.float32)
    for channel in range(channels):
        wide[:, :, channel, :, channel] = block_BRM.transpose(0, 2, 1) / np.float32(AFTER)
    wide_BMR = wide.reshape(blocks, reach * channels, rows * channels)
    samples, across = len(rows_SV), rows * channels
    out_SV = np.empty((samples, blocks * across), dtype=np.float32)
    stripe = max(PRODUCT // (across * reach * channels), 16)
    for start in range(0, samples, stripe):
        stripe_SV = rows_SV[start : start + stripe]
        for block, first in enumerate(first_B.tolist()):
            band_SM = stripe_SV[:, first * channels : (first + reach) * channels]
            out_SR = out_SV[start : start + stripe, block * across : (block + 1) * across]
            np.matmul(band_SM, wide_BMR[block, : band_SM.shape[1]], out=out_SR)
    out_SV += np.float32(0.5)
    return np.floor(out_SV, out=out_SV)
