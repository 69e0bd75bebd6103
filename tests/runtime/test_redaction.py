"""Faces in what a queue stores: hidden where the pose says that the head is, in every picture, also under seal."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime import COCO, LSP, MPII, Monitor, Queue, Skeleton
from alpose.runtime.bundle.keys import SEALING, generate_key, opener
from alpose.runtime.errors import ConfigError
from alpose.runtime.queue.images import decode
from alpose.runtime.queue.record import Picture
from alpose.runtime.redaction import head_joints, head_region, redact

from ..fakes import scripted

H, W = 96, 128
NOISE_HW3 = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)
"""Every pixel differs from its neighbours: an average gives itself away."""


def hidden(picture_HW3: Any, origin: tuple[int, int] = (0, 0)) -> tuple[int, int, int, int]:
    """The rectangle of pixels that are not the camera's."""
    height, width = picture_HW3.shape[:2]
    camera_HW3 = NOISE_HW3[origin[1] : origin[1] + height, origin[0] : origin[0] + width]
    row_N, column_N = np.nonzero((picture_HW3 != camera_HW3).any(axis=2))
    return int(column_N.min()), int(row_N.min()), int(column_N.max()) + 1, int(row_N.max()) + 1


def pose(centre: tuple[float, float]) -> dict[str, Any]:
    """What the engine says in its crop of 16 px, which is the box enlarged; the head is the first joint."""
    return {"keypoints": np.array([[centre[0], centre[1]], [7.0, 14.0], [9.0, 14.0]], dtype=np.float32)}


def watched(make: Callable[..., Monitor], queue: Queue, **options: Any) -> Monitor:
    return make(queue, "Threshold(0.0)", scripted.Scripted(lambda _: pose((8.0, 2.0))), **options)


def stored(path: Path) -> list[tuple[Any, list[Picture]]]:
    with Queue(path, readonly=True) as queue:
        return [(record, queue.pictures(record.id)) for record in queue.peek()]


def test_the_head_is_hidden_and_nothing_else(make: Callable[..., Monitor], tmp_path: Path) -> None:
    with Queue(tmp_path / "q.db", media_type="image/png", redact="face") as queue:
        monitor = watched(make, queue)
        verdict = monitor(NOISE_HW3, (30, 20, 90, 80))
        monitor.close()
    ((record, (picture,)),) = stored(tmp_path / "q.db")
    x0, y0, x1, y1 = hidden(decode(picture.data))
    (x, y), longest = verdict.keypoints[0], np.ptp(verdict.keypoints, axis=0).max()

    assert record.redacted == "face"
    assert x0 < x < x1
    assert y0 < y < y1
    assert 0.2 * longest < x1 - x0 < 0.4 * longest, "a head, not half the person"
    assert len(np.unique(decode(picture.data)[y0:y1, x0:x1].reshape(-1, 3), axis=0)) <= 25


def test_of_two_people_on_a_frame_neither_is_seen_in_the_pictures_of_the_other(
    make: Callable[..., Monitor], tmp_path: Path
) -> None:
    with Queue(tmp_path / "q.db", media_type="image/png", redact="face") as queue:
        monitor = watched(make, queue)
        verdicts = monitor.batch([NOISE_HW3] * 2, [(5, 30, 45, 70), (80, 30, 120, 70)], ["left", "right"])
        monitor.close()
    seen = stored(tmp_path / "q.db")

    assert len(seen) == 2
    for _, (picture,) in seen:
        picture_HW3 = decode(picture.data)
        for verdict in verdicts:
            column, row = np.rint(verdict.keypoints[0]).astype(int)
            around = slice(row - 3, row + 4), slice(column - 3, column + 4)
            assert (picture_HW3[around] != NOISE_HW3[around]).any(axis=2).all()


