"""Frames on their way home: interrupted anywhere, by anything, each ends up exactly once."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime import io
from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.queue import Picture, Queue
from alpose.runtime.skeleton import LSP
from alpose.tools import inbox as inbox_module
from alpose.tools.inbox import Inbox
from alpose.tools.pull.pull import Pulled, plan, pull
from alpose.tools.pull.sources import LocalSource, find, without_secrets
from alpose.tools.select import choose

from ..queues import BUNDLE, fill, make_record, quick_folder


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


@pytest.mark.parametrize("answer", [{}, {"acknowledge": True}, {"delete": True}])
def test_pictures_that_were_damaged_or_lost_here_are_fetched_again(tmp_path: Path, answer: dict[str, Any]) -> None:
    ids = fill(tmp_path / "q.db", 6)
    bring(tmp_path / "inbox", tmp_path / "q.db")
    with Inbox(tmp_path / "inbox") as inbox:
        paths = [inbox.image(id_) for id_ in ids[:3]]
        assert paths[0]
        assert paths[1]
        assert paths[2]
        paths[0].unlink()
        paths[1].write_bytes(b"rot")
        paths[2].write_bytes(bytes(paths[2].stat().st_size))  # of the same length
        planned = plan(inbox, LocalSource(tmp_path / "q.db"), **answer)
        untouched = pull(inbox, LocalSource(tmp_path / "q.db"), images=())
    assert (planned.would_fetch, planned.would_acknowledge) == (3, 6 * ("acknowledge" in answer or "delete" in answer))
    assert (untouched.again, untouched.fetched) == (0, 0), "a pull that wants no pictures reads none"
    done = bring(tmp_path / "inbox", tmp_path / "q.db", **answer)
    assert (done.again, done.fetched, done.notes) == (3, 3, [])
    assert "3 fetched" in done.summary()
    assert "3 damaged or gone in the inbox" in done.summary()
    assert done.acknowledged == planned.would_acknowledge
    assert whole(tmp_path / "inbox") == set(ids)
    assert bring(tmp_path / "inbox", tmp_path / "q.db").fetched == 0


def test_what_is_damaged_here_and_gone_there_is_not_promised(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 3)
    bring(tmp_path / "inbox", tmp_path / "q.db")
    with Queue(tmp_path / "q.db") as queue:
        queue.delete(ids[:1], force=True)
    with Inbox(tmp_path / "inbox") as inbox:
        for id_ in ids[:2]:
            path = inbox.image(id_)
            assert path is not None
            path.unlink()
    done = bring(tmp_path / "inbox", tmp_path / "q.db", images=(), acknowledge=True)
    assert done.acknowledged == 1
    lost, waiting = sorted(done.notes)
    assert ids[0] in lost
    assert "the device has them no more" in lost
    assert ids[1] in waiting
    assert "the device is not told" in waiting


def test_what_is_acknowledged_stays_on_the_device_as_pulled(tmp_path: Path) -> None:
    fill(tmp_path / "q.db", 3)
    assert bring(tmp_path / "inbox", tmp_path / "q.db", acknowledge=True).acknowledged == 3
    with Queue(tmp_path / "q.db", readonly=True) as queue:
        assert [record.state for record in queue.iterate(state=None)] == ["pulled"] * 3


class Torn(OSError):
    """A line that breaks, a disk that fills, a plug that is pulled."""


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_sequence_ends_with_each_frame_once_here_or_still_there(data: st.DataObject) -> None:
    """Pulls that break at any of their writes, acknowledgements, deletes, new frames, in any order."""
    with quick_folder() as folder:
        any_sequence(data, folder)


def any_sequence(data: st.DataObject, folder: Path) -> None:
    """One example."""
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
    real = io.write_atomically

    def write_atomically(path: Path, content: bytes) -> Path:
        left[0] -= 1
        if left[0] == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.tmp").write_bytes(content[: len(content) // 2])
            raise Torn("no space left")
        real(path, content)
        left[0] -= 1
        if left[0] == 0:
            raise Torn("the plug")
        return path

    patch.setattr(inbox_module, "write_atomically", write_atomically)


PULLER = """
import sys
from pathlib import Path
from typing import Any
from alpose.tools.inbox import Inbox
from alpose.tools.pull.pull import pull
from alpose.tools.pull.sources import LocalSource
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


