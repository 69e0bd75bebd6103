"""Statistics over seeds, against hand-worked values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.measures.statistics import (
    Alternative,
    holm,
    mean_interval,
    mean_sd,
    most_covered,
    paired_t_test,
    seeds_to_settle,
)


def test_mean_and_sample_sd() -> None:
    """2, 4, 9: mean 5, squares 9 + 1 + 16 = 26 over n - 1 = 2."""
    summary = mean_sd([2.0, 4.0, 9.0])

    assert summary.mean == 5.0
    assert summary.sd == pytest.approx(math.sqrt(13))
    assert summary.count == 3
    assert summary.reason is None


@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
def test_undefined_values_are_left_out_and_not_counted(hole: float | None) -> None:
    """A hole changes the count, not the mean."""
    assert mean_sd([1.0, hole, 3.0]) == mean_sd([1.0, 3.0])


def test_one_value_has_a_mean_and_no_sd() -> None:
    """The sd is None, with the reason."""
    summary = mean_sd([0.25])

    assert (summary.mean, summary.sd, summary.count) == (0.25, None, 1)
    assert summary.reason is not None


@pytest.mark.parametrize("values", [[], [None], [math.nan, None]])
def test_no_value_has_neither(values: list[float | None]) -> None:
    """Nothing to average is None, not an error and not NaN."""
    summary = mean_sd(values)

    assert (summary.mean, summary.sd, summary.count) == (None, None, 0)
    assert summary.reason is not None


def test_equal_values_have_sd_zero() -> None:
    """Zero is a defined sd."""
    assert mean_sd([0.3, 0.3, 0.3]).sd == 0.0


def test_t_of_hand_worked_differences() -> None:
    """Differences -1, -2, -3: mean -2, sd 1, t = -2 sqrt(3), 2 degrees of freedom.

    With 2 degrees of freedom P(T < t) = 1/2 + t / (2 sqrt(2 + t^2)), here 1/2 - sqrt(12 / 14) / 2.
    """
    test = paired_t_test([1.0, 1.0, 1.0], [2.0, 3.0, 4.0], "less")

    assert test.t == pytest.approx(-2 * math.sqrt(3))
    assert test.p == pytest.approx(0.5 - math.sqrt(12 / 14) / 2)
    assert test.count == 3


def test_the_three_alternatives_fit_together() -> None:
    """less + greater = 1, and two-sided is twice the smaller."""
    a, b = [0.2, 0.3, 0.25, 0.4], [0.3, 0.31, 0.27, 0.5]
    less, greater, both = (paired_t_test(a, b, tail).p for tail in ("less", "greater", "two-sided"))
    assert less is not None
    assert greater is not None

    assert less + greater == pytest.approx(1)
    assert both == pytest.approx(2 * min(less, greater))


def test_pairs_with_a_hole_are_left_out_together() -> None:
    """A hole on either side drops that seed from both."""
    whole = paired_t_test([1.0, 2.0, 4.0], [2.0, 4.0, 5.0])
    holed = paired_t_test([1.0, None, 2.0, 9.0, 4.0], [2.0, 9.0, 4.0, math.nan, 5.0])

    assert holed == whole


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([], [], "0 pairs"),
        ([0.2], [0.3], "1 pair,"),
        ([0.2, None], [None, 0.3], "0 pairs"),
        ([0.1, 0.2, 0.3], [0.2, 0.3, 0.4], "do not vary"),
        ([0.5, 0.5], [0.5, 0.5], "do not vary"),
        ([0.0, 0.0], [0.0, 0.0], "do not vary"),
    ],
)
def test_an_undefined_test_says_why(a: list[float | None], b: list[float | None], reason: str) -> None:
    """No p, no warning, no NaN: 0.1 - 0.2 and 0.2 - 0.3 differ by rounding only, and count as equal."""
    test = paired_t_test(a, b, "less")

    assert (test.t, test.p) == (None, None)
    assert reason in (test.reason or "")


def test_unequal_lengths_are_an_error() -> None:
    """Seeds that were not paired would otherwise be cut off silently."""
    with pytest.raises(DataError, match="a has 2 values and b has 3"):
        paired_t_test([1.0, 2.0], [1.0, 2.0, 3.0])


def test_unknown_alternative_is_an_error() -> None:
    """The message names the value."""
    with pytest.raises(ConfigError, match="'lower'"):
        paired_t_test([1.0, 2.0], [1.0, 3.0], "lower")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([], []),
        ([0.04], [0.04]),
        # sorted .005 .01 .03 .04, times 4 3 2 1 = .02 .03 .06 .04; the last may not fall below .06
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        # 3 × .5 passes 1
        ([0.5, 0.6, 0.7], [1.0, 1.0, 1.0]),
        # ties: 2 × .02 = .04, then 1 × .02 is raised to it
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.0, 1.0], [0.0, 1.0]),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    """Step down, never below the one before, never above 1, in the order given."""
    assert holm(p_values) == pytest.approx(adjusted)


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan])
def test_holm_refuses_what_is_no_p_value(bad: float) -> None:
    """The message says which."""
    with pytest.raises(DataError, match=r"p_values\[1\]"):
        holm([0.5, bad])


# --- How many seeds?


def differing(effect: float) -> list[float]:
    """Three differences whose mean is ``effect`` and whose sd is 1."""
    return [effect - 1.0, effect, effect + 1.0]


@pytest.mark.parametrize(
    ("effect", "alternative", "seeds"),
    [
        (0.2, "two-sided", 199),
        (0.5, "two-sided", 34),
        (0.8, "two-sided", 15),
        (0.5, "greater", 27),
        (0.8, "greater", 12),
    ],
)
def test_the_textbook_sample_sizes(effect: float, alternative: Alternative, seeds: int) -> None:
    """Cohen's small, medium and large effects at level 0.05 and power 0.8: the sizes that G*Power prints."""
    found = seeds_to_settle(differing(effect), [0.0] * 3, alternative=alternative)

    assert (found.seeds, found.more, found.count) == (seeds, seeds - 3, 3)
    assert [found.difference, found.sd] == pytest.approx([effect, 1.0])
    assert found.reason is None
    for word in (f"{seeds} seeds", f"{seeds - 3} more", alternative, "0.05", "0.8"):
        assert word in str(found)


