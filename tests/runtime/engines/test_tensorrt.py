"""The TensorRT engine on a fake of TensorRT and CUDA, beside what every engine promises; the real ones: tests/export.

Shapes: N frames, S crop side, J joints, D dimensions.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpose.runtime.bundle import Bundle
from alpose.runtime.bundle.keys import device_key_path, device_mac, generate_key, sign
from alpose.runtime.engines import tensorrt_plans as library
from alpose.runtime.engines.cuda import Cuda, CudaError
from alpose.runtime.engines.tensorrt import TensorRTEngine
from alpose.runtime.engines.tensorrt_plans import (
    MAX_SIDECAR_BYTES,
    EngineKey,
    Profile,
    Sidecar,
    StaleEngineError,
    TensorRTDevice,
    TensorRTError,
)
from alpose.runtime.errors import BundleError, DataNotFoundError, MissingExtraError
from alpose.runtime.types import OUTPUT_NAMES

from ...fakes import cuda as fake_cuda
from ...fakes import tensorrt as fakes

SPELLINGS = ("cuda.bindings.runtime", "cuda.cudart")
NEW = fakes.VERSIONS[-1]
Make = Callable[..., Path]


def add_engine(
    folder: Path, version: str = NEW, batch: tuple[int, int, int] = (1, 1, 1), capability: str = "8.7", **changes: Any
) -> Path:
    """An engine in a bundle, as the builder would leave it; ``changes`` are what the sidecar says otherwise."""
    bundle = Bundle.open(folder)
    plan = fakes.plan_bytes(version, batch=batch)
    key = EngineKey(
        tensorrt=version,
        gpu="Orin",
        compute_capability=capability,
        precision=bundle.manifest.precision,
        model_sha256=bundle.manifest.files["model.onnx"],
    )
    sidecar = Sidecar(
        key=key, profile=Profile(min=batch[0], opt=batch[1], max=batch[2]), tf32=False, workspace_bytes=None,
        plan_sha256=hashlib.sha256(plan).hexdigest(), cuda_driver="12.6", cuda_runtime="12.6", timing_cache="new",
        builder_optimization_level=3, build_seconds=1.5, created="2025-01-31T12:00:00+00:00", alpose="0.1.0",
        golden=({"passed": True},),
    )  # fmt: skip
    value = json.loads(sidecar.to_bytes()) | changes
    bundle.engines.mkdir(exist_ok=True)
    path = bundle.engines / f"{key.stem}.engine"
    path.write_bytes(plan)
    (bundle.engines / f"{key.stem}.json").write_text(json.dumps(value))
    return path


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def bundle(types: str = "fp32", *, built: bool = True, **engine: Any) -> Path:
        folder: Path = fakes.write_bundle(tmp_path / "driver.alpose", types)
        if built:
            add_engine(folder, **engine)
        return folder

    return bundle


def crops(count: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, fakes.S, fakes.S, 3), dtype=np.uint8)


def check(engine: TensorRTEngine, frames_NSS3: npt.NDArray[np.uint8]) -> None:
    outputs, expected = engine(frames_NSS3).named(), fakes.answer(frames_NSS3)
    for name in OUTPUT_NAMES:
        assert outputs[name].dtype == np.float32
        np.testing.assert_array_equal(outputs[name], expected[name])


# --- Answers


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("version", fakes.VERSIONS)
def test_it_answers_with_every_version(
    make: Make, cuda: Any, monkeypatch: pytest.MonkeyPatch, version: str, spelling: str
) -> None:
    fakes.install(monkeypatch, cuda, version, spelling)
    with TensorRTEngine(make("fp16", version=version)) as engine:
        check(engine, crops(1))
        check(engine, crops(1, seed=1))
        assert engine.name == "tensorrt fp16"
        assert engine.max_batch == 1


@pytest.mark.usefixtures("trt")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 4), min_size=3, max_size=3).map(sorted),
    counts=st.lists(st.integers(1, 13), min_size=1, max_size=5),
)
def test_any_number_of_frames_is_answered_by_any_profile(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], counts: list[int]
) -> None:
    folder = fakes.write_bundle(tmp_path_factory.mktemp("one") / "driver.alpose")
    add_engine(folder, batch=(sizes[0], sizes[1], sizes[2]))

    with TensorRTEngine(folder) as engine:
        for seed, count in enumerate(counts):
            check(engine, crops(count, seed))


@pytest.mark.usefixtures("trt")
def test_memory_is_made_once_and_given_back(make: Make, cuda: Any) -> None:
    engine = TensorRTEngine(make(batch=(1, 2, 4)))
    held = dict(cuda.memory)
    for count in (1, 4, 9, 2):
        engine(crops(count))
    assert cuda.memory == held
    assert cuda.calls.count("cudaMalloc") == 1 + len(OUTPUT_NAMES)

    engine.close()
    engine.close()

    assert cuda.leaks == 0
    with pytest.raises(TensorRTError, match=r"was closed"):
        engine(crops(1))


def test_another_current_gpu_is_restored(make: Make, trt: Any, cuda: Any) -> None:
    cuda.devices = 2
    with TensorRTEngine(make()) as engine:
        cuda.device = 1
        seen: list[int] = []

        def compute(frames: Any) -> Any:
            seen.append(cuda.device)
            return fakes.answer(frames)

        trt.answer = compute
        engine(crops(1))
        assert seen == [0]
        assert cuda.device == 1


# --- What is not loaded


@pytest.mark.usefixtures("trt")
def test_without_an_engine_it_says_how_to_build_one(make: Make) -> None:
    folder = make(built=False)
    with pytest.raises(DataNotFoundError) as caught:
        TensorRTEngine(folder)
    assert f"alpose-export engine {folder}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tensorrt": "10.3.0"}, r"TensorRT 10\.3\.0 instead of 11\.4\.0\.106"),
        ({"gpu": "Xavier"}, "GPU Xavier instead of Orin"),
        ({"compute_capability": "7.2"}, r"compute capability 7\.2 instead of 8\.7"),
        ({"precision": "fp16"}, "precision fp16 instead of fp32"),
        ({"model_sha256": "0" * 64}, "model 0000"),
        ({"plan_sha256": "0" * 64}, "changed, damaged or half written"),
        ({"golden": [{"passed": True}, {"passed": False}]}, "golden frames failed"),
        ({"golden": []}, "golden must be"),
        ({"kind": "poem"}, "kind must be"),
        ({"schema": 2}, "schema 1"),
        ({"gpu": 3}, "key.gpu must be a text"),
        ({"profile": {"min": 4, "opt": 2, "max": 1}}, "min <= opt <= max"),
        ({"profile": {"min": 1}}, "profile: missing max, opt"),
        ({"profile": {"min": "1", "opt": "1", "max": "1"}}, "profile.min must be a whole number"),
    ],
)
@pytest.mark.usefixtures("trt")
def test_an_engine_whose_sidecar_says_otherwise_is_stale(make: Make, change: Any, words: str) -> None:
    folder = make(**change)
    with pytest.raises(StaleEngineError, match=words) as caught:
        TensorRTEngine(folder)
    assert f"alpose-export engine {folder}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("trt")
def test_of_several_engines_for_something_else_the_nearest_is_named(make: Make) -> None:
    folder = make(version="10.3.0", capability="7.2")
    add_engine(folder, version="10.3.0")
    (folder / "engines" / "strange.engine").write_bytes(b"x")
    with pytest.raises(
        StaleEngineError, match=r"it was built for TensorRT 10\.3\.0 instead of 11\.4\.0\.106; build one"
    ):
        TensorRTEngine(folder)
    for path in (folder / "engines").glob("trt*"):
        path.unlink()
    with pytest.raises(StaleEngineError, match=r"sidecar strange\.json is missing"):
        TensorRTEngine(folder)


# --- Signed bundles


@pytest.fixture
def signed(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Bundle, Path]:
    """A signed bundle with an engine that passed, opened with its key; and the engine's sidecar."""
    pytest.importorskip("nacl")
    monkeypatch.setenv("ALPOSE_STATE", str(tmp_path / "state"))
    folder = make()
    public = generate_key(tmp_path / "key")
    (folder / "bundle.sig").write_bytes(sign((folder / "bundle.json").read_bytes(), tmp_path / "key"))
    (sidecar,) = (folder / "engines").glob("*.json")
    return Bundle.open(folder, public), sidecar


