"""Frames cut in the memory of ONNX Runtime's provider, beside what every engine promises: for real on the CPU.

Shapes: S crop side.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import Crop, CropRule
from alpose.runtime.dlpack import MemoryKind
from alpose.runtime.engines import onnx_device
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import ConfigError, WrongAnswerError
from alpose.runtime.frames import DeviceFrame, FrameFormat, accept, take_frame
from alpose.runtime.types import OUTPUT_NAMES

from ...fakes.engines import write_pixels_model
from ...fakes.frames import Bytes, S, crops, foreign, frames, noise, on_gpu, same

RGB = FrameFormat.RGB
RULE = CropRule(width_px=S, height_px=S)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> OnnxEngine:
    pytest.importorskip("onnxruntime")
    return OnnxEngine(write_pixels_model(tmp_path_factory.mktemp("model") / "model.onnx"), threads=1)


@pytest.mark.parametrize("frame_format", FrameFormat)
def test_onnx_reads_the_graphs_and_finds_nothing_wrong(frame_format: FrameFormat) -> None:
    onnx = pytest.importorskip("onnx")
    for content in (
        onnx_device.crop_graph(frame_format),
        onnx_device.crop_graph(frame_format, 114),
        onnx_device.copy_graph(),
    ):
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert [opset.version for opset in model.opset_import] == [onnx_device.OPSET]
        assert not {node.op_type for node in model.graph.node} & {"MatMul", "Gemm", "Conv", "Einsum"}


@given(value=st.integers(-(2**63), 2**63 - 1), length=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_numbers_and_lengths_are_written_as_onnx_reads_them(value: int, length: int) -> None:
    onnx = pytest.importorskip("onnx")
    content = onnx_device.model(
        [onnx_device.node("Cast", ["a"], "b", to=value)],
        {"a": (np.float32, ("N", length + 1))},
        {"b" * (length + 1): (np.uint8, ())},
        {"c": np.arange(length, dtype=np.int64) - value % 7},
    )
    graph = onnx.load_from_string(content).graph
    assert graph.node[0].attribute[0].i == value
    assert graph.output[0].name == "b" * (length + 1)
    assert graph.input[0].type.tensor_type.shape.dim[1].dim_value == length + 1
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(graph.initializer[0]), np.arange(length, dtype=np.int64) - value % 7
    )


@given(frame=frames(), crop=crops, most=st.sampled_from([1, 400, 1 << 25]))
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_of_any_size_are_the_same_bits(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch, frame: tuple[FrameFormat, Bytes], crop: Crop, most: int
) -> None:
    frame_format, array = frame
    expected_SS3 = accept(array, frame_format).cut(crop)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_device, "MAX_TAPPED_BYTES", most)
        view = foreign(array, frame_format)
        outputs = engine.answer_device([view], [crop])
    np.testing.assert_array_equal(outputs.embedding_ND.reshape(S, S, 3), expected_SS3)
    same(outputs, engine(expected_SS3[None]))


def test_nothing_is_read_beyond_the_last_pixel(engine: OnnxEngine) -> None:
    """The frame is a part of a larger image and ends where its memory does: the page behind it may not be touched."""
    if sys.platform != "linux":
        pytest.skip("mprotect is called by its name in libc of Linux")
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    whole = np.frombuffer(memory, np.uint8)
    start = whole.ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + 2 * page), ctypes.c_size_t(page), 0) == 0
    try:
        for frame_format in FrameFormat:
            source = noise(frame_format, 20, 16)
            rows, row_bytes = source.shape[0], source[0].size
            pitch = row_bytes if "i420" in frame_format.value else 100
            first = 2 * page - ((rows - 1) * pitch + row_bytes)
            array = np.ndarray(source.shape, np.uint8, whole.data, first, (pitch, *source.strides[1:]))
            array[...] = source
            for crop in (Crop.square(0, 0, 20, S), Crop.square(10, 14, 9, S)):
                outputs = engine.answer_device([foreign(array, frame_format)], [crop])
                same(outputs, engine(accept(source, frame_format).cut(crop)[None]))
            copy = engine.to_host(foreign(array, frame_format))
            np.testing.assert_array_equal(copy, accept(source, frame_format).to_rgb())
            del array
    finally:
        libc.mprotect(ctypes.c_void_p(start + 2 * page), ctypes.c_size_t(page), 3)


def test_pinned_memory_of_the_host_is_read(engine: OnnxEngine) -> None:
    pinned = foreign(noise(RGB, 20, 20), RGB)
    pinned = DeviceFrame(RGB, MemoryKind.CUDA_HOST, 0, pinned.address, pinned.shape, pinned.strides, None, pinned)
    assert len(engine.answer_device([pinned], [Crop.square(0, 0, 9, S)])) == 1


def test_a_provider_that_cuts_otherwise_is_refused_at_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    engine = OnnxEngine(write_pixels_model(tmp_path / "model.onnx"), threads=1)
    frame, crop = foreign(noise(RGB, 20, 20), RGB), Crop.square(0, 0, 9, S)
    monkeypatch.setattr(onnx_device, "AFTER", 2**16 * 1.001)
    for _ in range(2):
        with pytest.raises(WrongAnswerError, match=r"does not cut RGB frames .* of 192 bytes .* differ"):
            engine.answer_device([frame], [crop])


class FakeSession:
    """As much of a session on a GPU as is looked at before anything runs."""

    def __init__(self, provider: str, gpu: str = "0") -> None:
        self.provider, self.gpu = provider, gpu

    def get_providers(self) -> list[str]:
        return [self.provider, "CPUExecutionProvider"]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {self.provider: {"device_id": self.gpu}, "CPUExecutionProvider": {}}


def gpu_device(provider: str) -> onnx_device.OnnxDevice:
    runtime = pytest.importorskip("onnxruntime")
    session = FakeSession(provider, "1")
    return onnx_device.OnnxDevice(
        runtime, session, runtime.SessionOptions(), "frames", RULE, OUTPUT_NAMES, "onnxruntime x"
    )


def test_a_provider_on_a_gpu_reads_that_gpu_alone() -> None:
    device = gpu_device("TensorrtExecutionProvider")
    crop = Crop.square(0, 0, 9, S)
    with pytest.raises(ConfigError, match="reads frames on GPU 1, and this one is in the host's memory"):
        device.answer([foreign(noise(RGB, 9, 9), RGB)], [crop])
    with pytest.raises(ConfigError, match="runs on GPU 1, and the frame is on GPU 0"):
        device.answer([on_gpu((9, 9, 3), gpu=0)], [crop])
    with pytest.raises(ConfigError, match="only ONNX Runtime's CPU, CUDA and TensorRT"):
        gpu_device("DmlExecutionProvider")


def test_onnx_runtimes_real_gpu_gives_the_same_bits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers() or not torch.cuda.is_available():
        pytest.skip("ONNX Runtime's CUDA provider and a GPU that PyTorch can fill are not both here")
    engine = OnnxEngine(write_pixels_model(tmp_path / "model.onnx"), "cuda")
    for frame_format in FrameFormat:
        array = noise(frame_format, 480, 640)
        frame = take_frame(torch.from_numpy(array).cuda(), frame_format)
        for crop in (
            Crop.square(-30.5, 20.2, 400.3, S),
            Crop.square(-500, -500, 2000, S),
            Crop.square(100, 100, 40, S),
        ):
            same(engine.answer_device([frame], [crop]), engine(accept(array, frame_format).cut(crop)[None]))
        np.testing.assert_array_equal(engine.to_host(frame), accept(array, frame_format).to_rgb())


@pytest.mark.parametrize("fill", [0, 114])
@pytest.mark.parametrize("frame_format", FrameFormat)
def test_crops_that_are_not_square_on_grey_are_the_hosts(frame_format: FrameFormat, fill: int) -> None:
    runtime = pytest.importorskip("onnxruntime")
    rule = CropRule(width_px=12, height_px=20, fill=fill)
    session = FakeSession("CPUExecutionProvider")
    device = onnx_device.OnnxDevice(runtime, session, runtime.SessionOptions(), "frames", rule, OUTPUT_NAMES, "ort")

    device.verify(frame_format)  # compares four crops with the host's
    array = noise(frame_format, 48, 60)
    crop = Crop(-9.0, 3.0, 50.0, 90.0, 12, 20, fill=fill)
    np.testing.assert_array_equal(device.cut_copy(array, frame_format, crop), accept(array, frame_format).cut(crop))
