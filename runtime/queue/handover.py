"""The line between the camera's thread and the encoder's: bounded in frames and bytes, and never waited for."""

from __future__ import annotations

import queue as queues
from collections.abc import Sequence
from typing import NamedTuple

from .fields import MAX_PICTURES
from .record import Candidate, FrameCopy


class NewRecord(NamedTuple):
    """A candidate on its way to the encoder."""

    candidate: Candidate
    number: int
    """In order of submission."""
    frame: int
    """The camera's running number of the frame."""


class ClipFrame(NamedTuple):
    """A later frame of a camera, for the clips that wait for it."""

    camera: str
    frame: int
    copy: FrameCopy


class HandOver:
    """A line between two threads that is bounded in frames and in bytes; one thread at a time adds, one other takes.

    The two share no lock. Python switches threads in the middle of anything, and a lock whose holder does not run makes
    the other wait for milliseconds. So each side counts what it did, and the difference is what waits. A copy of a frame
    that several items hold, of people on it and of clips, counts with the first of them: what is held may be more by one
    item, whose copies others hold that are still in the line.

    Args:
        depth: most frames.
        most_bytes: of all copies together; a single item is taken whatever its size.
    """

    def __init__(self, depth: int, most_bytes: int) -> None:
        self._depth, self._most_bytes = depth, most_bytes
        self.submitted = self.dropped = 0
        """Frames for which there was room, and for which there was none, so far."""
        self._line: queues.SimpleQueue[tuple[NewRecord | ClipFrame, int, int] | None] = queues.SimpleQueue()
        self._added_items = self._added = self._added_bytes = 0
        self._taken_items = self._taken = self._taken_bytes = 0
        self._counted: dict[int, int] = {}
        """By the number of a copy, the item with which it was counted."""

    @property
    def waiting(self) -> int:
        """Frames that were added and not taken."""
        return self._added - self._taken

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the items that wait."""
        return self._added_bytes - self._taken_bytes

    def room(self, copies: Sequence[FrameCopy]) -> bool:
        """Whether an item with these copies of frames may be added."""
        frames, nbytes = self._more(copies)
        waiting = self.waiting
        return not frames or (
            waiting < self._depth and (not waiting or self.waiting_bytes + nbytes <= self._most_bytes)
        )

    def add(self, item: NewRecord | ClipFrame, copies: Sequence[FrameCopy]) -> None:
        """Add an item for which there is :meth:`room`."""
        frames, nbytes = self._more(copies)
        for copy in self._uncounted(copies):
            self._counted[copy.number] = self._added_items
        if len(self._counted) > MAX_PICTURES:
            self._counted = {number: at for number, at in self._counted.items() if at >= self._taken_items}
        self._added_items += 1
        self._added += frames
        self._added_bytes += nbytes
        self._line.put((item, frames, nbytes))

    def _more(self, copies: Sequence[FrameCopy]) -> tuple[int, int]:
        """How many frames and bytes more wait with these: none, where all of them wait already."""
        new = self._uncounted(copies)
        return int(bool(new) or not copies), sum(copy.rgb_HW3.nbytes for copy in new)

    def _uncounted(self, copies: Sequence[FrameCopy]) -> list[FrameCopy]:
        return [copy for copy in copies if self._counted.get(copy.number, -1) < self._taken_items]

    def wake(self) -> None:
        """Let whoever waits in :meth:`take` return."""
        self._line.put(None)

    def take(self, timeout_s: float) -> NewRecord | ClipFrame | None:
        """The next item, or None: none came within ``timeout_s``, or somebody called :meth:`wake`."""
        try:
            entry = self._line.get(timeout=timeout_s) if timeout_s > 0 else self._line.get_nowait()
        except queues.Empty:
            return None
        if entry is None:
            return None
        item, frames, nbytes = entry
        self._taken_items += 1
        self._taken += frames
        self._taken_bytes += nbytes
        return item
