"""The exported graph against PyTorch on the same weights, its parts against the whole, and where to cut crops.

``python -m bench.export CHECKPOINT``; docs/benchmarks.md says what is timed. Every contestant of a table takes turns
with the others in one process; speed does not depend on what is in the pictures, so they are noise.

Shapes: B batch, S crop side, J joints, H W heatmap or frame, R rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from alpose.export.graph import UNCALIBRATED, MonitorGraph, to_onnx
from alpose.export.onnx_graph import import_onnx
from alpose.export.precision import to_fp16, to_int8
from alpose.runtime.crop import AFTER, BETWEEN, Crop, cut, square_crop, taps
from alpose.runtime.engines import OnnxEngine
from alpose.runtime.errors import ConfigError
from alpose.runtime.outputs import OUTPUT_NAMES
from alpose.trainer.checkpoint import PoseModel, load, new_head
from alpose.trainer.device import machine
from alpose.trainer.models.heads import HeadName
from alpose.trainer.results import write_json
from alpose.trainer.scoring import REFERENCE_PEAK

from ._measure import (
    RESULTS,
    Bench,
    Task,
    interleave,
    load_average,
    machine_facts,
    paired,
    rates,
    spread,
    table,
)  # fmt: skip

Frames = npt.NDArray[np.uint8]
Key = tuple[str, int]
"""What is timed: a contestant and a batch size."""

BATCHES = (1, 8)
FRAME_HW = (480, 640)
PERSON = (210.0, 40.0, 400.0, 450.0)
"""Box of a standing person in the frame."""

SLIM: HeadName = "ll++"

SAYS = {
    "onnxruntime fp32": "alpose.runtime.engines.OnnxEngine on the CPU: uint8 crops to the five outputs",
    "onnxruntime fp16": "the same; ONNX Runtime's CPU kernels compute in float32, so the casts are all that differs",
    "onnxruntime int8": "the same, QDQ",
    "torch eager": "the same MonitorGraph in PyTorch, channels last, inference mode, outputs to numpy",
    "torch.compile": "the same through torch.compile, compiled for each batch size",
    "heatmaps to numpy": "the graph cut before decoding; decoding, entropy and calibration in numpy",
    "pose alone": "the graph without embedding, doubt, loss head and calibration: keypoints and scores",
    "without loss head": "the graph without loss head, doubt and calibration",
    "with the slim head": f"the whole graph with the head {SLIM} (a global average and six small layers)",
}
RATIOS = (
    *(("onnxruntime fp32", other) for other in ("torch eager", "torch.compile", "heatmaps to numpy")),
    ("onnxruntime fp16", "onnxruntime fp32"),
    ("onnxruntime int8", "onnxruntime fp32"),
    *((one, "pose alone") for one in ("without loss head", "with the slim head", "onnxruntime fp32")),
)
"""Images/s of the first over those of the second: above 1 the first is faster."""


# --- Contestants


def line_up(
    model: PoseModel, head: HeadName, folder: Path, threads: int, compiler: str | None
) -> tuple[dict[str, Callable[[Frames], object]], dict[str, str], dict[str, int]]:
    """Who runs, who does not and why, and the sizes of the files in bytes."""
    graph = MonitorGraph.from_model(model, head)
    size = graph.spec.size_px
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
    import onnxruntime

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
        call(noise((batch, graph.spec.size_px, graph.spec.size_px, 3)))
    return call


def decoding_in_numpy(path: Path, maps: str, graph: MonitorGraph, threads: int) -> Callable[[Frames], list[Any]]:
    """What a device does when heatmaps leave the graph."""
    run, spec = plain(path, threads), graph.spec
    place = [maps, "predicted_loss", "embedding"].index(maps)

    def call(frames: Frames) -> list[Any]:
        answers = run(frames)
        keypoints_BJ2, scores_BJ = decode(answers[place], spec.stride, spec.peak)
        entropy_B = entropy(answers[place] * (REFERENCE_PEAK / spec.peak))
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


# --- Cropping


def cropping(folder: Path, size_px: int, threads: int) -> dict[str, Task]:
    """One crop of one frame in numpy, and the same resampling as two matrix products in ONNX Runtime.

    The weights of the products are inputs: a graph has one shape and every box its own weights. Making them is part of
    the work on both sides.
    """
    frame_HW3, crop = noise((*FRAME_HW, 3)), square_crop(PERSON, margin=1.25, size_px=size_px)
    path = folder / "crop.onnx"
    path.write_bytes(crop_graph(size_px))
    running = session(path, threads)

    def in_graph() -> npt.NDArray[np.uint8]:
        given = {"frame": frame_HW3, "rows": weights(crop.y0, crop, FRAME_HW[0]),
                 "columns": weights(crop.x0, crop, FRAME_HW[1])}  # fmt: skip
        return running.run(None, given)[0]

    worst = int(np.abs(in_graph().astype(int) - cut(frame_HW3, crop)).max())
    if worst:  # the arithmetic is exact: see alpose.runtime.crop
        raise ConfigError(
            f"the crop in the graph differs from alpose.runtime.cut by {worst} levels: it is not the same work"
        )
    return {"crop in numpy": lambda: cut(frame_HW3, crop), "crop in the graph": in_graph}


def weights(start: float, crop: Crop, length: int) -> npt.NDArray[np.float32]:
    """The resampling filter along one axis as a dense matrix (S, length)."""
    tap_KS, weight_KS = taps(start, crop, length)
    dense = np.zeros((crop.size_px, length), dtype=np.float32)
    np.add.at(dense, (np.broadcast_to(np.arange(crop.size_px), tap_KS.shape), tap_KS), weight_KS)
    return dense


def crop_graph(size_px: int) -> bytes:
    """frame uint8 (H, W, 3), rows (S, H), columns (S, W) to uint8 (S, S, 3)."""
    onnx = import_onnx()
    helper, kinds = onnx.helper, onnx.TensorProto
    height, width = FRAME_HW
    nodes = [
        helper.make_node("Cast", ["frame"], ["float"], to=kinds.FLOAT),
        helper.make_node("Reshape", ["float", "flat"], ["lines"]),
        helper.make_node("MatMul", ["rows", "lines"], ["rows_sum"]),
        helper.make_node("Div", ["rows_sum", "between"], ["rows_share"]),
        helper.make_node("Add", ["rows_share", "half"], ["rows_up"]),
        helper.make_node("Floor", ["rows_up"], ["short"]),
        helper.make_node("Reshape", ["short", "split"], ["parted"]),
        helper.make_node("MatMul", ["columns", "parted"], ["sum"]),
        helper.make_node("Div", ["sum", "after"], ["share"]),
        helper.make_node("Add", ["share", "half"], ["up"]),
        helper.make_node("Floor", ["up"], ["level"]),
        helper.make_node("Cast", ["level"], ["crop"], to=kinds.UINT8),
    ]
    constants = {"flat": np.array([height, width * 3]), "split": np.array([size_px, width, 3]),
                 "half": np.float32(0.5), "between": np.float32(BETWEEN), "after": np.float32(AFTER)}  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("frame", kinds.UINT8, (height, width, 3)),
        helper.make_tensor_value_info("rows", kinds.FLOAT, (size_px, height)),
        helper.make_tensor_value_info("columns", kinds.FLOAT, (size_px, width)),
    ]
    output = helper.make_tensor_value_info("crop", kinds.UINT8, (size_px, size_px, 3))
    initial = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "crop", inputs, [output], initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


# --- Measuring


def measure(
    contestants: Mapping[str, Callable[[Frames], object]], size_px: int, *, rounds: int, warmup: int, calls: int
) -> dict[str, Any]:
    """Images per second of everybody at every batch size, and the ratios within each round."""
    measurements: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for batch in BATCHES:
        frames = noise((batch, size_px, size_px, 3))
        tasks = {name: partial(call, frames) for name, call in contestants.items()}
        seconds = interleave(tasks, rounds=rounds, warmup=warmup, calls=max(4, calls // batch))
        rate = {name: rates(seconds_R, batch) for name, seconds_R in seconds.items()}
        measurements += [
            {"contestant": name, "batch": batch, "seconds_per_round": seconds[name], "images_per_s": asdict(spread(rate[name])),
             "ms_per_call": asdict(spread([1e3 * value for value in seconds[name]]))}
            for name in contestants
        ]  # fmt: skip
        for one, other in RATIOS:
            if one in rate and other in rate:
                per_round = paired(rate[one], rate[other])
                ratios.append({"of": one, "to": other, "batch": batch, "per_round": per_round,
                               "ratio": asdict(spread(per_round))})  # fmt: skip
    return {"measurements": measurements, "ratios": ratios, "loss_head": _shares(measurements)}


def _shares(measurements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each part takes of the whole graph's time, from the paired rounds."""
    seconds = {(m["contestant"], m["batch"]): m["seconds_per_round"] for m in measurements}
    found = []
    for batch in BATCHES:
        pose = seconds["pose alone", batch]
        for name in ("onnxruntime fp32", "with the slim head"):
            share_R = [1 - bare / whole for bare, whole in zip(pose, seconds[name, batch], strict=True)]
            found.append({"graph": name, "batch": batch, "share_of_all_monitoring": asdict(spread(share_R))})
    return found


