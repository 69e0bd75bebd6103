"""HRNet beside the hourglass: its size, its shapes, and everything that takes a pose net."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from alpose.export.graph import MonitorGraph
from alpose.export.graph_parts import OwnTrunk
from alpose.runtime.errors import CheckpointError, ConfigError
from alpose.trainer import checkpoint
from alpose.trainer.checkpoint import FACTS, PoseModel, new_head, new_model
from alpose.trainer.cli import main
from alpose.trainer.data.crops import CropConfig, Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.epck import EpckTraining, train_epck
from alpose.trainer.heatmaps import decode, to_pixels
from alpose.trainer.methods.catalog import heads_of
from alpose.trainer.models.expected_pck import ExpectedPckHead
from alpose.trainer.models.heads import HeadConfig, build_head
from alpose.trainer.models.hourglass import HourglassConfig
from alpose.trainer.models.hrnet import Exchange, HRNet, HRNetConfig
from alpose.trainer.presets import NETS, preset, with_net, with_net_of
from alpose.trainer.scoring import score
from alpose.trainer.training import HeadTraining, PoseTraining, train_heads, train_pose

MakeCrops = Callable[..., Crops]
SIDES = [(64, 64), (128, 128), (100, 100), (92, 92), (256, 192), (36, 68), (4, 4)]


def config(**changes: Any) -> HRNetConfig:
    return replace(NETS["hrnet-tiny"].config(3), **changes)


def net(**changes: Any) -> HRNet:
    torch.manual_seed(0)
    return HRNet(config(**changes))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model(make_model: Callable[..., PoseModel]) -> PoseModel:
    """Every head on a tiny HRNet."""
    like = make_model()
    plain = new_model(config(), like.skeleton, CropConfig(size_px=64, context=0.25), like.target, seed=0)
    return plain.with_heads({name: new_head(plain, name, 0) for name in heads_of("loss")})


# --- The net


def test_w32_has_the_published_parameters() -> None:
    """28.5 M in Table 1; the authors' pose_hrnet.py counts 28,535,552 and the last convolution's 32 · 17 + 17."""
    with torch.device("meta"):
        w32 = HRNet(NETS["hrnet-w32"].config(17))

    assert sum(p.numel() for p in w32.parameters()) == 28_535_552 + 32 * 17 + 17 == 28_536_113


@pytest.mark.parametrize("modules", [(1,), (1, 2), (2, 1, 1)])
def test_every_parameter_moves_the_heatmaps(modules: tuple[int, ...]) -> None:
    model = net(modules=modules)
    model(images(4, 3, 64, 64)).heatmaps_BSJHW.square().sum().backward()

    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("modules", [(1, 1), (1, 1, 1)])
def test_inputs_and_pyramid_sizes_also_where_they_do_not_halve(
    height: int, width: int, modules: tuple[int, ...]
) -> None:
    model = net(modules=modules).eval()
    output = model(images(2, 3, height, width))

    rows, columns = model.config.sizes(height // 4), model.config.sizes(width // 4)
    assert output.heatmaps_BSJHW.shape == (2, 1, 3, height // 4, width // 4)
    assert output.features.penultimate_BCHW.shape == (2, 8, height // 4, width // 4)
    assert [tuple(scale.shape) for scale in output.features.pyramid] == [
        (2, channels, row, column) for channels, row, column in zip(model.config.widths, rows, columns, strict=True)
    ]


@pytest.mark.parametrize(("height", "width"), [(62, 64), (64, 65), (2, 2)])
def test_a_side_that_is_no_multiple_of_four_is_refused(height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"multiples of 4.*{height}x{width}"):
        net()(images(1, 3, height, width))


def test_a_coarse_cell_lies_over_the_fine_cells_it_saw() -> None:
    """5 cells halve to 3: cell c covers 2c and 2c + 1, and its second half may hang over the edge."""
    torch.manual_seed(0)
    exchange = Exchange((8, 16), blocks=0, outputs=1).eval()  # no blocks: a branch gives what it gets
    fine, coarse = torch.ones(1, 8, 5, 5), torch.zeros(1, 16, 3, 3)
    with torch.no_grad():
        before = exchange((fine, coarse))[0][0]
        for place, covered in ((1, [2, 3]), (2, [4])):
            lit = coarse.clone()
            lit[..., place, place] = 1.0
            changed_HW = (exchange((fine, lit))[0][0] - before).abs().sum(dim=(0, 1)) > 1e-6
            assert changed_HW.nonzero().tolist() == [[row, column] for row in covered for column in covered]


def test_the_heatmaps_are_read_from_the_penultimate_features() -> None:
    model = net().eval()
    with torch.no_grad():
        output = model(images(2, 3, 64, 64))

        torch.testing.assert_close(model.out(output.features.penultimate_BCHW), output.heatmaps_BSJHW[:, 0])
    assert output.features.pyramid[0] is output.features.penultimate_BCHW


@pytest.mark.parametrize("changes", [{"joints": 0}, {"width": 0}, {"modules": ()}, {"modules": (1, 0)}], ids=str)
def test_a_size_that_cannot_be_built_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        config(**changes)


def test_a_head_wants_as_many_channels_as_scales() -> None:
    with pytest.raises(ConfigError, match=r"2 pyramid scales.*\(8, 16, 32\)"):
        HeadConfig(name="ll", channels=(8, 16, 32), sizes=(8, 4))


# --- What takes a pose net


@pytest.mark.parametrize("name", heads_of("loss"))
@pytest.mark.parametrize("size_px", [64, 100, 92])
def test_every_head_reads_its_features(name: Any, size_px: int) -> None:
    """25 cells halve to 13 and 7, 23 to 12 and 6: no scale divides the one above it."""
    pose = net().eval()
    config = HeadConfig(name=name, channels=pose.config.widths, sizes=pose.config.sizes(size_px // 4))
    if name.startswith("epck"):
        config = replace(config, joints=3, peak=30.0, evidence="peaks" if name == "epck-slim" else "maps+features")
    head = build_head(config).eval()
    features = pose(images(2, 3, size_px, size_px)).features

    predicted_B = head(features)
    predicted_B.sum().backward()

    assert predicted_B.shape == (2,)
    assert all(p.grad is not None for p in head.parameters())


def test_it_trains_and_scores_with_every_head(make_crops: MakeCrops, model: PoseModel, cpu: DeviceContext) -> None:
    crops = make_crops(24)
    history = train_pose(
        model, crops, PoseTraining(epochs=6, batch=8, lr=3e-3, schedule="constant"), cpu, seed=0, state=None
    )
    pairs = {name: head for name, head in model.heads.items() if not name.startswith("epck")}
    epck = {name: head for name, head in model.heads.items() if isinstance(head, ExpectedPckHead)}
    losses = train_heads(model, pairs, crops, HeadTraining(epochs=1, batch=8), cpu, seed=0, validation=0.1)
    views = EpckTraining(views=1, epochs=1)
    losses |= train_epck(model, epck, crops, views, cpu, seed=0, validation=0.1)
    scored = score(model, crops, cpu)

    assert history[-1].train_loss < 0.9 * history[0].train_loss
    assert set(losses) == set(scored.predicted_loss) == set(heads_of("loss"))
    assert all(np.isfinite(loss_N).all() for loss_N in scored.predicted_loss.values())
    assert scored.embedding_ND.shape == (24, 8)
    assert np.isfinite(scored.true_loss_N).all()


def test_a_checkpoint_of_before_is_an_hourglass(make_model: Callable[..., PoseModel], tmp_path: Path) -> None:
    """Its facts name no kind, and one number for the channels of a head."""
    plain = make_model()
    checkpoint.save(plain.with_heads({"ll": new_head(plain, "ll", 0)}), tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())

    assert facts["pose"] == {"joints": 3, "stacks": 1, "channels": 8, "depth": 4}
    assert facts["heads"]["ll"]["channels"] == 8
    assert isinstance(checkpoint.load(tmp_path).pose.config, HourglassConfig)


def test_an_unknown_kind_of_net_is_refused_by_name(model: PoseModel, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path)
    facts = json.loads((tmp_path / FACTS).read_text())
    facts["pose"]["net"] = "transformer"
    (tmp_path / FACTS).write_text(json.dumps(facts))

    with pytest.raises((CheckpointError, ConfigError), match="transformer"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("size_px", [64, 100])
def test_the_graph_of_a_device_answers_as_the_net_does(model: PoseModel, size_px: int) -> None:
    pose, sizes = model.pose.eval(), model.pose.config.sizes(size_px // 4)
    head = build_head(HeadConfig(name="ll++conv", channels=model.pose.config.widths, sizes=sizes)).eval()
    frames = (255 * images(2, size_px, size_px, 3)).to(torch.uint8)
    graph = MonitorGraph(
        OwnTrunk(pose), head, skeleton=model.skeleton, size_px=size_px, peak=30.0, head_name="ll++conv"
    )

    with torch.no_grad():
        keypoints_NJ2, scores_NJ, predicted_N, _, embedding_ND, confidence_NJ = graph(frames)
        output = pose(frames.permute(0, 3, 1, 2) / 255)
        cells_NJ2, peak_NJ = decode(output.heatmaps_BSJHW[:, 0])
        torch.testing.assert_close(keypoints_NJ2, to_pixels(cells_NJ2, 4))
        torch.testing.assert_close(scores_NJ, peak_NJ / 30.0)
        torch.testing.assert_close(predicted_N, head(output.features))
    assert embedding_ND.shape == (2, 8)
    assert confidence_NJ.shape == scores_NJ.shape


# --- Commands


def test_a_preset_with_another_net_keeps_the_rest() -> None:
    plain = preset("smoke")
    other = with_net(plain, "hrnet-w32")

    assert replace(other.recipe, net=plain.recipe.net) == plain.recipe
    assert with_net(plain, None) == plain
    assert with_net_of(plain, other.recipe.net.config(14)) == other
    assert with_net_of(other, plain.recipe.net.config(14)) == plain


def test_cycles_and_fit_take_it(tmp_path: Path) -> None:
    def call(*words: str) -> Any:
        return CliRunner().invoke(main, [*words, "--cache", str(tmp_path / "cache"), "--device", "cpu"])

    run = tmp_path / "run"
    cycles = ("cycles", "--dataset", "synthetic", "--preset", "smoke", "--net", "hrnet-tiny", "--select-only",
              "--methods", "coreset,ll,ll++conv", "--out", str(run))  # fmt: skip
    first, again = call(*cycles), call(*cycles)

    assert first.exit_code == again.exit_code == 0, first.output
    results = json.loads((run / "results.json").read_text())
    assert len(results["rows"]) == 3
    assert results["config"]["recipe"]["net"]["modules"] == [1, 1]
    assert (run / "report.html").exists()
    other = call(*[word for word in cycles if word not in ("--net", "hrnet-tiny")])
    assert isinstance(other.exception, SystemExit)
    assert "holds another run" in other.output

    base = str(run / "seed-0" / "base")
    on = call("fit", "--data", "synthetic", "--from", base, "--epochs", "1", "--out", str(tmp_path / "on"))
    assert on.exit_code == 0, on.output
    model = checkpoint.load(tmp_path / "on")
    assert isinstance(model.pose, HRNet)
    assert model.facts["recipe"]["net"]["modules"] == [1, 1]
    both = call("fit", "--data", "synthetic", "--from", base, "--net", "hrnet-w32", "--out", str(tmp_path / "x"))
    assert "leave out --net or --from" in both.output
