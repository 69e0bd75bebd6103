"""A queue on another machine, read page by page: SQLite over anything that answers byte ranges.

The queue is written all the while. What is read is one snapshot: the write-ahead log is fetched whole and its committed
pages are laid over the file, which itself changes at checkpoints alone. Whether one happened in between is looked up
after reading, and every record and picture has a hash besides.

Formats: https://www.sqlite.org/fileformat2.html, sections 1.3 (header) and 4 (write-ahead log).
"""

from __future__ import annotations

import itertools
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from alpose.runtime.errors import DataError, MissingExtraError

SQLITE = b"SQLite format 3\0"
WAL_MAGIC = (0x377F0682, 0x377F0683)
"""Checksums over little-endian, and over big-endian words."""
WAL_HEADER, FRAME_HEADER = 32, 24
MAX_WAL_BYTES = 1 << 30
"""Far beyond the log that a queue allows itself: a longer one is damaged or hostile."""
CACHE_BYTES = 64 << 20
AHEAD_BYTES = 1 << 20
"""At most so much is fetched ahead where pages are asked for in order, as those of a picture are."""

_names = itertools.count()


class Ranges(Protocol):
    """A remote file."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of [start, stop)."""
        ...


class ChangedError(DataError):
    """The queue was checkpointed while it was read: take another snapshot."""


@dataclass(slots=True)
class Moved:
    """Bytes and requests that went over the line."""

    bytes: int = 0
    requests: int = 0

    def add(self, count: int) -> None:
        """One answer."""
        self.bytes += count
        self.requests += 1


@dataclass(frozen=True, slots=True)
class Log:
    """The committed pages of a write-ahead log."""

    pages: dict[int, bytes]
    """By number, from 1; the latest of each."""
    page_count: int | None
    """Of the database after the last commit; None where nothing is committed."""
    page_bytes: int | None
    header: bytes
    """Changes when the log begins anew."""


def read_log(content: bytes) -> Log:
    """Parse a write-ahead log up to its last whole transaction; what is torn or left from before is not part of it."""
    header = content[:WAL_HEADER]
    empty = Log({}, None, None, header)
    if len(header) < WAL_HEADER:
        return empty
    magic, _, page_bytes, _, salt_1, salt_2, sum_1, sum_2 = struct.unpack(">8I", header)
    if magic not in WAL_MAGIC or page_bytes not in {2**power for power in range(9, 17)}:
        return empty
    order = "<" if magic == WAL_MAGIC[0] else ">"
    sums = _checksum(header[:24], order, (0, 0))
    if sums != (sum_1, sum_2):
        return empty
    pages: dict[int, bytes] = {}
    waiting: dict[int, bytes] = {}
    count = None
    for start in range(WAL_HEADER, len(content) - FRAME_HEADER - page_bytes + 1, FRAME_HEADER + page_bytes):
        frame = content[start : start + FRAME_HEADER]
        page = content[start + FRAME_HEADER : start + FRAME_HEADER + page_bytes]
        number, commit, *salts, sum_1, sum_2 = struct.unpack(">6I", frame)
        if tuple(salts) != (salt_1, salt_2):
            break
        sums = _checksum(page, order, _checksum(frame[:8], order, sums))
        if sums != (sum_1, sum_2):
            break
        waiting[number] = page
        if commit:
            pages |= waiting
            waiting, count = {}, commit
    return Log(pages, count, page_bytes, header)


