"""The queue in numbers, read inside the caller's read."""

from __future__ import annotations

import sqlite3

from . import rows, schema
from .facts import ControlPeriod, QueueFacts
from .file import File


def facts(file: File) -> QueueFacts:
    """Everything at one moment."""
    db = file.db
    records, pulled, control, pictures, content = db.execute(
        "SELECT count(*), coalesce(sum(state = 'pulled'), 0), "
        "coalesce(sum(state = 'queued' AND draw IS NOT NULL), 0), coalesce(sum(pictures), 0), "
        "coalesce(sum(bytes), 0) FROM record"
    ).fetchone()
    oldest, newest = (rows.select(db, f"WHERE state = 'queued' ORDER BY seq {way}") for way in ("ASC", "DESC"))
    return QueueFacts(
        path=str(file.path),
        records=records,
        pulled=pulled,
        control=control,
        pictures=pictures,
        bytes=content,
        file_bytes=schema.pragma(db, "page_count") * file.bounds.page_bytes,
        wal_bytes=file.wal_bytes(),
        max_bytes=file.bounds.max_bytes,
        oldest_ns=oldest.put_ns if oldest else None,
        newest_ns=newest.put_ns if newest else None,
        control_periods=periods(db),
        counters=counters(db),
    )


def counters(db: sqlite3.Connection) -> dict[tuple[str, str], int]:
    """(name, reason) → how often."""
    return {(name, reason): n for name, reason, n in db.execute("SELECT name, reason, n FROM counter ORDER BY 1, 2")}


def periods(db: sqlite3.Connection) -> tuple[ControlPeriod, ...]:
    """Of the control stream, oldest first."""
    query = "SELECT period, began_ns, ended_ns, rate FROM control ORDER BY period"
    return tuple(ControlPeriod(*row) for row in db.execute(query))
