"""Reader of COCO keypoints folders: COCO itself, and anybody's own labels in that form.

::

    FOLDER/annotations/NAME.json                 with FOLDER/images/
    FOLDER/annotations/person_keypoints_val2017.json  with FOLDER/val2017/ (or FOLDER/images/val2017/)

Coordinates are kept: COCO counts pixels from 0 and rounds joints to whole pixels; a box (x, y, width, height)
becomes (x, y, x + width, y + height).

Source: the COCO data format, https://cocodataset.org/#format-data

Shapes: N people, J joints.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import read_json
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton, flip_pairs_by_name, with_flip_pairs

from .records import Person, PoseData, from_people, inside, log_left_out

log = logging.getLogger("alpose")


def read_coco(folder_or_json: Path, split: str | None = None) -> PoseData:
    """People with at least one labelled joint, from a folder or from one JSON file in it.

    v = 0 is not labelled, 1 labelled but occluded, 2 visible. Several people may share an image. Left out and
    counted in one log line: crowds (``iscrowd``), people without labelled joints (``num_keypoints`` 0),
    annotations of categories without joints. People without ``bbox`` get the tight box of their joints,
    counted too. Ids are ``NAME/IMAGE#ANNOTATION``, with the name of the folder, the stem of the file name and
    the annotation's id.

    Args:
        folder_or_json: the dataset folder or its annotation file.
        split: where a folder holds several annotation files, what tells the wanted one: ``val2017``, or
        ``val``.
    """
    json_path = find_annotations(folder_or_json, split)
    root = _root(json_path)
    value = read_json(json_path)
    if not isinstance(value, dict) or not all(
        isinstance(value.get(key), list) for key in ("images", "annotations", "categories")
    ):
        raise DataError(f"{json_path} is not in COCO form: it needs the lists images, annotations and categories")
    category, skeleton = _category(value["categories"], json_path)
    name = root.resolve().name or "coco"
    files = _files(value["images"], root, json_path)
    people: list[Person] = []
    left_out: Counter[str] = Counter()
    for annotation in value["annotations"]:
        reason = _left_out(annotation, category, json_path)
        person = None if reason else _person(annotation, files, len(skeleton), name, json_path)
        if person and person.labelled_J.any():
            people.append(person)
        else:
            left_out[reason or "people without labelled joints"] += 1
    log_left_out(json_path, len(people), left_out)
    folder = _image_folder(list(dict.fromkeys(person.image for person in people)), root, json_path)
    return from_people(name, skeleton, people, lambda file: folder / file, json_path)


def annotation_files(folder_or_json: Path, split: str | None = None) -> tuple[Path, ...]:
    """The annotation files of a folder: ``annotations/person_keypoints*.json``, else every JSON file there.

    Args:
        folder_or_json: the dataset folder; a file stands for itself.
        split: keep those whose name ends in ``_SPLIT``, or where none does, has it in it.
    """
    if folder_or_json.is_file():
        return (folder_or_json,)
    folder = folder_or_json / "annotations"
    # macOS keeps a file ._NAME beside each NAME where the file system has no place for what it knows of it.
    everything = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    if not everything:
        raise DataNotFoundError(
            f"{folder_or_json} is not a COCO keypoints folder: it needs annotations/NAME.json beside images/"
        )
    found = [path for path in everything if path.name.startswith("person_keypoints")] or everything
    if split is not None:
        exact = [path for path in found if split in (path.stem, _suffix(path))]
        found = exact or [path for path in found if split in path.stem]
    if not found:
        names = ", ".join(path.name for path in everything)
        raise DataNotFoundError(f"{folder} has no annotation file for split {split!r}: it holds {names}")
    return tuple(found)


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
    name = _root(json_path).resolve().name or "coco"
    found, file_of = {}, {}
    for image in value["images"]:
        nested = [part for part in image.values() if isinstance(part, dict)]
        file_of[image["id"]] = str(image["file_name"])
        found[image["id"]] = next((part[field] for part in (image, *nested) if part.get(field) is not None), None)
    group_of = {}
    for annotation in value["annotations"]:
        image_id = annotation.get("image_id")
        if image_id in found:
            if found[image_id] is None:
                raise DataError(f"{json_path}: the image {file_of[image_id]} has no field {field!r} to group by")
            group_of[_id(name, file_of[image_id], annotation["id"])] = str(found[image_id])
    return group_of


def stated_sizes(json_path: Path) -> dict[str, tuple[int, int]]:
    """Width and height in pixels that an annotation file states, by file name; images without them are left
    out."""
    return {
        str(image["file_name"]): (int(image["width"]), int(image["height"]))
        for image in read_json(json_path)["images"]
        if image.get("width") and image.get("height")
    }


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
            name=str(category["name"]),
            joints=joints,
            links=tuple((int(a) - 1, int(b) - 1) for a, b in category.get("skeleton") or ()),
            flip_pairs=flip_pairs_by_name(joints),
        )
        return with_flip_pairs(skeleton, category["flip_pairs"]) if "flip_pairs" in category else skeleton
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: the category {str(category)[:200]} is not a skeleton: {error}") from error


def _category(categories: list[Any], source: Path) -> tuple[Any, Skeleton]:
    """Id and skeleton of the one category that has joints."""
    found = [category for category in categories if isinstance(category, dict) and category.get("keypoints")]
    if len(found) != 1:
        names = [category.get("name") for category in found]
        raise DataError(
            f"{source}: expected one category with keypoints, found {len(found)} {names or ''}. "
            "Give its joint names as categories[0].keypoints, or keep one category per file"
        )
    return found[0].get("id"), skeleton_of(found[0], source)


def _files(images: list[Any], root: Path, source: Path) -> dict[Any, str]:
    """File name by image id; a name that leaves the folder is refused."""
    files: dict[Any, str] = {}
    for row, image in enumerate(images):
        try:
            key, file = image["id"], str(image["file_name"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{source}: images[{row}] needs id and file_name: {str(image)[:200]}") from error
        if key in files:
            raise DataError(f"{source}: image id {key!r} is given twice ({files[key]} and {file})")
        inside(root, file, source)
        files[key] = file
    return files


def _left_out(annotation: Any, category: Any, source: Path) -> str | None:
    """Why an annotation is not a person to learn from; None when it is one."""
    if not isinstance(annotation, dict):
        raise DataError(f"{source}: an annotation is {str(annotation)[:200]}, expected an object")
    if annotation.get("category_id") != category:
        return "annotations of other categories"
    if annotation.get("iscrowd"):
        return "crowds"
    if annotation.get("num_keypoints") == 0 or not annotation.get("keypoints"):
        return "people without labelled joints"
    return None


def _person(annotation: dict[str, Any], files: dict[Any, str], joints: int, name: str, source: Path) -> Person:
    """One annotation, checked."""
    where = f"{source}: annotation {annotation.get('id')!r}"
    if annotation.get("id") is None or annotation.get("image_id") not in files:
        raise DataError(
            f"{where} needs an id, and an image_id that images lists; it has {annotation.get('image_id')!r}"
        )
    try:
        keypoints_J3 = np.asarray(annotation["keypoints"], dtype=np.float32).reshape(joints, 3)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: keypoints must be {joints} times x, y, v: {error}") from error
    if not np.isfinite(keypoints_J3).all() or not np.isin(keypoints_J3[:, 2], (0, 1, 2)).all():
        raise DataError(f"{where}: keypoints must be finite with v 0, 1 or 2, got {annotation['keypoints'][:9]} ...")
    box_4 = np.full(4, np.nan, dtype=np.float32)
    if annotation.get("bbox") is not None:
        try:
            x, y, width, height = (float(number) for number in annotation["bbox"])
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: bbox must be x, y, width, height, got {annotation['bbox']!r}") from error
        if not np.isfinite([x, y, width, height]).all() or width < 0 or height < 0:
            raise DataError(f"{where}: bbox must be finite with sides of 0 or more, got {annotation['bbox']!r}")
        box_4[:] = x, y, x + width, y + height
    v_J = keypoints_J3[:, 2]
    return Person(_id(name, files[annotation["image_id"]], annotation["id"]), files[annotation["image_id"]], keypoints_J3[:, :2], v_J > 0,
                  v_J == 2, box_4)  # fmt: skip


def _id(name: str, file: str, annotation: Any) -> str:
    return f"{name}/{PurePosixPath(file).with_suffix('')}#{annotation}"


def _image_folder(names: list[str], root: Path, source: Path) -> Path:
    """Return whichever folder of the known layouts holds the images."""
    suffix = _suffix(source)
    folders = [root / "images" / suffix, root / suffix, root / "images", root]
    present = [sum((folder / name).is_file() for name in names[:50]) for folder in folders]
    if names and not max(present):
        places = ", ".join(str(folder) for folder in dict.fromkeys(folders))
        raise DataNotFoundError(f"{source}: no image is there, the first is {names[0]}; looked in {places}")
    return folders[int(np.argmax(present))]


def _root(json_path: Path) -> Path:
    """The dataset folder of an annotation file."""
    folder = json_path.parent
    return folder.parent if folder.name == "annotations" else folder


def _suffix(json_path: Path) -> str:
    """``val2017`` of ``person_keypoints_val2017.json``; what official image folders are called."""
    return json_path.stem.rpartition("_")[2]
