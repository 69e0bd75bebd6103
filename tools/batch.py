"""What ``select`` chose for annotation: a list in order of priority that says why, written to ``inbox/batches/``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from alpose.runtime.errors import DataError
from alpose.runtime.io import fields_from_json, fields_to_json
from alpose.runtime.queue.fields import is_hex
from alpose.trainer.methods.strategies import STRATEGIES

KIND, SCHEMA = "alpose batch", 1

POOL = "pool "
"""Before the method by which pictures of a pool were chosen."""
Stream = Literal["value", "control"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One frame to annotate."""

    id: str
    rank: int
    """From 1, most wanted first."""
    reason: str
    """For people."""
    stream: Stream
    """``control`` frames were drawn by chance and stand for the whole field; ``value`` frames are what was worth most."""
    select_probability: float | None
    """Of having been chosen, given that it was sent; None where value decided, which is no chance."""

    def __post_init__(self) -> None:
        if not is_hex(self.id, 32):
            raise DataError(f"id {self.id[:40]!r} is not 32 hex digits")
        probability = self.select_probability
        if probability is not None and not 0 < probability <= 1:
            raise DataError(f"select_probability must lie in (0, 1], got {probability}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Frames to annotate, and what became of the others."""

    name: str
    created: str
    """UTC, ISO 8601."""
    strategy: str
    """One of ``alpose-harvest select``; of ``alpose-train select`` the word ``pool`` and what ``--by`` said."""
    budget: int
    choices: tuple[Choice, ...]
    counted: Mapping[str, int]
    """Frames that were considered and not chosen, by reason."""
    tallies: tuple[Mapping[str, Any], ...] = ()
    """The monitors' counts at the time of a draw from the control stream: the frames that it stands for. What was
    counted later belongs to the next draw."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.strategy not in STRATEGIES and not self.strategy.startswith(POOL):
            raise DataError(f"strategy {self.strategy!r} is not one of {', '.join(STRATEGIES)}")
        twice = len(self.choices) - len({choice.id for choice in self.choices})
        if twice:
            raise DataError(f"{twice} ids are named twice")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, read back by :meth:`from_json`."""
        return {"kind": KIND, "schema": SCHEMA, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Any, where: str = "batch") -> Batch:
        """Check parsed JSON; :class:`DataError` says what is wrong and where."""
        if not isinstance(value, dict) or value.get("kind") != KIND or value.get("schema") != SCHEMA:
            raise DataError(f"{where} is not a batch of alpose (schema {SCHEMA}): make it with alpose-harvest select")
        return fields_from_json(cls, {key: item for key, item in value.items() if key not in ("kind", "schema")}, where)


def check_name(name: str) -> str:
    """A name that can be a file name everywhere; :class:`DataError` otherwise."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"a batch is named by up to 64 letters, digits, dots, dashes and underscores, got {name[:80]!r}"
        )
    return name
