"""A tiny model and its graph, exported once for all tests that look at it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from alpose.export.calibration import Calibration
from alpose.export.graph import MonitorGraph
from alpose.export.onnx_graph import to_onnx
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.checkpoint import PoseModel, TargetConfig, new_head, new_model
from alpose.trainer.data.crops import CropConfig
from alpose.trainer.models.hourglass import HourglassConfig

DOTS = Skeleton("dots", ("left_dot", "right_dot", "top"), ((0, 2), (1, 2)), ((0, 1),))
SIZE = 64

CALIBRATION = Calibration(
    np.array([-0.036, 2.0, 0.35]), np.array([0.002, 0.6, 0.14]), np.array([0.7, 0.2, 1.1]),
    np.array([-2.0, -0.5, 0.0, 0.1, 3.0]), np.array([0.02, 0.1, 0.1, 0.6, 0.97]),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="session")
def _one_thread(one_torch_thread: None) -> None:
    """For every test here."""


def settle(net: torch.nn.Module, images_N3SS: torch.Tensor) -> None:
    """Norms with the statistics of images, as training leaves them: with fresh ones a net hardly sees its input."""
    generator = torch.Generator().manual_seed(0)
    for part in net.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
            part.weight.data.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
            part.bias.data.copy_(torch.rand(part.bias.shape, generator=generator) - 0.5)
    with torch.no_grad():
        net.train()(images_N3SS)
    net.eval()


def blobs() -> npt.NDArray[np.uint8]:
    """Smooth crops, so that a lower precision does not turn noise into other peaks."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (24, 3, 8, 8)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


@pytest.fixture(scope="session")
def tiny_frames() -> npt.NDArray[np.uint8]:
    return blobs()


@pytest.fixture(scope="session")
def tiny_model() -> PoseModel:
    model = new_model(HourglassConfig(joints=3, stacks=2, channels=8, depth=2), DOTS, CropConfig(size_px=SIZE),
                      TargetConfig(), seed=0)  # fmt: skip
    settle(model.pose, torch.from_numpy(blobs()).permute(0, 3, 1, 2) / 255)
    with torch.no_grad():
        model.pose.get_parameter("outs.1.weight").mul_(20.0)
    return model.with_heads({"ll++conv": new_head(model, "ll++conv", 0), "ll": new_head(model, "ll", 0)})


@pytest.fixture(scope="session")
def tiny_graph(tiny_model: PoseModel) -> MonitorGraph:
    return MonitorGraph.from_model(tiny_model, "ll++conv", CALIBRATION)


@pytest.fixture(scope="session")
def tiny_onnx(tiny_graph: MonitorGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    to_onnx(tiny_graph, path)
    return path
