"""``alpose-train theory``: the papers' tables, and how many of a run's Learning-Loss updates are noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .theory_run import Findings, Study


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--seed", type=click.IntRange(0), help="Which base model of the run. [default: the first]")
@click.option(
    "--near",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Two losses are near-equal that differ by at most this share of the mean loss.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of a table.")
def theory(run: Path | None, seed: int | None, near: float, as_json: bool) -> None:
    """Tables 1 and 2 of the LearningLoss++ paper; with RUN, the same of its own losses, fitted and measured.

    With RUN it also writes RUN/theory.html: is the loss gamma distributed, how often is a pair near-equal, how many of
    this run's Learning-Loss updates are noise.

    \b
    alpose-train theory
    alpose-train theory runs/lsp
    alpose-train theory runs/lsp --near 0.2 --json
    """
    if run is None:
        tables = paper_tables()
        click.echo(json.dumps(tables, indent=1) if as_json else "\n".join(paper_lines(tables)))
        return
    from .report.theory import write_theory
    from .theory_run import study

    found = study(run, seed=seed, near=near)
    page = write_theory(run, found)
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(study_lines(found)))
    if not as_json:
        click.echo(f"page: {page}")


def paper_tables() -> dict[str, Any]:
    """Both tables, as printed and as computed at the two θ."""
    from .theory import (
        PAPER_SCALE,
        PAPER_SHAPE,
        TABLE_1,
        TABLE_2,
        TABLE_SCALE,
        expected_share_closed,
        near_probability_closed,
    )

    def rows(printed: dict[float, float], closed: Any) -> list[dict[str, float]]:
        return [{"delta": delta, "printed": value, f"theta={TABLE_SCALE}": closed(delta, PAPER_SHAPE, TABLE_SCALE),
                 f"theta={PAPER_SCALE}": closed(delta, PAPER_SHAPE, PAPER_SCALE)}
                for delta, value in printed.items()]  # fmt: skip

    return {"k": PAPER_SHAPE, "table_1": rows(TABLE_1, near_probability_closed),
            "table_2": rows(TABLE_2, expected_share_closed)}  # fmt: skip


def paper_lines(tables: dict[str, Any]) -> list[str]:
    """For people: every value beside the printed one, and how many agree in the printed digits."""
    lines = []
    titles = {
        "table_1": ("Table 1: probability of two losses within δ of each other", 3),
        "table_2": ("Table 2: φ(δ), the expected gradient of LearningLoss++ being q − φ", 2),
    }
    for name, (title, digits) in titles.items():
        rows = tables[name]
        thetas = [key for key in rows[0] if key.startswith("theta=")]
        body = [[f"{row['delta']:g}", f"{row['printed']:.{digits}f}", *(f"{row[theta]:.5f}" for theta in thetas)]
                for row in rows]  # fmt: skip
        agree = [sum(round(row[theta], digits) == row["printed"] for row in rows) for theta in thetas]
        lines += [title, *aligned([["δ", "printed", *(theta.replace("theta=", "θ = ") for theta in thetas)], *body,
                                   ["agree", "", *(f"{count} of {len(rows)}" for count in agree)]]), ""]  # fmt: skip
    return [*lines, f"Gamma with k = {tables['k']}, in closed form. The paper prints θ = 0.066; its digits are those of "
            "about 0.0666, cut off."]  # fmt: skip


def study_lines(found: Study) -> list[str]:
    """For people: the answer, and a table per group."""
    lines = [*found.problems, found.sentence(), ""]
    for group in found.groups:
        lines += [*group_lines(group), ""]
    return lines


def group_lines(found: Findings) -> list[str]:
    """The fit, and both tables, of one group."""
    from .theory_run import GAPS, NEARS

    law = found.law
    verdict = "as a true gamma's" if found.fits else f"a true gamma's stays below {found.ks_of_true_gammas:.3f}"
    left_out = f", {found.people.left_out} left out" if found.people.left_out else ""
    pairs = (
        f"{found.pairs:,} pairs" if found.pairs == found.all_pairs else f"{found.pairs:,} of {found.all_pairs:,} pairs"
    )
    return [
        f"{found.people.name}: {len(found.people.true_N):,} people{left_out}, {pairs}; true loss {found.mean:.4g} ± {found.sd:.3g}; "
        f"gamma fit k = {law.shape:.3g}, θ = {law.scale:.3g}; KS distance {found.ks:.3f} ({verdict})",
        *aligned([
            ["differ by at most, of the mean", *(f"{share:.0%}" for share in NEARS)],
            ["  pairs, the paper's k = 4", *percents(found.near_paper)],
            ["  pairs, gamma fit", *percents(found.near_fit)],
            ["  pairs, measured", *percents(found.near_measured)],
            *([f"  updates of {name}", *percents(head.noise_by_near)] for name, head in found.margin_heads.items()),
        ]),
        *aligned([
            ["differ by, of the mean", *(f"{gap:.0%}" for gap in GAPS)],
            ["  φ, gamma fit", *numbers(found.share_fit)],
            ["  φ, measured", *numbers(found.share_measured)],
            *([f"  q of {name}", *numbers(head.share_by_gap)] for name, head in found.kl_heads.items()),
            *([f"  |q − p| of {name}", *numbers(head.pull_by_gap)] for name, head in found.kl_heads.items()),
            *([f"  pull of {name}", *numbers(head.pull_by_gap)] for name, head in found.margin_heads.items()),
        ]),
    ]  # fmt: skip


def percents(values: Sequence[float | None]) -> list[str]:
    """One digit after the point, or a dash."""
    return ["—" if value is None else f"{value:.1%}" for value in values]


def numbers(values: Sequence[float | None]) -> list[str]:
    """Three digits after the point, or a dash."""
    return ["—" if value is None else f"{value:.3f}" for value in values]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns line up: the first from the left, the others from the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
