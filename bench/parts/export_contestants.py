"""Who runs in ``bench.export``: the exported graph, its parts, and the same net in PyTorch.

Shapes: B batch, S crop side, J joints, H W heatmap, P its cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from alpose.export.graph import UNCALIBRATED, MonitorGraph
from alpose.export.onnx_graph import import_onnx, to_onnx
from alpose.export.precision import to_fp16, to_int8
from alpose.runtime.engines.onnx import OnnxEngine, import_onnxruntime
from alpose.trainer.checkpoint import PoseModel, new_head
from alpose.trainer.models.heads import HeadName
from alpose.trainer.scoring import REFERENCE_PEAK

Frames = npt.NDArray[np.uint8]

BATCHES = (1, 8)

SLIM: HeadName = "ll++"

SAYS = {
    "onnxruntime fp32": "alpose.runtime.engines.OnnxEngine on the CPU: uint8 crops to the outputs",
    "onnxruntime fp16": "the same; ONNX Runtime's CPU kernels compute in float32, so the casts are all that differs",
    "onnxruntime int8": "the same, QDQ",
    "torch eager": "the same MonitorGraph in PyTorch, channels last, inference mode, outputs to numpy",
    "torch.compile": "the same through torch.compile, compiled for each batch size",
    "heatmaps to numpy": "the graph cut before decoding; decoding, entropy and calibration in numpy",
    "pose alone": "the graph without embedding, doubt, loss head and calibration: keypoints and scores",
    "without loss head": "the graph without loss head, doubt and calibration",
    "with the slim head": f"the whole graph with the head {SLIM} (a global average and six small layers)",
}


def line_up(
    model: PoseModel, head: HeadName, folder: Path, threads: int, compiler: str | None
) -> tuple[dict[str, Callable[[Frames], object]], dict[str, str], dict[str, int]]:
    """Who runs, who does not and why, and the sizes of the files in bytes."""
    graph = MonitorGraph.from_model(model, head)
    size = graph.spec.width_px
    paths = {name: folder / f"{name}.onnx" for name in ("fp32", "fp16", "int8", "slim", "pose", "headless", "heatmaps")}
    to_onnx(graph, paths["fp32"])
    to_fp16(paths["fp32"], paths["fp16"])
    to_int8(paths["fp32"], paths["int8"], noise((16, size, size, 3)))
    slim = model if SLIM in model.heads else model.with_heads({SLIM: new_head(model, SLIM, 0)})
    to_onnx(MonitorGraph.from_model(slim, SLIM), paths["slim"])
    shorten(paths["fp32"], paths["pose"], ["keypoints", "scores"])
    shorten(paths["fp32"], paths["headless"], ["keypoints", "scores", "embedding"])
    maps = maps_name(paths["fp32"])
    shorten(paths["fp32"], paths["heatmaps"], [maps, "predicted_loss", "embedding"])

    contestants: dict[str, Callable[[Frames], object]] = {
        f"onnxruntime {precision}": OnnxEngine(paths[precision], threads=threads)
        for precision in ("fp32", "fp16", "int8")
    }
    contestants["torch eager"] = in_torch(graph)
    left_out = {}
    if compiler is None:
        left_out["torch.compile"] = "switched off"
    else:
        try:
            contestants["torch.compile"] = compiled(graph, compiler)
        except Exception as error:  # no C++ compiler, for one
            left_out["torch.compile"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    contestants["heatmaps to numpy"] = decoding_in_numpy(paths["heatmaps"], maps, graph, threads)
    contestants["pose alone"] = plain(paths["pose"], threads)
    contestants["without loss head"] = plain(paths["headless"], threads)
    contestants["with the slim head"] = OnnxEngine(paths["slim"], threads=threads)
    return contestants, left_out, {name: paths[name].stat().st_size for name in ("fp32", "fp16", "int8")}


def noise(shape: tuple[int, ...]) -> Frames:
    """Random pixels, always the same."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def session(path: Path, threads: int) -> Any:
    """A graph with other outputs than a bundle's, in ONNX Runtime."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else it runs on in the next one's turn
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def plain(path: Path, threads: int) -> Callable[[Frames], list[Any]]:
    """A session as a call."""
    running = session(path, threads)
    return lambda frames: running.run(None, {"frames": frames})


def shorten(source: Path, target: Path, outputs: Sequence[str]) -> None:
    """The part of a graph that these tensors need."""
    onnx = import_onnx()
    extractor = onnx.utils.Extractor(onnx.load(source))
    target.write_bytes(extractor.extract_model(["frames"], list(outputs)).SerializeToString())


def maps_name(path: Path) -> str:
    """Name of the heatmaps: what decoding reads first."""
    onnx = import_onnx()
    first = next(node for node in onnx.load(path).graph.node if node.name.startswith("decode/"))
    return str(first.input[0])


def in_torch(graph: MonitorGraph) -> Callable[[Frames], list[Any]]:
    """The graph in PyTorch, in the memory order that is fastest for convolutions on a CPU."""
    net = MonitorGraph.with_calibration(graph, UNCALIBRATED)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def call(frames: Frames) -> list[Any]:
        with torch.inference_mode():
            return [value.numpy() for value in net(torch.from_numpy(frames))]

    return call


def compiled(graph: MonitorGraph, backend: str) -> Callable[[Frames], list[Any]]:
    """The graph through torch.compile, once for every batch size; it is compiled here, so that a failure shows."""
    net = MonitorGraph.with_calibration(graph, UNCALIBRATED)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    fast = {batch: torch.compile(net, backend=backend, dynamic=False) for batch in BATCHES}

    def call(frames: Frames) -> list[Any]:
        with torch.inference_mode():
            return [value.numpy() for value in fast[len(frames)](torch.from_numpy(frames))]

    for batch in BATCHES:
        call(noise((batch, graph.spec.width_px, graph.spec.width_px, 3)))
    return call


def decoding_in_numpy(path: Path, maps: str, graph: MonitorGraph, threads: int) -> Callable[[Frames], list[Any]]:
    """What a device does when heatmaps leave the graph."""
    run = plain(path, threads)
    place = [maps, "predicted_loss", "embedding"].index(maps)

    def call(frames: Frames) -> list[Any]:
        answers = run(frames)
        keypoints_BJ2, scores_BJ = decode(answers[place], graph.stride, graph.peak)
        entropy_B = entropy(answers[place] * (REFERENCE_PEAK / graph.peak))
        evidence_B3 = np.stack([answers[1], entropy_B, 1 - scores_BJ.mean(axis=1)], axis=1)
        return [keypoints_BJ2, scores_BJ, answers[1], UNCALIBRATED.probability(evidence_B3), answers[2]]

    return call


def decode(maps_BJHW: npt.NDArray[np.float32], stride: float, peak: float) -> tuple[Any, Any]:
    """:func:`alpose.trainer.heatmaps.decode` in numpy, with the same five cells gathered."""
    cells = maps_BJHW.shape[2]
    flat_BJP = maps_BJHW.reshape(*maps_BJHW.shape[:2], -1)
    place_BJ1 = flat_BJP.argmax(axis=2)[..., None]
    near_BJ5 = np.clip(place_BJ1 + np.array([0, -1, 1, -cells, cells]), 0, cells * cells - 1)
    value_BJ5 = np.take_along_axis(flat_BJP, near_BJ5, axis=2)
    log_BJ5 = np.log(np.maximum(value_BJ5, 1e-3 * np.maximum(value_BJ5[..., :1], 1e-6)))
    before_BJ2, after_BJ2 = log_BJ5[..., 1::2], log_BJ5[..., 2::2]
    bend_BJ2 = 2 * log_BJ5[..., :1] - before_BJ2 - after_BJ2
    move_BJ2 = np.clip((after_BJ2 - before_BJ2) / (2 * np.maximum(bend_BJ2, 1e-6)), -0.5, 0.5)
    cell_BJ2 = np.concatenate([place_BJ1 % cells, place_BJ1 // cells], axis=2)
    inside_BJ2 = (bend_BJ2 > 1e-6) & (cell_BJ2 > 0) & (cell_BJ2 < cells - 1)
    joints_BJ2 = (cell_BJ2 + np.where(inside_BJ2, move_BJ2, 0)) * stride + (stride - 1) / 2
    return joints_BJ2.astype(np.float32), value_BJ5[..., 0] / np.float32(peak)


def entropy(maps_BJHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """:func:`alpose.trainer.heatmaps.entropy` at temperature 1, in numpy."""
    flat_BJP = maps_BJHW.reshape(*maps_BJHW.shape[:2], -1)
    shifted_BJP = flat_BJP - flat_BJP.max(axis=2, keepdims=True)
    weight_BJP = np.exp(shifted_BJP)
    total_BJ = weight_BJP.sum(axis=2)
    return np.asarray((np.log(total_BJ) - (weight_BJP * shifted_BJP).sum(axis=2) / total_BJ).mean(axis=1))
