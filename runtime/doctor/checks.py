"""The checks: each is a function of the facts, and :data:`CHECKS` lists them in the order of the report."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterator

import numpy as np

from .facts import DiskInfo, Environment
from .report import Finding, failed, ok, warning

OLDEST_SQLITE = (3, 31, 0)
TENSORRT = (10, 12)
"""Major versions of TensorRT that are supported: from the first, before the second."""
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
OPTIONAL = {
    "crypto": ("pynacl", "signed bundles and sealed frames", "crypto"),
    "metrics": ("prometheus-client", "--metrics-port and --metrics-file", "metrics"),
    "camera": ("opencv-python-headless", "reading cameras and videos in alpose-monitor run", "camera"),
}
"""Finding → its distribution, what it is there for, and the extra that brings it."""

YEARS = (2025, 2100)
"""A clock that shows another year was never set."""
HOT_C = 85.0
LITTLE_MEMORY = 256 << 20
DYNAMIC = frozenset({"intel_pstate", "intel_cpufreq", "amd-pstate", "amd-pstate-epp", "amd_pstate"})
"""Drivers whose governor called powersave changes the frequency by load, as others' ondemand does."""

INT8, WIDE, BF16 = "int8 dot products", "wide vectors", "bf16"
INSTRUCTIONS = {
    "x86_64": {WIDE: {"avx2"}, INT8: {"avx512_vnni", "avx_vnni"}, BF16: {"avx512_bf16", "amx_bf16"}},
    "aarch64": {WIDE: {"asimd"}, INT8: {"asimddp", "i8mm"}, BF16: {"bf16"}},
}
"""Machine → what a bundle's speed or numbers hang on, and the flags of ``/proc/cpuinfo`` that any of which means it."""

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs", "lustre",
                     "afs", "fuse.s3fs", "virtiofs", "vboxsf"})  # fmt: skip
MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
FRAGILE = frozenset({"vfat", "msdos", "exfat", "fuseblk"})
"""Without a journal: power loss can take the whole file system."""
LITTLE_BYTES, NO_BYTES = 1 << 30, 64 << 20
SLOW_S = 0.5
SUSPICIOUS_S = 8e-6
"""No storage that keeps its promise answers faster: this one answers before it has written."""

Check = Callable[[Environment], Iterator[Finding]]


def check(here: Environment) -> Iterator[Finding]:
    """Every finding about this machine."""
    for one in CHECKS:
        yield from one(here)


# --- Packages and libraries


def _versions(here: Environment) -> Iterator[Finding]:
    version, sqlite = (".".join(map(str, numbers)) for numbers in (here.python, here.sqlite))
    if here.python < (3, 10, 0):
        yield failed("python", version, "alpose needs Python 3.10 or newer", "python3.10 -m venv .venv")
    else:
        yield ok("python", f"{version} on {here.system}" + (f", {here.jetson}" if here.jetson else ""))
    there = [f"{name} {here.packages[name]}" for name in ("alpose", "numpy") if name in here.packages]
    yield ok("alpose", ", ".join(there))
    if here.sqlite < OLDEST_SQLITE:
        yield failed("sqlite", sqlite, "the queue needs SQLite 3.31 or newer; it comes with Python or the system")
    else:
        yield ok("sqlite", sqlite)


