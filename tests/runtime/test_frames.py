from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import Crop, cut, square_crop, taps
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.frames import FrameFormat, accept, check_form, chroma_crop

Bytes = npt.NDArray[np.uint8]


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def nv12(luma_HW: npt.ArrayLike, u_HW: npt.ArrayLike, v_HW: npt.ArrayLike) -> Bytes:
    """From full luma and the chromas at half the resolution."""
    luma, u, v = (np.asarray(plane, dtype=np.uint8) for plane in (luma_HW, u_HW, v_HW))
    return np.concatenate([luma, np.stack([u, v], axis=2).reshape(len(u), -1)])


def flat(height: int, width: int, yuv: tuple[int, int, int]) -> Bytes:
    half = (height // 2, width // 2)
    return nv12(np.full((height, width), yuv[0]), np.full(half, yuv[1]), np.full(half, yuv[2]))


def rgb_slow(y: int, u: int, v: int) -> list[int]:
    """BT.601 of limited range from its defining numbers, for one pixel."""
    red, blue = 0.299, 0.114
    luma, pb, pr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = luma + 2 * (1 - red) * pr, luma + 2 * (1 - blue) * pb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return [min(max(math.floor(255 * value + 0.5), 0), 255) for value in (r, g, b)]


@pytest.mark.parametrize(
    ("yuv", "rgb"),
    [
        ((16, 128, 128), (0, 0, 0)),
        ((235, 128, 128), (255, 255, 255)),
        ((126, 128, 128), (128, 128, 128)),
        ((81, 90, 240), (254, 0, 0)),  # the three corners as every table of BT.601 has them
        ((145, 54, 34), (0, 255, 1)),
        ((41, 240, 110), (0, 0, 255)),
        ((0, 128, 128), (0, 0, 0)),
        ((255, 128, 128), (255, 255, 255)),
    ],
)
def test_known_colours_of_nv12(yuv: tuple[int, int, int], rgb: tuple[int, int, int]) -> None:
    frame = accept(flat(16, 20, yuv), "nv12")

    assert np.abs(frame.to_rgb().astype(int) - rgb).max() <= 1
    assert np.abs(frame.cut(Crop(3.0, 2.0, 9.0, 8)).astype(int) - rgb).max() <= 1


@given(pixel=st.tuples(*[st.integers(0, 255)] * 3))
@settings(deadline=None, max_examples=200)
def test_nv12_is_bt_601_within_a_level(pixel: tuple[int, int, int]) -> None:
    found = accept(flat(2, 2, pixel), "nv12").to_rgb()

    assert np.abs(found.astype(int) - rgb_slow(*pixel)).max() <= 1


def test_opencv_gives_the_same_but_for_a_level() -> None:
    """Where luma is at least 16: below, OpenCV takes it for 16."""
    cv2 = pytest.importorskip("cv2")
    frame = noise(90, 64)
    frame[:60] = np.maximum(frame[:60], 16)

    expected = cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12)

    assert np.abs(accept(frame, "nv12").to_rgb().astype(int) - expected).max() <= 1


def test_u_comes_before_v_and_each_colours_its_four_pixels() -> None:
    u, v = np.full((3, 4), 128), np.full((3, 4), 128)
    u[1, 2], v[2, 0] = 200, 200
    rgb = accept(nv12(np.full((6, 8), 126), u, v), "nv12").to_rgb().astype(int)

    blue, red = rgb[..., 2] > 180, rgb[..., 0] > 180
    assert np.argwhere(blue).tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]
    assert np.argwhere(red).tolist() == [[4, 0], [4, 1], [5, 0], [5, 1]]


