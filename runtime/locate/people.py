"""Who is who: the boxes of several people on a frame, and the names that they keep from frame to frame.

A box goes on with the person whose box it overlaps most, each moved on by the step that they made last. Greedy, largest
overlap first: with the few people of a frame that is what an optimal assignment gives, except where they stand in each
other's place, where nobody's box tells who is who.

Two limits on a detector's score keep names steady: a box of a middling score carries a person on and makes no new one. A
person who is not seen for a while keeps their name; after that it is free, and the next person gets the lowest free number.
So names are few, as everything that is remembered by name is bounded.

Shapes: N boxes, P known people; boxes are (x0, y0, x1, y1) in frame pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..crop import FARTHEST_PX
from ..errors import ConfigError, DataError

MOST_PEOPLE = 32
"""On one frame; a detector that sees more is believed in the ones with the highest scores."""
MOST_KNOWN = 64
"""People whose names are kept: beyond it who is not seen any more is forgotten sooner."""
MOST_OVERLAP = 0.6
"""Intersection over union of two boxes of a net that are two people's; beyond it the one with the higher score stands for both."""
FORM = "people are boxes (N, 4) as x0, y0, x1, y1 in pixels, also with a score each: (N, 5), or boxes and scores"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeopleConfig:
    """When a box is a person, and when two boxes are one person's."""

    near: float = 0.3
    """Intersection over union from which a box may be a known person's."""
    find: float = 0.5
    """Score from which a box is a new person; boxes without scores are."""
    keep: float = 0.3
    """Score from which a box carries a known person on."""
    patience: int = 15
    """Frames that a name is kept for somebody who is not seen."""
    steady: float = 0.5
    """How much of a person's step between two frames is the one before it."""

    def __post_init__(self) -> None:
        if (
            not 0 < self.near < 1
            or not 0 <= self.keep <= self.find <= 1
            or self.patience < 0
            or not 0 <= self.steady < 1
        ):
            raise ConfigError(
                f"people: near in (0, 1), 0 <= keep <= find <= 1, patience >= 0 and steady in [0, 1), got {self}"
            )


@dataclass(frozen=True, slots=True)
class Person:
    """What is known of one person."""

    box_4: tuple[float, float, float, float]
    """Where they were seen last."""
    step_2: tuple[float, float] = (0.0, 0.0)
    """Of the box's centre from one frame to the next."""
    missed: int = 0
    """Frames since then."""

    def expected(self) -> npt.NDArray[np.float64]:
        """Their box on the next frame, if they go on as before."""
        ahead = self.missed + 1
        return np.array(self.box_4) + ahead * np.array([*self.step_2, *self.step_2])


@dataclass(frozen=True, slots=True)
class Seen:
    """Who is on a frame."""

    rows: tuple[int, ...]
    """The boxes that are people, by their row, rising."""
    names: tuple[str, ...]
    """Of each."""
    gone: tuple[str, ...]
    """Whose names are free again."""


