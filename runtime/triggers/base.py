"""What a trigger is, what it sees and what it answers, and how triggers are joined.

A :class:`Trigger` is a value: frozen, comparable, written as text to a device. ``activate`` puts it to work on one device
and gives an :class:`ActiveTrigger`, which holds all state. ``a | b`` keeps what either keeps, ``a & b`` what both do. A
:class:`~alpose.runtime.triggers.policy.Policy` runs a whole one.

**Inclusion probability.** A frame is kept because something is certain (a threshold is exceeded) or by a draw (the control
stream; ties at a budget's threshold). ``Decision.inclusion_probability`` is P(keep | everything before this frame's own
draws). Each part draws for itself, so the probabilities multiply: ``&`` gives Π p, ``|`` gives 1 - Π(1 - p). That number
is exact, hence Σ y / p over the kept frames is an unbiased estimate of Σ y over all frames with p > 0, which are all frames
where there is a control stream. A frame that an episode replaces later leaves that set (see ``Decision.demotes``).

**Branches do not know of each other.** What ``a | b`` keeps is what ``a`` alone and ``b`` alone would have kept; they share
only the memory of Novel. A budget in one branch counts what that branch keeps.

**The control stream stands apart.** It may only be an alternative of the whole policy (``… | Control(0.001)``), and no
other part ever learns what it drew: two devices that differ only in their control draws flag the same frames.

Shapes: D dimensions of the embedding, M places in the memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, dataclass, field, fields
from itertools import chain
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ..bundle.manifest import CalibrationFacts
from ..errors import ConfigError

MEMORY_PLACES = 512
"""M: the last day at 20 frames an hour. 512 × 64 float32 are 128 KiB, and a comparison takes a few microseconds."""

MANY_STREAMS = 64
"""Streams for which a trigger holds state before it looks for some that it may forget."""

State = dict[str, npt.NDArray[np.float32]]
"""What a trigger has learned, by name."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Observation:
    """One person on one frame: all that a trigger may look at."""

    time_s: float
    """Monotonic seconds; a step backwards counts as none."""
    failure_probability: float
    """0 to 1. NaN is never flagged, whatever else speaks for the frame: the engine's answer was not finite, or a search
    found nobody whose pose could be wrong."""
    predicted_loss: float
    embedding_D: npt.NDArray[np.float32]
    """Unit length."""
    jump: float = math.nan
    """:class:`alpose.runtime.signals.Jumps`; NaN where unknown."""
    limbs: float = math.nan
    """:class:`alpose.runtime.signals.Limbs`; NaN where unknown."""
    stream: str = ""
    """Camera or person: state that belongs to one of them is kept under this key."""
    confidence_J: npt.NDArray[np.float32] | None = None
    """Probability of each joint being right; None where the bundle gives none, and in a replay."""
    distance: float = math.nan
    """Given in a replay only: the distance to what had been kept, as the device measured it."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One comparison. A trigger fires at ``value >= limit``; only the control stream fires below its rate."""

    trigger: str
    value: float
    limit: float

    def __str__(self) -> str:
        """``budget 0.83 >= 0.71``, ``control 0.00032 < 0.001``; NaN never reaches a limit."""
        return f"{self.trigger} {self.value:.4g} {'>=' if self.value >= self.limit else '<'} {self.limit:.4g}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to keep the frame, why, and how probable that was."""

    keep: bool
    inclusion_probability: float
    """The probability of ``keep``, given the history before this frame's own draws."""
    flagged: bool
    """Kept by something other than the control stream."""
    reasons: tuple[Reason, ...] = ()
    """What fired. On a frame that is not kept: what fired, and what held it back."""
    threshold: float | None = None
    """The limit on the failure probability that was in force; None where the policy has none."""
    control_draw: float | None = None
    """Uniform in [0, 1); given where the frame is in the control stream, flagged or not."""
    novelty: float = 1.0
    """Cosine distance (0 to 2) to what was kept before; 1 where it was not measured."""
    episode: int | None = None
    """Running number of the continuous failure that the frame belongs to."""
    supersedes: tuple[int, ...] = ()
    """Sequence numbers of kept frames that this one replaces: drop them if this one is stored."""
    demotes: tuple[int, ...] = ()
    """Like ``supersedes``, but those frames are in the control stream too: they stay, and from now on count like control
    frames that are not flagged, with the ``control_rate`` of their decision. A queue's record does not change:
    ``QUEUE.md``."""
    control_rate: float = 0.0
    """The probability of the control stream on this frame; 0 without one."""
    distance: float = math.nan
    """For the score log: like ``novelty``, but NaN where unknown, and known of all frames or, without ``Novel``, of none.
    If it were known of kept frames alone it would mislead a replay."""


