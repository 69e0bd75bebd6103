"""Reader of COCO keypoints folders: COCO itself, and anybody's own labels in that form.

::

    FOLDER/annotations/NAME.json                 with FOLDER/images/
    FOLDER/annotations/person_keypoints_val2017.json  with FOLDER/val2017/ (or FOLDER/images/val2017/)
    FOLDER/train/_annotations.coco.json          with its images beside it

Coordinates are kept: COCO counts pixels from 0 and rounds joints to whole pixels; a box (x, y, width, height)
becomes (x, y, x + width, y + height).

Source: the COCO data format, https://cocodataset.org/#format-data

Shapes: N people, J joints.
"""

from __future__ import annotations

import functools
import logging
import os
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import read_json
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton, flip_pairs_by_name, with_flip_pairs

from .records import Person, PoseData, from_people, inside, log_left_out

log = logging.getLogger("alpose")

FARTHEST_PX = 1e6
"""A joint beyond this is a damaged number, not a place."""
ROBOFLOW = "_annotations.coco.json"
FIFTYONE = "labels.json"
"""Beside a folder ``data`` with the images."""
SHOWN = 20
"""Damaged images and annotations that are logged one by one."""


def read_coco(folder_or_json: Path, split: str | None = None, *, broken: list[str] | None = None) -> PoseData:
    """People with at least one labelled joint, from a folder or from one JSON file in it.

    v = 0 is not labelled, 1 labelled but occluded, 2 visible. Several people may share an image. Left out and
    counted in one log line: crowds (``iscrowd``), people without labelled joints, annotations of categories
    without joints; whoever is damaged is logged by name as well, and the rest is read. People without ``bbox``
    get the tight box of their joints, counted too. Joints are believed, not ``num_keypoints``. Ids are
    ``NAME/IMAGE#ANNOTATION``, with the name of the folder, the stem of the file name and the annotation's id.

    Args:
        folder_or_json: the dataset folder or its annotation file.
        split: where a folder holds several annotation files, what tells the wanted one: ``val2017``, or ``val``.
        broken: filled with what is wrong with images and annotations that are left out; None logs it.
    """
    json_path = find_annotations(folder_or_json, split)
    root = _root(json_path)
    value = read_json(json_path, lenient=True)
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise DataError(f"{json_path} is not in COCO form: it needs the lists images, annotations and categories")
    category = category_with_joints(value["categories"], str(json_path))
    skeleton = skeleton_of(category, json_path)
    name = _name(json_path)
    problems: list[str] = []
    files = _files(value["images"], root, json_path, problems)
    people: dict[str, Person] = {}
    left_out: Counter[str] = Counter()
    for row, annotation in enumerate(value["annotations"]):
        where = f"{json_path}: annotation {annotation.get('id', row) if isinstance(annotation, dict) else row!r}"
        reason = not_a_person(annotation, category.get("id")) if isinstance(annotation, dict) else None
        if reason is None:
            try:
                person = _person(annotation, row, files, skeleton, name, left_out)
            except (DataError, TypeError, ValueError, OverflowError) as error:
                problems.append(f"{where}{error}")
                continue
            person = _with_own_id(person, row, people, left_out)
            reason = _kept(person, people)
        if reason is not None:
            left_out[reason] += 1
    if problems and not people:
        raise DataError(problems[0])
    if broken is None:
        for problem in problems[:SHOWN]:
            log.warning("left out: %s", problem)
    else:
        broken += problems
    # Some converters never count, and write 0 for everybody.
    counted = any(isinstance(one, dict) and one.get("num_keypoints") for one in value["annotations"])
    contradicting = sum(_contradicts(annotation) for annotation in value["annotations"]) if counted else 0
    if contradicting:
        log.warning(
            "%s: num_keypoints of %d people contradicts their joints; the joints decide", json_path, contradicting
        )
    left_out["damaged images or annotations"] = len(problems)
    log_left_out(json_path, len(people), left_out)
    folder = _image_folder(list(dict.fromkeys(person.image for person in people.values())), root, json_path)
    return from_people(name, skeleton, list(people.values()), lambda file: _on_disk(folder, file), json_path,
                       stated=_sizes(value["images"]))  # fmt: skip


