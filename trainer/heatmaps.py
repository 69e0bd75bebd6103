"""Heatmaps in torch: drawing targets, and reading joints and free scores from predictions.

Shapes: B batch, J joints, Q = B·J maps, H W heatmap, P peaks of a map, K cells of all maps, T tiles, S steps. Joint
coordinates are pixels of the crop (pixel centres at whole numbers); a heatmap cell covers ``stride`` crop pixels, so
cell k is centred on crop pixel stride·k + (stride-1)/2.
"""

from __future__ import annotations

from functools import reduce
from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.nn import functional

from alpose.runtime.errors import ConfigError

BLOCK = 1024
"""Maps that are searched for peaks together."""
CACHED = 256
"""Maps of which the tiles are made together: as many as stay in a processor's cache."""
AT_ONCE = 8192
"""Cells whose whole windows are gathered together: bounds the memory."""


def to_cells(joints_BJ2: Tensor, stride: int) -> Tensor:
    """Crop pixels to heatmap cells."""
    return (joints_BJ2 - (stride - 1) / 2) / stride


def to_pixels(cells_BJ2: Tensor, stride: int) -> Tensor:
    """Heatmap cells to crop pixels."""
    return cells_BJ2 * stride + (stride - 1) / 2


def draw(cells_BJ2: Tensor, size: int, *, sigma: float, peak: float) -> Tensor:
    """Gaussian targets (B, J, size, size): ``peak · exp(-|p - µ|² / 2σ²)``, centred between cells where the joint is.

    Args:
        cells_BJ2: joint positions in cells; a joint outside the map draws the part of its bell that is inside.
        size: side of the map in cells.
        sigma: standard deviation in cells (1.75 at 64 cells in the papers).
        peak: height of the bell (30 in the papers).
    """
    axis_H = torch.arange(size, dtype=torch.float32, device=cells_BJ2.device)
    bell_BJ2H = torch.exp(-((axis_H - cells_BJ2[..., None]) ** 2) / (2 * sigma**2))
    return peak * bell_BJ2H[:, :, 1, :, None] * bell_BJ2H[:, :, 0, None, :]


def decode(heatmaps_BJHW: Tensor) -> tuple[Tensor, Tensor]:
    """Sub-pixel peak of each map: positions (B, J, 2) as (x, y) in cells, and peak values (B, J).

    The highest cell, moved along each axis to the top of the parabola through the logarithms of it and its two
    neighbours. For a Gaussian bell that is its exact centre. At the border there is no move.
    """
    maps = heatmaps_BJHW.float()
    height, width = maps.shape[2:]
    score_BJ, place_BJ = maps.flatten(2).max(dim=2)
    row_BJ, column_BJ = place_BJ // width, place_BJ % width
    floor_BJ = 1e-3 * score_BJ.clamp_min(1e-6)

    def log_at(rows_BJ: Tensor, columns_BJ: Tensor) -> Tensor:
        flat_BJ = rows_BJ.clamp(0, height - 1) * width + columns_BJ.clamp(0, width - 1)
        value_BJ = maps.flatten(2).gather(2, flat_BJ[..., None])[..., 0]
        return torch.maximum(value_BJ, floor_BJ).log()

    centre_BJ = log_at(row_BJ, column_BJ)
    x_BJ = column_BJ + _vertex(log_at(row_BJ, column_BJ - 1), centre_BJ, log_at(row_BJ, column_BJ + 1)) * (
        (column_BJ > 0) & (column_BJ < width - 1)
    )
    y_BJ = row_BJ + _vertex(log_at(row_BJ - 1, column_BJ), centre_BJ, log_at(row_BJ + 1, column_BJ)) * (
        (row_BJ > 0) & (row_BJ < height - 1)
    )
    return torch.stack([x_BJ, y_BJ], dim=-1), score_BJ


