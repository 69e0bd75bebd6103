"""A candidate becomes a record with its pictures: encoded, with the frames of its clip around it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..frames import Region
from ..logs import RateLimitedLog
from ..telemetry.counters import Counters
from .images import PictureEncoder
from .record import Candidate, FrameCopy, Picture, kept_region

CLIP_BYTES = 16 << 20
"""Most encoded bytes of one record's clip; the frame itself is kept whatever its size."""
MADE_BYTES = 16 << 20
"""Encoded pictures that are held for further people on the same frames;"""
MADE_S = 10.0
"""for so long."""


@dataclass(slots=True, eq=False)
class PendingRecord:
    """A record on its way to the disk, perhaps still without the last frames of its clip."""

    number: int
    """In order of submission."""
    candidate: Candidate
    """Without its pixels."""
    region: Region | None
    pictures: list[Picture]
    frame: int
    """The camera's running number of the frame."""
    deadline_s: float
    """Monotonic; then it goes to the disk with the frames that it has."""
    id: str | None = None
    """Of its record; None until the first attempt to write it."""

    @property
    def nbytes(self) -> int:
        """Bytes of all pictures."""
        return sum(len(picture.data) for picture in self.pictures)


class ClipAssembler:
    """Encodes candidates and gathers their clips.

    Args:
        encoder: makes pictures.
        after: frames of a clip after the frame itself.
        timeout_s: so long a record waits for them.
    """

    def __init__(
        self,
        encoder: PictureEncoder,
        *,
        after: int,
        timeout_s: float,
        counters: Counters,
        limited_log: RateLimitedLog,
    ) -> None:
        self._encoder, self._after, self._timeout_s = encoder, after, timeout_s
        self._counters, self._log = counters, limited_log
        self._made: OrderedDict[tuple[int, Region], tuple[Picture, float]] = OrderedDict()
        self._made_bytes, self._now_s = 0, 0.0
        self.open: list[PendingRecord] = []
        """They wait for frames of their clips."""
        self.ready: list[PendingRecord] = []
        """They are complete; whoever takes them empties the list."""

    @property
    def deadline_s(self) -> float | None:
        """When the next open record is late; monotonic."""
        return min((pending.deadline_s for pending in self.open), default=None)

    def begin(self, candidate: Candidate, number: int, frame: int, now_s: float) -> None:
        """Encode a candidate and the frames before it; :class:`Exception` where the frame itself does not encode."""
        record, self._now_s = candidate.record, now_s
        region = kept_region(self._encoder.store, candidate.crop, record.frame_width, record.frame_height)
        pictures = []
        if candidate.frame is not None and region is not None:
            pictures.append(self._picture(candidate.frame, region))
        elif self._encoder.store != "keypoints":
            self._counters.add("dropped_pictures_total", reason="outside_frame")
        pending = PendingRecord(
            number=number,
            candidate=replace(candidate, frame=None, before=()),
            region=region,
            pictures=pictures,
            frame=frame,
            deadline_s=now_s + self._timeout_s,
        )
        if pictures:
            for position, copy in enumerate(reversed(candidate.before), 1):  # the nearest first: they matter most
                self._extend(pending, -position, copy)
        (self.open if self._after and pictures else self.ready).append(pending)

    def follow(self, camera: str, frame: int, copy: FrameCopy) -> None:
        """A later frame of a camera: add it to the clips that it belongs to."""
        for pending in self.open:
            if pending.candidate.record.camera == camera and pending.frame < frame <= pending.frame + self._after:
                self._extend(pending, frame - pending.frame, copy)
        self._close(lambda pending: pending.candidate.record.camera == camera and frame >= pending.frame + self._after)

    def close_late(self, now_s: float) -> None:
        """Records whose frames did not come in time go without them; pictures made a while ago are needed by nobody."""
        self._now_s = now_s
        self._close(lambda pending: now_s >= pending.deadline_s)
        self._forget_made()

    def close_below(self, number: int) -> None:
        """Records of lower numbers go with what they have."""
        self._close(lambda pending: pending.number < number)

    def _close(self, done: Callable[[PendingRecord], bool]) -> None:
        self.ready += [pending for pending in self.open if done(pending)]
        self.open = [pending for pending in self.open if not done(pending)]

    def _extend(self, pending: PendingRecord, position: int, copy: FrameCopy) -> None:
        """Add a frame of a clip; what goes wrong is counted, and the record goes without it."""
        region = pending.region
        assert region is not None
        try:
            picture = self._picture(copy, region)
        except Exception as error:  # encoders raise anything
            self._counters.add("dropped_pictures_total", reason="encode_error")
            self._log.error("clip", "a frame of a clip could not be encoded, and is missing: %r", error)
            return
        clip_bytes = pending.nbytes - len(pending.pictures[0].data)
        if clip_bytes + len(picture.data) > CLIP_BYTES:
            self._counters.add("dropped_pictures_total", reason="clip_bytes")
            return
        pending.pictures.append(replace(picture, position=position))

    def _picture(self, copy: FrameCopy, region: Region) -> Picture:
        """Encode a region of a copy; once, however many people on the frame are kept. (A sealed box differs each time.)"""
        known = self._made.get((copy.number, region))
        if known is not None:
            return known[0]
        picture, fallback = self._encoder.picture(copy, region)
        self._made[copy.number, region] = picture, self._now_s
        self._made_bytes += len(picture.data)
        self._forget_made()
        if fallback is not None:
            self._counters.add("fallback_total", what=fallback)
            self._log.warning(
                fallback,
                "simplejpeg is not installed, and %s. Install alpose[cpu]",
                "Pillow takes its place"
                if fallback == "jpeg_by_pillow"
                else "neither is Pillow: frames are kept as PNG",
            )
        return picture

    def _forget_made(self) -> None:
        while self._made:
            key, (picture, made_s) = next(iter(self._made.items()))
            if self._made_bytes <= MADE_BYTES and self._now_s - made_s <= MADE_S:
                return
            del self._made[key]
            self._made_bytes -= len(picture.data)


