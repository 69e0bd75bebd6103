"""What every engine answers, whatever it runs on, and what an engine is.

The numbers themselves are judged in :mod:`alpose.runtime.bundle.golden`; here is only their form.

Shapes: N frames, H W frame, J joints, D dimensions of the embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

OUTPUT_NAMES = ("keypoints", "scores", "predicted_loss", "failure_probability", "embedding")
"""The outputs of a graph by name, in the order in which it lists them."""

OUTPUT_AXES = {
    "keypoints": ("N", "J", "xy"),
    "scores": ("N", "J"),
    "predicted_loss": ("N",),
    "failure_probability": ("N",),
    "embedding": ("N", "D"),
}
"""The axes of every output; N is dynamic, xy has length 2, J is the skeleton's."""


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """The answer to N frames: five float32 arrays, row n of each belongs to frame n.

    Nothing is checked on the way in: an engine that answers wrongly must be able to, so that the golden frames
    can say how. :func:`form_problems` checks dtypes and shapes.
    """

    keypoints_NJ2: npt.NDArray[np.float32]
    """x, y in pixels of the input; the centre of pixel (column i, row j) is (i, j)."""
    scores_NJ: npt.NDArray[np.float32]
    """Heatmap peak over the peak that the net was trained towards: about 0 to 1, not clipped."""
    predicted_loss_N: npt.NDArray[np.float32]
    """The loss head's raw answer; its unit is the head's own."""
    failure_probability_N: npt.NDArray[np.float32]
    """Calibrated, 0 to 1."""
    embedding_ND: npt.NDArray[np.float32]
    """Rows of unit length."""

    def __len__(self) -> int:
        return len(self.predicted_loss_N)

    def named(self) -> dict[str, npt.NDArray[np.float32]]:
        """The arrays by the names that the graph gives them, in its order."""
        arrays = (self.keypoints_NJ2, self.scores_NJ, self.predicted_loss_N, self.failure_probability_N,
                  self.embedding_ND)  # fmt: skip
        return dict(zip(OUTPUT_NAMES, arrays, strict=True))


class Engine(Protocol):
    """Anything that answers frames: ONNX Runtime, TensorRT, PyTorch, or a fake in a test."""

    @property
    def name(self) -> str:
        """For people, as it appears in reports: ``onnxruntime cpu``, ``tensorrt fp16``."""
        ...

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer N ≥ 1 RGB crops of the bundle's size; the arrays belong to the caller."""
        ...


def output_shapes(frames: int, joints: int, dimensions: int) -> dict[str, tuple[int, ...]]:
    """The shape of every output for a batch of ``frames``."""
    length = {"N": frames, "J": joints, "xy": 2, "D": dimensions}
    return {name: tuple(length[axis] for axis in axes) for name, axes in OUTPUT_AXES.items()}


def form_problems(outputs: Outputs, frames: int, joints: int, dimensions: int) -> dict[str, str]:
    """What is wrong with dtype or shape, by output; empty where all is well."""
    problems = {}
    for name, shape in output_shapes(frames, joints, dimensions).items():
        value = outputs.named()[name]
        if not isinstance(value, np.ndarray):
            problems[name] = f"is {type(value).__name__}, expected a float32 array of shape {shape}"
        elif value.dtype != np.float32 or value.shape != shape:
            problems[name] = f"is {value.dtype} {value.shape}, expected float32 {shape}"
    return problems
