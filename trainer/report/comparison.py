"""Our numbers beside the published ones, and beside the thresholds of the published code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..statistics import Summary, mean_sd
from . import form
from .facts import UNKNOWN, Facts, lookup
from .methods import ORACLES, RANDOM
from .published import (
    BY_DATASET,
    FIGURE_5,
    FIGURE_5_CAN,
    FIGURE_5_CANNOT,
    FIGURE_5_SOURCE,
    FIGURE_5_TITLE,
    WITH_FIGURE_5,
    Published,
    Value,
)
from .table import Cell, Head, Line, Table, by_stage, joined


@dataclass(frozen=True, slots=True)
class Beside:
    """One published table with ours in it, and what that is worth."""

    name: str
    title: str
    table: Table
    can: str
    cannot: tuple[str, ...]


def published_tables(facts: Facts) -> tuple[Beside, ...]:
    """Every published table for this dataset with this run's row under each of its rows; none for other datasets."""
    tables = tuple(beside(facts, published) for published in published_for(facts))
    return (*tables, figure_5(facts)) if facts.dataset.lower() in WITH_FIGURE_5 else tables


def beside(facts: Facts, published: Published) -> Beside:
    """Two lines per method: theirs, then ours."""
    summaries = by_stage(facts, published.field)
    stages = range(1, 1 + len(published.methods[RANDOM]))
    lines = []
    for method, values in published.methods.items():
        theirs = tuple(printed(value, published.digits) for value in values)
        ours = tuple(Cell(form.spread(summaries.get((method, stage), mean_sd([])))) for stage in stages)
        lines += [Line(method, method, theirs, "published", True), Line(None, "", ours, "this run")]
    after = published.field == "test_pck"
    heads = tuple(Head(f"Stage {stage}", f"{form.count(1000 * (stage + after))} labelled") for stage in stages)
    notes = [f"Published: {published.source}; {published.metric}, mean ± sd of 5 runs. Labelled: in the paper."]
    if any(value.p is not None for values in published.methods.values() for value in values):
        notes.append(
            "p: as printed, one-tailed paired t-test against EGL++ over 5 runs, not corrected; its level is 0.1."
        )
    return Beside(
        published.name, published.title, Table("Method", heads, tuple(lines), tuple(notes)), published.can,
        published.cannot,
    )  # fmt: skip


def printed(value: Value, digits: int) -> Cell:
    """A cell as the paper has it."""
    text = form.spread(Summary(value.mean, value.sd, 5, None), digits)
    return Cell(text, f"p {value.p:.4g}" if value.p is not None else "")


def figure_5(facts: Facts) -> Beside:
    """Correlation and loss of what was selected, of the two heads that the figure shows."""
    stage, lines = 1, []
    for method, value in FIGURE_5.items():
        pearson = mean_sd(facts.over_seeds(method, stage, "pearson"))
        loss = mean_sd(facts.over_seeds(method, stage, "selected_true_loss"))
        theirs = (Cell(form.number(value.correlation, 2)),
                  Cell(form.spread(Summary(value.mean_loss, value.sd_loss, 5, None), 2)))  # fmt: skip
        ours = (Cell(form.spread(pearson, 2)), Cell(form.spread(loss, form.digits_for(loss.mean))))
        lines += [Line(method, method, theirs, "published", True), Line(None, "", ours, "this run")]
    heads = (Head("Correlation", "score and true loss"), Head("True loss", "of what was selected"))
    note = f"Published: {FIGURE_5_SOURCE}. Ours: Pearson's, at stage 1; ± over seeds."
    return Beside(
        "figure-5", FIGURE_5_TITLE, Table("Method", heads, tuple(lines), (note,)), FIGURE_5_CAN, FIGURE_5_CANNOT
    )


