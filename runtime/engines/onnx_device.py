"""Frames in the memory of an ONNX Runtime provider: cut by a small graph, whose output is bound to the model's input.

No pixel passes through the host: the frame is bound by its address, the crop is written into memory of the provider, and
that is the model's input. ONNX Runtime is passed in by :mod:`.onnx`, which alone imports it.

Every number in the crop's graph is a whole number that float32 holds exactly, sums included (below 2^24), so neither the
order of a sum nor fused operations can change a bit. That is also why it multiplies and sums and does not use a matrix
product, which would be shorter: an NVIDIA GPU may round the factors of one to TF32, 11 bits, and a weight has up to 14.

Shapes: N frames, T S height and width of a crop, R rows of it, K taps, L bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..crop import Crop, CropRule
from ..dlpack import MemoryKind, packed
from ..errors import ConfigError
from ..frames import LAYOUTS, YUV_UNIT, DeviceFrame, FrameFormat, Region
from ..resampling import AFTER, BETWEEN
from ..types import Outputs, joined
from .device import DeviceCropper, PlaneCut, batches, check_frames, check_memory, plane_cuts, to_rgb

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

MAX_TAPPED_BYTES = 4 << 20
"""Rows of a crop are made in parts whose pixels, once for each tap, stay below this as uint8, and below four times as
much in each of the steps as float32. A crop around a whole frame of 8K would otherwise ask for gigabytes, which ONNX
Runtime keeps; around a person of 800 px one part suffices."""

Bytes = npt.NDArray[np.uint8]


class OnnxDevice(DeviceCropper):
    """What an ONNX Runtime session needs to read frames in its provider's memory.

    Args:
        runtime: the module ``onnxruntime``.
        session: the model's.
        options: how sessions are made, for those of the small graphs.
        input_name: of the model.
        rule: of its crops.
        outputs: the names of its outputs, in their order.
        name: of the engine, for messages.
        fixed_batch: frames of every run, where the model states them.

    Raises:
        ConfigError: frames in the memory of this provider cannot be read here.
    """

    def __init__(
        self,
        runtime: Any,
        session: Any,
        options: Any,
        input_name: str,
        rule: CropRule,
        outputs: Sequence[str],
        name: str,
        fixed_batch: int | None = None,
    ) -> None:
        super().__init__(name, rule)
        running = session.get_providers()[0]
        if running not in (CPU, CUDA, TENSORRT):
            raise ConfigError(
                f"{name} cannot be given frames in its own memory: only ONNX Runtime's CPU, CUDA and TensorRT "
                "providers can. Give the frame in the host's memory"
            )
        self._gpu = None if running == CPU else int(session.get_provider_options()[running].get("device_id", 0))
        self._memory = ("cpu", 0) if self._gpu is None else ("cuda", self._gpu)
        self._runtime, self._session, self._input, self._options = runtime, session, input_name, options
        # As they are written: an optimiser could replace sums by products of matrices.
        self._options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._outputs, self._fixed_batch = tuple(outputs), fixed_batch
        self._sessions: dict[FrameFormat | None, Any] = {}
        self._crops: Any = None
        self._lock = threading.Lock()
        self.copies_to_host = 0

    def answer(self, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> Outputs:
        """See :class:`~alpose.runtime.engines.device.DeviceEngine`."""
        check_frames(self._name, self._gpu, self._rule, frames, crops)
        count = len(frames)
        with self._lock:  # the memory of the crops is shared
            for frame_format in {frame.format for frame in frames}:
                self.verify(frame_format)
            most = self._fixed_batch or count
            if self._crops is None or self._crops.shape()[0] < most:
                self._crops = self._allocate(most)
            parts = [
                self._answer([frames[n] for n in rows], [crops[n] for n in rows])
                for rows in batches(count, self._fixed_batch)
            ]
            return joined(parts, count)

    def _answer(self, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> Outputs:
        """One run of the model."""
        height, width, address = self._rule.height_px, self._rule.width_px, int(self._crops.data_ptr())
        for place, (frame, crop) in enumerate(zip(frames, crops, strict=True)):
            self._cut(frame, crop, address + place * height * width * 3)
        binding = self._session.io_binding()
        binding.bind_input(self._input, *self._memory, np.uint8, (len(frames), height, width, 3), address)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return Outputs(*binding.copy_outputs_to_cpu())

    def to_host(self, frame: DeviceFrame, region: Region | None) -> Bytes:
        """See :class:`~alpose.runtime.engines.device.DeviceEngine`."""
        check_memory(self._name, self._gpu, frame)
        with self._lock:
            session = self._graph_session(None)
            binding = session.io_binding()
            binding.bind_input("pixels", *self._memory, np.uint8, (frame.extent,), frame.address)
            binding.bind_output("copy", "cpu")
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            self.copies_to_host += 1
        return to_rgb(binding.copy_outputs_to_cpu()[0], frame, region)

    def cut_copy(self, frame: Bytes, frame_format: FrameFormat, crop: Crop) -> Bytes:
        """See :class:`~.device.DeviceCropper`."""
        held = self._runtime.OrtValue.ortvalue_from_numpy(frame, *self._memory)
        memory = MemoryKind.CPU if self._gpu is None else MemoryKind.CUDA
        copied = DeviceFrame(
            frame_format, memory, self._gpu, held.data_ptr(), frame.shape, packed(frame.shape), None, held
        )
        out = self._allocate(1)
        self._cut(copied, crop, out.data_ptr())
        crop_1TS3: Bytes = out.numpy()
        return crop_1TS3[0]

    def _allocate(self, count: int) -> Any:
        """Memory of the provider for this many crops."""
        shape = (count, self._rule.height_px, self._rule.width_px, 3)
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, *self._memory)

    def _graph_session(self, frame_format: FrameFormat | None) -> Any:
        """The session that cuts frames of a format; without one, the session that copies a frame."""
        if frame_format not in self._sessions:
            # The TensorRT provider would build an engine for every size of frame, in seconds: CUDA runs these as well.
            chain: list[Any] = [CPU] if self._gpu is None else [(CUDA, {"device_id": str(self._gpu)}), CPU]
            graph = copy_graph() if frame_format is None else crop_graph(frame_format, self._rule.fill)
            session = self._runtime.InferenceSession(graph, self._options, providers=chain)
            session.disable_fallback()
            if (session.get_providers()[0] == CPU) != (self._gpu is None):
                raise ConfigError(
                    f"{self._name} runs on GPU {self._gpu}, and ONNX Runtime's CUDA provider, which cuts frames there, "
                    "did not start: look for the libraries that it misses in ONNX Runtime's log"
                )
            self._sessions[frame_format] = session
        return self._sessions[frame_format]

    def _cut(self, frame: DeviceFrame, crop: Crop, address: int) -> None:
        """Write a crop to an address."""
        session = self._graph_session(frame.format)
        cuts = plane_cuts(frame, crop)
        for rows in _parts(cuts, self._rule.height_px):
            binding = session.io_binding()
            for number, cut in enumerate(cuts):
                start, length, others = _inputs(cut, rows)
                binding.bind_input(f"pixels{number}", *self._memory, np.uint8, (length,), start)
                for name, value in others.items():
                    binding.bind_cpu_input(f"{name}{number}", value)
            shape = (rows.stop - rows.start, self._rule.width_px, 3)
            place = address + rows.start * self._rule.width_px * 3
            binding.bind_output("crop", *self._memory, np.uint8, shape, place)
            # The provider computes in a stream of its own, which waits for no other. For CUDA this waits until the GPU
            # has nothing left to do, so that whatever writes the frame, in whichever stream, has ended.
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()  # what reads the crop is another session, in another stream


def _parts(cuts: Sequence[PlaneCut], height: int) -> Iterator[slice]:
    """Rows of the crop to make at once."""
    most = max(
        cut.row_KT.shape[0] * (int(cut.column_KS.max() - cut.column_KS.min()) + 1) * cut.plane.channels for cut in cuts
    )
    step = max(1, min(height, MAX_TAPPED_BYTES // most))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _inputs(cut: PlaneCut, rows: slice) -> tuple[int, int, dict[str, npt.NDArray[np.generic]]]:
    """Address and length of the bytes that are read, and the other inputs of the crop's graph for a plane."""
    plane = cut.plane
    row_KR, row_weight_KR = cut.row_KT[:, rows], cut.row_weight_KT[:, rows]
    top, left = int(row_KR.min()), int(cut.column_KS.min())
    count = int(row_KR.max()) - top + 1
    used = (int(cut.column_KS.max()) - left + 1) * plane.channels
    length = (count - 1) * plane.pitch + used  # not beyond the frame's last byte: a view may end where its memory does
    others: dict[str, npt.NDArray[np.generic]] = {
        # A row more than is missing, which no tap reads: memory of length 0 would be another case for every provider.
        "gap": np.zeros((count + 1) * plane.pitch - length, np.uint8),
        "layout": np.array([count + 1, plane.pitch], np.int64),
        "bytes": np.array([used], np.int64),
        "rows": np.ascontiguousarray(row_KR - top, np.int64),
        "row_weights": np.ascontiguousarray(row_weight_KR[..., None], np.float32),
        "columns": np.ascontiguousarray(cut.column_KS - left, np.int64),
        "column_weights": np.ascontiguousarray(cut.column_weight_KS[..., None], np.float32),
    }
    return plane.address + top * plane.pitch + left * plane.channels, length, others


