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
from ..crop import FARTHEST_PX, MIN_REGION_PX
from ..errors import ConfigError, DataError
from ..frames import DeviceFrame, HostFrame
from ..queue.fields import MAX_NAME, is_name
from ..signals import Signals
from ..telemetry.counters import Counters
from ..types import MOST_STREAMS
from .body_axis import BodyAxis
from .people import read_boxes
from .search import Box, Movement, overlap, search_windows, window

PlaceSource = Literal["box", "roi", "track", "motion", "search", "whole"]


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
        return Place(window((width - 1) / 2, (height - 1) / 2, max(width, height), self.margin), "whole")

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
        near = proposal is not None and before_4 is not None and overlap(proposal, before_4) >= 0.5
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
        return proposal_4 is not None and overlap(box_4, proposal_4) >= self.config.supported


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
