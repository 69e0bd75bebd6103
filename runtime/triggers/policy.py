"""A whole policy: read from text, and at work.

:func:`parse` reads ``Episodes(Budget(per_hour=20), best=3) | Control(rate=0.001)`` as a Python expression and never runs it:
only the registered triggers, numbers, ``|``, ``&`` and parentheses have a meaning.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
from collections import deque
from typing import Any, NoReturn

from ..errors import ConfigError
from .base import (
    TRIGGERS,
    ActiveAnyOf,
    ActiveTrigger,
    AnyOf,
    Decision,
    EmbeddingMemory,
    Observation,
    Reason,
    Setting,
    State,
    Trigger,
    nest_states,
    nested_state,
)
from .rates import ActiveControl, Control

_IN_BOTH = 4096
"""Frames remembered as flagged and in the control stream, for the time that an episode may still replace them."""

_MAX_LENGTH = 2000
_MAX_DEPTH = 50
_EXAMPLE = "Episodes(Budget(per_hour=20)) | Control(per_hour=2)"


class Policy:
    """A trigger at work on one device: numbers the frames, keeps the control stream apart, remembers what was kept.

    Not thread-safe: one caller, in the order of the frames.

    Raises:
        ConfigError: the setting lacks what the trigger needs.
    """

    def __init__(self, trigger: Trigger, setting: Setting) -> None:
        setting = dataclasses.replace(setting, memory=EmbeddingMemory())
        branches = trigger.parts if isinstance(trigger, AnyOf) else (trigger,)
        # The control stream's generator is the first one: it draws the same whatever stands beside it.
        controls = [ActiveControl(branch, setting) for branch in branches if isinstance(branch, Control)]
        parts = [branch.activate(setting) for branch in branches if not isinstance(branch, Control)]
        self._control = controls[0] if controls else None
        self._main: ActiveTrigger | None = ActiveAnyOf(parts) if len(parts) > 1 else parts[0] if parts else None
        self._memory = setting.memory
        self._measures_distance = any(found.measures_distance for found in trigger.walk())
        self._in_both: deque[int] = deque(maxlen=_IN_BOTH)
        self._observation: Observation | None = None
        self._flagged = self._drawn = False
        self.sequence = -1
        """Number of the last observation, from 0; ``supersedes`` and ``demotes`` of later decisions refer to it."""

    def decide(self, observation: Observation) -> Decision:
        """Decide on one observation."""
        self.sequence += 1
        self._observation = observation
        distance = math.nan
        if self._measures_distance:
            distance = self._memory.now = observation.distance
            if distance != distance:
                distance = self._memory.measure(observation.embedding_D)
        main, control = self._main, self._control
        probability, flagged, triggered = 0.0, False, False
        if main is not None:
            main.evaluate(observation)
            if observation.failure_probability == observation.failure_probability:  # NaN is never flagged
                probability, flagged, triggered = main.probability, main.fires, main.triggered
        rate, drawn = 0.0, False
        if control is not None:
            control.evaluate(observation)
            rate, drawn = control.probability, control.fires
            probability = 1.0 - (1.0 - probability) * (1.0 - rate) if probability > 0.0 else rate
        keep = flagged or drawn
        self._flagged, self._drawn = flagged, drawn
        novelty = self._memory.measure(observation.embedding_D) if keep and not self._measures_distance else distance
        reasons: tuple[Reason, ...] = ()
        if main is not None and (flagged or (triggered and not keep)):
            reasons = main.reasons()
        if control is not None and drawn:
            reasons += control.reasons()
        replaces = main.replaces if main is not None and flagged else ()
        return Decision(
            keep=keep,
            inclusion_probability=probability,
            flagged=flagged,
            reasons=reasons,
            threshold=None if main is None else main.threshold,
            control_draw=control.draw if control is not None and drawn else None,
            novelty=novelty if novelty == novelty else 1.0,
            episode=main.episode if main is not None and triggered else None,
            supersedes=tuple(one for one in replaces if one not in self._in_both) if replaces else (),
            demotes=tuple(one for one in replaces if one in self._in_both) if replaces else (),
            control_rate=rate,
            distance=distance,
        )

    def forget(self, stream: str) -> None:
        """Forget what belongs to a stream whose name may now mean somebody else: an episode of theirs is over."""
        if self._main is not None:
            self._main.forget(stream)

    def state(self) -> State:
        """What has been learned and a restart should not lose; see :func:`pack_state`."""
        return nest_states((self._main, self._control))

    def restore(self, state: State, same_bundle: bool) -> None:
        """Go on from an earlier :meth:`state` of an equal policy."""
        for number, part in enumerate((self._main, self._control)):
            if part is not None:
                part.restore(nested_state(state, number), same_bundle)

    def on_stored(self, kept: bool) -> None:
        """Say what became of the last decision. Without it, the frame counts as not kept."""
        observation, self._observation = self._observation, None
        if observation is None or not self._flagged or self._main is None:
            return
        self._main.on_stored(kept, 0, False)
        if kept:
            self._memory.add(observation.embedding_D)
            if self._drawn:
                self._in_both.append(self.sequence)


def parse(text: str) -> Trigger:
    """The policy that ``str(trigger)`` wrote, or that a person did; :class:`ConfigError` says what does not read."""
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"a trigger has at most {_MAX_LENGTH} characters, got {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ConfigError(f"{text!r} is not a trigger ({reason}); one looks like {_EXAMPLE}") from error
    value = _Reader(text.strip()).read(tree.body, 0)
    if not isinstance(value, Trigger):
        raise ConfigError(f"a number alone is not a trigger: {text!r}; one looks like {_EXAMPLE}")
    return value


class _Reader:
    """Reads one expression; it holds the text for its messages."""

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
        named: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg not in allowed:
                raise ConfigError(f"{name} has no {keyword.arg!r}{_nearest(str(keyword.arg), allowed)}; "
                                  f"it is {signature(kind)}, in {self._text!r}")  # fmt: skip
            names = keyword.arg == "joints"
            named[keyword.arg] = self._names(keyword.value) if names else self.read(keyword.value, depth + 1)
        try:
            inspect.signature(kind).bind(*arguments, **named)
        except TypeError as error:
            raise ConfigError(f"{name}: {error}; it is {signature(kind)}, in {self._text!r}") from error
        return kind(*arguments, **named)

    def _names(self, node: ast.expr) -> tuple[str, ...]:
        """``"left_wrist"`` or ``("left_wrist", "right_wrist")``."""
        parts = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
        names = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if len(names) != len(parts):
            self._refuse(node)
        return tuple(names)

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
