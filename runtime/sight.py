"""One person on one frame, before and after the engine has looked.

Shapes: J joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .crop import Crop
from .eye import Frame
from .moments import Moment
from .streams import Stream
from .triggers import Decision, Observation
from .where import Place


@dataclass(frozen=True, slots=True, eq=False)
class Sight:
    """Where to look for one person."""

    stream: Stream
    frame: Frame
    place: Place
    crop: Crop


@dataclass(frozen=True, slots=True, eq=False)
class Sighting:
    """What was found there, and what was decided about it."""

    sight: Sight
    moment: Moment
    keypoints_J2: npt.NDArray[np.float32]
    """In frame pixels. Cannot be written to, nor can the scores: they are handed out, and looked at again."""
    scores_J: npt.NDArray[np.float32]
    seen: Observation
    judged: Observation
    """What the policy was shown: ``seen``, but without a failure probability where a search found nobody."""
    decision: Decision
    number: int
    """The trigger's, of this observation."""
