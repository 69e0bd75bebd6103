"""Who is measured: our network in some precision, and the official one; all on the same images.

Shapes: B batch, S side of the crop, J joints, H W heatmap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from alpose.runtime.errors import ConfigError
from alpose.trainer.checkpoint import PoseModel, new_head, new_model
from alpose.trainer.cli import DEFAULT_METHODS
from alpose.trainer.data.augment import to_input
from alpose.trainer.data.crops import Crops, prepare
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.device import DeviceContext, evaluating, keep_freed_memory
from alpose.trainer.heatmaps import draw, to_cells
from alpose.trainer.methods.catalog import heads_for
from alpose.trainer.models.hourglass import STRIDE, HourglassConfig, StackedHourglass
from alpose.trainer.objectives import heatmap_mse
from alpose.trainer.presets import NetSize, Recipe, preset
from alpose.trainer.scoring import score

from .measure import Task
from .reference import Reference, redirected

KEPT_MEMORY, FREED_MEMORY = "reference, memory kept", "ours fp32, memory freed"
"""How the C library treats freed memory, where that is not as the contestant's own program has it."""

Work = Literal["training step", "forward", "pool scoring"]
WORKS: tuple[Work, ...] = get_args(Work)

WORK_SAYS: dict[Work, str] = {
    "training step": "forward in train mode, heatmap MSE, backward, optimiser step",
    "forward": "forward in eval mode without gradients, on a float batch that is there already",
    "pool scoring": "trainer.scoring.score over the pool: uint8 crops in memory to the network's input, forward, "
    "sub-pixel decoding, targets and true losses, entropy, multi-peak entropy, embedding, the heads "
    "of the default methods, distances, check for NaN",
}
NOT_TIMED = (
    "reading and cropping images, augmentation, drawing the training targets, the learning-rate schedule, logging, "
    "checkpoints"
)


def tiny_recipe() -> Recipe:
    """A toy that tries every code path in a second; its numbers mean nothing."""
    recipe = preset("smoke").recipe
    return replace(recipe, net=replace(_hourglass(recipe), depth=1))


@dataclass(frozen=True, slots=True)
class Material:
    """What every contestant is fed. The float batch is made once, outside the timing."""

    crops: Crops
    """The pool that is scored; the batch is its first B people."""
    images_BSS3: Tensor
    """In [0, 1]; our network sees the same memory as (B, 3, S, S), channels last."""
    target_BJHW: Tensor
    labelled_BJ: Tensor

    @property
    def batch(self) -> int:
        """Images in one training step or forward pass."""
        return len(self.images_BSS3)

    def items(self, work: Work) -> int:
        """Images in one call."""
        return len(self.crops) if work == "pool scoring" else self.batch


@dataclass(frozen=True, kw_only=True, slots=True)
class NetFacts:
    """What can be said of a network without running it."""

    parameters: int
    dead: int
    """Parameters that no gradient ever reaches: they are stored, and have no effect."""
    heatmaps: tuple[int, ...]
    """Shape of the output for one batch."""
    gflop_forward: float
    """Per image: convolutions and matrix products, a multiply-add as two."""
    gflop_training: float
    """Forward and backward, counted the same way."""

    def same_network(self, other: NetFacts) -> bool:
        """Whether both do the same arithmetic, dead parameters aside."""
        mine, theirs = replace(self, parameters=0, dead=0), replace(other, parameters=0, dead=0)
        return mine == theirs and self.parameters - self.dead == other.parameters - other.dead


@dataclass(frozen=True, slots=True)
class Contestant:
    """Tasks to be timed, and what is special about them."""

    name: str
    tasks: dict[Work, Task]
    says: str
    facts: NetFacts


