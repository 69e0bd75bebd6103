"""A model on one's own folder, trained on with a second one: who trains, who chooses, who is held out."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from alpose.runtime.errors import ConfigError
from alpose.trainer import checkpoint
from alpose.trainer.cli import main
from alpose.trainer.data.catalog import held_out, open_dataset
from alpose.trainer.data.coco import read_coco
from alpose.trainer.data.records import PoseData
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.device import DeviceContext
from alpose.trainer.fit_data import FitData, History, open_fit_data
from alpose.trainer.fitting import Fit, FitConfig, fit
from alpose.trainer.measures.metrics import Failure
from alpose.trainer.presets import preset, read_recipe

from .own_data import write_coco_folder

MACHINE = DeviceContext(torch.device("cpu"), torch.float32)
SIZES = preset("smoke").sizes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("folders")
    first = write_coco_folder(read_people(seed=3, count=40, domain="easy"), root / "first")
    second = write_coco_folder(read_people(seed=4, count=32, domain="hard"), root / "second")
    return str(first), str(second)


@pytest.fixture(scope="module")
def run_fit(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Fit]]:
    cache = tmp_path_factory.mktemp("cache")

    def go(*data: str, **options: Any) -> tuple[Path, Fit]:
        out = tmp_path_factory.mktemp("fits") / "model"
        config = FitConfig(data=data, **({"epochs": 1} | options))
        return out, fit(config, out, MACHINE, data_root=None, cache=cache)

    return go


@pytest.fixture(scope="module")
def fitted(folders: tuple[str, str], run_fit: Callable[..., tuple[Path, Fit]]) -> Path:
    return run_fit(folders[0], preset="smoke", epochs=None)[0]


def opened(old: Path | None, *names: str, old_data: bool = False, group_by: str | None = None) -> FitData:
    return open_fit_data(names, checkpoint.load(old) if old else None, None, sizes=SIZES, old_sizes=SIZES,
                         hold_out=0.25, old_data=old_data, group_by=group_by)  # fmt: skip


def validating(data: FitData, seed: int = 0) -> PoseData:
    return data.train.subset(np.flatnonzero(data.validates(data.train, 0.1, seed)))


# --- What a fit leaves


def test_a_new_model_keeps_who_is_held_out_apart(folders: tuple[str, str], fitted: Path) -> None:
    facts, everyone = checkpoint.load(fitted).facts, read_coco(Path(folders[0]))
    held_N = held_out(everyone, 0.25)

    assert set(facts["labelled_ids"]) == {id_ for id_, held in zip(everyone.ids, held_N, strict=True) if not held}
    assert not {key.rpartition("@")[0] for key in facts["labelled_people"]} & set(
        everyone.subset(np.flatnonzero(held_N)).pictures()
    )
    assert set(facts["validated_pictures"]) < {key.rpartition("@")[0] for key in facts["labelled_people"]}
    assert list(checkpoint.load(fitted).heads) == ["epck"]
    written = json.loads((fitted / "fit.json").read_text())
    assert written["after"][folders[0]]["people"] == int(held_N.sum())
    assert written["before"] == {}


def test_every_epoch_that_ran_is_kept(
    folders: tuple[str, str], run_fit: Callable[..., tuple[Path, Fit]], fitted: Path
) -> None:
    out, result = run_fit(folders[1], start=fitted, epochs=3, heads=("epck", "ll"))
    with (out / "losses.csv").open() as file:
        rows = list(csv.DictReader(file))

    facts = checkpoint.load(out).facts
    assert facts["epochs"] == dict(result.epochs) == json.loads((out / "fit.json").read_text())["epochs"]
    assert facts["epochs"]["pose"] == facts["recipe"]["retrain"]["epochs"] == 3
    for part, epochs in result.epochs.items():
        mine = [row for row in rows if row["part"] == part]
        assert [int(row["epoch"]) for row in mine] == list(range(epochs))
        assert all(float(row["train_loss"]) > 0 for row in mine)
        assert all(bool(row["validation_loss"]) == bool(row["lr"]) == (part == "pose") for row in mine)


def test_training_on_keeps_the_old_people_and_the_heads(
    folders: tuple[str, str], fitted: Path, run_fit: Callable[..., tuple[Path, Fit]]
) -> None:
    out, result = run_fit(folders[1], start=fitted)
    old, new = checkpoint.load(fitted), checkpoint.load(out)
    assert set(result.trained_on) == set(result.before) == set(result.after) == set(folders)
    for known in ("labelled_ids", "labelled_people"):
        assert set(old.facts[known]) < set(new.facts[known])
    assert set(new.heads) == set(old.heads)
    moved = [not torch.equal(a, b) for a, b in zip(old.pose.parameters(), new.pose.parameters(), strict=True)]
    assert all(moved)
    # The checkpoint it began with is as it was, and a third generation still knows everybody.
    assert checkpoint.load(fitted).facts == old.facts
    assert run_fit(folders[1], start=out)[1].trained_on == result.trained_on


def test_without_old_data_it_trains_on_the_new_alone_and_still_knows_the_old(
    folders: tuple[str, str], fitted: Path, run_fit: Callable[..., tuple[Path, Fit]]
) -> None:
    out, result = run_fit(folders[1], start=fitted, old_data=False)

    assert set(result.trained_on) == {folders[1]}
    # Who trained the old weights still trained these: a calibration must keep away from them.
    assert set(checkpoint.load(fitted).facts["labelled_ids"]) < set(checkpoint.load(out).facts["labelled_ids"])


# --- Nobody in two roles


@pytest.fixture
def renamed(folders: tuple[str, str], tmp_path: Path) -> str:
    """A copy of the first folder under another name, its files in another order of names."""
    copy = Path(shutil.copytree(folders[0], tmp_path / "copy of first"))
    value = json.loads((copy / "annotations/labels.json").read_text())
    for image in value["images"]:
        name = f"{999 - image['id']}.jpg"
        (copy / "images" / image["file_name"]).rename(copy / "images" / name)
        image["file_name"] = name
    (copy / "annotations/labels.json").write_text(json.dumps(value))
    return str(copy)


def without_pictures(fitted: Path, folder: Path) -> Path:
    """The checkpoint as version 0.1.0 would have written it: it knows ids alone."""
    shutil.copytree(fitted, folder)
    value = json.loads((folder / "model.json").read_text())
    for fact in ("labelled_people", "validated_pictures"):
        del value["facts"][fact]
    (folder / "model.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize("old_data", [True, False])
@pytest.mark.parametrize("old_style", [False, True])
@pytest.mark.parametrize("which", ["same", "renamed", "second", "copy beside"])
def test_nobody_who_trained_a_net_is_held_out_from_it_or_chooses_its_epoch(
    which: str, old_style: bool, old_data: bool, folders: tuple[str, str], renamed: str, fitted: Path, tmp_path: Path
) -> None:
    start = without_pictures(fitted, tmp_path / "old") if old_style else fitted
    names = {
        "same": (folders[0],),
        "renamed": (renamed,),
        "second": (folders[1],),
        "copy beside": (renamed, folders[1]),
    }
    facts = checkpoint.load(fitted).facts
    labelled = {key.rpartition("@")[0] for key in facts["labelled_people"]}
    trained = labelled - set(facts["validated_pictures"])
    data = opened(start, *names[which], old_data=old_data)

    held = {picture for source in data.sources for picture in source.held_out.pictures()}
    training = data.train.pictures()
    assert held
    assert not held & (labelled | set(training))
    assert len(set(training)) == len(training)  # the copy of somebody is not somebody else
    assert (labelled <= set(training)) == (old_data or which != "second")
    for seed in range(4):
        chosen = set(validating(data, seed).pictures())
        assert chosen
        if not old_style:
            assert not chosen & trained
    if old_style:  # who validated then follows from the seed, as it did then
        assert not set(validating(data, 3).pictures()) & {
            picture for picture, was in zip(training, History.of(checkpoint.load(start)).trained(data.train), strict=True)
            if was
        }  # fmt: skip


def test_copies_in_the_data_train_once_and_are_on_one_side(folders: tuple[str, str], renamed: str) -> None:
    data = opened(None, folders[0], renamed)
    training = data.train.pictures()

    assert len(set(training)) == len(training) < 40
    assert not set(training) & {picture for source in data.sources for picture in source.held_out.pictures()}


def test_everybody_trained_and_nobody_is_left_to_choose(folders: tuple[str, str], fitted: Path, tmp_path: Path) -> None:
    shutil.copytree(fitted, tmp_path / "all")
    value = json.loads((tmp_path / "all/model.json").read_text())
    value["facts"]["validated_pictures"] = []
    (tmp_path / "all/model.json").write_text(json.dumps(value))
    data = opened(tmp_path / "all", folders[0])

    with pytest.raises(ConfigError, match="nobody is left to choose the epoch: bring people"):
        data.validates(data.train, 0.1, 0)


def test_a_folder_that_is_named_another_way_is_not_taken_twice(folders: tuple[str, str], fitted: Path) -> None:
    first = Path(folders[0])
    same = str(first.parent / "." / ".." / first.parent.name / first.name)

    assert [source.name for source in opened(fitted, same, old_data=True).sources] == [same]


@pytest.mark.parametrize("where", ["image", "alpose"])
def test_a_group_is_on_one_side_of_every_split(where: str, tmp_path: Path) -> None:
    drivers = {f"{row:05d}.jpg": f"driver {row % 7}" for row in range(42)}
    fields = {name: {"driver": who} if where == "image" else {"alpose": {"driver": who}}
              for name, who in drivers.items()}  # fmt: skip
    name = str(write_coco_folder(read_people(seed=3, count=42), tmp_path / "drives", fields=fields))
    data = opened(None, name, group_by="driver")

    def who(people: PoseData) -> set[str]:
        return {drivers[f"{id_.rpartition('#')[0].partition('/')[2]}.jpg"] for id_ in people.ids}

    (source,) = data.sources
    validates_N = data.validates(source.train, 0.1, 0)
    learners, choosers = (source.train.subset(np.flatnonzero(mask_N)) for mask_N in (~validates_N, validates_N))
    sides = [who(learners), who(choosers), who(source.held_out)]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides)) == 7
    with pytest.raises(Exception, match=r"has no field .clip. to group by"):
        opened(None, name, group_by="clip")


def test_the_split_follows_the_image_and_stays_when_the_folder_grows() -> None:
    people = read_people(seed=0, count=200)
    small_N, large_N = held_out(people.subset(np.arange(100)), 0.25), held_out(people, 0.25)

    assert np.array_equal(large_N[:100], small_N)
    assert 0.15 < large_N.mean() < 0.35


def test_a_named_dataset_keeps_its_own_test(tmp_path: Path) -> None:
    (source,) = opened(None, "synthetic").sources

    assert source.held_out.ids == open_dataset("synthetic", sizes=SIZES).test.ids


# --- Recipes


def test_a_recipe_of_ones_own_is_what_differs_from_the_preset(
    folders: tuple[str, str], run_fit: Callable[..., tuple[Path, Fit]], fitted: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        "[pose]\nepochs = 3\nlr = 1e-3\n[pose.augment]\nflip = 0.0\n[retrain]\nbatch = 4\n[heads]\nepochs = 1\n"
    )
    base = preset("smoke").recipe
    own = read_recipe(path, base)
    assert (own.pose.epochs, own.pose.lr, own.pose.augment.flip, own.pose.batch) == (3, 1e-3, 0.0, base.pose.batch)
    assert (own.retrain.epochs, own.retrain.lr, own.retrain.batch) == (3, 1e-3, 4)
    assert (own.net, own.crop) == (base.net, base.crop)

    for recipe in (path, own):
        out, result = run_fit(folders[1], start=fitted, recipe=recipe, epochs=None, heads=("ll",))
        assert dict(result.epochs) == {"pose": 3, "ll": 1}
        assert checkpoint.load(out).facts["recipe"]["retrain"]["batch"] == 4


def test_compile_compiles_the_net_that_is_trained(
    folders: tuple[str, str], run_fit: Callable[..., tuple[Path, Fit]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []

    def compile_(net: torch.nn.Module, mode: str | None) -> torch.nn.Module:
        assert mode is None
        compiled.append(net)
        return net

    monkeypatch.setattr(torch, "compile", compile_)
    out, _ = run_fit(folders[0], preset="smoke", compile=True)
    assert len(compiled) == 1
    assert checkpoint.load(out).facts["recipe"]["pose"]["compile"] is True


@pytest.mark.parametrize(("text", "message"), [
    ("[pose]\nepochs = 'many'", "recipe.pose.epochs must be a whole number"),
    ("[poze]\nepochs = 1", "unknown poze"),
    ("[pose]\nlr = -1.0", "lr must be positive"),
    ("[pose]\nepochs = ", "cannot be read as TOML: .*docs/loop.md shows a recipe"),
    ("pose = 3", r"pose = 3: pose is a table of epochs, .*: write \[pose\] and below it a line such as epochs = 2"),
    ("[pose]\naugment = 'mild'", r"pose.augment = 'mild': pose.augment is a table .*write \[pose.augment\]"),
    ("[pose]\nschedule = '\xe9'", "byte 0xe9 in line 2 is not UTF-8.*save the file as UTF-8"),
])  # fmt: skip
def test_a_recipe_that_cannot_be_names_the_file_and_the_place(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=f"--recipe .*recipe.toml: .*{message}"):
        read_recipe(tmp_path / "recipe.toml", preset("smoke").recipe)


# --- Refusals, and the command


def test_what_cannot_be_fitted_is_refused_before_training(
    folders: tuple[str, str], fitted: Path, run_fit: Callable[..., tuple[Path, Fit]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="'nowhere' is neither"):
        run_fit("nowhere")
    with pytest.raises(ConfigError, match="another --out"):
        fit(FitConfig(data=folders), fitted, MACHINE, data_root=None, cache=tmp_path)
    away = Path(folders[0]).rename(tmp_path / "moved")
    try:
        with pytest.raises(ConfigError, match="--without-old-data"):
            run_fit(folders[1], start=fitted)
    finally:
        away.rename(folders[0])


def test_failures_are_what_was_chosen(
    folders: tuple[str, str], run_fit: Callable[..., tuple[Path, Fit]], fitted: Path
) -> None:
    """So poor a net has no pose without a wrong joint; few lie a whole crop away."""
    counts = {}
    for failure in (Failure(), Failure("any-joint"), Failure("mean-error", 1.0)):
        out, result = run_fit(folders[1], start=fitted, failure=failure)
        counts[failure.name] = result.after[folders[1]].failures
        assert checkpoint.load(out).facts["failure"] == {"name": failure.name, "limit": failure.limit}

    assert counts["any-joint"] == result.after[folders[1]].people >= counts["image-pck"]
    assert counts["mean-error"] < counts["any-joint"]


def test_the_command_prints_a_table_and_names_unknown_heads(folders: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[heads]\nepochs = 1\n")
    arguments = ["fit", "--data", folders[1], "--preset", "smoke", "--epochs", "1", "--cache", str(tmp_path),
                 "--recipe", str(tmp_path / "recipe.toml"), "--failure", "any-joint"]  # fmt: skip
    wrong = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "a"), "--heads", "lll"])
    right = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "b"), "--heads", "ll,ll++"])

    assert wrong.exit_code != 0
    assert "lll unknown" in wrong.output
    assert right.exit_code == 0, right.output
    assert "ll++" in right.output
    facts = checkpoint.load(tmp_path / "b").facts
    assert facts["epochs"] == {"pose": 1, "ll": 1, "ll++": 1}