def _vertex(before: Tensor, centre: Tensor, after: Tensor) -> Tensor:
    """Offset in [-0.5, 0.5] of the top of a parabola through three equidistant values; 0 on a plateau."""
    bend = 2 * centre - before - after
    return torch.where(bend > 1e-6, (after - before) / (2 * bend.clamp_min(1e-6)), 0.0).clamp(-0.5, 0.5)


def entropy(heatmaps_BJHW: Tensor, temperature: float) -> Tensor:
    """Mean over joints of the entropy of softmax(map / temperature), in nats: (B,).

    The papers name it as prior work and print no formula; the official code's ``entropy`` is the multi-peak one.
    """
    if not temperature > 0:
        raise ConfigError(f"entropy divides by its temperature: it must be above 0, got {temperature}")
    log_p = functional.log_softmax(heatmaps_BJHW.float().flatten(2) / temperature, dim=2)
    return -(log_p.exp() * log_p).sum(dim=2).mean(dim=1)


class PeakRule(TypedDict):
    """What counts as a peak; the arguments of :func:`multipeak_entropy` by these names."""

    min_distance: int
    num_peaks: int | None
    threshold: float | None
    exclude_border: bool
    merge_plateaus: bool


MultipeakForm = Literal["whole-map", "official-2022", "official-2021"]

MULTIPEAK_FORMS: dict[MultipeakForm, PeakRule] = {
    "whole-map": PeakRule(
        min_distance=5, num_peaks=5, threshold=None, exclude_border=False, merge_plateaus=False
    ),
    "official-2022": PeakRule(
        min_distance=5, num_peaks=5, threshold=None, exclude_border=True, merge_plateaus=True
    ),
    "official-2021": PeakRule(
        min_distance=7, num_peaks=None, threshold=7.5, exclude_border=True, merge_plateaus=True
    ),
}  # fmt: skip
"""Named forms, for maps of 64 cells and a training peak of 30 (distances and threshold go with these).

``whole-map`` is ours and the default: the five highest peaks, those near the edge too. ``official-2022`` is what the
official code computes since its last release: the same without peaks within 5 cells of the edge, so that people cut
off by the frame lose theirs. ``official-2021`` is what it computed when the LL++ paper came out: every peak above a
quarter of the training peak, 7 cells apart. The papers say "multi-peak entropy" and print neither rule; all sum over
joints, and all take raw heights into the softmax (temperature 1 at a peak of 30, near one-hot).
"""


def multipeak_entropy(
    heatmaps_BJHW: Tensor, *, temperature: float, min_distance: int = 5, num_peaks: int | None = 5,
    threshold: float | None = None, exclude_border: bool = False, merge_plateaus: bool = False,
) -> Tensor:  # fmt: skip
    """Sum over joints of the entropy over the softmax of a map's peak values, in nats: (B,).

    After Liu and Ferrari, ICCV 2017. A peak is the highest cell within ``min_distance`` cells of it in both axes; a flat
    map has none. A map without peaks adds nothing.

    Args:
        heatmaps_BJHW: predicted maps.
        temperature: divides the peak values before the softmax.
        min_distance: half side of the window in cells.
        num_peaks: how many of the highest peaks count; None counts all.
        threshold: a peak is higher than this; None takes the lowest value of the map, which keeps every maximum.
        exclude_border: drop peaks within ``min_distance`` of the edge (truncated people lose theirs).
        merge_plateaus: of equally high cells less than ``min_distance`` apart the first counts, in reading order.
            Without it each of them is a peak, which float32 maps hardly ever have and bfloat16 maps often.
    """
    if not temperature > 0:
        raise ConfigError(f"multi-peak entropy divides by its temperature: it must be above 0, got {temperature}")
    if min_distance < 0 or (num_peaks is not None and num_peaks < 1):
        raise ConfigError(
            f"multi-peak entropy: min_distance must be at least 0 and num_peaks 1, got {min_distance} and {num_peaks}"
        )
    rule = PeakRule(min_distance=min_distance, num_peaks=num_peaks, threshold=threshold, exclude_border=exclude_border,
                    merge_plateaus=merge_plateaus)  # fmt: skip
    # Blocks, because what lies in a cache is compared several times faster.
    blocks = heatmaps_BJHW.flatten(0, 1).split(BLOCK)
    entropy_Q = torch.cat([_peak_entropy(maps_QHW.float(), temperature, rule) for maps_QHW in blocks])
    return entropy_Q.unflatten(0, heatmaps_BJHW.shape[:2]).sum(dim=1)


