"""What the doctor looks at: this machine and its disk, gathered once so that the checks are functions of the facts."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import os
import platform
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import BinaryIO

from ..engines.onnx import TELEMETRY, import_onnxruntime, providers
from ..errors import DataError, MissingExtraError

PACKAGES = (
    "alpose", "numpy", "click", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml",
    "tensorrt", "cuda-python", "cuda-bindings", "simplejpeg", "pillow", "pynacl", "prometheus-client",
    "opencv-python-headless", "opencv-python", "opencv-contrib-python", "torch",
)  # fmt: skip
"""Distributions whose versions matter."""

MODULES = {"simplejpeg": "simplejpeg", "pillow": "PIL.Image", "pynacl": "nacl.public",
           "prometheus-client": "prometheus_client", "opencv-python-headless": "cv2", "onnxruntime": "onnxruntime"}  # fmt: skip
"""What each brings: the doctor imports it, since a package that is installed may still not load."""

GPU_LIBRARY = re.compile(r"lib(nvinfer|nvonnxparser|cudart|cublas|cublasLt|cudnn|cufft|curand|nvrtc)[\w-]*\.so")
"""Libraries of NVIDIA; the system's own are always there."""

SYSTEM_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib", "/usr/local/tensorrt/lib",
                  "/usr/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu/tegra", "/usr/lib/x86_64-linux-gnu",
                  "/usr/lib64", "/usr/lib", "/lib64", "/lib")  # fmt: skip
PIP_FOLDERS = ("nvidia/*/lib", "nvidia/*/*/lib", "tensorrt_libs", "tensorrt")
"""Where NVIDIA's wheels keep libraries, below site-packages."""


