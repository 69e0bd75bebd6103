"""The forms in which a camera gives its frames, and what is done with one that lies in the host's memory.

RGB and BGR are uint8 (H, W, 3). NV12, what cameras and video decoders give, is uint8 (H * 3/2, W): H rows of luma, then
H/2 rows in which the two chromas of 2 by 2 pixels lie side by side, U V U V ...

NV12 is read as BT.601 with limited range, each chroma in the middle of its four pixels. A crop of it is the recipe of
:mod:`alpose.runtime.crop` on both planes, chroma at half the scale; what is resampled is luma - 16 and chroma - 128, so
that the black outside the frame is black. Then, for luma y and chromas u, v, all whole numbers and exact in float32::

    R = clip(floor((9539 y           + 13075 v) / 2^13 + 1/2), 0, 255)
    G = clip(floor((9539 y -  3209 u -  6660 v) / 2^13 + 1/2), 0, 255)
    B = clip(floor((9539 y + 16525 u          ) / 2^13 + 1/2), 0, 255)

Shapes: H W frame, h w region, S samples across a crop, C channels.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .crop import Crop, resample
from .crop import cut as cut_rgb
from .errors import ConfigError, DataError

Bytes = npt.NDArray[np.uint8]
Region = tuple[int, int, int, int]
"""x0, y0, x1, y1 in whole pixels; x1 and y1 are the first outside."""

UINT8 = np.dtype(np.uint8)
LUMA_BLACK, CHROMA_GREY = 16, 128
YUV_UNIT = 2**13
RGB_OF_YUV = np.array([[9539, 0, 13075], [9539, -3209, -6660], [9539, 16525, 0]], dtype=np.int32)
"""BT.601 of limited range in parts of YUV_UNIT: 255/219, and 255/112 times 0.701, 0.886 and their shares of green."""
RGB_OF_YUV.setflags(write=False)

STRIPE = 64
"""Rows of NV12 that are converted at a time: what they need on the way stays in the processor's cache."""


class FrameFormat(enum.Enum):
    """How the bytes of a frame are to be read."""

    RGB = "rgb"
    BGR = "bgr"
    NV12 = "nv12"

    @classmethod
    def named(cls, name: FrameFormat | str) -> FrameFormat:
        """By its name in small or capital letters; :class:`ConfigError` for one that is not known."""
        try:
            return cls(name.lower() if isinstance(name, str) else name)
        except ValueError as error:
            known = ", ".join(form.value for form in cls)
            raise ConfigError(f"frames come as {known}; got {name!r}") from error


def check_form(dtype: object, shape: Sequence[int], form: FrameFormat) -> None:
    """Refuse what is not a frame of this form; :class:`DataError` says what came and what to give instead."""
    shape = tuple(shape)
    if form is FrameFormat.NV12:
        wanted = "uint8 (H * 3/2, W), H and W even"
        fits = len(shape) == 2 and shape[0] % 3 == 0 and shape[1] % 2 == 0 and min(shape) > 0
    else:
        wanted = "uint8 (H, W, 3)"
        fits = len(shape) == 3 and shape[2] == 3 and min(shape) > 0
    if not fits or (dtype is not UINT8 and str(dtype) != "uint8"):  # numpy takes microseconds for the name
        raise DataError(f"a frame in {form.name} is {wanted}, got {dtype} {shape}{_hint(str(dtype), shape, form)}")


def _hint(dtype: str, shape: tuple[int, ...], form: FrameFormat) -> str:
    """What the caller may have meant, where it shows."""
    nv12 = form is FrameFormat.NV12
    if 0 in shape:
        return ": it is empty, so the camera gave no picture"
    if len(shape) == 4:
        return ": give one frame, not a batch"
    if dtype != "uint8":
        return ": convert it to bytes of 0 to 255" if "float" in dtype else ""
    if nv12:
        return ": this looks like RGB or BGR, name that format" if shape[-1:] == (3,) else ""
    if shape[2:] == (4,):
        return ": drop the fourth channel, frame[..., :3]"
    if shape[2:] == (1,) or (len(shape) == 2 and (shape[0] % 3 or shape[1] % 2)):
        return ": for grey frames repeat the channel three times"
    if len(shape) == 2:
        return ": for NV12 name the format 'nv12', for grey frames repeat the channel three times"
    if shape[:1] == (3,):
        return ": move the channels last, frame.transpose(1, 2, 0)"
    return ""


def accept(frame: object, form: FrameFormat | str = FrameFormat.RGB) -> HostFrame:
    """A frame of a form, not copied; it need not be contiguous.

    Raises:
        DataError: it is no numpy array, or not of that form.
        ConfigError: no form has this name.
    """
    form = FrameFormat.named(form)
    if not isinstance(frame, np.ndarray):
        raise DataError(
            f"a frame is a numpy array, got {type(frame).__name__}"
            + (": the camera gave no picture" if frame is None else "")
        )
    check_form(frame.dtype, frame.shape, form)
    return HostFrame(form, frame)


