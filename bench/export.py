"""The exported graph against PyTorch on the same weights, its parts against the whole, and where to cut crops.

``python -m bench.export CHECKPOINT``; docs/benchmarks.md says what is timed. Every contestant of a table takes turns
with the others in one process; speed does not depend on what is in the pictures, so they are noise.

Shapes: R rounds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import write_json
from alpose.runtime.types import OUTPUT_NAMES
from alpose.trainer.checkpoint import PoseModel, load
from alpose.trainer.device import device_context
from alpose.trainer.models.heads import HeadName

from .parts.export_contestants import BATCHES, SAYS, Frames, line_up, noise
from .parts.export_crop import FRAME_HW, PERSON, cropping
from .parts.measure import (
    RESULTS,
    Bench,
    Clock,
    Task,
    interleave,
    load_average,
    machine_facts,
    paired,
    rates,
    spread,
    table,
)  # fmt: skip

RATIOS = (
    *(("onnxruntime fp32", other) for other in ("torch eager", "torch.compile", "heatmaps to numpy")),
    ("onnxruntime fp16", "onnxruntime fp32"),
    ("onnxruntime int8", "onnxruntime fp32"),
    *((one, "pose alone") for one in ("without loss head", "with the slim head", "onnxruntime fp32")),
)
"""Images/s of the first over those of the second: above 1 the first is faster."""
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(
    contestants: Mapping[str, Callable[[Frames], object]], size_px: int, *, rounds: int, warmup: int, calls: int,
    clock: Clock = time.perf_counter,
) -> dict[str, Any]:  # fmt: skip
    """Images per second of everybody at every batch size, and the ratios within each round."""
    measurements: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for batch in BATCHES:
        frames = noise((batch, size_px, size_px, 3))
        tasks = {name: partial(call, frames) for name, call in contestants.items()}
        seconds = interleave(tasks, rounds=rounds, warmup=warmup, calls=max(4, calls // batch), clock=clock)
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


def measure_crops(
    tasks: Mapping[str, Task], *, rounds: int, warmup: int, calls: int, clock: Clock = time.perf_counter
) -> dict[str, Any]:
    """Milliseconds of one crop."""
    seconds = interleave(tasks, rounds=rounds, warmup=warmup, calls=calls, clock=clock)
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
@click.option("--head", help="[default: epck, else ll++conv, or the only one]")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--warmup", default=2, show_default=True, type=click.IntRange(0), help="Rounds that do not count.")
@click.option("--calls", default=32, show_default=True, type=click.IntRange(1),
              help="Images behind one number, in four calls at least.")  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1), help="Of torch and of ONNX Runtime. [default: the cores that are free]"
)
@click.option("--clock", "clock_name", default="wall", show_default=True, type=click.Choice(list(CLOCKS)),
              help="cpu: CPU time of this process, for a machine that is busy with other work; only with one thread.")  # fmt: skip
@click.option("--compiler", default="inductor", show_default=True, help="Of torch.compile; none switches it off.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS / "export.json")
def main(
    checkpoint: Path,
    head: str | None,
    rounds: int,
    warmup: int,
    calls: int,
    threads: int | None,
    clock_name: str,
    compiler: str,
    out: Path,
) -> None:
    """Images per second of the exported graph, of PyTorch, and of the graph's parts."""
    before = load_average()
    used, model = device_context("cpu", "fp32"), load(checkpoint)
    clock = CLOCKS[clock_name]
    threads = threads or torch.get_num_threads()  # device_context() leaves cores to programs that run already
    torch.set_num_threads(threads)
    name = _head(model, head)
    with tempfile.TemporaryDirectory() as folder:
        contestants, left_out, sizes = line_up(model, name, Path(folder), threads,
                                               None if compiler == "none" else compiler)  # fmt: skip
        size_px = model.crop.size_px
        measured = measure(contestants, size_px, rounds=rounds, warmup=warmup, calls=calls, clock=clock)
        crops = measure_crops(cropping(Path(folder), size_px, threads), rounds=rounds, warmup=warmup,
                              calls=calls, clock=clock)  # fmt: skip
    result = {
        "bench": "export",
        "machine": machine_facts(used),
        "load_average": {"before": before, "after": load_average()},
        "settings": {**asdict(model.pose.config), "size_px": size_px, "head": name, "rounds": rounds, "warmup": warmup,
                     "calls": calls, "clock": clock_name, "threads": threads, "outputs": list(OUTPUT_NAMES)},
        "contestants": SAYS, "file_bytes": sizes, "left_out": left_out, **measured, "cropping": crops,
    }  # fmt: skip
    print(show(result))
    print(f"\nwritten: {write_json(out, result)}")


def _head(model: PoseModel, name: str | None) -> HeadName:
    usual = next((usual for usual in ("epck", "ll++conv") if usual in model.heads), "ll++conv")
    wanted = name or (next(iter(model.heads)) if len(model.heads) == 1 else usual)
    for known in model.heads:
        if known == wanted:
            return known
    raise ConfigError(
        f"the checkpoint has the loss heads {', '.join(model.heads) or 'none'}, not {wanted!r}: give --head"
    )


if __name__ == "__main__":
    main()
