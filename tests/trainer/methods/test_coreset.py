from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.data.records import Floats
from alpose.trainer.methods import coreset
from alpose.trainer.methods.coreset import k_centre
from alpose.trainer.methods.selection import top


def points(count: int, dim: int, seed: int, scale: float = 1.0, offset: float = 0.0) -> Floats:
    return (np.random.default_rng(seed).normal(size=(count, dim)) * scale + offset).astype(np.float32)


# --- Coreset


def nearest_slow(points_ND: Floats, centres_CD: Floats) -> Any:
    """Distance of every point to its nearest centre: the whole matrix in float64."""
    difference_NCD = points_ND[:, None].astype(np.float64) - centres_CD[None].astype(np.float64)
    return np.sqrt((difference_NCD**2).sum(axis=2)).min(axis=1)


def greedy_slow(points_ND: Floats, labelled_LD: Floats, k: int) -> list[int]:
    """The plain loop over the whole matrix in float64; argmax takes the lowest of equal rows."""

    def square_distance(centre_D: Any) -> Any:
        gap_ND = points_ND.astype(np.float64) - centre_D
        return (gap_ND * gap_ND).sum(axis=1)

    nearest_N = np.min([square_distance(centre_D) for centre_D in labelled_LD], axis=0)
    picks = []
    for _ in range(k):
        picks.append(int(nearest_N.argmax()))
        nearest_N = np.minimum(nearest_N, square_distance(points_ND[picks[-1]]))
        nearest_N[picks] = -1
    return picks


