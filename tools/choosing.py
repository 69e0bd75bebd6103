"""From an inbox to a batch: what ``alpose-harvest select`` does.

Shapes: N records of the inbox.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from .batch import Batch, Strategy, check_name
from .inbox import Inbox
from .inbox_columns import Columns
from .select import MIN_DISTANCE, WAITING, Bools, Candidates, select


@dataclass(frozen=True, slots=True)
class Chosen:
    """A batch, and what it was chosen from."""

    batch: Batch
    path: Path
    devices: tuple[tuple[str, int, int, int, int], ...]
    """(device, records, open, chosen by value, drawn from the control stream), most chosen first."""
    triggers: tuple[tuple[str, int], ...]
    """(trigger, chosen frames that it had a part in keeping), most first."""
    waiting: int
    """Chosen frames whose pictures are still on their devices."""
    sealed: int
    """Chosen frames whose pictures are here, under seal."""


def choose(
    inbox: Inbox,
    budget: int,
    *,
    strategy: Strategy = "value",
    control: int | None = None,
    min_distance: float = MIN_DISTANCE,
    name: str | None = None,
    seed: int | None = None,
) -> Chosen:
    """Choose frames and write the batch. See :func:`~alpose.tools.select.select`; ``seed`` None is another draw each time."""
    now = datetime.now(timezone.utc)
    name = check_name(name or now.strftime("%Y%m%d-%H%M%S"))
    columns = inbox.columns()
    candidates = candidates_of(columns)
    selection = select(candidates, budget, np.random.default_rng(seed), strategy=strategy, control=control,
                       min_distance=min_distance)  # fmt: skip
    closed_N, left_out = left_out_of(columns)
    counted = {
        reason: n for reason, n in selection.counted.items() if reason in ("near-duplicates", WAITING, "not chosen")
    }
    batch = Batch(name=name, created=now.isoformat(timespec="seconds"), strategy=strategy, budget=budget,
                  choices=selection.choices, counted={**left_out, **counted},
                  tallies=tuple(inbox.field_tallies()) if selection.drawn_N.any() else ())  # fmt: skip
    path = inbox.add_batch(batch, (id_.decode() for id_ in columns.id_N[selection.drawn_N]))
    entries = inbox.entries(choice.id for choice in batch.choices)
    shut = [entry for entry in entries if inbox.image(entry.record.id) is None]
    triggers = Counter(trigger for entry in entries for trigger in {name for name, _, _ in entry.record.reasons})
    return Chosen(
        batch=batch, path=path, devices=_devices(columns, batch, ~closed_N), triggers=tuple(triggers.most_common()),
        waiting=sum(not entry.fetched for entry in shut), sealed=sum(entry.fetched for entry in shut),
    )  # fmt: skip


def candidates_of(columns: Columns) -> Candidates:
    """What may be chosen from an inbox, without copying its embeddings."""
    closed_N, _ = left_out_of(columns)
    return Candidates(
        id_N=columns.id_N,
        device_N=columns.device_N,
        devices=columns.devices,
        bundle_N=columns.bundle_N,
        failure_probability_N=columns.failure_probability_N,
        embedding_ND=columns.embedding_ND,
        control_N=columns.control_N,
        undrawn_N=~columns.drawn_N,
        open_N=~closed_N,
        taken_N=columns.chosen_N | columns.annotated_N,
    )


def left_out_of(columns: Columns) -> tuple[Bools, dict[str, int]]:
    """Records that cannot be chosen, and how many for which reason; each counts under the first that holds."""
    reasons = (
        ("annotated before", columns.annotated_N),
        ("chosen before", columns.chosen_N),
        ("only their keypoints were stored", ~columns.pictures_N),
        ("deleted on the device before they were fetched", columns.deleted_N & ~columns.fetched_N),
    )
    closed_N = np.zeros(len(columns), dtype=np.bool_)
    counts = {}
    for reason, holds_N in reasons:
        new = int((holds_N & ~closed_N).sum())
        closed_N |= holds_N
        if new:
            counts[reason] = new
    return closed_N, counts


def _devices(columns: Columns, batch: Batch, open_N: Bools) -> tuple[tuple[str, int, int, int, int], ...]:
    streams = {choice.id.encode(): choice.stream for choice in batch.choices}
    rows_M = np.flatnonzero(np.isin(columns.id_N, np.array(list(streams), dtype=columns.id_N.dtype)))
    got = Counter((int(columns.device_N[row]), streams[bytes(columns.id_N[row])]) for row in rows_M)
    count = len(columns.devices)
    all_V, open_V = (np.bincount(columns.device_N[mask], minlength=count) for mask in (slice(None), open_N))
    rows = [(name, int(all_V[v]), int(open_V[v]), got[v, "value"], got[v, "control"])
            for v, name in enumerate(columns.devices)]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: (-row[3] - row[4], row[0])))
