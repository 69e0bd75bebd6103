"""The figures of a bundle's card, in the style of the benchmark's report: inline SVG whose colours are CSS variables.

Shapes: B bins, K points of a curve, J joints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from alpose.runtime.skeleton import Skeleton
from alpose.trainer.report.figures import INK, MUTED, STYLE, Curve, Palette, blank, lines_figure, to_page
from alpose.trainer.report.methods import LOOKS, Look

from .quality import HISTOGRAM_BINS, CalibrationReport, ReliabilityBin

BUNDLE, ORACLE, RANDOM, FAILED, FINE = "this bundle", "oracle", "random", "failed", "fine"

PALETTE = Palette({
    BUNDLE: LOOKS["ll++"],
    ORACLE: LOOKS["oracle-loss"],
    RANDOM: LOOKS["random"],
    FAILED: LOOKS["ll++conv"],
    FINE: Look("#2a8cc4", "#6cc3f2"),
})  # fmt: skip
"""What is drawn in which colour."""

BARS = 32
"""Bars of a histogram: pairs of the bins that are stored."""

PLACES: Mapping[str, tuple[float, float]] = {
    "head_top": (0, 0), "nose": (0, 13), "eye": (6.5, 4), "ear": (15, 8), "upper_neck": (0, 20), "neck": (0, 24),
    "thorax": (0, 31), "pelvis": (0, 66), "shoulder": (16, 28), "elbow": (25, 46), "wrist": (30, 64), "hip": (11, 66),
    "knee": (12, 92), "ankle": (13, 118),
}  # fmt: skip
"""Where joints lie on a person who faces the reader: right and down from the top of the head; the left side of the body
is on the reader's right."""


