"""Between the camera's thread and the recorder's: a bounded line that neither side ever waits for while adding to it."""

from __future__ import annotations

import queue
from typing import Generic, TypeVar

T = TypeVar("T")


class HandOver(Generic[T]):
    """A line that is bounded in items and in bytes; one thread at a time adds, one other takes.

    The two share no lock. Python switches threads in the middle of anything, and a lock whose holder does not run makes
    the other wait for milliseconds. So each side counts what it did, and the difference is what waits.

    Args:
        depth: most items.
        most_bytes: of all items together; a single one is taken whatever its size.
    """

    def __init__(self, depth: int, most_bytes: int) -> None:
        self._depth, self._most_bytes = depth, most_bytes
        self._line: queue.SimpleQueue[tuple[T, int] | None] = queue.SimpleQueue()
        self._added = self._added_bytes = 0
        self._taken = self._taken_bytes = 0

    @property
    def waiting(self) -> int:
        """Items."""
        return self._added - self._taken

    @property
    def waiting_bytes(self) -> int:
        """Bytes of them."""
        return self._added_bytes - self._taken_bytes

    def room(self, nbytes: int) -> bool:
        """Whether an item of this size may be added."""
        waiting = self.waiting
        return waiting < self._depth and (not waiting or self.waiting_bytes + nbytes <= self._most_bytes)

    def add(self, item: T, nbytes: int) -> None:
        """Add an item for which there is :meth:`room`."""
        self._added += 1
        self._added_bytes += nbytes
        self._line.put((item, nbytes))

    def wake(self) -> None:
        """Let whoever waits in :meth:`take` look around."""
        self._line.put(None)

    def take(self, timeout_s: float) -> T | None:
        """The next item, or None: none came within ``timeout_s``, or somebody called :meth:`wake`."""
        try:
            entry = self._line.get(timeout=timeout_s) if timeout_s > 0 else self._line.get_nowait()
        except queue.Empty:
            return None
        if entry is None:
            return None
        item, nbytes = entry
        self._taken += 1
        self._taken_bytes += nbytes
        return item
