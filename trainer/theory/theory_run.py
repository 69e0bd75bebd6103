"""The theory of Learning Loss beside what a benchmark run measured: which of its updates were noise.

Two groups of people are looked at, both under the base model of one seed. The *labelled* ones train the heads: their
pairs are the updates. The *pool* is what the heads then judge. Losses are those of the plain view in evaluation mode;
training shows augmented ones, whose losses are not kept.

Shapes: N people, P pairs, H histogram bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import to_json

from ..cycles.base_model import SCORED
from ..cycles.results import Results, Scores, load_npz, stage_folder
from ..methods.catalog import KL_LOSS, MARGIN_LOSS, trained_with
from ..models.heads import HeadName
from ..pages.run_folder import RunInfo, lookup, run_info
from .mathematics import (
    PAPER_SCALE,
    PAPER_SHAPE,
    TABLE_1,
    TABLE_2,
    TABLE_SCALE,
    Floats,
    Gamma,
    expected_share,
    expected_share_closed,
    fit_gamma,
    kl_pull,
    ks_distance,
    ks_of_true_gammas,
    margin_pull,
    near_probability,
    near_probability_closed,
)

PAIR_HEADS: tuple[HeadName, ...] = (*trained_with(MARGIN_LOSS), *trained_with(KL_LOSS))
"""Heads that learn from pairs of images; of the others the theory says nothing."""
MARGIN_HEADS: tuple[HeadName, ...] = trained_with(MARGIN_LOSS)
"""Those that are trained with the margin; the rest are LearningLoss++."""

NEAR = 0.1
"""Two losses are near each other that differ by at most this share of the mean loss."""
NEARS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the mean loss, for the table; Table 1 of the paper goes from 0.08 to 0.57 of its mean."""
GAPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
"""Shares of the mean loss; Table 2 of the paper goes from 0 to 1.9 of its mean."""
GAP_WIDTH = 0.05
"""A measured gap is the mean over pairs within half of this on either side."""
MOST_PAIRS = 2_000_000
"""More pairs than this are drawn at random; their shares are then known to about 0.0004."""
FEWEST_PAIRS = 30
"""A mean over fewer is not printed."""


@dataclass(frozen=True, slots=True)
class People:
    """One group, as the base model sees it; everyone here has a true loss above 0."""

    name: str
    true_N: Floats
    predicted: Mapping[HeadName, Floats]
    left_out: int
    """Without any label, or with a loss of exactly 0."""


@dataclass(frozen=True, slots=True)
class MarginHead:
    """A Learning-Loss head on pairs of one group. Shares of all pairs unless it says otherwise."""

    updates: float
    """The gradient is not 0: the margin is not met."""
    wrong_order: float
    near_updates: float | None
    """Share of the near-equal pairs that update; the paper's "10 % to 43 %" takes it as 1."""
    noise: float | None
    """Share of the *updates* whose pair is near-equal; None where nothing updates."""
    noise_by_near: tuple[float | None, ...]
    """The same at each of :data:`NEARS`."""
    pull_by_gap: tuple[float | None, ...]
    """Mean size of the factor before θ_i - θ_j at each of :data:`GAPS`: each update counts 1."""


