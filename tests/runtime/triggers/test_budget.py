"""Budget on simulated streams: hours of failures that come in bursts, drift, pauses, other frame rates, ties.

One frame a second keeps a simulated day short; one test runs at ten.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.bundle.manifest import HISTOGRAM_BINS, CalibrationFacts
from alpose.runtime.triggers import Observation, Policy, Setting, parse
from alpose.runtime.triggers.rates import _FORGET_PER_S, BINS, PRIOR_S, Scores

FPS = 1
EMPTY_D = np.empty(0, dtype=np.float32)
DEFAULT = "Episodes(Budget(20)) | Control(per_hour=2)"
Times = npt.NDArray[np.float64]


def scores(hours: float, fps: float = FPS, drift: str = "none", seed: int = 0) -> tuple[Times, Times]:
    """Times, and failure probabilities that stay alike for seconds, with a burst of failures every five minutes."""
    logit_N, bursts_K3 = _parts(hours, fps, seed)
    count = len(logit_N)
    time_s_N = np.arange(count) / fps
    for begin_s, length_s, height in bursts_K3.tolist():
        logit_N[int(begin_s * fps) : int((begin_s + length_s) * fps) + 1] += height
    late_N = time_s_N > hours * 1800
    drifts: dict[str, Any] = {
        "none": 0.0,
        "abrupt up": 2.0 * late_N,
        "abrupt down": -2.0 * late_N,
        "gradual up": np.linspace(0, 3, count),
        "gradual down": np.linspace(0, -3, count),
        "day and night": 1.5 * np.sin(2 * np.pi * time_s_N / 86400),
    }
    logit_N += drifts[drift]
    return time_s_N, 1 / (1 + np.exp(-logit_N))


def bursts(hours: float, fps: float = FPS, seed: int = 0) -> Times:
    """Begin and length in seconds, and by how much the log-odds rise, of the bursts in :func:`scores`, (K, 3)."""
    return _parts(hours, fps, seed)[1]


def _parts(hours: float, fps: float, seed: int) -> tuple[Times, Times]:
    """The log-odds without bursts, and the bursts."""
    rng = np.random.default_rng(seed)
    time_s_N = np.arange(int(hours * 3600 * fps)) / fps
    knots_s = np.arange(0, hours * 3600 + 4, 2.0)  # a slow part: a new value every 2 s, and straight lines between
    logit_N = -3 + 0.8 * np.interp(time_s_N, knots_s, rng.standard_normal(len(knots_s)))
    logit_N += 0.3 * rng.standard_normal(len(time_s_N))
    begin_s_K = rng.uniform(0, hours * 3600, int(12 * hours))
    length_s_K, height_K = rng.exponential(8, 10**4), rng.gamma(2, 1.2, 10**4)
    count = len(begin_s_K)
    return logit_N, np.stack([begin_s_K, length_s_K[:count], height_K[:count]], axis=1)


def kept_times(
    policy: str, time_s_N: Times, score_N: Times, *, calibration: CalibrationFacts | None = None, streams: int = 1
) -> Times:
    """When the flagged frames were seen that are left in the end."""
    decider = Policy(parse(policy), Setting(calibration, np.random.default_rng(1)))
    left: dict[int, float] = {}
    for number, (time_s, score) in enumerate(zip(time_s_N.tolist(), score_N.tolist(), strict=True)):
        decision = decider.decide(
            Observation(
                time_s=time_s,
                failure_probability=score,
                predicted_loss=0.0,
                embedding_D=EMPTY_D,
                stream=str(number % streams),
            )
        )
        if decision.keep:
            decider.on_stored(True)
            for one in (*decision.supersedes, *decision.demotes):
                del left[one]
            if decision.flagged:
                left[number] = time_s
    return np.array(sorted(left.values()))


def most_within(time_s_K: Times, span_s: float) -> int:
    """The densest stretch."""
    return int((np.searchsorted(time_s_K, time_s_K + span_s) - np.arange(len(time_s_K))).max(initial=0))


@pytest.mark.parametrize("drift", ["none", "abrupt up", "abrupt down", "gradual up", "gradual down", "day and night"])
def test_a_day_with_drift_keeps_what_was_asked_for(drift: str) -> None:
    time_s_K = kept_times(DEFAULT, *scores(24, drift=drift))

    assert len(time_s_K) / 24 == pytest.approx(20, rel=0.1)
    assert most_within(time_s_K, 3600) <= 40  # the account and an hour's income


@pytest.mark.parametrize(
    "policy", ["Budget(20)", "Budget(20) & Cooldown(10)", "Episodes(Budget(20) & Cooldown(3)) | Jump(1)"]
)
def test_a_budget_holds_whatever_stands_around_it(policy: str) -> None:
    assert len(kept_times(policy, *scores(24, drift="abrupt up", seed=3))) / 24 == pytest.approx(20, rel=0.1)


def test_ten_frames_a_second() -> None:
    assert len(kept_times(DEFAULT, *scores(6, fps=10, drift="abrupt down"))) / 6 == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("per_hour", [2, 150])
def test_other_budgets(per_hour: int) -> None:
    kept = len(kept_times(f"Episodes(Budget({per_hour}))", *scores(24, seed=4)))

    assert kept / 24 == pytest.approx(per_hour, rel=0.1)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_of_frames_that_are_all_alike_a_random_part_is_kept(value: float) -> None:
    time_s_N, _ = scores(24)
    time_s_K = kept_times("Budget(20)", time_s_N, np.full_like(time_s_N, value))

    assert len(time_s_K) / 24 == pytest.approx(20, rel=0.1)
    assert most_within(time_s_K, 600) <= 14  # spread out: 3.3 on average


def test_a_frame_rate_that_changes() -> None:
    rng = np.random.default_rng(2)
    time_s_N = np.concatenate([np.arange(0, 600, 1 / fps) + 600 * i for i, fps in enumerate(rng.uniform(0.1, 3, 144))])
    day = scores(24)

    kept = len(kept_times(DEFAULT, time_s_N, np.interp(time_s_N, *day)))
    assert kept / 24 == pytest.approx(20, rel=0.1)


def test_a_frame_a_minute_is_no_row_of_pauses() -> None:
    time_s_N = np.arange(0, 10 * 86400, 60.0)  # as many frames as in four hours at one a second

    assert len(kept_times("Budget(6)", time_s_N, scores(4)[1])) / 240 == pytest.approx(6, rel=0.1)


def test_several_cameras_share_one_budget() -> None:
    time_s_N, score_N = scores(24)

    kept = len(kept_times(DEFAULT, np.repeat(time_s_N[::4], 4), score_N, streams=4))
    assert kept / 24 == pytest.approx(20, rel=0.1)


def test_hours_parked_earn_nothing_and_end_without_a_burst() -> None:
    time_s_N, score_N = scores(24)
    running_h_N = time_s_N / 3600
    parked_s_N = time_s_N + 3 * 3600 * np.floor(running_h_N)  # three hours off after each hour on
    time_s_K = kept_times(DEFAULT, parked_s_N, score_N)

    assert len(time_s_K) / 24 == pytest.approx(20, rel=0.1)
    assert most_within(time_s_K, 3 * 3600) <= 30


def test_a_burst_after_a_quiet_night_stays_below_the_cap() -> None:
    """Nothing is as bad as one frame before; then everything is, all at once."""
    time_s_N = np.arange(0, 10 * 3600, 1.0)
    score_N = np.where(time_s_N < 9 * 3600, 0.01 * np.random.default_rng(0).random(len(time_s_N)), 0.99)
    time_s_K = kept_times("Budget(20)", time_s_N, score_N)

    assert most_within(time_s_K[time_s_K >= 9 * 3600], 60) <= 20


def seen(time_s: float, score: float) -> Observation:
    return Observation(time_s=time_s, failure_probability=score, predicted_loss=0.0, embedding_D=EMPTY_D)


def test_what_the_queue_refuses_is_not_paid_for() -> None:
    decider = Policy(parse("Budget(20)"), Setting(None, np.random.default_rng(0), 1.0))
    for i in range(7200):
        decision = decider.decide(seen(i, 0.5))
        decider.on_stored(False)

    assert decision.inclusion_probability == 1.0  # the account is full: whatever comes next is welcome


def test_an_account_that_cannot_pay_says_so() -> None:
    calibration = CalibrationFacts((), (1000,) + (0,) * (HISTOGRAM_BINS - 1), {})
    decider = Policy(parse("Budget(20)"), Setting(calibration, np.random.default_rng(0), 2.0))
    decisions = []
    for i in range(50):
        decisions.append(decider.decide(seen(i / 2, 0.5 + i / 200)))
        decider.on_stored(decisions[-1].keep)

    assert [decision.keep for decision in decisions] == [True] * 10 + [False] * 40
    assert decisions[-1].inclusion_probability == 0.0
    assert str(decisions[-1].reasons[0]).startswith("budget spent 0.")


def test_the_first_minutes_go_by_the_calibration_set() -> None:
    """Frames as they were at calibration: of the worst hundredth something is kept, of the rest nothing."""
    counts = (990,) + (0,) * (HISTOGRAM_BINS - 2) + (10,)
    calibration = CalibrationFacts((), counts, {})
    time_s_N = np.arange(0, 300, 0.5)
    score_N = np.where(np.arange(len(time_s_N)) % 100 == 99, 0.995, 0.005)

    time_s_K = kept_times("Budget(20)", time_s_N, score_N, calibration=calibration)
    assert 1 <= len(time_s_K) <= 10
    assert set(time_s_K) <= set(time_s_N[score_N > 0.5])


def test_scores_that_are_no_probabilities_are_survived() -> None:
    time_s_N, score_N = scores(4)
    score_N[::3], score_N[1::300], score_N[2::500] = math.nan, 7.0, -2.0

    time_s_K = kept_times("Budget(20)", time_s_N, score_N)
    assert len(time_s_K) == pytest.approx(80, abs=11)
    assert not np.isin(time_s_K, time_s_N[np.isnan(score_N)]).any()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 4000.0)), min_size=1, max_size=60),
    st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=3),
)
def test_the_histogram_equals_its_slow_twin(frames: list[tuple[float, float]], shares: list[float]) -> None:
    """The tail that is carried along, against weights and quantile computed afresh from the whole history."""
    fast = Scores(None)
    mass_B, weight = np.full(BINS, PRIOR_S / BINS), 1.0
    for score, passed_s in frames:
        place = min(int(score * BINS), BINS - 1)
        fast.add(place, 0.1, passed_s)
        weight *= 1 + _FORGET_PER_S * passed_s
        mass_B[place] += weight * 0.1
        for share in shares:
            part = fast.find(share)
            above_B = mass_B[::-1].cumsum()[::-1] - mass_B
            assert above_B[fast.bin] + part * mass_B[fast.bin] == pytest.approx(share * mass_B.sum(), rel=1e-6)
