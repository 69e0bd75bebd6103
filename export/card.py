"""``card.html`` of a bundle: what people who deploy it must know, on one page that needs no network.

Shapes: B bins, K points of a curve.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from markupsafe import Markup

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import Skeleton
from alpose.trainer.measures.joint_calibration import ENOUGH, JointReport
from alpose.trainer.pages import formatting as fmt
from alpose.trainer.pages import pose
from alpose.trainer.pages.kit import Cell, Column, Page, Row, Table, cells

from .calibration import EVIDENCE
from .card_figures import PALETTE, drawings
from .quality import CalibrationReport
from .shift import Applied, Catch
from .thresholds import CONFIDENCE, CatchThreshold

NEEDED = ("name", "created", "alpose", "skeleton", "crop", "precision", "head", "inputs", "outputs", "parity",
          "provenance", "opset")  # fmt: skip
"""Keys of the manifest that the card shows."""


MEANINGS = {
    "frames": "people, cut out by the rule below",
    "keypoints": "x, y of each joint, to a fraction of a pixel",
    "scores": "how sure the net is of each joint; about 1 at its best in training",
    "predicted_loss": "what the loss head predicts for the image, higher is worse; its scale is its own",
    "failure_probability": "the calibrated probability that the pose failed: compare this one with a threshold",
    "embedding": "features of the image as a vector of unit length, for finding similar and new images",
    "confidence": "the calibrated probability that each joint is right",
}
"""What each tensor of the graph is."""
EVIDENCE_WORDS = {
    "predicted_loss": "predicted loss (loss head)",
    "entropy": "entropy of the heatmaps",
    "doubt": f"uncertainty (1 {fmt.MINUS} mean joint score)",
}
SHORT = {"pck": "PCK", "auroc": "AUROC", "aurc": "AURC", "gpu": "GPU", "cpu": "CPU", "id": "ID",
         "p99": "99th percentile"}  # fmt: skip
"""Words that are written otherwise than their key."""

Facts = tuple[tuple[str, str], ...]


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
        previous: an older calibration applied to the people that measured this one (:func:`alpose.export.shift.apply`):
            shown as before and after.
        elsewhere: this calibration applied to other data: what a shift does to its promises.

    Raises:
        DataError: a needed key is missing.
    """
    missing = [key for key in NEEDED if key not in facts]
    if missing:
        raise DataError(f"a card needs {', '.join(missing)} among its facts, got {', '.join(facts) or 'nothing'}")
    skeleton = Skeleton.from_json(facts["skeleton"])
    page = Page(
        title=f"{facts['name']}: alpose bundle, {facts['precision']}",
        kicker="card of a bundle",
        heading=str(facts["name"]),
        subheading="keypoints, scores and a calibrated probability of failure from one ONNX graph",
        findings=(summary(report),),
        warnings=report.warnings if report else (),
        warnings_title="Read the numbers with care",
        facts=headline(facts, skeleton),
        palette=PALETTE,
    )
    return page.render(
        "alpose.export:card.html.j2",
        styles=["alpose.export:card.css"],
        facts=facts,
        report=report,
        previous=previous,
        share=share,
        catches=catch_table(report, previous) if report else None,
        elsewhere=[(each, elsewhere_table(each)) for each in elsewhere],
        figures=drawings(report, previous) if report else {},
        numbers=calibration_numbers(report, previous) if report else (),
        evidence=evidence_table(report) if report else None,
        joints=joint_table(report.joints) if report and report.joints else None,
        joint_summary=joint_summary(report.joints) if report and report.joints else "",
        joint_numbers=joint_numbers(report.joints) if report and report.joints else (),
        enough=ENOUGH,
        blocks=blocks(facts["provenance"]),
        parity=Table("Figure", (Column("Value"), Column("Limit")), parity_rows(facts["parity"]), style="narrow"),
        tensors=tensor_table(facts),
        skeleton=skeleton,
        crop_words=crop_words(facts),
        around_person=facts["crop"].get("kind", "box") in ("box", "turned"),
        aspect=min(2.0, input_size(facts)[0] / input_size(facts)[1]),
        diagram=pose.diagram(skeleton),
        limits=limits(facts, report, elsewhere),
        manifest=json.dumps(dict(facts), indent=1, ensure_ascii=False, default=str),
    )


