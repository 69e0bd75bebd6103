"""A CUDA runtime without a GPU, as cuda-python gives it out: statuses in tuples, addresses as whole numbers.

Names, arguments and answers are those of cuda-bindings 13.5.0 and cuda-python 12.6.0, both installed and asked on a
machine without a GPU. It is stricter than the real one: a copy beyond an allocation, a pointer that was freed or was
never one, and a stream that is gone all fail, and what was copied to the host arrives when the stream is waited for
and no earlier.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

ALIGNMENT = 256


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStream_t:
    def __init__(self, address: int) -> None:
        self._address = address

    def __int__(self) -> int:
        return self._address


OK = cudaError_t.cudaSuccess
Answer = tuple[Any, ...]


class FakeCuda:
    """The state behind the functions; :meth:`module` gives them out."""

    def __init__(self, *, gpu: str = "Orin", capability: tuple[int, int] = (8, 7), driver: int = 12060) -> None:
        self.gpu, self.capability, self.driver, self.devices, self.device = gpu, capability, driver, 1, 0
        self.memory: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.streams: dict[int, list[Callable[[], object]]] = {}
        self.default_streams: dict[int, list[Callable[[], object]]] = {1: [], 2: []}
        """Those that CUDA has by itself; nobody makes them or gives them back."""
        self._context = threading.local()
        self.calls: list[str] = []
        self.failing: dict[str, tuple[int, cudaError_t]] = {}
        self.raising: Exception | None = None
        """What every call raises instead of answering, as cuda-python 12.6.0 does without libcuda."""

    def fail(self, name: str, after: int = 0, status: cudaError_t = cudaError_t.cudaErrorLaunchFailure) -> None:
        """Let a function fail from its ``after``-th call from now on."""
        self.failing[name] = (self.calls.count(name) + after, status)

    @property
    def leaks(self) -> int:
        """What was not given back."""
        return len(self.memory) + len(self.streams)

    @property
    def has_context(self) -> bool:
        """Whether this thread has called the runtime so that the driver has a context to work in."""
        return bool(getattr(self._context, "there", False))

    def module(self, name: str) -> ModuleType:
        module = ModuleType(name)
        for kind in (cudaError_t, cudaMemcpyKind, cudaStream_t):
            setattr(module, kind.__name__, kind)
        for function in [each for each in dir(self) if each.startswith("cuda")]:
            setattr(module, function, self._checked(function))
        return module

    def buffer(self, address: int, size: int) -> memoryview:
        """The bytes at an address of the device; ValueError for any that nobody allocated."""
        for start, block in self.memory.items():
            if start <= address and address + size <= start + len(block) - ALIGNMENT:
                offset = address - ctypes.addressof(block)
                return memoryview(block).cast("B")[offset : offset + size]
        raise ValueError(f"{size} bytes at {address:#x} were not allocated")

    def enqueue(self, stream: int, work: Callable[[], object]) -> None:
        """Work for a stream; it is done when the stream is waited for."""
        (self.streams | self.default_streams)[stream].append(work)

    def _checked(self, name: str) -> Callable[..., Answer]:
        def call(*arguments: Any) -> Answer:
            if self.raising is not None:
                raise self.raising
            from_call, status = self.failing.get(name, (1 << 30, OK))
            self.calls.append(name)
            answer: Answer = getattr(self, name)(*arguments)
            if name in ("cudaMalloc", "cudaFree", "cudaStreamCreate", "cudaMemcpyAsync"):
                self._context.there = True
            # A failed call gives as many results as one that succeeded, all of them None.
            return (status, *([None] * (len(answer) - 1))) if self.calls.count(name) > from_call else answer

        return call

    def cudaGetDeviceCount(self) -> Answer:
        return (OK, self.devices) if self.devices else (cudaError_t.cudaErrorNoDevice, None)

    def cudaGetDevice(self) -> Answer:
        return OK, self.device

    def cudaSetDevice(self, device: int) -> Answer:
        if not 0 <= device < self.devices:
            return (cudaError_t.cudaErrorInvalidDevice,)
        self.device = device
        return (OK,)

    def cudaGetDeviceProperties(self, device: int) -> Answer:
        major, minor = self.capability
        return OK, SimpleNamespace(name=self.gpu.encode() + b"\0" * 8, major=major, minor=minor)

    def cudaDriverGetVersion(self) -> Answer:
        return OK, self.driver

    def cudaRuntimeGetVersion(self) -> Answer:
        return OK, 12060

    def cudaGetErrorName(self, error: cudaError_t) -> Answer:
        return OK, error.name.encode()

    def cudaGetErrorString(self, error: cudaError_t) -> Answer:
        return OK, {"cudaErrorMemoryAllocation": b"out of memory"}.get(error.name, b"some failure")

    def cudaMalloc(self, size: int) -> Answer:
        block = ctypes.create_string_buffer(size + ALIGNMENT)
        address = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        self.memory[address] = block
        return OK, address

    def cudaFree(self, devPtr: int) -> Answer:
        if devPtr == 0:
            return (OK,)
        return (OK,) if self.memory.pop(devPtr, None) is not None else (cudaError_t.cudaErrorInvalidValue,)

    def cudaStreamCreate(self) -> Answer:
        address = 0x1000 + 0x10 * len(self.calls)
        self.streams[address] = []
        return OK, cudaStream_t(address)

    def cudaStreamDestroy(self, stream: Any) -> Answer:
        gone = self.streams.pop(int(stream), None) is None
        return (cudaError_t.cudaErrorInvalidResourceHandle if gone else OK,)

    def cudaStreamSynchronize(self, stream: Any) -> Answer:
        queue = (self.streams | self.default_streams).get(int(stream))
        if queue is None:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        while queue:
            try:
                queue.pop(0)()
            except ValueError:  # memory that is not there, or not any more
                return (cudaError_t.cudaErrorIllegalAddress,)
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: Any) -> Answer:
        if int(stream) not in self.streams:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        try:
            if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
                place, content = self.buffer(dst, count), ctypes.string_at(src, count)
                self.enqueue(int(stream), lambda: place.__setitem__(slice(None), content))
            elif kind == cudaMemcpyKind.cudaMemcpyDeviceToHost:
                self.buffer(src, count)
                self.enqueue(int(stream), lambda: ctypes.memmove(dst, bytes(self.buffer(src, count)), count))
            else:
                return (cudaError_t.cudaErrorInvalidValue,)
        except ValueError:
            return (cudaError_t.cudaErrorInvalidValue,)
        return (OK,)
