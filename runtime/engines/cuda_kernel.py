"""A kernel in CUDA C: compiled on the device that runs it, by NVRTC, and launched through the CUDA driver.

The runtime and the driver share a context, and streams and addresses mean the same in both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from .cuda import Cuda, CudaError, handle, load

Arguments = Sequence[tuple[Any, type]]
"""Values with their C types as ctypes names them, in the order of the kernel's parameters."""


class Kernel:
    """One function, ready to be launched on the device of ``cuda``.

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

    def launch(
        self, grid: tuple[int, int, int], block: tuple[int, int, int], arguments: Arguments, stream: Any
    ) -> None:
        """Queue it on a stream of the runtime; the values are copied, what they point to is not."""
        values, types = zip(*arguments, strict=True)
        own = self._driver.CUstream(handle(stream))
        self._call("cuLaunchKernel", self._function, *grid, *block, 0, own, (values, types), 0)

    def close(self) -> None:
        """Unload it. Calling it again does nothing."""
        module, self._module = self._module, None
        if module is not None:
            self._call("cuModuleUnload", module)

    def _call(self, name: str, *arguments: Any) -> Any:
        def meaning(status: Any) -> str:
            text = self._driver.cuGetErrorName(status)[1]
            return text.decode(errors="replace") if isinstance(text, bytes) else str(text)

        return _checked(self._driver, name, arguments, meaning)


def compile_source(source: str, capability: str) -> bytes:
    """Machine code for GPUs of a compute capability, as in ``8.7``.

    Raises:
        CudaError: NVRTC does not load, does not know such a GPU, or finds a mistake; holds its words.
    """
    nvrtc = load("nvrtc")

    def call(name: str, *arguments: Any) -> Any:
        return _checked(nvrtc, name, arguments, lambda status: _text(nvrtc.nvrtcGetErrorString(status)[1]))

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
        with contextlib.suppress(CudaError):
            call("nvrtcDestroyProgram", program)


def _checked(api: Any, name: str, arguments: Sequence[Any], meaning: Callable[[Any], str]) -> Any:
    """The result of a function; None where it gives only a status."""
    try:
        status, *results = getattr(api, name)(*arguments)
    except RuntimeError as error:  # the library itself is missing
        raise CudaError(f"{name} failed: {error}") from error
    if int(status) != 0:
        raise CudaError(f"{name} failed: {meaning(status)}")
    return results[0] if results else None


def _text(content: Any) -> str:
    words = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
    return words.strip("\0 \n")
