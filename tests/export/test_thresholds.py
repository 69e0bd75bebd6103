"""The catch guarantee: exact where it can be computed, simulated where it cannot.

Shapes: N people, M failures.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.export import calibration
from alpose.export.graph_parts import Calibrate
from alpose.export.thresholds import catch_threshold, failures_needed, rank
from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.measures.statistics import clopper_pearson


def at_least(r: int, n: int, p: float) -> float:
    """P(Binomial(n, p) >= r), term by term."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(r, n + 1))


@pytest.mark.parametrize(("catch", "needed"), [(0.8, 11), (0.9, 22), (0.95, 45)])
def test_the_number_of_failures_that_a_guarantee_needs(catch: float, needed: int) -> None:
    assert failures_needed(catch, 0.9) == needed
    assert 1 - catch**needed >= 0.9 > 1 - catch ** (needed - 1)
    assert rank(needed, catch, 0.9) == 1
    assert rank(needed - 1, catch, 0.9) is None


@pytest.mark.parametrize("catch", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_the_rank_is_the_highest_that_the_exact_binomial_allows(catch: float, confidence: float) -> None:
    for n in (1, 2, 5, 20, 45, 100, 207):
        place = rank(n, catch, confidence)
        if place is not None:
            assert at_least(place, n, 1 - catch) >= confidence - 1e-12
        assert at_least((place or 0) + 1, n, 1 - catch) < confidence + 1e-12


@pytest.mark.parametrize("catch", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [50, 130])
def test_the_stated_confidence_is_reached_and_not_wasted(catch: float, n: int) -> None:
    """Failures are uniform, so a threshold t catches 1 - t; the exact confidence is a binomial tail."""
    rng, repeats = np.random.default_rng(n), 2000
    place = rank(n, catch, 0.9)
    assert place is not None
    exact = at_least(place, n, 1 - catch)
    reached = 0
    for _ in range(repeats):
        probability_N = rng.random(2 * n)
        found = catch_threshold(probability_N, np.arange(2 * n) < n, catch)
        assert found.threshold is not None
        reached += 1 - found.threshold >= catch
    noise = 4 * math.sqrt(exact * (1 - exact) / repeats)
    assert abs(reached / repeats - exact) < noise
    assert exact >= 0.9 > at_least(place + 1, n, 1 - catch)


def test_ties_only_help() -> None:
    rng, repeats = np.random.default_rng(0), 1000
    levels = np.array([0.1, 0.4, 0.5, 0.9])
    share = np.array([0.12, 0.3, 0.28, 0.3])
    reached = 0
    for _ in range(repeats):
        failure_M = rng.choice(levels, 80, p=share)
        found = catch_threshold(np.append(failure_M, 0.0), np.append(np.ones(80, dtype=bool), False), 0.85)
        assert found.threshold is not None
        reached += share[levels >= found.threshold].sum() >= 0.85
    assert reached / repeats >= 0.9


def test_the_interval_holds_although_the_threshold_was_read_off_the_same_failures() -> None:
    rng, repeats, n = np.random.default_rng(1), 2000, 90
    below = above = 0
    for _ in range(repeats):
        found = catch_threshold(rng.random(n + 1), np.arange(n + 1) < n, 0.9)
        assert found.threshold is not None
        assert found.low is not None
        assert found.high is not None
        below += 1 - found.threshold < found.low
        above += 1 - found.threshold > found.high
    assert below / repeats < 0.1 + 4 * math.sqrt(0.09 / repeats)
    assert above / repeats < 0.1 + 4 * math.sqrt(0.09 / repeats)


def test_the_whole_way_from_evidence_to_threshold_keeps_its_promise() -> None:
    """A fresh fit and a fresh threshold each time; the true catch is measured on people without end."""

    def draw(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        evidence_N3 = rng.normal(size=(count, 3))
        chance_N = 1 / (1 + np.exp(1.0 - evidence_N3 @ np.array([1.0, 0.3, 1.2])))
        return evidence_N3, rng.random(count) < chance_N

    rng, repeats = np.random.default_rng(5), 250
    everyone_N3, failed_N = draw(rng, 8_000)
    reached = 0
    for _ in range(repeats):
        made = calibration.fit(*draw(rng, 150))
        held_N3, held_N = draw(rng, 150)
        found = catch_threshold(made.probability(held_N3), held_N, 0.8)
        assert found.threshold is not None
        reached += (made.probability(everyone_N3[failed_N]) >= found.threshold).mean() >= 0.8
    assert reached / repeats >= 0.9 - 2 * math.sqrt(0.09 / repeats)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1e3])