def conditions_table(facts: Facts) -> Table | None:
    """What the paper did and what this run did: why the two rows may not be compared digit by digit."""
    published = published_for(facts)
    if not published:
        return None
    config = facts.config
    stacks, channels = lookup(config, "stacks"), lookup(config, "channels")
    side = lookup(config, "size_px", "input_size", "resolution")
    labelled = sorted({row.labelled for row in facts.at_stage(1)})
    chosen = sorted({row.selected for row in facts.rows.values()})
    width = lookup(config, "width") if lookup(config, "modules") else None
    net = f"HRNet-W{width}" if width else f"{stacks or '?'} stacks {form.TIMES} {channels or '?'} channels"
    pairs = (
        (
            "Network",
            f"stacked hourglass, 2 stacks {form.TIMES} 256 channels",
            net if stacks or channels or width else UNKNOWN,
            (stacks, channels) == (2, 256),
        ),
        ("Input", f"256 {form.TIMES} 256 px", pixels(side), side in (256, (256, 256), [256, 256])),
        (
            "Metric",
            f"{published[0].metric}; the exact threshold of the code of 2021 is not known",
            f"profile {facts.profile}",
            facts.profile == "official-2021",
        ),
        ("Training", "80 epochs per stage (code of 2021)", *epochs(facts)),
        ("Labelled at the start", form.count(1000), joined(labelled), labelled == [1000]),
        ("Selected per stage", form.count(1000), joined(chosen), chosen == [1000]),
        ("Start of each stage", "warm (code of 2021, EGL++ paper)", facts.start, facts.start == "warm"),
        ("Runs", "5", form.plural(len(facts.seeds), "seed"), len(facts.seeds) == 5),
    )
    lines = tuple(
        Line(None, title, (Cell(theirs), Cell(ours), likeness(ours, same))) for title, theirs, ours, same in pairs
    )
    return Table("Condition", (Head("Published"), Head("This run"), Head("")), lines, words=True)


def likeness(ours: str, same: bool) -> Cell:
    """Whether a condition is the paper's; what differs is in bold."""
    if UNKNOWN in ours:
        return Cell("unknown")
    return Cell("same") if same else Cell("differs", best=True)


def neighbour_table(facts: Facts) -> Table | None:
    """Selected PCK at the thresholds that the published code evaluates; None for profiles without them."""
    thresholds = sorted({threshold for row in facts.rows.values() for threshold in row.neighbours})
    if not thresholds:
        return None
    columns = [(stage, threshold) for stage in facts.stages for threshold in thresholds]

    def cell(method: str, stage: int, threshold: str) -> Cell:
        rows = [facts.rows[key] for seed in facts.seeds if (key := (method, seed, stage)) in facts.rows]
        return Cell(form.spread(mean_sd([row.neighbours.get(threshold, {}).get("selected_pck") for row in rows])))

    heads = tuple(Head(f"Stage {stage}", f"at {threshold}") for stage, threshold in columns)
    lines = tuple(
        Line(method, method, tuple(cell(method, *column) for column in columns), reference=method in ORACLES)
        for method in facts.methods
    )
    note = (
        "PCK of what was selected. The code of 2021 evaluates thresholds in steps of 1/19, never the named one: "
        "which of the two neighbours the printed numbers used is not known."
    )
    return Table("Method", heads, lines, (note,))


def published_for(facts: Facts) -> tuple[Published, ...]:
    """The papers' tables for this dataset."""
    return BY_DATASET.get(facts.dataset.lower(), ())


def published_methods(facts: Facts) -> tuple[str, ...]:
    """The methods that the papers have numbers of."""
    return tuple(dict.fromkeys(method for published in published_for(facts) for method in published.methods))


def pixels(side: Any) -> str:
    """An input size in pixels."""
    if isinstance(side, list | tuple):
        return f" {form.TIMES} ".join(map(str, side)) + " px"
    return UNKNOWN if side is None else f"{side} {form.TIMES} {side} px"


def epochs(facts: Facts) -> tuple[str, bool]:
    """The preset with the epochs of the base model and of each stage, and whether they are the paper's."""
    base = lookup(facts.config, "epochs")
    retrain = lookup(facts.config, "retrain") if facts.start == "warm" else None
    stage = lookup(retrain, "epochs") if isinstance(retrain, dict) else base
    if base is None:
        return f"preset {facts.preset}, epochs {UNKNOWN}", False
    again = "" if facts.select_only else f", {stage} per stage"
    return f"preset {facts.preset}: {base} epochs{again}", base == 80 and (facts.select_only or stage == 80)
