from __future__ import annotations

import math

import numpy as np
import pytest

from alpose.runtime.bundle.manifest import HISTOGRAM_BINS, CalibrationFacts
from alpose.runtime.commands.replay import replay, table
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.scorelog import ScoreLog, decode
from alpose.runtime.triggers import Decision, Observation, Policy, Setting, parse

BUNDLE = "ab" * 32
CALIBRATION = CalibrationFacts((), (1,) * HISTOGRAM_BINS, {})
NS = 10**9
Left = dict[int, tuple[bool, bool]]
"""Flagged, in the control stream; by number of the frame."""


def live(
    policy: str, hours: float = 1.0, *, streams: int = 1, seed: int = 0, start_s: int = 100, rows: int = 500
) -> tuple[list[bytes], Left, list[float]]:
    """A monitor at one frame a second: its chunks, what is left in its queue, and all failure probabilities."""
    rng = np.random.default_rng(7)
    frames = int(hours * 3600)
    scores = (rng.beta(0.4, 4, frames) ** 0.5).astype(np.float32).tolist()
    # Four halves of either sign in eight places: cosines are quarters, which the log's half precision keeps, and which
    # are the same in whatever order a machine adds.
    halves_ND = rng.choice(np.array([-0.5, 0.5], dtype=np.float32), (frames, 8))
    embeddings_ND = np.where(rng.random((frames, 8)).argsort(axis=1) < 4, halves_ND, np.float32(0))
    decider = Policy(parse(policy), Setting(CALIBRATION, np.random.default_rng(seed)))
    logs = [ScoreLog(BUNDLE, f"camera {i}", rows) for i in range(streams)]
    chunks: list[bytes | None] = []
    left: Left = {}
    for i, score in enumerate(scores):
        at_ns = (start_s + i) * NS
        # Half precision, because that is what the log keeps.
        seen = Observation(time_s=at_ns / NS, failure_probability=score, predicted_loss=0.0, embedding_D=embeddings_ND[i],
                           jump=float(np.float16(rng.exponential(0.3))), stream=f"camera {i % streams}")  # fmt: skip
        decision = decider.decide(seen)
        decider.on_stored(decision.keep)
        chunks.append(logs[i % streams].add(seen, decision, 10**18 + at_ns, at_ns))
        if decision.keep:
            for one in decision.supersedes:
                del left[one]
            for one in decision.demotes:
                left[one] = (False, True)
            left[i] = (decision.flagged, decision.control_draw is not None)
    chunks += [log.finish() for log in logs]
    return [chunk for chunk in chunks if chunk], left, scores


@pytest.mark.parametrize(
    "policy",
    [
        "Threshold(0.6)",
        "Episodes(Budget(200), best=2) | Control(rate=0.02)",
        "Budget(300) & Novel(0.3) | Jump(1.5)",
        "Budget(200) & Cooldown(4) | Control(per_hour=100)",
    ],
)
@pytest.mark.parametrize("streams", [1, 3])
def test_the_policy_of_the_time_keeps_the_same_again(policy: str, streams: int) -> None:
    chunks, left, scores = live(policy, streams=streams)
    again = replay(reversed(chunks), parse(policy), CALIBRATION)

    assert again.frames == 3600
    assert again.hours == pytest.approx(3599 / 3600)
    assert again.kept == len(left)
    assert again.flagged == sum(flagged for flagged, _ in left.values())
    assert again.control == sum(control for _, control in left.values())
    assert again.kept_both == again.kept <= again.kept_then
    assert again.expected_failures == pytest.approx(sum(scores), rel=1e-5)
    assert again.expected_caught == pytest.approx(sum(scores[i] for i in left), rel=1e-5)


def test_another_policy_by_hand() -> None:
    chunks, _, scores = live("Threshold(0.6)")
    other = replay(chunks, parse("Threshold(0.4)"), CALIBRATION)
    wanted = [p for p in scores if p >= 0.4]

    assert (other.kept, other.kept_both) == (len(wanted), sum(p >= 0.6 for p in scores))
    assert other.per_hour == pytest.approx(len(wanted), rel=1e-3)
    assert other.recall == pytest.approx(sum(wanted) / sum(scores), rel=1e-5)
    assert other.precision == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)
    assert other.by_reason == {"threshold": len(wanted)}


