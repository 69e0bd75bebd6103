"""A monitor's stats for Prometheus: over HTTP, or as a text file for node_exporter. ``docs/metrics.md`` lists them.

Names follow Prometheus' own rules: base units, the unit as suffix, ``_total`` on counters, ``_info`` on what is only
labels, and labels whose values are few. Every scrape reads one fresh :class:`Stats`; nothing is kept in between.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

from .drift import Direction
from .errors import ConfigError, MissingExtraError
from .logs import RateLimitedLog
from .stats import Counters, LatencyInfo, Stats

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

PREFIX = "alpose_"

LATENCY_BOUNDS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Of the latency histograms, 100 µs to 1 s: edges of our own bins, so that nothing is interpolated."""

SCORE_BINS = 16
"""Of the histogram of failure probabilities; our own 64 would be many series for little."""

COUNTERS = {
    "frames_total": "Frames by what was decided: flagged, control (kept by chance alone), passed.",
    "source_faults_total": "Frames that the source lost before the monitor saw them, and cameras opened again, by what.",
    "unoccupied_frames_total": "Frames that were searched and showed nobody; they are passed, or control.",
    "dropped_frames_total": "Frames that should have been kept and were not, by reason.",
    "dropped_pictures_total": "Pictures of kept frames that were not kept, by reason.",
    "write_errors_total": "Attempts to write the queue that failed and were repeated, by reason.",
    "evicted_total": "Records that the queue gave up, by reason.",
    "internal_errors_total": "Errors that were caught so that the camera could go on, by place.",
    "fallback_total": "Replacements of what was asked for by what was there.",
    "clock_backwards_total": "Times that the wall clock was found behind the queue's own.",
}
"""Help of the counters that are known; any other is exported all the same."""

ZEROS = {
    "frames_total": ("decision", ("flagged", "control", "passed")),
    "dropped_frames_total": ("reason", ("handover_full",)),
}
"""Series that stand at 0 from the start, so that an increase over them finds the first event."""

METRICS_EVERY_S = 15.0
"""Between two metrics files; node_exporter is asked every 15 to 60 seconds."""

END_S = 5.0
"""So long a thread is waited for at the end: it may hang on a disk, and then the process ends without it."""

_log = RateLimitedLog(logging.getLogger("alpose.monitor"))


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
            _log.error("metrics", "metrics could not be written: %s", error)


class MetricsServer:
    """Answers ``GET /metrics`` on its own thread until it is closed."""

    def __init__(self, server: Any, thread: threading.Thread, host: str) -> None:
        self._server = server
        self._thread = thread
        self.host = host
        self.port = int(server.server_port)
        """The one asked for, or the one that the system chose for 0."""

    @property
    def url(self) -> str:
        """What to scrape."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop, and free the port. Safe to call twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve(stats: Callable[[], Stats], port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serve metrics over HTTP.

    Args:
        stats: called once per scrape, on the server's thread: ``monitor.stats``.
        port: 0 lets the system choose.
        host: address to listen on. There is neither a password nor encryption: anything but the loopback shows the
            metrics to whoever reaches the device.

    Raises:
        MissingExtraError: prometheus-client is not installed.
        ConfigError: the port is taken, or may not be used.
    """
    if not isinstance(port, int) or not 0 <= port <= 65535:
        raise ConfigError(f"a metrics port is a number from 0 to 65535, got {port!r}")
    client = _prometheus()
    try:
        server, thread = client.start_http_server(port, addr=host, registry=_registry(stats))
    except OSError as error:
        raise ConfigError(f"metrics cannot be served on {host} port {port}: {_advice(error)}") from error
    return MetricsServer(server, thread, host)


