"""A queue as a harvest reads it: the same on this machine and over a line."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from alpose.runtime.errors import DataError
from alpose.runtime.queue import ledger, reading, tables
from alpose.runtime.queue.database import open_readonly
from alpose.runtime.queue.ledger import BundleInfo, Tally
from alpose.runtime.queue.record import Picture, decode

from ..inbox_database import Raw
from .remote import (
    MAX_WAL_BYTES,
    WAL_HEADER,
    ChangedError,
    Moved,
    Snapshot,
    connect,
    read_log,
    snapshot_errors,
)
from .sources import OBJECT_STORES, LocalSource, RemoteSource, Source, over_the_line

CHUNK = 500
"""Manifests of one query."""
PROBE_BYTES = 100
"""Of a file's beginning, to see whether a server answers ranges: SQLite's header."""
MAX_BYTES = 1 << 50
"""Of a queue that is only read: its own bound is its monitor's business."""


class Reader:
    """One moment of a queue. Comes from :func:`open_reader`."""

    def __init__(self, database: Any, moved: Moved, how: str, unchanged: Callable[[], bool]) -> None:
        self._db = database
        self.moved = moved
        self.how = how
        """For people: ``locally``, ``page by page``, ``as a copy``."""
        self._unchanged = unchanged
        _require_ours(database)

    def raws(self) -> Iterator[Raw]:
        """Every manifest, oldest first; nothing is believed before it is held against its hash."""
        after = -1
        while True:
            rows = self._db.execute(
                "SELECT seq, id, sha256, CAST(manifest AS BLOB), arrays, "
                "(SELECT rate FROM control WHERE control.period = record.period) FROM record WHERE seq > ? "
                "ORDER BY seq LIMIT ?", (after, CHUNK),
            ).fetchall()  # fmt: skip
            if not rows:
                return
            after = rows[-1][0]
            for _, id_, sha256, manifest, arrays, rate in rows:
                texts = isinstance(id_, str) and isinstance(sha256, str)
                if texts and isinstance(manifest, bytes) and isinstance(arrays, bytes):
                    yield Raw(id_, sha256, manifest, arrays, rate if isinstance(rate, float) else 1.0)
                else:
                    yield Raw(str(id_)[:64], "", b"", b"", 1.0)  # refused and counted where it is added

    def pictures(self, id_: str) -> list[Picture] | None:
        """A record's pictures, hash-checked; None where the record is gone. :class:`DataError` where one is damaged."""
        row = self._db.execute(
            "SELECT seq, sha256, CAST(manifest AS BLOB), arrays FROM record WHERE id = ?", (id_,)
        ).fetchone()
        if row is None:
            return None
        seq, sha256, manifest, arrays = row
        _, facts = decode(manifest, arrays, sha256)
        pictures = []
        for place, fact in enumerate(facts):
            key = reading.picture_key(self._db, seq, place)
            found = self._db.execute("SELECT data FROM picture WHERE key = ?", (key,)).fetchone()
            if found is None or not isinstance(found[0], bytes):
                raise DataError(f"record {id_}: the picture at position {fact.position} is missing")
            pictures.append(fact.joined(found[0]))
        return pictures

    def ids(self) -> set[str]:
        """Of all records that are on the device."""
        return {str(id_) for (id_,) in self._db.execute("SELECT id FROM record")}

    def queue(self) -> int:
        """Tells this queue from every other, and stays in a copy: when it began, in ns."""
        row = self._db.execute("SELECT began_ns FROM control ORDER BY period LIMIT 1").fetchone()
        return row[0] if row and isinstance(row[0], int) else 0

    def bundles(self) -> list[BundleInfo]:
        """What is needed to read the records of each bundle."""
        return ledger.bundles(self._db)

    def tallies(self) -> list[Tally]:
        """Frames that the monitors saw."""
        return list(ledger.tallies(self._db))

    def counters(self) -> dict[tuple[str, str], int]:
        """Drops, evictions and errors by reason, over the life of the queue."""
        return {
            (str(name), str(reason)): int(n)
            for name, reason, n in self._db.execute("SELECT name, reason, n FROM counter")
        }

    def require_unchanged(self) -> None:
        """:class:`ChangedError` where what was read may be of two moments."""
        if not self._unchanged():
            raise ChangedError("the queue was checkpointed while it was read")


