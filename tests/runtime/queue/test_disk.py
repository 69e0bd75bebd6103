"""The recorder on real files and disks that fail for real, and come back.

Whatever happens: nothing reaches ``submit``, what can be kept is kept, the rest is counted by its reason, and the
recorder goes on by itself once the condition ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from alpose.runtime.queue import Clock, Queue
from alpose.runtime.queue.recorder import Recorder

from ...fakes.candidates import counts, make_candidate, until
from ...fakes.disk import mounted

PATIENCE_S = 30.0
FAKES = Path(__file__).resolve().parents[2] / "fakes"


CHILD = f"""
import importlib.util, os, sys, time
from pathlib import Path
from alpose.runtime.queue import Queue
from alpose.runtime.queue.recorder import Recorder
spec = importlib.util.spec_from_file_location("fake_candidates", {str(FAKES / "candidates.py")!r})
candidates = importlib.util.module_from_spec(spec)
spec.loader.exec_module(candidates)
make_candidate, until = candidates.make_candidate, candidates.until
path = Path(sys.argv[1])
"""


def child(code: str, path: Path, **options: Any) -> subprocess.Popen[str]:
    """Another process that runs some code, with ``path`` and a candidate's maker at hand."""
    program = CHILD + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True, **options)


def finished(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    return out


@pytest.fixture
def record() -> Iterator[Callable[..., Recorder]]:
    """A recorder on a real queue: ``record(path, clip=(1, 0))``; both are closed when the test ends."""
    begun: list[tuple[Recorder, Queue]] = []

    def start(path: Path, **settings: Any) -> Recorder:
        names: tuple[str, ...] = ("depth", "maintenance", "maintenance_every_s")
        kept = {name: settings.pop(name) for name in names if name in settings}
        for_queue: dict[str, Any] = {"media_type": "image/png", "busy_timeout_s": 0.1, **settings}
        queue = Queue(path, **for_queue)
        for_recorder: dict[str, Any] = {"depth": 1000, "retry_s": (0.01, 0.1), **kept}
        made = Recorder(queue, **for_recorder)
        begun.append((made, queue))
        return made

    yield start
    for made, queue in begun:
        assert made.close()
        queue.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "size=8m"):
        yield folder


def stored(path: Path) -> list[int]:
    """Numbers of the records in a queue, as a reader finds them; every hash is right."""
    with Queue(path, readonly=True) as queue:
        report = queue.check()
        assert report.ok, report
        return [int(record.predicted_loss) for record in queue.iterate()]


# --- no room


def test_a_full_disk_costs_no_frame_that_waits(record: Any, small_disk: Path) -> None:
    path = small_disk / "flagged.db"
    made = record(path)
    made.submit(make_candidate(0))
    assert made.flush()
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while shutil.disk_usage(small_disk).free > 150_000:
            file.write(bytes(50_000))
            file.flush()

    for number in range(1, 60):  # 9 kB each
        assert made.submit(make_candidate(number))
    until(lambda: made.state.obstacle is not None)
    assert not made.flush()

    assert set(counts(made, "write_errors_total")) <= {"disk_full", "io"}
    assert "disk_full" in counts(made, "write_errors_total")
    # Some of them fitted; all that are said to be on the disk are.
    written = made.state.written
    assert written + made.state.waiting == 60
    ballast.unlink()
    assert made.flush(PATIENCE_S)
    assert stored(path) == list(range(60))
    assert counts(made, "dropped_frames_total") == {}
    assert made.state.obstacle is None


def test_a_limit_on_file_sizes_costs_no_frame_that_waits(tmp_path: Path) -> None:
    """Runs everywhere: the limit is the process's own. Writes fail as on a file system that ends there."""
    out = finished(
        child(
            """
            import resource
            queue = Queue(path, media_type="image/png")
            made = Recorder(queue, depth=1000, retry_s=(0.01, 0.1))
            made.submit(make_candidate(0))
            assert made.flush()
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 200_000, hard))
            for number in range(1, 60):
                assert made.submit(make_candidate(number))
            until(lambda: made.state.obstacle is not None)
            assert made.state.written + made.state.waiting == 60, made.state
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert made.flush(20)
            assert made.state.written == 60 and made.state.obstacle is None, made.state
            assert made.close()
            queue.close()
            print(sorted(key.labels[0][1] for key in made.counters.snapshot() if key.name == "write_errors_total"))
            """,
            tmp_path / "flagged.db",
        )
    )

    assert out.strip() in ("['io']", "['disk_full']")
    assert stored(tmp_path / "flagged.db") == list(range(60))


# --- no writing


