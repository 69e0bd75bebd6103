"""Two signs of a failure that the loss head cannot see and that cost nothing: joints that jump, impossible limbs.

A loss head looks at one frame and is blind to a pose that is confident and yet cannot be: an arm that is somewhere else
in the next frame, a shin twice as long as its twin. Both signs look only at joints that the model is sure of; where it
is unsure, the failure probability already says so.

Each object belongs to one stream, a camera or a person. A pose is a dozen points: with plain floats it takes less than
half of the time that numpy takes to get started.

Coordinates are frame pixels. Shapes: J joints, L links of the skeleton.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .skeleton import Skeleton

CONFIDENT = 0.5
"""Heatmap peak, as a share of its training peak, from which a joint counts as seen."""

GAP_S = 0.5
"""After a longer wait a person may be anywhere: the jump is unknown. So it always is below two frames a second."""

LEARN_EVERY_S = 0.5
"""Limbs are learnt from frames this far apart: neighbours are one pose, and would make the spread look too small."""
WARM_UP = 120
"""Poses that a limb must have been seen in before it is judged: a minute at least."""
REMEMBERED = 10_000
"""Poses after which an old one counts only 1/e: about an hour and a half of a person in view."""
LEAST_SPREAD = 0.08
"""Of a limb's log length, however still the person sat: joints are not found more precisely than this."""
SURPRISE = 3.0
"""A limb is learnt from as if it were at most this many standard deviations off, so that failures teach little."""
SHORTEST = 0.02
"""Of the pose's scale: a limb seen end on has no length, and its logarithm would be anything."""
LEAST_LIMBS = 3
"""In view; the median of fewer is no scale."""


class Signals:
    """Both signs of one stream."""

    def __init__(self, skeleton: Skeleton, confident: float = CONFIDENT) -> None:
        self._jumps, self._limbs = Jumps(confident), Limbs(skeleton, confident)

    def __call__(
        self,
        keypoints_J2: npt.NDArray[np.float32],
        scores_J: npt.NDArray[np.float32],
        side_px: float,
        time_s: float,
    ) -> tuple[float, float]:
        """Jump and limbs of one frame, nan where unknown; see :class:`Jumps` and :class:`Limbs`."""
        points, scores = keypoints_J2.tolist(), scores_J.tolist()
        return self._jumps.measure(points, scores, side_px, time_s), self._limbs.measure(points, scores, time_s)


class Jumps:
    """How far joints moved since the last frame, in sides of the person's box."""

    def __init__(self, confident: float = CONFIDENT) -> None:
        self._confident = confident
        self._points: list[list[float]] = []
        self._scores: list[float] = []
        self._last_s = -math.inf
        self._interval_s = 0.0
        """Mean time between frames; 0 until there were two."""

    def measure(self, points: list[list[float]], scores: list[float], side_px: float, time_s: float) -> float:
        """The farthest way of a joint that is confident in this frame and the last, per frame interval.

        Where frames were missed in between, the way is divided by how many intervals passed. nan where it is unknown:
        for the first frame, after :data:`GAP_S`, and where no joint is confident in both frames.

        Args:
            points: x, y of J joints in frame pixels.
            scores: J heatmap peaks over their training peak.
            side_px: longer side of the person's box.
            time_s: monotonic seconds.
        """
        passed_s = time_s - self._last_s
        farthest = -1.0
        if 0.0 < passed_s <= GAP_S:
            sure = self._confident
            for now, was, score, score_was in zip(points, self._points, scores, self._scores, strict=True):
                if score >= sure and score_was >= sure:
                    x, y = now[0] - was[0], now[1] - was[1]
                    farthest = max(farthest, x * x + y * y)  # a nan loses every comparison
            first = self._interval_s == 0.0
            self._interval_s = passed_s if first else self._interval_s + (passed_s - self._interval_s) / 16
        self._points, self._scores, self._last_s = points, scores, time_s
        if farthest < 0.0 or not side_px > 0.0:
            return math.nan
        return math.sqrt(farthest) / side_px / max(1, round(passed_s / self._interval_s))


@dataclass(slots=True)
class _Limb:
    """One link: its joints, and what is known of its log length over the pose's scale."""

    a: int
    b: int
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0


class Limbs:
    """How improbable the limbs of a pose are, beside those that were seen in this stream before.

    A limb's length is taken relative to the median of all limbs in view, so that distance does not matter, and in
    logarithms, so that half and double are equally far. Mean and spread per limb are learnt from confident joints.
    """

    def __init__(self, skeleton: Skeleton, confident: float = CONFIDENT) -> None:
        self._confident = confident
        self._limbs = [_Limb(a, b) for a, b in skeleton.links]
        self._learnt_s = -math.inf

    def measure(self, points: list[list[float]], scores: list[float], time_s: float) -> float:
        """The largest deviation of a limb from its mean, in standard deviations, judged before it is learnt from.

        nan while unknown: until :data:`WARM_UP` poses, and where fewer than :data:`LEAST_LIMBS` limbs are in view.

        Args:
            points: x, y of J joints in frame pixels.
            scores: J heatmap peaks over their training peak.
            time_s: monotonic seconds.
        """
        sure = self._confident
        seen = []
        for limb in self._limbs:
            if scores[limb.a] >= sure and scores[limb.b] >= sure:
                (ax, ay), (bx, by) = points[limb.a], points[limb.b]
                length = math.hypot(bx - ax, by - ay)
                if length < math.inf:  # neither nan nor infinite
                    seen.append((length, limb))
        if len(seen) < LEAST_LIMBS:
            return math.nan
        scale = sorted(length for length, _ in seen)[len(seen) // 2]
        if scale <= 0.0:
            return math.nan
        learn = not 0.0 <= time_s - self._learnt_s < LEARN_EVERY_S
        if learn:
            self._learnt_s = time_s
        worst = -1.0
        for length, limb in seen:
            away = math.log(max(length / scale, SHORTEST)) - limb.mean
            if limb.count >= WARM_UP:
                spread = max(math.sqrt(limb.variance), LEAST_SPREAD)
                worst = max(worst, abs(away) / spread)
                away = min(max(away, -SURPRISE * spread), SURPRISE * spread)
            if learn:
                _learn(limb, away)
        return worst if worst >= 0.0 else math.nan


def _learn(limb: _Limb, away: float) -> None:
    """Welford's update, its weight falling to 1 / REMEMBERED and no further."""
    limb.count += 1
    weight = 1.0 / min(limb.count, REMEMBERED)
    limb.mean += weight * away
    limb.variance = (1.0 - weight) * (limb.variance + weight * away * away)
