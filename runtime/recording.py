"""What a Monitor keeps: of frames that are to be kept a record and a copy, of every frame a row in the score log.

The camera's thread calls :meth:`FrameRecorder.record` for every person on every frame, and waits for no disk. The
recorder's threads write. The two share no lock: one side appends and replaces whole tuples, the other copies, and takes
away from the front. What cannot be written waits, in bounded memory.

Shapes: J joints, D dimensions of the embedding.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import secrets
import time
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import scorelog
from .bundle import Bundle
from .crop import Crop
from .errors import ConfigError, DataError, QueueError
from .frames import DeviceFrame, HostFrame, Region
from .locate.tracking import Place, Stream
from .queue import Queue, Record
from .queue.clips import PreviousFrames
from .queue.record import Candidate, FrameCopy, kept_region
from .queue.recorder import HANDOVER_BYTES, Recorder
from .redaction import head_joints, head_region
from .telemetry.counters import Counters
from .triggers import Decision, Observation, Policy, State, Trigger
from .types import MOST_STREAMS, FrameTime

PREVIOUS_BYTES = 64 << 20
"""Copies of frames that wait for something to happen after them, over all cameras."""

MAX_HOST_NAME = 200
"""Letters of a host's name that go into a device id."""

HOUR_NS = 3600 * 10**9
MOST_CHUNKS = 128
"""Chunks of the score log that wait for the disk: 4 MiB. Beyond it the oldest is lost, and counted."""
MOST_HOURS = 1024
"""Tallies that are held, one for each camera and hour: a month of one camera. Beyond it the oldest is forgotten."""
CHUNK_ROWS = 2048
"""Rows of a chunk, 32 KiB: it fits into the smallest queue."""
CHUNK_OPEN_S = 300.0
"""A chunk that was begun so long ago is handed over, full or not: a crash loses what is still here."""

QUEUE_START_S = 2.0
"""So long a Monitor waits at its start for the disk of its queue."""
STATE_EVERY_S = 60.0
"""Between two copies of what the policy has learned, which a restart goes on from."""

Frame = HostFrame | DeviceFrame
CopyRegion = Callable[[Frame, Region], npt.NDArray[np.uint8]]
"""Makes an RGB copy of a region of a frame; only called for pixels that are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class RegionOfInterest:
    """Where to look for one person on a frame."""

    stream: Stream
    frame: HostFrame | DeviceFrame
    place: Place
    crop: Crop


@dataclass(frozen=True, slots=True, eq=False)
class FrameResult:
    """What was found there, and what was decided about it."""

    region: RegionOfInterest
    time: FrameTime
    keypoints_J2: npt.NDArray[np.float32]
    """In frame pixels. Read-only, like the scores: they are handed to the app and used again."""
    scores_J: npt.NDArray[np.float32]
    failure_probability: float
    """The engine's. The observation has NaN instead where nobody is there."""
    occupied: bool
    """A person is there whose pose can be right or wrong; False where a search found nobody."""
    observation: Observation
    """What the policy was shown."""
    decision: Decision
    sequence: int
    """The policy's number of this observation."""
    confidence_J: npt.NDArray[np.float32] | None = None
    """Probability that each joint is right; None where the graph does not say."""


class FrameCopies:
    """Copies of the frames of one call. Each is made once: several people on a frame are handed over with the same one.

    Args:
        copy: makes one.
    """

    def __init__(self, copy: CopyRegion) -> None:
        self._copy = copy
        self._made: dict[tuple[int, Region, int], FrameCopy] = {}

    def __call__(self, result: FrameResult, part: Region, heads: tuple[Region, ...]) -> FrameCopy:
        """A part of the frame that a result is about, with the heads of everybody on that frame."""
        frame, wall_ns = result.region.frame, result.time.wall_ns
        key = id(frame), part, wall_ns
        if key not in self._made:
            self._made[key] = FrameCopy(wall_ns, self._copy(frame, part), part[:2], heads)
        return self._made[key]


