"""Who is admitted to a queue, who has to go when it is full or too old, and how much it may take.

A record is worth hardness × novelty × 2^(-age / half-life). The logarithm of that falls equally fast for every record,
so their order never changes with time: ``rank = log2(hardness × novelty) + time / half-life`` is stored once, in an
indexed column.

The control stream is a simple random sample of all frames, and has to stay one: it is evicted by its draws alone, the
largest first, and what is left is the sample that a lower rate would have drawn. It is so within each period, a stretch of
the stream with a rate of its own; a new one begins once there is room again.

The bound is on the disk: database file and write-ahead log together, counted in the pages that SQLite reads and writes.
The log gets a fixed part of it. Every transaction is kept so small that the log, with whatever it holds already, stays
within that part; the file gets the rest.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ConfigError, DataError
from . import tables
from .record import Encoded, Picture, Record
from .tables import Row

if TYPE_CHECKING:
    from .database import Database, Transaction

LEAST_HARDNESS = 2.0**-10
LEAST_NOVELTY = 2.0**-7
"""Floors, so that neither factor alone can bury a record."""

DEFAULT_HALF_LIFE_S = 7 * 86_400.0
DEFAULT_MAX_BYTES = 256 << 20

CONTROL_SHARE = 0.25
"""Of the file that control records may hold on to while there are others."""
CONTROL_BEGINS_ANEW = 0.5
"""Of that share: once they hold no more than this, the stream is not thinned any longer. Less than all of it, so that a
queue at the edge does not begin a period for every frame."""

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

OVERHEAD_PAGES = 19
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
    def control_bytes(self) -> float:
        """What control records may hold on to while there are others."""
        return self.file_pages * self.page_bytes * CONTROL_SHARE

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


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one record that was put: ``kept`` means on the disk, synced, whole."""

    id: str
    kept: bool
    reason: str | None
    """Why it was not kept: ``too_large``; ``full`` (every record in the queue is worth more); ``control`` (the control
    stream's rate has fallen below its draw). Counted in the file. ``again`` with ``kept``: it was there already."""
    sha256: str
    """Of the record; empty where it was not kept."""
    bytes: int
    """Of the manifest and all pictures."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long things keep their worth."""

    half_life_s: float | None
    """None: the half-life that the file has, which is :data:`DEFAULT_HALF_LIFE_S` in a new one."""
    max_age_s: float | None

    def __post_init__(self) -> None:
        for name, value in (("half_life_s", self.half_life_s), ("max_age_s", self.max_age_s)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number of seconds, got {value}")


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a record that asks for room has to offer."""

    rank: float
    draw: float | None
    """In the control stream; None outside it."""


def worth_of(record: Record) -> float:
    """log2(hardness × novelty), both in (0, 1]. A model that answers NaN is as wrong as can be."""
    hardness = 1.0 if math.isnan(record.failure_probability) else min(max(record.failure_probability, 0.0), 1.0)
    novelty = 1.0 if math.isnan(record.novelty) else min(max(record.novelty, 0.0), 1.0)
    return math.log2(max(hardness, LEAST_HARDNESS)) + math.log2(max(novelty, LEAST_NOVELTY))


def rank_of(db: sqlite3.Connection, worth: float, put_ns: int) -> float:
    """The rank of a record, comparable between all records of a file, whose half-life is the last one it was given."""
    return worth + put_ns / 1e9 / half_life_s(db)


def half_life_s(db: sqlite3.Connection) -> float:
    """The half-life of a file; the one that ranks are being changed to, where that was interrupted."""
    for key in ("half_life_s", "next_half_life_s"):
        life = tables.meta(db, key)
        if isinstance(life, (int, float)) and 0 < life < math.inf:
            return float(life)
    return DEFAULT_HALF_LIFE_S


def control_period(db: sqlite3.Connection) -> tuple[int, float]:
    """Number and rate of the period that goes on."""
    period, rate = db.execute("SELECT period, rate FROM control WHERE ended_ns IS NULL ORDER BY period").fetchone()
    return period, rate


def lower_control_rate(db: sqlite3.Connection, draw: float) -> None:
    """A control record with this draw was let go: what is left is the sample that this rate would have taken.

    So it is in every period of which records wait: a record of another period stayed because its draw is smaller than
    this one, and not because it is smaller than one of its own period. Lowering the rate of the period of the one that goes
    alone would give those of the others too little weight.
    """
    db.execute(
        "UPDATE control SET rate = :draw WHERE rate > :draw AND (ended_ns IS NULL OR period >= ("
        "SELECT period FROM record WHERE state = 'queued' AND draw IS NOT NULL ORDER BY seq LIMIT 1))",
        {"draw": draw},
    )


def end_control_period(database: Database, transaction: Transaction) -> None:
    """Once control records hold less than half of their share, the stream goes on at its full rate, in a new period.

    They were fetched, erased or grew too old, or the file may be larger now. Those that are left keep the number of their
    period, so that their rate stays known.
    """
    db = transaction.db
    period, rate = control_period(db)
    if rate < 1 and _control_bytes(db) <= CONTROL_BEGINS_ANEW * database.bounds.control_bytes:
        db.execute("UPDATE control SET ended_ns = ? WHERE period = ?", (transaction.now_ns, period))
        db.execute("INSERT INTO control (began_ns, rate) VALUES (?, 1.0)", (transaction.now_ns,))


def evict_expired(database: Database, transaction: Transaction, policy: Policy) -> int:
    """Erase everything beyond the age limit; how many records that were."""
    if policy.max_age_s is None:
        return 0
    evicted = 0
    while True:
        # Times grow with seq, for a transaction's time is never below one before it: the first row is the oldest.
        row = tables.select(transaction.db, "ORDER BY seq")
        if row is None or row.put_ns >= transaction.now_ns - policy.max_age_s * 1e9:
            return evicted
        cost = erase_cost(database, row)
        if not transaction.reserve(cost):
            evict(transaction, row, "age", cost)
            evicted += 1


def make_room(
    database: Database,
    transaction: Transaction,
    pages: int,
    cost: int,
    incoming: Incoming | None,
    spare: Collection[int] = (),
) -> str | None:
    """Evict until a record fits.

    Args:
        pages: free pages wanted.
        cost: what the caller will change afterwards: kept affordable.
        incoming: the record, which has to be worth more than whoever goes for it; None where that is no question.
        spare: rows that are not to be evicted.

    Returns:
        Why the record is not to be stored (``full``, ``control``), or None where there is room now.
    """
    db, bounds = transaction.db, database.bounds
    held, counted = 0, -1  # bytes of control records, and in which transaction they were counted
    while True:
        transaction.reserve(cost)
        if database.used_pages() + pages <= bounds.usable_pages:
            return None
        if counted != transaction.number:
            held, counted = _control_bytes(db), transaction.number
        found = _victim(db, held > bounds.control_bytes, spare)
        if found is None:
            return "full"
        row, reason = found
        if incoming is not None:
            if reason == "control" and incoming.draw is not None and incoming.draw >= (row.draw or 0.0):
                lower_control_rate(db, incoming.draw)
                return "control"
            if reason == "full" and incoming.draw is None and incoming.rank < row.rank:
                return "full"
        erased = erase_cost(database, row)
        if transaction.reserve(erased):
            continue  # Others may have written in between: look again.
        if reason == "control" and row.draw is not None:
            lower_control_rate(db, row.draw)
            held -= row.bytes
            if row.flagged:  # It was wanted for its own sake too, and competes with its like from here on.
                db.execute("UPDATE record SET draw = NULL WHERE seq = ?", (row.seq,))
                tables.count(db, "control_demoted_total")
                continue
        evict(transaction, row, reason, erased)


def _control_bytes(db: sqlite3.Connection) -> int:
    query = "SELECT coalesce(sum(bytes), 0) FROM record INDEXED BY record_control WHERE draw IS NOT NULL AND state = 'queued'"
    return int(db.execute(query).fetchone()[0])


def _victim(db: sqlite3.Connection, control_first: bool, spare: Collection[int]) -> tuple[Row, str] | None:
    """The least valuable record and the reason that is counted for it; every query is answered by an index."""
    but = f"seq NOT IN ({', '.join(str(int(seq)) for seq in spare)})"
    row = tables.select(db, f"WHERE state = 'pulled' AND {but} ORDER BY seq")
    if row is not None:
        return row, "acknowledged"
    control = "draw IS NOT NULL AND state = 'queued'"
    if not control_first:
        row = tables.select(
            db, f"INDEXED BY record_rank WHERE draw IS NULL AND state = 'queued' AND {but} ORDER BY rank, seq"
        )
        if row is not None:
            return row, "full"
    row = tables.select(db, f"INDEXED BY record_control WHERE {control} AND {but} ORDER BY draw DESC")
    if row is not None:
        return row, "control"
    row = tables.select(
        db, f"INDEXED BY record_rank WHERE draw IS NULL AND state = 'queued' AND {but} ORDER BY rank, seq"
    )
    return None if row is None else (row, "full")


def erase_cost(database: Database, row: Row) -> int:
    """Pages that erasing a record changes, at most."""
    return database.bounds.cost(row.bytes, row.pictures) + tables.sharing_pages(database.db, row)


def evict(transaction: Transaction, row: Row, reason: str, cost: int) -> None:
    """Erase one record and count it."""
    tables.remove(transaction.db, row)
    tables.count(transaction.db, "evicted_total", reason)
    transaction.consume(cost)


# Admission.


class Prepared(NamedTuple):
    """A record that asks to be stored, already encoded."""

    record: Record
    pictures: Sequence[Picture]
    supersedes: Sequence[str]
    """Ids whose place it takes."""
    encoded: Encoded


def put(database: Database, transaction: Transaction, item: Prepared) -> Stored:
    """Store one record, if it is worth a place; what it supersedes goes in the same transaction."""
    while True:
        stored = _put(database, transaction, item)
        if stored is not None:
            return stored


def _put(database: Database, transaction: Transaction, item: Prepared) -> Stored | None:
    """One attempt; None where others may have changed what it was decided by before it came to write."""
    record, pictures, supersedes, encoded = item
    db, bounds, number = transaction.db, database.bounds, transaction.number
    content = tables.content_bytes(encoded, pictures)
    there = tables.by_id(db, record.id)
    if there is not None:
        if there.sha256 != encoded.sha256:
            raise DataError(f"{database.path} has another record with the id {record.id}: take a new id for each frame")
        return Stored(record.id, True, "again", encoded.sha256, content)
    # What it shares may have to be counted for it one day, so it has to fit without sharing.
    if bounds.cost(content, len(pictures)) > bounds.most_pages:
        return _refuse(transaction, record, "too_large", content)
    period, rate = control_period(db)
    worth = worth_of(record)
    rank = rank_of(db, worth, transaction.now_ns)
    draw = record.control_draw
    if draw is not None and draw >= rate:  # The stream has become thinner than when this was drawn.
        if not record.flagged:
            return _refuse(transaction, record, "control", content)
        draw = None
    replaced = [row for row in (tables.by_id(db, id) for id in dict.fromkeys(supersedes)) if row and _may_go(row)]
    replaced_cost = sum(erase_cost(database, row) for row in replaced)
    gone = [row.seq for row in replaced]
    places, pages, cost = _places(database, item, gone)
    at_once = cost + replaced_cost <= transaction.most
    if at_once:
        pages = max(0, pages - sum(_freed(database, row) for row in replaced))
        cost += replaced_cost
    # It takes its predecessors' place: it need not compete for it again.
    full = make_room(database, transaction, pages, cost, None if replaced else Incoming(rank, draw), set(gone))
    if transaction.number != number:
        return None
    if full == "control" and record.flagged:
        return None  # Its draw has just left the stream: it is put once more, as a triggered one.
    if full is not None:
        return _refuse(transaction, record, full, content)
    if _places(database, item, gone)[0] != places:
        return None  # What had a picture that it was to share went to make room for it.
    for row in replaced if at_once else ():
        evict(transaction, row, "episode", 0)
    keys = tables.insert(
        db, record, encoded, places, put_ns=transaction.now_ns, worth=worth, rank=rank, draw=draw, period=period
    )
    database.remember_pictures(keys)
    tables.count(db, "stored_total")
    transaction.consume(cost)
    for row in () if at_once else replaced:
        erased = erase_cost(database, row)
        if transaction.reserve(erased):
            now = tables.by_id(db, row.id)
            if now is None or not _may_go(now):
                continue
        evict(transaction, row, "episode", erased)
    return Stored(record.id, True, None, encoded.sha256, content)


def _places(database: Database, item: Prepared, gone: Collection[int]) -> tuple[list[tables.Place], int, int]:
    """Where the pictures of a record are to lie, and the pages that it fills and changes then."""
    db, bounds = database.db, database.bounds
    places = tables.place_pictures(db, database.picture_keys, item.pictures, gone)
    own = [place for place in places if place.shared is None]
    content = tables.own_bytes(item.encoded, places)
    pages, cost = bounds.taken(content, len(own)), bounds.cost(content, len(own))
    if len(own) < len(places):
        cost += tables.SHARING_PAGES
        if not tables.is_shared(db):
            pages, cost = pages + len(tables.SHARED), cost + tables.SHARED_TABLE_PAGES
    return places, pages, cost


def _freed(database: Database, row: Row) -> int:
    """Pages that erasing a record gives back, at least."""
    return database.bounds.freed(row.bytes - tables.lasting_bytes(database.db, row), row.pictures)


def _refuse(transaction: Transaction, record: Record, reason: str, content: int) -> Stored:
    tables.count(transaction.db, "refused_total", reason)
    return Stored(record.id, False, reason, "", content)


def outcome_now(db: sqlite3.Connection, stored: Stored, superseded: Collection[str]) -> Stored:
    """What became of a record by the end of the transaction that stored it: a later one may have taken its place."""
    if not stored.kept or tables.by_id(db, stored.id) is not None:
        return stored
    return Stored(stored.id, False, "episode" if stored.id in superseded else "full", "", stored.bytes)


def erase(database: Database, transaction: Transaction, row: Row, counter: str, reason: str) -> int:
    """Erase one record and count it; how many that were, for another process may have been faster."""
    cost = erase_cost(database, row)
    if transaction.reserve(cost) and tables.by_id(transaction.db, row.id) is None:
        return 0
    tables.remove(transaction.db, row)
    tables.count(transaction.db, counter, reason)
    transaction.consume(cost)
    return 1


def _may_go(row: Row) -> bool:
    """A superseded record that somebody has already, or that is in the control stream, stays."""
    return row.state == "queued" and row.draw is None
