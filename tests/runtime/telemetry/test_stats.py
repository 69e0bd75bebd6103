"""Counting from several threads, quantiles within their stated error, one snapshot, and logs that do not flood."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.drift import DriftReport
from alpose.runtime.errors import ConfigError
from alpose.runtime.logs import MOST_KEYS, RateLimitedLog
from alpose.runtime.telemetry import counters as counters_module
from alpose.runtime.telemetry.counters import Count, Counters
from alpose.runtime.telemetry.stats import (
    EDGES_NS,
    RELATIVE_ERROR,
    EngineState,
    Latency,
    Meters,
    QueueState,
    Scores,
    Stats,
)

# ---------------------------------------------------------------- counters


def test_counts_of_many_threads_add_up() -> None:
    counters, each, threads = Counters(), 5000, 8
    begin = threading.Barrier(threads + 1)

    def work(mine: int) -> None:
        begin.wait()
        for _ in range(each):
            counters.add("frames_total", decision="passed")
            counters.add("dropped_frames_total", 2, reason=f"reason {mine % 2}")

    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(work, mine) for mine in range(threads)]
        begin.wait()
        seen = []
        while not all(future.done() for future in done):
            seen.append(sum(counters.snapshot().values()))
        for future in done:
            future.result()

    assert seen == sorted(seen), "a snapshot lost counts that an earlier one had"
    assert counters.snapshot() == {
        Count("dropped_frames_total", (("reason", "reason 0"),)): each * threads,
        Count("dropped_frames_total", (("reason", "reason 1"),)): each * threads,
        Count("frames_total", (("decision", "passed"),)): each * threads,
    }


def test_whoever_is_interrupted_in_a_snapshot_holds_nobody_up() -> None:
    """At every line of it other threads count for the first time, end, and read: as while a signal's handler waits."""
    counters, seen = Counters(), list[int]()

    def elsewhere(work: Callable[[], object]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()

    def interrupt(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename != counters_module.__file__:
            return None
        if event == "line" and len(seen) < 40:  # it reads again while others end
            elsewhere(lambda: counters.add("frames_total"))
            elsewhere(lambda: seen.append(counters.snapshot()[Count("frames_total")]))
        return interrupt

    elsewhere(lambda: counters.add("frames_total"))
    sys.settrace(interrupt)
    try:
        counters.snapshot()
    finally:
        sys.settrace(None)
    assert len(seen) > 10
    assert seen == list(range(2, len(seen) + 2))
    assert counters.snapshot() == {Count("frames_total"): len(seen) + 1}


def test_threads_that_have_ended_keep_their_counts_and_no_memory() -> None:
    counters = Counters()
    for _ in range(50):
        thread = threading.Thread(target=counters.add, args=("frames_total",))
        thread.start()
        thread.join()
    assert counters.snapshot() == {Count("frames_total"): 50}
    assert not counters._threads


def test_the_order_of_labels_does_not_matter() -> None:
    counters = Counters()
    counters.add("x_total", a="1", b="2")
    counters.add("x_total", b="2", a="1")
    assert counters.snapshot() == {Count("x_total", (("a", "1"), ("b", "2"))): 2}
    assert str(next(iter(counters.snapshot()))) == "x_total{a=1,b=2}"


# ---------------------------------------------------------------- latencies


@given(st.lists(st.floats(1e-6, 10.0), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]))
def test_a_quantile_is_within_the_stated_error_of_the_exact_one(seconds: list[float], share: float) -> None:
    latency = Latency()
    for one in seconds:
        latency.add(one)
    exact = sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)]
    assert latency.quantile(share) == pytest.approx(exact, rel=RELATIVE_ERROR + 2e-3)  # and 1 ns at 1 µs


def test_the_bins_are_as_fine_as_they_say_and_have_the_round_numbers_as_edges() -> None:
    assert RELATIVE_ERROR < 0.03
    assert (EDGES_NS[0], EDGES_NS[-1], len(EDGES_NS)) == (1_000, 10_000_000_000, 281)
    assert {step * 10**decade for decade in range(2, 9) for step in (10, 25, 50)} <= set(EDGES_NS)


