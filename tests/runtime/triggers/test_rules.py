"""Single triggers, and how they combine."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.bundle.manifest import HISTOGRAM_BINS, CalibrationFacts
from alpose.runtime.bundle.manifest import Threshold as Vouched
from alpose.runtime.errors import ConfigError
from alpose.runtime.triggers import (
    AllOf,
    AnyOf,
    Budget,
    Catch,
    Control,
    Cooldown,
    Decision,
    Episodes,
    Jump,
    Limbs,
    Novel,
    Observation,
    Policy,
    Setting,
    Threshold,
    Trigger,
    parse,
)

from ...fakes.coin import Coin

UNIT_D = np.array([1.0, 0.0], dtype=np.float32)


def seen(time_s: float, probability: float = 0.0, **more: Any) -> Observation:
    return Observation(time_s=time_s, failure_probability=probability, predicted_loss=0.0,
                       **{"embedding_D": UNIT_D, **more})  # fmt: skip


def setting(seed: int = 0, calibration: CalibrationFacts | None = None) -> Setting:
    return Setting(calibration, np.random.default_rng(seed), 10.0)


def watch(trigger: Trigger, frames: Iterable[Observation], seed: int = 0) -> list[Decision]:
    """Every decision, where all that is to be kept is kept."""
    decider = Policy(trigger, setting(seed))
    decisions = []
    for frame in frames:
        decisions.append(decider.decide(frame))
        decider.on_stored(decisions[-1].keep)
    return decisions


def remaining(decisions: list[Decision]) -> set[int]:
    """Sequence numbers of what is left in the queue."""
    gone = {one for decision in decisions if decision.keep for one in decision.supersedes}
    return {number for number, decision in enumerate(decisions) if decision.keep} - gone


@pytest.mark.parametrize(
    ("trigger", "number", "name"),
    [
        (Threshold(0.5), "probability", "threshold"),
        (Jump(0.5), "jump", "jump"),
        (Limbs(0.5), "limbs", "limbs"),
    ],
    ids=str,
)
def test_a_limit_fires_from_its_value_on_and_never_for_what_is_no_number(
    trigger: Trigger, number: str, name: str
) -> None:
    decisions = watch(trigger, [seen(i, **{number: value}) for i, value in enumerate((0.49, 0.5, 0.9, math.nan))])

    assert [decision.keep for decision in decisions] == [False, True, True, False]
    assert [decision.inclusion_probability for decision in decisions] == [0.0, 1.0, 1.0, 0.0]
    assert [str(reason) for reason in decisions[2].reasons] == [f"{name} 0.9 >= 0.5"]
    assert decisions[0].reasons == ()


def test_a_limit_that_float32_cannot_hold_is_met_by_the_nearest_number_it_can() -> None:
    """An engine that means 0.7 says 0.699999988: the failure at the limit is flagged, the one below it is not."""
    for limit in np.arange(1, 1000) / 1000:
        there = np.float32(limit)
        below = np.nextafter(np.nextafter(there, np.float32(0)), np.float32(0))
        decisions = watch(Threshold(float(limit)), [seen(0.0, float(there)), seen(1.0, float(below))])
        assert [decision.flagged for decision in decisions] == [True, False]
        assert decisions[0].threshold == limit  # what people read is what they wrote


def test_only_a_limit_on_the_failure_probability_is_a_threshold() -> None:
    both = watch(Threshold(0.5) | Jump(3), [seen(0)])[0]
    none = watch(Jump(3), [seen(0)])[0]

    assert (both.threshold, none.threshold) == (0.5, None)
    assert watch(Threshold(0.5) | Threshold(0.7), [seen(0)])[0].threshold == 0.5
    assert watch(Threshold(0.5) & Threshold(0.7), [seen(0)])[0].threshold == 0.7


def facts(*thresholds: Vouched) -> CalibrationFacts:
    return CalibrationFacts(thresholds, (1,) * HISTOGRAM_BINS, {})


def test_catch_takes_the_threshold_that_the_bundle_vouches_for() -> None:
    vouched = facts(Vouched(catch=0.9, confidence=0.9, threshold=0.25))
    decider = Policy(Catch(0.9), setting(calibration=vouched))

    assert decider.decide(seen(0, 0.25)).keep
    assert not decider.decide(seen(1, 0.24)).keep


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, r"Catch\(0.9\): this bundle was exported without calibration.*--calibration.*Budget"),
        (facts(), r"no threshold for catch 0.9; it has: none.*Budget"),
        (facts(Vouched(catch=0.9, confidence=0.9, threshold=None, reason="3 failures")), "3 failures.*Budget"),
    ],
    ids=["no calibration", "no such share", "too few failures"],
)
def test_catch_without_a_promise_is_refused_at_the_start(calibration: CalibrationFacts | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Policy(Catch(0.9) | Control(0.001), setting(calibration=calibration))


def test_a_cooldown_counts_from_what_was_really_kept_and_for_each_stream() -> None:
    decider = Policy(Threshold(0.5) & Cooldown(5), setting())

    def keep(time_s: float, kept: bool = True, stream: str = "") -> bool:
        decision = decider.decide(seen(time_s, 0.9, stream=stream))
        decider.on_stored(decision.keep and kept)
        return decision.keep

    assert keep(0, kept=False)  # the queue could not take it
    assert keep(1)
    assert not keep(5.9)
    assert keep(5.9, stream="other")
    assert keep(6.0)
    assert keep(2.0)  # the clock was set back


def test_what_a_cooldown_holds_back_says_why() -> None:
    trigger = Threshold(0.5) & Cooldown(5)
    held, quiet = watch(trigger, [seen(0, 0.9), seen(2, 0.9), seen(3, 0.1)])[1:]

    assert [str(reason) for reason in held.reasons] == ["threshold 0.9 >= 0.5", "cooldown 2 < 5"]
    assert (held.keep, held.inclusion_probability) == (False, 0.0)
    assert quiet.reasons == ()


def turned(degrees: float) -> Any:
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=np.float32)


def test_novel_measures_the_cosine_distance_to_everything_kept() -> None:
    angles = [0, 20, 70, 10, 130]
    decisions = watch(Threshold(0.5) & Novel(0.5), [seen(i, 0.9, embedding_D=turned(a)) for i, a in enumerate(angles)])

    assert [decision.keep for decision in decisions] == [True, False, True, False, True]
    expected = [1.0] + [1 - math.cos(math.radians(a)) for a in (20, 70, 10, 60)]
    assert [decision.novelty for decision in decisions] == pytest.approx(expected, rel=1e-3)
    assert str(decisions[1].reasons[1]) == "novel 0.0603 < 0.5"


def test_novel_passes_what_has_no_distance_and_does_not_remember_it() -> None:
    bad_D = np.array([math.nan, 0], dtype=np.float32)
    decisions = watch(Novel(1.5), [seen(0, embedding_D=bad_D), seen(1), seen(2, embedding_D=bad_D), seen(3)])

    assert [decision.keep for decision in decisions] == [True, True, True, False]
    assert [decision.novelty for decision in decisions] == [1.0, 1.0, 1.0, pytest.approx(0.0)]


def test_novel_forgets_the_oldest() -> None:
    frames = [seen(i, embedding_D=one_hot_D) for i, one_hot_D in enumerate(np.eye(520, dtype=np.float32))]
    decisions = watch(Novel(0.5), [*frames, replace(frames[519], time_s=600), replace(frames[0], time_s=601)])

    assert [decision.keep for decision in decisions[-2:]] == [False, True]


def test_novelty_is_known_of_what_is_kept_even_without_novel() -> None:
    first, passed, again = watch(Threshold(0.5), [seen(0, 0.9), seen(1, 0.1), seen(2, 0.9)])

    assert (first.novelty, passed.novelty) == (1.0, 1.0)
    assert again.novelty == pytest.approx(0.0)
    assert math.isnan(again.distance)  # nothing for the log: of frames that pass it is not known


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_probabilities_multiply(either: list[float], both: list[float]) -> None:
    trigger: Trigger = Coin(either[0])
    for p in either[1:]:
        trigger = trigger | Coin(p)
    for p in both:
        trigger = trigger & Coin(p)
    decision = watch(trigger | Control(0.25), [seen(0)])[0]

    inner = (1 - math.prod(1 - p for p in either)) * math.prod(both)
    assert decision.inclusion_probability == pytest.approx(1 - (1 - inner) * 0.75)


def test_every_frame_takes_part_in_the_control_stream_flagged_or_not() -> None:
    decisions = watch(Threshold(0.5) | Control(0.3), [seen(i, i % 2) for i in range(4000)])

    for flagged in (0, 1):
        drawn = [decision.control_draw for decision in decisions[flagged::2] if decision.control_draw is not None]
        assert len(drawn) == pytest.approx(600, abs=3 * math.sqrt(2000 * 0.3 * 0.7))
        assert all(0 <= draw < 0.3 for draw in drawn)
    assert {decision.inclusion_probability for decision in decisions[1::2]} == {1.0}
    assert {decision.inclusion_probability for decision in decisions[::2]} == {0.3}
    assert [decision.flagged for decision in decisions[:4]] == [False, True, False, True]
    assert {decision.control_rate for decision in decisions} == {0.3}


@pytest.mark.parametrize("fps", [0.02, 1.0, 30.0])
def test_control_per_hour_follows_the_frame_rate(fps: float) -> None:
    decisions = watch(Control(per_hour=36 * fps), [seen(i / fps) for i in range(5000)])

    rates = [decision.control_rate for decision in decisions]
    assert rates[-1] == pytest.approx(0.01, rel=0.01)
    assert sum(decision.keep for decision in decisions) == pytest.approx(sum(rates), abs=3 * math.sqrt(sum(rates)))


@settings(max_examples=50)
@given(st.lists(st.sampled_from([0.1, 0.4, 0.5, 0.7, 0.9]), max_size=60))
def test_branches_do_not_know_of_each_other(scores: list[float]) -> None:
    frames = [seen(i, p, jump=(i * 7 % 11) / 10) for i, p in enumerate(scores)]
    for a, b in [
        (Threshold(0.6) & Cooldown(3), Threshold(0.8)),
        (Episodes(Threshold(0.3), best=2, gap_s=3), Threshold(0.6) & Cooldown(4)),
        (Episodes(Threshold(0.3), best=1, gap_s=2) & Cooldown(2), Jump(0.8)),
    ]:
        assert remaining(watch(a | b, frames)) == remaining(watch(a, frames)) | remaining(watch(b, frames))


def test_joins_are_flat_and_compare() -> None:
    a, b, c = Threshold(0.5), Jump(1), Limbs(4)

    assert (a | b) | c == a | (b | c) == AnyOf((a, b, c))
    assert (a & b) & c == a & (b & c) == AllOf((a, b, c))
    assert str((a | b) & c) == "(Threshold(0.5) | Jump(1)) & Limbs(4)"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Threshold(1.5),
        lambda: Threshold("0.5"),  # type: ignore[arg-type]
        lambda: Threshold(True),
        lambda: Threshold(math.nan),
        lambda: Budget(0),
        lambda: Budget(math.inf),
        lambda: Budget(10**400),
        lambda: Novel(2.5),
        lambda: Cooldown(-1),
        lambda: Catch(2),
        Control,
        lambda: Control(0.1, per_hour=3),
        lambda: Control(0.1) | Control(0.2),
        lambda: Control(0.1) & Threshold(0.5),
        lambda: (Control(0.1) | Threshold(0.5)) & Novel(0.1),
        lambda: Episodes(Budget(20) | Control(0.1)),
        lambda: Episodes(Episodes(Budget(20))),
        lambda: Episodes(Budget(20)) & Episodes(Jump(2)),
        lambda: Episodes(Budget(20), best=0),
        lambda: Episodes(Budget(20), gap_s=9, longest_s=8),
        lambda: Episodes("Budget(20)"),  # type: ignore[arg-type]
        lambda: AnyOf((Budget(20),)),
    ],
)
def test_a_policy_that_means_nothing_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


# --- by joints


def knowing(joints: tuple[str, ...] = ("nose", "left_wrist", "right_wrist")) -> Setting:
    return replace(setting(), joints=joints)


def test_threshold_flags_by_joints_and_names_the_one_that_is_wrong() -> None:
    trigger = Threshold(0.7, joints=("left_wrist", "right_wrist"))
    assert parse(str(trigger)) == trigger
    assert parse("Threshold(0.7, joints='left_wrist')") == Threshold(0.7, joints=("left_wrist",))
    policy = Policy(trigger, knowing())

    def decide(*confidence: float, probability: float = 0.1) -> Decision:
        return policy.decide(seen(0.0, probability, confidence_J=np.array(confidence, np.float32)))

    assert not decide(0.0, 0.9, 0.31).flagged  # the nose was not asked for
    assert decide(0.9, 0.9, 0.3).flagged  # exactly the limit, in float32
    said = decide(0.9, 0.1, 0.8)
    assert said.flagged
    assert [(reason.trigger, round(reason.value, 4), reason.limit) for reason in said.reasons] == [
        ("left_wrist", 0.9, 0.7)
    ]
    assert not decide(0.9, math.nan, 0.9).flagged
    assert not decide(0.9, 0.1, 0.1, probability=math.nan).flagged  # nobody is there
    assert not policy.decide(seen(0.0, 0.99)).flagged  # no confidence is known


def test_joints_that_are_not_known_are_refused() -> None:
    with pytest.raises(ConfigError, match="the confidence of joints is not known here"):
        Policy(Threshold(0.5, joints=("nose",)), setting())
    with pytest.raises(ConfigError, match="has no joint tail; it has nose"):
        Policy(Threshold(0.5, joints=("tail",)), knowing())
    with pytest.raises(ConfigError, match="joints is a tuple of names"):
        Threshold(0.5, joints="nose")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no meaning in a trigger"):
        parse("Threshold(0.5, joints=(1, 2))")
