"""Running a TensorRT engine that was built on this machine. ``docs/tensorrt.md`` says what was checked, and where.

An engine is loaded only where it belongs: every part of its key (TensorRT version, GPU, compute capability, precision,
model) must be what this machine and this bundle have, and its bytes must be those that its sidecar names.

Shapes: N frames, B rows of one run, S crop side, J joints, D dimensions of the embedding.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import logging
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..crop import Crop
from ..device_frames import DeviceFrame
from ..errors import AlposeError, DataError, DataNotFoundError, MissingExtraError
from ..golden import Golden, GoldenReport, run_golden
from ..manifest import MODEL, check_against_engine, parse_json
from ..outputs import OUTPUT_NAMES, Outputs, output_shapes
from .crop_kernel import CropKernel
from .cuda import Cuda, CudaError, handle
from .device import check, check_place, extent, to_rgb

log = logging.getLogger("alpose")

INPUT = "frames"
PLAN, SIDECAR = ".engine", ".json"
"""Endings of an engine's two files. The plan is what TensorRT wrote and nothing else: its own tools read it too."""

KIND, SCHEMA = "alpose TensorRT engine", 1
MAX_SIDECAR_BYTES = 1 << 20


class TensorRTError(AlposeError, RuntimeError):
    """TensorRT cannot be used, or it failed; the message holds what it said."""


class StaleEngineError(TensorRTError):
    """An engine is there that was not built for this machine, this TensorRT or this model. It is not loaded."""


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


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One engine of a bundle's folder, for a table."""

    name: str
    """Of the plan."""
    problem: str | None
    """Why it is not loaded here; None for the one that is."""


@dataclass(frozen=True, slots=True)
class Machine:
    """TensorRT and the GPU of this process. Make it with :meth:`here`."""

    trt: Any
    cuda: Cuda

    @classmethod
    def here(cls) -> Machine:
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


# --- What is there


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
        Machine.here()
    except (MissingExtraError, TensorRTError, CudaError) as error:
        return str(error)
    return None


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


def engines_of(bundle: Bundle, machine: Machine) -> tuple[EngineStatus, ...]:
    """Every engine in the bundle's folder with why it is not loaded here. Plans are read but not started."""
    key = machine.key(bundle)
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


# --- What TensorRT says


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


# --- The engine

Place = Callable[[Sequence[int]], object]
"""Queues the writing of the crops of these numbers into the engine's input, in this order. What it returns must live
until the stream was waited for."""


