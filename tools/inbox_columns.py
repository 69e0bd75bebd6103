"""What a choice looks at, for every record of an inbox: read in one pass, a million of them in seconds.

Shapes: N records, J joints, D the longest embedding.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

CHUNK = 5_000
"""Rows that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What a choice looks at, for every record of the inbox."""

    id_N: npt.NDArray[np.bytes_]
    device_N: npt.NDArray[np.int64]
    devices: tuple[str, ...]
    bundle_N: npt.NDArray[np.int64]
    bundles: tuple[str, ...]
    captured_ns_N: npt.NDArray[np.int64]
    flagged_N: npt.NDArray[np.bool_]
    failure_probability_N: npt.NDArray[np.float32]
    embedding_ND: npt.NDArray[np.float16]
    """Shorter embeddings of other bundles are filled with zeros."""
    control_N: npt.NDArray[np.bool_]
    pictures_N: npt.NDArray[np.bool_]
    """There is a picture, here or on the device."""
    fetched_N: npt.NDArray[np.bool_]
    deleted_N: npt.NDArray[np.bool_]
    sealed_N: npt.NDArray[np.bool_]
    drawn_N: npt.NDArray[np.bool_]
    """Has had its draw of the control stream."""
    chosen_N: npt.NDArray[np.bool_]
    annotated_N: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.id_N)


def read_columns(db: sqlite3.Connection) -> Columns:
    """What a choice looks at, in the order of arrival."""
    count = int(db.execute("SELECT count(*) FROM record").fetchone()[0])
    width = int(db.execute("SELECT coalesce(max(embedding), 0) FROM record").fetchone()[0])
    embedding_ND = np.zeros((count, max(width, 1)), dtype=np.float16)
    devices, bundles = _Numbers(), _Numbers()
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.zeros(count, dtype=kind)
        for name, kind in (("id", "S32"), ("device", np.int64), ("bundle", np.int64), ("captured_ns", np.int64),
                           ("flagged", np.bool_), ("failure_probability", np.float32), ("control", np.bool_),
                           ("pictures", np.bool_), ("fetched", np.bool_), ("deleted", np.bool_),
                           ("sealed", np.bool_), ("drawn", np.bool_), ("chosen", np.bool_), ("annotated", np.bool_))
    }  # fmt: skip
    cursor = db.execute(
        "SELECT id, device, bundle, captured_ns, flagged, failure_probability, "
        "control_rate IS NOT NULL AND control_draw < control_rate, pictures > 0, fetched, deleted, sealed, "
        "drawn IS NOT NULL, batch IS NOT NULL, annotated, joints, embedding, arrays FROM record ORDER BY row LIMIT ?",
        (count,),
    )
    first = 0
    while rows := cursor.fetchmany(CHUNK):
        *some, joints, lengths, arrays = zip(*rows, strict=True)
        plain: list[Any] = some
        part = slice(first, first + len(rows))
        plain[1], plain[2] = [devices[name] for name in plain[1]], [bundles[name] for name in plain[2]]
        plain[5] = [np.nan if value is None else value for value in plain[5]]
        for name, values in zip(columns, plain, strict=True):
            columns[name][part] = values
        for row, (count_J, length, blob) in enumerate(zip(joints, lengths, arrays, strict=True), start=first):
            embedding_ND[row, :length] = np.frombuffer(blob, "<f2", length, 12 * count_J)
        _make_unit(embedding_ND[part])
        first += len(rows)
    return Columns(
        **{f"{name}_N": values[:first] for name, values in columns.items()},
        devices=tuple(devices), bundles=tuple(bundles), embedding_ND=embedding_ND[:first],
    )  # fmt: skip


def _make_unit(embedding_ND: npt.NDArray[np.float16]) -> None:
    """Whatever a device sent becomes of unit length, or zero where it says nothing: one row must not spoil a choice."""
    wide_ND = embedding_ND.astype(np.float32)
    square_N = np.einsum("nd,nd->n", wide_ND, wide_ND)
    for row in np.flatnonzero(~(np.abs(square_N - 1) < 0.02)):
        usable = np.isfinite(square_N[row]) and square_N[row] > 0
        embedding_ND[row] = wide_ND[row] / np.sqrt(square_N[row]) if usable else 0


class _Numbers(dict[str, int]):
    """Names by the order in which they are first asked for."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]
