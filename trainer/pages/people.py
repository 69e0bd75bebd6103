"""People as pictures: what a method selected first, and people beside their nearest labelled neighbours.

The second is the form of Fig. 3 in the EGL++ paper.

Shapes: G people in the gallery, Q people looked at, K neighbours of each, U distinct neighbours, J joints, S crop side.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from alpose.runtime.skeleton import Skeleton

from ..cycles.results import Gallery, Lookalikes
from . import formatting as fmt
from .pose import Bools, Pose, pose

SHOWN = 12
"""People per method."""
SIDE, NEIGHBOUR_SIDE = 208, 112
"""Sides of the JPEGs in pixels; there are many of the second. The poses stay sharp."""
QUALITY = 80
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")

Joints = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Picture:
    """One person: a small JPEG with poses as paths on top, in pixels of the crop."""

    id: str
    source: str
    """JPEG data URI."""
    side: int
    true: Pose
    predicted: Pose | None
    caption: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """One person and the neighbours, the nearest first."""

    title: str
    person: Picture
    near: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Which labelled people the model takes some people for, by one method."""

    groups: tuple[Group, ...]
    weighted: bool
    """Neighbours have the probabilities of ``egl++``."""
    embedding: str


def gallery(found: Gallery) -> tuple[Picture, ...]:
    """The first people of a gallery."""
    return tuple(
        picture(found.ids[g], found.crops_GSS3[g], SIDE, found.skeleton, found.true_GJ2[g], found.labelled_GJ[g],
                found.predicted_GJ2[g],
                (f"PCK {fmt.number(float(found.image_pck_G[g]), 2)}",
                 f"loss {fmt.significant(float(found.true_loss_G[g]))}",
                 f"score {fmt.significant(float(found.score_G[g]))}"))
        for g in range(min(SHOWN, len(found.ids)))
    )  # fmt: skip


def neighbours(found: Lookalikes) -> Neighbours | None:
    """All that was kept for one method; None where nobody is labelled or was selected."""
    if not found.row_QK.size:
        return None
    weighted = bool(np.isfinite(found.weight_QK).all())
    near = [
        picture(found.near_ids[u], found.near_crops_USS3[u], NEIGHBOUR_SIDE, found.skeleton, found.near_true_UJ2[u],
                found.near_labelled_UJ[u])
        for u in range(len(found.near_ids))
    ]  # fmt: skip
    groups = []
    for q in range(len(found.ids)):
        score = f"score {fmt.significant(float(found.score_Q[q]))}"
        person = picture(found.ids[q], found.crops_QSS3[q], NEIGHBOUR_SIDE, found.skeleton, found.true_QJ2[q],
                         found.labelled_QJ[q], found.predicted_QJ2[q], (score,))  # fmt: skip
        faces = []
        for u, weight, distance in zip(*(a_QK[q].tolist() for a_QK in (found.row_QK, found.weight_QK, found.distance_QK)),
                                       strict=True):  # fmt: skip
            caption = f"distance {fmt.significant(distance)}"
            faces.append(replace(near[u], caption=(f"{fmt.percent(weight)} · {caption}" if weighted else caption,)))
        title = f"Selected {ordinal(q)}" if q < found.first else "Among the lowest scores"
        groups.append(Group(title, person, tuple(faces)))
    return Neighbours(tuple(groups), weighted, found.embedding)


def picture(
    id_: str,
    crop_SS3: npt.NDArray[np.uint8],
    side: int,
    skeleton: Skeleton,
    true_J2: Joints,
    labelled_J: Bools,
    predicted_J2: Joints | None = None,
    caption: tuple[str, ...] = (),
) -> Picture:
    """One person; joints that are not labelled or not finite are not drawn. Pixel centres move to SVG's places."""
    predicted = None
    if predicted_J2 is not None:
        predicted = pose(predicted_J2 + 0.5, np.ones(len(predicted_J2), dtype=np.bool_), skeleton.links)
    true = pose(true_J2 + 0.5, labelled_J, skeleton.links)
    return Picture(id_, data_uri(crop_SS3, side), len(crop_SS3), true, predicted, caption)


def ordinal(place: int) -> str:
    """``first`` for 0."""
    return ORDINALS[place] if place < len(ORDINALS) else f"as number {place + 1}"


def data_uri(crop_SS3: npt.NDArray[np.uint8], side: int) -> str:
    """A crop as JPEG, made smaller where it is larger than it is shown."""
    bgr = np.ascontiguousarray(crop_SS3[..., ::-1])
    if len(bgr) > side:
        bgr = cv2.resize(bgr, (side, side), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
