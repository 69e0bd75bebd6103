"""Building a TensorRT engine: on a fake that keeps TensorRT's contract, and on the real one where there is one."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.export import tensorrt as building
from alpose.export.tensorrt import build_engine
from alpose.runtime import io
from alpose.runtime.bundle import Bundle, check_files
from alpose.runtime.bundle.keys import generate_key, sign
from alpose.runtime.engines import tensorrt_plans as library
from alpose.runtime.engines.tensorrt import TensorRTEngine
from alpose.runtime.engines.tensorrt_plans import Profile, Sidecar, StaleEngineError, TensorRTError
from alpose.runtime.errors import (
    BundleError,
    ConfigError,
    DataNotFoundError,
    WrongAnswerError,
)

from ..fakes import tensorrt as fakes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made: Path = fakes.write_bundle(tmp_path / "driver.alpose")
    return made


def sidecar_of(path: Path) -> Sidecar:
    return Sidecar.from_bytes(path.with_name(f"{path.name.removesuffix('.engine')}.json").read_bytes())


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "engines").iterdir()} if (folder / "engines").is_dir() else set()


# --- What is built


@pytest.mark.parametrize("spelling", ["cuda.bindings.runtime", "cuda.cudart"])
@pytest.mark.parametrize("version", fakes.VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_one_path_builds_with_every_version(
    tmp_path: Path, cuda: Any, monkeypatch: pytest.MonkeyPatch, version: str, spelling: str, precision: str
) -> None:
    trt = fakes.install(monkeypatch, cuda, version, spelling)
    folder = fakes.write_bundle(tmp_path / "driver.alpose", precision)

    path = build_engine(folder)

    (built,) = trt.built
    assert built["strongly typed"]
    assert built["flags"] == 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), "no other flag"
    assert built["set"] == [], "precision stands in the graph, not in the builder's flags"
    assert built["cleared"] == ["TF32"]
    assert built["static"]
    assert built["batch"] == (1, 1, 1)
    assert (
        path.name
        == f"trt{version}-Orin-sm87-{precision}-{Bundle.open(folder).manifest.files['model.onnx'][:16]}.engine"
    )
    assert path.read_bytes().startswith(b"fakeplan"), "nothing stands before the plan"
    with TensorRTEngine(folder) as engine:
        frames = engine.bundle.golden.frames_GHW3
        np.testing.assert_array_equal(engine(frames).scores_NJ, fakes.answer(frames)["scores"])


@pytest.mark.usefixtures("trt")
def test_the_sidecar_says_how_it_was_built(folder: Path) -> None:
    path = build_engine(folder, max_batch=4, workspace_bytes=1 << 28, optimization_level=4, tf32=True)

    value = json.loads(path.with_name(f"{path.name.removesuffix('.engine')}.json").read_text())
    sidecar = sidecar_of(path)

    assert value["kind"] == "alpose TensorRT engine"
    assert value["tensorrt"] == "11.4.0.106"
    assert (value["gpu"], value["compute_capability"]) == ("Orin", "8.7")
    assert (value["cuda_driver"], value["cuda_runtime"]) == ("12.6", "12.6")
    assert value["precision"] == "fp32"
    assert value["model_sha256"] == Bundle.open(folder).manifest.files["model.onnx"]
    assert value["plan_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert value["profile"] == {"min": 1, "opt": 4, "max": 4}
    assert (value["builder_optimization_level"], value["tf32"], value["workspace_bytes"]) == (4, True, 1 << 28)
    assert value["build_seconds"] >= 0
    assert value["timing_cache"] == "new"
    assert [report["passed"] for report in value["golden"]] == [True]
    assert {check["output"] for check in value["golden"][0]["checks"]} >= {"keypoints", "failure_probability"}
    assert sidecar.passed


@pytest.mark.parametrize(
    ("options", "batch", "static"),
    [
        ({}, (1, 1, 1), True),
        ({"max_batch": 8}, (1, 8, 8), False),
        ({"profile": (1, 2, 4)}, (1, 2, 4), False),
        ({"profile": (4, 4, 4)}, (4, 4, 4), True),
        ({"profile": (2, 3, 3)}, (2, 3, 3), False),
    ],
)
def test_batches(folder: Path, trt: Any, options: Any, batch: tuple[int, int, int], static: bool) -> None:
    path = build_engine(folder, **options)
    assert trt.built[0]["batch"] == batch
    assert trt.built[0]["static"] == static
    assert sidecar_of(path).profile == Profile(min=batch[0], opt=batch[1], max=batch[2])
    with TensorRTEngine(folder) as engine:
        assert engine.max_batch == batch[2]
        assert engine.profile == sidecar_of(path).profile


def test_options_reach_the_builder(folder: Path, trt: Any) -> None:
    build_engine(folder, workspace_bytes=1 << 30, optimization_level=5, tf32=True, timing_cache=False)
    (built,) = trt.built
    assert (built["pools"], built["level"], built["cleared"], built["cache"]) == ({"WORKSPACE": 1 << 30}, 5, [], None)
    assert not list((folder / "engines").glob("*.timing"))


@pytest.mark.parametrize(("options", "words"), [
    ({"max_batch": 0}, "1 <= min <= opt <= max"), ({"profile": (1, 4, 2)}, "1 <= min <= opt <= max"),
    ({"profile": (1, 2)}, "cannot be built"), ({"max_batch": 2, "profile": (1, 2, 4)}, "not both"),
    ({"max_batch": 1.5}, "whole numbers"), ({"workspace_bytes": 5}, "at least one MiB"),
    ({"optimization_level": 6}, "0 to 5"),
])  # fmt: skip
def test_options_that_make_no_sense(folder: Path, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_engine(folder, **options)


@pytest.mark.usefixtures("trt")
def test_the_bundle_stays_whole(folder: Path) -> None:
    build_engine(folder)
    assert not [check for check in check_files(folder) if check.problem]


@pytest.mark.usefixtures("trt")
def test_steps_are_told(folder: Path) -> None:
    said: list[str] = []
    build_engine(folder, say=said.append)
    assert "Orin" in said[0]
    assert "batch 1" in said[0]
    assert "golden frames passed" in said[-1]


def test_a_second_build_takes_the_place_of_the_first(folder: Path, trt: Any) -> None:
    first = build_engine(folder)
    second = build_engine(folder, max_batch=2)
    assert first == second
    assert sidecar_of(second).profile.max == 2
    assert len(trt.built) == 2
    assert len(names(folder)) == 4, "plan, sidecar, its MAC, timings"


def test_engines_of_two_versions_live_side_by_side(folder: Path, cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in fakes.VERSIONS:
        fakes.install(monkeypatch, cuda, version)
        build_engine(folder)
    for version in fakes.VERSIONS:
        fakes.install(monkeypatch, cuda, version)
        with TensorRTEngine(folder):
            pass
    cuda.gpu = "NVIDIA H200"
    with pytest.raises(StaleEngineError, match="GPU Orin instead of NVIDIA H200"):
        TensorRTEngine(folder)


# --- Timings


def test_timings_are_used_by_the_next_build(folder: Path, trt: Any) -> None:
    build_engine(folder)
    build_engine(folder, max_batch=2)
    assert [built["cache"] for built in trt.built] == [b"", b"timings 11.4.0.106 Orin"]
    assert sidecar_of(next((folder / "engines").glob("*.engine"))).timing_cache == "used"


def test_a_signed_bundle_reads_no_timings_and_loads_no_engine_that_others_may_have_written(
    folder: Path, trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nacl")
    monkeypatch.setenv("ALPOSE_STATE", str(tmp_path / "state"))
    public = generate_key(tmp_path / "key")
    (folder / "bundle.sig").write_bytes(sign((folder / "bundle.json").read_bytes(), tmp_path / "key"))
    (folder / "engines").mkdir()
    (folder / "engines" / "trt11.4.0.106-Orin-sm87.timing").write_bytes(b"timings 11.4.0.106 Orin")
    for _ in range(2):
        build_engine(folder, public_key=public)
    assert [built["cache"] for built in trt.built] == [b"", b"timings 11.4.0.106 Orin"]
    assert (tmp_path / "state" / "trt11.4.0.106-Orin-sm87.timing").exists()
    TensorRTEngine(Bundle.open(folder, public)).close()
    monkeypatch.setenv("ALPOSE_STATE", str(tmp_path / "another device"))
    with pytest.raises(StaleEngineError, match="no MAC of this device's key"):
        TensorRTEngine(Bundle.open(folder, public))


def test_timings_of_another_machine_are_replaced(folder: Path, trt: Any, tmp_path: Path) -> None:
    place = tmp_path / "kept.timing"
    place.write_bytes(b"timings 10.3.0 Orin")
    path = build_engine(folder, timing_cache=place)
    assert trt.built[0]["cache"] == b""
    assert sidecar_of(path).timing_cache == "replaced"
    assert place.read_bytes() == b"timings 11.4.0.106 Orin"


@pytest.mark.usefixtures("trt")
def test_timings_that_cannot_be_kept_fail_nothing(folder: Path, tmp_path: Path, caplog: Any) -> None:
    build_engine(folder, timing_cache=tmp_path / "no such folder" / "a.timing")
    assert "timings were not kept" in caplog.text


# --- Engines that answer wrongly


@pytest.mark.usefixtures("cuda")
def test_an_engine_that_answers_wrongly_is_deleted_and_the_deviation_said(folder: Path, trt: Any) -> None:
    def shifted(frames: Any) -> Any:
        value = fakes.answer(frames)
        value["keypoints"] += 3
        return value

    trt.answer = shifted
    with pytest.raises(WrongAnswerError, match=r"keypoints +4\.24 px +0\.01 px") as caught:
        build_engine(folder)
    assert "it was deleted" in str(caught.value)
    assert not [name for name in names(folder) if not name.endswith(".timing")]
    with pytest.raises(DataNotFoundError):
        TensorRTEngine(folder)


def test_an_engine_that_is_wrong_in_batches_only_is_deleted(folder: Path, trt: Any) -> None:
    def drift(frames: Any) -> Any:
        value = fakes.answer(frames)
        value["embedding"] = np.roll(value["embedding"], np.arange(len(frames)).sum(), axis=1)
        return value

    trt.answer = drift
    build_engine(folder)
    with pytest.raises(WrongAnswerError, match=r"embedding .* row"):
        build_engine(folder, max_batch=4)
    with TensorRTEngine(folder) as engine:
        assert engine.max_batch == 1, "the engine that passed is still there"


def test_not_a_number_is_a_wrong_answer(folder: Path, trt: Any) -> None:
    trt.answer = lambda frames: fakes.answer(frames) | {"predicted_loss": np.full(len(frames), np.nan)}
    with pytest.raises(WrongAnswerError, match="not finite"):
        build_engine(folder)
    assert not list((folder / "engines").glob("*.engine"))


# --- Failures


def test_what_the_parser_cannot_read_is_said_with_its_nodes(tmp_path: Path, trt: Any) -> None:
    errors = [
        {"node": 7, "name": "head/TopK_1", "operator": "TopK", "desc": "K is dynamic", "code": "UNSUPPORTED_NODE"},
        {"node": 9, "operator": "Mod", "desc": "no int64", "code": "UNSUPPORTED_NODE_DATATYPE"},
        {"desc": "and the rest"},
    ]
    folder = fakes.write_bundle(tmp_path / "driver.alpose", model=fakes.model_bytes(errors=errors))
    with pytest.raises(TensorRTError) as caught:
        build_engine(folder)
    text = str(caught.value)
    assert f"TensorRT 11.4.0.106 cannot read {folder / 'model.onnx'}" in text
    assert "node head/TopK_1 (TopK): K is dynamic [UNSUPPORTED_NODE]" in text
    assert "node 9 (Mod): no int64" in text
    assert "the graph: and the rest" in text
    assert not names(folder)
    assert not trt.built


@pytest.mark.usefixtures("trt")
def test_a_damaged_graph_is_said(tmp_path: Path) -> None:
    folder = fakes.write_bundle(tmp_path / "driver.alpose", model=b"no graph")
    with pytest.raises(TensorRTError, match=r"Failed to parse the ONNX model\. \[MODEL_DESERIALIZE_FAILED\]"):
        build_engine(folder)


@pytest.mark.usefixtures("trt")
def test_a_graph_with_other_inputs_is_refused(tmp_path: Path) -> None:
    tensors = json.loads(fakes.model_bytes())["tensors"]
    tensors["image"] = tensors.pop("frames")
    folder = fakes.write_bundle(tmp_path / "driver.alpose", model=fakes.model_bytes(tensors=tensors, inputs=["image"]))
    with pytest.raises(TensorRTError, match=r"must have one input, frames: it has \['image'\]"):
        build_engine(folder)


@pytest.mark.usefixtures("trt")
def test_a_graph_with_other_shapes_is_refused(tmp_path: Path) -> None:
    tensors = json.loads(fakes.model_bytes())["tensors"]
    tensors["embedding"][1] = ["N", 7]
    folder = fakes.write_bundle(tmp_path / "driver.alpose", model=fakes.model_bytes(tensors=tensors))
    with pytest.raises(BundleError, match="embedding"):
        build_engine(folder)
    assert not [name for name in names(folder) if not name.endswith(".timing")]


@pytest.mark.parametrize(("what", "words"), [
    ("builder", "starting TensorRT's builder failed"), ("build", "building an engine of"),
    ("load", "loading an engine"), ("run", "running the engine failed"),
])  # fmt: skip
def test_what_tensorrt_says_is_in_the_error(folder: Path, trt: Any, what: str, words: str) -> None:
    trt.refuse(what, "Error Code 4: too little of everything")
    with pytest.raises(TensorRTError, match=rf"{words}.*Error Code 4: too little of everything"):
        build_engine(folder)
    assert not [name for name in names(folder) if not name.endswith(".timing")]


def test_an_older_reason_is_not_repeated(folder: Path, trt: Any) -> None:
    trt.refuse("build", "the first reason")
    with pytest.raises(TensorRTError):
        build_engine(folder)
    trt.refuse("build", "the second reason")
    with pytest.raises(TensorRTError, match=r"failed: the second reason$"):
        build_engine(folder)


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("kept", [0, 1])
def test_a_disk_that_fills_leaves_no_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """Whether the plan or its sidecar is what did not fit."""
    write = io.write_atomically
    written: list[Path] = []

    def full(path: Path, content: bytes) -> Path:
        if path.suffix != ".timing" and len(written) == kept:
            raise OSError(28, "No space left on device")
        if path.suffix != ".timing":
            written.append(path)
        return write(path, content)

    monkeypatch.setattr(building, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        build_engine(folder)
    with pytest.raises(StaleEngineError if kept else DataNotFoundError):
        TensorRTEngine(folder)


@pytest.mark.usefixtures("trt")
def test_what_a_dead_build_left_is_removed(folder: Path) -> None:
    (folder / "engines").mkdir()
    old, new = folder / "engines" / ".a.engine.0.tmp", folder / "engines" / ".b.engine.0.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2e5,) * 2)
    build_engine(folder)
    assert not old.exists()
    assert new.exists(), "another build may be writing it"


# --- What is missing


@pytest.mark.usefixtures("trt")
def test_a_bundle_that_was_changed_is_not_built(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"another graph")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        build_engine(folder)


# --- The fakes, and the real thing


@pytest.mark.parametrize("version", fakes.VERSIONS)
def test_the_fake_has_not_what_the_release_has_not(cuda: Any, version: str) -> None:
    trt = fakes.TensorRT(version, cuda)
    eleven = version.startswith("11")
    for kind, name in (("BuilderFlag", "FP16"), ("BuilderFlag", "INT8"), ("BuilderFlag", "BF16"),
                       ("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS"),
                       ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")):  # fmt: skip
        assert hasattr(getattr(trt, kind), name) != eleven
    assert int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == (0 if eleven else 1)
    builder = trt.Builder(library.logger(trt)[0])
    for name in ("platform_has_fast_fp16", "platform_has_fast_int8", "build_engine", "build_cuda_engine"):
        with pytest.raises(AttributeError):
            getattr(builder, name)
    with pytest.raises(AttributeError):
        _ = builder.create_builder_config().int8_calibrator


def _why_not() -> str:
    """Why the real TensorRT cannot be tried here."""
    return library.unavailable() or ("" if importlib.util.find_spec("onnx") else "onnx is not installed")


real = _why_not()


@pytest.mark.skipif(bool(real), reason=f"the real TensorRT is not tried: {real}")
@pytest.mark.parametrize("options", [{}, {"max_batch": 4}], ids=["static", "profile"])
def test_the_real_tensorrt_builds_and_answers(tmp_path: Path, options: Any) -> None:
    """The whole path on hardware, with a graph of the fake's own arithmetic."""
    folder = fakes.write_bundle(tmp_path / "driver.alpose", model=_real_graph())
    path = build_engine(folder, **options)
    with TensorRTEngine(folder) as engine:
        frames = np.random.default_rng(0).integers(0, 256, (7, fakes.S, fakes.S, 3), dtype=np.uint8)
        expected = fakes.answer(frames)
        for name, value in engine(frames).named().items():
            np.testing.assert_allclose(value, expected[name], atol=1e-3)
    assert sidecar_of(path).passed


