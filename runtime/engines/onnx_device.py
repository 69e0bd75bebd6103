"""Frames in a provider's own memory, for ONNX Runtime: cut by a graph of ours, bound to the model's input.

No pixel passes through the host: the frame is bound by its address, the crop is written into memory of the provider,
and that is bound as the model's input. ONNX Runtime is given in by :mod:`.onnx`, which alone imports it.

Shapes: N frames, S crop side, R rows of it, K taps, L bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..crop import Crop
from ..device_frames import DeviceFrame
from ..dlpack import Where
from ..errors import ConfigError
from ..frames import FrameFormat, accept
from ..types import OUTPUT_NAMES, Outputs
from .crop_graph import copy_graph, crop_graph
from .device import PlaneCut, check, check_place, extent, plane_cuts, probe, require_same, to_rgb

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

MAX_TAPPED_BYTES = 4 << 20
"""Rows of a crop are made in parts whose pixels, once for each tap, stay below this as uint8, and below four times as
much in each of the steps as float32. A crop around a whole frame of 8K would otherwise ask for gigabytes, which ONNX
Runtime keeps; around a person of 800 px one part suffices."""


class OnnxDevice:
    """What an ONNX Runtime session needs to read frames in its provider's memory.

    Args:
        runtime: the module ``onnxruntime``.
        session: the model's.
        options: how sessions are made, for those of the small graphs.
        input_name: of the model.
        size_px: side of its crops.
        name: of the engine, for messages.

    Raises:
        ConfigError: for frames in the memory of this provider nothing is known here.
    """

    def __init__(self, runtime: Any, session: Any, options: Any, input_name: str, size_px: int, name: str) -> None:
        running = session.get_providers()[0]
        if running not in (CPU, CUDA, TENSORRT):
            raise ConfigError(
                f"{name} cannot be given frames in its own memory: only ONNX Runtime's CPU, CUDA and TensorRT "
                "providers can. Give the frame in the host's memory"
            )
        self._gpu = None if running == CPU else int(session.get_provider_options()[running].get("device_id", 0))
        self._runtime, self._session, self._input, self._size, self._name = runtime, session, input_name, size_px, name
        self._options = options
        # As they are written: an optimiser could replace sums by products of matrices. See crop_graph.
        self._options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._small: dict[FrameFormat | None, Any] = {}
        self._crops: Any = None
        self._lock = threading.Lock()
        self.copies_to_host = 0

    def answer(self, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> Outputs:
        """See :class:`~alpose.runtime.engines.device.DeviceEngine`."""
        check(self._name, self._gpu, self._size, frames, crops)
        size, count = self._size, len(frames)
        with self._lock:  # the memory of the crops is shared
            address = self._room(count)
            for place, (frame, crop) in enumerate(zip(frames, crops, strict=True)):
                self._cut(frame, crop, address + place * size * size * 3)
            binding = self._session.io_binding()
            binding.bind_input(self._input, *self._memory, np.uint8, (count, size, size, 3), address)
            for name in OUTPUT_NAMES:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding)
            return Outputs(*binding.copy_outputs_to_cpu())

    def to_host(self, frame: DeviceFrame, region: tuple[int, int, int, int] | None) -> npt.NDArray[np.uint8]:
        """See :class:`~alpose.runtime.engines.device.DeviceEngine`."""
        check_place(self._name, self._gpu, frame)
        with self._lock:
            session = self._open(None)
            binding = session.io_binding()
            binding.bind_input("pixels", *self._memory, np.uint8, (extent(frame),), frame.address)
            binding.bind_output("copy", "cpu")
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            self.copies_to_host += 1
        return to_rgb(binding.copy_outputs_to_cpu()[0], frame, region)

    @property
    def _memory(self) -> tuple[str, int]:
        return ("cpu", 0) if self._gpu is None else ("cuda", self._gpu)

    def _room(self, count: int) -> int:
        """The address of memory of the provider for this many crops."""
        if self._crops is None or self._crops.shape()[0] < count:
            shape = (count, self._size, self._size, 3)
            self._crops = self._runtime.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, *self._memory)
        return int(self._crops.data_ptr())

    def _open(self, form: FrameFormat | None) -> Any:
        """The session of the crop, or without a form of the copy."""
        if form not in self._small:
            # The TensorRT provider would build an engine for every size of frame, in seconds: CUDA runs these as well.
            chain: list[Any] = [CPU] if self._gpu is None else [(CUDA, {"device_id": str(self._gpu)}), CPU]
            graph = copy_graph() if form is None else crop_graph(form)
            session = self._runtime.InferenceSession(graph, self._options, providers=chain)
            session.disable_fallback()
            if (session.get_providers()[0] == CPU) != (self._gpu is None):
                raise ConfigError(
                    f"{self._name} runs on GPU {self._gpu}, and ONNX Runtime's CUDA provider, which cuts frames there, "
                    "did not start: look for the libraries that it misses in ONNX Runtime's log"
                )
            self._small[form] = session
            if form is not None:
                try:
                    self._attest(form)
                except BaseException:
                    del self._small[form]
                    raise
        return self._small[form]

    def _attest(self, form: FrameFormat) -> None:
        """Cut a frame of known pixels in the provider's memory: golden frames judge the model, not this."""
        array, crops = probe(form, self._size)
        values = self._runtime.OrtValue
        held = values.ortvalue_from_numpy(array, *self._memory)
        where = Where.CPU if self._gpu is None else Where.CUDA
        frame = DeviceFrame(form, where, self._gpu, held.data_ptr(), array.shape, array.strides, None, held)
        out = values.ortvalue_from_shape_and_type((self._size, self._size, 3), np.uint8, *self._memory)
        for crop in crops:
            self._cut(frame, crop, out.data_ptr())
            require_same(self._name, form, out.numpy(), accept(array, form).cut(crop))

    def _cut(self, frame: DeviceFrame, crop: Crop, address: int) -> None:
        """Write a crop to an address."""
        session = self._open(frame.form)
        cuts = plane_cuts(frame, crop)
        for rows in _parts(cuts, self._size):
            binding = session.io_binding()
            for number, cut in enumerate(cuts):
                start, length, others = _inputs(cut, rows)
                binding.bind_input(f"pixels{number}", *self._memory, np.uint8, (length,), start)
                for name, value in others.items():
                    binding.bind_cpu_input(f"{name}{number}", value)
            shape = (rows.stop - rows.start, self._size, 3)
            place = address + rows.start * self._size * 3
            binding.bind_output("crop", *self._memory, np.uint8, shape, place)
            # The provider computes in a stream of its own, which waits for no other. For CUDA this waits until the GPU
            # has nothing left to do, so that whatever writes the frame, in whichever stream, has ended.
            binding.synchronize_inputs()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()  # what reads the crop is another session, in another stream


def _parts(cuts: Sequence[PlaneCut], size: int) -> Iterator[slice]:
    """Rows of the crop to make at once."""
    most = max(
        cut.row_KS.shape[0] * (int(cut.column_KS.max() - cut.column_KS.min()) + 1) * cut.plane.channels for cut in cuts
    )
    step = max(1, min(size, MAX_TAPPED_BYTES // most))
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _inputs(cut: PlaneCut, rows: slice) -> tuple[int, int, dict[str, npt.NDArray[np.generic]]]:
    """Address and length of the bytes that are read, and the other inputs of the crop's graph for a plane."""
    plane = cut.plane
    row_KR, row_weight_KR = cut.row_KS[:, rows], cut.row_weight_KS[:, rows]
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
