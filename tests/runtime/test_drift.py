"""The drift test, held to its promises: exact p-values, fair bets, few false alarms, and drifts found in time.

Shapes: B bins, N scores, S streams.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.bundle.manifest import HISTOGRAM_BINS
from alpose.runtime.drift import BETS, Drift, DriftReport, Drifts, Martingale, Ranks, bin_of, uninvested
from alpose.runtime.errors import ConfigError, DataError

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]


def usual(rng: np.random.Generator, count: int) -> Floats:
    """Failure probabilities as a calibrated head gives them: most low, a tail of failures, and many ties at the end."""
    return np.where(rng.random(count) < 0.03, 0.96, rng.beta(0.8, 3.2, count))


def histogram(score_N: Floats) -> list[int]:
    return np.histogram(score_N, bins=HISTOGRAM_BINS, range=(0.0, 1.0))[0].tolist()


def shifted(draw: Draw, logits: float) -> Draw:
    """The same people, each harder (or easier) by so many logits."""

    def harder(rng: np.random.Generator, count: int) -> Floats:
        score_N = np.clip(draw(rng, count), 1e-6, 1 - 1e-6)
        return np.asarray(1 / (1 + np.exp(-(np.log(score_N / (1 - score_N)) + logits))))

    return harder


def feed(drift: Drift, score_N: Floats, start: int = 0) -> DriftReport:
    """Let every score enter, one a second; the last one waits for its window to end."""
    for place, score in enumerate(score_N.tolist()):
        drift.update(score, float(start + place))
    return drift.report()


def delay(drift: Drift, score_N: Floats, start: int) -> float:
    """Scores until the alarm; infinite without one."""
    for place, score in enumerate(score_N.tolist()):
        drift.update(score, float(start + place))
        if drift.report().alarm:
            return place
    return math.inf


def binomial_limit(trials: int, rate: float, error: float = 1e-4) -> int:
    """The smallest count that a Binomial(trials, rate) exceeds with at most this probability, summed exactly."""
    upto, count = 0.0, -1
    while upto < 1 - error:
        count += 1
        ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        upto += math.exp(ways + count * math.log(rate) + (trials - count) * math.log(1 - rate))
    return count


def ks_limit(count: int, error: float = 1e-4) -> float:
    """Of the Kolmogorov-Smirnov statistic against a known distribution (Massart's bound)."""
    return math.sqrt(math.log(2 / error) / (2 * count))


def ks(value_N: Floats) -> float:
    """Distance to the uniform distribution."""
    sorted_N, rank_N = np.sort(value_N), np.arange(len(value_N))
    return float(max((sorted_N - rank_N / len(value_N)).max(), ((rank_N + 1) / len(value_N) - sorted_N).max()))


# ---------------------------------------------------------------- p-values


@given(
    st.lists(st.floats(0, 1), min_size=0, max_size=30),
    st.lists(st.tuples(st.floats(0, 1), st.floats(2**-53, 1)), min_size=1, max_size=30),
)
def test_a_p_value_is_the_rank_among_all_scores_so_far(known: list[float], stream: list[tuple[float, float]]) -> None:
    """The twin keeps every score and compares them one by one."""
    ranks = Ranks(histogram(np.array(known)))
    seen = [math.floor(score * HISTOGRAM_BINS) - (score == 1) for score in known]
    for score, chance in stream:
        mine = math.floor(score * HISTOGRAM_BINS) - (score == 1)
        seen.append(mine)
        higher, equal = sum(other > mine for other in seen), sum(other == mine for other in seen)
        assert ranks.p_value(mine, chance) == pytest.approx((higher + chance * equal) / len(seen), rel=1e-12)


@pytest.mark.parametrize("calibration", [1, 5, 100])
def test_p_values_are_uniform_and_independent_whatever_the_size_of_the_calibration_set(calibration: int) -> None:
    rng, streams = np.random.default_rng(calibration), 6000
    p_S3, fixed_S = np.empty((streams, 3)), np.empty(streams)
    for s in range(streams):
        known, place_3 = histogram(usual(rng, calibration)), [bin_of(x) for x in usual(rng, 3).tolist()]
        ranks = Ranks(known)
        for n, place in enumerate(place_3):
            assert place is not None
            if n == 2:  # what a test does that treats the calibration set as the truth
                fixed_S[s] = (sum(known[place + 1 :]) + rng.random() * known[place]) / calibration
            p_S3[s, n] = ranks.p_value(place, 1 - rng.random())
    for n in range(3):
        assert ks(p_S3[:, n]) < ks_limit(streams)
    # Uniform in the cube: the chance that all three lie below a corner is its volume.
    for corner in (0.2, 0.5, 0.8):
        inside = int((p_S3 < corner).all(axis=1).sum())
        assert binomial_limit(streams, corner**3) >= inside >= streams - binomial_limit(streams, 1 - corner**3)
    if calibration < 100:
        assert ks(fixed_S) > 2 * ks_limit(streams), "the check would not see a test that is only nearly right"


# ---------------------------------------------------------------- fair bets


def over_p_values(f: Callable[[float], float]) -> float:
    """The integral of f over (0, 1); the substitution tames the poles at both ends."""
    t = np.linspace(-34.0, 34.0, 341)
    p = 1 / (1 + np.exp(-t))
    return float(sum(f(float(x)) * float(x * (1 - x)) for x in p) * (t[1] - t[0]))


@given(st.lists(st.floats(1e-9, 1), max_size=12))
def test_no_history_makes_the_next_bet_unfair(history: list[float]) -> None:
    """The definition of a martingale: whatever came before, the mean of the next evidence is the present one."""

    now = Martingale()
    for earlier in history:
        now.bet(earlier)

    def after(p: float) -> float:
        one = copy.deepcopy(now)
        one.bet(p)
        return one.evidence

    assert over_p_values(after) == pytest.approx(now.evidence, rel=1e-5)


def test_the_stakes_add_up_to_the_money_there_is() -> None:
    assert sum(bet.share for bet in BETS) == pytest.approx(1.0)
    assert uninvested(0) == 1.0
    left = [uninvested(n) for n in range(10_000)]
    assert all(later < earlier for earlier, later in itertools.pairwise(left))
    assert uninvested(10**12) < 0.03


def test_the_mean_evidence_of_streams_without_drift_is_one() -> None:
    rng, streams, length = np.random.default_rng(3), 6000, 8
    evidence_S = np.empty(streams)
    for s in range(streams):
        ranks, money = Ranks(histogram(usual(rng, 50))), Martingale()
        for score in usual(rng, length).tolist():
            place = bin_of(score)
            assert place is not None
            money.bet(ranks.p_value(place, 1 - rng.random()))
        evidence_S[s] = money.evidence
    assert abs(evidence_S.mean() - 1) < 4 * evidence_S.std() / math.sqrt(streams)
    assert evidence_S.std() / math.sqrt(streams) < 0.02, "the bound above would say nothing"


# ---------------------------------------------------------------- false alarms


@pytest.mark.parametrize("calibration", [100, 1000])
def test_false_alarms_over_1000_streams_stay_below_the_stated_rate(calibration: int) -> None:
    rng, alpha, streams, length = np.random.default_rng(calibration), 0.05, 1000, 300
    alarms = 0
    for s in range(streams):
        drift = Drift(histogram(usual(rng, calibration)), alpha=alpha, every_s=0, seed=s)
        alarms += feed(drift, usual(rng, length)).alarm
    assert alarms <= binomial_limit(streams, alpha)
    assert alarms > 0, "a test that never speaks would pass this one"


def lingering(rng: np.random.Generator, count: int, step_s: float) -> Floats:
    """Usual scores that stay alike, as of one person: half the correlation is left after 2 seconds."""
    kept = 0.5 ** (step_s / 2.0)
    level_N = rng.normal(size=count)
    for n in range(1, count):
        level_N[n] = kept * level_N[n - 1] + math.sqrt(1 - kept**2) * level_N[n]
    return np.sort(usual(rng, count))[np.argsort(np.argsort(level_N))]


def test_one_score_in_30_seconds_keeps_the_promise_on_scores_that_stay_alike_for_seconds() -> None:
    rng, alpha, streams, step_s = np.random.default_rng(9), 0.05, 50, 0.5
    alarms = {0.0: 0, 30.0: 0}
    for s in range(streams):
        known, score_N = histogram(usual(rng, 1000)), lingering(rng, 12_000, step_s)
        for every_s in alarms:
            drift = Drift(known, alpha=alpha, every_s=every_s, seed=s)
            # The same number of scores for both: all of the first minutes, or some of all.
            for n, score in enumerate(score_N[: 200 if every_s == 0 else None].tolist()):
                drift.update(score, n * step_s)
            alarms[every_s] += drift.report().alarm
    assert alarms[30.0] <= binomial_limit(streams, alpha)
    assert alarms[0.0] > 0.5 * streams


# ---------------------------------------------------------------- drifts that are found


def fading(draw_from: Draw, draw_to: Draw, length: int) -> Draw:
    """From one kind to the other, a little more of the second with every score."""

    def mixed(rng: np.random.Generator, count: int) -> Floats:
        share_N = np.minimum(np.arange(count) / length, 1.0)
        return np.where(rng.random(count) < share_N, draw_to(rng, count), draw_from(rng, count))

    return mixed


HARDER, EASIER = shifted(usual, 1.0), shifted(usual, -1.0)
MUCH_HARDER = shifted(usual, 2.0)


def middling(rng: np.random.Generator, count: int) -> Floats:
    """Neither good nor bad frames any more: the middle third of the usual ones."""
    return np.asarray(rng.choice(np.quantile(usual(rng, 4000), [0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65]), count))


@pytest.mark.parametrize(
    ("then", "calibration", "before", "within", "direction"),
    [
        (MUCH_HARDER, 1000, 0, 30, "more failures"),
        (MUCH_HARDER, 1000, 300, 50, "more failures"),
        (HARDER, 1000, 300, 150, "more failures"),
        (HARDER, 100, 300, 250, "more failures"),
        (EASIER, 1000, 300, 200, "fewer failures"),
        (middling, 1000, 300, 50, "other shape"),
        (fading(usual, MUCH_HARDER, 300), 1000, 300, 300, "more failures"),
    ],
    ids=["much harder at once", "much harder", "harder", "harder, few known", "easier", "middling", "fading"],
)
def test_a_drift_is_found_and_named_within_so_many_scores(
    then: Draw, calibration: int, before: int, within: int, direction: str
) -> None:
    rng, streams, found, named = np.random.default_rng(7), 40, 0, 0
    for s in range(streams):
        drift = Drift(histogram(usual(rng, calibration)), every_s=0, seed=s)
        if feed(drift, usual(rng, before)).alarm:
            continue
        found += delay(drift, then(rng, within), before) < math.inf
        named += drift.report().direction == direction
    assert found >= 0.9 * streams
    assert named >= 0.9 * found


def test_a_change_after_many_scores_is_not_found_much_later() -> None:
    """The mixture over starting times: 5,000 quiet scores must not have used the money up."""
    rng = np.random.default_rng(1)
    drift = Drift(histogram(usual(rng, 1000)), every_s=0, seed=1)
    assert not feed(drift, usual(rng, 5000)).alarm
    assert delay(drift, HARDER(rng, 300), 5000) < 300


# ---------------------------------------------------------------- the stream


def counts_of(drift: Drift) -> list[int]:
    return list(drift._ranks._counts_B)


def test_one_score_of_every_window_enters() -> None:
    drift = Drift([1] * 64, every_s=10.0, seed=0)
    for tick in range(1001):
        drift.update(0.5, 0.1 * tick)
    assert drift.report().observed == 10

    drift.update(0.5, 1e6)  # after a long pause: the last window's, and no more
    drift.update(0.5, 1e6 + 9.9)
    assert drift.report().observed == 11


def test_every_frame_of_a_window_is_equally_likely_to_enter() -> None:
    """Also among cameras that are asked at the same moment, always in the same order."""
    drift = Drift([1] + [0] * 63, every_s=1.0, seed=5)
    windows, frames, cameras = 2000, 5, 2
    for window in range(windows):
        for frame in range(frames):
            for camera in range(cameras):
                drift.update((1 + frame * cameras + camera) / 64, window + frame * 0.1)
    entered = counts_of(drift)[1 : 1 + frames * cameras]
    assert sum(entered) == windows - 1
    assert all(150 <= n <= 250 for n in entered), entered  # 200 ± 3.7 standard deviations


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    drift = Drift([1] * 64, every_s=10.0, seed=0)
    for time_s in (1000.0, 1005.0, 3.0, 8.0, 14.0, 1e9, 0.0):
        drift.update(0.5, time_s)
    assert drift.report().observed == 4


def test_frames_out_of_order_do_not_open_windows() -> None:
    drift = Drift([1] * 64, every_s=10.0, seed=0)
    for time_s in (5.0, 4.9, 5.1, 4.8, 5.2):
        drift.update(0.5, time_s)
    assert drift.report().observed == 0


def test_an_alarm_stays_until_it_is_reset() -> None:
    rng = np.random.default_rng(2)
    drift = Drift(histogram(usual(rng, 1000)), every_s=0, seed=2)
    alarmed = feed(drift, MUCH_HARDER(rng, 60))
    later = feed(drift, usual(rng, 2000), start=60)

    assert alarmed.alarm
    assert alarmed.log10_evidence > alarmed.log10_limit == pytest.approx(2.0)
    assert 0 < (alarmed.since_s or 0.0) < 60
    assert (later.alarm, later.since_s, later.direction) == (True, alarmed.since_s, "more failures")

    drift.reset()
    fresh = drift.report()
    assert (fresh.alarm, fresh.since_s, fresh.direction, fresh.observed) == (False, None, None, 0)
    assert fresh.log10_evidence == 0.0
    assert not feed(drift, usual(rng, 500), start=5000).alarm
    assert feed(drift, MUCH_HARDER(rng, 300), start=9000).alarm


def test_evidence_stays_finite_for_ever() -> None:
    drift = Drift([1000] + [0] * 63, every_s=0, seed=0)
    for tick in range(20_000):
        drift.update(1.0 if tick < 10_000 else tick % 64 / 64, float(tick))
    assert math.isfinite(drift.report().log10_evidence)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_counted_and_not_used(bad: float) -> None:
    drift = Drift([1] * 64, every_s=0)
    drift.update(bad, 0.0)
    drift.update(0.5, bad)
    assert drift.report().refused == 2
    feed(drift, np.full(3, 0.5))
    assert (drift.report().observed, drift.report().refused) == (2, 2)


@pytest.mark.parametrize(
    ("score", "place"),
    [(0.0, 0), (1 / 64, 1), (0.9999, 63), (1.0, 63), (1.0000001, 63), (-1e-9, 0), (1.7e308, 63), (math.nan, None)],
)
def test_a_score_falls_into_the_bin_where_the_export_counts_it(score: float, place: int | None) -> None:
    assert bin_of(score) == place


@pytest.mark.parametrize("nothing", [None, [0] * 64])
def test_without_calibration_there_is_no_test_and_the_report_says_so(nothing: list[int] | None) -> None:
    report = feed(Drift(nothing, every_s=0), np.ones(200))
    assert (report.testing, report.alarm, report.observed, report.log10_evidence) == (False, False, 0, 0.0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"histogram_B": [1] * 63}, DataError, "must be 64 counts"),
        ({"histogram_B": [1] * 63 + [-1]}, DataError, "must be 64 counts"),
        ({"alpha": 0.0}, ConfigError, "between 0 and 1, such as 0.01, got 0.0"),
        ({"alpha": math.nan}, ConfigError, "between 0 and 1"),
        ({"every_s": -1.0}, ConfigError, "every_s must be finite and not negative"),
        ({"every_s": math.nan}, ConfigError, "every_s must be finite"),
    ],
)
def test_what_makes_no_test_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Drift(**{"histogram_B": [1] * 64} | given)


