"""Every method against every other: difference, test, and how many seeds would settle it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

from ..statistics import (
    MOST_SEEDS,
    Alternative,
    Settling,
    holm,
    is_defined,
    mean_sd,
    paired_t_test,
    seeds_to_settle,
)
from . import form
from .facts import Facts
from .methods import ORACLES
from .table import Cell, Head, Line, Table
from .tables import MIN_SEEDS

POWER = 0.8
"""Probability that so many seeds find the difference, were it the true one."""


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared."""

    field: str
    title: str
    better: Alternative
    """The difference, row minus column, where the row is better."""


SIDES = (
    Side("selected_pck", "PCK of what was selected", "less"),
    Side("test_pck", "Test PCK after retraining", "greater"),
)


@dataclass(frozen=True, slots=True)
class Matrix:
    """All pairs at one stage."""

    title: str
    table: Table


def matrices(facts: Facts, level: float) -> tuple[Matrix, ...]:
    """A matrix for each quantity and stage that two methods have values of; none for one seed."""
    if len(facts.seeds) < 2:
        return ()
    found = ((side, stage, matrix(facts, side, stage, level)) for side in SIDES for stage in facts.stages)
    return tuple(Matrix(f"{side.title}, stage {stage}", table) for side, stage, table in found if table)


def matrix(facts: Facts, side: Side, stage: int, level: float) -> Table | None:
    """Methods × methods, the best first; each pair has its cell in the row of the better."""
    values = {method: facts.over_seeds(method, stage, side.field) for method in facts.methods if method not in ORACLES}
    means = {method: mean for method, of in values.items() if (mean := mean_sd(of).mean) is not None}
    if len(means) < 2:
        return None
    order = sorted(means, key=means.__getitem__, reverse=side.better == "greater")
    tests = {(a, b): paired_t_test(values[a], values[b], side.better) for a, b in permutations(order, 2)}
    tested = {pair: test.p for pair, test in tests.items() if test.p is not None and test.count >= MIN_SEEDS}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    cautious = level / max(1, len(tests))

    def cell(a: str, b: str) -> Cell:
        if a == b:
            return Cell("·")
        both = [x - y for x, y in zip(values[a], values[b], strict=True) if is_defined(x) and is_defined(y)]
        difference = mean_sd(both).mean
        if difference is None:
            return Cell(form.NONE, "no seed in common")
        if (difference > 0) != (side.better == "greater") and difference != 0:
            return Cell("")
        p = adjusted.get((a, b))
        says = [f"Holm {form.p_value(p)}"] if p is not None else []
        settled = p is not None and p < level
        if not settled:
            needed = seeds_to_settle(values[a], values[b], alternative=side.better, level=cautious, power=POWER)
            says.append(seeds_cell(needed))
        # In a narrow column the two break into lines, and neither breaks within.
        return Cell(
            form.signed(difference, 4), " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in says), settled
        )

    heads = tuple(Head(method) for method in order)
    lines = tuple(Line(a, a, tuple(cell(a, b) for b in order)) for a in order)
    return Table("Better", heads, lines)


def seeds_cell(needed: Settling) -> str:
    """How many seeds, or why that cannot be said, in the room of a cell."""
    if needed.seeds is not None:
        return form.plural(needed.seeds, "seed")
    if needed.count < 2:
        return f"{form.plural(needed.count, 'seed')} in common"
    if needed.difference == 0:
        return "no difference"
    return f"> {form.count(MOST_SEEDS)} seeds" if needed.sd else "does not vary"


def pair_words(facts: Facts, level: float) -> tuple[str, ...]:
    """How to read the matrices, with level and tail; or why there are none."""
    seeds = len(facts.seeds)
    if seeds == 1:
        return (
            "One seed: the difference between two methods has no scatter to be judged by, so there is no test, and no "
            "estimate of how many seeds would settle it. Run again with --seeds 3 or more; what is there is kept.",
        )
    tests = (
        f"Holm: p of a paired one-tailed t-test over the seeds, that the row is better than the column, adjusted by "
        f"Holm's method for both directions of all pairs of the matrix. Bold: below the level of {level:g}."
        if seeds >= MIN_SEEDS
        else f"No tests: {form.plural(seeds, 'seed')}, at least {MIN_SEEDS} are needed."
    )
    rough = " From two seeds that is little more than a guess." if seeds == 2 else ""
    return (
        "The difference is row minus column, a mean over the seeds that both have. Each pair stands once, in the row of "
        "the better method; the oracles, which look at the labels, are left out.",
        tests,
        f"Seeds: how many in all would settle a difference that is not settled yet, were it and its scatter what they "
        f"seem so far: with probability {form.percent(POWER)}, at the level of {level:g} over the number of tests, "
        f"which is cautious. Decide on a number first and test once; a look after every seed finds too much.{rough}",
    )
