"""The benchmark end to end on tiny synthetic runs, killed and continued for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from alpose.runtime.errors import ConfigError
from alpose.trainer import checkpoint
from alpose.trainer.cli import main
from alpose.trainer.cycles import run as run_module
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.results import Results, Row, Scores, stage_folder
from alpose.trainer.cycles.run import RunConfig
from alpose.trainer.data.catalog import open_dataset
from alpose.trainer.device import DeviceContext, device_context
from alpose.trainer.methods.catalog import METHODS
from alpose.trainer.presets import preset

TIMES = ("train_seconds", "score_seconds")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def cpu() -> DeviceContext:
    return device_context("cpu", "fp32")


def config(**changes: Any) -> RunConfig:
    return RunConfig.from_preset("smoke", "synthetic", **{"methods": ("random", "ll++conv"), **changes})


def without_times(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(row).items() if k not in TIMES} for row in rows]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, cache: Path, cpu: DeviceContext) -> tuple[Path, Results]:
    """Two stages of two methods, without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_benchmark(config(), folder, cpu, data_root=None, cache=cache)


EVERY = tuple(name for name in METHODS if name != "multipeak-2021")
"""None of so small a net's maps reaches the threshold of that one."""


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory, cache: Path, cpu: DeviceContext) -> tuple[Path, Results]:
    """The first selection of every method."""
    folder = tmp_path_factory.mktemp("everything")
    selecting = config(methods=EVERY, stages=1, select_only=True)
    return folder, run_benchmark(selecting, folder, cpu, data_root=None, cache=cache)


def test_every_method_selects_its_budget_once_from_the_unlabelled_pool(everything: tuple[Path, Results]) -> None:
    folder, results = everything
    assert [row.method for row in results.rows] == list(EVERY)
    sizes = preset("smoke").sizes
    for row in results.rows:
        scores = Scores.load(stage_folder(folder, 0, row.method, 1) / "scores.npz")
        assert len(set(scores.selected_M.tolist())) == row.selected == preset("smoke").budget
        assert row.pool == len(scores.ids) == sizes.pool
        assert all(id_.startswith("synthetic-hard/") for id_ in scores.ids)
        assert row.test_pck is None
        assert row.train_seconds is None


def test_the_oracles_bound_what_can_be_selected(everything: tuple[Path, Results]) -> None:
    _, results = everything
    row_of = {row.method: row for row in results.rows}

    hardest = max(row.selected_true_loss or 0.0 for row in results.rows)
    assert row_of["oracle-loss"].selected_true_loss == pytest.approx(hardest)
    assert row_of["oracle-loss"].spearman == pytest.approx(1.0)


def test_stages_enlarge_the_labelled_set_and_never_select_anyone_twice(whole: tuple[Path, Results]) -> None:
    folder, results = whole
    small = preset("smoke")
    for method in ("random", "ll++conv"):
        rows = [row for row in results.rows if row.method == method]
        assert [row.labelled for row in rows] == [small.initial, small.initial + small.budget]
        picked = []
        for stage in (1, 2):
            scores = Scores.load(stage_folder(folder, 0, method, stage) / "scores.npz")
            picked.append({scores.ids[row] for row in scores.selected_M})
        assert picked[0].isdisjoint(picked[1])
        assert rows[1].base_test_pck == rows[0].test_pck


def test_methods_start_from_one_base_model(whole: tuple[Path, Results]) -> None:
    _, results = whole
    assert len({row.base_test_pck for row in results.rows if row.stage == 1}) == 1
    assert len(results.bases) == 1
    assert results.bases[0]["test_pck"] == results.rows[0].base_test_pck


def test_select_only_first_and_the_rest_later_gives_the_same_rows(
    whole: tuple[Path, Results], tmp_path: Path, cache: Path, cpu: DeviceContext
) -> None:
    first = run_benchmark(config(stages=1, select_only=True), tmp_path, cpu, data_root=None, cache=cache)
    assert all(row.test_pck is None for row in first.rows)
    later = run_benchmark(config(), tmp_path, cpu, data_root=None, cache=cache)

    assert without_times(later.rows) == without_times(whole[1].rows)


