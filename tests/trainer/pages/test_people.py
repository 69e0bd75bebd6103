"""People beside their nearest labelled neighbours.

Shapes: L labelled people, Q people looked at, K neighbours of each, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.trainer.cycles.results import Lookalikes
from alpose.trainer.data.crops import Crops
from alpose.trainer.methods.nearest_neighbours import SIDE_PX, _small, nearest_neighbours
from alpose.trainer.methods.options import EglConfig
from alpose.trainer.methods.selection import Selection
from alpose.trainer.pages.people import neighbours
from alpose.trainer.scoring import Scored


def scored(embedding_ND: np.ndarray, crops: Crops) -> Scored:
    """Embeddings, and the truth as prediction."""
    plain: dict[str, Any] = {name: np.zeros(len(crops), dtype=np.float32) for name in Scored.__dataclass_fields__}
    maps: dict[str, Any] = {n: {} for n, f in Scored.__dataclass_fields__.items() if "Mapping" in str(f.type)}
    near = {"coarsest_ND": embedding_ND.astype(np.float32), "embedding_ND": -embedding_ND.astype(np.float32)}
    return Scored(**{**plain, **maps, **near, "predicted_NJ2": crops.joints_NJ2})


@pytest.mark.parametrize("method", ["random", "ll", "egl++"])
def test_lookalikes_are_the_nearest_labelled_people(
    method: str, make_crops: Callable[..., Crops], tmp_path: Path
) -> None:
    """Against brute force; the first picks, then the lowest scores but for random; egl++ weighs them."""
    pool, labelled = make_crops(30, seed=1), make_crops(25, seed=2)
    labelled.data.labelled_NJ[4] = False  # nobody's lookalike
    generator = np.random.default_rng(3)
    pool_ND, labelled_LD = generator.normal(size=(30, 5)), generator.normal(size=(25, 5))
    selection = Selection(np.arange(29, 9, -1), np.arange(30, dtype=np.float32))
    found = nearest_neighbours(method, pool, scored(pool_ND, pool), labelled, scored(labelled_LD, labelled), selection,
                       EglConfig(neighbours=10, perplexity=5))  # fmt: skip
    found.save(tmp_path / "lookalikes.npz")
    back = Lookalikes.load(tmp_path / "lookalikes.npz")
    rows = [29, 28, 27, 26, 25, 24, *([] if method == "random" else [0, 1])]

    assert back.ids == tuple(pool.data.ids[n] for n in rows)
    assert back.first == 6
    distance_QL = np.linalg.norm(pool_ND[rows][:, None] - labelled_LD, axis=2)
    distance_QL[:, 4] = np.inf
    nearest_QK = np.argsort(distance_QL, axis=1)[:, :5]
    ids = [[back.near_ids[n] for n in near_K] for near_K in back.row_QK.tolist()]
    assert ids == [[labelled.data.ids[n] for n in near_K] for near_K in nearest_QK.tolist()]
    assert back.distance_QK == pytest.approx(np.take_along_axis(distance_QL, nearest_QK, 1), rel=1e-5)
    assert np.isfinite(back.weight_QK).all() == (method == "egl++")
    assert len(back.near_crops_USS3) == len(set(back.near_ids)) <= 5 * len(rows)
    page = neighbours(back)
    assert page is not None
    assert page.weighted == (method == "egl++")
    assert [group.title for group in page.groups[5:]] == [
        "Selected sixth",
        *["Among the lowest scores"] * (len(rows) - 6),
    ]


def test_large_crops_are_kept_small() -> None:
    """A pixel's place is scaled with its picture."""
    large = np.zeros((1, 2 * SIDE_PX, 2 * SIDE_PX, 3), dtype=np.uint8)
    large[0, 100:102, 60:62] = 255
    small, scale = _small(large)

    assert small.shape == (1, SIDE_PX, SIDE_PX, 3)
    assert scale == 0.5
    assert np.argwhere(small[0, ..., 0] > 200).tolist() == [[50, 30]]
