"""The tables of the report, as data: which cell says what, which is best, and the notes underneath."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from ..results import Row
from ..statistics import LEVEL, Summary, holm, is_defined, mean_sd, paired_t_test
from . import form
from .facts import UNKNOWN, Facts, lookup
from .methods import RANDOM, is_scorer
from .table import (
    Better,
    Cell,
    Head,
    Line,
    Table,
    best_note,
    best_of,
    by_stage,
    labelled_after,
    labelled_before,
    method_lines,
    oracle_note,
    plain,
    seed_note,
)

MIN_SEEDS = 3
"""Fewer pairs than this give a test no power worth printing."""

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
    form: Callable[[Summary], str]
    meaning: str


def loss_spread(summary: Summary) -> str:
    """A loss to three significant digits of its mean."""
    return form.spread(summary, form.digits_for(summary.mean))


MEASURES = (
    Measure(
        "selected_true_loss",
        "True loss",
        "higher",
        loss_spread,
        "Mean true loss (heatmap error against the labels) of what was selected, in the training loss's unit.",
    ),
    Measure(
        "auroc",
        "AUROC",
        "higher",
        form.spread,
        "Area under the ROC curve of the score against failure (image PCK below 0.5): how often a "
        "failure scores above a success. 0.5 is chance, 1 is perfect.",
    ),
    Measure(
        "aurc",
        "AURC",
        "lower",
        form.spread,
        "Area under the risk-coverage curve: the failure rate of the images that are kept, averaged "
        "over how many are kept when the highest scores are dropped first.",
    ),
    Measure(
        "spearman",
        "Spearman",
        "higher",
        form.spread,
        "Rank correlation of the score with the true loss (1 is perfect): are images in the right order?",
    ),
    Measure(
        "pearson",
        "Pearson",
        "higher",
        form.spread,
        "Linear correlation of the score with the true loss (1 is perfect); few large losses weigh heavily.",
    ),
    Measure(
        "precision_at_budget",
        "Precision",
        "higher",
        form.percent_spread,
        "Share of failures (image PCK below 0.5) among what was selected.",
    ),
    Measure(
        "gap_closed",
        "Gap closed",
        "higher",
        form.percent_spread,
        "How far the selected PCK lies on the way from the pool's mean (0 %, random selection) to "
        "that of oracle-pck (100 %). Negative is worse than random.",
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The test of one method at one stage against random selection."""

    p: float
    adjusted: float
    """By Holm, over all tests of Table A."""
    count: int


def against_random(facts: Facts) -> tuple[dict[tuple[str, int], Verdict], tuple[str, ...]]:
    """One-tailed paired t-tests, method below random, by (method, stage); and why others have no test."""
    if RANDOM not in facts.methods:
        return {}, ("No tests: random selection is not part of this run.",)
    if len(facts.seeds) < MIN_SEEDS:
        return {}, (f"No tests: {form.plural(len(facts.seeds), 'seed')}, at least {MIN_SEEDS} are needed.",)
    tests: dict[tuple[str, int], tuple[float, int]] = {}
    silent: dict[tuple[int, str], list[str]] = {}
    for method, stage in product(filter(is_scorer, facts.methods), facts.stages):
        ours = facts.over_seeds(method, stage, "selected_pck")
        test = paired_t_test(ours, facts.over_seeds(RANDOM, stage, "selected_pck"), "less")
        if test.count < MIN_SEEDS:
            reason = f"{form.plural(test.count, 'seed')} in common with random, {MIN_SEEDS} are needed"
            silent.setdefault((stage, reason), []).append(method)
        elif test.p is None:
            silent.setdefault((stage, test.reason or ""), []).append(method)
        else:
            tests[method, stage] = (test.p, test.count)
    adjusted = holm([p for p, _ in tests.values()])
    verdicts = {key: Verdict(p, adj, n) for (key, (p, n)), adj in zip(tests.items(), adjusted, strict=True)}
    notes = (f"Stage {stage}, no test of {', '.join(who)}: {why}." for (stage, why), who in sorted(silent.items()))
    return verdicts, tuple(notes)


def selected_table(facts: Facts, level: float = LEVEL) -> Table:
    """Table A: PCK of what was selected, methods × stages (the form of the paper's Table 3a)."""
    verdicts, silent = against_random(facts)
    summaries = by_stage(facts, "selected_pck")
    best = {stage: best_of(facts, summaries, stage, "lower") for stage in facts.stages}

    def cell(method: str, stage: int) -> Cell:
        verdict = verdicts.get((method, stage))
        small = f"p {form.p_value(verdict.p)} · Holm {form.p_value(verdict.adjusted)}" if verdict else ""
        return plain(facts, summaries[method, stage], method in best[stage], small)

    heads = tuple(Head(f"Stage {stage}", labelled_before(facts, stage)) for stage in facts.stages)
    tested = (
        "p: paired one-tailed t-test over the seeds, lower than random. Holm: adjusted for all "
        f"{len(verdicts)} tests of this table; below the level of {level:g} it is more than chance would explain.",
    )
    return Table(
        "Method",
        heads,
        method_lines(facts, facts.stages, cell),
        (*seed_note(facts), *(tested if verdicts else ()), *silent, *oracle_note(facts), *best_note(facts)),
    )


