"""Kept frames and their clips as one MCAP file, for Foxglove and whatever else reads https://mcap.dev.

Three topics for each camera, all JSON with a schema:

- ``/DEVICE/CAMERA/image``: ``foxglove.CompressedImage``, the pictures as they were stored;
- ``/DEVICE/CAMERA/pose``: ``foxglove.ImageAnnotations`` in pixels of that picture: pose, box, failure probability;
- ``/DEVICE/CAMERA/verdict``: everything that the record says, ``alpose.Record``, to plot and to search.

Shapes: J joints.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from alpose import __version__
from alpose.runtime import drawing
from alpose.runtime.command_line import finite
from alpose.runtime.commands.queue import facts_of
from alpose.runtime.errors import MissingExtraError
from alpose.runtime.io import replacing
from alpose.runtime.queue.record import PictureInfo
from alpose.runtime.skeleton import Skeleton
from alpose.runtime.triggers import Reason

from .annotation.exporting import DAMAGED, KEYPOINTS_ONLY, UNREADABLE, Skeletons, decodes, to_image, why_absent
from .inbox import Inbox
from .inbox_database import Entry

METADATA = "alpose"
"""Name of the record that says what the file holds."""
LINE_LOOP, POINTS, LINE_LIST = 2, 1, 4
"""Kinds of ``foxglove.PointsAnnotation``."""
TIME = {"type": "object", "title": "time", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
ANYTHING: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
SCHEMAS: dict[str, dict[str, Any]] = {
    "foxglove.CompressedImage": {
        "timestamp": TIME, "frame_id": {"type": "string"}, "format": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
    },
    "foxglove.ImageAnnotations": {"circles": ANYTHING, "points": ANYTHING, "texts": ANYTHING},
    "alpose.Record": {"id": {"type": "string"}, "failure_probability": {"type": "number"}, "flagged": {"type": "boolean"}},
}  # fmt: skip
"""Properties by name; https://docs.foxglove.dev/docs/visualization/message-schemas."""
TOPICS = {"image": "foxglove.CompressedImage", "pose": "foxglove.ImageAnnotations", "verdict": "alpose.Record"}


@dataclass(frozen=True, slots=True)
class WrittenMcap:
    """What stands in the file."""

    records: int
    pictures: int
    missing: Mapping[str, int]
    """Pictures that could not be shown, by reason; their verdicts are there all the same."""


def write_mcap(inbox: Inbox, ids: Iterable[str], path: Path, *, batch: str | None = None) -> WrittenMcap:
    """Write records with the pictures of their clips, by the time at which each was captured.

    Args:
        inbox: where they are.
        ids: of the records, by the time at which they were captured: people on one frame share its picture.
        path: of the file.
        batch: the name of the batch that they are, for the file's metadata.

    Raises:
        MissingExtraError: mcap is not installed.
    """
    try:
        from mcap.writer import Writer
    except ImportError as error:
        raise MissingExtraError("mcap", "writing MCAP files", "mcap") from error
    skeletons, missing = Skeletons(inbox), Counter[str]()
    records = pictures = 0
    with replacing(path) as temporary, open(temporary, "wb") as file:
        writer = Writer(file)
        writer.start(library=f"alpose {__version__}")
        channels: dict[str, int] = {}
        bases = _Topics()
        schemas = {name: writer.register_schema(name, "jsonschema", _schema(name)) for name in SCHEMAS}

        def add(entry: Entry, topic: str, time_ns: int, value: Mapping[str, Any]) -> None:
            camera = {"device": entry.record.device, "camera": entry.record.camera}
            name = f"{bases[camera['device'], camera['camera']]}/{topic}"
            if name not in channels:
                channels[name] = writer.register_channel(name, "json", schemas[TOPICS[topic]], camera)
            writer.add_message(
                channels[name], max(0, time_ns), json.dumps(value, allow_nan=False).encode(), max(0, time_ns)
            )

        entries = (inbox.entries([id_])[0] for id_ in ids)
        for _, moment in groupby(entries, key=lambda entry: entry.record.captured_ns):
            for people in _by_frame(moment):
                records += len(people)
                for entry in people:
                    add(entry, "verdict", entry.record.captured_ns, finite(facts_of(entry.record)))
                first = people[0]
                if not first.pictures:
                    missing[KEYPOINTS_ONLY] += 1
                for picture in sorted(first.pictures, key=lambda one: one.position):
                    image = _image(inbox, people, picture)
                    if isinstance(image, str):
                        missing[image] += 1
                        continue
                    pictures += 1
                    add(first, "image", picture.captured_ns, {
                        "timestamp": _time(picture.captured_ns), "frame_id": first.record.camera or first.record.device,
                        "format": picture.media_type.removeprefix("image/"), "data": base64.b64encode(image).decode(),
                    })  # fmt: skip
                    if picture.position == 0:  # the pose is that of the kept frame, not of those around it
                        drawn = [image_annotations(entry, picture, skeletons[entry.record.bundle], place)
                                 for place, entry in enumerate(people)]  # fmt: skip
                        add(first, "pose", picture.captured_ns, _together(drawn))
        writer.add_metadata(
            METADATA, {"version": __version__, "records": str(records), **_identity(inbox.folder, batch)}
        )
        writer.finish()
    return WrittenMcap(records, pictures, dict(missing))


def holds(path: Path, inbox: Path | None, batch: str | None) -> bool:
    """Whether a file holds an inbox, or one of its batches, as :func:`write_mcap` writes it; of whatever inbox where that is None."""
    try:
        from mcap.exceptions import McapError
        from mcap.reader import make_reader
    except ImportError:
        return False
    try:
        with open(path, "rb") as file:
            found = [one.metadata for one in make_reader(file).iter_metadata() if one.name == METADATA]
    except (McapError, ValueError, struct.error):
        return False
    return any(
        one.get("batch") == batch and (inbox is None or one.get("inbox") == inbox.resolve().name) for one in found
    )


