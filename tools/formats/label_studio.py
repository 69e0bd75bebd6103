"""Label Studio: tasks with predictions, the labelling interface, and the JSON that comes back.

A joint is a keypoint region named by its label; a hidden one carries the choice ``hidden``; one that nobody can know is
deleted. The rectangle around the person is their parent, which Label Studio's own exports want.

Source: Label Studio's documentation of task format, predictions and tags.

Shapes: J joints.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.queue.record import is_hex
from alpose.runtime.skeleton import Skeleton

from ..annotation import HIDDEN, OCCLUDED, VISIBLE, Answer, Answers, Task, check_tasks
from .coco import Documents, documents

TASKS, CONFIG, README, IMAGES = "tasks.json", "interface.xml", "README.txt", "images"
KEYPOINTS, BOX, HIDING, IMAGE = "joint", "person", "hidden", "image"
"""Names of the controls in the interface."""
HIDDEN_CHOICE = "hidden"
POINT_WIDTH = 0.6
"""Of a keypoint's mark, in percent of the image's width."""
RESOLUTION_PX = 1e-6
"""Percentages travel as doubles."""

_LEFT, _RIGHT, _MIDDLE = "#2a7de1", "#ee7d22", "#16a34a"


def interface(skeleton: Skeleton) -> str:
    """The labelling interface, with what the model expects of itself above the image."""
    labels = "\n".join(
        f'        <Label value={quoteattr(joint)} background={quoteattr(_colour(joint))} model_index="{index}"/>'
        for index, joint in enumerate(skeleton.joints)
    )
    return f"""<View>
  <Header value="$alpose_summary" size="5"/>
  <View style="display: flex; gap: 1em">
    <View style="flex: 1 1 auto; min-width: 0">
      <Image name="{IMAGE}" value="$image" zoom="true" zoomControl="true" rotateControl="false"/>
    </View>
    <View style="flex: 0 0 10em">
      <Choices name="{HIDING}" toName="{IMAGE}" perRegion="true" whenTagName="{KEYPOINTS}" choice="multiple">
        <Choice value="{HIDDEN_CHOICE}"/>
      </Choices>
      <KeyPointLabels name="{KEYPOINTS}" toName="{IMAGE}" strokeWidth="2" opacity="0.9">
{labels}
      </KeyPointLabels>
      <RectangleLabels name="{BOX}" toName="{IMAGE}" fillOpacity="0">
        <Label value="person" background="#8a94a3"/>
      </RectangleLabels>
    </View>
  </View>
</View>
"""


def tasks_json(tasks: Sequence[Task], skeleton: Skeleton, image_url: str, model: str) -> list[dict[str, Any]]:
    """The task list to import.

    Args:
        tasks: in order of priority.
        skeleton: of all of them.
        image_url: what stands before each file name.
        model: name and version, shown with the predictions.
    """
    check_tasks(tasks, skeleton)
    return [
        {
            "data": {
                "image": image_url + task.file_name,
                "alpose_id": task.id,
                "alpose_rank": task.rank,
                "alpose_summary": task.summary,
            },
            "predictions": [
                {
                    "model_version": model,
                    # Label Studio orders by ascending confidence.
                    "score": _confidence(task),
                    "result": _result(task, skeleton),
                }
            ],
        }
        for task in tasks
    ]


def write(tasks: Sequence[Task], skeleton: Skeleton, out: Path, name: str, image_url: str, model: str) -> list[Path]:
    """Everything but the images, which lie in ``OUT/images``."""
    files = {
        TASKS: json.dumps(tasks_json(tasks, skeleton, image_url, model), indent=1),
        CONFIG: interface(skeleton),
        README: readme(name, len(tasks), image_url),
    }
    for file, content in files.items():
        (out / file).write_text(content, encoding="utf-8")
    return [out / file for file in files]


def readme(name: str, count: int, image_url: str) -> str:
    """What to do with the folder."""
    return f"""{count} frames for Label Studio, the most wanted first (batch {name}).

