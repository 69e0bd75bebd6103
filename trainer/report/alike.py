"""Nearest-neighbour pages (EGL++ paper, Fig. 3): people of the pool, each beside the labelled people nearest to it.

Shapes: Q people looked at, K lookalikes of each, U distinct lookalikes, J joints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..results import Lookalikes
from . import form
from .gallery import data_uri, joints_path, links_path

SIDE = 112
"""Side of a JPEG in pixels; there are many."""


@dataclass(frozen=True, slots=True)
class Face:
    """One picture: links and joints are SVG path data in pixels of the crop."""

    id: str
    source: str
    """JPEG data URI."""
    side: int
    true_links: str
    true_joints: str
    predicted_links: str
    predicted_joints: str
    words: str


@dataclass(frozen=True, slots=True)
class Group:
    """One person and its lookalikes, the nearest first."""

    title: str
    person: Face
    near: tuple[Face, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What one method's people look like to the model."""

    groups: tuple[Group, ...]
    weighed: bool
    """Neighbours have the probabilities of ``egl++``."""
    embedding: str


def page_of(alike: Lookalikes) -> Page | None:
    """All that was kept for one method; None where nobody is labelled or was selected."""
    if not alike.row_QK.size:
        return None
    weighed = bool(np.isfinite(alike.weight_QK).all())
    near = [near_face(alike, row) for row in range(len(alike.near_ids))]
    groups = []
    for place in range(len(alike.ids)):
        words = [
            f"{form.percent(weight)} · distance {form.significant(distance)}"
            if weighed
            else f"distance {form.significant(distance)}"
            for weight, distance in zip(alike.weight_QK[place].tolist(), alike.distance_QK[place].tolist(), strict=True)
        ]
        title = f"Selected {ordinal(place)}" if place < alike.first else "Among the lowest scores"
        faces = (replace(near[row], words=text) for row, text in zip(alike.row_QK[place].tolist(), words, strict=True))
        groups.append(Group(title, person_face(alike, place), tuple(faces)))
    return Page(tuple(groups), weighed, alike.embedding)


def ordinal(place: int) -> str:
    """``first`` for 0."""
    names = ("first", "second", "third", "fourth", "fifth", "sixth")
    return names[place] if place < len(names) else f"as number {place + 1}"


def person_face(alike: Lookalikes, place: int) -> Face:
    """A person of the pool with both skeletons."""
    links = alike.skeleton.links
    true_J2, predicted_J2 = alike.true_QJ2[place], alike.predicted_QJ2[place]
    drawn_J = alike.labelled_QJ[place] & np.isfinite(true_J2).all(axis=1)
    found_J = np.isfinite(predicted_J2).all(axis=1)
    return Face(
        alike.ids[place], data_uri(alike.crops_QSS3[place], SIDE), alike.crops_QSS3.shape[1],
        links_path(true_J2, drawn_J, links), joints_path(true_J2, drawn_J),
        links_path(predicted_J2, found_J, links), joints_path(predicted_J2, found_J),
        f"score {form.significant(float(alike.score_Q[place]))}",
    )  # fmt: skip


def near_face(alike: Lookalikes, row: int) -> Face:
    """A labelled person with the labels that it would lend."""
    true_J2 = alike.near_true_UJ2[row]
    drawn_J = alike.near_labelled_UJ[row] & np.isfinite(true_J2).all(axis=1)
    return Face(
        alike.near_ids[row], data_uri(alike.near_crops_USS3[row], SIDE), alike.near_crops_USS3.shape[1],
        links_path(true_J2, drawn_J, alike.skeleton.links), joints_path(true_J2, drawn_J), "", "", "",
    )  # fmt: skip
