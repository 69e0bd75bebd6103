"""The field report for people: one HTML page that needs no network, and a table for a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from alpose.trainer.report import form

from .estimate import Interval
from .report import FieldReport, Group

MEASURES = (
    ("pck", "PCK in the field", "mean over all frames of the share of joints that the model had right"),
    ("failure_rate", "Frames that fail", "fewer than half of the joints right"),
    ("recall", "Recall of the monitor", "share of the failing frames that were flagged"),
    ("precision", "Precision of the monitor", "share of the flagged frames that fail"),
)
"""Field of :class:`Group`, name, meaning."""

WIDTH = 240.0
"""Of an interval's drawing, in its own units."""


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval on the scale from 0 to 1, in the units of its drawing."""

    low: float
    value: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """One measure of one group."""

    name: str
    meaning: str
    value: str
    bounds: str
    n: str
    bar: Bar | None


@dataclass(frozen=True, slots=True)
class Row:
    """One device or bundle."""

    name: str
    frames: str
    flagged: str
    labelled: str
    cells: tuple[Line, ...]


def render(report: FieldReport, *, dataset: str, bundles: dict[str, str] | None = None) -> str:
    """The page. The same report gives the same bytes.

    Args:
        report: what to show.
        dataset: its name.
        bundles: names of bundles by sha256.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    here = resources.files("alpose.tools.field")
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    style = (resources.files("alpose.trainer.report") / "report.css").read_text(encoding="utf-8")
    page: str = template.render(
        css=Markup(style + (here / "page.css").read_text(encoding="utf-8")),  # our own files
        dataset=dataset,
        finding=finding(report),
        report=report,
        fleet=report.fleet,
        lines=_lines(report.fleet),
        devices=_rows(report.devices, {}),
        bundles=_rows(report.bundles, bundles or {}),
        operating=report.operating,
        level=f"{report.level:.0%}",
        form=form,
        width=WIDTH,
    )
    return page


def finding(report: FieldReport) -> str:
    """One sentence that says what matters."""
    fleet = report.fleet
    if fleet.pck is None:
        return "Nothing can be said about the field yet: no frame of a control stream is labelled."
    parts = [f"In the field the model has {fleet.pck.value:.0%} of the joints right ({_percent(fleet.pck)})"]
    if fleet.recall is not None:
        parts.append(f"its monitor flags {fleet.recall.value:.0%} of the failures ({_percent(fleet.recall)})")
    if fleet.precision is not None:
        parts.append(f"{fleet.precision.value:.0%} of what it flags are failures ({_percent(fleet.precision)})")
    sentence = "; ".join(parts) + "."
    if fleet.naive_pck is not None and not fleet.pck.low <= fleet.naive_pck <= fleet.pck.high:
        sentence += f" The plain mean of the labelled frames, which are not like all frames, is {fleet.naive_pck:.0%}."
    return sentence


def text(report: FieldReport) -> str:
    """For a terminal."""
    lines = [finding(report), ""]
    groups = [("fleet", report.fleet), *report.devices.items(), *((name[:12], g) for name, g in report.bundles.items())]
    lines.append(f"{'':<20} {'frames':>9} {'flagged':>8} {'labelled':>8} " + " ".join(f"{m[0]:>20}" for m in MEASURES))
    for name, group in groups:
        cells = " ".join(f"{_short(getattr(group, measure[0])):>20}" for measure in MEASURES)
        frames, flagged = ("-" if value is None else str(value) for value in (group.frames, group.flagged))
        lines.append(f"{name[:20]:<20} {frames:>9} {flagged:>8} {group.labelled:>8} {cells}")
    lines += ["", f"The flagged frames are known from {report.fleet.flagged_by}."]
    lines += [f"{count} labelled frames left out: {reason}" for reason, count in report.dropped.items()]
    if report.advice:
        lines += ["", "What to change:", *(f"- {line}" for line in report.advice)]
    return "\n".join(lines)


def _lines(group: Group) -> tuple[Line, ...]:
    return tuple(_line(name, meaning, getattr(group, field)) for field, name, meaning in MEASURES)


def _line(name: str, meaning: str, value: Interval | None) -> Line:
    if value is None:
        return Line(name, meaning, form.NONE, "not known", "0", None)
    bar = Bar(WIDTH * max(0.0, value.low), WIDTH * value.value, WIDTH * min(1.0, value.high))
    return Line(name, meaning, form.number(value.value), _bounds(value), form.count(value.n), bar)


def _rows(groups: Any, names: dict[str, str]) -> tuple[Row, ...]:
    return tuple(
        Row(
            names.get(key, key if len(key) < 40 else key[:12]),
            form.NONE if group.frames is None else form.count(group.frames),
            form.NONE if group.flagged is None else form.count(group.flagged),
            form.count(group.labelled),
            _lines(group),
        )
        for key, group in groups.items()
    )


def _bounds(value: Interval) -> str:
    return f"{max(0.0, value.low):.2f} to {min(1.0, value.high):.2f}"


def _percent(value: Interval) -> str:
    return f"{max(0.0, value.low):.0%} to {min(1.0, value.high):.0%}"


def _short(value: Interval | None) -> str:
    return "-" if value is None else f"{value.value:.2f} [{max(0.0, value.low):.2f}, {min(1.0, value.high):.2f}]"
