"""What the demo simulates: devices on which a part of the pictures comes from a turned camera after a while, and an
annotator who knows the truth.

Shapes: N frames, J joints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from alpose import runtime
from alpose.runtime.io import read_json
from alpose.trainer.data.records import Bools, PoseData, join
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.gain.field import turned as turned_by_a_quarter
from alpose.trainer.measures.metrics import Failure, judge, profile_for
from alpose.trainer.progress import progress

from ..annotation.exporting import to_image
from ..formats import coco
from ..inbox import Inbox
from ..labels import id_in

BEGAN_NS = 1_750_000_000_000_000_000
"""When the first frame was taken, Unix time: any moment will do, and the same one makes the demo the same."""
FRAME_NS = 100_000_000
"""Ten frames a second."""
HARD_SHARE = 0.04
"""Of all frames: dark, blurred, crowded or covered. The model fails on many of them, and labels help little."""
TURNED_SHARE = 0.08
"""Of the frames after the change."""
TURNED_SEED = 50_000
"""Keeps the people in front of the turned camera apart from the others."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What one device will see, in this order."""

    device: str
    data: PoseData
    turned_N: Bools
    """Frames of the turned camera; there are none before the middle of the stream."""

    @classmethod
    def of(cls, device: str, seed: int, frames: int, turned: float = TURNED_SHARE) -> Stream:
        """A stream of ``frames`` frames; from its middle on, a share ``turned`` of them is from a turned camera."""
        rng = np.random.default_rng(seed)
        hard_N = rng.random(frames) < HARD_SHARE
        turned_N = (rng.random(frames) < turned) & (np.arange(frames) >= frames // 2)
        kind_N = np.where(turned_N, 2, np.where(hard_N, 1, 0))
        easy, hard, on_side = np.maximum(np.bincount(kind_N, minlength=3), 1).tolist()
        together = join(
            device,
            read_people(seed=seed, count=easy, domain="easy"),
            read_people(seed=seed, count=hard, domain="hard"),
            turned_by_a_quarter(read_people(seed=seed + TURNED_SEED, count=on_side)),
        )
        first_3 = np.array([0, easy, easy + hard])
        place_N = np.zeros(frames, dtype=np.int64)
        for kind in range(3):
            place_N[kind_N == kind] = first_3[kind] + np.arange(int((kind_N == kind).sum()))
        return cls(device, together.subset(place_N), turned_N)

    def __len__(self) -> int:
        return len(self.data)

    def number_of(self, captured_ns: int) -> int:
        """Which frame was taken at a time."""
        return (captured_ns - BEGAN_NS) // FRAME_NS


@dataclass(frozen=True, slots=True)
class Watched:
    """A stream after its device has seen it, with what only a simulation knows."""

    stream: Stream
    pck_N: npt.NDArray[np.float64]
    """Of each frame; NaN where its labels do not tell."""
    kept_N: Bools

    @property
    def failed_N(self) -> Bools:
        """Frames on which the model failed."""
        return Failure().failed(self.pck_N)[0]


def watch(stream: Stream, bundle: Path, queue: Path, trigger: str, seed: int) -> Watched:
    """Run a Monitor over a stream, as an app would: the box of the person is known to it."""
    count, data = len(stream), stream.data
    kept_N = np.zeros(count, dtype=np.bool_)
    predicted: list[npt.NDArray[np.float32]] = []
    with runtime.Monitor(
        bundle, queue=queue, trigger=trigger, engine="cpu", threads=1, device_id=stream.device, seed=seed
    ) as monitor:
        for number in progress(range(count), f"{stream.device} watches", count):
            verdict = monitor(data.image(number), box=data.boxes_N4[number], time_ns=BEGAN_NS + number * FRAME_NS)
            predicted.append(np.asarray(verdict.keypoints))
            kept_N[number] = verdict.kept
            if verdict.kept:
                monitor.flush()  # a real camera leaves the disk more time than this loop does
    distance_NJ = np.linalg.norm(np.stack(predicted) - data.joints_NJ2, axis=2)
    return Watched(stream, image_pck(data, distance_NJ), kept_N)


def image_pck(data: PoseData, distance_NJ: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """PCK of each frame, NaN where its labels do not tell; the distances are in pixels of the frame."""
    judged = judge(data, np.asarray(distance_NJ, np.float32), np.ones_like(distance_NJ, np.float32),
                   profile_for("standard", data.skeleton))  # fmt: skip
    return judged.image_pck().astype(np.float64)


# --- The annotator


def correct(batch: Path, inbox: Inbox, streams: Mapping[str, Stream]) -> Path:
    """Put every joint of a COCO batch where it truly is; hidden ones are marked so. Returns the corrected file."""
    (path,) = (batch / "annotations").glob("*.json")
    document: dict[str, Any] = read_json(path)
    names = {image["id"]: str(image["file_name"]) for image in document["images"]}
    for annotation in document["annotations"]:
        id_ = id_in(names[annotation["image_id"]])
        assert id_ is not None
        (entry,) = inbox.entries([id_])
        stream = streams[entry.record.device]
        row = stream.number_of(entry.record.captured_ns)
        frame = next(fact for fact in entry.pictures if fact.position == 0)
        annotation |= _truth(stream.data, row, to_image(stream.data.joints_NJ2[row], frame))
    corrected = batch / "corrected.json"
    corrected.write_text(json.dumps(document))
    return corrected


def write_dataset(folder: Path, people: Sequence[tuple[PoseData, int]]) -> Path:
    """A COCO keypoints folder of these people, one an image: what an annotator of randomly picked frames would make."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (data, row) in enumerate(people, start=1):
        image_HW3 = data.image(row)
        name = f"{number:05d}.jpg"
        cv2.imwrite(str(folder / "images" / name), image_HW3[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": number, "file_name": name, "width": image_HW3.shape[1], "height": image_HW3.shape[0]})
        x0, y0, x1, y1 = (float(value) for value in data.boxes_N4[row])
        annotations.append({
            "id": number, "image_id": number, "category_id": coco.CATEGORY_ID, "iscrowd": 0, "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0), **_truth(data, row, data.joints_NJ2[row]),
        })  # fmt: skip
    document = {"images": images, "annotations": annotations, "categories": [coco.category(people[0][0].skeleton)]}
    (folder / "annotations" / "labels.json").write_text(json.dumps(document))
    return folder


def _truth(data: PoseData, row: int, joints_J2: npt.NDArray[np.floating]) -> dict[str, Any]:
    visibility_J = np.where(data.labelled_NJ[row], np.where(data.visible_NJ[row], 2, 1), 0)
    return {"keypoints": coco.flat(joints_J2, visibility_J), "num_keypoints": int((visibility_J > 0).sum())}
