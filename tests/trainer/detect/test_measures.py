"""The measures of one score, against scikit-learn, slow twins and values worked by hand.

Shapes: N people, J joints, B bins.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from alpose.runtime.errors import DataError
from alpose.trainer.detect.measures import (
    Truth,
    chosen_pck,
    false_alarms,
    highest,
    measure,
    precision_at,
    truth_of,
    way_to_oracle,
)
from alpose.trainer.detect.stored import SetScores
from alpose.trainer.measures.metrics import Judged
from alpose.trainer.measures.statistics import BINS, bins_of_equal_mass, ece_equal_mass

Floats = npt.NDArray[np.float64]
people = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40)


def stored(right_NJ: Any, labelled_NJ: Any = None, loss_N: Any = None) -> SetScores:
    right = np.asarray(right_NJ, dtype=np.bool_)
    labelled = np.ones_like(right) if labelled_NJ is None else np.asarray(labelled_NJ, dtype=np.bool_)
    loss = np.arange(len(right), dtype=np.float32) if loss_N is None else np.asarray(loss_N, dtype=np.float32)
    return SetScores(tuple(map(str, range(len(right)))), right, labelled, loss, {})


def truth(failed_N: npt.NDArray[np.bool_], loss_N: Floats) -> Truth:
    """People of two joints, both right or both wrong."""
    return truth_of(stored(np.repeat(~failed_N[:, None], 2, axis=1), loss_N=loss_N), macro=False)


@given(people)
@settings(max_examples=25, deadline=None)
def test_areas_and_thresholds_are_those_of_scikit_learn_with_ties(images: list[tuple[int, bool]]) -> None:
    score_N = np.array([score for score, _ in images], dtype=np.float64)
    failed_N = np.array([failed for _, failed in images])
    found = measure(score_N, truth(failed_N, score_N))

    if failed_N.all() or not failed_N.any():
        assert found.auroc is None
        assert found.fpr_at_catch is None
    else:
        assert found.auroc == pytest.approx(roc_auc_score(failed_N, score_N))
        assert found.auprc == pytest.approx(average_precision_score(failed_N, score_N))
        passing = [t for t in np.unique(score_N) if (score_N[failed_N] >= t).mean() >= 0.95]
        assert found.fpr_at_catch == pytest.approx((score_N[~failed_N] >= max(passing)).mean())


@given(people, st.sampled_from([0.01, 0.05, 0.1, 0.34, 1.0]))
@settings(max_examples=25, deadline=None)
def test_budgets_take_equal_scores_in_the_mean_over_their_orders(images: list[tuple[int, bool]], share: float) -> None:
    """Random tie breaks agree with the weights, on average; the weights add up to the budget."""
    score_N = np.array([score for score, _ in images], dtype=np.float64)
    failed_N = np.array([failed for _, failed in images])
    k = max(1, round(share * len(images)))
    weight_N = highest(score_N, share)
    rng = np.random.default_rng(0)
    rates = [failed_N[np.lexsort((rng.random(len(images)), -score_N))[:k]].mean() for _ in range(100)]

    assert weight_N.sum() == pytest.approx(k)
    assert precision_at(score_N, failed_N, share) == pytest.approx(np.mean(rates), abs=0.2)


def test_excess_aurc_is_zero_for_the_best_order_and_whole_for_the_worst() -> None:
    """Four people, two fail. Best: 0, 0, 1/3, 1/2. Worst: 1, 1, 2/3, 1/2."""
    failed_N = np.array([False, True, False, True])
    best = measure(np.array([0.1, 0.9, 0.2, 0.8]), truth(failed_N, np.arange(4.0)))
    worst = measure(np.array([0.9, 0.1, 0.8, 0.2]), truth(failed_N, np.arange(4.0)))

    assert best.excess_aurc == 0
    assert best.aurc == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert worst.aurc == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    assert worst.excess_aurc == pytest.approx((2 + 1 / 3) / 4)


def test_false_alarms_of_hand_worked_scores() -> None:
    """Twenty failures: 19 are 95 %. The 19th scores 2, and 3 of 10 successes score 2 or more; the 20th costs a fourth."""
    score_N = np.array([3.0] * 18 + [2.0, 1.0] + [4.0, 2.0, 2.5, 1.5] + [0.0] * 6)
    failed_N = np.arange(30) < 20

    assert false_alarms(score_N, failed_N) == pytest.approx(0.3)


def test_chosen_pck_is_that_of_the_tenth_with_the_highest_scores() -> None:
    """Twenty people, so two are chosen; joints count, not people, and macro takes the mean of the joints' shares."""
    right_NJ = np.ones((20, 2), dtype=np.bool_)
    right_NJ[3] = [False, False]
    right_NJ[7] = [True, False]
    labelled_NJ = np.ones((20, 2), dtype=np.bool_)
    labelled_NJ[7, 1] = False
    score_N = np.zeros(20)
    score_N[[3, 7]] = 2.0, 1.0

    assert chosen_pck(Judged(right_NJ, labelled_NJ, False), score_N) == pytest.approx(1 / 3)
    assert chosen_pck(Judged(right_NJ, labelled_NJ, True), score_N) == pytest.approx((1 / 2 + 0) / 2)


