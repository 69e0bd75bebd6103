"""What a Monitor leaves in its queue, and that nothing behind the answer ever reaches the app.

Shapes: H W frame.
"""

from __future__ import annotations

import gc
import http.client
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime import Budget, Control, Episodes, Monitor, Novel, Queue, Threshold, scorelog
from alpose.runtime.drift import Drift
from alpose.runtime.errors import ConfigError, QueueError
from alpose.runtime.frames import HostFrame
from alpose.runtime.locate.tracking import WholeFrame
from alpose.runtime.queue import clips
from alpose.runtime.queue.clips import PreviousFrames
from alpose.runtime.queue.images import decode
from alpose.runtime.queue.record import FrameCopy
from alpose.runtime.recording import FrameLog, FrameRecorder, PolicyState
from alpose.runtime.signals import Signals
from alpose.runtime.telemetry.counters import Counters
from alpose.runtime.triggers import Decision, Observation, Policy
from alpose.runtime.types import FrameClock, FrameTime, Outputs

from ..fakes import scripted as fakes

Scripted: Any = fakes.Scripted
Frame = npt.NDArray[np.uint8]
Make = Callable[..., Monitor]
BOX = (10.0, 5.0, 40.0, 45.0)
SECOND = 10**9


def frame(level: int = 0, height: int = 48, width: int = 64) -> Frame:
    return np.full((height, width, 3), level, dtype=np.uint8)


def total(monitor: Monitor, name: str) -> int:
    return sum(n for count, n in monitor.stats().counts.items() if count.name == name)


# --- records