@pytest.mark.parametrize(
    ("effect", "alternative", "level", "power"),
    [
        (0.7, "greater", 0.05, 0.8),
        (-0.7, "less", 0.05, 0.9),
        (1.2, "two-sided", 0.01, 0.8),
        (2.5, "two-sided", 0.05, 0.8),
    ],
)
def test_simulated_experiments_of_that_many_seeds_settle_as_often_as_promised(
    effect: float, alternative: Alternative, level: float, power: float
) -> None:
    """40,000 experiments each with the seeds named, and with one less: at least the power, and less than it."""
    seeds = seeds_to_settle(differing(effect), [0.0] * 3, alternative=alternative, level=level, power=power).seeds
    assert seeds is not None
    rng = np.random.default_rng(0)

    def rejected(count: int) -> float:
        drawn = rng.normal(effect, 1.0, size=(40_000, count))
        return float((stats.ttest_1samp(drawn, 0.0, axis=1, alternative=alternative).pvalue <= level).mean())

    noise = 4 * math.sqrt(power * (1 - power) / 40_000)
    assert rejected(seeds) >= power - noise
    assert rejected(seeds - 1) < power + noise


def test_enough_seeds_are_enough() -> None:
    """Differences of 5 ± 0.1: two seeds would do, four are there."""
    found = seeds_to_settle([5.0, 5.1, 4.9, 5.0], [0.0] * 4)

    assert found.seeds is not None
    assert found.seeds <= 4
    assert found.more == 0
    assert "enough" in str(found)


