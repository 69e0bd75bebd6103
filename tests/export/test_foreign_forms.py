"""Forms of nets that are not square maps of square crops: each is fitted, becomes a bundle, and the bundle verifies.

Shapes: N images, H W the input, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alpose import trainer
from alpose.export.foreign import export_foreign
from alpose.export.verify import verify
from alpose.export.write import ExportConfig
from alpose.runtime.bundle import Bundle
from alpose.runtime.engines.onnx import OnnxEngine
from alpose.runtime.errors import ConfigError
from alpose.trainer.data.crops import CropConfig, prepare
from alpose.trainer.data.synthetic import read_people
from alpose.trainer.measures.metrics import Failure

from ..trainer.own_data import write_coco_folder

FAILURE = Failure("mean-error", 0.2)


class Maps(nn.Module):
    """A small SimpleBaseline (Xiao et al., ECCV 2018): maps of a quarter of the input's sides."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = _down(3, 16, 4), _down(16, 24, 2), _down(24, 32, 2)
        self.up = nn.Sequential(
            nn.ConvTranspose2d(32, 24, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(24, 16, 4, 2, 1), nn.ReLU()
        )
        self.final = nn.Conv2d(16, 14, 1)

    def forward(self, images_N3HW: Tensor) -> Any:
        return self.final(self.up(self.l3(self.l2(self.l1(images_N3HW)))))


class InnerMaps(Maps):
    """Its maps cover the middle three quarters of the input's width alone."""

    def forward(self, images_N3HW: Tensor) -> Any:
        return super().forward(images_N3HW[..., 8:-8])


class Distributions(Maps):
    """SimCC: two distributions for each joint, as long as each other."""

    def forward(self, images_N3HW: Tensor) -> Any:
        maps = super().forward(images_N3HW)
        return maps.amax(2), maps.amax(3)


class Tokens(Maps):
    """Features pass through tokens (N, h * w, C), as in a ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Identity()

    def forward(self, images_N3HW: Tensor) -> Any:
        deep = self.l3(self.l2(self.l1(images_N3HW)))
        tokens = self.tokens(deep.flatten(2).transpose(1, 2))
        return self.final(self.up(tokens.transpose(1, 2).unflatten(2, deep.shape[2:])))


def _down(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())


TAPS: dict[str, Any] = {"taps": ("up", "l2", "l3")}
FORMS: dict[str, tuple[type[Maps], tuple[int, int], dict[str, Any]]] = {
    "maps of an upright crop": (Maps, (64, 48), TAPS),
    "maps of a part of the crop": (
        InnerMaps, (64, 64), {"taps": ("l2", "l3"), "spec": {"decoder": {"stride": [4.0, 4.0], "offset": [9.5, 1.5]}}},
    ),
    "distributions": (Distributions, (64, 64), {**TAPS, "decode": "simcc"}),
    "tokens": (Tokens, (64, 48), {"taps": ("up", "tokens")}),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco_folder(read_people(seed=3, count=120, domain="hard"), tmp_path_factory.mktemp("people"))


def _trained(kind: type[Maps], size: tuple[int, int], cache: Path) -> Maps:
    """Seconds on other people: it learns roughly where joints are, so that it fails on some and not on all."""
    torch.manual_seed(0)
    net = kind()
    crops = prepare(
        read_people(seed=9, count=64, domain="easy"), CropConfig(size_px=size[1], height_px=size[0], context=0.0), cache
    )
    images = torch.from_numpy(crops.read_bare(np.arange(len(crops)))).permute(0, 3, 1, 2).float() / 255
    joints_NJ2 = torch.from_numpy(crops.joints_NJ2)
    rows, columns = torch.meshgrid(torch.arange(2.0, size[0], 4), torch.arange(2.0, size[1], 4), indexing="ij")
    squared = (columns - joints_NJ2[..., :1, None]).square() + (rows - joints_NJ2[..., 1:, None]).square()
    wanted = torch.exp(-squared / (2 * 6.0**2))
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(60):
        maps = Maps.forward(net, images)
        loss = ((maps - wanted).square() * (0.1 + wanted)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


@pytest.mark.parametrize("form", FORMS)
def test_a_form_goes_from_a_module_to_a_bundle_that_verifies(form: str, folder: Path, tmp_path: Path) -> None:
    kind, size, stated = FORMS[form]
    module = _trained(kind, size, tmp_path)
    given = {"skeleton": "lsp", "mean": (0, 0, 0), "std": (1, 1, 1)} | stated
    net = trainer.wrap(module, size=size, file=tmp_path / "net.onnx", **given)
    fitted = trainer.fit(net, folder, out=tmp_path / "model", cache=tmp_path, views=2, failure=FAILURE)
    assert 0 < fitted.failures < fitted.held_out
    out = export_foreign(
        tmp_path / "model", tmp_path / "net.alpose", config=ExportConfig(failure=FAILURE), cache=tmp_path
    )
    assert verify(out).passed
    bundle = Bundle.open(out)
    assert bundle.manifest.parity["their_file_alone_max_px"]["value"] < 1e-5
    frames = bundle.golden.frames_GHW3
    assert frames.shape[1:3] == size
    said = OnnxEngine(bundle)(frames)
    assert np.ptp(said.failure_probability_N) > 0


def test_forms_that_shapes_do_not_tell_are_refused_with_what_to_state(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"If they are simcc in output_0, output_1 \(14 joints\), state --decode simcc\."
    ):
        trainer.wrap(Distributions(), size=(64, 64), skeleton="lsp", file=tmp_path / "distributions.onnx")
    with pytest.raises(
        ConfigError, match=r"If they are heatmaps in output \(14 joints\), state .* decoder\.stride and decoder\.offset"
    ):
        trainer.wrap(InnerMaps(), size=(64, 64), skeleton="lsp", file=tmp_path / "inner.onnx")
