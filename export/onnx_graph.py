"""The ONNX file of a bundle: writing a :class:`~.graph.MonitorGraph`, the facts that it carries, and the check of any graph.

Shapes: N batch, S crop side, J joints, D embedding.
"""

from __future__ import annotations

import ast
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alpose
from alpose.runtime.errors import ConfigError, MissingExtraError
from alpose.runtime.io import write_atomically
from alpose.runtime.skeleton import Skeleton
from alpose.runtime.types import AXIS_LENGTHS, OUTPUT_AXES, output_names

if TYPE_CHECKING:
    import onnx

    from .graph import CalibratedGraph, MonitorGraph

log = logging.getLogger("alpose")

"""What every graph that is written gives."""

OPSET = 18
"""The lowest that PyTorch's exporter writes without converting back; TensorRT 10.3 (JetPack 6) reads up to 20."""

INPUT, BATCH = "frames", "N"
"""Name of the input and of its only dynamic axis."""
FREE = "free"
"""An axis of a tensor within, whose length changes from picture to picture."""

TRUNK, FLOAT32_PARTS = (
    "trunk",
    ("normalise", "head", "embedding", "decode", "doubt", "calibrate", "confidence", "reader"),
)
"""A node is named ``part/Operator_number``; all but the trunk stay float32 in every precision."""

CONTROL_FLOW = frozenset({"Loop", "If", "Scan", "SequenceAt", "SequenceConstruct", "SequenceInsert", "SplitToSequence"})

