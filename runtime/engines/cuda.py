"""CUDA through cuda-python, which is imported here alone: the runtime's calls, each checked, and the crop as a kernel.

cuda-python's functions return a tuple: a status, then the results. Older releases raise RuntimeError instead where the
driver's library is missing. Both become :class:`CudaError`, which names the call and CUDA's own name of the failure. The
kernel is compiled by NVRTC on the device that runs it and launched through the driver; runtime and driver share a context,
and streams and addresses mean the same in both.

Shapes: S samples across the crop.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..crop import Crop, CropRule
from ..dlpack import MemoryKind, packed
from ..errors import AlposeError, MissingExtraError
from ..frames import LAYOUTS, YUV_UNIT, DeviceFrame, FrameFormat
from ..resampling import AFTER, BETWEEN
from .device import DeviceCropper, plane_cuts

SPELLINGS = {
    "runtime": ("cuda.bindings.runtime", "cuda.cudart"),
    "driver": ("cuda.bindings.driver", "cuda.cuda"),
    "nvrtc": ("cuda.bindings.nvrtc", "cuda.nvrtc"),
}
"""Where cuda-python keeps its parts: since 12.6.1, and before. 13.0 removed the older names."""

_PARTS = frozenset({"cuda", "cuda.bindings"}.union(*SPELLINGS.values()))


class CudaError(AlposeError, RuntimeError):
    """A call of CUDA failed, or there is no GPU to call."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What an engine is built for."""

    name: str
    compute_capability: str
    """As in ``8.7``."""
    driver: str
    """The newest CUDA version of the driver, as in ``12.6``."""
    runtime: str
    """The CUDA version of the runtime that cuda-python brings."""


class Cuda:
    """The CUDA runtime with every status checked, on the device that was current when this was made.

    Another GPU is chosen with ``CUDA_VISIBLE_DEVICES``.

    Raises:
        MissingExtraError: cuda-python is not installed.
        CudaError: it does not load, or there is no GPU that it can use.
    """

    def __init__(self) -> None:
        self._api = load("runtime")
        try:
            devices = int(self.call("cudaGetDeviceCount"))
        except CudaError as error:
            raise CudaError(
                f"no GPU can be used: {error}; a TensorRT engine needs an NVIDIA GPU, its driver, and a cuda-python "
                "that is not newer than the driver (with a driver for CUDA 12: pip install 'cuda-python<13')"
            ) from error
        if devices < 1:
            raise CudaError(
                "no GPU can be used: CUDA sees none (CUDA_VISIBLE_DEVICES hides those that it does not name)"
            )
        self.device = int(self.call("cudaGetDevice"))

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a function of the runtime; None where it gives only a status."""
        return _call(self._api, name, arguments, self._meaning)

    def gpu(self) -> Gpu:
        """The current device."""
        found = self.call("cudaGetDeviceProperties", self.device)
        driver, runtime = (int(self.call(f"cuda{which}GetVersion")) for which in ("Driver", "Runtime"))
        versions = (f"{number // 1000}.{number % 1000 // 10}" for number in (driver, runtime))
        return Gpu(_text(found.name), f"{found.major}.{found.minor}", *versions)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the device current for a while: it is a setting of the thread, and others may have changed it."""
        before = int(self.call("cudaGetDevice"))
        if before == self.device:
            yield
            return
        self.call("cudaSetDevice", self.device)
        try:
            yield
        finally:
            self.call("cudaSetDevice", before)

    def to_device(self, address: int, array: npt.NDArray[Any], stream: Any) -> None:
        """Queue a copy; the array must live and stay as it is until the stream was waited for."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, _contiguous(array).ctypes.data, array.nbytes, kind, stream)

    def to_host(self, array: npt.NDArray[Any], address: int, stream: Any) -> None:
        """Queue a copy into an array, which must live until the stream was waited for."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", _contiguous(array).ctypes.data, address, array.nbytes, kind, stream)

    def _meaning(self, status: Any) -> str:
        words = []
        for name in ("cudaGetErrorName", "cudaGetErrorString"):
            with suppress(RuntimeError):
                words.append(_text(getattr(self._api, name)(status)[1]))
        return f"{words[0]} ({words[1]})" if len(words) == 2 else f"status {int(status)}"


