"""CVAT: a COCO Keypoints archive, the skeleton's label constructor, and the command that uploads both.

CVAT takes a skeleton only where a task has a label of that name with sub-labels of the joints' names, in their order; it
cannot be changed afterwards. So labels, images and poses leave together.

Sources: CVAT's documentation of the format COCO Keypoints 1.0 and of the raw label constructor.
"""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from alpose.runtime.skeleton import Skeleton

from ..labels import Handout
from .coco import Coco, document
from .files import README, UNCHANGED, LabelFile

FORMAT = "COCO Keypoints 1.0"
SUBSET = "default"
ARCHIVE, LABELS, IMAGES = "annotations.zip", "labels.json", "images"

_STANDING = {
    "head_top": (50, 4), "nose": (50, 12), "left_eye": (53, 9), "right_eye": (47, 9), "left_ear": (57, 11),
    "right_ear": (43, 11), "neck": (50, 20), "upper_neck": (50, 18), "thorax": (50, 24), "pelvis": (50, 54),
    "left_shoulder": (62, 24), "right_shoulder": (38, 24), "left_elbow": (70, 38), "right_elbow": (30, 38),
    "left_wrist": (74, 52), "right_wrist": (26, 52), "left_hip": (57, 54), "right_hip": (43, 54),
    "left_knee": (59, 74), "right_knee": (41, 74), "left_ankle": (60, 94), "right_ankle": (40, 94),
}  # fmt: skip
"""Where joints of known names stand in the constructor's drawing, in percent; seen from the front."""


class Cvat(Coco):
    """CVAT takes a folder of its own; what it exports is COCO keypoints in an archive."""

    name = "cvat"
    returns = "EXPORTED.zip"

    def write(self, handout: Handout, folder: Path) -> None:
        """The archive with the poses, the labels, and what to do with them."""
        (folder / ARCHIVE).write_bytes(_archive(document(handout.tasks, handout.skeleton)))
        (folder / LABELS).write_text(json.dumps(labels(handout.skeleton), indent=2), encoding="utf-8")
        (folder / README).write_text(readme(handout.name, len(handout.tasks)), encoding="utf-8")

    def beside(self, file: LabelFile) -> bool:
        """The label constructor."""
        rows = file.value if isinstance(file.value, list) else ()
        return bool(rows) and all(isinstance(one, dict) and "sublabels" in one for one in rows)

    def detect(self, file: LabelFile) -> bool:
        """Never: what comes back is COCO's."""
        return False


def _archive(value: dict[str, Any]) -> bytes:
    """A document as the archive that CVAT uploads; the same batch gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        entry = zipfile.ZipInfo(f"annotations/person_keypoints_{SUBSET}.json", (1980, 1, 1, 0, 0, 0))
        entry.compress_type = zipfile.ZIP_DEFLATED
        zipped.writestr(entry, json.dumps(value))
    return buffer.getvalue()


def labels(skeleton: Skeleton) -> list[dict[str, Any]]:
    """The raw label constructor: paste it under *Raw*, or let the command pass it."""
    text = {"mutable": False, "input_type": "text", "values": [""], "default_value": ""}
    return [
        {
            "name": "person",
            "type": "skeleton",
            "attributes": [{"name": name, **text} for name in ("failure_probability", "reason", "device", "record")],
            "sublabels": [{"name": joint, "type": "points", "attributes": []} for joint in skeleton.joints],
            "svg": drawing(skeleton),
        }
    ]


def drawing(skeleton: Skeleton) -> str:
    """The skeleton as CVAT draws it in its constructor; nodes count from 1."""
    place_J2 = _places(skeleton)
    parts = []
    for a, b in skeleton.links:
        (x1, y1), (x2, y2) = place_J2[a], place_J2[b]
        parts.append(
            f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" stroke="black" '
            f'stroke-width="0.5" data-type="edge" data-node-from="{a + 1}" data-node-to="{b + 1}"></line>'
        )
    for joint, (name, (x, y)) in enumerate(zip(skeleton.joints, place_J2, strict=True), start=1):
        parts.append(
            f'<circle r="0.75" cx="{x:.2f}" cy="{y:.2f}" stroke="black" fill="#b3b3b3" stroke-width="0.1" '
            f'data-type="element node" data-element-id="{joint}" data-node-id="{joint}" data-label-name={quoteattr(name)}></circle>'
        )
    return "".join(parts)


def readme(name: str, count: int) -> str:
    """What to do with the folder."""
    create = (f"cvat-cli --server-host http://localhost:8080 --auth USER task create {shlex.quote(name)} local {IMAGES}/* "
              f"--labels {LABELS} --image_quality 95 --sorting-method lexicographical --annotation_path {ARCHIVE} "
              f'--annotation_format "{FORMAT}"')  # fmt: skip
    return f"""{count} frames for CVAT, the most wanted first: the order of the file names is the order of work.

1. In this folder (pip install cvat-cli):

   {create}

   Or in the browser: create a task with the images of {IMAGES}/, paste {LABELS} under Raw, then upload annotations:
   {ARCHIVE}, format {FORMAT}.

2. Correct the skeletons. What the model expects of itself stands in the attributes of each skeleton: failure_probability,
   and the reason why the frame was kept. Hidden joints: occluded. Joints that nobody can know: outside.

3. Export the task as {FORMAT} (without images), and give the archive to

   alpose-harvest import EXPORTED.zip --into dataset/

{UNCHANGED}"""


def _places(skeleton: Skeleton) -> list[tuple[float, float]]:
    """Percent of the drawing; joints of unknown names on a circle."""
    angle_J = np.linspace(0, 2 * np.pi, len(skeleton), endpoint=False)
    known = sum(joint in _STANDING for joint in skeleton.joints) == len(skeleton)
    return [
        _STANDING[joint] if known else (50 + 40 * float(np.sin(angle)), 50 - 40 * float(np.cos(angle)))
        for joint, angle in zip(skeleton.joints, angle_J, strict=True)
    ]
