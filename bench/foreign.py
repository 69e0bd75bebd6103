"""What watching adds to somebody's pose net: their file alone beside the bundle that it became, call by call in one run.

``python -m bench.foreign NAME.alpose NET.onnx [NAME.alpose NET.onnx …]``. Both get the same crop in the same round, ten times in a
row, as frames come from a camera, every second round in the opposite order. Their file is fed what it takes, prepared before and not timed; the bundle is fed bytes, and
prepares them, decodes, reads the evidence, judges and calibrates. Seconds are CPU time of this process with one thread:
other processes of a busy machine are not in them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from alpose.runtime.bundle import Bundle
from alpose.runtime.engines.onnx import OnnxEngine, import_onnxruntime
from alpose.runtime.errors import ConfigError
from alpose.runtime.io import from_json, write_json
from alpose.trainer.device import device_context
from alpose.trainer.foreign.net import prepare
from alpose.trainer.foreign.spec import PoseSpec

from .parts.measure import RESULTS, Bench, Task, interleave, load_average, machine_facts, paired, spread, table

CALLS = 10
"""In a row, of which the mean counts: right after another net, its weights are in the caches."""
ALONE, WATCHED = "their file alone", "the bundle"


def pair_of(bundle: Bundle, path: Path) -> tuple[dict[str, Task], float]:
    """Both contestants on one golden frame, and how far their keypoints' raw outputs say that it is the same net."""
    spec = from_json(PoseSpec, bundle.manifest.provenance["spec"], "spec")
    runtime = import_onnxruntime("timing a net")
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    if [value.name for value in session.get_inputs()] != [spec.input.name]:
        raise ConfigError(f"{path} is not the net of {bundle.folder}: it takes {session.get_inputs()[0].name}")
    frame_1HW3 = np.ascontiguousarray(bundle.golden.frames_GHW3[:1])
    given = prepare(frame_1HW3, spec.input)
    engine = OnnxEngine(bundle, threads=1)
    outputs = [value.name for value in session.get_outputs()]
    moved = bundle.manifest.parity.get("their_file_alone_max_px", {}).get("value", float("nan"))
    return {ALONE: partial(session.run, outputs, {spec.input.name: given}), WATCHED: partial(engine, frame_1HW3)}, moved


def measure(bundle: Bundle, path: Path, rounds: int, warmup: int) -> dict[str, Any]:
    """One net."""
    tasks, moved = pair_of(bundle, path)
    seconds = interleave(tasks, rounds=rounds, warmup=warmup, calls=CALLS, clock=time.process_time)
    ratio = spread(paired(seconds[WATCHED], seconds[ALONE]))
    return {
        "bundle": bundle.manifest.name, "net": path.name, "head": bundle.manifest.head,
        "precision": bundle.manifest.precision, "keypoints_moved_px": moved,
        "ms": {name: asdict(spread([1000 * value for value in values])) for name, values in seconds.items()},
        "ratio": asdict(ratio), "extra_percent": 100 * (ratio.median - 1),
    }  # fmt: skip


def show(results: Sequence[dict[str, Any]]) -> str:
    """For people."""
    rows = [(each["net"], each["head"], f"{each['ms'][ALONE]['median']:.2f}", f"{each['ms'][WATCHED]['median']:.2f}",
             f"{each['extra_percent']:+.1f} %", f"{each['keypoints_moved_px']:g}") for each in results]  # fmt: skip
    return table(("net", "head", "alone, ms", "bundle, ms", "extra", "keypoints moved, px"), rows)


@click.command(name="bench.foreign", cls=Bench)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=50, show_default=True, type=click.IntRange(4))
@click.option("--warmup", default=2, show_default=True, type=click.IntRange(0), help="Rounds that do not count.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS / "foreign.json")
def main(paths: tuple[Path, ...], rounds: int, warmup: int, out: Path) -> None:
    """CPU milliseconds of one image by somebody's net alone, and by the bundle made of it: NAME.alpose NET.onnx …."""
    if len(paths) % 2:
        raise ConfigError(f"give a bundle and the net that it was made of, then the next pair: got {len(paths)} paths")
    before = load_average()
    results = [measure(Bundle.open(folder), net, rounds, warmup)
               for folder, net in zip(paths[::2], paths[1::2], strict=True)]  # fmt: skip
    print(show(results))
    facts = {"bench": "foreign", "machine": machine_facts(device_context("cpu", "fp32")),
             "load_average": {"before": before, "after": load_average()},
             "settings": {"rounds": rounds, "calls": CALLS, "warmup": warmup, "threads": 1, "clock": "CPU time of the process"},
             "results": results}  # fmt: skip
    print(f"\nwritten: {write_json(out, facts)}")


if __name__ == "__main__":
    main()
