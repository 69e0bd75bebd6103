"""What the commands of ``alpose-harvest`` share: options, where to write, and the names of the formats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..inbox import Inbox

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
INBOX = click.argument("inbox", type=click.Path(path_type=Path, file_okay=False))
FORCE = click.option("--force", is_flag=True, help="Replace a file that is there, whatever it is.")

CHOICES_SHOWN = 10
"""Choices that are printed with their reasons; all of them stand in the batch's file."""
HEAD_BYTES = 1 << 16
"""Of a page, in which its title stands."""


def in_inbox(out: Path | None, inbox: Inbox, name: str) -> Path:
    """Where to write: as given, or in the inbox."""
    from alpose.runtime.errors import ConfigError

    if out is None and not inbox.writable:
        raise ConfigError(f"{inbox.folder} cannot be written by this user: say with --out where to write")
    return out or inbox.folder / name


def require_replaceable(path: Path, is_same: Callable[[Path], bool], force: bool) -> None:
    """What is there is only replaced by a newer state of the same."""
    from alpose.runtime.errors import ConfigError

    if path.exists() and not force and not is_same(path):
        raise ConfigError(
            f"{path} is there already, and is something else: give another --out, or --force to replace it"
        )


def has_title(title: str, out: Path | None) -> Callable[[Path], bool]:
    """Whether a file is a page with this title; in its own place the name of the folder, before the colon, may have changed."""
    from markupsafe import escape

    wanted = f"<title>{escape(title)}</title>" if out else f"{escape(title[title.rindex(': ') :])}</title>"

    def has(path: Path) -> bool:
        with open(path, "rb") as file:
            return wanted in file.read(HEAD_BYTES).decode(errors="replace")

    return has


def format_names(separator: str) -> str:
    """The registered formats; they are loaded only where a command needs them."""
    from ..formats import FORMATS

    return separator.join(FORMATS)


def known_format(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """The name of a registered format."""
    from ..formats import FORMATS

    if value not in FORMATS:
        raise click.BadParameter(f"{value!r} is not one of {format_names(', ')}")
    return value


class FormatOption(click.Option):
    """An option whose help lists the registered formats."""

    def make_metavar(self, *_: Any, **__: Any) -> str:
        """All names."""
        return format_names("|")
