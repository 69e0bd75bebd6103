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
from alpose.runtime.queue.fields import is_hex
from alpose.runtime.skeleton import Skeleton, flip_pairs_by_name
from alpose.trainer.data.coco import category_with_joints, not_a_person, placed_joints, plain_id, stated_size

from ..labels import HIDDEN, Answer, Answers, FindId, Handout, Pose, Task
from .files import README, SUFFIXES, UNCHANGED, LabelFile

CATEGORY_ID, CATEGORY = 1, "person"
DIGITS = 2
"""CVAT and others round to hundredths of a pixel; so do we, to know our own answers again."""
RESOLUTION_PX = 10.0**-DIGITS
LISTS = ("images", "annotations", "categories")


class Coco:
    """COCO keypoints in one JSON file, or in an archive as CVAT exports it.

    Whether somebody has looked at a pose that comes back as it went out cannot be known from this format.
    """

    name = "coco"
    returns = "CORRECTED.json"
    suffixes = SUFFIXES
    several_people = True

    def write(self, handout: Handout, folder: Path) -> None:
        """``annotations/person_keypoints_NAME.json``, and what to do with it."""
        content = json.dumps(document(handout.tasks, handout.skeleton)).encode()
        path = write_atomically(folder / "annotations" / f"person_keypoints_{handout.name}.json", content)
        (folder / README).write_text(readme(len(handout.tasks), path.name), encoding="utf-8")

    def detect(self, file: LabelFile) -> bool:
        """An object with the three lists of COCO, in which somebody has joints."""
        return is_coco(file.value) and any(
            isinstance(one, dict) and "keypoints" in one
            for key in ("categories", "annotations")
            for one in file.value[key]
        )

    def read(self, file: LabelFile, find_id: FindId) -> Answers:
        """One answer an image that carries an id; every person in it with joints."""
        count = _unnamed_joints(file.value)
        if count is None:
            found_category = category_with_joints(file.value["categories"], file.name)
            joints = tuple(str(joint) for joint in found_category["keypoints"])
            found = _Found(file.name, joints, joints)
        else:  # as FiftyOne writes it
            found_category, joints = file.value["categories"][0], None
            found = _Found(file.name, tuple(f"joint {number}" for number in range(1, count + 1)), ())
            found.left_out[
                f"category without names of its joints: they are taken for the {count} that went out, in their order"
            ] += 1
        images = _images(file, find_id, found.problems)
        for place, annotation in enumerate(file.value["annotations"]):
            found.add(annotation, f"{file.name}: annotations[{place}]", found_category.get("id"), images)
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


def is_coco(value: Any) -> bool:
    """Whether a JSON value is an object with the three lists of COCO, of whatever kind."""
    return isinstance(value, dict) and all(isinstance(value.get(key), list) for key in LISTS)


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
        "annotations": [
            _annotation(person, number, place)
            for number, (place, person) in enumerate(
                ((place, person) for place, task in enumerate(tasks, start=1) for person in task.people), start=1
            )
        ],
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


def readme(count: int, name: str) -> str:
    """What to do with the folder."""
    return f"""{count} pictures in COCO keypoints form, the most wanted first: the order of the file names is the order of work.

1. Open images/ with annotations/{name} in a tool that reads and writes COCO keypoints. It may rename the pictures,
   as long as the long number stays in each name: that is the id of the record.

2. Correct the poses. Of each joint x, y are pixels, and v is 2 visible, 1 hidden, 0 not known. If nobody is there, leave the person
   with 0, 0, 0 for every joint. What the model expects of itself stands in the attributes of each person.

3. Save as COCO keypoints, and give the file to

   alpose-harvest import CORRECTED.json --into dataset/

{UNCHANGED}"""


def flat(keypoints_J2: Any, visibility_J: Any) -> list[float | int]:
    """[x, y, v, x, y, v, ...]; a joint that is not labelled is 0, 0, 0."""
    values: list[float | int] = []
    for (x, y), v in zip(np.asarray(keypoints_J2).tolist(), np.asarray(visibility_J).tolist(), strict=True):
        values += [round(x, DIGITS), round(y, DIGITS), int(v)] if v != HIDDEN else [0, 0, 0]
    return values


def _annotation(task: Task, number: int, place: int) -> dict[str, Any]:
    x0, y0, x1, y1 = task.box_4
    return {
        "id": number,
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
                       "device": task.device, "record": task.id},
    }  # fmt: skip


# --- Back


def _unnamed_joints(value: dict[str, Any]) -> int | None:
    """How many joints everybody has in a file with one category that names none; None for any other file."""
    categories = [one for one in value["categories"] if isinstance(one, dict)]
    if len(categories) != 1 or categories[0].get("keypoints"):
        return None
    given = [one.get("keypoints") for one in value["annotations"] if isinstance(one, dict)]
    lengths = {len(joints) for joints in given if isinstance(joints, list) and joints}
    length = lengths.pop() if len(lengths) == 1 else 0
    return length // 3 if length and length % 3 == 0 else None


def _images(file: LabelFile, find_id: FindId, problems: list[str]) -> dict[str, tuple[str, tuple[float, float] | None]]:
    """Record's id and stated size of each image, by its key. That a key names two files is an error: a pose could be stored
    as that of another picture."""
    names: dict[str, str] = {}
    images = {}
    for place, image in enumerate(file.value["images"]):
        name = str(image.get("file_name")) if isinstance(image, dict) else str(image)[:80]
        key = plain_id(image.get("id")) if isinstance(image, dict) else None
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
            images[key] = (id_, stated_size(image))
    return images


@dataclass
class _Found:
    """People by image, and what was passed over, while a file is read."""

    name: str
    joints: tuple[str, ...]
    """For messages."""
    named: tuple[str, ...]
    """The same, or none where the file does not name them."""
    people: dict[str, list[Pose]] = field(default_factory=dict)
    """By image; an image all of whose people were refused has an empty list."""
    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, annotation: Any, where: str, category_id: Any, images: dict[str, Any]) -> None:
        """One annotation: a person, something else, or a problem."""
        known = annotation if isinstance(annotation, dict) else {}
        reason = not_a_person(known, category_id)
        if reason is not None:
            self.left_out[reason] += 1
            return
        key = plain_id(known.get("image_id"))
        if key is None or key not in images:
            self.problems.append(f"{where} belongs to no image with an id of a record")
            return
        people = self.people.setdefault(key, [])
        try:
            keypoints_J2, visibility_J = placed_joints(known.get("keypoints"), len(self.joints))
        except ValueError as error:
            self.problems.append(f"{where} ({images[key][0]}): {error}")
            return
        unplaced = [joint for joint, v, placed in zip(self.joints, known["keypoints"][2::3], visibility_J, strict=True)
                    if float(v or 0) and not placed]  # fmt: skip
        if unplaced:
            self.problems.append(f"{where} ({images[key][0]}): {', '.join(unplaced)} at 0, 0 is taken for not labelled")
        keypoints_J2 = np.where(visibility_J[:, None] != HIDDEN, keypoints_J2, 0.0)
        if any(np.array_equal(keypoints_J2, one.keypoints_J2) for one in people):
            self.left_out["poses that are there twice"] += 1
            return
        attributes = known.get("attributes")
        record = attributes.get("record") if isinstance(attributes, dict) else None
        people.append(Pose(joints=self.named, keypoints_J2=keypoints_J2, visibility_J=visibility_J,
                           record=record if is_hex(record, 32) else None))  # fmt: skip

    def notes(self) -> tuple[str, ...]:
        """What was passed over without being a problem, counted."""
        return tuple(f"{self.name}: {count} {what}" for what, count in self.left_out.items())
