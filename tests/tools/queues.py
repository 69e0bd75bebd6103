"""Queues as devices fill them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from alpose.runtime.queue import Queue
from alpose.runtime.queue.record import Picture, Record
from alpose.runtime.skeleton import LSP

BUNDLE = "b" * 64


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where the machine has one: every write is still synced, and that takes no time there."""
    memory = "/dev/shm"
    with TemporaryDirectory(prefix="alpose-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def make_record(queue: Queue, rng: np.random.Generator, device: str = "car-1", **changes: Any) -> Record:
    embedding_D = rng.normal(size=16)
    embedding_D /= np.linalg.norm(embedding_D)
    values: dict[str, Any] = {
        "id": queue.new_id(), "captured_ns": int(rng.integers(1, 2**60)), "captured_monotonic_ns": 1, "device": device,
        "bundle": BUNDLE, "frame_width": 640, "frame_height": 480, "box": (10.0, 20.0, 300.0, 400.0), "place": "track",
        "keypoints_J2": rng.uniform(0, 400, (14, 2)).astype(np.float32),
        "scores_J": rng.random(14).astype(np.float32), "predicted_loss": float(rng.random()),
        "failure_probability": float(rng.random()), "embedding_D": embedding_D.astype(np.float16), "flagged": True,
        "reasons": (("budget", 0.9, 0.7),), "threshold": 0.7, "inclusion_probability": 1.0,
    }  # fmt: skip
    return Record(**{**values, **changes})


def fill(path: Path, count: int, *, device: str = "car-1", picture_bytes: int = 2000, seed: int = 0) -> list[str]:
    """Put records with one picture each into a queue, and the counts that a monitor would have added."""
    rng = np.random.default_rng([seed, count])
    with Queue(path) as queue:
        queue.add_bundle(BUNDLE, "driver", {"skeleton": LSP.to_json()})
        records = [make_record(queue, rng, device) for _ in range(count)]
        for record in records:
            data = rng.integers(0, 256, picture_bytes, dtype=np.uint8).tobytes()
            queue.put(record, [Picture.of(data, width=640, height=480, captured_ns=record.captured_ns)])
        queue.tally(
            device=device, bundle=BUNDLE, at_ns=10**18, frames=1000 * count, flagged=count, control=0, kept=count
        )
    return [record.id for record in records]
