"""A bundle's graph on a device: ONNX Runtime and PyTorch, fp32 and fp16, in turns, with parity.

Shapes: N frames, S crop side.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alpose.export.graph import MonitorGraph, TorchEngine
from alpose.export.onnx_graph import to_onnx
from alpose.export.parity import compare
from alpose.export.precision import to_fp16
from alpose.export.write import PREFERRED
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import AlposeError, ConfigError
from alpose.runtime.types import Outputs
from alpose.trainer import checkpoint
from alpose.trainer.device import DeviceContext

from .measure import interleave, rates, spread, synchroniser, table

Frames = npt.NDArray[np.uint8]
Engine = Callable[[Frames], Outputs]

BATCHES = (1, 8, 32)

SAYS = (
    "One call: uint8 frames in host memory to all five outputs in host memory. ONNX Runtime: a session's run; PyTorch: the "
    "same graph, eager, with the copies; fp16 is autocast of the trunk in PyTorch and types in the ONNX graph."
)


class _OnDevice:
    """A graph in PyTorch on a device, the trunk in float16 where asked."""

    def __init__(self, graph: MonitorGraph, device: torch.device, half: bool) -> None:
        self._graph, self._device, self._half = graph.to(device), device, half

    def __call__(self, frames_NSS3: Frames) -> Outputs:
        """Answer N frames."""
        with torch.inference_mode(), torch.autocast(self._device.type, torch.float16, enabled=self._half):
            answers = self._graph(torch.from_numpy(frames_NSS3).to(self._device))
        return Outputs(*(answer.float().cpu().numpy() for answer in answers))


def measure_bundle(path: Path, used: DeviceContext, *, rounds: int, calls: int) -> dict[str, Any]:
    """Frames per second and parity of every way to run one checkpoint's graph, at every batch.

    Args:
        path: the checkpoint.
        used: where.
        rounds: how many count.
        calls: calls whose mean is one number.
    """
    model = checkpoint.load(path)
    head = next((name for name in PREFERRED if name in model.heads), None)
    if head is None:
        raise ConfigError(f"{path} has no loss head: a bundle needs one")
    graph = MonitorGraph.from_model(model, head)
    size = graph.spec.width_px
    frames_NSS3 = np.random.default_rng(0).integers(0, 256, (max(BATCHES), size, size, 3), dtype=np.uint8)
    expected = TorchEngine(graph)(frames_NSS3)
    provider = "cuda" if used.device.type == "cuda" else "cpu"
    result: dict[str, Any] = {"says": SAYS, "head": head, "size_px": size, "provider": provider, "parity": {},
                              "measurements": [], "left_out": []}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        engines = _engines(graph, Path(scratch), provider, used.device, result["left_out"])
        for name, engine in engines.items():
            result["parity"][name] = asdict(compare(expected, engine(frames_NSS3)))
        for batch in BATCHES:
            tasks = {name: _task(engine, frames_NSS3[:batch]) for name, engine in engines.items()}
            seconds = interleave(tasks, rounds=rounds, warmup=2, calls=calls, sync=synchroniser(used.device))
            result["measurements"] += [
                {"batch": batch, "engine": name, "frames_per_second": asdict(spread(rates(took_R, batch))),
                 "rounds": list(rates(took_R, batch))}
                for name, took_R in seconds.items()
            ]  # fmt: skip
    return result


def _engines(
    graph: MonitorGraph, folder: Path, provider: str, device: torch.device, left_out: list[dict[str, str]]
) -> dict[str, Engine]:
    """Whoever can run here; the others are named with the reason."""
    plain, half = folder / "fp32.onnx", folder / "fp16.onnx"
    to_onnx(graph, plain)
    to_fp16(plain, half)
    makers: Mapping[str, Callable[[], Engine]] = {
        f"onnxruntime {provider} fp32": lambda: OnnxEngine(plain, provider),
        f"onnxruntime {provider} fp16": lambda: OnnxEngine(half, provider),
        "torch fp32": lambda: _OnDevice(copy.deepcopy(graph), device, half=False),
        "torch fp16": lambda: _OnDevice(copy.deepcopy(graph), device, half=True),
    }
    engines: dict[str, Engine] = {}
    for name, make in makers.items():
        try:
            engines[name] = make()
            engines[name](np.zeros((2, graph.spec.width_px, graph.spec.width_px, 3), dtype=np.uint8))
        except (AlposeError, RuntimeError) as error:
            engines.pop(name, None)
            left_out.append({"engine": name, "reason": str(error).splitlines()[0][:300]})
    return engines


def _task(engine: Engine, frames_NSS3: Frames) -> Callable[[], object]:
    return lambda: engine(frames_NSS3)


def show(result: Mapping[str, Any]) -> str:
    """The result as a table."""
    rows = []
    for one in result["measurements"]:
        rate, parity = one["frames_per_second"], result["parity"][one["engine"]]
        moved = parity["keypoint_max_px"]
        rows.append((one["engine"], str(one["batch"]), f"{rate['median']:.0f}", f"{rate['min']:.0f} to {rate['max']:.0f}",
                     "-" if moved is None else f"{moved:.3g}", f"{parity['loss_rank_correlation']:.5f}"))  # fmt: skip
    head = ("engine", "batch", "frames/s", "range", "keypoint max px", "rank correlation")
    lines = [table(head, rows), *(f"left out: {one['engine']}: {one['reason']}" for one in result["left_out"])]
    return "\n".join(lines)
