from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime.queue import Clock, Picture, Queue, Record, Stored

NOON_NS = 1_760_000_000 * 10**9


class FakeClock(Clock):
    """A wall clock and a monotonic clock that only move when they are told to."""

    def __init__(self, wall_ns: int = NOON_NS, monotonic_ns: int = 5 * 10**9) -> None:
        self.wall, self.monotonic = wall_ns, monotonic_ns

    def wall_ns(self) -> int:
        return self.wall

    def monotonic_ns(self) -> int:
        return self.monotonic

    def pass_s(self, seconds: float) -> None:
        self.wall += round(seconds * 1e9)
        self.monotonic += round(seconds * 1e9)


def make_picture(size: int = 2000, seed: int = 0, **changes: Any) -> Picture:
    data = np.random.default_rng(seed).bytes(size)
    return Picture.of(data, **{"width": 64, "height": 48, "captured_ns": NOON_NS, **changes})


def make_record(id: str, seed: int = 0, **changes: Any) -> Record:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "id": id,
        "captured_ns": NOON_NS + seed,
        "captured_monotonic_ns": seed,
        "device": "car-17",
        "camera": "driver",
        "bundle": hashlib.sha256(b"bundle").hexdigest(),
        "frame_width": 640,
        "frame_height": 480,
        "box": (1.0, 2.5, 300.0, 400.0),
        "place": "track",
        "keypoints_J2": rng.normal(300, 50, (14, 2)).astype(np.float32),
        "scores_J": rng.random(14, dtype=np.float32),
        "predicted_loss": 1.25,
        "failure_probability": 0.5,
        "embedding_D": rng.random(8).astype(np.float16),
        "flagged": True,
        "reasons": (("budget", 0.83, 0.71),),
        "threshold": 0.71,
        "inclusion_probability": 1.0,
    }
    return Record(**{**values, **changes})


class Kit:
    """What the queue's tests are made of; a fixture, because test files cannot import each other."""

    FakeClock = FakeClock
    picture = staticmethod(make_picture)
    record = staticmethod(make_record)
    now_ns = NOON_NS

    def __init__(self) -> None:
        self._count = 0

    def put(self, queue: Queue, size: int = 2000, supersedes: tuple[str, ...] = (), **changes: Any) -> Stored:
        """One record with one picture, both different from all before."""
        self._count += 1
        record = make_record(queue.new_id(), self._count, **changes)
        pictures = [make_picture(size, self._count)] if size else []
        return queue.put(record, pictures, supersedes=supersedes)


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flagged.db"