def test_a_record_tells_all_that_the_verdict_does(make: Make, tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db", media_type="image/png") as queue:
        monitor = make(queue, Threshold(0.1) | Control(rate=1.0), camera="front", device_id="car-17")
        pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        verdict = monitor(pixels, BOX, time_ns=1_700_000_000 * SECOND)
        assert monitor.flush(10)
        [(record, [picture])] = queue.pull()
        assert (record.device, record.camera, record.bundle) == ("car-17", "front", monitor.bundle.sha256)
        assert (record.captured_ns, record.frame_width, record.frame_height) == (1_700_000_000 * SECOND, 64, 48)
        assert (record.box, record.place, record.store) == (BOX, "box", "full")
        np.testing.assert_array_equal(record.keypoints_J2, verdict.keypoints)
        np.testing.assert_array_equal(record.scores_J, verdict.scores)
        assert record.predicted_loss == verdict.predicted_loss
        assert record.failure_probability == verdict.failure_probability
        assert record.reasons == tuple((one.trigger, one.value, one.limit) for one in verdict.reasons)
        assert (record.flagged, record.threshold) == (True, 0.1)
        assert record.inclusion_probability == verdict.inclusion_probability == 1.0
        assert record.control_draw is not None
        assert (record.jump, record.limbs) == (None, None)
        assert np.linalg.norm(record.embedding_D.astype(float)) == pytest.approx(1, abs=1e-3)
        np.testing.assert_array_equal(decode(picture.data), pixels)


def test_the_queue_can_name_the_joints_of_its_bundle(make: Make, tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db") as queue:
        monitor = make(queue)
        monitor.close()
        [known] = queue.bundles()
        assert (known.sha256, known.name) == (monitor.bundle.sha256, "driver")
        assert known.facts["skeleton"] == monitor.bundle.skeleton.to_json()
        assert known.facts["crop"] == {"size_px": fakes.S, "margin": 1.25}


def test_of_a_crop_queue_nothing_beyond_the_crop_is_copied(make: Make, tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db", store="crop") as queue:
        monitor = make(queue, Threshold(0))
        monitor(frame(), (20.0, 15.0, 30.0, 25.0))
        assert monitor.flush(10)
        [first] = queue.peek()
        picture = queue.pictures(first.id)[0]
        assert max(picture.width, picture.height) < 20


def test_nothing_of_a_keypoints_queue_is_copied(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Queue(tmp_path / "q.db", store="keypoints", clip=(3, 3)) as queue:
        monitor = make(queue, Threshold(0))
        monkeypatch.setattr(HostFrame, "to_rgb", lambda *args: pytest.fail("a copy of a frame was made"))
        assert monitor(frame()).kept
        assert monitor.flush(10)
        assert queue.pictures(queue.peek()[0].id) == []
        assert monitor.stats().errors == {}


@pytest.mark.parametrize("form", ["rgb", "bgr"])
def test_a_clip_has_the_frames_before_and_after(make: Make, tmp_path: Path, form: str) -> None:
    script = Scripted(lambda number: {"failure_probability": 0.9 if number == 4 else 0.1})
    with Queue(tmp_path / "q.db", clip=(2, 1), media_type="image/png") as queue:
        monitor = make(queue, Threshold(0.5), script, frame_format=form)
        pixels = frame()
        for number in range(8):
            pixels[:] = 10 * number, 0, 0  # the camera writes into one buffer
            monitor(pixels)
        assert monitor.flush(10)
        [(_, pictures)] = queue.pull()
        red = 0 if form == "rgb" else 2
        levels = {picture.position: decode(picture.data)[0, 0, red] for picture in pictures}
        assert levels == {-2: 20, -1: 30, 0: 40, 1: 50}


def test_the_frames_before_are_bounded_in_bytes_and_the_camera_not_seen_for_longest_gives_way() -> None:
    counters = Counters()
    previous = PreviousFrames(3, 100, counters)

    def add(camera: str, number: int, rows: int = 2) -> None:
        previous.add(camera, FrameCopy(number, np.zeros((rows, 5, 3), np.uint8)))

    def held(camera: str) -> list[int]:
        return [copy.captured_ns for copy in previous.of(camera)]

    for number in range(4):
        add("a", number)
    assert held("a") == [1, 2, 3]
    assert counters.snapshot() == {}
    for number in range(4, 7):
        add("b", number)
    assert (held("a"), held("b")) == ([], [4, 5, 6])
    add("b", 7, rows=40)
    assert held("b") == []
    assert {str(count): n for count, n in counters.snapshot().items()} == {
        "dropped_pictures_total{reason=clip_memory}": 6
    }


def test_a_worse_frame_of_an_episode_makes_room_for_a_better_one(make: Make, tmp_path: Path) -> None:
    climb = (0.6, 0.7, 0.8, 0.9, 0.5)
    script = Scripted(lambda number: {"failure_probability": climb[number]})
    with Queue(tmp_path / "q.db") as queue:
        monitor = make(queue, Episodes(Threshold(0.4), best=1), script)
        for number in range(len(climb)):
            monitor(frame(number), time_ns=(1_700_000_000 + number) * SECOND)
            assert monitor.flush(10)
        [record] = queue.peek()
        assert record.failure_probability == pytest.approx(0.9)
        assert record.episode is not None
        assert monitor.stats().evicted == {"episode": 3}


def test_streams_are_cameras_in_the_records_and_the_books(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with make(path, Threshold(0.5), camera="cabin") as monitor:
        for number in range(10):
            monitor.batch([frame(200), frame(10)], streams=["driver", "codriver"], time_ns=number * SECOND)
        monitor(frame(200), time_ns=3600 * SECOND)
    with Queue(path) as queue:
        assert {record.camera for record in queue.peek()} == {"cabin/driver", "cabin"}
        seen = {(one.camera, one.hour_ns // SECOND): (one.frames, one.flagged, one.kept) for one in queue.tallies()}
        assert seen == {
            ("cabin/driver", 0): (10, 10, 10), ("cabin/codriver", 0): (10, 0, 0), ("cabin", 3600): (1, 1, 1),
        }  # fmt: skip
        chunks = {chunk.camera: scorelog.decode(chunk.data) for chunk in queue.scores()}
        assert set(chunks) == {"cabin/driver", "cabin/codriver", "cabin"}
        np.testing.assert_allclose(chunks["cabin/driver"].seconds_N, np.arange(10), atol=1e-3)
        assert chunks["cabin/driver"].flagged_N.all()


def observed(time_s: float) -> Observation:
    return Observation(time_s=time_s, failure_probability=0.1, predicted_loss=0.0, embedding_D=np.ones(1, "f4"))


def log_minutes(log: FrameLog, minutes: int, camera: str = "") -> None:
    for minute in range(minutes):
        moment = FrameTime(minute * 61 * SECOND, 0, minute * 61.0)
        log.add(camera, moment, observed(moment.policy_s), Decision(False, 0.0, False), False)


def test_scores_of_a_slow_camera_are_written_before_their_chunk_is_full(tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db") as queue:
        log = FrameLog("ab" * 32, "car", Counters())
        log_minutes(log, 12)
        log.write(queue)
        assert [chunk.frames for chunk in queue.scores()] == [5, 5]
        log.write(queue)
        assert sum(one.frames for one in queue.tallies()) == 12


def test_many_names_hold_no_memory_and_lose_no_scores(tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db") as queue:
        counters = Counters()
        log = FrameLog("ab" * 32, "car", counters)
        for number in range(300):
            log_minutes(log, 2, f"person-{number}")
            if number % 50 == 0:
                log.write(queue)
        log.finish()
        log.write(queue)
        assert counters.snapshot() == {}
        assert sum(chunk.frames for chunk in queue.scores()) == 600


def test_a_recording_has_hours_of_its_own(make: Make, tmp_path: Path) -> None:
    script = Scripted(lambda number: {"failure_probability": (number * 37 % 101) / 101})
    monitor = make(tmp_path / "q.db", Budget(per_hour=60), script)
    kept = sum(monitor(frame(), time_ns=number * SECOND).kept for number in range(3600))
    assert 40 < kept < 80


def test_a_clock_that_is_set_is_no_hour(make: Make) -> None:
    counters = Counters()
    clock = FrameClock(counters)
    first = clock(1_000 * SECOND)
    assert clock(1_001 * SECOND).policy_s - first.policy_s == pytest.approx(1)
    late = clock(1_000 * SECOND + SECOND // 2)
    assert late.policy_s - first.policy_s == pytest.approx(1)  # out of order, not set back
    jumped = clock(1_700_000_000 * SECOND)
    assert jumped.policy_s == pytest.approx(late.policy_s)
    assert clock(1_700_000_002 * SECOND).policy_s - jumped.policy_s == pytest.approx(2)
    assert clock(5 * SECOND).policy_s - jumped.policy_s == pytest.approx(2)
    assert [n for _, n in counters.snapshot().items()] == [2]
    assert clock(None).policy_s >= jumped.policy_s


def drive(make: Make, path: Path, trigger: Any, count: int = 1200, **options: Any) -> list[bool]:
    """A drive of 10 minutes of frames that are all alike, in a Monitor of its own."""
    script = Scripted(lambda number: {"failure_probability": 0.2 + (number * 37 % 101) / 505})
    kept = []
    with make(path, trigger, script, **options) as monitor:
        for number in range(count):
            kept.append(monitor(frame(), time_ns=10**18 + number * SECOND // 2).kept)
            if kept[-1]:
                monitor.flush()  # a busy disk would make the hand-over full, and another drive of it
    return kept


def test_what_a_policy_has_learned_survives_a_restart(make: Make, tmp_path: Path) -> None:
    path, spend_all = tmp_path / "q.db", "Budget(30) | Budget(40)"
    first = drive(make, path, spend_all, count=120)
    with Queue(path, readonly=True) as queue:
        assert queue.load_state("policy") is not None
    again = [drive(make, path, spend_all, count=120) for _ in range(3)]
    assert sum(map(sum, (first, *again))) < 4 * 8  # the account is not half full at each start
    fresh = drive(make, tmp_path / "other.db", spend_all, count=120)
    assert fresh == first


def test_state_is_for_an_equal_policy_alone_and_each_camera_has_its_own(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    for camera in ("", "left", "right"):
        drive(make, path, "Budget(3600)", count=60, camera=camera)
    with Queue(path, readonly=True) as queue:
        states = [queue.load_state(PolicyState(camera, "").key) for camera in ("", "left", "right")]
    assert None not in states
    assert drive(make, path, "Budget(7200)", count=60) == drive(make, tmp_path / "other.db", "Budget(7200)", count=60)


def test_a_state_that_cannot_be_read_is_learned_anew(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    for damage in (b"", b"no archive", b"PK\x05\x06" + bytes(18)):
        with Queue(path) as queue:
            queue.save_state("policy", damage)
        assert any(drive(make, path, "Budget(3600)", count=60))


# --- nothing behind the answer reaches the app


PARTS = {"trigger": (Policy, "decide"), "drift": (Drift, "update"), "queue": (FrameRecorder, "record"),
         "signals": (Signals, "__call__"), "where": (WholeFrame, "update")}  # fmt: skip


def break_one(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*PARTS[where], fails)


@pytest.mark.parametrize("where", PARTS)
def test_a_fault_behind_the_answer_is_counted_logged_once_and_the_verdict_comes(
    make: Make, tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = make(tmp_path / "q.db", Threshold(0))
    break_one(monkeypatch, where)
    with caplog.at_level(logging.ERROR, logger="alpose.monitor"):
        verdicts = [monitor(frame(100)) for _ in range(50)]
    assert all(np.isfinite(verdict.keypoints).all() for verdict in verdicts)
    assert monitor.stats().errors == {where: 50}
    assert len([record for record in caplog.records if "No space left" in record.message]) == 1


def test_a_frame_that_could_not_be_handed_over_is_counted_as_dropped(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = make(tmp_path / "q.db", Threshold(0))
    break_one(monkeypatch, "queue")
    assert not monitor(frame()).kept
    assert monitor.stats().dropped == {"internal": 1}


def test_an_answer_that_is_no_number_is_counted_and_not_flagged(make: Make, tmp_path: Path) -> None:
    bad = {"failure_probability": np.nan, "keypoints": np.inf, "embedding": np.nan, "predicted_loss": np.nan}
    script = Scripted(lambda number: bad if number % 2 else {"failure_probability": 0.4})
    path = tmp_path / "q.db"
    with make(path, (Threshold(0.3) & Novel(1e-9)) | Control(rate=1.0), script, track=True) as monitor:
        verdicts = [monitor(frame(10 * number)) for number in range(12)]
        assert [verdict.flagged for verdict in verdicts] == [True, False] * 6
        assert total(monitor, "unsound_answers_total") == 6
        assert monitor.stats().errors == {}
    with Queue(path) as queue:
        assert len(queue.peek()) == 12
        assert queue.check().ok


def test_an_empty_room_is_not_flagged_and_tells_the_drift_test_nothing(make: Make, tmp_path: Path) -> None:
    far = np.array([[2.0, 2.0], [12.0, 2.0], [12.0, 12.0]], dtype=np.float32)
    script = Scripted(
        lambda number: {"failure_probability": 0.4, "scores": 0.05 if number < 4 else 0.95, "keypoints": far}
    )
    path = tmp_path / "q.db"
    with make(path, Threshold(0.3) | Novel(1e-9) | Control(rate=1.0), script, track=True) as monitor:
        verdicts = [monitor(frame(number), time_ns=number * 60 * SECOND) for number in range(6)]
        # The fifth frame is searched as well, and somebody is found on it.
        assert [one.place for one in verdicts] == ["search"] * 5 + ["track"]
        assert [one.flagged for one in verdicts] == [False] * 4 + [True] * 2
        assert all(one.failure_probability == pytest.approx(0.4) for one in verdicts)
        stats = monitor.stats()
        assert stats.frames == {"control": 4, "flagged": 2}
        assert total(monitor, "unoccupied_frames_total") == 4
        assert (sum(stats.scores.counts), stats.scores.refused, stats.drift.observed) == (2, 0, 1)
        monitor.flush()
    with Queue(path) as queue:
        assert [one.failure_probability for one in queue.peek()] == [pytest.approx(0.4)] * 6
        assert [one.inclusion_probability for one in queue.peek()] == [1.0] * 6
        logged = [scorelog.decode(chunk.data).failure_probability_N for chunk in queue.scores()]
        assert np.isnan(np.concatenate(logged)).tolist() == [True] * 4 + [False] * 2


def test_a_queue_that_cannot_be_written_never_reaches_the_app(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Queue(tmp_path / "q.db") as queue:

        def fails(*args: Any, **kwargs: Any) -> Any:
            raise QueueError("full", "no room on the disk")

        monitor = make(queue, Threshold(0))
        monkeypatch.setattr(queue, "put_many", fails)
        monkeypatch.setattr(queue, "info", fails)
        for number in range(100):
            monitor(frame(number), BOX)
        assert not monitor.flush()
        stats = monitor.stats()
        assert stats.queue is not None
        assert stats.queue.last_error is not None
        assert stats.frames == {"flagged": 100}
        assert sum(stats.dropped.values()) + stats.queue.waiting == 100
        monkeypatch.undo()
        assert monitor.flush(20)


def test_a_queue_whose_file_is_deleted_is_begun_anew_with_what_readers_need(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with Queue(path) as queue:
        monitor = make(queue, Threshold(0))
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        assert monitor(frame()).kept
        assert monitor.flush(10)
        monitor.close()
    with Queue(path) as fresh:
        assert [record.bundle for record in fresh.peek()] == [known.sha256 for known in fresh.bundles()]
        assert fresh.device_id(lambda: "another") == monitor.device_id


def test_a_program_that_ends_without_closing_loses_nothing(tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[1] / "fakes" / "scripted.py"
    code = (
        f"import importlib.util, pathlib\n"
        f"spec = importlib.util.spec_from_file_location('scripted', {str(path)!r})\n"
        f"scripted = importlib.util.module_from_spec(spec)\n"
        f"spec.loader.exec_module(scripted)\n"
        f"import numpy as np\n"
        f"from alpose import runtime\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        f"bundle = scripted.write_bundle(folder / 'driver.alpose')\n"
        f"monitor = runtime.Monitor(bundle, folder / 'q.db', runtime.Threshold(0), scripted.Scripted())\n"
        f"for _ in range(5):\n"
        f"    assert monitor(np.zeros((48, 64, 3), np.uint8)).kept\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    with Queue(tmp_path / "q.db") as queue:
        assert len(queue.peek()) == 5
        assert [one.frames for one in queue.tallies()] == [5]
        assert [chunk.frames for chunk in queue.scores()] == [5]


def test_two_monitors_may_share_a_file(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    first, second = make(path, Threshold(0), camera="a"), make(path, Threshold(0), camera="b")

    def watch(monitor: Monitor) -> None:
        for number in range(8):
            monitor(frame(number))

    threads = [threading.Thread(target=watch, args=(monitor,)) for monitor in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first.close()
    second.close()
    with Queue(path) as queue:
        cameras = [record.camera for record in queue.peek()]
        assert sorted(cameras) == ["a"] * 8 + ["b"] * 8
        assert len({record.device for record in queue.peek()}) == 1


# --- what it tells of itself


def test_the_queues_numbers_are_exact_after_a_flush(make: Make, tmp_path: Path) -> None:
    monitor = make(tmp_path / "q.db", Threshold(0), camera="front")
    for number in range(3):
        monitor(frame(number))
    monitor.flush(10)
    stats = monitor.stats()
    assert stats.queue is not None
    assert (stats.queue.records, stats.queue.waiting, stats.queue.last_error) == (3, 0, None)
    assert total(monitor, "stored_total") == 3
    assert stats.engine.name == "scripted"
    assert stats.engine.asked == "the one given"
    assert set(stats.engine.golden_deviation) == {
        "keypoints", "scores", "predicted_loss", "failure_probability", "embedding"
    }  # fmt: skip
    assert (stats.camera, stats.bundle) == ("front", "driver")
    monitor(frame())
    monitor.close()
    stats = monitor.stats()
    assert stats.frames == {"flagged": 4}
    assert stats.queue is not None
    assert stats.queue.records == 4


def test_metrics_are_served_and_written(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    file = tmp_path / "alpose.prom"
    monitor = make(tmp_path / "q.db", Threshold(0), metrics_port=0, metrics_file=file)
    monitor(frame())
    assert monitor.metrics_url is not None
    port = int(monitor.metrics_url.rsplit(":", 1)[1].split("/")[0])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    assert b'alpose_frames_total{decision="flagged"} 1.0' in connection.getresponse().read()
    connection.close()
    monitor.close()
    assert 'alpose_frames_total{decision="flagged"} 1.0' in file.read_text()
    assert "alpose_queue_records 1.0" in file.read_text()
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/metrics")
    with pytest.raises(ConfigError, match=r"\.prom"):
        make(metrics_file=tmp_path / "alpose.txt")


# --- memory


class Recorded(Scripted):  # type: ignore[misc]
    """Says the same hundred answers again and again, and computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        frames = np.random.default_rng(0).integers(0, 256, (100, fakes.S, fakes.S, 3), dtype=np.uint8)
        said = fakes.answer(frames)
        said["failure_probability"] = np.linspace(0, 1, 100, dtype=np.float32) ** 4
        self._said = [{name: value[[row]] for name, value in said.items()} for row in range(100)]
        self._number = -1

    def __call__(self, frames_NHW3: Frame) -> Outputs:
        if frames_NHW3.any():  # only golden frames are
            return super().__call__(frames_NHW3)
        self._number += 1
        return Outputs(*(value.copy() for value in self._said[self._number * 37 % 100].values()))


def test_memory_does_not_grow_with_the_number_of_frames(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty thousand frames, with everything that holds something between frames in use."""
    # Encoded pictures are held ten seconds for further people on their frames, which is longer than half of this test.
    monkeypatch.setattr(clips, "MADE_S", 0.0)
    with Queue(tmp_path / "q.db", max_bytes=4 << 20, clip=(1, 1), store="crop") as queue:
        trigger = Episodes(Budget(per_hour=150)) & Novel(1e-9) | Control(rate=0.01)
        monitor = make(queue, trigger, Recorded(), track=True)
        pixels = frame(0, 16, 16)

        def watch(first: int, count: int) -> int:
            for number in range(first, first + count):
                monitor(pixels, time_ns=number * SECOND // 10)
            assert monitor.flush(30)
            gc.collect()
            return sys.getallocatedblocks()

        watch(0, 5000)  # a chunk of scores, a clip, the memory of what was kept: what is bounded is full
        before = watch(5000, 3000)
        after = watch(8000, 12_000)
        assert monitor.stats().errors == {}
        assert total(monitor, "stored_total") > 100
        # Some hundred ids of frames that an episode may still replace are held; one object a frame would be 12,000.
        assert after - before < 2000
        monitor.close()
