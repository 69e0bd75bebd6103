"""``inbox.db``: its tables (version 1), one record, and what is asked of all records at once.

Shapes: N records, J joints, D the longest embedding.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError
from alpose.runtime.queue.files import connect_readonly
from alpose.runtime.queue.record import PictureInfo, Record, decode

APPLICATION_ID = 0x414C5049
"""``ALPI``, in the file's header."""
VERSION = 1
BUSY_S = 30.0
"""How long another process may keep the file locked."""
CHUNK = 5_000
"""Rows that are read at once."""

STATEMENTS = (
    "CREATE TABLE source (number INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, pulled TEXT NOT NULL)",
    # What a choice looks at stands in columns of its own; everything else is the record in its canonical form, byte for
    # byte as the device hashed it.
    "CREATE TABLE record ("
    "row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, source INTEGER NOT NULL, device TEXT NOT NULL, "
    "bundle TEXT NOT NULL, captured_ns INTEGER NOT NULL, flagged INTEGER NOT NULL, failure_probability REAL, "
    "control_draw REAL, control_rate REAL, pictures INTEGER NOT NULL, sealed INTEGER NOT NULL, joints INTEGER NOT NULL, "
    "embedding INTEGER NOT NULL, sha256 TEXT NOT NULL, manifest TEXT NOT NULL, arrays BLOB NOT NULL, "
    "fetched INTEGER NOT NULL DEFAULT 0, acknowledged INTEGER NOT NULL DEFAULT 0, asked INTEGER NOT NULL DEFAULT 0, deleted INTEGER NOT NULL DEFAULT 0, "
    "drawn TEXT, batch TEXT, annotated INTEGER NOT NULL DEFAULT 0)",
    "CREATE INDEX record_source ON record (source, acknowledged)",
    "CREATE INDEX record_batch ON record (batch) WHERE batch IS NOT NULL",
    "CREATE TABLE bundle (sha256 TEXT PRIMARY KEY, name TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE tally ("
    "queue INTEGER, hour_ns INTEGER, device TEXT, camera TEXT, bundle TEXT, frames INTEGER NOT NULL, "
    "flagged INTEGER NOT NULL, control INTEGER NOT NULL, kept INTEGER NOT NULL, "
    "PRIMARY KEY (queue, hour_ns, device, camera, bundle)) WITHOUT ROWID",
    "CREATE TABLE counter (source INTEGER, name TEXT, reason TEXT, n INTEGER NOT NULL, "
    "PRIMARY KEY (source, name, reason)) WITHOUT ROWID",
    "CREATE TABLE refused (source INTEGER, id TEXT, problem TEXT NOT NULL, PRIMARY KEY (source, id, problem)) "
    "WITHOUT ROWID",
)


INDEXES = ("CREATE INDEX IF NOT EXISTS record_moment ON record (captured_ns, device)",)
"""By which the people on one frame are found; an inbox of an older alpose gets them when it is opened."""


