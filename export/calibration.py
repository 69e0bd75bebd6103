"""From three signs of trouble to one probability of failure: monotone in every sign, and small enough for a graph.

A logistic regression with non-negative weights joins the evidence to one score; isotonic regression, centred, turns
the score into a probability. What is kept is a handful of numbers, and a piecewise-linear map that a graph computes
in a few operations.

Shapes: N people, E pieces of evidence (three), K knots, G groups of equal score, P pools of equal rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.isotonic import isotonic_regression

from alpose.runtime.errors import DataError
from alpose.trainer.data.records import Bools, hashes

Array = npt.NDArray[np.float64]

EVIDENCE = ("predicted_loss", "entropy", "doubt")
"""What speaks for a failure, in the order of every ``evidence_N3``: the loss head's prediction, the entropy of the
heatmaps in nats, and one minus the mean score of the joints."""

RIDGE = 1e-3
"""Weight of half the squared weights beside the mean log loss: without it, classes that one score separates would
pull the weights to infinity."""

MIN_SPREAD = 1e-4
"""Evidence that varies by a smaller share of its size counts as constant: other engines round more than that."""

MIN_GAP = 0.01
"""Knots lie at least this share of the score's standard deviation apart. Between closer ones the map would be so steep
that float32 rounding on a device shows in the probability."""

ROUNDING = 8 * 2.0**-24
"""Eight times the rounding of float32: no joint score takes more operations from evidence to score."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The map from evidence to a probability of failure.

    ``probability = f(weight · (evidence - mean) / sd)`` with ``f`` linear between the knots (``score_K``,
    ``probability_K``) and constant outside them. Every number is exact in float32, which graphs compute in.
    """

    mean_3: Array
    sd_3: Array
    """Positive."""
    weight_3: Array
    """Not negative, so that more of any evidence never lowers the probability; in logits per standard deviation."""
    score_K: Array
    """Strictly increasing, at least two."""
    probability_K: Array
    """Non-decreasing, in [0, 1]."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = np.asarray(getattr(self, name), dtype=np.float32).astype(np.float64)
            if value.ndim != 1 or not np.isfinite(value).all():
                raise DataError(f"calibration: {name} must be a list of finite numbers, got {value.tolist()}")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        for name in ("mean_3", "sd_3", "weight_3"):
            if len(getattr(self, name)) != len(EVIDENCE):
                raise DataError(f"calibration: {name} has {len(getattr(self, name))} numbers, one each is needed for "
                                f"{', '.join(EVIDENCE)}")  # fmt: skip
        if (self.sd_3 <= 0).any() or (self.weight_3 < 0).any():
            raise DataError(f"calibration: sd_3 {self.sd_3.tolist()} must be positive and weight_3 "
                            f"{self.weight_3.tolist()} not negative")  # fmt: skip
        if len(self.score_K) < 2 or len(self.score_K) != len(self.probability_K):
            raise DataError(f"calibration: two or more knots are needed, with one probability each, got "
                            f"{len(self.score_K)} scores and {len(self.probability_K)} probabilities")  # fmt: skip
        if (np.diff(self.score_K) <= 0).any() or (np.diff(self.probability_K) < 0).any():
            raise DataError("calibration: score_K must rise from knot to knot and probability_K must not fall, got "
                            f"{self.score_K.tolist()} and {self.probability_K.tolist()}")  # fmt: skip
        if self.probability_K[0] < 0 or self.probability_K[-1] > 1:
            raise DataError(f"calibration: probability_K {self.probability_K.tolist()} leaves [0, 1]")

    def score(self, evidence_N3: npt.NDArray[np.floating]) -> Array:
        """The joint score before the knots, in logits, (N,)."""
        return _joint(self.mean_3, self.sd_3, self.weight_3, evidence_N3)

    def probability(self, evidence_N3: npt.NDArray[np.floating]) -> Array:
        """Probability of failure, (N,): the numpy twin of what the graph computes.

        Raises :class:`DataError` for evidence of another shape or that is not finite.
        """
        checked_N3 = _checked(evidence_N3)
        return np.interp(self.score(checked_N3), self.score_K, self.probability_K)

    def lowest_probability(self, evidence_N3: npt.NDArray[np.floating]) -> Array:
        """What float32 arithmetic on a device may give at least, in whatever order it adds, (N,).

        A threshold read off these loses nobody to rounding: where the map is steep, the last bits of the score are worth
        more than the sixth decimal of the probability.
        """
        checked_N3 = _checked(evidence_N3)
        size_N3 = (np.abs(checked_N3) + np.abs(self.mean_3)) / self.sd_3 * self.weight_3
        size_N = size_N3.sum(axis=1) + np.abs(self.score_K).max()
        score_N = self.score(checked_N3) - ROUNDING * size_N
        lowest_N: Array = np.interp(score_N, self.score_K, self.probability_K) - ROUNDING * len(self.score_K)
        return np.maximum(lowest_N, 0.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, read back by :meth:`from_json`."""
        lists = {name.rsplit("_", 1)[0]: getattr(self, name).tolist() for name in self.__slots__}
        return {"evidence": list(EVIDENCE), **lists}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "calibration") -> Calibration:
        """The calibration that :meth:`to_json` wrote."""
        try:
            if tuple(value["evidence"]) != EVIDENCE:
                raise DataError(f"its evidence is {value['evidence']}, this version computes {list(EVIDENCE)}")
            return cls(*(np.array(value[name.rsplit("_", 1)[0]], dtype=np.float64) for name in cls.__slots__))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where} is not a calibration ({error}): {str(value)[:200]}") from error


def evidence(
    predicted_loss_N: npt.NDArray[np.floating],
    entropy_N: npt.NDArray[np.floating],
    peak_NJ: npt.NDArray[np.floating],
) -> Array:
    """The three pieces of evidence side by side, (N, 3).

    Args:
        predicted_loss_N: what one loss head says.
        entropy_N: of the heatmaps, as :func:`alpose.trainer.scoring.score` computes it, in nats.
        peak_NJ: height of the heatmaps' peaks as a share of the training peak.
    """
    columns = (predicted_loss_N, entropy_N, 1.0 - np.asarray(peak_NJ, dtype=np.float64).mean(axis=1))
    return np.column_stack(columns).astype(np.float64)


def fitting_half(ids: Sequence[str]) -> Bools:
    """Which people fit the calibration, (N,); the others measure it. A hash of the id decides.

    So the halves stay the same whatever the order, and nothing has to be stored. Where several people share an image,
    give the image's name for each of them: both sides of one photograph would not be independent.
    """
    return np.asarray(hashes(ids, "calibration") % 2 == 0)


def fit(evidence_N3: npt.NDArray[np.floating], failed_N: Bools) -> Calibration:
    """Learn the map from people whose failures are known.

    Evidence that does not speak for failures where the others are known gets weight 0. Probabilities stay off 0 and 1
    (see :func:`centred_isotonic`).

    Args:
        evidence_N3: from :func:`evidence`.
        failed_N: who failed.

    Raises:
        DataError: nobody there, nobody failed or everybody did, or evidence that is not finite.
    """
    checked_N3 = _checked(evidence_N3)
    check_classes(failed_N, len(checked_N3), "calibration")
    mean_3, sd_3 = checked_N3.mean(axis=0), checked_N3.std(axis=0)
    constant_3 = sd_3 <= MIN_SPREAD * np.maximum(1.0, np.abs(mean_3))
    # As float32, because the knots below must be fitted to the score that the graph will compute.
    mean_3, sd_3 = _float32(mean_3), _float32(np.where(constant_3, 1.0, sd_3))
    weight_3 = _float32(np.where(constant_3, 0.0, logistic_weights((checked_N3 - mean_3) / sd_3, failed_N)))
    score_K, probability_K = centred_isotonic(_joint(mean_3, sd_3, weight_3, checked_N3), failed_N)
    return Calibration(mean_3, sd_3, weight_3, score_K, probability_K)


def logistic_weights(standardised_NE: Array, failed_N: Bools) -> Array:
    """Weights (E,) of a logistic regression that may not be negative; the intercept is fitted and dropped."""
    sign_N = np.where(failed_N, 1.0, -1.0)

    def loss(parameters: Array) -> tuple[float, Array]:
        weight_E, intercept = parameters[:-1], parameters[-1]
        margin_N = sign_N * (standardised_NE @ weight_E + intercept)
        pull_N = -sign_N * expit(-margin_N) / len(sign_N)
        value = np.logaddexp(0.0, -margin_N).mean() + RIDGE / 2 * weight_E @ weight_E
        return float(value), np.append(standardised_NE.T @ pull_N + RIDGE * weight_E, pull_N.sum())

    count = standardised_NE.shape[1]
    found = minimize(
        loss, np.zeros(count + 1), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * count + [(None, None)]
    )
    if not found.success:
        raise DataError(f"calibration: the weights of {', '.join(EVIDENCE)} could not be fitted to {len(sign_N)} "
                        f"people: {found.message}")  # fmt: skip
    return np.asarray(found.x[:-1], dtype=np.float64)


def centred_isotonic(score_N: Array, failed_N: Bools) -> tuple[Array, Array]:
    """Knots (scores, probabilities) of a monotone map from score to failure rate.

    Isotonic regression gives steps. As in centred isotonic regression (Oron and Flournoy, Stat. Biopharm. Res. 2017)
    each step becomes one knot at its mean score, so that the map rises between them and equal probabilities stay rare.
    The outermost knots lie at the lowest and highest score, at the height that gives the outermost steps their own
    failure rate on average. One imagined failure below everybody and one imagined success above everybody keep the
    ends off 0 and 1, in the manner of Laplace's rule.
    """
    score_G, group_N, size_G = np.unique(score_N, return_inverse=True, return_counts=True)
    rate_G = np.bincount(group_N, weights=failed_N) / size_G
    ends = (score_G[:1], score_G, score_G[-1:])
    score_G, weight_G = np.concatenate(ends), np.concatenate([[1.0], size_G, [1.0]])
    fitted_G = isotonic_regression(np.concatenate([[1.0], rate_G, [0.0]]), sample_weight=weight_G)
    rate_P, pool_G = np.unique(fitted_G, return_inverse=True)
    mass_P = np.bincount(pool_G, weights=weight_G)
    centre_P = np.bincount(pool_G, weights=weight_G * score_G) / mass_P
    if score_G[0] == score_G[-1]:  # nothing to tell people apart by: one rate for all
        return np.array([score_G[0], score_G[0] + 1.0]), np.repeat(rate_P[:1], 2)
    low = min(rate_P[0], 1.0 - _end(-score_G[::-1], weight_G[::-1], -centre_P[::-1], 1.0 - rate_P[::-1], mass_P[0]))
    high = _end(score_G, weight_G, centre_P, rate_P, mass_P[-1])
    knots = np.concatenate([score_G[:1], centre_P, score_G[-1:]])
    return _apart(knots, np.concatenate([[low], rate_P, [high]]), MIN_GAP * float(score_N.std()))


def _end(score_G: Array, weight_G: Array, centre_P: Array, rate_P: Array, mass: float) -> float:
    """Probability at the highest score: what the last step lost below its centre is given back above it."""
    start = (centre_P[-2] + centre_P[-1]) / 2 if len(centre_P) > 1 else -np.inf
    below_G = (score_G >= start) & (score_G < centre_P[-1])
    lost = weight_G[below_G] @ (rate_P[-1] - np.interp(score_G[below_G], centre_P, rate_P))
    above_G = np.maximum(score_G - centre_P[-1], 0.0)
    share = float(weight_G @ above_G) / above_G[-1] if above_G[-1] > 0 else 0.0
    limit = max(float(rate_P[-1]), (mass + 1.0) / (mass + 2.0))
    return min(limit, float(rate_P[-1]) + (float(lost) / share if share > 0 else 0.0))


def _apart(score_K: Array, probability_K: Array, gap: float) -> tuple[Array, Array]:
    """The knots without those that follow another too closely; both ends stay."""
    kept = [0]
    for place in range(1, len(score_K) - 1):
        if score_K[place] - score_K[kept[-1]] >= gap and score_K[-1] - score_K[place] >= gap:
            kept.append(place)
    kept.append(len(score_K) - 1)
    return score_K[kept], probability_K[kept]


def check_classes(failed_N: Bools, count: int, what: str) -> None:
    """Refuse an empty or one-class set, or one that does not fit the evidence."""
    if failed_N.shape != (count,) or failed_N.dtype != np.bool_:
        raise DataError(f"{what}: failed_N must be {count} booleans, got {failed_N.dtype} {failed_N.shape}")
    failures = int(failed_N.sum())
    if not count:
        raise DataError(f"{what}: there is nobody to measure on; give labelled people that trained nothing")
    if failures in (0, count):
        if failures:
            advice = ("The model is too weak, or the people are too hard, for this definition of a failure: give easier or "
                      "more people (--calibration), or a more tolerant definition (--failure, --failure-limit)")  # fmt: skip
        else:
            advice = ("The model is too good, or the people are too few or too easy, for this definition of a failure: give "
                      "harder or more people (--calibration), or a stricter definition (--failure, --failure-limit)")  # fmt: skip
        raise DataError(
            f"{what}: {failures} of {count} people failed; both failures and successes are needed. {advice}"
        )


def _checked(evidence_N3: npt.NDArray[np.floating]) -> Array:
    values_N3 = np.asarray(evidence_N3, dtype=np.float64)
    if values_N3.ndim != 2 or values_N3.shape[1] != len(EVIDENCE):
        raise DataError(f"evidence has the columns {', '.join(EVIDENCE)}, got an array of shape {values_N3.shape}")
    bad_N3 = ~np.isfinite(values_N3)
    if bad_N3.any():
        row, column = (int(place) for place in np.argwhere(bad_N3)[0])
        raise DataError(f"evidence is not finite for {int(bad_N3.any(axis=1).sum())} of {len(values_N3)} people, first "
                        f"{EVIDENCE[column]} = {values_N3[row, column]} in row {row}: the model's weights or its input "
                        "are damaged")  # fmt: skip
    return values_N3


def _joint(mean_3: Array, sd_3: Array, weight_3: Array, evidence_N3: npt.NDArray[np.floating]) -> Array:
    return np.asarray(((np.asarray(evidence_N3, dtype=np.float64) - mean_3) / sd_3) @ weight_3, dtype=np.float64)


def _float32(value: Array) -> Array:
    return value.astype(np.float32).astype(np.float64)
