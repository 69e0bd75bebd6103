"""A policy from a command line: ``Episodes(Budget(per_hour=20), best=3) | Control(rate=0.001)``.

The text is read as a Python expression and never run: only the triggers below, numbers, ``|``, ``&`` and parentheses
have a meaning.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from typing import NoReturn

from ..errors import ConfigError
from .base import Trigger
from .budget import Budget
from .control import Control
from .episodes import Episodes
from .gates import Cooldown, Novel
from .limits import Catch, Jump, Limbs, Threshold

TRIGGERS: dict[str, type[Trigger]] = {
    kind.__name__: kind for kind in (Budget, Threshold, Catch, Jump, Limbs, Novel, Cooldown, Episodes, Control)
}
"""What an expression may name."""

_MAX_LENGTH = 2000
_MAX_DEPTH = 50
_EXAMPLE = "Episodes(Budget(per_hour=20)) | Control(per_hour=2)"


def parse(text: str) -> Trigger:
    """The policy that ``str(trigger)`` wrote, or that a person did; :class:`ConfigError` says what does not read."""
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"a trigger has at most {_MAX_LENGTH} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"this is no trigger ({reason}): {text!r}; one looks like {_EXAMPLE}") from error
    value = _Reader(text.strip()).read(tree.body, 0)
    if not isinstance(value, Trigger):
        raise ConfigError(f"a number alone is no trigger: {text!r}; one looks like {_EXAMPLE}")
    return value


class _Reader:
    """Reads one expression; knows the text for its messages."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, node: ast.expr, depth: int) -> Trigger | float:
        if depth > _MAX_DEPTH:
            raise ConfigError(f"a trigger is nested at most {_MAX_DEPTH} deep: {self._text[:80]!r}…")
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value  # type: ignore[return-value]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self.read(node.operand, depth + 1)
            if not isinstance(value, Trigger):
                return -value
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd):
            return self._join(node, depth)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._make(node, node.func.id, depth)
        if isinstance(node, ast.BoolOp):
            raise ConfigError(f"write | instead of 'or' and & instead of 'and': {self._text!r}")
        if isinstance(node, ast.Name):
            kind = self._kind(node.id)
            raise ConfigError(f"{node.id} needs its arguments: {signature(kind)}, in {self._text!r}")
        self._refuse(node)

    def _join(self, node: ast.BinOp, depth: int) -> Trigger:
        left, right = self.read(node.left, depth + 1), self.read(node.right, depth + 1)
        if not isinstance(left, Trigger) or not isinstance(right, Trigger):
            self._refuse(node)
        return left | right if isinstance(node.op, ast.BitOr) else left & right

    def _make(self, node: ast.Call, name: str, depth: int) -> Trigger:
        kind = self._kind(name)
        allowed = list(inspect.signature(kind).parameters)
        arguments = [self.read(argument, depth + 1) for argument in node.args]
        named = {}
        for keyword in node.keywords:
            if keyword.arg not in allowed:
                raise ConfigError(f"{name} has no {keyword.arg!r}{_nearest(str(keyword.arg), allowed)}; "
                                  f"it is {signature(kind)}, in {self._text!r}")  # fmt: skip
            named[keyword.arg] = self.read(keyword.value, depth + 1)
        try:
            inspect.signature(kind).bind(*arguments, **named)
        except TypeError as error:
            raise ConfigError(f"{name}: {error}; it is {signature(kind)}, in {self._text!r}") from error
        return kind(*arguments, **named)

    def _kind(self, name: str) -> type[Trigger]:
        if name in TRIGGERS:
            return TRIGGERS[name]
        raise ConfigError(
            f"there is no trigger {name!r}{_nearest(name, list(TRIGGERS))}; there are: {', '.join(TRIGGERS)}"
        )

    def _refuse(self, node: ast.expr) -> NoReturn:
        part = ast.get_source_segment(self._text, node) or self._text
        raise ConfigError(f"{part!r} has no meaning in a trigger; it is built from {', '.join(TRIGGERS)}, "
                          f"numbers, |, & and parentheses, as in {_EXAMPLE}")  # fmt: skip


def signature(kind: type[Trigger]) -> str:
    """``Budget(per_hour)``, ``Episodes(trigger, best=3, …)``, for people."""
    arguments = [
        item.name if item.default in (item.empty, None) else f"{item.name}={item.default}"
        for item in inspect.signature(kind).parameters.values()
    ]
    return f"{kind.__name__}({', '.join(arguments)})"


def _nearest(name: str, known: list[str]) -> str:
    by_case = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), list(by_case), n=1, cutoff=0.5)
    return f" (did you mean {by_case[near[0]]!r}?)" if near else ""
