"""What happens to frames before anybody sees them. The capture is scripted: no OpenCV, and cameras that fail on purpose."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from alpose.runtime.camera import sources
from alpose.runtime.camera.sources import Frame, Live, Pictures, Recorded, SourceError, TimedFrame, natural, pictures_in
from alpose.runtime.errors import DataError


def frame(value: int) -> Frame:
    return np.full((4, 6, 3), value, dtype=np.uint8)


class Scripted:
    """A capture that gives what its script says: a frame, or None for one that does not decode."""

    duration_s: float | None = None

    def __init__(self, script: list[Frame | None], *, fps: float | None = 10.0, frames: int | None = None,
                 times: list[float] | None = None) -> None:  # fmt: skip
        self.script, self.fps, self.frame_count, self.times = script, fps, frames, times
        self.place = 0
        self.closed = False

    def advance(self) -> bool:
        self.place += 1
        return self.place <= len(self.script) and self.script[self.place - 1] is not None

    def decode(self) -> Frame | None:
        return self.script[self.place - 1]

    def time_s(self) -> float | None:
        return self.times[self.place - 1] if self.times else (self.place - 1) / 10

    def close(self) -> None:
        self.closed = True


def delivered(source: Recorded) -> list[TimedFrame]:
    return [one for one in source.frames() if one is not None]


def test_a_recording_gives_every_frame_once_with_the_time_of_its_own_clock() -> None:
    source = Recorded("video", Scripted([frame(n) for n in range(5)], frames=5))
    found = delivered(source)
    assert [int(one.frame_HW3[0, 0, 0]) for one in found] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([one.time_s for one in found], [0, 0.1, 0.2, 0.3, 0.4])
    assert [one.index for one in found] == [0, 1, 2, 3, 4]
    assert source.counts == sources.SourceCounts(delivered=5)


def test_broken_frames_are_left_out_and_counted_and_the_end_is_no_broken_frame() -> None:
    source = Recorded("video", Scripted([frame(0), None, None, frame(3), None], frames=None))
    found = delivered(source)
    assert [int(one.frame_HW3[0, 0, 0]) for one in found] == [0, 3]
    assert found[1].time_s == pytest.approx(0.3)
    assert source.counts.broken == 2
    assert source.counts.delivered == 2


def test_a_video_that_ends_before_its_announced_length_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        delivered(Recorded("short.mp4", Scripted([frame(0)] * 4, frames=100)))
    assert "short.mp4 ended 96 frames before the length it announces" in caplog.text


@pytest.mark.parametrize("bad", [range(10, 40), range(77, 80), range(80)], ids=["a gap", "the end", "all"])
def test_every_picture_of_a_folder_is_tried(bad: range) -> None:
    files = [Path(f"{number}.jpg") for number in range(80)]
    source = Recorded("folder", Pictures(files, lambda path: None if int(path.stem) in bad else frame(1)))
    assert len(delivered(source)) == 80 - len(bad)
    assert source.counts == sources.SourceCounts(delivered=80 - len(bad), broken=len(bad))


def test_a_video_is_read_on_behind_a_hole_to_the_number_of_frames_that_it_announces() -> None:
    script = [frame(0)] * 50 + [None] * 76 + [frame(1)] * 74
    source = Recorded("hole.mp4", Scripted(script, frames=200))
    found = delivered(source)
    assert len(found) == 124
    assert found[50].time_s == pytest.approx(12.6)
    assert source.counts.broken == 76


def test_a_video_that_announces_too_few_frames_is_read_to_its_end(caplog: pytest.LogCaptureFixture) -> None:
    source = Recorded("twice.ts", Scripted([frame(0)] * 60, frames=30))  # two files behind one another
    assert (len(delivered(source)), source.counts.broken, caplog.text) == (60, 0, "")


def test_a_number_of_frames_that_was_estimated_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    times = [3600.0 + number / 15 for number in range(90)]  # a WebM of 15 frames a second that begins after an hour
    capture = Scripted([frame(0)] * 90, fps=15.0, frames=54_100, times=times)
    capture.duration_s = 3606.0
    source = Recorded("browser.webm", capture)
    found = delivered(source)
    assert (len(found), source.counts.broken, caplog.text) == (90, 0, "")
    assert found[-1].time_s == pytest.approx(89 / 15)


def test_realtime_goes_by_the_files_own_timestamps() -> None:
    times = [number * 0.2 for number in range(3)] + [0.6 + number / 100 for number in range(30)]  # slow, then fast
    source = Recorded("vfr.mkv", Scripted([frame(0)] * 33, fps=240.0, frames=33, times=times), realtime=True)
    began = time.monotonic()
    found = delivered(source)
    assert time.monotonic() - began >= 0.85
    assert len(found) + source.counts.behind == 33
    assert len(found) >= 25


def test_the_files_own_times_decide_where_it_announces_no_rate() -> None:
    """A browser's WebM announces the resolution of its clock, which is not a frame rate."""
    source = Recorded("video", Scripted([frame(n) for n in range(4)], fps=None, times=[0.0, 0.066, 0.132, 0.198]))
    assert [one.time_s for one in delivered(source)] == pytest.approx([0.0, 0.066, 0.132, 0.198])