@pytest.mark.parametrize("macro", [False, True])
def test_without_ties_chosen_pck_is_the_benchmarks(macro: bool) -> None:
    rng = np.random.default_rng(1)
    judged = Judged(rng.random((50, 4)) < 0.6, rng.random((50, 4)) < 0.8, macro)
    score_N = rng.permutation(50).astype(np.float64)

    assert chosen_pck(judged, score_N) == pytest.approx(judged.pck(np.argsort(-score_N)[:5]))


def test_the_gap_is_closed_by_the_worst_and_open_for_a_constant_score() -> None:
    rng = np.random.default_rng(2)
    right_NJ = rng.random((100, 5)) < rng.random((100, 1))
    loss_N = rng.random(100)
    found = truth_of(stored(right_NJ, loss_N=loss_N), macro=False)
    worst_N = -right_NJ.mean(axis=1) + 1e-4 * loss_N

    assert measure(worst_N, found).gap_closed == pytest.approx(1)
    assert measure(np.zeros(100), found).gap_closed == pytest.approx(0)
    assert measure(np.zeros(100), found).auroc == 0.5


def test_people_without_a_joint_that_counts_are_no_part_of_the_truth() -> None:
    """Half right is no failure."""
    right = [[True, False], [False, False], [True, True]]
    labelled = [[True, True], [True, False], [False, False]]
    found = truth_of(stored(right, labelled, [0.3, 0.7, np.nan]), macro=False)

    assert found.failed_N.tolist() == [False, True]
    assert found.true_loss_N == pytest.approx([0.3, 0.7])
    assert found.pck == pytest.approx(1 / 3)


def test_calibration_error_of_hand_worked_probabilities() -> None:
    """Two bins of two: |0.15 - 0.5| and |0.85 - 1|."""
    probability_N = np.array([0.1, 0.2, 0.8, 0.9])
    failed_N = np.array([True, False, True, True])

    assert ece_equal_mass(probability_N, failed_N, bins=2) == pytest.approx((0.35 + 0.15) / 2)


def test_calibration_does_not_depend_on_the_order_of_equal_probabilities() -> None:
    """All four orders of failures within one probability give the same bins."""
    probability_N = np.array([0.2, 0.5, 0.5, 0.5, 0.5, 0.9])
    for failures in itertools.permutations([True, True, False, False]):
        mean_B, rate_B, count_B = bins_of_equal_mass(probability_N, np.array([False, *failures, True]), bins=3)

        assert rate_B == pytest.approx([0.25, 0.5, 0.75])
        assert mean_B == pytest.approx([0.35, 0.5, 0.7])
        assert count_B.tolist() == [2, 2, 2]


def test_drawn_probabilities_are_calibrated_and_doubled_ones_are_not() -> None:
    rng = np.random.default_rng(3)
    probability_N = rng.random(20_000) / 2
    failed_N = rng.random(20_000) < probability_N
    right = ece_equal_mass(probability_N, failed_N)
    wrong = ece_equal_mass(2 * probability_N, failed_N)

    assert right is not None
    assert wrong is not None
    assert right < 0.02
    assert wrong == pytest.approx(0.25, abs=0.02)
    assert len(bins_of_equal_mass(probability_N, failed_N)[0]) == BINS


def test_only_probabilities_have_a_calibration_error() -> None:
    failed_N = np.array([True, False, True, False])
    score_N = np.array([1.5, 0.2, 0.9, 0.1])

    assert measure(score_N, truth(failed_N, np.arange(4.0))).calibration_error is None
    with pytest.raises(DataError, match=r"1 of 4 scores are not probabilities \(first 1.5\); calibrate them"):
        measure(score_N, truth(failed_N, np.arange(4.0)), probability=True)


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="1 not finite"):
        measure(np.array([np.nan, 1.0]), truth(np.array([True, False]), np.arange(2.0)))


def test_the_way_to_the_oracle() -> None:
    assert way_to_oracle(0.9, 0.8, 1.0) == pytest.approx(0.5)
    assert way_to_oracle(0.7, 0.8, 1.0) == pytest.approx(-0.5)
    assert way_to_oracle(0.9, 1.0, 1.0) is None
    assert way_to_oracle(0.9, None, 1.0) is None