def reliability_figure(name: str, bins: Sequence[ReliabilityBin]) -> Markup:
    """What was predicted against what came true, over the number of people in each bin."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = blank(5.0, 4.3)
        place = axes.get_position()
        axes.set_position((place.x0, 0.36, place.width, place.y1 - 0.36))
        counts = figure.add_axes((place.x0, place.y0, place.width, 0.165))
        counts.patch.set_visible(False)
        draw_reliability(axes, bins)
        draw_counts(counts, bins)
        for each in (axes, counts):
            each.yaxis.set_label_coords(-0.105, 0.5)
            each.set_xlim(-0.02, 1.02)
            each.set_xticks(np.linspace(0, 1, 6))
        axes.set_xticklabels([])
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("share that failed")
        counts.set_xlabel("predicted probability of failure")
        return to_page(figure, name, PALETTE, "share of failures against predicted probability")


def draw_reliability(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    """A dot per bin with the interval of its rate, and the line where they ought to lie."""
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    points = [(each.mean_probability, each.rate, each.rate_low, each.rate_high) for each in bins if each.count]
    x_B, y_B, low_B, high_B = np.array(points, dtype=np.float64).T
    color = PALETTE.stand_in(BUNDLE)
    axes.vlines(x_B, low_B, high_B, color=color, linewidth=1.4)
    axes.plot(x_B, y_B, color=color, linewidth=1.4, marker="o", ms=5.5)


def draw_counts(axes: Axes, bins: Sequence[ReliabilityBin]) -> None:
    """A bar per bin, with its number of people above."""
    middle_B = [(each.low + each.high) / 2 for each in bins]
    width = 0.8 * (bins[0].high - bins[0].low)
    count_B = [each.count for each in bins]
    axes.bar(middle_B, count_B, width, color=PALETTE.stand_in(BUNDLE), alpha=0.35, linewidth=0)
    for middle, count in zip(middle_B, count_B, strict=True):
        axes.annotate(str(count), (middle, count), (0, 2), textcoords="offset points", ha="center", color=INK, size=8.5)
    axes.set_ylim(0, max(count_B) * 1.35)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("people")


def histogram_figure(name: str, report: CalibrationReport) -> Markup:
    """Failure probability of images that went well, above, and of failures, below, with the thresholds across both."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, upper = blank(5.0, 4.3)
        place = upper.get_position()
        half = (0.9 - place.y0) / 2
        upper.set_position((place.x0, place.y0 + half + 0.02, place.width, half - 0.02))
        lower = figure.add_axes((place.x0, place.y0, place.width, half - 0.02))
        lower.patch.set_visible(False)
        rows = ((upper, FINE, report.histogram_fine), (lower, FAILED, report.histogram_failed))
        for axes, what, counts in rows:
            count_B = np.reshape(counts, (BARS, HISTOGRAM_BINS // BARS)).sum(axis=1)
            edge_B = np.arange(BARS) / BARS
            axes.bar(edge_B, count_B, 0.86 / BARS, align="edge", color=PALETTE.stand_in(what), linewidth=0)
            axes.set_xlim(-0.02, 1.02)
            axes.set_xticks(np.linspace(0, 1, 6))
            axes.set_ylabel(f"{what} images")
            axes.yaxis.set_label_coords(-0.105, 0.5)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.grid(visible=False, axis="x")
        upper.set_xticklabels([])
        lower.set_xlabel("predicted probability of failure")
        draw_thresholds(upper, lower, report)
        return to_page(figure, name, PALETTE, "histograms of the failure probability of fine and failed images")


def draw_thresholds(upper: Axes, lower: Axes, report: CalibrationReport) -> None:
    """A line per threshold through both histograms; names above, side by side where lines lie close."""
    made = sorted((each.threshold, each.catch) for each in report.thresholds if each.threshold is not None)
    taken = -1.0
    for threshold, catch in made:
        for axes in (upper, lower):
            axes.axvline(threshold, color=INK, linewidth=1, linestyle=(0, (2, 2)))
        at = max(threshold, taken + 0.105)
        taken = at
        arrow = {"arrowstyle": "-", "color": INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        upper.annotate(f"{100 * catch:g} %", (threshold, 1.0), (at, 1.09), xycoords=("data", "axes fraction"),
                       textcoords=("data", "axes fraction"), ha="center", va="bottom", color=INK, size=9,
                       arrowprops=arrow)  # fmt: skip


def risk_figure(name: str, report: CalibrationReport) -> Markup:
    """Failure rate among the images that are kept, between the best that is possible and no ranking at all."""
    coverage_K, rate = np.array(report.coverage), report.failure_rate
    curves = [
        Curve(RANDOM, coverage_K, np.full(len(coverage_K), rate)),
        Curve(ORACLE, coverage_K, np.maximum(0.0, 1 - (1 - rate) / coverage_K)),
        Curve(BUNDLE, coverage_K, np.array(report.risk)),
    ]
    return lines_figure(name, curves, PALETTE, "share of images kept", "failure rate of those kept")


@dataclass(frozen=True, slots=True)
class SkeletonDrawing:
    """A skeleton as numbers for SVG; joint ``j`` lies at ``points[j]``."""

    view_box: str
    points: tuple[tuple[float, float], ...]
    links: tuple[tuple[float, float, float, float], ...]
    standing: bool
    """False: the joints' names are not known, and they stand on a circle."""


def skeleton_drawing(skeleton: Skeleton) -> SkeletonDrawing:
    """The joints on a standing person where all names are known, otherwise on a circle."""
    known = [standing_place(joint) for joint in skeleton.joints]
    places = [place for place in known if place is not None]
    standing = len(places) == len(skeleton)
    if not standing:
        turns = [2 * math.pi * place / len(skeleton) for place in range(len(skeleton))]
        places = [(50 * math.sin(turn), -50 * math.cos(turn)) for turn in turns]
    low_x, low_y = (min(place[axis] for place in places) - 9 for axis in (0, 1))
    width, height = (max(place[axis] for place in places) + 9 - low for axis, low in ((0, low_x), (1, low_y)))
    links = tuple((*places[a], *places[b]) for a, b in skeleton.links)
    return SkeletonDrawing(f"{low_x:g} {low_y:g} {width:g} {height:g}", tuple(places), links, standing)


def standing_place(joint: str) -> tuple[float, float] | None:
    """Where a joint of this name lies; None for a name that is not known."""
    side = -1.0 if joint.startswith("right_") else 1.0
    found = PLACES.get(joint.removeprefix("right_").removeprefix("left_"))
    return None if found is None else (side * found[0], found[1])
