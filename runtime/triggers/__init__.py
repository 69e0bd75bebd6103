"""Which frames to keep: small policies that are joined with ``|`` and ``&``. ``docs/triggers.md`` helps to choose."""

from .base import Decider, Decision, Observation, Reason, Setting, Trigger
from .budget import Budget
from .compose import AllOf, AnyOf
from .control import Control
from .episodes import Episodes
from .gates import Cooldown, Novel
from .limits import Catch, Jump, Limbs, Threshold
from .parse import parse

__all__ = [
    "AllOf",
    "AnyOf",
    "Budget",
    "Catch",
    "Control",
    "Cooldown",
    "Decider",
    "Decision",
    "Episodes",
    "Jump",
    "Limbs",
    "Novel",
    "Observation",
    "Reason",
    "Setting",
    "Threshold",
    "Trigger",
    "parse",
]
