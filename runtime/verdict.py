"""What a :class:`~alpose.runtime.Monitor` says of one person on one frame.

Shapes: J joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .triggers import Reason


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one call. Of a batch every verdict has the same ones: they are the call's, not the person's."""

    crop_s: float
    """Taking the frame, finding the person, cutting and resampling."""
    inference_s: float
    """The one call of the engine."""
    decision_s: float
    """Everything after it: joints to the frame, signals, trigger, drift, logs, and the copy of a frame that is kept."""
    total_s: float
    """All of the call."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Verdict:
    """The pose, how far it can be trusted, and whether the frame was kept. Two verdicts are never equal."""

    keypoints: npt.NDArray[np.float32]
    """(J, 2): x, y in pixels of the frame; the centre of the first pixel is (0, 0). May lie outside the frame."""
    scores: npt.NDArray[np.float32]
    """(J,): heatmap peak over its training peak, about 0 to 1, not clipped."""
    predicted_loss: float
    """The loss head's raw answer: ranks images, has no unit."""
    failure_probability: float
    """0 to 1. Calibrated where the bundle is; where it is not, it ranks and means nothing else."""
    flagged: bool
    """A trigger wants this frame labelled. Frames of the random control stream are kept without being flagged."""
    kept: bool
    """Handed over to the queue. False where there is no queue, or where the hand-over was full (which is counted)."""
    reasons: tuple[Reason, ...]
    """What fired; on a frame that is not kept, what fired and was held back. ``str(reason)`` is readable."""
    inclusion_probability: float
    """The probability with which the policy kept a frame like this, given all before: for unbiased field reports."""
    box: tuple[float, float, float, float]
    """(x0, y0, x1, y1): where the person was looked for, in frame pixels."""
    place: str
    """Who knew: ``box`` the app, ``roi`` a fixed region, ``track`` the last pose, ``search`` nobody: it was searched."""
    timings: Timings
    sequence: int
    """Running number of this Monitor's verdicts, from 0."""
    stream: str = ""
    """Camera or person, as given to :meth:`Monitor.batch`."""
