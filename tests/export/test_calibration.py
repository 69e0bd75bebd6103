"""The map from evidence to probability, what counts as a failure, and what is measured about both.

Shapes: N people, J joints, K knots.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.export import calibration as c
from alpose.export import quality, shift
from alpose.runtime.errors import DataError
from alpose.runtime.io import from_json, to_json
from alpose.runtime.skeleton import LSP
from alpose.trainer.measures import metrics
from alpose.trainer.measures.metrics import Failure
from alpose.trainer.measures.statistics import ece_equal_width

Array = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def people(
    seed: int, count: int, pull: tuple[float, float, float] = (1.0, 0.5, 1.5), base: float = -1.0
) -> tuple[Array, Bools, Array]:
    """Evidence, failures, and the probabilities that the failures were drawn with."""
    rng = np.random.default_rng(seed)
    standard_N3 = rng.normal(size=(count, 3))
    true_N = 1 / (1 + np.exp(-(standard_N3 @ np.array(pull) + base)))
    evidence_N3 = standard_N3 * [3.0, 0.2, 0.01] + [5.0, -2.0, 0.4]
    return evidence_N3, rng.random(count) < true_N, true_N


def facts(**changes: Any) -> dict[str, Any]:
    failure = Failure()
    words = failure.words(metrics.profile_for("standard", LSP))
    return {"data": "made up", "failure": failure, "profile": "standard", "definition": words, **changes}


def a_report(seed: int = 0, count: int = 800, **changes: Any) -> quality.CalibrationReport:
    evidence_N3, failed_N, _ = people(seed, count)
    return quality.calibrate(evidence_N3, failed_N, [f"p{n}" for n in range(count)], **facts(**changes))


SOUND = {
    "mean_3": np.zeros(3),
    "sd_3": np.ones(3),
    "weight_3": np.ones(3),
    "score_K": np.array([0.0, 1.0]),
    "probability_K": np.array([0.1, 0.9]),
}


# --- Fitting


def test_the_true_probabilities_are_found_again() -> None:
    made = c.fit(*people(0, 6000)[:2])
    fresh_N3, _, true_N = people(1, 4000)
    assert np.abs(made.probability(fresh_N3) - true_N).mean() < 0.02
    np.testing.assert_allclose(made.weight_3, [1.0, 0.5, 1.5], atol=0.12)
    np.testing.assert_allclose(made.mean_3, [5.0, -2.0, 0.4], rtol=0.02)


def test_a_map_that_no_logistic_curve_can_follow_is_calibrated_all_the_same() -> None:
    rng = np.random.default_rng(3)
    step_N = rng.normal(size=6000)
    failed_N = rng.random(6000) < np.where(step_N > 1.0, 0.6, 0.1)
    evidence_N3 = np.column_stack([step_N, rng.normal(size=(6000, 2))])
    made = c.fit(evidence_N3, failed_N)
    for value, rate in ((-0.5, 0.1), (2.0, 0.6)):
        assert made.probability(np.array([[value, 0, 0]]))[0] == pytest.approx(rate, abs=0.05)


def test_evidence_that_speaks_against_failures_gets_no_weight() -> None:
    evidence_N3, failed_N, _ = people(0, 3000, pull=(2.0, -1.0, 0.0))
    weight_3 = c.fit(evidence_N3, failed_N).weight_3
    assert weight_3[1] == 0.0
    assert weight_3[0] > 1.0
    assert weight_3[2] < 0.15


def test_evidence_that_never_varies_is_left_out() -> None:
    evidence_N3, failed_N, _ = people(0, 500)
    evidence_N3[:, 1] = 7.0
    made = c.fit(evidence_N3, failed_N)
    assert made.weight_3[1] == 0.0
    assert made.sd_3[1] == 1.0


def test_evidence_that_says_nothing_at_all_gives_everybody_the_same_rate_and_a_warning() -> None:
    failed_N = np.arange(400) % 4 == 0
    made = c.fit(np.ones((400, 3)), failed_N)
    np.testing.assert_allclose(made.probability(np.array([[-9.0, 1, 1], [9.0, 1, 1]])), 0.25, atol=0.01)
    ids = [f"p{n}" for n in range(400)]
    report = quality.calibrate(np.ones((400, 3)), failed_N, ids, **facts())
    assert "of no use" in report.warnings[0]
    assert report.auroc == 0.5


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_data_the_knots_rise_and_more_evidence_never_lowers_the_probability(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 40))
    number = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e4, 1e4))
    evidence_N3 = np.array(data.draw(st.lists(st.tuples(number, number, number), min_size=count, max_size=count)))
    failed_N = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    failed_N[:2] = [True, False]
    made = c.fit(evidence_N3, failed_N)
    assert (np.diff(made.score_K) > 0).all()
    assert (np.diff(made.probability_K) >= 0).all()
    assert 0 < made.probability_K[0] <= made.probability_K[-1] < 1
    before_N3 = np.array(data.draw(st.lists(st.tuples(number, number, number), min_size=1, max_size=10)))
    more_N3 = np.array(data.draw(st.lists(st.floats(0, 1e4), min_size=3, max_size=3)))
    assert (made.probability(before_N3 + more_N3) >= made.probability(before_N3)).all()


def test_classes_that_one_score_separates_do_not_reach_certainty() -> None:
    evidence_N3 = np.column_stack([np.arange(100.0)] * 3)
    made = c.fit(evidence_N3, np.arange(100) >= 50)
    assert 0 < made.probability_K[0] < 0.05
    assert 0.95 < made.probability_K[-1] < 1
    assert np.isfinite(made.weight_3).all()


def test_each_end_of_the_map_keeps_the_rate_of_its_step() -> None:
    """The knots beyond the last step's centre give back what interpolation takes before it."""
    rng = np.random.default_rng(0)
    score_N = np.sort(rng.normal(size=20_000))
    failed_N = rng.random(20_000) < np.where(score_N < 0, 0.2, 0.7)
    score_K, probability_K = c.centred_isotonic(score_N, failed_N)
    mapped_N = np.interp(score_N, score_K, probability_K)
    for part in (score_N < -0.3, score_N > 0.3):
        assert mapped_N[part].mean() == pytest.approx(failed_N[part].mean(), abs=0.01)
    assert mapped_N.mean() == pytest.approx(failed_N.mean(), abs=0.005)


