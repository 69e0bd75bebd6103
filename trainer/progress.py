"""Progress that a person can watch and a log can bear.

On a terminal a bar with the time left; elsewhere one log line a minute.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

log = logging.getLogger("alpose")

LOG_EVERY_S = 60.0

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int, first: int = 0) -> Iterator[T]:
    """Pass items on and show how far it is; ``first`` items of ``total`` were done before."""
    if sys.stderr.isatty():
        from tqdm import tqdm  # the data commands also work without the train extra

        yield from tqdm(items, desc=what, total=total, initial=first, leave=False, dynamic_ncols=True)
        return
    started = said = time.monotonic()
    for done, item in enumerate(items, start=first + 1):
        yield item
        now = time.monotonic()
        if now - said >= LOG_EVERY_S and done < total:
            said = now
            log.info(
                "%s: %d of %d, about %.0f s left", what, done, total, (now - started) / (done - first) * (total - done)
            )


def bar(*args: Any, **options: Any) -> Any:
    """A bar of tqdm's on a terminal, nothing elsewhere; imported late, because the data commands work without it too."""
    from tqdm import tqdm

    return tqdm(*args, disable=None, **options)