def test_bases_of_another_run_are_taken_over_and_not_trained_again(
    whole: tuple[Path, Results], tmp_path: Path, cache: Path, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alpose.trainer.cycles.base_model.train_pose", None)  # would fail if called
    monkeypatch.setattr("alpose.trainer.cycles.base_model.train_heads", None)
    results = run_benchmark(
        config(stages=1, select_only=True), tmp_path, cpu, data_root=None, cache=cache, bases=whole[0]
    )
    expected = [replace(row, test_pck=None) for row in whole[1].rows if row.stage == 1]
    assert without_times(results.rows) == without_times(tuple(expected))


def test_bases_of_another_recipe_are_refused(
    whole: tuple[Path, Results], tmp_path: Path, cache: Path, cpu: DeviceContext
) -> None:
    recipe = preset("smoke").recipe
    other = replace(recipe, pose=replace(recipe.pose, epochs=3))
    with pytest.raises(ConfigError, match="another recipe"):
        run_benchmark(config(recipe=other), tmp_path, cpu, data_root=None, cache=cache, bases=whole[0])


def test_a_folder_with_another_run_is_refused_and_named(
    whole: tuple[Path, Results], cache: Path, cpu: DeviceContext
) -> None:
    with pytest.raises(ConfigError, match="budget was 16, now 8"):
        run_benchmark(config(budget=8), whole[0], cpu, data_root=None, cache=cache)


def test_commands_take_a_recipe_of_ones_own_and_go_on_with_that_one_alone(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[pose]\nepochs = 1\n[net]\nchannels = 16\n[heads]\nepochs = 1\n")

    def call(command: str, *words: str) -> Any:
        return CliRunner().invoke(main, [
            command, "--dataset", "synthetic", "--preset", "smoke", "--device", "cpu", "--cache", str(cache), *words,
        ])  # fmt: skip

    for page in ("alpose.trainer.cli._write_theory", "alpose.trainer.pages.cycles.write_report"):
        monkeypatch.setattr(page, lambda *_: None)
    run = tmp_path / "run"
    cycles = ("--methods", "random", "--select-only", "--out", str(run))
    first, again = (call("cycles", *cycles, "--recipe", str(recipe)) for _ in range(2))
    assert first.exit_code == again.exit_code == 0, first.output
    own = json.loads((run / "config.json").read_text())["recipe"]
    assert (own["pose"]["epochs"], own["retrain"]["epochs"], own["net"]["channels"]) == (1, 1, 16)
    assert own["crop"] == asdict(preset("smoke").recipe.crop)
    assert asdict(checkpoint.load(run / "seed-0" / "base").pose.config)["channels"] == 16

    without = call("cycles", *cycles)
    assert without.exit_code == 2
    assert "recipe.pose.epochs was 1, now 2" in without.output
    assert "recipe.crop" not in without.output  # that is the same

    detect = ("--detectors", "peak", "--seeds", "1", "--bases", str(run))
    refused = call("detect", *detect, "--out", str(tmp_path / "refused"))
    assert "another recipe" in refused.output

    asked: list[Any] = []
    monkeypatch.setattr("alpose.trainer.detect.experiment.run_detect", lambda config, *_, **__: asked.append(config))
    call("detect", *detect, "--recipe", str(recipe), "--out", str(tmp_path / "detect"))
    assert asked[0].base.to_json()["recipe"] == own


def test_a_pool_smaller_than_the_stages_want_is_refused_before_training(
    tmp_path: Path, cache: Path, cpu: DeviceContext
) -> None:
    with pytest.raises(ConfigError, match="want 80 people, the pool has 64"):
        run_benchmark(config(stages=5), tmp_path, cpu, data_root=None, cache=cache)
    assert not list(tmp_path.rglob("model.json"))


@pytest.mark.parametrize("method", ["oracle-loss", "oracle-pck"])
def test_an_oracle_that_can_judge_too_few_is_refused_before_training(
    method: str, tmp_path: Path, cache: Path, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but 20 of the pool of 64 lose their labels; a budget of 16 can be had once, not twice."""
    whole = open_dataset("synthetic", None, sizes=preset("smoke").sizes)
    labelled_NJ = whole.train.labelled_NJ.copy()
    labelled_NJ[np.arange(len(labelled_NJ)) >= preset("smoke").initial + 20] = False
    people = replace(whole.train, labelled_NJ=labelled_NJ, visible_NJ=labelled_NJ & whole.train.visible_NJ)
    monkeypatch.setattr(run_module, "open_dataset", lambda *_, **__: replace(whole, train=people))

    with pytest.raises(
        ConfigError, match=rf"{method} chooses by labels: 2 stages of 16 want 32.*seed 0 only (20|19) can"
    ):
        run_benchmark(config(methods=("random", method)), tmp_path, cpu, data_root=None, cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("model.json"))


def test_a_method_that_needs_more_labelled_is_refused_before_training(
    tmp_path: Path, cache: Path, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "coreset", replace(METHODS["coreset"], fewest_labelled=1000))

    with pytest.raises(ConfigError, match=r"coreset needs at least 1000 labelled people.*raise --initial"):
        run_benchmark(config(methods=("random", "coreset")), tmp_path, cpu, data_root=None, cache=cache)
    assert not list(tmp_path.rglob("model.json"))


def test_profiles_share_bases_and_differ_in_their_numbers(
    whole: tuple[Path, Results], tmp_path: Path, cache: Path, cpu: DeviceContext
) -> None:
    results = run_benchmark(
        config(profile="official-2021", stages=1, select_only=True), tmp_path, cpu, data_root=None, cache=cache,
        bases=whole[0],
    )  # fmt: skip
    row = results.rows[0]
    assert set(row.neighbours) == {"0.1579", "0.2105"}
    lower, upper = row.neighbours["0.1579"], row.neighbours["0.2105"]
    assert (lower["base_test_pck"] or 0) <= (row.base_test_pck or 0) <= (upper["base_test_pck"] or 0)


def test_a_run_killed_again_and_again_ends_with_the_same_rows(tmp_path: Path, cache: Path) -> None:
    """SIGKILL at growing delays until one attempt ends by itself, against a run that was left alone."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from alpose.trainer import training_state; training_state.SAVE_EVERY_S = 0.0\n"
        "from alpose.trainer.cli import main; main(sys.argv[1:])"
    )

    def start(folder: str) -> subprocess.Popen[str]:
        arguments = ["cycles", "--dataset", "synthetic", "--preset", "smoke", "--methods", "random,ll++conv",
                     "--out", str(tmp_path / folder), "--cache", str(cache), "--device", "cpu"]  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    started = time.monotonic()
    alone = start("alone")
    said, _ = alone.communicate()
    assert alone.returncode == 0, said
    whole_s = time.monotonic() - started

    kills = 0
    for attempt in range(100):
        process = start("killed")
        try:
            said, _ = process.communicate(timeout=whole_s * (0.3 + 0.05 * attempt))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, said
        break
    assert kills >= 2
    expected, rows = (Results.load(tmp_path / folder).rows for folder in ("alone", "killed"))
    assert without_times(rows) == without_times(expected)
    # A kill leaves the one file that was being written, under a name that nobody reads.
    assert len(list((tmp_path / "killed").rglob("*.tmp"))) <= kills


def test_control_c_says_how_to_go_on_and_leaves_a_run_that_resumes(tmp_path: Path, cache: Path) -> None:
    arguments = [sys.executable, "-m", "alpose.trainer", "cycles", "--dataset", "synthetic", "--preset", "smoke",
                 "--methods", "random,entropy", "--stages", "2", "--out", str(tmp_path), "--cache", str(cache),
                 "--device", "cpu"]  # fmt: skip
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread)
    deadline = time.monotonic() + 60
    while not (tmp_path / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "The same command goes on from here" in said
    assert "Traceback" not in said
    assert subprocess.run(arguments, capture_output=True, check=False, env=one_thread).returncode == 0
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [(row["method"], row["stage"]) for row in rows] == [
        ("random", 1),
        ("random", 2),
        ("entropy", 1),
        ("entropy", 2),
    ]
    assert (tmp_path / "report.html").exists()


def test_scores_on_disk_explain_the_row(whole: tuple[Path, Results]) -> None:
    folder, results = whole
    for row in results.rows:
        scores = Scores.load(stage_folder(folder, row.seed, row.method, row.stage) / "scores.npz")
        chosen = scores.true_loss_N[scores.selected_M]
        assert row.selected_true_loss == pytest.approx(float(np.nanmean(chosen)))
        assert row.failures == int((scores.image_pck_N < 0.5).sum())
        assert row.unscored == int(np.isnan(scores.image_pck_N).sum())