def annotation_files(folder_or_json: Path, split: str | None = None) -> tuple[Path, ...]:
    """The annotation files of a folder: ``annotations/person_keypoints*.json``, else every JSON file there that has keypoints.

    Captions, boxes and other JSON files beside them are passed over by name.

    Args:
        folder_or_json: the dataset folder; a file stands for itself.
        split: keep those whose name ends in ``_SPLIT``, or where none does, has it in it.
    """
    if folder_or_json.is_file():
        return (folder_or_json,)
    folder = folder_or_json / "annotations"
    # macOS keeps a file ._NAME beside each NAME where the file system has no place for what it knows of it.
    everything = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not everything:  # Roboflow's layout: a folder for each part, its labels beside its images
        everything = sorted([*folder_or_json.glob(ROBOFLOW), *folder_or_json.glob(f"*/{ROBOFLOW}")])
    if not everything and (folder_or_json / FIFTYONE).is_file():
        everything = [folder_or_json / FIFTYONE]
    if not everything:
        raise DataNotFoundError(
            f"{folder_or_json} is not a COCO keypoints folder: it needs annotations/NAME.json beside images/"
        )
    found = [path for path in everything if path.name.startswith("person_keypoints")]
    if not found:  # where nobody has joints, the reader says what is missing
        found = [path for path in everything if len(everything) == 1 or _may_hold_joints(path)] or everything
    if split is not None:
        exact = [path for path in found if split in (part_of(path), _suffix(path))]
        found = exact or [path for path in found if split in part_of(path)]
    if not found:
        names = ", ".join(path.name for path in everything)
        raise DataNotFoundError(f"{folder} has no annotation file for split {split!r}: it holds {names}")
    return tuple(found)


def _may_hold_joints(path: Path) -> bool:
    """Whether a file is not known to hold something else than people with joints; the log names those that do."""
    stat = path.stat()
    return _holds_joints(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=256)
def _holds_joints(path: Path, _changed_ns: int, _size: int) -> bool:
    try:
        value = read_json(path, lenient=True)
    except DataError:  # damaged, perhaps: to be said by whoever reads it
        return True
    lists = value if isinstance(value, dict) else {}
    rows = [row for key in ("categories", "annotations") if isinstance(lists.get(key), list) for row in lists[key]]
    found = any(isinstance(row, dict) and "keypoints" in row for row in rows)
    if not found:
        log.warning("%s is passed over: it holds no people with keypoints", path)
    return found


def find_annotations(folder_or_json: Path, split: str | None = None) -> Path:
    """The one annotation file of a folder; that there are several is an error that names them."""
    found = annotation_files(folder_or_json, split)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{found[0].parent} holds several annotation files ({names}): give the split or one path")
    return found[0]