def test_float32_arithmetic_of_a_graph_gives_the_same_probabilities() -> None:
    """A sum of hinges, as a graph would write it; knots that lay too close would show here."""
    made = c.fit(*people(0, 5000)[:2])
    evidence_N3 = people(1, 5000)[0].astype(np.float32)
    mean_3, sd_3, weight_3, score_K, probability_K = (
        getattr(made, name).astype(np.float32) for name in c.Calibration.__slots__
    )
    score_N = ((evidence_N3 - mean_3) / sd_3) @ weight_3
    slope_K = np.diff(probability_K) / np.diff(score_K)
    gained_NK = np.clip(score_N[:, None] - score_K[:-1], 0, np.diff(score_K)) * slope_K
    hinges_N = probability_K[0] + gained_NK.sum(axis=1)
    assert hinges_N.dtype == np.float32
    np.testing.assert_allclose(hinges_N, made.probability(evidence_N3), atol=1e-5)


def test_between_the_knots_it_is_a_straight_line_and_outside_constant() -> None:
    made = c.Calibration(np.zeros(3), np.ones(3), np.array([1.0, 0, 0]), np.array([0.0, 2]), np.array([0.25, 0.75]))
    evidence_N3 = np.array([[-5.0, 9, 9], [0.5, 9, 9], [1.0, 9, 9], [50.0, 9, 9]])
    np.testing.assert_array_equal(made.probability(evidence_N3), [0.25, 0.375, 0.5, 0.75])


def test_evidence_columns_are_loss_entropy_and_doubt() -> None:
    made_N3 = c.evidence(np.array([1.0, 2]), np.array([3.0, 4]), np.array([[0.5, 1.0], [0.25, 0.25]]))
    np.testing.assert_array_equal(made_N3, [[1, 3, 0.25], [2, 4, 0.75]])


def test_the_halves_depend_on_the_id_alone() -> None:
    ids = [f"lsp/im{n:04d}" for n in range(2000)]
    fits_N = c.fitting_half(ids)
    assert 900 < fits_N.sum() < 1100
    np.testing.assert_array_equal(c.fitting_half(ids[::-1]), fits_N[::-1])


# --- Bad input


