"""The queue's clock: wall time that never runs backwards.

A device without a battery-backed clock starts in 1970 and jumps when the network comes; a wall clock may also be set
back. What the queue orders and ages by is therefore its own time: the larger of the wall clock and the last time in the
file when it is opened, and monotonic time from there on.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace

SANE_NS = 1_577_836_800 * 10**9
"""2020-01-01: a wall clock before this was never set."""

FARTHEST_NS = 400 * 86_400 * 10**9
"""A wall clock that is farther ahead of the last time in the file is not believed: by an age limit it would delete
everything, and a clock that cannot go back would never recover from it."""

BELIEVED_NS = 86_400 * 10**9
"""Unless it goes on like that for a day: then the device was off for so long, and what is too old has to go."""

BACKWARDS_NS = 10**9
"""A wall clock may be slewed; one that lost more than this against the monotonic clock was set back."""


class Clock:
    """Where the time comes from; tests put their own in its place."""

    def wall_ns(self) -> int:
        """Unix time."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Time that passes also while the machine is suspended, where the system has such a clock."""
        return time.clock_gettime_ns(_BOOT) if _BOOT is not None else time.monotonic_ns()


_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)


@dataclass(frozen=True, slots=True)
class Start:
    """How a queue's clock came to a time: at its start, or when the wall clock went ahead of it."""

    now_ns: int
    counted: str | None
    """The counter that this raises: ``clock_backwards_total``, ``clock_implausible_total``; None where all was well."""
    redate_ns: int
    """Add this to every stored time: they were written before the clock was ever set. Mostly 0."""
    jumped_ns: int = 0
    """By so much the clock went ahead while it ran: what was stored since it was opened is younger by that."""
    doubted_ns: int | None = None
    """A wall clock that was too far ahead to be believed; it is if it has gone on from here for a day."""


def start(wall_ns: int, last_ns: int | None, doubted_ns: int | None = None) -> Start:
    """The time of a queue's clock.

    Args:
        wall_ns: Unix time, as the system has it.
        last_ns: the last time in the file; None in a fresh one.
        doubted_ns: an earlier wall clock that was not believed.
    """
    if last_ns is None:
        return Start(max(wall_ns, 0), None, 0)
    if wall_ns < last_ns:
        return Start(last_ns, "clock_backwards_total", 0, doubted_ns=doubted_ns)
    if last_ns < SANE_NS <= wall_ns:
        return Start(wall_ns, None, wall_ns - last_ns)
    if wall_ns - last_ns > FARTHEST_NS:
        known = doubted_ns is not None and 0 <= wall_ns - doubted_ns <= FARTHEST_NS
        if doubted_ns is not None and known and wall_ns - doubted_ns >= BELIEVED_NS:
            return Start(wall_ns, None, 0)
        return Start(
            last_ns, None if known else "clock_implausible_total", 0, doubted_ns=doubted_ns if known else wall_ns
        )
    return Start(wall_ns, None, 0)


class QueueClock:
    """Time from a :class:`Start` on."""

    def __init__(self, clock: Clock, begun: Start) -> None:
        self._clock = clock
        self._offset_ns = begun.now_ns - clock.monotonic_ns()
        self._wall_ns, self._seen_ns = clock.wall_ns(), clock.monotonic_ns()

    def now_ns(self) -> int:
        """Unix time as the queue counts it; never smaller than before."""
        return self._clock.monotonic_ns() + self._offset_ns

    def raise_to(self, least_ns: int) -> None:
        """Another process wrote a later time: go on from there."""
        self._offset_ns += max(0, least_ns - self.now_ns())

    def follow(self, doubted_ns: int | None) -> Start | None:
        """Catch up with a wall clock that is ahead: it was set meanwhile. None where it is not ahead."""
        wall_ns, now_ns = self._clock.wall_ns(), self.now_ns()
        if wall_ns - now_ns < BACKWARDS_NS:
            return None
        begun = start(wall_ns, now_ns, doubted_ns)
        self.raise_to(begun.now_ns)
        return begun if begun.redate_ns else replace(begun, jumped_ns=begun.now_ns - now_ns)

    def jumped_back(self) -> bool:
        """Whether the wall clock was set back since this was last asked."""
        wall_ns, seen_ns = self._clock.wall_ns(), self._clock.monotonic_ns()
        lost_ns = (seen_ns - self._seen_ns) - (wall_ns - self._wall_ns)
        self._wall_ns, self._seen_ns = wall_ns, seen_ns
        return lost_ns > BACKWARDS_NS


def time_ordered_id(now_ns: int) -> str:
    """32 hex digits in the layout of a UUIDv7: 48 bits of milliseconds, 12 bits below them, 62 random bits."""
    milliseconds, rest = divmod(now_ns, 10**6)
    fraction = rest * 4096 // 10**6
    value = (milliseconds & (1 << 48) - 1) << 80 | 7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    return f"{value:032x}"
