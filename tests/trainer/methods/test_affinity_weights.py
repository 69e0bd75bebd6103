"""t-SNE affinities against scikit-learn's own search, against a slow one, and where the usual search collapses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax
from torch import Tensor

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.methods import neighbour_weights
from alpose.trainer.methods.neighbour_weights import by_affinity, conditional


def points(count: int, seed: int, columns: int = 10) -> Tensor:
    return torch.randn(count, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perplexity_of(q_BL: Tensor) -> Tensor:
    return torch.exp(-torch.special.xlogy(q_BL, q_BL).sum(dim=1))


def test_they_are_those_of_scikit_learn() -> None:
    """Its search takes float32 distances, stops at 1e-5, and treats more rows than columns as lists of neighbours."""
    search = pytest.importorskip("sklearn.manifold._utils")._binary_search_perplexity
    square_BL = torch.cdist(points(300, 0), points(100, 1)) ** 2

    theirs = search(square_BL.numpy().astype(np.float32), 20.0, 0)
    ours, solved_B = conditional(square_BL, 20.0)

    assert solved_B.all()
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("perplexity", [1.5, 20.0, 99.0])
def test_every_row_has_the_wanted_perplexity_and_the_root_of_a_slow_search(perplexity: float) -> None:
    square_BL = torch.cdist(points(20, 2), points(100, 3)) ** 2
    q_BL, solved_B = conditional(square_BL, perplexity)

    assert solved_B.all()
    np.testing.assert_allclose(perplexity_of(q_BL), perplexity, rtol=1e-8)
    for square_L, q_L in zip(square_BL.numpy(), q_BL.numpy(), strict=True):

        def excess(log_beta: float, square_L: np.ndarray = square_L) -> float:
            logits_L = -np.exp(log_beta) * square_L
            p_L = softmax(logits_L)
            return float(logsumexp(logits_L) - p_L @ logits_L - np.log(perplexity))

        np.testing.assert_allclose(q_L, softmax(-np.exp(brentq(excess, -20, 10, xtol=1e-13)) * square_L), rtol=1e-6)


@pytest.mark.parametrize("columns", [3, 256])
@pytest.mark.parametrize("away", [0.0, 1.0, 100.0, 1e4])
def test_people_far_from_everything_labelled_have_neighbours_too(away: float, columns: int) -> None:
    """A tight labelled cluster, the pool far off: without subtracting the least distance such rows end uniform."""
    labelled = 0.1 * points(1000, 4, columns)
    pool = 0.1 * points(50, 5, columns)
    pool[:, 0] += away
    near = by_affinity(pool, labelled, perplexity=20.0, count=30)

    assert near.unsolved == 0
    assert (near.mass_N > 0.6).all()  # uniform rows would hold 0.03
    direct = ((pool[:, None] - labelled) ** 2).sum(dim=2).argsort(dim=1)[:, :30]
    assert near.row_NK.tolist() == direct.tolist()
    np.testing.assert_allclose(near.weight_NK.sum(dim=1), 1.0, rtol=1e-12)


def test_neighbours_are_the_nearest_and_their_weights_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, labelled = points(90, 6), points(200, 7)
    square = torch.cdist(pool, labelled) ** 2
    q_NL, _ = conditional(square, 12.0)
    for at_once in (1, 1000, 2**22):
        monkeypatch.setattr(neighbour_weights, "AT_ONCE", at_once)
        near = by_affinity(pool.float(), labelled.float(), perplexity=12.0, count=15)
        assert near.row_NK.tolist() == square.argsort(dim=1)[:, :15].tolist()
        kept = q_NL.gather(1, near.row_NK)
        np.testing.assert_allclose(near.mass_N, kept.sum(dim=1), rtol=1e-4)
        np.testing.assert_allclose(near.weight_NK, kept / kept.sum(dim=1, keepdim=True), rtol=1e-3)


def test_units_do_not_matter() -> None:
    square_BL = torch.cdist(points(20, 8), points(60, 9)) ** 2
    plain, _ = conditional(square_BL, 10.0)
    for unit in (1e-12, 1e12):
        np.testing.assert_allclose(conditional(square_BL * unit, 10.0)[0], plain, rtol=1e-6)


def test_where_too_many_are_equally_near_they_share_and_are_counted() -> None:
    labelled = torch.cat([torch.zeros(25, 2), 5 + points(75, 10, 2).float()])
    near = by_affinity(torch.zeros(2, 2), labelled, perplexity=20.0, count=25)
    assert near.unsolved == 2
    np.testing.assert_allclose(near.weight_NK, 1 / 25)
    everyone = by_affinity(torch.zeros(1, 2), torch.ones(40, 2), perplexity=20.0, count=30)
    np.testing.assert_allclose(everyone.mass_N, 30 / 40)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="30 neighbours at perplexity 20 want at least 30 labelled people, there are 29"
    ):
        by_affinity(points(5, 0), points(29, 1), perplexity=20, count=30)
    with pytest.raises(ConfigError, match="at least 21 labelled people, there are 20"):
        by_affinity(points(5, 0), points(20, 1), perplexity=20, count=5)
    with pytest.raises(ConfigError, match="perplexity must be over 1"):
        by_affinity(points(5, 0), points(20, 1), perplexity=1, count=5)
    damaged = points(5, 0)
    damaged[3, 2] = torch.nan
    with pytest.raises(DataError, match=r"1 of 5 embeddings of the pool are not finite \(first at row 3\)"):
        by_affinity(damaged, points(40, 1), perplexity=20, count=30)
    with pytest.raises(DataError, match="of the labelled set"):
        by_affinity(points(5, 0), torch.cat([damaged] * 8), perplexity=20, count=30)
