"""Every engine that can run here, made the same way: for the contract suite, and for whatever needs one of them.

Shapes: S crop side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from alpose.runtime.bundle import Bundle
from alpose.runtime.dlpack import MemoryKind
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.engines.onnx_device import Tensor, model, node, type_number
from alpose.runtime.engines.tensorrt import TensorRTEngine
from alpose.runtime.frames import DeviceFrame, FrameFormat
from alpose.runtime.types import OUTPUT_NAMES, Engine

from . import cuda as fake_cuda
from . import kernel as fake_kernel
from . import scripted, tensorrt
from .frames import S, foreign, noise

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """An engine that runs, and how it is given frames."""

    engine: Engine
    size_px: int
    joints: int
    dimensions: int
    refuses: bool = True
    """Whether it checks what it is given; the scripted stand-in of the tests does not."""
    device: Callable[[Bytes, FrameFormat], DeviceFrame] | None = None
    """Puts a frame where the engine reads; None for an engine that takes crops alone."""


class Camera:
    """Writes frames into the fake GPU's memory, in a stream."""

    def __init__(self, cuda: Any) -> None:
        self.cuda, self.addresses = cuda, list[int]()

    def frame(self, array: Bytes, frame_format: FrameFormat, *, stream: int | None = 1, gap: int = 0) -> DeviceFrame:
        row = array[0].size
        pitch = row + gap
        size = (len(array) - 1) * pitch + row
        _, address = self.cuda.cudaMalloc(size)
        self.addresses.append(address)
        strides = (pitch, *np.empty(array.shape, np.uint8).strides[1:])
        place = np.ndarray(array.shape, np.uint8, self.cuda.buffer(address, size), 0, strides)
        content = array.copy()
        if stream is None:
            place[...] = content
        else:
            self.cuda.enqueue(stream, lambda: np.copyto(place, content))
        return DeviceFrame(frame_format, MemoryKind.CUDA, 0, address, array.shape, strides, stream, self)

    def close(self) -> None:
        for address in self.addresses:
            self.cuda.cudaFree(address)


def write_pixels_model(path: Path, *, in_range: bool = False, batch: str | int = "N") -> Path:
    """A model whose embedding is the crop itself, pixel by pixel, so that a wrong bit anywhere shows.

    ``batch``: frames of every run, where the graph states them. ``in_range``: what a bundle may promise, a probability of at most 1 and an embedding of unit length, [1].
    """
    pixels = S * S * 3
    shapes: dict[str, tuple[int, ...]] = {"keypoints": (3, 2), "scores": (3,), "predicted_loss": (),
                                          "failure_probability": (), "embedding": (pixels,)}  # fmt: skip
    nodes = [node("Cast", ["frames"], "all", to=type_number(np.float32))]
    constants: dict[str, npt.NDArray[np.generic]] = {}
    for name, shape in shapes.items():
        constants[f"{name}_start"] = np.array([1], np.int64)
        constants[f"{name}_end"] = np.array([1 + int(np.prod(shape, dtype=int))], np.int64)
        constants[f"{name}_shape"] = np.array([0, *shape] if shape else [-1], np.int64)
    constants |= {"flat": np.array([0, -1], np.int64), "axis": np.array([1], np.int64)}
    whole = "pixels" if in_range else "embedding"
    nodes.append(node("Reshape", ["all", "flat"], whole))
    for name in OUTPUT_NAMES[:-1]:
        scaled = in_range and name == "failure_probability"
        nodes.append(node("Slice", [whole, f"{name}_start", f"{name}_end", "axis"], f"{name}_part"))
        nodes.append(node("Reshape", [f"{name}_part", f"{name}_shape"], f"{name}_level" if scaled else name))
    if in_range:
        shapes["embedding"] = (1,)
        constants |= {"per_level": np.array(1 / 255, np.float32), "none": np.array(0, np.float32),
                      "one": np.array(1, np.float32)}  # fmt: skip
        nodes.append(node("Mul", ["failure_probability_level", "per_level"], "failure_probability"))
        nodes.append(node("Slice", [whole, "predicted_loss_start", "predicted_loss_end", "axis"], "first"))
        nodes.append(node("Mul", ["first", "none"], "zero"))
        nodes.append(node("Add", ["zero", "one"], "embedding"))
    outputs: dict[str, Tensor] = {name: (np.float32, (batch, *shape)) for name, shape in shapes.items()}
    path.write_bytes(model(nodes, {"frames": (np.uint8, (batch, S, S, 3))}, outputs, constants))
    return path


def write_onnx_bundle(folder: Path, batch: str | int = "N") -> Path:
    """A bundle that ONNX Runtime runs; ``batch``: frames of every run, where its graph states them."""
    path = write_pixels_model(folder.with_suffix(".onnx"), in_range=True, batch=batch)
    frames_GSS3 = noise(FrameFormat.RGB, 4 * S, S).reshape(4, S, S, 3)
    expected = OnnxEngine(path, threads=1)(frames_GSS3).named()
    return scripted.write_bundle_of(folder, frames_GSS3, expected, model=path.read_bytes())


@contextmanager
def onnx_cpu(folder: Path, batch: str | int = "N") -> Iterator[Case]:
    pytest.importorskip("onnxruntime")
    engine = OnnxEngine(write_pixels_model(folder / "model.onnx", batch=batch), threads=1)
    yield Case(engine, S, 3, S * S * 3, device=foreign)


@contextmanager
def onnx_plugin(folder: Path) -> Iterator[Case]:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxruntime_ep_openvino", reason="no provider's own package is installed")
    engine = OnnxEngine(write_pixels_model(folder / "model.onnx"), "plugin:onnxruntime-ep-openvino", threads=1)
    yield Case(engine, S, 3, S * S * 3)


@contextmanager
def _tensorrt(folder: Path, batch: tuple[int, int, int]) -> Iterator[Case]:
    cuda = fake_cuda.FakeCuda()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as made:
        tensorrt.install(patch, cuda)
        fake_kernel.install(patch, cuda)
        camera = Camera(cuda)
        made.callback(camera.close)
        path = tensorrt.write_bundle(folder / "driver.alpose")
        engine = TensorRTEngine(path, plan=tensorrt.plan_bytes("11.4.0.106", batch=batch))
        made.callback(engine.close)
        yield Case(engine, S, tensorrt.J, tensorrt.D, device=camera.frame)
    assert cuda.leaks == 0


@contextmanager
def scripted_engine(folder: Path) -> Iterator[Case]:
    bundle = Bundle.open(scripted.write_bundle(folder / "driver.alpose"))
    yield Case(scripted.Scripted(), bundle.crop.width_px, scripted.J, scripted.D, refuses=False)


CASES: dict[str, tuple[str | None, Callable[[Path], Any]]] = {
    "onnxruntime cpu": ("cpu", onnx_cpu),
    "onnxruntime cpu, batch 1": ("cpu", lambda folder: onnx_cpu(folder, 1)),
    "onnxruntime cpu, batch 4": ("cpu", lambda folder: onnx_cpu(folder, 4)),
    "onnxruntime with OpenVINO's plugin": ("plugin", onnx_plugin),
    "tensorrt, batch 1": ("tensorrt", lambda folder: _tensorrt(folder, (1, 1, 1))),
    "tensorrt, batches 2 to 4": ("tensorrt", lambda folder: _tensorrt(folder, (2, 3, 4))),
    "tensorrt, batch 4": ("tensorrt", lambda folder: _tensorrt(folder, (4, 4, 4))),
    "an object": (None, scripted_engine),
}
"""By a name for people: the name in the catalog, and a context manager that makes one in a folder."""
