"""``RUN/detect.html``: what the detectors find, in the form of the benchmark's report."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import write_atomically

from ..report import form
from ..report.facts import UNKNOWN, lookup, named
from ..report.write import beside, pretty
from . import tables
from .drawings import LOOKS, PALETTE, Figure, Forest, calibration, curves, forest
from .finding import finding, level
from .results import DetectResults, SetResult
from .stored import SetInfo

PAGE = "detect.html"


@dataclass(frozen=True, slots=True)
class SetPart:
    """The part of the page about one set."""

    place: int
    """In the catalogue; names the part's anchor."""
    info: SetInfo
    result: SetResult
    table: tables.Grouped
    forest: Forest | None
    roc: Figure | None
    risk: Figure | None
    calibration: Figure | None


def write_report(run: Path) -> Path:
    """Write ``RUN/detect.html`` from ``detect.json`` and the stored scores: one file that needs no network.

    Without the stored scores, which are large, it has everything but the curves, and says so.
    """
    return write_atomically(run / PAGE, render(run, DetectResults.load(run)).encode())


def render(run: Path, results: DetectResults) -> str:
    """The page. The same files give the same bytes."""
    problems: list[str] = []
    parts = [part(run, results, place, problems) for place in range(len(results.sets))]
    parts.sort(key=lambda part: part.info.role != "test")  # what is reported stands before what was chosen on
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = resources.files(__package__).joinpath("detect.html.j2").read_text(encoding="utf-8")
    page: str = environment.from_string(text).render(
        css=Markup(beside("report.css")),
        palette=PALETTE,
        looks=LOOKS,
        config=pretty(results.catalogue.config),
        environment=pretty(results.catalogue.environment),
        dataset=named(results.catalogue.config.get("dataset")),
        preset=named(results.catalogue.config.get("preset")),
        profile=named(results.catalogue.config.get("profile")),
        finding=finding(results),
        facts=facts(results),
        problems=problems,
        level=level(results),
        headline=tables.headline_table(results),
        parts=parts,
        costs=tables.cost_table(results),
        tried=tables.tried_table(results),
        ablations=tables.ablation_table(results),
        sets=tables.set_table(results),
        measures=(("AUROC", tables.AUROC), *((column.title, column.meaning) for column in tables.COLUMNS)),
    )
    return page


def part(run: Path, results: DetectResults, place: int, problems: list[str]) -> SetPart:
    """Tables and figures of one set; what cannot be drawn is added to the problems."""
    found = results.sets[place]
    info = next(info for info in results.catalogue.sets if info.name == found.name)
    roc, risk = None, None
    try:
        roc, risk = curves(run, results, place)
    except (DataError, DataNotFoundError, KeyError) as error:
        problems.append(f"No curves of {found.name}: {error}")
    return SetPart(place, info, found, tables.of_set(results, found), forest(results, found.name), roc, risk,
                   calibration(results, place))  # fmt: skip


def facts(results: DetectResults) -> tuple[tuple[str, str], ...]:
    """What was run, as pairs of a name and a value."""
    catalogue = results.catalogue
    environment: dict[str, Any] = catalogue.environment
    machine = environment.get("gpu") or environment.get("processor") or environment.get("device") or UNKNOWN
    looks = ", ".join(f"{name} {form.plural(count, 'time')}" for name, count in catalogue.looks.items())
    commit = lookup(environment, "commit", "revision")
    return (
        ("Seeds", f"{len(catalogue.seeds)}, a base model each"),
        ("Detectors", form.count(len(catalogue.detectors))),
        ("Sets", ", ".join(f"{info.name} ({info.role})" for info in catalogue.sets)),
        ("Looked at", looks or UNKNOWN),
        ("Resamples", form.count(results.resamples)),
        ("Computed on", str(machine)),
        *((("Commit", str(commit)),) if commit else ()),
    )
