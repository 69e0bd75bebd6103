"""Label Studio: tasks with predictions, the labelling interface, and the JSON that comes back.

A joint is a keypoint region named by its label; a hidden one carries the choice ``hidden``; one that nobody can know is
deleted. The rectangle around the person is their parent, which Label Studio's own exports want. Another person is another
rectangle ``person`` with joints that have it as their parent, or that lie in it alone.

Source: Label Studio's documentation of task format, predictions and tags.

Shapes: J joints.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.queue.fields import is_hex
from alpose.runtime.skeleton import Skeleton

from ..labels import HIDDEN, OCCLUDED, VISIBLE, Answer, Answers, FindId, Handout, Pose, Task
from .files import README, SUFFIXES, LabelFile

TASKS, CONFIG, IMAGES = "tasks.json", "interface.xml", "images"
KEYPOINTS, BOX, HIDING, IMAGE = "joint", "person", "hidden", "image"
"""Names of the controls in the interface."""
CATEGORY = "person"
HIDDEN_CHOICE = "hidden"
POINT_WIDTH = 0.6
"""Of a keypoint's mark, in percent of the image's width."""
RESOLUTION_PX = 1e-6
"""Percentages travel as doubles."""
NO_PLACE = ("choices", "relation", "textarea", "rating", "number", "datetime", "taxonomy", "pairwise", "ranker")
"""Types of what annotators say beside the places of joints."""
FARTHEST = 1e4
"""A joint beyond this many percent is a damaged number, not a place."""

_LEFT, _RIGHT, _MIDDLE = "#2a7de1", "#ee7d22", "#16a34a"


class LabelStudio:
    """Label Studio's tasks with predictions, and its JSON export (not JSON-MIN). What nobody submitted is not an answer."""

    name = "label-studio"
    returns = "EXPORTED.json"
    suffixes = SUFFIXES
    several_people = True

    def write(self, handout: Handout, folder: Path) -> None:
        """The tasks, the labelling interface, and what to do with them."""
        files = {
            TASKS: json.dumps(tasks_json(handout), indent=1),
            CONFIG: interface(handout.skeleton),
            README: readme(handout.name, len(handout.tasks), handout.image_url),
        }
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")

    def detect(self, file: LabelFile) -> bool:
        """A list of tasks."""
        return isinstance(file.value, list) and any(isinstance(task, dict) and "data" in task for task in file.value)

    def beside(self, file: LabelFile) -> bool:
        """The tasks as they were handed out: every export of Label Studio has a list of annotations for each."""
        return self.detect(file) and not any("annotations" in one or "completions" in one for one in _dicts(file.value))

    def read(self, file: LabelFile, find_id: FindId) -> Answers:
        """One answer a task that somebody submitted; the latest where there are several."""
        answers: dict[str, Answer] = {}
        problems: list[str] = []
        ids = set()
        unsubmitted = sum(not (one.get("annotations") or one.get("completions")) for one in _dicts(file.value))
        for place, task in enumerate(file.value):
            where = f"{file.name}: task {place}"
            id_ = _id(task, find_id)
            if id_ is None:
                problems.append(f"{where} has no alpose_id in its data: it does not come from a batch")
                continue
            ids.add(id_)
            answer = _answer(id_, task, f"{where} ({id_})", problems)
            if answer is None:
                continue
            if id_ in answers:
                problems.append(f"{where}: {id_} is answered twice; the first answer is kept")
            answers.setdefault(id_, answer)
        notes = (f"{file.name}: {unsubmitted} tasks that nobody has submitted",) if unsubmitted else ()
        return Answers(answers=tuple(answers.values()), problems=tuple(problems), notes=notes, ids=frozenset(ids),
                       resolution_px=RESOLUTION_PX)  # fmt: skip


# --- Out


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


def tasks_json(handout: Handout) -> list[dict[str, Any]]:
    """The task list to import, in the order of priority."""
    return [
        {
            "data": {
                "image": handout.image_url + task.file_name,
                "alpose_id": task.id,
                "alpose_rank": task.rank,
                "alpose_summary": task.summary,
                **({"alpose_people": [person.id for person in task.people]} if task.others else {}),
            },
            "predictions": [
                {
                    "model_version": handout.model,
                    # Label Studio orders by ascending confidence.
                    "score": min(map(_confidence, task.people)),
                    "result": _results(task, handout.skeleton),
                }
            ],
        }
        for task in handout.tasks
    ]


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


