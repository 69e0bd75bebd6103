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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..drift import Direction
from ..errors import ConfigError, MissingExtraError
from ..logs import RateLimitedLog
from .counters import COUNTERS, Counters, is_counter_name
from .stats import LatencyInfo, Stats
from .web import LOOPBACK, Content, WebServer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

PREFIX = "alpose_"

LATENCY_BOUNDS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Of the latency histograms, 100 µs to 1 s: edges of our own bins, so that nothing is interpolated."""

SCORE_BINS = 16
"""Of the histogram of failure probabilities; our own 64 would be many series for little."""

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
        ConfigError: the port is taken, or there can be no such file.
        OSError: the disk of the file is full or fails.
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


class MetricsServer(WebServer):
    """Answers ``GET /metrics`` on its own threads until it is closed."""

    @property
    def url(self) -> str:
        """What to scrape."""
        return f"{self.address}/metrics"


def serve(stats: Callable[[], Stats], port: int, host: str = LOOPBACK) -> MetricsServer:
    """Serve metrics over HTTP.

    Args:
        stats: called once per scrape, on a thread of the server: ``monitor.stats``.
        port: 0 lets the system choose.
        host: address to listen on. There is neither a password nor encryption: anything but the loopback shows the
            metrics to whoever reaches the device.

    Raises:
        MissingExtraError: prometheus-client is not installed.
        ConfigError: the port is taken, or may not be used.
    """
    client, registry = _prometheus(), _registry(stats)

    def answer(path: str, _: Mapping[str, str]) -> Content | None:
        if path not in ("/", "/metrics"):
            return None
        return Content(client.generate_latest(registry), client.CONTENT_TYPE_LATEST)

    return MetricsServer(answer, port, host, what="metrics")


def write_textfile(stats: Stats, path: str | Path) -> None:
    """Write metrics for node_exporter's textfile collector, all at once: a reader never sees half a file.

    Raises :class:`ConfigError` where there can be no such file, :class:`OSError` where the disk is full or fails, and
    :class:`MissingExtraError`.
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
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise ConfigError(f"the metrics file {target} cannot be written: {error.strerror}") from error


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
        def collect(self) -> list[Metric]:
            camera, found = "", list[_Family]()
            try:
                now = stats()
                camera, found = now.camera, [*_counts(now), *_histograms(now), *_gauges(now)]
            except Exception as error:  # the camera and its app must not notice
                _log.error("metrics", "the metrics could not be read: %r", error)
            up = _gauge("up", "Whether the monitor could be read.", float(bool(found)))
            return [_metric(family, camera) for family in (up, *found)]

    registry = CollectorRegistry(auto_describe=False)
    registry.register(OfStats())
    return registry


_Samples = list[tuple[str, Mapping[str, str], float]]
"""Suffix of the name, labels, value."""
_Family = tuple[str, str, str, _Samples]
"""Name without ``alpose_``, type, help, samples."""


def _metric(family: _Family, camera: str) -> Metric:
    """One family; every sample carries the camera where there is a name, so that two monitors on a device stay apart."""
    from prometheus_client.core import Metric

    name, kind, text, samples = family
    metric = Metric(PREFIX + name, text, kind)
    for suffix, labels, value in samples:
        if math.isfinite(value):
            more = {"camera": camera} if camera else {}
            metric.add_sample(PREFIX + name + suffix, {**more, **labels}, value)
    return metric


def _gauge(name: str, text: str, value: float | None, **labels: str) -> _Family:
    """One value; no sample where it is not known."""
    return name, "gauge", text, [] if value is None else [("", labels, float(value))]


def _histogram(name: str, text: str, upto: list[tuple[float, int]], count: int, total: float) -> _Family:
    """Cumulative counts at upper bounds."""
    buckets: _Samples = [("_bucket", {"le": repr(bound)}, float(n)) for bound, n in upto]
    return name, "histogram", text, [
        *buckets, ("_bucket", {"le": "+Inf"}, float(count)), ("_count", {}, float(count)), ("_sum", {}, total)
    ]  # fmt: skip


