"""When a frame was taken, by the three clocks that matter."""

from __future__ import annotations

import operator
import time
from dataclasses import dataclass

from .errors import DataError
from .stats import Counters

BACK_S = 1.0
"""Times given by an app may be out of order by this much: a budget sees no step back. By more, and the clock was set."""
AHEAD_S = 86_400.0
"""A step of more than this is no pause but a clock that was set."""


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """When a frame was taken."""

    wall_ns: int
    """Unix time, as the system or the app has it: for records."""
    monotonic_ns: int
    """Of the system."""
    policy_s: float
    """What triggers and drift go by: never runs backwards, and takes no notice of a clock that is set."""


class FrameClock:
    """Gives every call its :class:`Moment`.

    Times that the app gives (of a recording, or of a camera with a clock of its own) carry the policy's time, so that an
    hour of a video is an hour however fast it is read.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._offset_s: float | None = None
        self._last_s = 0.0

    def __call__(self, time_ns: int | None) -> Moment:
        """The moment of a frame; ``time_ns`` is Unix time, None for now."""
        monotonic_ns = time.monotonic_ns()
        if time_ns is None:
            self._last_s = max(self._last_s, monotonic_ns * 1e-9)
            return Moment(time.time_ns(), monotonic_ns, self._last_s)
        wall_ns = _checked(time_ns)
        wall_s = wall_ns * 1e-9
        if self._offset_s is None:
            self._offset_s = max(self._last_s, monotonic_ns * 1e-9) - wall_s
        elif not -BACK_S <= wall_s + self._offset_s - self._last_s <= AHEAD_S:
            self._counters.add("clock_jumps_total")
            self._offset_s = self._last_s - wall_s
        self._last_s = max(self._last_s, wall_s + self._offset_s)
        return Moment(wall_ns, monotonic_ns, self._last_s)


def _checked(time_ns: object) -> int:
    """Unix nanoseconds; :class:`DataError` for seconds, which are what is given by mistake, and for what is no time."""
    try:
        wall_ns = operator.index(time_ns)  # type: ignore[arg-type]
    except TypeError:
        wall_ns = -1
    if not 0 <= wall_ns < 2**63:
        raise DataError(f"time_ns is Unix time in whole nanoseconds, such as time.time_ns(), got {time_ns!r:.100}")
    return wall_ns
