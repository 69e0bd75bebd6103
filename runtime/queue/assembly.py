"""From what the camera's thread handed over to records that are ready for the disk.

Frames are encoded as they come, so that little memory is held. A record with a clip stays open until the frames after
it have come, until they are late, or until somebody flushes. Everything here runs on the thread that encodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..counters import Counters
from ..quiet import RateLimited
from .candidate import Candidate, PictureMaker, Region, Shot
from .record import Picture

CLIP_BYTES = 16 << 20
"""Most encoded bytes of one record's clip; the frame itself is kept whatever its size."""


@dataclass(slots=True, eq=False)
class Pending:
    """A record on its way to the disk, perhaps still without the last frames of its clip."""

    number: int
    """Of the hand-over, in order of submission."""
    candidate: Candidate
    """Without its pixels."""
    region: Region | None
    pictures: list[Picture]
    frame: int
    """The camera's running number of the frame."""
    deadline_s: float
    """Monotonic; then it goes to the disk with the frames that it has."""
    id: str | None = None
    """Of its record, from the first attempt to write it on."""

    @property
    def nbytes(self) -> int:
        """Of all pictures."""
        return sum(len(picture.data) for picture in self.pictures)


class Assembly:
    """Encodes candidates and gathers their clips.

    Args:
        maker: makes pictures.
        after: frames of a clip after the frame itself.
        timeout_s: so long a record waits for them.
    """

    def __init__(
        self,
        maker: PictureMaker,
        *,
        after: int,
        timeout_s: float,
        counters: Counters,
        quiet: RateLimited,
    ) -> None:
        self._maker, self._after, self._timeout_s = maker, after, timeout_s
        self._counters, self._quiet = counters, quiet
        self.open: list[Pending] = []
        """They wait for frames of their clips."""
        self.ready: list[Pending] = []
        """Complete; whoever takes them empties the list."""

    @property
    def deadline_s(self) -> float | None:
        """When the next open record is late; monotonic."""
        return min((pending.deadline_s for pending in self.open), default=None)

    def begin(self, candidate: Candidate, number: int, frame: int, now_s: float) -> None:
        """Encode a candidate and the frames before it; :class:`Exception` where the frame itself does not encode."""
        record = candidate.record
        region = self._maker.region(candidate.crop, record.frame_width, record.frame_height)
        pictures = []
        if candidate.shot is not None and region is not None:
            pictures.append(self._picture(candidate.shot, region))
        elif self._maker.store != "keypoints":
            self._counters.add("dropped_pictures_total", reason="outside_frame")
        pending = Pending(
            number=number,
            candidate=replace(candidate, shot=None, before=()),
            region=region,
            pictures=pictures,
            frame=frame,
            deadline_s=now_s + self._timeout_s,
        )
        if pictures:
            for position, shot in enumerate(reversed(candidate.before), 1):  # the nearest first: they matter most
                self._extend(pending, -position, shot)
        (self.open if self._after and pictures else self.ready).append(pending)

    def follow(self, camera: str, frame: int, shot: Shot) -> None:
        """A later frame of a camera: add it to the clips that it belongs to."""
        made: dict[Region, Picture] = {}
        for pending in self.open:
            if pending.candidate.record.camera == camera and pending.frame < frame <= pending.frame + self._after:
                self._extend(pending, frame - pending.frame, shot, made)
        self._close(lambda pending: pending.candidate.record.camera == camera and frame >= pending.frame + self._after)

    def close_late(self, now_s: float) -> None:
        """Records whose frames did not come in time go without them."""
        self._close(lambda pending: now_s >= pending.deadline_s)

    def close_below(self, number: int) -> None:
        """Records of lower numbers go with what they have."""
        self._close(lambda pending: pending.number < number)

    def _close(self, done: Callable[[Pending], bool]) -> None:
        self.ready += [pending for pending in self.open if done(pending)]
        self.open = [pending for pending in self.open if not done(pending)]

    def _extend(self, pending: Pending, position: int, shot: Shot, made: dict[Region, Picture] | None = None) -> None:
        """Add a frame of a clip; what goes wrong is counted, and the record goes without it."""
        region = pending.region
        assert region is not None
        try:
            picture = made.get(region) if made else None
            if picture is None:
                picture = self._picture(shot, region)
                if made is not None:
                    made[region] = picture
        except Exception as error:  # encoders raise anything
            self._counters.add("dropped_pictures_total", reason="encode_error")
            self._quiet.error("clip", "a frame of a clip could not be encoded, and is missing: %r", error)
            return
        clip_bytes = pending.nbytes - len(pending.pictures[0].data)
        if clip_bytes + len(picture.data) > CLIP_BYTES:
            self._counters.add("dropped_pictures_total", reason="clip_bytes")
            return
        pending.pictures.append(replace(picture, position=position))

    def _picture(self, shot: Shot, region: Region) -> Picture:
        picture, fallback = self._maker.picture(shot, region)
        if fallback is not None:
            self._counters.add("fallback_total", what=fallback)
            self._quiet.warning(
                fallback,
                "simplejpeg is not installed, and %s. Install alpose[cpu]",
                "Pillow takes its place"
                if fallback == "jpeg_by_pillow"
                else "neither is Pillow: frames are kept as PNG",
            )
        return picture