def test_seeds_do_not_depend_on_the_unit_nor_on_holes() -> None:
    a, b = [0.71, None, 0.74, 0.70, math.nan], [0.70, 0.8, 0.71, 0.70, 0.6]
    plain = seeds_to_settle(a, b)
    scaled = seeds_to_settle([x and 100 * x for x in a], [100 * x for x in b])

    assert plain.count == 3
    assert plain.seeds is not None
    assert plain.seeds == scaled.seeds


@pytest.mark.parametrize(
    ("a", "alternative", "reason"),
    [
        ([1.0], "two-sided", "1 pair"),
        ([1.0, 1.0, 1.0], "two-sided", "do not vary"),
        ([-1.0, 0.0, 1.0], "two-sided", "no difference"),
        ([1.0, 2.0, 3.0], "less", "is not less"),
        ([-1.0, -2.0, -3.0], "greater", "is not greater"),
        (differing(0.001), "greater", "more than 10000 seeds"),
    ],
)
def test_where_seeds_settle_nothing_the_reason_is_said(a: list[float], alternative: Alternative, reason: str) -> None:
    """None, never a number that nobody can use."""
    found = seeds_to_settle(a, [0.0] * len(a), alternative=alternative)

    assert found.seeds is None
    assert found.more is None
    assert reason in str(found)


@pytest.mark.parametrize(("level", "power"), [(0.0, 0.8), (0.05, 1.0), (0.9, 0.8), (-1.0, 0.5)])
def test_a_level_and_power_that_cannot_be_are_refused(level: float, power: float) -> None:
    """A test that never or always rejects needs no seeds."""
    with pytest.raises(ConfigError, match="level"):
        seeds_to_settle([1.0, 2.0], [0.0, 0.0], level=level, power=power)


@pytest.mark.parametrize(
    ("law", "count", "least", "most"),
    [
        ("normal", 5, 0.90, 0.9375 + 0.02),  # plain percentiles: 0.83
        ("normal", 20, 0.93, 0.97),
        ("normal", 200, 0.93, 0.97),
        ("exponential", 200, 0.92, 0.97),
        ("uniform", 50, 0.93, 0.97),
        ("normal", 3, 0.70, 0.80),  # the range of three holds the centre 3 times in 4
    ],
)
def test_bootstrap_intervals_cover_as_often_as_they_say(law: str, count: int, least: float, most: float) -> None:
    """1500 experiments whose true mean is known; few values cover no more than their range can."""
    generator = np.random.default_rng(11)
    value_NK = getattr(generator, law)(size=(count, 1500))
    mean = {"normal": 0.0, "exponential": 1.0, "uniform": 0.5}[law]
    band = mean_interval(value_NK)

    assert band is not None
    assert least < np.mean((band[0] <= mean) & (band[1] >= mean)) < most
    if count <= 5:
        assert most_covered(count) == pytest.approx({3: 0.75, 5: 0.9375}[count])


def test_a_bootstrap_interval_of_equal_values_is_a_point_and_of_one_value_nothing() -> None:
    """No scatter, no width; nothing to draw from, no interval."""
    band = mean_interval(np.full((4, 2), 0.3))

    assert band is not None
    assert band[0] == pytest.approx(0.3)
    assert band[1] == pytest.approx(0.3)
    assert mean_interval(np.array([[0.3]])) is None


def test_a_bootstrap_repeats_itself_and_follows_its_seed() -> None:
    """The report of the same files must be the same."""
    value_NK = np.random.default_rng(0).normal(size=(30, 1))
    once, twice, other = (mean_interval(value_NK, seed=seed) for seed in (1, 1, 2))

    assert once is not None
    assert once == twice
    assert once != other


def test_a_bootstrap_of_what_is_not_defined_is_refused() -> None:
    """NaN would come out as an interval of NaN, and be drawn as nothing."""
    with pytest.raises(DataError, match="leave out values that are not defined"):
        mean_interval(np.array([[0.1], [np.nan], [0.3]]))
    with pytest.raises(ConfigError, match=r"covered.*1\.5"):
        mean_interval(np.array([[0.1], [0.3]]), covered=1.5)