def test_durations_beyond_both_ends_are_counted() -> None:
    latency = Latency()
    for seconds in (0.0, 1e-9, 100.0, 300.0):
        latency.add(seconds)
    assert latency.count == 4
    assert latency.quantile(0.5) <= 1e-6
    assert latency.quantile(1.0) == pytest.approx(300.0)
    assert latency.info().max_s == pytest.approx(300.0)
    assert latency.info().sum_s == pytest.approx(400.0)


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, 1e300])
def test_what_no_clock_says_is_refused_and_counted(bad: float) -> None:
    latency = Latency()
    latency.add(bad)
    assert (latency.count, latency.info().refused) == (0, 1)
    assert math.isnan(latency.quantile(0.5))


@given(st.lists(st.floats(0, 20), max_size=50), st.lists(st.floats(0, 20), max_size=50))
def test_merging_is_counting_together(ours: list[float], theirs: list[float]) -> None:
    one, other, both = Latency(), Latency(), Latency()
    for latency, seconds in ((one, ours), (other, theirs), (both, ours + theirs)):
        for value in seconds:
            latency.add(value)
    one.merge(other)
    assert str(one.info()) == str(both.info())
    assert one.info().counts == both.info().counts


@given(st.lists(st.floats(1e-6, 2.0), max_size=50), st.sampled_from([1e-3, 2.5e-3, 0.05, 1.0]))
def test_counts_up_to_a_round_number_are_exact(seconds: list[float], bound: float) -> None:
    latency = Latency()
    for value in [*seconds, bound]:
        latency.add(value)
    assert latency.info().up_to(bound) == sum(int(value * 1e9) <= round(bound * 1e9) for value in [*seconds, bound])


# ---------------------------------------------------------------- scores


def test_scores_are_counted_in_the_bins_of_the_bundle() -> None:
    scores, value_N = Scores(), np.random.default_rng(0).beta(0.5, 2.0, 500)
    for value in [*value_N.tolist(), math.nan, 1.0]:
        scores.add(value)
    facts = scores.info()
    assert list(facts.counts) == np.histogram([*value_N, 1.0], bins=64, range=(0, 1))[0].tolist()
    assert facts.mean == pytest.approx((value_N.sum() + 1) / 501)
    assert facts.refused == 1


# ---------------------------------------------------------------- the snapshot

QUEUE = QueueState(path="flagged.db", records=12, bytes=3 << 20, max_bytes=256 << 20, oldest_s=1.7e9, waiting=2)
ENGINE = EngineState(
    name="onnxruntime cpu", provider="CPUExecutionProvider", asked="cuda", fallback=True,
    golden_deviation={"keypoints": 0.004, "scores": math.inf},
)  # fmt: skip


def snapshot(meters: Meters, **changes: Any) -> Stats:
    given: dict[str, Any] = {
        "device": "car-17", "camera": "front", "bundle": "driver", "bundle_sha256": "ab" * 32, "threshold": 0.42,
        "queue": QUEUE, "drift": DriftReport(testing=True, observed=40, log10_evidence=0.25), "engine": ENGINE,
    }  # fmt: skip
    return meters.stats(**given | changes)


def used() -> Meters:
    meters = Meters()
    for place, decision in enumerate(["passed"] * 7 + ["flagged"] * 2 + ["control"]):
        meters.frame(decision, place / 10, crop_s=1e-4, inference_s=5e-3 + place * 1e-4, decision_s=1e-5, total_s=6e-3)
    meters.counters.add("dropped_frames_total", reason="handover_full")
    meters.counters.add("internal_errors_total", where="drift")
    return meters


