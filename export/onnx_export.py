"""Writing a :class:`~.graph.MonitorGraph` as an ONNX file, and the facts that it carries about itself."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import alpose
from alpose.runtime.errors import ConfigError, MissingExtraError
from alpose.runtime.io import write_atomically
from alpose.runtime.types import OUTPUT_NAMES

from .graph import MonitorGraph
from .onnx_graph import BATCH, INPUT, OPSET, OnnxFacts, check_model, import_onnx, set_metadata, tidy

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("alpose")


def to_onnx(graph: MonitorGraph, path: Path, *, metadata: Mapping[str, str] | None = None) -> OnnxFacts:
    """Write a graph as one ONNX file with the weights inside.

    It goes through ``torch.export`` (the "dynamo" exporter): the older one, through TorchScript, is announced to be
    removed, leaves unnamed symbolic sizes in outputs and computes shapes in the graph.

    Args:
        graph: what to write.
        path: of the file.
        metadata: more facts for ``metadata_props``, their keys get the prefix ``alpose.``.

    Raises:
        ConfigError: the net cannot be exported with a dynamic batch, or the graph holds control flow.
        MissingExtraError: the packages of ``alpose[export]`` are not installed.
    """
    model = _exported(graph)
    tidy(model, graph.spec)
    _describe(model, graph, metadata or {})
    facts = check_model(model, graph.spec)
    if facts.outside_tensorrt:
        log.warning("%s: TensorRT 10 does not document the operators %s; ONNX Runtime runs the graph, an engine may not "
                    "build", path.name, ", ".join(facts.outside_tensorrt))  # fmt: skip
    write_atomically(path, model.SerializeToString(deterministic=True))
    return facts


def _exported(graph: MonitorGraph) -> onnx.ModelProto:
    import_onnx()
    try:
        import onnxscript  # noqa: F401  # torch.onnx imports it late and then fails in its own words
    except ImportError as error:
        raise MissingExtraError("onnxscript", "exporting", "export") from error
    size = graph.spec.size_px
    # Two frames: a batch of one would be taken for a constant.
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    batch = torch.export.Dim(BATCH, min=1)
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(graph, (example,), dynamic_shapes={INPUT: {0: batch}}, strict=False)
            program = torch.onnx.export(exported, dynamo=True, opset_version=OPSET, input_names=[INPUT],
                                        output_names=list(OUTPUT_NAMES), verbose=False)  # fmt: skip
    except Exception as error:  # the exporter has no family of errors
        reason = str(error).strip().splitlines()
        raise ConfigError(f"the net cannot be exported with a dynamic batch ({type(error).__name__}): "
                          f"{' '.join(reason[:6])}. Its forward pass must not depend on values or on the batch "
                          "size") from error  # fmt: skip
    if program is None:
        raise ConfigError(
            "torch.onnx.export returned nothing: this version of torch has no exporter through torch.export"
        )
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a remark of torch on its own pytrees, one on torchvision's absence, and the optimiser's diary."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx._internal.exporter._registration", "onnx_ir", "onnxscript")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _describe(model: onnx.ModelProto, graph: MonitorGraph, metadata: Mapping[str, str]) -> None:
    spec = graph.spec
    model.producer_name, model.producer_version = "alpose", alpose.__version__
    model.domain, model.model_version = "alpose", 1
    model.doc_string = "Pose and its probability of failure from RGB crops. Facts under alpose.* in metadata_props."
    calibration = graph.calibration.to_json() if graph.calibration else None
    facts = {
        "schema": "1",
        "precision": "fp32",
        "head": spec.head,
        "skeleton": json.dumps(spec.skeleton.to_json()),
        "input": json.dumps({"name": INPUT, "dtype": "uint8", "shape": [BATCH, spec.size_px, spec.size_px, 3],
                             "colour": "RGB"}),
        "outputs": json.dumps({name: list(spec.shape_of(name)) for name in OUTPUT_NAMES}),
        "calibration": json.dumps(calibration),
        **metadata,
    }  # fmt: skip
    set_metadata(model, facts)
