"""Estimates against numbers worked out by hand, and against a truth that is known because it was made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.errors import DataError
from alpose.tools.field import estimate
from alpose.tools.field.estimate import Interval


def test_a_mean_of_equal_probabilities_is_the_plain_mean_with_the_exact_binomial_interval() -> None:
    """A rare stream: the finite population does not matter, 8 of 40 has the interval of every table."""
    value_N = np.r_[np.ones(8), np.zeros(32)]
    found = estimate.mean(value_N, np.full(40, 1e-9))

    assert found is not None
    assert found.value == pytest.approx(0.2)
    # Clopper and Pearson for 8 of 40: 0.0905 to 0.3565; ours is a little wider (Student's t, estimated variance).
    assert 0.070 < found.low < 0.0905
    assert 0.3565 < found.high < 0.38


def test_all_alike_is_not_certainty() -> None:
    found = estimate.mean(np.ones(60), np.full(60, 0.001))

    assert found is not None
    assert found.value == found.high == 1.0
    # The rule of three: 60 draws without a failure leave room for 1 - 0.025^(1/60) of them.
    assert found.low == pytest.approx(0.025 ** (1 / 60), abs=1e-3)


def test_a_census_is_a_point() -> None:
    found = estimate.mean([0.0, 1.0, 0.5], [1.0, 1.0, 1.0])

    assert found == Interval(0.5, 0.5, 0.5, 3)
    assert estimate.mean([], []) is None


def test_a_share_of_a_known_part_follows_the_limits_of_the_rest() -> None:
    """Flagged failures counted, missed ones estimated: recall is a monotone function of the latter."""
    found = estimate.share(Interval(90, 90, 90, 90), Interval(30, 10, 90, 50))

    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.5, 0.9))


@given(
    st.tuples(*[st.floats(0, 100)] * 3).map(sorted),
    st.tuples(*[st.floats(0, 100)] * 3).map(sorted),
)
def test_a_share_stays_in_bounds_and_contains_its_value(part: list[float], rest: list[float]) -> None:
    found = estimate.share(Interval(part[1], part[0], part[2], 9), Interval(rest[1], rest[0], rest[2], 9))

    if part[1] <= 0 and rest[1] <= 0:
        assert found is None
    else:
        assert found is not None
        assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, math.nan])
def test_a_frame_without_a_probability_is_refused(probability: float) -> None:
    with pytest.raises(DataError, match="probability"):
        estimate.mean([1.0], [probability])


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 values"):
        estimate.mean([1.0, math.nan], [0.5, 0.5])
