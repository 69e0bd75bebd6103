"""Frames on the GPU for TensorRT: on fakes of TensorRT and CUDA; the kernel's own source compiled for the CPU.

Shapes: S crop side.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpose.runtime.crop import Crop, taps
from alpose.runtime.device_frames import DeviceFrame
from alpose.runtime.dlpack import Where
from alpose.runtime.engines import crop_kernel
from alpose.runtime.engines.cuda import Cuda, CudaError
from alpose.runtime.engines.cuda_kernel import Kernel, compile_source
from alpose.runtime.engines.device import DeviceEngine
from alpose.runtime.engines.tensorrt import TensorRTEngine
from alpose.runtime.errors import ConfigError, MissingExtraError, WrongAnswerError
from alpose.runtime.frames import FrameFormat, accept
from alpose.runtime.types import OUTPUT_NAMES

from ..fakes import cuda as fake_cuda
from ..fakes import kernel as fake_kernel
from ..fakes import lent
from ..fakes import tensorrt as fakes

S = lent.S
noise, lend, same, on_gpu = lent.noise, lent.lend, lent.same, lent.on_gpu
Bytes = npt.NDArray[np.uint8]
RGB, BGR, NV12 = FrameFormat.RGB, FrameFormat.BGR, FrameFormat.NV12


# --- TensorRT, on the fakes


@pytest.fixture
def cuda() -> Iterator[Any]:
    state = fake_cuda.FakeCuda()
    yield state
    assert state.leaks == 0


class Gpu:
    """A camera that writes into the fake GPU's memory, in a stream."""

    def __init__(self, cuda: Any) -> None:
        self.cuda, self.addresses = cuda, list[int]()

    def frame(
        self, array: Bytes, form: FrameFormat, *, stream: int | None = 1, pitch: int | None = None
    ) -> DeviceFrame:
        row = array[0].size
        pitch = pitch or row
        size = (len(array) - 1) * pitch + row
        _, address = self.cuda.cudaMalloc(size)
        self.addresses.append(address)
        strides = (pitch, *array.strides[1:])
        place = np.ndarray(array.shape, np.uint8, self.cuda.buffer(address, size), 0, strides)
        content = array.copy()
        if stream is None:
            place[...] = content
        else:
            self.cuda.enqueue(stream, lambda: np.copyto(place, content))
        return DeviceFrame(form, Where.CUDA, 0, address, array.shape, strides, stream, self)

    def close(self) -> None:
        for address in self.addresses:
            self.cuda.cudaFree(address)


@pytest.fixture
def gpu(cuda: Any) -> Iterator[Gpu]:
    camera = Gpu(cuda)
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
@pytest.mark.parametrize("form", FrameFormat)
def test_tensorrt_answers_frames_on_the_gpu(
    cuda: Any, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, open_engine: Open, form: FrameFormat, old: bool
) -> None:
    fakes.install(monkeypatch, cuda, spelling="cuda.cudart" if old else "cuda.bindings.runtime")
    _, driver = fake_kernel.install(monkeypatch, cuda, old)
    with open_engine() as engine:
        assert isinstance(engine, DeviceEngine)
        for seed, crop in enumerate((Crop(1.5, 2, 14, S), Crop(-9, -3, 50, S), Crop(300, 0, 9, S), Crop(20, 9, 5, S))):
            array = noise(form, 18, 24, seed)
            expected_SS3 = accept(array, form).cut(crop)
            frame = gpu.frame(array, form, pitch=array[0].size + 10 * seed)
            same(engine.answer_device([frame], [crop]), engine(expected_SS3[None]))
        assert driver.modules
        (option,) = next(iter(driver.modules.values()))["options"]
        assert option == "--gpu-architecture=sm_87"
    assert not driver.modules