def test_files_that_macos_writes_beside_pictures_are_none(tmp_path: Path) -> None:
    for name in ("IMG_1.jpg", "._IMG_1.jpg", "IMG_2.jpg", "._IMG_2.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert sorted(path.name for path in pictures_in(tmp_path)) == ["IMG_1.jpg", "IMG_2.jpg"]


def test_a_clock_that_stands_or_runs_backwards_is_replaced_by_the_frame_rate() -> None:
    source = Recorded("video", Scripted([frame(0)] * 4, fps=20.0, times=[0.0, 0.0, -5.0, float("nan")]))
    np.testing.assert_allclose([one.time_s for one in delivered(source)], [0, 0.05, 0.1, 0.15])


def test_a_frame_rate_that_was_asked_for_is_the_clock() -> None:
    source = Recorded("video", Scripted([frame(0), None, frame(0)], fps=10.0), fps=2.0)
    np.testing.assert_allclose([one.time_s for one in delivered(source)], [0, 1.0])


def test_realtime_leaves_frames_out_for_a_slow_reader_and_counts_them() -> None:
    source = Recorded("video", Scripted([frame(n) for n in range(30)], fps=100.0, frames=30,
                                        times=[n / 100 for n in range(30)]), realtime=True)  # fmt: skip
    began, found = time.monotonic(), []
    for one in source.frames():
        if one is not None:
            found.append(one)
            time.sleep(0.05)
    # However slow this machine is: each frame is shown no earlier than its time, none twice, none lost uncounted.
    assert time.monotonic() - began >= found[-1].time_s
    assert len(found) + source.counts.behind == 30
    assert source.counts.behind > 0
    assert [one.time_s for one in found] == sorted({one.time_s for one in found})


def test_a_folder_is_read_in_the_order_of_its_numbers_and_an_unreadable_picture_is_counted(tmp_path: Path) -> None:
    for name in ("frame10.png", "frame9.png", "frame1.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    read: list[str] = []

    def load(path: Path) -> Frame | None:
        read.append(path.name)
        return None if path.name == "frame9.png" else frame(1)

    source = Recorded("folder", Pictures(pictures_in(tmp_path), load))
    found = delivered(source)
    assert read == ["frame1.png", "frame9.png", "frame10.png"]
    assert source.counts.broken == 1
    np.testing.assert_allclose([one.time_s for one in found], [0, 0.2])


def test_a_folder_without_pictures_is_an_error_that_says_what_is_taken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no pictures.*\.png"):
        pictures_in(tmp_path)


def test_names_sort_by_their_numbers() -> None:
    names = ["b2.png", "a10.png", "a9.png", "10.png", "9.png"]
    assert sorted(names, key=lambda name: natural(Path(name))) == ["9.png", "10.png", "a9.png", "a10.png", "b2.png"]


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:secret@10.0.0.7:554/live?x=1", "rtsp://10.0.0.7:554/live?x=…"),
        ("rtsp://10.0.0.5/cam?user=admin&password=secret&1234", "rtsp://10.0.0.5/cam?user=…&password=…&…"),
        ("http://cam/video.mjpg?token=abc#secret", "http://cam/video.mjpg?token=…#…"),
        ("rtsp://10.0.0.7/live", "rtsp://10.0.0.7/live"),
        ("http://u:p@w@host/", "http://host/"),
    ],
)
def test_a_password_in_an_address_is_never_shown(address: str, shown: str) -> None:
    assert sources.without_password(address) == shown


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(sources, "LAST_RETRY_S", 0.02)


