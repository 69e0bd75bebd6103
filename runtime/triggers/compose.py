"""``a | b`` and ``a & b``: how probabilities, reasons and feedback of the parts combine.

The branches of an AnyOf do not know of each other: what ``a | b`` keeps is what ``a`` alone and ``b`` alone would have
kept (they share only the memory of Novel). A budget in one branch counts what that branch keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from ..errors import ConfigError
from .base import Observation, Part, Reason, Setting, Trigger, everything_in
from .control import Control, refuse_control
from .episodes import Episodes


@dataclass(frozen=True)
class AnyOf(Trigger):
    """Keep what any of the parts keeps: ``a | b | c``."""

    parts: tuple[Trigger, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _flat(AnyOf, self.parts))
        if sum(isinstance(part, Control) for part in self.parts) > 1:
            raise ConfigError(f"a policy has one control stream, got two: {self}")

    @property
    def inner(self) -> tuple[Trigger, ...]:
        """The alternatives."""
        return self.parts

    def part(self, setting: Setting) -> Part:
        """All alternatives at work."""
        return AnyPart([part.part(setting) for part in self.parts])

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


@dataclass(frozen=True)
class AllOf(Trigger):
    """Keep what all of the parts keep: ``a & b & c``."""

    parts: tuple[Trigger, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _flat(AllOf, self.parts))
        for part in self.parts:
            refuse_control("a & b", part)
        if sum(isinstance(found, Episodes) for found in everything_in(self)) > 1:
            raise ConfigError(
                f"two Episodes joined by & would each replace what the other holds; say Episodes(a & b): {self}"
            )

    @property
    def inner(self) -> tuple[Trigger, ...]:
        """The conditions."""
        return self.parts

    def part(self, setting: Setting) -> Part:
        """All conditions at work."""
        return AllPart([part.part(setting) for part in self.parts])

    def __str__(self) -> str:
        return " & ".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts)


def _flat(kind: type[AnyOf | AllOf], parts: tuple[Trigger, ...]) -> tuple[Trigger, ...]:
    """``(a | b) | c`` and ``a | (b | c)`` are one policy."""
    if not all(isinstance(part, Trigger) for part in parts):
        raise ConfigError(f"{kind.__name__} joins triggers, got {parts!r}")
    flat = tuple(chain.from_iterable(part.parts if isinstance(part, kind) else (part,) for part in parts))
    if len(flat) < 2:
        raise ConfigError(f"{kind.__name__} joins at least two triggers, got {len(flat)}")
    return flat


class AnyPart(Part):
    """1 - Π(1 - p)."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[Part]) -> None:
        super().__init__()
        self._parts = parts

    def judge(self, seen: Observation) -> None:
        """Let every part judge."""
        self.fires = self.stirred = False
        missed = 1.0
        for part in self._parts:
            part.judge(seen)
            missed *= 1.0 - part.probability
            self.fires |= part.fires
            self.stirred |= part.stirred
        self.probability = 1.0 - missed

    def reasons(self) -> tuple[Reason, ...]:
        """Of the parts that fire; where none does, of those that were held back."""
        told = [part for part in self._parts if part.fires] or [part for part in self._parts if part.stirred]
        return tuple(chain.from_iterable(part.reasons() for part in told))

    def settle(self, kept: bool, replaced: int, held: bool) -> None:
        """A part learns of what it fired for itself."""
        several = sum(part.fires for part in self._parts) > 1
        for part in self._parts:
            part.settle(kept and part.fires, replaced, held or several)

    @property
    def threshold(self) -> float | None:
        """The lowest."""
        return min((part.threshold for part in self._parts if part.threshold is not None), default=None)

    @property
    def episode(self) -> int | None:
        """Of the first part that has one."""
        return next((part.episode for part in self._parts if part.episode is not None), None)

    @property
    def replaces(self) -> tuple[int, ...]:
        """Of the parts that fire."""
        return tuple(chain.from_iterable(part.replaces for part in self._parts if part.fires))


class AllPart(Part):
    """Π p."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[Part]) -> None:
        super().__init__()
        self._parts = parts

    def judge(self, seen: Observation) -> None:
        """Let every part judge."""
        self.fires, self.stirred, self.probability = True, False, 1.0
        for part in self._parts:
            part.judge(seen)
            self.probability *= part.probability
            self.fires &= part.fires
            self.stirred |= part.stirred

    def reasons(self) -> tuple[Reason, ...]:
        """Of all parts: what does not fire is what held the others back."""
        return tuple(chain.from_iterable(part.reasons() for part in self._parts))

    def settle(self, kept: bool, replaced: int, held: bool) -> None:
        """Every part learns the same; what one of them replaces, all lose."""
        replaced += len(self.replaces)
        for part in self._parts:
            part.settle(kept, replaced, held)

    @property
    def threshold(self) -> float | None:
        """The highest."""
        return max((part.threshold for part in self._parts if part.threshold is not None), default=None)

    @property
    def episode(self) -> int | None:
        """Of the first part that has one."""
        return next((part.episode for part in self._parts if part.episode is not None), None)

    @property
    def replaces(self) -> tuple[int, ...]:
        """Of all parts."""
        return tuple(chain.from_iterable(part.replaces for part in self._parts))
