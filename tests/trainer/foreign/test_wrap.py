"""A torch module or an ONNX file, from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alpose import trainer
from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import COCO

from . import nets


class Pose(nn.Module):
    """A pose net as a user writes it: stages, a head that is used twice, several outputs."""

    def __init__(self, keys: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(32, 24, 2, 2)
        self.shared = nn.Conv2d(24, 24, 3, 1, 1)
        self.final = nn.Conv2d(24, 17, 1)
        self.keys = keys

    def forward(self, images: Tensor) -> object:
        fine = self.layer2(self.stem(images))
        features = self.shared(self.shared(fine + self.up(self.layer3(fine))))
        maps = self.final(features)
        return {"heatmaps": maps, "flag": maps.amax(dim=(1, 2, 3))[:, None]} if self.keys else maps


@pytest.fixture
def module() -> Pose:
    torch.manual_seed(0)
    return Pose()


def test_a_module_answers_as_it_does_in_torch(module: Pose) -> None:
    module.train()
    module.stem.eval()  # frozen, as many train
    net = trainer.wrap(
        module,
        size=(64, 48),
        taps=("layer2", "layer3"),
        heatmaps="final",
        skeleton="coco",
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    assert module.training  # it was left as it was
    assert not module.stem.training
    assert not module.stem[1].training
    assert module.layer2.training
    crops = np.random.default_rng(0).integers(0, 256, (3, 64, 48, 3), np.uint8)
    answers = net(crops)
    images = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = module.eval()(images)
        fine = module.layer2(module.stem(images))
    assert net.spec.taps == ("layer2", "layer3")
    assert (net.spec.skeleton, net.spec.decoder.outputs, net.spec.input.batch) == (COCO, ("final",), None)
    np.testing.assert_allclose(answers["final"], expected, atol=1e-5)
    np.testing.assert_allclose(answers["layer2"], fine, atol=1e-5)
    assert net.shapes["layer3"] == (None, 32, 8, 6)
    assert net.path.is_file()


def test_a_module_that_returns_several_tensors_is_recognised(tmp_path: Path) -> None:
    net = trainer.wrap(Pose(keys=True), size=(64, 48), file=tmp_path / "mine.onnx")
    assert net.spec.decoder.outputs == ("heatmaps",)
    assert net.spec.hidden == {"flag": "flag"}
    assert [net.shapes[name][2:] for name in net.spec.taps] == [(16, 12), (8, 6)]
    assert net.path == tmp_path / "mine.onnx"


def test_a_file_is_opened_as_it_is(tmp_path: Path) -> None:
    path = nets.hourglass(tmp_path / "net.onnx")
    net = trainer.wrap(path, taps=("features",), colour="bgr")
    assert (net.spec.taps, net.spec.input.colour, net.path) == (("features",), "bgr", path)
    assert trainer.wrap(str(path), heatmaps="heatmaps").spec.decoder.outputs == ("heatmaps",)


def test_what_is_missing_or_wrong_is_said(module: Pose) -> None:
    with pytest.raises(ConfigError, match=r"size=\(height, width\)"):
        trainer.wrap(module)
    with pytest.raises(ConfigError, match="no submodule 'layer4'; near it are layer"):
        trainer.wrap(module, size=(64, 48), taps=("layer4",))
    with pytest.raises(ConfigError, match="the submodule 'shared' runs 2 times in one forward pass"):
        trainer.wrap(module, size=(64, 48), taps=("shared",))
    module.unused = nn.Identity()
    with pytest.raises(ConfigError, match="the submodule 'unused' does not run"):
        trainer.wrap(module, size=(64, 48), taps=("unused",))


def test_a_module_whose_graph_would_answer_otherwise_is_refused() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.Conv2d(3, 14, 4, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.maps(images) if images.mean() > 0.5 else -self.maps(images)

    class Draws(Branches):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.dropout(self.maps(images), 0.5, training=True)

    with pytest.raises(ConfigError, match="must not depend on values"):
        trainer.wrap(Branches(), size=(64, 64))
    with pytest.raises(ConfigError, match="must not draw at random"):
        trainer.wrap(Draws(), size=(64, 64))
    with pytest.raises(ConfigError, match="size=\\(height, width\\)"):
        trainer.wrap(Branches(), size=256)  # type: ignore[arg-type]
