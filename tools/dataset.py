"""The dataset that a harvest fills: a COCO keypoints folder, written so that it is whole at every moment.

::

    DATASET/
      images/ID.jpg
      annotations/field.json      COCO; what a harvest knows of a frame stands under the key ``alpose``
      field/tallies.json          frames that the monitors counted, by device and bundle
      field/bundles.json          names of bundles by sha256
      field/batches/NAME.json     batches of which something was imported
      field/conflicts/TIME.json   answers that contradict what was there, and
      field/unknown/TIME.json     answers to frames that the inbox does not know: nothing is dropped

Image and annotation ids stay what they are while the dataset grows, and so do the ids under which people train.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.io import read_json, replacing, write_atomically, write_json
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.data.coco import skeleton_of

from .annotation import HIDDEN, Answer, Task
from .batch import Batch
from .corrections import Correction
from .formats import coco

ANNOTATIONS = Path("annotations") / "field.json"
IMAGES = "images"
FIELD = "field"

OnConflict = Literal["keep", "replace"]
ON_CONFLICT: tuple[OnConflict, ...] = get_args(OnConflict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A frame with everything that is known of it."""

    task: Task
    image: Path
    facts: Mapping[str, Any]
    """What stands under ``alpose`` of an image: see :mod:`alpose.tools.field.labelled`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What an import did to a dataset."""

    added: int
    unchanged: int
    """Had the same answer already."""
    replaced: int
    conflicts: tuple[str, ...]
    """Ids whose answer contradicts the one that was there."""
    total: int
    """Frames in the dataset now."""


def merge(
    dataset: Path,
    skeleton: Skeleton,
    items: Mapping[str, Item],
    corrections: Sequence[Correction],
    *,
    on_conflict: OnConflict = "keep",
    batches: Sequence[Batch] = (),
    tallies: Sequence[Mapping[str, Any]] = (),
    bundles: Mapping[str, str] | None = None,
) -> Merged:
    """Put answers into a dataset, which may not exist yet. Doing it twice changes nothing.

    Args:
        dataset: the folder.
        skeleton: of all frames.
        items: by id; every correction's is there.
        corrections: what annotators said.
        on_conflict: ``keep`` what is there or ``replace`` it where another answer comes for the same frame; both are
            written to ``field/conflicts/``.
        batches: batches that the answers belong to.
        tallies: the monitors' counts.
        bundles: names by sha256.
    """
    document = _document(dataset, skeleton)
    row_of = {image["alpose"]["id"]: row for row, image in enumerate(document["images"]) if "alpose" in image}
    annotation_of = {annotation["image_id"]: annotation for annotation in document["annotations"]}
    next_id = 1 + max((int(image["id"]) for image in document["images"]), default=0)
    added = unchanged = replaced = 0
    conflicts: list[dict[str, Any]] = []
    for correction in corrections:
        item = items[correction.answer.id]
        annotation = _annotation(item, correction)
        if correction.answer.id not in row_of:
            _copy(item, dataset)
            document["images"].append(_image(item, next_id))
            document["annotations"].append({"id": next_id, "image_id": next_id, **annotation})
            row_of[correction.answer.id] = len(document["images"]) - 1
            annotation_of[next_id] = document["annotations"][-1]
            next_id, added = next_id + 1, added + 1
            continue
        there = annotation_of[document["images"][row_of[correction.answer.id]]["id"]]
        if there["keypoints"] == annotation["keypoints"]:
            unchanged += 1
            continue
        conflicts.append({"id": correction.answer.id, "there": there["keypoints"], "came": annotation["keypoints"],
                          "kept": "there" if on_conflict == "keep" else "came"})  # fmt: skip
        if on_conflict == "replace":
            there.update(annotation)
            replaced += 1
    if conflicts:
        write_once(dataset / FIELD / "conflicts", conflicts)
    # A dataset may be filled from several inboxes: each replaces what it counted itself.
    if tallies:
        path = dataset / FIELD / "tallies.json"
        there = read_json(path) if path.exists() else []
        rows = {(row["device"], row["bundle"]): dict(row) for row in (*there, *tallies)}
        write_json(path, [rows[key] for key in sorted(rows)])
    if bundles:
        path = dataset / FIELD / "bundles.json"
        write_json(path, {**(read_json(path) if path.exists() else {}), **bundles})
    for batch in batches:
        write_json(dataset / FIELD / "batches" / f"{batch.name}.json", batch.to_json())
    # Last, so that whatever it names is there.
    if added or replaced or not (dataset / ANNOTATIONS).exists():
        write_atomically(dataset / ANNOTATIONS, json.dumps(document, allow_nan=False).encode())
    return Merged(added=added, unchanged=unchanged, replaced=replaced, total=len(document["images"]),
                  conflicts=tuple(one["id"] for one in conflicts))  # fmt: skip


