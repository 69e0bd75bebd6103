"""What happens to a frame, from top to bottom: take, locate, cut, infer, decide, record.

What is wrong with a frame, a box or the engine is raised to the app, which has to know. Everything after the engine's
outputs (signals, tracking, drift, policy, queue) is isolated: a fault there is counted and logged, and the app gets its
verdict all the same.

Shapes: N persons, S crop side, J joints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .bundle.manifest import MODEL
from .crop import Crop
from .drift import DriftReport, Drifts
from .engines.device import DeviceEngine
from .errors import ConfigError, DataError, WrongAnswerError
from .frames import DeviceFrame, FrameFormat, HostFrame, Region, accept, is_foreign, take_frame
from .locate.people import MOST_OVERLAP, MOST_PEOPLE, People, apart, as_boxes, believed, overlaps, read_boxes
from .locate.search import Box
from .locate.tracking import Stream, Streams, given_place, largest
from .logs import FaultIsolation
from .recording import FrameCopies, FrameRecorder, FrameResult, RegionOfInterest
from .telemetry.stats import Meters
from .triggers import Decision, Observation, Policy, Setting, Trigger
from .types import MOST_STREAMS, Engine, FrameClock, FrameTime, Outputs, Timings, Verdict

Detect = Callable[[Any], Any]
"""Takes a frame as the app gave it, and returns boxes (N, 4) of people, or None."""

NO_DECISION = Decision(keep=False, inclusion_probability=0.0, flagged=False)
"""Where there is no policy, or where it failed."""


OUTCOMES = ("flagged", "control", "passed")
"""What becomes of a person on a frame, and of the frame."""


def outcome_of(decision: Decision) -> str:
    """One of :data:`OUTCOMES`."""
    return "flagged" if decision.flagged else "control" if decision.keep else "passed"


class FramePipeline:
    """The way of a frame, and the state that it takes.

    Args:
        bundle: whose engine this is.
        trigger: which frames are flagged; None flags none.
        reader: takes frames, and lets the engine look at crops of them.
        streams: what is remembered of each camera or person.
        recorder: keeps frames; None keeps none.
        meters: what is measured and counted.
        faults: where faults after the engine's outputs go.
        seed: of the policy's draws and the drift test's.
        detect: proposes boxes of people on a frame while nobody is followed.
    """

    def __init__(
        self, bundle: Bundle, trigger: Trigger | None, reader: FrameReader, streams: Streams,
        recorder: FrameRecorder | None, meters: Meters, faults: FaultIsolation, seed: int | None,
        detect: Detect | None = None,
    ) -> None:  # fmt: skip
        of_drift, of_policy = np.random.SeedSequence(seed).spawn(2)
        calibration = bundle.calibration
        self._drift = Drifts(calibration.histogram if calibration else None, most=MOST_STREAMS, seed=of_drift)
        self._detect = detect
        self._calibrated = calibration is not None
        self._policy: Policy | None = None
        if trigger is not None:
            joints = bundle.skeleton.joints if bundle.manifest.confidence else ()
            self._policy = Policy(
                trigger, Setting(calibration=calibration, rng=np.random.default_rng(of_policy), joints=joints)
            )
            if recorder is not None:
                recorder.restore(self._policy, trigger)
        self._finds_people = bundle.manifest.people
        self._crops, self._reader, self._streams, self._recorder = bundle.crop, reader, streams, recorder
        self._meters, self._counters, self._faults = meters, meters.counters, faults
        self._people = People()
        self._clock = FrameClock(meters.counters)
        self._sequence = 0
        self.threshold: float | None = None
        """The limit on the failure probability that is now in force; None where the policy has none."""

    @property
    def drift(self) -> DriftReport:
        """What is known of drift now."""
        return self._drift.report()

    def __call__(
        self, frames: Sequence[Any], boxes: Sequence[Any], names: Sequence[str], time_ns: int | Sequence[int] | None,
        everybody: bool = False,
    ) -> list[Verdict]:  # fmt: skip
        """Watch one person on each frame: with a box or None, in the stream of that name, at one time or each at its own.

        ``everybody``: the boxes are those of :meth:`people`, so that a net of whole frames looks at each of them too.
        """
        began_s = time.perf_counter()
        # Take and locate.
        # Several people may be on one frame, which is then given several times.
        taken = {id(frame): self._reader.take(frame) for frame in {id(frame): frame for frame in frames}.values()}
        regions = [
            self._locate(frame, taken[id(frame)], box, name, everybody)
            for frame, box, name in zip(frames, boxes, names, strict=True)
        ]
        frame_times = self._times(time_ns, names)
        # Cut and infer.
        located_s = time.perf_counter()
        outputs, cut_s = self._reader.infer([region.frame for region in regions], [region.crop for region in regions])
        inferred_s = time.perf_counter()
        # Decide and record.
        results, copies = [], FrameCopies(self._reader.copy)
        heads = self._heads(frames, regions, outputs)
        mistaken = self._mistaken(regions, outputs) if everybody else set()
        for row, region in enumerate(regions):
            result = self._decide(region, outputs, row, frame_times[row], row in mistaken)
            results.append((result, self._record(result, copies, heads.get(id(frames[row]), ()))))
        ended_s = time.perf_counter()
        timings = Timings(
            crop_s=located_s - began_s + cut_s,
            inference_s=inferred_s - located_s - cut_s,
            decision_s=ended_s - inferred_s,
            total_s=ended_s - began_s,
        )
        # Several persons may be on one frame: it counts once, as the most that became of any of them.
        outcomes: dict[int, str] = {}
        for frame, (result, _) in zip(frames, results, strict=True):
            outcomes[id(frame)] = min(
                outcomes.get(id(frame), "passed"), outcome_of(result.decision), key=OUTCOMES.index
            )
        self._meters.call(outcomes.values(), crop_s=timings.crop_s, inference_s=timings.inference_s,
                          decision_s=timings.decision_s, total_s=timings.total_s)  # fmt: skip
        return [self._verdict(result, kept, timings) for result, kept in results]

    def people(self, frame: Any, boxes: Any) -> tuple[list[Box], list[str]]:
        """The people on a frame and their names: of boxes that the app gives, or else of its detector, or of the net itself.

        Raises:
            ConfigError: there are neither boxes nor a detector, or the net looks at whole frames and gives one pose of each.
            DataError: it is not a frame, or these are not boxes on it.
        """
        if not self._crops.around_person and not self._finds_people:
            raise ConfigError(
                f"the net of this bundle looks at the whole frame ({self._crops.kind}) and gives one pose of it: for several "
                "people take a bundle whose net looks at one person, and give their boxes or a detector"
            )
        taken = self._reader.take(frame)
        if boxes is not None:
            boxes_N4, scores_N = read_boxes(boxes)[0], None  # the app's own choice: everybody in them is looked at
            for box_4 in boxes_N4:
                given_place(box_4, taken.width, taken.height)  # before anybody is given a name by it
        elif self._finds_people:
            boxes_N4, scores_N = self._found(taken)
        elif self._detect is None:
            raise ConfigError("give boxes of the people on the frame, or a detector: Monitor(..., detect=...)")
        else:
            boxes_N4, scores_N = self._detected(frame, taken.width, taken.height)
        seen = self._people.see(boxes_N4, scores_N)
        for name in seen.gone:
            self._streams.forget(name)
            if self._policy is not None:
                try:
                    self._policy.forget(name)
                except Exception as error:
                    self._faults.report("trigger", error)
        if len(seen.rows) < len(boxes_N4):
            self._counters.add("dropped_boxes_total", len(boxes_N4) - len(seen.rows), reason="score")
        if not seen.rows:
            self._meters.nobody()
        return [tuple(boxes_N4[row].tolist()) for row in seen.rows], list(seen.names)

    def _detected(
        self, frame: Any, width: int, height: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
        """What the app's detector finds; nobody where it fails, which is counted."""
        assert self._detect is not None
        try:
            boxes_N4, scores_N = as_boxes(self._detect(frame))
        except Exception as error:
            self._faults.report("detect", error)
            return np.empty((0, 4)), None
        return self._believed(boxes_N4, scores_N, width, height)

    def _found(self, taken: HostFrame | DeviceFrame) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
        """What a net of whole frames finds itself: of candidates that overlap the one with the highest score."""
        crop = self._crops.crop_of((0, 0, 1, 1), (taken.width, taken.height))
        outputs, _ = self._reader.infer([taken], [crop])
        if outputs.people_NP5 is None:
            raise WrongAnswerError(f"{self._reader.engine.name} gives no people, which {MODEL} of this bundle does")
        found_P5 = outputs.people_NP5[0].astype(np.float64)
        # What is not finite stays, to be counted.
        found_P5 = found_P5[~(found_P5[:, 4] < self._people.config.keep)]
        found_P5 = found_P5[apart(found_P5[:, :4], MOST_OVERLAP)]
        boxes_N4 = crop.to_frame(found_P5[:, :4].reshape(-1, 2)).reshape(-1, 4).astype(np.float64)
        return self._believed(boxes_N4, found_P5[:, 4], taken.width, taken.height)

    def _believed(
        self, boxes_N4: npt.NDArray[np.float64], scores_N: npt.NDArray[np.float64] | None, width: int, height: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
        """The boxes that can be people, and their scores; the others are counted, and what a detector should not give is said."""
        found = believed(boxes_N4, scores_N, width, height)
        for reason, count in found.dropped.items():
            self._counters.add("dropped_boxes_total", count, reason=reason)
        if "many" in found.dropped:
            self._faults.say("many", f"the detector sees more than {MOST_PEOPLE} people: the others are not looked at")
        bad = found.dropped.get("not_finite", 0) + found.dropped.get("empty", 0)
        if bad:
            self._faults.say("bad boxes", f"the detector gave {bad} boxes that are not finite or have no area: nobody is "
                             "looked for in them, the others are looked at")  # fmt: skip
        return boxes_N4[found.rows_M], None if scores_N is None else scores_N[found.rows_M]

    def _times(self, time_ns: int | Sequence[int] | None, names: Sequence[str]) -> list[FrameTime]:
        if time_ns is None or not isinstance(time_ns, (list, tuple, np.ndarray)):
            return [self._clock(time_ns)] * len(names)  # type: ignore[arg-type]  # the clock refuses what is not a time
        if len(time_ns) != len(names):
            raise DataError(f"time_ns is one time, or one for each frame: got {len(time_ns)} for {len(names)} frames")
        return [self._clock(each, name) for each, name in zip(time_ns, names, strict=True)]

    def _locate(
        self, frame: Any, taken: HostFrame | DeviceFrame, box: npt.ArrayLike | None, name: str, everybody: bool
    ) -> RegionOfInterest:
        """Say where to look on a frame."""
        stream, size = self._streams.get(name), (taken.width, taken.height)
        place = (
            given_place(box, *size)
            if box is not None
            else stream.locator.locate(*size, self._proposal(stream, taken, frame))
        )
        if box is not None and not self._crops.around_person and not everybody:
            raise DataError(
                f"the net of this bundle looks at the whole frame ({self._crops.kind}): give no box, or a bundle whose net "
                "looks at one person"
            )
        turn = None if stream.axis is None else stream.axis.turn(place.box_4)
        if everybody and not self._crops.around_person:
            crop = self._crops.person_crop(place.box_4)
        else:
            crop = self._crops.crop_of(place.box_4, size, turn)
        return RegionOfInterest(stream, taken, place, crop)

    def _proposal(self, stream: Stream, taken: HostFrame | DeviceFrame, frame: Any) -> Box | None:
        """Where somebody may be: what the app's detector says while nobody is followed, otherwise where something moves."""
        try:
            moved_4 = stream.moved(taken)
            if self._detect is not None and stream.locator.searching:
                boxes_N4, _ = self._believed(*as_boxes(self._detect(frame)), taken.width, taken.height)
                return largest(boxes_N4) or moved_4
            return moved_4
        except Exception as error:
            self._faults.report("detect", error)
            return None

    def _mistaken(self, regions: Sequence[RegionOfInterest], outputs: Outputs) -> set[int]:
        """The rows of people in whose crop a net of whole frames saw somebody else who stands near: whose answer overlaps the
        box of another person more than theirs."""
        if outputs.people_NP5 is None or self._crops.around_person:
            return set()
        boxes_N4 = np.array([region.place.box_4 for region in regions])
        seen_N4 = np.array([
            region.crop.to_frame(found_P5[0, :4].reshape(2, 2)).reshape(4)
            for region, found_P5 in zip(regions, outputs.people_NP5, strict=True)
        ])  # fmt: skip
        likeness_NN = overlaps(seen_N4, boxes_N4)
        return set(np.flatnonzero(likeness_NN.max(axis=1) > likeness_NN.diagonal()).tolist())

    def _decide(
        self, region: RegionOfInterest, outputs: Outputs, row: int, frame_time: FrameTime, mistaken: bool
    ) -> FrameResult:
        """Bring one row of the outputs into the frame, update what is remembered of the stream, and ask the policy."""
        keypoints_J2, scores_J = region.crop.to_frame(outputs.keypoints_NJ2[row]), outputs.scores_NJ[row]
        confidence_J = None if outputs.confidence_NJ is None else outputs.confidence_NJ[row]
        for values in (keypoints_J2, scores_J, confidence_J):
            if values is not None:
                values.flags.writeable = False
        observation = self._observe(region, keypoints_J2, scores_J, confidence_J, outputs, row, frame_time.policy_s)
        probability = observation.failure_probability
        occupied = self._is_occupied(region, keypoints_J2, scores_J, probability if self._calibrated else math.nan)
        if mistaken:
            self._counters.add("mistaken_people_total")
            occupied, observation = False, replace(observation, failure_probability=math.nan)
        elif occupied:
            try:
                self._drift.update(observation.stream, probability, observation.time_s)
            except Exception as error:
                self._faults.report("drift", error)
        else:
            # No pose is right in an empty room: kept as a failure, it would take the place of one that can be mended.
            self._counters.add("unoccupied_frames_total")
            observation = replace(observation, failure_probability=math.nan)
        decision, sequence = NO_DECISION, -1
        if self._policy is not None:
            try:
                decision = self._policy.decide(observation)
            except Exception as error:
                self._faults.report("trigger", error)
            sequence, self.threshold = self._policy.sequence, decision.threshold
        return FrameResult(region, frame_time, keypoints_J2, scores_J, probability, occupied, observation, decision,
                           sequence, confidence_J)  # fmt: skip

    def _observe(
        self, region: RegionOfInterest, keypoints_J2: npt.NDArray[np.float32], scores_J: npt.NDArray[np.float32],
        confidence_J: npt.NDArray[np.float32] | None, outputs: Outputs, row: int, time_s: float,
    ) -> Observation:  # fmt: skip
        """All that the policy may look at."""
        x0, y0, x1, y1 = region.place.box_4
        jump = limbs = math.nan
        try:
            jump, limbs = region.stream.signals(keypoints_J2, scores_J, max(x1 - x0, y1 - y0), time_s)
        except Exception as error:
            self._faults.report("signals", error)
        observation = Observation(
            time_s=time_s,
            failure_probability=float(outputs.failure_probability_N[row]),
            predicted_loss=float(outputs.predicted_loss_N[row]),
            embedding_D=outputs.embedding_ND[row],
            jump=jump,
            limbs=limbs,
            stream=region.stream.name,
            confidence_J=None if outputs.confidence_NJ is None else outputs.confidence_NJ[row],
        )
        if not is_finite(observation, keypoints_J2, scores_J, confidence_J):
            self._counters.add("unsound_answers_total")
            self._faults.say(
                "unsound", f"{self._reader.engine.name} gave numbers that are not finite: such a frame is not flagged"
            )
        return observation

    def _is_occupied(
        self, region: RegionOfInterest, keypoints_J2: npt.NDArray[np.float32], scores_J: npt.NDArray[np.float32],
        probability: float,
    ) -> bool:  # fmt: skip
        """Update where the person is; False where a search found nobody."""
        frame = region.frame
        try:
            if region.stream.axis is not None:
                region.stream.axis.update(keypoints_J2, region.place.box_4, region.crop.turn, probability)
            return region.stream.locator.update(
                keypoints_J2, scores_J, region.place, frame.width, frame.height, probability
            )
        except Exception as error:
            self._faults.report("where", error)
            return True

    def _heads(
        self, frames: Sequence[Any], regions: Sequence[RegionOfInterest], outputs: Outputs
    ) -> dict[int, tuple[Region, ...]]:
        """The heads of everybody on each frame, by its ``id``: a picture of one person shows the others too."""
        heads: dict[int, tuple[Region, ...]] = {}
        if self._recorder is not None and self._recorder.redacts:
            for frame, region, keypoints_J2 in zip(frames, regions, outputs.keypoints_NJ2, strict=True):
                size = region.frame.width, region.frame.height
                try:
                    found = self._recorder.heads(region.crop.to_frame(keypoints_J2), *size)
                except Exception as error:
                    self._faults.report("redact", error)
                    found = ((0, 0, *size),)  # rather nothing to see than a face
                heads[id(frame)] = heads.get(id(frame), ()) + found
        return heads

    def _record(self, result: FrameResult, copies: FrameCopies, heads: tuple[Region, ...]) -> bool:
        """Hand over what is to be kept, and tell the policy what became of it."""
        wanted = result.decision.keep
        kept = False
        if self._recorder is not None:
            try:
                kept = self._recorder.record(result, copies, heads)
            except Exception as error:
                self._faults.report("queue", error)
                if wanted:
                    self._counters.add("dropped_frames_total", reason="internal")
        if self._policy is not None:
            try:
                self._policy.on_stored(wanted if self._recorder is None else kept)
            except Exception as error:
                self._faults.report("trigger", error)
        return kept

    def _verdict(self, result: FrameResult, kept: bool, timings: Timings) -> Verdict:
        decision, observation, place = result.decision, result.observation, result.region.place
        self._meters.person(outcome_of(decision), result.failure_probability if result.occupied else None)
        verdict = Verdict(
            keypoints=result.keypoints_J2,
            scores=result.scores_J,
            confidence=result.confidence_J,
            predicted_loss=observation.predicted_loss,
            failure_probability=result.failure_probability,
            flagged=decision.flagged,
            kept=kept,
            reasons=decision.reasons,
            inclusion_probability=decision.inclusion_probability,
            box=place.box_4,
            place=place.source,
            timings=timings,
            sequence=self._sequence,
            stream=observation.stream,
            occupied=result.occupied,
        )
        self._sequence += 1
        return verdict


class FrameReader:
    """Takes frames wherever they lie, and lets the engine look at crops of them.

    A frame on a GPU is cut there, where the engine can; one in the host's memory is cut by numpy. Nothing else in the
    runtime tells the two apart.

    Args:
        engine: computes the outputs.
        frame_format: how the camera gives its frames.
    """

    def __init__(self, engine: Engine, frame_format: FrameFormat) -> None:
        self.engine = engine
        self._format = frame_format

    def take(self, frame: object) -> HostFrame | DeviceFrame:
        """A frame, checked and not copied.

        Raises:
            DataError: it is not a frame in the camera's format; the message says what it is.
            ConfigError: it lies on a GPU, where this engine does not read.
        """
        if not is_foreign(frame):
            return accept(frame, self._format)
        taken = take_frame(frame, self._format)
        view = taken.view()
        if view is not None:
            return accept(view, self._format)
        if not isinstance(self.engine, DeviceEngine):
            raise ConfigError(
                f"the frame is on a GPU, and the engine {self.engine.name} reads only the host's memory: use the engine "
                "'cuda' or 'tensorrt', or copy the frame to the host"
            )
        return taken

    def infer(
        self, frames: Sequence[HostFrame | DeviceFrame], crops: Sequence[Crop]
    ) -> tuple[Outputs, float]:  # fmt: skip
        """Cut a crop from each frame and compute their outputs in one call of the engine.

        Returns:
            The outputs, and the seconds that cutting took; on a GPU that is part of the engine's call, and 0 here.

        Raises:
            DataError: some frames lie on a GPU and some do not.
            WrongAnswerError: the engine did not give outputs for every crop.
            Exception: whatever the engine raises.
        """
        on_gpu = [frame for frame in frames if isinstance(frame, DeviceFrame)]
        if not on_gpu:
            started_s = time.perf_counter()
            on_host = [frame for frame in frames if isinstance(frame, HostFrame)]
            cuts = [frame.cut(crop) for frame, crop in zip(on_host, crops, strict=True)]
            crops_NSS3 = cuts[0][None] if len(cuts) == 1 else np.stack(cuts)
            cut_s = time.perf_counter() - started_s
            outputs = self.engine(crops_NSS3)
        elif len(on_gpu) < len(frames):
            raise DataError(
                f"of {len(frames)} frames {len(on_gpu)} are on a GPU: a batch lies all there, or all on the host"
            )
        else:
            assert isinstance(self.engine, DeviceEngine)  # or they would not have been taken
            outputs, cut_s = self.engine.answer_device(on_gpu, crops), 0.0
        if len(outputs) != len(crops):
            raise WrongAnswerError(f"{self.engine.name} gave {len(outputs)} answers to {len(crops)} crops")
        return outputs, cut_s

    def copy(self, frame: HostFrame | DeviceFrame, region: Region) -> npt.NDArray[np.uint8]:
        """A copy on the host of a region, RGB (h, w, 3): for what is kept."""
        if isinstance(frame, HostFrame):
            return frame.to_rgb(region)
        assert isinstance(self.engine, DeviceEngine)
        return self.engine.to_host(frame, region)


def is_finite(
    observation: Observation, keypoints_J2: npt.NDArray[np.float32], scores_J: npt.NDArray[np.float32],
    confidence_J: npt.NDArray[np.float32] | None = None,
) -> bool:  # fmt: skip
    """Whether all numbers of an output are finite: the sum of their squares tells, at a fraction of isfinite()'s cost."""
    squares = np.vdot(keypoints_J2, keypoints_J2) + np.vdot(scores_J, scores_J)
    squares += np.vdot(observation.embedding_D, observation.embedding_D)
    if confidence_J is not None:
        squares += np.vdot(confidence_J, confidence_J)
    return math.isfinite(float(squares) + observation.failure_probability + observation.predicted_loss)
