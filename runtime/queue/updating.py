"""What a file needs when it is opened: stored settings, times and ranks follow the settings and the clock of today."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import tables
from .clock import SANE_NS
from .eviction import OVERHEAD_PAGES, Policy, half_life_s, make_room

if TYPE_CHECKING:
    from .database import Database, Transaction


def update_after_opening(database: Database, transaction: Transaction, policy: Policy) -> None:
    """Let stored settings, times and ranks follow what the file was opened with.

    May be interrupted anywhere: what is still to be done stands in the file until it is done.
    """
    db, begun = transaction.db, database.begun
    if begun is not None and begun.counted is not None:
        tables.count(db, begun.counted)
    if begun is not None and begun.doubted_ns != tables.meta(db, "doubted_wall_ns"):
        tables.set_meta(db, "doubted_wall_ns", begun.doubted_ns)
    if begun is not None and begun.redate_ns:
        tables.set_meta(db, "redate_ns", begun.redate_ns)
    if database.given_max_bytes not in (None, tables.meta(db, "max_bytes")):
        tables.set_meta(db, "max_bytes", database.given_max_bytes)
    _add_indexes(database, transaction)
    if begun is not None and begun.jumped_ns:
        jump = {"jump": begun.jumped_ns, "opened": database.opened_seq, "life": half_life_s(db)}
        change = "put_ns = put_ns + :jump, rank = worth + (put_ns + :jump) / 1e9 / :life"
        _update(transaction, change, "seq > :opened", jump)
    life, shift = policy.half_life_s or half_life_s(db), tables.meta(db, "redate_ns")
    if shift is not None or tables.meta(db, "half_life_s") != life:
        tables.set_meta(db, "next_half_life_s", life)
    if shift is not None:
        # Written before the clock was ever set: dated as if it had been set just then.
        tables.remove_meta(db, "half_life_s")
        _update(transaction, "put_ns = max(put_ns + :shift, :sane)", "put_ns < :sane", {"shift": shift})
        tables.remove_meta(db, "redate_ns")
    if tables.meta(db, "half_life_s") != life:
        tables.remove_meta(db, "half_life_s")
        _update(transaction, "rank = worth + put_ns / 1e9 / :life", "1", {"life": life})
        tables.set_meta(db, "half_life_s", life)
        tables.remove_meta(db, "next_half_life_s")
    database.begun = None


def _add_indexes(database: Database, transaction: Transaction) -> None:
    """Give a file of an older alpose the indexes that it lacks, where its log has room for them."""
    for statement in tables.missing_indexes(transaction.db):
        first, last = transaction.db.execute("SELECT min(seq), max(seq) FROM record").fetchone()
        rows = 0 if first is None else last - first + 1
        pages = rows * tables.INDEX_ROW_BYTES // database.bounds.page_bytes + OVERHEAD_PAGES
        if pages <= transaction.most and make_room(database, transaction, pages, pages, None) is None:
            transaction.db.execute(statement)
            transaction.has_changed()
            transaction.consume(pages)


def _update(transaction: Transaction, change: str, where: str, values: dict[str, float]) -> None:
    """UPDATE all records, in pieces that the log has room for."""
    after, step = -1, max(1, transaction.most // 8)
    while True:
        transaction.reserve(4 * step)
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
        transaction.consume(4 * step)
        after = last
