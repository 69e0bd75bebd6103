"""What a put costs on this disk: alone, in a group, without overwriting what is erased, and against a bare sync."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.queue import Item, Picture, Queue, Record

from .measure import interleave, paired, spread

PICTURE_BYTES = 60_000
"""Near a 640 × 480 JPEG of quality 90."""
GROUP = 8
MAX_BYTES = 16 << 20
"""Full before the measurement begins, so that every put evicts."""


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds per record, every contestant once per round."""
    rng = np.random.default_rng(0)
    with ExitStack() as stack:

        def queue(name: str) -> Queue:
            made = stack.enter_context(Queue(folder / f"{name}.db", max_bytes=MAX_BYTES))
            while not made.counters().get(("evicted_total", "full")):
                made.put_many([_item(made, rng) for _ in range(GROUP)])
            return made

        alone, group, careless = queue("alone"), queue("group"), queue("careless")
        assert careless._database is not None
        careless._database.db.execute("PRAGMA secure_delete = OFF")
        bare = os.open(folder / "bare", os.O_CREAT | os.O_WRONLY, 0o600)
        stack.callback(os.close, bare)
        block = rng.bytes(PICTURE_BYTES)

        def append() -> None:
            os.write(bare, block)
            os.fsync(bare)

        tasks: Mapping[str, Callable[[], object]] = {
            "append and fsync": append,
            "put": lambda: alone.put_many([_item(alone, rng)]),
            f"put, group of {GROUP}": lambda: group.put_many([_item(group, rng) for _ in range(GROUP)]),
            "put, secure_delete off": lambda: careless.put_many([_item(careless, rng)]),
        }
        seconds = interleave(tasks, rounds=rounds, warmup=5)
    return {
        "picture_bytes": PICTURE_BYTES,
        "rounds": rounds,
        "seconds_per_call": {name: {**asdict(spread(took)), "p99": float(np.quantile(took, 0.99))}
                             for name, took in seconds.items()},
        "secure_delete_over_none": asdict(spread(paired(seconds["put"], seconds["put, secure_delete off"]))),
    }  # fmt: skip


def _item(queue: Queue, rng: np.random.Generator) -> Item:
    """A record that is worth as much as all others: the oldest one goes for it."""
    record = Record(
        id=queue.new_id(),
        captured_ns=time.time_ns(),
        captured_monotonic_ns=time.monotonic_ns(),
        device="bench",
        bundle="0" * 64,
        frame_width=640,
        frame_height=480,
        box=(0.0, 0.0, 640.0, 480.0),
        place="box",
        keypoints_J2=rng.random((14, 2), dtype=np.float32),
        scores_J=rng.random(14, dtype=np.float32),
        predicted_loss=1.0,
        failure_probability=0.5,
        embedding_D=rng.random(64).astype(np.float16),
        flagged=True,
        inclusion_probability=1.0,
    )
    return record, [Picture.of(rng.bytes(PICTURE_BYTES), width=640, height=480, captured_ns=0)], ()
