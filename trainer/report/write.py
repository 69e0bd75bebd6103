"""Put a run's report together and write it.

Shapes: K points of a curve.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..results import Results, Row, write_atomically
from ..statistics import Summary, is_defined, mean_sd
from . import comparison, form, tables
from .facts import Facts, facts_of, lookup
from .figures import COVERAGES, Curve, Floats, Palette, lines_figure, risk_curve, scatter_figure
from .finding import finding
from .gallery import Picture, pictures
from .methods import in_order, is_scorer, looks
from .stored import Stored, missing_rows, read_stored
from .table import joined


@dataclass(frozen=True, slots=True)
class Scatter:
    """One method's score against the true loss."""

    method: str
    svg: Markup
    spearman: str
    pearson: str
    selected: int


def write_report(run: Path) -> Path:
    """Write ``RUN/report.html`` from the files of a run, finished or not: one file that needs no network."""
    results = Results.load(run)
    return write_atomically(run / "report.html", render(run, results).encode())


def render(run: Path, results: Results) -> str:
    """The page. The same files give the same bytes."""
    facts = facts_of(results)
    stored = read_stored(run, facts)
    palette = Palette(looks(in_order([*facts.methods, *comparison.published_methods(facts)])))
    page: str = template().render(
        facts=facts,
        palette=palette,
        css=Markup(beside("report.css")),
        headline=headline(facts),
        finding=finding(facts),
        missing=missing_rows(facts),
        problems=stored.problems,
        selected=tables.selected_table(facts),
        accuracy=tables.accuracy_table(facts),
        detection=tables.detection_table(facts),
        published=comparison.published_table(facts),
        neighbours=comparison.neighbour_table(facts),
        conditions=comparison.conditions_table(facts),
        costs=tables.cost_table(facts),
        measures=tables.MEASURES,
        selected_curve=selected_curve(facts, palette),
        accuracy_curve=accuracy_curve(facts, palette),
        scatters=scatters(facts, stored, palette),
        risk_curve=risk_figure(facts, stored, palette),
        galleries=galleries(facts, stored),
        config=pretty(results.config),
        environment=pretty(results.environment),
    )
    return page


def template() -> Any:
    """The page's template, escaping everything that is not marked as safe."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(beside("report.html.j2"))


def beside(name: str) -> str:
    """A text file that ships beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def headline(facts: Facts) -> tuple[tuple[str, str], ...]:
    """What was run, as pairs of a name and a value."""
    pool = sorted({row.pool for row in facts.at_stage(facts.first_stage)})
    asked = len(facts.methods) * len(facts.seeds) * len(facts.stages)
    return (
        ("Dataset", facts.dataset),
        ("Preset", facts.preset),
        ("Metric", metric(facts)),
        ("Seeds", form.count(len(facts.seeds))),
        ("Stages", form.count(len(facts.stages))),
        ("Labelled per stage", facts.budget),
        ("Pool at the start", joined(pool)),
        ("Start of each stage", "selection only" if facts.select_only else facts.start),
        ("Computed on", tables.machine(facts)),
        ("Selections finished", f"{asked - len(facts.missing)} of {asked}"),
    )


def metric(facts: Facts) -> str:
    """Threshold and normaliser where the config tells them, and the profile's name."""
    threshold = lookup(facts.config, "threshold")
    normaliser = lookup(facts.config, "normaliser")
    exact = f"PCK@{threshold} of {normaliser}, " if threshold and normaliser else ""
    return f"{exact}profile {facts.profile}"


def selected_curve(facts: Facts, palette: Palette) -> Markup | None:
    """Selected PCK per stage; None with one stage."""
    if len(facts.stages) < 2:
        return None
    curves = []
    for method in facts.methods:
        summaries = {stage: mean_sd(facts.over_seeds(method, stage, "selected_pck")) for stage in facts.stages}
        curves += curve_of(method, {float(stage): summary for stage, summary in summaries.items()})
    return lines_figure("selected", curves, palette, "stage", "PCK of what was selected", True) if curves else None


