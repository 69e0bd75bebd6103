"""What stands beside the plan of a TensorRT engine: the key that says where it belongs, its batches, how it was built.

Nothing here needs TensorRT or a GPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import DataError
from ..io import parse_json

PLAN, SIDECAR = ".engine", ".json"
"""Endings of an engine's two files. The plan is what TensorRT wrote and nothing else: its own tools read it too."""

KIND, SCHEMA = "alpose TensorRT engine", 1


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
