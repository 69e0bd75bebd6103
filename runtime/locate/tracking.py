"""Where the person is on a frame before the net has looked at it, and what is remembered of each stream between frames.

A :class:`Locator` gives a :class:`Place` before the one forward of a frame, and is told the pose after it. The box of a
place is tight around the person, as boxes of labels are; the net sees a rectangle of its own aspect ratio around that box
times the bundle's margin.

:class:`Tracker` needs no detector. While a person is followed, the box is the one that their last pose implies; without
one, the frame is searched with one window per frame, until a pose is confident enough to be a person.

*How confident a pose is*: the mean of the better half of its scores, over the same number on the bundle's golden frames.
The better half, because a person whose legs are hidden is a person; over the golden frames, because nets differ in how
high their scores get. A net gives a pose for an empty room too, with lower scores, but not with zeros: a small net trained
on LSP with 0.2 to 0.45 where people had 0.4 to 0.9.

*What scores do not tell*, two other witnesses do. The calibrated failure probability: a pose that the net itself takes for
wrong is not believed to be a person for long. And movement: where the picture differs from what it usually is, as behind a
fixed camera, somebody is likely to be, however badly the net sees them. Such a region is searched first, and a person in it
is followed even while every pose is wrong: these are the frames that are worth labelling.

Shapes: J joints; boxes are (x0, y0, x1, y1) in frame pixels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..crop import FARTHEST_PX, MIN_REGION_PX, body_turn
from ..errors import ConfigError, DataError
from ..frames import DeviceFrame, HostFrame
from ..queue.record import MAX_NAME, is_name
from ..signals import Signals
from ..skeleton import Skeleton, body_axis
from ..telemetry.stats import Counters
from .people import read_boxes

Box = tuple[float, float, float, float]
PlaceSource = Literal["box", "roi", "track", "motion", "search", "whole"]

FARTHEST_SHIFT = 4
"""Of a camera between its usual picture and the present one, in pixels of a thumbnail."""
MOST_STREAMS = 64
"""Streams that are remembered: names are few. An app that gives every passer-by a new one loses the oldest, counted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look on one frame."""

    box_4: Box
    """Tight around the person, before the bundle's margin."""
    source: PlaceSource
    """``box``: the app gave it; ``roi``: fixed; ``track``: from the last pose; ``motion``: where something has moved on
    several frames, or where the app's detector says; ``search``: a search window, as nobody is
    known to be there; ``whole``: the whole frame, because nothing else was asked for."""


class Locator(Protocol):
    """Says where the person is on the frames of one stream."""

    @property
    def searching(self) -> bool:
        """Whether it is not known where the person is."""

    def locate(self, width: int, height: int, proposal: Box | None = None) -> Place:
        """Where to look on the next frame, of this size in pixels; somebody may be in ``proposal``."""

    def update(
        self, keypoints_J2: npt.NDArray[np.floating], scores_J: npt.NDArray[np.floating], place: Place,
        width: int, height: int, failure_probability: float = math.nan,
    ) -> bool:  # fmt: skip
        """Learn what was found there: joints in frame pixels, their scores, and the calibrated probability that they are
        wrong (NaN where the bundle is not calibrated).

        Returns:
            Whether a person is there whose pose can be right or wrong. False for a search that found nobody.
        """


@dataclass(frozen=True, slots=True)
class WholeFrame:
    """Looks at the whole frame, each time; takes it that a person is there."""

    margin: float | None = 1.0
    """The bundle's; None for a net that takes the frame as it is."""

    searching = False

    def locate(self, width: int, height: int, proposal: Box | None = None) -> Place:
        """The box whose crop has the frame's longer side, or the frame's own."""
        if self.margin is None:
            return Place((0.0, 0.0, width - 1.0, height - 1.0), "whole")
        return Place(_window((width - 1) / 2, (height - 1) / 2, max(width, height), self.margin), "whole")

    def update(self, *found: object) -> bool:
        """Learn nothing."""
        return True


