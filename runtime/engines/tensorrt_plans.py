"""TensorRT on this device, and the engines in a bundle's folder: which one may be loaded here, and why not the others.

An engine is three files: the plan, which is what TensorRT wrote and nothing else, so that its own tools read it too, a
sidecar of JSON, and the sidecar's MAC, which only the device that built it can make. It is loaded only where it belongs: every part of its key (TensorRT version, GPU, compute capability,
precision, model) must be what this device and this bundle have, and its bytes must be those that its sidecar names.

TensorRT's package on PyPI can be installed and still hold no library, and a call that fails returns nothing: the reason
stands in its log alone. Both become errors here.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..bundle.keys import check_device_mac
from ..bundle.manifest import MODEL
from ..errors import AlposeError, ConfigError, DataError, DataNotFoundError, MissingExtraError
from ..io import fields_from_json, fields_to_json, json_bytes, parse_json
from .cuda import Cuda, CudaError

log = logging.getLogger("alpose")

PLAN, SIDECAR, MAC = ".engine", ".json", ".mac"
"""Endings of an engine's files."""
KIND, SCHEMA = "alpose TensorRT engine", 1
MAX_PLAN_BYTES, MAX_SIDECAR_BYTES, MAX_MAC_BYTES = 8 << 30, 1 << 20, 1 << 10


class TensorRTError(AlposeError, RuntimeError):
    """TensorRT cannot be used, or it failed; the message holds what it said."""


class StaleEngineError(TensorRTError):
    """An engine is there that was not built for this device, this TensorRT or this model. It is not loaded."""


# --- What stands in a sidecar


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """What an engine is good for: it is loaded where all of it is the same, and nowhere else."""

    tensorrt: str
    """Version, as ``tensorrt.__version__`` gives it."""
    gpu: str
    compute_capability: str
    precision: str
    model_sha256: str

    @property
    def stem(self) -> str:
        """Name of the engine's files without their endings."""
        return f"{self.machine}-{self.precision}-{self.model_sha256[:16]}"

    @property
    def machine(self) -> str:
        """The part that says where it runs; a timing cache is good for all engines of it."""
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", self.gpu).strip("-") or "gpu"
        return f"trt{self.tensorrt}-{gpu}-sm{self.compute_capability.replace('.', '')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The batches that an engine runs; it is fastest at ``opt``. All three alike: the batch is static."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not all(isinstance(size, int) for size in (self.min, self.opt, self.max)) or not (
            1 <= self.min <= self.opt <= self.max
        ):
            raise DataError(f"a profile is three whole numbers 1 <= min <= opt <= max, got {self}")

    @property
    def static(self) -> bool:
        """Whether there is one batch size only."""
        return self.min == self.max


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What stands beside a plan. Read with :meth:`from_bytes`."""

    key: EngineKey
    profile: Profile
    plan_sha256: str
    cuda_driver: str
    cuda_runtime: str
    builder_optimization_level: int
    tf32: bool
    """Whether float32 products may be rounded to TF32."""
    workspace_bytes: int | None
    """None: as much as the GPU has."""
    timing_cache: str
    """``none``, ``new``, ``used``, or ``replaced`` where the one that was there belonged to something else."""
    build_seconds: float
    created: str
    """UTC, ISO 8601."""
    alpose: str
    """Version that built it."""
    golden: tuple[Mapping[str, Any], ...]
    """:meth:`GoldenReport.to_json` of every batch size that was tried."""

    def to_bytes(self) -> bytes:
        """The file's content."""
        value = fields_to_json(self)
        return json_bytes({"kind": KIND, "schema": SCHEMA, **value.pop("key"), **value}, ensure_ascii=False)

    @classmethod
    def from_bytes(cls, content: bytes) -> Sidecar:
        """Check a file's content; :class:`DataError` says what is wrong."""
        value = parse_json(content)
        kind = value.pop("kind", None) if isinstance(value, dict) else None
        if kind != KIND or value.pop("schema", None) != SCHEMA:
            raise DataError(f"kind must be {KIND!r} and schema {SCHEMA}, got {kind!r}")
        key = {item.name: value.pop(item.name) for item in fields(EngineKey) if item.name in value}
        sidecar = fields_from_json(cls, {**value, "key": key}, "the sidecar")
        if not sidecar.golden:
            raise DataError("golden must be a list of at least one report")
        return sidecar

    @property
    def passed(self) -> bool:
        """Whether the golden frames passed when it was built."""
        return all(report.get("passed") is True for report in self.golden)


