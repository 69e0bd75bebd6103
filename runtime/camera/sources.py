"""Where frames come from: a camera that never waits, a video with its own clock, a folder of pictures.

What decodes is given (:mod:`~alpose.runtime.camera.capture` gives OpenCV); here is what happens when it stops, hurries or
breaks.

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

from ..errors import AlposeError, DataError

log = logging.getLogger("alpose.monitor")

Frame = npt.NDArray[np.uint8]

WAIT_S = 0.2
"""The longest that a source keeps its reader waiting, who may want to stop or to show that it is alive."""
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0
"""Between two attempts to open a camera again: doubled each time."""
MISSES_TO_REOPEN = 5
"""Failed reads in a row after which a camera is opened again."""
MISSES_TO_END = 250
"""Failed reads in a row after which a recording is over that does not announce its length."""
DEFAULT_FPS = 10.0
"""Pictures of a folder per second: they carry no time."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Names that a folder is searched for."""
METADATA_PREFIX = "._"
"""Of the file that macOS writes beside each picture on a disk that is not its own (AppleDouble): not a picture."""


class SourceError(AlposeError, OSError):
    """A source that cannot be opened."""


@dataclass(frozen=True, slots=True, eq=False)
class TimedFrame:
    """One frame and when it was."""

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

    @property
    def frame_count(self) -> int | None:
        """As announced, which for some containers is an estimate."""

    @property
    def duration_s(self) -> float | None:
        """As announced."""

    def advance(self) -> bool:
        """Go to the next frame without decoding it; False where none could be had."""

    def decode(self) -> Frame | None:
        """The present frame, BGR; None where it is damaged."""

    def time_s(self) -> float | None:
        """The place of the present frame on the stream's clock."""

    def close(self) -> None:
        """Give the device or file back."""


class Recorded:
    """A video file or folder of pictures: it ends, and has its own clock.

    It is read to its known end, whatever is damaged on the way: the length that it announces in frames or in seconds.

    Args:
        name: for people.
        capture: decodes it.
        fps: None: what the capture announces, else :data:`DEFAULT_FPS`.
        realtime: deliver at the recording's speed, and leave frames out like a camera where the reader is slower.
    """

    live = False

    def __init__(self, name: str, capture: Capture, *, fps: float | None = None, realtime: bool = False) -> None:
        self.name = name
        self.counts = SourceCounts()
        self.fps: float = fps or capture.fps or DEFAULT_FPS
        self._own_clock = fps is None
        self._capture = capture
        self._realtime = realtime
        self._first_s: float | None = None
        self._end_s = capture.duration_s

    def frames(self) -> Iterator[TimedFrame | None]:
        """Every frame once; only ``realtime`` leaves any out."""
        began = time.monotonic()
        place = misses = 0  # place: how many frames of the file were passed, whether read, left out or broken
        last_s = -1.0
        while not self._ended(place, misses, last_s):
            place += 1
            if not self._capture.advance():
                misses += 1
                continue
            # Misses at the end are only the end, unless the file says how many there should be: see below.
            self.counts.broken += misses
            misses = 0
            time_s = self._time(place - 1, last_s)
            gap_s, last_s = time_s - last_s if last_s >= 0 else 0.0, time_s
            if self._realtime and time.monotonic() - began - time_s > max(gap_s, 1 / self.fps):
                self.counts.behind += 1
                continue
            frame = self._capture.decode()
            if frame is None:
                self.counts.broken += 1
                continue
            while self._realtime and (early_s := time_s - (time.monotonic() - began)) > 0:
                time.sleep(min(early_s, WAIT_S))
                if early_s > WAIT_S:
                    yield None
            self.counts.delivered += 1
            yield TimedFrame(frame, time_s, self.counts.delivered - 1)
        if misses and not self._reached_end(last_s):
            missing = (self._capture.frame_count or 0) - (place - misses)
            if missing > 0:
                log.warning("%s ended %d frames before the length it announces", self.name, missing)
                self.counts.broken += missing

    def close(self) -> None:
        """Close the file."""
        self._capture.close()

    def _ended(self, place: int, misses: int, last_s: float) -> bool:
        count = self._capture.frame_count
        if count is None:
            return misses >= MISSES_TO_END
        # While frames come it has not ended: files that were put behind one another announce those of the first.
        return misses > 0 and (place >= count or self._reached_end(last_s))

    def _reached_end(self, last_s: float) -> bool:
        """Whether the last frame lies at the end of the announced time: the announced number was then an estimate."""
        return (
            self._end_s is not None
            and self._own_clock
            and last_s + (self._first_s or 0.0) + 2 / self.fps >= self._end_s
        )

    def _time(self, place: int, last_s: float) -> float:
        """The frame's time on the file's clock, which must run forward; by the frame rate where it does not."""
        stated_s = self._capture.time_s() if self._own_clock else place / self.fps
        if stated_s is not None and np.isfinite(stated_s):
            if self._first_s is None:
                self._first_s = float(stated_s)
            if stated_s - self._first_s > last_s:
                return float(stated_s) - self._first_s
        return 0.0 if last_s < 0 else last_s + 1 / self.fps


