"""The queue: one SQLite file in which flagged frames wait for their harvest. ``runtime/QUEUE.md`` specifies the file."""

from .acknowledgements import Applied
from .clock import Clock
from .eviction import Stored
from .ledger import BundleInfo, ScoreChunk, Tally
from .queue import Item, Queue
from .reading import QueueInfo
from .record import Picture, Record
from .recovery import CheckReport, RecoverReport, recover
from .tables import ControlPeriod, Damage

__all__ = [
    "Applied",
    "BundleInfo",
    "CheckReport",
    "Clock",
    "ControlPeriod",
    "Damage",
    "Item",
    "Picture",
    "Queue",
    "QueueInfo",
    "Record",
    "RecoverReport",
    "ScoreChunk",
    "Stored",
    "Tally",
    "recover",
]
