"""Where to look for a person whom nobody follows: where something moves, or window by window.

Shapes: h w thumbnail; boxes are (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Box = tuple[float, float, float, float]

FARTHEST_SHIFT = 4
"""Of a camera between its usual picture and the present one, in pixels of a thumbnail."""


class Movement:
    """Where the picture of a fixed camera differs from what it usually is.

    The usual picture is a running mean, which follows fast where nothing happens (light changes) and slowly where
    something does (a person who stands still stays visible for a minute). Where the picture fits the usual one better when that
    is shifted, the camera has moved: the usual one moves along, and for a while what fits a place beside it has not changed. When
    most of the picture differs the light has changed, or another place is seen, and it starts anew.

    Shapes: h w thumbnail.
    """

    LONGEST = 96
    """Pixels of the thumbnail's longer side."""
    LEVELS = 25.0
    """A pixel that differs by more has changed."""
    FAST = 0.05
    """Share of the way to the present picture in one frame, where nothing has changed."""
    SLOW = 0.02
    """Levels in one frame where something has: a thousand frames until a person who stands still is furniture."""
    LEAST, MOST = 0.005, 0.5
    """Share of the pixels that must have changed for somebody to be there, and for the whole picture to be another."""
    SHIFTED = 0.85
    """Of what a picture differs from the usual one, it must differ less when it is shifted by a pixel: then the camera moved."""
    SHADOW, DARKEST = 0.15, 0.4
    """A shadow darkens what it falls on by one factor, not below this: relative spread of the factor over its pixels. People are
    of several colours."""
    HOLD = 20
    """Frames for which a camera that has moved is taken to go on moving."""

    def __init__(self) -> None:
        self._usual_hw: npt.NDArray[np.float32] | None = None
        self._hold = 0

    def __call__(self, thumbnail_hw: npt.NDArray[np.uint8]) -> Box | None:
        """Take the next picture; the box of the largest change in pixels of the thumbnail, or None."""
        now_hw, before_hw = thumbnail_hw.astype(np.float32), self._usual_hw
        if before_hw is None or before_hw.shape != now_hw.shape:
            self._usual_hw, self._hold = now_hw, 0
            return None
        change_hw = self._change(now_hw, before_hw)
        changed_hw = np.abs(change_hw) > self.LEVELS
        if self._hold or changed_hw.mean() >= self.LEAST:
            x, y = _shift_between(now_hw, before_hw, self.SHIFTED)
            if x or y:
                before_hw, self._hold = _shifted(before_hw, now_hw, x, y), self.HOLD
            if self._hold:  # the camera moves, or has just moved: what fits a place beside it has not changed
                self._hold -= 1
                change_hw = self._change(now_hw, before_hw)
                changed_hw = (np.abs(change_hw) > self.LEVELS) & _differs_around(now_hw, before_hw, self.LEVELS)
        if float(changed_hw.mean()) > self.MOST:
            self._usual_hw = now_hw
            return None
        towards_hw = now_hw - before_hw
        self._usual_hw = before_hw + np.where(
            changed_hw, np.float32(self.SLOW) * np.sign(towards_hw), np.float32(self.FAST) * towards_hw
        )
        columns = _largest_run(changed_hw.sum(axis=0))
        if columns is None:
            return None
        left, right = columns
        rows = _largest_run(changed_hw[:, left:right].sum(axis=1))
        if rows is None or changed_hw[rows[0] : rows[1], left:right].sum() < self.LEAST * changed_hw.size:
            return None
        region = (slice(*rows), slice(left, right))
        if self._is_shadow(change_hw[region][changed_hw[region]], before_hw[region][changed_hw[region]]):
            return None
        return (float(left), float(rows[0]), float(right - 1), float(rows[1] - 1))

    @staticmethod
    def _change(now_hw: npt.NDArray[np.float32], usual_hw: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The difference, without that of the whole picture: a camera that adapts its exposure changes every pixel alike."""
        change_hw = now_hw - usual_hw
        change_hw -= np.median(change_hw[::2, ::2])
        return change_hw

    def _is_shadow(self, change_K: npt.NDArray[np.float32], usual_K: npt.NDArray[np.float32]) -> bool:
        """Whether pixels are darker than usual, and all by the same factor."""
        factor_K = 1 + change_K / np.maximum(usual_K, 1)
        middle = float(np.median(factor_K))
        return bool((change_K < 0).mean() > 0.95 and middle > self.DARKEST and factor_K.std() < self.SHADOW * middle)


def _shift_between(now_hw: npt.NDArray[np.float32], usual_hw: npt.NDArray[np.float32], share: float) -> tuple[int, int]:
    """By how many pixels, up to four to each side, the usual picture must be shifted to fit; (0, 0) where that brings little."""
    height, width = now_hw.shape
    if min(height, width) <= 4 * FARTHEST_SHIFT:
        return 0, 0
    edge = FARTHEST_SHIFT
    inner_hw = now_hw[edge:-edge, edge:-edge]

    def differs(x: int, y: int) -> float:
        return float(np.abs(inner_hw - usual_hw[edge + y : height - edge + y, edge + x : width - edge + x]).mean())

    best, least = (0, 0), differs(0, 0)
    still = least
    for _ in range(FARTHEST_SHIFT):
        x, y = best
        around = [(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)]
        nearer = min(around, key=lambda at: differs(*at))
        if differs(*nearer) >= least:
            break
        best, least = nearer, differs(*nearer)
    return best if least < share * still else (0, 0)


def _shifted(
    usual_hw: npt.NDArray[np.float32], now_hw: npt.NDArray[np.float32], x: int, y: int
) -> npt.NDArray[np.float32]:
    """The usual picture where the camera now looks; what came into view is as it is."""
    height, width = usual_hw.shape
    moved_hw = now_hw.copy()
    moved_hw[max(-y, 0) : height - max(y, 0), max(-x, 0) : width - max(x, 0)] = usual_hw[
        max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)
    ]
    return moved_hw


def _differs_around(
    now_hw: npt.NDArray[np.float32], usual_hw: npt.NDArray[np.float32], levels: float
) -> npt.NDArray[np.bool_]:
    """Pixels that differ from the usual picture there and in all eight places around."""
    height, width = now_hw.shape
    wide_hw = np.pad(usual_hw + np.median((now_hw - usual_hw)[::2, ::2]), 1, mode="edge")
    around = [wide_hw[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    low_hw, high_hw = np.minimum.reduce(around), np.maximum.reduce(around)
    return np.asarray((now_hw < low_hw - levels) | (now_hw > high_hw + levels))


def _largest_run(counts_N: npt.NDArray[np.integer]) -> tuple[int, int] | None:
    """Start and end of the run of counts above one with the largest sum; gaps of two are part of a run."""
    places = np.flatnonzero(counts_N > 1)
    if not len(places):
        return None
    runs = np.split(places, np.flatnonzero(np.diff(places) > 3) + 1)
    best = max(runs, key=lambda run: int(counts_N[run].sum()))
    return int(best[0]), int(best[-1]) + 1


def overlap(one_4: Box, other_4: Box) -> float:
    """Intersection over union."""
    wide = min(one_4[2], other_4[2]) - max(one_4[0], other_4[0])
    high = min(one_4[3], other_4[3]) - max(one_4[1], other_4[1])
    both = max(wide, 0.0) * max(high, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one_4, other_4))
    return both / (areas - both) if areas > both else 0.0


def search_windows(width: int, height: int, shares: tuple[float, ...], margin: float) -> list[Box]:
    """Where to search: the whole frame, then squares that overlap by half or more, row by row."""
    windows = [window((width - 1) / 2, (height - 1) / 2, max(width, height), margin)]
    for share in shares:
        side = share * min(width, height)
        windows += [window(x, y, side, margin) for y in _centres(height, side) for x in _centres(width, side)]
    return windows


def _centres(length: int, side: float) -> list[float]:
    """Centres of windows from edge to edge, at most half a side apart."""
    steps = math.ceil((length - side) / (side / 2))
    first, last = (side - 1) / 2, length - (side + 1) / 2
    return [first + (last - first) * step / max(steps, 1) for step in range(steps + 1)]


def window(x: float, y: float, side: float, margin: float) -> Box:
    """The box whose crop is the square of this side around (x, y)."""
    reach = side / margin / 2
    return (x - reach, y - reach, x + reach, y + reach)
