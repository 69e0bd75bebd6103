"""The queue: a bounded SQLite file of records and their pictures. ``runtime/QUEUE.md`` is its specification.

The rules are elsewhere: of reading and writing the file in ``database.py``, of who is admitted and who goes when it is
full in ``eviction.py``, of a record's bytes in ``record.py``, of what lies beside the records in ``ledger.py``. What only reads is in
``reading.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ..errors import ConfigError, DataError, QueueError
from ..redaction import REDACTIONS
from . import acknowledgements, eviction, ledger, recovery, tables, updating
from .acknowledgements import Acknowledgement, Applied
from .clock import Clock, time_ordered_id
from .database import Database, Transaction, log
from .eviction import Policy, Prepared, Stored
from .fields import MAX_PICTURES
from .files import clear_aside
from .ledger import ScoreChunk, Tally
from .reading import QueueReader
from .record import MEDIA_TYPES, STORES, Picture, Record, encode
from .recovery import CheckReport

Item = tuple[Record, Sequence[Picture], Sequence[str]]
"""A record, its pictures, and the ids that it supersedes."""

FREE_PAGES_KEPT = 512
"""Free pages that :meth:`Queue.tidy` leaves in the file: they are used again soon."""

UPDATE_PAGES = 6
"""Most pages that changing a record's state changes: its own, and one in each index."""


