"""``card.html`` of a bundle: what people who deploy it must know, on one page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from alpose.runtime.errors import DataError
from alpose.runtime.io import write_atomically
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.report import form
from alpose.trainer.report.write import beside as beside_report

from .calibration import EVIDENCE
from .card_figures import PALETTE, histogram_figure, reliability_figure, risk_figure, skeleton_drawing
from .card_words import (
    EVIDENCE_WORDS,
    MEANINGS,
    limits,
    moment,
    share,
    summary,
    text,
    threshold_text,
    tied,
    title,
)
from .quality import BINS, CalibrationReport
from .shift import Applied, Catch
from .thresholds import CatchThreshold

NEEDED = ("name", "created", "alpose", "skeleton", "crop", "precision", "head", "inputs", "outputs", "parity",
          "provenance", "opset")  # fmt: skip
"""Keys of the manifest that the card shows."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and a value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Block:
    """Facts under a heading."""

    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True)
class CatchLine:
    """One row of the catch table, as printed."""

    catch: str
    threshold: str
    confidence: str
    reason: str
    flagged: str
    flagged_share: float
    observed: str
    bounds: str
    counts: str
    before: CatchCell | None


@dataclass(frozen=True, slots=True)
class CatchCell:
    """One threshold at work on data that is not its own, as printed."""

    threshold: str
    observed: str
    bounds: str
    flagged: str
    flagged_share: float
    kept: bool
    """What it caught is not less than what it was made for."""


@dataclass(frozen=True, slots=True)
class ParityLine:
    """One figure of the precision against fp32, as printed."""

    name: str
    value: str
    limit: str


def write_card(
    path: Path,
    facts: Mapping[str, Any],
    report: CalibrationReport | None,
    *,
    previous: Applied | None = None,
    elsewhere: Sequence[Applied] = (),
) -> Path:
    """Write the page; arguments as for :func:`render_card`."""
    return write_atomically(path, render_card(facts, report, previous=previous, elsewhere=elsewhere).encode())


def render_card(
    facts: Mapping[str, Any],
    report: CalibrationReport | None,
    *,
    previous: Applied | None = None,
    elsewhere: Sequence[Applied] = (),
) -> str:
    """The page as HTML. The same arguments give the same bytes.

    Args:
        facts: what ``bundle.json`` holds, hashes aside: see ``NEEDED``. ``provenance`` and ``parity`` are shown
            whatever they hold; a figure of ``parity`` may be a mapping of ``value``, ``limit`` and ``unit``.
        report: the calibration; None where the bundle was exported without labelled data.
        previous: an older calibration at work on the people that measured this one (:func:`alpose.export.shift.apply`):
            shown as before and after.
        elsewhere: this calibration at work on other data: what a shift does to its promises.

    Raises:
        DataError: a needed key is missing.
    """
    missing = [key for key in NEEDED if key not in facts]
    if missing:
        raise DataError(f"a card needs {', '.join(missing)} among its facts, got {', '.join(facts) or 'nothing'}")
    skeleton = Skeleton.from_json(facts["skeleton"])
    page: str = template().render(
        facts=facts,
        report=report,
        previous=previous,
        elsewhere=[(each, [catch_cell(catch) for catch in each.catches]) for each in elsewhere],
        form=form,
        share=share,
        tied=tied,
        palette=PALETTE,
        css=Markup(beside_report("report.css") + beside("card.css")),
        headline=headline(facts, skeleton),
        summary=summary(report),
        lines=catch_lines(report, previous),
        figures=figures(report, previous),
        bins=BINS,
        evidence=evidence_lines(report),
        blocks=blocks(facts["provenance"]),
        parity=parity_lines(facts["parity"]),
        tensors=tensor_lines(facts),
        skeleton=skeleton,
        drawing=skeleton_drawing(skeleton),
        limits=limits(facts, report, elsewhere),
        manifest=json.dumps(dict(facts), indent=1, ensure_ascii=False, default=str),
    )
    return page


def template() -> Any:
    """The page's template, escaping everything that is not marked as safe."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(beside("card.html.j2"))


def beside(name: str) -> str:
    """A text file that ships beside this one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def headline(facts: Mapping[str, Any], skeleton: Skeleton) -> tuple[Fact, ...]:
    """What the bundle is, in a line of facts."""
    side = facts["crop"]["size_px"]
    return (
        Fact("Precision", str(facts["precision"])),
        Fact("Loss head", str(facts["head"])),
        Fact("Input", f"{side} {form.TIMES} {side} px"),
        Fact("Joints", f"{len(skeleton)} ({skeleton.name})"),
        Fact("ONNX opset", str(facts["opset"])),
        Fact("Exported", moment(str(facts["created"]))),
        Fact("alpose", str(facts["alpose"])),
    )