def open_database(path: Path) -> tuple[sqlite3.Connection, bool]:
    """Open or create, and say whether it can be written: where it cannot, no byte of it is changed.

    :class:`DataError` for a file that is not ours, or newer.
    """
    writable = not path.exists() or (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
    if not writable:
        return _open_readonly(path), False
    path.parent.mkdir(parents=True, exist_ok=True)
    # isolation_level None: transactions begin where the code says so.
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        owner, version = _owner(db)
        if owner == 0 and version == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.execute("BEGIN IMMEDIATE")
            for statement in STATEMENTS:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        else:
            _require_ours(path, owner, version)
        for statement in INDEXES:
            db.execute(statement)
    except sqlite3.DatabaseError as error:
        db.close()
        unwilling = isinstance(error, sqlite3.OperationalError)  # the disk is full or read-only, or it is locked
        advice = "Mend that, and try again" if unwilling else "Restore it, or pull into another folder"
        raise DataError(f"{path} cannot be opened: {error}. {advice}") from error
    except BaseException:
        db.close()
        raise
    return db, True


def _open_readonly(path: Path) -> sqlite3.Connection:
    """An inbox on a disk, or of somebody else, that may only be read; its log is read, too."""
    try:
        db, _ = connect_readonly(path, BUSY_S)
        try:
            _require_ours(path, *_owner(db))
        except BaseException:
            db.close()
            raise
    except sqlite3.DatabaseError as error:
        raise DataError(f"{path} cannot be read: {error}. Restore it, or pull into another folder") from error
    return db


def _owner(db: sqlite3.Connection) -> tuple[int, int]:
    owner, version = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version"))
    return owner, version


def _require_ours(path: Path, owner: int, version: int) -> None:
    if owner != APPLICATION_ID:
        raise DataError(f"{path} is a database of something else: give the folder of an inbox, or a new one")
    if version > VERSION:
        raise DataError(f"{path} was written by a newer alpose (schema {version}, this one reads {VERSION}): update")


# --- One record


@dataclass(frozen=True, slots=True)
class Raw:
    """A record as a queue stores it, checked against its hash by :func:`take`."""

    id: str
    sha256: str
    manifest: bytes
    arrays: bytes
    control_rate: float
    """The present bound on its control stream's rate, from the queue."""


@dataclass(frozen=True, slots=True)
class Added:
    """What became of manifests."""

    new: int = 0
    known: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A record with how far it has come."""

    record: Record
    pictures: tuple[PictureInfo, ...]
    source: str
    fetched: bool
    acknowledged: bool
    deleted: bool
    """On the device."""
    batch: str | None
    annotated: bool

    @property
    def control_rate(self) -> float:
        """Rate of the control stream that the frame belongs to, as far as its device can still keep it; 0 if to none."""
        return _control_rate(self.record)


def take(db: sqlite3.Connection, source: int, raw: Raw) -> Literal["new", "known", "refused"]:
    """Keep one manifest, or list it among the refused, and say which; inside a transaction, see ``Inbox.add``."""
    try:
        record, pictures = decode(raw.manifest, raw.arrays, raw.sha256, control_rate=raw.control_rate)
        if record.id != raw.id:
            raise DataError(f"the row's id {raw.id[:40]!r} is not the manifest's")
    except DataError as error:
        _refuse(db, source, raw.id[:64], str(error)[:500])
        return "refused"
    rate = _control_rate(record)
    found = db.execute("SELECT sha256, pictures > 0 AND fetched = 0, control_rate > ?, source <> ? OR deleted = 1 "
                       "FROM record WHERE id = ?", (rate, source, record.id)).fetchone()  # fmt: skip
    if found is None:
        _insert(db, source, raw, record, pictures, rate)
        return "new"
    sha256, waits, lower, moved = found
    if sha256 != raw.sha256:
        _refuse(db, source, record.id, "another record with this id is here already")
        return "refused"
    if waits and lower:
        db.execute("UPDATE record SET control_rate = ? WHERE id = ?", (rate, record.id))
    if waits and moved:
        db.execute("UPDATE record SET source = ?, deleted = 0 WHERE id = ?", (source, record.id))
    return "known"


def _control_rate(record: Record) -> float:
    """The rate that was in force when the frame was drawn, or what its device can still keep of it."""
    if record.control_draw is None:
        return 0.0
    drawn_at = next(
        (limit for trigger, _, limit in record.reasons if trigger == "control"), record.inclusion_probability
    )
    return min(drawn_at, record.control_rate)


def _refuse(db: sqlite3.Connection, source: int, id_: str, problem: str) -> None:
    db.execute("INSERT OR IGNORE INTO refused VALUES (?, ?, ?)", (source, id_, problem))


def _insert(
    db: sqlite3.Connection, source: int, raw: Raw, record: Record, pictures: Sequence[PictureInfo], rate: float
) -> None:
    failure = record.failure_probability
    db.execute(
        "INSERT INTO record (id, source, device, bundle, captured_ns, flagged, failure_probability, control_draw, "
        "control_rate, pictures, sealed, joints, embedding, sha256, manifest, arrays) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (record.id, source, record.device, record.bundle, record.captured_ns, int(record.flagged),
         failure if np.isfinite(failure) else None, record.control_draw, rate if record.control_draw is not None else None,
         len(pictures), int(any(picture.sealed for picture in pictures)), len(record.scores_J), len(record.embedding_D),
         raw.sha256, raw.manifest.decode(), raw.arrays),
    )  # fmt: skip


# --- What a fleet's records say together


def status(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """One row a device: how many records, and how far they have come."""
    names = ("device", "records", "flagged", "control", "fetched", "acknowledged", "deleted", "chosen", "annotated",
             "first_ns", "last_ns", "bundles")  # fmt: skip
    rows = db.execute(
        "SELECT device, count(*), sum(flagged), sum(control_rate IS NOT NULL), sum(fetched), sum(acknowledged), "
        "sum(deleted), sum(batch IS NOT NULL), sum(annotated), min(captured_ns), max(captured_ns), "
        "count(DISTINCT bundle) FROM record GROUP BY device ORDER BY device"
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def field_tallies(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """The monitors' counts by device and bundle, and how many of the flagged frames cannot be labelled any more:
    they never came, or were gone from their device before their pictures were fetched."""
    here = {
        (device, bundle): n for device, bundle, n in db.execute(
            "SELECT device, bundle, count(*) FROM record WHERE flagged = 1 AND (deleted = 0 OR fetched = 1 OR pictures = 0) "
            "GROUP BY device, bundle")
    }  # fmt: skip
    rows = db.execute(
        "SELECT device, bundle, sum(frames), sum(flagged), sum(control) FROM tally GROUP BY device, bundle ORDER BY 1, 2"
    )
    return [{"device": device, "bundle": bundle, "frames": frames, "flagged": flagged, "control": control,
             "lost": max(0, flagged - here.get((device, bundle), 0))}
            for device, bundle, frames, flagged, control in rows]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a choice looks at, for every record of the inbox, in the order of arrival."""

    id_N: npt.NDArray[np.bytes_]
    device_N: npt.NDArray[np.int64]
    """Row of ``devices``."""
    devices: Sequence[str]
    bundle_N: npt.NDArray[np.int64]
    """Frames of different bundles have embeddings that cannot be compared."""
    captured_ns_N: npt.NDArray[np.int64]
    failure_probability_N: npt.NDArray[np.float32]
    embedding_ND: npt.NDArray[np.floating]
    """Float16; rows of unit length. Shorter embeddings of other bundles are filled with zeros."""
    control_N: npt.NDArray[np.bool_]
    """In the control stream at its present rate."""
    pictures_N: npt.NDArray[np.bool_]
    """There is a picture, here or on the device."""
    fetched_N: npt.NDArray[np.bool_]
    deleted_N: npt.NDArray[np.bool_]
    """On the device."""
    drawn_N: npt.NDArray[np.bool_]
    """Has had its draw of the control stream."""
    chosen_N: npt.NDArray[np.bool_]
    annotated_N: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.id_N)


