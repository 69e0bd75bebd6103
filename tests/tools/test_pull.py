"""Frames on their way home: interrupted anywhere, by anything, each ends up exactly once."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.queue import Queue
from alpose.tools import inbox as inbox_module
from alpose.tools.inbox import Inbox
from alpose.tools.pull import Pulled, pull
from alpose.tools.sources import LocalSource, find, without_secrets

from .queues import BUNDLE, fill, make_record


def bring(inbox: Path, queue: Path, **options: object) -> Pulled:
    with Inbox(inbox, create=True) as opened:
        return pull(opened, LocalSource(queue), **options)  # type: ignore[arg-type]


def whole(inbox: Path) -> set[str]:
    """Ids whose pictures lie in the inbox with their hashes."""
    if not (inbox / "inbox.db").exists():
        return set()
    with Inbox(inbox) as opened:
        ids = [id_.decode() for id_ in opened.columns().id_N]
        assert len(set(ids)) == len(ids)
        return {id_ for id_ in ids if opened.is_whole(id_)}


def on_device(queue: Path) -> set[str]:
    with Queue(queue, readonly=True) as opened:
        return {record.id for record in opened.iterate(state=None)}


def test_everything_arrives_and_a_second_pull_changes_nothing(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 12)
    first = bring(tmp_path / "inbox", tmp_path / "q.db")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "inbox" / "frames").rglob("*") if path.is_file()}
    second = bring(tmp_path / "inbox", tmp_path / "q.db")

    assert (first.new, first.fetched, first.problem) == (12, 12, None)
    assert (second.new, second.known, second.fetched) == (0, 12, 0)
    assert whole(tmp_path / "inbox") == set(ids)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert on_device(tmp_path / "q.db") == set(ids)
    with Inbox(tmp_path / "inbox") as inbox:
        assert inbox.skeleton_of(BUNDLE).name == "lsp"
        assert inbox.field_tallies()[0]["frames"] == 12_000
        (entry,) = inbox.entries(ids[:1])
        assert entry.record.reasons == (("budget", 0.9, 0.7),)
        columns = inbox.columns()
        assert np.allclose(np.linalg.norm(columns.embedding_ND.astype(np.float32), axis=1), 1, atol=1e-2)


def test_manifests_first_then_only_what_was_chosen(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 10)
    assert bring(tmp_path / "inbox", tmp_path / "q.db", images=()).fetched == 0
    assert len(list((tmp_path / "inbox").rglob("*.jpg"))) == 0
    assert bring(tmp_path / "inbox", tmp_path / "q.db", images=set(ids[2:5])).fetched == 3
    assert whole(tmp_path / "inbox") == set(ids[2:5])


def test_only_what_is_here_whole_is_deleted_on_the_device(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 8)
    bring(tmp_path / "inbox", tmp_path / "q.db", images=set(ids[:5]))
    with Inbox(tmp_path / "inbox") as inbox:
        spoiled = inbox.image(ids[0])
        assert spoiled is not None
        spoiled.write_bytes(b"rot")
    done = bring(tmp_path / "inbox", tmp_path / "q.db", images=(), delete=True)

    assert done.deleted == 4
    assert any(ids[0] in note for note in done.notes)
    assert on_device(tmp_path / "q.db") == {ids[0], *ids[5:]}
    # What had rotted is fetched again.
    assert bring(tmp_path / "inbox", tmp_path / "q.db", images={ids[0]}).fetched == 1
    assert whole(tmp_path / "inbox") == set(ids[:5])


def test_a_dry_run_tells_the_device_nothing(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 3)
    done = bring(tmp_path / "inbox", tmp_path / "q.db", delete=True, dry_run=True)

    assert "3 would be deleted" in done.notes
    assert on_device(tmp_path / "q.db") == set(ids)
    assert not Path(f"{tmp_path / 'q.db'}.ack").exists()


def test_what_is_acknowledged_stays_on_the_device_as_pulled(tmp_path: Path) -> None:
    fill(tmp_path / "q.db", 3)
    assert bring(tmp_path / "inbox", tmp_path / "q.db", acknowledge=True).acknowledged == 3
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        assert [record.state for record in queue.iterate(state=None)] == ["pulled"] * 3


class Torn(OSError):
    """A line that breaks, a disk that fills, a plug that is pulled."""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_sequence_ends_with_each_frame_once_here_or_still_there(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pulls that break at any of their writes, acknowledgements, deletes, new frames, in any order."""
    folder = tmp_path_factory.mktemp("sequence")
    queue, inbox = folder / "q.db", folder / "inbox"
    every = set(fill(queue, 3, picture_bytes=300))
    steps = st.sampled_from(["put", "pull", "manifests", "acknowledge", "delete", "break"])
    for number, step in enumerate(data.draw(st.lists(steps, min_size=2, max_size=7))):
        if step == "put":
            every |= set(fill(queue, 2, picture_bytes=300, seed=number + 1))
        elif step == "break":
            with pytest.MonkeyPatch.context() as patch:
                broken_at(patch, data.draw(st.integers(0, 12)))
                with suppress(Torn):
                    bring(inbox, queue, delete=data.draw(st.booleans()))
        else:
            images = () if step == "manifests" else None
            bring(inbox, queue, images=images, acknowledge=step == "acknowledge", delete=step == "delete")
        there, here = on_device(queue), whole(inbox)
        assert there | here == every, "a frame is lost"
    last = bring(inbox, queue, delete=True)
    assert last.problem is None
    assert whole(inbox) == every
    assert on_device(queue) == set()


