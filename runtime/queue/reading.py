"""Reading a queue: records and pictures out of its tables, with what is wrong with a row in its place."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, DataError
from ..skeleton import Skeleton
from . import ledger, tables
from .database import log
from .ledger import BundleInfo, ScoreChunk, Tally
from .record import Picture, PictureInfo, Record, decode
from .shared import SharedDatabase
from .tables import ORDERS, PLACES, ControlPeriod, Damage, Order, pragma, select


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it was read: a record, or what is wrong with it."""

    seq: int
    rank: float
    record: Record | None
    pictures: tuple[PictureInfo, ...]
    damage: Damage | None


OnDamage = Callable[[Damage], None]

BATCH = 256
"""Manifests that one read of :meth:`QueueReader.iterate` fetches: near a third of a megabyte."""

_READ = (
    "seq, rank, id, state, sha256, CAST(manifest AS BLOB), arrays, "
    "(SELECT rate FROM control WHERE control.period = record.period)"
)


def read_batch(
    db: sqlite3.Connection, *, order: Order, state: str | None, after: Found | None, limit: int
) -> list[Found]:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """The state of a queue at one moment."""

    path: str
    records: int
    """In all states."""
    pulled: int
    """Records that were acknowledged, and not deleted yet."""
    control: int
    """Queued records of the control stream."""
    pictures: int
    """Each once, however many records have it."""
    bytes: int
    """Bytes of manifests and pictures."""
    file_bytes: int
    """Length of the database file, free pages included."""
    wal_bytes: int
    """Length of the write-ahead log."""
    max_bytes: int
    """The bound on the two above together."""
    oldest_ns: int | None
    """Unix time at which the frame that has waited longest was captured; None where none waits."""
    newest_ns: int | None
    """The same of the frame that came last."""
    control_periods: tuple[ControlPeriod, ...]
    counters: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(name, reason) → how often, over the life of the file."""


class QueueReader(SharedDatabase):
    """What only reads: nothing here changes a byte, and nothing holds the file for long."""

    def peek(self, limit: int | None = None, *, order: Order = "time", state: str | None = "queued") -> list[Record]:
        """Manifests, verified, without touching a picture: the oldest first, or the most valuable.

        Damaged rows are passed over and logged; :meth:`iterate` can tell of them and :meth:`check` lists them.
        """
        found = list[Record]()
        for record in self.iterate(order=order, state=state, batch=min(limit or BATCH, BATCH)):
            if limit is not None and len(found) >= limit:
                break
            found.append(record)
        return found

    def iterate(
        self,
        *,
        order: Order = "time",
        state: str | None = "queued",
        on_damage: OnDamage | None = None,
        batch: int = BATCH,
    ) -> Iterator[Record]:
        """Manifests one after the other, with a batch of them in memory.

        Between two batches nothing is held, so a slow consumer is in nobody's way; what is put or erased meanwhile may
        or may not come. Damaged rows go to ``on_damage``, or into the log.
        """
        if order not in ORDERS:
            raise ConfigError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        after: Found | None = None
        while True:
            with self._use() as database, database.read() as db:
                found = read_batch(db, order=order, state=state, after=after, limit=batch)
            for one in found:
                if one.record is not None:
                    yield one.record
                elif one.damage is not None:
                    (on_damage or self._log_damage)(one.damage)
            if len(found) < batch:
                return
            after = found[-1]

    def get(self, ids: Iterable[str]) -> list[Record]:
        """The records of these ids, in their order; unknown and damaged ones are left out."""
        found = list[Record]()
        for id in tables.checked_ids(ids):
            with self._use() as database, database.read() as db:
                one = read(db, id)
            if one is not None and one.record is not None:
                found.append(one.record)
            elif one is not None and one.damage is not None:
                self._log_damage(one.damage)
        return found

    def pictures(self, id: str) -> list[Picture]:
        """A record's pictures, hash-checked; :class:`DataError` where the record is unknown or anything is damaged."""
        [id] = tables.checked_ids([id])
        with self._use() as database, database.read() as db:
            found = read(db, id)
            if found is None:
                raise DataError(f"{database.path} has no record {id}: it was evicted, deleted, or never there")
            if found.damage is not None:
                raise DataError(f"{database.path}, record {id}: {found.damage.problem}")
            try:
                return read_pictures(db, found)
            except DataError as error:
                raise DataError(f"{database.path}, record {id}: {error}") from None

    def pull(
        self, ids: Iterable[str] | None = None, *, limit: int | None = None, on_damage: OnDamage | None = None
    ) -> list[tuple[Record, list[Picture]]]:
        """Records with their pictures, every hash verified. Their state does not change: see :meth:`acknowledge`.

        Args:
            ids: which; unknown ones are left out. None takes the most valuable of those that are queued.
            limit: of them, at most; the pictures are all held in memory.
            on_damage: told of every record that is left out because it is damaged; the log is, where this is None.
        """
        if ids is None:
            ids = [record.id for record in self.peek(limit, order="value")]
        pulled = list[tuple[Record, list[Picture]]]()
        for id in tables.checked_ids(ids)[:limit]:
            with self._use() as database, database.read() as db:
                found = read(db, id)
                if found is None:
                    continue
                damage = found.damage
                try:
                    pictures = read_pictures(db, found)
                except DataError as error:
                    damage = Damage(id, found.seq, str(error))
            if found.record is not None and damage is None:
                pulled.append((found.record, pictures))
            elif damage is not None:
                (on_damage or self._log_damage)(damage)
        return pulled

    def info(self) -> QueueInfo:
        """The queue in numbers."""
        with self._use() as database, database.read() as db:
            records, pulled, control, pictures, content = db.execute(
                "SELECT count(*), coalesce(sum(state = 'pulled'), 0), "
                "coalesce(sum(state = 'queued' AND draw IS NOT NULL), 0), coalesce(sum(pictures), 0), "
                "coalesce(sum(bytes), 0) FROM record"
            ).fetchone()
            oldest, newest = (captured_ns(db, f"WHERE state = 'queued' ORDER BY seq {way}") for way in ("ASC", "DESC"))
            return QueueInfo(
                path=str(self.path),
                records=records,
                pulled=pulled,
                control=control,
                pictures=tables.picture_count(db, pictures),
                bytes=content,
                file_bytes=tables.pragma(db, "page_count") * database.bounds.page_bytes,
                wal_bytes=database.wal_bytes(),
                max_bytes=database.bounds.max_bytes,
                oldest_ns=oldest,
                newest_ns=newest,
                control_periods=tables.control_periods(db),
                counters=tables.counters(db),
            )

    def counters(self) -> dict[tuple[str, str], int]:
        """(name, reason) → how often, over the life of the file."""
        with self._use() as database, database.read() as db:
            return tables.counters(db)

    def control_periods(self) -> tuple[ControlPeriod, ...]:
        """Over which stretches of time the control stream stood for which rate."""
        with self._use() as database, database.read() as db:
            return tables.control_periods(db)

    def bundles(self) -> list[BundleInfo]:
        """Facts of every bundle that wrote into the queue."""
        with self._use() as database, database.read() as db:
            return ledger.bundles(db)

    def skeleton_of(self, record: Record) -> Skeleton:
        """The skeleton of the record's bundle; joints without links where this file does not know the bundle."""
        for bundle in self.bundles():
            if bundle.sha256 == record.bundle and isinstance(bundle.facts.get("skeleton"), dict):
                skeleton = Skeleton.from_json(bundle.facts["skeleton"])
                if len(skeleton) == len(record.keypoints_J2):
                    return skeleton
        names = tuple(f"joint {number}" for number in range(len(record.keypoints_J2)))
        return Skeleton("unknown", names, (), ())

    def scores(self, on_damage: OnDamage | None = None) -> Iterator[ScoreChunk]:
        """The score log, oldest chunk first, hash-checked."""
        after = -1
        while True:
            with self._use() as database, database.read() as db:
                chunk = ledger.next_scores(db, after)
            if chunk is None:
                return
            if isinstance(chunk, Damage):
                after = chunk.row
                (on_damage or self._log_damage)(chunk)
            else:
                after = chunk.number
                yield chunk

    def tallies(self) -> list[Tally]:
        """Frames seen, per hour, device, camera and bundle; oldest first."""
        with self._use() as database, database.read() as db:
            return list(ledger.tallies(db))

    def _log_damage(self, damage: Damage) -> None:
        log.warning("queue %s: row %d (record %s): %s", self.path, damage.row, damage.id, damage.problem)
