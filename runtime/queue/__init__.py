"""The queue: one SQLite file in which flagged frames wait for their harvest. ``runtime/QUEUE.md`` specifies the file."""

from .clock import Clock
from .facts import (
    Applied,
    BundleFacts,
    CheckReport,
    ControlPeriod,
    Damage,
    QueueFacts,
    RecoverReport,
    ScoreChunk,
    Stored,
    Tally,
)
from .record import Picture, Record
from .recovery import recover
from .store import Item, Queue

__all__ = [
    "Applied",
    "BundleFacts",
    "CheckReport",
    "Clock",
    "ControlPeriod",
    "Damage",
    "Item",
    "Picture",
    "Queue",
    "QueueFacts",
    "Record",
    "RecoverReport",
    "ScoreChunk",
    "Stored",
    "Tally",
    "recover",
]
