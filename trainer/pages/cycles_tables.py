"""The tables of the cycles report, as data: which cell says what, which is best, and the notes underneath.

Tables A to D, and a matrix of every method against every other: difference, test, and how many seeds would settle it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import permutations, product
from typing import Literal

from ..cycles import results
from ..measures.statistics import (
    LEVEL,
    MOST_SEEDS,
    Alternative,
    Settling,
    Summary,
    holm,
    is_defined,
    mean_sd,
    paired_t_test,
    seeds_to_settle,
)
from ..methods.catalog import RANDOM, is_oracle, is_scorer
from . import formatting as fmt
from .kit import Cell, Column, Row, Table, cells
from .run_folder import UNKNOWN, RunInfo, lookup

MIN_SEEDS = 3
"""Fewer pairs than this give a test no power worth printing."""
POWER = 0.8
"""Probability that the number of seeds in a matrix finds the difference, were it the true one."""

Better = Literal["lower", "higher"]
Form = Callable[[Summary], str]
ARROWS: dict[Better, str] = {"higher": "↑ higher", "lower": "↓ lower"}

LEFT_OUT = (
    "People without the torso or head that PCK is normalised by: their PCK is undefined, so they count "
    "neither as failures nor in any mean of PCK."
)


@dataclass(frozen=True, slots=True)
class Measure:
    """A detection measure of Table C."""

    field: str
    title: str
    better: Better
    form: Form
    meaning: str
    """``{failure}`` stands for the run's definition of a failure."""

    def explained(self, info: RunInfo) -> str:
        """The meaning in this run."""
        return self.meaning.replace("{failure}", info.failure.label)


def loss_spread(summary: Summary) -> str:
    """A loss to three significant digits of its mean."""
    return fmt.spread(summary, fmt.digits_for(summary.mean))


