"""Weighted spherical k-means: groups that are there are found, weights draw the centres, spaces stay apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from alpose.trainer.methods import clustering
from alpose.trainer.methods.clustering import clusters_of


def heaps(count: int, heap_N: Any, seed: int = 0, noise: float = 0.1) -> Any:
    """Embeddings of unit length around as many directions as there are heaps."""
    rng = np.random.default_rng(seed)
    at_ND = rng.normal(size=(heap_N.max() + 1, 16))[heap_N] + noise * rng.normal(size=(count, 16))
    return (at_ND / np.linalg.norm(at_ND, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_heaps_that_lie_apart_are_found(dtype: Any) -> None:
    heap_N = np.arange(600) % 6
    found = [
        adjusted_rand_score(heap_N, clusters_of(heaps(600, heap_N).astype(dtype), np.ones(600, np.float32),
                                                np.zeros(600, np.int64), 6, np.random.default_rng(seed)))
        for seed in range(20)
    ]  # fmt: skip
    assert np.median(found) > 0.7  # two of the six first centres often lie in one heap; that is not mended
    assert max(found) == 1


def test_centres_lie_where_the_weight_is() -> None:
    heap_N = np.arange(1000) % 10
    weight_N = np.where(heap_N == 3, 1.0, 1e-3).astype(np.float32)
    cluster_N = clusters_of(
        heaps(1000, heap_N, noise=0.5), weight_N, np.zeros(1000, np.int64), 10, np.random.default_rng(0)
    )
    assert len(np.unique(cluster_N[heap_N == 3])) >= 8


def test_bundles_share_no_cluster_and_have_clusters_by_their_weight() -> None:
    space_N = (np.arange(400) >= 300).astype(np.int64)
    weight_N = np.where(space_N == 1, 3.0, 1.0).astype(np.float32)
    cluster_N = clusters_of(heaps(400, np.arange(400)), weight_N, space_N, 20, np.random.default_rng(0))
    first, second = (set(cluster_N[space_N == space].tolist()) for space in (0, 1))
    assert not first & second
    assert len(first) == len(second) == 10


def test_memory_is_bounded_by_parts_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding_ND, weight_N = heaps(500, np.arange(500) % 7, noise=0.4), np.linspace(0.1, 1, 500, dtype=np.float32)
    arguments = (embedding_ND, weight_N, np.zeros(500, np.int64), 12)
    whole_N = clusters_of(*arguments, np.random.default_rng(1))
    monkeypatch.setattr(clustering, "PAIRS", 300)
    np.testing.assert_array_equal(clusters_of(*arguments, np.random.default_rng(1)), whole_N)


def test_more_clusters_than_frames_and_frames_that_are_all_alike() -> None:
    alike_ND = np.tile(heaps(1, np.zeros(1, np.int64)), (5, 1))
    assert set(
        clusters_of(alike_ND, np.ones(5, np.float32), np.zeros(5, np.int64), 9, np.random.default_rng(0)).tolist()
    ) == {0}
