"""Heads that the experiment trains beside those of the base model: the shipped head, its ablations, its ceiling.

Shapes: N people or views, B batch, J joints, D evidence of a joint, K other nets, P cells of a heatmap.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import checkpoint
from ..augmented_views import augmented_views
from ..checkpoint import PoseModel
from ..data.crops import Crops
from ..device import DeviceContext, evaluating
from ..epck import EpckTraining, HeadDataset, collect, fit, join, soft_right
from ..measures.metrics import profile_of
from ..methods.catalog import SHIPPED, SLIM
from ..models.expected_pck import SHARPNESS, ExpectedPckHead
from ..models.heads import Evidence, LossHead, build_head
from ..passes import Predicted
from ..presets import Recipe
from ..training import train_heads, train_pose, validation_mask
from .candidates import CANDIDATES, MeanHead, train_candidates
from .further_evidence import FurtherEvidence, error_rates, partner_distance, with_errors

log = logging.getLogger("alpose")

IN_DOMAIN = "in-domain-pool"
"""The ceiling of the pool: a head trained on labels of its other half."""
CEILING_VIEWS = 3
"""Of each of the many labelled people of the pool's other half."""
FOLDS = 5
"""Of the test split, for its ceiling: too small for halves."""
FOLD_EPOCHS = 40
OTHER_EVIDENCE: dict[str, Evidence] = {
    "epck-maps": "maps", "epck-pose": "maps+features+pose", "epck-slim-pose": "peaks+pose",
}  # fmt: skip
"""Forms of the shipped head that read something else."""
ERROR_VIEWS = 4
"""Of each person, with errors that are made up; and of each who tells how often they happen."""
CROSS_FITTED = 2
"""Copies of the base model that are trained on, each without one half of the people, which it then sees as held out."""
CROSS_EPOCHS, CROSS_RATE = 0.15, 0.75
"""Shares of the pose net's own epochs and rate: enough to forget, too little to become another net."""
CROSS_VIEWS = 6
TEACHER_GAIN = 1.2
"""A right peak of a net on people it has not seen stands about this much lower than those it was trained towards."""


@dataclass(frozen=True, slots=True)
class Ablations:
    """Heads by the name of their detector."""

    epck: Mapping[str, ExpectedPckHead]
    loss: Mapping[str, LossHead]
    candidates: Mapping[str, MeanHead] = field(default_factory=dict)
    further: FurtherEvidence | None = None
    """What the candidates read; None without any."""