class FrameRecorder:
    """A queue at work for one Monitor. All but :meth:`close` is called on the camera's thread, and waits for no disk.

    Args:
        queue: where to; it stays its owner's, who closes it after the recorder.
        bundle: what looks at the frames.
        device: id of this device.
        camera: the Monitor's name of its camera.
        counters: where drops and errors are counted.
        handover_bytes: most pixels that wait to be encoded.
        previous_bytes: most pixels that are held for the beginning of a clip, over all cameras.
        until_s: by ``time.monotonic()``, how long :meth:`restore` may wait for the disk.
    """

    def __init__(
        self, queue: Queue, bundle: Bundle, device: str, camera: str, counters: Counters, *,
        handover_bytes: int = HANDOVER_BYTES, previous_bytes: int = PREVIOUS_BYTES, until_s: float = math.inf,
    ) -> None:  # fmt: skip
        if not isinstance(previous_bytes, int) or previous_bytes < 0:
            raise ConfigError(f"previous_bytes must not be negative, got {previous_bytes!r}")
        self._until_s = until_s
        self.queue, self._bundle, self._device, self._counters = queue, bundle, device, counters
        self._log = FrameLog(bundle.sha256, device, counters)
        self._state = PolicyState(camera, bundle.sha256)
        maintenance = (self._log.write, self._save_state)
        self.recorder = Recorder(queue, counters=counters, introduce=self._introduce, maintenance=maintenance,
                                 handover_bytes=handover_bytes)  # fmt: skip
        before, after = queue.clip if queue.store != "keypoints" else (0, 0)
        self._previous = PreviousFrames(before, previous_bytes, counters) if before else None
        self._follows = after > 0
        redacts = queue.redact is not None and queue.store != "keypoints"
        self._redacted = queue.redact if redacts else None
        self._head = head_joints(bundle.skeleton) if redacts else ()

    def restore(self, policy: Policy, trigger: Trigger) -> None:
        """Let a policy go on from what it had learned when this queue was last used, and save what it learns now."""
        try:
            left_s = min(max(self._until_s - time.monotonic(), 0.0), QUEUE_START_S)
            data = self.queue.within(left_s, lambda: self.queue.load_state(self._state.key))
        except QueueError:  # the disk is not there yet: it is read when it is
            self._state.follow(policy, trigger)
        else:
            self._state.follow(policy, trigger)
            self._state.restore(data)

    @property
    def redacts(self) -> bool:
        """Whether heads are made unrecognisable."""
        return bool(self._head)

    def heads(self, keypoints_J2: npt.NDArray[np.float32], width: int, height: int) -> tuple[Region, ...]:
        """What of a person must not be recognised on a frame of this size, where the queue redacts."""
        region = head_region(keypoints_J2, self._head, width, height)
        return () if region is None else (region,)

    def record(self, result: FrameResult, copies: FrameCopies, heads: tuple[Region, ...] = ()) -> bool:
        """Hand over what is to be kept of a person on a frame, and log that they were seen.

        Args:
            result: what was found and decided.
            copies: makes copies of the frames of this call.
            heads: what :meth:`heads` says of everybody on this frame.

        Returns:
            Whether the frame is on its way to the disk: it was to be kept, and there was room; otherwise its loss is
            counted.
        """
        region, decision, time = result.region, result.decision, result.time
        camera, frame = region.stream.camera, region.frame
        whole = (0, 0, frame.width, frame.height)
        if self._follows:
            self.recorder.follow(camera, lambda: copies(result, whole, heads))
        kept = False
        if decision.keep:
            stored = kept_region(self.recorder.encoder.store, region.crop, frame.width, frame.height)
            kept = self.recorder.submit(
                Candidate(
                    record=self._record_of(result),
                    frame=None if stored is None else copies(result, stored, heads),
                    crop=region.crop,
                    sequence=result.sequence,
                    supersedes=decision.supersedes,
                    episode=decision.episode,
                    before=() if self._previous is None else self._previous.of(camera),
                )
            )
        if self._previous is not None:
            self._previous.add(camera, copies(result, whole, heads))
        self._log.add(camera, time, result.observation, decision, kept)
        self._state.refresh(time.monotonic_ns)
        return kept

    def close(self) -> None:
        """Write what waits, the log too, and end the recorder's threads."""
        self._log.finish()
        self._state.refresh(None)
        self.recorder.close()
        self._log.give_up()

    def _save_state(self, queue: Queue) -> None:
        try:
            self._state.save(queue)
        except DataError:  # more cameras than the queue keeps states for, or too many budgets
            self._counters.add("unsaved_states_total")

    def _introduce(self, queue: Queue) -> None:
        """Tell the queue about device and bundle, also a fresh one that takes the place of a lost file."""
        if all(known.sha256 != self._bundle.sha256 for known in queue.bundles()):
            queue.device_id(lambda: self._device)
            queue.add_bundle(self._bundle.sha256, self._bundle.manifest.name, self._bundle.facts())

    def _record_of(self, result: FrameResult) -> Record:
        region, observation, decision = result.region, result.observation, result.decision
        return Record(
            captured_ns=result.time.wall_ns,
            captured_monotonic_ns=result.time.monotonic_ns,
            device=self._device,
            camera=region.stream.camera,
            bundle=self._bundle.sha256,
            frame_width=region.frame.width,
            frame_height=region.frame.height,
            box=region.place.box_4,
            place=region.place.source,
            keypoints_J2=result.keypoints_J2,
            scores_J=result.scores_J,
            predicted_loss=observation.predicted_loss,
            failure_probability=result.failure_probability,
            embedding_D=observation.embedding_D.astype(np.float16),
            flagged=decision.flagged,
            reasons=tuple((reason.trigger, reason.value, reason.limit) for reason in decision.reasons),
            threshold=decision.threshold,
            inclusion_probability=decision.inclusion_probability,
            control_draw=decision.control_draw,
            novelty=decision.novelty,
            jump=None if math.isnan(observation.jump) else observation.jump,
            limbs=None if math.isnan(observation.limbs) else observation.limbs,
            redacted=self._redacted,
            confidence=_rounded(result.confidence_J),
            occupied=None if result.occupied else False,
        )


