"""The Monitor in an app's loop: what it answers, what it refuses, how it begins and ends. The engine is a script.

Shapes: H W frame, J joints.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from alpose import runtime
from alpose.runtime import Bundle, Control, Monitor, Queue, Threshold
from alpose.runtime.errors import AlposeError, ConfigError, DataError, WrongAnswerError
from alpose.runtime.telemetry.counters import Count

from ..fakes import scripted as fakes

Scripted: Any = fakes.Scripted
Frame = npt.NDArray[np.uint8]
Make = Callable[..., Monitor]
BOX = (10.0, 5.0, 40.0, 45.0)


def frame(seed: int = 0, height: int = 48, width: int = 64) -> Frame:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def says(*probabilities: float) -> Any:
    """An engine whose failure probabilities are these, one after the other; the last one stays."""
    return Scripted(lambda number: {"failure_probability": probabilities[min(number, len(probabilities) - 1)]})


# --- the answer


def test_the_ten_lines_of_the_readme(folder: Path, tmp_path: Path) -> None:
    camera = [frame(seed) for seed in range(5)]
    queue = tmp_path / "flagged.db"

    monitor = runtime.Monitor(folder, queue=queue, trigger=runtime.Budget(per_hour=20), engine=Scripted())
    for pixels in camera:
        verdict = monitor(pixels)
        assert verdict.keypoints.shape == (fakes.J, 2)
        assert verdict.scores.shape == (fakes.J,)
        assert 0 <= verdict.failure_probability <= 1
        assert isinstance(verdict.flagged, bool)
        assert isinstance(verdict.reasons, tuple)
    monitor.close()


def test_the_pose_is_the_engines_in_pixels_of_the_frame(make: Make, folder: Path) -> None:
    pixels, bundle = frame(), Bundle.open(folder)
    verdict = make()(pixels, BOX)
    crop = bundle.crop.crop_of(BOX)
    said = fakes.answer(runtime.cut(pixels, crop)[None])
    np.testing.assert_array_equal(verdict.keypoints, crop.to_frame(said["keypoints"][0]))
    np.testing.assert_array_equal(verdict.scores, said["scores"][0])
    assert verdict.predicted_loss == said["predicted_loss"][0]
    assert verdict.failure_probability == said["failure_probability"][0]
    assert (verdict.box, verdict.place, verdict.sequence, verdict.stream) == (BOX, "box", 0, "")
    spent = verdict.timings
    assert 0 < spent.crop_s + spent.inference_s + spent.decision_s <= spent.total_s * (1 + 1e-9)


def test_one_call_of_the_engine_serves_a_frame_and_one_a_batch(make: Make) -> None:
    engine = Scripted()
    monitor = make(engine=engine)
    monitor(frame())
    monitor.batch([frame(1), frame(2), frame(3)], [None, BOX, None])
    assert engine.calls == [1, 3]


def test_a_verdict_cannot_be_changed(make: Make) -> None:
    verdict = make()(frame())
    with pytest.raises(FrozenInstanceError):
        verdict.flagged = True  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        verdict.keypoints[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        verdict.scores[0] = 0


def test_flagged_and_why(make: Make, tmp_path: Path) -> None:
    monitor = make(tmp_path / "q.db", Threshold(0.5), says(0.7, 0.2))
    bad, good = monitor(frame(1)), monitor(frame(2))
    assert (bad.flagged, bad.kept, bad.inclusion_probability) == (True, True, 1.0)
    assert [str(reason) for reason in bad.reasons] == ["threshold 0.7 >= 0.5"]
    assert (good.flagged, good.kept, good.reasons, good.inclusion_probability) == (False, False, (), 0.0)
    assert monitor.stats().frames == {"flagged": 1, "passed": 1}
    assert monitor.stats().threshold == 0.5


def test_a_frame_of_the_control_stream_is_kept_and_not_flagged(make: Make, tmp_path: Path) -> None:
    monitor = make(tmp_path / "q.db", Control(rate=1.0))
    verdict = monitor(frame())
    assert (verdict.flagged, verdict.kept) == (False, True)
    assert monitor.stats().frames == {"control": 1}


# --- where the person is


def test_the_whole_frame_is_looked_at_unless_something_else_is_known(make: Make) -> None:
    assert make()(frame()).place == "whole"
    fixed = make(roi=BOX)
    assert (fixed(frame()).place, fixed(frame()).box) == ("roi", BOX)
    assert fixed(frame(), (1, 2, 30, 40)).box == (1.0, 2.0, 30.0, 40.0)
    with pytest.raises(ConfigError, match="not both"):
        make(roi=BOX, track=True)


def test_a_person_who_was_found_is_followed_each_stream_on_its_own(make: Make) -> None:
    far = np.array([[2.0, 2.0], [12.0, 2.0], [12.0, 12.0]], dtype=np.float32)
    engine = Scripted(lambda number: {"keypoints": far, "scores": 0.95 if number % 2 == 0 else 0.0})
    monitor = make(engine=engine, track=True)
    places = [[one.place for one in monitor.batch([frame(), frame()], streams=["left", "right"])] for _ in range(3)]
    assert places == [["search", "search"], ["track", "search"], ["track", "search"]]


def test_cameras_may_have_clocks_of_their_own(make: Make, tmp_path: Path) -> None:
    began_ns, apart_ns = 1_750_000_000_000_000_000, 3600 * 10**9
    with make(tmp_path / "q.db", Threshold(0.0)) as monitor:
        for number in range(3):
            times = [began_ns + number * 10**8, began_ns + apart_ns + number * 10**8]
            monitor.batch([frame(), frame()], streams=["left", "right"], time_ns=times)
            monitor.flush()
        assert not any(count.name == "clock_jumps_total" for count in monitor.stats().counts)
        with pytest.raises(DataError, match="2 frames"):
            monitor.batch([frame(), frame()], time_ns=[began_ns])
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        captured = {record.camera: record.captured_ns for record in queue.peek()}
    assert captured["right"] - captured["left"] == apart_ns


def test_a_detector_of_the_apps_proposes_where_to_look_until_somebody_is_followed(make: Make) -> None:
    far = np.array([[2.0, 2.0], [12.0, 2.0], [12.0, 12.0]], dtype=np.float32)
    shown: list[Frame] = []

    def detect(pixels: Frame) -> list[tuple[float, float, float, float]]:
        shown.append(pixels)
        return [BOX, (0.0, 0.0, 5.0, 5.0)]

    engine = Scripted(lambda number: {"keypoints": far, "scores": 0.95, "failure_probability": 0.1})
    monitor = make(engine=engine, detect=detect)
    first, second = monitor(frame()), monitor(frame())
    assert (first.place, first.box, second.place) == ("search", BOX, "track")
    assert len(shown) == 1, "the detector is not called for a person who is followed"


def test_a_detector_that_fails_costs_no_frame(make: Make) -> None:
    monitor = make(detect=lambda pixels: 1 / 0)
    assert monitor(frame()).place == "search"
    assert monitor.stats().counts[Count("internal_errors_total", (("where", "detect"),))] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"camera": "a\nb"}, {"camera": 5}, {"camera": "x" * 1025}, {"device_id": "x" * 1025}, {"device_id": 5},
        {"roi": "seat"}, {"roi": (1, 2)}, {"metrics_port": "9464"},
    ],
)  # fmt: skip
def test_an_option_under_which_no_frame_could_be_kept_is_refused_at_the_start(
    make: Make, options: dict[str, Any]
) -> None:
    if "metrics_port" in options:
        pytest.importorskip("prometheus_client")
    with pytest.raises(AlposeError, match="got"):
        make(**options)


def test_a_stream_that_no_record_could_name_is_refused(make: Make) -> None:
    for name in ("a\tb", "x" * 1025, 5):
        with pytest.raises(DataError, match="stream"):
            make().batch([frame()], None, [name])  # type: ignore[list-item]


@pytest.mark.parametrize("time_ns", [1.7e9, 1_760_000_000, "now", -5, float("nan"), 2**63])
def test_a_time_that_is_none_is_a_clear_error_and_is_not_counted(make: Make, time_ns: Any) -> None:
    monitor = make()
    with pytest.raises(DataError, match="whole nanoseconds"):
        monitor(frame(), time_ns=time_ns)
    assert monitor.stats().frames == {}
    assert monitor(frame(), time_ns=np.int64(10**18)).sequence == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", [1, 10**3, 10**6], ids=["seconds", "milliseconds", "microseconds"])
def test_times_in_another_unit_are_an_error_at_the_second_frame_at_the_latest(make: Make, unit: int) -> None:
    monitor = make()
    if unit > 1:
        monitor(frame(), time_ns=1_760_000_000 * unit)
    with pytest.raises(DataError, match="whole nanoseconds"):
        monitor(frame(), time_ns=round((1_760_000_000 + 1 / 30) * unit) + (unit == 1))


@pytest.mark.parametrize("start_ns", [0, 20 * 10**9, 3600 * 10**9, 10**18])
def test_nanoseconds_are_taken_also_of_a_clock_that_starts_in_1970(make: Make, start_ns: int) -> None:
    monitor = make()
    assert [monitor(frame(), time_ns=start_ns + number * 10**7).sequence for number in range(3)] == [0, 1, 2]
    assert monitor(frame(), time_ns=start_ns + 2 * 10**7).sequence == 3  # the same time again


def test_a_queue_is_set_up_by_the_monitor_where_it_is_given_by_its_path(make: Make, tmp_path: Path) -> None:
    monitor = make(tmp_path / "q.db", Threshold(0), store="crop", clip=(1, 0), max_bytes=4 << 20)
    monitor(frame(), BOX)
    assert monitor(frame(), BOX).kept
    assert monitor.flush(10)
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        first, second = queue.peek()
        assert (first.store, len(queue.pictures(second.id)), queue.info().max_bytes) == ("crop", 2, 4 << 20)
    with Queue(tmp_path / "mine.db") as mine:
        for queue_of_mine in (None, mine):
            with pytest.raises(ConfigError, match=r"^store, clip set up a queue"):
                make(queue_of_mine, store="crop", clip=(1, 0))


@pytest.mark.parametrize(
    "option",
    [{"seed": -1}, {"seed": "x"}, {"detect": 5}, {"handover_bytes": "1G"}, {"previous_bytes": -1}, {"queue": "a\0b.db"},
     {"roi": (0, 0, 10**400, 5)}],
)  # fmt: skip
def test_an_option_that_is_none_is_said_at_the_start(option: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    name = next(iter(option))
    with pytest.raises(ConfigError, match="NUL" if name == "queue" else name):
        Monitor(folder, **{"queue": tmp_path / "q.db", "trigger": Threshold(0), "engine": Scripted(), **option})


def test_the_memory_of_the_hand_over_is_settable(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="handover_bytes"):
        make(tmp_path / "q.db", handover_bytes=-1)
    monitor = make(tmp_path / "q.db", Threshold(0), clip=(1, 0), handover_bytes=0, previous_bytes=0)
    kept = [monitor(frame(seed)).kept for seed in range(20)]
    assert kept[0]  # one frame is taken whatever its size
    assert monitor.stats().by("dropped_pictures_total", "reason")["clip_memory"] == 20


def test_monitors_that_are_forgotten_leave_no_thread_and_no_descriptor(folder: Path, tmp_path: Path) -> None:
    def descriptors() -> int:
        there = Path("/proc/self/fd")
        return len(list(there.iterdir())) if there.is_dir() else 0

    gc.collect()  # what earlier tests have left
    before = threading.active_count(), descriptors()
    for number in range(5):
        forgotten = Monitor(folder, tmp_path / f"{number}.db", Threshold(0), Scripted())
        assert forgotten(frame()).kept
        del forgotten
    gc.collect()
    assert (threading.active_count(), descriptors()) == before
    for number in range(5):
        with Queue(tmp_path / f"{number}.db", readonly=True) as queue:
            assert len(queue.peek()) == sum(tally.frames for tally in queue.tallies()) == 1


def test_a_signals_handler_may_close_while_another_thread_watches_and_stats_are_read(
    folder: Path, tmp_path: Path
) -> None:
    for number in range(5):
        monitor = Monitor(folder, tmp_path / f"{number}.db", Control(rate=0.1), Scripted())
        closed = threading.Event()

        def watch(monitor: Monitor = monitor) -> None:
            try:
                while True:
                    monitor(frame())
            except ConfigError:
                return

        camera = threading.Thread(target=watch)
        before = signal.signal(signal.SIGUSR1, lambda *_, m=monitor, c=closed: (m.close(), c.set()))
        try:
            camera.start()
            threading.Timer(
                0.05 + 0.01 * number, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)
            ).start()
            while not closed.is_set():
                monitor.stats()
        finally:
            signal.signal(signal.SIGUSR1, before)
            camera.join(20)
        seen = sum(monitor.stats().frames.values())
        with Queue(tmp_path / f"{number}.db", readonly=True) as queue:
            assert sum(tally.frames for tally in queue.tallies()) == seen
            assert sum(chunk.frames for chunk in queue.scores()) == seen


def test_an_app_counts_beside_the_monitor(make: Make) -> None:
    monitor = make()
    monitor.count("source_faults_total", what="broken")
    monitor.count("source_faults_total", 2, what="broken")
    assert monitor.stats().by("source_faults_total", "what") == {"broken": 3}
    for name, n, labels in (
        ("faults", 1, {}),
        ("Faults_total", 1, {}),
        ("a_total", -1, {}),
        ("a_total", 1, {"Wh at": "x"}),
    ):
        with pytest.raises(ConfigError, match=r"counts upwards|must be words"):
            monitor.count(name, n, **labels)


# --- forms of a frame


@pytest.mark.parametrize("form", ["bgr", "nv12"])
def test_named_formats_give_the_answer_of_their_rgb(make: Make, form: str) -> None:
    pixels = frame()
    if form == "bgr":
        assert make(frame_format="bgr")(pixels[..., ::-1], BOX).predicted_loss == make()(pixels, BOX).predicted_loss
    else:
        grey = np.concatenate([np.full((48, 64), 126, np.uint8), np.full((24, 64), 128, np.uint8)])
        verdict = make(frame_format="nv12")(grey, (0, 0, 63, 47))
        same = make()(np.full((48, 64, 3), 128, np.uint8), (0, 0, 63, 47))
        assert verdict.predicted_loss == pytest.approx(same.predicted_loss, abs=0.02)


def test_an_array_of_another_library_on_the_host_is_taken(make: Make) -> None:
    class Tensor:
        def __init__(self, array: Frame) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__()

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    pixels = frame()
    assert make()(Tensor(pixels), BOX).predicted_loss == make()(pixels, BOX).predicted_loss


def test_a_frame_on_a_gpu_needs_an_engine_that_reads_there(make: Make) -> None:
    class OnGpu:
        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {"shape": (48, 64, 3), "typestr": "|u1", "data": (4096, True), "version": 3}

    with pytest.raises(ConfigError, match="'cuda' or 'tensorrt'"):
        make()(OnGpu())


def test_an_engine_that_reads_on_the_gpu_is_given_the_frame_and_only_what_is_kept_comes_to_the_host(
    make: Make, tmp_path: Path
) -> None:
    class OnGpu:
        def __init__(self, array: Frame) -> None:
            self.array = array
            self.__cuda_array_interface__ = {**array.__array_interface__, "version": 3}

    class DeviceEngine(Scripted):  # type: ignore[misc]
        copies_to_host = 0

        def answer_device(self, frames: Any, crops: Any) -> Any:
            return self(np.stack([runtime.cut(one.owner.array, crop) for one, crop in zip(frames, crops, strict=True)]))

        def to_host(self, given: Any, region: Any = None) -> Frame:
            self.copies_to_host += 1
            x0, y0, x1, y1 = region
            return np.array(given.owner.array[y0:y1, x0:x1])

    engine = DeviceEngine(lambda number: {"failure_probability": 0.9 if number == 1 else 0.1})
    monitor = make(tmp_path / "q.db", Threshold(0.5), engine)
    assert [monitor(OnGpu(frame(seed)), BOX).kept for seed in range(3)] == [False, True, False]
    assert engine.copies_to_host == 1
    with pytest.raises(DataError, match="all there, or all on the host"):
        monitor.batch([OnGpu(frame()), frame()])


# --- wrong frames


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "the camera gave no picture"),
        ("frame.png", "got str"),
        (np.zeros((48, 64, 3), np.float32), "convert it to bytes"),
        (np.zeros((48, 64), np.uint8), "uint8 \\(H, W, 3\\)"),
        (np.zeros((48, 64, 4), np.uint8), "drop the fourth channel"),
        (np.zeros((0, 64, 3), np.uint8), "it is empty"),
        (np.zeros((1, 48, 64, 3), np.uint8), "not a batch"),
    ],
)
def test_a_wrong_frame_is_a_clear_error_and_is_not_counted(make: Make, bad: Any, message: str) -> None:
    engine = Scripted()
    monitor = make(engine=engine)
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            monitor(bad)
    with pytest.raises(DataError, match=message):
        monitor.batch([frame(), bad])
    assert engine.calls == []
    assert monitor.stats().frames == {}
    assert monitor(frame()).sequence == 0


@pytest.mark.parametrize("box", [(5, 5, 1, 9), (0, 0, float("nan"), 9), (0, 0, 2e6, 9), (1, 2, 3), "box!", 7])
def test_a_wrong_box_is_a_clear_error(make: Make, box: Any) -> None:
    with pytest.raises(DataError, match=r"box"):
        make()(frame(), box)


def test_frames_boxes_and_streams_of_a_batch_must_match(make: Make) -> None:
    monitor = make()
    wrong: list[Any] = [([], None, None), ([frame()], [], None), ([frame()], None, ["a", "b"])]
    for arguments in wrong:
        with pytest.raises(DataError, match="one frame, box and stream"):
            monitor.batch(*arguments)
    with pytest.raises(DataError, match="a stream of their own"):
        monitor.batch([frame(), frame()], streams=["a", "a"])


def test_frames_of_any_size_and_layout_are_soundly_answered(make: Make) -> None:
    monitor = make()
    for pixels in (
        np.zeros((480, 640, 3), np.uint8), np.zeros((4320, 7680, 3), np.uint8), np.zeros((1, 1, 3), np.uint8),
        frame()[::2, ::-3], np.asfortranarray(frame()), frame()[:, :, ::-1],
    ):  # fmt: skip
        verdict = monitor(pixels)
        assert np.isfinite(verdict.keypoints).all()
    pixels = frame()
    assert monitor(pixels[::2], BOX).predicted_loss == monitor(pixels[::2].copy(), BOX).predicted_loss


@pytest.mark.parametrize("box", [(1000, 1000, 1200, 1300), (-50, 5, -1, 40), (5, -90, 40, -2), (64, 0, 80, 20)])
def test_a_box_beside_the_frame_is_one_clear_error_and_nothing_is_kept(make: Make, tmp_path: Path, box: Any) -> None:
    monitor = make(tmp_path / "q.db", Threshold(0))
    with pytest.raises(DataError, match="lies outside the frame of 64 x 48 px"):
        monitor(frame(), box)
    assert monitor.stats().frames == {}
    assert monitor(frame(), (-20, -20, 3, 3)).kept  # partly within


EDGE = st.floats(-3000, 3000) | st.sampled_from([float("nan"), float("inf"), 1e300, -0.0, 1e-320])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pixels=arrays.arrays(
        st.sampled_from([np.uint8, np.uint8, np.uint8, np.int16, np.float32, np.bool_]),
        st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple)
        | st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)),
        elements=st.just(1),
    ),
    step=st.sampled_from([1, 2, -1]),
    box=st.none() | st.tuples(EDGE, EDGE, EDGE, EDGE) | st.lists(EDGE, max_size=5),
)
def test_anything_given_as_frame_and_box_is_an_error_of_ours_or_soundly_answered(
    any_monitor: Monitor, pixels: Any, step: int, box: Any
) -> None:
    before = sum(any_monitor.stats().frames.values())
    try:
        verdict = any_monitor(pixels[::step], box)
    except AlposeError:
        assert sum(any_monitor.stats().frames.values()) == before
    else:
        assert np.isfinite(verdict.keypoints).all()
        assert 0 <= verdict.failure_probability <= 1
    assert any_monitor.stats().errors == {}


@pytest.fixture(scope="module")
def any_monitor(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitor]:
    queue = tmp_path_factory.mktemp("any") / "q.db"
    with Monitor(folder, queue, Threshold(0) | Control(rate=0.5), Scripted(), seed=0) as monitor:
        yield monitor


# --- start


def test_an_engine_that_answers_wrongly_is_refused(make: Make) -> None:
    class Liar(Scripted):  # type: ignore[misc]
        def __call__(self, frames: Any) -> Any:
            return super().__call__(255 - frames)

    with pytest.raises(WrongAnswerError, match="worst deviation"):
        make(engine=Liar())


def test_an_engine_that_answers_too_few_frames_later_is_an_error_that_names_it(make: Make) -> None:
    class Short(Scripted):  # type: ignore[misc]
        short = False

        def __call__(self, frames: Any) -> Any:
            return super().__call__(frames[:-1] if self.short else frames)

    engine = Short()
    monitor = make(engine=engine)
    engine.short = True
    with pytest.raises(WrongAnswerError, match="scripted gave 1 answers to 2 crops"):
        monitor.batch([frame(), frame()])


def test_what_the_engine_raises_reaches_the_caller_and_the_next_frame_is_answered(make: Make) -> None:
    def script(number: int) -> dict[str, Any]:
        if number == 1:
            engine.script = lambda number: {}
            raise RuntimeError("CUDA error 700")
        return {}

    engine = Scripted(script)
    monitor = make(engine=engine)
    monitor(frame())
    with pytest.raises(RuntimeError, match="CUDA error 700"):
        monitor(frame())
    assert monitor(frame()).sequence == 1
    assert monitor.stats().frames == {"passed": 2}


def test_what_is_missing_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = fakes.write_bundle(tmp_path / "bare.alpose", calibrated=False)
    with caplog.at_level(logging.WARNING, logger="alpose.monitor"), Monitor(bare, engine=Scripted()) as monitor:
        assert not monitor.stats().drift.testing
    told = " ".join(record.message for record in caplog.records)
    assert "without calibration" in told
    assert "verdicts only" in told
    with pytest.raises(ConfigError, match="Catch"):
        Monitor(bare, tmp_path / "q.db", "Catch(0.9)", Scripted())
    with Monitor(bare, tmp_path / "q.db", "Budget(20)", Scripted()) as monitor:
        monitor(frame())


def test_a_policy_may_be_text_and_has_a_default_where_there_is_a_queue(make: Make, tmp_path: Path) -> None:
    assert make().trigger is None
    assert str(make(trigger="Threshold(0.5) | Control(0.1)").trigger) == "Threshold(0.5) | Control(rate=0.1)"
    assert str(make(tmp_path / "q.db").trigger) == "Episodes(Budget(per_hour=20)) | Control(per_hour=2)"


def test_a_policy_works_without_a_queue_too(make: Make) -> None:
    verdict = make(trigger=Threshold(0.5), engine=says(0.9))(frame())
    assert (verdict.flagged, verdict.kept) == (True, False)


def test_a_device_keeps_its_name_in_the_queue(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    first = make(path).device_id
    assert first.rpartition("-")[2] != first
    assert make(path).device_id == first
    assert make(tmp_path / "other.db").device_id != first
    assert make(path, device_id="car-17").device_id == "car-17"
    assert make(path).device_id == first


def test_wrong_options_are_errors_and_leave_nothing_open(make: Make, folder: Path, tmp_path: Path) -> None:
    threads = threading.active_count()
    for options in ({"frame_format": "yuv"}, {"roi": (5, 5, 1, 1)}, {"trigger": "Budget("}, {"metrics_port": -1},
                    {"engine": "gpu"}, {"trigger": 20}, {"public_key": "00" * 32}):  # fmt: skip
        with pytest.raises(AlposeError):
            make(tmp_path / "q.db", **options)
    with pytest.raises(ConfigError, match="opened bundle"):
        Monitor(Bundle.open(folder), public_key="00" * 32, engine=Scripted())
    assert threading.active_count() == threads


# --- end


def test_closing_writes_what_waits_and_twice_is_once(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    with make(path, Threshold(0), camera="front") as monitor:
        for seed in range(5):
            monitor(frame(seed))
    monitor.close()
    with pytest.raises(ConfigError, match="was closed"):
        monitor(frame())
    assert monitor.flush()
    assert monitor.stats().frames == {"flagged": 5}
    with Queue(path) as queue:
        assert len(queue.peek()) == 5


def test_a_queue_that_was_given_stays_open(make: Make, tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db") as queue:
        with make(queue, Threshold(0)) as monitor:
            monitor(frame())
        assert len(queue.peek()) == 1


def test_calls_from_several_threads_wait_for_each_other(make: Make) -> None:
    inside = threading.Semaphore(1)

    def script(number: int) -> dict[str, Any]:
        assert inside.acquire(blocking=False)
        inside.release()
        return {}

    monitor = make(engine=Scripted(script), trigger=Threshold(0.5))
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.extend(monitor(frame()).sequence for _ in range(50))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(200))


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
def test_a_signals_handler_may_close_in_the_middle_of_a_call(make: Make, tmp_path: Path) -> None:
    def script(number: int) -> dict[str, Any]:
        signal.raise_signal(signal.SIGUSR1)
        return {"failure_probability": 0.9}

    monitor = make(tmp_path / "q.db", Threshold(0.5), Scripted(script))
    before = signal.signal(signal.SIGUSR1, lambda *_: monitor.close())
    try:
        assert monitor(frame()).kept
    finally:
        signal.signal(signal.SIGUSR1, before)
    with pytest.raises(ConfigError, match="was closed"):
        monitor(frame())
    with Queue(tmp_path / "q.db") as queue:
        assert len(queue.peek()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_told_and_does_no_harm(make: Make, tmp_path: Path) -> None:
    monitor = make(tmp_path / "q.db", Threshold(0))
    monitor(frame())
    here, there = multiprocessing.Pipe()

    def child() -> None:
        try:
            monitor(frame())
        except ConfigError as error:
            there.send(str(error))
        monitor.flush()
        monitor.close()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert here.poll(10)
    assert "before a fork" in here.recv()
    process.join(10)
    assert process.exitcode == 0
    assert monitor(frame()).kept
    assert monitor.flush(10)
