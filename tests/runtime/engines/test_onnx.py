"""The adapter alone, with graphs of a few nodes: no torch, nothing of the trainer."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alpose.runtime import Monitor
from alpose.runtime.bundle import Bundle
from alpose.runtime.engines import onnx as adapter
from alpose.runtime.engines.onnx import OnnxEngine, plugin_device, providers
from alpose.runtime.errors import CheckpointError, ConfigError, DataNotFoundError, MissingExtraError
from alpose.runtime.frames import FrameFormat
from alpose.runtime.types import OUTPUT_NAMES, form_problems

from ...fakes.engines import write_onnx_bundle
from ...fakes.frames import noise

onnx: Any = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE, JOINTS, DIMENSIONS = 8, 3, 4

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A graph whose every output is a sum over the frame, in the shape of the output; ``changes`` spoil it."""

    def make(name: str = "model.onnx", *, size: Any = SIZE, dtype: int = onnx.TensorProto.UINT8, rename: str = "",
             input_name: str = "frames") -> Path:  # fmt: skip
        helper, kinds = onnx.helper, onnx.TensorProto
        shapes: dict[str, tuple[Any, ...]] = {
            "keypoints": ("N", JOINTS, 2), "scores": ("N", JOINTS), "predicted_loss": ("N",),
            "failure_probability": ("N",), "embedding": ("N", DIMENSIONS),
        }  # fmt: skip
        nodes = [
            helper.make_node("Cast", [input_name], ["float"], to=kinds.FLOAT),
            helper.make_node("ReduceSum", ["float", "axes"], ["sum_N"], keepdims=0),
            helper.make_node("Unsqueeze", ["sum_N", "one"], ["sum_N1"]),
            helper.make_node("Unsqueeze", ["sum_N1", "two"], ["sum_N11"]),
        ]
        weights = [
            onnx.numpy_helper.from_array(np.array(value, dtype=np.int64), key)
            for key, value in {"axes": [1, 2, 3], "one": [1], "two": [2]}.items()
        ]
        outputs = []
        for output, shape in shapes.items():
            source = {1: "sum_N", 2: "sum_N1", 3: "sum_N11"}[len(shape)]
            called = f"{output}{rename}" if output == "scores" else output
            inner = tuple(length if isinstance(length, int) else JOINTS for length in shape[1:])
            ones = np.arange(1, 1 + int(np.prod(inner)), dtype=np.float32).reshape(1, *inner) if inner else np.ones(1)
            weights.append(onnx.numpy_helper.from_array(np.asarray(ones, dtype=np.float32), f"{output}_gain"))
            nodes.append(helper.make_node("Mul", [source, f"{output}_gain"], [called]))
            outputs.append(helper.make_tensor_value_info(called, kinds.FLOAT, shape))
        frames = helper.make_tensor_value_info(input_name, dtype, ("N", size, size, 3))
        graph = helper.make_graph(nodes, "test", [frames], outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        helper.set_model_props(model, {"alpose.head": "ll++"})
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return make


def frames(count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def test_it_gives_the_graphs_own_numbers(write: Write) -> None:
    engine = OnnxEngine(write(), threads=1)
    pixels = frames(3)
    answer = engine(pixels)
    assert form_problems(answer, 3, JOINTS, DIMENSIONS) == {}
    np.testing.assert_array_equal(answer.predicted_loss_N, pixels.sum(axis=(1, 2, 3), dtype=np.float32))
    np.testing.assert_array_equal(answer.scores_NJ, answer.predicted_loss_N[:, None] * np.array([1, 2, 3]))
    assert (engine.name, engine.provider, engine.crop.width_px) == ("onnxruntime cpu", "CPUExecutionProvider", SIZE)
    assert engine.metadata == {"alpose.head": "ll++"}


@pytest.mark.parametrize(
    "changes",
    [
        {"rename": "_"}, {"dtype": onnx.TensorProto.FLOAT}, {"size": "S"}, {"input_name": "images"},
    ],
)  # fmt: skip
def test_a_graph_of_another_kind_is_refused(write: Write, changes: dict[str, Any]) -> None:
    with pytest.raises(
        CheckpointError, match=r"model\.onnx is not a graph of alpose: it takes .* expected uint8 frames"
    ):
        OnnxEngine(write(**changes))


def test_a_damaged_or_missing_file_is_named(write: Write, tmp_path: Path) -> None:
    path = write()
    content = path.read_bytes()
    for cut in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"model\.onnx (does not load in ONNX Runtime|is not a graph)"):
            OnnxEngine(path)
    with pytest.raises(DataNotFoundError, match=r"none\.onnx does not exist"):
        OnnxEngine(tmp_path / "none.onnx")


def test_choices_that_cannot_be_carried_out(write: Write) -> None:
    path = write()
    with pytest.raises(ConfigError, match="does not know the provider 'cude': did you mean cuda"):
        OnnxEngine(path, "cude")
    with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
        OnnxEngine(path, threads=0)
    if "cuda" not in providers():
        with pytest.raises(ConfigError, match=r"built without CUDAExecutionProvider; it has .*CPUExecutionProvider"):
            OnnxEngine(path, "cuda")
        engine = OnnxEngine(path, "CUDA", allow_fallback=True)
        assert engine.name == "onnxruntime cpu"
        assert len(engine(frames(2))) == 2


class FakeSession:
    """A runtime whose GPU provider is compiled in and does not start: it takes the CPU and raises nothing."""

    asked: list[str] = []  # noqa: RUF012  # a record of the last session

    def __init__(self, _content: bytes, _options: Any, providers: list[str]) -> None:
        type(self).asked = providers
        self.fallback = True

    def disable_fallback(self) -> None:
        self.fallback = False

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


class FakeRuntime:
    __version__ = "0"
    InferenceSession = FakeSession

    class SessionOptions:
        log_severity_level = 0
        intra_op_num_threads = 0

        def add_session_config_entry(self, key: str, value: str) -> None:
            pass

    @staticmethod
    def get_all_providers() -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    get_available_providers = get_all_providers


def test_a_silent_fallback_to_the_cpu_is_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "import_onnxruntime", lambda: FakeRuntime)
    with pytest.raises(ConfigError, match="CUDAExecutionProvider was chosen and did not start; ONNX Runtime took CPU"):
        OnnxEngine(write(), "cuda")
    assert FakeSession.asked == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert providers() == ("tensorrt", "cuda", "cpu")