def _rounded(confidence_J: npt.NDArray[np.float32] | None) -> tuple[float, ...] | None:
    """For a record; None where it is not known, or not finite."""
    if confidence_J is None or not np.isfinite(confidence_J).all():
        return None
    return tuple(round(value, 4) for value in confidence_J.clip(0.0, 1.0).tolist())


class PolicyState:
    """What a policy has learned, copied on the camera's thread, and written into the queue's file on the recorder's.

    It is for an equal policy alone. With another bundle, whose scores mean something else, the account goes on, and what
    was learned of the scores does not.
    """

    def __init__(self, camera: str, bundle_sha256: str) -> None:
        self.key = f"policy-{hashlib.sha256(camera.encode()).hexdigest()[:16]}" if camera else "policy"
        self._about = {"trigger": "", "bundle": bundle_sha256}
        self._policy: Policy | None = None
        self._copied_ns = 0
        self._state: State | None = None
        self._saved: State | None = None
        self._loaded = False
        self._late: bytes | None = None
        """What was read after the start; the camera's thread restores it."""

    def follow(self, policy: Policy, trigger: Trigger) -> None:
        """Copy the state of this policy from now on."""
        self._policy, self._about["trigger"] = policy, str(trigger)

    def restore(self, data: bytes | None) -> None:
        """Let the policy go on from what was saved, if that is of an equal one."""
        self._loaded = True
        if data is None or self._policy is None:
            return
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                state = {name: arrays[name] for name in arrays.files}
            about = json.loads(state.pop("about").tobytes())
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):  # by another version: it is learned again
            return
        if about.get("trigger") == self._about["trigger"]:
            self._policy.restore(state, same_bundle=about.get("bundle") == self._about["bundle"])

    def refresh(self, now_ns: int | None) -> None:
        """Copy the state, now and then; with None, at the end, in any case."""
        if self._late is not None:
            data, self._late = self._late, None
            self.restore(data)
        if self._policy is not None and (now_ns is None or now_ns - self._copied_ns >= STATE_EVERY_S * 1e9):
            self._state, self._copied_ns = self._policy.state(), now_ns or 0

    def save(self, queue: Queue) -> None:
        """Write the last copy, if it was not written yet; before the first one, read what there is."""
        if not self._loaded:
            self._late, self._loaded = queue.load_state(self.key), True
        state = self._state
        if state is None or state is self._saved or self._late is not None:
            return
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(self._about).encode(), dtype=np.uint8), **state}
        np.savez_compressed(buffer, **arrays)
        try:
            queue.save_state(self.key, buffer.getvalue())
        except QueueError:  # tried again
            raise
        except DataError:
            self._saved = state
            raise
        self._saved = state


# --- the log of all frames

_Hour = tuple[str, int]
"""Camera, and the Unix time in ns at which the hour began."""
_Tally = tuple[int, int, int, int]
"""Frames, and how many of them were flagged, in the control stream, kept."""


@dataclass(slots=True, eq=False)
class _OpenChunk:
    scores: scorelog.ScoreLog
    began_s: float | None = None


