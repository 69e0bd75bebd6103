"""What a benchmark cannot carry out is refused before any training, in words that tell a stranger what to do."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from alpose.runtime.errors import ConfigError
from alpose.trainer.cli import DEFAULT_METHODS, MORE_METHODS, main
from alpose.trainer.cycles.base_model import BaseModel
from alpose.trainer.methods.catalog import METHODS, check_known
from alpose.trainer.scoring import Scored


def test_unknown_methods_are_refused_with_those_that_may_have_been_meant() -> None:
    check_known(tuple(METHODS))
    meant_by = {
        "lle": "egl++-lle", "Entropy": "entropy", "core-set": "coreset", "LL++": "ll++ or ll++conv",
        "oracle": "oracle-loss or oracle-pck",
    }  # fmt: skip
    for name, meant in meant_by.items():
        with pytest.raises(
            ConfigError, match=re.escape(f"'{name}' is not a method (did you mean {meant}?). Known: random")
        ):
            check_known(["random", name])
    with pytest.raises(ConfigError, match=r"'umap' is not a method\. Known"):
        check_known(["umap"])
    with pytest.raises(ConfigError, match=r"--methods names none"):
        check_known([])


def test_help_names_every_method() -> None:
    assert {*DEFAULT_METHODS.split(","), *MORE_METHODS} == set(METHODS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def command(out: Path, cache: Path, *arguments: str) -> Any:
    whole = ["cycles", "--dataset", "synthetic", "--preset", "smoke", "--device", "cpu", "--cache", str(cache),
             "--out", str(out), *arguments]  # fmt: skip
    return CliRunner().invoke(main, whole)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "mc-dropout"], "there is no mc-dropout: it runs a net again with other units dropped"),
        (["--methods", "egl++", "--egl", "neighbours=40"], "egl++ needs at least 40 labelled people"),
        (["--methods", "egl++", "--egl", "perplexity=35"], "egl++ needs at least 36 labelled people"),
        (["--methods", "egl++-lle", "--egl", "neighbours=40"], "egl++-lle needs at least 40 labelled people"),
        (["--methods", "egl++", "--initial", "20"], "there are 20 at the start: raise --initial"),
        (
            ["--methods", "random", "--dataset", "lsp", "--initial", "20"],
            "--initial 20: lsp begins with the first 1,000",
        ),
        (["--methods", "random", "--budget", "65", "--stages", "1"], "want 65 people, the pool has 64: lower --budget"),
        (["--methods", "ensemble", "--scores", "members=1"], "a committee needs at least 2 members"),
        (["--methods", "vl4pose", "--scores", "peaks=none"], "'peaks=none' wants a whole number"),
    ],
)
def test_what_cannot_be_is_refused_on_one_line_and_leaves_no_run_behind(
    arguments: list[str], said: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alpose.trainer.cycles.base_model.train_pose", None)  # would fail if called
    result = command(tmp_path / "run", cache, *arguments)

    assert result.exit_code == 2
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1
    assert said in result.output
    # What the message advises can be done in the same folder.
    assert not (tmp_path / "run").exists()


def test_scores_that_cannot_choose_are_refused_before_anything_is_selected(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constant ones, and embeddings that are not numbers: known after the scoring, and named."""
    base = BaseModel.scored

    def damaged(**columns: Any) -> Any:
        def scored(self: Any) -> tuple[Scored, float]:
            found, seconds = base(self)
            return replace(
                found, **{name: change(getattr(found, name).copy()) for name, change in columns.items()}
            ), seconds

        return scored

    def nan(value: Any) -> Any:
        value[[40, 50], 3] = np.nan
        return value

    cases: list[tuple[str, dict[str, Any], str]] = [
        ("entropy", {"entropy_N": np.zeros_like}, "entropy: all 64 scores are 0, so that it cannot choose 16 of them"),
        ("coreset", {"embedding_ND": nan}, "coreset: 2 of 64 embeddings of the pool are not finite"),
        ("egl++", {"coarsest_ND": nan}, "2 of 64 embeddings of the pool are not finite (first at row 8)"),
        ("egl++-lle", {"coarsest_ND": nan}, "2 of 64 embeddings of the pool are not finite (first at row 8)"),
    ]
    for method, columns, said in cases:
        monkeypatch.setattr(BaseModel, "scored", damaged(**columns))
        result = command(tmp_path / "run", cache, "--methods", method, "--select-only")
        assert result.exit_code == 1
        assert said in result.output
        assert not list((tmp_path / "run").glob("seed-0/*/stage-1/scores.npz"))