def test_the_snapshot_has_everything_by_its_reason() -> None:
    stats = snapshot(used(), more_counts={Count("evicted_total", (("reason", "age"),)): 3})
    assert stats.frames == {"passed": 7, "flagged": 2, "control": 1}
    assert stats.dropped == {"handover_full": 1}
    assert stats.evicted == {"age": 3}
    assert stats.errors == {"drift": 1}
    assert stats.inference.count == sum(stats.scores.counts) == 10
    assert stats.inference.p50_s == pytest.approx(5.4e-3, rel=RELATIVE_ERROR)
    assert stats.scores.mean == pytest.approx(0.45)


def test_a_snapshot_does_not_change_any_more() -> None:
    meters = used()
    stats = snapshot(meters)
    before = json.dumps(stats.to_json())
    meters.frame("flagged", 0.9, crop_s=1.0, inference_s=1.0, decision_s=1.0, total_s=1.0)
    meters.counters.add("evicted_total", reason="full")
    assert json.dumps(stats.to_json()) == before


@pytest.mark.parametrize("meters", [Meters(), used()], ids=["nothing yet", "used"])
def test_json_is_plain_and_has_no_numbers_that_json_lacks(meters: Meters) -> None:
    text = json.dumps(snapshot(meters, queue=None if meters.total.count == 0 else QUEUE).to_json(), allow_nan=False)
    facts = json.loads(text)
    assert facts["engine"]["golden_deviation"] == {"keypoints": 0.004, "scores": None}
    assert facts["drift"]["observed"] == 40
    if meters.total.count:
        assert facts["counts"]["frames_total{decision=flagged}"] == 2
        assert facts["queue"]["records"] == 12
        assert facts["inference"]["p50_s"] == pytest.approx(5.4e-3, rel=RELATIVE_ERROR)
    else:
        assert facts["inference"]["p50_s"] is None
        assert facts["queue"] is None


def test_the_table_names_what_a_person_looks_for() -> None:
    alarm = DriftReport(
        testing=True, alarm=True, since_s=100.0, time_s=7400.0, direction="more failures", log10_evidence=3.1
    )
    table = str(snapshot(used(), drift=alarm, queue=None))
    for wanted in ("flagged 2", "handover_full 1", "ALARM 2.0 h ago: more failures", "FALLBACK from cuda", "p99.9",
                   "threshold now 0.420", "car-17, camera front"):  # fmt: skip
        assert wanted in table
    assert max(map(len, table.splitlines())) <= 160
    assert "not tested" in str(snapshot(Meters(), drift=DriftReport(testing=False)))
    assert "no score tested yet" in str(snapshot(Meters(), drift=DriftReport(testing=True, observed=0)))
    one = str(snapshot(Meters(), drift=DriftReport(testing=True, observed=1, log10_evidence=-0.01)))
    assert "none found, evidence 10^0.0 of 10^2.0 after 1 score\n" in one
    assert "LAST ERROR: no space" in str(
        snapshot(Meters(), queue=QueueState(path="q", records=0, bytes=0, max_bytes=1, oldest_s=None,
                                            last_error="no space"))
    )  # fmt: skip


def test_frames_per_second_falls_when_frames_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("alpose.runtime.telemetry.stats.time.monotonic", lambda: now[0])
    meters = Meters()
    assert meters.frames_per_second == 0.0
    for _ in range(500):
        now[0] += 0.05
        meters.frame("passed", 0.1, crop_s=0, inference_s=0, decision_s=0, total_s=0)
    assert meters.frames_per_second == pytest.approx(20.0)
    now[0] += 3600
    assert meters.frames_per_second < 0.05


# ---------------------------------------------------------------- quiet logs

Said = Callable[[], list[str]]


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> tuple[RateLimitedLog, list[float], Said]:
    now = [0.0]
    caplog.set_level(logging.DEBUG, "alpose.test")
    limited = RateLimitedLog(logging.getLogger("alpose.test"), every_s=60.0, clock=lambda: now[0])
    return limited, now, lambda: [record.getMessage() for record in caplog.records]