class TensorRTEngine:
    """An engine of this machine, ready to answer. Use it as a context manager, or close it.

    The GPU's buffers are made once, for the largest batch; more frames than that are answered in several runs, fewer
    than the smallest batch are filled up. One call runs at a time: threads wait for each other.

    Args:
        bundle: an opened bundle, or its folder.
        plan: a plan to run instead of the one in the bundle's folder; for the builder, which has just made it.
        machine: TensorRT and the GPU; looked for when left out.

    Raises:
        MissingExtraError: TensorRT or cuda-python is not installed.
        DataNotFoundError: no engine was built.
        StaleEngineError: the one that is there belongs to something else.
        TensorRTError: TensorRT cannot load it.
        CudaError: there is no GPU, or not enough memory on it.
        BundleError: the engine's inputs and outputs are not the bundle's.
    """

    def __init__(
        self, bundle: Bundle | str | Path, *, plan: bytes | None = None, machine: Machine | None = None
    ) -> None:
        self._open = False
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        machine = machine or Machine.here()
        if plan is None:
            plan, _ = read_engine(self.bundle, machine.key(self.bundle))
        self._trt, self._cuda = machine.trt, machine.cuda
        self._lock = threading.Lock()
        self._addresses: dict[str, int] = {}
        self._stream: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._rows = 0
        self._cropper: CropKernel | None = None
        self.copies_to_host = 0
        self._open = True
        try:
            with self._cuda.current():
                self._start(plan)
        except BaseException:
            with suppress(CudaError):
                self.close()
            raise

    @property
    def name(self) -> str:
        """As in ``tensorrt fp16``."""
        return f"tensorrt {self.bundle.manifest.precision}"

    @property
    def max_batch(self) -> int:
        """The most frames of one run."""
        return self.profile.max

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be ending: nothing can be done, and nobody can be told
            self.close()

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer N ≥ 1 RGB crops (N, S, S, 3); the arrays belong to the caller."""
        size_px = self.bundle.crop.size_px
        count, *rest = frames_NHW3.shape or (0,)
        if frames_NHW3.dtype != np.uint8 or rest != [size_px, size_px, 3] or not count:
            raise DataError(
                f"{self.name}: frames must be uint8 (N, {size_px}, {size_px}, 3) with N at least 1, got "
                f"{frames_NHW3.dtype} {frames_NHW3.shape}"
            )

        def place(chosen: Sequence[int]) -> object:
            part = np.ascontiguousarray(frames_NHW3[list(chosen)])
            self._cuda.to_device(self._addresses[INPUT], part, self._stream)
            return part

        return self._answer(count, place)

    def answer_device(self, frames: Sequence[DeviceFrame], crops: Sequence[Crop]) -> Outputs:
        """Cut and answer frames that lie on this GPU; see :class:`~.device.DeviceEngine`."""
        size_px = self.bundle.crop.size_px
        check(self.name, self._cuda.device, size_px, frames, crops)

        def place(chosen: Sequence[int]) -> object:
            cropper = self._cropper = self._cropper or CropKernel(self._cuda, self._stream)
            for stream in {frames[n].stream for n in chosen} - {None}:
                self._cuda.call("cudaStreamSynchronize", stream)  # its producer may still be writing
            address, step = self._addresses[INPUT], size_px * size_px * 3
            return [cropper.queue(frames[n], crops[n], address + row * step) for row, n in enumerate(chosen)]

        return self._answer(len(frames), place)

    def to_host(self, frame: DeviceFrame, region: tuple[int, int, int, int] | None = None) -> npt.NDArray[np.uint8]:
        """A copy as RGB of a frame that lies on this GPU; see :class:`~.device.DeviceEngine`."""
        check_place(self.name, self._cuda.device, frame)
        content_L = np.empty(extent(frame), np.uint8)
        with self._working():
            if frame.stream is not None:
                self._cuda.call("cudaStreamSynchronize", frame.stream)
            self._cuda.to_host(content_L, frame.address, self._stream)
            self._cuda.call("cudaStreamSynchronize", self._stream)
            self.copies_to_host += 1
        return to_rgb(content_L, frame, region)

    def close(self) -> None:
        """Give the GPU's memory back. Calling it again does nothing."""
        lock = getattr(self, "_lock", None)
        if lock is None:
            return
        with lock:
            if not self._open:
                return
            self._open = False
            failures = []
            with self._cuda.current():
                if self._stream is not None:
                    failures += self._attempt(self._cuda.call, "cudaStreamSynchronize", self._stream)
                if self._cropper is not None:
                    failures += self._attempt(self._cropper.close)
                self._context = self._engine = self._runtime = None  # in this order: each lives on the next
                for address in self._addresses.values():
                    failures += self._attempt(self._cuda.call, "cudaFree", address)
                if self._stream is not None:
                    failures += self._attempt(self._cuda.call, "cudaStreamDestroy", self._stream)
            self._addresses, self._stream, self._cropper = {}, None, None
        if failures:
            raise failures[0]

    @staticmethod
    def _attempt(step: Callable[..., object], *arguments: Any) -> list[CudaError]:
        """Everything else is given back even where one thing cannot be."""
        try:
            step(*arguments)
        except CudaError as error:
            return [error]
        return []

    def _start(self, plan: bytes) -> None:
        trt = self._trt
        log_to, self._messages = logger(trt)
        self._runtime = create(lambda: trt.Runtime(log_to), "starting TensorRT's runtime", self._messages)
        what = f"loading an engine of {self.bundle.folder}"
        self._engine = create(lambda: self._runtime.deserialize_cuda_engine(plan), what, self._messages)
        self.profile = self._check()
        self._context = create(self._engine.create_execution_context, "making an execution context", self._messages)
        shapes = self._shapes(self.profile.max)
        self._stream = self._cuda.call("cudaStreamCreate")
        self._handle = handle(self._stream)
        for name, shape in shapes.items():
            bytes_each = 1 if name == INPUT else np.dtype(np.float32).itemsize
            self._addresses[name] = int(self._cuda.call("cudaMalloc", math.prod(shape) * bytes_each))
            self._ask(self._context.set_tensor_address(name, self._addresses[name]), f"placing {name}")
        if self.profile.static:
            self._rows = self.profile.max  # such an engine has its shape already

    def _check(self) -> Profile:
        """Hold the engine's tensors against the manifest, and read which batches it takes."""
        trt, engine = self._trt, self._engine
        shapes: dict[bool, dict[str, list[int]]] = {True: {}, False: {}}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            taken = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shapes[taken][name] = [int(length) for length in engine.get_tensor_shape(name)]
            wanted = trt.DataType.UINT8 if taken else trt.DataType.FLOAT
            if engine.get_tensor_dtype(name) != wanted or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise TensorRTError(
                    f"{name} of the engine must be {wanted} on the GPU, it is {engine.get_tensor_dtype(name)} at "
                    f"{engine.get_tensor_location(name)}: build it again with: {rebuild(self.bundle)}"
                )
        check_against_engine(self.bundle.manifest, shapes[True], shapes[False])
        rows = shapes[True][INPUT][0]
        if rows != -1:
            return Profile(min=rows, opt=rows, max=rows)
        sizes = [int(shape[0]) for shape in engine.get_tensor_profile_shape(INPUT, 0)]
        return Profile(min=sizes[0], opt=sizes[1], max=sizes[2])

    def _shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor for a batch."""
        manifest = self.bundle.manifest
        size_px = manifest.crop.size_px
        return {INPUT: (rows, size_px, size_px, 3), **output_shapes(rows, len(manifest.skeleton), manifest.dimensions)}

    def _empty(self, rows: int) -> dict[str, npt.NDArray[np.float32]]:
        return {name: np.empty(shape, np.float32) for name, shape in self._shapes(rows).items() if name != INPUT}

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Alone, on the engine's GPU, and not after it was closed."""
        with self._lock:
            if not self._open:
                raise TensorRTError(f"{self.name} of {self.bundle.folder} was closed: make a new one")
            with self._cuda.current():
                yield

    def _answer(self, count: int, place: Place) -> Outputs:
        """Answer ``count`` crops in as many runs as it takes."""
        outputs = self._empty(count)
        with self._working():
            for start in range(0, count, self.profile.max):
                rows = range(start, min(start + self.profile.max, count))
                missing = max(0, self.profile.min - len(rows))
                chosen = [*rows, *[rows[-1]] * missing]
                self._run(chosen, place, {name: outputs[name][rows.start : rows.stop] for name in outputs})
        return Outputs(*(outputs[name] for name in OUTPUT_NAMES))

    def _run(self, chosen: Sequence[int], place: Place, outputs: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Answer one batch; its first rows go into ``outputs``."""
        rows = len(chosen)
        self._messages.clear()
        if rows != self._rows:
            self._rows = 0  # what a failure leaves behind is not known
            self._ask(self._context.set_input_shape(INPUT, self._shapes(rows)[INPUT]), f"a batch of {rows}")
            self._rows = rows
        held: object = None
        try:
            held = place(chosen)
            self._ask(self._context.execute_async_v3(self._handle), "running the engine")
            for name, value in outputs.items():
                self._cuda.to_host(value, self._addresses[name], self._stream)
        except BaseException:
            # Copies that are under way write into arrays that are about to be thrown away.
            with suppress(CudaError):
                self._cuda.call("cudaStreamSynchronize", self._stream)
            raise
        self._cuda.call("cudaStreamSynchronize", self._stream)
        del held  # the copies have read it

    def _ask(self, done: bool, what: str) -> None:
        if not done:
            raise self._messages.explain(f"{self.name}: {what} failed")


def judge(engine: TensorRTEngine, golden: Golden) -> tuple[GoldenReport, ...]:
    """The golden frames at the batches that the engine is built for: alone, at its best one and at its largest."""
    sizes = sorted({engine.profile.opt, engine.profile.max})
    return tuple(run_golden(engine, golden, batch=size) for size in sizes)


def verify(bundle: Bundle) -> tuple[GoldenReport, ...]:
    """Load the bundle's engine of this machine and let it answer the golden frames; raises as the engine does."""
    with TensorRTEngine(bundle) as engine:
        return judge(engine, bundle.golden)
