"""What every engine promises, over all that can run here: ONNX Runtime on the CPU, TensorRT on fakes, an object.

Shapes: N frames, S crop side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpose.runtime.bundle.golden import Golden, Tolerances
from alpose.runtime.commands.doctor import doctor
from alpose.runtime.commands.run import run
from alpose.runtime.crop import Crop
from alpose.runtime.dlpack import MemoryKind
from alpose.runtime.engines.catalog import engine_kinds, open_engine, verify_engine
from alpose.runtime.engines.device import DeviceEngine
from alpose.runtime.errors import AlposeError, ConfigError, DataError
from alpose.runtime.frames import FrameFormat, accept
from alpose.runtime.types import Outputs, form_problems

from ...fakes.engines import CASES, Case
from ...fakes.frames import crops, frames, noise, on_gpu, same

Bytes = npt.NDArray[np.uint8]
NOT_HERE = {"cuda": "needs an NVIDIA GPU", "onnx": "runs any provider, of which the CPU's is tried as cpu"}  # fmt: skip
RGB = FrameFormat.RGB


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    with CASES[request.param][1](tmp_path) as made:
        yield made


@pytest.fixture(params=[name for name, (kind, _) in CASES.items() if kind in ("cpu", "tensorrt")])
def device_case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    with CASES[request.param][1](tmp_path) as made:
        yield made


def pictures(case: Case, count: int, seed: int = 0) -> Bytes:
    shape = (count, case.size_px, case.size_px, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def device_of(case: Case) -> tuple[DeviceEngine, Callable[[Bytes, FrameFormat], Any]]:
    assert case.device is not None
    assert isinstance(case.engine, DeviceEngine)
    return case.engine, case.device


@pytest.mark.parametrize("name", [kind.name for kind in engine_kinds()])
def test_every_engine_of_the_catalog_is_tried_or_has_a_reason(name: str) -> None:
    assert name in {kind for kind, _ in CASES.values()} | set(NOT_HERE), (
        f"no test opens the engine {name!r}: add a case to CASES in tests/fakes/engines.py, or, where it cannot run in "
        "tests, the reason to NOT_HERE in tests/runtime/engines/test_engine_contract.py"
    )


@pytest.mark.parametrize("command", [run, doctor], ids=["run", "doctor"])
def test_the_help_names_every_engine(command: click.Command) -> None:
    words = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    assert [kind.spelling for kind in engine_kinds() if kind.spelling not in words] == []


# --- crops


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_any_number_of_crops_is_answered_as_each_alone(case: Case, count: int) -> None:
    crops_NSS3 = pictures(case, count)

    outputs = case.engine(crops_NSS3)

    assert form_problems(outputs, count, case.joints, case.dimensions) == {}
    for row in range(count):
        alone = case.engine(crops_NSS3[row : row + 1])
        same(Outputs(*(value[row : row + 1] for value in outputs.named().values())), alone)


def test_a_view_is_answered_as_its_copy_and_the_answer_belongs_to_the_caller(case: Case) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (2, case.size_px, 2 * case.size_px, 3), dtype=np.uint8)
    view = wide[::-1, :, ::2]
    kept = case.engine(view)
    case.engine(pictures(case, 2, seed=1))
    same(kept, case.engine(view.copy()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda crops: crops[:0], lambda crops: crops.astype(np.float32), lambda crops: crops[0],
        lambda crops: crops[:, :4], lambda crops: crops[..., :2], lambda crops: crops.transpose(0, 3, 1, 2),
        lambda crops: np.zeros((), np.uint8), lambda crops: crops.tolist(),
    ],
    ids=["none", "float", "one axis less", "other size", "two colours", "channels first", "scalar", "list"],
)  # fmt: skip
def test_other_arrays_are_refused(case: Case, spoil: Callable[[Bytes], Any]) -> None:
    if not case.refuses:
        pytest.skip("the stand-in of the tests takes anything")
    with pytest.raises(DataError, match=rf"{case.engine.name}: frames must be uint8 \(N, {case.size_px}, "):
        case.engine(spoil(pictures(case, 1)))


def test_wrong_answers_are_found(case: Case) -> None:
    frames_GSS3 = pictures(case, 5)
    answers = case.engine(frames_GSS3)
    unit_GD = answers.embedding_ND / np.linalg.norm(answers.embedding_ND, axis=1, keepdims=True)

    class Scaled:
        """So that any engine's numbers can stand in a golden file."""

        name = case.engine.name
        max_batch = getattr(case.engine, "max_batch", 8)

        def __call__(self, frames_NHW3: Bytes) -> Outputs:
            said = case.engine(frames_NHW3)
            length_N1 = np.linalg.norm(said.embedding_ND, axis=1, keepdims=True)
            probability_N = np.clip(said.failure_probability_N, 0, 1)
            return replace(said, failure_probability_N=probability_N, embedding_ND=said.embedding_ND / length_N1)

    right = replace(answers, failure_probability_N=np.clip(answers.failure_probability_N, 0, 1), embedding_ND=unit_GD)
    tolerances = Tolerances(keypoints_px=0.1, score=0.1, predicted_loss=0.1, probability=0.1, embedding=0.1)
    assert all(report.passed for report in verify_engine(Scaled(), Golden(frames_GSS3, right, tolerances)))
    wrong = replace(right, predicted_loss_N=right.predicted_loss_N + np.float32(1))
    (report, *_) = verify_engine(Scaled(), Golden(frames_GSS3, wrong, tolerances))
    assert [check.output for check in report.checks if not check.passed] == ["predicted_loss"]


