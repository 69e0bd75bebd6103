"""From an inbox to what annotators get: frames with a picture, in the coordinates of that picture.

Shapes: J joints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.queue.record import PictureInfo
from alpose.runtime.skeleton import Skeleton
from alpose.runtime.triggers import Reason

from .annotation import Task
from .batch import Batch, Choice
from .dataset import Item
from .inbox import Inbox
from .inbox_records import Entry

KEYPOINTS_ONLY, DELETED, SEALED, ELSEWHERE = (
    "only their keypoints were stored",
    "deleted on the device before they were fetched",
    "under seal",
    "not fetched yet",
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


def gather(inbox: Inbox, batch: Batch) -> Gathered:
    """Every choice of a batch whose picture is here, and what stands in the way of the others."""
    skeletons = Skeletons(inbox)
    items: dict[Skeleton, list[Item]] = {}
    missing: dict[str, list[str]] = {}
    choices = sorted(batch.choices, key=lambda choice: choice.rank)
    for choice, entry in zip(choices, inbox.entries(choice.id for choice in choices), strict=True):
        item = item_of(inbox, entry, choice, batch.name)
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
    path = inbox.image(entry.record.id)
    if path is None:
        return SEALED if picture.sealed and entry.fetched else DELETED if entry.deleted else ELSEWHERE
    record = entry.record
    scores_J = np.nan_to_num(record.scores_J.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0)
    task = Task(
        id=record.id,
        rank=choice.rank if choice else 0,
        width=picture.width,
        height=picture.height,
        keypoints_J2=to_image(record.keypoints_J2.astype(np.float64), picture),
        scores_J=scores_J,
        box_4=_box(record.box, picture),
        failure_probability=record.failure_probability,
        reason="; ".join([*(str(Reason(*reason)) for reason in record.reasons), *([choice.reason] if choice else [])]),
        device=record.device,
        suffix=path.suffix,
    )
    return Item(task=task, image=path, facts=_facts(entry, choice, batch))


def to_image(points_N2: npt.NDArray[np.float64], picture: PictureInfo) -> npt.NDArray[np.float64]:
    """Points of the frame in pixels of a picture that may be a part of it, or smaller: the inverse of what
    :class:`~alpose.runtime.queue.record.Picture` says."""
    return (points_N2 - np.array(picture.origin)) / picture.scale - 0.5


class Skeletons(dict[str, Skeleton]):
    """The skeleton of each bundle of an inbox, asked for once."""

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


def _box(box: Sequence[float], picture: PictureInfo) -> tuple[float, float, float, float]:
    """Around the person in pixels of the picture, and within it; the whole picture where the box says nothing."""
    whole = (0.0, 0.0, picture.width - 1.0, picture.height - 1.0)
    corners_22 = to_image(np.array(box, dtype=np.float64).reshape(2, 2), picture)
    if not np.isfinite(corners_22).all():
        return whole
    (x0, y0), (x1, y1) = np.clip(corners_22, 0, whole[2:]).tolist()
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else whole


def _facts(entry: Entry, choice: Choice | None, batch: str) -> dict[str, Any]:
    """What a dataset keeps under ``alpose`` of an image: see :mod:`alpose.tools.field.labelled`."""
    record = entry.record
    return {
        "id": record.id,
        "device": record.device,
        "camera": record.camera,
        "bundle": record.bundle,
        "captured_ns": record.captured_ns,
        "flagged": record.flagged,
        "failure_probability": _number(record.failure_probability),
        "predicted_loss": _number(record.predicted_loss),
        "threshold": record.threshold,
        "inclusion_probability": record.inclusion_probability,
        "control_draw": record.control_draw,
        "control_rate": entry.control_rate,
        "stream": choice.stream if choice else "value",
        "select_probability": choice.select_probability if choice else None,
        "batch": batch,
        "reasons": [[name, _number(value), _number(limit)] for name, value, limit in record.reasons],
    }


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity, and a model can have both: they stand as words that ``float`` reads."""
    return value if math.isfinite(value) else str(value)
