"""YOLO-pose folders as several tools write them, and odd ones."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import COCO, LSP
from alpose.trainer.data.catalog import open_dataset
from alpose.trainer.data.images import image_size
from alpose.trainer.data.verify import verify
from alpose.trainer.data.yolo import description, label_line, parse_labels, read_yolo

from .folders import JOINTS, write_images, write_yolo

LINE = "0 0.5 0.5 0.5 0.5 0.5 0.5 2 0.25 0.75 1 0 0 0"


def test_joints_boxes_and_several_people_of_a_picture(tmp_path: Path) -> None:
    data = read_yolo(write_yolo(tmp_path / "one"))

    assert data.skeleton.joints == JOINTS
    assert data.skeleton.flip_pairs == ((1, 2),)
    assert data.ids == ("one/images/train/a#1", "one/images/train/more/b#1", "one/images/train/more/b#2")
    assert data.image_N.tolist() == [0, 1, 1]
    # Shares of 40 x 30, 0 at the edge: the first pixel's centre is at half a pixel.
    assert data.joints_NJ2[0].tolist() == [[19.5, 14.5], [9.5, 22.0], [0.0, 0.0]]
    assert data.labelled_NJ[0].tolist() == [True, True, False]
    assert data.visible_NJ[0].tolist() == [True, False, False]
    assert data.boxes_N4[0].tolist() == [9.5, 7.0, 29.5, 22.0]


@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "list"])
def test_train_and_val_are_used_as_such_in_every_layout(layout: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    places = {
        "ultralytics": ("images/train", "images/val", "images/train", "images/val"),
        "roboflow": ("train/images", "valid/images", "../train/images", "../valid/images"),
        "list": ("images/train", "images/val", "train.txt", "val.txt"),
    }[layout]
    for number, (folder, _) in enumerate(zip(places[:2], places[2:], strict=True)):
        write_images(root / folder, f"{number}.jpg", height=30, width=40)
        labels = root / folder.replace("images", "labels")
        labels.mkdir(parents=True)
        (labels / f"{number}.txt").write_text(LINE)
    if layout == "list":
        (root / "train.txt").write_text("./images/train/0.jpg\n")
        (root / "val.txt").write_text("./images/val/1.jpg\n")
    (root / "data.yaml").write_text(f"train: {places[2]}\nval: {places[3]}\nkpt_shape: [3, 3]\nnames: ['person']\n")

    dataset = open_dataset(str(root))
    assert [id_.rpartition("/")[2] for id_ in dataset.train.ids] == ["0#1"]
    assert [id_.rpartition("/")[2] for id_ in dataset.test.ids] == ["1#1"]
    assert dataset.test.skeleton.joints == ("joint_0", "joint_1", "joint_2")
    assert verify(root).ok


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5 0.5 0.5", "is a box without joints"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2", "has 9 values, expected 14. It may be an outline"),
        ("0 0.5 0.5 0.5", "has 4 values, expected 14"),
        (LINE + " 0.5 0.5 2", "has 17 values, expected 14"),
        (LINE.replace("0.25", "left"), "is not made of numbers"),
        (LINE.replace("0.25", "nan"), "not shares of the picture's sides"),
        ("0 0.5 0.5 0.5 0.5 320 240 2 250 0.75 1 0 0 0", "not shares of the picture's sides"),
        (LINE.replace(" 1 ", " 7 "), "visibility is none of 0, 1, 2"),
        ("0.5" + LINE[1:], "begins with the class 0.5"),
        (LINE.replace("0.5 0.5 0.5 0.5", "0.5 0.5 0 0.5", 1), "has a box of 0 x 0.5"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_the_rest_is_read(
    line: str, problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_yolo(tmp_path / "one")
    path = root / "labels" / "train" / "a.txt"
    path.write_bytes(f"\ufeff{line}\r\n\r\n{LINE}\r\n".encode())  # a byte-order mark, and Windows' line ends
    data = read_yolo(root)

    assert data.ids[0] == "one/images/train/a#3"
    assert len(data) == 3
    assert "1 damaged lines" in caplog.text
    (said,) = [record.getMessage() for record in caplog.records if "line 1" in record.getMessage()]
    assert str(path) in said
    assert problem in said


def test_pictures_without_label_files_are_named_and_empty_ones_say_that_nobody_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_yolo(tmp_path / "one")
    write_images(root / "images" / "train", "forgotten.jpg", "empty.jpg", height=30, width=40)
    (root / "labels" / "train" / "empty.txt").write_text("\n")
    data = read_yolo(root)

    assert len(data) == 3
    assert "no label file, taken for pictures of nobody: images/train/forgotten.jpg" in caplog.text
    assert "empty" not in caplog.text


def test_other_classes_people_without_joints_and_doubles_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_yolo(tmp_path / "one")
    (root / "data.yaml").write_text((root / "data.yaml").read_text().replace("  0: person", "  0: person\n  1: dog"))
    bare = "0 0.5 0.5 0.5 0.5 0 0 0 0 0 2 0 0 0"
    (root / "labels" / "train" / "a.txt").write_text("\n".join([LINE, LINE, "1" + LINE[1:], bare]))
    assert len(read_yolo(root)) == 3
    for said in ("1 people of other classes", "1 people who are there twice", "1 people without labelled joints"):
        assert said in caplog.text


def test_one_joint_far_outside_of_its_picture_is_not_labelled_and_listed_and_the_person_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_yolo(tmp_path / "one")
    far = [
        "0 0.5 0.5 0.5 0.5 0.5 0.5 2 0.25 0.75 1 1.6 0.5 2",
        LINE.replace("0.25", "250"),
        LINE.replace("0.25", "1.4"),
    ]
    (root / "labels" / "train" / "a.txt").write_text("\n".join(far))
    data = read_yolo(root)
    assert data.labelled_NJ[:3].tolist() == [[True, True, False], [True, False, False], [True, True, False]]
    assert "one/images/train/a#1: right_hand at 63.5, 14.5 lies far outside of the picture of 40 x 30" in caplog.text
    assert "one/images/train/a#2: left_hand" in caplog.text
    assert "#3" not in caplog.text


def test_joints_may_come_without_visibility(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "one")
    (root / "data.yaml").write_text("train: images/train\nkpt_shape: [3, 2]\n")
    shutil.rmtree(root / "labels" / "train" / "more")
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5 0.5 0.5 0.25 0.75 0 0")
    data = read_yolo(root)
    assert data.visible_NJ.tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("yaml", "match"),
    [
        ("kpt_shape: [3]", r"data\.yaml needs kpt_shape: \[joints, 2 or 3\]"),
        ("kpt_shape: [3, 3]\nflip_idx: [1, 2, 0]", "flip_idx must swap pairs of 3 joints"),
        ("kpt_shape: [3, 3]\nkpt_names: {0: [a, b]}", "kpt_names must name 3 joints"),
        ("kpt_shape: [3, 3]\n\tnames", "is not readable as YAML"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(yaml: str, match: str, tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "one")
    (root / "data.yaml").write_text(f"train: images/train\n{yaml}\n")
    with pytest.raises(DataError, match=match):
        read_yolo(root)


def test_seventeen_joints_with_coco_s_mirror_are_coco_s(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "one")
    (root / "data.yaml").write_text(f"train: images/train\nkpt_shape: [17, 3]\nflip_idx: {list(COCO.flip_order())}\n")
    shutil.rmtree(root / "labels" / "train" / "more")
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.5 0.5" + " 0.5 0.5 2" * 17)
    assert read_yolo(root).skeleton is COCO


def test_what_we_write_we_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points_J2, v_J = rng.uniform(0, [639, 479], (14, 2)), rng.integers(0, 3, 14)
    (one,), problems = parse_labels(
        (label_line(points_J2, v_J, (10.0, 20.0, 300.5, 400.0), (640, 480)) + "\n").encode(), "x"
    )
    assert not problems
    assert one.visibility_J.tolist() == v_J.tolist()
    assert np.abs(one.points_J2 * (640, 480) - 0.5 - points_J2)[v_J > 0].max() < 1e-3
    assert (one.box_4 * (640, 480, 640, 480) - 0.5).tolist() == pytest.approx([10, 20, 300.5, 400], abs=1e-3)

    write_images(tmp_path / "images", "a.jpg", height=480, width=640)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(label_line(points_J2, v_J, (10, 20, 300, 400), (640, 480)))
    (tmp_path / "data.yaml").write_text(description(LSP, {"train": "images"}))
    data = read_yolo(tmp_path)
    assert data.skeleton.joints == LSP.joints
    assert set(data.skeleton.flip_pairs) == set(LSP.flip_pairs)
    assert np.abs(data.joints_NJ2[0] - points_J2)[v_J > 0].max() < 1e-3


def exif(jpeg: bytes, orientation: int) -> bytes:
    """The same picture, said to be turned."""
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp", ".bmp", "progressive", "turned"])
def test_the_size_of_a_picture_is_that_of_its_pixels_upright(kind: str, tmp_path: Path) -> None:
    suffix = kind if kind.startswith(".") else ".jpg"
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1] if kind == "progressive" else []
    _, encoded = cv2.imencode(suffix, np.zeros((30, 47, 3), np.uint8), options)
    content: Any = encoded.tobytes()
    if kind == "turned":
        content = exif(content, 6)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    decoded: Any = cv2.imread(str(path))
    height, width = decoded.shape[:2]
    assert image_size(path) == (width, height) == ((30, 47) if kind == "turned" else (47, 30))
    path.write_bytes(b"nothing")
    assert image_size(path) is None
    assert image_size(tmp_path / "absent.jpg") is None


def test_the_log_names_the_first_and_counts_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_yolo(tmp_path / "one")
    (root / "labels" / "train" / "a.txt").write_text("\n".join(["0 1 2"] * 50))
    with caplog.at_level(logging.WARNING):
        assert len(read_yolo(root)) == 2
    assert "damaged: and 30 more" in caplog.text
    assert "50 damaged lines" in caplog.text
