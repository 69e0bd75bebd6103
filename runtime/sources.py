"""Where frames come from: a camera that may stop, a video with its own clock, a folder of pictures.

What decodes is given (:mod:`alpose.runtime.camera` gives OpenCV); here is what happens when it stops, hurries or breaks.

Shapes: H W frame.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from .errors import AlposeError, DataError

log = logging.getLogger("alpose.monitor")

Frame = npt.NDArray[np.uint8]

WAIT_S = 0.2
"""The longest that a source keeps its reader waiting: it may want to stop, or to show that it lives."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0
"""Between two attempts to open a camera again: doubled each time."""
MISSES_TO_REOPEN = 5
"""Failed reads in a row after which a camera is opened again."""
MISSES_TO_END = 25
"""Failed reads in a row after which a video is over, whatever length it announced."""
DEFAULT_FPS = 10.0
"""Of a folder of pictures: they carry no time."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""What a folder is searched for."""


class SourceError(AlposeError, OSError):
    """A source that cannot be opened."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One frame."""

    frame_HW3: Frame
    """BGR."""
    time_s: float
    """Since the first frame, on the source's own clock: a video's, whatever the speed at which it is read."""
    index: int
    """Running number, from 0, of the frames that were delivered."""


@dataclass(slots=True)
class SourceCounts:
    """What happened to frames before anybody saw them."""

    delivered: int = 0
    broken: int = 0
    """Could not be read or decoded, and were left out."""
    behind: int = 0
    """Arrived while the one before was still being worked on, and were replaced by a newer one."""
    reconnects: int = 0
    """The camera had stopped, and was opened again."""


class Capture(Protocol):
    """What decodes one stream."""

    @property
    def fps(self) -> float | None:
        """As announced; None where nothing sensible is."""
        ...

    @property
    def frames(self) -> int | None:
        """As announced."""
        ...

    def read(self) -> Frame | None:
        """The next frame, BGR; None where none could be had."""
        ...

    def skip(self) -> bool:
        """Pass one frame over without decoding it."""
        ...

    def time_s(self) -> float | None:
        """The place of the last frame on the stream's clock."""
        ...

    def close(self) -> None:
        """Give the device or file back."""
        ...


class Source(Protocol):
    """Frames with their times."""

    counts: SourceCounts

    @property
    def name(self) -> str:
        """For people; without a password that an address may carry."""
        ...

    @property
    def live(self) -> bool:
        """A camera: it does not wait, and its clock is ours."""
        ...

    @property
    def fps(self) -> float | None:
        """None where a camera does not say."""
        ...

    @property
    def total(self) -> int | None:
        """Frames of a recording, as it announces them; None of a camera."""
        ...

    def shots(self) -> Iterator[Shot | None]:
        """Frame after frame; None where nothing came within :data:`WAIT_S`."""
        ...

    def close(self) -> None:
        """Give the device or file back."""
        ...


class Recorded:
    """A video file or folder of pictures: ends, and has its own clock.

    Args:
        name: for people.
        capture: decodes it.
        fps: None: what the capture announces, else :data:`DEFAULT_FPS`.
        realtime: deliver at the video's speed, and leave frames out like a camera where the reader is slower.
    """

    live = False

    def __init__(self, name: str, capture: Capture, *, fps: float | None = None, realtime: bool = False) -> None:
        self.name = name
        self.counts = SourceCounts()
        self.fps: float = fps or capture.fps or DEFAULT_FPS
        self.total = capture.frames
        self._own_clock = fps is None and capture.fps is not None
        self._capture = capture
        self._realtime = realtime

    def shots(self) -> Iterator[Shot | None]:
        """Every frame once; only ``realtime`` leaves any out."""
        began = time.monotonic()
        place = misses = 0  # place: of the next frame in the file, whether read, left out or broken
        last_s = -1.0
        while True:
            if self._realtime:
                while place < (time.monotonic() - began) * self.fps - 1 and self._capture.skip():
                    place += 1
                    self.counts.behind += 1
            frame = self._capture.read()
            place += 1
            if frame is None:
                misses += 1
                if misses >= MISSES_TO_END or (self.total is not None and place > self.total):
                    break
                continue
            # Misses at the end are only the end: they count once a frame follows them.
            self.counts.broken += misses
            misses = 0
            last_s = self._time(place - 1, last_s)
            while self._realtime and (early := last_s - (time.monotonic() - began)) > 0:
                time.sleep(min(early, WAIT_S))
                if early > WAIT_S:
                    yield None
            self.counts.delivered += 1
            yield Shot(frame, last_s, self.counts.delivered - 1)
        left = (self.total or 0) - (place - misses)
        if left > 0:
            log.warning("%s ended %d frames before the length it announces", self.name, left)

    def close(self) -> None:
        """Close the file."""
        self._capture.close()

    def _time(self, place: int, last_s: float) -> float:
        """The frame's time on the file's clock, which must run forward; by the frame rate where it does not."""
        said = self._capture.time_s() if self._own_clock else place / self.fps
        if said is None or not np.isfinite(said) or said <= last_s:
            said = 0.0 if last_s < 0 else last_s + 1 / self.fps
        return float(said)


