"""What options may say: ``100/hour``, ``30d``, ``256M``, ``x0,y0,x1,y1``. Each function is the type of an option."""

from __future__ import annotations

import math
import re

import click

SECONDS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
PER_HOUR = {
    "second": 3600.0,
    "s": 3600.0,
    "minute": 60.0,
    "min": 60.0,
    "hour": 1.0,
    "h": 1.0,
    "day": 1 / 24,
    "d": 1 / 24,
}
BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


def rate(text: str) -> float:
    """``100/hour`` in frames per hour; a number alone is per hour."""
    found = re.fullmatch(rf"{NUMBER}(?:/([a-z]+))?", text.strip().lower())
    factor = PER_HOUR.get(found[2] or "hour", 0.0) if found else 0.0
    if not found or float(found[1]) * factor <= 0:
        raise click.BadParameter(f"{text!r} is no rate above 0: write 100/hour, 2000/day or 5/minute")
    return float(found[1]) * factor


def duration(text: str) -> float:
    """``30d`` in seconds; a number needs its unit."""
    found = re.fullmatch(rf"{NUMBER}\s*([a-z]+)", text.strip().lower())
    if not found or found[2] not in SECONDS:
        raise click.BadParameter(f"{text!r} is no time: write 30d, 12h, 90min or 45s")
    return float(found[1]) * SECONDS[found[2]]


def size(text: str) -> int:
    """``256M`` in bytes; K, M and G are powers of 1024."""
    found = re.fullmatch(rf"{NUMBER}\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if not found:
        raise click.BadParameter(f"{text!r} is no size: write 256M or 4G")
    return int(float(found[1]) * BYTES[found[2]])


def box(text: str) -> tuple[float, float, float, float]:
    """``x0,y0,x1,y1`` in pixels of the frame, the second corner beyond the first."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no region: write x0,y0,x1,y1 in pixels of the frame, as 200,40,520,460"
        ) from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise click.BadParameter(f"{text!r}: x1 must be larger than x0, and y1 than y0")
    return (x0, y0, x1, y1)


def clip(text: str) -> tuple[int, int]:
    """``BEFORE,AFTER`` in frames."""
    found = re.fullmatch(r"(\d{1,4}),(\d{1,4})", text.strip())
    if not found:
        raise click.BadParameter(f"{text!r} is no clip: write BEFORE,AFTER in frames, as 5,5")
    return int(found[1]), int(found[2])
