"""The file: how it is opened, what survives, who may see it, and what other processes and damage do to it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from alpose.runtime.errors import AlposeError, ConfigError, DataError, DataNotFoundError, QueueError
from alpose.runtime.queue import Queue, acknowledgements, tables
from alpose.runtime.queue.acknowledgements import Acknowledgement
from alpose.runtime.queue.database import Transaction
from alpose.runtime.queue.files import translate
from alpose.runtime.queue.tables import PLACES

Kit = Any
MB = 1 << 20


@contextmanager
def fails(reason: str) -> Iterator[None]:
    with pytest.raises(QueueError) as caught:
        yield
    assert caught.value.reason == reason, caught.value


def raw(path: Path) -> Any:
    """The file as anybody sees it who does not know the queue."""
    return closing(sqlite3.connect(path, isolation_level=None))


def test_what_was_put_is_there_after_reopening(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        record = kit.record(queue.new_id(), control_draw=0.25)
        pictures = [kit.picture(5000), kit.picture(300, 1, position=-1, media_type="image/png", sealed=True, scale=2.0)]
        stored = queue.put(record, pictures)
    assert stored.kept
    assert os.listdir(path.parent) == [path.name]  # the last to close leaves one file

    with Queue(path) as queue:
        [(back, found)] = queue.pull()
        assert (back.id, back.sha256, back.frame_bytes) == (record.id, stored.sha256, 5000)
        assert back.frame_sha256 == pictures[0].sha256
        for before, after in zip(pictures, found, strict=True):
            names = list(type(before).__slots__)
            assert [getattr(before, name) for name in names] == [getattr(after, name) for name in names]
        assert queue.check().ok


def test_the_file_is_what_its_specification_says(kit: Kit, path: Path) -> None:
    old = os.umask(0)
    try:
        queue = Queue(path)
        kit.put(queue)
    finally:
        os.umask(old)
    for ending in ("", "-wal", "-shm"):  # frames show people
        assert stat.S_IMODE(os.stat(f"{path}{ending}").st_mode) == 0o600
    queue.close()
    with raw(path) as db:
        pragmas = {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in
                   ("application_id", "user_version", "journal_mode", "auto_vacuum", "page_size")}  # fmt: skip
        assert pragmas == {"application_id": 0x414C5051, "user_version": 1, "journal_mode": "wal", "auto_vacuum": 2,
                           "page_size": 8192}  # fmt: skip
    with Queue(path) as queue:
        db = queue._database.db  # type: ignore[union-attr]
        assert tables.pragma(db, "synchronous") == 2
        assert tables.pragma(db, "secure_delete") == 1


def test_erased_pictures_are_overwritten_in_every_file(path: Path, kit: Kit) -> None:
    with Queue(path) as queue:
        pictures = [kit.picture(30_000, seed) for seed in range(3)]
        ids = [queue.put(kit.record(queue.new_id(), n), [picture]).id for n, picture in enumerate(pictures)]
        queue.tidy()

        def on_disk(data: bytes) -> bool:
            files = [Path(f"{path}{ending}").read_bytes() for ending in ("", "-wal")]
            return any(data[place : place + 64] in file for file in files for place in range(0, 30_000, 1000))

        assert all(on_disk(picture.data) for picture in pictures)
        queue.purge(ids=ids[:1])
        queue.acknowledge(ids[1:2])
        queue.delete(ids[1:2])
        queue.tidy()
        assert [on_disk(picture.data) for picture in pictures] == [False, False, True]
        assert [record.id for record in queue.peek()] == ids[2:]


def test_states_go_one_way(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        a, b, c = (kit.put(queue).id for _ in range(3))
        assert queue.delete([a]) == 0  # nobody has it yet
        assert queue.acknowledge([a, b]) == 2
        assert queue.acknowledge([a, b, "0" * 32]) == 0
        assert [record.id for record in queue.peek(state="pulled")] == [a, b]
        assert [record.id for record in queue.peek()] == [c]
        assert queue.delete([a, c]) == 1
        assert queue.delete([c], force=True) == 1
        assert [record.id for record in queue.peek(state=None)] == [b]
        counters = queue.counters()
        assert counters["acknowledged_total", ""] == 2
        assert counters["deleted_total", "pulled"] == counters["deleted_total", "queued"] == 1
        with pytest.raises(DataError, match="is not the id"):
            queue.delete(["../../x"])


def test_peeking_orders_by_time_and_by_value_and_reads_no_picture(kit: Kit, path: Path, clock: Any) -> None:
    with Queue(path, half_life_s=100, clock=clock) as queue:
        ids = []
        for probability in (0.9, 0.2, 0.8, 0.1):
            ids.append(kit.put(queue, failure_probability=probability).id)
            clock.pass_s(1)
        assert [record.id for record in queue.peek()] == ids
        assert [ids.index(record.id) for record in queue.peek(order="value")] == [0, 2, 1, 3]
        assert [ids.index(record.id) for record in queue.peek(2, order="value")] == [0, 2]
        for order in ("time", "newest", "value"):  # batches of any size join without a seam
            whole = [record.id for record in queue.peek(order=order)]
            assert all([r.id for r in queue.iterate(order=order, batch=n)] == whole for n in (1, 2, 3, 4, 5))
        queue._database.db.execute("DROP TABLE picture")  # type: ignore[union-attr]
        assert len(queue.peek()) == 4


def test_erasing_while_somebody_iterates_is_in_nobodys_way(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        ids = [kit.put(queue).id for _ in range(6)]
        seen = []
        for record in queue.iterate(batch=2):
            seen.append(record.id)
            queue.delete(ids[2:4], force=True)
        assert seen == [ids[0], ids[1], ids[4], ids[5]]


def test_purge_takes_what_all_conditions_say(kit: Kit, path: Path, clock: Any) -> None:
    with Queue(path, clock=clock) as queue:
        old = kit.put(queue, camera="driver").id
        other = kit.put(queue, camera="cabin").id
        clock.pass_s(100)
        new = kit.put(queue, camera="driver").id
        with pytest.raises(ConfigError, match="what to purge"):
            queue.purge()
        assert queue.purge(camera="nowhere") == 0
        assert queue.purge(camera="driver", older_than_s=50) == 1
        assert [record.id for record in queue.peek()] == [other, new]
        assert queue.purge(ids=[old, new], device="car-17") == 1
        assert queue.purge(everything=True) == 1
        assert queue.info().records == 0
        assert queue.counters()["purged_total", ""] == 3
        assert path.stat().st_size < 200_000


def test_putting_the_same_again_changes_nothing_and_another_under_its_id_is_refused(kit: Kit, path: Path) -> None:
    """A writer that does not know whether its commit came through writes again."""
    with Queue(path) as queue:
        record, picture = kit.record(queue.new_id()), kit.picture()
        assert queue.put(record, [picture]).reason is None
        again = queue.put(record, [picture])
        assert (again.kept, again.reason) == (True, "again")
        with pytest.raises(DataError, match="another record"):
            queue.put(record, [kit.picture(seed=1)])
        assert queue.counters()["stored_total", ""] == 1


def test_a_record_that_contradicts_itself_stops_the_group_before_anything_is_written(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        good, bad = kit.record(queue.new_id()), kit.record(queue.new_id(), place="\0")
        with pytest.raises(DataError, match="place"):
            queue.put_many([(good, [], ()), (bad, [], ())])
        assert queue.info().records == 0


# --- damage


def test_a_damaged_row_neither_stops_the_others_nor_passes_for_whole(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        ids = [kit.put(queue).id for _ in range(5)]
    with raw(path) as db:
        db.execute("UPDATE record SET manifest = replace(manifest, 'car-17', 'car-18') WHERE id = ?", (ids[1],))
        db.execute("UPDATE picture SET data = zeroblob(2000) WHERE key = 3 * ?", (PLACES,))
        db.execute("DELETE FROM picture WHERE key = 4 * ?", (PLACES,))
        db.execute("INSERT INTO picture VALUES (?, x'00')", (99 * PLACES,))
        db.execute("UPDATE record SET camera = 'elsewhere' WHERE id = ?", (ids[4],))
    with Queue(path) as queue:
        told: list[Any] = []
        assert [r.id for r in queue.iterate(on_damage=told.append)] == [ids[0], *ids[2:]]
        assert [damage.id for damage in told] == [ids[1]]
        told.clear()
        assert [r.id for r, _ in queue.pull(ids, on_damage=told.append)] == [ids[0], ids[4]]
        assert [damage.id for damage in told] == ids[1:4]
        for id, says in zip(ids[1:4], ("sha256", "does not belong", "missing"), strict=True):
            with pytest.raises(DataError, match=says):
                queue.pictures(id)
        report = queue.check()
        assert [damage.id for damage in report.damaged] == ids[1:]
        assert (report.records, report.orphans, report.ok) == (5, 1, False)


@pytest.mark.parametrize("damage", ["garbage", "zeros", "torn page", "missing table", "truncated"])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begun(kit: Kit, path: Path, damage: str) -> None:
    with Queue(path) as queue:
        for _ in range(20):
            kit.put(queue)
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        content[:8192] = (b"not a database " * 1000)[:8192]
    elif damage == "zeros":
        content[:8192] = bytes(8192)
    elif damage == "torn page":
        content[9 * 8192 : 10 * 8192] = os.urandom(8192)
        content[3 * 8192 : 4 * 8192] = os.urandom(8192)
    elif damage == "truncated":
        del content[len(content) // 2 :]
    path.write_bytes(content)
    if damage == "missing table":
        with raw(path) as db:
            db.execute("DROP TABLE record")
    was = path.read_bytes()
    Path(f"{path}-wal").write_bytes(b"left over")

    with fails("damaged"):
        Queue(path, on_damage="raise")
    assert path.read_bytes() == was
    with Queue(path) as queue:
        assert queue.info().records == 0
        assert queue.counters()["quarantined_total", ""] == 1
        kit.put(queue)
        [aside] = [p for p in path.parent.iterdir() if ".damaged-" in p.name and not p.name.endswith(("-wal", "-shm"))]
        assert aside.read_bytes() == was
    with Queue(path) as queue:
        assert queue.info().records == 1


def test_somebody_elses_database_is_left_alone(kit: Kit, path: Path) -> None:
    with raw(path) as db:
        db.execute("CREATE TABLE wages (name, euros)")
    before = path.read_bytes()
    with fails("foreign"):
        Queue(path)
    assert (os.listdir(path.parent), path.read_bytes()) == ([path.name], before)

    path.unlink()
    Queue(path).close()
    with raw(path) as db:
        db.execute("PRAGMA user_version = 3")
    with fails("foreign"):
        Queue(path)
    with raw(path) as db:
        db.execute("PRAGMA user_version = 1")
        db.execute("CREATE TRIGGER t AFTER INSERT ON record BEGIN DELETE FROM picture; END")
    with fails("damaged"):
        Queue(path, on_damage="raise")


@pytest.mark.parametrize("lost", ["zeros", "garbage", "everything", "all but the log"])
def test_a_queue_without_its_first_page_is_still_known_as_one(kit: Kit, path: Path, lost: str) -> None:
    with Queue(path) as queue:
        kit.put(queue)
    content = bytearray(path.read_bytes())
    content[:8192] = b"\x5a" * 8192 if lost == "garbage" else bytes(8192)
    if lost == "all but the log":
        content[:] = os.urandom(len(content))
        Path(f"{path}-wal").write_bytes(b"left over")
    path.write_bytes(bytes(len(content)) if lost == "everything" else content)
    with Queue(path) as queue:
        assert queue.counters()["quarantined_total", ""] == 1


@pytest.mark.parametrize("first", [b"\0\0\0\x18ftypmp42", bytes(32768) + b"\x01CD001", b"SQLite format 3\0"])
def test_a_file_that_is_no_queue_and_was_none_is_left_alone(path: Path, first: bytes) -> None:
    content = bytearray(first + b"holiday in Sweden " * 5000)
    if first.startswith(b"SQLite"):
        content[68:72] = b"\0\0\0\x01"  # somebody else's application_id, and damaged
    path.write_bytes(content)
    for options in ({}, {"on_damage": "raise"}, {"readonly": True}):
        with fails("foreign"):
            Queue(path, **options)
    assert (os.listdir(path.parent), path.read_bytes()) == ([path.name], bytes(content))


def test_the_log_of_a_file_that_was_moved_away_is_kept(kit: Kit, path: Path) -> None:
    elsewhere = path.with_name("elsewhere.db")
    with Queue(path) as queue:
        queue.tidy()
        stored = kit.put(queue)
        os.rename(path, elsewhere)
        with fails("moved"):
            kit.put(queue)
        queue.reopen()
        assert queue.counters()["orphaned_logs_total", ""] == 1
        assert kit.put(queue).kept
    [log] = path.parent.glob(f"{path.name}.orphaned-*-wal")
    os.rename(log, f"{elsewhere}-wal")
    with Queue(elsewhere) as queue:
        assert stored.id in [record.id for record in queue.peek()]


@pytest.mark.parametrize("gone", ["", "-wal"])
def test_a_file_that_is_deleted_underneath_is_noticed_at_the_next_write(kit: Kit, path: Path, gone: str) -> None:
    with Queue(path) as queue:
        kit.put(queue)
        os.unlink(f"{path}{gone}")
        assert not queue.in_place()
        with fails("moved"):
            kit.put(queue)
        queue.reopen()
        assert kit.put(queue).kept
        # A log without a name is still copied into the file when it is closed.
        assert queue.info().records == (2 if gone == "-wal" else 1)


def test_a_file_that_is_deleted_during_the_commit_is_noticed(
    kit: Kit, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Queue(path) as queue:
        count = tables.count

        def count_and_unlink(*args: Any) -> None:
            count(*args)
            path.unlink(missing_ok=True)

        monkeypatch.setattr(tables, "count", count_and_unlink)
        with fails("moved"):
            kit.put(queue)


def test_closing_a_file_that_lost_its_name_spares_the_log_of_its_successor(kit: Kit, path: Path) -> None:
    first = Queue(path)
    kit.put(first)
    path.unlink()
    with Queue(path) as second:
        stored = kit.put(second)
        first.close()
        assert second.in_place()
        kit.put(second)
    with Queue(path) as again:
        assert stored.id in [record.id for record in again.peek()]


def test_a_full_disk_is_an_error_with_a_reason_and_no_damage(kit: Kit, path: Path) -> None:
    folder = path.parent / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with Queue(folder / "q.db") as queue:
            stored: list[str] = []
            with fails("full"):
                while len(stored) < 100:
                    stored += [kit.put(queue, size=30_000).id]
            assert stored
            with fails("full"):
                kit.put(queue, size=60_000)
            assert [record.id for record in queue.peek()] == stored
            assert len(queue.pull()) == len(stored)
            shutil.rmtree(folder / "ballast", ignore_errors=True)
            subprocess.run(["mount", "-o", "remount,size=4m", folder], check=True, capture_output=True)
            assert kit.put(queue, size=30_000).kept
            assert queue.check().ok
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True)


# --- several at once


def test_a_reader_sees_a_live_file_and_a_copy_and_writes_neither(kit: Kit, path: Path, tmp_path: Path) -> None:
    with Queue(path) as queue:
        ids = [kit.put(queue).id for _ in range(3)]
        with Queue(path, readonly=True) as reader:
            assert [record.id for record in reader.peek()] == ids
            ids.append(kit.put(queue).id)
            assert [record.id for record, _ in reader.pull(ids)] == ids
            with fails("read_only"):
                reader.new_id()
            with fails("read_only"):
                reader.delete(ids, force=True)
        queue.tidy()
        folder = tmp_path / "inbox"
        folder.mkdir()
        shutil.copy(path, folder / "copy.db")  # without its -wal and -shm
        with Queue(folder / "copy.db", readonly=True) as copy:
            assert {record.id for record, _ in copy.pull()} == set(ids)
            assert copy.check().ok
        assert os.listdir(folder) == ["copy.db"]
    with pytest.raises(DataNotFoundError):
        Queue(path.with_name("nothing.db"), readonly=True)


def test_a_reader_of_an_idle_file_notices_when_somebody_begins_to_write(kit: Kit, path: Path) -> None:
    Queue(path).close()
    with Queue(path, readonly=True) as reader:
        assert reader.peek() == []
        with Queue(path) as queue:
            id = kit.put(queue).id
            assert [record.id for record in reader.peek()] == [id]


@pytest.mark.parametrize("timeout_s", [0.0, 0.1])
def test_a_reader_that_stays_cannot_push_the_files_over_their_bound(kit: Kit, path: Path, timeout_s: float) -> None:
    with Queue(path, max_bytes=4 * MB, busy_timeout_s=timeout_s) as queue:
        kit.put(queue)
        with raw(path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM record").fetchone()
            with fails("held"):
                for _ in range(100):
                    kit.put(queue, size=60_000)
            assert path.stat().st_size + os.stat(f"{path}-wal").st_size <= 4 * MB
            with fails("held"):
                queue.purge(everything=True)
            reader.execute("COMMIT")
        assert kit.put(queue, size=60_000).kept
        assert queue.check().ok


WRITER = """
import sys
from pathlib import Path
from alpose.runtime.queue import Picture, Queue, Record
import numpy as np
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with Queue(path, max_bytes=4 << 20, busy_timeout_s=60) as queue:
    rng = np.random.default_rng(len(name))
    for n in range(count):
        record = Record(
            id=queue.new_id(), captured_ns=n, captured_monotonic_ns=n, device=name, bundle="0" * 64, frame_width=64,
            frame_height=48, box=(0, 0, 9, 9), place="box", keypoints_J2=rng.random((14, 2)), scores_J=rng.random(14),
            predicted_loss=1, failure_probability=rng.random(), embedding_D=rng.random(8), flagged=True,
            inclusion_probability=1,
        )
        picture = Picture.of(rng.bytes(int(rng.integers(100, 60_000))), width=64, height=48, captured_ns=n)
        stored = queue.put(record, [picture])
        files = sum(p.stat().st_size for p in (path, Path(f"{path}-wal")))
        assert files <= 4 << 20, files
        print(stored.id, int(stored.kept), flush=True)