def test_the_first_is_said_at_once_and_the_rest_is_counted(quiet: tuple[RateLimitedLog, list[float], Said]) -> None:
    limited, now, said = quiet
    for tick in range(1000):
        now[0] = tick * 0.1
        limited.warning("disk", "cannot write %d", tick)
    assert said() == ["cannot write 0", "cannot write 600 (599 more in 60 s)"]
    limited.warning("other", "a kind of its own")
    assert said()[-1] == "a kind of its own"


def test_what_was_counted_is_said_when_it_is_due_and_at_the_end(
    quiet: tuple[RateLimitedLog, list[float], Said],
) -> None:
    limited, now, said = quiet
    for _ in range(3):
        limited.error("disk", "cannot write")
    limited.flush()
    assert said() == ["cannot write"]
    now[0] = 61.0
    limited.flush()
    limited.flush()
    assert said() == ["cannot write", "cannot write (2 more in 61 s)"]
    limited.error("disk", "cannot write")
    limited.flush(everything=True)
    assert said()[2:] == ["cannot write (1 more in 0 s)"]


def test_kinds_do_not_grow_without_end(quiet: tuple[RateLimitedLog, list[float], Said]) -> None:
    limited, _, said = quiet
    for place in range(10 * MOST_KEYS):
        limited.warning(f"kind {place}", "x")
    assert len(limited._kinds) <= MOST_KEYS + 1
    assert len(said()) <= MOST_KEYS + 1


def test_a_message_that_does_not_fit_its_values_stops_nothing(quiet: tuple[RateLimitedLog, list[float], Said]) -> None:
    limited, _, said = quiet
    limited.warning("bad", "100 % of %d", "x")
    assert said() == ["100 % of %d ('x',)"]


# What an app counts.


@pytest.mark.parametrize(
    ("name", "n", "labels", "says"),
    [
        ("Broken_total", 1, {}, "small letters"),
        ("broken", 1, {}, "_total at the end"),
        ("broken_total", -1, {}, "counts upwards"),
        ("broken_total", 1.5, {}, "counts upwards"),
        ("broken_total", 1, {"code": 5}, "must be texts"),
        ("broken_total", 1, {"code": "a\nb"}, "must be texts"),
        ("broken_total", 1, {"code": "x" * 200}, "must be texts"),
        ("broken_total", 1, {"Code": "a"}, "must be words"),
        ("broken_total", 1, {"camera": "a"}, "not camera or le"),
        ("dropped_frames_total", 1, {"why": "lens cap"}, "labels ..reason"),
        ("stored_total", 1, {"reason": "x"}, "labels .."),
        ("crop_seconds_total", 1, {}, "another name"),
    ],
)
def test_a_count_that_no_page_could_show_is_refused_and_leaves_nothing(
    name: str, n: Any, labels: dict[str, Any], says: str
) -> None:
    counters = Counters()
    with pytest.raises(ConfigError, match=says):
        counters.add_checked(name, n, labels)
    assert counters.snapshot() == {}


def test_an_app_counts_under_the_same_labels_and_in_few_series() -> None:
    counters = Counters()
    counters.add_checked("source_faults_total", 2, {"what": "broken"})
    counters.add_checked("app_total", 1, {"b": "x", "a": "y"})
    counters.add_checked("app_total", 1, {"a": "y", "b": "x"})
    with pytest.raises(ConfigError, match="labels"):
        counters.add_checked("app_total", 1, {"a": "y"})
    for number in range(998):
        counters.add_checked("app_total", 1, {"a": str(number), "b": ""})
    with pytest.raises(ConfigError, match="never ids"):
        counters.add_checked("app_total", 1, {"a": "one more", "b": ""})
    snapshot = counters.snapshot()
    assert snapshot[Count("source_faults_total", (("what", "broken"),))] == 2
    assert snapshot[Count("app_total", (("a", "y"), ("b", "x")))] == 2
    assert len(snapshot) == 1000
