from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import MIN_REGION_PX, Crop, cut, square_crop
from alpose.runtime.errors import DataError

Bytes = npt.NDArray[np.uint8]


def noise(height: int, width: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cut_slow(frame_HW3: Bytes, crop: Crop) -> npt.NDArray[np.float64]:
    """Every sample as the weighted mean of the pixels under its triangle; pixels outside the frame are black."""
    height, width, _ = frame_HW3.shape
    samples = crop.size_px + 2 * crop.context_px
    reach = max(crop.side / crop.size_px, 1.0)

    def weights(start: float, sample: int) -> dict[int, float]:
        centre = start + (sample - crop.context_px + 0.5) * crop.side / crop.size_px
        near = range(math.floor(centre - reach), math.ceil(centre + reach) + 1)
        raw = {i: max(0.0, 1 - abs(i - centre) / reach) for i in near}
        total = sum(raw.values())
        return {i: weight / total for i, weight in raw.items()}

    out = np.zeros((samples, samples, 3))
    for row in range(samples):
        for column in range(samples):
            for i, row_weight in weights(crop.y0, row).items():
                for j, column_weight in weights(crop.x0, column).items():
                    if 0 <= i < height and 0 <= j < width:
                        out[row, column] += row_weight * column_weight * frame_HW3[i, j]
    return out


crops = st.builds(
    Crop,
    x0=st.floats(-20, 25),
    y0=st.floats(-20, 25),
    side=st.floats(1, 30),
    size_px=st.integers(2, 9),
    context_px=st.integers(0, 3),
)


@given(crop=crops, height=st.integers(1, 17), width=st.integers(1, 17), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=30)
def test_cut_agrees_with_a_plain_loop_over_pixels(crop: Crop, height: int, width: int, seed: int) -> None:
    frame = noise(height, width, seed)

    assert np.abs(cut(frame, crop) - cut_slow(frame, crop)).max() <= 1


@pytest.mark.parametrize(
    ("crop", "what"),
    [
        (Crop(3.2, 1.7, 4.0, 11), "enlarging"),
        (Crop(0.0, 0.0, 19.0, 4), "shrinking"),
        (Crop(-7.5, 11.3, 20.0, 8), "partly outside"),
        (Crop(-6.0, -6.0, 40.0, 5), "wider than the frame"),
    ],
)
def test_cut_agrees_with_a_plain_loop_on(crop: Crop, what: str) -> None:
    frame = noise(20, 23)
    expected = cut_slow(frame, crop)

    assert expected.max() > 20, what
    assert np.abs(cut(frame, crop) - expected).max() <= 1


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