def accuracy_curve(facts: Facts, palette: Palette) -> Markup | None:
    """Test PCK against labelled people, from the base model on; None with one stage or without retraining."""
    if len(facts.stages) < 2:
        return None
    found = (curve_of(method, accuracy_points(facts, method)) for method in facts.methods)
    curves = [curve for curves in found for curve in curves if len(curve.x_K) > 1]
    return lines_figure("accuracy", curves, palette, "labelled people", "test PCK") if curves else None


def accuracy_points(facts: Facts, method: str) -> dict[float, Summary]:
    """Mean and sd of the test PCK by mean number of labelled people, from the base model on."""
    points = {}
    for stage in facts.stages:
        rows = [facts.rows[key] for seed in facts.seeds if (key := (method, seed, stage)) in facts.rows]
        if rows and stage == facts.first_stage:
            points[mean_labelled(rows, 0)] = mean_sd([facts.base_pck.get(seed) for seed in facts.seeds])
        if rows:
            points[mean_labelled(rows, 1)] = mean_sd([row.test_pck for row in rows])
    return points


def mean_labelled(rows: list[Row], after: int) -> float:
    """Labelled people before (0) or after (1) the stage, mean over seeds."""
    return sum(row.labelled + after * row.selected for row in rows) / len(rows)


def curve_of(method: str, points: dict[float, Summary]) -> list[Curve]:
    """A curve through the defined points, with a band where every point has an sd; none without points."""
    known = [(x, summary) for x, summary in points.items() if summary.mean is not None]
    if not known:
        return []
    x_K = np.array([x for x, _ in known])
    y_K = np.array([summary.mean for _, summary in known])
    sds = [summary.sd for _, summary in known]
    return [Curve(method, x_K, y_K, np.array(sds) if all(map(is_defined, sds)) else None)]


def scatters(facts: Facts, stored: Stored, palette: Palette) -> tuple[Scatter, ...]:
    """Score against true loss of the first seed, for every method whose score says something."""
    shown = []
    for place, method in enumerate(facts.methods):
        scores = stored.scores.get((method, facts.first_seed))
        if scores is None or not is_scorer(method):
            continue
        known_N = np.isfinite(scores.score_N) & np.isfinite(scores.true_loss_N)
        if known_N.sum() < 2 or np.ptp(scores.score_N[known_N]) == 0:
            continue
        row = facts.rows[method, facts.first_seed, facts.first_stage]
        svg = scatter_figure(f"scatter{place}", method, scores, palette)
        shown.append(
            Scatter(method, svg, form.number(row.spearman, 2), form.number(row.pearson, 2), len(scores.selected_M))
        )
    return tuple(shown)


def risk_figure(facts: Facts, stored: Stored, palette: Palette) -> Markup | None:
    """Risk-coverage curves at the first stage, mean over the seeds that are there; None without scores."""
    curves = []
    for method in facts.methods:
        found = [stored.scores[method, seed] for seed in facts.seeds if (method, seed) in stored.scores]
        pairs = [pair for pair in map(risk_curve, found) if len(pair[0])]
        if pairs:
            curves.append(mean_risk(method, pairs))
    if not curves:
        return None
    return lines_figure("risk", curves, palette, "share of images kept", "failure rate of those kept")


def mean_risk(method: str, pairs: list[tuple[Floats, Floats]]) -> Curve:
    """The mean over seeds on one grid: their pools may differ by a few people without a PCK."""
    kept_K = np.linspace(max(kept_K[0] for kept_K, _ in pairs), 1, COVERAGES)
    return Curve(method, kept_K, np.mean([np.interp(kept_K, *pair) for pair in pairs], axis=0))


def galleries(facts: Facts, stored: Stored) -> dict[str, tuple[Picture, ...]]:
    """Pictures by method, in the order of the tables."""
    return {method: pictures(stored.galleries[method]) for method in facts.methods if method in stored.galleries}


def pretty(value: dict[str, Any]) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)
