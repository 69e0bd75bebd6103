"""What all commands share: errors in one line, the values of options, and what is written to a terminal or a log."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, TextIO

import click

from .errors import AlposeError, ConfigError, DataNotFoundError, MissingExtraError

# --- what is printed


def print_json(value: Any) -> None:
    """Print JSON that every parser takes: a number that is not finite, which JSON cannot write, is null."""
    click.echo(json.dumps(finite(value), indent=1, allow_nan=False))


def finite(value: Any) -> Any:
    """JSON values with null for every number that is not finite."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- groups of commands


HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
"""Settings of every group of commands."""
WITH_ENVIRONMENT = HELP | {"auto_envvar_prefix": "ALPOSE"}
"""Of those whose options can all be given by the environment."""


def show_log(verbose: bool) -> None:
    """Print what alpose logs, above the line of progress; with ``verbose`` also what is tried and passed over."""
    log = logging.getLogger("alpose")
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not log.handlers:
        log.addHandler(LogHandler())


# --- errors


WRONG_USAGE = (ConfigError, DataNotFoundError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors of what was typed: a value that cannot be, a file that is not there or is a folder, or the other way round."""


class OneLineErrors(click.Group):
    """A group of commands whose expected errors are one line and an exit status, without a traceback."""

    packages: ClassVar[Mapping[str, str]] = {}
    """Import names that the commands may lack, each with the extra that brings it. Any other that is missing is a bug."""
    wanted_by: ClassVar[str] = "this command"
    """What needs the packages, in the message."""
    interrupted: ClassVar[str] = "Stopped."
    """What is said after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        """Exit status 2 for what was typed and cannot be carried out, 1 for every other error, 130 for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except AlposeError as error:
            raise _one_line(str(error), error) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click's own
                raise
            where = f"{error.filename}: " if error.filename is not None else ""
            raise _one_line(f"{where}{error.strerror or error}", error) from error
        except ModuleNotFoundError as error:
            extra = self.packages.get((error.name or "").partition(".")[0])
            if extra is None:
                raise
            raise click.ClickException(str(MissingExtraError(str(error.name), self.wanted_by, extra))) from error
        except KeyboardInterrupt:
            click.echo(f"\n{self.interrupted}", err=True)
            ctx.exit(130)


class _WrongUsageError(click.ClickException):
    """An error in one line, without the lines on usage that click prints for options it refuses itself."""

    exit_code = click.UsageError.exit_code


def _one_line(words: str, error: Exception) -> click.ClickException:
    """What click prints in one line, with the exit status of docs/command-line.md."""
    return (_WrongUsageError if isinstance(error, WRONG_USAGE) else click.ClickException)(words)


# --- values of options; each function is the type of an option

SECONDS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
PER_HOUR = {"second": 3600.0, "s": 3600.0, "minute": 60.0, "min": 60.0, "hour": 1.0, "h": 1.0, "day": 1 / 24,
            "d": 1 / 24}  # fmt: skip
BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"


def rate(text: str) -> float:
    """``100/hour`` in frames per hour; a number alone is per hour."""
    found = re.fullmatch(rf"{_NUMBER}(?:/([a-z]+))?", text.strip().lower())
    factor = PER_HOUR.get(found[2] or "hour", 0.0) if found else 0.0
    if not found or float(found[1]) * factor <= 0:
        raise click.BadParameter(f"{text!r} is not a rate above 0: write 100/hour, 2000/day or 5/minute")
    return float(found[1]) * factor


def duration(text: str) -> float:
    """``30d`` in seconds; a number needs its unit."""
    found = re.fullmatch(rf"{_NUMBER}\s*([a-z]+)", text.strip().lower())
    if not found or found[2] not in SECONDS:
        raise click.BadParameter(f"{text!r} is not a time: write 30d, 12h, 90min or 45s")
    return float(found[1]) * SECONDS[found[2]]


def byte_count(text: str) -> int:
    """``256M`` in bytes; K, M and G are powers of 1024."""
    found = re.fullmatch(rf"{_NUMBER}\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if not found:
        raise click.BadParameter(f"{text!r} is not a size: write 256M or 4G")
    return int(float(found[1]) * BYTES[found[2]])


def frame_size(text: str) -> tuple[int, int]:
    """``1280x720``: width and height in pixels."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip().lower())
    if not found:
        raise click.BadParameter(f"{text!r} is not a size: write WIDTHxHEIGHT in pixels, as 1280x720")
    return int(found[1]), int(found[2])


def box(text: str) -> tuple[float, float, float, float]:
    """``x0,y0,x1,y1`` in pixels of the frame, the second corner beyond the first."""
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a region: write x0,y0,x1,y1 in pixels of the frame, as 200,40,520,460"
        ) from None
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise click.BadParameter(f"{text!r}: x1 must be larger than x0, and y1 than y0")
    return (x0, y0, x1, y1)


def clip(text: str) -> tuple[int, int]:
    """``BEFORE,AFTER`` in frames."""
    found = re.fullmatch(r"(\d{1,4}),(\d{1,4})", text.strip())
    if not found:
        raise click.BadParameter(f"{text!r} is not a clip: write BEFORE,AFTER in frames, as 5,5")
    return int(found[1]), int(found[2])


# --- terminal and log

CLEAR = "\r\x1b[K"
COLOURS = {"green": "32", "yellow": "33", "red": "31", "grey": "90", "bold": "1"}


class LiveLine:
    """One line on a terminal that is written again and again; nothing where the stream is not a terminal."""

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
        """The width of the terminal."""
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
    """Logs to stderr, above the live line; with the time where stderr is not a terminal."""

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
    full, rest = divmod(round(share * width * 8), 8)
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
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for cell, width, name in zip(row, widths, head, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]
