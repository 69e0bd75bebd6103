"""The tables of the queue's file, versions 1 and 2, and records and pictures as their rows.

``QUEUE.md`` says what each column means and why the tables are cut so. Every function works inside the caller's
transaction or read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..errors import DataError
from .fields import is_hex
from .record import Encoded, Picture, Record

APPLICATION_ID = 0x414C5051
"""``ALPQ``, in the file's header: a database with another one belongs to somebody else."""

VERSION = 2
"""The largest ``user_version``; a reader refuses a file with a larger one. A file has 1 until a picture in it is shared."""

PAGE_BYTES = 8192

PLACES = 256
"""A picture's key is its record's number times this, plus its place in the manifest's list: no index is needed."""

STATEMENTS = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE counter (name TEXT, reason TEXT, n INTEGER NOT NULL, PRIMARY KEY (name, reason)) WITHOUT ROWID",
    "CREATE TABLE record ("
    "seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, put_ns INTEGER NOT NULL, state TEXT NOT NULL, "
    "worth REAL NOT NULL, rank REAL NOT NULL, draw REAL, flagged INTEGER NOT NULL, period INTEGER NOT NULL, device TEXT NOT NULL, "
    "camera TEXT NOT NULL, bytes INTEGER NOT NULL, pictures INTEGER NOT NULL, sha256 TEXT NOT NULL, "
    "manifest TEXT NOT NULL, arrays BLOB NOT NULL)",
    "CREATE INDEX record_rank ON record (rank, state, draw)",
    "CREATE INDEX record_control ON record (draw, bytes) WHERE draw IS NOT NULL AND state = 'queued'",
    "CREATE TABLE picture (key INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE bundle (sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE control (period INTEGER PRIMARY KEY, began_ns INTEGER NOT NULL, ended_ns INTEGER, rate REAL NOT NULL)",
    "CREATE TABLE score ("
    "number INTEGER PRIMARY KEY, put_ns INTEGER NOT NULL, device TEXT NOT NULL, camera TEXT NOT NULL, "
    "bundle TEXT NOT NULL, began_ns INTEGER NOT NULL, ended_ns INTEGER NOT NULL, frames INTEGER NOT NULL, "
    "bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, data BLOB NOT NULL)",
    "CREATE TABLE tally ("
    "hour_ns INTEGER, device TEXT, camera TEXT, bundle TEXT, frames INTEGER NOT NULL, flagged INTEGER NOT NULL, "
    "control INTEGER NOT NULL, kept INTEGER NOT NULL, PRIMARY KEY (hour_ns, device, camera, bundle)) WITHOUT ROWID",
)
"""In this order, in one transaction: the root pages are then the same in every file, which ``recover`` builds on."""

INDEXES = ("CREATE INDEX record_state ON record (state, seq, draw, bytes, pictures)",)
"""Without these a file works too, only slower: one of an older alpose gets them when it is opened for writing."""
INDEX_ROW_BYTES = 50
"""What these indexes take for one record, at most."""

SHARED = (
    "CREATE TABLE shared (key INTEGER PRIMARY KEY, picture INTEGER NOT NULL, bytes INTEGER NOT NULL)",
    "CREATE INDEX shared_picture ON shared (picture)",
)
"""What makes a file one of version 2: pictures that several records have, which lie under the key of the first of them.

``key`` is where the picture of another record would lie, ``picture`` where it does. ``bytes`` is 0, as long as the bytes
are counted for the first record; once that is gone, the length of the picture for the one that it is counted for now.
"""
SHARING_PAGES = 6
"""Pages that sharing pictures changes at most in the trees of ``shared``, or in those that know the bytes of one more record."""
SHARED_TABLE_PAGES = 16
"""Pages that making ``shared`` changes: two roots, and what lay in their place."""

Order = Literal["time", "value", "newest"]
ORDERS: tuple[Order, ...] = get_args(Order)


@dataclass(frozen=True, slots=True)
class Damage:
    """One row that is not what was written."""

    id: str | None
    """None where not even that can be read."""
    row: int
    problem: str


@dataclass(frozen=True, slots=True)
class ControlPeriod:
    """A stretch of the control stream that has one rate."""

    number: int
    began_ns: int
    ended_ns: int | None
    """None for the period that goes on."""
    rate: float
    """The smallest draw that was evicted in it, 1 where none was: the records of the period that have a smaller draw
    are a simple random sample at min(rate when drawn, this)."""


