"""``RUN/theory.html``: the theory of Learning Loss beside one run, in the form of the report.

Shapes: N people, Q quantiles, K points of a curve, T steps, D = 2 features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from alpose.runtime.io import write_atomically

from ..models.heads import HEADS
from ..theory import PAPER_SHAPE, Floats, Gamma, alignment, expected_share, near_probability
from ..theory_run import GAPS, NEARS, Findings, Study, near_share
from . import form
from .figures import INK, MUTED, RULE, STYLE, Palette, blank, to_page
from .links import REPORT, THEORY, complete, link_or_place
from .methods import looks
from .table import Cell, Head, Line, Table
from .write import beside

PALETTE = Palette(looks(HEADS))
FIT, MARGIN, KL = "ll++", "ll", "ll++"
"""Whose colours the fit, Learning Loss and LearningLoss++ are drawn in, where no single head is meant."""
BINS = 48
QUANTILES = 199

FEATURE_I, FEATURE_J = np.array([1.0, 2.0]), np.array([1.0, 1.0])
WEIGHT = np.array([-1.5, 3.0])
"""The paper's example without its third component. Its w is [0, 3, 0]: here it also has a part along the feature that
both images share, which no step changes."""
ALIGN_RATE, ALIGN_STEPS = 1.0, 24
ALIGN_LOSSES = 1.0, 3.0


@dataclass(frozen=True, slots=True)
class Group:
    """The part of the page about one group of people."""

    name: str
    title: str
    facts: tuple[tuple[str, str], ...]
    fit_words: str
    near: Table
    gaps: Table
    heads: Table | None
    histogram: Markup
    quantiles: Markup
    near_curve: Markup
    pull_curve: Markup


def write_theory(run: Path, found: Study) -> Path:
    """Write ``RUN/theory.html``: one file that needs no network. The same files give the same bytes.

    A ``report.html`` beside it that was written before gets a link to it.
    """
    page = write_atomically(run / THEORY, render_theory(found, link_or_place(run, THEORY)).encode())
    complete(run, REPORT)
    return page


def render_theory(found: Study, other: Markup) -> str:
    """The page, with a link to the report."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page: str = environment.from_string(beside("theory.html.j2")).render(
        css=Markup(beside("report.css")),
        palette=PALETTE,
        study=found,
        other=other,
        near=form.percent(found.near),
        groups=[group(findings, found) for findings in found.groups],
        align_margin=alignment_figure("alignll", 1.0),
        align_kl=alignment_figure("alignkl", None),
    )
    return page


def group(found: Findings, study: Study) -> Group:
    """Tables and figures of one group."""
    name = found.people.name
    return Group(
        name=name,
        title="Labelled people: the pairs that train the heads" if name == "labelled" else "The pool: what heads judge",
        facts=group_facts(found),
        fit_words=fit_words(found),
        near=near_table(found),
        gaps=gap_table(found),
        heads=head_table(found, study) if found.people.predicted else None,
        histogram=histogram(f"hist{name}", found),
        quantiles=quantile_figure(f"qq{name}", found),
        near_curve=near_figure(f"near{name}", found),
        pull_curve=pull_figure(f"pull{name}", found),
    )


def group_facts(found: Findings) -> tuple[tuple[str, str], ...]:
    """What was measured, as pairs of a name and a value."""
    return (
        ("People", form.count(len(found.people.true_N))),
        ("Left out (no label, or loss 0)", form.count(found.people.left_out)),
        ("Mean true loss", f"{form.significant(found.mean)} ± {form.significant(found.sd)}"),
        ("Gamma fit", f"k = {form.significant(found.law.shape)}, θ = {form.significant(found.law.scale)}"),
        ("KS distance", f"{found.ks:.3f} ({found.ks_of_true_gammas:.3f} for true gammas)"),
        ("Pairs", pairs_words(found)),
    )


def pairs_words(found: Findings) -> str:
    """How many pairs were looked at."""
    drawn = form.count(found.pairs)
    return f"all {drawn}" if found.pairs == found.all_pairs else f"{drawn} of {form.count(found.all_pairs)}"


def fit_words(found: Findings) -> str:
    """Whether the losses are gamma distributed, in a sentence."""
    verdict = (
        "no further from the fit than samples of a true gamma: nothing here speaks against the paper's assumption"
        if found.fits
        else "further from the fit than 95\N{NO-BREAK SPACE}% of samples of a true gamma: read the fitted values as an approximation, "
        "and the measured ones as the answer"
    )
    return f"The largest gap between the two distributions is {100 * found.ks:.1f}\N{NO-BREAK SPACE}% of people, {verdict}."


