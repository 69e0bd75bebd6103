"""Functions of maps, distributions and feature tensors: peaks, entropy, sums of channels, and how a tensor lies in memory.

They stand in exported graphs: no control flow depends on values, and NaN is survived.

Shapes: N images, J joints, K components of features, H W cells of a map, h w cells of a tap, Q cells of a flattened map,
C channels, B bins of a distribution, A B places that are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from .spec import NetDecoder, PoseSpec

Shape = Sequence[int | None]
SHARPNESS = 30.0
"""A map's range is stretched to this before its softmax, so that logits, probabilities and bells have comparable entropies."""
DARK_SIGMA, DARK_RADIUS = 0.8, 3
"""Of the blur before DARK's step, in cells: as Hugging Face's and mmpose's UDP decoders have it."""
NARROW = 32
"""Channels of the coarse maps that ``ll++conv`` reads, at most."""


class TapLayout(NamedTuple):
    """How a feature tensor lies in memory."""

    kind: Literal["nchw", "nhwc", "tokens", "vector"]
    channels: int
    height: int
    width: int
    skipped: int = 0
    """Tokens before the first one of the map, such as a class token."""


def as_score(value: Tensor, decoder: NetDecoder) -> Tensor:
    """What a net calls a score as a number in [0, 1]; a raw one stays as it is."""
    if decoder.score == "logit":
        return torch.sigmoid(value)
    if decoder.score == "peak":
        return (value / decoder.peak).clamp(0.0, 1.0)
    return value


def peaks(maps_NJHW: Tensor, refine: str) -> tuple[Tensor, Tensor]:
    """Places (N, J, 2) as (x, y) in cells and heights (N, J) of the highest cells.

    ``parabola``: moved to the top of the parabola through the logarithms of the cell and its neighbours. ``dark``: a Newton
    step on the logarithm of the blurred map (Zhang et al., CVPR 2020; the form of UDP, Huang et al., CVPR 2020). ``quarter``:
    a quarter of a cell towards the higher neighbour of each axis, away from the map's edge (Newell et al., ECCV 2016; HRNet's
    own, whose bounds these are).
    """
    height, width = maps_NJHW.shape[2:]
    flat_NJQ = finite(maps_NJHW).flatten(2)
    peak_NJ, place_NJ = flat_NJQ.max(dim=2)
    row_NJ, column_NJ = torch.div(place_NJ, width, rounding_mode="floor"), place_NJ % width
    cells_NJ2 = torch.stack([column_NJ, row_NJ], dim=2).float()
    if refine == "none":
        return cells_NJ2, peak_NJ
    if refine == "quarter":
        step_4 = place_NJ.new_tensor((-1, 1, -width, width))
        near_NJ4 = flat_NJQ.gather(2, (place_NJ[..., None] + step_4).clamp(0, height * width - 1))
        last_2 = cells_NJ2.new_tensor((width - 1, height - 1))
        inner_NJ1 = ((cells_NJ2 > 1) & (cells_NJ2 < last_2)).all(dim=2, keepdim=True)
        return cells_NJ2 + 0.25 * torch.sign(near_NJ4[..., 1::2] - near_NJ4[..., ::2]) * inner_NJ1, peak_NJ
    if refine == "parabola":
        # The cell and its four neighbours are gathered together; a step off the map is pulled back, and not used.
        step_5 = place_NJ.new_tensor((0, -1, 1, -width, width))
        near_NJ5 = flat_NJQ.gather(2, (place_NJ[..., None] + step_5).clamp(0, height * width - 1))
        near_NJ5 = torch.maximum(near_NJ5, 1e-3 * peak_NJ[..., None].clamp_min(1e-6)).log()
        edge_2 = cells_NJ2.new_tensor((width - 1, height - 1))
        inner_NJ2 = (cells_NJ2 > 0) & (cells_NJ2 < edge_2)
        return cells_NJ2 + _vertex(near_NJ5[..., 1::2], near_NJ5[..., :1], near_NJ5[..., 2::2]) * inner_NJ2, peak_NJ

    def around(values_NJQ: Tensor) -> list[Tensor]:
        """Of the 3 x 3 cells around the peak, row by row; the edge's stand in for those outside."""
        rows = [(row_NJ + step).clamp(0, height - 1) * width for step in (-1, 0, 1)]
        columns = [(column_NJ + step).clamp(0, width - 1) for step in (-1, 0, 1)]
        place_NJ9 = torch.stack([row + column for row in rows for column in columns], dim=2)
        return list(values_NJQ.gather(2, place_NJ9).unbind(dim=2))

    near = around(_blurred(finite(maps_NJHW)).clamp(1e-3, 50.0).log().flatten(2))
    return cells_NJ2 + _newton(near), peak_NJ