def multipeak_form(
    heatmaps_BJHW: Tensor, form: MultipeakForm, *, temperature: float = 1.0, exclude_border: bool | None = None
) -> Tensor:
    """Multi-peak entropy (B,) in a form of :data:`MULTIPEAK_FORMS`, whose distances are for 64 cells."""
    rule = MULTIPEAK_FORMS[form].copy()
    rule["min_distance"] = max(1, round(rule["min_distance"] * heatmaps_BJHW.shape[-1] / 64))
    if exclude_border is not None:
        rule["exclude_border"] = exclude_border
    return multipeak_entropy(heatmaps_BJHW, temperature=temperature, **rule)


def multipeak_2021(heatmaps_BJHW: Tensor) -> Tensor:
    """The method ``multipeak-2021``."""
    return multipeak_form(heatmaps_BJHW, "official-2021")


def multipeak_2022(heatmaps_BJHW: Tensor) -> Tensor:
    """The method ``multipeak-2022``."""
    return multipeak_form(heatmaps_BJHW, "official-2022")


def _peak_entropy(maps_QHW: Tensor, temperature: float, rule: PeakRule) -> Tensor:
    """Entropy over the peaks of each map (Q,)."""
    above_Q = maps_QHW.amin(dim=(1, 2))
    if rule["threshold"] is not None:
        flat_Q = maps_QHW.amax(dim=(1, 2)) == above_Q
        above_Q = torch.full_like(above_Q, rule["threshold"]).masked_fill(flat_Q, torch.inf)
    border = rule["min_distance"] if rule["exclude_border"] else 0
    peaks = _find_peaks(maps_QHW, above_Q, rule["min_distance"], border, rule["num_peaks"], rule["merge_plateaus"])
    rank_K = peaks.rank()
    values_QP = maps_QHW.new_full((len(maps_QHW), int(rank_K.max()) + 1 if len(rank_K) else 1), -torch.inf)
    values_QP[:, 0] = 0.0  # without any peak: one possibility and no entropy; a softmax over nothing would be NaN
    values_QP[peaks.map_K, rank_K] = peaks.value_K
    log_p = functional.log_softmax(values_QP / temperature, dim=1)
    return -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(dim=1)


class _Cells(NamedTuple):
    """Cells of many maps, those of one map together; of tiles the first cell, and the highest value."""

    map_K: Tensor
    value_K: Tensor
    cell_K: Tensor
    """Row · width + column."""
    is_sure_K: Tensor
    """Known to be the highest of its window; of the others that is open."""

    def at(self, which: Tensor) -> _Cells:
        """These of them, by mask or by place."""
        place_M = which.nonzero()[:, 0] if which.dtype == torch.bool else which
        return _Cells(*(part[place_M] for part in self))

    def rank(self) -> Tensor:
        """Place of each among those of its map, from 0."""
        place_K = torch.arange(len(self.map_K), device=self.map_K.device)
        return place_K - torch.searchsorted(self.map_K, self.map_K)

    def sure_above(self) -> Tensor:
        """How many sure ones come before each in its map."""
        before_K = self.is_sure_K.cumsum(dim=0) - self.is_sure_K.long()
        return before_K - before_K[torch.searchsorted(self.map_K, self.map_K)]

    def per_map(self, maps: int) -> Tensor:
        """How many each map has (Q,)."""
        return torch.bincount(self.map_K, minlength=maps)

    def has_twin(self) -> Tensor:
        """Whether the one before has the same value, in the same map: all ties, where the highest come first."""
        twin_K = torch.zeros_like(self.is_sure_K)
        twin_K[1:] = (self.map_K[1:] == self.map_K[:-1]) & (self.value_K[1:] == self.value_K[:-1])
        return twin_K


