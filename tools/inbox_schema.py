"""The tables of ``inbox.db``, version 1."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from alpose.runtime.errors import DataError

APPLICATION_ID = 0x414C5049
"""``ALPI``, in the file's header."""
VERSION = 1

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


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create; :class:`DataError` for a file that is not ours, or newer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # isolation_level None: transactions begin where the code says so.
    db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        owner, version = (
            int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("application_id", "user_version")
        )
        if owner == 0 and version == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.execute("BEGIN IMMEDIATE")
            for statement in STATEMENTS:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        elif owner != APPLICATION_ID:
            raise DataError(f"{path} is a database of something else: give the folder of an inbox, or a new one")
        elif version > VERSION:
            raise DataError(
                f"{path} was written by a newer alpose (schema {version}, this one reads {VERSION}): update"
            )
    except sqlite3.DatabaseError as error:
        db.close()
        raise DataError(f"{path} cannot be opened: {error}. Restore it, or pull into another folder") from error
    except BaseException:
        db.close()
        raise
    return db
