"""What the queue answers: small values that hold no file open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of one record that was put. Its word holds: ``kept`` means on the disk, synced, whole."""

    id: str
    kept: bool
    reason: str | None
    """Why it was not kept: ``too_large``; ``full`` (every record in the queue is worth more); ``control`` (the control
    stream's rate has fallen below its draw). Counted in the file. ``again`` with ``kept``: it was there already."""
    sha256: str
    """Of the record; empty where it was not kept."""
    bytes: int
    """Of the manifest and all pictures."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One row that is not what was written."""

    id: str | None
    """None where not even that can be read."""
    row: int
    problem: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What acknowledgement files did."""

    files: int = 0
    acknowledged: int = 0
    deleted: int = 0
    unknown: int = 0
    """Ids that are not in the queue: evicted meanwhile, or applied before."""
    mismatched: tuple[str, ...] = ()
    """Ids whose sha256 is another one: kept as they are."""
    refused: tuple[tuple[str, str], ...] = ()
    """(file name, what is wrong with it) of files that were set aside."""

    def plus(self, other: Applied) -> Applied:
        """Both together."""
        return Applied(
            self.files + other.files,
            self.acknowledged + other.acknowledged,
            self.deleted + other.deleted,
            self.unknown + other.unknown,
            self.mismatched + other.mismatched,
            self.refused + other.refused,
        )


@dataclass(frozen=True, slots=True)
class ControlPeriod:
    """A stretch of the control stream between two times at which it was harvested empty."""

    number: int
    began_ns: int
    ended_ns: int | None
    """None for the one that goes on."""
    rate: float
    """The smallest draw that was evicted in it, 1 where none was: the records of the period that have a smaller draw
    are a simple random sample at min(rate when drawn, this)."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Frames that a monitor saw in one hour: what a field report divides by."""

    device: str
    camera: str
    bundle: str
    hour_ns: int
    """Unix time of the beginning of the hour."""
    frames: int
    flagged: int
    control: int
    kept: int


@dataclass(frozen=True, slots=True)
class ScoreChunk:
    """A stretch of the score log; ``data`` is opaque to the queue."""

    number: int
    device: str
    camera: str
    bundle: str
    began_ns: int
    ended_ns: int
    frames: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """What is needed to read a bundle's records when the bundle itself is not at hand."""

    sha256: str
    name: str
    facts: Mapping[str, Any]
    """JSON values: skeleton, crop rule, calibration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFacts:
    """The state of a queue at one moment."""

    path: str
    records: int
    """In all states."""
    pulled: int
    """Of these: acknowledged, and not deleted yet."""
    control: int
    """Of these: in the control stream."""
    pictures: int
    bytes: int
    """Manifests and pictures."""
    file_bytes: int
    """The database file, free pages included."""
    wal_bytes: int
    max_bytes: int
    """The bound on the two above together."""
    oldest_ns: int | None
    """Unix time, by the queue's clock, of the oldest record that is still queued."""
    newest_ns: int | None
    control_periods: tuple[ControlPeriod, ...]
    counters: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(name, reason) → how often, over the life of the file."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What :meth:`Queue.check` found."""

    records: int
    pictures: int
    damaged: tuple[Damage, ...]
    orphans: int
    """Pictures without a record."""
    integrity: tuple[str, ...]
    """What SQLite's own check says; empty where all is well."""

    @property
    def ok(self) -> bool:
        """Nothing at all is wrong."""
        return not (self.damaged or self.orphans or self.integrity)


@dataclass(frozen=True, slots=True)
class RecoverReport:
    """What :func:`recover` saved of a damaged file, and what not."""

    records: int
    pictures: int
    bundles: int
    chunks: int
    tallies: int
    lost: tuple[Damage, ...]
    """Records of which something is left, but not all."""
    orphans: int
    """Whole pictures whose record is gone: they are not copied, for nobody could say what they show."""
    unreadable: int
    """Rows and ranges of rows that SQLite could not read at all."""
