"""COCO keypoints: what pycocotools, CVAT and most others read and write.

Source: https://cocodataset.org/#format-data

Shapes: J joints.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.io import parse_json
from alpose.runtime.skeleton import Skeleton

from ..annotation import HIDDEN, Answer, Answers, Task, check_tasks, id_in, order_of

CATEGORY_ID = 1
DIGITS = 2
"""CVAT and others round to hundredths of a pixel; so do we, to know our own answers again."""
RESOLUTION_PX = 10.0**-DIGITS
MAX_BYTES = 1 << 30
"""Of an annotation file, also inside an archive."""

Documents = tuple[tuple[str, Any], ...]
"""(where it stands, parsed JSON) of each annotation file."""


def document(tasks: Sequence[Task], skeleton: Skeleton) -> dict[str, Any]:
    """The predictions as COCO annotations."""
    check_tasks(tasks, skeleton)
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
    return {
        "id": CATEGORY_ID,
        "name": "person",
        "supercategory": "",
        "keypoints": list(skeleton.joints),
        "skeleton": [[a + 1, b + 1] for a, b in skeleton.links],
    }


def flat(keypoints_J2: Any, visibility_J: Any) -> list[float | int]:
    """[x, y, v, x, y, v, ...]; a joint that is not labelled is 0, 0, 0."""
    values: list[float | int] = []
    for (x, y), v in zip(np.asarray(keypoints_J2).tolist(), np.asarray(visibility_J).tolist(), strict=True):
        values += [round(x, DIGITS), round(y, DIGITS), int(v)] if v != HIDDEN else [0, 0, 0]
    return values


def read(path: Path, skeleton: Skeleton) -> Answers:
    """Answers in a COCO file, or in an archive as CVAT exports it."""
    return read_documents(documents(path), skeleton)


def read_documents(found: Documents, skeleton: Skeleton) -> Answers:
    """Answers in parsed files.

    Whether somebody has looked at a pose that comes back as it went out cannot be known from this format.
    """
    answers: dict[str, Answer] = {}
    problems: list[str] = []
    for where, value in found:
        _check(value, where)
        _read_one(value, skeleton, where, answers, problems)
    return Answers(tuple(answers.values()), tuple(problems), RESOLUTION_PX)


def ids_of(found: Documents) -> frozenset[str]:
    """Ids of the records whose images are listed."""
    names = [str(image.get("file_name")) for where, value in found for image in _check(value, where)["images"]
             if isinstance(image, dict)]  # fmt: skip
    return frozenset(id_ for id_ in map(id_in, names) if id_ is not None)


def joints_of(found: Documents) -> tuple[str, ...]:
    """Names of the joints, in the file's order."""
    return tuple(
        str(joint) for where, value in found for joint in _with_joints(_check(value, where), where)["keypoints"]
    )


def _check(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(value.get(k), list) for k in _LISTS):
        raise DataError(f"{where} is not in COCO form: it needs the lists {', '.join(_LISTS)}")
    return value


def _with_joints(value: dict[str, Any], where: str) -> dict[str, Any]:
    found = [
        c
        for c in value["categories"]
        if isinstance(c, dict) and isinstance(c.get("keypoints"), list) and c["keypoints"]
    ]
    if len(found) != 1:
        raise DataError(f"{where}: expected one category with keypoints, found {len(found)}. From CVAT, export as "
                        "COCO Keypoints 1.0")  # fmt: skip
    return found[0]


_LISTS = ("images", "annotations", "categories")


def documents(path: Path) -> Documents:
    """The parsed annotation files in a JSON file or an archive, each with its name for messages."""
    found = []
    for name, content in annotation_files(path):
        where = f"{path.name}:{name}" if name else path.name
        try:
            found.append((where, parse_json(content)))
        except DataError as error:
            raise DataError(f"{where} is no annotation file: {error}") from error
    return tuple(found)