"""


def test_two_processes_begin_a_file_and_write_it_at_once(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for name in ("one", "three")
    ]  # fmt: skip
    told = dict[str, int]()
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
        told.update((line.split()[0], int(line.split()[1])) for line in out.splitlines())
    assert len(told) == 120
    with Queue(path, max_bytes=4 * MB) as queue:
        counters = queue.counters()
        kept = {record.id for record, _ in queue.pull()}
        assert kept <= {id for id, stored in told.items() if stored}
        assert counters["stored_total", ""] == sum(told.values())
        assert len(kept) == counters["stored_total", ""] - counters["evicted_total", "full"]
        assert counters["evicted_total", "full"] > 10  # the bound was really in force
        times = [row[0] for row in queue._database.db.execute("SELECT put_ns FROM record ORDER BY seq")]  # type: ignore[union-attr]
        assert times == sorted(times)
        assert queue.check().ok


@pytest.mark.parametrize("verb", ["put", "large put", "delete", "purge", "acknowledgement"])
def test_what_another_process_erases_between_two_transactions_is_counted_once(
    kit: Kit, path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A verb whose work does not fit into the log at once lets others in between its transactions."""
    with Queue(path, max_bytes=4 * MB) as queue, Queue(path, max_bytes=4 * MB) as other:
        stored = [kit.put(queue, size=150_000) for _ in range(3)]
        afford = Transaction.reserve
        met = 0

        def let_in(self: Transaction, pages: int) -> bool:
            nonlocal met
            met += 1
            if met > 1:
                return afford(self, pages)
            self.commit()
            assert other.delete([stored[0].id], force=True) == 1
            self.begin(pages + 32)
            return True

        ids = [one.id for one in stored]
        with monkeypatch.context() as patch:
            patch.setattr(Transaction, "reserve", let_in)
            if verb == "put":
                kit.put(queue, size=1000, supersedes=(stored[0].id,))
            elif verb == "large put":  # together with the one that it replaces beyond what the log can take
                kit.put(queue, size=200_000, supersedes=tuple(ids[:2]))
            elif verb == "delete":
                assert queue.delete(ids[:2], force=True) == 1
            elif verb == "purge":
                assert queue.purge(ids=ids[:2]) == 1
            else:
                said = Acknowledgement(True, {one.id: one.sha256 for one in stored[:2]})
                acknowledgements.write(path, "a.json", said)
                assert queue.apply_acknowledgements().deleted == 1
        assert met
        counters = queue.counters()
        gone = sum(n for (name, _), n in counters.items() if name in ("evicted_total", "deleted_total", "purged_total"))
        assert counters["stored_total", ""] - gone == queue.info().records


