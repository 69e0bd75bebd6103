"""Opening a queue's file: making it, telling ours from others', finding damage, moving it aside."""

from __future__ import annotations

import errno
import os
import sqlite3
import urllib.parse
from contextlib import suppress
from pathlib import Path
from typing import Literal

from ..errors import ConfigError, DataNotFoundError, QueueError
from . import schema
from .bounds import Bounds
from .clock import Clock, QueueClock, start
from .file import File, beside, free_name, log

MAGIC = b"SQLite format 3\0"
ROOTS = b"\x01\0\0\0\0" * 8
"""How the second page of every queue begins, the map of what points to the pages behind it: they are roots of tables."""
LOOK_BYTES = 1 << 20


def open_writable(path: Path, *, max_bytes: int, busy_timeout_s: float, clock: Clock, quarantined: int = 0) -> File:
    """Open a queue for writing; a file that is not there, or is empty, becomes a new one.

    Args:
        quarantined: how many files were moved aside to make place for this one: counted in it.

    Raises:
        QueueError: ``damaged``, ``foreign``, or as for any access.
    """
    if not path.parent.is_dir():
        raise DataNotFoundError(f"{path.parent} is not a folder: make it before a queue is put there")
    _create(path)
    db = _connect(path, "rw", busy_timeout_s)
    try:
        if schema.is_empty(db):
            _fill(db, clock, quarantined)
        _require_ours(db, path)
        found = db.execute("PRAGMA quick_check(20)").fetchall()
        if found != [("ok",)]:
            lines = "; ".join(str(line) for (line,) in found)
            raise QueueError("damaged", f"{path} is damaged: {lines[:500]}")
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        bounds = Bounds(max_bytes, schema.pragma(db, "page_size"))
        db.execute(f"PRAGMA journal_size_limit = {bounds.wal_bytes}").fetchone()
        # A second line of defence: what is put never gets here.
        db.execute(f"PRAGMA max_page_count = {max(bounds.file_pages, 1)}").fetchone()
        last_ns = db.execute("SELECT value FROM meta WHERE key = 'clock_ns'").fetchone()[0]
        begun = start(clock.wall_ns(), last_ns)
        return File(path, db, bounds, QueueClock(clock, begun), begun)
    except BaseException:
        db.close()
        raise


def open_readonly(path: Path, *, max_bytes: int, busy_timeout_s: float) -> File:
    """Open a queue that others may be writing, or a copy of one, without changing a byte of it."""
    if not path.is_file():
        raise DataNotFoundError(f"{path} is not there: give the path of a queue")
    # A log beside it tells of a writer, or of one that was killed. Without one nobody writes, and looking at the file
    # as one that cannot change spares the files that SQLite would otherwise leave beside a mere copy.
    live = beside(path, "-wal").exists()
    db = _connect(path, "ro" if live else "immutable", busy_timeout_s)
    try:
        _require_ours(db, path)
        return File(path, db, Bounds(max_bytes, schema.pragma(db, "page_size")), None, frozen=not live)
    except BaseException:
        db.close()
        raise


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
        return int.from_bytes(head[68:72], "big") in (0, schema.APPLICATION_ID)
    return logged or not any(head) or head[schema.PAGE_BYTES :].startswith(ROOTS)


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
    return target


def _create(path: Path) -> None:
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


def _connect(path: Path, mode: Literal["rw", "ro", "immutable"], busy_timeout_s: float) -> sqlite3.Connection:
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


def _fill(db: sqlite3.Connection, clock: Clock, quarantined: int) -> None:
    db.execute(f"PRAGMA page_size = {schema.PAGE_BYTES}")
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA journal_mode = WAL").fetchone()
    db.execute("BEGIN IMMEDIATE")
    try:
        if schema.is_empty(db):  # Two processes may begin the same file.
            schema.create(db, start(clock.wall_ns(), None).now_ns)
            schema.count(db, "quarantined_total", "", quarantined)
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _require_ours(db: sqlite3.Connection, path: Path) -> None:
    owner, version = schema.pragma(db, "application_id"), schema.pragma(db, "user_version")
    if owner != schema.APPLICATION_ID:
        raise QueueError(
            "foreign",
            f"{path} is an SQLite database, and not a queue of alpose (application_id {owner:#x}): it is left alone. "
            "Give another path",
        )
    if version > schema.VERSION:
        raise QueueError(
            "foreign", f"{path} has version {version} and this alpose knows {schema.VERSION}: update alpose, or move it"
        )
    wrong = schema.problem(db)
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