def headline(facts: Mapping[str, Any], skeleton: Skeleton) -> Facts:
    """What the bundle is, in a line of facts."""
    width, height = input_size(facts)
    return (
        ("Precision", str(facts["precision"])),
        ("Loss head", str(facts["head"])),
        ("Input", f"{width} {fmt.TIMES} {height} px"),
        ("Joints", f"{len(skeleton)} ({skeleton.name})"),
        ("ONNX opset", str(facts["opset"])),
        ("Exported", moment(str(facts["created"]))),
        ("alpose", str(facts["alpose"])),
    )


def input_size(facts: Mapping[str, Any]) -> tuple[int, int]:
    """Width and height of the graph's input, in pixels."""
    _, height, width, _ = facts["inputs"]["frames"]["shape"]
    return width, height


def crop_words(facts: Mapping[str, Any]) -> Markup:
    """How a person, or the frame, becomes the input."""
    crop, (width, height) = facts["crop"], input_size(facts)
    size = Markup("<strong>{} {} {}</strong> pixels").format(width, fmt.TIMES, height)
    kind, fill = crop.get("kind", "box"), crop.get("fill", 0)
    outside = "black" if fill == 0 else f"grey, level {fill}"
    if kind == "whole":
        return Markup("The whole frame, stretched to {}.").format(size)
    if kind == "letterbox":
        return Markup("The whole frame, its aspect ratio kept, resampled to {}. What lies beside it is {}.").format(
            size, outside
        )
    shape = "square" if width == height else f"rectangle of aspect ratio {width} : {height}"
    turned = (
        " It is turned about its centre so that the body's axis, hips to shoulders, points up."
        if kind == "turned"
        else ""
    )
    return Markup(
        "Take the box around the person. The crop is the {} around its centre that holds the box <strong>{}</strong> times as "
        "large, resampled to {}.{} What lies outside the frame is {}."
    ).format(shape, crop["margin"], size, turned, outside)


def summary(report: CalibrationReport | None) -> str:
    """The one thing to know."""
    if report is None:
        return (
            "This bundle was exported without labelled data. Its failure probability means nothing yet and it has "
            "no thresholds: calibrate it before a decision depends on it."
        )
    made = [each for each in report.thresholds if each.threshold is not None]
    if not made:
        reason = report.thresholds[0].reason if report.thresholds else "no threshold was asked for"
        return fmt.tied(f"Nothing can be promised yet: {reason}.")
    best = next((each for each in made if each.catch == 0.9), made[-1])
    return (
        f"Flag every frame whose failure probability is {threshold_text(best.threshold)} or more, and at least "
        f"{share(best.catch)} of the failures are caught, with {share(best.confidence)} confidence, on "
        f"images like those of {report.data}. There, {share(best.flagged)} of all frames were flagged; "
        f"{share(report.failure_rate)} had failed."
    )


