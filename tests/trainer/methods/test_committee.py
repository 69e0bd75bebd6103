"""``ensemble-nets``: nets of other seeds, trained once each, stopped and continued, and what their disagreement is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.trainer import checkpoint
from alpose.trainer.cycles import base_model
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.results import Results, Scores
from alpose.trainer.cycles.run import RunConfig, open_run
from alpose.trainer.data.catalog import Sizes
from alpose.trainer.device import DeviceContext
from alpose.trainer.methods import committee
from alpose.trainer.methods.committee import member_seed
from alpose.trainer.methods.options import ScoreOptions
from alpose.trainer.scoring import score

STAGES = "seed-0/ensemble-nets"


def config() -> RunConfig:
    return RunConfig.from_preset("smoke", "synthetic", methods=("ensemble-nets",), budget=4, initial=16,
                                 sizes=Sizes(initial=16, pool=16, test=8), scores=ScoreOptions(members=3))  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, cpu: DeviceContext) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("committee")
    return folder, run_benchmark(config(), folder / "run", cpu, data_root=None, cache=folder / "cache")


def test_the_score_is_how_far_apart_the_nets_find_a_joint(whole: tuple[Path, Results], cpu: DeviceContext) -> None:
    folder, _ = whole
    run = open_run(config(), folder / "run", None, folder / "cache", cpu)
    pool = run.people.subset(np.arange(16, 32))
    models = [folder / "run/seed-0/base", *(folder / "run" / STAGES / f"stage-1/member-{m}" for m in (1, 2))]
    # Pixels of the crop are four to a cell.
    places = [score(checkpoint.load(model), pool, cpu).predicted_NJ2 / 4 for model in models]
    pairs = [np.linalg.norm(places[a] - places[b], axis=2).mean(axis=1) for a, b in ((0, 1), (0, 2), (1, 2))]

    stored = Scores.load(folder / "run" / STAGES / "stage-1/scores.npz")

    assert stored.ids == pool.data.ids
    np.testing.assert_allclose(stored.score_N, np.mean(pairs, axis=0), rtol=1e-5)
    assert stored.selected_M.tolist() == np.argsort(-stored.score_N, kind="stable")[:4].tolist()


def test_members_are_of_other_seeds_and_learn_from_everybody_labelled_so_far(whole: tuple[Path, Results]) -> None:
    stages = whole[0] / "run" / STAGES
    facts: dict[Any, Any] = {(t, m): checkpoint.load(stages / f"stage-{t}/member-{m}").facts for t in (1, 2) for m in (1, 2)}  # fmt: skip
    assert {key: len(fact["labelled_ids"]) for key, fact in facts.items()} == {
        (1, 1): 16,
        (1, 2): 16,
        (2, 1): 20,
        (2, 2): 20,
    }
    assert len({member_seed(seed, member) for seed in range(5) for member in range(5)} | set(range(5))) == 30
    assert [facts[1, m]["seed"] for m in (1, 2)] == [facts[2, m]["seed"] for m in (1, 2)] == [member_seed(0, 1), member_seed(0, 2)]  # fmt: skip
    weights = [
        checkpoint.load(path).pose.state_dict() for path in (stages.parent / "base", stages / "stage-1/member-1")
    ]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])


def test_members_that_are_there_are_not_trained_again_and_lost_ones_end_the_same(
    tmp_path: Path, whole: tuple[Path, Results], cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second stage, after the first of its members."""
    trained: list[str] = []
    train = base_model.train

    def watched(*args: Any, **options: Any) -> Any:
        trained.append(options["what"])
        if len(trained) == 4:
            raise KeyboardInterrupt
        return train(*args, **options)

    monkeypatch.setattr(committee, "train", watched)

    def go() -> Results:
        return run_benchmark(config(), tmp_path / "run", cpu, data_root=None, cache=whole[0] / "cache")

    with pytest.raises(KeyboardInterrupt):
        go()
    results = go()
    assert len(trained) == 5
    assert trained[3] == trained[4] == "member 3 of 3 of ensemble-nets, stage 2 of seed 0"
    for stage in (1, 2):
        found, expected = (
            Scores.load(path / STAGES / f"stage-{stage}/scores.npz") for path in (tmp_path / "run", whole[0] / "run")
        )
        np.testing.assert_array_equal(found.score_N, expected.score_N)
    assert [row.test_pck for row in results.rows] == [row.test_pck for row in whole[1].rows]