def test_a_disk_that_turns_read_only_is_waited_for(record: Any, small_disk: Path) -> None:
    """As when a card is pulled or fails: the path suddenly leads to another, read-only file system."""
    path = small_disk / "flagged.db"
    made = record(path)
    made.submit(make_candidate(0))
    assert made.flush()

    with mounted(small_disk, "size=1m,ro"):
        made.submit(make_candidate(1))
        until(lambda: made.state.obstacle is not None)
        made.submit(make_candidate(2))
        assert not made.flush()
        assert made.state.waiting == 2
        assert made.state.obstacle in ("readonly", "io")
    assert made.flush(PATIENCE_S)

    assert stored(path) == [0, 1, 2]
    assert counts(made, "dropped_frames_total") == {}


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no users on this system")
def test_a_folder_that_nobody_may_write_is_waited_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    code = """
        import shutil, tempfile
        folder = Path(tempfile.mkdtemp(prefix="alpose-"))
        make_candidate(0)  # what this imports may lie where nobody may read
        try:
            if os.getuid() == 0:  # root may write anywhere
                os.chown(folder, 65534, 65534)
                os.setgid(65534)
                os.setuid(65534)
            path = folder / "flagged.db"
            queue = Queue(path, media_type="image/png")
            made = Recorder(queue, retry_s=(0.01, 0.1))
            made.submit(make_candidate(0))
            assert made.flush()
            for part in folder.iterdir():
                part.unlink()
            folder.chmod(0o500)
            made.submit(make_candidate(1))
            until(lambda: made.state.obstacle is not None)
            assert made.state.obstacle == "readonly", made.state
            assert not made.flush()
            folder.chmod(0o700)
            assert made.flush(20)
            assert made.close()
            queue.close()
            with Queue(path, readonly=True) as queue:
                print([record.predicted_loss for record in queue.iterate()])
        finally:
            folder.chmod(0o700)
            shutil.rmtree(folder, ignore_errors=True)  # the folder around it may be root's alone
    """
    assert finished(child(code, Path())).strip() == "[1.0]"


# --- the file goes away


@pytest.mark.parametrize("gone", [("",), ("", "-wal", "-shm"), ("-wal",)])
def test_a_file_deleted_underneath_is_made_again(record: Any, tmp_path: Path, gone: tuple[str, ...]) -> None:
    path = tmp_path / "flagged.db"
    made = record(path)
    made.submit(make_candidate(0))
    assert made.flush()
    for ending in gone:
        Path(f"{path}{ending}").unlink()

    for number in (1, 2):
        made.submit(make_candidate(number))
        assert made.flush(PATIENCE_S)

    # What was in the deleted file is gone; nothing later is.
    assert stored(path)[-2:] == [1, 2]
    assert counts(made, "write_errors_total") == {"moved": 1}
    assert counts(made, "dropped_frames_total") == {}


def test_another_file_in_its_place_is_used(record: Any, tmp_path: Path) -> None:
    path, other = tmp_path / "flagged.db", tmp_path / "other.db"
    with Queue(other) as queue:
        queue.count("put_here_by", "an operator")
    made = record(path)
    made.submit(make_candidate(0))
    assert made.flush()
    os.replace(other, path)

    made.submit(make_candidate(1))
    assert made.flush(PATIENCE_S)

    assert stored(path)[-1] == 1
    with Queue(path, readonly=True) as queue:  # and not overwritten by the old file's log, which lay beside it
        assert ("put_here_by", "an operator") in queue.counters()
        assert stored(path) == [1]


def test_a_folder_deleted_underneath_is_waited_for(record: Any, tmp_path: Path) -> None:
    folder = tmp_path / "card"
    folder.mkdir()
    made = record(folder / "flagged.db")
    made.submit(make_candidate(0))
    assert made.flush()
    shutil.rmtree(folder)

    for number in range(1, 30):
        assert made.submit(make_candidate(number))
    until(lambda: made.state.obstacle == "moved")
    assert not made.flush()
    assert not folder.exists()  # it may be where a card is mounted: nothing is to be written beneath
    folder.mkdir()
    assert made.flush(PATIENCE_S)

    assert stored(folder / "flagged.db") == list(range(1, 30))