class EmbeddingMemory:
    """A ring of the last M unit embeddings that were flagged and kept."""

    def __init__(self, places: int = MEMORY_PLACES) -> None:
        self._places = places
        self._count = 0
        self._kept_MD: npt.NDArray[np.float32] | None = None
        self._cosine_M: npt.NDArray[np.float32] = np.empty(places, dtype=np.float32)
        self.now = math.nan
        """Distance of the frame that is being decided on; NaN where it is unknown."""

    def measure(self, embedding_D: npt.NDArray[np.float32]) -> float:
        """The smallest cosine distance, 0 to 2; NaN while nothing is kept, and for an embedding that is not finite."""
        self.now = math.nan
        if self._kept_MD is not None:
            used = min(self._count, self._places)
            cosine_M = np.dot(self._kept_MD[:used], embedding_D, out=self._cosine_M[:used])
            # Rounded as the score log keeps it, so that a replay decides as the device did.
            self.now = float(np.float16(1.0 - cosine_M.max()))
        return self.now

    def add(self, embedding_D: npt.NDArray[np.float32]) -> None:
        """Remember an embedding, unless it is empty or not finite; the oldest is forgotten when the ring is full."""
        if embedding_D.size == 0 or not np.isfinite(embedding_D).all():
            return
        if self._kept_MD is None:
            self._kept_MD = np.zeros((self._places, embedding_D.size), dtype=np.float32)
        self._kept_MD[self._count % self._places] = embedding_D
        self._count += 1


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a policy is put to work."""

    calibration: CalibrationFacts | None
    """The bundle's; None for a bundle that was exported without."""
    rng: np.random.Generator
    """Every trigger that draws takes a generator of its own from it."""
    frames_per_second: float | None = None
    """Observations per second to expect at first; measured from then on."""
    memory: EmbeddingMemory = field(default_factory=EmbeddingMemory, repr=False)
    """Embeddings of what was flagged and kept, shared by all triggers of one policy, which makes it anew."""
    joints: tuple[str, ...] = ()
    """Names of the joints that have a confidence, in its order; empty where none has."""


class ActiveTrigger(ABC):
    """One trigger at work. :meth:`evaluate` leaves its finding in the attributes, which hold until the next frame.

    Every trigger evaluates every frame, whatever its neighbours say: draws stay independent and state reproducible.
    """

    __slots__ = ("fires", "probability", "triggered")

    fires: bool
    """This trigger would keep the frame."""
    probability: float
    """The probability of ``fires``, given the history before this frame's own draws."""
    triggered: bool
    """Something in here found something, whether or not it was then held back: there is a reason to tell."""

    def __init__(self) -> None:
        self.fires, self.probability, self.triggered = False, 0.0, False

    def set_certain(self, fires: bool) -> None:
        """Record a finding in which no draw had a share."""
        self.fires = self.triggered = fires
        self.probability = 1.0 if fires else 0.0

    @abstractmethod
    def evaluate(self, observation: Observation) -> None:
        """Look at one frame and set :attr:`fires`, :attr:`probability` and :attr:`triggered`."""

    @abstractmethod
    def reasons(self) -> tuple[Reason, ...]:
        """Why, for the frame just evaluated; called only where :attr:`triggered`."""

    def on_stored(self, kept: bool, replaced: int, kept_elsewhere: bool) -> None:  # noqa: B027 - most learn nothing
        """Learn what became of the frame just evaluated.

        Args:
            kept: the branch of the policy that this trigger stands in fired, and the frame was really kept.
            replaced: how many frames that this branch kept before are dropped for it.
            kept_elsewhere: another branch keeps the frame too, so this branch alone cannot let it go later.
        """

    def forget(self, stream: str) -> None:  # noqa: B027
        """Forget what belongs to a stream: its name may mean somebody else from now on."""

    def state(self) -> State:
        """What this trigger has learned and a restart should not lose; arrays that nobody writes to any more."""
        return {}

    def restore(self, state: State, same_bundle: bool) -> None:  # noqa: B027
        """Go on from an earlier :meth:`state` of an equal trigger.

        Args:
            state: as :meth:`state` gave it.
            same_bundle: it was learned with this bundle, so its scores mean the same.
        """

    @property
    def threshold(self) -> float | None:
        """The limit on the failure probability that was in force for the frame just evaluated."""
        return None

    @property
    def episode(self) -> int | None:
        """Number of the episode that the frame just evaluated belongs to."""
        return None

    @property
    def replaces(self) -> tuple[int, ...]:
        """Sequence numbers of the frames to drop if the one just evaluated is kept."""
        return ()


