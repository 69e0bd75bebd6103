"""What labels are worth: the experiment end to end on a handful of rendered people, and the rules that it stands on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from alpose.runtime.errors import DataNotFoundError
from alpose.runtime.skeleton import LSP
from alpose.trainer.cli import main
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.gain import experiment
from alpose.trainer.gain.field import turned, wrong_labels
from alpose.trainer.gain.results import GainResults, needed_by_chance
from alpose.trainer.pages.harvest_gain import findings

from .pages import results

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    cache = tmp_path_factory.mktemp("cache")

    def call(folder: Path, *words: str, strategies: str = "random,value") -> Result:
        words = ("harvest-gain", "--dataset", "synthetic", "--preset", "smoke", "--share", "0.1", "--epochs", "1",
                 "--strategies", strategies, "--out", str(folder), *words)  # fmt: skip
        return CliRunner().invoke(main, [*words, "--cache", str(cache), "--device", "cpu", "--precision", "fp32"])

    return call


@pytest.fixture(scope="module")
def done(command: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "CALIBRATION_VIEWS", 2)
        return folder, command(folder, "--seeds", "2", "--budgets", "6", "--chance-budgets", "12")


def test_every_cell_is_there_and_compared_with_chance(done: tuple[Path, Result]) -> None:
    folder, result = done
    assert result.exit_code == 0, result.output
    assert str(folder / "harvest-gain.html") in result.output
    found = GainResults.load(folder)
    assert {(c.seed, c.strategy, c.budget) for c in found.cells} == {
        (seed, name, budget) for seed in (0, 1)
        for name, budget in (("base", 0), ("none", 0), ("random", 6), ("value", 6), ("random", 12))
    }  # fmt: skip
    (compared,) = found.comparisons
    assert (compared.strategy, compared.budget) == ("value", 6)
    # The difference is that of the cells, and lies in its interval.
    pck = {(cell.seed, cell.strategy): cell.field_pck for cell in found.cells if cell.budget == 6}
    apart = [pck[seed, "value"] - pck[seed, "random"] for seed in (0, 1)]
    assert compared.field.per_seed == pytest.approx(apart)
    assert compared.field.low <= compared.field.mean <= compared.field.high
    assert found.changed == pytest.approx(6 / 64, abs=0.01)
    assert all(cell.chosen == cell.budget for cell in found.cells if cell.strategy == "random")


def test_chosen_frames_are_of_the_field_and_chosen_once(done: tuple[Path, Result]) -> None:
    folder, _ = done
    for path in folder.glob("seed-*/cells/*.npz"):
        with np.load(path) as arrays:
            chosen = arrays["chosen_K"].tolist()
        assert len(set(chosen)) == len(chosen) <= 12
        assert all(0 <= row < 64 for row in chosen)


def test_a_run_goes_on_with_what_is_missing_and_refuses_another(done: tuple[Path, Result], command: Command) -> None:
    folder, _ = done
    before = {path: path.read_bytes() for path in folder.glob("seed-*/cells/*")}
    words = (folder / "harvest-gain.json").read_text()
    gone = folder / "seed-1" / "cells" / "value-6.npz"
    gone.unlink()
    again = command(folder, "--seeds", "2", "--budgets", "6", "--chance-budgets", "12")
    assert again.exit_code == 0, again.output
    after = {path: path.read_bytes() for path in folder.glob("seed-*/cells/*") if path.suffix == ".npz"}
    assert after == {path: content for path, content in before.items() if path.suffix == ".npz"}
    same = ("comparisons", "sets", "config")
    assert [json.loads(words)[key] for key in same] == [
        json.loads((folder / "harvest-gain.json").read_text())[key] for key in same
    ]

    other = command(folder, "--seeds", "2", "--budgets", "6", "--development")
    assert other.exit_code == 2
    assert "holds another run" in other.output


@pytest.mark.parametrize(("words", "strategies", "said"), [
    (("--budgets", "6"), "value", "random must be among them"),
    (("--budgets", "6"), "random,nonsense", "nonsense unknown; known: value"),
    (("--budgets", "1"), "random", "different numbers from 2 up"),
    (("--budgets", "6", "--chance-budgets", "6"), "random", "different numbers from 2 up"),
    (("--chance-budgets", "16"), "random", "different numbers from 2 up, got 4, 8, 16, 16"),  # the preset's own come first
    (("--dataset", "mpii", "--data-root", "."), "random", "--dataset mpii: harvest-gain needs"),
    (("--budgets", "500"), "random", "500 labels are wanted of 64 frames"),
])  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_trained(
    command: Command, tmp_path: Path, words: tuple[str, ...], strategies: str, said: str
) -> None:
    result = command(tmp_path, *words, strategies=strategies)
    assert result.exit_code == 2
    assert said in result.output
    assert not list(tmp_path.rglob("*.json")), "nothing is begun"


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="written by alpose-train harvest-gain"):
        GainResults.load(tmp_path)


# --- Rules


def test_what_chance_needs_lies_on_the_lines_between_its_budgets() -> None:
    label_B, pck_B = (0, 100, 200), (0.30, 0.40, 0.44)
    assert needed_by_chance(0.35, label_B, pck_B) == pytest.approx(50)
    assert needed_by_chance(0.42, label_B, pck_B) == pytest.approx(150)
    assert needed_by_chance(0.29, label_B, pck_B) == 0
    assert needed_by_chance(0.45, label_B, pck_B) is None


def test_a_turned_camera_shows_the_same_pixels_under_the_same_joints() -> None:
    upright = read_people(seed=3, count=2)
    seen = turned(upright)
    for row in range(2):
        before_HW3, after_HW3 = upright.image(row), seen.image(row)
        assert after_HW3.shape[:2] == before_HW3.shape[1::-1]
        for (x, y), (u, v) in zip(
            upright.joints_NJ2[row].round().astype(int), seen.joints_NJ2[row].round().astype(int), strict=True
        ):
            if 0 <= x < before_HW3.shape[1] and 0 <= y < before_HW3.shape[0]:
                assert (before_HW3[y, x] == after_HW3[v, u]).all()
    assert not set(upright.pictures()) & set(seen.pictures())


def test_labels_that_cannot_be_right_are_found_and_no_others() -> None:
    people = read_people(seed=5, count=60)
    joints_NJ2, labelled_NJ = people.joints_NJ2.copy(), people.labelled_NJ.copy()
    size_N2 = np.array([people.image(row).shape[1::-1] for row in range(60)], dtype=np.float64)
    labelled_NJ &= ((joints_NJ2 >= 0) & (joints_NJ2 <= size_N2[:, None] - 1)).all(axis=2)
    assert not wrong_labels(joints_NJ2, labelled_NJ, size_N2, LSP).any()

    ankle, wrist = LSP.index("right_ankle"), LSP.index("left_wrist")
    labelled_NJ[:3] = True
    right_2 = joints_NJ2[:2].max(axis=1)[:, 0]
    size_N2[0], size_N2[1] = (right_2[0] - 2.5, 500), (right_2[1] - 0.5, 500)  # an edge 3.5 px, and 1.5, before a joint
    joints_NJ2[2, wrist] = joints_NJ2[2, LSP.index("left_elbow")] + 5000
    size_N2[2] = 10_000  # within its picture, but no arm is as long
    labelled_NJ[3, ankle], joints_NJ2[3, ankle] = False, (-50.0, -50.0)  # not labelled: nothing is wrong
    wrong_NJ = wrong_labels(joints_NJ2, labelled_NJ, size_N2, LSP)
    assert wrong_NJ[0, joints_NJ2[0, :, 0].argmax()]
    assert not wrong_NJ[[1, 3]].any()
    assert set(np.flatnonzero(wrong_NJ[2])) == {wrist, LSP.index("left_elbow")}


def test_the_words_follow_from_the_intervals() -> None:
    found = results()
    words = "\n".join(findings(found))
    assert "value: +0.050 with 100 (better; chance needs more than 200)" in words
    assert "bad: \N{MINUS SIGN}0.100 with 100 (worse; chance needs 0); worse in the old domain with 100" in words
    assert "not worse in the old domain: value." in words
    assert found.won() == ("value",)