@pytest.mark.parametrize("crop", [Crop(-20.0, -30.0, 90.0, 24), Crop(5.2, 3.9, 30.0, 24), Crop(10.0, 8.0, 6.0, 24, 4)])
def test_a_crop_of_nv12_is_its_recipe(crop: Crop) -> None:
    """Bit for bit, in whole numbers of 64 bits."""
    frame = noise(72, 60)

    def plane(pixels_HWC: Bytes, own: Crop, black: int) -> npt.NDArray[np.int64]:
        rows, columns = dense(own.y0, own, pixels_HWC.shape[0]), dense(own.x0, own, pixels_HWC.shape[1])
        between = (np.einsum("sh,hwc->swc", rows, pixels_HWC.astype(np.int64) - black) + 2**9) >> 10
        return (np.einsum("tw,swc->stc", columns, between) + 2**15) >> 16

    half = Crop(crop.x0 / 2 - 0.25, crop.y0 / 2 - 0.25, crop.side / 2, crop.size_px, crop.context_px)
    y = plane(frame[:48, :, None], crop, 16)[..., 0]
    u, v = np.moveaxis(plane(frame[48:].reshape(24, 30, 2), half, 128), 2, 0)
    levels = [9539 * y + 13075 * v, 9539 * y - 3209 * u - 6660 * v, 9539 * y + 16525 * u]
    expected = np.clip((np.stack(levels, axis=2) + 2**12) >> 13, 0, 255)

    np.testing.assert_array_equal(accept(frame, FrameFormat.NV12).cut(crop), expected)


def dense(start: float, crop: Crop, length: int) -> npt.NDArray[np.int64]:
    """The taps along one axis as a matrix of samples by pixels."""
    index_KS, weight_KS = taps(start, crop, length)
    out = np.zeros((index_KS.shape[1], length), dtype=np.int64)
    np.add.at(out, (np.broadcast_to(np.arange(len(out)), index_KS.shape), index_KS), weight_KS.astype(np.int64))
    return out


def test_what_lies_outside_a_frame_of_nv12_is_black() -> None:
    out = accept(flat(20, 20, (235, 128, 128)), "nv12").cut(Crop(-10.5, -0.5, 20.0, 20))

    assert not out[:, :10].any()
    np.testing.assert_array_equal(out[:, 10:], 255)


