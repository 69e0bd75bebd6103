"""The figures of the cycles report, with bootstrap bands: over seeds, or over people where there is one seed.

Shapes: N people of the pool, M selected people, K points of a curve, P people with a defined PCK, G groups of equal scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.colors import ListedColormap, LogNorm, to_rgba

from ..cycles.results import Scores
from ..measures.metrics import Failure, risk_coverage
from ..measures.statistics import COVERED, bootstrap, is_defined, mean_interval, most_covered
from . import formatting as fmt
from .figures import Curve, Floats, dots, lines, plot
from .kit import Palette
from .run_folder import RunInfo, StageFiles

OVER_PEOPLE = 500
"""Resamples of a pool: its people are thousands, and the ends of an interval are then known well enough."""
COVERAGES = 100
"""Points of a risk-coverage curve."""
SHADES = 6
"""Steps of density in a hexbin."""

Interval = tuple[float, float] | None
Point = tuple[float, float, Interval]
"""Place on the x axis, value, and interval."""


def selected_figure(info: RunInfo, files: StageFiles, palette: Palette) -> Markup | None:
    """Selected PCK per stage; None with one stage."""
    curves = []
    for method in info.methods if len(info.stages) > 1 else ():
        points: list[Point] = []
        for stage in info.stages:
            values = defined(info.over_seeds(method, stage, "selected_pck"))
            if values:
                one = over_selected(values[0], files.selected_pck.get((method, stage)))
                points.append((float(stage), mean(values), over_seeds(values) if len(info.seeds) > 1 else one))
        curves += curve_of(method, points)
    return lines("selected", curves, palette, "stage", "PCK of what was selected", True) if curves else None


def accuracy_figure(info: RunInfo, palette: Palette) -> Markup | None:
    """Test PCK against labelled people, from the base model on; None with one stage or without retraining."""
    found = [curve for method in info.methods for curve in curve_of(method, accuracy_points(info, method))]
    curves = [curve for curve in found if len(curve.x_K) > 1] if len(info.stages) > 1 else []
    return lines("accuracy", curves, palette, "labelled people", "test PCK") if curves else None


def accuracy_points(info: RunInfo, method: str) -> list[Point]:
    """Mean test PCK by mean number of labelled people, from the base model on."""
    points = {}
    for stage in info.stages:
        rows = [info.rows[key] for seed in info.seeds if (key := (method, seed, stage)) in info.rows]
        if rows and stage == info.first_stage:
            before = sum(row.labelled for row in rows) / len(rows)
            points[before] = defined([info.base_pck.get(seed) for seed in info.seeds])
        if rows:
            after = sum(row.labelled + row.selected for row in rows) / len(rows)
            points[after] = defined([row.test_pck for row in rows])
    return [(x, mean(values), over_seeds(values)) for x, values in points.items() if values]


def curve_of(method: str, points: Sequence[Point]) -> list[Curve]:
    """A curve through the points, with a band where they have an interval; none without points."""
    if not points:
        return []
    ends = [interval or (np.nan, np.nan) for _, _, interval in points]
    low_K, high_K = np.array(ends).T
    band = (low_K, high_K) if np.isfinite(low_K).any() else None
    return [Curve(method, np.array([x for x, _, _ in points]), np.array([y for _, y, _ in points]), band)]


def scatter_figure(name: str, method: str, scores: Scores, palette: Palette) -> Markup:
    """Score against true loss (the paper's Fig. 5): the pool as hexagons, what was selected as dots."""
    finite_N = np.isfinite(scores.score_N) & np.isfinite(scores.true_loss_N)
    chosen_M = scores.selected_M[finite_N[scores.selected_M]]
    label = f"true loss against the score of {method}"
    with plot(name, palette, label, (3.5, 3.0), path__simplify=False) as drawn:
        shades = [to_rgba(drawn.colour(method), opacity) for opacity in np.linspace(0.18, 0.9, SHADES)]
        drawn.axes.hexbin(scores.score_N[finite_N], scores.true_loss_N[finite_N], gridsize=(34, 20), mincnt=1,
                          cmap=ListedColormap(shades), norm=LogNorm(1), linewidths=0.1)  # fmt: skip
        dots(drawn.axes, scores.score_N[chosen_M], scores.true_loss_N[chosen_M])
        drawn.axes.set(xlabel="score", ylabel="true loss")
    return drawn.svg


def risk_figure(info: RunInfo, files: StageFiles, palette: Palette) -> Markup | None:
    """Risk-coverage curves at the first stage, mean over the seeds that are there; None without scores."""
    curves = []
    for method in info.methods:
        found = [files.scores[method, seed] for seed in info.seeds if (method, seed) in files.scores]
        drawn = [(scores, *curve) for scores in found if len((curve := risk_curve(scores, info.failure))[0])]
        if not drawn:
            continue
        # On one grid: pools of two seeds may differ by a few people without a PCK.
        kept_K = np.linspace(max(kept_K[0] for _, kept_K, _ in drawn), 1, COVERAGES)
        risk_NK = np.array([np.interp(kept_K, of_K, risk_K) for _, of_K, risk_K in drawn])
        band = mean_interval(risk_NK) if len(info.seeds) > 1 else risk_over_people(drawn[0][0], kept_K, info.failure)
        curves.append(Curve(method, kept_K, risk_NK.mean(axis=0), band))
    return lines("risk", curves, palette, "share of images kept", "failure rate of those kept") if curves else None


def risk_curve(scores: Scores, failure: Failure | None = None) -> tuple[Floats, Floats]:
    """Share of images kept, and the failure rate among them, the highest scores dropped first.

    Images whose PCK is undefined are left out. At most ``COVERAGES`` points, empty where nothing is defined.
    """
    failed_N, known_N = (failure or Failure()).failed(scores.image_pck_N)
    P = int(known_N.sum())
    if P == 0:
        return np.empty(0), np.empty(0)
    risk_P = risk_coverage(scores.score_N[known_N], failed_N[known_N])
    kept_K = np.unique(np.linspace(1, P, COVERAGES).round().astype(int))
    return kept_K / P, risk_P[kept_K - 1]


def risk_over_people(scores: Scores, kept_K: Floats, failure: Failure | None = None) -> tuple[Floats, Floats] | None:
    """Bootstrap band (K,) of a risk-coverage curve over the people of its pool; None for fewer than two."""
    failed_N, known_N = (failure or Failure()).failed(scores.image_pck_N)
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
    """Of at least one value."""
    return float(np.mean(values))


def band_words(info: RunInfo) -> str:
    """What the bands of the curves over the stages are, or why there is none."""
    if len(info.seeds) > 1:
        return over_seeds_words(len(info.seeds))
    return (
        f"One seed. Bands of the selected PCK are {fmt.percent(COVERED)} bootstrap intervals over the people who were "
        "selected: they show how far the value depends on who these people are, not how far another training would "
        "move it. The test PCK is one number per training, and one seed gives it no interval."
    )


def risk_words(info: RunInfo) -> str:
    """What the bands of the risk-coverage curves are."""
    if len(info.seeds) > 1:
        return f"Mean over the seeds. {over_seeds_words(len(info.seeds))}"
    return (
        f"Bands: {fmt.percent(COVERED)} bootstrap interval over the people of the pool. They are for one training; "
        "another seed may lie outside."
    )


def over_seeds_words(seeds: int) -> str:
    """What an interval over so many seeds can hold."""
    words = f"Bands: {fmt.percent(COVERED)} bootstrap interval of the mean over {fmt.plural(seeds, 'seed')}."
    if most_covered(seeds) >= COVERED:
        return words
    most = int(100 * most_covered(seeds))  # rounded down: it is the most
    few = f"{seeds} values hold the true mean between them {most} % of the time at best: these bands are too narrow."
    return f"{words} {few}"
