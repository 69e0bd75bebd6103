from __future__ import annotations

import hashlib
import math
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import MIN_REGION_PX, Crop, CropRule, body_turn, box_crop, cut, square_crop
from alpose.runtime.errors import DataError
from alpose.runtime.resampling import Axis, taps

Bytes = npt.NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cut_slow(frame_HWC: Bytes, crop: Crop) -> Bytes:
    """The recipe in Python's own whole numbers, one pixel at a time, rows first; a turned crop from its upright one."""
    if crop.turn:
        return turned_slow(cut_slow(frame_HWC, crop.upright()), crop)
    height, width, channels = frame_HWC.shape
    row_KT, row_weight_KT = whole_taps(crop.down, height)
    column_KS, column_weight_KS = whole_taps(crop.across, width)
    pixels = (frame_HWC.astype(int) - crop.fill).tolist()
    out = np.zeros((crop.down.samples, crop.across.samples, channels), dtype=np.uint8)
    for channel in range(channels):
        between = [
            [
                (sum(w[t] * pixels[i[t]][x][channel] for i, w in zip(row_KT, row_weight_KT, strict=True)) + 2**9)
                // 2**10
                for x in range(width)
            ]
            for t in range(crop.down.samples)
        ]
        for t in range(crop.down.samples):
            for s in range(crop.across.samples):
                total = sum(w[s] * between[t][i[s]] for i, w in zip(column_KS, column_weight_KS, strict=True))
                out[t, s, channel] = (total + 2**15) // 2**16 + crop.fill
    return out


def turned_slow(upright_hwC: Bytes, crop: Crop) -> Bytes:
    """A turned crop pixel by pixel, with fractions in place of parts of a pixel."""
    height, width, channels = upright_hwC.shape
    sine, cosine = (Fraction(round(math.fabs(f) * 2**20), 2**20) * (1 if f >= 0 else -1)
                    for f in (math.sin(crop.turn), math.cos(crop.turn)))  # fmt: skip
    pixels = upright_hwC.tolist()
    samples, rows = crop.across.samples, crop.down.samples
    out = np.zeros((rows, samples, channels), dtype=np.uint8)
    for j in range(rows):
        for i in range(samples):
            u, v = i - Fraction(samples - 1, 2), j - Fraction(rows - 1, 2)
            x = Fraction(width - 1, 2) + cosine * u - sine * v
            y = Fraction(height - 1, 2) + sine * u + cosine * v
            x, y = (Fraction(math.floor(value * 1024 + Fraction(1, 2)), 1024) for value in (x, y))
            left, top = math.floor(x), math.floor(y)
            assert 0 <= left < width - 1, "the upright cut is wide enough"
            assert 0 <= top < height - 1, "the upright cut is high enough"
            for channel in range(channels):
                level = sum(
                    pixels[row][column][channel] * (1 - abs(x - column)) * (1 - abs(y - row))
                    for row in (top, top + 1)
                    for column in (left, left + 1)
                )
                out[j, i, channel] = math.floor(level + Fraction(1, 2))
    return out


def whole_taps(axis: Axis, length: int) -> tuple[list[list[int]], list[list[int]]]:
    index_KS, weight_KS = taps(axis, length)
    return index_KS.tolist(), weight_KS.astype(int).tolist()


def triangle(sample: int, axis: Axis) -> dict[int, Fraction]:
    """The weights of a sample by the definition, exactly: also of pixels outside the frame."""
    centre = Fraction(axis.start + (sample - axis.context_px + 0.5) * axis.scale)
    reach = Fraction(max(axis.scale, 1.0))
    near = range(math.floor(centre - reach), math.ceil(centre + reach) + 1)
    raw = {i: max(Fraction(0), 1 - abs(i - centre) / reach) for i in near}
    total = sum(raw.values())
    return {i: weight / total for i, weight in raw.items() if weight}


crops = st.builds(
    Crop,
    x0=st.floats(-20, 25),
    y0=st.floats(-20, 25),
    width=st.floats(1, 30),
    height=st.floats(1, 30),
    width_px=st.integers(2, 9),
    height_px=st.integers(2, 9),
    context_px=st.integers(0, 3),
    fill=st.sampled_from([0, 1, 114, 255]),
)