def take(source: Live, count: int, timeout_s: float = 20.0) -> Iterator[TimedFrame]:
    """The next frames; a camera that never delivers fails the test."""
    end = time.monotonic() + timeout_s
    for one in source.frames():
        assert time.monotonic() < end
        if one is not None:
            yield one
            count -= 1
            if not count:
                return


class Camera:
    """Fails its connections and reads as told."""

    def __init__(self, connect: Callable[[int], None] = lambda attempt: None, dies_after: int = 10**9) -> None:
        self.attempts, self.reads, self.dies_after, self._connect = 0, 0, dies_after, connect
        self.captures: list[_Capture] = []

    def __call__(self) -> _Capture:
        self.attempts += 1
        self._connect(self.attempts)
        self.captures.append(_Capture(self, self.dies_after if len(self.captures) == 0 else 10**9))
        return self.captures[-1]


class _Capture:
    fps, frame_count, duration_s = 30.0, None, None

    def __init__(self, camera: Camera, lives: int) -> None:
        self.camera, self.lives, self.closed = camera, lives, False

    def advance(self) -> bool:
        assert not self.closed
        time.sleep(0.001)
        self.lives -= 1
        return self.lives >= 0

    def decode(self) -> Frame | None:
        self.camera.reads += 1
        return frame(min(self.camera.reads, 255))

    def time_s(self) -> float | None:
        return None

    def close(self) -> None:
        self.closed = True


@pytest.mark.usefixtures("quick")
def test_a_camera_that_stops_is_opened_again_and_that_is_counted() -> None:
    def connect(attempt: int) -> None:
        if attempt in (2, 3):  # it is not back at once
            raise SourceError("camera 0 does not open")

    camera = Camera(connect, dies_after=3)
    source = Live("camera 0", camera)
    found = list(take(source, 20))
    source.close()
    assert len(found) == 20
    assert source.counts.reconnects == 1
    assert source.counts.broken == sources.MISSES_TO_REOPEN
    assert camera.attempts == 4
    assert all(capture.closed for capture in camera.captures)
    assert [one.time_s for one in found] == sorted(one.time_s for one in found)


def test_a_slow_reader_gets_the_newest_frame_and_the_others_are_counted() -> None:
    camera = Camera()
    source = Live("camera 0", camera)
    found = take(source, 4)
    next(found)
    for _ in range(3):
        time.sleep(0.05)
        before = camera.reads  # the last of these may not have been handed over yet
        assert int(next(found).frame_HW3[0, 0, 0]) >= min(before - 1, 255)
    source.close()
    assert source.counts.behind > 0
    assert source.counts.delivered + source.counts.behind <= camera.reads


def test_a_camera_that_does_not_open_at_the_start_is_the_callers_error() -> None:
    def connect(attempt: int) -> None:
        raise SourceError("camera 7 does not open: is it plugged in?")

    with pytest.raises(SourceError, match="camera 7"):
        Live("camera 7", Camera(connect))


def test_nothing_from_a_camera_keeps_the_reader_no_longer_than_a_moment() -> None:
    release = threading.Event()

    class Silent(_Capture):
        def advance(self) -> bool:
            release.wait(10)
            return False

    source = Live("camera 0", lambda: Silent(Camera(), 0))
    assert next(source.frames()) is None
    release.set()
    source.close()
