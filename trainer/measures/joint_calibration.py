"""Each joint's confidence: from a logit of the loss head, or the net's own score, to the probability that it is right.

Platt's map (Advances in Large Margin Classifiers, 1999) for each joint: ``sigmoid(gain · logit + offset)``. One map is fitted
to all joints together; each joint's own is drawn towards it, the more the fewer labels it has. Joints that are hardly ever
right or hardly ever wrong keep the common one.

Shapes: N people, M of them that measure, J joints, L labelled joints of people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit

from alpose.runtime.errors import DataError

from ..data.records import Bools
from .joint_measures import measure_joints

Array = npt.NDArray[np.float64]

ENOUGH = 25
"""Right labels, and wrong ones, from which on a joint has a map of its own."""
SPREAD = 0.1
"""How far, in logits per standard deviation, a joint's own map is expected to lie from the common one. On LSP with 500
people, maps without this bound are worse than one map for all: the likelihood of other people falls."""


@dataclass(frozen=True, slots=True)
class JointCalibration:
    """The map of every joint. Every number is exact in float32, which graphs compute in."""

    gain_J: Array
    """Not negative, so that a higher logit never lowers the confidence."""
    offset_J: Array
    own_J: Bools
    """Joints with a map of their own; the others share one."""

    def __post_init__(self) -> None:
        for name in ("gain_J", "offset_J"):
            value = np.asarray(getattr(self, name), dtype=np.float32).astype(np.float64)
            if value.ndim != 1 or not np.isfinite(value).all():
                raise DataError(f"joint calibration: {name} must be a list of finite numbers, got {value.tolist()}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "own_J", np.asarray(self.own_J, dtype=np.bool_))
        if not len(self.gain_J) == len(self.offset_J) == len(self.own_J) or (self.gain_J < 0).any():
            raise DataError("joint calibration: one gain that is not negative and one offset for every joint, got "
                            f"{self.gain_J.tolist()} and {self.offset_J.tolist()}")  # fmt: skip

    def confidence(self, logit_NJ: npt.NDArray[np.floating]) -> Array:
        """Probability that each joint is right, (N, J): the numpy twin of what the graph computes."""
        return np.asarray(expit(np.asarray(logit_NJ, dtype=np.float64) * self.gain_J + self.offset_J))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, read back by :meth:`from_json`."""
        return {"gain": self.gain_J.tolist(), "offset": self.offset_J.tolist(), "own": self.own_J.tolist()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "joint calibration") -> JointCalibration:
        """The calibration that :meth:`to_json` wrote."""
        try:
            return cls(*(np.array(value[key]) for key in ("gain", "offset", "own")))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where} is not a joint calibration ({error}): {str(value)[:200]}") from error


def identity(joints: int) -> JointCalibration:
    """Stands in where nothing was calibrated: the logit as it is."""
    return JointCalibration(np.ones(joints), np.zeros(joints), np.zeros(joints, dtype=np.bool_))


def fit(logit_NJ: npt.NDArray[np.floating], right_NJ: Bools, counts_NJ: Bools) -> JointCalibration:
    """Learn the maps from people whose joints are labelled.

    Args:
        logit_NJ: what the head, or the score, says of each joint.
        right_NJ: whether it was right.
        counts_NJ: joints of which that can be said.

    Raises:
        DataError: nothing is labelled, or a logit is not finite.
    """
    if not counts_NJ.any():
        raise DataError("joint calibration: no joint of these people is labelled")
    if not np.isfinite(logit_NJ[counts_NJ]).all():
        raise DataError("joint calibration: the net's numbers of its joints are not finite: its weights or its input are "
                        "damaged")  # fmt: skip
    joints = logit_NJ.shape[1]
    common = gain, offset = _platt(logit_NJ[counts_NJ], right_NJ[counts_NJ])
    gain_J, offset_J, own_J = np.full(joints, gain), np.full(joints, offset), np.zeros(joints, dtype=np.bool_)
    for joint in range(joints):
        counts_N = counts_NJ[:, joint]
        right_L = right_NJ[counts_N, joint]
        if min(int(right_L.sum()), int((~right_L).sum())) >= ENOUGH:
            gain_J[joint], offset_J[joint] = _platt(logit_NJ[counts_N, joint], right_L, common)
            own_J[joint] = True
    return JointCalibration(gain_J, offset_J, own_J)


