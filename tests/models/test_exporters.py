"""Nets that other libraries build and export, through the commands of alpose; ``make test-models`` installs the libraries.

Each net trains for a minute or two on LSP, is exported by its library, answers 200 real crops by its library's code, and goes
through ``pose describe``, ``fit --pose``, ``alpose-export`` and ``alpose-export verify``.

Shapes: N crops, J joints, H W the input.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from alpose.export.cli import main as export_main
from alpose.runtime.bundle import Bundle
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.trainer.cli import main
from alpose.trainer.data.catalog import open_dataset
from alpose.trainer.data.crops import CropConfig, prepare
from alpose.trainer.data.records import PoseData

from ..trainer.own_data import write_coco_folder
from . import own_nets

HERE = Path(__file__).parent
PEOPLE, TESTED = 300, 200
STEPS = os.environ.get("ALPOSE_MODEL_STEPS", "200")
FAILURE = ("--failure", "mean-error", "--failure-limit", "0.18")
"""Of the crop's side: a net that learned for a minute fails on some people, and not on all."""

ENVIRONMENTS = Path(os.environ.get("ALPOSE_MODEL_ENVIRONMENTS", HERE.parents[1] / ".venv-models"))
pytestmark = [pytest.mark.slow, pytest.mark.real_data,
              pytest.mark.skipif(not ENVIRONMENTS.exists(), reason="minutes: make test-models")]  # fmt: skip


def _run(library: str, script: Path, crops: Path, out: Path) -> None:
    """A script by the Python of a library's environment."""
    python = ENVIRONMENTS / library / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{python} does not exist: make test-models installs it")
    # Some libraries write into the folder where they are called.
    subprocess.run([str(python), str(script), str(crops), str(out), STEPS], check=True, cwd=out)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder with LSP people who train no net and are not compared: 300 that heads learn from, 200 held out."""
    root = os.environ.get("ALPOSE_DATA")
    if not root or not (Path(root) / "lsp").is_dir():
        pytest.skip("ALPOSE_DATA, which names the folder of the real datasets, is not set, or LSP is not there")
    data, folder = open_dataset("lsp", Path(root)), tmp_path_factory.mktemp("people")
    _part(data.train.subset(np.arange(PEOPLE, 2 * PEOPLE)), folder, "train")
    _part(data.test.subset(np.arange(TESTED, 2 * TESTED)), folder, "val")
    return folder


def _part(people: PoseData, folder: Path, name: str) -> None:
    sizes = {f"{name}{row:05d}.jpg": people.image(row).shape for row in range(len(people))}
    fields = {file: {"height": shape[0], "width": shape[1]} for file, shape in sizes.items()}
    write_coco_folder(people, folder, name, name, fields)


def _crops(folder: Path, data_root: Path, size: tuple[int, int]) -> tuple[Path, dict[str, npt.NDArray[Any]]]:
    """Real crops with their joints in a file for the library; and the same as arrays."""
    data = open_dataset("lsp", data_root)
    config = CropConfig(size_px=size[1], height_px=size[0], context=0.0)
    train, test = (
        prepare(part.subset(np.arange(count)), config, folder / "cache")
        for part, count in ((data.train, PEOPLE), (data.test, TESTED))
    )
    joints_NJ2 = np.where(train.labelled_NJ[..., None], train.joints_NJ2, np.nan).astype(np.float32)
    arrays: dict[str, npt.NDArray[Any]] = {
        "train": train.read_bare(np.arange(len(train))),
        "test": test.read_bare(np.arange(len(test))),
        "joints": joints_NJ2,
    }
    np.savez(folder / "crops.npz", allow_pickle=False, **arrays)
    return folder / "crops.npz", arrays


def _called(command: Any, *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def _through_the_commands(
    net: Path, people: Path, crops_NHW3: npt.NDArray[np.uint8], *stated: object
) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """What ``pose describe`` says of the net; and keypoints (N, J, 2) of the crops as its bundle gives them."""
    out, cache = net.parent, ("--cache", net.parent / "cache")
    described: dict[str, Any] = json.loads(_called(main, "pose", "describe", net, "--json", *stated))
    fitted = json.loads(_called(main, "fit", "--pose", net, *stated, "--data", people, "--views", 1, *FAILURE,
                                "--out", out / "model", "--device", "cpu", "--json", *cache))  # fmt: skip
    assert 0.05 < fitted["failures"] / fitted["held_out"] < 0.95
    assert {"facts", "ll", "the net's own score"} <= {row["name"] for row in fitted["rows"]}
    _called(export_main, out / "model", "-o", out / "net.alpose", *FAILURE, *cache)
    verified = json.loads(_called(export_main, "verify", "--json", out / "net.alpose"))
    assert verified["passed"], verified
    bundle = Bundle.open(out / "net.alpose")
    # The same bits, but for a rounding that DARK's step, a division by small curvatures, makes larger.
    assert bundle.manifest.parity["their_file_alone_max_px"]["value"] < 1e-3
    engine = OnnxEngine(bundle, threads=1)
    said = [engine(crops_NHW3[row : row + 1]) for row in range(len(crops_NHW3))]
    failing_N = np.concatenate([outputs.failure_probability_N for outputs in said])
    assert ((failing_N > 0) & (failing_N < 1)).all()
    assert np.ptp(failing_N) > 0.05
    return described, np.concatenate([outputs.keypoints_NJ2 for outputs in said])


def test_vitpose_of_transformers(tmp_path: Path, data_root: Path, people: Path) -> None:
    file, crops = _crops(tmp_path, data_root, (256, 192))
    _run("transformers", HERE / "vitpose.py", file, tmp_path)
    described, ours = _through_the_commands(tmp_path / "net.onnx", people, crops["test"], "--skeleton", "lsp")
    assert described["family"] == "vitpose"
    taps = described["spec"]["taps"]
    assert [described["shapes"][name][2:] for name in taps] == [[64, 48], [32, 24], [16, 12]]
    theirs = np.load(tmp_path / "keypoints.npy")
    distance = np.abs(ours - theirs).max(axis=2)
    # On a map without a peak the library's Newton step runs away, up to hundreds of pixels; alpose's ends at the next cell.
    settled = np.load(tmp_path / "settled.npy")
    assert settled.mean() > 0.5
    assert np.median(distance[settled]) < 1e-3
    assert np.quantile(distance[settled], 0.99) < 0.1  # on a saddle the library moves on, and alpose stays


def test_yolo_pose_of_ultralytics(tmp_path: Path, data_root: Path, people: Path) -> None:
    file, crops = _crops(tmp_path, data_root, (256, 256))
    _run("ultralytics", HERE / "yolo_pose.py", file, tmp_path)
    # It was trained on crops and its parity is measured on crops: without --crop it would be fed whole frames.
    described, ours = _through_the_commands(
        tmp_path / "net.onnx", people, crops["test"], "--skeleton", "lsp", "--crop", "box"
    )
    assert described["family"] == "yolo-pose"
    assert described["spec"]["decoder"]["unit"] == "corner"
    assert len(described["spec"]["taps"]) == 3
    theirs = np.load(tmp_path / "keypoints.npy") - 0.5  # it counts pixels from the corner
    inside = ((theirs > 0) & (theirs < 254)).all(axis=2)  # what lies outside it moves to the edge
    inside &= _one_is_best(tmp_path / "net.onnx", crops["test"])[:, None]
    assert inside.mean() > 0.5
    assert np.abs(ours - theirs).max(axis=2)[inside].max() < 0.1


def _one_is_best(net: Path, crops_NHW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether one candidate's score is above all others, (N,): of equal ones, as 1.0 in float32, either side takes any."""
    session = onnxruntime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    images_N3HW = (crops_NHW3.transpose(0, 3, 1, 2) / 255).astype(np.float32)
    scores_NA = np.concatenate(
        [session.run(None, {session.get_inputs()[0].name: one[None]})[0][:, 4] for one in images_N3HW]
    )
    best_N2 = np.sort(scores_NA, axis=1)[:, -2:]
    return best_N2[:, 1] - best_N2[:, 0] > 1e-6


