"""Records of an inbox: as a queue sends them, and as they stand here."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alpose.runtime.errors import DataError
from alpose.runtime.queue.record import PictureInfo, Record, decode


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
    """A record with where it stands."""

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
    """Keep one manifest, or list it among the refused, and say which; for a transaction, see :meth:`Inbox.add`."""
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
