from __future__ import annotations

from typing import Any

import pytest

from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton, flip_pairs_by_name, is_left, with_flip_pairs

BUILT_IN = pytest.mark.parametrize("skeleton", [LSP, MPII, COCO], ids=lambda s: s.name)


def plain(**changes: Any) -> Skeleton:
    values: dict[str, Any] = {"name": "s", "joints": ("a", "b", "c"), "links": ((0, 1),), "flip_pairs": ((1, 2),)}
    return Skeleton(**{**values, **changes})


@pytest.mark.parametrize(("skeleton", "joints"), [(LSP, 14), (MPII, 16), (COCO, 17)], ids=lambda v: str(v)[:4])
def test_built_in_skeletons_have_the_joints_of_their_datasets(skeleton: Skeleton, joints: int) -> None:
    assert len(skeleton) == joints


@BUILT_IN
def test_a_mirror_swaps_left_and_right_and_nothing_else(skeleton: Skeleton) -> None:
    mirrored = [skeleton.joints[j] for j in skeleton.flip_order()]
    swapped = [name.replace("left", "?").replace("right", "left").replace("?", "right") for name in skeleton.joints]

    assert mirrored == swapped


@BUILT_IN
def test_mirroring_twice_changes_nothing(skeleton: Skeleton) -> None:
    order = skeleton.flip_order()

    assert [order[j] for j in order] == list(range(len(skeleton)))


@BUILT_IN
def test_links_reach_every_joint(skeleton: Skeleton) -> None:
    reached = {0}
    for _ in skeleton.joints:
        reached |= {j for link in skeleton.links for j in link if reached & set(link)}

    assert reached == set(range(len(skeleton)))


@BUILT_IN
def test_links_of_one_side_have_a_mirror_image(skeleton: Skeleton) -> None:
    order = skeleton.flip_order()
    links = {frozenset(link) for link in skeleton.links}

    assert {frozenset((order[a], order[b])) for a, b in skeleton.links} == links


@BUILT_IN
def test_flip_pairs_follow_from_the_names(skeleton: Skeleton) -> None:
    found = flip_pairs_by_name(skeleton.joints)

    assert {frozenset(pair) for pair in found} == {frozenset(pair) for pair in skeleton.flip_pairs}
    assert len(found) == len(skeleton.flip_pairs)


@pytest.mark.parametrize(
    ("joints", "expected"),
    [
        (("l_hip", "r_hip"), {(0, 1)}),
        (("Left Knee", "nose", "Right Knee"), {(0, 2)}),
        (("hip_l", "hip_r"), {(0, 1)}),
        (("leftear", "rightear"), {(0, 1)}),
        (("snout", "earL", "earR"), {(1, 2)}),
        (("LeftShoulder", "RightShoulder"), {(0, 1)}),
        (("leftShoulder", "right_shoulder"), {(0, 1)}),
        (("LShoulder", "RShoulder"), {(0, 1)}),
        (("lshoulder", "rshoulder"), {(0, 1)}),
        (("shoulder.L", "shoulder.R"), {(0, 1)}),
        (("forelegL4", "forelegR4"), {(0, 1)}),
        (("LEFT_EYE", "RIGHT_EYE"), {(0, 1)}),
        (("kneel", "kneer"), {(0, 1)}),
        (("oreille_gauche", "oreille_droite"), {(0, 1)}),
        (("左耳", "右耳"), {(0, 1)}),
        (("left_eye_left", "left_eye_right", "right_eye_left", "right_eye_right"), {(0, 3), (1, 2)}),
        (("1", "2", "3"), set()),
        (("lip", "nose", "rip"), set()),
        (("upper_left", "lower_left", "lower_right"), {(1, 2)}),
        (("left_eye", "tail"), set()),
        (("ball", "barr"), set()),
    ],
)
def test_flip_pairs_of_other_ways_to_write_sides(joints: tuple[str, ...], expected: set[tuple[int, int]]) -> None:
    assert set(flip_pairs_by_name(joints)) == expected


def test_an_unknown_joint_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'elbow'.*a, b, c"):
        plain().index("elbow")


@pytest.mark.parametrize(
    "changes",
    [
        {"joints": ()},
        {"joints": ("a", "b", "a")},
        {"links": ((0, 3),)},
        {"links": ((-1, 0),)},
        {"flip_pairs": ((0, 5),)},
        {"flip_pairs": ((0, 1, 2),)},
        {"flip_pairs": ((0, 1), (1, 2))},
        {"flip_pairs": ((0, 1), (1, 0))},
    ],
    ids=str,
)
def test_a_skeleton_that_contradicts_itself_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="skeleton 's'"):
        plain(**changes)


def test_stated_pairs_are_names_or_numbers_from_1() -> None:
    face = Skeleton("face", ("1", "2", "nose", "earA"), (), ())
    assert with_flip_pairs(face, "nose:earA, 1:2").flip_pairs == ((2, 3), (0, 1))
    assert with_flip_pairs(Skeleton("x", ("a", "b", "c"), (), ()), [[1, "c"]]).flip_pairs == ((0, 2),)
    assert with_flip_pairs(LSP, "none").flip_pairs == ()
    for wrong, words in (("nose", "not two joints"), ("nose:nose", "not two joints"), ("nose:eye", "no joint 'eye'"),
                         ("nose:earA,nose:1", "in two flip pairs")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            with_flip_pairs(face, wrong)


@pytest.mark.parametrize(
    ("joint", "left"), [("left_knee", True), ("lower_right", False), ("kneeL", True), ("RKnee", False)]
)
def test_the_side_of_a_joint_is_the_first_that_its_name_tells(joint: str, left: bool) -> None:
    assert is_left(joint) == left
