"""A Monitor on a disk that hangs, is locked by others, or is not there: a pose never waits for it."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime import Monitor, Queue, Threshold, recording
from alpose.runtime.errors import QueueError
from alpose.runtime.queue import recorder, shared, tables
from alpose.runtime.telemetry.counters import Count

from ..fakes import scripted

Start = Callable[[Path], Monitor]
FRAME_HW3 = np.full((48, 64, 3), 200, np.uint8)
SOON_S = 8.0
"""More than all of the time-outs below, far less than a disk takes that never answers."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(recorder, "CLOSE_S", 0.5)
    monkeypatch.setattr(recorder, "END_S", 0.5)
    monkeypatch.setattr(shared, "CLOSE_S", 0.5)
    caplog.set_level(logging.CRITICAL, "alpose.monitor")


@contextmanager
def soon(limit_s: float = SOON_S) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < limit_s


@pytest.fixture
def start(tmp_path: Path) -> Start:
    bundle = scripted.write_bundle(tmp_path / "driver.alpose")
    return lambda path: Monitor(bundle, path, Threshold(0.0), scripted.Scripted(), seed=0)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program holds the queue."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_write_that_hangs_holds_up_neither_flush_nor_close(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, insert = threading.Event(), tables.insert

    def hang(*args: Any, **named: Any) -> Any:
        answered.wait(60)
        return insert(*args, **named)

    monkeypatch.setattr(tables, "insert", hang)
    monitor = start(tmp_path / "q.db")
    try:
        for _ in range(3):
            assert monitor(FRAME_HW3).kept
        with soon(2.0):
            assert not monitor.flush(0.3)
        with soon():
            monitor.close()
        with soon(1.0):
            stats = monitor.stats()
            assert stats.dropped == {"hung": 3}
            assert stats.by("dropped_scores_total", "reason") == {"closed": 1}
            assert stats.counts[Count("dropped_tallies_total")] == 1
    finally:
        answered.set()


def test_a_lock_held_elsewhere_holds_up_neither_start_nor_flush_nor_close(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "q.db"
    Queue(path).close()
    with locked(path):
        with soon():
            monitor = start(path)
        with soon(1.0):
            assert monitor(FRAME_HW3).kept
        with soon(2.0):
            assert not monitor.flush(0.3)
    assert monitor.flush(20)  # picked up when it comes
    with locked(path):
        monitor(FRAME_HW3)
        with soon():
            monitor.close()
    assert sum(monitor.stats().dropped.values()) == 1
    with Queue(path) as queue:
        assert len(queue.peek()) == 1


def test_a_start_waits_for_its_queue_for_two_seconds_in_all(start: Start, tmp_path: Path) -> None:
    Queue(tmp_path / "q.db").close()
    with closing(sqlite3.connect(tmp_path / "q.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")  # neither read nor written by anybody else
        with soon(recording.QUEUE_START_S + 0.9):
            monitor = start(tmp_path / "q.db")
        assert monitor(FRAME_HW3).kept
        other.execute("COMMIT")
    assert monitor.flush(60)
    monitor.close()
    assert monitor.stats().by("stored_total", "reason") or monitor.stats().counts[Count("stored_total")] == 1


def test_a_link_to_another_disk_is_followed_when_that_is_there(start: Start, tmp_path: Path) -> None:
    link, disk = tmp_path / "q.db", tmp_path / "mnt"
    link.symlink_to(disk / "real.db")
    monitor = start(link)
    assert monitor(FRAME_HW3).kept
    assert not monitor.flush(0.3)
    disk.mkdir()  # it is mounted now
    assert monitor.flush(60)
    assert (disk / "real.db-wal").exists()
    monitor.close()
    with Queue(link) as queue:
        assert len(queue.peek()) == 1
        queue.reopen(quarantine=True)  # what is damaged is moved aside where it lies
    assert link.is_symlink()
    assert list(disk.glob("real.db.damaged-*"))


def test_a_disk_that_is_not_there_yet_is_picked_up_when_it_comes(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "mount" / "q.db"
    with soon():
        monitor = start(path)
    assert monitor(FRAME_HW3).kept
    stats = monitor.stats()
    assert stats.queue is not None
    assert (stats.queue.records, stats.queue.oldest_s) == (0, None)
    path.parent.mkdir()
    assert monitor.flush(30)
    monitor.close()
    with Queue(path) as queue:
        assert [record.bundle for record in queue.peek()] == [bundle.sha256 for bundle in queue.bundles()]
        assert queue.device_id(lambda: "another") == monitor.device_id


def test_what_is_not_a_queue_is_said_at_the_start(start: Start, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(bytes(range(256)) * 5000)
    with pytest.raises(QueueError, match="is not a queue"):
        start(film)


def test_closing_from_a_signal_while_this_thread_is_at_it_closes_when_it_is_done(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "q.db")
    with soon(1.0), queue._use() as inside:
        assert not queue.close()
        assert inside.db.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(QueueError, match="closed"):
        queue.peek()
    assert not (tmp_path / "q.db-wal").exists()


def test_a_task_that_takes_too_long_goes_on_behind(tmp_path: Path) -> None:
    done, go = threading.Event(), threading.Event()

    def task() -> None:
        go.wait(20)
        done.set()

    with Queue(tmp_path / "q.db") as queue:
        assert queue.within(5, lambda: 7) == 7
        with pytest.raises(QueueError, match="does not answer") as raised:
            queue.within(0.05, task)
        assert raised.value.reason == "hung"
        with pytest.raises(ZeroDivisionError):
            queue.within(5, lambda: 1 // 0)
    go.set()
    assert done.wait(20)
