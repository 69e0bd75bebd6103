"""``fit --pose``: from an ONNX file and labels to a model, what it says on the way, and what it refuses first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from alpose.runtime.errors import AlposeError
from alpose.trainer.cli import main
from alpose.trainer.foreign import evidence as evidence_module
from alpose.trainer.foreign import timing
from alpose.trainer.foreign.fitting import ForeignFitConfig, fit_foreign
from alpose.trainer.foreign.heads import HEADS, build_detector
from alpose.trainer.foreign.learning import config_of
from alpose.trainer.foreign.measuring import Difference
from alpose.trainer.foreign.model import load
from alpose.trainer.foreign.net import ForeignNet, open_net
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognition.recognise import examine
from alpose.trainer.foreign.recognition.stated import Stated

from . import dots


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.set_num_threads(1)

    def call(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return call


@pytest.fixture
def parts(tmp_path: Path) -> list[object]:
    """The options of a fit of the dots net."""
    return ["--pose", dots.finder(tmp_path / "dots.onnx"), "--data", dots.folder(tmp_path / "data"), "--skeleton",
            dots.skeleton_file(tmp_path / "dots.json"), "--mean", "0", "--std", "1", "--taps", "features"]  # fmt: skip


def test_from_a_file_to_a_model(run: Any, parts: list[object], tmp_path: Path) -> None:
    """The command of the README; what it prints, the folder, and that labels decide who trained."""
    said = run("fit", *parts, "--out", "models/dots", "--views", 3, "--group-by", "file_name")
    assert "Kept: " in said
    assert "the net's own score" in said
    for name in ("facts", "facts+features", "ll++", "mean peak"):
        assert name in said
    model = load(tmp_path / "models" / "dots")
    assert model.net.read_bytes() == (tmp_path / "dots.onnx").read_bytes()
    found = json.loads((tmp_path / "models" / "dots" / "fit.json").read_text())
    assert 10 < found["held_out"] < 30
    assert found["failures"] > 2
    assert set(model.facts["labelled_joints"]) == set(dots.SKELETON.joints)
    assert len(model.facts["labelled_ids"]) == 80 - found["held_out"]
    aurocs = {row["name"]: row["all"]["auroc"] for row in found["rows"]}
    assert aurocs[found["chosen"]] > 0.8  # a missing dot is seen in its map


def test_a_head_that_is_too_slow_does_not_ship(
    parts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table has the time of every head that is better than the best free score, and the verdict names the slow ones."""
    from alpose.trainer.device import device_context

    def takes(net: Any, reader: Any, detectors: dict[str, Any]) -> dict[str, timing.Cost]:
        return {name: timing.Cost(pose_ms=10, extra_ms=0.8 if name in HEADS else 0.1) for name in detectors}

    monkeypatch.setattr(timing, "costs", takes)
    monkeypatch.setattr(Difference, "is_better", property(lambda difference: True))
    stated = Stated(skeleton=dots.SKELETON, mean=(0, 0, 0), std=(1, 1, 1))
    found = {}
    for share in (0.05, 0.1):
        config = ForeignFitConfig(pose=Path(str(parts[1])), data=(str(parts[3]),), views=1, heads=("facts",), stated=stated,
                                  max_extra=share)  # fmt: skip
        found[share] = fit_foreign(config, tmp_path / str(share), device_context("cpu"), data_root=None, cache=tmp_path)
    assert found[0.05].chosen == found[0.05].best_free
    assert "slower than --max-extra-time 0.05 allows: facts (+8.0%)" in found[0.05].table()
    assert found[0.1].chosen == "facts"
    extra = {row.name: row.extra for row in found[0.1].rows if row.extra is not None}
    assert extra == pytest.approx({"facts": 0.08, found[0.1].best_free: 0.01})


def test_a_net_is_timed_with_what_reads_it_in_one_graph(parts: list[object]) -> None:
    """Whatever the opsets of both; the head that reads more takes longer than the net alone."""
    net = open_net(Path(str(parts[1])), examine(Path(str(parts[1])), Stated(skeleton=dots.SKELETON)).spec)
    reader = NetReader(net.spec, net.shapes)
    head = build_detector(config_of("epck", reader, (0, 1)), len(net.spec.skeleton)).eval()
    cost = timing.Clock(net, reader)({"epck": head})["epck"]
    assert cost.pose_ms > 0
    assert cost.extra_ms > 0


def test_a_new_head_from_more_labels_keeps_those_of_before(run: Any, parts: list[object], tmp_path: Path) -> None:
    """``--from`` needs no net and no description; who trained before trains again and is never held out."""
    failure = ("--failure", "mean-error", "--failure-limit", 0.15)
    run("fit", *parts, "--out", "first", "--views", 1, "--heads", "facts", *failure)
    more = dots.folder(tmp_path / "field", 24, seed=5)
    run("fit", "--from", "first", "--data", more, "--out", "second", "--heads", "facts")
    first, second = (load(tmp_path / name) for name in ("first", "second"))
    assert set(first.facts["labelled_people"]) < set(second.facts["labelled_people"])
    assert second.spec == first.spec
    # What is not stated again is as it was: views, and when a pose counts as failed.
    assert second.facts["views"] == first.facts["views"] == 1
    assert second.facts["failure"] == first.facts["failure"] == {"name": "mean-error", "limit": 0.15}
    found = json.loads((tmp_path / "second" / "fit.json").read_text())
    assert found["views"] == 2 * found["held_out"]
    assert "--colour, --taps: with --from the net is described as in first" in run(
        "fit", "--from", "first", "--data", more, "--out", "x", "--colour", "bgr", "--taps", "features", code=2)  # fmt: skip
    assert "--pose FILE, or an earlier model of it with --from FOLDER, not both" in run(
        "fit", "--from", "first", *parts[:2], "--data", more, "--out", "x", code=2)  # fmt: skip