def groups(folder_or_json: Path, split: str | None, field: str) -> dict[str, str]:
    """Return the group of each person, by id: a field of its image, such as ``driver``, ``camera`` or ``clip``.

    The field stands in the image itself, or one level deeper (``extra``, ``alpose``). A person whose image does not say
    it is an error that names the image: a split would be a guess.
    """
    json_path = find_annotations(folder_or_json, split)
    value = read_json(json_path)
    name = _name(json_path)
    found: dict[str, Any] = {}
    file_of: dict[str, str] = {}
    for image in value["images"]:
        key = plain_id(image.get("id")) if isinstance(image, dict) else None
        if key is not None:
            nested = [part for part in image.values() if isinstance(part, dict)]
            file_of[key] = _local_name(str(image.get("file_name")))
            found[key] = next((part[field] for part in (image, *nested) if part.get(field) is not None), None)
    group_of = {}
    for row, annotation in enumerate(value["annotations"]):
        key = plain_id(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if key in found:
            if found[key] is None:
                raise DataError(f"{json_path}: the image {file_of[key]} has no field {field!r} to group by")
            group_of[_id(name, file_of[key], annotation, row)] = str(found[key])
    return group_of


def part_of(json_path: Path) -> str:
    """Return what an annotation file is called among those of its folder."""
    return json_path.parent.name if json_path.name == ROBOFLOW else json_path.stem


def _sizes(images: list[Any]) -> dict[str, tuple[int, int]]:
    """Width and height in pixels that an annotation file states, by file name; images without them are left out."""
    images = [image for image in images if isinstance(image, dict)]
    sizes = {_local_name(str(image.get("file_name"))): stated_size(image) for image in images}
    return {name: (int(size[0]), int(size[1])) for name, size in sizes.items() if size is not None}


def skeleton_of(category: dict[str, Any], source: Path) -> Skeleton:
    """The skeleton of a category: joint names, links counted from 1, left and right by name or as ``flip_pairs`` states.

    ``flip_pairs`` holds pairs of names, or of numbers counted from 1. One whose joint names are those of COCO, LSP or MPII, in order, is that built-in skeleton.
    """
    try:
        joints = tuple(str(joint) for joint in category["keypoints"])
        for known in (COCO, LSP, MPII):
            if joints == known.joints and "flip_pairs" not in category:
                return known
        skeleton = Skeleton(
            name=str(category.get("name") or "person"),
            joints=joints,
            links=_links(category.get("skeleton") or (), joints),
            flip_pairs=flip_pairs_by_name(joints),
        )
        return with_flip_pairs(skeleton, category["flip_pairs"]) if "flip_pairs" in category else skeleton
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: the category {str(category)[:200]} is not a skeleton: {error}") from error


# --- What files of many tools have in common


def category_with_joints(categories: list[Any], where: str) -> dict[str, Any]:
    """The one category that has joints; where several have, the one called ``person``."""
    found = [one for one in categories if isinstance(one, dict) and one.get("keypoints")]
    if len(found) > 1:
        found = [one for one in found if one.get("name") == "person"] or found
    if len(found) != 1 or not isinstance(found[0]["keypoints"], list):
        names = [one.get("name") for one in found]
        raise DataError(f"{where}: expected one category with keypoints, found {len(found)}{f' {names}' if names else ''}. Give its joint names as "
                        "categories[0].keypoints, or keep one category per file; from CVAT, export as COCO Keypoints 1.0")  # fmt: skip
    category: dict[str, Any] = found[0]
    return category


def plain_id(value: Any) -> str | None:
    """An id, which some tools write as a number and others as text; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | str) and not isinstance(value, bool) else None


def not_a_person(annotation: dict[str, Any], category_id: Any) -> str | None:
    """Why an annotation is meant as something else than one person; None where it is one."""
    if category_id is not None and plain_id(annotation.get("category_id", category_id)) != plain_id(category_id):
        return "annotations of other categories"
    if str(annotation.get("iscrowd") or 0).lower() not in ("0", "0.0", "false"):
        return "crowds"
    return None


def placed_joints(value: Any, count: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Positions (J, 2) and visibility (J,) from x, y, v, x, y, v, …; what is not labelled may be any number or none.

    :class:`TypeError` or :class:`ValueError` says what is wrong. A joint at exactly 0, 0 is not labelled, whatever its v: that
    is how tools write a joint that nobody has placed.
    """
    if not isinstance(value, list) or len(value) != 3 * count:
        got = (
            f"{len(value)} values" if isinstance(value, list) else "nothing" if value is None else type(value).__name__
        )
        raise ValueError(f"keypoints must be {count} times x, y, v, got {got}")
    try:
        values_J3 = np.array(value, dtype=np.float64).reshape(count, 3)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"keypoints must be {count} times x, y, v: {error}") from error
    points_J2, labelled_J = values_J3[:, :2], values_J3[:, 2] != 0
    fine = np.isin(values_J3[:, 2], (0, 1, 2)).all() and (np.abs(points_J2[labelled_J]) <= FARTHEST_PX).all()
    if not fine:
        raise ValueError(
            f"keypoints must be finite, within {FARTHEST_PX:.0f} px, with v 0, 1 or 2, got {value[:9]} ..."
        )
    labelled_J &= points_J2.any(axis=1)
    if labelled_J.sum() > 1 and ((points_J2[labelled_J] >= 0) & (points_J2[labelled_J] <= 1)).all():
        raise ValueError(
            f"keypoints are pixels, and all of these lie in the first one; are they shares of the picture? got {value[:9]} ..."
        )
    return np.nan_to_num(points_J2, nan=0.0, posinf=0.0, neginf=0.0), np.where(labelled_J, values_J3[:, 2], 0).astype(
        np.int64
    )


