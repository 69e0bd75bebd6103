"""Of one continuous failure only the best few frames."""

from __future__ import annotations

import logging
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.triggers import Budget, Decision, Episodes, Jump, Observation, Policy, Setting, Threshold, Trigger

EMPTY_D = np.empty(0, dtype=np.float32)


def seen(time_s: float, probability: float, stream: str = "", jump: float = 0.0) -> Observation:
    return Observation(time_s=time_s, failure_probability=probability, predicted_loss=0.0, embedding_D=EMPTY_D,
                       stream=stream, jump=jump)  # fmt: skip


def watch(trigger: Trigger, frames: list[Observation]) -> tuple[list[Decision], list[int]]:
    """All decisions, and what is left in the queue after them."""
    decider = Policy(trigger, Setting(None, np.random.default_rng(0), 1.0))
    decisions: list[Decision] = []
    left: list[int] = []
    for number, frame in enumerate(frames):
        decision = decider.decide(frame)
        decider.on_stored(decision.keep)
        if decision.keep:
            left = [one for one in left if one not in decision.supersedes] + [number]
        decisions.append(decision)
    return decisions, left


def each_second(*scores: float) -> list[Observation]:
    return [seen(i, score) for i, score in enumerate(scores)]


def test_the_first_frame_is_kept_at_once_and_a_better_one_replaces_it() -> None:
    decisions, left = watch(Episodes(Threshold(0.5), best=1), each_second(0.6, 0.55, 0.9, 0.91, 0.7))

    assert [decision.keep for decision in decisions] == [True, False, True, False, False]
    assert decisions[2].supersedes == (0,)
    assert left == [2]
    assert [str(reason) for reason in decisions[3].reasons] == ["threshold 0.91 >= 0.5", "episode 0.91 < 0.945"]
    assert decisions[3].inclusion_probability == 0.0


def test_of_two_frames_of_one_moment_the_better_stays() -> None:
    _, left = watch(Episodes(Threshold(0.5), best=3, gap_s=3), each_second(0.6, 0.7, 0.9, 0.8, 0.7, 0.75))

    assert left == [2, 5]


def test_when_all_places_are_taken_the_worst_goes() -> None:
    scores = (0.8, 0.1, 0.6, 0.1, 0.7, 0.1, 0.9)
    decisions, left = watch(Episodes(Threshold(0), best=3, gap_s=2), each_second(*scores))

    assert left == [0, 4, 6]
    assert decisions[6].supersedes == (2,)


def test_a_gap_begins_a_new_episode() -> None:
    decisions, left = watch(Episodes(Threshold(0.5), best=1, gap_s=2), each_second(0.6, 0.1, 0.6, 0.1, 0.1, 0.6, 0.1))

    assert left == [0, 5]
    assert [decision.episode for decision in decisions] == [0, None, 0, None, None, 1, None]


def test_a_failure_without_end_gives_a_few_frames_every_minute() -> None:
    _, left = watch(Episodes(Threshold(0.5), best=2, gap_s=2, longest_s=60), [seen(i, 0.9) for i in range(600)])

    assert left == [start + more for start in range(0, 600, 61) for more in (0, 2)]


def test_streams_have_episodes_of_their_own() -> None:
    frames = [seen(i / 2, 0.9, stream="ab"[i % 2]) for i in range(8)]
    decisions, left = watch(Episodes(Threshold(0.5), best=1), frames)

    assert left == [0, 1]
    assert [decision.episode for decision in decisions[:4]] == [0, 1, 0, 1]


def test_what_the_queue_could_not_take_holds_no_place() -> None:
    decider = Policy(Episodes(Threshold(0.5), best=1), Setting(None, np.random.default_rng(0)))

    assert decider.decide(seen(0, 0.9)).keep
    decider.on_stored(False)
    second = decider.decide(seen(1, 0.6))
    assert (second.keep, second.supersedes) == (True, ())


def test_a_frame_that_the_queue_refused_replaces_nothing() -> None:
    decider = Policy(Episodes(Threshold(0.5), best=1), Setting(None, np.random.default_rng(0)))
    decider.decide(seen(0, 0.6))
    decider.on_stored(True)
    assert decider.decide(seen(1, 0.8)).supersedes == (0,)
    decider.on_stored(False)

    assert decider.decide(seen(2, 0.7)).supersedes == (0,)


def test_a_frame_that_another_branch_wants_too_is_not_dropped() -> None:
    decisions, left = watch(
        Episodes(Threshold(0.5), best=1) | Jump(1), [seen(0, 0.6, jump=2), seen(1, 0.9), seen(2, 0.99)]
    )

    assert left == [0, 2]
    assert [decision.supersedes for decision in decisions] == [(), (), (1,)]


def test_an_episode_that_cannot_spend_its_budget_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "alpose.monitor"):
        Policy(Episodes(Budget(500)), Setting(None, np.random.default_rng(0)))

    assert "at most 180 frames an hour of one stream" in caplog.text


@given(
    st.lists(
        st.tuples(st.sampled_from([0.1, 0.5, 1.0, 3.0]), st.sampled_from([0.1, 0.55, 0.6, 0.8, 0.9, 0.99])), max_size=80
    ),
    st.integers(1, 4),
)
def test_what_is_left_of_every_episode(steps: list[tuple[float, float]], best: int) -> None:
    frames, time_s = [], 0.0
    for wait_s, score in steps:
        time_s += wait_s
        frames.append(seen(time_s, score))
    decisions, left = watch(Episodes(Threshold(0.5), best=best, gap_s=2, longest_s=20), frames)

    episodes = {decision.episode for decision in decisions if decision.episode is not None}
    for episode in episodes:
        found = [i for i, decision in enumerate(decisions) if decision.episode == episode]
        stayed = [i for i in left if i in found]
        times = [frames[i].time_s for i in stayed]
        assert decisions[found[0]].keep
        assert 1 <= len(stayed) <= best
        assert all(b - a >= 2 for a, b in pairwise(times))
        assert frames[found[-1]].time_s - frames[found[0]].time_s <= 20
        top = max(frames[i].failure_probability for i in found)
        assert max(frames[i].failure_probability for i in stayed) * 1.05 > top
