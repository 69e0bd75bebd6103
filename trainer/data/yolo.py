"""YOLO-pose folders: ``data.yaml`` beside ``images/`` and ``labels/``, as Ultralytics, Roboflow and FiftyOne write them.

::

    data.yaml            train: images/train, val: images/val, kpt_shape: [17, 3], flip_idx: [0, 2, 1, …], names: {0: person}
    images/train/a.jpg
    labels/train/a.txt   a line a person: class cx cy w h x y v x y v …

Numbers of a line are shares of the picture's sides, 0 at its left and upper edge, so the centre of the first pixel of a picture W
wide is 0.5 / W. Source: https://docs.ultralytics.com/datasets/pose/

Shapes: J joints.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError, MissingExtraError
from alpose.runtime.skeleton import COCO, Skeleton, flip_pairs_by_name

from .images import image_size
from .records import Person, PoseData, from_people, inside, log_left_out

log = logging.getLogger("alpose")

PARTS = ("train", "val", "test")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
SHOWN = 20
"""Odd files and lines that are logged one by one; of all others the number is logged."""
FARTHEST = 2.0
"""Shares beyond this are numbers of pixels, or damaged. A joint may lie somewhat outside its picture."""
BOX = 5
"""Values of a line before its joints: class and box."""
MISSING_PX = (1000, 1000)
"""Taken for the size of a picture that is not there: its people are counted, and can never be looked at."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPerson:
    """One line of a label file, in shares of the picture's sides."""

    line: int
    """From 1."""
    category: int
    box_4: npt.NDArray[np.float64]
    """(x0, y0, x1, y1)."""
    points_J2: npt.NDArray[np.float64]
    """0 where not labelled."""
    visibility_J: npt.NDArray[np.int64]
    """COCO's: 0 not labelled, 1 hidden, 2 visible."""


def parse_labels(
    content: bytes | str, where: str, values: int = 3, joints: int | None = None
) -> tuple[list[LabelledPerson], list[str]]:
    """Read a label file: its people, and what is wrong with each line that cannot be used.

    Args:
        content: of the file, with line ends of any system; bytes are read as UTF-8.
        where: its name, for the problems.
        values: of a joint: 3, x y v, or 2, x y.
        joints: how many each line must have; None takes as many as there are.
    """
    people, problems = [], []
    text = content.decode(errors="replace") if isinstance(content, bytes) else content
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            people.append(_person(line.split(), number, values, joints))
        except ValueError as error:
            problems.append(f"{where}: line {number} {error}")
    return people, problems


def _person(words: Sequence[str], line: int, values: int, joints: int | None) -> LabelledPerson:
    """One line; :class:`ValueError` says what is wrong, to stand behind the line's place."""
    count = len(words)
    wanted = f"{BOX} and {values} for each joint" if joints is None else f"{BOX + values * joints}"
    if count == BOX:
        raise ValueError("is a box without joints (a label for detection)")
    if count < BOX or (count - BOX) % values or (joints is not None and count != BOX + values * joints):
        outline = " It may be an outline (a label for segmentation)" if count % 2 and count > BOX else ""
        raise ValueError(f"has {count} values, expected {wanted}.{outline}")
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError as error:
        raise ValueError(f"is not made of numbers: {error}") from None
    category, (cx, cy, width, height) = numbers[0], numbers[1:BOX]
    if not category.is_integer() or category < 0:
        raise ValueError(f"begins with the class {words[0]}, expected a whole number from 0")
    points_JV = numbers[BOX:].reshape(-1, values)
    points_J2 = points_JV[:, :2]
    # What has no third value is labelled where it has a place.
    visibility_J = points_JV[:, 2] if values == 3 else np.where(points_J2.any(axis=1), 2, 0)
    if not np.isin(visibility_J, (0, 1, 2)).all():
        raise ValueError("has a joint whose visibility is none of 0, 1, 2")
    # At exactly 0, 0 nobody has placed a joint, whatever is said of it: as in COCO files.
    visibility_J = np.where(points_J2.any(axis=1), visibility_J, 0).astype(np.int64)
    labelled_J = visibility_J > 0
    # One joint far away is one damaged joint: it is known again once the size of the picture is. Most of them are another unit.
    strange = (np.abs(points_J2[labelled_J]) > FARTHEST).any(axis=1).sum() * 2 > labelled_J.sum()
    if not np.isfinite(numbers[1:BOX]).all() or not np.isfinite(points_J2[labelled_J]).all() or strange:
        raise ValueError("has numbers that are not shares of the picture's sides, 0 to 1")
    box_4 = np.array([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2])
    if width <= 0 or height <= 0 or np.abs(box_4).max() > FARTHEST:
        raise ValueError(
            f"has a box of {width:g} x {height:g} around {cx:g}, {cy:g}, expected shares of the picture's sides"
        )
    points_J2 = np.where(labelled_J[:, None], points_J2, 0.0)
    return LabelledPerson(line, int(category), box_4, points_J2, visibility_J)


# --- A folder