def annotated_ids(dataset: Path) -> frozenset[str]:
    """Ids of the records that a dataset holds; none where there is no dataset."""
    path = dataset / ANNOTATIONS
    if not path.exists():
        return frozenset()
    return frozenset(image["alpose"]["id"] for image in read_json(path)["images"] if "alpose" in image)


def write_once(folder: Path, value: Any) -> Path:
    """Write what has to be looked at under the time of day, unless the same lies there from an earlier import."""
    for path in sorted(folder.glob("*.json")):
        if read_json(path) == value:
            return path
    return write_json(folder / f"{_now()}.json", value)


def _document(dataset: Path, skeleton: Skeleton) -> dict[str, Any]:
    path = dataset / ANNOTATIONS
    if not path.exists():
        return {"info": {"description": "harvested with alpose"}, "licenses": [], "images": [], "annotations": [],
                "categories": [coco.category(skeleton)]}  # fmt: skip
    document: dict[str, Any] = read_json(path)
    try:
        there = skeleton_of(document["categories"][0], path)
        if there.joints != skeleton.joints:
            raise DataError(
                f"{path} holds people with the joints of {there.name!r}, these frames have those of {skeleton.name!r}: "
                "import them into another dataset"
            )
        if not isinstance(document["images"], list) or not isinstance(document["annotations"], list):
            raise TypeError("images and annotations must be lists")
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): restore it, or import into another folder") from error
    return document


def _image(item: Item, id_: int) -> dict[str, Any]:
    return {"id": id_, "file_name": f"{item.task.id}{item.task.suffix}", "width": item.task.width,
            "height": item.task.height, "alpose": dict(item.facts)}  # fmt: skip


def _annotation(item: Item, correction: Correction) -> dict[str, Any]:
    answer = correction.answer
    labelled_J = answer.visibility_J != HIDDEN
    low_2, high_2 = _around(answer)
    predicted = np.column_stack([item.task.keypoints_J2, item.task.scores_J])
    facts: dict[str, Any] = {
        "status": correction.status,
        "predicted": [round(value, 3) if math.isfinite(value) else None for value in predicted.ravel().tolist()],
        "distance_px": [None if np.isnan(value) else round(value, 3) for value in correction.distance_J.tolist()],
    }
    if answer.annotator is not None:
        facts["annotator"] = answer.annotator
    size = high_2 - low_2
    return {
        "category_id": coco.CATEGORY_ID,
        "keypoints": coco.flat(answer.keypoints_J2, answer.visibility_J),
        "num_keypoints": int(labelled_J.sum()),
        "bbox": [round(float(value), coco.DIGITS) for value in (*low_2, *size)],
        "area": round(float(size[0] * size[1]), coco.DIGITS),
        "iscrowd": 0,
        "alpose": facts,
    }


def _around(answer: Answer) -> tuple[Any, Any]:
    """The tight box of the labelled joints, as in every other reader of this package."""
    labelled_M2 = answer.keypoints_J2[answer.visibility_J != HIDDEN]
    if not len(labelled_M2):
        return np.zeros(2), np.zeros(2)
    return labelled_M2.min(axis=0), labelled_M2.max(axis=0)


def _copy(item: Item, dataset: Path) -> None:
    """The picture, whole or not at all."""
    target = dataset / IMAGES / f"{item.task.id}{item.task.suffix}"
    if target.exists():
        return
    with replacing(target) as temporary:
        shutil.copyfile(item.image, temporary)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