@dataclass(frozen=True, slots=True)
class Training:
    """What all heads of one seed are trained with."""

    model: PoseModel
    """The base model with the papers' heads."""
    others: Sequence[PoseModel]
    """Base models of other seeds: the committee that ``epck-distilled`` learns from."""
    labelled: Crops
    """Everybody who trained or validated the pose net."""
    pool: Crops
    """The half of the pool that may be seen; its labels are for the ceiling alone."""
    recipe: Recipe
    """Of the base model."""
    config: EpckTraining
    machine: DeviceContext
    seed: int
    validates_N: npt.NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        validates_N = validation_mask(self.labelled.data.split_names(), self.recipe.pose.validation, self.seed)
        object.__setattr__(self, "validates_N", validates_N)

    @property
    def learners(self) -> Crops:
        """Who trained the pose net."""
        return self.labelled.subset(np.flatnonzero(~self.validates_N))

    @property
    def held_out(self) -> Crops:
        """Who validated it, and trained nothing."""
        return self.labelled.subset(np.flatnonzero(self.validates_N))

    def train(self, names: Sequence[str]) -> Ablations:
        """Train every head that the named detectors want."""
        views = self.config.views_for(len(self.learners))
        # One pass over the damaged views serves all that learn from them.
        heads = {name: self._head(name) for name in (SHIPPED, SLIM, *OTHER_EVIDENCE) if name in (SHIPPED, *names)}
        tried = [name for name in CANDIDATES if name in names]
        further = FurtherEvidence.learn(self.model, self.learners, self.machine, self.seed) if tried else None
        plain = self._collect(heads, self.learners, views, "damaged views", also=further.read if further else None)
        self._fit(heads, plain)
        candidates: dict[str, MeanHead] = {}
        if further:
            made_up = partial(self._with_errors, heads, further)
            candidates = train_candidates(tried, plain, made_up, self.config, self.machine, self.seed)
        plain = plain.only(heads)
        sources: dict[str, Callable[[], tuple[HeadDataset, Tensor | None]]] = {
            "epck-mild": lambda: (self._collect(heads, self.learners, views, "mild views", mild=True), None),
            "epck-image": lambda: (plain, _image_pck(plain)),
            "epck-unfitted": lambda: (
                join([plain, self._collect(heads, self.held_out, views, "views of validating people")]), None
            ),
            "epck-out-of-fold": lambda: (join([plain, self._cross_fitted(heads)]), None),
            "epck-distilled": lambda: self._distilled(heads, plain),
            "in-domain": lambda: (
                self._collect(heads, self.pool, min(CEILING_VIEWS, self.config.views_for(len(self.pool))),
                              "labels of the pool"), None
            ),
        }  # fmt: skip
        made = dict(heads)
        for name, source in sources.items():
            if name in names and (self.others or name != "epck-distilled"):
                head = {SHIPPED: self._head(SHIPPED)}
                self._fit(head, *source())
                made[IN_DOMAIN if name == "in-domain" else name] = head[SHIPPED]
        return Ablations(made, self._damaged_conv(names), candidates, further)

    def score_by_fold(self, seen: HeadDataset) -> npt.NDArray[np.float32]:
        """Logits (N,) of heads of which each was trained on four fifths of these people and judges the last fifth."""
        fold_N = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(seen.counts_NJ)) % FOLDS)
        score_N = torch.zeros(len(fold_N))
        many = replace(self.config, epochs=FOLD_EPOCHS, batch=64)
        for fold in range(FOLDS):
            head = {SHIPPED: self._head(SHIPPED)}
            fit(head, seen.take(torch.nonzero(fold_N != fold)[:, 0]), many, self.machine, seed=self.seed + fold)
            rest_M = torch.nonzero(fold_N == fold)[:, 0]
            with evaluating(*head.values()):
                evidence_MJD = seen.evidence[SHIPPED][rest_M].to(self.machine.device)
                score_N[rest_M] = head[SHIPPED].logit(evidence_MJD).cpu()
        return score_N.numpy()

    def _head(self, name: str) -> ExpectedPckHead:
        return new_head(self.model, name, self.seed)

    def _fit(
        self, heads: Mapping[str, ExpectedPckHead], evidence: HeadDataset, target_NJ: Tensor | None = None
    ) -> None:
        fit(heads, evidence, self.config, self.machine, seed=self.seed, target_NJ=target_NJ)

    def _collect(
        self, heads: Mapping[str, ExpectedPckHead], crops: Crops, views: int, what: str, *, mild: bool = False,
        model: PoseModel | None = None, also: Callable[[Predicted], Mapping[str, Tensor]] | None = None,
        change: Callable[[Predicted], Predicted] | None = None,
    ) -> HeadDataset:  # fmt: skip
        return collect(model or self.model, heads, crops, self.machine, views=views, seed=self.seed,
                       what=f"{what}, seed {self.seed}", augment_by=self.recipe.heads.augment if mild else None,
                       also=also, change=change)  # fmt: skip

    def _with_errors(self, heads: Mapping[str, ExpectedPckHead], further: FurtherEvidence) -> HeadDataset:
        """Views of people who trained the net with errors as often as it makes them on people who validated it."""
        skeleton = self.model.skeleton
        judged = [(view.distance_BJ.cpu(), partner_distance(view, skeleton).cpu(), view.counts_BJ.cpu())
                  for view in augmented_views(self.model, self.held_out, self.machine, views=ERROR_VIEWS, seed=self.seed,
                                              what="measuring errors")]  # fmt: skip
        rates = error_rates(*(torch.cat(column) for column in zip(*judged, strict=True)))
        log.info("seed %d: %s", self.seed, rates)
        generator = torch.Generator().manual_seed(self.seed)
        change = partial(
            with_errors, rates=rates, model=self.model, radius_cells=further.radius_cells, generator=generator
        )
        views = min(ERROR_VIEWS, self.config.views_for(len(self.learners)))
        return self._collect(heads, self.learners, views, "made-up errors", also=further.read, change=change)

    def _cross_fitted(self, heads: Mapping[str, ExpectedPckHead]) -> HeadDataset:
        """What copies of the pose net make of people that they were not trained on any more.

        A net that was trained from scratch without them has other features, which the head could not read.
        """
        learners, pose = self.learners, self.recipe.pose
        fold_N = np.random.default_rng(self.seed).permutation(len(learners)) % CROSS_FITTED
        how = replace(pose, epochs=max(1, round(CROSS_EPOCHS * pose.epochs)), lr=CROSS_RATE * pose.lr)
        parts = []
        for fold in range(CROSS_FITTED):
            copied = replace(self.model, pose=copy.deepcopy(self.model.pose), heads={}, auxiliary={})
            own, held_out = (learners.subset(np.flatnonzero(mask_N)) for mask_N in (fold_N != fold, fold_N == fold))
            name = f"copy {fold + 1} of {CROSS_FITTED}"
            train_pose(copied, own, how, self.machine, seed=self.seed, best=False, what=f"{name}, seed {self.seed}")
            parts += [self._collect(heads, held_out, views, f"held out of {name}", mild=views > 0, model=copied)
                      for views in (0, CROSS_VIEWS)]  # fmt: skip
        return join(parts)

    def _distilled(self, heads: Mapping[str, ExpectedPckHead], plain: HeadDataset) -> tuple[HeadDataset, Tensor]:
        """The plain evidence, and that of people without labels with how far other nets agree with each keypoint."""
        parts, agreement = [], []
        skip = list(profile_of("standard", self.pool.data).skip)
        for seen in augmented_views(self.model, self.pool, self.machine, views=0, seed=self.seed,
                                    what=f"running the committee, seed {self.seed}"):  # fmt: skip
            with evaluating(*heads.values()):
                evidence = {name: head.evidence(seen.features).cpu() for name, head in heads.items()}
            # No label is looked at, not even whether there is one.
            everything = torch.ones_like(seen.counts_BJ).cpu()
            everything[:, skip] = False
            parts.append(HeadDataset(evidence, torch.zeros(everything.shape), everything))
            agreed_BJ = opinions(seen, self.others, self.machine).mean(dim=0) * TEACHER_GAIN
            agreement.append(agreed_BJ.clamp(0, 1).cpu())
        own_NJ = soft_right(plain.distance_NJ, self.config.softness)
        return join([plain, join(parts)]), torch.cat([own_NJ, torch.cat(agreement)])

    def _damaged_conv(self, names: Sequence[str]) -> dict[str, LossHead]:
        if "ll++conv-damaged" not in names:
            return {}
        head = checkpoint.new_head(self.model, "ll++conv", self.seed)
        how = replace(self.recipe.heads, pairing="all")
        train_heads(self.model, {"ll++conv": head}, self.labelled, how, self.machine, seed=self.seed, damaged=True,
                    validation=self.recipe.pose.validation, what=f"ll++conv-damaged, seed {self.seed}")  # fmt: skip
        return {"ll++conv-damaged": head}


