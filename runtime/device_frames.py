"""Frames that another library made, on the host or on a GPU, taken where they lie.

Anything with ``__dlpack__`` or ``__cuda_array_interface__`` is taken without a copy. What lies in the host's memory
becomes a numpy view (:meth:`DeviceFrame.view`) and goes the way of every other frame; what lies on a GPU is cut there
by the engine (:mod:`alpose.runtime.engines.device`).

Shapes: H W frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .dlpack import LEGACY_STREAM, Where, borrow, packed
from .errors import DataError
from .frames import FrameFormat, check_form


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane of a frame: rows of pixels that follow each other without a gap, rows that may have one between."""

    address: int
    """Of its first pixel."""
    height: int
    width: int
    channels: int
    """Bytes of a pixel."""
    pitch: int
    """Bytes from a row to the next."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFrame:
    """A frame that belongs to somebody else. It is never written to, and read only until the call that got it ends."""

    form: FrameFormat
    where: Where
    device_id: int | None
    """The GPU's number; None where the producer does not say: the current one."""
    address: int
    """Of the first byte."""
    shape: tuple[int, ...]
    """(H, W, 3); NV12: (H * 3/2, W)."""
    strides: tuple[int, ...]
    """In bytes."""
    stream: int | None
    """The CUDA stream that has the producer's last writing in it, by its handle (1: the legacy default stream, 2: the
    default stream of the thread). Whoever reads waits for it first. None: nothing is to be waited for."""
    owner: object
    """What keeps the memory alive."""

    @property
    def on_gpu(self) -> bool:
        """Whether only a GPU's code can read it (managed memory is read there too)."""
        return self.where in (Where.CUDA, Where.CUDA_MANAGED)

    @property
    def height(self) -> int:
        """In pixels."""
        return self.shape[0] * 2 // 3 if self.form is FrameFormat.NV12 else self.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.shape[1]

    def view(self) -> npt.NDArray[np.uint8] | None:
        """The frame as a numpy array that cannot be written to, without a copy; None where it lies on a GPU."""
        return None if self.on_gpu else np.asarray(_HostArray(self))

    def planes(self) -> tuple[Plane, ...]:
        """The one plane of RGB and BGR; luma and chroma of NV12.

        Raises:
            DataError: the pixels of a row do not follow each other.
        """
        channels = self.shape[2] if len(self.shape) == 3 else 1
        rows, columns = self.shape[:2]
        # An axis of length 1 may have any stride.
        pitch = self.strides[0] if rows > 1 else columns * channels
        inner = [step for step, length in zip(self.strides[1:], self.shape[1:], strict=True) if length > 1]
        wanted = [step for step, length in zip((channels, 1)[-len(self.shape) + 1 :], self.shape[1:], strict=True)
                  if length > 1]  # fmt: skip
        if inner != wanted or pitch < columns * channels:
            raise DataError(
                f"a frame on a GPU must have its pixels side by side in each row, got the shape {self.shape} with strides "
                f"of {self.strides} bytes: make it contiguous on the GPU first (planes of colour: move them last)"
            )
        if self.form is not FrameFormat.NV12:
            return (Plane(self.address, rows, columns, channels, pitch),)
        height = self.height
        return (
            Plane(self.address, height, columns, 1, pitch),
            Plane(self.address + height * pitch, height // 2, columns // 2, 2, pitch),
        )


def is_foreign(frame: object) -> bool:
    """Whether :func:`take_frame` can try it: it is no numpy array and offers one of the two protocols."""
    offers = hasattr(frame, "__dlpack__") or hasattr(frame, "__cuda_array_interface__")
    return offers and not isinstance(frame, np.ndarray)


def take_frame(frame: Any, form: FrameFormat) -> DeviceFrame:
    """Take a frame without a copy.

    DLPack comes first: it says which GPU, and lets the producer finish its writing. What only has
    ``__cuda_array_interface__`` lies on the GPU that is current.

    Raises:
        DataError: neither protocol is offered, or the array is not a frame in this form.
    """
    if hasattr(frame, "__dlpack__") and hasattr(frame, "__dlpack_device__"):
        lent = borrow(frame)
        stream = LEGACY_STREAM if lent.where in (Where.CUDA, Where.CUDA_MANAGED) else None
        taken = DeviceFrame(
            form, lent.where, lent.device_id, lent.address, lent.shape, lent.strides, stream, lent.owner
        )
    elif (facts := getattr(frame, "__cuda_array_interface__", None)) is not None:
        taken = _from_cuda_array(frame, facts, form)
    else:
        raise DataError(
            f"a frame is a numpy array or has __dlpack__ or __cuda_array_interface__, got {type(frame).__name__}"
        )
    check_form("uint8", taken.shape, form)
    if not taken.address:
        raise DataError(f"a frame of shape {taken.shape} has no memory: its producer gave the address 0")
    if taken.on_gpu:
        taken.planes()  # its layout is refused here and not by an engine
    return taken


def _from_cuda_array(frame: object, facts: Any, form: FrameFormat) -> DeviceFrame:
    """By ``__cuda_array_interface__``, versions 2 and 3."""
    try:
        version, typestr = int(facts["version"]), str(facts["typestr"])
        shape = tuple(int(length) for length in facts["shape"])
        address = int(facts["data"][0])
        given = facts.get("strides")
        strides = packed(shape) if given is None else tuple(int(step) for step in given)
        stream = facts.get("stream")
        stream = None if stream is None else int(stream)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"__cuda_array_interface__ of a {type(frame).__name__} is not whole: {error!r}") from error
    if version < 2:
        raise DataError(f"__cuda_array_interface__ version {version} cannot be read, only 2 and later")
    if typestr[1:] != "u1":  # the first letter is the byte order, of which one byte has none
        raise DataError(f"a frame is uint8 ('|u1'), got the type {typestr!r}")
    if facts.get("mask") is not None:
        raise DataError("a frame with a mask cannot be read: give one without")
    if stream == 0:
        raise DataError("the stream 0 of a __cuda_array_interface__ may mean two streams: 1 or 2 says which")
    if len(strides) != len(shape):
        raise DataError(f"a frame of shape {shape} has {len(strides)} strides")
    if version == 2:  # has no streams; its producers work on the default one
        stream = LEGACY_STREAM
    return DeviceFrame(form, Where.CUDA, None, address, shape, strides, stream, frame)


class _HostArray:
    """Lends a frame to numpy, which keeps this object, and with it the owner, for as long as the view lives."""

    def __init__(self, frame: DeviceFrame) -> None:
        self._owner = frame.owner
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": frame.shape, "strides": frame.strides,
            "data": (frame.address, True),
        }  # fmt: skip
