"""What every registered annotation format promises, and what each does of its own."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton
from alpose.tools.annotation.exporting import IMAGE_URL
from alpose.tools.batch import Batch
from alpose.tools.formats import FORMATS, LabelFile, format_of, label_suffixes
from alpose.tools.formats import coco as coco_format
from alpose.tools.formats.cvat import ARCHIVE, LABELS
from alpose.tools.formats.files import README, open_files
from alpose.tools.formats.label_studio import TASKS, interface, tasks_json
from alpose.tools.labels import HIDDEN, OCCLUDED, VISIBLE, Answers, Handout, Pose, Task, compare, id_in, known_id_in
from alpose.trainer.data.yolo import label_line

from .harvest import BUDGET, call, value_of
from .per_image import PerImage, points_text
from .tasks import HEIGHT, WIDTH, make_task

SKELETONS = pytest.mark.parametrize("skeleton", [LSP, MPII, COCO], ids=lambda skeleton: skeleton.name)


def handout(tasks: list[Task], skeleton: Skeleton) -> Handout:
    return Handout(tasks=tasks, skeleton=skeleton, name="week 1", image_url=IMAGE_URL, model="driver 5a3b1e00")


# --- What tools give back for what they were given


def coco_returns(folder: Path, poses: Mapping[str, Pose]) -> Path:
    (path,) = (folder / "annotations").glob("*.json")
    document = json.loads(path.read_text())
    answered(document, poses)
    return saved(folder / "came.json", document)


def cvat_returns(folder: Path, poses: Mapping[str, Pose]) -> Path:
    """The images under a folder of their own, ids anew, no attributes of ours."""
    ((packed,), _) = open_files(folder / ARCHIVE)
    document = packed.value
    for place, (image, annotation) in enumerate(zip(document["images"], document["annotations"], strict=True)):
        image |= {"id": 100 + place, "file_name": f"default/{image['file_name']}", "license": 0}
        annotation |= {"id": 7 + place, "image_id": 100 + place, "segmentation": [], "attributes": {"occluded": False}}
    answered(document, poses)
    with zipfile.ZipFile(folder / "came.zip", "w") as zipped:
        zipped.writestr("annotations/person_keypoints_default.json", json.dumps(document))
    return folder / "came.zip"


def answered(document: Any, poses: Mapping[str, Pose]) -> None:
    ids = {image["id"]: id_in(image["file_name"]) for image in document["images"]}
    for annotation in document["annotations"]:
        pose = poses.get(ids[annotation["image_id"]] or "")
        if pose is not None:
            annotation["keypoints"] = coco_format.flat(pose.keypoints_J2, pose.visibility_J)


def studio_returns(folder: Path, poses: Mapping[str, Pose]) -> Path:
    """Every prediction submitted, some of them moved."""
    exported = json.loads((folder / TASKS).read_text())
    for place, task in enumerate(exported):
        (prediction,) = task.pop("predictions")
        result = prediction["result"]
        if task["data"]["alpose_id"] in poses:
            result = dragged(result, poses[task["data"]["alpose_id"]])
        task |= {"id": 10 + place, "predictions": [place], "annotations": [
            {"id": place, "completed_by": 1, "was_cancelled": False, "result": result}]}  # fmt: skip
    return saved(folder / "came.json", exported)


def dragged(result: list[dict[str, Any]], pose: Pose) -> list[dict[str, Any]]:
    """An annotator in the page: drags, deletes, adds, ticks ``hidden``."""
    regions = {r["value"]["keypointlabels"][0]: r for r in result if r["type"] == "keypointlabels"}
    out = [region for region in result if region["type"] != "keypointlabels"]
    size = {name: out[0][name] for name in ("original_width", "original_height", "image_rotation")}
    for joint, (x, y), v in zip(pose.joints, pose.keypoints_J2, pose.visibility_J, strict=True):
        if v == HIDDEN:
            continue
        place = {
            "x": 100 * (x + 0.5) / size["original_width"],
            "y": 100 * (y + 0.5) / size["original_height"],
            "width": 0.6,
        }
        region = regions.get(joint, {"id": f"new-{joint}"})
        out.append({"id": region["id"], "type": "keypointlabels", "from_name": "joint", "to_name": "image", **size,
                    "value": {**place, "keypointlabels": [joint]}})  # fmt: skip
        if v == OCCLUDED:
            out.append({"id": region["id"], "type": "choices", "from_name": "hidden", "to_name": "image", **size,
                        "value": {**place, "choices": ["hidden"]}})  # fmt: skip
    return out


def saved(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def yolo_returns(folder: Path, poses: Mapping[str, Pose]) -> Path:
    """An archive with Windows' line ends and a note, as Roboflow gives it; the pictures come back under longer names."""
    with zipfile.ZipFile(folder / "came.zip", "w") as zipped:
        zipped.writestr("data.yaml", (folder / "data.yaml").read_text())
        zipped.writestr("README.dataset.txt", "one line for people")
        for path in sorted((folder / "labels").iterdir()):
            line, pose = path.read_text(), poses.get(id_in(path.name) or "")
            if pose is not None:
                x0, y0, x1, y1 = 10.0, 10.0, 100.0, 100.0
                line = label_line(pose.keypoints_J2, pose.visibility_J, (x0, y0, x1, y1), (WIDTH, HEIGHT))
            zipped.writestr(f"train/labels/{path.stem}_jpg.rf.0123.txt", line.replace("\n", "") + "\r\n")
    return folder / "came.zip"