def accuracy_table(facts: Facts) -> Table:
    """Table B: test PCK after retraining, methods × stages, under the base model's."""
    summaries = by_stage(facts, "test_pck")
    best = {stage: best_of(facts, summaries, stage, "higher") for stage in facts.stages}

    def cell(method: str, stage: int) -> Cell:
        return plain(facts, summaries[method, stage], method in best[stage])

    base = mean_sd([facts.base_pck.get(seed) for seed in facts.seeds])
    blank = tuple(Cell("") for _ in facts.stages[1:])
    base_cells = (Cell(form.spread(base), "before any selection"), *blank)
    base_line = Line(None, "base model", base_cells, "shared by all methods", reference=True)
    heads = tuple(Head(f"Stage {stage}", labelled_after(facts, stage)) for stage in facts.stages)
    only = ("—: this run only selected (--select-only), nothing was retrained.",) if facts.select_only else ()
    return Table(
        "Method",
        heads,
        (base_line, *method_lines(facts, facts.stages, cell)),
        (*seed_note(facts), *only, *best_note(facts)),
    )


def detection_table(facts: Facts) -> Table:
    """Table C: how well each score finds failures in the pool at the first stage."""
    stage = facts.first_stage
    summaries = {
        (method, place): mean_sd(facts.over_seeds(method, stage, measure.field))
        for method in facts.methods
        for place, measure in enumerate(MEASURES)
    }
    places = tuple(range(len(MEASURES)))
    best = {
        place: best_of(facts, summaries, place, measure.better, measure.form) for place, measure in enumerate(MEASURES)
    }

    def cell(method: str, place: int) -> Cell:
        return plain(facts, summaries[method, place], method in best[place], form_of=MEASURES[place].form)

    arrow = {"higher": "↑ higher", "lower": "↓ lower"}
    heads = tuple(Head(measure.title, arrow[measure.better], measure.meaning) for measure in MEASURES)
    lines = method_lines(facts, places, cell)
    return Table("Method", heads, lines, (*seed_note(facts), *oracle_note(facts), *best_note(facts)))


def cost_table(facts: Facts) -> Table:
    """Table D: what each selection cost and what it left out."""
    heads = (
        Head("Scoring", "per stage"),
        Head("Training", "per stage"),
        Head("Pool", "all stages, all seeds"),
        Head("Left out", "PCK undefined", LEFT_OUT),
        Head("Failures", "among the rest", "Image PCK below 0.5."),
        Head("Finished", "of the selections"),
    )
    asked = len(facts.seeds) * len(facts.stages)
    lines = tuple(
        Line(method, method, cost_cells([row for key, row in facts.rows.items() if key[0] == method], asked))
        for method in facts.methods
    )
    base = mean_sd(facts.base_seconds).mean
    unread = lookup(facts.config, "left_out")
    notes = (
        f"Wall-clock means over seeds and stages, on {machine(facts)}. At stage 1 all methods share one scoring pass.",
        *((f"Training a base model took {form.seconds(base)} on average.",) if is_defined(base) else ()),
        f"Left out: {LEFT_OUT}",
        *((f"{form.count(unread)} people were left out of the whole run: no usable picture.",) if unread else ()),
    )
    return Table("Method", heads, lines, notes)


def cost_cells(rows: list[Row], asked: int) -> tuple[Cell, ...]:
    """Sums and means over one method's rows."""
    finished = Cell(f"{len(rows)} of {asked}")
    if not rows:
        return (*(Cell(form.NONE) for _ in range(5)), finished)
    pool, unscored = sum(row.pool for row in rows), sum(row.unscored for row in rows)
    failures = sum(row.failures for row in rows)
    return (
        Cell(form.seconds(mean_sd([row.score_seconds for row in rows]).mean)),
        Cell(form.seconds(mean_sd([row.train_seconds for row in rows]).mean)),
        Cell(form.count(pool)),
        Cell(form.count(unscored), share(unscored, pool)),
        Cell(form.count(failures), share(failures, pool - unscored)),
        finished,
    )


def machine(facts: Facts) -> str:
    """What computed: the GPU, or else the processor."""
    environment = facts.environment
    return str(environment.get("gpu") or environment.get("processor") or environment.get("device") or UNKNOWN)


def share(part: int, whole: int) -> str:
    """A part in percent, one digit."""
    return f"{100 * part / whole:.1f} %" if whole else ""