def test_an_interrupted_pass_goes_on_and_ends_with_the_same_numbers(
    parts: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of a block's net; blocks that were marked as done are not run again."""
    monkeypatch.setattr(evidence_module, "BLOCK", 8)
    config = ForeignFitConfig(
        pose=Path(str(parts[1])), data=(str(parts[3]),), views=2, heads=("facts",),
        stated=Stated(skeleton=dots.SKELETON, mean=(0, 0, 0), std=(1, 1, 1)),
    )  # fmt: skip
    from alpose.trainer.device import device_context

    machine, calls, real = device_context("cpu"), [0], ForeignNet.__call__

    def counted(self: ForeignNet, frames_NHW3: Any) -> Any:
        calls[0] += 1
        if stop_at is not None and calls[0] == stop_at:
            raise KeyboardInterrupt
        return real(self, frames_NHW3)

    monkeypatch.setattr(ForeignNet, "__call__", counted)
    stop_at: int | None = None
    whole = fit_foreign(config, tmp_path / "whole", machine, data_root=None, cache=tmp_path / "one")
    in_all, calls[0], stop_at = calls[0], 0, 44
    with pytest.raises(KeyboardInterrupt):
        fit_foreign(config, tmp_path / "again", machine, data_root=None, cache=tmp_path / "two")
    stop_at, calls[0] = None, 0
    again = fit_foreign(config, tmp_path / "again", machine, data_root=None, cache=tmp_path / "two")
    assert calls[0] < in_all - 30
    assert [replace(row, extra=None) for row in whole.rows] == [replace(row, extra=None) for row in again.rows]
    first, second = (load(tmp_path / name).detector.state_dict() for name in ("whole", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_refused_before_anything_costly(run: Any, parts: list[object], tmp_path: Path) -> None:
    """One sentence each, that says what to do."""
    few = dots.folder(tmp_path / "few", 10)
    assert "too few" in run("fit", *parts[:2], "--data", few, *parts[4:], "--out", "x", code=1)
    easy = dots.folder(tmp_path / "easy", 30, hard=0.0)
    blind = dots.finder(tmp_path / "blind.onnx", blind=True)
    said = run("fit", "--pose", blind, "--data", easy, *parts[4:], "--out", "x", code=1)
    assert "fails on 19 of 19 labelled people that were tried (100 %)" in said
    assert 'where a failure is "image PCK below 0.5"' in said
    assert "look at it with alpose-train pose describe" in said
    assert "state a milder failure, --failure-limit below 0.5, or --failure mean-error --failure-limit 0." in said
    assert "It answers the same points on every picture" in said
    hands = tmp_path / "hands.json"
    hands.write_text(json.dumps({**dots.SKELETON.to_json(), "joints": ["a", "b", "c", "d"]}))
    said = run("fit", *parts[:4], "--skeleton", hands, *parts[6:], "--out", "x", code=2)
    assert "none in common" in said
    assert "--epochs: a net of --pose is not trained" in run("fit", *parts, "--out", "x", "--epochs", 3, code=2)
    said = run("fit", "--data", "synthetic", "--out", "x", "--like", "hrnet", "--views", 2, code=2)
    assert "--like, --views: that is for a net of --pose" in said
    assert not (tmp_path / "x").exists()


def test_a_net_that_never_fails_is_refused(tmp_path: Path, parts: list[object]) -> None:
    """Where a failure is defined so that there is none."""
    from alpose.trainer.device import device_context
    from alpose.trainer.measures.metrics import Failure

    config = ForeignFitConfig(
        pose=Path(str(parts[1])), data=(str(dots.folder(tmp_path / "easy", 30, hard=0.0)),), failure=Failure("mean-error", 1.0),
        stated=Stated(skeleton=dots.SKELETON, mean=(0, 0, 0), std=(1, 1, 1)),
    )  # fmt: skip
    with pytest.raises(
        AlposeError,
        match=r"fails on 0 of 19 .* \(0 %\), where .*mean error, in sides of the crop, above 1.*stricter failure, --failure any-joint, or --failure mean-error --failure-limit 0\.",
    ):
        fit_foreign(config, tmp_path / "x", device_context("cpu"), data_root=None, cache=tmp_path / "cache")


def test_free_scores_need_no_direction_from_labels() -> None:
    """A low score is bad, a high entropy is bad; places say nothing."""
    from alpose.trainer.foreign.heads import free_scores

    found = free_scores(("x", "score", "entropy x", "distance to mirror", "mirror score", "flag"), (0, 1))
    assert list(found) == ["mean score", "lowest score", "mean entropy x", "highest entropy x", "mean flag"]
    assert [config.sign for config in found.values()] == [-1, -1, 1, 1, -1]
    assert np.unique([config.fact for config in found.values()]).tolist() == [1, 2, 5]


def test_from_python_in_two_lines(parts: list[object], tmp_path: Path) -> None:
    """``wrap`` and ``fit``, as the README has them."""
    import alpose.trainer

    net = alpose.trainer.wrap(str(parts[1]), skeleton=dots.SKELETON, mean=(0, 0, 0), std=(1, 1, 1), taps=("features",))
    found = alpose.trainer.fit(
        net, str(parts[3]), out=tmp_path / "mine", views=1, heads=("facts",), cache=tmp_path / "cache"
    )
    assert found.net == load(tmp_path / "mine").spec.name
    assert {row.name for row in found.rows} > {"facts", "mean score", "the net's own score"}