def limits(facts: Mapping[str, Any], report: CalibrationReport | None, elsewhere: Sequence[Applied]) -> tuple[str, ...]:
    """What must not be expected of the bundle."""
    always = (
        "People were cut out by labelled boxes. A detector's boxes are looser, shifted or on no person at all; none "
        "of that was measured, and a crop without a person need not get a high failure probability.",
        "It judges the pose of one person and its joints, not whether the right person was cut out.",
    )
    if report is None:
        return ("There are no thresholds and no calibrated probability.", *always)
    confidence = max((each.confidence for each in report.thresholds), default=CONFIDENCE)
    found = [
        f"The promise holds for failures drawn like those of {report.data}. On another camera, place, population or "
        "season these thresholds are not guaranteed to catch anything like their share, or to flag as few frames; "
        f"calibrate again on labelled images from there.{shifted(elsewhere)}",
        f"The confidence of {share(confidence)} belongs to each threshold by itself and speaks of calibration sets: "
        f"of a hundred such sets, up to {round(100 * (1 - confidence))} give a threshold that catches less than it "
        f"says. This one rests on {fmt.plural(report.measured_failures, 'failure')}.",
        "Neighbouring frames of a video fail together. Over all frames the shares hold on average, but a short clip "
        "can be far from them.",
        f"Only what the definition calls a failure is looked for. {fmt.tied(report.definition)} Lesser mistakes are not.",
    ]
    if report.undefined:
        who = "1 person" if report.undefined == 1 else f"{fmt.count(report.undefined)} people"
        found.append(f"The labels of {who} do not tell whether the pose failed; they are in none of the numbers.")
    if facts["precision"] != "fp32":
        found.append(
            f"The calibration was fitted to the net in fp32; this {facts['precision']} graph differs from it by the "
            "figures under Precision."
        )
    return (*found, *always)


def shifted(elsewhere: Sequence[Applied]) -> str:
    """What a shift was seen to do, as a sentence."""
    worst = max(elsewhere, key=lambda each: each.ece, default=None)
    if worst is None:
        return ""
    return (f" On {worst.data} the calibration error was {fmt.number(worst.ece)}; chance alone explains up to "
            f"{fmt.number(worst.ece_by_chance)}.")  # fmt: skip


def catch_table(report: CalibrationReport, previous: Applied | None) -> Table:
    """Every threshold with its promise and its cost; beside it what the older bundle's would do."""
    columns = [
        Column("Flag from", "failure probability"),
        Column("Frames flagged", "of all"),
        Column("Observed catch", "failures flagged"),
        Column("True catch lies in", "each end so confident"),
    ]
    before = {}
    if previous:
        columns += [Column("Before: flag from", previous.calibrated_on, style="past"),
                    Column("Before: flagged", "same images", style="past"),
                    Column("Before: catch", "same failures", style="past")]  # fmt: skip
        before = {each.catch: catch_cells(each)[:3] for each in previous.catches}
    rows = []
    for made in report.thresholds:
        older = before.get(made.catch, (Cell(fmt.NONE, span=3),)) if previous else ()
        confidence = f"with {share(made.confidence)} confidence"
        rows.append(Row(share(made.catch), (*threshold_cells(made), *older), confidence))
    return Table("Catch at least", tuple(columns), tuple(rows), style="catch stack")


def threshold_cells(made: CatchThreshold) -> tuple[Cell, ...]:
    """The threshold and what it caught and flagged; or why there is none."""
    if made.threshold is None:
        return (Cell(f"No threshold: {fmt.tied(made.reason or '')}.", span=4, style="why"),)
    return (
        Cell(code(threshold_text(made.threshold))),
        Cell(bar(made.flagged)),
        Cell(share(made.observed), f"{fmt.count(made.caught or 0)} of {fmt.count(made.failures)}"),
        Cell(f"{share(made.low)} to {share(made.high)}"),
    )


def elsewhere_table(applied: Applied) -> Table:
    """The thresholds on data that is not their own."""
    columns = (Column("Flag from"), Column("Frames flagged", "of all"), Column("Observed catch", "failures flagged"),
               Column("True catch lies in"))  # fmt: skip
    rows = tuple(Row(share(each.catch), catch_cells(each)) for each in applied.catches)
    return Table("Made to catch", columns, rows, style="catch stack")


def catch_cells(found: Catch) -> tuple[Cell, ...]:
    """A threshold on other data; a catch below what it was made for is marked."""
    caught: str | Markup = share(found.observed)
    if found.observed < found.catch:
        caught = Markup('<span class="missed">{}</span>').format(caught)
    return cells(code(threshold_text(found.threshold)), bar(found.flagged), caught,
                 f"{share(found.low)} to {share(found.high)}")  # fmt: skip


def code(text: str) -> Markup:
    """Text to be typed."""
    return Markup("<code>{}</code>").format(text)


