"""The dataset that a harvest fills: a COCO keypoints folder, written so that it is whole at every moment.

::

    DATASET/
      images/ID.jpg
      annotations/field.json      COCO; what a harvest knows of a frame stands under the key ``alpose``: of an image, and
                                  of further people on it, who are records of their own, of their annotations
      field/tallies.json          frames that the monitors counted, by device and bundle
      field/bundles.json          names of bundles by sha256
      field/failures.json         what each bundle calls a failure, by sha256
      field/batches/NAME.json     batches of which something was imported
      field/conflicts/TIME.json   answers that contradict what was there, and
      field/unknown/TIME.json     answers to frames that the inbox does not know: nothing is dropped

Image and annotation ids stay what they are while the dataset grows, and so do the ids under which people train.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.io import bring_file, read_json, write_atomically, write_json
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.data.coco import skeleton_of

from .annotation.exporting import picture_key
from .batch import Batch
from .formats.coco import CATEGORY_ID, DIGITS, category, flat
from .labels import (
    HIDDEN,
    SAME_PERSON,
    Correction,
    Item,
    Pose,
)

log = logging.getLogger("alpose")

ANNOTATIONS = Path("annotations") / "field.json"
IMAGES, FIELD = "images", "field"

OnConflict = Literal["keep", "replace"]


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
    failures: Mapping[str, Any] | None = None,
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
        failures: what each bundle calls a failure, by sha256.
    """
    kept = [_named_apart(dataset, batch) for batch in batches]
    renamed = {stored.called: stored.batch.name for stored in kept if stored.called != stored.batch.name}
    for called, name in renamed.items():
        log.warning("%s holds another batch called %r already: this one is kept there as %r", dataset, called, name)
    document = _Document(dataset, skeleton)
    conflicts: list[dict[str, Any]] = []
    added = unchanged = replaced = 0
    for correction in corrections:
        item = items[correction.id]
        if item.facts.get("batch") in renamed:
            item = replace(item, facts={**item.facts, "batch": renamed[item.facts["batch"]]})
        people = _people(item, correction)
        there = document.people(correction.id)
        if there is None:
            if document.add(item, people):
                bring_file(item.image, dataset / IMAGES / _file_name(item))
            added += 1
        elif [one["keypoints"] for one in there] == [one["keypoints"] for one in people]:
            unchanged += 1
        else:
            conflicts.append(_conflict(correction.id, there, people, on_conflict))
            if on_conflict == "replace":
                document.replace(correction.id, people)
                replaced += 1
    if conflicts:
        write_once(dataset / FIELD / "conflicts", conflicts)
    # A dataset may be filled from several inboxes: each replaces what it counted itself.
    if tallies:
        path = dataset / FIELD / "tallies.json"
        rows = {(row["device"], row["bundle"]): dict(row) for row in (*_read_or(path, []), *tallies)}
        write_json(path, [rows[key] for key in sorted(rows)])
    for name, values in (("bundles.json", bundles), ("failures.json", failures)):
        if values:
            write_json(dataset / FIELD / name, {**_read_or(dataset / FIELD / name, {}), **values})
    for stored in kept:
        write_json(_batch_file(dataset, stored.batch.name), stored.batch.to_json())
    # Last, so that whatever it names is there.
    if added or replaced or not (dataset / ANNOTATIONS).exists():
        write_atomically(dataset / ANNOTATIONS, json.dumps(document.value, allow_nan=False).encode())
    return Merged(added=added, unchanged=unchanged, replaced=replaced, total=len(document.value["images"]),
                  conflicts=tuple(one["id"] for one in conflicts))  # fmt: skip


class _Stored(NamedTuple):
    """A batch under the name that it has in a dataset."""

    called: str
    """Its own."""
    batch: Batch


def _named_apart(dataset: Path, batch: Batch) -> _Stored:
    """Inboxes may have batches of one name: the report weighs each by its own counts, so each has a name of its own here."""
    number = 1
    while True:
        named = batch if number == 1 else replace(batch, name=f"{batch.name[:60]}-{number}")
        path = _batch_file(dataset, named.name)
        if not path.exists() or Batch.from_json(read_json(path), str(path)) == named:
            return _Stored(batch.name, named)
        number += 1


