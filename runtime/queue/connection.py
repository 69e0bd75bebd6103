"""Opening a queue's file, closing it, and taking turns on it."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..errors import QueueError
from . import eviction, schema, verbs
from .clock import Clock
from .eviction import Policy
from .file import File, translate
from .opening import has_log, open_readonly, open_writable, quarantine, was_ours


class Connection:
    """One connection with a lock before it. A file that turns out damaged is moved aside, and a new one begun."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        policy: Policy,
        busy_timeout_s: float,
        on_damage: Literal["quarantine", "raise"],
        readonly: bool,
        clock: Clock,
    ) -> None:
        self.path, self.max_bytes, self.busy_timeout_s, self.readonly = path, max_bytes, busy_timeout_s, readonly
        self._policy, self._on_damage, self._clock = policy, on_damage, clock
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._file: File | None = self._open()

    def in_place(self) -> bool:
        """Whether the path still names the file that is open."""
        with self._use() as file:
            return file.in_place()

    def reopen(self, *, quarantine: bool = False) -> None:
        """Close and open again with the same settings, after ``moved``, ``damaged`` or ``io``.

        Args:
            quarantine: move the file aside first, whatever the check at opening would say of it.
        """
        with self._lock:
            orphan = None
            if self._file is not None:
                orphan, self._file = self._file.close(), None
            self._file = self._replace() if quarantine and not self.readonly else self._open()
            if orphan is not None and not self.readonly:
                with self._use() as file, file.transaction() as transaction:
                    schema.count(transaction.db, "orphaned_logs_total")

    def close(self) -> None:
        """Close; the last one to do so leaves everything in the one file. Closing twice is closing once."""
        with self._lock:
            if self._file is not None and os.getpid() == self._process:
                self._file.close()
            self._file = None

    def _open(self) -> File:
        logged = has_log(self.path)
        try:
            if self.readonly:
                return open_readonly(self.path, max_bytes=self.max_bytes, busy_timeout_s=self.busy_timeout_s)
            return self._settled(self._open_writable())
        except sqlite3.Error as error:
            failure = translate(error, path=self.path)
        except QueueError as error:
            failure = error
        if failure.reason == "damaged" and not was_ours(self.path, logged):
            raise QueueError(
                "foreign",
                f"{self.path} is no queue, and was none: it is left alone. Give the path of a queue, or a name that is not taken",
            )
        if failure.reason != "damaged" or self.readonly or self._on_damage == "raise":
            raise failure
        return self._replace()

    def _replace(self) -> File:
        """Move the damaged file aside, and begin a new one that knows of it."""
        quarantine(self.path, self._clock.wall_ns() / 1e9)
        try:
            return self._settled(self._open_writable(quarantined=1))
        except sqlite3.Error as error:
            raise translate(error, path=self.path) from error

    def _open_writable(self, quarantined: int = 0) -> File:
        return open_writable(
            self.path,
            max_bytes=self.max_bytes,
            busy_timeout_s=self.busy_timeout_s,
            clock=self._clock,
            quarantined=quarantined,
        )

    def _settled(self, file: File) -> File:
        """Bring what is stored in line with the settings of today."""
        try:
            with file.transaction() as transaction:
                eviction.settle(file, transaction, self._policy)
                eviction.evict_expired(file, transaction, self._policy)
                eviction.make_room(file, transaction, 0, 0, None)
            if schema.pragma(file.db, "page_count") > file.bounds.file_pages:
                verbs.shrink(file, keep=0)
                file.checkpoint()
        except BaseException:
            file.close()
            raise
        return file

    @contextmanager
    def _use(self) -> Iterator[File]:
        with self._lock:
            if os.getpid() != self._process:
                raise QueueError("closed", f"{self.path}: a Queue does not survive a fork. Open it in the new process")
            if self._file is None:
                raise QueueError("closed", f"{self.path}: the queue was closed")
            try:
                if self._file.thawed():
                    self._file.close()
                    self._file = self._open()
                yield self._file
            except sqlite3.Error as error:
                raise translate(error, self._file) from error