class People:
    """Names for boxes, frame after frame.

    Args:
        config: limits.
    """

    def __init__(self, config: PeopleConfig | None = None) -> None:
        self.config = config or PeopleConfig()
        self.known: dict[int, Person] = {}
        """By number."""

    def see(self, boxes_N4: npt.NDArray[np.floating], scores_N: npt.NDArray[np.floating] | None = None) -> Seen:
        """Name the boxes of the next frame.

        Args:
            boxes_N4: each with x0 <= x1 and y0 <= y1.
            scores_N: 0 to 1; None: every box is a person.
        """
        config = self.config
        certain_N = np.ones(len(boxes_N4)) if scores_N is None else np.asarray(scores_N, dtype=np.float64)
        numbers = list(self.known)
        expected_P4 = np.array([self.known[number].expected() for number in numbers]).reshape(-1, 4)
        owner: dict[int, int] = {}
        likeness_NP = np.where(certain_N[:, None] >= config.keep, overlaps(boxes_N4, expected_P4), 0)
        for row, place in match(likeness_NP, config.near):
            owner[row] = numbers[place]
        for number in set(numbers) - set(owner.values()):
            self.known[number] = replace(self.known[number], missed=self.known[number].missed + 1)
        new = sum(row not in owner and certain_N[row] >= config.find for row in range(len(boxes_N4)))
        missing = sorted((n for n, person in self.known.items() if person.missed), key=lambda n: -self.known[n].missed)
        many = max(len(self.known) + new - MOST_KNOWN, 0)
        gone = [number for place, number in enumerate(missing)
                if place < many or self.known[number].missed > config.patience]  # fmt: skip
        for number in gone:
            del self.known[number]
        for row in range(len(boxes_N4)):
            if row not in owner and certain_N[row] >= config.find:
                owner[row] = next(n for n in range(1, len(self.known) + 2) if n not in self.known)
                self.known[owner[row]] = Person(_box(boxes_N4[row]))
            elif row in owner:
                self.known[owner[row]] = self._moved(self.known[owner[row]], _box(boxes_N4[row]))
        rows = tuple(sorted(owner))
        return Seen(rows, tuple(f"person-{owner[row]}" for row in rows), tuple(f"person-{number}" for number in gone))

    def _moved(self, person: Person, box_4: tuple[float, float, float, float]) -> Person:
        old, new = person.box_4, box_4
        share, frames = self.config.steady, person.missed + 1
        step_2 = tuple(
            share * person.step_2[axis]
            + (1 - share) * (new[axis] + new[axis + 2] - old[axis] - old[axis + 2]) / 2 / frames
            for axis in (0, 1)
        )
        return Person(box_4, (step_2[0], step_2[1]))


