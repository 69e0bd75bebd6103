"""How each field of a record is written into its manifest, and checked when it is read from one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import DataError

MAX_NAME = 1024
"""Characters of a device, camera or trigger."""
MAX_AXIS = 4096
"""Joints, and length of an embedding."""
MAX_REASONS = 64
MAX_PICTURES = 256
"""Pictures of one record: their rows are numbered 256 × record + place."""
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers, and a model can answer them: they are stored as these strings."""


def is_name(value: object) -> bool:
    """Whether a value may be the name of a device, camera or place: printable text that is not too long."""
    return isinstance(value, str) and len(value) <= MAX_NAME and (not value or value.isprintable())


def is_hex(value: object, digits: int) -> bool:
    """Whether a value is a text of so many hex digits in lower case."""
    return isinstance(value, str) and len(value) == digits and _HEX.issuperset(value)


_HEX = frozenset("0123456789abcdef")


class Field(NamedTuple):
    """One field of a manifest."""

    write: Callable[[Any], Any]
    """The field's value as JSON has it."""
    read: Callable[[Any], Any]
    """The value of a JSON value; :class:`ValueError` says what it must be."""


def written_fields(values: object, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The fields of an object as JSON has them."""
    return {name: field.write(getattr(values, name)) for name, field in fields.items()}


def read_fields(values: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """The fields of a JSON object; keys of a later version are passed over."""
    read = {}
    for name, how in fields.items():
        try:
            read[name] = how.read(values.get(name))
        except ValueError as error:
            found = str(values.get(name))[:100]
            raise DataError(f"{name!r} in the manifest is {found!r}, and must be {error}") from None
    return read


def json_number(value: float) -> float | str:
    """A number as JSON has it; NaN and infinities as texts."""
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _number(value: object) -> float:
    try:
        if type(value) is float or type(value) is int:
            return float(value)
    except OverflowError:
        pass
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    raise ValueError("a number")


def _checked(holds: Callable[[Any], bool], wanted: str) -> Callable[[Any], Any]:
    """Return the value where a condition holds for it; say what is wanted otherwise."""

    def read(value: Any) -> Any:
        if not holds(value):
            raise ValueError(wanted)
        return value

    return read


def integer(least: int = -(1 << 63), most: int = (1 << 63) - 1) -> Field:
    """A whole number within bounds."""
    wanted = f"a whole number from {least} to {most}"
    return Field(int, _checked(lambda value: type(value) is int and least <= value <= most, wanted))


def _share(value: object) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError("a number from 0 to 1")
    return number


def numbers(count: int) -> Field:
    """A list of so many numbers."""

    def read(values: Any) -> tuple[float, ...]:
        if not isinstance(values, list) or len(values) != count:
            raise ValueError(f"{count} numbers")
        return tuple(map(_number, values))

    return Field(lambda values: [json_number(value) for value in values], read)


def read_shares(values: Any) -> tuple[float, ...]:
    """A list of numbers from 0 to 1."""
    if not isinstance(values, list) or len(values) > MAX_AXIS:
        raise ValueError(f"at most {MAX_AXIS} shares")
    return tuple(map(_share, values))


def hexadecimal(digits: int) -> Field:
    """A text of so many hex digits."""
    return Field(_as_it_is, _checked(lambda value: is_hex(value, digits), f"{digits} hex digits in lower case"))


def choice(known: Sequence[str]) -> Field:
    """One of some texts."""
    return Field(_as_it_is, _checked(lambda value: value in known, f"one of {', '.join(known)}"))


def optional(field: Field) -> Field:
    """A field that may be absent."""
    return Field(
        lambda value: None if value is None else field.write(value),
        lambda value: None if value is None else field.read(value),
    )


def read_reasons(values: Any) -> tuple[tuple[str, float, float], ...]:
    """Triggers with their values and limits."""
    try:
        if not isinstance(values, list) or len(values) > MAX_REASONS:
            raise ValueError
        read = tuple((name, _number(value), _number(limit)) for name, value, limit in values)
    except (ValueError, TypeError):
        raise ValueError(f"at most {MAX_REASONS} times [trigger, value, limit]") from None
    if not all(is_name(name) for name, _, _ in read):
        raise ValueError("a list in which each trigger's name comes first")
    return read


def _as_it_is(value: Any) -> Any:
    return value


def _are_objects(values: Any) -> bool:
    return isinstance(values, list) and len(values) <= MAX_PICTURES and all(isinstance(value, dict) for value in values)


INTEGER = integer()
NUMBER = Field(json_number, _number)
SHARE = Field(json_number, _share)
BOOLEAN = Field(bool, _checked(lambda value: type(value) is bool, "true or false"))
NAME = Field(_as_it_is, _checked(is_name, f"a text of at most {MAX_NAME} characters and no control characters"))
AXIS = integer(0, MAX_AXIS)
SIDE = integer(1, 1 << 20)
PICTURES = Field(_as_it_is, _checked(_are_objects, f"a list of at most {MAX_PICTURES} objects"))
