"""The live page: what a monitor sees now, in a browser. ``monitor.serve(8080)``, or ``alpose-monitor run … --serve 8080``.

The camera's thread leaves numbers behind, a few microseconds a frame. It copies a frame only where a browser has asked for a
picture and waits for it; everything else (colours, size, pose, JPEG, the queue) happens on the server's threads.

Shapes: H W frame, h w made smaller, J joints.
"""

from __future__ import annotations

import json
import logging
import queue as queues
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import drawing
from ..errors import AlposeError
from ..frames import HostFrame
from ..queue.fields import is_hex
from ..queue.images import JPEG, decode, encode
from ..queue.record import Picture
from ..skeleton import Skeleton
from ..triggers import Reason
from ..types import Verdict
from .web import Content, WebServer, is_loopback

if TYPE_CHECKING:
    from ..logs import FaultIsolation
    from ..pipeline import FrameReader
    from ..queue import Queue, Record
    from .stats import Stats

LONG_SIDE_PX = 640
"""Of the picture of the camera, about, and 320 of a kept frame: a page is looked at, not measured on."""
KEPT_SIDE_PX = 320
QUALITY = 75
"""Of their JPEG."""
PICTURE_EVERY_S = 0.2
"""Between two pictures of one camera, however many look."""
PICTURE_WAIT_S = 2.0
"""So long a request waits for the camera's next frame."""
HISTORY_S = 600
"""Of the failure probability, second by second."""
MOST_STREAMS = 16
"""Cameras or persons that are shown; beyond it those not seen for the longest time are left out."""
EVERYBODY = "everybody"
"""The stream of a camera that is watched for everybody on it (:meth:`Monitor.people`)."""
KEPT = 8
"""Of the last kept frames that are shown."""
KEPT_EVERY_S = 2.0
"""Between two looks into the queue."""

PAGE = Path(__file__).with_name("live.html")
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
"""Nothing but this page may show or read what is served here, and it loads nothing from elsewhere."""

log = logging.getLogger("alpose.monitor")


@dataclass(slots=True)
class _Second:
    """The failure probabilities of one second."""

    second: int
    frames: int = 0
    scored: int = 0
    total: float = 0.0
    highest: float = 0.0
    flagged: int = 0
    control: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Shot:
    """A copy of a frame, and everybody on it."""

    frame: HostFrame | npt.NDArray[np.uint8]
    """As the camera gave it; RGB where it came from a GPU."""
    verdicts: Sequence[Verdict]


class _Stream:
    """What is remembered of one camera or person. The camera's thread appends; the server's threads read."""

    def __init__(self) -> None:
        self.history: deque[_Second] = deque(maxlen=HISTORY_S)
        self.last: Verdict | None = None
        """None where nobody is on the newest frame."""
        self.people: int | None = None
        """On the newest frame; None where it is watched for one person."""
        self.of_everybody = False
        """Whether it is of a camera that is watched for everybody on it."""
        self.last_s = 0.0
        self.waiting: deque[queues.SimpleQueue[_Shot]] = deque()
        """One for each request that waits for a picture: the thread that puts into it never waits itself."""
        self.drawing = threading.Lock()
        self.drawn: tuple[float, Content] | None = None

    def see(self, verdict: Verdict | None, now_s: float) -> None:
        """Remember a verdict; None: nobody is there."""
        self.last, self.last_s = verdict, now_s
        second = int(now_s)
        if not self.history or self.history[-1].second != second:
            self.history.append(_Second(second))
        bin_ = self.history[-1]
        bin_.frames += 1
        if verdict is None:
            return
        bin_.flagged += verdict.flagged
        bin_.control += verdict.kept and not verdict.flagged
        probability = verdict.shown_probability
        if probability == probability:
            bin_.scored += 1
            bin_.total += probability
            bin_.highest = max(bin_.highest, probability)


