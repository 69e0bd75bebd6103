"""What a trigger sees, what it answers, and what a trigger is.

A :class:`Trigger` is a policy: a value, printable, comparable, sent to a device as text. ``start`` puts it to work on
one device and gives a :class:`Decider`, which holds all state. Policies are built from parts with ``|`` and ``&``; at
work each part is a :class:`Part`.

**Inclusion probability.** A frame is kept by what is certain (a threshold is exceeded) or by a draw (the control
stream; ties at a budget's threshold). ``Decision.inclusion_probability`` is P(keep | everything before this frame's own
draws). Every part draws for itself, so they multiply: ``&`` gives Π p, ``|`` gives 1 - Π(1 - p). That number is exact,
hence Σ y / p over the frames that are kept, each as it comes, is an unbiased estimate of Σ y over all frames with p > 0:
all there are, beside a control stream. What an episode replaces later leaves that set (see ``Decision.demotes``).

**The control stream stands aside.** It may only be an alternative of the whole policy (``… | Control(0.001)``), and no
other part ever learns what it drew: two devices that differ in their control draws alone flag the same frames.

Shapes: D dimensions of the embedding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ..bundle.manifest import CalibrationFacts
from ..errors import ConfigError
from .memory import Memory

if TYPE_CHECKING:
    from .compose import AllOf, AnyOf


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Observation:
    """One person on one frame: all that a trigger may look at."""

    time_s: float
    """Monotonic seconds; a step backwards counts as none."""
    failure_probability: float
    """0 to 1; what is no number is never flagged, whatever else speaks for it: the answer was unsound, or a search found
    nobody whose pose could be wrong."""
    predicted_loss: float
    embedding_D: npt.NDArray[np.float32]
    """Unit length."""
    jump: float = math.nan
    """:class:`alpose.runtime.signals.Jumps`; nan where unknown."""
    limbs: float = math.nan
    """:class:`alpose.runtime.signals.Limbs`; nan where unknown."""
    stream: str = ""
    """Camera or person: state that belongs to one of them is kept by this key."""
    distance: float = math.nan
    """Given in a replay only: the distance to what had been kept, as it was measured on the device."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One part's comparison. Parts fire at ``value >= limit``; only the control stream fires below its rate."""

    trigger: str
    value: float
    limit: float

    def __str__(self) -> str:
        """``budget 0.83 >= 0.71``, ``control 0.00032 < 0.001``; nan never reaches a limit."""
        return f"{self.trigger} {self.value:.4g} {'>=' if self.value >= self.limit else '<'} {self.limit:.4g}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to keep the frame, why, and how probable that was."""

    keep: bool
    inclusion_probability: float
    """Of ``keep``, given the history before this frame's own draws."""
    flagged: bool
    """Kept by something other than the control stream."""
    reasons: tuple[Reason, ...] = ()
    """Of what fired. On a frame that is not kept: what fired, and what held it back."""
    threshold: float | None = None
    """On the failure probability, as it was in force; None where the policy has none."""
    control_draw: float | None = None
    """Uniform in [0, 1); given where the frame is in the control stream, flagged or not."""
    novelty: float = 1.0
    """Cosine distance (0 to 2) to what was kept before; 1 where it was not measured."""
    episode: int | None = None
    """Running number of the continuous failure that the frame belongs to."""
    supersedes: tuple[int, ...] = ()
    """Sequence numbers of frames kept before that this one replaces: drop them if this one is stored."""
    demotes: tuple[int, ...] = ()
    """Like ``supersedes``, but in the control stream too: they stay, and from now on count like control frames that are
    not flagged, with the ``control_rate`` of their decision. A queue's record does not change: ``QUEUE.md``."""
    control_rate: float = 0.0
    """Of the control stream on this frame; 0 without one."""
    distance: float = math.nan
    """For the score log: like ``novelty``, but nan where unknown, and known of all frames or, without ``Novel``, of
    none. Known of kept frames alone it would mislead a replay."""


class Decider(Protocol):
    """A policy at work on one device. Not thread-safe: one caller, in the order of the frames."""

    def decide(self, seen: Observation) -> Decision:
        """Decide on one observation. They are numbered 0, 1, 2 … as they come."""
        ...

    def settle(self, kept: bool) -> None:
        """Say what became of the last decision. Without it, the frame counts as not kept."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a policy is put to work."""

    calibration: CalibrationFacts | None
    """Of the bundle; None for a bundle that was exported without."""
    rng: np.random.Generator
    """Every part that draws takes a generator of its own from it."""
    frames_per_second: float | None = None
    """Observations per second to expect at first; measured from then on."""
    memory: Memory = field(default_factory=Memory, repr=False)
    """Embeddings of what was flagged and kept, shared by all parts of one policy; ``start`` makes it anew."""


