"""What the papers print (``published.json``), with this run's numbers under it, and what may be compared with what.

LL++: M. Shukla, S. Ahmed, "A Mathematical Analysis of Learning Loss for Active Learning in Regression", CVPR Workshops
2021. EGL++: M. Shukla, "EGL++: Extending Expected Gradient Length to Active Learning for Human Pose Estimation", 2021.

Stages count from 1. The LSP half of LL++'s Table 3a heads its columns with the size after the stage (2000 ...), the
MPII half with the size before it (1000 ...); EGL++'s Table 1 has the size after the stage. All are stages 1 to 5.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..measures.statistics import Summary, mean_sd
from ..methods.catalog import RANDOM
from . import formatting as fmt
from .cycles_tables import joined, method_rows
from .kit import Cell, Column, Row, Table, cells, read
from .run_folder import UNKNOWN, RunInfo, lookup

DATASETS = {"lsp": "lsp", "lsp-lspet": "lsp", "mpii": "mpii"}
"""Which half of the papers' tables a dataset is compared with."""


@dataclass(frozen=True, slots=True)
class Value:
    """One printed cell."""

    mean: float
    sd: float
    p: float | None = None
    """One-tailed paired t-test against EGL++, as printed: not corrected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One printed table, as far as it is about one dataset."""

    title: str
    source: str
    metric: str
    field: str
    """Of a row of the benchmark: ``selected_pck`` or ``test_pck``."""
    digits: int
    methods: dict[str, tuple[Value, ...]]
    """By the name that the method has here, a value per stage."""
    can: str
    """What may be compared."""
    cannot: tuple[str, ...]
    """What may not, and why."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One published table with ours in it, and what may be compared."""

    title: str
    table: Table
    can: str
    cannot: tuple[str, ...]


@functools.cache
def papers() -> dict[str, Any]:
    """``published.json``: the tables by title, and the numbers on Fig. 5 of the LL++ paper (two heads on LSPET)."""
    found: dict[str, Any] = json.loads(read("published.json"))
    return found


def published_for(info: RunInfo) -> tuple[Published, ...]:
    """The papers' tables for the dataset of a run; none for other datasets."""
    name = DATASETS.get(info.dataset.lower())
    found = []
    for table in papers()["tables"] if name else ():
        shared, own = (dict(table), table["datasets"][name])
        del shared["datasets"]
        methods = {method: tuple(Value(*numbers) for numbers in rows) for method, rows in own["methods"].items()}
        cannot = (*shared["cannot"], *own["cannot"])
        found.append(Published(**shared | own | {"methods": methods, "cannot": cannot}))
    return tuple(found)


def published_methods(info: RunInfo) -> tuple[str, ...]:
    """The methods that the papers have numbers of."""
    return tuple(dict.fromkeys(method for published in published_for(info) for method in published.methods))


def published_tables(info: RunInfo) -> tuple[Comparison, ...]:
    """Every published table for this dataset with this run's row under each of its rows."""
    tables = tuple(comparison(info, published) for published in published_for(info))
    return (*tables, figure_5(info)) if DATASETS.get(info.dataset.lower()) == "lsp" else tables


def comparison(info: RunInfo, published: Published) -> Comparison:
    """A published table with ours in it."""
    stages = range(1, 1 + len(published.methods[RANDOM]))
    rows: list[Row] = []
    tested = False
    for method, printed in published.methods.items():
        theirs = [Cell(spread(value, published.digits), f"p {value.p:.4g}" if value.p is not None else "")
                  for value in printed]  # fmt: skip
        ours = [Cell(fmt.spread(mean_sd(info.over_seeds(method, stage, published.field)))) for stage in stages]
        rows += pair(method, theirs, ours)
        tested |= any(value.p is not None for value in printed)
    after = published.field == "test_pck"
    columns = tuple(Column(f"Stage {stage}", f"{fmt.count(1000 * (stage + after))} labelled") for stage in stages)
    notes = (
        f"Published: {published.source}; {published.metric}, mean ± sd of 5 runs. Labelled: in the paper.",
        *(("p: as printed, one-tailed paired t-test against EGL++ over 5 runs, not corrected; its level is 0.1.",)
          if tested else ()),
    )  # fmt: skip
    return Comparison(published.title, Table("Method", columns, tuple(rows), notes), published.can, published.cannot)


def figure_5(info: RunInfo) -> Comparison:
    """Correlation and loss of what was selected, of the two heads that the figure shows."""
    figure = papers()["figure_5"]
    rows: list[Row] = []
    for method, (correlation, *printed) in figure["heads"].items():
        pearson, loss = (mean_sd(info.over_seeds(method, 1, field)) for field in ("pearson", "selected_true_loss"))
        theirs = cells(fmt.number(correlation, 2), spread(Value(*printed), 2))
        rows += pair(method, theirs, cells(fmt.spread(pearson, 2), fmt.spread(loss, fmt.digits_for(loss.mean))))
    columns = (Column("Correlation", "score and true loss"), Column("True loss", "of what was selected"))
    note = f"Published: {figure['source']}. Ours: Pearson's, at stage 1; ± over seeds."
    table = Table("Method", columns, tuple(rows), (note,))
    return Comparison(figure["title"], table, figure["can"], tuple(figure["cannot"]))


