"""``--executor ray``: each (method, seed) of a benchmark is a task of a Ray cluster.

What a task does is what this process would do, from the same files: it opens the run folder and goes on from what is
there. So a task whose worker died is simply started again, on any node, and ends with the same rows. Every node must
see the run folder, the data and the cache under the same paths.

Of each seed the base model comes first, with the heads of all methods and everyone's scores; its methods follow at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpose.runtime.errors import AlposeError, ConfigError, MissingExtraError

from .device import Machine, machine
from .results import Row
from .run import CyclesConfig, Run, open_run
from .samplers import Method

RETRIES = 3
"""How often a task is started again whose worker, or whose node, died."""


@dataclass(frozen=True, slots=True)
class Errand:
    """All that a worker needs to open the run as the driver did."""

    config: CyclesConfig
    folder: Path
    data_root: Path | None
    cache: Path
    bases: Path | None
    device: str
    precision: Any
    here: str
    """The driver's working directory: paths may be relative to it."""

    def open(self) -> Run:
        """On a worker."""
        os.chdir(self.here)
        used = machine(self.device, self.precision)
        return open_run(self.config, self.folder, self.data_root, self.cache, used)


def run_on_ray(
    config: CyclesConfig,
    folder: Path,
    used: Machine,
    *,
    data_root: Path | None,
    cache: Path,
    bases: Path | None,
    collect: Callable[[list[Row]], None],
) -> None:
    """Run every (method, seed); ``collect`` is given the rows of each as it ends.

    Joins the cluster that ``RAY_ADDRESS`` names, or the one that the caller has joined, or begins one on this machine.

    Raises:
        MissingExtraError: ray is not installed.
        ConfigError: under ``torchrun``.
        AlposeError: what a task raised, or a task whose worker died again and again.
    """
    if used.world > 1:
        raise ConfigError("--executor ray spreads whole trainings, torchrun splits each: use one of them")
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "--executor ray", "ray") from error
    errand = Errand(config, folder, data_root, cache, bases, used.device.type,
                    "fp32" if str(used.dtype) == "torch.float32" else "bf16", os.getcwd())  # fmt: skip
    began = not ray.is_initialized()
    if began:
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    # Only what ends a worker is tried again: what our code raises, it would raise again.
    options = {"max_retries": RETRIES, "num_cpus": 1, "num_gpus": 1 if used.device.type == "cuda" else 0}
    base = ray.remote(_base).options(**options)
    method_of = ray.remote(_method).options(**options)
    what: dict[Any, str] = {}
    for seed in range(config.seeds):
        ready = base.remote(errand, seed)
        what[ready] = f"the base model of seed {seed}"
        for method in config.methods:
            what[method_of.remote(errand, seed, method, ready)] = f"{method} of seed {seed}"
    waiting = list(what)
    try:
        while waiting:
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            try:
                collect(ray.get(done))
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, AlposeError) else error) from None
            except ray.exceptions.RayError as error:
                raise AlposeError(f"{what[done]}: its worker died {RETRIES + 1} times ({error}). The same command "
                                  "goes on from the last file") from error  # fmt: skip
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
        if began:
            ray.shutdown()


def _base(errand: Errand, seed: int) -> list[Row]:
    """A task: the base model of a seed; no rows."""
    from .cycles import prepare_base

    prepare_base(errand.open(), seed, errand.bases)
    return []


def _method(errand: Errand, seed: int, method: Method, _ready: list[Row]) -> list[Row]:
    """A task: all stages of one method of one seed, once its base model is there."""
    from .cycles import rows_of

    return rows_of(errand.open(), seed, method)
