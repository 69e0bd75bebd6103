"""The books of all frames, kept or not: the score log, and how many frames were seen in each hour.

They are filled on the camera's thread and written on the recorder's, once a minute, without a lock between the two: one
appends and replaces whole tuples, the other copies and takes away from the front. What cannot be written waits, in
bounded memory.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from . import scorelog
from .errors import DataError
from .moments import Moment
from .queue import Queue
from .scorelog import ScoreLog
from .stats import Counters
from .triggers import Decision, Observation

HOUR_NS = 3600 * 10**9

MOST_CHUNKS = 128
"""Of the score log, that wait for the disk: 4 MiB. Beyond it the oldest is lost, and counted."""

MOST_HOURS = 1024
"""Tallies that are held, one for each camera and hour: a month of one camera. Beyond it the oldest is forgotten."""

ROWS = 2048
"""Of a chunk, 32 KiB: it fits into the smallest queue."""

OPEN_S = 300.0
"""A chunk that was begun so long ago is handed over, full or not: a crash loses what is still here."""

_Hour = tuple[str, int]
"""Camera, and the Unix time in ns at which the hour began."""
_Seen = tuple[int, int, int, int]
"""Frames, and how many of them were flagged, in the control stream, kept."""


@dataclass(slots=True, eq=False)
class _Log:
    scores: ScoreLog
    began_s: float | None = None


class Books:
    """Score log and tallies of one Monitor."""

    def __init__(self, bundle_sha256: str, device: str, counters: Counters) -> None:
        self._bundle, self._device, self._counters = bundle_sha256, device, counters
        self._logs: dict[str, _Log] = {}
        self._chunks: deque[bytes] = deque()
        self._hours: dict[_Hour, _Seen] = {}
        self._written: dict[_Hour, _Seen] = {}
        """As far as the queue knows them; the recorder's thread alone looks at it, but for the last line of _tally."""

    # The camera's thread.

    def add(self, camera: str, moment: Moment, seen: Observation, decision: Decision, kept: bool) -> None:
        """Note one person on one frame."""
        log = self._logs.get(camera)
        if log is None:
            log = self._logs[camera] = _Log(ScoreLog(self._bundle, camera, ROWS))
        if log.began_s is not None and moment.policy_s - log.began_s >= OPEN_S:
            self._hand_over(log, log.scores.finish())
        if log.began_s is None:
            log.began_s = moment.policy_s
        # By the policy's time: a replay then sees a recording's hours.
        self._hand_over(log, log.scores.add(seen, decision, moment.wall_ns, int(moment.policy_s * 1e9)))
        self._tally((camera, moment.wall_ns - moment.wall_ns % HOUR_NS), decision, kept)

    def finish(self) -> None:
        """Hand over what is still being filled."""
        for log in self._logs.values():
            self._hand_over(log, log.scores.finish())

    def _hand_over(self, log: _Log, chunk: bytes | None) -> None:
        if chunk is None:
            return
        log.began_s = None
        self._chunks.append(chunk)
        if len(self._chunks) > MOST_CHUNKS:
            self._chunks.popleft()
            self._counters.add("dropped_scores_total", reason="waiting")

    def _tally(self, hour: _Hour, decision: Decision, kept: bool) -> None:
        frames, flagged, control, stored = self._hours.get(hour, (0, 0, 0, 0))
        drawn = decision.control_draw is not None
        self._hours[hour] = (frames + 1, flagged + decision.flagged, control + drawn, stored + kept)
        if len(self._hours) > MOST_HOURS:
            oldest = next(iter(self._hours))
            if self._hours.pop(oldest) != self._written.get(oldest):
                self._counters.add("dropped_tallies_total")

    # The recorder's thread.

    def write(self, queue: Queue) -> None:
        """Write what there is; what fails raises :class:`QueueError`, and waits for the next time."""
        for hour, seen in self._hours.copy().items():
            known = self._written.get(hour, (0, 0, 0, 0))
            if seen != known:
                frames, flagged, control, kept = (now - before for now, before in zip(seen, known, strict=True))
                queue.tally(device=self._device, camera=hour[0], bundle=self._bundle, at_ns=hour[1], frames=frames,
                            flagged=flagged, control=control, kept=kept)  # fmt: skip
                self._written[hour] = seen
        for hour in self._written.keys() - self._hours.keys():
            del self._written[hour]
        while self._chunks:
            data = self._chunks[0]
            try:
                self._write_scores(queue, data)
            except DataError:  # a queue so small that no chunk fits: it would never go
                self._counters.add("dropped_scores_total", reason="too_large")
            if self._chunks and self._chunks[0] is data:  # or it was given up meanwhile
                self._chunks.popleft()

    def _write_scores(self, queue: Queue, data: bytes) -> None:
        chunk = scorelog.decode(data)
        ended_ns = chunk.start_ns + int(chunk.seconds_N[-1] * 1e9)
        queue.add_scores(data, device=self._device, camera=chunk.stream, bundle=self._bundle,
                         began_ns=chunk.start_ns, ended_ns=ended_ns, frames=len(chunk))  # fmt: skip