def test_the_same_seed_gives_the_same_report() -> None:
    score_N = usual(np.random.default_rng(0), 300)
    known: Sequence[int] = histogram(score_N)
    reports = [feed(Drift(known, every_s=7.0, seed=4), score_N) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0] != feed(Drift(known, every_s=7.0, seed=5), score_N)


# --- several cameras or persons


def two_seats(drifts: Drifts, count: int) -> DriftReport:
    """The driver is as usual; the other seat becomes harder by two logits."""
    rng = np.random.default_rng(3)
    for place, (calm, hard) in enumerate(zip(usual(rng, count), shifted(usual, 2.0)(rng, count), strict=True)):
        drifts.update("driver", float(calm), 30.0 * place)
        drifts.update("codriver", float(hard), 30.0 * place)
    return drifts.report()


def test_one_seat_that_drifts_is_found_and_named_beside_one_that_does_not() -> None:
    counts_B = histogram(usual(np.random.default_rng(0), 1000))
    report = two_seats(Drifts(counts_B, most=8, seed=np.random.SeedSequence(0)), 100)
    assert (report.alarm, report.stream, report.direction) == (True, "codriver", "more failures")
    assert set(report.streams) == {"driver", "codriver"}
    assert not report.streams["driver"].alarm
    assert report.observed == sum(one.observed for one in report.streams.values()) == 2 * 99


