"""A trigger of somebody else's: flags at random."""

from __future__ import annotations

from dataclasses import dataclass

from alpose.runtime.triggers import Observation, Reason, Setting, Trigger
from alpose.runtime.triggers.base import Part
from alpose.runtime.triggers.draws import Draws


@dataclass(frozen=True)
class Coin(Trigger):
    p: float

    def part(self, setting: Setting) -> Part:
        return CoinPart(self.p, setting)


class CoinPart(Part):
    def __init__(self, p: float, setting: Setting) -> None:
        super().__init__()
        self._draws, self._p = Draws(setting.rng), p

    def judge(self, seen: Observation) -> None:
        self.probability = self._p
        self.fires = self.stirred = self._draws.next() < self._p

    def reasons(self) -> tuple[Reason, ...]:
        return (Reason("coin", 1.0, self._p),)
