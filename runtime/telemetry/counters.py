"""The counters of a monitor and of its app: every thread writes, none waits for another, and the sums are exact."""

from __future__ import annotations

import itertools
import re
import threading
import weakref
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import ConfigError

COUNTERS: Mapping[str, tuple[str | None, str]] = {
    "frames_total": ("decision", "Frames by what was decided: flagged, control (kept by chance alone), passed."),
    "persons_total": ("decision", "Persons on frames by what was decided; a frame with two counts twice."),
    "source_faults_total": (
        "what",
        "Frames that the source lost before the monitor saw them, and cameras opened again, by what.",
    ),
    "unoccupied_frames_total": (None, "Frames that were searched and showed nobody; they are passed, or control."),
    "dropped_boxes_total": (
        "reason",
        "Boxes of a detector that no pose was looked for in: not_finite, empty, outside, many, score.",
    ),
    "mistaken_people_total": (None, "People of whom there is no answer: a net of whole frames saw somebody near them."),
    "dropped_frames_total": (
        "reason",
        "Records that should have been kept and were not, by reason: one for each person on a frame.",
    ),
    "dropped_pictures_total": ("reason", "Pictures of kept frames that were not kept, by reason."),
    "dropped_scores_total": ("reason", "Chunks of the score log that were not written, by reason."),
    "dropped_tallies_total": (None, "Hours of the tally of frames that were not written."),
    "write_errors_total": ("reason", "Attempts to write the queue that failed and were repeated, by reason."),
    "internal_errors_total": ("where", "Errors that were caught so that the camera could go on, by place."),
    "fallback_total": ("what", "Replacements of what was asked for by what was there."),
    "refused_scores_total": (None, "Failure probabilities that were not finite."),
    "drift_scores_total": (None, "Scores that entered the drift test."),
    # Of the queue's file, since it was made:
    "stored_total": (None, "Records that were stored."),
    "refused_total": ("reason", "Records that the queue did not take, by reason."),
    "evicted_total": ("reason", "Records that the queue gave up, by reason."),
    "evicted_scores_total": ("reason", "Chunks of the score log that the queue gave up, by reason."),
    "evicted_tallies_total": ("reason", "Hours of the tally of frames that the queue gave up, by reason."),
    "deleted_total": ("reason", "Records that were deleted after they had been fetched, or by force."),
    "purged_total": (None, "Records that were purged."),
    "acknowledged_total": (None, "Records that somebody has fetched."),
    "acknowledgement_mismatch_total": (None, "Acknowledged records whose hash was another one."),
    "acknowledgement_refused_total": (None, "Acknowledgement files that could not be applied."),
    "control_demoted_total": (None, "Flagged records that left the control stream."),
    "recovered_total": (None, "Records that were saved from a damaged file."),
    "quarantined_total": (None, "Damaged files that were moved aside."),
    "orphaned_logs_total": (None, "Write-ahead logs of files that went away while they were open."),
    "unreadable_states_total": ("reason", "States of programs that could not be read."),
    "unsaved_states_total": (None, "States of policies for which the queue had no place."),
    "clock_backwards_total": (None, "Times that the wall clock was found behind the queue's own."),
    "clock_implausible_total": (None, "Starts with a wall clock too far ahead to be believed."),
}
"""The counters of alpose: their label, if they have one, and their help. An app may count under other names as well."""
OTHER_METRICS = frozenset({
    "up", "predicted_failure_ratio", "crop_seconds", "inference_seconds", "decision_seconds", "frame_seconds",
    "trigger_threshold", "uptime_seconds", "queue_records", "queue_bytes", "queue_limit_bytes",
    "queue_oldest_timestamp_seconds", "queue_waiting_frames", "queue_failing", "drift_testing", "drift_alarm",
    "drift_evidence_log10", "drift_limit_log10", "engine_info", "engine_fallback", "selftest_max_error_pixels",
    "bundle_info", "device_info",
})  # fmt: skip
"""Metrics that are not counters: a counter may not have the name of one and ``_total``."""
MOST_SERIES = 1000
"""Different names and labels that an app may count under: each costs memory for ever, here and in Prometheus."""
MOST_LETTERS = 128
"""Of the name of a counter or label, and of a label's value."""


