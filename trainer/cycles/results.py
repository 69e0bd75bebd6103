"""What a benchmark run leaves on disk, and the types to read it back.

::

    RUN/
      results.json                     config, environment, one row per (method, seed, stage)
      report.html                      the same for people
      map.npz                          where the report's t-SNE map put whom
      seed-0/base/                     the model that every method of this seed starts from
      seed-0/METHOD/stage-1/
          scores.npz                   per-sample scores of the pool, with their ids
          gallery.npz                  the first selected images as crops, with true and predicted joints
          lookalikes.npz               some people and their nearest labelled ones, as crops (seed 0, stage 1)
          row.json                     the row of this stage
          model/                       after retraining (not with --select-only)

Shapes: N people of the unlabelled pool, G people in the gallery, J joints, S crop side; Q people of whom lookalikes are
shown, K lookalikes of each, U labelled people that these are.
"""

from __future__ import annotations

import io
import json
import typing
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.io import from_json, read_json, to_json, write_atomically, write_json
from alpose.runtime.skeleton import Skeleton

Floats = npt.NDArray[np.float32]
A = TypeVar("A", bound="Arrays")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method of one seed at one stage. Fractions are in [0, 1]; a value that is not defined is None."""

    method: str
    seed: int
    stage: int
    """Counts from 1."""
    labelled: int
    """Labelled people before the selection of this stage."""
    pool: int
    """Unlabelled people that were scored."""
    selected: int
    """People that were selected, and labelled after it."""
    base_test_pck: float | None
    """Test PCK of the model that selects."""
    test_pck: float | None
    """Test PCK after retraining on the enlarged set; None when only the selection was made."""
    pool_pck: float | None
    """PCK of the selecting model on the whole unlabelled pool: what random selection has on average."""
    selected_pck: float | None
    """PCK of the selecting model on what it selected; lower is better detection (LL++ paper, Table 3a)."""
    selected_true_loss: float | None
    auroc: float | None
    """Area under the ROC curve of the score against failure (by the run's definition)."""
    aurc: float | None
    """Area under the risk-coverage curve, risk = failure rate of the images that are kept; lower is better."""
    spearman: float | None
    """Rank correlation of the score with the true loss."""
    pearson: float | None
    precision_at_budget: float | None
    """Share of failures among what was selected."""
    gap_closed: float | None
    """(pool_pck - selected_pck) / (pool_pck - the same for oracle-pck): 0 random, 1 oracle."""
    failures: int
    """Failures in the pool, among those whose PCK is defined."""
    unscored: int
    """People of the pool whose PCK is undefined (no torso or head to normalise by); left out and counted."""
    train_seconds: float | None
    """Retraining of pose net and head after the selection; None when only the selection was made."""
    score_seconds: float
    """One pass of the selecting model over everything, which at stage 1 all methods share; and the second pass of a
    method that makes one (``egl++``)."""
    neighbours: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """``official-2021`` only: the PCK values again, at the two thresholds that the published code evaluates."""


class Arrays:
    """Base of a dataclass of arrays, texts and numbers that is kept as npz without pickle."""

    __slots__ = ()

    def save(self, path: Path) -> None:
        """Write it, whole or not at all; a skeleton becomes JSON text."""
        parts = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        save_npz(path, {name: np.array(json.dumps(to_json(part)) if isinstance(part, Skeleton) else part)
                        for name, part in parts.items()})  # fmt: skip

    @classmethod
    def load(cls: type[A], path: Path) -> A:
        """Read what :meth:`save` wrote; a file that is damaged or lacks a field is an error that names it."""
        kinds = typing.get_type_hints(cls)
        arrays = load_npz(path, needs=kinds)
        try:
            return cls(**{name: _part(kind, arrays[name]) for name, kind in kinds.items()})
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}: {error}") from error


def _part(kind: Any, array: npt.NDArray[Any]) -> Any:
    if kind is Skeleton:
        return from_json(Skeleton, json.loads(str(array)), "skeleton")
    if kind in (int, str):
        return kind(array)
    return tuple(array.tolist()) if typing.get_origin(kind) is tuple else array


