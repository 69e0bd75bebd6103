"""A model on one's own folder, trained on with a second one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from alpose.runtime.errors import ConfigError
from alpose.trainer import checkpoint
from alpose.trainer.cli import main
from alpose.trainer.data.catalog import held_out
from alpose.trainer.data.coco import read_coco
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.device import DeviceContext
from alpose.trainer.fitting import FitConfig, fit

from .own_data import write_coco_folder

MACHINE = DeviceContext(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("folders")
    first = write_coco_folder(read_people(seed=3, count=40, domain="easy"), root / "first")
    second = write_coco_folder(read_people(seed=4, count=32, domain="hard"), root / "second")
    return first, second


@pytest.fixture(scope="module")
def fitted(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fits") / "first"
    fit(FitConfig(data=(str(folders[0]),), preset="smoke"), out, MACHINE, data_root=None, cache=out.parent / "cache")
    return out


def test_a_new_model_keeps_who_is_held_out_apart(folders: tuple[Path, Path], fitted: Path) -> None:
    model = checkpoint.load(fitted)
    everyone = read_coco(folders[0])
    held_N = held_out(everyone, 0.25)

    assert set(model.facts["labelled_ids"]) == {id_ for id_, held in zip(everyone.ids, held_N, strict=True) if not held}
    assert list(model.heads) == ["epck"]
    said = json.loads((fitted / "fit.json").read_text())
    assert said["after"][str(folders[0])]["people"] == int(held_N.sum())
    assert said["before"] == {}


def test_training_on_keeps_the_old_people_and_the_heads(
    folders: tuple[Path, Path], fitted: Path, tmp_path: Path
) -> None:
    config = FitConfig(data=(str(folders[1]),), start=fitted, epochs=1)
    result = fit(config, tmp_path / "on", MACHINE, data_root=None, cache=tmp_path / "cache")

    old, new = checkpoint.load(fitted), checkpoint.load(tmp_path / "on")
    assert set(result.trained_on) == {str(folders[0]), str(folders[1])}
    assert set(old.facts["labelled_ids"]) < set(new.facts["labelled_ids"])
    assert set(new.heads) == set(old.heads)
    assert set(result.before) == set(result.after) == {str(folders[0]), str(folders[1])}
    moved = [not torch.equal(a, b) for a, b in zip(old.pose.parameters(), new.pose.parameters(), strict=True)]
    assert all(moved)
    # The checkpoint it began with is as it was, and a third generation still knows everybody.
    assert checkpoint.load(fitted).facts == old.facts
    third = fit(FitConfig(data=(str(folders[1]),), start=tmp_path / "on", epochs=1), tmp_path / "third", MACHINE,
                data_root=None, cache=tmp_path / "cache")  # fmt: skip
    assert third.trained_on == result.trained_on


def test_a_folder_that_is_named_another_way_is_not_taken_twice(
    folders: tuple[Path, Path], fitted: Path, tmp_path: Path
) -> None:
    same = folders[0].parent / "." / ".." / folders[0].parent.name / folders[0].name
    result = fit(FitConfig(data=(str(same),), start=fitted, epochs=1), tmp_path / "on", MACHINE, data_root=None,
                 cache=tmp_path / "cache")  # fmt: skip

    assert set(result.trained_on) == {str(same)}


def test_data_that_is_nowhere_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nowhere' is neither"):
        fit(FitConfig(data=("nowhere",)), tmp_path / "on", MACHINE, data_root=None, cache=tmp_path)


def test_without_old_data_it_trains_on_the_new_alone(folders: tuple[Path, Path], fitted: Path, tmp_path: Path) -> None:
    config = FitConfig(data=(str(folders[1]),), start=fitted, epochs=1, old_data=False)
    result = fit(config, tmp_path / "on", MACHINE, data_root=None, cache=tmp_path / "cache")

    assert set(result.trained_on) == {str(folders[1])}
    # Who trained the old weights still trained these: a calibration must keep away from them.
    assert set(checkpoint.load(fitted).facts["labelled_ids"]) < set(
        checkpoint.load(tmp_path / "on").facts["labelled_ids"]
    )


def test_old_data_that_is_gone_is_an_error_before_training(
    folders: tuple[Path, Path], fitted: Path, tmp_path: Path
) -> None:
    away = folders[0].rename(tmp_path / "moved")
    try:
        with pytest.raises(ConfigError, match="--without-old-data"):
            fit(FitConfig(data=(str(folders[1]),), start=fitted), tmp_path / "on", MACHINE, data_root=None,
                cache=tmp_path / "cache")  # fmt: skip
    finally:
        away.rename(folders[0])
    assert not (tmp_path / "on").exists()


def test_an_existing_checkpoint_is_not_overwritten(folders: tuple[Path, Path], fitted: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another --out"):
        fit(FitConfig(data=(str(folders[1]),)), fitted, MACHINE, data_root=None, cache=tmp_path)


def test_the_split_follows_the_image_and_stays_when_the_folder_grows() -> None:
    people = read_people(seed=0, count=200)
    small_N = held_out(people.subset(np.arange(100)), 0.25)
    large_N = held_out(people, 0.25)

    assert np.array_equal(large_N[:100], small_N)
    assert 0.15 < large_N.mean() < 0.35


def test_the_command_prints_a_table_and_names_unknown_heads(folders: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["fit", "--data", str(folders[1]), "--preset", "smoke", "--epochs", "1", "--cache", str(tmp_path)]
    wrong = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "a"), "--heads", "lll"])
    right = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "b"), "--heads", "ll,ll++"])

    assert wrong.exit_code != 0
    assert "lll unknown" in wrong.output
    assert right.exit_code == 0, right.output
    assert "ll++" in right.output
    assert set(checkpoint.load(tmp_path / "b").heads) == {"ll", "ll++"}