class Snapshot:
    """A database as it was at one moment: a remote file with a log over it.

    Args:
        ranges: the file.
        log: its log, read before anything else.
        moved: counts what goes over the line.
    """

    def __init__(self, ranges: Ranges, log: Log, moved: Moved) -> None:
        self._ranges, self._log, self._moved = ranges, log, moved
        header = self._fetch(0, 100)
        first = log.pages.get(1, header)
        if first[:16] != SQLITE:
            raise DataError("it is not a SQLite database: give the path of a queue")
        size = struct.unpack(">H", first[16:18])[0]
        self.page_bytes = 65536 if size == 1 else int(size)
        if log.page_bytes not in (None, self.page_bytes):
            raise ChangedError("its log has pages of another size than the file")
        self.size = (
            (log.page_count * self.page_bytes) if log.page_count else ranges.size // self.page_bytes * self.page_bytes
        )
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._ahead = -1, 1

    def read(self, count: int, offset: int) -> bytes:
        """Bytes of the snapshot; short at its end."""
        count = min(count, max(0, self.size - offset))
        parts = []
        while count:
            number, inside = divmod(offset, self.page_bytes)
            part = self._page(number + 1)[inside : inside + count]
            if not part:
                raise ChangedError("the file became shorter while it was read")
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return b"".join(parts)

    def _page(self, number: int) -> bytes:
        page = self._log.pages.get(number)
        if page is None:
            if number not in self._cache:
                self._load(number)
            self._cache.move_to_end(number)
            page = self._cache[number]
        # The log is laid over the pages already: SQLite must not look for one.
        return page[:18] + b"\1\1" + page[20:] if number == 1 else page

    def _load(self, number: int) -> None:
        """Fetch a page, and those behind it where the last ones were asked for in order."""
        self._ahead = min(self._ahead * 2, max(1, AHEAD_BYTES // self.page_bytes)) if number == self._next else 1
        start = (number - 1) * self.page_bytes
        stop = min(start + self._ahead * self.page_bytes, self._ranges.size // self.page_bytes * self.page_bytes)
        content = self._fetch(start, max(stop, start + self.page_bytes))
        for place in range(0, len(content) - self.page_bytes + 1, self.page_bytes):
            self._cache[number + place // self.page_bytes] = content[place : place + self.page_bytes]
        if number not in self._cache:
            raise ChangedError("the file became shorter while it was read")
        self._next = number + self._ahead
        while len(self._cache) * self.page_bytes > CACHE_BYTES:
            self._cache.popitem(last=False)

    def _fetch(self, start: int, stop: int) -> bytes:
        content = self._ranges.read(start, min(stop, self._ranges.size))
        self._moved.add(len(content))
        return content


def snapshot_errors() -> type[Exception]:
    """What a connection to a snapshot raises by itself."""
    apsw = _apsw()
    errors: type[Exception] = apsw.Error
    return errors


def _apsw() -> Any:
    try:
        import apsw
    except ImportError as error:
        raise MissingExtraError("apsw", "reading a queue on another machine", "harvest") from error
    return apsw


def connect(snapshot: Snapshot) -> tuple[Any, Callable[[], None]]:
    """A connection of apsw that reads a snapshot, and what closes it."""
    apsw = _apsw()
    raised: list[Exception] = []

    class File:
        """The one file; every call of SQLite that would write is refused by the mode in which it is opened."""

        def xRead(self, amount: int, offset: int) -> bytes:
            try:
                return snapshot.read(amount, offset)
            except Exception as error:  # SQLite would turn it into "disk I/O error" and lose what it says
                raised.append(error)
                raise

        def xFileSize(self) -> int:
            return snapshot.size

        def xClose(self) -> None:
            pass

        def xLock(self, level: int) -> None:
            pass

        def xUnlock(self, level: int) -> None:
            pass

        def xCheckReservedLock(self) -> bool:
            return False

        def xDeviceCharacteristics(self) -> int:
            return int(apsw.SQLITE_IOCAP_IMMUTABLE)

        def xSectorSize(self) -> int:
            return 4096

        def xFileControl(self, operation: int, pointer: int) -> bool:
            return False

    class Files(apsw.VFS):  # type: ignore[misc, name-defined]
        def __init__(self, name: str) -> None:
            super().__init__(name, base="")

        def xOpen(self, name: Any, flags: list[int]) -> Any:  # duck-typed: apsw's own file would open one on this disk
            return File()

        def xAccess(self, path: str, flags: int) -> bool:
            return False

        def xFullPathname(self, name: str) -> str:
            return name

    name = f"alpose-remote-{next(_names)}"
    files = Files(name)
    database = apsw.Connection("queue", vfs=name, flags=apsw.SQLITE_OPEN_READONLY)

    def close() -> None:
        with suppress(Exception):
            database.close()
        files.unregister()
        if raised:
            raise raised[0]

    return database, close


def _checksum(content: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """SQLite's running sum over pairs of 32-bit words."""
    first, second = sums
    for a, b in struct.iter_unpack(f"{order}2I", content):
        first = (first + a + second) & 0xFFFFFFFF
        second = (second + b + first) & 0xFFFFFFFF
    return first, second