def _batch_file(dataset: Path, name: str) -> Path:
    return dataset / FIELD / "batches" / f"{name}.json"


def write_once(folder: Path, value: Any) -> Path:
    """Write what has to be looked at under the time of day, unless the same lies there from an earlier import."""
    for path in sorted(folder.glob("*.json")):
        if read_json(path) == value:
            return path
    return write_json(folder / f"{datetime.now(timezone.utc).strftime('%Y%m%dT%H%M%S%fZ')}.json", value)


class _Document:
    """``annotations/field.json`` in memory."""

    def __init__(self, dataset: Path, skeleton: Skeleton) -> None:
        path = dataset / ANNOTATIONS
        self.value: dict[str, Any] = {
            "info": {"description": "harvested with alpose"}, "licenses": [], "images": [], "annotations": [],
            "categories": [category(skeleton)],
        }  # fmt: skip
        if path.exists():
            self.value = _checked(read_json(path), skeleton, path)
        known = [image for image in self.value["images"] if "alpose" in image]
        self._image_of = {image["alpose"]["id"]: image["id"] for image in known}
        self._record_of = {image["id"]: image["alpose"]["id"] for image in known}
        self._image_with = {picture_key(image["alpose"]): image["id"] for image in known}
        self._people: dict[str, list[dict[str, Any]]] = {id_: [] for id_ in self._image_of}
        for one in self.value["annotations"]:
            record = (one.get("alpose") or {}).get("record")
            id_ = record["id"] if record else self._record_of.get(one["image_id"])
            if id_ is not None:
                self._image_of.setdefault(id_, one["image_id"])
                self._people.setdefault(id_, []).append(one)
        self._next_image = 1 + max((int(image["id"]) for image in self.value["images"]), default=0)
        self._next_person = 1 + max((int(one["id"]) for one in self.value["annotations"]), default=0)

    def people(self, id_: str) -> list[dict[str, Any]] | None:
        """The annotations of a record: of its person, and of those whom annotators added; None where it is not in the dataset."""
        return self._people.get(id_)

    def add(self, item: Item, people: Sequence[Mapping[str, Any]]) -> bool:
        """A new record with its people; whether its picture is a new image."""
        id_ = item.task.id
        image = self._image_with.get(picture_key(item.facts))
        if image is not None:
            first, *others = people
            self._drop_added(image, first)
            self._append(image, id_, [{**first, "alpose": {**first["alpose"], "record": dict(item.facts)}}])
            self._append(image, self._record_of[image], others)
            self._image_of[id_] = image
            return False
        # Ids of images and people are equal for as long as there is one person an image.
        number = max(self._next_image, self._next_person)
        self.value["images"].append({"id": number, "file_name": _file_name(item), "width": item.task.width,
                                     "height": item.task.height, "alpose": dict(item.facts)})  # fmt: skip
        self._image_of[id_], self._record_of[number], self._people[id_] = number, id_, []
        self._image_with[picture_key(item.facts)] = number
        self._next_image, self._next_person = number + 1, number
        self._append(number, id_, people)
        return True

    def _drop_added(self, image: Any, person: Mapping[str, Any]) -> None:
        """Forget somebody whom an annotator had added to an image, now that they are known as a person of a record."""
        added = self._people[self._record_of[image]]
        same = [one for one in added if (one.get("alpose") or {}).get("status") == "added"
                and _overlap(one["bbox"], person["bbox"]) >= SAME_PERSON]  # fmt: skip
        self._remove(same)
        self._people[self._record_of[image]] = [one for one in added if one not in same]

    def _remove(self, gone: Sequence[Mapping[str, Any]]) -> None:
        ids = {one["id"] for one in gone}
        if ids:
            self.value["annotations"] = [one for one in self.value["annotations"] if one["id"] not in ids]

    def replace(self, id_: str, people: Sequence[Mapping[str, Any]]) -> None:
        """Other people in the place of those that are there; whoever stays keeps the id."""
        there = self._people[id_]
        for old, new in zip(there, people, strict=False):
            kept = {"record": old["alpose"]["record"]} if "record" in (old.get("alpose") or {}) else {}
            old.update(new)
            old["alpose"] = {**new["alpose"], **kept}
        self._remove(there[len(people) :])
        added = people[len(there) :]
        del there[len(people) :]
        self._append(self._image_of[id_], self._record_of[self._image_of[id_]], added)

    def _append(self, image_id: int, id_: str, people: Sequence[Mapping[str, Any]]) -> None:
        """Add people to an image, as those of a record."""
        for person in people:
            annotation = {"id": self._next_person, "image_id": image_id, **person}
            self.value["annotations"].append(annotation)
            self._people.setdefault(id_, []).append(annotation)
            self._next_person += 1