def _onnxruntime(here: Environment) -> Iterator[Finding]:
    name = "onnxruntime"
    found = [each for each in ONNXRUNTIMES if each in here.packages]
    said = ", ".join(f"{each} {here.packages[each]}" for each in found)
    extra = "gpu" if here.gpu else "cpu"
    if len(found) > 1:
        keep = "onnxruntime-gpu" if here.gpu and "onnxruntime-gpu" in found else found[0]
        yield failed(name, f"{said}: {len(found)} at once",
                     "they are installed into the same folder and overwrite each other: which one runs is left to chance, and "
                     "a GPU may be left unused without a word",
                     f"pip uninstall -y {' '.join(found)} && pip install {keep}=={here.packages[keep]}")  # fmt: skip
    elif name in here.unloadable:
        yield failed(name, f"{said or 'installed'}, and does not load: {here.unloadable[name]}", "no bundle runs on it",
                     f"pip install --force-reinstall {found[0] if found else name}")  # fmt: skip
    elif name not in here.loadable and "tensorrt" in here.packages:
        yield warning(name, "not installed", "only engines that TensorRT builds can run; golden frames cannot be "
                      "compared with a second engine", f"pip install 'alpose[{extra}]'")  # fmt: skip
    elif name not in here.loadable:
        yield failed(name, "not installed", "no bundle runs without an engine", f"pip install 'alpose[{extra}]'")
    else:
        said = said or "installed without pip's knowledge"
        offered = f"{said}; built with {', '.join(here.providers) or 'no provider'}"
        if not here.gpu or {"cuda", "tensorrt"} & set(here.providers):
            yield ok(name, offered)
        else:
            fix = f"pip uninstall -y {' '.join(found) or name} && pip install 'alpose[gpu]'"
            if here.jetson:
                fix = "pip install 'alpose[tensorrt]' && alpose-export engine BUNDLE"
            yield warning(name, offered, "there is a GPU, and this build cannot use it", fix)


def _telemetry(here: Environment) -> Iterator[Finding]:
    """ONNX Runtime 1.32 and later send usage data to Microsoft on Linux unless they are told not to."""
    if "onnxruntime" not in here.loadable:
        return
    if not here.telemetry_off:
        yield failed("telemetry", "ONNX Runtime was loaded before it was switched off",
                     "newer versions of it send usage data to Microsoft: import alpose.runtime before onnxruntime, or set "
                     "the variable",
                     "export ORT_DISABLE_TELEMETRY=1")  # fmt: skip
    elif here.telemetry_traces:
        yield ok("telemetry", "ONNX Runtime sends no usage data from alpose", "another program of this user has left events that "
                 f"ONNX Runtime would send in {here.telemetry_traces}. alpose wrote none of them, and they may be deleted",
                 f"rm -r {here.telemetry_traces}")  # fmt: skip
    else:
        yield ok("telemetry", "ONNX Runtime sends no usage data, and keeps no device id")


def _linkage(here: Environment) -> Iterator[Finding]:
    """Compare what every provider was linked against with what is installed."""
    for file, needs in here.needs.items():
        provider = re.sub(r"^libonnxruntime_providers_|\.so$", "", file)
        name = f"{provider} libraries"
        missing = [need for need in needs if need not in here.libraries]
        if not missing:
            yield ok(name, f"{file}: all {len(needs)} libraries of NVIDIA are here")
        elif not here.gpu:  # nothing is lost, and nothing needs fixing
            yield ok(name, f"{file} cannot load here, and there is no GPU that could need it")
        else:
            others = {need: _other_versions(need, here) for need in missing}
            said = "; ".join(
                f"it wants {need}, " + (f"{', '.join(there)} is installed" if there else "which is not installed")
                for need, there in others.items()
            )
            yield failed(name, f"{file}: {said}", f"ONNX Runtime's {provider} provider does not load, and ONNX Runtime "
                         "would go on with another one; alpose refuses that", _libraries_line(needs, missing, here))  # fmt: skip


def _libraries_line(needs: tuple[str, ...], missing: list[str], here: Environment) -> str:
    """The pip line that brings what is missing, in the versions that were linked against."""
    cuda = _major(needs, "libcudart") or (13 if here.driver_cuda and here.driver_cuda[0] >= 13 else 12)
    lines = []
    major = _major(missing, "libnvinfer") or _major(missing, "libnvonnxparser")
    if major is not None:
        # 10.13 is the first of TensorRT 10 that knows CUDA 13.
        least = "10.13" if (major, cuda) == (10, 13) else str(major)
        lines.append(f"'tensorrt-cu{cuda}>={least},<{major + 1}'")
    if any(not need.startswith(("libnvinfer", "libnvonnxparser")) for need in missing):
        version = here.packages.get("onnxruntime-gpu")
        lines.append(f"'onnxruntime-gpu[cuda,cudnn]{f'=={version}' if version else ''}'")
    return f"pip install {' '.join(lines)}"


