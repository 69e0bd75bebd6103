"""Writing a queue's picture to a file, with pose and box on it if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import draw
from ..errors import ConfigError, DataError, DataNotFoundError
from ..queue.images import JPEG, PNG, decode, encode
from ..skeleton import Skeleton

if TYPE_CHECKING:
    from ..queue import Picture, Queue, Record

MEDIA_TYPES = {".jpg": JPEG, ".jpeg": JPEG, ".png": PNG}
QUALITY = 95


def save_picture(
    queue: Queue, record: Record, pictures: Sequence[Picture], path: Path, *, position: int = 0, drawn: bool = False,
    key: Path | None = None,
) -> None:  # fmt: skip
    """Write one picture of a record; as its bytes stand in the queue where nothing has to change.

    Raises:
        ConfigError: no ending of a picture.
        DataNotFoundError: the record has no such picture.
        DataError: it is sealed and no key was given, or damaged.
    """
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    if media_type is None:
        raise ConfigError(f"{path}: the name of a picture ends in {', '.join(MEDIA_TYPES)}")
    picture = next((item for item in pictures if item.position == position), None)
    if picture is None:
        there = ", ".join(f"{item.position:+d}" for item in pictures) or "none"
        raise DataNotFoundError(f"record {record.id} has no picture at position {position}; it has: {there}")
    data = picture.data
    if picture.sealed:
        if key is None:
            raise DataError(f"record {record.id} is sealed: give the private key of the fleet with --key")
        from ..bundle.keys import opener

        data = opener(key)(data)
    if drawn or media_type != picture.media_type:
        rgb_HW3 = np.array(decode(data))
        if drawn:
            draw_record(rgb_HW3, record, picture, skeleton_of(queue, record))
        encoded = encode(rgb_HW3, media_type, QUALITY, None)
        if encoded.media_type != media_type:
            raise DataError(f"{path}: nothing here encodes JPEG; save it as .png, or pip install simplejpeg")
        data = encoded.data
    path.write_bytes(data)


def draw_record(rgb_HW3: draw.Image, record: Record, picture: Picture, skeleton: Skeleton) -> None:
    """Pose and box, moved from the frame to this picture of it."""
    origin_2 = np.array(picture.origin, dtype=np.float64)
    keypoints_J2 = (record.keypoints_J2 - origin_2) / picture.scale - 0.5
    (x0, y0), (x1, y1) = (np.array(record.box, dtype=np.float64).reshape(2, 2) - origin_2) / picture.scale - 0.5
    unit = max(1.0, max(rgb_HW3.shape) / 800)
    draw.corners(rgb_HW3, (float(x0), float(y0), float(x1), float(y1)), draw.MIDDLE, 2 * unit)
    if picture.position == 0:  # the pose is that of the kept frame, not of those around it
        draw.pose(rgb_HW3, keypoints_J2, record.scores_J, skeleton, 3 * unit)


def skeleton_of(queue: Queue, record: Record) -> Skeleton:
    """The skeleton of the record's bundle; joints without links where the queue does not know the bundle."""
    for bundle in queue.bundles():
        if bundle.sha256 == record.bundle and isinstance(bundle.facts.get("skeleton"), dict):
            skeleton = Skeleton.from_json(bundle.facts["skeleton"])
            if len(skeleton) == len(record.keypoints_J2):
                return skeleton
    names = tuple(f"joint {number}" for number in range(len(record.keypoints_J2)))
    return Skeleton("unknown", names, (), ())