class Live:
    """A camera or network stream. A thread of its own keeps the newest frame, so that none is ever old.

    Args:
        name: for people.
        connect: opens it; raises :class:`SourceError`. The first attempt is made here, and its error is the caller's;
            afterwards a camera that stopped is opened again and again, and that is counted.
    """

    live = True

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

    def frames(self) -> Iterator[TimedFrame | None]:
        """The newest frame each time, without end."""
        if not self._thread.is_alive() and not self._closing.is_set():
            self._thread.start()
        began_s: float | None = None
        while not self._closing.is_set():
            with self._fresh:
                if self._newest is None:
                    self._fresh.wait(WAIT_S)
                found, self._newest = self._newest, None
            if found is None:
                yield None
                continue
            frame, time_s = found
            began_s = time_s if began_s is None else began_s
            self.counts.delivered += 1
            yield TimedFrame(frame, time_s - began_s, self.counts.delivered - 1)

    def close(self) -> None:
        """Stop the thread; one that hangs in a driver is left behind, as it is a daemon."""
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
                frame = self._capture.decode() if self._capture.advance() else None
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
                pause_s = min(2 * pause_s, LAST_RETRY_S)
                log.warning("%s: %s; next attempt in %.0f s", self.name, error, pause_s)
                continue
            self.counts.reconnects += 1
            log.warning("%s is back", self.name)
            return


Source = Recorded | Live


class Pictures:
    """A folder of pictures as a capture: in the order of their names, numbers by value."""

    fps = duration_s = None

    def __init__(self, files: Sequence[Path], load: Callable[[Path], Frame | None]) -> None:
        self._files = sorted(files, key=natural)
        self._load = load
        self._next = 0
        self.frame_count = len(self._files)

    def advance(self) -> bool:
        """Go to the next picture."""
        self._next += 1
        return self._next <= len(self._files)

    def decode(self) -> Frame | None:
        """The picture; None where it does not decode."""
        return self._load(self._files[self._next - 1])

    def time_s(self) -> None:
        """Pictures carry no time."""

    def close(self) -> None:
        """Nothing is open."""


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, not of folders in it."""
    found = [path for path in folder.iterdir()
             if path.suffix.lower() in SUFFIXES and not path.name.startswith(METADATA_PREFIX) and path.is_file()]  # fmt: skip
    if not found:
        raise DataError(f"{folder} holds no pictures: names that end in {', '.join(sorted(SUFFIXES))} are taken")
    return found


def natural(path: Path) -> tuple[tuple[bool, int, str], ...]:
    """A key that sorts ``frame9`` before ``frame10``."""
    parts = re.split(r"(\d+)", path.name)
    return tuple((part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts)


def without_password(address: str) -> str:
    """An address as it may be shown and logged: no user, no password, and no value of a query or fragment.

    Cameras take passwords under any name (``?user=admin&password=…``, ``&pwd=``, ``&auth=``), so no value is shown.
    """
    parts = urlsplit(address)
    if not parts.scheme or not (parts.netloc or parts.query or parts.fragment):
        return address
    query = "&".join(f"{name.partition('=')[0]}=…" if "=" in name else "…" for name in parts.query.split("&") if name)
    return urlunsplit(
        parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment="…" if parts.fragment else "")
    )
