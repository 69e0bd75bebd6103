"""Run by the Python of an environment with ultralytics: a small YOLO-pose, trained for a minute or two, exported, and its own answers.

    python yolo_pose.py CROPS.npz OUT STEPS

CROPS.npz holds ``train`` and ``test``, uint8 (N, S, S, 3) RGB, and ``joints`` (N, J, 2) of train in pixels, NaN where not labelled.
OUT gets ``net.onnx`` and ``keypoints.npy``, (M, J, 2) of test: the best person that the library's own predictor finds.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

os.environ["YOLO_AUTOINSTALL"] = "false"
os.environ.setdefault("YOLO_CONFIG_DIR", sys.argv[2] if len(sys.argv) > 2 else ".")


def without_torchvision() -> None:
    """Let ultralytics run where there is no torchvision: it wants its version, and of its code only NMS.

    One person is asked for, so that NMS is the candidate with the highest score.
    """
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.28.0" if name == "torchvision" else version(name)  # type: ignore[assignment]
    stub: Any = types.ModuleType("torchvision")
    stub.__version__ = "0.28.0"
    stub.ops = types.SimpleNamespace(nms=lambda _boxes, scores, _iou: scores.argsort(descending=True)[:1])
    sys.modules["torchvision"] = stub


def main(crops: Path, out: Path, steps: int) -> None:
    without_torchvision()
    import ultralytics
    import yaml
    from ultralytics import YOLO
    from ultralytics.cfg import get_cfg

    torch.manual_seed(0)
    given = np.load(crops)
    train, test, joints = given["train"], given["test"], given["joints"]
    size, count = train.shape[1], joints.shape[1]
    recipe = out / "yolo11n-pose.yaml"
    source = Path(ultralytics.__file__).parent / "cfg/models/11/yolo11-pose.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(source.read_text()) | {"nc": 1, "kpt_shape": [count, 3]}))
    yolo = YOLO(str(recipe))
    net = yolo.model
    own, net.args = net.args, get_cfg()
    net.train()
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    known = np.isfinite(joints).all(axis=2)
    low, high = np.nanmin(joints, axis=1) / size, np.nanmax(joints, axis=1) / size
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)
    points = np.concatenate([np.nan_to_num(joints) / size, 2.0 * known[..., None]], axis=2).astype(np.float32)
    for step in range(steps):
        rows = np.random.default_rng(step).integers(0, len(train), 8)
        batch = {
            "img": torch.from_numpy(train[rows]).permute(0, 3, 1, 2).float() / 255,
            "bboxes": torch.from_numpy(boxes[rows]), "keypoints": torch.from_numpy(points[rows]),
            "cls": torch.zeros(len(rows), 1), "batch_idx": torch.arange(len(rows)).float(),
        }  # fmt: skip
        loss, _ = net(batch)
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    net.eval()
    net.args = own
    found = np.full((len(test), count, 2), np.nan)
    for row, crop in enumerate(test):
        (result,) = yolo.predict(np.ascontiguousarray(crop[..., ::-1]), imgsz=size, conf=1e-6, max_det=1, verbose=False)
        if len(result.keypoints):
            found[row] = result.keypoints.data[0, :, :2].numpy()
    np.save(out / "keypoints.npy", found)
    shutil.copy(yolo.export(format="onnx", imgsz=size, simplify=False, opset=17), out / "net.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