@contextmanager
def open_reader(source: Source) -> Iterator[Reader]:
    """A queue at one moment. :class:`DataError` where it is none, and :class:`ChangedError` where it moved meanwhile."""
    if isinstance(source, LocalSource):
        try:
            if source.path.is_file() and not source.path.stat().st_size:
                raise DataError(f"{source.path} is empty: it was not copied, or not yet")
            with (
                closing(open_readonly(source.path, max_bytes=MAX_BYTES, busy_timeout_s=10.0)) as file,
                file.read() as database,
            ):
                yield Reader(database, Moved(), "locally", lambda: True)
        except sqlite3.Error as error:
            raise DataError(f"{source.path} cannot be read as a queue: {error}. Was it copied whole?") from error
        return
    with _remote_reader(source) as reader:
        yield reader


@contextmanager
def _remote_reader(source: RemoteSource) -> Iterator[Reader]:
    moved = Moved()
    state = source.state()
    log_path = source.beside("-wal")
    log_bytes = source.size(log_path)
    if log_bytes is not None and log_bytes > MAX_WAL_BYTES:
        raise DataError(f"{source.url}: its log has {log_bytes} bytes: it is no queue of ours")
    content = source.content(log_path) if log_bytes else b""
    moved.add(len(content))
    log = read_log(content)

    def unchanged() -> bool:
        header = source.content(log_path, 0, WAL_HEADER) if source.size(log_path) else b""
        return header == log.header and source.state() == state

    first = source.content(source.path, 0, PROBE_BYTES)
    moved.add(len(first))
    if len(first) > PROBE_BYTES:  # a server that does not answer ranges sends everything, whatever it is asked
        with _connected(
            Snapshot(_Content(first, len(first)), log, Moved()), moved, "as a copy", lambda: True
        ) as reader:
            yield reader
        return
    with over_the_line():
        handle = source.files.open(source.path, "rb", **_no_cache(source))
    try:
        snapshot = Snapshot(_Handle(handle, source.size(source.path) or 0), log, moved)
        with _connected(snapshot, moved, "page by page", unchanged) as reader:
            yield reader
    finally:
        handle.close()


@contextmanager
def _connected(snapshot: Snapshot, moved: Moved, how: str, unchanged: Callable[[], bool]) -> Iterator[Reader]:
    database, close = connect(snapshot)
    try:
        yield Reader(database, moved, how, unchanged)
    except snapshot_errors() as error:
        # Pages of two moments look like a damaged file.
        raise ChangedError(f"what was read is no whole database: {error}") from error
    finally:
        close()


@dataclass(frozen=True, slots=True)
class _Content:
    """Ranges of what is here already."""

    content: bytes = field(repr=False)
    size: int

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of [start, stop)."""
        return self.content[start:stop]


@dataclass(frozen=True, slots=True)
class _Handle:
    """Ranges of an open file."""

    file: Any = field(repr=False)
    size: int

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of [start, stop)."""
        with over_the_line():
            self.file.seek(start)
            content: bytes = self.file.read(stop - start)
        if len(content) != stop - start:
            raise ConnectionError(f"{stop - start} bytes were asked for, and {len(content)} came: the line broke off")
        return content


def _no_cache(source: RemoteSource) -> Mapping[str, Any]:
    """Pages are cached here already; file systems over HTTP would fetch megabytes around each."""
    ranged = ({"http", "https"} | OBJECT_STORES) & source.protocols
    return {"cache_type": "none"} if ranged else {}


def _require_ours(database: Any) -> None:
    owner, version = (tables.pragma(database, name) for name in ("application_id", "user_version"))
    if owner != tables.APPLICATION_ID:
        raise DataError("it is no queue of alpose")
    if version > tables.VERSION:
        raise DataError(f"it was written by a newer alpose (schema {version}, this one reads {tables.VERSION}): update")
    problem = tables.problem(database)
    if problem:
        raise DataError(f"it is no whole queue: {problem}")


__all__ = ["ChangedError", "Reader", "open_reader"]
