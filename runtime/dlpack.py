"""Another library's array without a copy, through DLPack or ``__cuda_array_interface__``: its address, its shape, how to release it.

A producer (PyTorch, CuPy, JAX, ONNX Runtime, …) returns a capsule around a C structure. The consumer renames the capsule,
and calls the structure's deleter once, when the pixels are no longer read. The layouts are those of DLPack's
``dlpack.h`` 0.8 (unversioned) and 1.x; the protocol is the one of the Python array API standard.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from .errors import DataError

MAX_VERSION = (1, 0)
"""The newest major version whose layout is known here; a minor version may not change it."""

LEGACY_STREAM = 1
"""CUDA's legacy default stream, as DLPack and ``__cuda_array_interface__`` number it."""

MAX_AXES = 64
"""More axes than any library makes: such a structure is damaged."""


class MemoryKind(IntEnum):
    """Kinds of memory, as ``DLDeviceType`` numbers them."""

    CPU = 1
    CUDA = 2
    CUDA_HOST = 3
    CUDA_MANAGED = 13


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


# Names of capsules before and after they are taken. A capsule keeps the pointer, not the text: these live for ever.
_NAMES = {
    b"dltensor_versioned": (b"used_dltensor_versioned", _ManagedVersioned),
    b"dltensor": (b"used_dltensor", _Managed),
}

# With the interpreter's lock held: a deleter may drop Python references.
_DELETER = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))


class ArrayOwner:
    """Keeps the producer's memory alive for as long as this object lives, and then calls the deleter, once."""

    def __init__(self, pointer: int, deleter: int | None) -> None:
        if deleter:  # null where the producer has nothing to free
            weakref.finalize(self, _DELETER(deleter), pointer)


@dataclass(frozen=True, slots=True, eq=False)
class ImportedArray:
    """An array of uint8 that another library owns."""

    memory: MemoryKind
    device_id: int
    address: int
    """Of the first element."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes."""
    owner: ArrayOwner


def import_array(producer: Any) -> ImportedArray:
    """The array of uint8 behind an object with ``__dlpack__``, without a copy.

    For memory of a GPU the producer is asked to let the legacy default stream wait for what it is still writing.

    Raises:
        DataError: the producer refuses, it is not uint8, or it lives where nothing here can read it.
    """
    try:
        kind = int(producer.__dlpack_device__()[0])
    except Exception as error:  # each library has its own
        raise DataError(f"a {_name(producer)} does not say through DLPack where it lives: {error}") from error
    on_gpu = _memory_kind(kind) in (MemoryKind.CUDA, MemoryKind.CUDA_MANAGED)
    arguments: dict[str, Any] = {"stream": LEGACY_STREAM} if on_gpu else {}
    try:
        try:
            capsule = producer.__dlpack__(**arguments, max_version=MAX_VERSION)
        except TypeError:  # a producer from before DLPack 1.0
            capsule = producer.__dlpack__(**arguments)
    except Exception as error:
        raise DataError(f"a {_name(producer)} cannot be shared through DLPack: {error}") from error
    return take(capsule)


def take(capsule: Any) -> ImportedArray:
    """Take what a capsule holds. The capsule is used up, unless this raises: then it still owns its memory.

    Raises:
        DataError: it is not a DLPack capsule, was taken before, or holds something else than uint8.
    """
    name = next((name for name in _NAMES if _is_valid(capsule, name)), None)
    if name is None:
        raise DataError(f"{capsule!r} is not a DLPack capsule that can still be taken: ask the producer for a new one")
    used, layout = _NAMES[name]
    pointer = _pointer(capsule, name)
    managed: Any = layout.from_address(pointer)
    if layout is _ManagedVersioned and managed.major != MAX_VERSION[0]:  # read nothing behind the version
        raise DataError(f"a capsule of DLPack {managed.major}.{managed.minor} cannot be read, only of {MAX_VERSION[0]}")
    tensor = managed.tensor
    memory, (shape, strides) = _memory_kind(tensor.device.type), _form(tensor)
    address = (tensor.data or 0) + tensor.byte_offset
    _rename(capsule, used)  # from here on the capsule frees nothing when it goes
    return ImportedArray(memory, tensor.device.id, address, shape, strides, ArrayOwner(pointer, managed.deleter))


def import_cuda_array(producer: Any) -> tuple[int, tuple[int, ...], tuple[int, ...], int | None]:
    """Address, shape, strides in bytes and stream of an array of uint8 by its ``__cuda_array_interface__``, versions 2 and 3.

    Raises:
        DataError: the description is not whole, or not of an array of uint8 that can be read.
    """
    described = producer.__cuda_array_interface__
    try:
        version, typestr = int(described["version"]), str(described["typestr"])
        shape = tuple(int(length) for length in described["shape"])
        address = int(described["data"][0])
        given, stream = described.get("strides"), described.get("stream")
        strides = packed(shape) if given is None else tuple(int(step) for step in given)
        stream = None if stream is None else int(stream)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"__cuda_array_interface__ of a {type(producer).__name__} is not whole: {error!r}") from error
    if version < 2:
        raise DataError(f"__cuda_array_interface__ version {version} cannot be read, only 2 and later")
    if typestr[1:] != "u1":  # the first letter is the byte order, of which one byte has none
        raise DataError(f"a frame is uint8 ('|u1'), got the type {typestr!r}")
    if described.get("mask") is not None:
        raise DataError("a frame with a mask cannot be read: give one without")
    if stream == 0:
        raise DataError("the stream 0 of a __cuda_array_interface__ may mean two streams: 1 or 2 says which")
    if len(strides) != len(shape):
        raise DataError(f"a frame of shape {shape} has {len(strides)} strides")
    if version == 2:  # has no streams; its producers work on the default one
        stream = LEGACY_STREAM
    return address, shape, strides, stream


def _memory_kind(kind: int) -> MemoryKind:
    try:
        return MemoryKind(kind)
    except ValueError as error:
        raise DataError(
            f"an array lives on a device of DLPack's type {kind}; only the host's memory (1, 3) and CUDA's (2, 13) can "
            "be read here: move it to one of them"
        ) from error


def _form(tensor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape, and strides in bytes."""
    dtype = tensor.dtype
    if (dtype.code, dtype.bits, dtype.lanes) != (1, 8, 1):  # kDLUInt
        kind = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}.get(dtype.code, "type")
        raise DataError(f"a frame is uint8, got {kind}{dtype.bits} (DLPack code {dtype.code}, {dtype.lanes} lanes)")
    if not 0 <= tensor.ndim <= MAX_AXES:
        raise DataError(f"a DLPack capsule with {tensor.ndim} axes is damaged")
    shape = tuple(tensor.shape[: tensor.ndim]) if tensor.ndim else ()
    if tensor.strides:  # in elements, which are bytes
        return shape, tuple(tensor.strides[: tensor.ndim])
    return shape, packed(shape)


def packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides in bytes of an array of uint8 whose elements follow each other without a gap."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
