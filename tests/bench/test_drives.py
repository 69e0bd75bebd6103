"""A car is driven for some minutes at a time: the budget keeps what it was asked for, whatever the bundle's calibration."""

from __future__ import annotations

import pytest

from bench.drives import CALIBRATIONS, PER_HOUR, drives, measure


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_ten_drives_of_ten_minutes_keep_what_was_asked_for(name: str) -> None:
    found = measure(name, minutes=10, count=10, seeds=5, fps=5.0)
    assert 18 <= found["per_hour"]["min"] <= found["per_hour"]["max"] <= 22
    assert found["control_per_hour"] == pytest.approx(2, abs=1)


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_the_first_drive_keeps_something_and_no_more_than_the_account_holds(name: str) -> None:
    kept = [next(drives(name, 10, 1, seed=seed))[0] for seed in range(6)]
    assert min(kept) >= 1
    assert max(kept) <= PER_HOUR / 2
