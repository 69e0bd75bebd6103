"""What ``select`` chose for annotation: a list in order of priority that says why, written to ``inbox/batches/``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from alpose.runtime.errors import DataError

KIND, SCHEMA = "alpose batch", 1

Strategy = Literal["value", "top", "coreset", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
Stream = Literal["value", "control"]
STREAMS: tuple[Stream, ...] = get_args(Stream)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ID = re.compile(r"[0-9a-f]{32}")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Frames to annotate, and what became of the others."""

    name: str
    created: str
    """UTC, ISO 8601."""
    strategy: Strategy
    budget: int
    choices: tuple[Choice, ...]
    counted: Mapping[str, int]
    """Frames that were considered and not chosen, by reason."""
    tallies: tuple[Mapping[str, Any], ...] = ()
    """The monitors' counts at the time of a draw from the control stream: the frames that it stands for. What was
    counted later belongs to the next draw."""

    def __post_init__(self) -> None:
        check_name(self.name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, read back by :meth:`from_json`."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self), "counted": dict(self.counted)}

    @classmethod
    def from_json(cls, value: Any, where: str = "batch") -> Batch:
        """Check parsed JSON; :class:`DataError` says what is wrong and where."""
        if not isinstance(value, dict) or value.get("kind") != KIND or value.get("schema") != SCHEMA:
            raise DataError(f"{where} is not a batch of alpose (schema {SCHEMA}): make it with alpose-harvest select")
        try:
            if value["strategy"] not in STRATEGIES:
                raise ValueError(f"strategy {value['strategy']!r} is not one of {', '.join(STRATEGIES)}")
            choices = tuple(_choice(choice) for choice in value["choices"])
            ids = {choice.id for choice in choices}
            if len(ids) != len(choices):
                raise ValueError(f"{len(choices) - len(ids)} ids are named twice")
            return cls(
                name=str(value["name"]), created=str(value["created"]), strategy=value["strategy"],
                budget=int(value["budget"]), choices=choices,
                counted={str(reason): int(count) for reason, count in value["counted"].items()},
                tallies=tuple(dict(row) for row in value.get("tallies", ())),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{where} is damaged: {error}. Select again") from error


def check_name(name: str) -> str:
    """A name that can be a file name everywhere; :class:`DataError` otherwise."""
    if not _NAME.fullmatch(name):
        raise DataError(
            f"a batch is named by up to 64 letters, digits, dots, dashes and underscores, got {name[:80]!r}"
        )
    return name


def _choice(value: Any) -> Choice:
    if not _ID.fullmatch(value["id"]):
        raise ValueError(f"id {str(value['id'])[:40]!r} is not 32 hex digits")
    if value["stream"] not in STREAMS:
        raise ValueError(f"stream {value['stream']!r} is not one of {', '.join(STREAMS)}")
    probability = value["select_probability"]
    if probability is not None:
        probability = float(probability)
        if not (math.isfinite(probability) and 0 < probability <= 1):
            raise ValueError(f"select_probability must lie in (0, 1], got {probability}")
    return Choice(id=value["id"], rank=int(value["rank"]), reason=str(value["reason"]), stream=value["stream"],
                  select_probability=probability)  # fmt: skip
