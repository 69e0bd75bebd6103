"""What lies beside the records: facts of bundles, the score log, and how many frames were seen.

All of it is bounded on its own, so that it never takes a picture's place. Every function works inside the caller's
transaction or read.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import DataError, QueueError
from . import tables
from .clock import SANE_NS
from .eviction import OVERHEAD_PAGES, Policy, make_room
from .fields import is_hex
from .tables import Damage

if TYPE_CHECKING:
    from .database import Database, Transaction

MAX_BUNDLE_BYTES = 256 << 10
MAX_BUNDLES_SHARE = 8
"""All bundles together may take max_bytes / this: they are never evicted."""
SCORES_SHARE = 16
"""The score log may take max_bytes / this."""
CHUNK_SHARE = 4
"""And one chunk a part of that: the log's granularity when it is rotated."""
MAX_TALLIES = 20_000
"""Rows: two years of hours of one camera;"""
TALLY_BYTES = 160
"""and together they may take as much as the score log, at near so many bytes for one."""
STATE_HEADER = b"alpose state 1\n"
"""Before the sha256 and the bytes of a state."""
MAX_STATE_BYTES = 64 << 10
MAX_STATES = 8
HOUR_NS = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class BundleInfo:
    """What is needed to read a bundle's records when the bundle itself is not at hand."""

    sha256: str
    name: str
    facts: Mapping[str, Any]
    """JSON values: skeleton, crop rule, calibration."""


@dataclass(frozen=True, slots=True)
class ScoreChunk:
    """A stretch of the score log; ``data`` is opaque to the queue."""

    number: int
    device: str
    camera: str
    bundle: str
    began_ns: int
    ended_ns: int
    frames: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Tally:
    """Frames that a monitor saw in one hour: what a field report divides by."""

    device: str
    camera: str
    bundle: str
    hour_ns: int
    """Unix time of the beginning of the hour."""
    frames: int
    flagged: int
    control: int
    kept: int


def save_state(database: Database, transaction: Transaction, key: str, data: bytes) -> None:
    """Replace what is stored under a key."""
    db = transaction.db
    if not re.fullmatch(r"[a-z][a-z0-9_.-]{0,63}", key):
        raise DataError(f"{key[:100]!r} is not the name of a state: expected small letters, digits, '_', '-' and '.'")
    if len(data) > MAX_STATE_BYTES:
        raise DataError(f"the state {key!r} has {len(data)} bytes: at most {MAX_STATE_BYTES} are kept")
    others = db.execute("SELECT count(*) FROM meta WHERE key LIKE 'state:%' AND key <> ?", (f"state:{key}",)).fetchone()
    if others[0] >= MAX_STATES:
        raise DataError(f"the queue keeps {MAX_STATES} states, and {key!r} would be one more")
    cost = database.bounds.cost(len(data), 1)
    make_room(database, transaction, database.bounds.taken(len(data), 1), cost, None)
    tables.set_meta(db, f"state:{key}", STATE_HEADER + hashlib.sha256(data).digest() + data)
    transaction.consume(cost)


def load_state(db: sqlite3.Connection, key: str) -> tuple[bytes | None, bool]:
    """What is stored under a key, and whether it could be read."""
    stored = tables.meta(db, f"state:{key}")
    if stored is None:
        return None, True
    if not isinstance(stored, bytes) or not stored.startswith(STATE_HEADER):
        return None, False
    digest, data = stored[len(STATE_HEADER) :][:32], stored[len(STATE_HEADER) + 32 :]
    return (data, True) if hashlib.sha256(data).digest() == digest else (None, False)


def add_bundle(database: Database, transaction: Transaction, sha256: str, name: str, facts: Mapping[str, Any]) -> None:
    """Keep what is needed to read a bundle's records; once per bundle."""
    if not is_hex(sha256, 64):
        raise DataError(f"{sha256[:100]!r} is not the sha256 of a bundle: expected 64 hex digits in lower case")
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    size = len(text.encode())
    if size > MAX_BUNDLE_BYTES:
        raise DataError(f"the facts of bundle {name} take {size} bytes: at most {MAX_BUNDLE_BYTES} are kept")
    db = transaction.db
    held = db.execute("SELECT coalesce(sum(length(facts)), 0) FROM bundle WHERE sha256 <> ?", (sha256,)).fetchone()[0]
    if held + size > database.bounds.max_bytes // MAX_BUNDLES_SHARE:
        tables.count(db, "refused_total", "bundle")
        return
    if db.execute("SELECT 1 FROM bundle WHERE (sha256, name, facts) = (?, ?, ?)", (sha256, name, text)).fetchone():
        return
    cost = database.bounds.cost(size, 0)
    if make_room(database, transaction, database.bounds.taken(size, 0), cost, None) is not None:
        tables.count(db, "refused_total", "bundle")
        return
    db.execute("INSERT OR REPLACE INTO bundle VALUES (?, ?, ?)", (sha256, name, text))
    transaction.consume(cost)


def bundles(db: sqlite3.Connection) -> list[BundleInfo]:
    """All of them, by sha256."""
    found = db.execute("SELECT sha256, name, facts FROM bundle ORDER BY sha256").fetchall()
    try:
        return [BundleInfo(sha256, name, json.loads(facts)) for sha256, name, facts in found]
    except ValueError as error:
        raise QueueError("damaged", f"the facts of a bundle in the queue are not JSON: {error}") from None


