"""What is written to a terminal or a log: one line that is rewritten, sizes and bars."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from typing import ClassVar, TextIO

CLEAR = "\r\x1b[K"
COLOURS = {"green": "32", "yellow": "33", "red": "31", "grey": "90", "bold": "1"}


class LiveLine:
    """One line on a terminal, written again and again. Where the stream is no terminal nothing is written."""

    current: ClassVar[LiveLine | None] = None
    """The one that is shown now, if any: log lines are written above it."""

    def __init__(self, stream: TextIO | None = None, *, wanted: bool = True) -> None:
        self._stream = stream or sys.stderr
        self.active = wanted and self._stream.isatty()
        self.colour = self.active and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.unicode = (getattr(self._stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
        self._shown = ""

    def __enter__(self) -> LiveLine:
        LiveLine.current = self
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
        LiveLine.current = None

    @property
    def columns(self) -> int:
        """Of the terminal."""
        return shutil.get_terminal_size((100, 24)).columns

    def show(self, line: str) -> None:
        """Put this line in the place of the former one."""
        if self.active:
            self._shown = line
            self._stream.write(f"{CLEAR}{line}")
            self._stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.active and self._shown:
            self._shown = ""
            self._stream.write(CLEAR)
            self._stream.flush()

    def above(self, text: str) -> None:
        """Write something that stays, and the line below it again."""
        shown = self._shown
        self.clear()
        self._stream.write(f"{text}\n")
        self.show(shown)


class LogHandler(logging.Handler):
    """Logs to stderr, above the live line; with the time where it is no terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            stream = sys.stderr
            form = "%(levelname)s: %(message)s" if record.levelno >= logging.WARNING else "%(message)s"
            if not stream.isatty():
                form = f"%(asctime)s {form}"
            text = logging.Formatter(form, "%Y-%m-%d %H:%M:%S").format(record)
            live = LiveLine.current
            if live is not None and live.active:
                live.above(text)
            else:
                stream.write(f"{text}\n")
                stream.flush()
        except Exception:  # a logger must not end the program
            self.handleError(record)


def paint(text: str, colour: str, wanted: bool) -> str:
    """The text in a colour, where colours are wanted."""
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if wanted else text


def bar(share: float, width: int, unicode: bool = True) -> str:
    """A share of 1 as a bar, to an eighth of a column where the terminal can show that."""
    share = min(max(share, 0.0), 1.0) if share == share else 0.0
    if not unicode:
        full = round(share * width)
        return "#" * full + "." * (width - full)
    eighths = round(share * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")).ljust(width, "░")


def size(count: float) -> str:
    """Bytes for people: ``1.2 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]], right: frozenset[str] = frozenset()) -> list[str]:
    """Lines with columns as wide as they need to be; the columns named in ``right`` are set to the right."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return lines