def bar(value: float | None) -> Markup:
    """A share with a bar of its length."""
    return Markup('{}<span class="bar" aria-hidden="true"><i style="width:{:.1f}%"></i></span>').format(
        share(value), 100 * (value or 0)
    )


def calibration_numbers(report: CalibrationReport, previous: Applied | None) -> tuple[tuple[str, str, str], ...]:
    """Name, value and what to compare it with."""
    by_chance = fmt.number(report.ece_by_chance)
    inside = report.ece <= report.ece_by_chance
    explained = (
        f"chance alone explains up to {by_chance}"
        if inside
        else f"more than the {by_chance} that chance alone explains"
    )
    constant = f"{fmt.number(report.brier_constant)} for predicting the failure rate each time"
    older = f"; {fmt.number(previous.brier)} before" if previous else ""
    return (
        ("Calibration error (ECE)", fmt.number(report.ece), explained),
        *((("ECE before", fmt.number(previous.ece), f"calibrated on {previous.calibrated_on}"),) if previous else ()),
        ("Brier score", fmt.number(report.brier), constant + older),
        ("Fitted on", fmt.count(report.fitted), f"people, {fmt.plural(report.fitted_failures, 'failure')}"),
        ("Measured on", fmt.count(report.measured), f"other people, {fmt.plural(report.measured_failures, 'failure')}"),
    )


def evidence_table(report: CalibrationReport) -> Table:
    """Each piece of evidence: its AUROC by itself, its weight."""
    weights = dict(zip(EVIDENCE, report.calibration.weight_3.tolist(), strict=True))
    rows = [
        Row(EVIDENCE_WORDS[name], cells(fmt.number(report.auroc_alone.get(name)), fmt.number(weights[name], 2)))
        for name in EVIDENCE
    ]
    together = Row("all together", (Cell(fmt.number(report.auroc), best=True), Cell(fmt.NONE)), reference=True)
    return Table("Evidence", (Column("AUROC alone"), Column("Weight")), (*rows, together), style="narrow")


def joint_summary(joints: JointReport) -> str:
    """What the confidence is worth, in two sentences."""
    against = "higher than" if (joints.auroc or 0) > (joints.auroc_score or 0) else "not higher than"
    return (
        f"Of joints with a confidence near 0.7, about 7 in 10 should be right. It finds wrong joints with an AUROC of "
        f"{fmt.number(joints.auroc)}, {against} the net's own score ({fmt.number(joints.auroc_score)}), on "
        f"{fmt.plural(joints.measured, 'labelled joint')}, of which {fmt.count(joints.wrong)} were wrong."
    )


def joint_numbers(joints: JointReport) -> tuple[tuple[str, str, str], ...]:
    """Name, value and what to compare it with."""
    return (
        ("AUROC of a wrong joint", fmt.number(joints.auroc), f"{fmt.number(joints.auroc_score)} by the net's own score"),
        ("AUPRC", fmt.number(joints.auprc), f"{fmt.number(joints.auprc_score)} by the net's own score"),
        ("Calibration error (ECE)", fmt.number(joints.ece), "all joints together"),
        ("Correlation with PCK", fmt.number(joints.correlation_pck),
         f"mean confidence of a person; {fmt.number(joints.correlation_pck_score)} for the mean score"),
        *((("Correlation with OKS", fmt.number(joints.correlation_oks),
            f"the same; {fmt.number(joints.correlation_oks_score)} for the mean score. The box stands for the person's area"),
           ("AP by OKS, poses ranked by it", fmt.number(joints.ap), f"{fmt.number(joints.ap_score)} ranked by the mean score"))
          if joints.correlation_oks is not None else ()),
        ("Fitted on", fmt.count(joints.fitted), "labelled joints of other people"),
    )  # fmt: skip


