"""Looking at every page, row and hash of a queue, and saving what can be saved of a damaged one.

The damaged file is copied and never written. From the copy every row that SQLite can still reach is read by its number,
verified by its hash, and written into a new file. Where the first page is lost, without which SQLite reads nothing at
all, the first page of a new queue takes its place: the tables of this version stand at the same pages in every file.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, DataNotFoundError, QueueError
from . import reading, tables
from .clock import Clock
from .database import Database, open_writable
from .eviction import rank_of, worth_of
from .fields import is_hex
from .reading import Found
from .record import STATES, Encoded, Picture, PictureInfo, Record, decode
from .tables import PLACES, Damage

MOST_PROBES = 1_000_000
"""Numbers between the smallest and the largest known one that are tried although nothing names them any more."""

_COLUMNS = "id, state, sha256, CAST(manifest AS BLOB), arrays, put_ns, draw, period"
_NUMBERS = (
    "SELECT seq FROM record NOT INDEXED ORDER BY seq",
    "SELECT seq FROM record NOT INDEXED ORDER BY seq DESC",
    "SELECT seq FROM record INDEXED BY sqlite_autoindex_record_1 ORDER BY id",
    "SELECT seq FROM record INDEXED BY sqlite_autoindex_record_1 ORDER BY id DESC",
    "SELECT seq FROM record INDEXED BY record_rank ORDER BY rank",
    "SELECT seq FROM record INDEXED BY record_rank ORDER BY rank DESC",
)
_KEYS = ("SELECT key FROM picture ORDER BY key", "SELECT key FROM picture ORDER BY key DESC")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :meth:`Queue.check` found."""

    records: int
    pictures: int
    """Each once, however many records have it."""
    damaged: tuple[Damage, ...]
    orphans: int
    """Pictures without a record, and shares in a picture without one of the two."""
    integrity: tuple[str, ...]
    """What SQLite's own check says; empty where all is well."""

    @property
    def ok(self) -> bool:
        """Nothing at all is wrong."""
        return not (self.damaged or self.orphans or self.integrity)


@dataclass(frozen=True, slots=True)
class RecoverReport:
    """What :func:`recover` saved of a damaged file, and what not."""

    records: int
    pictures: int
    """Each once, however many records have it."""
    bundles: int
    chunks: int
    tallies: int
    lost: tuple[Damage, ...]
    """Records of which something is left, but not all."""
    orphans: int
    """Whole pictures whose record is gone: they are not copied, for nobody could say what they show."""
    unreadable: int
    """Rows and ranges of rows that SQLite could not read at all."""


def check_database(database: Database) -> CheckReport:
    """Everything that can be wrong with an open file. Nothing is changed."""
    db = database.db
    with database.read():
        lines = tuple(str(line) for (line,) in db.execute("PRAGMA integrity_check(100)"))
        shared = tables.is_shared(db)
        but = "AND key NOT IN (SELECT picture FROM shared)" if shared else ""
        query = f"SELECT count(*) FROM picture WHERE key / {PLACES} NOT IN (SELECT seq FROM record) {but}"
        orphans = db.execute(query).fetchone()[0]
        if shared:
            orphans += db.execute(
                f"SELECT count(*) FROM shared WHERE key / {PLACES} NOT IN (SELECT seq FROM record) "
                "OR picture NOT IN (SELECT key FROM picture)"
            ).fetchone()[0]
    damaged = list[Damage]()
    records = pictures = 0
    after: Found | None = None
    while True:
        with database.read():
            found = reading.read_batch(db, order="time", state=None, after=after, limit=16)
            for one in found:
                damage = one.damage or _problem(database, one)
                if damage is not None:
                    damaged.append(damage)
                records += 1
                pictures += len(one.pictures) - _uncounted(db, one.seq)
        if not found:
            break
        after = found[-1]
    return CheckReport(records, pictures, tuple(damaged), orphans, () if lines == ("ok",) else lines)


