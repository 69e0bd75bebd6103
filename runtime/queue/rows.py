"""Records and pictures as rows. Every function works inside the caller's transaction or read."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import DataError
from .canonical import Encoded, PictureFacts, decode, is_hex
from .facts import Damage
from .record import Picture, Record

PLACES = 256
"""A picture's key is its record's number times this, plus its place in the manifest's list: no index is needed."""

Order = Literal["time", "value"]


@dataclass(frozen=True, slots=True)
class Row:
    """What the queue decides by."""

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
_READ = (
    "seq, rank, id, state, sha256, CAST(manifest AS BLOB), arrays, "
    "(SELECT rate FROM control WHERE control.period = record.period)"
)


def select(db: sqlite3.Connection, clause: str, values: Sequence[object] = ()) -> Row | None:
    """The first row that a clause of our own making (WHERE … ORDER BY …) finds."""
    found = db.execute(f"SELECT {_ROW} FROM record {clause} LIMIT 1", tuple(values)).fetchone()
    if found is None:
        return None
    seq, id, put_ns, state, rank, draw, flagged, content, pictures, sha256 = found
    return Row(seq, id, put_ns, state, rank, draw, bool(flagged), content, pictures, sha256)


def by_id(db: sqlite3.Connection, id: str) -> Row | None:
    """The row of an id."""
    return select(db, "WHERE id = ?", (id,))


def insert(
    db: sqlite3.Connection,
    record: Record,
    encoded: Encoded,
    pictures: Sequence[Picture],
    *,
    put_ns: int,
    worth: float,
    rank: float,
    draw: float | None,
    period: int,
) -> None:
    """Write a record and its pictures."""
    total = content_bytes(encoded, pictures)
    seq = db.execute(
        "INSERT INTO record (id, put_ns, state, worth, rank, draw, flagged, period, device, camera, bytes, pictures, "
        "sha256, manifest, arrays) VALUES (?, ?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.id,
            put_ns,
            worth,
            rank,
            draw,
            int(record.flagged),
            period,
            record.device,
            record.camera,
            total,
            len(pictures),
            encoded.sha256,
            encoded.manifest.decode(),
            encoded.arrays,
        ),
    ).lastrowid
    assert seq is not None
    for place, picture in enumerate(pictures):
        db.execute("INSERT INTO picture VALUES (?, ?)", (seq * PLACES + place, picture.data))


def remove(db: sqlite3.Connection, row: Row) -> None:
    """Erase a record and its pictures; ``secure_delete`` writes zeros over them."""
    first = row.seq * PLACES
    db.execute("DELETE FROM picture WHERE key BETWEEN ? AND ?", (first, first + PLACES - 1))
    db.execute("DELETE FROM record WHERE seq = ?", (row.seq,))


def content_bytes(encoded: Encoded, pictures: Sequence[Picture]) -> int:
    """What a record weighs."""
    return len(encoded.manifest) + len(encoded.arrays) + sum(len(picture.data) for picture in pictures)


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it was read: a record, or what is wrong with it."""

    seq: int
    rank: float
    record: Record | None
    pictures: tuple[PictureFacts, ...]
    damage: Damage | None


def batch(db: sqlite3.Connection, *, order: Order, state: str | None, after: Found | None, limit: int) -> list[Found]:
    """The next manifests behind ``after``; no picture is touched."""
    where, values = ["1"], list[object]()
    if state is not None:
        where.append("state = ?")
        values.append(state)
    if after is not None and order == "time":
        where.append("seq > ?")
        values.append(after.seq)
    elif after is not None:
        where.append("(rank < ? OR rank = ? AND seq < ?)")
        values += [after.rank, after.rank, after.seq]
    by = "seq" if order == "time" else "rank DESC, seq DESC"
    query = f"SELECT {_READ} FROM record WHERE {' AND '.join(where)} ORDER BY {by} LIMIT ?"
    return [_found(*row) for row in db.execute(query, (*values, limit))]


def read(db: sqlite3.Connection, id: str) -> Found | None:
    """One record's manifest."""
    row = db.execute(f"SELECT {_READ} FROM record WHERE id = ?", (id,)).fetchone()
    return None if row is None else _found(*row)


def read_pictures(db: sqlite3.Connection, found: Found) -> list[Picture]:
    """A record's pictures, held against the hashes in its manifest; :class:`DataError` where one differs."""
    pictures = []
    for place, facts in enumerate(found.pictures):
        row = db.execute("SELECT data FROM picture WHERE key = ?", (found.seq * PLACES + place,)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise DataError(f"the picture at position {facts.position} is missing")
        pictures.append(facts.joined(row[0]))
    return pictures


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


def checked_ids(ids: Iterable[str]) -> list[str]:
    """Ids as a list without repetitions; :class:`DataError` for what is none."""
    listed = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
    for id in listed:
        if not is_hex(id, 32):
            raise DataError(f"{str(id)[:100]!r} is no id of a record: 32 hex digits in lower case")
    return listed