1. Let Label Studio serve the images of this folder, and start it:

   export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
   export LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=$(pwd)
   label-studio start

   The tasks say {image_url}FILE. In the project: Settings, Cloud Storage, Add Source Storage, Local files, absolute path
   $(pwd)/{IMAGES}; do not synchronise it, the tasks come from {TASKS}.

2. New project; Settings, Labeling Interface, Code: paste {CONFIG}. Import {TASKS}. The tasks stand in the order of work,
   hardest first with the control stream between them: Label All Tasks follows it.

3. Correct the joints and submit. What the model expects of itself stands above the image. Hidden joints: select them and
   tick hidden. Joints that nobody can know: delete them.

4. Export as JSON, and give the file to

   alpose-harvest import EXPORTED.json --into dataset/

   A part of the batch is enough: tasks without a submitted annotation are left for later.
"""


def read(path: Path, skeleton: Skeleton) -> Answers:
    """Answers in a JSON export (not JSON-MIN). Predictions that nobody submitted are no answers."""
    return read_documents(documents(path), skeleton)


def read_documents(found: Documents, skeleton: Skeleton) -> Answers:
    """Answers in parsed files."""
    answers: dict[str, Answer] = {}
    problems: list[str] = []
    for where, value in found:
        for place, task in enumerate(_check(value, where)):
            _read_task(task, skeleton, f"{where}: task {place}", answers, problems)
    return Answers(tuple(answers.values()), tuple(problems), RESOLUTION_PX)


def ids_of(found: Documents) -> frozenset[str]:
    """Ids of the records that the tasks name."""
    ids = {_id(task) for where, value in found for task in _check(value, where)}
    return frozenset(id_ for id_ in ids if id_ is not None)


def joints_of(found: Documents) -> tuple[str, ...]:
    """Names of the joints that somebody has placed, in the order of their appearance."""
    regions = [region for where, value in found for task in _check(value, where) if isinstance(task, dict)
               for annotation in task.get("annotations") or () if isinstance(annotation, dict)
               for region in annotation.get("result") or () if isinstance(region, dict)]  # fmt: skip
    values = [region.get("value") for region in regions if region.get("type") == "keypointlabels"]
    names = [value.get("keypointlabels") for value in values if isinstance(value, dict)]
    return tuple(dict.fromkeys(str(name) for some in names if isinstance(some, list) for name in some))


def _check(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where} is no export of Label Studio: it must be a list of tasks. Export as JSON")
    if value and not any(isinstance(task, dict) and "data" in task for task in value):
        raise DataError(f"{where} is a list, and not of Label Studio's tasks: export as JSON, not as JSON-MIN; a COCO file "
                        "needs its images and categories")  # fmt: skip
    return value


def _id(task: Any) -> str | None:
    id_ = task["data"].get("alpose_id") if isinstance(task, dict) and isinstance(task.get("data"), dict) else None
    return id_ if is_hex(id_, 32) else None


def _result(task: Task, skeleton: Skeleton) -> list[dict[str, Any]]:
    """Regions in percent of the image; a region's id follows from the record and the joint."""
    size = {"original_width": task.width, "original_height": task.height, "image_rotation": 0}
    x0, y0, x1, y1 = task.box_4
    parent = _region_id(task.id, "person")
    left, top = _percent(x0, task.width), _percent(y0, task.height)
    box = {"x": left, "y": top, "width": _percent(x1, task.width) - left, "height": _percent(y1, task.height) - top}
    regions: list[dict[str, Any]] = []
    for joint, (x, y), v, score in zip(skeleton.joints, task.keypoints_J2.tolist(), task.visibility_J.tolist(),
                                       task.scores_J.tolist(), strict=True):  # fmt: skip
        if v == HIDDEN:
            continue
        value = {"x": _percent(x, task.width), "y": _percent(y, task.height), "width": POINT_WIDTH}
        regions.append(
            {"id": _region_id(task.id, joint), "parentID": parent, "type": "keypointlabels", "from_name": KEYPOINTS,
             "to_name": IMAGE, **size, "score": round(min(max(score, 0.0), 1.0), 4),
             "value": {**value, "keypointlabels": [joint]}}
        )  # fmt: skip
    # The last region lies under the others: where the box came first, dragging a joint moved the box in its place.
    regions.append(
        {"id": parent, "type": "rectanglelabels", "from_name": BOX, "to_name": IMAGE, **size, "readonly": True,
         "value": {**box, "rotation": 0, "rectanglelabels": ["person"]}}
    )  # fmt: skip
    return regions