def find_yaml(folder: Path) -> Path | None:
    """The file that describes a YOLO-pose folder, or is given in its place; None where there is none."""
    if folder.is_file():
        return folder if folder.suffix in (".yaml", ".yml") else None
    places = [folder / "data.yaml", folder / "dataset.yaml", *sorted((*folder.glob("*.yaml"), *folder.glob("*.yml")))]
    return next((path for path in places if path.is_file() and b"kpt_shape" in path.read_bytes()), None)


def parts_of(folder: Path) -> tuple[str, ...]:
    """Which of :data:`PARTS` the folder names."""
    path = _require_yaml(folder)
    facts = _read_yaml(path)
    return tuple(part for part in PARTS if facts.get(part))


def read_yolo(folder: Path, part: str | None = None) -> PoseData:
    """People with at least one labelled joint, of one part or of all.

    Several people may share a picture. Left out, and counted: people without labelled joints, of another class than ``person``
    (where there is one), or who are there twice. Lines that are damaged, pictures without a label file, and label files without
    a picture are logged by name. An empty label file says that nobody is there. Ids are ``NAME/IMAGE#LINE``.

    Args:
        folder: with ``data.yaml``, or that file.
        part: ``train``, ``val`` or ``test``; None reads them all.
    """
    path = _require_yaml(folder)
    facts = _read_yaml(path)
    skeleton, values = _skeleton(facts, path), int(facts["kpt_shape"][1])
    root, name = path.parent, path.parent.resolve().name or "yolo"
    names = _class_names(facts.get("names"))
    wanted = {number for number, one in names.items() if one == "person"} or None
    pictures = _pictures(facts, (part,) if part else parts_of(path), root, path)
    people: list[Person] = []
    problems: list[str] = []
    bare: list[str] = []
    left_out: Counter[str] = Counter()
    sizes: dict[str, tuple[int, int]] = {}
    for image, labels in pictures.items():
        if not labels.is_file():
            bare.append(image)
            continue
        found, odd = parse_labels(labels.read_bytes(), str(labels), values, len(skeleton))
        problems += odd
        if found:
            sizes[image] = image_size(root / image) or MISSING_PX
        seen: set[bytes] = set()
        for one in found:
            key = one.points_J2.tobytes() + one.visibility_J.tobytes()
            reason = (
                "of other classes" if wanted is not None and one.category not in wanted
                else "without labelled joints" if not one.visibility_J.any()
                else "who are there twice" if key in seen else None
            )  # fmt: skip
            seen.add(key)
            if reason is not None:
                left_out[f"people {reason}"] += 1
                continue
            people.append(
                _in_pixels(one, f"{name}/{PurePosixPath(image).with_suffix('')}#{one.line}", image, sizes[image])
            )
    if not people:
        raise DataError(
            problems[0] if problems else f"{path}: none of {len(pictures)} pictures has a person with a labelled joint"
        )
    _log_names("damaged", problems)
    _log_names(f"{path}: no label file, taken for pictures of nobody", bare)
    left_out["damaged lines"] = len(problems)
    log_left_out(path, len(people), left_out)
    return from_people(name, skeleton, people, lambda image: inside(root, image, path), path, stated=sizes)


def _in_pixels(one: LabelledPerson, id_: str, image: str, size: tuple[int, int]) -> Person:
    labelled_J = one.visibility_J > 0
    joints_J2 = np.where(labelled_J[:, None], one.points_J2 * size - 0.5, 0.0)
    return Person(id_, image, joints_J2.astype(np.float32), labelled_J, one.visibility_J == 2,
                  (one.box_4.reshape(2, 2) * size - 0.5).ravel().astype(np.float32))  # fmt: skip


def _log_names(what: str, lines: Sequence[str]) -> None:
    for line in lines[:SHOWN]:
        log.warning("%s: %s", what, line)
    if len(lines) > SHOWN:
        log.warning("%s: and %d more", what, len(lines) - SHOWN)


def _require_yaml(folder: Path) -> Path:
    path = find_yaml(folder)
    if path is None:
        path = folder / "data.yaml"
        if path.is_file():
            raise DataError(f"{path} does not name kpt_shape: it describes no YOLO-pose dataset")
        raise DataNotFoundError(f"{folder} is not a YOLO-pose folder: it needs data.yaml with kpt_shape")
    return path


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("pyyaml", f"reading {path}", "train") from error
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable as YAML: {' '.join(str(error).split())[:200]}") from error
    shape = value.get("kpt_shape") if isinstance(value, dict) else None
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and n > 0 for n in shape)
        or shape[1] not in (2, 3)
    ):
        raise DataError(f"{path} needs kpt_shape: [joints, 2 or 3], as kpt_shape: [17, 3]; it has {shape!r}")
    return dict(value)


def _class_names(value: Any) -> dict[int, str]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return {int(number): str(one) for number, one in pairs}


