"""Where tensors are computed: device, precision, and the ranks of a ``torchrun`` job."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, get_args

import torch
from torch import distributed

from alpose.runtime.errors import ConfigError

log = logging.getLogger("alpose")

Precision = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MEMORY_FORMAT = torch.channels_last
"""Of images and convolutions. At the papers' size, in float32 and on one core with AVX-512, a forward pass is 1.6 times as fast as in
contiguous order; bf16 and small nets gain too. So nothing is measured at the start, and every result names it."""


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """Where and how tensors are computed; each process of a ``torchrun`` job has its own."""

    device: torch.device
    dtype: torch.dtype
    """Of convolutions in the forward pass; weights and losses stay float32."""
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    @property
    def precision(self) -> Precision:
        """What another process is told to compute in the same precision."""
        return "fp32" if self.dtype == torch.float32 else "bf16"

    def autocast(self) -> torch.autocast:
        """Context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def wait(self) -> None:
        """Until every process has come this far."""
        if self.world > 1:
            distributed.barrier()

    def once(self, act: Callable[..., object], *arguments: object) -> None:
        """Let the leading process alone do something, such as write a file; the others wait for it."""
        if self.leads:
            act(*arguments)
        self.wait()


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native: slower emulation does not count."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        try:
            with open("/proc/cpuinfo") as file:
                flags = file.read()
        except OSError:
            return False
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def to_device(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small tensor of the host on a device, without waiting for what the device is still computing."""
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def device_context(device: str | None = None, precision: Precision = "auto") -> DeviceContext:
    """Open the device for this process; under ``torchrun`` it joins the job's group.

    On a processor it settles how many threads compute, and that freed memory stays with the process
    (:func:`keep_freed_memory`).

    Args:
        device: such as ``cpu``, ``cuda`` or ``cuda:1``; by default the GPU if there is one.
        precision: ``auto`` takes bfloat16 where it is native.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = _device(device, local)
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = True
    if chosen.type == "cpu":
        _leave_busy_cores_alone()
        keep_freed_memory()
    low = precision == "bf16" or (precision == "auto" and has_bf16(chosen))
    if world > 1 and not distributed.is_initialized():
        # A rank may wait while another scores a large pool.
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(hours=12))
    return DeviceContext(chosen, torch.bfloat16 if low else torch.float32, rank, world)


def _device(name: str, local: int) -> torch.device:
    """The device of a name; ``cuda`` without a number is the GPU of this process: torch cannot select one without."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is not one that torch knows, such as cpu, cuda or cuda:1") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, and this torch sees no GPU")
    index = local if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device {name!r} was asked for, and this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)


def _leave_busy_cores_alone() -> None:
    """Compute on the cores that are free now, unless OMP_NUM_THREADS says how many.

    Every parallel step waits for its slowest thread. A thread that shares its core with another program makes a small
    net many times slower than one thread fewer would.
    """
    cores = os.cpu_count() or 1
    if "OMP_NUM_THREADS" in os.environ or cores == 1:
        return
    busy = _busy_cores(cores)
    if busy is not None and busy >= 0.5:
        threads = max(1, cores - round(busy))
        if threads < torch.get_num_threads():
            torch.set_num_threads(threads)
            log.info("%.1f of %d cores are busy with other programs: computing on %d (OMP_NUM_THREADS decides otherwise)",
                     busy, cores, threads)  # fmt: skip


def keep_freed_memory(keep: bool = True) -> bool:
    """Let freed memory stay with this process, to be used again; False where that cannot be settled here.

    glibc gives blocks of more than 32 MiB back to the system at once, and asks for the next ones anew, page by page, each
    cleared first: at the papers' size that is a third of the time of a forward pass. The process then stays as large as it once was.
    Other allocators are left alone, and so is whoever set ``MALLOC_…_`` or ``GLIBC_TUNABLES`` in the environment.

    Args:
        keep: False is what glibc comes to by itself, for comparisons.
    """
    if any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # another C library has other numbers for the options
        mallopt = library.mallopt
    except (AttributeError, OSError, TypeError):
        return False
    if keep:
        return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
    return bool(mallopt(_MMAP_MAX, 65536) and mallopt(_MMAP_THRESHOLD, 32 << 20) and mallopt(_TRIM_THRESHOLD, 64 << 20))


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Options of glibc's ``mallopt``, from its malloc.h."""


def _busy_cores(cores: int, watch_s: float = 0.3) -> float | None:
    """How many cores were busy over a moment; None where the system does not tell."""

    def times() -> tuple[float, float]:
        with open("/proc/stat") as file:
            fields = [float(value) for value in file.readline().split()[1:9]]
        return sum(fields), fields[3] + fields[4]  # idle and waiting for disks

    try:
        total, idle = times()
        time.sleep(watch_s)
        later_total, later_idle = times()
    except (OSError, ValueError, IndexError):
        return None
    if later_total <= total:
        return None
    return cores * min(1.0, max(0.0, 1 - (later_idle - idle) / (later_total - total)))


@contextmanager
def evaluating(*modules: torch.nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; the former modes come back after."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, mode in modes:  # each by itself: a frozen part of a training module stays frozen
            part.training = mode


def environment(machine: DeviceContext) -> dict[str, Any]:
    """What a result should say about where it was made."""
    packages = {}
    for name in ("alpose", "torch", "numpy", "scipy", "scikit-learn", "opencv-python-headless"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    gpu = torch.cuda.get_device_name(machine.device) if machine.device.type == "cuda" else None
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": str(machine.device),
        "precision": str(machine.dtype).removeprefix("torch."),
        "memory_format": str(MEMORY_FORMAT).removeprefix("torch."),
        "processes": machine.world,
        "packages": packages,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """The commit of the source tree, with a mark when it was changed; None where this file is in no checkout."""
    file = os.path.realpath(__file__)

    def git(*words: str) -> str | None:
        command = ["git", "-C", os.path.dirname(file), *words]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    # An installed package may lie inside somebody else's checkout.
    if git("ls-files", "--error-unmatch", file) is None:
        return None
    return git("describe", "--always", "--dirty", "--abbrev=12")
