"""The whole export, from a checkpoint that a benchmark left and from a net that is not ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alpose.export.calibration import fitting_half
from alpose.export.graph import MonitorGraph, TorchEngine
from alpose.export.parity import ParityError, ParityLimits, answer, judge_outputs
from alpose.export.precision import Int8Config
from alpose.export.quality import BINS, CalibrationReport
from alpose.export.verify import verify
from alpose.export.write import ExportConfig, _calibrate, _previous, _see, export, export_checkpoint
from alpose.runtime.bundle import Bundle
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import CheckpointError, ConfigError, DataError
from alpose.runtime.io import from_json
from alpose.runtime.skeleton import LSP, MPII
from alpose.trainer import checkpoint
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.run import RunConfig
from alpose.trainer.data.crops import unseen_crops
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.device import device_context
from alpose.trainer.measures.metrics import Failure, profile_of
from alpose.trainer.measures.statistics import ece_equal_width
from alpose.trainer.models.hourglass import Features
from alpose.trainer.presets import preset
from alpose.trainer.scoring import score

# The smoke preset's net knows next to nothing: half of its poses are off by more than this share of the crop.
TOY = ExportConfig(failure=Failure("mean-error", 0.6))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("crops")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    methods = ("random", "ll++", "ll++conv")
    config = RunConfig.from_preset("smoke", "synthetic", methods=methods, budget=8, select_only=True)
    folder = tmp_path_factory.mktemp("run")
    run_benchmark(config, folder, device_context("cpu", "fp32"), data_root=None, cache=cache)
    return folder / "seed-0" / "base"


@pytest.fixture(scope="session")
def bundle(base: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "toy.alpose"
    return export_checkpoint(base, out, config=TOY, calibration="synthetic-hard", cache=cache)


def test_the_bundle_answers_as_the_trainer_scores(base: Path, bundle: Path, cache: Path) -> None:
    model = checkpoint.load(base)
    crops = unseen_crops(read_people(seed=5, count=40, domain="easy"), LSP, model.crop, cache, ())
    scored = score(model, crops, device_context("cpu", "fp32"))
    given = OnnxEngine(bundle)(crops.read_bare(np.arange(len(crops))))

    distance_NJ = np.linalg.norm(given.keypoints_NJ2 - scored.predicted_NJ2, axis=2)
    assert distance_NJ.max() < 0.05
    assert given.predicted_loss_N == pytest.approx(scored.predicted_loss["ll++conv"], abs=1e-4)
    assert np.argsort(given.predicted_loss_N).tolist() == np.argsort(scored.predicted_loss["ll++conv"]).tolist()
    assert np.linalg.norm(given.embedding_ND, axis=1) == pytest.approx(1.0, abs=1e-5)


def test_the_probability_is_the_stored_calibration_of_the_nets_evidence(base: Path, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.calibration is not None
    graph = MonitorGraph.from_model(checkpoint.load(base), "ll++conv")
    evidence_G3 = TorchEngine(graph).evidence(opened.golden.frames_GHW3)
    report = from_json(CalibrationReport, opened.calibration.facts)
    probability_G = OnnxEngine(bundle)(opened.golden.frames_GHW3).failure_probability_N

    assert probability_G == pytest.approx(report.calibration.probability(evidence_G3), abs=1e-4)
    assert (np.diff(opened.golden.expected.failure_probability_N) >= 0).all()  # from the surest to the worst


def test_the_manifest_tells_what_it_was_made_of(base: Path, bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["head"] == "ll++conv"
    assert manifest["precision"] == "fp32"
    assert manifest["calibration"]["failure"] == {"name": "mean-error", "limit": 0.6}
    assert manifest["provenance"]["model"]["dataset"] == "synthetic"
    assert manifest["crop"]["width_px"] == checkpoint.load(base).crop.size_px


def test_verify_passes_and_says_what_it_could_not_ask(bundle: Path) -> None:
    report = verify(bundle)
    assert report.passed
    assert "onnxruntime cpu: passed" in str(report)
    assert "tensorrt: not checked" in str(report)  # no engine was built for it, whether TensorRT is here or not


def test_verify_names_a_damaged_file_and_exits_with_1(bundle: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "toy.alpose"
    shutil.copytree(bundle, damaged)
    content = (damaged / "model.onnx").read_bytes()
    (damaged / "model.onnx").write_bytes(content[: len(content) // 2])
    run = subprocess.run(
        [sys.executable, "-m", "alpose.export", "verify", str(damaged)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "model.onnx" in run.stdout
    assert "FAILED" in run.stdout


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_lower_precisions_carry_their_figures_and_their_speed(
    base: Path, cache: Path, tmp_path: Path, precision: Any
) -> None:
    loose = ParityLimits(probability_max=0.9)
    # Some activations of the toy are constant, and a percentile needs a range.
    config = ExportConfig(precision=precision, failure=TOY.failure, limits=loose, int8=Int8Config(method="minmax"))
    out = export_checkpoint(base, tmp_path / "low.alpose", config=config, calibration="synthetic-hard", cache=cache)
    manifest = json.loads((out / "bundle.json").read_text())
    assert manifest["parity"]["probability_max"]["limit"] == 0.9
    assert manifest["parity"]["loss_rank_correlation"]["value"] > 0.5
    assert "fp32" in manifest["provenance"]["speed"]["verdict"]
    assert verify(out).passed


def test_a_figure_beyond_its_limit_fails_the_export_and_leaves_nothing(base: Path, cache: Path, tmp_path: Path) -> None:
    config = ExportConfig(precision="fp16", failure=TOY.failure, limits=ParityLimits(embedding_max=1e-9))
    with pytest.raises(ParityError, match=r"embedding_max is .*, may be 1e-09 at most"):
        export_checkpoint(base, tmp_path / "bad.alpose", config=config, calibration="synthetic-hard", cache=cache)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_is_there_stays_unless_replaced(base: Path, bundle: Path, cache: Path) -> None:
    before = (bundle / "bundle.json").read_bytes()
    with pytest.raises(ConfigError, match="replace"):
        export_checkpoint(base, bundle, config=TOY, calibration="synthetic-hard", cache=cache)
    assert (bundle / "bundle.json").read_bytes() == before


def test_another_name_than_alpose_is_refused_at_once(base: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends with \.alpose"):
        export_checkpoint(base, tmp_path / "toy", config=TOY, calibration="synthetic-hard", cache=cache)


def test_people_of_one_class_are_no_calibration(base: Path, tmp_path: Path, cache: Path) -> None:
    nobody_fails = ExportConfig(failure=Failure("mean-error", 1.0))
    with pytest.raises(DataError, match="fail"):
        export_checkpoint(base, tmp_path / "x.alpose", config=nobody_fails, calibration="synthetic-hard", cache=cache)


def test_people_that_trained_the_model_do_not_calibrate_it(base: Path, cache: Path) -> None:
    model = checkpoint.load(base)
    people = read_people(seed=0, count=preset("smoke").sizes.initial, domain="easy")
    with pytest.raises(DataError, match="all 32 people of synthetic-easy trained this model"):
        unseen_crops(people, LSP, model.crop, cache, set(model.facts["labelled_ids"]))


def test_people_of_another_skeleton_are_refused(base: Path, cache: Path) -> None:
    with pytest.raises(DataError, match="16 of 'mpii'"):
        unseen_crops(read_people(seed=0, count=4, domain="easy"), MPII, checkpoint.load(base).crop, cache, ())


def test_weights_that_are_not_finite_are_refused_by_name(base: Path, tmp_path: Path, cache: Path) -> None:
    model = checkpoint.load(base)
    with torch.no_grad():
        model.pose.get_parameter("outs.0.weight")[0] = torch.nan
    checkpoint.save(model, tmp_path / "nan")
    with pytest.raises(CheckpointError, match=r"outs\.0\.weight"):
        export_checkpoint(
            tmp_path / "nan", tmp_path / "x.alpose", config=TOY, calibration="synthetic-hard", cache=cache
        )


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "model.json").write_text('{"kind": "something else"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="does not describe an alpose pose model"):
        export_checkpoint(tmp_path, tmp_path / "x.alpose", config=TOY, calibration="synthetic-hard", cache=cache)


def test_the_card_shows_other_people_and_an_older_bundle(base: Path, bundle: Path, cache: Path, tmp_path: Path) -> None:
    out = export_checkpoint(
        base, tmp_path / "two.alpose", config=TOY, calibration="synthetic-hard", also=("synthetic-hard",),
        previous=bundle, cache=cache,
    )  # fmt: skip
    page = (out / "card.html").read_text()
    assert "synthetic-hard" in page
    assert "AP by OKS, poses ranked by it" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_an_older_bundle_is_measured_on_the_people_that_measure_the_new_one(
    base: Path, bundle: Path, cache: Path
) -> None:
    model = checkpoint.load(base)
    crops = unseen_crops(read_people(seed=1, count=400, domain="hard"), LSP, model.crop, cache, ())
    seen = _see(MonitorGraph.from_model(model, "ll++conv"), crops, TOY)
    made, before = _calibrate(seen, crops, TOY), _previous(bundle, crops, TOY)

    assert (before.people, before.failures) == (made.measured, made.measured_failures)


def test_an_older_bundle_is_measured_by_its_own_net_and_calibration(
    base: Path, bundle: Path, cache: Path, tmp_path: Path
) -> None:
    """Whatever the new model is: another head, a net that was trained on, another crop."""
    model = checkpoint.load(base)
    crops = unseen_crops(read_people(seed=1, count=400, domain="hard"), LSP, model.crop, cache, ())
    opened = Bundle.open(bundle)
    outputs = answer(OnnxEngine(opened), crops.read_bare(np.arange(len(crops))))
    _, failed_N, defined_N = judge_outputs(outputs, crops, profile_of(TOY.profile, crops.data), TOY.failure)
    mine_N = ~fitting_half(crops.data.pictures()) & defined_N
    probability_N, failed_N = outputs.failure_probability_N[mine_N].astype(float), failed_N[mine_N]
    before = _previous(bundle, crops, TOY)

    assert before.failures == failed_N.sum()
    assert before.ece == pytest.approx(ece_equal_width(probability_N, failed_N, BINS))
    for catch in before.catches:
        flagged_N = probability_N >= catch.threshold
        assert catch.caught == (flagged_N & failed_N).sum()
        assert catch.flagged == pytest.approx(flagged_N.mean())
    wider = replace(model.crop, margin=1.5)
    other = _previous(bundle, unseen_crops(read_people(seed=1, count=400, domain="hard"), LSP, wider, cache, ()), TOY)
    assert (other.people, other.failures) == (before.people, before.failures)
    assert [catch.caught for catch in other.catches] == [catch.caught for catch in before.catches]


class SmallResNet(nn.Module):
    """A pose net as a user writes one: residual layers with names of its own, and a deconvolution head."""

    def __init__(self, joints: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU()
        )
        self.final = nn.Conv2d(16, joints, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer2(self.layer1(self.conv1(images)))
        return self.final(self.deconv(features))


class SumHead(nn.Module):
    """Any module that takes features and gives one number per image."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16 + 16 + 16, 1)

    def forward(self, features: Features) -> Tensor:
        parts = [scale.mean(dim=(2, 3)) for scale in (*features.pyramid, features.penultimate_BCHW)]
        return self.out(torch.cat(parts, dim=1))[:, 0]


def test_a_net_that_is_not_ours_is_exported_with_features_tapped_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    out = export(
        SmallResNet(len(LSP)), SumHead(), tmp_path / "mine.alpose", skeleton=LSP, size_px=64, peak=0.5,
        taps=("layer1", "layer2"), penultimate="deconv", people=read_people(seed=2, count=300, domain="easy"),
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), config=ExportConfig(failure=Failure("mean-error", 0.35)),
    )  # fmt: skip
    assert verify(out).passed
    manifest = json.loads((out / "bundle.json").read_text())
    assert manifest["head"] == "SumHead"
    assert manifest["outputs"]["embedding"]["shape"] == ["N", 16]


def test_an_unknown_tap_says_what_was_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no module 'layer3': did you mean layer"):
        export(
            SmallResNet(len(LSP)), SumHead(), tmp_path / "mine.alpose", skeleton=LSP, size_px=64, peak=0.5,
            taps=("layer1", "layer3"), penultimate="deconv", people=read_people(seed=2, count=4, domain="easy"),
        )  # fmt: skip