def broken_at(patch: pytest.MonkeyPatch, write: int) -> None:
    """Let the so-manieth write of a file, or commit, fail; half of the file writes have happened by then."""
    left = [write]
    real = inbox_module.write_synced

    def write_synced(path: Path, content: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.tmp").write_bytes(content[: len(content) // 2])
            raise Torn("no space left")
        real(path, content)
        left[0] -= 1
        if left[0] == 0:
            raise Torn("the plug")

    patch.setattr(inbox_module, "write_synced", write_synced)


PULLER = """
import sys
from pathlib import Path
from alpose.tools.inbox import Inbox
from alpose.tools.pull import pull
from alpose.tools.sources import LocalSource
print("ready", flush=True)
with Inbox(Path(sys.argv[1]), create=True) as inbox:
    pull(inbox, LocalSource(Path(sys.argv[2])), delete=True)
print("done", flush=True)
"""


@pytest.mark.parametrize("moment", [0.01, 0.06, 0.13])
def test_a_killed_pull_goes_on(moment: float, tmp_path: Path) -> None:
    every = set(fill(tmp_path / "q.db", 40))
    child = subprocess.Popen(
        [sys.executable, "-c", PULLER, str(tmp_path / "inbox"), str(tmp_path / "q.db")], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    time.sleep(moment)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()

    there = on_device(tmp_path / "q.db")
    assert there | whole(tmp_path / "inbox") == every
    assert bring(tmp_path / "inbox", tmp_path / "q.db", delete=True).problem is None
    assert whole(tmp_path / "inbox") == every
    assert on_device(tmp_path / "q.db") == set()


def test_a_record_that_is_not_what_it_claims_is_listed_and_the_rest_comes(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 5)
    with sqlite3.connect(tmp_path / "q.db") as db:
        db.execute("UPDATE record SET manifest = replace(manifest, 'car-1', '../../etc') WHERE id = ?", (ids[1],))
        db.execute("UPDATE picture SET data = zeroblob(10) WHERE key / 256 = 3")
        db.execute("UPDATE record SET arrays = 'text' WHERE id = ?", (ids[4],))
    done = bring(tmp_path / "inbox", tmp_path / "q.db", delete=True)

    assert (done.new, done.refused, done.damaged) == (3, 2, 1)
    with Inbox(tmp_path / "inbox") as inbox:
        assert {id_ for _, id_, _ in inbox.refused()} == {ids[1], ids[4]}
    with sqlite3.connect(tmp_path / "q.db") as db:
        left = {id_ for (id_,) in db.execute("SELECT id FROM record")}
    # What could not be read whole stays where it is.
    assert left == {ids[1], ids[2], ids[4]}


def test_one_frame_by_two_ways_is_one_frame(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 4)
    shutil.copy(tmp_path / "q.db", tmp_path / "copy.db")
    bring(tmp_path / "inbox", tmp_path / "q.db")
    second = bring(tmp_path / "inbox", tmp_path / "copy.db")

    assert (second.new, second.known) == (0, 4)
    assert whole(tmp_path / "inbox") == set(ids)


def test_a_monitor_may_write_meanwhile(tmp_path: Path) -> None:
    fill(tmp_path / "q.db", 5)
    rng = np.random.default_rng(9)
    with Queue(tmp_path / "q.db") as live:
        live.put(make_record(live, rng))
        done = bring(tmp_path / "inbox", tmp_path / "q.db")
        live.put(make_record(live, rng))
    assert done.new == 6
    assert bring(tmp_path / "inbox", tmp_path / "q.db").new == 1


def test_folders_and_patterns_find_queues_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name / "flagged.db", 1)
    (tmp_path / "a" / "notes.db").write_text("not a queue")
    (tmp_path / "a" / "flagged.db.damaged-20260101").write_bytes((tmp_path / "a" / "flagged.db").read_bytes())

    assert [one.url for one in find((str(tmp_path / "a"),))] == [str(tmp_path / "a" / "flagged.db")]
    assert len(find((str(tmp_path / "*" / "flagged.db"), str(tmp_path / "a")))) == 2
    with pytest.raises(DataNotFoundError, match="names no queue"):
        find((str(tmp_path / "nothing"),))
    (tmp_path / "other.db").write_bytes(b"SQLite format 3\0" + bytes(200))
    with pytest.raises(DataNotFoundError, match="no inbox"):
        Inbox(tmp_path / "nowhere")
    assert bring(tmp_path / "inbox", tmp_path / "other.db").problem is not None


def test_secrets_are_not_remembered() -> None:
    assert without_secrets("sftp://me:secret@car-17/q.db?token=x#y") == "sftp://me@car-17/q.db"
    assert without_secrets("s3://fleet/*/q.db") == "s3://fleet/*/q.db"


def test_an_inbox_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    with sqlite3.connect(tmp_path / "inbox" / "inbox.db") as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(DataError, match="something else"):
        Inbox(tmp_path / "inbox")
