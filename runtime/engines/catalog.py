"""Every engine by its name, and the function that opens one and verifies it with the bundle's golden frames.

What is registered here is what ``auto``, the doctor, ``--engine`` and the docs know. An engine that is added is one entry::

    register(EngineKind(name="mine", summary="runs on my chip", open=lambda bundle, argument, threads: Mine(bundle)))

Nothing is passed over in silence: what was tried, and why it does not run, stands in :attr:`Opened.attempts`, is logged,
and counts as a fallback where it should have run.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..bundle.golden import Golden, GoldenReport, run_golden
from ..errors import ConfigError, WrongAnswerError
from ..types import Engine, Outputs

log = logging.getLogger("alpose.monitor")

AUTO = "auto"
Verify = Literal["first", "background"]
"""When the golden frames run: before the engine answers anything else, or beside it."""

GOLDEN_BATCH = 8
"""Rows of the batches in which golden frames are answered, where the engine takes so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One entry of the catalog."""

    name: str
    """As in ``--engine NAME``."""
    summary: str
    """One line for people."""
    open: Callable[[Bundle, str, int], Engine]
    """Makes the engine from a bundle, the argument behind the name's colon, and a number of threads. It raises what it
    likes; an object with ``max_batch`` is verified with batches of at most that, and one with ``close()`` is closed."""
    argument: str = ""
    """What stands behind a colon, as in ``onnx:<provider>``; empty where there is no colon."""
    absent: Callable[[Bundle], str | None] = lambda bundle: None
    """Why this device does not offer it at all, which is not a failure; None where it has to be tried."""
    automatic: int | None = None
    """When ``auto`` tries it, the lowest number first; None: it is opened by its name alone."""

    @property
    def spelling(self) -> str:
        """The name with its argument."""
        return f"{self.name}:<{self.argument}>" if self.argument else self.name


_KINDS: dict[str, EngineKind] = {}


def register(kind: EngineKind) -> None:
    """Add an engine, or replace the one of the same name."""
    if not kind.name or kind.name != kind.name.lower() or ":" in kind.name or kind.name == AUTO:
        raise ConfigError(f"an engine has a name in small letters, without a colon and not {AUTO!r}, got {kind.name!r}")
    _KINDS[kind.name] = kind


def unregister(name: str) -> None:
    """Forget an engine; nothing where there is none of that name."""
    _KINDS.pop(name, None)


def engine_kinds() -> tuple[EngineKind, ...]:
    """Every registered engine, in the order of registration."""
    return tuple(_KINDS.values())


def engine_names() -> str:
    """Everything that an engine may be chosen by, for messages and ``--help``."""
    return ", ".join([AUTO, *(kind.spelling for kind in engine_kinds())])


# The libraries' own files are imported when an engine is opened: an import of alpose.runtime pays for none.


def _onnx(bundle: Bundle, provider: str, threads: int) -> Engine:
    from .onnx import OnnxEngine

    return OnnxEngine(bundle, provider, threads)


def _no_cuda(bundle: Bundle) -> str | None:
    from .onnx import providers

    return None if "cuda" in providers() else "this onnxruntime was built without CUDA, or is not installed"


def _tensorrt(bundle: Bundle, _: str, threads: int) -> Engine:
    from .tensorrt import TensorRTEngine

    return TensorRTEngine(bundle)


def _no_plan(bundle: Bundle) -> str | None:
    from .tensorrt_plans import PLAN, rebuild

    if any(bundle.engines.glob(f"*{PLAN}")):
        return None
    return f"none was built on this device; {rebuild(bundle)} builds one"


register(
    EngineKind(
        name="cpu",
        summary="ONNX Runtime on the processor",
        open=lambda bundle, _, threads: _onnx(bundle, "cpu", threads),
        automatic=30,
    )
)
register(
    EngineKind(
        name="cuda",
        summary="ONNX Runtime on an NVIDIA GPU",
        open=lambda bundle, _, threads: _onnx(bundle, "cuda", threads),
        absent=_no_cuda,
        automatic=20,
    )
)
register(
    EngineKind(
        name="tensorrt",
        summary="a TensorRT engine that was built on this device",
        open=_tensorrt,
        absent=_no_plan,
        automatic=10,
    )
)
register(
    EngineKind(
        name="onnx",
        summary="any provider of ONNX Runtime, by its own name",
        open=_onnx,
        argument="provider",
    )
)
register(
    EngineKind(
        name="plugin",
        summary="a provider for ONNX Runtime in a library or package of its own: TensorRT-RTX, OpenVINO, QNN",
        open=lambda bundle, library, threads: _onnx(bundle, f"plugin:{library}", threads),
        argument="library or package",
    )
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to run a bundle."""

    engine: str
    """By the name that chooses it."""
    problem: str | None
    """Why it does not run; None for the one that does."""
    fallback: bool = False
    """It should have run here, and something else runs instead."""

    def __str__(self) -> str:
        return f"{self.engine}: {self.problem or 'runs'}"


