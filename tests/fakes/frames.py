"""Frames as another library would give them, and strategies that draw frames and crops.

Shapes: S crop side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from alpose.runtime.crop import Crop
from alpose.runtime.dlpack import MemoryKind, packed
from alpose.runtime.frames import LAYOUTS, DeviceFrame, FrameFormat, take_frame
from alpose.runtime.types import OUTPUT_NAMES, Outputs

Bytes = npt.NDArray[np.uint8]
S = 8


def noise(frame_format: FrameFormat, height: int, width: int, seed: int = 0) -> Bytes:
    shape = LAYOUTS[frame_format].shape(height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Foreign:
    """An array of numpy as another library would give it."""

    def __init__(self, array: Bytes) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **asked: Any) -> Any:
        asked.pop("max_version", None)  # numpy 1 does not know it
        return self.array.__dlpack__(**asked)


def foreign(array: Bytes, frame_format: FrameFormat) -> DeviceFrame:
    return take_frame(Foreign(array), frame_format)


formats = st.sampled_from(list(FrameFormat))
crops = st.builds(Crop, x0=st.floats(-40, 40), y0=st.floats(-40, 40), width=st.floats(1, 120), height=st.floats(1, 120),
                  width_px=st.just(S), height_px=st.just(S))  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> tuple[FrameFormat, Bytes]:
    """A frame of any format; the rows of most have a gap between them."""
    frame_format, gap = draw(formats), draw(st.integers(0, 3))
    height, width, seed = draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(0, 99))
    if "i420" in frame_format.value:  # its planes of chroma share rows of the array
        gap = 0
    return frame_format, noise(frame_format, 2 * height, 2 * width + 2 * gap, seed)[:, : 2 * width]


def same(left: Outputs, right: Outputs) -> None:
    for name in OUTPUT_NAMES:
        assert left.named()[name].dtype == np.float32
        np.testing.assert_array_equal(left.named()[name], right.named()[name])


def on_gpu(shape: tuple[int, ...], *, gpu: int | None = 0, frame_format: FrameFormat = FrameFormat.RGB,
           memory: MemoryKind = MemoryKind.CUDA, address: int = 0x7000) -> DeviceFrame:  # fmt: skip
    return DeviceFrame(frame_format, memory, gpu, address, shape, packed(shape), None, None)
