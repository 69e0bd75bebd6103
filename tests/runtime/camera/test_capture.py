"""OpenCV for real: a video is written, read, spoiled, and written again with what a monitor thinks of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alpose.runtime.camera.sources import SourceError
from alpose.runtime.errors import ConfigError, DataError, DataNotFoundError
from alpose.runtime.frames import FrameFormat, accept
from alpose.runtime.skeleton import LSP

from ...fakes import disk
from ...fakes.frames import noise

cv2: Any = pytest.importorskip("cv2")

from alpose.runtime.camera.capture import CameraSettings, open_source  # noqa: E402 - after the skip
from alpose.runtime.camera.overlay import (  # noqa: E402
    BAD,
    GOOD,
    WINDOW_S,
    AnnotatedVideo,
    Letters,
    Overlay,
    strip_height,
)

FPS, COUNT, SIDE = 20.0, 30, (96, 128)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Frame n has the grey level 8 n."""
    path = tmp_path / "grey.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, SIDE[::-1])
    for number in range(COUNT):
        writer.write(np.full((*SIDE, 3), 8 * number, dtype=np.uint8))
    writer.release()
    return path


def levels(source: Any) -> tuple[list[int], list[float]]:
    found = [shot for shot in source.frames() if shot is not None]
    return [int(shot.frame_HW3.mean()) for shot in found], [shot.time_s for shot in found]


def test_a_video_gives_its_frames_in_order_with_its_own_times(video: Path) -> None:
    source = open_source(str(video))
    grey, times = levels(source)
    source.close()
    assert source.fps == FPS
    assert not source.live
    assert np.abs(np.array(grey) - 8 * np.arange(COUNT)).max() <= 2
    np.testing.assert_allclose(times, np.arange(COUNT) / FPS, atol=1e-3)


def test_matroska_announces_no_number_of_frames_and_none_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, SIDE[::-1])
    for value in range(5):
        writer.write(np.full((*SIDE, 3), 40 * value, dtype=np.uint8))
    writer.release()
    source = open_source(str(path))
    assert sum(one is not None for one in source.frames()) == 5
    assert source.counts.broken == 0


@pytest.mark.parametrize("name", ["0", "20240131", "20240131123000", "a ! b"])
def test_a_folder_may_be_called_like_a_camera(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    cv2.imwrite(f"{name}/1.png", np.full((8, 8, 3), 50, dtype=np.uint8))
    source = open_source(name)
    assert not source.live
    assert levels(source)[0] == [50]
    with pytest.raises(DataNotFoundError, match="20240201 is not a file, folder or camera"):
        open_source("20240201")


def test_a_damaged_picture_among_others_is_left_out_and_counted(tmp_path: Path) -> None:
    for number in range(4):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8, 3), 50 * number, dtype=np.uint8))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:30])
    (tmp_path / "2.png").write_bytes(b"")
    source = open_source(str(tmp_path), fps=5)
    grey, times = levels(source)
    assert grey == [0, 150]
    assert times == pytest.approx([0, 0.6])
    assert source.counts.broken == 2


