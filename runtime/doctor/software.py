"""Are the packages there, do they load, and do their libraries fit each other and the driver? Pure functions of facts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .environment import Environment
from .report import Finding, failed, ok, warning

OLDEST_SQLITE = (3, 31, 0)
TENSORRT = (10, 12)
"""Major versions of TensorRT that are supported: from the first, before the second."""

OPTIONAL = {
    "pynacl": ("signed bundles and sealed frames", "crypto"),
    "prometheus-client": ("metrics by HTTP (--metrics-port)", "metrics"),
    "opencv-python-headless": ("alpose-monitor run", "camera"),
}
"""Distribution → what it is for, and the extra that brings it."""

_ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


def check_software(here: Environment) -> tuple[Finding, ...]:
    """Every finding about packages, libraries and driver."""
    return (*_versions(here), _onnxruntime(here), *_linkage(here), *_tensorrt(here), *_driver(here),
            _encoder(here), *_optional(here))  # fmt: skip


def _versions(here: Environment) -> Iterator[Finding]:
    version = ".".join(map(str, here.python))
    if here.python < (3, 10, 0):
        yield failed("python", version, "alpose needs Python 3.10 or newer", "python3.10 -m venv .venv")
    else:
        yield ok("python", f"{version} on {here.system}" + (f", {here.jetson}" if here.jetson else ""))
    yield ok(
        "alpose", ", ".join(f"{name} {here.packages[name]}" for name in ("alpose", "numpy") if name in here.packages)
    )
    sqlite = ".".join(map(str, here.sqlite))
    if here.sqlite < OLDEST_SQLITE:
        yield failed("sqlite", sqlite, "the queue needs SQLite 3.31 or newer; it comes with Python or the system")
    else:
        yield ok("sqlite", sqlite)


def _onnxruntime(here: Environment) -> Finding:
    found = [name for name in _ONNXRUNTIMES if name in here.packages]
    said = ", ".join(f"{name} {here.packages[name]}" for name in found)
    if len(found) > 1:
        keep = "onnxruntime-gpu" if here.gpu and "onnxruntime-gpu" in found else found[0]
        return failed(
            "onnxruntime", f"{said}: {len(found)} at once",
            "they are installed into the same folder and overwrite each other: which one runs is chance, and a GPU is "
            "lost without a word",
            f"pip uninstall -y {' '.join(found)} && pip install {keep}=={here.packages[keep]}",
        )  # fmt: skip
    if "onnxruntime" in here.unloadable:
        wanted = found[0] if found else "onnxruntime"
        return failed("onnxruntime", f"{said or 'installed'}, and does not load: {here.unloadable['onnxruntime']}",
                      "no bundle runs on it", f"pip install --force-reinstall {wanted}")  # fmt: skip
    if "onnxruntime" not in here.loadable:
        extra = "gpu" if here.gpu else "cpu"
        if "tensorrt" in here.packages:
            return warning("onnxruntime", "not installed", "only engines that TensorRT builds can run; golden frames "
                           "cannot be compared with a second engine", f"pip install 'alpose[{extra}]'")  # fmt: skip
        return failed("onnxruntime", "not installed", "no bundle runs without an engine",
                      f"pip install 'alpose[{extra}]'")  # fmt: skip
    said = said or "installed without pip's knowledge"
    offered = f"{said}; built with {', '.join(here.providers) or 'no provider'}"
    if here.gpu and not {"cuda", "tensorrt"} & set(here.providers):
        mend = f"pip uninstall -y {' '.join(found) or 'onnxruntime'} && pip install 'alpose[gpu]'"
        if here.jetson:
            mend = "pip install 'alpose[tensorrt]' && alpose-export engine BUNDLE"
        return warning("onnxruntime", offered, "there is a GPU, and this build cannot use it", mend)
    return ok("onnxruntime", offered)


def _linkage(here: Environment) -> Iterator[Finding]:
    """What every provider was linked against, held against what is there."""
    for file, needs in here.needs.items():
        provider = re.sub(r"^libonnxruntime_providers_|\.so$", "", file)
        name = f"{provider} libraries"
        missing = [need for need in needs if need not in here.libraries]
        if not missing:
            yield ok(name, f"{file}: all {len(needs)} libraries of NVIDIA are here")
            continue
        wrong = {need: _others(need, here) for need in missing}
        said = "; ".join(
            f"it wants {need}, " + (f"{', '.join(there)} is installed" if there else "which is not installed")
            for need, there in wrong.items()
        )
        meaning = (
            f"ONNX Runtime's {provider} provider does not load, and ONNX Runtime would go on with another one; alpose "
            "refuses that"
        )
        if not here.gpu:  # nothing is lost, and nothing needs mending
            yield ok(name, f"{file} cannot load here, and there is no GPU that could need it")
        else:
            yield failed(name, f"{file}: {said}", meaning, _mend_libraries(needs, missing, here))


def _mend_libraries(needs: tuple[str, ...], missing: list[str], here: Environment) -> str:
    """The pip line that brings what is missing, in the versions that were linked against."""
    cuda = _wanted(needs, "libcudart") or (13 if here.driver_cuda and here.driver_cuda[0] >= 13 else 12)
    lines = []
    major = _wanted(tuple(missing), "libnvinfer") or _wanted(tuple(missing), "libnvonnxparser")
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
        yield failed("tensorrt", f"{version}, without cuda-python",
                     "alpose runs TensorRT engines through cuda-python", "pip install 'alpose[tensorrt]'")  # fmt: skip
    else:
        yield ok("tensorrt", f"{version}, cuda-python {bindings}")


def _driver(here: Environment) -> Iterator[Finding]:
    if here.driver_cuda is None:
        if here.gpu:
            yield failed("driver", "there is a GPU, and libcuda.so.1 does not load",
                         "nothing can use the GPU: the driver is missing, or a container was started without it",
                         "docker run --gpus all …  (or install NVIDIA's driver)")  # fmt: skip
        else:
            yield ok("driver", "no NVIDIA GPU")
        return
    reached = ".".join(map(str, here.driver_cuda))
    newest = here.driver_cuda[0]
    bindings = here.packages.get("cuda-python") or here.packages.get("cuda-bindings")
    if bindings and bindings.split(".")[0].isdigit() and int(bindings.split(".")[0]) > newest:
        yield failed("driver", f"reaches CUDA {reached}; cuda-python is {bindings}",
                     "TensorRT engines cannot run: cuda-python is newer than the driver",
                     f"pip install 'cuda-python<{newest + 1}'")  # fmt: skip
        return
    wanted = [cuda for needs in here.needs.values() if (cuda := _wanted(needs, "libcudart"))]
    if wanted and max(wanted) > newest:
        yield failed("driver", f"reaches CUDA {reached}; onnxruntime-gpu was built for CUDA {max(wanted)}",
                     "ONNX Runtime cannot use the GPU. Update the driver, or run TensorRT engines, which need none of "
                     "it", f"pip install 'alpose[tensorrt]' 'cuda-python<{newest + 1}'")  # fmt: skip
        return
    yield ok("driver", f"reaches CUDA {reached}")


def _encoder(here: Environment) -> Finding:
    if "simplejpeg" in here.loadable:
        version = here.packages.get("simplejpeg", "")
        return ok("jpeg", f"simplejpeg {version}".strip())
    why = here.unloadable.get("simplejpeg")
    found = f"simplejpeg does not load: {why}" if why else "simplejpeg is not installed"
    mend = "pip install --force-reinstall simplejpeg" if why else "pip install 'simplejpeg>=1.7'"
    if "pillow" in here.loadable:
        return warning("jpeg", f"{found}; Pillow encodes", "frames are encoded more slowly", mend)
    return warning("jpeg", f"{found}, nor is Pillow",
                   "frames are kept as PNG: several times larger, so fewer fit into the queue", mend)  # fmt: skip


def _optional(here: Environment) -> Iterator[Finding]:
    for name, (purpose, extra) in OPTIONAL.items():
        label = {"pynacl": "crypto", "prometheus-client": "metrics", "opencv-python-headless": "camera"}[name]
        if name in here.unloadable:
            yield warning(label, f"{name} does not load: {here.unloadable[name]}", f"without it there is no {purpose}",
                          f"pip install --force-reinstall {name}")  # fmt: skip
        elif name in here.loadable:
            yield ok(label, f"{name} {here.packages.get(name, '')}".strip())
        else:
            yield ok(label, f"not installed; only {purpose} need{'s' * (name != 'pynacl')} it", "",
                     f"pip install 'alpose[{extra}]'")  # fmt: skip


def _others(need: str, here: Environment) -> list[str]:
    """Libraries of the same name in other versions, the most telling names only: ``libnvinfer.so.11``."""
    stem = need.partition(".so")[0]
    return [name for name in here.libraries if re.fullmatch(rf"{re.escape(stem)}\.so\.\d+", name) and name != need]


def _wanted(needs: tuple[str, ...], stem: str) -> int | None:
    """The major version of a library among these."""
    for need in needs:
        found = re.fullmatch(rf"{stem}\.so\.(\d+)[.\d]*", need)
        if found:
            return int(found[1])
    return None
