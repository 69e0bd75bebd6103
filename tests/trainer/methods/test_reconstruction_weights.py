"""Weights of locally linear embedding against scikit-learn's, against a slow solver, and where they are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.methods import neighbour_weights
from alpose.trainer.methods.neighbour_weights import by_reconstruction, weights_of


def points(count: int, seed: int, columns: int) -> Any:
    return np.random.default_rng(seed).normal(size=(count, columns))


def grams(pool_ND: Any, labelled_LD: Any, count: int) -> tuple[Any, Tensor]:
    """The nearest of everybody (N, K), and the products of the differences from them (N, K, K)."""
    row_NK = ((pool_ND[:, None] - labelled_LD) ** 2).sum(axis=2).argsort(axis=1, kind="stable")[:, :count]
    gap_NKD = labelled_LD[row_NK] - pool_ND[:, None]
    return row_NK, torch.from_numpy(gap_NKD @ gap_NKD.transpose(0, 2, 1))


def slow(gram_KK: Any) -> Any:
    """The weights of one person by Lawson and Hanson's solver, on the regularised Gram matrix."""
    count = len(gram_KK)
    trace = np.trace(gram_KK)
    gram_KK = gram_KK / trace + 1e-3 * np.eye(count) if trace > 0 else np.eye(count)
    root_KK = np.linalg.cholesky(gram_KK).T
    weight_K = nnls(root_KK, np.linalg.solve(root_KK.T, np.ones(count)))[0]
    return weight_K / weight_K.sum()


@pytest.mark.parametrize(("columns", "count"), [(3, 12), (64, 30), (20, 1)])
def test_with_either_sign_they_are_the_barycentre_weights_of_scikit_learn(columns: int, count: int) -> None:
    theirs_of = pytest.importorskip("sklearn.manifold._locally_linear").barycenter_weights
    pool, labelled = points(80, 0, columns), points(200, 1, columns)
    row_NK, gram_NKK = grams(pool, labelled, count)

    theirs = theirs_of(pool, labelled, row_NK, reg=neighbour_weights.REGULARISATION)

    np.testing.assert_allclose(weights_of(gram_NKK, signed=True).numpy(), theirs, atol=1e-7)
    positive_N = (theirs >= 0).all(axis=1)
    np.testing.assert_allclose(weights_of(gram_NKK).numpy()[positive_N], theirs[positive_N], atol=1e-7)
    if count > 1:
        assert (theirs < 0).mean() > 0.1  # so that leaving them out is another problem


@given(
    columns=st.integers(1, 40),
    count=st.integers(1, 24),
    seed=st.integers(0, 10_000),
    unit=st.sampled_from([1e-6, 1.0, 1e6]),
    kind=st.sampled_from(["plain", "grid", "line", "far"]),
)
@settings(deadline=None, max_examples=80)
def test_without_negative_ones_they_are_those_of_a_slow_solver(
    columns: int, count: int, seed: int, unit: float, kind: str
) -> None:
    """Also where neighbours coincide, lie on one line, or all lie in one direction."""
    pool, labelled = points(4, seed, columns), points(24, seed + 1, columns)
    if kind == "grid":
        pool, labelled = pool.round(), labelled.round()
    elif kind == "line":
        labelled = labelled[:, :1] * np.ones(columns)
    elif kind == "far":
        pool[:, 0] += 50
    _, gram_NKK = grams(unit * pool, unit * labelled, count)

    found = weights_of(gram_NKK).numpy()

    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
    for gram_KK, weight_K in zip(gram_NKK.numpy(), found, strict=True):
        np.testing.assert_allclose(weight_K, slow(gram_KK), atol=1e-6)


def test_inside_a_triangle_they_rebuild_the_point_and_outside_the_nearest_point_of_it() -> None:
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    inside, beyond_an_edge, beyond_a_corner = torch.tensor([[1.0, 2.0], [2.0, -1.0], [9.0, 0.5]])

    near = by_reconstruction(torch.stack([inside, beyond_an_edge, beyond_a_corner]), corners, count=3)

    rebuilt = torch.einsum("nk,nkd->nd", near.weight_NK, corners.double()[near.row_NK])
    np.testing.assert_allclose(rebuilt, [[1, 2], [2, 0], [4, 0]], atol=0.02)  # the regularisation pulls inwards
    assert near.row_NK[2, 0] == 1
    assert near.weight_NK[2].tolist() == [1, 0, 0]


def test_neighbours_are_the_nearest_and_the_heaviest_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, labelled = points(70, 2, 16), points(150, 3, 16)
    row_NK, gram_NKK = grams(pool, labelled, 12)
    expected = weights_of(gram_NKK).numpy()
    for at_once in (1, 3000, 2**20):
        monkeypatch.setattr(neighbour_weights, "AT_ONCE", at_once)
        near = by_reconstruction(torch.from_numpy(pool), torch.from_numpy(labelled), count=12)
        assert [set(row) for row in near.row_NK.tolist()] == [set(row) for row in row_NK.tolist()]
        assert (near.weight_NK.diff(dim=1) <= 0).all()
        whole, theirs = np.zeros((2, 70, 150))
        np.put_along_axis(whole, near.row_NK.numpy(), near.weight_NK.numpy(), axis=1)
        np.put_along_axis(theirs, row_NK, expected, axis=1)
        np.testing.assert_allclose(whole, theirs, atol=1e-8)
        assert near.unsolved == 0


def test_whoever_lies_on_all_neighbours_shares_alike_and_is_counted() -> None:
    near = by_reconstruction(torch.tensor([[1.0, 1.0], [5.0, 5.0]]), torch.ones(6, 2), count=4)

    np.testing.assert_allclose(near.weight_NK, 1 / 4)
    assert near.unsolved == 1


def test_what_cannot_be_is_refused() -> None:
    pool, labelled = torch.from_numpy(points(5, 0, 3)), torch.from_numpy(points(9, 1, 3))
    with pytest.raises(ConfigError, match="10 neighbours want at least 10 labelled people, there are 9"):
        by_reconstruction(pool, labelled, count=10)
    pool[3, 2] = torch.nan
    with pytest.raises(DataError, match=r"1 of 5 embeddings of the pool are not finite \(first at row 3\)"):
        by_reconstruction(pool, labelled, count=4)
