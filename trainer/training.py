"""Training: a pose net on heatmaps, and heads of every kind on the features of a frozen one (or beside it).

Everything random in an epoch follows from (seed, purpose, epoch), so a training that was killed and resumed at an
epoch ends with the same weights as one that was not.

Shapes: B batch, S stacks, J joints, H W heatmap, N people.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, AdamW, Optimizer

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import Skeleton

from .checkpoint import PoseModel
from .data.augment import AugmentConfig, augment, to_input
from .data.crops import Crops
from .data.degrade import degrade, views_of
from .device import MEMORY_FORMAT, DeviceContext, evaluating
from .feed import Feed
from .heatmaps import draw, to_cells
from .methods.catalog import Lazy, head_named, resolve
from .models.auxiliary import AuxiliaryHead
from .models.heads import LossHead
from .models.hourglass import STRIDE, Features, PoseOutput
from .objectives import PAIRINGS, Pairing, heatmap_mse, true_loss
from .progress import progress
from .training_state import Epoch, Schedule, Stepper, TrainingState, identity, refuse_divergence

log = logging.getLogger("alpose")

HeadsHow = Literal["frozen", "joint"]
Compile = bool | Literal["reduce-overhead"]
AnyHead = LossHead | AuxiliaryHead
H = TypeVar("H", bound=AnyHead)
T = TypeVar("T")


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
    compile: Compile = False
    """``torch.compile`` the pose net; ``reduce-overhead`` also records its steps as CUDA graphs, so that a GPU waits for no
    launches: at the price of memory for every recorded step."""

    def __post_init__(self) -> None:
        _check_positive("pose training", epochs=self.epochs, batch=self.batch, lr=self.lr)
        if self.compile not in (False, True, "reduce-overhead"):
            raise ConfigError(f"pose training: compile must be true, false or reduce-overhead, got {self.compile!r}")
        if self.schedule not in get_args(Schedule):
            raise ConfigError(f"pose training: schedule {self.schedule!r} is not one of {get_args(Schedule)}")
        if not self.weight_decay >= 0:
            raise ConfigError(f"pose training: weight_decay must not be negative, got {self.weight_decay}")
        if not 0 < self.validation < 0.9:
            raise ConfigError(f"pose training: validation must be in (0, 0.9), got {self.validation}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadTraining:
    """How heads are trained."""

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


class Views(NamedTuple):
    """What a pose net learns from in one step."""

    images_B3SS: Tensor
    target_BJHW: Tensor
    counts_BJ: Tensor
    """Joints that are labelled and in view."""
    share: float
    """Weighs the mean of this process by its share of the batch."""
    ids: tuple[str, ...]


class HeadBatch(NamedTuple):
    """What heads learn from in one step: the pose net's output on views of some people, without gradients."""

    features: Features
    maps_BJHW: Tensor
    """Heatmaps of the last stack."""
    target_BJHW: Tensor
    counts_BJ: Tensor
    """Joints that are labelled and in view."""
    true_B: Tensor
    """The loss of each image."""
    seen_M: Tensor
    """Rows of the images with a joint that counts: the others have no true loss."""
    ids: tuple[str, ...]
    config: HeadTraining
    seed: int