@st.composite
def turned_crops(draw: st.DrawFn) -> Crop:
    width_px, height_px, scale = draw(st.integers(2, 7)), draw(st.integers(2, 7)), draw(st.floats(0.3, 3))
    return Crop(
        draw(st.floats(-9, 12)), draw(st.floats(-9, 12)), width_px * scale, height_px * scale, width_px, height_px,
        draw(st.integers(0, 2)), draw(st.sampled_from([0, 114])), draw(st.floats(-math.pi, math.pi)),
    )  # fmt: skip


@given(crop=crops, height=st.integers(1, 17), width=st.integers(1, 17), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_cut_is_bit_for_bit_a_plain_loop_over_pixels(crop: Crop, height: int, width: int, seed: int) -> None:
    frame = noise(height, width, seed)

    np.testing.assert_array_equal(cut(frame, crop), cut_slow(frame, crop))


@given(crop=turned_crops(), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_a_turned_cut_is_bit_for_bit_a_plain_loop_over_pixels(crop: Crop, seed: int) -> None:
    frame = noise(9, 11, seed)

    np.testing.assert_array_equal(cut(frame, crop), cut_slow(frame, crop))


@pytest.mark.parametrize(
    ("crop", "what"),
    [
        (Crop(-3.0, 2.0, 18.0, 12.0, 9, 6), "wider than high"),
        (Crop(-3.0, 2.0, 12.0, 18.0, 5, 9, 2, 114), "higher than wide, on grey, with context"),
        (Crop(-0.5, -0.5, 23.0, 20.0, 6, 9), "stretched: shrinking by two scales"),
        (Crop(2.0, 3.0, 3.0, 17.0, 8, 6, 0, 255), "enlarging across, shrinking down, on white"),
        (Crop.square(3.2, 1.7, 4.0, 11), "enlarging"),
        (Crop.square(0.0, 0.0, 19.0, 4), "shrinking"),
        (Crop.square(-7.5, 11.3, 20.0, 8), "partly outside"),
        (Crop.square(-6.0, -6.0, 40.0, 5), "wider than the frame"),
        (Crop.square(-90.0, -100.0, 220.0, 6), "much wider than the frame"),
        (Crop.square(-3.0, -2.0, 25.0, 7, 5), "with context"),
        (Crop.square(4.0, 4.0, 1e-3, 5), "a thousandth of a pixel"),
    ],
)
def test_cut_is_bit_for_bit_a_plain_loop_when(crop: Crop, what: str) -> None:
    frame = np.maximum(noise(20, 23), 30)

    out = cut(frame, crop)

    assert out.max() > 0, what
    np.testing.assert_array_equal(out, cut_slow(frame, crop))


@pytest.mark.parametrize("level", [1, 128, 254, 255])
def test_the_largest_sums_are_exact(level: int) -> None:
    """All weight on the brightest pixels is where a float32 would run out of bits first."""
    flat = np.full((90, 70, 3), level, dtype=np.uint8)

    for side in (3.3, 17.0, 59.7):
        np.testing.assert_array_equal(cut(flat, Crop.square(3.0, 4.0, side, 16)), level)


def test_stripes_of_a_large_frame_are_joined_without_a_seam() -> None:
    """Wide enough that neither direction fits into one product."""
    frame = noise(24, 3000)
    crop = Crop.square(-50.0, -1500.0, 3100.0, 22, 1)
    expected = cut_slow(frame[:, :, :1], crop)

    np.testing.assert_array_equal(cut(frame, crop)[..., :1], expected)


SEVERAL = [
    (noise(20, 23, 1), Crop.square(-3.0, -2.0, 25.0, 7, 5)),
    (noise(20, 23, 2), Crop.square(4.0, 4.0, 1e-3, 5)),
    (noise(31, 17, 3), Crop(-90.0, -100.0, 220.0, 230.0, 6, 9, fill=114)),
    (noise(31, 17, 4), Crop(1.0, 2.0, 9.0, 12.0, 9, 12, turn=0.7)),
    (noise(9, 40, 5), Crop(-500.0, 3.0, 20.0, 10.0, 8, 4)),
    (noise(9, 40, 6), Crop(-2.0, -2.0, 44.0, 14.0, 30, 20, fill=255)),
]


def test_what_was_cut_before_changes_no_bit_and_is_not_overwritten() -> None:
    """Weights and memory are kept from one cut to the next."""
    expected = [cut_slow(frame, crop) for frame, crop in SEVERAL]
    order = np.random.default_rng(0).integers(0, len(SEVERAL), 120).repeat(2).tolist()

    found = [(place, cut(*SEVERAL[place])) for place in order]

    for place, out in found:
        np.testing.assert_array_equal(out, expected[place])


def test_threads_that_cut_at_once_do_not_disturb_each_other() -> None:
    expected = [cut_slow(frame, crop) for frame, crop in SEVERAL]

    def work(place: int) -> list[Bytes]:
        return [cut(*SEVERAL[place % len(SEVERAL)]) for _ in range(200)]

    with ThreadPoolExecutor(8) as pool:
        for place, found in enumerate(pool.map(work, range(8))):
            for out in found:
                np.testing.assert_array_equal(out, expected[place % len(SEVERAL)])


@pytest.mark.parametrize(
    "view",
    [
        lambda frame: frame[:, :, ::-1],
        lambda frame: frame[::2, ::3],
        lambda frame: frame[::-1, ::-1],
        np.asfortranarray,
        lambda frame: frame.transpose(1, 0, 2),
    ],
)
def test_a_frame_that_is_not_contiguous_is_cut_as_its_copy(view: Callable[[Bytes], Bytes]) -> None:
    frame = view(noise(40, 50))
    crop = Crop.square(-3.0, 4.5, 30.0, 16)

    np.testing.assert_array_equal(cut(frame, crop), cut(np.ascontiguousarray(frame), crop))


def test_an_8k_frame_is_cut_without_a_copy_of_it_in_float32() -> None:
    frame = np.zeros((4320, 7680, 3), dtype=np.uint8)
    frame[2000:, 4000:] = 200
    crop = square_crop((0, 0, 7679, 4319), margin=1.25, size_px=128)

    tracemalloc.start()
    out = cut(frame, crop)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < frame.nbytes / 2
    corner = crop.to_crop(np.array([[4000.0, 2000.0]]))[0].astype(int)
    assert not out[: corner[1] - 2, : corner[0] - 2].any()
    np.testing.assert_array_equal(out[corner[1] + 3 : corner[1] + 30, corner[0] + 3 : corner[0] + 40], 200)


def test_the_bits_of_a_crop_do_not_change() -> None:
    """Caches of crops, golden frames and score histograms rest on them: if this changes, so must the caches' version."""
    frame = (np.arange(96 * 128 * 3, dtype=np.int64) ** 2 // 7 % 251).astype(np.uint8).reshape(96, 128, 3)
    crops = [
        Crop.square(-7.3, 11.9, 100.7, 64, 8),
        Crop.square(40.2, 30.1, 21.3, 64),
        Crop.square(-50.0, -60.0, 300.0, 32),
    ]

    digest = hashlib.sha256(b"".join(cut(frame, crop).tobytes() for crop in crops)).hexdigest()

    assert digest == "a3c3d3d25e689d35c6eb6d495de3bdea6144cc05424145cbcf875ee1cc960c6e"


@given(crop=crops, length=st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_taps_are_the_triangle_in_parts_of_2_to_the_13(crop: Crop, length: int) -> None:
    axis = crop.across
    index_KS, weight_KS = taps(axis, length)

    count = min(math.ceil(2 * max(axis.scale, 1.0)), length)
    assert index_KS.shape == weight_KS.shape == (count, crop.width_px + 2 * crop.context_px)
    assert (np.diff(index_KS, axis=0) >= 0).all()
    assert (np.diff(index_KS, axis=1) >= 0).all()
    assert (weight_KS == np.floor(weight_KS)).all()
    for sample, (index_K, weight_K) in enumerate(zip(index_KS.T.tolist(), weight_KS.T.tolist(), strict=True)):
        expected = {i: weight for i, weight in triangle(sample, axis).items() if 0 <= i < length}
        found: dict[int, float] = {}
        for i, weight in zip(index_K, weight_K, strict=True):
            assert 0 <= i < length
            assert weight >= 0
            found[i] = found.get(i, 0.0) + weight
        for i in found.keys() | expected.keys():
            assert abs(found.get(i, 0.0) - float(2**13 * expected.get(i, Fraction(0)))) < 1 + 1e-6
        whole = sum(expected.values())
        assert abs(sum(found.values()) - float(2**13 * whole)) < 1 + 1e-6
        if whole == 1:
            assert sum(found.values()) == 2**13


def test_taps_by_hand() -> None:
    """Two samples of two pixels each; the filter reaches two pixels from its centre, at 0.5 and 2.5."""
    index_KS, weight_KS = taps(Axis(-0.5, 4.0, 2), 10)

    np.testing.assert_array_equal(index_KS.T, [[0, 1, 2, 3], [1, 2, 3, 4]])
    np.testing.assert_array_equal(weight_KS.T, [[3072, 3072, 1024, 0], [1024, 3072, 3072, 1024]])


@given(crop=crops | turned_crops(), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_the_centre_of_a_crop_with_context_is_the_crop_without_bit_for_bit(crop: Crop, seed: int) -> None:
    frame = noise(13, 16, seed)
    bare = replace(crop, context_px=0)
    inside = tuple(slice(crop.context_px, crop.context_px + length) for length in (crop.height_px, crop.width_px))

    np.testing.assert_array_equal(cut(frame, crop)[inside], cut(frame, bare))


def test_shrinking_averages_what_it_skips() -> None:
    checkers = np.zeros((64, 64, 3), dtype=np.uint8)
    checkers[::2, ::2] = checkers[1::2, 1::2] = 254

    inner = cut(checkers, Crop.square(-0.5, -0.5, 64.0, 8))[1:-1, 1:-1]

    np.testing.assert_array_equal(inner, 127)


def test_the_frame_is_not_edited() -> None:
    frame = noise(12, 12)
    before = frame.copy()
    cut(frame, Crop.square(-3.0, 2.0, 15.0, 7, 2))

    np.testing.assert_array_equal(frame, before)


@given(
    crop=crops | turned_crops(),
    points=st.lists(st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=50)
def test_to_crop_and_to_frame_are_inverse(crop: Crop, points: list[tuple[float, float]]) -> None:
    points_J2 = np.array(points)

    back_J2 = crop.to_frame(crop.to_crop(points_J2))

    # Crop coordinates are float32: their rounding counts for `scale` pixels of the frame each.
    scale = max(crop.across.scale, crop.down.scale)
    largest = np.abs(crop.to_crop(points_J2)).max() * scale + np.abs(points_J2).max() + 1
    assert np.abs(back_J2 - points_J2).max() <= 4 * np.finfo(np.float32).eps * largest


def test_to_crop_by_hand() -> None:
    """A region from x = 10 of 40 frame pixels on 20 samples: sample 0 covers 10 to 12, so its centre is 11."""
    crop = Crop.square(10.0, 20.0, 40.0, 20)

    assert crop.scale == 2.0
    np.testing.assert_array_equal(crop.to_crop(np.array([[11.0, 21.0], [30.0, 60.0]])), [[0.0, 0.0], [9.5, 19.5]])
    np.testing.assert_array_equal(crop.to_frame(np.array([[0.0, 0.0]])), [[11.0, 21.0]])


@pytest.mark.parametrize(("scale", "context"), [(0.4, 0), (1.0, 5), (2.7, 0), (3.3, 4)])
def test_a_drawn_dot_is_found_where_to_crop_says(scale: float, context: int) -> None:
    place = np.array([[71.3, 48.8]])
    y, x = np.mgrid[0:110, 0:140]
    bell = 250 * np.exp(-((x - place[0, 0]) ** 2 + (y - place[0, 1]) ** 2) / (2 * 3.0**2))
    frame = np.repeat(np.rint(bell).astype(np.uint8)[..., None], 3, axis=2)
    size = round(60 / scale)
    crop = Crop.square(40.9, 20.2, size * scale, size, context)

    out = cut(frame, crop)[..., 0].astype(np.float64)

    row, column = np.mgrid[0 : len(out), 0 : len(out)]
    found = np.array([(out * column).sum(), (out * row).sum()]) / out.sum() - context
    np.testing.assert_allclose(found, crop.to_crop(place)[0], atol=0.05)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 20, 30, 60), Crop.square(20 - 25, 40 - 25, 50.0, 64)),
        ((10, 20, 90, 60), Crop.square(50 - 50, 40 - 50, 100.0, 64)),
        ((5, 7, 5, 7), Crop.square(5 - MIN_REGION_PX / 2, 7 - MIN_REGION_PX / 2, MIN_REGION_PX, 64)),
    ],
)
def test_a_square_crop_has_the_centre_of_the_box_and_its_longer_side(
    box: tuple[float, float, float, float], expected: Crop
) -> None:
    assert square_crop(box, margin=1.25, size_px=64) == expected


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, math.nan, 5),
        (math.nan,) * 4,
        (0, 0, math.inf, 5),
        (5, 0, 4, 5),
        (0, 5, 5, 4),
        (0, 0, 1),
        (0, 0, 1, 1, 1),
        5.0,
        (-1e30, -1e30, 1e30, 1e30),
        (0, 0, 1e10, 1e10),
        (1e18, 1e18, 1e18, 1e18),
    ],
)
def test_a_box_that_cannot_be_cut_is_an_error(box: object) -> None:
    with pytest.raises(DataError, match="box"):
        square_crop(box, margin=1.25, size_px=64)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((4, 4), dtype=np.uint8),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros((1, 4, 4, 3), dtype=np.uint8),
    ],
)
def test_a_frame_of_another_kind_is_an_error_that_says_what_came(frame: Bytes) -> None:
    with pytest.raises(DataError, match=str(frame.dtype)):
        cut(frame, Crop.square(0.0, 0.0, 4.0, 4))


