"""A frame small enough to be one of thousands: a JPEG of what the model looked at, and its pose as vector paths.

Coordinates are those of SVG over the picture: edges, the first pixel reaches from 0 to 1. A record's are centres in the
frame: ``x = (frame_x - origin) / scale``, see :class:`alpose.runtime.queue.record.Picture`.

Shapes: J joints, H W picture.
"""

from __future__ import annotations

import base64
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from alpose.runtime import drawing
from alpose.runtime.errors import DataError
from alpose.runtime.queue import images
from alpose.runtime.queue.record import PictureInfo
from alpose.runtime.skeleton import Skeleton

from .inbox import Inbox
from .inbox_records import Entry

State = Literal["picture", "keypoints only", "sealed", "not fetched", "missing", "damaged"]
STATES: tuple[State, ...] = get_args(State)

LONG_SIDE, QUALITY = 240, 70
MARGIN = 1.3
"""Side of the square that is shown, in long sides of the box: a little more than the model looked at."""
LEAST_SIDE = 24.0
"""Pixels: a smaller box shows nothing."""
LEVELS = 5
"""Of faintness."""
SIDES = {drawing.LEFT: "l", drawing.RIGHT: "r", drawing.MIDDLE: "m"}

View = tuple[float, float, float, float]
"""(x, y, width, height)."""


@dataclass(frozen=True, slots=True)
class Stroke:
    """Links or joints that look alike."""

    style: str
    """``l``, ``r`` or ``m``: the person's left, right, middle; ``rim``: what keeps them visible on any ground."""
    level: int
    """1, where the model guesses, to :data:`LEVELS`, where it is sure."""
    joints: bool
    path: str
    """SVG path data; a joint is a stroke without length, whose round ends are seen."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """What is shown of one frame."""

    state: State
    source: str | None
    """Data URI, of ``view`` alone."""
    file: Path | None
    """The whole picture."""
    size: tuple[int, int]
    """Of the whole picture, or of the frame where there is none."""
    view: View
    box: str
    """Where the person was looked for: SVG path data."""
    strokes: tuple[Stroke, ...]


def thumbnail(inbox: Inbox, entry: Entry, skeleton: Skeleton | None) -> Thumbnail:
    """Make one; a picture that is not there or does not decode becomes a state, not an error.

    Args:
        inbox: where its picture is.
        entry: the record.
        skeleton: of its bundle; without one only joints are drawn.
    """
    record = entry.record
    fact = next((fact for fact in entry.pictures if fact.position == 0), None)
    rgb_HW3, state, file = _picture(inbox, entry, fact)
    if rgb_HW3 is None or fact is None:
        size, origin, scale = (record.frame_width, record.frame_height), (-0.5, -0.5), 1.0
    else:
        size, origin, scale = (rgb_HW3.shape[1], rgb_HW3.shape[0]), fact.origin, fact.scale
    keypoints_J2 = (record.keypoints_J2.astype(np.float64) - origin) / scale
    x0, y0, x1, y1 = ((value - origin[place % 2]) / scale for place, value in enumerate(record.box))
    box = f"M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}Z" if all(map(math.isfinite, (x0, y0, x1, y1))) else ""
    view = square((x0, y0, x1, y1), *size)
    return Thumbnail(
        state=state,
        source=None if rgb_HW3 is None else _data_uri(rgb_HW3, view),
        file=file,
        size=size,
        view=view,
        box=box,
        strokes=strokes(keypoints_J2, record.scores_J, skeleton),
    )


def square(box_4: tuple[float, float, float, float], width: int, height: int) -> View:
    """The square around a box, in whole pixels, moved and cut to lie in a picture; all of it where the box is none."""
    x0, y0, x1, y1 = box_4
    if not all(map(math.isfinite, box_4)) or x1 <= x0 or y1 <= y0:
        return (0, 0, width, height)
    side = max(MARGIN * max(x1 - x0, y1 - y0), LEAST_SIDE)
    x, across = _within((x0 + x1) / 2, side, width)
    y, down = _within((y0 + y1) / 2, side, height)
    return (x, y, across, down)


def _within(centre: float, side: float, length: int) -> tuple[int, int]:
    whole = min(math.ceil(min(side, length)), length)
    return round(min(max(centre - whole / 2, 0), length - whole)), whole


def strokes(
    keypoints_J2: npt.NDArray[np.floating], scores_J: npt.NDArray[np.floating], skeleton: Skeleton | None
) -> tuple[Stroke, ...]:
    """A pose as few paths, rims first, faintest first; a joint that is not finite is left out with its links."""
    known = skeleton is not None and len(skeleton) == len(scores_J)
    links = skeleton.links if skeleton is not None and known else ()
    sides = [SIDES[colour] for colour in drawing.side_colours(skeleton)] if skeleton is not None and known else None
    # Beyond a million pixels nothing is seen, and the numbers only make the page longer.
    drawn_J = (np.abs(np.nan_to_num(keypoints_J2, nan=np.inf)) < 1e6).all(axis=1)
    level_J = np.ceil(np.clip(np.nan_to_num(scores_J), drawing.UNSURE, 1.0) * LEVELS).astype(int)
    at = [f"{x:.1f} {y:.1f}" for x, y in keypoints_J2]
    paths: dict[tuple[bool, str, int], list[str]] = defaultdict(list)
    for a, b in links:
        if drawn_J[a] and drawn_J[b]:
            side = sides[a] if sides and sides[a] == sides[b] else "m"
            for style in ("rim", side):
                paths[False, style, min(level_J[a], level_J[b])].append(f"M{at[a]}L{at[b]}")
    for joint in np.flatnonzero(drawn_J):
        for style in ("rim", sides[joint] if sides else "m"):
            paths[True, style, level_J[joint]].append(f"M{at[joint]}h0")
    order = sorted(paths, key=lambda key: (key[0], key[1] != "rim", key[2]))
    return tuple(Stroke(style, int(level), joints, "".join(paths[joints, style, level]))
                 for joints, style, level in order)  # fmt: skip


def _picture(
    inbox: Inbox, entry: Entry, fact: PictureInfo | None
) -> tuple[npt.NDArray[np.uint8] | None, State, Path | None]:
    """Pixels, what became of them, and the file of an open picture."""
    if fact is None:
        return None, "keypoints only", None
    if not entry.fetched:
        return None, "not fetched", None
    id_ = entry.record.id
    file = inbox.image(id_)
    if file is None:
        stored = fact.sealed and inbox.picture_bytes(id_, fact) is not None
        return None, "sealed" if stored else "missing", None
    try:
        # What was opened here has no hash in its record: that is of the sealed box.
        data = file.read_bytes() if fact.sealed else inbox.picture_bytes(id_, fact)
        if data is None:
            return None, "damaged", None
        return images.decode(data), "picture", file
    except (OSError, DataError):
        return None, "damaged", None


def _data_uri(rgb_HW3: npt.NDArray[np.uint8], view: Sequence[float]) -> str:
    x, y, across, down = (int(value) for value in view)
    encoded = images.encode(rgb_HW3[y : y + down, x : x + across], images.JPEG, QUALITY, LONG_SIDE)
    return f"data:{encoded.media_type};base64,{base64.b64encode(encoded.data).decode()}"
