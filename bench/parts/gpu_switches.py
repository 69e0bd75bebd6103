"""What each preparation for a GPU is worth: the same work with it and without, taking turns.

Shapes: B batch, H W height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from alpose.trainer.checkpoint import new_model
from alpose.trainer.data.augment import to_input
from alpose.trainer.data.degrade import degrade
from alpose.trainer.device import DeviceContext, evaluating, to_device
from alpose.trainer.feed import AHEAD, Feed
from alpose.trainer.passes import with_weights_in
from alpose.trainer.presets import Recipe
from alpose.trainer.training import compiled

from .contestants import Material, ours
from .measure import Task, interleave, paired, spread, synchroniser, table


@dataclass(frozen=True, slots=True)
class Switch:
    """One preparation."""

    name: str
    says: str
    off: Task
    on: Task


def switches(recipe: Recipe, material: Material, used: DeviceContext, compiler: str) -> Iterator[Switch]:
    """Every preparation, with its work on the images of ``material``; ``compiler`` is that of torch.compile."""

    def graphs(net: nn.Module) -> nn.Module:
        if compiler == "inductor":
            return compiled(net, "reduce-overhead")
        return torch.compile(net, backend=compiler)  # type: ignore[return-value]

    def steps(how: Any) -> Task:
        return ours("", recipe, material, used, compile_=how).tasks["training step"]

    def marked(step: Task) -> Task:
        def task() -> None:
            if used.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            step()

        return task

    yield Switch("CUDA graphs", "a training step compiled with mode=reduce-overhead, and as torch.compile does",
                 steps(lambda net: torch.compile(net, backend=compiler)), marked(steps(graphs)))  # fmt: skip

    crops = material.crops
    pose = new_model(
        recipe.net.config(len(crops.data.skeleton)), crops.data.skeleton, recipe.crop, recipe.target, 0
    ).pose
    pose.to(used.device)
    images = material.images_BSS3.permute(0, 3, 1, 2)

    def forward(net: nn.Module) -> Task:
        def task() -> None:
            with evaluating(net), used.autocast():
                net(images)

        return task

    yield Switch("weights rounded once", "forward on weights in the precision of autocast, and on float32 weights",
                 forward(pose), forward(with_weights_in(pose, used.dtype)))  # fmt: skip

    generator, strength_B = torch.Generator().manual_seed(0), torch.ones(len(images))
    yield Switch(
        "noise on the device", "damaged views with noise drawn where they are, and on the host",
        lambda: degrade(images, strength_B, generator, "host"),
        lambda: degrade(images, strength_B, generator, "device"),
    )  # fmt: skip

    feed, blocks = Feed.open(crops, used, resident=False), np.array_split(np.arange(len(crops)), 2)

    def reading(ahead: int) -> Task:
        def task() -> None:
            with evaluating(pose), used.autocast():
                for batch in feed.stream(blocks, ahead):
                    pose(to_input(feed.bare(batch.pixels_BTT3)))

        return task

    yield Switch("reading ahead", "a pass over people that are not on the device, read by a thread, and each at its turn",
                 reading(0), reading(AHEAD))  # fmt: skip

    index_B = torch.arange(len(images))

    def sending(send: Any) -> Task:
        def task() -> None:
            for _ in range(2):  # a wait shows where there is something to wait for
                forward(pose)()
                send(index_B)

        return task

    yield Switch("sending without waiting", "indices of a batch sent behind a forward pass, and waited for",
                 sending(lambda index: index.to(used.device)), sending(lambda index: to_device(index, used.device)))  # fmt: skip

    angle_B = torch.linspace(-1, 1, len(images))
    map_B22 = torch.stack([angle_B.cos(), -angle_B.sin(), angle_B.sin(), angle_B.cos()], dim=1).view(-1, 2, 2)
    yield Switch("inverse in closed form", "inverses of the maps of a batch, on the host",
                 lambda: torch.linalg.inv(map_B22).mT, lambda: map_B22 * torch.ones(len(images), 1, 1))  # fmt: skip


def measure_switches(
    recipe: Recipe, material: Material, used: DeviceContext, *, rounds: int, calls: int, compiler: str
) -> dict[str, Any]:
    """Seconds of every preparation off and on, and how much faster it is on, in each round."""
    rows, left_out = [], []
    for switch in switches(recipe, material, used, compiler):
        try:
            seconds = interleave({"off": switch.off, "on": switch.on}, rounds=rounds, calls=calls,
                                 sync=synchroniser(used.device))  # fmt: skip
        except RuntimeError as error:  # no compiler, no memory: the others still count
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            left_out.append({"switch": switch.name, "reason": reason})
            continue
        per_round = paired(seconds["off"], seconds["on"])
        rows.append({"switch": switch.name, "says": switch.says, "seconds_per_round": seconds,
                     "faster_per_round": per_round, "faster": asdict(spread(per_round))})  # fmt: skip
    return {"batch": material.batch, "precision": used.precision, "switches": rows, "left_out": left_out}


def show(result: Mapping[str, Any]) -> str:
    """The result for people."""
    rows = [
        (row["switch"], *(f"{min(row['seconds_per_round'][how]) * 1e3:.4g}" for how in ("off", "on")),
         *(f"{row['faster'][name]:.3g}" for name in ("median", "min", "max")))
        for row in result["switches"]
    ]  # fmt: skip
    return "\n".join([
        table(("preparation", "ms off", "ms on", "faster", "min", "max"), rows),
        *(f"left out: {left['switch']}: {left['reason']}" for left in result["left_out"]),
    ])  # fmt: skip
