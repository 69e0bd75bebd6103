"""Triggers with a rate: ``Budget``, the most doubtful frames, so many an hour; ``Control``, frames drawn at random.

A budget's account earns ``per_hour / 3600`` a second while frames come, up to a cap of one hour's worth, and pays 1 for
every frame that was really kept. A frame is flagged if its score is in the top share ``q`` of what was seen lately and
the account holds a whole frame, where

    q = (wanted frames per frame) · (flagged per kept) · (x / (1 - x))²,     x = account / cap.

* Half full asks for exactly the wanted rate. A full account lowers the threshold to nothing, so no income is ever lost;
  an empty one flags nothing. Hence after t hours ``kept = per_hour · t ± cap / 2``, whatever the scores do: no gain has
  to be tuned, and the estimates only have to be roughly right for the *best* frames to be taken.
* It starts about half full, and a camera that was parked all night finds at most the cap.
* *Flagged per kept* is how many of its frames it takes until one is kept, where Episodes, Cooldown or Novel hold most
  of them back. Without it the account would have to run nearly full to ask for enough, and take what comes.

"Seen lately" is a histogram of the failure probability. It begins with the bundle's calibration set, which counts until
the stream itself has been seen for :data:`PRIOR_S`: a calibration set that is harder than the field would else hold the
threshold above all of it. Like the counts of flagged and kept it forgets half in :data:`HALF_LIFE_S`, and survives a
restart: drives are short. Where many frames share the bin at the threshold (a calibrated
score has plateaus) a draw takes the right part of them, and the decision says with which probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..bundle.manifest import HISTOGRAM_BINS
from ..errors import ConfigError
from .base import ActiveTrigger, Observation, Reason, Setting, State, Trigger, register, require_positive, require_share

BINS = 64 * HISTOGRAM_BINS
"""Bins of the failure probability: steps of 0.00024, far finer than any calibration set can tell apart."""

HALF_LIFE_S = 3600.0
PRIOR_S = 30.0
"""How many seconds of frames the calibration histogram counts for at the start, and how long it counts at all."""
PRIOR_FRAMES = 4.0
"""Frames flagged and kept that are assumed to have been before the start."""

START = 0.52
"""Share of the cap that an account holds at first: there it settles, as each drive spends a while finding its threshold."""
STIFFNESS = 2
"""How firmly the account is held there. At 1, ten drives of ten minutes keep 17 to 22 frames an hour of 20; at 2, 18 to 22,
and the failure probability of what a day keeps is a twentieth lower."""
MIN_CAP = 4.0
"""Frames that the account can hold where an hour's worth is less."""

_FORGET_PER_S = math.log(2.0) / HALF_LIFE_S
_LEAST_KEPT = 0.5
_RENEW_AT = 2.0**24

PAUSE_S = 10.0
"""A longer wait between two frames is a pause: nothing ran, so nothing is owed for it. A stream that is itself slower
than one frame in 10 s is recognised by its own pace."""

ASSUMED_FPS = 30.0
"""The frame rate until the first frames have shown the real one."""

_BLOCK = 256
_SLOWEST_WEIGHT = 1 / 256


