"""Files as annotation tools, services and people really leave them: stored rightly, or refused by name, and never silently wrong."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.tools.batch import Batch
from alpose.tools.dataset import ANNOTATIONS
from alpose.tools.formats.files import APPLE_DOUBLE

from .harvest import BUDGET, call, value_of

Change = Callable[[Any], Any]
AGAIN = ("import", "came.json", "--into", "dataset", "--unchanged", "accept")


@pytest.fixture
def coco(inbox: Path, batch: Batch) -> Any:
    """The batch as a COCO document, in a folder where it can be changed and imported."""
    call("export", inbox, "--to", "coco")
    return json.loads(next(Path("week-1-coco/annotations").iterdir()).read_text())


@pytest.fixture
def studio(inbox: Path, batch: Batch) -> list[Any]:
    """The batch as Label Studio exports it, every prediction submitted."""
    call("export", inbox, "--to", "label-studio")
    tasks: list[Any] = json.loads(Path("week-1-label-studio/tasks.json").read_text())
    for number, task in enumerate(tasks):
        task["annotations"] = [{"id": number, "completed_by": 1, "result": task.pop("predictions")[0]["result"]}]
    return tasks


def imported(document: Any, *options: object) -> Any:
    Path("came.json").write_text(json.dumps(document))
    return value_of(call("import", "came.json", "--into", "dataset", "--unchanged", "accept", "--json", *options))


def refused(document: Any) -> str:
    Path("came.json").write_text(json.dumps(document))
    said = call("import", "came.json", "--into", "dataset", "--unchanged", "accept", fails=True)
    assert not (Path("dataset") / ANNOTATIONS).exists()
    return said.stdout + said.stderr


def stored() -> Any:
    return json.loads((Path("dataset") / ANNOTATIONS).read_text())


def joint_values(document: Any) -> Iterator[list[Any]]:
    for annotation in document["annotations"]:
        yield annotation["keypoints"]


def joints_of(task: Any) -> list[Any]:
    return [one for one in task["annotations"][0]["result"] if one["type"] == "keypointlabels"]


# --- Whose pose is whose


def test_two_images_that_share_an_id_are_refused_by_name(coco: Any) -> None:
    coco["images"][1]["id"] = coco["images"][0]["id"]
    said = refused(coco)
    assert "image id 1 is given twice" in said
    assert all(image["file_name"] in said for image in coco["images"][:2])


@pytest.mark.parametrize("ids", [str, float, lambda id_: f"img-{id_}"])
def test_ids_may_be_text_or_numbers(ids: Change, coco: Any) -> None:
    for image in coco["images"]:
        image["id"] = ids(image["id"])
    if ids("1") != "img-1":  # a number in one list and a text in the other name the same image
        assert imported(coco)["merged"]["added"] == BUDGET
        return
    for annotation in coco["annotations"]:
        annotation["image_id"] = ids(annotation["image_id"])
    assert imported(coco)["merged"]["added"] == BUDGET


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"a1b2c3d4-{name}",
        lambda name: f"{'ab12' * 8}_{name}",
        lambda name: name.replace(".jpg", f"_jpg.rf.{'0f' * 16}.jpg"),
        lambda name: f"https://bucket.example.org/p/{name}?X-Signature={'0f' * 32}/x",
        lambda name: f"/data/local-files/?d=images/{name}",
        lambda name: f"images\\{name}",
        lambda name: name[6:],
        lambda name: name.upper(),
    ],
)
def test_names_that_a_service_has_changed_still_carry_the_id(rename: Change, coco: Any) -> None:
    for image in coco["images"]:
        image["file_name"] = rename(image["file_name"])
    done = imported(coco)
    assert (done["merged"]["added"], done["problems"], done["unknown"]) == (BUDGET, [], [])


def test_another_person_in_the_picture_is_stored_beside_the_one_that_the_model_saw(coco: Any, batch: Batch) -> None:
    first = coco["annotations"][0]
    image = coco["images"][0]
    other = json.loads(json.dumps(first))
    for joint in range(0, len(other["keypoints"]), 3):
        other["keypoints"][joint : joint + 3] = [image["width"] - 3 + joint / 50, 2.0 + joint / 10, 2]
    coco["annotations"].insert(0, {**other, "id": 999})
    done = imported(coco)

    assert (done["merged"]["added"], done["problems"]) == (BUDGET, [])
    document = stored()
    (people,) = (
        [one for one in document["annotations"] if one["image_id"] == image["id"]]
        for image in document["images"] if image["alpose"]["id"] == batch.choices[0].id
    )  # fmt: skip
    assert [one["keypoints"] for one in people] == [first["keypoints"], other["keypoints"]]
    assert [one["alpose"]["status"] for one in people] == ["corrected", "added"]
    assert "predicted" not in people[1]["alpose"]
    assert len({one["id"] for one in document["annotations"]}) == BUDGET + 1
    assert imported(coco)["merged"] == {**done["merged"], "added": 0, "unchanged": BUDGET}
    report = value_of(call("report", "dataset", "--json"))
    assert report["dropped"]["people added by annotators"] == 1


def test_people_of_whom_none_is_where_the_model_looked_are_refused(coco: Any) -> None:
    corner = coco["images"][0]["width"] - 3.0
    away = [2.0 + place / 30 if place % 3 else corner + place / 50 for place in range(3 * 14)]
    first = {
        **coco["annotations"][0],
        "keypoints": [2 if place % 3 == 2 else value for place, value in enumerate(away)],
    }
    second = {**first, "keypoints": [value + (place % 3 == 0) for place, value in enumerate(first["keypoints"])]}
    coco["annotations"][0:1] = [first, {**second, "id": 999}]
    done = imported(coco)
    assert done["merged"]["added"] == BUDGET - 1
    assert "none of the 2 people" in done["problems"][0]


def test_people_in_label_studio_are_told_by_their_rectangles(studio: list[Any], batch: Batch) -> None:
    result = studio[0]["annotations"][0]["result"]
    size = {"original_width": result[0]["original_width"], "original_height": result[0]["original_height"]}
    result.append({"id": "second", "type": "rectanglelabels", **size,
                   "value": {"x": 1, "y": 1, "width": 3, "height": 3, "rectanglelabels": ["person"]}})  # fmt: skip
    for joint, x in (("neck", 2.0), ("head_top", 3.0)):
        result.append(
            {"id": joint, "type": "keypointlabels", **size, "value": {"x": x, "y": 2.0, "keypointlabels": [joint]}}
        )
    done = imported(studio)
    assert (done["merged"]["added"], done["problems"]) == (BUDGET, [])
    people = [one for one in stored()["annotations"] if one["image_id"] == 1]
    assert [one["num_keypoints"] for one in people][1:] == [2]

    del result[-3]  # the second rectangle
    done = imported(studio, "--on-conflict", "replace")
    assert "is placed twice; draw a rectangle 'person' around each person" in done["problems"][0]


# --- The size that a tool showed


@pytest.mark.parametrize("factor", [0.5, 0.25, 1.0, 2.0, 1 / 3])
def test_a_picture_that_was_resized_has_its_points_scaled(factor: float, coco: Any) -> None:
    for image in coco["images"]:
        image |= {"width": round(image["width"] * factor), "height": round(image["height"] * factor)}
    for values in joint_values(coco):
        values[:] = [round(value * factor, 2) if place % 3 < 2 else value for place, value in enumerate(values)]
    done = imported(coco)
    assert (done["accepted"], done["problems"]) == (BUDGET, [])


@pytest.mark.parametrize("change", [
    lambda image: image.update(width=image["height"], height=image["width"]),
    lambda image: image.update(width=640, height=640),
    lambda image: image.update(height=image["height"] - 40),
])  # fmt: skip
def test_a_picture_that_was_cut_turned_or_stretched_is_refused_by_name(change: Change, coco: Any) -> None:
    change(coco["images"][0])
    done = imported(coco)
    assert done["merged"]["added"] == BUDGET - 1
    (problem,) = done["problems"]
    assert "cut, turned or stretched" in problem
    assert coco["images"][0]["file_name"][6:38] in problem


def test_a_file_without_sizes_is_taken_for_the_known_picture_unless_that_cannot_be(coco: Any) -> None:
    for image in coco["images"]:
        del image["width"]
        image["height"] = "auto"
    for place, value in enumerate(coco["annotations"][0]["keypoints"]):
        coco["annotations"][0]["keypoints"][place] = value * 9 if place % 3 < 2 else value
    done = imported(coco)
    assert done["merged"]["added"] == BUDGET - 1
    assert "does not state its size" in done["problems"][0]


@pytest.mark.parametrize(("width", "height", "stored_all"), [
    (0.5, 0.5, True), (0, 0, True), (None, None, True), ("x", "y", True), (0.5, 1.0, False),
])  # fmt: skip
def test_label_studio_counts_in_percent_whatever_size_it_states(
    width: Any, height: Any, stored_all: bool, studio: list[Any]
) -> None:
    for region in studio[0]["annotations"][0]["result"]:
        for name, factor in (("original_width", width), ("original_height", height)):
            region[name] = region[name] * factor if isinstance(factor, float) else factor
    done = imported(studio)
    assert done["accepted"] == BUDGET - (not stored_all)
    assert len(done["problems"]) == (not stored_all)


# --- One odd thing does not stop the rest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(category_id=2), "annotations of other categories"),
        (lambda a: a.update(iscrowd=1), "crowds"),
        (lambda a: a.update(iscrowd="1"), "crowds"),
    ],
)
def test_what_is_not_a_person_is_left_out_and_counted(change: Change, said: str, coco: Any) -> None:
    coco["categories"].append({"id": 2, "name": "seat belt"})
    for annotation in list(coco["annotations"]):
        box = {**annotation, "id": 100 + annotation["id"], "segmentation": []}
        del box["keypoints"]
        change(box)
        coco["annotations"].append(box)
    done = imported(coco)
    assert (done["merged"]["added"], done["problems"]) == (BUDGET, [])
    assert done["notes"] == [f"came.json: {BUDGET} {said}"]
    assert f"left out: came.json: {BUDGET} {said}" in call(*AGAIN).stdout


def test_joints_without_names_are_those_that_went_out_and_that_is_said(coco: Any) -> None:
    del coco["categories"][0]["keypoints"]
    coco["annotations"][0]["keypoints"][0] += 5
    for annotation in coco["annotations"]:
        del annotation["attributes"]
    more = [{**one, "keypoints": [*one["keypoints"], 1, 2, 2]} for one in coco["annotations"]]
    assert "it has 15 joints, and skeleton" in refused({**coco, "annotations": more})
    done = imported(coco)
    assert (done["accepted"], done["corrected"], done["problems"]) == (BUDGET - 1, 1, [])
    assert "they are taken for the 14 that went out, in their order" in done["notes"][0]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(iscrowd="0"),
        lambda a: a.update(iscrowd=False),
        lambda a: a.update(num_keypoints=0, bbox=[0, 0, 0, 0], area=None),
        lambda a: a.update(bbox=[]),
        lambda a: a.pop("id"),
        lambda a: a.update(category_id="1"),
        lambda a: a.update(keypoints=[str(value) for value in a["keypoints"]]),
        lambda a: a.update(keypoints=[float(value) for value in a["keypoints"]]),
        lambda a: a.update(segmentation={"counts": "abc"}, track_id=None),
    ],
)
def test_fields_that_do_not_matter_may_say_anything(change: Change, coco: Any) -> None:
    for annotation in coco["annotations"]:
        change(annotation)
    assert (imported(coco)["accepted"], stored()["annotations"][0]["num_keypoints"] > 0) == (BUDGET, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(image_id=[0]),
        lambda a: a.update(keypoints={"neck": [1, 2, 2]}),
        lambda a: a.update(keypoints=a["keypoints"][:-1]),
        lambda a: a.pop("keypoints"),
        lambda a: a["keypoints"].__setitem__(0, float("nan")),
        lambda a: a["keypoints"].__setitem__(0, None),
        lambda a: a["keypoints"].__setitem__(0, 1e300),
        lambda a: a["keypoints"].__setitem__(slice(2, None, 3), [0.97] * 14),
    ],
)
def test_one_damaged_person_is_named_and_the_rest_is_stored(change: Change, coco: Any) -> None:
    coco["annotations"][0]["keypoints"][2] = 2
    change(coco["annotations"][0])
    done = imported(coco)
    assert done["merged"]["added"] == BUDGET - 1
    assert "annotations[0]" in done["problems"][0]


@pytest.mark.parametrize(
    ("factor", "said"), [(1 / 640, "shares of the picture"), (7.0, "most of its joints lie outside")]
)
def test_joints_in_another_unit_are_refused_by_name(factor: float, said: str, coco: Any) -> None:
    values = coco["annotations"][0]["keypoints"]
    values[:] = [value * factor if place % 3 < 2 else value for place, value in enumerate(values)]
    done = imported(coco)
    assert done["merged"]["added"] == BUDGET - 1
    assert any(said in problem for problem in done["problems"])


def test_one_joint_far_outside_is_listed_as_not_labelled_and_the_person_stays(coco: Any) -> None:
    """Half of the longer side beyond the edge is near enough for a hidden joint; one pixel more is not."""
    size = max(coco["images"][0]["width"], coco["images"][0]["height"])
    for annotation, beyond in zip(coco["annotations"], (size / 2 + 1, size / 2 - 1), strict=False):
        annotation["keypoints"][0:3] = [-beyond, 5.0, 1]
    done = imported(coco)
    assert done["merged"]["added"] == BUDGET
    (problem,) = done["problems"]
    assert "right_ankle at" in problem
    assert "counts as not labelled" in problem
    first, second = (one["keypoints"][:3] for one in stored()["annotations"][:2])
    assert (first, second[2]) == ([0, 0, 0], 1)


def test_one_joint_far_outside_in_label_studio_is_listed_as_not_labelled(studio: list[Any]) -> None:
    first_joint(studio[0])["value"].update(x=300)
    done = imported(studio)
    assert done["merged"]["added"] == BUDGET
    (problem,) = done["problems"]
    assert f"{first_joint(studio[0])['value']['keypointlabels'][0]} at" in problem


def test_one_joint_far_outside_in_yolo_pose_is_listed_as_not_labelled(inbox: Path, batch: Batch) -> None:
    call("export", inbox, "--to", "yolo-pose", "--out", "work")
    path = sorted(Path("work/labels").iterdir())[0]
    words = path.read_text().split()
    words[5:8] = ["70.5", "0.5", "2"]
    path.write_text(" ".join(words))
    done = value_of(call("import", "work", "--into", "dataset", "--unchanged", "accept", "--json"))
    assert (done["accepted"] + done["corrected"], len(done["problems"])) == (BUDGET, 1)
    assert "right_ankle at" in done["problems"][0]


def test_what_is_not_labelled_may_be_anything_and_what_is_at_the_corner_is_not_labelled(coco: Any) -> None:
    values = coco["annotations"][0]["keypoints"]
    values[0:3] = [None, float("nan"), 0]
    values[3:6] = [0, 0, 2]
    done = imported(coco)
    assert done["merged"]["added"] == BUDGET
    assert any("at 0, 0 is taken for not labelled" in problem for problem in done["problems"])
    assert stored()["annotations"][0]["keypoints"][:6] == [0] * 6


def first_joint(task: Any) -> Any:
    return next(one for one in task["annotations"][0]["result"] if one["type"] == "keypointlabels")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: first_joint(t)["value"].update(keypointlabels=[]), "the name of one joint"),
        (lambda t: first_joint(t)["value"].pop("keypointlabels"), "the name of one joint"),
        (lambda t: first_joint(t)["value"]["keypointlabels"].append("neck"), "the name of one joint"),
        (lambda t: first_joint(t)["value"].update(x=None), "at x None"),
        (lambda t: first_joint(t)["value"].update(x=float("nan")), "at x nan"),
        (lambda t: first_joint(t).pop("value"), "'value'"),
        (lambda t: t["annotations"][0]["result"].append("note"), "not a region"),
        (
            lambda t: t["annotations"][0]["result"].append({"type": "keypoint", "value": {}}),
            "without the name of a joint",
        ),
        (
            lambda t: t["annotations"][0]["result"].append({"id": [1], "type": "choices", "value": 3}),
            "choices must be a list",
        ),
        (
            lambda t: t["annotations"][0]["result"].append({"type": "ellipselabels", "value": {"x": 1, "y": 2}}),
            "type 'ellipselabels'",
        ),
    ],
)
def test_one_odd_region_is_named_and_the_rest_of_the_pose_is_stored(
    change: Change, said: str, studio: list[Any]
) -> None:
    change(studio[0])
    done = imported(studio)
    assert done["merged"]["added"] == BUDGET
    (problem,) = done["problems"]
    assert said in problem
    assert "task 0" in problem
    assert "result[" in problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["annotations"][0].update(result=None), "result must be a list"),
        (lambda t: t.update(annotations={"a": 1}), "annotations must be a list"),
        (lambda t: [one.update(image_rotation=90) for one in t["annotations"][0]["result"]], "turned by 90"),
        (lambda t: first_joint(t)["value"].update(keypointlabels=["tail"]), "'tail'"),
        (lambda t: t["data"].update(alpose_id=3, image="x.jpg"), "no alpose_id"),
        (lambda t: [one["value"].update(x=one["value"]["x"] + 300) for one in joints_of(t)], "most of its joints"),
    ],
)
def test_one_odd_task_is_named_and_the_others_are_stored(change: Change, said: str, studio: list[Any]) -> None:
    change(studio[0])
    done = imported(studio)
    assert done["merged"]["added"] == BUDGET - 1
    assert said in done["problems"][0]
    assert "task 0" in done["problems"][0]


@pytest.mark.parametrize(
    "change", [lambda one: one.pop("type"), lambda one: one.update(type="labels", value={"labels": ["neck"]})]
)
def test_regions_of_another_kind_are_not_taken_for_a_picture_without_anybody(change: Change, studio: list[Any]) -> None:
    for one in joints_of(studio[0]):
        change(one)
    done = imported(studio)
    assert done["merged"]["added"] == BUDGET - 1
    assert "expected keypointlabels" in done["problems"][0]
    assert "no joint of it can be used" in done["problems"][-1]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(completions=t.pop("annotations")),
        lambda t: t["data"].pop("alpose_id"),
        lambda t: t["annotations"][0].update(completed_by=None),
        lambda t: t["annotations"][0]["result"].append({"type": "relation", "from_id": "a", "to_id": "b"}),
    ],
)
def test_tasks_of_other_versions_are_read(change: Change, studio: list[Any]) -> None:
    for task in studio:
        change(task)
    assert (done := imported(studio))["accepted"] == BUDGET
    assert not done["problems"]


# --- Files and archives


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_text_is_read_in_every_encoding_that_json_may_have(encoding: str, coco: Any) -> None:
    coco["info"] = {"contributor": "Jürgen"}
    Path("came.json").write_bytes(json.dumps(coco, ensure_ascii=False).encode(encoding))
    assert "10 added" in call(*AGAIN).stdout


def test_a_name_that_is_not_utf_8_stops_nothing(coco: Any) -> None:
    coco["info"] = {"contributor": "Jürgen"}
    Path("came.json").write_bytes(json.dumps(coco, ensure_ascii=False).encode("latin-1"))
    assert "10 added" in call(*AGAIN).stdout


def test_what_macos_puts_into_an_archive_is_passed_over(coco: Any) -> None:
    with zipfile.ZipFile("came.zip", "w") as archive:
        archive.writestr("__MACOSX/annotations/._person_keypoints_default.json", APPLE_DOUBLE + b"\xb0")
        archive.writestr("annotations/person_keypoints_default.json", json.dumps(coco))
        archive.writestr("annotations/._person_keypoints_default.json", APPLE_DOUBLE)
        archive.writestr(".DS_Store", b"\0\0\0\1Bud1")
    said = call("import", "came.zip", "--into", "dataset", "--unchanged", "accept").stdout
    assert "10 added" in said
    assert "problem" not in said


def test_an_archive_of_archives_says_what_to_do(coco: Any) -> None:
    with zipfile.ZipFile("came.zip", "w") as archive:
        archive.writestr("job-1.zip", b"PK")
    said = call("import", "came.zip", "--into", "dataset", fails=True)
    assert "came.zip holds other archives" in said.stdout + said.stderr


def zipped(name: str, document: Any, within: str = "annotations/person_keypoints_default.json") -> None:
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr(within, json.dumps(document))


def part(document: Any, first: int, stop: int | None = None) -> Any:
    images = document["images"][first:stop]
    ids = {image["id"] for image in images}
    return {**document, "images": images,
            "annotations": [one for one in document["annotations"] if one["image_id"] in ids]}  # fmt: skip


def test_archives_and_loose_files_of_a_folder_are_all_read(coco: Any) -> None:
    Path("came/jobs").mkdir(parents=True)
    Path("came/anna.json").write_text(json.dumps(part(coco, 0, 3)))
    zipped("came/jobs/job-7.zip", part(coco, 3, 6))
    zipped("came/bruno.ZIP", part(coco, 6))
    done = value_of(call("import", "came", "--into", "dataset", "--unchanged", "accept", "--json"))
    assert (done["accepted"], done["problems"], done["notes"]) == (BUDGET, [], [])


def test_what_stands_beside_labels_and_cannot_be_read_is_named(coco: Any) -> None:
    Path("came").mkdir()
    Path("came/anna.json").write_text(json.dumps(part(coco, 0, 3)))
    zipped("good.zip", part(coco, 3))
    Path("came/cut.zip").write_bytes(spoil(Path("good.zip").read_bytes(), "cut off"))
    Path("came/half.json").write_text(json.dumps(coco)[:999])
    Path("came/bruno.7z").write_bytes(b"7z\xbc\xaf\x27\x1c")
    Path("came/captions.json").write_text('{"images": [], "annotations": [{"caption": "a car"}]}')
    instances = {
        **coco,
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    Path("came/instances.json").write_text(json.dumps(instances))
    Path("came/notes.txt").write_text("call Anna")
    done = value_of(call("import", "came", "--into", "dataset", "--unchanged", "accept", "--json"))
    assert done["accepted"] == 3
    assert [problem.partition(" ")[0].rstrip(":") for problem in sorted(done["problems"])] == [
        "came/bruno.7z", "came/cut.zip", "came/half.json"]  # fmt: skip
    assert done["notes"] == ["came: 3 files without poses of people: captions.json, instances.json, notes.txt"]


def test_an_archive_in_an_archive_beside_labels_is_named(coco: Any) -> None:
    zipped("inner.zip", coco)
    with zipfile.ZipFile("came.zip", "w") as archive:
        archive.writestr("a.json", json.dumps(part(coco, 0, 2)))
        archive.write("inner.zip", "job-2.zip")
    done = value_of(call("import", "came.zip", "--into", "dataset", "--unchanged", "accept", "--json"))
    assert done["accepted"] == 2
    (problem,) = done["problems"]
    assert problem.startswith("came.zip:job-2.zip is an archive in it that was not read")


def test_a_corrected_file_counts_before_the_untouched_one_beside_it_however_they_are_called(coco: Any) -> None:
    """Also where everything that is unchanged is said to be accepted."""
    folder = Path("week-1-coco")
    coco["annotations"][0]["keypoints"][0] += 5
    for name in ("0-corrected.json", "corrected.json"):
        (folder / name).write_text(json.dumps(coco))
        done = value_of(call("import", folder, "--into", f"dataset-{name}", "--unchanged", "accept", "--json"))
        assert (done["accepted"], done["corrected"], done["problems"]) == (BUDGET - 1, 1, [])
        (folder / name).unlink()


def test_an_archive_with_notes_to_people_alone_holds_no_labels(inbox: Path) -> None:
    with zipfile.ZipFile("came.zip", "w") as archive:
        archive.writestr("readme.txt", "no")
    said = call("import", "came.zip", "--into", "dataset", fails=True).stderr
    assert said.startswith("Error: came.zip holds no file with labels")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED])
def test_archives_may_be_compressed_in_other_ways(method: int, coco: Any) -> None:
    with zipfile.ZipFile("came.zip", "w", method) as archive:
        archive.writestr("annotations/person_keypoints_default.json", json.dumps(coco))
    assert "10 added" in call("import", "came.zip", "--into", "dataset", "--unchanged", "accept").stdout


def spoil(content: bytes, kind: str) -> bytes:
    spoiled = bytearray(content)
    central = content.rindex(b"PK\x01\x02")
    if kind == "cut off":
        return content[: len(content) // 2]
    if kind == "encrypted":
        spoiled[6] |= 1
        spoiled[central + 8] |= 1
    elif kind == "unusual":
        spoiled[8] = spoiled[central + 10] = 9  # Deflate64
    else:
        spoiled[200:260] = bytes(60)
    return bytes(spoiled)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("cut off", "cut off"), ("encrypted", "encrypted"), ("unusual", "in an unusual way"), ("damaged", "damaged")],
)
def test_an_archive_that_cannot_be_read_is_one_line_and_the_other_files_are_imported(
    kind: str, said: str, coco: Any
) -> None:
    with zipfile.ZipFile("good.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations/person_keypoints_default.json", json.dumps(coco))
    Path("bad.zip").write_bytes(spoil(Path("good.zip").read_bytes(), kind))

    alone = call("import", "bad.zip", "--into", "dataset", fails=True)
    assert said in alone.stderr
    assert alone.stderr.count("\n") == 1
    assert not Path("dataset").exists()
    together = call("import", "bad.zip", "good.zip", "--into", "dataset", "--unchanged", "accept", fails=True)
    assert together.exit_code == 3
    assert "10 added" in together.stdout
    assert "problem: bad.zip" in together.stdout


@pytest.mark.parametrize(("content", "said"), [
    (b"\x1f\x8b\x08rest", "packed with gzip"), (b"7z\xbc\xaf\x27\x1c", "packed with 7-Zip"),
    (APPLE_DOUBLE + b"\0" * 20, "macOS keeps beside a file"), (b"\xff\xd8\xff\xe0", "not readable as JSON"),
    (b"{", "not readable as JSON"), (b'{"images": []}', "a COCO file needs the lists"),
    (b'[{"image": "x.jpg", "id": 3}]', "JSON-MIN"),
    (b'{"images": [], "annotations": [], "categories": [{"name": "car"}]}', "one category with keypoints"),
])  # fmt: skip
def test_a_file_of_another_kind_is_one_line(content: bytes, said: str, inbox: Path) -> None:
    Path("came.json").write_bytes(content)
    result = call("import", "came.json", "--into", "dataset", fails=True)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("dataset").exists()


def test_an_import_that_stores_nothing_is_not_well_done(coco: Any) -> None:
    Path("came.json").write_text(json.dumps(coco))
    said = call("import", "came.json", "--into", "dataset", fails=True)  # nothing was corrected: nobody has looked
    assert f"nothing was put into dataset: {BUDGET} poses not looked at" in said.stderr
    coco["annotations"] = []
    assert f"{BUDGET} problems" in refused(coco)


def test_joints_of_another_skeleton_are_refused(coco: Any) -> None:
    coco["categories"][0]["keypoints"][13] = "hat"
    assert "missing: head_top; unknown: hat" in refused(coco)


def test_of_several_categories_with_joints_the_persons_is_read(coco: Any) -> None:
    hand = {"id": 7, "name": "hand", "keypoints": ["wrist", "tip"], "skeleton": []}
    coco["categories"].insert(0, hand)
    coco["annotations"] += [
        {**one, "id": 50 + one["id"], "category_id": 7, "keypoints": [1, 2, 2, 3, 4, 2]} for one in coco["annotations"]
    ]
    done = imported(coco)
    assert (done["accepted"], done["notes"]) == (BUDGET, [f"came.json: {BUDGET} annotations of other categories"])
    np.testing.assert_equal(len(stored()["annotations"]), BUDGET)