@pytest.mark.parametrize(
    ("evidence_N3", "failed_N", "says"),
    [
        (np.empty((0, 3)), np.empty(0, dtype=bool), "nobody"),
        (
            np.ones((4, 3)),
            np.zeros(4, dtype=bool),
            r"0 of 4 people failed; both.* too easy.*--calibration.*--failure, --failure-limit",
        ),
        (
            np.ones((4, 3)),
            np.ones(4, dtype=bool),
            r"4 of 4 people failed; both.* too weak.*--calibration.*--failure, --failure-limit",
        ),
        (np.array([[1.0, 2, 3], [1, np.nan, 3]]), np.array([True, False]), "entropy = nan in row 1"),
        (np.array([[1.0, 2, 3], [np.inf, 2, 3]]), np.array([True, False]), "predicted_loss = inf in row 1"),
        (np.ones((4, 2)), np.zeros(4, dtype=bool), r"shape \(4, 2\)"),
        (np.ones((4, 3)), np.zeros(3, dtype=bool), r"must be 4 booleans, got bool \(3,\)"),
        (np.ones((2, 3)), np.array([0, 1]), "must be 2 booleans, got int64"),
    ],
)
def test_sets_that_cannot_be_fitted_are_refused(evidence_N3: Array, failed_N: Bools, says: str) -> None:
    with pytest.raises(DataError, match=says):
        c.fit(evidence_N3, failed_N)


def test_a_half_of_one_class_is_refused_by_name() -> None:
    evidence_N3, _, _ = people(0, 100)
    ids = [f"p{n}" for n in range(100)]
    with pytest.raises(DataError, match="the half that measures it: 0 of"):
        quality.calibrate(evidence_N3, c.fitting_half(ids) & (evidence_N3[:, 0] > 5), ids, **facts())
    with pytest.raises(DataError, match="99 ids must belong"):
        quality.calibrate(evidence_N3, evidence_N3[:, 0] > 5, ids[1:], **facts())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight_3": np.array([1.0, -0.1, 0])}, "not negative"),
        ({"sd_3": np.array([1.0, 0, 1])}, "positive"),
        ({"mean_3": np.array([np.nan, 0, 0])}, "finite"),
        ({"mean_3": np.zeros(2)}, "mean_3 has 2 numbers"),
        ({"score_K": np.array([0.0, 0.0])}, "must rise"),
        ({"score_K": np.array([1.0, 1.0 + 1e-12])}, "must rise"),
        ({"probability_K": np.array([0.5, 0.4])}, "must not fall"),
        ({"probability_K": np.array([0.5, 1.5])}, "leaves"),
        ({"score_K": np.array([0.0]), "probability_K": np.array([0.5])}, "two or more knots"),
        ({"probability_K": np.array([0.1, 0.2, 0.3])}, "two or more knots"),
    ],
)
def test_a_calibration_that_could_not_be_monotone_is_refused(change: dict[str, Array], says: str) -> None:
    with pytest.raises(DataError, match=says):
        c.Calibration(**(SOUND | change))


def test_a_calibration_survives_json_and_a_damaged_one_does_not() -> None:
    made = c.fit(*people(0, 500)[:2])
    stored = json.loads(json.dumps(made.to_json()))
    again = c.Calibration.from_json(stored)
    for name in c.Calibration.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
    for damaged in ({**stored, "evidence": ["entropy"]}, {**stored, "weight": ["x", 1, 2]}, {}):
        with pytest.raises(DataError, match="not a calibration"):
            c.Calibration.from_json(damaged)


# --- What is measured


def test_the_calibration_error_of_cases_made_by_hand() -> None:
    failed_N = np.array([True, False, False, False])
    # One bin at 0.25, and a quarter fails: no error. Said 0.75, it is half a unit off for everybody.
    assert ece_equal_width(np.full(4, 0.25), failed_N, quality.BINS) == pytest.approx(0.0)
    assert ece_equal_width(np.full(4, 0.75), failed_N, quality.BINS) == pytest.approx(0.5)
    # Two bins: |0.95 - 1| for one person, |0.05 - 0| for three.
    assert ece_equal_width(np.array([0.95, 0.05, 0.05, 0.05]), failed_N, quality.BINS) == pytest.approx(0.05)
    # Certainty that is right, in the last bin and the first.
    assert ece_equal_width(np.array([1.0, 0, 0, 0]), failed_N, quality.BINS) == 0.0


def test_the_reliability_bins_account_for_everybody() -> None:
    probability_N, failed_N = np.array([0.0, 0.05, 0.1, 0.55, 1.0]), np.array([False, True, False, True, True])
    bins = quality.reliability(probability_N, failed_N)
    assert [each.count for each in bins] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert [each.failures for each in bins] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert bins[0].mean_probability == pytest.approx(0.025)
    assert bins[0].rate == 0.5
    assert bins[2].rate is None is bins[2].mean_probability
    assert sum(quality.histogram(probability_N)) == 5
    assert quality.histogram(probability_N)[-1] == 1
    assert len(quality.histogram(probability_N)) == 64