Returned = Path | Sequence[Path]
RETURNS: dict[str, Callable[[Path, Mapping[str, Pose]], Returned]] = {
    "coco": coco_returns, "cvat": cvat_returns, "label-studio": studio_returns, "yolo-pose": yolo_returns,
}  # fmt: skip
"""For each format: the file or files that come back when annotators placed these poses, by the record's id, and accepted the
others; of several files, in the order of work."""
EVERY_FORMAT = pytest.mark.parametrize("name", [name for name in FORMATS if name in RETURNS])


def went_out(name: str, skeleton: Skeleton, folder: Path, count: int = 5) -> list[Task]:
    tasks = [make_task(rank, skeleton) for rank in range(1, count + 1)]
    folder.mkdir(exist_ok=True)
    FORMATS[name].write(handout(tasks, skeleton), folder)
    return tasks


def opened(came: Returned) -> list[LabelFile]:
    """The label files in everything that came back."""
    files = []
    for path in [came] if isinstance(came, Path) else came:
        found, problems = open_files(path, label_suffixes())
        assert not problems
        files += [file for file in found if file.claims_labels or any(one.detect(file) for one in FORMATS.values())]
    return files


def read(came: Returned) -> Answers:
    """The answers of everything that came back, as if they stood in one file."""
    parts = [format_of(file).read(file, id_in) for file in opened(came)]
    return replace(
        parts[0],
        answers=tuple(answer for part in parts for answer in part.answers),
        problems=tuple(problem for part in parts for problem in part.problems),
        notes=tuple(note for part in parts for note in part.notes),
        ids=frozenset(id_ for part in parts for id_ in part.ids),
    )


def placed(task: Task, skeleton: Skeleton, seed: int) -> Pose:
    """Every joint somewhere else, every visibility."""
    rng = np.random.default_rng(seed)
    visibility_J = rng.integers(0, 3, len(skeleton))
    points_J2 = rng.uniform([0, 0], [task.width - 1, task.height - 1], (len(skeleton), 2))
    keypoints_J2 = np.where(visibility_J[:, None] > 0, points_J2, 0.0)
    return Pose(joints=skeleton.joints, keypoints_J2=keypoints_J2, visibility_J=visibility_J)


# --- The contract


def test_every_format_is_tested_here() -> None:
    for name, format_ in FORMATS.items():
        assert format_.name == name
        assert name in RETURNS, (
            f"format {name!r} is registered and not tested: add it to RETURNS in tests/tools/test_format_contract.py"
        )


@EVERY_FORMAT
@SKELETONS
def test_a_round_trip_gives_the_same_poses(name: str, skeleton: Skeleton, tmp_path: Path) -> None:
    tasks = went_out(name, skeleton, tmp_path)
    wanted = {task.id: placed(task, skeleton, seed) for seed, task in enumerate(tasks[:3])}

    found = read(RETURNS[name](tmp_path, wanted))

    assert (found.problems, found.notes) == ((), ())
    assert found.ids == {task.id for task in tasks}
    for task, answer in zip(tasks, found.answers, strict=True):
        expected = wanted.get(task.id)
        expected_J2, expected_J = task.keypoints_J2, task.visibility_J
        if expected is not None:
            expected_J2, expected_J = expected.keypoints_J2, expected.visibility_J
        pose = compare(answer, task, skeleton, 0.0).pose
        assert answer.id == task.id
        assert np.array_equal(pose.visibility_J, expected_J)
        labelled_J = expected_J > 0
        assert np.abs(pose.keypoints_J2 - expected_J2)[labelled_J].max() <= found.resolution_px / 2 + 1e-9
        assert not pose.keypoints_J2[~labelled_J].any()


