from __future__ import annotations

import hashlib
import math
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import MIN_REGION_PX, Crop, cut, square_crop, taps
from alpose.runtime.errors import DataError

Bytes = npt.NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cut_slow(frame_HWC: Bytes, crop: Crop) -> Bytes:
    """The recipe in Python's own whole numbers, one pixel at a time, rows first."""
    height, width, channels = frame_HWC.shape
    row_KS, row_weight_KS = whole_taps(crop.y0, crop, height)
    column_KS, column_weight_KS = whole_taps(crop.x0, crop, width)
    samples = len(row_KS[0])
    pixels = frame_HWC.tolist()
    out = np.zeros((samples, samples, channels), dtype=np.uint8)
    for channel in range(channels):
        between = [
            [
                (sum(w[s] * pixels[i[s]][x][channel] for i, w in zip(row_KS, row_weight_KS, strict=True)) + 2**9)
                // 2**10
                for x in range(width)
            ]
            for s in range(samples)
        ]
        for row in range(samples):
            for s in range(samples):
                total = sum(w[s] * between[row][i[s]] for i, w in zip(column_KS, column_weight_KS, strict=True))
                out[row, s, channel] = (total + 2**15) // 2**16
    return out


def whole_taps(start: float, crop: Crop, length: int) -> tuple[list[list[int]], list[list[int]]]:
    index_KS, weight_KS = taps(start, crop, length)
    return index_KS.tolist(), weight_KS.astype(int).tolist()


def triangle(start: float, sample: int, crop: Crop) -> dict[int, Fraction]:
    """The weights of a sample by the definition, exactly: also of pixels outside the frame."""
    centre = Fraction(start + (sample - crop.context_px + 0.5) * crop.scale)
    reach = Fraction(max(crop.scale, 1.0))
    near = range(math.floor(centre - reach), math.ceil(centre + reach) + 1)
    raw = {i: max(Fraction(0), 1 - abs(i - centre) / reach) for i in near}
    total = sum(raw.values())
    return {i: weight / total for i, weight in raw.items() if weight}


crops = st.builds(
    Crop,
    x0=st.floats(-20, 25),
    y0=st.floats(-20, 25),
    side=st.floats(1, 30),
    size_px=st.integers(2, 9),
    context_px=st.integers(0, 3),
)


