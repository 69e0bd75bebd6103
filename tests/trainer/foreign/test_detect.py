"""``detect --pose``: what a head is worth on somebody else's net, as numbers, lines and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from alpose.trainer.cli import main
from alpose.trainer.foreign.detect import (
    SHIPPED,
    DetectorRow,
    ForeignDetect,
    SetResult,
    load_result,
)
from alpose.trainer.foreign.measuring import OWN, Difference, Truth, difference
from alpose.trainer.foreign.timing import Cost
from alpose.trainer.measures.metrics import auroc
from alpose.trainer.pages.detect_pose import render

from . import dots


def page_of(name: str) -> str:
    """A page that is told this name everywhere, for the contract of all pages."""
    apart = Difference(value=0.1, low=0.05, high=0.15)

    def row(each: str, learned: bool = False) -> DetectorRow:
        return DetectorRow(name=each, learned=learned, auroc=0.9, low=0.8, high=0.95, per_seed=(0.9,), over_own=apart, auprc=0.5,
                           aurc=0.1, joint_auroc=None, joint_ece=0.02, risk=tuple(np.linspace(0.1, 0.3, 20)), augrc=0.05)  # fmt: skip

    each = SetResult(name=name, people=10, failures=3, pck=0.8, rows=(row(OWN), row(SHIPPED), row("epck", True), row(name)),
                     beside={"oks": 0.7})  # fmt: skip
    return render(ForeignDetect(
        net=name, file=name, sha256="0" * 64, crop="box", dataset=name, joints=(name,), trained_on=10, views=2, seeds=1,
        failure=name, chosen=("epck",), best_free=(name,), sets=(each,), cost=Cost(pose_ms=10.0, extra_ms=0.3),
        environment={"machine": name},
    ))  # fmt: skip


def test_what_a_head_is_worth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, its lines, its JSON and its page; joints without labels do not count."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.set_num_threads(1)
    net, data = dots.finder(tmp_path / "dots.onnx"), dots.folder(tmp_path / "data", 60)
    arguments: list[Any] = ["detect", "--pose", net, "--data", data, "--skeleton", dots.skeleton_file(tmp_path / "s.json"),
                            "--mean", "0", "--std", "1", "--views", 2, "--seeds", 2, "--heads", "facts,ll++", "--out", "found",
                            "--taps", "features"]  # fmt: skip
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "What ships, chosen on held-out people:" in result.output
    found = load_result(tmp_path / "found" / "detect-pose.json")
    assert found == load_result(tmp_path / "found" / "detect-pose.json")
    assert json.loads((tmp_path / "found" / "detect-pose.json").read_text())["seeds"] == 2
    (each,) = found.sets
    names = [row.name for row in each.rows]
    assert names[:2] == [OWN, SHIPPED]
    assert {"facts", "ll++", "mean score", "mean peak"} < set(names)
    assert all(len(row.per_seed) == 2 for row in each.rows)
    assert all(row.augrc is not None and row.aurc is not None and row.augrc <= row.aurc for row in each.rows)
    assert each.row(OWN).over_own.value == 0
    assert each.row(OWN).ap == pytest.approx(each.beside["ap"])  # the one place where the net's own score ranks poses
    assert all(row.oks is not None and -1 <= row.oks <= 1 and row.ap is not None for row in each.rows)
    assert 0 < each.beside["oks"] < 1  # type: ignore[operator]
    assert found.cost is not None
    assert found.cost.pose_ms > 0
    assert "detect-pose.html" in result.output
    assert (tmp_path / "found" / "detect-pose.html").is_file()


def test_a_difference_resamples_pictures_with_all_their_views() -> None:
    """Eight copies of one picture are one picture: the interval is as wide as without the copies."""
    random = np.random.default_rng(0)
    failed_N = random.random(60) < 0.4
    a_N, b_N = (failed_N + random.normal(0, noise, 60) for noise in (0.5, 1.0))
    once = Truth(np.arange(60), failed_N, np.arange(60), np.ones(60, np.bool_))
    copies = [np.tile(values, 8) for values in (a_N, b_N, failed_N)]
    many = Truth(np.arange(480), copies[2].astype(np.bool_), np.tile(np.arange(60), 8), np.ones(480, np.bool_))
    first, second = difference([a_N], [b_N], once), difference(copies[:1], copies[1:2], many)
    assert first.value == pytest.approx((auroc(a_N, failed_N) or 0) - (auroc(b_N, failed_N) or 0))
    assert (first.value, first.low, first.high) == pytest.approx((second.value, second.low, second.high))
    assert first.low is not None
    assert first.low < first.value < (first.high or 0)
