"""What a table of the report is made of, and what several tables share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from ..statistics import Summary, mean_sd
from . import form
from .facts import UNKNOWN, Facts
from .methods import ORACLES

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One value."""

    text: str
    small: str = ""
    """A second, smaller line."""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """One column title."""

    text: str
    small: str = ""
    hover: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table."""

    method: str | None
    """Draws the method's mark before the title."""
    title: str
    cells: tuple[Cell, ...]
    small: str = ""
    reference: bool = False
    """An oracle or a published row: set apart, never in bold."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its notes."""

    corner: str
    heads: tuple[Head, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    words: bool = False
    """Cells are words, set from the left."""


def method_lines(facts: Facts, columns: tuple[int, ...], cell: Callable[[str, int], Cell]) -> tuple[Line, ...]:
    """A line per method, oracles set apart."""
    return tuple(
        Line(method, method, tuple(cell(method, column) for column in columns), reference=method in ORACLES)
        for method in facts.methods
    )


def plain(
    facts: Facts,
    summary: Summary,
    best: bool,
    small: str = "",
    form_of: Callable[[Summary], str] = form.spread,
) -> Cell:
    """A cell of ``mean ± sd``; one that rests on fewer seeds than the run has says so."""
    few = f"{summary.count} of {form.plural(len(facts.seeds), 'seed')}"
    partial = few if 0 < summary.count < len(facts.seeds) else ""
    return Cell(form_of(summary), " · ".join(filter(None, (small, partial))), best)


def by_stage(facts: Facts, name: str) -> dict[tuple[str, int], Summary]:
    """Mean and sd over seeds by (method, stage)."""
    return {
        (method, stage): mean_sd(facts.over_seeds(method, stage, name))
        for method in facts.methods
        for stage in facts.stages
    }


def best_of(
    facts: Facts,
    summaries: dict[tuple[str, int], Summary],
    column: int,
    better: Better,
    form_of: Callable[[Summary], str] = form.spread,
) -> set[str]:
    """The methods whose mean is best as printed; none where all are equal or one is alone.

    Oracles do not compete, nor do means over fewer seeds than others of the column have.
    """
    rivals = {method: summaries[method, column] for method in facts.methods if method not in ORACLES}
    full = max((summary.count for summary in rivals.values()), default=0)
    known = {m: s.mean for m, s in rivals.items() if s.mean is not None and s.count == full}
    if len(known) < 2:
        return set()
    top = (min if better == "lower" else max)(known.values())

    def printed(mean: float) -> str:
        return form_of(Summary(mean, None, 1, None))

    best = {method for method, mean in known.items() if printed(mean) == printed(top)}
    return best if len(best) < len(known) else set()


def labelled_before(facts: Facts, stage: int) -> str:
    """How many people are labelled when the stage selects."""
    labelled = sorted({row.labelled for row in facts.at_stage(stage)})
    return f"{joined(labelled)} labelled" if labelled else ""


def labelled_after(facts: Facts, stage: int) -> str:
    """How many people are labelled when the stage has retrained."""
    labelled = sorted({row.labelled + row.selected for row in facts.at_stage(stage)})
    return f"{joined(labelled)} labelled" if labelled else ""


def seed_note(facts: Facts) -> tuple[str, ...]:
    """What the ± is."""
    if len(facts.seeds) == 1:
        return ("One seed: there is no standard deviation, and no order of methods can be told from chance.",)
    return (f"Mean ± sample standard deviation over {form.plural(len(facts.seeds), 'seed')}.",)


def oracle_note(facts: Facts) -> tuple[str, ...]:
    """What the oracles are."""
    oracles = " and ".join(method for method in facts.methods if method in ORACLES)
    return (f"{oracles}: select with the true labels, a ceiling and no competitor.",) if oracles else ()


def best_note(facts: Facts) -> tuple[str, ...]:
    """What bold is."""
    return (
        ("Bold: the best mean of the column as printed, oracles and methods with fewer seeds aside.",)
        if len(facts.methods) > 1
        else ()
    )


def joined(numbers: Iterable[int]) -> str:
    """Numbers with commas; not recorded where there are none."""
    return ", ".join(map(form.count, numbers)) or UNKNOWN
