"""Frames as a dataset, with their truth: what an annotator of randomly picked frames would have made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from alpose.trainer.data.records import PoseData

from ..formats import coco


def write(folder: Path, people: Sequence[tuple[PoseData, int]]) -> Path:
    """A COCO keypoints folder of these people, one an image."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (data, row) in enumerate(people, start=1):
        image_HW3 = data.image(row)
        name = f"{number:05d}.jpg"
        cv2.imwrite(str(folder / "images" / name), image_HW3[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": number, "file_name": name, "width": image_HW3.shape[1], "height": image_HW3.shape[0]})
        visibility_J = np.where(data.labelled_NJ[row], np.where(data.visible_NJ[row], 2, 1), 0)
        x0, y0, x1, y1 = (float(value) for value in data.boxes_N4[row])
        annotations.append({
            "id": number, "image_id": number, "category_id": coco.CATEGORY_ID, "iscrowd": 0, "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0), "keypoints": coco.flat(data.joints_NJ2[row], visibility_J),
            "num_keypoints": int((visibility_J > 0).sum()),
        })  # fmt: skip
    document = {"images": images, "annotations": annotations, "categories": [coco.category(people[0][0].skeleton)]}
    (folder / "annotations" / "labels.json").write_text(json.dumps(document))
    return folder