class Part(ABC):
    """One trigger at work. ``judge`` leaves its finding in the attributes, which hold until the next frame.

    Every part judges every frame, whatever its neighbours say: that keeps draws independent and state reproducible.
    """

    __slots__ = ("fires", "probability", "stirred")

    fires: bool
    """This part would keep the frame."""
    probability: float
    """Of ``fires``, given the history before this frame's own draws."""
    stirred: bool
    """Something in here found something, whether or not it was then held back: worth a reason."""

    def __init__(self) -> None:
        self.fires, self.probability, self.stirred = False, 0.0, False

    def certain(self, fires: bool) -> None:
        """Record a finding that no draw had a share in."""
        self.fires = self.stirred = fires
        self.probability = 1.0 if fires else 0.0

    @abstractmethod
    def judge(self, seen: Observation) -> None:
        """Look at one frame: set :attr:`fires`, :attr:`probability` and :attr:`stirred`."""

    @abstractmethod
    def reasons(self) -> tuple[Reason, ...]:
        """Why, for the frame just judged; asked only where something is :attr:`stirred`."""

    def settle(self, kept: bool, replaced: int, held: bool) -> None:  # noqa: B027 - most parts have nothing to learn
        """Learn what became of the frame just judged.

        Args:
            kept: the branch of the policy that this part stands in fired, and the frame was really kept.
            replaced: how many frames that this branch kept before are dropped for it.
            held: another branch keeps the frame too, so this branch alone cannot let it go later.
        """

    @property
    def threshold(self) -> float | None:
        """On the failure probability, as it was in force for the frame just judged."""
        return None

    @property
    def episode(self) -> int | None:
        """Number of the episode that the frame just judged belongs to."""
        return None

    @property
    def replaces(self) -> tuple[int, ...]:
        """Sequence numbers of the frames to be dropped if the one just judged is kept."""
        return ()


@dataclass(frozen=True)
class Trigger(ABC):
    """A policy: a frozen value. ``a | b`` keeps what either keeps, ``a & b`` what both do.

    ``str(trigger)`` is the expression that :func:`alpose.runtime.triggers.parse` reads back. To add a trigger, write a
    frozen dataclass with :meth:`part`.
    """

    named: ClassVar[bool] = False
    """Write the first argument by name too."""

    def start(self, setting: Setting) -> Decider:
        """Put the policy to work; :class:`ConfigError` where the setting lacks what it needs."""
        from .policy import Policy  # policy.py builds on this file

        return Policy(self, setting)

    @abstractmethod
    def part(self, setting: Setting) -> Part:
        """This trigger at work."""

    @property
    def inner(self) -> tuple[Trigger, ...]:
        """The triggers that this one is built from."""
        return ()

    def __or__(self, other: Trigger) -> AnyOf:
        from .compose import AnyOf

        return AnyOf((self, other)) if isinstance(other, Trigger) else NotImplemented

    def __and__(self, other: Trigger) -> AllOf:
        from .compose import AllOf

        return AllOf((self, other)) if isinstance(other, Trigger) else NotImplemented

    def __str__(self) -> str:
        given = []
        for item in fields(self):
            value = getattr(self, item.name)
            if item.default is MISSING and not self.named:
                given.append(written(value))
            elif value != item.default:
                given.append(f"{item.name}={written(value)}")
        return f"{type(self).__name__}({', '.join(given)})"


def everything_in(trigger: Trigger) -> tuple[Trigger, ...]:
    """A trigger and all that it is built from."""
    return (trigger, *(found for inner in trigger.inner for found in everything_in(inner)))


def written(value: Any) -> str:
    """A value as it stands in an expression; ``repr`` of a float is the shortest text that reads back."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(float(value))
    return str(value)


def positive(owner: Trigger, **numbers: float | None) -> None:
    """Refuse what is not a finite number above 0."""
    for name, value in numbers.items():
        if not _is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
            raise ConfigError(f"{type(owner).__name__}: {name} must be a number above 0, got {value!r}")


def share(owner: Trigger, **numbers: float | None) -> None:
    """Refuse what is not a number in [0, 1]."""
    for name, value in numbers.items():
        if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
            raise ConfigError(f"{type(owner).__name__}: {name} must be a number from 0 to 1, got {value!r}")


def _is_number(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**53  # beyond, it is no longer the same number as a float
    return isinstance(value, float)
