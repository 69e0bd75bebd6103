"""CUDA's compiler and driver without a GPU: ``nvrtc`` and ``driver`` as cuda-python gives them out.

Names, arguments and answers are those of cuda-bindings 12.9.10 and 13.5.0 and of cuda-python 12.6.0, whose NVRTC runs
without a GPU and was asked; of the driver only what it checks before it calls libcuda could be seen, the rest is NVIDIA's
documentation. A launch takes exactly the parameters that the source declares, works when its stream is waited for, and
faults where it would read or write memory that nobody allocated.

Nothing is compiled: what a kernel computes is a function in Python, found by the kernel's name.
"""

from __future__ import annotations

import ctypes
import enum
import json
import re
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Answer = tuple[Any, ...]
C_TYPES = {"*": ctypes.c_void_p, "long long": ctypes.c_longlong, "int": ctypes.c_int}


class nvrtcResult(enum.IntEnum):
    NVRTC_SUCCESS = 0
    NVRTC_ERROR_INVALID_OPTION = 5
    NVRTC_ERROR_COMPILATION = 6
    NVRTC_ERROR_INVALID_PROGRAM = 4


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_INVALID_IMAGE = 200
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_FOUND = 500
    CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES = 701


class CUstream:
    def __init__(self, address: int = 0) -> None:
        self.address = address

    def __int__(self) -> int:
        return self.address


def parameters(source: str, name: str) -> list[tuple[str, type]]:
    """Names and types of a kernel's parameters, read from its source."""
    found = re.search(rf'extern "C" __global__ void {name}\(([^)]*)\)', source)
    if found is None:
        raise KeyError(name)
    declared = [" ".join(each.split()) for each in found.group(1).split(",")]
    kinds = [next(kind for words, kind in C_TYPES.items() if words in each) for each in declared]
    return [(re.findall(r"\w+", each)[-1], kind) for each, kind in zip(declared, kinds, strict=True)]


class FakeNvrtc:
    """``nvrtc``. It takes any source in which the parentheses close."""

    def __init__(self) -> None:
        self.programs: dict[int, dict[str, Any]] = {}
        self.missing = False
        """Whether the library is not there."""

    def module(self, name: str) -> ModuleType:
        module = ModuleType(name)
        for function in [each for each in dir(self) if each.startswith("nvrtc")]:
            setattr(module, function, self._asked(function))
        return module

    def _asked(self, name: str) -> Callable[..., Answer]:
        def call(*arguments: Any) -> Answer:
            if self.missing:
                raise RuntimeError("Failed to dlopen libnvrtc.so.12")
            answer: Answer = getattr(self, name)(*arguments)
            return answer

        return call

    def nvrtcGetErrorString(self, result: nvrtcResult) -> Answer:
        return nvrtcResult.NVRTC_SUCCESS, result.name.encode()

    def nvrtcCreateProgram(self, src: bytes, name: bytes, numHeaders: int, headers: Any, includeNames: Any) -> Answer:
        if not isinstance(src, bytes) or not isinstance(name, bytes) or numHeaders != len(headers):
            raise TypeError("expected bytes")
        handle = 0x100 + len(self.programs)
        self.programs[handle] = {"source": src.decode()}
        return nvrtcResult.NVRTC_SUCCESS, handle

    def nvrtcCompileProgram(self, prog: int, numOptions: int, options: list[bytes]) -> Answer:
        program = self.programs[prog]
        if len(options) != numOptions or not all(isinstance(option, bytes) for option in options):
            raise TypeError("options")
        program["log"] = b"alpose.cu(3): error: expected an expression\n\0"
        if not all(re.fullmatch(rb"--gpu-architecture=sm_\d+", option) for option in options):
            return (nvrtcResult.NVRTC_ERROR_INVALID_OPTION,)
        if program["source"].count("(") != program["source"].count(")"):
            return (nvrtcResult.NVRTC_ERROR_COMPILATION,)
        facts = {"source": program["source"], "options": [option.decode() for option in options]}
        program["cubin"] = b"\x7fELF" + json.dumps(facts).encode()
        return (nvrtcResult.NVRTC_SUCCESS,)

    def nvrtcGetProgramLogSize(self, prog: int) -> Answer:
        return nvrtcResult.NVRTC_SUCCESS, len(self.programs[prog]["log"])

    def nvrtcGetProgramLog(self, prog: int, log: bytearray) -> Answer:
        log[:] = self.programs[prog]["log"]
        return (nvrtcResult.NVRTC_SUCCESS,)

    def nvrtcGetCUBINSize(self, prog: int) -> Answer:
        return nvrtcResult.NVRTC_SUCCESS, len(self.programs[prog]["cubin"])

    def nvrtcGetCUBIN(self, prog: int, cubin: bytearray) -> Answer:
        if len(cubin) < len(self.programs[prog]["cubin"]):
            raise ValueError("too short")
        cubin[:] = self.programs[prog]["cubin"]
        return (nvrtcResult.NVRTC_SUCCESS,)

    def nvrtcDestroyProgram(self, prog: int) -> Answer:
        known = self.programs.pop(prog, None) is not None
        return (nvrtcResult.NVRTC_SUCCESS if known else nvrtcResult.NVRTC_ERROR_INVALID_PROGRAM,)


