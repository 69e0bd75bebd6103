"""A torch module or an ONNX file, from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from alpose import trainer
from alpose.runtime.errors import ConfigError
from alpose.runtime.io import to_json
from alpose.runtime.skeleton import COCO, Skeleton
from alpose.trainer.foreign.recognition.recognise import examine
from alpose.trainer.foreign.recognition.stated import Stated

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


def test_a_file_that_was_written_needs_no_statements_later(tmp_path: Path) -> None:
    """Two heads that could both be the answer, and nothing in the graph that tells how it is fed."""

    class Two(Pose):
        def forward(self, images: Tensor) -> object:
            fine = self.layer2(self.stem(images))
            return self.final(fine), self.final(self.shared(fine))

    path = tmp_path / "mine.onnx"
    net = trainer.wrap(
        Two(), size=(64, 48), taps="layer2", outputs="output_1", mean=0, std=(1, 1, 1), colour="bgr", peak=2.5, margin=1.5,
        skeleton=Skeleton("mine", tuple(f"j{k}" for k in range(17)), (), ()), file=path,
    )  # fmt: skip
    found = examine(path)
    assert found.spec == net.spec == trainer.wrap(path).spec
    assert (found.spec.decoder.outputs, found.spec.decoder.peak, found.spec.taps) == (("output_1",), 2.5, ("layer2",))
    assert not found.guesses()
    # What is stated comes before it, and where the decoding is another, the file's word on that counts no more.
    origin = {part.name: part.origin for part in examine(path, Stated(colour="rgb")).parts}
    assert (origin["colour"], origin["mean"], origin["skeleton"], origin["taps"]) == (
        "stated",
        "graph",
        "graph",
        "graph",
    )
    other = examine(path, Stated(outputs=("output_0",), taps=("layer2",), skeleton="coco")).spec
    assert (other.decoder.outputs, other.decoder.peak, other.input.colour) == (("output_0",), 1.0, "bgr")


def test_a_spec_in_a_file_is_not_trusted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = nets.hourglass(tmp_path / "net.onnx")
    model = onnx.load(path)
    wrong = to_json(examine(path).spec) | {"skeleton": str(tmp_path / "secret.json")}
    onnx.helper.set_model_props(model, {"alpose.spec": json.dumps(wrong)})
    onnx.save(model, path)
    assert examine(path).spec.skeleton.name == "mpii"
    assert "carries a spec that cannot be read, and is recognised without it" in caplog.text


def test_modules_in_half_precision_and_of_one_image_and_in_one_word(caplog: pytest.LogCaptureFixture) -> None:
    """float16 and bfloat16 are exported in float32 with the same weights; a batch of one is one at a time."""
    torch.manual_seed(0)
    module = Pose().half()
    net = trainer.wrap(module, size=(64, 48), taps="layer2", heatmaps="final", mean=0, std=1)
    assert module.final.weight.dtype == torch.float16
    crops = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
    with torch.no_grad():
        expected = module.float().eval()(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)
    np.testing.assert_allclose(net(crops)["final"], expected, atol=1e-4)

    class One(Pose):
        def forward(self, images: Tensor) -> object:
            assert images.shape[0] == 1, "one image"
            return super().forward(images)

    net = trainer.wrap(One(), size=(64, 48))
    assert net.spec.input.batch == 1
    assert net(crops)["output"].shape == (2, 17, 16, 12)
    assert "the module takes no two images at once (AssertionError: one image" in caplog.text


class Wants(Pose):
    def forward(self, images: Tensor, size: Tensor) -> object:  # type: ignore[override]
        return super().forward(images)


class Silent(Pose):
    def forward(self, images: Tensor) -> object:
        return None


@pytest.mark.parametrize(
    ("make", "stated", "message"),
    [
        (
            Wants,
            {},
            "TypeError: .*'size'.* Its forward pass wants images, size: wrap it in a module that takes images alone",
        ),
        (Silent, {}, "the module returns NoneType, in which there is no tensor"),
        (Pose, {"skeletn": "coco"}, "skeletn: nothing of this name .* did you mean skeleton"),
        (Pose, {"size": (64, 0)}, "--size 64x0: height and width are 8 to 8192 px"),
        (Pose, {"mean": (1, 2)}, "--mean 1,2: expected three numbers"),
        (lambda: Pose().to("meta"), {}, "on torch's device meta, which holds no weights"),
        (lambda: "net", {"file": "x.onnx"}, "net is a file already"),
        (lambda: 7, {}, "expected a torch module or the path of an ONNX file, got int"),
    ],
)
def test_modules_that_cannot_be_used_are_refused_in_a_sentence(make: Any, stated: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        trainer.wrap(make(), **{"size": (64, 48), **stated})
    assert "\n" not in str(raised.value)


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
    with pytest.raises(ConfigError, match="size 256: expected \\(height, width\\)"):
        trainer.wrap(Branches(), size=256)  # type: ignore[arg-type]
