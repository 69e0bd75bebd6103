"""What the demo simulates: devices, each of which sees easy people first and hard ones later, as when a fleet moves to
another country; and an annotator who knows the truth.

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
from alpose.trainer.data.records import PoseData
from alpose.trainer.data.synthetic import read_people
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


@dataclass(frozen=True, slots=True)
class Stream:
    """What one device will see."""

    device: str
    halves: tuple[PoseData, PoseData]

    @classmethod
    def of(cls, device: str, seed: int, frames: int) -> Stream:
        """A stream of ``frames`` frames that drifts in its middle."""
        easy = read_people(seed=seed, count=frames // 2, domain="easy")
        return cls(device, (easy, read_people(seed=seed, count=frames - frames // 2, domain="hard")))

    def __len__(self) -> int:
        return len(self.halves[0]) + len(self.halves[1])

    def person(self, number: int) -> tuple[PoseData, int]:
        """Data and row of a frame."""
        first = len(self.halves[0])
        return (self.halves[0], number) if number < first else (self.halves[1], number - first)

    def number_of(self, captured_ns: int) -> int:
        """Which frame was taken at a time."""
        return (captured_ns - BEGAN_NS) // FRAME_NS


@dataclass(frozen=True, slots=True)
class Watched:
    """A stream after its device has seen it, with what only a simulation knows."""

    stream: Stream
    pck_N: npt.NDArray[np.float64]
    """Of each frame; NaN where its labels do not tell."""
    flagged_N: npt.NDArray[np.bool_]
    kept_N: npt.NDArray[np.bool_]

    @property
    def failed_N(self) -> npt.NDArray[np.bool_]:
        """Frames on which the model failed."""
        return Failure().failed(self.pck_N)[0]


def watch(stream: Stream, bundle: Path, queue: Path | None, trigger: str | None, seed: int) -> Watched:
    """Run a Monitor over a stream, as an app would: the box of the person is known to it."""
    count = len(stream)
    flagged_N, kept_N = np.zeros(count, dtype=np.bool_), np.zeros(count, dtype=np.bool_)
    predicted: list[npt.NDArray[np.float32]] = []
    with runtime.Monitor(
        bundle, queue=queue, trigger=trigger, engine="cpu", threads=1, device_id=stream.device, seed=seed
    ) as monitor:
        for number in progress(range(count), f"{stream.device} watches", count):
            data, row = stream.person(number)
            verdict = monitor(data.image(row), box=data.boxes_N4[row], time_ns=BEGAN_NS + number * FRAME_NS)
            predicted.append(np.asarray(verdict.keypoints))
            flagged_N[number], kept_N[number] = verdict.flagged, verdict.kept
            if verdict.kept:
                monitor.flush()  # a real camera leaves the disk more time than this loop does
    first = len(stream.halves[0])
    pck_N = np.concatenate([_pck(stream.halves[0], predicted[:first]), _pck(stream.halves[1], predicted[first:])])
    return Watched(stream, pck_N, flagged_N, kept_N)


def _pck(data: PoseData, predicted: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    distance_NJ = np.linalg.norm(np.stack(predicted) - data.joints_NJ2, axis=2)
    judged = judge(data, distance_NJ, np.ones_like(distance_NJ), profile_for("standard", data.skeleton))
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
        data, row = stream.person(stream.number_of(entry.record.captured_ns))
        frame = next(fact for fact in entry.pictures if fact.position == 0)
        annotation |= _truth(data, row, to_image(data.joints_NJ2[row], frame))
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
