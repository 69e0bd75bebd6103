"""One open connection to a queue's file, and the rules of reading and writing it.

Nothing here knows what a record is. A *transaction* is BEGIN IMMEDIATE … COMMIT within the log's part of the bound; a
*read* is one snapshot, and short: a reader that stays keeps the log from being emptied.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import QueueError
from . import schema
from .bounds import BASE_PAGES, CHECKPOINT_BYTES, Bounds
from .clock import QueueClock, Start

log = logging.getLogger("alpose.monitor")

CHECKPOINT_WAIT_S = 0.1
"""How long writers may be held up by one attempt to empty the log that some reader still needs."""

REASONS = {3: "read_only", 5: "locked", 6: "locked", 8: "read_only", 11: "damaged", 13: "full", 26: "damaged"}
"""By SQLite's primary result code; Python tells it from 3.11 on."""
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
"""And by its words, which have not changed since 2004."""


class File:
    """A connection, opened by :func:`open_writable` or :func:`open_readonly`."""

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection,
        bounds: Bounds,
        clock: QueueClock | None,
        begun: Start | None = None,
        frozen: bool = False,
    ) -> None:
        self.path, self.db, self.bounds = path, db, bounds
        self.begun = begun
        """How its clock started; None where it is only read."""
        self.frozen = frozen
        """Opened as a file that nobody writes."""
        self._clock = clock
        self._main = _identity(path)
        self.busy_timeout_s = schema.pragma(db, "busy_timeout") / 1000
        self._wal: tuple[int, int] | None = None

    @property
    def clock(self) -> QueueClock:
        """Of a writable file."""
        if self._clock is None:
            raise QueueError("read_only", f"{self.path} was opened for reading alone")
        return self._clock

    def close(self) -> Path | None:
        """The last connection to close copies the log into the file and removes it.

        Where the file was moved, deleted or replaced, SQLite leaves the log behind, and would take it for the log of
        whatever file has the name next. So it is moved aside, for it has the last records of its file, which may live
        on under another name.

        Returns:
            Where that log is now; None where there is none.
        """
        log_path = beside(self.path, "-wal")
        orphan = self._wal is not None and _identity(self.path) != self._main and _identity(log_path) == self._wal
        self.db.close()
        if not orphan:
            return None
        target = free_name(self.path, "orphaned", time.time())
        try:
            os.rename(log_path, beside(target, "-wal"))
        except OSError as error:
            log.error("queue %s: the log of a file that is gone could not be moved aside: %s", self.path, error)
            return None
        log.error(
            "queue %s was moved, deleted or replaced while it was open: its log, with the last records, is now %s-wal. "
            "If the file lives on under another name, give its log that name and -wal",
            self.path, target,
        )  # fmt: skip
        return target

    def thawed(self) -> bool:
        """It was opened as a file that nobody writes, and somebody does now: open it again."""
        return self.frozen and beside(self.path, "-wal").exists()

    def wal_bytes(self) -> int:
        """The length of the log's file."""
        with suppress(FileNotFoundError):
            return os.stat(beside(self.path, "-wal")).st_size
        return 0

    def in_place(self) -> bool:
        """Whether the path still names the files that are open: what is written elsewhere, nobody will find."""
        wal = self._wal is None or _identity(beside(self.path, "-wal")) == self._wal
        return wal and _identity(self.path) == self._main

    def used_pages(self) -> int:
        """Pages with content, as this connection sees them."""
        return schema.pragma(self.db, "page_count") - schema.pragma(self.db, "freelist_count")

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Several statements that see one state of the file. Do not stay inside."""
        self.db.execute("BEGIN")
        try:
            yield self.db
        finally:
            with suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Write; on the disk, synced, when the block is left. Whatever is raised inside leaves the file as it was."""
        transaction = Transaction(self)
        try:
            transaction.begin(BASE_PAGES)
            yield transaction
            transaction.commit()
        finally:
            if self.db.in_transaction:
                with suppress(sqlite3.Error):
                    self.db.execute("ROLLBACK")
        if self.wal_bytes() > min(CHECKPOINT_BYTES, self.bounds.wal_bytes // 2):
            try:
                self.checkpoint(wait_s=0)
            except sqlite3.Error as error:  # What was committed is safe in the log: this is not its caller's concern.
                log.warning("queue %s: the log could not be copied into the file: %s", self.path, error)

    def checkpoint(self, wait_s: float = CHECKPOINT_WAIT_S) -> bool:
        """Copy the log into the file and empty it. False where a reader or writer is in the way.

        The bulk is copied while others write; only then is the log emptied, which keeps them out for a moment.
        """
        try:
            self.db.execute(f"PRAGMA busy_timeout = {round(wait_s * 1000)}")
            self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            busy = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if translate(error, self).reason != "locked":
                raise
            busy = 1
        finally:
            self.db.execute(f"PRAGMA busy_timeout = {round(self.busy_timeout_s * 1000)}")
        return not busy

    def empty_log(self) -> bool:
        """Go on with :meth:`checkpoint` for as long as one waits for other writers. False where a reader stays."""
        deadline = time.monotonic() + self.busy_timeout_s
        while not self.checkpoint():
            if time.monotonic() > deadline:
                return False
        return True

    def remember_wal(self) -> None:
        """Note which log is open; it exists from the first transaction on."""
        if self._wal is None:
            self._wal = _identity(beside(self.path, "-wal"))


class Transaction:
    """BEGIN IMMEDIATE … COMMIT, turned over into a further one where it would outgrow the log's part."""

    def __init__(self, file: File) -> None:
        self._file = file
        self.db = file.db
        self.now_ns = 0
        """The queue's clock; not smaller than in any transaction before, of whatever process."""
        self.number = 0
        """Of the transaction in this row of them. What was read under another number may be no longer so."""
        self._room = 0
        self._spent = 0
        self._changes = 0

    @property
    def most(self) -> int:
        """The largest cost that a fresh transaction can afford."""
        return self._file.bounds.wal_pages - BASE_PAGES

    def begin(self, pages: int) -> None:
        """Take the write lock, with so many pages free in the log."""
        pages = min(pages, self._file.bounds.wal_pages)  # What exceeds even an empty log goes into an empty log.
        deadline, last = time.monotonic() + self._file.busy_timeout_s, False
        while True:
            self._require_in_place()
            self.db.execute("BEGIN IMMEDIATE")
            self._file.remember_wal()
            self._room = self._file.bounds.wal_room(self._file.wal_bytes())  # Nobody else appends to it now.
            if self._room >= pages:
                break
            self.db.execute("ROLLBACK")
            # Another writer may fill it again before this one gets its turn: that is no reason to give up.
            emptied = self._file.checkpoint()
            late = time.monotonic() > deadline
            if last or (late and not emptied):
                raise QueueError(
                    "locked" if emptied else "held",
                    f"{self._file.path}: the write-ahead log is at its limit of {self._file.bounds.wal_bytes} bytes, and "
                    f"{'other writers fill it' if emptied else 'a reader keeps it from being emptied'}. Close what else "
                    "holds the file open",
                )
            last = late  # a slow disk alone may take all of the time to empty it: once more, then
        last_ns = self.db.execute("SELECT value FROM meta WHERE key = 'clock_ns'").fetchone()[0]
        self._file.clock.raise_to(last_ns)
        self.now_ns = self._file.clock.now_ns()
        self._spent, self._changes = BASE_PAGES, self.db.total_changes
        self.number += 1

    def afford(self, pages: int) -> bool:
        """Make sure that so many more pages may be changed.

        Where they may not, what was done so far is committed and a new transaction begun: True tells that others may
        have written in between. Call it only where what was done so far may stand on its own.
        """
        if self._spent + pages <= self._room:
            return False
        self.commit()
        self.begin(pages + BASE_PAGES)
        return True

    def spend(self, pages: int) -> None:
        """So many pages were changed, at most."""
        self._spent += pages

    def vacuum(self, pages: int) -> None:
        """Cut so many free pages off the file's end; SQLite moves what lies behind them."""
        for _ in range(pages):  # sqlite3 stops the pragma after one page, however many it is asked for.
            self.db.execute("PRAGMA incremental_vacuum(1)")
        self.spend(3 * pages)
        self._changes = -1  # total_changes does not know of it.

    def commit(self) -> None:
        """Synced when it returns; nothing is written where nothing changed."""
        if self._file.clock.jumped_back():
            schema.count(self.db, "clock_backwards_total")
        if self.db.total_changes == self._changes:
            self.db.execute("ROLLBACK")
            return
        self.db.execute("UPDATE meta SET value = ? WHERE key = 'clock_ns'", (self.now_ns,))
        self.db.execute("COMMIT")
        self._require_in_place()

    def _require_in_place(self) -> None:
        if not self._file.in_place():
            raise QueueError(
                "moved",
                f"{self._file.path} or its -wal was deleted or replaced while it was open: what was written last may "
                "be in no file that has a name. Open it again, and write it again",
            )


def translate(error: sqlite3.Error, file: File | None = None, path: Path | None = None) -> QueueError:
    """SQLite's error as ours."""
    path = file.path if file else path
    code = getattr(error, "sqlite_errorcode", None)
    reason = REASONS.get(code & 0xFF) if code is not None else None
    reason = reason or next((reason for text, reason in TEXTS.items() if text in str(error)), "io")
    if file is not None and reason in ("io", "read_only", "damaged") and not file.in_place():
        reason = "moved"
    return QueueError(reason, f"{path}: {error} ({reason})")


def _identity(path: Path) -> tuple[int, int] | None:
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
