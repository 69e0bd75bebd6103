"""Frames of other libraries: taken by DLPack and ``__cuda_array_interface__``. No engine here.

Shapes: H W frame.
"""

from __future__ import annotations

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime import dlpack
from alpose.runtime.dlpack import LEGACY_STREAM, MemoryKind
from alpose.runtime.errors import DataError
from alpose.runtime.frames import DeviceFrame, FrameFormat, is_foreign, take_frame

Bytes = npt.NDArray[np.uint8]
RGB, BGR, NV12 = FrameFormat.RGB, FrameFormat.BGR, FrameFormat.NV12

new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
capsule_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


_SHARED: list[object] = []


class Producer:
    """A library whose arrays are made by hand, field by field; it counts what is given back."""

    def __init__(self, array: Bytes, *, versioned: bool = True, kind: int = MemoryKind.CPU, gpu: int = 0, old: bool = False,
                 strides: bool = True, offset: int = 0, **changes: Any) -> None:  # fmt: skip
        self.array, self.kind, self.gpu, self.old = array, kind, gpu, old
        self.deleted: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.name = b"dltensor_versioned" if versioned else b"dltensor"
        self._shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self._strides = (ctypes.c_int64 * array.ndim)(*array.strides)
        self._deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.deleted.append)
        self.managed: Any = dlpack._ManagedVersioned() if versioned else dlpack._Managed()
        if versioned:
            self.managed.major, self.managed.minor = changes.pop("version", (1, 1))
        self.managed.deleter = ctypes.cast(self._deleter, ctypes.c_void_p)
        tensor = self.managed.tensor
        tensor.data, tensor.byte_offset = array.ctypes.data - offset, offset
        tensor.device.type, tensor.device.id = kind, gpu
        tensor.ndim, tensor.shape = array.ndim, self._shape
        tensor.strides = self._strides if strides else None
        tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = changes.pop("dtype", (1, 8, 1))
        for name, value in changes.items():
            setattr(tensor, name, value)

    def capsule(self) -> Any:
        _SHARED.append(self)  # as a real producer lives until its deleter is called, and its code longer
        return new_capsule(ctypes.addressof(self.managed), self.name, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, self.gpu

    def __dlpack__(self, **asked: Any) -> Any:
        if self.old and "max_version" in asked:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.asked.append(asked)
        return self.capsule()


class CudaArray:
    def __init__(self, **facts: Any) -> None:
        self.__cuda_array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (6, 4, 3), "data": (0x7000, False), "strides": None, "stream": None,
        } | facts  # fmt: skip


# --- DLPack


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("offset", [0, 64])
@pytest.mark.parametrize("strides", [True, False])
def test_memory_of_the_host_is_seen_without_a_copy_and_given_back_once(
    versioned: bool, offset: int, strides: bool
) -> None:
    array = noise(6, 4, 3)
    producer = Producer(array, versioned=versioned, offset=offset, strides=strides)

    frame = take_frame(producer, RGB)
    view = frame.view()

    assert view is not None
    np.testing.assert_array_equal(view, array)
    assert np.shares_memory(view, array)
    assert not view.flags.writeable
    array[0, 0] = 7
    assert (view[0, 0] == 7).all()
    part = view[1:]
    del frame, view
    gc.collect()
    assert producer.deleted == []
    del part
    gc.collect()
    assert producer.deleted == [ctypes.addressof(producer.managed)]


def test_a_frame_that_is_never_looked_at_is_given_back_as_well() -> None:
    producer = Producer(noise(6, 4, 3))
    frame = take_frame(producer, RGB)
    assert producer.deleted == []
    del frame
    gc.collect()
    assert len(producer.deleted) == 1


def test_a_producer_with_nothing_to_free_is_left_alone() -> None:
    producer = Producer(noise(6, 4, 3))
    producer.managed.deleter = None
    view = take_frame(producer, RGB).view()
    del view
    gc.collect()
    assert producer.deleted == []


