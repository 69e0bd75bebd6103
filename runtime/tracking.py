"""Where the person is on a frame before the net has looked at it, and what is remembered of each stream between frames.

A :class:`Locator` gives a :class:`Place` before the one forward of a frame, and is told the pose after it. The box of a
place is tight around the person, as boxes of labels are; the net sees a square of its longer side times the bundle's
margin.

:class:`Tracker` needs no detector. While a person is followed, the box is the one that their last pose implies; without
one, the frame is searched with one window per frame, until a pose is confident enough to be a person.

*How confident a pose is*: the mean of the better half of its scores, over the same number on the bundle's golden frames.
The better half, because a person whose legs are hidden is a person; over the golden frames, because nets differ in how
high their scores get. A net gives a pose for an empty room too, with lower scores, but not with zeros: a small net trained
on LSP with 0.2 to 0.45 where people had 0.4 to 0.9.

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

from .bundle import Bundle
from .crop import FARTHEST_PX, MIN_REGION_PX
from .errors import ConfigError, DataError
from .queue.record import MAX_NAME, is_name
from .signals import Signals
from .stats import Counters

Box = tuple[float, float, float, float]
PlaceSource = Literal["box", "roi", "track", "search", "whole"]

MOST_STREAMS = 64
"""Streams that are remembered: names are few. An app that gives every passer-by a new one loses the oldest, counted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look on one frame."""

    box_4: Box
    """Tight around the person, before the bundle's margin."""
    source: PlaceSource
    """``box``: the app gave it; ``roi``: fixed; ``track``: from the last pose; ``search``: a search window, as nobody is
    known to be there; ``whole``: the whole frame, because nothing else was asked for."""


class Locator(Protocol):
    """Says where the person is on the frames of one stream."""

    def locate(self, width: int, height: int) -> Place:
        """Where to look on the next frame, of this size in pixels."""

    def update(
        self, keypoints_J2: npt.NDArray[np.floating], scores_J: npt.NDArray[np.floating], place: Place,
        width: int, height: int,
    ) -> bool:  # fmt: skip
        """Learn what was found there: joints in frame pixels and their scores.

        Returns:
            Whether a person is there whose pose can be right or wrong. False for a search that found nobody.
        """


@dataclass(frozen=True, slots=True)
class WholeFrame:
    """Looks at the whole frame, each time; takes it that a person is there."""

    margin: float = 1.0
    """The bundle's."""

    def locate(self, width: int, height: int) -> Place:
        """The box whose crop has the frame's longer side."""
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
        except (TypeError, ValueError):
            values = np.empty(0)  # the message follows
        near = values.shape == (4,) and bool((np.abs(values) <= FARTHEST_PX).all())  # not with NaN
        if not near or not (values[:2] < values[2:]).all():
            raise ConfigError(f"a roi is (x0, y0, x1, y1) in pixels with x0 < x1 and y0 < y1, got {self.roi!r:.100}")

    def locate(self, width: int, height: int) -> Place:
        """The region; :class:`ConfigError` where it lies outside the frame altogether."""
        x0, y0, x1, y1 = self.roi
        if x0 >= width or y0 >= height or x1 < 0 or y1 < 0:
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
    wider: float = 0.1
    """How much longer the box gets for each missed frame: a person who is missed has moved, or the box is too tight."""
    windows: tuple[float, ...] = (1.0, 0.67)
    """Sides of the search windows over the shorter side of the frame, after the window of the whole frame. They lie
    within it: a net sees more people in black bars than in any furniture."""

    def __post_init__(self) -> None:
        shares = (self.find, self.keep, self.doubt, self.joint, self.shrink, self.grow, *self.windows)
        if not all(0 < value <= 1 for value in shares) or self.keep > self.find:
            raise ConfigError(f"track: all shares must be in (0, 1] and keep at most find, got {self}")
        if not self.patience >= 1 or not 0 <= self.wider <= 1:
            raise ConfigError(f"track: patience must be at least 1 and wider in [0, 1], got {self}")


@dataclass(frozen=True, slots=True)
class TrackState:
    """What a :class:`Tracker` remembers."""

    box_4: Box | None = None
    """The person's; None while searching."""
    missed: float = 0.0
    """Frames without a confident pose, in a row."""
    looked: int = 0
    """Search windows since the person was lost."""


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

    def locate(self, width: int, height: int) -> Place:
        """The followed person's box, or the next search window."""
        state, config = self.state, self.config
        if state.box_4 is not None:
            return Place(_scaled(state.box_4, 1 + config.wider * state.missed, width, height), "track")
        windows = search_windows(width, height, config.windows, self.margin)
        return Place(windows[state.looked % len(windows)], "search")

    def update(
        self, keypoints_J2: npt.NDArray[np.floating], scores_J: npt.NDArray[np.floating], place: Place,
        width: int, height: int,
    ) -> bool:  # fmt: skip
        """Follow, find or lose the person. Frames on which a followed person is missed count as theirs."""
        state, config, confidence_J = self.state, self.config, scores_J / self.typical
        confidence = pose_confidence(confidence_J)
        seen_4 = (
            pose_box(keypoints_J2, confidence_J, config.joint, width, height) if confidence >= config.keep else None
        )
        if place.source == "box":  # believed whatever the pose, and so is the person in it
            self.state = TrackState(seen_4 or _scaled(place.box_4, 1.0, width, height))
        elif place.source != "track":
            found = seen_4 and confidence >= config.find
            self.state = TrackState(seen_4) if found else replace(state, looked=state.looked + 1)
        else:
            missed, box_4 = state.missed + 1, state.box_4
            if seen_4 is not None:
                missed = state.missed + config.doubt if confidence < config.find else 0.0
                # From where was looked, not from the box before it was widened: a view that works is kept.
                shrink = config.shrink * float((confidence_J >= config.joint).mean()) ** 2
                box_4 = _moved(place.box_4, seen_4, config.grow, shrink)
            self.state = TrackState(box_4, missed) if missed < config.patience else TrackState()
        return place.source != "search" or self.state.box_4 is not None


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
        self._new_locator = _locators(bundle, roi, track)
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
        stream = self._known[name] = Stream(name, camera, self._new_locator(), Signals(self._skeleton))
        if len(self._known) > MOST_STREAMS:
            self._known.popitem(last=False)
            self._counters.add("forgotten_streams_total")
        return stream


def _locators(bundle: Bundle, roi: Box | None, track: bool) -> Callable[[], Locator]:
    """What makes the locator of a new stream."""
    margin = bundle.crop.margin
    if roi is not None and track:
        raise ConfigError("give roi= or track=True, not both: a person is in a fixed region, or is followed")
    if track:
        typical = typical_confidence(bundle.golden.expected.scores_NJ)
        return lambda: Tracker(margin=margin, typical=typical)
    fixed = WholeFrame(margin) if roi is None else FixedRegion(roi)
    return lambda: fixed


def given_place(box: Any) -> Place:
    """The app's box; that it is one is checked when its crop is made."""
    try:
        x0, y0, x1, y1 = map(float, box)
    except (TypeError, ValueError):
        raise DataError(f"a box is the four numbers (x0, y0, x1, y1) in pixels, got {str(box)[:100]}") from None
    return Place((x0, y0, x1, y1), "box")