class Draws:
    """An independent stream of uniform numbers in [0, 1), made in blocks: one at a time costs ten times more."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = np.random.default_rng(int(rng.integers(1 << 63)))
        self._block: list[float] = []

    def next(self) -> float:
        """The next number."""
        if not self._block:
            self._block = self._rng.random(_BLOCK).tolist()
        return self._block.pop()


class Pace:
    """The mean time between observations, whatever number of streams they come from."""

    def __init__(self, frames_per_second: float | None) -> None:
        self.interval_s = 1.0 / (frames_per_second or ASSUMED_FPS)
        """The mean over about the last 256 observations."""
        self._weight = self._gap_weight = 1.0 if frames_per_second is None else 1 / 16
        self._gap_s = self.interval_s
        """The mean between two times: several people on one frame are seen at one."""
        self._last_s: float | None = None

    def restore(self, interval_s: float) -> None:
        """Go on from an earlier :attr:`interval_s`."""
        if interval_s > 0.0:
            self.interval_s = self._gap_s = interval_s
            self._weight = self._gap_weight = 1 / 16

    def step(self, time_s: float) -> float:
        """Seconds since the last observation, at most a pause long and never negative."""
        last_s, self._last_s = self._last_s, time_s
        if last_s is None:
            return 0.0
        limit_s = max(PAUSE_S, 4.0 * self._gap_s)
        passed_s = min(max(time_s - last_s, 0.0), limit_s)
        if passed_s:
            self._gap_weight = max(self._gap_weight / (1.0 + self._gap_weight), _SLOWEST_WEIGHT)
            self._gap_s += (passed_s - self._gap_s) * self._gap_weight
        self._weight = max(self._weight / (1.0 + self._weight), _SLOWEST_WEIGHT)
        self.interval_s += (passed_s - self.interval_s) * self._weight
        return passed_s


@register
@dataclass(frozen=True)
class Budget(Trigger):
    """Flag the frames most likely to be failures, ``per_hour`` of them in an hour of running, whatever the scores do.

    It counts what was really kept: what a Cooldown, Novel or Episodes around it holds back costs nothing, and a frame
    that Episodes replaces is paid back. Frames of the control stream and of other branches are not counted. At most
    one hour's worth (at least 4) come at once.
    """

    per_hour: float
    writes_names = True

    def __post_init__(self) -> None:
        require_positive(self, per_hour=self.per_hour)

    def activate(self, setting: Setting) -> ActiveTrigger:
        """Open an account and a histogram."""
        return _ActiveBudget(self.per_hour, setting)


class Scores:
    """A histogram of scores that forgets, and the bin at which its upper tail holds a given share.

    Time is forgotten by letting the weight of new frames grow. The tail above the bin is carried along, because the bin
    moves little from frame to frame and the histogram is long.
    """

    __slots__ = ("_mass", "_seen_s", "_stream", "_tail", "_total", "_weight", "bin")

    def __init__(self, histogram: tuple[int, ...] | None) -> None:
        prior = histogram if histogram and sum(histogram) else (1,) * HISTOGRAM_BINS
        fine = BINS // len(prior)
        scale = PRIOR_S / (sum(prior) * fine)
        self._mass = [count * scale for count in prior for _ in range(fine)]
        self._stream: list[float] | None = [0.0] * BINS
        """The stream alone, while the prior counts too."""
        self._seen_s = 0.0
        self._weight = 1.0
        self._total, self._tail = math.fsum(self._mass), 0.0
        self.bin = BINS - 1

    def state(self) -> npt.NDArray[np.float32]:
        """Seconds of the stream in each bin; empty while the prior counts too."""
        if self._stream is not None:
            return np.empty(0, dtype=np.float32)
        return (np.array(self._mass) / self._weight).astype(np.float32)

    def restore(self, mass: npt.NDArray[np.float32]) -> None:
        """Go on from an earlier :meth:`state`."""
        if len(mass) == BINS and np.isfinite(mass).all() and (mass >= 0).all() and mass.any():
            self._mass, self._stream, self._weight = mass.astype(np.float64).tolist(), None, 1.0
            self._sum_up()

    def find(self, share: float) -> float:
        """Move :attr:`bin` to where the top ``share`` ends; the part of that bin which belongs to it, 0 to 1."""
        mass, wanted, at, tail = self._mass, share * self._total, self.bin, self._tail
        while tail > wanted and at < BINS - 1:
            at += 1
            tail -= mass[at]
        while tail + mass[at] < wanted and at > 0:
            tail += mass[at]
            at -= 1
        self.bin, self._tail = at, tail
        return min(max((wanted - tail) / mass[at], 0.0), 1.0) if mass[at] > 0.0 else 1.0

    def add(self, place: int, seconds: float, passed_s: float) -> None:
        """Count a frame that stands for ``seconds``, ``passed_s`` after the last one."""
        self._weight *= 1.0 + _FORGET_PER_S * passed_s
        mass = self._weight * seconds
        self._mass[place] += mass
        self._total += mass
        if place > self.bin:
            self._tail += mass
        if self._stream is not None:
            self._stream[place] += mass
            self._seen_s += seconds
            if self._seen_s >= PRIOR_S:
                self._mass, self._stream = self._stream, None
                self._sum_up()
        if self._weight > _RENEW_AT:
            self._mass = [mass / self._weight for mass in self._mass]
            self._weight = 1.0
            self._sum_up()

    def _sum_up(self) -> None:
        self._total, self._tail = math.fsum(self._mass), math.fsum(self._mass[self.bin + 1 :])


class _ActiveBudget(ActiveTrigger):
    """A budget at work: the account and the histogram."""

    __slots__ = ("_account", "_cap", "_draws", "_flagged", "_kept", "_pace", "_per_s", "_score", "_scores")

    def __init__(self, per_hour: float, setting: Setting) -> None:
        super().__init__()
        self._per_s = per_hour / 3600.0
        self._cap = max(float(per_hour), MIN_CAP)
        self._account = self._cap * START
        self._flagged = self._kept = PRIOR_FRAMES
        self._pace = Pace(setting.frames_per_second)
        self._draws = Draws(setting.rng)
        self._scores = Scores(setting.calibration.histogram if setting.calibration else None)
        self._score = math.nan

    def evaluate(self, observation: Observation) -> None:
        passed_s = self._pace.step(observation.time_s)
        self._earn(passed_s)
        score = self._score = observation.failure_probability
        if score != score:
            self.set_certain(False)
            return
        scores, share = self._scores, self._share()
        place = min(max(int(score * BINS), 0), BINS - 1)
        if share >= 1.0:
            probability = 1.0
        else:
            at_threshold = scores.find(share)
            probability = 1.0 if place > scores.bin else at_threshold if place == scores.bin else 0.0
        scores.add(place, self._pace.interval_s, passed_s)
        found = probability == 1.0 or (probability > 0.0 and self._draws.next() < probability)
        can_pay = self._account >= 1.0
        self.triggered, self.fires = found, found and can_pay
        self.probability = probability if can_pay else 0.0
        self._flagged += self.fires

    def reasons(self) -> tuple[Reason, ...]:
        if self._account < 1.0:
            return (Reason("budget spent", self._account, 1.0),)
        # At a tie that the draw decided against, the limit is the next bin.
        return (Reason("budget", self._score, (self._scores.bin + (not self.fires)) / BINS),)

    def on_stored(self, kept: bool, replaced: int, kept_elsewhere: bool) -> None:
        if kept:
            self._account = min(self._account - 1.0 + replaced, self._cap)
            self._kept = max(self._kept + 1.0 - replaced, _LEAST_KEPT)

    def state(self) -> State:
        numbers = (self._account, self._flagged, self._kept, self._pace.interval_s)
        return {"numbers": np.array(numbers, dtype=np.float32), "scores": self._scores.state()}

    def restore(self, state: State, same_bundle: bool) -> None:
        numbers = state.get("numbers", np.empty(0)).tolist()
        if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
            return
        self._account = min(max(numbers[0], 0.0), self._cap)
        self._pace.restore(numbers[3])
        if same_bundle:
            self._flagged, self._kept = max(numbers[1], 0.0), max(numbers[2], _LEAST_KEPT)
            self._scores.restore(state.get("scores", np.empty(0, dtype=np.float32)))

    @property
    def threshold(self) -> float | None:
        """The lower edge of the bin; while the account is full, the one last in force."""
        return self._scores.bin / BINS

    def _earn(self, passed_s: float) -> None:
        self._account = min(self._account + self._per_s * passed_s, self._cap)
        forget = max(1.0 - _FORGET_PER_S * passed_s, 0.0)
        self._flagged *= forget
        self._kept = max(self._kept * forget, _LEAST_KEPT)

    def _share(self) -> float:
        """The share of all frames to flag: q."""
        room = self._cap - self._account
        if room <= 0.0:
            return math.inf
        wanted = self._per_s * self._pace.interval_s
        return wanted * max(self._flagged / self._kept, 1.0) * (self._account / room) ** STIFFNESS


@register
@dataclass(frozen=True)
class Control(Trigger):
    """Keep frames at random, whatever they show: every frame with probability ``rate``, or ``per_hour`` on average.

    Every frame takes part, flagged or not, so that the stream is a random sample of *all* frames. It stands beside the
    rest of a policy, ``… | Control(per_hour=2)``, and what it draws changes nothing there.

    With ``per_hour`` the rate follows the measured frame rate; each decision carries the one that was in force.
    """

    rate: float | None = None
    per_hour: float | None = None
    is_control = True

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.per_hour is None):
            raise ConfigError(f"Control takes either rate or per_hour, got rate={self.rate}, per_hour={self.per_hour}")
        if self.rate is not None:
            require_share(self, rate=self.rate)
        else:
            require_positive(self, per_hour=self.per_hour)

    def activate(self, setting: Setting) -> ActiveControl:
        """Draw; a :class:`~alpose.runtime.triggers.policy.Policy` keeps it apart from all other triggers."""
        return ActiveControl(self, setting)


class ActiveControl(ActiveTrigger):
    """The control stream at work."""

    __slots__ = ("_draws", "_pace", "_per_s", "draw")

    def __init__(self, trigger: Control, setting: Setting) -> None:
        super().__init__()
        self._draws = Draws(setting.rng)
        self._pace = Pace(setting.frames_per_second)
        self._per_s = None if trigger.per_hour is None else trigger.per_hour / 3600.0
        self.probability = trigger.rate or 0.0
        self.draw = 0.0

    def evaluate(self, observation: Observation) -> None:
        """Draw."""
        if self._per_s is not None:
            self._pace.step(observation.time_s)
            self.probability = min(1.0, self._per_s * self._pace.interval_s)
        self.draw = self._draws.next()
        self.fires = self.draw < self.probability

    def state(self) -> State:
        """The pace of the stream."""
        return {"interval_s": np.array([self._pace.interval_s], dtype=np.float32)}

    def restore(self, state: State, same_bundle: bool) -> None:
        """Go on with that pace."""
        for interval_s in state.get("interval_s", np.empty(0)).tolist():
            self._pace.restore(interval_s)

    def reasons(self) -> tuple[Reason, ...]:
        """The draw and the rate."""
        return (Reason("control", self.draw, self.probability),)