MEASURES = (
    Measure("selected_true_loss", "True loss", "higher", loss_spread,
            "Mean true loss (heatmap error against the labels) of what was selected, in the training loss's unit."),
    Measure("auroc", "AUROC", "higher", fmt.spread,
            "Area under the ROC curve of the score against failure ({failure}): how often a failure scores "
            "above a success. 0.5 is chance, 1 is perfect."),
    Measure("aurc", "AURC", "lower", fmt.spread,
            "Area under the risk-coverage curve: the failure rate of the images that are kept, averaged over how many "
            "are kept when the highest scores are dropped first."),
    Measure("spearman", "Spearman", "higher", fmt.spread,
            "Rank correlation of the score with the true loss (1 is perfect): are images in the right order?"),
    Measure("pearson", "Pearson", "higher", fmt.spread,
            "Linear correlation of the score with the true loss (1 is perfect); few large losses weigh heavily."),
    Measure("precision_at_budget", "Precision", "higher", fmt.percent_spread,
            "Share of failures ({failure}) among what was selected."),
    Measure("gap_closed", "Gap closed", "higher", fmt.percent_spread,
            "How far the selected PCK lies on the way from the pool's mean (0 %, random selection) to that of oracle-pck "
            "(100 %). Negative is worse than random."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RandomTest:
    """The test of one method at one stage against random selection."""

    p: float
    adjusted: float
    """By Holm, over all tests of Table A."""


def best_of(means: dict[str, float | None], better: Better, show: Callable[[float], str]) -> set[str]:
    """The names whose mean is best as printed; none where all are equal or one is alone."""
    known = {name: mean for name, mean in means.items() if mean is not None}
    if len(known) < 2:
        return set()
    top = show((min if better == "lower" else max)(known.values()))
    best = {name for name, mean in known.items() if show(mean) == top}
    return best if len(best) < len(known) else set()


def shown_alone(form: Form) -> Callable[[float], str]:
    """How a column prints a mean without its spread."""
    return lambda mean: form(Summary(mean, None, 1, None))


def spread_column(
    info: RunInfo, stage: int, field: str, better: Better, form: Form = fmt.spread, small: dict[str, str] | None = None
) -> dict[str, Cell]:
    """A cell of ``mean ± sd`` for each method; one that rests on fewer seeds than the run has says so.

    The best is bold. Oracles do not compete, nor do means over fewer seeds than others of the column have.
    """
    of = {method: mean_sd(info.over_seeds(method, stage, field)) for method in info.methods}
    rivals = {method: summary for method, summary in of.items() if not is_oracle(method)}
    full = max((summary.count for summary in rivals.values()), default=0)
    best = best_of({m: s.mean for m, s in rivals.items() if s.count == full}, better, shown_alone(form))
    seeds = len(info.seeds)

    def cell(method: str, summary: Summary) -> Cell:
        partial = f"{summary.count} of {fmt.plural(seeds, 'seed')}" if 0 < summary.count < seeds else ""
        more = (small or {}).get(method, "")
        return Cell(form(summary), " · ".join(filter(None, (more, partial))), method in best)

    return {method: cell(method, summary) for method, summary in of.items()}


def method_rows(info: RunInfo, columns: Iterable[dict[str, Cell]]) -> tuple[Row, ...]:
    """A row per method, oracles set apart."""
    columns = list(columns)
    return tuple(
        Row(method, tuple(column[method] for column in columns), mark=method, reference=is_oracle(method))
        for method in info.methods
    )


def against_random(info: RunInfo) -> tuple[dict[tuple[str, int], RandomTest], tuple[str, ...]]:
    """One-tailed paired t-tests, method below random, by (method, stage); and why others have no test."""
    if RANDOM not in info.methods:
        return {}, ("No tests: random selection is not part of this run.",)
    if len(info.seeds) < MIN_SEEDS:
        return {}, (f"No tests: {fmt.plural(len(info.seeds), 'seed')}, at least {MIN_SEEDS} are needed.",)
    tests: dict[tuple[str, int], float] = {}
    silent: dict[tuple[int, str], list[str]] = {}
    for method, stage in product(filter(is_scorer, info.methods), info.stages):
        ours = info.over_seeds(method, stage, "selected_pck")
        test = paired_t_test(ours, info.over_seeds(RANDOM, stage, "selected_pck"), "less")
        if test.count < MIN_SEEDS:
            reason = f"{fmt.plural(test.count, 'seed')} in common with random, {MIN_SEEDS} are needed"
            silent.setdefault((stage, reason), []).append(method)
        elif test.p is None:
            silent.setdefault((stage, test.reason or ""), []).append(method)
        else:
            tests[method, stage] = test.p
    adjusted = holm(list(tests.values()))
    found = {key: RandomTest(p, adj) for (key, p), adj in zip(tests.items(), adjusted, strict=True)}
    notes = (f"Stage {stage}, no test of {', '.join(who)}: {why}." for (stage, why), who in sorted(silent.items()))
    return found, tuple(notes)


def selected_table(info: RunInfo, level: float = LEVEL) -> Table:
    """Table A: PCK of what was selected, methods × stages (the form of the paper's Table 3a)."""
    tests, silent = against_random(info)
    columns = []
    for stage in info.stages:
        small = {method: f"p {fmt.p_value(test.p)} · Holm {fmt.p_value(test.adjusted)}"
                 for (method, at), test in tests.items() if at == stage}  # fmt: skip
        columns.append(spread_column(info, stage, "selected_pck", "lower", small=small))
    tested = (
        "p: paired one-tailed t-test over the seeds, lower than random. Holm: adjusted for all "
        f"{len(tests)} tests of this table; below the level of {level:g} it is more than chance would explain.",
    )
    titles = tuple(Column(f"Stage {s}", labelled(row.labelled for row in info.at_stage(s))) for s in info.stages)
    notes = (*seed_note(info), *(tested if tests else ()), *silent, *oracle_note(info), *best_note(info))
    return Table("Method", titles, method_rows(info, columns), notes)


def accuracy_table(info: RunInfo) -> Table:
    """Table B: test PCK after retraining, methods × stages, under the base model's."""
    columns = [spread_column(info, stage, "test_pck", "higher") for stage in info.stages]
    base = mean_sd([info.base_pck.get(seed) for seed in info.seeds])
    base_cells = (Cell(fmt.spread(base), "before any selection"), *cells(*("" for _ in info.stages[1:])))
    base_row = Row("base model", base_cells, "shared by all methods", reference=True)
    titles = tuple(
        Column(f"Stage {s}", labelled(r.labelled + r.selected for r in info.at_stage(s))) for s in info.stages
    )
    only = ("—: this run only selected (--select-only), nothing was retrained.",) if info.select_only else ()
    notes = (*seed_note(info), *only, *best_note(info))
    return Table("Method", titles, (base_row, *method_rows(info, columns)), notes)


def detection_table(info: RunInfo) -> Table:
    """Table C: how well each score finds failures in the pool at the first stage."""
    columns = [spread_column(info, info.first_stage, m.field, m.better, m.form) for m in MEASURES]
    titles = tuple(Column(measure.title, ARROWS[measure.better], measure.explained(info)) for measure in MEASURES)
    notes = (*seed_note(info), *oracle_note(info), *best_note(info))
    return Table("Method", titles, method_rows(info, columns), notes)


def cost_table(info: RunInfo) -> Table:
    """Table D: what each selection cost and what it left out."""
    titles = (Column("Scoring", "per stage"), Column("Training", "per stage"), Column("Pool", "all stages, all seeds"),
              Column("Left out", "PCK undefined", LEFT_OUT), Column("Failures", "among the rest", f"A failure: {info.failure.label}."),
              Column("Finished", "of the selections"))  # fmt: skip
    asked = len(info.seeds) * len(info.stages)
    rows = tuple(
        Row(method, cost_cells([row for key, row in info.rows.items() if key[0] == method], asked), mark=method,
            reference=is_oracle(method))
        for method in info.methods
    )  # fmt: skip
    base = mean_sd(info.base_seconds).mean
    unread = lookup(info.config, "left_out")
    notes = (
        f"Wall-clock means over seeds and stages, on {machine(info)}. At stage 1 all methods share one scoring pass.",
        *((f"Training a base model took {fmt.seconds(base)} on average.",) if is_defined(base) else ()),
        f"Left out: {LEFT_OUT}",
        *((f"{fmt.count(unread)} people were left out of the whole run: no usable picture.",) if unread else ()),
    )
    return Table("Method", titles, rows, notes)


def cost_cells(rows: list[results.Row], asked: int) -> tuple[Cell, ...]:
    """Sums and means over one method's rows."""
    finished = Cell(f"{len(rows)} of {asked}")
    if not rows:
        return (*cells(*[fmt.NONE] * 5), finished)
    pool, unscored = sum(row.pool for row in rows), sum(row.unscored for row in rows)
    failures = sum(row.failures for row in rows)
    return (
        Cell(fmt.seconds(mean_sd([row.score_seconds for row in rows]).mean)),
        Cell(fmt.seconds(mean_sd([row.train_seconds for row in rows]).mean)),
        Cell(fmt.count(pool)),
        Cell(fmt.count(unscored), fmt.percent(unscored / pool, 1) if pool else ""),
        Cell(fmt.count(failures), fmt.percent(failures / (pool - unscored), 1) if pool > unscored else ""),
        finished,
    )


def machine(info: RunInfo) -> str:
    """What computed: the GPU, or else the processor."""
    environment = info.environment
    return str(environment.get("gpu") or environment.get("processor") or environment.get("device") or UNKNOWN)


def labelled(numbers: Iterable[int]) -> str:
    """How many people are labelled, over the seeds; nothing where no row says it."""
    distinct = sorted(set(numbers))
    return f"{joined(distinct)} labelled" if distinct else ""


def joined(numbers: Iterable[int]) -> str:
    """Numbers with commas; not recorded where there are none."""
    return ", ".join(map(fmt.count, numbers)) or UNKNOWN


def seed_note(info: RunInfo) -> tuple[str, ...]:
    """What the ± is."""
    if len(info.seeds) == 1:
        return ("One seed: there is no standard deviation, and no order of methods can be told from chance.",)
    return (f"Mean ± sample standard deviation over {fmt.plural(len(info.seeds), 'seed')}.",)


def oracle_note(info: RunInfo) -> tuple[str, ...]:
    """What the oracles are."""
    oracles = " and ".join(method for method in info.methods if is_oracle(method))
    return (f"{oracles}: select with the true labels, a ceiling and no competitor.",) if oracles else ()


def best_note(info: RunInfo) -> tuple[str, ...]:
    """What bold is."""
    words = "Bold: the best mean of the column as printed, oracles and methods with fewer seeds aside."
    return (words,) if len(info.methods) > 1 else ()


@dataclass(frozen=True, slots=True)
class Quantity:
    """What the matrices compare."""

    field: str
    title: str
    better: Alternative
    """The difference, row minus column, where the row is better."""


QUANTITIES = (
    Quantity("selected_pck", "PCK of what was selected", "less"),
    Quantity("test_pck", "Test PCK after retraining", "greater"),
)


def matrices(info: RunInfo, level: float) -> dict[str, Table]:
    """By title, a matrix for each quantity and stage that two methods have values of; none for one seed."""
    if len(info.seeds) < 2:
        return {}
    found = {
        f"{q.title}, stage {stage}": matrix(info, q, stage, level) for q, stage in product(QUANTITIES, info.stages)
    }
    return {title: table for title, table in found.items() if table}


def matrix(info: RunInfo, quantity: Quantity, stage: int, level: float) -> Table | None:
    """Methods × methods, the best first; each pair has its cell in the row of the better."""
    better = quantity.better
    values = {
        method: info.over_seeds(method, stage, quantity.field) for method in info.methods if not is_oracle(method)
    }
    means = {method: mean for method, of in values.items() if (mean := mean_sd(of).mean) is not None}
    if len(means) < 2:
        return None
    order = sorted(means, key=means.__getitem__, reverse=better == "greater")
    tests = {(a, b): paired_t_test(values[a], values[b], better) for a, b in permutations(order, 2)}
    tested = {pair: test.p for pair, test in tests.items() if test.p is not None and test.count >= MIN_SEEDS}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    cautious = level / max(1, len(tests))

    def cell(a: str, b: str) -> Cell:
        if a == b:
            return Cell("·")
        both = [x - y for x, y in zip(values[a], values[b], strict=True) if is_defined(x) and is_defined(y)]
        difference = mean_sd(both).mean
        if difference is None:
            return Cell(fmt.NONE, "no seed in common")
        if (difference > 0) != (better == "greater") and difference != 0:
            return Cell("")
        p = adjusted.get((a, b))
        says = [f"Holm {fmt.p_value(p)}"] if p is not None else []
        settled = p is not None and p < level
        if not settled:
            needed = seeds_to_settle(values[a], values[b], alternative=better, level=cautious, power=POWER)
            says.append(seeds_words(needed))
        # In a narrow column the two break into lines, and neither breaks within.
        small = " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in says)
        return Cell(fmt.signed(difference, 4), small, settled)

    rows = tuple(Row(a, tuple(cell(a, b) for b in order), mark=a) for a in order)
    return Table("Better", tuple(map(Column, order)), rows)


def seeds_words(needed: Settling) -> str:
    """How many seeds, or why that cannot be said, in the room of a cell."""
    if needed.seeds is not None:
        return fmt.plural(needed.seeds, "seed")
    if needed.count < 2:
        return f"{fmt.plural(needed.count, 'seed')} in common"
    if needed.difference == 0:
        return "no difference"
    return f"> {fmt.count(MOST_SEEDS)} seeds" if needed.sd else "does not vary"


def matrix_notes(info: RunInfo, level: float) -> tuple[str, ...]:
    """How to read the matrices, with level and tail; or why there are none."""
    seeds = len(info.seeds)
    if seeds == 1:
        return (
            "One seed: the difference between two methods has no scatter to be judged by, so there is no test, and no "
            "estimate of how many seeds would settle it. Run again with --seeds 3 or more; what is there is kept.",
        )
    tests = (
        f"Holm: p of a paired one-tailed t-test over the seeds, that the row is better than the column, adjusted by "
        f"Holm's method for both directions of all pairs of the matrix. Bold: below the level of {level:g}."
        if seeds >= MIN_SEEDS
        else f"No tests: {fmt.plural(seeds, 'seed')}, at least {MIN_SEEDS} are needed."
    )
    rough = " From two seeds that is little more than a guess." if seeds == 2 else ""
    return (
        "The difference is row minus column, a mean over the seeds that both have. Each pair stands once, in the row of "
        "the better method; the oracles, which look at the labels, are left out.",
        tests,
        f"Seeds: how many in all would settle a difference that is not settled yet, if it and its scatter stay as they "
        f"are so far: with probability {fmt.percent(POWER)}, at the level of {level:g} over the number of tests, "
        f"which is cautious. Choose a number first and test once; testing after every seed finds too much.{rough}",
    )
