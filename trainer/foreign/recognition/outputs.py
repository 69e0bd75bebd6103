"""What a net's outputs could be, by their shapes: heatmaps, SimCC distributions, points, candidates of a detector.

Pure functions of names and shapes. A shape is that of one image, its batch axis left out.

Letters: J joints, H W the input's height and width, h w a map's, K numbers of a point, A candidates, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from alpose.runtime.known_skeletons import KNOWN

from ..spec import Column, Decoding

Shape = tuple[int, ...]

MOST_JOINTS = 1000
LONGEST_POINT = 5
STRIDES = (8, 16, 32, 64)
"""Of the grids of YOLO's candidates."""
KNOWN_COUNTS = frozenset(len(skeleton) for skeleton in KNOWN.values())
FEWEST_BINS, FEWEST_BINS_LOOSE = 0.5, 1 / 32
"""Of a SimCC distribution per pixel of the input: as its shape tells, and where it is stated."""
MOST_MULTIPOSE = 32
"""Rows of MoveNet MultiPose, which has six."""
MOST_END_TO_END = 1000
"""More rows than this have not been through NMS."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to read some of the outputs."""

    kind: Decoding
    outputs: tuple[str, ...]
    joints: int
    channels_last: bool = False
    numbers: int = 0
    """Of a point, where the outputs are points."""
    sure: bool = False
    """Nothing else has this shape."""
    box_last: bool = False
    """See :class:`~.spec.NetDecoder`."""
    doubt: str = ""
    """Why it is a guess, where it is one."""

    def __str__(self) -> str:
        numbers = f" x {self.numbers} numbers" if self.numbers else ""
        return f"{self.kind} in {', '.join(self.outputs)} ({self.joints} joints{numbers})"


def candidates(
    outputs: Mapping[str, Shape],
    size: tuple[int, int],
    counts: Collection[int] = (),
    point_shape: tuple[int, int] | None = None,
    loose: Collection[Decoding] = (),
) -> list[Candidate]:
    """Every way to read outputs of these shapes.

    Args:
        outputs: shapes by name.
        size: (height, width) of the input.
        counts: of joints that the net may have, beside those of the known skeletons and of its own maps.
        point_shape: joints and numbers of a point, where a detector's file states them.
        loose: kinds that are read although their shapes do not tell them: heatmaps of another aspect than the input's, SimCC
            with fewer bins than half the input's pixels or another share of them along x than along y, and rows of a detector
            that may be something else.
    """
    counted = KNOWN_COUNTS | set(counts)
    maps = [one for name, shape in outputs.items()
            for one in _heatmaps(name, shape, size) or (_placed_maps(name, shape, counted) if "heatmaps" in loose else [])]  # fmt: skip
    likely = KNOWN_COUNTS | set(counts) | {one.joints for one in maps if one.joints > 4}
    points = [one for name, shape in outputs.items() for one in _points(name, shape, likely)]
    people = [one for name, shape in outputs.items() if not any(name in other.outputs for other in maps)
              for one in _yolo(name, shape, size, likely, point_shape)]  # fmt: skip
    if "yolo" not in loose and not point_shape:
        # Distributions over few bins, or joints that something is said of, can look like the rows of a detector.
        pairs = {name for one in _simcc(outputs, size, loose=True) for name in one.outputs}
        people = [
            one for one in people if one.sure or not ({*one.outputs} & pairs or outputs[one.outputs[0]][-2] in counted)
        ]
    people += [one for name, shape in outputs.items() for one in _multipose(name, shape, likely)]
    return [*_simcc(outputs, size, "simcc" in loose), *_boxes_and_points(outputs), *maps, *points, *people]


