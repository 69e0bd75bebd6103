"""How well detectors find the failures of somebody else's net on stored views, and whether one is better than another.

Views of one picture are not independent: every interval resamples pictures (or groups), with all their views.

Shapes: N views whose failure is known, G groups, L labelled joints, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from alpose.runtime.errors import DataError

from ..detect.comparing import Ranked, resample_counts
from ..measures.metrics import Failure, augrc, aurc, auroc
from ..measures.statistics import ece_equal_mass, percentiles
from .evidence import Evidence

RESAMPLES = 1_000
OWN = "the net's own score"
"""Averaged over all of its joints, as whoever uses the net has it; compared with, never shipped."""
MAX_EXTRA = 0.05
"""Share of a net's time that a head may take unless told otherwise."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Truth:
    """Who failed, of those of whom it can be said."""

    rows_N: Array
    """Of the evidence."""
    failed_N: npt.NDArray[np.bool_]
    group_N: npt.NDArray[np.int64]
    clean_N: npt.NDArray[np.bool_]
    """People as they are, not damaged."""

    @property
    def failures(self) -> int:
        """How many failed."""
        return int(self.failed_N.sum())

    def part(self, mask_N: npt.NDArray[np.bool_]) -> Truth:
        """Some of them."""
        return Truth(self.rows_N[mask_N], self.failed_N[mask_N], self.group_N[mask_N], self.clean_N[mask_N])


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """AUROC of one detector less that of another, with the 95 % bootstrap interval over pictures."""

    value: float
    low: float | None
    high: float | None

    @property
    def is_better(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low is not None and self.low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One detector on one set."""

    auroc: float | None
    """Of failure of the image."""
    low: float | None
    high: float | None
    """95 % bootstrap interval over pictures."""
    auprc: float | None
    """Average precision."""
    aurc: float | None
    """Area under the risk-coverage curve."""
    joint_auroc: float | None
    """Of a wrong joint by its confidence."""
    joint_ece: float | None
    """Expected calibration error of the joints' confidences, bins of equal mass; None for what is not a probability."""
    augrc: float | None
    """Area under the generalized risk-coverage curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One detector on the held-out people."""

    name: str
    learned: bool
    all: Measured
    """On people as they are and their damaged views."""
    clean: Measured
    """On people as they are."""
    against_own: Difference
    """All, less the net's own mean score."""
    extra: float | None = None
    """Share of the net's time that it takes; None of those that cannot ship, which are not timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFit:
    """What came out; ``fit.json``."""

    net: str
    trained_on: Mapping[str, int]
    """People by dataset."""
    held_out: int
    """People."""
    failures: int
    """Of them, as they are."""
    pck: float | None
    """Of them, as they are."""
    views: int
    """Held-out views, damaged ones too."""
    view_failures: int
    joints: tuple[str, ...]
    """That are labelled; the others enter no score."""
    rows: tuple[Row, ...]
    """Best first."""
    best_free: str
    chosen: str
    over_free: Difference | None
    """The chosen head less the best free score; None where that one was chosen."""
    failure: str
    seconds: Mapping[str, float]
    max_extra: float = MAX_EXTRA
    """Share of the net's time that a head may take."""

    def table(self) -> str:
        """For people."""
        share = f"{100 * self.failures / max(self.held_out, 1):.1f} %"
        lines = [
            f"{self.net}: {self.held_out} held-out people, PCK {shown(self.pck)}, {self.failures} fail ({share}); of their "
            f"{self.views} views {self.view_failures} fail",
            "",
            f"{'detector':<38} {'AUROC':>6} {'95 % interval':>15} {'as they are':>12} {'time':>7}  over the own score",
        ]
        for row in self.rows:
            ends = "" if row.all.low is None else f"{shown(row.all.low)}-{shown(row.all.high)}"
            mark = "*" if row.name == self.chosen else " "
            over = "" if row.name == OWN else signed(row.against_own)
            extra = "" if row.extra is None else f"{row.extra:+.1%}"
            lines.append(
                f"{mark + row.name:<38} {shown(row.all.auroc):>6} {ends:>15} {shown(row.clean.auroc):>12} {extra:>7}  {over}"
            )
        lines += ["", self.verdict()]
        return "\n".join(lines)

    def verdict(self) -> str:
        """Which detector is kept, and by how much it is better, in a sentence or two."""
        slow = [f"{row.name} ({row.extra:+.1%})" for row in self.rows
                if row.learned and row.extra is not None and row.extra > self.max_extra]  # fmt: skip
        left_out = (
            f" Better, but slower than --max-extra-time {self.max_extra:g} allows: {', '.join(slow)}." if slow else ""
        )
        if self.over_free is None:
            none = "No other head" if slow else "No head"
            return (f"Kept: the free score {self.best_free!r}. {none} is better than it on the held-out pictures by an interval "
                    f"that excludes 0; its calibration makes a probability of it.{left_out}")  # fmt: skip
        return f"Kept: the head {self.chosen!r}, {signed(self.over_free)} over the best free score, {self.best_free!r}.{left_out}"


def truth_of(evidence: Evidence, failure: Failure, names: Sequence[str]) -> Truth:
    """Who failed; ``names`` are the pictures or groups of the people in the crops."""
    failed_N, known_N = failure.failed(evidence.image_pck_N, evidence.error_N)
    rows_N = np.flatnonzero(known_N)
    _, group_P = np.unique(np.asarray(names), return_inverse=True)
    return Truth(rows_N, failed_N[rows_N], group_P[evidence.person_N[rows_N]], evidence.strength_N[rows_N] < 0)


def measure(
    loss_N: Array, confidence_NL: Array | None, evidence: Evidence, truth: Truth, *, probability: bool = False
) -> Measured:
    """Every measure of one detector; arrays are those of all views of the evidence."""
    score_N = loss_N[truth.rows_N].astype(np.float64)
    if not np.isfinite(score_N).all():
        raise DataError(f"{int((~np.isfinite(score_N)).sum())} of {len(score_N)} predicted losses are not finite")
    both = 0 < truth.failures < len(score_N)
    ends = percentiles(_resampled(score_N, truth)) if both else None
    joint_auroc = joint_ece = None
    if confidence_NL is not None:
        counts_NL = evidence.counts_NJ[truth.rows_N]
        wrong_M = ~(evidence.distance_NJ[truth.rows_N][counts_NL] < 1)
        doubt_M = 1 - confidence_NL[truth.rows_N][counts_NL].astype(np.float64)
        joint_auroc = auroc(doubt_M, wrong_M)
        joint_ece = ece_equal_mass(doubt_M, wrong_M) if probability else None
    return Measured(
        auroc=auroc(score_N, truth.failed_N), low=ends[0] if ends else None, high=ends[1] if ends else None,
        auprc=float(average_precision_score(truth.failed_N, score_N)) if both else None,
        aurc=aurc(score_N, truth.failed_N), joint_auroc=joint_auroc, joint_ece=joint_ece,
        augrc=augrc(score_N, truth.failed_N),
    )  # fmt: skip


def difference(a: Sequence[Array], b: Sequence[Array], truth: Truth) -> Difference:
    """Mean over seeds of the AUROC of ``a`` less that of ``b``: predicted losses of all views, one array for each seed.

    The same resample of pictures counts for both and for all seeds.
    """
    first, second = ([value_N[truth.rows_N] for value_N in values] for values in (a, b))
    apart = [
        (auroc(x_N, truth.failed_N) or 0.0) - (auroc(y_N, truth.failed_N) or 0.0)
        for x_N, y_N in zip(first, second, strict=True)
    ]
    resampled_R = np.mean(
        [_resampled(x_N, truth) - _resampled(y_N, truth) for x_N, y_N in zip(first, second, strict=True)], axis=0
    )
    low, high = percentiles(resampled_R) or (None, None)
    return Difference(value=float(np.mean(apart)), low=low, high=high)


def _resampled(score_N: Array, truth: Truth) -> npt.NDArray[np.float64]:
    """AUROC (R,) of views whose pictures are drawn again; NaN where a draw lacks failures or successes."""
    ranked = Ranked.of(score_N, truth.failed_N)
    _, group_N = np.unique(truth.group_N, return_inverse=True)
    parts = [ranked.auroc(count_GR[group_N]) for _, count_GR in resample_counts(int(group_N.max()) + 1, RESAMPLES, 0)]
    return np.concatenate(parts)


def shown(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def signed(value: Difference) -> str:
    """With its interval."""
    ends = "" if value.low is None else f" [{value.low:+.3f}, {value.high:+.3f}]"
    return f"{value.value:+.3f}{ends}"