# --- The graph of the crop

Tensor = tuple[npt.DTypeLike, Sequence[str | int]]
"""A type, and for each axis its length, or a name where it is dynamic."""

_INPUTS: dict[str, Tensor] = {
    "pixels": (np.uint8, ("L",)),
    "gap": (np.uint8, ("G",)),
    "layout": (np.int64, (2,)),
    "bytes": (np.int64, (1,)),
    "rows": (np.int64, ("K", "R")),
    "row_weights": (np.float32, ("K", "R", 1)),
    "columns": (np.int64, ("M", "S")),
    "column_weights": (np.float32, ("M", "S", 1)),
}
"""Of every plane, their names ending with its number. ``pixels``: the frame's own bytes, from the first pixel that a tap
reads to the last. ``gap``: zeros, what is missing to whole rows. ``layout``: rows and bytes of each. ``bytes``: the bytes
of a row that are pixels of the crop. The rest: the taps of R rows and of S columns of the crop."""


def crop_graph(frame_format: FrameFormat, fill: int = 0) -> bytes:
    """The ModelProto that cuts frames of a format on a grey level: to ``crop``, uint8 (R, S, 3), RGB."""
    layout = LAYOUTS[frame_format]
    first_byte = np.cumsum([0, *(plane.channels for plane in layout.planes)]).tolist()
    order = [first_byte[plane] + byte for plane, byte in layout.channels]
    constants: dict[str, npt.NDArray[np.generic]] = {
        **{f"axis{axis}": np.array([axis], np.int64) for axis in range(4)},
        "half": np.array(0.5, np.float32),
        "of_between": np.array(1 / BETWEEN, np.float32),
        "of_after": np.array(1 / AFTER, np.float32),
        "of_yuv": np.array(1 / YUV_UNIT, np.float32),
        "darkest": np.array(0, np.float32),
        "brightest": np.array(255, np.float32),
        "order": np.array(order, np.int64),
    }
    nodes: list[bytes] = []
    for number, (plane, outside) in enumerate(zip(layout.planes, layout.outside(fill), strict=True)):
        constants[f"black{number}"] = np.array(plane.black + outside, np.float32)
        constants[f"outside{number}"] = np.array(outside, np.float32)
        constants[f"split{number}"] = np.array([0, -1, plane.channels], np.int64)
        nodes += _plane(number, plane.black, outside)
    levels = "levels0"
    if len(layout.planes) > 1:
        levels = "levels"
        nodes.append(node("Concat", [f"levels{number}" for number in range(len(layout.planes))], levels, axis=2))
    nodes.append(node("Gather", [levels, "order"], "channels", axis=2))
    rgb = "channels"
    if layout.matrix is not None:
        rgb = "rgb"
        constants["matrix"] = np.array(layout.matrix, np.float32)
        nodes += [
            node("Unsqueeze", ["channels", "axis2"], "channels_each"),
            node("Mul", ["channels_each", "matrix"], "shares"),
            node("ReduceSum", ["shares", "axis3"], "mixed", keepdims=0),
            *_round("mixed", "of_yuv", "unclipped"),
            node("Clip", ["unclipped", "darkest", "brightest"], rgb),
        ]
    nodes.append(node("Cast", [rgb], "crop", to=type_number(np.uint8)))
    inputs = {f"{name}{number}": _own(tensor, number) for number in range(len(layout.planes))
              for name, tensor in _INPUTS.items()}  # fmt: skip
    return model(nodes, inputs, {"crop": (np.uint8, ("R", "S", 3))}, constants)


