"""The one list of strategies: ways to choose a batch of frames to label out of those that a model has scored.

``alpose-harvest select``, ``alpose-train select`` and the experiment ``alpose-train harvest-gain`` read it. A strategy is a
pure function of arrays and a random generator. It imports numpy alone: what chooses a batch needs no torch.

Shapes: N frames, D embedding, K clusters, V devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError

from .clustering import clusters_of
from .diversity import FARTHEST, Floats, Ints, Nearest, Pick, greedy

DEFAULT, RANDOM = "value", "random"

LEAST_HARDNESS = 1e-3
"""So that frames which the model is sure of can still be chosen for being new."""


@dataclass(frozen=True, slots=True)
class Frames:
    """What there is to choose from, once: ``near`` remembers what was chosen."""

    failure_N: Floats
    """Probability that the model is wrong."""
    embedding_ND: npt.NDArray[np.floating]
    """Rows of unit length; float16 is read in chunks."""
    space_N: Ints
    """The bundle of each frame: embeddings of different bundles cannot be compared."""
    device_N: Ints
    """0 to V - 1."""
    near: Nearest
    """Distance of each frame to what was chosen before."""

    @classmethod
    def of_one(cls, failure_N: Floats, embedding_ND: npt.NDArray[np.floating]) -> Frames:
        """Frames of one bundle and one device, none of which was chosen; embeddings of any length."""
        length_N1 = np.linalg.norm(embedding_ND, axis=1, keepdims=True)
        unit_ND = (embedding_ND / np.maximum(length_N1, 1e-12)).astype(np.float32)
        zero_N = np.zeros(len(failure_N), dtype=np.int64)
        return cls(failure_N, unit_ND, zero_N, zero_N, Nearest(unit_ND, zero_N))

    def __len__(self) -> int:
        return len(self.failure_N)


Choose = Callable[[Frames, int, np.random.Generator, float], Iterator[Pick]]
"""From frames, how many of them, random numbers and the distance of near-duplicates to picks, most wanted first."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to choose a batch."""

    name: str
    what: str
    """In a few words, for ``--help`` and for pages."""
    choose: Choose
    says: tuple[Literal["failure", "distance"], ...] = ()
    """What the reason of a choice names."""
    fair: bool = False
    """Whether a device is worth less with every frame that it has been given."""

    def why(self, pick: Pick, failure: float, *, first: bool) -> str:
        """Why a frame was chosen, for people; ``first``: nothing was chosen before it."""
        words = {"failure": f"{likely(failure)} ({failure:.2f})",
                 "distance": "the first" if first else f"{pick.distance:.2f} away from all chosen before"}  # fmt: skip
        return ", ".join(words[part] for part in self.says) or "by chance"


def likely(failure: float) -> str:
    """A probability that a pose is wrong, in words."""
    words = (
        (0.9, "almost surely wrong"),
        (0.6, "probably wrong"),
        (0.4, "as likely wrong as right"),
        (0.1, "probably right"),
    )
    return next((word for least, word in words if failure >= least), "almost surely right")


STRATEGIES: dict[str, Strategy] = {}


def register(strategy: Strategy) -> Strategy:
    """Add a strategy; its name must be new."""
    if strategy.name in STRATEGIES:
        raise ConfigError(f"a strategy named {strategy.name!r} is registered already")
    STRATEGIES[strategy.name] = strategy
    return strategy


def value(frames: Frames, k: int, _rng: np.random.Generator, min_distance: float) -> Iterator[Pick]:
    """Failure probability times distance to all that is chosen, times what the device is due."""
    weight_N = np.maximum(frames.failure_N, LEAST_HARDNESS).astype(np.float32)
    yield from _greedy(frames, weight_N, k, min_distance, fair=True)


def coreset(frames: Frames, k: int, _rng: np.random.Generator, min_distance: float) -> Iterator[Pick]:
    """Distance alone: greedy k-centre (Sener and Savarese, ICLR 2018)."""
    yield from _greedy(frames, np.ones(len(frames), dtype=np.float32), k, min_distance, fair=False)


def _greedy(
    frames: Frames, weight_N: Floats, k: int, min_distance: float, *, fair: bool, spread: float = 1.0
) -> Iterator[Pick]:
    return greedy(weight_N, frames.near, frames.embedding_ND, frames.space_N, frames.device_N, k,
                  min_distance=min_distance, fair=fair, spread=spread)  # fmt: skip


def top(frames: Frames, k: int, _rng: np.random.Generator, _min_distance: float) -> Iterator[Pick]:
    """Failure probability alone."""
    for row in np.argsort(-frames.failure_N, kind="stable")[:k].tolist():
        yield Pick(row, FARTHEST)


def by_chance(frames: Frames, k: int, rng: np.random.Generator, _min_distance: float) -> Iterator[Pick]:
    """Every frame with the same probability."""
    for row in rng.permutation(len(frames))[:k].tolist():
        yield Pick(row, FARTHEST)


def odds(frames: Frames, k: int, rng: np.random.Generator, min_distance: float) -> Iterator[Pick]:
    """By chance, in proportion to the odds of a failure times what the device is due, without near-duplicates.

    The odds p / (1 - p) set apart those that surely fail from the many that may fail, and chance keeps the batch as broad as what fails.
    The largest of the odds times exp(Gumbel noise) are a draw in proportion to the odds without replacement (Yellott, 1977).
    """
    p_N = np.clip(frames.failure_N.astype(np.float64), LEAST_HARDNESS, 1 - LEAST_HARDNESS)
    logit_N = np.log(p_N / (1 - p_N)) + rng.gumbel(size=len(frames))
    # Scaled, so that the largest is 1; what is left of the others keeps its order.
    weight_N = np.exp(np.maximum(logit_N - logit_N.max(), -60.0)).astype(np.float32)
    yield from _greedy(frames, weight_N, k, min_distance, fair=True, spread=0.0)


def clusters(frames: Frames, k: int, rng: np.random.Generator, min_distance: float) -> Iterator[Pick]:
    """Of k clusters, drawn where failures are, the likeliest to fail; the second of a cluster counts half, the third a third.

    Weighted k-means with as many clusters as frames are wanted is Zhdanov's batch (Diverse mini-batch active learning, 2019),
    who takes what is nearest to each centre.
    """
    p_N = np.maximum(frames.failure_N, LEAST_HARDNESS).astype(np.float32)
    cluster_N = clusters_of(frames.embedding_ND, p_N, frames.space_N, k, rng)
    order_N = np.lexsort((-p_N, cluster_N))
    sorted_N = cluster_N[order_N]
    place_N = np.empty(len(frames), dtype=np.float32)
    place_N[order_N] = np.arange(len(frames)) - np.searchsorted(sorted_N, sorted_N)
    yield from _greedy(frames, p_N / (1 + place_N), k, min_distance, fair=True, spread=0.0)


for _strategy in (
    Strategy("value", "hard, unlike each other, fair to the devices", value, ("failure", "distance"), fair=True),
    Strategy("top", "hardest", top, ("failure",)),
    Strategy("coreset", "most unlike", coreset, ("distance",)),
    Strategy(RANDOM, "by chance", by_chance),
    Strategy("odds", "by chance, in proportion to the odds of a failure", odds, ("failure",), fair=True),
    Strategy("clusters", "hardest of each cluster of what fails", clusters, ("failure",), fair=True),
):
    register(_strategy)

BY_FAILURE = tuple(name for name, strategy in STRATEGIES.items() if "failure" in strategy.says)
"""Those that look at the failure probability, which every model gives: ``alpose-train select`` has them beside the methods."""
