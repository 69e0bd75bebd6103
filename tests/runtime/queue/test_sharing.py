"""Several people on one frame: its picture is stored once, counted once, and erased with the last record that has it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from alpose.runtime.errors import DataError
from alpose.runtime.queue import Picture, Queue

Kit = Any
MB = 1 << 20
SIZE = 100_000


def put_people(kit: Kit, queue: Queue, seed: int, people: int, *, size: int = SIZE, **changes: Any) -> list[str]:
    """Records of so many people on one frame, each put by itself; the ids of those that are kept."""
    picture = kit.picture(size, seed)
    records = [kit.record(queue.new_id(), 10 * seed + n, camera=f"seat-{n}", **changes) for n in range(people)]
    stored = [queue.put(record, [picture]) for record in records]
    return [one.id for one in stored if one.kept]


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_a_picture_is_stored_and_counted_once_however_many_records_have_it(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        ids = put_people(kit, queue, 1, 3)
        info = queue.info()
        assert (info.records, info.pictures) == (3, 1)
        assert SIZE < info.bytes < SIZE + 3 * 3000
        assert info.file_bytes < 2.5 * SIZE
        assert {queue.pictures(id)[0].data for id in ids} == {kit.picture(SIZE, 1).data}
        assert queue.check().ok
        assert queue.check().pictures == 1


def test_a_file_is_of_version_2_from_its_first_shared_picture_on(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        put_people(kit, queue, 1, 1)
        put_people(kit, queue, 2, 1)
    assert version(path) == 1
    with Queue(path) as queue:
        put_people(kit, queue, 3, 2)
    assert version(path) == 2
    with Queue(path, readonly=True) as queue:
        assert (len(queue.peek()), queue.info().pictures) == (4, 3)
        assert len(queue.pull()) == 4
    with Queue(path) as queue:  # not damaged, and goes on
        put_people(kit, queue, 4, 2)
        assert (queue.info().pictures, queue.check().ok) == (4, True)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_picture_goes_with_the_last_record_that_has_it(kit: Kit, path: Path, order: Sequence[int]) -> None:
    with Queue(path) as queue:
        ids = put_people(kit, queue, 1, 3)
        for left, place in zip((2, 1, 0), order, strict=True):
            assert queue.delete([ids[place]], force=True) == 1
            info = queue.info()
            assert (info.records, info.pictures) == (left, min(left, 1))
            assert (info.bytes > SIZE) == (left > 0)
            assert queue.check().ok
            for record, [picture] in queue.pull():
                assert record.id in ids
                assert picture.data == kit.picture(SIZE, 1).data
        queue.tidy()
        # Erased, and overwritten in every file.
        assert kit.picture(SIZE, 1).data[2000:2100] not in path.read_bytes()


def test_a_new_record_never_takes_the_place_of_a_picture_that_outlived_its_record(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        first, second = put_people(kit, queue, 1, 2)
        later = put_people(kit, queue, 2, 1)
        queue.delete([first, *later], force=True)
        [third] = put_people(kit, queue, 3, 1)
        queue.delete([second, third], force=True)
        put_people(kit, queue, 4, 2)
        assert (queue.info().pictures, queue.check().ok) == (1, True)
    with Queue(path) as queue:
        a, b = put_people(kit, queue, 5, 2)
        queue.delete([a], force=True)
        newer = put_people(kit, queue, 6, 2)
        assert queue.pictures(b)[0].data == kit.picture(SIZE, 5).data
        assert queue.pictures(newer[0])[0].data == kit.picture(SIZE, 6).data
        assert queue.check().ok


def test_a_full_queue_holds_as_many_frames_whether_they_show_one_person_or_three(kit: Kit, tmp_path: Path) -> None:
    held = {}
    for people in (1, 3):
        with Queue(tmp_path / f"{people}.db", max_bytes=4 * MB) as queue:
            for seed in range(60):
                put_people(kit, queue, seed, people, failure_probability=0.5 + seed / 200)
            held[people] = queue.info().pictures
            assert queue.check().ok
            shown = {record.captured_ns // 10 for record in queue.peek()}
            assert len(shown) == held[people]
            assert all(len(pictures) == 1 for _, pictures in queue.pull())
    assert held[3] > 0.8 * held[1] > 10


def test_the_least_valuable_person_goes_first_and_the_picture_stays_for_the_others(kit: Kit, path: Path) -> None:
    with Queue(path, max_bytes=4 * MB) as queue:
        picture = kit.picture(SIZE, 999)
        dull, keen = (kit.record(queue.new_id(), n, failure_probability=p) for n, p in ((1, 0.1), (2, 1.0)))
        queue.put(dull, [picture])
        queue.put(keen, [picture])
        seed = 0
        while not queue.counters().get(("evicted_total", "full")):
            put_people(kit, queue, seed, 1, failure_probability=0.8)
            seed += 1
        there = {record.id for record in queue.peek()}
        assert keen.id in there
        assert dull.id not in there
        assert queue.pictures(keen.id)[0].data == picture.data
        assert queue.check().ok


def test_neighbours_of_a_clip_are_shared_too(kit: Kit, path: Path) -> None:
    clip = [kit.picture(20_000, n, position=n - 2) for n in range(5)]
    later = [Picture.of(one.data, width=64, height=48, captured_ns=0, position=one.position - 3) for one in clip[2:]]
    with Queue(path) as queue:
        first, second, third = (kit.record(queue.new_id(), n) for n in range(3))
        queue.put_many([(first, clip, ()), (second, clip, ()), (third, [*later, kit.picture(20_000, 9)], ())])
        assert queue.info().pictures == 6
        queue.delete([first.id], force=True)
        assert queue.info().pictures == 6
        assert queue.check().ok
        queue.delete([second.id], force=True)
        assert queue.info().pictures == 4
        assert [one.position for one in queue.pictures(third.id)] == [-3, -2, -1, 0]
        assert queue.check().ok


def test_a_better_frame_takes_the_place_of_a_person_whose_picture_others_have(kit: Kit, path: Path) -> None:
    with Queue(path, max_bytes=4 * MB) as queue:
        seed = 1
        while not queue.counters().get(("evicted_total", "full")):
            put_people(kit, queue, seed, 1, failure_probability=0.8)
            seed += 1
        ids = put_people(kit, queue, 1000, 2, failure_probability=0.9)
        better = kit.record(queue.new_id(), 5000, failure_probability=0.95)
        assert queue.put(better, [kit.picture(SIZE, 5000)], supersedes=[ids[0]]).kept
        there = {record.id for record in queue.peek()}
        assert {better.id, ids[1]} <= there
        assert ids[0] not in there
        assert queue.pictures(ids[1])[0].data == kit.picture(SIZE, 1000).data
        assert queue.check().ok


def test_a_shared_picture_that_is_damaged_is_told_of_every_record_that_has_it(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        ids = put_people(kit, queue, 1, 2)
        whole = put_people(kit, queue, 2, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE picture SET data = zeroblob(?) WHERE key = (SELECT min(key) FROM picture)", (SIZE,))
    with Queue(path) as queue:
        assert {damage.id for damage in queue.check().damaged} == set(ids)
        assert [record.id for record, _ in queue.pull()] == whole
        with pytest.raises(DataError, match="does not belong"):
            queue.pictures(ids[1])


def test_erasing_looks_at_no_other_frames_shares(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        for seed in range(20):
            ids = put_people(kit, queue, seed, 3, size=500)
        asked: list[str] = []
        db = queue._database.db  # type: ignore[union-attr]
        db.set_trace_callback(asked.append)
        queue.delete(ids[:1], force=True)
        put_people(kit, queue, 99, 2, size=500)
        db.set_trace_callback(None)
        about = [sql for sql in asked if "shared" in sql and sql.startswith(("SELECT", "DELETE", "UPDATE"))]
        assert len(about) > 4
        for sql in about:
            assert not [plan for *_, plan in db.execute(f"EXPLAIN QUERY PLAN {sql}") if plan.startswith("SCAN")], sql
