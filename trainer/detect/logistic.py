"""Monotone logistic regression: evidence of failure to a probability that can only rise with each piece of it.

Shapes: N people, F pieces of evidence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from alpose.runtime.errors import DataError

Floats = npt.NDArray[np.floating[Any]]

RIDGE = 1e-3
"""Weight of the squared slopes, per person: where evidence parts failures from successes entirely, slopes stay finite."""


@dataclass(frozen=True, slots=True)
class Logistic:
    """``sigmoid(Σ slope · evidence + bias)`` with slopes from 0 up."""

    slope_F: npt.NDArray[np.float64]
    bias: float

    def __call__(self, evidence_NF: Floats) -> npt.NDArray[np.float64]:
        """Probability of failure, (N,)."""
        return np.asarray(special.expit(evidence_NF @ self.slope_F + self.bias), dtype=np.float64)


def fit_logistic(evidence_NF: Floats, failed_N: npt.NDArray[np.bool_], *, least: float = 0.0) -> Logistic:
    """Maximum likelihood with slopes that are not negative, by L-BFGS-B on standardised evidence.

    Two imagined people are added, a failure with the worst evidence that was seen and a success with the best: where
    everybody failed, or nobody did, there is an answer all the same.

    Args:
        evidence_NF: of people whose truth is known.
        failed_N: who failed.
        least: slope of standardised evidence, at least; above 0 the order of a single piece of evidence is kept even
            where it points the wrong way.

    Raises:
        DataError: there is nobody, or the evidence is not finite.
    """
    if not len(evidence_NF) or not np.isfinite(evidence_NF).all():
        raise DataError(f"a probability of failure needs finite evidence of people, got that of {len(evidence_NF)}")
    evidence_NF = np.concatenate([evidence_NF, evidence_NF.max(axis=0)[None], evidence_NF.min(axis=0)[None]])
    failed_N = np.append(failed_N, [True, False])
    mean_F, deviation_F = evidence_NF.mean(axis=0), np.maximum(evidence_NF.std(axis=0), 1e-12)
    # What is the same for everybody says nothing; rounding in its mean must not be blown up to evidence.
    deviation_F[np.ptp(evidence_NF, axis=0) == 0] = np.inf
    x_NF = ((evidence_NF - mean_F) / deviation_F).astype(np.float64)
    sign_N = np.where(failed_N, 1.0, -1.0)

    def loss(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        margin_N = sign_N * (x_NF @ parameters[:-1] + parameters[-1])
        pull_N = -sign_N * special.expit(-margin_N)
        gradient = np.append(x_NF.T @ pull_N / len(x_NF) + 2 * RIDGE * parameters[:-1], pull_N.mean())
        return float(np.logaddexp(0, -margin_N).mean() + RIDGE * (parameters[:-1] ** 2).sum()), gradient

    start = np.zeros(x_NF.shape[1] + 1)
    bounds = [(least, None)] * x_NF.shape[1] + [(None, None)]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    slope_F = found.x[:-1] / deviation_F
    return Logistic(slope_F, float(found.x[-1] - mean_F @ slope_F))
