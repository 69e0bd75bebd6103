"""Where the numbers of a training go: CSV always, TensorBoard read back by its own reader, and logs of somebody else."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alpose.runtime.errors import ConfigError, MissingExtraError
from alpose.trainer.device import device_context
from alpose.trainer.fitting import FitConfig, fit
from alpose.trainer.training_log import LOSSES, MEASURES, TensorBoard, TrainingLogs, opener


class Remembered:
    """A log of somebody else."""

    made: list[Remembered]

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings, self.closed = folder, dict(settings), False
        self.scalars: list[tuple[str, float, int]] = []

    def scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


class Broken(Remembered):
    def scalar(self, name: str, value: float, step: int) -> None:
        raise OSError("the server is gone")


CURVES: dict[str, list[tuple[float | None, ...]]] = {
    "pose": [(2.0, 3.0, 1e-3), (1.0, 2.5, 1e-3)],
    "epck": [(0.5, None, None)],
}


def test_every_number_reaches_the_files_and_the_log_once(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path, {})
    logs = TrainingLogs(tmp_path, [remembered])
    logs.losses({"pose": CURVES["pose"][:1]})
    logs.losses(CURVES)
    logs.measures([("after", 'my, "own"', "pck", 0.75), ("after", "x", "auroc/epck", None)], 2)
    logs.close()

    assert remembered.scalars == [
        ("pose/train_loss", 2.0, 0), ("pose/validation_loss", 3.0, 0), ("pose/lr", 1e-3, 0),
        ("pose/train_loss", 1.0, 1), ("pose/validation_loss", 2.5, 1), ("pose/lr", 1e-3, 1),
        ("epck/train_loss", 0.5, 0), ('after/my, "own"/pck', 0.75, 2),
    ]  # fmt: skip
    assert remembered.closed
    with (tmp_path / LOSSES).open() as file:
        assert [row["train_loss"] for row in csv.DictReader(file)] == ["2", "1", "0.5"]
    with (tmp_path / MEASURES).open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["dataset"], row["value"]) for row in rows] == [('my, "own"', "0.75"), ("x", "")]


def test_a_training_that_goes_on_logs_its_new_epochs_alone(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path, {})
    logs = TrainingLogs(tmp_path, [remembered])
    logs.resumed("pose", 1)
    logs.losses({"pose": CURVES["pose"]})
    assert {step for _, _, step in remembered.scalars} == {1}
    assert (tmp_path / LOSSES).read_text().count("\n") == 3, "the file has them all"


def test_a_log_that_fails_costs_no_training_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remembered = Remembered(tmp_path, {})
    logs = TrainingLogs(tmp_path, [Broken(tmp_path, {}), remembered])
    with caplog.at_level(logging.WARNING):
        logs.losses(CURVES)
        logs.close()
    assert len(remembered.scalars) == 7
    assert caplog.text.count("the training goes on without Broken: OSError('the server is gone')") == 1
    assert "7 numbers did not reach a training log" in caplog.text


def test_a_fit_tells_while_it_trains(tmp_path: Path) -> None:
    made: list[Remembered] = []

    def open_log(folder: Path, settings: Mapping[str, Any]) -> Remembered:
        made.append(Remembered(folder, settings))
        return made[-1]

    result = fit(FitConfig(data=("synthetic",), preset="smoke", epochs=2, heads=("ll",)), tmp_path / "out",
                 device_context("cpu"), data_root=None, cache=tmp_path / "cache", logs=[open_log])  # fmt: skip

    (log,) = made
    assert log.closed
    assert log.settings["preset"] == "smoke"
    names = [name for name, _, _ in log.scalars]
    assert names[:3] == ["pose/train_loss", "pose/validation_loss", "pose/lr"]
    assert [step for name, _, step in log.scalars if name == "pose/train_loss"] == [0, 1]
    assert names.count("ll/train_loss") == result.epochs["ll"]
    (after,) = result.after.items()
    assert (f"after/{after[0]}/pck", after[1].pck, 2) in log.scalars
    with (tmp_path / "out" / MEASURES).open() as file:
        assert {row["measure"] for row in csv.DictReader(file)} == {"people", "failures", "pck", "auroc/ll"}


def test_tensorboard_s_own_reader_finds_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra alpose[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = TrainingLogs(tmp_path, [TensorBoard(tmp_path, {"preset": "smoke"})])
    logs.losses(CURVES)
    logs.measures([("after", "field", "pck", 0.75)], 2)
    logs.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("pose/train_loss")] == [(0, 2.0), (1, 1.0)]
    assert [(one.step, one.value) for one in events.Scalars("after/field/pck")] == [(2, 0.75)]
    assert events.Scalars("epck/train_loss")[0].value == 0.5
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_a_log_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_log_module.py").write_text("class Mine:\n    def __init__(self, folder, settings): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert opener("tensorboard") is TensorBoard
    assert getattr(opener("my_log_module:Mine"), "__name__", "") == "Mine"
    for name, said in (("mlflow", "write tensorboard, or MODULE:CLASS"), ("absent_module:X", "PYTHONPATH"),
                       ("my_log_module:Yours", "Yours")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            opener(name)


def test_without_tensorboard_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"alpose\[tensorboard\]"):
        TensorBoard(tmp_path, {})
