"""``alpose-monitor run`` and ``replay`` without OpenCV and without a graph: source and engine are scripted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from alpose.runtime import command_line as values
from alpose.runtime import monitor as monitor_module
from alpose.runtime.bundle.golden import run_golden
from alpose.runtime.camera import capture as camera_capture
from alpose.runtime.camera.loop import Stop, live_line, log_line, watch
from alpose.runtime.camera.sources import Recorded, SourceCounts
from alpose.runtime.command_line import LiveLine, bar, paint, size
from alpose.runtime.commands import main
from alpose.runtime.commands.run import budget_policy
from alpose.runtime.crop import CropRule
from alpose.runtime.drift import DriftReport
from alpose.runtime.engines.catalog import Attempt, Opened
from alpose.runtime.monitor import Monitor
from alpose.runtime.queue import Queue
from alpose.runtime.queue.images import decode
from alpose.runtime.telemetry.stats import Meters, QueueState, Stats
from alpose.runtime.triggers import Policy, Setting

from ...fakes import disk, dots
from ...fakes import scripted as fakes

HERE = Path(__file__).resolve()


class Frames:
    """A capture of frames that all look alike: the blue of frame n is n, modulo 200."""

    def __init__(self, count: int, fps: float, pause_s: float = 0.0) -> None:
        self.fps, self.frame_count, self.place, self.pause_s = fps, count, 0, pause_s
        self.duration_s = count / fps

    def advance(self) -> bool:
        self.place += 1
        return self.place <= self.frame_count

    def decode(self) -> Any:
        time.sleep(self.pause_s)
        return np.full((24, 32, 3), (self.place % 200, 50, 250), dtype=np.uint8)

    def time_s(self) -> float:
        return (self.place - 1) / self.fps

    def close(self) -> None:
        pass


Run = Callable[..., Result]


def summary_of(result: Result) -> Any:
    """The JSON that a command printed; click 8.1 mixes stderr into it."""
    return json.loads(result.stdout[result.stdout.index("{\n") :])


def patch(set_: Callable[[Any, str, Any], None], probability: Callable[[int], float], capture: Any) -> None:
    """Put the script in the place of engine and camera."""
    engine = fakes.Scripted(lambda number: {"failure_probability": probability(number)})

    def opened(bundle: Any, *_: Any, **__: Any) -> Opened:
        return Opened(engine, (run_golden(engine, bundle.golden, batch=1),), (Attempt("scripted", None),), ours=True)

    set_(monitor_module, "open_engine", opened)
    set_(
        camera_capture,
        "open_source",
        lambda name, fps=None, realtime=False, settings=None: Recorded(name, capture, realtime=realtime),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(fakes.write_bundle(tmp_path / "driver.alpose"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> Run:
    def invoke(*options: object, probability: Callable[[int], float] = lambda number: 0.1, count: int = 20,
               fps: float = 10.0) -> Result:  # fmt: skip
        patch(monkeypatch.setattr, probability, Frames(count, fps))
        return CliRunner().invoke(main, ["run", str(bundle), "--source", "video.mp4", *map(str, options)])

    return invoke


def test_flagged_frames_are_in_the_queue_with_the_clock_of_the_video(run: Run, tmp_path: Path) -> None:
    result = run("--queue", tmp_path / "q.db", "--trigger", "Threshold(0.5)", "--camera", "seat", "--device-id", "car-17",
                 probability=lambda number: 0.9 if number in (3, 17) else 0.1)  # fmt: skip
    assert result.exit_code == 0, result.output
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        first, second = queue.peek()
        assert (second.captured_ns - first.captured_ns) / 1e9 == pytest.approx(1.4, abs=1e-6)
        assert (first.device, first.camera) == ("car-17", "seat")
        picture_HW3 = decode(queue.pictures(first.id)[0].data).astype(int)
    # OpenCV's frames are BGR, the queue's pictures RGB; JPEG moves a colour by a few levels.
    assert np.abs(picture_HW3 - (250, 50, 4)).max() <= 8


class Finder:
    """A detector that sees one person on every frame, another on the first five, and a bad box on each."""

    made: ClassVar[list[Any]] = []

    def __init__(self, path: Path, **options: Any) -> None:
        self.frames, self.options = 0, options
        self.made.append(self)

    def __call__(self, frame: Any) -> Any:
        assert frame.shape == (24, 32, 3)
        self.frames += 1
        boxes = [[1, 2, 10, 20, 0.9], [15, 3, 28, 22, 0.8], [float("nan"), 0, 5, 5, 0.9]]
        return np.array(boxes if self.frames <= 5 else boxes[::2])


def test_everybody_on_each_frame_is_watched_kept_by_name_and_counted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alpose.runtime.locate.detector.YoloDetector", Finder)
    path = tmp_path / "yolo.onnx"
    path.touch()
    result = run("--people", "--detector", path, "--queue", tmp_path / "q.db", "--trigger", "Threshold(0.5)", "--camera",
                 "hall", "--json", probability=lambda number: 0.9 if number in (3, 14) else 0.1)  # fmt: skip
    assert result.exit_code == 0, result.output
    counts = summary_of(result)["stats"]["counts"]
    assert (counts["persons_total{decision=flagged}"], counts["persons_total{decision=passed}"]) == (2, 23)
    assert (counts["frames_total{decision=flagged}"], counts["frames_total{decision=passed}"]) == (2, 18)
    assert counts["dropped_boxes_total{reason=not_finite}"] == 20
    assert Finder.made[-1].options["bgr"] is True, "OpenCV's frames"
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        # The fourth answer is of the second person on the second frame, the fifteenth of the only one on the tenth.
        assert [record.camera for record in queue.peek()] == ["hall/person-2", "hall/person-1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--people", "--track"), "--people watches everybody"),
        (("--people", "--roi", "1,1,9,9"), "--people watches everybody"),
        (("--detector", "DETECTOR"), "give --people too"),
        (("--people",), "say with --detector FILE.onnx what finds them"),
        (("--people", "--detector", "DETECTOR"), "does not load in ONNX Runtime"),
    ],
)
def test_what_nobody_can_be_found_with_is_said_at_the_start(
    options: tuple[str, ...], message: str, run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "yolo.onnx").touch()
    result = run(*(str(tmp_path / "yolo.onnx") if one == "DETECTOR" else one for one in options))
    assert result.exit_code in (1, 2)
    assert message in result.output + str(result.exception)


@pytest.mark.parametrize("people", [False, True])
def test_a_net_of_whole_frames_says_whether_it_finds_people_itself(
    people: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = CropRule(width_px=48, height_px=64, kind="letterbox")
    folder, net = dots.write_bundle(tmp_path / "whole.alpose", rule, people=people)
    monkeypatch.setattr(
        monitor_module, "open_engine", lambda *_, **__: Opened(net, (), (Attempt("dots", None),), ours=True)
    )
    monkeypatch.setattr(camera_capture, "open_source",
                        lambda name, fps=None, realtime=False, settings=None: Recorded(name, Frames(4, 10.0), realtime=False))  # fmt: skip
    (tmp_path / "yolo.onnx").touch()
    command = ["run", str(folder), "--source", "video.mp4", "--people", "--json"]
    alone = CliRunner().invoke(main, command)
    helped = CliRunner().invoke(main, [*command, "--detector", str(tmp_path / "yolo.onnx")])
    if people:
        assert alone.exit_code == 0, alone.output
        assert summary_of(alone)["stats"]["counts"] == {"frames_total{decision=passed}": 4,
                                                               "unoccupied_frames_total": 4}  # fmt: skip
    else:
        assert "gives one pose of it" in alone.output + str(alone.exception)
    assert "leave it out" in helped.output + str(helped.exception)


def test_a_disk_that_is_not_there_costs_no_frame_and_is_said(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run("--queue", tmp_path / "unmounted" / "q.db", "--trigger", "Threshold(0.99)", "--json")
    assert result.exit_code == 0, result.output
    assert summary_of(result)["source"]["delivered"] > 0
    assert "is not a folder" in caplog.text


def test_a_budget_means_hours_of_the_video_however_fast_it_is_read(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    result = run("--queue", tmp_path / "q.db", "--trigger", "Budget(per_hour=60)", "--json", "--store", "keypoints",
                 count=3600, fps=0.5, probability=lambda number: float(rng.uniform()))  # fmt: skip
    assert result.exit_code == 0, result.output
    summary = summary_of(result)
    assert summary["source"]["delivered"] == 3600
    kept = summary["stats"]["counts"]["frames_total{decision=flagged}"]
    assert abs(kept - 2 * 60) <= 35, "the account holds half an hour's worth more or less, and starts half full"


@pytest.mark.parametrize("per_hour", [1.0, 20.0, 200.0, 1700.0, 1801.0, 50_000.0])
def test_a_budget_is_never_held_back_by_its_own_episodes(per_hour: float, caplog: pytest.LogCaptureFixture) -> None:
    policy = budget_policy(per_hour)
    Policy(policy, Setting(None, np.random.default_rng(0)))
    assert not caplog.records
    assert f"Budget(per_hour={int(per_hour)})" in str(policy)
    assert ("Episodes" in str(policy)) is (per_hour <= 1800)


def test_systemd_is_told_from_the_first_frame_to_the_last(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", manager.getsockname())
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        assert run().exit_code == 0
        assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_the_summary_tells_all_that_happened(run: Run, tmp_path: Path) -> None:
    result = run("--queue", tmp_path / "q.db", "--trigger", "Threshold(0.5)", probability=lambda number: 0.9)
    assert "video.mp4: 20 frames" in result.output
    assert "flagged 20" in result.output
    assert "\x1b" not in result.output
    assert "\r" not in result.output


def test_what_the_source_lost_stands_in_stats_and_metrics(bundle: Path) -> None:
    class Faulty(Recorded):
        def frames(self) -> Iterator[Any]:
            self.counts.broken = 2  # before the first frame, and more with each
            for shot in super().frames():
                yield shot
                self.counts.behind += 3
            self.counts.reconnects = 1

    source = Faulty("video.mp4", Frames(5, 10.0))
    with Monitor(bundle, engine=fakes.Scripted()) as monitor:
        watch(monitor, source, Stop(), LiveLine(wanted=False))
        assert monitor.stats().by("source_faults_total", "what") == {"behind": 15, "broken": 2, "reopened": 1}


def test_a_run_that_saw_no_frame_is_no_success(run: Run) -> None:
    result = run(count=0)
    assert (result.exit_code, "gave no frame" in result.output) == (1, True), result.output


def test_serve_says_where_the_live_page_is(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert run("--serve", "0").exit_code == 0
    assert "live page: http://127.0.0.1:" in caplog.text
    refused = run("--serve", "everywhere")
    assert refused.exit_code == 2
    assert "'everywhere' is not an address to serve on" in refused.output


def test_limit_ends_after_so_many_frames(run: Run) -> None:
    printed = run("--limit", 7, "--json").stdout
    assert json.loads(printed[printed.index("{") :])["source"]["delivered"] == 7  # click 8.1 mixes stderr into it


def test_frames_that_do_not_reach_the_disk_give_the_exit_status_its_own_number(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Monitor, "flush", lambda self, timeout_s=None: False)
    result = run("--queue", tmp_path / "q.db", "--trigger", "Threshold(0.5)")
    assert result.exit_code == 3
    assert "NOT WRITTEN" in result.output


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--roi", "0,0,9,9", "--track"), 2, "give one of them"),
        (("--roi", "9,9,0,0"), 2, "x1 must be larger"),
        (("--budget", "20/hour", "--trigger", "Threshold(0.5)"), 2, "give one of --budget and --trigger"),
        (("--budget", "many"), 2, "not a rate"),
        (("--trigger", "Treshold(0.5)"), 2, "did you mean 'Threshold'"),
        (("--store", "crop"), 2, "give --queue too"),
        (("--show", "out.gif"), 2, "ends in"),
    ],
)
def test_what_cannot_be_meant_is_said_before_the_first_frame(
    run: Run, options: tuple[str, ...], status: int, words: str
) -> None:
    if "--show" in options:
        pytest.importorskip("cv2")
    result = run(*options)
    assert (result.exit_code, words in result.output) == (status, True), result.output
    assert "Traceback" not in result.output


def test_the_video_that_is_watched_is_not_overwritten(bundle: Path, tmp_path: Path) -> None:
    film, link = tmp_path / "film.mp4", tmp_path / "link.mp4"
    film.write_bytes(b"a film")
    link.symlink_to(film)
    result = CliRunner().invoke(main, ["run", str(bundle), "--source", str(film), "--show", str(link)])
    assert (result.exit_code, "would overwrite" in result.output) == (2, True), result.output
    assert film.read_bytes() == b"a film"


def test_a_disk_that_becomes_full_under_the_video_ends_with_the_summary_and_a_line(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "disk").mkdir()
    with disk.mounted(tmp_path / "disk", "size=128k"):
        result = run("--show", tmp_path / "disk" / "out.avi", "--queue", tmp_path / "q.db", "--trigger", "Threshold(0)",
                     count=60)  # fmt: skip
        assert (result.exit_code, result.output.count("Error: ")) == (1, 1), result.output
        assert "the disk is full" in result.output
        assert "source     video.mp4: 60 frames" in result.output
        disk.fill(tmp_path / "disk")
        result = run("--show", tmp_path / "disk" / "more.avi")
        assert (result.exit_code, "more.avi: No space left on device\n" in result.output) == (1, True), result.output
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        assert queue.info().records == 60


STOPPED = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tests.runtime.commands import test_run as t
patch_ = lambda owner, name, value: setattr(owner, name, value)
t.patch(patch_, lambda number: 0.9, t.Frames(10**9, 10.0, 0.005))
t.main(["run", {bundle!r}, "--source", "video", "--queue", {queue!r}, "--trigger", "Threshold(0.5)", "--json"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_everything_flagged_is_on_the_disk(bundle: Path, tmp_path: Path, number: int) -> None:
    queue = tmp_path / "q.db"
    code = STOPPED.format(tests=str(HERE.parents[3]), bundle=str(bundle), queue=str(queue))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            end = time.monotonic() + 60
            while not _records(queue):
                assert time.monotonic() < end
                assert run.poll() is None, run.communicate()
                time.sleep(0.05)
            run.send_signal(number)
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()
    assert run.returncode == 0, err
    summary = json.loads(out)
    assert summary["stopped_by"] == signal.Signals(number).name
    assert summary["everything_written"]
    dropped = sum(n for name, n in summary["stats"]["counts"].items() if name.startswith("dropped_frames_total"))
    assert _records(queue) == summary["source"]["delivered"] - dropped


def _records(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        with Queue(path, readonly=True) as queue:
            return queue.info().records
    except OSError:  # it is being made
        return 0


def test_replay_tells_what_another_policy_would_have_kept(run: Run, tmp_path: Path) -> None:
    queue = tmp_path / "q.db"
    assert run("--queue", queue, "--trigger", "Threshold(0.8)", probability=lambda number: number / 20).exit_code == 0
    result = CliRunner().invoke(main, ["replay", str(queue), "--trigger", "Threshold(0.5)", "--trigger", "Threshold(0.8)",
                                       "--json"])  # fmt: skip
    assert result.exit_code == 0, result.output
    lower, same = summary_of(result)["policies"]
    assert (lower["frames"], lower["kept"], lower["kept_then"], lower["kept_both"]) == (20, 10, 4, 4)
    assert (same["kept"], same["kept_both"]) == (4, 4)
    assert lower["recall"] == pytest.approx(sum(range(10, 20)) / sum(range(20)), rel=1e-5)
    table = CliRunner().invoke(main, ["replay", str(queue), "--budget", "20/hour"])
    assert "Budget(per_hour=20)" in table.output
    assert "kept at the time: 4" in table.output
    assert CliRunner().invoke(main, ["replay", str(queue)]).exit_code == 2
    assert CliRunner().invoke(main, ["replay", str(queue), "--budget", "9", "--camera", "other"]).exit_code == 1


@pytest.mark.parametrize(
    ("convert", "text", "value"),
    [
        (values.rate, "100/hour", 100.0), (values.rate, "20", 20.0), (values.rate, "48/day", 2.0),
        (values.rate, "2/min", 120.0), (values.duration, "30d", 30 * 86400.0), (values.duration, "90 min", 5400.0),
        (values.byte_count, "256M", 256 << 20), (values.byte_count, "4 GiB", 4 << 30), (values.byte_count, "1000", 1000),
        (values.box, "1,2.5,3,4", (1.0, 2.5, 3.0, 4.0)), (values.clip, "5,10", (5, 10)), (values.frame_size, "1280x720", (1280, 720)),
    ],
)  # fmt: skip
def test_values_mean_what_they_say(convert: Callable[[str], Any], text: str, value: Any) -> None:
    assert convert(text) == value


@pytest.mark.parametrize(
    ("convert", "text"),
    [(values.rate, "0/hour"), (values.rate, "-3"), (values.rate, "5/fortnight"), (values.duration, "30"),
     (values.duration, "3 moons"), (values.byte_count, "big"), (values.box, "1,2,3"), (values.box, "0,0,nan,4"),
     (values.box, "5,5,5,9"), (values.clip, "3"), (values.frame_size, "720p"), (values.frame_size, "0x5")],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(convert: Callable[[str], Any], text: str) -> None:
    with pytest.raises(click.BadParameter):
        convert(text)


# --- the line on a terminal --------------------------------------------------------------------------------------------


@pytest.fixture
def stats() -> Stats:
    meters = Meters()
    for number in range(50):
        decision = "flagged" if number % 10 == 0 else "passed"
        meters.frame(decision, 0.3, crop_s=0.001, inference_s=0.004, decision_s=0.0005, total_s=0.0055)
    meters.counters.add("dropped_frames_total", 2, reason="handover_full")
    from alpose.runtime.telemetry.stats import EngineState

    return meters.stats(
        device="d", camera="", bundle="b", bundle_sha256="ab", threshold=0.5, drift=_no_drift(),
        queue=QueueState(path="q.db", records=5, bytes=1_234_567, max_bytes=1 << 28, oldest_s=None),
        engine=EngineState(name="e", provider="p"),
    )  # fmt: skip


def _no_drift() -> DriftReport:
    from alpose.runtime.drift import Drift

    return Drift(None).report()


@pytest.mark.parametrize("columns", [20, 60, 80, 200])
def test_the_live_line_fits_the_terminal_and_says_the_most_important_first(stats: Stats, columns: int) -> None:
    line = live_line(stats, SourceCounts(behind=3), 0.42, columns)
    assert len(line) < max(columns, 21)
    assert line.startswith("50 frames")
    if columns >= 200:
        for words in ("0.42", "flagged 5", "queue 5, 1.2 MB", "p50 5.5", "dropped 5"):
            assert words in line


def test_the_live_line_is_plain_where_colours_or_blocks_are_not_wanted(stats: Stats) -> None:
    line = live_line(stats, SourceCounts(), float("nan"), 200, colour=False, unicode=False)
    assert line.isascii()
    assert line.isprintable()
    assert "\x1b[" in live_line(stats, SourceCounts(), 0.9, 200, colour=True)


def test_the_live_line_says_nobody_in_place_of_a_probability(stats: Stats) -> None:
    assert "nobody" in (line := live_line(stats, SourceCounts(), float("nan"), 200, people=0))
    assert "fail" not in line
    assert "nobody" not in live_line(stats, SourceCounts(), float("nan"), 200), "before the first frame it is not known"
    assert "3 people" in (line := live_line(stats, SourceCounts(), 0.42, 200, people=3))
    assert "0.42" in line


def test_the_line_of_a_log_says_what_went_wrong_before_a_frame_was_seen(stats: Stats) -> None:
    line = log_line(stats, SourceCounts(broken=1, reconnects=2))
    assert "dropped 3" in line
    assert "camera reopened 2" in line
    assert "flagged 5" in line


def test_bars_sizes_and_colours() -> None:
    assert bar(0.5, 4) == "██░░"
    assert bar(0.28, 4) == "█▏░░"
    assert bar(float("nan"), 3, unicode=False) == "..."
    assert all(len(bar(share, 7)) == 7 for share in np.linspace(-0.2, 1.2, 200))
    assert [size(count) for count in (0, 999, 45_600, 1_234_567, 2.5e11)] == [
        "0 B",
        "999 B",
        "45.6 kB",
        "1.2 MB",
        "250.0 GB",
    ]
    assert paint("x", "red", wanted=False) == "x"


@pytest.fixture
def terminal() -> Callable[[list[str], dict[str, str]], str]:
    """Runs a command on a pseudo-terminal, and gives what it wrote there."""
    pty = pytest.importorskip("pty")

    def run(command: list[str], environment: dict[str, str]) -> str:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | environment)
        os.close(theirs)
        written = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:
                break
            if not part:
                break
            written += part
        process.communicate(timeout=60)
        os.close(ours)
        assert process.returncode == 0, written
        return written.decode()

    return run


SHOWN = """
import sys
sys.path.insert(0, {tests!r})
from tests.runtime.commands import test_run as t
t.patch(lambda owner, name, value: setattr(owner, name, value), lambda number: 0.9, t.Frames(60, 10.0, 0.02))
t.main(["run", {bundle!r}, "--source", "video"])
"""


@pytest.mark.parametrize("no_color", [False, True])
def test_a_terminal_shows_one_line_again_and_again_and_is_left_clean(
    bundle: Path, terminal: Callable[[list[str], dict[str, str]], str], no_color: bool
) -> None:
    code = SHOWN.format(tests=str(HERE.parents[3]), bundle=str(bundle))
    environment = {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", "COLUMNS": "120"} | (
        {"NO_COLOR": "1"} if no_color else {}
    )
    written = terminal([sys.executable, "-c", code], environment)
    shown = written.split("\r\x1b[K")
    assert sum("frames" in line and "fail" in line for line in shown) >= 3
    assert shown[-1] == "", "the last thing written takes the line away"
    assert ("\x1b[31m" in written) is not no_color