def _tensorrt(here: Environment) -> Iterator[Finding]:
    version = here.packages.get("tensorrt")
    if version is None:
        if here.gpu:
            yield ok("tensorrt", "not installed", "a GPU can run engines of its own: docs/tensorrt.md",
                     "pip install 'alpose[tensorrt]'")  # fmt: skip
        return
    major = int(version.split(".")[0]) if version.split(".")[0].isdigit() else 0
    bindings = here.packages.get("cuda-python") or here.packages.get("cuda-bindings")
    if not TENSORRT[0] <= major < TENSORRT[1]:
        yield failed("tensorrt", version, "supported are 10.3 to 11", "pip install 'tensorrt>=10.3,<12'")
    elif bindings is None:
        yield failed("tensorrt", f"{version}, without cuda-python", "alpose runs TensorRT engines through cuda-python",
                     "pip install 'alpose[tensorrt]'")  # fmt: skip
    else:
        yield ok("tensorrt", f"{version}, cuda-python {bindings}")


def _driver(here: Environment) -> Iterator[Finding]:
    if here.driver_cuda is None:
        if here.gpu:
            yield failed("driver", "there is a GPU, and libcuda.so.1 does not load",
                         "nothing can use the GPU: the driver is missing, or a container was started without it",
                         "docker run --gpus all …  (or install NVIDIA's driver)")  # fmt: skip
        else:
            yield ok("driver", "there is no NVIDIA GPU, so none is needed")
        return
    reached, newest = ".".join(map(str, here.driver_cuda)), here.driver_cuda[0]
    bindings = here.packages.get("cuda-python") or here.packages.get("cuda-bindings") or ""
    bound = bindings.split(".")[0]
    linked = max((cuda for needs in here.needs.values() if (cuda := _major(needs, "libcudart"))), default=0)
    if bound.isdigit() and int(bound) > newest:
        yield failed("driver", f"reaches CUDA {reached}; cuda-python is {bindings}",
                     "TensorRT engines cannot run: cuda-python is newer than the driver",
                     f"pip install 'cuda-python<{newest + 1}'")  # fmt: skip
    elif linked > newest:
        yield failed("driver", f"reaches CUDA {reached}; onnxruntime-gpu was built for CUDA {linked}",
                     "ONNX Runtime cannot use the GPU. Update the driver, or run TensorRT engines, which do not need "
                     "ONNX Runtime", f"pip install 'alpose[tensorrt]' 'cuda-python<{newest + 1}'")  # fmt: skip
    else:
        yield ok("driver", f"reaches CUDA {reached}")


def _encoder(here: Environment) -> Iterator[Finding]:
    if "simplejpeg" in here.loadable:
        yield ok("jpeg", f"simplejpeg {here.packages.get('simplejpeg', '')}".strip() + " encodes kept frames")
        return
    why = here.unloadable.get("simplejpeg")
    found = f"simplejpeg does not load: {why}" if why else "simplejpeg is not installed"
    fix = "pip install --force-reinstall simplejpeg" if why else "pip install 'simplejpeg>=1.7'"
    if "pillow" in here.loadable:
        yield warning("jpeg", f"{found}; Pillow encodes", "frames are encoded more slowly", fix)
    else:
        yield warning("jpeg", f"{found}, nor is Pillow",
                      "frames are kept as PNG: several times larger, so fewer fit into the queue", fix)  # fmt: skip


def _optional(here: Environment) -> Iterator[Finding]:
    for label, (name, purpose, extra) in OPTIONAL.items():
        if name in here.unloadable:
            yield warning(label, f"{name} does not load: {here.unloadable[name]}", f"it is needed for {purpose} alone",
                          f"pip install --force-reinstall {name}")  # fmt: skip
        elif name in here.loadable:
            yield ok(label, f"{name} {here.packages.get(name, '')}".strip() + f", for {purpose}")
        else:
            yield ok(
                label,
                f"{name} is not installed; it is needed for {purpose} alone",
                "",
                f"pip install 'alpose[{extra}]'",
            )


