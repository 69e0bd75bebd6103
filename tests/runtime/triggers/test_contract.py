"""What every registered trigger promises, alone and in a policy.

A new trigger is held to this by being registered; arguments that make one are the only thing that is listed here.

Shapes: D dimensions of the embedding.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alpose.runtime.bundle.manifest import HISTOGRAM_BINS, CalibrationFacts
from alpose.runtime.bundle.manifest import Threshold as Vouched
from alpose.runtime.errors import ConfigError
from alpose.runtime.triggers import (
    TRIGGERS,
    ActiveTrigger,
    Control,
    Decision,
    Observation,
    Policy,
    Setting,
    Threshold,
    Trigger,
    parse,
    register,
)

CALIBRATION = CalibrationFacts((Vouched(catch=0.9, confidence=0.9, threshold=0.25),), (1,) * HISTOGRAM_BINS, {})
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Budget": (600,),
    "Catch": (0.9,),
    "Control": (0.2,),
    "Cooldown": (1.5,),
    "Episodes": (Threshold(0.3), 2),
    "Jump": (0.8,),
    "Limbs": (1.5,),
    "Novel": (0.1,),
    "Threshold": (0.4,),
}


def example(name: str) -> Trigger | None:
    """A trigger of this kind, with its defaults where none are listed; None where it has no defaults either."""
    with suppress(TypeError, ConfigError):
        return TRIGGERS[name](*ARGUMENTS.get(name, ()))
    return None


EVERY = [trigger for trigger in map(example, TRIGGERS) if trigger is not None]
FRAMES = 1500
policies = pytest.mark.parametrize(
    "trigger", [*EVERY, *(one | Control(per_hour=300) for one in EVERY if not one.is_control)], ids=str
)


def observations(seed: int = 0, streams: int = 2) -> list[Observation]:
    """A stream with NaN scores, unknown signals, pauses, ties, and a clock that is set back once."""
    rng = np.random.default_rng(seed)
    score_N = np.round(rng.beta(0.6, 2, FRAMES), 2)
    embedding_ND = rng.standard_normal((FRAMES, 4)).astype(np.float32)
    embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    return [
        Observation(
            time_s=number / 5 + 60 * (number // 400) - 100 * (number > 1200),
            failure_probability=math.nan if number % 53 == 7 else float(score_N[number]),
            predicted_loss=float(score_N[number]),
            embedding_D=embedding_ND[number],
            jump=math.nan if number % 11 == 0 else float(rng.exponential(0.4)),
            limbs=math.nan if number % 7 == 0 else float(rng.exponential(0.6)),
            stream=str(number % streams),
        )
        for number in range(FRAMES)
    ]


def run(trigger: Trigger, frames: list[Observation], seed: int = 0) -> list[Decision]:
    """Every decision, where nine of ten frames that are to be kept find room."""
    policy = Policy(trigger, Setting(CALIBRATION, np.random.default_rng(seed), 5.0))
    decisions = []
    for number, frame in enumerate(frames):
        decisions.append(policy.decide(frame))
        policy.on_stored(decisions[-1].keep and number % 10 != 0)
    return decisions


@pytest.mark.parametrize("name", TRIGGERS)
def test_there_is_an_example_of_it(name: str) -> None:
    assert example(name) is not None, (
        f"{name}({', '.join(map(repr, ARGUMENTS.get(name, ())))}) is not possible, so no test runs over {name}: add its "
        "arguments to ARGUMENTS in tests/runtime/triggers/test_contract.py"
    )


@pytest.mark.parametrize("trigger", EVERY, ids=str)
def test_its_text_is_read_back(trigger: Trigger) -> None:
    assert parse(str(trigger)) == trigger
    assert hash(parse(str(trigger))) == hash(trigger)
    assert trigger in list((trigger & Threshold(0.5)).walk()) if not trigger.is_control else True
    assert TRIGGERS[type(trigger).__name__] is type(trigger)


@policies
def test_a_decision_is_consistent(trigger: Trigger) -> None:
    frames = observations()
    decisions = run(trigger, frames)
    assert any(decision.keep for decision in decisions)
    for number, (frame, decision) in enumerate(zip(frames, decisions, strict=True)):
        p = decision.inclusion_probability
        assert 0.0 <= p <= 1.0
        assert p > 0.0 or not decision.keep
        assert not decision.flagged or decision.keep
        assert decision.keep == (decision.flagged or decision.control_draw is not None)
        assert (decision.control_draw is not None) <= (decision.control_rate > 0.0)
        assert not decision.keep or decision.reasons
        assert all(str(reason) for reason in decision.reasons)
        assert all(0 <= one < number for one in (*decision.supersedes, *decision.demotes))
        assert 0.0 <= decision.novelty <= 2.0
        assert decision.threshold is None or 0.0 <= decision.threshold <= 1.0
        if math.isnan(frame.failure_probability):
            assert not decision.flagged
            assert p == decision.control_rate


@policies
def test_the_same_seed_decides_the_same(trigger: Trigger) -> None:
    def outcome(seed: int) -> list[str]:
        return list(map(repr, run(trigger, observations(), seed)))

    assert outcome(3) == outcome(3)


@policies
def test_what_the_control_stream_draws_changes_nothing_that_is_flagged(trigger: Trigger) -> None:
    if any(found.is_control for found in trigger.walk()):
        pytest.skip("has a control stream of its own")
    never, often = (run(trigger | Control(rate), observations()) for rate in (0.0, 0.5))
    assert [one.flagged for one in never] == [one.flagged for one in often]
    assert [one.threshold for one in never] == [one.threshold for one in often]


@policies
def test_a_frame_that_is_not_settled_counts_as_not_kept(trigger: Trigger) -> None:
    frames = observations()
    unsettled, refused = (Policy(trigger, Setting(CALIBRATION, np.random.default_rng(0), 5.0)) for _ in range(2))
    for frame in frames:
        one, other = unsettled.decide(frame), refused.decide(frame)
        refused.on_stored(False)
        assert repr(one) == repr(other)


@policies
def test_a_frame_that_was_not_to_be_kept_teaches_nothing(trigger: Trigger) -> None:
    plain, told = (Policy(trigger, Setting(CALIBRATION, np.random.default_rng(0), 5.0)) for _ in range(2))
    for frame in observations():
        one, other = plain.decide(frame), told.decide(frame)
        plain.on_stored(one.keep)
        told.on_stored(True)  # kept by hand
        assert repr(one) == repr(other)


@policies
def test_it_goes_on_from_its_state(trigger: Trigger) -> None:
    """A policy that takes over another's state saves the same one, and decides on what comes next without an error."""
    setting = Setting(CALIBRATION, np.random.default_rng(0), 5.0)
    first, second = Policy(trigger, setting), Policy(trigger, setting)
    frames = observations()
    for frame in frames[:1000]:
        first.on_stored(first.decide(frame).keep)
    second.restore(first.state(), same_bundle=True)
    assert second.state().keys() == first.state().keys()
    for name, value in first.state().items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(second.state()[name], value, rtol=1e-5)
    second.restore({name: value[:1] for name, value in first.state().items()}, same_bundle=True)  # of another version
    for frame in frames[1000:]:
        assert 0.0 <= second.decide(frame).inclusion_probability <= 1.0


