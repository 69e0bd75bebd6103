"""Shapes: H W picture, J points."""

from __future__ import annotations

import contextlib
import importlib.util
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.errors import ConfigError, DataError, MissingExtraError
from alpose.runtime.queue import images
from alpose.runtime.queue.images import JPEG, PNG, Encoded, decode, encode, shrink

needs_simplejpeg = pytest.mark.skipif(importlib.util.find_spec("simplejpeg") is None, reason="simplejpeg is missing")
needs_pillow = pytest.mark.skipif(importlib.util.find_spec("PIL") is None, reason="Pillow is not installed")


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Make imports fail with ``missing.setitem(sys.modules, name, None)``."""
    images._library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    images._library.cache_clear()


def photo(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Smooth colours with some noise, as a camera gives them."""
    rng = np.random.default_rng(seed)
    y_H1, x_1W = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x_1W / (9 + 4 * c) + y_H1 / (15 - 3 * c)) for c in range(3)]
    return np.clip(np.stack(waves, axis=-1) + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)


def psnr(a_HW3: npt.NDArray[np.uint8], b_HW3: npt.NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a_HW3.astype(np.float64) - b_HW3) ** 2)))


def to_frame(points_J2: npt.NDArray[np.float64], made: Encoded) -> npt.NDArray[np.float64]:
    return (points_J2 + 0.5) * made.scale + np.array(made.origin)


def to_picture(points_J2: npt.NDArray[np.float64], made: Encoded) -> npt.NDArray[np.float64]:
    return (points_J2 - np.array(made.origin)) / made.scale - 0.5


