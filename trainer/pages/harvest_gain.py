"""``RUN/harvest-gain.html``: what a batch of labels is worth, by the strategy that chose it.

The words come from the numbers alone. A strategy is *better* than chance where the interval over people and seeds lies above zero,
*worse* where it lies below, and otherwise the two cannot be told apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from markupsafe import Markup

from alpose.runtime.io import write_atomically

from ..gain.results import BASE, NONE, RANDOM, Comparison, Difference, GainResults
from ..methods.catalog import Look
from ..methods.strategies import STRATEGIES
from . import formatting as fmt
from .figures import Curve, lines
from .kit import Cell, Column, Page, Palette, Row, Table, pretty

PAGE = "harvest-gain.html"

LOOKS = (
    Look("#b3261e", "#ff7b72", (), "o"),
    Look("#c44a00", "#ff8a4a", (), "h"),
    Look("#b97a00", "#f0b23c", (), "s"),
    Look("#00569c", "#5aa4f5", (), "D"),
    Look("#00835f", "#2cc699", (), "^"),
    Look("#6a45a8", "#b49cf0", (), "P"),
)
"""Of strategies in their order, in turn; chance has its own."""
REFERENCES = {BASE: "before", NONE: "trained on, no new labels"}
"""Rows that no strategy has chosen for."""
CHANCE = Look("#737b86", "#98a3b3", (4, 2), "x")


def write_page(results: GainResults, folder: Path) -> Path:
    """Write the page: one file that needs no network."""
    return write_atomically(folder / PAGE, render(results).encode())


def render(results: GainResults) -> str:
    """The page as HTML. The same results give the same bytes."""
    others = [name for name in results.strategies if name != RANDOM]
    palette = Palette({RANDOM: CHANCE} | {name: LOOKS[place % len(LOOKS)] for place, name in enumerate(others)})
    config = results.config
    page = Page(
        title=f"alpose: what labels are worth, {config.get('dataset', '')}",
        kicker="what labels are worth, by the strategy that chose them",
        heading=str(config.get("dataset", "")),
        subheading=f"{config.get('preset', '')} preset" + (", for choices" if config.get("development") else ""),
        findings=findings(results),
        facts=(
            ("seeds", fmt.listed([str(seed) for seed in results.seeds])),
            ("frames of the field", fmt.count(results.frames)),
            ("after the change", fmt.percent(results.changed)),
            ("people of the base models", fmt.count(results.labelled)),
            ("epochs of training on", str(config.get("epochs", fmt.NONE))),
        ),
        palette=palette,
    )
    return page.render(
        "alpose.trainer.pages:harvest_gain.html.j2",
        names=[RANDOM, *others],
        figures=[(f"PCK, {what}", _figure(results, palette, key, what)) for key, what in
                 (("field_pck", "the field"), ("old_pck", "the old domain"))],
        parts=[(budget, _table(results, budget)) for budget in results.budgets],
        chosen=_chosen(results),
        strategies=[(name, STRATEGIES[name].what if name in STRATEGIES else "") for name in results.strategies],
        sets=_sets(results),
        config=pretty(config),
        environment=pretty(results.environment),
    )  # fmt: skip


def findings(results: GainResults) -> tuple[str, ...]:
    """The result in sentences, from the numbers alone."""
    before, none = (results.mean(name, 0, "field_pck") for name in (BASE, NONE))
    most = results.of_chance[-1]
    said = [
        f"PCK in the field is {fmt.number(before)} before, {fmt.number(none)} after training on without new labels, and "
        f"{fmt.number(results.mean(RANDOM, most, 'field_pck'))} with {fmt.plural(most, 'label')} that chance chose."
    ]
    said += [f"{name}: {_in_words([one for one in results.comparisons if one.strategy == name], most)}."
             for name in results.strategies if name != RANDOM]  # fmt: skip
    if results.strategies != (RANDOM,):
        won = results.won()
        said.append(
            f"Better than chance with every budget, and not worse in the old domain: {fmt.listed(won) if won else 'no strategy'}."
        )
    return tuple(said)


def _in_words(compared: list[Comparison], most: int) -> str:
    parts = []
    for one in compared:
        needs = f"more than {most}" if one.random_needs is None else fmt.number(one.random_needs, 0)
        parts.append(f"{fmt.signed(one.field.mean)} with {one.budget} ({_outcome(one.field)}; chance needs {needs})")
    worse = [str(one.budget) for one in compared if _outcome(one.old) == "worse"]
    return ", ".join(parts) + (f"; worse in the old domain with {fmt.listed(worse)}" if worse else "")


def _outcome(difference: Difference) -> str:
    if difference.seeds_low > 0:
        return "better"
    return "worse" if difference.seeds_high < 0 else "not told apart"


def _figure(results: GainResults, palette: Palette, key: str, what: str) -> Markup:
    curves = []
    for name in palette.looks:
        asked = results.of_chance if name == RANDOM else results.budgets
        means = [results.mean(NONE, 0, key), *(results.mean(name, budget, key) for budget in asked)]
        known = [np.nan if mean is None else mean for mean in means]
        curves.append(Curve(name, np.array([0, *asked], dtype=np.float64), np.array(known)))
    return lines(f"gain-{key}", curves, palette, "labels", f"PCK, {what}", whole_x=True)


def _table(results: GainResults, budget: int) -> Table:
    def row(name: str, asked: int, one: Comparison | None, mark: bool = True) -> Row:
        values = [fmt.number(results.mean(name, asked, key)) for key in ("field_pck", "old_pck")]
        rate = fmt.percent(results.mean(name, asked, "field_failures"), 1)
        if one is None:
            return Row(REFERENCES.get(name, name), (Cell(values[0]), Cell(fmt.NONE), Cell(fmt.NONE), Cell(values[1]), Cell(fmt.NONE), Cell(rate), Cell(fmt.NONE)),
                       mark=name if mark else None, reference=not mark)  # fmt: skip
        needs = f"> {results.of_chance[-1]}" if one.random_needs is None else fmt.number(one.random_needs, 0)
        share = "" if one.random_needs is None else f"{fmt.TIMES} {fmt.number(one.random_needs / budget, 2)}"
        return Row(name, (
            Cell(values[0]),
            Cell(fmt.signed(one.field.mean), small=_ends(one.field), best=_outcome(one.field) == "better"),
            Cell(_p(one.field)),
            Cell(values[1]),
            Cell(fmt.signed(one.old.mean), small=_ends(one.old), best=_outcome(one.old) == "better"),
            Cell(rate),
            Cell(needs, small=share),
        ), mark=name)  # fmt: skip

    compared = {one.strategy: one for one in results.comparisons if one.budget == budget}
    rows = [row(BASE, 0, None, False), row(NONE, 0, None, False), row(RANDOM, budget, None)]
    rows += [row(name, budget, compared.get(name)) for name in results.strategies if name != RANDOM]
    columns = (
        Column("PCK", small="the field"),
        Column("Over chance", small="95 % over people and seeds"),
        Column("p", small="Holm", hover="paired t-test over the seeds, adjusted over strategies and budgets"),
        Column("PCK", small="the old domain"),
        Column("Over chance", small="95 % over people and seeds"),
        Column("Failures", small="the field"),
        Column("Chance needs", small="labels for the same PCK"),
    )
    return Table(f"{budget} labels", columns, tuple(rows), notes=("Bold differences: the interval lies above zero.",))


def _ends(one: Difference) -> str:
    return f"{fmt.signed(one.seeds_low)} to {fmt.signed(one.seeds_high)}"


def _p(one: Difference) -> str:
    return fmt.NONE if one.holm is None else fmt.p_value(one.holm).removeprefix("= ")


def _chosen(results: GainResults) -> Table:
    """What the strategies chose: how many failures, how much of what is new, how many labelled joints."""
    rows = tuple(
        Row(name, tuple(
            Cell(fmt.percent(results.mean(name, budget, key)))
            for budget in results.budgets for key in ("chosen_failures", "chosen_changed", "chosen_joints")
        ), mark=name)
        for name in results.strategies
    )  # fmt: skip
    columns = tuple(
        Column(text, small=f"{budget} labels")
        for budget in results.budgets
        for text in ("Failures", "After the change", "Joints labelled")
    )
    return Table("Strategy", columns, rows)


def _sets(results: GainResults) -> Table:
    rows = tuple(
        Row(one.name, (Cell(one.what), Cell(fmt.count(one.people)), Cell(fmt.count(one.labels)), Cell(fmt.count(one.removed))))
        for one in results.sets
    )  # fmt: skip
    columns = (Column("Who"), Column("People"), Column("Joints that count"), Column("Labels that cannot be right"))
    return Table("Test", columns, rows, style="words")
