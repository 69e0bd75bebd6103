"""Rendered people as folders that users bring."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from alpose.trainer.data.records import PoseData


def write_images(people: PoseData, folder: Path, prefix: str = "") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{prefix}{row:05d}.jpg" for row in range(len(people))]
    for row, name in enumerate(names):
        cv2.imwrite(str(folder / name), people.image(row)[..., ::-1])
    return names


def write_coco_folder(
    people: PoseData, root: Path, part: str = "labels", prefix: str = "", fields: Mapping[str, Any] | None = None
) -> Path:
    """A COCO keypoints folder, or another annotation file in one: one person an image; ``fields`` by image name."""
    names = write_images(people, root / "images", prefix)
    annotations = []
    for row in range(len(people)):
        points_J2 = np.where(people.labelled_NJ[row][:, None], people.joints_NJ2[row], 0.0)
        keypoints = np.column_stack([points_J2, np.where(people.labelled_NJ[row], 2, 0)]).ravel().tolist()
        x0, y0, x1, y1 = (float(value) for value in people.boxes_N4[row])
        annotations.append({
            "id": row + 1, "image_id": row + 1, "category_id": 1, "keypoints": keypoints, "iscrowd": 0,
            "num_keypoints": int(people.labelled_NJ[row].sum()), "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1.0,
        })  # fmt: skip
    skeleton = people.skeleton
    category = {"id": 1, "name": "person", "keypoints": list(skeleton.joints),
                "skeleton": [[a + 1, b + 1] for a, b in skeleton.links]}  # fmt: skip
    images = [{"id": row + 1, "file_name": name, "width": 160, "height": 180, **(fields or {}).get(name, {})}
              for row, name in enumerate(names)]  # fmt: skip
    value = {"images": images, "annotations": annotations, "categories": [category]}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{part}.json").write_text(json.dumps(value))
    return root
