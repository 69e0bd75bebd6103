"""Frames that are to be kept, each of which looks different.

Shapes: H W frame, J joints, D embedding.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from alpose.runtime.crop import Crop
from alpose.runtime.queue.record import Candidate, FrameCopy, Record

WIDTH, HEIGHT = 64, 48


def make_candidate(sequence: int = 0, **changes: Any) -> Candidate:
    """``make_candidate(3, camera="b", before=(shot,))``: fields of the candidate, and two of its record."""
    rng = np.random.default_rng(sequence)
    record = Record(
        captured_ns=10**18 + sequence * 10**8,
        captured_monotonic_ns=sequence * 10**8,
        device="a device",
        camera=changes.pop("camera", ""),
        bundle="ab" * 32,
        frame_width=WIDTH,
        frame_height=HEIGHT,
        box=(20.0, 10.0, 40.0, 40.0),
        place="box",
        keypoints_J2=rng.uniform(0, 48, (14, 2)).astype(np.float32),
        scores_J=rng.random(14, dtype=np.float32),
        predicted_loss=float(sequence),
        failure_probability=changes.pop("failure_probability", 0.5),
        embedding_D=rng.random(16).astype(np.float16),
        flagged=True,
        inclusion_probability=0.5,
    )
    values: dict[str, Any] = {"frame": make_shot(sequence), "crop": Crop.square(15.0, 10.0, 30.0, 16), **changes}
    return Candidate(record=record, sequence=sequence, **values)


def make_shot(seed: int) -> FrameCopy:
    """A frame of noise, taken at the time of the candidate with the same number."""
    noise_HW3 = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return FrameCopy(10**18 + seed * 10**8, noise_HW3)


def until(true: Callable[[], bool], patience_s: float = 30.0) -> None:
    """Wait for what another thread brings about; far less than the patience is enough."""
    deadline_s = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.002)


def counts(recorder: Any, name: str) -> dict[str, int]:
    """How often a counter of a recorder was raised, by its reason."""
    return {key.labels[0][1]: n for key, n in recorder.counters.snapshot().items() if key.name == name}
