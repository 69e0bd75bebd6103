"""What a work of the bench of the methods is: sizes, contestants, and the check that they come to the same.

Shapes: N people, L labelled, D embedding, J joints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from alpose.trainer.heatmaps import draw

from .measure import Task

Floats = npt.NDArray[np.float32]

OURS, REFERENCE = "ours", "reference"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much of everything."""

    coreset: int = 11_000
    """Embeddings, the labelled ones among them."""
    large: tuple[int, ...] = (100_000, 1_000_000)
    labelled: int = 1000
    picks: int = 1000
    width: int = 256
    images: int = 64
    """Of the multi-peak entropy and the heatmaps."""
    joints: int = 16
    cells: int = 64
    judged: int = 1000
    pool: int = 9000
    """Of the affinities, to ``labelled`` others."""
    neighbours: int = 30
    perplexity: float = 20.0
    """As the official code is asked for; what it computes is another."""
    channels: int = 256
    """Of the hourglass; the official one takes no other number, and no other side than 256."""
    side: int = 256
    compared: int = 4
    """Images whose exact gradients are set beside those of lower rank."""
    skeletons: int = 16
    """Images of VL4Pose with several peaks per joint; those with one are ``images``."""
    loaded: int = 128
    """People of the data pipeline."""
    data_root: Path | None = None


TINY = Sizes(
    coreset=120, large=(300,), labelled=20, picks=12, width=8, images=2, joints=3, judged=12, pool=30, neighbours=4,
    perplexity=4.0, channels=8, side=64, compared=2, skeletons=2, loaded=3,
)  # fmt: skip
"""Tries every path in seconds; its numbers mean nothing."""


@dataclass(frozen=True, slots=True)
class Check:
    """Whether two contestants came to the same."""

    of: str
    to: str
    agrees: bool
    says: str
    """How far they agree, in numbers; where they cannot, by which defect."""


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to be done, by several."""

    name: str
    says: str
    items: int
    """In one call."""
    unit: str
    tasks: dict[str, Task]
    check: Callable[[], list[Check]]
    """Outside the timing."""
    floor: tuple[str, int] | None = None
    """A contestant that is a floor for one part of the work, and how many such parts the plain way has."""
    rounds: int | None = None
    """At most; of what takes long. Such a work has its first calls behind it and needs no warming up."""
    left_out: tuple[str, ...] = ()
    """Why a contestant is not in it."""


def embeddings(count: int, width: int, seed: int = 0) -> Floats:
    """Like averaged features behind a ReLU: ten directions in them, and noise; made in blocks."""
    basis = np.random.default_rng(0).normal(size=(10, width)).astype(np.float32)
    rng = np.random.default_rng([1, seed])
    out = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, 2**15):
        block = out[start : start + 2**15]
        inner = np.tanh(rng.standard_normal((len(block), 10), dtype=np.float32)) @ basis
        np.maximum(inner, 0, out=inner)
        block[:] = inner + np.float32(0.05) * rng.standard_normal(block.shape, dtype=np.float32)
    return out


def maps_of(sizes: Sizes) -> torch.Tensor:
    """Two bells per joint over smooth noise: what a net that hesitates predicts."""
    generator = torch.Generator().manual_seed(0)
    shape = (sizes.images, sizes.joints)
    first, second = (
        draw(torch.rand(*shape, 2, generator=generator) * (sizes.cells - 1), sizes.cells, sigma=1.75, peak=peak)
        for peak in (30.0, 20.0)
    )
    noise = torch.randn(*shape, sizes.cells, sizes.cells, generator=generator)
    return torch.maximum(first, second) + functional.avg_pool2d(noise, 5, 1, 2)