_TENSORRT_10 = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu Clip
Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div
Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU Hardmax
HardSigmoid HardSwish Identity If ImageScaler InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less
LessOrEqual Log LogSoftmax Loop LpNormalization LpPool LRN LSTM MatMul Max MaxPool Mean MeanVarianceNormalization Min
Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear RandomNormal
RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign
Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze
Upsample Where Xor
"""
TENSORRT_OPERATORS = frozenset(_TENSORRT_10.split())
"""What the parser of TensorRT 10.1 reads, from its own matrix (docs/operators.md of onnx/onnx-tensorrt)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """What a graph takes and gives, in numbers and names."""

    skeleton: Skeleton
    height_px: int
    width_px: int
    """Of the input."""
    head: str
    """Name of the loss head."""
    dimensions: int
    """D."""
    batch: str | int = BATCH
    """The first axis: a name where it takes any number of images, otherwise that number."""
    people: bool = False
    """Whether it gives candidates for several people on a whole frame."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names, in the graph's order."""
        return output_names(confidence=True, people=self.people)

    @property
    def input_shape(self) -> tuple[str | int, ...]:
        """Of ``frames``."""
        return (self.batch, self.height_px, self.width_px, 3)

    def shape_of(self, name: str) -> tuple[str | int, ...]:
        """Shape of an output, with N by name."""
        length: dict[str, str | int] = {"N": self.batch, "J": len(self.skeleton), "D": self.dimensions, **AXIS_LENGTHS}
        return tuple(length[axis] for axis in OUTPUT_AXES[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFacts:
    """What was written."""

    opset: int
    operators: Mapping[str, int]
    """Nodes by operator."""
    outside_tensorrt: tuple[str, ...]
    """Operators that TensorRT 10 does not document."""


def import_onnx() -> Any:
    """The package ``onnx``, or an error that names the extra."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "exporting", "export") from error
    return onnx


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
    import torch

    spec = graph.spec
    # Two frames: a batch of one would be taken for a constant.
    example = torch.zeros(2, spec.height_px, spec.width_px, 3, dtype=torch.uint8)
    model = exported(graph, (example,), [INPUT], {INPUT: {0: BATCH}}, OPSET)
    describe(model, graph, metadata or {})
    facts = check_model(model, spec)
    warn_outside_tensorrt(path, facts)
    write_atomically(path, model.SerializeToString(deterministic=True))
    return facts


def warn_outside_tensorrt(path: Path, facts: OnnxFacts) -> None:
    """Say which operators an engine may not have."""
    if facts.outside_tensorrt:
        log.warning("%s: TensorRT 10 does not document the operators %s; ONNX Runtime runs the graph, an engine may not "
                    "build", path.name, ", ".join(facts.outside_tensorrt))  # fmt: skip


def exported(
    graph: CalibratedGraph, examples: Sequence[Any], inputs: Sequence[str], axes: Mapping[str, Any] | None, opset: int
) -> onnx.ModelProto:
    """A graph as ONNX, tidy: through ``torch.export``, with the six outputs.

    Args:
        graph: what to write.
        examples: its inputs.
        inputs: their names in the file.
        axes: the dynamic axes of the arguments of ``graph.forward``, by name; None where there is none.
        opset: to write.
    """
    import torch

    import_onnx()
    try:
        import onnxscript  # noqa: F401  # torch.onnx imports it late and then fails in its own words
    except ImportError as error:
        raise MissingExtraError("onnxscript", "exporting", "export") from error
    lengths = {BATCH: torch.export.Dim(BATCH, min=1), FREE: torch.export.Dim.AUTO}
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(graph, tuple(examples), dynamic_shapes=_named(axes, lengths), strict=False)
            written = torch.onnx.export(program, dynamo=True, opset_version=opset, input_names=list(inputs),
                                        output_names=list(graph.spec.outputs), verbose=False)  # fmt: skip
    except Exception as error:  # the exporter has no family of errors
        reason = str(error).strip().splitlines()
        raise ConfigError(f"the net cannot be exported with a dynamic batch ({type(error).__name__}): "
                          f"{' '.join(reason[:6])}. Its forward pass must not depend on values or on the batch "
                          "size") from error  # fmt: skip
    if written is None:
        raise ConfigError(
            "torch.onnx.export returned nothing: this version of torch has no exporter through torch.export"
        )
    model = written.model_proto
    tidy(model, graph.spec)
    return model


def _named(axes: Any, lengths: Mapping[str, Any]) -> Any:
    """The same with torch's object in place of the name of an axis."""
    if isinstance(axes, Mapping):
        return {key: _named(value, lengths) for key, value in axes.items()}
    if isinstance(axes, tuple):
        return tuple(_named(value, lengths) for value in axes)
    return lengths.get(axes, axes)


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


def describe(model: onnx.ModelProto, graph: CalibratedGraph, metadata: Mapping[str, str]) -> None:
    """Set what the file says of itself."""
    spec = graph.spec
    model.producer_name, model.producer_version = "alpose", alpose.__version__
    model.domain, model.model_version = "alpose", 1
    model.doc_string = "Pose and its probability of failure from RGB crops. Facts under alpose.* in metadata_props."
    calibration = graph.calibration.to_json() if graph.calibration else None
    facts = {
        "schema": "2",
        "precision": "fp32",
        "head": spec.head,
        "skeleton": json.dumps(spec.skeleton.to_json()),
        "input": json.dumps({"name": INPUT, "dtype": "uint8", "shape": list(spec.input_shape),
                             "colour": "RGB"}),
        "outputs": json.dumps({name: list(spec.shape_of(name)) for name in spec.outputs}),
        "calibration": json.dumps(calibration),
        **metadata,
    }  # fmt: skip
    set_metadata(model, facts)


def tidy(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Name nodes by their part, name the batch axis, and drop the exporter's notes: they hold paths of source files."""
    count: Counter[str] = Counter()
    _pool_globally(model)
    for node in model.graph.node:
        stem = f"{_part(node)}/{node.op_type}"
        node.name = f"{stem}_{count[stem]}"
        count[stem] += 1
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == batch and batch:  # by whatever name the exporter calls it
                dim.dim_param = BATCH
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
        tensor.doc_string = ""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.graph.name, model.graph.doc_string = "monitor", ""
    for value in model.graph.output:
        want = spec.shape_of(value.name)
        for dim, length in zip(value.type.tensor_type.shape.dim, want, strict=True):
            if isinstance(length, int) and dim.dim_value != length:
                raise ConfigError(f"the exported output {value.name} does not have the shape {want}")


def _pool_globally(model: onnx.ModelProto) -> None:
    """Write the means over whole maps as what they are. ONNX Runtime otherwise brings the maps into another order first."""
    onnx = import_onnx()
    axes = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in model.graph.initializer
            if tensor.dims == [2]}  # fmt: skip
    for node in model.graph.node:
        keeps = any(each.name == "keepdims" and each.i == 0 for each in node.attribute)
        if (
            node.op_type == "ReduceMean"
            and _part(node) == "embedding"
            and not keeps
            and axes.get(node.input[1]) == [2, 3]
        ):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]
            del node.input[1]


def _part(node: onnx.NodeProto) -> str:
    """The child of the graph that a node comes from, out of the scopes that the exporter notes."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
    part = scopes[1].split(".")[0] if len(scopes) > 2 else "graph"
    return part if part == TRUNK or part in FLOAT32_PARTS else "graph"


def set_metadata(model: onnx.ModelProto, facts: Mapping[str, str]) -> None:
    """Set facts under ``alpose.*``; other facts stay."""
    kept = {entry.key: entry.value for entry in model.metadata_props} | {f"alpose.{k}": v for k, v in facts.items()}
    del model.metadata_props[:]
    for key, value in sorted(kept.items()):
        model.metadata_props.add(key=key, value=value)


def check_model(model: onnx.ModelProto, spec: GraphSpec, path: Path | None = None) -> OnnxFacts:
    """Check a graph: valid ONNX, the outputs of the spec, no control flow, N its only dynamic axis.

    Args:
        model: the graph.
        spec: what it shall be.
        path: its file, where weights lie beside it; only there are they found.
    """
    onnx = import_onnx()
    try:
        onnx.checker.check_model(model if path is None else str(path), full_check=True)
    except Exception as error:  # its errors have no common parent
        raise ConfigError(f"the exported graph is not valid ONNX: {error}") from error
    shapes = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    wanted = {INPUT: spec.input_shape, **{name: spec.shape_of(name) for name in spec.outputs}}
    if shapes != wanted:
        raise ConfigError(f"the exported graph has the inputs and outputs {shapes}, expected {wanted}")
    operators = Counter(node.op_type for node in model.graph.node)
    if loops := CONTROL_FLOW & set(operators):
        raise ConfigError(f"the exported graph has the control flow {', '.join(sorted(loops))}: its forward pass must not "
                          "depend on values")  # fmt: skip
    versions = {entry.domain: entry.version for entry in model.opset_import}
    return OnnxFacts(opset=versions[""], operators=dict(sorted(operators.items())),
                     outside_tensorrt=tuple(sorted(set(operators) - TENSORRT_OPERATORS)))  # fmt: skip


def _shape(value: onnx.ValueInfoProto) -> tuple[str | int, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
