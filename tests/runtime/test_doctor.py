"""Each bad case that the doctor is there for, made by hand, and the line that it prints to fix it."""

from __future__ import annotations

import itertools
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime.bundle import Bundle
from alpose.runtime.doctor import Environment, Finding, Report, examine, summary
from alpose.runtime.doctor.checks import check
from alpose.runtime.doctor.facts import DiskInfo, examine_disk, libraries, needed_libraries, provider_needs
from alpose.runtime.doctor.trials import SoakResult, check_bundle, check_engines, check_queue, check_soak, soak
from alpose.runtime.engines.catalog import EngineKind, register, unregister
from alpose.runtime.errors import DataError

from ..fakes import scripted as fakes

DISK = DiskInfo(folder="/var/lib/alpose", kind="ext4", free_bytes=50 << 30, sync_s=(0.001,) * 90 + (0.01,) * 10)
SOUND = Environment(
    packages={"alpose": "0.1.0", "numpy": "2.0", "onnxruntime": "1.31.1", "simplejpeg": "1.9.0"},
    loadable=frozenset({"onnxruntime", "simplejpeg", "pillow", "pynacl", "prometheus-client", "opencv-python-headless"}),
    providers=("cpu",), memory_free_bytes=4 << 30, disk=DISK, flags=frozenset({"avx2", "avx512_vnni", "avx512_bf16"}),
)  # fmt: skip
GPU = replace(
    SOUND, gpu=True, driver_cuda=(13, 0), providers=("tensorrt", "cuda", "cpu"),
    packages={"alpose": "0.1.0", "numpy": "2.0", "onnxruntime-gpu": "1.31.1", "simplejpeg": "1.9.0"},
    needs={"libonnxruntime_providers_tensorrt.so": ("libnvinfer.so.10", "libnvonnxparser.so.10", "libcudart.so.13"),
           "libonnxruntime_providers_cuda.so": ("libcudart.so.13", "libcudnn.so.9")},
    libraries={name: f"/usr/lib/{name}" for name in
               ("libnvinfer.so.10", "libnvonnxparser.so.10", "libcudart.so.13", "libcudnn.so.9")},
)  # fmt: skip


def without(libraries: Any, *names: str, **more: str) -> dict[str, str]:
    return {name: path for name, path in libraries.items() if name not in names} | dict.fromkeys(more.values(), "/x")


