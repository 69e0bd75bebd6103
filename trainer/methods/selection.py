"""Select people from a pool by any method of the catalog, and measure how well the selection found the failures.

Shapes: N people of the unlabelled pool, L labelled people, D embedding, M selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError

from ..checkpoint import PoseModel
from ..data.crops import Crops
from ..data.records import Floats, PoseData
from ..measures.metrics import (
    Failure,
    Judged,
    Profile,
    aurc,
    auroc,
    correlation,
    gap_closed,
    judge,
    neighbour_thresholds,
    precision,
)  # fmt: skip
from ..scoring import Scored
from .catalog import METHODS, Method, resolve

if TYPE_CHECKING:
    from ..cycles.run import Run

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Selection:
    """What a method chose from a pool, and by which score."""

    rows_M: Rows
    """Rows of the pool, first picked first."""
    score_N: Floats
    """Higher is chosen first; for coreset the distance to the labelled set, for random the random number."""


@dataclass(frozen=True, slots=True)
class PoolImages:
    """The pictures behind a pool and the model that selects, for methods that look at the pictures again."""

    run: Run
    seed: int
    stage: int
    model: PoseModel
    pool: Crops
    """Unlabelled people; their labels must not be looked at."""
    labelled: Crops


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Everything that a method may select by."""

    scored: Scored
    """What the model says of the unlabelled people."""
    labelled: Scored
    """The same of the labelled people."""
    image_pck_N: Floats
    """True PCK of the unlabelled people, for the oracle alone."""
    rng: np.random.Generator
    images: PoolImages | None = None

    def __len__(self) -> int:
        return len(self.scored.entropy_N)

    def need_images(self, method: str) -> PoolImages:
        """The pictures; ConfigError where this pool came without them."""
        if self.images is None:
            raise ConfigError(f"{method} scores the pool in a second pass over its pictures: none were given")
        return self.images


def select(name: str, pool: Pool, k: int) -> Selection:
    """Let a method of the catalog choose ``k`` people.

    Raises:
        ConfigError: the method's head is missing, or fewer than ``k`` people can be chosen.
        DataError: NaN among scores or embeddings, or scores that are all the same.
    """
    method = METHODS[name]
    if method.choose is not None:
        chosen: Selection = resolve(method.choose)(pool, k)
        return chosen
    score_N = scores_of(method, pool)
    if method.truth is None:  # people whom an oracle finds equal are equal
        refuse_constant(score_N, k, name)
    return Selection(top(score_N, k), score_N)


def scores_of(method: Method, pool: Pool) -> Floats:
    """Everybody's score by a method that gives scores."""
    if method.score is not None:
        own: Floats = resolve(method.score)(pool)
        return own
    name, scored = method.name, pool.scored
    if method.head is None:
        column, missing = scored.forms, f"{name} was not computed when the pool was scored (there are"
    elif method.head.group == "loss":
        column, missing = scored.predicted_loss, f"{name} ranks by its loss head, which this model does not have (heads"
    else:
        column = scored.auxiliary
        missing = f"{name} ranks by its auxiliary head, which this model does not have (auxiliary heads"
    if name not in column:
        raise ConfigError(f"{missing}: {', '.join(column) or 'none'})")
    return column[name]


# --- Methods without a file of their own


def random_scores(pool: Pool) -> Floats:
    """A random place for everybody, not only the chosen: a pool is often sorted, and chance must not see that."""
    order_N = pool.rng.permutation(len(pool))
    score_N = np.empty(len(order_N), dtype=np.float32)
    score_N[order_N] = -np.arange(len(order_N))
    return score_N


def entropy_scores(pool: Pool) -> Floats:
    """Entropy of the heatmaps."""
    return pool.scored.entropy_N


def multipeak_scores(pool: Pool) -> Floats:
    """Entropy over the peaks of the heatmaps."""
    return pool.scored.multipeak_N


def true_losses(pool: Pool) -> Floats:
    """The true loss; an oracle never chooses somebody without a label."""
    return np.nan_to_num(pool.scored.true_loss_N, nan=-np.inf)


