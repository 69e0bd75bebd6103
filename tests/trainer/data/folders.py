"""Small dataset folders of every kind that can be read, as the publishers lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import scipy.io

from alpose.trainer.data.mpii import MAT_NAME

Array = npt.NDArray[Any]
EMPTY = np.empty((0, 0))
JOINTS = ("nose", "left_hand", "right_hand")


def write_images(folder: Path, *names: str, height: int = 100, width: int = 100) -> None:
    """Plain images whose grey value counts from 1."""
    for grey, name in enumerate(names, start=1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((height, width, 3), grey, dtype=np.uint8))


# --- LSP and LSPET


def lsp_joints(count: int, seed: int = 0) -> Array:
    """(N, 14, 3): positions everywhere, a few 1 for occluded."""
    rng = np.random.default_rng(seed)
    joints_NJ3 = rng.uniform(5, 90, (count, 14, 3))
    joints_NJ3[..., 2] = rng.random((count, 14)) < 0.1
    return joints_NJ3


def lspet_joints(count: int, seed: int = 0) -> Array:
    """(N, 14, 3): 1 for labelled; the others lie at one axis 0, the other negative."""
    joints_NJ3 = lsp_joints(count, seed)
    joints_NJ3[..., 2] = 1 - joints_NJ3[..., 2]
    joints_NJ3[joints_NJ3[..., 2] == 0, :2] = (0, -31.5)
    return joints_NJ3


def write_mat_and_images(root: Path, array: Array, count: int, digits: int) -> Path:
    (root / "images").mkdir(parents=True)
    scipy.io.savemat(root / "joints.mat", {"joints": array})
    write_images(root / "images", *(f"im{row:0{digits}d}.jpg" for row in range(1, count + 1)))
    return root


def write_lsp(root: Path, count: int = 3) -> Path:
    return write_mat_and_images(root, lsp_joints(count).transpose(2, 1, 0), count, 4)


def write_lspet(root: Path, count: int = 3) -> Path:
    return write_mat_and_images(root, lspet_joints(count).transpose(1, 2, 0), count, 5)


# --- MPII


def struct_array(items: list[dict[str, Any]]) -> Any:
    """A MATLAB struct array (1, n): every element has the same fields, and any of them may be empty."""
    fields = list(items[0])
    array = np.empty((1, len(items)), dtype=[(field, object) for field in fields])
    for place, item in enumerate(items):
        for field in fields:
            array[0, place][field] = item[field]
    return array


def point(joint: int, x: float, y: float, is_visible: Any = 1) -> dict[str, Any]:
    return {"x": x, "y": y, "id": joint, "is_visible": is_visible}


def rect(points: Any, scale: Any = 2.0, objpos: Any = None, **head: Any) -> dict[str, Any]:
    box = {"x1": 101.0, "y1": 51.0, "x2": 131.0, "y2": 91.0} | head
    place = {"x": 151.0, "y": 201.0} if objpos is None else objpos
    return box | {"annopoints": points, "scale": scale, "objpos": place}


def two_points(x: float = 120) -> dict[str, Any]:
    return {"point": struct_array([point(0, x, 300), point(9, x, 60, EMPTY)])}


def write_mpii(root: Path, images: list[tuple[str, Any, int]] | None = None) -> Path:
    """The official layout: RELEASE.annolist(i).image.name, .annorect(k)..., RELEASE.img_train(i)."""
    images = images or [(f"{n}.jpg", rect(two_points()), 1) for n in range(1, 4)]
    annolist = struct_array([{"image": {"name": name}, "annorect": rects} for name, rects, _ in images])
    release = {"annolist": annolist, "img_train": np.array([[train for *_, train in images]], dtype=np.uint8)}
    (root / "images").mkdir(parents=True)
    scipy.io.savemat(root / MAT_NAME, {"RELEASE": release})
    write_images(root / "images", *(name for name, *_ in images if ".." not in name), height=480, width=640)
    return root


# --- COCO


def coco_person(id_: int, image_id: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": id_, "image_id": image_id, "category_id": 2, "bbox": [1, 2, 10, 20], "iscrowd": 0, "num_keypoints": 2,
        "keypoints": [5, 6, 2, 7, 8, 1, 0, 0, 0],
    } | changes  # fmt: skip


def coco_document(**changes: Any) -> dict[str, Any]:
    """Three people on two images, with a skeleton of their own."""
    value: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 8, "file_name": "more/b.jpg", "width": 40, "height": 30},
        ],
        "categories": [
            {"id": 1, "name": "car"},
            {"id": 2, "name": "crane", "keypoints": list(JOINTS), "skeleton": [[1, 2], [1, 3]]},
        ],
        "annotations": [coco_person(1, 7), coco_person(2, 8), coco_person(3, 7)],
    }
    return value | changes


def write_coco(root: Path, value: Any = None, name: str = "mine", images: str = "images") -> Path:
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"{name}.json").write_text(json.dumps(coco_document() if value is None else value))
    write_images(root / images, "a.jpg", "more/b.jpg", height=30, width=40)
    return root


# --- YOLO-pose


def write_yolo(root: Path, train: str = "images/train") -> Path:
    """Two pictures of 40 x 30, with one person and two."""
    write_images(root / "images" / "train", "a.jpg", "more/b.jpg", height=30, width=40)
    (root / "data.yaml").write_text(
        f"path: /home/somebody/else\ntrain: {train}\nnames:\n  0: person\nflip_idx: [0, 2, 1]\n"
        f"kpt_names:\n  0: [{', '.join(JOINTS)}]\nkpt_shape: [3, 3]\n"
    )
    labels = root / "labels" / "train"
    (labels / "more").mkdir(parents=True, exist_ok=True)
    (labels / "a.txt").write_text("0 0.5 0.5 0.5 0.5 0.5 0.5 2 0.25 0.75 1 0 0 0\n")
    (labels / "more" / "b.txt").write_text(
        "0 0.25 0.5 0.4 0.5 0.25 0.5 2 0 0 0 0.3 0.6 2\n0 0.75 0.5 0.4 0.5 0.75 0.5 2 0.7 0.4 2 0.8 0.6 2\n"
    )
    return root