@pytest.mark.usefixtures("parts")
@settings(max_examples=30, deadline=None)
@given(frame=lent.frames, crop=lent.crops)
def test_the_kernel_is_given_what_it_needs_for_any_crop(frame: tuple[FrameFormat, Bytes], crop: Crop) -> None:
    form, array = frame
    state = fake_cuda.FakeCuda()
    with pytest.MonkeyPatch.context() as patch:
        fakes.install(patch, state)
        fake_kernel.install(patch, state)
        camera, cuda = Gpu(state), Cuda()
        stream = cuda.call("cudaStreamCreate")
        kernel = crop_kernel.CropKernel(cuda, stream)
        out = cuda.call("cudaMalloc", S * S * 3)
        taken = camera.frame(array, form, stream=None, pitch=array[0].size + 4)
        held = kernel.queue(taken, crop, out)
        got = np.empty((S, S, 3), np.uint8)
        cuda.to_host(got, out, stream)
        cuda.call("cudaStreamSynchronize", stream)
        np.testing.assert_array_equal(got, accept(array, form).cut(crop))
        assert len(held) == sum(
            2 * len(taps(0.0, own, length)[0]) * S
            for plane in taken.planes()
            for own, length in ((Crop(0, 0, crop.side * plane.height / taken.height, S), plane.height),
                                (Crop(0, 0, crop.side * plane.height / taken.height, S), plane.width))
        )  # fmt: skip
        kernel.close()
        cuda.call("cudaFree", out)
        cuda.call("cudaStreamDestroy", stream)
        camera.close()
    assert state.leaks == 0


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_any_number_of_frames_in_any_profile(gpu: Gpu, open_engine: Open, count: int) -> None:
    arrays = [noise(RGB, 20, 20, seed) for seed in range(count)]
    places = [Crop(seed, seed / 3, 11 + seed, S) for seed in range(count)]
    expected = np.stack([accept(array, RGB).cut(crop) for array, crop in zip(arrays, places, strict=True)])
    for batch in ((1, 1, 1), (2, 2, 4), (4, 4, 4)):
        with open_engine(batch) as engine:
            taken = [gpu.frame(array, RGB) for array in arrays]
            same(engine.answer_device(taken, places), engine(expected))


@pytest.mark.usefixtures("parts")
def test_the_producer_is_waited_for(cuda: Any, gpu: Gpu, open_engine: Open) -> None:
    _, camera = cuda.cudaStreamCreate()
    array, crop = noise(RGB, 20, 20), Crop(0, 0, 20, S)
    with open_engine() as engine:
        expected = engine(accept(array, RGB).cut(crop)[None])
        for stream in (1, 2, int(camera)):
            same(engine.answer_device([gpu.frame(array, RGB, stream=stream)], [crop]), expected)
            np.testing.assert_array_equal(engine.to_host(gpu.frame(array, RGB, stream=stream)), array)
        late = gpu.frame(array, RGB, stream=int(camera))
        unsaid = DeviceFrame(RGB, Where.CUDA, 0, late.address, late.shape, late.strides, None, None)
        assert engine.answer_device([unsaid], [crop]).predicted_loss_N != expected.predicted_loss_N, "the fake waits"
    cuda.cudaStreamDestroy(camera)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("form", FrameFormat)
def test_only_what_is_asked_for_comes_to_the_host(cuda: Any, gpu: Gpu, open_engine: Open, form: FrameFormat) -> None:
    array = noise(form, 18, 24)
    with open_engine() as engine:
        frame = gpu.frame(array, form, pitch=200)
        engine.answer_device([frame], [Crop(0, 0, 20, S)])  # the first of its form is preceded by a test
        calls = len(cuda.calls)
        engine.answer_device([frame], [Crop(0, 0, 20, S)])
        assert engine.copies_to_host == 0
        # The taps up, the five outputs down: no copy of pixels.
        assert cuda.calls[calls:].count("cudaMemcpyAsync") == 1 + len(OUTPUT_NAMES)
        np.testing.assert_array_equal(engine.to_host(frame), accept(array, form).to_rgb())
        np.testing.assert_array_equal(engine.to_host(frame, (2, 3, 9, 8)), accept(array, form).to_rgb((2, 3, 9, 8)))
        assert engine.copies_to_host == 2


