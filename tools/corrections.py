"""Accepted as it was, or corrected, and by how much.

Shapes: J joints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .annotation import HIDDEN, Answer, Task

Status = Literal["accepted", "corrected"]
Unchanged = Literal["auto", "accept", "skip"]
UNCHANGED: tuple[Unchanged, ...] = get_args(Unchanged)


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """An answer beside what the model had predicted."""

    answer: Answer
    status: Status
    distance_J: npt.NDArray[np.float64]
    """From prediction to label in pixels of the image; NaN where one of the two has no position."""
    revealed: int
    """Joints that the annotator labelled and the prediction had outside of the image."""
    removed: int
    """Joints that were predicted and that nobody can know."""


def compare(task: Task, answer: Answer, resolution_px: float) -> Correction:
    """Tell an accepted pose from a corrected one, to the resolution of the format that brought it."""
    predicted_J, labelled_J = task.visibility_J != HIDDEN, answer.visibility_J != HIDDEN
    both_J = predicted_J & labelled_J
    distance_J = np.full(len(both_J), np.nan)
    distance_J[both_J] = np.linalg.norm(answer.keypoints_J2[both_J] - task.keypoints_J2[both_J], axis=1)
    # Rounding moves each axis by half a unit at most, and what rounding did is no correction: joint by joint.
    still_J = both_J & ~(distance_J > resolution_px)
    distance_J[still_J] = 0.0
    answer = replace(answer, keypoints_J2=np.where(still_J[:, None], task.keypoints_J2, answer.keypoints_J2))
    same = bool((task.visibility_J == answer.visibility_J).all() and not (distance_J > 0).any())
    return Correction(answer, "accepted" if same else "corrected", distance_J, int((labelled_J & ~predicted_J).sum()),
                      int((predicted_J & ~labelled_J).sum()))  # fmt: skip


def looked_at(
    corrections: Sequence[Correction], rank: Mapping[str, int], unchanged: Unchanged
) -> tuple[list[Correction], list[Correction]]:
    """Those that somebody has looked at, and those that came back as they went out because nobody has.

    Some tools do not tell an accepted pose from an unopened one. Frames are worked in the order of their ranks: with
    ``auto``, an unchanged pose counts as accepted up to the last corrected one, and as unopened after it.

    Args:
        corrections: of one batch.
        rank: of every id, in the order of work.
        unchanged: ``auto``; ``accept`` all of them; or ``skip`` them all.
    """
    corrected = [rank[one.answer.id] for one in corrections if one.status == "corrected"]
    last = max(corrected, default=0)
    seen: list[Correction] = []
    unopened: list[Correction] = []
    for one in corrections:
        certain = one.answer.looked_at or one.status == "corrected"
        accepted = unchanged == "accept" or (unchanged == "auto" and rank[one.answer.id] < last)
        (seen if certain or accepted else unopened).append(one)
    return seen, unopened


@dataclass(frozen=True, slots=True)
class JointSummary:
    """How far annotators moved one joint."""

    joint: str
    labelled: int
    moved: int
    median_px: float | None
    """Of those that were moved."""
    largest_px: float | None


def by_joint(corrections: Sequence[Correction], joints: Sequence[str]) -> tuple[JointSummary, ...]:
    """The correction distances of each joint."""
    if not corrections:
        return ()
    distance_NJ = np.stack([one.distance_J for one in corrections])
    labelled_NJ = np.stack([one.answer.visibility_J != HIDDEN for one in corrections])
    summaries = []
    for joint, name in enumerate(joints):
        moved = distance_NJ[:, joint][distance_NJ[:, joint] > 0]
        summaries.append(
            JointSummary(name, int(labelled_NJ[:, joint].sum()), len(moved),
                         float(np.median(moved)) if len(moved) else None, float(moved.max()) if len(moved) else None)
        )  # fmt: skip
    return tuple(summaries)
