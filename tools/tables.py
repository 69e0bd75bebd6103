"""Tables and numbers as the commands print them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone

UNKNOWN = "—"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, right: bool = True) -> str:
    """Columns by spaces: the first to the left, the others to the right unless they are text."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [cell.rjust(width) if right else cell.ljust(width) for cell, width in others]
        return "  ".join([first[0].ljust(first[1]), *padded]).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def plural(count: int, what: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def utc(time_ns: int) -> str:
    """A device's clock may say anything."""
    try:
        return datetime.fromtimestamp(time_ns / 1e9, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return UNKNOWN
