"""The bootstrap, against the resamples written out, and the tests over seeds.

Shapes: D detectors, S seeds, N people, R resamples.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime.errors import DataError
from alpose.trainer.detect import comparing
from alpose.trainer.detect.comparing import Ranked, adjusted, bootstrap, interval, resample_counts
from alpose.trainer.measures.metrics import auroc
from alpose.trainer.measures.statistics import holm, paired_t_test


def fabricated(D: int = 3, S: int = 3, N: int = 60) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The first detector is rounded, so that many scores are equal; the last is the best."""
    rng = np.random.default_rng(5)
    failed_SN = rng.random((S, N)) < 0.3
    noise_D = np.linspace(2.0, 0.5, D)[:, None, None]
    score_DSN = failed_SN + noise_D * rng.normal(size=(D, S, N))
    score_DSN[0] = score_DSN[0].round()
    return score_DSN, failed_SN


def test_every_resample_has_the_auroc_of_its_people_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly, ties among them, for every detector and every seed, over several blocks."""
    monkeypatch.setattr(comparing, "BLOCK", 7)
    score_DSN, failed_SN = fabricated()
    found = bootstrap("abc", score_DSN, failed_SN, resamples=20, seed=4)
    blocks = [count_NR for _, count_NR in resample_counts(60, 20, 4)]
    count_NR = np.concatenate(blocks, axis=1).astype(np.int64)

    assert [block.shape[1] for block in blocks] == [7, 7, 6]
    for d, s, r in itertools.product(range(3), range(3), range(20)):
        taken = np.repeat(np.arange(60), count_NR[:, r])
        assert len(taken) == 60
        slow = auroc(score_DSN[d, s, taken], failed_SN[s, taken])
        assert found.resampled_DSR[d, s, r] == pytest.approx(slow, abs=1e-12)


def test_the_mean_is_that_of_everybody_once() -> None:
    score_DSN, failed_SN = fabricated()
    found = bootstrap("abc", score_DSN, failed_SN, resamples=50)

    for d, name in enumerate("abc"):
        each = [auroc(score_DSN[d, s], failed_SN[s]) for s in range(3)]
        assert found.estimate(name).mean == pytest.approx(np.mean([value for value in each if value is not None]))


def test_a_detector_does_not_differ_from_itself_on_any_resample() -> None:
    """Paired: the same people are drawn for both, and a monotone map changes nothing."""
    score_DSN, failed_SN = fabricated(D=2)
    score_DSN[1] = np.exp(score_DSN[0])
    found = bootstrap("ab", score_DSN, failed_SN, resamples=50).difference("a", "b", "greater")

    assert (found.estimate.people.low, found.estimate.people.high) == (0, 0)
    assert found.p is None
    assert found.reason is not None


def test_a_paired_interval_is_narrower_than_the_two_apart() -> None:
    """Two detectors that share most of their noise, and differ by little."""
    rng = np.random.default_rng(6)
    failed_SN = rng.random((2, 300)) < 0.3
    first_SN = failed_SN + rng.normal(size=(2, 300))
    score_DSN = np.array([first_SN, first_SN + 0.1 * rng.normal(size=(2, 300))])
    found = bootstrap("ab", score_DSN, failed_SN, resamples=400)
    apart = found.difference("a", "b", "greater").estimate.people
    own = found.estimate("a").people

    assert apart.low is not None
    assert apart.high is not None
    assert own.low is not None
    assert own.high is not None
    assert apart.high - apart.low < 0.5 * (own.high - own.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Normal scores one sd apart: the AUROC is Φ(1/√2) = 0.760. Of 80 samples, 95 % ± 3 binomial sd."""
    hits = 0
    for sample in range(80):
        rng = np.random.default_rng((7, sample))
        failed_1N = np.arange(120)[None] < 50
        score_11N = (failed_1N + rng.normal(size=(1, 120)))[None]
        found = bootstrap("a", score_11N, failed_1N, resamples=200, seed=sample).estimate("a").people
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.7602 <= found.high

    assert hits / 80 > 0.95 - 3 * (0.95 * 0.05 / 80) ** 0.5


