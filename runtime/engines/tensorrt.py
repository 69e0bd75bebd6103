"""Running a TensorRT engine that was built on this device. ``docs/tensorrt.md`` says what was checked, and where.

:mod:`.tensorrt_plans` finds TensorRT, and chooses the plan that belongs to this device and this bundle.

Shapes: N frames, B rows of one run, S crop side, J joints, D dimensions of the embedding.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..bundle.manifest import check_against_engine
from ..crop import Crop
from ..frames import DeviceFrame, Region
from ..types import Outputs, output_shapes
from .cuda import CropKernel, CudaError, handle
from .device import check_crops, check_frames, check_memory, to_rgb
from .tensorrt_plans import Profile, TensorRTDevice, TensorRTError, create, logger, read_engine, rebuild

INPUT = "frames"

Place = Callable[[Sequence[int]], object]
"""Queues the writing of the crops of these numbers into the engine's input, in this order. What it returns must live
until the stream was waited for."""


class TensorRTEngine:
    """An engine of this device, ready to answer. Use it as a context manager, or close it.

    The GPU's buffers are made once, for the largest batch; more frames than that are answered in several runs, fewer
    than the smallest batch are filled up. One call runs at a time: threads wait for each other.

    Args:
        bundle: an opened bundle, or its folder.
        plan: a plan to run instead of the one in the bundle's folder; for the builder, which has just made it.
        here: TensorRT and the GPU; looked for when left out.

    Raises:
        MissingExtraError: TensorRT or cuda-python is not installed.
        DataNotFoundError: no engine was built.
        StaleEngineError: the one that is there belongs to something else.
        TensorRTError: TensorRT cannot load it.
        CudaError: there is no GPU, or not enough memory on it.
        BundleError: the engine's inputs and outputs are not the bundle's.
    """

    def __init__(
        self, bundle: Bundle | str | Path, *, plan: bytes | None = None, here: TensorRTDevice | None = None
    ) -> None:
        self._open = False
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        here = here or TensorRTDevice.here()
        if plan is None:
            plan, _ = read_engine(self.bundle, here.key(self.bundle))
        self._trt, self._cuda = here.trt, here.cuda
        self._lock = threading.Lock()
        self._addresses: dict[str, int] = {}
        self._stream: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._rows = 0
        self._cropper: CropKernel | None = None
        self.copies_to_host = 0
        self._open = True
        try:
            with self._cuda.current():
                self._start(plan)
        except BaseException:
            with suppress(CudaError):
                self.close()
            raise

    @property
    def name(self) -> str:
        """As in ``tensorrt fp16``."""
        return f"tensorrt {self.bundle.manifest.precision}"

    @property
    def max_batch(self) -> int:
        """The most frames of one run."""
        return self.profile.max

    @property
    def golden_batches(self) -> tuple[int, ...]:
        """The batches in which the golden frames verify it: the one it is fastest at, and the largest."""
        return tuple(sorted({self.profile.opt, self.profile.max}))

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be ending: nothing can be done, and there is no log
            self.close()

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer N ≥ 1 RGB crops (N, T, S, 3); the arrays belong to the caller."""
        check_crops(self.name, self.bundle.crop, frames_NHW3)

        def place(chosen: Sequence[int]) -> object:
            part = np.ascontiguousarray(frames_NHW3[list(chosen)])
            self._cuda.to_device(self._addresses[INPUT], part, self._stream)
            return part

        return self._answer(len(frames_NHW3), place)

    def answer_device(self, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> Outputs:
        """Cut and answer frames that lie on this GPU; see :class:`~.device.DeviceEngine`."""
        rule = self.bundle.crop
        check_frames(self.name, self._cuda.device, rule, frames, crops)

        def place(chosen: Sequence[int]) -> object:
            cropper = self._cropper = self._cropper or CropKernel(self._cuda, self._stream, rule)
            for stream in {frames[n].stream for n in chosen} - {None}:
                self._cuda.call("cudaStreamSynchronize", stream)  # its producer may still be writing
            address, step = self._addresses[INPUT], rule.height_px * rule.width_px * 3
            return [cropper.queue(frames[n], crops[n], address + row * step) for row, n in enumerate(chosen)]

        return self._answer(len(frames), place)

    def to_host(self, frame: DeviceFrame, region: Region | None = None) -> npt.NDArray[np.uint8]:
        """A copy as RGB of a frame that lies on this GPU; see :class:`~.device.DeviceEngine`."""
        check_memory(self.name, self._cuda.device, frame)
        content_L = np.empty(frame.extent, np.uint8)
        with self._working():
            if frame.stream is not None:
                self._cuda.call("cudaStreamSynchronize", frame.stream)
            self._cuda.to_host(content_L, frame.address, self._stream)
            self._cuda.call("cudaStreamSynchronize", self._stream)
            self.copies_to_host += 1
        return to_rgb(content_L, frame, region)

    def close(self) -> None:
        """Give the GPU's memory back. Calling it again does nothing."""
        lock = getattr(self, "_lock", None)
        if lock is None:
            return
        with lock:
            if not self._open:
                return
            self._open = False
            failures = []
            with self._cuda.current():
                if self._stream is not None:
                    failures += self._attempt(self._cuda.call, "cudaStreamSynchronize", self._stream)
                if self._cropper is not None:
                    failures += self._attempt(self._cropper.close)
                self._context = self._engine = self._runtime = None  # in this order: each lives on the next
                for address in self._addresses.values():
                    failures += self._attempt(self._cuda.call, "cudaFree", address)
                if self._stream is not None:
                    failures += self._attempt(self._cuda.call, "cudaStreamDestroy", self._stream)
            self._addresses, self._stream, self._cropper = {}, None, None
        if failures:
            raise failures[0]

    @staticmethod
    def _attempt(step: Callable[..., object], *arguments: Any) -> list[CudaError]:
        """Everything else is given back even where one thing cannot be."""
        try:
            step(*arguments)
        except CudaError as error:
            return [error]
        return []

    def _start(self, plan: bytes) -> None:
        trt = self._trt
        log_to, self._messages = logger(trt)
        self._runtime = create(lambda: trt.Runtime(log_to), "starting TensorRT's runtime", self._messages)
        what = f"loading an engine of {self.bundle.folder}"
        self._engine = create(lambda: self._runtime.deserialize_cuda_engine(plan), what, self._messages)
        self.profile = self._check()
        self._context = create(self._engine.create_execution_context, "making an execution context", self._messages)
        shapes = self._shapes(self.profile.max)
        self._stream = self._cuda.call("cudaStreamCreate")
        self._handle = handle(self._stream)
        for name, shape in shapes.items():
            bytes_each = 1 if name == INPUT else np.dtype(np.float32).itemsize
            self._addresses[name] = int(self._cuda.call("cudaMalloc", math.prod(shape) * bytes_each))
            self._require(self._context.set_tensor_address(name, self._addresses[name]), f"placing {name}")
        if self.profile.static:
            self._rows = self.profile.max  # such an engine has its shape already

    def _check(self) -> Profile:
        """Compare the engine's tensors with the manifest, and read which batches it takes."""
        trt, engine = self._trt, self._engine
        shapes: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            taken = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shapes[taken][name] = [int(length) for length in engine.get_tensor_shape(name)]
            wanted = trt.DataType.UINT8 if taken else trt.DataType.FLOAT
            if engine.get_tensor_dtype(name) != wanted or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise TensorRTError(
                    f"{name} of the engine must be {wanted} on the GPU, it is {engine.get_tensor_dtype(name)} at "
                    f"{engine.get_tensor_location(name)}: build it again with: {rebuild(self.bundle)}"
                )
        check_against_engine(self.bundle.manifest, shapes[True], shapes[False])
        rows = shapes[True][INPUT][0]
        if rows != -1:
            return Profile(min=rows, opt=rows, max=rows)
        sizes = [int(shape[0]) for shape in engine.get_tensor_profile_shape(INPUT, 0)]
        return Profile(min=sizes[0], opt=sizes[1], max=sizes[2])

    def _shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor for a batch."""
        manifest = self.bundle.manifest
        outputs = output_shapes(rows, len(manifest.skeleton), manifest.dimensions, manifest.outputs)
        return {INPUT: (rows, manifest.crop.height_px, manifest.crop.width_px, 3), **outputs}

    def _empty(self, rows: int) -> dict[str, npt.NDArray[np.float32]]:
        return {name: np.empty(shape, np.float32) for name, shape in self._shapes(rows).items() if name != INPUT}

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Alone, on the engine's GPU, and not after it was closed."""
        with self._lock:
            if not self._open:
                raise TensorRTError(f"{self.name} of {self.bundle.folder} was closed: make a new one")
            with self._cuda.current():
                yield

    def _answer(self, count: int, place: Place) -> Outputs:
        """Answer ``count`` crops in as many runs as it takes."""
        outputs = self._empty(count)
        with self._working():
            for start in range(0, count, self.profile.max):
                rows = range(start, min(start + self.profile.max, count))
                missing = max(0, self.profile.min - len(rows))
                chosen = [*rows, *[rows[-1]] * missing]
                self._run(chosen, place, {name: outputs[name][rows.start : rows.stop] for name in outputs})
        return Outputs(*outputs.values())

    def _run(self, chosen: Sequence[int], place: Place, outputs: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Answer one batch; its first rows go into ``outputs``."""
        rows = len(chosen)
        self._messages.clear()
        if rows != self._rows:
            self._rows = 0  # what a failure leaves behind is not known
            self._require(self._context.set_input_shape(INPUT, self._shapes(rows)[INPUT]), f"a batch of {rows}")
            self._rows = rows
        held: object = None
        try:
            held = place(chosen)
            self._require(self._context.execute_async_v3(self._handle), "running the engine")
            for name, value in outputs.items():
                self._cuda.to_host(value, self._addresses[name], self._stream)
        except BaseException:
            # Copies that are under way write into arrays that are about to be thrown away.
            with suppress(CudaError):
                self._cuda.call("cudaStreamSynchronize", self._stream)
            raise
        self._cuda.call("cudaStreamSynchronize", self._stream)
        del held  # the copies have read it

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise self._messages.explain(f"{self.name}: {what} failed")
