"""The heads that the experiment trains beside those of the base model: the shipped one, its ablations, its ceiling.

Shapes: N people or views, J joints, D evidence of a joint.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import checkpoint
from ..augmented_views import augmented_views
from ..checkpoint import PoseModel
from ..data.crops import Crops
from ..device import Machine, evaluating
from ..epck import EpckTraining, HeadDataset, collect, fit, join, soft_right
from ..methods.catalog import SHIPPED, SLIM, TINY
from ..metrics import profile_of
from ..models.expected_pck import SHARPNESS, ExpectedPckHead
from ..models.heads import LossHead, build_head
from ..models.hourglass import HourglassConfig
from ..passes import Predicted
from ..presets import Recipe
from ..training import train_heads, train_pose, validation_mask

IN_DOMAIN = "in-domain-pool"
"""The ceiling of the pool: a head trained on labels of its other half."""
CEILING_VIEWS = 3
"""Of each of the many labelled people of the pool's other half."""
FOLDS = 5
"""Of the test split, for its ceiling: too small for halves."""
FOLD_EPOCHS = 40
TINY_CHANNELS, TINY_SEED = 16, 500
FORKS = 2
"""Nets that go on from the base model, each without one half of the people: these it then sees as strangers."""
FORK_EPOCHS, FORK_RATE = 0.15, 0.75
"""Shares of the pose net's own epochs and rate: enough to forget, too little to become another net."""
FORK_VIEWS = 6
TEACHER_GAIN = 1.2
"""A right peak of a net on strangers stands about this much lower than those it was trained towards."""


@dataclass(frozen=True, slots=True)
class Students:
    """Heads by the name of their detector."""

    epck: Mapping[str, ExpectedPckHead]
    loss: Mapping[str, LossHead]
    nets: Mapping[str, PoseModel]
    """Small pose nets of their own, that are asked for a second opinion."""
    config: EpckTraining
    machine: Machine
    seed: int

    def test_folds(self, model: PoseModel, seen: HeadDataset) -> npt.NDArray[np.float32]:
        """Logits (N,) of heads of which each was trained on four fifths of these people and judges the last fifth."""
        fold_N = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(seen.counts_NJ)) % FOLDS)
        score_N = torch.zeros(len(fold_N))
        many = replace(self.config, epochs=FOLD_EPOCHS, batch=64)
        for fold in range(FOLDS):
            head = _heads(model, (SHIPPED,), self.seed)
            fit(head, seen.take(torch.nonzero(fold_N != fold)[:, 0]), many, self.machine, seed=self.seed + fold)
            rest_M = torch.nonzero(fold_N == fold)[:, 0]
            with evaluating(*head.values()):
                evidence_MJD = seen.evidence[SHIPPED][rest_M].to(self.machine.device)
                score_N[rest_M] = head[SHIPPED].logit(evidence_MJD).cpu()
        return score_N.numpy()


def train_students(
    model: PoseModel, others: Sequence[PoseModel], labelled: Crops, pool: Crops, names: Sequence[str], recipe: Recipe,
    config: EpckTraining, machine: Machine, seed: int,
) -> Students:  # fmt: skip
    """Train every head that the named detectors want.

    Args:
        model: the base model with the papers' heads.
        others: base models of other seeds: the committee that ``epck-distilled`` learns from.
        labelled: everybody who trained or validated the pose net.
        pool: the half of the pool that may be seen; its labels are for the ceiling alone.
        names: of the detectors.
        recipe: of the base model.
        config: of the expected-PCK heads.
        machine: where.
        seed: of the base model.
    """
    validating_N = validation_mask(labelled.data.ids, recipe.pose.validation, seed)
    learners, strangers = (labelled.subset(np.flatnonzero(mask_N)) for mask_N in (~validating_N, validating_N))
    views = config.views_for(len(learners))
    made: dict[str, ExpectedPckHead] = {}

    def lesson_of(
        heads: Mapping[str, ExpectedPckHead], crops: Crops, count: int, what: str, mild: bool = False
    ) -> HeadDataset:
        return collect(model, heads, crops, machine, views=count, seed=seed, what=f"{what}, seed {seed}",
                   augment_by=recipe.heads.augment if mild else None)  # fmt: skip

    # One pass over the damaged views serves all that learn from them.
    first = _heads(model, tuple(name for name in (SHIPPED, SLIM, "epck-maps") if name in (SHIPPED, *names)), seed)
    lesson = lesson_of(first, learners, views, "damaged views")
    fit(first, lesson, config, machine, seed=seed)
    made |= first

    def shipped(name: str, other: HeadDataset, target_NJ: Tensor | None = None) -> None:
        head = _heads(model, (SHIPPED,), seed)
        fit(head, other, config, machine, seed=seed, target_NJ=target_NJ)
        made[name] = head[SHIPPED]

    if "epck-mild" in names:
        shipped("epck-mild", lesson_of(first, learners, views, "mild views", mild=True))
    if "epck-image" in names:
        right_NJ = (lesson.distance_NJ < 1) & lesson.counts_NJ
        pck_N = right_NJ.sum(dim=1) / lesson.counts_NJ.sum(dim=1).clamp_min(1)
        shipped("epck-image", lesson, pck_N[:, None].expand_as(lesson.distance_NJ))
    if "epck-unfitted" in names:
        shipped("epck-unfitted", join([lesson, lesson_of(first, strangers, views, "views of validating people")]))
    if "epck-out-of-fold" in names:
        out_of_fold = _out_of_fold(model, first, learners, recipe, machine, seed)
        shipped("epck-out-of-fold", join([lesson, out_of_fold]))
    if "epck-distilled" in names and others:
        unlabelled, said_NJ = _asked(model, others, first, pool, machine, seed)
        target_NJ = soft_right(lesson.distance_NJ, config.softness)
        shipped("epck-distilled", join([lesson, unlabelled]), torch.cat([target_NJ, said_NJ]))
    if "in-domain" in names:
        shipped(
            IN_DOMAIN, lesson_of(first, pool, min(CEILING_VIEWS, config.views_for(len(pool))), "labels of the pool")
        )
    loss: dict[str, LossHead] = {}
    if "ll++conv-damaged" in names:
        loss["ll++conv-damaged"] = checkpoint.new_head(model, "ll++conv", seed)
        train_heads(model, {"ll++conv": loss["ll++conv-damaged"]}, labelled, replace(recipe.heads, pairing="all"), machine,
                    seed=seed, validation=recipe.pose.validation, damaged=True, what=f"ll++conv-damaged, seed {seed}")  # fmt: skip
    nets: dict[str, PoseModel] = {}
    if {TINY, f"{SHIPPED}+{TINY}"} & set(names):
        nets[TINY] = tiny_net(model, seed)
        train_pose(nets[TINY], labelled, recipe.pose, machine, seed=seed, what=f"{TINY}, seed {seed}")
    return Students(made, loss, nets, config, machine, seed)


