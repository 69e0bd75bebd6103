"""What follows from an engine's answer: signals, drift, the decision, and what is kept. Nothing of it reaches the app.

Shapes: J joints, D dimensions of the embedding.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .drift import Drift, DriftReport
from .eye import Eye
from .guard import Guard
from .keeper import Keeper
from .moments import Moment
from .outputs import Outputs
from .sight import Sight, Sighting
from .triggers import Decision, Observation, Policy, Setting, Trigger

NOTHING = Decision(keep=False, inclusion_probability=0.0, flagged=False)
"""Decided where there is no policy, or where it failed."""


class Judge:
    """Looks at every answer, and holds the state that this takes.

    Args:
        bundle: whose answers.
        policy: which frames are flagged; None flags none.
        eye: copies what is kept.
        keeper: keeps it; None keeps nothing.
        guard: stands behind every step.
        random: of the policy's draws and the drift test's.
    """

    def __init__(
        self,
        bundle: Bundle,
        policy: Trigger | None,
        eye: Eye,
        keeper: Keeper | None,
        guard: Guard,
        random: np.random.SeedSequence,
    ) -> None:
        of_drift, of_policy = random.spawn(2)
        calibration = bundle.calibration
        self._drift = Drift(calibration.histogram if calibration else None, seed=of_drift)
        self._decider: Policy | None = None
        if policy is not None:
            self._decider = Policy(policy, Setting(calibration=calibration, rng=np.random.default_rng(of_policy)))
        self._eye, self._keeper, self._guard = eye, keeper, guard
        self._number = -1
        self.threshold: float | None = None
        """On the failure probability, now in force; None where the policy has none."""

    @property
    def drift(self) -> DriftReport:
        """What is known of it now."""
        return self._drift.report()

    def __call__(self, sight: Sight, outputs: Outputs, row: int, moment: Moment) -> tuple[Sighting, bool]:
        """Judge one row of an answer.

        Returns:
            What was found and decided, and whether the frame is on its way to the queue.
        """
        guard, stream, frame = self._guard, sight.stream, sight.frame
        keypoints_J2, scores_J = sight.crop.to_frame(outputs.keypoints_NJ2[row]), outputs.scores_NJ[row]
        keypoints_J2.flags.writeable = scores_J.flags.writeable = False
        seen = self._observe(sight, keypoints_J2, scores_J, outputs, row, moment.policy_s)
        told = keypoints_J2, scores_J, sight.place, frame.width, frame.height
        judged = seen
        if guard.attempt("where", stream.where.update, *told) is False:
            # An empty room has no right pose: kept for being wrong, it would take the place of all that can be mended.
            guard.counters.add("unoccupied_frames_total")
            judged = replace(seen, failure_probability=math.nan)
        else:
            guard.attempt("drift", self._drift.update, seen.failure_probability, seen.time_s)
        found = Sighting(sight, moment, keypoints_J2, scores_J, seen, judged, self._decide(judged), self._number)
        return found, self._keep(found)

    def _observe(
        self,
        sight: Sight,
        keypoints_J2: npt.NDArray[np.float32],
        scores_J: npt.NDArray[np.float32],
        outputs: Outputs,
        row: int,
        time_s: float,
    ) -> Observation:
        """All that the policy may look at."""
        x0, y0, x1, y1 = sight.place.box_4
        side_px = max(x1 - x0, y1 - y0)
        signals = self._guard.attempt("signals", sight.stream.signals, keypoints_J2, scores_J, side_px, time_s)
        jump, limbs = signals or (math.nan, math.nan)
        seen = Observation(
            time_s=time_s,
            failure_probability=float(outputs.failure_probability_N[row]),
            predicted_loss=float(outputs.predicted_loss_N[row]),
            embedding_D=outputs.embedding_ND[row],
            jump=jump,
            limbs=limbs,
            stream=sight.stream.name,
        )
        if not is_sound(seen, keypoints_J2, scores_J):
            self._guard.counters.add("unsound_answers_total")
            name = self._eye.engine.name
            self._guard.quiet.error("unsound", "%s gave numbers that are not finite: such a frame is not flagged", name)
        return seen

    def _decide(self, seen: Observation) -> Decision:
        if self._decider is None:
            return NOTHING
        self._number += 1  # as the trigger counts them
        decision = self._guard.attempt("trigger", self._decider.decide, seen) or NOTHING
        self.threshold = decision.threshold
        return decision

    def _keep(self, found: Sighting) -> bool:
        """Hand over what is to be kept, and tell the policy what became of it."""
        wanted, kept = found.decision.keep, False
        if self._keeper is not None:
            given = self._guard.attempt("queue", self._keeper.keep, found, partial(self._eye.to_rgb, found.sight.frame))
            if wanted and given is None:
                self._guard.counters.add("dropped_frames_total", reason="internal")
            kept = bool(given)
        if self._decider is not None:
            self._guard.attempt("trigger", self._decider.on_stored, wanted if self._keeper is None else kept)
        return kept


def is_sound(seen: Observation, keypoints_J2: npt.NDArray[np.float32], scores_J: npt.NDArray[np.float32]) -> bool:
    """Whether all numbers of an answer are finite. Their sum of squares tells, at a fraction of what isfinite() takes."""
    squares = np.vdot(keypoints_J2, keypoints_J2) + np.vdot(scores_J, scores_J)
    squares += np.vdot(seen.embedding_D, seen.embedding_D)
    return math.isfinite(float(squares) + seen.failure_probability + seen.predicted_loss)
