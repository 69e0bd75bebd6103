"""The whole export: from a model and labelled people to a bundle that has been verified.

Order matters: the calibration is fitted before the graph is written, because it is part of the graph; parity is measured
on the graph as a device will run it; and nothing is written to its place before every check has passed.

Shapes: N people, S crop side, J joints, G golden frames.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from alpose import __version__
from alpose.runtime.bundle import Bundle
from alpose.runtime.bundle.golden import run_golden
from alpose.runtime.bundle.manifest import CARD, GOLDEN, MODEL, WEIGHTS, Precision, crop_to_json, tensors
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import ConfigError
from alpose.runtime.io import from_json, to_json
from alpose.runtime.skeleton import Skeleton, with_flip_pairs
from alpose.runtime.types import Outputs
from alpose.trainer import checkpoint
from alpose.trainer.checkpoint import PoseModel
from alpose.trainer.data.catalog import Sizes, open_dataset
from alpose.trainer.data.crops import CropConfig, Crops, prepare, unseen_crops
from alpose.trainer.data.records import Bools, PoseData, who_trained
from alpose.trainer.measures.joint_calibration import JointCalibration, calibrate_joints
from alpose.trainer.measures.joint_calibration import measure as measure_joints
from alpose.trainer.measures.keypoint_measures import oks_of
from alpose.trainer.measures.metrics import Failure, ProfileName, profile_of
from alpose.trainer.models.heads import HeadName
from alpose.trainer.presets import preset

from .bundle_files import check_place, golden_bytes, write_bundle
from .calibration import Calibration, fitting_half
from .card import render_card
from .graph import MonitorGraph
from .merge import MOST_BYTES
from .onnx_graph import GraphSpec, OnnxFacts
from .parity import (
    LIMITS,
    ParityFigures,
    ParityLimits,
    answer,
    appended,
    compare,
    extreme_crop,
    golden_frames,
    judge_outputs,
    require,
)
from .precision import Int8Config, to_fp16, to_int8
from .quality import CalibrationReport, calibrate
from .shift import Applied, apply, apply_probabilities

log = logging.getLogger("alpose")

PREFERRED: tuple[HeadName, ...] = ("epck", "ll++conv", "ll++conv-gap", "ll++", "ll-gap", "ll", "epck-slim")
"""Which of a checkpoint's heads goes into the bundle unless one is named; others follow as they stand there."""

PARITY_CROPS = 500
SPEED_ROUNDS = 60
EXPECTED_SPEED_UP = 1.5
WHY_NOT_FASTER = {
    "fp16": "ONNX Runtime's CPU provider has no half-precision convolutions and converts to float32; fp16 is for GPUs",
    "int8": "only convolutions on large enough maps are int8; batch normalisation before activations, upsampling, sums, "
            "the loss head and what follows it stay float32, and at batch 1 each node costs as much as its arithmetic",
}  # fmt: skip
"""What the card says where a lower precision is hardly faster on a CPU."""


class ReferenceEngine(Protocol):
    """The slow exact twin of a graph, which also says what a calibration is fitted to."""

    name: str

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer N frames."""

    def answers_and_evidence(
        self, frames_NHW3: npt.NDArray[np.uint8]
    ) -> tuple[Outputs, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The outputs, the image's evidence (N, 3), and the logits of the joints being right (N, J)."""


class Exportable(Protocol):
    """A graph that can become a bundle: of a net of ours, or of somebody else's."""

    @property
    def spec(self) -> GraphSpec:
        """Names and sizes."""

    @property
    def joint_source(self) -> str:
        """``head`` where it knows joints, otherwise ``score``."""

    def with_calibration(self, calibration: Calibration, joints: JointCalibration | None = None) -> Exportable:
        """The same graph with these probabilities."""

    def reference(self) -> ReferenceEngine:
        """What the written graph is held against."""

    def write(self, path: Path) -> OnnxFacts:
        """Write it as ONNX."""

    def parity_rows(self, frames_NHW3: npt.NDArray[np.uint8], given: Outputs) -> dict[str, Any]:
        """More figures for the bundle's parity, of the fp32 graph's answers; each may have a limit that it kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Choices of an export; each is stored in the bundle."""

    precision: Precision = "fp32"
    failure: Failure = field(default_factory=Failure)
    profile: ProfileName = "standard"
    limits: ParityLimits | None = None
    """What parity may reach; the limits of the precision unless given."""
    int8: Int8Config | None = None
    most_bytes: int = MOST_BYTES
    """Of a graph with its weights inside; a larger one of somebody's net keeps weights that lie beside it in a file of their own."""


