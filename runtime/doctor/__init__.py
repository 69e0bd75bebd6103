"""Why does it not work here, or will it not work later? ``alpose-monitor doctor``; ``docs/doctor.md`` lists the checks.

What the machine is like is gathered once into an :class:`Environment`; the checks are functions of it. Only engines, disk
and soak are tried for real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import AlposeError
from .disk import check_disk, examine_disk
from .engines import check_bundle, check_engines
from .environment import Environment
from .machine import check_machine
from .queue import check_queue
from .report import Finding, Report, blocks, failed, summary
from .soak import check_soak, monitor_loop, soak
from .software import check_software

__all__ = ["Environment", "Finding", "Report", "blocks", "examine", "summary"]


def examine(
    bundle: Path | None = None,
    *,
    queue: Path | None = None,
    soak_s: float = 60.0,
    public_key: Path | None = None,
    engine: str = "auto",
    threads: int | None = None,
    here: Environment | None = None,
    progress: Callable[[float], None] | None = None,
) -> Iterator[Finding]:
    """Every finding, as soon as it is found.

    Args:
        bundle: golden frames and soak need one.
        queue: where the queue is or would be; None: the current folder is looked at.
        soak_s: seconds at full load; 0 for none.
        public_key: the bundle must be signed by it.
        engine, threads: what the soak runs on.
        here: facts of the machine; None gathers them.
        progress: told how much of the soak is done.
    """
    here = here or Environment.here()
    yield from check_software(here)
    yield from check_machine(here)
    place = queue.absolute().parent if queue else Path.cwd()
    disk = examine_disk(place)
    yield from check_disk(disk)
    if queue is not None:
        yield from check_queue(queue)
    opened = None
    if bundle is not None:
        opened, finding = check_bundle(bundle, public_key)
        yield finding
    if bundle is None or opened is not None:
        yield from check_engines(opened, here)
    if opened is not None and soak_s > 0 and not disk.problem:
        try:
            with monitor_loop(opened, place, engine, threads) as step:
                yield check_soak(soak(step, soak_s, progress=progress))
        except AlposeError as error:
            yield failed("soak", str(error), "no monitor starts here")
