"""Frames cut in the memory of ONNX Runtime's provider: for real on the CPU.

Shapes: S crop side.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import Crop
from alpose.runtime.device_frames import DeviceFrame, take_frame
from alpose.runtime.dlpack import Where
from alpose.runtime.engines import OnnxEngine, crop_graph, onnx_device, proto
from alpose.runtime.engines.device import DeviceEngine
from alpose.runtime.errors import ConfigError, DataError, WrongAnswerError
from alpose.runtime.frames import FrameFormat, accept
from alpose.runtime.types import OUTPUT_NAMES

from ..fakes import lent

S = lent.S
noise, lend, same, on_gpu = lent.noise, lent.lend, lent.same, lent.on_gpu
Bytes = npt.NDArray[np.uint8]
RGB, BGR, NV12 = FrameFormat.RGB, FrameFormat.BGR, FrameFormat.NV12


# --- The graph of the crop


@pytest.mark.parametrize("form", FrameFormat)
def test_onnx_reads_the_graphs_and_finds_nothing_wrong(form: FrameFormat) -> None:
    onnx = pytest.importorskip("onnx")
    for content in (crop_graph.crop_graph(form), crop_graph.copy_graph()):
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
        assert [opset.version for opset in model.opset_import] == [proto.OPSET]
        assert not {node.op_type for node in model.graph.node} & {"MatMul", "Gemm", "Conv", "Einsum"}


@given(value=st.integers(-(2**63), 2**63 - 1), length=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_numbers_and_lengths_are_written_as_onnx_reads_them(value: int, length: int) -> None:
    onnx = pytest.importorskip("onnx")
    content = proto.model(
        [proto.node("Cast", ["a"], "b", to=value)],
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


# --- ONNX Runtime, on the CPU


def write_model(path: Path) -> Path:
    """A model whose embedding is the crop itself, pixel by pixel, so that a wrong bit anywhere shows."""
    pixels = S * S * 3
    shapes: dict[str, tuple[int, ...]] = {"keypoints": (3, 2), "scores": (3,), "predicted_loss": (),
                                          "failure_probability": (), "embedding": (pixels,)}  # fmt: skip
    nodes = [proto.node("Cast", ["frames"], "all", to=proto.type_number(np.float32))]
    constants: dict[str, npt.NDArray[np.generic]] = {}
    for name, shape in shapes.items():
        constants[f"{name}_start"] = np.array([1], np.int64)
        constants[f"{name}_end"] = np.array([1 + int(np.prod(shape, dtype=int))], np.int64)
        constants[f"{name}_shape"] = np.array([0, *shape] if shape else [-1], np.int64)
    constants |= {"flat": np.array([0, -1], np.int64), "axis": np.array([1], np.int64)}
    nodes.append(proto.node("Reshape", ["all", "flat"], "embedding"))
    for name in OUTPUT_NAMES[:-1]:
        nodes.append(proto.node("Slice", ["embedding", f"{name}_start", f"{name}_end", "axis"], f"{name}_part"))
        nodes.append(proto.node("Reshape", [f"{name}_part", f"{name}_shape"], name))
    path.write_bytes(
        proto.model(
            nodes,
            {"frames": (np.uint8, ("N", S, S, 3))},
            {name: (np.float32, ("N", *shape)) for name, shape in shapes.items()},
            constants,
        )
    )
    return path


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> OnnxEngine:
    pytest.importorskip("onnxruntime")
    return OnnxEngine(write_model(tmp_path_factory.mktemp("model") / "model.onnx"), threads=1)


@given(frame=lent.frames, crop=lent.crops, most=st.sampled_from([1, 400, 1 << 25]))
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_onnx_runtime_cuts_the_same_bits(
    engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch, frame: tuple[FrameFormat, Bytes], crop: Crop, most: int
) -> None:
    form, array = frame
    expected_SS3 = accept(array, form).cut(crop)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_device, "MAX_TAPPED_BYTES", most)
        outputs = engine.answer_device([lend(array, form)], [crop])
    np.testing.assert_array_equal(outputs.embedding_ND.reshape(S, S, 3), expected_SS3)
    same(outputs, engine(expected_SS3[None]))


def test_a_batch_of_frames_of_several_forms_and_sizes(engine: OnnxEngine) -> None:
    arrays = [noise(RGB, 30, 40), noise(NV12, 20, 16, 1), noise(BGR, 9, 50, 2), noise(RGB, 64, 64, 3)]
    kinds = [RGB, NV12, BGR, RGB]
    places = [Crop(3.3 * n, 2.0, 17.0 + n, S) for n in range(4)]
    expected = np.stack([accept(a, k).cut(c) for a, k, c in zip(arrays, kinds, places, strict=True)])
    for count in (1, 4, 2):
        taken = [lend(a, k) for a, k in zip(arrays[:count], kinds, strict=False)]
        same(engine.answer_device(taken, places[:count]), engine(expected[:count]))


def test_the_arrays_belong_to_the_caller(engine: OnnxEngine) -> None:
    first, second = noise(RGB, 20, 20), noise(RGB, 20, 20, 1)
    crop = Crop(0, 0, 20, S)
    kept = engine.answer_device([lend(first, RGB)], [crop])
    engine.answer_device([lend(second, RGB)], [crop])
    same(kept, engine(accept(first, RGB).cut(crop)[None]))


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
        for form in FrameFormat:
            height, width, pitch = 20, 16, 100
            source = noise(form, height, width)
            rows, row_bytes = source.shape[0], source[0].size
            first = 2 * page - ((rows - 1) * pitch + row_bytes)
            strides = (pitch, *source.strides[1:])
            array = np.ndarray(source.shape, np.uint8, whole.data, first, strides)
            array[...] = source
            for crop in (Crop(0, 0, 20, S), Crop(10, 14, 9, S)):
                outputs = engine.answer_device([lend(array, form)], [crop])
                same(outputs, engine(accept(source, form).cut(crop)[None]))
            np.testing.assert_array_equal(engine.to_host(lend(array, form)), accept(source, form).to_rgb())
            del array
    finally:
        libc.mprotect(ctypes.c_void_p(start + 2 * page), ctypes.c_size_t(page), 3)


@pytest.mark.parametrize("form", FrameFormat)
def test_what_comes_to_the_host_is_rgb_and_counted(engine: OnnxEngine, form: FrameFormat) -> None:
    array = noise(form, 24, 30)[:, 2:22]
    frame, before = lend(array, form), engine.copies_to_host
    assert isinstance(engine, DeviceEngine)
    engine.answer_device([frame], [Crop(0, 0, 20, S)])
    assert engine.copies_to_host == before

    got = engine.to_host(frame)
    np.testing.assert_array_equal(got, accept(array, form).to_rgb())
    np.testing.assert_array_equal(engine.to_host(frame, (3, 5, 17, 20)), accept(array, form).to_rgb((3, 5, 17, 20)))
    assert engine.copies_to_host == before + 2
    assert not np.shares_memory(got, array)
    assert got.flags.writeable
    assert got.flags.c_contiguous


def test_the_cpu_says_that_it_cannot_read_a_gpu_and_what_can(engine: OnnxEngine) -> None:
    for where in (Where.CUDA, Where.CUDA_MANAGED):
        frame = on_gpu((20, 20, 3), where=where)
        for ask in (lambda frame=frame: engine.answer_device([frame], [Crop(0, 0, 9, S)]),
                    lambda frame=frame: engine.to_host(frame)):  # fmt: skip
            with pytest.raises(ConfigError, match=r"onnxruntime cpu cannot read a frame on a GPU.*engine='cuda'"):
                ask()
    pinned = lend(noise(RGB, 20, 20), RGB)
    pinned = DeviceFrame(RGB, Where.CUDA_HOST, 0, pinned.address, pinned.shape, pinned.strides, None, pinned)
    assert len(engine.answer_device([pinned], [Crop(0, 0, 9, S)])) == 1


def test_frames_and_crops_that_do_not_belong_together(engine: OnnxEngine) -> None:
    frame = lend(noise(RGB, 20, 20), RGB)
    for given_frames, given_crops in (([], []), ([frame], []), ([frame], [Crop(0, 0, 9, S)] * 2)):
        with pytest.raises(DataError, match=f"{len(given_frames)} frames and {len(given_crops)} crops"):
            engine.answer_device(given_frames, given_crops)
    for crop in (Crop(0, 0, 9, S + 1), Crop(0, 0, 9, S, 2)):
        with pytest.raises(DataError, match="crops of 8 px without context"):
            engine.answer_device([frame], [crop])


def test_threads_share_an_engine(engine: OnnxEngine) -> None:
    lent.check_threads(engine, lambda array: lend(array, RGB))


def test_a_provider_that_cuts_otherwise_is_refused_at_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OnnxEngine(write_model(tmp_path / "model.onnx"), threads=1)
    frame, crop = lend(noise(RGB, 20, 20), RGB), Crop(0, 0, 9, S)
    with monkeypatch.context() as patch:
        patch.setattr("alpose.runtime.engines.crop_graph.AFTER", 2**16 * 1.001)
        for _ in range(2):
            with pytest.raises(WrongAnswerError, match=r"does not cut RGB frames .* of 192 bytes .* differ"):
                engine.answer_device([frame], [crop])
    assert len(engine.answer_device([frame], [crop])) == 1


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
    return onnx_device.OnnxDevice(runtime, session, runtime.SessionOptions(), "frames", S, "onnxruntime x")


def test_a_provider_on_a_gpu_reads_that_gpu_alone() -> None:
    device = gpu_device("TensorrtExecutionProvider")
    crop = Crop(0, 0, 9, S)
    with pytest.raises(ConfigError, match="reads frames on GPU 1, and this one is in the host's memory"):
        device.answer([lend(noise(RGB, 9, 9), RGB)], [crop])
    with pytest.raises(ConfigError, match="runs on GPU 1, and the frame is on GPU 0"):
        device.answer([on_gpu((9, 9, 3), gpu=0)], [crop])
    with pytest.raises(ConfigError, match="only ONNX Runtime's CPU, CUDA and TensorRT"):
        gpu_device("DmlExecutionProvider")


def test_onnx_runtimes_real_gpu_gives_the_same_bits(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in runtime.get_available_providers() or not torch.cuda.is_available():
        pytest.skip("ONNX Runtime's CUDA provider and a GPU that PyTorch can fill are not both here")
    engine = OnnxEngine(write_model(tmp_path / "model.onnx"), "cuda")
    for form in FrameFormat:
        array = noise(form, 480, 640)
        frame = take_frame(torch.from_numpy(array).cuda(), form)
        for crop in (Crop(-30.5, 20.2, 400.3, S), Crop(-500, -500, 2000, S), Crop(100, 100, 40, S)):
            same(engine.answer_device([frame], [crop]), engine(accept(array, form).cut(crop)[None]))
        np.testing.assert_array_equal(engine.to_host(frame), accept(array, form).to_rgb())
