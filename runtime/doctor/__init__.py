"""Why does it not work here, or will it not work later? ``alpose-monitor doctor``; ``docs/doctor.md`` lists the checks.

The machine is looked at once (:mod:`.facts`), the checks (:mod:`.checks`) are functions of what was seen, and bundle, engines,
queue and load are tried for real (:mod:`.trials`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ..errors import AlposeError
from .checks import check
from .facts import Environment, examine_disk
from .report import Finding, Report, blocks, failed, summary
from .trials import check_bundle, check_engines, check_queue, check_soak, monitor_loop, soak

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
        progress: called with the share of the soak that is done.
    """
    place = queue.absolute().parent if queue else Path.cwd()
    here = replace(here or Environment.here(), disk=examine_disk(place))
    yield from check(here)
    if queue is not None:
        yield from check_queue(queue)
    opened = None
    if bundle is not None:
        opened, finding = check_bundle(bundle, public_key)
        yield finding
    if bundle is None or opened is not None:
        yield from check_engines(opened, here)
    if opened is not None and soak_s > 0 and not (here.disk and here.disk.problem):
        try:
            with monitor_loop(opened, place, engine, threads) as step:
                yield check_soak(soak(step, soak_s, progress=progress))
        except AlposeError as error:
            yield failed("soak", str(error), "no monitor starts with these options here")
