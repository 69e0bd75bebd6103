"""Engines that read frames where they lie, and what all of them share: geometry, refusals, the way to the host.

Shapes: N frames, S samples across the crop, K taps of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..crop import Crop, taps
from ..device_frames import DeviceFrame, Plane
from ..errors import ConfigError, DataError, WrongAnswerError
from ..frames import FrameFormat, accept, chroma_crop
from ..types import Engine, Outputs


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """An engine that also takes whole frames in its own memory, and cuts them there."""

    @property
    def copies_to_host(self) -> int:
        """How many frames :meth:`to_host` has brought so far. Nothing else of a frame ever comes to the host."""
        ...

    def answer_device(self, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> Outputs:
        """Cut ``crops[n]`` from ``frames[n]`` and answer; the crops have the bundle's size and no context.

        Bit for bit what cutting on the host and calling the engine gives. The frames are no longer read when this
        returns.

        Raises:
            ConfigError: the engine cannot read where a frame lies.
            WrongAnswerError: at the first frame of a form: this device does not cut it as it should.
            DataError: not one crop for each frame, or of another size.
        """
        ...

    def to_host(self, frame: DeviceFrame, region: tuple[int, int, int, int] | None = None) -> npt.NDArray[np.uint8]:
        """A copy of a frame, or of its ``region`` (x0, y0, x1, y1), as RGB (h, w, 3): for what is kept."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PlaneCut:
    """Which pixels of a plane a crop reads, and with what weights."""

    plane: Plane
    row_KS: npt.NDArray[np.intp]
    row_weight_KS: npt.NDArray[np.float32]
    column_KS: npt.NDArray[np.intp]
    column_weight_KS: npt.NDArray[np.float32]


def plane_cuts(frame: DeviceFrame, crop: Crop) -> tuple[PlaneCut, ...]:
    """The taps of every plane: colours together, or luma and, at half the resolution, chroma."""
    crops = (crop, chroma_crop(crop)) if frame.form is FrameFormat.NV12 else (crop,)
    return tuple(
        PlaneCut(plane, *taps(own.y0, own, plane.height), *taps(own.x0, own, plane.width))
        for plane, own in zip(frame.planes(), crops, strict=True)
    )


def check(name: str, gpu: int | None, size_px: int, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> None:
    """Refuse what an engine cannot answer.

    Args:
        name: the engine's.
        gpu: the number of the GPU that it reads; None for the host's memory.
        size_px: side of the bundle's crops.
        frames: one or more.
        crops: as many.
    """
    if not frames or len(frames) != len(crops):
        raise DataError(f"{name}: every frame needs its crop, got {len(frames)} frames and {len(crops)} crops")
    for crop in crops:
        if crop.size_px != size_px or crop.context_px:
            raise DataError(f"{name}: this bundle takes crops of {size_px} px without context, got {crop}")
    for frame in frames:
        check_place(name, gpu, frame)


def check_place(name: str, gpu: int | None, frame: DeviceFrame) -> None:
    """Refuse a frame in memory that an engine does not read."""
    if gpu is None and frame.on_gpu:
        raise ConfigError(
            f"{name} cannot read a frame on a GPU ({frame.where.name}): take an engine that can (engine='cuda' with "
            "alpose[gpu], or engine='tensorrt'), or give the frame in the host's memory"
        )
    if gpu is not None and not frame.on_gpu:
        raise ConfigError(f"{name} reads frames on GPU {gpu}, and this one is in the host's memory: give its view()")
    if gpu is not None and frame.device_id not in (gpu, None):
        raise ConfigError(
            f"{name} runs on GPU {gpu}, and the frame is on GPU {frame.device_id}: make it there, or run the engine "
            "where the camera is"
        )


def probe(form: FrameFormat, size_px: int) -> tuple[npt.NDArray[np.uint8], tuple[Crop, ...]]:
    """A small frame of noise and crops of it: within, enlarged, over the edge, and of all of it."""
    height, width = 34, 46
    shape = (height * 3 // 2, width) if form is FrameFormat.NV12 else (height, width, 3)
    corners = ((5.3, 4.1, 21.0), (30.2, 11.7, 3.5), (-9.4, 20.8, 30.0), (-70.0, -80.0, 190.0))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), tuple(
        Crop(x0, y0, side, size_px) for x0, y0, side in corners
    )


def require_same(
    name: str, form: FrameFormat, got_SS3: npt.NDArray[np.uint8], expected_SS3: npt.NDArray[np.uint8]
) -> None:
    """Refuse a device that does not cut the probe bit for bit as the host does."""
    apart_SS3 = np.abs(got_SS3.astype(np.int16) - expected_SS3)
    if apart_SS3.any():
        raise WrongAnswerError(
            f"{name} does not cut {form.name} frames in its own memory as the host does: {np.count_nonzero(apart_SS3)} "
            f"of {apart_SS3.size} bytes of a test crop differ, the worst by {apart_SS3.max()}. Give frames in the "
            "host's memory, and look for a newer driver or runtime"
        )


def extent(frame: DeviceFrame) -> int:
    """Bytes from a frame's first to its last; rows with a gap between have one fewer gap than rows."""
    plane = frame.planes()[0]
    return (frame.shape[0] - 1) * plane.pitch + plane.width * plane.channels


def to_rgb(
    content_L: npt.NDArray[np.uint8], frame: DeviceFrame, region: tuple[int, int, int, int] | None
) -> npt.NDArray[np.uint8]:
    """The bytes of a frame (:func:`extent` of them) as RGB."""
    view = np.ndarray(frame.shape, np.uint8, content_L.data, strides=_strides(frame))
    return accept(view, frame.form).to_rgb(region)


def _strides(frame: DeviceFrame) -> tuple[int, ...]:
    plane = frame.planes()[0]
    return (plane.pitch, plane.channels, 1)[: len(frame.shape)]
