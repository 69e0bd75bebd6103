"""Nets that other libraries build and export, through the commands of alpose; ``make test-models`` installs the libraries.

Each library trains a small net for a minute on LSP, exports it, and answers 200 real crops by its own code.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner

from alpose.trainer.cli import main
from alpose.trainer.data.catalog import open_dataset
from alpose.trainer.data.crops import CropConfig, prepare
from alpose.trainer.foreign.net import open_net
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognise import Stated, examine

HERE = Path(__file__).parent
PEOPLE, TESTED = 300, 200
STEPS = os.environ.get("ALPOSE_MODEL_STEPS", "60")

pytestmark = [pytest.mark.slow, pytest.mark.real_data]


def _python(library: str) -> str:
    """The Python of a library's environment."""
    found = (
        Path(os.environ.get("ALPOSE_MODEL_ENVIRONMENTS", HERE.parents[1] / ".venv-models")) / library / "bin" / "python"
    )
    if not found.exists():
        pytest.skip(f"{found} does not exist: make test-models installs it")
    return str(found)


def _crops(folder: Path, data_root: Path, size: tuple[int, int]) -> tuple[Path, npt.NDArray[np.uint8]]:
    """Real crops with their joints in a file for the library; and those that are tested."""
    data = open_dataset("lsp", data_root)
    config = CropConfig(size_px=size[1], height_px=size[0], context=0.0)
    train, test = (
        prepare(part.subset(np.arange(count)), config, folder / "cache")
        for part, count in ((data.train, PEOPLE), (data.test, TESTED))
    )
    pixels = test.read_bare(np.arange(len(test)))
    joints_NJ2 = np.where(train.labelled_NJ[..., None], train.joints_NJ2, np.nan).astype(np.float32)
    np.savez(folder / "crops.npz", train=train.read_bare(np.arange(len(train))), test=pixels, joints=joints_NJ2)
    return folder / "crops.npz", pixels


def _ours(net: Path, crops_NHW3: npt.NDArray[np.uint8], **stated: Any) -> npt.NDArray[np.float32]:
    """Keypoints as alpose reads them."""
    spec = examine(net, Stated(**stated)).spec
    opened = open_net(net, spec)
    answers = opened(crops_NHW3)
    with torch.no_grad():
        reading = NetReader(spec, opened.shapes).eval()(*(torch.from_numpy(answers[name]) for name in spec.tensors))
    return reading.keypoints_NJ2.numpy()


def _described(net: Path, *options: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["pose", "describe", str(net), "--json", *options])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_vitpose_of_transformers(tmp_path: Path, data_root: Path) -> None:
    file, crops = _crops(tmp_path, data_root, (256, 192))
    subprocess.run([_python("transformers"), str(HERE / "vitpose.py"), str(file), str(tmp_path), STEPS], check=True)
    net = tmp_path / "net.onnx"
    found = _described(net, "--skeleton", "lsp")
    assert found["family"] == "vitpose"
    assert [shape[2:] for name, shape in found["shapes"].items() if name in found["spec"]["taps"]] == [
        [64, 48],
        [32, 24],
        [16, 12],
    ]
    theirs = np.load(tmp_path / "keypoints.npy")
    distance = np.abs(_ours(net, crops, skeleton="lsp") - theirs).max(axis=2)
    # On a map without a peak the library's Newton step runs away, up to hundreds of pixels; alpose's ends at the next cell.
    settled = np.load(tmp_path / "settled.npy")
    assert settled.mean() > 0.5
    assert np.median(distance[settled]) < 1e-3
    assert np.quantile(distance[settled], 0.99) < 0.1  # on a saddle the library moves on, and alpose stays


def test_yolo_pose_of_ultralytics(tmp_path: Path, data_root: Path) -> None:
    file, crops = _crops(tmp_path, data_root, (256, 256))
    subprocess.run([_python("ultralytics"), str(HERE / "yolo_pose.py"), str(file), str(tmp_path), STEPS], check=True)
    net = tmp_path / "net.onnx"
    found = _described(net, "--skeleton", "lsp")
    assert found["family"] == "yolo-pose"
    assert found["spec"]["decoder"]["unit"] == "corner"
    assert len(found["spec"]["taps"]) == 3
    theirs = np.load(tmp_path / "keypoints.npy") - 0.5  # it counts pixels from the corner
    inside = ((theirs > 0) & (theirs < 254)).all(axis=2)  # what lies outside it moves to the edge
    distance = np.abs(_ours(net, crops, skeleton="lsp") - theirs).max(axis=2)
    assert inside.mean() > 0.5
    assert distance[inside].max() < 0.1