@pytest.mark.usefixtures("trt")
def test_beside_a_signed_bundle_only_what_this_device_built_is_loaded(signed: tuple[Bundle, Path]) -> None:
    bundle, sidecar = signed
    mac = sidecar.with_suffix(".mac")
    for content in (None, b"", b"ab" * 32 + b"\n", b"x" * 5000):
        if content is not None:
            mac.write_bytes(content)
        with pytest.raises(StaleEngineError, match=r"no MAC of this device's key|\.mac has 5000 bytes"):
            TensorRTEngine(bundle)
    assert not device_key_path().exists(), "reading makes no key"
    TensorRTEngine(Bundle.open(bundle.folder)).close()  # nobody asked for a signature

    mac.write_bytes(device_mac(sidecar.read_bytes()))
    TensorRTEngine(bundle).close()
    sidecar.write_bytes(sidecar.read_bytes() + b" ")
    with pytest.raises(StaleEngineError, match="no MAC of this device's key"):
        TensorRTEngine(bundle)


@pytest.mark.usefixtures("trt")
def test_the_sidecar_of_a_stranger_is_not_even_parsed(
    signed: tuple[Bundle, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, _ = signed
    monkeypatch.setattr(library.Sidecar, "from_bytes", lambda content: pytest.fail("it was parsed"))
    with pytest.raises(StaleEngineError, match="no MAC of this device's key"):
        TensorRTEngine(bundle)
    device_mac(b"")
    device_key_path().chmod(0o644)
    with pytest.raises(StaleEngineError, match="can be read by others"):
        TensorRTEngine(bundle)


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("place", [0, 30, -1])
def test_a_changed_plan_is_not_loaded(make: Make, place: int) -> None:
    folder = make()
    (path,) = (folder / "engines").glob("*.engine")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(StaleEngineError, match="changed, damaged"):
        TensorRTEngine(folder)


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"kind": "alpose TensorRT engine", "schema": 1}',
                                     b" " * (MAX_SIDECAR_BYTES + 1)])  # fmt: skip