def _problem(database: Database, found: Found) -> Damage | None:
    """Of the pictures, and of the columns that repeat what the manifest says."""
    record = found.record
    assert record is not None
    try:
        pictures = reading.read_pictures(database.db, found)
        first = found.seq * PLACES
        held, size = _held(database.db, first)
        repeated = database.db.execute(
            "SELECT device, camera, flagged, pictures, bytes - length(CAST(manifest AS BLOB)) - length(arrays) FROM record "
            "WHERE seq = ?", (found.seq,),
        ).fetchone()  # fmt: skip
        if repeated != (record.device, record.camera, int(record.flagged), held, size) or held != len(pictures):
            raise DataError(f"device, camera, flagged, pictures or bytes {repeated} are not what the manifest says")
    except DataError as error:
        return Damage(record.id, found.seq, str(error))
    return None


def _uncounted(db: sqlite3.Connection, seq: int) -> int:
    """How many of a record's pictures are counted for another one."""
    if not tables.is_shared(db):
        return 0
    query = "SELECT count(*) FROM shared WHERE bytes = 0 AND key BETWEEN ? AND ?"
    return int(db.execute(query, (seq * PLACES, seq * PLACES + PLACES - 1)).fetchone()[0])


def _held(db: sqlite3.Connection, first: int) -> tuple[int, int]:
    """How many pictures a record has, its own and shared ones, and the bytes of those that are counted for it."""
    within = (first, first + PLACES - 1)
    query = "SELECT count(*), coalesce(sum(length(data)), 0) FROM picture WHERE key BETWEEN ? AND ?"
    held, size = db.execute(query, within).fetchone()
    if tables.is_shared(db):
        query = "SELECT count(*), coalesce(sum(bytes), 0) FROM shared WHERE key BETWEEN ? AND ?"
        shared, counted = db.execute(query, within).fetchone()
        held, size = held + shared, size + counted
    return held, size


def recover(path: str | Path, into: str | Path) -> RecoverReport:
    """Copy every whole record of a damaged queue into a new one.

    Args:
        path: the damaged file, with its ``-wal`` beside it if there is one. It is not changed.
        into: the new file; beside it there must be room for two more copies of the damaged one.

    Raises:
        DataNotFoundError: ``path`` is not there.
        QueueError: it is a sound database of somebody else (``foreign``).
        DataError: ``into`` exists.
    """
    path, into = Path(path), Path(into)
    if not path.is_file():
        raise DataNotFoundError(f"{path} is not there: give the path of a damaged queue")
    if into.exists():
        raise DataError(f"{into} exists: what is recovered goes into a new file")
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}.") as scratch:
        copy = Path(scratch) / "damaged.db"
        shutil.copyfile(path, copy)
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{path}-wal", f"{copy}-wal")
        source = _open_damaged(copy, path)
        with closing(source):
            target = open_writable(
                into, max_bytes=max(64 << 20, 4 * path.stat().st_size), busy_timeout_s=5, clock=Clock()
            )
            try:
                return _copy(source, target)
            finally:
                target.close()


def _open_damaged(copy: Path, path: Path) -> sqlite3.Connection:
    """The copy as a database; with another first page, where its own says nothing."""
    for grafted in (False, True):
        if grafted:
            _graft_first_page(copy)
        db = sqlite3.connect(copy, isolation_level=None)
        try:
            owner = tables.pragma(db, "application_id")
            if owner not in (0, tables.APPLICATION_ID):
                raise QueueError("foreign", f"{path} is a database, and not a queue of alpose (id {owner:#x})")
            if owner == tables.APPLICATION_ID and tables.problem(db) is None:
                return db
        except sqlite3.DatabaseError:
            pass
        except BaseException:
            db.close()
            raise
        db.close()
    raise QueueError("damaged", f"{path} cannot be read even with a sound first page: nothing is left in it")


