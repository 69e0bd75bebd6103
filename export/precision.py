"""Lower precisions of a graph: float16 as types in the trunk, or int8 as QDQ. All behind the trunk stays float32.

Both start from the fp32 file, whose batch normalisation has been folded into the convolutions before it where there
is one, and find the trunk by the names of its nodes.

Shapes: N crops, S crop side, C channels.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from alpose.runtime.engines.onnx import import_onnxruntime
from alpose.runtime.errors import CheckpointError, ConfigError, DataError
from alpose.runtime.io import write_atomically

from .onnx_graph import INPUT, TRUNK, import_onnx, set_metadata

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("alpose")

Method = Literal["minmax", "percentile", "entropy"]

HALF_MAX = 65504.0
"""The largest float16."""

FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that ONNX defines as float32 whatever the data is: scales and regions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfFacts:
    """What became of the weights."""

    converted: int
    """Numbers that are float16 now."""
    vanished: int
    """Of them: not zero before, zero now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Config:
    """How activations are measured, and what stays float32 in the trunk.

    Activations are unsigned 8 bit with a zero point: ONNX Runtime's convolutions for x86 are made for unsigned
    activations and signed weights, and run more than twice as fast as with both signed. Where the processor has no VNNI,
    these kernels add two products in 16 bits, which saturate: 2 · 255 · 127 is more than 32,767. So weights have 7 bits
    (at most 64), with which no pair of products can: such a graph gives the same numbers on every processor. TensorRT
    reads signed types without a zero point alone, and adds in 32 bits; ``for_tensorrt`` writes those.
    """

    method: Method = "percentile"
    percentile: float = 99.999
    """Share of an activation's values inside its range, for ``percentile``."""
    crops: int = 64
    """How many of the calibration crops are run, spread evenly over them."""
    smallest_map: int = 5
    """Maps with fewer cells on a side stay float32: there an int8 convolution costs more than it saves."""
    fewest_channels: int = 8
    """Convolutions of fewer input channels (the first, of three colours) stay float32, for the same reason."""
    weight_bits: int = 7
    """7, or 8 where every device that the bundle will ever run on has VNNI; see above. TensorRT always has 8."""
    for_tensorrt: bool = False

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"int8: method {self.method!r} is not one of {', '.join(get_args(Method))}")
        if not 90 <= self.percentile <= 100 or self.crops < 1 or self.smallest_map < 0 or self.fewest_channels < 0:
            raise ConfigError(f"int8: percentile must be in [90, 100], crops at least 1, the rest not negative: {self}")
        if self.weight_bits not in (7, 8):
            raise ConfigError(f"int8: weight_bits must be 7 or 8, got {self.weight_bits!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Facts:
    """What was quantised."""

    quantised: int
    """Convolutions of the trunk whose weights are int8."""
    float32: int
    """Convolutions of the trunk that stayed float32."""
    crops: int
    """Crops that measured the activations."""
    method: Method
    """How: the config's, or ``minmax`` where that failed."""


# --- float16


def to_fp16(source: Path, target: Path) -> HalfFacts:
    """Write a graph whose trunk computes in float16, with the casts in it: no runtime has to choose types.

    Raises :class:`ConfigError` for weights beyond float16 or operators that do not take it.
    """
    onnx = import_onnx()
    model = read_model(source)
    facts = _halve(model)
    set_metadata(model, {"precision": "fp16"})
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # its errors have no common parent
        raise ConfigError(f"the trunk cannot be written in float16: {str(error)[:400]}. Keep fp32") from error
    if facts.vanished:
        log.warning("fp16: %d of %d weights are too small for float16 and became zero", facts.vanished, facts.converted)
    write_atomically(target, model.SerializeToString(deterministic=True))
    return facts


def _halve(model: onnx.ModelProto) -> HalfFacts:
    onnx = import_onnx()
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    graph = model.graph
    types = _element_types(model)
    inside = [node for node in graph.node if in_trunk(node)]
    if not inside:
        raise ConfigError(f"no node of the graph is called {TRUNK}/...: it was not written by alpose")
    made_inside = {name for node in inside for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == float32}
    renamed: dict[str, str] = {}
    converted = vanished = 0
    casts_in: list[Any] = []
    for node in inside:
        if node.op_type == "Constant":
            _halve_constant(node)
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == float32:
                attribute.i = float16
        for place, name in enumerate(node.input):
            if types.get(name) != float32 or name in made_inside or place in FLOAT32_INPUTS.get(node.op_type, ()):
                continue
            if name not in renamed:
                renamed[name] = f"{name}_half"
                if name in weights:
                    half, lost = _half_tensor(weights[name], renamed[name])
                    converted, vanished = converted + int(np.prod(half.dims)), vanished + lost
                    graph.initializer.append(half)
                else:
                    casts_in.append(_cast(name, renamed[name], float16, len(casts_in), "in"))
            node.input[place] = renamed[name]
    # What leaves the trunk is float32 again. Its makers get new names, so that readers and outputs keep theirs.
    outside = {name for node in graph.node if not in_trunk(node) for name in node.input}
    leaving = sorted(name for name in made_inside
                     if types.get(name) == float32 and name in outside | {value.name for value in graph.output})  # fmt: skip
    for node in inside:
        node.input[:] = [f"{name}_half" if name in leaving else name for name in node.input]
        node.output[:] = [f"{name}_half" if name in leaving else name for name in node.output]
    casts_out = [_cast(f"{name}_half", name, float32, place, "out") for place, name in enumerate(leaving)]
    _rebuild(model, [*casts_in, *graph.node, *casts_out])
    return HalfFacts(converted=converted, vanished=vanished)


def _half_tensor(tensor: onnx.TensorProto, name: str) -> tuple[onnx.TensorProto, int]:
    onnx = import_onnx()
    values = onnx.numpy_helper.to_array(tensor)
    if values.size and np.abs(values).max() > HALF_MAX:
        raise ConfigError(
            f"{tensor.name} reaches {np.abs(values).max():.3g}, float16 ends at {HALF_MAX:.0f}. Keep fp32"
        )
    half = values.astype(np.float16)
    return onnx.numpy_helper.from_array(half, name), int(((half == 0) & (values != 0)).sum())


def _halve_constant(node: onnx.NodeProto) -> None:
    onnx = import_onnx()
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
            attribute.t.CopyFrom(_half_tensor(attribute.t, attribute.t.name)[0])


def _cast(source: str, target: str, to: int, place: int, way: str) -> onnx.NodeProto:
    onnx = import_onnx()
    return onnx.helper.make_node("Cast", [source], [target], name=f"{TRUNK}/Cast_{way}_{place}", to=to)


# --- int8


def to_int8(
    source: Path, target: Path, frames_NSS3: npt.NDArray[np.uint8], config: Int8Config | None = None
) -> Int8Facts:
    """Write a graph whose trunk is quantised with ONNX Runtime's static quantiser, weights channel by channel.

    Args:
        source: the fp32 graph.
        target: where.
        frames_NSS3: real crops; what the activations reach on them is the range of the 8 bits.
        config: how.

    Raises:
        DataError: there are no crops, or they are of another size.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    config = config or Int8Config()
    onnx = import_onnx()
    model = read_model(source)
    size = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    if frames_NSS3.dtype != np.uint8 or frames_NSS3.shape[1:] != (size, size, 3) or not len(frames_NSS3):
        raise DataError(f"int8 needs real crops: uint8 (N, {size}, {size}, 3) with N >= 1, got {frames_NSS3.dtype} "
                        f"{frames_NSS3.shape}")  # fmt: skip
    rows = np.unique(np.linspace(0, len(frames_NSS3) - 1, min(config.crops, len(frames_NSS3))).round().astype(int))
    norms_as_convolutions(model)
    kept = float32_nodes(model, config)
    with tempfile.TemporaryDirectory() as folder:
        # ONNX Runtime's quantiser goes from file to file.
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        before.write_bytes(model.SerializeToString())
        frames = [frames_NSS3[row : row + 1] for row in rows]
        method = config.method
        try:
            _quantise(before, after, frames, kept, config)
        except ValueError as error:
            if method == "minmax":
                raise ConfigError(f"the trunk cannot be quantised: {error}. Keep fp32 or fp16") from error
            # A layer that is all but constant on these crops has no histogram.
            log.warning("int8: ranges by %s failed (%s); taking the least and largest values", method, error)
            method = "minmax"
            _quantise(before, after, frames, kept, replace(config, method=method))
        quantised = onnx.load(after)
    quantised.producer_name, quantised.producer_version = model.producer_name, model.producer_version
    set_metadata(quantised, {"precision": "int8", **{entry.key.removeprefix("alpose."): entry.value
                             for entry in model.metadata_props if entry.key != "alpose.precision"}})  # fmt: skip
    try:
        onnx.checker.check_model(quantised, full_check=True)
    except Exception as error:  # its errors have no common parent
        raise ConfigError(f"the quantised graph is not valid ONNX: {str(error)[:400]}. Keep fp32 or fp16") from error
    write_atomically(target, quantised.SerializeToString(deterministic=True))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and in_trunk(node)]
    stayed = sum(node.name in kept for node in convolutions)
    return Int8Facts(quantised=len(convolutions) - stayed, float32=stayed, crops=len(rows), method=method)


def _quantise(
    before: Path, after: Path, frames: Sequence[npt.NDArray[np.uint8]], kept: Sequence[str], config: Int8Config
) -> None:
    import_onnxruntime("int8")
    from onnxruntime import quantization

    class Frames(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, Any]] = iter([{INPUT: frame} for frame in frames])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    signed, unsigned = quantization.QuantType.QInt8, quantization.QuantType.QUInt8
    methods = quantization.CalibrationMethod
    with _quiet():
        quantization.quantize_static(
            before,
            after,
            Frames(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=config.weight_bits == 7 and not config.for_tensorrt,
            activation_type=signed if config.for_tensorrt else unsigned,
            weight_type=signed,
            nodes_to_exclude=list(kept),
            calibrate_method={"minmax": methods.MinMax, "percentile": methods.Percentile, "entropy": methods.Entropy}[
                config.method
            ],
            extra_options={
                "ActivationSymmetric": config.for_tensorrt,
                # TensorRT adds biases in float32 and refuses theirs as int32.
                "QuantizeBias": not config.for_tensorrt,
                **({"CalibPercentile": config.percentile} if config.method == "percentile" else {}),
            },
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's progress on stdout, and without its advice to run a step that would undo node names."""
    root = logging.getLogger()
    before, handlers = root.level, root.handlers[:]
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
        root.handlers[:] = handlers  # it calls logging.basicConfig, which would print every later line twice


def float32_nodes(model: onnx.ModelProto, config: Int8Config) -> list[str]:
    """Names of the nodes that are not quantised: all outside the trunk, and those the config keeps."""
    shapes = _shapes(model)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        maps = [shapes[name] for name in (node.input[0], node.output[0]) if len(shapes.get(name, ())) == 4]
        small = bool(maps) and max(max(shape[2:]) for shape in maps) < config.smallest_map
        few = False
        if node.op_type == "Conv":
            channels = weights.get(node.input[1], (0, config.fewest_channels))[1] * _group(node)
            few = channels < config.fewest_channels
        if not in_trunk(node) or small or few:
            kept.append(node.name)
    return kept


def norms_as_convolutions(model: onnx.ModelProto) -> int:
    """Replace every batch normalisation of the trunk by the depthwise 1 x 1 convolution that it is; how many.

    A pre-activation net normalises sums, so these stay after folding. ONNX Runtime has no int8 normalisation: each
    would leave int8 and come back. Its fp32 engine makes the same replacement by itself.
    """
    onnx = import_onnx()
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes, count = [], 0
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or not in_trunk(node) or not set(node.input[1:]) <= values.keys():
            nodes.append(node)
            continue
        scale_C, shift_C, mean_C, var_C = (onnx.numpy_helper.to_array(values[name]).astype(np.float64)
                                           for name in node.input[1:])  # fmt: skip
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
        gain_C = scale_C / np.sqrt(var_C + epsilon)
        names = f"{node.output[0]}_gain", f"{node.output[0]}_offset"
        arrays = gain_C[:, None, None, None], shift_C - mean_C * gain_C
        for name, array in zip(names, arrays, strict=True):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        nodes.append(onnx.helper.make_node("Conv", [node.input[0], *names], node.output[:1], name=f"{node.name}_as_Conv",
                                           group=len(gain_C), kernel_shape=[1, 1]))  # fmt: skip
        count += 1
    _rebuild(model, nodes)
    return count


# --- Graphs


def read_model(path: Path) -> Any:
    """An ONNX file; :class:`CheckpointError` names one that is damaged."""
    onnx = import_onnx()
    try:
        model = onnx.load_model_from_string(path.read_bytes())
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's and the checker's errors have no common parent
        raise CheckpointError(f"{path} is no whole ONNX file ({str(error)[:200]}): export it again") from error
    return model


def in_trunk(node: onnx.NodeProto) -> bool:
    """Whether a node belongs to the pose net."""
    return node.name.startswith(f"{TRUNK}/")


def _rebuild(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Set the nodes, drop weights that none reads any more, and infer the types anew."""
    onnx = import_onnx()
    copies = [type(node).FromString(node.SerializeToString()) for node in _ordered(nodes)]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    read = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    copied = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copied)
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # its errors have no common parent
        raise ConfigError(f"the rewritten graph has types that do not fit: {str(error)[:400]}") from error
    model.graph.value_info.extend(inferred.graph.value_info)


def _ordered(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes with every maker before its readers, otherwise in their order."""
    makers = {name: node for node in nodes for name in node.output}
    done: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    for wanted in nodes:
        stack = [wanted]
        while stack:
            node = stack[-1]
            missing = [makers[name] for name in node.input if name in makers and makers[name].name not in done]
            if missing:
                stack += missing
                continue
            stack.pop()
            if node.name not in done:
                done.add(node.name)
                ordered.append(node)
    return ordered


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    onnx = import_onnx()
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    return {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            for value in (*graph.value_info, *graph.input, *graph.output)}  # fmt: skip


def _group(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)