def read_png_slowly(data: bytes) -> npt.NDArray[np.uint8]:
    """A plain twin: every chunk with its checksum, every filter of the standard, one byte at a time."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, []
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, place + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        chunks.append((kind, body))
        place += 12 + length
    assert [chunks[0][0], chunks[-1]] == [b"IHDR", (b"IEND", b"")]
    width, height, *form = struct.unpack(">IIBBBBB", chunks[0][1])
    assert form == [8, 2, 0, 0, 0]
    rows = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    step, above, out = 1 + 3 * width, bytes(3 * width), []
    for y in range(height):
        kind, row = rows[y * step], bytearray(rows[y * step + 1 : (y + 1) * step])
        for x in range(len(row)):
            left, up, corner = (row[x - 3], above[x], above[x - 3]) if x >= 3 else (0, above[x], 0)
            guess = left + up - corner
            paeth = min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
            row[x] = (row[x] + (0, left, up, (left + up) // 2, paeth)[kind]) % 256
        out.append(bytes(row))
        above = out[-1]
    return np.frombuffer(b"".join(out), np.uint8).reshape(height, width, 3)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_png_holds_every_pixel(height: int, width: int, seed: int) -> None:
    frame_HW3 = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    made = encode(frame_HW3, PNG)

    assert (made.media_type, made.width, made.height, made.fallback) == (PNG, width, height, None)
    np.testing.assert_array_equal(read_png_slowly(made.data), frame_HW3)
    np.testing.assert_array_equal(decode(made.data), frame_HW3)


@needs_pillow
def test_others_read_our_png_and_we_read_theirs() -> None:
    import io

    from PIL import Image

    frame_HW3 = photo(40, 57)

    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(encode(frame_HW3, PNG).data))), frame_HW3)
    file = io.BytesIO()
    Image.fromarray(frame_HW3).save(file, "PNG")
    np.testing.assert_array_equal(decode(file.getvalue()), frame_HW3)
    file = io.BytesIO()
    Image.fromarray(frame_HW3[..., 0]).save(file, "PNG")
    np.testing.assert_array_equal(decode(file.getvalue())[..., 1], frame_HW3[..., 0])


@needs_simplejpeg
def test_a_jpeg_is_close_and_its_quality_counts() -> None:
    frame_HW3 = photo(216, 384)

    good, poor = encode(frame_HW3, quality=90), encode(frame_HW3, quality=30)

    assert good.media_type == JPEG
    assert (good.width, good.height, good.origin, good.scale) == (384, 216, (-0.5, -0.5), 1.0)
    assert good.fallback is None
    assert psnr(decode(good.data), frame_HW3) > 33 > psnr(decode(poor.data), frame_HW3) > 22
    assert len(poor.data) < len(good.data) < frame_HW3.nbytes / 5
    red_HW3 = np.zeros((16, 16, 3), np.uint8)
    red_HW3[..., 0] = 200
    np.testing.assert_allclose(decode(encode(red_HW3).data), red_HW3, atol=3)


@needs_pillow
def test_pillow_stands_in_for_simplejpeg(missing: pytest.MonkeyPatch) -> None:
    frame_HW3 = photo(60, 80)
    missing.setitem(sys.modules, "simplejpeg", None)

    made = encode(frame_HW3)

    assert (made.media_type, made.fallback) == (JPEG, "jpeg_by_pillow")
    assert psnr(decode(made.data), frame_HW3) > 30


def test_without_any_library_nothing_is_lost(missing: pytest.MonkeyPatch) -> None:
    frame_HW3 = photo(60, 80)
    for name in ("simplejpeg", "PIL", "PIL.Image"):
        missing.setitem(sys.modules, name, None)

    made = encode(frame_HW3)

    assert (made.media_type, made.fallback) == (PNG, "png_for_jpeg")
    np.testing.assert_array_equal(decode(made.data), frame_HW3)
    with pytest.raises(MissingExtraError, match=r"reading this JPEG file needs Pillow"):
        decode(b"\xff\xd8\xff\xe0 not ours")


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    long_side=st.integers(1, 100),
    offset=st.tuples(st.integers(0, 4000), st.integers(0, 4000)),
)
def test_a_point_goes_into_the_picture_and_back(
    height: int, width: int, long_side: int, offset: tuple[int, int]
) -> None:
    points_J2 = np.array(offset) + np.random.default_rng(0).uniform(-0.5, [width - 0.5, height - 0.5], (20, 2))

    made = encode(photo(height, width), PNG, long_side=long_side, offset=offset)

    assert max(made.width, made.height) == min(long_side, max(width, height))
    np.testing.assert_allclose(to_frame(to_picture(points_J2, made), made), points_J2, rtol=1e-6)
    corners_J2 = to_frame(np.array([[-0.5, -0.5], [made.width - 0.5, made.height - 0.5]]), made) - np.array(offset)
    np.testing.assert_allclose(corners_J2[0], [-0.5, -0.5])
    if min(made.width, made.height) > 1:  # sides are whole numbers of samples
        np.testing.assert_allclose(corners_J2[1], [width - 0.5, height - 0.5], atol=made.scale / 2 + 1e-9)


@pytest.mark.parametrize("long_side", [None, 150, 100, 64, 37])
def test_a_bright_dot_lies_where_the_geometry_says(long_side: int | None) -> None:
    """The centre of its light, for dots that no border cuts off."""
    rng = np.random.default_rng(3)
    for x, y in rng.integers(30, [170, 90], (20, 2)):
        frame_HW3 = np.zeros((120, 200, 3), np.uint8)
        frame_HW3[y - 6 : y + 7, x - 6 : x + 7] = 255

        made = encode(frame_HW3, PNG, long_side=long_side, offset=(7, 11))
        light_hw = decode(made.data)[..., 0].astype(np.float64)

        rows_h, columns_w = np.indices(light_hw.shape)
        centre_12 = np.array([[(columns_w * light_hw).sum(), (rows_h * light_hw).sum()]]) / light_hw.sum()
        # Grey levels and the filter's weights are whole numbers: a fiftieth of a picture's pixel.
        np.testing.assert_allclose(to_frame(centre_12, made), [[x + 7, y + 11]], atol=0.02 * made.scale)


def test_shrinking_keeps_greys_to_the_border_and_does_not_alias() -> None:
    grey_HW3 = np.full((101, 67, 3), 93, np.uint8)
    assert set(np.unique(shrink(grey_HW3, 2.37))) == {93}

    stripes_HW3 = np.zeros((90, 90, 3), np.uint8)
    stripes_HW3[:, ::2] = 255
    small_hw3 = shrink(stripes_HW3, 3.0)
    assert small_hw3.shape == (30, 30, 3)
    assert np.abs(small_hw3[:, 1:-1].astype(int) - 127).max() <= 20  # picking every third would give 0 and 255


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.floats(1, 9), st.integers(0, 99))
def test_shrinking_by_bands_is_shrinking(height: int, width: int, scale: float, seed: int) -> None:
    """A plain twin: a weighted mean of every pixel under a triangle, as far as it lies within the frame."""
    frame_HW3 = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def weights(length: int) -> npt.NDArray[np.float64]:
        centre_S = (np.arange(max(1, round(length / scale))) + 0.5) * scale - 0.5
        weight_SL = np.maximum(0, 1 - np.abs(np.arange(length) - centre_S[:, None]) / scale)
        return weight_SL / weight_SL.sum(axis=1, keepdims=True)

    expected_hw3 = np.einsum("hH,wW,HWc->hwc", weights(height), weights(width), frame_HW3)
    np.testing.assert_allclose(shrink(frame_HW3, scale), expected_hw3, atol=0.6)


def test_what_cannot_be_done_is_refused() -> None:
    wrong: list[Any] = [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
    for frame in wrong:
        with pytest.raises(DataError, match="a picture is a non-empty uint8"):
            encode(frame)
    with pytest.raises(ConfigError, match="the media type is image/jpeg or image/png, got 'image/webp'"):
        encode(photo(4, 4), "image/webp")
    with pytest.raises(ConfigError, match="quality of JPEG is 1 to 100, got 0"):
        encode(photo(4, 4), quality=0)
    with pytest.raises(ConfigError, match="long_side is at least 1"):
        encode(photo(4, 4), long_side=0)


@pytest.mark.parametrize("media_type", [JPEG, PNG])
def test_a_small_file_may_not_claim_a_large_picture(media_type: str) -> None:
    if media_type == JPEG:
        pytest.importorskip("simplejpeg")
    data = encode(np.zeros((300, 200, 3), np.uint8), media_type).data

    with pytest.raises(DataError, match="a picture of 200 x 300 px is larger than the 59999 pixels"):
        decode(data, max_pixels=59_999)
    assert decode(data, max_pixels=60_000).shape == (300, 200, 3)


def test_a_png_whose_rows_unpack_to_more_is_refused() -> None:
    made = encode(np.zeros((4, 4, 3), np.uint8), PNG).data
    bomb = zlib.compress(bytes(10_000_000))
    forged = made[:33] + images._chunk(b"IDAT", bomb) + images._chunk(b"IEND", b"")

    with pytest.raises(DataError, match="holds 53 bytes of rows, not 52"):
        decode(forged)


@pytest.mark.parametrize("media_type", [JPEG, PNG])
def test_damaged_bytes_are_a_clear_error_and_never_another(media_type: str) -> None:
    if media_type == JPEG:
        pytest.importorskip("simplejpeg")
    data = encode(photo(24, 32), media_type).data
    rng = np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        cut = bytes(broken[: rng.integers(1, len(data) + 1)])
        for attempt in (bytes(broken), cut):
            with contextlib.suppress(DataError, MissingExtraError):
                assert decode(attempt, max_pixels=100_000).ndim == 3
    for nothing in (b"", b"GIF89a", b"\x89PNG", b"<svg>"):
        with pytest.raises(DataError, match="neither JPEG nor PNG"):
            decode(nothing)
