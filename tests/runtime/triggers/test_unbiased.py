"""The number that goes with every kept frame: totals weighted by 1 / inclusion probability are unbiased."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime.triggers import (
    Budget,
    Control,
    Cooldown,
    Episodes,
    Novel,
    Observation,
    Policy,
    Setting,
    Threshold,
    Trigger,
)

from ...fakes.coin import Coin

FRAMES, TRIALS = 200, 250
RNG = np.random.default_rng(1)
PLATEAUS_N = np.round(RNG.beta(0.7, 2, FRAMES) * 8) / 8
"""Scores with many ties, as a calibration gives them."""
EMBEDDINGS_ND = RNG.standard_normal((FRAMES, 4)).astype(np.float32)
EMBEDDINGS_ND /= np.linalg.norm(EMBEDDINGS_ND, axis=1, keepdims=True)
TRUTH_N = RNG.gamma(1.0, 1.0, FRAMES) * (0.2 + PLATEAUS_N)
"""Any number that belongs to a frame: its error, or whether it failed."""


def frames(scores_N: npt.NDArray[np.float64]) -> list[Observation]:
    return [
        Observation(time_s=i / 2, failure_probability=score, predicted_loss=0.0, embedding_D=EMBEDDINGS_ND[i])
        for i, score in enumerate(scores_N.tolist())
    ]


def errors(estimate: Callable[[int], float], truth: float) -> float:
    """How many standard errors the mean estimate lies from the truth."""
    estimates = np.array([estimate(seed) for seed in range(TRIALS)])
    return float(abs(estimates.mean() - truth) / (estimates.std(ddof=1) / math.sqrt(TRIALS)))


@pytest.mark.parametrize(
    "policy",
    [
        Control(0.1),
        Control(per_hour=700),
        Budget(1000) | Control(0.1),
        Episodes(Budget(1500), best=2) | Control(0.1),
        Budget(1500) & Novel(0.05) | Control(0.1),
        (Budget(1500) | Coin(0.2)) & Cooldown(2) | Control(0.1),
        Coin(0.3) & Coin(0.6) | Threshold(0.75) | Control(0.05),
        Episodes(Coin(0.5), best=2) | Control(0.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("scores_N", [PLATEAUS_N, np.full(FRAMES, 0.4)], ids=["plateaus", "constant"])
def test_a_total_over_kept_frames_is_unbiased(policy: Trigger, scores_N: npt.NDArray[np.float64]) -> None:
    seen = frames(scores_N)

    def estimate(seed: int) -> float:
        decider = Policy(policy, Setting(None, np.random.default_rng(seed), 2.0))
        total = 0.0
        for frame, truth in zip(seen, TRUTH_N.tolist(), strict=True):
            decision = decider.decide(frame)
            decider.on_stored(decision.keep)
            if decision.keep:
                total += truth / decision.inclusion_probability
        return total

    assert errors(estimate, float(TRUTH_N.sum())) < 3


@pytest.mark.parametrize("inner", [Threshold(0.2), Coin(0.5), Budget(2000)], ids=str)
def test_a_total_over_what_is_left_after_episodes_is_unbiased(inner: Trigger) -> None:
    """Flagged frames that are left count once; all others stand in the control stream for 1 / rate."""
    seen = frames(PLATEAUS_N)
    policy = Episodes(inner, best=2) | Control(0.15)
    demoted = 0

    def estimate(seed: int) -> float:
        nonlocal demoted
        decider = Policy(policy, Setting(None, np.random.default_rng(seed), 2.0))
        weights: dict[int, float] = {}
        for number, frame in enumerate(seen):
            decision = decider.decide(frame)
            decider.on_stored(decision.keep)
            for one in decision.supersedes:
                del weights[one]
            for one in decision.demotes:
                weights[one] = 1 / 0.15
                demoted += 1
            if decision.keep:
                weights[number] = 1.0 if decision.flagged else 1 / decision.control_rate
        return sum(weight * float(TRUTH_N[number]) for number, weight in weights.items())

    assert errors(estimate, float(TRUTH_N.sum())) < 3
    assert demoted > TRIALS / 10


def test_a_tie_is_kept_as_often_as_it_says() -> None:
    """Each score by itself, over a long stream: the stated probabilities add up to what is kept."""
    scores_N = np.resize(PLATEAUS_N, 40_000)
    decider = Policy(Budget(400), Setting(None, np.random.default_rng(0), 2.0))
    stated: dict[float, float] = {}
    spread: dict[float, float] = {}
    kept: dict[float, int] = {}
    for i, score in enumerate(scores_N.tolist()):
        decision = decider.decide(
            Observation(time_s=i / 2, failure_probability=score, predicted_loss=0.0, embedding_D=EMBEDDINGS_ND[0])
        )
        decider.on_stored(decision.keep)
        p = decision.inclusion_probability
        stated[score] = stated.get(score, 0.0) + p
        spread[score] = spread.get(score, 0.0) + p * (1 - p)
        kept[score] = kept.get(score, 0) + decision.keep

    assert sum(spread.values()) > 20  # there were ties to decide
    for score, total in stated.items():
        assert kept[score] == pytest.approx(total, abs=3 * math.sqrt(spread[score]) + 1e-9)
