"""Frames of a camera: the formats that are read, in the host's memory or on a GPU, without a copy.

Every format is one entry of :data:`LAYOUTS`: its planes, which bytes of them are red, green and blue (or luma and the two
chromas), and the matrix from YUV to RGB. The crop on the host, the graph for ONNX Runtime and the CUDA kernel read this
one table, so a format that is added to it works in all three.

YUV has limited range, and each chroma lies in the middle of the pixels that share it. A crop of YUV is the recipe of
:mod:`alpose.runtime.crop` on every plane, chroma at its own scale; what is resampled is luma - 16 and chroma - 128, so
that the black outside the frame is black (and any other fill level the nearest luma). Then, for luma y and chromas u and v, all whole numbers and exact in float32,
each colour is ``clip(floor((a y + b u + c v) / 2^13 + 1/2), 0, 255)`` with a row (a, b, c) of the format's matrix.

Shapes: H W frame, h w region, T S samples down and across a crop, C bytes of a pixel.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .crop import Crop, turned
from .crop import cut as cut_rgb
from .dlpack import LEGACY_STREAM, MemoryKind, import_array, import_cuda_array, packed
from .errors import ConfigError, DataError
from .resampling import resample

Bytes = npt.NDArray[np.uint8]
Region = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels; x1 and y1 are the first outside."""

UINT8 = np.dtype(np.uint8)
YUV_UNIT = 2**13
BT601 = ((9539, 0, 13075), (9539, -3209, -6660), (9539, 16525, 0))
"""Rows for red, green and blue, in parts of YUV_UNIT: 255/219, and 255/112 times 1 - 0.299, 1 - 0.114 and their shares
of green."""
BT709 = ((9539, 0, 14686), (9539, -1747, -4366), (9539, 17305, 0))
"""The same with the weights 0.2126 of red and 0.0722 of blue."""

STRIPE = 64
"""Rows of YUV that are converted at a time: what they need on the way stays in the processor's cache."""


class FrameFormat(enum.Enum):
    """How the bytes of a frame are to be read. ``-bt709`` names the matrix of HD video; without it, it is BT.601."""

    RGB = "rgb"
    BGR = "bgr"
    GREY = "grey"
    NV12 = "nv12"
    NV21 = "nv21"
    I420 = "i420"
    YUYV = "yuyv"
    UYVY = "uyvy"
    NV12_BT709 = "nv12-bt709"
    NV21_BT709 = "nv21-bt709"
    I420_BT709 = "i420-bt709"
    YUYV_BT709 = "yuyv-bt709"
    UYVY_BT709 = "uyvy-bt709"

    @classmethod
    def named(cls, name: FrameFormat | str) -> FrameFormat:
        """The format with this name, in small or capital letters; :class:`ConfigError` for an unknown one."""
        try:
            return cls(name.lower() if isinstance(name, str) else name)
        except ValueError as error:
            known = ", ".join(each.value for each in cls)
            raise ConfigError(f"frames come as {known}; got {name!r}") from error