def test_a_single_picture_is_a_source(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    cv2.imwrite(str(path), np.full((8, 9, 3), (10, 20, 30), dtype=np.uint8))
    (shot,) = [shot for shot in open_source(str(path)).frames() if shot is not None]
    assert shot.frame_HW3.shape == (8, 9, 3)
    assert shot.frame_HW3[0, 0].tolist() == [10, 20, 30], "BGR, as OpenCV has it"


def test_what_is_no_source_says_so(tmp_path: Path, video: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"notes\.mp4 does not open"):
        open_source(str(tmp_path / "notes.mp4"))
    with pytest.raises(DataNotFoundError, match="not a file, folder or camera"):
        open_source(str(tmp_path / "absent.mp4"))
    with pytest.raises(DataError, match="holds no pictures"):
        open_source(str(tmp_path / "empty"))
    with pytest.raises(SourceError, match="/dev/video97 is not there: is the camera plugged in"):
        open_source("/dev/video97")  # it may be in a moment, unlike a file whose name was mistyped
    with pytest.raises(SourceError, match="nobody answers there"):
        open_source("http://127.0.0.1:9/video.mp4")
    with pytest.raises(SourceError, match="camera 97 does not open"):
        open_source("97")
    with pytest.raises(ConfigError, match="fps"):
        open_source(str(video), fps=0)


def test_an_address_that_does_not_answer_is_an_error_without_its_password() -> None:
    with pytest.raises(SourceError) as caught:
        open_source("rtsp://user:secret@127.0.0.1:9/live")
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


def verdict(
    number: int, *, flagged: bool = False, kept: bool = False, probability: float = 0.4, occupied: bool = True,
    stream: str = "",
) -> Any:  # fmt: skip
    rng = np.random.default_rng(number)
    return SimpleNamespace(
        keypoints=rng.uniform((20, 10), (110, 80), (14, 2)).astype("f4"), scores=rng.uniform(0, 1, 14).astype("f4"),
        failure_probability=probability, flagged=flagged, kept=flagged or kept, sequence=number,
        reasons=("budget 0.83 >= 0.71",) if flagged else (), box=(20.0, 10.0, 110.0, 80.0), place="track",
        confidence=None, timings=SimpleNamespace(total_s=0.004), occupied=occupied, stream=stream,
    )  # fmt: skip


def decoded(path: Path) -> list[np.ndarray[Any, Any]]:
    capture = cv2.VideoCapture(str(path))
    frames: list[np.ndarray[Any, Any]] = []
    while True:
        good, frame = capture.read()
        if not good:
            return frames
        frames.append(frame)


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.avi"])
def test_an_annotated_video_decodes_with_every_frame_and_its_strip(tmp_path: Path, name: str) -> None:
    video = AnnotatedVideo(tmp_path / name, LSP, FPS)
    for number in range(12):
        video.write(np.full((*SIDE, 3), 90, dtype=np.uint8), verdict(number, flagged=number == 6), number / FPS, 0.6)
    video.close()
    frames = decoded(tmp_path / name)
    assert len(frames) == 12
    height, width, _ = frames[0].shape
    assert (width, height) == (640, 480 + strip_height(480)), "small frames are enlarged until letters can be read"
    # Only the flagged frame has the full red border (BGR), and those after it a fading one.
    border = [frame[200:300, :3].astype(int).mean(axis=(0, 1)) for frame in frames]
    assert border[6][2] - border[6][0] > 100
    assert all(abs(edge[2] - edge[0]) < 30 for edge in border[:6])
    assert border[11][2] - border[11][0] < border[7][2] - border[7][0]


def test_frames_that_were_missed_stand_still_so_that_the_clock_is_right(tmp_path: Path) -> None:
    video = AnnotatedVideo(tmp_path / "out.avi", LSP, 10.0)
    for number, time_s in enumerate((0.0, 0.1, 1.0, 100.0, 100.1)):
        video.write(np.zeros((*SIDE, 3), dtype=np.uint8), verdict(number), time_s, None)
    video.close()
    # 0.9 s of standstill are shown; of 99 s, the first five.
    assert len(decoded(tmp_path / "out.avi")) == 11 + 50 + 1


def test_a_source_of_few_frames_is_shown_frame_after_frame(tmp_path: Path) -> None:
    video = AnnotatedVideo(tmp_path / "out.avi", LSP, 0.2)
    for number in range(4):
        video.write(np.zeros((*SIDE, 3), dtype=np.uint8), verdict(number), 5.0 * number, None)
    video.close()
    assert len(decoded(tmp_path / "out.avi")) == 4


def test_a_source_that_changes_its_size_goes_on(tmp_path: Path) -> None:
    video = AnnotatedVideo(tmp_path / "out.avi", LSP, 10.0)
    for number, shape in enumerate([(97, 641), (97, 641), (300, 1501), (64, 64)]):
        video.write(np.zeros((*shape, 3), dtype=np.uint8), verdict(number), number / 10, None)
    video.close()
    frames = decoded(tmp_path / "out.avi")
    assert len(frames) == 4
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0


def test_the_curve_shows_ten_seconds_and_forgets_the_rest(tmp_path: Path) -> None:
    video = AnnotatedVideo(tmp_path / "out.avi", LSP, 2.0)  # written frame after frame
    for number in range(40):
        value = verdict(number, probability=1.0 if number < 10 else float("nan") if number == 12 else 0.02)
        video.write(np.full((360, 640, 3), 128, dtype=np.uint8), value, number / 2, None)
    video.close()
    frames = decoded(tmp_path / "out.avi")
    top, curve = 360 + 11, slice(200, 440)
    high = [frame[top : top + 8, curve].astype(int) for frame in frames]
    red = [int((part[..., 2] - part[..., 0] > 80).sum()) for part in high]
    assert red[9] > 500
    assert red[int(2 * WINDOW_S) + 15] == 0


class Words(Letters):
    """Letters that remember what was written."""

    def __init__(self) -> None:
        super().__init__(cv2)
        self.said: list[str] = []

    def put(self, image_bgr_HW3: Any, words: str, *place: Any, **style: Any) -> None:
        self.said.append(words)
        super().put(image_bgr_HW3, words, *place, **style)


def coloured(picture: Any) -> int:
    """Pixels of the strip's bar and curve that are not grey."""
    return int((np.ptp(picture[480 + 9 : 480 + 59].astype(int), axis=2) > 40).sum())


def test_an_empty_room_has_no_probability_and_no_pose() -> None:
    words = Words()
    overlay, frame = Overlay(LSP, words), np.full((480, 640, 3), 90, dtype=np.uint8)
    there = overlay.draw(frame, verdict(0, probability=0.77), 0.0)
    overlay.draw(frame, [], 0.1)
    assert {"0.77", "probability", "of failure"} <= set(words.said)
    for time_s, nobody in ((3.0, verdict(0, probability=0.77, occupied=False)), (4.0, [])):
        words.said.clear()
        empty = overlay.draw(frame, nobody, time_s)
        assert "nobody" in words.said
        assert not {"0.77", "probability", "of failure"} & set(words.said)
        assert not [each for each in words.said if each.startswith(("0.", "1.00"))]
        assert coloured(empty) < 0.1 * coloured(Overlay(LSP, words).draw(frame, verdict(1, probability=0.77), 5.0))
        assert (empty[30:76, 30:100] == 90).all(), "no pose"
    assert (there[30:76, 30:100] != 90).any()


def test_everybody_is_drawn_with_a_name_and_a_probability_of_their_own() -> None:
    words = Words()
    overlay, frame = Overlay(LSP, words), np.full((480, 640, 3), 90, dtype=np.uint8)
    everybody = [verdict(0, probability=0.12, stream="person-1"), verdict(1, probability=0.93, stream="person-3")]
    for one, x in zip(everybody, (50.0, 400.0), strict=True):
        one.box = (x, 100.0, x + 100, 300.0)
    picture = overlay.draw(frame, everybody, 0.0)

    assert {"person-1 0.12", "person-3 0.93", "0.93", "highest of 2", "00:00.0   2 people"} <= set(words.said)
    for x, colour in ((50, GOOD), (400, BAD)):  # the corners of each box have their own colour, BGR
        corner = picture[100:104, x : x + 20].reshape(-1, 3)[:, ::-1].astype(int)
        wanted = (np.array(colour) if x == 400 else np.array(GOOD)).astype(int)
        assert (np.abs(corner - wanted).sum(axis=1) < 130).any()
    words.said.clear()
    overlay.draw(frame, everybody[:1], 0.1)
    assert {"0.12", "of failure", "00:00.1   1 person"} <= set(words.said)


def test_a_video_that_cannot_be_written_is_an_error_before_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ends in one of"):
        AnnotatedVideo(tmp_path / "out.gif", LSP, 10.0)
    (tmp_path / "disk").mkdir()
    with disk.mounted(tmp_path / "disk", "size=64k,ro"), pytest.raises(OSError, match=r"Read-only .*out\.mp4"):
        AnnotatedVideo(tmp_path / "disk" / "out.mp4", LSP, 10.0)
    with disk.mounted(tmp_path / "disk", "size=64k"):
        disk.fill(tmp_path / "disk")
        with pytest.raises(OSError, match=r"No space left .*out\.mp4"):
            AnnotatedVideo(tmp_path / "disk" / "out.mp4", LSP, 10.0)


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.avi"])
def test_a_video_whose_disk_becomes_full_says_so_at_its_end(tmp_path: Path, name: str) -> None:
    (tmp_path / "disk").mkdir()
    with disk.mounted(tmp_path / "disk", "size=400k"):
        video = AnnotatedVideo(tmp_path / "disk" / "new" / name, LSP, FPS)
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        for number in range(30):
            video.write(noise, verdict(number), number / FPS, None)
        with pytest.raises(DataError, match="the disk is full"):
            video.close()
        video.close()


class RawCapture:
    """As much of a V4L2 camera behind OpenCV as raw frames need: it gives its bytes as they are, here as one row."""

    def __init__(self, frame: Any, height: int, width: int) -> None:
        self.frame, self.converts = frame.reshape(1, -1), True
        self.size = {cv2.CAP_PROP_FRAME_HEIGHT: height, cv2.CAP_PROP_FRAME_WIDTH: width}

    def isOpened(self) -> bool:
        return True

    def set(self, property_id: int, value: float) -> bool:
        if property_id == cv2.CAP_PROP_CONVERT_RGB:
            self.converts = bool(value)
        return True

    def get(self, property_id: int) -> float:
        return float(self.size.get(property_id, 0))

    def grab(self) -> bool:
        return True

    def retrieve(self) -> tuple[bool, Any]:
        assert not self.converts
        return True, self.frame

    def release(self) -> None:
        pass


@pytest.mark.parametrize("frame_format", [each for each in FrameFormat if each is not FrameFormat.BGR])
def test_a_cameras_own_format_reaches_the_monitor_and_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame_format: FrameFormat
) -> None:
    raw = noise(frame_format, 48, 64)
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: RawCapture(raw, 48, 64))
    source = open_source("0", settings=CameraSettings(frame_format=frame_format))
    found = next(shot for shot in source.frames() if shot is not None)
    source.close()
    np.testing.assert_array_equal(found.frame_HW3, raw)

    written: list[Any] = []

    def draw(frame: Any, *_: object, **__: object) -> Any:
        written.append(frame)
        return frame

    video = AnnotatedVideo(tmp_path / "out.avi", LSP, 25.0, frame_format)
    monkeypatch.setattr(video._overlay, "draw", draw)
    monkeypatch.setattr(video, "_writer", SimpleNamespace(write=lambda _: None, release=lambda: None))
    monkeypatch.setattr(video, "_size", (640, 480))
    video.write(found.frame_HW3, None, 0.0, None)  # type: ignore[arg-type]
    expected = accept(raw, frame_format).to_rgb()[..., ::-1]
    np.testing.assert_array_equal(written[0], cv2.resize(expected, (640, 480), interpolation=cv2.INTER_LINEAR))


def test_a_camera_that_gives_another_format_says_what_came(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", lambda *_: RawCapture(noise(FrameFormat.YUYV, 48, 64), 48, 64))
    source = open_source("0", settings=CameraSettings(frame_format=FrameFormat.NV12))
    assert next(source.frames()) is None
    assert "a frame in NV12 is uint8 (H * 3/2, W), H and W even, got uint8" in caplog.text
    source.close()
