from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.skeleton import COCO, LSP
from alpose.tools.formats.coco import category
from alpose.trainer.data.catalog import open_dataset, read_parts
from alpose.trainer.data.coco import annotation_files, groups, read_coco, skeleton_of
from alpose.trainer.data.images import ImageError
from alpose.trainer.data.verify import decode_all, verify

from .folders import JOINTS, coco_document, coco_person, write_coco, write_images


def test_folder_with_its_own_skeleton(tmp_path: Path) -> None:
    data = read_coco(write_coco(tmp_path / "cranes", coco_document()))
    assert data.name == "cranes"
    assert data.ids == ("cranes/a#1", "cranes/more/b#2", "cranes/a#3")
    assert data.image_N.tolist() == [0, 1, 0], "people of one image share it"
    assert len(data.images) == 2
    assert data.skeleton.joints == JOINTS
    assert data.skeleton.links == ((0, 1), (0, 2))
    assert data.skeleton.flip_order() == (0, 2, 1)
    assert data.labelled_NJ[0].tolist() == [True, True, False]
    assert data.visible_NJ[0].tolist() == [True, False, False]
    np.testing.assert_allclose(data.boxes_N4[0], (1, 2, 11, 22))
    np.testing.assert_allclose(data.joints_NJ2[0, 1], (7, 8))


def test_what_is_left_out_is_counted_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    people = [
        coco_person(1, 7),
        coco_person(2, 7, iscrowd=1),
        coco_person(3, 7, keypoints=[4, 5, 0] * 3),
        coco_person(4, 7, keypoints=[0] * 9, num_keypoints=None),
        coco_person(5, 7, category_id=1),
        coco_person(6, 7, bbox=None),
    ]
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_coco(write_coco(tmp_path, coco_document(annotations=people)))
    assert [id_.rpartition("#")[2] for id_ in data.ids] == ["1", "6"]
    assert "1 annotations of other categories, 1 crowds, 2 people without labelled joints" in caplog.text
    assert "1 people without a box" in caplog.text
    np.testing.assert_allclose(data.boxes_N4[1], (5, 6, 7, 8))


def test_names_of_a_built_in_skeleton_give_that_skeleton(tmp_path: Path) -> None:
    for known in (COCO, LSP):
        assert skeleton_of({"id": 1, "name": "person", "keypoints": list(known.joints)}, tmp_path) is known


def test_the_group_of_an_image_is_a_field_of_it_or_one_level_deeper(tmp_path: Path) -> None:
    value = coco_document()
    value["images"][0]["driver"], value["images"][1]["extra"] = 7, {"driver": "anna"}
    found = groups(write_coco(tmp_path / "cranes", value), None, "driver")
    assert found == {"cranes/a#1": "7", "cranes/more/b#2": "anna", "cranes/a#3": "7"}
    with pytest.raises(DataError, match=r"the image a\.jpg has no field 'clip'"):
        groups(tmp_path / "cranes", None, "clip")


@pytest.mark.parametrize("stated", [[["a", "c"]], [[1, 3]]])
def test_a_category_may_state_its_mirror_pairs(stated: Any) -> None:
    made = skeleton_of({"id": 1, "name": "face", "keypoints": ["a", "b", "c"], "flip_pairs": stated}, Path("x"))
    assert made.flip_pairs == ((0, 2),)
    assert skeleton_of(category(made), Path("x")).flip_pairs == made.flip_pairs, "what we write we read"
    assert "flip_pairs" not in category(COCO)
    with pytest.raises(DataError, match="no joint 'd'"):
        skeleton_of({"id": 1, "name": "face", "keypoints": ["a", "b", "c"], "flip_pairs": [["a", "d"]]}, Path("x"))


def test_half_a_character_in_a_name_is_refused_and_labels_may_be_in_utf_16(tmp_path: Path) -> None:
    document = coco_document()
    root = write_coco(tmp_path / "a", document)
    labels = root / "annotations" / "mine.json"
    for encoding in ("utf-8-sig", "utf-16"):
        labels.write_bytes(json.dumps(document).encode(encoding))
        assert len(read_coco(root)) == 3
    document["info"] = {"contributor": "Jürgen"}
    labels.write_bytes(json.dumps(document, ensure_ascii=False).encode("latin-1"))
    assert len(read_coco(root)) == 3
    document["images"][0]["file_name"] = "a\ud800.jpg"
    labels.write_text(json.dumps(document))
    broken: list[str] = []
    assert len(read_coco(root, broken=broken)) == 1
    assert "half a character" in broken[0]


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/hostname", "more/../../x.jpg", "..\\x.jpg", "C:x.jpg", ""])
def test_file_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    value = coco_document(images=[{"id": 7, "file_name": name}, {"id": 8, "file_name": "more/b.jpg"}])
    broken: list[str] = []
    data = read_coco(write_coco(tmp_path, value), broken=broken)
    assert [id_.rpartition("#")[2] for id_ in data.ids] == ["2"]  # whoever is on the other image is read
    assert "leaves the folder" in broken[0]
    value["images"].pop()
    with pytest.raises(DataError, match="leaves the folder"):
        read_coco(write_coco(tmp_path, value))