class LivePage:
    """A page that shows a Monitor until it is closed, or the Monitor is. Made by :meth:`alpose.runtime.Monitor.serve`.

    Args:
        host, port: where it is served.
        skeleton: of the bundle.
        reader: takes frames as the camera gives them.
        stats: of the monitor.
        faults: where faults are counted.
        queue: whose last frames are shown; None shows none.
    """

    def __init__(
        self, host: str, port: int, *, skeleton: Skeleton, reader: FrameReader, stats: Callable[[], Stats],
        faults: FaultIsolation, queue: Queue | None,
    ) -> None:  # fmt: skip
        self._skeleton, self._reader, self._stats, self._faults, self._queue = skeleton, reader, stats, faults, queue
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        self._present: set[str] = set()
        """Who was on the last frame that was watched for everybody."""
        self._kept: list[Record] = []
        self._kept_s = -KEPT_EVERY_S
        self._reading = threading.Lock()
        self.closed = False
        self._server = WebServer(self._answer, port, host, what="live page", check_host=True)
        if not is_loopback(host):
            what = "whole, open pictures, whatever the queue stores," if _is_private(queue) else "the camera's pictures"
            log.warning("%s: whoever reaches this address sees %s without a password", self.url, what)

    @property
    def url(self) -> str:
        """What to open in a browser."""
        return f"{self._server.address}/"

    def close(self) -> None:
        """Stop, and free the port. Safe to call twice."""
        self.closed = True
        self._server.close()

    def __enter__(self) -> LivePage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The camera's thread.

    def see(self, frames: Sequence[Any], verdicts: Sequence[Verdict]) -> None:
        """Remember what was found on frames, and copy those that a browser waits for. Waits for nothing, raises nothing."""
        try:
            now_s = time.monotonic()
            for frame, verdict in zip(frames, verdicts, strict=True):
                stream = self._named(verdict.stream)
                stream.see(verdict, now_s)
                if stream.waiting:
                    on_it = [other for given, other in zip(frames, verdicts, strict=True) if given is frame]
                    self._show(frame, on_it, [stream])
        except Exception as error:
            self._faults.report("live page", error)

    def see_people(self, frame: Any, verdicts: Sequence[Verdict]) -> None:
        """Remember who is on a frame that was watched for everybody: in a stream for each, and in one for all of them, whose
        verdict is the one most likely to be wrong. Waits for nothing, raises nothing."""
        try:
            now_s = time.monotonic()
            everybody = self._named(EVERYBODY)
            everybody.see(max(verdicts, key=lambda one: one.shown_probability, default=None), now_s)
            everybody.people, everybody.of_everybody = len(verdicts), True
            for verdict in verdicts:
                stream = self._named(verdict.stream)
                stream.of_everybody = True
                stream.see(verdict, now_s)
            present = {verdict.stream for verdict in verdicts}
            for name in self._present - present:
                if name in self._streams:
                    self._streams[name].last = None
            self._present = present
            waiting = [stream for stream in self._streams.values() if stream.waiting and stream.of_everybody]
            if waiting:  # of somebody who has left there is the picture without them
                self._show(frame, verdicts, waiting)
        except Exception as error:
            self._faults.report("live page", error)

    def _named(self, name: str) -> _Stream:
        return self._streams.get(name) or self._begin(name)

    def _show(self, frame: Any, verdicts: Sequence[Verdict], streams: Sequence[_Stream]) -> None:
        """Give a copy of a frame to all who wait for a picture of these streams."""
        shot = _Shot(self._copy(frame), verdicts)
        for stream in streams:
            while stream.waiting:
                stream.waiting.popleft().put(shot)

    def _begin(self, name: str) -> _Stream:
        if len(self._streams) >= MOST_STREAMS:
            # One dictionary takes the place of the other: a thread that reads never sees it change.
            oldest = min(self._streams, key=lambda known: self._streams[known].last_s)
            self._streams = OrderedDict((known, one) for known, one in self._streams.items() if known != oldest)
        stream = _Stream()
        self._streams = OrderedDict([*self._streams.items(), (name, stream)])
        return stream

    def _copy(self, frame: Any) -> HostFrame | npt.NDArray[np.uint8]:
        taken = self._reader.take(frame)
        if isinstance(taken, HostFrame):
            return HostFrame(taken.format, taken.pixels.copy())
        return self._reader.copy(taken, (0, 0, taken.width, taken.height))

    # The server's threads.

    def _answer(self, path: str, asked: Mapping[str, str]) -> Content | None:
        if path == "/":
            return Content(PAGE.read_bytes(), "text/html; charset=utf-8", HEADERS)
        if path == "/state.json":
            state = json.dumps(self.state(asked.get("stream")), allow_nan=False)
            return Content(state.encode(), "application/json", HEADERS)
        if path == "/picture":
            return self._picture(asked.get("stream"))
        if path.startswith("/kept/"):
            return self._kept_picture(path.removeprefix("/kept/"))
        return None

    def _stream(self, name: str | None) -> tuple[str, _Stream] | None:
        """The stream of that name; without one, the first."""
        streams = self._streams
        if name is None:
            return next(iter(streams.items()), None)
        return (name, streams[name]) if name in streams else None

    def state(self, name: str | None = None) -> dict[str, Any]:
        """What the page shows, as JSON values: see ``docs/live.md``."""
        found, now_s = self._stream(name), time.monotonic()
        stats = self._stats()
        state: dict[str, Any] = {"stats": stats.to_json(), "streams": list(self._streams), "stream": None,
                                 "history_s": HISTORY_S, "kept": None if self._queue is None else self._kept_rows()}  # fmt: skip
        if found is None:
            return state
        stream, verdict = found[1], found[1].last
        state["stream"] = {
            "name": found[0],
            "age_s": now_s - stream.last_s,
            "people": stream.people,
            "occupied": verdict is not None and verdict.occupied,
            "failure_probability": None if verdict is None else _number(verdict.shown_probability),
            "predicted_loss": None if verdict is None or not verdict.occupied else _number(verdict.predicted_loss),
            "place": None if verdict is None else verdict.place,
            "flagged": verdict is not None and verdict.flagged,
            "kept": verdict is not None and verdict.kept,
            "verified": verdict is None or verdict.verified,
            "reasons": [] if verdict is None else [str(reason) for reason in verdict.reasons],
            "total_ms": None if verdict is None else 1e3 * verdict.timings.total_s,
            "history": [
                [int(now_s) - one.second, one.total / one.scored if one.scored else None,
                 one.highest if one.scored else None, one.flagged, one.control]
                for one in stream.history.copy()
            ],
        }  # fmt: skip
        return state

    def _picture(self, name: str | None) -> Content | None:
        """The camera's next frame with everybody's pose; None where none comes in time."""
        found = self._stream(name)
        if found is None:
            return None
        stream = found[1]
        with stream.drawing:  # one at a time; whoever waited gets what was drawn meanwhile
            if stream.drawn is not None:
                left_s = stream.drawn[0] + PICTURE_EVERY_S - time.monotonic()
                if left_s > 0:
                    return stream.drawn[1]
            box: queues.SimpleQueue[_Shot] = queues.SimpleQueue()
            stream.waiting.append(box)
            try:
                shot = box.get(timeout=PICTURE_WAIT_S)
            except queues.Empty:
                with suppress(ValueError):  # the camera's thread took it just now
                    stream.waiting.remove(box)
                return None
            content = self._drawn(shot)
            stream.drawn = (time.monotonic(), content)
            return content

    def _drawn(self, shot: _Shot) -> Content:
        rgb_HW3 = shot.frame.to_rgb() if isinstance(shot.frame, HostFrame) else shot.frame
        image_hw3, scale = _smaller(rgb_HW3, LONG_SIDE_PX)
        for verdict in shot.verdicts:
            x0, y0, x1, y1 = ((value + 0.5) / scale - 0.5 for value in verdict.box)
            drawing.corners(image_hw3, (x0, y0, x1, y1), drawing.MIDDLE, 2)
            # A joint is fainter the less probable it is that it is right; without such an output, the lower its score.
            if not verdict.occupied:
                continue
            sure_J = verdict.scores if verdict.confidence is None else drawing.SURE * verdict.confidence
            keypoints_J2 = (verdict.keypoints.astype(np.float64) + 0.5) / scale - 0.5
            drawing.pose(image_hw3, keypoints_J2, sure_J, self._skeleton, 3)
        return _encoded(image_hw3)

    def _kept_rows(self) -> list[dict[str, Any]]:
        """The last kept frames, newest first, as far as the queue still has them."""
        with self._reading:
            if self._queue is not None and time.monotonic() - self._kept_s >= KEPT_EVERY_S:
                try:
                    self._kept = self._queue.peek(KEPT, order="newest", state=None)
                except AlposeError as error:  # a disk may be gone; the page says what it knew
                    self._faults.report("live page", error)
                self._kept_s = time.monotonic()
            return [_row(record) for record in self._kept]

    def _kept_picture(self, id_: str) -> Content | None:
        """A kept frame, small, with its pose; the pose alone where the picture is sealed, or was not stored."""
        if self._queue is None or not is_hex(id_, 32):
            return None
        for record in self._queue.get([id_]):
            picture = next((one for one in self._queue.pictures(id_) if one.position == 0 and not one.sealed), None)
            if picture is None:
                scale = max(record.frame_width, record.frame_height) / KEPT_SIDE_PX
                height, width = (max(1, round(side / scale)) for side in (record.frame_height, record.frame_width))
                image_hw3 = np.full((height, width, 3), drawing.DARK, dtype=np.uint8)
                picture = Picture.of(b"", width=width, height=height, captured_ns=record.captured_ns, scale=scale)
            else:
                image_hw3 = np.array(decode(picture.data))
            drawing.record(image_hw3, record, picture, self._queue.skeleton_of(record))
            return _encoded(_smaller(image_hw3, KEPT_SIDE_PX)[0])
        return None


