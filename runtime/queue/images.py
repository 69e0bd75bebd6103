"""Pictures as the queue keeps them: cut from the frame, JPEG or PNG, made smaller, sealed, and read back.

Nothing of a frame beyond what its queue's ``store`` says may reach the disk:

- ``full``: the frame.
- ``crop``: the rectangle that the net looked at, in whole pixels of the frame, and nothing else; of clips the same region.
- ``keypoints``: no picture at all.

In each case the numbers of the record stay: box, keypoints, scores, and the embedding, 64 or so numbers about what the
net saw. Nobody can look at an embedding, but whoever has the net and many pictures may tell which resemble it.

JPEG comes from simplejpeg, or from Pillow where that is missing, with 4:2:0 chroma: cameras and video decoders deliver
no more, and the file is a sixth smaller than with 4:4:4. Where compression must not move a pose at all, take PNG. That
is written here: one filter and zlib make smaller files than Pillow's, sooner, and without holding up other threads. It
is also the last resort: where JPEG was wanted and neither library is installed, the picture is kept as PNG.

Geometry: ``frame_xy = (image_xy + 0.5) * scale + origin``, as :meth:`alpose.runtime.Crop.to_frame` has it: the origin
is an edge of the first pixel, not its centre.

Shapes: H W picture, h w made smaller, K taps of the resampling filter.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from ..bundle.keys import sealer
from ..errors import ConfigError, DataError, MissingExtraError
from ..frames import Region
from ..redaction import redact
from ..resampling import Axis, taps
from .record import MEDIA_TYPES, STORES, FrameCopy, Picture

JPEG, PNG = MEDIA_TYPES

MAX_PIXELS = 1 << 27
"""Larger pictures (than four times 8K) are not decoded: a small file can claim any size."""

JPEG_SIDE = 65_500
"""The longest side that libjpeg writes."""

PNG_LEVEL = 3
"""zlib's; a higher one takes three times as long for a tenth of the bytes."""

BAND_ROWS = 32
"""Rows that are resampled at once, so that what lies between fits a processor's cache."""

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_UP = 2
"""The filter of a row: each byte less the one above it."""


