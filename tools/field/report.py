"""How the model and its monitor did in the field: unbiased, with intervals, and what to change.

All frames of a fleet fall into two strata: those that the policy flagged and those that it did not. The unflagged are
known through the control stream alone. The flagged are known best where all of them, or a random part, were labelled;
where annotators got the most valuable ones, these say nothing about the rest, and the control stream has to do. Where a
policy flags so few that none of the drawn frames is one, the control stream is not divided: it stands for all frames.

Shapes: N labelled frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from alpose.trainer.measures.metrics import Failure

from . import estimate
from .estimate import Interval
from .labelled import Bools, Floats, Labelled, Tally

FlaggedBy = Literal["all of them", "a random part of them", "the control stream"]

FEW_FAILURES = 10
"""Fewer failures than this among the drawn frames are too few to advise a threshold."""
CATCHES = (0.8, 0.9, 0.95)
WANTED = 0.05
"""Half width of a PCK interval that is good enough to act on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operating:
    """A threshold on the failure probability, as it would have done in the field."""

    catch: float
    threshold: float
    flagged_share: float
    """Of all frames."""
    failures: int
    """Labelled failures that this rests on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The estimates for a fleet, a device or a bundle. What cannot be estimated is None."""

    frames: int | None
    """Counted by the monitors; None where no tallies came along."""
    flagged: int | None
    lost: int
    labelled: int
    labelled_control: int
    flagged_by: FlaggedBy
    """What the flagged stratum was estimated from."""
    pck: Interval | None
    failure_rate: Interval | None
    recall: Interval | None
    """Share of the failures that were flagged."""
    precision: Interval | None
    """Share of the flagged that were failures."""
    naive_pck: float | None
    """Mean over the labelled frames as if they were all frames: what one would have believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldReport:
    """``alpose-harvest report``."""

    level: float
    fleet: Group
    devices: Mapping[str, Group]
    bundles: Mapping[str, Group]
    operating: tuple[Operating, ...]
    advice: tuple[str, ...]
    dropped: Mapping[str, int]
    failure: Failure
    """The definition that recall, precision and thresholds speak of: the bundles' own."""
    definition: str
    """The same for people."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def field_report(labelled: Labelled, tallies: Sequence[Tally], *, level: float = estimate.LEVEL) -> FieldReport:
    """Estimate everything for the fleet, for each device and for each bundle.

    Args:
        labelled: see :func:`alpose.tools.field.labelled.read_labelled`.
        tallies: the monitors' counts; without them sizes are estimated too, and intervals are wider.
        level: of every interval.
    """
    fleet = _group(labelled, tallies, level)
    weights_N = _weights(labelled, fleet)
    operating = _operating(labelled, weights_N)
    return FieldReport(
        level=level,
        fleet=fleet,
        devices={
            name: _group(labelled.where(labelled.device_N == name), [t for t in tallies if t.device == name], level)
            for name in sorted({*labelled.device_N.tolist(), *(t.device for t in tallies)})
        },
        bundles={
            name: _group(labelled.where(labelled.bundle_N == name), [t for t in tallies if t.bundle == name], level)
            for name in sorted({*labelled.bundle_N.tolist(), *(t.bundle for t in tallies)})
        },
        operating=operating,
        advice=_advice(fleet, operating),
        dropped=labelled.dropped,
        failure=labelled.failure,
        definition=labelled.definition,
    )


def _group(labelled: Labelled, tallies: Sequence[Tally], level: float) -> Group:
    frames = sum(tally.frames for tally in tallies) or None
    flagged = sum(tally.flagged for tally in tallies) if frames else None
    lost = sum(tally.lost for tally in tallies)
    drawn_N = np.isfinite(labelled.control_N)
    flagged_by, probability_N = _flagged_probabilities(labelled, flagged, lost)
    in_flagged_N = np.isfinite(probability_N)
    in_rest_N = drawn_N & ~labelled.flagged_N
    failed_N = labelled.failed_N.astype(np.float64)

    def mean(value_N: Floats, mask_N: Any, of_N: Floats) -> Interval | None:
        return estimate.mean(value_N[mask_N], of_N[mask_N], level=level)

    precision = mean(failed_N, in_flagged_N, probability_N)
    if frames and flagged is not None and _both_seen(flagged, in_flagged_N, frames - flagged, in_rest_N):
        rest = frames - flagged
        pck = _stratified(mean(labelled.pck_N, in_flagged_N, probability_N), flagged,
                          mean(labelled.pck_N, in_rest_N, labelled.control_N), rest)  # fmt: skip
        missed_rate = mean(failed_N, in_rest_N, labelled.control_N)
        failure_rate = _stratified(precision, flagged, missed_rate, rest)
        nothing = Interval(0.0, 0.0, 0.0, 0)
        caught = precision.scaled(flagged) if precision is not None else nothing
        recall = estimate.share(caught, missed_rate.scaled(rest) if missed_rate is not None else nothing)
    else:  # the control stream stands for everything
        pck = mean(labelled.pck_N, drawn_N, labelled.control_N)
        failure_rate = mean(failed_N, drawn_N, labelled.control_N)
        recall = mean(labelled.flagged_N.astype(np.float64), drawn_N & labelled.failed_N, labelled.control_N)
    return Group(
        frames=frames,
        flagged=flagged,
        lost=lost,
        labelled=len(labelled),
        labelled_control=int(drawn_N.sum()),
        flagged_by=flagged_by,
        pck=pck,
        failure_rate=failure_rate,
        recall=recall,
        precision=precision,
        naive_pck=float(labelled.pck_N.mean()) if len(labelled) else None,
    )


def _flagged_probabilities(labelled: Labelled, flagged: int | None, lost: int) -> tuple[FlaggedBy, Floats]:
    """From what the flagged stratum is estimated, and each frame's probability; NaN for frames that do not serve."""
    is_flagged_N = labelled.flagged_N
    if flagged and int(is_flagged_N.sum()) >= flagged:
        return "all of them", np.where(is_flagged_N, 1.0, np.nan)
    chosen_N = is_flagged_N & np.isnan(labelled.control_N)
    if lost == 0 and chosen_N.any() and np.isfinite(labelled.chosen_N[chosen_N]).all():
        return "a random part of them", np.where(chosen_N, labelled.chosen_N, np.nan)
    return "the control stream", np.where(is_flagged_N, labelled.control_N, np.nan)


