"""Engines that cut frames in their own memory, and what all of them share: geometry, refusals, and the check of the crop.

Two programs cut: a graph for ONNX Runtime (:mod:`.onnx_device`) and a kernel for CUDA (:mod:`.cuda`). Both are needed,
since ONNX Runtime on a GPU comes without cuda-python, and TensorRT on a Jetson without ONNX Runtime. Both read
:class:`PlaneCut`, know a format only by its :class:`~alpose.runtime.frames.Layout`, and are compared with the host's crop
before the first frame of a format.

Shapes: N frames, T S samples down and across the crop, K taps of a sample.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..crop import Crop, CropRule
from ..errors import ConfigError, DataError, WrongAnswerError
from ..frames import LAYOUTS, DeviceFrame, FrameFormat, Plane, Region, accept
from ..resampling import taps
from ..types import Engine, Outputs

Bytes = npt.NDArray[np.uint8]


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine that also takes whole frames in its own memory, and cuts them there."""

    @property
    def copies_to_host(self) -> int:
        """How many frames :meth:`to_host` has copied so far. Nothing else of a frame ever comes to the host."""
        ...

    def answer_device(self, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> Outputs:
        """Cut ``crops[n]`` from ``frames[n]`` and answer; the crops have the bundle's size and no context.

        Bit for bit what cutting on the host and calling the engine gives. The frames are no longer read when this
        returns.

        Raises:
            ConfigError: the engine cannot read the memory of a frame.
            WrongAnswerError: at the first frame of a format: this device does not cut it as it should.
            DataError: not one crop for each frame, or of another size.
        """
        ...

    def to_host(self, frame: DeviceFrame, region: Region | None = None) -> Bytes:
        """A copy of a frame, or of its ``region`` (x0, y0, x1, y1), as RGB (h, w, 3): for what is kept."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PlaneCut:
    """Which pixels of a plane a crop reads, and with what weights."""

    plane: Plane
    black: int
    outside: int
    """The level above black where there is no frame."""
    row_KT: npt.NDArray[np.intp]
    row_weight_KT: npt.NDArray[np.float32]
    column_KS: npt.NDArray[np.intp]
    column_weight_KS: npt.NDArray[np.float32]


def plane_cuts(frame: DeviceFrame, crop: Crop) -> tuple[PlaneCut, ...]:
    """The taps of every plane, each on its own grid."""
    layout = LAYOUTS[frame.format]
    cuts = []
    for plane, own, outside in zip(frame.planes(), layout.planes, layout.outside(crop.fill), strict=True):
        rows, columns = (
            taps(crop.down.on_grid(own.high), plane.height),
            taps(crop.across.on_grid(own.wide), plane.width),
        )
        cuts.append(PlaneCut(plane, own.black, outside, *rows, *columns))
    return tuple(cuts)


ANY_BATCH = 1 << 16
"""The ``max_batch`` of an engine that takes as many frames as memory holds."""


def batches(frames: int, fixed: int | None) -> list[list[int]]:
    """The frames of every run of a graph, by their numbers: all in one, or ``fixed`` at a time, the last one repeated."""
    size = fixed or frames
    return [[min(start + place, frames - 1) for place in range(size)] for start in range(0, frames, size)]


def check_crops(name: str, rule: CropRule, frames_NHW3: Bytes) -> None:
    """Refuse an array that is not at least one crop of the bundle's size."""
    shape: tuple[int, ...] = getattr(frames_NHW3, "shape", ())
    dtype = getattr(frames_NHW3, "dtype", type(frames_NHW3).__name__)
    if dtype != np.uint8 or len(shape) != 4 or not shape[0] or shape[1:] != (rule.height_px, rule.width_px, 3):
        raise DataError(
            f"{name}: frames must be uint8 (N, {rule.height_px}, {rule.width_px}, 3) in RGB with N at least 1, got {dtype} "
            f"{shape}"
        )


def check_frames(
    name: str, gpu: int | None, rule: CropRule, frames: Sequence[DeviceFrame], crops: Sequence[Crop]
) -> None:
    """Refuse what an engine cannot answer.

    Args:
        name: the engine's.
        gpu: the number of the GPU that it reads; None for the host's memory.
        rule: of the bundle's crops.
        frames: one or more.
        crops: as many.
    """
    if not frames or len(frames) != len(crops):
        raise DataError(f"{name}: every frame needs its crop, got {len(frames)} frames and {len(crops)} crops")
    for crop in crops:
        if (crop.width_px, crop.height_px, crop.fill) != (rule.width_px, rule.height_px, rule.fill) or crop.context_px:
            raise DataError(
                f"{name}: this bundle takes crops of {rule.width_px} x {rule.height_px} px without context on grey "
                f"{rule.fill}, got {crop}"
            )
        if crop.turn or rule.kind == "turned":
            raise ConfigError(
                f"{name} does not turn crops in its own memory, and this bundle's crop turns with the body: give frames in "
                "the host's memory"
            )
    for frame in frames:
        check_memory(name, gpu, frame)


def check_memory(name: str, gpu: int | None, frame: DeviceFrame) -> None:
    """Refuse a frame in memory that an engine does not read."""
    if gpu is None and frame.on_gpu:
        raise ConfigError(
            f"{name} cannot read a frame on a GPU ({frame.memory.name}): take an engine that can (engine='cuda' with "
            "alpose[gpu], or engine='tensorrt'), or give the frame in the host's memory"
        )
    if gpu is not None and not frame.on_gpu:
        raise ConfigError(f"{name} reads frames on GPU {gpu}, and this one is in the host's memory: give its view()")
    if gpu is not None and frame.device_id not in (gpu, None):
        raise ConfigError(
            f"{name} runs on GPU {gpu}, and the frame is on GPU {frame.device_id}: make it there, or run the engine "
            "where the camera is"
        )


class DeviceCropper(abc.ABC):
    """Cuts frames in a device's memory, once :meth:`verify` has compared the device with the host.

    The reference frames of a bundle check the model, and not the crop.
    """

    def __init__(self, name: str, rule: CropRule) -> None:
        self._name, self._rule = name, rule
        self._verified: set[FrameFormat] = set()

    @abc.abstractmethod
    def cut_copy(self, frame: Bytes, frame_format: FrameFormat, crop: Crop) -> Bytes:
        """Copy a frame to the device, cut it there, and copy the crop back."""

    def verify(self, frame_format: FrameFormat) -> None:
        """Cut a small frame of noise on the device; :class:`WrongAnswerError` where one bit is not as on the host."""
        if frame_format in self._verified:
            return
        shape = LAYOUTS[frame_format].shape(34, 46)
        frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        # Within the frame, enlarged, over its edge, and around all of it.
        for x0, y0, side in ((5.3, 4.1, 21.0), (30.2, 11.7, 3.5), (-9.4, 20.8, 30.0), (-70.0, -80.0, 190.0)):
            rule = self._rule
            height = side * rule.height_px / rule.width_px
            crop = Crop(x0, y0, side, height, rule.width_px, rule.height_px, fill=rule.fill)
            got_TS3 = self.cut_copy(frame, frame_format, crop)
            apart_TS3 = np.abs(got_TS3.astype(np.int16) - accept(frame, frame_format).cut(crop))
            if apart_TS3.any():
                raise WrongAnswerError(
                    f"{self._name} does not cut {frame_format.name} frames in its own memory as the host does: "
                    f"{np.count_nonzero(apart_TS3)} of {apart_TS3.size} bytes of a test crop differ, the worst by "
                    f"{apart_TS3.max()}. Give frames in the host's memory, and look for a newer driver or runtime"
                )
        self._verified.add(frame_format)


def to_rgb(content_L: Bytes, frame: DeviceFrame, region: Region | None) -> Bytes:
    """The bytes of a frame (``frame.extent`` of them), copied to the host, as RGB."""
    strides = (frame.pitch, *frame.strides[1:])
    view = np.ndarray(frame.shape, np.uint8, content_L.data, strides=strides)
    return accept(view, frame.format).to_rgb(region)
