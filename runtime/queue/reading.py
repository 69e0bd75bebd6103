"""Records and pictures as they are read from a queue's tables, with what is wrong with a row in its place."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

from ..errors import DataError
from .record import Picture, PictureInfo, Record, decode
from .tables import PLACES, Damage, Order, pragma, select


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it was read: a record, or what is wrong with it."""

    seq: int
    rank: float
    record: Record | None
    pictures: tuple[PictureInfo, ...]
    damage: Damage | None


_READ = (
    "seq, rank, id, state, sha256, CAST(manifest AS BLOB), arrays, "
    "(SELECT rate FROM control WHERE control.period = record.period)"
)


def batch(db: sqlite3.Connection, *, order: Order, state: str | None, after: Found | None, limit: int) -> list[Found]:
    """The next manifests behind ``after``; no picture is touched."""
    where, values = ["1"], list[object]()
    if state is not None:
        where.append("state = ?")
        values.append(state)
    if after is not None and order == "time":
        where.append("seq > ?")
        values.append(after.seq)
    elif after is not None and order == "newest":
        where.append("seq < ?")
        values.append(after.seq)
    elif after is not None:
        where.append("(rank < ? OR rank = ? AND seq < ?)")
        values += [after.rank, after.rank, after.seq]
    by, index = {
        "time": ("seq", "NOT INDEXED"),
        "newest": ("seq DESC", "NOT INDEXED"),
        "value": ("rank DESC, seq DESC", "INDEXED BY record_rank"),
    }[order]
    query = f"SELECT {_READ} FROM record {index} WHERE {' AND '.join(where)} ORDER BY {by} LIMIT ?"
    return [_found(*row) for row in db.execute(query, (*values, limit))]


def read(db: sqlite3.Connection, id: str) -> Found | None:
    """One record's manifest."""
    row = db.execute(f"SELECT {_READ} FROM record WHERE id = ?", (id,)).fetchone()
    return None if row is None else _found(*row)


def read_pictures(db: sqlite3.Connection, found: Found) -> list[Picture]:
    """A record's pictures, compared with the hashes in its manifest; :class:`DataError` where one differs."""
    pictures = []
    for place, info in enumerate(found.pictures):
        row = db.execute("SELECT data FROM picture WHERE key = ?", (picture_key(db, found.seq, place),)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise DataError(f"the picture at position {info.position} is missing")
        pictures.append(info.joined(row[0]))
    return pictures


def picture_key(db: Any, seq: int, place: int) -> int:
    """Where the picture at a place of a record's list lies: under its own key, or under that of one that it shares."""
    key = seq * PLACES + place
    if pragma(db, "user_version") < 2:
        return key
    shared = db.execute("SELECT picture FROM shared WHERE key = ?", (key,)).fetchone()
    return key if shared is None else int(shared[0])


def _found(
    seq: int, rank: float, id: object, state: object, sha256: object, manifest: object, arrays: object, rate: object
) -> Found:
    try:
        if not (isinstance(manifest, bytes) and isinstance(arrays, bytes) and isinstance(sha256, str)):
            raise DataError("a column has another type than it was written with")
        rate = rate if isinstance(rate, float) else 1.0
        record, pictures = decode(manifest, arrays, sha256, state=str(state), control_rate=rate)
        if record.id != id:
            raise DataError(f"the row's id is not the manifest's, {record.id}")
    except DataError as error:
        return Found(seq, rank, None, (), Damage(id if isinstance(id, str) else None, seq, str(error)))
    return Found(seq, rank, record, pictures, None)


def captured_ns(db: sqlite3.Connection, clause: str) -> int | None:
    """When the frame of the first row that a clause finds was captured; when it was stored, where that is damaged."""
    row = select(db, clause)
    if row is None:
        return None
    found = read(db, row.id)
    return row.put_ns if found is None or found.record is None else found.record.captured_ns