def annotation_files(path: Path) -> list[tuple[str, bytes]]:
    """Name and content of the annotation files in a JSON file or an archive; nothing is unpacked to the disk."""
    if not zipfile.is_zipfile(path):
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES} bytes: it is no annotation file")
        return [("", path.read_bytes())]
    found = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.lower().endswith(".json"):
                continue
            with archive.open(entry) as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise DataError(f"{path}: {entry.filename} is larger than {MAX_BYTES} bytes: it is no annotation file")
            found.append((entry.filename, content))
    keypoints = [one for one in found if "person_keypoints" in one[0]] or found
    if not keypoints:
        raise DataError(f"{path} holds no JSON file: export it as COCO Keypoints 1.0")
    return keypoints


def archive(value: dict[str, Any], name: str) -> bytes:
    """A document as the archive that CVAT uploads: ``annotations/person_keypoints_NAME.json``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        # A fixed time, so that the same batch gives the same bytes.
        entry = zipfile.ZipInfo(f"annotations/person_keypoints_{name}.json", (1980, 1, 1, 0, 0, 0))
        entry.compress_type = zipfile.ZIP_DEFLATED
        zipped.writestr(entry, json.dumps(value))
    return buffer.getvalue()


def _annotation(task: Task, place: int) -> dict[str, Any]:
    x0, y0, x1, y1 = task.box_4
    keypoints = flat(task.keypoints_J2, task.visibility_J)
    return {
        "id": place,
        "image_id": place,
        "category_id": CATEGORY_ID,
        "keypoints": keypoints,
        "num_keypoints": int((task.visibility_J != HIDDEN).sum()),
        "bbox": [round(x0, DIGITS), round(y0, DIGITS), round(x1 - x0, DIGITS), round(y1 - y0, DIGITS)],
        "area": round((x1 - x0) * (y1 - y0), DIGITS),
        "iscrowd": 0,
        "score": round(float(np.mean(task.scores_J)), 4),
        "attributes": attributes(task),
    }


def attributes(task: Task) -> dict[str, str]:
    """What CVAT shows beside the skeleton."""
    return {"failure_probability": f"{task.failure_probability:.2f}", "reason": task.reason, "device": task.device}


def _read_one(
    value: dict[str, Any], skeleton: Skeleton, where: str, answers: dict[str, Answer], problems: list[str]
) -> None:
    order = order_of([str(name) for name in _with_joints(value, where)["keypoints"]], skeleton, where)
    ids: dict[Any, str] = {}
    for image in value["images"]:
        name = str(image.get("file_name")) if isinstance(image, dict) else str(image)[:80]
        id_ = id_in(name)
        if id_ is None:
            problems.append(f"{where}: image {name!r} carries no id of a record")
        else:
            ids[image.get("id")] = id_
    people = Counter(a.get("image_id") for a in value["annotations"] if isinstance(a, dict))
    for place, annotation in enumerate(value["annotations"]):
        at = f"{where}: annotations[{place}]"
        if not isinstance(annotation, dict) or annotation.get("image_id") not in ids:
            problems.append(f"{at} belongs to no image with an id of a record")
            continue
        id_ = ids[annotation["image_id"]]
        if people[annotation["image_id"]] > 1:
            problems.append(f"{at} ({id_}): {people[annotation['image_id']]} people in this image: keep the one that "
                            "the model was asked about")  # fmt: skip
            continue
        try:
            joints_J3 = np.asarray(annotation["keypoints"], dtype=np.float64).reshape(len(skeleton), 3)[order]
            if not np.isfinite(joints_J3).all() or not np.isin(joints_J3[:, 2], (0, 1, 2)).all():
                raise ValueError("a number is not finite, or v is not 0, 1 or 2")
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{at} ({id_}): keypoints must be {len(skeleton)} times x, y, v ({error})")
            continue
        if id_ in answers:
            problems.append(f"{at}: {id_} is answered twice; the first answer is kept")
            continue
        visibility_J = joints_J3[:, 2].astype(np.int64)
        answers[id_] = Answer(
            id=id_,
            keypoints_J2=np.where(visibility_J[:, None] != HIDDEN, joints_J3[:, :2], 0.0),
            visibility_J=visibility_J,
            looked_at=False,
        )
    problems += [f"{where}: image {id_} has no pose: to say that nobody is there, keep the skeleton with all joints outside"
                 for image_id, id_ in ids.items() if not people[image_id]]  # fmt: skip
