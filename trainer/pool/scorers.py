"""Any model as one thing that scores crops: a net of ours, a net of ``fit --pose``, or an exported bundle.

Shapes: N crops, J joints, D embedding, H W the input's height and width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from alpose.runtime.bundle import Bundle
from alpose.runtime.bundle.manifest import MANIFEST
from alpose.runtime.crop import CropRule
from alpose.runtime.engines.catalog import open_engine
from alpose.runtime.errors import CheckpointError, ConfigError, DataNotFoundError
from alpose.runtime.io import read_json
from alpose.runtime.skeleton import Skeleton

from .. import checkpoint
from ..data.augment import to_input
from ..data.crops import crop_config
from ..data.records import Floats
from ..device import DeviceContext, evaluating
from ..foreign import model as foreign
from ..foreign.net import open_net
from ..methods.catalog import METHODS, RANDOM
from ..methods.options import ScoreOptions
from ..methods.strategies import BY_FAILURE, DEFAULT
from ..models.expected_pck import ExpectedPckHead
from ..passes import View, predict_batch, with_weights_in
from ..scoring import PREFIXES, reduce_batch

BLOCK = 32
"""Crops that a GPU is given at a time. A processor takes one by one: then nobody's numbers depend on their neighbours."""
MAP_SCORES = ("entropy", "multipeak")
"""Methods of the catalog whose scores every net of ours gives, because its heatmaps are at hand."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says of N crops."""

    keypoints_NJ2: Floats
    """Pixels of the input."""
    scores_NJ: Floats
    confidence_NJ: Floats
    """How right each joint is likely to be, [0, 1]."""
    loss_N: Floats
    """What the model ranks by; its unit is its own."""
    failure_N: Floats
    """[0, 1]. A calibrated probability where the model is a calibrated bundle; otherwise one minus the mean confidence."""
    embedding_ND: Floats
    """Rows of unit length."""
    by: Mapping[str, Floats]
    """Scores by the method of the catalog that ranks by them, (N,) each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """A model for those who look at its answers."""

    name: str
    sha256: str
    """Of the file that holds the hashes of all others."""
    skeleton: Skeleton
    rule: CropRule
    methods: tuple[str, ...]
    """Of the catalog, that rank by a number which this model gives."""
    calibrated: bool
    computed: str
    """Where and how precisely: scores of another engine or precision are other scores."""
    facts: Mapping[str, Any]
    """What an inbox keeps of a bundle."""


class Scorer(Protocol):
    """Something that answers crops."""

    about: About

    def __call__(self, crops_NHW3: npt.NDArray[np.uint8]) -> Answers:
        """Answer uint8 RGB crops of the rule's size, N >= 1."""
        ...


def open_scorer(path: Path, machine: DeviceContext, by: str = DEFAULT) -> Scorer:
    """Open a model.

    Args:
        path: the folder of a checkpoint, of a model that ``fit --pose`` wrote, or of a bundle.
        machine: where to compute; a bundle runs in ONNX Runtime, and so does a foreign net, on the processor.
        by: how people will be chosen; what costs extra and nothing else needs is computed for it alone.

    Raises:
        DataNotFoundError: there is no such folder.
        CheckpointError, BundleError: it holds no model, or a damaged one.
        ConfigError: this model cannot choose so.
    """
    folder = path.parent if path.name in (checkpoint.WEIGHTS, checkpoint.FACTS) else path
    if not folder.is_dir():
        raise DataNotFoundError(
            f"{path} does not exist: give the folder of a model (alpose-train fit) or a bundle (NAME.alpose)"
        )
    scorer: Scorer
    if (folder / MANIFEST).exists():
        scorer = _BundleScorer(folder, machine)
    elif foreign.is_foreign(folder):
        scorer = _ForeignScorer(folder)
    elif (folder / checkpoint.FACTS).exists():
        scorer = _OwnScorer(folder, machine, by)
    else:
        raise CheckpointError(
            f"{folder} holds no model: give a folder with {checkpoint.FACTS} (alpose-train fit, or RUN/seed-0/base of a benchmark) or "
            f"with {MANIFEST} (alpose-export)"
        )
    refuse_method(by, scorer.about)
    return scorer


def refuse_method(by: str, about: About) -> None:
    """Refuse what nobody can choose by, or this model cannot, before anything is scored."""
    possible = ways(about)
    if by in possible:
        return
    method = METHODS.get(by)
    if method is None:
        problem = f"{by!r} is no way to choose"
    elif method.truth is not None:
        problem = f"{by} chooses by the true labels, which a pool does not have"
    elif method.reads_images:
        problem = f"{by} needs the labelled people and trains beside the benchmark (alpose-train cycles)"
    else:
        problem = f"{about.name} has nothing that {by} ranks by"
    raise ConfigError(f"--by: {problem}. With this model: {', '.join(possible)}")


def ways(about: About) -> tuple[str, ...]:
    """Everything that people can be chosen by with a model."""
    for_all = [name for name, method in METHODS.items()
               if not method.truth and not method.reads_images and not method.head and not method.of_maps
               and name not in MAP_SCORES]  # fmt: skip
    for_all.sort(key=lambda name: name != RANDOM)
    return (*BY_FAILURE, *for_all, *about.methods)


