"""Training of expected-PCK heads: one pass over damaged views collects the evidence, the head then learns from numbers.

The pose net is frozen and its evidence is some hundred numbers per joint, so that the views are drawn once, and all
epochs of a small head cost less than one pass of the pose net.

Shapes: N views, B batch, J joints, D evidence of a joint.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from alpose.runtime.errors import ConfigError, DataError

from .augmented_views import augmented_views
from .checkpoint import PoseModel
from .data.augment import AugmentConfig
from .data.crops import Crops
from .device import DeviceContext, evaluating
from .models.expected_pck import ExpectedPckHead
from .models.joint_network import CERTAIN, JointNetwork
from .passes import Predicted
from .training import HeadTraining, run_epochs, validation_mask
from .training_state import refuse_divergence


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


Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits, targets and the weights of a batch's joints, (B, J) each, to a loss."""


class HeadDataset(NamedTuple):
    """What heads learn from, or are judged on."""

    evidence: Mapping[str, Tensor]
    """(N, J, D) by head."""
    distance_NJ: Tensor
    """Predicted to true position in units of the PCK threshold: below 1 is right; NaN where nothing can be measured."""
    counts_NJ: Tensor
    """Joints that are labelled, in view, and of a person who can be measured."""

    def take(self, rows_M: Tensor) -> HeadDataset:
        """These views, in this order."""
        evidence = {name: value[rows_M] for name, value in self.evidence.items()}
        return HeadDataset(evidence, self.distance_NJ[rows_M], self.counts_NJ[rows_M])

    def only(self, names: Iterable[str]) -> HeadDataset:
        """The evidence of these heads alone."""
        return self._replace(evidence={name: self.evidence[name] for name in names})


def join(parts: Sequence[HeadDataset]) -> HeadDataset:
    """One dataset after the other."""
    evidence = {name: torch.cat([each.evidence[name] for each in parts]) for name in parts[0].evidence}
    return HeadDataset(evidence, *(torch.cat(column) for column in zip(*(part[1:] for part in parts), strict=True)))


def train_epck(
    model: PoseModel, heads: Mapping[str, ExpectedPckHead], crops: Crops, config: HeadTraining | EpckTraining,
    machine: DeviceContext, *, seed: int, validation: float, what: str = "expected-PCK heads",
) -> dict[str, list[float]]:  # fmt: skip
    """Train heads in place on a frozen pose net, which does not change by a bit; one pass over the views feeds them all.

    The people that validated the pose net are left out. ``config`` of the other heads stands for the default. Returns
    each head's mean loss per epoch.
    """
    how = config if isinstance(config, EpckTraining) else EpckTraining()
    what = what.replace("loss head", "expected-PCK head")
    learners = crops.subset(np.flatnonzero(~validation_mask(crops.data.split_names(), validation, seed)))
    dataset = collect(model, heads, learners, machine, views=how.views_for(len(learners)), seed=seed, what=what)
    return fit(heads, dataset, how, machine, seed=seed)


def collect(
    model: PoseModel, heads: Mapping[str, ExpectedPckHead], crops: Crops, machine: DeviceContext, *, views: int,
    seed: int, augment_by: AugmentConfig | None = None, what: str = "evidence",
    also: Callable[[Predicted], Mapping[str, Tensor]] | None = None,
    change: Callable[[Predicted], Predicted] | None = None,
) -> HeadDataset:  # fmt: skip
    """The evidence of every head on views of people, see :func:`alpose.trainer.augmented_views.augmented_views`.

    ``also`` reads further evidence of a batch by name; ``change`` is what a batch becomes before anything is read of it.
    """
    for head in heads.values():
        head.to(machine.device)
    parts = []
    with evaluating(*heads.values()):
        for view in augmented_views(model, crops, machine, views=views, seed=seed, augment_by=augment_by, what=what):
            view = change(view) if change else view
            evidence = {name: head.evidence(view.features).cpu() for name, head in heads.items()}
            evidence |= {name: value.cpu() for name, value in (also(view) if also else {}).items()}
            parts.append(HeadDataset(evidence, view.distance_BJ.cpu(), view.counts_BJ.cpu()))
    return join(parts)