@dataclass(frozen=True)
class Trigger(ABC):
    """A policy, or a part of one: a frozen value whose text :func:`alpose.runtime.triggers.parse` reads back.

    To add a trigger, write a frozen dataclass with :meth:`activate` and register it; ``docs/extending.md`` has an example.
    """

    writes_names: ClassVar[bool] = False
    """Write the first argument by name too."""
    is_control: ClassVar[bool] = False
    """A random sample of all frames: nothing may filter it, so it stands beside the whole policy and once."""
    replaces_frames: ClassVar[bool] = False
    """A later frame may replace an earlier one, so there may be one such trigger in a conjunction."""
    measures_distance: ClassVar[bool] = False
    """Needs the distance of every frame to what was kept."""

    @abstractmethod
    def activate(self, setting: Setting) -> ActiveTrigger:
        """This trigger at work; :class:`ConfigError` where the setting lacks what it needs."""

    @property
    def inner(self) -> tuple[Trigger, ...]:
        """The triggers that this one is built from."""
        return ()

    def walk(self) -> Iterator[Trigger]:
        """This trigger and all that it is built from."""
        yield self
        for inner in self.inner:
            yield from inner.walk()

    def __or__(self, other: Trigger) -> AnyOf:
        return AnyOf((self, other)) if isinstance(other, Trigger) else NotImplemented

    def __and__(self, other: Trigger) -> AllOf:
        return AllOf((self, other)) if isinstance(other, Trigger) else NotImplemented

    def __str__(self) -> str:
        given = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.default is MISSING and not self.writes_names:
                given.append(_text(value))
            elif value != item.default:
                given.append(f"{item.name}={_text(value)}")
        return f"{type(self).__name__}({', '.join(given)})"


TRIGGERS: dict[str, type[Trigger]] = {}
"""Every registered trigger by its name in an expression: read by the parser, the documentation and the contract tests."""

T = TypeVar("T", bound=type[Trigger])


