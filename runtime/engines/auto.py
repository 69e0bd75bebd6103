"""Which engine answers: the fastest one that this machine offers and whose golden frames pass, or the one asked for.

Nothing is passed over in silence. What was tried and why it does not run stands in :attr:`Opened.attempts`, is logged,
and counts as a fallback where it should have run.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass

from ..bundle import Bundle
from ..bundle.golden import GoldenReport, run_golden
from ..errors import ConfigError, WrongAnswerError
from ..types import Engine
from .onnx import OnnxEngine, providers
from .tensorrt import TensorRTEngine, judge
from .tensorrt_plans import rebuild
from .tensorrt_sidecar import PLAN

log = logging.getLogger("alpose.monitor")

AUTO = "auto"
NAMES = (AUTO, "cpu", "cuda", "tensorrt", "onnx:<provider>")
"""What an engine may be asked for by."""

GOLDEN_BATCH = 8
"""Rows of the batch in which golden frames are asked, where the engine takes so many."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to run a bundle."""

    engine: str
    """As it could be asked for by name."""
    problem: str | None
    """Why it does not run; None for the one that does."""
    fallback: bool = False
    """It should have run here, and something else runs instead."""

    def __str__(self) -> str:
        return f"{self.engine}: {self.problem or 'runs'}"


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """An engine that answered the golden frames rightly, and the way to it."""

    engine: Engine
    golden: tuple[GoldenReport, ...]
    """All passed; one per size of batch that was tried."""
    attempts: tuple[Attempt, ...]
    """In their order; the last one runs."""
    ours: bool
    """Made here, so to be closed by :meth:`close`; False for an engine that the caller made."""

    @property
    def fallbacks(self) -> tuple[Attempt, ...]:
        """What should have run and does not."""
        return tuple(attempt for attempt in self.attempts if attempt.fallback)

    def close(self) -> None:
        """Close the engine if it was made here and can be closed."""
        if self.ours:
            _close(self.engine)


def default_threads() -> int:
    """Two, or one where there is one core: a device has other work to do than this."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, cores)


def open_engine(
    bundle: Bundle, engine: str | Engine = AUTO, threads: int | None = None, allow_fallback: bool = False
) -> Opened:
    """Open an engine and let it answer the golden frames.

    Args:
        bundle: what it runs.
        engine: ``auto`` takes a TensorRT engine that was built on this device, else ONNX Runtime on CUDA, else on the
            CPU; ``tensorrt``, ``cuda``, ``cpu`` and ``onnx:NAME`` (any provider of ONNX Runtime) take that one;
            an object that answers frames is taken as it is, and is the caller's to close.
        threads: of ONNX Runtime within an operator; None: :func:`default_threads`.
        allow_fallback: go on with the CPU where the engine that was asked for by name does not run.

    Raises:
        WrongAnswerError: the engine does not give the answers that the bundle expects.
        ConfigError: there is no engine of that name, it does not start, or none of several runs; lists all.
        AlposeError: what else an engine says of itself: a missing package, a stale TensorRT engine, no GPU.
    """
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads must be at least 1, got {threads!r}")
    if not isinstance(engine, str):
        if not callable(engine):
            raise ConfigError(f"an engine is a name ({', '.join(NAMES)}) or answers frames, got {engine!r}")
        opened = Opened(engine, _attest(engine, bundle), (Attempt(_name(engine), None),), ours=False)
        _log(opened)
        return opened
    threads = threads or default_threads()
    asked = engine.lower()
    if asked == AUTO:
        return _first(("tensorrt", "cuda", "cpu"), bundle, threads)
    if asked not in NAMES and not asked.startswith("onnx:"):
        raise ConfigError(f"there is no engine {engine!r}: give one of {', '.join(NAMES)}")
    # A provider keeps the letters that the user gave: ONNX Runtime's own names have capitals.
    name = engine if asked.startswith("onnx:") else asked
    chain = (name, "cpu") if allow_fallback and asked not in ("cpu", "onnx:cpu") else (name,)
    return _first(chain, bundle, threads, asked=True)


def _first(names: tuple[str, ...], bundle: Bundle, threads: int, *, asked: bool = False) -> Opened:
    """The first of these that runs and answers rightly; ``asked``: the first name was the user's own wish."""
    attempts: list[Attempt] = []
    errors: list[Exception] = []
    for place, name in enumerate(names):
        absent = None if asked and place == 0 else _absent(name, bundle)
        if absent is not None:
            attempts.append(Attempt(name, absent))
            continue
        try:
            made, reports = _make(name, bundle, threads)
        except Exception as error:  # a library may raise anything while it starts; the next one is tried
            attempts.append(Attempt(name, _first_line(error), fallback=True))
            errors.append(error)
            continue
        opened = Opened(made, reports, (*attempts, Attempt(name, None)), ours=True)
        _log(opened)
        return opened
    if len(errors) == 1:  # its own error says more than a list of one
        raise errors[0]
    tried = "\n  ".join(map(str, attempts))
    raise ConfigError(
        f"no engine runs {bundle.folder} here:\n  {tried}\nalpose-monitor doctor says what to do"
    ) from errors[-1]


def _absent(name: str, bundle: Bundle) -> str | None:
    """Why a machine does not offer an engine at all: nothing that failed. None where it has to be tried."""
    if name == "tensorrt" and not any(bundle.engines.glob(f"*{PLAN}")):
        return f"none was built on this device; {rebuild(bundle)} builds one"
    if name == "cuda" and "cuda" not in providers():
        return "this onnxruntime was built without CUDA, or is not installed"
    return None


def _make(name: str, bundle: Bundle, threads: int) -> tuple[Engine, tuple[GoldenReport, ...]]:
    """An engine with its passed golden frames; one that is refused is closed first."""
    engine: Engine
    if name == "tensorrt":
        engine = TensorRTEngine(bundle)
    else:
        engine = OnnxEngine(bundle, name.partition(":")[2] or name, threads)
    try:
        return engine, _attest(engine, bundle)
    except BaseException:
        _close(engine)
        raise


def _attest(engine: Engine, bundle: Bundle) -> tuple[GoldenReport, ...]:
    """Ask the golden frames alone and in batches, of the sizes that the engine was built for where it has some."""
    if isinstance(engine, TensorRTEngine):
        reports = judge(engine, bundle.golden)
    else:
        batch = max(1, min(GOLDEN_BATCH, int(getattr(engine, "max_batch", GOLDEN_BATCH))))
        reports = (run_golden(engine, bundle.golden, batch=batch),)
    return tuple(report.require() for report in reports)


def _close(engine: Engine) -> None:
    close = getattr(engine, "close", None)
    if callable(close):
        with suppress(Exception):  # it is being given up: whatever it says of its end helps nobody
            close()


def _name(engine: Engine) -> str:
    return str(getattr(engine, "name", type(engine).__name__))


def _first_line(error: Exception) -> str:
    """One line, except for a refusal: its table is the deviation."""
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, WrongAnswerError) else text.splitlines()[0]


def _log(opened: Opened) -> None:
    for attempt in opened.attempts[:-1]:
        log.log(logging.WARNING if attempt.fallback else logging.DEBUG, "engine %s", attempt)
    log.info("engine %s; golden frames passed", _name(opened.engine))
