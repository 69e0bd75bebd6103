"""What is kept of one frame: its record (numbers and words), its pictures, and the bytes in which a record is stored.

A record is small and is read without its pictures, so that a harvest over a slow line looks at all records before it
fetches any image. It is stored as two pieces: the manifest, a JSON text, and the arrays, raw little-endian numbers. The
sha256 of a record covers exactly the stored bytes, so that whoever verifies it, in any language, never has to write JSON
the way Python does. ``QUEUE.md`` specifies both. Nothing here touches a file.

Shapes: H W frame or a part of it, J joints, D embedding.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..crop import Crop
from ..errors import DataError
from ..frames import Region
from ..redaction import REDACTIONS
from .fields import (
    AXIS,
    BOOLEAN,
    INTEGER,
    NAME,
    NUMBER,
    PICTURES,
    SHARE,
    SIDE,
    Field,
    choice,
    hexadecimal,
    integer,
    json_number,
    numbers,
    optional,
    read_fields,
    read_reasons,
    read_shares,
    written_fields,
)

STATES = ("queued", "pulled")
STORES = ("full", "crop", "keypoints")
MEDIA_TYPES = ("image/jpeg", "image/png")

HEADER = b"alpose record 1\n"
"""What is hashed first: the version of the stored form."""

MAX_MANIFEST_BYTES = 1 << 20
"""The longest manifest that is read: those of alpose are near one kilobyte."""

KEYPOINT, SCORE, EMBEDDING = np.dtype("<f4"), np.dtype("<f4"), np.dtype("<f2")


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
    """Where the box came from: ``box``, ``roi``, ``track``, ``motion``, ``search``, ``whole``."""
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
    redacted: str | None = None
    """``face`` where heads were made unrecognisable in its pictures, at the places that poses gave; see ``docs/privacy.md``."""
    confidence: tuple[float, ...] | None = None
    """Probability of each joint being right, to four decimals; None where the bundle gives none."""
    occupied: bool | None = None
    """False where a search found nobody: the pose is of an empty room, and its failure probability is of no account."""
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

    @property
    def probability_text(self) -> str:
        """The failure probability as it is shown to people: ``0.93``, or ``nobody`` where nobody is there."""
        return "nobody" if self.occupied is False else f"{self.failure_probability:.2f}"

    @property
    def certainty_J(self) -> npt.NDArray[np.float32]:
        """How far each joint can be trusted: its confidence where that is known, otherwise its score; finite, (J,)."""
        known_J = self.scores_J if self.confidence is None else np.array(self.confidence, dtype=np.float32)
        return np.nan_to_num(known_J, nan=0.0, posinf=1.0, neginf=0.0)


@dataclass(frozen=True, slots=True, eq=False)
class FrameCopy:
    """Pixels of one moment: a whole frame, or the region of it that is kept. They belong to the recorder from now on."""

    captured_ns: int
    """Unix time."""
    rgb_HW3: npt.NDArray[np.uint8]
    offset: tuple[int, int] = (0, 0)
    """Column and row in the frame of the first pixel."""
    redacted: tuple[Region, ...] = ()
    """Heads that are made unrecognisable before anything is encoded, in pixels of the frame."""
    number: int = field(default_factory=itertools.count().__next__)
    """Of this copy: people on one frame are handed over with the same one, whose picture is then made and stored once."""


def kept_region(store: str, crop: Crop, width: int, height: int) -> Region | None:
    """The part of a frame of ``width`` x ``height`` that is kept; None for nothing.

    The rectangle of a crop is widened to the pixels that its filter reads beyond the edge, half a sample: from a lossless
    picture of the region the net's input can be computed again.
    """
    if store == "keypoints":
        return None
    if store == "full":
        return 0, 0, width, height
    left, top, right, bottom = crop.reach_4
    (x0, x1), (y0, y1) = _whole_pixels(left, right, width), _whole_pixels(top, bottom, height)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _whole_pixels(first: float, last: float, length: int) -> tuple[int, int]:
    """The pixels that an interval touches; pixel i covers [i - 0.5, i + 0.5]."""
    return min(max(math.floor(first + 0.5), 0), length), min(max(math.ceil(last + 0.5), 0), length)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A frame that is to be kept, as the camera's thread hands it to the recorder."""

    record: Record
    """Everything that the monitor knows; the recorder fills in ``id``, ``episode``, ``store`` and ``frame_*``."""
    frame: FrameCopy | None
    """None where the queue stores keypoints alone."""
    crop: Crop
    """The square that the net looked at."""
    sequence: int
    """The trigger's number of this observation, to which ``supersedes`` of later ones refers."""
    supersedes: tuple[int, ...] = ()
    """Numbers of frames kept before, which this one replaces."""
    episode: int | None = None
    """The trigger's running number of the episode."""
    before: tuple[FrameCopy, ...] = ()
    """The frames before this one, the nearest last."""

    @property
    def copies(self) -> tuple[FrameCopy, ...]:
        """All that it holds of pixels."""
        return self.before if self.frame is None else (*self.before, self.frame)


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """A picture without its data, as the manifest lists it; the fields are those of :class:`Picture`."""

    position: int
    captured_ns: int
    media_type: str
    sealed: bool
    width: int
    height: int
    origin: tuple[float, float]
    scale: float
    sha256: str
    size: int
    """Of the data, in bytes."""

    def joined(self, data: bytes) -> Picture:
        """The picture, if ``data`` is what the manifest says; :class:`DataError` otherwise."""
        if len(data) != self.size or hashlib.sha256(data).hexdigest() != self.sha256:
            raise DataError(
                f"the picture at position {self.position} does not belong to its record: {len(data)} bytes where "
                f"{self.size} with sha256 {self.sha256[:12]}… were written"
            )
        return Picture(data=data, **{name: getattr(self, name) for name in _PICTURE})


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record as it is stored."""

    manifest: bytes
    arrays: bytes
    sha256: str


def record_sha256(manifest: bytes, arrays: bytes) -> str:
    """The sha256 in hex. A JSON text of one line holds no line feed, so the two pieces cannot run into each other."""
    return hashlib.sha256(b"".join((HEADER, manifest, b"\n", arrays))).hexdigest()


def encode(record: Record, pictures: Sequence[Picture]) -> Encoded:
    """The stored bytes of a record; :class:`DataError` where it, or a picture, contradicts itself."""
    for picture in pictures:
        if hashlib.sha256(picture.data).hexdigest() != picture.sha256:
            raise DataError(f"record {record.id}: the data of picture {picture.position} do not have its sha256")
    frame = next((picture for picture in pictures if picture.position == 0), None)
    stated = (record.frame_bytes, record.frame_sha256)
    actual = (0, None) if frame is None else (len(frame.data), frame.sha256)
    if stated not in ((0, None), actual):
        raise DataError(f"record {record.id}: says its frame is {stated}, and the picture at position 0 is {actual}")
    keypoints_J2 = np.ascontiguousarray(record.keypoints_J2, dtype=KEYPOINT)
    scores_J = np.ascontiguousarray(record.scores_J, dtype=SCORE)
    embedding_D = np.ascontiguousarray(record.embedding_D, dtype=EMBEDDING)
    if keypoints_J2.shape != (len(scores_J), 2) or scores_J.ndim != 1 or embedding_D.ndim != 1:
        raise DataError(
            f"record {record.id}: expected keypoints (J, 2), scores (J,) and embedding (D,), got "
            f"{keypoints_J2.shape}, {scores_J.shape} and {embedding_D.shape}"
        )
    values = written_fields(record, _RECORD)
    for name in ADDED:  # absent as before there was such a field
        if values[name] is None:
            del values[name]
    values["joints"], values["embedding"] = len(scores_J), len(embedding_D)
    values["pictures"] = [{**written_fields(picture, _PICTURE), "bytes": len(picture.data)} for picture in pictures]
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    arrays = keypoints_J2.tobytes() + scores_J.tobytes() + embedding_D.tobytes()
    try:
        manifest = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"record {record.id}: a name in it is not Unicode text: {error}") from None
    encoded = Encoded(manifest, arrays, record_sha256(manifest, arrays))
    decode(manifest, arrays, encoded.sha256)  # One place says what a record may hold: the reader.
    return encoded


def decode(
    manifest: bytes, arrays: bytes, sha256: str, *, state: str = "queued", control_rate: float = 1.0
) -> tuple[Record, tuple[PictureInfo, ...]]:
    """A stored record, verified; :class:`DataError` says what is wrong with it."""
    if record_sha256(manifest, arrays) != sha256:
        raise DataError("the record does not have its sha256: a torn, damaged or altered row")
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise DataError(f"a manifest of {len(manifest)} bytes; at most {MAX_MANIFEST_BYTES} are read")
    try:
        values = json.loads(manifest)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the manifest is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError("the manifest is not a JSON object")
    lengths = read_fields(values, {"joints": AXIS, "embedding": AXIS, "pictures": PICTURES})
    joints, width = lengths["joints"], lengths["embedding"]
    if len(arrays) != 12 * joints + 2 * width:
        raise DataError(f"{len(arrays)} bytes of arrays for {joints} joints and an embedding of {width}")
    if state not in STATES:
        raise DataError(f"state {state!r} is not one of {', '.join(STATES)}")
    pictures = tuple(
        PictureInfo(size=read_fields(value, {"bytes": integer(1, 1 << 31)})["bytes"], **read_fields(value, _PICTURE))
        for value in lengths["pictures"]
    )
    if len({picture.position for picture in pictures}) != len(pictures):
        raise DataError("two pictures have the same position")
    fields = read_fields(values, _RECORD)
    if fields["confidence"] is not None and len(fields["confidence"]) != joints:
        raise DataError(f"a confidence of {len(fields['confidence'])} joints in a record of {joints}")
    if fields["store"] == "keypoints" and pictures:
        raise DataError("a record that stores keypoints alone has pictures")
    frame = next((picture for picture in pictures if picture.position == 0), None)
    record = Record(
        **fields,
        keypoints_J2=np.frombuffer(arrays, KEYPOINT, 2 * joints).reshape(joints, 2),
        scores_J=np.frombuffer(arrays, SCORE, joints, 8 * joints),
        embedding_D=np.frombuffer(arrays, EMBEDDING, width, 12 * joints),
        frame_bytes=frame.size if frame else 0,
        frame_sha256=frame.sha256 if frame else None,
        state=state,
        control_rate=control_rate,
        sha256=sha256,
    )
    return record, pictures


_PICTURE = {
    "position": integer(-(1 << 20), 1 << 20),
    "captured_ns": INTEGER,
    "media_type": choice(MEDIA_TYPES),
    "sealed": BOOLEAN,
    "width": SIDE,
    "height": SIDE,
    "origin": numbers(2),
    "scale": NUMBER,
    "sha256": hexadecimal(64),
}

_RECORD = {
    "id": hexadecimal(32),
    "captured_ns": INTEGER,
    "captured_monotonic_ns": INTEGER,
    "device": NAME,
    "camera": NAME,
    "bundle": hexadecimal(64),
    "frame_width": SIDE,
    "frame_height": SIDE,
    "box": numbers(4),
    "place": NAME,
    "predicted_loss": NUMBER,
    "failure_probability": NUMBER,
    "flagged": BOOLEAN,
    "reasons": Field(
        lambda reasons: [[name, json_number(value), json_number(limit)] for name, value, limit in reasons],
        read_reasons,
    ),
    "threshold": optional(NUMBER),
    "inclusion_probability": SHARE,
    "control_draw": optional(SHARE),
    "novelty": NUMBER,
    "jump": optional(NUMBER),
    "limbs": optional(NUMBER),
    "episode": optional(hexadecimal(32)),
    "store": choice(STORES),
    "redacted": optional(choice(REDACTIONS)),
    "confidence": optional(Field(lambda values: [json_number(value) for value in values], read_shares)),
    "occupied": optional(BOOLEAN),
}
"""The fields that the manifest has of a record, beside ``joints``, ``embedding`` and ``pictures``."""
ADDED = ("redacted", "confidence", "occupied")
"""Fields that came later, and are absent where they say nothing: the records of others stay as they were, bit for bit."""
