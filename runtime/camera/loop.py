"""The camera loop of ``alpose-monitor run``: frames in, verdicts out, a line that tells how it goes."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING

from ..command_line import LiveLine, bar, paint, size
from .sources import Source, SourceCounts
from .systemd import Service

if TYPE_CHECKING:
    from ..monitor import Monitor
    from ..telemetry.stats import Stats
    from .overlay import AnnotatedVideo

log = logging.getLogger("alpose.monitor")

REFRESH_S = 0.2
"""Between two versions of the line on a terminal."""
LOG_S = 60.0
"""Between two lines in a log."""
THRESHOLD_FRAMES = 5
"""Frames of an annotated video between two readings of the threshold in force."""


@dataclass(slots=True)
class Stop:
    """Whether somebody asked to stop. A plain flag: a signal may come at any moment, also while a lock is held."""

    asked: str = ""
    """Name of the signal."""


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a flag; the second Ctrl-C interrupts as always."""
    stop = Stop()

    def handle(number: int, _: FrameType | None) -> None:
        stop.asked = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(
    monitor: Monitor, source: Source, stop: Stop, live: LiveLine, *, video: AnnotatedVideo | None = None,
    limit: int | None = None, people: bool = False,
) -> None:  # fmt: skip
    """Show the monitor every frame until the source ends, somebody stops it, or ``limit`` frames were seen.

    ``people``: everybody on a frame is watched, not one person.

    A recording's frames are stamped by its own clock, counted from now: a budget per hour then means an hour of the
    video, however fast it is read.
    """
    service = Service()
    try:
        _watch(monitor, source, stop, live, service, video=video, limit=limit, people=people)
    finally:
        service.stopping()
        service.close()


def _watch(
    monitor: Monitor, source: Source, stop: Stop, live: LiveLine, service: Service, *, video: AnnotatedVideo | None,
    limit: int | None, people: bool,
) -> None:  # fmt: skip
    began_ns = time.time_ns()
    shown = logged = time.monotonic()
    probability, threshold, seen = float("nan"), None, None
    counted = SourceCounts()
    for found in source.frames():
        counted = count_faults(monitor, source.counts, counted)
        if found is not None:
            time_ns = None if source.live else began_ns + round(found.time_s * 1e9)
            frame = found.frame_HW3
            verdicts = monitor.people(frame, time_ns=time_ns) if people else [monitor(frame, time_ns=time_ns)]
            there = [verdict.failure_probability for verdict in verdicts if verdict.occupied]
            probability, seen = max(there, default=float("nan")), len(there)
            if video is not None:
                if found.index % THRESHOLD_FRAMES == 0:
                    threshold = monitor.stats().threshold
                video.write(frame, verdicts if people else verdicts[0], found.time_s, threshold)
            if limit is not None and found.index + 1 >= limit:
                break
        if stop.asked:
            break
        service.alive()
        now = time.monotonic()
        if live.active and now - shown >= REFRESH_S:
            shown = now
            live.show(live_line(monitor.stats(), source.counts, probability, live.columns, people=seen,
                                colour=live.colour, unicode=live.unicode))  # fmt: skip
        elif not live.active and now - logged >= LOG_S:
            logged = now
            line = log_line(monitor.stats(), source.counts)
            log.info("%s", line)
            service.alive(line)
    count_faults(monitor, source.counts, counted)


def count_faults(monitor: Monitor, counts: SourceCounts, counted: SourceCounts) -> SourceCounts:
    """Count in the monitor's stats and metrics what went wrong since ``counted`` was returned."""
    now = replace(counts)  # a camera's own thread may be counting
    for what, n in (("broken", now.broken - counted.broken), ("behind", now.behind - counted.behind),
                    ("reopened", now.reconnects - counted.reconnects)):  # fmt: skip
        if n:
            monitor.count("source_faults_total", n, what=what)
    return now


def live_line(
    stats: Stats, source: SourceCounts, probability: float, columns: int, *, people: int | None = None,
    colour: bool = False, unicode: bool = True,
) -> str:  # fmt: skip
    """The state in one line of a terminal: what matters most stands first, and what does not fit is left out.

    ``people`` is how many are on the last frame, and ``probability`` the highest of them; None: before the first frame.
    """
    tone = "green" if probability < 1 / 3 else "yellow" if probability < 2 / 3 else "red"
    shown = f"{probability:.2f}" if probability == probability else " -  "
    parts = [
        (f"{sum(stats.frames.values()):,} frames", "bold"),
        (f"{stats.frames_per_second:.1f}/s", ""),
        ("nobody", "grey") if people == 0 else (f"fail {bar(probability, 10, unicode)} {shown}", tone),
        (f"{people} people", "") if people is not None and people > 1 else ("", ""),
        (f"flagged {stats.frames.get('flagged', 0)}", ""),
        *([(f"queue {stats.queue.records}, {size(stats.queue.bytes)}", "")] if stats.queue else []),
        (f"p50 {1e3 * stats.total.p50_s:.1f} p99 {1e3 * stats.total.p99_s:.1f} ms", "")
        if stats.total.count
        else ("", ""),
        (f"dropped {lost}", "red") if (lost := losses(stats, source)) else ("dropped 0", "grey"),
        *([("DRIFT", "red")] if stats.drift.alarm else []),
    ]
    room, out = max(columns - 1, 20), []
    for text, tint in parts:
        if not text:
            continue
        room -= len(text) + 2
        if room < -2:
            break
        out.append(paint(text, tint, colour) if tint else text)
    return "  ".join(out)


def log_line(stats: Stats, source: SourceCounts) -> str:
    """The state in one line of a log."""
    parts = [f"{sum(stats.frames.values())} frames", f"{stats.frames_per_second:.1f}/s"]
    if stats.total.count:
        parts.append(f"p50 {1e3 * stats.total.p50_s:.1f} ms p99 {1e3 * stats.total.p99_s:.1f} ms")
        parts.append(f"mean failure probability {stats.scores.mean:.3f}")
    parts.append(f"flagged {stats.frames.get('flagged', 0)}")
    if stats.queue:
        parts.append(f"queue {stats.queue.records} records {size(stats.queue.bytes)}")
    parts.append(f"dropped {losses(stats, source)}")
    parts += [f"{name} {count}" for name, count in source_troubles(source).items()]
    return ", ".join(parts)


def losses(stats: Stats, source: SourceCounts) -> int:
    """Frames that should have been seen or kept and were not."""
    return sum(stats.dropped.values()) + source.broken + source.behind


def source_troubles(source: SourceCounts) -> dict[str, int]:
    """What went wrong before a frame was seen; empty where nothing did."""
    found = {"broken frames": source.broken, "left out, too slow": source.behind, "camera reopened": source.reconnects}
    return {name: count for name, count in found.items() if count}
