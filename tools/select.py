"""One batch across devices: what to annotate next, out of everything that the fleet sent.

The control stream is kept apart: each of its frames takes part in one draw, in the first selection after it arrived, so
that its probability of being labelled stays known; until then it is not chosen for its value either, or the draw would
be left with the easy ones. Everything else is chosen by what it is worth.

Shapes: N candidates, M some of them, D embedding, V devices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.methods.diversity import Ints, Nearest
from alpose.trainer.methods.strategies import DEFAULT, RANDOM, STRATEGIES, Frames

from .batch import Batch, Choice, Stream
from .inbox import Inbox
from .inbox_database import Columns

Bools = npt.NDArray[np.bool_]

CONTROL_SHARE = 0.2
"""Of the budget that goes to the control stream, unless it is said."""
MIN_DISTANCE = 0.05
"""Distance under which two frames are near-duplicates; 1 is what two random frames of a bundle are apart."""
WAITING = "of the control stream, which wait for their draw"
"""Why a frame was not chosen."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What was chosen, and who had their draw."""

    choices: tuple[Choice, ...]
    drawn_N: Bools
    """Control frames that took part in this draw, chosen or not."""
    counted: dict[str, int] = field(default_factory=dict)
    """Frames that were considered and not chosen, by reason."""


def select(
    candidates: Columns,
    budget: int,
    rng: np.random.Generator,
    *,
    strategy: str = DEFAULT,
    control: int | None = None,
    min_distance: float = MIN_DISTANCE,
) -> Selection:
    """Choose ``budget`` frames.

    Args:
        candidates: every record of an inbox.
        budget: how many frames annotators can do.
        rng: for the control stream and for ``random``.
        strategy: ``value``: failure probability times distance to all that is chosen, times what the device is due;
            ``top``: failure probability alone; ``coreset``: distance alone (k-centre); ``random``: by chance, for
            comparison.
        control: how many of the budget go to the control stream; by default a fifth, or as many as there are.
        min_distance: distance under which frames are near-duplicates (``value`` and ``coreset``), as a share of what is
            typical between two frames of the same bundle.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"--strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if budget < 1:
        raise ConfigError(f"--budget must be at least 1, got {budget}")
    if control is not None and not 0 <= control <= budget:
        raise ConfigError(f"--control takes from the budget of {budget}: it must lie between 0 and that, got {control}")
    if not 0 <= min_distance < 1:
        raise ConfigError(f"--min-distance is a share of the typical distance in [0, 1), got {min_distance}")
    wanted = round(CONTROL_SHARE * budget) if control is None else control
    closed_N, left_out = left_out_of(candidates)
    # Every control frame takes part in one draw.
    undrawn_N = candidates.control_N & ~candidates.drawn_N & ~closed_N
    drawing_N = undrawn_N & (wanted > 0)
    control_M, control_probability = _draw(np.flatnonzero(drawing_N), wanted, rng)
    # A control frame that was passed over may still be worth its label for itself; one that is yet to be drawn must wait.
    waiting_N = undrawn_N & ~drawing_N
    value_N = ~closed_N & ~waiting_N
    value_N[control_M] = False
    counted = Counter(left_out)
    chosen = _by_value(candidates, value_N, control_M, budget - len(control_M), rng, strategy, min_distance, counted)
    counted[WAITING] = int(waiting_N.sum())
    counted["not chosen"] = int(value_N.sum()) - len(chosen) - counted["near-duplicates"]
    control_why = "drawn by chance from the control stream"
    drawn = [_Chosen(int(row), control_why, "control", control_probability) for row in control_M]
    return Selection(
        choices=tuple(
            Choice(id=candidates.id_N[one.row].decode(), rank=rank, reason=one.reason, stream=one.stream,
                   select_probability=one.probability)
            for rank, one in enumerate(_spread(chosen, drawn), start=1)
        ),
        drawn_N=drawing_N,
        counted={reason: count for reason, count in counted.items() if count},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Chosen:
    row: int
    reason: str
    stream: Stream
    probability: float | None


def _draw(row_M: Ints, wanted: int, rng: np.random.Generator) -> tuple[Ints, float]:
    """A simple random sample and its probability."""
    count = min(wanted, len(row_M))
    if not count:
        return np.zeros(0, dtype=np.int64), 1.0
    return np.sort(rng.choice(row_M, size=count, replace=False)), count / len(row_M)


def _by_value(
    candidates: Columns, value_N: Bools, control_M: Ints, k: int, rng: np.random.Generator, strategy: str,
    min_distance: float, counted: Counter[str],
) -> list[_Chosen]:  # fmt: skip
    row_M = np.flatnonzero(value_N)
    if k < 1 or not len(row_M):
        return []
    # A model that answers NaN is as wrong as can be: the queue ranks it so, too.
    failure_M = np.nan_to_num(candidates.failure_probability_N[row_M], nan=1.0)
    if strategy == RANDOM:
        picked_M, probability = _draw(row_M, k, rng)
        # A frame that was passed over by an earlier, not random choice has no probability any more.
        known = None if (_taken(candidates) & ~candidates.control_N).any() else probability
        return [_Chosen(int(row), "by chance", "value", known) for row in rng.permutation(picked_M)]
    whole = len(row_M) == len(candidates)
    device_M, bundle_M = candidates.device_N[row_M], candidates.bundle_N[row_M]
    before = np.concatenate([np.flatnonzero(_taken(candidates)), control_M])
    embedding_MD = candidates.embedding_ND if whole else candidates.embedding_ND[row_M]
    near = Nearest(embedding_MD, bundle_M)
    for row in before:
        near.add(candidates.embedding_ND[row], int(candidates.bundle_N[row]))
    frames = Frames(failure_M.astype(np.float32), embedding_MD, bundle_M, device_M, near)
    given: Counter[int] = Counter()
    chosen: list[_Chosen] = []
    for pick in STRATEGIES[strategy].choose(frames, k, rng, min_distance):
        device = int(device_M[pick.row])
        given[device] += 1
        why = STRATEGIES[strategy].why(pick, float(failure_M[pick.row]), first=not (chosen or len(before)))
        if STRATEGIES[strategy].fair:
            why += f", {_nth(given[device])} of {candidates.devices[device]}"
        chosen.append(_Chosen(int(row_M[pick.row]), why, "value", None))
    counted["near-duplicates"] = near.count_below(min_distance, {one.row for one in chosen}, row_M)
    return chosen


def _taken(candidates: Columns) -> Bools:
    """Chosen or annotated earlier: what is chosen now should differ from it."""
    return candidates.chosen_N | candidates.annotated_N


def _spread(value: list[_Chosen], control: list[_Chosen]) -> list[_Chosen]:
    """Control frames evenly between the others: annotators who stop early leave a share of both."""
    if not control:
        return value
    places = {round((i + 0.5) * (len(value) + len(control)) / len(control) - 0.5) for i in range(len(control))}
    ordered: list[_Chosen] = []
    values, controls = iter(value), iter(control)
    for place in range(len(value) + len(control)):
        first, second = (controls, values) if place in places else (values, controls)
        one = next(first, None) or next(second, None)
        assert one is not None
        ordered.append(one)
    return ordered


def _nth(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


# --- From an inbox to a batch


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

    def to_json(self) -> dict[str, Any]:
        """What ``alpose-harvest select --json`` prints."""
        names = ("device", "records", "open", "value", "control")
        return {
            "batch": self.batch.to_json(), "path": str(self.path), "triggers": dict(self.triggers),
            "devices": [dict(zip(names, row, strict=True)) for row in self.devices],
            "to_fetch": self.waiting, "sealed": self.sealed,
        }  # fmt: skip


def choose(
    inbox: Inbox,
    budget: int,
    *,
    strategy: str = DEFAULT,
    control: int | None = None,
    min_distance: float = MIN_DISTANCE,
    name: str | None = None,
    seed: int | None = None,
) -> Chosen:
    """Choose frames and write the batch. See :func:`select`; ``seed`` None is another draw each time.

    :class:`DataError` where nothing is left to choose, and then no batch is written.
    """
    now = datetime.now(timezone.utc)
    inbox.require_writable()
    if name is None:
        made = now.strftime("%Y%m%d-%H%M%S")
        names = (made, *(f"{made}-{number}" for number in range(2, 1000)))
        name = next(one for one in names if not inbox.has_batch(one))
    inbox.new_batch_path(name)
    columns = inbox.columns()
    selection = select(columns, budget, np.random.default_rng(seed), strategy=strategy, control=control,
                       min_distance=min_distance)  # fmt: skip
    if not selection.choices:
        raise DataError(_nothing_left(inbox, selection.counted))
    batch = Batch(name=name, created=now.isoformat(timespec="milliseconds"), strategy=strategy, budget=budget,
                  choices=selection.choices, counted=selection.counted,
                  tallies=tuple(inbox.field_tallies()) if selection.drawn_N.any() else ())  # fmt: skip
    path = inbox.add_batch(batch, (id_.decode() for id_ in columns.id_N[selection.drawn_N]))
    entries = inbox.entries(choice.id for choice in batch.choices)
    shut = [entry for entry in entries if inbox.image(entry.record.id) is None]
    triggers = Counter(trigger for entry in entries for trigger in {name for name, _, _ in entry.record.reasons})
    return Chosen(
        batch=batch, path=path, devices=_devices(columns, batch), triggers=tuple(triggers.most_common()),
        waiting=sum(not entry.fetched for entry in shut), sealed=sum(entry.fetched for entry in shut),
    )  # fmt: skip


def _nothing_left(inbox: Inbox, counted: Mapping[str, int]) -> str:
    """What to say, and to do, where no frame can be chosen."""
    if not counted:
        return (
            f"{inbox.folder} has no record, and no batch was written: alpose-harvest pull SOURCE --into {inbox.folder}"
        )
    why = ", ".join(f"{count:,} {reason}" for reason, count in counted.items())
    do = [
        *(
            ["lower --min-distance, or give --strategy top or random, which take near-duplicates too"]
            if counted.get("near-duplicates")
            else []
        ),
        *(["give --control a share of the budget"] if counted.get(WAITING) else []),
        f"pull newer frames: alpose-harvest pull SOURCE --into {inbox.folder}",
    ]
    return f"nothing is left to choose in {inbox.folder}, and no batch was written ({why}): {', or '.join(do)}"


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


def _devices(columns: Columns, batch: Batch) -> tuple[tuple[str, int, int, int, int], ...]:
    streams = {choice.id.encode(): choice.stream for choice in batch.choices}
    rows_M = np.flatnonzero(np.isin(columns.id_N, np.array(list(streams), dtype=columns.id_N.dtype)))
    got = Counter((int(columns.device_N[row]), streams[bytes(columns.id_N[row])]) for row in rows_M)
    count, open_N = len(columns.devices), ~left_out_of(columns)[0]
    all_V, open_V = (np.bincount(columns.device_N[mask], minlength=count) for mask in (slice(None), open_N))
    rows = [(name, int(all_V[v]), int(open_V[v]), got[v, "value"], got[v, "control"])
            for v, name in enumerate(columns.devices)]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: (-row[3] - row[4], row[0])))
