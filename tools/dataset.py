"""The dataset that a harvest fills: a COCO keypoints folder, written so that it is whole at every moment.

::

    DATASET/
      images/ID.jpg
      annotations/field.json      COCO; what a harvest knows of a frame stands under the key ``alpose``
      field/tallies.json          frames that the monitors counted, by device and bundle
      field/bundles.json          names of bundles by sha256
      field/failures.json         what each bundle calls a failure, by sha256
      field/batches/NAME.json     batches of which something was imported
      field/conflicts/TIME.json   answers that contradict what was there, and
      field/unknown/TIME.json     answers to frames that the inbox does not know: nothing is dropped

Image and annotation ids stay what they are while the dataset grows, and so do the ids under which people train. A part of a
batch is enough, and importing it twice changes nothing. Whatever cannot be used is named, and written down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.io import read_json, to_json, write_atomically, write_json
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.data.coco import skeleton_of

from .annotation import Skeletons, bring_file, entries_known, item_of
from .batch import Batch, Choice
from .field.labelled import Definition
from .formats import format_of
from .formats.coco import CATEGORY_ID, DIGITS, RESOLUTION_PX, category, flat
from .formats.files import open_files
from .inbox import Inbox
from .inbox_database import Entry
from .labels import (
    HIDDEN,
    Answer,
    Answers,
    Correction,
    Item,
    JointSummary,
    Pose,
    Unchanged,
    by_joint,
    compare,
    known_id_in,
    looked_at,
)

ANNOTATIONS = Path("annotations") / "field.json"
IMAGES, FIELD = "images", "field"

OnConflict = Literal["keep", "replace"]


# --- From files to a dataset


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did."""

    forms: Mapping[str, str]
    """Format of each file."""
    merged: Merged | None
    """None where nothing could be put into the dataset."""
    accepted: int
    """Poses that somebody looked at and left as they were."""
    corrected: int
    unopened: tuple[str, ...]
    """Ids that came back as they went out and are taken for not looked at."""
    unknown: tuple[str, ...]
    """Ids that the inbox does not know, or whose picture it does not have: their answers stand in ``unknown_path``."""
    unknown_path: Path | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    """What was left out without being a problem, counted."""
    unread: tuple[str, ...]
    """Files of which nothing could be read; each is among the problems."""
    joints: tuple[JointSummary, ...]


def import_labels(
    inbox: Inbox,
    files: Sequence[Path],
    dataset: Path,
    *,
    unchanged: Unchanged = "auto",
    on_conflict: OnConflict = "keep",
) -> Imported:
    """Put what annotators said into a dataset.

    Args:
        inbox: where the batch came from: it knows what the model had predicted, and has the pictures.
        files: in any of the formats; several parts of a batch may overlap.
        dataset: the folder; it need not exist.
        unchanged: what to make of poses that come back as they went out from a tool that does not say whether anybody
            has looked: see :func:`~alpose.tools.labels.looked_at`.
        on_conflict: see :func:`merge`.
    """
    reading = _Import(inbox)
    for path in files:
        try:
            reading.read(path)
        except DataError as error:
            if len(files) == 1:
                raise
            reading.problems.append(str(error))
            reading.unread.append(path.name)
    skeleton = reading.one_skeleton()
    for name, answers in reading.parts:
        reading.take(name, answers, unchanged)
    seen = reading.seen
    merged = None
    if seen:
        assert skeleton is not None  # A known frame has one.
        merged = merge(dataset, skeleton, reading.items, list(seen.values()), on_conflict=on_conflict,
                       batches=reading.batches_seen(), tallies=reading.tallies(),
                       bundles={sha256: facts.name for sha256, facts in inbox.bundles().items()},
                       failures=reading.failures())  # fmt: skip
        inbox.mark("annotated", seen)
    return Imported(
        forms=reading.forms, merged=merged,
        accepted=sum(one.status == "accepted" for one in seen.values()),
        corrected=sum(one.status == "corrected" for one in seen.values()),
        unopened=tuple(id_ for id_ in reading.unopened if id_ not in seen),
        unknown=tuple(dict.fromkeys(one["id"] for one in reading.lost)),
        unknown_path=write_once(dataset / FIELD / "unknown", reading.lost) if reading.lost else None,
        problems=tuple(reading.problems), notes=tuple(reading.notes), unread=tuple(reading.unread),
        joints=by_joint(list(seen.values()), skeleton.joints if skeleton else ()),
    )  # fmt: skip


