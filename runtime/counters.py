"""Counters that any thread adds to and that no thread waits for."""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple


class Count(NamedTuple):
    """What a counter counts: ``Count("dropped_frames_total", (("reason", "disk_full"),))``."""

    name: str
    """As Prometheus writes it, without ``alpose_``."""
    labels: tuple[tuple[str, str], ...] = ()
    """Sorted by key. Values are few and known beforehand: a reason, never an id."""

    def __str__(self) -> str:
        inner = ",".join(f"{key}={value}" for key, value in self.labels)
        return f"{self.name}{{{inner}}}" if inner else self.name


class Counters:
    """Counts that any thread adds to and that no thread waits for.

    Every thread writes into a dictionary of its own, and a snapshot sums them. With one lock around a shared dictionary
    the camera would wait whenever the interpreter switches threads while the disk thread holds it, which costs
    milliseconds and not the nanoseconds of the addition.
    """

    def __init__(self) -> None:
        self._mine = threading.local()
        self._lock = threading.Lock()  # taken for a thread's first count and by snapshots, never by add
        self._threads: list[tuple[weakref.ref[_Owner], dict[Count, int]]] = []
        self._ended: dict[Count, int] = {}

    def add(self, name: str, n: int = 1, **labels: str) -> None:
        """Add ``n`` to a counter: ``add("dropped_frames_total", reason="disk_full")``."""
        items = tuple(labels.items())
        key = Count(name, items if len(items) < 2 else tuple(sorted(items)))
        try:
            counts: dict[Count, int] = self._mine.owner.counts
        except AttributeError:
            counts = self._first()
        counts[key] = counts.get(key, 0) + n

    def snapshot(self) -> dict[Count, int]:
        """All counts, sorted by name and labels."""
        with self._lock:
            self._collect_ended()
            total = dict(self._ended)
            for _, counts in self._threads:
                for key, n in counts.copy().items():  # the copy is one step: its thread may add meanwhile
                    total[key] = total.get(key, 0) + n
        return dict(sorted(total.items()))

    def _first(self) -> dict[Count, int]:
        """The dictionary of a thread that counts for the first time."""
        owner = _Owner()
        with self._lock:
            self._collect_ended()
            self._threads.append((weakref.ref(owner), owner.counts))
        self._mine.owner = owner
        return owner.counts

    def _collect_ended(self) -> None:
        """Keep the counts of threads that have ended, and not their dictionaries: an app may make a thread per frame."""
        running = []
        for owner, counts in self._threads:
            if owner() is not None:
                running.append((owner, counts))
                continue
            for key, n in counts.items():
                self._ended[key] = self._ended.get(key, 0) + n
        self._threads = running


class _Owner:
    """Dies with its thread, also with one that Python did not start."""

    __slots__ = ("__weakref__", "counts")

    def __init__(self) -> None:
        self.counts: dict[Count, int] = {}