def test_clips_crops_and_sealed_pictures_are_redacted_as_well(make: Callable[..., Monitor], tmp_path: Path) -> None:
    pytest.importorskip("nacl")
    generate_key(tmp_path / "fleet", SEALING)
    with Queue(tmp_path / "q.db", media_type="image/png", redact="face", store="crop", clip=(1, 1),
               seal_to=tmp_path / "fleet.pub") as queue:  # fmt: skip
        monitor = watched(make, queue)
        for _ in range(3):
            verdict = monitor(NOISE_HW3, (30, 20, 90, 80))
        monitor.close()
    open_box = opener(tmp_path / "fleet")
    column, row = np.rint(verdict.keypoints[0]).astype(int)

    positions = set()
    for record, pictures in stored(tmp_path / "q.db"):
        assert record.redacted == "face"
        for picture in pictures:
            positions.add(picture.position)
            x, y = (round(edge + 0.5) for edge in picture.origin)
            picture_hw3 = decode(open_box(picture.data))
            around = slice(row - y - 3, row - y + 4), slice(column - x - 3, column - x + 4)
            camera_hw3 = NOISE_HW3[row - 3 : row + 4, column - 3 : column + 4]
            assert picture.sealed
            assert (picture_hw3[around] != camera_hw3).any(axis=2).all()
    assert positions == {-1, 0, 1}


def test_a_pose_that_is_not_finite_hides_the_whole_picture(make: Callable[..., Monitor], tmp_path: Path) -> None:
    lost = {"keypoints": np.full((3, 2), np.nan, dtype=np.float32)}
    with Queue(tmp_path / "q.db", media_type="image/png", redact="face") as queue:
        monitor = make(queue, "Control(rate=1.0)", scripted.Scripted(lambda _: lost))
        monitor(NOISE_HW3)
        monitor.close()
    ((_, (picture,)),) = stored(tmp_path / "q.db")
    assert hidden(decode(picture.data)) == (0, 0, W, H)


def test_without_it_nothing_changes_and_the_camera_s_frame_is_never_written_to(
    make: Callable[..., Monitor], tmp_path: Path
) -> None:
    before_HW3 = NOISE_HW3.copy()
    with Queue(tmp_path / "q.db", media_type="image/png") as queue:
        monitor = watched(make, queue)
        monitor(NOISE_HW3)
        monitor.close()
    ((record, (picture,)),) = stored(tmp_path / "q.db")

    assert record.redacted is None
    assert np.array_equal(decode(picture.data), before_HW3)
    assert np.array_equal(NOISE_HW3, before_HW3)


@pytest.mark.parametrize(
    ("skeleton", "names"),
    [
        (LSP, {"neck", "head_top"}),
        (MPII, {"upper_neck", "head_top"}),
        (COCO, {"nose", "left_eye", "right_eye", "left_ear", "right_ear"}),
        (Skeleton("own", ("Hip", "LeftEar", "Neck", "Chin"), (), ()), {"LeftEar", "Chin"}),
        (Skeleton("heart", ("heart", "gear", "head"), (), ()), {"head"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_joints_of_a_head_are_found_by_name(skeleton: Skeleton, names: set[str]) -> None:
    assert {skeleton.joints[joint] for joint in head_joints(skeleton)} == names


def test_a_skeleton_without_a_head_is_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"store='keypoints'.*seal_to="):
        head_joints(Skeleton("legs", ("left_foot", "right_foot"), (), ()))


def test_an_unknown_redaction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="redact must be 'face' or None, got 'eyes'"):
        Queue(tmp_path / "q.db", redact="eyes")


def test_a_head_seen_from_the_side_is_hidden_as_a_whole() -> None:
    """All joints of the face within a few pixels: the size of the person says how large a head is."""
    keypoints_J2 = np.full((17, 2), 300.0)
    keypoints_J2[:5] = (200.0, 100.0)
    keypoints_J2[15:] = (200.0, 460.0)
    x0, y0, x1, y1 = head_region(keypoints_J2, range(5), 640, 480) or (0, 0, 0, 0)
    head = 360 / 7.5
    assert x0 < 200 - 0.75 * head
    assert x1 > 200 + 0.75 * head
    assert y0 < 100 - 0.75 * head
    assert y1 > 100 + 0.75 * head


@pytest.mark.parametrize("far", [1e30, -1e30, 1e4])
def test_a_head_outside_the_frame_hides_nothing(far: float) -> None:
    keypoints_J2 = np.array([[far, far], [far + 1, far + 1], [50.0, 60.0]])
    region = head_region(keypoints_J2, (0, 1), 100, 80)
    assert region is None or region == (0, 0, 100, 80), "a pose larger than the frame hides it all"
    assert region is None or math.isfinite(sum(region))


def test_a_region_that_reaches_beyond_the_picture_is_cut() -> None:
    picture_HW3 = NOISE_HW3.copy()
    redact(picture_HW3, [(0, 0, 30, 30), (500, 500, 600, 600)], offset=(10, 10))
    assert hidden(picture_HW3) == (0, 0, 20, 20)