def validation_mask(names: tuple[str, ...], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which people validate: a hash of (seed, name) decides, so that people of one name are on one side.

    So a person keeps its side while the labelled set grows, and no set has to be stored. A share of 0 is nobody.

    Args:
        names: of everybody's picture or group, from :meth:`PoseData.split_names`.
        share: of the names.
        seed: of the training.
    """
    mask_N = np.array([validation_place(name, seed) < share for name in names], dtype=np.bool_)
    if share and (mask_N.all() or not mask_N.any()):  # a handful of people: keep one picture for validation
        mask_N = np.array([name == names[0] for name in names], dtype=np.bool_)
    if share and mask_N.all():  # all of one photograph
        mask_N = np.arange(len(names)) == 0
    return mask_N


def validation_place(name: str, seed: int) -> float:
    """A number in [0, 1) for a picture or group: below the share that validates, it does."""
    return (_hash(seed, "validation", name) % 2**32) / 2**32


def run_epochs(
    epochs: Iterable[int], batches: Callable[[int], Iterable[T]], step: Callable[[T], Mapping[str, Tensor]],
    end_epoch: Callable[[int, dict[str, float]], None],
) -> None:  # fmt: skip
    """The training loop: a step for every batch of every epoch, then ``end_epoch`` with the mean of each named loss.

    Losses are summed on the device: reading a number at every step would make a GPU wait.
    """
    for epoch in epochs:
        sums: dict[str, Tensor] = {}
        steps = 0
        for batch in batches(epoch):
            steps += 1
            for name, loss in step(batch).items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        end_epoch(epoch, {name: float(total) / steps for name, total in sums.items()})


def train_pose(
    model: PoseModel, crops: Crops, config: PoseTraining, machine: DeviceContext, *, seed: int,
    state: Path | None = None, heads: Mapping[str, LossHead] | None = None, head_config: HeadTraining | None = None,
    best: bool = True, what: str = "pose net", validates_N: npt.NDArray[np.bool_] | None = None,
    on_epoch: Callable[[Sequence[Epoch]], object] | None = None,
) -> tuple[Epoch, ...]:  # fmt: skip
    """Train the pose net of ``model`` in place; it ends with the weights of its best validation epoch.

    The inner validation split is taken from the people, by :func:`validation_mask` unless ``validates_N`` says who chooses
    the epoch and trains nothing; the seed decides it, the order and the augmentation. Under
    ``torchrun`` each process takes its share of every batch. A training that finds its own ``state`` file resumes it; the
    caller discards the file (:func:`discard`) once the checkpoint is safe. ``heads`` learn in the same steps
    (``how="joint"``). Without ``best`` the net ends with the weights of its last epoch. ``on_epoch`` is told all epochs so far
    after each of them.
    """
    _warn_without_pairs(model.skeleton, config.augment)
    split = () if validates_N is None else (validates_N.tobytes(),)
    valid_N = validation_mask(crops.data.split_names(), config.validation, seed) if validates_N is None else validates_N
    feed = Feed.open(crops.subset(np.flatnonzero(~valid_N)), machine)
    valid = Feed.open(crops.subset(np.flatnonzero(valid_N)), machine)
    joint, head_how = dict(heads or {}), head_config or HeadTraining(how="joint")
    model.to(machine.device)
    batch = _batch_of(config.batch, len(feed), machine)
    optimiser = AdamW(model.pose.parameters(), config.lr, weight_decay=config.weight_decay, fused=True)
    schedule = Stepper(config.schedule, config.lr, optimiser, epochs=config.epochs, steps=len(feed) // batch)
    head_optimisers = {name: Adam(head.to(machine.device).parameters(), head_how.lr, fused=True)
                       for name, head in joint.items()}  # fmt: skip
    net = compiled(model.pose, config.compile)
    records_graphs = config.compile == "reduce-overhead" and machine.device.type == "cuda"
    if machine.world > 1:
        ids = [machine.device.index] if machine.device.type == "cuda" else None
        net = DistributedDataParallel(net, device_ids=ids)
    kept = TrainingState(state, model.pose, optimiser, schedule, joint, head_optimisers, machine,
                         identity=identity(model, joint, crops, config, head_how, seed, *split))  # fmt: skip
    first = kept.resume()

    def step(views: Views) -> Mapping[str, Tensor]:
        if records_graphs:  # what the last step gave may be written over
            torch.compiler.cudagraph_mark_step_begin()
        with machine.autocast():
            output: PoseOutput = net(views.images_B3SS)
        loss = heatmap_mse(output.heatmaps_BSJHW, views.target_BJHW, views.counts_BJ).mean() * views.share
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if not joint:
            return {"train": loss}
        return {"train": loss} | _head_step(joint, head_optimisers, _head_batch(output, views, head_how, seed), machine)

    def end_epoch(epoch: int, mean: dict[str, float]) -> None:
        _share_statistics(model.pose, machine)
        mean = _average({"validation": validation_loss(model, valid, machine)} | mean, machine)
        loss = mean.pop("validation")
        schedule.epoch(loss)
        kept.end_epoch(Epoch(epoch, mean.pop("train"), loss, schedule.lr, mean))
        if on_epoch is not None:
            on_epoch(kept.history)

    model.pose.train()
    run_epochs(
        progress(range(first, config.epochs), what, config.epochs, first=first),
        lambda epoch: _views(model, feed, batch, config.augment, machine, seed, epoch, "augment"), step, end_epoch,
    )  # fmt: skip
    if best:
        kept.restore_best()
    return tuple(kept.history)


def compiled(net: nn.Module, how: Compile) -> nn.Module:
    """The net as it is trained, with the same parameters."""
    if not how:
        return net
    fast: nn.Module = torch.compile(net, mode="reduce-overhead" if how == "reduce-overhead" else None)  # type: ignore[assignment]
    return fast


def train_heads(
    model: PoseModel, heads: Mapping[str, H], crops: Crops, config: HeadTraining, machine: DeviceContext, *, seed: int,
    validation: float, damaged: bool = False, what: str = "loss heads",
) -> dict[str, list[float]]:  # fmt: skip
    """Train heads of any kind in place on a frozen pose net in eval mode, which does not change by a bit.

    The heads that learn by an objective share one pass over the views; those with a training procedure of their own
    (``Head.train`` in the catalog) share that. The people that validated the pose net train no head.

    ``validation`` is the share of the people that validated the pose net. With ``damaged`` the views are those of
    :mod:`alpose.trainer.data.degrade`, each batch with its own strength.

    Returns:
        Each head's mean loss per epoch.
    """
    groups: dict[Lazy | None, dict[str, H]] = {}
    for name, head in heads.items():
        groups.setdefault(head_named(name).train, {})[name] = head
    losses: dict[str, list[float]] = {}
    if None in groups:
        losses |= _train_by_objective(model, groups.pop(None), crops, config, machine, seed, validation, damaged, what)
    for own, group in groups.items():
        losses |= resolve(own)(model, group, crops, config, machine, seed=seed, validation=validation, what=what)
    return losses


def _train_by_objective(
    model: PoseModel, heads: Mapping[str, H], crops: Crops, config: HeadTraining, machine: DeviceContext, seed: int,
    validation: float, damaged: bool, what: str,
) -> dict[str, list[float]]:  # fmt: skip
    feed = Feed.open(
        crops.subset(np.flatnonzero(~validation_mask(crops.data.split_names(), validation, seed))), machine
    )
    model.to(machine.device)
    optimisers = {name: Adam(head.to(machine.device).train().parameters(), config.lr, fused=True)
                  for name, head in heads.items()}  # fmt: skip
    batch = _batch_of(config.batch, len(feed), machine)
    history: dict[str, list[float]] = {name: [] for name in heads}

    def batches(epoch: int) -> Iterator[HeadBatch]:
        views_of_epoch = _views(model, feed, batch, config.augment, machine, seed, epoch, "augment heads", damaged)
        while True:
            with evaluating(model.pose):  # not while the heads learn: what inference mode makes has no gradient
                views = next(views_of_epoch, None)
                if views is None:
                    return
                with machine.autocast():
                    output = model.pose(views.images_B3SS)
            yield _head_batch(output, views, config, seed)

    def end_epoch(epoch: int, mean: dict[str, float]) -> None:
        mean = _average(mean, machine)
        refuse_divergence(epoch, mean)
        for name in heads:
            history[name].append(mean[name])

    run_epochs(
        progress(range(config.epochs), what, config.epochs), batches,
        lambda seen: _head_step(heads, optimisers, seen, machine), end_epoch,
    )  # fmt: skip
    for head in heads.values():
        head.eval()
    return history


def _head_batch(output: PoseOutput, views: Views, config: HeadTraining, seed: int) -> HeadBatch:
    true_B = true_loss(output.heatmaps_BSJHW, views.target_BJHW, views.counts_BJ)
    last_BJHW = output.heatmaps_BSJHW[:, -1].detach().float().clone()
    seen_M = views.counts_BJ.any(dim=1).nonzero()[:, 0]  # once for all heads: a GPU is waited for here
    return HeadBatch(output.features.detached(), last_BJHW, views.target_BJHW, views.counts_BJ, true_B.clone(), seen_M,
                     views.ids, config, seed)  # fmt: skip


def _head_step(
    heads: Mapping[str, H], optimisers: Mapping[str, Optimizer], batch: HeadBatch, machine: DeviceContext
) -> dict[str, Tensor]:
    """One step of every head on its own objective."""
    losses: dict[str, Tensor] = {}
    for name, head in heads.items():
        objective = head_named(name).loss
        if objective is None:
            raise ConfigError(f"{name} cannot be trained beside the pose net: train it after, on the frozen net")
        loss: Tensor = resolve(objective)(head, batch)
        optimisers[name].zero_grad(set_to_none=True)
        loss.backward()
        if machine.world > 1:
            for parameter in head.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= machine.world
        optimisers[name].step()
        losses[name] = loss
    return losses


def _warn_without_pairs(skeleton: Skeleton, config: AugmentConfig) -> None:
    if config.flip and not skeleton.flip_pairs:
        log.warning("skeleton %s names no pairs of left and right joints: training images are not mirrored. Name joints "
                    "left_… and right_…, or state the pairs with the dataset", skeleton.name)  # fmt: skip


def _share_statistics(module: nn.Module, machine: DeviceContext) -> None:
    """Every process saw other rows: without this their batch-norm statistics, and so their models, would differ."""
    if machine.world > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, 0)


def _average(values: Mapping[str, float], machine: DeviceContext) -> dict[str, float]:
    """The mean over processes, so that all of them choose the same epoch and rate."""
    if machine.world == 1:
        return dict(values)
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=machine.device)
    torch.distributed.all_reduce(total)
    return dict(zip(values, (total / machine.world).tolist(), strict=True))


def _batch_of(wanted: int, people: int, machine: DeviceContext) -> int:
    if not people:
        raise ConfigError("cannot train on 1 labelled person: label at least 2, one of them validates")
    batch = min(wanted, people)
    if batch < machine.world:
        raise ConfigError(f"a batch of {batch} cannot be shared by {machine.world} processes")
    return batch


def _views(
    model: PoseModel, feed: Feed, batch: int, config: AugmentConfig, machine: DeviceContext, seed: int, epoch: int,
    purpose: str, damaged: bool = False,
) -> Iterator[Views]:  # fmt: skip
    """All batches of an epoch as augmented images with their targets.

    Every process draws the random numbers of the whole batch and keeps its own rows, so that a job of many
    processes sees the images of one.
    """
    generator = torch.Generator().manual_seed(_hash(seed, purpose, epoch))
    mine = slice(machine.rank, None, machine.world)
    rows = list(batches_of(len(feed), batch, seed, epoch))
    for index_B, whole in zip(rows, feed.stream(rows), strict=True):
        strength = float(torch.rand((), generator=generator)) if damaged else None
        images, joints_BJ2, counts_BJ = augment(
            whole.pixels_BTT3, whole.joints_BJ2, whole.labelled_BJ, shape_px=model.crop.shape_px,
            flip_order=model.skeleton.flip_order(), config=config if strength is None else views_of(strength),
            generator=generator,
        )  # fmt: skip
        if strength is not None:
            images = degrade(images, torch.full((len(images),), strength), generator)
        images = images[mine].contiguous(memory_format=MEMORY_FORMAT)
        share = len(images) * machine.world / len(index_B)
        ids = tuple(feed.crops.data.ids[row] for row in index_B[mine])
        yield Views(images, _target(model, joints_BJ2[mine]), counts_BJ[mine], share, ids)


def batches_of(count: int, batch: int, seed: int, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of each full batch, in a new order every epoch; the rest of an epoch waits for the next."""
    order_N = np.random.default_rng(_hash(seed, "order", epoch)).permutation(count)
    for start in range(0, count - batch + 1, batch):
        yield order_N[start : start + batch]


def validation_loss(model: PoseModel, feed: Feed, machine: DeviceContext) -> float:
    """Mean loss over everybody, without augmentation and in eval mode."""
    total = 0.0
    with evaluating(model.pose):
        for index_B in np.array_split(np.arange(len(feed)), max(1, math.ceil(len(feed) / 32))):
            batch = feed.batch(index_B)
            with machine.autocast():
                output = model.pose(to_input(feed.bare(batch.pixels_BTT3)))
            total += float(true_loss(output.heatmaps_BSJHW, _target(model, batch.joints_BJ2), batch.labelled_BJ).sum())
    return total / len(feed)


def _target(model: PoseModel, joints_BJ2: Tensor) -> Tensor:
    return draw(to_cells(joints_BJ2, STRIDE), model.size, sigma=model.target.sigma, peak=model.target.peak)


def _hash(seed: int, purpose: str, value: object) -> int:
    """A 63-bit number from all three, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{value}".encode()).digest()[:8], "little") >> 1


def _check_positive(what: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{what}: {name} must be positive, got {value}")
