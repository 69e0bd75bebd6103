"""The queue: a bounded SQLite file of records and their pictures. ``runtime/QUEUE.md`` is its specification.

This file has the verbs that write; those that read are in ``reading.py``. The rules are elsewhere: of reading and
writing the file in ``file.py``, of who goes when it is full in ``eviction.py``, of a record's bytes in ``canonical.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ..errors import ConfigError, DataError, QueueError
from . import acknowledgements, canonical, eviction, ledger, rows, schema, verbs
from .clock import Clock, time_ordered_id
from .eviction import Policy
from .facts import Applied, ScoreChunk, Stored, Tally
from .file import log
from .reading import Reading
from .record import MEDIA_TYPES, STORES, Picture, Record

Item = tuple[Record, Sequence[Picture], Sequence[str]]
"""A record, its pictures, and the ids that it supersedes."""

FREE_PAGES_KEPT = 512
"""Free pages that :meth:`Queue.tidy` leaves in the file: they are used again soon."""


class Queue(Reading):
    """A queue's file, open. Opening makes it where it is not there.

    Every verb that writes returns when what it wrote is synced to the disk: it survives ``kill -9`` and a power cut.
    One connection stands behind a Queue and a lock before it, so threads may share one and take turns. Other processes
    open their own. A Queue does not survive a fork.

    Args:
        path: of the file; ``-wal`` and ``-shm`` lie beside it while it is open, acknowledgements in ``<path>.ack``.
        max_bytes: bound on file and log together, at least 4 MiB. It holds for what this Queue writes: give all
            writers of a file the same.
        max_age_s: by the queue's clock; older records are erased. None keeps them.
        half_life_s: in which a record's worth halves. A property of the file: the last to open it decides.
        store, quality, media_type, long_side, seal_to, clip: how frames are to be encoded. The queue carries them for
            the recorder.
        busy_timeout_s: how long to wait for other writers.
        on_damage: ``quarantine`` moves a damaged file aside and begins a new one; ``raise`` leaves it.
        readonly: change nothing, neither the file nor its folder.
        clock: for tests.

    Raises:
        QueueError: see its ``reason``. Every verb may raise it.
        DataError: what was given to a verb contradicts itself.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int = 256 << 20,
        max_age_s: float | None = None,
        half_life_s: float = eviction.DEFAULT_HALF_LIFE_S,
        store: str = "full",
        quality: int = 90,
        media_type: str = "image/jpeg",
        long_side: int = 1920,
        seal_to: str | Path | None = None,
        clip: tuple[int, int] = (0, 0),
        busy_timeout_s: float = 5.0,
        on_damage: Literal["quarantine", "raise"] = "quarantine",
        readonly: bool = False,
        clock: Clock | None = None,
    ) -> None:
        _require(store in STORES, f"store must be one of {', '.join(STORES)}, got {store!r}")
        _require(media_type in MEDIA_TYPES, f"media_type must be one of {', '.join(MEDIA_TYPES)}, got {media_type!r}")
        _require(1 <= quality <= 100, f"quality must be from 1 to 100, got {quality}")
        _require(long_side >= 16, f"long_side must be at least 16 px, got {long_side}")
        whole = isinstance(clip, (tuple, list)) and all(isinstance(frames, int) for frames in clip)
        _require(whole and len(clip) == 2 and min(clip) >= 0, f"clip is (frames before, frames after), got {clip}")
        _require(sum(clip) < canonical.MAX_PICTURES, f"a clip has at most 255 frames beside its own, got {clip}")
        _require(busy_timeout_s >= 0, f"busy_timeout_s must not be negative, got {busy_timeout_s}")
        _require(on_damage in ("quarantine", "raise"), f"on_damage must be 'quarantine' or 'raise', got {on_damage!r}")
        self.store, self.quality, self.media_type, self.long_side = store, quality, media_type, long_side
        self.seal_to, self.clip, self.max_age_s = seal_to, clip, max_age_s
        super().__init__(
            Path(path),
            max_bytes=max_bytes,
            policy=Policy(half_life_s, max_age_s),
            busy_timeout_s=busy_timeout_s,
            on_damage=on_damage,
            readonly=readonly,
            clock=clock or Clock(),
        )

    def new_id(self) -> str:
        """An id for a new record: UUIDv7 layout, on the queue's clock."""
        return time_ordered_id(self.now_ns())

    def now_ns(self) -> int:
        """Unix time by the queue's clock, which never runs backwards while the file lives.

        It waits for nobody: a camera loop may ask while another thread is writing.
        """
        file = self._file
        if file is None:
            raise QueueError("closed", f"{self.path}: the queue was closed")
        return file.clock.now_ns()

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
        prepared = [(*item, canonical.encode(item[0], item[1])) for item in items]
        superseded = set(rows.checked_ids(id for _, _, ids, _ in prepared for id in ids))
        with self._use() as file, file.transaction() as transaction:
            eviction.evict_expired(file, transaction, self._policy)
            stored = [verbs.put(file, transaction, self._policy, *item) for item in prepared]
            # One of them may have had to make room for a later one.
            return [verbs.still(transaction.db, one, superseded) for one in stored]

    def acknowledge(self, ids: Iterable[str]) -> int:
        """Somebody has these records safe. Returns how many were queued until now; unknown ids are passed over."""
        listed = rows.checked_ids(ids)
        with self._use() as file, file.transaction() as transaction:
            done = 0
            for id in listed:
                transaction.afford(verbs.UPDATE_PAGES)
                change = "UPDATE record SET state = 'pulled' WHERE id = ? AND state = 'queued'"
                done += transaction.db.execute(change, (id,)).rowcount
                transaction.spend(verbs.UPDATE_PAGES)
            schema.count(transaction.db, "acknowledged_total", "", done)
            eviction.end_control_period(transaction)
            return done

    def delete(self, ids: Iterable[str], *, force: bool = False) -> int:
        """Erase records that were acknowledged; with ``force`` also others. Returns how many.

        The bytes are overwritten with the next checkpoint, :meth:`tidy` at the latest.
        """
        listed = rows.checked_ids(ids)
        with self._use() as file, file.transaction() as transaction:
            done = 0
            for id in listed:
                row = rows.by_id(transaction.db, id)
                if row is not None and (force or row.state == "pulled"):
                    done += verbs.erase(file, transaction, row, "deleted_total", row.state)
            eviction.end_control_period(transaction)
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
        listed = None if ids is None else rows.checked_ids(ids)
        given = [value is not None for value in (older_than_s, camera, device, listed)]
        _require(any(given) != everything, "say what to purge: conditions, or everything")
        where, values = ["1"], list[object]()
        for column, wanted in (("camera", camera), ("device", device)):
            if wanted is not None:
                where.append(f"{column} = ?")
                values.append(wanted)
        with self._use() as file:
            with file.transaction() as transaction:
                if older_than_s is not None:
                    where.append("put_ns < ?")
                    values.append(int(transaction.now_ns - older_than_s * 1e9))
                done = 0
                for row in list(verbs.matching(transaction.db, " AND ".join(where), values, listed)):
                    done += verbs.erase(file, transaction, row, "purged_total", "")
                if everything:
                    verbs.erase_scores(file, transaction)
                eviction.end_control_period(transaction)
            verbs.shrink(file, keep=0)
            if not file.empty_log():
                raise QueueError(
                    "held",
                    f"{file.path}: {done} records are erased, but a reader holds the file: until it is done, and purge "
                    "is called again, their bytes are still in it",
                )
            return done

    def count(self, name: str, reason: str = "", n: int = 1) -> None:
        """Raise a counter that lives in the file."""
        with self._use() as file, file.transaction() as transaction:
            schema.count(transaction.db, name, reason, n)

    def device_id(self, make: Callable[[], str]) -> str:
        """The id of the device that this file lives on: the one that it was given first, or one that is made now."""
        with self._use() as file, file.transaction() as transaction:
            transaction.db.execute("INSERT OR IGNORE INTO meta VALUES ('device_id', ?)", (make(),))
            return str(transaction.db.execute("SELECT value FROM meta WHERE key = 'device_id'").fetchone()[0])

    def add_bundle(self, sha256: str, name: str, facts: Mapping[str, Any]) -> None:
        """Keep what is needed to read a bundle's records later: skeleton, crop rule, calibration; JSON values."""
        with self._use() as file, file.transaction() as transaction:
            ledger.add_bundle(file, transaction, sha256, name, facts)

    def add_scores(
        self, data: bytes, *, device: str, camera: str = "", bundle: str, began_ns: int, ended_ns: int, frames: int
    ) -> None:
        """Append a chunk to the score log; the oldest chunks go when the log is over its share of the queue."""
        with self._use() as file:
            most = ledger.largest_chunk(file)
            if len(data) > most:
                raise DataError(f"a chunk of {len(data)} bytes for a score log of this queue: at most {most} in one")
            with file.transaction() as transaction:
                pages, cost = file.bounds.taken(len(data), 1), file.bounds.cost(len(data), 1)
                ledger.evict_scores(file, transaction, self._policy, len(data))
                full = eviction.make_room(file, transaction, pages, cost, None)
                if full is not None:
                    schema.count(transaction.db, "evicted_scores_total", full)
                    return
                ledger.add_scores(
                    transaction, ScoreChunk(0, device, camera, bundle, began_ns, ended_ns, frames, bytes(data))
                )
                transaction.spend(cost)

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
        with self._use() as file, file.transaction() as transaction:
            ledger.tally(file, transaction, Tally(device, camera, bundle, hour_ns, frames, flagged, control, kept))

    def apply_acknowledgements(self) -> Applied:
        """Apply the files in ``<path>.ack`` and remove them; doing it twice does it once."""
        applied = Applied()
        with self._use() as file:
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
                with file.transaction() as transaction:
                    applied = applied.plus(verbs.apply(file, transaction, said))
                acknowledgements.done(self.path, name)
            if applied.refused:
                self.count("acknowledgement_refused_total", "", len(applied.refused))
        return applied

    def tidy(self) -> None:
        """What is due once a minute: age limits, free pages back to the disk, the log into the file.

        The last one also lets those see the newest records who copy the file alone.
        """
        with self._use() as file:
            with file.transaction() as transaction:
                eviction.evict_expired(file, transaction, self._policy)
                ledger.evict_scores(file, transaction, self._policy)
                ledger.evict_tallies(transaction, self._policy)
            verbs.shrink(file, keep=FREE_PAGES_KEPT)
            file.checkpoint()

    def __enter__(self) -> Queue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
