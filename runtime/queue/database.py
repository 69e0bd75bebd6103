"""A queue's file as an SQLite database: opening it, reading and writing it, taking turns, moving a damaged one aside.

Nothing here knows what a record is. A *transaction* is BEGIN IMMEDIATE … COMMIT within the log's part of the bound; a
*read* is one snapshot, and short: a reader that stays keeps the log from being emptied.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Literal, TypeVar

from ..errors import ConfigError, DataNotFoundError, QueueError
from . import eviction, tables
from .clock import Clock, QueueClock, Start, start
from .eviction import BASE_PAGES, CHECKPOINT_BYTES, DEFAULT_MAX_BYTES, LEAST_BYTES, Bounds, Policy

log = logging.getLogger("alpose.monitor")

CHECKPOINT_WAIT_S = 0.1
"""How long writers may be held up by one attempt to empty the log that some reader still needs."""

TURN_S = 30.0
"""So long a thread waits for its turn, beyond the time that the one before it may wait for other processes."""

CLOSE_S = 5.0
"""So long closing waits for whoever is still at the file, and for the disk."""

MOST_REMEMBERED_PICTURES = 256
"""Pictures of which it is remembered where they lie: people on one frame come one after the other."""

T = TypeVar("T")

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
        self._main = _identity(path)
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
        wal = self._wal is None or _identity(beside(self.path, "-wal")) == self._wal
        return wal and _identity(self.path) == self._main

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
            self._wal = _identity(beside(self.path, "-wal"))


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


class SharedDatabase:
    """A database behind a lock, so that threads take turns; one that is damaged is moved aside, and a new one begun."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int | None,
        policy: Policy,
        busy_timeout_s: float,
        on_damage: Literal["quarantine", "raise"],
        readonly: bool,
        open_now: bool,
        clock: Clock,
    ) -> None:
        self.path, self.busy_timeout_s, self.readonly = path, busy_timeout_s, readonly
        self._given_max_bytes = max_bytes
        self._policy, self._on_damage, self._clock = policy, on_damage, clock
        self._lock, self._owner = threading.RLock(), 0
        self._process = os.getpid()
        self._closed = False
        self._database: Database | None = self._open() if open_now else None

    def in_place(self) -> bool:
        """Whether the path still names the file that is open."""
        with self._use() as database:
            return database.in_place()

    def reopen(self, *, quarantine: bool = False) -> None:
        """Close and open again with the same settings, after ``moved``, ``damaged`` or ``io``.

        Args:
            quarantine: move the file aside first, whatever the check at opening would say of it.
        """
        with self._lock:
            self._closed = False
            orphan = None
            if self._database is not None:
                orphan, self._database = self._database.close(), None
            self._database = self._replace(self._file()) if quarantine and not self.readonly else self._open()
            if orphan is not None and not self.readonly:
                with self._use() as database, database.transaction() as transaction:
                    tables.count(transaction.db, "orphaned_logs_total")

    def close(self, timeout_s: float | None = None) -> bool:
        """Close; the last one to do so leaves everything in the one file. Closing twice is closing once.

        Waits for ``timeout_s`` (5) at most. Where another thread is still at it, or the disk hangs, the file is closed as
        soon as that is over. Returns whether it is closed.
        """
        self._closed = True
        if os.getpid() != self._process:
            self._database = None
        if self._database is None or self._owner == threading.get_ident():  # a signal came while this thread was at it
            return self._database is None
        closing = threading.Thread(target=self._close, name="alpose-queue-closing", daemon=True)
        try:
            closing.start()
        except RuntimeError:  # the interpreter is shutting down
            self._close()
            return True
        closing.join(CLOSE_S if timeout_s is None else timeout_s)
        if closing.is_alive():
            log.error("queue %s is still in use: it is closed as soon as that is over", self.path)
        return not closing.is_alive()

    def within(self, timeout_s: float, task: Callable[[], T]) -> T:
        """Do something with the queue, on a thread of its own, and wait for it at most so long.

        Where it takes longer it goes on behind, and a :class:`QueueError` with the reason ``hung`` is raised: a disk
        that does not answer must not hold up an app.
        """
        done: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                done.append(task())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run, name="alpose-queue-task", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if failed:
            raise failed[0]
        if not done:
            raise QueueError(
                "hung", f"{self.path} does not answer within {timeout_s:.0f} s: its disk hangs, or others hold the file"
            )
        return done[0]

    def _close(self) -> None:
        with self._lock:
            database, self._database = self._database, None
            if database is not None:
                database.close()

    def _file(self) -> Path:
        """The file itself, where the path is a link to another disk: its log lies beside it, and it is what is moved aside.

        The link is followed at each opening: what it points to may be mounted later.
        """
        return Path(os.path.realpath(self.path)) if self.path.is_symlink() else self.path

    def _open(self) -> Database:
        path = self._file()
        logged = has_log(path)
        try:
            if self.readonly:
                return open_readonly(path, max_bytes=self._given_max_bytes, busy_timeout_s=self.busy_timeout_s)
            return self._updated(self._open_writable(path))
        except sqlite3.Error as error:
            failure = translate(error, path=path)
        except QueueError as error:
            failure = error
        if failure.reason == "damaged" and not was_ours(path, logged):
            raise QueueError(
                "foreign",
                f"{self.path} is not a queue, as far as its beginning tells: it is left alone. If it was one, its beginning is damaged, and "
                f"'alpose-monitor queue recover {self.path} --into NEW.db' saves what is left; otherwise give the path of a queue, or a "
                "name that is not taken",
            )
        if failure.reason != "damaged" or self.readonly or self._on_damage == "raise":
            raise failure
        return self._replace(path)

    def _replace(self, path: Path) -> Database:
        """Move the damaged file aside, and begin a new one that knows of it."""
        quarantine(path, self._clock.wall_ns() / 1e9)
        try:
            return self._updated(self._open_writable(path, quarantined=1))
        except sqlite3.Error as error:
            raise translate(error, path=path) from error

    def _open_writable(self, path: Path, quarantined: int = 0) -> Database:
        return open_writable(
            path,
            max_bytes=self._given_max_bytes,
            busy_timeout_s=self.busy_timeout_s,
            clock=self._clock,
            quarantined=quarantined,
        )

    def _updated(self, database: Database) -> Database:
        """Bring what is stored in line with the settings of today."""
        try:
            with database.transaction() as transaction:
                eviction.update_after_opening(database, transaction, self._policy)
                eviction.evict_expired(database, transaction, self._policy)
                eviction.make_room(database, transaction, 0, 0, None)
                eviction.end_control_period(database, transaction)
            if tables.pragma(database.db, "page_count") > database.bounds.file_pages:
                database.shrink(keep=0)
                database.checkpoint()
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def _use(self) -> Iterator[Database]:
        if os.getpid() != self._process:
            raise QueueError("closed", f"{self.path}: a Queue does not survive a fork. Open it in the new process")
        if not self._lock.acquire(timeout=self.busy_timeout_s + TURN_S):
            raise QueueError("hung", f"{self.path}: another thread has been at it for long; perhaps its disk hangs")
        outer, self._owner = self._owner, threading.get_ident()
        try:
            yield self._opened()
        except sqlite3.Error as error:
            raise translate(error, self._database) from error
        finally:
            self._owner = outer
            if self._closed and not outer and self._database is not None:
                self._close()
            self._lock.release()

    def _opened(self) -> Database:
        """The database, opened if it is not; called under the lock."""
        if self._closed:
            raise QueueError("closed", f"{self.path}: the queue was closed")
        if self._database is not None and self._database.needs_reopen():
            self._database.close()
            self._database = None
        if self._database is None:
            try:
                self._database = self._open()
            except QueueError:
                raise
            except (DataNotFoundError, OSError) as error:  # not mounted, perhaps
                raise QueueError("io", str(error)) from error
        return self._database