def export_checkpoint(
    path: Path,
    out: Path,
    *,
    config: ExportConfig | None = None,
    head: HeadName | None = None,
    calibration: str | None = None,
    split: str | None = None,
    flip_pairs: str | None = None,
    data_root: Path | None = None,
    also: Sequence[str] = (),
    previous: Path | None = None,
    sign_key: Path | None = None,
    replace: bool = False,
    cache: Path,
) -> Path:
    """Write the bundle of a checkpoint of ours.

    Args:
        path: the checkpoint.
        out: ``NAME.alpose``.
        config: precision, definition of failure, limits.
        head: which loss head; the first of ``PREFERRED`` that the checkpoint has, unless named.
        calibration: a dataset by name or folder; the test part of the model's own unless named.
        split: the part of a COCO folder that calibrates, such as ``val2017``; its ``val`` part, or everybody, by default.
        flip_pairs: joints that change places in a mirror, in place of those the model was trained with.
        data_root: where datasets are.
        also: more labelled people, on which the card shows what the thresholds do.
        previous: an older bundle, whose calibration the card shows on the same people.
        sign_key: private key file.
        replace: whether a bundle that is there may be replaced.
        cache: for crops.
    """
    model = checkpoint.load(path)
    if flip_pairs is not None:
        model = dataclasses.replace(model, skeleton=with_flip_pairs(model.skeleton, flip_pairs))
    graph = MonitorGraph.from_model(model, head or _best_head(model, path))
    name = calibration or model.facts.get("dataset")
    if not name:
        raise ConfigError(
            f"{path} does not say which dataset it was trained on: name labelled people with --calibration"
        )
    sizes = preset(model.facts["preset"]).sizes if "preset" in model.facts else Sizes()
    seen = who_trained(model.facts)

    def people(of: str) -> Crops:
        labelled = open_dataset(of, data_root, sizes=sizes, split=split).for_calibration()
        return unseen_crops(labelled, model.skeleton, model.crop, cache, seen)

    made = {key: model.facts[key] for key in ("what", "dataset", "preset", "seed", "labelled", "test_pck", "train_seconds")
            if key in model.facts}  # fmt: skip
    return write(
        graph, people(str(name)), [people(each) for each in also], out, config=config or ExportConfig(),
        provenance={"model": {"checkpoint": path.name, **made}}, previous=previous, sign_key=sign_key, replace=replace,
    )  # fmt: skip


