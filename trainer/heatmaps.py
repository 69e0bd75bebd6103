"""Heatmaps in torch: drawing targets, and reading joints and free scores from predictions.

Shapes: B batch, J joints, H W heatmap, P peaks. Joint coordinates are pixels of the crop (pixel centres at whole
numbers); a heatmap cell covers ``stride`` crop pixels, so cell k is centred on crop pixel stride·k + (stride-1)/2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
    """Mean over joints of the entropy of softmax(map / temperature), in nats: (B,)."""
    log_p = functional.log_softmax(heatmaps_BJHW.float().flatten(2) / temperature, dim=2)
    return -(log_p.exp() * log_p).sum(dim=2).mean(dim=1)


def multipeak_entropy(
    heatmaps_BJHW: Tensor,
    *,
    temperature: float,
    min_distance: int = 5,
    num_peaks: int = 5,
    threshold: float | None = None,
    exclude_border: bool = False,
) -> Tensor:
    """Sum over joints of the entropy over the softmax of a map's peak values, in nats: (B,).

    After Liu and Ferrari, ICCV 2017. A peak is the highest cell within ``min_distance`` cells of it in both axes.

    Args:
        heatmaps_BJHW: predicted maps.
        temperature: divides the peak values before the softmax.
        min_distance: half side of the window in cells.
        num_peaks: how many of the highest peaks count.
        threshold: lowest value of a peak; None takes the lowest value of the map, which keeps every maximum.
        exclude_border: drop peaks within ``min_distance`` of the edge (truncated people lose theirs).
    """
    maps = heatmaps_BJHW.float()
    window = 2 * min_distance + 1
    highest = functional.max_pool2d(maps, window, stride=1, padding=min_distance)
    lowest_BJ11 = maps.amin(dim=(2, 3), keepdim=True)
    is_peak = (maps == highest) & (maps > (lowest_BJ11 if threshold is None else threshold))
    if exclude_border:
        inside = torch.zeros_like(is_peak)
        height, width = maps.shape[2:]
        inside[..., min_distance : height - min_distance, min_distance : width - min_distance] = True
        is_peak &= inside
    height_BJN = maps.masked_fill(~is_peak, -torch.inf).flatten(2)
    values_BJP = height_BJN.topk(min(num_peaks, height_BJN.shape[2]), dim=2).values
    # A map without any peak has one possibility and no entropy; a softmax over nothing would be NaN.
    values_BJP[..., 0] = values_BJP[..., 0].nan_to_num(neginf=0.0)
    log_p = functional.log_softmax(values_BJP / temperature, dim=2)
    return -(log_p.exp() * log_p.nan_to_num(neginf=0.0)).sum(dim=(1, 2))
