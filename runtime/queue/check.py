"""Looking at every page, row and hash of a queue, and saving what can be saved of a damaged one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DataError
from . import rows
from .facts import CheckReport, Damage
from .rows import Found

if TYPE_CHECKING:
    from .file import File


def check_file(file: File) -> CheckReport:
    """Everything that can be wrong with an open file. Nothing is changed."""
    db = file.db
    with file.read():
        lines = tuple(str(line) for (line,) in db.execute("PRAGMA integrity_check(100)"))
        orphans = db.execute(
            "SELECT count(*) FROM picture WHERE key / ? NOT IN (SELECT seq FROM record)", (rows.PLACES,)
        ).fetchone()[0]
    damaged = list[Damage]()
    records = pictures = 0
    after: Found | None = None
    while True:
        with file.read():
            found = rows.batch(db, order="time", state=None, after=after, limit=16)
            for one in found:
                damage = one.damage or _problem(file, one)
                if damage is not None:
                    damaged.append(damage)
                records += 1
                pictures += len(one.pictures)
        if not found:
            break
        after = found[-1]
    return CheckReport(records, pictures, tuple(damaged), orphans, () if lines == ("ok",) else lines)


def _problem(file: File, found: Found) -> Damage | None:
    """Of the pictures, and of the columns that repeat what the manifest says."""
    record = found.record
    assert record is not None
    try:
        pictures = rows.read_pictures(file.db, found)
        row = rows.by_id(file.db, record.id)
        assert row is not None
        first = found.seq * rows.PLACES
        held = file.db.execute(
            "SELECT count(*) FROM picture WHERE key BETWEEN ? AND ?", (first, first + rows.PLACES - 1)
        ).fetchone()[0]
        repeated = file.db.execute(
            "SELECT device, camera, flagged, pictures FROM record WHERE seq = ?", (found.seq,)
        ).fetchone()
        if repeated != (record.device, record.camera, int(record.flagged), held) or held != len(pictures):
            raise DataError(f"device, camera, flagged or pictures {repeated} are not what the manifest says")
    except DataError as error:
        return Damage(record.id, found.seq, str(error))
    return None