BLOCK = bytes(4096)
ROUNDS, MOST_S = 200, 4.0
"""How often a block is written and synced to the disk, and how long at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskInfo:
    """The place where a queue is, or would be."""

    folder: str
    kind: str
    """Of the file system, as in ``/proc/mounts``; empty where unknown."""
    free_bytes: int
    sync_s: tuple[float, ...]
    """Seconds for writing 4 KiB and waiting until they are on the storage, once each."""
    problem: str = ""
    """Why nothing could be written; empty where it could."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Facts. Tests make their own; :meth:`here` gathers those of this machine."""

    python: tuple[int, int, int] = (3, 11, 0)
    system: str = "Linux x86_64"
    packages: Mapping[str, str] = field(default_factory=dict)
    """Distribution → version, of those in :data:`PACKAGES` that are installed."""
    unloadable: Mapping[str, str] = field(default_factory=dict)
    """Distribution → what its import raised, of those that are installed and do not load."""
    loadable: frozenset[str] = frozenset()
    """Distributions (keys of :data:`MODULES`) whose import works, however it was installed."""
    sqlite: tuple[int, ...] = (3, 40, 0)
    providers: tuple[str, ...] = ()
    """That this ONNX Runtime was built with, by short name."""
    telemetry_off: bool = True
    """Whether ONNX Runtime's usage data were switched off before its library was loaded."""
    telemetry_traces: str = ""
    """A folder of events that another program's ONNX Runtime has left in this user's home; empty where there is none."""
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """File of an ONNX Runtime provider → the libraries of NVIDIA that it was linked against."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Libraries of NVIDIA on this machine by file name (``libnvinfer.so.11``), and where each lies."""
    gpu: bool = False
    """Whether there is a device of NVIDIA."""
    jetson: str | None = None
    """First line of ``/etc/nv_tegra_release``."""
    driver_cuda: tuple[int, int] | None = None
    """The CUDA version that the driver reaches; None without a driver."""
    flags: frozenset[str] = frozenset()
    """Instruction sets of the processor, as ``/proc/cpuinfo`` names them."""
    cores: float = 2.0
    """That this process may use: of the affinity mask, or the share that a container grants."""
    governors: tuple[str, ...] = ()
    """Of the frequency of each core; empty where they cannot be read."""
    scaling_drivers: tuple[str, ...] = ()
    throttled: int = 0
    """How often cores were slowed down for heat, since the machine started."""
    temperature_c: float | None = None
    memory_free_bytes: int | None = None
    wall_s: float = 1.8e9
    """Unix."""
    clock_rate: float = 1.0
    """Seconds of the wall clock per second of the monotonic one, over a moment."""
    synchronised: bool | None = None
    """What systemd-timesyncd says; None where it does not run."""
    disk: DiskInfo | None = None
    """The folder of the queue; None: not looked at."""

    @classmethod
    def here(cls) -> Environment:
        """The facts of this machine."""
        packages = installed(PACKAGES)
        loadable, unloadable = importable(packages)
        site = [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
        monotonic, wall = time.monotonic(), time.time()
        time.sleep(0.2)
        rate = (time.time() - wall) / (time.monotonic() - monotonic)
        return cls(
            python=sys.version_info[:3],
            system=f"{platform.system()} {platform.machine()}",
            packages=packages,
            unloadable=unloadable,
            loadable=loadable,
            sqlite=sqlite3.sqlite_version_info,
            providers=_providers(),
            telemetry_off=os.environ.get(TELEMETRY) == "1",
            telemetry_traces=_telemetry_traces(),
            needs=provider_needs(_package_folder("onnxruntime")),
            libraries=libraries(site),
            gpu=any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvhost-ctrl", "/dev/nvhost-gpu")),
            jetson=next(iter(_text("/etc/nv_tegra_release").splitlines()), None),
            driver_cuda=_driver_cuda(),
            flags=_processor_flags(),
            cores=_cores(),
            governors=_each("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor"),
            scaling_drivers=_each("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_driver"),
            throttled=throttled(),
            temperature_c=temperature_c(),
            memory_free_bytes=_memory_free(),
            wall_s=wall,
            clock_rate=rate,
            synchronised=_synchronised(),
        )


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of distributions that are installed."""
    found = {}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def importable(packages: Mapping[str, str]) -> tuple[frozenset[str], dict[str, str]]:
    """Which of :data:`MODULES` load, and what the others that are installed raise."""
    loadable, unloadable = set(), {}
    for name, module in MODULES.items():
        try:
            if module == "onnxruntime":
                import_onnxruntime()
            else:
                importlib.import_module(module)
            loadable.add(name)
        except Exception as error:  # a library that does not load may raise anything
            if name in packages or not isinstance(error, ModuleNotFoundError | MissingExtraError):
                unloadable[name] = (str(error).splitlines() or [type(error).__name__])[0]
    return frozenset(loadable), unloadable


def provider_needs(folder: Path | None) -> dict[str, tuple[str, ...]]:
    """What the providers of an ONNX Runtime in this folder are linked against; one that is unreadable needs nothing."""
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(folder.glob("capi/libonnxruntime_providers_*.so")) if folder else ():
        with suppress(OSError, DataError):
            wanted = tuple(name for name in needed_libraries(path) if GPU_LIBRARY.match(name))
            if wanted:
                found[path.name] = wanted
    return found


def libraries(site: Iterable[Path]) -> dict[str, str]:
    """NVIDIA's libraries by file name: of wheels, of ``LD_LIBRARY_PATH``, of the loader's cache, of usual folders."""
    found: dict[str, str] = {}
    for line in _loader_cache():
        name, _, place = line.strip().partition(" ")
        found.setdefault(name, place.rpartition("=> ")[2])
    folders = [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(":") if entry]
    folders += [folder for root in site for pattern in PIP_FOLDERS for folder in root.glob(pattern)]
    folders += [Path(entry) for entry in SYSTEM_FOLDERS]
    for folder in folders:
        with suppress(OSError):
            for path in folder.iterdir():
                found.setdefault(path.name, str(path))
    return {name: path for name, path in sorted(found.items()) if GPU_LIBRARY.match(name)}


def throttled() -> int:
    """How often cores were slowed down for heat."""
    counts = _each("/sys/devices/system/cpu", "cpu[0-9]*/thermal_throttle/core_throttle_count")
    return sum(int(count) for count in counts if count.isdigit())


def temperature_c() -> float | None:
    """Of the hottest zone that says one."""
    zones = _each("/sys/class/thermal", "thermal_zone*/temp")
    values = [int(text) / 1000 for text in zones if re.fullmatch(r"-?\d+", text)]
    sensible = [value for value in values if 0 < value < 150]
    return max(sensible) if sensible else None


def resident_bytes() -> int | None:
    """Memory that this process holds; None where it cannot be read."""
    parts = _text("/proc/self/statm").split()
    return int(parts[1]) * os.sysconf("SC_PAGE_SIZE") if len(parts) > 1 else None


def _providers() -> tuple[str, ...]:
    try:
        return providers()
    except Exception:  # one that is installed and does not load: listed in unloadable
        return ()


def _telemetry_traces() -> str:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = cache / "Microsoft" / "DeveloperTools" / ".onnxruntime"
    return str(folder) if folder.exists() else ""


def _package_folder(module: str) -> Path | None:
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def _loader_cache() -> list[str]:
    for program in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        if os.access(program, os.X_OK):
            with suppress(OSError, subprocess.SubprocessError):
                run = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=10, check=False)
                return [line for line in run.stdout.splitlines() if "=>" in line]
    return []


def _driver_cuda() -> tuple[int, int] | None:
    """The driver's own answer; ``cuDriverGetVersion`` needs no device and no context."""
    for name in ("libcuda.so.1", "/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1"):
        with suppress(OSError, AttributeError):
            version = ctypes.c_int(0)
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
                return version.value // 1000, version.value % 1000 // 10
    return None


def _processor_flags() -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _cores() -> float:
    mask = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        return min(mask, int(quota) / int(period))
    return mask


def _memory_free() -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _synchronised() -> bool | None:
    folder = Path("/run/systemd/timesync")
    return (folder / "synchronized").exists() if folder.is_dir() else None


def _each(folder: str, pattern: str) -> tuple[str, ...]:
    return tuple(text for path in sorted(Path(folder).glob(pattern)) if (text := _text(path).strip()))


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def examine_disk(folder: Path) -> DiskInfo:
    """Write and sync a small file there a few hundred times; it is removed again."""
    folder = folder.absolute()
    kind = _kind(folder)
    try:
        free = shutil.disk_usage(folder).free
        sync_s = tuple(_syncs(folder))
    except OSError as error:
        return DiskInfo(folder=str(folder), kind=kind, free_bytes=0, sync_s=(), problem=error.strerror or str(error))
    return DiskInfo(folder=str(folder), kind=kind, free_bytes=free, sync_s=sync_s)


def _syncs(folder: Path) -> Iterator[float]:
    descriptor, name = tempfile.mkstemp(prefix=".alpose-doctor-", dir=folder)
    try:
        began = time.perf_counter()
        for _ in range(ROUNDS):
            before = time.perf_counter()
            os.write(descriptor, BLOCK)
            os.fsync(descriptor)
            yield time.perf_counter() - before
            if time.perf_counter() - began > MOST_S:
                break
    finally:
        os.close(descriptor)
        os.unlink(name)


def _kind(folder: Path) -> str:
    """The type of the file system that holds a folder: of the longest mount point above it."""
    try:
        mounts = Path("/proc/mounts").read_text(errors="replace").splitlines()
        folder = folder.resolve()
    except OSError:
        return ""
    best = ("", "")
    for line in mounts:
        parts = line.split()
        if len(parts) < 3:
            continue
        point = parts[1].replace("\\040", " ")
        if (folder == Path(point) or Path(point) in folder.parents) and len(point) >= len(best[0]):
            best = (point, parts[2])
    return best[1]


# --- ELF: which libraries a shared library needs, read from its file. Nothing is loaded, and no tool is called.
#
# The layout is that of https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html, chapters 4 and 5.

PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB, DT_STRSZ = 0, 1, 5, 10
MAX_TABLE_BYTES = 1 << 22
"""Far beyond any real table."""


def needed_libraries(path: Path) -> tuple[str, ...]:
    """Names of the libraries that the loader must find for a shared library, such as ``libnvinfer.so.10``.

    Raises:
        DataError: not an ELF file, a damaged one, or one without a dynamic section.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            return _needed(file)
        except (struct.error, DataError, OverflowError) as error:
            raise DataError(f"{path} is not a readable shared library: {error}") from error


def _needed(file: BinaryIO) -> tuple[str, ...]:
    head = file.read(64)
    if head[:4] != b"\x7fELF" or len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
        raise DataError("it does not begin as an ELF file does")
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"
    start = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", head, 32 if wide else 28)[0]
    size, count = struct.unpack_from(f"{order}HH", head, 54 if wide else 42)
    form = struct.Struct(f"{order}{'IIQQQQQQ' if wide else 'IIIIIIII'}")
    if size < form.size:
        raise DataError(f"its program headers have {size} bytes each, and {form.size} are needed")
    table = _part(file, start, size * count)
    # (kind, offset in the file, address in memory, bytes); the flags stand second in a wide header, later in a narrow one.
    places = (0, 2, 3, 5) if wide else (0, 1, 2, 4)
    segments = [[form.unpack_from(table, n * size)[place] for place in places] for n in range(count)]
    dynamic = next((segment for segment in segments if segment[0] == PT_DYNAMIC), None)
    if dynamic is None:
        raise DataError("it has no dynamic section")
    pair = struct.Struct(f"{order}{'qQ' if wide else 'iI'}")
    content = _part(file, dynamic[1], dynamic[3] - dynamic[3] % pair.size)
    entries = list(itertools.takewhile(lambda entry: entry[0] != DT_NULL, pair.iter_unpack(content)))
    single = dict(entries)
    if DT_STRTAB not in single or DT_STRSZ not in single:
        raise DataError("its dynamic section has no table of names")
    address = single[DT_STRTAB]
    for kind, offset, first, length in segments:
        if kind == PT_LOAD and first <= address < first + length:
            names = _part(file, address - first + offset, single[DT_STRSZ])
            return tuple(_name(names, value) for tag, value in entries if tag == DT_NEEDED)
    raise DataError(f"the address {address:#x} lies in no part of it")


def _part(file: BinaryIO, offset: int, size: int) -> bytes:
    if not 0 <= size <= MAX_TABLE_BYTES or offset >= 1 << 40:  # beyond any library, and before what cannot be sought
        raise DataError(f"a table of {size} bytes at {offset}")
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise DataError(f"it ends at {offset + len(content)} where {offset + size} bytes are needed")
    return content


def _name(names: bytes, start: int) -> str:
    end = names.find(b"\0", start)
    if not 0 <= start < len(names) or end < 0:
        raise DataError(f"a name at {start} of {len(names)} bytes")
    return names[start:end].decode(errors="replace")
