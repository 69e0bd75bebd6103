"""The queue's verbs that read. None of them changes a byte, and none holds the file for long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..errors import ConfigError, DataError
from . import ledger, report, rows
from .check import check_file
from .connection import Connection
from .facts import BundleFacts, CheckReport, ControlPeriod, Damage, QueueFacts, ScoreChunk, Tally
from .file import log
from .record import Picture, Record
from .rows import Found, Order

BATCH = 256
"""Manifests that one read of :meth:`Queue.iterate` fetches: near a third of a megabyte."""

OnDamage = Callable[[Damage], None]


class Reading(Connection):
    """What :class:`alpose.runtime.queue.Queue` can tell."""

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
        if order not in ("time", "value"):
            raise ConfigError(f"order must be 'time' or 'value', got {order!r}")
        after: Found | None = None
        while True:
            with self._use() as file, file.read() as db:
                found = rows.batch(db, order=order, state=state, after=after, limit=batch)
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
        for id in rows.checked_ids(ids):
            with self._use() as file, file.read() as db:
                one = rows.read(db, id)
            if one is not None and one.record is not None:
                found.append(one.record)
            elif one is not None and one.damage is not None:
                self._log_damage(one.damage)
        return found

    def pictures(self, id: str) -> list[Picture]:
        """A record's pictures, hash-checked; :class:`DataError` where the record is unknown or anything is damaged."""
        [id] = rows.checked_ids([id])
        with self._use() as file, file.read() as db:
            found = rows.read(db, id)
            if found is None:
                raise DataError(f"{file.path} has no record {id}: it was evicted, deleted, or never there")
            if found.damage is not None:
                raise DataError(f"{file.path}, record {id}: {found.damage.problem}")
            try:
                return rows.read_pictures(db, found)
            except DataError as error:
                raise DataError(f"{file.path}, record {id}: {error}") from None

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
        for id in rows.checked_ids(ids)[:limit]:
            with self._use() as file, file.read() as db:
                found = rows.read(db, id)
                if found is None:
                    continue
                damage = found.damage
                try:
                    pictures = rows.read_pictures(db, found)
                except DataError as error:
                    damage = Damage(id, found.seq, str(error))
            if found.record is not None and damage is None:
                pulled.append((found.record, pictures))
            elif damage is not None:
                (on_damage or self._log_damage)(damage)
        return pulled

    def facts(self) -> QueueFacts:
        """The queue in numbers."""
        with self._use() as file, file.read():
            return report.facts(file)

    def counters(self) -> dict[tuple[str, str], int]:
        """(name, reason) → how often, over the life of the file."""
        with self._use() as file, file.read() as db:
            return report.counters(db)

    def control_periods(self) -> tuple[ControlPeriod, ...]:
        """Over which stretches of time the control stream stood for which rate."""
        with self._use() as file, file.read() as db:
            return report.periods(db)

    def bundles(self) -> list[BundleFacts]:
        """Facts of every bundle that wrote into the queue."""
        with self._use() as file, file.read() as db:
            return ledger.bundles(db)

    def scores(self, on_damage: OnDamage | None = None) -> Iterator[ScoreChunk]:
        """The score log, oldest chunk first, hash-checked."""
        after = -1
        while True:
            with self._use() as file, file.read() as db:
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
        with self._use() as file, file.read() as db:
            return list(ledger.tallies(db))

    def check(self) -> CheckReport:
        """Look at every page, row and hash. Reads the whole file."""
        with self._use() as file:
            return check_file(file)

    def _log_damage(self, damage: Damage) -> None:
        log.warning("queue %s: row %d (record %s): %s", self.path, damage.row, damage.id, damage.problem)