def create(db: sqlite3.Connection, now_ns: int) -> None:
    """Fill an empty database, inside the caller's transaction."""
    for statement in (*STATEMENTS, *INDEXES):
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES ('created_ns', ?), ('clock_ns', ?)", (now_ns, now_ns))
    db.execute("INSERT INTO control (began_ns, rate) VALUES (?, 1.0)", (now_ns,))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")  # until a picture in it is shared


def is_empty(db: sqlite3.Connection) -> bool:
    """Whether nobody has written a table into the database yet; one of alpose is empty before its first transaction."""
    owner, version = pragma(db, "application_id"), pragma(db, "user_version")
    return owner == 0 and version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0


def problem(db: sqlite3.Connection) -> str | None:
    """Which table is missing or differs from :data:`STATEMENTS`; None where all are there and nothing acts on its own."""
    found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE type IN ('table', 'index')")}
    wanted = STATEMENTS if not is_shared(db) else (*STATEMENTS, *SHARED)
    missing = [statement.split(" (")[0] for statement in wanted if statement not in found]
    if missing:
        return f"{', '.join(missing)} is not in it as it was written"
    if db.execute("SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index')").fetchone()[0]:
        return "it has triggers or views, and a queue has none"
    return None


def is_shared(db: sqlite3.Connection) -> bool:
    """Whether pictures may be shared in this file: whether it is of version 2."""
    return pragma(db, "user_version") >= 2


def missing_indexes(db: sqlite3.Connection) -> list[str]:
    """The statements of the indexes that a file does not have."""
    found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE type = 'index'")}
    return [statement for statement in INDEXES if statement not in found]


def look(db: sqlite3.Connection) -> str | None:
    """What is wrong at either end of every tree; None where nothing is. Reads a few pages, however large the file.

    The rest shows when it is touched: SQLite notices a broken page, and the hashes a changed row.
    """
    trees = [("record", "seq"), ("picture", "key"), ("score", "number"), ("tally", "hour_ns")]
    for table, key in [*trees, *([("shared", "key")] if is_shared(db) else [])]:
        for way in ("ASC", "DESC"):
            db.execute(f"SELECT * FROM {table} ORDER BY {key} {way} LIMIT 1").fetchall()
    for way in ("ASC", "DESC"):
        db.execute(f"SELECT id FROM record ORDER BY id {way} LIMIT 1").fetchall()
        db.execute(f"SELECT rank FROM record INDEXED BY record_rank ORDER BY rank {way} LIMIT 1").fetchall()
    for table in ("meta", "counter", "control", "bundle"):
        db.execute(f"SELECT * FROM {table}").fetchall()
    if type(meta(db, "clock_ns")) is not int:
        return "it has no clock"
    if db.execute("SELECT count(*) FROM control WHERE ended_ns IS NULL").fetchone()[0] != 1:
        return "it has not one period of the control stream that goes on"
    return None


def pragma(db: sqlite3.Connection, name: str) -> int:
    """The whole number that a pragma answers."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def meta(db: sqlite3.Connection, key: str, default: Any = None) -> Any:
    """A value that belongs to the file: a setting, the clock, a state."""
    found = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if found is None else found[0]


def set_meta(db: sqlite3.Connection, key: str, value: object) -> None:
    """Store a value of the file inside the caller's transaction."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def remove_meta(db: sqlite3.Connection, key: str) -> None:
    """Forget a value of the file inside the caller's transaction."""
    db.execute("DELETE FROM meta WHERE key = ?", (key,))


def count(db: sqlite3.Connection, name: str, reason: str = "", n: int = 1) -> None:
    """Raise a counter inside the caller's transaction."""
    if n:
        db.execute(
            "INSERT INTO counter VALUES (?, ?, ?) ON CONFLICT (name, reason) DO UPDATE SET n = n + excluded.n",
            (name, reason, n),
        )