@pytest.mark.parametrize(
    "values",
    [
        (math.nan, 0.0, 4.0, 4),
        (0.0, math.nan, 4.0, 4),
        (0.0, 0.0, math.nan, 4),
        (0.0, math.inf, 4.0, 4),
        (-math.inf, 0.0, 4.0, 4),
        (0.0, 0.0, math.inf, 4),
        (0.0, 0.0, 0.0, 4),
        (0.0, 0.0, -1.0, 4),
        (1e9, 0.0, 4.0, 4),
        (0.0, 0.0, 1e9, 4),
        (0.0, 0.0, 4.0, 0),
        (0.0, 0.0, 4.0, 4, -1),
    ],
)
def test_a_square_crop_that_cannot_be_cut_does_not_come_to_be(values: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="a crop has"):
        Crop.square(*values)  # type: ignore[arg-type]


def test_the_widest_crop_of_the_farthest_box_can_be_cut() -> None:
    far = 2.0**20
    out = cut(noise(48, 64), square_crop((-far, -far, far, far), margin=4.0, size_px=64))

    assert out.shape == (64, 64, 3)


@pytest.mark.parametrize("fill", [0, 1, 114, 255])
@pytest.mark.parametrize("level", [0, 114, 255])
def test_the_largest_differences_from_the_fill_are_exact(level: int, fill: int) -> None:
    flat = np.full((90, 70, 3), level, dtype=np.uint8)
    crop = Crop(-15.0, -20.0, 120.0, 150.0, 31, 40, fill=fill)

    np.testing.assert_array_equal(cut(flat, crop), cut_slow(flat, crop))


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        ((10, 20, 30, 60), (192, 256), Crop(20 - 18.75, 40 - 25, 37.5, 50.0, 192, 256)),  # as high as wanted
        ((10, 20, 70, 40), (192, 256), Crop(40 - 37.5, 30 - 50, 75.0, 100.0, 192, 256)),  # as wide as wanted
        ((10, 20, 70, 40), (256, 128), Crop(40 - 37.5, 30 - 18.75, 75.0, 37.5, 256, 128)),
        ((5, 7, 5, 7), (192, 256), Crop(5 - 4, 7 - 16 / 3, 8.0, 32 / 3, 192, 256)),
    ],
)
def test_a_box_is_widened_to_the_aspect_ratio_of_the_input(
    box: tuple[float, float, float, float], size: tuple[int, int], expected: Crop
) -> None:
    found = box_crop(box, margin=1.25, width_px=size[0], height_px=size[1])

    assert found == expected
    assert found.across.scale == pytest.approx(found.down.scale)


