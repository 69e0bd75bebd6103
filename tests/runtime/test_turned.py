"""Crops that turn with the body: each pose turns the next crop of its stream."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from alpose.runtime import Monitor
from alpose.runtime.crop import CropRule
from alpose.runtime.errors import ConfigError
from alpose.runtime.locate.body_axis import BodyAxis
from alpose.runtime.skeleton import COCO, LSP, Skeleton, body_axis

from ..fakes import dots

RULE = CropRule(width_px=48, height_px=64, kind="turned")
LYING = ((100.0, 120.0), (160.0, 120.0))
"""Hips, then shoulders: the head points to the right."""
BOX = (80.0, 90.0, 180.0, 150.0)


@pytest.fixture
def watched(tmp_path: Path) -> tuple[Monitor, dots.Dots]:
    folder, net = dots.write_bundle(tmp_path / "driver.alpose", RULE)
    return Monitor(folder, engine=net), net


def middles(crop: dots.Bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Where hips and shoulders are in a crop, (2, 2)."""
    return dots.answer(crop[None])["keypoints"][0, ::2]


def test_the_second_crop_of_a_lying_person_is_upright_and_the_keypoints_stay(
    watched: tuple[Monitor, dots.Dots],
) -> None:
    monitor, net = watched
    frame = dots.frame_with([LYING])

    with monitor:
        verdicts = [monitor(frame, BOX) for _ in range(3)]

    hips, shoulders = middles(net.crops[0])
    assert shoulders[0] > hips[0] + 20  # the first is as the frame is: to the right
    for crop in net.crops[1:]:
        hips, shoulders = middles(crop)
        assert abs(shoulders[0] - hips[0]) < 0.5
        assert shoulders[1] < hips[1] - 15
    for verdict in verdicts:
        np.testing.assert_allclose(verdict.keypoints[::2], LYING, atol=1.0)
        assert verdict.confidence is not None


def test_a_doubtful_pose_of_a_turned_crop_starts_again_from_upright(watched: tuple[Monitor, dots.Dots]) -> None:
    monitor, net = watched
    frame = dots.frame_with([LYING])
    with monitor:
        monitor(frame, BOX)
        net.probability = 0.9
        for _ in range(3):
            monitor(frame, BOX)

    turned = [abs(float(np.diff(middles(crop)[:, 0])[0])) < 1 for crop in net.crops]
    assert turned == [False, True, False, True]


def test_a_person_elsewhere_is_another_one_and_cut_upright(watched: tuple[Monitor, dots.Dots]) -> None:
    monitor, net = watched
    elsewhere = ((230.0, 60.0), (280.0, 60.0))
    frame = dots.frame_with([LYING, elsewhere])
    with monitor:
        monitor(frame, BOX)
        monitor(frame, (210.0, 40.0, 300.0, 80.0))

    hips, shoulders = middles(net.crops[1])
    assert shoulders[0] > hips[0] + 10


def test_every_stream_has_a_turn_of_its_own(watched: tuple[Monitor, dots.Dots]) -> None:
    monitor, net = watched
    upright = dots.frame_with([((100.0, 150.0), (100.0, 90.0))])
    with monitor:
        for _ in range(2):
            monitor.batch([dots.frame_with([LYING]), upright], [BOX, (60, 70, 140, 170)], ["one", "other"])

    for crop in net.crops[2:]:
        hips, shoulders = middles(crop)
        assert abs(shoulders[0] - hips[0]) < 1
        assert shoulders[1] < hips[1]


def test_an_axis_that_is_too_short_has_no_direction() -> None:
    axis, box = BodyAxis(dots.BODY), (0.0, 0.0, 100.0, 100.0)
    pose = np.array([[50, 50], [50, 50], [55, 50], [55, 50]], dtype=np.float32)

    axis.update(pose, box, None, 0.1)
    assert axis.turn(box) is None
    axis.update(pose * 3, box, None, 0.1)  # 15 px
    assert axis.turn(box) == pytest.approx(math.pi / 2)
    axis.update(pose * np.float32(math.nan), box, None, math.nan)
    assert axis.turn(box) is None


def test_hips_and_shoulders_are_found_by_name() -> None:
    assert body_axis(COCO) == ((11, 12), (5, 6))
    found = body_axis(LSP)
    assert found is not None
    assert [[LSP.joints[joint] for joint in pair] for pair in found] == [
        ["right_hip", "left_hip"], ["right_shoulder", "left_shoulder"],
    ]  # fmt: skip
    assert body_axis(Skeleton("face", ("nose", "chin"), (), ())) is None
    with pytest.raises(ConfigError, match="has no hips and shoulders"):
        BodyAxis(Skeleton("face", ("nose", "chin"), (), ()))
