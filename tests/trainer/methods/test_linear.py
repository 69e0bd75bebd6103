"""The closed forms of linear regression against Monte Carlo, and against numpy's own least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.methods import linear
from alpose.trainer.methods.linear import (
    Ensemble,
    expected_gradient_length,
    expected_model_change,
    fit_ensemble,
    select,
)

Doubles = npt.NDArray[np.float64]


def table(rows: int = 40, columns: int = 3, seed: int = 0) -> tuple[Doubles, Doubles]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns)) * [1.0, 0.3, 2.0][:columns]
    return x, x @ np.arange(1.0, columns + 1) + 0.7 + 0.5 * rng.normal(size=rows)


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    return fit_ensemble(*table(), members=7, rng=np.random.default_rng(1))


def test_members_are_the_least_squares_of_their_bootstrap_samples(ensemble: Ensemble) -> None:
    x, y = table()
    x1 = np.hstack([x, np.ones((40, 1))])
    np.testing.assert_allclose(ensemble.whole_D, np.linalg.lstsq(x1, y, rcond=None)[0], rtol=1e-10)

    rng = np.random.default_rng(1)
    for theta, noise, root in zip(ensemble.member_KD, ensemble.noise_K, ensemble.root_KDD, strict=True):
        sample = rng.integers(40, size=40)
        found, residual, _, _ = np.linalg.lstsq(x1[sample], y[sample], rcond=None)
        np.testing.assert_allclose(theta, found, rtol=1e-9)
        assert noise == pytest.approx(residual[0] / (40 - 4))
        np.testing.assert_allclose(root @ root.T, np.linalg.inv(x1[sample].T @ x1[sample]), rtol=1e-8, atol=1e-12)


def test_the_closed_form_is_the_mean_squared_gradient_over_drawn_targets(ensemble: Ensemble) -> None:
    """EGL++ paper, Eq. 5 by Monte Carlo: y from every member's predictive normal, gradient of (f_z(x) - y)²/2."""
    rng = np.random.default_rng(2)
    x, _ = table(5, seed=3)
    drawn = np.zeros(5)
    for row, point in enumerate(np.hstack([x, np.ones((5, 1))])):
        for theta, noise, root in zip(ensemble.member_KD, ensemble.noise_K, ensemble.root_KDD, strict=True):
            spread = np.sqrt(noise * (1 + ((point @ root) ** 2).sum()))
            y = rng.normal(point @ theta, spread, size=400_000)
            residual = point @ ensemble.whole_D - y
            drawn[row] += (residual**2).mean() * (point @ point) / 7

    np.testing.assert_allclose(expected_gradient_length(ensemble, x), drawn, rtol=4e-3)


def test_the_predictive_variance_is_that_of_new_targets_around_predictions() -> None:
    """Supplement, Eq. 3: over data sets of known noise, Var(y - x·θ̂) = σ²(1 + xᵀ(XᵀX)⁻¹x)."""
    rng = np.random.default_rng(4)
    x, _ = table(8)
    point, theta, sigma = np.array([2.0, -1.0, 3.0]), np.array([1.0, 2.0, 3.0]), 0.5
    y = x @ theta + sigma * rng.normal(size=(200_000, 8))
    fitted = y @ np.linalg.pinv(x).T
    error = point @ theta + sigma * rng.normal(size=200_000) - fitted @ point
    root = linear._fit(x, y[0])[2]  # type: ignore[index]
    assert error.var() == pytest.approx(sigma**2 * (1 + ((point @ root) ** 2).sum()), rel=0.01)
    noise = np.array([linear._fit(x, sample)[1] for sample in y[:4000]])  # type: ignore[index]
    assert noise.mean() == pytest.approx(sigma**2, rel=0.03)


def test_model_change_is_the_mean_length_of_the_members_gradients(ensemble: Ensemble) -> None:
    x, _ = table(6, seed=5)
    x1 = np.hstack([x, np.ones((6, 1))])
    slow = [np.mean([np.linalg.norm((row @ ensemble.whole_D - row @ theta) * row) for theta in ensemble.member_KD])
            for row in x1]  # fmt: skip
    np.testing.assert_allclose(expected_model_change(ensemble, x), slow, rtol=1e-10)


def test_blocks_do_not_change_scores(ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = table(50, seed=6)
    whole = expected_gradient_length(ensemble, x), expected_model_change(ensemble, x)
    monkeypatch.setattr(linear, "AT_ONCE", 7 * 4 * 3)
    np.testing.assert_allclose(expected_gradient_length(ensemble, x), whole[0], rtol=1e-12)
    np.testing.assert_allclose(expected_model_change(ensemble, x), whole[1], rtol=1e-12)


@pytest.mark.parametrize("criterion", linear.CRITERIA)
def test_the_highest_scores_are_selected_and_follow_the_seed(criterion: linear.Criterion) -> None:
    x, y = table()
    pool, _ = table(100, seed=7)
    rows, score = select(criterion, x, y, pool, 5, np.random.default_rng(0))
    again, _ = select(criterion, x, y, pool, 5, np.random.default_rng(0))
    assert rows.tolist() == again.tolist() == np.argsort(-score)[:5].tolist()


def test_a_sample_without_a_rare_category_is_drawn_again() -> None:
    x, y = table(30)
    rare = np.zeros((30, 1))
    rare[:2] = 1.0  # a bootstrap sample lacks both with probability 0.13
    fitted = fit_ensemble(np.hstack([x, rare]), y, 40, np.random.default_rng(0))
    assert fitted.redrawn > 0
    assert np.isfinite(fitted.member_KD).all()
    assert np.abs(fitted.member_KD).max() < 100


@pytest.mark.parametrize(
    ("x", "y", "message", "error"),
    [
        (np.ones((4, 3)), np.ones(4), "4 columns with the intercept want at least 6 labelled rows, there are 4", ConfigError),
        (np.full((9, 1), np.nan), np.ones(9), "9 numbers that are not finite, first in row 0", DataError),
        (np.arange(9.0)[:, None], np.full(9, np.inf), "9 of 9 targets", DataError),
        (np.arange(9.0)[:, None], np.ones(8), "targets of shape", DataError),
        (np.arange(9.0), np.ones(9), "rows and columns", DataError),
        (np.stack([np.arange(9.0)] * 2, axis=1), np.arange(9.0), "linearly dependent", DataError),
    ],
)  # fmt: skip
def test_bad_tables_are_refused(x: Any, y: Any, message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=message):
        fit_ensemble(x, y, 3, np.random.default_rng(0))


def test_a_pool_of_other_columns_and_a_perfect_fit_are_refused(ensemble: Ensemble) -> None:
    with pytest.raises(DataError, match="fitted to 3 columns, the pool has 2"):
        expected_gradient_length(ensemble, np.ones((4, 2)))
    with pytest.raises(DataError, match="all 6 scores are"):
        select("model-change", np.arange(9.0)[:, None], np.zeros(9), np.ones((6, 1)), 2, np.random.default_rng(0))