class Queue(QueueReader):
    """A queue's file, open. Opening makes it where it is not there.

    Every verb that writes returns when what it wrote is synced to the disk: it survives ``kill -9`` and a power cut.
    One connection stands behind a Queue and a lock before it, so threads may share one and take turns. Other processes
    open their own. A Queue does not survive a fork.

    Args:
        path: of the file; ``-wal`` and ``-shm`` lie beside it while it is open, acknowledgements in ``<path>.ack``.
        max_bytes: bound on file and log together, at least 4 MiB. It is stored in the file and stays in force for
            whoever opens it later; None keeps the file's own, 256 MiB in a new one.
        max_age_s: by the queue's clock; older records are erased. None keeps them.
        half_life_s: in which a record's worth halves. Stored in the file as well; None keeps it, 7 days in a new one.
        redact: ``face`` makes heads unrecognisable in every picture before it is written, at the places that poses give:
            as right as the pose is (``docs/privacy.md``).
        store, quality, media_type, long_side, seal_to, clip: how frames are to be encoded. The queue carries them for
            the recorder.
        busy_timeout_s: how long to wait for other writers.
        on_damage: ``quarantine`` moves a damaged file aside and begins a new one; ``raise`` leaves it.
        readonly: change nothing, neither the file nor its folder.
        open_now: False leaves opening to the first use: by the recorder's thread, for example, so that a disk that hangs
            or is not there yet holds up nobody. Whatever is wrong with the file is then raised there.
        clock: for tests.

    Raises:
        QueueError: see its ``reason``. Every verb may raise it.
        DataError: what was given to a verb contradicts itself.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int | None = None,
        max_age_s: float | None = None,
        half_life_s: float | None = None,
        store: str = "full",
        quality: int = 90,
        media_type: str = "image/jpeg",
        long_side: int | None = 1920,
        seal_to: str | Path | None = None,
        clip: tuple[int, int] = (0, 0),
        redact: str | None = None,
        busy_timeout_s: float = 5.0,
        on_damage: Literal["quarantine", "raise"] = "quarantine",
        readonly: bool = False,
        open_now: bool = True,
        clock: Clock | None = None,
    ) -> None:
        _require("\0" not in str(path), f"a path has no NUL in it, got {str(path)!r}")
        _require(store in STORES, f"store must be one of {', '.join(STORES)}, got {store!r}")
        _require(
            redact is None or redact in REDACTIONS,
            f"redact must be {' or '.join(map(repr, REDACTIONS))} or None, got {redact!r}",
        )
        _require(media_type in MEDIA_TYPES, f"media_type must be one of {', '.join(MEDIA_TYPES)}, got {media_type!r}")
        _require(_is_number(quality, 1) and quality <= 100, f"quality must be from 1 to 100, got {quality!r}")
        _require(
            long_side is None or _is_number(long_side, 16),
            f"long_side must be at least 16 px or None, got {long_side!r}",
        )
        _require(max_bytes is None or type(max_bytes) is int, f"max_bytes must be a number of bytes, got {max_bytes!r}")
        whole = isinstance(clip, (tuple, list)) and all(isinstance(frames, int) for frames in clip)
        _require(whole and len(clip) == 2 and min(clip) >= 0, f"clip is (frames before, frames after), got {clip}")
        _require(sum(clip) < MAX_PICTURES, f"a clip has at most 255 frames beside its own, got {clip}")
        _require(_is_number(busy_timeout_s, 0), f"busy_timeout_s must not be negative, got {busy_timeout_s}")
        _require(on_damage in ("quarantine", "raise"), f"on_damage must be 'quarantine' or 'raise', got {on_damage!r}")
        self.store, self.quality, self.media_type, self.long_side = store, quality, media_type, long_side
        self.seal_to, self.clip, self.max_age_s, self.redact = seal_to, clip, max_age_s, redact
        super().__init__(
            Path(path),
            max_bytes=max_bytes,
            policy=Policy(half_life_s, max_age_s),
            busy_timeout_s=busy_timeout_s,
            on_damage=on_damage,
            readonly=readonly,
            open_now=open_now,
            clock=clock or Clock(),
        )

    def new_id(self) -> str:
        """An id for a new record: UUIDv7 layout, on the queue's clock."""
        return time_ordered_id(self.now_ns())

    def now_ns(self) -> int:
        """Unix time by the queue's clock, which never runs backwards while the file lives.

        It waits for nobody: a camera loop may ask while another thread is writing.
        """
        database = self._database
        if database is None:
            with self._use() as database:
                return database.clock.now_ns()
        return database.clock.now_ns()

    def put(self, record: Record, pictures: Sequence[Picture] = (), *, supersedes: Sequence[str] = ()) -> Stored:
        """Store a record. Returns after the sync; see :class:`Stored` for what became of it.

        ``supersedes``: ids that this record takes the place of (an episode's worse frames). In the same transaction
        they are erased where they are still queued, and counted as evicted; a control record stays.
        """
        return self.put_many([(record, pictures, supersedes)])[0]

    def put_many(self, items: Iterable[Item]) -> list[Stored]:
        """Store several records with one sync, or with a few where they do not fit into the log at once.

        A record that contradicts itself is a :class:`DataError` before anything is written.
        """
        prepared = [Prepared(*item, encode(item[0], item[1])) for item in items]
        superseded = set(tables.checked_ids(id for item in prepared for id in item.supersedes))
        with self._use() as database, database.transaction() as transaction:
            eviction.evict_expired(database, transaction, self._policy)
            stored = [eviction.put(database, transaction, item) for item in prepared]
            # One of them may have had to make room for a later one.
            return [eviction.outcome_now(transaction.db, one, superseded) for one in stored]

    def acknowledge(self, ids: Iterable[str]) -> int:
        """Somebody has these records safe. Returns how many were queued until now; unknown ids are passed over."""
        listed = tables.checked_ids(ids)
        with self._use() as database, database.transaction() as transaction:
            done = 0
            for id in listed:
                transaction.reserve(UPDATE_PAGES)
                change = "UPDATE record SET state = 'pulled' WHERE id = ? AND state = 'queued'"
                done += transaction.db.execute(change, (id,)).rowcount
                transaction.consume(UPDATE_PAGES)
            tables.count(transaction.db, "acknowledged_total", "", done)
            eviction.end_control_period(database, transaction)
            return done

    def delete(self, ids: Iterable[str], *, force: bool = False) -> int:
        """Erase records that were acknowledged; with ``force`` also others. Returns how many.

        The bytes are overwritten with the next checkpoint, :meth:`tidy` at the latest.
        """
        listed = tables.checked_ids(ids)
        with self._use() as database, database.transaction() as transaction:
            done = 0
            for id in listed:
                row = tables.by_id(transaction.db, id)
                if row is not None and (force or row.state == "pulled"):
                    done += eviction.erase(database, transaction, row, "deleted_total", row.state)
            eviction.end_control_period(database, transaction)
            return done

    def purge(
        self,
        *,
        older_than_s: float | None = None,
        everything: bool = False,
        camera: str | None = None,
        device: str | None = None,
        ids: Iterable[str] | None = None,
    ) -> int:
        """Erase records, whatever their state, and see to it that their bytes are gone from the disk's files.

        The conditions that are given all have to hold; ``everything`` stands alone and takes the score log too. Returns
        how many records were erased. :class:`QueueError` with the reason ``held`` where they were, and a reader keeps
        the old bytes from being overwritten: purge again.
        """
        listed = None if ids is None else tables.checked_ids(ids)
        given = [value is not None for value in (older_than_s, camera, device, listed)]
        _require(any(given) != everything, "say what to purge: conditions, or everything")
        where, values = ["1"], list[object]()
        for column, wanted in (("camera", camera), ("device", device)):
            if wanted is not None:
                where.append(f"{column} = ?")
                values.append(wanted)
        with self._use() as database:
            with database.transaction() as transaction:
                if older_than_s is not None:
                    where.append("put_ns < ?")
                    values.append(int(transaction.now_ns - older_than_s * 1e9))
                done = 0
                for row in list(tables.matching(transaction.db, " AND ".join(where), values, listed)):
                    done += eviction.erase(database, transaction, row, "purged_total", "")
                if everything:
                    ledger.erase_scores(database, transaction)
                eviction.end_control_period(database, transaction)
            database.shrink(keep=0)
            if not database.empty_log():
                raise QueueError(
                    "held",
                    f"{database.path}: {done} records are erased, but a reader holds the file: until it is done, and purge "
                    "is called again, their bytes are still in it",
                )
            return done

    def count(self, name: str, reason: str = "", n: int = 1) -> None:
        """Raise a counter that lives in the file."""
        with self._use() as database, database.transaction() as transaction:
            tables.count(transaction.db, name, reason, n)

    def device_id(self, make: Callable[[], str]) -> str:
        """The id of the device that this file lives on: the one that it was given first, or one that is made now."""
        with self._use() as database, database.transaction() as transaction:
            transaction.db.execute("INSERT OR IGNORE INTO meta VALUES ('device_id', ?)", (make(),))
            return str(transaction.db.execute("SELECT value FROM meta WHERE key = 'device_id'").fetchone()[0])

    def save_state(self, key: str, data: bytes) -> None:
        """Keep a few bytes in the file under a name, synced: what a program wants to find again when it next starts.

        A trigger's account, for example, survives a restart, ``kill -9`` and a power cut this way. The bytes are stored
        with a version and a hash. At most :data:`~.ledger.MAX_STATE_BYTES` per key and :data:`~.ledger.MAX_STATES` keys,
        so that states never crowd out frames: more is a :class:`DataError`. Call it from the recorder's ``maintenance``
        (once a minute, and at the end), never from the camera's thread: it waits for the disk.
        """
        with self._use() as database, database.transaction() as transaction:
            ledger.save_state(database, transaction, key, data)

    def load_state(self, key: str) -> bytes | None:
        """The bytes last saved under a name; None where there are none.

        What cannot be read (damaged, or saved by another version of this facility) is None too, and counted in the file
        as ``unreadable_states_total{reason=key}``: a program starts afresh rather than not at all.
        """
        with self._use() as database:
            with database.read() as db:
                data, readable = ledger.load_state(db, key)
            if not readable and not self.readonly:
                self.count("unreadable_states_total", key)
            return data

    def add_bundle(self, sha256: str, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what is needed to read a bundle's records later: skeleton, crop rule, calibration; JSON values."""
        with self._use() as database, database.transaction() as transaction:
            ledger.add_bundle(database, transaction, sha256, name, facts)

    def add_scores(
        self, data: bytes, *, device: str, camera: str = "", bundle: str, began_ns: int, ended_ns: int, frames: int
    ) -> None:
        """Append a chunk to the score log; the oldest chunks go when the log is over its share of the queue."""
        with self._use() as database:
            most = ledger.largest_chunk(database)
            if len(data) > most:
                raise DataError(f"a chunk of {len(data)} bytes for a score log of this queue: at most {most} in one")
            with database.transaction() as transaction:
                pages, cost = database.bounds.taken(len(data), 1), database.bounds.cost(len(data), 1)
                ledger.evict_scores(database, transaction, self._policy, len(data))
                full = eviction.make_room(database, transaction, pages, cost, None)
                if full is not None:
                    tables.count(transaction.db, "evicted_scores_total", full)
                    return
                ledger.add_scores(
                    transaction, ScoreChunk(0, device, camera, bundle, began_ns, ended_ns, frames, bytes(data))
                )
                transaction.consume(cost)

    def tally(
        self,
        *,
        device: str,
        camera: str = "",
        bundle: str,
        at_ns: int,
        frames: int = 0,
        flagged: int = 0,
        control: int = 0,
        kept: int = 0,
    ) -> None:
        """Add to the frames that were seen in the hour of ``at_ns`` (Unix time)."""
        hour_ns = at_ns - at_ns % ledger.HOUR_NS
        with self._use() as database, database.transaction() as transaction:
            ledger.tally(database, transaction, Tally(device, camera, bundle, hour_ns, frames, flagged, control, kept))

    def apply_acknowledgements(self) -> Applied:
        """Apply the files in ``<path>.ack`` and remove them; doing it twice does it once."""
        applied = Applied()
        with self._use() as database:
            for name in acknowledgements.waiting(self.path):
                try:
                    said = acknowledgements.read(self.path, name)
                except FileNotFoundError:
                    continue  # Another process was faster.
                except DataError as error:
                    applied = applied.plus(Applied(refused=((name, str(error)),)))
                    log.warning("queue %s: acknowledgement %s %s: set aside", self.path, name, error)
                    with suppress(FileNotFoundError):
                        acknowledgements.refuse(self.path, name)
                    continue
                with database.transaction() as transaction:
                    applied = applied.plus(_apply(database, transaction, said))
                acknowledgements.done(self.path, name)
            if applied.refused:
                self.count("acknowledgement_refused_total", "", len(applied.refused))
        return applied

    def tidy(self) -> None:
        """What is due once a minute: age limits, free pages back to the disk, the log into the file.

        The last one also lets those see the newest records who copy the file alone.
        """
        with self._use() as database:
            # A device that starts in 1970 learns the time while it runs; what is too old by it has to go.
            database.begun = database.clock.follow(tables.meta(database.db, "doubted_wall_ns"))
            with database.transaction() as transaction:
                if database.begun is not None:
                    updating.update_after_opening(database, transaction, self._policy)
                eviction.evict_expired(database, transaction, self._policy)
                ledger.evict_scores(database, transaction, self._policy)
                ledger.evict_tallies(transaction, self._policy)
                eviction.end_control_period(database, transaction)
            database.shrink(keep=FREE_PAGES_KEPT)
            database.checkpoint()
            clear_aside(self.path, self.max_age_s, database.clock.now_ns() / 1e9)

    def check(self) -> CheckReport:
        """Look at every page, row and hash. Reads the whole file."""
        with self._use() as database:
            return recovery.check_database(database)

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _apply(database: Database, transaction: Transaction, said: Acknowledgement) -> Applied:
    """Do what an acknowledgement file says, for the records that are the ones it means."""
    acknowledged = deleted = unknown = 0
    mismatched = list[str]()
    db = transaction.db
    for id, sha256 in said.records.items():
        row = tables.by_id(db, id)
        if row is None:
            unknown += 1
        elif row.sha256 != sha256:
            mismatched.append(id)
        elif said.delete:
            deleted += eviction.erase(database, transaction, row, "deleted_total", "acknowledged")
        elif row.state == "queued":
            transaction.reserve(UPDATE_PAGES)
            db.execute("UPDATE record SET state = 'pulled' WHERE seq = ?", (row.seq,))
            transaction.consume(UPDATE_PAGES)
            acknowledged += 1
    tables.count(db, "acknowledged_total", "", acknowledged)
    tables.count(db, "acknowledgement_mismatch_total", "", len(mismatched))
    eviction.end_control_period(database, transaction)
    return Applied(1, acknowledged, deleted, unknown, tuple(mismatched), ())


def _is_number(value: object, least: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= least


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
