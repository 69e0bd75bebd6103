"""The TensorRT engines in a bundle's folder: the one that may be loaded here, and why the others are not.

An engine is loaded only where it belongs: every part of its key (TensorRT version, GPU, compute capability, precision,
model) must be what this machine and this bundle have, and its bytes must be those that its sidecar names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from ..bundle import Bundle
from ..errors import DataError, DataNotFoundError
from .tensorrt_library import Machine, TensorRTError
from .tensorrt_sidecar import PLAN, SIDECAR, EngineKey, Sidecar

MAX_SIDECAR_BYTES = 1 << 20


class StaleEngineError(TensorRTError):
    """An engine is there that was not built for this machine, this TensorRT or this model. It is not loaded."""


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