COLUMNS: dict[str, tuple[Any, str]] = {
    "id": ("S32", "id"), "device": (np.int64, "device"), "bundle": (np.int64, "bundle"),
    "captured_ns": (np.int64, "captured_ns"), "failure_probability": (np.float32, "failure_probability"),
    "control": (np.bool_, "control_rate IS NOT NULL AND control_draw < control_rate"),
    "pictures": (np.bool_, "pictures > 0"), "fetched": (np.bool_, "fetched"), "deleted": (np.bool_, "deleted"),
    "drawn": (np.bool_, "drawn IS NOT NULL"), "chosen": (np.bool_, "batch IS NOT NULL"),
    "annotated": (np.bool_, "annotated"),
}  # fmt: skip
"""Type and expression of every column."""


def read_columns(db: sqlite3.Connection) -> Columns:
    """Read what a choice looks at in one pass, a million records in seconds."""
    count, width = db.execute("SELECT count(*), coalesce(max(embedding), 0) FROM record").fetchone()
    embedding_ND = np.zeros((count, max(width, 1)), dtype=np.float16)
    numbers = {"device": _Numbers(), "bundle": _Numbers()}
    columns: dict[str, npt.NDArray[Any]] = {name: np.zeros(count, dtype=kind) for name, (kind, _) in COLUMNS.items()}
    expressions = ", ".join(expression for _, expression in COLUMNS.values())
    cursor = db.execute(f"SELECT {expressions}, joints, embedding, arrays FROM record ORDER BY row LIMIT ?", (count,))
    first = 0
    while rows := cursor.fetchmany(CHUNK):
        *found, joints, lengths, arrays = zip(*rows, strict=True)
        part = slice(first, first + len(rows))
        for name, values in zip(columns, found, strict=True):
            if name in numbers:
                columns[name][part] = [numbers[name][value] for value in values]
            elif name == "failure_probability":
                columns[name][part] = [np.nan if value is None else value for value in values]
            else:
                columns[name][part] = values
        for row, (count_J, length, blob) in enumerate(zip(joints, lengths, arrays, strict=True), start=first):
            embedding_ND[row, :length] = np.frombuffer(blob, "<f2", length, 12 * count_J)
        _make_unit(embedding_ND[part])
        first += len(rows)
    return Columns(
        **{f"{name}_N": values[:first] for name, values in columns.items()},
        devices=tuple(numbers["device"]), embedding_ND=embedding_ND[:first],
    )  # fmt: skip


def _make_unit(embedding_ND: npt.NDArray[np.float16]) -> None:
    """Whatever a device sent becomes of unit length, or zero where it says nothing: one row must not spoil a choice."""
    wide_ND = embedding_ND.astype(np.float32)
    square_N = np.einsum("nd,nd->n", wide_ND, wide_ND)
    for row in np.flatnonzero(~(np.abs(square_N - 1) < 0.02)):
        usable = np.isfinite(square_N[row]) and square_N[row] > 0
        embedding_ND[row] = wide_ND[row] / np.sqrt(square_N[row]) if usable else 0


class _Numbers(dict[str, int]):
    """Names by the order in which they are first asked for."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]
