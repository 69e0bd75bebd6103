"""The bytes of a record, and what its sha256 covers. ``QUEUE.md`` specifies both.

A record is stored as two pieces: the manifest, a JSON text, and the arrays, raw little-endian numbers. The hash is taken
over exactly the stored bytes, so that whoever verifies it, in any language, never has to write JSON the way we do.

Shapes: J joints, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..errors import DataError
from .record import MEDIA_TYPES, STATES, STORES, Picture, Record

HEADER = b"alpose record 1\n"
"""What is hashed first: the form below, version 1."""

MAX_NAME = 1024
"""Characters of a device, camera or trigger."""
MAX_AXIS = 4096
"""Joints, and length of an embedding."""
MAX_REASONS = 64
MAX_PICTURES = 256
"""Their rows are numbered 256 × record + place."""
MAX_MANIFEST_BYTES = 1 << 20
"""What a reader takes: our own manifests are near one kilobyte."""

HEX = frozenset("0123456789abcdef")
KEYPOINT, SCORE, EMBEDDING = np.dtype("<f4"), np.dtype("<f4"), np.dtype("<f2")
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""JSON has no such numbers, and a model can have them: they stand as these strings."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """A picture without its data, as the manifest lists it."""

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
                f"the picture at position {self.position} is not the one of its record: {len(data)} bytes where "
                f"{self.size} with sha256 {self.sha256[:12]}… were written"
            )
        return Picture(
            position=self.position,
            captured_ns=self.captured_ns,
            media_type=self.media_type,
            sealed=self.sealed,
            width=self.width,
            height=self.height,
            origin=self.origin,
            scale=self.scale,
            sha256=self.sha256,
            data=data,
        )


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record as it is stored."""

    manifest: bytes
    arrays: bytes
    sha256: str


def record_sha256(manifest: bytes, arrays: bytes) -> str:
    """Hex. A JSON text of one line holds no line feed, so the two pieces cannot run into each other."""
    return hashlib.sha256(b"".join((HEADER, manifest, b"\n", arrays))).hexdigest()


def encode(record: Record, pictures: Sequence[Picture]) -> Encoded:
    """The stored bytes of a record; :class:`DataError` where it, or a picture, contradicts itself."""
    for picture in pictures:
        if hashlib.sha256(picture.data).hexdigest() != picture.sha256:
            raise DataError(f"record {record.id}: the data of picture {picture.position} do not have its sha256")
    listed = [_picture_json(picture) for picture in pictures]
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
            f"record {record.id}: keypoints (J, 2), scores (J,) and embedding (D,) are wanted, got "
            f"{keypoints_J2.shape}, {scores_J.shape} and {embedding_D.shape}"
        )
    values = {
        "id": record.id,
        "captured_ns": int(record.captured_ns),
        "captured_monotonic_ns": int(record.captured_monotonic_ns),
        "device": record.device,
        "camera": record.camera,
        "bundle": record.bundle,
        "frame_width": int(record.frame_width),
        "frame_height": int(record.frame_height),
        "box": [_number(value) for value in record.box],
        "place": record.place,
        "joints": len(scores_J),
        "embedding": len(embedding_D),
        "predicted_loss": _number(record.predicted_loss),
        "failure_probability": _number(record.failure_probability),
        "flagged": bool(record.flagged),
        "reasons": [[name, _number(value), _number(limit)] for name, value, limit in record.reasons],
        "threshold": _number(record.threshold),
        "inclusion_probability": _number(record.inclusion_probability),
        "control_draw": _number(record.control_draw),
        "novelty": _number(record.novelty),
        "jump": _number(record.jump),
        "limbs": _number(record.limbs),
        "episode": record.episode,
        "store": record.store,
        "pictures": listed,
    }
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    arrays = keypoints_J2.tobytes() + scores_J.tobytes() + embedding_D.tobytes()
    try:
        manifest = text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"record {record.id}: a name in it is no Unicode text: {error}") from None
    encoded = Encoded(manifest, arrays, record_sha256(manifest, arrays))
    decode(manifest, arrays, encoded.sha256)  # One place says what a record may hold: the reader.
    return encoded


def decode(
    manifest: bytes, arrays: bytes, sha256: str, *, state: str = "queued", control_rate: float = 1.0
) -> tuple[Record, tuple[PictureFacts, ...]]:
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
    get = _Reader(values)
    joints, width = get.integer("joints", 0, MAX_AXIS), get.integer("embedding", 0, MAX_AXIS)
    if len(arrays) != 12 * joints + 2 * width:
        raise DataError(f"{len(arrays)} bytes of arrays for {joints} joints and an embedding of {width}")
    if state not in STATES:
        raise DataError(f"state {state!r} is not one of {', '.join(STATES)}")
    facts = tuple(_picture_facts(_Reader(value)) for value in get.objects("pictures", MAX_PICTURES))
    if len({fact.position for fact in facts}) != len(facts):
        raise DataError("two pictures have the same position")
    store = get.choice("store", STORES)
    if store == "keypoints" and facts:
        raise DataError("a record that stores keypoints alone has pictures")
    frame = next((fact for fact in facts if fact.position == 0), None)
    record = Record(
        id=get.hexadecimal("id", 32),
        captured_ns=get.integer("captured_ns"),
        captured_monotonic_ns=get.integer("captured_monotonic_ns"),
        device=get.name("device"),
        camera=get.name("camera"),
        bundle=get.hexadecimal("bundle", 64),
        frame_width=get.integer("frame_width", 1, 1 << 20),
        frame_height=get.integer("frame_height", 1, 1 << 20),
        box=cast("tuple[float, float, float, float]", get.numbers("box", 4)),
        place=get.name("place"),
        keypoints_J2=np.frombuffer(arrays, KEYPOINT, 2 * joints).reshape(joints, 2),
        scores_J=np.frombuffer(arrays, SCORE, joints, 8 * joints),
        predicted_loss=get.number("predicted_loss"),
        failure_probability=get.number("failure_probability"),
        embedding_D=np.frombuffer(arrays, EMBEDDING, width, 12 * joints),
        flagged=get.boolean("flagged"),
        reasons=get.reasons("reasons"),
        threshold=get.optional("threshold"),
        inclusion_probability=get.share("inclusion_probability"),
        control_draw=None if values.get("control_draw") is None else get.share("control_draw"),
        novelty=get.number("novelty"),
        jump=get.optional("jump"),
        limbs=get.optional("limbs"),
        episode=None if values.get("episode") is None else get.hexadecimal("episode", 32),
        store=store,
        frame_bytes=frame.size if frame else 0,
        frame_sha256=frame.sha256 if frame else None,
        state=state,
        control_rate=control_rate,
        sha256=sha256,
    )
    return record, facts


