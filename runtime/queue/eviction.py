"""Who has to go when the queue is full, or too old.

A record is worth hardness × novelty × 2^(-age / half-life). The logarithm of that falls equally fast for every record,
so their order never changes with time: ``rank = log2(hardness × novelty) + time / half-life`` is stored once, in an
indexed column.

The control stream is a simple random sample of all frames, and has to stay one: it is evicted by its draws alone, the
largest first, and what is left is the sample that a lower rate would have drawn.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError
from . import rows, schema
from .clock import SANE_NS
from .record import Record
from .rows import Row

if TYPE_CHECKING:
    from .file import File, Transaction

LEAST_HARDNESS = 2.0**-10
LEAST_NOVELTY = 2.0**-7
"""Floors, so that neither factor alone can bury a record."""

DEFAULT_HALF_LIFE_S = 7 * 86_400.0

CONTROL_SHARE = 0.25
"""Of the file that control records may hold on to while there are others."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long things keep their worth."""

    half_life_s: float
    max_age_s: float | None

    def __post_init__(self) -> None:
        for name, value in (("half_life_s", self.half_life_s), ("max_age_s", self.max_age_s)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number of seconds, got {value}")


@dataclass(frozen=True, slots=True)
class Incoming:
    """What a record that asks for room has to offer."""

    rank: float
    draw: float | None
    """In the control stream; None outside it."""


def worth(record: Record) -> float:
    """log2(hardness × novelty), both in (0, 1]. A model that answers NaN is as wrong as can be."""
    hardness = 1.0 if math.isnan(record.failure_probability) else min(max(record.failure_probability, 0.0), 1.0)
    novelty = 1.0 if math.isnan(record.novelty) else min(max(record.novelty, 0.0), 1.0)
    return math.log2(max(hardness, LEAST_HARDNESS)) + math.log2(max(novelty, LEAST_NOVELTY))


def rank(db: sqlite3.Connection, worth: float, put_ns: int, policy: Policy) -> float:
    """Comparable between all records of a file, whose half-life is the one that its last opener wanted."""
    life = db.execute("SELECT value FROM meta WHERE key = 'half_life_s'").fetchone()
    return worth + put_ns / 1e9 / (policy.half_life_s if life is None else life[0])


def control_period(db: sqlite3.Connection) -> tuple[int, float]:
    """Number and rate of the period that goes on."""
    period, rate = db.execute("SELECT period, rate FROM control WHERE ended_ns IS NULL ORDER BY period").fetchone()
    return period, rate


def lower_control_rate(db: sqlite3.Connection, draw: float) -> None:
    """A control record with this draw was let go."""
    db.execute("UPDATE control SET rate = min(rate, ?) WHERE ended_ns IS NULL", (draw,))


def end_control_period(transaction: Transaction) -> None:
    """Once every control record has been fetched, the stream begins anew at its full rate.

    The records of the old period keep its number, so that their rate stays known.
    """
    db = transaction.db
    period, rate = control_period(db)
    left = db.execute("SELECT 1 FROM record WHERE draw IS NOT NULL AND state = 'queued' LIMIT 1").fetchone()
    if rate < 1 and left is None:
        db.execute("UPDATE control SET ended_ns = ? WHERE period = ?", (transaction.now_ns, period))
        db.execute("INSERT INTO control (began_ns, rate) VALUES (?, 1.0)", (transaction.now_ns,))


def evict_expired(file: File, transaction: Transaction, policy: Policy) -> int:
    """Erase everything beyond the age limit; how many records that were."""
    if policy.max_age_s is None:
        return 0
    evicted = 0
    while True:
        # Times grow with seq, for a transaction's time is never below one before it: the first row is the oldest.
        row = rows.select(transaction.db, "ORDER BY seq")
        if row is None or row.put_ns >= transaction.now_ns - policy.max_age_s * 1e9:
            return evicted
        cost = file.bounds.cost(row.bytes, row.pictures)
        if not transaction.afford(cost):
            evict(transaction, row, "age", cost)
            evicted += 1


def make_room(
    file: File, transaction: Transaction, pages: int, cost: int, incoming: Incoming | None, spare: Collection[int] = ()
) -> str | None:
    """Evict until a record fits.

    Args:
        pages: free pages wanted.
        cost: what the caller will change afterwards: kept affordable.
        incoming: the record, which has to be worth more than whoever goes for it; None where that is no question.
        spare: rows that are not to be evicted.

    Returns:
        Why the record is not to be stored (``full``, ``control``), or None where there is room now.
    """
    db, bounds = transaction.db, file.bounds
    while True:
        transaction.afford(cost)
        if file.used_pages() + pages <= bounds.usable_pages:
            return None
        found = _victim(db, bounds.file_pages * bounds.page_bytes * CONTROL_SHARE, spare)
        if found is None:
            return "full"
        row, reason = found
        if incoming is not None:
            if reason == "control" and incoming.draw is not None and incoming.draw >= (row.draw or 0.0):
                lower_control_rate(db, incoming.draw)
                return "control"
            if reason == "full" and incoming.draw is None and incoming.rank < row.rank:
                return "full"
        erased = bounds.cost(row.bytes, row.pictures)
        if transaction.afford(erased):
            continue  # Others may have written in between: look again.
        if reason == "control" and row.draw is not None:
            lower_control_rate(db, row.draw)
            if row.flagged:  # It was wanted for its own sake too, and competes with its like from here on.
                db.execute("UPDATE record SET draw = NULL WHERE seq = ?", (row.seq,))
                schema.count(db, "control_demoted_total")
                continue
        evict(transaction, row, reason, erased)


def _victim(db: sqlite3.Connection, control_bytes: float, spare: Collection[int]) -> tuple[Row, str] | None:
    """The least valuable record and the reason that is counted for it."""
    but = f"seq NOT IN ({', '.join(str(int(seq)) for seq in spare)})"
    row = rows.select(db, f"WHERE state = 'pulled' AND {but} ORDER BY seq")
    if row is not None:
        return row, "acknowledged"
    control = "draw IS NOT NULL AND state = 'queued'"
    held = db.execute(f"SELECT coalesce(sum(bytes), 0) FROM record WHERE {control}").fetchone()[0]
    if held <= control_bytes:
        row = rows.select(db, f"WHERE draw IS NULL AND state = 'queued' AND {but} ORDER BY rank, seq")
        if row is not None:
            return row, "full"
    row = rows.select(db, f"WHERE {control} AND {but} ORDER BY draw DESC")
    if row is not None:
        return row, "control"
    row = rows.select(db, f"WHERE draw IS NULL AND state = 'queued' AND {but} ORDER BY rank, seq")
    return None if row is None else (row, "full")


def evict(transaction: Transaction, row: Row, reason: str, cost: int) -> None:
    """Erase one record and count it."""
    rows.remove(transaction.db, row)
    schema.count(transaction.db, "evicted_total", reason)
    transaction.spend(cost)


def settle(file: File, transaction: Transaction, policy: Policy) -> None:
    """After opening: stored times and ranks follow the clock and the half-life in force.

    May be interrupted anywhere: what is still to be done stands in the file until it is done.
    """
    db = transaction.db
    if file.begun is not None and file.begun.counted is not None:
        schema.count(db, file.begun.counted)
    if file.begun is not None and file.begun.redate_ns:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('redate_ns', ?)", (file.begun.redate_ns,))
    shift = db.execute("SELECT value FROM meta WHERE key = 'redate_ns'").fetchone()
    if shift is not None:
        # Written before the clock was ever set: dated as if it had been set just then.
        db.execute("DELETE FROM meta WHERE key = 'half_life_s'")
        _update(transaction, "put_ns = max(put_ns + :shift, :sane)", "put_ns < :sane", {"shift": shift[0]})
        db.execute("DELETE FROM meta WHERE key = 'redate_ns'")
    before = db.execute("SELECT value FROM meta WHERE key = 'half_life_s'").fetchone()
    if before is None or before[0] != policy.half_life_s:
        db.execute("DELETE FROM meta WHERE key = 'half_life_s'")
        _update(transaction, "rank = worth + put_ns / 1e9 / :life", "1", {"life": policy.half_life_s})
        db.execute("INSERT OR REPLACE INTO meta VALUES ('half_life_s', ?)", (policy.half_life_s,))


def _update(transaction: Transaction, change: str, where: str, values: dict[str, float]) -> None:
    """UPDATE all records, in pieces that the log has room for."""
    after, step = -1, max(1, transaction.most // 8)
    while True:
        transaction.afford(4 * step)
        marks = {**values, "sane": SANE_NS, "after": after, "step": step}
        last = transaction.db.execute(
            "SELECT max(seq) FROM (SELECT seq FROM record WHERE seq > :after ORDER BY seq LIMIT :step)",
            {"after": after, "step": step},
        ).fetchone()[0]
        if last is None:
            return
        marks["last"] = last
        query = f"UPDATE record SET {change} WHERE {where} AND seq > :after AND seq <= :last"
        transaction.db.execute(query, marks)
        transaction.spend(4 * step)
        after = last
