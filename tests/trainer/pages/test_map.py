"""The t-SNE map of a pool: who is near whom, when it is made again, and why there may be none.

Shapes: N people of the pool, L labelled, D embedding, P people on the map.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alpose.trainer.cycles.results import Scores, save_npz
from alpose.trainer.pages import map as tsne
from alpose.trainer.pages.run_folder import RunInfo, StageFiles

from .runs import facts, row, scores


def write_map_run(run: Path) -> tuple[RunInfo, StageFiles, np.ndarray]:
    """Two far clusters of embeddings in the pool, labelled people before and after; ``ll`` picks from the second."""
    generator = np.random.default_rng(0)
    far_N = np.arange(60) % 2
    pool_ND = generator.normal(0, 0.3, (60, 4)) + 10 * far_N[:, None]
    pool = scores(60, np.flatnonzero(far_N)[:10].tolist())
    other = Scores(pool.ids, pool.score_N, pool.true_loss_N, pool.image_pck_N, np.arange(10))
    labelled_LD, loss_L = generator.normal(0, 0.3, (6, 4)), np.full(6, 77, dtype=np.float32)
    embedding_ND = np.concatenate([labelled_LD[:3], pool_ND, labelled_LD[3:]]).astype(np.float32)
    save_npz(run / "seed-0" / "base" / "scored.npz",
             {"coarsest_ND": embedding_ND, "true_loss_N": np.concatenate([loss_L[:3], pool.true_loss_N, loss_L[3:]])})  # fmt: skip
    stored = StageFiles({("random", 0): other, ("ll", 0): pool}, {}, {}, {}, ())
    return facts([row("random", 0), row("ll", 0)]), stored, far_N


def test_the_map_keeps_neighbours_together_and_shows_who_was_selected(tmp_path: Path) -> None:
    """Everybody's nearest on the map is of the same cluster; dots of ``ll`` are its ten people."""
    told, stored, far_N = write_map_run(tmp_path)
    found = tsne.map_of(tmp_path, told, stored)
    assert not isinstance(found, str)
    kept = np.load(tmp_path / tsne.MAP, allow_pickle=False)
    row_P, xy_P2 = kept["row_P"], kept["xy_P2"]
    cluster_P = np.where(row_P < 0, 0, far_N[row_P])
    distance_PP = np.linalg.norm(xy_P2[:, None] - xy_P2, axis=2) + np.diag(np.full(len(xy_P2), np.inf))

    assert (cluster_P[distance_PP.argmin(axis=1)] == cluster_P).all()
    assert (found.pool, found.pool_shown, found.labelled_shown) == (60, 60, 6)
    small = {item.method: item for item in found.by_method}["ll"]
    assert (small.shown, small.of, small.selected.count("M")) == (10, 10, 10)
    assert set(small.selected.split("M")) <= set(found.others.split("M"))


def test_a_map_is_computed_once_and_again_when_a_selection_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, stored, _ = write_map_run(tmp_path)
    calls = []

    def layout(points_PD: np.ndarray) -> np.ndarray:
        calls.append(len(points_PD))
        return points_PD[:, :2].astype(np.float32)

    monkeypatch.setattr(tsne, "layout", layout)
    first = tsne.map_of(tmp_path, told, stored)

    assert tsne.map_of(tmp_path, told, stored) == first
    assert len(calls) == 1
    fewer = StageFiles({("random", 0): stored.scores["random", 0]}, {}, {}, {}, ())
    assert tsne.map_of(tmp_path, told, fewer) != first
    assert len(calls) == 2
    (tmp_path / tsne.MAP).write_bytes(b"half a file")
    assert tsne.map_of(tmp_path, told, stored) == first
    assert len(calls) == 3


def test_a_map_that_cannot_be_is_told_why(tmp_path: Path) -> None:
    """No file, a file of other people, a collapsed model."""
    told, stored, _ = write_map_run(tmp_path)
    path = tmp_path / "seed-0" / "base" / "scored.npz"
    whole = dict(np.load(path, allow_pickle=False))

    save_npz(path, whole | {"coarsest_ND": np.ones_like(whole["coarsest_ND"])})
    assert "collapsed" in str(tsne.map_of(tmp_path, told, stored))
    save_npz(path, whole | {"true_loss_N": whole["true_loss_N"] + 1})
    assert "not of the people in this pool" in str(tsne.map_of(tmp_path, told, stored))
    path.unlink()
    assert "scored.npz is not there" in str(tsne.map_of(tmp_path, told, stored))
    assert not (tmp_path / tsne.MAP).exists()
