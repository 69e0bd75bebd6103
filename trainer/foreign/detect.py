"""``alpose-train detect --pose``: what a head is worth on somebody else's net, on people who neither trained nor chose it.

For every seed the training people are split by picture: most of them train the heads, the others choose what ships (see
:mod:`~.fitting`). Free scores, heads and the shipped choice are then measured on the test sets, which decide nothing.

Shapes: N views, M of them undamaged, S seeds, L labelled joints, J joints of the net.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import fields_to_json, from_json, read_json, write_json

from ..data.catalog import open_dataset
from ..data.records import PoseData
from ..device import DeviceContext, environment
from ..measures.keypoint_measures import EYES, average_precision, interocular_nme, oks_of, pckh
from ..measures.metrics import Failure, correlation, risk_coverage
from ..training import validation_mask
from .fitting import (
    People,
    Said,
    all_detectors,
    choose,
    own_score,
    refuse_too_few,
    see,
    share_right,
    try_out,
)
from .heads import HEADS, JOINT_HEADS, Detector, HeadKind
from .joints import in_skeleton, match_joints
from .learning import predict
from .measuring import MAX_EXTRA, OWN, Difference, Truth, difference, measure, shown, signed
from .net import ForeignNet, open_net
from .reader import NetReader
from .recognition.recognise import examine
from .recognition.stated import Stated
from .timing import Clock, Cost

log = logging.getLogger("alpose")

RESULT = "detect-pose.json"
SHIPPED = "what ships"
POINTS = 21
"""Of a risk-coverage curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignDetectConfig:
    """Which net, on which labels."""

    pose: Path
    data: str
    """A dataset by name, or a COCO keypoints folder."""
    stated: Stated = field(default_factory=Stated)
    map_joints: str | None = None
    views: int = 8
    heads: tuple[HeadKind, ...] = HEADS
    seeds: int = 3
    """Of the split and of the heads; the damaged views are the same for all."""
    people: int = 1000
    """At most so many train, and so many of each set are tested."""
    failure: Failure = field(default_factory=Failure)
    hold_out: float = 0.25
    max_extra: float = MAX_EXTRA
    """Share of the net's time that a head may take, in one graph on one thread."""
    group_by: str | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.people < 1:
            raise ConfigError(f"--seeds and --people are at least 1, got {self.seeds} and {self.people}")
        unknown = [name for name in self.heads if name not in HEADS]
        if unknown:
            raise ConfigError(f"--heads: {', '.join(unknown)} unknown for --pose; known: {', '.join(HEADS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorRow:
    """One detector on one set, means over seeds."""

    name: str
    learned: bool
    auroc: float | None
    low: float | None
    high: float | None
    """95 % bootstrap interval over pictures, of the first seed."""
    per_seed: tuple[float | None, ...]
    over_own: Difference
    """Less the net's own score, interval over pictures."""
    auprc: float | None
    aurc: float | None
    joint_auroc: float | None
    joint_ece: float | None
    risk: tuple[float, ...]
    """Failure rate among those trusted, at coverages from 1/20 to all."""
    augrc: float | None = None
    """None in files that were written before it."""
    oks: float | None = None
    """Spearman's correlation of the detector's certainty with OKS, people as they are; None where there is no OKS."""
    ap: float | None = None
    """COCO's average precision of the net's poses, ranked by the detector."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """One test set."""

    name: str
    people: int
    failures: int
    pck: float | None
    rows: tuple[DetectorRow, ...]
    beside: dict[str, float | None] = field(default_factory=dict)
    """Other measures of the net's keypoints, where they are defined: ``oks``, ``ap``, ``pckh``, ``nme``."""

    def row(self, name: str) -> DetectorRow:
        """The row of a detector."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignDetect:
    """What was found; ``detect-pose.json``."""

    net: str
    file: str
    sha256: str
    crop: str
    dataset: str
    joints: tuple[str, ...]
    """That are labelled."""
    trained_on: int
    views: int
    seeds: int
    failure: str
    chosen: tuple[str, ...]
    """What ships, of every seed."""
    best_free: tuple[str, ...]
    """On the held-out people, of every seed."""
    sets: tuple[SetResult, ...]
    cost: Cost | None
    """Of what ships by the first seed."""
    environment: dict[str, Any]
    max_extra: float | None = None
    """Share of the net's time that a head may take; None in files that were written before it."""

    def lines(self) -> list[str]:
        """For people: what ships beside the net's own score, and every head."""
        lines = [f"{self.net} ({self.file}), {len(self.joints)} labelled joints; heads from {self.trained_on} people and "
                 f"{self.views} damaged views of each; {self.seeds} seeds"]  # fmt: skip
        for each in self.sets:
            share = 100 * each.failures / max(each.people, 1)
            beside = "".join(f", {name.upper()} {shown(value)}" for name, value in each.beside.items())
            lines += ["", f"{each.name}: {each.people} people, PCK {shown(each.pck)}{beside}, {share:.1f} % fail",
                      f"  {'detector':<38} {'AUROC':>6}  {'over the own score':<26} {'AUPRC':>6} {'AURC':>6} {'joints':>7}"]  # fmt: skip
            for row in each.rows:
                over = "" if row.name == OWN else signed(row.over_own)
                lines.append(f"  {row.name:<38} {shown(row.auroc):>6}  {over:<26} {shown(row.auprc):>6} {shown(row.aurc):>6} "
                             f"{shown(row.joint_auroc):>7}")  # fmt: skip
        if self.cost:
            lines += ["", f"time: {self.cost.pose_ms:.2f} ms an image, and {self.cost.extra_ms:.2f} ms ({self.cost.share:+.1%}) for "
                      f"what ships, {self.chosen[0]}, in one graph"]  # fmt: skip
        return [*lines, "", *self.findings()]

    def findings(self) -> list[str]:
        """The result in sentences."""
        said = [f"What ships, chosen on held-out people: {', '.join(dict.fromkeys(self.chosen))}."]
        for each in self.sets:
            over = each.row(SHIPPED).over_own
            words = (
                "better than" if over.is_better else ("worse than" if (over.high or 0) < 0 else "not to be told from")
            )
            said.append(f"{each.name}: what ships is {words} the net's own score, {signed(over)} AUROC.")
        return said


def detect_foreign(
    config: ForeignDetectConfig, out: Path, machine: DeviceContext, *, data_root: Path | None, cache: Path
) -> ForeignDetect:
    """Measure every detector of a net, and write ``OUT/detect-pose.json``; an interrupted run goes on.

    Args:
        config: what.
        out: folder of the result.
        machine: where to compute.
        data_root: where datasets are that go by a name.
        cache: where crops and evidence are kept.
    """
    net = open_net(config.pose, examine(config.pose, config.stated).spec)
    train, tests = _people(config, net, data_root)
    refuse_too_few(train, next(iter(tests.values())))
    joints = tuple(int(j) for j in np.flatnonzero(train.labelled_NJ.any(axis=0)))
    if not joints:
        raise DataError(f"{config.data}: no joint of {net.spec.skeleton.name} is labelled of anybody who trains")
    reader = NetReader(net.spec, net.shapes)
    try_out(net, reader, train, joints, machine, cache, config.failure)
    learners = see(net, reader, train, joints, machine, cache, views=config.views, seed=0, what="training people")
    tested = {name: see(net, reader, people, joints, machine, cache, views=0, seed=0, what=name)
              for name, people in tests.items()}  # fmt: skip
    said: dict[str, dict[str, list[Said]]] = {name: {} for name in tested}
    chosen, best_free, clock = [], [], Clock(net, reader)
    shipped: Detector | None = None
    for seed in range(config.seeds):
        judges_P = validation_mask(learners.crops.data.split_names(), config.hold_out, seed)
        detectors = all_detectors(config.heads, reader, joints, learners.of(~judges_P).evidence, machine, seed=seed)
        _, free, kept, _ = choose(detectors, learners.of(judges_P), config.failure, clock, config.max_extra)
        chosen.append(kept)
        best_free.append(free)
        shipped = shipped or detectors[kept]
        for name, people in tested.items():
            answers = {OWN: own_score(people.evidence)}
            answers |= {each: predict(detector, people.evidence) for each, detector in detectors.items()}
            answers[SHIPPED] = answers[kept]
            for each, answer in answers.items():
                said[name].setdefault(each, []).append(answer)
        log.info("seed %d: %s is kept", seed, kept)
    result = ForeignDetect(
        net=net.spec.name, file=config.pose.name, sha256=hashlib.sha256(config.pose.read_bytes()).hexdigest(),
        crop=net.spec.crop.kind, dataset=config.data, joints=tuple(net.spec.skeleton.joints[j] for j in joints),
        trained_on=len(learners.crops), views=config.views, seeds=config.seeds, failure=config.failure.label,
        chosen=tuple(chosen), best_free=tuple(best_free),
        sets=tuple(_set(name, people, said[name], config.failure) for name, people in tested.items()),
        cost=clock({chosen[0]: shipped}).get(chosen[0]) if shipped else None, max_extra=config.max_extra,
        environment=environment(machine),
    )  # fmt: skip
    write_json(out / RESULT, fields_to_json(result))
    return result


def load_result(path: Path) -> ForeignDetect:
    """Read what :func:`detect_foreign` wrote."""
    found: ForeignDetect = from_json(ForeignDetect, read_json(path), str(path))
    return found


def _people(
    config: ForeignDetectConfig, net: ForeignNet, data_root: Path | None
) -> tuple[PoseData, dict[str, PoseData]]:
    """Who trains, and who tests by the name of their set, in the net's skeleton."""
    dataset = open_dataset(config.data, data_root, hold_out=config.hold_out, group_by=config.group_by)
    train = dataset.train
    if dataset.first is not None:  # the rest of it is another set, and tests
        train = train.subset(np.arange(dataset.first))
    tests = {f"{dataset.name} test" if dataset.first is not None else "held out": dataset.test}
    if config.data == "lsp":
        try:
            tests["lspet"] = open_dataset("lspet", data_root).test
        except (ConfigError, DataError, FileNotFoundError) as error:
            log.warning("without LSPET: %s", error)

    def rewritten(people: PoseData) -> PoseData:
        order_J = match_joints(net.spec.skeleton, people.skeleton, config.map_joints)
        return in_skeleton(_some(people, config.people), net.spec.skeleton, order_J)

    return rewritten(train), {name: rewritten(people) for name, people in tests.items() if len(people)}


def _some(people: PoseData, most: int) -> PoseData:
    """At most so many, drawn once for all."""
    if len(people) <= most:
        return people
    log.info("%s: %d of %d people", people.name, most, len(people))
    return people.subset(np.sort(np.random.default_rng(0).permutation(len(people))[:most]))


def _set(name: str, people: People, said: dict[str, list[Said]], failure: Failure) -> SetResult:
    truth = people.truth(failure)
    clean = people_as_they_are(people)
    own = [loss_N for loss_N, _ in said[OWN]]

    def row(each: str) -> DetectorRow:
        answers = said[each]
        found = [
            measure(loss_N, confidence_NL, people.evidence, truth, probability=each in JOINT_HEADS)
            for loss_N, confidence_NL in answers
        ]
        oks_M, sure = clean.oks_M, [-np.asarray(loss_N, np.float64)[clean.rows_M] for loss_N, _ in answers]
        return DetectorRow(
            name=each, learned=each in HEADS, auroc=_mean([one.auroc for one in found]), low=found[0].low, high=found[0].high,
            per_seed=tuple(one.auroc for one in found), over_own=difference([loss_N for loss_N, _ in answers], own, truth),
            auprc=_mean([one.auprc for one in found]), aurc=_mean([one.aurc for one in found]),
            joint_auroc=_mean([one.joint_auroc for one in found]), joint_ece=_mean([one.joint_ece for one in found]),
            risk=_risk([loss_N for loss_N, _ in answers], truth), augrc=_mean([one.augrc for one in found]),
            oks=None if oks_M is None else _mean([correlation(sure_M, oks_M)[0] for sure_M in sure]),
            ap=None if oks_M is None else _mean([average_precision(oks_M, sure_M) for sure_M in sure]),
        )  # fmt: skip

    first = [OWN, SHIPPED]
    rest = sorted((row(each) for each in said if each not in first), key=lambda one: -(one.auroc or 0.0))
    return SetResult(name=name, people=len(truth.rows_N), failures=truth.failures, pck=share_right(people.evidence, truth),
                     rows=(*(row(each) for each in first), *rest), beside=beside_pck(clean))  # fmt: skip


class AsTheyAre(NamedTuple):
    """The undamaged views of people."""

    rows_M: Any
    """Rows of the evidence."""
    data: PoseData
    joints: list[int]
    """Which joints of the data the J columns are."""
    distance_MJ: Any
    """Predicted to labelled position, in frame pixels."""
    own_M: Any
    """The net's own score."""
    oks_M: npt.NDArray[np.float64] | None
    """None where COCO knows none of the joints."""


def people_as_they_are(people: People) -> AsTheyAre:
    """How far from their labels the keypoints of undamaged views lie."""
    rows_M = np.flatnonzero(people.evidence.strength_N < 0)
    seen = people.evidence.take(rows_M)
    crops, joints = people.crops.subset(seen.person_N), list(seen.joints)
    distance_MJ = crops.distance(seen.keypoints_NJ2 - crops.joints_NJ2[:, joints])
    return AsTheyAre(rows_M, crops.data, joints, distance_MJ, seen.own_N, oks_of(crops.data, distance_MJ, joints))


def beside_pck(seen: AsTheyAre) -> dict[str, float | None]:
    """OKS, AP, PCKh and the inter-ocular error of people as they are; those that joints and labels do not allow are left out."""
    data, joints, distance_MJ, oks_M = seen.data, seen.joints, seen.distance_MJ, seen.oks_M
    labelled_MJ = data.labelled_NJ[:, joints]
    found: dict[str, float | None] = {}
    if oks_M is not None:
        found["oks"] = float(np.nanmean(oks_M)) if np.isfinite(oks_M).any() else None
        found["ap"] = average_precision(oks_M, seen.own_M)
    if data.head_N is not None:
        found["pckh"] = pckh(distance_MJ, labelled_MJ, data.head_N)
    eyes = EYES.get(data.skeleton.name)
    if eyes is not None and set(eyes) <= set(joints):
        where = (joints.index(eyes[0]), joints.index(eyes[1]))
        nme_M = interocular_nme(distance_MJ, data.joints_NJ2[:, joints], labelled_MJ, where)
        found["nme"] = float(np.nanmean(nme_M)) if np.isfinite(nme_M).any() else None
    return found


def _risk(losses: Sequence[Any], truth: Truth) -> tuple[float, ...]:
    """Failure rate among the most trusted 1/20, 2/20, … of all, mean over seeds."""
    count = len(truth.failed_N)
    places = np.maximum(1, np.linspace(0, count, POINTS)[1:].round().astype(int)) - 1
    curves = [risk_coverage(loss_N[truth.rows_N], truth.failed_N)[places] for loss_N in losses]
    return tuple(float(value) for value in np.mean(curves, axis=0))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