def test_hrnet(tmp_path: Path, data_root: Path, people: Path) -> None:
    _, crops = _crops(tmp_path, data_root, (256, 192))
    torch.manual_seed(0)
    net = own_nets.Heatmaps(crops["joints"].shape[1])
    own_nets.train(net, crops["train"], crops["joints"], int(STEPS))
    own_nets.export(net, tmp_path / "net.onnx", ["output"], newer=False)
    described, ours = _through_the_commands(
        tmp_path / "net.onnx", people, crops["test"], "--like", "hrnet", "--skeleton", "lsp"
    )
    assert described["shapes"]["output"][1:] == [14, 64, 48]
    theirs = own_nets.answers(net, crops["test"], own_nets.highest_cells)
    assert np.abs(ours - theirs).max() < 0.1


def test_simcc(tmp_path: Path, data_root: Path, people: Path) -> None:
    _, crops = _crops(tmp_path, data_root, (256, 192))
    torch.manual_seed(0)
    net = own_nets.SimCC(crops["joints"].shape[1])
    own_nets.train(net, crops["train"], crops["joints"], int(STEPS))
    own_nets.export(net, tmp_path / "net.onnx", ["simcc_x", "simcc_y"], newer=True)
    described, ours = _through_the_commands(tmp_path / "net.onnx", people, crops["test"], "--skeleton", "lsp")
    assert described["family"] == "rtmpose"
    theirs = own_nets.answers(net, crops["test"], own_nets.highest_bins)
    assert np.abs(ours - theirs).max() < 0.1