def test_a_single_stream_is_tested_as_by_itself_whatever_its_name() -> None:
    counts_B = histogram(usual(np.random.default_rng(0), 1000))
    score_N = usual(np.random.default_rng(1), 50)
    alone = Drift(counts_B, seed=np.random.SeedSequence(5))
    for name in ("", "driver"):
        drifts = Drifts(counts_B, most=8, seed=np.random.SeedSequence(5))
        for place, score in enumerate(score_N.tolist()):
            drifts.update(name, score, 30.0 * place)
            if not name:
                alone.update(score, 30.0 * place)
        report = drifts.report()
        assert report.streams == {}
        assert report.stream == name
        assert (report.observed, report.log10_evidence) == (alone.report().observed, alone.report().log10_evidence)


def test_tests_of_many_streams_are_bounded_and_no_alarm_is_forgotten_for_them() -> None:
    counts_B = histogram(usual(np.random.default_rng(0), 1000))
    drifts = Drifts(counts_B, most=8, seed=np.random.SeedSequence(0))
    seen = two_seats(drifts, 100).observed
    for number in range(50):
        drifts.update(f"passer-by {number}", 0.1, 4000.0)
        drifts.update(f"passer-by {number}", 0.1, 4040.0)
    report = drifts.report()
    assert len(report.streams) == 8
    assert report.streams["codriver"].alarm
    assert report.stream == "codriver"
    assert report.observed == seen + 50
