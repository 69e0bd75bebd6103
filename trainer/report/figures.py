"""Figures as inline SVG: matplotlib draws, text stays text, and colours become CSS variables of the page.

matplotlib knows no ``var(--ink)``, so each colour is drawn as a stand-in hex value and replaced afterwards.
One drawing then serves the light and the dark page.

Shapes: N people of the pool, M selected people, K points of a curve, P finite points.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import ListedColormap, LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from ..metrics import Failure, risk_coverage
from ..results import Scores
from .methods import Look

Floats = npt.NDArray[np.floating]

INK, MUTED, RULE, PAPER = "#fd0001", "#fd0002", "#fd0003", "#fd0004"
STAND_INS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
COVERAGES = 100
"""Points of a risk-coverage curve."""
SHADES = 6
"""Steps of density in a hexbin."""
LEFT_IN, BOTTOM_IN = 0.58, 0.5
"""Room for labels; the same in all figures, so that their axes line up."""

STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "font.size": 10, "axes.labelcolor": INK},
    **{"axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.7},
    **{f"{axis}tick.{part}": MUTED for axis in "xy" for part in ("color", "labelcolor")},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
}


@dataclass(frozen=True, slots=True)
class Curve:
    """One method's line."""

    method: str
    x_K: Floats
    y_K: Floats
    band: tuple[Floats, Floats] | None = None
    """Lower and upper ends (K,); NaN where a point has no interval."""


@dataclass(frozen=True, slots=True)
class Palette:
    """How each method is drawn, and by which CSS variable."""

    looks: dict[str, Look]

    def place(self, method: str) -> int:
        """The number of the method's CSS variable, ``--m0`` ..."""
        return list(self.looks).index(method)

    def stand_in(self, method: str) -> str:
        """The hex value that stands for the method's colour."""
        return f"#fe{self.place(method):02x}01"

    def stand_ins(self) -> dict[str, str]:
        """Every hex value that :func:`to_page` replaces."""
        return STAND_INS | {self.stand_in(method): f"var(--m{self.place(method)})" for method in self.looks}


def lines_figure(
    name: str, curves: Sequence[Curve], palette: Palette, x_label: str, y_label: str, whole_x: bool = False
) -> Markup:
    """Lines with a marker per point and bands, the lighter the more there are; dense curves go without markers."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = blank(5.0, 3.5)
        for curve in curves:
            look, color = palette.looks[curve.method], palette.stand_in(curve.method)
            marker = look.marker if len(curve.x_K) < 20 else ""
            dash = (0, look.dash) if look.dash else "solid"
            axes.plot(curve.x_K, curve.y_K, color=color, linestyle=dash, linewidth=1.7, marker=marker, ms=4.5)
            if curve.band is not None:
                axes.fill_between(curve.x_K, *curve.band, color=color, alpha=min(0.13, 0.6 / len(curves)), linewidth=0)
        if whole_x:
            axes.set_xticks(sorted({float(x) for curve in curves for x in curve.x_K}))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return to_page(figure, name, palette, f"{y_label} against {x_label}")


def scatter_figure(name: str, method: str, scores: Scores, palette: Palette) -> Markup:
    """Score against true loss (the paper's Fig. 5): the pool as hexagons, what was selected as dots."""
    finite_N = np.isfinite(scores.score_N) & np.isfinite(scores.true_loss_N)
    chosen_M = scores.selected_M[finite_N[scores.selected_M]]
    with mpl.rc_context(STYLE | {"svg.hashsalt": name, "path.simplify": False}):
        figure, axes = blank(3.5, 3.0)
        color = palette.stand_in(method)
        shades = ListedColormap([to_rgba(color, opacity) for opacity in np.linspace(0.18, 0.9, SHADES)])
        x_P, y_P = scores.score_N[finite_N], scores.true_loss_N[finite_N]
        axes.hexbin(x_P, y_P, gridsize=(34, 20), mincnt=1, cmap=shades, norm=LogNorm(1), linewidths=0.1)
        dots(axes, scores.score_N[chosen_M], scores.true_loss_N[chosen_M])
        axes.set_xlabel("score")
        axes.set_ylabel("true loss")
        return to_page(figure, name, palette, f"true loss against the score of {method}")


def dots(axes: Axes, x_P: Floats, y_P: Floats) -> None:
    """All points as one path of strokes without length, whose round ends are the dots: small in the file."""
    if len(x_P) == 0:
        return
    points_P2 = np.column_stack([x_P, y_P]).astype(np.float64)
    codes = np.tile([Outline.MOVETO, Outline.LINETO], len(points_P2))
    outline = Outline(np.repeat(points_P2, 2, axis=0), codes)
    axes.add_patch(PathPatch(outline, fill=False, edgecolor=INK, linewidth=2.2, capstyle="round"))


def blank(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """An empty figure that no window knows of."""
    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    room = {"left": LEFT_IN / width_in, "bottom": BOTTOM_IN / height_in, "right": 0.985, "top": 0.97}
    axes = figure.subplots(gridspec_kw=room)
    axes.patch.set_visible(False)
    return figure, axes


def to_page(figure: Figure, name: str, palette: Palette, label: str) -> Markup:
    """The SVG without what a page has no use for: prolog, namespaces, metadata, global style, long digits."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"| version="[\d.]+"', "", svg)
    svg = re.sub(r'\b(d|x|y|points|transform)="[^"]*"', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[0]), svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for stand_in, variable in palette.stand_ins().items():
        svg = svg.replace(stand_in, variable)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(label)}"', 1))


def risk_curve(scores: Scores) -> tuple[Floats, Floats]:
    """Share of images kept, and the failure rate among them, the highest scores dropped first.

    Images whose PCK is undefined are left out. At most ``COVERAGES`` points, empty where nothing is defined.
    """
    failed_N, known_N = Failure().failed(scores.image_pck_N)
    P = int(known_N.sum())
    if P == 0:
        return np.empty(0), np.empty(0)
    risk_P = risk_coverage(scores.score_N[known_N], failed_N[known_N])
    kept_K = np.unique(np.linspace(1, P, COVERAGES).round().astype(int))
    return kept_K / P, risk_P[kept_K - 1]