def _other_versions(need: str, here: Environment) -> list[str]:
    """Libraries of the same name in other versions, the most telling names only: ``libnvinfer.so.11``."""
    stem = need.partition(".so")[0]
    return [name for name in here.libraries if re.fullmatch(rf"{re.escape(stem)}\.so\.\d+", name) and name != need]


def _major(needs: tuple[str, ...] | list[str], stem: str) -> int | None:
    """The major version of a library among these."""
    found = (re.fullmatch(rf"{stem}\.so\.(\d+)[.\d]*", need) for need in needs)
    return next((int(match[1]) for match in found if match), None)


# --- The machine


def _clock(here: Environment) -> Iterator[Finding]:
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(here.wall_s))
    set_it = "sudo timedatectl set-ntp true"
    if not YEARS[0] <= time.gmtime(here.wall_s).tm_year <= YEARS[1]:
        yield failed("clock", shown, "it was never set: capture times, ages and limits by age will be wrong", set_it)
    elif abs(here.clock_rate - 1) > 0.05:
        yield warning("clock", f"{shown}; it ran at {here.clock_rate:.2f} times the speed of the monotonic clock",
                      "it is being set just now, or is wrong: times of records may jump. Run the doctor again in a minute")  # fmt: skip
    elif here.synchronised is False:
        yield warning("clock", f"{shown}, not synchronised", "times of several devices will not agree", set_it)
    else:
        yield ok("clock", shown + (", synchronised" if here.synchronised else ""))


def _processor(here: Environment) -> Iterator[Finding]:
    cores = f"{here.cores:g} core{'s' * (here.cores != 1)}"
    governors = ", ".join(sorted(set(here.governors)))
    if "powersave" in here.governors and not DYNAMIC & set(here.scaling_drivers):
        fix = "sudo nvpmodel -m 0 && sudo jetson_clocks" if here.jetson else \
            "echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"  # fmt: skip
        yield warning(
            "processor", f"{cores}, governor {governors}", "its cores are held at their lowest frequency", fix
        )
    elif here.cores < 1:
        yield warning("processor", cores, "a container grants less than one core: frames will wait for their turn",
                      "docker run --cpus 2 …")  # fmt: skip
    else:
        yield ok("processor", cores + (f", governor {governors}" if governors else ""))


def _instructions(here: Environment) -> Iterator[Finding]:
    kinds = INSTRUCTIONS.get(here.system.split()[-1])
    if kinds is None or not here.flags:
        return
    has = {kind: sorted(flags & here.flags) for kind, flags in kinds.items()}
    found = ", ".join(f"{kind} ({', '.join(flags)})" for kind, flags in has.items() if flags)
    lacks = [kind for kind, flags in has.items() if not flags]
    meaning = {
        WIDE: "older than AVX2: ONNX Runtime runs several times more slowly than the measured numbers say",
        INT8: "int8 bundles run hardly faster than fp32 here, and a bundle that was not made for such processors can "
        "saturate: golden frames show it",
        BF16: "training in bf16 is emulated here, and slow; bundles never need it",
    }
    said = ". ".join(meaning[kind] for kind in lacks)
    lacking = f"{found or 'none'}; without {', '.join(lacks)}" if lacks else found
    yield warning("instructions", lacking, said) if WIDE in lacks else ok("instructions", lacking, said)


def _heat(here: Environment) -> Iterator[Finding]:
    heat = f"{here.temperature_c:.0f} °C" if here.temperature_c is not None else ""
    if here.throttled:
        yield warning("heat", f"{heat + ', ' * bool(heat)}slowed down for heat {here.throttled} times since the start",
                      "latency rises when it does: better cooling, or fewer frames a second")  # fmt: skip
    elif here.temperature_c is not None and here.temperature_c >= HOT_C:
        yield warning(
            "heat", heat, "processors slow down at about this temperature: better cooling, or fewer frames a second"
        )
    elif heat:
        yield ok("heat", heat)


