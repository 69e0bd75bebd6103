from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alpose.runtime.signals import GAP_S, LEARN_EVERY_S, WARM_UP, Jumps, Limbs, Signals
from alpose.runtime.skeleton import LSP, Skeleton

Points = npt.NDArray[np.float32]

STANDING_J2 = np.array(
    [[-10, 100], [-10, 75], [-10, 50], [10, 50], [10, 75], [10, 100], [-30, 50], [-25, 25], [-15, 0], [15, 0], [25, 25],
     [30, 50], [0, -5], [0, -30]], dtype=np.float32)  # fmt: skip
SURE_J = np.ones(14, dtype=np.float32)


def jumps(*frames: tuple[float, Points, Any], side_px: float = 100.0) -> list[float]:
    measure = Jumps()
    return [
        measure.measure(points.tolist(), list(map(float, scores)), side_px, time_s) for time_s, points, scores in frames
    ]


def moved(joint: int, x: float, y: float = 0.0) -> Points:
    points_J2 = STANDING_J2.copy()
    points_J2[joint] += (x, y)
    return points_J2


def test_a_jump_is_the_farthest_way_of_a_joint_in_sides_of_the_box() -> None:
    still, jumped, back = jumps((0.0, STANDING_J2, SURE_J), (0.1, moved(3, 30, 40), SURE_J), (0.2, STANDING_J2, SURE_J))

    assert math.isnan(still)
    assert [jumped, back] == pytest.approx([0.5, 0.5])


def test_a_joint_that_is_unsure_in_either_frame_does_not_jump() -> None:
    unsure_J = SURE_J.copy()
    unsure_J[3] = 0.49
    values = jumps((0.0, STANDING_J2, SURE_J), (0.1, moved(3, 50), unsure_J), (0.2, STANDING_J2, SURE_J))

    assert values[1:] == [0.0, 0.0]


def test_after_a_gap_nothing_is_known_and_then_it_goes_on() -> None:
    late = GAP_S + 0.01
    values = jumps((0.0, STANDING_J2, SURE_J), (late, moved(3, 50), SURE_J), (late + 0.1, STANDING_J2, SURE_J))

    assert math.isnan(values[1])
    assert values[2] == pytest.approx(0.5)


@pytest.mark.parametrize("time_s", [0.0, -5.0])
def test_time_that_stands_or_runs_backwards_is_a_gap(time_s: float) -> None:
    assert math.isnan(jumps((0.0, STANDING_J2, SURE_J), (time_s, moved(3, 50), SURE_J))[1])


def test_where_frames_were_missed_the_way_counts_per_frame() -> None:
    frames = [(i / 10, STANDING_J2, SURE_J) for i in range(50)]
    value = jumps(*frames, (5.2, moved(3, 60), SURE_J))[-1]  # three intervals after 4.9

    assert value == pytest.approx(0.2)


def test_points_that_are_no_numbers_do_not_jump() -> None:
    lost_J2 = moved(3, math.nan)

    assert jumps((0.0, STANDING_J2, SURE_J), (0.1, lost_J2, SURE_J))[1] == 0.0
    assert math.isnan(jumps((0.0, STANDING_J2, SURE_J), (0.1, STANDING_J2, 0 * SURE_J))[1])
    assert math.isnan(jumps((0.0, STANDING_J2, SURE_J), (0.1, STANDING_J2, SURE_J), side_px=0.0)[1])


def poses(count: int, seed: int = 0, noise: float = 1.0) -> list[Points]:
    rng = np.random.default_rng(seed)
    return [STANDING_J2 * rng.uniform(0.5, 2) + rng.uniform(0, 500) + rng.normal(0, noise, (14, 2)).astype(np.float32)
            for _ in range(count)]  # fmt: skip


def taught(noise: float = 1.0, count: int = 4 * WARM_UP) -> Limbs:
    limbs = Limbs(LSP)
    for i, points_J2 in enumerate(poses(count, noise=noise)):
        limbs.measure(points_J2.tolist(), SURE_J.tolist(), i * LEARN_EVERY_S)
    return limbs


def test_nothing_is_known_until_enough_poses_were_seen() -> None:
    limbs = Limbs(LSP)
    values = [limbs.measure(p.tolist(), SURE_J.tolist(), i * LEARN_EVERY_S) for i, p in enumerate(poses(WARM_UP + 5))]

    assert all(map(math.isnan, values[:WARM_UP]))
    assert all(value >= 0 for value in values[WARM_UP:])