def load(part: str) -> Any:
    """The module of a part of cuda-python: ``runtime``, ``driver`` or ``nvrtc``."""
    for spelling in SPELLINGS[part]:
        try:
            return importlib.import_module(spelling)
        except ModuleNotFoundError as error:
            if error.name not in _PARTS:
                raise CudaError(f"cuda-python is installed but does not load: {error}") from error
        except (ImportError, OSError, RuntimeError) as error:
            raise CudaError(f"cuda-python is installed but does not load: {error}") from error
    raise MissingExtraError("cuda-python", "A TensorRT engine", "tensorrt")


def handle(stream: Any) -> int:
    """The address of a stream, as TensorRT takes it; ``int(stream)`` is deprecated where cuda-python has this."""
    try:
        return int(importlib.import_module("cuda.bindings.utils").get_cuda_native_handle(stream))
    except (ImportError, AttributeError):
        return int(stream)


def _call(api: Any, name: str, arguments: tuple[Any, ...], meaning: Callable[[Any], str]) -> Any:
    """The result of a function; None where it gives only a status. ``meaning`` says what a failed status means."""
    try:
        status, *results = getattr(api, name)(*arguments)
    except RuntimeError as error:  # the library itself is missing
        raise CudaError(f"{name} failed: {error}") from error
    if int(status) != 0:
        raise CudaError(f"{name} failed: {meaning(status)}")
    return results[0] if results else None