def new_head(model: PoseModel, name: str, seed: int) -> ExpectedPckHead:
    """A fresh expected-PCK head by the name of its detector; the weights depend on the seed and the form alone."""
    if name in OTHER_EVIDENCE:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = build_head(replace(checkpoint.head_config(model, SHIPPED), evidence=OTHER_EVIDENCE[name]))
    else:
        head = checkpoint.new_head(model, name, seed)
    assert isinstance(head, ExpectedPckHead)
    return head


def _image_pck(evidence: HeadDataset) -> Tensor:
    """The image's share of right joints, as the target of every joint, (N, J)."""
    right_NJ = (evidence.distance_NJ < 1) & evidence.counts_NJ
    pck_N = right_NJ.sum(dim=1) / evidence.counts_NJ.sum(dim=1).clamp_min(1)
    return pck_N[:, None].expand_as(evidence.distance_NJ)


# --- Second opinions


def read_at_peaks(seen: Predicted, maps_BJHW: Tensor, peak: float) -> Tensor:
    """Another net's maps where this net's last maps peak, as a share of the training peak, (B, J)."""
    look_BJP = (seen.features.heatmaps[-1].flatten(2) * (SHARPNESS / peak)).softmax(dim=2)
    return (look_BJP * maps_BJHW.flatten(2)).sum(dim=2) / peak


def opinions(seen: Predicted, others: Sequence[PoseModel], machine: DeviceContext) -> Tensor:
    """What other nets hold where this one's maps peak, (K, B, J)."""
    found = []
    for other in others:
        with evaluating(other.pose), machine.autocast():
            maps_BJHW = other.pose(seen.images_B3SS).features.heatmaps[-1]
        found.append(read_at_peaks(seen, maps_BJHW.float(), other.target.peak))
    return torch.stack(found)