def is_counter_name(name: object) -> bool:
    """Whether something is the name of a counter as Prometheus takes it, without ``alpose_``."""
    return isinstance(name, str) and len(name) <= MOST_LETTERS and bool(re.fullmatch("[a-z][a-z0-9_]*_total", name))


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
    milliseconds and not the nanoseconds of the addition. A lock of snapshots alone would be no better: a signal's handler
    that closes the Monitor waits for the disk thread, on a thread that may be in the middle of a snapshot.
    """

    def __init__(self) -> None:
        self._mine = threading.local()
        self._numbers = itertools.count()
        self._threads: dict[int, tuple[weakref.ref[_Owner], dict[Count, int]]] = {}
        self._ended = _Ended({}, frozenset())
        self._collecting = threading.Lock()  # who does not get it at once leaves collecting to whoever has it
        self._of_app: dict[str, set[Count]] = {}

    def add_checked(self, name: str, n: int, labels: Mapping[str, str]) -> None:
        """Add to a counter of the app's own; :class:`ConfigError` for anything that a metrics page could not show."""
        words = (*labels, *labels.values())
        if not is_counter_name(name) or type(n) is not int or n < 0:
            raise ConfigError(
                f"a counter counts upwards under a name such as broken_frames_total, got {name!r:.150} and {n!r:.50}: "
                "small letters, digits and _, and _total at the end"
            )
        if not all(isinstance(word, str) and len(word) <= MOST_LETTERS and word.isprintable() for word in words):
            raise ConfigError(
                f"the labels of {name} must be texts of at most {MOST_LETTERS} printable letters, got {labels!r:.200}"
            )
        if not all(re.fullmatch("[a-z][a-z0-9_]*", label) and label not in ("camera", "le") for label in labels):
            raise ConfigError(
                f"the labels of {name} must be words such as reason, not camera or le, got {list(labels)}"
            )
        if name.removesuffix("_total") in OTHER_METRICS:
            raise ConfigError(f"{name} is too near to a metric of alpose: take another name")
        series = self._of_app.setdefault(name, set())
        if name in COUNTERS:
            wanted = {label for label in (COUNTERS[name][0],) if label}
        else:
            wanted = {label for label, _ in next(iter(series)).labels} if series else set(labels)
        if set(labels) != wanted:
            raise ConfigError(
                f"{name} is counted with the labels {sorted(wanted)}, got {sorted(labels)}: take another name"
            )
        key = Count(name, tuple(sorted(labels.items())))
        if key not in series and sum(map(len, self._of_app.values())) >= MOST_SERIES:
            raise ConfigError(
                f"{name} with {dict(labels)} would be one series more than {MOST_SERIES}: the values of labels must be "
                "few, such as reasons, never ids or times"
            )
        series.add(key)
        self.add(name, n, **labels)

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
        self._collect_ended()
        while True:
            ended = self._ended
            threads = self._threads.copy()  # one step, as the copies below: their threads may add meanwhile
            if self._ended is ended:
                break
        total = dict(ended.total)
        for number, (_, counts) in threads.items():
            if number not in ended.threads:
                _add(total, counts.copy())
        return dict(sorted(total.items()))

    def _first(self) -> dict[Count, int]:
        """The dictionary of a thread that counts for the first time."""
        self._collect_ended()
        owner = _Owner()
        self._threads[next(self._numbers)] = weakref.ref(owner), owner.counts
        self._mine.owner = owner
        return owner.counts

    def _collect_ended(self) -> None:
        """Keep the counts of threads that have ended, and not their dictionaries: an app may make a thread per frame."""
        if not self._collecting.acquire(blocking=False):
            return
        try:
            ended = {number: counts for number, (owner, counts) in self._threads.copy().items() if owner() is None}
            if ended:
                total = dict(self._ended.total)
                for number, counts in ended.items():
                    if number not in self._ended.threads:  # an exception came in between the last time
                        _add(total, counts)
                self._ended = _Ended(total, frozenset(ended))  # from here on snapshots pass over their dictionaries
                for number in ended:
                    del self._threads[number]
        finally:
            self._collecting.release()


class _Ended(NamedTuple):
    """What threads that have ended had counted. Replaced as a whole, so that a snapshot sees each of them once."""

    total: dict[Count, int]
    threads: frozenset[int]
    """Those whose dictionaries may still stand beside it."""


def _add(total: dict[Count, int], counts: dict[Count, int]) -> None:
    for key, n in counts.items():
        total[key] = total.get(key, 0) + n


class _Owner:
    """Dies with its thread, also with one that Python did not start."""

    __slots__ = ("__weakref__", "counts")

    def __init__(self) -> None:
        self.counts: dict[Count, int] = {}
