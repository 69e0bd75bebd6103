"""Training: a pose net on heatmaps, and loss heads on the features of a frozen one (or beside it).

Everything random in an epoch follows from (seed, purpose, epoch), so a training that was killed and resumed at an
epoch ends with the same weights as one that was not.

Shapes: B batch, S stacks, J joints, H W heatmap, N people.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alpose.runtime.errors import ConfigError

from .checkpoint import PoseModel
from .data.augment import AugmentConfig, augment, to_input
from .data.crops import Crops
from .data.degrade import degrade, views_of
from .device import Machine, evaluating
from .feed import Feed
from .heatmaps import draw, to_cells
from .models.heads import HeadName, LossHead
from .models.hourglass import STRIDE, PoseOutput
from .objectives import PAIRINGS, Pairing, heatmap_mse, margin_ranking, pair_kl, true_loss
from .progress import progress
from .resume import Epoch, Keeper, Schedule, Stepper, identity, refuse_divergence

log = logging.getLogger("alpose")

HeadsHow = Literal["frozen", "joint"]

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True, kw_only=True, slots=True)
class PoseTraining:
    """How a pose net is trained."""

    epochs: int = 80
    batch: int = 16
    lr: float = 3e-4
    weight_decay: float = 0.0
    schedule: Schedule = "plateau"
    """``plateau`` halves the rate after 8 epochs without a better inner validation loss, as the papers' code does
    (there on the test split); ``one-cycle`` warms up and falls to zero."""
    validation: float = 0.1
    """Share of the labelled people that choose the epoch and the rate, and train nothing."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    compile: bool = False

    def __post_init__(self) -> None:
        _check_positive("pose training", epochs=self.epochs, batch=self.batch, lr=self.lr)
        if self.schedule not in get_args(Schedule):
            raise ConfigError(f"pose training: schedule {self.schedule!r} is not one of {get_args(Schedule)}")
        if not self.weight_decay >= 0:
            raise ConfigError(f"pose training: weight_decay must not be negative, got {self.weight_decay}")
        if not 0 < self.validation < 0.9:
            raise ConfigError(f"pose training: validation must be in (0, 0.9), got {self.validation}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTraining:
    """How loss heads are trained."""

    how: HeadsHow = "frozen"
    """``frozen``: after the pose net, which stays in eval mode and does not change by a bit. ``joint``: in the same
    steps as the pose net, on its train-mode features; no gradient of a head enters the pose net either way."""
    epochs: int = 40
    """With ``joint`` the pose net's epochs count instead."""
    batch: int = 32
    lr: float = 3e-4
    pairing: Pairing = "disjoint"
    margin: float = 1.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check_positive("head training", epochs=self.epochs, lr=self.lr, margin=self.margin)
        if not self.batch >= 2:
            raise ConfigError(f"head training: batch must be at least 2, heads learn from pairs; got {self.batch}")
        for value, known in ((self.how, get_args(HeadsHow)), (self.pairing, PAIRINGS)):
            if value not in known:
                raise ConfigError(f"head training: {value!r} is not one of {known}")


def validation_mask(ids: tuple[str, ...], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which people validate: a hash of (seed, id) decides.

    So a person keeps its side while the labelled set grows, and no set has to be stored.
    """
    limit = int(share * 2**32)
    mask_N = np.array([_hash(seed, "validation", id_) % 2**32 < limit for id_ in ids])
    if mask_N.all() or not mask_N.any():  # a handful of people: keep one for validation
        mask_N = np.arange(len(ids)) == 0
    return mask_N


def train_pose(
    model: PoseModel,
    crops: Crops,
    config: PoseTraining,
    machine: Machine,
    *,
    seed: int,
    state: Path | None = None,
    heads: Mapping[HeadName, LossHead] | None = None,
    head_config: HeadTraining | None = None,
    best: bool = True,
    what: str = "pose net",
) -> tuple[Epoch, ...]:
    """Train the pose net of ``model`` in place; it ends with the weights of its best validation epoch.

    Args:
        model: the pose net, fresh or trained (warm start).
        crops: all labelled people; the inner validation split is taken from them.
        config: how.
        machine: where; under ``torchrun`` each process takes its share of every batch.
        seed: decides order, augmentation and validation split.
        state: file for resuming; the caller discards it (:func:`discard`) once the checkpoint is safe.
        heads: heads to train in the same steps (``how="joint"``).
        head_config: how these heads are trained.
        best: whether it ends with the weights of the best epoch, or else of the last.
        what: name in progress and log.
    """
    valid_N = validation_mask(crops.data.ids, config.validation, seed)
    feed = Feed.open(crops.subset(np.flatnonzero(~valid_N)), machine)
    valid = Feed.open(crops.subset(np.flatnonzero(valid_N)), machine)
    joint = dict(heads or {})
    head_how = head_config or HeadTraining(how="joint")
    model.to(machine.device)
    batch = _batch_of(config.batch, len(feed), machine)
    steps = len(feed) // batch
    optimiser = torch.optim.AdamW(model.pose.parameters(), config.lr, weight_decay=config.weight_decay,
                                  fused=True)  # fmt: skip
    schedule = Stepper(config.schedule, config.lr, optimiser, epochs=config.epochs, steps=steps)
    head_optimisers = {name: torch.optim.Adam(head.to(machine.device).parameters(), head_how.lr, fused=True)
                       for name, head in joint.items()}  # fmt: skip
    net: nn.Module = torch.compile(model.pose) if config.compile else model.pose  # type: ignore[assignment]
    if machine.world > 1:
        ids = [machine.device.index] if machine.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids)
    keeper = Keeper(state, model.pose, optimiser, schedule, joint, head_optimisers, machine,
                     identity=identity(model, joint, crops, config, head_how, seed))  # fmt: skip

    for epoch in progress(range(keeper.resume(), config.epochs), what, config.epochs, first=keeper.epoch):
        model.pose.train()
        generator = torch.Generator().manual_seed(_hash(seed, "augment", epoch))
        sums: dict[str, Tensor] = {}
        for index_B in _batches(len(feed), batch, seed, epoch):
            images, target, counts, share = _views(model, feed, index_B, config.augment, generator, machine)
            with machine.autocast():
                output: PoseOutput = net(images)
            loss_BS = heatmap_mse(output.heatmaps_BSJHW, target, counts)
            optimiser.zero_grad(set_to_none=True)
            (loss_BS.mean() * share).backward()
            optimiser.step()
            schedule.step()
            _add(sums, {"train": loss_BS.mean() * share})
            if joint:
                true_B = true_loss(output.heatmaps_BSJHW, target, counts)
                _add(sums, _head_step(joint, head_optimisers, output, true_B, counts.any(dim=1), head_how, machine))
        _share_statistics(model.pose, machine)
        mean = {"validation": _validation_loss(model, valid, machine)}
        mean |= {name: float(total) / steps for name, total in sums.items()}
        mean = _average(mean, machine)
        loss = mean.pop("validation")
        schedule.epoch(loss)
        keeper.end_epoch(Epoch(epoch, mean.pop("train"), loss, schedule.lr, mean))
    if best:
        keeper.restore_best()
    return tuple(keeper.history)


def train_heads(
    model: PoseModel,
    heads: Mapping[HeadName, LossHead],
    crops: Crops,
    config: HeadTraining,
    machine: Machine,
    *,
    seed: int,
    validation: float,
    damaged: bool = False,
    what: str = "loss heads",
) -> dict[str, list[float]]:
    """Train heads in place on a frozen pose net in eval mode; one forward pass feeds them all.

    The pose net's weights and its batch-norm statistics do not change by a bit. The people that validated the pose
    net are left out, and nothing is chosen by them. With ``damaged`` the views are those of
    :mod:`alpose.trainer.data.degrade`, each batch with its own strength. Returns each head's mean loss per epoch.
    """

    def step(seen: Frozen, optimisers: Mapping[HeadName, torch.optim.Optimizer]) -> dict[str, Tensor]:
        true_B = true_loss(seen.output.heatmaps_BSJHW, seen.target_BJHW, seen.counts_BJ)
        return _head_step(heads, optimisers, seen.output, true_B, seen.counts_BJ.any(dim=1), config, machine)

    return on_frozen(model, heads, step, crops, config, machine, seed=seed, validation=validation, damaged=damaged,
                     what=what)  # fmt: skip


class Frozen(NamedTuple):
    """What one step sees of a frozen pose net, without gradients."""

    output: PoseOutput
    target_BJHW: Tensor
    counts_BJ: Tensor
    """Joints that are labelled and in view."""
    ids: tuple[str, ...]


def on_frozen(
    model: PoseModel,
    modules: Mapping[Name, nn.Module],
    step: Callable[[Frozen, Mapping[Name, torch.optim.Optimizer]], Mapping[str, Tensor]],
    crops: Crops,
    config: HeadTraining,
    machine: Machine,
    *,
    seed: int,
    validation: float,
    what: str,
    damaged: bool = False,
) -> dict[str, list[float]]:
    """Train modules in place beside a frozen pose net in eval mode; one forward pass feeds them all.

    ``step`` updates the modules, each by its own Adam, and returns their losses by name. The people that validated the
    pose net are left out. Returns each module's mean loss per epoch; the modules end in eval mode.
    """
    feed = Feed.open(crops.subset(np.flatnonzero(~validation_mask(crops.data.ids, validation, seed))), machine)
    model.to(machine.device)
    optimisers = {name: torch.optim.Adam(module.to(machine.device).train().parameters(), config.lr, fused=True)
                  for name, module in modules.items()}  # fmt: skip
    batch = _batch_of(config.batch, len(feed), machine)
    history: dict[str, list[float]] = {name: [] for name in modules}
    for epoch in progress(range(config.epochs), what, config.epochs):
        generator = torch.Generator().manual_seed(_hash(seed, "augment heads", epoch))
        sums: dict[str, Tensor] = {}
        for index_B in _batches(len(feed), batch, seed, epoch):
            with evaluating(model.pose):
                strength = float(torch.rand((), generator=generator)) if damaged else None
                images, target, counts, _ = _views(
                    model, feed, index_B, config.augment, generator, machine, strength=strength
                )
                with machine.autocast():
                    output = model.pose(images)
            ids = tuple(feed.crops.data.ids[row] for row in index_B[machine.rank :: machine.world])
            _add(sums, step(Frozen(output, target, counts, ids), optimisers))
        mean = _average({name: float(total) / (len(feed) // batch) for name, total in sums.items()}, machine)
        refuse_divergence(epoch, mean)
        for name in modules:
            history[name].append(mean[name])
    for module in modules.values():
        module.eval()
    return history


def _head_step(
    heads: Mapping[HeadName, LossHead],
    optimisers: Mapping[HeadName, torch.optim.Optimizer],
    output: PoseOutput,
    true_B: Tensor,
    seen_B: Tensor,
    config: HeadTraining,
    machine: Machine,
) -> dict[str, Tensor]:
    """One step of every head on its own objective; the features carry no gradient.

    Images whose joints all left the view (``seen_B`` false) have no true loss: they are in no pair.
    """
    features = output.features.detached()
    true_B = true_B.clone()[seen_B]
    losses: dict[str, Tensor] = {}
    for name, head in heads.items():
        predicted_B = head(features)[seen_B]
        if name in ("ll", "ll-gap"):
            loss = margin_ranking(predicted_B, true_B, margin=config.margin, pairing=config.pairing)
        else:
            loss = pair_kl(predicted_B, true_B, pairing=config.pairing)
        optimisers[name].zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(head, machine)
        optimisers[name].step()
        losses[name] = loss.detach()
    return losses


def average_gradients(module: nn.Module, machine: Machine) -> None:
    """The mean over processes, before the step."""
    if machine.world > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
                parameter.grad /= machine.world


def _share_statistics(module: nn.Module, machine: Machine) -> None:
    """Every process saw other rows: without this their batch-norm statistics, and so their models, would differ."""
    if machine.world > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def _average(values: Mapping[str, float], machine: Machine) -> dict[str, float]:
    """The mean over processes, so that all of them choose the same epoch and rate."""
    if machine.world == 1:
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=machine.device)
    torch.distributed.all_reduce(total)
    return dict(zip(values, (total / machine.world).tolist(), strict=True))


def _batch_of(wanted: int, people: int, machine: Machine) -> int:
    if not people:
        raise ConfigError("cannot train on 1 labelled person: label at least 2, one of them validates")
    batch = min(wanted, people)
    if batch < machine.world:
        raise ConfigError(f"a batch of {batch} cannot be shared by {machine.world} processes")
    return batch


def _views(
    model: PoseModel,
    feed: Feed,
    index_B: npt.NDArray[np.integer],
    config: AugmentConfig,
    generator: torch.Generator,
    machine: Machine,
    strength: float | None = None,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Augmented images, their targets and which joints count; damaged by a strength in [0, 1] where there is one.

    Every process draws the random numbers of the whole batch and keeps its own rows, so that a job of many
    processes sees the images of one. The last value weighs the process's mean by its share of the batch.
    """
    whole = feed.batch(index_B)
    images, joints_BJ2, counts_BJ = augment(
        whole.pixels_BTT3, whole.joints_BJ2, whole.labelled_BJ, size_px=model.crop.size_px,
        flip_order=model.skeleton.flip_order(), config=config if strength is None else views_of(strength),
        generator=generator,
    )  # fmt: skip
    if strength is not None:
        images = degrade(images, torch.full((len(images),), strength), generator)
    mine = slice(machine.rank, None, machine.world)
    images, joints_BJ2, counts_BJ = images[mine], joints_BJ2[mine], counts_BJ[mine]
    target = draw(to_cells(joints_BJ2, STRIDE), model.size, sigma=model.target.sigma, peak=model.target.peak)
    share = len(images) * machine.world / len(index_B)
    return images.contiguous(memory_format=torch.channels_last), target, counts_BJ, share


def _batches(count: int, batch: int, seed: int, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
    """Full batches in a new order; the rest of an epoch waits for the next."""
    order_N = np.random.default_rng(_hash(seed, "order", epoch)).permutation(count)
    for start in range(0, count - batch + 1, batch):
        yield order_N[start : start + batch]


def _validation_loss(model: PoseModel, feed: Feed, machine: Machine) -> float:
    total = 0.0
    with evaluating(model.pose):
        for index_B in np.array_split(np.arange(len(feed)), max(1, math.ceil(len(feed) / 32))):
            batch = feed.batch(index_B)
            with machine.autocast():
                output = model.pose(to_input(feed.bare(batch.pixels_BTT3)))
            target = draw(to_cells(batch.joints_BJ2, STRIDE), model.size, sigma=model.target.sigma,
                          peak=model.target.peak)  # fmt: skip
            total += float(true_loss(output.heatmaps_BSJHW, target, batch.labelled_BJ).sum())
    return total / len(feed)


def _hash(seed: int, purpose: str, value: object) -> int:
    """A 63-bit number from all three, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{value}".encode()).digest()[:8], "little") >> 1


def _add(sums: dict[str, Tensor], losses: Mapping[str, Tensor]) -> None:
    """Sum on the device: reading a number at every step would make the GPU wait."""
    for name, loss in losses.items():
        sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()


def _check_positive(what: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{what}: {name} must be positive, got {value}")
