"""Heads made unrecognisable in what a queue stores, where the pose says that they are.

It is as right as the pose. On a frame that is kept because its pose is wrong, the head may be elsewhere, and nobody knows of
people whom the monitor does not look at. ``docs/privacy.md`` says what to do where a face must never be stored.

Shapes: H W picture, J joints, K joints of the head.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .errors import ConfigError
from .frames import Region
from .skeleton import Skeleton

REDACTIONS = ("face",)
"""What can be made unrecognisable."""

HEAD = ("head", "face", "nose", "eye", "ear", "mouth", "lip", "chin", "jaw", "brow", "eyebrow", "forehead", "cheek")
"""Words of the joints of a head."""

CELLS = 4
"""So many averages along each side of a head's square: too few for a face, enough to see where the head is."""
REACH = 1.5
"""The square reaches beyond the middle of the head's joints by this many times the distance to the farthest of them."""
LEAST_SHARE = 0.12
"""And at least by this share of the person's longest side: a head seen from the side has all its joints in one place. A head is
about an eighth of a standing person's height, so this square is twice as wide."""

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def head_joints(skeleton: Skeleton) -> tuple[int, ...]:
    """The joints from which the head's place is told: of the face, or the top of the head with the neck.

    Raises:
        ConfigError: no joint's name says that it is one of the head.
    """
    words = [{word.lower() for word in _WORD.findall(name)} for name in skeleton.joints]
    found = [joint for joint, parts in enumerate(words) if parts & set(HEAD)]
    if not found:
        raise ConfigError(
            f"redact='face' needs a joint of the head, and skeleton {skeleton.name!r} has {', '.join(skeleton.joints)}: known "
            f"are names with {', '.join(HEAD)}. Store keypoints alone (store='keypoints'), or seal the pictures (seal_to=)"
        )
    if len(found) == 1:  # the top of the head: the neck is its other end
        found += [joint for joint, parts in enumerate(words) if "neck" in parts]
    return tuple(found)


def head_region(
    keypoints_J2: npt.NDArray[np.floating], joints: Sequence[int], width: int, height: int
) -> Region | None:
    """The square around a head, cut to a frame of ``width`` x ``height``; None where the head is outside.

    Where a joint is not finite nobody knows where the head is: the whole frame is returned.
    """
    if not np.isfinite(keypoints_J2).all():
        return 0, 0, width, height
    head_K2 = keypoints_J2[list(joints)].astype(np.float64)
    centre_2 = (head_K2.min(axis=0) + head_K2.max(axis=0)) / 2
    reach = REACH * float(np.hypot(*(head_K2 - centre_2).T).max())
    reach = max(reach, LEAST_SHARE * float(np.ptp(keypoints_J2, axis=0).max()), 1.0)
    # Limits before rounding: a pose may lie anywhere, and a whole number of pixels must come out.
    x0, y0 = (max(0, math.floor(min(value - reach + 0.5, 1e9))) for value in centre_2)
    x1, y1 = (math.ceil(max(value + reach + 0.5, -1e9)) for value in centre_2)
    region = x0, y0, min(x1, width), min(y1, height)
    return region if region[0] < region[2] and region[1] < region[3] else None


def redact(rgb_HW3: npt.NDArray[np.uint8], regions: Sequence[Region], offset: tuple[int, int]) -> None:
    """Replace every region of a picture by a few averages of it, in place.

    Args:
        rgb_HW3: the picture.
        regions: in pixels of the frame, x0, y0, x1, y1.
        offset: column and row in the frame of the picture's first pixel.
    """
    for x0, y0, x1, y1 in regions:
        side = max(1, -(-max(x1 - x0, y1 - y0) // CELLS))
        for top in range(y0, y1, side):
            for left in range(x0, x1, side):
                rows = slice(max(0, top - offset[1]), max(0, min(top + side, y1) - offset[1]))
                columns = slice(max(0, left - offset[0]), max(0, min(left + side, x1) - offset[0]))
                cell_hw3 = rgb_HW3[rows, columns]
                if cell_hw3.size:
                    cell_hw3[...] = np.rint(cell_hw3.mean(axis=(0, 1))).astype(np.uint8)
