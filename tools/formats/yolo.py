"""YOLO-pose: a label file for each picture, as Roboflow, FiftyOne, CVAT and Ultralytics take and give it.

Label files name neither joints nor the size of their picture: numbers are shares of its sides, and joints stand in the order in
which they went out.

Shapes: J joints.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import numpy as np

from alpose.runtime.io import write_atomically
from alpose.trainer.data.yolo import BOX, description, label_line, parse_labels

from ..labels import Answer, Answers, FindId, Handout, Pose, id_in
from .files import README, TEXT, UNCHANGED, LabelFile

LABELS = "labels"
RESOLUTION_PX = 0.01
"""Six digits of a share are finer, in pictures of up to 10,000 pixels."""


class YoloPose:
    """``labels/NAME.txt``, a line a person. Whether somebody has looked at a pose cannot be known from this format."""

    name = "yolo-pose"
    returns = "labels/"
    suffixes = (".txt",)
    several_people = True

    def write(self, handout: Handout, folder: Path) -> None:
        """``data.yaml`` and ``labels/``, and what to do with them."""
        for task in handout.tasks:
            lines = [
                label_line(person.keypoints_J2, person.visibility_J, person.box_4, (task.width, task.height))
                for person in task.people
            ]
            path = folder / LABELS / PurePosixPath(task.file_name).with_suffix(".txt")
            write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        parts = {"train": "images", "val": "images"}
        write_atomically(folder / "data.yaml", description(handout.skeleton, parts).encode())
        (folder / README).write_text(readme(len(handout.tasks)), encoding="utf-8")

    def detect(self, file: LabelFile) -> bool:
        """A text whose lines begin with a class and a box; an empty one that carries the id of a record."""
        if not file.name.lower().endswith(TEXT):
            return False
        lines = [line.split() for line in file.text.splitlines() if line.strip()]
        if not lines:
            return id_in(file.name) is not None
        return any(len(words) >= BOX and all(map(_is_number, words)) for words in lines)

    def read(self, file: LabelFile, find_id: FindId) -> Answers:
        """One answer, with every person in the file."""
        id_ = find_id(file.name)
        found, problems = parse_labels(file.text, file.name)
        if id_ is None:
            problems.append(f"{file.name}: its name carries no id of a record")
        elif not found and not problems:
            problems.append(
                f"{file.name}: {id_} has no pose: to say that nobody is there, leave a line with all joints 0 0 0"
            )
        people = tuple(
            Pose(joints=(), keypoints_J2=100 * one.points_J2, visibility_J=one.visibility_J)
            for place, one in enumerate(found)
            if not one.visibility_J.any()  # nobody is there, of several people perhaps
            or not any(np.array_equal(one.points_J2, other.points_J2) for other in found[:place])
        )
        notes = (
            (f"{file.name}: {len(found) - len(people)} poses that are there twice",) if len(people) < len(found) else ()
        )
        answers = () if id_ is None or not people else (
            Answer(id=id_, people=people, where=f"{file.name} ({id_})", in_percent=True, looked_at=False),
        )  # fmt: skip
        return Answers(answers=answers, problems=tuple(problems), notes=notes, resolution_px=RESOLUTION_PX,
                       ids=frozenset() if id_ is None else frozenset((id_,)))  # fmt: skip


def readme(count: int) -> str:
    """What to do with the folder."""
    return f"""{count} pictures in YOLO-pose form, the most wanted first: the order of the file names is the order of work.

1. Open the folder, or a ZIP archive of it, in a tool that reads and writes YOLO-pose. It may rename the pictures, as long
   as the long number stays in each name: that is the id of the record. Keep the order of the joints, which data.yaml names.

2. Correct the poses. Each line of labels/ is a person: class, box, and x, y, v of each joint in shares of the picture's
   sides; v is 2 visible, 1 hidden, 0 not known. If nobody is there, leave the line with 0 0 0 for every joint.

3. Export as YOLO-pose, and give labels/, or an archive of it, to

   alpose-harvest import labels/ --into dataset/

{UNCHANGED}"""


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