# --- TensorRT and its log


@dataclass(frozen=True, slots=True)
class TensorRTDevice:
    """TensorRT and the GPU of this process. Make it with :meth:`here`."""

    trt: Any
    cuda: Cuda

    @classmethod
    def here(cls) -> TensorRTDevice:
        """What this process can use.

        Raises:
            MissingExtraError: tensorrt or cuda-python is not installed.
            TensorRTError: tensorrt is installed but does not load.
            CudaError: there is no GPU that can be used.
        """
        return cls(load(), Cuda())

    def key(self, bundle: Bundle) -> EngineKey:
        """The key of a bundle's engine on this machine."""
        gpu = self.cuda.gpu()
        return EngineKey(
            tensorrt=str(self.trt.__version__),
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            precision=bundle.manifest.precision,
            model_sha256=bundle.manifest.files[MODEL],
        )


def load() -> Any:
    """The module ``tensorrt``, or an error that says in one sentence why there is none."""
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        if error.name == "tensorrt" and _installed() is None:
            raise MissingExtraError("tensorrt", "A TensorRT engine", "tensorrt") from None
        raise _broken(error) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(error) from error
    if not hasattr(trt, "Runtime") or not hasattr(trt, "__version__"):
        raise _broken("it has no Runtime")
    return trt


def unavailable() -> str | None:
    """Why no TensorRT engine can run here, in one sentence; None where one can. Nothing is built or loaded."""
    try:
        TensorRTDevice.here()
    except (MissingExtraError, TensorRTError, CudaError) as error:
        return str(error)
    return None


def _installed() -> str | None:
    """The version of the package, whether or not anything can be imported from it."""
    from importlib import metadata  # a tenth of what importing alpose.runtime would take

    try:
        return metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return None


def _broken(why: object) -> TensorRTError:
    version = _installed()
    return TensorRTError(
        f"tensorrt{f' {version}' if version else ''} is installed but not whole ({why}): its package on PyPI holds no "
        "libraries and fetches them from NVIDIA while it is installed, so install it again where that can be reached "
        "(pip install --force-reinstall 'alpose[tensorrt]'), or on a Jetson use the TensorRT of JetPack"
    )


class Messages:
    """The warnings and errors of TensorRT, which says why something failed nowhere else."""

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=8)

    def add(self, text: str, error: bool) -> None:
        """Called by TensorRT, from any thread."""
        log.debug("TensorRT: %s", text)
        if error:
            self._errors.append(" ".join(text.split()))

    def clear(self) -> None:
        """Forget what was said so far."""
        self._errors.clear()

    def explain(self, what: str) -> TensorRTError:
        """An error with what was said since :meth:`clear`."""
        return TensorRTError(f"{what}: {' | '.join(self._errors) or 'TensorRT gave no reason'}")


@functools.cache  # the library keeps the first logger that it is given, and warns about a second one
def logger(trt: Any) -> tuple[Any, Messages]:
    """The process's logger for TensorRT, and what it heard."""
    messages = Messages()
    serious = {trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR}
    kept = {*serious, trt.ILogger.Severity.WARNING}

    class Log(trt.ILogger):  # type: ignore[misc]
        """Hands on what is worth a line."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind wants its own constructor, not super()

        def log(self, severity: Any, msg: str) -> None:
            """Called by TensorRT."""
            if severity in kept:
                messages.add(msg, severity in serious)

    return Log(), messages


def create(make: Any, what: str, messages: Messages) -> Any:
    """What ``make`` returns; a library that has no GPU or no memory gives nothing or a TypeError instead."""
    messages.clear()
    try:
        made = make()
    except (TypeError, RuntimeError) as error:
        raise messages.explain(f"{what} failed ({error})") from error
    if made is None:
        raise messages.explain(f"{what} failed")
    return made


# --- Plans


def rebuild(bundle: Bundle) -> str:
    """The command that builds this device's engine."""
    return f"alpose-export engine {bundle.folder}"