@dataclass(frozen=True, slots=True)
class FixedRegion:
    """A region in which the person is, such as a driver's seat, drawn as a box around them would be."""

    roi: Box

    def __post_init__(self) -> None:
        try:
            values = np.asarray(self.roi, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            values = np.empty(0)  # the message follows
        near = values.shape == (4,) and bool((np.abs(values) <= FARTHEST_PX).all())  # not with NaN
        if not near or not (values[:2] < values[2:]).all():
            raise ConfigError(f"a roi is (x0, y0, x1, y1) in pixels with x0 < x1 and y0 < y1, got {self.roi!r:.100}")

    searching = False

    def locate(self, width: int, height: int, proposal: Box | None = None) -> Place:
        """The region; :class:`ConfigError` where it lies outside the frame altogether."""
        if _is_outside(self.roi, width, height):
            raise ConfigError(f"roi {self.roi} lies outside the frame of {width} x {height} px")
        return Place(self.roi, "roi")

    def update(self, *found: object) -> bool:
        """Learn nothing."""
        return True


# --- following a person


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackConfig:
    """When a pose is believed, and how its box moves. Confidence is relative to the golden frames: about 0 to 1.

    The defaults were chosen with a small net (128 px, trained on a thousand people of LSP) on a video of six people who
    walk into a room one after the other and turn their backs, a hard view for it. Seen plain, mirrored, and at 10 and 5
    frames per second, everybody was found within 22 frames, and nothing was followed in the empty room.
    """

    find: float = 0.55
    """How confident a pose must be that is found in a search."""
    keep: float = 0.4
    """Below this a followed person is missed on a frame."""
    patience: float = 5.0
    """Missed frames in a row after which the person is lost."""
    doubt: float = 0.3
    """What a frame between ``keep`` and ``find`` counts as, in missed frames: furniture that looks a little like a
    person is let go after patience / doubt frames."""
    joint: float = 0.3
    """How confident a joint must be to count for the box; the better half of them always do."""
    grow: float = 0.6
    """Share of the way that a side of the box moves outwards on a frame."""
    shrink: float = 0.3
    """The same inwards, times the square of the share of confident joints: a person of whom only the shoulders are
    confident is not a person of only shoulders, and would be less so in a crop of them."""
    wrong: float = 0.8
    """A pose with at least this failure probability is not believed, unless it lies where something moves."""
    sure: float = 0.5
    """A search ends at once at a pose with a lower failure probability; otherwise with the best of all its windows."""
    supported: float = 0.3
    """How much of the union of box and proposal their intersection must be for the one to confirm the other."""
    steady: int = 3
    """Frames in a row with nearly the same proposal after which somebody is taken to be there, whatever the poses."""
    larger: float = 1.33
    """Where no pose is believed at a steady proposal, every few frames look at a box longer by this."""
    wider: float = 0.1
    """How much longer the box gets for each missed frame: a person who is missed has moved, or the box is too tight."""
    windows: tuple[float, ...] = (1.0, 0.67)
    """Sides of the search windows over the shorter side of the frame, after the window of the whole frame. They lie
    within it: a net sees more people in black bars than in any furniture."""

    def __post_init__(self) -> None:
        shares = (self.find, self.keep, self.doubt, self.joint, self.shrink, self.grow, self.wrong, self.sure,
                  self.supported, *self.windows)  # fmt: skip
        if not all(0 < value <= 1 for value in shares) or self.keep > self.find:
            raise ConfigError(f"track: all shares must be in (0, 1] and keep at most find, got {self}")
        if not self.patience >= 1 or not 0 <= self.wider <= 1 or not 1 <= self.larger <= 4:
            raise ConfigError(f"track: patience must be at least 1, wider in [0, 1] and larger in [1, 4], got {self}")


@dataclass(frozen=True, slots=True)
class TrackState:
    """What a :class:`Tracker` remembers."""

    box_4: Box | None = None
    """The person's; None while searching."""
    missed: float = 0.0
    """Frames without a confident pose, in a row."""
    looked: int = 0
    """Search windows since the person was lost."""
    proposal_4: Box | None = None
    """Where somebody may be on this frame, as movement or a detector has it, ..."""
    steady: int = 0
    """... and on how many frames in a row it was about there."""
    proposed: bool = False
    """Whether the last window was a proposal: proposals and windows take turns."""
    best_4: Box | None = None
    """The least doubtful pose of this round of windows that might be a person, ..."""
    best: float = math.inf
    """... and its failure probability."""


class Tracker:
    """Follows one person by their poses.

    Args:
        margin: the bundle's.
        typical: :func:`typical_confidence` of the bundle's golden frames.
        config: limits.
    """

    def __init__(self, *, margin: float, typical: float = 1.0, config: TrackConfig | None = None) -> None:
        if not margin >= 1 or not 0 < typical < math.inf:
            raise ConfigError(f"track: margin must be at least 1 and typical above 0, got {margin} and {typical}")
        self.margin, self.typical, self.config = margin, typical, config or TrackConfig()
        self.state = TrackState()

    @property
    def searching(self) -> bool:
        """Whether nobody is followed."""
        return self.state.box_4 is None

    def locate(self, width: int, height: int, proposal: Box | None = None) -> Place:
        """The box of a person whose pose is believed, else a steady proposal; without either, search: a proposal and the
        windows in turn.
        """
        config = self.config
        before_4 = self.state.proposal_4
        near = proposal is not None and before_4 is not None and _overlap(proposal, before_4) >= 0.5
        steady = self.state.steady + 1 if near else int(proposal is not None)
        state = self.state = replace(self.state, proposal_4=proposal, steady=steady)
        believed = (
            state.box_4 is not None and not state.missed and (proposal is None or self._is_supported(state.box_4))
        )
        if proposal is not None and steady >= config.steady and not believed:
            # Clothes like the wall behind them do not show: now and then somebody larger is looked for.
            factor = config.larger if steady > 3 * config.steady and steady % config.steady == 0 else 1.0
            return Place(_scaled(proposal, factor, width, height), "motion")
        if state.box_4 is not None:
            return Place(_scaled(state.box_4, 1 + config.wider * state.missed, width, height), "track")
        self.state = replace(state, proposed=proposal is not None and not state.proposed)
        if proposal is not None and self.state.proposed:
            return Place(proposal, "search")
        windows = search_windows(width, height, config.windows, self.margin)
        return Place(windows[state.looked % len(windows)], "search")

    def update(
        self, keypoints_J2: npt.NDArray[np.floating], scores_J: npt.NDArray[np.floating], place: Place,
        width: int, height: int, failure_probability: float = math.nan,
    ) -> bool:  # fmt: skip
        """Follow, find or lose the person. Frames on which a followed person is missed count as theirs."""
        state, config, confidence_J = self.state, self.config, scores_J / self.typical
        confidence = pose_confidence(confidence_J)
        seen_4 = (
            pose_box(keypoints_J2, confidence_J, config.joint, width, height) if confidence >= config.keep else None
        )
        wrong = failure_probability >= config.wrong  # not with NaN
        if place.source == "box":  # believed whatever the pose, and so is the person in it
            self.state = self._anew(seen_4 or _scaled(place.box_4, 1.0, width, height))
        elif place.source == "motion":
            # A larger view than the movement must have a better reason to be believed.
            wrong |= place.box_4 != state.proposal_4 and failure_probability >= config.sure
            believed_4 = seen_4 if confidence >= config.find and not wrong else None
            self.state = self._anew(believed_4, state.looked)
        elif place.source != "track":
            found_4 = seen_4 if confidence >= config.find else None
            self.state = self._searched(found_4, failure_probability, width, height)
        else:
            missed, box_4 = state.missed + 1, state.box_4
            if seen_4 is not None:
                missed = state.missed + config.doubt if confidence < config.find or wrong else 0.0
                # From where was looked, not from the box before it was widened: a view that works is kept.
                shrink = config.shrink * float((confidence_J >= config.joint).mean()) ** 2
                box_4 = _moved(place.box_4, seen_4, config.grow, shrink)
            self.state = replace(state, box_4=box_4, missed=missed) if missed < config.patience else self._anew(None)
        return place.source != "search" or self.state.box_4 is not None

    def _searched(self, found_4: Box | None, probability: float, width: int, height: int) -> TrackState:
        """What is known after one more window, in which ``found_4`` may be a person."""
        state, config = self.state, self.config
        if found_4 is not None:
            if not probability >= config.sure or self._is_supported(found_4):  # NaN says nothing against it
                return self._anew(found_4)
            if probability < min(state.best, config.wrong):
                state = replace(state, best_4=found_4, best=probability)
        if state.proposed:
            return state
        looked = state.looked + 1
        if looked % len(search_windows(width, height, config.windows, self.margin)):
            return replace(state, looked=looked)
        return self._anew(state.best_4, looked)

    def _anew(self, box_4: Box | None, looked: int = 0) -> TrackState:
        """A person who was just found, or nobody; what is known of proposals stays."""
        return TrackState(box_4, looked=looked, proposal_4=self.state.proposal_4, steady=self.state.steady)

    def _is_supported(self, box_4: Box) -> bool:
        """Whether the proposal says as well that somebody is there."""
        proposal_4 = self.state.proposal_4
        return proposal_4 is not None and _overlap(box_4, proposal_4) >= self.config.supported


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


def pose_confidence(scores_J: npt.NDArray[np.floating]) -> float:
    """The mean of the better half of the scores; 0 for scores that are not all finite."""
    half = -(-len(scores_J) // 2)
    best = float(np.sort(scores_J)[-half:].mean())  # NaN is sorted to the end, so it shows
    return best if math.isfinite(best) else 0.0


def typical_confidence(scores_GJ: npt.NDArray[np.floating]) -> float:
    """What :func:`pose_confidence` is for people: its median over the golden frames."""
    return max(float(np.median([pose_confidence(scores_J) for scores_J in scores_GJ])), 1e-3)


def pose_box(
    keypoints_J2: npt.NDArray[np.floating],
    confidence_J: npt.NDArray[np.floating],
    limit: float,
    width: int,
    height: int,
) -> Box | None:
    """The box around the better half of the joints and every other confident one, within the frame.

    None where these are not finite, or all in one place.
    """
    kept_J = confidence_J >= min(limit, float(np.sort(confidence_J)[len(confidence_J) // 2]))
    kept_K2 = keypoints_J2[kept_J]
    if not len(kept_K2) or not np.isfinite(kept_K2).all():
        return None
    low_2, high_2 = kept_K2.min(axis=0), kept_K2.max(axis=0)
    box_4 = _scaled((float(low_2[0]), float(low_2[1]), float(high_2[0]), float(high_2[1])), 1.0, width, height)
    return box_4 if max(box_4[2] - box_4[0], box_4[3] - box_4[1]) >= MIN_REGION_PX else None


def _moved(old_4: Box, new_4: Box, grow: float, shrink: float) -> Box:
    """Each side part of the way to its new place."""

    def side(old: float, new: float, outwards: bool) -> float:
        return old + (grow if outwards else shrink) * (new - old)

    x0, y0 = (side(old, new, new < old) for old, new in zip(old_4[:2], new_4[:2], strict=True))
    x1, y1 = (side(old, new, new > old) for old, new in zip(old_4[2:], new_4[2:], strict=True))
    return (x0, y0, x1, y1)


def _scaled(box_4: Box, factor: float, width: int, height: int) -> Box:
    """A box longer by a factor about its centre, and within the frame."""
    x0, y0, x1, y1 = box_4
    more_x, more_y = (factor - 1) * (x1 - x0) / 2, (factor - 1) * (y1 - y0) / 2

    def within(value: float, length: int) -> float:
        return min(max(value, 0.0), length - 1.0)

    return (within(x0 - more_x, width), within(y0 - more_y, height), within(x1 + more_x, width),
            within(y1 + more_y, height))  # fmt: skip


def _overlap(one_4: Box, other_4: Box) -> float:
    """Intersection over union."""
    wide = min(one_4[2], other_4[2]) - max(one_4[0], other_4[0])
    high = min(one_4[3], other_4[3]) - max(one_4[1], other_4[1])
    both = max(wide, 0.0) * max(high, 0.0)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one_4, other_4))
    return both / (areas - both) if areas > both else 0.0


def search_windows(width: int, height: int, shares: tuple[float, ...], margin: float) -> list[Box]:
    """Where to search: the whole frame, then squares that overlap by half or more, row by row."""
    windows = [_window((width - 1) / 2, (height - 1) / 2, max(width, height), margin)]
    for share in shares:
        side = share * min(width, height)
        windows += [_window(x, y, side, margin) for y in _centres(height, side) for x in _centres(width, side)]
    return windows


def _centres(length: int, side: float) -> list[float]:
    """Centres of windows from edge to edge, at most half a side apart."""
    steps = math.ceil((length - side) / (side / 2))
    first, last = (side - 1) / 2, length - (side + 1) / 2
    return [first + (last - first) * step / max(steps, 1) for step in range(steps + 1)]


def _window(x: float, y: float, side: float, margin: float) -> Box:
    """The box whose crop is the square of this side around (x, y)."""
    reach = side / margin / 2
    return (x - reach, y - reach, x + reach, y + reach)


# --- the direction of a body


class BodyAxis:
    """Which way the body of a stream's person points, by their last pose: for crops that turn with it.

    A turned crop makes the next pose, and that pose the next turn. So an axis is believed while the pose is: after a pose
    that is probably wrong the next crop is upright, and whatever axis its pose has is tried. A person elsewhere than before
    is another one, and upright too.

    Args:
        skeleton: one that has hips and shoulders.
    """

    SHORTEST = 0.1
    """Of the box's longer side: an axis that is shorter (a person who bends towards the camera) has no direction."""
    NEAR = 0.3
    """Intersection over union of two boxes that are of one person."""
    DOUBTFUL = 0.5
    """The failure probability from which a pose is not believed."""

    def __init__(self, skeleton: Skeleton) -> None:
        axis = body_axis(skeleton)
        if axis is None:
            raise ConfigError(f"skeleton {skeleton.name!r} has no hips and shoulders: crops cannot turn with the body")
        self._hips, self._shoulders = list(axis[0]), list(axis[1])
        self._turn: float | None = None
        self._box_4: Box | None = None

    def turn(self, box_4: Box) -> float | None:
        """The turn of the crop around this box, in radians; None where it is not known."""
        return self._turn if self._box_4 is not None and _overlap(box_4, self._box_4) >= self.NEAR else None

    def update(
        self, keypoints_J2: npt.NDArray[np.floating], box_4: Box, turn: float | None, failure_probability: float
    ) -> None:
        """Learn from a pose in frame pixels, whose crop around ``box_4`` had this turn. A NaN probability says nothing."""
        hips_2, shoulders_2 = (keypoints_J2[joints].mean(axis=0) for joints in (self._hips, self._shoulders))
        length = float(np.hypot(*(shoulders_2 - hips_2)))
        long_enough = length >= self.SHORTEST * max(box_4[2] - box_4[0], box_4[3] - box_4[1])  # not with NaN
        doubted = bool(turn) and failure_probability >= self.DOUBTFUL
        self._turn = body_turn(hips_2[None], shoulders_2[None]) if long_enough and not doubted else None
        self._box_4 = box_4


# --- streams


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One camera, or one person before it, and what is remembered of them."""

    name: str
    """As the app gave it; empty for the only one."""
    camera: str
    """As records have it: the Monitor's camera, then the name."""
    locator: Locator
    signals: Signals
    movement: Movement | None = None
    """Where somebody moves; None where nobody is searched for."""
    axis: BodyAxis | None = None
    """Which way the body points; None where crops do not turn."""

    def moved(self, frame: HostFrame | DeviceFrame) -> Box | None:
        """Where something moves on a frame; None where nothing does, or where it cannot be seen: frames on a GPU stay there."""
        if self.movement is None or not isinstance(frame, HostFrame):
            return None
        thumbnail_hw, step = frame.thumbnail(Movement.LONGEST)
        moved_4 = self.movement(thumbnail_hw)
        if moved_4 is None:
            return None
        x0, y0, x1, y1 = (value * step for value in moved_4)
        return (x0, y0, x1 + step - 1, y1 + step - 1)


class Streams:
    """All streams by name, each made when it is first seen.

    Args:
        bundle: its skeleton, margin and golden frames.
        camera: the Monitor's name of its camera.
        roi: a fixed region in which the person is.
        track: follow the person by their poses.
        counters: where forgotten streams are counted.

    Raises:
        ConfigError: the region is not one, or both are given.
    """

    def __init__(self, bundle: Bundle, camera: str, roi: Box | None, track: bool, counters: Counters) -> None:
        self._camera, self._skeleton, self._counters = camera, bundle.skeleton, counters
        self._new_locator, self._moving = _locators(bundle, roi, track), track
        self._turns = bundle.crop.kind == "turned"
        self._known: OrderedDict[str, Stream] = OrderedDict()

    def get(self, name: str) -> Stream:
        """The stream of this name; the one that was not seen for the longest time makes room for a new one."""
        stream = self._known.get(name)
        if stream is not None:
            self._known.move_to_end(name)
            return stream
        camera = "/".join(part for part in (self._camera, name) if part)
        if not is_name(camera):
            raise DataError(
                f"a stream's name, behind the camera's, has at most {MAX_NAME} printable letters, got {camera!r:.100}"
            )
        stream = self._known[name] = Stream(name, camera, self._new_locator(), Signals(self._skeleton),
                                            Movement() if self._moving else None,
                                            BodyAxis(self._skeleton) if self._turns else None)  # fmt: skip
        if len(self._known) > MOST_STREAMS:
            self._known.popitem(last=False)
            self._counters.add("forgotten_streams_total")
        return stream

    def forget(self, name: str) -> None:
        """Forget what belongs to a name that may now mean somebody else."""
        self._known.pop(name, None)


def _locators(bundle: Bundle, roi: Box | None, track: bool) -> Callable[[], Locator]:
    """What makes the locator of a new stream."""
    if not bundle.crop.around_person:
        if roi is not None or track:
            raise ConfigError(
                f"the net of {bundle.manifest.name!r} looks at the whole frame ({bundle.crop.kind}): there is nobody to follow "
                "and no region to look at; leave roi, track and detect out"
            )
        looking = WholeFrame(None)
        return lambda: looking
    margin = bundle.crop.margin
    if roi is not None and track:
        raise ConfigError("give roi= or track=True, not both: a person is in a fixed region, or is followed")
    if track:
        typical = typical_confidence(bundle.golden.expected.scores_NJ)
        return lambda: Tracker(margin=margin, typical=typical)
    fixed = WholeFrame(margin) if roi is None else FixedRegion(roi)
    return lambda: fixed


def largest(boxes: Any) -> Box | None:
    """The largest of the boxes that a detector gave, as :func:`read_boxes` reads them; None of none."""
    boxes_N4, _ = read_boxes(boxes)
    if not len(boxes_N4):
        return None
    x0, y0, x1, y1 = boxes_N4[int(np.argmax((boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1)))].tolist()
    if not (x0 < x1 and y0 < y1):
        raise DataError(f"a box of a person has an area, got {(x0, y0, x1, y1)}")
    return (x0, y0, x1, y1)


def given_place(box: Any, width: int, height: int) -> Place:
    """The app's box; :class:`DataError` where it is not four numbers, or lies outside the frame altogether."""
    try:
        x0, y0, x1, y1 = map(float, box)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"a box is the four numbers (x0, y0, x1, y1) in pixels, got {str(box)[:100]}") from None
    if _is_outside((x0, y0, x1, y1), width, height):
        raise DataError(
            f"box {(x0, y0, x1, y1)} lies outside the frame of {width} x {height} px: nobody can be seen in it"
        )
    return Place((x0, y0, x1, y1), "box")


def _is_outside(box_4: Box, width: int, height: int) -> bool:
    x0, y0, x1, y1 = box_4
    return x0 >= width or y0 >= height or x1 < 0 or y1 < 0