@dataclass(frozen=True, slots=True)
class KlHead:
    """A LearningLoss++ head on pairs of one group: mean |q_i - p_i|, the factor before θ_i - θ_j."""

    pull_near: float | None
    pull_far: float | None
    noise: float | None
    """Share of the summed factors that near-equal pairs have."""
    pull_by_gap: tuple[float | None, ...]
    share_by_gap: tuple[float | None, ...]
    """Mean q_i, i the person with the smaller loss, at each of :data:`GAPS`; to set beside φ."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The theory beside the measurement, for one group of people."""

    people: People = field(repr=False)
    law: Gamma
    mean: float
    sd: float
    ks: float
    ks_of_true_gammas: float
    """95 % of samples from the fitted law, as large and fitted again, stay below this distance."""
    pairs: int
    all_pairs: int
    near_fit: tuple[float, ...]
    """Probability of a near-equal pair at each of :data:`NEARS`, from the fit."""
    near_paper: tuple[float, ...]
    """The same of the paper's k = 4."""
    near_measured: tuple[float, ...]
    share_fit: tuple[float, ...]
    """φ at each of :data:`GAPS`, from the fit."""
    share_measured: tuple[float | None, ...]
    margin_heads: dict[HeadName, MarginHead]
    kl_heads: dict[HeadName, KlHead]

    @property
    def fits(self) -> bool:
        """Whether the losses lie no further from the fit than a true gamma's would."""
        return self.ks <= self.ks_of_true_gammas

    def to_json(self) -> dict[str, Any]:
        """Return the numbers alone."""
        own = {name: to_json(getattr(self, name)) for name in self.__slots__ if name not in ("people", "law", "mean")}
        group = {"count": len(self.people.true_N), "left_out": self.people.left_out, "mean_loss": self.mean}
        return group | {"k": self.law.shape, "theta": self.law.scale} | own


@dataclass(frozen=True, slots=True)
class Study:
    """The theory beside one seed of one run."""

    run: str
    seed: int
    near: float
    """Share of the mean loss."""
    margin: float
    groups: tuple[Findings, ...]
    """The labelled people first, where their losses are known."""
    problems: tuple[str, ...]
    """What could not be read, in sentences."""

    def to_json(self) -> dict[str, Any]:
        """For ``--json``; the tuples of a group go by ``nears`` and ``gaps``."""
        return {"run": self.run, "seed": self.seed, "near": self.near, "margin": self.margin, "nears": NEARS,
                "gaps": GAPS, "groups": {found.people.name: found.to_json() for found in self.groups},
                "problems": self.problems}  # fmt: skip

    def sentence(self) -> str:
        """The answer in words."""
        found = self.groups[0]
        group = "labelled people" if found.people.name == "labelled" else "people of the pool"
        who = f"the {len(found.people.true_N):,} {group}"
        near = _percent(near_share(found.people.true_N, self.near * found.mean))
        start = (f"Of all pairs of {who}, {near} are near-equal: their losses differ by at most {_percent(self.near)} "
                 "of the mean.")  # fmt: skip
        if not found.margin_heads:
            return f"{start} An untrained Learning-Loss head updates on every one of them; this run trained none."
        name, head = next(iter(found.margin_heads.items()))
        if head.noise is None:
            return f"{start} The trained head {name} meets the margin on every pair: none updates any more."
        return (f"{start} Of the updates that the trained head {name} still asks for, {_percent(head.noise)} go to such "
                "pairs, at full size: that share is noise.")  # fmt: skip


def study(run: Path, *, seed: int | None = None, near: float = NEAR) -> Study:
    """Measure a run that has finished at least one selection of its first stage.

    Args:
        run: folder of a benchmark.
        seed: which of its base models; the first by default.
        near: two losses are near-equal that differ by at most this share of the mean loss.
    """
    results = Results.load(run)
    info = run_info(results)
    chosen = info.first_seed if seed is None else seed
    if chosen not in info.seeds:
        raise DataNotFoundError(f"{run} has the seeds {', '.join(map(str, info.seeds))}, not {chosen}")
    margin = _margin(info)
    groups, problems = read_people(run, info, chosen)
    return Study(str(run), chosen, near, margin, tuple(measure(group, margin, near) for group in groups), problems)


def _margin(info: RunInfo) -> float:
    heads = lookup(info.config, "heads")
    value = heads.get("margin") if isinstance(heads, dict) else None
    return 1.0 if value is None else float(value)