def test_a_letterbox_holds_the_whole_frame_in_the_middle_at_one_scale() -> None:
    frame = np.full((48, 64, 3), 200, dtype=np.uint8)
    rule = CropRule(width_px=32, height_px=32, kind="letterbox", fill=114)

    crop = rule.crop_of((0, 0, 1, 1), (64, 48))
    out = cut(frame, crop)

    assert crop.scale == 2.0
    np.testing.assert_array_equal(out[:3], 114)
    np.testing.assert_array_equal(out[29:], 114)
    np.testing.assert_array_equal(out[5:27, 1:-1], 200)
    np.testing.assert_allclose(crop.to_frame(np.array([[-0.5, 3.5], [31.5, 27.5]])), [[-0.5, -0.5], [63.5, 47.5]])


def test_a_whole_frame_is_stretched_by_two_scales() -> None:
    rule = CropRule(width_px=16, height_px=24, kind="whole")

    crop = rule.crop_of((0, 0, 1, 1), (64, 48))

    assert (crop.across.scale, crop.down.scale) == (4.0, 2.0)
    np.testing.assert_allclose(crop.to_frame(np.array([[0.0, 0.0], [15.5, 23.5]])), [[1.5, 0.5], [63.5, 47.5]])
    np.testing.assert_array_equal(cut(np.full((48, 64, 3), 7, np.uint8), crop)[2:-2, 2:-2], 7)


