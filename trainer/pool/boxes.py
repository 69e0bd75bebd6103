"""Where the people of a pool are: a COCO file of detections, a function of the user's, or the whole picture.

Boxes are (x0, y0, x1, y1) in pixels of the picture as it is shown; the centre of its first pixel is (0, 0).

Shapes: N boxes, H W picture.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.runtime.io import read_json

from ..data.coco import plain_id

log = logging.getLogger("alpose")

Boxes = npt.NDArray[np.float32]
Detect = Callable[[npt.NDArray[np.uint8]], npt.ArrayLike]
"""From a picture, RGB (H, W, 3), to boxes (N, 4); none is an empty array."""

NOBODY: Boxes = np.empty((0, 4), np.float32)
LEAST_SCORE = 0.3
"""Of a detection that is taken for a person, unless it is said."""
PERSON = "1"
"""The person's category in COCO."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes by picture, from a file."""

    key: str
    """Changes with the boxes."""
    boxes: Mapping[str, Boxes]
    """By what the file calls a picture: its name, or the number in its name."""
    left_out: Mapping[str, int]
    """Detections that are not used, by reason."""

    def of(self, names: Sequence[str]) -> list[Boxes]:
        """The boxes of each picture of a pool.

        Raises:
            DataError: the file speaks of no picture of the pool, or a name in it means several.
        """
        found: list[Boxes] = []
        meant: dict[str, str] = {}
        for name in names:
            key = next((key for key in _calls(name) if key in self.boxes), None)
            if key is not None and key != name and meant.setdefault(key, name) != name:
                raise DataError(f"detections of {key!r} may belong to {meant[key]} or to {name}: name pictures in the file by "
                                "their place below the pool")  # fmt: skip
            found.append(NOBODY if key is None else self.boxes[key])
        if names and not any(map(len, found)):
            theirs = ", ".join(list(self.boxes)[:3]) or "nothing"
            raise DataError(f"the detections are of {theirs}, and the pool has {', '.join(names[:3])}: none of its {len(names)} pictures "
                            "has a box. image_id must be the file's name, or the number in it")  # fmt: skip
        return found


def read_detections(path: Path, least_score: float = LEAST_SCORE) -> Detections:
    """Read detections in COCO's form: a list of results, or a dataset with ``images`` and ``annotations``.

    A result's ``image_id`` is the picture's name or the number in it (``139`` for ``000000000139.jpg``). Where there are
    several categories, the people are category 1, or the one called ``person``.

    Raises:
        DataError: it is something else.
    """
    value = read_json(path)
    entries = value.get("annotations") if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise DataError(f"{path} is not a COCO file of detections: a list of image_id, bbox and score, or an object with images and "
                        "annotations")  # fmt: skip
    file_of = _file_names(value.get("images"), path) if isinstance(value, dict) else None
    people = _person_categories(value, entries, path)
    left_out: Counter[str] = Counter()
    boxes: dict[str, list[list[float]]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or (key := plain_id(entry.get("image_id"))) is None:
            left_out["without an image_id"] += 1
            continue
        name = key if file_of is None else file_of.get(key)
        if name is None:
            left_out["of pictures that the file does not list"] += 1
        elif people is not None and plain_id(entry.get("category_id")) not in people:
            left_out["of other categories"] += 1
        elif float(entry.get("score") or 0.0 if "score" in entry else 1.0) < least_score:
            left_out[f"with a score below {least_score:g}"] += 1
        elif (box := _corners(entry.get("bbox"))) is None:
            left_out["whose box has no side"] += 1
        else:
            boxes.setdefault(name, []).append(box)
    if not boxes:
        said = "; ".join(f"{count} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise DataError(f"{path} has no box of a person: {said}")
    arrays = {name: np.array(rows, np.float32) for name, rows in boxes.items()}
    made_of = hashlib.sha256()
    for name in sorted(arrays):
        made_of.update(name.encode(errors="surrogateescape") + b"\0" + arrays[name].tobytes())
    return Detections(f"detections {made_of.hexdigest()}", arrays, dict(left_out))


def key_of(detect: Detect) -> str:
    """What tells one function from another: its name and, where Python has it, its text. What it calls is not seen."""
    try:
        text = inspect.getsource(detect)
    except (OSError, TypeError):
        text = ""
    kind = detect if hasattr(detect, "__qualname__") else type(detect)
    return f"function {kind.__module__}.{kind.__qualname__} {hashlib.sha256(text.encode()).hexdigest()}"


def checked(boxes_N4: npt.ArrayLike) -> Boxes:
    """Boxes of a function, as an array; :class:`DataError` where they are none."""
    found_N4 = np.asarray(boxes_N4, np.float32)
    if not found_N4.size:
        return NOBODY
    if found_N4.ndim != 2 or found_N4.shape[1] != 4 or not np.isfinite(found_N4).all():
        raise DataError(f"boxes are finite numbers (N, 4): x0, y0, x1, y1; the function gave {found_N4.shape}")
    return found_N4


def whole(width: int, height: int) -> Boxes:
    """The picture itself, as one box."""
    return np.array([[0, 0, width - 1, height - 1]], np.float32)


def _calls(name: str) -> list[str]:
    """What a file may call a picture, the surest first."""
    base = name.rpartition("/")[2]
    stem = base.rpartition(".")[0]
    return [name, base, stem, *([str(int(stem))] if stem.isascii() and stem.isdecimal() else [])]


def _file_names(images: Any, path: Path) -> dict[str, str]:
    if not isinstance(images, list):
        raise DataError(f"{path} has annotations and no list of images: which pictures are they of?")
    found = {}
    for image in images:
        key = plain_id(image.get("id")) if isinstance(image, dict) else None
        if key is not None and isinstance(image.get("file_name"), str):
            found[key] = image["file_name"].replace("\\", "/")
    return found


def _person_categories(value: Any, entries: list[Any], path: Path) -> frozenset[str] | None:
    """The categories that are people; None where there is one kind of thing only."""
    named = value.get("categories") if isinstance(value, dict) else None
    if isinstance(named, list):
        people = {plain_id(one.get("id")) for one in named if isinstance(one, dict) and one.get("name") == "person"}
        if people:
            return frozenset(key for key in people if key is not None)
    kinds = {plain_id(entry.get("category_id")) for entry in entries if isinstance(entry, dict)}
    if len(kinds) < 2:
        return None
    if PERSON not in kinds:
        shown = ", ".join(sorted(str(kind) for kind in kinds)[:6])
        raise DataError(f"{path} has the categories {shown}, and does not say which is a person: name it in categories, or keep "
                        "people alone")  # fmt: skip
    return frozenset({PERSON})


def _corners(bbox: Any) -> list[float] | None:
    """From x, y, width, height; None where it is no box."""
    try:
        x, y, width, height = (float(number) for number in bbox)
    except (TypeError, ValueError):
        return None
    corners = [x, y, x + width, y + height]
    return (
        corners if np.isfinite(corners).all() and width > 0 and height > 0 and max(map(abs, corners)) < 2**20 else None
    )