@pytest.mark.usefixtures("parts")
def test_memory_for_the_taps_grows_and_is_kept(cuda: Any, gpu: Gpu, open_engine: Open) -> None:
    array = noise(RGB, 150, 150)
    with open_engine() as engine:
        for side in (10, 150, 300, 90, 600):
            crop = Crop(0, 0, side, S)
            expected = engine(accept(array, RGB).cut(crop)[None])
            same(engine.answer_device([gpu.frame(array, RGB)], [crop]), expected)
        made = cuda.calls.count("cudaMalloc")
        for side in (10, 600, 300):
            engine.answer_device([gpu.frame(array, RGB)], [Crop(0, 0, side, S)])
        assert cuda.calls.count("cudaMalloc") == made


@pytest.mark.usefixtures("parts")
def test_threads_share_a_tensorrt_engine(cuda: Any, open_engine: Open) -> None:
    lock, cameras = threading.Lock(), list[Gpu]()

    def place(array: Bytes) -> DeviceFrame:
        with lock:
            cameras.append(Gpu(cuda))
            return cameras[-1].frame(array, RGB, stream=None)

    with open_engine() as engine:
        lent.check_threads(engine, place)
    for camera in cameras:
        camera.close()


@pytest.mark.usefixtures("parts")
def test_frames_elsewhere_are_refused(open_engine: Open) -> None:
    with open_engine() as engine:
        with pytest.raises(ConfigError, match="reads frames on GPU 0, and this one is in the host's memory"):
            engine.answer_device([lend(noise(RGB, 9, 9), RGB)], [Crop(0, 0, 9, S)])
        with pytest.raises(ConfigError, match="runs on GPU 0, and the frame is on GPU 3"):
            engine.to_host(on_gpu((9, 9, 3), gpu=3))
        with pytest.raises(CudaError, match="cudaErrorIllegalAddress"):
            engine.answer_device([on_gpu((9, 9, 3), gpu=None)], [Crop(0, 0, 9, S)])


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaFree"])
@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("first", [True, False])
def test_a_failing_call_leaves_the_engine_usable(
    cuda: Any, gpu: Gpu, open_engine: Open, call: str, after: int, first: bool
) -> None:
    array = noise(RGB, 150, 150)
    taken = [gpu.frame(array, RGB, stream=None) for _ in range(2)]
    places = [Crop(0, 0, 9, S), Crop(0, 0, 600, S)]  # the second needs more memory for its taps
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
    cuda: Any, parts: tuple[Any, Any, Any], gpu: Gpu, open_engine: Open
) -> None:
    _, _, driver = parts
    frame = gpu.frame(noise(RGB, 20, 20), RGB)

    def wrong(buffer: Any, threads: Any, **given: Any) -> None:
        fake_kernel.crop_twin(buffer, threads, **given)
        buffer(given["out"], 1)[0] ^= 1

    driver.kernels = {crop_kernel.NAME: wrong}
    with open_engine() as engine:
        held = len(cuda.memory)
        for _ in range(2):
            with pytest.raises(WrongAnswerError, match=r"does not cut RGB frames .* 1 of 192 bytes .* the worst by 1"):
                engine.answer_device([frame], [Crop(0, 0, 9, S)])
        assert len(cuda.memory) == held + 1, "all but the memory for taps was given back"
        driver.kernels = {crop_kernel.NAME: fake_kernel.crop_twin}
        assert len(engine.answer_device([frame], [Crop(0, 0, 9, S)])) == 1


def test_without_nvrtc_it_says_what_to_install(parts: tuple[Any, Any, Any], gpu: Gpu, open_engine: Open) -> None:
    _, nvrtc, _ = parts
    nvrtc.missing = True
    frame = gpu.frame(noise(RGB, 20, 20), RGB)
    with open_engine() as engine:
        with pytest.raises(CudaError, match=r"libnvrtc.*pip install nvidia-cuda-nvrtc"):
            engine.answer_device([frame], [Crop(0, 0, 9, S)])
        assert len(engine(np.zeros((1, S, S, 3), np.uint8))) == 1  # crops of the host need no kernel
        nvrtc.missing = False
        assert len(engine.answer_device([frame], [Crop(0, 0, 9, S)])) == 1