def joint_table(joints: JointReport) -> Table:
    """Every joint by itself."""
    columns = (Column("Labelled"), Column("Wrong"), Column("AUROC", "of a wrong joint"), Column("By the score"),
               Column("ECE"), Column("Map"))  # fmt: skip
    rows = [
        Row(each.name.replace("_", " "),
            cells(fmt.count(each.measured), share(each.wrong / each.measured) if each.measured else fmt.NONE,
                  fmt.number(each.auroc), fmt.number(each.auroc_score), fmt.number(each.ece),
                  "own" if each.own else "common"))
        for each in joints.joints
    ]  # fmt: skip
    return Table("Joint", columns, tuple(rows), style="narrow")


def blocks(provenance: Mapping[str, Any]) -> dict[str, Facts]:
    """Provenance as facts under headings: what is nested gets its own heading, the rest comes under one."""
    nested = {key: value for key, value in provenance.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in provenance.items() if key not in nested}
    groups = {title(key): value for key, value in nested.items()} | ({"Other": plain} if plain else {})
    return {name: tuple((title(str(key)), text(one)) for key, one in group.items()) for name, group in groups.items()}


def parity_rows(parity: Mapping[str, Any], above: str = "") -> tuple[Row, ...]:
    """Figures of the precision against fp32: plain values, or mappings of value, limit and unit."""
    found: list[Row] = []
    for key, value in parity.items():
        name = f"{above}: {title(key).lower()}" if above else title(key)
        if not isinstance(value, Mapping):
            found.append(Row(name, cells(text(value), fmt.NONE)))
        elif "value" in value:
            unit = f" {value['unit']}" if value.get("unit") else ""
            limit = fmt.NONE if value.get("limit") is None else f"{text(value['limit'])}{unit}"
            found.append(Row(name, cells(f"{text(value['value'])}{unit}", limit)))
        else:
            found += parity_rows(value, name)
    return tuple(found)


def tensor_table(facts: Mapping[str, Any]) -> Table:
    """Inputs, then outputs: type, shape with its axes, unit, meaning."""
    rows = []
    for side in ("inputs", "outputs"):
        for name, tensor in facts[side].items():
            shape = f" {fmt.TIMES} ".join(map(str, tensor["shape"]))
            unit = str(tensor.get("unit") or tensor.get("colour") or fmt.NONE)
            values = cells(code(str(tensor["dtype"])), code(shape), unit, MEANINGS.get(name, ""))
            rows.append(Row(name, values, side.removesuffix("s"), reference=side == "inputs"))
    columns = (Column("Type"), Column("Shape"), Column("Unit"), Column("Meaning"))
    return Table("Name", columns, tuple(rows), style="words tensors stack")


def threshold_text(value: float | None) -> str:
    """All the digits that a threshold has."""
    return fmt.NONE if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def share(value: float | None) -> str:
    """A fraction as whole percent; with a decimal close to all, where 100 % would be untrue."""
    if value is None or not 0.99 < value < 1:
        return fmt.tied(fmt.percent(value))
    return fmt.tied(fmt.percent(value, 1) if value < 0.9995 else "> 99.9 %")


def moment(created: str) -> str:
    """``2026-01-31T12:30:00+00:00`` as ``2026-01-31 12:30 UTC``; anything else as it is."""
    try:
        instant = datetime.fromisoformat(created.replace("Z", "+00:00")).astimezone(timezone.utc)
    except ValueError:
        return created
    return instant.strftime("%Y-%m-%d %H:%M UTC")


def title(key: str) -> str:
    """``train_seconds`` as ``Train seconds``."""
    words = [SHORT.get(word, word) for word in key.replace("_", " ").split()]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]]) if words else key


def figure(value: float) -> str:
    """Three significant digits, or six decimals close to one; without closing zeros."""
    printed = fmt.number(value, 6) if 0.99 < abs(value) < 1 else fmt.significant(value)
    return printed.rstrip("0").rstrip(".") if "." in printed else printed


def text(value: Any) -> str:
    """Any JSON value as people read it."""
    if value is None:
        return fmt.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return fmt.count(value)
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {text(each)}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(text, value))
    return str(value)
