"""What is kept of one frame: its record (the manifest: numbers and words) and its pictures (encoded images).

A record is small and is read without its pictures, so that a harvest over a slow line looks at all manifests before it
fetches any image. Both are values: nothing here touches a file.

Shapes: J joints, D embedding.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STATES = ("queued", "pulled")
STORES = ("full", "crop", "keypoints")
MEDIA_TYPES = ("image/jpeg", "image/png")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """One encoded image, as stored.

    ``position`` is 0 for the frame itself and -k or +k for the k-th frame before or after it (clips). The image may be
    smaller than the frame or a part of it: ``frame_xy = (image_xy + 0.5) * scale + origin``, as in
    :meth:`alpose.runtime.crop.Crop.to_frame`; an unscaled whole frame has the origin (-0.5, -0.5) and the scale 1.
    """

    position: int
    captured_ns: int
    """Unix time."""
    media_type: str
    """``image/jpeg`` or ``image/png``: of the image, also where it is sealed."""
    sealed: bool
    """``data`` is a sealed box around the image: only the holder of the fleet's secret key can open it."""
    width: int
    """Of the image, in its own pixels."""
    height: int
    origin: tuple[float, float]
    scale: float
    sha256: str
    """Of ``data``."""
    data: bytes

    @classmethod
    def of(
        cls,
        data: bytes,
        *,
        width: int,
        height: int,
        captured_ns: int,
        position: int = 0,
        media_type: str = "image/jpeg",
        sealed: bool = False,
        origin: tuple[float, float] = (-0.5, -0.5),
        scale: float = 1.0,
    ) -> Picture:
        """A picture with the sha256 of its data."""
        return cls(
            position=position,
            captured_ns=captured_ns,
            media_type=media_type,
            sealed=sealed,
            width=width,
            height=height,
            origin=origin,
            scale=scale,
            sha256=hashlib.sha256(data).hexdigest(),
            data=data,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """Everything about a kept frame but its pictures. Checked when it is put and when it is read, not when it is made.

    Compare records by :attr:`sha256`: it covers every field above ``state`` and the facts and hashes of all pictures.
    """

    id: str = ""
    """32 hex digits, UUIDv7 layout on the queue's clock, so that ids sort by time: from :meth:`Queue.new_id`."""
    captured_ns: int
    """Unix time by the wall clock, which may have been wrong."""
    captured_monotonic_ns: int
    device: str
    camera: str = ""
    bundle: str
    """sha256 of the bundle whose model looked at the frame."""
    frame_width: int
    frame_height: int
    box: tuple[float, float, float, float]
    """Where the person was looked for: (x0, y0, x1, y1) in frame pixels."""
    place: str
    """Where the box came from: ``box``, ``roi``, ``track``, ``search``."""
    keypoints_J2: npt.NDArray[np.float32]
    """In frame pixels."""
    scores_J: npt.NDArray[np.float32]
    predicted_loss: float
    failure_probability: float
    embedding_D: npt.NDArray[np.float16]
    """Unit length up to rounding."""
    flagged: bool
    """Kept by something other than the control stream."""
    reasons: tuple[tuple[str, float, float], ...] = ()
    """(trigger, value, limit) of everything that fired."""
    threshold: float | None = None
    """On the failure probability, as it was in force; None where the policy has none."""
    inclusion_probability: float
    """Of being put into the queue, given everything before this frame."""
    control_draw: float | None = None
    """The uniform number in [0, 1) that took the frame into the control stream; None where it is not in it."""
    novelty: float = 1.0
    """Cosine distance to what was kept before, 0..2; 1 where unknown."""
    jump: float | None = None
    limbs: float | None = None
    episode: str | None = None
    """Id of the first record of the same continuous failure."""
    store: str = "full"
    """What was kept: ``full`` frame, ``crop``, or ``keypoints`` alone."""
    frame_bytes: int = 0
    """Of the picture at position 0 as stored; 0 where there is none."""
    frame_sha256: str | None = None
    state: str = "queued"
    """``queued``, or ``pulled`` once somebody acknowledged that he has it. Not covered by the hash."""
    control_rate: float = 1.0
    """The control stream's record stands for min(rate when it was drawn, this): the queue lowers it when it has to
    evict control records. Set by reading; not covered by the hash."""
    sha256: str = ""
    """Of the record in its canonical form (``QUEUE.md``). Set by the queue, also in what :meth:`Queue.put` returns."""
