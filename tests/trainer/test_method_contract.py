"""What every registered selection method promises, whichever it is: a new entry of the catalog is held to this suite."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer import checkpoint
from alpose.trainer.checkpoint import PoseModel
from alpose.trainer.cycles.results import stage_folder
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.methods.catalog import METHODS, Look, Method, heads_of, maps_for, register, resolve
from alpose.trainer.methods.options import EglConfig, ScoreOptions
from alpose.trainer.methods.selection import Pool, PoolImages, Selection, select
from alpose.trainer.scoring import Scored

PEOPLE, LABELLED, BUDGET = 12, 8, 5
EVERY = pytest.mark.parametrize("name", METHODS)
SCORING = pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.choose is None])


def random_scores(count: int, seed: int) -> Scored:
    """Numbers that differ in every column."""
    rng = np.random.default_rng(seed)

    def column(*shape: int) -> Any:
        return rng.gamma(2, size=(count, *shape)).astype(np.float32)

    return Scored(
        predicted_NJ2=8 * column(3, 2), distance_NJ=column(3), peak_NJ=column(3), true_loss_N=column(),
        entropy_N=column(), multipeak_N=column(), embedding_ND=column(6), coarsest_ND=column(6),
        predicted_loss={name: column() for name in heads_of("loss")},
        auxiliary={name: column() for name in heads_of("auxiliary")}, forms={name: column() for name in maps_for(METHODS)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def pool(
    make_crops: Callable[..., Crops], make_model: Callable[..., PoseModel], cpu: DeviceContext,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pool:  # fmt: skip
    """A pool with its pictures, and the other net of a committee of two."""
    folder: Path = tmp_path_factory.mktemp("run")
    config = SimpleNamespace(egl=EglConfig(neighbours=4, perplexity=3), scores=ScoreOptions(members=2), start="cold")
    run: Any = SimpleNamespace(machine=cpu, config=config, folder=folder)
    checkpoint.save(make_model(seed=1), stage_folder(folder, 0, "ensemble-nets", 1) / "member-1")
    images = PoolImages(run, 0, 1, make_model(), make_crops(PEOPLE), make_crops(LABELLED, seed=2))
    image_pck_N = np.linspace(0, 1, PEOPLE, dtype=np.float32)
    return Pool(scored=random_scores(PEOPLE, 0), labelled=random_scores(LABELLED, 1), image_pck_N=image_pck_N,
                rng=np.random.default_rng(0), images=images)  # fmt: skip


def choose(name: str, pool: Pool, k: int = BUDGET, seed: int = 0) -> Selection:
    return select(name, replace(pool, rng=np.random.default_rng(seed)), k)


def of_people(pool: Pool, rows_M: Any) -> Pool:
    """The same people in another order."""
    assert pool.images
    images = replace(pool.images, pool=pool.images.pool.subset(rows_M))
    return replace(pool, scored=pool.scored.take(rows_M), image_pck_N=pool.image_pck_N[rows_M], images=images)


def with_columns(pool: Pool, value: Callable[[Any], Any]) -> Pool:
    """Every score that stands in a column, changed."""
    scored = pool.scored
    changed: dict[str, Any] = {
        name: value(getattr(scored, name)) for name in ("entropy_N", "multipeak_N", "true_loss_N")
    }
    groups: dict[str, Any] = {name: {key: value(one) for key, one in getattr(scored, name).items()}
              for name in ("predicted_loss", "auxiliary", "forms")}  # fmt: skip
    return replace(pool, scored=replace(scored, **changed, **groups))


@EVERY
def test_a_method_chooses_its_budget_and_scores_everybody(name: str, pool: Pool) -> None:
    chosen = choose(name, pool)

    assert len(set(chosen.rows_M.tolist())) == BUDGET
    assert set(chosen.rows_M.tolist()) <= set(range(PEOPLE))
    assert chosen.rows_M.dtype == np.int64
    assert chosen.score_N.shape == (PEOPLE,)
    assert chosen.score_N.dtype == np.float32
    assert np.isfinite(chosen.score_N).all()
    assert len(choose(name, pool, k=PEOPLE).rows_M) == PEOPLE


@SCORING
def test_the_highest_scores_are_chosen(name: str, pool: Pool) -> None:
    chosen = choose(name, pool)

    assert chosen.rows_M.tolist() == np.argsort(-chosen.score_N, kind="stable")[:BUDGET].tolist()


@EVERY
def test_the_same_generator_gives_the_same_choice_and_matters_to_chance_alone(name: str, pool: Pool) -> None:
    one, again, other = (choose(name, pool, seed=seed) for seed in (0, 0, 1))

    np.testing.assert_array_equal(one.rows_M, again.rows_M)
    np.testing.assert_array_equal(one.score_N, again.score_N)
    assert (one.rows_M.tolist() == other.rows_M.tolist()) == (name != "random")


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_the_order_of_the_pool_does_not_matter(name: str, pool: Pool) -> None:
    order_N = np.random.default_rng(3).permutation(PEOPLE)

    one, other = choose(name, pool), choose(name, of_people(pool, order_N))

    assert order_N[other.rows_M].tolist() == one.rows_M.tolist()
    np.testing.assert_allclose(other.score_N, one.score_N[order_N], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.truth is None])
def test_labels_of_the_pool_are_not_looked_at(name: str, pool: Pool) -> None:
    """Nor what follows from them: the true loss, the true PCK, the distances."""
    assert pool.images
    crops = pool.images.pool
    unknown = replace(crops, joints_NJ2=np.full_like(crops.joints_NJ2, np.nan),
                      data=replace(crops.data, labelled_NJ=np.zeros_like(crops.data.labelled_NJ),
                                   visible_NJ=np.zeros_like(crops.data.visible_NJ)))  # fmt: skip
    scored = replace(pool.scored, true_loss_N=np.full_like(pool.scored.true_loss_N, np.nan),
                     distance_NJ=np.full_like(pool.scored.distance_NJ, np.nan))  # fmt: skip
    blind = replace(pool, scored=scored, image_pck_N=np.full_like(pool.image_pck_N, np.nan),
                    images=replace(pool.images, pool=unknown))  # fmt: skip

    np.testing.assert_array_equal(choose(name, blind).score_N, choose(name, pool).score_N)


@pytest.mark.parametrize("k", [0, -1, PEOPLE + 1])
@EVERY
def test_a_budget_that_the_pool_cannot_meet_is_refused(name: str, k: int, pool: Pool) -> None:
    with pytest.raises(ConfigError, match=f"cannot select {k} from a pool of {PEOPLE}: lower --budget"):
        choose(name, pool, k=k)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.head or method.of_maps])
def test_scores_that_prefer_nobody_or_are_not_there_select_nobody(name: str, pool: Pool) -> None:
    """The first rows of the pool would be taken otherwise, and a pool is often sorted."""
    flat = with_columns(pool, lambda column_N: np.full_like(column_N, 1.25))
    with pytest.raises(DataError, match=rf"{re.escape(name)}: all {PEOPLE} scores are 1.25.*choose {BUDGET} of them"):
        choose(name, flat)
    assert len(choose(name, flat, k=PEOPLE).rows_M) == PEOPLE  # where everybody is chosen, nothing has to be preferred
    damaged = with_columns(pool, lambda column_N: np.where(np.arange(PEOPLE) == 3, np.nan, column_N))
    with pytest.raises(DataError, match=rf"1 of {PEOPLE} scores are NaN \(first at row 3\)"):
        choose(name, damaged)
    without = replace(pool, scored=replace(pool.scored, predicted_loss={}, auxiliary={}, forms={}))
    with pytest.raises(ConfigError, match=rf"{re.escape(name)} (ranks by its|was not computed).*: none\)"):
        choose(name, without)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.reads_images])
def test_a_method_that_reads_pictures_asks_for_them(name: str, pool: Pool) -> None:
    with pytest.raises(ConfigError, match=rf"{re.escape(name)} scores the pool in a second pass"):
        choose(name, replace(pool, images=None))


def test_every_entry_can_be_drawn_told_apart_and_imported() -> None:
    looks = {(method.look.light, method.look.dash, method.look.marker) for method in METHODS.values()}
    assert len(looks) == len(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.look.meaning
        parts = (method.score, method.choose, method.of_maps, method.prepare, method.check)
        head = (method.head.module, method.head.loss, method.head.train, method.head.score) if method.head else ()
        assert all(callable(resolve(part)) for part in (*parts, *head) if part is not None)


def test_a_new_method_is_one_entry(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alpose.trainer.methods.catalog.METHODS", dict(METHODS))
    look = Look("#000000", "#ffffff", meaning="lowest peak first")
    method = register(Method("timid", look, score=lambda pool: 1 - pool.scored.peak_NJ.mean(axis=1)))

    with pytest.raises(ConfigError, match="'timid' is registered already"):
        register(method)
    with pytest.raises(ConfigError, match=r"'both' must rank in exactly one way.*score, of_maps"):
        Method("both", look, score=len, of_maps=len)
    with pytest.raises(ConfigError, match=r"'none' must rank in exactly one way.*got none"):
        Method("none", look)
