"""CUDA on fakes, and the crop's kernel: its own source compiled for the CPU, and for real where there is a GPU.

Shapes: S crop side.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import Crop, CropRule
from alpose.runtime.dlpack import MemoryKind
from alpose.runtime.engines import cuda as cuda_module
from alpose.runtime.engines.cuda import NAME, CropKernel, Cuda, CudaError, Kernel, compile_source, handle, source
from alpose.runtime.engines.tensorrt import TensorRTEngine
from alpose.runtime.errors import MissingExtraError, WrongAnswerError
from alpose.runtime.frames import DeviceFrame, FrameFormat, accept
from alpose.runtime.types import OUTPUT_NAMES

from ...fakes import cuda as fake_cuda
from ...fakes import kernel as fake_kernel
from ...fakes import tensorrt as fakes
from ...fakes.engines import Camera
from ...fakes.frames import Bytes, S, crops, foreign, frames, noise, on_gpu, same

RGB = FrameFormat.RGB


# --- Frames on the fake GPU


@pytest.fixture
def gpu(cuda: Any) -> Iterator[Camera]:
    camera = Camera(cuda)
    yield camera
    camera.close()


@pytest.fixture
def parts(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    return (fakes.install(monkeypatch, cuda), *fake_kernel.install(monkeypatch, cuda))


@pytest.fixture
def open_engine(tmp_path: Path) -> Callable[..., TensorRTEngine]:
    def make(batch: tuple[int, int, int] = (1, 1, 1)) -> TensorRTEngine:
        folder = tmp_path / "driver.alpose"
        if not folder.exists():
            fakes.write_bundle(folder)
        return TensorRTEngine(folder, plan=fakes.plan_bytes("11.4.0.106", batch=batch))

    return make


Open = Callable[..., TensorRTEngine]


@pytest.mark.parametrize("old", [False, True])
def test_the_kernel_is_compiled_for_the_gpu_and_unloaded(
    cuda: Any, gpu: Camera, monkeypatch: pytest.MonkeyPatch, open_engine: Open, old: bool
) -> None:
    fakes.install(monkeypatch, cuda, spelling="cuda.cudart" if old else "cuda.bindings.runtime")
    _, driver = fake_kernel.install(monkeypatch, cuda, old)
    array, crop = noise(RGB, 18, 24), Crop.square(1.5, 2, 14, S)
    with open_engine() as engine:
        same(engine.answer_device([gpu.frame(array, RGB)], [crop]), engine(accept(array, RGB).cut(crop)[None]))
        (option,) = next(iter(driver.modules.values()))["options"]
        assert option == "--gpu-architecture=sm_87"
    assert not driver.modules


@pytest.mark.usefixtures("parts")
@settings(max_examples=40, deadline=None)
@given(frame=frames(), crop=crops)
def test_the_kernel_is_given_what_it_needs_for_any_crop(frame: tuple[FrameFormat, Bytes], crop: Crop) -> None:
    """The fake driver takes no argument of another type, and no memory that was not allocated."""
    frame_format, array = frame
    state = fake_cuda.FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch, state)
        fake_kernel.install(patch, state)
        camera, cuda = Camera(state), Cuda()
        stream = cuda.call("cudaStreamCreate")
        kernel = CropKernel(cuda, stream, CropRule(width_px=S, height_px=S))
        out = cuda.call("cudaMalloc", S * S * 3)
        gap = 0 if "i420" in frame_format.value else 4
        held = kernel.queue(camera.frame(array, frame_format, stream=None, gap=gap), crop, out)
        got = np.empty((S, S, 3), np.uint8)
        cuda.to_host(got, out, stream)
        cuda.call("cudaStreamSynchronize", stream)
        np.testing.assert_array_equal(got, accept(array, frame_format).cut(crop))
        del held
        kernel.close()
        cuda.call("cudaFree", out)
        cuda.call("cudaStreamDestroy", stream)
        camera.close()
    assert state.leaks == 0


@pytest.mark.usefixtures("parts")
def test_the_producer_is_waited_for(cuda: Any, gpu: Camera, open_engine: Open) -> None:
    _, camera = cuda.cudaStreamCreate()
    array, crop = noise(RGB, 20, 20), Crop.square(0, 0, 20, S)
    with open_engine() as engine:
        expected = engine(accept(array, RGB).cut(crop)[None])
        for stream in (1, 2, int(camera)):
            same(engine.answer_device([gpu.frame(array, RGB, stream=stream)], [crop]), expected)
            np.testing.assert_array_equal(engine.to_host(gpu.frame(array, RGB, stream=stream)), array)
        late = gpu.frame(array, RGB, stream=int(camera))
        unsaid = DeviceFrame(RGB, MemoryKind.CUDA, 0, late.address, late.shape, late.strides, None, None)
        assert engine.answer_device([unsaid], [crop]).predicted_loss_N != expected.predicted_loss_N, "the fake waits"
    cuda.cudaStreamDestroy(camera)


@pytest.mark.usefixtures("parts")
def test_no_pixels_are_copied_and_wrong_addresses_are_found(cuda: Any, gpu: Camera, open_engine: Open) -> None:
    with open_engine() as engine:
        frame = gpu.frame(noise(RGB, 18, 24), RGB, gap=10)
        engine.answer_device([frame], [Crop.square(0, 0, 20, S)])  # the first of its format is preceded by a test
        calls = len(cuda.calls)
        engine.answer_device([frame], [Crop.square(0, 0, 20, S)])
        # The taps up, the five outputs down.
        assert cuda.calls[calls:].count("cudaMemcpyAsync") == 1 + len(OUTPUT_NAMES)
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
            engine.answer_device([on_gpu((9, 9, 3), gpu=None)], [Crop.square(0, 0, 9, S)])


@pytest.mark.usefixtures("parts")
def test_memory_for_the_taps_grows_and_is_kept(cuda: Any, gpu: Camera, open_engine: Open) -> None:
    array = noise(RGB, 150, 150)
    with open_engine() as engine:
        for side in (10, 150, 300, 90, 600):
            crop = Crop.square(0, 0, side, S)
            expected = engine(accept(array, RGB).cut(crop)[None])
            same(engine.answer_device([gpu.frame(array, RGB)], [crop]), expected)
        made = cuda.calls.count("cudaMalloc")
        for side in (10, 600, 300):
            engine.answer_device([gpu.frame(array, RGB)], [Crop.square(0, 0, side, S)])
        assert cuda.calls.count("cudaMalloc") == made


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaFree"])
@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("first", [True, False])
def test_a_failing_call_leaves_the_engine_usable(
    cuda: Any, gpu: Camera, open_engine: Open, call: str, after: int, first: bool
) -> None:
    array = noise(RGB, 150, 150)
    taken = [gpu.frame(array, RGB, stream=None) for _ in range(2)]
    places = [Crop.square(0, 0, 9, S), Crop.square(0, 0, 600, S)]  # the second needs more memory for its taps
    with open_engine((1, 2, 2)) as engine:
        expected = engine(np.stack([accept(array, RGB).cut(crop) for crop in places]))
        if not first:
            engine.answer_device(taken[:1], places[:1])
        real = getattr(cuda, call)
        if call in ("cudaMalloc", "cudaFree"):  # the failed call itself does nothing
            begun = cuda.calls.count(call) + after
            setattr(cuda, call, lambda *given: real(*given) if cuda.calls.count(call) <= begun else (OK_NOTHING[call]))
        cuda.fail(call, after)
        try:
            engine.answer_device(taken, places)
        except CudaError:
            assert not any(cuda.streams.values()), "work on arrays that are gone is still queued"
        cuda.failing.clear()
        setattr(cuda, call, real)
        same(engine.answer_device(taken, places), expected)
    # What could not be freed is lost: the engine no longer knows it.
    for address in [each for each in cuda.memory if each not in gpu.addresses]:
        assert call == "cudaFree"
        real(address)


OK_NOTHING = {"cudaMalloc": (0, None), "cudaFree": (0,)}


def test_a_gpu_that_cuts_otherwise_is_refused_at_the_first_frame(
    cuda: Any, parts: tuple[Any, Any, Any], gpu: Camera, open_engine: Open
) -> None:
    _, _, driver = parts
    frame = gpu.frame(noise(RGB, 20, 20), RGB)

    def wrong(buffer: Any, threads: Any, **given: Any) -> None:
        fake_kernel.crop_twin(buffer, threads, **given)
        buffer(given["out"], 1)[0] ^= 1

    driver.kernels = {NAME: wrong}
    with open_engine() as engine:
        held = len(cuda.memory)
        for _ in range(2):
            with pytest.raises(WrongAnswerError, match=r"does not cut RGB frames .* 1 of 192 bytes .* the worst by 1"):
                engine.answer_device([frame], [Crop.square(0, 0, 9, S)])
        assert len(cuda.memory) == held + 1, "all but the memory for taps was given back"
        driver.kernels = {NAME: fake_kernel.crop_twin}
        assert len(engine.answer_device([frame], [Crop.square(0, 0, 9, S)])) == 1


def test_without_nvrtc_it_says_what_to_install(parts: tuple[Any, Any, Any], gpu: Camera, open_engine: Open) -> None:
    _, nvrtc, _ = parts
    nvrtc.missing = True
    frame = gpu.frame(noise(RGB, 20, 20), RGB)
    with open_engine() as engine:
        with pytest.raises(CudaError, match=r"libnvrtc.*pip install nvidia-cuda-nvrtc"):
            engine.answer_device([frame], [Crop.square(0, 0, 9, S)])
        assert len(engine(np.zeros((1, S, S, 3), np.uint8))) == 1  # crops of the host need no kernel
        nvrtc.missing = False
        assert len(engine.answer_device([frame], [Crop.square(0, 0, 9, S)])) == 1


def test_a_kernel_that_does_not_compile_or_load_says_why(
    parts: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nvrtc, driver = parts
    with pytest.raises(CudaError, match=r"NVRTC_ERROR_COMPILATION for .*sm_87: alpose.cu\(3\): error"):
        compile_source("void f(", "8.7")
    assert not nvrtc.programs
    cuda = Cuda()
    with pytest.raises(CudaError, match=r"cuModuleGetFunction failed: CUDA_ERROR_NOT_FOUND"):
        Kernel(cuda, source(), "other")
    driver.modules.clear()
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="cuda-python"):
        Kernel(cuda, source(), NAME)


# --- The kernel's own source


SHIM = """
#define __device__
#define __global__
struct Place { int x, y, z; };
static Place blockIdx, blockDim, threadIdx;
"""
LOOP = """
extern "C" void run(int blocks, int block, const Channel *channels, const int *matrix, const int *taps, int height,
                    int width, unsigned char *out) {
    blockDim = {block, block, 1};
    for (blockIdx.y = 0; blockIdx.y < blocks; ++blockIdx.y) for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.y = 0; threadIdx.y < block; ++threadIdx.y)
            for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
                alpose_crop(channels, matrix, taps, height, width, out);
}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The CUDA of a machine whose GPU is its CPU: the kernel's source compiled for it, every thread in a loop."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to try the kernel's source with")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cpp").write_text(SHIM + source() + LOOP)
    command = [compiler, "-O1", "-Wall", "-Wno-unknown-pragmas", "-shared", "-fPIC", "-fsanitize=undefined",
               "-fno-sanitize-recover", "kernel.cpp", "-o", "kernel.so"]  # fmt: skip
    built = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    if built.returncode and "sanitize" in built.stderr + built.stdout:
        command = [part for part in command if "sanitize" not in part]
        built = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    run = ctypes.CDLL(str(folder / "kernel.so")).run

    class Here:
        device = 0

        def __init__(self, *_: Any) -> None:
            self.memory: list[Bytes] = []

        def call(self, name: str, *arguments: Any) -> Any:
            if name != "cudaMalloc":
                return None
            self.memory.append(np.empty(arguments[0], np.uint8))
            return self.memory[-1].ctypes.data

        def to_device(self, address: int, value: npt.NDArray[Any], _stream: Any) -> None:
            ctypes.memmove(address, value.ctypes.data, value.nbytes)

        def to_host(self, value: npt.NDArray[Any], address: int, _stream: Any) -> None:
            ctypes.memmove(value.ctypes.data, address, value.nbytes)

        def launch(self, blocks: int, threads: int, arguments: Any, _stream: Any) -> None:
            run(blocks, threads, *(kind(value) for value, kind in arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_module, "Kernel", Here)
        yield Here()


@given(
    frame=frames(), crop=crops, size=st.sampled_from([S, 17, 33]), tall=st.sampled_from([S, 21, 33]),
    fill=st.sampled_from([0, 114, 255]),
)  # fmt: skip
@settings(deadline=None, max_examples=120)
def test_the_kernels_source_computes_the_same_bits(
    here: Any, frame: tuple[FrameFormat, Bytes], crop: Crop, size: int, tall: int, fill: int
) -> None:
    frame_format, array = frame
    crop = Crop(crop.x0, crop.y0, crop.width, crop.height, size, tall, fill=fill)
    out = np.full((tall, size, 3), 77, np.uint8)

    CropKernel(here, 0, CropRule(width_px=size, height_px=tall, fill=fill)).queue(
        foreign(array, frame_format), crop, out.ctypes.data
    )
    np.testing.assert_array_equal(out, accept(array, frame_format).cut(crop))


@pytest.mark.parametrize("capability", ["8.7", "9.0", "12.0"])
def test_the_real_nvrtc_compiles_the_kernel(capability: str) -> None:
    try:
        image = compile_source(source(), capability)
    except (MissingExtraError, CudaError) as error:
        pytest.skip(f"the real NVRTC is not tried: {error}")
    assert image.startswith(b"\x7fELF")
    assert NAME.encode() in image


def test_the_real_gpu_cuts_the_same_bits() -> None:
    try:
        cuda = Cuda()
    except (MissingExtraError, CudaError) as error:
        pytest.skip(f"no real GPU is tried: {error}")
    stream = cuda.call("cudaStreamCreate")
    size = 128
    try:
        kernel = CropKernel(cuda, stream, CropRule(width_px=size, height_px=size))
    except (MissingExtraError, CudaError) as error:
        cuda.call("cudaStreamDestroy", stream)
        pytest.skip(f"no kernel is tried: {error}")
    out = cuda.call("cudaMalloc", size * size * 3)
    for frame_format in FrameFormat:
        array = noise(frame_format, 480, 640)
        address = cuda.call("cudaMalloc", array.nbytes)
        cuda.to_device(address, array, stream)
        frame = DeviceFrame(frame_format, MemoryKind.CUDA, None, address, array.shape, array.strides, None, array)
        for crop in (
            Crop.square(-30.5, 20.2, 400.3, size),
            Crop.square(-500, -500, 2000, size),
            Crop.square(100, 100, 40, size),
        ):
            held = kernel.queue(frame, crop, out)
            got = np.empty((size, size, 3), np.uint8)
            cuda.to_host(got, out, stream)
            cuda.call("cudaStreamSynchronize", stream)
            del held
            np.testing.assert_array_equal(got, accept(array, frame_format).cut(crop))
        cuda.call("cudaFree", address)
    kernel.close()
    cuda.call("cudaFree", out)
    cuda.call("cudaStreamDestroy", stream)


# --- What is missing


def without(patch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        patch.setitem(sys.modules, name, None)


def test_without_cuda_python_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "cuda", "cuda.bindings", *cuda_module.SPELLINGS["runtime"])
    with pytest.raises(MissingExtraError, match="cuda-python"):
        Cuda()


@pytest.mark.parametrize("error", [ImportError("libcudart.so: no"), OSError("no"), RuntimeError("driver too old")])
def test_a_cuda_python_that_does_not_load_is_recognised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr("alpose.runtime.engines.cuda.importlib.import_module", broken)
    with pytest.raises(CudaError, match="installed but does not load"):
        Cuda()


def test_the_address_of_a_stream_is_asked_for_where_one_can(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = fake_cuda.cudaStream_t(4096)
    without(monkeypatch, "cuda.bindings.utils")
    assert handle(stream) == 4096
    utils: Any = ModuleType("cuda.bindings.utils")
    utils.get_cuda_native_handle = lambda value: int(value) + 1
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))
    monkeypatch.setitem(sys.modules, "cuda.bindings.utils", utils)
    assert handle(stream) == 4097
