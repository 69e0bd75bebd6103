"""The recorder over a queue that does what it is told, so that every order of events can be had.

Shapes: H W frame.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.bundle.keys import SEALING, generate_key, opener
from alpose.runtime.crop import Crop, cut
from alpose.runtime.errors import ConfigError, QueueError
from alpose.runtime.logs import RateLimitedLog
from alpose.runtime.queue import clips, writer
from alpose.runtime.queue.clips import PendingRecord
from alpose.runtime.queue.eviction import Stored
from alpose.runtime.queue.images import PictureEncoder, decode
from alpose.runtime.queue.queue import Queue
from alpose.runtime.queue.record import Candidate, FrameCopy, Picture, Record, kept_region
from alpose.runtime.queue.recorder import Recorder
from alpose.runtime.queue.writer import QueueWriter
from alpose.runtime.telemetry.counters import Counters

from ...fakes import candidates
from ...fakes.candidates import counts, until

Make = Callable[..., Candidate]
Shoot = Callable[[int], FrameCopy]
PATIENCE_S = 20.0
"""Far beyond what anything takes here."""


@pytest.fixture
def make_candidate() -> Make:
    return cast(Make, candidates.make_candidate)


@pytest.fixture
def shot() -> Shoot:
    return cast(Shoot, candidates.make_shot)


class Scripted:
    """A queue in memory. ``fail`` holds what the next calls raise; ``gate`` holds them up while it is cleared."""

    def __init__(self, **settings: Any) -> None:
        self.store, self.quality, self.media_type, self.long_side = "full", 90, "image/png", 1920
        self.seal_to: Any = None
        self.path, self.readonly = "a queue", False
        self.clip = (0, 0)
        self.__dict__.update(settings)
        self.records: list[tuple[Record, Sequence[Picture], Sequence[str]]] = []
        self.groups: list[int] = []
        self.fail: list[Exception] = []
        self.refuse: dict[str, str] = {}
        self.reopened: list[bool] = []
        self.counted: list[tuple[str, str, int]] = []
        self.kept_house = self.entered = 0
        self.gate = threading.Event()
        self.gate.set()
        self._ids = 0

    def new_id(self) -> str:
        self._ids += 1
        return f"{self._ids:032x}"

    def put_many(self, items: Sequence[tuple[Record, Sequence[Picture], Sequence[str]]]) -> list[Stored]:
        self.entered += 1
        assert self.gate.wait(PATIENCE_S)
        if self.fail:
            raise self.fail.pop(0)
        if any(record.device == "poison" for record, _, _ in items):
            raise ValueError("no record")
        self.groups.append(len(items))
        stored = []
        for item in items:
            reason = self.refuse.get(item[0].camera)
            if reason is None:
                self.records.append(item)
            stored.append(Stored(item[0].id, reason is None, reason, "", 1))
        return stored

    def reopen(self, *, quarantine: bool = False) -> None:
        if self.fail and isinstance(self.fail[0], FileNotFoundError):
            raise self.fail.pop(0)
        self.reopened.append(quarantine)

    def apply_acknowledgements(self) -> None:
        self.kept_house += 1

    def tidy(self) -> None: ...

    def count(self, name: str, reason: str, n: int) -> None:
        self.counted.append((name, reason, n))


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Recorder, Scripted]]]:
    """A recorder on a scripted queue: ``start(clip=(1, 2), depth=3)``; closed when the test ends."""
    begun: list[tuple[Recorder, Scripted]] = []

    def make(**settings: Any) -> tuple[Recorder, Scripted]:
        queue = Scripted(**{key: settings.pop(key) for key in list(settings) if key in SETTINGS})
        made = Recorder(cast(Queue, queue), **{"retry_s": (0.01, 0.05), **settings})
        begun.append((made, queue))
        return made, queue

    yield make
    for made, queue in begun:
        queue.gate.set()
        queue.fail.clear()
        assert made.close()


SETTINGS = ("store", "quality", "media_type", "long_side", "seal_to", "clip")


def hold_up(made: Recorder) -> threading.Event:
    """Keep the encoder busy with the first frame, until the event is set."""
    released, well = threading.Event(), made.encoder.picture

    def picture(copy: FrameCopy, region: Any) -> Any:
        assert released.wait(PATIENCE_S)
        return well(copy, region)

    made.encoder.picture = picture  # type: ignore[method-assign]
    return released


def positions(item: tuple[Record, Sequence[Picture], Sequence[str]]) -> list[int]:
    return sorted(picture.position for picture in item[1])


# What is written.


def test_what_is_submitted_is_written_in_order(start: Any, make_candidate: Make, shot: Shoot) -> None:
    made, queue = start()

    assert all(made.submit(make_candidate(number)) for number in range(10))
    assert made.flush()

    assert [record.predicted_loss for record, _, _ in queue.records] == list(range(10))
    for number, (record, (picture,), _) in enumerate(queue.records):
        assert (record.store, record.frame_bytes, record.frame_sha256) == ("full", len(picture.data), picture.sha256)
        np.testing.assert_array_equal(decode(picture.data), shot(number).rgb_HW3)
        assert (picture.position, picture.captured_ns, picture.sealed) == (0, record.captured_ns, False)
    assert (made.state.waiting, made.state.written, made.state.waiting_bytes) == (0, 10, 0)


def test_numbers_of_the_trigger_become_ids_of_records(start: Any, make_candidate: Make) -> None:
    made, queue = start()

    made.submit(make_candidate(7, episode=3))
    made.submit(make_candidate(9, episode=3, supersedes=(7,)))
    made.submit(make_candidate(11, episode=4, supersedes=(9, 7, 5)))
    made.flush()

    first, second, third = (record for record, _, _ in queue.records)
    assert [record.episode for record in (first, second, third)] == [first.id, first.id, third.id]
    # 5 was never kept: it was dropped on its way, which is counted elsewhere.
    assert [supersedes for _, _, supersedes in queue.records] == [(), (first.id,), (second.id, first.id)]


def test_all_that_waits_goes_in_one_transaction(start: Any, make_candidate: Make) -> None:
    made, queue = start()
    queue.gate.clear()
    made.submit(make_candidate(0))
    until(lambda: queue.entered == 1)

    for number in range(1, 8):
        made.submit(make_candidate(number))
    until(lambda: len(made._threads._backlog) == 8)
    queue.gate.set()
    assert made.flush()

    assert queue.groups == [1, 7]


def test_many_threads_submit_at_once(start: Any, make_candidate: Make) -> None:
    made, queue = start(depth=1000)
    candidates = [make_candidate(number) for number in range(200)]

    threads = [
        threading.Thread(target=lambda part=part: [made.submit(candidate) for candidate in candidates[part::4]])
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.flush()

    assert sorted(record.predicted_loss for record, _, _ in queue.records) == list(range(200))


# What is dropped, and that it is counted.


def test_a_full_hand_over_drops_and_never_waits(start: Any, make_candidate: Make) -> None:
    made, queue = start(depth=3)
    encoder = hold_up(made)
    made.submit(make_candidate(0))
    until(lambda: not made._handover.waiting)

    taken = [made.submit(make_candidate(number)) for number in range(1, 6)]
    assert taken == [True, True, True, False, False]
    assert counts(made, "dropped_frames_total") == {"handover_full": 2}
    encoder.set()
    assert made.flush()
    assert made.submit(make_candidate(9))

    assert made.flush()
    assert [record.predicted_loss for record, _, _ in queue.records] == [0, 1, 2, 3, 9]


def test_the_hand_over_is_bounded_in_bytes_and_takes_one_of_any_size(start: Any, make_candidate: Make) -> None:
    made, _ = start(handover_bytes=1000)
    encoder = hold_up(made)
    made.submit(make_candidate(0))
    until(lambda: not made._handover.waiting)

    assert made.submit(make_candidate(1))
    assert not made.submit(make_candidate(2))
    encoder.set()
    assert made.flush()
    assert made.submit(make_candidate(3))


def test_nothing_is_raised_whatever_is_submitted(start: Any, make_candidate: Make) -> None:
    made, queue = start()

    assert not made.submit(cast(Candidate, None))
    assert made.submit(make_candidate(1, frame=FrameCopy(0, np.zeros((4, 4), np.uint8))))
    assert made.submit(make_candidate(2, crop=cast(Crop, "none"), frame=None))
    assert made.submit(make_candidate(3))
    assert made.flush()

    # The second has no colours; the third no pixels, which the queue wanted: its numbers are kept.
    assert [record.predicted_loss for record, _, _ in queue.records] == [2, 3]
    assert counts(made, "dropped_frames_total") == {"encode_error": 1, "internal": 1}
    assert counts(made, "internal_errors_total") == {"submit": 1}
    assert "a picture is a non-empty uint8" in str(made.state.last_error)


def test_a_record_that_the_queue_cannot_take_holds_up_no_other(start: Any, make_candidate: Make) -> None:
    made, queue = start()
    queue.gate.clear()
    poison = make_candidate(3)
    poison = dataclasses.replace(poison, record=dataclasses.replace(poison.record, device="poison"))
    for number in range(6):
        made.submit(poison if number == 3 else make_candidate(number))
    until(lambda: len(made._threads._backlog) == 6)
    queue.gate.set()
    assert made.flush()

    assert [record.predicted_loss for record, _, _ in queue.records] == [0, 1, 2, 4, 5]
    assert counts(made, "dropped_frames_total") == {"refused": 1}


def test_what_the_queue_refuses_is_counted_by_its_reason(start: Any, make_candidate: Make) -> None:
    made, queue = start()
    queue.refuse = {"big": "too_large", "dull": "full", "drawn": "control"}

    for camera in ("big", "dull", "drawn", "good"):
        made.submit(make_candidate(camera=camera))
    assert made.flush()

    assert [record.camera for record, _, _ in queue.records] == ["good"]
    assert counts(made, "dropped_frames_total") == {"too_large": 1, "queue_full": 1, "control": 1}
    assert made.state.written == 1


def test_drops_reach_the_log_and_not_through_the_camera(
    start: Any, make_candidate: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "alpose.monitor")
    made, _ = start(depth=1)
    encoder = hold_up(made)
    for number in range(20):
        made.submit(make_candidate(number))
    encoder.set()
    assert made.flush()

    until(lambda: any("found no room on their way to the queue" in record.message for record in caplog.records))
    assert {record.threadName for record in caplog.records} == {"alpose-recorder"}


# The disk fails and comes back.


@pytest.mark.parametrize(
    ("reason", "word"),
    [("full", "disk_full"), ("read_only", "readonly"), ("locked", "locked"), ("io", "io"), ("held", "held")],
)
def test_what_cannot_be_written_waits_until_it_can(start: Any, make_candidate: Make, reason: str, word: str) -> None:
    made, queue = start()
    queue.fail = [QueueError(reason, "the disk is unwell")] * 5

    made.submit(make_candidate(1))
    until(lambda: made.state.obstacle == word)
    made.submit(make_candidate(2))
    until(lambda: made.state.written == 2)

    assert [record.predicted_loss for record, _, _ in queue.records] == [1, 2]
    assert counts(made, "write_errors_total") == {word: 5}
    assert counts(made, "dropped_frames_total") == {}
    assert made.state.obstacle is None
    assert "the disk is unwell" in str(made.state.last_error)
    assert bool(queue.reopened) == (reason in ("read_only", "io"))


def test_while_the_disk_fails_frames_wait_encoded_and_then_drop_by_its_name(
    start: Any, make_candidate: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BACKLOG_BYTES", 100_000)  # some ten pictures of 9 kB
    made, queue = start(depth=2)
    queue.fail = [QueueError("full", "no room")] * 10**6

    made.submit(make_candidate(0))
    until(lambda: made.state.obstacle == "disk_full")
    taken = 1
    while made.submit(make_candidate(taken)) or made._handover.waiting < 2:
        taken += 1
        time.sleep(0.005)
        assert taken < 1000

    assert set(counts(made, "dropped_frames_total")) == {"disk_full"}
    kept = made.state.waiting
    assert 10 < kept < 20
    assert not made.flush()
    assert not made.flush(0.05)
    queue.fail = []
    assert made.flush(PATIENCE_S)
    assert len(queue.records) == kept


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("reason", ["moved", "damaged"])
def test_a_file_that_moved_is_opened_anew_at_once(start: Any, make_candidate: Make, reason: str, times: int) -> None:
    made, queue = start()
    queue.fail = [QueueError(reason, "where is it?")] * times

    made.submit(make_candidate())

    assert made.flush()
    # Another process may have put a whole file in the place of a damaged one: that one is not moved aside.
    assert queue.reopened == [False, reason == "damaged"][:times]
    assert len(queue.records) == 1
    assert counts(made, "write_errors_total") == {reason: times}


def test_attempts_become_rarer_and_transactions_small_and_large_again(make_candidate: Make) -> None:
    now_s, counters, queue = [0.0], Counters(), Scripted()
    writer = QueueWriter(
        cast(Queue, queue), lambda queue: None, (), retry_s=(1.0, 5.0), counters=counters,
        limited_log=RateLimitedLog(logging.getLogger("test")), monotonic=lambda: now_s[0],
    )  # fmt: skip
    candidate = make_candidate()
    items = [PendingRecord(number, candidate, None, [], 0, 0.0) for number in range(10)]
    queue.put_many = lambda items: [Stored("", True, None, "", 1)] * len(items)  # type: ignore[method-assign]
    well = queue.put_many

    def fail(items: object) -> list[Stored]:
        raise QueueError("full", "no")

    queue.put_many = fail  # type: ignore[method-assign]
    tried = []
    for _ in range(5):
        assert writer.write(items) == 0
        tried.append(now_s[0])
        now_s[0] = writer.retry_at_s - 0.01
        failures = writer.failures
        assert writer.write(items) == 0
        assert writer.failures == failures  # it is not time yet
        now_s[0] = writer.retry_at_s
    assert np.diff(tried).tolist() == [1, 2, 4, 5]
    queue.put_many = well  # type: ignore[method-assign]
    assert [writer.write(items) for _ in range(5)] == [1, 2, 4, 8, 10]
    assert (writer.obstacle, writer.written, writer.failures) == (None, 25, 5)


def test_close_gives_up_what_cannot_be_written_and_says_so(
    start: Any, make_candidate: Make, caplog: pytest.LogCaptureFixture
) -> None:
    made, queue = start()
    queue.fail = [QueueError("read_only", "no")] * 10**6
    made.submit(make_candidate(0))
    made.submit(make_candidate(1))

    assert made.close(0.1)

    assert counts(made, "dropped_frames_total") == {"readonly": 2}
    assert "2 frames were given up at the end" in caplog.text
    assert not made.submit(make_candidate(2))
    assert counts(made, "dropped_frames_total") == {"readonly": 2, "closed": 1}
    assert made.close()


def test_a_fault_of_ours_ends_nothing(start: Any, make_candidate: Make) -> None:
    made, queue = start()
    well, faults = made._threads._clips.close_late, [1, 2]

    def close_late(now_s: float) -> None:
        if faults:
            faults.pop()
            raise KeyError("a bug")
        well(now_s)

    made._threads._clips.close_late = close_late
    made.submit(make_candidate())

    assert made.flush(PATIENCE_S)
    assert len(queue.records) == 1
    assert counts(made, "internal_errors_total") == {"recorder": 2}


# Maintenance.


def test_maintenance_is_done_once_a_minute_and_at_the_end(start: Any, make_candidate: Make) -> None:
    now_s, done = [0.0], []

    def chore(queue: Queue) -> None:
        done.append(now_s[0])
        raise KeyError("always")

    made, queue = start(maintenance=(chore,), monotonic=lambda: now_s[0])
    made.submit(make_candidate())
    made.flush()
    assert done == []
    for _ in range(2):
        now_s[0] += 60.0
        made._handover.wake()
        until(lambda: done[-1:] == now_s)
    now_s[0] = 130.0
    made.close()

    assert done == [60.0, 120.0, 130.0]
    assert queue.kept_house == 3
    assert counts(made, "internal_errors_total") == {"maintenance": 3}


def test_the_file_learns_of_frames_that_never_reached_it(start: Any, make_candidate: Make) -> None:
    made, queue = start(maintenance_every_s=0.01)
    queue.refuse = {"big": "too_large"}  # counts it itself
    made.submit(make_candidate(camera="big"))
    made.submit(cast(Candidate, None))
    until(lambda: len(queue.counted) == 1)
    made.submit(cast(Candidate, None))
    made.submit(cast(Candidate, None))
    made.close()

    assert {(name, reason) for name, reason, _ in queue.counted} == {("dropped_frames_total", "internal")}
    assert sum(n for _, _, n in queue.counted) == 3


# Clips.


def test_a_clip_has_the_frames_around_the_frame(start: Any, make_candidate: Make, shot: Shoot) -> None:
    made, queue = start(clip=(2, 3))
    taken = []

    def frame(number: int, camera: str = "a") -> bool:
        def take() -> FrameCopy:
            taken.append((camera, number))
            return shot(number)

        return cast(bool, made.follow(camera, take))

    assert not frame(1)
    made.submit(make_candidate(2, camera="a", before=(shot(99), shot(0), shot(1))))
    assert frame(3)
    assert not frame(3, "b")
    made.submit(make_candidate(3, camera="a", before=(shot(1), shot(2))))
    assert [frame(number) for number in (4, 5, 6, 7)] == [True, True, True, False]
    until(lambda: made.state.written == 2)

    assert taken == [("a", number) for number in (3, 4, 5, 6)]
    assert len({record.id for record, _, _ in queue.records}) == 2
    for record, pictures, _ in queue.records:
        middle = int(record.predicted_loss)
        assert sorted(picture.position for picture in pictures) == [-2, -1, 0, 1, 2, 3]
        for picture in pictures:
            expected = shot(middle + picture.position)
            assert picture.captured_ns == expected.captured_ns
            np.testing.assert_array_equal(decode(picture.data), expected.rgb_HW3)
    assert counts(made, "dropped_pictures_total") == {}


def test_a_clip_goes_with_what_it_has_when_frames_stop_or_somebody_flushes(
    start: Any, make_candidate: Make, shot: Shoot
) -> None:
    made, queue = start(clip=(1, 5), clip_timeout_s=0.05)

    made.submit(make_candidate(0, before=(shot(9),)))
    made.follow("", lambda: shot(1))
    until(lambda: made.state.written == 1)
    assert positions(queue.records[0]) == [-1, 0, 1]

    patient, other = start(clip=(0, 5))
    patient.submit(make_candidate(0))
    patient.follow("", lambda: shot(1))
    assert patient.flush()
    assert positions(other.records[0]) == [0, 1]
    patient.submit(make_candidate(1))
    patient.close()
    assert len(other.records) == 2


def test_a_clip_that_lost_a_frame_keeps_the_places_of_the_others(start: Any, make_candidate: Make, shot: Shoot) -> None:
    made, queue = start(clip=(0, 3))
    made.submit(make_candidate(0))
    made.follow("", lambda: shot(1))

    def broken() -> FrameCopy:
        raise MemoryError

    assert not made.follow("", lambda: FrameCopy(0, cast(Any, None)))
    assert made.follow("", lambda: shot(3))
    until(lambda: made.state.written == 1)

    assert positions(queue.records[0]) == [0, 1, 3]
    assert counts(made, "internal_errors_total") == {"follow": 1}


def test_a_clip_is_bounded_and_its_frame_comes_first(
    start: Any, make_candidate: Make, shot: Shoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "CLIP_BYTES", 30_000)  # three pictures of 9 kB
    made, queue = start(clip=(9, 0))

    made.submit(make_candidate(0, before=tuple(shot(number) for number in range(9))))
    assert made.flush()

    assert positions(queue.records[0]) == [-3, -2, -1, 0]
    assert counts(made, "dropped_pictures_total") == {"clip_bytes": 6}


def test_a_clip_yields_to_its_frame_where_there_is_little_room(start: Any, make_candidate: Make, shot: Shoot) -> None:
    made, queue = start(clip=(3, 1), handover_bytes=30_000)  # three frames of 9216 bytes
    encoder = hold_up(made)
    made.submit(make_candidate(0))
    until(lambda: not made._handover.waiting)

    assert made.submit(make_candidate(1))
    assert made.submit(make_candidate(2, before=(shot(0), shot(1))))
    encoder.set()
    assert made.flush()

    assert positions(queue.records[2]) == [0]
    assert counts(made, "dropped_pictures_total") == {"handover_full": 2}


def test_clips_of_many_cameras_are_bounded_and_what_they_lack_is_counted(
    start: Any, make_candidate: Make, shot: Shoot
) -> None:
    made, queue = start(clip=(0, 2), depth=10_000, clip_timeout_s=60.0)
    most = 64
    for number in range(3 * most):
        camera = f"person-{number}"
        assert made.submit(make_candidate(number, camera=camera))
        assert made.follow(camera, lambda number=number: shot(number))
    assert len(made._clips) == most
    assert counts(made, "dropped_pictures_total") == {"many_streams": 2 * most}  # each lacks its second frame
    assert not made.follow("person-0", lambda: shot(0))
    # A name that comes back begins anew, and takes no frame for one of its old clip.
    assert made.submit(make_candidate(999, camera="person-0"))
    assert made.follow("person-0", lambda: shot(1))
    assert made.follow("person-0", lambda: shot(2))
    assert made.flush()
    old, new = (one for one in queue.records if one[0].camera == "person-0")
    assert (positions(old), positions(new)) == ([0, 1], [0, 1, 2])


def test_settings_that_cannot_be_carried_out_are_refused() -> None:
    with pytest.raises(ConfigError, match="200 before and 100 after"):
        Recorder(cast(Queue, Scripted(clip=(200, 100))))
    with pytest.raises(ConfigError, match="a queue was opened for reading alone"):
        Recorder(cast(Queue, Scripted(readonly=True)))
    with pytest.raises(ConfigError, match="depth is at least 1"):
        Recorder(cast(Queue, Scripted()), depth=0)


# Privacy.


@settings(max_examples=60, deadline=None)
@given(
    x0=st.floats(-60, 90),
    y0=st.floats(-60, 90),
    side=st.floats(8, 150),
    size_px=st.integers(4, 40),
    seed=st.integers(0, 99),
)
def test_a_crop_is_what_the_net_saw_and_nothing_else(
    x0: float, y0: float, side: float, size_px: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    frame_HW3 = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    crop = Crop.square(x0, y0, side, size_px)
    maker = PictureEncoder(store="crop", media_type="image/png", quality=90, long_side=None, seal_to=None)

    region = kept_region(maker.store, crop, 64, 48)

    if region is None:  # the net saw nothing of the frame
        assert not cut(frame_HW3, crop).any()
        return
    left, top, right, bottom = region
    assert 0 <= left < right <= 64
    assert 0 <= top < bottom <= 48
    reach = max(crop.scale, 1) - crop.scale / 2  # the filter's; the rest is whole pixels
    assert left > min(x0 - reach - 1, 62)
    assert right < max(x0 + side + reach + 2, 2)
    picture, _ = maker.picture(FrameCopy(0, frame_HW3), region)
    # Whether the camera's thread copied the frame or the region alone, the bytes are the same.
    alone, _ = maker.picture(FrameCopy(0, frame_HW3[top:bottom, left:right].copy(), (left, top)), region)
    assert alone.data == picture.data
    # What lies outside has no influence on a single bit.
    other_HW3 = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    other_HW3[top:bottom, left:right] = frame_HW3[top:bottom, left:right]
    assert maker.picture(FrameCopy(0, other_HW3), region)[0].data == picture.data
    # And it is enough: the net's input comes out again.
    black_HW3 = np.zeros_like(frame_HW3)
    black_HW3[top:bottom, left:right] = decode(picture.data)
    np.testing.assert_array_equal(cut(black_HW3, crop), cut(frame_HW3, crop))
    assert picture.origin == (left - 0.5, top - 0.5)


def test_the_crop_of_a_known_box() -> None:
    # Samples are 30 / 16 px wide; the first one's filter reaches half of that beyond the edge at 15.
    assert kept_region("crop", Crop.square(15.0, 10.0, 30.0, 16), 64, 48) == (14, 9, 47, 42)
    assert kept_region("crop", Crop.square(-500.0, 10.0, 30.0, 16), 64, 48) is None
    assert kept_region("full", Crop.square(15.0, 10.0, 30.0, 16), 64, 48) == (0, 0, 64, 48)
    assert kept_region("keypoints", Crop.square(15.0, 10.0, 30.0, 16), 64, 48) is None


def test_a_crop_alone_is_kept_also_of_clips(start: Any, make_candidate: Make, shot: Shoot) -> None:
    made, queue = start(store="crop", clip=(1, 1))

    made.submit(make_candidate(5, before=(shot(4),)))
    made.follow("", lambda: shot(6))
    assert made.flush()

    ((record, pictures, _),) = queue.records
    assert record.store == "crop"
    assert sorted(picture.position for picture in pictures) == [-1, 0, 1]
    for picture in pictures:
        expected_HW3 = shot(5 + picture.position).rgb_HW3[9:42, 14:47]
        np.testing.assert_array_equal(decode(picture.data), expected_HW3)
        assert picture.origin == (13.5, 8.5)


def test_a_person_outside_the_frame_has_no_crop(start: Any, make_candidate: Make) -> None:
    made, queue = start(store="crop")

    made.submit(make_candidate(crop=Crop.square(500.0, 10.0, 30.0, 16)))
    assert made.flush()

    assert positions(queue.records[0]) == []
    assert queue.records[0][0].frame_sha256 is None
    assert counts(made, "dropped_pictures_total") == {"outside_frame": 1}


def test_keypoints_alone_hold_no_picture_even_where_one_is_handed_over(
    start: Any, make_candidate: Make, shot: Shoot
) -> None:
    made, queue = start(store="keypoints", clip=(1, 1))

    made.submit(make_candidate(0, before=(shot(1),)))
    made.follow("", lambda: shot(2))
    made.submit(make_candidate(1, frame=None))
    assert made.flush()

    assert [(record.store, len(pictures)) for record, pictures, _ in queue.records] == [("keypoints", 0)] * 2
    assert queue.records[0][0].embedding_D.shape == (16,)  # kept, as the documentation says
    assert counts(made, "dropped_pictures_total") == {}


def test_sealed_frames_open_with_the_fleets_key_alone(
    start: Any, make_candidate: Make, shot: Shoot, tmp_path: Path
) -> None:
    pytest.importorskip("nacl")
    public = generate_key(tmp_path / "fleet", SEALING)
    made, queue = start(seal_to=public, clip=(1, 0))

    made.submit(make_candidate(3, before=(shot(2),)))
    assert made.flush()

    ((record, pictures, _),) = queue.records
    assert all(picture.sealed and b"PNG" not in picture.data[:8] for picture in pictures)
    assert record.frame_sha256 == pictures[0].sha256
    for picture in pictures:
        opened_HW3 = decode(opener(tmp_path / "fleet")(picture.data))
        np.testing.assert_array_equal(opened_HW3, shot(3 + picture.position).rgb_HW3)


def test_a_frame_that_cannot_be_sealed_is_never_kept_open(start: Any, make_candidate: Make, tmp_path: Path) -> None:
    pytest.importorskip("nacl")
    made, queue = start(seal_to=generate_key(tmp_path / "fleet", SEALING))

    def fail(data: bytes) -> bytes:
        raise RuntimeError("no entropy")

    made.encoder._seal = fail
    made.submit(make_candidate())
    assert made.flush()

    assert queue.records == []
    assert counts(made, "dropped_frames_total") == {"encode_error": 1}


# Fork.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_neither_hangs_nor_writes(start: Any, make_candidate: Make) -> None:
    made, queue = start()
    with made._producers:  # as if another thread were submitting
        child = os.fork()
        if not child:
            try:
                good = (
                    not made.submit(make_candidate(1))
                    and not made.follow("", lambda: cast(FrameCopy, None))
                    and not made.flush(1)
                    and made.close()
                    and counts(made, "dropped_frames_total") == {"forked": 1}
                    and not queue.records
                )
                os._exit(0 if good else 1)
            finally:
                os._exit(2)
    deadline_s = time.monotonic() + PATIENCE_S
    while (result := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline_s:
            os.kill(child, 9)
        time.sleep(0.005)
    assert os.waitstatus_to_exitcode(result[1]) == 0

    assert made.submit(make_candidate(2))
    assert made.flush()
    assert [record.predicted_loss for record, _, _ in queue.records] == [2]