def test_a_kernel_that_does_not_compile_or_load_says_why(
    parts: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, nvrtc, driver = parts
    with pytest.raises(CudaError, match=r"NVRTC_ERROR_COMPILATION for .*sm_87: alpose.cu\(3\): error"):
        compile_source("void f(", "8.7")
    assert not nvrtc.programs
    cuda = Cuda()
    with pytest.raises(CudaError, match=r"cuModuleGetFunction failed: CUDA_ERROR_NOT_FOUND"):
        Kernel(cuda, crop_kernel.source(), "other")
    driver.modules.clear()
    for name in ("cuda.bindings.driver", "cuda.cuda"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="cuda-python"):
        Kernel(cuda, crop_kernel.source(), crop_kernel.NAME)


# --- The kernel's own source


SHIM = """
#define __device__
#define __global__
struct Place { int x, y, z; };
static Place blockIdx, blockDim, threadIdx;
"""
LOOP = """
extern "C" void run(int blocks, int block, const unsigned char *first, const unsigned char *chroma, long long pitch,
                    const int *taps, int a, int b, int c, int d, int size, int form, unsigned char *out) {
    blockDim = {block, block, 1};
    for (blockIdx.y = 0; blockIdx.y < blocks; ++blockIdx.y) for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.y = 0; threadIdx.y < block; ++threadIdx.y)
            for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
                alpose_crop(first, chroma, pitch, taps, a, b, c, d, size, form, out);
}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The CUDA of a machine whose GPU is its CPU: the kernel's source compiled for it, every thread in a loop."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler to try the kernel's source with")
    folder = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cpp").write_text(SHIM + crop_kernel.source() + LOOP)
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

        def launch(self, grid: Any, block: Any, arguments: Any, _stream: Any) -> None:
            run(grid[0], block[0], *(kind(value) for value, kind in arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop_kernel, "Kernel", Here)
        yield Here()


@given(frame=lent.frames, crop=lent.crops, size=st.sampled_from([S, 17, 33]))
@settings(deadline=None, max_examples=80)
def test_the_kernels_source_computes_the_same_bits(
    here: Any, frame: tuple[FrameFormat, Bytes], crop: Crop, size: int
) -> None:
    form, array = frame
    crop = Crop(crop.x0, crop.y0, crop.side, size)
    out = np.full((size, size, 3), 77, np.uint8)

    kernel = crop_kernel.CropKernel(here, 0)
    kernel.queue(lend(array, form), crop, out.ctypes.data)
    np.testing.assert_array_equal(out, accept(array, form).cut(crop))


@pytest.mark.parametrize("capability", ["8.7", "9.0", "12.0"])
def test_the_real_nvrtc_compiles_the_kernel(capability: str) -> None:
    try:
        image = compile_source(crop_kernel.source(), capability)
    except (MissingExtraError, CudaError) as error:
        pytest.skip(f"the real NVRTC is not tried: {error}")
    assert image.startswith(b"\x7fELF")
    assert crop_kernel.NAME.encode() in image


def test_the_real_gpu_cuts_the_same_bits() -> None:
    try:
        cuda = Cuda()
    except (MissingExtraError, CudaError) as error:
        pytest.skip(f"no real GPU is tried: {error}")
    stream = cuda.call("cudaStreamCreate")
    try:
        kernel = crop_kernel.CropKernel(cuda, stream)
    except (MissingExtraError, CudaError) as error:
        cuda.call("cudaStreamDestroy", stream)
        pytest.skip(f"no kernel is tried: {error}")
    size = 128
    out = cuda.call("cudaMalloc", size * size * 3)
    for form in FrameFormat:
        array = noise(form, 480, 640)
        address = cuda.call("cudaMalloc", array.nbytes)
        cuda.to_device(address, array, stream)
        frame = DeviceFrame(form, Where.CUDA, None, address, array.shape, array.strides, None, array)
        for crop in (Crop(-30.5, 20.2, 400.3, size), Crop(-500, -500, 2000, size), Crop(100, 100, 40, size)):
            held = kernel.queue(frame, crop, out)
            got = np.empty((size, size, 3), np.uint8)
            cuda.to_host(got, out, stream)
            cuda.call("cudaStreamSynchronize", stream)
            del held
            np.testing.assert_array_equal(got, accept(array, form).cut(crop))
        cuda.call("cudaFree", address)
    kernel.close()
    cuda.call("cudaFree", out)
    cuda.call("cudaStreamDestroy", stream)
