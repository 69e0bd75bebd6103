"""Frames to annotate, made up."""

from __future__ import annotations

import numpy as np

from alpose.runtime.skeleton import Skeleton
from alpose.tools.labels import Task

WIDTH, HEIGHT = 641, 479


def make_task(rank: int, skeleton: Skeleton, seed: int = 0) -> Task:
    """A pose whose last joint lies outside of the image."""
    rng = np.random.default_rng([seed, rank])
    keypoints_J2 = rng.uniform([0, 0], [WIDTH - 1, HEIGHT - 1], (len(skeleton), 2))
    keypoints_J2[-1] = (-30.0, 10.0)
    low_2, high_2 = keypoints_J2[:-1].min(axis=0), keypoints_J2[:-1].max(axis=0)
    return Task(
        id=f"{rng.integers(2**62):032x}",
        rank=rank,
        width=WIDTH,
        height=HEIGHT,
        keypoints_J2=keypoints_J2,
        scores_J=rng.random(len(skeleton)),
        box_4=(float(low_2[0]), float(low_2[1]), float(high_2[0]), float(high_2[1])),
        failure_probability=round(float(rng.random()), 3),
        reason='budget 0.83 >= 0.71 & "far"',
        device="car-17",
    )
