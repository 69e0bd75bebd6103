"""The figures of the detector page. One look per kind: of forty candidates no forty colours could be told apart.

Shapes: S seeds, N people, K points of a curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from sklearn.metrics import roc_curve

from ..detect.comparing import Estimate
from ..detect.measures import truth_of
from ..detect.results import DetectResults, Reliability
from ..detect.stored import KINDS, Bools, DetectorInfo, Floats, Kind, SetScores
from ..measures.joint_measures import JointMeasures
from ..measures.metrics import risk_coverage
from ..methods.catalog import Look
from . import formatting as fmt
from .cycles_figures import COVERAGES
from .detect_tables import between, joint_rows, kinds_of, mean_auroc
from .figures import MUTED, Curve, lines, plot
from .kit import Palette

LOOKS: dict[Kind, Look] = {
    "shipped": Look("#c44a00", "#ff8a4a", (), "h"),
    "slim": Look("#b97a00", "#f0b23c", (6, 1.5), "s"),
    "free": Look("#2a8cc4", "#6cc3f2", (), "^"),
    "paper": Look("#00569c", "#5aa4f5", (3, 1), "o"),
    "candidate": Look("#737b86", "#98a3b3", (4, 2), "x"),
    "costed": Look("#6a45a8", "#b49cf0", (6, 1.5), "P"),
    "ceiling": Look("#00835f", "#2cc699", (5, 1.5, 1, 1.5), "v"),
    "oracle": Look("#1c2430", "#eef2f7", (1, 1.5), "1"),
}
PALETTE = Palette({kind: LOOKS[kind] for kind in KINDS})

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and who is in it, a detector per kind."""

    svg: Markup
    who: tuple[tuple[Kind, str], ...]


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One difference; places are percent of the width, and what lies beyond the left end is at 0."""

    kind: Kind
    name: str
    text: str
    between: str
    place: float
    low: float
    high: float
    far_low: float
    far_high: float
    """Of the wider interval, over people and seeds."""
    cut: bool
    """It goes on beyond the left end."""


@dataclass(frozen=True, slots=True)
class Forest:
    """AUROC differences to the best free score of one set, the highest first."""

    against: str
    ticks: tuple[tuple[float, str], ...]
    """Place in percent, and the value there."""
    zero: float
    rows: tuple[ForestRow, ...]


def forest(results: DetectResults, name: str) -> Forest | None:
    """The forest plot of one set, oracles aside; None where nothing is compared."""
    kinds = kinds_of(results)
    asked = (c for c in results.comparisons if c.set == name and c.question in ("shipped-free", "any-free"))
    found = [(c.difference.estimate.mean, c) for c in asked if kinds[c.detector] != "oracle"]
    known = sorted(((mean, c) for mean, c in found if mean is not None), key=lambda pair: -pair[0])
    if not known:
        return None
    spans = [bounds(c.difference.estimate, mean) for mean, c in known]
    top = max(0.01, *(high for span in spans for high in span[1::2]))
    # One hopeless candidate must not press all others into a line.
    bottom = min(-0.01, max(min(low for span in spans for low in span[0::2]), -2 * top))

    def place(value: float) -> float:
        return round(100 * (min(max(value, bottom), top) - bottom) / (top - bottom), 2)

    rows = tuple(
        ForestRow(kinds[c.detector], c.detector, fmt.signed(mean), between(c.difference.estimate), place(mean),
                  place(low), place(high), place(far_low), place(far_high), min(low, far_low, mean) < bottom)
        for (mean, c), (low, high, far_low, far_high) in zip(known, spans, strict=True)
    )  # fmt: skip
    marks = tuple((place(tick), fmt.signed(tick, 2)) for tick in ticks(bottom, top))
    return Forest(known[0][1].against, marks, place(0.0), rows)


def bounds(estimate: Estimate, mean: float) -> tuple[float, float, float, float]:
    """Both intervals; the mean itself where there is none."""
    ends = (estimate.people.low, estimate.people.high, estimate.seeds.low, estimate.seeds.high)
    low, high, far_low, far_high = (mean if end is None else end for end in ends)
    return low, high, far_low, far_high


def ticks(low: float, high: float) -> list[float]:
    """Three to seven round values between two ends, zero among them."""
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 6), 0.5)
    return [round(k * step, 2) for k in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def one_per_kind(results: DetectResults, name: str, among: Callable[[DetectorInfo], bool]) -> list[DetectorInfo]:
    """The detector of each kind with the highest mean AUROC on this set; candidates stand aside for a shipped one."""
    chosen: list[DetectorInfo] = []
    for kind in KINDS:
        here = [
            d for d in results.catalogue.of_kind(kind) if among(d) and mean_auroc(results, d.name, name) is not None
        ]
        if here and not (kind == "candidate" and any(d.kind == "shipped" for d in chosen)):
            chosen.append(max(here, key=lambda d: mean_auroc(results, d.name, name) or 0.0))
    return chosen


def curves(run: Path, results: DetectResults, place: int) -> tuple[Figure, Figure]:
    """ROC, and risk against coverage, of one detector per kind on one set: means over the seeds.

    Raises:
        DataNotFoundError: the stored scores are gone.
    """
    name = results.sets[place].name
    who = one_per_kind(results, name, lambda _: True)
    roc: dict[str, list[Doubles]] = {d.name: [] for d in who}
    risk: dict[str, list[Doubles]] = {d.name: [] for d in who}
    grid_K = np.linspace(0, 1, COVERAGES + 1)
    for seed in results.catalogue.seeds:
        stored = SetScores.load(run, seed, name, roc)
        truth = truth_of(stored, results.catalogue.macro, results.catalogue.failure)
        for d in who:
            score_N = stored.scores[d.name][stored.counted_N].astype(np.float64)
            roc[d.name].append(caught(score_N, truth.failed_N, grid_K))
            kept_N = np.arange(1, len(score_N) + 1) / len(score_N)
            risk[d.name].append(np.interp(grid_K[1:], kept_N, risk_coverage(score_N, truth.failed_N)))

    def drawn(id_: str, x_K: Doubles, values: dict[str, list[Doubles]], x_label: str, y_label: str) -> Figure:
        means = [Curve(d.kind, x_K, np.mean(values[d.name], axis=0)) for d in who]
        return Figure(lines(id_, means, PALETTE, x_label, y_label), tuple((d.kind, d.name) for d in who))

    return (drawn(f"roc{place}", grid_K, roc, "successes flagged", "failures caught"),
            drawn(f"risk{place}", grid_K[1:], risk, "share of people kept", "failure rate of those kept"))  # fmt: skip


def caught(score_N: Floats, failed_N: Bools, grid_K: Doubles) -> Doubles:
    """Share of failures caught (K,) at each share of successes flagged; zero where nobody failed or all did."""
    if failed_N.all() or not failed_N.any():
        return np.zeros(len(grid_K))
    fpr_K, tpr_K, _ = roc_curve(failed_N, score_N)
    return np.interp(grid_K, fpr_K, tpr_K)


def calibration(results: DetectResults, place: int) -> Figure | None:
    """Reliability diagram of one set; None where no score is a probability."""
    name = results.sets[place].name
    known: dict[str, Reliability] = {r.detector: r for r in results.reliabilities if r.set == name}
    who = one_per_kind(results, name, lambda d: d.name in known)
    if not who:
        return None
    label = "share that failed against predicted probability"
    with plot(f"calibration{place}", PALETTE, label, (4.4, 4.4)) as drawn:
        drawn.axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        for d in who:
            drawn.line(d.kind, known[d.name].predicted, known[d.name].observed, linewidth=1.5)
        drawn.axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="predicted probability of failure",
                       ylabel="share that failed")  # fmt: skip
    return Figure(drawn.svg, tuple((d.kind, d.name) for d in who))


def joint_reliability(results: DetectResults, place: int) -> Figure | None:
    """How often joints were right at each confidence: all joints together, and thin for the shipped detector each joint.

    Base models are pooled. None where no confidences were stored.
    """
    name = results.sets[place].name
    of = {d.name: rows for d in results.catalogue.detectors if (rows := joint_rows(results, d.name, name))}
    who = one_per_kind(results, name, lambda d: d.name in of)
    if not who:
        return None
    label = "share of joints that were right against their confidence"
    with plot(f"joints{place}", PALETTE, label, (4.4, 4.4)) as drawn:
        drawn.axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 2)))
        for d in who:
            if d.kind == "shipped":
                for joint in range(len(results.catalogue.joints)):
                    each = pooled([row.measures.joints[joint] for row in of[d.name]])
                    drawn.line(d.kind, *each, linewidth=0.5, marker="")
            drawn.line(d.kind, *pooled([row.measures.together for row in of[d.name]]), linewidth=1.5)
        drawn.axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="confidence", ylabel="share that was right")
    return Figure(drawn.svg, tuple((d.kind, d.name) for d in who))


def pooled(seeds: Sequence[JointMeasures]) -> tuple[Doubles, Doubles]:
    """Mean confidence and share right of each bin that is not empty, the base models together."""
    counts_SB = np.array([one.counts for one in seeds], dtype=np.float64)
    total_B = counts_SB.sum(axis=0)
    predicted_B, observed_B = (
        (counts_SB * np.array([[0.0 if x is None else x for x in getattr(one, field)] for one in seeds])).sum(axis=0)
        for field in ("predicted", "observed")
    )
    some_B = total_B > 0
    return predicted_B[some_B] / total_B[some_B], observed_B[some_B] / total_B[some_B]
