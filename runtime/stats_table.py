"""A monitor's stats as a compact table for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .drift import DriftReport
    from .latency import LatencyFacts
    from .stats import EngineState, QueueState, Stats

PARTS = ("crop", "inference", "decision", "total")
SHOWN_APART = ("frames_total", "dropped_frames_total", "evicted_total", "internal_errors_total")
"""Counters that have a line of their own; the others stand together in the last one."""


def table(stats: Stats) -> str:
    """One line per subject; what did not happen has no line."""
    rows = list(_rows(stats))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _rows(stats: Stats) -> Iterator[tuple[str, str]]:
    frames = stats.frames
    total, uptime = sum(frames.values()), _duration(stats.uptime_s)
    yield "frames", f"{total:,} in {uptime}, {stats.frames_per_second:.1f}/s: {_counts(frames) or 'none yet'}"
    for name in ("dropped", "evicted", "errors"):
        counts: dict[str, int] = getattr(stats, name)
        if counts:
            yield name, f"{sum(counts.values()):,}: {_counts(counts)}"
    yield "scores", _scores(stats)
    for part in PARTS:
        facts: LatencyFacts = getattr(stats, part)
        if facts.count:
            yield part, _latency(facts)
    yield "queue", _queue(stats.queue, stats.time_s)
    yield "drift", _drift(stats.drift)
    yield "engine", _engine(stats.engine)
    yield "bundle", f"{stats.bundle} {stats.bundle_sha256[:12]}"
    yield "device", stats.device + (f", camera {stats.camera}" if stats.camera else "")
    others = {str(key): n for key, n in stats.counts.items() if key.name not in SHOWN_APART}
    if others:
        yield "counters", _counts(others)


def _scores(stats: Stats) -> str:
    limit = "" if stats.threshold is None else f", threshold now {stats.threshold:.3f}"
    refused = f", {stats.scores.refused:,} no numbers" if stats.scores.refused else ""
    mean = f"mean failure probability {stats.scores.mean:.3f}" if sum(stats.scores.counts) else "none yet"
    return f"{mean}{limit}{refused}"


def _latency(facts: LatencyFacts) -> str:
    parts = {"p50": facts.p50_s, "p99": facts.p99_s, "p99.9": facts.p999_s, "max": facts.max_s}
    return "  ".join(f"{name} {1e3 * value:8.3f}" for name, value in parts.items()) + "  ms"


def _queue(queue: QueueState | None, now_s: float) -> str:
    if queue is None:
        return "none"
    text = f"{queue.records:,} records, {queue.bytes / 2**20:.1f} of {queue.max_bytes / 2**20:.0f} MiB in {queue.path}"
    if queue.oldest_s is not None:
        text += f", oldest {_duration(max(now_s - queue.oldest_s, 0.0))}"
    if queue.waiting:
        text += f", {queue.waiting} waiting"
    return text + (f", LAST ERROR: {queue.last_error}" if queue.last_error else "")


def _drift(drift: DriftReport) -> str:
    if not drift.testing:
        return "not tested: the bundle has no calibration"
    evidence = f"evidence 10^{drift.log10_evidence:.1f} of 10^{drift.log10_limit:.1f} after {drift.observed:,} scores"
    if not drift.alarm:
        return f"none found, {evidence}"
    ago = _duration((drift.time_s or 0.0) - (drift.since_s or 0.0))
    return f"ALARM {ago} ago: {drift.direction} than in the calibration set, {evidence}"


def _engine(engine: EngineState) -> str:
    text = f"{engine.name} ({engine.provider})"
    if engine.fallback:
        text += f", FALLBACK from {engine.asked}"
    if "keypoints" in engine.golden_deviation:
        text += f", golden keypoints within {engine.golden_deviation['keypoints']:.2g} px"
    return text


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _duration(seconds: float) -> str:
    """As a person says it: 12 s, 5 min, 3.2 h, 4.0 d."""
    for unit, length, digits in (("d", 86_400.0, 1), ("h", 3_600.0, 1), ("min", 60.0, 0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