class FakeDriver:
    """``driver``, beside a fake runtime whose memory, streams and context it shares."""

    def __init__(self, cuda: Any, kernels: Mapping[str, Callable[..., None]]) -> None:
        self.cuda, self.kernels = cuda, kernels
        self.modules: dict[int, dict[str, Any]] = {}
        self.launches: list[dict[str, Any]] = []

    def module(self, name: str) -> ModuleType:
        module = ModuleType(name)
        module.CUstream = CUstream  # type: ignore[attr-defined]
        for function in [each for each in dir(self) if each.startswith("cu") and each != "cuda"]:
            setattr(module, function, getattr(self, function))
        return module

    def cuGetErrorName(self, error: CUresult) -> Answer:
        return CUresult.CUDA_SUCCESS, error.name.encode()

    def cuModuleLoadData(self, image: bytes) -> Answer:
        if not self.cuda.has_context:
            return CUresult.CUDA_ERROR_INVALID_CONTEXT, None
        if not image.startswith(b"\x7fELF"):
            return CUresult.CUDA_ERROR_INVALID_IMAGE, None
        handle = 0x200 + len(self.modules)
        self.modules[handle] = json.loads(image[4:])
        return CUresult.CUDA_SUCCESS, handle

    def cuModuleUnload(self, hmod: int) -> Answer:
        known = self.modules.pop(hmod, None) is not None
        return (CUresult.CUDA_SUCCESS if known else CUresult.CUDA_ERROR_INVALID_HANDLE,)

    def cuModuleGetFunction(self, hmod: int, name: bytes) -> Answer:
        try:
            found = parameters(self.modules[hmod]["source"], name.decode())
        except KeyError:
            return CUresult.CUDA_ERROR_NOT_FOUND, None
        return CUresult.CUDA_SUCCESS, (hmod, name.decode(), found)

    def cuLaunchKernel(
        self, f: Any, gridDimX: int, gridDimY: int, gridDimZ: int, blockDimX: int, blockDimY: int, blockDimZ: int,
        sharedMemBytes: int, hStream: Any, kernelParams: Any, extra: int,
    ) -> Answer:  # fmt: skip
        module, name, declared = f
        values, types = kernelParams
        if len(values) != len(types):
            raise TypeError("Argument 'kernelParams' has tuples with different length")
        # The real driver reads as many bytes as the kernel declares, whatever was given.
        if list(types) != [kind for _, kind in declared]:
            raise AssertionError(f"{name} takes {declared}, got {types}")
        for value, kind in zip(values, types, strict=True):
            if type(value) is not int:
                raise TypeError(f"{value!r} is no int")
            if kind is not ctypes.c_void_p and kind(value).value != value:
                raise AssertionError(f"{value} does not fit into {kind}")
        if not self.cuda.has_context:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
        if not isinstance(hStream, CUstream) or int(hStream) not in self.cuda.streams or module not in self.modules:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        if blockDimX * blockDimY * blockDimZ > 1024 or sharedMemBytes or extra:
            return (CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,)
        named = dict(zip([parameter for parameter, _ in declared], values, strict=True))
        threads = (gridDimX * blockDimX, gridDimY * blockDimY)
        self.launches.append(named)
        self.cuda.enqueue(int(hStream), lambda: self.kernels[name](self.cuda.buffer, threads, **named))
        return (CUresult.CUDA_SUCCESS,)