def test_a_damaged_sidecar_is_no_engine(make: Make, content: bytes) -> None:
    folder = make()
    (path,) = (folder / "engines").glob("*.json")
    path.write_bytes(content)
    with pytest.raises(StaleEngineError, match="sidecar"):
        TensorRTEngine(folder)


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("ending", [".engine", ".json"])
def test_links_are_not_followed(make: Make, tmp_path: Path, ending: str) -> None:
    folder = make()
    (path,) = (folder / "engines").glob(f"*{ending}")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StaleEngineError):
        TensorRTEngine(folder)


def test_the_sidecar_comes_back_as_it_was(make: Make) -> None:
    folder = make(batch=(1, 2, 8))
    (path,) = (folder / "engines").glob("*.json")
    content = path.read_bytes()
    sidecar = Sidecar.from_bytes(content)
    assert json.loads(sidecar.to_bytes()) == json.loads(content)
    assert sidecar.profile == Profile(min=1, opt=2, max=8)
    assert sidecar.key.stem == path.stem


def test_names_of_gpus_make_names_of_files() -> None:
    key = EngineKey(tensorrt="11.4.0", gpu="NVIDIA GeForce RTX 4090 / é", compute_capability="8.9", precision="int8",
                    model_sha256="ab" * 32)  # fmt: skip
    assert key.stem == "trt11.4.0-NVIDIA-GeForce-RTX-4090-sm89-int8-abababababababab"


# --- Plans that lie


@pytest.mark.parametrize("wrong", [
    {"tensors": {"frames": ("UINT8", ["N", 16, 16, 3])}}, {"inputs": ["image"]},
], ids=["shape", "name"])  # fmt: skip
@pytest.mark.usefixtures("trt")
def test_a_plan_with_other_tensors_is_refused(make: Make, wrong: Any) -> None:
    graph = json.loads(fakes.model_bytes())
    graph["tensors"] |= wrong.get("tensors", {})
    if wrong.get("inputs"):
        graph["tensors"]["image"] = graph["tensors"].pop("frames")
    plan = fakes.plan_bytes(NEW, tensors=graph["tensors"], inputs=wrong.get("inputs", ["frames"]))
    with pytest.raises(BundleError):
        TensorRTEngine(make(), plan=plan)


@pytest.mark.usefixtures("trt")
def test_a_plan_with_other_types_is_refused(make: Make) -> None:
    tensors = json.loads(fakes.model_bytes())["tensors"]
    tensors["scores"][0] = "HALF"
    with pytest.raises(TensorRTError, match=r"scores of the engine must be .*FLOAT"):
        TensorRTEngine(make(), plan=fakes.plan_bytes(NEW, tensors=tensors))


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("plan", [b"", b"\x00\x00\x00\x10{}", fakes.plan_bytes("10.3.0")])
def test_what_tensorrt_refuses_is_said_in_its_words(make: Make, plan: bytes) -> None:
    with pytest.raises(TensorRTError, match=r"loading an engine .* failed: (Serialization|The engine plan file)"):
        TensorRTEngine(make(), plan=plan)


# --- Failures


