"""What each detector costs beside the pose net: ONNX Runtime, one image, one thread, interleaved.

The pose net alone and the pose net with one head are two graphs; their rounds alternate, and the head's cost is the
median of the rounds' differences, so that a machine that grows slower is slower for both. Without ONNX Runtime
parameters are counted and no clock runs.
"""

from __future__ import annotations

import copy
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alpose.runtime.engines.onnx import import_onnxruntime

from .. import checkpoint
from ..checkpoint import PoseModel
from ..device import DeviceContext, environment
from ..methods.catalog import SHIPPED, SLIM, detectors_of
from .ablations import OTHER_EVIDENCE, new_head

log = logging.getLogger("alpose")

ROUNDS, CALLS = 60, 12
"""Medians over rounds of so many calls at most."""
ROUND_S = 0.05
"""A round of a large net has fewer calls, one at least, so that it takes no longer than this or one call."""

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


def measure_costs(model: PoseModel, names: Sequence[str], machine: DeviceContext) -> dict[str, Any]:
    """Parameters, milliseconds and share of the pose net's own time, by detector; and on what that was measured.

    Where ONNX Runtime or onnx is not installed, times are None, and a warning says so.

    Args:
        model: pose net, which does not change; heads are made anew, their cost does not depend on their weights.
        names: of the detectors; those without a head of their own, or a pass of their own, are left out.
        machine: named in what is returned.
    """
    heads: dict[str, nn.Module] = {
        name: checkpoint.new_head(model, name, 0) for name in detectors_of("paper", "loss") if name in names
    }
    heads |= {name: new_head(model, name, 0) for name in (SHIPPED, SLIM, *OTHER_EVIDENCE) if name in names}
    found: dict[str, list[float | None]] = {name: [_weights(module), None, None] for name, module in heads.items()}
    passes = {name: count for name, count in PASSES.items() if name in names}
    found |= {name: [_weights(model.pose) * (name != "flip"), None, float(count)] for name, count in passes.items()}
    quartiles: dict[str, list[float]] = {}
    pose_ms = None
    if found and _can_measure():
        pose = copy.deepcopy(model.pose).cpu()
        with tempfile.TemporaryDirectory() as folder:
            alone = _session(_Graph(pose, None), model.crop.size_px, Path(folder) / "pose.onnx")
            # Whole passes have nothing to be compared with but the net itself.
            times_ms = [] if heads else [_compare(alone, alone)[0]]
            for name, head in heads.items():
                both = _session(_Graph(pose, head), model.crop.size_px, Path(folder) / f"{name}.onnx")
                alone_ms, low_ms, extra_ms, high_ms = _compare(alone, both)
                # What is lost in the noise of a clock costs nothing that could be seen; how wide that is, the
                # quartiles say.
                found[name][1:] = [max(extra_ms, 0.0), max(extra_ms, 0.0) / alone_ms]
                quartiles[name] = [low_ms, high_ms]
                times_ms.append(alone_ms)
        pose_ms = statistics.median(times_ms)
        for name, count in passes.items():
            found[name][1] = count * pose_ms
    return {
        "pose_ms": pose_ms,
        "rounds": ROUNDS,
        "calls": CALLS,
        "detectors": found,
        "quartiles_ms": quartiles,
        "environment": environment(machine),
    }


def has_costs(names: Iterable[str]) -> set[str]:
    """Those detectors whose cost is counted or measured."""
    return {*detectors_of("paper", "loss"), SHIPPED, SLIM, *OTHER_EVIDENCE, *PASSES} & set(names)


def _weights(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _can_measure() -> bool:
    missing = [name for name in ("onnxruntime", "onnx") if find_spec(name) is None]
    if missing:
        log.warning("what detectors cost in time is not measured: %s not installed; pip install 'alpose[export,cpu]', "
                    "then the same command again", " and ".join(f"{name} is" for name in missing))  # fmt: skip
    return not missing


def _session(graph: nn.Module, size_px: int, path: Path) -> Callable[[], Any]:
    images = torch.zeros(1, 3, size_px, size_px)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.cpu().eval(), (images,), str(path), input_names=["images"], dynamo=False, opset_version=17
        )
    ort = import_onnxruntime("measuring costs")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"images": np.random.default_rng(0).random((1, 3, size_px, size_px), dtype=np.float32)}
    return lambda: session.run(None, feed)


def _compare(alone: Callable[[], Any], both: Callable[[], Any]) -> tuple[float, float, float, float]:
    """Milliseconds of the first, and how many more the second takes: lower quartile, median, upper quartile."""
    for call in (alone, both):
        call()
    started = time.perf_counter()
    alone()
    calls = int(min(max(ROUND_S / (time.perf_counter() - started), 1), CALLS))
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            call = (alone, both)[which]
            started = time.perf_counter()
            for _ in range(calls):
                call()
            times[which].append(1000 * (time.perf_counter() - started) / calls)
    low, middle, high = statistics.quantiles((b - a for a, b in zip(*times, strict=True)), n=4)
    return statistics.median(times[0]), low, middle, high