def peaks_1d(values_NJB: Tensor, *, refine: bool) -> tuple[Tensor, Tensor]:
    """Place in bins and height of the highest bin of every distribution, (N, J) each; by a parabola as :func:`peaks`."""
    values_NJB = finite(values_NJB)
    bins = values_NJB.shape[2]
    height_NJ, bin_NJ = values_NJB.max(dim=2)
    if not refine:
        return bin_NJ.float(), height_NJ
    place_NJ3 = torch.stack([(bin_NJ + step).clamp(0, bins - 1) for step in (-1, 0, 1)], dim=2)
    near_NJ3 = torch.maximum(values_NJB.gather(2, place_NJ3), 1e-3 * height_NJ[..., None].clamp_min(1e-6)).log()
    step_NJ = _vertex(near_NJ3[..., 0], near_NJ3[..., 1], near_NJ3[..., 2])
    return bin_NJ + step_NJ * ((bin_NJ > 0) & (bin_NJ < bins - 1)), height_NJ


def entropy(values_NJQ: Tensor) -> Tensor:
    """Entropy of the softmax over the last axis, its range stretched to :data:`SHARPNESS`, as a share of the largest, (N, J)."""
    values_NJQ = finite(values_NJQ)
    highest_NJ1 = values_NJQ.amax(dim=2, keepdim=True)
    spread_NJ1 = (highest_NJ1 - values_NJQ.amin(dim=2, keepdim=True)).clamp_min(1e-6)
    raised_NJQ = torch.exp((values_NJQ - highest_NJ1) * (SHARPNESS / spread_NJ1))
    total_NJ = raised_NJQ.sum(dim=2)
    # H = log Z - mean of the exponents: no logarithm of a probability that may be 0.
    mean_NJ = (raised_NJQ * (values_NJQ - highest_NJ1)).sum(dim=2) / total_NJ * (SHARPNESS / spread_NJ1[..., 0])
    return (total_NJ.log() - mean_NJ) / math.log(max(2, values_NJQ.shape[2]))


def crude_peaks(maps_NJHW: Tensor) -> tuple[Tensor, Tensor]:
    """Places (N, J, 2) as (x, y) in whole cells and heights (N, J, 1) of the highest cells.

    The highest row and the highest column are found by themselves: two maxima that a processor takes in strides are cheaper than
    one search through all cells. Where several cells are the highest it is the first such column and the first such row.
    """
    down_NJH, across_NJW = maps_NJHW.amax(dim=3), maps_NJHW.amax(dim=2)
    places = [across_NJW.argmax(dim=2, keepdim=True), down_NJH.argmax(dim=2, keepdim=True)]
    return torch.cat(places, dim=2).float(), down_NJH.amax(dim=2, keepdim=True)


def sampled(maps_NCHW: Tensor, grid_NAB2: Tensor) -> Tensor:
    """Maps at places between -1 and 1 from edge to edge, bilinearly, (N, C, A, B); points outside are read at the edge."""
    return functional.grid_sample(maps_NCHW, grid_NAB2, mode="bilinear", padding_mode="border", align_corners=False)


def reduced(value: Tensor, tap: TapLayout, directions_CK: Tensor) -> Tensor:
    """The components of a tap in every cell, (N, K, h, w)."""
    if tap.kind == "nchw":
        return functional.conv2d(value, directions_CK.T[:, :, None, None])
    return as_map(value @ directions_CK, tap._replace(channels=directions_CK.shape[1]))


def mixing(channels: int) -> Tensor | None:
    """Fixed random sums (NARROW, C) of many channels, of unit length on average; None for few."""
    if channels <= NARROW:
        return None
    # RandomState gives the same numbers in every version of numpy.
    drawn = np.random.RandomState(channels).randn(NARROW, channels) / math.sqrt(channels)
    return torch.from_numpy(drawn.astype(np.float32))


def finite(value: Tensor, most: float = 1e30) -> Tensor:
    """NaN becomes 0, and what is beyond ``most`` is that: ``torch.nan_to_num`` in three nodes of a graph, not ten."""
    return torch.where(torch.isnan(value), 0.0, value).clamp(-most, most)


def as_map(value: Tensor, tap: TapLayout) -> Tensor:
    """A tap as maps (N, C, h, w)."""
    if tap.kind == "nchw":
        return value
    if tap.kind == "vector":
        return value.reshape(value.shape[0], tap.channels, 1, 1)
    if tap.kind == "tokens":
        value = value[:, tap.skipped :].reshape(value.shape[0], tap.height, tap.width, tap.channels)
    return value.permute(0, 3, 1, 2)


def average(value: Tensor, tap: TapLayout) -> Tensor:
    """Average of a tap over the image, (N, C)."""
    if tap.kind == "nchw":
        # As a pooling ONNX Runtime takes it in the layout of its convolutions; a mean is put in order first.
        return functional.avg_pool2d(value, (tap.height, tap.width)).flatten(1)
    if tap.kind == "vector":
        return value.reshape(value.shape[0], tap.channels)
    return (value.flatten(1, -2) if tap.kind == "nhwc" else value[:, tap.skipped :]).mean(dim=1)


