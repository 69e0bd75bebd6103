"""OpenCV: it opens cameras, videos and pictures. It is imported here alone, where it is first needed.

Shapes: H W frame.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataNotFoundError, MissingExtraError
from ..frames import LAYOUTS, FrameFormat, check_frame
from .sources import (
    METADATA_PREFIX,
    SUFFIXES,
    Frame,
    Live,
    Pictures,
    Recorded,
    Source,
    SourceError,
    pictures_in,
    without_password,
)

TIMEOUT_MS = 5000
"""Of network streams: after this a read has failed. OpenCV's own limit is 30 s."""
MOST_FPS = 240.0
"""A recording that announces more states the resolution of its clock, not a frame rate."""
MATROSKA = b"\x1a\x45\xdf\xa3"
"""The first bytes of a Matroska or WebM file."""
LONGEST = 10**9
"""Frames; a count beyond it is a container's way of saying that it does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraSettings:
    """What to ask of a camera; it may give something else. None leaves it to the camera."""

    width: int | None = None
    height: int | None = None
    rate: float | None = None
    """Frames a second."""
    pixel_format: str | None = None
    """Four letters as V4L2 and OpenCV name it: ``MJPG``, ``YUYV``, ``GREY``."""
    frame_format: FrameFormat = FrameFormat.BGR
    """How its frames come: every other than BGR is read as the camera gives it, and OpenCV converts nothing."""

    def __post_init__(self) -> None:
        if self.pixel_format is not None and len(self.pixel_format) != 4:
            raise ConfigError(f"a pixel format has four letters, such as MJPG or YUYV, got {self.pixel_format!r}")

    @property
    def given(self) -> bool:
        """Whether anything is asked for."""
        return self != CameraSettings()


LONGEST_NUMBER = 3
"""Digits of a camera's number."""


def open_source(
    source: str, *, fps: float | None = None, realtime: bool = False, settings: CameraSettings | None = None
) -> Source:
    """Open what ``--source`` names.

    Args:
        source: the number of a camera (where no file or folder is called so), ``/dev/video0``, an address with ``://``, a GStreamer pipeline (elements joined
            by ``!``, ending in ``appsink``), a video or picture, or a folder of pictures.
        fps: of a recording, in place of what it announces. Cameras decide themselves.
        realtime: play recordings at their own speed.
        settings: of a camera.

    Raises:
        MissingExtraError: OpenCV is not installed.
        SourceError, DataNotFoundError, DataError, ConfigError: it cannot be opened, and why.
    """
    cv2 = import_cv2("reading a camera or video")
    if fps is not None and not 0 < fps <= 1000:
        raise ConfigError(f"fps must lie in (0, 1000], got {fps}")
    settings = settings or CameraSettings()
    # A folder or file of that name is meant, not a camera or a pipeline: people name folders by dates and numbers.
    named = not Path(source).exists()
    is_number = named and source.isascii() and source.isdigit() and len(source) <= LONGEST_NUMBER
    is_pipeline = named and "!" in source
    if is_number or is_pipeline or "://" in source or _is_device(Path(source)):
        name = (
            f"camera {source}" if is_number else "the GStreamer pipeline" if is_pipeline else without_password(source)
        )
        target: int | str = int(source) if is_number else source
        return Live(name, lambda: OpenCvCapture(cv2, target, name, settings, gstreamer=is_pipeline))
    if settings.given:
        raise ConfigError(f"{source} is a recording: width, height, rate and formats are those of cameras alone")
    path = Path(source)
    if not path.exists() and path.is_relative_to("/dev"):
        raise SourceError(f"{source} is not there: is the camera plugged in?")
    if not path.exists():
        raise DataNotFoundError(
            f"{source} is not a file, folder or camera: give a camera's number (0), a video, a folder of pictures, or an "
            "address such as rtsp://HOST/STREAM"
        )
    if path.is_dir():
        return Recorded(source, Pictures(pictures_in(path), load_picture), fps=fps, realtime=realtime)
    if load_picture(path) is not None:
        return Recorded(source, Pictures([path], load_picture), fps=fps, realtime=realtime)
    return Recorded(source, OpenCvCapture(cv2, str(path), source, settings), fps=fps, realtime=realtime)


