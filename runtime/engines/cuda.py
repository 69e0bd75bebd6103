"""The few calls of the CUDA runtime that an engine needs, each checked; cuda-python is imported here alone.

Kernels, which need its other parts, are in :mod:`.cuda_kernel`.

Its functions answer a tuple: a status, then the results. Older releases raise RuntimeError instead where the driver's
library is missing. Both become :class:`CudaError`, which names the call and what CUDA calls the failure.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from ..errors import AlposeError, MissingExtraError

SPELLINGS = {
    "runtime": ("cuda.bindings.runtime", "cuda.cudart"),
    "driver": ("cuda.bindings.driver", "cuda.cuda"),
    "nvrtc": ("cuda.bindings.nvrtc", "cuda.nvrtc"),
}
"""Where cuda-python keeps its parts: since 12.6.1, and before. 13.0 removed the older names."""

_PARTS = frozenset({"cuda", "cuda.bindings"}.union(*SPELLINGS.values()))


class CudaError(AlposeError, RuntimeError):
    """A call of the CUDA runtime failed, or there is no GPU to call."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What an engine is built for."""

    name: str
    compute_capability: str
    """As in ``8.7``."""
    driver: str
    """The CUDA version that the driver reaches, as in ``12.6``."""
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
        try:
            status, *results = getattr(self._api, name)(*arguments)
        except RuntimeError as error:
            raise CudaError(f"{name} failed: {error}") from error
        if int(status) != 0:
            raise CudaError(f"{name} failed: {self._meaning(status)}")
        return results[0] if results else None

    def gpu(self) -> Gpu:
        """The current device."""
        found = self.call("cudaGetDeviceProperties", self.device)
        name = found.name if isinstance(found.name, str) else found.name.split(b"\0")[0].decode(errors="replace")
        driver, runtime = (_version(self.call(f"cuda{which}GetVersion")) for which in ("Driver", "Runtime"))
        return Gpu(name.strip(), f"{found.major}.{found.minor}", driver, runtime)

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
            try:
                text = getattr(self._api, name)(status)[1]
            except RuntimeError:
                continue
            words.append(text.decode(errors="replace") if isinstance(text, bytes) else str(text))
        return f"{words[0]} ({words[1]})" if len(words) == 2 else f"status {int(status)}"


def handle(stream: Any) -> int:
    """The address of a stream, as TensorRT takes it; ``int(stream)`` is deprecated where cuda-python has this."""
    try:
        return int(importlib.import_module("cuda.bindings.utils").get_cuda_native_handle(stream))
    except (ImportError, AttributeError):
        return int(stream)


def _contiguous(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not array.flags.c_contiguous:  # the copy would take the bytes between its numbers for numbers
        raise CudaError(f"an array of shape {array.shape} and strides {array.strides} is not contiguous")
    return array


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


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
