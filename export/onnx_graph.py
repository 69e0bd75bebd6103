"""What an ONNX graph of alpose looks like, and the check that one looks so.

Shapes: N batch, S crop side, J joints, D embedding.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpose.runtime.errors import ConfigError, MissingExtraError
from alpose.runtime.skeleton import Skeleton
from alpose.runtime.types import OUTPUT_AXES, OUTPUT_NAMES

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""The lowest that PyTorch's exporter writes without converting back; TensorRT 10.3 (JetPack 6) reads up to 20."""

INPUT, BATCH = "frames", "N"
"""Name of the input and of its only dynamic axis."""

TRUNK, FLOAT32_PARTS = "trunk", ("normalise", "head", "embedding", "decode", "doubt", "calibrate")
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
    size_px: int
    stride: float
    """Crop pixels per heatmap cell."""
    peak: float
    """Height of the heatmaps that the net was trained towards."""
    head: str
    """Name of the loss head."""
    dimensions: int
    """D."""

    def shape_of(self, name: str) -> tuple[str | int, ...]:
        """Shape of an output, with N by name."""
        length: dict[str, str | int] = {"N": BATCH, "J": len(self.skeleton), "xy": 2, "D": self.dimensions}
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


def tidy(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Name nodes by their part, name the batch axis, and drop the exporter's notes: they hold paths of source files."""
    count: Counter[str] = Counter()
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


def check_model(model: onnx.ModelProto, spec: GraphSpec) -> OnnxFacts:
    """Check a graph: valid ONNX, the outputs of the spec, no control flow, N its only dynamic axis."""
    onnx = import_onnx()
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # its errors have no common parent
        raise ConfigError(f"the exported graph is not valid ONNX: {error}") from error
    shapes = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    wanted = {INPUT: (BATCH, spec.size_px, spec.size_px, 3), **{name: spec.shape_of(name) for name in OUTPUT_NAMES}}
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
