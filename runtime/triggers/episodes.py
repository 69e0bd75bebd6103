"""``Episodes``: of one continuous failure only the best few frames (non-maximum suppression in time).

A failure that lasts ten seconds is three hundred frames of one picture. The first frame is kept at once, so that a
crash loses nothing; a better one later replaces a worse one (``Decision.supersedes``).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

from ..errors import ConfigError
from .base import (
    MANY_STREAMS,
    ActiveTrigger,
    Observation,
    Reason,
    Setting,
    State,
    Trigger,
    refuse_control,
    register,
    require_positive,
)
from .rates import Budget

LOG = logging.getLogger("alpose.monitor")

BETTER = 1.05
"""A frame replaces another only if its failure probability is this much higher: otherwise a slow rise would write every
frame to disk, to gain nothing that a person could tell apart."""


@register
@dataclass(frozen=True)
class Episodes(Trigger):
    """Of what ``trigger`` finds, keep the ``best`` frames of each episode, judged by their failure probability.

    An episode is a run of findings in one stream with no gap longer than ``gap_s``; after ``longest_s`` a new one
    begins, so a failure without end gives ``best`` frames every ``longest_s``. Frames kept of one episode lie at least
    ``gap_s`` apart: of two that are nearer, the better one stays.
    """

    trigger: Trigger
    best: int = 3
    gap_s: float = 2.0
    longest_s: float = 60.0
    replaces_frames = True

    def __post_init__(self) -> None:
        if not isinstance(self.trigger, Trigger):
            raise ConfigError(f"Episodes wraps a trigger, as in Episodes(Budget(20)), got {self.trigger!r}")
        refuse_control("Episodes", self.trigger)
        if any(found.replaces_frames for found in self.trigger.walk()):
            raise ConfigError(f"Episodes inside of Episodes has no meaning: {self.trigger}")
        if not isinstance(self.best, int) or isinstance(self.best, bool) or self.best < 1:
            raise ConfigError(f"Episodes: best must be a whole number above 0, got {self.best!r}")
        require_positive(self, gap_s=self.gap_s, longest_s=self.longest_s)
        if self.longest_s < self.gap_s:
            raise ConfigError(f"Episodes: longest_s must be at least gap_s, got {self.longest_s!r} and {self.gap_s!r}")

    @property
    def inner(self) -> tuple[Trigger, ...]:
        """What it wraps."""
        return (self.trigger,)

    def activate(self, setting: Setting) -> ActiveTrigger:
        """Follow an episode in each stream."""
        most = self.best * 3600.0 / self.longest_s
        for found in self.trigger.walk():
            if isinstance(found, Budget) and found.per_hour > most:
                LOG.warning(
                    "%s keeps at most %.0f frames an hour of one stream, so %s in it needs several streams to be spent; "
                    "raise best, or lower longest_s", self, most, found)  # fmt: skip
        return _ActiveEpisodes(self, self.trigger.activate(setting))


@dataclass(slots=True)
class _Kept:
    sequence: int
    time_s: float
    score: float
    kept_elsewhere: bool
    """Another branch keeps it too, so it must not be dropped."""


@dataclass(slots=True)
class _Episode:
    number: int
    begun_s: float
    last_s: float
    kept: list[_Kept] = field(default_factory=list)
    """In order of time."""


class _ActiveEpisodes(ActiveTrigger):
    """The episodes now open, one per stream."""

    __slots__ = ("_begun", "_inner", "_limit", "_now", "_open", "_rival", "_score", "_sequence", "_time_s", "_trigger")

    def __init__(self, trigger: Episodes, inner: ActiveTrigger) -> None:
        super().__init__()
        self._trigger, self._inner = trigger, inner
        self._open: dict[str, _Episode] = {}
        self._begun = 0
        self._sequence = -1
        self._now: _Episode | None = None
        self._rival: _Kept | None = None
        self._limit = 0.0
        self._time_s = self._score = 0.0

    def evaluate(self, observation: Observation) -> None:
        inner = self._inner
        inner.evaluate(observation)
        self._sequence += 1
        self._now = self._rival = None
        self.triggered = inner.triggered or inner.fires
        if inner.probability == 0.0 and not inner.triggered:
            self.fires, self.probability = False, 0.0
            return
        score = observation.failure_probability
        self._time_s, self._score = observation.time_s, score if score == score else -math.inf
        episode = self._find(observation)
        welcome = episode is None or self._welcome(episode)
        self.fires = inner.fires and welcome
        self.probability = inner.probability if welcome else 0.0
        if self.triggered:
            self._now = episode or self._begin(observation)
            self._now.last_s = observation.time_s

    def reasons(self) -> tuple[Reason, ...]:
        held_back = self._inner.fires and not self.fires
        return self._inner.reasons() + ((Reason("episode", self._score, self._limit),) if held_back else ())

    def on_stored(self, kept: bool, replaced: int, kept_elsewhere: bool) -> None:
        """Put the frame into its episode. ``replaced`` is this part's own count: no other Episodes is in the branch."""
        self._inner.on_stored(kept, len(self.replaces), kept_elsewhere)
        if not kept or self._now is None:
            return
        if self._rival is not None:
            self._now.kept.remove(self._rival)
        self._now.kept.append(_Kept(self._sequence, self._time_s, self._score, kept_elsewhere))

    def forget(self, stream: str) -> None:
        self._open.pop(stream, None)
        self._inner.forget(stream)

    def state(self) -> State:
        return self._inner.state()

    def restore(self, state: State, same_bundle: bool) -> None:
        self._inner.restore(state, same_bundle)

    @property
    def threshold(self) -> float | None:
        return self._inner.threshold

    @property
    def episode(self) -> int | None:
        return None if self._now is None else self._now.number

    @property
    def replaces(self) -> tuple[int, ...]:
        """The frame that has to go for this one."""
        return () if self._rival is None or self._rival.kept_elsewhere else (self._rival.sequence,)

    def _find(self, observation: Observation) -> _Episode | None:
        """The open episode of this stream; a clock that was set back closes it."""
        episode = self._open.get(observation.stream)
        if (
            episode is None
            or not 0.0 <= observation.time_s - episode.last_s <= self._trigger.gap_s
            or observation.time_s - episode.begun_s > self._trigger.longest_s
        ):
            return None
        return episode

    def _begin(self, observation: Observation) -> _Episode:
        if len(self._open) >= MANY_STREAMS:
            self._open = {stream: episode for stream, episode in self._open.items()
                          if 0.0 <= observation.time_s - episode.last_s <= self._trigger.gap_s}  # fmt: skip
        episode = _Episode(self._begun, observation.time_s, observation.time_s)
        self._begun += 1
        self._open[observation.stream] = episode
        return episode

    def _welcome(self, episode: _Episode) -> bool:
        """Whether the frame would be kept; remembers whom it would replace, and what it had to surpass."""
        kept = episode.kept
        if kept and self._time_s - kept[-1].time_s < self._trigger.gap_s:
            rival = kept[-1]
        elif len(kept) < self._trigger.best:
            return True
        else:
            rival = min(kept, key=lambda one: one.score)
        # The last term lets a score of 0 be beaten, but not by another 0.
        self._limit = max(rival.score * BETTER, rival.score + 1e-9)
        if not self._score >= self._limit:
            return False
        self._rival = rival
        return True