def same_aspect(cells: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a map of (h, w) cells is an input of (H, W) at a lower resolution: one stride along both axes, rounded up."""
    stride_y, stride_x = size[0] / cells[0], size[1] / cells[1]
    if min(stride_x, stride_y) < 0.99:
        return False
    stride = round(max(stride_x, stride_y))
    return all(cell in (length // stride, -(-length // stride)) for cell, length in zip(cells, size, strict=True))


def _heatmaps(name: str, shape: Shape, size: tuple[int, int]) -> list[Candidate]:
    if len(shape) != 3:
        return []
    first, last = shape[0], shape[2]
    if sum(axis > 1 for axis in shape) < 3:  # of one joint, or a mask
        one = next((cells for cells, joints in ((shape[1:], first), (shape[:2], last)) if joints == 1), shape[:2])
        if min(one) < 8 or not same_aspect((one[0], one[1]), size):
            return []
        doubt = "a single map: of one joint, or a mask"
        return [Candidate("heatmaps", (name,), 1, channels_last=first != 1, doubt=doubt)]
    found = []
    if first <= MOST_JOINTS and min(shape[1:]) >= 8 and same_aspect((shape[1], shape[2]), size):
        found.append(Candidate("heatmaps", (name,), first))
    if last <= MOST_JOINTS and min(shape[:2]) >= 8 and same_aspect((shape[0], shape[1]), size):
        found.append(Candidate("heatmaps", (name,), last, channels_last=True))
    if len(found) == 2:  # as many joints as cells: channels come first unless only the other count is a skeleton's
        return [found[1]] if last in KNOWN_COUNTS and first not in KNOWN_COUNTS else [found[0]]
    return found


def _placed_maps(name: str, shape: Shape, counts: Collection[int]) -> list[Candidate]:
    """Maps that lie on the input in a way of their own, as stride and offset state it."""
    if len(shape) != 3 or min(shape) < 4:
        return []
    last = shape[2] in counts and shape[0] not in counts
    return [Candidate("heatmaps", (name,), shape[2] if last else shape[0], channels_last=last)]


def _points(name: str, shape: Shape, counts: Collection[int]) -> list[Candidate]:
    """(J, K), (1, J, K), or J x K in one row."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    while len(shape) > 2 and shape[-1] == 1:  # (J x K, 1, 1)
        shape = shape[:-1]
    if len(shape) == 2 and shape[1] == 1:
        shape = shape[:1]
    if len(shape) == 2 and 2 <= shape[1] <= LONGEST_POINT and shape[0] <= MOST_JOINTS:
        return [Candidate("keypoints", (name,), shape[0], numbers=shape[1])]
    if len(shape) != 1 or shape[0] < 8:
        return []
    return [
        Candidate("keypoints", (name,), shape[0] // numbers, numbers=numbers)
        for numbers in range(2, LONGEST_POINT + 1)
        if shape[0] % numbers == 0 and shape[0] // numbers in counts
    ]


def _yolo(
    name: str, shape: Shape, size: tuple[int, int], counts: Collection[int], point_shape: tuple[int, int] | None
) -> list[Candidate]:
    """(K, A) or (A, K) with box, score, perhaps a class, and the points."""
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2:
        return []
    found = []
    grids = {anchors(size, STRIDES[:3]), anchors(size, STRIDES)}
    for columns, rows in (shape, shape[::-1]):
        raw = rows in grids
        if point_shape and (raw or 10 <= rows <= MOST_END_TO_END) and columns > 4 + math.prod(point_shape):
            return [Candidate("yolo", (name,), point_shape[0], numbers=point_shape[1], sure=raw)]
        ended = (columns, rows) == shape[::-1] and 10 <= rows <= MOST_END_TO_END
        for extra in (5, 6) if ended else (5,):
            if not (raw or ended):
                continue
            for numbers in (3, 2):
                joints, rest = divmod(columns - extra, numbers)
                if rest == 0 and joints >= 1 and (raw or joints in counts):
                    doubt = "" if raw else f"{rows} rows of {columns} numbers, as a detector gives them after NMS"
                    found.append(Candidate("yolo", (name,), joints, numbers=numbers, sure=raw, doubt=doubt))
                    break
    return found[:1]


def _multipose(name: str, shape: Shape, counts: Collection[int]) -> list[Candidate]:
    """A few rows of (y, x, score) for each joint, then y0, x0, y1, x1 and score of the box."""
    if len(shape) != 2 or not 1 < shape[0] <= MOST_MULTIPOSE or shape[1] <= 8:
        return []
    joints, rest = divmod(shape[1] - 5, 3)
    return [Candidate("yolo", (name,), joints, numbers=3, box_last=True)] if rest == 0 and joints in counts else []


def anchors(size: tuple[int, int], strides: tuple[int, ...]) -> int:
    """Candidates of a net with one for every cell of its grids."""
    return sum(math.ceil(size[0] / stride) * math.ceil(size[1] / stride) for stride in strides)


def _simcc(outputs: Mapping[str, Shape], size: tuple[int, int], loose: bool) -> list[Candidate]:
    """Two distributions a joint, over W x k and H x k bins; ``loose``: over any bins."""
    rows = {name: shape for name, shape in outputs.items() if len(shape) == 2 and shape[0] <= MOST_JOINTS}
    found = []
    fewest = FEWEST_BINS_LOOSE if loose else FEWEST_BINS
    names = list(rows)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if rows[first][0] != rows[second][0]:
                continue
            both, even = [], []
            for x, y in ((first, second), (second, first)):
                per_x, per_y = rows[x][1] / size[1], rows[y][1] / size[0]
                if (
                    min(per_x, per_y) >= fewest
                    and max(per_x, per_y) <= 8
                    and min(rows[x][1], rows[y][1]) > LONGEST_POINT
                ):
                    both.append(Candidate("simcc", (x, y), rows[x][0], sure=True))
                    if abs(per_x - per_y) < 0.01:
                        even.append(both[-1])
            pairs = even or (both if loose else [])
            if len(pairs) == 2:  # a square input, or lengths of any kind: names tell, or the order
                pairs = [
                    one for one in pairs if _is_axis(one.outputs[0], "x") or _is_axis(one.outputs[1], "y")
                ] or pairs
            found += pairs[:1]
    return found


def _is_axis(name: str, axis: str) -> bool:
    return name.lower().rstrip("0123456789:").endswith(axis)


def _boxes_and_points(outputs: Mapping[str, Shape]) -> list[Candidate]:
    """Boxes (A, 5) and points (A, J, K) of the same people."""
    found = []
    for boxes, box_shape in outputs.items():
        for points, shape in outputs.items():
            if (
                len(box_shape) == 2
                and box_shape[1] == 5
                and len(shape) == 3
                and shape[0] == box_shape[0]
                and shape[2] in (2, 3)
            ):
                found.append(Candidate("yolo", (boxes, points), shape[1], numbers=shape[2], sure=True))
    return found


def scores_beside(points: Candidate, outputs: Mapping[str, Shape]) -> str | None:
    """The output that has one number for each joint of these points, where exactly one does."""
    found = [
        name
        for name, shape in outputs.items()
        if name not in points.outputs and math.prod(shape) == points.joints and shape[0] in (1, points.joints)
    ]
    return found[0] if len(found) == 1 else None


def guessed_columns(numbers: int, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[Column, ...]:
    """What the K numbers of a point probably are, from the range of each over some pictures."""
    if numbers == 2:
        return ("x", "y")
    score = low[numbers - 1] >= 0 and high[numbers - 1] <= 1
    spread = max(high[:2]) > 2  # pixels
    if numbers == 3:
        return ("x", "y", "score") if score or not spread else ("x", "y", "z")
    if numbers == 4:
        return ("x", "y", "z", "score")
    return ("x", "y", "z", "visibility", "presence")
