"""From scores to a selection, and from a selection to the numbers of one row.

Shapes: N people of the unlabelled pool, M selected.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError

from .data.records import Floats, PoseData
from .metrics import (
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
from .models.auxiliary import AUXILIARY, AuxiliaryName
from .models.heads import HEADS, HeadName
from .samplers import Method, at_random, k_centre, refuse_constant, top
from .scoring import FORMS, FormName, Scored


@dataclass(frozen=True, slots=True)
class Selection:
    """What a method chose from a pool, and by which score."""

    rows_M: npt.NDArray[np.int64]
    """Rows of the pool, first picked first."""
    score_N: Floats
    """Higher is chosen first; for coreset the distance to the labelled set, for random the random number."""


def head_of(method: Method) -> str | None:
    """The loss head whose prediction a method ranks by; None for methods that need none."""
    return method if method in HEADS else None


def part_of(method: Method) -> HeadName | AuxiliaryName | None:
    """The head, loss head or auxiliary one, that a method ranks by; None for methods that need none."""
    return method if method in HEADS or method in AUXILIARY else None


def forms_of(methods: Collection[Method]) -> tuple[FormName, ...]:
    """The official forms of multi-peak entropy that these methods rank by."""
    return tuple(name for name in FORMS if name in methods)


def select(
    method: Method, pool: Scored, labelled_LD: Floats, image_pck_N: Floats, k: int, rng: np.random.Generator,
    second: Mapping[Method, Floats] | None = None,
) -> Selection:  # fmt: skip
    """Let a method choose ``k`` people.

    Args:
        method: which.
        pool: scores of the unlabelled people.
        labelled_LD: embeddings of the labelled ones (for coreset).
        image_pck_N: true PCK of the pool (for the oracle alone).
        k: budget.
        rng: for ``random``.
        second: scores (N,) of methods that look at the pool a second time (``egl++``, ``ensemble-nets``).

    Raises:
        ConfigError: the method's head is missing, or fewer than ``k`` can be chosen.
        DataError: NaN among scores or embeddings, or scores that are all the same.
    """
    match method:
        case "random":
            # Everyone gets a random place, not only the chosen: a pool is often sorted, and chance must not see that.
            order_N = at_random(len(pool.entropy_N), len(pool.entropy_N), rng)
            score_N = np.empty(len(order_N), dtype=np.float32)
            score_N[order_N] = -np.arange(len(order_N))
        case "coreset":
            return Selection(*k_centre(pool.embedding_ND, labelled_LD, k))
        case "entropy":
            score_N = pool.entropy_N
        case "multipeak":
            score_N = pool.multipeak_N
        case "multipeak-2021" | "multipeak-2022":
            if method not in pool.forms:
                has = ", ".join(pool.forms) or "none"
                raise ConfigError(f"{method} was not computed when the pool was scored (there are: {has})")
            score_N = pool.forms[method]
        case "oracle-loss":
            # Someone without a label has no true loss: never chosen by the oracle that looks at it.
            score_N = np.nan_to_num(pool.true_loss_N, nan=-np.inf)
        case "oracle-pck":
            # Few joints give few distinct values: the true loss orders what is equal in PCK.
            loss_N = np.nan_to_num(pool.true_loss_N)
            tie_N = loss_N / (loss_N.max() + 1.0) * 1e-3
            score_N = np.nan_to_num(-image_pck_N + tie_N, nan=-np.inf).astype(np.float32)
        case "epck" | "epck-slim" | "ll" | "ll-gap" | "ll++" | "ll++conv":
            if method not in pool.predicted_loss:
                has = ", ".join(pool.predicted_loss) or "none"
                raise ConfigError(f"{method} ranks by its loss head, which this model does not have (heads: {has})")
            score_N = pool.predicted_loss[method]
        case "aleatoric" | "aleatoric-official" | "vl4pose" | "vl4pose-official" | "ensemble":
            if method not in pool.auxiliary:
                has = ", ".join(pool.auxiliary) or "none"
                raise ConfigError(
                    f"{method} ranks by its auxiliary head, which this model does not have (auxiliary heads: {has})"
                )
            score_N = pool.auxiliary[method]
        case "egl++" | "egl++-lle" | "ensemble-nets":
            if second is None or method not in second:
                raise ConfigError(f"{method} scores the pool in a second pass: none was made")
            score_N = second[method]
    if method not in ("oracle-loss", "oracle-pck"):  # whom an oracle finds equal, are equal
        refuse_constant(score_N, k, method)
    return Selection(top(score_N, k), score_N)


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


def measure(selection: Selection, oracle: Selection, pool: Scored, judged: Judged) -> Detection:
    """Compare a selection with the truth about the pool."""
    image_pck_N = judged.image_pck()
    failed_N, defined_N = Failure().failed(image_pck_N)
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


def neighbours(
    data: PoseData, scored: Scored, profile: Profile, rows_M: npt.NDArray[np.int64] | None
) -> dict[str, float | None]:
    """PCK at the two thresholds around the profile's, by threshold."""
    return {f"{threshold:.4f}": judge_scored(data, scored, profile, threshold).pck(rows_M)
            for threshold in neighbour_thresholds(profile)}  # fmt: skip
