"""What each detector costs beside the pose net: ONNX Runtime, one image, one thread, interleaved.

The pose net alone and the pose net with one head are two graphs; their rounds alternate, and the head's cost is the
median of the rounds' differences, so that a machine that grows slower is slower for both.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import checkpoint
from ..checkpoint import PoseModel
from ..device import Machine, environment
from .detectors import PAPERS, SHIPPED, SLIM

ROUNDS, CALLS = 60, 12
"""Medians over rounds of so many calls."""

PASSES = {"flip": 1, "auditor": 1}
"""Detectors that are whole further passes of a net of this size."""


class _Graph(nn.Module):
    def __init__(self, pose: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.pose, self.head = pose, head

    def forward(self, images_B3SS: Tensor) -> tuple[Tensor, ...]:
        """The last maps, and what the head says."""
        features = self.pose(images_B3SS).features
        return (features.heatmaps[-1], self.head(features)) if self.head else (features.heatmaps[-1],)


def measure_costs(model: PoseModel, names: Sequence[str], machine: Machine) -> dict[str, Any]:
    """Parameters, milliseconds and share of the pose net's own time, by detector; and on what that was measured.

    Args:
        model: pose net; heads are made anew, their cost does not depend on their weights.
        names: of the detectors; those without a head of their own, or a pass of their own, are left out.
        machine: named in what is returned.
    """
    heads = {name: checkpoint.new_head(model, name, 0) for name in (*PAPERS, SHIPPED, SLIM) if name in names}  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        pose = _session(_Graph(model.pose, None), model.crop.size_px, Path(folder) / "pose.onnx")
        found: dict[str, list[float]] = {}
        spread: dict[str, list[float]] = {}
        pose_ms = 0.0
        for name, head in heads.items():
            both = _session(_Graph(model.pose, head), model.crop.size_px, Path(folder) / f"{name}.onnx")
            pose_ms, low_ms, extra_ms, high_ms = _compare(pose, both)
            parameters = sum(value.numel() for value in head.parameters())
            # What is lost in the noise of a clock costs nothing that could be seen; the quartiles say how wide that is.
            found[name] = [parameters, max(extra_ms, 0.0), max(extra_ms, 0.0) / pose_ms]
            spread[name] = [low_ms, high_ms]
    weights = sum(value.numel() for value in model.pose.parameters())
    found |= {name: [weights * (name != "flip"), count * pose_ms, float(count)]
              for name, count in PASSES.items() if name in names and pose_ms}  # fmt: skip
    return {
        "pose_ms": pose_ms,
        "rounds": ROUNDS,
        "calls": CALLS,
        "detectors": found,
        "environment": environment(machine),
    }


def _session(graph: nn.Module, size_px: int, path: Path) -> Callable[[], Any]:
    images = torch.zeros(1, 3, size_px, size_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.cpu().eval(), (images,), str(path), input_names=["images"], dynamo=False, opset_version=17
        )
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"images": np.random.default_rng(0).random((1, 3, size_px, size_px), dtype=np.float32)}
    return lambda: session.run(None, feed)


def _compare(alone: Callable[[], Any], both: Callable[[], Any]) -> tuple[float, float, float, float]:
    """Milliseconds of the first, and how many more the second takes: lower quartile, median, upper quartile."""
    for call in (alone, both):
        call()
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            call = (alone, both)[which]
            started = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[which].append(1000 * (time.perf_counter() - started) / CALLS)
    low, middle, high = statistics.quantiles((b - a for a, b in zip(*times, strict=True)), n=4)
    return statistics.median(times[0]), low, middle, high