def write_textfile(stats: Stats, path: str | Path) -> None:
    """Write metrics for node_exporter's textfile collector, all at once: a reader never sees half a file.

    Raises :class:`ConfigError` where the file cannot be written, and :class:`MissingExtraError`.
    """
    client = _prometheus()
    target = Path(path)
    if target.suffix != ".prom":
        raise ConfigError(f"the metrics file {target} must end with .prom: node_exporter reads no other")
    content: bytes = client.generate_latest(_registry(lambda: stats))
    # Not *.prom, or node_exporter would read it too; one per process and thread, so that two writers do not mix.
    beside = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        beside.write_bytes(content)
        beside.replace(target)  # not synced: after a power loss the next write mends it
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise ConfigError(f"the metrics file {target} cannot be written: {error.strerror}") from error


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the port is taken. Close the other program, choose another port, or 0 for any that is free"
    if error.errno == errno.EACCES:
        return "ports below 1024 belong to the system. Choose a higher one"
    return f"{error.strerror or error}. Check that the address is one of this device"


def _prometheus() -> Any:
    try:
        import prometheus_client
    except ImportError as error:
        raise MissingExtraError("prometheus-client", "metrics", "metrics") from error
    return prometheus_client


def _registry(stats: Callable[[], Stats]) -> CollectorRegistry:
    """A registry of our own: the app's default one, with its process metrics, is left alone."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

    class OfStats(Collector):
        def collect(self) -> Iterable[Metric]:
            families = _Families("")
            try:
                now = stats()
                families = _Families(now.camera)
                found = [*_frames(families, now), *_times(families, now), *_states(families, now)]
            except Exception as error:  # the camera and its app must not notice
                _log.error("metrics", "the metrics could not be read: %r", error)
                return [families.gauge("up", "Whether the monitor could be read.", 0.0)]
            return [families.gauge("up", "Whether the monitor could be read.", 1.0), *found]

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OfStats())
    return registry


class _Families:
    """Makes metrics that carry the camera, where there is a name: two monitors on one device stay apart."""

    def __init__(self, camera: str) -> None:
        self._more = {"camera": camera} if camera else {}

    def gauge(self, name: str, text: str, value: float | None) -> Metric:
        """One value; none where it is not known."""
        return self.gauges(name, text, [] if value is None else [({}, value)])

    def gauges(self, name: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
        """Several values, told apart by their labels."""
        from prometheus_client.core import Metric

        metric = Metric(PREFIX + name, text, "gauge")
        for labels, value in samples:
            if math.isfinite(value):
                metric.add_sample(PREFIX + name, {**self._more, **labels}, value)
        return metric

    def info(self, name: str, text: str, labels: Mapping[str, str]) -> Metric:
        """A constant 1 whose labels say it all."""
        return self.gauges(f"{name}_info", text, [(labels, 1.0)])

    def counter(self, name: str, text: str, samples: Iterable[tuple[Mapping[str, str], int]]) -> Metric:
        """Counts, told apart by their labels."""
        from prometheus_client.core import Metric

        base = PREFIX + name.removesuffix("_total")
        metric = Metric(base, text, "counter")
        for labels, value in samples:
            metric.add_sample(f"{base}_total", {**self._more, **labels}, value)
        return metric

    def histogram(self, name: str, text: str, upto: Iterable[tuple[float, int]], count: int, total: float) -> Metric:
        """Cumulative counts at upper bounds."""
        from prometheus_client.core import HistogramMetricFamily

        buckets = [(repr(bound), float(n)) for bound, n in upto] + [("+Inf", float(count))]
        family = HistogramMetricFamily(PREFIX + name, text, labels=list(self._more))
        family.add_metric(list(self._more.values()), buckets=buckets, sum_value=total)
        return family


def _frames(make: _Families, stats: Stats) -> Iterator[Metric]:
    by_name: dict[str, dict[tuple[tuple[str, str], ...], int]] = {}
    for name, (label, values) in ZEROS.items():
        by_name[name] = {((label, value),): 0 for value in values}
    for key, n in stats.counts.items():
        by_name.setdefault(key.name, {})[key.labels] = n
    for name, counts in by_name.items():
        text = COUNTERS.get(name, "Counted by the monitor.")
        yield make.counter(name, text, ((dict(labels), n) for labels, n in counts.items()))

    upto_B = list(itertools.accumulate(stats.scores.counts))
    each = len(upto_B) // SCORE_BINS
    bounds = [((k + 1) / SCORE_BINS, upto_B[(k + 1) * each - 1]) for k in range(SCORE_BINS)]
    yield make.histogram(
        "predicted_failure_ratio",
        "Failure probability of every frame that somebody was on.",
        bounds,
        upto_B[-1],
        stats.scores.sum,
    )
    refused = "Failure probabilities that were not finite."
    yield make.counter("refused_scores_total", refused, [({}, stats.scores.refused)])
    limit = stats.threshold
    yield make.gauge("trigger_threshold", "Failure probability from which frames are flagged now.", limit)


def _times(make: _Families, stats: Stats) -> Iterator[Metric]:
    parts: tuple[tuple[str, str, LatencyInfo], ...] = (
        ("crop", "Time to cut the person from the frame.", stats.crop),
        ("inference", "Time of the engine.", stats.inference),
        ("decision", "Time of the triggers and of the hand-over to the queue.", stats.decision),
        ("frame", "Time of the whole call.", stats.total),
    )
    for name, text, latency in parts:
        bounds = [(bound_s, latency.up_to(bound_s)) for bound_s in LATENCY_BOUNDS_S]
        yield make.histogram(f"{name}_seconds", text, bounds, latency.count, latency.sum_s)
    yield make.gauge("uptime_seconds", "Time since the monitor was started.", stats.uptime_s)


def _states(make: _Families, stats: Stats) -> Iterator[Metric]:
    queue, drift, engine = stats.queue, stats.drift, stats.engine
    if queue is not None:
        yield make.gauge("queue_records", "Records in the queue.", queue.records)
        yield make.gauge("queue_bytes", "Size of the queue.", queue.bytes)
        yield make.gauge("queue_limit_bytes", "Largest size of the queue.", queue.max_bytes)
        oldest = "Capture time of the oldest record, Unix."
        yield make.gauge("queue_oldest_timestamp_seconds", oldest, queue.oldest_s)
        yield make.gauge("queue_waiting_frames", "Frames handed over and not yet on disk.", queue.waiting)
        failing = "1 while the queue cannot be written."
        yield make.gauge("queue_failing", failing, float(queue.last_error is not None))

    yield make.gauge("drift_testing", "1 where the bundle has a calibration to compare with.", float(drift.testing))
    if drift.testing:
        alarms = [
            ({"direction": direction.replace(" ", "_")}, float(drift.direction == direction))
            for direction in get_args(Direction)
        ]
        yield make.gauges("drift_alarm", "1 from the drift alarm on, by what has changed.", alarms)
        evidence = "Evidence against the stream being like the calibration set, as a power of ten."
        yield make.gauge("drift_evidence_log10", evidence, drift.log10_evidence)
        yield make.gauge("drift_limit_log10", "Evidence at which the alarm is raised.", drift.log10_limit)
        yield make.counter("drift_scores_total", "Scores that entered the drift test.", [({}, drift.observed)])

    names = {"backend": engine.name, "provider": engine.provider, "asked": engine.asked}
    yield make.info("engine", "The engine that answers.", names)
    yield make.gauge("engine_fallback", "1 where it is not the one that was asked for.", float(engine.fallback))
    worst = "Largest deviation of a joint on the golden frames at start, in pixels of the crop."
    yield make.gauge("selftest_max_error_pixels", worst, engine.golden_deviation.get("keypoints"))
    yield make.info("bundle", "The bundle in use.", {"name": stats.bundle, "sha256": stats.bundle_sha256})
    yield make.info("device", "The device.", {"device": stats.device})