class BackgroundVerification:
    """The golden frames on an engine, in a thread of their own while the engine already answers the camera."""

    def __init__(self, engine: Engine, golden: Golden) -> None:
        self.reports: tuple[GoldenReport, ...] = ()
        self.verified = False
        """Whether all golden frames have passed."""
        self._engine, self._golden = engine, golden
        self._error: Exception | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="alpose-verify", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise what was found wrong with the engine, such as :class:`WrongAnswerError`; nothing where nothing was yet."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Begin no further call of the engine, and wait for the one that runs."""
        self._stopping = True
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            self.reports = tuple(report.require() for report in verify_engine(self, self._golden))
            self.verified = True
            log.info("engine %s; golden frames passed", self.name)
        except _StoppedError:
            pass
        except Exception as error:  # kept for the camera's thread, which raises it
            log.error("engine %s is refused: %s", self.name, error)
            self._error = error

    # What verify_engine sees: the engine, between whose calls the verification can be stopped.

    @property
    def name(self) -> str:
        """The engine's."""
        return _name(self._engine)

    @property
    def max_batch(self) -> int:
        """The engine's."""
        return int(getattr(self._engine, "max_batch", GOLDEN_BATCH))

    @property
    def golden_batches(self) -> tuple[int, ...]:
        """The engine's."""
        return golden_batches(self._engine)

    def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
        """Answer, unless the verification was stopped."""
        if self._stopping:
            raise _StoppedError
        return self._engine(frames_NHW3)


class _StoppedError(Exception):
    """The Monitor is closing."""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """An engine whose answers to the golden frames are right, and what was tried before it."""

    engine: Engine
    golden: tuple[GoldenReport, ...]
    """All passed; one per size of batch that was tried."""
    attempts: tuple[Attempt, ...]
    """In their order; the last one runs."""
    ours: bool
    """Made here, so to be closed by :meth:`close`; False for an engine that the caller made."""
    background: BackgroundVerification | None = None
    """Where the golden frames are still running, or ran, while the engine answered already."""

    @property
    def reports(self) -> tuple[GoldenReport, ...]:
        """All golden reports so far; all passed."""
        return self.background.reports if self.background else self.golden

    @property
    def fallbacks(self) -> tuple[Attempt, ...]:
        """What should have run and does not."""
        return tuple(attempt for attempt in self.attempts if attempt.fallback)

    def close(self) -> None:
        """Close the engine if it was made here and can be closed, once nothing runs on it any more."""
        if self.background is not None:
            self.background.stop()
        if self.ours:
            close_engine(self.engine)