def make_material(recipe: Recipe, batch: int, device: torch.device, cache: Path, pool_batches: int = 1) -> Material:
    """Synthetic people as a batch on the device, and as a pool in memory."""
    if batch < 2:
        raise ConfigError(f"--batch must be at least 2 (batch norm has nothing to average in one), got {batch}")
    crops = prepare(read_people(count=batch * pool_batches, domain="hard"), recipe.crop, cache)
    # The pool in memory: no disk takes part in what is timed.
    crops = replace(crops, pixels_NTS3=crops.pixels_NTS3[:].copy())
    rows_B = crops.row_N[:batch]
    pixels_BSS3 = torch.from_numpy(crops.read_bare(rows_B)).to(device)
    cells_BJ2 = to_cells(torch.from_numpy(crops.joints_NJ2[:batch]).to(device), STRIDE)
    target_BJHW = draw(cells_BJ2, recipe.crop.size_px // STRIDE, sigma=recipe.target.sigma, peak=recipe.target.peak)
    images_BSS3 = to_input(pixels_BSS3).permute(0, 2, 3, 1).contiguous()
    return Material(crops, images_BSS3, target_BJHW, torch.from_numpy(crops.labelled_NJ[:batch]).to(device))


Around = Callable[[], AbstractContextManager[Any]]
"""Settings that hold during each call of a task."""


def ours(
    name: str,
    recipe: Recipe,
    material: Material,
    machine: DeviceContext,
    *,
    compile_: Callable[[nn.Module], Any] | None = None,
    around: Around = nullcontext,
) -> Contestant:
    """Our network, trained and scored as the trainer does it."""
    trained, scored = _model(recipe, material, machine), _scoring_model(recipe, material, machine)
    optimiser = torch.optim.AdamW(trained.pose.parameters(), recipe.pose.lr, fused=True)
    net: nn.Module = trained.pose
    if compile_:
        net, scored = compile_(trained.pose), replace(scored, pose=compile_(scored.pose))
    images = material.images_BSS3.permute(0, 3, 1, 2)

    def step() -> None:
        with around():
            with machine.autocast():
                output = net(images)
            loss = heatmap_mse(output.heatmaps_BSJHW, material.target_BJHW, material.labelled_BJ).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

    def forward() -> None:
        with around(), evaluating(scored.pose), machine.autocast():
            scored.pose(images)

    def pool() -> None:
        with around():
            score(scored, material.crops, machine, batch=material.batch)

    trained.pose.train()
    tasks: dict[Work, Task] = {"training step": step, "forward": forward, "pool scoring": pool}
    precision = "float32" if machine.dtype == torch.float32 else f"autocast to {str(machine.dtype)[6:]}"
    says = f"{precision}; loss over labelled joints alone; torch.optim.AdamW(fused=True); channels-last weights"
    return Contestant(name, tasks, says, our_facts(recipe, material))


def official(
    reference: Reference, recipe: Recipe, material: Material, *, keeps_memory: bool = False
) -> Contestant:  # fmt: skip
    """The official network in the same size; raises :class:`ConfigError` where there is none.

    Its own code leaves memory to the C library, as here unless it ``keeps_memory`` as ours does.
    """
    device = material.images_BSS3.device
    facts = _official_facts(reference, recipe, material)
    if not facts.same_network(our_facts(recipe, material)):
        raise ConfigError(
            f"its network is another one at this size: {facts}, ours {our_facts(recipe, material)}; its stem has 64 "
            "and 128 channels and its hourglass four levels, whatever the size"
        )
    trained, scored = (_official_net(reference, recipe, material, device) for _ in range(2))
    scored.eval()
    optimiser = torch.optim.Adam(trained.parameters(), recipe.pose.lr)

    def step() -> None:
        with redirected(device), memory(keeps_memory):
            optimiser.zero_grad()
            heatmaps_BSJHW, _ = trained(material.images_BSS3)
            reference.heatmap_loss(heatmaps_BSJHW, material.target_BJHW).mean().backward()
            optimiser.step()

    def forward() -> None:
        with redirected(device), torch.no_grad(), memory(keeps_memory):
            scored(material.images_BSS3)

    says = (
        "float32; its PoseNet without the features for loss heads (cheapest way to build it); its heatmap_loss over "
        "all joints; torch.optim.Adam, as it does; forward under torch.no_grad; nothing behind the forward pass is "
        "timed, so it takes no part in pool scoring. GPU calls answered by bench/parts/reference.py, microseconds per call"
    ) + ("; freed memory stays with the process, as with ours" if keeps_memory else "")
    return Contestant(
        KEPT_MEMORY if keeps_memory else "reference", {"training step": step, "forward": forward}, says, facts
    )


@contextmanager
def memory(kept: bool) -> Iterator[None]:
    """What the C library does with freed memory meanwhile."""
    settled = keep_freed_memory(kept)
    try:
        yield
    finally:
        if settled:
            keep_freed_memory()


# --- Networks


def _model(recipe: Recipe, material: Material, machine: DeviceContext) -> PoseModel:
    skeleton = material.crops.data.skeleton
    return new_model(_size(recipe, material), skeleton, recipe.crop, recipe.target, seed=0).to(machine.device)


def _scoring_model(recipe: Recipe, material: Material, machine: DeviceContext) -> PoseModel:
    """With the heads that the default methods of ``alpose-train cycles`` want."""
    model = _model(recipe, material, machine)
    names = heads_for(DEFAULT_METHODS.split(","))
    return model.with_heads({name: new_head(model, name, seed=0) for name in names}).to(machine.device)


def _size(recipe: Recipe, material: Material) -> HourglassConfig:
    return _hourglass(recipe).config(len(material.crops.data.skeleton))


def _hourglass(recipe: Recipe) -> NetSize:
    if not isinstance(recipe.net, NetSize):
        raise ConfigError(f"the official code is compared with the hourglass, not with {recipe.net}")
    return recipe.net


def _official_net(reference: Reference, recipe: Recipe, material: Material, device: torch.device) -> nn.Module:
    size = _hourglass(recipe)
    arch = {"nstack": size.stacks, "channels": size.channels, "num_hm": len(material.crops.data.skeleton)}
    with torch.random.fork_rng(devices=[]), redirected(device):
        torch.manual_seed(0)
        return reference.pose_net(arch, False, "conv").to(device)


# --- Facts: a pass over shapes alone (PyTorch's meta device), which costs no arithmetic

_META = torch.device("meta")


def our_facts(recipe: Recipe, material: Material) -> NetFacts:
    """Facts of our network."""
    with _META:
        net = StackedHourglass(_size(recipe, material))
    shape = material.images_BSS3.shape
    images = torch.empty(shape[0], 3, *shape[1:3], device=_META)
    return _facts(net, lambda: net(images).heatmaps_BSJHW, len(images))


def _official_facts(reference: Reference, recipe: Recipe, material: Material) -> NetFacts:
    net = _official_net(reference, recipe, material, _META)
    images = torch.empty(material.images_BSS3.shape, device=_META)
    with redirected(_META):
        try:
            return _facts(net, lambda: net(images)[0], len(images))
        except RuntimeError as error:
            raise ConfigError(
                f"its network does not take images of {images.shape[1]} px ({str(error).splitlines()[0]}): it pools "
                "over 64x64 cells, whatever the size, so that only --preset paper (256 px) compares"
            ) from error


def _facts(net: nn.Module, run: Callable[[], Tensor], batch: int) -> NetFacts:
    with FlopCounterMode(display=False) as forward:
        heatmaps = run()
    with FlopCounterMode(display=False) as training:
        run().mean().backward()
    return NetFacts(
        parameters=sum(p.numel() for p in net.parameters()),
        dead=sum(p.numel() for p in net.parameters() if p.grad is None),
        heatmaps=tuple(heatmaps.shape),
        gflop_forward=forward.get_total_flops() / batch / 1e9,
        gflop_training=training.get_total_flops() / batch / 1e9,
    )
