"""How pixels are resampled: the filter, and its products as small matrices; exact integer arithmetic.

The recipe is in :mod:`alpose.runtime.crop`. A :class:`_Plan` holds all that a crop needs and that does not depend on the
pixels: the weights, and the pieces of memory that each product reads and writes. Making it takes as long as a third of
the work, so the last few are kept: a fixed region, such as a seat, is planned once.

Shapes: H W source, C channels, T S samples down and across the crop (its pixels and twice its context), K taps of the
filter; L = K + 1; B blocks of R neighbouring samples, M source pixels that a block reads; V = W C.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

UNIT = 2**13
"""The weights of one sample along one axis sum to this."""
BETWEEN = 2**10
"""What the sums over rows are divided by before they are rounded."""
AFTER = UNIT * UNIT // BETWEEN
"""What the sums over columns are divided by before they are rounded."""

BLOCKS = ((2.0, 8), (math.inf, 4))
"""Samples that are made by one matrix product, up to a scale. More would multiply by more zeros, fewer would be more calls."""

PRODUCT = 2**18
"""The most multiplications of one matrix product. OpenBLAS hands larger ones to its threads, which then compete with
the engine's; and what is converted to float32 at a time stays small."""

SOURCE = 2**18
"""The most numbers of the source that are converted to float32 at a time, where one block does not need more: they stay in a
processor's cache until they are multiplied."""

MOST_SHAPES = 4
"""Shapes of planes that a workspace keeps a plan for: a frame has up to three planes."""
MOST_WORKSPACES = 4
"""Workspaces that are kept while no call uses them: more threads than that make new ones."""
MOST_BYTES = 8 << 20
"""A workspace with more memory is not kept. A crop of a whole frame of 1920 x 1080 pixels needs 4 MiB."""

HALF = np.float32(0.5)

Floats = npt.NDArray[np.float32]
Product = tuple[Floats, Floats, Floats]
"""Two matrices, and where their product goes."""
_Part = tuple[slice, slice, Floats, Callable[..., object], list[Product], Floats]
"""Rows and columns of the source, where they are converted to, what multiplies, the products, and all that they fill."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a crop: a stretch of the frame and the samples across it."""

    start: float
    """Its first edge, in pixels."""
    length: float
    size_px: int
    context_px: int = 0

    @property
    def scale(self) -> float:
        """Pixels of the frame per sample."""
        return self.length / self.size_px

    @property
    def samples(self) -> int:
        """How many there are with context."""
        return self.size_px + 2 * self.context_px

    def on_grid(self, pixels: int) -> Axis:
        """The same on a coarser grid, each of whose pixels lies in the middle of this many pixels of the frame."""
        start = self.start / pixels - (pixels - 1) / (2 * pixels)
        return Axis(start, self.length / pixels, self.size_px, self.context_px)


def resample(
    plane_HWC: npt.NDArray[np.uint8], down: Axis, across: Axis, black: int = 0, outside: int = 0,
    dtype: npt.DTypeLike = np.float32,
) -> npt.NDArray[Any]:  # fmt: skip
    """Resample a plane, upright and unchecked: (T, S, C).

    Args:
        plane_HWC: H, W and C at least 1.
        down, across: the crop's, on the grid of the plane.
        black: the level that means 0; the result is above it.
        outside: the result where there is no frame; ``black + outside`` is 0 to 255.
        dtype: uint8, where the result fits, or float32, which then holds whole numbers.
    """
    try:
        workspace = _workspaces.pop()  # taken out: no other call writes to its memory
    except IndexError:
        workspace = _Workspace()
    levels_TSC = workspace.plan(down, across, plane_HWC.shape)(plane_HWC, black, outside, np.dtype(dtype))
    if workspace.memory.nbytes <= MOST_BYTES and len(_workspaces) < MOST_WORKSPACES:
        _workspaces.append(workspace)
    return levels_TSC