class OpenCvCapture:
    """A :class:`~alpose.runtime.camera.sources.Capture`."""

    def __init__(
        self, cv2: Any, target: int | str, name: str, settings: CameraSettings, *, gstreamer: bool = False
    ) -> None:
        self._cv2 = cv2
        if gstreamer:
            self._capture: Any = cv2.VideoCapture(target, cv2.CAP_GSTREAMER)
        elif isinstance(target, str) and "://" in target:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
            self._capture = cv2.VideoCapture(target, cv2.CAP_FFMPEG, limits)
        else:
            self._capture = cv2.VideoCapture(target)
        self._is_matroska = isinstance(target, str) and _begins_with(target, MATROSKA)
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(f"{name} does not open: {_reason(cv2, target, gstreamer)}")
        if settings.pixel_format is not None:  # first: it decides which sizes and rates there are
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*settings.pixel_format))
        for property_id, value in ((cv2.CAP_PROP_FRAME_WIDTH, settings.width),
                                   (cv2.CAP_PROP_FRAME_HEIGHT, settings.height),
                                   (cv2.CAP_PROP_FPS, settings.rate)):  # fmt: skip
            if value is not None:
                self._capture.set(property_id, value)
        self._format = settings.frame_format
        if self._format is not FrameFormat.BGR:
            self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)

    @property
    def fps(self) -> float | None:
        """As announced, where it is a frame rate."""
        value = self._number(self._cv2.CAP_PROP_FPS)
        return value if value is not None and value <= MOST_FPS else None

    @property
    def frame_count(self) -> int | None:
        """As announced. None for Matroska and WebM, which say no number: OpenCV makes one of duration and rate, and is wrong
        where the rate is the clock's resolution or the first frame comes late.
        """
        if self._is_matroska:
            return None
        value = self._number(self._cv2.CAP_PROP_FRAME_COUNT)
        return int(value) if value is not None and value < LONGEST else None

    @property
    def duration_s(self) -> float | None:
        """As announced."""
        count, fps = self.frame_count, self._number(self._cv2.CAP_PROP_FPS)
        return count / fps if count and fps else None

    def advance(self) -> bool:
        """Go to the next frame."""
        try:
            return bool(self._capture.grab())
        except self._cv2.error:  # damaged; the next one may be whole
            return False

    def decode(self) -> Frame | None:
        """Decode the present frame; one of a grey camera gets three channels, unless its format was named."""
        try:
            _, frame = self._capture.retrieve()
            if self._format is not FrameFormat.BGR:
                return None if frame is None else self._raw(np.asarray(frame))
            if frame is not None and frame.size and (frame.ndim == 2 or frame.shape[2] == 1):
                frame = self._cv2.cvtColor(frame, self._cv2.COLOR_GRAY2BGR)
        except self._cv2.error:
            return None
        if frame is None or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
            return None
        return np.asarray(frame)

    def _raw(self, frame: Frame) -> Frame | None:
        """A frame as the camera gave it. Where OpenCV gives its bytes as one row, or with an axis more, they get their shape."""
        properties = (self._cv2.CAP_PROP_FRAME_HEIGHT, self._cv2.CAP_PROP_FRAME_WIDTH)
        height, width = (int(self._capture.get(each)) for each in properties)
        shape = LAYOUTS[self._format].shape(height, width)
        if frame.size == np.prod(shape) > 0:
            frame = frame.reshape(shape)
        check_frame(frame.dtype, frame.shape, self._format)
        return frame

    def time_s(self) -> float | None:
        """The present frame's timestamp."""
        return float(self._capture.get(self._cv2.CAP_PROP_POS_MSEC)) / 1e3

    def close(self) -> None:
        """Release the device or file."""
        self._capture.release()

    def _number(self, property_id: int) -> float | None:
        value = float(self._capture.get(property_id))
        return value if np.isfinite(value) and value > 0 else None


def _begins_with(path: str, signature: bytes) -> bool:
    try:
        with Path(path).open("rb") as file:
            return file.read(len(signature)) == signature
    except OSError:
        return False  # an address, or a camera


def _reason(cv2: Any, target: int | str, gstreamer: bool) -> str:
    if gstreamer and "GStreamer:                   YES" not in cv2.getBuildInformation():
        return "this OpenCV is built without GStreamer, as those of PyPI are; use the system's (python3-opencv)"
    if gstreamer:
        return f"does it run in gst-launch-1.0, and end in appsink? {target}"
    if isinstance(target, int):
        return "is it plugged in, in use, or forbidden to this user?"
    if "://" in target:
        return "nobody answers there, or OpenCV cannot read what comes; is the address right?"
    return "OpenCV cannot read it"


def load_picture(path: Path) -> Frame | None:
    """A picture as BGR; None where it is not one. Read here: imread does not tell a missing file from a damaged one."""
    cv2 = import_cv2("reading pictures")
    if path.suffix.lower() not in SUFFIXES or path.name.startswith(METADATA_PREFIX):
        return None
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        decoded = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except (OSError, cv2.error):
        return None
    return None if decoded is None else np.asarray(decoded, dtype=np.uint8)


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False


def import_cv2(feature: str) -> Any:
    """OpenCV, which is kept from writing to the terminal what the errors here tell in whole sentences.

    By the variables that it reads when it starts; whoever sets them, or imports OpenCV first, decides. The process's own
    stderr is never redirected.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError("opencv-python-headless", feature, "camera") from error
    return cv2