class FrameLog:
    """The score log of all frames, kept or not, and how many were seen in each hour."""

    def __init__(self, bundle_sha256: str, device: str, counters: Counters) -> None:
        self._bundle, self._device, self._counters = bundle_sha256, device, counters
        self._open: OrderedDict[str, _OpenChunk] = OrderedDict()
        self._chunks: deque[bytes] = deque()
        self._hours: dict[_Hour, _Tally] = {}
        self._written: dict[_Hour, _Tally] = {}
        """As far as the queue knows them; only the recorder's thread uses it, except for the end of :meth:`_tally`."""

    # The camera's thread.

    def add(self, camera: str, time: FrameTime, observation: Observation, decision: Decision, kept: bool) -> None:
        """Log one person on one frame."""
        chunk = self._open.get(camera) or self._begin(camera)
        if chunk.began_s is not None and time.policy_s - chunk.began_s >= CHUNK_OPEN_S:
            self._hand_over(chunk, chunk.scores.finish())
        if chunk.began_s is None:
            chunk.began_s = time.policy_s
        # By the policy's time: a replay then sees a recording's hours.
        full = chunk.scores.add(observation, decision, time.wall_ns, int(time.policy_s * 1e9))
        self._hand_over(chunk, full)
        self._tally((camera, time.wall_ns - time.wall_ns % HOUR_NS), decision, kept)

    def finish(self) -> None:
        """Hand over the chunks that are still being filled."""
        for chunk in self._open.values():
            self._hand_over(chunk, chunk.scores.finish())

    def give_up(self) -> None:
        """Count what could not be written by the end."""
        if lost := len(self._chunks):
            self._counters.add("dropped_scores_total", lost, reason="closed")
        if lost := sum(seen != self._written.get(hour) for hour, seen in self._hours.copy().items()):
            self._counters.add("dropped_tallies_total", lost)
        self._chunks.clear()
        self._hours.clear()

    def _begin(self, camera: str) -> _OpenChunk:
        """A chunk for a camera; with many names the one that was begun first is handed over and makes room."""
        if len(self._open) >= MOST_STREAMS:
            _, oldest = self._open.popitem(last=False)
            self._hand_over(oldest, oldest.scores.finish())
        chunk = self._open[camera] = _OpenChunk(scorelog.ScoreLog(self._bundle, camera, CHUNK_ROWS))
        return chunk

    def _hand_over(self, chunk: _OpenChunk, data: bytes | None) -> None:
        if data is None:
            return
        chunk.began_s = None
        self._chunks.append(data)
        if len(self._chunks) > MOST_CHUNKS:
            self._chunks.popleft()
            self._counters.add("dropped_scores_total", reason="waiting")

    def _tally(self, hour: _Hour, decision: Decision, kept: bool) -> None:
        frames, flagged, control, stored = self._hours.get(hour, (0, 0, 0, 0))
        drawn = decision.control_draw is not None
        self._hours[hour] = (frames + 1, flagged + decision.flagged, control + drawn, stored + kept)
        if len(self._hours) > MOST_HOURS:
            oldest = next(iter(self._hours))
            if self._hours.pop(oldest) != self._written.get(oldest):
                self._counters.add("dropped_tallies_total")

    # The recorder's thread.

    def write(self, queue: Queue) -> None:
        """Write what there is; a failure raises :class:`QueueError`, and what was not written waits for the next time."""
        for hour, seen in self._hours.copy().items():
            known = self._written.get(hour, (0, 0, 0, 0))
            if seen != known:
                frames, flagged, control, kept = (now - before for now, before in zip(seen, known, strict=True))
                queue.tally(device=self._device, camera=hour[0], bundle=self._bundle, at_ns=hour[1], frames=frames,
                            flagged=flagged, control=control, kept=kept)  # fmt: skip
                self._written[hour] = seen
        for hour in self._written.keys() - self._hours.keys():
            del self._written[hour]
        while self._chunks:
            data = self._chunks[0]
            try:
                self._write_scores(queue, data)
            except DataError:  # a queue so small that no chunk fits: it would never be written
                self._counters.add("dropped_scores_total", reason="too_large")
            if self._chunks and self._chunks[0] is data:  # or it was given up meanwhile
                self._chunks.popleft()

    def _write_scores(self, queue: Queue, data: bytes) -> None:
        chunk = scorelog.decode(data)
        ended_ns = chunk.start_ns + int(chunk.seconds_N[-1] * 1e9)
        queue.add_scores(data, device=self._device, camera=chunk.stream, bundle=self._bundle,
                         began_ns=chunk.start_ns, ended_ns=ended_ns, frames=len(chunk))  # fmt: skip


def new_device_id() -> str:
    """The host's name and eight random hex digits: two devices from one disk image are still told apart."""
    return f"{host_name()}-{secrets.token_hex(4)}"


def host_name() -> str:
    """The host's name, or ``device`` where it has none."""
    return platform.node()[:MAX_HOST_NAME] or "device"