def default_threads() -> int:
    """Two, or one where there is one core: a device has other work to do than this."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, cores)


def open_engine(
    bundle: Bundle,
    engine: str | Engine = AUTO,
    threads: int | None = None,
    allow_fallback: bool = False,
    verify: Verify = "first",
) -> Opened:
    """Open an engine and verify it with the golden frames.

    Args:
        bundle: what it runs.
        engine: ``auto`` takes a TensorRT engine that was built on this device, else ONNX Runtime on CUDA, else on the
            CPU; ``tensorrt``, ``cuda``, ``cpu``, ``onnx:NAME`` (any provider of ONNX Runtime), ``plugin:LIBRARY`` (see
            :func:`~alpose.runtime.engines.onnx.plugin_device`) and every registered name take that one; an object that
            answers frames is taken as it is, and is the caller's to close.
        threads: of ONNX Runtime within an operator; None: :func:`default_threads`.
        allow_fallback: go on with the CPU where the engine that was chosen by name does not run.
        verify: ``first`` returns once the golden frames have passed; ``background`` returns at once and lets them run in
            a thread, for an engine that two threads may call. ``auto`` then takes the first engine that starts.

    Raises:
        WrongAnswerError: the engine does not give the answers that the bundle expects.
        ConfigError: there is no engine of that name, it does not start, or none of several runs; lists all.
        AlposeError: what else an engine says of itself: a missing package, a stale TensorRT engine, no GPU.
    """
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigError(f"threads must be at least 1, got {threads!r}")
    if verify not in get_args(Verify):
        raise ConfigError(f"verify must be one of {', '.join(get_args(Verify))}, got {verify!r}")
    if not isinstance(engine, str):
        if not callable(engine):
            raise ConfigError(f"an engine is a name ({engine_names()}) or answers frames, got {engine!r}")
        return _verified(engine, bundle, (Attempt(_name(engine), None),), verify, ours=False)
    threads = threads or default_threads()
    if engine.lower() == AUTO:
        ranked = [(kind.automatic, kind.name) for kind in engine_kinds() if kind.automatic is not None]
        return _first([name for _, name in sorted(ranked)], bundle, threads, verify)
    kind, argument = _parse(engine)
    name = f"{kind.name}:{argument}" if argument else kind.name
    chain = [name, "cpu"] if allow_fallback and name not in ("cpu", "onnx:cpu") else [name]
    return _first(chain, bundle, threads, verify, chosen=True)


def verify_engine(engine: Engine, golden: Golden) -> tuple[GoldenReport, ...]:
    """The golden frames on an engine, alone and in batches, of the sizes that it was built for where it has some."""
    return tuple(run_golden(engine, golden, batch=size) for size in golden_batches(engine))


def golden_batches(engine: Engine) -> tuple[int, ...]:
    """The batches in which an engine is verified: its own choice, or as many rows as it takes."""
    largest = max(1, min(GOLDEN_BATCH, int(getattr(engine, "max_batch", GOLDEN_BATCH))))
    return tuple(getattr(engine, "golden_batches", (largest,)))


def batch_cost(engine: Engine, before: str = "") -> str:
    """What several persons cost on an engine whose graph takes few frames at a time, for people; empty for others."""
    most = int(getattr(engine, "max_batch", GOLDEN_BATCH))
    if most >= GOLDEN_BATCH:
        return ""
    frames = "one frame" if most == 1 else f"{most} frames"
    return (
        f"{before}it answers {frames} a run, so a batch of N persons takes {'N' if most == 1 else f'N / {most}'} runs"
    )


def require_known(text: str) -> None:
    """:class:`ConfigError` for a name that no engine has, before anything is opened."""
    if text != AUTO:
        _parse(text)


def _parse(text: str) -> tuple[EngineKind, str]:
    """The kind and the argument of a name. Arguments keep their letters: ONNX Runtime's own names have capitals."""
    name, colon, argument = text.partition(":")
    kind = _KINDS.get(name.lower())
    if kind is None or bool(colon and argument) != bool(kind.argument):
        raise ConfigError(f"there is no engine {text!r}: give one of {engine_names()}")
    return kind, argument


def _first(names: list[str], bundle: Bundle, threads: int, verify: Verify, *, chosen: bool = False) -> Opened:
    """The first of these that runs and answers rightly; ``chosen``: the first name was the user's own."""
    attempts: list[Attempt] = []
    errors: list[Exception] = []
    for place, name in enumerate(names):
        kind, argument = _parse(name)
        absent = None if chosen and place == 0 else kind.absent(bundle)
        if absent is not None:
            attempts.append(Attempt(name, absent))
            continue
        try:
            made = kind.open(bundle, argument, threads)
            return _verified(made, bundle, (*attempts, Attempt(name, None)), verify, ours=True)
        except Exception as error:  # a library may raise anything while it starts; the next one is tried
            attempts.append(Attempt(name, _summary(error), fallback=True))
            errors.append(error)
    if len(errors) == 1:  # its own error says more than a list of one
        raise errors[0]
    tried = "\n  ".join(map(str, attempts))
    raise ConfigError(
        f"no engine runs {bundle.folder} here:\n  {tried}\nalpose-monitor doctor says what to do"
    ) from errors[-1]


def _verified(engine: Engine, bundle: Bundle, attempts: tuple[Attempt, ...], verify: Verify, *, ours: bool) -> Opened:
    """An engine with its golden frames passed or running; one of ours that is refused is closed first."""
    for attempt in attempts[:-1]:
        log.log(logging.WARNING if attempt.fallback else logging.DEBUG, "engine %s", attempt)
    if verify == "background":
        log.info("engine %s; its golden frames run in the background", _name(engine))
        return Opened(engine, (), attempts, ours, BackgroundVerification(engine, bundle.golden))
    try:
        reports = tuple(report.require() for report in verify_engine(engine, bundle.golden))
    except BaseException:
        if ours:
            close_engine(engine)
        raise
    log.info("engine %s; golden frames passed%s", _name(engine), batch_cost(engine, "; "))
    return Opened(engine, reports, attempts, ours)


def close_engine(engine: Engine) -> None:
    """Close an engine that can be closed; an error while it closes is passed over."""
    close = getattr(engine, "close", None)
    if callable(close):
        with suppress(Exception):  # it is being given up: an error while it closes changes nothing
            close()


def _name(engine: Engine) -> str:
    return str(getattr(engine, "name", type(engine).__name__))


def _summary(error: Exception) -> str:
    """One line, except for wrong answers: their table is the deviation."""
    text = str(error).strip() or type(error).__name__
    return text if isinstance(error, WrongAnswerError) else text.splitlines()[0]
