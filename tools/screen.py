"""What the commands print: tables and numbers, problems, and one line of progress on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import click

from alpose.runtime.command_line import LiveLine, bar

UNKNOWN = "—"
EVERY_S = 0.1
SHOWN = 20
"""Lines of one kind that are printed; --json has them all."""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, right: bool = True) -> str:
    """Columns by spaces, whole numbers with thousands separators: all but the first to the right, unless they are text."""
    cells_RC = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (head, *cells_RC)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [cell.rjust(width) if right else cell.ljust(width) for cell, width in others]
        return "  ".join([first[0].ljust(first[1]), *padded]).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, cells_RC)])


def plural(count: int, what: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def utc(time_ns: int) -> str:
    """A moment for people; a device's clock may say anything."""
    try:
        return datetime.fromtimestamp(time_ns / 1e9, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return UNKNOWN


def listed(lines: Sequence[str], shown: int = SHOWN) -> list[str]:
    """The first lines, and how many more there are."""
    more = [f"… and {len(lines) - shown:,} more: --json lists them"] if len(lines) > shown else []
    return [*lines[:shown], *more]


def say(text: str) -> None:
    """Print lines to stdout."""
    click.echo("\n".join(plain(line) for line in text.split("\n")))


def plain(text: str) -> str:
    """The text without control characters: a name comes from elsewhere, and a terminal obeys what is written to it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def problem(text: str) -> None:
    """Print to stderr something that somebody should look at."""
    click.echo(plain(text), err=True)


class Progress(LiveLine):
    """How far something has come; nothing where stderr is not a terminal.

    Args:
        what: the thing, such as a source.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = plain(what)
        self._next_s = 0.0

    def __enter__(self) -> Progress:
        super().__enter__()
        return self

    def step(self, name: str, done: int, of: int) -> None:
        """Show that ``done`` of ``of`` things are done."""
        now_s = time.monotonic()
        if not self.active or (now_s < self._next_s and done < of):
            return
        self._next_s = now_s + EVERY_S
        numbers = f" {name} {bar(done / of if of else 1.0, 20, self.unicode)} {done:,} of {of:,}"
        room = self.columns - len(numbers) - 1
        self.show(f"{self._what if len(self._what) <= room else '…' + self._what[1 - room :]}{numbers}")