def register(kind: T) -> T:
    """Let expressions name this trigger; a decorator. :class:`ConfigError` where another has the name already."""
    known = TRIGGERS.setdefault(kind.__name__, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ConfigError(f"there is a trigger {kind.__name__!r} already, {known.__module__}.{known.__qualname__}")
    return kind


# --- joined triggers


@dataclass(frozen=True)
class _Join(Trigger):
    parts: tuple[Trigger, ...]

    def __post_init__(self) -> None:
        kind = type(self)
        if not all(isinstance(part, Trigger) for part in self.parts):
            raise ConfigError(f"{kind.__name__} joins triggers, got {self.parts!r}")
        # (a | b) | c and a | (b | c) are one policy.
        flat = tuple(chain.from_iterable(part.parts if isinstance(part, kind) else (part,) for part in self.parts))
        if len(flat) < 2:
            raise ConfigError(f"{kind.__name__} joins at least two triggers, got {len(flat)}")
        object.__setattr__(self, "parts", flat)

    @property
    def inner(self) -> tuple[Trigger, ...]:
        """The joined triggers."""
        return self.parts


@dataclass(frozen=True)
class AnyOf(_Join):
    """Keep what any of the parts keeps: ``a | b | c``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(part.is_control for part in self.parts) > 1:
            raise ConfigError(f"a policy has one control stream, got two: {self}")

    def activate(self, setting: Setting) -> ActiveTrigger:
        """All alternatives at work."""
        return ActiveAnyOf([part.activate(setting) for part in self.parts])

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))


@dataclass(frozen=True)
class AllOf(_Join):
    """Keep what all of the parts keep: ``a & b & c``."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_control("a & b", self)
        if sum(found.replaces_frames for found in self.walk()) > 1:
            raise ConfigError(f"two Episodes under & replace what the other holds; say Episodes(a & b): {self}")

    def activate(self, setting: Setting) -> ActiveTrigger:
        """All conditions at work."""
        return _ActiveAllOf([part.activate(setting) for part in self.parts])

    def __str__(self) -> str:
        return " & ".join(f"({part})" if isinstance(part, AnyOf) else str(part) for part in self.parts)


class _ActiveJoin(ActiveTrigger):
    __slots__ = ("_parts",)
    _deciding: ClassVar[Any]

    def __init__(self, parts: list[ActiveTrigger]) -> None:
        super().__init__()
        self._parts = parts

    @property
    def episode(self) -> int | None:
        """The first that a part has."""
        return next((part.episode for part in self._parts if part.episode is not None), None)

    def forget(self, stream: str) -> None:
        """Let every part forget."""
        for part in self._parts:
            part.forget(stream)

    def state(self) -> State:
        """Those of the parts, each name behind the part's number."""
        return nest_states(self._parts)

    def restore(self, state: State, same_bundle: bool) -> None:
        """Give each part its own."""
        for number, part in enumerate(self._parts):
            part.restore(nested_state(state, number), same_bundle)

    @property
    def threshold(self) -> float | None:
        """The lowest of the parts' where any of them keeps a frame, the highest where all have to."""
        return self._deciding((part.threshold for part in self._parts if part.threshold is not None), default=None)


class ActiveAnyOf(_ActiveJoin):
    """Alternatives at work: 1 - Π(1 - p)."""

    __slots__ = ()
    _deciding = staticmethod(min)

    def evaluate(self, observation: Observation) -> None:
        """Let every part evaluate."""
        self.fires = self.triggered = False
        missed = 1.0
        for part in self._parts:
            part.evaluate(observation)
            missed *= 1.0 - part.probability
            self.fires |= part.fires
            self.triggered |= part.triggered
        self.probability = 1.0 - missed

    def reasons(self) -> tuple[Reason, ...]:
        """Those of the parts that fire; where none does, of those that were held back."""
        told = [part for part in self._parts if part.fires] or [part for part in self._parts if part.triggered]
        return tuple(chain.from_iterable(part.reasons() for part in told))

    def on_stored(self, kept: bool, replaced: int, kept_elsewhere: bool) -> None:
        """Tell each part of what it fired for itself."""
        several = sum(part.fires for part in self._parts) > 1
        for part in self._parts:
            part.on_stored(kept and part.fires, replaced, kept_elsewhere or several)

    @property
    def replaces(self) -> tuple[int, ...]:
        """What the parts that fire replace."""
        return tuple(chain.from_iterable(part.replaces for part in self._parts if part.fires))


class _ActiveAllOf(_ActiveJoin):
    """Conditions at work: Π p."""

    __slots__ = ()
    _deciding = staticmethod(max)

    def evaluate(self, observation: Observation) -> None:
        """Let every part evaluate."""
        self.fires, self.triggered, self.probability = True, False, 1.0
        for part in self._parts:
            part.evaluate(observation)
            self.probability *= part.probability
            self.fires &= part.fires
            self.triggered |= part.triggered

    def reasons(self) -> tuple[Reason, ...]:
        """Those of all parts: what does not fire is what held the others back."""
        return tuple(chain.from_iterable(part.reasons() for part in self._parts))

    def on_stored(self, kept: bool, replaced: int, kept_elsewhere: bool) -> None:
        """Tell every part the same; what one of them replaces, all lose."""
        replaced += len(self.replaces)
        for part in self._parts:
            part.on_stored(kept, replaced, kept_elsewhere)

    @property
    def replaces(self) -> tuple[int, ...]:
        """What any part replaces."""
        return tuple(chain.from_iterable(part.replaces for part in self._parts))


def nest_states(parts: Iterable[ActiveTrigger | None]) -> State:
    """The states of several triggers as one."""
    return {f"{number}.{name}": value for number, part in enumerate(parts) if part is not None
            for name, value in part.state().items()}  # fmt: skip


def nested_state(state: State, number: int) -> State:
    """The state of one trigger out of several."""
    prefix = f"{number}."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


# --- for writing triggers


def refuse_control(owner: str, trigger: Trigger) -> None:
    """Raise :class:`ConfigError` where a control stream stands inside of something that would thin it out."""
    if any(found.is_control for found in trigger.walk()):
        raise ConfigError(
            f"{owner} cannot hold Control: a control stream that something filters is not a random sample. "
            f"Put it beside the whole policy: {owner}(…) | Control(…)"
        )


def require_positive(owner: Trigger, **numbers: float | None) -> None:
    """Raise :class:`ConfigError` for what is not a finite number above 0."""
    for name, value in numbers.items():
        if not _is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
            raise ConfigError(f"{type(owner).__name__}: {name} must be a number above 0, got {value!r}")


def require_share(owner: Trigger, **numbers: float | None) -> None:
    """Raise :class:`ConfigError` for what is not a number in [0, 1]."""
    for name, value in numbers.items():
        if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
            raise ConfigError(f"{type(owner).__name__}: {name} must be a number from 0 to 1, got {value!r}")


def _is_number(value: object) -> bool:
    # Beyond 2^53 a whole number is no longer the same as a float.
    return abs(value) < 2**53 if type(value) is int else isinstance(value, float)


def _text(value: Any) -> str:
    """A value as it stands in an expression; ``repr`` of a float is the shortest text that reads back."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(float(value))
    return str(value)
