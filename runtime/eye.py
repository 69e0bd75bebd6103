"""Taking frames wherever they lie, and asking the engine about the people on them.

What lies on a GPU is cut there, where the engine can; what lies in the host's memory is cut by numpy. Nothing else of the
runtime knows the two apart.

Shapes: N persons, S crop side.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .crop import Crop
from .device_frames import DeviceFrame, is_foreign, take_frame
from .engines.device import DeviceEngine
from .errors import ConfigError, DataError, WrongAnswerError
from .frames import FrameFormat, HostFrame, Region, accept
from .outputs import Engine, Outputs

Frame = HostFrame | DeviceFrame
"""Both have ``height`` and ``width``."""


class Eye:
    """An engine, and the form in which the camera gives its frames."""

    def __init__(self, engine: Engine, form: FrameFormat) -> None:
        self.engine = engine
        self._form = form

    def take(self, frame: object) -> Frame:
        """A frame, checked and not copied.

        Raises:
            DataError: it is no frame in the camera's form; the message says what it is.
            ConfigError: it lies on a GPU, where this engine does not read.
        """
        if not is_foreign(frame):
            return accept(frame, self._form)
        taken = take_frame(frame, self._form)
        view = taken.view()
        if view is not None:
            return accept(view, self._form)
        if not isinstance(self.engine, DeviceEngine):
            raise ConfigError(
                f"the frame is on a GPU, and the engine {self.engine.name} reads only the host's memory: use the engine "
                "'cuda' or 'tensorrt', or copy the frame to the host"
            )
        return taken

    def ask(self, frames: Sequence[Frame], crops: Sequence[Crop]) -> tuple[Outputs, float]:
        """Cut ``crops[n]`` from ``frames[n]`` and let the engine answer all of them in one call.

        Returns:
            The answer, and the seconds that cutting took; on a GPU that is part of the engine's call, and 0 here.

        Raises:
            DataError: some frames lie on a GPU and some do not.
            WrongAnswerError: the engine did not answer every crop.
            Exception: whatever the engine raises.
        """
        on_gpu = sum(isinstance(frame, DeviceFrame) for frame in frames)
        if on_gpu:
            outputs, cut_s = self._ask_on_gpu(frames, crops, on_gpu), 0.0
        else:
            started_s = time.perf_counter()
            crops_NSS3 = _cut(frames, crops)
            cut_s = time.perf_counter() - started_s
            outputs = self.engine(crops_NSS3)
        if len(outputs) != len(crops):
            raise WrongAnswerError(f"{self.engine.name} gave {len(outputs)} answers to {len(crops)} crops")
        return outputs, cut_s

    def to_rgb(self, frame: Frame, region: Region) -> npt.NDArray[np.uint8]:
        """A copy on the host of a region, RGB (h, w, 3): for what is kept."""
        if isinstance(frame, HostFrame):
            return frame.to_rgb(region)
        assert isinstance(self.engine, DeviceEngine)  # or it would not have been taken
        return self.engine.to_host(frame, region)

    def _ask_on_gpu(self, frames: Sequence[Frame], crops: Sequence[Crop], on_gpu: int) -> Outputs:
        there = [frame for frame in frames if isinstance(frame, DeviceFrame)]
        if on_gpu < len(frames):
            raise DataError(
                f"of {len(frames)} frames {on_gpu} are on a GPU: a batch lies all there, or all on the host"
            )
        assert isinstance(self.engine, DeviceEngine)
        return self.engine.answer_device(there, crops)


def _cut(frames: Sequence[Frame], crops: Sequence[Crop]) -> npt.NDArray[np.uint8]:
    cuts = [frame.cut(crop) for frame, crop in zip(frames, crops, strict=True) if isinstance(frame, HostFrame)]
    return cuts[0][None] if len(cuts) == 1 else np.stack(cuts)