def test_names_are_found_in_letters_of_the_other_case(tmp_path: Path) -> None:
    document = coco_document()
    document["images"][0]["file_name"] = "A.JPG"
    root = write_coco(tmp_path, document)
    (root / "images" / "more" / "b.jpg").rename(root / "images" / "more" / "B.Jpg")
    assert [path.name for path in read_coco(root).images.paths] == ["a.jpg", "B.Jpg"]  # type: ignore[attr-defined]
    (root / "images" / "A.jpg").write_bytes(b"another")  # which of two is meant cannot be told
    assert read_coco(root).images.paths[0].name == "A.JPG"  # type: ignore[attr-defined]


def test_names_beyond_ascii_are_found_in_a_process_whose_locale_is_c(tmp_path: Path) -> None:
    document = coco_document()
    document["images"][0]["file_name"] = "Jürgen é 1.jpg"
    root = write_coco(tmp_path, document)
    (root / "images" / "a.jpg").rename(root / "images" / "Jürgen é 1.jpg")
    code = (
        "import sys; from pathlib import Path; from alpose.trainer.data.coco import read_coco; "
        "data = read_coco(Path(sys.argv[1])); print(sys.getfilesystemencoding(), data.image(0).shape, len(data))"
    )
    there = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.run([sys.executable, "-c", code, root], env=there, check=True, capture_output=True, text=True)
    assert said.stdout.split(maxsplit=1)[1] == "(30, 40, 3) 3\n"


def test_people_of_one_image_may_share_an_annotation_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    people = [coco_person(0, 7), coco_person(0, 7, keypoints=[9, 9, 2] * 3), coco_person(0, 8), coco_person(0, 7)]
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_coco(write_coco(tmp_path / "set", coco_document(annotations=people)))
    assert data.ids == ("set/a#0", "set/a#0-row-1", "set/more/b#0")
    assert "1 annotation ids that others" in caplog.text
    assert "1 people that are there twice" in caplog.text


def test_a_box_that_holds_none_of_the_joints_is_that_of_the_joints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    people = [coco_person(1, 7, bbox=[500, 500, 90, 90]), coco_person(2, 8)]
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_coco(write_coco(tmp_path, coco_document(annotations=people)))
    labelled_M2 = data.joints_NJ2[0][data.labelled_NJ[0]]
    np.testing.assert_array_equal(data.boxes_N4[0], [*labelled_M2.min(axis=0), *labelled_M2.max(axis=0)])
    assert "1 boxes that hold none of their joints" in caplog.text


def test_links_of_another_skeleton_are_left_out_and_a_category_needs_no_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = coco_document()
    del document["categories"][1]["name"]
    document["categories"][1]["skeleton"] = [[1, 2], [1, 17], [2, 2]]
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_coco(write_coco(tmp_path, document))
    assert (data.skeleton.name, data.skeleton.links) == ("person", ((0, 1),))
    assert "2 of 3 links" in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_place_of_a_picture_is_named_and_not_waited_for(tmp_path: Path) -> None:
    root = write_coco(tmp_path, coco_document())
    (root / "images" / "a.jpg").unlink()
    os.mkfifo(root / "images" / "a.jpg")
    data = read_coco(root)
    with pytest.raises(ImageError, match="is not a file"):
        data.image(0)
    assert data.images.describe(0) == "missing:a.jpg"
    _, _, broken = decode_all(data.images, "decoding")  # type: ignore[arg-type]
    assert broken == (f"{root / 'images' / 'a.jpg'}: is not a file",)


