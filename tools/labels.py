"""What annotators get and what comes back, whichever tool stands between; and how an answer differs from the prediction.

Coordinates are pixels of the picture that the annotator sees; the centre of the first pixel is (0, 0), as in COCO.
Visibility is COCO's: 0 not labelled, 1 labelled but hidden, 2 visible.

Shapes: J joints, M labelled joints, N answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.runtime.queue.fields import is_hex
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.data.records import far_outside

HIDDEN, OCCLUDED, VISIBLE = 0, 1, 2
SAME_PERSON = 0.5
"""Overlap from which a pose that was added is taken for a person whom the model knew."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
FindId = Callable[[str], str | None]
"""The id of the record that a file name carries, None where it carries none."""

Status = Literal["accepted", "corrected"]
Unchanged = Literal["auto", "accept", "skip"]

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_RANKED_ID = re.compile(r"(?<![0-9])[0-9]{5}_([0-9a-f]{32})(?![0-9a-f])")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One frame to annotate, with the model's pose as a start."""

    id: str
    """Of the record: 32 hex digits."""
    rank: int
    """From 1, most wanted first."""
    width: int
    height: int
    keypoints_J2: Floats
    scores_J: Floats
    box_4: tuple[float, float, float, float]
    """(x0, y0, x1, y1) around the person, in pixels of the image."""
    failure_probability: float
    reason: str
    """Why it was kept and chosen, for people."""
    device: str
    suffix: str = ".jpg"
    others: tuple[Task, ...] = ()
    """Further people to annotate in the same picture, whose name is this task's. Only formats that say so get them."""

    @property
    def people(self) -> tuple[Task, ...]:
        """Everybody to annotate in the picture."""
        return (self, *self.others)

    @property
    def file_name(self) -> str:
        """``00007_9f…c2.jpg``: tools show images by name, so the order of names is the order of work."""
        return f"{self.rank:05d}_{self.id}{self.suffix}"

    @property
    def visibility_J(self) -> Ints:
        """Visible where the predicted joint lies in the image, not labelled elsewhere."""
        x_J, y_J = self.keypoints_J2[:, 0], self.keypoints_J2[:, 1]
        inside_J = (x_J >= -0.5) & (y_J >= -0.5) & (x_J <= self.width - 0.5) & (y_J <= self.height - 0.5)
        return np.where(inside_J & np.isfinite(self.keypoints_J2).all(axis=1), VISIBLE, HIDDEN)

    @property
    def summary(self) -> str:
        """One line that the annotator sees beside the image."""
        if self.others:
            expected = ", ".join(f"{person.failure_probability:.0%}" for person in self.people)
            reasons = " · ".join(dict.fromkeys(person.reason for person in self.people))
            return f"{len(self.people)} people, expected to fail: {expected} · {reasons} · {self.device}"
        return f"expected to fail: {self.failure_probability:.0%} · {self.reason} · {self.device}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """A task with its picture, and all that a dataset keeps of the frame."""

    task: Task
    image: Path
    facts: Mapping[str, Any]
    """What stands under ``alpose`` of an image: see :mod:`alpose.tools.field.labelled`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handout:
    """The frames of one skeleton on their way to an annotation tool."""

    tasks: Sequence[Task]
    """In the order of work: one a picture where the format knows of several people, otherwise one a person."""
    skeleton: Skeleton
    name: str
    """Of the batch."""
    image_url: str
    """What stands before each file name, in tools that fetch the images."""
    model: str
    """Name and hash of the bundle that predicted."""

    def __post_init__(self) -> None:
        for task in (person for picture in self.tasks for person in picture.people):
            if task.keypoints_J2.shape != (len(self.skeleton), 2) or task.scores_J.shape != (len(self.skeleton),):
                raise DataError(
                    f"frame {task.id} has {len(task.keypoints_J2)} joints, skeleton {self.skeleton.name!r} has "
                    f"{len(self.skeleton)}: frames of different skeletons go into different batches"
                )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pose:
    """The labelled joints of one person."""

    joints: tuple[str, ...]
    """Names of the rows below; empty where the format knows none: they stand in the order in which they went out."""
    keypoints_J2: Floats
    """0 where not labelled."""
    visibility_J: Ints
    record: str | None = None
    """Id of the record that the tool has kept with the pose; None where it keeps none, and for people that it added."""

    def ordered(self, skeleton: Skeleton) -> Pose:
        """The same pose with the joints of a skeleton, in its order; what it does not speak of is not labelled."""
        if self.joints == skeleton.joints:
            return self
        if not self.joints and len(self.keypoints_J2):
            if len(self.keypoints_J2) != len(skeleton):
                raise DataError(
                    f"it has {len(self.keypoints_J2)} joints, and skeleton {skeleton.name!r} {len(skeleton)}"
                )
            return replace(self, joints=skeleton.joints)
        rows = [skeleton.index(joint) for joint in self.joints]
        keypoints_J2, visibility_J = np.zeros((len(skeleton), 2)), np.zeros(len(skeleton), dtype=np.int64)
        keypoints_J2[rows], visibility_J[rows] = self.keypoints_J2, self.visibility_J
        return Pose(joints=skeleton.joints, keypoints_J2=keypoints_J2, visibility_J=visibility_J, record=self.record)

    def box(self) -> tuple[Floats, Floats]:
        """Corners of the tight box of the labelled joints, as in every reader of this package; zeros without any."""
        labelled_M2 = self.keypoints_J2[self.visibility_J != HIDDEN]
        if not len(labelled_M2):
            return np.zeros(2), np.zeros(2)
        return labelled_M2.min(axis=0), labelled_M2.max(axis=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What an annotator said of one frame."""

    id: str
    """Of the record that the picture is named by."""
    people: tuple[Pose, ...]
    """One or more; whom the model was asked about is found by :func:`compare_people`."""
    where: str
    """Its place in the file, for messages."""
    size: tuple[float, float] | None = None
    """Width and height that the file states for the picture; None where it states none."""
    in_percent: bool = False
    """Whether coordinates are percent of the picture's sides, 0 at the edge, in place of pixels of ``size``."""
    annotator: str | None = None
    looked_at: bool = True
    """False where the tool does not tell an accepted pose from one that nobody has opened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came back in one file."""

    answers: tuple[Answer, ...]
    problems: tuple[str, ...]
    """What could not be used, each with its place and reason: nothing is dropped without being named."""
    notes: tuple[str, ...] = ()
    """What was passed over without being a problem, counted."""
    resolution_px: float
    """Coordinates of this format are exact to this."""
    ids: frozenset[str]
    """Of all records that the file speaks of, answered or not."""
    joints: tuple[str, ...] | None = None
    """Names that the file declares for all its poses; None where each pose names its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """An answer beside what the model had predicted, in pixels of the picture that the inbox has."""

    id: str
    pose: Pose
    """Of the person that the model was asked about."""
    status: Status
    distance_J: Floats
    """From prediction to label in pixels of the picture; NaN where one of the two has no position."""
    others: tuple[Pose, ...] = ()
    """People whom the annotator labelled besides."""
    annotator: str | None = None
    looked_at: bool = True


def compare(answer: Answer, task: Task, skeleton: Skeleton, resolution_px: float) -> Correction:
    """Tell an accepted pose from a corrected one, to the resolution of the format that brought it.

    :class:`DataError` says why an answer does not fit its picture: another shape, a joint that the skeleton lacks, nobody
    where the model was asked to look.
    """
    corrections, missing, _ = compare_people(answer, [task], skeleton, resolution_px)
    if missing:
        raise DataError(f"none of the {len(answer.people)} people is where the model was asked to look")
    return corrections[0]


def compare_people(
    answer: Answer, asked: Sequence[Task], skeleton: Skeleton, resolution_px: float, known: Sequence[Task] = ()
) -> tuple[list[Correction], list[Task], list[str]]:
    """The same for a picture with several people, each of whom is another record's.

    A pose belongs to the record that the tool has kept with it, otherwise to the one whose box it covers best. A pose without
    joints says of a record that has none yet that nobody is there.

    Args:
        answer: of the picture.
        asked: the people whom the annotator was given.
        skeleton: of all of them.
        resolution_px: of the format.
        known: people whom the inbox knows in the same picture, and whom the annotator was not given: somebody who was added
            just where one of them is, is that one.

    Returns:
        A correction for each person with a pose; people besides are the first one's ``others``. Those of ``asked`` for whom
        there is none. And what was taken for not labelled: single joints far outside of the picture
        (:func:`~alpose.trainer.data.records.far_outside`).

    Raises:
        DataError: the answer does not fit the picture.
    """
    people, enlarged, far = _in_picture(answer, asked[0], skeleton)
    # In a picture that was made smaller nobody places a joint finer than one of its pixels.
    resolution_px = resolution_px if enlarged is None else max(resolution_px, 1.0) * enlarged
    place_of = _assign(people, asked, known)
    free = [
        pose for place, pose in enumerate(people)
        if place not in place_of.values() and (pose.visibility_J != HIDDEN).any()
    ]  # fmt: skip
    corrections: list[Correction] = []
    for task in (*asked, *known):
        if task.id in place_of:
            others = () if corrections else tuple(free)
            one = _corrected(people[place_of[task.id]], task, skeleton, resolution_px, others)
            # Whoever was added was looked at.
            corrections.append(replace(one, annotator=answer.annotator, looked_at=answer.looked_at or task in known))
    return corrections, [task for task in asked if task.id not in place_of], far


def _corrected(
    asked: Pose, task: Task, skeleton: Skeleton, resolution_px: float, others: tuple[Pose, ...]
) -> Correction:
    """One person's pose beside the prediction."""
    predicted_J, labelled_J = task.visibility_J != HIDDEN, asked.visibility_J != HIDDEN
    both_J = predicted_J & labelled_J
    distance_J = np.full(len(both_J), np.nan)
    distance_J[both_J] = np.linalg.norm(asked.keypoints_J2[both_J] - task.keypoints_J2[both_J], axis=1)
    # Rounding moves each axis by half a unit at most, and what rounding did is no correction: joint by joint.
    still_J = both_J & ~(distance_J > resolution_px)
    distance_J[still_J] = 0.0
    keypoints_J2 = np.where(still_J[:, None], task.keypoints_J2, asked.keypoints_J2)
    same = bool((task.visibility_J == asked.visibility_J).all() and not (distance_J > 0).any() and not others)
    pose = Pose(joints=skeleton.joints, keypoints_J2=keypoints_J2, visibility_J=asked.visibility_J)
    return Correction(task.id, pose, "accepted" if same else "corrected", distance_J, others)


def _in_picture(answer: Answer, task: Task, skeleton: Skeleton) -> tuple[list[Pose], float | None, list[str]]:
    """The people in pixels of the known picture, whatever size the tool showed; how much the points were spread for that,
    None where they were not; and which joints are far outside, and not labelled for that."""
    known_2 = np.array([task.width, task.height], dtype=np.float64)
    factor_2 = np.ones(2)
    if answer.size is not None and answer.size != (task.width, task.height):
        factor_2 = known_2 / answer.size
        # One factor for both sides, but for their rounding to whole pixels: otherwise the picture was cut or stretched.
        if abs(1 / factor_2[0] - 1 / factor_2[1]) > 1 / task.width + 1 / task.height:
            raise DataError(
                f"the picture is said to be {answer.size[0]:g} x {answer.size[1]:g}, and is {task.width} x {task.height}: it "
                "was cut, turned or stretched before it was annotated, so nobody knows where these joints lie"
            )
    people, far = [], []
    for pose in answer.people:
        pose = pose.ordered(skeleton)
        labelled_J1 = (pose.visibility_J != HIDDEN)[:, None]
        points_J2 = pose.keypoints_J2 * known_2 / 100 - 0.5 if answer.in_percent else pose.keypoints_J2 * factor_2
        if answer.size is None and not answer.in_percent:
            outside_J = labelled_J1[:, 0] & ((points_J2 < -1) | (points_J2 > known_2)).any(axis=1)
            if outside_J.any():
                raise DataError(f"joint {skeleton.joints[int(outside_J.argmax())]!r} lies outside of the picture of {task.width} x "
                                f"{task.height}, and the file does not state its size")  # fmt: skip
        if _mostly_outside(points_J2[labelled_J1[:, 0]], known_2):
            raise DataError(
                f"most of its joints lie outside of the picture of {task.width} x {task.height}: they are those of another "
                "picture, or in another unit"
            )
        far_J = labelled_J1[:, 0] & far_outside(points_J2, known_2)
        far += [
            f"{skeleton.joints[joint]} at {points_J2[joint, 0]:.6g}, {points_J2[joint, 1]:.6g} lies far outside of the picture of "
            f"{task.width} x {task.height}, and counts as not labelled"
            for joint in np.flatnonzero(far_J).tolist()
        ]
        kept_J1 = labelled_J1 & ~far_J[:, None]
        people.append(Pose(joints=pose.joints, keypoints_J2=np.where(kept_J1, points_J2, 0.0),
                           visibility_J=np.where(far_J, HIDDEN, pose.visibility_J), record=pose.record))  # fmt: skip
    resized = not answer.in_percent and bool((factor_2 != 1).any())
    return people, max(1.0, float(factor_2.max())) if resized else None, far


def _mostly_outside(points_M2: Floats, size_2: Floats) -> bool:
    """Whether more than half of the joints of a pose lie beyond the picture's edges: a few may."""
    outside_M = ((points_M2 < -1) | (points_M2 > size_2)).any(axis=1)
    return bool(outside_M.sum() * 2 > len(points_M2))


def _assign(people: Sequence[Pose], asked: Sequence[Task], known: Sequence[Task]) -> dict[str, int]:
    """The place of each record's pose, by its id; who has none is not in it."""
    if len(people) == len(asked) == 1:
        return {asked[0].id: 0}
    found: dict[str, int] = {}
    named = [pose.record if (pose.visibility_J != HIDDEN).any() else None for pose in people]
    for task in asked:
        if named.count(task.id) == 1:
            found[task.id] = named.index(task.id)
    # The best overlaps first: everybody gets who is nearest, and nobody two.
    overlaps = [
        (_overlap(pose, task.box_4), task, place)
        for task in (*asked, *known) for place, pose in enumerate(people)
    ]  # fmt: skip
    for overlap, task, place in sorted(overlaps, key=lambda one: -one[0]):
        enough = overlap > 0 if task in asked else overlap >= SAME_PERSON
        if enough and task.id not in found and place not in found.values():
            found[task.id] = place
    empty = [
        place for place, pose in enumerate(people)
        if place not in found.values() and not (pose.visibility_J != HIDDEN).any()
    ]  # fmt: skip
    for task in asked:
        if task.id not in found and empty:
            found[task.id] = empty.pop(0)
    return found


def _overlap(pose: Pose, box_4: tuple[float, float, float, float]) -> float:
    """Intersection over union of the box of the labelled joints and another one."""
    if not (pose.visibility_J != HIDDEN).any():
        return 0.0
    low_2, high_2 = pose.box()
    other_22 = np.reshape(box_4, (2, 2))
    # A pixel is one wide, so that a single joint has an area too.
    shared = float(np.prod(np.clip(np.minimum(high_2, other_22[1]) - np.maximum(low_2, other_22[0]) + 1, 0, None)))
    return shared / float(np.prod(high_2 - low_2 + 1) + np.prod(other_22[1] - other_22[0] + 1) - shared)


def looked_at(
    corrections: Sequence[Correction], rank: Mapping[str, int], unchanged: Unchanged
) -> tuple[list[Correction], list[Correction]]:
    """Those that somebody has looked at, and those that came back as they went out because nobody has.

    Some tools do not tell an accepted pose from an unopened one. Frames are worked in the order of their ranks: with
    ``auto``, an unchanged pose counts as accepted up to the last corrected one, and as unopened after it. Where another file
    has a certain answer for the same frame, the unchanged pose is an earlier state of the work, and not an answer.

    Args:
        corrections: of one batch, from all of its files; a frame may occur in several.
        rank: of every id, in the order of work.
        unchanged: ``auto``; ``accept`` all of them for which there is no certain answer; or ``skip`` them all.
    """
    last = max((rank[one.id] for one in corrections if one.status == "corrected"), default=0)
    seen: list[Correction] = []
    unopened: list[Correction] = []
    certain = {one for one in corrections if one.looked_at or one.status == "corrected"}
    answered = {one.id for one in certain}
    for one in corrections:
        # As far as the last corrected one, and with it: of several people in a picture all were seen.
        taken = unchanged == "accept" or (unchanged == "auto" and rank[one.id] <= last)
        (seen if one in certain or (taken and one.id not in answered) else unopened).append(one)
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
    labelled_NJ = np.stack([one.pose.visibility_J != HIDDEN for one in corrections])
    summaries = []
    for joint, name in enumerate(joints):
        moved = distance_NJ[:, joint][distance_NJ[:, joint] > 0]
        summaries.append(
            JointSummary(name, int(labelled_NJ[:, joint].sum()), len(moved),
                         float(np.median(moved)) if len(moved) else None, float(moved.max()) if len(moved) else None)
        )  # fmt: skip
    return tuple(summaries)


def id_in(name: str) -> str | None:
    """The record's id in a file name, wherever a tool has put that file and whatever it has added to the name.

    An id behind the five digits of a rank is ours; otherwise there must be exactly one. None where there is not.
    """
    base = _base_name(name)
    found = _RANKED_ID.findall(base) or _ID.findall(base)
    return found[0] if len(set(found)) == 1 else None


def known_id_in(known: Callable[[str], bool]) -> FindId:
    """A search that trusts an id that somebody knows over every other number in a name; :func:`id_in` where none is known."""

    def find(name: str) -> str | None:
        for text in (_base_name(name), name.lower()):
            parts = {text[start : start + 32] for start in range(len(text) - 31)}
            there = [part for part in parts if is_hex(part, 32) and known(part)]
            if len(there) == 1:
                return there[0]
        return id_in(name)

    return find


def _base_name(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name.lower()
