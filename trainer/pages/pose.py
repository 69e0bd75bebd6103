"""A pose as SVG path data, the one way in which pages draw people.

Coordinates are SVG's: the first pixel reaches from 0 to 1, and its centre is 0.5. A joint is a stroke without length,
whose round ends are seen.

Shapes: J joints.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpose.runtime import drawing
from alpose.runtime.skeleton import Skeleton

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]
Links = Sequence[tuple[int, int]]

LEVELS = 5
"""Steps of faintness in which the score of a joint is shown."""
SIDES = {drawing.LEFT: "l", drawing.RIGHT: "r", drawing.MIDDLE: "m"}
FAR = 1e6
"""Beyond a million pixels nothing is seen, and the numbers only make a page longer."""

PLACES: Mapping[str, tuple[float, float]] = {
    "head_top": (0, 0), "nose": (0, 13), "eye": (6.5, 4), "ear": (15, 8), "upper_neck": (0, 20), "neck": (0, 24),
    "thorax": (0, 31), "pelvis": (0, 66), "shoulder": (16, 28), "elbow": (25, 46), "wrist": (30, 64), "hip": (11, 66),
    "knee": (12, 92), "ankle": (13, 118),
}  # fmt: skip
"""Where joints lie on a person who faces the reader: right and down from the top of the head; the left side of the body
is on the reader's right."""


@dataclass(frozen=True, slots=True)
class Pose:
    """Path data of one pose."""

    links: str
    joints: str


@dataclass(frozen=True, slots=True)
class Stroke:
    """Links or joints that look alike."""

    style: str
    """``l``, ``r`` or ``m``: the person's left, right, middle; ``rim``: what keeps them visible on any ground."""
    level: int
    """1, where the model guesses, to :data:`LEVELS`, where it is sure."""
    joints: bool
    path: str


@dataclass(frozen=True, slots=True)
class Diagram:
    """A skeleton as a drawing; joint ``j`` lies at ``points[j]``."""

    view: tuple[float, float, float, float]
    """Left, top, width and height of the drawing."""
    points: tuple[tuple[float, float], ...]
    links: str
    standing: bool
    """False: the joints' names are not known, and they stand on a circle."""


def pose(points_J2: Floats, drawn_J: Bools, links: Links) -> Pose:
    """The joints that are marked and finite, and the links between them."""
    shown_J = drawn_J & _drawable(points_J2)
    at = [_at(x, y) for x, y in points_J2]
    return Pose(
        "".join(f"M{at[a]}L{at[b]}" for a, b in links if shown_J[a] and shown_J[b]),
        "".join(f"M{at[joint]}h0" for joint in np.flatnonzero(shown_J)),
    )


def strokes(points_J2: Floats, scores_J: Floats, skeleton: Skeleton | None) -> tuple[Stroke, ...]:
    """A pose by side and certainty as few paths, rims first, faintest first.

    A joint that is not finite is left out with its links. Without a skeleton of as many joints only joints are drawn.
    """
    known = skeleton if skeleton is not None and len(skeleton) == len(scores_J) else None
    sides = [SIDES[colour] for colour in drawing.side_colours(known)] if known else ["m"] * len(scores_J)
    drawn_J = _drawable(points_J2)
    level_J = np.ceil(np.clip(np.nan_to_num(scores_J), drawing.UNSURE, 1.0) * LEVELS).astype(int)
    at = [_at(x, y) for x, y in points_J2]
    paths: dict[tuple[bool, str, int], list[str]] = defaultdict(list)
    for a, b in known.links if known else ():
        if drawn_J[a] and drawn_J[b]:
            for style in ("rim", sides[a] if sides[a] == sides[b] else "m"):
                paths[False, style, min(level_J[a], level_J[b])].append(f"M{at[a]}L{at[b]}")
    for joint in np.flatnonzero(drawn_J):
        for style in ("rim", sides[joint]):
            paths[True, style, level_J[joint]].append(f"M{at[joint]}h0")
    order = sorted(paths, key=lambda key: (key[0], key[1] != "rim", key[2]))
    return tuple(Stroke(style, int(level), joints, "".join(paths[joints, style, level]))
                 for joints, style, level in order)  # fmt: skip


def diagram(skeleton: Skeleton) -> Diagram:
    """The joints on a standing person where all names are known, otherwise on a circle."""
    places = [place for joint in skeleton.joints if (place := _standing(joint)) is not None]
    standing = len(places) == len(skeleton)
    if not standing:
        turns = [2 * math.pi * place / len(skeleton) for place in range(len(skeleton))]
        places = [(50 * math.sin(turn), -50 * math.cos(turn)) for turn in turns]
    low_x, low_y = (min(place[axis] for place in places) - 9 for axis in (0, 1))
    width, height = (max(place[axis] for place in places) + 9 - low for axis, low in ((0, low_x), (1, low_y)))
    drawn = pose(np.array(places), np.ones(len(places), dtype=np.bool_), skeleton.links)
    return Diagram((low_x, low_y, width, height), tuple(places), drawn.links, standing)


def _standing(joint: str) -> tuple[float, float] | None:
    """Where a joint of this name lies; None for a name that is not known."""
    side = -1.0 if joint.startswith("right_") else 1.0
    found = PLACES.get(joint.removeprefix("right_").removeprefix("left_"))
    return None if found is None else (side * found[0], found[1])


def _drawable(points_J2: Floats) -> Bools:
    return np.asarray((np.abs(np.nan_to_num(points_J2, nan=np.inf)) < FAR).all(axis=1), dtype=np.bool_)


def _at(x: float, y: float) -> str:
    return f"{x:.1f} {y:.1f}"
