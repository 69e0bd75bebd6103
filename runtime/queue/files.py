"""The files of a queue: made, opened, looked at, moved aside, and what SQLite says of them in our words."""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..errors import ConfigError, QueueError
from . import tables
from .clock import Clock, start
from .eviction import DEFAULT_MAX_BYTES, LEAST_BYTES, Bounds

if TYPE_CHECKING:
    from .database import Database

log = logging.getLogger("alpose.monitor")

MAGIC = b"SQLite format 3\0"
ROOTS = b"\x01\0\0\0\0" * 8
"""How the second page of every queue begins, the map of what points to the pages behind it: they are roots of tables."""
LOOK_BYTES = 1 << 20
MOST_ASIDE = 4
"""Files that were moved aside and are kept, the newest."""
REASONS = {3: "read_only", 5: "locked", 6: "locked", 8: "read_only", 11: "damaged", 13: "full", 26: "damaged"}
"""Reasons by SQLite's primary result code, which Python tells from 3.11 on."""
TEXTS = {
    "is full": "full",
    "readonly": "read_only",
    "is locked": "locked",
    "malformed": "damaged",
    "not a database": "damaged",
    "malformed database schema": "damaged",
    "Could not decode": "damaged",
    "closed database": "closed",
}
"""Reasons by SQLite's words, which have not changed since 2004."""


def connect_readonly(path: Path, busy_timeout_s: float) -> tuple[sqlite3.Connection, bool]:
    """Open an SQLite file without changing a byte of it, and say whether others may write it meanwhile.

    :class:`QueueError` or :class:`sqlite3.Error` where it cannot be read.
    """
    # A log beside it tells of a writer, or of one that was killed. Without one nobody writes, and looking at the file
    # as one that cannot change spares the files that SQLite would otherwise leave beside a mere copy.
    live = beside(path, "-wal").exists()
    with _with_index(path) if live else nullcontext(path) as place:
        db = connect(place, "ro" if live else "immutable", busy_timeout_s)
        try:
            tables.pragma(db, "user_version")  # which opens the log, before its copy goes
        except BaseException:
            db.close()
            raise
        return db, live


@contextmanager
def _with_index(path: Path) -> Iterator[Path]:
    """The file, or a copy of it and its log where SQLite cannot make the log's index: on a card that is mounted
    read-only, of a device that lost its power. The copy goes at once; what is open stays readable."""
    if beside(path, "-shm").exists() or os.access(path.parent, os.W_OK):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="alpose-") as folder:
        place = Path(folder) / "queue.db"
        for ending in ("", "-wal"):
            shutil.copyfile(beside(path, ending), beside(place, ending))
        yield place


def has_log(path: Path) -> bool:
    """Whether a log or its index lies beside the file; to be asked before SQLite opens it, which may remove them."""
    return any(beside(path, ending).exists() for ending in ("-wal", "-shm"))


def was_ours(path: Path, logged: bool) -> bool:
    """Whether a file that SQLite cannot read may have been a queue: what somebody else wrote there is not moved aside.

    A power cut can take the first page, or leave zeros. To be called where nobody can have locks on the file that are of
    use: reading it gives them up.

    Args:
        path: of the file.
        logged: :func:`has_log`.
    """
    try:
        with path.open("rb") as file:
            head = file.read(LOOK_BYTES)
    except OSError:  # gone, or unreadable in earnest
        return True
    if head.startswith(MAGIC):
        return int.from_bytes(head[68:72], "big") in (0, tables.APPLICATION_ID)
    return logged or not any(head) or head[tables.PAGE_BYTES :].startswith(ROOTS)


def quarantine(path: Path, time_s: float) -> Path:
    """Move a damaged file aside with its log and index; nothing is deleted. Returns its new path.

    The log goes first: a new file beside an old log would be taken for its database.
    """
    target = free_name(path, "damaged", time_s)
    for ending in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):  # Another process may be doing the same.
            os.rename(beside(path, ending), beside(target, ending))
    _sync_folder(path.parent)
    log.error("queue %s is damaged: moved to %s, and a new one is begun", path, target)
    clear_aside(path, None, time_s)
    return target


def clear_aside(path: Path, max_age_s: float | None, now_s: float) -> None:
    """Delete files that were moved aside long ago: those beyond the age limit, and all but the newest few.

    They hold pictures of people, and a disk that damages a file every day must not fill up with them.
    """
    aside = sorted(
        found for what in ("damaged", "orphaned") for found in path.parent.glob(f"{glob.escape(path.name)}.{what}-*")
    )
    names = sorted(
        {re.sub("-(wal|shm)$", "", found.name) for found in aside}, key=lambda name: name.split(".")[-1][-16:]
    )
    late = set(names[:-MOST_ASIDE])
    for found in aside:
        with suppress(OSError):
            old = max_age_s is not None and found.stat().st_mtime < now_s - max_age_s
            if old or re.sub("-(wal|shm)$", "", found.name) in late:
                found.unlink()
                log.warning("queue %s: %s was moved aside long ago, and is deleted", path, found.name)


