"""A pose net that finds coloured dots, and pictures of dots: what a test can fit in seconds.

Each of four joints has a colour of its own. On some pictures a dot is missing, or stands where the label is not: there the net
fails, and its map shows it.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from alpose.runtime.skeleton import Skeleton

from . import nets

SKELETON = Skeleton("dots", ("left_shoulder", "right_shoulder", "left_hip", "right_hip"), ((0, 1), (0, 2), (1, 3), (2, 3)),
                    ((0, 1), (2, 3)))  # fmt: skip
COLOURS = np.array([[255, 40, 40], [40, 255, 40], [40, 40, 255], [230, 230, 40]], np.float32)
SIDE = 96


def finder(path: Path, *, blind: bool = False) -> Path:
    """Four maps of 16 x 16 cells, each the likeness of a colour, with an average of the picture as a tap; ``blind``: all alike."""
    net = nets.Net((64, 64))
    weights = np.zeros((4, 3, 4, 4), np.float32)
    for joint, colour in enumerate(COLOURS):
        like = colour / 255 - colour.mean() / 255
        weights[joint] = (like / np.linalg.norm(like))[:, None, None] / 16
    if blind:
        weights[:] = 0.0
    tap = net.add("Conv", [net.start, net.weight(np.concatenate([weights, -weights]))], "tap", strides=[4, 4],
                  kernel_shape=[4, 4])  # fmt: skip
    features = net.add("Relu", [tap], "features")
    select = np.zeros((4, 8, 1, 1), np.float32)
    select[range(4), range(4)] = 1.0
    net.output(net.add("Conv", [features, net.weight(select)], "heatmaps", kernel_shape=[1, 1]))
    return net.save(path)


def folder(root: Path, people: int = 80, *, hard: float = 0.4, seed: int = 0, fields: bool = False) -> Path:
    """A COCO keypoints folder; ``hard`` is the share of people of whom half of the dots are missing."""
    random = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for row in range(people):
        picture = random.integers(60, 120, (SIDE, SIDE, 3)).astype(np.uint8)
        upper, lower = random.uniform(20, 40), random.uniform(60, 78)
        left, right = random.uniform(52, 78), random.uniform(18, 44)
        joints = np.array([[left, upper], [right, upper], [left, lower], [right, lower]]) + random.uniform(
            -4, 4, (4, 2)
        )
        missing = random.permutation(4)[: 3 if random.random() < hard else 0].tolist()
        for joint, (x, y) in enumerate(joints):
            if joint not in missing:
                cv2.circle(picture, (round(x), round(y)), 5, COLOURS[joint, ::-1].tolist(), -1)
        name = f"{row:04d}.png"
        cv2.imwrite(str(root / "images" / name), picture)
        group = {"driver": f"d{row // 4}"} if fields else {}
        images.append({"id": row + 1, "file_name": name, "width": SIDE, "height": SIDE, **group})
        annotations.append({
            "id": row + 1, "image_id": row + 1, "category_id": 1, "iscrowd": 0, "num_keypoints": 4, "area": 1.0,
            "bbox": [8, 8, 80, 80], "keypoints": np.column_stack([joints, np.full(4, 2)]).ravel().tolist(),
        })  # fmt: skip
    category = {"id": 1, "name": "person", "keypoints": list(SKELETON.joints),
                "skeleton": [[a + 1, b + 1] for a, b in SKELETON.links]}  # fmt: skip
    value = {"images": images, "annotations": annotations, "categories": [category]}
    (root / "annotations" / "labels.json").write_text(json.dumps(value))
    return root


def skeleton_file(path: Path) -> Path:
    """The joints, as ``--skeleton`` takes them."""
    path.write_text(json.dumps(SKELETON.to_json()))
    return path
