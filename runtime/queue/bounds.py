"""How much the queue may take, counted in the pages that SQLite reads and writes.

The bound is on the disk: database file and write-ahead log together. The log gets a fixed part of it. Every transaction
is kept so small that the log, with whatever it holds already, stays within that part; the file gets the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError

LEAST_BYTES = 4 << 20
"""Below this the fixed cost of the tables is no longer small beside what they hold."""

WAL_SHARE = 4
"""The log may take max_bytes / this,"""
MOST_WAL_BYTES = 32 << 20
"""but no more than this: it holds a few transactions, however large the queue."""

CHECKPOINT_BYTES = 4 << 20
"""A log that is longer is copied into the file and emptied after a commit, where no reader needs it."""

FRAME_BYTES = 24
"""Of a page's header in the log."""

OVERHEAD_PAGES = 16
"""Pages that one insertion or deletion changes beside its own content, at most: a leaf in each of the trees that know
of a record, and what their balancing touches."""

BASE_PAGES = 32
"""Pages that any transaction may change once: the file's header, meta, counters, pointer maps, free-list trunks."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits in pages that follow from ``max_bytes``."""

    max_bytes: int
    page_bytes: int

    def __post_init__(self) -> None:
        if self.max_bytes < LEAST_BYTES:
            raise ConfigError(f"max_bytes must be at least {LEAST_BYTES} (4 MiB), got {self.max_bytes}")

    @property
    def wal_bytes(self) -> int:
        """The log's part."""
        return min(self.max_bytes // WAL_SHARE, MOST_WAL_BYTES)

    @property
    def file_pages(self) -> int:
        """The database file's part."""
        return (self.max_bytes - self.wal_bytes) // self.page_bytes

    @property
    def usable_pages(self) -> int:
        """What records may fill: the rest is for the inner pages of growing trees."""
        return self.file_pages - OVERHEAD_PAGES

    @property
    def wal_pages(self) -> int:
        """Pages that fit into an empty log."""
        return (self.wal_bytes - 64) // (self.page_bytes + FRAME_BYTES)

    @property
    def most_pages(self) -> int:
        """The largest cost of one record: writing it and erasing another one have to fit into one empty log."""
        return (self.wal_pages - BASE_PAGES) // 2

    def wal_room(self, wal_bytes: int) -> int:
        """Pages that may still be appended to a log of this length."""
        return (self.wal_bytes - 64 - wal_bytes) // (self.page_bytes + FRAME_BYTES)

    def cost(self, content_bytes: int, pictures: int) -> int:
        """Pages that writing or erasing a record changes, at most."""
        return self.taken(content_bytes, pictures) + OVERHEAD_PAGES

    def taken(self, content_bytes: int, pictures: int) -> int:
        """Pages that a record fills, at most."""
        return content_bytes // (self.page_bytes - 4) + 2 * pictures + 1

    def freed(self, content_bytes: int, pictures: int) -> int:
        """Pages that erasing a record gives back, at least: what shares a page with other rows may not."""
        return max(0, content_bytes // (self.page_bytes - 4) - pictures - 1)