def _identity(inbox: Path, batch: str | None) -> dict[str, str]:
    return {"inbox": inbox.resolve().name, **({} if batch is None else {"batch": batch})}


def _by_frame(entries: Iterable[Entry]) -> list[list[Entry]]:
    """The people of each frame: of one camera at one time, with the very same picture."""
    found: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        record = entry.record
        picture = next((one.sha256 for one in entry.pictures if one.position == 0), record.id)
        found.setdefault((record.device, record.camera, picture), []).append(entry)
    return list(found.values())


def _together(annotations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everybody's annotations in one message: of two at one time a viewer shows the second alone."""
    return {kind: [one for each in annotations for one in each[kind]] for kind in ("circles", "points", "texts")}


def _image(inbox: Inbox, people: Sequence[Entry], picture: PictureInfo) -> bytes | str:
    """A picture that can be looked at, of whoever on the frame has it here, or why there is none."""
    found = [_image_of(inbox, entry, picture) for entry in people]
    return next((one for one in found if isinstance(one, bytes)), found[0])


def _image_of(inbox: Inbox, entry: Entry, picture: PictureInfo) -> bytes | str:
    file = inbox.image(entry.record.id, picture.position)
    if file is None:
        return why_absent(entry, picture)
    # What was opened here has no hash in its record: that is of the sealed box.
    data = file.read_bytes() if picture.sealed else inbox.picture_bytes(entry.record.id, picture)
    if data is None:
        return DAMAGED
    return data if decodes(data) else UNREADABLE


def image_annotations(entry: Entry, picture: PictureInfo, skeleton: Skeleton, place: int = 0) -> dict[str, Any]:
    """Pose, box and failure probability in pixels of a picture, as ``foxglove.ImageAnnotations``.

    Args:
        entry: the record.
        picture: that of its frame.
        skeleton: of its bundle.
        place: among the people of the frame, whose lines of text stand below each other.
    """
    record, time = entry.record, _time(picture.captured_ns)
    points_J2 = to_image(record.keypoints_J2.astype(np.float64), picture)
    placed_J = np.all(np.isfinite(points_J2), axis=1)
    sure_J = np.clip(record.certainty_J.astype(np.float64) / drawing.SURE, drawing.UNSURE, 1.0)
    colours = drawing.side_colours(skeleton)
    links = [(a, b) for a, b in skeleton.links if placed_J[a] and placed_J[b]]
    joints = [joint for joint in range(len(skeleton)) if placed_J[joint]]
    limb = [colours[a] if colours[a] == colours[b] else drawing.MIDDLE for a, b in links]
    (x0, y0), (x1, y1) = to_image(np.array(record.box, dtype=np.float64).reshape(2, 2), picture).tolist()
    reasons = ", ".join(str(Reason(*reason)) for reason in record.reasons) or "control"
    return {
        "circles": [],
        "points": [
            _points(time, LINE_LIST, [points_J2[joint] for link in links for joint in link],
                    [_colour(colour, min(sure_J[a], sure_J[b])) for colour, (a, b) in zip(limb, links, strict=True)], 3),
            _points(time, POINTS, [points_J2[joint] for joint in joints],
                    [_colour(colours[joint], sure_J[joint]) for joint in joints], 6),
            *([_points(time, LINE_LOOP, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], [_colour(drawing.MIDDLE, 0.7)], 1)]
              if np.isfinite([x0, y0, x1, y1]).all() else []),
        ],
        "texts": [{
            "timestamp": time, "position": _point((4.0, 18.0 + 20.0 * place)), "font_size": 16, "text_color": _colour(drawing.MIDDLE, 1),
            "background_color": _colour(drawing.DARK, 0.7), "text": f"P(fail) {record.probability_text}  {reasons}",
        }],
    }  # fmt: skip


def _points(time: Any, kind: int, points: Iterable[Any], colours: list[Any], thickness: float) -> dict[str, Any]:
    none = {"r": 0.0, "g": 0.0, "b": 0.0, "a": 0.0}
    return {"timestamp": time, "type": kind, "points": [_point(point) for point in points], "outline_colors": colours,
            "outline_color": colours[0] if colours else none, "fill_color": none, "thickness": thickness}  # fmt: skip


def _point(point: Any) -> dict[str, float]:
    return {"x": round(float(point[0]), 2), "y": round(float(point[1]), 2)}


def _colour(colour: drawing.Colour, opacity: float) -> dict[str, float]:
    red, green, blue = (round(part / 255, 3) for part in colour)
    return {"r": red, "g": green, "b": blue, "a": round(float(opacity), 3)}


def _schema(name: str) -> bytes:
    return json.dumps({"title": name, "type": "object", "properties": SCHEMAS[name]}).encode()


def _time(time_ns: int) -> dict[str, int]:
    return {"sec": max(0, time_ns) // 10**9, "nsec": max(0, time_ns) % 10**9}


class _Topics(dict[tuple[str, str], str]):
    """``/car-17/seat`` by device and camera: a topic has letters, digits, ``_``, ``.``, ``-`` and ``/``.

    Names that are the same in these letters are told apart by the beginning of a hash: the first keeps its plain name.
    """

    def __missing__(self, camera: tuple[str, str]) -> str:
        base = "".join(f"/{re.sub(r'[^0-9A-Za-z_.-]+', '_', name)}" for name in camera if name) or "/device"
        if base in self.values():
            base += f"-{hashlib.sha256(json.dumps(camera).encode()).hexdigest()[:8]}"
        self[camera] = base
        return base
