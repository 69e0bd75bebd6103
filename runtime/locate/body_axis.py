"""Which way a followed person's body points, for crops that turn with it.

Shapes: J joints; boxes are (x0, y0, x1, y1) in frame pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..crop import body_turn
from ..errors import ConfigError
from ..skeleton import Skeleton, body_axis
from .search import Box, overlap


class BodyAxis:
    """Which way the body of a stream's person points, by their last pose: for crops that turn with it.

    A turned crop makes the next pose, and that pose the next turn. So an axis is believed while the pose is: after a pose
    that is probably wrong the next crop is upright, and whatever axis its pose has is tried. A person elsewhere than before
    is another one, and upright too.

    Args:
        skeleton: one that has hips and shoulders.
    """

    SHORTEST = 0.1
    """Of the box's longer side: an axis that is shorter (a person who bends towards the camera) has no direction."""
    NEAR = 0.3
    """Intersection over union of two boxes that are of one person."""
    DOUBTFUL = 0.5
    """The failure probability from which a pose is not believed."""

    def __init__(self, skeleton: Skeleton) -> None:
        axis = body_axis(skeleton)
        if axis is None:
            raise ConfigError(f"skeleton {skeleton.name!r} has no hips and shoulders: crops cannot turn with the body")
        self._hips, self._shoulders = list(axis[0]), list(axis[1])
        self._turn: float | None = None
        self._box_4: Box | None = None

    def turn(self, box_4: Box) -> float | None:
        """The turn of the crop around this box, in radians; None where it is not known."""
        return self._turn if self._box_4 is not None and overlap(box_4, self._box_4) >= self.NEAR else None

    def update(
        self, keypoints_J2: npt.NDArray[np.floating], box_4: Box, turn: float | None, failure_probability: float
    ) -> None:
        """Learn from a pose in frame pixels, whose crop around ``box_4`` had this turn. A NaN probability says nothing."""
        hips_2, shoulders_2 = (keypoints_J2[joints].mean(axis=0) for joints in (self._hips, self._shoulders))
        length = float(np.hypot(*(shoulders_2 - hips_2)))
        long_enough = length >= self.SHORTEST * max(box_4[2] - box_4[0], box_4[3] - box_4[1])  # not with NaN
        doubted = bool(turn) and failure_probability >= self.DOUBTFUL
        self._turn = body_turn(hips_2[None], shoulders_2[None]) if long_enough and not doubted else None
        self._box_4 = box_4
