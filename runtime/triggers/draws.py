"""Random numbers and the pace of the stream, for the parts that draw."""

from __future__ import annotations

import numpy as np

PAUSE_S = 10.0
"""A longer wait between two frames is a pause: nothing ran, so nothing is owed for it. A stream that is itself slower
than one frame in 10 s is recognised by its own pace."""

ASSUMED_FPS = 30.0
"""Until the first frames have shown the real rate."""

_BLOCK = 256
_SLOWEST_WEIGHT = 1 / 256


class Draws:
    """Uniform numbers in [0, 1), a stream of their own: made in blocks, because one at a time costs ten times more."""

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
        """Mean over about the last 256 observations."""
        self._weight = 1.0 if frames_per_second is None else 1 / 16
        self._last_s: float | None = None

    def step(self, time_s: float) -> float:
        """Seconds since the last observation, at most a pause long and never negative."""
        last_s, self._last_s = self._last_s, time_s
        if last_s is None:
            return 0.0
        limit_s = max(PAUSE_S, 4.0 * self.interval_s)
        passed_s = min(max(time_s - last_s, 0.0), limit_s)
        self._weight = max(self._weight / (1.0 + self._weight), _SLOWEST_WEIGHT)
        self.interval_s += (passed_s - self.interval_s) * self._weight
        return passed_s