def _platt(
    logit_L: npt.NDArray[np.floating], right_L: Bools, common: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Gain from 0 up and offset of greatest likelihood, with Platt's targets, which stay off 0 and 1.

    With a ``common`` map, of greatest posterior probability: that map is what is expected, give or take ``SPREAD``.
    """
    right, wrong = int(right_L.sum()), int((~right_L).sum())
    target_L = np.where(right_L, (right + 1) / (right + 2), 1 / (wrong + 2))
    mean, deviation = float(logit_L.mean()), float(logit_L.std())
    if deviation < 1e-6:  # nothing to tell them apart by: one rate for all
        return 0.0, float(logit((right + 1) / (right + wrong + 2)))
    x_L = (logit_L.astype(np.float64) - mean) / deviation
    expected = np.zeros(2) if common is None else np.array([common[0] * deviation, common[0] * mean + common[1]])
    pull = 0.0 if common is None else 1 / (SPREAD**2 * len(x_L))

    def loss(parameters: Array) -> tuple[float, Array]:
        score_L = parameters[0] * x_L + parameters[1]
        pull_L = (expit(score_L) - target_L) / len(x_L)
        away = parameters - expected
        value = (np.logaddexp(0.0, score_L) - target_L * score_L).mean() + pull / 2 * away @ away
        return float(value), np.array([pull_L @ x_L, pull_L.sum()]) + pull * away

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)])
    gain = float(found.x[0]) / deviation
    return gain, float(found.x[1]) - gain * mean


@dataclass(frozen=True, slots=True, kw_only=True)
class JointNumbers:
    """How well one joint's confidence is worth its name, on people that did not fit it; None where it cannot be said."""

    name: str
    own: bool
    """Whether it has a map of its own."""
    measured: int
    wrong: int
    auroc: float | None
    """Of a wrong joint, by one minus the confidence."""
    auroc_score: float | None
    """The same by the net's own score."""
    ece: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JointReport:
    """The joints' calibration with what was measured about it, on people that did not fit it; part of a manifest."""

    calibration: JointCalibration
    source: str
    """``head`` where the loss head knows joints, otherwise ``score``: the net's own."""
    fitted: int
    """Labelled joints that fitted it."""
    measured: int
    wrong: int
    auroc: float | None
    """Of a wrong joint, over all joints together."""
    auroc_score: float | None
    auprc: float | None
    """Average precision of the wrong joints."""
    auprc_score: float | None
    ece: float
    """Of the confidence, ten bins of equal width, over all joints together."""
    correlation_pck: float | None
    """Spearman's, of a person's mean confidence with the share of joints that are right."""
    correlation_pck_score: float | None
    correlation_oks: float | None = None
    """Spearman's, of a person's mean confidence with OKS; None where there is no OKS, as in older manifests."""
    correlation_oks_score: float | None = None
    ap: float | None = None
    """COCO's average precision of the poses, one a person, ranked by the mean confidence."""
    ap_score: float | None = None
    predicted: tuple[float | None, ...]
    """Mean confidence in each bin; None in an empty one."""
    observed: tuple[float | None, ...]
    """Share of joints that are right there."""
    counts: tuple[int, ...]
    joints: tuple[JointNumbers, ...]


def calibrate_joints(
    logit_NJ: npt.NDArray[np.floating], right_NJ: Bools, counts_NJ: Bools, scores_NJ: npt.NDArray[np.floating],
    fits_N: Bools, names: Sequence[str], source: str, oks_N: npt.NDArray[np.floating] | None = None,
) -> JointReport:  # fmt: skip
    """Fit the maps on one part of the people and measure them on the others.

    Args:
        logit_NJ: of each joint being right.
        right_NJ: whether it was.
        counts_NJ: joints of which that can be said.
        scores_NJ: the net's own, to compare with.
        fits_N: who fits; the others measure.
        names: of the joints.
        source: where the logits come from.
        oks_N: object keypoint similarity of each person, where there is one.

    Raises:
        DataError: a part has no labelled joint.
    """
    calibration = fit(logit_NJ[fits_N], right_NJ[fits_N], counts_NJ[fits_N])
    report = measure(
        calibration, logit_NJ[~fits_N], right_NJ[~fits_N], counts_NJ[~fits_N], scores_NJ[~fits_N], names, source,
        None if oks_N is None else oks_N[~fits_N],
    )  # fmt: skip
    return replace(report, fitted=int(counts_NJ[fits_N].sum()))


def measure(
    calibration: JointCalibration, logit_MJ: npt.NDArray[np.floating], right_MJ: Bools, counts_MJ: Bools,
    scores_MJ: npt.NDArray[np.floating], names: Sequence[str], source: str,
    oks_M: npt.NDArray[np.floating] | None = None,
) -> JointReport:  # fmt: skip
    """What finished maps are worth on people that did not fit them; the arguments are those of :func:`calibrate_joints`."""
    found = measure_joints(calibration.confidence(logit_MJ), right_MJ, counts_MJ, names, oks_M=oks_M)
    by_score = measure_joints(scores_MJ, right_MJ, counts_MJ, names, probability=False, oks_M=oks_M)
    together = found.together
    numbers = [
        JointNumbers(name=one.name, own=bool(own), measured=one.measured, wrong=one.wrong, auroc=one.auroc,
                     auroc_score=score.auroc, ece=one.ece)
        for one, score, own in zip(found.joints, by_score.joints, calibration.own_J, strict=True)
    ]  # fmt: skip
    return JointReport(
        calibration=calibration, source=source, fitted=0, measured=together.measured, wrong=together.wrong,
        auroc=together.auroc, auroc_score=by_score.together.auroc, auprc=together.auprc,
        auprc_score=by_score.together.auprc, ece=together.ece or 0.0, correlation_pck=found.correlation_pck,
        correlation_pck_score=by_score.correlation_pck, correlation_oks=found.correlation_oks,
        correlation_oks_score=by_score.correlation_oks, ap=found.ap, ap_score=by_score.ap, predicted=together.predicted, observed=together.observed,
        counts=together.counts, joints=tuple(numbers),
    )  # fmt: skip
