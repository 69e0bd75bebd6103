"""What the Monitor keeps: of flagged frames a record and a copy, of every frame a line in the books.

Shapes: J joints, D dimensions of the embedding.
"""

from __future__ import annotations

import atexit
import math
import platform
import secrets
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .books import Books
from .bundle import Bundle
from .frames import Region
from .queue import Queue, Record
from .queue.record import Candidate, FrameCopy
from .queue.recorder import Recorder
from .sight import Sighting
from .stats import Counters

BEFORE_BYTES = 64 << 20
"""Of the copies of frames that wait for something to happen after them, over all cameras."""

MAX_NAME = 200
"""Letters of a host's name that go into a device id."""

Copy = Callable[[Region], npt.NDArray[np.uint8]]
"""Makes an RGB copy of a region of the frame; only called for pixels that are kept."""


class Keeper:
    """A queue at work for one Monitor. All but :meth:`flush` is called on the camera's thread, and waits for no disk.

    Args:
        queue: where to; it stays its owner's, who closes it after the keeper.
        bundle: what looks at the frames.
        device: id of this device.
        counters: where drops and errors are counted.
    """

    def __init__(self, queue: Queue, bundle: Bundle, device: str, counters: Counters) -> None:
        self.queue = queue
        self._bundle, self._device = bundle, device
        self._books = Books(bundle.sha256, device, counters)
        self._introduce(queue)
        self.recorder = Recorder(queue, counters=counters, maintenance=(self._introduce, self._books.write))
        before, after = queue.clip if queue.store != "keypoints" else (0, 0)
        self._before = Before(before, BEFORE_BYTES, counters) if before else None
        self._follows = after > 0
        atexit.register(self.close)  # before the recorder's own, which ends later: the books are still open

    def keep(self, one: Sighting, copy: Copy) -> bool:
        """Hand over what is to be kept of a person on a frame, and note in the books that they were seen.

        Returns:
            Whether the frame is on its way to the disk: it was to be kept, and there was room, or its loss is counted.
        """
        camera, moment, frame = one.sight.stream.camera, one.moment, one.sight.frame
        whole = (0, 0, frame.width, frame.height)
        if self._follows:
            self.recorder.follow(camera, lambda: FrameCopy(moment.wall_ns, copy(whole)))
        kept = self._submit(one, copy) if one.decision.keep else False
        if self._before is not None:
            self._before.add(camera, FrameCopy(moment.wall_ns, copy(whole)))
        self._books.add(camera, moment, one.judged, one.decision, kept)
        return kept

    def flush(self, timeout_s: float | None) -> bool:
        """Have all that was handed over written now; see :meth:`Recorder.flush`."""
        return self.recorder.flush(timeout_s)

    def close(self) -> None:
        """Write what waits, the books too, and end the recorder's thread. Happens by itself when the program ends."""
        atexit.unregister(self.close)
        self._books.finish()
        self.recorder.close()

    def _introduce(self, queue: Queue) -> None:
        """See to it that the queue knows device and bundle, also the fresh one that takes the place of a lost file."""
        if all(known.sha256 != self._bundle.sha256 for known in queue.bundles()):
            queue.device_id(lambda: self._device)
            queue.add_bundle(self._bundle.sha256, self._bundle.manifest.name, bundle_facts(self._bundle))

    def _submit(self, one: Sighting, copy: Copy) -> bool:
        sight, decision = one.sight, one.decision
        region = self.recorder.encoder.region(sight.crop, sight.frame.width, sight.frame.height)
        return self.recorder.submit(
            Candidate(
                record=self._record(one),
                frame=None if region is None else FrameCopy(one.moment.wall_ns, copy(region), region[:2]),
                crop=sight.crop,
                sequence=one.number,
                supersedes=decision.supersedes,
                episode=decision.episode,
                before=() if self._before is None else self._before.of(sight.stream.camera),
            )
        )

    def _record(self, one: Sighting) -> Record:
        sight, seen, decision = one.sight, one.seen, one.decision
        return Record(
            captured_ns=one.moment.wall_ns,
            captured_monotonic_ns=one.moment.monotonic_ns,
            device=self._device,
            camera=sight.stream.camera,
            bundle=self._bundle.sha256,
            frame_width=sight.frame.width,
            frame_height=sight.frame.height,
            box=sight.place.box_4,
            place=sight.place.source,
            keypoints_J2=one.keypoints_J2,
            scores_J=one.scores_J,
            predicted_loss=seen.predicted_loss,
            failure_probability=seen.failure_probability,
            embedding_D=seen.embedding_D.astype(np.float16),
            flagged=decision.flagged,
            reasons=tuple((reason.trigger, reason.value, reason.limit) for reason in decision.reasons),
            threshold=decision.threshold,
            inclusion_probability=decision.inclusion_probability,
            control_draw=decision.control_draw,
            novelty=decision.novelty,
            jump=_known(seen.jump),
            limbs=_known(seen.limbs),
        )


class Before:
    """The last frames of every camera, bounded in number for each and in bytes for all.

    Args:
        frames: of each camera.
        most_bytes: of all; beyond it the oldest of the camera that adds one goes first, and is counted.
    """

    def __init__(self, frames: int, most_bytes: int, counters: Counters) -> None:
        self._frames, self._most_bytes, self._counters = frames, most_bytes, counters
        self._shots: dict[str, deque[FrameCopy]] = {}
        self._bytes = 0

    def add(self, camera: str, shot: FrameCopy) -> None:
        """Hold a frame until enough others have come after it."""
        held = self._shots.setdefault(camera, deque())
        self._drop(held, len(held) - self._frames + 1)
        nbytes = shot.rgb_HW3.nbytes
        while held and self._bytes + nbytes > self._most_bytes:
            self._drop(held, 1)
            self._counters.add("dropped_pictures_total", reason="clip_memory")
        if self._bytes + nbytes > self._most_bytes:
            self._counters.add("dropped_pictures_total", reason="clip_memory")
            return
        held.append(shot)
        self._bytes += nbytes

    def of(self, camera: str) -> tuple[FrameCopy, ...]:
        """The frames before the present one, nearest last."""
        return tuple(self._shots.get(camera, ()))

    def _drop(self, held: deque[FrameCopy], count: int) -> None:
        for _ in range(max(0, count)):
            self._bytes -= held.popleft().rgb_HW3.nbytes


def bundle_facts(bundle: Bundle) -> dict[str, object]:
    """What a record needs to be read when its bundle is not at hand: joints, crop, calibration."""
    manifest = bundle.manifest
    return {
        "skeleton": manifest.skeleton.to_json(),
        "crop": {"size_px": manifest.crop.size_px, "margin": manifest.crop.margin},
        "precision": manifest.precision,
        "head": manifest.head,
        "dimensions": manifest.dimensions,
        "created": manifest.created,
        "calibration": None if manifest.calibration is None else dict(manifest.calibration.facts),
    }


def new_device_id() -> str:
    """The host's name and eight random hex digits: two devices from one disk image are still told apart."""
    return f"{host_name()}-{secrets.token_hex(4)}"


def host_name() -> str:
    """The host's name, or ``device`` where it has none."""
    return platform.node()[:MAX_NAME] or "device"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
