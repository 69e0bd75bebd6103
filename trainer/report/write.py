"""Put a run's report together and write it.

Shapes: N people of the pool.
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

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import write_atomically

from ..results import Results
from ..statistics import LEVEL
from . import alike, comparison, curves, form, tables
from .facts import Facts, facts_of, lookup
from .figures import Palette, scatter_figure
from .finding import finding
from .gallery import Picture, pictures
from .links import REPORT, THEORY, complete, link_or_place
from .methods import in_order, is_scorer, looks
from .pairs import POWER, matrices, pair_words
from .stored import Stored, missing_rows, read_stored
from .table import joined
from .tsne import map_of


@dataclass(frozen=True, slots=True)
class Scatter:
    """One method's score against the true loss."""

    method: str
    svg: Markup
    spearman: str
    pearson: str
    selected: int


def write_report(run: Path, *, level: float = LEVEL) -> Path:
    """Write ``RUN/report.html`` from the files of a run, finished or not: one file that needs no network.

    The t-SNE map is computed at the first call and kept in ``RUN/map.npz``.

    Args:
        run: folder of a benchmark.
        level: of the tests, after Holm's correction.
    """
    results = Results.load(run)
    page = write_atomically(run / REPORT, render(run, results, level).encode())
    complete(run, THEORY)
    return page


def render(run: Path, results: Results, level: float = LEVEL) -> str:
    """The page. The same files give the same bytes."""
    if not 0 < level < POWER:
        raise ConfigError(f"the level of the tests is between 0 and {POWER:g}, got {level}")
    facts = facts_of(results)
    stored = read_stored(run, facts)
    palette = Palette(looks(in_order([*facts.methods, *comparison.published_methods(facts)])))
    page: str = template().render(
        facts=facts,
        palette=palette,
        css=Markup(beside("report.css")),
        headline=headline(facts),
        finding=finding(facts, level),
        missing=missing_rows(facts),
        problems=stored.problems,
        selected=tables.selected_table(facts, level),
        accuracy=tables.accuracy_table(facts),
        detection=tables.detection_table(facts),
        published=comparison.published_tables(facts),
        neighbours=comparison.neighbour_table(facts),
        conditions=comparison.conditions_table(facts),
        costs=tables.cost_table(facts),
        measures=tables.MEASURES,
        count=form.count,
        pairs=matrices(facts, level),
        pair_words=pair_words(facts, level),
        selected_curve=curves.selected_curve(facts, stored, palette),
        accuracy_curve=curves.accuracy_curve(facts, palette),
        band_words=curves.band_words(facts),
        scatters=scatters(facts, stored, palette),
        risk_curve=curves.risk_figure(facts, stored, palette),
        risk_words=curves.risk_words(facts),
        map=map_of(run, facts, stored),
        galleries=galleries(facts, stored),
        alike=alike_pages(facts, stored),
        other=link_or_place(run, REPORT),
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


def galleries(facts: Facts, stored: Stored) -> dict[str, tuple[Picture, ...]]:
    """Pictures by method, in the order of the tables."""
    return {method: pictures(stored.galleries[method]) for method in facts.methods if method in stored.galleries}


def alike_pages(facts: Facts, stored: Stored) -> dict[str, alike.Page]:
    """Nearest-neighbour pages by method, those of ``egl++`` first: the paper's figure is of these."""
    found = {
        method: alike.page_of(stored.lookalikes[method]) for method in facts.methods if method in stored.lookalikes
    }
    pages = {method: page for method, page in found.items() if page is not None}
    return dict(sorted(pages.items(), key=lambda item: not item[1].weighed))


def pretty(value: dict[str, Any]) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True, default=str)
