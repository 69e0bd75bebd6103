"""People that are made of numbers alone.

Shapes: N people, J joints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.skeleton import Skeleton
from alpose.trainer.data.records import PoseData


class NoImages:
    """Pictures that nobody may read: pixels are in the crops already, or do not matter."""

    def __len__(self) -> int:
        return 0

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        raise AssertionError(f"image {index} was read")

    def describe(self, index: int) -> str:
        return f"made up {index}"


def made_people(skeleton: Skeleton, joints_NJ2: npt.NDArray[Any], **changes: Any) -> PoseData:
    """People without pictures, one an image, everything labelled and visible; ``changes`` are other fields."""
    count, joints = joints_NJ2.shape[:2]
    labelled_NJ = changes.setdefault("labelled_NJ", np.ones((count, joints), dtype=np.bool_))
    values: dict[str, Any] = {
        "name": "people",
        "skeleton": skeleton,
        "ids": tuple(str(row) for row in range(count)),
        "images": NoImages(),
        "image_N": np.arange(count),
        "joints_NJ2": joints_NJ2.astype(np.float32),
        "visible_NJ": labelled_NJ.copy(),
        "boxes_N4": np.tile(np.array([0, 0, 64, 64], dtype=np.float32), (count, 1)),
    }
    return PoseData(**{**values, **changes})
