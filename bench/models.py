"""What a head is worth on real pose nets of others: ``docs/results/models.json`` from runs of ``alpose-train detect --pose``.

::

    alpose-train detect --pose movenet-lightning.onnx --crop box --dataset lsp --views 3 --out runs/movenet-lightning
    python -m bench.models --models MODELS runs/* -o docs/results/models.json

Each run is taken as it is. The time is that of the one graph that a bundle holds, against the net alone: CPU time of the
process in ONNX Runtime, one thread, one image, in turns.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from alpose.export.foreign import ForeignGraph
from alpose.runtime.engines.onnx import import_onnxruntime
from alpose.runtime.io import fields_to_json, write_json
from alpose.trainer.foreign.detect import RESULT, ForeignDetect, load_result
from alpose.trainer.foreign.graph import load_model
from alpose.trainer.foreign.heads import build_detector
from alpose.trainer.foreign.learning import config_of
from alpose.trainer.foreign.net import open_net, prepare, with_outputs
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognise import recognise

ROUNDS = 60


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--models", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False))
def main(runs: tuple[Path, ...], models: Path, out: Path) -> None:
    """Write one file of all runs."""
    found = []
    for run in runs:
        result = load_result(run / RESULT)
        found.append({**fields_to_json(result), "one_graph": cost(models / result.file, result)})
        click.echo(f"{result.file}: {found[-1]['one_graph']}")
    write_json(out, {"nets": found})


def cost(path: Path, result: ForeignDetect) -> dict[str, float]:
    """CPU milliseconds of the net alone, and what the head ``epck`` adds within one graph; medians over rounds in turns."""
    torch.set_num_threads(1)
    net = open_net(path, recognise(path, crop=result.crop))
    reader = NetReader(net.spec, net.shapes)
    joints = tuple(net.spec.skeleton.index(name) for name in result.joints)
    head = build_detector(config_of("epck", reader, joints), len(net.spec.skeleton)).eval()
    size = (2, net.spec.input.height_px, net.spec.input.width_px, 3)
    frames = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    merged = ForeignGraph(net, reader, head, head_name="epck", frames_NHW3=frames).merged()
    runtime = import_onnxruntime("timing a pose net")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    providers = ["CPUExecutionProvider"]
    # What the head does not need, such as a mask of the person, is in neither graph.
    theirs = with_outputs(path, load_model(path), net.spec.decoder.outputs)
    alone = runtime.InferenceSession(theirs, options, providers=providers)
    both = runtime.InferenceSession(merged.SerializeToString(), options, providers=providers)
    image = prepare(frames[:1], net.spec.input)
    turns: tuple[Callable[[], Any], ...] = (
        lambda: alone.run(None, {net.spec.input.name: image}),
        lambda: both.run(None, {both.get_inputs()[0].name: frames[:1]}),
    )
    times: list[list[float]] = [[], []]
    for turn in range(ROUNDS + 5):
        for which in (0, 1) if turn % 2 else (1, 0):
            started = time.process_time()
            turns[which]()
            if turn >= 5:
                times[which].append(1000 * (time.process_time() - started))
    extra_ms = statistics.median(b - a for a, b in zip(*times, strict=True))
    pose_ms = statistics.median(times[0])
    return {"pose_ms": round(pose_ms, 3), "extra_ms": round(extra_ms, 3), "share": round(extra_ms / pose_ms, 4)}


if __name__ == "__main__":
    main()