@dataclass(frozen=True, slots=True, eq=False)
class HostFrame:
    """A frame in the host's memory. Made by :func:`accept`, which checks it."""

    form: FrameFormat
    pixels: Bytes
    """As the camera gave it; never written to."""

    @property
    def height(self) -> int:
        """In pixels."""
        rows = self.pixels.shape[0]
        return rows * 2 // 3 if self.form is FrameFormat.NV12 else rows

    @property
    def width(self) -> int:
        """In pixels."""
        return self.pixels.shape[1]

    def cut(self, crop: Crop) -> Bytes:
        """Resample a crop: (S, S, 3) RGB."""
        if self.form is FrameFormat.RGB:
            return cut_rgb(self.pixels, crop)
        if self.form is FrameFormat.BGR:
            return _backwards(cut_rgb(self.pixels, crop))
        luma_HW1, chroma_HW2 = self._planes()
        luma_SS = resample(luma_HW1, crop, LUMA_BLACK)[..., 0]
        chroma_SS2 = resample(chroma_HW2, chroma_crop(crop), CHROMA_GREY)
        out_SS3 = np.empty((*luma_SS.shape, 3), dtype=np.uint8)
        for channel, (of_y, of_u, of_v) in enumerate(RGB_OF_YUV.astype(np.float32) / np.float32(YUV_UNIT)):
            level_SS = luma_SS * of_y + chroma_SS2[..., 0] * of_u + chroma_SS2[..., 1] * of_v
            out_SS3[..., channel] = np.clip(np.floor(level_SS + np.float32(0.5)), 0, 255)
        return out_SS3

    def to_rgb(self, region: Region | None = None) -> Bytes:
        """A contiguous copy of the frame, or of a region of it, as RGB (h, w, 3).

        Of NV12 every pixel has the chroma of its 2 by 2 pixels, not interpolated.
        """
        x0, y0, x1, y1 = region if region is not None else (0, 0, self.width, self.height)
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise DataError(f"region {region} is empty or not within the frame of {self.width} x {self.height} px")
        if self.form is FrameFormat.RGB:
            return self.pixels[y0:y1, x0:x1].copy(order="C")
        if self.form is FrameFormat.BGR:
            return _backwards(self.pixels[y0:y1, x0:x1])
        out_hw3 = np.empty((y1 - y0, x1 - x0, 3), dtype=np.uint8)
        for top in range(y0, y1, STRIPE):
            bottom = min(top + STRIPE, y1)
            self._nv12_to_rgb((x0, top, x1, bottom), out_hw3[top - y0 : bottom - y0])
        return out_hw3

    def _nv12_to_rgb(self, region: Region, out_hw3: Bytes) -> None:
        x0, y0, x1, y1 = region
        luma_HW1, chroma_HW2 = self._planes()
        left, top = x0 // 2, y0 // 2
        chroma_hw2 = chroma_HW2[top : (y1 + 1) // 2, left : (x1 + 1) // 2].astype(np.int32) - CHROMA_GREY
        luma_hw = (luma_HW1[y0:y1, x0:x1, 0].astype(np.int32) - LUMA_BLACK) * RGB_OF_YUV[0, 0] + YUV_UNIT // 2
        inside = (slice(y0 - 2 * top, y1 - 2 * top), slice(x0 - 2 * left, x1 - 2 * left))
        for channel, (_, of_u, of_v) in enumerate(RGB_OF_YUV):
            tint_hw = chroma_hw2[..., 0] * of_u + chroma_hw2[..., 1] * of_v
            level_hw = tint_hw.repeat(2, axis=0).repeat(2, axis=1)[inside]
            level_hw += luma_hw
            level_hw >>= YUV_UNIT.bit_length() - 1  # rounds down, below 0 too
            out_hw3[..., channel] = np.clip(level_hw, 0, 255, out=level_hw)

    def _planes(self) -> tuple[Bytes, Bytes]:
        """Luma (H, W, 1) and chroma (H/2, W/2, 2) of NV12; views where the rows are contiguous."""
        luma_HW, chroma_HW = self.pixels[: self.height], self.pixels[self.height :]
        return luma_HW[..., None], chroma_HW.reshape(len(chroma_HW), self.width // 2, 2)


def _backwards(pixels_hw3: Bytes) -> Bytes:
    """A copy with the colours in the other order; by planes, which is faster than numpy's own copy of such a view."""
    out_hw3 = np.empty(pixels_hw3.shape, dtype=np.uint8)
    for channel in range(3):
        out_hw3[..., channel] = pixels_hw3[..., 2 - channel]
    return out_hw3


def chroma_crop(crop: Crop) -> Crop:
    """The same crop on the grid of the chroma of NV12, whose pixels are two wide and two high."""
    return Crop(crop.x0 / 2 - 0.25, crop.y0 / 2 - 0.25, crop.side / 2, crop.size_px, crop.context_px)