def cloud(kind: str, count: int, dim: int, rng: np.random.Generator) -> Floats:
    """Points that are hard for bounds: many ties, twins, near-twins far from the origin, one far away."""
    drawn: Any
    match kind:
        case "grid":  # distances are exact, and most of them equal
            drawn = rng.integers(-2, 3, size=(count, dim))
        case "twins":
            drawn = rng.normal(size=(max(1, count // 4), dim))[rng.integers(0, max(1, count // 4), size=count)]
        case "clusters":  # products in float32 cannot tell neighbours apart at all
            drawn = 1e3 * rng.choice([-1, 1], size=(count, 1)) + rng.normal(size=(count, dim))
        case "outlier":
            drawn = rng.normal(size=(count, dim))
            drawn[rng.integers(count)] *= 1e5
        case "far":  # from the origin
            drawn = 3e4 + rng.normal(size=(count, dim))
        case _:
            drawn = rng.normal(size=(count, dim))
    return drawn.astype(np.float32)


@given(
    kind=st.sampled_from(["plain", "grid", "twins", "clusters", "outlier", "far"]),
    count=st.integers(1, 120),
    labelled=st.integers(1, 12),
    dim=st.integers(1, 9),
    seed=st.integers(0, 10_000),
    window=st.sampled_from([1, 2, 7, 1024]),
    batch=st.sampled_from([1, 3, 32]),
    chunk=st.sampled_from([1, 40, 2**22]),
    data=st.data(),
)
@settings(deadline=None, max_examples=120)
def test_k_centre_is_the_float64_loop_to_the_last_tie(
    kind: str, count: int, labelled: int, dim: int, seed: int, window: int, batch: int, chunk: int, data: st.DataObject
) -> None:
    """Whatever the sizes of its windows and blocks: they cost time, never a pick."""
    rng = np.random.default_rng(seed)
    pool, start = cloud(kind, count, dim, rng), cloud(kind, labelled, dim, rng)
    k = data.draw(st.integers(1, count))

    with patch.multiple(coreset, WINDOW=window, MOST=4 * window, BATCH=batch, CHUNK=chunk):
        picks, before_N = k_centre(pool, start, k)

    assert picks.tolist() == greedy_slow(pool, start, k)
    # The distances that are told are exact to a thousandth of how far the points are spread.
    spread = float(np.linalg.norm(np.concatenate([pool, start]) - pool.mean(axis=0), axis=1).max())
    np.testing.assert_allclose(before_N, nearest_slow(pool, start), rtol=1e-4, atol=1e-3 * spread)


@pytest.mark.parametrize("kind", ["plain", "grid", "twins", "clusters"])
def test_a_pool_of_many_windows_is_picked_as_the_float64_loop_picks(kind: str) -> None:
    rng = np.random.default_rng(0)
    pool, start = cloud(kind, 3000, 24, rng), cloud(kind, 40, 24, rng)

    assert k_centre(pool, start, 250)[0].tolist() == greedy_slow(pool, start, 250)


def test_threads_and_tensors_do_not_change_a_pick() -> None:
    pool, start = points(2000, 16, 0), points(20, 16, 1)
    expected, before_N = k_centre(pool, start, 100)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        picks, same_N = k_centre(torch.from_numpy(pool), torch.from_numpy(start).requires_grad_(), 100)
    finally:
        torch.set_num_threads(threads)

    assert picks.tolist() == expected.tolist()
    np.testing.assert_allclose(same_N, before_N, rtol=1e-5)


def test_less_precise_products_that_someone_allowed_are_not_used_and_stay_allowed() -> None:
    pool, start = points(500, 32, 0), points(20, 32, 1)
    expected = k_centre(pool, start, 50)[0].tolist()
    torch.set_float32_matmul_precision("medium")
    try:
        assert k_centre(pool, start, 50)[0].tolist() == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_embeddings_are_never_copied_as_a_whole_nor_the_distances_made() -> None:
    """The largest tensor that comes out of any operation: a window or a block, not the pool."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                aliases = isinstance(tensor, torch.Tensor) and any(
                    tensor.untyped_storage().data_ptr() == a.untyped_storage().data_ptr()
                    for a in args
                    if isinstance(a, torch.Tensor)
                )
                if isinstance(tensor, torch.Tensor) and not aliases:
                    Largest.made = max(Largest.made, tensor.numel())
            return out

    pool, start = points(40_000, 32, 0), points(100, 32, 1)
    with patch.multiple(coreset, CHUNK=2**16), Largest():  # type: ignore[no-untyped-call]
        k_centre(torch.from_numpy(pool), torch.from_numpy(start), 50)

    assert 0 < Largest.made <= 2**19 + 32 < pool.size  # CHECKED rows of 32


def test_the_labelled_set_is_the_first_set_of_centres() -> None:
    """On a line, with someone labelled at 0: the far end 10 first, then 5 (5 away from both)."""
    pool = np.array([[10], [1], [5], [9]], dtype=np.float32)

    picks, before_N = k_centre(pool, np.array([[0]], dtype=np.float32), 3)

    assert picks.tolist()[:2] == [0, 2]
    assert before_N.tolist() == pytest.approx([10, 1, 5, 9])
    # A second one labelled at 9 leaves 5 as the farthest.
    assert k_centre(pool, np.array([[0], [9]], dtype=np.float32), 1)[0].tolist() == [2]


def test_k_centre_does_not_edit_its_inputs() -> None:
    pool, labelled = points(9, 3, 0), points(2, 3, 1)
    before = pool.copy(), labelled.copy()
    k_centre(pool, labelled, 5)

    np.testing.assert_array_equal(pool, before[0])
    np.testing.assert_array_equal(labelled, before[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["pool", "labelled"])
def test_an_embedding_that_is_not_finite_is_refused(bad: float, where: str) -> None:
    pool, labelled = points(5, 3, 0), points(2, 3, 1)
    (pool if where == "pool" else labelled)[1, 1] = bad

    with pytest.raises(DataError, match=r"not finite.*rows 1\)"):
        k_centre(pool, labelled, 2)


def test_rows_that_are_not_finite_are_named_and_counted() -> None:
    pool = points(40_000, 3, 0)
    pool[[7, 20_000, 39_999], [0, 1, 2]] = [np.nan, -np.inf, 1e30]

    with pytest.raises(DataError, match=r"3 of 40000 embeddings of the pool.*rows 7, 20000, 39999\)"):
        k_centre(pool, points(2, 3, 1), 2)
    pool[:20] = np.nan
    with pytest.raises(DataError, match=r"22 of 40000.*rows 0, 1, 2, 3, 4, 5, 6, 7, …\)"):
        k_centre(pool, points(2, 3, 1), 2)


def test_embeddings_of_two_lengths_are_refused() -> None:
    with pytest.raises(DataError, match=r"one length: embeddings are \(5, 3\), labelled ones \(2, 4\)"):
        k_centre(points(5, 3, 0), points(2, 4, 1), 2)


def test_coreset_wants_something_labelled() -> None:
    with pytest.raises(DataError, match="labelled"):
        k_centre(points(5, 3, 0), np.zeros((0, 3), dtype=np.float32), 2)


# --- Top and random


@given(scores=st.lists(st.integers(-4, 4), min_size=1, max_size=30), data=st.data())
@settings(deadline=None, max_examples=40)
def test_top_agrees_with_a_stable_sort(scores: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:k]

    assert top(np.array(scores, dtype=np.float32), k).tolist() == expected


def test_minus_infinity_is_never_chosen() -> None:
    score_N = np.array([-np.inf, 0, -np.inf, 1], dtype=np.float32)

    assert top(score_N, 2).tolist() == [3, 1]
    with pytest.raises(ConfigError, match="3 from a pool of 2"):
        top(score_N, 3)


def test_a_score_that_is_not_a_number_selects_nothing() -> None:
    with pytest.raises(DataError, match=r"1 of 3 scores are NaN.*row 1"):
        top(np.array([1, np.nan, 2], dtype=np.float32), 1)


def test_a_memory_mapped_pool_of_float16_is_picked_from_as_its_float32_copy_is(tmp_path: Path) -> None:
    points_ND = points(3000, 16, 0).astype(np.float16)
    mapped_ND = np.lib.format.open_memmap(tmp_path / "pool.npy", mode="w+", dtype=np.float16, shape=points_ND.shape)
    mapped_ND[:] = points_ND
    start_LD = points(2, 16, 1)
    from_file, wide = (k_centre(each, start_LD, 200) for each in (mapped_ND, points_ND.astype(np.float32)))
    np.testing.assert_array_equal(from_file[0], wide[0])
    np.testing.assert_array_equal(from_file[1], wide[1])
    mapped_ND[7] = np.nan
    with pytest.raises(DataError, match=r"1 of 3000 embeddings of the pool are not finite"):
        k_centre(mapped_ND, start_LD, 200)