class Live:
    """A camera or network stream. A thread of its own keeps the newest frame, so that none is ever old.

    Args:
        name: for people.
        connect: opens it; raises :class:`SourceError`. The first attempt is made here, and its error is the caller's;
            afterwards a camera that stopped is opened again and again, and that is counted.
    """

    live = True
    total = None

    def __init__(self, name: str, connect: Callable[[], Capture]) -> None:
        self.name = name
        self.counts = SourceCounts()
        self._connect = connect
        self._capture: Capture | None = connect()
        self.fps = self._capture.fps
        self._newest: tuple[Frame, float] | None = None
        self._fresh = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._read, name="alpose-camera", daemon=True)

    def shots(self) -> Iterator[Shot | None]:
        """For ever; the newest frame each time."""
        if not self._thread.is_alive() and not self._closing.is_set():
            self._thread.start()
        began: float | None = None
        while not self._closing.is_set():
            with self._fresh:
                if self._newest is None:
                    self._fresh.wait(WAIT_S)
                found, self._newest = self._newest, None
            if found is None:
                yield None
                continue
            frame, time_s = found
            began = time_s if began is None else began
            self.counts.delivered += 1
            yield Shot(frame, time_s - began, self.counts.delivered - 1)

    def close(self) -> None:
        """Stop the thread; one that hangs in a driver is left behind, it is a daemon."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(6.0)
        if self._capture is not None and not self._thread.is_alive():
            self._capture.close()
            self._capture = None

    def _read(self) -> None:
        misses = 0
        while not self._closing.is_set():
            if self._capture is None:
                self._reconnect()
                misses = 0
                continue
            try:
                frame = self._capture.read()
            except Exception as error:  # whatever a driver raises, the camera is tried again
                log.warning("%s: %s", self.name, error)
                frame = None
            if frame is None:
                misses += 1
                self.counts.broken += 1
                if misses >= MISSES_TO_REOPEN:
                    log.warning("%s stopped delivering frames; opening it again", self.name)
                    self._capture.close()
                    self._capture = None
                else:
                    self._closing.wait(0.02)  # a driver that fails at once must not take a core
                continue
            misses = 0
            with self._fresh:
                self.counts.behind += self._newest is not None
                self._newest = (frame, time.monotonic())
                self._fresh.notify()

    def _reconnect(self) -> None:
        """Open the camera again, however long that takes."""
        pause_s = FIRST_RETRY_S
        while not self._closing.wait(pause_s):
            try:
                self._capture = self._connect()
            except Exception as error:
                log.warning("%s: %s; next attempt in %.0f s", self.name, error, min(2 * pause_s, LAST_RETRY_S))
                pause_s = min(2 * pause_s, LAST_RETRY_S)
                continue
            self.counts.reconnects += 1
            log.warning("%s is back", self.name)
            return


class Pictures:
    """A folder of pictures as a capture: in the order of their names, numbers by value."""

    fps = None

    def __init__(self, files: Sequence[Path], load: Callable[[Path], Frame | None]) -> None:
        self._files = sorted(files, key=natural)
        self._load = load
        self._next = 0
        self.frames = len(self._files)

    def read(self) -> Frame | None:
        """The next picture; None where it does not decode."""
        path = self._advance()
        return None if path is None else self._load(path)

    def skip(self) -> bool:
        """Pass a picture over."""
        return self._advance() is not None

    def time_s(self) -> None:
        """Pictures carry none."""

    def close(self) -> None:
        """Nothing is open."""

    def _advance(self) -> Path | None:
        self._next += 1
        return self._files[self._next - 1] if self._next <= len(self._files) else None


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, not of folders in it."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise DataError(f"{folder} holds no pictures: names that end in {', '.join(sorted(SUFFIXES))} are taken")
    return found


def natural(path: Path) -> tuple[tuple[bool, int, str], ...]:
    """A key that sorts ``frame9`` before ``frame10``."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


def without_password(address: str) -> str:
    """An address as it may be shown and logged."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