def test_a_whole_frame_needs_its_size_and_a_box_does_not() -> None:
    assert CropRule(width_px=16, height_px=24).crop_of((0, 0, 9, 9)).height_px == 24
    for kind in ("letterbox", "whole"):
        with pytest.raises(DataError, match="its width and height must be given"):
            CropRule(width_px=16, height_px=24, kind=kind).crop_of((0, 0, 9, 9))


@pytest.mark.parametrize(
    "values",
    [{"width_px": 7}, {"height_px": 9000}, {"margin": 0.9}, {"fill": 256}, {"fill": -1}, {"kind": "round"}],
)
def test_a_rule_that_cannot_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="crop: "):
        CropRule(**{"width_px": 64, "height_px": 64, **values})


@pytest.mark.parametrize(
    ("hips", "shoulders", "degrees"),
    [
        ([[9, 30], [11, 30]], [[8, 10], [12, 10]], 0),
        ([[10, 10]], [[30, 10]], 90),
        ([[10, 10]], [[10, 30]], 180),
        ([[10, 10]], [[0, 0]], -45),
    ],
)
def test_a_bodys_turn_is_clockwise_from_upright(hips: list[Any], shoulders: list[Any], degrees: float) -> None:
    turn = body_turn(np.array(hips, float), np.array(shoulders, float))

    assert turn == pytest.approx(math.radians(degrees))


