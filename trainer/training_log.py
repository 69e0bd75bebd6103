"""Where the numbers of a training go while it runs: always CSV, and TensorBoard, MLflow or Weights & Biases where wanted.

A :class:`TrainingLog` takes one number at a time. What it raises is logged, and costs no training.
"""

from __future__ import annotations

import csv
import importlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from alpose.runtime.errors import ConfigError, MissingExtraError
from alpose.runtime.io import write_atomically

log = logging.getLogger("alpose")

Curves = Mapping[str, Sequence[tuple[float | None, ...]]]
"""Training loss, validation loss and rate of every epoch, by part of the model."""
COLUMNS = ("train_loss", "validation_loss", "lr")
LOSSES, MEASURES = "losses.csv", "measures.csv"


class TrainingLog(Protocol):
    """Takes the numbers of one training, in order."""

    def scalar(self, name: str, value: float, step: int) -> None:
        """One number: ``pose/train_loss`` of an epoch, or ``after/DATASET/pck`` at the end.

        Args:
            name: of the curve; parts are divided by ``/``.
            value: finite.
            step: the epoch, from 0.
        """

    def close(self) -> None:
        """Nothing comes after this."""


OpenLog = Callable[[Path, Mapping[str, Any]], TrainingLog]
"""Makes a log from the training's folder and its settings, which are plain JSON values."""


class TensorBoard:
    """Event files for ``tensorboard --logdir``.

    Args:
        folder: of the training; the files go to ``tensorboard`` in it.
        settings: shown as text.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "--log tensorboard", "tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("settings", "\n".join(f"- {name}: `{value}`" for name, value in settings.items()))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Write one number; it can be seen at once."""
        self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def opener(name: str) -> OpenLog:
    """What makes the log of that name: ``tensorboard``, or ``MODULE:NAME`` of one's own; :class:`ConfigError` says what is wrong."""
    if name == "tensorboard":
        return TensorBoard
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"--log {name}: write tensorboard, or MODULE:CLASS of a training log of your own")
    try:
        made: OpenLog = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--log {name}: {error}. Is its folder in PYTHONPATH?") from error
    return made


class TrainingLogs:
    """The CSV files of a training's folder, and all other logs of it.

    Args:
        folder: of the training.
        logs: where the numbers go besides. None of them can end the training.
    """

    def __init__(self, folder: Path, logs: Sequence[TrainingLog] = ()) -> None:
        self._folder, self._logs = folder, logs
        self._sent: dict[str, int] = {}
        self._failed = 0

    def resumed(self, part: str, epochs: int) -> None:
        """Leave out so many epochs that were logged already, also by a training that was interrupted."""
        self._sent[part] = epochs

    def losses(self, curves: Curves) -> None:
        """Write all curves so far as CSV, and pass on the epochs that are new."""
        rows: list[Sequence[Any]] = [("part", "epoch", *COLUMNS)]
        for part, epochs in curves.items():
            rows += [(part, epoch, *map(_number, values)) for epoch, values in enumerate(epochs)]
            for epoch in range(self._sent.get(part, 0), len(epochs)):
                for column, value in zip(COLUMNS, epochs[epoch], strict=True):
                    if value is not None:
                        self._pass_on(f"{part}/{column}", value, epoch)
            self._sent[part] = max(self._sent.get(part, 0), len(epochs))
        _write_csv(self._folder / LOSSES, rows)

    def measures(self, measured: Sequence[tuple[str, str, str, float | None]], step: int) -> None:
        """Write what a model is worth: rows of before or after, dataset, measure and value (None: not known)."""
        for when, dataset, measure, value in measured:
            if value is not None:
                self._pass_on(f"{when}/{dataset}/{measure}", value, step)
        head = ("when", "dataset", "measure", "value")
        _write_csv(self._folder / MEASURES, [head, *((*names, _number(value)) for *names, value in measured)])

    def close(self) -> None:
        """Close every log, and say how often one failed."""
        for one in self._logs:
            try:
                one.close()
            except Exception as error:
                self._report(one, error)
        if self._failed:
            log.warning("%d numbers did not reach a training log; %s has them all", self._failed, self._folder / LOSSES)

    def _pass_on(self, name: str, value: float, step: int) -> None:
        for one in self._logs:
            try:
                one.scalar(name, value, step)
            except Exception as error:
                self._report(one, error)

    def _report(self, one: TrainingLog, error: Exception) -> None:
        if not self._failed:
            log.warning("the training goes on without %s: %r", type(one).__name__, error)
        self._failed += 1


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())
