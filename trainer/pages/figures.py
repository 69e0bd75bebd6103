"""Figures as inline SVG: matplotlib draws, text stays text, and colours become CSS variables of the page.

matplotlib knows no ``var(--ink)``, so each colour is drawn as a placeholder hex value and replaced afterwards. One
drawing then serves the light and the dark page.

Shapes: K points of a curve, P points of a scatter.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from ..methods.catalog import Look
from .kit import Palette

Floats = npt.NDArray[np.floating]

INK, MUTED, RULE, PAPER = "#fd0001", "#fd0002", "#fd0003", "#fd0004"
PLACEHOLDERS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
LEFT_IN, BOTTOM_IN = 0.58, 0.5
"""Room for labels; the same in all figures, so that their axes line up."""

STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "font.size": 10, "axes.labelcolor": INK},
    **{"axes.edgecolor": MUTED, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.7},
    **{f"{axis}tick.{part}": MUTED for axis in "xy" for part in ("color", "labelcolor")},
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
}


@dataclass(slots=True)
class Plot:
    """A figure while it is drawn; ``svg`` is there after the ``with`` block of :func:`plot`."""

    figure: Figure
    axes: Axes
    palette: Palette
    svg: Markup = field(default_factory=Markup)

    def colour(self, name: str) -> str:
        """The placeholder for the colour of a name of the palette."""
        return _placeholder(self.palette, name)

    def line(self, name: str, x: Any, y: Any, **style: Any) -> None:
        """A line as its look has it; the style overrides the look."""
        look: Look = self.palette.looks[name]
        dash = (0, look.dash) if look.dash else "solid"
        self.axes.plot(
            x, y, **{"color": self.colour(name), "linestyle": dash, "marker": look.marker, "ms": 4.5} | style
        )


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a figure."""

    name: str
    """Of the palette."""
    x_K: Floats
    y_K: Floats
    band: tuple[Floats, Floats] | None = None
    """Lower and upper ends (K,); NaN where a point has no interval."""


@contextmanager
def plot(
    name: str, palette: Palette, label: str, size: tuple[float, float] = (5.0, 3.5), **style: Any
) -> Iterator[Plot]:
    """Draw a figure that no window knows of.

    Args:
        name: distinct on its page: ids within the drawing begin with it.
        palette: the colours that it may use.
        label: says what is drawn to those who do not see it.
        size: width and height in inches.
        style: settings of matplotlib, a dot written as two underscores.
    """
    settings = {key.replace("__", "."): value for key, value in style.items()}
    with mpl.rc_context(STYLE | {"svg.hashsalt": name} | settings):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        room = {"left": LEFT_IN / size[0], "bottom": BOTTOM_IN / size[1], "right": 0.985, "top": 0.97}
        axes = figure.subplots(gridspec_kw=room)
        axes.patch.set_visible(False)
        drawn = Plot(figure, axes, palette)
        yield drawn
        drawn.svg = _to_svg(figure, name, palette, label)


def lines(
    name: str, curves: Sequence[Curve], palette: Palette, x_label: str, y_label: str, whole_x: bool = False
) -> Markup:
    """Lines with a marker per point and bands, the lighter the more there are; dense curves go without markers."""
    with plot(name, palette, f"{y_label} against {x_label}") as drawn:
        axes = drawn.axes
        for curve in curves:
            plain = {} if len(curve.x_K) < 20 else {"marker": ""}
            drawn.line(curve.name, curve.x_K, curve.y_K, linewidth=1.7, **plain)
            if curve.band is not None:
                opacity = min(0.13, 0.6 / len(curves))
                axes.fill_between(curve.x_K, *curve.band, color=drawn.colour(curve.name), alpha=opacity, linewidth=0)
        if whole_x:
            axes.set_xticks(sorted({float(x) for curve in curves for x in curve.x_K}))
        axes.set(xlabel=x_label, ylabel=y_label)
    return drawn.svg


def dots(axes: Axes, x_P: Floats, y_P: Floats) -> None:
    """All points as one path of strokes without length, whose round ends are the dots: small in the file."""
    if len(x_P) == 0:
        return
    points_P2 = np.column_stack([x_P, y_P]).astype(np.float64)
    codes = np.tile([Outline.MOVETO, Outline.LINETO], len(points_P2))
    outline = Outline(np.repeat(points_P2, 2, axis=0), codes)
    axes.add_patch(PathPatch(outline, fill=False, edgecolor=INK, linewidth=2.2, capstyle="round"))


def _placeholder(palette: Palette, name: str) -> str:
    return f"#fe{list(palette.looks).index(name):02x}01"


def _to_svg(figure: Figure, name: str, palette: Palette, label: str) -> Markup:
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
    colours = PLACEHOLDERS | {_placeholder(palette, each): f"var({palette.variable(each)})" for each in palette.looks}
    for placeholder, variable in colours.items():
        svg = svg.replace(placeholder, variable)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(label)}"', 1))
