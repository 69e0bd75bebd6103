"""``--executor ray``: the tasks of a benchmark, or the shards of a pool, spread over a Ray cluster.

A task of a benchmark opens the run folder and goes on from what is there, as this process would. So a task whose worker died is simply
started again, on any node, and ends with the same rows. Every node must see the run folder, the data and the cache under
the same paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alpose.runtime.errors import AlposeError, ConfigError, MissingExtraError

from ..device import DeviceContext, Precision, device_context
from .results import Row
from .run import Run, RunConfig, open_run

RETRIES = 3
"""How often a task is started again whose worker, or whose node, died."""
WAITING = 1024
"""Calls that are handed to the cluster before one of them is done."""


@dataclass(frozen=True, slots=True)
class Task:
    """A part of a run that can be done anywhere."""

    name: str
    do: Callable[..., list[Row]]
    """A function of a module, called with the opened run and the arguments."""
    arguments: tuple[Any, ...]
    after: str | None = None
    """Name of the task that must be done first."""


@dataclass(frozen=True, slots=True)
class _Opener:
    """All that a worker needs to open the run as the driver did."""

    config: RunConfig
    folder: Path
    data_root: Path | None
    cache: Path
    device: str
    precision: Precision
    working_directory: str
    """Of the driver: paths may be relative to it."""

    def __call__(self) -> Run:
        os.chdir(self.working_directory)
        machine = device_context(self.device, self.precision)
        return open_run(self.config, self.folder, self.data_root, self.cache, machine)


@dataclass(frozen=True, slots=True)
class Call:
    """Work of a cluster."""

    name: str
    do: Callable[..., Any]
    """A function of a module, called with the arguments, and last with what ``after`` gave."""
    arguments: tuple[Any, ...]
    after: str | None = None
    """Name of the call before it that must be done first."""


def run_calls(calls: Sequence[Call], *, gpu: bool = False) -> Iterator[tuple[str, Any]]:
    """Run every call, each as soon as the one before it is done; yield name and result of each as it ends.

    Joins the cluster that ``RAY_ADDRESS`` names, or the one that the caller has joined, or begins one on this machine. It is handed
    :data:`WAITING` calls at a time, and forgets a result that no other call waits for.

    Raises:
        MissingExtraError: ray is not installed.
        AlposeError: what a call raised, or a call whose worker died again and again.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "--executor ray", "ray") from error
    began = not ray.is_initialized()
    if began:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    # Only what ends a worker is tried again: what our code raises, it would raise again.
    options = {"max_retries": RETRIES, "num_cpus": 1, "num_gpus": 1 if gpu else 0}
    of: dict[Any, Any] = {}
    needed = {call.after for call in calls}
    known: dict[str, Any] = {}
    name_of: dict[Any, str] = {}
    remaining = iter(calls)
    try:
        while True:
            for call in islice(remaining, max(0, WAITING - len(name_of))):
                work = of.setdefault(call.do, ray.remote(call.do))
                before = known[call.after] if call.after else None
                reference = work.options(name=call.name, **options).remote(*call.arguments, before)
                name_of[reference] = call.name
                if call.name in needed:
                    known[call.name] = reference
            if not name_of:
                return
            (done, *_), _ = ray.wait(list(name_of), num_returns=1)
            name = name_of.pop(done)
            try:
                found = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, AlposeError) else error) from None
            except ray.exceptions.RayError as error:
                raise AlposeError(f"{name}: its worker died {RETRIES + 1} times ({error}). The same command "
                                  "goes on from the last file") from error  # fmt: skip
            del done
            yield name, found
    finally:
        for reference in name_of:
            ray.cancel(reference, force=True)
        if began:
            ray.shutdown()


def run_on_ray(
    config: RunConfig,
    folder: Path,
    machine: DeviceContext,
    *,
    data_root: Path | None,
    cache: Path,
    tasks: Sequence[Task],
    collect: Callable[[list[Row]], None],
) -> None:
    """Run every task of a benchmark, each as soon as the one before it is done; ``collect`` is given the rows of each as it ends.

    Raises:
        ConfigError: under ``torchrun``.
        MissingExtraError, AlposeError: see :func:`run_calls`.
    """
    if machine.world > 1:
        raise ConfigError("--executor ray spreads whole trainings, torchrun splits each: use one of them")
    opener = _Opener(config, folder, data_root, cache, machine.device.type, machine.precision, os.getcwd())
    calls = [Call(task.name, _work, (opener, task.do, task.arguments), task.after) for task in tasks]
    for _, rows in run_calls(calls, gpu=machine.device.type == "cuda"):
        collect(rows)


def _work(opener: _Opener, do: Callable[..., list[Row]], arguments: tuple[Any, ...], _before: Any) -> list[Row]:
    """On a worker; Ray starts it when what ``_before`` refers to is there."""
    return do(opener(), *arguments)
