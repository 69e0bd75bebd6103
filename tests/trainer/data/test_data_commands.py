from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from alpose.runtime.drawing import LEFT, RIGHT
from alpose.runtime.skeleton import LSP, Skeleton
from alpose.trainer.data.catalog import Sizes
from alpose.trainer.data.commands import data
from alpose.trainer.data.images import ImageFiles
from alpose.trainer.data.info import contact_sheet, describe

from ...fakes.people import made_people


def run(*arguments: str) -> Result:
    return CliRunner().invoke(data, list(arguments))


def write_coco(root: Path, count: int = 3) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    for row in range(count):
        cv2.imwrite(str(root / "images" / f"{row}.jpg"), np.full((60, 80, 3), 90, dtype=np.uint8))
    value = {
        "images": [{"id": row, "file_name": f"{row}.jpg", "width": 80, "height": 60} for row in range(count)],
        "categories": [{"id": 1, "name": "pen", "keypoints": ["left_tip", "right_tip"], "skeleton": [[1, 2]]}],
        "annotations": [
            {
                "id": row,
                "image_id": row,
                "category_id": 1,
                "bbox": [10, 10, 40, 40],
                "keypoints": [20, 20, 2, 40, 40, 1],
            }
            for row in range(count)
        ],
    }
    (root / "annotations" / "pens.json").write_text(json.dumps(value))
    return root


def test_info_of_a_folder(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "pens")
    result = run("info", "--dataset", str(root), "--draw", str(tmp_path / "sheet.png"))
    assert result.exit_code == 0, result.output
    assert "pens: 3 people in 3 images" in result.output
    assert "100.0% labelled, 50.0% of those occluded" in result.output
    sheet_HW3 = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet_HW3 is not None
    assert sheet_HW3.shape == (224, 3 * 224, 3)


def test_info_as_json(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "pens")
    for arguments in (["--dataset", str(root)], ["--dataset", "coco", "--data-root", str(root)]):
        result = run("info", *arguments, "--json")
        assert result.exit_code == 0, result.output
        (value,) = json.loads(result.stdout)
        assert value["people"] == 3
        assert value["occluded"] == [0, 1]
        assert value["box_side"] == [40] * 5


def test_info_of_the_synthetic_people_shows_both_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpose.trainer.data.catalog.Sizes", lambda: Sizes(initial=6))
    result = run("info", "--dataset", "synthetic", "--draw", str(tmp_path / "sheet.png"), "--json")
    assert result.exit_code == 0, result.output
    assert [value["people"] for value in json.loads(result.stdout)] == [6, 6]
    sheet_HW3 = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet_HW3 is not None
    assert sheet_HW3.shape == (2 * 224, 6 * 224, 3)


def test_verify_says_it_with_the_exit_status(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "pens")
    good = run("verify", "--dataset", str(root))
    assert good.exit_code == 0, good.output
    assert "3 images, 3 people: ok" in good.output
    (root / "images" / "1.jpg").write_bytes(b"")
    bad = run("verify", "--dataset", str(root))
    assert bad.exit_code == 1
    assert "1.jpg: cannot be decoded" in bad.output
    as_json = run("verify", "--dataset", str(root), "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["ok"] is False


def test_without_a_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALPOSE_DATA", raising=False)
    result = run("verify", "--dataset", "lsp")
    assert result.exit_code == 2
    assert "give --data-root DATA or set ALPOSE_DATA" in result.output


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_fetch_from_a_mirror(tmp_path: Path) -> None:
    served, root = tmp_path / "served", tmp_path / "data"
    served.mkdir()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("val2017/1.jpg", b"1")
    (served / "val2017.zip").write_bytes(buffer.getvalue())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        mirror = f"http://127.0.0.1:{server.server_address[1]}"
        options = ("--dataset", "coco", "--data-root", str(root), "--mirror", mirror, "--only")
        good, bad = run("fetch", *options, "val2017.zip"), run("fetch", *options, "train2017.zip")
        server.shutdown()
        thread.join(timeout=5)
    assert good.exit_code == 0, good.output
    assert (root / "coco" / "val2017" / "1.jpg").read_bytes() == b"1"
    assert "Check it with: alpose-train data verify --dataset coco" in good.output
    assert bad.exit_code == 1
    assert "Place the files so that they lie like this" in bad.output


# --- drawing -----------------------------------------------------------------------------------------------


def test_joints_are_drawn_where_they_are_and_occluded_ones_faint(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((224, 224, 3), 9, dtype=np.uint8))
    people = made_people(
        Skeleton("two", ("left_tip", "right_tip", "tail"), (), ((0, 1),)), np.array([[[30, 40], [150, 120], [200, 200]]]),
        ids=("two/a",), images=ImageFiles((tmp_path / "a.png",)), labelled_NJ=np.array([[True, True, False]]),
        visible_NJ=np.array([[True, False, False]]), boxes_N4=np.array([[22.4, 22.4, 201.6, 201.6]], np.float32),  # with the margin the whole image
    )  # fmt: skip
    drawn = contact_sheet(people)
    assert tuple(drawn[40, 30]) == LEFT
    assert 9 < int(drawn[120, 150, 0]) < RIGHT[0], "occluded"
    assert (drawn[190:210, 190:210] == 9).all(), "not labelled, not drawn"


def test_a_broken_image_is_an_empty_tile_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((20, 20, 3), 255, dtype=np.uint8))
    people = made_people(
        LSP, np.full((2, 14, 2), -1e9), ids=("x/a", "x/b"), images=ImageFiles((tmp_path / "a.png", tmp_path / "b.png")),
        labelled_NJ=np.zeros((2, 14), dtype=np.bool_), boxes_N4=np.array([[5, 5, 15, 15]] * 2, np.float32),
    )  # fmt: skip
    sheet = contact_sheet(people, size_px=32)
    assert sheet.shape == (32, 64, 3)
    assert (sheet[:, :32] == 255).all()
    assert (sheet[:, 32:] == 0).all()
    assert "b.png" in caplog.text
    assert describe(people).labelled == (0.0,) * 14


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "root", "line"),
    [
        ("lsp", "", "2,000 people in 2,000 images"),
        ("lspet", "", "3,945 people have all 14 joints"),
        ("mpii", "mpii-mini", "5 people in 5 images"),
        ("coco", "coco-mini", "12 people in 4 images"),
    ],
)
def test_real_info(
    data_root: Path, real_folder: Callable[[str], Path], tmp_path: Path, name: str, root: str, line: str
) -> None:
    real_folder(root or name)
    result = run("info", "--dataset", name, "--data-root", str(data_root / root), "--draw", str(tmp_path / "sheet.png"))
    assert result.exit_code == 0, result.output
    assert line in result.output
    assert (tmp_path / "sheet.png").stat().st_size > 50_000