def read_people(run: Path, info: RunInfo, seed: int) -> tuple[tuple[People, ...], tuple[str, ...]]:
    """The labelled people, where ``base/scored.npz`` is still there, and the pool of the first stage."""
    stage = info.first_stage
    methods = [method for method in info.methods if (method, seed, stage) in info.rows]
    if not methods:
        raise DataError(f"{run}: seed {seed} has finished no selection of stage {stage} yet")
    stored = {method: Scores.load(stage_folder(run, seed, method, stage) / "scores.npz") for method in methods}
    pool_true_N = next(iter(stored.values())).true_loss_N
    pool_heads: dict[HeadName, Floats] = {
        name: stored[name].score_N.astype(np.float64) for name in PAIR_HEADS if name in stored
    }
    pool = _people("pool", pool_true_N, pool_heads)
    if stage != 1:
        return (pool,), (f"The first stage here is {stage}: who was labelled before is not known.",)
    path = run / f"seed-{seed}" / "base" / SCORED
    if not path.exists():
        return (pool,), (f"{path} is not there: the labelled people, whose pairs train the heads, cannot be measured.",)
    arrays = load_npz(path, needs=("true_loss_N",))
    rest_N = rest_of(arrays["true_loss_N"], pool_true_N)
    if rest_N is None:
        return (pool,), (f"{path} is not of the people in this pool: the labelled ones cannot be measured.",)
    heads: dict[HeadName, Floats] = {name: arrays[f"head.{name}"][rest_N].astype(np.float64)
                                     for name in PAIR_HEADS if f"head.{name}" in arrays}  # fmt: skip
    try:
        labelled = _people("labelled", arrays["true_loss_N"][rest_N], heads)
    except DataError as error:
        return (pool,), (str(error),)
    return (labelled, pool), ()


