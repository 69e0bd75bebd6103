"""What an inbox says of a fleet as a whole: how far its frames have come, and what its monitors have counted."""

from __future__ import annotations

import sqlite3
from typing import Any


def status(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """One row a device: how many records, and how far they have come."""
    names = ("device", "records", "flagged", "control", "fetched", "acknowledged", "deleted", "chosen", "annotated",
             "first_ns", "last_ns", "bundles")  # fmt: skip
    rows = db.execute(
        "SELECT device, count(*), sum(flagged), sum(control_rate IS NOT NULL), sum(fetched), sum(acknowledged), "
        "sum(deleted), sum(batch IS NOT NULL), sum(annotated), min(captured_ns), max(captured_ns), "
        "count(DISTINCT bundle) FROM record GROUP BY device ORDER BY device"
    )
    return [dict(zip(names, row, strict=True)) for row in rows]


def field_tallies(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """The monitors' counts by device and bundle, and how many of the flagged frames cannot be labelled any more:
    they never came, or were gone from their device before their pictures were fetched."""
    here = {
        (device, bundle): n for device, bundle, n in db.execute(
            "SELECT device, bundle, count(*) FROM record WHERE flagged = 1 AND (deleted = 0 OR fetched = 1 OR pictures = 0) "
            "GROUP BY device, bundle")
    }  # fmt: skip
    rows = db.execute(
        "SELECT device, bundle, sum(frames), sum(flagged), sum(control) FROM tally GROUP BY device, bundle ORDER BY 1, 2"
    )
    return [{"device": device, "bundle": bundle, "frames": frames, "flagged": flagged, "control": control,
             "lost": max(0, flagged - here.get((device, bundle), 0))}
            for device, bundle, frames, flagged, control in rows]  # fmt: skip