def only(findings: Any, name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    assert isinstance(found, Finding)
    return found


def bad(findings: Any) -> list[str]:
    return [finding.name for finding in findings if finding.state != "ok"]


def disk(**changes: Any) -> Environment:
    return replace(SOUND, disk=replace(DISK, **changes))


def test_a_sound_machine_has_nothing_to_fix() -> None:
    for here in (SOUND, GPU):
        assert bad(check(here)) == []


CASES: list[tuple[str, Environment, str, str, str]] = [
    ("python", replace(SOUND, python=(3, 9, 2)), "python", "failed", ""),
    ("sqlite", replace(SOUND, sqlite=(3, 22, 0)), "sqlite", "failed", ""),
    ("both onnxruntimes", replace(GPU, packages={**GPU.packages, "onnxruntime": "1.31.1"}), "onnxruntime", "failed",
     "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu==1.31.1"),
    ("both without a GPU", replace(SOUND, packages={**SOUND.packages, "onnxruntime-gpu": "1.30"}), "onnxruntime",
     "failed", "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime==1.31.1"),
    ("no engine", replace(SOUND, packages={}, loadable=SOUND.loadable - {"onnxruntime"}, providers=()), "onnxruntime",
     "failed", "pip install 'alpose[cpu]'"),
    ("no engine beside a GPU", replace(GPU, packages={}, loadable=frozenset(), providers=()), "onnxruntime", "failed",
     "pip install 'alpose[gpu]'"),
    ("unloadable engine", replace(SOUND, unloadable={"onnxruntime": "libfoo.so: cannot open"}), "onnxruntime", "failed",
     "pip install --force-reinstall onnxruntime"),
    ("CPU build beside a GPU", replace(GPU, packages=SOUND.packages, providers=("cpu",), needs={}), "onnxruntime",
     "warning", "pip uninstall -y onnxruntime && pip install 'alpose[gpu]'"),
    ("CPU build on a Jetson", replace(GPU, packages=SOUND.packages, providers=("cpu",), needs={}, jetson="# R36"),
     "onnxruntime", "warning", "pip install 'alpose[tensorrt]' && alpose-export engine BUNDLE"),
    ("telemetry", replace(SOUND, telemetry_off=False), "telemetry", "failed", "export ORT_DISABLE_TELEMETRY=1"),
    ("TensorRT 11 for a provider that wants 10",
     replace(GPU, libraries=without(GPU.libraries, "libnvinfer.so.10", "libnvonnxparser.so.10", a="libnvinfer.so.11",
                                    b="libnvonnxparser.so.11")),
     "tensorrt libraries", "failed", "pip install 'tensorrt-cu13>=10.13,<11'"),
    ("no TensorRT", replace(GPU, libraries=without(GPU.libraries, "libnvinfer.so.10", "libnvonnxparser.so.10")),
     "tensorrt libraries", "failed", "pip install 'tensorrt-cu13>=10.13,<11'"),
    ("no cuDNN", replace(GPU, libraries=without(GPU.libraries, "libcudnn.so.9")), "cuda libraries", "failed",
     "pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1'"),
    ("CUDA 12 linked", replace(GPU, driver_cuda=(12, 6), libraries={}, needs={
        "libonnxruntime_providers_tensorrt.so": ("libnvinfer.so.10", "libcudart.so.12")}), "tensorrt libraries", "failed",
     "pip install 'tensorrt-cu12>=10,<11' 'onnxruntime-gpu[cuda,cudnn]==1.31.1'"),
    ("TensorRT too old", replace(SOUND, packages={**SOUND.packages, "tensorrt": "8.6.1"}), "tensorrt", "failed",
     "pip install 'tensorrt>=10.3,<12'"),
    ("TensorRT without cuda-python", replace(GPU, packages={**GPU.packages, "tensorrt": "11.4.0"}), "tensorrt", "failed",
     "pip install 'alpose[tensorrt]'"),
    ("no driver", replace(GPU, driver_cuda=None), "driver", "failed",
     "docker run --gpus all …  (or install NVIDIA's driver)"),
    ("cuda-python beyond the driver", replace(GPU, driver_cuda=(12, 6), packages={**GPU.packages, "cuda-python": "13.1.0"},
                                              needs={}), "driver", "failed", "pip install 'cuda-python<13'"),
    ("onnxruntime beyond the driver", replace(GPU, driver_cuda=(12, 6)), "driver", "failed",
     "pip install 'alpose[tensorrt]' 'cuda-python<13'"),
    ("no simplejpeg", replace(SOUND, loadable=SOUND.loadable - {"simplejpeg"}), "jpeg", "warning",
     "pip install 'simplejpeg>=1.7'"),
    ("no encoder", replace(SOUND, loadable=frozenset({"onnxruntime"})), "jpeg", "warning",
     "pip install 'simplejpeg>=1.7'"),
    ("broken pynacl", replace(SOUND, unloadable={"pynacl": "no _sodium"}), "crypto", "warning",
     "pip install --force-reinstall pynacl"),
    ("never set clock", replace(SOUND, wall_s=3600.0), "clock", "failed", "sudo timedatectl set-ntp true"),
    ("jumping clock", replace(SOUND, clock_rate=40.0), "clock", "warning", ""),
    ("clock alone", replace(SOUND, synchronised=False), "clock", "warning", "sudo timedatectl set-ntp true"),
    ("slow cores", replace(SOUND, governors=("powersave", "powersave"), scaling_drivers=("tegra194",)), "processor",
     "warning", ""),
    ("half a core", replace(SOUND, cores=0.5), "processor", "warning", "docker run --cpus 2 …"),
    ("a processor before AVX2", replace(SOUND, flags=frozenset({"sse4_2"})), "instructions", "warning", ""),
    ("throttled", replace(SOUND, throttled=12), "heat", "warning", ""),
    ("hot", replace(SOUND, temperature_c=92.0), "heat", "warning", ""),
    ("no memory", replace(SOUND, memory_free_bytes=100 << 20), "memory", "warning", ""),
    ("network disk", disk(kind="nfs4"), "file system", "warning", ""),
    ("disk in memory", disk(kind="tmpfs"), "file system", "warning", ""),
    ("no journal", disk(kind="vfat"), "file system", "warning", ""),
    ("container", disk(kind="overlay"), "file system", "warning", ""),
    ("little room", disk(free_bytes=200 << 20), "free space", "warning", ""),
    ("full", disk(free_bytes=10 << 20), "free space", "failed", "df -h /var/lib/alpose"),
    ("a disk that lies", disk(sync_s=(2e-6,) * 100), "sync", "warning", ""),
    ("slow disk", disk(sync_s=(0.01,) * 90 + (3.0,) * 10), "sync", "warning", ""),
    ("read-only", disk(problem="Read-only file system", sync_s=()), "disk", "failed", "findmnt -T /var/lib/alpose"),
    ("no folder", disk(problem="No such file or directory", sync_s=()), "disk", "failed", "mkdir -p /var/lib/alpose"),
    ("no room", disk(problem="No space left on device", sync_s=()), "disk", "failed", "df -h /var/lib/alpose"),
    ("forbidden", disk(problem="Permission denied", sync_s=()), "disk", "failed", "ls -ld /var/lib/alpose"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("here", "name", "state", "fix"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_what_is_wrong_is_named_with_the_line_that_fixes_it(here: Environment, name: str, state: str, fix: str) -> None:
    findings = list(check(here))
    found = only(findings, name)
    assert found.state == state
    assert found.meaning
    if fix:
        assert found.fix == fix
    if here.packages == SOUND.packages and name in ("clock", "processor", "heat", "memory", "file system", "sync"):
        assert bad(findings) == [name]


@pytest.mark.parametrize(
    ("system", "flags", "says"),
    [
        ("Linux x86_64", {"avx2"}, "wide vectors.*without int8 dot products, bf16"),
        ("Linux x86_64", {"avx2", "avx_vnni"}, "int8 dot products .avx_vnni.; without bf16"),
        ("Linux aarch64", {"asimd", "asimddp", "bf16"}, "int8 dot products .asimddp., bf16"),
    ],
)
def test_what_hangs_on_the_processor_is_named(system: str, flags: set[str], says: str) -> None:
    found = only(check(replace(SOUND, system=system, flags=frozenset(flags))), "instructions")
    assert found.state == "ok"
    assert re.search(says, found.found)
    assert ("int8 bundles" in found.meaning) is not (flags & {"avx_vnni", "asimddp"} != set())
    assert "instructions" not in {each.name for each in check(replace(SOUND, system="Linux riscv64"))}


def test_the_provider_that_wants_another_tensorrt_says_which_and_what_is_there() -> None:
    here = replace(GPU, libraries=without(GPU.libraries, "libnvinfer.so.10", a="libnvinfer.so.11"))
    found = only(check(here), "tensorrt libraries")
    assert "it wants libnvinfer.so.10, libnvinfer.so.11 is installed" in found.found
    assert only(check(replace(here, gpu=False)), "tensorrt libraries").state == "ok", "no GPU, nothing lost"


def test_an_optional_package_that_is_absent_is_no_fault_but_its_line_is_there() -> None:
    found = only(check(replace(SOUND, loadable=frozenset({"onnxruntime", "simplejpeg"}))), "crypto")
    assert (found.state, found.fix) == ("ok", "pip install 'alpose[crypto]'")


def test_the_governor_called_powersave_that_follows_the_load_is_fine() -> None:
    here = replace(SOUND, governors=("powersave",), scaling_drivers=("intel_pstate",))
    assert bad(check(here)) == []


def test_a_real_disk_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    facts = examine_disk(tmp_path)
    assert len(facts.sync_s) > 1
    assert min(facts.sync_s) > 0
    assert facts.free_bytes > 0
    assert list(tmp_path.iterdir()) == []
    assert "No such file" in examine_disk(tmp_path / "absent").problem


def test_the_last_line_names_what_to_look_at() -> None:
    assert summary(Report(tuple(check(SOUND)))).startswith("doctor: ")
    assert "FAILED" not in summary(Report(tuple(check(SOUND))))
    here = replace(SOUND, wall_s=3600.0, synchronised=False, temperature_c=92.0)
    assert re.fullmatch(r"doctor: 1 FAILED \(clock\), 1 warning \(heat\), \d+ ok", summary(Report(tuple(check(here)))))


def test_what_failed_or_is_worse_than_need_be_says_what_to_do() -> None:
    """A command to copy, or words that tell what to do."""
    for _, here, name, *_ in CASES:
        found = only(check(here), name)
        advice = r"[Rr]un|[Pp]ut|[Mm]ake|[Uu]se|[Kk]eep|end other|[Uu]pdate|needs|better cooling|Switch|older than AVX2"
        assert found.fix or re.search(advice, found.meaning), f"{name}: {found.found}: {found.meaning}"


# --- ELF -------------------------------------------------------------------------------------------------------------


def elf(needed: tuple[str, ...], *, wide: bool = True, order: str = "<") -> bytes:
    """A shared library of headers alone: two program headers, the dynamic section, and its names."""
    names = bytearray(b"\0")
    place = {}
    for name in needed:
        place[name] = len(names)
        names += name.encode() + b"\0"
    address = 0x4000  # where the loader would put the file: offsets and addresses differ, as in real ones
    header, program, entry = (64, 56, "qQ") if wide else (52, 32, "iI")
    at_names = header + 2 * program
    tags = [(1, place[name]) for name in needed] + [(5, address + at_names), (10, len(names)), (0, 0), (1, 999999)]
    dynamic = b"".join(struct.pack(order + entry, *tag) for tag in tags)
    at_dynamic = at_names + len(names)
    end = at_dynamic + len(dynamic)
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    if wide:
        head = ident + struct.pack(f"{order}HHIQQQIHHHHHH", 3, 62, 1, 0, header, 0, 0, 64, program, 2, 0, 0, 0)
        load = struct.pack(f"{order}IIQQQQQQ", 1, 5, 0, address, address, end, end, 4096)
        dyn = struct.pack(f"{order}IIQQQQQQ", 2, 6, at_dynamic, address + at_dynamic, 0, len(dynamic), len(dynamic), 8)
    else:
        head = ident + struct.pack(f"{order}HHIIIIIHHHHHH", 3, 40, 1, 0, header, 0, 0, 52, program, 2, 0, 0, 0)
        load = struct.pack(f"{order}IIIIIIII", 1, 0, address, address, end, end, 5, 4096)
        dyn = struct.pack(f"{order}IIIIIIII", 2, at_dynamic, address + at_dynamic, 0, len(dynamic), len(dynamic), 6, 8)
    return head + load + dyn + bytes(names) + dynamic


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_what_a_library_needs_is_read_from_its_file(tmp_path: Path, wide: bool, order: str) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(elf(("libnvinfer.so.10", "libc.so.6"), wide=wide, order=order))
    assert needed_libraries(path) == ("libnvinfer.so.10", "libc.so.6")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at ELF files of this system")
def test_a_real_library_is_read_as_the_loader_reads_it() -> None:
    import numpy.linalg

    (path,) = Path(numpy.linalg.__file__).parent.glob("_umath_linalg*.so")
    assert any(name.startswith("libc.so") for name in needed_libraries(path))


def test_a_damaged_library_is_an_error_and_nothing_worse(tmp_path: Path) -> None:
    whole = elf(("libnvinfer.so.10",))
    path = tmp_path / "lib.so"
    rng = np.random.default_rng(0)
    for content in (b"", b"MZ", whole[:40], whole[:100], whole[:-20]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"lib\.so"):
            needed_libraries(path)
    for _ in range(300):
        spoiled = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            spoiled[place] = rng.integers(256)
        path.write_bytes(bytes(spoiled))
        with suppress(DataError):
            needed_libraries(path)


def test_providers_and_libraries_are_found_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    capi = tmp_path / "onnxruntime" / "capi"
    capi.mkdir(parents=True)
    (capi / "libonnxruntime_providers_tensorrt.so").write_bytes(
        elf(("libnvinfer.so.10", "libcudart.so.13", "libc.so.6"))
    )
    (capi / "libonnxruntime_providers_shared.so").write_bytes(elf(("libc.so.6",)))
    (capi / "libonnxruntime_providers_cuda.so").write_bytes(b"damaged")
    assert provider_needs(tmp_path / "onnxruntime") == {
        "libonnxruntime_providers_tensorrt.so": ("libnvinfer.so.10", "libcudart.so.13")
    }
    site, loose = tmp_path / "site-packages", tmp_path / "loose"
    for folder, name in ((site / "tensorrt_libs", "libnvinfer.so.11"), (site / "nvidia/cudnn/lib", "libcudnn.so.9"),
                         (loose, "libcudart.so.13"), (loose, "libother.so.1")):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(loose))
    found = libraries([site])
    assert {"libnvinfer.so.11", "libcudnn.so.9", "libcudart.so.13"} <= found.keys()
    assert "libother.so.1" not in found
    here = replace(GPU, needs=provider_needs(tmp_path / "onnxruntime"), libraries=found)
    assert only(check(here), "tensorrt libraries").fix == "pip install 'tensorrt-cu13>=10.13,<11'"


# --- engines, queue, soak ----------------------------------------------------------------------------------------------


Scripted: Any = fakes.Scripted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(fakes.write_bundle(tmp_path / "driver.alpose"))


def engines(folder: Path, here: Environment, make: Callable[..., Any]) -> list[Finding]:
    return list(check_engines(Bundle.open(folder), here, make))


def test_every_provider_is_started_and_asked(folder: Path) -> None:
    asked: list[str] = []

    def make(bundle: Bundle, provider: str) -> Any:
        asked.append(provider)
        return fakes.Scripted()

    findings = engines(folder, GPU, make)
    assert asked == ["tensorrt", "cuda", "cpu"]
    assert bad(findings) == []
    assert "golden frames answered rightly" in findings[0].found


def test_an_engine_that_was_registered_is_tried_too(folder: Path) -> None:
    wrong: list[bool] = [False]
    closed: list[bool] = []

    class Mine(Scripted):  # type: ignore[misc]
        def close(self) -> None:
            closed.append(True)

        def __call__(self, frames: Any) -> Any:
            return super().__call__(255 - frames if wrong[0] else frames)

    def absent(bundle: Bundle) -> str | None:
        return "the chip is not there" if wrong == [] else None

    def broken(bundle: Bundle, argument: str, threads: int) -> Any:
        raise RuntimeError("the chip is busy")

    with only_registered(EngineKind(name="mine", summary="", open=lambda *_: Mine(), absent=absent)):
        assert only(engines(folder, SOUND, lambda *_: Scripted()), "engine mine").state == "ok"
        wrong[0] = True
        assert only(engines(folder, SOUND, lambda *_: Scripted()), "engine mine").state == "failed"
        assert closed == [True, True]
        wrong.clear()
        assert only(engines(folder, SOUND, lambda *_: Scripted()), "engine mine").found == "the chip is not there"
    with only_registered(EngineKind(name="mine", summary="", open=broken)):
        assert only(engines(folder, SOUND, lambda *_: Scripted()), "engine mine").found == "the chip is busy"


@contextmanager
def only_registered(kind: EngineKind) -> Iterator[None]:
    register(kind)
    try:
        yield
    finally:
        unregister(kind.name)


def test_an_engine_that_answers_wrongly_is_shown_with_its_deviation(folder: Path) -> None:
    class Wrong(Scripted):  # type: ignore[misc]
        def __call__(self, frames: Any) -> Any:
            return super().__call__(255 - frames)

    (found,) = engines(folder, SOUND, lambda *_: Wrong())
    assert found.state == "failed"
    assert "FAILED" in found.found
    assert "keypoints" in found.found


@pytest.mark.parametrize(("gpu", "state"), [(True, "failed"), (False, "ok")])
def test_a_gpu_provider_that_does_not_start_matters_where_there_is_a_gpu(folder: Path, gpu: bool, state: str) -> None:
    def make(bundle: Bundle, provider: str) -> Any:
        if provider == "cuda":
            raise RuntimeError("libcudnn.so.9: cannot open shared object file\nmore")
        return fakes.Scripted()

    findings = engines(folder, replace(GPU, gpu=gpu, providers=("cuda", "cpu")), make)
    assert [finding.state for finding in findings] == [state, "ok"]
    if gpu:
        assert findings[0].found == "libcudnn.so.9: cannot open shared object file"


def test_without_a_bundle_a_provider_must_at_least_compute() -> None:
    pytest.importorskip("onnxruntime")
    assert [finding.state for finding in check_engines(None, SOUND)] == ["ok"]


def test_a_spoiled_bundle_names_the_file(folder: Path) -> None:
    assert check_bundle(folder)[1].state == "ok"
    (folder / "model.onnx").write_bytes(b"other")
    bundle, found = check_bundle(folder)
    assert bundle is None
    assert (found.state, "model.onnx" in found.found) == ("failed", True)
    assert check_bundle(folder / "absent")[1].state == "failed"
    photos = folder.parent / "photos"
    photos.mkdir()
    (photos / "wedding.jpg").write_bytes(b"x")
    assert "is not a bundle" in check_bundle(photos)[1].found
    assert "wedding" not in check_bundle(photos)[1].found, "nobody is told to remove their own files"


def test_a_queue_that_is_empty_or_whose_folder_is_not_there_is_no_fault_of_the_queue(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (found,) = check_queue(tmp_path / "empty.db")
    assert (found.state, "a monitor makes a queue of it" in found.found) == ("ok", True)
    assert list(check_queue(tmp_path / "absent" / "q.db")) == [], "the disk's finding says it"


def test_a_bundle_without_calibration_is_a_warning(tmp_path: Path) -> None:
    assert check_bundle(fakes.write_bundle(tmp_path / "raw.alpose", calibrated=False))[1].state == "warning"


def test_a_damaged_queue_is_shown_with_the_line_that_saves_it(tmp_path: Path) -> None:
    from alpose.runtime.queue import Queue

    path = tmp_path / "flagged.db"
    assert [finding.state for finding in check_queue(path)] == ["ok"]
    Queue(path).close()
    assert [finding.state for finding in check_queue(path)] == ["ok"]
    path.write_bytes(path.read_bytes()[:200] + os.urandom(5000))
    (found,) = check_queue(path)
    assert found.state == "failed"
    assert found.fix == f"alpose-monitor queue recover {path} --into {tmp_path / 'flagged-recovered.db'}"


def ticking(*durations_s: float) -> Callable[[], float]:
    """A clock for a soak: each step lasts as long as the next of these, again and again; looking costs nothing."""
    now, turn, working = 0.0, itertools.cycle(durations_s), [False]

    def clock() -> float:
        nonlocal now
        if working[0]:
            now += next(turn)
            working[0] = False
        return now

    clock.work = lambda: working.__setitem__(0, True)  # type: ignore[attr-defined]
    return clock


def test_a_soak_measures_what_its_clock_says() -> None:
    clock: Any = ticking(0.01)
    facts = soak(clock.work, 1.0, clock=clock, memory=lambda: 1000)
    assert facts.frames == 100
    assert facts.seconds == pytest.approx(1.0)
    assert (facts.p50_s, facts.p999_s) == pytest.approx((0.01, 0.01))
    assert facts.drift == pytest.approx(1.0)
    assert facts.growth_bytes == 0
    assert check_soak(facts).state == "ok"


def test_a_soak_shows_latency_that_rises_and_memory_that_grows() -> None:
    durations = [0.01] * 50 + [0.02] * 50
    clock: Any = ticking(*durations)
    grown = itertools.count(0, 64 << 20)
    facts = soak(clock.work, 1.5, clock=clock, memory=lambda: next(grown))
    assert facts.drift == pytest.approx(2.0)
    found = check_soak(facts)
    assert found.state == "warning"
    assert "longer and longer" in found.meaning
    assert "memory grows" in found.meaning


def test_throttling_during_a_soak_is_told() -> None:
    calm = SoakResult(seconds=60, frames=600, p50_s=0.01, p99_s=0.02, p999_s=0.03, drift=1.0, growth_bytes=0,
                     warmer_c=20.0, temperature_c=70.0, throttled=0)  # fmt: skip
    assert check_soak(calm).state == "ok"
    assert check_soak(replace(calm, throttled=3)).state == "warning"


def test_a_report_passes_with_warnings_and_its_fixing_lines_can_be_copied_whole() -> None:
    line = "pip install " + "x" * 200
    report = Report((Finding("a", "ok", "fine"), Finding("b", "warning", "so-so " * 40, "meaning", line)))
    assert report.passed
    assert f"→ {line}" in str(report)
    assert max(map(len, str(report).splitlines()[:4])) <= 118
    assert not Report((*report.findings, Finding("c", "failed", "x"))).passed
    assert json.loads(json.dumps(report.to_json()))["findings"][1]["mend"] == line


def test_the_doctor_of_this_machine_runs_to_its_end(tmp_path: Path) -> None:
    findings = list(examine(queue=tmp_path / "flagged.db", here=SOUND))
    assert {"python", "jpeg", "clock", "sync", "queue", "engine cpu"} <= {finding.name for finding in findings}
    here = Environment.here()
    assert here.packages["numpy"] == np.__version__
    assert here.cores > 0


def test_the_command_says_by_its_exit_status_whether_anything_failed(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    run = subprocess.run([sys.executable, "-m", "alpose.runtime", "doctor", str(tmp_path / "absent.alpose"), "--json"],
                         capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
    assert run.returncode == 1, run.stderr
    report = json.loads(run.stdout)
    assert not report["passed"]
    assert only([Finding(*one.values()) for one in report["findings"]], "bundle").state == "failed"
