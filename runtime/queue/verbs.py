"""What the queue's verbs do inside a transaction: put one record, erase one, apply an acknowledgement, shrink."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Sequence

from ..errors import DataError
from . import eviction, rows, schema
from .acknowledgements import Acknowledgement
from .canonical import Encoded
from .eviction import Incoming, Policy
from .facts import Applied, Stored
from .file import File, Transaction
from .record import Picture, Record
from .rows import Row

UPDATE_PAGES = 6
"""Pages that changing a record's state changes, at most: its own, and one in each index."""


def put(
    file: File,
    transaction: Transaction,
    policy: Policy,
    record: Record,
    pictures: Sequence[Picture],
    supersedes: Sequence[str],
    encoded: Encoded,
) -> Stored:
    """Store one record, if it is worth a place; what it supersedes goes in the same transaction."""
    while True:
        stored = _put(file, transaction, policy, record, pictures, supersedes, encoded)
        if stored is not None:
            return stored


def _put(
    file: File,
    transaction: Transaction,
    policy: Policy,
    record: Record,
    pictures: Sequence[Picture],
    supersedes: Sequence[str],
    encoded: Encoded,
) -> Stored | None:
    """One attempt; None where what it went by may have changed before it came to write."""
    db, bounds, number = transaction.db, file.bounds, transaction.number
    content = rows.content_bytes(encoded, pictures)
    there = rows.by_id(db, record.id)
    if there is not None:
        if there.sha256 != encoded.sha256:
            raise DataError(f"{file.path} has another record with the id {record.id}: take a new id for each frame")
        return Stored(record.id, True, "again", encoded.sha256, content)
    pages, cost = bounds.taken(content, len(pictures)), bounds.cost(content, len(pictures))
    if cost > bounds.most_pages:
        return _refuse(transaction, record, "too_large", content)
    period, rate = eviction.control_period(db)
    worth = eviction.worth(record)
    rank = eviction.rank(db, worth, transaction.now_ns, policy)
    draw = record.control_draw
    if draw is not None and draw >= rate:  # The stream has become thinner than when this was drawn.
        if not record.flagged:
            return _refuse(transaction, record, "control", content)
        draw = None
    replaced = [row for row in (rows.by_id(db, id) for id in dict.fromkeys(supersedes)) if row and _may_go(row)]
    replaced_cost = sum(bounds.cost(row.bytes, row.pictures) for row in replaced)
    at_once = cost + replaced_cost <= transaction.most
    if at_once:
        pages = max(0, pages - sum(bounds.freed(row.bytes, row.pictures) for row in replaced))
        cost += replaced_cost
    spare = {row.seq for row in replaced}
    # It takes its predecessors' place: it need not compete for it again.
    full = eviction.make_room(file, transaction, pages, cost, None if replaced else Incoming(rank, draw), spare)
    if transaction.number != number:
        return None
    if full == "control" and record.flagged:
        return None  # Its draw has just left the stream: it is put once more, as a triggered one.
    if full is not None:
        return _refuse(transaction, record, full, content)
    for row in replaced if at_once else ():
        eviction.evict(transaction, row, "episode", 0)
    rows.insert(
        db, record, encoded, pictures, put_ns=transaction.now_ns, worth=worth, rank=rank, draw=draw, period=period
    )
    schema.count(db, "stored_total")
    transaction.spend(cost)
    for row in () if at_once else replaced:
        erased = bounds.cost(row.bytes, row.pictures)
        if transaction.afford(erased):
            now = rows.by_id(db, row.id)
            if now is None or not _may_go(now):
                continue
        eviction.evict(transaction, row, "episode", erased)
    return Stored(record.id, True, None, encoded.sha256, content)


def _refuse(transaction: Transaction, record: Record, reason: str, content: int) -> Stored:
    schema.count(transaction.db, "refused_total", reason)
    return Stored(record.id, False, reason, "", content)


def still(db: sqlite3.Connection, stored: Stored, superseded: Collection[str]) -> Stored:
    """What became of a record by the end of the transaction that stored it: a later one may have taken its place."""
    if not stored.kept or rows.by_id(db, stored.id) is not None:
        return stored
    return Stored(stored.id, False, "episode" if stored.id in superseded else "full", "", stored.bytes)


def erase(file: File, transaction: Transaction, row: Row, counter: str, reason: str) -> int:
    """Erase one record and count it; how many that were, for another process may have been faster."""
    cost = file.bounds.cost(row.bytes, row.pictures)
    if transaction.afford(cost) and rows.by_id(transaction.db, row.id) is None:
        return 0
    rows.remove(transaction.db, row)
    schema.count(transaction.db, counter, reason)
    transaction.spend(cost)
    return 1


def apply(file: File, transaction: Transaction, said: Acknowledgement) -> Applied:
    """Do what an acknowledgement file says, for the records that are the ones it means."""
    acknowledged = deleted = unknown = 0
    mismatched = list[str]()
    db = transaction.db
    for id, sha256 in said.records.items():
        row = rows.by_id(db, id)
        if row is None:
            unknown += 1
        elif row.sha256 != sha256:
            mismatched.append(id)
        elif said.delete:
            deleted += erase(file, transaction, row, "deleted_total", "acknowledged")
        elif row.state == "queued":
            transaction.afford(UPDATE_PAGES)
            db.execute("UPDATE record SET state = 'pulled' WHERE seq = ?", (row.seq,))
            transaction.spend(UPDATE_PAGES)
            acknowledged += 1
    schema.count(db, "acknowledged_total", "", acknowledged)
    schema.count(db, "acknowledgement_mismatch_total", "", len(mismatched))
    eviction.end_control_period(transaction)
    return Applied(1, acknowledged, deleted, unknown, tuple(mismatched), ())


def shrink(file: File, keep: int) -> None:
    """Give free pages back to the disk, in pieces that the log has room for."""
    step = max(1, file.bounds.most_pages // 4)
    while schema.pragma(file.db, "freelist_count") > keep:
        before = schema.pragma(file.db, "page_count")
        with file.transaction() as transaction:
            transaction.afford(3 * step)
            transaction.vacuum(min(step, schema.pragma(file.db, "freelist_count") - keep))
        if schema.pragma(file.db, "page_count") >= before:
            return


def matching(db: sqlite3.Connection, where: str, values: Sequence[object], ids: Sequence[str] | None) -> Iterator[Row]:
    """Rows that a condition of our own making holds for, in order; only of these ids, where there are any."""
    after = -1
    wanted = None if ids is None else set(ids)
    while (row := rows.select(db, f"WHERE {where} AND seq > ? ORDER BY seq", (*values, after))) is not None:
        after = row.seq
        if wanted is None or row.id in wanted:
            yield row


def erase_scores(file: File, transaction: Transaction) -> None:
    """Erase the whole score log."""
    for number, size in transaction.db.execute("SELECT number, bytes FROM score").fetchall():
        cost = file.bounds.cost(size, 1)
        transaction.afford(cost)
        transaction.db.execute("DELETE FROM score WHERE number = ?", (number,))
        transaction.spend(cost)


def _may_go(row: Row) -> bool:
    """A superseded record that somebody has already, or that is in the control stream, stays."""
    return row.state == "queued" and row.draw is None
