"""``alpose-train pose describe``: what is said of a net, and what its answers say."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from alpose.runtime.skeleton import LSP
from alpose.trainer.cli import main
from alpose.trainer.data.images import ImageFiles
from alpose.trainer.data.records import PoseData
from alpose.trainer.foreign.describe import describe
from alpose.trainer.foreign.recognition.recognise import examine
from alpose.trainer.foreign.recognition.stated import Stated
from alpose.trainer.pages.describe import render

from ...fakes.people import made_people
from . import nets


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALPOSE_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str | Path, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["pose", "describe", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    return call


def test_what_a_file_says_of_itself(run: Any, tmp_path: Path) -> None:
    said = run(nets.hrnet(tmp_path / "net.onnx"), "--colour", "bgr")
    assert "size      256x192   [in the file]" in said
    assert "colour    bgr   [stated]" in said
    assert "skeleton  coco (17)   [guessed: it has 17 joints]" in said
    assert "Guessed: " in said
    assert not list(tmp_path.glob("*.html"))


def test_its_json_is_a_spec_that_can_be_given_back(run: Any, tmp_path: Path) -> None:
    path = nets.hrnet(tmp_path / "net.onnx")
    first = json.loads(run(path, "--json", "--margin", "1.5", "--mean", "0,0,0", "--taps", "features"))
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(first["spec"]))
    second = json.loads(run(path, "--json", "--spec", spec))
    assert first["spec"] == second["spec"]
    assert first["spec"]["crop"]["margin"] == 1.5
    assert first["shapes"]["features"] == [None, 16, 64, 48]


def test_a_mistake_is_one_line(run: Any, tmp_path: Path) -> None:
    path = nets.hrnet(tmp_path / "net.onnx", free=True)
    assert run(path, code=2).startswith("Error: ")
    assert "write HEIGHTxWIDTH" in run(path, "--size", "256", code=2)
    assert "three numbers" in run(path, "--size", "256x192", "--mean", "1,2", code=2)
    assert "does not exist" in run(tmp_path / "other.onnx", code=2)


def _finder(path: Path) -> Path:
    """A net that finds the reddest pixel: 14 maps, all of them red less blue at a stride of 4."""
    net = nets.Net((64, 64))
    weights = np.zeros((14, 3, 4, 4), np.float32)
    weights[:, 0], weights[:, 2] = 1 / 16, -1 / 16
    maps = net.add("Conv", [net.start, net.weight(weights)], "maps", strides=[4, 4], kernel_shape=[4, 4])
    net.output(net.add("Relu", [maps], "heatmaps"))
    return net.save(path)


def _people(folder: Path, count: int = 12) -> PoseData:
    """Pictures with a red and a blue dot; every joint is labelled at the red one."""
    random = np.random.default_rng(0)
    paths, joints = [], []
    for row in range(count):
        image = np.full((80, 80, 3), 90, np.uint8)
        red, blue = random.permutation(16)[:2]
        for place, colour in ((red, (0, 0, 255)), (blue, (255, 0, 0))):
            x, y = 12 + 16 * (place % 4), 12 + 16 * (place // 4)
            image[y - 4 : y + 5, x - 4 : x + 5] = colour  # BGR, as OpenCV writes
        joints.append(np.tile([12 + 16 * (red % 4), 12 + 16 * (red // 4)], (14, 1)))
        paths.append(folder / f"{row}.png")
        cv2.imwrite(str(paths[-1]), image)
    joints_NJ2 = np.asarray(joints, np.float32)
    joints_NJ2[:, [2, 9]] = (10, 10), (70, 70)  # a torso to measure by
    return made_people(LSP, joints_NJ2, name="dots", ids=tuple(f"dots/{row}" for row in range(count)), images=ImageFiles(tuple(paths)),
                       boxes_N4=np.tile(np.array([0, 0, 79, 79], np.float32), (count, 1)))  # fmt: skip


def page_of(folder: Path, name: str, pictures: bool = True) -> str:
    """The page of a net in a file of any name, for the contract of all pages."""
    path = _finder(folder / "dots.onnx")
    recognised = examine(path, Stated(mean=(0, 0, 0), std=(1, 1, 1), colour="bgr"))
    spec = replace(recognised.spec, name=name)
    if pictures:
        (folder / "pictures").mkdir(exist_ok=True)
        _people(folder / "pictures", 3)
    found = describe(
        path, replace(recognised, spec=spec), images=folder / "pictures" if pictures else None, cache=folder
    )
    return render(replace(found, file=Path(f"{name}.onnx")))


def test_a_wrong_order_of_colours_is_seen(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = _people(tmp_path)
    monkeypatch.setattr("alpose.trainer.foreign.describe.open_dataset", lambda *_: type("Opened", (), {"test": people}))
    path = _finder(tmp_path / "dots.onnx")
    right = run(path, "--dataset", "dots", "--mean", "0", "--std", "1", "--margin", "1")
    assert "No other order of colours or normalisation is clearly better." in right
    wrong = run(path, "--dataset", "dots", "--mean", "0", "--std", "1", "--margin", "1", "--colour", "bgr")
    assert "Warning: RGB, 0 to 1 is clearly better" in wrong
    assert "State --colour rgb --scale 0.0039215686 --mean 0,0,0 --std 1,1,1" in wrong
    page = (tmp_path / "dots.html").read_text()
    assert "Its answers, fed the better way" in page
    assert page.count("data:image/jpeg") == 24
    found = json.loads(
        run(path, "--dataset", "dots", "--mean", "0", "--std", "1", "--margin", "1", "--colour", "bgr", "--json")
    )
    assert found["better"].startswith("--colour rgb")
    assert found["people"] == 12


def test_pictures_without_labels_are_drawn(run: Any, tmp_path: Path) -> None:
    _people(tmp_path, 3)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    said = run(_finder(tmp_path / "net.onnx"), "--images", tmp_path, "--page", tmp_path / "look.html")
    assert "3 pictures of" in said
    assert (tmp_path / "look.html").read_text().count("data:image/jpeg") == 3


def test_labels_without_a_common_joint(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = _people(tmp_path)
    monkeypatch.setattr("alpose.trainer.foreign.describe.open_dataset", lambda *_: type("Opened", (), {"test": people}))
    path = nets.uint8_nhwc(tmp_path / "hand.onnx")
    assert "have none in common by name; state which belong together" in run(path, "--dataset", "dots", code=2)
    assert "(1 joints in common)" in run(path, "--dataset", "dots", "--map-joints", "wrist:left_wrist")


@pytest.mark.real_models
@pytest.mark.real_data
def test_movenet_on_real_people(run: Any, data_root: Path) -> None:
    models = os.environ.get("ALPOSE_MODELS")
    if not models or not (data_root / "lsp").is_dir():
        pytest.skip("ALPOSE_MODELS, which names the folder of the real nets, is not set, or LSP is not there")
    found = json.loads(run(Path(models) / "movenet-lightning.onnx", "--dataset", "lsp", "--people", "30", "--json"))
    assert len(found["joints"]) == 12
    assert found["conventions"][0]["pck"] > 0.75
    assert found["conventions"][1]["more"] < 0  # BGR
    assert found["better"] is None
