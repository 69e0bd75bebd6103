from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from alpose.runtime.errors import ConfigError
from alpose.trainer.heatmaps import (
    MULTIPEAK_FORMS,
    MultipeakForm,
    PeakRule,
    decode,
    draw,
    entropy,
    multipeak_entropy,
    to_cells,
    to_pixels,
)
from alpose.trainer.objectives import heatmap_mse

SIZES = st.sampled_from([16, 64])


def at(x: float, y: float) -> Tensor:
    return torch.tensor([[[x, y]]], dtype=torch.float32)


# --- Coordinates


@given(x=st.floats(-500, 500), y=st.floats(-500, 500), stride=st.integers(1, 8))
@settings(deadline=None, max_examples=30)
def test_to_cells_and_to_pixels_are_inverse(x: float, y: float, stride: int) -> None:
    torch.testing.assert_close(to_pixels(to_cells(at(x, y), stride), stride), at(x, y), rtol=1e-5, atol=1e-3)


def test_a_cell_is_centred_on_the_pixels_that_it_covers() -> None:
    """Cell 0 of stride 4 covers pixels 0, 1, 2, 3; cell 1 covers 4 to 7."""
    assert to_pixels(at(0, 1), 4).tolist() == [[[1.5, 5.5]]]
    assert to_cells(at(1.5, 5.5), 4).tolist() == [[[0.0, 1.0]]]


# --- Drawing and decoding


def test_a_drawn_bell_is_the_formula() -> None:
    drawn = draw(at(3.3, 7.9), 12, sigma=1.75, peak=30.0)[0, 0]
    expected = [
        [30 * math.exp(-((x - 3.3) ** 2 + (y - 7.9) ** 2) / (2 * 1.75**2)) for x in range(12)] for y in range(12)
    ]

    np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-6)


@given(size=SIZES, sigma=st.floats(0.8, 3), x=st.floats(0, 1), y=st.floats(0, 1), peak=st.sampled_from([1.0, 30.0]))
@settings(deadline=None, max_examples=80)
def test_decode_finds_what_was_drawn(size: int, sigma: float, x: float, y: float, peak: float) -> None:
    # The highest cell must have two neighbours along each axis.
    place = at(0.51 + x * (size - 2.02), 0.51 + y * (size - 2.02))
    found, score = decode(draw(place, size, sigma=sigma, peak=peak))

    assert (found - place).abs().max().item() < 1e-3
    # The highest cell is at most half a cell away along each axis.
    assert peak * math.exp(-0.26 / sigma**2) < score.item() <= peak