class _Workspace:
    """Memory for one call at a time, and for planes of each shape the plan of the last crop in it."""

    __slots__ = ("_plans", "memory")

    def __init__(self) -> None:
        self.memory = np.empty(0, dtype=np.float32)
        self._plans: dict[tuple[int, ...], tuple[tuple[Axis, Axis], _Plan]] = {}

    def plan(self, down: Axis, across: Axis, shape: tuple[int, ...]) -> _Plan:
        """The plan of a crop of planes of this shape."""
        axes, plan = self._plans.pop(shape, (None, None))
        if plan is None or axes != (down, across):
            plan = _Plan(down, across, shape, self)
        self._plans[shape] = (down, across), plan
        if len(self._plans) > MOST_SHAPES:
            del self._plans[next(iter(self._plans))]
        return plan

    def take(self, *shapes: tuple[int, int]) -> list[Floats]:
        """Arrays that lie one after the other in the memory, which grows where it is too small: other plans then go."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in shapes))
        if self.memory.size < ends[-1]:
            self._plans.clear()
            self.memory = np.empty(ends[-1], dtype=np.float32)
        return [
            self.memory[start:end].reshape(shape) for start, end, shape in zip((0, *ends), ends, shapes, strict=False)
        ]


class _Plan:
    """What a crop of planes of one shape needs beside the pixels.

    Samples that lie side by side read almost the same pixels, so a block of them is one small matrix times the band of the
    plane that they read. Some blocks of rows at a time are converted, multiplied and rounded, as many as a cache holds.

    Args:
        down, across: the crop's, on the grid of the plane.
        shape: H, W and C of the plane.
        workspace: whose memory the products use.
    """

    __slots__ = ("_columns", "_columns_TV", "_parts", "_region", "_shape")

    def __init__(self, down: Axis, across: Axis, shape: tuple[int, ...], workspace: _Workspace) -> None:
        height, width, channels = shape
        row_KT, row_weight_KT, column_KS, column_weight_KS = _taps_of_both(down, across, height, width)
        top, left = int(row_KT[0, 0]), int(column_KS[0, 0])
        self._region = slice(top, int(row_KT[-1, -1]) + 1), slice(left, int(column_KS[-1, -1]) + 1)
        high, wide = (part.stop - part.start for part in self._region)
        self._shape = (down.samples, across.samples, channels)
        rows = _blocks(row_KT - top, row_weight_KT, _block_of(down))
        columns = _blocks(column_KS - left, column_weight_KS, _block_of(across))
        _, block, reach = rows[1].shape
        stripe = min(max(PRODUCT // (block * reach * channels), 16), wide) * channels
        groups = _groups(rows[0].tolist(), reach, high, stripe)
        tallest = max(stop - start for _, (start, stop) in groups)
        self._columns_TV, rows_TV, source_HV = workspace.take(
            (down.samples, columns[1].shape[0] * columns[1].shape[1] * channels),
            (down.samples, wide * channels),
            (tallest, stripe),
        )
        self._parts = _row_products(*rows, groups, source_HV, rows_TV, channels)
        self._columns = _column_products(*columns, rows_TV, self._columns_TV, channels)

    def __call__(
        self, plane_HWC: npt.NDArray[np.uint8], black: int, outside: int, dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Resample; the result is the caller's."""
        region_HWC, darkest = plane_HWC[self._region], black + outside
        for rows, columns, source_HWC, multiply, products, into_RV in self._parts:
            source_HWC[...] = region_HWC[rows, columns]
            if darkest:
                source_HWC -= np.float32(darkest)
            for weights_RM, band_MV, out_RV in products:
                multiply(weights_RM, band_MV, out_RV)
            into_RV += HALF
            np.floor(into_RV, into_RV)
        for band_TM, weights_MR, out_TR in self._columns:
            np.matmul(band_TM, weights_MR, out_TR)
        columns_TV = self._columns_TV
        columns_TV += np.float32(0.5 + outside)
        if dtype != np.uint8:  # a cast to bytes rounds down itself: nothing is below 0
            np.floor(columns_TV, columns_TV)
        high, wide, channels = self._shape
        return columns_TV[:, : wide * channels].astype(dtype, order="C").reshape(high, wide, channels)