class PluginRuntime(FakeRuntime):
    """A runtime to which a provider's library can be registered, which then brings one on a GPU and one on the CPU."""

    def __init__(self, *, loads: bool = True, brings: tuple[str, ...] = ("GPU", "CPU")) -> None:
        self.loads, self.brings = loads, brings
        self.registered: list[str] = []

    def register_execution_provider_library(self, name: str, library: str) -> None:
        if not self.loads:
            raise RuntimeError("invalid ELF header")
        self.registered.append(library)

    def get_ep_devices(self) -> list[Any]:
        kinds = [("CPUExecutionProvider", "CPU")]
        kinds += [("MineExecutionProvider", kind) for kind in self.brings] if self.registered else []
        return [
            SimpleNamespace(ep_name=name, device=SimpleNamespace(type=f"DeviceType.{kind}")) for name, kind in kinds
        ]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(adapter, "_plugins", {})
    (tmp_path / "libmine.so").write_bytes(b"code")
    (tmp_path / "mine_ep.py").write_text(f"def get_library_path():\n    return {str(tmp_path / 'libmine.so')!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "libmine.so"


def test_a_providers_own_library_is_registered_once_and_its_device_chosen(library: Path) -> None:
    runtime = PluginRuntime()
    for place, kind in ((str(library), "GPU"), ("mine-ep", "GPU"), (f"{library},cpu", "CPU"), ("mine_ep,GPU", "GPU")):
        device = plugin_device(runtime, place)
        assert (device.ep_name, device.device.type) == ("MineExecutionProvider", f"DeviceType.{kind}")
    assert runtime.registered == [str(library)]
    with pytest.raises(ConfigError, match="finds no NPU that it can use here; it has: GPU, CPU"):
        plugin_device(runtime, f"{library},NPU")


def test_a_providers_library_that_cannot_be_used_says_why(library: Path) -> None:
    with pytest.raises(ConfigError, match=r"libmine\.so is not a provider that ONNX Runtime 0 loads: invalid ELF"):
        plugin_device(PluginRuntime(loads=False), str(library))
    with pytest.raises(ConfigError, match="finds no device that it can use here; it has: none"):
        plugin_device(PluginRuntime(brings=()), str(library))
    with pytest.raises(DataNotFoundError, match="neither a file nor a package not-there: pip install not-there"):
        plugin_device(PluginRuntime(), "not-there")
    with pytest.raises(DataNotFoundError, match=r"absent\.so does not exist"):
        plugin_device(PluginRuntime(), str(library.with_name("absent.so")))
    with pytest.raises(ConfigError, match="the package json has no library of a provider"):
        plugin_device(PluginRuntime(), "json")
    with pytest.raises(ConfigError, match=r"onnxruntime 1\.23 or newer, this is 0"):
        plugin_device(FakeRuntime, str(library))


def test_an_engine_that_waits_uses_no_cpu(write: Write) -> None:
    """ONNX Runtime's threads would spin for the next call."""
    engine, pixels = OnnxEngine(write(), threads=4), frames(8)
    engine(pixels)
    before = time.process_time()
    for _ in range(5):
        engine(pixels)
        time.sleep(0.04)
    assert time.process_time() - before < 0.1


def test_without_onnxruntime_the_extra_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"needs onnxruntime, .* pip install 'alpose\[cpu\]'"):
        OnnxEngine(path)
    assert providers() == ()


def test_the_names_of_outputs_are_those_of_the_graph() -> None:
    assert OUTPUT_NAMES == ("keypoints", "scores", "predicted_loss", "failure_probability", "embedding")


# --- graphs with a fixed batch


@pytest.mark.parametrize(("batch", "runs"), [(1, "one frame a run, so a batch of N persons takes N runs"),
                                             (4, "4 frames a run, so a batch of N persons takes N / 4 runs")])  # fmt: skip
def test_a_fixed_batch_is_verified_answers_any_number_of_persons_and_says_what_they_cost(
    batch: int, runs: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder, free = write_onnx_bundle(tmp_path / "fixed.alpose", batch), write_onnx_bundle(tmp_path / "free.alpose")
    frames_HW3 = [noise(FrameFormat.RGB, 20, 30, seed) for seed in range(5)]

    with Monitor(folder, engine="cpu", threads=1) as fixed, Monitor(free, engine="cpu", threads=1) as any_number:
        answers, expected = fixed.batch(frames_HW3), any_number.batch(frames_HW3)

    assert runs in caplog.text
    assert caplog.text.count("a batch of N persons") == 1  # a graph that takes any number costs nothing more
    for one, other in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(one.keypoints, other.keypoints)
        assert one.failure_probability == other.failure_probability
    assert OnnxEngine(Bundle.open(folder), threads=1).max_batch == batch