def tiny_net(model: PoseModel, seed: int) -> PoseModel:
    """A fresh pose net of some per cent of the hourglass's arithmetic, with weights of its own seed."""
    config = HourglassConfig(joints=len(model.skeleton), stacks=1, channels=TINY_CHANNELS)
    return checkpoint.new_model(config, model.skeleton, model.crop, model.target, seed + TINY_SEED)


def _out_of_fold(
    model: PoseModel, heads: Mapping[str, ExpectedPckHead], learners: Crops, recipe: Recipe, machine: Machine, seed: int
) -> HeadDataset:
    """What forks of the pose net make of people that they were not trained on any more.

    A net that was trained from scratch without them has other features, which the head could not read.
    """
    fold_N = np.random.default_rng(seed).permutation(len(learners)) % FORKS
    pose = recipe.pose
    how = replace(pose, epochs=max(1, round(FORK_EPOCHS * pose.epochs)), lr=FORK_RATE * pose.lr)
    lessons = []
    for fold in range(FORKS):
        fork = replace(model, pose=copy.deepcopy(model.pose), heads={}, auxiliary={})
        own, strangers = (learners.subset(np.flatnonzero(mask_N)) for mask_N in (fold_N != fold, fold_N == fold))
        train_pose(fork, own, how, machine, seed=seed, best=False, what=f"fork {fold + 1} of {FORKS}, seed {seed}")
        for views, mild in ((0, None), (FORK_VIEWS, recipe.heads.augment)):
            lessons.append(collect(fork, heads, strangers, machine, views=views, seed=seed, augment_by=mild,
                               what=f"strangers of fork {fold + 1}, seed {seed}"))  # fmt: skip
    return join(lessons)


def read_at_peaks(seen: Predicted, maps_BJHW: Tensor, peak: float) -> Tensor:
    """Another net's maps where this net's last maps look, as a share of the training peak, (B, J)."""
    look_BJP = (seen.features.heatmaps[-1].flatten(2) * (SHARPNESS / peak)).softmax(dim=2)
    return (look_BJP * maps_BJHW.flatten(2)).sum(dim=2) / peak


def others_say(seen: Predicted, others: Sequence[PoseModel], machine: Machine) -> Tensor:
    """What other nets hold where this one looks, (K, B, J)."""
    said = []
    for other in others:
        with evaluating(other.pose), machine.autocast():
            maps_BJHW = other.pose(seen.images_B3SS).features.heatmaps[-1]
        said.append(read_at_peaks(seen, maps_BJHW.float(), other.target.peak))
    return torch.stack(said)


def _asked(
    model: PoseModel, others: Sequence[PoseModel], heads: Mapping[str, ExpectedPckHead], pool: Crops, machine: Machine,
    seed: int,
) -> tuple[HeadDataset, Tensor]:  # fmt: skip
    """A lesson on people without labels: their evidence, and how far other nets agree with each keypoint (N, J)."""
    lessons, said = [], []
    skip = list(profile_of("standard", pool.data).skip)
    for seen in augmented_views(model, pool, machine, views=0, seed=seed, what=f"asking the committee, seed {seed}"):
        with evaluating(*heads.values()):
            evidence = {name: head.evidence(seen.features).cpu() for name, head in heads.items()}
        # No label is looked at, not even whether there is one.
        everything = torch.ones_like(seen.counts_BJ).cpu()
        everything[:, skip] = False
        lessons.append(HeadDataset(evidence, torch.zeros(everything.shape), everything))
        said.append((others_say(seen, others, machine).mean(dim=0) * TEACHER_GAIN).clamp(0, 1).cpu())
    return join(lessons), torch.cat(said)


def _heads(model: PoseModel, names: Sequence[str], seed: int) -> dict[str, ExpectedPckHead]:
    heads: dict[str, ExpectedPckHead] = {}
    for name in names:
        if name == "epck-maps":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                head = build_head(replace(checkpoint.head_config(model, "epck"), evidence="maps"))
        else:
            head = checkpoint.new_head(model, "epck-slim" if name == SLIM else "epck", seed)
        assert isinstance(head, ExpectedPckHead)
        heads[name] = head
    return heads