def _contiguous(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not array.flags.c_contiguous:  # the copy would take the bytes between its numbers for numbers
        raise CudaError(f"an array of shape {array.shape} and strides {array.strides} is not contiguous")
    return array


def _text(content: Any) -> str:
    words = content.partition(b"\0")[0].decode(errors="replace") if isinstance(content, bytes) else str(content)
    return words.strip("\0 \n")


# --- Kernels


class Kernel:
    """One function of CUDA C, compiled, ready to be launched on the device of ``cuda``.

    Raises:
        MissingExtraError: cuda-python is not installed.
        CudaError: NVRTC or the driver is missing, or refuses it.
    """

    def __init__(self, cuda: Cuda, source: str, name: str) -> None:
        self._driver = load("driver")
        self._module: Any = None
        cuda.call("cudaFree", 0)  # frees nothing: the runtime's context becomes the one that the driver works in
        image = compile_source(source, cuda.gpu().compute_capability)
        self._module = self._call("cuModuleLoadData", image)
        self._function = self._call("cuModuleGetFunction", self._module, name.encode())

    def launch(self, blocks: int, threads: int, arguments: Sequence[tuple[Any, type]], stream: Any) -> None:
        """Queue it on a stream of the runtime, over a square of blocks of squares of threads.

        ``arguments`` are the values of the kernel's parameters with their types of ctypes; what they point to is not
        copied.
        """
        values, types = zip(*arguments, strict=True)
        own = self._driver.CUstream(handle(stream))
        grid, block = (blocks, blocks, 1), (threads, threads, 1)
        self._call("cuLaunchKernel", self._function, *grid, *block, 0, own, (values, types), 0)

    def close(self) -> None:
        """Unload it. Calling it again does nothing."""
        module, self._module = self._module, None
        if module is not None:
            self._call("cuModuleUnload", module)

    def _call(self, name: str, *arguments: Any) -> Any:
        return _call(self._driver, name, arguments, lambda status: _text(self._driver.cuGetErrorName(status)[1]))


def compile_source(source: str, capability: str) -> bytes:
    """Machine code for GPUs of a compute capability, as in ``8.7``.

    Raises:
        CudaError: NVRTC does not load, does not know such a GPU, or finds a mistake; holds its words.
    """
    nvrtc = load("nvrtc")

    def call(name: str, *arguments: Any) -> Any:
        return _call(nvrtc, name, arguments, lambda status: _text(nvrtc.nvrtcGetErrorString(status)[1]))

    # With the GPU's own code and no PTX: a driver older than this NVRTC runs it too.
    option = f"--gpu-architecture=sm_{capability.replace('.', '')}".encode()
    try:
        program = call("nvrtcCreateProgram", source.encode(), b"alpose.cu", 0, [], [])
    except CudaError as error:
        raise CudaError(
            f"{error}. Frames on the GPU are cut by a kernel that CUDA's compiler library NVRTC makes: it is part of the "
            "CUDA toolkit and of JetPack, or: pip install nvidia-cuda-nvrtc (with a driver for CUDA 12: "
            "nvidia-cuda-nvrtc-cu12)"
        ) from error
    try:
        try:
            call("nvrtcCompileProgram", program, 1, [option])
        except CudaError as error:
            log = bytearray(call("nvrtcGetProgramLogSize", program))
            call("nvrtcGetProgramLog", program, log)
            raise CudaError(f"{error} for {option.decode()}: {_text(bytes(log)) or 'no log'}") from error
        image = bytearray(call("nvrtcGetCUBINSize", program))
        call("nvrtcGetCUBIN", program, image)
        return bytes(image)
    finally:
        with suppress(CudaError):
            call("nvrtcDestroyProgram", program)


# --- The crop


NAME = "alpose_crop"
THREADS = 16
"""Threads of a block along each axis of the crop."""

# One thread makes one pixel. Each pixel of the frame is read by about four threads, as many as there are filters over
# it: doing rows and columns in one go costs no more than two kernels with memory between them. Whole numbers below 2^24
# throughout; shifting a negative one to the right rounds it down, as floor does. A format is known by its three channels.
SOURCE = """
struct Channel {  // where its bytes are, and at which places in taps its indices begin; the weights follow them
    long long first, pitch, step, black, outside, rows, row_count, columns, column_count;
};

__device__ int sample(const Channel *channel, const int *taps, int row, int column, int height, int width) {
    const unsigned char *first = (const unsigned char *)channel->first;
    const int *row_index = taps + channel->rows, *column_index = taps + channel->columns;
    const int rows = channel->row_count * height, columns = channel->column_count * width;
    const int zero = (int)(channel->black + channel->outside);
    int across = 0;
    for (int m = column; m < columns; m += width) {
        if (!column_index[columns + m]) continue;
        const unsigned char *line = first + column_index[m] * channel->step;
        int down = 0;
        for (int k = row; k < rows; k += height)
            if (row_index[rows + k])
                down += row_index[rows + k] * (line[row_index[k] * channel->pitch] - zero);
        across += column_index[columns + m] * ((down + BETWEEN / 2) >> BETWEEN_BITS);
    }
    return ((across + AFTER / 2) >> AFTER_BITS) + (int)channel->outside;
}

// matrix: for each colour its shares of luma and the two chromas; all 0 where the channels are colours.
extern "C" __global__ void alpose_crop(const Channel *channels, const int *matrix, const int *taps, int height, int width,
                                       unsigned char *out) {
    int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= height || column >= width) return;
    unsigned char *pixel = out + ((long long)row * width + column) * 3;
    int level[3];
    for (int c = 0; c < 3; ++c)
        level[c] = c && channels[c].first == channels[c - 1].first ? level[c - 1]
                                                                   : sample(channels + c, taps, row, column, height, width);
    for (int c = 0; c < 3; ++c, matrix += 3) {
        int mixed = (matrix[0] * level[0] + matrix[1] * level[1] + matrix[2] * level[2] + YUV_UNIT / 2) >> YUV_BITS;
        pixel[c] = !matrix[0] ? level[c] : mixed < 0 ? 0 : mixed > 255 ? 255 : mixed;
    }
}
"""

_CHANNELS = 3 * 9
"""Whole numbers of 64 bits that describe the channels; 9 of 32 bits, the matrix, follow, and then the taps."""
_PARAMETERS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)


def source() -> str:
    """The kernel with the numbers that every implementation of the crop shares."""
    bits = {"BETWEEN_BITS": BETWEEN.bit_length() - 1, "AFTER_BITS": AFTER.bit_length() - 1,
            "YUV_BITS": YUV_UNIT.bit_length() - 1}  # fmt: skip
    numbers = {"BETWEEN": BETWEEN, "AFTER": AFTER, "YUV_UNIT": YUV_UNIT} | bits
    return "".join(f"#define {name} {value}\n" for name, value in numbers.items()) + SOURCE