def copy_graph() -> bytes:
    """``pixels`` to ``copy``, uint8 (L,): how a frame that is kept comes to the host."""
    return model([node("Identity", ["pixels"], "copy")], {"pixels": _INPUTS["pixels"]}, {"copy": _INPUTS["pixels"]}, {})


def _own(tensor: Tensor, number: int) -> Tensor:
    """Planes have axes of their own, but for the samples that all make."""
    dtype, axes = tensor
    return dtype, tuple(f"{axis}{number}" if axis in ("L", "G", "K", "M") else axis for axis in axes)


def _plane(number: int, black: int, outside: int) -> list[bytes]:
    """From the bytes of one plane to ``levels`` (R, S, bytes of a pixel): levels above black, whole, as float32."""

    def own(*names: str) -> list[str]:
        return [f"{name}{number}" for name in names]

    # Another pass over the largest array there is, so not where black is 0.
    above = "above_black" if black + outside else "tapped_f"
    subtract = [node("Sub", own("tapped_f", "black"), f"{above}{number}")] if black + outside else []
    inside = "inside" if outside else "levels"
    add = [node("Add", own(inside, "outside"), f"levels{number}")] if outside else []
    return [
        node("Concat", own("pixels", "gap"), f"whole{number}", axis=0),
        node("Reshape", own("whole", "layout"), f"grid{number}"),
        node("Slice", [f"grid{number}", "axis0", f"bytes{number}", "axis1"], f"region{number}"),
        node("Gather", own("region", "rows"), f"tapped{number}", axis=0),
        node("Cast", own("tapped"), f"tapped_f{number}", to=type_number(np.float32)),
        *subtract,
        node("Mul", own(above, "row_weights"), f"weighed{number}"),
        node("ReduceSum", [f"weighed{number}", "axis0"], f"summed{number}", keepdims=0),
        *_round(f"summed{number}", "of_between", f"between{number}"),
        node("Reshape", own("between", "split"), f"coloured{number}"),
        node("Gather", own("coloured", "columns"), f"across{number}", axis=1),
        node("Mul", own("across", "column_weights"), f"weighed_across{number}"),
        node("ReduceSum", [f"weighed_across{number}", "axis1"], f"crossed{number}", keepdims=0),
        *_round(f"crossed{number}", "of_after", f"{inside}{number}"),
        *add,
    ]


