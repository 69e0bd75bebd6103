from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from alpose.runtime.errors import ConfigError
from alpose.trainer.measures.metrics import Judged, auroc
from alpose.trainer.methods.selection import Pool, Selection, measure, select
from alpose.trainer.scoring import Scored


def pool(count: int, seed: int = 0, **changes: Any) -> Scored:
    """Numbers that differ in every column."""
    rng = np.random.default_rng(seed)

    def column(*shape: int) -> Any:
        return rng.gamma(2, size=(count, *shape)).astype(np.float32)

    values: dict[str, Any] = {
        "predicted_NJ2": column(4, 2), "distance_NJ": column(4), "peak_NJ": column(4), "true_loss_N": column(),
        "entropy_N": column(), "multipeak_N": column(), "embedding_ND": column(6), "coarsest_ND": column(6),
    }  # fmt: skip
    return Scored(**{**values, "predicted_loss": {}, **changes})


def choose(method: str, scored: Scored, k: int = 5, pck: Any = None, seed: int = 0) -> Selection:
    image_pck_N = np.array(np.linspace(0, 1, len(scored.entropy_N)) if pck is None else pck, dtype=np.float32)
    whole = Pool(scored=scored, labelled=pool(3, seed=9), image_pck_N=image_pck_N, rng=np.random.default_rng(seed))
    return select(method, whole, k)


@pytest.mark.parametrize(
    ("method", "column"),
    [("entropy", "entropy_N"), ("multipeak", "multipeak_N"), ("oracle-loss", "true_loss_N")],
)
def test_a_method_ranks_by_its_own_column(method: str, column: str) -> None:
    scored = pool(30)

    np.testing.assert_array_equal(choose(method, scored).score_N, getattr(scored, column))


def test_an_oracle_may_find_everybody_equal() -> None:
    flat_N = np.full(30, 0.5, dtype=np.float32)

    assert choose("oracle-loss", pool(30, true_loss_N=flat_N)).rows_M.tolist() == [0, 1, 2, 3, 4]
    assert len(choose("oracle-pck", pool(30, true_loss_N=flat_N), pck=flat_N).rows_M) == 5


def test_the_score_of_random_tells_nothing_about_the_order_of_the_pool() -> None:
    """A pool is often sorted (by dataset, by image): a chance score has no correlation with the row."""
    score_N = choose("random", pool(4000), k=10).score_N

    # Spearman of independent ranks has standard deviation 1 / sqrt(N - 1).
    assert abs(stats.spearmanr(score_N, np.arange(4000)).statistic) < 5 / math.sqrt(3999)
    # The last half of the pool fails: chance finds them with AUROC 1/2, standard deviation 1 / sqrt(3 N).
    found = auroc(score_N, np.arange(4000) >= 2000)
    assert found == pytest.approx(0.5, abs=5 / math.sqrt(3 * 4000))


def test_the_pck_oracle_takes_the_worst_and_orders_equals_by_their_loss() -> None:
    loss_N = np.array([9, 1, 2, 3, 0], dtype=np.float32)
    chosen = choose("oracle-pck", pool(5, true_loss_N=loss_N), k=5, pck=[1.0, 0.5, 0.5, 0.0, 0.25])

    assert chosen.rows_M.tolist() == [3, 4, 2, 1, 0]


@pytest.mark.parametrize("joints", [14, 16, 17])
def test_the_tie_break_of_the_pck_oracle_never_outweighs_a_joint(joints: int) -> None:
    """The closest two PCK of people with up to J joints differ by 1 / (J (J - 1))."""
    loss_N = np.array([1e6, 0.0], dtype=np.float32)
    close = [1 / (joints - 1), 1 / joints]

    assert choose("oracle-pck", pool(2, true_loss_N=loss_N), k=1, pck=close).rows_M.tolist() == [1]


def test_oracles_never_take_someone_they_know_nothing_of() -> None:
    loss_N = np.array([np.nan, 1, 2], dtype=np.float32)
    scored = pool(3, true_loss_N=loss_N)

    assert choose("oracle-loss", scored, k=2).rows_M.tolist() == [2, 1]
    assert choose("oracle-pck", scored, k=2, pck=[math.nan, 0.5, 0.7]).rows_M.tolist() == [1, 2]
    for method in ("oracle-loss", "oracle-pck"):
        with pytest.raises(ConfigError, match="cannot select 3 from a pool of 2"):
            choose(method, scored, k=3, pck=[math.nan, 0.5, 0.7])


def selection(rows: list[int], score: list[float]) -> Selection:
    return Selection(np.array(rows), np.array(score, dtype=np.float32))


def four_people() -> tuple[Scored, Judged]:
    """Image PCK 1, 1/2, 0, and one that cannot be scored."""
    right_NJ = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], dtype=np.bool_)
    counts_NJ = np.array([[1, 1], [1, 1], [1, 1], [0, 0]], dtype=np.bool_)
    loss_N = np.array([1, 2, 4, np.nan], dtype=np.float32)
    return pool(4, true_loss_N=loss_N), Judged(right_NJ, counts_NJ, macro=False)


def test_measure_by_hand() -> None:
    scored, judged = four_people()
    mine = selection([2, 3], [0.1, 0.2, 0.9, 0.8])

    found = measure(mine, selection([2, 1], [0, 0, 0, 0]), scored, judged)

    assert found.failures == 1  # below one half: the third alone
    assert found.unscored == 1
    assert found.pool_pck == 3 / 6
    assert found.selected_pck == 0.0
    assert found.selected_true_loss == 4.0
    assert found.auroc == 1.0
    assert found.aurc == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert found.precision_at_budget == 1.0
    assert found.spearman == pytest.approx(1.0)
    assert found.gap_closed == pytest.approx((3 / 6 - 0) / (3 / 6 - 1 / 4))


def test_selecting_the_oracles_choice_closes_the_gap() -> None:
    scored, judged = four_people()
    oracle = selection([2, 1], [0, 1, 2, 0])

    assert measure(oracle, oracle, scored, judged).gap_closed == 1.0


def test_a_selection_of_people_who_cannot_be_scored_measures_none() -> None:
    scored, judged = four_people()

    found = measure(selection([3], [0, 1, 2, 3]), selection([2], [0, 0, 1, 0]), scored, judged)

    assert (found.selected_pck, found.selected_true_loss, found.precision_at_budget, found.gap_closed) == (None,) * 4
    assert found.auroc is not None