def create(path: Path) -> None:
    """An empty file that only its owner may read: frames show people."""
    # Never open a file that exists: closing it again would drop every lock that this process holds on it.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        if not path.is_file():
            raise ConfigError(f"{path} is not a file: a queue is one file") from None
        return
    except PermissionError as error:
        raise QueueError("read_only", f"{path} cannot be made: {error}") from None
    except OSError as error:
        raise QueueError("full" if error.errno == errno.ENOSPC else "io", f"{path} cannot be made: {error}") from None
    _sync_folder(path.parent)


def connect(path: Path, mode: Literal["rw", "ro", "immutable"], busy_timeout_s: float) -> sqlite3.Connection:
    """A connection with the settings of every queue: what is written is on the disk, what is erased is overwritten."""
    query = "immutable=1" if mode == "immutable" else f"mode={mode}"
    uri = f"file:{urllib.parse.quote(os.fsencode(path.absolute()))}?{query}"
    try:
        db = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except sqlite3.Error as error:
        raise QueueError("io", f"{path} cannot be opened: {error}") from error
    pragmas = ["trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY"]
    if mode == "rw":
        pragmas += [
            "synchronous = FULL",
            "fullfsync = ON",
            "secure_delete = ON",
            # Pages go into the log once, at the commit: a spilled one would go twice, and past the bound.
            "cache_spill = OFF",
            "wal_autocheckpoint = 0",
        ]
    else:
        pragmas += ["query_only = ON"]
    try:
        for pragma in pragmas:
            db.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        db.close()
        raise
    return db


def fill(db: sqlite3.Connection, clock: Clock, quarantined: int) -> None:
    """Make an empty file a queue."""
    db.execute(f"PRAGMA page_size = {tables.PAGE_BYTES}")
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL").fetchone()
    db.execute("BEGIN IMMEDIATE")
    try:
        if tables.is_empty(db):  # Two processes may begin the same file.
            tables.create(db, start(clock.wall_ns(), None).now_ns)
            tables.count(db, "quarantined_total", "", quarantined)
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def require_ours(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is no queue, and one of a newer version."""
    owner, version = tables.pragma(db, "application_id"), tables.pragma(db, "user_version")
    if not path.stat().st_size and not owner:
        raise QueueError(
            "foreign", f"{path} is an empty file, and not a queue of alpose: it was not copied, or not yet"
        )
    if owner != tables.APPLICATION_ID:
        raise QueueError(
            "foreign",
            f"{path} is an SQLite database, and not a queue of alpose (application_id {owner:#x}): it is left alone. "
            "Give another path",
        )
    if version > tables.VERSION:
        raise QueueError(
            "foreign", f"{path} has version {version} and this alpose knows {tables.VERSION}: update alpose, or move it"
        )
    wrong = tables.problem(db)
    if wrong is not None:
        raise QueueError("damaged", f"{path} is damaged: {wrong}")


def _sync_folder(folder: Path) -> None:
    """A new name survives a power cut only once its folder is on the disk."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_short(db: sqlite3.Connection, path: Path) -> bool:
    """Whether pages are missing at the file's end, and no log has them."""
    db.execute("BEGIN")
    try:
        # While this snapshot is held, nobody copies a log into the file, or cuts pages off it.
        pages = tables.pragma(db, "page_count")
        with suppress(FileNotFoundError):
            if beside(path, "-wal").stat().st_size:
                return False
        return path.stat().st_size < pages * tables.pragma(db, "page_size")
    finally:
        db.execute("ROLLBACK")


def bounds_of(db: sqlite3.Connection, max_bytes: int | None) -> Bounds:
    """The bound that is given, else the file's own.

    A file of an older alpose does not know its bound: it keeps the size that it has, where that is above the default.
    """
    page_bytes = tables.pragma(db, "page_size")
    if max_bytes is not None:
        return Bounds(max_bytes, page_bytes)
    max_bytes = tables.meta(db, "max_bytes")
    if not isinstance(max_bytes, int) or max_bytes < LEAST_BYTES:
        held = tables.pragma(db, "page_count") * page_bytes
        max_bytes = max(DEFAULT_MAX_BYTES, held + held // 3 + (1 << 20))
    return Bounds(max_bytes, page_bytes)


def translate(error: sqlite3.Error, database: Database | None = None, path: Path | None = None) -> QueueError:
    """SQLite's error as a :class:`QueueError`."""
    path = database.path if database else path
    code = getattr(error, "sqlite_errorcode", None)
    reason = REASONS.get(code & 0xFF) if code is not None else None
    reason = reason or next((reason for text, reason in TEXTS.items() if text in str(error)), "io")
    if database is not None and reason in ("io", "read_only", "damaged") and not database.in_place():
        reason = "moved"
    return QueueError(reason, f"{path}: {error} ({reason})")


def identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what has the name now; None of nothing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def free_name(path: Path, what: str, time_s: float) -> Path:
    """A name for what is moved aside, which no file, log or index has yet: ``<path>.<what>-<UTC>``."""
    first = target = Path(f"{path}.{what}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(time_s))}")
    number = 1
    while any(beside(target, ending).exists() for ending in ("", "-wal", "-shm")):
        number += 1
        target = Path(f"{first}-{number}")
    return target


def beside(path: Path, ending: str) -> Path:
    """The path of a file that belongs to a queue: its log, its index."""
    return Path(f"{path}{ending}")
