"""``--executor ray``: the tasks of a benchmark spread over a Ray cluster.

A task opens the run folder and goes on from what is there, as this process would. So a task whose worker died is simply
started again, on any node, and ends with the same rows. Every node must see the run folder, the data and the cache under
the same paths.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpose.runtime.errors import AlposeError, ConfigError, MissingExtraError

from .device import DeviceContext, Precision, device_context
from .results import Row
from .run import Run, RunConfig, open_run

RETRIES = 3
"""How often a task is started again whose worker, or whose node, died."""


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
    """Run every task, each as soon as the one before it is done; ``collect`` is given the rows of each as it ends.

    Joins the cluster that ``RAY_ADDRESS`` names, or the one that the caller has joined, or begins one on this machine.

    Raises:
        MissingExtraError: ray is not installed.
        ConfigError: under ``torchrun``.
        AlposeError: what a task raised, or a task whose worker died again and again.
    """
    if machine.world > 1:
        raise ConfigError("--executor ray spreads whole trainings, torchrun splits each: use one of them")
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "--executor ray", "ray") from error
    opener = _Opener(config, folder, data_root, cache, machine.device.type, machine.precision, os.getcwd())
    began = not ray.is_initialized()
    if began:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    # Only what ends a worker is tried again: what our code raises, it would raise again.
    options = {"max_retries": RETRIES, "num_cpus": 1, "num_gpus": 1 if machine.device.type == "cuda" else 0}
    work = ray.remote(_work)
    pending: dict[str, Any] = {}
    for task in tasks:
        before = pending[task.after] if task.after else None
        pending[task.name] = work.options(name=task.name, **options).remote(opener, task.do, task.arguments, before)
    name_of, waiting = {reference: name for name, reference in pending.items()}, list(pending.values())
    try:
        while waiting:
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            try:
                collect(ray.get(done))
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, AlposeError) else error) from None
            except ray.exceptions.RayError as error:
                raise AlposeError(f"{name_of[done]}: its worker died {RETRIES + 1} times ({error}). The same command "
                                  "goes on from the last file") from error  # fmt: skip
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        if began:
            ray.shutdown()


def _work(opener: _Opener, do: Callable[..., list[Row]], arguments: tuple[Any, ...], _before: Any) -> list[Row]:
    """On a worker; Ray starts it when what ``_before`` refers to is there."""
    return do(opener(), *arguments)
