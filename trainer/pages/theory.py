"""``RUN/theory.html``: the theory of Learning Loss beside one run.

Shapes: N people, Q quantiles, K points of a curve, T steps, D = 2 features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from alpose.runtime.io import write_atomically

from ..methods.catalog import heads_of, looks
from ..theory.mathematics import PAPER_SHAPE, Floats, Gamma, alignment, expected_share, near_probability
from ..theory.theory_run import GAPS, NEARS, Findings, Study, near_share
from . import formatting as fmt
from .figures import INK, MUTED, RULE, Plot, plot
from .kit import Cell, Column, Page, Palette, Row, Table, cells
from .run_folder import REPORT, THEORY, fill_gap, link_or_gap

PALETTE = Palette(looks(heads_of("loss")))
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


def write_theory(run: Path, found: Study) -> Path:
    """Write ``RUN/theory.html``: one file that needs no network. The same files give the same bytes.

    A ``report.html`` beside it that was written before gets a link to it.
    """
    page = write_atomically(run / THEORY, render_theory(found, link_or_gap(run, THEORY)).encode())
    fill_gap(run, REPORT)
    return page


def render_theory(found: Study, report_link: Markup) -> str:
    """The page, with a link to the report."""
    page = Page(
        title=f"alpose theory: {found.run}, seed {found.seed}",
        kicker="the theory of Learning Loss beside a run",
        heading=found.run,
        subheading=f"seed {found.seed} · base model",
        findings=(found.sentence(),),
        warnings=tuple(found.problems),
        palette=PALETTE,
    )
    return page.render(
        "alpose.trainer.pages:theory.html.j2",
        report_link=report_link,
        near=fmt.percent(found.near),
        groups=[group(findings, found) for findings in found.groups],
        align_margin=alignment_figure("alignll", 1.0),
        align_kl=alignment_figure("alignkl", None),
    )


def group(found: Findings, study: Study) -> dict[str, Any]:
    """Tables and figures of one group of people."""
    name = found.people.name
    return {
        "name": name,
        "title": "Labelled people: the pairs that train the heads"
        if name == "labelled"
        else "The pool: what heads judge",
        "facts": group_facts(found),
        "fit_words": fit_words(found),
        "near": near_table(found),
        "gaps": gap_table(found),
        "heads": head_table(found, study) if found.people.predicted else None,
        "margin_heads": tuple(found.margin_heads),
        "heads_by_gap": (*found.kl_heads, *found.margin_heads),
        "histogram": histogram(f"hist{name}", found),
        "quantiles": quantile_figure(f"qq{name}", found),
        "near_curve": near_figure(f"near{name}", found),
        "pull_curve": pull_figure(f"pull{name}", found),
    }


def group_facts(found: Findings) -> tuple[tuple[str, str], ...]:
    """What was measured, as names and values."""
    drawn = fmt.count(found.pairs)
    return (
        ("People", fmt.count(len(found.people.true_N))),
        ("Left out (no label, or loss 0)", fmt.count(found.people.left_out)),
        ("Mean true loss", f"{fmt.significant(found.mean)} ± {fmt.significant(found.sd)}"),
        ("Gamma fit", f"k = {fmt.significant(found.law.shape)}, θ = {fmt.significant(found.law.scale)}"),
        ("KS distance", f"{found.ks:.3f} ({found.ks_of_true_gammas:.3f} for true gammas)"),
        ("Pairs", f"all {drawn}" if found.pairs == found.all_pairs else f"{drawn} of {fmt.count(found.all_pairs)}"),
    )


def fit_words(found: Findings) -> str:
    """Whether the losses are gamma distributed, in a sentence."""
    verdict = (
        "no further from the fit than samples of a true gamma: nothing here contradicts the paper's assumption"
        if found.fits
        else "further from the fit than 95 % of samples of a true gamma: read the fitted values as an approximation, "
        "and the measured ones as the answer"
    )
    return fmt.tied(f"The largest gap between the two distributions is {100 * found.ks:.1f} % of people, {verdict}.")


def near_table(found: Findings) -> Table:
    """Table 1 of the paper, for this run: a column per difference."""
    columns = tuple(Column(fmt.percent(share), fmt.significant(share * found.mean)) for share in NEARS)
    rows = (
        Row(f"the paper's k = {PAPER_SHAPE}", percents(found.near_paper), reference=True),
        Row(f"gamma fit, k = {fmt.significant(found.law.shape)}", percents(found.near_fit)),
        Row("measured, all pairs", percents(found.near_measured)),
        *(Row(name, percents(head.noise_by_near), "of its updates", name) for name, head in found.margin_heads.items()),
    )
    return Table("Differ by at most, of the mean loss", columns, rows)


def gap_table(found: Findings) -> Table:
    """Table 2 of the paper, for this run: a column per difference."""
    columns = tuple(Column(fmt.percent(gap), fmt.significant(gap * found.mean)) for gap in GAPS)
    rows = [
        Row("φ, gamma fit", numbers(found.share_fit)),
        Row("φ, measured", numbers(found.share_measured)),
        *(Row(n, numbers(head.share_by_gap), "mean q of the lower loss", n) for n, head in found.kl_heads.items()),
        *(Row(n, numbers(head.pull_by_gap), "mean |q − p|", n) for n, head in found.kl_heads.items()),
        *(Row(n, numbers(head.pull_by_gap), "mean pull, each update 1", n) for n, head in found.margin_heads.items()),
    ]
    return Table("Differ by, of the mean loss", columns, tuple(rows))


def head_table(found: Findings, study: Study) -> Table:
    """One row per head: what near-equal pairs do to it."""
    near = fmt.percent(near_share(found.people.true_N, study.near * found.mean))
    columns = (
        Column("Pairs that update", hover="Learning Loss: those whose margin is not met."),
        Column("Near-equal pairs", f"of all, within {fmt.percent(study.near)}"),
        Column("of them update"),
        Column("Noise", "near-equal share of all pull", "Of the summed sizes of the factor before θᵢ − θⱼ: for "
               "Learning Loss that is the share of its updates."),
    )  # fmt: skip
    rows = [
        Row(name, cells(fmt.percent(h.updates), near, fmt.percent(h.near_updates), fmt.percent(h.noise)), mark=name)
        for name, h in found.margin_heads.items()
    ]
    rows += [
        Row(name, cells("all", near, "all", fmt.percent(h.noise)), mark=name) for name, h in found.kl_heads.items()
    ]
    return Table("Head", columns, tuple(rows))


def percents(values: Sequence[float | None]) -> tuple[Cell, ...]:
    """A cell each, in percent with one digit."""
    return cells(*(fmt.percent(value, 1) for value in values))


def numbers(values: Sequence[float | None]) -> tuple[Cell, ...]:
    """A cell each, with three digits."""
    return cells(*map(fmt.number, values))


def histogram(name: str, found: Findings) -> Markup:
    """True losses with the fitted density (the paper's Fig. 3)."""
    true_N = found.people.true_N
    low, high = found.law.quantile(np.array([1e-4, 1 - 1e-4]))
    loss_K = np.linspace(min(low, true_N.min()), max(high, true_N.max()), 300)
    with plot(name, PALETTE, "histogram of the true losses with the fitted gamma density") as drawn:
        bins = min(BINS, max(8, len(true_N) // 10))
        drawn.axes.hist(true_N, bins=bins, density=True, color=RULE, edgecolor=MUTED, lw=0.4)
        drawn.axes.plot(loss_K, found.law.density(loss_K), color=drawn.colour(FIT), linewidth=1.9)
        drawn.axes.set(xlabel="true loss", ylabel="density")
    return drawn.svg


def quantile_figure(name: str, found: Findings) -> Markup:
    """Quantiles of the losses against those of the fit; on the diagonal where the fit is right."""
    share_Q = (np.arange(QUANTILES) + 0.5) / QUANTILES
    fit_Q, true_Q = found.law.quantile(share_Q), np.quantile(found.people.true_N, share_Q)
    ends = [float(min(fit_Q[0], true_Q[0])), float(max(fit_Q[-1], true_Q[-1]))]
    with plot(name, PALETTE, "quantiles of the true losses against quantiles of the gamma fit") as drawn:
        drawn.axes.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        drawn.axes.plot(fit_Q, true_Q, color=drawn.colour(FIT), linestyle="none", marker="o", ms=2.6)
        drawn.axes.set(xlabel="quantile of the gamma fit", ylabel="quantile of the losses")
    return drawn.svg


def near_figure(name: str, found: Findings) -> Markup:
    """How likely two losses are near each other, against how near: measured, fitted, and the paper's."""
    share_K = np.linspace(0, 0.6, 31)
    paper = Gamma(PAPER_SHAPE, found.mean / PAPER_SHAPE)
    with plot(name, PALETTE, "share of near-equal pairs against the difference that counts as near") as drawn:
        axes = drawn.axes
        for law, color, dash in ((paper, MUTED, (0, (4, 2))), (found.law, drawn.colour(FIT), "solid")):
            curve_K = [near_probability(share * found.mean, law) for share in share_K.tolist()]
            axes.plot(100 * share_K, curve_K, color=color, linestyle=dash, linewidth=1.7)
        measured_K = [near_share(found.people.true_N, share * found.mean) for share in share_K.tolist()]
        axes.plot(100 * share_K, measured_K, color=INK, linestyle=(0, (1, 1.5)), linewidth=2)
        for head, margin in found.margin_heads.items():
            head_line(drawn, head, NEARS, margin.noise_by_near, linewidth=1.2, linestyle="solid")
        axes.set(xlabel="largest difference, % of the mean loss", ylabel="share", ylim=(0, 1))
    return drawn.svg


def pull_figure(name: str, found: Findings) -> Markup:
    """How hard each head is pulled, against how far apart the losses are; and what the theory says of q = ½."""
    gap_K = np.linspace(0, max(GAPS), 31)
    half_K = [0.5 - expected_share(gap * found.mean, found.law) for gap in gap_K.tolist()]
    with plot(name, PALETTE, "size of the gradient factor against the difference of the losses") as drawn:
        axes = drawn.axes
        axes.plot(100 * gap_K, half_K, color=INK, linewidth=1.7)
        axes.plot([0, 100 * max(GAPS)], [1, 1], color=drawn.colour(MARGIN), linewidth=1.7, linestyle=(0, (4, 2)))
        pulls = {head: values.pull_by_gap for head, values in found.margin_heads.items()}
        pulls |= {head: values.pull_by_gap for head, values in found.kl_heads.items()}
        for head, pull_by_gap in pulls.items():
            head_line(drawn, head, GAPS, pull_by_gap, linewidth=1, linestyle=(0, (1, 1.5)))
        axes.set(xlabel="difference of the losses, % of the mean loss", ylabel="size of the pull", ylim=(0, 1.05))
    return drawn.svg


def head_line(drawn: Plot, head: str, shares: Iterable[float], values: Iterable[float | None], **style: object) -> None:
    """What was measured of a head, where it is known, at shares of the mean loss."""
    known = [(100 * x, y) for x, y in zip(shares, values, strict=True) if y is not None]
    if known:
        drawn.line(head, *zip(*known, strict=True), **style)


def alignment_figure(name: str, margin: float | None) -> Markup:
    """The weights of a head's last layer, step by step, until the pair is explained (the paper's Fig. 2)."""
    method = KL if margin is None else MARGIN
    path_T2 = alignment(FEATURE_I, FEATURE_J, WEIGHT, *ALIGN_LOSSES, margin=margin, rate=ALIGN_RATE, steps=ALIGN_STEPS)
    with plot(name, PALETTE, "weights turning along the difference of the two features", (4.4, 4.4)) as drawn:
        axes, color = drawn.axes, drawn.colour(method)
        for feature_2, words in ((FEATURE_I, "θᵢ, lower loss"), (FEATURE_J, "θⱼ, higher loss")):
            axes.plot(*feature_2, color=INK, marker="o", ms=5)
            label(axes, words, feature_2, (7, -3), INK)
        arrow(axes, FEATURE_J, FEATURE_I, INK, 1.2)
        label(axes, "θᵢ − θⱼ", np.array([1.0, 1.5]), (7, -4), MUTED)
        seen = path_T2[np.r_[True, np.abs(np.diff(path_T2[:, 1])) > 1e-3]]
        drawn.line(method, seen[:, 0], seen[:, 1], linestyle="none", ms=4)
        arrow(axes, np.zeros(2), path_T2[0], MUTED, 1.2)
        arrow(axes, np.zeros(2), path_T2[-1], color, 2.4)
        label(axes, "w at first", path_T2[0], (8, -2), MUTED)
        label(axes, "w at last", path_T2[-1], (8, -10), color)
        axes.set(xlim=(-2.4, 2.6), ylim=(-1.6, 3.4), aspect="equal", xlabel="first feature: the same in both images",
                 ylabel="second feature: tells them apart")  # fmt: skip
    return drawn.svg


def label(axes: Axes, words: str, point_2: Floats, away: tuple[float, float], color: str) -> None:
    """Words beside a point of the plane."""
    axes.annotate(words, at(point_2), away, textcoords="offset points", color=color)


def arrow(axes: Axes, start_2: Floats, end_2: Floats, color: str, width: float) -> None:
    """An arrow between two points of the plane."""
    style = {"arrowstyle": "-|>", "color": color, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", at(end_2), at(start_2), arrowprops=style)


def at(point_2: Floats) -> tuple[float, float]:
    """A point of the plane as matplotlib's annotations want it."""
    return float(point_2[0]), float(point_2[1])