def _graft_first_page(copy: Path) -> None:
    with open(copy, "rb") as file:
        header = file.read(100)
    size = int.from_bytes(header[16:18], "big")
    page_bytes = size if size in (4096, 8192, 16384, 32768) else tables.PAGE_BYTES
    template = copy.with_name("template.db")
    with closing(sqlite3.connect(template, isolation_level=None)) as db:
        db.execute(f"PRAGMA page_size = {page_bytes}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL").fetchone()
        db.execute("BEGIN")
        tables.create(db, 0)
        db.execute("COMMIT")
    page = bytearray(template.read_bytes()[:page_bytes])
    page[28:32] = (copy.stat().st_size // page_bytes).to_bytes(4, "big")
    page[32:40] = bytes(8)  # No free pages: nothing is written into the copy.
    with open(copy, "r+b") as file:
        file.write(page)


def _copy(source: sqlite3.Connection, target: Database) -> RecoverReport:
    chunks = _copy_table(source, target, "score")
    bundles = _copy_table(source, target, "bundle")
    tallies = _copy_table(source, target, "tally")
    for table in ("counter", "control"):
        _copy_table(source, target, table)
    kept = dict(_until_damage(source, "SELECT key, value FROM meta"))
    last_ns = kept.get("clock_ns", 0)
    if isinstance(last_ns, int):
        target.clock.raise_to(last_ns)
    with target.transaction() as transaction:
        for key, value in kept.items():
            wanted = {"device_id": str, "max_bytes": int, "half_life_s": float}
            if str(key).startswith("state:") or isinstance(value, wanted.get(key, ())):
                transaction.reserve(target.bounds.cost(len(value) if isinstance(value, (bytes, str)) else 8, 0))
                tables.set_meta(transaction.db, str(key), value)
    keys = {key for query in _KEYS for (key,) in _until_damage(source, query) if isinstance(key, int)}
    named = {seq for query in _NUMBERS for (seq,) in _until_damage(source, query) if isinstance(seq, int)}
    known = named | {key // PLACES for key in keys}
    if known and max(known) - min(known) < MOST_PROBES:
        known |= set(range(min(known), max(known)))
    records = pictures = unreadable = 0
    stored = _StoredPictures(source, keys)
    saved = set[int]()
    lost = list[Damage]()
    with target.transaction() as transaction:
        for seq in sorted(known):
            try:
                row = source.execute(f"SELECT {_COLUMNS} FROM record NOT INDEXED WHERE seq = ?", (seq,)).fetchone()
            except sqlite3.DatabaseError:
                unreadable += 1
                continue
            if row is None and seq in named:
                lost.append(Damage(None, seq, "an index names it, and its row is gone"))
            if row is None:
                continue
            try:
                found = _verified(stored, seq, row)
            except (DataError, sqlite3.DatabaseError) as error:
                lost.append(Damage(row[0] if is_hex(row[0], 32) else None, seq, str(error)))
                continue
            if tables.by_id(transaction.db, found.record.id) is None:
                transaction.reserve(target.bounds.cost(found.content, len(found.pictures)))
                pictures += _write(target, found, last_ns)
                transaction.consume(target.bounds.cost(found.content, len(found.pictures)))
                records += 1
            saved.add(seq)
        tables.count(transaction.db, "recovered_total", "", records)
    told = {damage.row for damage in lost}
    orphans = sum(1 for key in keys - stored.used if key // PLACES not in saved and key // PLACES not in told)
    return RecoverReport(records, pictures, bundles, chunks, tallies, tuple(lost), orphans, unreadable)


@dataclass(frozen=True, slots=True)
class _Whole:
    """A record of which every hash is right."""

    record: Record
    encoded: Encoded
    pictures: list[Picture]
    put_ns: Any
    draw: Any
    period: Any

    @property
    def content(self) -> int:
        return tables.content_bytes(self.encoded, self.pictures)


class _StoredPictures:
    """The pictures of a damaged file: by their keys, and where one lies elsewhere, by what they hold.

    The manifest has the hash of every picture, so that nothing depends on the table that says which are shared.
    """

    def __init__(self, source: sqlite3.Connection, keys: Collection[int]) -> None:
        self._source, self._keys = source, keys
        self._by_sha256: dict[str, int] | None = None
        self.used = set[int]()
        """Keys of the pictures that records were found for."""

    def of(self, seq: int, facts: Sequence[PictureInfo]) -> list[Picture]:
        """A record's pictures, in order; :class:`DataError` where one is nowhere."""
        return [self._picture(seq * PLACES + place, info) for place, info in enumerate(facts)]

    def _picture(self, key: int, info: PictureInfo) -> Picture:
        data = self._data(key)
        if data is None or _sha256(data) != info.sha256:
            key = self._key_of(info.sha256)
            data = self._data(key)
        if data is None:
            raise DataError(f"the picture at position {info.position} is missing, or is not what was written")
        picture = info.joined(data)
        self.used.add(key)
        return picture

    def _key_of(self, sha256: str) -> int:
        """Where a picture lies that is not under its record's own key; -1 where nothing like it is left."""
        if self._by_sha256 is None:
            read = ((key, self._data(key)) for key in self._keys)
            self._by_sha256 = {_sha256(data): key for key, data in read if data is not None}
        return self._by_sha256.get(sha256, -1)

    def _data(self, key: int) -> bytes | None:
        try:
            row = self._source.execute("SELECT data FROM picture WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError:
            return None
        return row[0] if row is not None and isinstance(row[0], bytes) else None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _verified(stored: _StoredPictures, seq: int, row: tuple[Any, ...]) -> _Whole:
    id, state, sha256, manifest, arrays, put_ns, draw, period = row
    if not (isinstance(manifest, bytes) and isinstance(arrays, bytes) and isinstance(sha256, str)):
        raise DataError("a column has another type than it was written with")
    record, facts = decode(manifest, arrays, sha256, state=state if state in STATES else "queued")
    if record.id != id:
        raise DataError("the row's id is not the manifest's")
    return _Whole(record, Encoded(manifest, arrays, sha256), stored.of(seq, facts), put_ns, draw, period)


def _write(target: Database, found: _Whole, last_ns: Any) -> int:
    """Write a record, and say how many pictures were not there yet.

    The columns beside the manifest are not covered by its hash: what is not of its type is made anew.
    """
    db, record = target.db, found.record
    put_ns = found.put_ns if isinstance(found.put_ns, int) else last_ns
    put_ns = put_ns if isinstance(put_ns, int) else record.captured_ns
    value = worth_of(record)
    places = tables.place_pictures(db, target.picture_keys, found.pictures)
    keys = tables.insert(
        db,
        record,
        found.encoded,
        places,
        put_ns=put_ns,
        worth=value,
        rank=rank_of(db, value, put_ns),
        draw=found.draw if isinstance(found.draw, float) and found.draw == record.control_draw else None,
        period=found.period if isinstance(found.period, int) else 1,
    )
    if record.state != "queued":
        db.execute("UPDATE record SET state = ? WHERE id = ?", (record.state, record.id))
    target.remember_pictures(keys)
    return sum(place.shared is None for place in places)


def _copy_table(source: sqlite3.Connection, target: Database, table: str) -> int:
    """Copy the rows that can be read from either end of a small table; how many."""
    found = dict[Any, tuple[Any, ...]]()
    key = {"counter": "name, reason", "tally": "hour_ns, device, camera, bundle", "bundle": "sha256"}
    by = key.get(table, {"score": "number", "control": "period"}.get(table, ""))
    for way in ("ASC", "DESC"):
        order = ", ".join(f"{column} {way}" for column in by.split(", "))
        for row in _until_damage(source, f"SELECT * FROM {table} ORDER BY {order}"):
            found.setdefault(row[: len(by.split(", "))], row)
    for row in sorted(found.values(), key=lambda row: str(row[0]).zfill(20)):
        marks = ", ".join("?" * len(row))
        with target.transaction() as transaction:
            transaction.reserve(target.bounds.cost(sum(len(v) for v in row if isinstance(v, (bytes, str))), 1))
            transaction.db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)
    return len(found)


def _until_damage(db: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
    """Rows, as long as they can be read."""
    try:
        yield from db.execute(query)
    except sqlite3.DatabaseError:
        return
