"""What stands between the app and everything behind the engine's answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .logs import RateLimitedLog
from .stats import Counters

P = ParamSpec("P")
T = TypeVar("T")


class Guard:
    """Tries things. What fails is counted (``internal_errors_total{where}``), and logged at most once a minute."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.quiet = RateLimitedLog(logging.getLogger("alpose.monitor"))

    def attempt(self, where: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """What ``work`` returns; None where it raised."""
        try:
            return work(*args, **kwargs)
        except Exception as error:
            self.trouble(where, error)
            return None

    def trouble(self, where: str, error: Exception) -> None:
        """Something failed, and the camera goes on."""
        self.counters.add("internal_errors_total", where=where)
        self.quiet.error(where, "%s failed, and the camera goes on: %r", where, error)
