"""Strategies that choose a batch: what every one of them keeps to, and what the odds promise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime.errors import ConfigError
from alpose.trainer.methods.diversity import Nearest, Pick
from alpose.trainer.methods.strategies import DEFAULT, RANDOM, STRATEGIES, Frames, register


def choose(name: str, frames: Frames, k: int, seed: int = 0, min_distance: float = 0.05) -> list[int]:
    return [pick.row for pick in STRATEGIES[name].choose(frames, k, np.random.default_rng(seed), min_distance)]


def frames(count: int = 200, seed: int = 0, failure_N: npt.NDArray[np.float32] | None = None) -> Frames:
    rng = np.random.default_rng(seed)
    drawn_N = rng.beta(1, 3, count).astype(np.float32)
    return Frames.of_one(drawn_N if failure_N is None else failure_N, rng.normal(size=(count, 8)).astype(np.float32))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_chooses_so_many_different_frames_and_the_same_again(name: str) -> None:
    chosen = choose(name, frames(), 30)
    assert len(set(chosen)) == len(chosen) == 30
    assert set(chosen) <= set(range(200))
    assert choose(name, frames(), 30) == chosen
    assert sorted(choose(name, frames(20), 50, min_distance=0.0)) == list(range(20))


def test_the_default_is_one_of_them_and_names_are_taken_once() -> None:
    assert {DEFAULT, RANDOM} <= STRATEGIES.keys()
    with pytest.raises(ConfigError, match="registered already"):
        register(STRATEGIES[DEFAULT])


def test_the_first_is_drawn_in_proportion_to_the_odds_of_a_failure() -> None:
    odds_N = np.array([1, 2, 3, 4], dtype=np.float64)
    failure_N = (odds_N / (1 + odds_N)).astype(np.float32)
    first = [choose("odds", frames(4, failure_N=failure_N), 1, seed)[0] for seed in range(4000)]
    assert np.bincount(first, minlength=4) / 4000 == pytest.approx(odds_N / 10, abs=0.03)


def test_the_odds_find_rare_failures_and_are_chance_where_all_are_alike() -> None:
    def share(failure_N: npt.NDArray[np.float32], seed: int) -> float:
        return float(np.mean(np.array(choose("odds", frames(1000, failure_N=failure_N), 50, seed)) < 50))

    rare_N = np.where(np.arange(1000) < 50, 0.95, 0.4).astype(np.float32)
    assert np.mean([share(rare_N, seed) for seed in range(20)]) > 0.4  # chance: 0.05
    alike_N = np.full(1000, 0.8, dtype=np.float32)
    assert np.mean([share(alike_N, seed) for seed in range(60)]) == pytest.approx(0.05, abs=0.02)


def test_the_odds_leave_near_duplicates_out_and_are_fair_to_devices() -> None:
    rng = np.random.default_rng(0)
    embedding_ND = np.repeat(rng.normal(size=(100, 8)), 3, axis=0)
    embedding_ND = (embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True)).astype(np.float32)
    zero_N, device_N = np.zeros(300, dtype=np.int64), (np.arange(300) >= 270).astype(np.int64)
    failure_N = np.full(300, 0.5, dtype=np.float32)
    given = []
    for seed in range(20):
        one = Frames(failure_N, embedding_ND, zero_N, device_N, Nearest(embedding_ND, zero_N))
        chosen = np.array(choose("odds", one, 40, seed))
        assert len(set((chosen // 3).tolist())) == len(chosen) == 40
        given.append((device_N[chosen] == 1).sum())
    assert np.mean(given) > 5  # a tenth of the frames: chance gives it four


@pytest.mark.parametrize(("failure", "words"), [(0.95, "almost surely wrong (0.95)"), (0.86, "probably wrong (0.86)"), (0.5, "as likely wrong as right (0.50)"), (0.27, "probably right (0.27)"), (0.02, "almost surely right (0.02)")])  # fmt: skip
def test_a_choice_is_explained_in_words(failure: float, words: str) -> None:
    assert STRATEGIES["value"].why(Pick(3, 1.612), failure, first=False) == f"{words}, 1.61 away from all chosen before"
    assert STRATEGIES["top"].why(Pick(3, 9.0), failure, first=True) == words
    assert STRATEGIES[RANDOM].why(Pick(3, 9.0), failure, first=True) == "by chance"


def test_of_what_fails_each_cluster_gives_its_hardest_before_any_gives_a_second() -> None:
    """Ten heaps: in five of them half of the frames fail, in the others none."""
    rng = np.random.default_rng(0)
    heap_N = np.arange(1000) % 10
    embedding_ND = (rng.normal(size=(10, 16))[heap_N] + 0.2 * rng.normal(size=(1000, 16))).astype(np.float32)
    failure_N = np.where((heap_N < 5) & (rng.random(1000) < 0.5), rng.uniform(0.9, 1.0, 1000), 0.02).astype(np.float32)
    chosen = np.array(choose("clusters", Frames.of_one(failure_N, embedding_ND), 40, min_distance=0.0))
    assert (failure_N[chosen] > 0.9).all()
    assert (np.bincount(heap_N[chosen], minlength=10)[:5] >= 3).all()
    hardest = np.array(choose("top", Frames.of_one(failure_N, embedding_ND), 40, min_distance=0.0))
    assert failure_N[chosen].mean() < failure_N[hardest].mean()