# Opening.


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
    _create(path)
    db = _connect(path, "rw", busy_timeout_s)
    try:
        short = _is_short(db, path)
        if tables.is_empty(db):
            _fill(db, clock, quarantined)
        _require_ours(db, path)
        wrong = tables.look(db) or ("its end is missing" if short else None)
        if wrong is not None:
            raise QueueError("damaged", f"{path} is damaged: {wrong}")
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        bounds = _bounds(db, max_bytes)
        db.execute(f"PRAGMA journal_size_limit = {bounds.wal_bytes}").fetchone()
        # A second line of defence: what is put never gets here.
        db.execute(f"PRAGMA max_page_count = {max(bounds.file_pages, 1)}").fetchone()
        last_ns = tables.meta(db, "clock_ns")
        begun = start(clock.wall_ns(), last_ns, tables.meta(db, "doubted_wall_ns"))
        return Database(path, db, bounds, QueueClock(clock, begun), begun, given_max_bytes=max_bytes)
    except BaseException:
        db.close()
        raise


def _is_short(db: sqlite3.Connection, path: Path) -> bool:
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


def _bounds(db: sqlite3.Connection, max_bytes: int | None) -> Bounds:
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


def open_readonly(path: Path, *, max_bytes: int | None, busy_timeout_s: float) -> Database:
    """Open a queue that others may be writing, or a copy of one, without changing a byte of it."""
    if not path.is_file():
        raise DataNotFoundError(f"{path} is not there: give the path of a queue")
    db, live = connect_readonly(path, busy_timeout_s)
    try:
        _require_ours(db, path)
        return Database(path, db, _bounds(db, max_bytes), None, frozen=not live)
    except BaseException:
        db.close()
        raise


def connect_readonly(path: Path, busy_timeout_s: float) -> tuple[sqlite3.Connection, bool]:
    """Open an SQLite file without changing a byte of it, and say whether others may write it meanwhile.

    :class:`QueueError` or :class:`sqlite3.Error` where it cannot be read.
    """
    # A log beside it tells of a writer, or of one that was killed. Without one nobody writes, and looking at the file
    # as one that cannot change spares the files that SQLite would otherwise leave beside a mere copy.
    live = beside(path, "-wal").exists()
    with _with_index(path) if live else nullcontext(path) as place:
        db = _connect(place, "ro" if live else "immutable", busy_timeout_s)
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


def _require_ours(db: sqlite3.Connection, path: Path) -> None:
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


# Errors and names.


def translate(error: sqlite3.Error, database: Database | None = None, path: Path | None = None) -> QueueError:
    """SQLite's error as a :class:`QueueError`."""
    path = database.path if database else path
    code = getattr(error, "sqlite_errorcode", None)
    reason = REASONS.get(code & 0xFF) if code is not None else None
    reason = reason or next((reason for text, reason in TEXTS.items() if text in str(error)), "io")
    if database is not None and reason in ("io", "read_only", "damaged") and not database.in_place():
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
