"""The curves of the report with their bootstrap bands: over seeds, or over people where there is one seed.

Shapes: N seeds, M selected people, K points of a curve, P people with a defined PCK, G groups of equal scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from ..metrics import Failure
from ..results import Row, Scores
from ..statistics import COVERED, bootstrap, is_defined, mean_interval, most_covered
from . import form
from .facts import Facts
from .figures import COVERAGES, Curve, Floats, Palette, lines_figure, risk_curve
from .stored import Stored

OVER_PEOPLE = 500
"""Resamples of a pool: its people are thousands, and the ends of an interval are then known well enough."""

Interval = tuple[float, float] | None
Point = tuple[float, float, Interval]
"""Place on the x axis, value, and interval."""


def selected_curve(facts: Facts, stored: Stored, palette: Palette) -> Markup | None:
    """Selected PCK per stage; None with one stage."""
    if len(facts.stages) < 2:
        return None
    curves = []
    for method in facts.methods:
        points = []
        for stage in facts.stages:
            values = defined(facts.over_seeds(method, stage, "selected_pck"))
            if values:
                one = over_selected(values[0], stored.selected_pck.get((method, stage)))
                points.append((float(stage), mean(values), over_seeds(values) if len(facts.seeds) > 1 else one))
        curves += curve_of(method, points)
    return lines_figure("selected", curves, palette, "stage", "PCK of what was selected", True) if curves else None


def accuracy_curve(facts: Facts, palette: Palette) -> Markup | None:
    """Test PCK against labelled people, from the base model on; None with one stage or without retraining."""
    if len(facts.stages) < 2:
        return None
    found = (curve_of(method, accuracy_points(facts, method)) for method in facts.methods)
    curves = [curve for curves in found for curve in curves if len(curve.x_K) > 1]
    return lines_figure("accuracy", curves, palette, "labelled people", "test PCK") if curves else None


def accuracy_points(facts: Facts, method: str) -> list[Point]:
    """Mean test PCK by mean number of labelled people, from the base model on."""
    points = {}
    for stage in facts.stages:
        rows = [facts.rows[key] for seed in facts.seeds if (key := (method, seed, stage)) in facts.rows]
        if rows and stage == facts.first_stage:
            points[mean_labelled(rows, 0)] = defined([facts.base_pck.get(seed) for seed in facts.seeds])
        if rows:
            points[mean_labelled(rows, 1)] = defined([row.test_pck for row in rows])
    return [(x, mean(values), over_seeds(values)) for x, values in points.items() if values]


def mean_labelled(rows: list[Row], after: int) -> float:
    """Labelled people before (0) or after (1) the stage, mean over seeds."""
    return sum(row.labelled + after * row.selected for row in rows) / len(rows)


def curve_of(method: str, points: Sequence[Point]) -> list[Curve]:
    """A curve through the points, with a band where they have an interval; none without points."""
    if not points:
        return []
    ends = [interval or (np.nan, np.nan) for _, _, interval in points]
    low_K, high_K = np.array(ends).T
    band = (low_K, high_K) if np.isfinite(low_K).any() else None
    return [Curve(method, np.array([x for x, _, _ in points]), np.array([y for _, y, _ in points]), band)]


def risk_figure(facts: Facts, stored: Stored, palette: Palette) -> Markup | None:
    """Risk-coverage curves at the first stage, mean over the seeds that are there; None without scores."""
    curves = []
    for method in facts.methods:
        found = [stored.scores[method, seed] for seed in facts.seeds if (method, seed) in stored.scores]
        drawn = [(scores, *curve) for scores in found if len((curve := risk_curve(scores))[0])]
        if not drawn:
            continue
        # On one grid: pools of two seeds may differ by a few people without a PCK.
        kept_K = np.linspace(max(kept_K[0] for _, kept_K, _ in drawn), 1, COVERAGES)
        risk_NK = np.array([np.interp(kept_K, of_K, risk_K) for _, of_K, risk_K in drawn])
        band = mean_interval(risk_NK) if len(facts.seeds) > 1 else risk_over_people(drawn[0][0], kept_K)
        curves.append(Curve(method, kept_K, risk_NK.mean(axis=0), band))
    if not curves:
        return None
    return lines_figure("risk", curves, palette, "share of images kept", "failure rate of those kept")


def risk_over_people(scores: Scores, kept_K: Floats) -> tuple[Floats, Floats] | None:
    """Bootstrap band (K,) of a risk-coverage curve over the people of its pool; None for fewer than two."""
    failed_N, known_N = Failure().failed(scores.image_pck_N)
    failed_P = failed_N[known_N]
    _, group_P = np.unique(scores.score_N[known_N], return_inverse=True)
    count = len(failed_P)

    def risk(times_P: npt.NDArray[np.int64]) -> Floats:
        # A resample repeats people, who then share a score: failures are spread evenly over each group of equals.
        people_G = np.cumsum(np.bincount(group_P, weights=times_P))
        failures_G = np.cumsum(np.bincount(group_P, weights=times_P * failed_P))
        at_K = np.maximum(kept_K * count, 1)
        risk_K: Floats = np.interp(at_K, np.r_[0, people_G], np.r_[0, failures_G]) / at_K
        return risk_K

    return bootstrap(risk, count, resamples=OVER_PEOPLE)


def over_seeds(values: Sequence[float]) -> Interval:
    """Interval of the mean over seeds; None for one."""
    return only(mean_interval(np.array(values)[:, None]))


def over_selected(value: float, pck_M: Floats | None) -> Interval:
    """Interval of a selected PCK over the people who were selected, from the PCK of each.

    The value counts joints, the people's mean counts people: the two differ by little, and the interval of the second
    is set around the first.
    """
    if pck_M is None or len(known_M := pck_M[np.isfinite(pck_M)]) < 2:
        return None
    shift = value - float(known_M.mean())
    interval = only(mean_interval(known_M[:, None].astype(np.float64), resamples=OVER_PEOPLE))
    return interval and (interval[0] + shift, interval[1] + shift)


def only(band: tuple[Floats, Floats] | None) -> Interval:
    """The interval of a curve of one point."""
    return None if band is None else (float(band[0][0]), float(band[1][0]))


def defined(values: Sequence[float | None]) -> list[float]:
    """What is neither None nor NaN."""
    return [value for value in values if is_defined(value)]


def mean(values: Sequence[float]) -> float:
    """Of at least one."""
    return float(np.mean(values))


def band_words(facts: Facts) -> str:
    """What the bands of the curves over the stages are; or why there is none."""
    seeds = len(facts.seeds)
    if seeds > 1:
        return over_seeds_words(seeds)
    return (
        f"One seed. Bands of the selected PCK are {form.percent(COVERED)} bootstrap intervals over the people who were "
        "selected: how far the value hangs on who they are, and not how far another training would move it. The test "
        "PCK is one number per training, and one seed gives it no interval."
    )


def risk_words(facts: Facts) -> str:
    """What the bands of the risk-coverage curves are."""
    seeds = len(facts.seeds)
    if seeds > 1:
        return f"Mean over the seeds. {over_seeds_words(seeds)}"
    return (
        f"Bands: {form.percent(COVERED)} bootstrap interval over the people of the pool. They are for one training; "
        "another seed may lie outside."
    )


def over_seeds_words(seeds: int) -> str:
    """What an interval over so many seeds can hold."""
    words = f"Bands: {form.percent(COVERED)} bootstrap interval of the mean over {form.plural(seeds, 'seed')}."
    if most_covered(seeds) >= COVERED:
        return words
    # Rounded down: it is the most.
    most = int(100 * most_covered(seeds))
    few = f"{seeds} values hold the true mean between them {most} % of the time at best: these bands are too narrow."
    return f"{words} {few}"