def test_a_copy_is_not_counted_twice_and_a_new_queue_adds(tmp_path: Path) -> None:
    """Counts belong to a queue, not to the place where it was found."""
    fill(tmp_path / "q.db", 4)
    shutil.copy(tmp_path / "q.db", tmp_path / "copy.db")
    bring(tmp_path / "inbox", tmp_path / "q.db")
    bring(tmp_path / "inbox", tmp_path / "copy.db")
    with Inbox(tmp_path / "inbox") as inbox:
        assert [(row["frames"], row["lost"]) for row in inbox.field_tallies()] == [(4000, 0)]
    # The file was damaged and moved aside: the monitor began another one in its place, in the same hour.
    (tmp_path / "q.db").unlink()
    fill(tmp_path / "q.db", 3, seed=1)
    bring(tmp_path / "inbox", tmp_path / "q.db")
    with Inbox(tmp_path / "inbox") as inbox:
        assert [(row["frames"], row["lost"]) for row in inbox.field_tallies()] == [(7000, 0)]


def test_what_is_gone_before_it_was_fetched_is_not_chosen_any_more(tmp_path: Path) -> None:
    ids = fill(tmp_path / "q.db", 6)
    bring(tmp_path / "inbox", tmp_path / "q.db", images=set(ids[:1]))
    with Queue(tmp_path / "q.db") as queue:
        queue.acknowledge(ids[:3])
        queue.delete(ids[:3])
    done = bring(tmp_path / "inbox", tmp_path / "q.db", images=())
    assert (done.gone, done.deleted) == (2, 0)
    assert bring(tmp_path / "inbox", tmp_path / "q.db", images=()).gone == 0
    with Inbox(tmp_path / "inbox") as inbox:
        chosen = choose(inbox, 6, min_distance=0).batch
        assert {choice.id for choice in chosen.choices} == {ids[0], *ids[3:]}
        assert inbox.field_tallies()[0]["lost"] == 2


def test_a_queue_that_moved_gives_what_its_old_place_did_not(tmp_path: Path) -> None:
    """A car with another address: the frames that are known and not here yet come from there."""
    ids = fill(tmp_path / "q.db", 5)
    bring(tmp_path / "inbox", tmp_path / "q.db", images=set(ids[:2]))
    (tmp_path / "q.db").rename(tmp_path / "moved.db")
    with Inbox(tmp_path / "inbox") as inbox:
        planned = plan(inbox, LocalSource(tmp_path / "moved.db"), delete=True)
    done = bring(tmp_path / "inbox", tmp_path / "moved.db", delete=True)

    assert (done.known, done.fetched, done.deleted) == (5, 3, 3)
    assert (planned.would_fetch, planned.would_delete) == (3, 3)
    assert whole(tmp_path / "inbox") == set(ids)


def test_a_damaged_embedding_does_not_spoil_a_choice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with Queue(tmp_path / "q.db") as queue:
        for scale in (np.nan, np.inf, 0.0, 60000.0, 1.0, 1.0):
            record = make_record(queue, rng)
            queue.put(dataclasses.replace(record, embedding_D=(record.embedding_D * scale).astype(np.float16)),
                      [Picture.of(b"x", width=640, height=480, captured_ns=1)])  # fmt: skip
    bring(tmp_path / "inbox", tmp_path / "q.db")
    with Inbox(tmp_path / "inbox") as inbox:
        assert np.isfinite(inbox.columns().embedding_ND).all()
        assert len(choose(inbox, 6).batch.choices) >= 3


def test_a_control_frame_keeps_the_rate_at_which_it_came() -> None:
    """A queue that has to give up control frames lowers the rate for what is still there, not for what is here already.

    The whole stream, weighted, is the number of frames that were seen: in each part, whatever was evicted later.
    """
    rng = np.random.default_rng(3)
    frames, parts, rate = 500, 3, 0.5
    rates, seen = [], []
    with (
        quick_folder() as folder,
        Queue(folder / "q.db", max_bytes=4 << 20) as queue,
        Inbox(folder, create=True) as inbox,
    ):
        queue.add_bundle(BUNDLE, "driver", {"skeleton": LSP.to_json()})
        for part in range(parts):
            draws = rng.random(frames)
            queue.put_many([
                (make_record(queue, rng, captured_ns=part, flagged=False, control_draw=float(draw),
                             reasons=(("control", float(draw), rate),), inclusion_probability=rate),
                 (Picture.of(rng.bytes(5000), width=640, height=480, captured_ns=1),), ())
                for draw in draws[draws < rate]
            ])  # fmt: skip
            queue.tally(device="car-1", bundle=BUNDLE, at_ns=10**18, frames=frames, flagged=0, control=1, kept=1)
            pull(inbox, LocalSource(folder / "q.db"))
            rates.append(queue.control_periods()[-1].rate)
        entries = inbox.entries(id_.decode() for id_ in inbox.columns().id_N[inbox.columns().control_N])
        for part in range(parts):
            found = [entry.control_rate for entry in entries if entry.record.captured_ns == part]
            spread = np.sqrt(sum((1 - one) / one**2 for one in found))
            seen.append((sum(1 / one for one in found), spread))
    assert rates[-1] < 0.6 * rates[0], "the queue was never full: the test shows nothing"
    assert all(abs(total - frames) < 4 * spread for total, spread in seen), (seen, rates)


