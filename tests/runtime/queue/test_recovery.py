"""What can be saved of a damaged file, and that it is whole."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpose.runtime.errors import AlposeError, DataError, DataNotFoundError, QueueError
from alpose.runtime.queue import Queue, recover

Kit = Any
PAGE = 8192
BUNDLE = "ab" * 32


@dataclass(frozen=True)
class Original:
    """A queue with everything in it, and the pictures of its records."""

    path: Path
    pictures: dict[str, bytes] = field(repr=False)
    people: int = 1
    """On each picture."""

    @property
    def stored(self) -> int:
        """Pictures in the file."""
        return len(set(self.pictures.values()))


@pytest.fixture(scope="module", params=[1, 3], ids=["one-each", "three-a-picture"])
def original(kit: Kit, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Original:
    people = request.param
    path = tmp_path_factory.mktemp("original") / "q.db"
    pictures = dict[str, bytes]()
    with Queue(path, clock=kit.FakeClock()) as queue:
        queue.add_bundle(BUNDLE, "driver", {"joints": 14})
        for n in range(60):
            picture = kit.picture(20_000 + 300 * (n // people), n // people)
            stored = queue.put(kit.record(queue.new_id(), n), [picture])
            pictures[stored.id] = picture.data
        ids = list(pictures)
        queue.delete(ids[10:20], force=True)
        for id in ids[10:20]:
            del pictures[id]
        queue.acknowledge(ids[:5])
        queue.add_scores(b"scores", device="d", bundle=BUNDLE, began_ns=0, ended_ns=1, frames=1)
        queue.tally(device="d", bundle=BUNDLE, at_ns=0, frames=9)
    return Original(path, pictures, people)


def saved(path: Path, pictures: dict[str, bytes]) -> set[str]:
    """Ids in a recovered queue, after everything about it was checked."""
    with Queue(path, max_bytes=1 << 30) as queue:
        assert queue.check().ok
        pulled = queue.pull([record.id for record in queue.peek(state=None)])
        for record, [picture] in pulled:
            assert picture.data == pictures[record.id]
        return {record.id for record, _ in pulled}


def test_a_sound_file_is_copied_whole(original: Original, tmp_path: Path) -> None:
    path, pictures = original.path, original.pictures
    report = recover(path, tmp_path / "new.db")
    assert (report.records, report.pictures, report.bundles, report.chunks, report.tallies) == (
        50,
        original.stored,
        1,
        1,
        1,
    )
    assert (report.lost, report.orphans, report.unreadable) == ((), 0, 0)
    assert saved(tmp_path / "new.db", pictures) == set(pictures)
    with Queue(tmp_path / "new.db") as new, Queue(path) as old:
        assert [r.sha256 for r in new.peek(state=None)] == [r.sha256 for r in old.peek(state=None)]
        assert [r.id for r in new.peek(state="pulled")] == [r.id for r in old.peek(state="pulled")]
        assert [r.id for r in new.peek(order="value")] == [r.id for r in old.peek(order="value")]
        assert list(new.scores()) == list(old.scores())
        assert new.tallies() == old.tallies()
        assert new.counters()["stored_total", ""] == 60


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), pages=st.integers(1, 60), first=st.booleans())
def test_whatever_is_damaged_what_is_saved_is_whole(
    original: Original, tmp_path: Path, seed: int, pages: int, first: bool
) -> None:
    path, pictures = original.path, original.pictures
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as db:
        roots = {page - 1 for (page,) in db.execute("SELECT rootpage FROM sqlite_master")}
    hit = set(rng.integers(0 if first else 1, len(content) // PAGE, pages).tolist())
    for page in hit:
        kind = rng.integers(3)
        new = bytes(PAGE) if kind == 0 else rng.bytes(PAGE)
        where = slice(page * PAGE, (page + 1) * PAGE) if kind < 2 else slice(page * PAGE + 100, page * PAGE + 110)
        content[where] = new[: where.stop - where.start]
    folder = tmp_path / f"{seed}-{pages}-{first}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "bad.db").write_bytes(content)
    try:
        report = recover(folder / "bad.db", folder / "new.db")
    except QueueError:
        assert first or pages > 1  # the tables of tables themselves are gone
        return
    finally:
        assert (folder / "bad.db").read_bytes() == content
    there = saved(folder / "new.db", pictures)
    assert there <= set(pictures)
    assert report.records == len(there)
    # A page holds at most a handful of manifests, or a piece of one picture; but the root of a table leads to all of it.
    if not roots & hit:
        assert len(there) >= 50 - 7 * original.people * pages
    assert sorted(os.listdir(folder)) == ["bad.db", "new.db"]


def test_a_lost_first_page_costs_nothing(original: Original, tmp_path: Path) -> None:
    path, pictures = original.path, original.pictures
    content = bytearray(path.read_bytes())
    content[:PAGE] = bytes(PAGE)
    (tmp_path / "bad.db").write_bytes(content)
    report = recover(tmp_path / "bad.db", tmp_path / "new.db")
    assert (report.records, report.pictures, report.orphans) == (50, original.stored, 0)
    assert saved(tmp_path / "new.db", pictures) == set(pictures)


def test_what_is_still_in_the_log_is_saved_too(kit: Kit, path: Path, tmp_path: Path) -> None:
    with Queue(path) as queue:
        ids = [kit.put(queue).id for _ in range(3)]
        folder = tmp_path / "copy"
        folder.mkdir()
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", folder / f"q.db{ending}")
    assert recover(folder / "q.db", folder / "new.db").records == 3
    with Queue(folder / "new.db") as queue:
        assert [record.id for record in queue.peek()] == ids


def test_a_row_whose_picture_is_gone_is_told_of_and_not_saved(kit: Kit, path: Path, tmp_path: Path) -> None:
    with Queue(path) as queue:
        ids = [kit.put(queue).id for _ in range(3)]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM picture WHERE key / 256 = 2")
        db.execute("DELETE FROM record WHERE seq = 3")
    report = recover(path, tmp_path / "new.db")
    assert (report.records, [damage.id for damage in report.lost], report.orphans) == (1, [ids[1]], 1)


def test_what_cannot_be_meant_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError):
        recover(path, tmp_path / "new.db")
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA application_id = 7")
        db.execute("CREATE TABLE wages (euros)")
    with pytest.raises(AlposeError, match="not a queue"):
        recover(path, tmp_path / "new.db")
    with pytest.raises(DataError, match="exists"):
        recover(path, path)
