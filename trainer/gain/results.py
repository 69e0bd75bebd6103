"""What the experiment leaves in a run folder, and how strategies are compared with chance.

::

    RUN/
      gain.json                       how it was run
      seed-0/field.npz                what the base model says of every frame of the field
      seed-0/cells/value-500.npz      who was chosen, and the joints that the model got right after training on with them
      harvest-gain.json, .html        what was made of them

Two intervals for every difference from ``random`` with as many labels: over the people who test, and over people and seeds, which
are drawn again together; and a paired two-sided t-test over the seeds, with Holm's correction over strategies and budgets.

Shapes: S seeds, N people, R resamples, B budgets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataNotFoundError
from alpose.runtime.io import from_json, read_json, write_json

from ..cycles.results import load_npz
from ..measures.statistics import Doubles, draws, holm, mean_sd, paired_t_test, percentiles

RESULT = "harvest-gain.json"
NONE, RANDOM, BASE = "none", "random", "base"
"""Training on without new labels; chance, which all are compared with; the model that everything begins with."""
RESAMPLES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model: trained on with one batch, from the base model of one seed. Shares are in [0, 1]."""

    seed: int
    strategy: str
    budget: int
    """Labels that were asked for."""
    chosen: int
    """Labels that it trained on: a strategy may find fewer frames that differ."""
    field_pck: float
    field_failures: float
    old_pck: float
    old_failures: float
    chosen_failures: float | None
    """Share of failures of the base model among the chosen frames, of those whose PCK is defined."""
    chosen_changed: float | None
    """Share of the chosen frames that come after the change."""
    chosen_joints: float | None
    """Share of the chosen frames' joints that annotators labelled."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFacts:
    """People who test."""

    name: str
    what: str
    people: int
    labels: int
    """Joints that count."""
    removed: int
    """Joints whose label cannot be right, and does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A mean over seeds of a difference from chance."""

    mean: float
    low: float
    high: float
    """95 % over people."""
    seeds_low: float
    seeds_high: float
    """95 % over people and seeds: a warning with a handful of seeds, no coverage."""
    per_seed: tuple[float, ...]
    p: float | None
    holm: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One strategy at one budget beside chance."""

    strategy: str
    budget: int
    field: Difference
    old: Difference
    failures: float
    """Mean difference of the failure rate in the field."""
    random_needs: float | None
    """Labels with which chance reaches the same PCK in the field, between the budgets by straight lines; None: more than the largest
    budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GainResults:
    """``RUN/harvest-gain.json``."""

    seeds: tuple[int, ...]
    strategies: tuple[str, ...]
    budgets: tuple[int, ...]
    chance_budgets: tuple[int, ...]
    """Further budgets of chance alone."""
    frames: int
    """Of the field."""
    changed: float
    """Share of them that come after the change."""
    labelled: int
    """People who trained the base models."""
    sets: tuple[SetFacts, ...]
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_chance(self) -> tuple[int, ...]:
        """Every budget of chance, rising."""
        return tuple(sorted((*self.budgets, *self.chance_budgets)))

    def save(self, run: Path) -> Path:
        """Write it, complete or not at all."""
        return write_json(run / RESULT, self)

    @classmethod
    def load(cls, path: Path) -> GainResults:
        """Read a run folder or the file itself."""
        path = path / RESULT if path.is_dir() else path
        if not path.exists():
            raise DataNotFoundError(f"{path} does not exist: it is written by alpose-train harvest-gain")
        return from_json(cls, read_json(path), str(path))

    def mean(self, strategy: str, budget: int, what: str) -> float | None:
        """Mean over the seeds of one number of the cells."""
        return mean_sd(self.values(strategy, budget, what)).mean

    def values(self, strategy: str, budget: int, what: str) -> list[float | None]:
        """One number of the cells, seed by seed."""
        of_seed = {cell.seed: cell for cell in self.cells if (cell.strategy, cell.budget) == (strategy, budget)}
        return [getattr(of_seed[seed], what) if seed in of_seed else None for seed in self.seeds]

    def won(self) -> tuple[str, ...]:
        """Strategies above chance in the field at every budget by the interval over people and seeds, and not below it in the old domain."""
        return tuple(
            name for name in self.strategies if name != RANDOM
            and all(one.field.seeds_low > 0 and one.old.seeds_high >= 0 for one in self.comparisons if one.strategy == name)
        )  # fmt: skip


def needed_by_chance(pck: float, label_B: Sequence[float], pck_B: Sequence[float]) -> float | None:
    """Labels with which chance reaches a PCK, by straight lines between its budgets; None where it does not get there.

    The first crossing counts; what chance has without labels is reached with 0.

    Args:
        pck: to be reached.
        label_B: budgets of chance, rising, the first of them 0.
        pck_B: its PCK with each.
    """
    if pck <= pck_B[0]:
        return 0.0
    for place in range(1, len(label_B)):
        if pck_B[place] >= pck:
            share = (pck - pck_B[place - 1]) / (pck_B[place] - pck_B[place - 1])
            return float(label_B[place - 1] + share * (label_B[place] - label_B[place - 1]))
    return None


def summarise(
    folder: Path, *, seeds: tuple[int, ...], strategies: tuple[str, ...], budgets: tuple[int, ...],
    chance_budgets: tuple[int, ...], sets: tuple[SetFacts, ...], **facts: Any,
) -> GainResults:  # fmt: skip
    """Read every cell of a run, and compare each strategy with chance at the same budget."""

    def stored(seed: int, name: str, budget: int) -> Path:
        return folder / f"seed-{seed}" / "cells" / f"{name}-{budget}.npz"

    wanted = [
        (BASE, 0),
        (NONE, 0),
        *((name, budget) for budget in budgets for name in strategies),
        *((RANDOM, budget) for budget in chance_budgets),
    ]
    cells = [from_json(Cell, read_json(stored(seed, name, budget).with_suffix(".json")), str(stored(seed, name, budget)))
             for seed in seeds for name, budget in wanted]  # fmt: skip
    bare = GainResults(seeds=seeds, strategies=strategies, budgets=budgets, chance_budgets=chance_budgets, sets=sets, cells=tuple(cells),
                       comparisons=(), **facts)  # fmt: skip
    steps = (0, *bare.of_chance)
    chance = [bare.mean(RANDOM if budget else NONE, budget, "field_pck") or 0.0 for budget in steps]
    compared = []
    for budget in budgets:
        by_chance = [load_npz(stored(seed, RANDOM, budget)) for seed in seeds]
        for name in strategies:
            if name == RANDOM:
                continue
            chosen = [load_npz(stored(seed, name, budget)) for seed in seeds]
            reached = bare.mean(name, budget, "field_pck")
            rates = [bare.mean(each, budget, "field_failures") or 0.0 for each in (name, RANDOM)]
            compared.append((name, budget, _difference(chosen, by_chance, "field"), _difference(chosen, by_chance, "old"),
                             rates[0] - rates[1],
                             needed_by_chance(reached or 0.0, steps, chance)))  # fmt: skip
    return GainResults(seeds=seeds, strategies=strategies, budgets=budgets, chance_budgets=chance_budgets, sets=sets, cells=tuple(cells),
                       comparisons=_adjusted(compared), **facts)  # fmt: skip


def _difference(
    chosen: Sequence[Mapping[str, npt.NDArray[Any]]], by_chance: Sequence[Mapping[str, npt.NDArray[Any]]], name: str
) -> Difference:
    """PCK of the chosen less that of chance; the same people are drawn for both, and for all seeds."""
    right_SN, random_SN = (np.stack([each[f"{name}.right_NJ"].sum(axis=1) for each in cells]).astype(np.float64)
                           for cells in (chosen, by_chance))  # fmt: skip
    count_N = chosen[0][f"{name}.counts_NJ"].sum(axis=1).astype(np.float64)
    apart_SN = right_SN - random_SN
    seeds, people = apart_SN.shape
    per_S = apart_SN.sum(axis=1) / count_N.sum()
    resampled_RS = np.array([apart_SN @ times_N / max(times_N @ count_N, 1)
                             for times_N in draws(people, RESAMPLES, np.random.default_rng((0, 0)))])  # fmt: skip
    drawn_RS = np.random.default_rng((0, 1)).integers(0, seeds, (RESAMPLES, seeds))
    low, high = _ends(resampled_RS.mean(axis=1))
    seeds_low, seeds_high = _ends(np.take_along_axis(resampled_RS, drawn_RS, axis=1).mean(axis=1))
    pck_S = [cells_SN.sum(axis=1) / count_N.sum() for cells_SN in (right_SN, random_SN)]
    return Difference(mean=float(per_S.mean()), low=low, high=high, seeds_low=seeds_low, seeds_high=seeds_high,
                      per_seed=tuple(per_S.tolist()), p=paired_t_test(pck_S[0].tolist(), pck_S[1].tolist()).p, holm=None)  # fmt: skip


def _ends(value_R: Doubles) -> tuple[float, float]:
    return percentiles(value_R) or (0.0, 0.0)


def _adjusted(
    compared: Sequence[tuple[str, int, Difference, Difference, float, float | None]],
) -> tuple[Comparison, ...]:
    """With Holm's correction over all strategies and budgets, of each of both tests."""

    def corrected(of: Callable[[Any], Difference]) -> list[Difference]:
        tested = [place for place, each in enumerate(compared) if of(each).p is not None]
        adjusted = dict(zip(tested, holm([p for each in compared if (p := of(each).p) is not None]), strict=True))
        return [replace(of(each), holm=adjusted.get(place)) for place, each in enumerate(compared)]

    field_, old = corrected(lambda each: each[2]), corrected(lambda each: each[3])
    return tuple(
        Comparison(strategy=name, budget=budget, field=in_field, old=in_old, failures=failures, random_needs=needs)
        for (name, budget, _, _, failures, needs), in_field, in_old in zip(compared, field_, old, strict=True)
    )
