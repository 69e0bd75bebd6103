"""What every registered head promises, loss head or auxiliary, on every net: a new entry of the catalog is held to this."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alpose.runtime.errors import ConfigError
from alpose.trainer import checkpoint
from alpose.trainer.checkpoint import PoseModel, new_auxiliary, new_head, new_model
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.methods.catalog import METHODS, head_named, heads_of
from alpose.trainer.models.hourglass import Features
from alpose.trainer.presets import NETS
from alpose.trainer.scoring import auxiliary_score, score
from alpose.trainer.training import HeadTraining, train_heads, train_pose, validation_mask

LOSS, AUXILIARY = heads_of("loss"), heads_of("auxiliary")
EVERY = pytest.mark.parametrize("name", [*LOSS, *AUXILIARY])
SHORT = HeadTraining(epochs=2, batch=5, lr=1e-3)


@pytest.fixture(scope="module", params=["hourglass", "hrnet"])
def net(request: pytest.FixtureRequest, make_model: Callable[..., PoseModel]) -> PoseModel:
    like = make_model(stacks=2, depth=2)
    if request.param == "hourglass":
        return like
    return new_model(NETS["hrnet-tiny"].config(3), like.skeleton, like.crop, like.target, seed=0)


@pytest.fixture(scope="module")
def plain(make_model: Callable[..., PoseModel], crops: Crops, cpu: DeviceContext) -> PoseModel:
    """A net whose statistics mean something."""
    made = make_model(stacks=2, depth=2, seed=3)
    made.pose.train()
    with torch.no_grad():
        made.pose(images(8, 64))
    made.pose.eval()
    return made


@pytest.fixture(scope="module")
def crops(make_crops: Callable[..., Crops]) -> Crops:
    made: Crops = make_crops(14, unlabelled=0.2)
    return made


def head_for(model: PoseModel, name: str, seed: int = 0) -> Any:
    """Fresh, and as far from its start as a trained one."""
    return new_head(model, name, seed) if name in LOSS else new_auxiliary(model, name, seed)


def images(count: int, size_px: int) -> Tensor:
    return torch.rand(count, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))


def features_of(model: PoseModel, count: int) -> Features:
    with torch.no_grad():
        features: Features = model.pose.eval()(images(count, model.crop.size_px)).features
    return features.map(lambda value: value.clone())


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def trained(
    model: PoseModel, crops: Crops, cpu: DeviceContext, *names: str, seed: int = 0
) -> dict[str, dict[str, Tensor]]:
    heads = {name: head_for(model, name) for name in names}
    history = train_heads(model, heads, crops, SHORT, cpu, seed=seed, validation=0.3)
    assert set(history) == set(names)
    assert all(np.isfinite(losses).all() for losses in history.values())
    assert not any(head.training for head in heads.values())
    return {name: weights(head) for name, head in heads.items()}


@EVERY
@pytest.mark.parametrize("count", [1, 3])
def test_a_head_says_one_thing_of_each_image_also_of_a_single_one(name: str, count: int, net: PoseModel) -> None:
    features, head = features_of(net, count), head_for(net, name).eval()
    before = features.map(torch.clone)
    said = head(features)

    assert said.shape[:1] == (count,)
    assert said.dtype == torch.float32
    assert said.isfinite().all()
    score_B = said if name in LOSS else auxiliary_score(head, features, features.heatmaps[-1] + 1)
    assert score_B.shape == (count,)
    assert torch.equal(features.penultimate_BCHW, before.penultimate_BCHW)  # it does not edit what others read too
    for now, then in zip((*features.pyramid, *features.heatmaps), (*before.pyramid, *before.heatmaps), strict=True):
        assert torch.equal(now, then)


@EVERY
def test_images_do_not_see_each_other(name: str, net: PoseModel) -> None:
    features, head, order = features_of(net, 4), head_for(net, name).eval(), [2, 0, 3, 1]

    torch.testing.assert_close(
        head(features.map(lambda value: value[order])), head(features)[order], rtol=1e-4, atol=1e-5
    )


@EVERY
def test_every_parameter_of_a_head_can_learn(name: str, net: PoseModel) -> None:
    head = head_for(net, name).train()
    for parameter in head.parameters():  # those that start at zero would hide the ones behind them
        nn.init.normal_(parameter, std=0.1)
    head(features_of(net, 8)).square().sum().backward()

    assert [key for key, value in head.named_parameters() if value.grad is None or not value.grad.any()] == []


@EVERY
def test_fresh_weights_depend_on_the_seed_and_the_name_alone(name: str, net: PoseModel) -> None:
    torch.manual_seed(1)
    first, state = weights(head_for(net, name, 7)), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)

    assert same(first, weights(head_for(net, name, 7)))
    assert not same(first, weights(head_for(net, name, 8)))


@EVERY
def test_training_moves_a_head_and_not_one_bit_of_the_pose_net(
    name: str, plain: PoseModel, crops: Crops, cpu: DeviceContext
) -> None:
    before, fresh = weights(plain.pose), weights(head_for(plain, name))
    first = trained(plain, crops, cpu, name)[name]

    assert not same(first, fresh)
    assert all(value.isfinite().all() for value in first.values())
    assert same(weights(plain.pose), before)
    assert not plain.pose.training
    assert not any(parameter.grad is not None for parameter in plain.pose.parameters())
    torch.manual_seed(99)
    assert same(trained(plain, crops, cpu, name)[name], first)
    assert not same(trained(plain, crops, cpu, name, seed=1)[name], first)


def test_heads_that_learn_together_learn_what_each_learns_alone(
    plain: PoseModel, crops: Crops, cpu: DeviceContext
) -> None:
    together = trained(plain, crops, cpu, *LOSS, *AUXILIARY)

    for name in together:
        assert same(trained(plain, crops, cpu, name)[name], together[name]), name


@EVERY
def test_people_who_validate_train_no_head(name: str, plain: PoseModel, crops: Crops, cpu: DeviceContext) -> None:
    valid_N = validation_mask(crops.data.ids, 0.3, 0)
    assert 0 < valid_N.sum() < len(crops)

    def with_others(rows_M: Any) -> dict[str, Tensor]:
        pixels_NTS3, joints_NJ2 = crops.pixels_NTS3.copy(), crops.joints_NJ2.copy()
        pixels_NTS3[rows_M], joints_NJ2[rows_M] = 255 - pixels_NTS3[rows_M], 63 - joints_NJ2[rows_M]
        return trained(plain, replace(crops, pixels_NTS3=pixels_NTS3, joints_NJ2=joints_NJ2), cpu, name)[name]

    first = trained(plain, crops, cpu, name)[name]
    assert same(with_others(valid_N), first)
    assert not same(with_others(~valid_N), first)


@pytest.mark.parametrize("name", [name for name in LOSS if head_named(name).loss])
def test_a_head_that_diverges_is_named(name: str, plain: PoseModel, crops: Crops, cpu: DeviceContext) -> None:
    with pytest.raises(ConfigError, match="diverged in epoch") as caught:
        train_heads(plain, {name: head_for(plain, name)}, crops, replace(SHORT, epochs=4, lr=1e30), cpu, seed=0,
                    validation=0.1)  # fmt: skip
    assert f"({name}: " in str(caught.value)


@pytest.mark.parametrize("name", [name for name in LOSS if not head_named(name).loss])
def test_a_head_without_an_objective_cannot_learn_beside_the_pose_net(
    name: str, make_model: Callable[..., PoseModel], crops: Crops, cpu: DeviceContext
) -> None:
    from alpose.trainer.training import PoseTraining

    model = make_model()
    with pytest.raises(ConfigError, match=f"{name} cannot be trained beside the pose net"):
        train_pose(model, crops, PoseTraining(epochs=1, batch=5), cpu, seed=0, heads={name: new_head(model, name, 0)})


def test_a_checkpoint_brings_every_head_back_bit_for_bit(net: PoseModel, tmp_path: Path) -> None:
    model = net.with_heads({name: new_head(net, name, 0) for name in LOSS})
    model = model.with_auxiliary({name: new_auxiliary(net, name, 0) for name in AUXILIARY})
    checkpoint.save(model, tmp_path)
    back, features = checkpoint.load(tmp_path), features_of(net, 2)

    for theirs, ours in ((back.heads, model.heads), (back.auxiliary, model.auxiliary)):
        assert list(theirs) == list(ours)
        for name, head in ours.items():
            assert theirs[name].config == head.config
            assert same(weights(theirs[name]), weights(head))
            assert not theirs[name].training
            assert torch.equal(theirs[name](features), head.eval()(features))


def test_one_pass_scores_people_by_every_head(plain: PoseModel, crops: Crops, cpu: DeviceContext) -> None:
    model = plain.with_heads({name: new_head(plain, name, 0) for name in LOSS})
    model = model.with_auxiliary({name: new_auxiliary(plain, name, 0) for name in AUXILIARY})
    scored, bare = score(model, crops, cpu, batch=3), score(plain, crops, cpu, batch=3)

    assert (set(scored.predicted_loss), set(scored.auxiliary)) == (set(LOSS), set(AUXILIARY))
    for values_N in (*scored.predicted_loss.values(), *scored.auxiliary.values()):
        assert values_N.shape == (len(crops),)
        assert values_N.dtype == np.float32
        assert np.isfinite(values_N).all()
    for column, value_N in bare.save_arrays().items():  # and changes nothing of what the others see
        np.testing.assert_array_equal(value_N, scored.save_arrays()[column])


class Graph(nn.Module):
    """What an export puts into a file."""

    def __init__(self, pose: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.pose, self.head = pose, head

    def forward(self, images_B3SS: Tensor) -> Tensor:
        """The predicted loss."""
        loss_B: Tensor = self.head(self.pose(images_B3SS).features)
        return loss_B


@pytest.mark.parametrize("name", LOSS)
def test_a_loss_head_can_be_exported(name: str, plain: PoseModel, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    graph, path = Graph(plain.pose, head_for(plain, name)).eval(), tmp_path / "graph.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(graph, (images(1, 64),), str(path), input_names=["images"], dynamo=False, opset_version=17,
                          dynamic_axes={"images": {0: "batch"}})  # fmt: skip
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found_B,) = session.run(None, {"images": images(3, 64).numpy()})

    with torch.no_grad():
        np.testing.assert_allclose(found_B, graph(images(3, 64)).numpy(), rtol=1e-3, atol=1e-4)


def test_a_head_that_is_not_registered_is_refused_with_those_that_are() -> None:
    for name in ("ll+", "random"):
        with pytest.raises(ConfigError, match=rf"unknown head '{name[:2]}.*known: epck, epck-slim, ll, "):
            head_named(name)
    assert all(METHODS[name].head is not None for name in (*LOSS, *AUXILIARY))
