"""Time that never runs backwards, on devices whose wall clock does."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpose.runtime.queue import Queue
from alpose.runtime.queue.clock import FARTHEST_NS, SANE_NS, QueueClock, start, time_ordered_id

Kit = Any
DAY_S = 86_400


@given(
    st.integers(0, 4 * 10**18),
    st.lists(st.tuples(st.integers(-(10**18), 10**18), st.integers(0, 10**15)), max_size=20),
)
def test_it_never_runs_backwards_whatever_the_wall_clock_does(
    kit: Kit, wall: int, jumps: list[tuple[int, int]]
) -> None:
    source = kit.FakeClock(wall)
    last = None
    seen = -1
    for jump, passed in jumps:  # every step is a reboot: the wall clock anywhere, the monotonic one from anew
        source.wall, source.monotonic = max(0, source.wall + jump), 0
        clock = QueueClock(source, start(source.wall_ns(), last))
        assert clock.now_ns() >= seen
        source.monotonic += passed
        seen = last = clock.now_ns()


def test_a_start_far_ahead_is_not_believed_and_one_from_an_unset_clock_is(kit: Kit) -> None:
    assert start(kit.now_ns + FARTHEST_NS + 1, kit.now_ns).counted == "clock_implausible_total"
    assert start(kit.now_ns + FARTHEST_NS, kit.now_ns).now_ns == kit.now_ns + FARTHEST_NS
    assert start(kit.now_ns - 1, kit.now_ns).counted == "clock_backwards_total"
    unset = start(kit.now_ns, 1000)
    assert (unset.now_ns, unset.counted, unset.redate_ns) == (kit.now_ns, None, kit.now_ns - 1000)


@given(st.lists(st.integers(0, 2**47 * 10**6), min_size=2, max_size=20))
def test_ids_sort_by_time_and_are_uuids(times: list[int]) -> None:
    ids = [time_ordered_id(time) for time in sorted(set(times))]

    prefixes = [id[:16] for id in ids]
    assert prefixes == sorted(prefixes)
    assert all(uuid.UUID(id).version == 7 and uuid.UUID(id).variant == uuid.RFC_4122 for id in ids)
    assert len({time_ordered_id(5) for _ in range(100)}) == 100


def test_a_wall_clock_that_is_set_back_is_counted_and_ages_nothing(kit: Kit, path: Path, clock: Any) -> None:
    with Queue(path, max_age_s=DAY_S, clock=clock) as queue:
        first = kit.put(queue)
        before = queue.now_ns()
        clock.wall -= 300 * DAY_S * 10**9
        second = kit.put(queue)
        assert queue.now_ns() >= before
        assert queue.counters()["clock_backwards_total", ""] == 1
    with Queue(path, max_age_s=DAY_S, clock=clock) as queue:  # a reboot with the wrong clock
        assert queue.counters()["clock_backwards_total", ""] == 2
        third = kit.put(queue)
        assert [record.id for record in queue.peek()] == [first.id, second.id, third.id]
        assert queue.now_ns() >= before


def test_a_jump_forward_while_it_runs_erases_nothing(kit: Kit, path: Path, clock: Any) -> None:
    with Queue(path, max_age_s=DAY_S, clock=clock) as queue:
        kit.put(queue)
        clock.wall += 3650 * DAY_S * 10**9
        queue.tidy()
        assert queue.info().records == 1
    with Queue(path, max_age_s=DAY_S, clock=clock) as queue:  # nor at the next start, where it is beyond belief
        assert queue.info().records == 1
        assert queue.counters()["clock_implausible_total", ""] == 1


def test_records_from_before_the_clock_was_set_do_not_age_by_fifty_years(kit: Kit, path: Path) -> None:
    unset = kit.FakeClock(wall_ns=60 * 10**9)
    with Queue(path, max_age_s=DAY_S, half_life_s=DAY_S, clock=unset) as queue:
        ids = []
        for _ in range(5):
            ids.append(kit.put(queue).id)
            unset.pass_s(60)
    with Queue(path, max_age_s=DAY_S, half_life_s=DAY_S, clock=kit.FakeClock()) as queue:
        assert [record.id for record in queue.peek()] == ids
        times = [ns for (ns,) in queue._database.db.execute("SELECT put_ns FROM record ORDER BY seq")]  # type: ignore[union-attr]
        assert SANE_NS < times[0] < times[-1] <= kit.now_ns
        assert times[-1] - times[0] == 240 * 10**9
        fresh = kit.put(queue)
        assert next(iter(queue.peek(1, order="value"))).id == fresh.id  # ranks were made anew, too


def test_what_was_kept_before_the_clock_was_set_ages_from_then_on_while_it_runs(kit: Kit, path: Path) -> None:
    """A car without a battery-backed clock: each drive starts in 1970, and learns the time some minutes later."""
    boots = [kit.now_ns, kit.now_ns + 10 * DAY_S * 10**9, kit.now_ns + 40 * DAY_S * 10**9]
    ids = []
    for real_ns in boots:
        clock = kit.FakeClock(wall_ns=60 * 10**9, monotonic_ns=0)
        with Queue(path, max_age_s=35 * DAY_S, clock=clock) as queue:
            ids.append(kit.put(queue).id)
            clock.pass_s(300)
            clock.wall = real_ns
            queue.tidy()
            assert queue.now_ns() == real_ns
            there = [record.id for record in queue.peek()]
    assert there == ids[1:]  # the first was kept forty days ago


def test_a_device_that_was_off_for_two_years_erases_what_is_too_old_after_a_day(
    kit: Kit, path: Path, clock: Any
) -> None:
    with Queue(path, max_age_s=30 * DAY_S, clock=clock) as queue:
        kit.put(queue)
    clock.pass_s(730 * DAY_S)
    clock.monotonic = 0
    with Queue(path, max_age_s=30 * DAY_S, clock=clock) as queue:  # such a clock may be wrong: nothing goes yet
        assert queue.info().records == 1
        clock.pass_s(DAY_S / 2)
        queue.tidy()
        assert queue.info().records == 1
    clock.pass_s(DAY_S)
    with Queue(path, max_age_s=30 * DAY_S, clock=clock) as queue:
        assert queue.info().records == 0
        assert queue.counters()["clock_implausible_total", ""] == 1
        assert queue.now_ns() == clock.wall


def test_files_that_were_moved_aside_are_bounded_in_number_and_age(kit: Kit, path: Path) -> None:
    for _ in range(7):
        path.write_bytes(bytes(20_000))
        with Queue(path) as queue:
            kit.put(queue)
    aside = [found for found in path.parent.iterdir() if ".damaged-" in found.name]
    assert len(aside) == 4
    os.utime(aside[0], (0, 0))
    with Queue(path, max_age_s=DAY_S) as queue:
        queue.tidy()
    assert sorted(found for found in path.parent.iterdir() if ".damaged-" in found.name) == sorted(aside[1:])


def test_age_limits_go_by_the_queues_clock(kit: Kit, path: Path, clock: Any) -> None:
    with Queue(path, max_age_s=100, clock=clock) as queue:
        old = kit.put(queue)
        clock.pass_s(60)
        new = kit.put(queue)
        clock.pass_s(39)
        queue.tidy()
        assert [record.id for record in queue.peek()] == [old.id, new.id]
        clock.pass_s(2)
        queue.tidy()
        assert [record.id for record in queue.peek()] == [new.id]
        assert queue.counters()["evicted_total", "age"] == 1
        clock.pass_s(1000)
    with Queue(path, max_age_s=100, clock=clock) as queue:  # opening is a deadline too
        assert queue.info().records == 0
        assert queue.counters()["evicted_total", "age"] == 2


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_time_is_refused(path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="max_age_s"):
        Queue(path, max_age_s=value)