def read_engine(bundle: Bundle, key: EngineKey) -> tuple[bytes, Sidecar]:
    """The plan that was built for ``key``, checked.

    A bundle's signature does not cover its ``engines/``. So where the bundle was opened with a trusted key, the sidecar
    must carry a MAC of this device's own key (:mod:`alpose.runtime.bundle.keys`), which is checked before it is parsed.

    Raises:
        DataNotFoundError: none was built.
        StaleEngineError: there is one for something else, or it is not what its sidecar says, or this device did not
            build it.
    """
    path = bundle.engines / f"{key.stem}{PLAN}"
    if not path.exists() and not path.is_symlink():
        if why := _nearest(bundle, key):
            raise StaleEngineError(f"{why}; build one for this device with: {rebuild(bundle)}")
        raise DataNotFoundError(
            f"{bundle.folder} has no TensorRT engine for {key.gpu} with TensorRT {key.tensorrt}: build it on this "
            f"device with: {rebuild(bundle)}"
        )
    try:
        sidecar = _sidecar(path, trusted=bundle.signed_by is not None)
        if difference := _difference(sidecar.key, key):
            raise DataError(difference)
        plan = _read(path, MAX_PLAN_BYTES)
        if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
            raise DataError("its sha256 is not the one in its sidecar: it was changed, damaged or half written")
        if not sidecar.passed:
            raise DataError("its golden frames failed")
    except (DataError, ConfigError, OSError) as error:
        raise StaleEngineError(f"{path} is not loaded: {error}; build it again with: {rebuild(bundle)}") from error
    return plan, sidecar


def _nearest(bundle: Bundle, key: EngineKey) -> str:
    """Why the engine that differs least from ``key`` is not loaded; empty where there is no engine at all."""
    found = []
    for path in sorted(bundle.engines.glob(f"*{PLAN}")):
        if path.name.startswith("."):
            continue
        try:
            other = _sidecar(path, trusted=False).key
        except (DataError, OSError) as error:
            found.append((len(fields(EngineKey)), f"{path} is not loaded: {error}"))
            continue
        apart = sum(getattr(other, item.name) != getattr(key, item.name) for item in fields(EngineKey))
        why = _difference(other, key) or "its name is not the one that its sidecar gives"
        found.append((apart, f"{path} is not loaded: {why}"))
    return min(found)[1] if found else ""


def _difference(built: EngineKey, here: EngineKey) -> str:
    """In what an engine was built for something else; empty where it was not."""
    words = {"tensorrt": "TensorRT", "gpu": "GPU", "compute_capability": "compute capability", "precision": "precision",
             "model_sha256": "model"}  # fmt: skip
    pairs = ((what, getattr(built, name), getattr(here, name)) for name, what in words.items())
    parts = [f"{what} {old[:40]} instead of {new[:40]}" for what, old, new in pairs if old != new]
    return f"it was built for {', '.join(parts)}" if parts else ""


def _sidecar(plan: Path, *, trusted: bool) -> Sidecar:
    """The sidecar of a plan; ``trusted``: nothing of it is parsed unless this device made it."""
    stem = plan.name.removesuffix(PLAN)  # a version is full of dots: no with_suffix
    path = plan.with_name(f"{stem}{SIDECAR}")
    if not path.exists() and not path.is_symlink():
        raise DataError(f"its sidecar {path.name} is missing")
    try:
        content = _read(path, MAX_SIDECAR_BYTES)
        if trusted:
            mac = plan.with_name(f"{stem}{MAC}")
            check_device_mac(content, _read(mac, MAX_MAC_BYTES) if mac.exists() else b"")
        return Sidecar.from_bytes(content)
    except (DataError, ConfigError) as error:
        raise DataError(f"its sidecar {path.name} cannot be used: {error}") from error


def _read(path: Path, limit: int) -> bytes:
    """The content of a plain file, whose size is looked at before it is read."""
    if path.is_symlink() or not path.is_file():
        raise DataError("it is not a plain file")
    if (size := path.stat().st_size) > limit:
        raise DataError(f"{path.name} has {size} bytes, more than the {limit} that it may have")
    with open(path, "rb") as file:
        return file.read(limit)