@given(size=SIZES, along=st.floats(-0.5, 0.5), edge=st.sampled_from([0, 1]), across=st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_decode_at_the_border_is_within_half_a_cell(size: int, along: float, edge: int, across: float) -> None:
    border, other = edge * (size - 1) + along, across * (size - 1)
    for place in (at(border, other), at(other, border), at(border, border)):
        found, _ = decode(draw(place, size, sigma=1.75, peak=30.0))

        assert (found - place).abs().max().item() <= 0.5 + 1e-3
        assert found.min().item() >= 0
        assert found.max().item() <= size - 1


def test_decode_keeps_x_and_y_apart_on_a_map_that_is_not_square() -> None:
    maps = torch.zeros(1, 1, 5, 9)
    maps[0, 0, 3, 7] = 2.0

    found, score = decode(maps)

    assert found.tolist() == [[[7.0, 3.0]]]
    assert score.tolist() == [[2.0]]


@pytest.mark.parametrize("level", [0.0, 1.0, -3.0])
def test_decode_of_a_flat_map_is_finite_and_inside(level: float) -> None:
    found, score = decode(torch.full((2, 3, 8, 8), level))

    assert torch.isfinite(found).all()
    assert ((found >= 0) & (found <= 7)).all()
    assert (score == level).all()


@given(seed=st.integers(0, 10_000), size=st.integers(1, 6))
@settings(deadline=None, max_examples=40)
def test_decode_stays_within_half_a_cell_of_the_highest_one(seed: int, size: int) -> None:
    maps = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    found, score = decode(maps)
    place = maps.flatten(2).argmax(dim=2)
    highest = torch.stack([place % size, place // size], dim=-1)

    assert (found - highest).abs().max().item() <= 0.5
    torch.testing.assert_close(score, maps.amax(dim=(2, 3)))


def test_decode_of_half_precision_maps_is_float32() -> None:
    found, score = decode(draw(at(4.2, 5.1), 12, sigma=1.75, peak=30.0).bfloat16())

    assert (found.dtype, score.dtype) == (torch.float32, torch.float32)


def test_predicting_nothing_for_a_joint_costs_what_the_papers_scale_says() -> None:
    """REFERENCE.md, 1.2: peak² π σ² / H² = 2.11 at H = 64, peak 30, σ 1.75."""
    target = draw(at(31.37, 30.8), 64, sigma=1.75, peak=30.0)
    cost = heatmap_mse(torch.zeros(1, 1, 1, 64, 64), target, torch.ones(1, 1, dtype=torch.bool)).item()

    assert cost == pytest.approx(900 * math.pi * 1.75**2 / 64**2, rel=1e-4)
    assert round(cost, 2) == 2.11


# --- Entropy


@pytest.mark.parametrize("level", [0.0, 30.0, -4.0])
def test_a_flat_map_has_the_entropy_of_its_cells(level: float) -> None:
    assert entropy(torch.full((1, 2, 6, 7), level), 1.0).item() == pytest.approx(math.log(42), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_entropy_agrees_with_scipy(temperature: float) -> None:
    maps = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 4
    p = special.softmax(maps.double().numpy().reshape(3, 4, -1) / temperature, axis=2)

    np.testing.assert_allclose(entropy(maps, temperature), stats.entropy(p, axis=2).mean(axis=1), rtol=1e-4)


def test_a_certain_map_has_no_entropy_and_no_nan() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 2, 2] = 1e6

    assert entropy(maps, 1.0).tolist() == [0.0]


# --- Multi-peak entropy


def multipeak_slow(
    maps_JHW: npt.NDArray[Any],
    *,
    temperature: float,
    min_distance: int = 5,
    num_peaks: int | None = 5,
    threshold: float | None = None,
    exclude_border: bool = False,
    merge_plateaus: bool = False,
) -> float:
    """One image, by the words of the docstring."""
    total = 0.0
    for heat in maps_JHW:
        if heat.min() == heat.max():
            continue
        height, width = heat.shape
        lowest = heat.min() if threshold is None else threshold
        peaks = []
        for y in range(height):
            for x in range(width):
                window = heat[max(0, y - min_distance) : y + min_distance + 1,
                              max(0, x - min_distance) : x + min_distance + 1]  # fmt: skip
                at_edge = min(x, y, width - 1 - x, height - 1 - y) < min_distance
                if heat[y, x] == window.max() and heat[y, x] > lowest and not (exclude_border and at_edge):
                    peaks.append((-float(heat[y, x]), y, x))
        kept: list[tuple[float, int, int]] = []
        for height_, y, x in sorted(peaks):
            near = any(max(abs(y - b), abs(x - c)) < min_distance for a, b, c in kept if a == height_)
            if not (merge_plateaus and min_distance > 1 and near):
                kept.append((height_, y, x))
        best = [-peak[0] for peak in kept][:num_peaks]
        if best:
            total += float(stats.entropy(special.softmax(np.array(best) / temperature)))
    return total


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    min_distance=st.integers(0, 6),
    num_peaks=st.sampled_from([None, 1, 2, 5, 30]),
    threshold=st.sampled_from([None, -9.0, 0.0, 2.0, 100.0]),
    exclude_border=st.booleans(),
    merge_plateaus=st.booleans(),
    temperature=st.sampled_from([0.5, 1.0, 10.0]),
    levels=st.sampled_from([None, 1.0, 4.0]),
)
@settings(deadline=None, max_examples=150)
def test_multipeak_entropy_agrees_with_a_plain_loop(
    seed: int, height: int, width: int, levels: float | None, **how: Any
) -> None:
    """``levels`` rounds the maps, so that many cells are equally high."""
    maps = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 3
    maps = maps if levels is None else (maps / levels).round() * levels

    expected = [multipeak_slow(image.numpy(), **how) for image in maps]

    np.testing.assert_allclose(multipeak_entropy(maps, **how), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", MULTIPEAK_FORMS)
@pytest.mark.parametrize("what", ["noise", "bells", "bfloat16", "saturated"])
def test_every_named_form_agrees_with_the_plain_loop_on_whole_maps(form: MultipeakForm, what: str) -> None:
    generator = torch.Generator().manual_seed(3)
    noise = torch.nn.functional.avg_pool2d(torch.randn(2, 2, 64, 64, generator=generator), 5, 1, 2) * 25
    first, second = (draw(torch.rand(2, 2, 2, generator=generator) * 44 + 9, 64, sigma=1.75, peak=p) for p in (30, 20))
    bells = torch.maximum(first, second) + noise / 10
    maps = {"noise": noise, "bells": bells, "bfloat16": bells.bfloat16().float(), "saturated": noise.clamp(-9, 9)}[what]

    expected = [multipeak_slow(image.numpy(), temperature=9.0, **MULTIPEAK_FORMS[form]) for image in maps]

    np.testing.assert_allclose(multipeak_entropy(maps, temperature=9.0, **MULTIPEAK_FORMS[form]), expected, rtol=1e-4)
    assert min(expected) > 0


def test_the_default_is_the_form_of_that_name() -> None:
    maps = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))

    named = multipeak_entropy(maps, temperature=1.0, **MULTIPEAK_FORMS["whole-map"])
    torch.testing.assert_close(multipeak_entropy(maps, temperature=1.0), named, rtol=0, atol=0)


def test_the_official_forms_lose_the_peaks_of_people_cut_off_by_the_frame() -> None:
    """REFERENCE.md, 1.7: a peak 2 cells from the edge is not found."""
    maps = two_bells((2, 30), (40, 40), size=64)

    assert multipeak_entropy(maps, temperature=1.0).item() == pytest.approx(math.log(2), rel=1e-5)
    for form in ("official-2022", "official-2021"):
        rule: PeakRule = MULTIPEAK_FORMS[form]
        assert multipeak_entropy(maps, temperature=1.0, **rule).item() == 0
        inside: PeakRule = {**rule, "exclude_border": False}
        assert multipeak_entropy(maps, temperature=1.0, **inside).item() == pytest.approx(math.log(2), rel=1e-5)


def test_the_official_forms_differ_in_what_is_a_peak() -> None:
    """Two bells 6 cells apart, and one of 7 elsewhere, under a quarter of the training peak."""
    low = draw(at(40, 40), 64, sigma=1.75, peak=7.0)
    maps = torch.maximum(two_bells((20, 20), (26, 20), size=64), low)
    earlier = multipeak_entropy(maps, temperature=30.0, **MULTIPEAK_FORMS["official-2021"]).item()
    later = multipeak_entropy(maps, temperature=30.0, **MULTIPEAK_FORMS["official-2022"]).item()

    assert earlier == pytest.approx(0.0, abs=1e-6)
    assert later == pytest.approx(stats.entropy(special.softmax(np.array([30, 30, 7]) / 30)), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_cannot_divide_is_refused(temperature: float) -> None:
    maps = two_bells((6, 6), (24, 20))
    for measure in (entropy, lambda maps, temperature: multipeak_entropy(maps, temperature=temperature)):
        with pytest.raises(ConfigError, match="temperature"):
            measure(maps, temperature)


@pytest.mark.parametrize("wrong", [{"min_distance": -1}, {"num_peaks": 0}])
def test_peaks_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="at least"):
        multipeak_entropy(two_bells((6, 6), (24, 20)), temperature=1.0, **wrong)


def two_bells(first: tuple[float, float], second: tuple[float, float], size: int = 32) -> Tensor:
    bells = [draw(at(*place), size, sigma=1.75, peak=30.0) for place in (first, second)]
    return torch.maximum(*bells)


def test_two_equal_peaks_are_a_coin_toss() -> None:
    found = multipeak_entropy(two_bells((6, 6), (24, 20)), temperature=1.0)

    assert found.item() == pytest.approx(math.log(2), rel=1e-5)
