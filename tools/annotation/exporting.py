"""A batch on its way to annotators: frames with a picture, in a folder that their tool can load.

::

    OUT/
      batch.json                       the batch
      images/00001_ID.jpg              the order of names is the order of work
      annotations/person_keypoints_NAME.json              coco
      annotations.zip, labels.json, README.txt            cvat
      tasks.json, interface.xml, README.txt               label-studio

Where the bundles of a batch have different skeletons, each skeleton has such a folder of its own below OUT.

Shapes: J joints.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.runtime.io import bring_file, read_json, write_json
from alpose.runtime.queue import images
from alpose.runtime.queue.record import PictureInfo
from alpose.runtime.skeleton import Skeleton
from alpose.runtime.triggers import Reason

from ..batch import Batch, Choice
from ..formats import format_named
from ..inbox import Inbox
from ..inbox_database import Entry
from ..labels import Handout, Item, Task

BATCH, IMAGES = "batch.json", "images"
EXPORTED = ".exported.json"
"""Format and hashes of the files that were written, beside the batch."""
IMAGE_URL = "/data/local-files/?d=images/"
"""How Label Studio names a file below its document root."""

KEYPOINTS_ONLY, DELETED, SEALED, ELSEWHERE, DAMAGED, UNREADABLE = (
    "only their keypoints were stored",
    "deleted on the device before they were fetched",
    "under seal",
    "not fetched yet",
    "damaged in the inbox",
    "as damaged as their device sent them",
)
"""Why a frame has no picture that could be shown."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The frames of a batch: those that can be annotated, and why the others cannot."""

    items: Mapping[Skeleton, Sequence[Item]]
    """In the batch's order. Bundles whose skeletons differ make groups of their own: a tool shows one skeleton."""
    missing: Mapping[str, Sequence[str]]
    """Ids by reason: :data:`KEYPOINTS_ONLY` and so on."""

    def __len__(self) -> int:
        return sum(map(len, self.items.values()))


@dataclass(frozen=True, slots=True)
class Written:
    """What was written for annotators."""

    folders: tuple[Path, ...]
    """One a skeleton."""
    pictures: int
    """With several people on some of them, fewer than ``people``."""
    people: int
    missing: Mapping[str, Sequence[str]]
    """Ids without a picture that can be shown, by reason."""


def write_batch(
    inbox: Inbox,
    batch: Batch,
    to: str,
    out: Path,
    *,
    image_url: str = IMAGE_URL,
    link: bool = False,
    force: bool = False,
) -> Written:
    """Write a batch for an annotation tool. Doing it again adds what has been fetched since, unless somebody worked in its files.

    Args:
        inbox: where the pictures lie.
        batch: what was chosen.
        to: the name of a registered format.
        out: a folder that does not exist, is empty, or holds this batch in this format already; :class:`DataError` otherwise.
        image_url: what stands before each file name in Label Studio's tasks.
        link: hard-link the images in place of copying them, where the file system can.
        force: write the predictions anew over files that were changed since they were written; otherwise that is a
            :class:`DataError`, because annotators may have worked in them.
    """
    format_ = format_named(to)
    several = bool(getattr(format_, "several_people", False))
    gathered = gather(inbox, batch)
    if not gathered:
        return Written((), 0, 0, gathered.missing)
    written_before = _claim(out, batch, to, force)
    before = _hashes(out)
    names = {bundle: facts.name for bundle, facts in inbox.bundles().items()}
    folders, written = [], 0
    for number, (skeleton, items) in enumerate(gathered.items.items(), start=1):
        folder = out / f"{number}-{_plain(skeleton.name)}" if len(gathered.items) > 1 else out
        pictures = by_picture(items) if several else [[item] for item in items]
        for first, *_ in pictures:
            bring_file(first.image, folder / IMAGES / first.task.file_name, link=link)
        bundles = dict.fromkeys(str(item.facts["bundle"]) for item in items)
        model = ", ".join(f"{names.get(bundle, 'alpose')} {bundle[:8]}" for bundle in bundles)
        tasks = [replace(first.task, others=tuple(item.task for item in others)) for first, *others in pictures]
        written += len(pictures)
        format_.write(
            Handout(tasks=tasks, skeleton=skeleton, name=batch.name, image_url=image_url, model=model), folder
        )
        folders.append(folder)
    after = _hashes(out)
    ours = {name: sha256 for name, sha256 in after.items() if name in written_before or before.get(name) != sha256}
    write_json(out / EXPORTED, {"to": to, "files": ours})
    return Written(tuple(folders), written, len(gathered), gathered.missing)