def test_official_layout_with_splits(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document(), "person_keypoints_train2017", "train2017")
    write_coco(tmp_path, coco_document(annotations=[coco_person(9, 7)]), "person_keypoints_val2017", "images/val2017")
    write_coco(tmp_path, {}, "captions_val2017", "val2017")
    assert len(read_coco(tmp_path, "train2017")) == 3
    assert len(read_coco(tmp_path, "val")) == 1
    assert read_coco(tmp_path, "val").image(0).shape == (30, 40, 3)
    assert [path.name for path in annotation_files(tmp_path)] == [
        "person_keypoints_train2017.json",
        "person_keypoints_val2017.json",
    ]
    with pytest.raises(DataError, match="several annotation files"):
        read_coco(tmp_path)
    with pytest.raises(DataNotFoundError, match="no annotation file for split 'test'"):
        read_coco(tmp_path, "test")
    assert len(read_coco(tmp_path / "annotations" / "person_keypoints_val2017.json")) == 1


@pytest.mark.parametrize("other", [
    {"images": [], "annotations": [{"id": 1, "caption": "two cranes"}]},
    coco_document(categories=[{"id": 1, "name": "car"}], annotations=[{"id": 1, "image_id": 7, "bbox": [1, 2, 3, 4]}]),
    [{"data": {"image": "a.jpg"}}], "a note", None,
])  # fmt: skip
def test_json_files_without_keypoints_beside_labels_are_passed_over_by_name(
    other: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_coco(tmp_path, coco_document())
    path = root / "annotations" / "captions.json"
    path.write_text(json.dumps(other))
    with caplog.at_level(logging.WARNING, "alpose"):
        assert [len(data) for data in read_parts(root)] == [3]
        assert len(read_coco(root)) == 3
    assert caplog.text.count(f"{path} is passed over: it holds no people with keypoints") == 1
    assert verify(root).ok


def test_a_damaged_file_beside_labels_is_no_file_without_keypoints(tmp_path: Path) -> None:
    root = write_coco(tmp_path, coco_document())
    (root / "annotations" / "second.json").write_text(json.dumps(coco_document())[:99])
    with pytest.raises(DataError, match=r"second\.json"):
        read_parts(root)


def test_one_joint_far_outside_of_its_picture_is_not_labelled_and_listed_and_the_person_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    people = [
        coco_person(1, 7, keypoints=[5, 6, 2, 7, 8, 1, 30, 400, 2]),
        coco_person(
            2, 7, keypoints=[5, 6, 2, 7, 8, 1, 59, -20, 1]
        ),  # half of the longer side of 40 x 30 beyond the edge
        coco_person(3, 8, keypoints=[500, 6, 2, 700, 8, 1, 1, 1, 2]),
    ]
    document = coco_document(annotations=people)
    del document["images"][1]["width"]  # what the file does not say, the picture does
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_coco(write_coco(tmp_path / "cranes", document))
    assert data.labelled_NJ.tolist() == [[True, True, False], [True] * 3]
    assert not (data.visible_NJ & ~data.labelled_NJ).any()
    assert "cranes/a#1: right_hand at 30, 400 lies far outside of the picture of 40 x 30" in caplog.text
    assert "cranes/more/b#3: most joints lie far outside" in caplog.text


def test_no_image_at_all_is_an_error(tmp_path: Path) -> None:
    root = write_coco(tmp_path, coco_document())
    (root / "images" / "a.jpg").unlink()
    (root / "images" / "more" / "b.jpg").unlink()
    with pytest.raises(DataNotFoundError, match="no image is there"):
        read_coco(root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [coco_person(1, 99)]}, "annotation 1 needs an id, and an image_id"),
        ({"annotations": [coco_person(1, 7, keypoints=[1, 2, 2])]}, "keypoints must be 3 times"),
        ({"annotations": [coco_person(1, 7, keypoints=[1, 2, 3] * 3)]}, "v 0, 1 or 2"),
        ({"annotations": [coco_person(1, 7, keypoints=[None, 2, 2] * 3)]}, "annotation 1: keypoints"),
        ({"annotations": [coco_person(1, 7, bbox=[1, 2, -3, 4])]}, "sides of 0 or more"),
        ({"annotations": [coco_person(1, 7, bbox=[1, 2, 3])]}, "bbox must be x, y, width, height"),
        ({"annotations": [coco_person(1, 7, bbox=[0, 0, 1e300, 4])]}, "bbox must lie within"),
        (
            {"annotations": [coco_person(1, 7, keypoints=[0.5, 0.25, 2, 0.5, 0.75, 2, 1, 0, 1])]},
            "shares of the picture",
        ),
        ({"images": [{"id": 7, "file_name": f"{name}.jpg"} for name in "ab"]}, "given twice"),
        ({"images": [{"file_name": "a.jpg"}]}, r"images\[0\] needs id"),
        ({"categories": []}, "expected one category with keypoints, found 0"),
        ({"categories": [{"id": 2, "name": "x", "keypoints": ["a", "a"]}]}, "not a skeleton"),
        ({"annotations": None}, "not in COCO form"),
    ],
)
def test_damage_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_coco(write_coco(tmp_path, coco_document(**changes)))


