"""Which frames to keep: small policies that are joined with ``|`` and ``&``. ``docs/triggers.md`` helps to choose."""

from .base import (
    TRIGGERS,
    ActiveTrigger,
    AllOf,
    AnyOf,
    Decision,
    Observation,
    Reason,
    Setting,
    State,
    Trigger,
    register,
    require_positive,
    require_share,
)
from .episodes import Episodes
from .policy import Policy, parse
from .rates import Budget, Control, Draws
from .rules import Catch, Cooldown, Jump, Limbs, Novel, Threshold

__all__ = [
    "TRIGGERS",
    "ActiveTrigger",
    "AllOf",
    "AnyOf",
    "Budget",
    "Catch",
    "Control",
    "Cooldown",
    "Decision",
    "Draws",
    "Episodes",
    "Jump",
    "Limbs",
    "Novel",
    "Observation",
    "Policy",
    "Reason",
    "Setting",
    "State",
    "Threshold",
    "Trigger",
    "parse",
    "register",
    "require_positive",
    "require_share",
]