def near_table(found: Findings) -> Table:
    """Table 1 of the paper, for this run: a column per difference."""
    heads = tuple(Head(form.percent(share), form.significant(share * found.mean)) for share in NEARS)
    lines = [
        Line(None, f"the paper's k = {PAPER_SHAPE}", percents(found.near_paper), reference=True),
        Line(None, f"gamma fit, k = {form.significant(found.law.shape)}", percents(found.near_fit)),
        Line(None, "measured, all pairs", percents(found.near_measured)),
        *(Line(name, name, percents(head.noise_by_near), small="of its updates")
          for name, head in found.margin_heads.items()),
    ]  # fmt: skip
    return Table("Differ by at most, of the mean loss", heads, tuple(lines))


def gap_table(found: Findings) -> Table:
    """Table 2 of the paper, for this run: a column per difference."""
    heads = tuple(Head(form.percent(gap), form.significant(gap * found.mean)) for gap in GAPS)
    lines = [
        Line(None, "φ, gamma fit", numbers(found.share_fit)),
        Line(None, "φ, measured", numbers(found.share_measured)),
        *(Line(name, name, numbers(head.share_by_gap), small="mean q of the lower loss")
          for name, head in found.kl_heads.items()),
        *(Line(name, name, numbers(head.pull_by_gap), small="mean |q − p|") for name, head in found.kl_heads.items()),
        *(Line(name, name, numbers(head.pull_by_gap), small="mean pull, each update 1")
          for name, head in found.margin_heads.items()),
    ]  # fmt: skip
    return Table("Differ by, of the mean loss", heads, tuple(lines))


def head_table(found: Findings, study: Study) -> Table:
    """One line per head: what near-equal pairs do to it."""
    near = near_share(found.people.true_N, study.near * found.mean)
    heads = (
        Head("Pairs that update", hover="Learning Loss: those whose margin is not met."),
        Head("Near-equal pairs", f"of all, within {form.percent(study.near)}"),
        Head("of them update"),
        Head("Noise", "near-equal share of all pull", "Of the summed sizes of the factor before θᵢ − θⱼ: for "
             "Learning Loss that is the share of its updates."),
    )  # fmt: skip
    lines = [
        *(Line(name, name, (Cell(form.percent(head.updates)), Cell(form.percent(near)),
                            Cell(form.percent(head.near_updates)), Cell(form.percent(head.noise))))
          for name, head in found.margin_heads.items()),
        *(Line(name, name, (Cell("all"), Cell(form.percent(near)), Cell("all"), Cell(form.percent(head.noise))))
          for name, head in found.kl_heads.items()),
    ]  # fmt: skip
    return Table("Head", heads, tuple(lines))


def percents(values: Sequence[float | None]) -> tuple[Cell, ...]:
    """A cell each, in percent with one digit."""
    return tuple(Cell(form.NONE if value is None else f"{form.number(100 * value, 1)} %") for value in values)


def numbers(values: Sequence[float | None]) -> tuple[Cell, ...]:
    """A cell each, with three digits."""
    return tuple(Cell(form.number(value)) for value in values)