class CropKernel(DeviceCropper):
    """Cuts crops on the GPU. It is compiled when this is made; the memory for the taps grows and is kept.

    Args:
        cuda: with its device current.
        stream: in which everything is queued.
        rule: of the crops.
    """

    def __init__(self, cuda: Cuda, stream: Any, rule: CropRule) -> None:
        super().__init__("the GPU's crop kernel", rule)
        self._cuda, self._stream = cuda, stream
        self._taps, self._taps_bytes = 0, 0
        self._kernel = Kernel(cuda, source(), NAME)

    def queue(self, frame: DeviceFrame, crop: Crop, address: int) -> npt.NDArray[np.uint8]:
        """Queue the writing of a crop (T, S, 3) to an address.

        Returns:
            what must live and stay as it is until the stream was waited for.
        """
        self.verify(frame.format)
        return self._queue(frame, crop, address)

    def _queue(self, frame: DeviceFrame, crop: Crop, address: int) -> npt.NDArray[np.uint8]:
        content = _plan(frame, crop)
        self._grow(content.nbytes)
        self._cuda.to_device(self._taps, content, self._stream)
        matrix = self._taps + 8 * _CHANNELS
        values = (self._taps, matrix, matrix + 4 * 9, crop.height_px, crop.width_px, address)
        arguments = list(zip(values, _PARAMETERS, strict=True))
        self._kernel.launch(-(-max(crop.height_px, crop.width_px) // THREADS), THREADS, arguments, self._stream)
        return content

    def cut_copy(self, frame: npt.NDArray[np.uint8], frame_format: FrameFormat, crop: Crop) -> npt.NDArray[np.uint8]:
        """See :class:`~.device.DeviceCropper`."""
        cuda, stream = self._cuda, self._stream
        got_TS3 = np.empty((crop.height_px, crop.width_px, 3), np.uint8)
        address = int(cuda.call("cudaMalloc", frame.nbytes + got_TS3.nbytes))
        try:
            cuda.to_device(address, frame, stream)
            copied = DeviceFrame(frame_format, MemoryKind.CUDA, cuda.device, address, frame.shape, packed(frame.shape),
                                 None, frame)  # fmt: skip
            held = self._queue(copied, crop, address + frame.nbytes)
            cuda.to_host(got_TS3, address + frame.nbytes, stream)
            cuda.call("cudaStreamSynchronize", stream)
            del held
        finally:
            with suppress(CudaError):
                cuda.call("cudaStreamSynchronize", stream)  # what is queued works in the memory that goes now
            cuda.call("cudaFree", address)
        return got_TS3

    def close(self) -> None:
        """Give memory and code back, once nothing is queued any more."""
        memory, self._taps, self._taps_bytes = self._taps, 0, 0
        try:
            self._kernel.close()
        finally:
            if memory:
                self._cuda.call("cudaFree", memory)

    def _grow(self, size: int) -> None:
        if size <= self._taps_bytes:
            return
        self._cuda.call("cudaStreamSynchronize", self._stream)  # what is queued reads the memory that goes now
        old, self._taps, self._taps_bytes = self._taps, 0, 0
        if old:
            self._cuda.call("cudaFree", old)
        size = (
            1 << (size - 1).bit_length()
        )  # a person who comes nearer would otherwise need a larger buffer at every frame
        self._taps = int(self._cuda.call("cudaMalloc", size))
        self._taps_bytes = size


def _plan(frame: DeviceFrame, crop: Crop) -> npt.NDArray[np.uint8]:
    """The bytes that the kernel reads: channels, matrix and taps."""
    cuts, layout, places = plane_cuts(frame, crop), LAYOUTS[frame.format], []
    parts: list[npt.NDArray[np.int32]] = []
    for cut in cuts:
        places.append(sum(map(len, parts)))
        taps = (cut.row_KT, cut.row_weight_KT, cut.column_KS, cut.column_weight_KS)
        parts += [np.ravel(part).astype(np.int32) for part in taps]
    channels = [
        (cuts[n].plane.address + byte, cuts[n].plane.pitch, cuts[n].plane.channels, cuts[n].black, cuts[n].outside,
         places[n], len(cuts[n].row_KT), places[n] + 2 * cuts[n].row_KT.size, len(cuts[n].column_KS))
        for n, byte in layout.channels
    ]  # fmt: skip
    matrix = np.zeros((3, 3), np.int32) if layout.matrix is None else np.array(layout.matrix, np.int32)
    arrays: list[npt.NDArray[Any]] = [np.array(channels, np.int64), matrix, *parts]
    return np.concatenate([array.view(np.uint8).ravel() for array in arrays])