def test_neighbouring_frames_are_one_pose() -> None:
    limbs = Limbs(LSP)
    values = [limbs.measure(p.tolist(), SURE_J.tolist(), i / 30) for i, p in enumerate(poses(5 * WARM_UP))]

    assert all(map(math.isnan, values))  # twenty seconds


def test_a_limb_of_another_length_stands_out_at_any_distance() -> None:
    limbs = taught()
    usual = [limbs.measure(p.tolist(), SURE_J.tolist(), 1e4 + i) for i, p in enumerate(poses(100, seed=1))]
    long_J2 = 3 * moved(0, 0, 75)  # a shin four times as long, on a person three times as near
    short_J2 = 0.5 * moved(13, 0, 22)

    assert max(usual) < 5
    assert limbs.measure(long_J2.tolist(), SURE_J.tolist(), 2e4) > 10
    assert limbs.measure(short_J2.tolist(), SURE_J.tolist(), 2e4) > 10
    assert math.isnan(limbs.measure((long_J2 * 0 + 7).tolist(), SURE_J.tolist(), 2e4))  # all joints in one point


def test_mean_and_spread_are_those_of_the_poses() -> None:
    """A slow twin: the statistics of all poses at once."""
    all_poses = poses(3 * WARM_UP, noise=0.3)
    limbs = Limbs(LSP)
    for i, points_J2 in enumerate(all_poses):
        limbs.measure(points_J2.tolist(), SURE_J.tolist(), i * LEARN_EVERY_S)
    links_L2 = np.array(LSP.links)
    length_NL = np.array([np.hypot(*(p[links_L2[:, 1]] - p[links_L2[:, 0]]).T) for p in all_poses])
    log_NL = np.log(length_NL / np.sort(length_NL, axis=1)[:, [len(links_L2) // 2]])

    assert [limb.mean for limb in limbs._limbs] == pytest.approx(log_NL.mean(axis=0), abs=1e-6)
    assert [limb.variance for limb in limbs._limbs] == pytest.approx(log_NL.var(axis=0), rel=1e-4)


def test_failures_teach_little() -> None:
    limbs, broken = taught(), moved(0, 0, 75).tolist()
    values = [limbs.measure(broken, SURE_J.tolist(), 1e4 + i) for i in range(60)]

    assert min(values) > 5


def test_a_change_that_stays_is_learnt_in_the_end() -> None:
    limbs, other = taught(), moved(0, 0, 25).tolist()  # a shin twice as long: the camera hangs elsewhere now
    values = [limbs.measure(other, SURE_J.tolist(), 1e4 + i) for i in range(5000)]

    assert values[0] > 5
    assert values[-1] < 2


def test_joints_out_of_sight_are_not_judged() -> None:
    limbs, unsure_J = taught(), SURE_J.copy()
    unsure_J[0] = 0.2

    assert limbs.measure(moved(0, 0, 75).tolist(), unsure_J.tolist(), 1e4) < 5
    assert math.isnan(limbs.measure(STANDING_J2.tolist(), (0 * SURE_J).tolist(), 1e4))


def test_a_skeleton_without_links_has_no_limbs() -> None:
    signals = Signals(Skeleton("dots", ("a", "b"), (), ()))
    points_J2 = np.zeros((2, 2), dtype=np.float32)
    signals(points_J2, SURE_J[:2], 10.0, 0.0)

    jump, limbs = signals(points_J2 + 1, SURE_J[:2], 10.0, 0.1)
    assert jump == pytest.approx(math.sqrt(2) / 10)
    assert math.isnan(limbs)


@given(
    st.lists(
        st.tuples(arrays(np.float32, (14, 2)), arrays(np.float32, 14), st.floats(-1e6, 1e6), st.floats(width=32)),
        max_size=5,
    )
)
def test_no_pose_breaks_it(frames: list[tuple[Points, Any, float, float]]) -> None:
    signals = Signals(LSP)
    for points_J2, scores_J, time_s, side_px in frames:
        jump, limbs = signals(points_J2, scores_J, side_px, time_s)
        assert math.isnan(jump) or jump >= 0
        assert math.isnan(limbs) or limbs >= 0
