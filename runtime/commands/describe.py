"""A queue's records in words: a row of a table, all facts, JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .screen import size

if TYPE_CHECKING:
    from ..queue import Record

HEAD = ("id", "captured (UTC)", "P(fail)", "kept for", "place", "device", "picture", "state")

SHORT_ID = 16
"""Digits of an id in a table: its time, and enough of its random part. Commands take any beginning that is unique."""


def facts_of(record: Record) -> dict[str, Any]:
    """Everything about a record but its embedding, as JSON values."""
    return {
        "id": record.id,
        "captured": _time(record.captured_ns),
        "captured_ns": record.captured_ns,
        "device": record.device,
        "camera": record.camera,
        "bundle": record.bundle,
        "frame": [record.frame_width, record.frame_height],
        "box": [float(value) for value in record.box],
        "place": record.place,
        "failure_probability": _number(record.failure_probability),
        "predicted_loss": _number(record.predicted_loss),
        "flagged": record.flagged,
        "reasons": [[name, _number(value), _number(limit)] for name, value, limit in record.reasons],
        "threshold": _number(record.threshold),
        "inclusion_probability": _number(record.inclusion_probability),
        "control_draw": _number(record.control_draw),
        "novelty": _number(record.novelty),
        "jump": _number(record.jump),
        "limbs": _number(record.limbs),
        "episode": record.episode,
        "store": record.store,
        "state": record.state,
        "frame_bytes": record.frame_bytes,
        "frame_sha256": record.frame_sha256,
        "sha256": record.sha256,
        "keypoints": [[round(float(x), 2), round(float(y), 2)] for x, y in record.keypoints_J2],
        "scores": [round(float(score), 4) for score in record.scores_J],
    }


def put_s(record: Record) -> float:
    """When it was put, by the queue's clock (Unix): its id begins with that, in milliseconds."""
    return int(record.id[:12], 16) / 1e3


def row_of(record: Record) -> tuple[str, ...]:
    """Under :data:`HEAD`."""
    names = " + ".join(name for name, _, _ in record.reasons) or ("flagged" if record.flagged else "control")
    picture = f"{record.store} {size(record.frame_bytes)}" if record.frame_bytes else record.store
    device = record.device + (f"/{record.camera}" if record.camera else "")
    return (record.id[:SHORT_ID], _time(record.captured_ns), f"{record.failure_probability:.2f}", names, record.place,
            device, picture, record.state)  # fmt: skip


def words_of(name: str, value: Any) -> Iterator[str]:
    """A fact in one or several lines."""
    if name == "reasons":
        for trigger, seen, limit in value:
            known = seen is not None and limit is not None
            yield f"{trigger} {seen:.4g} {'>=' if seen >= limit else '<'} {limit:.4g}" if known else trigger
        if not value:
            yield "-"
    elif name == "keypoints":
        yield "  ".join(f"{x:.0f},{y:.0f}" for x, y in value)
    elif name == "scores":
        yield "  ".join(f"{score:.2f}" for score in value)
    elif name == "pictures":
        for item in value:
            sealed = ", sealed" if item["sealed"] else ""
            yield f"{item['position']:+d}: {item['media_type']} {item['width']} x {item['height']}, {size(item['bytes'])}{sealed}"
        if not value:
            yield "-"
    elif isinstance(value, list):
        yield "  ".join(f"{item:g}" for item in value)
    elif isinstance(value, float):
        yield f"{value:.6g}"
    else:
        yield "-" if value in (None, "") else str(value)


def counters_of(counters: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Of the queue itself, over its life: ``evicted_total{full}`` → 3."""
    return {f"{name}{{{reason}}}" if reason else name: count for (name, reason), count in sorted(counters.items())}


def _number(value: float | None) -> float | None:
    return None if value is None or value != value else float(value)  # nan is no JSON


def _time(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9, timezone.utc):%Y-%m-%d %H:%M:%S}"