def export(
    pose_net: nn.Module,
    loss_head: nn.Module,
    out: str | Path,
    *,
    skeleton: Skeleton,
    size_px: int,
    peak: float,
    taps: Sequence[str],
    penultimate: str,
    people: PoseData,
    margin: float = 1.25,
    heatmaps: str | None = None,
    stride: float | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    head_name: str | None = None,
    seen: Collection[str] = (),
    config: ExportConfig | None = None,
    provenance: dict[str, Any] | None = None,
    sign_key: Path | None = None,
    replace: bool = False,
    cache: Path | None = None,
) -> Path:
    """Write the bundle of anybody's net.

    Args:
        pose_net: images (N, 3, S, S) in [0, 1] to heatmaps (N, J, H, H).
        loss_head: takes :class:`alpose.trainer.models.hourglass.Features`, gives the predicted loss (N,).
        out: ``NAME.alpose``.
        skeleton: the joints, in the order of the heatmaps.
        size_px: S, a multiple of 64.
        peak: height of the heatmaps that the net was trained towards.
        taps: names of the modules whose outputs are the loss head's pyramid, finest first.
        penultimate: name of the module before the heatmaps.
        people: labelled people that trained nothing: for calibration, parity and golden frames.
        margin: side of the crop over the longer side of a box.
        heatmaps: name of the module that gives the heatmaps, where the net does not simply return them.
        stride: crop pixels per heatmap cell; S / H unless stated.
        mean: of each colour in [0, 1], subtracted before the net.
        std: of each colour, divided by.
        head_name: for the manifest; the head's class unless stated.
        seen: ids of people that trained the net: left out of ``people`` and counted.
        config: precision, definition of failure, limits.
        provenance: plain JSON values for the card.
        sign_key: private key file.
        replace: whether a bundle that is there may be replaced.
        cache: for crops; a temporary folder unless given.
    """
    graph = MonitorGraph.from_modules(
        pose_net, loss_head, skeleton=skeleton, size_px=size_px, peak=peak, taps=taps, penultimate=penultimate,
        heatmaps=heatmaps, stride=stride, mean=mean, std=std, head_name=head_name,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        crop = CropConfig(size_px=size_px, margin=margin)
        crops = unseen_crops(people, skeleton, crop, cache or Path(scratch), seen)
        return write(
            graph, crops, (), Path(out), config=config or ExportConfig(),
            provenance={"model": {"class": type(pose_net).__name__}, **(provenance or {})}, previous=None,
            sign_key=sign_key, replace=replace,
        )  # fmt: skip


def _best_head(model: PoseModel, path: Path) -> HeadName:
    for name in (*PREFERRED, *model.heads):
        if name in model.heads:
            return name
    raise ConfigError(f"{path} has no loss head: train one, for example with --methods random,epck")


def write(
    graph: Exportable, crops: Crops, also: Sequence[Crops], out: Path, *, config: ExportConfig,
    provenance: dict[str, Any], previous: Path | None, sign_key: Path | None, replace: bool, calibrate_it: bool = True,
) -> Path:  # fmt: skip
    """Calibrate, write the graph, hold it against its slow twin, and put the bundle together.

    What is cheap comes first: whether the bundle's place is free, and whether the graph can be written, is loaded and answers.
    ``calibrate_it=False``: nobody is labelled; the people are pictures to try the graph on.
    """
    check_place(out, replace)
    _try(graph, crops)
    report = None
    if calibrate_it:
        log.info("calibrating on %d people of %s", len(crops), crops.data.name)
        report = _calibrate(_see(graph, crops, config), crops, config, graph.joint_source)
        for warning in report.warnings:
            log.warning("%s", warning)
        assert report.joints is not None  # of a fresh calibration
        calibrated = graph.with_calibration(report.calibration, report.joints.calibration)
    else:
        calibrated = graph
    batch = 8 if isinstance(graph.spec.batch, str) else graph.spec.batch
    rows_M = np.unique(np.linspace(0, len(crops) - 1, min(PARITY_CROPS, len(crops))).astype(np.int64))
    spread, frames_NSS3 = crops.subset(rows_M), crops.read_bare(rows_M)
    expected = answer(calibrated.reference(), frames_NSS3, batch=32)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL
        facts = calibrated.write(path)
        plain = OnnxEngine(path)
        if config.precision == "fp16":
            to_fp16(path, path)
        elif config.precision == "int8":
            # Ranges are measured on other crops than parity is, where there are enough people.
            others = np.setdiff1d(np.arange(len(crops)), rows_M)
            to_int8(path, path, crops.read_bare(others if len(others) else rows_M), config.int8)
        engine = plain if config.precision == "fp32" else OnnxEngine(path)
        given = answer(engine, frames_NSS3, batch)
        parity = _with_limits(_parity(expected, given, spread if report else None, config), config)
        if config.precision == "fp32":
            parity |= graph.parity_rows(frames_NSS3, given)
        speed = (
            {} if config.precision == "fp32" else {"speed": _speed(plain, engine, frames_NSS3[:1], config.precision)}
        )
        if config.precision == "int8":
            # Black and white alone drive every activation to its end: arithmetic that saturates shows here first.
            extreme_1SS3 = extreme_crop(frames_NSS3)
            frames_NSS3 = np.concatenate([frames_NSS3, extreme_1SS3])
            expected = appended(expected, answer(calibrated.reference(), extreme_1SS3))
            given = appended(given, answer(engine, extreme_1SS3, batch))
        golden = golden_frames(frames_NSS3, expected, given, config.precision)
        files: dict[str, bytes | Path] = {MODEL: path.read_bytes()}
        if (weights := path.with_name(WEIGHTS)).exists():
            files[WEIGHTS] = weights
        dimensions = graph.spec.dimensions
        inputs, outputs = tensors(crops.config.rule, len(graph.spec.skeleton), dimensions, people=graph.spec.people)
        who = (
            "labelled people of {} that trained nothing"
            if report
            else "pictures from {}, without labels: not calibrated"
        )
        manifest: dict[str, Any] = {
            "name": out.stem,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "alpose": __version__,
            "skeleton": graph.spec.skeleton.to_json(),
            "crop": crop_to_json(crops.config.rule),
            "precision": config.precision,
            "head": graph.spec.head,
            "inputs": inputs,
            "outputs": outputs,
            "calibration": None if report is None else to_json(report),
            "parity": parity,
            "provenance": {**provenance, **speed, "calibration": {"people": f"{len(crops)} {who.format(crops.data.name)}", "data_sha256": crops.data.fingerprint(),
                                                         "left_out": len(crops.left_out)}},
            "opset": facts.opset,
        }  # fmt: skip
        before = _previous(previous, crops, config) if previous and report else None
        elsewhere = [_applied(report, graph, other, config) for other in also if report]
        shown = {key: value for key, value in manifest.items() if key != "calibration"}
        card = render_card(shown, report, previous=before, elsewhere=elsewhere)
        files |= {GOLDEN: golden_bytes(golden), CARD: card.encode()}
        write_bundle(out, files, manifest, replace=replace, sign_key=sign_key)
        checked = run_golden(OnnxEngine(Bundle.open(out)), golden, batch=batch).require()
    log.info("%s", checked)
    return out


def _try(graph: Exportable, crops: Crops) -> None:
    """Write the graph without its calibration and run it on a few crops, before anything that takes long."""
    frames_NHW3 = crops.read_bare(np.arange(min(2, len(crops))))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL
        graph.write(path)
        given = answer(OnnxEngine(path), frames_NHW3, batch=1)
    figures = compare(answer(graph.reference(), frames_NHW3), given)
    # Joints aside: what a net sees nothing in may differ by a rounding.
    require(figures, LIMITS["fp32"], "the graph in ONNX Runtime, before its calibration,")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the uncalibrated graph shows of labelled people, from one pass."""

    evidence_N3: npt.NDArray[np.float64]
    failed_N: Bools
    defined_N: Bools
    """Of whom it can be said whether they failed."""
    logit_NJ: npt.NDArray[np.float32]
    """Of each joint being right, by the head or the net's own score."""
    scores_NJ: npt.NDArray[np.float32]
    """The net's own."""
    right_NJ: Bools
    counts_NJ: Bools
    """Joints of which it can be said whether they are right."""
    oks_N: npt.NDArray[np.float64] | None
    """Object keypoint similarity of each person; None where COCO knows none of the joints."""
    ids: tuple[str, ...]
    """Of their images: two people of one photograph must not lie in both halves of a calibration."""


def _see(graph: Exportable, crops: Crops, config: ExportConfig) -> _Seen:
    """Run the graph over people in blocks that fit in memory, and hold its poses against their labels."""
    engine = graph.reference()
    columns: list[tuple[npt.NDArray[Any], ...]] = []
    profile = profile_of(config.profile, crops.data)
    for block in np.array_split(np.arange(len(crops)), max(1, len(crops) // 256)):
        outputs, evidence_B3, logit_BJ = engine.answers_and_evidence(crops.read_bare(block))
        judged, failed_B, defined_B = judge_outputs(outputs, crops.subset(block), profile, config.failure)
        columns.append((evidence_B3.astype(np.float64), failed_B, defined_B, logit_BJ, outputs.scores_NJ,
                        judged.right_NJ, judged.counts_NJ, outputs.keypoints_NJ2))  # fmt: skip
    evidence, failed, defined, logits, scores, right, counts, keypoints_NJ2 = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    oks_N = oks_of(crops.data, crops.distance(keypoints_NJ2 - crops.joints_NJ2))
    return _Seen(evidence, failed, defined, logits, scores, right, counts, oks_N, crops.data.pictures())


def _calibrate(seen: _Seen, crops: Crops, config: ExportConfig, source: str = "head") -> CalibrationReport:
    profile = profile_of(config.profile, crops.data)
    joints = calibrate_joints(
        seen.logit_NJ, seen.right_NJ, seen.counts_NJ, seen.scores_NJ, fitting_half(seen.ids),
        crops.data.skeleton.joints, source, seen.oks_N,
    )  # fmt: skip
    report = calibrate(seen.evidence_N3, seen.failed_N, seen.ids, defined_N=seen.defined_N, data=crops.data.name,
                     failure=config.failure, profile=profile.name, definition=config.failure.words(profile))  # fmt: skip
    return dataclasses.replace(report, joints=joints)


def _previous(bundle: Path, crops: Crops, config: ExportConfig) -> Applied:
    """What an older bundle does on the people that measure this one, by its own net, calibration and thresholds."""
    opened = Bundle.open(bundle)
    if opened.calibration is None:
        raise ConfigError(f"{bundle} has no calibration to compare with")
    if opened.skeleton.joints != crops.data.skeleton.joints:
        raise ConfigError(f"{bundle} finds the joints of {opened.skeleton.name!r}, the new model those of "
                          f"{crops.data.skeleton.name!r}: the two cannot be compared")  # fmt: skip
    report = from_json(CalibrationReport, opened.calibration.facts, "calibration")
    measured = crops.subset(np.flatnonzero(~fitting_half(crops.data.pictures())))
    rule = opened.crop
    own = CropConfig(size_px=rule.width_px, height_px=rule.height_px, margin=rule.margin, kind=rule.kind, fill=rule.fill,
                     context=0.0)  # fmt: skip
    engine, profile = OnnxEngine(opened), profile_of(config.profile, crops.data)
    with tempfile.TemporaryDirectory() as scratch:
        if rule != crops.config.rule:
            measured = prepare(measured.data, own, Path(scratch))
        blocks = np.array_split(np.arange(len(measured)), max(1, len(measured) // 256))
        parts = [(measured.subset(rows), answer(engine, measured.read_bare(rows))) for rows in blocks]
        judged = [judge_outputs(outputs, people, profile, config.failure) for people, outputs in parts]
    failed_N, defined_N = (np.concatenate([each[place] for each in judged]) for place in (1, 2))
    probability_N = np.concatenate([outputs.failure_probability_N for _, outputs in parts]).astype(np.float64)
    return apply_probabilities(report, probability_N[defined_N], failed_N[defined_N], crops.data.name)


def _applied(report: CalibrationReport, graph: Exportable, crops: Crops, config: ExportConfig) -> Applied:
    """What a calibration does on other people."""
    seen = _see(graph, crops, config)
    applied = apply(report, seen.evidence_N3[seen.defined_N], seen.failed_N[seen.defined_N], crops.data.name)
    if report.joints is None or not seen.counts_NJ.any():
        return applied
    joints = measure_joints(report.joints.calibration, seen.logit_NJ, seen.right_NJ, seen.counts_NJ, seen.scores_NJ,
                            crops.data.skeleton.joints, report.joints.source, seen.oks_N)  # fmt: skip
    return dataclasses.replace(applied, joints=joints)


def _parity(expected: Outputs, given: Outputs, crops: Crops | None, config: ExportConfig) -> ParityFigures:
    profile = None if crops is None else profile_of(config.profile, crops.data)
    figures = compare(expected, given, crops=crops, profile=profile, failure=config.failure)
    if not figures.joints:
        log.warning(
            "no joint of %d crops has a score of 0.3: keypoints were not judged. Is this model trained?", len(expected)
        )
    return require(figures, config.limits or LIMITS[config.precision], f"the {config.precision} graph in ONNX Runtime")


def _speed(plain: OnnxEngine, engine: OnnxEngine, frame_1SS3: npt.NDArray[np.uint8], precision: str) -> dict[str, Any]:
    """Milliseconds of one frame at fp32 and at this precision, call by call in turns; medians after a warm-up."""
    took: dict[str, list[float]] = {"fp32": [], precision: []}
    for _ in range(SPEED_ROUNDS):
        for name, one in (("fp32", plain), (precision, engine)):
            started = time.perf_counter()
            one(frame_1SS3)
            took[name].append(1000 * (time.perf_counter() - started))
    median = {name: float(np.median(times[SPEED_ROUNDS // 4 :])) for name, times in took.items()}
    ratio = median["fp32"] / median[precision]
    verdict = f"{ratio:.2f} times as fast as fp32"
    if ratio < EXPECTED_SPEED_UP:
        verdict += f"; less than {EXPECTED_SPEED_UP}: {WHY_NOT_FASTER[precision]}"
    return {"machine": "the one that exported, ONNX Runtime CPU, batch 1",
            **{f"{name}_ms": round(value, 3) for name, value in median.items()}, "verdict": verdict}  # fmt: skip


def _with_limits(figures: ParityFigures, config: ExportConfig) -> dict[str, Any]:
    """Every figure with the limit that it kept."""
    limits = asdict(config.limits or LIMITS[config.precision])
    return {name: {"value": value, "limit": limits.get(name), "unit": "px" if name.endswith("_px") else None}
            for name, value in figures.to_json().items()}  # fmt: skip