def overlaps(one_N4: npt.NDArray[np.floating], other_P4: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Intersection over union of every pair of boxes, (N, P)."""
    one_N14, other_P4 = np.asarray(one_N4, dtype=np.float64)[:, None], np.asarray(other_P4, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # a box that is not finite overlaps none
        low_NP2 = np.maximum(one_N14[..., :2], other_P4[:, :2])
        high_NP2 = np.minimum(one_N14[..., 2:], other_P4[:, 2:])
        both_NP = np.maximum(high_NP2 - low_NP2, 0).prod(axis=2)
        areas_NP = (one_N14[..., 2:] - one_N14[..., :2]).prod(axis=2) + (other_P4[:, 2:] - other_P4[:, :2]).prod(axis=1)
        return np.asarray(both_NP / np.maximum(areas_NP - both_NP, 1e-9))


def apart(boxes_N4: npt.NDArray[np.floating], overlap: float) -> list[int]:
    """Of boxes in the order of their scores those that overlap none before them by more than ``overlap``: NMS."""
    overlap_NN = overlaps(boxes_N4, boxes_N4)
    chosen: list[int] = []
    for row in range(len(boxes_N4)):
        if not (overlap_NN[row, chosen] > overlap).any():
            chosen.append(row)
    return chosen


def match(likeness_NP: npt.NDArray[np.floating], least: float) -> list[tuple[int, int]]:
    """Pairs of row and column, each in one pair at most, greedily from the most alike down to ``least``."""
    pairs: list[tuple[int, int]] = []
    rows: set[int] = set()
    columns: set[int] = set()
    for place in np.argsort(-likeness_NP, axis=None, kind="stable").tolist():
        row, column = divmod(place, likeness_NP.shape[1])
        if likeness_NP[row, column] < least:
            break
        if row not in rows and column not in columns:
            pairs.append((row, column))
            rows.add(row)
            columns.add(column)
    return pairs


def read_boxes(found: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
    """What an app gave, as boxes (N, 4) and scores (N,) or None: its own choice, so that a bad box is its mistake.

    Args:
        found: as :func:`as_boxes` takes it.

    Raises:
        DataError: it is no boxes, or a box or score is not finite, or a box has its corners the wrong way round.
    """
    boxes_N4, scores_N = as_boxes(found)
    sound_N = (np.abs(boxes_N4) <= FARTHEST_PX).all(axis=1) & (boxes_N4[:, :2] <= boxes_N4[:, 2:]).all(axis=1)
    if scores_N is not None:
        sound_N &= np.isfinite(scores_N)
    if not sound_N.all():
        row = int(np.argmin(sound_N))
        score = "" if scores_N is None else f" with the score {scores_N[row]}"
        raise DataError(f"{FORM}; box {row} is {boxes_N4[row].tolist()}{score}")
    return boxes_N4, scores_N


def as_boxes(found: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
    """What a detector or an app gave, as boxes (N, 4) and scores (N,) or None. Their numbers are not looked at.

    Args:
        found: boxes (N, 4), or with their scores (N, 5); or a pair of boxes (N, 4) and scores (N,); one box (4,) or (5,);
            None for nobody.

    Raises:
        DataError: it is none of these.
    """
    scores: Any = None
    if found is None or (isinstance(found, (list, np.ndarray)) and len(found) == 0):
        return np.empty((0, 4)), None
    try:
        if isinstance(found, tuple) and len(found) == 2 and np.ndim(found[1]) == 1 and np.ndim(found[0]) == 2:
            found, scores = found
        boxes_N4 = np.asarray(found, dtype=np.float64)
        if boxes_N4.shape in ((4,), (5,)):
            boxes_N4 = boxes_N4[None]
        if boxes_N4.ndim == 2 and boxes_N4.shape[1] == 5:
            boxes_N4, scores = boxes_N4[:, :4], boxes_N4[:, 4]
        scores_N = None if scores is None else np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{FORM}; got {str(found)[:100]}") from None
    if boxes_N4.size == 0:
        return np.empty((0, 4)), None
    fits = boxes_N4.ndim == 2 and boxes_N4.shape[1] == 4 and (scores_N is None or scores_N.shape == boxes_N4.shape[:1])
    if not fits:
        raise DataError(f"{FORM}; got shapes {boxes_N4.shape} and {None if scores_N is None else scores_N.shape}")
    return boxes_N4, scores_N


@dataclass(frozen=True, slots=True)
class Believed:
    """Which boxes of a detector can be people."""

    rows_M: npt.NDArray[np.intp]
    """Rising."""
    dropped: dict[str, int]
    """How many of the others there are, by reason; one that has several is counted under the first. ``not_finite``: a number
    of the box or its score is NaN or infinite. ``empty``: it has no area, or its corners are the wrong way round.
    ``outside``: it lies outside the frame. ``many``: there are more than :data:`MOST_PEOPLE`."""


def believed(
    boxes_N4: npt.NDArray[np.float64], scores_N: npt.NDArray[np.float64] | None, width: int, height: int
) -> Believed:
    """The boxes of a detector that can be people on a frame: each is judged by itself, so that a bad one costs nobody else.

    At most :data:`MOST_PEOPLE` are kept, the highest scores or else the largest first.
    """
    finite_N = np.array(np.isfinite(boxes_N4).all(axis=1))
    if scores_N is not None:
        finite_N &= np.isfinite(scores_N)
    area_N = (boxes_N4[:, :2] < boxes_N4[:, 2:]).all(axis=1)
    inside_N = ((boxes_N4[:, :2] < [width, height]) & (boxes_N4[:, 2:] >= 0)).all(axis=1)
    inside_N &= (np.abs(boxes_N4) <= FARTHEST_PX).all(axis=1)  # beyond it nothing is cut
    rows_M = np.flatnonzero(finite_N & area_N & inside_N)
    rank_M = (boxes_N4[rows_M, 2:] - boxes_N4[rows_M, :2]).prod(axis=1) if scores_N is None else scores_N[rows_M]
    best_M = rows_M[np.argsort(-rank_M, kind="stable")][:MOST_PEOPLE]
    dropped = {
        "not_finite": int((~finite_N).sum()),
        "empty": int((finite_N & ~area_N).sum()),
        "outside": int((finite_N & area_N & ~inside_N).sum()),
        "many": len(rows_M) - len(best_M),
    }
    return Believed(np.sort(best_M), {reason: count for reason, count in dropped.items() if count})


def _box(box_4: Sequence[float] | npt.NDArray[np.floating]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box_4)
    return (x0, y0, x1, y1)
