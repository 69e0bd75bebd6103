"""Skeletons of deployed nets and their datasets, beside those of :mod:`.skeleton`.

The orders are those of the datasets: COCO-WholeBody (Jin et al., ECCV 2020), Halpe (Fang et al., TPAMI 2022), iBUG 300-W for the
68 points of a face, and MediaPipe for its body, face mesh and hand.
"""

from __future__ import annotations

from .errors import ConfigError
from .skeleton import COCO, LSP, MPII, Skeleton, flip_pairs_by_name

Pairs = tuple[tuple[int, int], ...]


def _chain(first: int, last: int, closed: bool = False) -> Pairs:
    """Links from each joint to the next."""
    return tuple((j, j + 1) for j in range(first, last)) + (((last, first),) if closed else ())


_FACE_LINKS = (
    *_chain(0, 16), *_chain(17, 21), *_chain(22, 26), *_chain(27, 30), *_chain(31, 35), *_chain(36, 41, True),
    *_chain(42, 47, True), *_chain(48, 59, True), *_chain(60, 67, True),
)  # fmt: skip
_FACE_PAIRS = (
    *((j, 16 - j) for j in range(8)), *((j, 43 - j) for j in range(17, 22)), (31, 35), (32, 34),
    (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46),
    (48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67),
)  # fmt: skip
_HAND_JOINTS = ("wrist", *(f"{finger}_{part}" for finger, parts in (
    ("thumb", ("cmc", "mcp", "ip", "tip")), *((finger, ("mcp", "pip", "dip", "tip")) for finger in ("index", "middle", "ring", "pinky")),
) for part in parts))  # fmt: skip
_HAND_LINKS = tuple(link for first in (1, 5, 9, 13, 17) for link in ((0, first), *_chain(first, first + 3)))


def _shifted(pairs: Pairs, by: int) -> Pairs:
    return tuple((a + by, b + by) for a, b in pairs)


FACE_68 = Skeleton("face-68", tuple(f"face_{j}" for j in range(68)), _FACE_LINKS, _FACE_PAIRS)
"""The points of iBUG 300-W."""

_MIDDLE = (*range(3), *range(4, 7), *range(8, 20), 94, 151, 152, 164, 168, 175, 195, 197, 199, 200)
"""Points of MediaPipe's face mesh on the axis of symmetry. Those of the right half come first, in the same order as, from 248 on,
those of the left half: so stands the canonical face."""
FACE_468 = Skeleton(
    "face-468",
    tuple(f"mesh_{j}" for j in range(468)),
    (),
    tuple(zip(sorted(set(range(248)) - set(_MIDDLE)), range(248, 468), strict=True)),
)
"""MediaPipe's face mesh without irises."""

HAND_21 = Skeleton("hand-21", _HAND_JOINTS, _HAND_LINKS, ())
"""One hand. It has no pairs: the mirror image of a left hand is a right one."""

_FEET = ("left_big_toe", "left_small_toe", "left_heel", "right_big_toe", "right_small_toe", "right_heel")
WHOLEBODY_133 = Skeleton(
    "wholebody-133",
    (*COCO.joints, *_FEET, *FACE_68.joints, *(f"left_hand_{j}" for j in HAND_21.joints),
     *(f"right_hand_{j}" for j in HAND_21.joints)),
    (*COCO.links, (15, 17), (15, 18), (15, 19), (16, 20), (16, 21), (16, 22), *_shifted(FACE_68.links, 23),
     *_shifted(HAND_21.links, 91), *_shifted(HAND_21.links, 112)),
    (*COCO.flip_pairs, (17, 20), (18, 21), (19, 22), *_shifted(FACE_68.flip_pairs, 23), *((91 + j, 112 + j) for j in range(21))),
)  # fmt: skip

_HALPE_JOINTS = (
    *COCO.joints, "head_top", "neck", "pelvis", "left_big_toe", "right_big_toe", "left_small_toe", "right_small_toe",
    "left_heel", "right_heel",
)  # fmt: skip
HALPE_26 = Skeleton(
    "halpe-26",
    _HALPE_JOINTS,
    ((15, 13), (13, 11), (11, 19), (16, 14), (14, 12), (12, 19), (17, 18), (18, 19), (18, 5), (5, 7), (7, 9), (18, 6), (6, 8),
     (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (15, 20), (15, 22), (15, 24), (16, 21), (16, 23), (16, 25)),
    flip_pairs_by_name(_HALPE_JOINTS),
)  # fmt: skip
"""Body and feet. Halpe itself calls ``head_top`` head and ``pelvis`` hip."""

_BLAZEPOSE_JOINTS = (
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer", "left_ear",
    "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist",
    "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index", "left_thumb", "right_thumb", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle", "left_heel", "right_heel", "left_foot_index", "right_foot_index",
)  # fmt: skip
BLAZEPOSE_33 = Skeleton(
    "blazepose-33",
    _BLAZEPOSE_JOINTS,
    ((0, 1), (1, 2), (2, 3), (3, 7), (0, 4), (4, 5), (5, 6), (6, 8), (9, 10), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16),
     (15, 17), (15, 19), (15, 21), (17, 19), (16, 18), (16, 20), (16, 22), (18, 20), (11, 23), (12, 24), (23, 24), (23, 25),
     (24, 26), (25, 27), (26, 28), (27, 29), (28, 30), (29, 31), (30, 32), (27, 31), (28, 32)),
    flip_pairs_by_name(_BLAZEPOSE_JOINTS),
)  # fmt: skip

KNOWN = {
    skeleton.name: skeleton
    for skeleton in (LSP, MPII, COCO, HALPE_26, WHOLEBODY_133, BLAZEPOSE_33, FACE_68, FACE_468, HAND_21)
}
"""By name."""


def known_skeleton(name: str) -> Skeleton:
    """Return a skeleton by name; an unknown name is an error that lists the known ones."""
    if name not in KNOWN:
        raise ConfigError(f"there is no skeleton {name!r}; known are {', '.join(KNOWN)}")
    return KNOWN[name]


def numbered(count: int, name: str = "") -> Skeleton:
    """Return a skeleton of joints that have numbers for names, from 1."""
    return Skeleton(name or f"{count}-joints", tuple(f"joint_{j + 1}" for j in range(count)), (), ())