def fit(
    heads: Mapping[str, JointNetwork], dataset: HeadDataset, config: EpckTraining, machine: DeviceContext, *,
    seed: int, target_NJ: Tensor | None = None, term: Term | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Train heads in place; they end in eval mode.

    Their standardisation is taken from the dataset; the seed decides order and dropout. ``target_NJ`` are probabilities in
    [0, 1] in place of those that follow from the distances; ``term`` is added to the cross entropy of the joints.
    """
    counts_NJ = dataset.counts_NJ
    if not counts_NJ.any():
        raise DataError("expected-PCK heads learn from labelled joints of people who can be measured (PCK has no "
                        "length for the others): there is none")  # fmt: skip
    target_NJ = soft_right(dataset.distance_NJ, config.softness) if target_NJ is None else target_NJ
    target_NJ = target_NJ.masked_fill(~counts_NJ, 0.0)
    rows_N = torch.nonzero(counts_NJ.any(dim=1))[:, 0]
    history: dict[str, list[float]] = {}
    with torch.random.fork_rng(devices=[]):
        for name, head in heads.items():
            digest = hashlib.sha256(f"{seed}/epck/learn {name}".encode()).digest()
            torch.manual_seed(int.from_bytes(digest[:7], "little"))
            evidence_NJD, own_target_NJ, own_counts_NJ = (
                part[rows_N].to(machine.device) for part in (dataset.evidence[name], target_NJ, counts_NJ)
            )
            head.to(machine.device)
            history[name] = _fit(name, head, evidence_NJD, own_target_NJ, own_counts_NJ, config, term)
            # Every process learned the same; the first settles what rounding left of differences.
            if machine.world > 1:
                for value in (*head.parameters(), *head.buffers()):
                    torch.distributed.broadcast(value.data, 0)
    return history


def soft_right(distance_NJ: Tensor, softness: float) -> Tensor:
    """How right a keypoint is, 1 at the joint, ½ at the threshold: sigmoid((1 - d) / softness)."""
    return torch.sigmoid((1 - distance_NJ) / softness)


def _fit(
    name: str, head: JointNetwork, evidence_NJD: Tensor, target_NJ: Tensor, counts_NJ: Tensor, config: EpckTraining,
    term: Term | None,
) -> list[float]:  # fmt: skip
    head.standardise(evidence_NJD)
    head.train()
    size = min(config.batch, len(evidence_NJD))
    steps = len(evidence_NJD) // size
    optimiser = torch.optim.AdamW(head.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=config.epochs * steps + 1)
    losses: list[float] = []

    def batches(_: int) -> Iterator[Tensor]:
        yield from torch.randperm(len(evidence_NJD)).to(evidence_NJD.device)[: steps * size].split(size)

    def step(index_B: Tensor) -> dict[str, Tensor]:
        counts_BJ = counts_NJ[index_B].float()
        logits_BJ = head.logits(evidence_NJD[index_B])
        loss_BJ = functional.binary_cross_entropy_with_logits(logits_BJ, target_NJ[index_B], reduction="none")
        loss = (loss_BJ * counts_BJ).sum() / counts_BJ.sum().clamp_min(1.0)
        if term:
            loss = loss + term(logits_BJ, target_NJ[index_B], counts_BJ)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        return {name: loss.double()}

    def end_epoch(epoch: int, mean: dict[str, float]) -> None:
        losses.extend(mean.values())
        refuse_divergence(epoch, mean)

    run_epochs(range(config.epochs), batches, step, end_epoch)
    untaught_J = ~counts_NJ.any(dim=0)
    if untaught_J.any():
        head.leave_out(untaught_J, float(target_NJ[counts_NJ].mean().clamp(CERTAIN, 1 - CERTAIN)))
    head.eval()
    return losses
