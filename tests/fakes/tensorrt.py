"""TensorRT without a GPU, in three flavours that keep the contract of the real one: 10.3, 10.16 and 11.4.

Where names, arguments and numbers come from: python/src/infer/pyCore.cpp, pyGraph.cpp and python/src/parsers/pyOnnx.cpp
of NVIDIA/TensorRT at v10.3.0, v10.16 and v11.1, and the Python wheels of 10.3.0, 10.16.0.72 and 11.4.0.106, whose
enumerations were listed. What a release removed raises AttributeError here as there. A method takes the arguments that
the binding names, and no others.

A graph is a small JSON text; what it computes is a function of the test. Also here: bundles around such graphs.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.bundle.manifest import tensors
from alpose.runtime.crop import CropRule

from .scripted import write_bundle_of

VERSIONS = ("10.3.0", "10.16.0.72", "11.4.0.106")
S, J, D, G = 8, 3, 5, 4
Arrays = dict[str, npt.NDArray[np.float32]]
Answer = Callable[[npt.NDArray[np.uint8]], Arrays]


def answer(frames_NSS3: npt.NDArray[np.uint8]) -> Arrays:
    """What the fake graph computes: every output depends on every part of its own frame, and on no other."""
    mean_N = frames_NSS3.reshape(len(frames_NSS3), -1).mean(axis=1, dtype=np.float64)
    side_N = frames_NSS3[:, :, : S // 2].reshape(len(frames_NSS3), -1).mean(axis=1, dtype=np.float64)
    place_J = np.arange(J)
    embedding_ND = np.cos(mean_N[:, None] / 40 + np.arange(D))
    return {
        "keypoints": np.stack([mean_N[:, None] / 40 + place_J, side_N[:, None] / 40 + place_J], -1).astype(np.float32),
        "scores": (0.5 + mean_N[:, None] / 600 + place_J / 100).astype(np.float32),
        "predicted_loss": (side_N / 100).astype(np.float32),
        "failure_probability": (mean_N / 255).astype(np.float32),
        "embedding": (embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True)).astype(np.float32),
    }


def model_bytes(**changes: Any) -> bytes:
    """A graph: inputs and outputs with types and shapes; ``errors`` are what the parser finds."""
    inputs, outputs = tensors(CropRule(width_px=S, height_px=S), J, D, confidence=False)
    names = {**{name: ("UINT8", facts["shape"]) for name, facts in inputs.items()},
             **{name: ("FLOAT", facts["shape"]) for name, facts in outputs.items()}}  # fmt: skip
    graph = {"inputs": list(inputs), "outputs": list(outputs), "tensors": names, "errors": []} | changes
    return json.dumps(graph).encode()


def write_bundle(folder: Path, precision: str = "fp32", model: bytes | None = None) -> Path:
    """A bundle that opens, around a fake graph."""
    frames_GSS3 = np.random.default_rng(5).integers(0, 256, (G, S, S, 3), dtype=np.uint8)
    return write_bundle_of(folder, frames_GSS3, answer(frames_GSS3), model=model or model_bytes(), precision=precision)


def plan_bytes(version: str, gpu: str = "Orin", batch: tuple[int, int, int] = (1, 1, 1), **changes: Any) -> bytes:
    """What the fake builder writes."""
    graph = json.loads(model_bytes(**changes))
    return _serialise(version, gpu, graph, batch)


def _serialise(version: str, gpu: str, graph: Mapping[str, Any], batch: tuple[int, int, int]) -> bytes:
    return b"fakeplan" + json.dumps({"trt": version, "gpu": gpu, "graph": graph, "batch": batch}).encode()


class _Enum(enum.Enum):
    """As pybind11 makes one: it turns into a number when asked, and is none."""

    def __int__(self) -> int:
        return int(self.value)


_TEN_FLAGS = {"FP16": 0, "INT8": 1, "DEBUG": 2, "GPU_FALLBACK": 3, "REFIT": 4, "DISABLE_TIMING_CACHE": 5, "TF32": 6,
              "SPARSE_WEIGHTS": 7, "SAFETY_SCOPE": 8, "OBEY_PRECISION_CONSTRAINTS": 9,
              "PREFER_PRECISION_CONSTRAINTS": 10, "DIRECT_IO": 11, "REJECT_EMPTY_ALGORITHMS": 12,
              "VERSION_COMPATIBLE": 13, "EXCLUDE_LEAN_RUNTIME": 14, "FP8": 15, "ERROR_ON_TIMING_CACHE_MISS": 16,
              "BF16": 17, "DISABLE_COMPILATION_CACHE": 18, "WEIGHTLESS": 19, "STRIP_PLAN": 19, "REFIT_IDENTICAL": 20,
              "WEIGHT_STREAMING": 21, "INT4": 22, "REFIT_INDIVIDUAL": 23}  # fmt: skip
_ELEVEN_FLAGS = {"DEBUG": 2, "GPU_FALLBACK": 3, "REFIT": 4, "DISABLE_TIMING_CACHE": 5, "TF32": 6, "SPARSE_WEIGHTS": 7,
                 "SAFETY_SCOPE": 8, "DIRECT_IO": 11, "VERSION_COMPATIBLE": 12, "EXCLUDE_LEAN_RUNTIME": 13,
                 "ERROR_ON_TIMING_CACHE_MISS": 15, "DISABLE_COMPILATION_CACHE": 17, "STRIP_PLAN": 18,
                 "REFIT_IDENTICAL": 19, "WEIGHT_STREAMING": 20, "REFIT_INDIVIDUAL": 22, "STRICT_NANS": 23,
                 "MONITOR_MEMORY": 24, "EDITABLE_TIMING_CACHE": 26, "DISTRIBUTIVE_INDEPENDENCE": 27}  # fmt: skip
_NETWORK_FLAGS = {
    "10.3": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
    "10.16": {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1, "PREFER_JIT_PYTHON_PLUGINS": 2, "PREFER_AOT_PYTHON_PLUGINS": 3},
    "11.4": {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1, "PREFER_AOT_PYTHON_PLUGINS": 2},
}
_BUILDER_FLAGS = {
    "10.3": _TEN_FLAGS,
    "10.16": {**_TEN_FLAGS, "STRICT_NANS": 24, "MONITOR_MEMORY": 25, "FP4": 26, "EDITABLE_TIMING_CACHE": 27,
              "DISTRIBUTIVE_INDEPENDENCE": 28},
    "11.4": _ELEVEN_FLAGS,
}  # fmt: skip


def _enum(name: str, members: Mapping[str, int]) -> Any:
    return _Enum(name, members)  # type: ignore[call-arg] # the functional form of an enumeration


class TensorRT(ModuleType):
    """The module ``tensorrt``. Its attributes below the constructor are for tests.

    Args:
        version: "10.3.0", "10.16.0.72" or "11.4.0.106".
        cuda: the fake whose memory its engines work in.
    """

    def __init__(self, version: str, cuda: Any) -> None:
        super().__init__("tensorrt")
        release = ".".join(version.split(".")[:2])
        self.__version__ = version
        self.strong, self.cuda = release == "11.4", cuda
        self.answer: Answer = answer
        self.log_error: str | None = None
        """What TensorRT says when a build, a load or a run is made to fail."""
        self.failing: set[str] = set()
        self.built: list[dict[str, Any]] = []
        """What the builder was asked for."""

        self.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", _NETWORK_FLAGS[release])
        self.BuilderFlag = _enum("BuilderFlag", _BUILDER_FLAGS[release])
        self.MemoryPoolType = _enum("MemoryPoolType", {"WORKSPACE": 0, "DLA_MANAGED_SRAM": 1, "TACTIC_DRAM": 4})
        self.TensorIOMode = _enum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
        self.TensorLocation = _enum("TensorLocation", {"DEVICE": 0, "HOST": 1})
        self.DataType = _enum("DataType", {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3, "BOOL": 4, "UINT8": 5})
        self.ILogger = ILogger
        self.Builder = self._bound(Builder)
        self.Runtime = self._bound(Runtime)
        self.OnnxParser = self._bound(OnnxParser)

    def _bound(self, kind: Any) -> Any:
        return lambda *arguments, **named: kind(self, *arguments, **named)

    def refuse(self, what: str, message: str) -> None:
        """Let ``builder``, ``runtime``, ``build``, ``load``, ``context``, ``shape``, ``address`` or ``run`` fail."""
        self.failing.add(what)
        self.log_error = message

    def fails(self, what: str, logger: ILogger) -> bool:
        if what not in self.failing:
            return False
        logger.log(ILogger.Severity.ERROR, self.log_error or "")
        return True


class ILogger:
    class Severity(_Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.constructed = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


def _check_logger(logger: Any) -> ILogger:
    if not isinstance(logger, ILogger) or not getattr(logger, "constructed", False):
        raise TypeError("tensorrt.ILogger.__init__() must be called when overriding __init__")
    return logger


class HostMemory(bytearray):
    """Read through the buffer protocol."""

    @property
    def nbytes(self) -> int:
        return len(self)


class Dims:
    """As long as its axes, and iterable; it is no tuple."""

    def __init__(self, lengths: Any) -> None:
        self._lengths = [int(length) for length in lengths]

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, place: int) -> int:
        return self._lengths[place]


class Builder:
    def __init__(self, trt: TensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, _check_logger(logger)
        if trt.fails("builder", self._logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> Network:
        known = sum(1 << int(flag) for flag in self._trt.NetworkDefinitionCreationFlag)
        if not isinstance(flags, int) or flags & ~known:
            raise TypeError(f"flags {flags!r}")
        return Network(self._trt, flags)

    def create_builder_config(self) -> Config:
        return Config(self._trt)

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
        trt = self._trt
        shape = network.tensor.shape
        if trt.fails("build", self._logger):
            return None
        if shape[0] == -1 and not config.profiles:
            self._logger.log(ILogger.Severity.ERROR, "Network has dynamic inputs, but no optimization profile.")
            return None
        low, best, high = (shape[0],) * 3 if shape[0] != -1 else (each[0] for each in config.profiles[0])
        trt.built.append({
            "strongly typed": trt.strong or bool(network.flags & 1 << int(_flag(trt, "STRONGLY_TYPED"))),
            "flags": network.flags, "batch": (low, best, high), "static": shape[0] != -1, "cleared": config.cleared,
            "set": config.set, "pools": config.pools, "level": config.builder_optimization_level,
            "cache": None if config.cache is None else config.cache.content,
        })  # fmt: skip
        if config.cache is not None:
            config.cache.content = _timings(trt)
        return HostMemory(_serialise(trt.__version__, trt.cuda.gpu, network.graph, (low, best, high)))


def _flag(trt: TensorRT, name: str) -> Any:
    return getattr(trt.NetworkDefinitionCreationFlag, name)


def _timings(trt: TensorRT) -> bytes:
    return f"timings {trt.__version__} {trt.cuda.gpu}".encode()


class Tensor:
    def __init__(self, name: str, shape: list[int]) -> None:
        self.name = name
        self._shape = shape

    @property
    def shape(self) -> Dims:
        return Dims(self._shape)

    @shape.setter
    def shape(self, lengths: Any) -> None:
        self._shape = [int(length) for length in lengths]


class Network:
    def __init__(self, trt: TensorRT, flags: int) -> None:
        self.trt, self.flags = trt, flags
        self.graph: dict[str, Any] = {}
        self.tensor = Tensor("", [])

    @property
    def num_inputs(self) -> int:
        return len(self.graph["inputs"])

    def get_input(self, index: int) -> Tensor:
        self.tensor.name = self.graph["inputs"][index]
        return self.tensor


class ParserError:
    """Its facts are methods, not attributes."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts

    def node(self) -> int:
        return int(self._facts.get("node", -1))

    def node_name(self) -> str:
        return str(self._facts.get("name", ""))

    def node_operator(self) -> str:
        return str(self._facts.get("operator", ""))

    def desc(self) -> str:
        return str(self._facts.get("desc", ""))

    def code(self) -> str:
        return str(self._facts.get("code", "INVALID_NODE"))


