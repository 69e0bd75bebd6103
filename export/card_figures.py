"""The figures of a bundle's card."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from alpose.trainer.measures.joint_calibration import JointReport
from alpose.trainer.methods.catalog import METHODS, Look
from alpose.trainer.pages import figures
from alpose.trainer.pages.kit import Palette

from .quality import HISTOGRAM_BINS, CalibrationReport, ReliabilityBin
from .shift import Applied

BUNDLE, ORACLE, RANDOM, FAILED, FINE = "this bundle", "oracle", "random", "failed", "fine"
BARS = 32
"""Bars of a histogram: pairs of the bins that are stored."""

PALETTE = Palette({
    BUNDLE: METHODS["ll++"].look,
    ORACLE: METHODS["oracle-loss"].look,
    RANDOM: METHODS["random"].look,
    FAILED: METHODS["ll++conv"].look,
    FINE: Look("#2a8cc4", "#6cc3f2"),
})  # fmt: skip
"""What is drawn in which colour."""


def reliability_figure(name: str, bins: Sequence[ReliabilityBin]) -> Markup:
    """What was predicted against what came true, over the number of people in each bin."""
    label = "share of failures against predicted probability"
    with figures.plot(name, PALETTE, label, (5.0, 4.3)) as drawn:
        axes, color = drawn.axes, drawn.colour(BUNDLE)
        place = axes.get_position()
        axes.set_position((place.x0, 0.36, place.width, place.y1 - 0.36))
        counts = drawn.figure.add_axes((place.x0, place.y0, place.width, 0.165))
        counts.patch.set_visible(False)
        axes.plot([0, 1], [0, 1], color=figures.MUTED, linestyle=(0, (4, 3)), linewidth=1)
        points = [(each.mean_probability, each.rate, each.rate_low, each.rate_high) for each in bins if each.count]
        x_B, y_B, low_B, high_B = np.array(points, dtype=np.float64).T
        axes.vlines(x_B, low_B, high_B, color=color, linewidth=1.4)
        axes.plot(x_B, y_B, color=color, linewidth=1.4, marker="o", ms=5.5)
        draw_counts(counts, bins, color)
        for each in (axes, counts):
            each.yaxis.set_label_coords(-0.105, 0.5)
            each.set(xlim=(-0.02, 1.02), xticks=np.linspace(0, 1, 6))
        axes.set_xticklabels([])
        axes.set(ylim=(-0.02, 1.02), ylabel="share that failed")
        counts.set_xlabel("predicted probability of failure")
    return drawn.svg


def draw_counts(axes: Axes, bins: Sequence[ReliabilityBin], color: str) -> None:
    """A bar per bin, with its number of people above."""
    middle_B = [(each.low + each.high) / 2 for each in bins]
    count_B = [each.count for each in bins]
    axes.bar(middle_B, count_B, 0.8 * (bins[0].high - bins[0].low), color=color, alpha=0.35, linewidth=0)
    for middle, count in zip(middle_B, count_B, strict=True):
        axes.annotate(str(count), (middle, count), (0, 2), textcoords="offset points", ha="center", color=figures.INK,
                      size=8.5)  # fmt: skip
    axes.set(ylim=(0, max(count_B) * 1.35), yticks=[], ylabel="people")
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def histogram_figure(name: str, report: CalibrationReport) -> Markup:
    """Failure probability of images that went well, above, and of failures, below, with the thresholds across both."""
    label = "histograms of the failure probability of fine and failed images"
    with figures.plot(name, PALETTE, label, (5.0, 4.3)) as drawn:
        upper = drawn.axes
        place = upper.get_position()
        half = (0.9 - place.y0) / 2
        upper.set_position((place.x0, place.y0 + half + 0.02, place.width, half - 0.02))
        lower = drawn.figure.add_axes((place.x0, place.y0, place.width, half - 0.02))
        lower.patch.set_visible(False)
        for axes, what, counts in ((upper, FINE, report.histogram_fine), (lower, FAILED, report.histogram_failed)):
            count_B = np.reshape(counts, (BARS, HISTOGRAM_BINS // BARS)).sum(axis=1)
            axes.bar(np.arange(BARS) / BARS, count_B, 0.86 / BARS, align="edge", color=drawn.colour(what), linewidth=0)
            axes.set(xlim=(-0.02, 1.02), xticks=np.linspace(0, 1, 6), ylabel=f"{what} images")
            axes.yaxis.set_label_coords(-0.105, 0.5)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.grid(visible=False, axis="x")
        upper.set_xticklabels([])
        lower.set_xlabel("predicted probability of failure")
        draw_thresholds(upper, lower, report)
    return drawn.svg


def draw_thresholds(upper: Axes, lower: Axes, report: CalibrationReport) -> None:
    """A line per threshold through both histograms; names above, side by side where lines lie close."""
    made = sorted((each.threshold, each.catch) for each in report.thresholds if each.threshold is not None)
    taken = -1.0
    for threshold, catch in made:
        for axes in (upper, lower):
            axes.axvline(threshold, color=figures.INK, linewidth=1, linestyle=(0, (2, 2)))
        taken = max(threshold, taken + 0.105)
        arrow = {"arrowstyle": "-", "color": figures.INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        upper.annotate(f"{100 * catch:g} %", (threshold, 1.0), (taken, 1.09), xycoords=("data", "axes fraction"),
                       textcoords=("data", "axes fraction"), ha="center", va="bottom", color=figures.INK, size=9,
                       arrowprops=arrow)  # fmt: skip


def risk_figure(name: str, report: CalibrationReport) -> Markup:
    """Failure rate among the images that are kept, between the best that is possible and no ranking at all."""
    coverage_K, rate = np.array(report.coverage), report.failure_rate
    curves = [
        figures.Curve(RANDOM, coverage_K, np.full(len(coverage_K), rate)),
        figures.Curve(ORACLE, coverage_K, np.maximum(0.0, 1 - (1 - rate) / coverage_K)),
        figures.Curve(BUNDLE, coverage_K, np.array(report.risk)),
    ]
    return figures.lines(name, curves, PALETTE, "share of images kept", "failure rate of those kept")


def joint_figure(name: str, joints: JointReport) -> Markup:
    """Share of joints that were right against their confidence."""
    label = "share of joints that were right against their confidence"
    found = [(x, y) for x, y in zip(joints.predicted, joints.observed, strict=True) if x is not None and y is not None]
    with figures.plot(name, PALETTE, label, (5.0, 3.6)) as drawn:
        drawn.axes.plot([0, 1], [0, 1], color=figures.MUTED, linestyle=(0, (4, 3)), linewidth=1)
        drawn.axes.plot(*zip(*found, strict=True), color=drawn.colour(BUNDLE), linewidth=1.4, marker="o", ms=5.5)
        drawn.axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="share that was right")
    return drawn.svg


def drawings(report: CalibrationReport, previous: Applied | None) -> dict[str, Markup]:
    """The figures by name."""
    found = {
        "reliability": reliability_figure("reliability", report.bins),
        "histogram": histogram_figure("histogram", report),
        "risk": risk_figure("risk", report),
    }
    if report.joints:
        found["joints"] = joint_figure("joints", report.joints)
    return found | ({"before": reliability_figure("before", previous.bins)} if previous else {})
