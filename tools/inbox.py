"""The inbox: everything that a fleet sent, one row a frame, and the pictures that were fetched.

::

    INBOX/
      inbox.db                     manifests, where each came from and how far it has come
      frames/9f/9f….jpg            the frame; 9f….-1.jpg and 9f….+1.jpg are its neighbours in a clip
      batches/NAME.json            what was chosen for annotation

A picture is named by the id of its record, which is 32 hex digits or is refused: no path that stands in a record is used.
Several people on one frame have one picture: it is fetched once, and its other names are hard links, where the file system
has them.
Beside a sealed picture, which ends in ``.sealed``, its image lies once it was opened.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from alpose.runtime.errors import AlposeError, ConfigError, DataError, DataNotFoundError
from alpose.runtime.io import bring_file, read_json, write_atomically, write_json
from alpose.runtime.queue.fields import is_hex
from alpose.runtime.queue.ledger import BundleInfo, Tally
from alpose.runtime.queue.record import Picture, PictureInfo, Record, decode
from alpose.runtime.skeleton import Skeleton

from . import inbox_database
from .batch import Batch, check_name
from .inbox_database import Added, Columns, Entry, Raw

log = logging.getLogger("alpose")

DATABASE, FRAMES, BATCHES = "inbox.db", "frames", "batches"
SEALED = ".sealed"
SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png"}
CHUNK = 5_000
"""Rows of one transaction."""
WAITING = {
    "fetched": "fetched = 0 AND pictures > 0 AND deleted = 0",
    "acknowledged": "acknowledged = 0 AND deleted = 0 AND (fetched = 1 OR pictures = 0)",
    "deleted": "asked = 0 AND deleted = 0 AND (fetched = 1 OR pictures = 0)",
}
"""Condition of the records for which a step is still to be done."""


class Inbox:
    """An inbox, opened or begun. One process writes at a time; others may read, also where they may not write.

    Args:
        folder: where it lives.
        create: begin one where there is none; otherwise :class:`DataNotFoundError`.
    """

    def __init__(self, folder: str | Path, *, create: bool = False) -> None:
        self.folder = Path(folder)
        if not create and not (self.folder / DATABASE).exists():
            raise DataNotFoundError(
                f"{self.folder} is not an inbox: make one with alpose-harvest pull SOURCE --into {self.folder}"
            )
        self._db, self.writable = inbox_database.open_database(self.folder / DATABASE)

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.close()
        if isinstance(error, sqlite3.DatabaseError):
            raise DataError(
                f"{self.folder / DATABASE} is damaged, or cannot be read: {error}. Restore it, or pull into another folder"
            ) from error

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM record").fetchone()[0])

    # --- What a pull brings

    def source(self, url: str, now: str) -> int:
        """The number of a source; ``url`` must be without secrets."""
        with self._transaction() as db:
            db.execute("INSERT INTO source (url, pulled) VALUES (?, ?) ON CONFLICT (url) DO UPDATE SET pulled = excluded.pulled",
                       (url, now))  # fmt: skip
            return int(db.execute("SELECT number FROM source WHERE url = ?", (url,)).fetchone()[0])

    def add(self, source: int, raws: Iterable[Raw]) -> Added:
        """Keep manifests; one that does not have its hash, or is not a record, is counted and listed, and the rest goes on.

        A known id keeps its first row: the same frame that comes by two ways is one frame. As long as its pictures are
        not here, it belongs to the source that had it last, and may still be evicted there: the bound on its control
        stream's rate follows. What is here stays, whatever its device gives up later, and so does its rate.
        """
        became = {"new": 0, "known": 0, "refused": 0}
        remaining = iter(raws)
        while chunk := list(islice(remaining, CHUNK)):
            with self._transaction() as db:
                for raw in chunk:
                    became[inbox_database.take(db, source, raw)] += 1
        return Added(**became)

    def add_bundles(self, bundles: Iterable[BundleInfo]) -> None:
        """Keep what is needed to read a bundle's records."""
        rows = [(bundle.sha256, bundle.name, json.dumps(dict(bundle.facts))) for bundle in bundles]
        with self._transaction() as db:
            db.executemany("INSERT OR IGNORE INTO bundle VALUES (?, ?, ?)", rows)

    def set_tallies(self, queue: int, tallies: Iterable[Tally]) -> None:
        """Replace a queue's counts hour by hour: a later pull knows an hour better, and old hours may be gone there.

        ``queue`` is what tells one queue from another, wherever it lies: a copy adds nothing, and a new queue in the
        place of a damaged one adds to what that one had counted.
        """
        rows = [(queue, one.hour_ns, one.device, one.camera, one.bundle, one.frames, one.flagged, one.control, one.kept)
                for one in tallies]  # fmt: skip
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO tally VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def set_counters(self, source: int, counters: Mapping[tuple[str, str], int]) -> None:
        """Replace a source's counters."""
        rows = [(source, name, reason, n) for (name, reason), n in counters.items()]
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO counter VALUES (?, ?, ?, ?)", rows)

    def store_pictures(self, id_: str, pictures: Sequence[Picture]) -> None:
        """Write the pictures of a known record, synced, and only then say that they are here.

        :class:`DataError` where one is not what the record's manifest lists.
        """
        wanted = {fact.position: fact.sha256 for fact in self._decoded(id_)[1]}
        if {picture.position: picture.sha256 for picture in pictures} != wanted:
            raise DataError(f"record {id_}: these pictures are not the ones that its manifest lists")
        for picture in pictures:
            path = self._stored_path(id_, picture)
            if not (path.is_file() and path.read_bytes() == picture.data):
                write_atomically(path, picture.data)
        self._mark_fetched(id_)

    def link_pictures(self, id_: str) -> bool:
        """Give a record the pictures of other people on the same frame, if all that it lists are here already, whole.

        Returns whether its pictures are here now.
        """
        facts, held = self._decoded(id_)[1], self._held_by_others(id_)
        if held is None:
            return False
        for fact, source in zip(facts, held, strict=True):
            bring_file(self._stored_path(*source), self._stored_path(id_, fact), link=True)
        if not facts or not self.is_whole(id_):  # a file of the same length that is another one: it is fetched
            return False
        self._mark_fetched(id_)
        return True

    def image_of_frame(self, id_: str) -> tuple[str, Path | None]:
        """The picture of a record that was not fetched, if somebody else on the frame has brought it; and whose record that is.

        It becomes the record's own where the inbox can be written.
        """
        if self.writable:
            return id_, self.image(id_) if self.link_pictures(id_) else None
        held = self._held_by_others(id_) or ()
        other = next((other for other, fact in held if fact.position == 0), None)
        return (id_, None) if other is None else (other, self.image(other))

    def _held_by_others(self, id_: str) -> list[tuple[str, PictureInfo]] | None:
        """For each picture that a record lists, who else on the frame has it here, whole; None where one is missing."""
        held = {fact.sha256: (other, fact) for other in self.on_same_frame(id_) for fact in self._decoded(other)[1]}
        found = [held.get(fact.sha256) for fact in self._decoded(id_)[1]]
        whole = [one for one in found if one is not None and self.picture_bytes(*one) is not None]
        return whole if len(whole) == len(found) else None

    def on_same_frame(self, id_: str) -> list[str]:
        """Ids of the other people on the frame that a record is of: taken by one device at one time, with one picture."""
        record, facts = self._decoded(id_)
        frame = next((fact.sha256 for fact in facts if fact.position == 0), None)
        if frame is None:
            return []
        others = self._ids(
            "captured_ns = ? AND device = ? AND id <> ? ORDER BY row", record.captured_ns, record.device, id_
        )
        return [other for other in others
                if any(fact.position == 0 and fact.sha256 == frame for fact in self._decoded(other)[1])]  # fmt: skip

    # --- How far records have come

    def waiting(self, source: int, what: str) -> list[str]:
        """Ids of a source that are still to be ``fetched``, ``acknowledged`` or ``deleted``; oldest first."""
        return self._ids(f"source = ? AND {WAITING[what]} ORDER BY row", source)

    def held(self, source: int) -> list[str]:
        """Ids of a source whose pictures were brought, and that its device may have still; oldest first."""
        return self._ids("source = ? AND fetched = 1 AND pictures > 0 AND deleted = 0 ORDER BY row", source)

    def asked(self, source: int) -> list[str]:
        """Ids that the device was asked to delete."""
        return self._ids("source = ? AND asked = 1", source)

    def gone(self, source: int, there: Collection[str]) -> int:
        """Mark the frames that were not fetched and are no longer ``there`` as deleted on their device; how many."""
        return self.mark("deleted", [id_ for id_ in self.waiting(source, "fetched") if id_ not in there])

    def unask(self, ids: Iterable[str]) -> None:
        """The device still has these: it may be asked again."""
        with self._transaction() as db:
            db.executemany("UPDATE record SET asked = 0, deleted = 0 WHERE id = ?", [(id_,) for id_ in ids])

    def lost(self, id_: str) -> None:
        """The pictures that were here are not any more: they have to be fetched again."""
        with self._transaction() as db:
            db.execute("UPDATE record SET fetched = 0 WHERE id = ?", (id_,))

    def mark(self, column: str, ids: Iterable[str]) -> int:
        """Say that records are now ``acknowledged``, ``asked`` to be deleted, ``deleted`` (on the device) or ``annotated``."""
        if column not in ("acknowledged", "asked", "deleted", "annotated"):
            raise ValueError(column)
        with self._transaction() as db:
            return sum(db.execute(f"UPDATE record SET {column} = 1 WHERE id = ? AND {column} = 0", (id_,)).rowcount
                       for id_ in ids)  # fmt: skip

    def sha256(self, id_: str) -> str:
        """The hash of a record, as its device wrote it."""
        return str(self._row(id_, "sha256")[0])

    def is_whole(self, id_: str) -> bool:
        """Whether every picture of a record lies here with the hash that its manifest lists; reads them all."""
        return all(self.picture_bytes(id_, fact) is not None for fact in self._decoded(id_)[1])

    def has(self, id_: str) -> bool:
        """Whether a record is known."""
        return self._db.execute("SELECT 1 FROM record WHERE id = ?", (id_,)).fetchone() is not None

    def entries(self, ids: Iterable[str]) -> list[Entry]:
        """Records with how far they have come, in the order asked; an unknown id is :class:`DataNotFoundError`."""
        found = []
        for id_ in ids:
            manifest, arrays, sha256, rate, number, fetched, acknowledged, deleted, batch, annotated = self._row(
                id_, "manifest, arrays, sha256, control_rate, source, fetched, acknowledged, deleted, batch, annotated"
            )
            (url,) = self._db.execute("SELECT url FROM source WHERE number = ?", (number,)).fetchone()
            record, pictures = decode(manifest.encode(), arrays, sha256, control_rate=1.0 if rate is None else rate)
            found.append(
                Entry(record, pictures, url, bool(fetched), bool(acknowledged), bool(deleted), batch, bool(annotated))
            )
        return found

    # --- Pictures

    def image(self, id_: str, position: int = 0) -> Path | None:
        """The picture's file, if it is here and open; None where it is not fetched, sealed, or never was."""
        paths = (self._path(id_, position, suffix) for suffix in SUFFIXES.values())
        return next((path for path in paths if path.exists()), None)

    def sealed(self) -> list[str]:
        """Ids whose pictures are here, but under seal."""
        return [id_ for id_ in self._ids("sealed = 1 AND fetched = 1 ORDER BY row") if self.image(id_) is None]

    def picture_bytes(self, id_: str, fact: PictureInfo) -> bytes | None:
        """A picture as the device stored it, hash-checked; None where it is not here."""
        try:
            return fact.joined(self._stored_path(id_, fact).read_bytes()).data
        except (OSError, DataError):
            return None

    def store_unsealed(self, id_: str, fact: PictureInfo, image: bytes) -> Path:
        """Put an image beside the sealed box that it came in, which stays the proof of what was sent."""
        path = self._path(id_, fact.position, SUFFIXES[fact.media_type])
        write_atomically(path, image)
        return path

    def link_unsealed(self, id_: str, fact: PictureInfo, image: Path) -> None:
        """The same for an image that lies here already, for another person on the frame."""
        bring_file(image, self._path(id_, fact.position, SUFFIXES[fact.media_type]), link=True)

    # --- What a choice and a report look at

    def columns(self) -> Columns:
        """What a choice looks at, in the order of arrival."""
        return inbox_database.read_columns(self._db)

    def bundles(self) -> dict[str, BundleInfo]:
        """What is known of every bundle, by sha256."""
        return {sha256: BundleInfo(sha256, name, json.loads(facts))
                for sha256, name, facts in self._db.execute("SELECT sha256, name, facts FROM bundle")}  # fmt: skip

    def skeleton_of(self, bundle: str) -> Skeleton:
        """The skeleton of a bundle's records."""
        known = self.bundles().get(bundle)
        if known is None:
            raise DataError(f"{self.folder} does not know bundle {bundle[:12]}…: pull from a queue that it wrote into")
        try:
            return Skeleton.from_json(dict(known.facts)["skeleton"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"what a queue says of bundle {bundle[:12]}… holds no skeleton: {error}") from error

    def field_tallies(self) -> list[dict[str, Any]]:
        """The monitors' counts, as a field report reads them; see :func:`inbox_database.field_tallies`."""
        return inbox_database.field_tallies(self._db)

    def status(self) -> list[dict[str, Any]]:
        """One row a device: how many records, and how far they have come."""
        return inbox_database.status(self._db)

    def refused(self) -> list[tuple[str, str, str]]:
        """(source, id, problem) of every record that could not be taken."""
        return list(
            self._db.execute("SELECT url, id, problem FROM refused JOIN source ON number = source ORDER BY 1, 2")
        )

    # --- Batches

    def add_batch(self, batch: Batch, drawn: Iterable[str]) -> Path:
        """Write a batch, and remember who was chosen and who has had their draw. A name is used once."""
        path = self.new_batch_path(batch.name)
        # The file last: whoever sees it may rely on the rows.
        with self._transaction() as db:
            db.executemany("UPDATE record SET batch = ? WHERE id = ?", [(batch.name, one.id) for one in batch.choices])
            db.executemany("UPDATE record SET drawn = ? WHERE id = ?", [(batch.name, id_) for id_ in drawn])
            write_json(path, batch.to_json())
        return path

    def new_batch_path(self, name: str) -> Path:
        """Where a batch of that name would lie; :class:`DataError` where there is one."""
        path = self._batch_path(name)
        if self.has_batch(name):
            raise DataError(f"{path} exists already: give the batch another --name")
        return path

    def has_batch(self, name: str) -> bool:
        """Whether there is a batch of that name."""
        return self._batch_path(name).exists()

    def batches(self) -> list[Batch]:
        """All batches, oldest first; a file that is none is logged and passed over."""
        found = []
        for path in sorted((self.folder / BATCHES).glob("*.json")):
            if path.name.startswith(
                "."
            ):  # macOS keeps a file ._NAME beside each NAME where the file system has no place for it
                continue
            try:
                found.append(self.batch(path.stem))
            except AlposeError as error:
                log.warning("%s is passed over: %s", path, error)
        return sorted(found, key=lambda batch: (batch.created, batch.name))

    def batch(self, name: str) -> Batch:
        """One batch by its name."""
        path = self._batch_path(name)
        if not path.exists():
            there = ", ".join(sorted(other.stem for other in path.parent.glob("*.json"))) or "none yet"
            raise DataNotFoundError(f"{self.folder} has no batch {name!r}; it has: {there}")
        return Batch.from_json(read_json(path), str(path))

    def require_writable(self) -> None:
        """:class:`DataError` where the inbox can only be read."""
        if not self.writable:
            raise DataError(
                f"{self.folder} cannot be written by this user: status, gallery, mcap, export and import only read it; anything "
                "else needs the permission to write there, or a copy of the folder"
            )

    # --- Inside

    def _mark_fetched(self, id_: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE record SET fetched = 1 WHERE id = ?", (id_,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.require_writable()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError):  # the disk is full, or somebody else writes for long
                raise DataError(
                    f"{self.folder / DATABASE} cannot be written: {error}; what it held stays as it was"
                ) from error
            raise

    def _row(self, id_: str, columns: str) -> Any:
        row = self._db.execute(f"SELECT {columns} FROM record WHERE id = ?", (id_,)).fetchone()
        if row is None:
            raise DataNotFoundError(f"there is no record {id_} in {self.folder}: pull it first")
        return row

    def _ids(self, condition: str, *values: object) -> list[str]:
        return [id_ for (id_,) in self._db.execute(f"SELECT id FROM record WHERE {condition}", values)]

    def _decoded(self, id_: str) -> tuple[Record, tuple[PictureInfo, ...]]:
        manifest, arrays, sha256 = self._row(id_, "manifest, arrays, sha256")
        return decode(manifest.encode(), arrays, sha256)

    def _batch_path(self, name: str) -> Path:
        try:
            return self.folder / BATCHES / f"{check_name(name)}.json"
        except DataError as error:
            raise ConfigError(str(error)) from None

    def _stored_path(self, id_: str, fact: PictureInfo | Picture) -> Path:
        return self._path(id_, fact.position, SUFFIXES[fact.media_type] + (SEALED if fact.sealed else ""))

    def _path(self, id_: str, position: int, suffix: str) -> Path:
        if not is_hex(id_, 32):
            raise DataError(f"{id_[:40]!r} is not the id of a record: 32 hex digits")
        place = f".{position:+d}" if position else ""
        return self.folder / FRAMES / id_[-2:] / f"{id_}{place}{suffix}"
