"""Drawing, judged by pixels."""

from __future__ import annotations

import numpy as np
import pytest

from alpose.runtime import drawing
from alpose.runtime.skeleton import COCO, LSP, Skeleton

RED = (255, 0, 0)


def canvas(height: int = 40, width: int = 60) -> drawing.Image:
    return np.zeros((height, width, 3), dtype=np.uint8)


def test_a_line_covers_its_width_and_nothing_else() -> None:
    image = canvas()
    drawing.line(image, (10, 20), (50, 20), RED, 4.0)
    lit_HW = image[..., 0] > 0
    assert lit_HW[18:23, 30].all()
    assert not lit_HW[:17].any()
    assert not lit_HW[24:].any()
    assert (image[19:22, 10:51, 0] == 255).all()
    assert not image[..., 1:].any()


def test_a_disc_has_the_area_of_a_circle() -> None:
    image = canvas(101, 101)
    drawing.disc(image, (50.0, 50.0), 30.0, RED)
    assert image[..., 0].sum() / 255 == pytest.approx(np.pi * 30**2, rel=0.01)


def test_an_edge_fades_instead_of_making_stairs() -> None:
    image = canvas()
    drawing.line(image, (5, 5), (50, 25), RED, 3.0)
    between_HW = (image[..., 0] > 0) & (image[..., 0] < 255)
    assert between_HW.sum(axis=0)[10:45].min() >= 2, "both edges of every column"


@pytest.mark.parametrize("end", [(1e9, 5.0), (float("nan"), 5.0), (float("inf"), 5.0), (-50.0, -50.0), (500.0, 20.0)])
def test_what_lies_outside_or_is_no_number_does_no_harm(end: tuple[float, float]) -> None:
    image = canvas()
    if abs(end[0]) < 1e6 or end[0] != end[0]:
        drawing.line(image, (30.0, 20.0), end, RED, 3.0)
        drawing.fill(image, -5, -5, 3, 3, RED)
        assert image[:3, :3, 0].all()
    else:
        drawing.line(image, end, end, RED, 3.0)
        assert not image.any()


def test_opacity_mixes() -> None:
    image = canvas()
    image[...] = 100
    drawing.fill(image, 0, 0, 60, 40, (200, 0, 100), 0.5)
    assert np.abs(image.astype(int) - (150, 50, 100)).max() <= 1


def test_a_bgr_image_is_drawn_on_through_its_view() -> None:
    image = canvas()
    drawing.disc(image[..., ::-1], (20, 20), 5, RED)
    assert image[20, 20].tolist() == [0, 0, 255]


def test_left_and_right_have_their_colours_in_every_skeleton() -> None:
    for skeleton in (LSP, COCO):
        colours = drawing.side_colours(skeleton)
        for name, colour in zip(skeleton.joints, colours, strict=True):
            wanted = drawing.LEFT if "left" in name else drawing.RIGHT if "right" in name else drawing.MIDDLE
            assert colour == wanted, name


def test_a_joint_that_the_net_guessed_is_faint_and_a_missing_one_is_left_out() -> None:
    skeleton = Skeleton("two", ("a", "b"), ((0, 1),), ())
    sure, unsure, absent = canvas(), canvas(), canvas()
    points = np.array([[10.0, 20.0], [50.0, 20.0]])
    drawing.pose(sure, points, np.array([1.0, 1.0]), skeleton)
    drawing.pose(unsure, points, np.array([0.0, 0.0]), skeleton)
    drawing.pose(absent, np.array([[np.nan, np.nan], [50.0, 20.0]]), np.array([1.0, np.nan]), skeleton)
    assert sure[20, 30].min() > 200
    assert 0 < unsure[20, 30].max() < 100
    assert not absent[20, :40].any()
    assert absent[20, 50].any()
