from __future__ import annotations

import builtins
import io
import json
from typing import Any

import pytest
import torch
from torch import nn

from alpose.runtime.errors import ConfigError
from alpose.trainer import device
from alpose.trainer.device import Machine, environment, evaluating, has_bf16, machine

CPU = torch.device("cpu")


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(0.5)))


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_is_eval_mode_without_gradients_and_gives_the_mode_back(training: bool) -> None:
    module = net().train(training)
    with evaluating(module):
        assert not any(modes(module))
        assert not module(torch.rand(3, 2)).requires_grad

    assert modes(module) == [training] * 5
    assert torch.is_grad_enabled()


def test_evaluating_gives_the_modes_back_after_an_error_and_of_every_module() -> None:
    one, other = net().train(), net().eval()
    with pytest.raises(ZeroDivisionError), evaluating(one, other):
        raise ZeroDivisionError

    assert all(modes(one))
    assert not any(modes(other))


def test_evaluating_gives_back_the_mode_of_a_frozen_part() -> None:
    module = net().train()
    module[1].eval()
    before = modes(module)
    with evaluating(module):
        pass

    assert modes(module) == before


def test_the_cpu_in_full_precision_is_always_to_be_had() -> None:
    assert machine("cpu", "fp32") == Machine(CPU, torch.float32, 0, 1)


def test_bfloat16_is_taken_when_asked_for() -> None:
    used = machine("cpu", "bf16")

    assert used.dtype == torch.bfloat16
    with used.autocast():
        assert torch.nn.functional.linear(torch.rand(2, 2), torch.rand(2, 2)).dtype == torch.bfloat16


def test_full_precision_is_not_cast() -> None:
    with machine("cpu", "fp32").autocast():
        assert torch.nn.functional.linear(torch.rand(2, 2), torch.rand(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_where_it_is_native(
    native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_bf16", lambda _: native)

    assert machine("cpu").dtype == dtype


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512_bf16 sse", True), ("fpu amx_bf16", True), ("fpu avx2 avx512f", False), (None, False)],
)
def test_a_processor_says_whether_it_has_bfloat16(
    flags: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any, **__: Any) -> io.StringIO:
        if flags is None:
            raise FileNotFoundError
        return io.StringIO(f"processor : 0\nflags : {flags}\n")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        found = has_bf16(CPU)

    assert found is expected


def test_other_devices_have_no_bfloat16() -> None:
    assert not has_bf16(torch.device("meta"))


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "cuda:-1"])
def test_a_device_that_does_not_exist_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}'"):
        machine(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cuda:1"):
        machine("cuda:1")


def test_a_gpu_beyond_the_last_is_an_error_that_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(ConfigError, match=r"'cuda:2'.*2 GPUs"):
        machine("cuda:2")


def test_an_unknown_precision_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"fp16.*auto, fp32, bf16"):
        machine("cpu", "fp16")  # type: ignore[arg-type]


def test_the_first_process_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for rank in (0, 1):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        used = machine("cpu", "fp32")

        assert (used.rank, used.world, used.leads) == (rank, 2, rank == 0)


def test_one_process_waits_for_nobody() -> None:
    machine("cpu", "fp32").wait()


def test_the_environment_can_be_written_down() -> None:
    found = json.loads(json.dumps(environment(machine("cpu", "fp32")), allow_nan=False))

    assert found["packages"]["torch"] == torch.__version__
    assert (found["device"], found["precision"], found["processes"], found["gpu"]) == ("cpu", "float32", 1, None)
    assert found["processor"]


@pytest.mark.parametrize(("busy", "threads"), [(0.2, 4), (0.6, 3), (2.4, 2), (9.0, 1), (None, 4)])
def test_threads_leave_busy_cores_alone(busy: float | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(device, "_busy_cores", lambda _cores: busy)
    try:
        torch.set_num_threads(4)
        device.machine("cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_omp_num_threads_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(device, "_busy_cores", lambda _cores: pytest.fail("looked"))
    device.machine("cpu")


def test_busy_cores_are_between_none_and_all() -> None:
    busy = device._busy_cores(2, watch_s=0.05)
    assert busy is None or 0 <= busy <= 2