def test_threads_share_an_engine(case: Case) -> None:
    wrong: list[object] = []
    wanted = [case.engine(pictures(case, 1 + seed, seed)) for seed in range(3)]

    def work(seed: int) -> None:
        for _ in range(15):
            try:
                same(case.engine(pictures(case, 1 + seed, seed)), wanted[seed])
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_closing_twice_is_harmless_and_a_closed_engine_says_so(case: Case) -> None:
    close = getattr(case.engine, "close", None)
    if close is None:
        pytest.skip("there is nothing to close")
    close()
    close()
    with pytest.raises(AlposeError, match="was closed"):
        case.engine(pictures(case, 1))


# --- frames on the device


def test_frames_are_cut_on_the_device_bit_for_bit(case: Case) -> None:
    if case.device is None:
        if isinstance(case.engine, DeviceEngine):
            with pytest.raises(ConfigError, match="cannot be given frames in its own memory"):
                case.engine.answer_device([on_gpu((20, 20, 3))], [Crop.square(0, 0, 9, case.size_px)])
        return
    engine, put = device_of(case)
    for seed, frame_format in enumerate(FrameFormat):
        array = noise(frame_format, 18, 24, seed)
        for crop in (
            Crop.square(1.5, 2, 14, 8),
            Crop.square(-9, -3, 50, 8),
            Crop.square(300, 0, 9, 8),
            Crop.square(20, 9, 5, 8),
        ):
            expected = engine(accept(array, frame_format).cut(crop)[None])
            same(engine.answer_device([put(array, frame_format)], [crop]), expected)


@given(frame=frames(), crop=crops)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_frame_and_crop_are_answered_as_on_the_host(
    device_case: Case, frame: tuple[FrameFormat, Bytes], crop: Crop
) -> None:
    engine, put = device_of(device_case)
    frame_format, array = frame
    expected = engine(accept(array, frame_format).cut(crop)[None])
    same(engine.answer_device([put(array, frame_format)], [crop]), expected)


def test_a_batch_has_frames_of_several_formats_and_sizes(device_case: Case) -> None:
    engine, put = device_of(device_case)
    kinds = [RGB, FrameFormat.NV12, FrameFormat.BGR, FrameFormat.YUYV, FrameFormat.GREY]
    arrays = [noise(kind, 10 + 8 * n, 40 - 6 * n, n) for n, kind in enumerate(kinds)]
    places = [Crop.square(3.3 * n, 2.0, 17.0 + n, 8) for n in range(len(kinds))]
    expected = np.stack([accept(a, k).cut(c) for a, k, c in zip(arrays, kinds, places, strict=True)])
    for count in (1, 5, 2):
        taken = [put(a, k) for a, k in zip(arrays[:count], kinds, strict=False)]
        same(engine.answer_device(taken, places[:count]), engine(expected[:count]))


@pytest.mark.parametrize("frame_format", FrameFormat)
def test_what_comes_to_the_host_is_rgb_and_counted(device_case: Case, frame_format: FrameFormat) -> None:
    engine, put = device_of(device_case)
    array = noise(frame_format, 24, 30)
    frame, before = put(array, frame_format), engine.copies_to_host
    engine.answer_device([frame], [Crop.square(0, 0, 20, 8)])
    assert engine.copies_to_host == before

    got = engine.to_host(frame)
    np.testing.assert_array_equal(got, accept(array, frame_format).to_rgb())
    region = (3, 5, 17, 20)
    np.testing.assert_array_equal(engine.to_host(frame, region), accept(array, frame_format).to_rgb(region))
    assert engine.copies_to_host == before + 2
    assert got.flags.writeable
    assert got.flags.c_contiguous


def test_frames_in_other_memory_are_refused(device_case: Case) -> None:
    engine, put = device_of(device_case)
    reads_gpu = put(noise(RGB, 9, 9), RGB).on_gpu
    elsewhere = [on_gpu((20, 20, 3), gpu=3), on_gpu((20, 20, 3), gpu=3, memory=MemoryKind.CUDA_MANAGED)]
    says = "runs on GPU 0, and the frame is on GPU 3" if reads_gpu else r"cannot read a frame on a GPU.*engine='cuda'"
    if reads_gpu:
        elsewhere.append(on_gpu((20, 20, 3), memory=MemoryKind.CPU))
        says += "|reads frames on GPU 0, and this one is in the host's memory"
    for frame in elsewhere:
        with pytest.raises(ConfigError, match=says):
            engine.answer_device([frame], [Crop.square(0, 0, 9, 8)])
        with pytest.raises(ConfigError, match=says):
            engine.to_host(frame)


def test_frames_and_crops_must_belong_together(device_case: Case) -> None:
    engine, put = device_of(device_case)
    frame = put(noise(RGB, 20, 20), RGB)
    for given_frames, given_crops in (([], []), ([frame], []), ([frame], [Crop.square(0, 0, 9, 8)] * 2)):
        with pytest.raises(DataError, match=f"{len(given_frames)} frames and {len(given_crops)} crops"):
            engine.answer_device(given_frames, given_crops)
    with pytest.raises(ConfigError, match="does not turn crops in its own memory"):
        engine.answer_device([frame], [Crop(0, 0, 9, 9, 8, 8, turn=0.3)])
    for crop in (Crop.square(0, 0, 9, 9), Crop.square(0, 0, 9, 8, 2), Crop(0, 0, 9, 9, 8, 8, fill=9)):
        with pytest.raises(DataError, match="crops of 8 x 8 px without context"):
            engine.answer_device([frame], [crop])


@given(name=st.sampled_from([kind.name for kind in engine_kinds() if not kind.argument]))
@settings(max_examples=5, deadline=None)
def test_a_name_with_an_argument_that_it_does_not_take_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"there is no engine '{name}:more'"):
        open_engine(None, f"{name}:more")  # type: ignore[arg-type]
