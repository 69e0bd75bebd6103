"""What annotators said, into a dataset: ``alpose-harvest import``.

A part of a batch is enough, and importing it twice changes nothing. Whatever cannot be used is named, and written down.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import to_json
from alpose.runtime.skeleton import Skeleton

from ..batch import Batch, Choice
from ..dataset import FIELD, Merged, OnConflict, merge, write_once
from ..field.labelled import Definition
from ..formats import FORMATS, LabelFile, Unrecognised, format_of, is_aside, label_suffixes
from ..formats.coco import RESOLUTION_PX, flat
from ..formats.files import no_labels, open_files, shortened
from ..inbox import DATABASE, Inbox
from ..inbox_database import Entry
from ..labels import (
    HIDDEN,
    Answer,
    Answers,
    Correction,
    Item,
    JointSummary,
    Pose,
    Task,
    Unchanged,
    by_joint,
    compare_people,
    known_id_in,
    looked_at,
)
from .exporting import Skeletons, entries_known, item_of


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
    nobody: int
    """Of the accepted and corrected: without a single joint, so that nobody is there."""
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
        files: in any of the formats, also archives and folders of them; several parts of a batch may overlap.
        dataset: the folder; it need not exist.
        unchanged: what to make of poses that come back as they went out from a tool that does not say whether anybody
            has looked: see :func:`~alpose.tools.labels.looked_at`.
        on_conflict: see :func:`merge`.
    """
    if (dataset / DATABASE).exists():
        raise ConfigError(f"{dataset} is an inbox: give the folder of a dataset, or a new one")
    reading = _Import(inbox)
    for path in files:
        try:
            reading.read(path)
        except DataError as error:
            if len(files) == 1:
                raise
            reading.problems.append(str(error))
            reading.unread.append(_name(path))
    skeleton = reading.one_skeleton()
    for name, answers in reading.parts:
        reading.take(name, answers)
    reading.decide(unchanged)
    seen = reading.seen
    merged = None
    if seen:
        assert skeleton is not None  # A known frame has one.
        merged = merge(dataset, skeleton, reading.items, list(seen.values()), on_conflict=on_conflict,
                       batches=reading.batches_seen(), tallies=reading.tallies(),
                       bundles={sha256: facts.name for sha256, facts in inbox.bundles().items()},
                       failures=reading.failures())  # fmt: skip
        if inbox.writable:
            inbox.mark("annotated", seen)
        else:
            reading.problems.append(
                f"{inbox.folder} cannot be written by this user: it does not learn that these frames are annotated"
            )
    return Imported(
        forms=reading.forms, merged=merged,
        accepted=sum(one.status == "accepted" for one in seen.values()),
        corrected=sum(one.status == "corrected" for one in seen.values()),
        nobody=sum(not (one.pose.visibility_J != HIDDEN).any() for one in seen.values()),
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
        self._skeleton_of: list[tuple[str, Skeleton]] = []
        self.parts: list[tuple[str, Answers]] = []
        self.forms: dict[str, str] = {}
        self.items: dict[str, Item] = {}
        self._pictures: Counter[tuple[str, str]] = Counter()
        self._rank: dict[str, int] = {}
        """Of the picture of each record: several people may be on one, which is worked on once."""
        self._unanswered: dict[str, str] = {}
        """People without a pose in an answer to their picture, and what to say of them."""
        self.seen: dict[str, Correction] = {}
        self.unopened: dict[str, None] = {}
        self.lost: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.unread: list[str] = []
        self._entries: dict[str, Entry] = {}
        self._batches: dict[str, Batch] = {}
        self._choices: dict[tuple[str, str], Choice] = {}
        self._compared: dict[tuple[str, str], list[tuple[str, Correction]]] = {}
        """Each with the name of its file, by what gives the order of work: a batch or a file."""

    # What files say

    def read(self, path: Path) -> None:
        """Read a file, an archive or a folder; :class:`DataError` where nothing in it can be relied on."""
        name = _name(path)
        files, problems = open_files(path, label_suffixes())
        # Where nothing else came back, what was handed out is read, and says itself what it lacks.
        came = [file for file in files if not is_aside(file)]
        files = came or [file for file in files if any(one.detect(file) for one in FORMATS.values())] or files
        self.problems += problems
        refused: list[tuple[LabelFile, DataError]] = []
        others: list[tuple[LabelFile, DataError]] = []
        for file in files:
            try:
                self._read_labels(file, name, str(path) if len(files) == 1 else file.name)
            except Unrecognised as error:
                # What is no JSON, or is named as labels are, may be a damaged file with labels; the rest is something else.
                (refused if file.problem is not None and file.claims_labels else others).append((file, error))
            except DataError as error:
                refused.append((file, error))
        if len(refused) + len(others) == len(files):
            said = [str(error) for file, error in (*refused, *others) if file.claims_labels or file.name == name]
            raise DataError(shortened(said)) if said else no_labels(name, label_suffixes())
        self.problems += [str(error) for _, error in refused]
        if others:
            named = shortened([file.name.removeprefix(f"{name}/").removeprefix(f"{name}:") for file, _ in others], ", ")
            self.notes.append(f"{name}: {len(others)} files without poses of people: {named}")

    def _read_labels(self, file: LabelFile, name: str, where: str) -> None:
        format_ = format_of(file)
        answers = format_.read(file, known_id_in(self.inbox.has))
        self._entries |= entries_known(self.inbox, sorted(answers.ids))
        self._check_skeleton(where, answers)
        self.forms[name] = format_.name
        self.problems += answers.problems
        self.notes += answers.notes
        if not answers.ids:
            self.problems.append(f"{file.name}: nobody has placed a joint, and no frame of it is known")
        self.parts.append((name, answers))

    def _check_skeleton(self, path: str, answers: Answers) -> None:
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

    def take(self, name: str, answers: Answers) -> None:
        """Compare the answers of a file with the predictions: of everybody whom the model knew in a picture."""
        for answer in answers.answers:
            item = self._item(answer, name)
            if item is None:
                continue
            assert self.skeleton is not None
            batch = self._entries[answer.id].batch
            asked, known = self._people(answer, item)
            try:
                corrections, missing, far = compare_people(answer, asked, self.skeleton, answers.resolution_px, known)
            except DataError as error:
                self.problems.append(f"{answer.where}: {error}")
                continue
            self.problems += [f"{answer.where}: {said}" for said in far]
            many = len(answer.people)
            for task in missing:
                said = f"none of the {many} people is" if many > 1 else "the person is not"
                self._unanswered.setdefault(
                    task.id, f"{answer.where}: {said} where the model was asked to look"
                    + (f" for {task.id}" if len(asked) > 1 else "")
                )  # fmt: skip
            # The order of work is the batch's, or for frames that nobody chose, the file's.
            order = ("file", name) if batch is None else ("batch", batch)
            self._pictures[order] += 1
            rank = min((task.rank for task in asked if task.rank), default=self._pictures[order])
            for one in corrections:
                self._rank[one.id] = rank
                self._compared.setdefault(order, []).append((name, one))

    def _people(self, answer: Answer, item: Item) -> tuple[list[Task], list[Task]]:
        """The people whom the annotator was given in a picture, and others whom the inbox knows in it."""
        asked, known = [item.task], list[Task]()
        batch = self._entries[answer.id].batch
        for id_ in self.inbox.on_same_frame(answer.id):
            self._entries |= entries_known(self.inbox, [id_])
            other = self._item(replace(answer, id=id_, people=()), "")
            entry = self._entries[id_]
            if (
                other is None
                or self.skeletons[entry.record.bundle] is not self.skeletons[self._entries[answer.id].record.bundle]
            ):
                continue
            (asked if batch is not None and entry.batch == batch else known).append(other.task)
        return asked, known

    def decide(self, unchanged: Unchanged) -> None:
        """Keep the answers that somebody has looked at, of all files together: a batch may come back in many files."""
        answered = {one.id for group in self._compared.values() for _, one in group}
        self.problems += [said for id_, said in self._unanswered.items() if id_ not in answered]
        for group in self._compared.values():
            corrections = [correction for _, correction in group]
            ranks = {one.id: self._rank[one.id] for one in corrections}
            looked, not_yet = looked_at(corrections, ranks, unchanged)
            self.unopened |= dict.fromkeys(one.id for one in not_yet)
            names = {correction: name for name, correction in group}
            for correction in looked:
                if not _same(self.seen.setdefault(correction.id, correction), correction):
                    self.problems.append(
                        f"{names[correction]}: {correction.id} has another answer in an earlier file; the first is kept"
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


def _name(path: Path) -> str:
    return path.name or path.resolve().name


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
