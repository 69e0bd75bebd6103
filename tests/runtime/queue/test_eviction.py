"""Who goes when the queue is full: known cases, and a machine that does everything in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from alpose.runtime.queue import Picture, Queue, Record, Stored

Kit = Any
MB = 1 << 20
BIG = 200_000
"""Bytes of a picture of which some 14 fill the smallest queue."""


@pytest.fixture
def small(path: Path, clock: Any) -> Queue:
    return Queue(path, max_bytes=4 * MB, half_life_s=1000, clock=clock)


def fill(kit: Kit, queue: Queue, **changes: Any) -> list[str]:
    """Put records until one has to go; ids of those that are there."""
    ids = []
    while not queue.counters().get(("evicted_total", "full"), 0):
        stored = kit.put(queue, BIG, **changes)
        if not stored.kept:
            break
        ids.append(stored.id)
    return [id for id in ids if queue.get([id])]


def ids(queue: Queue, state: str | None = "queued") -> list[str]:
    return [record.id for record in queue.peek(state=state)]


def test_the_least_valuable_goes_first(kit: Kit, small: Queue) -> None:
    with small as queue:
        worst = kit.put(queue, BIG, failure_probability=0.2).id
        dull = kit.put(queue, BIG, failure_probability=0.8, novelty=0.3).id  # worth 0.24
        there = fill(kit, queue, failure_probability=0.8)
        assert worst not in ids(queue)
        assert {dull, *there} == set(ids(queue))
        kit.put(queue, BIG, failure_probability=0.9)
        assert dull not in ids(queue)


def test_age_weighs_as_the_half_life_says(kit: Kit, small: Queue, clock: Any) -> None:
    with small as queue:
        old = kit.put(queue, BIG, failure_probability=0.9).id
        clock.pass_s(900)
        young = kit.put(queue, BIG, failure_probability=0.5).id  # the other one is worth 0.9 × 0.536 = 0.48 by now
        fill(kit, queue, failure_probability=1.0)
        assert old not in ids(queue)
        assert young in ids(queue)


def test_a_record_that_is_worth_less_than_all_others_is_not_stored(kit: Kit, small: Queue) -> None:
    with small as queue:
        there = fill(kit, queue, failure_probability=0.8)
        refused = kit.put(queue, BIG, failure_probability=0.1)
        assert (refused.kept, refused.reason, refused.sha256) == (False, "full", "")
        assert ids(queue) == there
        assert queue.counters()["refused_total", "full"] == 1


def test_a_model_that_answers_nothing_is_worth_most(kit: Kit, small: Queue) -> None:
    with small as queue:
        lost = kit.put(queue, BIG, failure_probability=math.nan, predicted_loss=math.nan).id
        fill(kit, queue, failure_probability=0.99)
        assert lost in ids(queue)


def test_what_was_acknowledged_goes_before_anything_that_is_waiting(kit: Kit, small: Queue) -> None:
    with small as queue:
        best = kit.put(queue, BIG, failure_probability=1.0).id
        queue.acknowledge([best])
        while best in ids(queue, None):
            assert kit.put(queue, BIG, failure_probability=0.1).kept
        counters = queue.counters()
        assert counters["evicted_total", "acknowledged"] == 1
        assert ("evicted_total", "full") not in counters


def test_a_record_larger_than_the_bound_is_refused_and_counted(kit: Kit, small: Queue) -> None:
    with small as queue:
        small_one = kit.put(queue).id
        refused = kit.put(queue, 3 * MB)
        assert (refused.kept, refused.reason) == (False, "too_large")
        assert queue.counters()["refused_total", "too_large"] == 1
        assert ids(queue) == [small_one]


def test_an_episodes_better_frame_replaces_the_worse_ones_in_one_transaction(kit: Kit, small: Queue) -> None:
    with small as queue:
        worse = [kit.put(queue).id for _ in range(3)]
        taken = kit.put(queue).id
        queue.acknowledge([taken])
        control = kit.put(queue, control_draw=0.5).id
        better = kit.put(queue, supersedes=(*worse, taken, control, "f" * 32)).id
        assert ids(queue) == [control, better]
        assert ids(queue, "pulled") == [taken]
        assert queue.counters()["evicted_total", "episode"] == 3


def test_in_a_full_queue_a_better_frame_takes_its_predecessors_place_and_nobody_elses(kit: Kit, small: Queue) -> None:
    with small as queue:
        there = fill(kit, queue, failure_probability=0.8)
        evicted = queue.counters()["evicted_total", "full"]
        better = kit.put(queue, BIG - 60_000, supersedes=(there[3],), failure_probability=0.1).id
        assert ids(queue) == [*there[:3], *there[4:], better]
        assert queue.counters()["evicted_total", "full"] == evicted


def test_a_frame_that_is_superseded_within_its_own_group_says_so(kit: Kit, small: Queue) -> None:
    with small as queue:
        first, second = kit.record(queue.new_id(), 1), kit.record(queue.new_id(), 2)
        stored = queue.put_many([(first, [kit.picture()], ()), (second, [kit.picture()], (first.id,))])
        assert [(one.kept, one.reason) for one in stored] == [(False, "episode"), (True, None)]
        assert ids(queue) == [second.id]


def test_a_group_that_does_not_fit_into_the_log_at_once_is_stored_all_the_same(kit: Kit, small: Queue) -> None:
    with small as queue:
        records = [kit.record(queue.new_id(), n, failure_probability=0.1 * n) for n in range(1, 10)]
        stored = queue.put_many([(record, [kit.picture(BIG, n)], ()) for n, record in enumerate(records)])
        assert all(one.kept for one in stored)
        assert len(queue.pull()) == 9
        assert queue.check().ok


# --- the control stream


def test_control_records_stay_while_they_are_within_their_share(kit: Kit, small: Queue) -> None:
    with small as queue:
        control = [
            kit.put(queue, BIG, control_draw=draw, flagged=False, failure_probability=0.0).id for draw in (0.1, 0.2)
        ]
        fill(kit, queue, failure_probability=0.9)
        for _ in range(5):
            kit.put(queue, BIG, failure_probability=0.9)
        assert set(control) <= set(ids(queue))
        assert queue.control_periods()[-1].rate == 1


def test_over_its_share_the_stream_becomes_the_sample_of_a_lower_rate(kit: Kit, small: Queue) -> None:
    draws = [((n * 37) % 100 + 0.5) / 100 for n in range(100)]
    with small as queue:
        fill(kit, queue, failure_probability=0.9)
        kept = dict[str, float]()
        for draw in draws:
            stored = kit.put(queue, 50_000, control_draw=draw, flagged=False)
            if stored.kept:
                kept[stored.id] = draw
        rate = queue.control_periods()[-1].rate
        left = {record.id: record.control_draw for record in queue.peek() if record.control_draw is not None}
        # Exactly the frames that a stream at this rate would have drawn, and all of them.
        assert sorted(left.values()) == sorted(draw for draw in draws if draw < rate)
        assert 0 < rate < 0.5
        assert all(record.control_rate == rate for record in queue.peek() if record.control_draw is not None)
        counters = queue.counters()
        gone = counters["evicted_total", "control"] + counters["refused_total", "control"]
        assert gone == len(draws) - len(left)


def test_a_control_frame_that_was_flagged_too_competes_on_once_it_left_the_stream(kit: Kit, small: Queue) -> None:
    with small as queue:
        both = kit.put(queue, BIG, control_draw=0.9, flagged=True, failure_probability=1.0).id
        while not (lowered := queue.control_periods()[-1].rate) < 0.9:
            kit.put(queue, BIG, control_draw=0.01 + 0.0001 * queue.info().records, flagged=False)
            if queue.counters().get(("control_demoted_total", "")):
                break
        assert queue.control_periods()[-1].rate <= 0.9, lowered
        assert both in ids(queue)
        late = kit.put(queue, BIG, control_draw=0.95, flagged=True, failure_probability=1.0)
        assert late.kept
        assert queue.info().control == sum(
            record.control_draw is not None and record.control_draw < record.control_rate for record in queue.peek()
        )


def test_a_stream_begins_anew_once_half_of_its_share_is_free(kit: Kit, small: Queue) -> None:
    with small as queue:
        fill(kit, queue, failure_probability=0.9)
        for draw in range(20, 0, -1):
            kit.put(queue, BIG, control_draw=draw / 100, flagged=False)
        low = queue.control_periods()[-1].rate
        assert low < 1
        first = [record.id for record in queue.peek() if record.control_draw is not None]
        assert len(first) == 4
        queue.acknowledge(first[:2])  # 400 kB of the 786 are held
        assert len(queue.control_periods()) == 1
        queue.acknowledge(first[2:3])
        old, new = queue.control_periods()
        assert (old.rate, new.rate, new.ended_ns) == (low, 1.0, None)
        assert old.ended_ns == new.began_ns
        second = kit.put(queue, control_draw=0.9, flagged=False).id
        rates = {record.id: record.control_rate for record in queue.peek(state=None)}
        assert rates[second] == 1
        assert all(rates[id] == low for id in first if id in rates)
        assert first[3] in rates


def test_a_record_that_goes_lowers_the_rate_of_every_period_that_competes(kit: Kit, small: Queue) -> None:
    def control() -> dict[str, float]:
        return {record.id: record.control_rate for record in queue.peek() if record.control_draw is not None}

    with small as queue:
        fill(kit, queue, failure_probability=0.9)
        early = [kit.put(queue, BIG, control_draw=draw, flagged=False).id for draw in (0.5, 0.1, 0.05, 0.04, 0.03)]
        assert set(control()) == {*early[1:]}
        queue.acknowledge(early[2:])
        assert [period.rate for period in queue.control_periods()] == [0.5, 1.0]
        late = [kit.put(queue, BIG, control_draw=draw, flagged=False).id for draw in (0.09, 0.08, 0.07, 0.06)]
        assert [period.rate for period in queue.control_periods()] == [0.1, 0.1]  # the largest draw of all has gone
        assert control() == dict.fromkeys(late, 0.1)
        kit.put(queue, BIG, control_draw=0.01, flagged=False)
        assert [period.rate for period in queue.control_periods()] == [0.1, 0.09]


@pytest.mark.parametrize("how", ["age", "bound"])
def test_a_stream_begins_anew_when_its_records_are_too_old_or_the_file_may_be_larger(
    kit: Kit, path: Path, clock: Any, how: str
) -> None:
    with Queue(path, max_bytes=4 * MB, max_age_s=100, clock=clock) as queue:
        fill(kit, queue, failure_probability=0.9)
        for draw in range(20, 0, -1):
            kit.put(queue, BIG, control_draw=draw / 100, flagged=False)
        queue.tidy()
        assert len(queue.control_periods()) == 1
        if how == "age":
            clock.pass_s(101)
            queue.tidy()
            assert [period.rate for period in queue.control_periods()][1:] == [1.0]
    with Queue(path, max_bytes=16 * MB, clock=clock) as queue:
        assert [period.rate for period in queue.control_periods()][1:] == [1.0]


def test_another_half_life_reorders_what_is_there(kit: Kit, path: Path, clock: Any) -> None:
    with Queue(path, half_life_s=10, clock=clock) as queue:
        old = kit.put(queue, failure_probability=0.9).id
        clock.pass_s(100)
        young = kit.put(queue, failure_probability=0.3).id
        assert [record.id for record in queue.peek(order="value")] == [young, old]
    with Queue(path, half_life_s=1e6, clock=clock) as queue:
        assert [record.id for record in queue.peek(order="value")] == [old, young]


def test_a_smaller_bound_is_kept_from_the_moment_of_opening(kit: Kit, path: Path, clock: Any) -> None:
    with Queue(path, max_bytes=32 * MB, clock=clock) as queue:
        there = [kit.put(queue, BIG, failure_probability=0.1 + n / 100).id for n in range(60)]
    assert path.stat().st_size > 11 * MB
    with Queue(path, max_bytes=8 * MB, clock=clock) as queue:
        left = ids(queue)
        assert left == there[-len(left) :]
        assert 20 < len(left) < 40
        assert path.stat().st_size + Path(f"{path}-wal").stat().st_size <= 8 * MB
        assert queue.check().ok


# --- everything in any order


class Machine(RuleBasedStateMachine):
    """The queue against what must hold of it, whatever is done."""

    kit: Kit
    folder: Callable[[], Path]

    def __init__(self) -> None:
        super().__init__()
        self.clock = self.kit.FakeClock()
        self.path = self.folder() / "q.db"
        self.records = dict[str, tuple[Record, bytes]]()
        self.there = dict[str, str]()
        """Id → state."""
        self.count = 0

    @initialize(half_life=st.sampled_from([10.0, 1e6]))
    def begin(self, half_life: float) -> None:
        self.half_life = half_life
        self.queue = self.open()

    def open(self) -> Queue:
        return Queue(self.path, max_bytes=4 * MB, half_life_s=self.half_life, clock=self.clock)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()

    def make(self, probability: float, size: int, draw: float | None) -> tuple[Record, list[Any]]:
        self.count += 1
        flagged = draw is None or self.count % 2 == 0
        record = self.kit.record(
            self.queue.new_id(), self.count, failure_probability=probability, control_draw=draw, flagged=flagged
        )
        picture = self.kit.picture(size, self.count)
        self.records[record.id] = (record, picture.data)
        return record, [picture]

    def counted(self) -> dict[tuple[str, str], int]:
        return self.queue.counters()

    def put(self, items: list[tuple[Record, list[Any], tuple[str, ...]]]) -> None:
        before, counters = dict(self.there), self.counted()
        self.remember()
        stored = self.queue.put_many(items)
        after = {record.id: record.state for record in self.queue.peek(state=None)}
        new = [record.id for record, _, _ in items]
        superseded = {id for _, _, ids in items for id in ids}
        gone = [id for id in [*before, *new] if id not in after]
        self.check_counters(counters, stored, gone, len(new))
        assert [one.kept for one in stored] == [id in after for id in new]
        assert set(after) <= {*before, *new}
        if len(items) == 1 and not superseded:
            self.check_victims(before, after, stored[0], [id for id in gone if id in before])
        self.there = after

    def check_counters(self, before: dict[Any, int], stored: list[Stored], gone: list[str], put: int) -> None:
        delta = {key: n - before.get(key, 0) for key, n in self.counted().items()}
        total = {name: sum(n for (key, _), n in delta.items() if key == name) for name, _ in delta}
        assert total.get("stored_total", 0) + total.get("refused_total", 0) == put
        assert total.get("evicted_total", 0) + total.get("refused_total", 0) == len(gone)

    def check_victims(self, before: dict[str, str], after: dict[str, str], stored: Stored, gone: list[str]) -> None:
        """Of a single put: nobody who stayed was less valuable than one who went."""
        waiting = [id for id in gone if before[id] == "queued"]
        if waiting:
            assert "pulled" not in [after[id] for id in before if id in after]
        stayed = [self.standing[id] for id in before if after.get(id) == "queued"]
        ranks = [rank for rank, draw in stayed if draw is None]
        draws = [draw for _, draw in stayed if draw is not None]
        for rank, draw in (self.standing[id] for id in waiting):
            # A control record that was flagged too may have left the stream first, and then gone by its rank.
            by_rank = draw is None and all(rank <= other for other in ranks)
            by_draw = draw is not None and all(draw >= other for other in draws)
            assert by_rank or by_draw
        if stored.reason == "full":
            assert ranks, "refused although nothing is there that is worth more"

    def remember(self) -> None:
        found = self.queue._database.db.execute("SELECT id, rank, draw FROM record")  # type: ignore[union-attr]
        self.standing = {id: (rank, draw) for id, rank, draw in found}

    @rule(
        probability=st.floats(0, 1),
        size=st.sampled_from([100, 20_000, 150_000, 330_000]),
        draw=st.none() | st.none() | st.floats(0, 0.999),
    )
    def put_one(self, probability: float, size: int, draw: float | None) -> None:
        record, pictures = self.make(probability, size, draw)
        self.put([(record, pictures, ())])

    @rule(sizes=st.lists(st.sampled_from([100, 60_000, 250_000]), min_size=1, max_size=6), data=st.data())
    def put_several(self, sizes: list[int], data: st.DataObject) -> None:
        known = list(self.there)
        items = []
        for size in sizes:
            old = tuple(data.draw(st.lists(st.sampled_from(known), max_size=2, unique=True))) if known else ()
            items.append((*self.make(data.draw(st.floats(0, 1)), size, None), old))
        self.put(items)

    @rule(people=st.integers(2, 4), size=st.sampled_from([100, 60_000, 250_000]), data=st.data(), at_once=st.booleans())
    def put_people(self, people: int, size: int, data: st.DataObject, at_once: bool) -> None:
        """Several people on one frame: they share its picture, also with one who came before."""
        known = [id for id in self.there if len(self.records[id][1]) <= 250_000]
        other = data.draw(st.none() | st.sampled_from(known)) if known else None
        made = [
            self.make(data.draw(st.floats(0, 1)), size, data.draw(st.none() | st.floats(0, 0.999)))
            for _ in range(people)
        ]
        shared = made[0][1][0].data if other is None else self.records[other][1]
        items: list[tuple[Record, list[Any], tuple[str, ...]]] = []
        for record, _ in made:
            self.records[record.id] = (record, shared)
            items.append((record, [Picture.of(shared, width=64, height=48, captured_ns=0)], ()))
        for group in [items] if at_once else [[item] for item in items]:
            self.put(group)

    @precondition(lambda self: self.there)
    @rule(data=st.data(), delete=st.booleans())
    def acknowledge(self, data: st.DataObject, delete: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from(list(self.there)), max_size=6, unique=True))
        assert self.queue.acknowledge(chosen) == sum(self.there[id] == "queued" for id in chosen)
        self.there.update(dict.fromkeys(chosen, "pulled"))
        if delete:
            assert self.queue.delete(chosen) == len(chosen)
            for id in chosen:
                del self.there[id]

    @precondition(lambda self: self.there)
    @rule(data=st.data(), force=st.booleans())
    def delete(self, data: st.DataObject, force: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from(list(self.there)), max_size=4, unique=True))
        may = [id for id in chosen if force or self.there[id] == "pulled"]
        assert self.queue.delete(chosen, force=force) == len(may)
        for id in may:
            del self.there[id]

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.clock.pass_s(seconds)

    @rule(back=st.booleans())
    def reopen(self, back: bool) -> None:
        self.queue.close()
        if back:
            self.clock.wall -= 10**12
        self.queue = self.open()

    @rule()
    def tidy(self) -> None:
        self.queue.tidy()

    @rule(size=st.sampled_from([10, 60_000]))
    def log_scores(self, size: int) -> None:
        self.queue.add_scores(bytes(size), device="d", bundle="0" * 64, began_ns=0, ended_ns=1, frames=size // 16)
        self.there = {record.id: record.state for record in self.queue.peek(state=None)}  # it may need room, too

    @invariant()
    def the_disk_holds_no_more_than_the_bound(self) -> None:
        if hasattr(self, "queue"):
            wal = Path(f"{self.path}-wal")
            assert self.path.stat().st_size + (wal.stat().st_size if wal.exists() else 0) <= 4 * MB

    @invariant()
    def everything_that_is_there_is_whole(self) -> None:
        if not hasattr(self, "queue"):
            return
        assert {record.id: record.state for record in self.queue.peek(state=None)} == self.there
        chosen = list(self.there)[:: max(1, len(self.there) // 3)]
        for record, [picture] in self.queue.pull(chosen):
            was, data = self.records[record.id]
            assert picture.data == data
            assert record.failure_probability == was.failure_probability
        assert self.queue.check().ok
        info, distinct = self.queue.info(), {self.records[id][1] for id in self.there}
        assert info.pictures >= len(distinct)
        assert info.bytes >= sum(map(len, distinct))
        counters = self.counted()
        assert len(self.there) == counters.get(("stored_total", ""), 0) - sum(
            n for (name, _), n in counters.items() if name in ("evicted_total", "deleted_total", "purged_total")
        )


def test_whatever_is_done_in_whatever_order(kit: Kit, tmp_path: Path) -> None:
    count = iter(range(10**6))

    def folder() -> Path:
        made = tmp_path / str(next(count))
        made.mkdir()
        return made

    Machine.kit, Machine.folder = kit, staticmethod(folder)
    limits = settings(
        max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(Machine, settings=limits)


# What it costs.


def test_every_question_of_eviction_and_of_the_numbers_is_answered_by_an_index(kit: Kit, path: Path) -> None:
    with Queue(path, max_bytes=4 * MB) as queue:
        while not queue.counters().get(("evicted_total", "full")):
            kit.put(queue, 50_000, control_draw=0.5)
            kit.put(queue, 50_000)
        asked: list[str] = []
        db = queue._database.db  # type: ignore[union-attr]
        db.set_trace_callback(asked.append)
        kit.put(queue, BIG)
        queue.info()
        db.set_trace_callback(None)
        selects = [sql for sql in asked if sql.startswith("SELECT") and "FROM record" in sql]
        assert len(selects) > 8
        for sql in selects:
            for *_, plan in db.execute(f"EXPLAIN QUERY PLAN {sql}"):
                assert "SCAN record" not in plan or "INDEX" in plan or "ORDER BY seq" in sql, (plan, sql)
                assert plan != "USE TEMP B-TREE FOR ORDER BY", (plan, sql)


def test_a_file_of_an_older_alpose_gets_the_index_when_it_is_written(kit: Kit, path: Path) -> None:
    with Queue(path) as queue:
        kept = kit.put(queue)
        queue._database.db.execute("DROP INDEX record_state")  # type: ignore[union-attr]
    with Queue(path, readonly=True) as queue:
        assert [record.id for record in queue.peek()] == [kept.id]
    with Queue(path) as queue:
        query = "SELECT 1 FROM sqlite_master WHERE name = 'record_state'"
        assert queue._database.db.execute(query).fetchone()  # type: ignore[union-attr]
        assert queue.check().ok


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="says how much a process reads")
def test_opening_reads_a_little_of_a_large_file(kit: Kit, path: Path) -> None:
    def read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    with Queue(path) as queue:
        queue._database.db.execute("PRAGMA synchronous = OFF")  # type: ignore[union-attr]
        for _ in range(60):
            kit.put(queue, 500_000)
    assert path.stat().st_size > 25 * MB
    before = read_bytes()
    with Queue(path):
        pass
    assert read_bytes() - before < 2 * MB
