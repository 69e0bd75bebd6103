"""Rendered people as folders that users bring."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from alpose.trainer.data.records import PoseData


def write_coco_folder(people: PoseData, root: Path) -> Path:
    """A COCO keypoints folder with one annotation file: one person an image."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for row in range(len(people)):
        image_HW3 = people.image(row)
        name = f"{row:05d}.jpg"
        cv2.imwrite(str(root / "images" / name), image_HW3[..., ::-1])
        images.append({"id": row + 1, "file_name": name, "width": image_HW3.shape[1], "height": image_HW3.shape[0]})
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
    value = {"images": images, "annotations": annotations, "categories": [category]}
    (root / "annotations" / "labels.json").write_text(json.dumps(value))
    return root