class OnnxParser:
    def __init__(self, trt: TensorRT, network: Network, logger: Any) -> None:
        _check_logger(logger)
        self._network, self._errors = network, list[ParserError]()

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            graph = json.loads(model)
        except ValueError:
            self._errors = [
                ParserError({"desc": "Failed to parse the ONNX model.", "code": "MODEL_DESERIALIZE_FAILED"})
            ]
            return False
        self._errors = [ParserError(facts) for facts in graph["errors"]]
        if self._errors:
            return False
        self._network.graph = graph
        first = graph["tensors"][graph["inputs"][0]][1]
        self._network.tensor = Tensor(graph["inputs"][0], [-1 if isinstance(one, str) else one for one in first])
        return True

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(low <= best <= high for low, best, high in zip(min, opt, max, strict=True)):
            raise RuntimeError("Shape provided for opt is inconsistent with other shapes.")
        self.shapes[input] = (min, opt, max)


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> HostMemory:
        return HostMemory(self.content)


class Config:
    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt
        self.cleared: list[str] = []
        self.set: list[str] = []
        self.pools: dict[str, int] = {}
        self.profiles: list[tuple[Any, Any, Any]] = []
        self.cache: TimingCache | None = None
        self.builder_optimization_level = 3

    def set_flag(self, flag: Any) -> None:
        self.set.append(self._trt.BuilderFlag(flag).name)

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(self._trt.BuilderFlag(flag).name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[self._trt.MemoryPoolType(pool).name] = pool_size

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self.profiles.append(profile.shapes["frames"])
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.content not in (b"", _timings(self._trt)) and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


class Runtime:
    def __init__(self, trt: TensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, _check_logger(logger)
        if trt.fails("runtime", self._logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
        if self._trt.fails("load", self._logger):
            return None
        if not serialized_engine.startswith(b"fakeplan"):
            self._logger.log(ILogger.Severity.ERROR, "Serialization assertion stdVersionRead failed.Magic tag mismatch")
            return None
        plan = json.loads(serialized_engine.removeprefix(b"fakeplan"))
        if plan["trt"] != self._trt.__version__:
            self._logger.log(ILogger.Severity.ERROR, "The engine plan file is not compatible with this version")
            return None
        return CudaEngine(self._trt, self._logger, plan)


class CudaEngine:
    def __init__(self, trt: TensorRT, logger: ILogger, plan: Mapping[str, Any]) -> None:
        self.trt, self.logger, self.graph = trt, logger, plan["graph"]
        self.batch: list[int] = plan["batch"]

    @property
    def num_io_tensors(self) -> int:
        return len(self.graph["tensors"])

    def get_tensor_name(self, index: int) -> str:
        return list(self.graph["tensors"])[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode["INPUT" if name in self.graph["inputs"] else "OUTPUT"]

    def get_tensor_shape(self, name: str) -> Dims:
        rows = self.batch[0] if self.batch[0] == self.batch[2] else -1
        return Dims([rows, *self.graph["tensors"][name][1][1:]])

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[self.graph["tensors"][name][0]]

    def get_tensor_location(self, name: str) -> Any:
        return self.trt.TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        if profile_index != 0:
            raise RuntimeError("profile_index")
        return [Dims([rows, *self.graph["tensors"][name][1][1:]]) for rows in self.batch]

    def create_execution_context(self) -> ExecutionContext | None:
        return None if self.trt.fails("context", self.logger) else ExecutionContext(self)


class ExecutionContext:
    def __init__(self, engine: CudaEngine) -> None:
        self._engine, self._addresses = engine, dict[str, int]()
        static = engine.batch[0] == engine.batch[2]
        self._rows = engine.batch[0] if static else None

    def set_input_shape(self, name: str, shape: tuple[int, ...] | list[int]) -> bool:
        engine = self._engine
        fits = (
            list(shape[1:]) == engine.graph["tensors"][name][1][1:] and engine.batch[0] <= shape[0] <= engine.batch[2]
        )
        if engine.trt.fails("shape", engine.logger) or not fits:
            return False
        self._rows = shape[0]
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self._engine.trt.fails("address", self._engine.logger) or name not in self._engine.graph["tensors"]:
            return False
        if memory % 256:
            raise RuntimeError("a pointer must have 256-byte alignment")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self._engine
        trt, rows = engine.trt, self._rows
        if trt.fails("run", engine.logger) or rows is None or set(self._addresses) != set(engine.graph["tensors"]):
            return False
        shapes = {name: (rows, *facts[1][1:]) for name, facts in engine.graph["tensors"].items()}

        def work() -> None:
            count = int(np.prod(shapes["frames"]))
            frames = np.frombuffer(trt.cuda.buffer(self._addresses["frames"], count), np.uint8)
            for name, value in trt.answer(frames.reshape(shapes["frames"]).copy()).items():
                content = np.ascontiguousarray(value, np.float32).reshape(shapes[name]).tobytes()
                trt.cuda.buffer(self._addresses[name], len(content))[:] = content

        trt.cuda.enqueue(int(stream_handle), work)
        return True


def install(patch: Any, cuda: Any, version: str = "11.4.0.106", spelling: str = "cuda.bindings.runtime") -> TensorRT:
    """Put both fakes where Python looks for the real ones; ``patch`` is pytest's monkeypatch."""
    trt = TensorRT(version, cuda)
    patch.setitem(sys.modules, "tensorrt", trt)
    patch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    for name in ("cuda.bindings", "cuda.bindings.runtime", "cuda.bindings.utils", "cuda.cudart"):
        patch.setitem(sys.modules, name, None)
    patch.setitem(sys.modules, spelling, cuda.module(spelling))
    if spelling.startswith("cuda.bindings"):
        patch.setitem(sys.modules, "cuda.bindings", ModuleType("cuda.bindings"))
    return trt