def test_seeds_that_differ_widen_the_interval_over_seeds_alone() -> None:
    """Three base models of very different detectability."""
    rng = np.random.default_rng(8)
    failed_SN = rng.random((3, 400)) < 0.4
    score_1SN = (failed_SN * np.array([[0.2], [1.0], [3.0]]) + rng.normal(size=(3, 400)))[None]
    found = bootstrap("a", score_1SN, failed_SN, resamples=500).estimate("a")

    assert found.people.low is not None
    assert found.people.high is not None
    assert found.seeds.low is not None
    assert found.seeds.high is not None
    assert found.seeds.high - found.seeds.low > 3 * (found.people.high - found.people.low)


def test_one_seed_has_the_same_interval_twice() -> None:
    score_DSN, failed_SN = fabricated(S=1)
    found = bootstrap("abc", score_DSN, failed_SN, resamples=50).estimate("b")

    assert found.seeds == found.people


def test_the_same_seed_gives_the_same_intervals_and_another_does_not() -> None:
    score_DSN, failed_SN = fabricated()
    first, again, other = (
        bootstrap("abc", score_DSN, failed_SN, resamples=50, seed=s).estimate("a") for s in (0, 0, 1)
    )

    assert first == again
    assert first.people != other.people


def test_resamples_without_a_failure_are_left_out_and_none_at_all_has_no_interval() -> None:
    """One failure of five is drawn by two resamples in three."""
    score_11N = np.array([[[0.0, 1.0, 2.0, 3.0, 1.5]]])
    failed_1N = np.array([[False, False, False, False, True]])
    few = bootstrap("a", score_11N, failed_1N, resamples=300)
    none = bootstrap("a", score_11N, np.zeros((1, 5), dtype=np.bool_), resamples=20).estimate("a")

    assert 0.2 < np.isnan(few.resampled_DSR).mean() < 0.45
    assert few.estimate("a").people.low is not None
    assert (none.mean, none.people.low, none.seeds.high) == (None, None, None)


def test_the_test_over_seeds_is_the_paired_t_test_with_holm() -> None:
    score_DSN, failed_SN = fabricated()
    found = bootstrap("abc", score_DSN, failed_SN, resamples=20)
    differences = [found.difference(name, "a", "greater") for name in "bc"]
    slow = [paired_t_test(found.auroc_DS[d].tolist(), found.auroc_DS[0].tolist(), "greater") for d in (1, 2)]
    p_values = [test.p for test in slow if test.p is not None]

    assert [difference.p for difference in differences] == p_values
    assert [difference.holm for difference in adjusted(differences)] == holm(p_values)
    assert differences[0].per_seed == pytest.approx((found.auroc_DS[1] - found.auroc_DS[0]).tolist())


def test_a_difference_without_a_test_is_no_part_of_the_correction() -> None:
    score_DSN, failed_SN = fabricated()
    found = bootstrap("abc", score_DSN, failed_SN, resamples=20)
    tested, same = found.difference("b", "a", "greater"), found.difference("a", "a", "greater")

    assert [difference.holm for difference in adjusted([same, tested])] == [None, tested.p]


def test_the_interval_is_of_percentiles() -> None:
    found = interval(np.arange(1001.0))

    assert (found.low, found.high) == pytest.approx((25, 975))


def test_scores_that_are_not_finite_and_shapes_that_differ_are_refused() -> None:
    score_DSN, failed_SN = fabricated()
    score_DSN[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="give finite"):
        bootstrap("abc", score_DSN, failed_SN)
    with pytest.raises(DataError, match="for 2 detectors"):
        bootstrap("ab", fabricated()[0], failed_SN)


def test_a_failure_finds_its_place_among_equal_successes() -> None:
    """Scores 1, 1 of successes; failures 0, 1, 2 win 0, one and two halves, four halves of 6 pairs."""
    ranked = Ranked.of(np.array([1.0, 0.0, 1.0, 1.0, 2.0]), np.array([False, True, False, True, True]))

    assert ranked.auroc(np.ones((5, 1), dtype=np.float32))[0] == pytest.approx((0 + 1 + 2) / 6)