def rest_of(all_N: npt.NDArray[Any], part_M: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
    """Mask of what remains of a sequence without a part that keeps its order; None where it is no such part.

    Everyone's scores are stored without ids. The pool is everyone but the labelled, in the same order, and a loss in
    float32 is as good as a name; where two are equal it does not matter which is which.
    """
    rest_N, place = np.ones(len(all_N), dtype=np.bool_), 0
    part = part_M.tolist()
    for row, value in enumerate(all_N.tolist()):
        if place < len(part) and (value == part[place] or (value != value and part[place] != part[place])):
            rest_N[row] = False
            place += 1
    return rest_N if place == len(part) else None


def _people(name: str, true_N: npt.NDArray[Any], predicted: Mapping[HeadName, Floats]) -> People:
    usable_N = np.isfinite(true_N) & (true_N > 0)
    if usable_N.sum() < 2:
        raise DataError(f"{name}: {int(usable_N.sum())} of {len(true_N)} people have a true loss above 0, pairs need 2")
    heads = {head: value_N[usable_N] for head, value_N in predicted.items()}
    return People(name, true_N[usable_N].astype(np.float64), heads, int((~usable_N).sum()))


def measure(people: People, margin: float, near: float) -> Findings:
    """Fit the losses, and set the formulae beside the pairs."""
    true_N = people.true_N
    law, mean = fit_gamma(true_N), float(true_N.mean())
    paper = Gamma(PAPER_SHAPE, mean / PAPER_SHAPE)
    pairs = _Pairs(true_N, mean, near)
    return Findings(
        people=people,
        law=law,
        mean=mean,
        sd=float(true_N.std(ddof=1)),
        ks=ks_distance(true_N, law),
        ks_of_true_gammas=ks_of_true_gammas(len(true_N), law),
        pairs=len(pairs.i_P),
        all_pairs=len(true_N) * (len(true_N) - 1) // 2,
        near_fit=tuple(near_probability(share * mean, law) for share in NEARS),
        near_paper=tuple(near_probability(share * mean, paper) for share in NEARS),
        near_measured=tuple(near_share(true_N, share * mean) for share in NEARS),
        share_fit=tuple(expected_share(gap * mean, law) for gap in GAPS),
        share_measured=pairs.by_gap(pairs.true_share_P),
        margin_heads={name: pairs.margin_head(predicted_N, margin)
                      for name, predicted_N in people.predicted.items() if name in MARGIN_HEADS},
        kl_heads={name: pairs.kl_head(predicted_N)
                  for name, predicted_N in people.predicted.items() if name not in MARGIN_HEADS},
    )  # fmt: skip


class _Pairs:
    """Pairs of one group, the smaller loss first, and what a head makes of them."""

    def __init__(self, true_N: Floats, mean: float, near: float) -> None:
        self.i_P, self.j_P = ordered_pairs(true_N)
        self._true = true_N[self.i_P], true_N[self.j_P]
        self.true_share_P = self._true[0] / (self._true[0] + self._true[1])
        self._gap_P = (self._true[1] - self._true[0]) / mean
        self._near_P = self._gap_P <= near
        self._windows = [np.abs(self._gap_P - gap) <= GAP_WIDTH / 2 for gap in GAPS]

    def by_gap(self, value_P: Floats) -> tuple[float | None, ...]:
        """Return the mean at each of :data:`GAPS`."""
        return tuple(_mean(value_P[window_P]) for window_P in self._windows)

    def margin_head(self, predicted_N: Floats, margin: float) -> MarginHead:
        """Count the updates that a Learning-Loss head asks for."""
        predicted = predicted_N[self.i_P], predicted_N[self.j_P]
        pull_P = np.abs(margin_pull(*self._true, *predicted, margin))
        return MarginHead(
            updates=float(pull_P.mean()),
            wrong_order=float((predicted[0] > predicted[1]).mean()),
            near_updates=_mean(pull_P[self._near_P]),
            noise=_share(pull_P, self._near_P),
            noise_by_near=tuple(_share(pull_P, self._gap_P <= share) for share in NEARS),
            pull_by_gap=self.by_gap(pull_P),
        )

    def kl_head(self, predicted_N: Floats) -> KlHead:
        """Measure how hard a LearningLoss++ head pulls."""
        signed_P = kl_pull(*self._true, predicted_N[self.i_P], predicted_N[self.j_P])
        pull_P = np.abs(signed_P)
        return KlHead(
            pull_near=_mean(pull_P[self._near_P]),
            pull_far=_mean(pull_P[~self._near_P]),
            noise=_share(pull_P, self._near_P),
            pull_by_gap=self.by_gap(pull_P),
            share_by_gap=self.by_gap(signed_P + self.true_share_P),
        )


def ordered_pairs(true_N: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows (P,) and (P,) of pairs, the smaller loss first: all of them, or :data:`MOST_PAIRS` drawn from seed 0."""
    count = len(true_N)
    if count * (count - 1) // 2 <= MOST_PAIRS:
        i_P, j_P = np.triu_indices(count, k=1)
    else:
        rng = np.random.default_rng(0)
        i_P = rng.integers(0, count, MOST_PAIRS)
        j_P = (i_P + rng.integers(1, count, MOST_PAIRS)) % count  # never with itself
    swapped_P = true_N[i_P] > true_N[j_P]
    return np.where(swapped_P, j_P, i_P), np.where(swapped_P, i_P, j_P)


def near_share(true_N: Floats, near: float) -> float:
    """Share of all pairs whose losses differ by at most this, counted exactly."""
    sorted_N, count = np.sort(true_N), len(true_N)
    up_to_N = np.searchsorted(sorted_N, sorted_N + near, side="right")
    return float((up_to_N - np.arange(count) - 1).sum() / (count * (count - 1) / 2))


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%"


def _mean(value_P: Floats) -> float | None:
    return float(value_P.mean()) if len(value_P) >= FEWEST_PAIRS else None


def _share(pull_P: Floats, near_P: npt.NDArray[np.bool_]) -> float | None:
    total = float(pull_P.sum())
    return float(pull_P[near_P].sum()) / total if total > 0 else None


# --- Tables for people


def paper_tables() -> dict[str, Any]:
    """Both tables, as printed and as computed at the two θ."""

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