def stated_size(image: dict[str, Any]) -> tuple[float, float] | None:
    """Width and height that a file states for an image; None where there are none, or they are not a size."""
    try:
        width, height = float(image["width"]), float(image["height"])
    except (KeyError, TypeError, ValueError):
        return None
    return (width, height) if 1 < width < FARTHEST_PX and 1 < height < FARTHEST_PX else None


# --- One file


def _links(pairs: Any, joints: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Links by the names of their joints, or by numbers from 1; from 0 where a 0 is among them."""
    numbers = [[joints.index(end) if end in joints else int(end) for end in pair] for pair in pairs]
    named = any(end in joints for pair in pairs for end in pair)
    first = 0 if named or any(0 in pair for pair in numbers) else 1
    links = [(a - first, b - first) for a, b in numbers]
    kept = [(a, b) for a, b in links if a != b and all(0 <= end < len(joints) for end in (a, b))]
    if len(kept) < len(links):  # they are for drawing, and often those of a skeleton with more joints
        log.warning("%d of %d links of a skeleton do not name two of its %d joints, and are left out",
                    len(links) - len(kept), len(links), len(joints))  # fmt: skip
    return tuple(kept)


def _files(images: list[Any], root: Path, source: Path, problems: list[str]) -> dict[str, str]:
    """File name by image id; a name that leaves the folder is refused, and so is an id that names two files."""
    files: dict[str, str] = {}
    for row, image in enumerate(images):
        key = plain_id(image.get("id")) if isinstance(image, dict) else None
        if key is None or not isinstance(image.get("file_name"), str):
            problems.append(f"{source}: images[{row}] needs id and file_name: {str(image)[:200]}")
            continue
        file = _local_name(image["file_name"])
        if files.get(key, file) != file:
            raise DataError(f"{source}: image id {key} is given twice ({files[key]} and {file})")
        try:
            inside(root, file, source)
        except DataError as error:  # refused with everybody on it
            problems.append(str(error))
            continue
        files[key] = file
    return files


def _person(
    annotation: Any, row: int, files: dict[str, str], skeleton: Skeleton, name: str, left_out: Counter[str]
) -> Person:
    """One annotation, checked. What is raised begins behind its name."""
    if not isinstance(annotation, dict):
        raise DataError(f" is {str(annotation)[:200]}, expected an object")
    image = plain_id(annotation.get("image_id"))
    if image is None or image not in files:
        raise DataError(f" needs an id, and an image_id that images lists; it has {annotation.get('image_id')!r}")
    try:
        value = annotation.get("keypoints") or [0] * 3 * len(skeleton)
        points_J2, v_J = placed_joints(value, len(skeleton))
        box_4 = _box(annotation.get("bbox"))
    except ValueError as error:
        raise DataError(f": {error}") from error
    left_out["joints said to be visible at 0, 0"] += int(
        (np.array(value[2::3], dtype=np.float64) != 0).sum() - (v_J > 0).sum()
    )
    if _holds_nobody(box_4, points_J2[v_J > 0]):
        left_out["boxes that hold none of their joints (the joints decide)"] += 1
        box_4 = np.full(4, np.nan, dtype=np.float32)
    return Person(_id(name, files[image], annotation, row), files[image], points_J2.astype(np.float32),
                  v_J > 0, v_J == 2, box_4)  # fmt: skip


def _holds_nobody(box_4: npt.NDArray[np.float32], points_M2: npt.NDArray[np.float64]) -> bool:
    """Whether none of a person's joints lies in or near their box: it is somebody else's, or in another unit."""
    reach_2 = (box_4[2:] - box_4[:2]) / 2
    near_M = (np.abs(points_M2 - box_4[:2] - reach_2) <= 2 * reach_2 + 1).all(axis=1)
    return bool(len(points_M2) and np.isfinite(box_4).all() and not near_M.any())


def _box(value: Any) -> npt.NDArray[np.float32]:
    """Corners of a box; NaN where the file has none, or one without a side, as tools write for people without a box."""
    if not value:
        return np.full(4, np.nan, dtype=np.float32)
    try:
        x, y, width, height = (float(number) for number in value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"bbox must be x, y, width, height, got {value!r}") from error
    if not np.abs([x, y, width, height]).max() <= FARTHEST_PX or width < 0 or height < 0:  # nor with NaN
        raise ValueError(f"bbox must lie within {FARTHEST_PX:.0f} px, with sides of 0 or more, got {value!r}")
    if not width and not height:
        return np.full(4, np.nan, dtype=np.float32)
    return np.array([x, y, x + width, y + height], dtype=np.float32)


def _contradicts(annotation: Any) -> bool:
    """Whether an annotation states another number of labelled joints than it has."""
    try:
        labelled = sum(float(v) != 0 for v in annotation["keypoints"][2::3])
        return annotation["num_keypoints"] is not None and int(annotation["num_keypoints"]) != labelled
    except (KeyError, TypeError, ValueError):
        return False


def _kept(person: Person, people: dict[str, Person]) -> str | None:
    """Add somebody to the people; why not, where nobody is added."""
    if not person.labelled_J.any():
        return "people without labelled joints"
    return None if people.setdefault(person.id, person) is person else "people that are there twice"


def _with_own_id(person: Person, row: int, people: dict[str, Person], left_out: Counter[str]) -> Person:
    """The person with an id by their row, where a tool gave two people of one image the same annotation id."""
    same = people.get(person.id)
    if same is None or np.array_equal(same.joints_J2, person.joints_J2):
        return person
    left_out["annotation ids that others of the image have too (their row is their id)"] += 1
    return replace(person, id=f"{person.id}-row-{row}")


def _local_name(name: str) -> str:
    """The name of a file in the dataset's folder, where a tool wrote an address or a path of another system."""
    if "://" in name or "?d=" in name or name.startswith("/data/"):
        name = PurePosixPath(unquote(name.partition("?d=")[2] or name.partition("?")[0])).name
    return name.replace("\\", "/")


def _on_disk(folder: Path, name: str) -> Path:
    """The file of that name, or of the same name as another system or a service writes it, in letters of the other case."""
    others = [name, unquote(name), *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))]
    # Where the locale is C, names on the disk are bytes that Python cannot write as letters.
    others += [os.fsdecode(one.encode(errors="surrogateescape")) for one in others]
    found = next((folder / one for one in others if (folder / one).is_file()), None)
    if found is None:
        parent = (folder / name).parent
        with suppress(OSError):
            found = _names_by_lower(parent, parent.stat().st_mtime_ns).get(PurePosixPath(name).name.lower())
    return found or folder / name


