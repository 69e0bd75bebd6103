"""The words and numbers of a bundle's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from alpose.trainer.report import form

from .quality import CalibrationReport
from .shift import Applied
from .thresholds import CONFIDENCE

NO_BREAK = "\N{NO-BREAK SPACE}"

MEANINGS = {
    "frames": "people, cut out by the rule below",
    "keypoints": "x, y of each joint, to a fraction of a pixel",
    "scores": "how sure the net is of each joint; about 1 at its best in training",
    "predicted_loss": "what the loss head says of the image, higher is worse; its scale is its own",
    "failure_probability": "the calibrated probability that the pose failed: the one to hold against a threshold",
    "embedding": "what the image looks like to the net, unit length; for finding similar and new images",
}
"""What each tensor of the graph is."""

EVIDENCE_WORDS = {
    "predicted_loss": "predicted loss (loss head)",
    "entropy": "entropy of the heatmaps",
    "doubt": f"doubt (1 {form.MINUS} mean joint score)",
}

SHORT = {
    "pck": "PCK",
    "auroc": "AUROC",
    "aurc": "AURC",
    "gpu": "GPU",
    "cpu": "CPU",
    "id": "ID",
    "p99": "99th percentile",
}
"""Words that are written otherwise than their key."""


def summary(report: CalibrationReport | None) -> str:
    """The one thing to know."""
    if report is None:
        return (
            "This bundle was exported without labelled data. Its failure probability means nothing yet and it has "
            "no thresholds: calibrate it before a decision hangs on it."
        )
    made = [each for each in report.thresholds if each.threshold is not None]
    if not made:
        reason = report.thresholds[0].reason if report.thresholds else "no threshold was asked for"
        return tied(f"Nothing can be promised yet: {reason}.")
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
        "It judges the pose of one person as a whole, not which joint is wrong, and not whether the right person was "
        "cut out.",
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
        f"says. This one rests on {form.plural(report.measured_failures, 'failure')}.",
        "Neighbouring frames of a video fail together. Over all frames the shares hold on average, but a short clip "
        "can be far from them.",
        f"Only what the definition calls a failure is looked for. {tied(report.definition)} Lesser mistakes are not.",
    ]
    if report.undefined:
        who = "1 person" if report.undefined == 1 else f"{form.count(report.undefined)} people"
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
    return (f" On {worst.data} the calibration error was {form.number(worst.ece)}; chance alone explains up to "
            f"{form.number(worst.ece_by_chance)}.")  # fmt: skip


def threshold_text(value: float | None) -> str:
    """All the digits that a threshold has."""
    return form.NONE if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def share(value: float | None) -> str:
    """A fraction as whole percent; with a decimal close to all, where 100 % would be a lie."""
    if value is None or not 0.99 < value < 1:
        return tied(form.percent(value))
    return tied(f"{form.number(100 * value, 1)} %" if value < 0.9995 else "> 99.9 %")


def tied(words: str) -> str:
    """No line breaks before a percent sign."""
    return words.replace(" %", f"{NO_BREAK}%")


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
    printed = form.number(value, 6) if 0.99 < abs(value) < 1 else form.significant(value)
    return printed.rstrip("0").rstrip(".") if "." in printed else printed


def text(value: Any) -> str:
    """Any JSON value as people read it."""
    if value is None:
        return form.NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return form.count(value)
    if isinstance(value, float):
        return figure(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{str(key).replace('_', ' ')} {text(each)}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(text, value))
    return str(value)
