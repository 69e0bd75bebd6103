from __future__ import annotations

import builtins
import io
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn

from alpose.runtime.errors import ConfigError
from alpose.trainer import device
from alpose.trainer.device import DeviceContext, device_context, environment, evaluating, has_bf16

CPU = torch.device("cpu")


# --- evaluating


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Sequential(nn.Dropout(0.5)))


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_is_eval_mode_without_gradients_and_gives_every_mode_back(training: bool) -> None:
    module, other = net().train(training), net().train(not training)
    module[1].eval()  # a frozen part of a training module stays frozen
    before = modes(module), modes(other)
    with suppress(ZeroDivisionError), evaluating(module, other):
        assert not any(modes(module) + modes(other))
        assert not module(torch.rand(3, 2)).requires_grad
        raise ZeroDivisionError

    assert (modes(module), modes(other)) == before
    assert torch.is_grad_enabled()


# --- Devices


@pytest.mark.parametrize(("precision", "native", "dtype"), [
    ("fp32", True, torch.float32), ("bf16", False, torch.bfloat16), ("auto", True, torch.bfloat16),
    ("auto", False, torch.float32),
])  # fmt: skip
def test_a_precision_is_taken_when_asked_for_and_auto_where_bfloat16_is_native(
    precision: Any, native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_bf16", lambda _: native)
    used = device_context("cpu", precision)

    assert used == DeviceContext(CPU, dtype, 0, 1)
    assert device_context("cpu", used.precision) == used  # what a worker elsewhere is told
    with used.autocast():
        assert torch.nn.functional.linear(torch.rand(2, 2), torch.rand(2, 2)).dtype == dtype


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
    assert not has_bf16(torch.device("meta"))


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "cuda:-1"])
def test_a_device_that_does_not_exist_is_an_error_that_names_it(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}'"):
        device_context(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cuda:1"):
        device_context("cuda:1")


@pytest.mark.parametrize(("name", "local", "expected"), [
    ("cuda", None, "cuda:0"), (None, None, "cuda:0"), ("cuda:1", None, "cuda:1"), ("cuda", "1", "cuda:1"),
    (None, "1", "cuda:1"), ("cuda:0", "1", "cuda:0"), ("cuda:2", None, "2 GPUs"), ("cuda", "2", "2 GPUs"),
])  # fmt: skip
def test_a_gpu_is_selected_by_its_number_whether_or_not_one_was_given(
    name: str | None, local: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch cannot select ``cuda`` without a number, which is what users write and what a Ray worker is told."""
    selected: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", selected.append, raising=False)
    monkeypatch.setattr(device, "has_bf16", lambda _: True)
    if local:
        monkeypatch.setenv("LOCAL_RANK", local)
    if expected.endswith("GPUs"):
        with pytest.raises(ConfigError, match=rf"'{name}'.*{expected}"):
            device_context(name)
        return

    assert device_context(name).device == torch.device(expected)
    assert selected == [torch.device(expected).index]


def test_an_unknown_precision_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"fp16.*auto, fp32, bf16"):
        device_context("cpu", "fp16")  # type: ignore[arg-type]


def test_the_first_process_leads_and_alone_does_what_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[int] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: did.append(-1))
    for rank in (0, 1):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))
        used = device_context("cpu", "fp32")
        used.once(did.append, rank)
        assert (used.rank, used.world, used.leads) == (rank, 2, rank == 0)

    assert did == [0, -1, -1]  # both wait
    DeviceContext(CPU, torch.float32).once(did.append, 7)
    assert did[3:] == [7]


def test_the_environment_can_be_written_down() -> None:
    found = json.loads(json.dumps(environment(device_context("cpu", "fp32")), allow_nan=False))

    assert found["packages"]["torch"] == torch.__version__
    assert (found["device"], found["precision"], found["processes"], found["gpu"]) == ("cpu", "float32", 1, None)
    assert found["processor"]


@pytest.mark.parametrize(("busy", "told", "threads"), [
    (0.2, None, 4), (0.6, None, 3), (2.4, None, 2), (9.0, None, 1), (None, None, 4), (2.4, "4", 4),
])  # fmt: skip
def test_threads_leave_busy_cores_alone_unless_told_how_many(
    busy: float | None, told: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(device, "_busy_cores", lambda _cores: busy)
    try:
        torch.set_num_threads(4)
        device_context("cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


FAULTS = """
import resource, torch
from alpose.trainer.device import device_context
device_context("cpu")
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MiB, which glibc gives back by itself
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(taken)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide otherwise")
@pytest.mark.parametrize(("set_by_user", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_used_again_unless_the_environment_says_otherwise(
    set_by_user: dict[str, str], kept: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"OMP_NUM_THREADS": "1"} | set_by_user
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=environment)

    pages = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages / 100) == kept


def test_busy_cores_are_between_none_and_all() -> None:
    busy = device._busy_cores(2, watch_s=0.05)
    assert busy is None or 0 <= busy <= 2
