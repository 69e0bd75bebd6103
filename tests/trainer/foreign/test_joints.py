"""Joints of a net and of labels that are not the same."""

from __future__ import annotations

import numpy as np
import pytest

from alpose.runtime.errors import ConfigError
from alpose.runtime.known_skeletons import (
    BLAZEPOSE_33,
    FACE_468,
    HALPE_26,
    KNOWN,
    WHOLEBODY_133,
    known_skeleton,
    numbered,
)
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.foreign.joints import in_skeleton, match_joints


def _names(net: Skeleton, labels: Skeleton, stated: str | None = None) -> dict[str, str]:
    order = match_joints(net, labels, stated)
    return {net.joints[j]: labels.joints[k] for j, k in enumerate(order) if k >= 0}


def test_twelve_joints_are_common_to_coco_and_lsp() -> None:
    common = _names(COCO, LSP)
    assert len(common) == 12
    assert all(left == right for left, right in common.items())
    assert not {"nose", "left_eye", "left_ear"} & set(common)


def test_one_place_has_several_names() -> None:
    assert _names(HALPE_26, LSP).keys() >= {"neck", "head_top"}
    assert _names(HALPE_26, MPII)["neck"] == "upper_neck"
    theirs = Skeleton("theirs", ("LKnee", "ankle.R", "rightwrist", "Nose", "Top of head"), (), ())
    assert _names(BLAZEPOSE_33, theirs) == {
        "left_knee": "LKnee", "right_ankle": "ankle.R", "right_wrist": "rightwrist", "nose": "Nose",
    }  # fmt: skip
    assert _names(LSP, theirs)["head_top"] == "Top of head"


def test_what_is_stated_comes_first_and_mistakes_are_said() -> None:
    assert _names(COCO, LSP, "nose:head_top,left_knee:-")["nose"] == "head_top"
    assert "left_knee" not in _names(COCO, LSP, "nose:head_top,left_knee:-")
    with pytest.raises(ConfigError, match="the net has no joint 'snout'"):
        match_joints(COCO, LSP, "snout:neck")
    with pytest.raises(ConfigError, match="labels have no joint 'throat'"):
        match_joints(COCO, LSP, {"nose": "throat"})
    with pytest.raises(ConfigError, match=r"nose, left_knee of the net are both left_knee"):
        match_joints(COCO, LSP, "nose:left_knee")
    with pytest.raises(ConfigError, match=r"none in common .* state which belong together"):
        match_joints(numbered(17), LSP)
    with pytest.raises(ConfigError, match="NET:LABEL"):
        match_joints(COCO, LSP, "nose=neck")


def test_labels_are_rewritten_and_missing_joints_are_unlabelled() -> None:
    people = read_people(count=3)
    order = match_joints(COCO, people.skeleton)
    ours = in_skeleton(people, COCO, order)
    assert ours.skeleton == COCO
    assert ours.ids == people.ids
    for j, k in enumerate(order):
        if k < 0:
            assert not ours.labelled_NJ[:, j].any()
        else:
            np.testing.assert_array_equal(ours.joints_NJ2[:, j], people.joints_NJ2[:, k])
            np.testing.assert_array_equal(ours.labelled_NJ[:, j], people.labelled_NJ[:, k])


def test_known_skeletons_have_their_mirror_pairs() -> None:
    sizes = {"lsp": 14, "mpii": 16, "coco": 17, "halpe-26": 26, "wholebody-133": 133, "blazepose-33": 33, "face-68": 68,
             "face-468": 468, "hand-21": 21}  # fmt: skip
    assert {name: len(skeleton) for name, skeleton in KNOWN.items()} == sizes
    assert len(BLAZEPOSE_33.flip_pairs) == 16
    assert len(HALPE_26.flip_pairs) == 11
    # From MediaPipe's own lists of eyes and lips: outer corners of the eyes, of the mouth, and irises' neighbours.
    assert {(33, 263), (61, 291), (133, 362), (7, 249), (246, 466)} <= set(FACE_468.flip_pairs)
    for a, b in WHOLEBODY_133.flip_pairs:
        names = WHOLEBODY_133.joints[a], WHOLEBODY_133.joints[b]
        assert "face" in names[0] or names[0].replace("left", "right") == names[1]
    with pytest.raises(ConfigError, match="no skeleton 'cocoo'; known are lsp"):
        known_skeleton("cocoo")