def measure_crops(tasks: Mapping[str, Task], *, rounds: int, warmup: int, calls: int) -> dict[str, Any]:
    """Milliseconds of one crop."""
    seconds = interleave(tasks, rounds=rounds, warmup=warmup, calls=calls)
    milliseconds = {name: [1e3 * value for value in seconds_R] for name, seconds_R in seconds.items()}
    ratio = paired(seconds["crop in the graph"], seconds["crop in numpy"])
    return {
        "frame": list(FRAME_HW), "box": list(PERSON),
        "measurements": [{"contestant": name, "ms_per_round": values, "ms": asdict(spread(values))}
                         for name, values in milliseconds.items()],
        "graph_over_numpy": asdict(spread(ratio)),
    }  # fmt: skip


def show(result: Mapping[str, Any]) -> str:
    """The result for people."""
    settings = result["settings"]
    head = ("contestant", "batch", "images/s", "min", "max", "ms per call")
    rows = [
        (m["contestant"], str(m["batch"]), *(f"{m['images_per_s'][key]:.4g}" for key in ("median", "min", "max")),
         f"{m['ms_per_call']['median']:.3g}")
        for m in result["measurements"]
    ]  # fmt: skip
    ratios = [
        (f"{r['of']} / {r['to']}", str(r["batch"]), *(f"{r['ratio'][key]:.3g}" for key in ("median", "min", "max")))
        for r in result["ratios"]
    ]
    shares = [
        (s["graph"], str(s["batch"]), *(f"{s['share_of_all_monitoring'][key]:.1%}" for key in ("median", "min", "max")))
        for s in result["loss_head"]
    ]
    crops = [(m["contestant"], *(f"{m['ms'][key]:.3g}" for key in ("median", "min", "max")))
             for m in result["cropping"]["measurements"]]  # fmt: skip
    spread_head = ("median", "min", "max")
    return "\n".join(
        [
            f"{settings['stacks']} stacks of {settings['channels']}, {settings['size_px']} px, head {settings['head']}, "
            f"{settings['threads']} threads, {settings['rounds']} rounds\n",
            table(head, rows),
            "\n" + table(("ratio, paired by round", "batch", *spread_head), ratios),
            "\n" + table(("share of the time that is not pose", "batch", *spread_head), shares),
            "\n" + table(("a crop of a 640 x 480 frame, ms", *spread_head), crops),
            *(f"\nleft out: {name}: {reason}" for name, reason in result["left_out"].items()),
        ]
    )