@pytest.mark.parametrize(("what", "words"), [
    ("runtime", "starting TensorRT's runtime"), ("load", "loading an engine"),
    ("context", "making an execution context"), ("address", "placing frames"),
])  # fmt: skip
def test_a_start_that_fails_leaves_nothing_behind(make: Make, trt: Any, what: str, words: str) -> None:
    trt.refuse(what, "a  reason\n of TensorRT")
    with pytest.raises(TensorRTError, match=rf"{words}.*: a reason of TensorRT"):
        TensorRTEngine(make())


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("after", range(6))
def test_too_little_memory_leaves_nothing_behind(make: Make, cuda: Any, after: int) -> None:
    # The failed call itself allocates in the fake: take that away again.
    allocate = cuda.cudaMalloc
    cuda.cudaMalloc = lambda size: allocate(size) if cuda.calls.count("cudaMalloc") <= after else (0, None)
    cuda.fail("cudaMalloc", after, fake_cuda.cudaError_t.cudaErrorMemoryAllocation)
    with pytest.raises(CudaError, match=r"cudaMalloc failed: cudaErrorMemoryAllocation \(out of memory\)"):
        TensorRTEngine(make())
    assert cuda.calls.count("cudaFree") == after


@pytest.mark.parametrize("call", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.usefixtures("trt")
def test_a_failing_call_is_an_error_and_the_engine_can_be_closed(make: Make, cuda: Any, call: str, after: int) -> None:
    engine = TensorRTEngine(make())
    cuda.fail(call, after)
    with pytest.raises(CudaError, match=rf"{call} failed: cudaErrorLaunchFailure"):
        check(engine, crops(4))  # in four runs
    assert not any(cuda.streams.values()), "copies into arrays that are gone are still queued"
    cuda.failing.clear()
    check(engine, crops(1))
    engine.close()


@pytest.mark.parametrize("what", ["run", "shape"])
def test_a_refused_run_is_an_error(make: Make, trt: Any, what: str) -> None:
    with TensorRTEngine(make(batch=(1, 2, 2))) as engine:
        trt.refuse(what, "no such thing")
        with pytest.raises(TensorRTError, match=r"tensorrt fp32: .* failed: no such thing"):
            engine(crops(2))
        trt.failing.clear()
        check(engine, crops(2))


@pytest.mark.usefixtures("trt")
@pytest.mark.parametrize("call", ["cudaFree", "cudaStreamDestroy", "cudaStreamSynchronize"])
def test_closing_gives_back_what_it_can_and_says_what_it_could_not(make: Make, cuda: Any, call: str) -> None:
    engine = TensorRTEngine(make())
    cuda.fail(call)
    with pytest.raises(CudaError, match=call):
        engine.close()
    assert cuda.leaks == 0


# --- What is missing


def without(patch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        patch.setitem(sys.modules, name, None)


def test_without_tensorrt_there_is_one_sentence_and_the_pip_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tensorrt")
    monkeypatch.setattr(library, "_installed", lambda: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'alpose\[tensorrt\]'$"):
        TensorRTEngine(make())
    assert library.unavailable() == (
        "A TensorRT engine needs tensorrt, which is not installed. Install it with: pip install 'alpose[tensorrt]'"
    )


def test_the_empty_package_of_pypi_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "tensorrt")
    monkeypatch.setattr(library, "_installed", lambda: "11.4.0.106")
    with pytest.raises(TensorRTError, match=r"tensorrt 11\.4\.0\.106 is installed but not whole"):
        library.load()


@pytest.mark.parametrize("body", [
    "import ctypes; ctypes.CDLL('libnvinfer.so.99')",
    "raise ImportError('libnvonnxparser.so.11: cannot open shared object file: No such file or directory')",
    "import tensorrt_bindings_that_are_not_there",
    "",
])  # fmt: skip
def test_a_package_without_its_libraries_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    try:
        with pytest.raises(TensorRTError, match=r"installed but not whole \(.*pip install --force-reinstall"):
            library.load()
    finally:
        sys.modules.pop("tensorrt", None)


@pytest.mark.usefixtures("trt")
def test_without_a_gpu_it_says_so(cuda: Any) -> None:
    cuda.devices = 0
    assert "cudaErrorNoDevice" in str(library.unavailable())
    cuda.devices = 1
    assert library.unavailable() is None
    cuda.fail("cudaGetDeviceCount", status=fake_cuda.cudaError_t.cudaErrorInsufficientDriver)
    assert "'cuda-python<13'" in str(library.unavailable())


@pytest.mark.usefixtures("trt")
def test_a_machine_without_the_driver_says_so(cuda: Any) -> None:
    cuda.raising = RuntimeError("Failed to dlopen libcuda.so.1")
    assert "libcuda.so.1" in str(library.unavailable())


def test_the_gpu_is_described(trt: Any, cuda: Any) -> None:
    cuda.driver = 13020
    gpu = TensorRTDevice(trt, Cuda()).cuda.gpu()
    assert (gpu.name, gpu.compute_capability, gpu.driver, gpu.runtime) == ("Orin", "8.7", "13.2", "12.6")


def test_importing_it_imports_neither_library_nor_torch() -> None:
    code = "import alpose.runtime.engines.tensorrt, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert not loaded & {"tensorrt", "cuda", "torch", "onnx", "onnxruntime"}
