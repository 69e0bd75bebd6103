from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alpose.runtime.errors import ConfigError
from alpose.trainer.checkpoint import PoseModel, TargetConfig, new_auxiliary
from alpose.trainer.cycles.base_model import BaseModel
from alpose.trainer.cycles.results import load_npz
from alpose.trainer.cycles.run import RunConfig, claim, open_run
from alpose.trainer.data.augment import to_input
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.heatmaps import entropy, multipeak_entropy
from alpose.trainer.methods.options import EglConfig, ScoreOptions
from alpose.trainer.scoring import Scored, auxiliary_score, score

PEAK = 0.05


def test_options_are_read_from_the_command_line() -> None:
    assert ScoreOptions.parse("") == ScoreOptions()
    assert ScoreOptions.parse("temperature=2.5, border=dropped,peaks=3,members=7") == ScoreOptions(
        temperature=2.5, border="dropped", peaks=3, members=7
    )
    for text, message in {
        "temperature": "'temperature' is not one of temperature, border, peaks, members, once, as NAME=VALUE",
        "heads=3": "'heads=3' is not one of",
        "peaks=2,peaks=3": "'peaks=3' is not one of .* once",
        "members=many": "'members=many' wants a whole number",
        "peaks=2.5": "'peaks=2.5' wants a whole number",
        "temperature=0": "above 0, got 0",
        "temperature=nan": "above 0, got nan",
        "border=away": "border is kept or dropped, got 'away'",
        "peaks=0": "at least 1, got 0",
        "members=1": "at least 2 members to disagree, got 1",
    }.items():
        with pytest.raises(ConfigError, match=rf"^--scores: .*{message}"):
            ScoreOptions.parse(text)


@pytest.fixture(scope="module")
def crops(make_crops: Callable[..., Crops]) -> Crops:
    return make_crops(9)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., PoseModel], crops: Crops) -> PoseModel:
    """With the heads that have options; its maps are pulled about 0, and beside so low a training peak they have some."""
    made = replace(make_model(depth=2), target=TargetConfig(peak=PEAK))
    last: Any = made.pose.outs[-1]  # type: ignore[index]
    with torch.no_grad():
        maps = made.pose.eval()(to_input(torch.from_numpy(crops.read_bare(np.arange(9))))).heatmaps_BSJHW[:, -1]
        last.bias -= maps.mean(dim=(0, 2, 3))
    return made.with_auxiliary(
        {"vl4pose": new_auxiliary(made, "vl4pose", 0), "ensemble": new_auxiliary(made, "ensemble", 0, members=3)}
    )


@pytest.fixture(scope="module")
def output(model: PoseModel, crops: Crops, cpu: DeviceContext) -> Any:
    """In the order of memory that scoring uses: rounding decides whether a cell beside a peak is one."""
    model.to(cpu.device)
    images = to_input(torch.from_numpy(crops.read_bare(np.arange(9))))
    with torch.no_grad():
        return model.pose.eval()(images.contiguous(memory_format=torch.channels_last))


@pytest.fixture(scope="module")
def maps(output: Any) -> Any:
    return output.heatmaps_BSJHW[:, -1] * (30 / PEAK)


