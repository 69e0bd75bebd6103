"""``Control``: a random stream beside the policy, from which rates in the field are estimated without bias."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .base import Observation, Part, Reason, Setting, Trigger, everything_in, positive, share
from .draws import Draws, Pace


@dataclass(frozen=True)
class Control(Trigger):
    """Keep frames at random, whatever they show: every frame with probability ``rate``, or ``per_hour`` on average.

    Every frame takes part, flagged or not, so that the stream is a random sample of *all* frames. It stands beside the
    rest of a policy, ``… | Control(per_hour=2)``, and what it draws changes nothing there.

    With ``per_hour`` the rate follows the measured frame rate; each decision carries the one that was in force.
    """

    rate: float | None = None
    per_hour: float | None = None

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.per_hour is None):
            raise ConfigError(f"Control takes either rate or per_hour, got rate={self.rate}, per_hour={self.per_hour}")
        if self.rate is not None:
            share(self, rate=self.rate)
        else:
            positive(self, per_hour=self.per_hour)

    def part(self, setting: Setting) -> ControlPart:
        """The stream; a :class:`~alpose.runtime.triggers.policy.Policy` keeps it apart from all other parts."""
        return ControlPart(self, setting)


def refuse_control(owner: str, inner: Trigger) -> None:
    """:class:`ConfigError` where a control stream stands inside of something that would thin it out."""
    if any(isinstance(found, Control) for found in everything_in(inner)):
        raise ConfigError(
            f"{owner} cannot hold Control: a control stream that something filters is no random sample. "
            f"Put it beside the whole policy: {owner}(…) | Control(…)"
        )


class ControlPart(Part):
    """The control stream at work."""

    __slots__ = ("_draws", "_pace", "_per_s", "draw")

    def __init__(self, trigger: Control, setting: Setting) -> None:
        super().__init__()
        self._draws = Draws(setting.rng)
        self._pace = Pace(setting.frames_per_second)
        self._per_s = None if trigger.per_hour is None else trigger.per_hour / 3600.0
        self.probability = trigger.rate or 0.0
        self.draw = 0.0

    def judge(self, seen: Observation) -> None:
        """Draw."""
        if self._per_s is not None:
            self._pace.step(seen.time_s)
            self.probability = min(1.0, self._per_s * self._pace.interval_s)
        self.draw = self._draws.next()
        self.fires = self.draw < self.probability

    def reasons(self) -> tuple[Reason, ...]:
        """The draw and the rate."""
        return (Reason("control", self.draw, self.probability),)
