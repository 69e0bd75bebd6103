"""What ``pose describe`` says of a net whose answers are none, before anybody labels a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper

from alpose.trainer.cli import main
from alpose.trainer.foreign.net import open_net
from alpose.trainer.foreign.reader import NetReader
from alpose.trainer.foreign.recognition.recognise import recognise
from alpose.trainer.foreign.trial import Trial, odd, shares_found, try_net

from . import nets


def _tried(path: Path, **stated: Any) -> Trial:
    spec = recognise(path, **stated)
    net = open_net(path, spec)
    return try_net(net, NetReader(spec, net.shapes).eval())


def _said(path: Path, **stated: Any) -> str:
    return " ".join(_tried(path, **stated).warnings)


def _with_weight(path: Path, place: int, change: Any) -> Path:
    """The file with one of its weights changed."""
    model = onnx.load(path)
    tensor = model.graph.initializer[place]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), tensor.name))
    onnx.save(model, path)
    return path


def test_numbers_that_are_none(tmp_path: Path) -> None:
    def damaged(value: Any) -> Any:
        value[0, 0, 0, 0] = np.nan
        return value

    path = _with_weight(nets.hrnet(tmp_path / "net.onnx"), 0, damaged)
    assert "It answers NaN or infinity on 16 of 16 pictures" in _said(path)
    said = CliRunner().invoke(main, ["pose", "describe", str(path)])
    assert said.exit_code == 0, said.output
    assert "Warning: It answers NaN" in said.output


def test_the_same_answer_for_every_picture(tmp_path: Path) -> None:
    path = _with_weight(nets.regression(tmp_path / "net.onnx", flat=False), 0, np.zeros_like)
    assert "It answers the same points on every picture: its weights were not loaded" in _said(path)


def test_one_joint_that_does_not_move(tmp_path: Path) -> None:
    net = nets.Net((64, 64))
    maps = net.conv(net.block(net.stem(), 24), 16, name="maps")
    mask = np.ones((16, 1, 1), np.float32)
    mask[3] = 0
    net.output(net.add("Mul", [maps, net.weight(mask)], "masked"))
    assert "1 of 16 joints stay where they are whatever the picture shows: " in _said(net.save(tmp_path / "net.onnx"))


def test_an_answer_that_is_drawn_at_random(tmp_path: Path) -> None:
    net = nets.Net((64, 64))
    maps = net.conv(net.block(net.stem(), 24), 16, name="maps")
    net.output(net.add("Add", [maps, net.add("RandomNormalLike", [maps])], "drawn"))
    assert "The same picture gets another answer at the second call" in _said(net.save(tmp_path / "net.onnx"))


@pytest.mark.parametrize("make", [nets.hrnet, nets.simcc, nets.regression])
def test_a_net_that_was_never_trained(make: Any, tmp_path: Path) -> None:
    """Its points are no nearer to the joints of a person than to another one's."""
    found = _tried(make(tmp_path / "net.onnx"))
    assert "On rendered people its points lie where any other person's would" in " ".join(found.warnings)
    assert found.joints == 12
    assert abs((found.found or 0) - (found.by_chance or 0)) < 0.1


def test_points_in_another_unit_and_scores_that_are_none(tmp_path: Path) -> None:
    pixels = nets.regression(tmp_path / "net.onnx", pixels=True, flat=False)
    assert "of its points lie far outside the input of 96 x 96 px" in _said(pixels, unit="share")
    spec = recognise(nets.regression(tmp_path / "net.onnx", numbers=3))
    points_NJ2 = np.random.default_rng(0).uniform(0, 96, (4, 17, 2)).astype(np.float32)
    assert not odd(points_NJ2, np.linspace(0, 1, 68, dtype=np.float32).reshape(4, 17), spec)
    (said,) = odd(points_NJ2, np.linspace(-3, 4, 68, dtype=np.float32).reshape(4, 17), spec)
    assert "-3 to 4, which are no probabilities: state --score logit" in said
    (said,) = odd(points_NJ2, np.full((4, 17), 0.5, np.float32), spec)
    assert "0.5 for every joint of every picture" in said


def test_what_is_found_by_chance() -> None:
    labels_NL2 = np.array([[[0, 0], [10, 0]], [[50, 0], [60, 0]]], np.float32)
    assert shares_found(labels_NL2, labels_NL2, 5.0) == (1.0, 0.0)
    assert shares_found(labels_NL2[[0, 0]], labels_NL2, 5.0) == (0.5, 0.5)


@pytest.mark.real_models
@pytest.mark.parametrize(("name", "least"), [("movenet-lightning", 0.8), ("blazepose-full", 0.8), ("facemesh", None)])
def test_a_real_net_finds_rendered_people(models: Path, name: str, least: float | None) -> None:
    found = _tried(models / f"{name}.onnx")
    assert not found.warnings
    assert found.found is None if least is None else (found.found or 0) > least > 2 * (found.by_chance or 0)


@pytest.mark.real_models
def test_a_real_net_that_is_described_wrongly(models: Path) -> None:
    """x and y the other way round."""
    assert "points lie where any other person's would" in _said(
        models / "movenet-lightning.onnx", columns=("x", "y", "score")
    )