@functools.lru_cache(maxsize=64)
def _names_by_lower(folder: Path, _changed_ns: int) -> dict[str, Path]:
    """The files of a folder by their names in small letters, but for names that differ in nothing else."""
    found: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        found.setdefault(path.name.lower(), []).append(path)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _id(name: str, file: str, annotation: dict[str, Any], row: int) -> str:
    """The id of a person: that of the annotation, or where it has none, its place in the file."""
    id_ = plain_id(annotation.get("id"))
    return f"{name}/{PurePosixPath(file).with_suffix('')}#{f'row-{row}' if id_ is None else id_}"


def _image_folder(names: list[str], root: Path, source: Path) -> Path:
    """Return whichever folder of the known layouts holds the images."""
    suffix = _suffix(source)
    folders = [root / "images" / suffix, root / suffix, root / "images", root / "data", root]
    present = [sum(_on_disk(folder, name).is_file() for name in names[:50]) for folder in folders]
    if names and not max(present):
        places = ", ".join(str(folder) for folder in dict.fromkeys(folders))
        raise DataNotFoundError(f"{source}: no image is there, the first is {names[0]}; looked in {places}")
    return folders[int(np.argmax(present))]


def _root(json_path: Path) -> Path:
    """The dataset folder of an annotation file."""
    folder = json_path.parent
    return folder.parent if folder.name == "annotations" else folder


def _name(json_path: Path) -> str:
    """What the people of an annotation file are called after: the dataset folder, with the part in Roboflow's layout."""
    root = _root(json_path).resolve()
    return f"{root.parent.name}/{root.name}" if json_path.name == ROBOFLOW else root.name or "coco"


def _suffix(json_path: Path) -> str:
    """``val2017`` of ``person_keypoints_val2017.json``; what official image folders are called."""
    return json_path.stem.rpartition("_")[2]