def _skeleton(facts: Mapping[str, Any], path: Path) -> Skeleton:
    """Joint names as ``kpt_names`` gives them, COCO's where shape and mirror are COCO's, else numbers; links are not in this form."""
    count, flip = facts["kpt_shape"][0], facts.get("flip_idx")
    order = list(flip) if isinstance(flip, list) else None
    if order is not None and (sorted(order) != list(range(count)) or any(order[order[j]] != j for j in range(count))):
        raise DataError(f"{path}: flip_idx must swap pairs of {count} joints, got {flip}")
    given = facts.get("kpt_names")
    given = next(iter(given.values()), None) if isinstance(given, Mapping) else given
    if isinstance(given, list) and len(given) == count:
        joints = tuple(str(one) for one in given)
    elif given is not None:
        raise DataError(f"{path}: kpt_names must name {count} joints, got {str(given)[:200]}")
    elif count == len(COCO) and order in (None, list(COCO.flip_order())):
        joints = COCO.joints
    else:
        joints = tuple(f"joint_{number}" for number in range(count))
    pairs = flip_pairs_by_name(joints) if order is None else tuple((a, b) for a, b in enumerate(order) if a < b)
    if joints == COCO.joints and pairs == COCO.flip_pairs:
        return COCO
    return Skeleton(name=path.parent.resolve().name or "yolo", joints=joints, links=(), flip_pairs=pairs)


def _pictures(facts: Mapping[str, Any], parts: Sequence[str], root: Path, path: Path) -> dict[str, Path]:
    """The pictures of some parts by their names below ``root``, each with its label file, which may not be there.

    A label file without a picture stands for one that is missing.
    """
    found: dict[str, Path] = {}
    for part in parts:
        if not facts.get(part):
            raise DataError(
                f"{path} names no part {part!r}; it has: {', '.join(one for one in PARTS if facts.get(one)) or 'none'}"
            )
        places = facts[part] if isinstance(facts[part], list) else [facts[part]]
        for place in places:
            found |= _pictures_of(str(place), root, path)
    return found


def _pictures_of(place: str, root: Path, path: Path) -> dict[str, Path]:
    # Roboflow writes ../train/images for a folder beside data.yaml.
    local = place.replace("\\", "/").removeprefix("../").removeprefix("./") or "."
    folder = inside(root, local, path) if local != "." else root
    if folder.is_file():  # a list of pictures
        lines = [line.strip().removeprefix("./") for line in folder.read_text().splitlines() if line.strip()]
        images = [inside(root, line, folder) for line in lines]
        return {image.relative_to(root).as_posix(): _label_file(image, root) for image in images}
    if not folder.is_dir():
        raise DataNotFoundError(f"{path}: {place} is not there; looked in {folder}")
    paths = sorted(one for one in folder.rglob("*") if one.suffix.lower() in IMAGES and not one.name.startswith("."))
    found = {image.relative_to(root).as_posix(): _label_file(image, root) for image in paths}
    suffix = paths[0].suffix if paths else IMAGES[0]
    known = set(found.values())
    labels = _label_file(folder / "any", root).parent
    for one in sorted(labels.rglob("*.txt")) if labels.is_dir() else ():
        if one not in known and one.name != "classes.txt":
            found[(folder / one.relative_to(labels)).with_suffix(suffix).relative_to(root).as_posix()] = one
    return dict(sorted(found.items()))


def _label_file(image: Path, root: Path) -> Path:
    """``labels`` in place of the last ``images`` of the path below ``root``; beside the picture where there is none."""
    parts = list(image.relative_to(root).parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return root.joinpath(*parts).with_suffix(".txt")


def description(skeleton: Skeleton, images: Mapping[str, str]) -> str:
    """``data.yaml`` of a folder whose parts hold these images: JSON values, which YAML reads.

    Args:
        skeleton: of everybody.
        images: folder of the pictures by part, such as ``{"train": "images"}``.
    """
    lines = [
        *(f"{part}: {json.dumps(place)}" for part, place in images.items()),
        f"kpt_shape: [{len(skeleton)}, 3]",
        f"flip_idx: {list(skeleton.flip_order())}",
        "names:\n  0: person",
        f"kpt_names:\n  0: {json.dumps(skeleton.joints)}",
    ]
    return "\n".join(["# YOLO-pose: https://docs.ultralytics.com/datasets/pose/", *lines, ""])


def label_line(
    points_J2: npt.NDArray[np.floating],
    visibility_J: npt.NDArray[np.integer],
    box_4: Sequence[float],
    size: tuple[int, int],
) -> str:
    """One line of a label file, of a person in pixels of a picture of that width and height."""
    width, height = size
    x0, y0, x1, y1 = box_4
    values = [(x0 + x1 + 1) / 2 / width, (y0 + y1 + 1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
    words = ["0", *(f"{value:.6f}" for value in values)]
    for (x, y), v in zip(points_J2.tolist(), visibility_J.tolist(), strict=True):
        words += (
            [f"{(x + 0.5) / width:.6f}", f"{(y + 0.5) / height:.6f}", str(int(v))]
            if v and math.isfinite(x + y)
            else ["0", "0", "0"]
        )
    return " ".join(words)
