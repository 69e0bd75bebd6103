from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import scipy.io

from alpose.runtime.errors import DataNotFoundError
from alpose.trainer.data.images import ImageFiles, orientation
from alpose.trainer.data.verify import decode_all, lsp_label_checks, verify, verify_lsp

Points = npt.NDArray[np.float32]


def write_lsp(root: Path, count: int, axes: tuple[int, int, int] = (2, 1, 0)) -> Path:
    """A little LSP: all visible, on noise that JPEG cannot shrink away."""
    rng = np.random.default_rng(0)
    joints_NJ3 = rng.uniform(5, 55, (count, 14, 3))
    joints_NJ3[..., 2] = 0
    (root / "images").mkdir(parents=True)
    scipy.io.savemat(root / "joints.mat", {"joints": joints_NJ3.transpose(axes)})
    for row in range(1, count + 1):
        noise = rng.integers(0, 255, (60, 60, 3), dtype=np.uint8)
        cv2.imwrite(str(root / "images" / f"im{row:04d}.jpg"), noise)
    return root


def failed(checks: object) -> set[str]:
    return {check.what for check in checks if not check.ok}  # type: ignore[attr-defined]


def test_a_part_of_lsp_fails_on_counts_and_names_what_is_missing(tmp_path: Path) -> None:
    report = verify_lsp("lsp", write_lsp(tmp_path / "lsp", 3))
    assert not report.ok
    assert report.people == 3
    assert report.images == 3
    assert {"people", "joints.mat sha256", "images sha256", "images decoded"} <= failed(report.checks)
    assert len(report.broken) == 1997
    assert report.broken[0].endswith("im0004.jpg: No such file or directory")


def test_other_axes_are_a_failed_check(tmp_path: Path) -> None:
    report = verify_lsp("lsp", write_lsp(tmp_path / "lsp", 2, axes=(1, 2, 0)))
    assert "axes of joints" in failed(report.checks)
    assert next(check.found for check in report.checks if check.what == "axes of joints") == "14,3,N"


def test_labels_that_cannot_be_read_are_a_failed_check(tmp_path: Path) -> None:
    root = write_lsp(tmp_path / "lsp", 2)
    (root / "joints.mat").write_bytes(b"MATLAB 5.0 no more")
    report = verify_lsp("lsp", root)
    assert "joints.mat is readable" in failed(report.checks)
    assert report.images == 2


def lspet_like(count: int) -> tuple[Points, npt.NDArray[np.bool_]]:
    flag_NJ = np.random.default_rng(0).random((count, 14)) < 0.9
    joints_NJ2 = np.full((count, 14, 2), 20, dtype=np.float32)
    joints_NJ2[~flag_NJ] = (-3, 0)
    return joints_NJ2, flag_NJ


def test_flags_that_mean_the_opposite_are_a_failed_check() -> None:
    joints_NJ2, flag_NJ = lspet_like(50)
    contradict = "labels and positions contradict"
    assert contradict not in failed(lsp_label_checks("lspet", joints_NJ2, flag_NJ, "14,3,N"))
    assert contradict in failed(lsp_label_checks("lspet", joints_NJ2, ~flag_NJ, "14,3,N"))
    assert "joints without a position" in failed(lsp_label_checks("lsp", joints_NJ2, flag_NJ, "3,14,N"))


def test_torso_diagonals_are_counted() -> None:
    joints_NJ2 = np.full((3, 14, 2), 20, dtype=np.float32)
    flag_NJ = np.ones((3, 14), dtype=np.bool_)
    flag_NJ[1, [8, 9]] = False  # no shoulder: neither diagonal
    flag_NJ[2, [8, 2]] = False  # right side gone: neither diagonal
    checks = {check.what: check.found for check in lsp_label_checks("lspet", joints_NJ2, flag_NJ, "14,3,N")}
    assert checks["people without a torso diagonal"] == "2"
    assert checks["people with all 14 joints"] == "1"


def test_broken_images_are_named_with_the_reason(tmp_path: Path) -> None:
    image_HW3 = np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8)
    paths = [tmp_path / name for name in ("good.jpg", "cut.jpg", "cut.png", "text.jpg", "empty.jpg", "gone.jpg")]
    cv2.imwrite(str(paths[0]), image_HW3)
    whole = paths[0].read_bytes()
    paths[1].write_bytes(whole[: len(whole) - 200])
    cv2.imwrite(str(paths[2]), image_HW3)
    paths[2].write_bytes(paths[2].read_bytes()[:-100])
    paths[3].write_text("not an image")
    paths[4].touch()
    sizes_M2, _, broken = decode_all(ImageFiles(tuple(paths)), "decoding")
    assert sizes_M2.tolist() == [[80, 50], *[[-1, -1]] * 5]
    reasons = {Path(line.split(": ")[0]).name: line.split(": ", 1)[1] for line in broken}
    assert set(reasons) == {path.name for path in paths[1:]}
    assert "JPEG is cut off" in reasons["cut.jpg"]
    assert "PNG is cut off" in reasons["cut.png"]
    assert "cannot be decoded" in reasons["text.jpg"]
    assert "(0 bytes)" in reasons["empty.jpg"]
    assert "No such file" in reasons["gone.jpg"]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("tail", [b"", bytes(4096), b"tool metadata " * 20, b"\0\0\0\x18ftypmp42\xff\xda\xff\xda film"])