def test_options_change_the_scores_they_name_and_no_others(
    model: PoseModel, crops: Crops, cpu: DeviceContext, output: Any, maps: Any
) -> None:
    plain = score(model, crops, cpu).save_arrays()
    with torch.no_grad():
        one_peak = auxiliary_score(model.auxiliary["vl4pose"], output.features, maps, ScoreOptions(peaks=1))
    expected = {
        "temperature=4": {"entropy_N": entropy(maps, 4.0), "multipeak_N": multipeak_entropy(maps, temperature=4.0, min_distance=1)},
        "border=dropped": {"multipeak_N": multipeak_entropy(maps, temperature=1.0, min_distance=1, exclude_border=True)},
        "peaks=1": {"auxiliary.vl4pose": one_peak},
        "members=9": {},  # decided when the heads were made
    }  # fmt: skip
    for text, changed in expected.items():
        found = score(model, crops, cpu, options=ScoreOptions.parse(text)).save_arrays()
        assert {name for name, value in found.items() if not np.array_equal(value, plain[name])} == set(changed)
        for name, value in changed.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_official_forms_of_multipeak_are_computed_where_they_are_asked_for(
    model: PoseModel, crops: Crops, cpu: DeviceContext, maps: Any
) -> None:
    assert not score(model, crops, cpu).forms
    scored = score(model, crops, cpu, options=ScoreOptions(temperature=4.0), forms=("multipeak-2021", "multipeak-2022"))

    official: dict[str, Any] = {"temperature": 1.0, "exclude_border": True, "merge_plateaus": True}
    # Of 64 cells 5 and 7 apart are 1 and 2 of 16.
    expected = {"multipeak-2022": multipeak_entropy(maps, min_distance=1, **official),
                "multipeak-2021": multipeak_entropy(maps, min_distance=2, num_peaks=None, threshold=7.5, **official)}  # fmt: skip
    for name, value in expected.items():
        np.testing.assert_allclose(scored.save_arrays()[f"form.{name}"], value, rtol=1e-3, atol=1e-4, err_msg=name)
        assert value.max() > value.min()
    back = Scored.from_arrays(scored.save_arrays()).take(np.array([3, 1]))
    np.testing.assert_array_equal(back.forms["multipeak-2021"], scored.forms["multipeak-2021"][[3, 1]])


def smoke(**changes: Any) -> RunConfig:
    plain = {"methods": ("ensemble",), "budget": 8, "select_only": True}
    return RunConfig.from_preset("smoke", "synthetic", **{**plain, **changes})


def test_a_base_that_is_taken_over_gets_the_committee_and_the_scores_that_are_asked_for(
    tmp_path: Path, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pose net is not trained again, its scores are made again only where they are others."""

    def base(folder: str, bases: str | None = None, **changes: Any) -> tuple[PoseModel, dict[str, Any], int]:
        run = open_run(smoke(**changes), tmp_path / folder, None, tmp_path / "cache", cpu)
        made = BaseModel(run, 0, ("ensemble",), tmp_path / bases if bases else None)
        scored = made.scored()[0].save_arrays()
        path = tmp_path / folder / "seed-0/base/scored.npz"
        assert load_npz(path).keys() == {*scored, "made_of", "seconds"}
        return made.model(), scored, path.stat().st_mtime_ns

    first, plain, written = base("first")
    monkeypatch.setattr("alpose.trainer.cycles.base_model.train_pose", None)  # would fail if called
    assert first.auxiliary["ensemble"].config.members == ScoreOptions().members
    assert base("first")[2] == written

    more, _, _ = base("more", "first", scores=ScoreOptions(members=3))
    assert more.auxiliary["ensemble"].config.members == 3
    warm, other, _ = base("warm", "first", scores=ScoreOptions(temperature=3.0))
    assert warm.auxiliary["ensemble"].config.members == ScoreOptions().members
    assert not np.array_equal(other["entropy_N"], plain["entropy_N"])
    np.testing.assert_array_equal(other["auxiliary.ensemble"], plain["auxiliary.ensemble"])

    _, forms, again = base("first", methods=("ensemble", "multipeak-2022"))
    assert again > written
    assert forms.keys() - plain.keys() == {"form.multipeak-2022"}
    assert base("first")[2] == again  # more than is asked for is enough


@pytest.mark.parametrize(("name", "other"), [("scores", ScoreOptions(members=3)), ("egl", EglConfig(rank=None))])
def test_a_folder_of_other_options_is_refused_and_an_older_one_goes_on(
    name: str, other: Any, tmp_path: Path, cpu: DeviceContext
) -> None:
    configs = {"default": smoke(), "other": smoke(**{name: other})}
    for folder, config in configs.items():
        claim(config, tmp_path / folder, cpu)
        claim(config, tmp_path / folder, cpu)
    assert name not in (tmp_path / "default/config.json").read_text()  # as runs were before there was an option
    for folder, config in (("default", configs["other"]), ("other", configs["default"])):
        with pytest.raises(ConfigError, match=rf"holds another run.*{name} was"):
            claim(config, tmp_path / folder, cpu)