def _read_task(task: Any, skeleton: Skeleton, where: str, answers: dict[str, Answer], problems: list[str]) -> None:
    id_ = _id(task)
    if id_ is None:
        problems.append(f"{where} has no alpose_id in its data: it does not come from a batch")
        return
    submitted = [one for one in task.get("annotations") or [] if isinstance(one, dict)]
    skipped = [one for one in submitted if one.get("was_cancelled")]
    submitted = [one for one in submitted if not one.get("was_cancelled")]
    if not submitted:
        if skipped:
            problems.append(f"{where} ({id_}) was skipped by its annotator")
        return
    if len(submitted) > 1:
        submitted.sort(key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""))
        problems.append(f"{where} ({id_}) has {len(submitted)} annotations: the latest is taken")
    try:
        answer = _answer(id_, submitted[-1], skeleton)
    except (DataError, KeyError, TypeError, ValueError) as error:
        problems.append(f"{where} ({id_}): {error}")
        return
    if id_ in answers:
        problems.append(f"{where}: {id_} is answered twice; the first answer is kept")
        return
    answers[id_] = answer


def _answer(id_: str, annotation: dict[str, Any], skeleton: Skeleton) -> Answer:
    keypoints_J2 = np.zeros((len(skeleton), 2))
    visibility_J = np.zeros(len(skeleton), dtype=np.int64)
    hidden = {region.get("id") for region in annotation["result"]
              if region.get("type") == "choices" and HIDDEN_CHOICE in region["value"].get("choices", ())}  # fmt: skip
    for region in annotation["result"]:
        if region.get("type") != "keypointlabels":
            continue
        (name,) = region["value"]["keypointlabels"]
        if name not in skeleton.joints:
            raise DataError(f"joint {name!r} is not one of skeleton {skeleton.name!r}")
        joint = skeleton.index(name)
        if visibility_J[joint]:
            raise DataError(f"joint {name!r} is placed twice")
        x, y = float(region["value"]["x"]), float(region["value"]["y"])
        if not np.isfinite([x, y]).all():
            raise DataError(f"joint {name!r} is at {x}, {y}")
        keypoints_J2[joint] = _pixel(x, int(region["original_width"])), _pixel(y, int(region["original_height"]))
        visibility_J[joint] = OCCLUDED if region.get("id") in hidden else VISIBLE
    by = annotation.get("completed_by")
    by = by.get("email") or by.get("id") if isinstance(by, dict) else by
    return Answer(
        id=id_, keypoints_J2=keypoints_J2, visibility_J=visibility_J, annotator=None if by is None else str(by)
    )


def _confidence(task: Task) -> float:
    """A model that does not know what it expects is not to be relied on."""
    return round(1 - task.failure_probability, 4) if math.isfinite(task.failure_probability) else 0.0


def _percent(pixel: float, length: int) -> float:
    """From pixel centres to percent of the image's edge, where 0 is the left edge of the first pixel."""
    return 100 * (pixel + 0.5) / length


def _pixel(percent: float, length: int) -> float:
    return percent * length / 100 - 0.5


def _region_id(record: str, name: str) -> str:
    return hashlib.sha256(f"{record}/{name}".encode()).hexdigest()[:10]


def _colour(joint: str) -> str:
    return _LEFT if joint.startswith("left") else _RIGHT if joint.startswith("right") else _MIDDLE