def by_picture(items: Sequence[Item]) -> list[list[Item]]:
    """The people of each picture, in the order of the first of them."""
    found: dict[tuple[Any, ...], list[Item]] = {}
    for item in items:
        found.setdefault(picture_key(item.facts), []).append(item)
    return list(found.values())


def picture_key(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two people on one frame have in common: device, time, and the very same picture."""
    picture = facts.get("picture")
    return (facts["id"],) if picture is None else (facts["device"], facts["captured_ns"], picture)


def gather(inbox: Inbox, batch: Batch) -> Gathered:
    """Every choice of a batch whose picture is here, and what stands in the way of the others."""
    skeletons = Skeletons(inbox)
    items: dict[Skeleton, list[Item]] = {}
    missing: dict[str, list[str]] = {}
    choices = sorted(batch.choices, key=lambda choice: choice.rank)
    for choice, entry in zip(choices, inbox.entries(choice.id for choice in choices), strict=True):
        item = item_of(inbox, entry, choice, batch.name)
        if not isinstance(item, str) and not decodes(item.image.read_bytes()):
            item = UNREADABLE
        if isinstance(item, str):
            missing.setdefault(item, []).append(choice.id)
        else:
            items.setdefault(skeletons[entry.record.bundle], []).append(item)
    return Gathered(items, missing)


def advice(missing: Mapping[str, Sequence[str]], inbox: str, batch: str) -> list[str]:
    """One line a reason: how many frames it keeps from the annotators, and what to do about it."""
    do = {
        KEYPOINTS_ONLY: "nothing can be done: their device stores no pictures (store=keypoints)",
        DELETED: "nothing can be done",
        SEALED: f"open them: alpose-harvest unseal {inbox}",
        DAMAGED: f"their files are not what the device sent: alpose-harvest pull SOURCE --into {inbox} fetches them again "
        "while their device has them; otherwise restore the inbox",
        UNREADABLE: "nothing can be done",
        ELSEWHERE: f"fetch them: alpose-harvest pull SOURCE --into {inbox} --images {batch}",
    }
    return [f"{len(ids)} of the batch are left out, {why}; {do[why]}" for why, ids in missing.items()]


def item_of(inbox: Inbox, entry: Entry, choice: Choice | None, batch: str = "") -> Item | str:
    """A frame with everything that is known of it, or why it cannot be shown.

    Args:
        inbox: where its picture lies.
        entry: the frame.
        choice: how it was chosen; None for a frame that nobody chose, and that was annotated all the same.
        batch: the name of the choice's batch.
    """
    picture = next((fact for fact in entry.pictures if fact.position == 0), None)
    if picture is None:
        return KEYPOINTS_ONLY
    holder, path = entry.record.id, inbox.image(entry.record.id)
    if path is None and not entry.fetched:
        holder, path = inbox.image_of_frame(entry.record.id)
    if path is None:
        return why_absent(entry, picture)
    if not picture.sealed and inbox.picture_bytes(holder, picture) is None:
        return DAMAGED
    record = entry.record
    task = Task(
        id=record.id,
        rank=choice.rank if choice else 0,
        width=picture.width,
        height=picture.height,
        keypoints_J2=to_image(record.keypoints_J2.astype(np.float64), picture),
        scores_J=record.certainty_J.astype(np.float64),
        box_4=_box(record.box, picture),
        failure_probability=record.failure_probability,
        reason="; ".join(
            [
                *(str(Reason(*reason)) for reason in record.reasons),
                *([choice.reason] if choice else []),
                *([f"{record.redacted} redacted"] if record.redacted else []),
            ]
        ),
        device=record.device,
        suffix=path.suffix,
    )
    return Item(task=task, image=path, facts=_facts(entry, picture, choice, batch))


def decodes(content: bytes) -> bool:
    """Whether a picture can be looked at: its hash says only that it is what the device stored."""
    try:
        images.decode(content)
    except DataError:
        return False
    return True


def why_absent(entry: Entry, picture: PictureInfo) -> str:
    """Why a picture that was stored is not here."""
    return SEALED if picture.sealed and entry.fetched else DELETED if entry.deleted else ELSEWHERE


def to_image(points_N2: npt.NDArray[np.float64], picture: PictureInfo) -> npt.NDArray[np.float64]:
    """Points of the frame in pixels of a picture that may be a part of it, or smaller: the inverse of what
    :class:`~alpose.runtime.queue.record.Picture` says."""
    return (points_N2 - np.array(picture.origin)) / picture.scale - 0.5


class Skeletons(dict[str, Skeleton]):
    """The skeleton of each bundle of an inbox, looked up once."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__()
        self._inbox = inbox

    def __missing__(self, bundle: str) -> Skeleton:
        skeleton = self._inbox.skeleton_of(bundle)
        # Bundles that name the same joints in the same order are annotated together, whatever else they say.
        self[bundle] = next((other for other in self.values() if other.joints == skeleton.joints), skeleton)
        return self[bundle]


def entries_known(inbox: Inbox, ids: Iterable[str]) -> dict[str, Entry]:
    """Those of the ids that the inbox knows."""
    return {entry.record.id: entry for entry in inbox.entries(id_ for id_ in ids if inbox.has(id_))}


def _claim(out: Path, batch: Batch, to: str, force: bool) -> Mapping[str, str]:
    """Say in the folder what it is, so that nothing else is written over. Returns what was written there before, with its hashes."""
    if out.exists() and any(out.iterdir()):
        mine = (out / BATCH).exists() and Batch.from_json(read_json(out / BATCH), str(out / BATCH)) == batch
        if not mine:
            raise DataError(f"{out} holds something else than batch {batch.name!r}: give another --out, or remove it")
    write_json(out / BATCH, batch.to_json())
    path = out / EXPORTED
    record = read_json(path) if path.exists() else {}
    files = record.get("files") if isinstance(record, dict) else None
    if not isinstance(files, dict):  # an older alpose wrote the folder, or nobody
        return {}
    if record.get("to") != to:
        raise DataError(f"{out} holds the batch for {record.get('to')}: give another --out for {to}")
    there = _hashes(out)
    changed = sorted(name for name, sha256 in files.items() if there.get(name, sha256) != sha256)
    if changed and not force:
        more = f", and {len(changed) - 1} more," if len(changed) > 1 else ""
        raise DataError(
            f"{out / changed[0]}{more} was changed since it was written: annotators may have worked in it. Import it first, "
            "give another --out, or --force to write the predictions anew"
        )
    return files


def _hashes(out: Path) -> dict[str, str]:
    """sha256 of every file of a handout but its pictures, and what says what it is, by name."""
    paths = [path for path in out.rglob("*") if path.is_file() and IMAGES not in path.relative_to(out).parts]
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths if path.name not in (BATCH, EXPORTED)
    }  # fmt: skip


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)[:40]


