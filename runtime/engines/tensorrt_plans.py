"""TensorRT on this device, and the engines in a bundle's folder: which one may be loaded here, and why not the others.

An engine is two files: the plan, which is what TensorRT wrote and nothing else, so that its own tools read it too, and a
sidecar of JSON. It is loaded only where it belongs: every part of its key (TensorRT version, GPU, compute capability,
precision, model) must be what this device and this bundle have, and its bytes must be those that its sidecar names.

TensorRT's package on PyPI can be installed and still hold no library, and a call that fails returns nothing: the reason
stands in its log alone. Both become errors here.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..bundle.manifest import MODEL
from ..errors import AlposeError, DataError, DataNotFoundError, MissingExtraError
from ..io import parse_json
from .cuda import Cuda, CudaError

log = logging.getLogger("alpose")

PLAN, SIDECAR = ".engine", ".json"
"""Endings of an engine's two files."""
KIND, SCHEMA = "alpose TensorRT engine", 1
MAX_SIDECAR_BYTES = 1 << 20


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
        facts = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in ("key", "profile")}
        value = {"kind": KIND, "schema": SCHEMA, **asdict(self.key), "profile": asdict(self.profile), **facts}
        return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Sidecar:
        """Check a file's content; :class:`DataError` says what is wrong."""
        value = parse_json(content)
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind != KIND or value.get("schema") != SCHEMA:
            raise DataError(f"kind must be {KIND!r} and schema {SCHEMA}, got {kind!r}")
        wanted = [item.name for item in fields(cls) if item.name != "key"] + [item.name for item in fields(EngineKey)]
        if missing := [name for name in wanted if name not in value]:
            raise DataError(f"{missing} are missing")
        key = EngineKey(**{item.name: value[item.name] for item in fields(EngineKey)})
        if not all(isinstance(part, str) for part in asdict(key).values()) or not isinstance(value["plan_sha256"], str):
            raise DataError("the key and plan_sha256 must be texts")
        profile = value["profile"]
        if not isinstance(profile, dict) or set(profile) != {"min", "opt", "max"}:
            raise DataError(f"profile must have min, opt and max, got {str(profile)[:80]}")
        golden = value["golden"]
        if not isinstance(golden, list) or not golden or not all(isinstance(report, dict) for report in golden):
            raise DataError("golden must be a list of at least one report")
        rest = {name: value[name] for name in wanted if name in {item.name for item in fields(cls)}}
        return cls(**{**rest, "key": key, "profile": Profile(**profile), "golden": tuple(golden)})

    @property
    def passed(self) -> bool:
        """Whether the golden frames passed when it was built."""
        return all(report.get("passed") is True for report in self.golden)


# --- TensorRT and its log


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """TensorRT and the GPU of this process. Make it with :meth:`here`."""

    trt: Any
    cuda: Cuda

    @classmethod
    def here(cls) -> DeviceContext:
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
        DeviceContext.here()
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


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine of a bundle's folder, for a table."""

    name: str
    """Of the plan."""
    problem: str | None
    """Why it is not loaded here; None for the one that is."""


def rebuild(bundle: Bundle) -> str:
    """The command that builds this machine's engine."""
    return f"alpose-export engine {bundle.folder}"


def read_engine(bundle: Bundle, key: EngineKey) -> tuple[bytes, Sidecar]:
    """The plan that was built for ``key``, checked.

    Raises:
        DataNotFoundError: none was built.
        StaleEngineError: there is one for something else, or it is not what its sidecar says.
    """
    path = bundle.engines / f"{key.stem}{PLAN}"
    if not path.exists() and not path.is_symlink():
        others = [status for status in _others(bundle, key) if status.problem]
        if others:
            raise StaleEngineError(f"{others[0].problem}; build one for this machine with: {rebuild(bundle)}")
        raise DataNotFoundError(
            f"{bundle.folder} has no TensorRT engine for {key.gpu} with TensorRT {key.tensorrt}: build it on this "
            f"machine with: {rebuild(bundle)}"
        )
    try:
        sidecar = _sidecar(path)
        if difference := _difference(sidecar.key, key):
            raise DataError(difference)
        if path.is_symlink() or not path.is_file():
            raise DataError("it is not a plain file")
        plan = path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
            raise DataError("its sha256 is not the one in its sidecar: it was changed, damaged or half written")
        if not sidecar.passed:
            raise DataError("its golden frames failed")
    except (DataError, OSError) as error:
        raise StaleEngineError(f"{path} is not loaded: {error}; build it again with: {rebuild(bundle)}") from error
    return plan, sidecar


def engines_of(bundle: Bundle, here: DeviceContext) -> tuple[EngineStatus, ...]:
    """Every engine in the bundle's folder with why it is not loaded here. Plans are read but not started."""
    key = here.key(bundle)
    own = []
    if (bundle.engines / f"{key.stem}{PLAN}").exists():
        try:
            read_engine(bundle, key)
            own.append(EngineStatus(f"{key.stem}{PLAN}", None))
        except StaleEngineError as error:
            own.append(EngineStatus(f"{key.stem}{PLAN}", str(error)))
    return (*own, *_others(bundle, key))


def _others(bundle: Bundle, key: EngineKey) -> list[EngineStatus]:
    """The engines that are not for ``key``, those that differ least from it first."""
    found = []
    for path in sorted(bundle.engines.glob(f"*{PLAN}")):
        if path.stem == key.stem or path.name.startswith("."):
            continue
        try:
            other = _sidecar(path).key
        except (DataError, OSError) as error:
            found.append((len(fields(EngineKey)), EngineStatus(path.name, f"{path} is not loaded: {error}")))
            continue
        apart = sum(getattr(other, item.name) != getattr(key, item.name) for item in fields(EngineKey))
        why = _difference(other, key) or "its name is not the one that its sidecar gives"
        found.append((apart, EngineStatus(path.name, f"{path} is not loaded: {why}")))
    return [status for _, status in sorted(found, key=lambda item: item[0])]


def _difference(built: EngineKey, here: EngineKey) -> str:
    """What an engine was built for that is otherwise here; empty where nothing is."""
    parts = []
    for what, name in (("TensorRT", "tensorrt"), ("GPU", "gpu"), ("compute capability", "compute_capability"),
                       ("precision", "precision"), ("model", "model_sha256")):  # fmt: skip
        old, new = getattr(built, name)[:40], getattr(here, name)[:40]
        if old != new:
            parts.append(f"{what} {old} instead of {new}")
    return f"it was built for {', '.join(parts)}" if parts else ""


def _sidecar(plan: Path) -> Sidecar:
    path = plan.with_name(f"{plan.name.removesuffix(PLAN)}{SIDECAR}")  # a version is full of dots: no with_suffix
    if path.is_symlink() or not path.is_file():
        raise DataError(f"its sidecar {path.name} is missing")
    with open(path, "rb") as file:
        content = file.read(MAX_SIDECAR_BYTES + 1)
    if len(content) > MAX_SIDECAR_BYTES:
        raise DataError(f"its sidecar {path.name} is larger than {MAX_SIDECAR_BYTES} bytes")
    try:
        return Sidecar.from_bytes(content)
    except DataError as error:
        raise DataError(f"its sidecar {path.name} cannot be used: {error}") from error
