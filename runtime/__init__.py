"""What runs on the device, and the numpy code that every other part shares with it.

::

    from alpose import runtime

    monitor = runtime.Monitor("driver.alpose", queue="flagged.db", trigger=runtime.Budget(per_hour=20))
    for frame in camera:
        verdict = monitor(frame)

It imports numpy and nothing else; an engine, an encoder, metrics and encryption import their library when they are made.
"""

from .bundle import Bundle
from .crop import Crop, cut, square_crop
from .engines.catalog import open_engine
from .errors import AlposeError
from .locate.detector import YoloDetector
from .monitor import Monitor
from .queue import Picture, Queue, Record
from .skeleton import COCO, LSP, MPII, Skeleton
from .telemetry.stats import Stats
from .triggers import (
    AllOf,
    AnyOf,
    Budget,
    Catch,
    Control,
    Cooldown,
    Episodes,
    Jump,
    Limbs,
    Novel,
    Reason,
    Threshold,
    Trigger,
    parse,
)
from .types import Engine, Outputs, Timings, Verdict

__all__ = [
    "COCO",
    "LSP",
    "MPII",
    "AllOf",
    "AlposeError",
    "AnyOf",
    "Budget",
    "Bundle",
    "Catch",
    "Control",
    "Cooldown",
    "Crop",
    "Engine",
    "Episodes",
    "Jump",
    "Limbs",
    "Monitor",
    "Novel",
    "Outputs",
    "Picture",
    "Queue",
    "Reason",
    "Record",
    "Skeleton",
    "Stats",
    "Threshold",
    "Timings",
    "Trigger",
    "Verdict",
    "YoloDetector",
    "cut",
    "open_engine",
    "parse",
    "square_crop",
]
