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
import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alpose.runtime.errors import DataError, DataNotFoundError
from alpose.runtime.skeleton import Skeleton

Floats = npt.NDArray[np.float32]


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
    """Area under the ROC curve of the score against failure (image PCK below 0.5)."""
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


@dataclass(frozen=True, slots=True)
class Scores:
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

    def save(self, path: Path) -> None:
        """Write as npz without pickle, complete or not at all."""
        arrays = {"ids": np.array(self.ids), "score_N": self.score_N, "true_loss_N": self.true_loss_N,
                  "image_pck_N": self.image_pck_N, "selected_M": self.selected_M}  # fmt: skip
        save_npz(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read what :meth:`save` wrote."""
        arrays = load_npz(path, needs=("ids", "score_N", "true_loss_N", "image_pck_N", "selected_M"))
        return cls(tuple(arrays["ids"].tolist()), arrays["score_N"], arrays["true_loss_N"], arrays["image_pck_N"],
                   arrays["selected_M"])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gallery:
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

    def save(self, path: Path) -> None:
        """Write as npz without pickle, complete or not at all."""
        arrays = {name: getattr(self, name) for name in self.__slots__ if name not in ("ids", "skeleton")}
        arrays |= {"ids": np.array(self.ids), "skeleton": np.array(json.dumps(self.skeleton.to_json()))}
        save_npz(path, arrays)

    @classmethod
    def load(cls, path: Path) -> Gallery:
        """Read what :meth:`save` wrote."""
        arrays = load_npz(path, needs=cls.__slots__)
        values = {name: arrays[name] for name in cls.__slots__ if name not in ("ids", "skeleton")}
        skeleton = Skeleton.from_json(json.loads(str(arrays["skeleton"])))
        return cls(ids=tuple(arrays["ids"].tolist()), skeleton=skeleton, **values)


@dataclass(frozen=True, slots=True)
class Lookalikes:
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

    def save(self, path: Path) -> None:
        """Write as npz without pickle, complete or not at all."""
        arrays = {name: np.asarray(getattr(self, name)) for name in self.__slots__ if name != "skeleton"}
        save_npz(path, arrays | {"skeleton": np.array(json.dumps(self.skeleton.to_json()))})

    @classmethod
    def load(cls, path: Path) -> Lookalikes:
        """Read what :meth:`save` wrote."""
        values: dict[str, Any] = {**(arrays := load_npz(path, needs=cls.__slots__))}
        values |= {name: tuple(arrays[name].tolist()) for name in ("ids", "near_ids")}
        values |= {"first": int(arrays["first"]), "embedding": str(arrays["embedding"])}
        values |= {"skeleton": Skeleton.from_json(json.loads(str(arrays["skeleton"])))}
        return cls(**{name: values[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run as ``results.json`` holds it."""

    config: dict[str, Any]
    environment: dict[str, Any]
    rows: tuple[Row, ...]
    bases: tuple[dict[str, Any], ...] = ()
    """Per seed: test PCK and training seconds of the base model that all methods start from."""

    def save(self, run: Path) -> Path:
        """Write ``RUN/results.json``, complete or not at all."""
        value = {"config": self.config, "environment": self.environment, "bases": list(self.bases),
                 "rows": [asdict(row) for row in self.rows]}  # fmt: skip
        return write_json(run / "results.json", value)

    @classmethod
    def load(cls, run: Path) -> Results:
        """Read ``RUN/results.json``."""
        path = run / "results.json"
        if not path.exists():
            raise DataNotFoundError(f"{path} does not exist: {run} is not a benchmark run, or no stage has ended yet")
        value = read_json(path)
        try:
            rows = tuple(row_from_json(row) for row in value["rows"])
            return cls(value["config"], value["environment"], rows, tuple(value.get("bases", ())))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is not the results file of a run: {error!r}") from error


def row_from_json(value: dict[str, Any]) -> Row:
    """A row from its JSON form; unknown and missing keys are errors."""
    known = {item.name for item in fields(Row)}
    if set(value) != known:
        raise DataError(f"a row has the keys {sorted(known)}, got {sorted(value)}")
    return Row(**value)


def stage_folder(run: Path, seed: int, method: str, stage: int) -> Path:
    """Where one stage keeps its files."""
    return run / f"seed-{seed}" / method / f"stage-{stage}"


def write_json(path: Path, value: Any) -> Path:
    """Write JSON beside its place and rename it there, so that a reader never sees half a file."""
    return write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file; damage is an error that names the file."""
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not readable as JSON: {error}") from error


def write_atomically(path: Path, content: bytes) -> Path:
    """Temporary file in the same folder, fsync, rename. One process writes a run: what a killed one left is reused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    return path


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
