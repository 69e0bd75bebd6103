"""What annotators said, into a dataset: ``alpose-harvest import``.

A part of a batch is enough, and doing it twice changes nothing. Whatever cannot be used is named, and written down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import Skeleton

from .annotation import Answer
from .batch import Batch, Choice
from .corrections import Correction, JointSummary, Unchanged, by_joint, compare, looked_at
from .dataset import FIELD, Item, Merged, OnConflict, merge, write_once
from .formats import coco
from .formats.incoming import Incoming, open_incoming
from .inbox import Inbox
from .inbox_records import Entry
from .tasks import Skeletons, entries_known, item_of


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
    joints: tuple[JointSummary, ...]


def bring_in(
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
            has looked: see :func:`~alpose.tools.corrections.looked_at`.
        on_conflict: see :func:`~alpose.tools.dataset.merge`.
    """
    came = [open_incoming(path) for path in files]
    entries = entries_known(inbox, sorted(frozenset().union(*(one.ids for one in came))))
    skeletons = Skeletons(inbox)
    desk = _Desk(inbox, entries)
    skeleton: Skeleton | None = None
    seen: dict[str, Correction] = {}
    unopened: dict[str, None] = {}
    lost: list[dict[str, Any]] = []
    problems: list[str] = []
    for one in came:
        found = _skeleton_of(one, [entries[id_] for id_ in sorted(one.ids & entries.keys())], skeletons)
        if found is None:
            problems.append(f"{one.path.name}: nobody has placed a joint, and no frame of it is known")
            continue
        if one.ids & entries.keys():
            if skeleton is not None and found.joints != skeleton.joints:
                raise DataError(f"{one.path} has the joints of {found.name!r}, the files before it those of {skeleton.name!r}: "
                                "a dataset has one skeleton; import them apart")  # fmt: skip
            skeleton = found
        answers = one.read(found)
        problems += answers.problems
        known = []
        for answer in answers.answers:
            if desk.item(answer.id) is None:
                lost.append(_kept_aside(answer, found, desk.why(answer.id), one.path.name))
            else:
                known.append(compare(desk.items[answer.id].task, answer, answers.resolution_px))
        for group in desk.by_batch(known):
            looked, not_yet = looked_at(group, desk.ranks(group), unchanged)
            unopened |= dict.fromkeys(correction.answer.id for correction in not_yet)
            for correction in looked:
                first = seen.setdefault(correction.answer.id, correction)
                if not _same(first.answer, correction.answer):
                    problems.append(f"{one.path.name}: {correction.answer.id} has another answer in an earlier file; the "
                                    "first is kept")  # fmt: skip
    merged = None
    if seen:
        assert skeleton is not None  # A known frame has one.
        merged = merge(dataset, skeleton, desk.items, list(seen.values()), on_conflict=on_conflict,
                       batches=desk.batches_of(seen), tallies=_tallies(inbox, skeleton, skeletons),
                       bundles={sha256: facts.name for sha256, facts in inbox.bundles().items()})  # fmt: skip
        inbox.mark("annotated", seen)
    return Imported(
        forms={one.path.name: one.form for one in came}, merged=merged,
        accepted=sum(one.status == "accepted" for one in seen.values()),
        corrected=sum(one.status == "corrected" for one in seen.values()),
        unopened=tuple(id_ for id_ in unopened if id_ not in seen),
        unknown=tuple(dict.fromkeys(one["id"] for one in lost)),
        unknown_path=write_once(dataset / FIELD / "unknown", lost) if lost else None,
        problems=tuple(problems), joints=by_joint(list(seen.values()), skeleton.joints if skeleton else ()),
    )  # fmt: skip


class _Desk:
    """The frames that answers came for, each with its picture and its place in a batch."""

    def __init__(self, inbox: Inbox, entries: Mapping[str, Entry]) -> None:
        self.inbox, self.entries = inbox, entries
        names = sorted({entry.batch for entry in entries.values() if entry.batch is not None})
        self.batches: dict[str, Batch] = {name: inbox.batch(name) for name in names}
        self.choices: dict[tuple[str, str], Choice] = {
            (name, choice.id): choice for name, batch in self.batches.items() for choice in batch.choices
        }
        self.items: dict[str, Item] = {}
        self._why: dict[str, str] = {}

    def item(self, id_: str) -> Item | None:
        """A frame with its picture; None where there is none, and :meth:`why` says why."""
        if id_ not in self.items and id_ not in self._why:
            entry = self.entries.get(id_)
            name = entry.batch or "" if entry else ""
            made = (
                item_of(self.inbox, entry, self.choices.get((name, id_)), name)
                if entry
                else "the inbox does not know it"
            )
            if isinstance(made, str):
                self._why[id_] = made
            else:
                self.items[id_] = made
        return self.items.get(id_)

    def why(self, id_: str) -> str:
        """Why there is no item."""
        return self._why[id_]

    def by_batch(self, corrections: Sequence[Correction]) -> list[list[Correction]]:
        """The answers to each batch; frames that nobody chose are a group of their own."""
        groups: dict[str | None, list[Correction]] = {}
        for one in corrections:
            groups.setdefault(self.entries[one.answer.id].batch, []).append(one)
        return list(groups.values())

    def ranks(self, corrections: Sequence[Correction]) -> dict[str, int]:
        """The order of work: the batch's, or where there is none, the file's."""
        return {one.answer.id: self.items[one.answer.id].task.rank or place
                for place, one in enumerate(corrections, start=1)}  # fmt: skip

    def batches_of(self, ids: Mapping[str, object]) -> list[Batch]:
        """Batches that some of these frames belong to."""
        names = {self.entries[id_].batch for id_ in ids}
        return [batch for name, batch in self.batches.items() if name in names]


def _skeleton_of(one: Incoming, entries: Sequence[Entry], skeletons: Skeletons) -> Skeleton | None:
    """The skeleton of a file's frames; that of its joints alone where no frame is known, None where it has neither."""
    found = {skeletons[bundle].joints: skeletons[bundle] for bundle in {entry.record.bundle for entry in entries}}
    if len(found) > 1:
        names = " and ".join(sorted(repr(skeleton.name) for skeleton in found.values()))
        raise DataError(
            f"{one.path} mixes frames with the joints of {names}: export each skeleton into a file of its own"
        )
    if found:
        return next(iter(found.values()))
    return Skeleton("unknown", one.joints, (), ()) if one.joints else None


def _kept_aside(answer: Answer, skeleton: Skeleton, why: str, file: str) -> dict[str, Any]:
    return {"id": answer.id, "why": why, "file": file, "joints": list(skeleton.joints),
            "keypoints": coco.flat(answer.keypoints_J2, answer.visibility_J), "annotator": answer.annotator}  # fmt: skip


def _same(a: Answer, b: Answer) -> bool:
    return bool((a.visibility_J == b.visibility_J).all()) and np.allclose(
        a.keypoints_J2, b.keypoints_J2, atol=coco.RESOLUTION_PX
    )


def _tallies(inbox: Inbox, skeleton: Skeleton, skeletons: Skeletons) -> list[dict[str, Any]]:
    """What the monitors counted, of bundles whose frames can be in this dataset."""
    known = inbox.bundles()
    return [row for row in inbox.field_tallies()
            if row["bundle"] not in known or skeletons[row["bundle"]].joints == skeleton.joints]  # fmt: skip
