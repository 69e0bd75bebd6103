"""A queue's file as an SQLite database: opening it, reading and writing it, taking turns, moving a damaged one aside.

Nothing here knows what a record is. A *transaction* is BEGIN IMMEDIATE … COMMIT within the log's part of the bound; a
*read* is one snapshot, and short: a reader that stays keeps the log from being emptied.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import DataNotFoundError, QueueError
from . import tables
from .clock import Clock, QueueClock, Start, start
from .eviction import BASE_PAGES, CHECKPOINT_BYTES, Bounds
from .files import (
    beside,
    bounds_of,
    connect,
    connect_readonly,
    create,
    fill,
    free_name,
    identity,
    is_short,
    require_ours,
    translate,
)

log = logging.getLogger("alpose.monitor")

CHECKPOINT_WAIT_S = 0.1
"""How long writers may be held up by one attempt to empty the log that some reader still needs."""


MOST_REMEMBERED_PICTURES = 256
"""Pictures of which it is remembered where they lie: people on one frame come one after the other."""


class Database:
    """A connection, opened by :func:`open_writable` or :func:`open_readonly`."""

    def __init__(
        self,
        path: Path,
        db: sqlite3.Connection,
        bounds: Bounds,
        clock: QueueClock | None,
        begun: Start | None = None,
        frozen: bool = False,
        given_max_bytes: int | None = None,
    ) -> None:
        self.path, self.db, self.bounds = path, db, bounds
        self.begun = begun
        """How its clock started; None where it is only read."""
        self.frozen = frozen
        """Opened as a file that nobody writes."""
        self.given_max_bytes = given_max_bytes
        """The bound that the file is to have from now on; None leaves it as it is."""
        self._clock = clock
        self.opened_seq = db.execute("SELECT coalesce(max(seq), 0) FROM record").fetchone()[0]
        """The last record that was there when this was opened."""
        self._main = identity(path)
        self.busy_timeout_s = tables.pragma(db, "busy_timeout") / 1000
        self._wal: tuple[int, int] | None = None
        self.picture_keys: OrderedDict[str, int] = OrderedDict()
        """Where pictures lie that were written lately, by the sha256 of their data; what is there now has to be looked at."""

    def remember_pictures(self, keys: Mapping[str, int]) -> None:
        """Note where pictures lie, so that another record of the same frame shares them."""
        for sha256, key in keys.items():
            self.picture_keys[sha256] = key
            self.picture_keys.move_to_end(sha256)
        while len(self.picture_keys) > MOST_REMEMBERED_PICTURES:
            self.picture_keys.popitem(last=False)

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
        orphan = self._wal is not None and identity(self.path) != self._main and identity(log_path) == self._wal
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

    def needs_reopen(self) -> bool:
        """It was opened as a file that nobody writes, and somebody does now: open it again."""
        return self.frozen and beside(self.path, "-wal").exists()

    def wal_bytes(self) -> int:
        """The length of the log's file."""
        with suppress(FileNotFoundError):
            return os.stat(beside(self.path, "-wal")).st_size
        return 0

    def in_place(self) -> bool:
        """Whether the path still names the files that are open: what is written elsewhere, nobody will find."""
        wal = self._wal is None or identity(beside(self.path, "-wal")) == self._wal
        return wal and identity(self.path) == self._main

    def used_pages(self) -> int:
        """Pages with content, as this connection sees them."""
        return tables.pragma(self.db, "page_count") - tables.pragma(self.db, "freelist_count")

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

    def shrink(self, keep: int) -> None:
        """Give free pages but ``keep`` back to the disk, in pieces that the log has room for."""
        step = max(1, self.bounds.most_pages // 4)
        while tables.pragma(self.db, "freelist_count") > keep:
            before = tables.pragma(self.db, "page_count")
            with self.transaction() as transaction:
                transaction.reserve(3 * step)
                transaction.vacuum(min(step, tables.pragma(self.db, "freelist_count") - keep))
            if tables.pragma(self.db, "page_count") >= before:
                return

    def remember_wal(self) -> None:
        """Note which log is open; it exists from the first transaction on."""
        if self._wal is None:
            self._wal = identity(beside(self.path, "-wal"))


class Transaction:
    """BEGIN IMMEDIATE … COMMIT, turned over into a further one where it would outgrow the log's part."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.db = database.db
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
        return self._database.bounds.wal_pages - BASE_PAGES

    def begin(self, pages: int) -> None:
        """Take the write lock, with so many pages free in the log."""
        pages = min(pages, self._database.bounds.wal_pages)  # What exceeds even an empty log goes into an empty log.
        deadline, last = time.monotonic() + self._database.busy_timeout_s, False
        while True:
            self._require_in_place()
            self.db.execute("BEGIN IMMEDIATE")
            self._database.remember_wal()
            self._room = self._database.bounds.wal_room(self._database.wal_bytes())  # Nobody else appends to it now.
            if self._room >= pages:
                break
            self.db.execute("ROLLBACK")
            # Another writer may fill it again before this one gets its turn: that is no reason to give up.
            emptied = self._database.checkpoint()
            late = time.monotonic() > deadline
            if last or (late and not emptied):
                raise QueueError(
                    "locked" if emptied else "held",
                    f"{self._database.path}: the write-ahead log is at its limit of {self._database.bounds.wal_bytes} bytes, and "
                    f"{'other writers fill it' if emptied else 'a reader keeps it from being emptied'}. Close what else "
                    "holds the file open",
                )
            last = late  # a slow disk alone may take all of the time to empty it: once more, then
        self._database.clock.raise_to(tables.meta(self.db, "clock_ns"))
        self.now_ns = self._database.clock.now_ns()
        self._spent, self._changes = BASE_PAGES, self.db.total_changes
        self.number += 1

    def reserve(self, pages: int) -> bool:
        """Make sure that so many more pages may be changed.

        Where they may not, what was done so far is committed and a new transaction begun: True tells that others may
        have written in between. Call it only where what was done so far may stand on its own.
        """
        if self._spent + pages <= self._room:
            return False
        self.commit()
        self.begin(pages + BASE_PAGES)
        return True

    def consume(self, pages: int) -> None:
        """So many pages were changed, at most."""
        self._spent += pages

    def has_changed(self) -> None:
        """Have this transaction committed although ``total_changes`` does not know of what it did."""
        self._changes = -1

    def vacuum(self, pages: int) -> None:
        """Cut so many free pages off the file's end; SQLite moves what lies behind them."""
        for _ in range(pages):  # sqlite3 stops the pragma after one page, however many it is asked for.
            self.db.execute("PRAGMA incremental_vacuum(1)")
        self.consume(3 * pages)
        self.has_changed()

    def commit(self) -> None:
        """Synced when it returns; nothing is written where nothing changed."""
        if self._database.clock.jumped_back():
            tables.count(self.db, "clock_backwards_total")
        if self.db.total_changes == self._changes:
            self.db.execute("ROLLBACK")
            return
        self.db.execute("UPDATE meta SET value = ? WHERE key = 'clock_ns'", (self.now_ns,))
        self.db.execute("COMMIT")
        self._require_in_place()

    def _require_in_place(self) -> None:
        if not self._database.in_place():
            raise QueueError(
                "moved",
                f"{self._database.path} or its -wal was deleted or replaced while it was open: what was written last may "
                "be in no file that has a name. Open it again, and write it again",
            )


def open_writable(
    path: Path, *, max_bytes: int | None, busy_timeout_s: float, clock: Clock, quarantined: int = 0
) -> Database:
    """Open a queue for writing; a file that is not there, or is empty, becomes a new one.

    Args:
        quarantined: how many files were moved aside to make place for this one: counted in it.

    Raises:
        QueueError: ``damaged``, ``foreign``, or as for any access.
    """
    if not path.parent.is_dir():
        raise DataNotFoundError(f"{path.parent} is not a folder: make it before a queue is put there")
    create(path)
    db = connect(path, "rw", busy_timeout_s)
    try:
        short = is_short(db, path)
        if tables.is_empty(db):
            fill(db, clock, quarantined)
        require_ours(db, path)
        wrong = tables.look(db) or ("its end is missing" if short else None)
        if wrong is not None:
            raise QueueError("damaged", f"{path} is damaged: {wrong}")
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        bounds = bounds_of(db, max_bytes)
        db.execute(f"PRAGMA journal_size_limit = {bounds.wal_bytes}").fetchone()
        # A second line of defence: what is put never gets here.
        db.execute(f"PRAGMA max_page_count = {max(bounds.file_pages, 1)}").fetchone()
        last_ns = tables.meta(db, "clock_ns")
        begun = start(clock.wall_ns(), last_ns, tables.meta(db, "doubted_wall_ns"))
        return Database(path, db, bounds, QueueClock(clock, begun), begun, given_max_bytes=max_bytes)
    except BaseException:
        db.close()
        raise


def open_readonly(path: Path, *, max_bytes: int | None, busy_timeout_s: float) -> Database:
    """Open a queue that others may be writing, or a copy of one, without changing a byte of it."""
    if not path.is_file():
        raise DataNotFoundError(f"{path} is not there: give the path of a queue")
    db, live = connect_readonly(path, busy_timeout_s)
    try:
        require_ours(db, path)
        return Database(path, db, bounds_of(db, max_bytes), None, frozen=not live)
    except BaseException:
        db.close()
        raise
