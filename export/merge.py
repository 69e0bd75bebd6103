"""One ONNX graph out of three: pixels to what somebody's net takes, their nodes as they are, and what reads their tensors.

Their nodes keep operators, attributes and weights, bit for bit. They get names of their own (``net/`` before every tensor,
``trunk/`` before every node, which is how precisions tell them from the rest), and a newer opset only where ours needs it.

Shapes: N images, H W the input's height and width.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.engines.onnx import WEIGHTS_FOLDER, import_onnxruntime
from alpose.runtime.errors import CheckpointError, ConfigError, DataNotFoundError
from alpose.trainer.foreign.recognition.graph import raised, weights_beside
from alpose.trainer.foreign.spec import NetInput, PoseSpec

from .onnx_graph import BATCH, CONTROL_FLOW, INPUT, OPSET, TRUNK, import_onnx

if TYPE_CHECKING:
    import onnx

log = logging.getLogger("alpose")

NET = "net"
"""Stands before the names of their tensors."""
STANDARD = ("", "ai.onnx", "ai.onnx.ml")
"""Domains of operators that every ONNX runtime knows."""
KNOWN = (*STANDARD, "com.microsoft")
"""With those of ONNX Runtime, which runs nowhere else."""
QDQ = frozenset({"QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger",
                 "DynamicQuantizeLinear"})  # fmt: skip
MOST_BYTES = 2**31 - 2**24
"""Of a graph with its weights inside: protobuf writes up to 2 GiB, of which what reads the net's tensors takes some. A larger one keeps
the weights beside it that already were."""
SMALL_BYTES = 1 << 12
"""Weights of at most so many bytes are always inside: shapes, axes and scales among them are read by whoever changes a graph."""
ALIGNED = 1 << 12
"""Weights beside a graph begin at multiples of it, so that they can be mapped into memory."""


@dataclass(frozen=True, slots=True)
class Theirs:
    """Their graph, pruned to what is read, and ready to be merged."""

    model: onnx.ModelProto
    tensors: tuple[str, ...]
    """Read behind it, in this order."""
    dynamic: bool
    """Whether it takes any number of images."""
    opset: int
    dropped: int
    """Nodes that nothing needs which is read."""
    quantised: bool
    """Whether it was quantised before it came."""
    outside: Path | None = None
    """The folder with the weights that stay outside of the graph; None where all are inside."""

    @property
    def batch(self) -> str | int:
        """Its first axis: ``N``, or the number of images that it takes."""
        return BATCH if self.dynamic else 1


def load(path: Path, spec: PoseSpec, most_bytes: int = MOST_BYTES) -> Theirs:
    """Read somebody's graph with its weights, and check what is cheap to check.

    Args:
        path: their file.
        spec: what it takes and gives.
        most_bytes: of the graph with its weights inside. Beyond it, weights that lie beside the file stay outside.

    Raises:
        DataNotFoundError: the file, or a file of weights beside it, is missing.
        CheckpointError: it is damaged.
        ConfigError: control flow, operators that nobody here runs, a tensor that it does not have, or more bytes inside than one
            file can hold.
    """
    onnx = import_onnx()
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist: give the ONNX file of a pose net")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own
        raise CheckpointError(f"{path} is not an ONNX file, or a damaged one: {str(error)[:200]}") from error
    weights_beside(path, model)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    loops = sorted({node.op_type for node in model.graph.node} & CONTROL_FLOW)
    if loops:
        raise ConfigError(f"{path} has the control flow {', '.join(loops)}: a bundle's graph must not depend on values. Export "
                          "the net without it, for example without its suppression of overlapping boxes")  # fmt: skip
    strange = sorted({f"{node.domain}.{node.op_type}" for node in model.graph.node if node.domain not in KNOWN})
    if strange:
        raise ConfigError(f"{path} has the operators {', '.join(strange)}, which ONNX Runtime does not know: export the net with "
                          "standard operators")  # fmt: skip
    dropped = _prune(model, spec, path)
    beside = _bytes_beside(model)
    outside = path.parent.resolve() if beside and model.ByteSize() + beside > most_bytes else None
    _load_weights(model, path, SMALL_BYTES if outside else None)
    size = model.ByteSize()
    if size > MOST_BYTES:
        raise ConfigError(f"{path} has {size / 2**30:.1f} GiB inside: with what reads it, it does not fit one file of 2 GiB. Save it with "
                          "its weights beside it, onnx.save(model, path, save_as_external_data=True, location='weights.bin')")  # fmt: skip
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = int(versions.get("", versions.get("ai.onnx", 1)))
    quantised = bool(QDQ & {node.op_type for node in model.graph.node})
    return Theirs(model, spec.tensors, spec.input.batch is None, opset, dropped, quantised, outside)


def _outside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The weights that do not lie in the graph."""
    helper = import_onnx().external_data_helper
    return [tensor for tensor in helper._get_all_tensors(model) if helper.uses_external_data(tensor)]