def _results(task: Task, skeleton: Skeleton) -> list[dict[str, Any]]:
    """Everybody's regions, the rectangles last."""
    regions = [region for person in task.people for region in _result(person, skeleton)]
    return sorted(regions, key=lambda region: region["from_name"] == BOX)


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


# --- Back


def _dicts(tasks: list[Any]) -> list[dict[str, Any]]:
    return [task for task in tasks if isinstance(task, dict) and "data" in task]


def _id(task: Any, find_id: FindId) -> str | None:
    """The record's id, from the field that we wrote or else from the name of the image."""
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        return None
    id_ = data.get("alpose_id")
    return id_ if is_hex(id_, 32) else find_id(str(data.get("image") or ""))


def _answer(id_: str, task: dict[str, Any], where: str, problems: list[str]) -> Answer | None:
    """What was submitted last; None where nothing was, or where it cannot be used."""
    found = task.get("annotations")
    found = task.get("completions") if found is None else found  # before version 1.0
    if not isinstance(found, (list, type(None))):
        problems.append(f"{where}: annotations must be a list, got {type(found).__name__}")
        return None
    submitted = [one for one in found or () if isinstance(one, dict)]
    open_ = [one for one in submitted if not one.get("was_cancelled")]
    if not open_:
        if submitted:
            problems.append(f"{where} was skipped by its annotator")
        return None
    if len(open_) > 1:
        open_.sort(key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""))
        problems.append(f"{where} has {len(open_)} annotations: the latest is taken")
    latest = open_[-1]
    by = latest.get("completed_by")
    by = by.get("email") or by.get("id") if isinstance(by, dict) else by
    given = task["data"].get("alpose_people")
    ids = [one for one in given if is_hex(one, 32)] if isinstance(given, list) else []
    try:
        people, size = _people(list(dict.fromkeys([id_, *ids])), latest.get("result"), where, problems)
    except DataError as error:
        problems.append(f"{where}: {error}")
        return None
    return Answer(
        id=id_, people=people, where=where, size=size, in_percent=True, annotator=None if by is None else str(by)
    )


@dataclass(frozen=True, slots=True)
class _Point:
    """A joint that somebody placed, in percent of the picture."""

    joint: str
    x: float
    y: float
    visibility: int
    parent: str


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle around a person, in percent of the picture."""

    id: str
    x0: float
    y0: float
    x1: float
    y1: float

    def holds(self, point: _Point) -> bool:
        """Whether a point lies in it."""
        return self.x0 <= point.x <= self.x1 and self.y0 <= point.y <= self.y1


def _people(
    ids: Sequence[str], result: Any, where: str, problems: list[str]
) -> tuple[tuple[Pose, ...], tuple[float, float] | None]:
    """The people in the regions of an annotation, and the size that these state. An odd region is named, the rest goes on.

    :class:`DataError` where nobody can tell whose joints these are.
    """
    if not isinstance(result, list):
        raise DataError(
            f"result must be a list of regions, got {'nothing' if result is None else type(result).__name__}"
        )
    regions = []
    for place, region in enumerate(result):
        if isinstance(region, dict):
            regions.append((f"{where}: result[{place}]", region))
        else:
            problems.append(f"{where}: result[{place}] is {str(region)[:40]!r}, and not a region")
    turned = next((region["image_rotation"] for _, region in regions if region.get("image_rotation")), None)
    if turned is not None:
        raise DataError(f"the picture was turned by {turned} while it was annotated: turn it back, and submit again")
    hidden = {str(region.get("id")) for at, region in regions
              if region.get("type") == "choices" and _is_hidden(at, region, problems)}  # fmt: skip
    points, boxes, sizes, left_out = [], [], [], 0
    for at, region in regions:
        try:
            if region.get("type") == "keypointlabels":
                points.append(_point(region, hidden))
                sizes.append(_size(region))
            elif region.get("type") == "rectanglelabels":
                boxes += _box(region)
            elif region.get("type") == "keypoint":
                raise ValueError("a point without the name of a joint")
            elif region.get("type") not in NO_PLACE:
                raise ValueError(f"a region of type {region.get('type')!r}, expected keypointlabels or rectanglelabels")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            problems.append(f"{at} is left out: {error}")
            left_out += 1
    if left_out and not points:
        raise DataError("no joint of it can be used")
    return _by_person(ids, points, boxes, where, problems), next((size for size in sizes if size is not None), None)


def _by_person(
    ids: Sequence[str], points: Sequence[_Point], boxes: Sequence[_Box], where: str, problems: list[str]
) -> tuple[Pose, ...]:
    """The points of each person: of each rectangle, and those that no other rectangle has belong to the model's first."""
    given = {_region_id(id_, CATEGORY): id_ for id_ in ids}
    asked = next(iter(given))
    groups: dict[str, dict[str, _Point]] = {region: {} for region in given}
    for point in points:
        owner = point.parent if point.parent in given.keys() | {box.id for box in boxes} else asked
        if owner == asked and point.parent not in given and len(boxes) > 1:
            around = [box.id for box in boxes if box.holds(point)]
            if len(around) != 1:
                problems.append(
                    f"{where}: joint {point.joint!r} lies in {len(around)} rectangles, and belongs to none: left out"
                )
                continue
            (owner,) = around
        joints = groups.setdefault(owner, {})
        if point.joint in joints:
            raise DataError(f"joint {point.joint!r} is placed twice; draw a rectangle {CATEGORY!r} around each person")
        joints[point.joint] = point
    return tuple(
        Pose(
            joints=tuple(joints),
            keypoints_J2=np.array([(point.x, point.y) for point in joints.values()], dtype=np.float64).reshape(-1, 2),
            visibility_J=np.array([point.visibility for point in joints.values()], dtype=np.int64),
            record=given.get(owner),
        )
        for owner, joints in groups.items() if joints or owner in given
    )  # fmt: skip


