"""The bench of the exported graph runs end to end in a toy size; its numpy contestant does the same work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from alpose.runtime.crop import cut, square_crop
from alpose.runtime.resampling import AFTER, BETWEEN
from alpose.runtime.skeleton import LSP
from alpose.trainer import heatmaps
from alpose.trainer.checkpoint import TargetConfig, new_head, new_model, save
from alpose.trainer.data.crops import CropConfig
from alpose.trainer.models.hourglass import HourglassConfig
from bench import export as bench
from bench.parts.export_contestants import BATCHES, SAYS, decode, entropy, noise
from bench.parts.export_crop import FRAME_HW, PERSON, weights


def test_decoding_in_numpy_is_the_trainers() -> None:
    maps = torch.randn(9, 4, 16, 16, generator=torch.Generator().manual_seed(0)) * 3
    maps[0] = 0
    maps[1, :, 0, 5] = 40
    joints, scores = decode(maps.numpy(), 4.0, 30.0)
    cells, peak = heatmaps.decode(maps)
    np.testing.assert_allclose(joints, heatmaps.to_pixels(cells, 4).numpy(), atol=1e-4)
    np.testing.assert_allclose(scores, peak.numpy() / 30, rtol=1e-6)
    np.testing.assert_allclose(entropy(maps.numpy()), heatmaps.entropy(maps, 1.0).numpy(), rtol=1e-4)


def test_the_weights_are_those_of_the_crop() -> None:
    frame = noise((*FRAME_HW, 3))
    for box in (PERSON, (-50.0, 300.0, 60.0, 520.0)):
        crop = square_crop(box, margin=1.25, size_px=64)
        rows, columns = weights(crop.down, 480), weights(crop.across, 640)
        between = np.floor(np.einsum("sh,hwc->swc", rows, frame.astype(np.float32)) / BETWEEN + 0.5)
        dense = np.floor(np.einsum("swc,tw->stc", between, columns) / AFTER + 0.5)
        np.testing.assert_array_equal(dense, cut(frame, crop))


def test_the_bench_runs_and_says_what_it_measured(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = new_model(HourglassConfig(joints=14, stacks=1, channels=8, depth=2), LSP, CropConfig(size_px=64),
                      TargetConfig(), 0)  # fmt: skip
    model = model.with_heads({"ll++conv": new_head(model, "ll++conv", 0)})
    save(model, tmp_path / "model")
    out = tmp_path / "export.json"
    arguments = [str(tmp_path / "model"), "--rounds", "2", "--warmup", "0", "--calls", "1", "--compiler", "none"]
    run = CliRunner().invoke(bench.main, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    result = json.loads(out.read_text())
    named = {(m["contestant"], m["batch"]) for m in result["measurements"]}
    assert named == {(name, batch) for name in SAYS if name != "torch.compile" for batch in BATCHES}
    assert result["left_out"] == {"torch.compile": "switched off"}
    for measurement in result["measurements"]:
        rates = [measurement["batch"] / seconds for seconds in measurement["seconds_per_round"]]
        assert measurement["images_per_s"]["max"] == pytest.approx(max(rates))
    assert {(r["of"], r["to"]) for r in result["ratios"]} == {
        pair for pair in bench.RATIOS if "torch.compile" not in pair
    }
    assert result["file_bytes"]["fp16"] < result["file_bytes"]["fp32"]
    assert {m["contestant"] for m in result["cropping"]["measurements"]} == {"crop in numpy", "crop in the graph"}
    assert "onnxruntime int8" in run.output

    wrong = CliRunner().invoke(bench.main, [str(tmp_path / "model"), "--head", "ll", "--out", str(out)])
    assert wrong.exit_code == 1
    assert "the checkpoint has the loss heads ll++conv, not 'll'" in wrong.output