def _number(value: float | None) -> float | str | None:
    if value is None:
        return None
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _picture_json(picture: Picture) -> dict[str, Any]:
    return {
        "position": int(picture.position),
        "captured_ns": int(picture.captured_ns),
        "media_type": picture.media_type,
        "sealed": bool(picture.sealed),
        "width": int(picture.width),
        "height": int(picture.height),
        "origin": [_number(value) for value in picture.origin],
        "scale": _number(picture.scale),
        "sha256": picture.sha256,
        "bytes": len(picture.data),
    }


def _picture_facts(get: _Reader) -> PictureFacts:
    return PictureFacts(
        position=get.integer("position", -(1 << 20), 1 << 20),
        captured_ns=get.integer("captured_ns"),
        media_type=get.choice("media_type", MEDIA_TYPES),
        sealed=get.boolean("sealed"),
        width=get.integer("width", 1, 1 << 20),
        height=get.integer("height", 1, 1 << 20),
        origin=cast("tuple[float, float]", get.numbers("origin", 2)),
        scale=get.number("scale"),
        sha256=get.hexadecimal("sha256", 64),
        size=get.integer("bytes", 1, 1 << 31),
    )


class _Reader:
    """Values of a JSON object, each checked for what it has to be; keys of a later version are passed over."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def integer(self, key: str, least: int = -(1 << 63), most: int = (1 << 63) - 1) -> int:
        value = self._values.get(key)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str) -> float:
        try:
            return _float(self._values.get(key))
        except ValueError:
            raise self._wrong(key, "a number") from None

    def optional(self, key: str) -> float | None:
        return None if self._values.get(key) is None else self.number(key)

    def share(self, key: str) -> float:
        value = self.number(key)
        if not 0 <= value <= 1:
            raise self._wrong(key, "a number from 0 to 1")
        return value

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        values = self._values.get(key)
        if not isinstance(values, list) or len(values) != count:
            raise self._wrong(key, f"{count} numbers")
        try:
            return tuple(_float(value) for value in values)
        except ValueError:
            raise self._wrong(key, f"{count} numbers") from None

    def boolean(self, key: str) -> bool:
        value = self._values.get(key)
        if type(value) is not bool:
            raise self._wrong(key, "true or false")
        return value

    def name(self, key: str) -> str:
        value = self._values.get(key)
        if not is_name(value):
            raise self._wrong(key, f"a text of at most {MAX_NAME} characters and no control characters")
        return str(value)

    def choice(self, key: str, known: Sequence[str]) -> str:
        value = self._values.get(key)
        if value not in known:
            raise self._wrong(key, f"one of {', '.join(known)}")
        return str(value)

    def hexadecimal(self, key: str, digits: int) -> str:
        value = self._values.get(key)
        if not is_hex(value, digits):
            raise self._wrong(key, f"{digits} hex digits in lower case")
        return str(value)

    def objects(self, key: str, most: int) -> list[dict[str, Any]]:
        values = self._values.get(key)
        if not isinstance(values, list) or len(values) > most or not all(isinstance(value, dict) for value in values):
            raise self._wrong(key, f"a list of at most {most} objects")
        return values

    def reasons(self, key: str) -> tuple[tuple[str, float, float], ...]:
        values = self._values.get(key)
        try:
            if not isinstance(values, list) or len(values) > MAX_REASONS:
                raise ValueError
            read = tuple((name, _float(value), _float(limit)) for name, value, limit in values)
        except (ValueError, TypeError):
            raise self._wrong(key, f"at most {MAX_REASONS} times [trigger, value, limit]") from None
        if not all(is_name(name) for name, _, _ in read):
            raise self._wrong(key, "triggers' names first")
        return read

    def _wrong(self, key: str, wanted: str) -> DataError:
        return DataError(f"{key!r} in the manifest is {str(self._values.get(key))[:100]!r}, and must be {wanted}")


def _float(value: object) -> float:
    """A JSON number or one of :data:`WORDS`; :class:`ValueError` for anything else."""
    if type(value) is float or type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError from None
    if isinstance(value, str) and value in WORDS:
        return WORDS[value]
    raise ValueError


def is_name(value: object) -> bool:
    """Whether a value may be the name of a device, camera or place: printable text, not too long."""
    return isinstance(value, str) and len(value) <= MAX_NAME and (not value or value.isprintable())


def is_hex(value: object, digits: int) -> bool:
    """Whether a value is a text of so many hex digits in lower case."""
    return isinstance(value, str) and len(value) == digits and HEX.issuperset(value)