def _box(box: Sequence[float], picture: PictureInfo) -> tuple[float, float, float, float]:
    """Around the person in pixels of the picture, and within it; the whole picture where the box says nothing."""
    whole = (0.0, 0.0, picture.width - 1.0, picture.height - 1.0)
    corners_22 = to_image(np.array(box, dtype=np.float64).reshape(2, 2), picture)
    if not np.isfinite(corners_22).all():
        return whole
    (x0, y0), (x1, y1) = np.clip(corners_22, 0, whole[2:]).tolist()
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else whole


def _facts(entry: Entry, picture: PictureInfo, choice: Choice | None, batch: str) -> dict[str, Any]:
    """What a dataset keeps under ``alpose`` of an image: see :mod:`alpose.tools.field.labelled`."""
    record = entry.record
    copied = ("id", "device", "camera", "bundle", "captured_ns", "flagged")
    return {
        **{name: getattr(record, name) for name in copied},
        "picture": picture.sha256,
        "failure_probability": _number(record.failure_probability),
        "predicted_loss": _number(record.predicted_loss),
        "threshold": record.threshold,
        "inclusion_probability": record.inclusion_probability,
        "control_draw": record.control_draw,
        "control_rate": entry.control_rate,
        "stream": choice.stream if choice else "value",
        "select_probability": choice.select_probability if choice else None,
        "batch": batch,
        **({"redacted": record.redacted} if record.redacted else {}),
        "reasons": [[name, _number(value), _number(limit)] for name, value, limit in record.reasons],
    }


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity, and a model can have both: they stand as words that ``float`` reads."""
    return value if math.isfinite(value) else str(value)
