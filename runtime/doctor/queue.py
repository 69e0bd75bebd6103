"""The queue that is already there: does it open, and is every record in it whole?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import AlposeError, QueueError
from .report import Finding, failed, ok, warning


def check_queue(path: Path) -> Iterator[Finding]:
    """Open a queue for reading and check it; nothing in it is changed."""
    from ..queue import Queue

    if not path.exists():
        yield ok("queue", f"{path} does not exist yet: a monitor makes it")
        return
    try:
        with Queue(path, readonly=True, on_damage="raise") as queue:
            facts, report = queue.info(), queue.check()
    except QueueError as error:
        if error.reason == "damaged":
            yield _damaged(path, str(error))
        elif error.reason == "locked":
            yield warning("queue", str(error), "another process holds it; ask again")
        else:
            yield failed("queue", str(error), "a monitor cannot keep frames there")
        return
    except AlposeError as error:
        yield failed("queue", str(error), "a monitor cannot keep frames there")
        return
    found = f"{path}: {facts.records} records, {facts.bytes / 1e6:.1f} MB; the file has {facts.file_bytes / 1e6:.1f} MB"
    if facts.oldest_ns is not None:
        found += f", the oldest record {(time.time_ns() - facts.oldest_ns) / 86400e9:.1f} days"
    given_up = facts.counters.get(("evicted_total", "full"), 0)
    if not report.ok:
        wrong = [f"{len(report.damaged)} damaged records", f"{report.orphans} pictures without one", *report.integrity]
        yield _damaged(path, f"{found}; {', '.join(wrong)}")
    elif given_up:
        yield warning("queue", f"{found}; it was full, and gave {given_up} records up for more valuable ones",
                      "harvest it more often, or give it more room: run --queue-size")  # fmt: skip
    else:
        yield ok("queue", f"{found}; every record is whole")


def _damaged(path: Path, found: str) -> Finding:
    into = path.with_name(f"{path.stem}-recovered{path.suffix}")
    return failed("queue", found, "a monitor moves a damaged queue aside and begins a fresh one; what is whole in it can "
                  "be saved", f"alpose-monitor queue recover {path} --into {into}")  # fmt: skip