def histogram(name: str, found: Findings) -> Markup:
    """True losses with the fitted density (the paper's Fig. 3)."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = blank(5.0, 3.5)
        true_N = found.people.true_N
        axes.hist(true_N, bins=min(BINS, max(8, len(true_N) // 10)), density=True, color=RULE, edgecolor=MUTED, lw=0.4)
        low, high = found.law.quantile(np.array([1e-4, 1 - 1e-4]))
        loss_K = np.linspace(min(low, true_N.min()), max(high, true_N.max()), 300)
        axes.plot(loss_K, found.law.density(loss_K), color=PALETTE.stand_in(FIT), linewidth=1.9)
        axes.set_xlabel("true loss")
        axes.set_ylabel("density")
        return to_page(figure, name, PALETTE, "histogram of the true losses with the fitted gamma density")


def quantile_figure(name: str, found: Findings) -> Markup:
    """Quantiles of the losses against those of the fit; on the diagonal where the fit is right."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = blank(5.0, 3.5)
        share_Q = (np.arange(QUANTILES) + 0.5) / QUANTILES
        fit_Q, true_Q = found.law.quantile(share_Q), np.quantile(found.people.true_N, share_Q)
        top = float(max(fit_Q[-1], true_Q[-1]))
        low = float(min(fit_Q[0], true_Q[0]))
        axes.plot([low, top], [low, top], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        axes.plot(fit_Q, true_Q, color=PALETTE.stand_in(FIT), linestyle="none", marker="o", ms=2.6)
        axes.set_xlabel("quantile of the gamma fit")
        axes.set_ylabel("quantile of the losses")
        return to_page(figure, name, PALETTE, "quantiles of the true losses against quantiles of the gamma fit")


def near_figure(name: str, found: Findings) -> Markup:
    """How likely two losses are near each other, against how near: measured, fitted, and the paper's."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = blank(5.0, 3.5)
        share_K = np.linspace(0, 0.6, 31)
        paper = Gamma(PAPER_SHAPE, found.mean / PAPER_SHAPE)
        for law, color, dash in ((paper, MUTED, (0, (4, 2))), (found.law, PALETTE.stand_in(FIT), "solid")):
            curve_K = [near_probability(share * found.mean, law) for share in share_K.tolist()]
            axes.plot(100 * share_K, curve_K, color=color, linestyle=dash, linewidth=1.7)
        measured_K = [near_share(found.people.true_N, share * found.mean) for share in share_K.tolist()]
        axes.plot(100 * share_K, measured_K, color=INK, linestyle=(0, (1, 1.5)), linewidth=2)
        for head, values in found.margin_heads.items():
            known = [(100 * x, y) for x, y in zip(NEARS, values.noise_by_near, strict=True) if y is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=PALETTE.stand_in(head), marker=PALETTE.looks[head].marker,
                          ms=4.5, linewidth=1.2)  # fmt: skip
        axes.set_xlabel("largest difference, % of the mean loss")
        axes.set_ylabel("share")
        axes.set_ylim(0, 1)
        return to_page(figure, name, PALETTE, "share of near-equal pairs against the difference that counts as near")


def pull_figure(name: str, found: Findings) -> Markup:
    """How hard each head is pulled, against how far apart the losses are; and what the theory says of q = ½."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = blank(5.0, 3.5)
        gap_K = np.linspace(0, max(GAPS), 31)
        half_K = [0.5 - expected_share(gap * found.mean, found.law) for gap in gap_K.tolist()]
        axes.plot(100 * gap_K, half_K, color=INK, linewidth=1.7)
        axes.plot([0, 100 * max(GAPS)], [1, 1], color=PALETTE.stand_in(MARGIN), linewidth=1.7, linestyle=(0, (4, 2)))
        pulls = {name: head.pull_by_gap for name, head in found.margin_heads.items()}
        pulls |= {name: head.pull_by_gap for name, head in found.kl_heads.items()}
        for head, pull_by_gap in pulls.items():
            known = [(100 * x, y) for x, y in zip(GAPS, pull_by_gap, strict=True) if y is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=PALETTE.stand_in(head), marker=PALETTE.looks[head].marker,
                          ms=4.5, linewidth=1, linestyle=(0, (1, 1.5)))  # fmt: skip
        axes.set_xlabel("difference of the losses, % of the mean loss")
        axes.set_ylabel("size of the pull")
        axes.set_ylim(0, 1.05)
        return to_page(figure, name, PALETTE, "size of the gradient factor against the difference of the losses")


def alignment_figure(name: str, margin: float | None) -> Markup:
    """The weights of a head's last layer, step by step, until the pair is explained (the paper's Fig. 2)."""
    method = KL if margin is None else MARGIN
    path_T2 = alignment(FEATURE_I, FEATURE_J, WEIGHT, *ALIGN_LOSSES, margin=margin, rate=ALIGN_RATE, steps=ALIGN_STEPS)
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure, axes = blank(4.4, 4.4)
        for feature_2, label in ((FEATURE_I, "θᵢ, lower loss"), (FEATURE_J, "θⱼ, higher loss")):
            axes.plot(*feature_2, color=INK, marker="o", ms=5)
            axes.annotate(label, at(feature_2), (7, -3), textcoords="offset points", color=INK)
        arrow(axes, FEATURE_J, FEATURE_I, INK, 1.2)
        axes.annotate("θᵢ − θⱼ", (1.0, 1.5), (7, -4), textcoords="offset points", color=MUTED)
        color = PALETTE.stand_in(method)
        seen = path_T2[np.r_[True, np.abs(np.diff(path_T2[:, 1])) > 1e-3]]
        axes.plot(seen[:, 0], seen[:, 1], color=color, linestyle="none", marker=PALETTE.looks[method].marker, ms=4)
        arrow(axes, np.zeros(2), path_T2[0], MUTED, 1.2)
        arrow(axes, np.zeros(2), path_T2[-1], color, 2.4)
        axes.annotate("w at first", at(path_T2[0]), (8, -2), textcoords="offset points", color=MUTED)
        axes.annotate("w at last", at(path_T2[-1]), (8, -10), textcoords="offset points", color=color)
        axes.set_xlim(-2.4, 2.6)
        axes.set_ylim(-1.6, 3.4)
        axes.set_aspect("equal")
        axes.set_xlabel("first feature: the same in both images")
        axes.set_ylabel("second feature: tells them apart")
        return to_page(figure, name, PALETTE, "weights turning along the difference of the two features")


def arrow(axes: Axes, start_2: Floats, end_2: Floats, color: str, width: float) -> None:
    """An arrow between two points of the plane."""
    style = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", at(end_2), at(start_2), arrowprops=style)


def at(point_2: Floats) -> tuple[float, float]:
    """A point of the plane as matplotlib's annotations want it."""
    return float(point_2[0]), float(point_2[1])
