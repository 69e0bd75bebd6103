"""Key files: a line of hex text each, a private one that only its owner can read, and its public half beside it.

Shared by signatures (:mod:`alpose.runtime.signature`) and sealed frames (:mod:`alpose.runtime.queue.seal`). Nothing
here knows a cipher.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import ConfigError, DataNotFoundError

MAX_BYTES = 4096
"""More is no key file."""


def write_pair(path: Path, private: str, public: str) -> None:
    """The private key at ``path`` (mode 0600) and the public one at ``path`` + ``.pub``, both synced to the disk.

    Raises:
        ConfigError: one of the files exists; a key is never written over, and then nothing is written.
        DataNotFoundError: the folder does not exist.
    """
    public_path = path.with_name(f"{path.name}.pub")
    for part in (path, public_path):
        if part.exists():
            raise ConfigError(f"{part} exists: a key is never written over. Give another name, or move it away")
    if not path.parent.is_dir():
        raise DataNotFoundError(f"{path.parent} does not exist: make the folder of the key first")
    _write_new(path, f"{private}\n", 0o600)
    _write_new(public_path, f"{public}\n", 0o644)


def read_text(path: Path) -> str:
    """What a key file says, white space around it removed."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(MAX_BYTES).strip()
    except FileNotFoundError:
        raise DataNotFoundError(f"{path} does not exist: it should hold a key") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a key: {error}") from error


def given(source: str | Path, what: str) -> tuple[str, str]:
    """The text of a key that is given itself or as the path of its file, and what to call it in an error.

    A text is a path where it ends with ``.pub``: no key does.
    """
    if isinstance(source, Path) or source.strip().endswith(".pub"):
        return read_text(Path(source)), str(source)
    return source, what


def check_private(path: Path) -> None:
    """:class:`ConfigError` where others can read a private key."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:04o}): run chmod 600 on it, or make a new key")


def short(key: str) -> str:
    """Enough of a key to compare by eye."""
    return f"{key[:8]}…{key[-8:]}"


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