@given(crop=crops, height=st.integers(1, 17), width=st.integers(1, 17), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_cut_is_bit_for_bit_a_plain_loop_over_pixels(crop: Crop, height: int, width: int, seed: int) -> None:
    frame = noise(height, width, seed)

    np.testing.assert_array_equal(cut(frame, crop), cut_slow(frame, crop))


@pytest.mark.parametrize(
    ("crop", "what"),
    [
        (Crop(3.2, 1.7, 4.0, 11), "enlarging"),
        (Crop(0.0, 0.0, 19.0, 4), "shrinking"),
        (Crop(-7.5, 11.3, 20.0, 8), "partly outside"),
        (Crop(-6.0, -6.0, 40.0, 5), "wider than the frame"),
        (Crop(-90.0, -100.0, 220.0, 6), "much wider than the frame"),
        (Crop(-3.0, -2.0, 25.0, 7, 5), "with context"),
        (Crop(4.0, 4.0, 1e-3, 5), "a thousandth of a pixel"),
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
        np.testing.assert_array_equal(cut(flat, Crop(3.0, 4.0, side, 16)), level)


def test_stripes_of_a_large_frame_are_joined_without_a_seam() -> None:
    """Wide enough that neither direction fits into one product."""
    frame = noise(24, 3000)
    crop = Crop(-50.0, -1500.0, 3100.0, 22, 1)
    expected = cut_slow(frame[:, :, :1], crop)

    np.testing.assert_array_equal(cut(frame, crop)[..., :1], expected)


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
    crop = Crop(-3.0, 4.5, 30.0, 16)

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
    crops = [Crop(-7.3, 11.9, 100.7, 64, 8), Crop(40.2, 30.1, 21.3, 64), Crop(-50.0, -60.0, 300.0, 32)]

    digest = hashlib.sha256(b"".join(cut(frame, crop).tobytes() for crop in crops)).hexdigest()

    assert digest == "a3c3d3d25e689d35c6eb6d495de3bdea6144cc05424145cbcf875ee1cc960c6e"


@given(crop=crops, length=st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_taps_are_the_triangle_in_parts_of_2_to_the_13(crop: Crop, length: int) -> None:
    index_KS, weight_KS = taps(crop.x0, crop, length)

    count = min(math.ceil(2 * max(crop.scale, 1.0)), length)
    assert index_KS.shape == weight_KS.shape == (count, crop.size_px + 2 * crop.context_px)
    assert (np.diff(index_KS, axis=0) >= 0).all()
    assert (np.diff(index_KS, axis=1) >= 0).all()
    assert (weight_KS == np.floor(weight_KS)).all()
    for sample, (index_K, weight_K) in enumerate(zip(index_KS.T.tolist(), weight_KS.T.tolist(), strict=True)):
        expected = {i: weight for i, weight in triangle(crop.x0, sample, crop).items() if 0 <= i < length}
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
    index_KS, weight_KS = taps(-0.5, Crop(-0.5, -0.5, 4.0, 2), 10)

    np.testing.assert_array_equal(index_KS.T, [[0, 1, 2, 3], [1, 2, 3, 4]])
    np.testing.assert_array_equal(weight_KS.T, [[3072, 3072, 1024, 0], [1024, 3072, 3072, 1024]])


@given(crop=crops, seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_the_centre_of_a_crop_with_context_is_the_crop_without_bit_for_bit(crop: Crop, seed: int) -> None:
    frame = noise(13, 16, seed)
    bare = Crop(crop.x0, crop.y0, crop.side, crop.size_px)
    inside = slice(crop.context_px, crop.context_px + crop.size_px)

    np.testing.assert_array_equal(cut(frame, crop)[inside, inside], cut(frame, bare))


def test_a_crop_on_the_pixel_grid_returns_the_pixels() -> None:
    frame = noise(9, 9)

    np.testing.assert_array_equal(cut(frame, Crop(-0.5, -0.5, 9.0, 9)), frame)


def test_rows_and_columns_are_not_swapped() -> None:
    frame = noise(6, 11)

    np.testing.assert_array_equal(cut(frame, Crop(4.5, 0.5, 5.0, 5)), frame[1:6, 5:10])


def test_shrinking_averages_what_it_skips() -> None:
    checkers = np.zeros((64, 64, 3), dtype=np.uint8)
    checkers[::2, ::2] = checkers[1::2, 1::2] = 254

    inner = cut(checkers, Crop(-0.5, -0.5, 64.0, 8))[1:-1, 1:-1]

    np.testing.assert_array_equal(inner, 127)


@pytest.mark.parametrize("place", [(-60.0, 0.0), (60.0, 0.0), (0.0, -60.0), (0.0, 60.0), (-5e5, 5e5)])
def test_a_crop_outside_the_frame_is_black(place: tuple[float, float]) -> None:
    white = np.full((20, 20, 3), 255, dtype=np.uint8)

    assert not cut(white, Crop(*place, 30.0, 8)).any()


def test_what_lies_outside_the_frame_is_black_and_the_rest_is_not() -> None:
    white = np.full((10, 10, 3), 255, dtype=np.uint8)

    out = cut(white, Crop(-10.5, -0.5, 20.0, 20))

    assert not out[:, :10].any()
    np.testing.assert_array_equal(out[:10, 10:], 255)
    assert not out[10:].any()


def test_the_frame_is_not_edited() -> None:
    frame = noise(12, 12)
    before = frame.copy()
    cut(frame, Crop(-3.0, 2.0, 15.0, 7, 2))

    np.testing.assert_array_equal(frame, before)


@given(
    crop=crops,
    points=st.lists(st.tuples(st.floats(-2000, 2000), st.floats(-2000, 2000)), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=50)
def test_to_crop_and_to_frame_are_inverse(crop: Crop, points: list[tuple[float, float]]) -> None:
    points_J2 = np.array(points)

    back_J2 = crop.to_frame(crop.to_crop(points_J2))

    # Crop coordinates are float32: their rounding counts for `scale` pixels of the frame each.
    largest = np.abs(crop.to_crop(points_J2)).max() * crop.scale + np.abs(points_J2).max() + 1
    assert np.abs(back_J2 - points_J2).max() <= 4 * np.finfo(np.float32).eps * largest


def test_to_crop_by_hand() -> None:
    """A region from x = 10 of 40 frame pixels on 20 samples: sample 0 covers 10 to 12, so its centre is 11."""
    crop = Crop(10.0, 20.0, 40.0, 20)

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
    crop = Crop(40.9, 20.2, size * scale, size, context)

    out = cut(frame, crop)[..., 0].astype(np.float64)

    row, column = np.mgrid[0 : len(out), 0 : len(out)]
    found = np.array([(out * column).sum(), (out * row).sum()]) / out.sum() - context
    np.testing.assert_allclose(found, crop.to_crop(place)[0], atol=0.05)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 20, 30, 60), Crop(20 - 25, 40 - 25, 50.0, 64)),
        ((10, 20, 90, 60), Crop(50 - 50, 40 - 50, 100.0, 64)),
        ((5, 7, 5, 7), Crop(5 - MIN_REGION_PX / 2, 7 - MIN_REGION_PX / 2, MIN_REGION_PX, 64)),
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
        cut(frame, Crop(0.0, 0.0, 4.0, 4))


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
def test_a_crop_that_cannot_be_cut_does_not_come_to_be(values: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="a crop has"):
        Crop(*values)  # type: ignore[arg-type]


def test_the_widest_crop_of_the_farthest_box_can_be_cut() -> None:
    far = 2.0**20
    out = cut(noise(48, 64), square_crop((-far, -far, far, far), margin=4.0, size_px=64))

    assert out.shape == (64, 64, 3)
