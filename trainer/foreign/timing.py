"""What a detector costs beside somebody's net: both in one graph, against the net alone.

Seconds are CPU time of this process with one thread of ONNX Runtime, one image after the other as of a camera, everybody in
turns, so that other processes of a busy machine are not in them.

Shapes: N images, H W the input's height and width.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from alpose.runtime.engines.onnx import WEIGHTS_FOLDER, import_onnxruntime

from .heads import Detector
from .model import Answer, Readout
from .net import ForeignNet, prepare, with_outputs
from .reader import NetReader
from .recognition.graph import load_model, raised

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("alpose")

ROUNDS, WARMUP = 60, 4
"""Of the clock."""
QUICK = 0.1
"""The quantile of the rounds that is told."""
TAIL = "tail_"
"""Stands before the names of what reads a net's tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """CPU time of one image on one thread in ONNX Runtime, of the quickest tenth of rounds in turns."""

    pose_ms: float
    extra_ms: float
    """What reads the net's tensors, in one graph with the net."""

    @property
    def share(self) -> float:
        """Extra time over the net's."""
        return self.extra_ms / self.pose_ms


class Clock:
    """What detectors of a net cost, each measured once: its time does not depend on what it learned."""

    def __init__(self, net: ForeignNet, reader: NetReader) -> None:
        self.net, self.reader = net, reader
        self._known: dict[str, Cost] = {}

    def __call__(self, detectors: Mapping[str, Detector]) -> dict[str, Cost]:
        """Of these, by name; nothing where the packages that write ONNX are missing, or a graph is not written."""
        missing = {name: detector for name, detector in detectors.items() if name not in self._known}
        if missing:
            self._known |= costs(self.net, self.reader, missing)
        return {name: self._known[name] for name in detectors if name in self._known}


def costs(net: ForeignNet, reader: NetReader, detectors: Mapping[str, Detector]) -> dict[str, Cost]:
    """What each detector costs beside its net, by name; nothing where a graph cannot be written."""
    runtime = import_onnxruntime("timing a pose net")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry(WEIGHTS_FOLDER, str(net.path.resolve().parent))

    def session(model: bytes) -> Any:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    given = net.spec.input
    size = (given.batch or 1, given.height_px, given.width_px, 3)
    frames_NHW3 = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    theirs = load_model(net.path)
    turns = {"": session(with_outputs(net.path, theirs, net.spec.decoder.outputs))}
    try:
        for name, detector in detectors.items():
            turns[name] = session(in_one_graph(net, theirs, reader, detector, frames_NHW3))
    except Exception as error:  # the exporter has no family of errors, and a head is chosen without its time too
        log.warning("no time is measured, so that none is weighed: %s", str(error).strip().split("\n")[0][:300])
        return {}
    image = {given.name: prepare(frames_NHW3, given)}
    times: dict[str, list[float]] = {name: [] for name in turns}
    for round_ in range(ROUNDS + WARMUP):
        for name in turns if round_ % 2 else reversed(turns):
            turns[name].run(None, image)  # whoever had its turn before leaves the caches full of its own weights
            started = time.process_time()
            turns[name].run(None, image)
            times[name].append(1000 * (time.process_time() - started))
    # What other processes push out of the caches is read again at our cost: the quickest rounds have least of it.
    quick = {name: float(np.quantile(each[WARMUP:], QUICK)) for name, each in times.items()}
    alone = quick.pop("")
    return {name: Cost(pose_ms=alone, extra_ms=both - alone) for name, both in quick.items()}


def in_one_graph(
    net: ForeignNet, theirs: onnx.ModelProto, reader: NetReader, detector: Detector, frames_NHW3: npt.NDArray[np.uint8]
) -> bytes:
    """A net and what reads it as one ONNX graph, of the net's input and the five answers: for timing, not for a bundle."""
    import onnx

    readout = Readout(*detector.for_graph(reader)).eval()
    given = net(frames_NHW3)
    names = [f"tensor_{place}" for place in range(len(net.spec.tensors))]
    tensors = tuple(torch.from_numpy(np.array(given[name])) for name in net.spec.tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its exporter
        written = torch.onnx.export(
            readout, tensors, dynamo=True, input_names=names, output_names=list(Answer._fields), verbose=False
        )
    assert written is not None
    tail = written.model_proto
    model = onnx.ModelProto.FromString(with_outputs(net.path, theirs, net.spec.tensors))
    versions = [{each.domain: each.version for each in part.opset_import}[""] for part in (model, tail)]
    model, tail = (raised(part, version, max(versions), "the net, for timing,")
                   for part, version in zip((model, tail), versions, strict=True))  # fmt: skip
    for each in model.opset_import:
        each.version = max(versions) if each.domain == "" else each.version
    renamed = dict(zip(names, net.spec.tensors, strict=True))
    for node in tail.graph.node:
        node.input[:] = [renamed.get(name, f"{TAIL}{name}" if name else "") for name in node.input]
        node.output[:] = [f"{TAIL}{name}" for name in node.output]
    for tensor in tail.graph.initializer:
        tensor.name = f"{TAIL}{tensor.name}"
    model.graph.node.extend(tail.graph.node)
    model.graph.initializer.extend(tail.graph.initializer)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=f"{TAIL}{name}") for name in Answer._fields)
    return model.SerializeToString()
