"""What annotators get and what comes back, whichever tool stands between.

Coordinates are pixels of the image that the annotator sees; the centre of the first pixel is (0, 0), as in COCO.
Visibility is COCO's: 0 not labelled, 1 labelled but hidden, 2 visible.

Shapes: J joints.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import Skeleton

HIDDEN, OCCLUDED, VISIBLE = 0, 1, 2

_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """One frame to annotate, with the model's pose as a start."""

    id: str
    """Of the record: 32 hex digits."""
    rank: int
    """From 1, most wanted first."""
    width: int
    height: int
    keypoints_J2: npt.NDArray[np.float64]
    scores_J: npt.NDArray[np.float64]
    box_4: tuple[float, float, float, float]
    """(x0, y0, x1, y1) around the person, in pixels of the image."""
    failure_probability: float
    reason: str
    """Why it was kept and chosen, for people."""
    device: str
    suffix: str = ".jpg"

    @property
    def file_name(self) -> str:
        """``0007_9f…c2.jpg``: tools show images by name, so the order of names is the order of work."""
        return f"{self.rank:05d}_{self.id}{self.suffix}"

    @property
    def visibility_J(self) -> npt.NDArray[np.int64]:
        """Visible where the predicted joint lies in the image, not labelled elsewhere."""
        x_J, y_J = self.keypoints_J2[:, 0], self.keypoints_J2[:, 1]
        inside_J = (x_J >= -0.5) & (y_J >= -0.5) & (x_J <= self.width - 0.5) & (y_J <= self.height - 0.5)
        return np.where(inside_J & np.isfinite(self.keypoints_J2).all(axis=1), VISIBLE, HIDDEN)

    @property
    def summary(self) -> str:
        """One line that the annotator sees beside the image."""
        return f"expected to fail: {self.failure_probability:.0%} · {self.reason} · {self.device}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What an annotator said of one frame."""

    id: str
    keypoints_J2: npt.NDArray[np.float64]
    """0 where not labelled."""
    visibility_J: npt.NDArray[np.int64]
    annotator: str | None = None
    looked_at: bool = True
    """False where the tool does not tell an accepted pose from one that nobody has opened."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A file that came back."""

    answers: tuple[Answer, ...]
    problems: tuple[str, ...]
    """What could not be used, each with its place and reason: nothing is dropped without being named."""
    resolution_px: float
    """Coordinates of this format are exact to this."""


def id_in(name: str) -> str | None:
    """The record's id in a file name, wherever a tool has put that file; None where there is not exactly one."""
    found = _ID.findall(PurePosixPath(name.replace("\\", "/")).name)
    return found[0] if len(found) == 1 else None


def check_tasks(tasks: Sequence[Task], skeleton: Skeleton) -> None:
    """Refuse what no annotation tool could show."""
    for task in tasks:
        if task.keypoints_J2.shape != (len(skeleton), 2) or task.scores_J.shape != (len(skeleton),):
            raise DataError(
                f"frame {task.id} has {len(task.keypoints_J2)} joints, skeleton {skeleton.name!r} has {len(skeleton)}: "
                "frames of different skeletons go into different batches"
            )


def order_of(names: Sequence[str], skeleton: Skeleton, where: str) -> list[int]:
    """Places in ``names`` of the skeleton's joints; :class:`DataError` where they are not the same joints."""
    if sorted(names) != sorted(skeleton.joints):
        missing = sorted(set(skeleton.joints) - set(names))
        more = sorted(set(names) - set(skeleton.joints))
        raise DataError(
            f"{where}: its joints are not those of skeleton {skeleton.name!r}"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; unknown: {', '.join(more)}" if more else "")
        )
    return [list(names).index(joint) for joint in skeleton.joints]