class PreviousFrames:
    """The last frames of every camera, bounded in number for each and in bytes for all.

    Args:
        frames: of each camera.
        most_bytes: of all; beyond it the camera that was not seen for the longest time loses its oldest, counted.
    """

    def __init__(self, frames: int, most_bytes: int, counters: Counters) -> None:
        self._frames, self._most_bytes, self._counters = frames, most_bytes, counters
        self._held: OrderedDict[str, deque[FrameCopy]] = OrderedDict()
        self._holders: dict[int, int] = {}
        """How many cameras hold a copy, by its number: people on one frame hold the same."""
        self._bytes = 0

    def add(self, camera: str, copy: FrameCopy) -> None:
        """Hold a frame until enough others have come after it."""
        held = self._held.pop(camera, deque())
        if len(held) >= self._frames:
            self._release(held)
        if held:
            self._held[camera] = held
        nbytes = copy.rgb_HW3.nbytes if copy.number not in self._holders else 0
        while self._bytes and self._bytes + nbytes > self._most_bytes:
            self._drop_oldest()
        if nbytes > self._most_bytes:
            self._counters.add("dropped_pictures_total", reason="clip_memory")
            return
        self._held.setdefault(camera, deque()).append(copy)
        self._holders[copy.number] = self._holders.get(copy.number, 0) + 1
        self._bytes += nbytes

    def of(self, camera: str) -> tuple[FrameCopy, ...]:
        """The frames before the present one, the nearest last."""
        return tuple(self._held.get(camera, ()))

    def _drop_oldest(self) -> None:
        camera, held = next(iter(self._held.items()))
        self._release(held)
        self._counters.add("dropped_pictures_total", reason="clip_memory")
        if not held:
            del self._held[camera]

    def _release(self, held: deque[FrameCopy]) -> None:
        """Let go of the oldest."""
        copy = held.popleft()
        left = self._holders.pop(copy.number) - 1
        if left:
            self._holders[copy.number] = left
        else:
            self._bytes -= copy.rgb_HW3.nbytes
