"""A pose net in an ONNX file, run as it is by ONNX Runtime.

The file is never changed. Tensors inside the graph that a :class:`~.spec.PoseSpec` names become outputs of a copy in memory.

Shapes: N frames, H W the input's height and width, C colours; B frames of one call.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.engines.onnx import WEIGHTS_FOLDER, import_onnxruntime
from alpose.runtime.errors import CheckpointError, ConfigError, DataError

from .recognition.graph import Graph, load_model
from .spec import NetInput, PoseSpec

if TYPE_CHECKING:
    import onnx

Shape = tuple[int | None, ...]


def prepare(frames_NHW3: npt.NDArray[np.uint8], given: NetInput) -> npt.NDArray[Any]:
    """Turn RGB crops into what a net takes: its colours, its numbers, its order of axes.

    ``(p * scale - mean) / std`` in float32, in this order, so that the exported graph computes the same bits.
    """
    wanted = (given.height_px, given.width_px, 3)
    if frames_NHW3.dtype != np.uint8 or frames_NHW3.ndim != 4 or frames_NHW3.shape[1:] != wanted:
        raise DataError(
            f"crops are uint8 (N, {', '.join(map(str, wanted))}), got {frames_NHW3.dtype} {frames_NHW3.shape}"
        )
    pixels_NHWC = frames_NHW3[..., ::-1] if given.colour == "bgr" else frames_NHW3
    mean_C, std_C = np.asarray(given.mean, np.float32), np.asarray(given.std, np.float32)
    if given.scale == 1 and not mean_C.any() and (std_C == 1).all():
        values_NHWC = pixels_NHWC.astype(given.number)
    else:
        scaled_NHWC = pixels_NHWC.astype(np.float32) * np.float32(given.scale)
        values_NHWC = ((scaled_NHWC - mean_C) / std_C).astype(given.number)
    return np.ascontiguousarray(values_NHWC.transpose(0, 3, 1, 2) if given.layout == "nchw" else values_NHWC)


class ForeignNet:
    """A net of somebody else's in an ONNX Runtime session; made by :func:`open_net`.

    Calling it with uint8 RGB crops (N, H, W, 3) gives every tensor of ``spec.tensors`` as float32 with N as its first axis.
    Where the graph fixes the batch, it is called as often as needed, and the last call is filled up with its last crop.
    """

    def __init__(self, spec: PoseSpec, path: Path, session: Any, counted: Collection[str] = ()) -> None:
        self.spec, self.path = spec, path
        self._session = session
        self._names = list(spec.tensors)
        given = spec.input
        size = (given.batch or 1, given.height_px, given.width_px, 3)
        noise_B = np.random.default_rng(0).integers(0, 256, size, np.uint8)
        trials = [np.zeros(size, np.uint8), noise_B]
        if given.batch is None:
            trials.append(np.repeat(noise_B, 2, axis=0))
        found = [(len(frames_B), self._run(frames_B)) for frames_B in trials]
        self.shapes: dict[str, Shape] = {name: self._shape(name, found, name in counted) for name in self._names}
        """Of each tensor: the first axis, the crops, is None; so is one whose length changes from picture to picture."""

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Answer N ≥ 1 crops."""
        fixed = self.spec.input.batch
        if fixed is None or len(frames_NHW3) == fixed:
            return self._run(frames_NHW3)
        parts = []
        for start in range(0, len(frames_NHW3), fixed):
            part_B = frames_NHW3[start : start + fixed]
            missing = fixed - len(part_B)
            filled_B = np.concatenate([part_B, np.repeat(part_B[-1:], missing, axis=0)]) if missing else part_B
            parts.append({name: value[: len(part_B)] for name, value in self._run(filled_B).items()})
        return {name: _together([part[name] for part in parts]) for name in self._names}

    def fed(self, given: NetInput) -> ForeignNet:
        """Return the same net, fed by another convention of the same size and batch."""
        other = copy.copy(self)
        other.spec = replace(self.spec, input=given)
        return other

    def _run(self, frames_BHW3: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        given = self.spec.input
        try:
            values = self._session.run(self._names, {given.name: prepare(frames_BHW3, given)})
        except DataError:
            raise
        except Exception as error:  # its errors have no common parent
            raise CheckpointError(
                f"{self.path} does not answer {len(frames_BHW3)} crops of {given.height_px} x {given.width_px} px: "
                f"{str(error)[:300]}"
            ) from error
        return {name: np.asarray(value, np.float32) for name, value in zip(self._names, values, strict=True)}

    def _shape(
        self, name: str, answers: list[tuple[int, dict[str, npt.NDArray[np.float32]]]], counted: bool
    ) -> Shape:  # fmt: skip
        shapes = [values[name].shape for _, values in answers]
        for (count, _), shape in zip(answers, shapes, strict=True):
            if not shape or shape[0] != count or len(shape) != len(shapes[0]):
                raise ConfigError(
                    f"{self.path}: the tensor {name} is {shape} for {count} image{'s' * (count > 1)}, so that its first axis does "
                    "not tell the images apart; name another tensor, or export the net with a batch axis"
                )
        axes = zip(*(shape[1:] for shape in shapes), strict=True)
        known = [lengths[0] if len(set(lengths)) == 1 and lengths[0] else None for lengths in axes]
        # Noise shows nobody: as many rows on every trial are no sign that there are always as many.
        return (None, None, *known[1:]) if counted and len(known) > 1 else (None, *known)


def _together(parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Answers of several calls as one; where one has fewer rows than another, as candidates that were counted inside the graph,
    rows of zeros follow."""
    longest = np.max([part.shape for part in parts], axis=0)[1:]
    return np.concatenate([
        np.pad(part, [(0, 0), *((0, most - size) for most, size in zip(longest, part.shape[1:], strict=True))])
        for part in parts
    ])  # fmt: skip


def open_net(path: str | Path, spec: PoseSpec, *, threads: int = 1) -> ForeignNet:
    """Open a net that a spec describes.

    Args:
        path: the ONNX file. Weights beside it are found in its folder.
        spec: what it takes and gives.
        threads: of ONNX Runtime, within an operator.

    Raises:
        DataNotFoundError: there is no such file.
        CheckpointError: it does not load, or does not answer.
        ConfigError: the graph lacks a tensor that the spec names, or takes another input.
        MissingExtraError: onnxruntime or onnx is not installed.
    """
    path = Path(path)
    model = load_model(path)
    session = _session(path, model, spec.tensors, threads)
    inputs = [value.name for value in session.get_inputs()]
    if inputs != [spec.input.name]:
        raise ConfigError(f"{path} takes {', '.join(inputs)}; the spec {spec.name} feeds {spec.input.name}")
    return ForeignNet(spec, path, session, behind_suppression(model))


def behind_suppression(model: onnx.ModelProto) -> set[str]:
    """Tensors whose rows are counted inside the graph, by a suppression of boxes that overlap: as many as there are."""
    found: set[str] = set()
    for node in model.graph.node:  # they stand in an order in which they can run
        if node.op_type == "NonMaxSuppression" or found & set(node.input):
            found |= set(node.output)
    return found


def run_once(
    path: Path, graph: Graph, image: str, values_N: npt.NDArray[Any], tensors: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Return tensors of a graph for values that are ready for its input.

    Raises:
        CheckpointError: it does not load, or does not answer.
    """
    session = _session(path, graph.proto, tensors, threads=1)
    try:
        return dict(zip(tensors, session.run(list(tensors), {image: values_N}), strict=True))
    except Exception as error:  # its errors have no common parent
        raise CheckpointError(
            f"{path} does not answer {image} {values_N.dtype} {values_N.shape}: {str(error)[:300]}"
        ) from error


def _session(path: Path, model: onnx.ModelProto, tensors: Sequence[str], threads: int) -> Any:
    runtime = import_onnxruntime("a pose net in an ONNX file")
    content = with_outputs(path, model, tensors)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry(WEIGHTS_FOLDER, str(path.resolve().parent))
    try:
        return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(
            f"{path} does not load in ONNX Runtime {runtime.__version__}: {str(error)[:300]}. Export it again if it is "
            "damaged; update onnxruntime if it is newer than this one"
        ) from error


def with_outputs(path: Path, model: onnx.ModelProto, tensors: Sequence[str]) -> bytes:
    """Return the bytes of a graph whose outputs are these tensors, so that nothing else is computed.

    Weights beside the file stay there.
    """
    import onnx

    outputs = {value.name: value for value in model.graph.output}
    inside = [name for name in tensors if name not in outputs]
    known = {name for node in model.graph.node for name in node.output if name}
    for name in inside:
        if name not in known:
            near = difflib.get_close_matches(name, [*outputs, *known], 3, 0.5)
            hint = f"; near it are {', '.join(near)}" if near else ""
            raise ConfigError(f"{path} has no tensor {name}{hint}. Names of outputs: {', '.join(sorted(outputs))}")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(outputs.get(name) or onnx.ValueInfoProto(name=name) for name in tensors)
    return copy.SerializeToString()