@pytest.mark.parametrize("crop", [Crop(9.3, 4.1, 50.0, 16), Crop(-30.0, -20.0, 120.0, 32), Crop(20.0, 10.0, 7.0, 32)])
def test_a_drawn_dot_is_at_the_same_place_in_every_form(crop: Crop) -> None:
    y, x = np.mgrid[0:60, 0:80]
    bell = np.rint(200 * np.exp(-((x - 25.0) ** 2 + (y - 15.0) ** 2) / 60)).astype(np.uint8)
    rgb = np.dstack([bell, bell // 2, bell // 3])
    luma = 16 + rgb @ [0.257, 0.504, 0.098]
    mean = rgb.reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
    u = 128 + mean @ [-0.148, -0.291, 0.439]
    v = 128 + mean @ [0.439, -0.368, -0.071]

    expected = cut(rgb, crop).astype(int)
    found = accept(nv12(np.rint(luma), np.rint(u), np.rint(v)), "nv12").cut(crop)

    assert expected.max() > 90
    assert np.abs(found - expected).max() <= 8


def test_chroma_lies_in_the_middle_of_its_four_pixels() -> None:
    """Luma from the edge -0.5 to 7.5 is chroma from the edge -0.5 to 3.5."""
    assert chroma_crop(Crop(-0.5, 1.5, 8.0, 4, 1)) == Crop(-0.5, 0.5, 4.0, 4, 1)


def test_bgr_is_rgb_backwards() -> None:
    frame = noise(30, 40, 3)
    crop = Crop(-3.0, 2.0, 25.0, 16)

    np.testing.assert_array_equal(accept(frame, "BGR").cut(crop), cut(frame[..., ::-1], crop))
    np.testing.assert_array_equal(accept(frame, "bgr").to_rgb(), frame[..., ::-1])
    np.testing.assert_array_equal(accept(frame).cut(crop), cut(frame, crop))


@pytest.mark.parametrize("form", list(FrameFormat))
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_a_region_is_that_part_of_the_whole(form: FrameFormat, data: st.DataObject) -> None:
    frame = accept(noise(216, 30) if form is FrameFormat.NV12 else noise(144, 30, 3), form)
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


@pytest.mark.parametrize("form", list(FrameFormat))
@pytest.mark.parametrize("view", ["steps", "backwards", "columns"])
def test_a_frame_need_not_be_contiguous(form: FrameFormat, view: str) -> None:
    frame = noise(72, 80) if form is FrameFormat.NV12 else noise(48, 80, 3)
    frame = {"steps": frame[:, ::2], "backwards": frame[:, ::-1], "columns": np.asfortranarray(frame)}[view]
    crop = Crop(2.0, 3.0, 30.0, 16)
    copy = accept(np.ascontiguousarray(frame), form)

    np.testing.assert_array_equal(accept(frame, form).cut(crop), copy.cut(crop))
    np.testing.assert_array_equal(accept(frame, form).to_rgb(), copy.to_rgb())


@pytest.mark.parametrize("form", list(FrameFormat))
def test_a_frame_is_not_edited(form: FrameFormat) -> None:
    frame = noise(36, 20) if form is FrameFormat.NV12 else noise(24, 20, 3)
    frame.setflags(write=False)

    accept(frame, form).cut(Crop(-4.0, -4.0, 30.0, 16))
    accept(frame, form).to_rgb()


@pytest.mark.parametrize(
    ("frame", "form", "says"),
    [
        (None, "rgb", "NoneType.*no picture"),
        ([[1, 2, 3]], "rgb", "list"),
        (np.zeros((0, 0, 3), np.uint8), "rgb", "empty"),
        (np.zeros((4, 0, 3), np.uint8), "bgr", "empty"),
        (np.zeros((4, 4, 3), np.float32), "rgb", "float32.*bytes of 0 to 255"),
        (np.zeros((4, 4, 3), np.uint16), "rgb", "uint16"),
        (np.zeros((4, 4, 3), np.int8), "rgb", "int8"),
        (np.zeros((4, 4, 4), np.uint8), "rgb", "drop the fourth channel"),
        (np.zeros((4, 4, 1), np.uint8), "rgb", "grey"),
        (np.zeros((4, 5), np.uint8), "rgb", "grey"),
        (np.zeros((6, 4), np.uint8), "rgb", "'nv12'"),
        (np.zeros((3, 8, 8), np.uint8), "rgb", "channels last"),
        (np.zeros((1, 8, 8, 3), np.uint8), "rgb", "not a batch"),
        (np.zeros(7, np.uint8), "rgb", r"\(7,\)"),
        (np.array(7, np.uint8), "rgb", r"\(\)"),
        (np.zeros((6, 4, 3), np.uint8), "nv12", "looks like RGB"),
        (np.zeros((6, 5), np.uint8), "nv12", "even"),
        (np.zeros((7, 4), np.uint8), "nv12", "even"),
        (np.zeros((0, 4), np.uint8), "nv12", "empty"),
        (np.zeros((6, 4), np.float64), "nv12", "float64"),
    ],
)
def test_a_frame_of_another_kind_is_an_error_that_says_what_came(frame: Any, form: str, says: str) -> None:
    with pytest.raises(DataError, match=f"(?s)frame.*{says}"):
        accept(frame, form)


def test_a_form_that_is_not_known_is_an_error_that_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"rgb, bgr, nv12; got 'yuyv'"):
        accept(noise(4, 4, 3), "yuyv")


def test_the_form_is_checked_by_its_dtype_or_the_name_of_it() -> None:
    check_form("uint8", (4, 4, 3), FrameFormat.RGB)
    check_form(np.dtype(np.uint8), [6, 4], FrameFormat.NV12)
    with pytest.raises(DataError):
        check_form("float16", (4, 4, 3), FrameFormat.RGB)


@pytest.mark.parametrize("form", list(FrameFormat))
def test_zeros_and_the_smallest_frame_have_an_answer(form: FrameFormat) -> None:
    frame = np.zeros((3, 2), np.uint8) if form is FrameFormat.NV12 else np.zeros((1, 1, 3), np.uint8)
    out = accept(frame, form).cut(square_crop((0, 0, 1, 1), margin=1.25, size_px=16))

    assert out.shape == (16, 16, 3)
    assert form is FrameFormat.NV12 or not out.any()  # chroma 0 is not grey: such zeros are green


@pytest.mark.parametrize("form", list(FrameFormat))
def test_a_box_outside_the_frame_gives_black(form: FrameFormat) -> None:
    frame = np.full((36, 20) if form is FrameFormat.NV12 else (24, 20, 3), 200, np.uint8)

    assert not accept(frame, form).cut(square_crop((900, 900, 990, 990), margin=1.25, size_px=16)).any()