class PictureEncoder:
    """Turns pixels into the pictures of a record: cut, encoded, sealed.

    Args:
        store: ``full``, ``crop`` or ``keypoints``.
        media_type, quality, long_side: as in :func:`encode`.
        seal_to: the fleet's public key; None leaves pictures open.

    Raises:
        ConfigError: a setting that cannot be carried out.
        MissingExtraError: sealing without pynacl.
    """

    def __init__(
        self, *, store: str, media_type: str, quality: int, long_side: int | None, seal_to: str | Path | None
    ) -> None:
        if store not in STORES:
            raise ConfigError(f"store must be one of {', '.join(STORES)}, got {store!r}")
        check_options(media_type, quality, long_side)
        self.store = store
        self._options = (media_type, quality, long_side)
        self._seal: Callable[[bytes], bytes] | None = None if seal_to is None else sealer(seal_to)

    def picture(self, copy: FrameCopy, region: Region) -> tuple[Picture, str | None]:
        """A picture at position 0, and what replaced the encoder that was wanted.

        Raises:
            DataError: the copy is not a picture.
            Exception: whatever an encoder raises.
        """
        (left, top), (x0, y0, x1, y1) = copy.offset, region
        height, width = copy.rgb_HW3.shape[:2]
        x0, y0 = max(x0, left), max(y0, top)
        kept_HW3 = copy.rgb_HW3[y0 - top : min(y1 - top, height), x0 - left : min(x1 - left, width)]
        if copy.redacted:
            kept_HW3 = kept_HW3.copy()  # a frame of a clip may be part of several records
            redact(kept_HW3, copy.redacted, (x0, y0))
        encoded = encode(kept_HW3, *self._options, offset=(x0, y0))
        picture = Picture.of(
            encoded.data if self._seal is None else self._seal(encoded.data),
            width=encoded.width,
            height=encoded.height,
            captured_ns=copy.captured_ns,
            media_type=encoded.media_type,
            sealed=self._seal is not None,
            origin=encoded.origin,
            scale=encoded.scale,
        )
        return picture, encoded.fallback


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A picture in bytes, and where in the frame its pixels lie."""

    data: bytes
    media_type: str
    width: int
    height: int
    origin: tuple[float, float]
    scale: float
    fallback: str | None
    """What replaced the encoder that was wanted: ``jpeg_by_pillow``, ``png_for_jpeg``."""


def encode(
    rgb_HW3: npt.NDArray[np.uint8],
    media_type: str = JPEG,
    quality: int = 90,
    long_side: int | None = 1920,
    *,
    offset: tuple[int, int] = (0, 0),
) -> Encoded:
    """Make a picture of a frame, or of a region of one.

    Args:
        rgb_HW3: uint8, RGB.
        media_type: ``image/jpeg`` or ``image/png``.
        quality: of JPEG, 1 to 100.
        long_side: a longer one is resampled down to it; None leaves it. Nothing is ever enlarged.
        offset: column and row in the frame of the region's first pixel.

    Raises:
        DataError: not a picture: another dtype or shape, or empty.
        ConfigError: an unknown media type, a quality or long side out of range.
    """
    check_options(media_type, quality, long_side)
    if rgb_HW3.ndim != 3 or rgb_HW3.shape[2] != 3 or rgb_HW3.dtype != np.uint8 or rgb_HW3.size == 0:
        raise DataError(f"a picture is a non-empty uint8 (H, W, 3) array, got {rgb_HW3.dtype} {rgb_HW3.shape}")
    longest = max(rgb_HW3.shape[:2])
    wanted = min(long_side or longest, JPEG_SIDE if media_type == JPEG else longest)
    scale = max(1.0, longest / wanted)
    if scale > 1.0:
        rgb_HW3 = shrink(rgb_HW3, scale)
    data, media_type, fallback = _compress(np.ascontiguousarray(rgb_HW3), media_type, quality)
    height, width, _ = rgb_HW3.shape
    return Encoded(data, media_type, width, height, (offset[0] - 0.5, offset[1] - 0.5), scale, fallback)


def check_options(media_type: str, quality: int, long_side: int | None) -> None:
    """Refuse what :func:`encode` cannot do, before a frame depends on it."""
    if media_type not in MEDIA_TYPES:
        raise ConfigError(f"the media type is {' or '.join(MEDIA_TYPES)}, got {media_type!r}")
    if not 1 <= quality <= 100:
        raise ConfigError(f"the quality of JPEG is 1 to 100, got {quality}")
    if long_side is not None and long_side < 1:
        raise ConfigError(f"long_side is at least 1 pixel, or None for no limit; got {long_side}")


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """A picture's pixels, (H, W, 3) RGB. For tools, and for bytes from an unknown source.

    Raises:
        DataError: neither JPEG nor PNG, damaged, or of more than ``max_pixels``.
        MissingExtraError: neither library is installed. The PNG files of :func:`encode` need none.
    """
    if data[: len(_PNG_MAGIC)] == _PNG_MAGIC:
        return _decode_png(data, max_pixels)
    if data[:3] == b"\xff\xd8\xff":
        return _decode_jpeg(data, max_pixels)
    raise DataError(f"{len(data)} bytes that begin with {data[:8].hex() or 'nothing'} are neither JPEG nor PNG")


def shrink(rgb_HW3: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
    """Resample to steps of ``scale`` ≥ 1 pixels, with the filter of every crop: (h, w, 3) uint8.

    The sides are the nearest whole number of steps. What the filter misses beyond the border is made up for by the rest
    of it, so that the border is not darkened.
    """
    height, width, _ = rgb_HW3.shape
    row_Kh, row_weight_Kh = _inner_taps(height, scale)
    column_Kw, column_weight_Kw = _inner_taps(width, scale)
    out_hw3 = np.empty((row_Kh.shape[1], column_Kw.shape[1], 3), dtype=np.uint8)
    for first in range(0, len(out_hw3), BAND_ROWS):
        band = slice(first, first + BAND_ROWS)
        rows_bW3 = np.zeros((len(out_hw3[band]), width, 3), dtype=np.float32)
        for row_b, weight_b in zip(row_Kh[:, band], row_weight_Kh[:, band], strict=True):
            rows_bW3 += rgb_HW3[row_b] * weight_b[:, None, None]
        sum_bw3 = np.zeros((len(rows_bW3), out_hw3.shape[1], 3), dtype=np.float32)
        for column_w, weight_w in zip(column_Kw, column_weight_Kw, strict=True):
            sum_bw3 += rows_bW3[:, column_w] * weight_w[None, :, None]
        out_hw3[band] = np.rint(sum_bw3)
    return out_hw3


def _inner_taps(length: int, scale: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    samples = max(1, round(length / scale))
    index_KS, weight_KS = taps(Axis(-0.5, samples * scale, samples), length)
    return index_KS, weight_KS / weight_KS.sum(axis=0)


def _compress(rgb_HW3: npt.NDArray[np.uint8], media_type: str, quality: int) -> tuple[bytes, str, str | None]:
    """The bytes, their media type, and what replaced the encoder that was wanted."""
    if media_type == JPEG:
        if (simplejpeg := _library("simplejpeg")) is not None:
            return simplejpeg.encode_jpeg(rgb_HW3, quality, "RGB", "420", True), JPEG, None
        if (image := _library("PIL.Image")) is not None:
            return _pillow_jpeg(image, rgb_HW3, quality), JPEG, "jpeg_by_pillow"
        return _encode_png(rgb_HW3), PNG, "png_for_jpeg"
    return _encode_png(rgb_HW3), PNG, None


def _pillow_jpeg(image: ModuleType, rgb_HW3: npt.NDArray[np.uint8], quality: int) -> bytes:
    # Only while it writes to a descriptor does Pillow let other threads run.
    memory = os.fdopen(os.memfd_create("picture"), "w+b") if sys.platform == "linux" else io.BytesIO()
    with memory as file:
        image.fromarray(rgb_HW3).save(file, "JPEG", quality=quality, subsampling="4:2:0")
        file.seek(0)
        return file.read()


def _encode_png(rgb_HW3: npt.NDArray[np.uint8]) -> bytes:
    """8-bit RGB, each row as its difference from the one above (https://www.w3.org/TR/png-3/#9Filters)."""
    height, width, _ = rgb_HW3.shape
    flat_HX = rgb_HW3.reshape(height, 3 * width)
    rows_HY = np.empty((height, 1 + 3 * width), dtype=np.uint8)  # Y = 1 + X: the filter's number goes first
    rows_HY[:, 0] = _PNG_UP
    rows_HY[0, 1:] = flat_HX[0]
    np.subtract(flat_HX[1:], flat_HX[:-1], out=rows_HY[1:, 1:])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows_HY.data, PNG_LEVEL)
    return b"".join((_PNG_MAGIC, *map(_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, body, b""))))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _decode_png(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    own = _read_own_png(data, max_pixels)
    return own if own is not None else _decode_by_pillow(data, "PNG", max_pixels)


def _read_own_png(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8] | None:
    """A file as :func:`_encode_png` writes it, or None: PNG has many more forms, which Pillow knows."""
    head = struct.calcsize(">I4sIIBBBBBI")
    start, stop = len(_PNG_MAGIC) + head, len(data) - 12  # IDAT begins, IEND begins
    if stop < start + 12:
        return None
    length, kind, width, height, *form, _ = struct.unpack_from(">I4sIIBBBBBI", data, len(_PNG_MAGIC))
    body = data[start + 8 : stop - 4]
    if (length, kind, form) != (13, b"IHDR", [8, 2, 0, 0, 0]) or not width or not height:
        return None
    if data[start:] != _chunk(b"IDAT", body) + _chunk(b"IEND", b""):
        return None
    _check_size(width, height, max_pixels)
    size = height * (1 + 3 * width)
    try:
        unpacked = zlib.decompressobj().decompress(body, size + 1)
    except zlib.error as error:
        raise DataError(f"a PNG file of {width} x {height} px is damaged: {error}") from None
    if len(unpacked) != size:
        raise DataError(f"a PNG file of {width} x {height} px holds {len(unpacked)} bytes of rows, not {size}")
    rows_HY = np.frombuffer(unpacked, dtype=np.uint8).reshape(height, 1 + 3 * width)
    if (rows_HY[:, 0] != _PNG_UP).any():
        return None
    return np.cumsum(rows_HY[:, 1:], axis=0, dtype=np.uint8).reshape(height, width, 3)


def _decode_jpeg(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    simplejpeg = _library("simplejpeg")
    if simplejpeg is None:
        return _decode_by_pillow(data, "JPEG", max_pixels)
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height, max_pixels)
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{len(data)} bytes of JPEG are damaged: {error}") from None


def _decode_by_pillow(data: bytes, kind: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    image = _library("PIL.Image")
    if image is None:
        raise MissingExtraError("Pillow", f"reading this {kind} file", "harvest")
    try:
        with image.open(io.BytesIO(data), formats=[kind]) as picture:  # the header alone
            _check_size(picture.width, picture.height, max_pixels)
            return np.array(picture.convert("RGB"))
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:  # its readers raise all
        raise DataError(f"{len(data)} bytes of {kind} are damaged: {error}") from None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DataError(f"a picture of {width} x {height} px is larger than the {max_pixels} pixels that are decoded")


@functools.cache
def _library(name: str) -> ModuleType | None:
    """An optional library; looked for once, since a failing import is slow."""
    try:
        if name == "simplejpeg":
            import simplejpeg  # type: ignore[import-untyped]

            return simplejpeg
        import PIL.Image

        return PIL.Image
    except ImportError:
        return None