def _is_private(queue: Queue | None) -> bool:
    """Whether what is stored shows less than the page does."""
    return queue is not None and bool(queue.seal_to is not None or queue.redact or queue.store != "full")


def _smaller(rgb_HW3: npt.NDArray[np.uint8], long_side: int) -> tuple[npt.NDArray[np.uint8], int]:
    """The picture with a longest side near so many pixels, each the mean of whole ones, and by how much it was reduced.

    A tenth of the time that the filter of the stored pictures takes: the camera's thread needs the processor.
    """
    height, width, _ = rgb_HW3.shape
    scale = max(1, min(round(max(height, width) / long_side), height, width))
    if scale == 1:
        return rgb_HW3, 1
    rows, columns = height // scale * scale, width // scale * scale
    sum_hW3: npt.NDArray[Any] = rgb_HW3[0:rows:scale, :columns].astype(np.uint16 if scale <= 16 else np.uint32)
    for row in range(1, scale):
        sum_hW3 += rgb_HW3[row:rows:scale, :columns]
    sum_hw3 = sum_hW3[:, 0::scale].copy()
    for column in range(1, scale):
        sum_hw3 += sum_hW3[:, column::scale]
    return (sum_hw3 // scale**2).astype(np.uint8), scale


def _encoded(rgb_HW3: npt.NDArray[np.uint8]) -> Content:
    encoded = encode(rgb_HW3, JPEG, QUALITY, None)
    return Content(encoded.data, encoded.media_type, HEADERS)


def _row(record: Record) -> dict[str, Any]:
    """What the page says of a kept frame."""
    return {
        "id": record.id,
        "captured_s": record.captured_ns / 1e9,
        "camera": record.camera,
        "failure_probability": None if record.occupied is False else _number(record.failure_probability),
        "occupied": record.occupied is not False,
        "flagged": record.flagged,
        "reasons": [str(Reason(*reason)) for reason in record.reasons],
        "store": record.store,
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