def test_restarts_of_the_device_come_one_after_the_other() -> None:
    """The monotonic clock begins again; by it alone, the two days would be woven into one."""
    first, *_ = live("Threshold(0.6)", 0.5, start_s=5000)
    second = [
        foreign(one.seconds_N.tolist(), one.failure_probability_N.tolist(), one.start_ns + 86400 * NS,
                one.start_monotonic_ns, BUNDLE)
        for one in map(decode, live("Threshold(0.6)", 0.5, start_s=10)[0])
    ]  # fmt: skip
    both = replay(second + first, parse("Threshold(0.6) & Cooldown(100)"), CALIBRATION)
    alone = replay(first, parse("Threshold(0.6) & Cooldown(100)"), CALIBRATION)

    assert both.hours == pytest.approx(2 * alone.hours)
    assert both.kept == pytest.approx(2 * alone.kept, abs=1)


def foreign(seconds: list[float], scores: list[float], start_ns: int, start_monotonic_ns: int, bundle: str) -> bytes:
    """A chunk of which nothing was kept."""
    log = ScoreLog(bundle)
    for after_s, score in zip(seconds, scores, strict=True):
        seen = Observation(
            time_s=0.0, failure_probability=score, predicted_loss=0.0, embedding_D=np.empty(0, dtype=np.float32)
        )
        after_ns = round(after_s * NS)
        log.add(seen, Decision(False, 0.0, False), start_ns + after_ns, start_monotonic_ns + after_ns)
    data = log.finish()
    assert data is not None
    return data


def test_a_pause_is_no_time() -> None:
    early, *_ = live("Threshold(0.6)", 0.5, start_s=0)
    late, *_ = live("Threshold(0.6)", 0.5, start_s=8 * 3600)

    assert replay(early + late, parse("Threshold(0.6)"), CALIBRATION).hours == pytest.approx(1, rel=0.01)


def test_without_calibration_no_failures_are_expected() -> None:
    chunks, *_ = live("Threshold(0.6)", 0.1)
    again = replay(chunks, parse("Threshold(0.6)"), None)

    assert math.isnan(again.recall)
    assert math.isnan(again.precision)
    assert "unknown" in str(again)
    with pytest.raises(ConfigError, match="without calibration"):
        replay(chunks, parse("Catch(0.9)"), None)


def test_frames_without_a_distance_pass_novel_and_are_counted() -> None:
    chunks, *_ = live("Threshold(0.6)", 0.2)
    again = replay(chunks, parse("Threshold(0.4) & Novel(0.5)"), CALIBRATION)

    assert again.kept == replay(chunks, parse("Threshold(0.4)"), CALIBRATION).kept
    assert again.unknown_distance == again.frames
    assert f"{again.unknown_distance} of 720 frames have no logged distance" in str(again)


def test_scores_of_two_bundles_do_not_compare() -> None:
    chunks, *_ = live("Threshold(0.6)", 0.1)
    with pytest.raises(DataError, match=r"2 bundles.*abababababab, cdcdcdcdcdcd"):
        replay([*chunks, foreign([0.0], [0.5], 0, 0, "cd" * 32)], parse("Threshold(0.5)"), CALIBRATION)


def test_a_damaged_chunk_is_an_error() -> None:
    with pytest.raises(DataError):
        replay([b"nonsense"], parse("Threshold(0.5)"), CALIBRATION)


def test_an_empty_log_is_an_empty_answer() -> None:
    nothing = replay([], parse("Budget(20)"), CALIBRATION)

    assert (nothing.frames, nothing.kept) == (0, 0)
    assert math.isnan(nothing.per_hour)
    assert "0 frames in 0.0 hours" in str(nothing)


def test_the_table_sets_policies_side_by_side() -> None:
    chunks, *_ = live("Threshold(0.6)", 0.2)
    lines = table(
        [replay(chunks, parse(policy), CALIBRATION) for policy in ("Threshold(0.5)", "Budget(60)")]
    ).splitlines()

    assert lines[0].split("  ")[0] == "policy"
    assert [line.split()[0] for line in lines[1:3]] == ["Threshold(0.5)", "Budget(per_hour=60)"]
    assert len({len(line) for line in lines[:3]}) == 1
