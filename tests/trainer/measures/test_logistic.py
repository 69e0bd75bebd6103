"""Monotone logistic regression beside scikit-learn's, and where that one has no answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from alpose.runtime.errors import DataError
from alpose.trainer.measures.statistics import LOGISTIC_RIDGE, Logistic, fit_logistic

Floats = npt.NDArray[np.floating[Any]]


def people(count: int, slopes: tuple[float, ...], seed: int = 0) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Evidence on scales of its own, and who failed."""
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(count, len(slopes)))
    failed_N = rng.uniform(size=count) < special.expit(x_NF @ np.array(slopes) - 0.5)
    return x_NF * 7.0 ** np.arange(len(slopes)) + 3, failed_N


@pytest.mark.parametrize("slopes", [(1.5,), (0.8, 1.2, 0.4)], ids=str)
def test_it_is_scikit_learns_where_slopes_come_out_positive(slopes: tuple[float, ...]) -> None:
    """The same two imagined people, the same ridge on standardised evidence."""
    evidence_NF, failed_N = people(4000, slopes)
    found = fit_logistic(evidence_NF, failed_N)
    x_NF = np.concatenate([evidence_NF, evidence_NF.max(axis=0)[None], evidence_NF.min(axis=0)[None]])
    mean_F, deviation_F = x_NF.mean(axis=0), x_NF.std(axis=0)
    theirs = LogisticRegression(C=1 / (2 * LOGISTIC_RIDGE * len(x_NF)), tol=1e-9, max_iter=1000)
    theirs.fit((x_NF - mean_F) / deviation_F, np.append(failed_N, [True, False]))

    assert (theirs.coef_ > 0).all()
    np.testing.assert_allclose(found.slope_F * deviation_F, theirs.coef_[0], rtol=1e-2)
    probability_N = theirs.predict_proba((evidence_NF - mean_F) / deviation_F)[:, 1]
    np.testing.assert_allclose(found(evidence_NF), probability_N, atol=2e-3)


def test_the_ridge_hardly_matters_among_many_people() -> None:
    evidence_NF, failed_N = people(4000, (1.5,))
    theirs = LogisticRegression(C=1e6).fit(evidence_NF, failed_N)

    np.testing.assert_allclose(fit_logistic(evidence_NF, failed_N).slope_F, theirs.coef_[0], rtol=0.05)


def test_the_probability_never_falls_with_evidence() -> None:
    evidence_NF, failed_N = people(300, (1.0, -0.5, 0.0, 0.3))
    found = fit_logistic(evidence_NF, failed_N)

    assert (found.slope_F >= 0).all()
    for column in range(4):
        more_NF = evidence_NF.copy()
        more_NF[:, column] += 10
        assert (found(more_NF) >= found(evidence_NF)).all()


def test_evidence_that_points_the_wrong_way_has_no_weight() -> None:
    evidence_NF, failed_N = people(2000, (1.0, -1.0))
    found = fit_logistic(evidence_NF, failed_N)

    assert found.slope_F[0] > 0
    assert found.slope_F[1] == 0


def test_the_mean_probability_is_the_share_of_failures() -> None:
    evidence_NF, failed_N = people(3000, (1.0, 0.5))

    assert fit_logistic(evidence_NF, failed_N)(evidence_NF).mean() == pytest.approx(failed_N.mean(), abs=2e-3)


def test_the_order_of_one_piece_of_evidence_is_kept() -> None:
    evidence_NF, failed_N = people(500, (0.7,))

    assert np.array_equal(np.argsort(fit_logistic(evidence_NF, failed_N)(evidence_NF)), np.argsort(evidence_NF[:, 0]))


@pytest.mark.parametrize("failed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 200])
def test_when_everybody_or_nobody_failed_there_is_an_answer(failed: bool, count: int) -> None:
    evidence_NF = people(count, (1.0, 1.0))[0]
    found = fit_logistic(evidence_NF, np.full(count, failed))

    assert np.isfinite([*found.slope_F, found.bias]).all()
    if count == 200:
        assert (found(evidence_NF).mean() > 0.9) == failed


def test_what_parts_people_entirely_keeps_a_finite_slope() -> None:
    evidence_N1 = np.linspace(-1, 1, 100)[:, None]
    found = fit_logistic(evidence_N1, evidence_N1[:, 0] > 0)

    assert 0 < float(found.slope_F[0]) < 100
    assert ((found(evidence_N1) > 0.5) == (evidence_N1[:, 0] > 0)).mean() > 0.97


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_the_same_for_everybody_says_nothing_also_where_it_changes_one_day(
    constant: float, dtype: type[np.floating[Any]]
) -> None:
    evidence_NF, failed_N = people(300, (1.0, 0.0))
    evidence_NF = evidence_NF.astype(dtype)
    evidence_NF[:, 1] = constant
    found = fit_logistic(evidence_NF, failed_N)
    alone = fit_logistic(evidence_NF[:, :1], failed_N)

    assert found.slope_F[1] == 0
    elsewhere_NF = evidence_NF + np.array([0, 1], dtype=dtype)
    np.testing.assert_allclose(found(elsewhere_NF), alone(evidence_NF[:, :1]), atol=1e-4)


def test_a_probability_is_the_sigmoid_of_the_sum() -> None:
    logistic = Logistic(np.array([2.0, 0.5]), -1.0)

    np.testing.assert_allclose(logistic(np.array([[0.0, 0.0], [1.0, 2.0]])), special.expit([-1.0, 2.0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_evidence_that_is_not_finite_is_an_error(bad: float) -> None:
    evidence_NF, failed_N = people(20, (1.0,))
    evidence_NF[3] = bad
    with pytest.raises(DataError, match="finite evidence of people, got that of 20"):
        fit_logistic(evidence_NF, failed_N)


def test_nobody_is_an_error() -> None:
    with pytest.raises(DataError, match="got that of 0"):
        fit_logistic(np.zeros((0, 2)), np.zeros(0, dtype=np.bool_))