def test_what_lies_behind_the_end_of_a_picture_is_no_matter(tmp_path: Path, suffix: str, tail: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes() + tail)
    assert decode_all(ImageFiles((path,)), "decoding")[2] == ()


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_a_jpeg_that_lost_its_end_is_cut_off(tmp_path: Path, progressive: bool, kept: float) -> None:
    path = tmp_path / "a.jpg"
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8), options)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))] + bytes(500))
    assert "JPEG is cut off" in decode_all(ImageFiles((path,)), "decoding")[2][0]


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_the_turn_of_a_jpeg_is_read(order: str, turn: int) -> None:
    sign = "<" if order == "II" else ">"
    tiff = order.encode() + struct.pack(f"{sign}HIH", 42, 8, 1) + struct.pack(f"{sign}HHIHH", 0x112, 3, 1, turn, 0)
    assert orientation(b"\xff\xd8\xff\xe1\0\x40Exif\0\0" + tiff) == turn
    assert orientation(b"\xff\xd8\xff\xe1\0\x40Exif\0\0" + tiff[:12]) == 1


def write_coco(root: Path, width: int = 40) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(root / "images" / f"{name}.jpg"), np.zeros((30, 40, 3), dtype=np.uint8))
    value = {
        "images": [{"id": i, "file_name": f"{n}.jpg", "width": width, "height": 30} for i, n in enumerate("ab")],
        "categories": [{"id": 1, "name": "x", "keypoints": ["tip", "tail"]}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 9, 9], "keypoints": [5, 5, 2, 55, 5, 1]}
            for i in range(2)
        ],
    }
    (root / "annotations" / "mine.json").write_text(json.dumps(value))
    return root


def test_own_folder(tmp_path: Path) -> None:
    report = verify(write_coco(tmp_path))
    assert report.ok, report.lines()
    facts = dict(report.parts[0].facts)
    assert facts["joints labelled"] == "4 of 4"
    assert facts["labelled joints said to be occluded"] == "2"
    assert facts["labelled joints outside their image"] == "2"
    assert "training will mirror nothing" in facts["mirror pairs"]
    assert dict(verify(tmp_path, flip_pairs="tip:tail").parts[0].facts)["mirror pairs"] == "tip/tail"


def test_own_folder_with_resized_images(tmp_path: Path) -> None:
    report = verify(write_coco(tmp_path, width=80))
    assert failed(report.parts[0].checks) == {"images of another size than the labels say"}


def test_own_folder_with_a_broken_image_and_broken_labels(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    (root / "images" / "b.jpg").write_bytes(b"")
    report = verify(root)
    assert not report.ok
    assert [Path(line.split(": ")[0]).name for line in report.parts[0].broken] == ["b.jpg"]
    assert "FAILED" in report.summary
    (root / "annotations" / "mine.json").write_text("[]")
    report = verify(root)
    assert failed(report.parts[0].checks) == {"labels are readable"}


def test_the_table_names_some_and_json_all(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_lsp(root / "lsp", 2)
    (root / "lspet" / "images").mkdir(parents=True)
    report = verify("lsp", root)
    assert [part.dataset for part in report.parts] == ["lsp", "lspet"]
    text = "\n".join(report.lines())
    assert "and 1,978 more" in text
    assert "joints.mat is readable" in text
    value = json.loads(json.dumps(report.to_json()))
    assert not value["ok"]
    assert len(value["parts"][0]["broken"]) == 1998


def test_a_dataset_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError):
        verify("lsp", tmp_path)
    with pytest.raises(DataNotFoundError):
        verify(tmp_path)


@pytest.mark.real_data
def test_real_lsp_and_lspet(data_root: Path, real_folder: Callable[[str], Path]) -> None:
    real_folder("lsp")
    real_folder("lspet")
    report = verify("lsp", data_root)
    assert report.ok, report.lines()
    assert report.summary == "lsp: 2,000 + 10,000 images, 2,000 + 10,000 people: ok"


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "people"), [("mpii", 5), ("coco", 12)])
def test_real_parts_of_mpii_and_coco(real_folder: Callable[[str], Path], name: str, people: int) -> None:
    report = verify(name, real_folder(f"{name}-mini"))  # type: ignore[arg-type]
    assert report.ok, report.lines()
    assert report.parts[0].people == people
