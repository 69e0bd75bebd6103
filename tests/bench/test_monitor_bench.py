"""The bench of the Monitor runs end to end in a toy size, and its slope and ratios are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from alpose.runtime.triggers import Control, Threshold
from bench import monitor as bench
from bench.parts import footage as stand_ins


def test_the_slope_of_a_line_in_noise_is_inside_its_interval() -> None:
    rng = np.random.default_rng(0)
    for slope in (0.0, 0.5, -2.0):
        walk = np.convolve(rng.normal(size=4000), np.ones(20) / 20, mode="same")  # neighbours hang together
        low, found, high = bench.slope_of(slope * np.arange(4000) + 100 * walk)
        assert low < slope < high
        assert low < found < high
    low, _, high = bench.slope_of(np.arange(4000) * 3.0 + rng.normal(size=4000))
    assert low > 2.99
    assert high < 3.01
    assert np.isnan(bench.slope_of(np.zeros(2))).all()


def test_a_ratio_is_taken_within_each_block() -> None:
    slow = np.repeat([1.0, 100.0], 50)  # the machine was busy in the second half
    [found] = bench.ratios({bench.POSE: slow, bench.HEAD: 1.25 * slow})
    assert found["ratio"]["median"] == pytest.approx(1.25)
    assert found["ratio"]["max"] == pytest.approx(1.25)


def test_the_policy_keeps_the_share_by_probability_where_that_tells_frames_apart() -> None:
    said_N = np.arange(100, dtype=np.float32) / 128
    assert stand_ins.policy(said_N, 0.05) == Threshold(95 / 128)
    assert stand_ins.policy(np.full(100, 0.5, np.float32), 0.05) == Control(rate=0.05)


def test_rendered_frames_have_the_size_of_a_cameras() -> None:
    film = stand_ins.footage(None, 3)
    assert len(film) == 3
    assert {frame.shape for frame in film.frames} == {(480, 640, 3)}
    assert film.frames[0].std() > 5


def test_the_bench_runs_and_says_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(bench, "random_bundle", lambda folder: stand_ins.random_bundle(folder, size_px=64, channels=8))
    out = tmp_path / "monitor.json"
    arguments = ["--frames", "4", "--rounds", "6", "--warmup", "1", "--calls", "2", "--soak", "60", "--share", "0.5"]
    run = CliRunner().invoke(bench.main, [*arguments, "--disk", str(tmp_path), "--out", str(out)],
                             catch_exceptions=False)  # fmt: skip
    assert run.exit_code == 0, run.output
    result = json.loads(out.read_text())
    named = {one["contestant"] for one in result["measurements"]}
    assert named | set(result["left_out"]) == set(bench.SAYS)
    for one in result["measurements"]:
        assert 0 < one["p50_ms"] <= one["p99_ms"] <= one["p99_9_ms"] <= one["max_ms"]
    assert {one["contestant"] for one in result["throughput"]} == {bench.POSE, bench.HEAD, bench.APP, bench.WATCHED}
    assert result["counts"]["stored_total"] > 0
    assert result["soak"]["frames"] == 60
    assert "memory over 60 recorded frames" in run.output
    assert not list(tmp_path.glob("bench-monitor-*"))