def test_float32_on_a_device_loses_no_failure(offset: float) -> None:
    """Whatever the order of its sums; the map is steep, and evidence far from 0 loses its last digits."""
    rng, lost_by_rounding_alone = np.random.default_rng(0), 0
    for _ in range(150):
        score_N = rng.normal(size=400)
        evidence_N3 = (np.outer(score_N, [1, 0.5, 0.1]) + rng.normal(size=(400, 3)) + offset).astype(np.float32)
        failed_N = rng.random(400) < 1 / (1 + np.exp(-8 * (score_N - 0.5)))
        made = calibration.fit(evidence_N3[:200], failed_N[:200])
        held_N3, held_N = evidence_N3[200:], failed_N[200:]
        in_order_M = Calibrate(made)(torch.from_numpy(held_N3[held_N])).numpy()
        mean_3, sd_3, weight_3 = (value.astype(np.float32) for value in (made.mean_3, made.sd_3, made.weight_3))
        reversed_M = (((held_N3[held_N] - mean_3) / sd_3) * weight_3)[:, ::-1].sum(axis=1, dtype=np.float32)
        another_M = np.interp(reversed_M, made.score_K, made.probability_K).astype(np.float32)
        probability_N = made.probability(held_N3)
        found = catch_threshold(probability_N, held_N, 0.8, lowest_N=made.lowest_probability(held_N3))
        exact = np.sort(probability_N[held_N])[(rank(int(held_N.sum()), 0.8, 0.9) or 0) - 1]
        wanted = (probability_N[held_N] >= exact).sum()
        for device_M in (in_order_M, another_M):
            assert (device_M.astype(float) >= found.threshold).sum() >= wanted
            lost_by_rounding_alone += (device_M.astype(float) >= exact).sum() < wanted
        assert found.threshold is not None
        assert exact - found.threshold < 2e-2 if offset == 1e3 else exact - found.threshold < 1e-4
    assert lost_by_rounding_alone > 5  # so that there was something to lose


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(0, 1), min_size=50, max_size=80),
    fine=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    catch=st.sampled_from([0.8, 0.9, 0.95]),
)
def test_a_threshold_counts_what_it_flags_and_a_higher_catch_never_raises_it(
    values: list[float], fine: list[float], catch: float
) -> None:
    probability_N = np.array(values + fine)
    failed_N = np.arange(len(probability_N)) < len(values)
    found = catch_threshold(probability_N, failed_N, catch)
    assert found.threshold is not None
    assert found.caught == (probability_N[failed_N] >= found.threshold).sum()
    assert found.flagged == (probability_N >= found.threshold).mean()
    assert found.observed is not None
    assert found.low is not None
    assert catch <= found.low + 1e-12 <= found.observed + 1e-12
    # One rounding of float32 in an engine loses nobody who was caught.
    assert (probability_N.astype(np.float32)[failed_N] >= np.float32(found.threshold)).sum() >= found.caught
    easier = catch_threshold(probability_N, failed_N, 0.7)
    assert easier.threshold is not None
    assert easier.threshold >= found.threshold


def test_too_few_failures_give_no_threshold_but_a_reason() -> None:
    probability_N = np.linspace(0, 1, 60)
    found = catch_threshold(probability_N, probability_N > 0.65, 0.95)
    assert found.threshold is None
    assert found.flagged is found.caught is found.observed is found.low is None
    assert found.failures_needed == 45
    assert found.reason == "21 failures were measured and 45 are needed to promise 95 % with 90 % confidence"


def test_known_intervals() -> None:
    np.testing.assert_allclose(clopper_pearson(0, 10, 0.025), (0.0, 0.30850), atol=1e-5)
    np.testing.assert_allclose(clopper_pearson(10, 10, 0.025), (0.69150, 1.0), atol=1e-5)
    np.testing.assert_allclose(clopper_pearson(5, 10, 0.025), (0.18709, 0.81291), atol=1e-5)
    with pytest.raises(DataError, match="11 of 10"):
        clopper_pearson(11, 10, 0.05)


def test_bad_input_is_refused() -> None:
    both_N = np.array([True, False])
    for probability_N, says in (([0.5, np.nan], "first nan in row 1"), ([0.5, 1.5], "not in"), ([[0.5, 0.5]], "shape")):
        with pytest.raises(DataError, match=says):
            catch_threshold(np.array(probability_N), both_N, 0.9)
    with pytest.raises(DataError, match="2 of 2 people failed"):
        catch_threshold(np.array([0.5, 0.5]), np.array([True, True]), 0.9)
    with pytest.raises(DataError, match="nobody"):
        catch_threshold(np.empty(0), np.empty(0, dtype=bool), 0.9)
    for catch, confidence in ((1.0, 0.9), (0.9, 1.0), (0.9, 0.3), (0.0, 0.9)):
        with pytest.raises(ConfigError, match="catch must lie in"):
            catch_threshold(np.array([0.5, 0.5]), both_N, catch, confidence)