def test_a_capsule_is_taken_once_and_marked() -> None:
    producer = Producer(noise(6, 4, 3))
    capsule = producer.capsule()
    taken = dlpack.take(capsule)
    assert capsule_is(capsule, b"used_dltensor_versioned")
    with pytest.raises(DataError, match="can still be taken"):
        dlpack.take(capsule)
    del taken
    gc.collect()
    assert len(producer.deleted) == 1
    with pytest.raises(DataError, match="not a DLPack capsule"):
        dlpack.take(object())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": (2, 32, 1)}, "uint8, got float32"),
        ({"dtype": (0, 8, 1)}, "uint8, got int8"),
        ({"dtype": (1, 8, 4)}, "4 lanes"),
        ({"dtype": (6, 8, 1)}, "uint8, got bool8"),
        ({"version": (2, 0)}, "a capsule of DLPack 2.0 cannot be read"),
        ({"ndim": -1}, "-1 axes is damaged"),
        ({"ndim": 1 << 30}, "axes is damaged"),
        ({"kind": 10}, "DLPack's type 10"),
    ],
)
def test_a_capsule_that_is_refused_stays_its_producers(changes: dict[str, Any], words: str) -> None:
    producer = Producer(noise(6, 4, 3), **changes)
    capsule = producer.capsule()
    with pytest.raises(DataError, match=words):
        dlpack.take(capsule)
    gc.collect()
    assert capsule_is(capsule, b"dltensor_versioned"), "it was taken"
    assert producer.deleted == [], "its own end would delete it a second time"


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("kind", "stream"), [(1, None), (2, LEGACY_STREAM), (3, None), (13, LEGACY_STREAM)])
def test_only_a_producer_on_a_gpu_is_asked_for_a_stream(kind: int, stream: int | None, old: bool) -> None:
    producer = Producer(noise(6, 4, 3), kind=kind, gpu=1, old=old)
    frame = take_frame(producer, RGB)
    (asked,) = producer.asked
    assert asked.get("stream") == stream
    assert ("max_version" in asked) is not old
    assert (frame.stream, frame.device_id, frame.on_gpu) == (stream, 1, stream is not None)
    assert (frame.view() is None) is frame.on_gpu


def test_what_goes_wrong_in_the_producer_is_said() -> None:
    class Grey(Producer):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("this array is being written")

    class Lost(Producer):
        def __dlpack_device__(self) -> tuple[int, int]:
            raise RuntimeError("the GPU fell off")

    with pytest.raises(DataError, match=r"Grey cannot be shared through DLPack: this array is being written"):
        take_frame(Grey(noise(6, 4, 3)), RGB)
    with pytest.raises(DataError, match="the GPU fell off"):
        take_frame(Lost(noise(6, 4, 3)), RGB)
    with pytest.raises(DataError, match="DLPack's type 10"):
        take_frame(Producer(noise(6, 4, 3), kind=10), RGB)


@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), start=st.integers(0, 3), step=st.sampled_from([-2, -1, 1, 3]),
    flip=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_any_layout_in_the_hosts_memory_is_a_view(rows: int, columns: int, start: int, step: int, flip: bool) -> None:
    array = noise(12, 12, 3)[start :: abs(step)][:rows, :columns]
    array = (array[::-1] if step < 0 else array)[:, :, :: -1 if flip else 1]
    view = take_frame(Producer(array), RGB).view()
    assert view is not None
    np.testing.assert_array_equal(view, array)
    assert np.shares_memory(view, array)


def test_tensors_of_pytorch_are_taken() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(noise(3, 6, 4)).permute(1, 2, 0)
    gone = weakref.ref(tensor)
    view = take_frame(tensor, RGB).view()
    assert view is not None
    assert view.__array_interface__["data"][0] == tensor.data_ptr()
    content = tensor.numpy().copy()
    del tensor
    gc.collect()
    np.testing.assert_array_equal(view, content)
    del view
    gc.collect()
    assert gone() is None
    with pytest.raises(DataError, match="uint8, got float32"):
        take_frame(torch.zeros(4, 4, 3), RGB)


# --- __cuda_array_interface__


