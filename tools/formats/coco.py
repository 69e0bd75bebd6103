"""COCO keypoints: what pycocotools, CVAT and most others read and write.

Source: https://cocodataset.org/#format-data

Shapes: J joints.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.io import write_atomically
from alpose.runtime.skeleton import Skeleton, flip_pairs_by_name

from ..labels import HIDDEN, Answer, Answers, FindId, Floats, Handout, Ints, Pose, Task
from .files import LabelFile

CATEGORY_ID, CATEGORY = 1, "person"
DIGITS = 2
"""CVAT and others round to hundredths of a pixel; so do we, to know our own answers again."""
RESOLUTION_PX = 10.0**-DIGITS
LISTS = ("images", "annotations", "categories")
FARTHEST_PX = 1e6
"""A joint beyond this is a damaged number, not a place."""


class Coco:
    """COCO keypoints in one JSON file, or in an archive as CVAT exports it.

    Whether somebody has looked at a pose that comes back as it went out cannot be known from this format.
    """

    name = "coco"
    returns = "CORRECTED.json"

    def write(self, handout: Handout, folder: Path) -> None:
        """``annotations/person_keypoints_NAME.json``."""
        content = json.dumps(document(handout.tasks, handout.skeleton)).encode()
        write_atomically(folder / "annotations" / f"person_keypoints_{handout.name}.json", content)

    def detect(self, file: LabelFile) -> bool:
        """An object with the three lists of COCO."""
        return isinstance(file.value, dict) and all(isinstance(file.value.get(key), list) for key in LISTS)

    def read(self, file: LabelFile, find_id: FindId) -> Answers:
        """One answer an image that carries an id; every person in it with joints."""
        category_id, joints = _category(file)
        found = _Found(file.name, joints)
        images = _images(file, find_id, found.problems)
        for place, annotation in enumerate(file.value["annotations"]):
            found.add(annotation, f"{file.name}: annotations[{place}]", category_id, images)
        answers: dict[str, Answer] = {}
        for key, people in found.people.items():
            id_, size = images[key]
            if id_ in answers:
                found.problems.append(f"{file.name}: {id_} is answered twice; the first answer is kept")
            elif people:
                where = f"{file.name} ({id_})"
                answers[id_] = Answer(id=id_, people=tuple(people), where=where, size=size, looked_at=False)
        found.problems += [
            f"{file.name}: image {id_} has no pose: to say that nobody is there, keep the skeleton with all joints outside"
            for key, (id_, _) in images.items() if key not in found.people
        ]  # fmt: skip
        ids = frozenset(id_ for id_, _ in images.values())
        return Answers(answers=tuple(answers.values()), problems=tuple(found.problems), notes=found.notes(), ids=ids,
                       resolution_px=RESOLUTION_PX, joints=joints)  # fmt: skip


# --- Out


def document(tasks: Sequence[Task], skeleton: Skeleton) -> dict[str, Any]:
    """The predictions as COCO annotations."""
    images = [
        {"id": place, "file_name": task.file_name, "width": task.width, "height": task.height}
        for place, task in enumerate(tasks, start=1)
    ]
    return {
        "info": {"description": "poses predicted by alpose, to be corrected"},
        "licenses": [],
        "images": images,
        "annotations": [_annotation(task, place) for place, task in enumerate(tasks, start=1)],
        "categories": [category(skeleton)],
    }


def category(skeleton: Skeleton) -> dict[str, Any]:
    """The category of a skeleton, with its own joints; links count from 1."""
    value: dict[str, Any] = {
        "id": CATEGORY_ID,
        "name": CATEGORY,
        "supercategory": "",
        "keypoints": list(skeleton.joints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.links],
    }
    if set(skeleton.flip_pairs) != set(flip_pairs_by_name(skeleton.joints)):
        value["flip_pairs"] = [[skeleton.joints[a], skeleton.joints[b]] for a, b in skeleton.flip_pairs]
    return value


def flat(keypoints_J2: Any, visibility_J: Any) -> list[float | int]:
    """[x, y, v, x, y, v, ...]; a joint that is not labelled is 0, 0, 0."""
    values: list[float | int] = []
    for (x, y), v in zip(np.asarray(keypoints_J2).tolist(), np.asarray(visibility_J).tolist(), strict=True):
        values += [round(x, DIGITS), round(y, DIGITS), int(v)] if v != HIDDEN else [0, 0, 0]
    return values


def _annotation(task: Task, place: int) -> dict[str, Any]:
    x0, y0, x1, y1 = task.box_4
    return {
        "id": place,
        "image_id": place,
        "category_id": CATEGORY_ID,
        "keypoints": flat(task.keypoints_J2, task.visibility_J),
        "num_keypoints": int((task.visibility_J != HIDDEN).sum()),
        "bbox": [round(x0, DIGITS), round(y0, DIGITS), round(x1 - x0, DIGITS), round(y1 - y0, DIGITS)],
        "area": round((x1 - x0) * (y1 - y0), DIGITS),
        "iscrowd": 0,
        "score": round(float(np.mean(task.scores_J)), 4),
        # What CVAT shows beside the skeleton.
        "attributes": {"failure_probability": f"{task.failure_probability:.2f}", "reason": task.reason,
                       "device": task.device},
    }  # fmt: skip


# --- Back


def _category(file: LabelFile) -> tuple[str | None, tuple[str, ...]]:
    """Key and joints of the one category that has joints; where several have, of the one called as ours."""
    found = [
        one for one in file.value["categories"] if isinstance(one, dict) and isinstance(one.get("keypoints"), list)
    ]
    found = [one for one in found if one["keypoints"]]
    if len(found) > 1:
        found = [one for one in found if one.get("name") == CATEGORY] or found
    if len(found) != 1:
        raise DataError(f"{file.name}: expected one category with keypoints, found {len(found)}. From CVAT, export as "
                        "COCO Keypoints 1.0")  # fmt: skip
    return _key(found[0].get("id")), tuple(str(joint) for joint in found[0]["keypoints"])


def _images(file: LabelFile, find_id: FindId, problems: list[str]) -> dict[str, tuple[str, tuple[float, float] | None]]:
    """Record's id and stated size of each image, by its key. That a key names two files is an error: a pose could be stored
    as that of another picture."""
    names: dict[str, str] = {}
    images = {}
    for place, image in enumerate(file.value["images"]):
        name = str(image.get("file_name")) if isinstance(image, dict) else str(image)[:80]
        key = _key(image.get("id")) if isinstance(image, dict) else None
        if key is not None and names.setdefault(key, name) != name:
            raise DataError(
                f"{file.name}: image id {image['id']!r} is given twice, to {names[key]} and to {name}: whose pose is whose cannot be "
                "told. Export again, or number the images anew before files are put together"
            )
        id_ = find_id(name)
        if id_ is None:
            problems.append(f"{file.name}: image {name!r} carries no id of a record")
        elif key is None:
            problems.append(f"{file.name}: images[{place}] ({name}) has no usable id")
        else:
            images[key] = (id_, _size(image))
    return images


@dataclass
class _Found:
    """People by image, and what was passed over, while a file is read."""

    name: str
    joints: tuple[str, ...]
    people: dict[str, list[Pose]] = field(default_factory=dict)
    """By image; an image all of whose people were refused has an empty list."""
    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, annotation: Any, where: str, category_id: str | None, images: dict[str, Any]) -> None:
        """One annotation: a person, something else, or a problem."""
        known = annotation if isinstance(annotation, dict) else {}
        if category_id is not None and "category_id" in known and _key(known["category_id"]) != category_id:
            self.left_out["annotations of other categories"] += 1
            return
        if str(known.get("iscrowd") or 0).lower() not in ("0", "false"):
            self.left_out["crowds"] += 1
            return
        key = _key(known.get("image_id"))
        if key is None or key not in images:
            self.problems.append(f"{where} belongs to no image with an id of a record")
            return
        people = self.people.setdefault(key, [])
        try:
            keypoints_J2, visibility_J = _joints(known.get("keypoints"), len(self.joints))
        except (TypeError, ValueError, OverflowError) as error:
            self.problems.append(
                f"{where} ({images[key][0]}): keypoints must be {len(self.joints)} times x, y, v ({error})"
            )
            return
        unplaced_J = (visibility_J != HIDDEN) & ~keypoints_J2.any(axis=1)
        if unplaced_J.any():
            names = ", ".join(self.joints[joint] for joint in np.flatnonzero(unplaced_J))
            self.problems.append(f"{where} ({images[key][0]}): {names} at 0, 0 is taken for not labelled")
            visibility_J[unplaced_J] = HIDDEN
        if any(np.array_equal(keypoints_J2, one.keypoints_J2) for one in people):
            self.left_out["poses that are there twice"] += 1
            return
        people.append(Pose(joints=self.joints, keypoints_J2=keypoints_J2, visibility_J=visibility_J))

    def notes(self) -> tuple[str, ...]:
        """What was passed over without being a problem, counted."""
        return tuple(f"{self.name}: {count} {what}" for what, count in self.left_out.items())


def _joints(value: Any, count: int) -> tuple[Floats, Ints]:
    """Positions and visibility; what is not labelled may be anything."""
    if not isinstance(value, list):
        raise TypeError(f"got {'nothing' if value is None else type(value).__name__}")
    if len(value) != 3 * count:
        raise ValueError(f"got {len(value)} numbers")
    visibility_J = np.array([float(v) for v in value[2::3]])
    if not np.isin(visibility_J, (0, 1, 2)).all():
        raise ValueError("v is not 0, 1 or 2")
    keypoints_J2 = np.zeros((count, 2))
    for joint in np.flatnonzero(visibility_J):
        keypoints_J2[joint] = float(value[3 * joint]), float(value[3 * joint + 1])
    if not (np.abs(keypoints_J2) <= FARTHEST_PX).all():
        raise ValueError(f"a number is not finite, or beyond {FARTHEST_PX:.0f}")
    return keypoints_J2, visibility_J.astype(np.int64)


def _size(image: dict[str, Any]) -> tuple[float, float] | None:
    """The stated size; None where there is none, or where it is not one."""
    try:
        width, height = float(image["width"]), float(image["height"])
    except (KeyError, TypeError, ValueError):
        return None
    return (width, height) if 1 < width < FARTHEST_PX and 1 < height < FARTHEST_PX else None


def _key(value: Any) -> str | None:
    """An id as some tools write it as a number and others as text; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else None
