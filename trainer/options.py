"""Options of single methods, as ``NAME=VALUE,…`` on the command line; and those of the scores that one pass makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from alpose.runtime.errors import ConfigError

from .auxiliary import PEAKS
from .models.auxiliary import MEMBERS

Border = Literal["kept", "dropped"]


def read_options(
    flag: str, text: str, known: Mapping[str, Callable[[str], Any]], wants: Mapping[str, str]
) -> dict[str, Any]:
    """Read ``NAME=VALUE,…``.

    Args:
        flag: the option of the command line, for errors.
        text: what stands behind it.
        known: what turns the text of each value into the value; ValueError where it cannot.
        wants: what a value that cannot be read should be, in words; by default a number.

    Raises:
        ConfigError: an unknown name, one that stands twice, no value, or one that cannot be read.
    """
    values: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in values:
            raise ConfigError(f"{flag}: {part!r} is not one of {', '.join(known)}, once, as NAME=VALUE")
        try:
            values[name] = known[name](value)
        except ValueError as error:
            raise ConfigError(f"{flag}: {part!r} wants {wants.get(name, 'a number')}") from error
    return values


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """What the samplers' scores leave open. The official forms of a method have no options."""

    temperature: float = 1.0
    """Of ``entropy`` and ``multipeak``: divides maps whose training peak is 30 before the softmax."""
    border: Border = "kept"
    """Of ``multipeak``: whether peaks within its distance of the edge count."""
    peaks: int = PEAKS
    """Of ``vl4pose``: candidates per joint."""
    members: int = MEMBERS
    """Of ``ensemble`` its heads, of ``ensemble-nets`` its nets, the one that the stage starts from among them."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"--scores: temperature must be above 0, got {self.temperature:g}")
        if self.border not in get_args(Border):
            raise ConfigError(f"--scores: border is {' or '.join(get_args(Border))}, got {self.border!r}")
        if self.peaks < 1:
            raise ConfigError(f"--scores: peaks must be at least 1, got {self.peaks}")
        if self.members < 2:
            raise ConfigError(f"--scores: a committee needs at least 2 members to disagree, got {self.members}")

    @classmethod
    def parse(cls, text: str) -> ScoreOptions:
        """From the command line: such as ``temperature=3,border=dropped,peaks=3,members=7``."""
        whole = dict.fromkeys(("peaks", "members"), "a whole number")
        return cls(
            **read_options("--scores", text, {"temperature": float, "border": str, "peaks": int, "members": int}, whole)
        )

    def of_a_pass(self) -> str:
        """What decides about the scores of a given model, as text; empty for the default.

        Scores that are older than an option are those of its default.
        """
        own = {"temperature": self.temperature, "border": self.border, "peaks": self.peaks}
        default = ScoreOptions()
        return ",".join(f"{name}={value}" for name, value in own.items() if value != getattr(default, name))