def pair(method: str, theirs: Iterable[Cell], ours: Iterable[Cell]) -> list[Row]:
    """Two rows of one method: as printed, and as this run has it."""
    return [Row(method, tuple(theirs), "published", method, reference=True), Row("", tuple(ours), "this run")]


def spread(value: Value, digits: int) -> str:
    """A value as the paper prints it."""
    return fmt.spread(Summary(value.mean, value.sd, 5, None), digits)


def conditions_table(info: RunInfo) -> Table | None:
    """What the paper did and what this run did: why the two rows may not be compared digit by digit."""
    published = published_for(info)
    if not published:
        return None
    stacks, channels = lookup(info.config, "stacks"), lookup(info.config, "channels")
    side = lookup(info.config, "size_px", "input_size", "resolution")
    labelled = sorted({row.labelled for row in info.at_stage(1)})
    chosen = sorted({row.selected for row in info.rows.values()})
    width = lookup(info.config, "width") if lookup(info.config, "modules") else None
    net = f"HRNet-W{width}" if width else f"{stacks or '?'} stacks {fmt.TIMES} {channels or '?'} channels"
    conditions = (
        ("Network", f"stacked hourglass, 2 stacks {fmt.TIMES} 256 channels",
         net if stacks or channels or width else UNKNOWN, (stacks, channels) == (2, 256)),
        ("Input", f"256 {fmt.TIMES} 256 px", pixels(side), side in (256, (256, 256), [256, 256])),
        ("Metric", f"{published[0].metric}; the exact threshold of the code of 2021 is not known",
         f"profile {info.profile}", info.profile == "official-2021"),
        ("Training", "80 epochs per stage (code of 2021)", *epochs(info)),
        ("Labelled at the start", fmt.count(1000), joined(labelled), labelled == [1000]),
        ("Selected per stage", fmt.count(1000), joined(chosen), chosen == [1000]),
        ("Start of each stage", "warm (code of 2021, EGL++ paper)", info.start, info.start == "warm"),
        ("Runs", "5", fmt.plural(len(info.seeds), "seed"), len(info.seeds) == 5),
    )  # fmt: skip
    rows = tuple(Row(title, (*cells(theirs, ours), likeness(ours, same))) for title, theirs, ours, same in conditions)
    return Table("Condition", (Column("Published"), Column("This run"), Column("")), rows, style="words")


def likeness(ours: str, same: bool) -> Cell:
    """Whether a condition is the paper's; what differs is in bold."""
    if UNKNOWN in ours:
        return Cell("unknown")
    return Cell("same") if same else Cell("differs", best=True)


def neighbour_table(info: RunInfo) -> Table | None:
    """Selected PCK at the thresholds that the published code evaluates; None for profiles without them."""
    thresholds = sorted({threshold for row in info.rows.values() for threshold in row.neighbours})
    if not thresholds:
        return None
    at = [(stage, threshold) for stage in info.stages for threshold in thresholds]

    def cell(method: str, stage: int, threshold: str) -> Cell:
        rows = [info.rows[key] for seed in info.seeds if (key := (method, seed, stage)) in info.rows]
        return Cell(fmt.spread(mean_sd([row.neighbours.get(threshold, {}).get("selected_pck") for row in rows])))

    columns = tuple(Column(f"Stage {stage}", f"at {threshold}") for stage, threshold in at)
    note = (
        "PCK of what was selected. The code of 2021 evaluates thresholds in steps of 1/19, never the named one: "
        "which of the two neighbours the printed numbers used is not known."
    )
    rows = method_rows(info, ({method: cell(method, *one) for method in info.methods} for one in at))
    return Table("Method", columns, rows, (note,))


def pixels(side: Any) -> str:
    """An input size in pixels."""
    if isinstance(side, list | tuple):
        return f" {fmt.TIMES} ".join(map(str, side)) + " px"
    return UNKNOWN if side is None else f"{side} {fmt.TIMES} {side} px"


def epochs(info: RunInfo) -> tuple[str, bool]:
    """The preset with the epochs of the base model and of each stage, and whether they are the paper's."""
    base = lookup(info.config, "epochs")
    retrain = lookup(info.config, "retrain") if info.start == "warm" else None
    stage = lookup(retrain, "epochs") if isinstance(retrain, dict) else base
    if base is None:
        return f"preset {info.preset}, epochs {UNKNOWN}", False
    again = "" if info.select_only else f", {stage} per stage"
    return f"preset {info.preset}: {base} epochs{again}", base == 80 and (info.select_only or stage == 80)