def test_a_body_without_an_axis_has_no_turn() -> None:
    here = np.array([[3.0, 4.0]])

    assert body_turn(here, here) is None
    assert body_turn(here, np.array([[math.nan, 4.0]])) is None


@pytest.mark.parametrize("degrees", [0, 30, 90, -135, 180])
def test_in_a_turned_crop_the_body_points_up_and_points_come_back(degrees: float) -> None:
    """A lying line of dots is upright in its crop, and where to_crop says."""
    turn = math.radians(degrees)
    centre = np.array([70.0, 60.0])
    ahead = np.array([math.sin(turn), -math.cos(turn)])
    y, x = np.mgrid[0:120, 0:140]
    dots = [centre + distance * ahead for distance in (0, 15, 30)]
    bell = sum(height * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 18)
               for (px, py), height in zip(dots, (60, 120, 240), strict=True))  # fmt: skip
    frame = np.repeat(np.rint(np.minimum(bell, 255)).astype(np.uint8)[..., None], 3, axis=2)
    crop = Crop(30.0, 15.0, 80.0, 90.0, 40, 45, turn=turn)

    out = cut(frame, crop)[..., 0].astype(np.float64)

    inside_32 = crop.to_crop(np.array(dots))
    np.testing.assert_allclose(inside_32[:, 0], 19.5, atol=1e-4)
    np.testing.assert_allclose(np.diff(inside_32[:, 1]), -7.5, atol=1e-4)
    peak = np.array(np.unravel_index(out.argmax(), out.shape))[::-1]
    assert np.abs(peak - inside_32[2]).max() < 1
    np.testing.assert_allclose(crop.to_frame(inside_32), dots, atol=1e-3)


def test_a_turn_next_to_nothing_is_the_upright_crop() -> None:
    frame = noise(40, 50)
    crop = Crop(3.2, 4.1, 30.0, 40.0, 15, 20)

    np.testing.assert_array_equal(cut(frame, replace(crop, turn=1e-9)), cut(frame, crop))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_exact(quarters: int) -> None:
    frame = noise(40, 40)
    crop = Crop(-0.5, -0.5, 40.0, 40.0, 20, 20)

    turned = cut(frame, replace(crop, turn=quarters * math.pi / 2))

    np.testing.assert_array_equal(turned, np.rot90(cut(frame, crop), quarters))


def test_two_scales_cannot_be_turned() -> None:
    with pytest.raises(DataError, match="one scale"):
        Crop(0.0, 0.0, 10.0, 20.0, 5, 5, turn=0.1)
