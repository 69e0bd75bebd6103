"""Frames on the host, in every format, against slow twins in whole numbers.

Shapes: H W frame, S samples across a crop.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import Crop, cut, square_crop
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.frames import LAYOUTS, FrameFormat, accept, check_frame
from alpose.runtime.resampling import Axis, taps

from ..fakes.frames import noise as noisy

Bytes = npt.NDArray[np.uint8]
FORMATS = list(FrameFormat)
YUV = [each for each in FORMATS if LAYOUTS[each].matrix]


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def planes_slow(frame: Bytes, name: str) -> list[Bytes]:
    """Luma and both chromas by the definition of each format, chroma at its own resolution."""
    if "yuyv" in name or "uyvy" in name:
        y = 0 if "yuyv" in name else 1
        return [frame[..., y], frame[:, 0::2, 1 - y], frame[:, 1::2, 1 - y]]
    width = frame.shape[1]
    height = len(frame) * 2 // 3
    rest = frame[height:].reshape(-1)
    shape = (height // 2, width // 2)
    if "i420" in name:
        return [frame[:height], rest[: len(rest) // 2].reshape(shape), rest[len(rest) // 2 :].reshape(shape)]
    first, second = rest[0::2].reshape(shape), rest[1::2].reshape(shape)
    return [frame[:height], *((second, first) if "nv21" in name else (first, second))]


def frame_of(luma_HW: npt.ArrayLike, u: npt.ArrayLike, v: npt.ArrayLike, frame_format: FrameFormat) -> Bytes:
    """A frame from its planes: what :func:`planes_slow` takes apart."""
    luma, u_hw, v_hw = (np.asarray(plane, dtype=np.uint8) for plane in (luma_HW, u, v))
    frame = np.zeros(LAYOUTS[frame_format].shape(*luma.shape), np.uint8)
    name = frame_format.value
    if "yuyv" in name or "uyvy" in name:
        y = 0 if "yuyv" in name else 1
        frame[..., y], frame[:, 0::2, 1 - y], frame[:, 1::2, 1 - y] = luma, u_hw, v_hw
        return frame
    frame[: len(luma)] = luma
    pair = (v_hw, u_hw) if "nv21" in name else (u_hw, v_hw)
    rest = np.concatenate([half.ravel() for half in pair]) if "i420" in name else np.stack(pair, 2).ravel()
    frame[len(luma) :] = rest.reshape(-1, luma.shape[1])
    return frame


def flat(height: int, width: int, yuv: tuple[int, int, int], frame_format: FrameFormat) -> Bytes:
    chroma = LAYOUTS[frame_format].planes[-1]
    shape = (height // chroma.high, width // chroma.wide)
    return frame_of(np.full((height, width), yuv[0]), np.full(shape, yuv[1]), np.full(shape, yuv[2]), frame_format)


def rgb_slow(y: int, u: int, v: int, bt709: bool) -> list[int]:
    """Limited range from its defining numbers, for one pixel."""
    red, blue = (0.2126, 0.0722) if bt709 else (0.299, 0.114)
    luma, pb, pr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = luma + 2 * (1 - red) * pr, luma + 2 * (1 - blue) * pb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return [min(max(math.floor(255 * value + 0.5), 0), 255) for value in (r, g, b)]


@pytest.mark.parametrize("frame_format", [each for each in YUV if "bt709" not in each.value])
@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((81, 90, 240), (254, 0, 0)),  # the three corners as every table of BT.601 has them
        ((145, 54, 34), (0, 255, 1)),
        ((41, 240, 110), (0, 0, 255)),
        ((0, 128, 128), (0, 0, 0)),
        ((255, 128, 128), (255, 255, 255)),
    ],
)
def test_known_colours(yuv: tuple[int, int, int], rgb: tuple[int, int, int], frame_format: FrameFormat) -> None:
    frame = accept(flat(16, 20, yuv, frame_format), frame_format)

    assert np.abs(frame.to_rgb().astype(int) - rgb).max() <= 1
    assert np.abs(frame.cut(Crop.square(3.0, 2.0, 9.0, 8)).astype(int) - rgb).max() <= 1


@given(frame_format=st.sampled_from(YUV), pixel=st.tuples(*[st.integers(0, 255)] * 3))
@settings(deadline=None, max_examples=300)
def test_colours_are_the_standards_within_a_level(frame_format: FrameFormat, pixel: tuple[int, int, int]) -> None:
    found = accept(flat(2, 2, pixel, frame_format), frame_format).to_rgb()

    assert np.abs(found.astype(int) - rgb_slow(*pixel, "bt709" in frame_format.value)).max() <= 1


@pytest.mark.parametrize("name", ["NV12", "NV21", "I420", "YUYV", "UYVY"])
def test_opencv_gives_the_same_but_for_a_level(name: str) -> None:
    """Where luma is at least 16: below, OpenCV takes it for 16."""
    cv2 = pytest.importorskip("cv2")
    frame_format = FrameFormat[name]
    luma, u, v = planes_slow(noisy(frame_format, 60, 64), frame_format.value)
    frame = frame_of(np.maximum(luma, 16), u, v, frame_format)

    expected = cv2.cvtColor(frame, getattr(cv2, f"COLOR_YUV2RGB_{name}"))

    assert np.abs(accept(frame, frame_format).to_rgb().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("frame_format", YUV)
def test_each_chroma_colours_the_pixels_that_share_it(frame_format: FrameFormat) -> None:
    own = LAYOUTS[frame_format].planes[-1]
    u, v = (np.full((6 // own.high, 8 // own.wide), 128) for _ in range(2))
    u[1, 2], v[2, 0] = 200, 200
    rgb = accept(frame_of(np.full((6, 8), 126), u, v, frame_format), frame_format).to_rgb().astype(int)

    def shared(row: int, column: int) -> list[list[int]]:
        return [[own.high * row + y, own.wide * column + x] for y in range(own.high) for x in range(own.wide)]

    assert np.argwhere(rgb[..., 2] > 180).tolist() == shared(1, 2)
    assert np.argwhere(rgb[..., 0] > 180).tolist() == shared(2, 0)


@pytest.mark.parametrize("frame_format", YUV)
@pytest.mark.parametrize(
    "crop",
    [
        Crop.square(-20.0, -30.0, 90.0, 24),
        Crop.square(5.2, 3.9, 30.0, 24),
        Crop.square(10.0, 8.0, 6.0, 24, 4),
        Crop(-9.0, 3.0, 50.0, 90.0, 12, 20, fill=114),
    ],
)
def test_a_crop_of_yuv_is_its_recipe(frame_format: FrameFormat, crop: Crop) -> None:
    """Bit for bit, in whole numbers of 64 bits."""
    frame = noisy(frame_format, 48, 60)
    own = LAYOUTS[frame_format].planes[-1]

    def level(plane_HW: Bytes, black: int, high: int, wide: int) -> npt.NDArray[np.int64]:
        shift_y, shift_x = (high - 1) / (2 * high), (wide - 1) / (2 * wide)
        down = Axis(crop.y0 / high - shift_y, crop.height / high, crop.height_px, crop.context_px)
        across = Axis(crop.x0 / wide - shift_x, crop.width / wide, crop.width_px, crop.context_px)
        rows, columns = dense(down, plane_HW.shape[0]), dense(across, plane_HW.shape[1])
        outside = round(crop.fill * 219 / 255) if black == 16 else 0
        between = (rows @ (plane_HW.astype(np.int64) - black - outside) + 2**9) >> 10
        return ((between @ columns.T + 2**15) >> 16) + outside

    luma_HW, *chroma = planes_slow(frame, frame_format.value)
    y = level(luma_HW, 16, 1, 1)
    u, v = (level(plane_HW, 128, own.high, own.wide) for plane_HW in chroma)
    if "bt709" in frame_format.value:
        levels = [9539 * y + 14686 * v, 9539 * y - 1747 * u - 4366 * v, 9539 * y + 17305 * u]
    else:
        levels = [9539 * y + 13075 * v, 9539 * y - 3209 * u - 6660 * v, 9539 * y + 16525 * u]
    expected = np.clip((np.stack(levels, axis=2) + 2**12) >> 13, 0, 255)

    np.testing.assert_array_equal(accept(frame, frame_format).cut(crop), expected)


def dense(axis: Axis, length: int) -> npt.NDArray[np.int64]:
    """The taps along one axis as a matrix of samples by pixels."""
    index_KS, weight_KS = taps(axis, length)
    out = np.zeros((index_KS.shape[1], length), dtype=np.int64)
    np.add.at(out, (np.broadcast_to(np.arange(len(out)), index_KS.shape), index_KS), weight_KS.astype(np.int64))
    return out


@pytest.mark.parametrize("frame_format", YUV)
def test_what_lies_outside_a_frame_of_yuv_is_black(frame_format: FrameFormat) -> None:
    out = accept(flat(20, 20, (235, 128, 128), frame_format), frame_format).cut(Crop.square(-10.5, -0.5, 20.0, 20))

    assert not out[:, :10].any()
    np.testing.assert_array_equal(out[:, 10:], 255)


@pytest.mark.parametrize("frame_format", [each for each in YUV if "bt709" not in each.value])
@pytest.mark.parametrize(
    "crop", [Crop.square(9.3, 4.1, 50.0, 16), Crop.square(-30.0, -20.0, 120.0, 32), Crop.square(20.0, 10.0, 7.0, 32)]
)
def test_a_drawn_dot_is_at_the_same_place_in_every_format(crop: Crop, frame_format: FrameFormat) -> None:
    y, x = np.mgrid[0:60, 0:80]
    bell = np.rint(200 * np.exp(-((x - 25.0) ** 2 + (y - 15.0) ** 2) / 60)).astype(np.uint8)
    rgb = np.dstack([bell, bell // 2, bell // 3])
    own = LAYOUTS[frame_format].planes[-1]
    luma = 16 + rgb @ [0.257, 0.504, 0.098]
    mean = rgb.reshape(60 // own.high, own.high, 80 // own.wide, own.wide, 3).mean(axis=(1, 3))
    u, v = 128 + mean @ [-0.148, -0.291, 0.439], 128 + mean @ [0.439, -0.368, -0.071]

    expected = cut(rgb, crop).astype(int)
    found = accept(frame_of(np.rint(luma), np.rint(u), np.rint(v), frame_format), frame_format).cut(crop)

    assert expected.max() > 90
    assert np.abs(found - expected).max() <= 8


def test_chroma_lies_in_the_middle_of_its_four_pixels() -> None:
    """Luma from the edge -0.5 to 7.5 is chroma from the edge -0.5 to 3.5."""
    assert Axis(-0.5, 8.0, 4, 1).on_grid(2) == Axis(-0.5, 4.0, 4, 1)
    assert Axis(1.5, 8.0, 4, 1).on_grid(2) == Axis(0.5, 4.0, 4, 1)


def test_bgr_is_rgb_backwards_and_grey_is_the_same_three_times() -> None:
    frame, crop = noise(30, 40, 3), Crop.square(-3.0, 2.0, 25.0, 16)

    np.testing.assert_array_equal(accept(frame, "BGR").cut(crop), cut(frame[..., ::-1], crop))
    np.testing.assert_array_equal(accept(frame, "bgr").to_rgb(), frame[..., ::-1])
    np.testing.assert_array_equal(accept(frame).cut(crop), cut(frame, crop))
    grey = accept(frame[..., 1], "grey")
    np.testing.assert_array_equal(grey.cut(crop), cut(frame[..., [1, 1, 1]], crop))
    np.testing.assert_array_equal(grey.to_rgb(), frame[..., [1, 1, 1]])


@pytest.mark.parametrize("frame_format", FORMATS)
@given(data=st.data())
@settings(deadline=None, max_examples=15)
def test_a_region_is_that_part_of_the_whole(frame_format: FrameFormat, data: st.DataObject) -> None:
    frame = accept(noisy(frame_format, 144, 30), frame_format)
    assert (frame.width, frame.height) == (30, 144)
    x0, y0 = data.draw(st.integers(0, 29)), data.draw(st.integers(0, 143))
    x1, y1 = data.draw(st.integers(x0 + 1, 30)), data.draw(st.integers(y0 + 1, 144))

    part = frame.to_rgb((x0, y0, x1, y1))

    np.testing.assert_array_equal(part, frame.to_rgb()[y0:y1, x0:x1])
    assert part.flags.c_contiguous
    assert not np.shares_memory(part, frame.pixels)


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 21, 5), (0, 0, 5, 13), (3, 3, 3, 5), (5, 0, 4, 5)])
def test_a_region_that_is_not_in_the_frame_is_an_error(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError, match="region"):
        accept(noise(12, 20, 3)).to_rgb(region)


@pytest.mark.parametrize("frame_format", FORMATS)
@pytest.mark.parametrize("view", ["steps", "backwards", "columns"])
def test_a_frame_need_not_be_contiguous_and_is_not_edited(frame_format: FrameFormat, view: str) -> None:
    frame = noisy(frame_format, 48, 80)
    frame = {"steps": frame[:, ::2], "backwards": frame[:, ::-1], "columns": np.asfortranarray(frame)}[view]
    frame.setflags(write=False)
    crop = Crop.square(2.0, 3.0, 30.0, 16)
    copy = accept(np.ascontiguousarray(frame), frame_format)

    np.testing.assert_array_equal(accept(frame, frame_format).cut(crop), copy.cut(crop))
    np.testing.assert_array_equal(accept(frame, frame_format).to_rgb(), copy.to_rgb())


@pytest.mark.parametrize(
    ("frame", "name", "says"),
    [
        (None, "rgb", "NoneType.*no picture"),
        ([[1, 2, 3]], "rgb", "list"),
        (np.zeros((0, 0, 3), np.uint8), "rgb", "empty"),
        (np.zeros((4, 0, 3), np.uint8), "bgr", "empty"),
        (np.zeros((4, 4, 3), np.float32), "rgb", "float32.*bytes of 0 to 255"),
        (np.zeros((4, 4), np.uint16), "grey", "uint16.*bytes of 0 to 255"),
        (np.zeros((4, 4, 3), np.int8), "rgb", "int8"),
        (np.zeros((4, 4, 4), np.uint8), "rgb", "drop the fourth channel"),
        (np.zeros((4, 4, 1), np.uint8), "rgb", "'grey'.*frame"),
        (np.zeros((4, 4, 1), np.uint8), "grey", r"frame\[..., 0\]"),
        (np.zeros((4, 5), np.uint8), "rgb", "'grey'"),
        (np.zeros((6, 4), np.uint8), "rgb", "'nv12'"),
        (np.zeros((3, 8, 8), np.uint8), "rgb", "channels last"),
        (np.zeros((1, 8, 8, 3), np.uint8), "rgb", "not a batch"),
        (np.zeros(7, np.uint8), "rgb", r"\(7,\)"),
        (np.array(7, np.uint8), "rgb", r"\(\)"),
        (np.zeros((6, 4, 3), np.uint8), "nv12", "looks like RGB"),
        (np.zeros((6, 4, 3), np.uint8), "grey", "looks like RGB"),
        (np.zeros((6, 4, 2), np.uint8), "i420", "looks like YUYV"),
        (np.zeros((6, 5), np.uint8), "nv12", "even"),
        (np.zeros((7, 4), np.uint8), "nv21-bt709", "even"),
        (np.zeros((4, 5, 2), np.uint8), "yuyv", "W even"),
        (np.zeros((0, 4), np.uint8), "nv12", "empty"),
        (np.zeros((6, 4), np.float64), "nv12", "float64"),
    ],
)
def test_a_frame_of_another_kind_is_an_error_that_says_what_came(frame: Any, name: str, says: str) -> None:
    with pytest.raises(DataError, match=f"(?s)frame.*{says}"):
        accept(frame, name)


def test_a_format_that_is_not_known_is_an_error_that_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"rgb, bgr, grey, nv12, .*, uyvy-bt709; got 'yuv'"):
        accept(noise(4, 4, 3), "yuv")


def test_the_format_is_checked_by_its_dtype_or_the_name_of_it() -> None:
    check_frame("uint8", (4, 4, 3), FrameFormat.RGB)
    check_frame(np.dtype(np.uint8), [6, 4], FrameFormat.NV12)
    with pytest.raises(DataError):
        check_frame("float16", (4, 4, 3), FrameFormat.RGB)


@pytest.mark.parametrize("frame_format", FORMATS)
def test_zeros_and_the_smallest_frame_and_a_box_outside_have_an_answer(frame_format: FrameFormat) -> None:
    yuv = frame_format in YUV
    frame = np.zeros(LAYOUTS[frame_format].shape(*(2, 2) if yuv else (1, 1)), np.uint8)
    out = accept(frame, frame_format).cut(square_crop((0, 0, 1, 1), margin=1.25, size_px=16))
    assert out.shape == (16, 16, 3)
    assert yuv or not out.any()  # chroma 0 is not grey: such zeros are green

    bright = np.full(LAYOUTS[frame_format].shape(24, 20), 200, np.uint8)
    assert not accept(bright, frame_format).cut(square_crop((900, 900, 990, 990), margin=1.25, size_px=16)).any()