def tap_layout(name: str, shape: Shape, spec: PoseSpec) -> TapLayout:
    """Tell the layout of a feature tensor by its shape: its cells have the input's aspect ratio.

    Where both orders fit, channels come first, as ONNX's convolutions give them.
    """
    sizes = list(shape[1:])
    if None in sizes or len(shape) not in (2, 3, 4):
        raise ConfigError(f"{spec.name}: tap {name} is {written(shape)}; expected (N, C, h, w), (N, h, w, C), "
                          "tokens (N, h*w, C) or (N, C) of known sizes")  # fmt: skip
    known = [int(size or 0) for size in sizes]
    aspect = spec.input.height_px / spec.input.width_px
    if len(known) == 1:
        return TapLayout("vector", known[0], 1, 1)
    if len(known) == 2:
        found = _token_grid(known[0], aspect)
        if found is None:
            raise ConfigError(f"{spec.name}: tap {name} has {known[0]} tokens, which are no grid of "
                              f"{spec.input.height_px} x {spec.input.width_px}'s aspect ratio")  # fmt: skip
        return TapLayout("tokens", known[1], *found)
    first, middle, last = known
    if (middle, last) == (1, 1) or (first, middle) == (1, 1):
        return TapLayout("vector", max(first, last), 1, 1)
    as_nchw, as_nhwc = (abs(math.log(h / w / aspect)) for h, w in ((middle, last), (first, middle)))
    return TapLayout("nchw", first, middle, last) if as_nchw <= as_nhwc else TapLayout("nhwc", last, first, middle)


def candidate_axis(shape: Shape, columns: int, net: str) -> Literal[1, 2]:
    """The axis of a YOLO output that counts candidates: the other one has box, scores and the columns of all points."""
    if len(shape) == 3:
        rest = [None if size is None else size - 5 - columns for size in shape[1:]]
        fits = [extra is not None and 0 <= extra <= 100 for extra in rest]
        if fits[0] != fits[1]:
            return 2 if fits[0] else 1
        if all(fits):
            return 2 if (rest[0] or 0) <= (rest[1] or 0) else 1
    raise ConfigError(f"{net}: candidates of shape {written(shape)} do not hold a box, a score and {columns} numbers of "
                      "points; state the columns of a point and the number of points")  # fmt: skip


def _token_grid(tokens: int, aspect: float) -> tuple[int, int, int] | None:
    """Height and width of the grid and how many tokens stand before it (class and register tokens)."""
    for skipped in range(0, 9):
        count = tokens - skipped
        height = round(math.sqrt(max(count, 0) * aspect))
        if height and count % height == 0 and abs(math.log(height / (count // height) / aspect)) < 0.1:
            return height, count // height, skipped
    return None


def _vertex(before: Tensor, centre: Tensor, after: Tensor) -> Tensor:
    """Offset in [-0.5, 0.5] of the top of a parabola through three equidistant values; 0 on a plateau."""
    bend = 2 * centre - before - after
    return torch.where(bend > 1e-6, (after - before) / (2 * bend.clamp_min(1e-6)), 0.0).clamp(-0.5, 0.5)


def _newton(near: Sequence[Tensor]) -> Tensor:
    """The step (x, y) from the middle of 3 x 3 values to where their quadratic form is highest; 0 where it is not."""
    x_NJ, y_NJ = (near[5] - near[3]) / 2, (near[7] - near[1]) / 2
    xx_NJ, yy_NJ = near[5] - 2 * near[4] + near[3], near[7] - 2 * near[4] + near[1]
    xy_NJ = (near[8] - near[5] - near[7] + 2 * near[4] - near[3] - near[1] + near[0]) / 2
    determinant_NJ = xx_NJ * yy_NJ - xy_NJ.square()
    bends = (determinant_NJ > 1e-9) & (xx_NJ < 0)
    safe_NJ = torch.where(bends, determinant_NJ, 1.0)
    step_NJ2 = torch.stack([xy_NJ * y_NJ - yy_NJ * x_NJ, xy_NJ * x_NJ - xx_NJ * y_NJ], dim=2) / safe_NJ[..., None]
    return torch.where(bends[..., None], step_NJ2, 0.0).clamp(-1.0, 1.0)


def _blurred(maps_NJHW: Tensor) -> Tensor:
    """Gaussian blur in two passes; the edge's cells go on outside."""
    step = torch.arange(-DARK_RADIUS, DARK_RADIUS + 1, dtype=maps_NJHW.dtype, device=maps_NJHW.device)
    kernel = torch.exp(-(step**2) / (2 * DARK_SIGMA**2))
    kernel = kernel / kernel.sum()
    maps = functional.pad(maps_NJHW.flatten(0, 1)[:, None], (DARK_RADIUS,) * 4, mode="replicate")
    maps = functional.conv2d(functional.conv2d(maps, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return maps.reshape(maps_NJHW.shape)


def written(shape: Shape) -> str:
    """A shape as messages have it; ``?`` where a size is free."""
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"
