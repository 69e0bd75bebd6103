"""``RUN/report.html``: the report of a benchmark run, finished or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from markupsafe import Markup

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import write_atomically

from ..cycles.results import Results
from ..measures.statistics import LEVEL, is_defined, mean_sd
from ..methods.catalog import RANDOM, in_order, is_scorer, looks
from . import cycles_figures as figures
from . import cycles_tables as tables
from . import formatting as fmt
from .kit import Page, Palette, pretty
from .map import map_of
from .people import Neighbours, gallery, neighbours
from .published import conditions_table, neighbour_table, published_methods, published_tables
from .run_folder import (
    REPORT,
    THEORY,
    RunInfo,
    StageFiles,
    fill_gap,
    link_or_gap,
    lookup,
    missing_rows,
    run_info,
    stage_files,
)


def write_report(run: Path, *, level: float = LEVEL) -> Path:
    """Write ``RUN/report.html`` from the files of a run, finished or not: one file that needs no network.

    The t-SNE map is computed at the first call and kept in ``RUN/map.npz``.

    Args:
        run: folder of a benchmark.
        level: of the tests, after Holm's correction.
    """
    page = write_atomically(run / REPORT, render(run, Results.load(run), level).encode())
    fill_gap(run, THEORY)
    return page


def render(run: Path, results: Results, level: float = LEVEL) -> str:
    """The page. The same files give the same bytes."""
    if not 0 < level < tables.POWER:
        raise ConfigError(f"the level of the tests is between 0 and {tables.POWER:g}, got {level}")
    info = run_info(results)
    files = stage_files(run, info)
    palette = Palette(looks(in_order([*info.methods, *published_methods(info)])))
    page = Page(
        title=f"alpose benchmark: {info.dataset}, {info.preset}, {info.profile}",
        kicker="failure detection benchmark",
        heading=info.dataset,
        subheading=f"{info.preset} preset · {info.profile} profile",
        findings=(finding(info, level),),
        warnings=(*missing_rows(info), *files.problems),
        facts=headline(info),
        palette=palette,
    )
    return page.render(
        "alpose.trainer.pages:cycles.html.j2",
        info=info,
        selected=tables.selected_table(info, level),
        accuracy=tables.accuracy_table(info),
        detection=tables.detection_table(info),
        published=published_tables(info),
        thresholds=neighbour_table(info),
        conditions=conditions_table(info),
        costs=tables.cost_table(info),
        measures=[(measure.title, measure.explained(info)) for measure in tables.MEASURES],
        failure=info.failure.label,
        matrices=tables.matrices(info, level),
        matrix_notes=tables.matrix_notes(info, level),
        selected_figure=figures.selected_figure(info, files, palette),
        accuracy_figure=figures.accuracy_figure(info, palette),
        band_words=figures.band_words(info),
        scatters=list(scatters(info, files, palette)),
        risk_figure=figures.risk_figure(info, files, palette),
        risk_words=figures.risk_words(info),
        map=map_of(run, info, files),
        galleries={m: gallery(files.galleries[m]) for m in info.methods if m in files.galleries},
        neighbours=neighbours_by_method(info, files),
        theory_link=link_or_gap(run, REPORT),
        config=pretty(results.config),
        environment=pretty(results.environment),
    )


def headline(info: RunInfo) -> tuple[tuple[str, str], ...]:
    """What was run, as names and values."""
    pool = sorted({row.pool for row in info.at_stage(info.first_stage)})
    asked = len(info.methods) * len(info.seeds) * len(info.stages)
    threshold, normaliser = lookup(info.config, "threshold"), lookup(info.config, "normaliser")
    exact = f"PCK@{threshold} of {normaliser}, " if threshold and normaliser else ""
    return (
        ("Dataset", info.dataset),
        ("Preset", info.preset),
        ("Metric", f"{exact}profile {info.profile}"),
        ("Seeds", fmt.count(len(info.seeds))),
        ("Stages", fmt.count(len(info.stages))),
        ("Labelled per stage", info.budget),
        ("Pool at the start", tables.joined(pool)),
        ("Start of each stage", "selection only" if info.select_only else info.start),
        ("Computed on", tables.machine(info)),
        ("Selections finished", f"{asked - len(info.missing)} of {asked}"),
    )


def scatters(info: RunInfo, files: StageFiles, palette: Palette) -> Iterator[tuple[str, Markup, str]]:
    """Score against true loss of the first seed, for every method whose score says something."""
    for place, method in enumerate(info.methods):
        scores = files.scores.get((method, info.first_seed))
        if scores is None or not is_scorer(method):
            continue
        known_N = np.isfinite(scores.score_N) & np.isfinite(scores.true_loss_N)
        if known_N.sum() < 2 or np.ptp(scores.score_N[known_N]) == 0:
            continue
        row = info.rows[method, info.first_seed, info.first_stage]
        words = f"Spearman {fmt.number(row.spearman, 2)} · Pearson {fmt.number(row.pearson, 2)}"
        yield method, figures.scatter_figure(f"scatter{place}", method, scores, palette), words


def neighbours_by_method(info: RunInfo, files: StageFiles) -> dict[str, Neighbours]:
    """Nearest labelled neighbours by method, those of ``egl++`` first: the paper's figure is of these."""
    found = {method: neighbours(files.lookalikes[method]) for method in info.methods if method in files.lookalikes}
    shown = {method: one for method, one in found.items() if one is not None}
    return dict(sorted(shown.items(), key=lambda item: not item[1].weighted))


