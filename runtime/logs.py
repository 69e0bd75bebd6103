"""Logging that cannot flood: the first of a kind at once, then one line a minute with the number of the others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import AlposeError

if TYPE_CHECKING:
    from .telemetry.counters import Counters

EVERY_S = 60.0
MOST_KEYS = 256
"""Kinds that are told apart; further ones share one line."""


@dataclass(slots=True)
class _Kind:
    said_s: float
    unsaid: int = 0
    level: int = logging.WARNING
    message: str = ""


class RateLimitedLog:
    """A logger that says each kind of thing at once, and then at most once a minute with a count.

    ::

        log = RateLimitedLog(logging.getLogger("alpose.monitor"))
        log.warning("disk_full", "the queue cannot be written: %s", error)

    Args:
        logger: where lines go.
        every_s: between two lines of one kind.
        clock: monotonic seconds.
    """

    def __init__(
        self, logger: logging.Logger, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.RLock()  # a signal's handler may come in between
        self._kinds: dict[str, _Kind] = {}

    def warning(self, kind: str, message: str, *args: object) -> None:
        """Something was dropped, skipped or replaced, and work goes on."""
        self.log(logging.WARNING, kind, message, *args)

    def error(self, kind: str, message: str, *args: object) -> None:
        """Something is broken, and work goes on."""
        self.log(logging.ERROR, kind, message, *args)

    def log(self, level: int, kind: str, message: str, *args: object) -> None:
        """Say it, or count it until the minute is over. ``kind`` is a fixed word; what varies belongs into ``args``."""
        now_s = self._clock()
        with self._lock:
            known = self._kinds.get(kind)
            if known is None and len(self._kinds) >= MOST_KEYS:
                kind, known = "", self._kinds.get("")
            if known is None:
                self._kinds[kind] = _Kind(now_s)
                more = ""
            elif now_s - known.said_s < self._every_s:
                known.unsaid, known.level, known.message = known.unsaid + 1, level, _filled(message, args)
                return
            else:
                more = _more(known, now_s)
                known.said_s, known.unsaid = now_s, 0
        # Outside the lock: a handler may be slow.
        self._logger.log(level, "%s%s", _filled(message, args), more)

    def flush(self, *, everything: bool = False) -> None:
        """Say what has been counted and is due; with ``everything``, at the end, also what is not due yet."""
        now_s = self._clock()
        with self._lock:
            due = [
                (known.level, known.message, _more(known, now_s), known)
                for known in self._kinds.values()
                if known.unsaid and (everything or now_s - known.said_s >= self._every_s)
            ]
            for _, _, _, known in due:
                known.said_s, known.unsaid = now_s, 0
        for level, message, more, _ in due:
            self._logger.log(level, "%s%s", message, more)


def _filled(message: str, args: tuple[object, ...]) -> str:
    # A message that does not fit its arguments must not stop the work that it reports on.
    try:
        return message % args if args else message
    except (TypeError, ValueError):
        return f"{message} {args}"


def _more(known: _Kind, now_s: float) -> str:
    return f" ({known.unsaid} more in {now_s - known.said_s:.0f} s)" if known.unsaid else ""


class FaultIsolation:
    """Counts faults (``internal_errors_total{where}``) and logs each kind at most once a minute: the camera goes on."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.limited = RateLimitedLog(logging.getLogger("alpose.monitor"))

    def report(self, where: str, error: Exception) -> None:
        """Something failed, and the camera goes on."""
        self._counters.add("internal_errors_total", where=where)
        said = str(error) if isinstance(error, AlposeError) else repr(error)  # ours are whole sentences
        self.say(where, f"{where} failed, and the camera goes on: {said}")

    def say(self, kind: str, message: str) -> None:
        """Log at most once a minute for each kind."""
        self.limited.error(kind, "%s", message)
