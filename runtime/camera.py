"""OpenCV: it opens cameras and videos, and writes annotated ones. It is imported here alone, where it is first needed.

Shapes: H W frame.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .draw import Colour, Image
from .errors import ConfigError, DataError, DataNotFoundError, MissingExtraError
from .overlay import Overlay, strip_height
from .skeleton import Skeleton
from .sources import SUFFIXES, Frame, Live, Pictures, Recorded, Source, SourceError, pictures_in, without_password
from .verdict import Verdict

CODECS = {".mp4": ("avc1", "mp4v"), ".m4v": ("avc1", "mp4v"), ".mov": ("avc1", "mp4v"), ".webm": ("VP80",),
          ".avi": ("MJPG",), ".mkv": ("avc1", "mp4v")}  # fmt: skip
"""What is tried for a name, best first. The wheels of OpenCV have no H.264: there .mp4 becomes MPEG-4 part 2, which most
players know and browsers do not; .webm plays in browsers."""

TIMEOUT_MS = 5000
"""Of network streams: after this a read has failed. OpenCV's own are 30 s."""
WIDTHS_PX = (640, 1280)
"""An annotated video is at least and at most so wide: letters must be readable, and encoding keep up."""
LONGEST_GAP_S = 5.0
"""Where a source was silent longer, the video goes on after this much of standstill."""


def open_source(source: str, *, fps: float | None = None, realtime: bool = False) -> Source:
    """Open what ``--source`` names.

    Args:
        source: the number of a camera, ``/dev/video0``, an address with ``://``, a video or picture, or a folder of
            pictures.
        fps: of a recording, in place of what it announces. Cameras decide themselves.
        realtime: play recordings at their own speed.

    Raises:
        MissingExtraError: OpenCV is not installed.
        SourceError, DataNotFoundError, DataError, ConfigError: it cannot be opened, and why.
    """
    cv2 = _cv2("reading a camera or video")
    if fps is not None and not 0 < fps <= 1000:
        raise ConfigError(f"fps must lie in (0, 1000], got {fps}")
    live_number = source.isascii() and source.isdigit()
    if live_number or "://" in source or _is_device(Path(source)):
        name = f"camera {source}" if live_number else without_password(source)
        target: int | str = int(source) if live_number else source
        return Live(name, lambda: _Cv2Capture(cv2, target, name))
    path = Path(source)
    if not path.exists():
        raise DataNotFoundError(
            f"{source} is no file, no folder and no camera: give a camera's number (0), a video, a folder of pictures, "
            "or an address such as rtsp://HOST/STREAM"
        )
    if path.is_dir():
        return Recorded(source, Pictures(pictures_in(path), _load), fps=fps, realtime=realtime)
    if _load(path) is not None:
        return Recorded(source, Pictures([path], _load), fps=fps, realtime=realtime)
    return Recorded(source, _Cv2Capture(cv2, str(path), source), fps=fps, realtime=realtime)


SLOW_FPS = 5.0
"""A source with fewer frames a second is shown faster than it was, frame after frame."""