def counters(db: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """(name, reason) → how often."""
    return {(name, reason): n for name, reason, n in db.execute("SELECT name, reason, n FROM counter ORDER BY 1, 2")}


def control_periods(db: sqlite3.Connection) -> tuple[ControlPeriod, ...]:
    """The periods of the control stream, oldest first."""
    query = "SELECT period, began_ns, ended_ns, rate FROM control ORDER BY period"
    return tuple(ControlPeriod(*row) for row in db.execute(query))


# What eviction decides by.


@dataclass(frozen=True, slots=True)
class Row:
    """The columns of a record that say whether it may stay."""

    seq: int
    id: str
    put_ns: int
    state: str
    rank: float
    draw: float | None
    flagged: bool
    bytes: int
    pictures: int
    sha256: str


_ROW = "seq, id, put_ns, state, rank, draw, flagged, bytes, pictures, sha256"


def select(db: sqlite3.Connection, clause: str, values: Sequence[object] = ()) -> Row | None:
    """The first row that a clause of alpose's own making ([INDEXED BY …] WHERE … ORDER BY …) finds."""
    found = db.execute(f"SELECT {_ROW} FROM record {clause} LIMIT 1", tuple(values)).fetchone()
    if found is None:
        return None
    seq, id, put_ns, state, rank, draw, flagged, content, pictures, sha256 = found
    return Row(seq, id, put_ns, state, rank, draw, bool(flagged), content, pictures, sha256)


def by_id(db: sqlite3.Connection, id: str) -> Row | None:
    """The row of an id."""
    return select(db, "WHERE id = ?", (id,))


def matching(db: sqlite3.Connection, where: str, values: Sequence[object], ids: Sequence[str] | None) -> Iterator[Row]:
    """Rows for which a condition of alpose's own making holds, in order; only of these ids, where there are any."""
    after = -1
    wanted = None if ids is None else set(ids)
    while (row := select(db, f"WHERE {where} AND seq > ? ORDER BY seq", (*values, after))) is not None:
        after = row.seq
        if wanted is None or row.id in wanted:
            yield row


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record's picture is to lie: in a row of its own, or in one that is there already."""

    picture: Picture
    shared: int | None
    """Key of the row that has the same bytes; None for a row of its own."""


def place_pictures(
    db: sqlite3.Connection, known: Mapping[str, int], pictures: Sequence[Picture], gone: Collection[int] = ()
) -> list[Place]:
    """Where a record's pictures are to lie: each once, however many records have it.

    Args:
        db: the database.
        known: keys by the sha256 of the data; a hint, for what was there may have gone.
        pictures: of one record.
        gone: records that are erased before this one is written; what they alone have is not there any more.
    """
    places = []
    for picture in pictures:
        key = known.get(picture.sha256)
        row = None if key is None else db.execute("SELECT data FROM picture WHERE key = ?", (key,)).fetchone()
        there = row is not None and row[0] == picture.data
        if there and gone and key is not None:
            there = not set(holders(db, key)) <= set(gone)
        places.append(Place(picture, key if there else None))
    return places


def insert(
    db: sqlite3.Connection,
    record: Record,
    encoded: Encoded,
    places: Sequence[Place],
    *,
    put_ns: int,
    worth: float,
    rank: float,
    draw: float | None,
    period: int,
) -> dict[str, int]:
    """Write a record and its pictures; where each picture lies now, by its sha256."""
    seq = _next_seq(db)
    columns = {
        "seq": seq,
        "id": record.id,
        "put_ns": put_ns,
        "state": "queued",
        "worth": worth,
        "rank": rank,
        "draw": draw,
        "flagged": int(record.flagged),
        "period": period,
        "device": record.device,
        "camera": record.camera,
        "bytes": own_bytes(encoded, places),
        "pictures": len(places),
        "sha256": encoded.sha256,
        "manifest": encoded.manifest.decode(),
        "arrays": encoded.arrays,
    }
    query = f"INSERT INTO record ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    db.execute(query, tuple(columns.values()))
    if any(place.shared is not None for place in places) and not is_shared(db):
        for statement in SHARED:
            db.execute(statement)
        db.execute("PRAGMA user_version = 2")
    keys = {}
    for number, place in enumerate(places):
        key = seq * PLACES + number
        if place.shared is None:
            db.execute("INSERT INTO picture VALUES (?, ?)", (key, place.picture.data))
        else:
            db.execute("INSERT INTO shared VALUES (?, ?, 0)", (key, place.shared))
        keys[place.picture.sha256] = key if place.shared is None else place.shared
    return keys


def _next_seq(db: sqlite3.Connection) -> int:
    """Behind all records, and behind the pictures that outlived theirs: their keys are not to be given twice."""
    record, picture = (
        db.execute(query).fetchone()[0] for query in ("SELECT max(seq) FROM record", "SELECT max(key) FROM picture")
    )
    return 1 + max(record or 0, (picture or 0) // PLACES)


def holders(db: sqlite3.Connection, key: int) -> list[int]:
    """Numbers of the records that have the picture of this key."""
    found = [seq for (seq,) in db.execute("SELECT seq FROM record WHERE seq = ?", (key // PLACES,))]
    if is_shared(db):
        found += [other // PLACES for (other,) in db.execute("SELECT key FROM shared WHERE picture = ?", (key,))]
    return found


def remove(db: sqlite3.Connection, row: Row) -> None:
    """Erase a record, and its pictures that no other record has; ``secure_delete`` writes zeros over them.

    A picture that others have stays where it is; its bytes are then counted for the next of them.
    """
    first, last = row.seq * PLACES, row.seq * PLACES + PLACES - 1
    if is_shared(db):
        counted = list[tuple[int, int]]()
        for picture, size in db.execute(
            "SELECT picture, bytes FROM shared WHERE key BETWEEN ? AND ?", (first, last)
        ).fetchall():
            if size:
                counted.append((picture, size))
        db.execute("DELETE FROM shared WHERE key BETWEEN ? AND ?", (first, last))
        counted += db.execute(
            "SELECT key, length(data) FROM picture WHERE key BETWEEN ? AND ? AND EXISTS (SELECT 1 FROM shared WHERE shared.picture = picture.key)",
            (first, last),
        ).fetchall()
        for picture, size in counted:
            heir = db.execute("SELECT min(key) FROM shared WHERE picture = ?", (picture,)).fetchone()[0]
            if heir is None:
                db.execute("DELETE FROM picture WHERE key = ?", (picture,))
            else:
                db.execute("UPDATE shared SET bytes = ? WHERE key = ?", (size, heir))
                db.execute("UPDATE record SET bytes = bytes + ? WHERE seq = ?", (size, heir // PLACES))
        db.execute(
            "DELETE FROM picture WHERE key BETWEEN ? AND ? AND NOT EXISTS (SELECT 1 FROM shared WHERE shared.picture = picture.key)",
            (first, last),
        )
    else:
        db.execute("DELETE FROM picture WHERE key BETWEEN ? AND ?", (first, last))
    db.execute("DELETE FROM record WHERE seq = ?", (row.seq,))


def sharing_pages(db: sqlite3.Connection, row: Row) -> int:
    """Pages that erasing a record changes at most because it shares pictures, beside what its own bytes make up."""
    if not row.pictures or not is_shared(db):
        return 0
    first, last = row.seq * PLACES, row.seq * PLACES + PLACES - 1
    borrowed = db.execute("SELECT count(*) FROM shared WHERE key BETWEEN ? AND ?", (first, last)).fetchone()[0]
    others = db.execute(
        f"SELECT count(DISTINCT key / {PLACES}) FROM shared WHERE picture BETWEEN :first AND :last OR picture IN "
        "(SELECT own.picture FROM shared AS own WHERE own.key BETWEEN :first AND :last AND own.bytes > 0)",
        {"first": first, "last": last},
    ).fetchone()[0]
    return SHARING_PAGES * (1 + others) if borrowed or others else 0


def lasting_bytes(db: sqlite3.Connection, row: Row) -> int:
    """Bytes that are counted for a record and stay when it is erased, for others have these pictures too."""
    if not row.pictures or not is_shared(db):
        return 0
    first, last = row.seq * PLACES, row.seq * PLACES + PLACES - 1
    lent = db.execute(
        "SELECT coalesce(sum(length(data)), 0) FROM picture WHERE key BETWEEN ? AND ? AND EXISTS (SELECT 1 FROM shared WHERE shared.picture = picture.key)",
        (first, last),
    ).fetchone()[0]
    inherited = db.execute(
        "SELECT coalesce(sum(bytes), 0) FROM shared WHERE key BETWEEN ? AND ? AND bytes > 0 "
        "AND EXISTS (SELECT 1 FROM shared AS other WHERE other.picture = shared.picture AND other.key NOT BETWEEN ? AND ?)",
        (first, last, first, last),
    ).fetchone()[0]
    return int(lent + inherited)


def own_bytes(encoded: Encoded, places: Sequence[Place]) -> int:
    """Bytes of a record's manifest and arrays, and of the pictures in rows of its own."""
    own = (len(place.picture.data) for place in places if place.shared is None)
    return len(encoded.manifest) + len(encoded.arrays) + sum(own)


def content_bytes(encoded: Encoded, pictures: Sequence[Picture]) -> int:
    """Bytes of a record's manifest, arrays and all pictures."""
    return len(encoded.manifest) + len(encoded.arrays) + sum(len(picture.data) for picture in pictures)


def picture_count(db: sqlite3.Connection, listed: int) -> int:
    """How many pictures there are, of so many that all records list together."""
    if not is_shared(db):
        return listed
    return listed - int(db.execute("SELECT count(*) FROM shared WHERE bytes = 0").fetchone()[0])


# What readers get.


def checked_ids(ids: Iterable[str]) -> list[str]:
    """Ids as a list without repetitions; :class:`DataError` for a text that is not an id."""
    listed = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
    for id in listed:
        if not is_hex(id, 32):
            raise DataError(f"{str(id)[:100]!r} is not the id of a record: expected 32 hex digits in lower case")
    return listed