def crop_twin(
    buffer: Callable[[int, int], memoryview], threads: tuple[int, int], *, channels: int, matrix: int, taps: int, height: int,
    width: int, out: int,
) -> None:  # fmt: skip
    """What the crop's kernel computes, channel by channel, in whole numbers."""

    def read(address: int, count: int, dtype: npt.DTypeLike = np.int32) -> npt.NDArray[np.int64]:
        content = buffer(address, count * np.dtype(dtype).itemsize)
        return np.frombuffer(content, dtype).astype(np.int64)

    def axis(place: int, count: int, *, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        index, weight = read(taps + 4 * place, 2 * count * size).reshape(2, count, size)
        return index, weight

    def level(first: int, pitch: int, step: int, black: int, outside: int, *places: int) -> npt.NDArray[np.int64]:
        (row_KS, row_weight_KS), (column_MS, column_weight_MS) = (
            axis(*places[:2], size=height),
            axis(*places[2:], size=width),
        )
        top, left = int(row_KS.min()), int(column_MS.min())
        length = (int(row_KS.max()) - top) * pitch + (int(column_MS.max()) - left) * step + 1
        flat_L = np.frombuffer(buffer(first + top * pitch + left * step, length), np.uint8)
        place_KMSS = (row_KS - top)[:, None, :, None] * pitch + (column_MS - left)[None, :, None, :] * step
        pixel_KMSS = flat_L[place_KMSS].astype(np.int64) - black - outside
        down_MSS = (np.einsum("ks,kmst->mst", row_weight_KS, pixel_KMSS) + 512) >> 10
        return (np.einsum("mt,mst->st", column_weight_MS, down_MSS) + 32768 >> 16) + outside

    levels_3SS = np.stack([level(*each) for each in read(channels, 27, np.int64).reshape(3, 9).tolist()])
    mix_33 = read(matrix, 9).reshape(3, 3)
    if mix_33.any():
        levels_3SS = np.clip((np.einsum("cd,dst->cst", mix_33, levels_3SS) + 4096) >> 13, 0, 255)
    made = np.zeros((height, width, 3), np.uint8)
    across, down = threads  # threads that do not exist leave their pixels as they are: here, black
    made[:down, :across] = levels_3SS.transpose(1, 2, 0)[:down, :across]
    buffer(out, made.nbytes)[:] = made.tobytes()


def install(patch: Any, cuda: Any, old: bool = False) -> tuple[FakeNvrtc, FakeDriver]:
    """Put both beside the fake runtime, under the names before 12.6.1 or since; ``patch`` is pytest's monkeypatch."""
    nvrtc, driver = FakeNvrtc(), FakeDriver(cuda, {"alpose_crop": crop_twin})
    for part, older, module in (("nvrtc", "cuda.nvrtc", nvrtc.module), ("driver", "cuda.cuda", driver.module)):
        newer = f"cuda.bindings.{part}"
        spelling, other = (older, newer) if old else (newer, older)
        patch.setitem(sys.modules, other, None)
        patch.setitem(sys.modules, spelling, module(spelling))
    return nvrtc, driver
