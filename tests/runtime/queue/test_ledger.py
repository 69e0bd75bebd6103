"""What lies beside the records: acknowledgement files, bundles, the score log, tallies, counters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.errors import DataError
from alpose.runtime.queue import Queue, acknowledgements, ledger
from alpose.runtime.queue.acknowledgements import MAX_BYTES, Acknowledgement, parse

Kit = Any
MB = 1 << 20
BUNDLE = "ab" * 32
HOUR_NS = 3600 * 10**9


def leave(queue: Queue, name: str, **values: Any) -> Path:
    folder = Path(f"{queue.path}.ack")
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(
        json.dumps({"kind": "alpose acknowledgement", "schema": 1, "delete": False, "records": {}, **values})
    )
    return file


def test_an_acknowledgement_file_marks_what_it_means_and_nothing_else(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        a, b, c = (kit.put(queue) for _ in range(3))
        leave(queue, "harvest-1.json", records={a.id: a.sha256, b.id: "0" * 64, "f" * 32: a.sha256})
        applied = queue.apply_acknowledgements()
        assert (applied.files, applied.acknowledged, applied.deleted, applied.unknown) == (1, 1, 0, 1)
        assert applied.mismatched == (b.id,)
        assert [record.id for record in queue.peek(state="pulled")] == [a.id]
        assert [record.id for record in queue.peek()] == [b.id, c.id]
        assert queue.counters()["acknowledgement_mismatch_total", ""] == 1
        assert os.listdir(f"{path}.ack") == []
        assert queue.apply_acknowledgements() == acknowledgements_of_nothing()


def acknowledgements_of_nothing() -> Any:
    from alpose.runtime.queue import Applied

    return Applied()


def test_one_that_deletes_erases_what_was_verified_and_twice_is_once(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        a, b = kit.put(queue), kit.put(queue)
        for name in ("1.json", "2.json"):
            leave(queue, name, delete=True, records={a.id: a.sha256, b.id: "0" * 64})
        applied = queue.apply_acknowledgements()
        assert (applied.files, applied.deleted, applied.unknown, applied.mismatched) == (2, 1, 1, (b.id, b.id))
        assert [record.id for record in queue.peek(state=None)] == [b.id]
        assert queue.counters()["deleted_total", "acknowledged"] == 1


def test_files_that_are_not_acknowledgements_are_set_aside_and_stop_nothing(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        a = kit.put(queue)
        folder = Path(f"{path}.ack")
        folder.mkdir()
        secret = path.with_name("secret.json")
        secret.write_text("{}")
        (folder / "0-link.json").symlink_to(secret)
        (folder / "1-large.json").write_bytes(b" " * (MAX_BYTES + 1))
        (folder / "2-folder.json").mkdir()
        os.mkfifo(folder / "3-pipe.json")
        (folder / "4-text.json").write_text("delete everything")
        (folder / ".5-half.json").write_text("{")
        (folder / "6-note.txt").write_text("hello")
        leave(queue, "7-path.json", records={"../../x": a.sha256})
        leave(queue, "8-good.json", records={a.id: a.sha256})

        applied = queue.apply_acknowledgements()

        assert applied.acknowledged == 1
        assert [name[0] for name, _ in applied.refused] == ["0", "1", "2", "3", "4", "7"]
        left = sorted(os.listdir(folder))
        assert [name for name in left if not name.endswith(".refused")] == [".5-half.json", "6-note.txt"]
        assert len(left) == 8
        assert secret.read_text() == "{}"
        assert queue.counters()["acknowledgement_refused_total", ""] == 6
        assert not queue.apply_acknowledgements().refused


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "schema", "delete", "records", "a" * 32]), inner, max_size=4), max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_no_content_does_more_than_be_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        parse(content)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2}, {"schema": True}, {"kind": "other"}, {"delete": 1}, {"records": []}, {"more": 1},
        {"records": {"a" * 32: "b" * 63}}, {"records": {"A" * 32: "b" * 64}}, {"records": {"a" * 32: None}},
    ],
)  # fmt: skip
def test_an_acknowledgement_has_exactly_its_form(change: dict[str, Any]) -> None:
    good = {"kind": "alpose acknowledgement", "schema": 1, "delete": True, "records": {"a" * 32: "b" * 64}}
    assert parse(json.dumps(good).encode()) == Acknowledgement(True, {"a" * 32: "b" * 64})
    with pytest.raises(DataError):
        parse(json.dumps({**good, **change}).encode())
    twice = json.dumps(good)[:-1] + ', "delete": false}'
    with pytest.raises(DataError, match="twice"):
        parse(twice.encode())


def test_what_is_written_for_a_queue_is_applied_by_it(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        a = kit.put(queue)
        acknowledgements.write(path, "mine.json", Acknowledgement(False, {a.id: a.sha256}))
        assert queue.apply_acknowledgements().acknowledged == 1
        for name in ("../x.json", ".hidden.json", "x.txt", "a/b.json"):
            with pytest.raises(DataError, match="is not a name"):
                acknowledgements.write(path, name, Acknowledgement(False, {}))


def test_bundles_are_kept_once_and_within_their_share(path: Path) -> None:
    with Queue(path, max_bytes=4 * MB) as queue:
        facts = {"skeleton": {"joints": ["a", "b"]}, "thresholds": [0.5]}
        queue.add_bundle(BUNDLE, "driver", facts)
        queue.add_bundle(BUNDLE, "driver", facts)
        [kept] = queue.bundles()
        assert (kept.sha256, kept.name, kept.facts) == (BUNDLE, "driver", facts)
        for n in range(4):
            queue.add_bundle(f"{n:064x}", "large", {"text": "x" * 200_000})
        assert len(queue.bundles()) == 3
        assert queue.counters()["refused_total", "bundle"] == 2
        with pytest.raises(DataError, match="at most"):
            queue.add_bundle("0" * 64, "huge", {"text": "x" * MB})
        with pytest.raises(DataError, match="sha256"):
            queue.add_bundle("driver.alpose", "x", {})


def test_the_score_log_rotates_by_share_and_by_age(path: Path, clock: Any) -> None:
    with Queue(path, max_bytes=4 * MB, max_age_s=100, clock=clock) as queue:
        for n in range(20):
            queue.add_scores(
                bytes([n]) * 40_000, device="d", camera="c", bundle=BUNDLE, began_ns=n, ended_ns=n + 1, frames=2500
            )
        chunks = list(queue.scores())
        assert [chunk.data[0] for chunk in chunks] == list(range(14, 20))  # 4 MiB / 16 holds six
        assert (chunks[0].began_ns, chunks[0].ended_ns, chunks[0].frames, chunks[0].camera) == (14, 15, 2500, "c")
        assert queue.counters()["evicted_scores_total", "full"] == 14
        with pytest.raises(DataError, match="at most"):
            queue.add_scores(bytes(MB), device="d", bundle=BUNDLE, began_ns=0, ended_ns=1, frames=1)
        clock.pass_s(101)
        queue.tidy()
        assert list(queue.scores()) == []
        assert queue.counters()["evicted_scores_total", "age"] == 6


def test_a_damaged_chunk_is_told_and_passed_over(path: Path) -> None:
    with Queue(path) as queue:
        for n in range(3):
            queue.add_scores(bytes([n]) * 100, device="d", bundle=BUNDLE, began_ns=n, ended_ns=n, frames=6)
        queue._database.db.execute("UPDATE score SET data = x'00' WHERE number = 2")  # type: ignore[union-attr]
        told: list[Any] = []
        assert [chunk.data[0] for chunk in queue.scores(told.append)] == [0, 2]
        assert [damage.row for damage in told] == [2]


def test_tallies_add_up_by_the_hour(path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Queue(path, max_age_s=7200, clock=clock) as queue:
        now = clock.wall - clock.wall % HOUR_NS
        for at, frames in ((now, 100), (now + HOUR_NS - 1, 50), (now + HOUR_NS, 7)):
            queue.tally(device="d", bundle=BUNDLE, at_ns=at, frames=frames, flagged=2, control=1, kept=3)
        queue.tally(device="d", camera="other", bundle=BUNDLE, at_ns=now, frames=1)
        rows = {(tally.camera, tally.hour_ns): tally for tally in queue.tallies()}
        assert {key: tally.frames for key, tally in rows.items()} == {
            ("", now): 150, ("", now + HOUR_NS): 7, ("other", now): 1,
        }  # fmt: skip
        assert (rows["", now].flagged, rows["", now].control, rows["", now].kept) == (4, 2, 6)
        with pytest.raises(DataError, match="upwards"):
            queue.tally(device="d", bundle=BUNDLE, at_ns=now, frames=-1)
        clock.pass_s(4 * 3600)
        queue.tidy()
        assert queue.tallies() == []
        monkeypatch.setattr(ledger, "MAX_TALLIES", 3)
        for hour in range(5):
            queue.tally(device="d", bundle=BUNDLE, at_ns=hour * HOUR_NS, frames=1)
        assert [tally.hour_ns // HOUR_NS for tally in queue.tallies()] == [2, 3, 4]
        assert queue.counters()["evicted_tallies_total", "full"] == 2


def test_counters_live_as_long_as_the_file(path: Path) -> None:
    with Queue(path) as queue:
        queue.count("dropped_frames_total", "handover_full", 3)
    with Queue(path) as queue:
        queue.count("dropped_frames_total", "handover_full")
        queue.count("frames_total")
        assert queue.counters() == {("dropped_frames_total", "handover_full"): 4, ("frames_total", ""): 1}


def test_the_facts_agree_with_what_was_done(kit: Kit, path: Path, clock: Any) -> None:
    with Queue(path, clock=clock) as queue:
        assert queue.info().oldest_ns is None
        a = kit.put(queue, 1000)
        clock.pass_s(5)
        b = kit.put(queue, 2000, control_draw=0.5, captured_ns=17)
        queue.acknowledge([a.id])
        facts = queue.info()
        assert (facts.records, facts.pulled, facts.control, facts.pictures) == (2, 1, 1, 2)
        assert facts.bytes == a.bytes + b.bytes > 3000
        assert facts.oldest_ns == facts.newest_ns == 17  # of the capture, whatever the clock said when it was stored
        assert facts.file_bytes + facts.wal_bytes <= facts.max_bytes
        assert facts.counters == queue.counters()


# States.


def test_a_state_is_there_after_kill_9(path: Path) -> None:
    code = (
        "import os, signal, sys; from alpose.runtime.queue import Queue; queue = Queue(sys.argv[1]); "
        "queue.save_state('budget', bytes(range(256))); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -signal.SIGKILL

    with Queue(path) as queue:
        assert queue.load_state("budget") == bytes(range(256))
        assert queue.load_state("another") is None
        queue.save_state("budget", b"")
        assert queue.load_state("budget") == b""
        assert queue.counters() == {}


@pytest.mark.parametrize("stored", ["text", b"alpose state 2\nwhatever", b"alpose state 1\n" + bytes(40), 7])
def test_a_state_that_cannot_be_read_is_counted_and_ignored(path: Path, stored: object) -> None:
    with Queue(path) as queue:
        queue._database.db.execute("INSERT INTO meta VALUES ('state:budget', ?)", (stored,))  # type: ignore[union-attr]
        assert queue.load_state("budget") is None
        assert queue.counters() == {("unreadable_states_total", "budget"): 1}
        queue.save_state("budget", b"new")
        assert queue.load_state("budget") == b"new"


def test_states_are_bounded(path: Path) -> None:
    with Queue(path, max_bytes=4 << 20) as queue:
        for number in range(ledger.MAX_STATES):
            queue.save_state(f"state{number}", bytes(ledger.MAX_STATE_BYTES))
        queue.save_state("state0", b"again")
        for key, data, says in [
            ("one.more", b"", "one more"),
            ("state1", bytes(65537), "65537"),
            ("../x", b"", "name"),
        ]:
            with pytest.raises(DataError, match=says):
                queue.save_state(key, data)
        assert queue.load_state("state7") == bytes(ledger.MAX_STATE_BYTES)


# Settings that belong to the file.


def test_bound_and_half_life_stay_with_the_file(kit: Kit, path: Path) -> None:
    with Queue(path, max_bytes=6 << 20, half_life_s=100.0) as queue:
        kit.put(queue)
    before = path.read_bytes()
    for readonly in (True, False):
        with Queue(path, readonly=readonly) as queue:
            assert queue.info().max_bytes == 6 << 20
    assert path.read_bytes() == before
    with Queue(path, max_bytes=5 << 20):
        pass
    with Queue(path) as queue:
        assert queue.info().max_bytes == 5 << 20


def test_a_file_of_before_bounds_were_stored_is_not_shrunk(kit: Kit, path: Path) -> None:
    with Queue(path, max_bytes=400 << 20) as queue:
        kit.put(queue)
        queue._database.db.execute("DELETE FROM meta WHERE key = 'max_bytes'")  # type: ignore[union-attr]
    with open(path, "r+b") as file:  # SQLite knows a file's length from its header
        file.truncate(300 << 20)
        file.seek(28)
        file.write(((300 << 20) // 8192).to_bytes(4, "big"))
    with Queue(path, readonly=True) as queue:
        info = queue.info()
        assert info.max_bytes > info.file_bytes == 300 << 20
