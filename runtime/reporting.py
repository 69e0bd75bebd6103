"""What a Monitor tells of itself without its camera's thread: metrics, and the queue's numbers.

The queue's numbers are read on a thread of its own, because whoever asks a database may wait for a disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from .counters import Count, Counters
from .engines.auto import Opened
from .keeper import Keeper
from .metrics import serve, write_textfile
from .quiet import RateLimited
from .stats import EngineState, QueueState, Stats

METRICS_EVERY_S = 15.0
"""Between two metrics files; node_exporter is asked every 15 to 60 seconds."""

FRESH_S = 1.0
"""So old the queue's numbers may be before they are read again."""

END_S = 5.0
"""So long a thread is waited for at the end: it may hang on a disk, and then the process ends without it."""

log = logging.getLogger("alpose.monitor")


class QueueNumbers:
    """The queue's numbers, at most a little old; asking for them never waits.

    Args:
        keeper: whose queue.
        trouble: told of what went wrong while reading.
    """

    def __init__(self, keeper: Keeper, trouble: Callable[[str, Exception], None]) -> None:
        self._keeper, self._trouble = keeper, trouble
        self._facts = keeper.queue.info()
        self._read_s = time.monotonic()
        self._wanted = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None

    def state(self) -> QueueState:
        """What is known; where it is old, it is read again in the background for the next time."""
        if time.monotonic() - self._read_s > FRESH_S and not self._ending:
            self._ask()
        facts, recorder = self._facts, self._keeper.recorder.state
        return QueueState(
            path=facts.path,
            records=facts.records,
            bytes=facts.bytes,
            max_bytes=facts.max_bytes,
            oldest_s=None if facts.oldest_ns is None else facts.oldest_ns / 1e9,
            waiting=recorder.waiting,
            last_error=recorder.last_error if recorder.obstacle else None,
        )

    def counts(self) -> dict[Count, int]:
        """The counters that live in the file."""
        return {
            Count(name, (("reason", reason),) if reason else ()): n
            for (name, reason), n in self._facts.counters.items()
        }

    def refresh(self) -> None:
        """Read them now, and wait for it."""
        try:
            self._facts = self._keeper.queue.info()
        except Exception as error:  # a disk may fail in any way
            self._trouble("queue_facts", error)
        self._read_s = time.monotonic()

    def close(self) -> None:
        """Read a last time, before the queue is closed; these numbers stay."""
        self._ending = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join(END_S)
        self.refresh()

    def _ask(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="alpose-queue-numbers", daemon=True)
            self._thread.start()
        self._wanted.set()

    def _run(self) -> None:
        while self._wanted.wait() and not self._ending:
            self._wanted.clear()
            self.refresh()


class Metrics:
    """Prometheus metrics of a Monitor, over HTTP and as a file, until they are closed.

    Args:
        stats: ``monitor.stats``.
        port: of the loopback; None serves none.
        file: written at once, then every :data:`METRICS_EVERY_S`, and at the end; None writes none.
        counters: where a file that cannot be written is counted.

    Raises:
        ConfigError: the port is taken, or the file cannot be written.
        MissingExtraError: prometheus-client is not installed.
    """

    def __init__(
        self, stats: Callable[[], Stats], port: int | None, file: str | Path | None, counters: Counters
    ) -> None:
        self._stats, self._file, self._counters = stats, file, counters
        self._quiet = RateLimited(log)
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        with ExitStack() as made:
            self._server = None if port is None else serve(stats, port)
            if self._server is not None:
                made.callback(self._server.close)
            if file is not None:
                write_textfile(stats(), file)
                self._thread = threading.Thread(target=self._run, name="alpose-metrics", daemon=True)
                self._thread.start()
            made.pop_all()

    @property
    def url(self) -> str | None:
        """Where they are served; None where they are not."""
        return self._server.url if self._server else None

    def close(self) -> None:
        """Write the file a last time, and free the port."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(END_S)
        if self._server is not None:
            self._server.close()

    def _run(self) -> None:
        while not self._ending.wait(METRICS_EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        assert self._file is not None
        try:
            write_textfile(self._stats(), self._file)
        except Exception as error:  # the camera goes on without metrics
            self._counters.add("internal_errors_total", where="metrics")
            self._quiet.error("metrics", "metrics could not be written: %s", error)


def engine_state(opened: Opened, asked: str) -> EngineState:
    """The engine for :class:`Stats`; of several golden reports the worst deviations."""
    deviation: dict[str, float] = {}
    for report in opened.golden:
        for output, value in EngineState.deviations(report).items():
            deviation[output] = max(value, deviation.get(output, 0.0))
    name = str(getattr(opened.engine, "name", type(opened.engine).__name__))
    return EngineState(
        name=name,
        provider=str(getattr(opened.engine, "provider", name)),
        asked=asked,
        fallback=bool(opened.fallbacks),
        golden_deviation=deviation,
    )