def _memory(here: Environment) -> Iterator[Finding]:
    if here.memory_free_bytes is None:
        return
    found = f"{here.memory_free_bytes / 2**30:.1f} GiB available"
    if here.memory_free_bytes < LITTLE_MEMORY:
        yield warning("memory", found, "the kernel may end the monitor when a frame needs more: end other programs, or give the "
                      "device or container more memory")  # fmt: skip
    else:
        yield ok("memory", found)


# --- The disk of the queue


def _disk(here: Environment) -> Iterator[Finding]:
    disk = here.disk
    if disk is None:
        return
    if disk.problem:
        looks = {
            errno.ENOENT: "mkdir -p",
            errno.ENOSPC: "df -h",
            errno.EROFS: "findmnt -T",
            errno.EDQUOT: "quota -v; df -h",
        }
        look = next((words for code, words in looks.items() if os.strerror(code) == disk.problem), "ls -ld")
        yield failed("disk", f"{disk.folder}: {disk.problem}", "no queue can be kept there", f"{look} {disk.folder}")
        return
    yield _file_system(disk)
    free = f"{disk.free_bytes / 2**30:.1f} GiB free"
    if disk.free_bytes < NO_BYTES:
        yield failed("free space", free, "no frame can be kept: make room", f"df -h {disk.folder}")
    elif disk.free_bytes < LITTLE_BYTES:
        yield warning("free space", free, "a queue takes up to 256 MiB unless run --queue-size says otherwise, and its log for a "
                      "while as much again: make room, or give a smaller size", f"df -h {disk.folder}")  # fmt: skip
    else:
        yield ok("free space", free)
    yield _sync(disk)


def _file_system(disk: DiskInfo) -> Finding:
    found = f"{disk.folder} on {disk.kind or 'an unknown file system'}"
    if disk.kind in NETWORK:
        return warning("file system", found, "a network file system: SQLite's locks and shared memory do not work "
                       "across machines, and where the connection is lost no frame is kept. Put the queue on a local disk")  # fmt: skip
    if disk.kind in MEMORY:
        return warning("file system", found, "it is memory: every record is gone when the power is. Put the queue on a "
                       "disk")  # fmt: skip
    if disk.kind in FRAGILE:
        return warning("file system", found, "a file system without a journal: power loss can damage all of it. Put the queue "
                       "on ext4 or xfs, which keep what they have acknowledged")  # fmt: skip
    if disk.kind == "overlay":
        return warning("file system", found, "a container's own layer: the queue is gone with the container. Put it on a volume",
                       "docker run -v alpose:/var/lib/alpose …  and --queue /var/lib/alpose/flagged.db")  # fmt: skip
    return ok("file system", found)


def _sync(disk: DiskInfo) -> Finding:
    p50, p99 = (float(value) for value in np.quantile(disk.sync_s, [0.5, 0.99]))
    found = f"4 KiB are safe on the storage after {_duration(p50)} (median) to {_duration(p99)} (p99); {len(disk.sync_s)} tries"
    if p50 < SUSPICIOUS_S and disk.kind not in MEMORY:
        return warning("sync", found, "faster than storage can be: it says that data are safe before they are, and power "
                       "loss can take frames that were kept. Switch its write cache off, or use other storage")  # fmt: skip
    if p99 > SLOW_S:
        return warning("sync", found, "slow: kept frames wait in memory meanwhile, and are dropped when too many do. The "
                       "camera never waits for it. Use faster storage, or a smaller budget")  # fmt: skip
    return ok("sync", found)


def _duration(seconds: float) -> str:
    unit, factor = ("µs", 1e6) if seconds < 1e-3 else ("ms", 1e3) if seconds < 1 else ("s", 1.0)
    return f"{seconds * factor:.{ {'µs': 0, 'ms': 1, 's': 2}[unit] }f} {unit}"


CHECKS: tuple[Check, ...] = (
    _versions, _onnxruntime, _telemetry, _linkage, _tensorrt, _driver, _encoder, _optional, _clock, _processor, _instructions, _heat,
    _memory, _disk,
)  # fmt: skip
"""Everything that is judged by facts alone. A check that is added is a function here and its place in this table."""