def catch_lines(report: CalibrationReport | None, previous: Applied | None) -> tuple[CatchLine, ...]:
    """The catch table."""
    old = {each.catch: catch_cell(each) for each in previous.catches} if previous else {}
    return tuple(catch_line(each, old.get(each.catch)) for each in report.thresholds) if report else ()


def catch_line(made: CatchThreshold, before: CatchCell | None) -> CatchLine:
    """One row; dashes where there is no threshold."""
    there = made.threshold is not None
    return CatchLine(
        catch=share(made.catch),
        threshold=threshold_text(made.threshold),
        confidence=share(made.confidence),
        reason=tied(made.reason or ""),
        flagged=share(made.flagged),
        flagged_share=made.flagged or 0.0,
        observed=share(made.observed),
        bounds=f"{share(made.low)} to {share(made.high)}" if there else "",
        counts=f"{form.count(made.caught or 0)} of {form.count(made.failures)}" if there else "",
        before=before,
    )


def catch_cell(found: Catch) -> CatchCell:
    """A threshold on other data, as printed."""
    return CatchCell(
        threshold=threshold_text(found.threshold),
        observed=share(found.observed),
        bounds=f"{share(found.low)} to {share(found.high)}",
        flagged=share(found.flagged),
        flagged_share=found.flagged,
        kept=found.observed >= found.catch,
    )


def figures(report: CalibrationReport | None, previous: Applied | None) -> dict[str, Markup]:
    """The figures by name; none without a calibration."""
    if report is None:
        return {}
    found = {
        "reliability": reliability_figure("reliability", report.bins),
        "histogram": histogram_figure("histogram", report),
        "risk": risk_figure("risk", report),
    }
    return found | ({"before": reliability_figure("before", previous.bins)} if previous else {})


def evidence_lines(report: CalibrationReport | None) -> tuple[tuple[str, str, str], ...]:
    """Each piece of evidence: its name, its AUROC by itself, its weight."""
    if report is None:
        return ()
    weights = dict(zip(EVIDENCE, report.calibration.weight_3.tolist(), strict=True))
    return tuple(
        (EVIDENCE_WORDS[name], form.number(report.auroc_alone.get(name)), form.number(weights[name], 2))
        for name in EVIDENCE
    )


def blocks(provenance: Mapping[str, Any]) -> tuple[Block, ...]:
    """Provenance as headed lists: what is nested gets its own heading, the rest comes under one."""
    plain = {key: value for key, value in provenance.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in provenance.items() if isinstance(value, Mapping)}
    found = [Block(title(key), facts_in(value)) for key, value in nested.items()]
    return tuple(found + ([Block("Besides", facts_in(plain))] if plain else []))


def facts_in(value: Mapping[str, Any]) -> tuple[Fact, ...]:
    """Names and values as printed; what is nested further is joined into one line."""
    return tuple(Fact(title(str(key)), text(each)) for key, each in value.items())


def parity_lines(parity: Mapping[str, Any]) -> tuple[ParityLine, ...]:
    """Figures of the precision against fp32: plain values, or mappings of value, limit and unit."""
    found = []
    for key, value in parity.items():
        if not isinstance(value, Mapping):
            found.append(ParityLine(title(key), text(value), ""))
        elif "value" in value:
            unit = f" {value['unit']}" if value.get("unit") else ""
            limit = f"{text(value['limit'])}{unit}" if value.get("limit") is not None else ""
            found.append(ParityLine(title(key), f"{text(value['value'])}{unit}", limit))
        else:
            inner = parity_lines(value)
            found += [ParityLine(f"{title(key)}: {line.name.lower()}", line.value, line.limit) for line in inner]
    return tuple(found)


def tensor_lines(facts: Mapping[str, Any]) -> tuple[tuple[str, str, str, str, str, bool], ...]:
    """Inputs, then outputs: name, type, shape with its axes, unit, meaning, whether it is an input."""
    found = []
    for side in ("inputs", "outputs"):
        for name, tensor in facts[side].items():
            shape = f" {form.TIMES} ".join(map(str, tensor["shape"]))
            unit = str(tensor.get("unit") or tensor.get("colour") or form.NONE)
            found.append((name, str(tensor["dtype"]), shape, unit, MEANINGS.get(name, ""), side == "inputs"))
    return tuple(found)