@policies
def test_stated_probabilities_add_up_to_what_is_kept(trigger: Trigger) -> None:
    """Over many seeds, the number of kept frames lies around the sum of what was stated, within four deviations."""
    frames = observations()
    kept = stated = spread = 0.0
    for seed in range(8):
        for decision in run(trigger, frames, seed):
            kept += decision.keep
            stated += decision.inclusion_probability
            spread += decision.inclusion_probability * (1 - decision.inclusion_probability)
    assert abs(kept - stated) <= 4 * math.sqrt(spread) + 1e-6


@policies
def test_memory_is_bounded_whatever_the_streams_are_called(trigger: Trigger) -> None:
    policy = Policy(trigger, Setting(CALIBRATION, np.random.default_rng(0), 5.0))
    frame = replace(observations()[0], failure_probability=0.9, jump=1.0, limbs=2.0)

    def feed(first: int, count: int) -> int:
        for number in range(first, first + count):
            decision = policy.decide(replace(frame, time_s=number * 10.0, stream=str(number)))
            policy.on_stored(decision.keep)
        return sys.getallocatedblocks()

    feed(0, 6000)
    before = feed(6000, 100)
    assert feed(6100, 12_000) - before < 6000  # one object a frame would be 12,000; a histogram has 4096 bins


@pytest.mark.parametrize("name", TRIGGERS)
def test_arguments_that_mean_nothing_are_refused_by_name(name: str) -> None:
    for wrong in ("text", math.nan, -1.0, True, None):
        with pytest.raises((ConfigError, TypeError), match=rf"{name}|argument"):
            TRIGGERS[name](wrong)  # type: ignore[call-arg]


def test_one_name_is_one_trigger() -> None:
    class Budget(Trigger):
        def activate(self, setting: Setting) -> ActiveTrigger:
            raise NotImplementedError

    with pytest.raises(ConfigError, match=r"'Budget' already, alpose\.runtime"):
        register(Budget)