def test_threads_take_turns_on_one_queue(kit: Kit, path: Path) -> None:
    errors: list[BaseException] = []
    with Queue(path) as queue:

        def work(seed: int) -> None:
            try:
                for n in range(15):
                    queue.put(kit.record(queue.new_id(), seed + n), [kit.picture(500, seed + n)])
                    queue.peek(3)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors
        assert queue.info().records == 45


def test_a_queue_does_not_survive_a_fork(path: Path) -> None:
    with Queue(path) as queue:
        child = os.fork()
        if child == 0:
            try:
                queue.peek()
            except QueueError as error:
                os._exit(0 if error.reason == "closed" else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_another_writer_that_takes_too_long_is_an_error_with_a_reason(kit: Kit, path: Path) -> None:
    with Queue(path, busy_timeout_s=0.05) as queue, raw(path) as other:
        kit.put(queue)
        other.execute("BEGIN IMMEDIATE")
        with fails("locked"):
            kit.put(queue)
        assert len(queue.peek()) == 1  # reading needs no lock
        other.execute("ROLLBACK")
        assert kit.put(queue).kept


@pytest.mark.parametrize(
    "settings",
    [
        {"max_bytes": MB}, {"store": "all"}, {"quality": 0}, {"media_type": "image/gif"}, {"long_side": 1},
        {"long_side": "big"}, {"max_bytes": "1G"}, {"quality": None}, {"clip": (-1, 0)}, {"clip": (200, 200)}, {"half_life_s": 0}, {"on_damage": "ignore"}, {"busy_timeout_s": -1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_carried_out_are_refused(path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Queue(path, **settings)


def test_a_place_where_no_file_can_be_is_refused(path: Path) -> None:
    with pytest.raises(AlposeError, match="not a folder"):
        Queue(path / "below" / "q.db")
    with pytest.raises(AlposeError, match="not a file"):
        Queue(path.parent)


def test_a_closed_queue_says_so(kit: Kit, path: Path) -> None:
    queue = Queue(path)
    queue.close()
    queue.close()
    with fails("closed"):
        queue.peek()
    queue.reopen()
    assert queue.peek() == []
    queue.close()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("database or disk is full", "full"), ("attempt to write a readonly database", "read_only"),
        ("database is locked", "locked"), ("database table is locked", "locked"),
        ("database disk image is malformed", "damaged"), ("file is not a database", "damaged"),
        ("Could not decode to UTF-8 column 'id'", "damaged"), ("Cannot operate on a closed database.", "closed"),
        ("disk I/O error", "io"), ("unable to open database file", "io"),
    ],
)  # fmt: skip
def test_errors_have_their_reason_where_python_tells_no_code(path: Path, text: str, reason: str) -> None:
    """Python 3.10, which has the text alone."""
    assert translate(sqlite3.OperationalError(text), path=path).reason == reason