@pytest.mark.parametrize(
    ("facts", "stream"),
    [({"stream": None}, None), ({"stream": 7}, 7), ({"stream": 2}, 2), ({"version": 2}, LEGACY_STREAM)],
)
def test_a_cuda_array_is_taken_with_its_stream(facts: dict[str, Any], stream: int | None) -> None:
    array = CudaArray(**facts)
    frame = take_frame(array, BGR)
    assert (frame.address, frame.shape, frame.strides) == (0x7000, (6, 4, 3), (12, 3, 1))
    assert (frame.stream, frame.device_id, frame.format) == (stream, None, BGR)
    assert frame.owner is array
    assert frame.view() is None


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"typestr": "<f4"}, "uint8 .*got the type '<f4'"),
        ({"typestr": "|b1"}, "got the type"),
        ({"version": 1}, "version 1 cannot be read"),
        ({"mask": object()}, "mask"),
        ({"stream": 0}, "stream 0"),
        ({"shape": (6, 4)}, "uint8 .H, W, 3., got uint8 .6, 4."),
        ({"shape": (0, 4, 3)}, "empty"),
        ({"shape": (2, 6, 4, 3)}, "not a batch"),
        ({"strides": (12, 3)}, "2 strides"),
        ({"strides": (1, 6, 24)}, "side by side.*contiguous on the GPU"),
        ({"strides": (-12, 3, 1)}, "side by side"),
        ({"strides": (11, 3, 1)}, "side by side"),
        ({"strides": (24, 6, 1)}, "side by side"),
        ({"data": (0, False)}, "address 0"),
        ({"data": None}, "not whole"),
        ({"shape": None}, "not whole"),
        ({"stream": "x"}, "not whole"),
    ],
)
def test_a_cuda_array_that_is_no_frame_is_refused(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        take_frame(CudaArray(**facts), RGB)


def test_planes_of_a_surface_with_a_pitch() -> None:
    (plane,) = take_frame(CudaArray(strides=(512, 3, 1)), RGB).planes()
    assert (plane.address, plane.height, plane.width, plane.channels, plane.pitch) == (0x7000, 6, 4, 3, 512)

    frame = take_frame(CudaArray(shape=(9, 4), strides=(64, 1)), NV12)
    luma, chroma = frame.planes()
    assert (frame.height, frame.width) == (6, 4)
    assert (luma.address, luma.height, luma.width, luma.channels, luma.pitch) == (0x7000, 6, 4, 1, 64)
    assert (chroma.address, chroma.height, chroma.width, chroma.channels) == (0x7000 + 6 * 64, 3, 2, 2)


def test_planes_of_formats_whose_pixels_share_bytes() -> None:
    frame = take_frame(CudaArray(shape=(6, 4, 2), strides=(64, 2, 1)), FrameFormat.YUYV)
    luma, chroma = frame.planes()
    assert (luma.address, luma.height, luma.width, luma.channels, luma.pitch) == (0x7000, 6, 4, 2, 64)
    assert (chroma.address, chroma.height, chroma.width, chroma.channels, chroma.pitch) == (0x7000, 6, 2, 4, 64)
    assert frame.extent == 5 * 64 + 8

    frame = take_frame(CudaArray(shape=(9, 4), strides=(4, 1)), FrameFormat.I420)
    _, u, v = frame.planes()
    assert (u.address, u.height, u.width, u.channels, u.pitch) == (0x7000 + 24, 3, 2, 1, 2)
    assert (v.address, v.pitch) == (0x7000 + 30, 2)
    with pytest.raises(DataError, match=r"I420 on a GPU must have no gap between its rows.*or give NV12"):
        take_frame(CudaArray(shape=(9, 4), strides=(64, 1)), FrameFormat.I420)

    (grey,) = take_frame(CudaArray(shape=(6, 4), strides=(64, 1)), FrameFormat.GREY).planes()
    assert (grey.height, grey.width, grey.channels, grey.pitch) == (6, 4, 1, 64)


def test_one_row_or_column_may_have_any_stride() -> None:
    (row,) = take_frame(CudaArray(shape=(1, 4, 3), strides=(5, 3, 1)), RGB).planes()
    (column,) = take_frame(CudaArray(shape=(6, 1, 3), strides=(64, 5, 1)), RGB).planes()
    assert (row.pitch, column.pitch) == (12, 64)


# --- What is a frame at all


def test_only_what_is_foreign_is_taken() -> None:
    assert not is_foreign(noise(6, 4, 3))
    assert not is_foreign([1])
    assert is_foreign(Producer(noise(6, 4, 3)))
    assert is_foreign(CudaArray())
    for value in ([1], None, "frame"):
        with pytest.raises(DataError, match=f"got {type(value).__name__}"):
            take_frame(value, RGB)


def test_dlpack_comes_before_the_cuda_array() -> None:
    class Both(Producer, CudaArray):
        def __init__(self) -> None:
            Producer.__init__(self, noise(6, 4, 3), kind=MemoryKind.CUDA, gpu=3)
            CudaArray.__init__(self)

    frame: DeviceFrame = take_frame(Both(), RGB)
    assert frame.device_id == 3
