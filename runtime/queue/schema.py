"""The tables of the queue's file, version 1. ``QUEUE.md`` says what each column means and why the tables are cut so."""

from __future__ import annotations

import sqlite3

APPLICATION_ID = 0x414C5051
"""``ALPQ``, in the file's header: a database with another one belongs to somebody else."""

VERSION = 1
"""``user_version``. A reader refuses a file with a larger one."""

PAGE_BYTES = 8192

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


def create(db: sqlite3.Connection, now_ns: int) -> None:
    """Fill an empty database, inside the caller's transaction."""
    for statement in STATEMENTS:
        db.execute(statement)
    db.execute("INSERT INTO meta VALUES ('created_ns', ?), ('clock_ns', ?)", (now_ns, now_ns))
    db.execute("INSERT INTO control (began_ns, rate) VALUES (?, 1.0)", (now_ns,))
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")


def is_empty(db: sqlite3.Connection) -> bool:
    """A database that nobody has written a table into; ours before its first transaction is one."""
    owner, version = pragma(db, "application_id"), pragma(db, "user_version")
    return owner == 0 and version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0


def problem(db: sqlite3.Connection) -> str | None:
    """Which of our tables is missing or another one; None where all are there and nothing acts on its own."""
    found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE type IN ('table', 'index')")}
    missing = [statement.split(" (")[0] for statement in STATEMENTS if statement not in found]
    if missing:
        return f"{', '.join(missing)} is not in it as it was written"
    if db.execute("SELECT count(*) FROM sqlite_master WHERE type NOT IN ('table', 'index')").fetchone()[0]:
        return "it has triggers or views, and a queue has none"
    return None


def pragma(db: sqlite3.Connection, name: str) -> int:
    """The whole number that a pragma answers."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def count(db: sqlite3.Connection, name: str, reason: str = "", n: int = 1) -> None:
    """Raise a counter inside the caller's transaction."""
    if n:
        db.execute(
            "INSERT INTO counter VALUES (?, ?, ?) ON CONFLICT (name, reason) DO UPDATE SET n = n + excluded.n",
            (name, reason, n),
        )
