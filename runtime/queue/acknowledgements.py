"""Acknowledgement files: how a harvest that cannot write into SQLite says what it has.

A harvest over sftp or S3 leaves ``<queue>.ack/<name>.json`` beside the queue, and whoever writes the queue applies it.
The file comes from elsewhere: its size, its form and every id in it are checked, and no name in it is used as a path.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..io import fields_to_json, json_bytes, parse_json, write_atomically
from .fields import is_hex

KIND = "alpose acknowledgement"
SCHEMA = 1
MAX_BYTES = 4 << 20
"""Some 40,000 ids."""
MAX_FILES = 256
"""In one round."""
REFUSED = ".refused"


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What one file says."""

    delete: bool
    """Erase what is acknowledged."""
    records: dict[str, str]
    """Id → sha256 of the record, as it was pulled and verified."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What acknowledgement files did."""

    files: int = 0
    acknowledged: int = 0
    deleted: int = 0
    unknown: int = 0
    """Ids that are not in the queue: evicted meanwhile, or applied before."""
    mismatched: tuple[str, ...] = ()
    """Ids whose sha256 is another one: kept as they are."""
    refused: tuple[tuple[str, str], ...] = ()
    """(file name, what is wrong with it) of files that were set aside."""

    def plus(self, other: Applied) -> Applied:
        """Both together."""
        return Applied(
            self.files + other.files,
            self.acknowledged + other.acknowledged,
            self.deleted + other.deleted,
            self.unknown + other.unknown,
            self.mismatched + other.mismatched,
            self.refused + other.refused,
        )


def folder(queue: Path) -> Path:
    """Where the files of a queue lie."""
    return Path(f"{queue}.ack")


def waiting(queue: Path) -> list[str]:
    """Names of the files to apply, in order. A name that begins with a dot is still being written."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder(queue)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if name.endswith(".json") and not name.startswith(".")][:MAX_FILES]


def read(queue: Path, name: str) -> Acknowledgement:
    """One file; :class:`DataError` where it is not one, :class:`FileNotFoundError` where somebody else applied it."""
    try:
        descriptor = os.open(folder(queue) / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError("is not a plain file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    return parse(content)


def parse(content: bytes) -> Acknowledgement:
    """The content of a file; anything that was not foreseen is refused."""
    if len(content) > MAX_BYTES:
        raise DataError(f"is larger than {MAX_BYTES} bytes")
    try:
        values = parse_json(content)
    except DataError as error:
        raise DataError(f"is {error}") from None
    if not isinstance(values, dict) or set(values) != {"kind", "schema", "delete", "records"}:
        raise DataError("is not an object with exactly kind, schema, delete and records")
    if values["kind"] != KIND or type(values["schema"]) is not int or values["schema"] != SCHEMA:
        raise DataError(f"is not of the kind {KIND!r}, schema {SCHEMA}")
    if type(values["delete"]) is not bool or not isinstance(values["records"], dict):
        raise DataError("delete is not true or false, or records is not an object")
    for id, sha256 in values["records"].items():
        if not is_hex(id, 32) or not is_hex(sha256, 64):
            raise DataError(f"{id[:100]!r}: {str(sha256)[:100]!r} is not an id and a sha256 in lower-case hex")
    return Acknowledgement(values["delete"], values["records"])


def to_bytes(acknowledgement: Acknowledgement) -> bytes:
    """Return the content of a file; :class:`DataError` for one that :func:`parse` would refuse."""
    content = json_bytes({"kind": KIND, "schema": SCHEMA, **fields_to_json(acknowledgement)}, indent=None)
    parse(content)
    return content


def write(queue: Path, name: str, acknowledgement: Acknowledgement) -> Path:
    """Leave a file for a queue on this machine; whole or not at all."""
    if not name.endswith(".json") or name.startswith(".") or Path(name).name != name:
        raise DataError(f"{name!r} is not a name for an acknowledgement: expected NAME.json")
    content = to_bytes(acknowledgement)
    place = folder(queue)
    place.mkdir(mode=0o700, exist_ok=True)
    return write_atomically(place / name, content)


def done(queue: Path, name: str) -> None:
    """Remove a file that was applied."""
    (folder(queue) / name).unlink(missing_ok=True)


def refuse(queue: Path, name: str) -> None:
    """Set a file aside that cannot be applied, for somebody to look at."""
    path = folder(queue) / name
    os.rename(path, f"{path}{REFUSED}")
