"""Agreement with the last frames: what it says of frames whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from bench.temporal import FAR, LAST, ROWS, compare, evidence, walked

J = 14


def test_scenes_are_drawn_from_their_seed_and_every_joint_is_known() -> None:
    one, same, other = (walked(seed, 2, frames=6) for seed in (1, 1, 2))

    assert len(one) == 12
    assert one.groups == ("0",) * 6 + ("1",) * 6
    np.testing.assert_array_equal(one.images.read(7), same.images.read(7))
    np.testing.assert_array_equal(one.joints_NJ2, same.joints_NJ2)
    assert not np.array_equal(one.joints_NJ2, other.joints_NJ2)
    assert one.labelled_NJ.all()


def test_people_walk_on_from_one_frame_to_the_next() -> None:
    way_FJ = np.linalg.norm(np.diff(walked(1, 1).joints_NJ2, axis=0), axis=2)

    assert 0 < way_FJ.mean() < 8  # pixels, of a person some 100 high


def test_who_walks_on_evenly_is_steady_and_who_jumps_is_not() -> None:
    even_FJ2 = np.linspace(0, 0.2, 10)[:, None, None] * np.ones((1, J, 2))
    jumped_FJ2 = even_FJ2.copy()
    jumped_FJ2[6] += 0.5
    head_F = np.zeros(10)
    even, jumped = evidence(even_FJ2, head_F), evidence(jumped_FJ2, head_F)

    assert even["unsteady"][2:].max() == pytest.approx(0, abs=1e-9)
    assert jumped["unsteady"][6] == jumped["moved"][6] == jumped["apart"][6] == pytest.approx(FAR)
    assert even["moved"][0] == even["apart"][0] == 0  # nothing to be compared with


def test_no_frame_knows_what_comes_after_it() -> None:
    rng = np.random.default_rng(0)
    keypoints_FJ2, head_F = rng.random((12, J, 2)), rng.random(12)
    whole, until = evidence(keypoints_FJ2, head_F), evidence(keypoints_FJ2[:8], head_F[:8])

    for name, value_F in until.items():
        np.testing.assert_allclose(value_F, whole[name][:8], err_msg=name)
    assert whole["recent"][11] == pytest.approx(head_F[11 - LAST :].mean())


def test_evidence_that_tells_failures_raises_the_rows_that_read_it() -> None:
    """The head is noise; who fails jumps."""
    rng = np.random.default_rng(0)
    failed_N = rng.random(400) < 0.3
    keypoints_NJ2 = np.where(failed_N[:, None, None], 0.5 * rng.random((400, J, 2)), 0.5)
    seen = {"keypoints": keypoints_NJ2, "head": rng.normal(size=400), "right": np.where(failed_N, 0.1, 0.9)}
    scores, failed_M, scene_M = compare(seen, frames=20)

    assert set(scores) == set(ROWS)
    assert len(failed_M) == 200
    assert set(scene_M.tolist()) == set(range(10))
    apart = scores["head and agreement"][failed_M].mean() - scores["head and agreement"][~failed_M].mean()
    alone = scores["head"][failed_M].mean() - scores["head"][~failed_M].mean()
    assert apart > alone + 0.1