def _counts(stats: Stats) -> Iterator[_Family]:
    by_name: dict[str, dict[tuple[tuple[str, str], ...], int]] = {}
    for name, (label, values) in ZEROS.items():
        by_name[name] = {((label, value),): 0 for value in values}
    for key, n in stats.counts.items():
        if is_counter_name(key.name):  # a counter of a queue's file may have any name
            by_name.setdefault(key.name, {})[key.labels] = n
    by_name["refused_scores_total"] = {(): stats.scores.refused}
    if stats.drift.testing:
        by_name["drift_scores_total"] = {(): stats.drift.observed}
    for name, counts in by_name.items():
        samples: _Samples = [("_total", dict(labels), n) for labels, n in counts.items()]
        _, text = COUNTERS.get(name, (None, "Counted by the app."))
        yield name.removesuffix("_total"), "counter", text, samples


def _histograms(stats: Stats) -> Iterator[_Family]:
    upto_B = list(itertools.accumulate(stats.scores.counts))
    each = len(upto_B) // SCORE_BINS
    bounds = [((k + 1) / SCORE_BINS, upto_B[(k + 1) * each - 1]) for k in range(SCORE_BINS)]
    text = "Failure probability of every frame that somebody was on."
    yield _histogram("predicted_failure_ratio", text, bounds, upto_B[-1], stats.scores.sum)
    parts: tuple[tuple[str, str, LatencyInfo], ...] = (
        ("crop", "Time to cut the person from the frame.", stats.crop),
        ("inference", "Time of the engine.", stats.inference),
        ("decision", "Time of the triggers and of the hand-over to the queue.", stats.decision),
        ("frame", "Time of the whole call.", stats.total),
    )
    for name, text, latency in parts:
        bounds = [(bound_s, latency.up_to(bound_s)) for bound_s in LATENCY_BOUNDS_S]
        yield _histogram(f"{name}_seconds", text, bounds, latency.count, latency.sum_s)


def _gauges(stats: Stats) -> Iterator[_Family]:
    queue, drift, engine = stats.queue, stats.drift, stats.engine
    yield _gauge("trigger_threshold", "Failure probability from which frames are flagged now.", stats.threshold)
    yield _gauge("uptime_seconds", "Time since the monitor was started.", stats.uptime_s)
    if queue is not None:
        yield _gauge("queue_records", "Records in the queue.", queue.records)
        yield _gauge("queue_bytes", "Size of the queue.", queue.bytes)
        yield _gauge("queue_limit_bytes", "Largest size of the queue.", queue.max_bytes)
        oldest = "Capture time of the oldest record, Unix."
        yield _gauge("queue_oldest_timestamp_seconds", oldest, queue.oldest_s)
        yield _gauge("queue_waiting_frames", "Frames handed over and not yet on disk.", queue.waiting)
        yield _gauge("queue_failing", "1 while the queue cannot be written.", queue.last_error is not None)
    yield _gauge("drift_testing", "1 where the bundle has a calibration to compare with.", drift.testing)
    if drift.testing:
        alarms: _Samples = [
            (
                "",
                {"direction": direction.replace(" ", "_"), **({"stream": stream} if stream else {})},
                float(test.direction == direction),
            )
            for stream, test in (drift.streams or {"": drift}).items()
            for direction in get_args(Direction)
        ]
        yield "drift_alarm", "gauge", "1 from the drift alarm on, by what has changed.", alarms
        evidence = "Evidence against the stream being like the calibration set, as a power of ten."
        yield _gauge("drift_evidence_log10", evidence, drift.log10_evidence)
        yield _gauge("drift_limit_log10", "Evidence at which the alarm is raised.", drift.log10_limit)
    names = {"backend": engine.name, "provider": engine.provider, "asked": engine.asked}
    yield _gauge("engine_info", "The engine that answers.", 1, **names)
    yield _gauge("engine_fallback", "1 where it is not the one that was asked for.", engine.fallback)
    worst = "Largest deviation of a joint on the golden frames at start, in pixels of the crop."
    yield _gauge("selftest_max_error_pixels", worst, engine.golden_deviation.get("keypoints"))
    yield "bundle_info", "gauge", "The bundle in use.", [("", {"name": stats.bundle, "sha256": stats.bundle_sha256}, 1)]
    yield _gauge("device_info", "The device.", 1, device=stats.device)