def evict_scores(database: Database, transaction: Transaction, policy: Policy, coming: int = 0) -> None:
    """Rotate the score log: its oldest chunks go when it is over its share or too old."""
    db = transaction.db
    share = database.bounds.max_bytes // SCORES_SHARE
    while True:
        oldest = db.execute("SELECT number, put_ns, bytes FROM score ORDER BY number LIMIT 1").fetchone()
        if oldest is None:
            return
        number, put_ns, size = oldest
        if put_ns < SANE_NS:  # written before the clock was set: older than the first chunk that came after
            query = "SELECT coalesce(min(put_ns), 0) FROM score WHERE put_ns >= ?"
            put_ns = db.execute(query, (SANE_NS,)).fetchone()[0]
        held = db.execute("SELECT sum(bytes) FROM score").fetchone()[0]
        # Where no chunk has a known age, they go by their share.
        expired = policy.max_age_s is not None and SANE_NS <= put_ns < transaction.now_ns - policy.max_age_s * 1e9
        if held + coming <= share and not expired:
            return
        cost = database.bounds.cost(size, 1)
        if not transaction.reserve(cost):
            db.execute("DELETE FROM score WHERE number = ?", (number,))
            tables.count(db, "evicted_scores_total", "age" if expired else "full")
            transaction.consume(cost)


def largest_chunk(database: Database) -> int:
    """Bytes."""
    return database.bounds.max_bytes // SCORES_SHARE // CHUNK_SHARE


def add_scores(transaction: Transaction, chunk: ScoreChunk) -> None:
    """Append a chunk; its number is given here."""
    transaction.db.execute(
        "INSERT INTO score (put_ns, device, camera, bundle, began_ns, ended_ns, frames, bytes, sha256, data) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            transaction.now_ns,
            chunk.device,
            chunk.camera,
            chunk.bundle,
            chunk.began_ns,
            chunk.ended_ns,
            chunk.frames,
            len(chunk.data),
            hashlib.sha256(chunk.data).hexdigest(),
            chunk.data,
        ),
    )


def erase_scores(database: Database, transaction: Transaction) -> None:
    """Erase the whole score log."""
    for number, size in transaction.db.execute("SELECT number, bytes FROM score").fetchall():
        cost = database.bounds.cost(size, 1)
        transaction.reserve(cost)
        transaction.db.execute("DELETE FROM score WHERE number = ?", (number,))
        transaction.consume(cost)


def next_scores(db: sqlite3.Connection, after: int) -> ScoreChunk | Damage | None:
    """The chunk behind a number, verified."""
    row = db.execute(
        "SELECT number, device, camera, bundle, began_ns, ended_ns, frames, data, sha256 FROM score WHERE number > ? "
        "ORDER BY number LIMIT 1",
        (after,),
    ).fetchone()
    if row is None:
        return None
    if not isinstance(row[7], bytes) or hashlib.sha256(row[7]).hexdigest() != row[8]:
        return Damage(None, row[0], "the chunk of the score log does not have its sha256")
    return ScoreChunk(*row[:8])


def tally(database: Database, transaction: Transaction, seen: Tally) -> None:
    """Add to an hour's row."""
    if min(seen.frames, seen.flagged, seen.control, seen.kept) < 0:
        raise DataError(f"a tally counts upwards, got {seen}")
    db = transaction.db
    make_room(database, transaction, 2, OVERHEAD_PAGES, None)
    db.execute(
        "INSERT INTO tally VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hour_ns, device, camera, bundle) DO UPDATE SET "
        "frames = frames + excluded.frames, flagged = flagged + excluded.flagged, "
        "control = control + excluded.control, kept = kept + excluded.kept",
        (seen.hour_ns, seen.device, seen.camera, seen.bundle, seen.frames, seen.flagged, seen.control, seen.kept),
    )
    transaction.consume(OVERHEAD_PAGES)
    most = min(MAX_TALLIES, database.bounds.max_bytes // SCORES_SHARE // TALLY_BYTES)
    surplus = db.execute("SELECT count(*) FROM tally").fetchone()[0] - most
    for _ in range(surplus):
        oldest = db.execute("SELECT hour_ns, device, camera, bundle FROM tally ORDER BY hour_ns LIMIT 1").fetchone()
        db.execute("DELETE FROM tally WHERE (hour_ns, device, camera, bundle) = (?, ?, ?, ?)", oldest)
        tables.count(db, "evicted_tallies_total", "full")


def evict_tallies(transaction: Transaction, policy: Policy) -> None:
    """Hours beyond the age limit go as frames do."""
    if policy.max_age_s is None:
        return
    before_ns = transaction.now_ns - policy.max_age_s * 1e9 - HOUR_NS
    gone = transaction.db.execute("DELETE FROM tally WHERE hour_ns < ?", (int(before_ns),)).rowcount
    tables.count(transaction.db, "evicted_tallies_total", "age", gone)


def tallies(db: sqlite3.Connection) -> Iterator[Tally]:
    """All hours, oldest first."""
    query = "SELECT device, camera, bundle, hour_ns, frames, flagged, control, kept FROM tally ORDER BY hour_ns"
    for row in db.execute(query):
        yield Tally(*row)