def _size(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor beside the graph."""
    stated = {entry.key: entry.value for entry in tensor.external_data}
    if "length" in stated:
        return int(stated["length"])
    numbers = np.dtype(import_onnx().helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return int(np.prod(tensor.dims, dtype=np.int64)) * numbers.itemsize


def _bytes_beside(model: onnx.ModelProto) -> int:
    return sum(_size(tensor) for tensor in _outside(model))


def _load_weights(model: onnx.ModelProto, path: Path, most: int | None) -> None:
    """Take weights that lie beside the file into the graph: all, or those of at most so many bytes."""
    onnx = import_onnx()
    try:
        for tensor in _outside(model):
            if most is None or _size(tensor) <= most:
                onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                del tensor.external_data[:]
    except Exception as error:  # ONNX's own: a path that leaves the folder, a file that is too short
        raise CheckpointError(f"{path}: its external weights cannot be read: {str(error)[:300]}") from error


def bring_weights(model: onnx.ModelProto, source: Path, target: Path) -> None:
    """Copy the weights that lie outside of a graph into one file, piece by piece, and let the graph name it.

    Args:
        model: is changed.
        source: the folder that the places in the graph are relative to.
        target: the file.
    """
    placed: dict[tuple[str, int, int], int] = {}
    with target.open("wb") as written:
        for tensor in _outside(model):
            stated = {entry.key: entry.value for entry in tensor.external_data}
            location, offset, length = stated["location"], int(stated.get("offset", 0)), _size(tensor)
            place = (location, offset, length)
            if place not in placed:
                written.seek(-(-written.tell() // ALIGNED) * ALIGNED)
                placed[place] = written.tell()
                with (source / location).open("rb") as file:
                    file.seek(offset)
                    left = length
                    while left:
                        piece = file.read(min(left, 1 << 24))
                        if not piece:
                            raise CheckpointError(
                                f"{source / location} was cut short: {left} bytes of {tensor.name} are missing"
                            )
                        written.write(piece)
                        left -= len(piece)
            del tensor.external_data[:]
            for key, value in (("location", target.name), ("offset", placed[place]), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))


def _prune(model: onnx.ModelProto, spec: PoseSpec, path: Path) -> int:
    """Leave what the tensors need; how many nodes went."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights]
    if inputs != [spec.input.name]:
        raise ConfigError(f"{path} takes {', '.join(inputs)}; the spec {spec.name} feeds {spec.input.name}")
    made_by = {name: node for node in graph.node for name in node.output if name}
    missing = [name for name in spec.tensors if name not in made_by]
    if missing:
        raise ConfigError(f"{path} has no tensor {', '.join(missing)}")
    wanted, needed = list(spec.tensors), set[int]()
    seen = set(wanted)
    while wanted:
        node = made_by.get(wanted.pop())
        if node is None or id(node) in needed:
            continue
        needed.add(id(node))
        for name in node.input:
            if name and name not in seen:
                seen.add(name)
                wanted.append(name)
    kept = [node for node in graph.node if id(node) in needed]
    dropped = len(graph.node) - len(kept)
    kept_weights = [tensor for tensor in graph.initializer if tensor.name in seen]
    values = [value for value in graph.input if value.name == spec.input.name]
    for field, content in ((graph.node, kept), (graph.initializer, kept_weights), (graph.input, values)):
        copies = [type(each).FromString(each.SerializeToString()) for each in content]
        del field[:]
        field.extend(copies)
    outputs = [import_onnx().ValueInfoProto(name=name) for name in spec.tensors]
    del graph.output[:]
    graph.output.extend(outputs)
    return dropped


# --- any number of images


def made_dynamic(theirs: Theirs, spec: PoseSpec, frames_NHW3: npt.NDArray[np.uint8]) -> Theirs:
    """The graph for any number of images, where two images together give what each gives alone; otherwise as it is.

    What fixes a batch of one is its input's shape, and the first number of shapes that are constants. These are opened, and
    the result is tried on real crops: anything but the same bits, and the graph stays for one image.
    """
    if theirs.dynamic or spec.input.batch != 1 or len(frames_NHW3) < 2:
        return theirs
    onnx = import_onnx()
    model = onnx.ModelProto.FromString(theirs.model.SerializeToString())
    _free_batch(model)
    from alpose.trainer.foreign.net import prepare

    given_N = prepare(frames_NHW3[:2], spec.input)
    try:
        alone, together = _session(theirs.model, theirs.outside), _session(model, theirs.outside)
        both = together.run(list(theirs.tensors), {spec.input.name: given_N})
        for row in range(2):
            one = alone.run(list(theirs.tensors), {spec.input.name: given_N[row : row + 1]})
            same = all(
                b.shape == (2, *a.shape[1:]) and np.array_equal(b[row : row + 1], a, equal_nan=True)
                for a, b in zip(one, both, strict=True)
            )
            if not same:
                return theirs
    except Exception as error:  # ONNX Runtime's errors have no common parent; what does not run stays as it is
        log.debug("the batch of %s stays 1: %s", spec.name, str(error)[:200])
        return theirs
    return dataclasses.replace(theirs, model=model, dynamic=True)


def _free_batch(model: onnx.ModelProto) -> None:
    """Open the first axis of the input, and of every constant shape that begins with 1."""
    onnx = import_onnx()
    graph = model.graph
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = BATCH
    shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in graph.initializer:
        if tensor.name not in shapes:
            continue
        values = onnx.numpy_helper.to_array(tensor).copy()
        if len(values) > 1 and values[0] == 1:
            values[0] = 0 if (values == -1).any() else -1
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    del graph.value_info[:]
    for value in graph.output:
        value.ClearField("type")


def _session(model: onnx.ModelProto, weights: Path | None) -> Any:
    runtime = import_onnxruntime("merging a graph")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # that a graph does not take two images is an answer here, and no error
    options.intra_op_num_threads = 1
    if weights is not None:
        options.add_session_config_entry(WEIGHTS_FOLDER, str(weights))
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# --- merging


def merge(theirs: Theirs, spec: PoseSpec, tail: onnx.ModelProto, inputs: Sequence[str]) -> onnx.ModelProto:
    """One graph from ``frames`` to the outputs of ``tail``.

    Args:
        theirs: from :func:`load`.
        spec: what it takes and gives.
        tail: what reads their tensors, in the same opset or in ours.
        inputs: the inputs of ``tail``, in the order of ``theirs.tensors``.

    Raises:
        ConfigError: an operator cannot be brought to the opset of the other part.
    """
    onnx = import_onnx()
    ours = {entry.domain: entry.version for entry in tail.opset_import}
    opset = max(ours[""], theirs.opset)
    model = raised(theirs.model, theirs.opset, opset, "the net")
    tail = raised(tail, ours[""], opset, "what reads it")
    graph = onnx.GraphProto(name="monitor")
    frames = graph.input.add(name=INPUT)
    frames.CopyFrom(onnx.helper.make_tensor_value_info(
        INPUT, onnx.TensorProto.UINT8, [theirs.batch, spec.input.height_px, spec.input.width_px, 3]))  # fmt: skip
    fed = f"{NET}/{spec.input.name}"
    nodes, constants = feeding(spec.input, fed)
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    for place, node in enumerate(model.graph.node):
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{TRUNK}/{node.name or f'{node.op_type}_{place}'}"
        copy.input[:] = [f"{NET}/{name}" if name else "" for name in node.input]
        copy.output[:] = [f"{NET}/{name}" if name else "" for name in node.output]
        copy.doc_string = ""
        del copy.metadata_props[:]
    for tensor in model.graph.initializer:
        copy_of = graph.initializer.add()
        copy_of.CopyFrom(tensor)
        copy_of.name, copy_of.doc_string = f"{NET}/{tensor.name}", ""
    renamed = {ours_name: f"{NET}/{name}" for ours_name, name in zip(inputs, theirs.tensors, strict=True)}
    kinds = _kinds(model)
    for ours_name, name in zip(inputs, theirs.tensors, strict=True):
        if kinds.get(name, onnx.TensorProto.FLOAT) != onnx.TensorProto.FLOAT:
            graph.node.add().CopyFrom(onnx.helper.make_node(
                "Cast", [f"{NET}/{name}"], [f"{NET}/{name} as float32"], name=f"reader/Cast_{ours_name}",
                to=onnx.TensorProto.FLOAT))  # fmt: skip
            renamed[ours_name] = f"{NET}/{name} as float32"
    for node in tail.graph.node:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
    graph.initializer.extend(tail.graph.initializer)
    graph.output.extend(tail.graph.output)
    for value in graph.output:
        value.type.tensor_type.shape.dim[0].Clear()
        if theirs.dynamic:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
        else:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    domains = {entry.domain: entry.version for entry in (*model.opset_import, *tail.opset_import)}
    used = {node.domain for node in graph.node}
    imports = [onnx.helper.make_opsetid("", opset)]
    imports += [onnx.helper.make_opsetid(name, version) for name, version in sorted(domains.items())
                if name not in ("", "ai.onnx") and name in used]  # fmt: skip
    version = max(theirs.model.ir_version, tail.ir_version, 8)
    merged = onnx.helper.make_model(graph, opset_imports=imports, ir_version=version)
    return _inferred(merged)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the shapes of what lies between, which lower precisions choose by; only N may be a name."""
    onnx = import_onnx()
    found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    kept = [value for value in found.graph.value_info
            if all(dim.dim_param in ("", BATCH) for dim in value.type.tensor_type.shape.dim)]  # fmt: skip
    kept = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
    del found.graph.value_info[:]
    found.graph.value_info.extend(kept)
    return found


def feeding(given: NetInput, name: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes from ``frames``, uint8 RGB (N, H, W, 3), to what a net takes: :func:`alpose.trainer.foreign.net.prepare` as a graph."""
    onnx = import_onnx()
    kinds = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "uint8": onnx.TensorProto.UINT8,
             "int32": onnx.TensorProto.INT32}  # fmt: skip
    nodes: list[Any] = []
    constants: list[Any] = []
    value = INPUT

    def step(operator: str, *more: npt.NDArray[Any], **attributes: Any) -> None:
        nonlocal value
        place = len(nodes)
        names = []
        for number, constant in enumerate(more):
            names.append(f"normalise_{place}_{number}")
            constants.append(onnx.numpy_helper.from_array(constant, names[-1]))
        made = f"normalised_{place}"
        nodes.append(onnx.helper.make_node(operator, [value, *names], [made], name=f"normalise/{operator}_{place}",
                                           **attributes))  # fmt: skip
        value = made

    mean_C, std_C = np.asarray(given.mean, np.float32), np.asarray(given.std, np.float32)
    plain = given.scale == 1 and not mean_C.any() and bool((std_C == 1).all())
    # It casts first: TensorRT takes uint8 at a graph's border and nowhere else.
    step("Cast", to=kinds[given.number if plain and given.number != "uint8" else "float32"])
    if given.colour == "bgr":
        step("Gather", np.array([2, 1, 0], np.int64), axis=3)
    if not plain:
        step("Mul", np.asarray(given.scale, np.float32))
        step("Sub", mean_C)
        step("Div", std_C)
        if given.number != "float32":
            step("Cast", to=kinds[given.number])
    elif given.number == "uint8":
        step("Cast", to=kinds["uint8"])
    if given.layout == "nchw":
        step("Transpose", perm=[0, 3, 1, 2])
    nodes[-1].output[0] = name
    return nodes, constants


def _kinds(model: onnx.ModelProto) -> Mapping[str, int]:
    """Element types by name, as far as inference knows them."""
    onnx = import_onnx()
    inferred = onnx.shape_inference.infer_shapes(model)
    return {value.name: value.type.tensor_type.elem_type
            for value in (*inferred.graph.value_info, *inferred.graph.output)
            if value.type.tensor_type.elem_type}  # fmt: skip


def wanted_opset(theirs: Theirs) -> int:
    """The opset in which what reads their tensors is written."""
    return max(OPSET, theirs.opset)
