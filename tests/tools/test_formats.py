"""Out to each annotation tool and back again."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton
from alpose.tools.annotation import HIDDEN, OCCLUDED, VISIBLE, Answer, Answers, Task, id_in
from alpose.tools.corrections import compare
from alpose.tools.formats import coco, cvat, label_studio

from .tasks import make_task

SKELETONS = pytest.mark.parametrize("skeleton", [LSP, MPII, COCO], ids=lambda skeleton: skeleton.name)


def through_coco(tasks: list[Task], skeleton: Skeleton, folder: Path, answers: dict[str, Answer]) -> Answers:
    document = coco.document(tasks, skeleton)
    for task, annotation in zip(tasks, document["annotations"], strict=True):
        if task.id in answers:
            answer = answers[task.id]
            annotation["keypoints"] = coco.flat(answer.keypoints_J2, answer.visibility_J)
    (folder / "came.json").write_text(json.dumps(document))
    return coco.read(folder / "came.json", skeleton)


def through_cvat(tasks: list[Task], skeleton: Skeleton, folder: Path, answers: dict[str, Answer]) -> Answers:
    """What CVAT exports: the images under a folder of their own, ids anew, no attributes of ours."""
    cvat.write(tasks, skeleton, folder, "week-1")
    ((_, content),) = coco.annotation_files(folder / cvat.ARCHIVE)
    document = json.loads(content)
    for place, (task, image, annotation) in enumerate(
        zip(tasks, document["images"], document["annotations"], strict=True)
    ):
        image |= {"id": 100 + place, "file_name": f"default/{image['file_name']}", "license": 0}
        annotation |= {"id": 7 + place, "image_id": 100 + place, "segmentation": [], "attributes": {"occluded": False}}
        if task.id in answers:
            answer = answers[task.id]
            annotation["keypoints"] = coco.flat(answer.keypoints_J2, answer.visibility_J)
    with zipfile.ZipFile(folder / "came.zip", "w") as zipped:
        zipped.writestr("annotations/person_keypoints_default.json", json.dumps(document))
    return coco.read(folder / "came.zip", skeleton)


def through_label_studio(tasks: list[Task], skeleton: Skeleton, folder: Path, answers: dict[str, Answer]) -> Answers:
    """What Label Studio exports when every prediction was submitted, some of them moved."""
    label_studio.write(tasks, skeleton, folder, "week-1", "/data/local-files/?d=images/", "alpose 1")
    exported = []
    for place, (task, value) in enumerate(
        zip(tasks, json.loads((folder / label_studio.TASKS).read_text()), strict=True)
    ):
        result: list[dict[str, Any]] = value["predictions"][0]["result"]
        if task.id in answers:
            result = moved(result, task, answers[task.id], skeleton)
        exported.append({"id": 10 + place, "data": value["data"], "predictions": [], "annotations": [
            {"id": place, "completed_by": 1, "was_cancelled": False, "result": result}]})  # fmt: skip
    (folder / "came.json").write_text(json.dumps(exported))
    return label_studio.read(folder / "came.json", skeleton)


def moved(result: list[dict[str, Any]], task: Task, answer: Answer, skeleton: Skeleton) -> list[dict[str, Any]]:
    """An annotator in the page: drags, deletes, adds, ticks ``hidden``."""
    regions = {r["value"]["keypointlabels"][0]: r for r in result if r["type"] == "keypointlabels"}
    out = [region for region in result if region["type"] != "keypointlabels"]
    size = {"original_width": task.width, "original_height": task.height, "image_rotation": 0}
    for joint, (x, y), v in zip(skeleton.joints, answer.keypoints_J2, answer.visibility_J, strict=True):
        if v == HIDDEN:
            continue
        place = {"x": 100 * (x + 0.5) / task.width, "y": 100 * (y + 0.5) / task.height, "width": 0.6}
        region = regions.get(joint, {"id": f"new-{joint}"})
        out.append({"id": region["id"], "type": "keypointlabels", "from_name": "joint", "to_name": "image", **size,
                    "value": {**place, "keypointlabels": [joint]}})  # fmt: skip
        if v == OCCLUDED:
            out.append({"id": region["id"], "type": "choices", "from_name": "hidden", "to_name": "image", **size,
                        "value": {**place, "choices": ["hidden"]}})  # fmt: skip
    return out


THROUGH = pytest.mark.parametrize("through", [through_coco, through_cvat, through_label_studio])


def corrected(task: Task, skeleton: Skeleton, seed: int) -> Answer:
    """Every joint somewhere else, every visibility."""
    rng = np.random.default_rng(seed)
    visibility_J = rng.integers(0, 3, len(skeleton))
    points_J2 = rng.uniform([0, 0], [task.width - 1, task.height - 1], (len(skeleton), 2))
    return Answer(
        id=task.id, keypoints_J2=np.where(visibility_J[:, None] > 0, points_J2, 0.0), visibility_J=visibility_J
    )


@THROUGH
@SKELETONS
def test_a_round_trip_is_the_identity(through: Any, skeleton: Skeleton, tmp_path: Path) -> None:
    tasks = [make_task(rank, skeleton) for rank in range(1, 6)]
    wanted = {task.id: corrected(task, skeleton, seed) for seed, task in enumerate(tasks[:3])}

    found = through(tasks, skeleton, tmp_path, wanted)

    assert found.problems == ()
    by_id = {answer.id: answer for answer in found.answers}
    assert set(by_id) == {task.id for task in tasks}
    for task in tasks:
        expected_J2, expected_J = task.keypoints_J2, task.visibility_J
        if task.id in wanted:
            expected_J2, expected_J = wanted[task.id].keypoints_J2, wanted[task.id].visibility_J
        answer = by_id[task.id]
        assert np.array_equal(answer.visibility_J, expected_J)
        labelled_J = expected_J > 0
        assert np.abs(answer.keypoints_J2 - expected_J2)[labelled_J].max() <= found.resolution_px / 2 + 1e-9
        assert not answer.keypoints_J2[~labelled_J].any()


@THROUGH
@SKELETONS
def test_accepted_is_told_from_corrected(through: Any, skeleton: Skeleton, tmp_path: Path) -> None:
    tasks = [make_task(rank, skeleton) for rank in range(1, 5)]
    nudged_J2 = tasks[1].keypoints_J2.copy()
    nudged_J2[2] += (3.0, -4.0)
    hidden_J = tasks[2].visibility_J.copy()
    hidden_J[0] = OCCLUDED
    answers = {
        tasks[1].id: Answer(id=tasks[1].id, keypoints_J2=nudged_J2, visibility_J=tasks[1].visibility_J),
        tasks[2].id: Answer(id=tasks[2].id, keypoints_J2=tasks[2].keypoints_J2, visibility_J=hidden_J),
    }
    found = through(tasks, skeleton, tmp_path, answers)
    corrections = [
        compare(task, answer, found.resolution_px) for task, answer in zip(tasks, found.answers, strict=True)
    ]

    assert [one.status for one in corrections] == ["accepted", "corrected", "corrected", "accepted"]
    assert corrections[1].distance_J[2] == pytest.approx(5.0, abs=0.02)
    assert np.nanmax(corrections[0].distance_J) == 0.0
    # An accepted pose is the prediction itself, not what rounding made of it.
    inside_J = tasks[0].visibility_J > 0
    assert np.array_equal(corrections[0].answer.keypoints_J2[inside_J], tasks[0].keypoints_J2[inside_J])


@SKELETONS
def test_pycocotools_reads_it(skeleton: Skeleton, tmp_path: Path) -> None:
    api = pytest.importorskip("pycocotools.coco")
    tasks = [make_task(rank, skeleton) for rank in range(1, 4)]
    (tmp_path / "out.json").write_text(json.dumps(coco.document(tasks, skeleton)))

    loaded = api.COCO(str(tmp_path / "out.json"))

    assert len(loaded.getAnnIds()) == 3
    (annotation,) = loaded.loadAnns(loaded.getAnnIds(imgIds=[2]))
    assert annotation["num_keypoints"] == len(skeleton) - 1
    assert annotation["keypoints"][-3:] == [0, 0, 0]
    (category,) = loaded.loadCats(loaded.getCatIds())
    assert category["keypoints"] == list(skeleton.joints)
    assert min(min(link) for link in category["skeleton"]) == 1


@SKELETONS
def test_the_cvat_folder_holds_what_cvat_asks_for(skeleton: Skeleton, tmp_path: Path) -> None:
    cvat.write([make_task(1, skeleton)], skeleton, tmp_path, "week 1")
    (label,) = json.loads((tmp_path / cvat.LABELS).read_text())
    svg = ET.fromstring(f"<svg>{label['svg']}</svg>")  # noqa: S314  # our own text

    assert label["type"] == "skeleton"
    assert [sub["name"] for sub in label["sublabels"]] == list(skeleton.joints)
    assert [node.get("data-label-name") for node in svg.iter("circle")] == list(skeleton.joints)
    edges = [
        (int(line.get("data-node-from", 0)) - 1, int(line.get("data-node-to", 0)) - 1) for line in svg.iter("line")
    ]
    assert edges == list(skeleton.links)
    said = (tmp_path / cvat.README).read_text()
    assert "task create 'week 1' local" in said
    assert '--annotation_format "COCO Keypoints 1.0"' in said
    # cvat-cli takes a bare path: with @ in front of it, it reads the text as JSON.
    assert "--labels labels.json " in said
    with zipfile.ZipFile(tmp_path / cvat.ARCHIVE) as zipped:
        assert zipped.namelist() == ["annotations/person_keypoints_default.json"]


def test_the_order_of_names_is_the_order_of_work() -> None:
    names = [make_task(rank, LSP).file_name for rank in (1, 2, 10, 99, 100, 12345)]

    assert names == sorted(names)


def test_label_studio_gets_the_surest_failure_first_and_shows_why(tmp_path: Path) -> None:
    task = make_task(1, LSP)
    (value,) = label_studio.tasks_json([task], LSP, "/data/", "alpose 1")
    root = ET.fromstring(label_studio.interface(LSP))  # noqa: S314  # our own text

    assert value["predictions"][0]["score"] == pytest.approx(1 - task.failure_probability)
    assert task.reason in value["data"]["alpose_summary"]
    assert root.find("Header").get("value") == "$alpose_summary"  # type: ignore[union-attr]
    labels = [label.get("value") for label in root.find(".//KeyPointLabels") or ()]
    assert labels == list(LSP.joints)
    regions = value["predictions"][0]["result"]
    controls = {node.get("name") for node in root.iter()}
    # The last region lies under the others: a box above the joints is dragged in their place.
    assert [region["type"] for region in regions].index("rectanglelabels") == len(regions) - 1
    assert {region.get("parentID") for region in regions} == {None, regions[-1]["id"]}
    assert {region["from_name"] for region in regions} <= controls
    assert all(0 <= region["value"]["x"] <= 100 for region in regions if region["type"] == "keypointlabels")


def write_coco(folder: Path, change: Any) -> Path:
    document = coco.document([make_task(rank, LSP) for rank in (1, 2)], LSP)
    change(document)
    path = folder / "came.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["images"][0].update(file_name="holiday.jpg"), "carries no id"),
        (lambda d: d["annotations"].append({**d["annotations"][0], "id": 9}), "2 people in this image"),
        (lambda d: d["annotations"][0].update(keypoints=[1, 2, 3]), "14 times x, y, v"),
        (lambda d: d["annotations"][0]["keypoints"].__setitem__(2, 7), "v is not 0, 1 or 2"),
        (lambda d: d["annotations"][0].update(image_id=77), "belongs to no image"),
        (lambda d: d["annotations"].append("x"), "belongs to no image"),
    ],
)
def test_what_cannot_be_used_is_named_and_the_rest_goes_on(change: Any, problem: str, tmp_path: Path) -> None:
    found = coco.read(write_coco(tmp_path, change), LSP)

    assert problem in found.problems[0]
    assert [answer.id for answer in found.answers][-1:] == [make_task(2, LSP).id]


def test_joints_in_another_order_are_put_right_and_other_joints_refused(tmp_path: Path) -> None:
    def reverse(document: dict[str, Any]) -> None:
        document["categories"][0]["keypoints"].reverse()
        for annotation in document["annotations"]:
            joints = np.reshape(annotation["keypoints"], (-1, 3))[::-1]
            annotation["keypoints"] = joints.ravel().tolist()

    straight = coco.read(write_coco(tmp_path, lambda d: None), LSP).answers
    turned = coco.read(write_coco(tmp_path, reverse), LSP).answers
    assert all(np.array_equal(a.keypoints_J2, b.keypoints_J2) for a, b in zip(straight, turned, strict=True))
    with pytest.raises(DataError, match="head_top"):
        coco.read(write_coco(tmp_path, lambda d: d["categories"][0]["keypoints"].__setitem__(13, "hat")), LSP)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("readme.txt", "no")
    (tmp_path / "x.zip").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="holds no JSON"):
        coco.read(tmp_path / "x.zip", LSP)
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(DataError, match=r"x\.json is no annotation file: not readable as JSON"):
        label_studio.read(tmp_path / "x.json", LSP)


def test_label_studio_leaves_open_tasks_for_later_and_names_the_rest(tmp_path: Path) -> None:
    tasks = [make_task(rank, LSP) for rank in range(1, 6)]
    exported = label_studio.tasks_json(tasks, LSP, "", "m")
    result = exported[0]["predictions"][0]["result"]
    twice = [*result, next(region for region in result if region["type"] == "keypointlabels")]
    for value, said_of_it in zip(exported, (
        [{"result": result, "updated_at": "2026-01-02"}, {"result": [], "updated_at": "2026-01-01"}],
        [], [{"result": [], "was_cancelled": True}], [{"result": twice}], [{"result": result}]), strict=True):  # fmt: skip
        value["annotations"] = said_of_it
    del exported[4]["data"]["alpose_id"]
    (tmp_path / "came.json").write_text(json.dumps(exported))

    found = label_studio.read(tmp_path / "came.json", LSP)

    assert [answer.id for answer in found.answers] == [tasks[0].id]
    assert (found.answers[0].visibility_J > 0).sum() == len(LSP) - 1
    said = "\n".join(found.problems)
    for part in ("2 annotations: the latest", "skipped by its annotator", "placed twice", "no alpose_id"):
        assert part in said
    assert len(found.problems) == 4


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (f"images/default/00007_{'a' * 32}.jpg", "a" * 32),
        (f"C:\\work\\{'0' * 32}.png", "0" * 32),
        (f"{'a' * 33}.jpg", None),
        (f"{'a' * 32}_{'b' * 32}.jpg", None),
        (f"{'a' * 32}/x.jpg", None),
    ],
)
def test_an_id_is_found_wherever_a_tool_puts_the_file(name: str, found: str | None) -> None:
    assert id_in(name) == found


def test_the_prediction_is_visible_inside_the_image_alone() -> None:
    assert make_task(1, LSP).visibility_J.tolist() == [VISIBLE] * 13 + [HIDDEN]