def _real_graph() -> bytes:
    """``fakes.answer`` as ONNX."""
    onnx = importlib.import_module("onnx")
    helper, numbers = onnx.helper, onnx.numpy_helper
    S, J, D = fakes.S, fakes.J, fakes.D
    place_J = np.arange(J, dtype=np.float32)
    constants: dict[str, Any] = {
        "one": np.array([1], np.int64), "two": np.array([2], np.int64), "all_axes": np.array([1, 2, 3], np.int64),
        "start": np.array([0], np.int64), "half": np.array([S // 2], np.int64), "forty": np.float32(40),
        "six_hundred": np.float32(600), "hundred": np.float32(100), "white": np.float32(255), "place": place_J,
        "place_11": place_J[None, :, None], "base": 0.5 + place_J / 100, "turn": np.arange(D, dtype=np.float32),
        "last": np.array([-1], np.int64),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Cast", ["frames"], ["float"], to=onnx.TensorProto.FLOAT),
        node("Slice", ["float", "start", "half", "two"], ["left"]),
        node("ReduceMean", ["float", "all_axes"], ["mean"], keepdims=0),
        node("ReduceMean", ["left", "all_axes"], ["side"], keepdims=0),
        node("Unsqueeze", ["mean", "one"], ["mean_1"]),
        node("Unsqueeze", ["side", "one"], ["side_1"]),
        node("Concat", ["mean_1", "side_1"], ["both"], axis=1),
        node("Div", ["both", "forty"], ["both_scaled"]),
        node("Unsqueeze", ["both_scaled", "one"], ["both_11"]),
        node("Add", ["both_11", "place_11"], ["keypoints"]),
        node("Div", ["mean_1", "six_hundred"], ["brightness"]),
        node("Add", ["brightness", "base"], ["scores"]),
        node("Div", ["side", "hundred"], ["predicted_loss"]),
        node("Div", ["mean", "white"], ["failure_probability"]),
        node("Div", ["mean_1", "forty"], ["angle"]),
        node("Add", ["angle", "turn"], ["angles"]),
        node("Cos", ["angles"], ["waves"]),
        node("ReduceL2", ["waves", "last"], ["length"], keepdims=1),
        node("Div", ["waves", "length"], ["embedding"]),
    ]
    shapes = json.loads(fakes.model_bytes())["tensors"]
    types = {"UINT8": onnx.TensorProto.UINT8, "FLOAT": onnx.TensorProto.FLOAT}
    infos = {name: helper.make_tensor_value_info(name, types[kind], shape) for name, (kind, shape) in shapes.items()}
    graph = helper.make_graph(
        nodes, "answer", [infos.pop("frames")], list(infos.values()),
        [numbers.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def test_the_graph_for_the_real_one_computes_what_the_fake_does() -> None:
    pytest.importorskip("onnx", reason="the graph is made with onnx")
    runtime = pytest.importorskip("onnxruntime", reason="the graph is tried with ONNX Runtime")
    session = runtime.InferenceSession(_real_graph(), providers=["CPUExecutionProvider"])
    frames = np.random.default_rng(0).integers(0, 256, (3, fakes.S, fakes.S, 3), dtype=np.uint8)
    expected = fakes.answer(frames)
    for output, value in zip(session.get_outputs(), session.run(None, {"frames": frames}), strict=True):
        np.testing.assert_allclose(value, expected[output.name], atol=1e-4)