def test_housekeeping_finds_a_deleted_file_where_no_frame_comes(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "flagged.db"
    made = record(path, maintenance_every_s=0.02)
    path.unlink()

    until(path.exists)
    made.submit(make_candidate(1))
    assert made.flush()
    assert stored(path) == [1]


# --- others on the same file


def test_a_second_monitor_on_the_same_file(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "flagged.db"
    made = record(path, busy_timeout_s=5.0)
    other = child(
        """
        queue = Queue(path, media_type="image/png")
        made = Recorder(queue)
        print("ready", flush=True)
        for number in range(1000, 1100):
            assert made.submit(make_candidate(number))
            until(lambda: made.state.waiting < 8)
        assert made.close()
        queue.close()
        """,
        path,
    )
    assert other.stdout
    assert other.stdout.readline() == "ready\n"
    for number in range(100):
        assert made.submit(make_candidate(number))
        until(lambda: made.state.waiting < 8)
    finished(other)
    assert made.flush(PATIENCE_S)

    assert sorted(stored(path)) == [*range(100), *range(1000, 1100)]


def test_a_lock_held_for_long_costs_no_frame(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "flagged.db"
    made = record(path)
    other = child(
        """
        import sqlite3
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        input()
        db.execute("ROLLBACK")
        """,
        path,
        stdin=subprocess.PIPE,
    )
    assert other.stdout
    assert other.stdout.readline() == "locked\n"

    for number in range(100):
        assert made.submit(make_candidate(number))
    until(lambda: counts(made, "write_errors_total").get("locked", 0) >= 3)
    assert made.state.obstacle == "locked"
    assert made.state.written == 0
    other.communicate("\n", timeout=PATIENCE_S)
    assert made.flush(PATIENCE_S)

    assert stored(path) == list(range(100))
    assert counts(made, "dropped_frames_total") == {}


def test_a_process_that_is_killed_with_the_file_open_leaves_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "flagged.db"
    writer = child(
        """
        made = Recorder(Queue(path, media_type="image/png"))
        number = 0
        while True:
            if made.submit(make_candidate(number)):
                number += 1
            else:
                time.sleep(0.001)
            print(made.state.written, flush=True)
        """,
        path,
    )
    assert writer.stdout
    said = [0]
    while said[-1] < 20:
        said.append(int(writer.stdout.readline()))
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate(timeout=PATIENCE_S)
    said += [int(line) for line in rest.split("\n")[:-1]]  # the last line may be torn

    kept = stored(path)
    assert len(kept) >= max(said)
    assert kept == list(range(len(kept)))


# --- damage, and clocks


def test_a_file_damaged_at_the_start_is_set_aside(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "flagged.db"
    path.write_bytes(b"SQLite format 3\0" + bytes(5000))

    made = record(path)
    made.submit(make_candidate(1))
    assert made.flush()

    assert stored(path) == [1]
    (aside,) = tmp_path.glob("flagged.db.damaged-*")
    assert aside.read_bytes() == b"SQLite format 3\0" + bytes(5000)
    with Queue(path, readonly=True) as queue:
        assert queue.counters()["quarantined_total", ""] == 1


def test_a_file_damaged_while_it_is_open_is_set_aside(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "flagged.db"
    made = record(path)
    for number in range(20):
        made.submit(make_candidate(number))
    assert made.flush()
    # Another connection's commit makes the recorder's forget the pages that it holds in memory.
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("UPDATE meta SET value = value + 1 WHERE key = 'clock_ns'")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\x5a" * (path.stat().st_size - 8192))
    db.close()

    made.submit(make_candidate(20))
    assert made.flush(PATIENCE_S)

    assert stored(path)[-1] == 20
    assert counts(made, "write_errors_total") == {"damaged": 1}
    assert len([found for found in tmp_path.glob("flagged.db.damaged-*") if found.stat().st_size > 100_000]) == 1


def test_a_clock_that_jumps_back_changes_no_order(record: Any, tmp_path: Path) -> None:
    class Moved(Clock):
        ahead_ns = 0

        def wall_ns(self) -> int:
            return super().wall_ns() + self.ahead_ns

    clock, path = Moved(), tmp_path / "flagged.db"
    made = record(path, clock=clock)
    for number in range(6):
        clock.ahead_ns = -(10**9) * 3600 * number
        made.submit(make_candidate(number))
        assert made.flush()

    assert stored(path) == list(range(6))
    with Queue(path, readonly=True) as queue:
        ids = [found.id for found in queue.peek()]
        assert ids == sorted(ids)
        assert queue.counters()["clock_backwards_total", ""] == 5


# --- the end of a process


@pytest.mark.parametrize(("ending", "code"), [("pass", 0), ("sys.exit(3)", 3), ("raise KeyError('the app failed')", 1)])
def test_what_was_submitted_is_written_when_the_interpreter_ends(tmp_path: Path, ending: str, code: int) -> None:
    path = tmp_path / "flagged.db"
    process = child(
        f"""
        made = Recorder(Queue(path, media_type="image/png", clip=(0, 3)))
        for number in range(10):
            assert made.submit(make_candidate(number))
        {ending}
        """,
        path,
        stderr=subprocess.DEVNULL,
    )
    process.communicate(timeout=PATIENCE_S)

    assert process.returncode == code
    assert stored(path) == list(range(10))


def test_sealed_crops_pass_through_a_real_queue(record: Any, tmp_path: Path) -> None:
    pytest.importorskip("nacl")
    from alpose.runtime.bundle.keys import SEALING, generate_key, opener
    from alpose.runtime.queue.images import decode

    generate_key(tmp_path / "fleet", SEALING)
    path = tmp_path / "flagged.db"
    made = record(path, seal_to=tmp_path / "fleet.pub", store="crop")
    candidate = make_candidate(5)
    made.submit(candidate)
    assert made.flush()

    with Queue(path, readonly=True) as queue:
        ((found, (picture,)),) = queue.pull()
    assert (found.store, picture.sealed, picture.origin) == ("crop", True, (13.5, 8.5))
    opened = decode(opener(tmp_path / "fleet")(picture.data))
    assert candidate.frame is not None
    assert (opened == candidate.frame.rgb_HW3[9:42, 14:47]).all()
    raw = b"".join(part.read_bytes() for part in tmp_path.glob("flagged.db*"))
    assert b"\x89PNG" not in raw