def _groups(first_B: list[int], reach: int, height: int, line: int) -> list[tuple[range, tuple[int, int]]]:
    """Blocks of rows that are made at a time, and the source rows that they read, of ``line`` numbers each."""
    groups, start = [], 0
    for block in range(1, len(first_B) + 1):
        if block == len(first_B) or (first_B[block] + reach - first_B[start]) * line > SOURCE:
            groups.append((range(start, block), (first_B[start], min(first_B[block - 1] + reach, height))))
            start = block
    return groups


def _row_products(
    first_B: npt.NDArray[np.intp], block_BRM: Floats, groups: list[tuple[range, tuple[int, int]]], source_HV: Floats,
    rows_TV: Floats, channels: int,
) -> list[_Part]:  # fmt: skip
    """Step 1 of the recipe, some blocks and a stripe of columns at a time."""
    _, block, reach = block_BRM.shape
    samples, width = rows_TV.shape
    block_BRM = block_BRM / np.float32(BETWEEN)
    firsts = first_B.tolist()
    stripe = source_HV.shape[1]
    whole = stripe == width
    multiply = np.dot if whole else np.matmul  # quicker, and writes whole rows only
    weights = list(block_BRM)
    # The last block may have fewer samples, and at the frame's edge a band is shorter, where the weights are 0.
    weights[-1] = weights[-1][: samples - (len(weights) - 1) * block]
    parts: list[_Part] = []
    for numbers, (top, bottom) in groups:
        for left in range(0, width, stripe):
            right = min(left + stripe, width)
            source_hV = source_HV[: bottom - top, : right - left]
            into_TV = rows_TV if whole else rows_TV[:, left:right]
            products = []
            for number in numbers:
                first = firsts[number] - top
                band_MV, weights_RM = source_hV[first : first + reach], weights[number]
                if first + reach > bottom - top:
                    weights_RM = weights_RM[:, : len(band_MV)]
                products.append((weights_RM, band_MV, into_TV[number * block : (number + 1) * block]))
            parts.append((
                slice(top, bottom), slice(left // channels, right // channels),
                source_hV.reshape(bottom - top, -1, channels), multiply, products,
                into_TV[numbers.start * block : numbers.stop * block],
            ))  # fmt: skip
    return parts


def _column_products(
    first_B: npt.NDArray[np.intp], block_BRM: Floats, rows_TV: Floats, columns_TV: Floats, channels: int
) -> list[Product]:
    """Step 2 of the recipe, in stripes of rows.

    The channels of a pixel lie side by side. Instead of moving them apart, which takes longer than all products, each
    weight is repeated on a diagonal of channels by channels.
    """
    blocks, block, reach = block_BRM.shape
    diagonal = np.zeros((blocks, reach, channels, block, channels), dtype=np.float32)
    weights_BMR = block_BRM.transpose(0, 2, 1) / np.float32(AFTER)
    for channel in range(channels):
        diagonal[:, :, channel, :, channel] = weights_BMR
    across, reach = block * channels, reach * channels
    weights, firsts = list(diagonal.reshape(blocks, reach, across)), (first_B * channels).tolist()
    stripe = max(PRODUCT // (across * reach), 16)
    products = []
    for start in range(0, len(rows_TV), stripe):
        stripe_SV, into_SV = rows_TV[start : start + stripe], columns_TV[start : start + stripe]
        line, to = stripe_SV.shape[1], 0
        for first, weights_MR in zip(firsts, weights, strict=True):
            if first + reach > line:
                weights_MR = weights_MR[: line - first]
            products.append((stripe_SV[:, first : first + reach], weights_MR, into_SV[:, to : to + across]))
            to += across
    return products


_workspaces: list[_Workspace] = []
"""Those that no call uses at present. To take one and to put one back are atomic, so that threads need no lock."""


def taps(axis: Axis, length: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The resampling filter along one axis: which source pixels each sample reads, and with what weights.

    Sample s is the sum over k of ``weight_KS[k, s] * frame[index_KS[k, s]]``.

    Args:
        axis: of the crop, on the grid of the source.
        length: of the source on this axis, in pixels.

    Returns:
        index_KS: source pixels, all within the frame, never decreasing along either axis;
            K = min(ceil(2 max(scale, 1)), length). Where a filter has fewer taps the last pixel is repeated with
            weight 0.
        weight_KS: whole numbers from 0 to 2^13, held as float32 so that they can go into any matrix product. Those of
            a sample sum to 2^13 where its whole filter lies in the frame; the taps outside are missing.
    """
    return _taps(_centres(axis), axis.scale, length, min(_count(axis), length))


def _taps_of_both(
    down: Axis, across: Axis, height: int, width: int
) -> tuple[npt.NDArray[np.intp], Floats, npt.NDArray[np.intp], Floats]:
    """:func:`taps` of two axes; of one scale they take less time together than one after the other."""
    count = _count(down)
    if down.scale != across.scale or count > min(height, width):
        return *taps(down, height), *taps(across, width)
    centre_S = np.concatenate((_centres(down), _centres(across)))
    length_S = np.repeat((float(height), float(width)), (down.samples, across.samples))
    index_KS, weight_KS = _taps(centre_S, down.scale, length_S, count)
    split = down.samples
    return index_KS[:, :split], weight_KS[:, :split], index_KS[:, split:], weight_KS[:, split:]


def _centres(axis: Axis) -> npt.NDArray[np.float64]:
    centre_S = np.arange(-axis.context_px, axis.size_px + axis.context_px, dtype=np.float64)
    centre_S += 0.5
    centre_S *= axis.scale
    centre_S += axis.start
    return centre_S


def _count(axis: Axis) -> int:
    """The most pixels that a sample reads."""
    return math.ceil(2 * max(axis.scale, 1.0))


def _taps(
    centre_S: npt.NDArray[np.float64], scale: float, length: int | npt.NDArray[np.float64], count: int
) -> tuple[npt.NDArray[np.intp], Floats]:
    support = max(scale, 1.0)
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

    first_S = np.maximum(whole_S - left_S + 1, 0)
    place_LS = np.minimum(first_S + np.arange(-1, count)[:, None], length - 1)
    after_LS = place_LS - whole_S
    before_LS = np.minimum(np.maximum(after_LS + left_S, 0), left_S)
    after_LS = np.minimum(np.maximum(after_LS, 0), right_S)
    sum_LS = before_LS * (least_S + (before_LS - 1) / 2) + after_LS * (most_S - (after_LS + 1) / 2)
    # The running sum is rounded, not the single weight: so they are whole, none is negative, and their sum is exact.
    share_LS = np.floor(sum_LS * (UNIT / (left_sum_S + right_sum_S)) + 0.5)
    return place_LS[1:].astype(np.intp), (share_LS[1:] - share_LS[:-1]).astype(np.float32)


def _block_of(axis: Axis) -> int:
    return next(block for scale, block in BLOCKS if axis.scale <= scale)


def _blocks(index_KS: npt.NDArray[np.intp], weight_KS: Floats, block: int) -> tuple[npt.NDArray[np.intp], Floats]:
    """The taps as small dense matrices: first source pixel (B,) and weights (B, R, M) of every block of samples."""
    samples = index_KS.shape[1]
    first_B = index_KS[0, ::block]
    place_KS = index_KS - first_B.repeat(block)[:samples]
    reach = int(place_KS[-1].max()) + 1
    place_KS += np.arange(samples) * reach
    shape_BRM = (len(first_B), block, reach)
    # bincount adds where a pixel is named twice; the last block may have samples that do not exist, all of weight 0.
    dense = np.bincount(place_KS.ravel(), weight_KS.ravel(), math.prod(shape_BRM))
    return first_B, dense.astype(np.float32).reshape(shape_BRM)
