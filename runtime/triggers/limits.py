"""Triggers that compare one number of the frame with a fixed limit: Threshold, Catch, Jump, Limbs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter

from ..errors import ConfigError, DataError
from .base import Observation, Part, Reason, Setting, Trigger, positive, share


@dataclass(frozen=True)
class Threshold(Trigger):
    """Flag where the failure probability is at least ``p``."""

    p: float

    def __post_init__(self) -> None:
        share(self, p=self.p)

    def part(self, setting: Setting) -> Part:
        """A fixed limit."""
        return LimitPart("threshold", "failure_probability", self.p)


@dataclass(frozen=True)
class Catch(Trigger):
    """Flag so that this share of the failures is caught: the threshold that the bundle's calibration vouches for.

    It holds with the confidence that the bundle states, on data like its calibration set. How much is flagged follows
    from the data and is not bounded.
    """

    share: float

    def __post_init__(self) -> None:
        share(self, share=self.share)

    def part(self, setting: Setting) -> Part:
        """The bundle's limit; :class:`ConfigError` where it has none for this share."""
        advice = "export it with labelled data (alpose-export --calibration), or use Budget(per_hour=…) or Threshold(p)"
        if setting.calibration is None:
            raise ConfigError(f"{self}: this bundle was exported without calibration and has no thresholds; {advice}")
        try:
            limit = setting.calibration.threshold(self.share)
        except DataError as error:
            raise ConfigError(f"{self}: {error}; {advice}") from error
        return LimitPart("catch", "failure_probability", limit)


@dataclass(frozen=True)
class Jump(Trigger):
    """Flag where joints moved at least this far between two frames, in sides of the person's box.

    See :class:`alpose.runtime.signals.Jumps`. A frame after a gap has no jump and is not flagged.
    """

    limit: float

    def __post_init__(self) -> None:
        positive(self, limit=self.limit)

    def part(self, setting: Setting) -> Part:
        """A fixed limit."""
        return LimitPart("jump", "jump", self.limit)


@dataclass(frozen=True)
class Limbs(Trigger):
    """Flag where a limb is at least this many standard deviations longer or shorter than this device has seen.

    See :class:`alpose.runtime.signals.Limbs`. Nothing is flagged until enough confident frames were seen.
    """

    limit: float

    def __post_init__(self) -> None:
        positive(self, limit=self.limit)

    def part(self, setting: Setting) -> Part:
        """A fixed limit."""
        return LimitPart("limbs", "limbs", self.limit)


class LimitPart(Part):
    """``value >= limit``; a value that is no number never is."""

    __slots__ = ("_limit", "_name", "_number", "_value")

    def __init__(self, name: str, number: str, limit: float) -> None:
        super().__init__()
        self._name, self._limit = name, float(limit)
        self._number = attrgetter(number)
        self._value = math.nan

    def judge(self, seen: Observation) -> None:
        """Compare."""
        self._value = self._number(seen)
        self.certain(self._value >= self._limit)

    def reasons(self) -> tuple[Reason, ...]:
        """The comparison."""
        return (Reason(self._name, self._value, self._limit),)

    @property
    def threshold(self) -> float | None:
        """The limit where it is one on the failure probability."""
        return self._limit if self._name in ("threshold", "catch") else None
