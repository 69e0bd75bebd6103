"""A queue's database behind a lock: threads take turns, and a file that is damaged or gone is replaced."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from ..errors import DataNotFoundError, QueueError
from . import eviction, tables, updating
from .clock import Clock
from .database import Database, open_readonly, open_writable
from .eviction import Policy
from .files import has_log, quarantine, translate, was_ours

log = logging.getLogger("alpose.monitor")

CLOSE_S = 5.0
"""So long closing waits for whoever is still at the file, and for the disk."""
TURN_S = 30.0
"""So long a thread waits for its turn, beyond the time that the one before it may wait for other processes."""
T = TypeVar("T")


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
                updating.update_after_opening(database, transaction, self._policy)
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
