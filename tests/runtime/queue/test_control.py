"""The control stream stays a sample from which totals over all frames follow, however often it is thinned and begins anew.

Shapes: T trials, P parts of the stream.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.queue import Queue, Record

Kit = Any
MB = 1 << 20
FRAMES = 600
RATE = 0.3
"""At which frames are drawn."""
HARVESTS = {200: 0.7, 400: 0.7}
"""After so many frames a harvest takes this share of what is there, the newest, and the rest stays."""
TRIALS = 24
SIZE = 23_000
PARTS = 3


def one_trial(kit: Kit, path: Path, seed: int) -> tuple[list[float], int, int]:
    """How many frames each third of the stream had, by estimate; how many periods there were, and records to estimate by."""
    rng = np.random.default_rng(seed)
    estimate = [0.0] * PARTS
    with Queue(path, max_bytes=4 * MB) as queue:
        queue._database.db.execute("PRAGMA synchronous = OFF")  # type: ignore[union-attr]
        for n in range(14):  # flagged frames fill the queue
            queue.put(kit.record(queue.new_id(), 10_000 + n), [kit.picture(200_000, 10_000 + n)])
        number_of: dict[str, int] = {}

        def weigh(records: list[Record]) -> int:
            for one in records:
                estimate[number_of[one.id] * PARTS // FRAMES] += 1 / min(RATE, one.control_rate)
            return len(records)

        used = 0
        for number in range(FRAMES):
            draw = float(rng.random())
            if draw < RATE:
                record = kit.record(queue.new_id(), number, control_draw=draw, flagged=False, failure_probability=0.0)
                number_of[record.id] = number
                queue.put(record, [kit.picture(SIZE, number)])
            if number + 1 in HARVESTS:
                there = in_stream(queue)
                taken = there[round((1 - HARVESTS[number + 1]) * len(there)) :]
                used += weigh(taken)
                queue.acknowledge(one.id for one in taken)
        used += weigh(in_stream(queue))
        periods = len(queue.control_periods())
    return estimate, periods, used


def in_stream(queue: Queue) -> list[Record]:
    """Queued records of the control stream at its present rate, oldest first."""
    return [one for one in queue.peek() if one.control_draw is not None and one.control_draw < one.control_rate]


def test_totals_over_all_frames_are_unbiased_through_periods_and_partial_harvests(kit: Kit, tmp_path: Path) -> None:
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        trials = [one_trial(kit, Path(folder) / f"{seed}.db", seed) for seed in range(TRIALS)]
    estimate_TP = np.array([estimate for estimate, _, _ in trials]) / (FRAMES / PARTS)
    assert np.mean([periods >= 3 for _, periods, _ in trials]) > 0.9  # it did begin anew
    assert np.mean([used for _, _, used in trials]) < 0.75 * RATE * FRAMES  # and was thinned
    error_P = estimate_TP.std(axis=0, ddof=1) / np.sqrt(TRIALS)
    assert error_P.max() < 0.06
    np.testing.assert_array_less(np.abs(estimate_TP.mean(axis=0) - 1), 3 * error_P)