def test_chance_alone_stays_below_its_95th_percentile_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    probability_N = rng.beta(0.6, 1.5, 300)
    limit = quality.ece_by_chance(probability_N)
    draws_RN = rng.random((600, 300)) < probability_N
    below = [ece_equal_width(probability_N, failed_N, quality.BINS) <= limit for failed_N in draws_RN]
    assert 0.92 < np.mean(below) < 0.98


def test_the_report_measures_the_half_that_fitted_nothing() -> None:
    count = 900
    evidence_N3, failed_N, _ = people(4, count)
    ids = [f"p{n}" for n in range(count)]
    defined_N = np.arange(count) % 10 != 0
    report = quality.calibrate(evidence_N3, failed_N, ids, defined_N=defined_N, **facts())
    fits_N = c.fitting_half(ids)
    first_N, used_N = fits_N & defined_N, ~fits_N & defined_N
    assert (report.fitted, report.measured, report.undefined) == (first_N.sum(), used_N.sum(), 90)
    probability_N = c.fit(evidence_N3[first_N], failed_N[first_N]).probability(evidence_N3[used_N])
    assert report.auroc == metrics.auroc(probability_N.astype(np.float32), failed_N[used_N])
    assert report.aurc == metrics.aurc(probability_N.astype(np.float32), failed_N[used_N])
    assert report.aurc_oracle < report.aurc < report.aurc_random == report.failure_rate
    assert report.auroc_alone["doubt"] == metrics.auroc(evidence_N3[used_N, 2], failed_N[used_N])
    assert report.auroc > max(report.auroc_alone.values())
    assert report.risk[-1] == pytest.approx(report.failure_rate)
    assert report.brier < report.brier_constant
    assert sum(report.histogram) == report.fitted + report.measured
    assert sum(report.histogram_failed) == report.measured_failures == failed_N[used_N].sum()
    assert sum(report.histogram_fine) + report.measured_failures == report.measured


def test_labels_of_the_measuring_half_do_not_touch_the_calibration() -> None:
    evidence_N3, failed_N, _ = people(4, 400)
    ids = [f"p{n}" for n in range(400)]
    other_N = np.where(c.fitting_half(ids), failed_N, ~failed_N)
    first, second = (quality.calibrate(evidence_N3, labels_N, ids, **facts()) for labels_N in (failed_N, other_N))
    assert first.calibration.to_json() == second.calibration.to_json()
    assert second.auroc < 0.5 < first.auroc


def test_a_calibrated_model_is_within_chance_and_a_shifted_one_is_not() -> None:
    report = a_report(count=3000)
    assert report.ece < 1.2 * report.ece_by_chance
    evidence_N3, failed_N, _ = people(9, 2000, base=2.0)
    elsewhere = shift.apply(report, evidence_N3, failed_N, "elsewhere")
    assert elsewhere.ece > 3 * elsewhere.ece_by_chance
    assert (elsewhere.people, elsewhere.failures) == (2000, failed_N.sum())
    assert from_json(shift.Applied, json.loads(json.dumps(to_json(elsewhere)))) == elsewhere
    with pytest.raises(DataError, match="Applied: missing"):
        from_json(shift.Applied, {"bins": [1]})


def test_a_threshold_at_work_counts_what_it_catches() -> None:
    report = a_report()
    evidence_N3, failed_N, _ = people(5, 1000)
    probability_N = report.calibration.probability(evidence_N3)
    for made, found in zip(report.thresholds, shift.apply(report, evidence_N3, failed_N, "there").catches, strict=True):
        assert made.threshold is not None
        assert found.caught == (probability_N[failed_N] >= made.threshold).sum()
        assert found.flagged == (probability_N >= made.threshold).mean()
        assert found.low < found.observed < found.high


def test_a_report_names_its_thresholds_and_comes_back_from_json() -> None:
    report = a_report(failure=Failure("mean-error", 0.08))
    stored = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert to_json(from_json(quality.CalibrationReport, stored)) == stored
    assert report.threshold(0.9).catch == 0.9
    with pytest.raises(DataError, match=r"there are: 0\.8, 0\.9, 0\.95"):
        report.threshold(0.5)


def test_few_failures_are_warned_about() -> None:
    report = a_report(count=120)
    assert any("failures measured: the numbers are rough" in warning for warning in report.warnings)
