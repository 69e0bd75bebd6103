"""Training of expected-PCK heads: one pass over damaged views reads the evidence, the head then learns on numbers.

The pose net is frozen and its evidence is some hundred numbers per joint, so that the views are drawn once, and all
epochs of a small head cost less than one pass of the pose net.

Shapes: N views, B batch, J joints, D evidence of a joint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alpose.runtime.errors import ConfigError, DataError

from .checkpoint import PoseModel
from .data.augment import AugmentConfig
from .data.crops import Crops
from .device import Machine, evaluating
from .glimpses import glimpses
from .models.expected_pck import CERTAIN, ExpectedPckHead
from .resume import refuse_divergence
from .training import validation_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class EpckTraining:
    """How expected-PCK heads are trained. Chosen on held-out people of LSP's training half and on synthetic people."""

    views: int = 16
    """Of every person, each with its own strength of damage."""
    most_views: int = 60_000
    """Of all people together: with more people there are fewer of each. A view takes 4 bytes for every joint and number
    of its evidence, 7 kB with the laptop's net and 29 kB with the papers'; two copies of all are held while learning."""
    epochs: int = 12
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 2e-2
    softness: float = 0.25
    """Width of the step from right to wrong, as a share of the PCK threshold: a keypoint just outside is half right."""

    def __post_init__(self) -> None:
        for name in ("views", "most_views", "epochs", "batch", "lr", "softness"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"expected-PCK training: {name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"expected-PCK training: weight_decay must not be negative, got {self.weight_decay}")

    def views_for(self, people: int) -> int:
        """Views of each of so many people."""
        return max(1, min(self.views, self.most_views // max(people, 1)))


class Lesson(NamedTuple):
    """What heads learn from, or are judged on."""

    evidence: Mapping[str, Tensor]
    """(N, J, D) by head."""
    distance_NJ: Tensor
    """Predicted to true position in units of the PCK threshold: below 1 is right; NaN where nothing can be measured."""
    counts_NJ: Tensor
    """Joints that are labelled, in view, and of a person who can be measured."""

    def take(self, rows_M: Tensor) -> Lesson:
        """These views, in this order."""
        evidence = {name: value[rows_M] for name, value in self.evidence.items()}
        return Lesson(evidence, self.distance_NJ[rows_M], self.counts_NJ[rows_M])


def join(lessons: Sequence[Lesson]) -> Lesson:
    """One lesson after the other."""
    evidence = {name: torch.cat([each.evidence[name] for each in lessons]) for name in lessons[0].evidence}
    return Lesson(evidence, torch.cat([each.distance_NJ for each in lessons]),
                  torch.cat([each.counts_NJ for each in lessons]))  # fmt: skip


def train_epck(
    model: PoseModel,
    heads: Mapping[str, ExpectedPckHead],
    crops: Crops,
    config: EpckTraining,
    machine: Machine,
    *,
    seed: int,
    validation: float,
    what: str = "expected-PCK heads",
) -> dict[str, list[float]]:
    """Train heads in place on a frozen pose net, which does not change by a bit; one pass over the views feeds them all.

    The people that validated the pose net are left out. Returns each head's mean loss per epoch.
    """
    learners = crops.subset(np.flatnonzero(~validation_mask(crops.data.ids, validation, seed)))
    lesson = see(model, heads, learners, machine, views=config.views_for(len(learners)), seed=seed, what=what)
    return learn(heads, lesson, config, machine, seed=seed)


def see(
    model: PoseModel,
    heads: Mapping[str, ExpectedPckHead],
    crops: Crops,
    machine: Machine,
    *,
    views: int,
    seed: int,
    augment_by: AugmentConfig | None = None,
    what: str = "evidence",
) -> Lesson:
    """The evidence of every head for views of people, as :func:`alpose.trainer.glimpses.glimpses` takes them."""
    for head in heads.values():
        head.to(machine.device)
    seen = []
    with evaluating(*heads.values()):
        for glimpse in glimpses(model, crops, machine, views=views, seed=seed, augment_by=augment_by, what=what):
            evidence = {name: head.evidence(glimpse.features).cpu() for name, head in heads.items()}
            seen.append(Lesson(evidence, glimpse.distance_BJ.cpu(), glimpse.counts_BJ.cpu()))
    return join(seen)


def learn(
    heads: Mapping[str, ExpectedPckHead], lesson: Lesson, config: EpckTraining, machine: Machine, *, seed: int,
    target_NJ: Tensor | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Train heads in place on a lesson; they end in eval mode.

    Args:
        heads: fresh or trained; their standardisation is taken from the lesson.
        lesson: what was seen.
        config: how.
        machine: where.
        seed: decides order and dropout.
        target_NJ: probabilities in [0, 1] in place of those that follow from the distances.
    """
    counts_NJ = lesson.counts_NJ
    if not counts_NJ.any():
        raise DataError("expected-PCK heads learn from labelled joints of people who can be measured (PCK has no "
                        "length for the others): there is none")  # fmt: skip
    target_NJ = soft_right(lesson.distance_NJ, config.softness) if target_NJ is None else target_NJ
    target_NJ = target_NJ.masked_fill(~counts_NJ, 0.0)
    rows_N = torch.nonzero(counts_NJ.any(dim=1))[:, 0]
    history: dict[str, list[float]] = {}
    with torch.random.fork_rng(devices=[]):
        for name, head in heads.items():
            torch.manual_seed(_hash(seed, f"learn {name}"))
            history[name] = _learn(head.to(machine.device), lesson.evidence[name][rows_N].to(machine.device),
                                   target_NJ[rows_N].to(machine.device), counts_NJ[rows_N].to(machine.device),
                                   config)  # fmt: skip
            _agree(head, machine)
    return history


def soft_right(distance_NJ: Tensor, softness: float) -> Tensor:
    """How right a keypoint is, 1 at the joint, ½ at the threshold: sigmoid((1 - d) / softness)."""
    return torch.sigmoid((1 - distance_NJ) / softness)


def _learn(
    head: ExpectedPckHead, evidence_NJD: Tensor, target_NJ: Tensor, counts_NJ: Tensor, config: EpckTraining
) -> list[float]:
    head.standardise(evidence_NJD)
    head.train()
    size = min(config.batch, len(evidence_NJD))
    steps = len(evidence_NJD) // size
    optimiser = torch.optim.AdamW(head.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=config.epochs * steps + 1)
    losses = []
    for epoch in range(config.epochs):
        order_N = torch.randperm(len(evidence_NJD)).to(evidence_NJD.device)
        total = 0.0
        for index_B in order_N[: steps * size].split(size):
            counts_BJ = counts_NJ[index_B].float()
            loss_BJ = functional.binary_cross_entropy_with_logits(
                head.logits(evidence_NJD[index_B]), target_NJ[index_B], reduction="none"
            )
            loss = (loss_BJ * counts_BJ).sum() / counts_BJ.sum().clamp_min(1.0)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        losses.append(total / steps)
        refuse_divergence(epoch, {head.config.name: losses[-1]})
    untaught_J = ~counts_NJ.any(dim=0)
    if untaught_J.any():
        head.leave_out(untaught_J, float(target_NJ[counts_NJ].mean().clamp(CERTAIN, 1 - CERTAIN)))
    head.eval()
    return losses


def _agree(head: ExpectedPckHead, machine: Machine) -> None:
    """Every process learned the same; what rounding left of differences is settled by the first."""
    if machine.world > 1:
        for value in (*head.parameters(), *head.buffers()):
            torch.distributed.broadcast(value.data, 0)


def _hash(seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/epck/{purpose}".encode()).digest()[:7], "little")
