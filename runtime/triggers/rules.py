"""Triggers with a fixed limit.

Threshold, Catch, Jump and Limbs find frames. Cooldown and Novel hold back what comes too soon or is too like what was
kept; they find nothing themselves and are meant for ``&``: ``Budget(20) & Novel(0.2)``. Alone, ``Cooldown(60)`` keeps one
frame a minute and ``Novel(0.3)`` one of each look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, DataError
from .base import (
    MANY_STREAMS,
    ActiveTrigger,
    Observation,
    Reason,
    Setting,
    Trigger,
    register,
    require_positive,
    require_share,
)


@register
@dataclass(frozen=True)
class Threshold(Trigger):
    """Flag where the failure probability is at least ``p``; with ``joints``, where one of these is wrong with at least ``p``.

    ``Threshold(0.7, joints=("left_wrist", "right_wrist"))`` goes by the joints' confidence: one minus it is the probability
    that the joint is wrong.
    """

    p: float
    joints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_share(self, p=self.p)
        if not isinstance(self.joints, tuple) or not all(isinstance(name, str) for name in self.joints):
            raise ConfigError(f"Threshold: joints is a tuple of names, got {self.joints!r}")

    def activate(self, setting: Setting) -> ActiveTrigger:
        """Compare with ``p``; :class:`ConfigError` where the bundle gives no confidence of these joints."""
        if not self.joints:
            return _ActiveLimit("threshold", "failure_probability", self.p)
        if not setting.joints:
            raise ConfigError(f"{self}: the confidence of joints is not known here: this bundle gives none (export it again), or "
                              "a score log is replayed, which holds none")  # fmt: skip
        unknown = [name for name in self.joints if name not in setting.joints]
        if unknown:
            raise ConfigError(
                f"{self}: the bundle has no joint {', '.join(unknown)}; it has {', '.join(setting.joints)}"
            )
        return _ActiveJoints(self.p, {name: setting.joints.index(name) for name in self.joints})


@register
@dataclass(frozen=True)
class Catch(Trigger):
    """Flag so that this share of the failures is caught, by the threshold that the bundle's calibration gives for it.

    It holds with the confidence that the bundle states, on data like its calibration set. How much is flagged follows
    from the data and is not bounded.
    """

    share: float

    def __post_init__(self) -> None:
        require_share(self, share=self.share)

    def activate(self, setting: Setting) -> ActiveTrigger:
        """Compare with the bundle's limit; :class:`ConfigError` where it has none for this share."""
        advice = "export it with labelled data (alpose-export --calibration), or use Budget(per_hour=…) or Threshold(p)"
        if setting.calibration is None:
            raise ConfigError(f"{self}: this bundle was exported without calibration and has no thresholds; {advice}")
        try:
            limit = setting.calibration.threshold(self.share)
        except DataError as error:
            raise ConfigError(f"{self}: {error}; {advice}") from error
        return _ActiveLimit("catch", "failure_probability", limit)


@dataclass(frozen=True)
class _SignalLimit(Trigger):
    limit: float
    signal: ClassVar[str]

    def __post_init__(self) -> None:
        require_positive(self, limit=self.limit)

    def activate(self, setting: Setting) -> ActiveTrigger:
        return _ActiveLimit(self.signal, self.signal, self.limit)


@register
@dataclass(frozen=True)
class Jump(_SignalLimit):
    """Flag where joints moved at least ``limit`` between two frames, in sides of the person's box.

    See :class:`alpose.runtime.signals.Jumps`. A frame after a gap has no jump and is not flagged.
    """

    signal = "jump"


@register
@dataclass(frozen=True)
class Limbs(_SignalLimit):
    """Flag where a limb is at least ``limit`` standard deviations longer or shorter than this device has seen.

    See :class:`alpose.runtime.signals.Limbs`. Nothing is flagged until enough confident frames were seen.
    """

    signal = "limbs"


@register
@dataclass(frozen=True)
class Cooldown(Trigger):
    """Pass only what comes at least this long after the last frame that was kept here, for each stream by itself."""

    seconds: float

    def __post_init__(self) -> None:
        require_positive(self, seconds=self.seconds)

    def activate(self, setting: Setting) -> ActiveTrigger:
        """Start a clock for each stream."""
        return _ActiveCooldown(self.seconds)