class _OwnScorer:
    """A net of ours with its heads."""

    def __init__(self, folder: Path, machine: DeviceContext, by: str) -> None:
        self.model = checkpoint.load(folder).to(machine.device)
        self.pose = with_weights_in(self.model.pose, machine.dtype)
        self.machine = machine
        heads = self.model.heads
        self.head = "epck" if "epck" in heads else next(iter(heads), None)
        forms = tuple(name for name, method in METHODS.items() if method.of_maps)
        self.forms = tuple(name for name in forms if name == by)
        rule = replace(self.model.crop, context=0.0).rule
        self.about = About(
            name=folder.resolve().name, sha256=_sha256(folder / checkpoint.FACTS), skeleton=self.model.skeleton, rule=rule,
            methods=(*heads, *self.model.auxiliary, *MAP_SCORES, *forms), calibrated=False, computed=f"torch {machine.device.type} {machine.precision}",
            facts=_facts(self.model.skeleton, rule, self.head),
        )  # fmt: skip

    def __call__(self, crops_NHW3: npt.NDArray[np.uint8]) -> Answers:
        model, count, joints = self.model, len(crops_NHW3), len(self.model.skeleton)
        images = to_input(torch.from_numpy(crops_NHW3).to(self.machine.device))
        nobody_NJ = torch.zeros(count, joints, dtype=torch.bool, device=images.device)
        shown = View(images, images.new_zeros(count, joints, 2), nobody_NJ, images.new_ones(count))
        with evaluating(self.pose, *model.heads.values(), *model.auxiliary.values()):
            seen = predict_batch(model, np.arange(count), shown, self.machine, [], self.pose)
            reduced = reduce_batch(model, seen, ScoreOptions(), self.forms)
            head = model.heads[self.head] if self.head else None
            if isinstance(head, ExpectedPckHead):
                confidence = head.confidence(seen.features)
            else:
                confidence = seen.peak_BJ.clamp(0, 1)
        arrays = {name: value.float().cpu().numpy() for name, value in reduced.items()}
        by = {name: arrays[name + "_N"] for name in MAP_SCORES}
        by |= {
            name.partition(".")[2]: value for name, value in arrays.items() if name.startswith(tuple(PREFIXES.values()))
        }
        confidence_NJ = confidence.float().cpu().numpy()
        failure_N = 1 - confidence_NJ.mean(axis=1)
        loss_N = by[self.head] if self.head else failure_N
        return Answers(arrays["predicted_NJ2"], arrays["peak_NJ"], confidence_NJ, loss_N, failure_N,
                       unit(arrays["embedding_ND"]), by)  # fmt: skip


class _ForeignScorer:
    """A net of somebody else's with the detector of its failures, in ONNX Runtime and torch on the processor."""

    def __init__(self, folder: Path) -> None:
        model = foreign.load(folder)
        self.net, self.readout = open_net(model.net, model.spec), model.readout()
        kind = model.detector.config.kind
        self.method: str | None = kind if kind in METHODS else None
        rule = crop_config(model.spec).rule
        self.about = About(
            name=folder.resolve().name, sha256=_sha256(folder / foreign.FACTS), skeleton=model.spec.skeleton, rule=rule,
            methods=(self.method,) if self.method else (), calibrated=False, computed="onnxruntime cpu", facts=_facts(model.spec.skeleton, rule, kind),
        )  # fmt: skip

    def __call__(self, crops_NHW3: npt.NDArray[np.uint8]) -> Answers:
        given = self.net(crops_NHW3)
        with torch.inference_mode():
            answer = self.readout(*(torch.from_numpy(given[name]) for name in self.net.spec.tensors))
        keypoints_NJ2, scores_NJ, loss_N, confidence_NJ, embedding_ND = (value.numpy() for value in answer)
        by: dict[str, Floats] = {self.method: loss_N} if self.method else {}
        return Answers(keypoints_NJ2, scores_NJ, confidence_NJ, loss_N, 1 - confidence_NJ.mean(axis=1),
                       unit(embedding_ND), by)  # fmt: skip


class _BundleScorer:
    """An exported bundle, by the engine that a device would take; its golden frames have passed."""

    def __init__(self, folder: Path, machine: DeviceContext) -> None:
        bundle = Bundle.open(folder)
        manifest = bundle.manifest
        self.engine = open_engine(bundle, "auto" if machine.device.type == "cuda" else "cpu").engine
        self.method = manifest.head if manifest.head in METHODS else None
        self.about = About(
            name=manifest.name, sha256=bundle.sha256, skeleton=bundle.skeleton, rule=bundle.crop,
            methods=(self.method,) if self.method else (), calibrated=manifest.calibration is not None, computed=self.engine.name,
            facts=bundle.facts(),
        )  # fmt: skip

    def __call__(self, crops_NHW3: npt.NDArray[np.uint8]) -> Answers:
        said = self.engine(crops_NHW3)
        sure_NJ = np.clip(said.scores_NJ, 0, 1) if said.confidence_NJ is None else said.confidence_NJ
        by = {self.method: said.predicted_loss_N} if self.method else {}
        return Answers(said.keypoints_NJ2, said.scores_NJ, sure_NJ, said.predicted_loss_N, said.failure_probability_N,
                       said.embedding_ND, by)  # fmt: skip


def unit(embedding_ND: Floats) -> Floats:
    """Rows scaled to unit length; a row of zeros stays one."""
    length_N1 = np.sqrt(np.square(embedding_ND, dtype=np.float32).sum(axis=1, keepdims=True))
    return np.asarray(embedding_ND / np.maximum(length_N1, 1e-12), np.float32)


def _sha256(path: Path) -> str:
    read_json(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _facts(skeleton: Skeleton, rule: CropRule, head: str | None) -> dict[str, Any]:
    crop = {
        "width_px": rule.width_px,
        "height_px": rule.height_px,
        "margin": rule.margin,
        "kind": rule.kind,
        "fill": rule.fill,
    }
    return {"skeleton": skeleton.to_json(), "crop": crop, "head": head, "calibration": None}
