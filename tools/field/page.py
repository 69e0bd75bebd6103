"""The field report for people: one HTML page that needs no network, and a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from alpose.trainer.pages import formatting as fmt
from alpose.trainer.pages.kit import Cell, Column, Page, Row, Table, cells

from .estimate import Interval
from .report import FieldReport, Group

MEASURES = (
    ("pck", "PCK in the field", "mean over all frames of the share of joints that the model had right"),
    ("failure_rate", "Frames that fail", "by the definition that the bundle was calibrated for"),
    ("recall", "Recall of the monitor", "share of the failing frames that were flagged"),
    ("precision", "Precision of the monitor", "share of the flagged frames that fail"),
)
"""Field of :class:`Group`, name, meaning."""

WIDTH = 240.0
"""Of an interval's drawing, in its own units."""


def page_title(dataset: str) -> str:
    """What the page of a dataset is called."""
    return f"{dataset}: field report"


def render(report: FieldReport, *, dataset: str, bundles: dict[str, str] | None = None) -> str:
    """The page. The same report gives the same bytes.

    Args:
        report: what to show.
        dataset: its name.
        bundles: names of bundles by sha256.
    """
    fleet = report.fleet
    page = Page(
        title=page_title(dataset),
        kicker="field report",
        heading=dataset,
        subheading="what the labelled frames say about all frames of the fleet",
        findings=(finding(report),),
        facts=(
            ("Frames seen", _count(fleet.frames)),
            ("Flagged", _count(fleet.flagged)),
            ("Labelled", fmt.count(fleet.labelled)),
            ("of them by chance", fmt.count(fleet.labelled_control)),
            ("Devices", str(len(report.devices))),
            ("Bundles", str(len(report.bundles))),
        ),
    )
    return page.render(
        "alpose.tools.field:page.html.j2",
        styles=["alpose.tools.field:page.css"],
        report=report,
        level=f"{report.level:.0%}",
        fleet=fleet_table(report),
        operating=operating_table(report),
        devices=group_table("Device", report.devices, {}),
        bundles=group_table("Bundle", report.bundles, bundles or {}),
    )


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


def text(report: FieldReport, bundles: Mapping[str, str] | None = None) -> str:
    """For a terminal; ``bundles`` are names of bundles by sha256."""
    lines = [finding(report), ""]
    groups = [("fleet", report.fleet), *report.devices.items(),
              *((_group_name(key, bundles or {}), group) for key, group in report.bundles.items())]  # fmt: skip
    lines.append(f"{'':<20} {'frames':>9} {'flagged':>8} {'labelled':>8} " + " ".join(f"{m[0]:>20}" for m in MEASURES))
    for name, group in groups:
        values = " ".join(f"{_short(getattr(group, measure[0])):>20}" for measure in MEASURES)
        frames, flagged = ("-" if value is None else str(value) for value in (group.frames, group.flagged))
        lines.append(f"{name[:20]:<20} {frames:>9} {flagged:>8} {group.labelled:>8} {values}")
    lines += ["", *([report.definition] if report.definition else [])]
    lines += [f"The flagged frames are known from {report.fleet.flagged_by}."]
    lines += [
        f"{count} labelled frame{'s' * (count != 1)} left out: {reason}" for reason, count in report.dropped.items()
    ]
    if report.advice:
        lines += ["", "What to change:", *(f"- {line}" for line in report.advice)]
    return "\n".join(lines)


def fleet_table(report: FieldReport) -> Table:
    """Every measure of the fleet with its interval, also drawn."""
    rows = []
    for field, name, meaning in MEASURES:
        value: Interval | None = getattr(report.fleet, field)
        n = "0" if value is None else fmt.count(value.n)
        row = (Cell(_value(value), best=True), Cell(_bounds(value)), Cell(drawing(value), style="drawn"), Cell(n))
        rows.append(Row(name, row, meaning))
    columns = (Column("Estimate"), Column(f"{report.level:.0%} interval"), Column("0 to 1"),
               Column("Rests on", "labelled frames"))  # fmt: skip
    return Table("Measure", columns, tuple(rows), style="fleet stack")


def operating_table(report: FieldReport) -> Table | None:
    """Thresholds as they would have done; None where none is known."""
    rows = tuple(
        Row(f"{fmt.percent(point.catch)} of failures",
            cells(Markup("<code>Threshold({:.3f})</code>").format(point.threshold),
                  fmt.number(1000 * point.flagged_share, 0), str(point.failures)))
        for point in report.operating
    )  # fmt: skip
    columns = (Column("Threshold"), Column("Flags", "of 1,000 frames"), Column("Rests on", "labelled failures"))
    return Table("To catch", columns, rows) if rows else None


def group_table(what: str, groups: Mapping[str, Group], names: Mapping[str, str]) -> Table | None:
    """A row per device or bundle; None without any."""
    rows = []
    for key, group in groups.items():
        counts = cells(_count(group.frames), _count(group.flagged), fmt.count(group.labelled))
        found: list[Interval | None] = [getattr(group, field) for field, _, _ in MEASURES]
        values = (Cell(_value(value), _bounds(value)) for value in found)
        rows.append(Row(_group_name(key, names), (*counts, *values)))
    columns = (Column("Frames"), Column("Flagged"), Column("Labelled"), *(Column(name) for _, name, _ in MEASURES))
    return Table(what, columns, tuple(rows)) if rows else None


def drawing(value: Interval | None) -> Markup:
    """An interval on the scale from 0 to 1."""
    ends = (0.0, WIDTH)
    scale = f'<line class="scale" x1="0" x2="{WIDTH}" y1="9" y2="9"/>'
    scale += "".join(f'<line class="scale" x1="{x}" x2="{x}" y1="4" y2="14"/>' for x in ends)
    reach = ""
    if value is not None:
        low, high = (
            WIDTH * max(0.0, value.low),
            WIDTH * min(1.0, value.high) + 0.1,
        )  # a line without length is not drawn
        reach = f'<line class="reach" x1="{low:.1f}" x2="{high:.1f}" y1="9" y2="9"/>'
        reach += f'<circle class="point" cx="{WIDTH * value.value:.1f}" cy="9" r="4.5"/>'
    box = f'viewBox="-6 0 {WIDTH + 12} 18" aria-hidden="true"'
    return Markup(f'<svg class="interval" {box}>{scale}{reach}</svg>')  # numbers alone


def _group_name(key: str, names: Mapping[str, str]) -> str:
    """The name of a device or bundle; a hash without a name is shortened."""
    return names.get(key, key if len(key) < 40 else key[:12])


def _count(value: int | None) -> str:
    return fmt.NONE if value is None else fmt.count(value)


def _value(value: Interval | None) -> str:
    return fmt.NONE if value is None else fmt.number(value.value)


def _bounds(value: Interval | None) -> str:
    return "not known" if value is None else f"{max(0.0, value.low):.2f} to {min(1.0, value.high):.2f}"


def _percent(value: Interval) -> str:
    return f"{max(0.0, value.low):.0%} to {min(1.0, value.high):.0%}"


def _short(value: Interval | None) -> str:
    return "-" if value is None else f"{value.value:.2f} [{max(0.0, value.low):.2f}, {min(1.0, value.high):.2f}]"