class _Import:
    """What is known while files are imported: the frames that they speak of, and what became of each answer."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox, self.skeletons = inbox, Skeletons(inbox)
        self.skeleton: Skeleton | None = None
        self._skeleton_of: list[tuple[Path, Skeleton]] = []
        self.parts: list[tuple[str, Answers]] = []
        self.forms: dict[str, str] = {}
        self.items: dict[str, Item] = {}
        self.seen: dict[str, Correction] = {}
        self.unopened: dict[str, None] = {}
        self.lost: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.unread: list[str] = []
        self._entries: dict[str, Entry] = {}
        self._batches: dict[str, Batch] = {}
        self._choices: dict[tuple[str, str], Choice] = {}

    # What files say

    def read(self, path: Path) -> None:
        """Read a file; :class:`DataError` where it cannot be relied on."""
        files, problems = open_files(path)
        self.problems += problems
        for file in files:
            format_ = format_of(file)
            answers = format_.read(file, known_id_in(self.inbox.has))
            self.forms[path.name] = format_.name
            self._entries |= entries_known(self.inbox, sorted(answers.ids))
            self._check_skeleton(path, answers)
            self.problems += answers.problems
            self.notes += answers.notes
            if not answers.ids:
                self.problems.append(f"{path.name}: nobody has placed a joint, and no frame of it is known")
            self.parts.append((path.name, answers))

    def _check_skeleton(self, path: Path, answers: Answers) -> None:
        bundles = {self._entries[id_].record.bundle for id_ in answers.ids & self._entries.keys()}
        found = {self.skeletons[bundle].joints: self.skeletons[bundle] for bundle in bundles}
        if not found:
            return
        if len(found) > 1:
            names = " and ".join(sorted(repr(skeleton.name) for skeleton in found.values()))
            raise DataError(
                f"{path} mixes frames with the joints of {names}: export each skeleton into a file of its own"
            )
        (skeleton,) = found.values()
        if answers.joints is not None and sorted(answers.joints) != sorted(skeleton.joints):
            parts = (
                ("missing", set(skeleton.joints) - set(answers.joints)),
                ("unknown", set(answers.joints) - set(skeleton.joints)),
            )
            differences = "".join(f"; {what}: {', '.join(sorted(names))}" for what, names in parts if names)
            raise DataError(f"{path}: its joints are not those of skeleton {skeleton.name!r}{differences}")
        self._skeleton_of.append((path, skeleton))

    def one_skeleton(self) -> Skeleton | None:
        """The skeleton of all files; None where no file names a known frame."""
        for path, skeleton in self._skeleton_of:
            self.skeleton = self.skeleton or skeleton
            if skeleton.joints != self.skeleton.joints:
                raise DataError(f"{path} has the joints of {skeleton.name!r}, the files before it those of "
                                f"{self.skeleton.name!r}: a dataset has one skeleton; import them apart")  # fmt: skip
        return self.skeleton

    # What becomes of answers

    def take(self, name: str, answers: Answers, unchanged: Unchanged) -> None:
        """Compare the answers of a file with the predictions, and keep those that somebody has looked at."""
        by_batch: dict[str | None, list[Correction]] = {}
        for answer in answers.answers:
            item = self._item(answer, name)
            if item is None:
                continue
            assert self.skeleton is not None
            try:
                correction = compare(answer, item.task, self.skeleton, answers.resolution_px)
            except DataError as error:
                self.problems.append(f"{answer.where}: {error}")
                continue
            by_batch.setdefault(self._entries[answer.id].batch, []).append(correction)
        for group in by_batch.values():
            # The order of work is the batch's, or for frames that nobody chose, the file's.
            ranks = {one.id: self.items[one.id].task.rank or place for place, one in enumerate(group, start=1)}
            looked, not_yet = looked_at(group, ranks, unchanged)
            self.unopened |= dict.fromkeys(one.id for one in not_yet)
            for correction in looked:
                if not _same(self.seen.setdefault(correction.id, correction), correction):
                    self.problems.append(
                        f"{name}: {correction.id} has another answer in an earlier file; the first is kept"
                    )

    def _item(self, answer: Answer, file: str) -> Item | None:
        """The frame that an answer is about; None where there is no picture of it, and then the answer is kept aside."""
        if answer.id in self.items:
            return self.items[answer.id]
        made: Item | str = "the inbox does not know it"
        entry = self._entries.get(answer.id)
        if entry is not None:
            if entry.batch is not None:
                self._batch(entry.batch)
            batch = entry.batch or ""
            made = item_of(self.inbox, entry, self._choices.get((batch, answer.id)), batch)
        if not isinstance(made, str):
            self.items[answer.id] = made
            return made
        for pose in answer.people:
            self.lost.append({
                "id": answer.id, "why": made, "file": file, "joints": list(pose.joints),
                "keypoints": flat(_in_pixels(answer, pose), pose.visibility_J), "annotator": answer.annotator,
            })  # fmt: skip
        return None

    def _batch(self, name: str) -> Batch:
        if name not in self._batches:
            self._batches[name] = self.inbox.batch(name)
            self._choices |= {(name, choice.id): choice for choice in self._batches[name].choices}
        return self._batches[name]

    # What goes into the dataset besides

    def batches_seen(self) -> list[Batch]:
        """Batches that some of the imported frames belong to."""
        names = {self._entries[id_].batch for id_ in self.seen}
        return [self._batch(name) for name in sorted(name for name in names if name is not None)]

    def tallies(self) -> list[dict[str, Any]]:
        """What the monitors counted, of bundles whose frames can be in this dataset."""
        assert self.skeleton is not None
        known = self.inbox.bundles()
        return [row for row in self.inbox.field_tallies()
                if row["bundle"] not in known or self.skeletons[row["bundle"]].joints == self.skeleton.joints]  # fmt: skip

    def failures(self) -> dict[str, Any]:
        """What each calibrated bundle calls a failure, as a field report reads it."""
        found = {sha256: Definition.of_bundle(known.facts, f"bundle {known.name}")
                 for sha256, known in self.inbox.bundles().items()}  # fmt: skip
        return {sha256: to_json(definition) for sha256, definition in found.items() if definition is not None}


def _in_pixels(answer: Answer, pose: Pose) -> Any:
    if not answer.in_percent:
        return pose.keypoints_J2
    return pose.keypoints_J2 * np.array(answer.size or (100.0, 100.0)) / 100 - 0.5


def _same(a: Correction, b: Correction) -> bool:
    poses = [(a.pose, b.pose), *zip(a.others, b.others, strict=False)]
    return len(a.others) == len(b.others) and all(
        bool((one.visibility_J == other.visibility_J).all())
        and np.allclose(one.keypoints_J2, other.keypoints_J2, atol=RESOLUTION_PX)
        for one, other in poses
    )


# --- The dataset's files


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
    document = _Document(dataset, skeleton)
    conflicts: list[dict[str, Any]] = []
    added = unchanged = replaced = 0
    for correction in corrections:
        item = items[correction.id]
        people = _people(item, correction)
        there = document.people(correction.id)
        if there is None:
            bring_file(item.image, dataset / IMAGES / _file_name(item))
            document.add(item, people)
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
    for batch in batches:
        write_json(dataset / FIELD / "batches" / f"{batch.name}.json", batch.to_json())
    # Last, so that whatever it names is there.
    if added or replaced or not (dataset / ANNOTATIONS).exists():
        write_atomically(dataset / ANNOTATIONS, json.dumps(document.value, allow_nan=False).encode())
    return Merged(added=added, unchanged=unchanged, replaced=replaced, total=len(document.value["images"]),
                  conflicts=tuple(one["id"] for one in conflicts))  # fmt: skip


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
        self._image_of = {image["alpose"]["id"]: image["id"] for image in self.value["images"] if "alpose" in image}
        self._people: dict[Any, list[dict[str, Any]]] = {}
        for one in self.value["annotations"]:
            self._people.setdefault(one["image_id"], []).append(one)
        self._next_image = 1 + max((int(image["id"]) for image in self.value["images"]), default=0)
        self._next_person = 1 + max((int(one["id"]) for one in self.value["annotations"]), default=0)

    def people(self, id_: str) -> list[dict[str, Any]] | None:
        """The annotations of a record's image; None where it is not in the dataset."""
        return self._people.get(self._image_of[id_], []) if id_ in self._image_of else None

    def add(self, item: Item, people: Sequence[Mapping[str, Any]]) -> None:
        """A new image with the people in it."""
        # Ids of images and people are equal for as long as there is one person an image.
        number = max(self._next_image, self._next_person)
        self.value["images"].append({"id": number, "file_name": _file_name(item), "width": item.task.width,
                                     "height": item.task.height, "alpose": dict(item.facts)})  # fmt: skip
        self._image_of[item.task.id] = number
        self._next_image, self._next_person = number + 1, number
        self._append(number, people)

    def replace(self, id_: str, people: Sequence[Mapping[str, Any]]) -> None:
        """Other people in the place of those that are there; whoever stays keeps the id."""
        there = self.people(id_) or []
        for old, new in zip(there, people, strict=False):
            old.update(new)
        gone = [one["id"] for one in there[len(people) :]]
        self.value["annotations"] = [one for one in self.value["annotations"] if one["id"] not in gone]
        added = people[len(there) :]
        del there[len(people) :]
        self._append(self._image_of[id_], added)

    def _append(self, image_id: int, people: Sequence[Mapping[str, Any]]) -> None:
        for person in people:
            annotation = {"id": self._next_person, "image_id": image_id, **person}
            self.value["annotations"].append(annotation)
            self._people.setdefault(image_id, []).append(annotation)
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
