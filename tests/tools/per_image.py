"""An annotation format as somebody else would add it: one text file an image, and not JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alpose.tools.formats import LabelFile
from alpose.tools.labels import Answer, Answers, FindId, Handout, Pose

START = "points of "


class PerImage:
    """The image's name, then one line a joint: name, x, y, visibility."""

    name = "per-image"
    returns = "points/"
    suffixes = (".points",)

    def write(self, handout: Handout, folder: Path) -> None:
        (folder / "points").mkdir(parents=True, exist_ok=True)
        for task in handout.tasks:
            text = points_text(task.file_name, handout.skeleton.joints, task.keypoints_J2, task.visibility_J)
            (folder / "points" / f"{task.file_name}.points").write_text(text)

    def detect(self, file: LabelFile) -> bool:
        return file.content.startswith(START.encode())

    def read(self, file: LabelFile, find_id: FindId) -> Answers:
        head, *lines = file.content.decode().splitlines()
        id_ = find_id(head)
        assert id_ is not None
        rows = [line.split() for line in lines]
        visibility_J = np.array([int(row[3]) for row in rows])
        points_J2 = np.array([(float(row[1]), float(row[2])) for row in rows])
        pose = Pose(joints=tuple(row[0] for row in rows), visibility_J=visibility_J,
                    keypoints_J2=np.where(visibility_J[:, None] > 0, points_J2, 0.0))  # fmt: skip
        answer = Answer(id=id_, people=(pose,), where=file.name, looked_at=False)
        return Answers(answers=(answer,), problems=(), resolution_px=0.01, ids=frozenset([id_]))


def points_text(file_name: str, joints: tuple[str, ...], keypoints_J2: np.ndarray, visibility_J: np.ndarray) -> str:
    lines = [
        f"{joint} {x:.2f} {y:.2f} {v}" for joint, (x, y), v in zip(joints, keypoints_J2, visibility_J, strict=True)
    ]
    return "\n".join([START + file_name, *lines])