@EVERY_FORMAT
@SKELETONS
def test_accepted_is_told_from_corrected(name: str, skeleton: Skeleton, tmp_path: Path) -> None:
    tasks = went_out(name, skeleton, tmp_path, 4)
    nudged_J2 = tasks[1].keypoints_J2.copy()
    nudged_J2[2] += (3.0, -4.0)
    hidden_J = tasks[2].visibility_J.copy()
    hidden_J[0] = OCCLUDED
    found = read(RETURNS[name](tmp_path, {
        tasks[1].id: Pose(joints=skeleton.joints, keypoints_J2=nudged_J2, visibility_J=tasks[1].visibility_J),
        tasks[2].id: Pose(joints=skeleton.joints, keypoints_J2=tasks[2].keypoints_J2, visibility_J=hidden_J),
    }))  # fmt: skip
    corrections = [compare(answer, task, skeleton, found.resolution_px)
                   for task, answer in zip(tasks, found.answers, strict=True)]  # fmt: skip

    assert [one.status for one in corrections] == ["accepted", "corrected", "corrected", "accepted"]
    assert corrections[1].distance_J[2] == pytest.approx(5.0, abs=0.02)
    assert np.nanmax(corrections[0].distance_J) == 0.0
    # An accepted pose is the prediction itself, not what rounding made of it.
    inside_J = tasks[0].visibility_J > 0
    assert np.array_equal(corrections[0].pose.keypoints_J2[inside_J], tasks[0].keypoints_J2[inside_J])


@EVERY_FORMAT
def test_a_format_recognises_what_comes_back_and_nothing_else(name: str, tmp_path: Path) -> None:
    went_out(name, LSP, tmp_path)
    for file in opened(RETURNS[name](tmp_path, {})):
        claimed = [other for other, format_ in FORMATS.items() if format_.detect(file)]
        # What comes back from CVAT is COCO's, and only that is recognised.
        assert claimed == [{"cvat": "coco"}.get(name, name)]


@EVERY_FORMAT
def test_a_folder_that_went_out_comes_back_with_the_answers_in_it_and_nothing_is_reported(
    name: str, inbox: Path, batch: Batch
) -> None:
    call("export", inbox, "--to", name, "--out", "work")
    assert "alpose-harvest import" in (Path("work") / README).read_text()
    tasks = [choice.id for choice in batch.choices]
    moved = Pose(joints=LSP.joints, keypoints_J2=np.full((len(LSP), 2), 20.0) + np.arange(2 * len(LSP)).reshape(-1, 2),
                 visibility_J=np.full(len(LSP), VISIBLE))  # fmt: skip
    RETURNS[name](Path("work"), {tasks[3]: moved})

    done = value_of(call("import", "work", "--into", "dataset", "--unchanged", "accept", "--json"))

    # An archive of Roboflow's has a note of its own to people, and is named with it.
    assert [note for note in done["notes"] if "README.dataset.txt" not in note] == []
    assert (done["problems"], done["unopened"], done["unknown"]) == ([], [], [])
    assert (done["accepted"], done["corrected"]) == (BUDGET - 1, 1)


@pytest.mark.parametrize(
    "value",
    [None, 3, "text", [], {}, [1], [[]], [{}], {"images": []}, {"images": 1, "annotations": [], "categories": []}],
)
def test_nobody_claims_what_is_something_else(value: Any) -> None:
    file = LabelFile("came.json", json.dumps(value).encode(), value)
    assert not any(format_.detect(file) for format_ in FORMATS.values())
    with pytest.raises(DataError, match=r"came\.json"):
        format_of(file)