class AnnotatedVideo:
    """Writes frames with pose, box, probability and flags to a file, at the speed of the source's clock.

    Raises:
        ConfigError: this OpenCV cannot write such a file, or there is no such folder.
    """

    def __init__(self, path: Path, skeleton: Skeleton, fps: float | None) -> None:
        self._cv2: Any = _cv2("writing an annotated video")
        if path.suffix.lower() not in CODECS:
            raise ConfigError(f"{path}: a video's name ends in one of {', '.join(CODECS)}")
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path.absolute().parent} does not exist: make the folder first")
        self.path = path
        self.written = 0
        self._clocked = fps is None or fps >= SLOW_FPS
        self._fps = (min(fps, 240.0) if fps else 25.0) if self._clocked else SLOW_FPS
        self._overlay = Overlay(skeleton, _Letters(self._cv2))
        self._writer: Any = None
        self._size: tuple[int, int] = (0, 0)
        self._last_s = 0.0
        self._skipped_s = 0.0

    def write(self, frame_bgr_HW3: Frame, verdict: Verdict, time_s: float, threshold: float | None) -> None:
        """Add the frame of this time; one that came late is preceded by a standstill, so that the clock is right."""
        height, width = frame_bgr_HW3.shape[:2]
        scale = min(max(1.0, WIDTHS_PX[0] / width), WIDTHS_PX[1] / width)
        size = (max(2, round(width * scale)), max(2, round(height * scale)))
        if scale != 1.0:
            way = self._cv2.INTER_AREA if scale < 1 else self._cv2.INTER_LINEAR
            frame_bgr_HW3 = self._cv2.resize(frame_bgr_HW3, size, interpolation=way)
        picture_HW3 = self._overlay.draw(frame_bgr_HW3, verdict, time_s, scale=scale, threshold=threshold)
        if self._writer is None:
            self._open(size)
        if (picture_HW3.shape[1], picture_HW3.shape[0]) != self._size:  # encoders take one even size
            picture_HW3 = _fitted(picture_HW3, self._size, self._cv2)
        self._skipped_s += max(0.0, time_s - self._last_s - LONGEST_GAP_S)
        self._last_s = time_s
        wanted = int((time_s - self._skipped_s) * self._fps + 0.5) + 1 if self._clocked else self.written + 1
        for _ in range(max(0, wanted - self.written)):
            self._writer.write(picture_HW3)
            self.written += 1

    def close(self) -> None:
        """Finish the file and read it back; :class:`DataError` where it does not decode."""
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        again = self._cv2.VideoCapture(str(self.path))
        decoded = again.read()[0]
        again.release()
        if not decoded:
            raise DataError(f"{self.path} was written and does not decode again: try another ending, such as .avi")

    def _open(self, size: tuple[int, int]) -> None:
        width, height = size
        self._size = (width + width % 2, (height + strip_height(height)) // 2 * 2)
        self.path.unlink(missing_ok=True)
        with _quiet():
            for codec in CODECS[self.path.suffix.lower()]:
                code = self._cv2.VideoWriter_fourcc(*codec)
                writer = self._cv2.VideoWriter(str(self.path), code, self._fps, self._size)
                if writer.isOpened():
                    self._writer = writer
                    return
                writer.release()
        raise ConfigError(f"this OpenCV cannot write {self.path}: try another ending of {', '.join(CODECS)}")


class _Cv2Capture:
    """A :class:`~alpose.runtime.sources.Capture`."""

    def __init__(self, cv2: Any, target: int | str, name: str) -> None:
        self._cv2 = cv2
        with _quiet():
            if isinstance(target, str) and "://" in target:
                limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
                self._capture: Any = cv2.VideoCapture(target, cv2.CAP_FFMPEG, limits)
            else:
                self._capture = cv2.VideoCapture(target)
        if not self._capture.isOpened():
            self._capture.release()
            hint = "is it plugged in, in use, or forbidden to this user?" if isinstance(target, int) else \
                "OpenCV cannot read it"  # fmt: skip
            raise SourceError(f"{name} does not open: {hint}")

    @property
    def fps(self) -> float | None:
        value = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        return value if np.isfinite(value) and 0 < value <= 1000 else None

    @property
    def frames(self) -> int | None:
        value = float(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        return int(value) if np.isfinite(value) and 0 < value < 1e9 else None

    def read(self) -> Frame | None:
        try:
            _, frame = self._capture.read()
        except self._cv2.error:  # a damaged picture; the next one may be whole
            return None
        if frame is None or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
            return None
        return np.asarray(frame)

    def skip(self) -> bool:
        return bool(self._capture.grab())

    def time_s(self) -> float | None:
        return float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1e3

    def close(self) -> None:
        self._capture.release()


class _Letters:
    """An :class:`~alpose.runtime.overlay.Writer` with OpenCV's own letters."""

    def __init__(self, cv2: Any) -> None:
        self._cv2 = cv2

    def width(self, words: str, height_px: int, bold: bool = False) -> int:
        face, scale, thickness = self._style(height_px, bold)
        return int(self._cv2.getTextSize(words, face, scale, thickness)[0][0])

    def put(
        self, image_bgr_HW3: Image, words: str, x: int, y: int, height_px: int, colour: Colour, bold: bool = False
    ) -> None:
        face, scale, thickness = self._style(height_px, bold)
        self._cv2.putText(image_bgr_HW3, words, (x, y), face, scale, colour[::-1], thickness, self._cv2.LINE_AA)

    def _style(self, height_px: int, bold: bool) -> tuple[int, float, int]:
        # A capital of this letter is 22 px high at scale 1.
        return (self._cv2.FONT_HERSHEY_DUPLEX if bold else self._cv2.FONT_HERSHEY_SIMPLEX), height_px / 22, 1


def _load(path: Path) -> Frame | None:
    """A picture as BGR; None where it is none. Read here: imread does not tell a missing file from a damaged one."""
    cv2 = _cv2("reading pictures")
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8) if path.suffix.lower() in SUFFIXES else None
        decoded = None if content is None or not content.size else cv2.imdecode(content, cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if decoded is None else np.asarray(decoded, dtype=np.uint8)


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False


def _fitted(picture_HW3: Image, size: tuple[int, int], cv2: Any) -> Image:
    """The picture at the size of the file: cut or padded by a pixel, or resized where the source changed its size."""
    width, height = size
    if abs(picture_HW3.shape[0] - height) > 1 or abs(picture_HW3.shape[1] - width) > 1:
        return np.asarray(cv2.resize(picture_HW3, size))
    short = ((0, max(0, height - picture_HW3.shape[0])), (0, max(0, width - picture_HW3.shape[1])), (0, 0))
    return np.ascontiguousarray(np.pad(picture_HW3[:height, :width], short, mode="edge"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what OpenCV and FFmpeg write about formats they lack off the terminal; here it is told in our words."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no such stream: nothing to keep quiet
        yield
        return
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _cv2(feature: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError("opencv-python-headless", feature, "camera") from error
    return cv2