@dataclass(frozen=True, slots=True)
class Scores(Arrays):
    """Per-sample record of one selection: the pool in the order of its ids."""

    ids: tuple[str, ...]
    score_N: Floats
    """The method's score, higher selected first; for coreset the distance to the labelled set."""
    true_loss_N: Floats
    """NaN where nothing is labelled."""
    image_pck_N: Floats
    """NaN where the normaliser is missing."""
    selected_M: npt.NDArray[np.int64]
    """Rows that were selected, first picked first."""

    def __post_init__(self) -> None:
        count = len(self.ids)
        for name in ("score_N", "true_loss_N", "image_pck_N"):
            if getattr(self, name).shape != (count,):
                raise DataError(f"scores: {name} has shape {getattr(self, name).shape} for {count} ids")
        if ((self.selected_M < 0) | (self.selected_M >= count)).any():
            raise DataError(f"scores: a selected row lies outside the {count} people of the pool")


@dataclass(frozen=True, slots=True)
class Gallery(Arrays):
    """The first selected people as pictures. Coordinates are pixels of the crop."""

    ids: tuple[str, ...]
    crops_GSS3: npt.NDArray[np.uint8]
    """RGB."""
    true_GJ2: Floats
    labelled_GJ: npt.NDArray[np.bool_]
    predicted_GJ2: Floats
    score_G: Floats
    true_loss_G: Floats
    image_pck_G: Floats
    skeleton: Skeleton


@dataclass(frozen=True, slots=True)
class Lookalikes(Arrays):
    """Some people of the pool, each with the labelled people nearest to it (EGL++ paper, Fig. 3).

    Coordinates are pixels of the crop. Crops are small: these are for looking at.
    """

    ids: tuple[str, ...]
    first: int
    """So many of the Q were selected first; the others have the lowest scores of the pool."""
    crops_QSS3: npt.NDArray[np.uint8]
    """RGB."""
    true_QJ2: Floats
    labelled_QJ: npt.NDArray[np.bool_]
    predicted_QJ2: Floats
    score_Q: Floats
    row_QK: npt.NDArray[np.int64]
    """Rows of the U, the nearest first."""
    distance_QK: Floats
    """Euclidean, between embeddings."""
    weight_QK: Floats
    """How probable ``egl++`` took each neighbour, of 1 over all it looked at; NaN of other methods."""
    near_ids: tuple[str, ...]
    near_crops_USS3: npt.NDArray[np.uint8]
    near_true_UJ2: Floats
    near_labelled_UJ: npt.NDArray[np.bool_]
    embedding: str
    """Which features they are near in."""
    skeleton: Skeleton

    def __post_init__(self) -> None:
        if ((self.row_QK < 0) | (self.row_QK >= len(self.near_ids))).any() or len(self.row_QK) != len(self.ids):
            raise DataError(f"lookalikes: a row lies outside the {len(self.near_ids)} labelled people, or is missing")


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run as ``results.json`` holds it."""

    config: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    bases: tuple[dict[str, Any], ...] = ()
    """Per seed: test PCK and training seconds of the base model that all methods start from."""

    def save(self, run: Path) -> Path:
        """Write ``RUN/results.json``, whole or not at all."""
        value = {"config": self.config, "environment": self.environment, "bases": self.bases, "rows": self.rows}
        return write_json(run / "results.json", value)

    @classmethod
    def load(cls, run: Path) -> Results:
        """Read ``RUN/results.json``."""
        path = run / "results.json"
        if not path.exists():
            raise DataNotFoundError(f"{path} does not exist: {run} is not a benchmark run, or no stage has ended yet")
        return from_json(cls, read_json(path), str(path))


def stage_folder(run: Path, seed: int, method: str, stage: int) -> Path:
    """Where one stage keeps its files."""
    return run / f"seed-{seed}" / method / f"stage-{stage}"


def save_npz(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write arrays as compressed npz, complete or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def load_npz(path: Path, needs: Iterable[str] = ()) -> dict[str, npt.NDArray[Any]]:
    """All arrays of an npz file; one that is cut off, no npz, or lacks an array is an error that names it."""
    if not path.exists():
        raise DataNotFoundError(f"{path} does not exist")
    if not zipfile.is_zipfile(path):  # np.load would leave such a file open
        raise DataError(f"{path} is not an npz file, or was cut off: delete it, and it is made again")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and it is made again") from error
    missing = [name for name in needs if name not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: delete it, and it is made again")
    return arrays