@click.command(name="bench.export", cls=Bench)
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--head", help="[default: ll++conv, or the only one]")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--warmup", default=2, show_default=True, type=click.IntRange(0), help="Rounds that do not count.")
@click.option("--calls", default=32, show_default=True, type=click.IntRange(1),
              help="Images behind one number, in four calls at least.")  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1), help="Of torch and of ONNX Runtime. [default: the cores that are free]"
)
@click.option("--compiler", default="inductor", show_default=True, help="Of torch.compile; none switches it off.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS / "export.json")
def main(
    checkpoint: Path,
    head: str | None,
    rounds: int,
    warmup: int,
    calls: int,
    threads: int | None,
    compiler: str,
    out: Path,
) -> None:
    """Images per second of the exported graph, of PyTorch, and of the graph's parts."""
    before = load_average()
    used, model = machine("cpu", "fp32"), load(checkpoint)
    threads = threads or torch.get_num_threads()  # machine() leaves cores to programs that run already
    torch.set_num_threads(threads)
    name = _head(model, head)
    with tempfile.TemporaryDirectory() as folder:
        contestants, left_out, sizes = line_up(model, name, Path(folder), threads,
                                               None if compiler == "none" else compiler)  # fmt: skip
        size_px = model.crop.size_px
        measured = measure(contestants, size_px, rounds=rounds, warmup=warmup, calls=calls)
        crops = measure_crops(cropping(Path(folder), size_px, threads), rounds=rounds, warmup=warmup,
                              calls=calls)  # fmt: skip
    result = {
        "bench": "export",
        "machine": machine_facts(used),
        "load_average": {"before": before, "after": load_average()},
        "settings": {**asdict(model.pose.config), "size_px": size_px, "head": name, "rounds": rounds, "warmup": warmup,
                     "calls": calls, "threads": threads, "outputs": list(OUTPUT_NAMES)},
        "contestants": SAYS, "file_bytes": sizes, "left_out": left_out, **measured, "cropping": crops,
    }  # fmt: skip
    print(show(result))
    print(f"\nwritten: {write_json(out, result)}")


def _head(model: PoseModel, name: str | None) -> HeadName:
    wanted = name or ("ll++conv" if "ll++conv" in model.heads or len(model.heads) != 1 else next(iter(model.heads)))
    for known in model.heads:
        if known == wanted:
            return known
    raise ConfigError(
        f"the checkpoint has the loss heads {', '.join(model.heads) or 'none'}, not {wanted!r}: give --head"
    )


if __name__ == "__main__":
    main()
