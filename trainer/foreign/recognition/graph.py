"""What stands in an ONNX file: inputs, outputs, tensors with their shapes, and whether anything in it cannot be used.

Nothing is run here. The checks come first because they are cheap: a file that cannot be used is refused in a sentence that
says what was found and what to do.

Shapes: N images, H W the input's height and width, C channels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from alpose.runtime.errors import CheckpointError, ConfigError, DataNotFoundError, MissingExtraError
from alpose.runtime.io import file_sha256

if TYPE_CHECKING:
    import onnx

FEATURE = "a pose net in an ONNX file"

CONTROL_FLOW = frozenset({"Loop", "If", "Scan", "SequenceAt", "SequenceConstruct", "SequenceInsert", "SplitToSequence"})
"""Operators whose work depends on values: neither TensorRT nor a merged graph takes them."""

QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
                       "ConvInteger", "MatMulInteger"})  # fmt: skip
RUNTIME_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"})
"""Whose operators ONNX Runtime brings along."""
OLDEST_OPSET = 7
"""The oldest that ONNX Runtime supports."""

NUMBERS = {1: "float32", 10: "float16", 2: "uint8", 6: "int32"}
"""Element types of ONNX that an image may have."""

EXPORT_HINT = "torch.onnx.export(net, example, 'net.onnx', opset_version=17)"

_OTHER_FORMATS = (
    (0, b"PK\x03\x04", f"a zip, as PyTorch writes its weights: export the net first, {EXPORT_HINT}"),
    (
        4,
        b"TFL3",
        "a TensorFlow Lite file: convert it, python -m tf2onnx.convert --tflite FILE --output net.onnx --opset 17",
    ),
    (0, b"\x89HDF", "an HDF5 file, as Keras writes: convert it with tf2onnx"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself: git lfs pull"),
    (
        0,
        b"{",
        "JSON: a TensorFlow.js model is converted with tf2onnx, python -m tf2onnx.convert --tfjs FILE --output net.onnx",
    ),
    (0, b"<", "a web page or XML, not the net: look at how it was downloaded"),
    (4, b"ORTM", "ONNX Runtime's own format: give the ONNX file that it was made from"),
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the graph."""

    name: str
    operator: str
    """What made it; empty for an input."""
    place: int
    """In the order in which the graph computes."""
    shape: tuple[int | None, ...] | None
    """For one image; None where it is not known."""


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An input that is not a weight."""

    name: str
    number: str
    shape: tuple[int | str | None, ...]
    """As the file states it: a number, a name of a free length, or nothing."""


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file, without its weights."""

    path: Path
    opset: int
    producer: str
    metadata: Mapping[str, str]
    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    sources: Mapping[str, tuple[str, ...]] = field(repr=False)
    """The tensors that each one is made from, weights left out."""
    proto: onnx.ModelProto = field(repr=False)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Shape for one image; None where it is not known."""
        return self.tensors[name].shape if name in self.tensors else None

    def ancestors(self, names: Iterable[str]) -> set[str]:
        """Every tensor that goes into these, themselves too."""
        found: set[str] = set()
        todo = [name for name in names if name in self.tensors]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo.extend(source for source in self.sources.get(name, ()) if source not in found)
        return found


def read_graph(path: str | Path, size: tuple[int, int] | None = None) -> Graph:
    """Read an ONNX file and check that it can be used.

    Args:
        path: the file. Weights beside it are not read.
        size: (height, width) of the image in pixels, where the file leaves them free.

    Raises:
        DataNotFoundError: there is no such file, or weights that lie beside it are missing.
        CheckpointError: it is not an ONNX file, or a damaged one.
        ConfigError: it has control flow, quantised weights, operators that ONNX Runtime does not know, or an unknown opset.
        MissingExtraError: the package onnx is not installed.
    """
    path = Path(path)
    model = load_model(path)
    opset = _check(path, model)
    return _graph(path, model, opset, size)


def load_model(path: Path) -> onnx.ModelProto:
    """Parse a file without the weights that lie beside it."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", FEATURE, "export") from error
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataNotFoundError(f"{path} {what}: give the ONNX file of a pose net")
    with path.open("rb") as file:
        start = file.read(32)
    if not start:
        raise CheckpointError(f"{path} is empty: copy or export it again")
    for offset, magic, meaning in _OTHER_FORMATS:
        if start[offset : offset + len(magic)] == magic:
            raise CheckpointError(f"{path} is not an ONNX file but {meaning}")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own
        raise CheckpointError(
            f"{path} is not an ONNX file, or it was cut short ({path.stat().st_size} bytes): {str(error)[:150]}. "
            "Copy or export it again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise CheckpointError(f"{path} is not an ONNX file, or it was cut short: its graph has no nodes or no outputs")
    return model


def _check(path: Path, model: onnx.ModelProto) -> int:
    """Return the opset of a graph that can be used; refuse any other."""
    import onnx

    versions = {entry.domain or "": entry.version for entry in model.opset_import}
    opset, newest = versions.get("", versions.get("ai.onnx", 0)), onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ConfigError(
            f"{path} is of opset {opset}; {OLDEST_OPSET} to {newest} can be read (onnx {onnx.__version__}). Export it with opset 17, "
            f"{EXPORT_HINT}, or update onnx and onnxruntime if it is newer"
        )
    nodes = list(model.graph.node)
    if loops := [node for node in nodes if node.op_type in CONTROL_FLOW]:
        raise ConfigError(
            f"{path} has control flow ({_counted(node.op_type for node in loops)}; the first is {loops[0].name or loops[0].output[0]}): "
            "what it computes depends on values, which the device's graph may not. Fold what is constant away, "
            "python -m onnxsim IN OUT, or export the net without it (NMS and loops over people stay outside)"
        )
    own = {(function.domain, function.name) for function in model.functions}
    if strange := [node for node in nodes if not _known(node, own, onnx.defs)]:
        raise ConfigError(
            f"{path} has operators that ONNX Runtime does not bring along: "
            f"{_counted(f'{node.domain or chr(34) * 2}::{node.op_type}' for node in strange)}. "
            "Export the net without them (mmdeploy: the onnxruntime config without custom NMS), up to the tensors before them"
        )
    if quantised := [node.op_type for node in nodes if node.op_type in QUANTISED]:
        raise ConfigError(
            f"{path} has quantised weights ({_counted(quantised)}): give the float net that it was made from. "
            "alpose-export --precision int8 quantises it again, together with its loss head"
        )
    weights_beside(path, model)
    return int(opset)


def _known(node: onnx.NodeProto, own: set[tuple[str, str]], schemas: Any) -> bool:
    if (node.domain, node.op_type) in own:
        return True
    if node.domain not in RUNTIME_DOMAINS:
        return False
    return node.domain not in ("", "ai.onnx") or bool(schemas.has(node.op_type))


def weights_beside(path: Path, model: onnx.ModelProto | None = None) -> dict[str, int]:
    """The files beside an ONNX file that hold its weights: names relative to its folder, and the bytes that each must have.

    Raises:
        CheckpointError: one lies outside the folder, or was cut short.
        DataNotFoundError: one is missing.
    """
    import onnx

    model = model or load_model(path)
    needed: dict[str, int] = {}
    for tensor in onnx.external_data_helper._get_all_tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            stated = {entry.key: entry.value for entry in tensor.external_data}
            end = int(stated.get("offset", 0)) + int(stated.get("length", 0))
            needed[stated.get("location", "")] = max(end, needed.get(stated.get("location", ""), 0))
    for location, size in needed.items():
        if not is_inside(location):
            raise CheckpointError(f"{path} wants weights from {location!r}, outside its own folder: export it again")
        beside = path.parent / location
        if not beside.is_file():
            raise DataNotFoundError(
                f"{path} has its weights in {location}, which is not beside it: copy both files together"
            )
        if beside.stat().st_size < size:
            raise CheckpointError(
                f"{beside} was cut short: {beside.stat().st_size} bytes of at least {size}; copy it again"
            )
    return dict(sorted(needed.items()))


def is_inside(location: str) -> bool:
    """Whether a name of a file stays in the folder that it is relative to, on every system."""
    parts = PurePosixPath(location)
    strange = "\\" in location or ":" in location or "\0" in location
    return bool(location.strip()) and not strange and not parts.is_absolute() and ".." not in parts.parts


def digest(path: Path) -> str:
    """The sha256 of an ONNX file; where weights lie beside it, of its own hash and theirs."""
    found = file_sha256(path)
    beside = weights_beside(path)
    if not beside:
        return found
    lines = [found, *(f"{name} {file_sha256(path.parent / name)}" for name in beside)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def raised(model: onnx.ModelProto, version: int, opset: int, what: str) -> onnx.ModelProto:
    """The model in a newer opset: as it is where its operators are the same there, otherwise by ONNX's own converter."""
    if version == opset:
        return model
    import onnx

    changed = sorted({node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")
                      and _since(node.op_type, version) != _since(node.op_type, opset)})  # fmt: skip
    if not changed:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # its errors have no common parent
        raise ConfigError(f"{what} is written in opset {version}, and its {', '.join(changed)} cannot be brought to {opset}: "
                          f"{str(error)[:200]}. Export the net with opset {opset}") from error  # fmt: skip


def _since(operator: str, version: int) -> int:
    import onnx

    try:
        return int(onnx.defs.get_schema(operator, version, "").since_version)
    except onnx.defs.SchemaError:
        return 0


def _counted(words: Iterable[str]) -> str:
    """``If × 2, Loop``: at most four kinds."""
    counts = Counter(words)
    shown = [name if count == 1 else f"{name} × {count}" for name, count in counts.most_common(4)]
    return ", ".join(shown) + (f" and {len(counts) - 4} more" if len(counts) > 4 else "")


def _graph(path: Path, model: onnx.ModelProto, opset: int, size: tuple[int, int] | None) -> Graph:
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in weights]
    inputs = tuple(
        GraphInput(value.name, NUMBERS.get(value.type.tensor_type.elem_type, _type_name(value)), _stated_shape(value))
        for value in given
    )
    shapes = _inferred(model, size)
    tensors = {value.name: Tensor(value.name, "", -1, shapes.get(value.name)) for value in given}
    sources: dict[str, tuple[str, ...]] = {}
    for place, node in enumerate(graph.node):
        made_from = tuple(name for name in node.input if name in tensors)
        for name in node.output:
            if name:
                tensors[name] = Tensor(name, node.op_type, place, shapes.get(name))
                sources[name] = made_from
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    outputs = tuple(value.name for value in graph.output)
    return Graph(path, opset, model.producer_name, metadata, inputs, outputs, tensors, sources, model)


def _type_name(value: onnx.ValueInfoProto) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _stated_shape(value: onnx.ValueInfoProto) -> tuple[int | str | None, ...]:
    return tuple(
        axis.dim_value if axis.HasField("dim_value") and axis.dim_value > 0 else axis.dim_param or None
        for axis in value.type.tensor_type.shape.dim
    )


def _inferred(model: onnx.ModelProto, size: tuple[int, int] | None) -> dict[str, tuple[int | None, ...]]:
    """Shapes of all tensors for one image, as far as ONNX's own inference gets."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name for tensor in copy.graph.initializer}
    for value in copy.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name in weights or len(axes) != 4:
            continue
        last = axes[3].dim_value == 3
        lengths = (1, *size, 3) if last and size else (1, 3, *size) if size else (1, None, None, None)
        for axis, length in zip(axes, lengths, strict=True):
            if length is not None and not axis.dim_value:
                axis.dim_value = length
    for value in copy.graph.output:  # what the file says of a free batch would contradict
        value.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    try:
        found = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # its errors have no common parent; what is not known is measured
        return {}
    values = [*found.graph.input, *found.graph.value_info, *found.graph.output]
    return {
        value.name: tuple(
            axis.dim_value if axis.HasField("dim_value") else None for axis in value.type.tensor_type.shape.dim
        )
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