@EVERY_FORMAT
@pytest.mark.parametrize("odd", [None, "note", 7, [], {}, {"id": "x"}])
def test_one_odd_thing_in_a_file_is_named_and_the_rest_goes_on(name: str, odd: Any, tmp_path: Path) -> None:
    tasks = went_out(name, LSP, tmp_path)
    file, *others = opened(RETURNS[name](tmp_path, {}))
    if others or file.value is None:
        pytest.skip("not one JSON file with all frames")
    rows = file.value if isinstance(file.value, list) else file.value["annotations"]
    rows.insert(2, odd)

    found = format_of(file).read(file, id_in)

    assert [answer.id for answer in found.answers] == [task.id for task in tasks]
    assert len(found.problems) == 1
    assert file.name in found.problems[0]
    assert "2" in found.problems[0]


def test_a_format_may_give_back_several_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One file an image, and not JSON: the contract holds it to the same promises, and asks for its entry."""
    monkeypatch.setitem(FORMATS, "per-image", PerImage())
    with pytest.raises(AssertionError, match="'per-image' is registered and not tested: add it to RETURNS"):
        test_every_format_is_tested_here()
    monkeypatch.setitem(RETURNS, "per-image", per_image_returns)
    test_every_format_is_tested_here()
    for number, test in enumerate((test_a_round_trip_gives_the_same_poses, test_accepted_is_told_from_corrected)):
        test("per-image", LSP, tmp_path / str(number))
    test_a_format_recognises_what_comes_back_and_nothing_else("per-image", tmp_path / "recognised")


def per_image_returns(folder: Path, poses: Mapping[str, Pose]) -> list[Path]:
    paths = sorted((folder / "points").iterdir())
    for path in paths:
        pose = poses.get(id_in(path.name) or "")
        if pose is not None:
            path.write_text(points_text(path.stem, pose.joints, pose.keypoints_J2, pose.visibility_J))
    return paths


# --- COCO


@SKELETONS
def test_pycocotools_reads_it(skeleton: Skeleton, tmp_path: Path) -> None:
    api = pytest.importorskip("pycocotools.coco")
    went_out("coco", skeleton, tmp_path, 3)
    (path,) = (tmp_path / "annotations").glob("*.json")

    loaded = api.COCO(str(path))

    assert len(loaded.getAnnIds()) == 3
    (annotation,) = loaded.loadAnns(loaded.getAnnIds(imgIds=[2]))
    assert annotation["num_keypoints"] == len(skeleton) - 1
    assert annotation["keypoints"][-3:] == [0, 0, 0]
    (category,) = loaded.loadCats(loaded.getCatIds())
    assert category["keypoints"] == list(skeleton.joints)
    assert min(min(link) for link in category["skeleton"]) == 1


def changed_coco(folder: Path, change: Callable[[Any], Any]) -> Path:
    document = coco_format.document([make_task(rank, LSP) for rank in (1, 2)], LSP)
    change(document)
    return saved(folder / "came.json", document)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda d: d["images"][0].update(file_name="holiday.jpg"), "carries no id"),
        (lambda d: d["annotations"][0].update(keypoints=[1, 2, 3]), "14 times x, y, v"),
        (lambda d: d["annotations"][0]["keypoints"].__setitem__(2, 7), "with v 0, 1 or 2"),
        (lambda d: d["annotations"][0].update(image_id=77), "belongs to no image"),
        (lambda d: d["annotations"].append("x"), "belongs to no image"),
    ],
)
def test_what_cannot_be_used_is_named_and_the_rest_goes_on(change: Any, problem: str, tmp_path: Path) -> None:
    found = read(changed_coco(tmp_path, change))

    assert problem in found.problems[0]
    assert [answer.id for answer in found.answers][-1:] == [make_task(2, LSP).id]


def test_joints_in_another_order_are_put_right(tmp_path: Path) -> None:
    def reverse(document: dict[str, Any]) -> None:
        document["categories"][0]["keypoints"].reverse()
        for annotation in document["annotations"]:
            joints = np.reshape(annotation["keypoints"], (-1, 3))[::-1]
            annotation["keypoints"] = joints.ravel().tolist()

    straight = read(changed_coco(tmp_path, lambda d: None)).answers
    turned = read(changed_coco(tmp_path, reverse)).answers
    for a, b in zip(straight, turned, strict=True):
        assert np.array_equal(a.people[0].keypoints_J2, b.people[0].ordered(LSP).keypoints_J2)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr("readme.md", "no")
    with pytest.raises(DataError, match=r"^x\.zip holds no file with labels"):
        read(tmp_path / "x.zip")
    (tmp_path / "x.json").write_text("[")
    with pytest.raises(
        DataError, match=r"^x\.json: no known format \(coco, .*\) recognises it; it is not readable as JSON"
    ):
        read(tmp_path / "x.json")


# --- CVAT


@SKELETONS
def test_the_cvat_folder_holds_what_cvat_asks_for(skeleton: Skeleton, tmp_path: Path) -> None:
    went_out("cvat", skeleton, tmp_path, 1)
    (label,) = json.loads((tmp_path / LABELS).read_text())
    svg = ET.fromstring(f"<svg>{label['svg']}</svg>")  # noqa: S314  # our own text

    assert label["type"] == "skeleton"
    assert [sub["name"] for sub in label["sublabels"]] == list(skeleton.joints)
    assert [node.get("data-label-name") for node in svg.iter("circle")] == list(skeleton.joints)
    edges = [
        (int(line.get("data-node-from", 0)) - 1, int(line.get("data-node-to", 0)) - 1) for line in svg.iter("line")
    ]
    assert edges == list(skeleton.links)
    said = (tmp_path / README).read_text()
    assert "task create 'week 1' local" in said
    assert '--annotation_format "COCO Keypoints 1.0"' in said
    # cvat-cli takes a bare path: with @ in front of it, it reads the text as JSON.
    assert "--labels labels.json " in said
    with zipfile.ZipFile(tmp_path / ARCHIVE) as zipped:
        assert zipped.namelist() == ["annotations/person_keypoints_default.json"]


# --- Label Studio


def test_label_studio_gets_the_surest_failure_first_and_shows_why() -> None:
    task = make_task(1, LSP)
    (value,) = tasks_json(handout([task], LSP))
    root = ET.fromstring(interface(LSP))  # noqa: S314  # our own text

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


def test_label_studio_leaves_open_tasks_for_later_and_names_the_rest(tmp_path: Path) -> None:
    tasks = [make_task(rank, LSP) for rank in range(1, 6)]
    exported = tasks_json(handout(tasks, LSP))
    result = exported[0]["predictions"][0]["result"]
    twice = [*result, next(region for region in result if region["type"] == "keypointlabels")]
    for value, said_of_it in zip(exported, (
        [{"result": result, "updated_at": "2026-01-02"}, {"result": [], "updated_at": "2026-01-01"}],
        [], [{"result": [], "was_cancelled": True}], [{"result": twice}], [{"result": result}]), strict=True):  # fmt: skip
        value["annotations"] = said_of_it
    exported[4]["data"] = {"image": "holiday.jpg"}

    found = read(saved(tmp_path / "came.json", exported))

    assert [answer.id for answer in found.answers] == [tasks[0].id]
    assert (found.answers[0].people[0].visibility_J > 0).sum() == len(LSP) - 1
    said = "\n".join(found.problems)
    for part in ("2 annotations: the latest", "skipped by its annotator", "placed twice", "no alpose_id"):
        assert part in said
    assert len(found.problems) == 4


# --- Names


def test_the_order_of_names_is_the_order_of_work() -> None:
    names = [make_task(rank, LSP).file_name for rank in (1, 2, 10, 99, 100, 12345)]

    assert names == sorted(names)


A, B = "a" * 32, "b" * 32


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (f"images/default/00007_{A}.jpg", A),
        (f"C:\\work\\{'0' * 32}.png", "0" * 32),
        (f"{'a' * 33}.jpg", None),
        (f"{A}_{B}.jpg", None),
        (f"{A}/x.jpg", None),
        (f"00007_{A}_jpg.rf.{B}.jpg", A),
        (f"{B}-00007_{A}.jpg", A),
        (f"1f2e3d4c-00007_{A.upper()}.JPG", A),
    ],
)
def test_an_id_is_found_wherever_a_tool_puts_the_file(name: str, found: str | None) -> None:
    assert id_in(name) == found


@pytest.mark.parametrize("name", [f"{A}_{B}.jpg", f"{B}-{A}.jpg", f"00007_{A}{'c' * 8}.jpg", f"x?file={A}.jpg&v=/2"])
def test_an_id_that_the_inbox_knows_is_found_among_others(name: str) -> None:
    assert known_id_in(lambda id_: id_ == A)(name) == A


def test_the_prediction_is_visible_inside_the_image_alone() -> None:
    assert make_task(1, LSP).visibility_J.tolist() == [VISIBLE] * 13 + [HIDDEN]
