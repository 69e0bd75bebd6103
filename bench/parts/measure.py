"""Timing side by side: whoever is compared takes turns in one process, round after round.

A machine drifts (clock, temperature, neighbours), so numbers of different runs do not compare. Here every round calls
every contestant once, and a ratio is taken inside each round before any median is.

Shapes: R rounds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from alpose.runtime.errors import AlposeError, ConfigError
from alpose.trainer.device import DeviceContext, environment

RESULTS = Path(__file__).resolve().parents[1] / "results"

Task = Callable[[], object]
"""One call of what is measured."""
Clock = Callable[[], float]

K = TypeVar("K", bound=Hashable)


def interleave(
    tasks: Mapping[K, Task],
    *,
    rounds: int,
    warmup: int = 1,
    calls: int = 1,
    sync: Callable[[], object] = lambda: None,
    clock: Clock = time.perf_counter,
) -> dict[K, tuple[float, ...]]:
    """Seconds per call of every task, one number per round.

    A round calls every task, in their order; every second round goes backwards, so that nobody always runs behind
    the same neighbour and a steady drift cancels.

    Args:
        tasks: what is compared.
        rounds: how many count.
        warmup: rounds before them that do not.
        calls: calls in a row whose mean is one number; for tasks that are short beside the clock's noise.
        sync: waits until the device has done what was asked of it; called before and after the clock is read.
        clock: seconds.
    """
    if rounds < 1 or warmup < 0 or calls < 1:
        raise ConfigError(f"rounds and calls must be at least 1 and warmup 0, got {rounds}, {calls} and {warmup}")
    seconds: dict[K, list[float]] = {key: [] for key in tasks}
    order = list(tasks)
    for number in range(-warmup, rounds):
        for key in order if number % 2 == 0 else reversed(order):
            took = _time(tasks[key], calls, sync, clock)
            if number >= 0:
                seconds[key].append(took)
    return {key: tuple(values) for key, values in seconds.items()}


def _time(task: Task, calls: int, sync: Callable[[], object], clock: Clock) -> float:
    sync()
    started = clock()
    for _ in range(calls):
        task()
    sync()
    return (clock() - started) / calls


CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "processor": time.process_time}
"""What seconds are: of the wall, or those that a processor worked for this process, which others beside it change little. The latter
add up over threads: with one thread both are the same on a quiet machine."""

clock_option = click.option(
    "--clock", "clock_name", default="wall", show_default=True, type=click.Choice(list(CLOCKS)),
    help="processor: seconds that a processor worked for this process, for a busy machine; with --threads 1.",
)  # fmt: skip


def refuse_clock(name: str) -> None:
    """Refuse processor seconds of several threads: they would hide what these are worth."""
    if name == "processor" and torch.get_num_threads() != 1:
        raise ConfigError(
            f"--clock processor adds up the seconds of {torch.get_num_threads()} threads: use --threads 1"
        )


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits for a device: a GPU works on after a call has returned, a CPU does not."""
    if device.type != "cuda":
        return lambda: None
    return lambda: torch.cuda.synchronize(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median of the rounds, with all that is needed to see how far to trust it."""

    median: float
    min: float
    max: float
    quartiles: tuple[float, float]
    """Lower and upper."""


def spread(values_R: Sequence[float]) -> Spread:
    """Median, range and quartiles; one round alone is its own quartiles."""
    if not values_R:
        raise ConfigError("there is no spread of no rounds: measure at least one")
    low, _, high = statistics.quantiles(values_R, n=4, method="inclusive") if len(values_R) > 1 else 3 * [values_R[0]]
    return Spread(median=statistics.median(values_R), min=min(values_R), max=max(values_R), quartiles=(low, high))


def rates(seconds_R: Sequence[float], items: int) -> tuple[float, ...]:
    """Items per second in each round."""
    return tuple(items / seconds for seconds in seconds_R)


def paired(values_R: Sequence[float], base_R: Sequence[float]) -> tuple[float, ...]:
    """Value over base within each round: what slows a whole round down falls out."""
    return tuple(value / base for value, base in zip(values_R, base_R, strict=True))


def load_average() -> tuple[float, ...] | None:
    """Runnable processes of the last 1, 5 and 15 minutes; None where the system does not count them.

    More than the threads of the measurement means that others ran beside it.
    """
    return os.getloadavg() if hasattr(os, "getloadavg") else None


def machine_facts(used: DeviceContext) -> dict[str, Any]:
    """The machine, without the precision: that is a contestant's."""
    facts = environment(used)
    del facts["precision"]
    return facts


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns by spaces; the first one to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


class Bench(click.Command):
    """A command whose expected errors are one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run; an :class:`AlposeError` becomes exit status 1."""
        try:
            return super().invoke(ctx)
        except AlposeError as error:
            click.echo(f"{self.name}: {error}", err=True)
            ctx.exit(1)
