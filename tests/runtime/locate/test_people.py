"""Several people on one frame: one copy, one picture, a record for each, and drift and clips of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime import Control, Monitor, Queue, Threshold
from alpose.runtime.bundle.keys import SEALING, generate_key
from alpose.runtime.frames import HostFrame
from alpose.runtime.queue.clips import PreviousFrames
from alpose.runtime.queue.images import PictureEncoder, decode
from alpose.runtime.queue.record import FrameCopy
from alpose.runtime.telemetry.counters import Counters

from ...fakes import scripted as fakes

Scripted: Any = fakes.Scripted

Make = Callable[..., Monitor]
DRIVER, CODRIVER = (5.0, 5.0, 25.0, 45.0), (35.0, 5.0, 60.0, 45.0)
SEATS = ["driver", "codriver"]
SECOND = 10**9


def frame(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def counting(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> list[object]:
    calls: list[object] = []
    real = getattr(kind, name)

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return real(*args, **named)

    monkeypatch.setattr(kind, name, counted)
    return calls


def test_a_frame_with_two_people_is_copied_encoded_and_stored_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = counting(monkeypatch, HostFrame, "to_rgb")
    encoded = counting(monkeypatch, PictureEncoder, "picture")
    with Queue(tmp_path / "q.db", media_type="image/png") as queue:
        monitor = make(queue, Threshold(0) | Control(rate=1.0), camera="cabin")
        for number in range(3):
            pixels = frame(number)
            kept = monitor.batch([pixels, pixels], [DRIVER, CODRIVER], SEATS, time_ns=(1 + number) * SECOND * 10**6)
            assert [verdict.kept for verdict in kept] == [True, True]
        assert monitor.flush(10)
        assert (len(copied), len(encoded)) == (3, 3)
        info = queue.info()
        assert (info.records, info.pictures) == (6, 3)
        pulled = queue.pull()
        assert {record.camera for record, _ in pulled} == {"cabin/driver", "cabin/codriver"}
        by_time: dict[int, list[str]] = {}
        for record, [picture] in pulled:
            number = record.captured_ns // SECOND // 10**6 - 1
            np.testing.assert_array_equal(decode(picture.data), frame(number))
            by_time.setdefault(record.captured_ns, []).append(picture.sha256)
        assert [len(set(pair)) for pair in by_time.values()] == [1, 1, 1]
        counts = monitor.stats().by("persons_total", "decision")
        assert counts["flagged"] == 6
        assert monitor.stats().by("frames_total", "decision")["flagged"] == 3


def test_a_sealed_frame_is_sealed_once_for_all_people_on_it(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("nacl")
    generate_key(tmp_path / "fleet", SEALING)
    with Queue(tmp_path / "q.db", seal_to=tmp_path / "fleet.pub") as queue:
        monitor = make(queue, Threshold(0))
        pixels = frame()
        monitor.batch([pixels, pixels], [DRIVER, CODRIVER], SEATS)
        assert monitor.flush(10)
        assert (queue.info().records, queue.info().pictures) == (2, 1)


def test_two_cameras_of_one_batch_share_nothing(make: Make, tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db") as queue:
        monitor = make(queue, Threshold(0))
        monitor.batch([frame(1), frame(2)], streams=["front", "rear"], time_ns=[10**18, 2 * 10**18])
        assert monitor.flush(10)
        assert (queue.info().records, queue.info().pictures) == (2, 2)
        assert {record.captured_ns for record in queue.peek()} == {10**18, 2 * 10**18}


def test_crops_of_two_people_are_two_pictures(make: Make, tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db", store="crop") as queue:
        monitor = make(queue, Threshold(0))
        pixels = frame()
        monitor.batch([pixels, pixels], [DRIVER, CODRIVER], SEATS)
        assert monitor.flush(10)
        assert (queue.info().records, queue.info().pictures) == (2, 2)


def test_people_on_a_frame_share_its_clip(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = counting(monkeypatch, HostFrame, "to_rgb")
    with Queue(tmp_path / "q.db", clip=(2, 2), media_type="image/png") as queue:
        script = [0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1]
        monitor = make(queue, Threshold(0.5), Scripted(lambda n: {"failure_probability": script[n // 2]}))
        for number in range(len(script)):
            pixels = frame(number)
            monitor.batch([pixels, pixels], [DRIVER, CODRIVER], SEATS)
        assert monitor.flush(10)
        assert len(copied) == len(script)
        pulled = queue.pull()
        assert len(pulled) == 2
        assert queue.info().pictures == 5
        for _, pictures in pulled:
            assert sorted(one.position for one in pictures) == [-2, -1, 0, 1, 2]
            for one in pictures:
                np.testing.assert_array_equal(decode(one.data), frame(3 + one.position))


def test_thirty_people_on_one_frame_are_handed_over_as_one(make: Make, tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db") as queue:
        monitor = make(queue, Threshold(0), handover_bytes=frame().nbytes)
        pixels = frame()
        verdicts = monitor.batch([pixels] * 30, [DRIVER] * 30, [f"seat-{n}" for n in range(30)])
        assert all(verdict.kept for verdict in verdicts)
        assert monitor.flush(10)
        assert (queue.info().records, queue.info().pictures) == (30, 1)
        assert monitor.stats().dropped == {}


def test_the_frames_before_count_once_for_all_people_on_them() -> None:
    counters = Counters()
    previous = PreviousFrames(3, 120, counters)
    for number in range(5):
        copy = FrameCopy(number, np.zeros((2, 5, 3), np.uint8))  # 30 bytes: three fit, and the next
        for camera in ("driver", "codriver", "child"):
            previous.add(camera, copy)
    for camera in ("driver", "codriver", "child"):
        assert [copy.captured_ns for copy in previous.of(camera)] == [2, 3, 4]
    assert counters.snapshot() == {}


def test_drift_is_tested_for_each_person_by_themselves(make: Make) -> None:
    script = Scripted(lambda number: {"failure_probability": 0.99 if number % 2 else 0.01 * (number % 40)})
    monitor = make(None, Threshold(0.5), script)
    pixels = frame()
    for number in range(120):
        monitor.batch([pixels, pixels], [DRIVER, CODRIVER], SEATS, time_ns=10**18 + 31 * number * SECOND)
    drift = monitor.stats().drift
    assert set(drift.streams) == set(SEATS)
    assert (drift.stream, drift.alarm, drift.direction) == ("codriver", True, "more failures")
    assert drift.streams["driver"].observed == drift.streams["codriver"].observed == 119
