"""Frames as another library would lend them, and what is asked of every engine that takes them.

Shapes: S crop side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from alpose.runtime.crop import Crop
from alpose.runtime.device_frames import DeviceFrame, take_frame
from alpose.runtime.dlpack import Where
from alpose.runtime.engines.device import DeviceEngine
from alpose.runtime.frames import FrameFormat, accept
from alpose.runtime.types import OUTPUT_NAMES, Outputs

Bytes = npt.NDArray[np.uint8]
S = 8


def noise(form: FrameFormat, height: int, width: int, seed: int = 0) -> Bytes:
    shape = (height * 3 // 2, width) if form is FrameFormat.NV12 else (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Lent:
    """An array of numpy as another library would give it."""

    def __init__(self, array: Bytes) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **asked: Any) -> Any:
        asked.pop("max_version", None)  # numpy 1 does not know it
        return self.array.__dlpack__(**asked)


def lend(array: Bytes, form: FrameFormat) -> DeviceFrame:
    return take_frame(Lent(array), form)


forms = st.sampled_from(list(FrameFormat))
crops = st.builds(Crop, x0=st.floats(-40, 40), y0=st.floats(-40, 40), side=st.floats(1, 120), size_px=st.just(S))
frames = st.builds(
    lambda form, height, width, pitch, seed: (form, noise(form, 2 * height, 2 * width + 2 * pitch, seed)[:, : 2 * width]),
    forms, st.integers(1, 20), st.integers(1, 20), st.integers(0, 3), st.integers(0, 99),
)  # fmt: skip


def same(left: Outputs, right: Outputs) -> None:
    for name in OUTPUT_NAMES:
        assert left.named()[name].dtype == np.float32
        np.testing.assert_array_equal(left.named()[name], right.named()[name])


def on_gpu(array_or_shape: Any, *, gpu: int | None = 0, form: FrameFormat = FrameFormat.RGB, where: Where = Where.CUDA,
           address: int = 0x7000, stream: int | None = None) -> DeviceFrame:  # fmt: skip
    shape = tuple(array_or_shape)
    strides = (shape[1] * 3, 3, 1) if len(shape) == 3 else (shape[1], 1)
    return DeviceFrame(form, where, gpu, address, shape, strides, stream, None)


def check_threads(engine: DeviceEngine, place: Callable[[Bytes], DeviceFrame]) -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        array = noise(FrameFormat.RGB, 30, 30, seed)
        crop = Crop(seed, 1.5, 20.0, S)
        expected = engine(accept(array, FrameFormat.RGB).cut(crop)[None])
        for _ in range(15):
            try:
                same(engine.answer_device([place(array)], [crop]), expected)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
