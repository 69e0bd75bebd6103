"""A whole policy at work: numbers the frames, keeps the control stream apart, and remembers what was kept."""

from __future__ import annotations

import dataclasses
import math
from collections import deque

from .base import Decision, Observation, Part, Reason, Setting, Trigger, everything_in
from .compose import AnyOf, AnyPart
from .control import Control, ControlPart
from .gates import Novel
from .memory import Memory

_IN_BOTH = 4096
"""Frames remembered as flagged and in the control stream, for the time that an episode may still replace them."""


class Policy:
    """The :class:`~alpose.runtime.triggers.base.Decider` of every trigger."""

    def __init__(self, trigger: Trigger, setting: Setting) -> None:
        setting = dataclasses.replace(setting, memory=Memory())
        branches = trigger.parts if isinstance(trigger, AnyOf) else (trigger,)
        # The control stream's generator is the first one: it draws the same whatever stands beside it.
        controls = [ControlPart(branch, setting) for branch in branches if isinstance(branch, Control)]
        parts = [branch.part(setting) for branch in branches if not isinstance(branch, Control)]
        self._control = controls[0] if controls else None
        self._main: Part | None = AnyPart(parts) if len(parts) > 1 else parts[0] if parts else None
        self._memory = setting.memory
        self._measures = any(isinstance(found, Novel) for found in everything_in(trigger))
        self._in_both: deque[int] = deque(maxlen=_IN_BOTH)
        self._sequence = -1
        self._seen: Observation | None = None
        self._flagged = self._drawn = False

    def decide(self, seen: Observation) -> Decision:
        """Decide on one observation."""
        self._sequence += 1
        self._seen = seen
        distance = math.nan
        if self._measures:
            distance = self._memory.now = seen.distance
            if distance != distance:
                distance = self._memory.measure(seen.embedding_D)
        main, control = self._main, self._control
        probability, flagged, stirred = 0.0, False, False
        if main is not None:
            main.judge(seen)
            if seen.failure_probability == seen.failure_probability:  # what is no number is never flagged
                probability, flagged, stirred = main.probability, main.fires, main.stirred
        rate, drawn = 0.0, False
        if control is not None:
            control.judge(seen)
            rate, drawn = control.probability, control.fires
            probability = 1.0 - (1.0 - probability) * (1.0 - rate) if probability > 0.0 else rate
        keep = flagged or drawn
        self._flagged, self._drawn = flagged, drawn
        novelty = self._memory.measure(seen.embedding_D) if keep and not self._measures else distance
        reasons: tuple[Reason, ...] = ()
        if main is not None and (flagged or (stirred and not keep)):
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
            episode=main.episode if main is not None and stirred else None,
            supersedes=tuple(one for one in replaces if one not in self._in_both) if replaces else (),
            demotes=tuple(one for one in replaces if one in self._in_both) if replaces else (),
            control_rate=rate,
            distance=distance,
        )

    def settle(self, kept: bool) -> None:
        """Say what became of the last decision. Without it, the frame counts as not kept."""
        seen, self._seen = self._seen, None
        if seen is None or not self._flagged or self._main is None:
            return
        self._main.settle(kept, 0, False)
        if kept:
            self._memory.add(seen.embedding_D)
            if self._drawn:
                self._in_both.append(self._sequence)