def test_a_source_that_cannot_be_written_to_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mounted disk, say: that the device was not told is a note, and no reason to pull again."""

    def refuse(*_: object) -> None:
        raise PermissionError("read-only file system")

    fill(tmp_path / "q.db", 3)
    monkeypatch.setattr("alpose.runtime.queue.acknowledgements.write", refuse)
    done = bring(tmp_path / "inbox", tmp_path / "q.db", acknowledge=True)

    assert (done.problem, done.fetched, done.acknowledged) == (None, 3, 0)
    assert any("cannot be written to" in note for note in done.notes)


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
    with pytest.raises(DataNotFoundError, match="not an inbox"):
        Inbox(tmp_path / "nowhere")
    assert bring(tmp_path / "inbox", tmp_path / "other.db").problem is not None


def test_an_address_tells_sources_apart_and_gives_no_secret_away() -> None:
    assert without_secrets("sftp://me:hunter2@car-17/q.db") == "sftp://me@car-17/q.db"
    assert without_secrets("s3://fleet/*/q.db") == "s3://fleet/*/q.db"
    assert without_secrets("s3://fleet/car #17/q.db") == "s3://fleet/car #17/q.db"
    depot = "https://depot/download?device=17"
    assert without_secrets(depot + "#top") == depot
    secret = [
        without_secrets(f"{depot}&{name}=hunter2") for name in ("token", "X-Amz-Signature", "api_key", "sig", "pwd")
    ]
    assert len({*secret, depot, without_secrets(f"{depot}&token=hunter3")}) == 7
    assert not any("hunter" in url for url in secret)
    assert "hunter" not in without_secrets("https://depot/q.db?" + "hunter" * 8)


def test_what_is_not_copied_whole_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "car-1.db", 2)
    whole = (tmp_path / "car-1.db").read_bytes()
    for name in (".car-2.db.Xk3f9Q", "car-3.db.part", "car-4.db.damaged-20260101", "car-5.db~"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "car-6.db").touch()
    (tmp_path / "car-7.db").write_bytes(whole[: len(whole) // 2])

    assert [Path(one.url).name for one in find((str(tmp_path),))] == ["car-1.db", "car-7.db"]
    assert "car-6.db is left out: it is empty" in caplog.text
    assert [Path(one.url).name for one in find((str(tmp_path / "*db*"),))] == ["car-1.db", "car-6.db", "car-7.db"]
    for name, said in (("car-6.db", "is empty"), ("car-7.db", "Was it copied whole?")):
        problem = bring(tmp_path / "inbox", tmp_path / name).problem
        assert problem is not None
        assert said in problem


def test_names_may_be_any_bytes(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"wagen [1] #2 50%41 ?x=1 \xfc")
    folder.mkdir()
    fill(folder / "q.db", 2)
    assert bring(tmp_path / "inbox", folder / "q.db").fetched == 2
    with Inbox(tmp_path / "inbox") as inbox:
        (entry, _) = inbox.entries(id_.decode() for id_ in inbox.columns().id_N)
        assert entry.source.endswith("\\xfc/q.db")
    assert len(find((str(folder / "*.db"),))) == 1


def test_a_card_of_a_device_that_lost_its_power_is_read_though_nothing_can_be_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log without its index, in a folder where SQLite cannot make one."""
    card = tmp_path / "card"
    card.mkdir()
    fill(tmp_path / "q.db", 3)
    with Queue(tmp_path / "q.db") as live:
        live.put(make_record(live, np.random.default_rng(0)))
        for ending in ("", "-wal"):
            shutil.copy(tmp_path / f"q.db{ending}", card / f"q.db{ending}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    done = bring(tmp_path / "inbox", card / "q.db")
    assert (done.new, done.fetched, done.problem, done.how) == (4, 3, None, "locally")
    with Queue(card / "q.db", readonly=True) as queue:
        assert len(list(queue.iterate(state=None))) == 4
    assert sorted(path.name for path in card.iterdir()) == ["q.db", "q.db-wal"]


def test_an_inbox_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    with sqlite3.connect(tmp_path / "inbox" / "inbox.db") as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(DataError, match="something else"):
        Inbox(tmp_path / "inbox")
