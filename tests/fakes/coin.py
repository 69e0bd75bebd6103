"""A trigger of somebody else's, which is not registered: flags at random."""

from __future__ import annotations

from dataclasses import dataclass

from alpose.runtime.triggers import ActiveTrigger, Draws, Observation, Reason, Setting, Trigger


@dataclass(frozen=True)
class Coin(Trigger):
    p: float

    def activate(self, setting: Setting) -> ActiveTrigger:
        return ActiveCoin(self.p, setting)


class ActiveCoin(ActiveTrigger):
    def __init__(self, p: float, setting: Setting) -> None:
        super().__init__()
        self._draws, self._p = Draws(setting.rng), p

    def evaluate(self, observation: Observation) -> None:
        self.probability = self._p
        self.fires = self.triggered = self._draws.next() < self._p

    def reasons(self) -> tuple[Reason, ...]:
        return (Reason("coin", 1.0, self._p),)