def finding(info: RunInfo, level: float = LEVEL) -> str:
    """Who found the worst predictions, against random and the oracle, and how far that can be trusted."""
    stage = info.first_stage
    values = {method: selected(info, method, stage) for method in info.methods}
    scorers = [method for method in info.methods if is_scorer(method) and values[method]]
    if not scorers:
        return "No method other than random selection and the oracles has finished a stage yet."
    if RANDOM not in info.methods or not values[RANDOM]:
        return "Random selection has not finished a stage, so there is nothing to compare with yet."
    common = set(values[RANDOM]).intersection(*(values[method] for method in scorers))
    if not common:
        return "The methods have no seed in common yet, so they cannot be compared."
    mean = {m: mean_sd([values[m][seed] for seed in common]).mean or 0.0 for m in (*scorers, RANDOM)}
    best = min(scorers, key=mean.__getitem__)
    numbers = f"PCK {fmt.number(mean[best])} against {fmt.number(mean[RANDOM])}"
    seeds = f" (means of {len(common)} seeds)" if len(common) > 1 else ""
    if mean[best] >= mean[RANDOM]:
        first = (
            f"At stage {stage} no method found worse predictions than random selection did: the best, "
            f"{best}, chose people with {numbers}{seeds}."
        )
    else:
        first = (
            f"At stage {stage} the people that {best} chose were the worst predicted: {numbers} for random "
            f"selection{seeds}{gap(info, best, common)}."
        )
    unfinished = "The run is unfinished, so this may change." if info.missing else ""
    return " ".join(filter(None, (first, trust(info, best, stage, mean[best] < mean[RANDOM], level), unfinished)))


def selected(info: RunInfo, method: str, stage: int) -> dict[int, float]:
    """PCK of what the method selected, by seed."""
    values = zip(info.seeds, info.over_seeds(method, stage, "selected_pck"), strict=True)
    return {seed: value for seed, value in values if is_defined(value)}


def gap(info: RunInfo, method: str, seeds: set[int]) -> str:
    """How much of the way from random to the oracle the method went."""
    closed = mean_sd([info.rows[method, seed, info.first_stage].gap_closed for seed in sorted(seeds)])
    if closed.mean is None or closed.count < len(seeds):
        return ""
    return f", {fmt.percent(closed.mean)} of the way from random to the oracle"


def trust(info: RunInfo, method: str, stage: int, lower: bool, level: float) -> str:
    """Whether the difference is more than chance."""
    if len(info.seeds) < tables.MIN_SEEDS:
        few = "This is one seed" if len(info.seeds) == 1 else f"These are {len(info.seeds)} seeds"
        return f"{few}: no test is possible, and the order of the methods may be chance."
    test = tables.against_random(info)[0].get((method, stage))
    if not lower:
        return ""
    if test is None:
        return "There is no test of the difference (the notes under Table A say why)."
    words = f"(paired one-tailed t-test, Holm-adjusted p {fmt.p_value(test.adjusted)}, level {level:g})"
    return f"That is {'' if test.adjusted < level else 'not '}more than chance would explain {words}."