def _find_peaks(
    maps_QHW: Tensor, above_Q: Tensor, reach: int, border: int, most: int | None, merge: bool
) -> _Cells:  # fmt: skip
    """Peaks of all maps at once, the highest of each map first; the whole window is looked at for few cells only."""
    tile = max(1, (reach + 1) // 2)
    tiles = _Tiles.of(maps_QHW, above_Q, tile, reach, border)

    def settle(chosen: _Cells, enough: int | None = None) -> _Cells:
        cells = _within_tiles(maps_QHW, chosen, tile, border)
        if enough is not None:  # below as many sure ones nothing is looked for
            cells = cells.at(cells.sure_above() < enough)
        open_K = (~cells.is_sure_K).nonzero()[:, 0]
        keep_K = cells.is_sure_K.clone()
        keep_K[open_K] = _is_highest(maps_QHW, cells.at(open_K), reach)
        return cells.at(keep_K)

    if most is None:
        peaks = settle(_sorted(tiles.all()))
    else:
        # Most candidates are peaks: the highest few hold the peaks that count. Maps where they do not are done in full.
        few, has_more_Q = tiles.highest(most + 3)
        peaks = settle(few, most)
        wants_Q = has_more_Q & (peaks.per_map(len(maps_QHW)) < most)
        if merge:
            wants_Q[peaks.map_K[peaks.has_twin()]] = True
        if wants_Q.any():
            whole = settle(_sorted(tiles.all(wants_Q)))
            both = zip(peaks.at(~wants_Q[peaks.map_K]), whole, strict=True)
            peaks = _Cells(*(torch.cat(parts) for parts in both))
            peaks = peaks.at(torch.argsort(peaks.map_K, stable=True))
    if merge and reach > 1 and peaks.has_twin().any():
        peaks = _merge(peaks, maps_QHW.shape[2], reach)
    return peaks if most is None else peaks.at(peaks.rank() < most)


class _Tiles(NamedTuple):
    """Tiles of many maps, with a frame of empty ones around each map; those that may hold a peak have their highest value.

    None of the eight around such a tile is higher: all nine lie within ``reach`` of any cell of the middle one. And the 25
    around it hold its whole window: who is the highest of those is a peak for sure. Tiles that lie wholly at the edge are
    left out.
    """

    value_QRC: Tensor
    """-inf where there is no peak."""
    near_QRC: Tensor
    """Highest of the nine; -inf where there is no window to be looked at."""
    above_Q: Tensor
    """Peaks are higher than this."""
    width: int
    """Of the maps."""
    tile: int

    @classmethod
    def of(cls, maps_QHW: Tensor, above_Q: Tensor, tile: int, reach: int, border: int) -> _Tiles:
        """All tiles of all maps."""
        height, width = maps_QHW.shape[1:]
        value_QRC = maps_QHW.new_full((len(maps_QHW), -(-height // tile) + 2, -(-width // tile) + 2), -torch.inf)
        near_QRC = torch.full_like(value_QRC, -torch.inf)
        wholes = (maps_QHW, value_QRC, near_QRC)
        for maps, value, near in zip(*(whole.split(CACHED) for whole in wholes), strict=True):
            _fill_tiles(maps, tile, value)
            if reach:
                _around(value, near)
                value.masked_fill_(value < near, -torch.inf)
        for dim, size in ((1, height), (2, width)):
            outer, inner = 1 + border // tile, 1 + max(0, -(-(size - border) // tile))
            value_QRC.narrow(dim, 0, min(outer, value_QRC.shape[dim])).fill_(-torch.inf)
            value_QRC.narrow(dim, inner, value_QRC.shape[dim] - inner).fill_(-torch.inf)
        return cls(value_QRC, near_QRC, above_Q, width, tile)

    def all(self, of_Q: Tensor | None = None) -> _Cells:
        """Every tile that may hold a peak, of all maps or of these."""
        if of_Q is None:
            return self._cells(*self._above(self.value_QRC.flatten(1), self.above_Q))
        chosen_M = of_Q.nonzero()[:, 0]
        map_K, place_K = self._above(self.value_QRC[chosen_M].flatten(1), self.above_Q[chosen_M])
        return self._cells(chosen_M[map_K], place_K)

    def highest(self, most: int) -> tuple[_Cells, Tensor]:
        """The highest few of each map, the highest first; and which maps (Q,) have more."""
        value_QP, place_QP = self.value_QRC.flatten(1).topk(min(most + 1, self.value_QRC[0].numel()), dim=1)
        map_K, rank_K = self._above(value_QP[:, :most], self.above_Q)
        return self._cells(map_K, place_QP[map_K, rank_K]), value_QP[:, -1] > self.above_Q

    @staticmethod
    def _above(value_QP: Tensor, above_Q: Tensor) -> tuple[Tensor, Tensor]:
        map_K, place_K = (value_QP > above_Q[:, None]).nonzero(as_tuple=True)
        return map_K, place_K

    def _cells(self, map_K: Tensor, place_K: Tensor) -> _Cells:
        count, across = self.value_QRC[0].numel(), self.value_QRC.shape[2]
        at_K = map_K * count + place_K
        value_K = self.value_QRC.flatten()[at_K]
        # The nine around each of four neighbours are the 25.
        corner_4 = torch.tensor([-across - 1, -across + 1, across - 1, across + 1], device=at_K.device)
        far_K = _at(self.near_QRC, at_K + corner_4[:, None]).amax(dim=0)
        cell_K = ((place_K // across - 1) * self.width + place_K % across - 1) * self.tile
        return _Cells(map_K, value_K, cell_K, far_K <= value_K)


def _within_tiles(maps_QHW: Tensor, tiles: _Cells, tile: int, border: int) -> _Cells:
    """The cells that are as high as their tile, without those at the edge; the order stays."""
    height, width = maps_QHW.shape[1:]
    step_S1 = torch.arange(tile, device=maps_QHW.device)[:, None]
    row_SK, column_SK = tiles.cell_K // width + step_S1, tiles.cell_K % width + step_S1
    exists_TK = ((row_SK < height)[:, None] & (column_SK < width)).flatten(0, 1)
    cell_TK = (row_SK.clamp_max_(height - 1)[:, None] * width + column_SK.clamp_max_(width - 1)).flatten(0, 1)
    is_highest_TK = (_at(maps_QHW, cell_TK + tiles.map_K * (height * width)) == tiles.value_K) & exists_TK
    which_K, at_K = is_highest_TK.T.nonzero(as_tuple=True)
    cell_K = cell_TK[at_K, which_K]
    if border:
        row_K, column_K = cell_K // width, cell_K % width
        inside_K = (row_K >= border) & (row_K < height - border) & (column_K >= border) & (column_K < width - border)
        which_K, cell_K = which_K[inside_K], cell_K[inside_K]
    return tiles.at(which_K)._replace(cell_K=cell_K)


def _at(values: Tensor, place_SK: Tensor) -> Tensor:
    """Values at these places of all of them, one behind the other (S, K)."""
    return values.flatten().index_select(0, place_SK.flatten()).view_as(place_SK)


def _fill_tiles(maps_QHW: Tensor, tile: int, out_QRC: Tensor) -> None:
    """Highest of every tile, into the inside of a frame; the tiles of the last row and column may be smaller."""
    height, width = maps_QHW.shape[1:]
    down, across = height // tile, width // tile
    rows_QRW = maps_QHW.new_empty((len(maps_QHW), -(-height // tile), width))
    torch.amax(maps_QHW[:, : down * tile].unflatten(1, (down, tile)), dim=2, out=rows_QRW[:, :down])
    if down * tile < height:
        rows_QRW[:, down] = reduce(torch.maximum, maps_QHW[:, down * tile :].unbind(1))
    if across * tile < width:
        out_QRC[:, 1:-1, -2] = reduce(torch.maximum, rows_QRW[:, :, across * tile :].unbind(2))
    # All rows as one, so that many neighbours are compared at a time: no whole tile reaches over the end of its row.
    flat = rows_QRW.flatten()
    highest = flat[: len(flat) - tile + 1]
    for step in range(1, tile):
        highest = torch.maximum(highest, flat[step : step + len(highest)])
    whole = (*rows_QRW.shape[:2], across)
    out_QRC[:, 1:-1, 1 : 1 + across] = highest.as_strided(whole, (*rows_QRW.stride()[:2], tile))


def _around(tiles_QRC: Tensor, out_QRC: Tensor) -> None:
    """Highest of each tile and the eight around it; not in the first and last row of the frame, where it is not needed."""
    across, flat = tiles_QRC.shape[2], tiles_QRC.view(-1)
    three = torch.maximum(torch.maximum(flat[:-2], flat[1:-1]), flat[2:])
    inside = out_QRC.view(-1)[across + 1 : -across - 1]
    torch.maximum(three[: -2 * across], three[2 * across :], out=inside)
    torch.maximum(inside, three[across:-across], out=inside)


def _is_highest(maps_QHW: Tensor, cells: _Cells, reach: int) -> Tensor:
    """Whether nothing within ``reach`` of a cell is higher (K,)."""
    height, width = maps_QHW.shape[1:]
    step_S1 = torch.arange(-reach, reach + 1, device=maps_QHW.device)[:, None]
    parts = []
    for map_K, value_K, cell_K in zip(*(part.split(AT_ONCE) for part in cells[:3]), strict=True):
        # Past the edge the nearest cell of the map stands in; it is in the window anyway.
        row_SK = (cell_K // width + step_S1).clamp_(0, height - 1).mul_(width).add_(map_K * (height * width))
        column_SK = (cell_K % width + step_S1).clamp_(0, width - 1)
        parts.append(_at(maps_QHW, (row_SK[:, None] + column_SK).flatten(0, 1)).amax(dim=0) <= value_K)
    return torch.cat(parts)


def _merge(peaks: _Cells, width: int, apart: int) -> _Cells:
    """Of equally high cells less than ``apart`` apart, keep the first in reading order; again among what is left."""
    peaks = _sorted(peaks.at(torch.argsort(peaks.cell_K, stable=True)))
    row_K, column_K = peaks.cell_K // width, peaks.cell_K % width
    place_K = torch.arange(len(row_K), device=row_K.device)
    group_K = (~peaks.has_twin()).cumsum(dim=0) - 1
    open_K, keep_K = torch.ones_like(peaks.is_sure_K), torch.zeros_like(peaks.is_sure_K)
    none = len(place_K)
    while open_K.any():
        first_G = torch.full_like(place_K, none).scatter_reduce(0, group_K[open_K], place_K[open_K], "amin")
        keep_K[first_G[first_G < none]] = True
        head_K = first_G[group_K].clamp_max(none - 1)
        open_K &= torch.maximum((row_K - row_K[head_K]).abs(), (column_K - column_K[head_K]).abs()) >= apart
    return peaks.at(keep_K)


def _sorted(cells: _Cells) -> _Cells:
    """By map, the highest first; equals in the order given."""
    order = torch.argsort(cells.value_K, descending=True, stable=True)
    return cells.at(order[torch.argsort(cells.map_K[order], stable=True)])