def _checked(value: Any, skeleton: Skeleton, path: Path) -> dict[str, Any]:
    try:
        there = skeleton_of(value["categories"][0], path)
        if there.joints != skeleton.joints:
            raise DataError(
                f"{path} holds people with the joints of {there.name!r}, these frames have those of {skeleton.name!r}: "
                "import them into another dataset"
            )
        if not isinstance(value["images"], list) or not isinstance(value["annotations"], list):
            raise TypeError("images and annotations must be lists")
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}): restore it, or import into another folder") from error
    document: dict[str, Any] = value
    return document


def _people(item: Item, correction: Correction) -> list[dict[str, Any]]:
    """The annotations of an image: the person that the model was asked about first, then the others."""
    predicted = np.column_stack([item.task.keypoints_J2, item.task.scores_J])
    facts: dict[str, Any] = {
        "status": correction.status,
        "predicted": [round(value, 3) if math.isfinite(value) else None for value in predicted.ravel().tolist()],
        "distance_px": [None if np.isnan(value) else round(value, 3) for value in correction.distance_J.tolist()],
    }
    by = {} if correction.annotator is None else {"annotator": correction.annotator}
    return [
        _person(correction.pose, {**facts, **by}),
        *(_person(pose, {"status": "added", **by}) for pose in correction.others),
    ]


def _person(pose: Pose, facts: Mapping[str, Any]) -> dict[str, Any]:
    low_2, high_2 = pose.box()
    size = high_2 - low_2
    return {
        "category_id": CATEGORY_ID,
        "keypoints": flat(pose.keypoints_J2, pose.visibility_J),
        "num_keypoints": int((pose.visibility_J != HIDDEN).sum()),
        "bbox": [round(float(value), DIGITS) for value in (*low_2, *size)],
        "area": round(float(size[0] * size[1]), DIGITS),
        "iscrowd": 0,
        "alpose": dict(facts),
    }


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes as COCO has them: x, y, width, height; a pixel is one wide."""
    low_2 = np.maximum(one[:2], other[:2])
    high_2 = np.minimum(np.add(one[:2], one[2:]), np.add(other[:2], other[2:]))
    shared = float(np.prod(np.clip(high_2 - low_2 + 1, 0, None)))
    areas = (float(np.prod(np.add(box[2:], 1.0))) for box in (one, other))
    return shared / (sum(areas) - shared)


def _conflict(
    id_: str, there: Sequence[Mapping[str, Any]], people: Sequence[Mapping[str, Any]], on_conflict: OnConflict
) -> dict[str, Any]:
    """Both answers, as they are written down; those of other people in the picture under keys of their own."""
    conflict = {"id": id_, "there": there[0]["keypoints"] if there else None, "came": people[0]["keypoints"],
                "kept": "there" if on_conflict == "keep" else "came"}  # fmt: skip
    if len(there) > 1 or len(people) > 1:
        conflict |= {"others_there": [one["keypoints"] for one in there[1:]],
                     "others_came": [one["keypoints"] for one in people[1:]]}  # fmt: skip
    return conflict


def _file_name(item: Item) -> str:
    return f"{item.task.id}{item.task.suffix}"


def _read_or(path: Path, nothing: Any) -> Any:
    return read_json(path) if path.exists() else nothing