@dataclass(frozen=True, slots=True)
class PlaneLayout:
    """One plane of a format."""

    channels: int
    """Bytes of a pixel of the plane."""
    black: int = 0
    """The level that means black, or no colour."""
    wide: int = 1
    """How many pixels of the frame one pixel of the plane covers, across ..."""
    high: int = 1
    """... and down."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A format: where the bytes of its planes are, and what they mean."""

    kind: Literal["packed", "grey", "420"]
    """``packed``: (H, W, C), and every plane begins at the frame's first byte. ``grey``: (H, W). ``420``: (H * 3/2, W),
    luma and then the planes of chroma."""
    planes: tuple[PlaneLayout, ...]
    channels: tuple[tuple[int, int], ...]
    """Red, green, blue, or luma and the chromas u and v: in which plane, and which byte of its pixels."""
    matrix: tuple[tuple[int, int, int], ...] | None = None
    used: tuple[slice, ...] = field(init=False)
    """The bytes of a pixel that mean something, for every plane."""

    def __post_init__(self) -> None:
        bytes_of = [sorted({byte for plane, byte in self.channels if plane == n}) for n in range(len(self.planes))]
        steps = [places[1] - places[0] if len(places) > 1 else 1 for places in bytes_of]
        used = (slice(places[0], places[-1] + 1, step) for places, step in zip(bytes_of, steps, strict=True))
        object.__setattr__(self, "used", tuple(used))

    @property
    def axes(self) -> str:
        """The shape of such a frame, for messages."""
        width = ", W even" if self.matrix else ""
        packed = f"uint8 (H, W, {self.planes[0].channels}){width}"
        return {"packed": packed, "grey": "uint8 (H, W)", "420": "uint8 (H * 3/2, W), H and W even"}[self.kind]

    def outside(self, fill: int) -> tuple[int, ...]:
        """The level above black, of every plane, that is this grey level: where there is no frame."""
        if self.matrix is None:
            return (fill,) * len(self.planes)
        return (round(fill * 219 / 255), *(0 for _ in self.planes[1:]))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape can be such a frame."""
        if 0 in shape or len(shape) != (3 if self.kind == "packed" else 2):
            return False
        if self.kind == "packed":
            return shape[2] == self.planes[0].channels and shape[1] % self.planes[-1].wide == 0
        return self.kind == "grey" or (shape[0] % 3 == 0 and shape[1] % 2 == 0)

    def height(self, shape: Sequence[int]) -> int:
        """Rows of pixels of a frame with this shape."""
        return shape[0] * 2 // 3 if self.kind == "420" else shape[0]

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of a frame of this size."""
        if self.kind == "packed":
            return (height, width, self.planes[0].channels)
        return (height * 3 // 2 if self.kind == "420" else height, width)


_LUMA = PlaneLayout(1, 16)


def _layouts() -> dict[FrameFormat, Layout]:
    colours = ((0, 0), (0, 1), (0, 2))
    pairs = (_LUMA, PlaneLayout(2, 128, 2, 2))
    thirds = (_LUMA, PlaneLayout(1, 128, 2, 2), PlaneLayout(1, 128, 2, 2))
    quads = (PlaneLayout(2, 16), PlaneLayout(4, 128, 2))
    layouts = {
        FrameFormat.RGB: Layout("packed", (PlaneLayout(3),), colours),
        FrameFormat.BGR: Layout("packed", (PlaneLayout(3),), colours[::-1]),
        FrameFormat.GREY: Layout("grey", (PlaneLayout(1),), ((0, 0),) * 3),
    }
    for ending, matrix in (("", BT601), ("-bt709", BT709)):
        layouts |= {
            FrameFormat(f"nv12{ending}"): Layout("420", pairs, ((0, 0), (1, 0), (1, 1)), matrix),
            FrameFormat(f"nv21{ending}"): Layout("420", pairs, ((0, 0), (1, 1), (1, 0)), matrix),
            FrameFormat(f"i420{ending}"): Layout("420", thirds, ((0, 0), (1, 0), (2, 0)), matrix),
            FrameFormat(f"yuyv{ending}"): Layout("packed", quads, ((0, 0), (1, 1), (1, 3)), matrix),
            FrameFormat(f"uyvy{ending}"): Layout("packed", quads, ((0, 1), (1, 0), (1, 2)), matrix),
        }
    return layouts


LAYOUTS = _layouts()


def check_frame(dtype: object, shape: Sequence[int], frame_format: FrameFormat) -> None:
    """Refuse an array that is not a frame of this format; :class:`DataError` says what came and what to give instead."""
    shape, layout = tuple(shape), LAYOUTS[frame_format]
    # numpy takes microseconds for the name of a dtype.
    if not layout.fits(shape) or (dtype is not UINT8 and str(dtype) != "uint8"):
        hint = _hint(str(dtype), shape, layout)
        raise DataError(f"a frame in {frame_format.name} is {layout.axes}, got {dtype} {shape}{hint}")


def _hint(dtype: str, shape: tuple[int, ...], layout: Layout) -> str:
    """What the caller may have meant, where the array shows it."""
    if 0 in shape:
        return ": it is empty, so the camera gave no picture"
    if len(shape) == 4:
        return ": give one frame, not a batch"
    if dtype != "uint8":
        return ": convert it to bytes of 0 to 255" if "float" in dtype or dtype == "uint16" else ""
    last = shape[2] if len(shape) == 3 else None
    if last == 1:
        return ": for grey frames name the format 'grey' and give frame[..., 0]"
    if last == 4:
        return ": drop the fourth channel, frame[..., :3]"
    if last == 3 and layout.planes[0].channels != 3:
        return ": this looks like RGB or BGR, name that format"
    if last == 2 and layout.kind != "packed":
        return ": this looks like YUYV or UYVY, name that format"
    if len(shape) == 2 and layout.kind == "packed":
        yuv = ", for YUV 4:2:0 'nv12', 'nv21' or 'i420'" if LAYOUTS[FrameFormat.NV12].fits(shape) else ""
        return f": for grey frames name the format 'grey'{yuv}"
    if shape[:1] == (3,) and len(shape) == 3:
        return ": move the channels last, frame.transpose(1, 2, 0)"
    return ""


# --- Frames in the host's memory


def accept(frame: object, frame_format: FrameFormat | str = FrameFormat.RGB) -> HostFrame:
    """A numpy array as a frame of a format, not copied; it need not be contiguous.

    Raises:
        DataError: it is not a numpy array, or not of that format.
        ConfigError: no format has this name.
    """
    if not isinstance(frame_format, FrameFormat):
        frame_format = FrameFormat.named(frame_format)
    if not isinstance(frame, np.ndarray):
        empty = ": the camera gave no picture" if frame is None else ""
        raise DataError(f"a frame is a numpy array, got {type(frame).__name__}{empty}")
    check_frame(frame.dtype, frame.shape, frame_format)
    return HostFrame(frame_format, frame)


@dataclass(frozen=True, slots=True, eq=False)
class HostFrame:
    """A frame in the host's memory. Made by :func:`accept`, which checks it."""

    format: FrameFormat
    pixels: Bytes
    """As the camera gave it; never written to."""

    @property
    def height(self) -> int:
        """In pixels."""
        return LAYOUTS[self.format].height(self.pixels.shape)

    @property
    def width(self) -> int:
        """In pixels."""
        return self.pixels.shape[1]

    def cut(self, crop: Crop) -> Bytes:
        """Resample a crop: (T, S, 3) RGB."""
        if crop.turn:
            return turned(self.cut(crop.upright()), crop)
        if self.format is FrameFormat.RGB:
            return cut_rgb(self.pixels, crop)
        if self.format is FrameFormat.BGR:
            return _reversed(cut_rgb(self.pixels, crop))
        layout = LAYOUTS[self.format]
        levels_CTS = self._channels([
            resample(plane_HWC[..., used], crop.down.on_grid(own.high), crop.across.on_grid(own.wide), own.black, outside)
            for plane_HWC, used, own, outside in zip(self._planes(), layout.used, layout.planes,
                                                     layout.outside(crop.fill), strict=True)
        ])  # fmt: skip
        out_TS3 = np.empty((*levels_CTS[0].shape, 3), dtype=np.uint8)
        if layout.matrix is None:
            out_TS3[...] = levels_CTS[0][..., None]
            return out_TS3
        y_TS, u_TS, v_TS = levels_CTS
        for channel, (of_y, of_u, of_v) in enumerate(np.array(layout.matrix, np.float32) / np.float32(YUV_UNIT)):
            level_TS = y_TS * of_y + u_TS * of_u + v_TS * of_v
            out_TS3[..., channel] = np.clip(np.floor(level_TS + np.float32(0.5)), 0, 255)
        return out_TS3

    def to_rgb(self, region: Region | None = None) -> Bytes:
        """A contiguous copy of the frame, or of a region of it, as RGB (h, w, 3).

        Of YUV every pixel has the chroma that it shares with its neighbours, not interpolated.
        """
        x0, y0, x1, y1 = region if region is not None else (0, 0, self.width, self.height)
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise DataError(f"region {region} is empty or not within the frame of {self.width} x {self.height} px")
        layout = LAYOUTS[self.format]
        if layout.matrix is None:
            part = self.pixels[y0:y1, x0:x1]
            if self.format is FrameFormat.GREY:
                return part[..., None].repeat(3, axis=2)
            return part.copy(order="C") if self.format is FrameFormat.RGB else _reversed(part)
        out_hw3 = np.empty((y1 - y0, x1 - x0, 3), dtype=np.uint8)
        planes = self._planes()
        for top in range(y0, y1, STRIPE):
            bottom = min(top + STRIPE, y1)
            _yuv_to_rgb(layout, self._channels(planes, all_bytes=True), (x0, top, x1, bottom), out_hw3[top - y0 :])
        return out_hw3

    def thumbnail(self, longest: int) -> tuple[Bytes, int]:
        """Every n-th pixel's green or luma (h, w), at most ``longest`` on a side, and n. A view: nothing is averaged."""
        layout = LAYOUTS[self.format]
        plane, byte = layout.channels[1 if layout.matrix is None else 0]
        step = max(1, -(-max(self.height, self.width) // longest))
        return self._planes()[plane][::step, ::step, byte], step

    def _planes(self) -> list[Bytes]:
        """Every plane of the layout, (rows, columns, bytes of a pixel); views where the rows are contiguous."""
        layout, (height, width) = LAYOUTS[self.format], (self.height, self.width)
        if layout.kind != "420":
            return [self.pixels.reshape(height, width // own.wide, own.channels) for own in layout.planes]
        chroma = self.pixels[height:].reshape(len(layout.planes) - 1, height // 2, width // 2, -1)
        return [self.pixels[:height, :, None], *chroma]

    def _channels(self, planes: Sequence[npt.NDArray[Any]], *, all_bytes: bool = False) -> list[npt.NDArray[Any]]:
        """Red, green, blue or y, u, v, each as one plane: of planes with all their bytes, or only the used ones."""
        layout = LAYOUTS[self.format]
        step = [1 if all_bytes else used.step for used in layout.used]
        start = [0 if all_bytes else used.start for used in layout.used]
        return [planes[plane][..., (byte - start[plane]) // step[plane]] for plane, byte in layout.channels]


def _yuv_to_rgb(layout: Layout, channels: Sequence[Bytes], region: Region, out_hw3: Bytes) -> None:
    """Convert a region into the first rows of an array."""
    assert layout.matrix is not None
    x0, y0, x1, y1 = region
    own = layout.planes[-1]
    left, top = x0 // own.wide, y0 // own.high
    inside = (slice(y0 - own.high * top, y1 - own.high * top), slice(x0 - own.wide * left, x1 - own.wide * left))
    shared = (slice(top, -(-y1 // own.high)), slice(left, -(-x1 // own.wide)))
    luma, *chroma = channels
    u_hw, v_hw = (plane_HW[shared].astype(np.int32) - own.black for plane_HW in chroma)
    luma_hw = (luma[y0:y1, x0:x1].astype(np.int32) - _LUMA.black) * layout.matrix[0][0] + YUV_UNIT // 2
    for colour, (_, of_u, of_v) in enumerate(layout.matrix):
        tint_hw = u_hw * of_u + v_hw * of_v
        level_hw = tint_hw.repeat(own.high, axis=0).repeat(own.wide, axis=1)[inside]
        level_hw += luma_hw
        level_hw >>= YUV_UNIT.bit_length() - 1  # rounds down, below 0 too
        out_hw3[: y1 - y0, :, colour] = np.clip(level_hw, 0, 255, out=level_hw)


def _reversed(pixels_hw3: Bytes) -> Bytes:
    """A copy with the colours in the other order; by planes, which is faster than numpy's own copy of such a view."""
    out_hw3 = np.empty(pixels_hw3.shape, dtype=np.uint8)
    for channel in range(3):
        out_hw3[..., channel] = pixels_hw3[..., 2 - channel]
    return out_hw3


# --- Frames of other libraries, in the host's memory or on a GPU


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane of a frame: pixels of a row follow each other without a gap, rows may have one between them."""

    address: int
    """Of the first pixel."""
    height: int
    width: int
    channels: int
    """Bytes of a pixel."""
    pitch: int
    """Bytes from a row to the next."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFrame:
    """A frame in memory that another library owns. It is never written to, and read only during the call that got it."""

    format: FrameFormat
    memory: MemoryKind
    device_id: int | None
    """The GPU's number; None where the producer does not say: the current one."""
    address: int
    """Of the first byte."""
    shape: tuple[int, ...]
    """As :class:`Layout` has it."""
    strides: tuple[int, ...]
    """In bytes."""
    stream: int | None
    """The CUDA stream in which the producer writes last, by its handle (1: the legacy default stream, 2: the default
    stream of the thread). Whoever reads waits for it first. None: there is nothing to wait for."""
    owner: object
    """Keeps the memory alive."""

    @property
    def on_gpu(self) -> bool:
        """Whether only code on a GPU can read it. Managed memory is read there too."""
        return self.memory in (MemoryKind.CUDA, MemoryKind.CUDA_MANAGED)

    @property
    def height(self) -> int:
        """In pixels."""
        return LAYOUTS[self.format].height(self.shape)

    @property
    def width(self) -> int:
        """In pixels."""
        return self.shape[1]

    @property
    def pitch(self) -> int:
        """Bytes from a row to the next; :class:`DataError` where the pixels of a row do not follow each other."""
        row = self.shape[1:]
        # An axis of length 1 may have any stride.
        pitch = self.strides[0] if self.shape[0] > 1 else int(np.prod(row))
        inner = [step for step, length in zip(self.strides[1:], row, strict=True) if length > 1]
        wanted = [step for step, length in zip(packed(row), row, strict=True) if length > 1]
        if inner != wanted or pitch < np.prod(row):
            raise DataError(
                f"a frame on a GPU must have its pixels side by side in each row, got the shape {self.shape} with strides "
                f"of {self.strides} bytes: make it contiguous on the GPU first (planes of colour: move them last)"
            )
        return pitch

    @property
    def extent(self) -> int:
        """Bytes from the first to the last; the last row has no gap behind it."""
        return (self.shape[0] - 1) * self.pitch + int(np.prod(self.shape[1:]))

    def view(self) -> Bytes | None:
        """The frame as a read-only numpy array, without a copy; None where it lies on a GPU."""
        return None if self.on_gpu else np.asarray(_HostArray(self))

    def planes(self) -> tuple[Plane, ...]:
        """Every plane of the format's layout.

        Raises:
            DataError: the pixels of a row do not follow each other, or the rows of I420, which share rows of the array.
        """
        layout, pitch = LAYOUTS[self.format], self.pitch
        height, width, address = self.height, self.width, self.address
        if layout.kind != "420":
            return tuple(Plane(address, height, width // own.wide, own.channels, pitch) for own in layout.planes)
        chroma = layout.planes[1]
        step = pitch
        if chroma.channels == 1:
            if pitch != width:
                raise DataError(
                    f"a frame in {self.format.name} on a GPU must have no gap between its rows, got rows of {width} bytes "
                    f"every {pitch}: make it contiguous there, or give NV12"
                )
            step = pitch // 2
        first, size = address + height * pitch, height // 2 * step
        coarse = [Plane(first + n * size, height // 2, width // 2, chroma.channels, step)
                  for n in range(len(layout.planes) - 1)]  # fmt: skip
        return (Plane(address, height, width, 1, pitch), *coarse)


def is_foreign(frame: object) -> bool:
    """Whether :func:`take_frame` can try it: not a numpy array, and it offers one of the two protocols."""
    if isinstance(frame, np.ndarray):
        return False
    return hasattr(frame, "__dlpack__") or hasattr(frame, "__cuda_array_interface__")


def take_frame(frame: Any, frame_format: FrameFormat) -> DeviceFrame:
    """Use another library's array as a frame, without a copy.

    DLPack comes first: it says which GPU, and lets the producer finish its writing. An array that only has
    ``__cuda_array_interface__`` lies on the GPU that is current.

    Raises:
        DataError: neither protocol is offered, or the array is not a frame of this format.
    """
    if hasattr(frame, "__dlpack__") and hasattr(frame, "__dlpack_device__"):
        array = import_array(frame)
        stream = LEGACY_STREAM if array.memory in (MemoryKind.CUDA, MemoryKind.CUDA_MANAGED) else None
        taken = DeviceFrame(frame_format, array.memory, array.device_id, array.address, array.shape, array.strides, stream,
                            array.owner)  # fmt: skip
    elif getattr(frame, "__cuda_array_interface__", None) is not None:
        taken = DeviceFrame(frame_format, MemoryKind.CUDA, None, *import_cuda_array(frame), frame)
    else:
        raise DataError(
            f"a frame is a numpy array or has __dlpack__ or __cuda_array_interface__, got {type(frame).__name__}"
        )
    check_frame("uint8", taken.shape, frame_format)
    if not taken.address:
        raise DataError(f"a frame of shape {taken.shape} has no memory: its producer gave the address 0")
    if taken.on_gpu:
        taken.planes()  # so that its layout is refused here, and not by an engine
    return taken


class _HostArray:
    """Shows a frame to numpy, whose view keeps this object alive, and with it the owner of the memory."""

    def __init__(self, frame: DeviceFrame) -> None:
        self._owner = frame.owner
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": frame.shape, "strides": frame.strides,
            "data": (frame.address, True),
        }  # fmt: skip