def true_pck(pool: Pool) -> Floats:
    """One minus the true PCK; it has few distinct values, so the true loss orders people of equal PCK."""
    loss_N = np.nan_to_num(pool.scored.true_loss_N)
    tie_N = loss_N / (loss_N.max() + 1.0) * 1e-3
    return np.nan_to_num(-pool.image_pck_N + tie_N, nan=-np.inf).astype(np.float32)


# --- From scores to rows


def top(score_N: Floats, k: int) -> Rows:
    """The k highest scores, highest first; equal scores in the order of their rows.

    -inf marks rows that may not be chosen; NaN is an error.
    """
    if np.isnan(score_N).any():
        rows = np.flatnonzero(np.isnan(score_N))
        raise DataError(f"{len(rows)} of {len(score_N)} scores are NaN (first at row {rows[0]}); nothing was selected")
    check_budget(k, int((score_N > -np.inf).sum()))
    return np.argsort(-score_N, kind="stable")[:k].astype(np.int64)


def refuse_constant(score_N: Floats, k: int, method: str) -> None:
    """Refuse scores that prefer nobody: the order of the rows would choose, and a pool is often sorted.

    Scores of -inf are ignored; where everybody who may be chosen is chosen, nothing has to be preferred.
    """
    open_M = score_N[score_N > -np.inf]
    if k < len(open_M) and (open_M == open_M[0]).all():
        raise DataError(
            f"{method}: all {len(open_M)} scores are {open_M[0]:g}, so that it cannot choose {k} of them; nothing was "
            "selected: the model or its head has collapsed (trained too short, or diverged), or the maps are empty. What "
            f"was done before is kept; leave {method} out of --methods to go on without it"
        )


def check_budget(k: int, available: int) -> None:
    """Refuse to select nobody, or more people than there are."""
    if k < 1 or k > available:
        raise ConfigError(f"cannot select {k} from a pool of {available}: lower --budget or --stages")


# --- How good a selection is


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """How well a selection and its score found the failures of the model that selected (fields as in ``Row``)."""

    pool_pck: float | None
    selected_pck: float | None
    selected_true_loss: float | None
    auroc: float | None
    aurc: float | None
    spearman: float | None
    pearson: float | None
    precision_at_budget: float | None
    gap_closed: float | None
    failures: int
    unscored: int


def measure(
    selection: Selection, oracle: Selection, pool: Scored, judged: Judged, failure: Failure | None = None
) -> Detection:
    """Compare a selection with the truth about the pool."""
    image_pck_N = judged.image_pck()
    failed_N, defined_N = (failure or Failure()).failed(image_pck_N)
    chosen_M = selection.rows_M
    spearman, pearson = correlation(selection.score_N, pool.true_loss_N)
    chosen_loss_M = pool.true_loss_N[chosen_M]
    score_N = selection.score_N[defined_N]
    selected_pck, pool_pck = judged.pck(chosen_M), judged.pck()
    return Detection(
        pool_pck=pool_pck,
        selected_pck=selected_pck,
        selected_true_loss=float(np.nanmean(chosen_loss_M)) if np.isfinite(chosen_loss_M).any() else None,
        auroc=auroc(score_N, failed_N[defined_N]),
        aurc=aurc(score_N, failed_N[defined_N]),
        spearman=spearman,
        pearson=pearson,
        precision_at_budget=precision(failed_N[chosen_M[defined_N[chosen_M]]]),
        gap_closed=gap_closed(selected_pck, pool_pck, judged.pck(oracle.rows_M)),
        failures=int(failed_N.sum()),
        unscored=int((~defined_N).sum()),
    )


def judge_scored(data: PoseData, scored: Scored, profile: Profile, threshold: float | None = None) -> Judged:
    """Right and wrong joints of people that a model has scored."""
    return judge(data, scored.distance_NJ, scored.peak_NJ, profile, threshold)


def neighbour_pck(data: PoseData, scored: Scored, profile: Profile, rows_M: Rows | None) -> dict[str, float | None]:
    """PCK at the two thresholds around the profile's, by threshold."""
    return {f"{threshold:.4f}": judge_scored(data, scored, profile, threshold).pck(rows_M)
            for threshold in neighbour_thresholds(profile)}  # fmt: skip