def _both_seen(flagged: int, in_flagged_N: Bools, rest: int, in_rest_N: Bools) -> bool:
    """Whether each stratum that has frames has labelled ones."""
    return (not flagged or bool(in_flagged_N.any())) and (not rest or bool(in_rest_N.any()))


def _stratified(flagged: Interval | None, n_flagged: int, rest: Interval | None, n_rest: int) -> Interval | None:
    """The mean over both strata; a stratum that is empty needs no estimate."""
    parts = []
    for part, size in ((flagged, n_flagged), (rest, n_rest)):
        if not size:
            continue
        if part is None:
            return None
        parts.append(part.scaled(size / (n_flagged + n_rest)))
    return estimate.add(parts) if parts else None


def _weights(labelled: Labelled, fleet: Group) -> Floats:
    """How many frames each labelled one stands for; 0 for those that stand for themselves alone."""
    _, probability_N = _flagged_probabilities(labelled, fleet.flagged, fleet.lost)
    probability_N = np.where(labelled.flagged_N, probability_N, labelled.control_N)
    return np.asarray(np.nan_to_num(1 / probability_N, nan=0.0), dtype=np.float64)


def _operating(labelled: Labelled, weight_N: Floats) -> tuple[Operating, ...]:
    """Thresholds that would have caught these shares of the failures."""
    failed_N = labelled.failed_N & (weight_N > 0)
    if int(failed_N.sum()) < FEW_FAILURES:
        return ()
    # A model that answers NaN is as wrong as can be.
    score_N = np.nan_to_num(labelled.failure_probability_N, nan=1.0)
    order = np.argsort(-score_N[failed_N], kind="stable")
    score_M, weight_M = score_N[failed_N][order], weight_N[failed_N][order]
    caught_M = np.cumsum(weight_M) / weight_M.sum()
    points = []
    for catch in CATCHES:
        threshold = float(score_M[min(int(np.searchsorted(caught_M, catch - 1e-12)), len(score_M) - 1)])
        share = float(weight_N[score_N >= threshold].sum() / weight_N.sum())
        points.append(Operating(catch=catch, threshold=threshold, flagged_share=share, failures=int(failed_N.sum())))
    return tuple(points)


def _advice(fleet: Group, operating: Sequence[Operating]) -> tuple[str, ...]:
    """What to change in the trigger, most pressing first."""
    advice = []
    if not fleet.labelled_control:
        return (
            "No frame of a control stream is labelled, so nothing can be said about the field: add | Control(rate=...) to "
            "the trigger, and choose some of its frames with alpose-harvest select --control",
        )
    at = {point.catch: point for point in operating}
    if fleet.recall is not None and fleet.recall.high < CATCHES[0]:
        do = "raise the budget of the trigger, or lower its threshold"
        if 0.9 in at:
            point = at[0.9]
            do = (f"Threshold({point.threshold:.3f}) would have caught 90 % of the failures and flagged "
                  f"{1000 * point.flagged_share:.0f} of 1,000 frames; or raise the budget of the trigger")  # fmt: skip
        advice.append(f"The monitor flags {fleet.recall.value:.0%} of the failures: {do}")
    if fleet.precision is not None and fleet.precision.high < 0.5:
        advice.append(
            f"Of what is flagged, {fleet.precision.value:.0%} are failures: the calibration does not fit the field. Export "
            "again with --calibration on this dataset, before the trigger is changed"
        )
    if fleet.lost:
        advice.append(
            f"{fleet.lost} flagged frames cannot be labelled: what Episodes replaced by another frame of the same failure is "
            "meant to be among them; of the rest, evicted or dropped, a larger queue (max_bytes) or more harvests keep more"
        )
    if fleet.precision is None and fleet.flagged:
        advice.append(
            "None of the labelled control frames was flagged, so nothing is known of what share of the flagged frames fails: "
            "draw some of them by chance (select --strategy random), or label all of them"
        )
    if fleet.pck is not None:
        half = (fleet.pck.high - fleet.pck.low) / 2
        if half > WANTED:
            wanted = math.ceil(fleet.labelled_control * (half / WANTED) ** 2)
            advice.append(
                f"PCK in the field is known to within {half:.2f}: about {wanted} labelled control frames (now "
                f"{fleet.labelled_control}) would give {WANTED:g}. Raise the control rate or label more of that stream"
            )
    if not operating:
        advice.append(f"Fewer than {FEW_FAILURES} failures were drawn at random: too few to advise another threshold")
    return tuple(advice)