def _round(source: str, factor: str, output: str) -> list[bytes]:
    """Scale by a power of two and round halves up: all of it exact."""
    return [
        node("Mul", [source, factor], f"{output}_scaled"),
        node("Add", [f"{output}_scaled", "half"], f"{output}_raised"),
        node("Floor", [f"{output}_raised"], output),
    ]


# --- Just enough of ONNX's protocol buffers to write a small graph: the runtime does not depend on onnx.
#
# A message is a run of fields; a field is its number and kind, then a number (kind 0) or a length and as many bytes
# (kind 2). The numbers of the fields are those of onnx.proto. A test reads what this writes with onnx itself and lets its
# checker judge it. A graph that is written when it is needed, and not kept in a file, cannot fall behind the code above.

IR_VERSION, OPSET = 7, 13
"""The oldest in which the axes of a sum are an input: older runtimes than those that alpose asks for read them."""

_TYPES = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int64): 7}
_INT = 2  # the kind of an attribute that is a whole number


def model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    constants: Mapping[str, npt.NDArray[np.generic]],
) -> bytes:
    """A ModelProto. The nodes stand in an order in which they can run."""
    graph = [_bytes(1, each) for each in nodes]
    graph += [_text(2, "alpose")]
    graph += [_bytes(5, _tensor(name, value)) for name, value in constants.items()]
    graph += [_bytes(11, _value(name, *tensor)) for name, tensor in inputs.items()]
    graph += [_bytes(12, _value(name, *tensor)) for name, tensor in outputs.items()]
    opset = _text(1, "") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _text(2, "alpose") + _bytes(7, b"".join(graph)) + _bytes(8, opset)


def node(kind: str, inputs: Sequence[str], output: str, **attributes: int) -> bytes:
    """A NodeProto with one output, named after it."""
    fields = [_text(1, name) for name in inputs]
    fields += [_text(2, output), _text(3, output), _text(4, kind)]
    for name, value in attributes.items():
        fields.append(_bytes(5, _text(1, name) + _number(3, value) + _number(20, _INT)))
    return b"".join(fields)


def type_number(dtype: npt.DTypeLike) -> int:
    """How ONNX numbers a type, as in the attribute ``to`` of Cast."""
    return _TYPES[np.dtype(dtype)]


def _value(name: str, dtype: npt.DTypeLike, axes: Sequence[str | int]) -> bytes:
    shape = b"".join(_bytes(1, _number(1, axis) if isinstance(axis, int) else _text(2, axis)) for axis in axes)
    tensor = _number(1, type_number(dtype)) + _bytes(2, shape)
    return _text(1, name) + _bytes(2, _bytes(1, tensor))


def _tensor(name: str, value: npt.NDArray[np.generic]) -> bytes:
    raw = value.astype(value.dtype.newbyteorder("<")).tobytes()
    dims = b"".join(_number(1, length) for length in value.shape)
    return dims + _number(2, type_number(value.dtype)) + _text(8, name) + _bytes(9, raw)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits in each byte, the lowest first; the eighth says that more follow. A negative number has 64 bits."""
    value &= (1 << 64) - 1
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
