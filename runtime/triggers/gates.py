"""Triggers that hold back what comes too soon or is too like what was kept: Cooldown, Novel.

They find nothing themselves and are meant for ``&``: ``Budget(20) & Novel(0.2)``. Alone, ``Cooldown(60)`` keeps one
frame a minute and ``Novel(0.3)`` one of each look.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError
from .base import Observation, Part, Reason, Setting, Trigger, positive

_MANY_STREAMS = 64


@dataclass(frozen=True)
class Cooldown(Trigger):
    """Pass only what comes at least this long after the last frame that was kept here, for each stream by itself."""

    seconds: float

    def __post_init__(self) -> None:
        positive(self, seconds=self.seconds)

    def part(self, setting: Setting) -> Part:
        """A clock per stream."""
        return CooldownPart(self.seconds)


@dataclass(frozen=True)
class Novel(Trigger):
    """Pass only what is at least this far, in cosine distance (0 to 2), from everything flagged and kept before.

    The memory is the policy's: the last 512 frames that it flagged and that were kept. Where no distance is known (the
    first frame, an embedding that is not finite) the frame passes.
    """

    min_distance: float

    def __post_init__(self) -> None:
        positive(self, min_distance=self.min_distance)
        if self.min_distance > 2:
            raise ConfigError(f"Novel: a cosine distance is at most 2, got min_distance={self.min_distance!r}")

    def part(self, setting: Setting) -> Part:
        """Compare with the policy's memory."""
        return NovelPart(self.min_distance, setting)


class CooldownPart(Part):
    """The time since the last frame that was kept."""

    __slots__ = ("_kept_s", "_limit_s", "_now_s", "_since_s", "_stream")

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._limit_s = float(seconds)
        self._kept_s: dict[str, float] = {}
        self._stream, self._now_s, self._since_s = "", 0.0, math.inf

    def judge(self, seen: Observation) -> None:
        """Look at the clock; one that was set back has forgotten."""
        self._stream, self._now_s = seen.stream, seen.time_s
        since_s = seen.time_s - self._kept_s.get(seen.stream, -math.inf)
        self._since_s = since_s if since_s >= 0 else math.inf
        self.certain(self._since_s >= self._limit_s)
        self.stirred = False

    def reasons(self) -> tuple[Reason, ...]:
        """Seconds since, seconds asked for."""
        return (Reason("cooldown", self._since_s, self._limit_s),)

    def settle(self, kept: bool, replaced: int, held: bool) -> None:
        """Start the clock."""
        if not kept:
            return
        if len(self._kept_s) >= _MANY_STREAMS:
            self._kept_s = {s: at for s, at in self._kept_s.items() if 0 <= self._now_s - at < self._limit_s}
        self._kept_s[self._stream] = self._now_s


class NovelPart(Part):
    """The distance to what was kept. The policy measures it once for all its parts, and fills the memory."""

    __slots__ = ("_distance", "_limit", "_memory")

    def __init__(self, min_distance: float, setting: Setting) -> None:
        super().__init__()
        self._limit, self._memory = float(min_distance), setting.memory
        self._distance = 1.0

    def judge(self, seen: Observation) -> None:
        """Compare; unknown is new."""
        distance = self._memory.now
        self._distance = 1.0 if math.isnan(distance) else distance
        self.certain(math.isnan(distance) or distance >= self._limit)
        self.stirred = False

    def reasons(self) -> tuple[Reason, ...]:
        """Distance, distance asked for."""
        return (Reason("novel", self._distance, self._limit),)