@register
@dataclass(frozen=True)
class Novel(Trigger):
    """Pass only what is at least this far, in cosine distance (0 to 2), from everything flagged and kept before.

    The memory is the policy's: the last 512 frames that it flagged and that were kept. Where no distance is known (the
    first frame, an embedding that is not finite) the frame passes.
    """

    min_distance: float
    measures_distance = True

    def __post_init__(self) -> None:
        require_positive(self, min_distance=self.min_distance)
        if self.min_distance > 2:
            raise ConfigError(f"Novel: a cosine distance is at most 2, got min_distance={self.min_distance!r}")

    def activate(self, setting: Setting) -> ActiveTrigger:
        """Compare with the policy's memory."""
        return _ActiveNovel(self.min_distance, setting)


class _ActiveLimit(ActiveTrigger):
    """``value >= limit``; NaN never is.

    Values come from engines that compute in float32, which has no 0.7: the limit is compared as the next number below.
    """

    __slots__ = ("_limit", "_lowest", "_name", "_number", "_value")

    def __init__(self, name: str, number: str, limit: float) -> None:
        super().__init__()
        self._name, self._limit = name, float(limit)
        nearest = np.float32(limit)
        self._lowest = float(nearest if nearest <= self._limit else np.nextafter(nearest, np.float32(-np.inf)))
        self._number = attrgetter(number)
        self._value = math.nan

    def evaluate(self, observation: Observation) -> None:
        self._value = self._number(observation)
        self.set_certain(self._value >= self._lowest)

    def reasons(self) -> tuple[Reason, ...]:
        return (Reason(self._name, self._value, self._limit),)

    @property
    def threshold(self) -> float | None:
        return self._limit if self._name in ("threshold", "catch") else None


class _ActiveJoints(ActiveTrigger):
    """One minus the confidence of any of these joints ``>= p``; an unknown confidence never is."""

    __slots__ = ("_limit", "_names", "_places", "_wrong_K")

    def __init__(self, limit: float, places: Mapping[str, int]) -> None:
        super().__init__()
        self._limit, self._names, self._places = float(limit), tuple(places), list(places.values())
        self._wrong_K: npt.NDArray[np.float64] = np.full(len(places), math.nan)

    def evaluate(self, observation: Observation) -> None:
        confidence_J = observation.confidence_J
        if confidence_J is None:
            self._wrong_K = np.full(len(self._places), math.nan)
        else:
            self._wrong_K = np.round(1.0 - confidence_J[self._places].astype(np.float64), 6)
        self.set_certain(bool((self._wrong_K >= self._limit).any()))

    def reasons(self) -> tuple[Reason, ...]:
        return tuple(Reason(name, float(wrong), self._limit)
                     for name, wrong in zip(self._names, self._wrong_K, strict=True) if wrong >= self._limit)  # fmt: skip


class _ActiveCooldown(ActiveTrigger):
    """The time since the last frame that was kept."""

    __slots__ = ("_kept_s", "_limit_s", "_now_s", "_since_s", "_stream")

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._limit_s = float(seconds)
        self._kept_s: dict[str, float] = {}
        self._stream, self._now_s, self._since_s = "", 0.0, math.inf

    def evaluate(self, observation: Observation) -> None:
        self._stream, self._now_s = observation.stream, observation.time_s
        since_s = observation.time_s - self._kept_s.get(observation.stream, -math.inf)
        self._since_s = since_s if since_s >= 0 else math.inf
        self.set_certain(self._since_s >= self._limit_s)
        self.triggered = False

    def reasons(self) -> tuple[Reason, ...]:
        return (Reason("cooldown", self._since_s, self._limit_s),)

    def on_stored(self, kept: bool, replaced: int, kept_elsewhere: bool) -> None:
        if not kept:
            return
        if len(self._kept_s) >= MANY_STREAMS:
            self._kept_s = {s: at for s, at in self._kept_s.items() if 0 <= self._now_s - at < self._limit_s}
        self._kept_s[self._stream] = self._now_s

    def forget(self, stream: str) -> None:
        self._kept_s.pop(stream, None)


class _ActiveNovel(ActiveTrigger):
    """The distance to what was kept. The policy measures it once for all its parts, and fills the memory."""

    __slots__ = ("_distance", "_limit", "_memory")

    def __init__(self, min_distance: float, setting: Setting) -> None:
        super().__init__()
        self._limit, self._memory = float(min_distance), setting.memory
        self._distance = 1.0

    def evaluate(self, observation: Observation) -> None:
        distance = self._memory.now
        self._distance = 1.0 if math.isnan(distance) else distance
        self.set_certain(math.isnan(distance) or distance >= self._limit)
        self.triggered = False

    def reasons(self) -> tuple[Reason, ...]:
        return (Reason("novel", self._distance, self._limit),)