def _is_hidden(at: str, region: dict[str, Any], problems: list[str]) -> bool:
    value = region.get("value")
    choices = value.get("choices") if isinstance(value, dict) else value
    if not isinstance(choices, list):
        problems.append(f"{at} is left out: its choices must be a list")
        return False
    return HIDDEN_CHOICE in choices


def _point(region: dict[str, Any], hidden: set[str]) -> _Point:
    value = region["value"]
    names = value.get("keypointlabels")
    if not isinstance(names, list) or len(names) != 1:
        raise ValueError(f"a point must have the name of one joint in keypointlabels, got {names!r}")
    x, y = value["x"], value["y"]
    if not all(isinstance(number, (int, float)) and abs(number) <= FARTHEST for number in (x, y)):
        raise ValueError(f"joint {names[0]!r} is at x {x!r}, y {y!r}")
    visibility = OCCLUDED if str(region.get("id")) in hidden else VISIBLE
    return _Point(str(names[0]), float(x), float(y), visibility, str(region.get("parentID")))


def _box(region: dict[str, Any]) -> list[_Box]:
    """A rectangle around a person; other rectangles are no business of ours."""
    value = region["value"]
    if CATEGORY not in (value.get("rectanglelabels") or ()):
        return []
    x, y, width, height = (float(value[name]) for name in ("x", "y", "width", "height"))
    return [_Box(str(region.get("id")), x, y, x + width, y + height)]


def _size(region: dict[str, Any]) -> tuple[float, float] | None:
    """What the region says of its picture; None where that is not a size."""
    width, height = region.get("original_width"), region.get("original_height")
    sizes = [number for number in (width, height) if isinstance(number, (int, float)) and number > 1]
    return (float(sizes[0]), float(sizes[1])) if len(sizes) == 2 else None


# --- Both ways


def _confidence(task: Task) -> float:
    """A model that does not know what it expects is not to be relied on."""
    return round(1 - task.failure_probability, 4) if math.isfinite(task.failure_probability) else 0.0


def _percent(pixel: float, length: int) -> float:
    """From pixel centres to percent of the image's edge, where 0 is the left edge of the first pixel."""
    return 100 * (pixel + 0.5) / length


def _region_id(record: str, name: str) -> str:
    return hashlib.sha256(f"{record}/{name}".encode()).hexdigest()[:10]


def _colour(joint: str) -> str:
    return _LEFT if joint.startswith("left") else _RIGHT if joint.startswith("right") else _MIDDLE