def test_joints_decide_and_a_box_of_no_size_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    people = [
        coco_person(1, 7, num_keypoints=0), coco_person(2, 7, num_keypoints=5), coco_person(3, 7, bbox=[5, 5, 0, 0]),
        coco_person(4, 7, bbox=[]), coco_person(5, 7, num_keypoints=None),
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_coco(write_coco(tmp_path, coco_document(annotations=people)))
    assert len(data) == 5
    assert "num_keypoints of 2 people contradicts their joints" in caplog.text
    assert "2 people without a box" in caplog.text
    np.testing.assert_allclose(data.boxes_N4[2:4], [(5, 6, 7, 8)] * 2)


def test_fiftyones_layout(tmp_path: Path) -> None:
    root = tmp_path / "fo"
    write_images(root / "data", "a.jpg", "more/b.jpg", height=30, width=40)
    document = coco_document()
    (root / "labels.json").write_text(json.dumps(document))
    (data,) = read_parts(root)
    assert len(data) == 3
    assert data.image(0).shape == (30, 40, 3)
    del document["categories"][1]["keypoints"]
    (root / "labels.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"Give its joint names as categories\[0\].keypoints"):
        read_parts(root)


def test_roboflows_layout(tmp_path: Path) -> None:
    root = tmp_path / "rf"
    for part, count in (("train", 3), ("valid", 1)):
        (root / part).mkdir(parents=True)
        value = coco_document(annotations=[coco_person(n, 7) for n in range(count)])
        (root / part / "_annotations.coco.json").write_text(json.dumps(value))
        write_images(root / part, "a.jpg", height=30, width=40)
    assert [len(data) for data in read_parts(root)] == [3, 1]
    dataset = open_dataset(str(root))
    assert (len(dataset.train), len(dataset.test)) == (3, 1)
    assert dataset.train.ids[0] == "rf/train/a#0"
    assert len(read_parts(root / "train")[0]) == 3
    assert verify(root).ok


@pytest.mark.parametrize(("turn", "stated", "first"), [
    (6, (30, 40), "turned"), (6, (40, 30), "stored"), (6, None, "turned"), (3, (40, 30), "turned"), (1, (40, 30), "stored"),
])  # fmt: skip
def test_a_picture_that_exif_turns_is_read_as_its_labels_say(
    tmp_path: Path, turn: int, stated: tuple[int, int] | None, first: str
) -> None:
    stored_HW3 = np.zeros((30, 40, 3), dtype=np.uint8)
    stored_HW3[:8, :8] = 255
    value = coco_document(annotations=[coco_person(1, 7)])
    value["images"] = [
        {"id": 7, "file_name": "a.png"} | (dict(zip(("width", "height"), stated, strict=True)) if stated else {})
    ]
    root = write_coco(tmp_path, value)
    write_turned(root / "images" / "a.png", stored_HW3, turn)
    image_HW3 = read_coco(root).image(0)
    upright_HW3 = {6: np.rot90(stored_HW3, -1), 3: np.rot90(stored_HW3, 2), 1: stored_HW3}[turn]
    np.testing.assert_array_equal(image_HW3, upright_HW3 if first == "turned" else stored_HW3)


def write_turned(path: Path, image_HW3: Any, turn: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x112] = turn
    PIL.Image.fromarray(image_HW3).save(path, exif=exif)


@pytest.mark.real_data
def test_real_coco_agrees_with_pycocotools(real_folder: Callable[[str], Path]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    root = real_folder("coco-mini")
    data = read_coco(root)
    reference = coco.COCO(str(root / "annotations" / "person_keypoints.json"))
    wanted = {a["id"]: a for a in reference.loadAnns(reference.getAnnIds(iscrowd=False)) if a["num_keypoints"]}
    assert {int(id_.rpartition("#")[2]) for id_ in data.ids} == set(wanted)
    assert len(data) == 12
    assert data.skeleton is COCO
    (category,) = reference.loadCats(reference.getCatIds())
    assert tuple((a - 1, b - 1) for a, b in category["skeleton"]) == COCO.links
    for row, id_ in enumerate(data.ids):
        annotation = wanted[int(id_.rpartition("#")[2])]
        keypoints_J3 = np.reshape(annotation["keypoints"], (17, 3))
        np.testing.assert_array_equal(data.joints_NJ2[row], keypoints_J3[:, :2])
        assert int(data.labelled_NJ[row].sum()) == annotation["num_keypoints"]
        np.testing.assert_array_equal(data.visible_NJ[row], keypoints_J3[:, 2] == 2)
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose(data.boxes_N4[row], (x, y, x + width, y + height), rtol=1e-5)
        image = reference.loadImgs(annotation["image_id"])[0]
        assert data.images.paths[int(data.image_N[row])].name == image["file_name"]  # type: ignore[attr-defined]
        assert data.image(row).shape[:2] == (image["height"], image["width"])


def test_the_files_that_macos_lays_beside_others_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("labels.json", "._labels.json"):
        (tmp_path / "annotations" / name).write_bytes(b"\x00\x05\x16\x07")
    assert annotation_files(tmp_path) == (tmp_path / "annotations" / "labels.json",)


def everybody(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def changed(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            change(annotation)

    return changed


def images(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def changed(document: dict[str, Any]) -> None:
        for image in document["images"]:
            change(image)

    return changed


@pytest.mark.parametrize(
    "change",
    [
        everybody(lambda a: a.update(num_keypoints=0)),
        everybody(lambda a: a.update(bbox=[0, 0, 0, 0])),
        everybody(lambda a: a.update(bbox=[])),
        everybody(lambda a: a.update(category_id="2")),
        everybody(lambda a: a.update(iscrowd="0")),
        everybody(lambda a: a.update(keypoints=[str(value) for value in a["keypoints"]])),
        everybody(lambda a: a.update(keypoints=[float(value) for value in a["keypoints"]])),
        everybody(lambda a: a.pop("id")),
        everybody(lambda a: a.update(segmentation={"counts": "abc"}, area=None)),
        images(lambda i: i.update(id=str(i["id"]))),
        images(lambda i: i.update(width="40")),
        images(lambda i: i.update(file_name="https://bucket.example.org/p/a.jpg?sig=a")),
        images(lambda i: i.update(file_name="/data/local-files/?d=images/a.jpg")),
        images(lambda i: i.update(file_name=i["file_name"].replace("/", "\\"))),
        images(lambda i: i.update(file_name=i["file_name"].replace(".", "%2E"))),
        lambda d: d["annotations"].append(dict(d["annotations"][0])),
        lambda d: (
            d["categories"].append({"id": 9, "name": "dog", "keypoints": ["tail"]})
            or d["categories"][1].update(name="person")
        ),
    ],
)
def test_files_of_other_tools_are_read(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = coco_document()
    change(document)
    assert len(read_coco(write_coco(tmp_path, document))) == 3


@pytest.mark.parametrize("value", [None, float("nan"), 1e300, "x"])
def test_one_damaged_person_is_named_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    document = coco_document()
    document["annotations"][1]["keypoints"][:3] = [value, 1, 2]
    document["annotations"][2]["keypoints"][:3] = [None, float("nan"), 0]
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_coco(write_coco(tmp_path, document))
    assert len(data) == 2
    assert not data.labelled_NJ[1, 0]
    assert "annotation 2: keypoints" in caplog.text
    report = verify(tmp_path)
    assert not report.ok
    assert "annotation 2: keypoints" in report.parts[0].broken[0]
    assert "1 damaged images or annotations" in caplog.text


def test_a_joint_at_the_corner_is_one_that_nobody_has_placed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    document = coco_document()
    document["annotations"][0]["keypoints"][:3] = [0, 0, 2]
    with caplog.at_level(logging.WARNING, "alpose"):
        data = read_coco(write_coco(tmp_path, document))
    assert not data.labelled_NJ[0, 0]
    assert "1 joints said to be visible at 0, 0" in caplog.text


@pytest.mark.parametrize("links", [[[1, 2], [1, 3]], [[0, 1], [0, 2]], [["a", "b"], ["a", "c"]]])
def test_links_count_from_one_from_zero_or_by_name(links: Any) -> None:
    skeleton = skeleton_of({"id": 1, "name": "x", "keypoints": ["a", "b", "c"], "skeleton": links}, Path("x"))
    assert skeleton.links == ((0, 1), (0, 2))


@pytest.mark.parametrize(("on_disk", "in_file"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_in_either_form_of_unicode(tmp_path: Path, on_disk: Any, in_file: Any) -> None:
    name = "Jürgen é.jpg"
    document = coco_document()
    document["images"][0]["file_name"] = unicodedata.normalize(in_file, name)
    root = write_coco(tmp_path, document)
    (root / "images" / "a.jpg").rename(root / "images" / unicodedata.normalize(on_disk, name))
    assert read_coco(root).image(0).shape == (30, 40, 3)
