from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alpose.runtime.errors import ConfigError
from alpose.trainer.models.hourglass import Hourglass, HourglassConfig, PoseOutput, Residual, StackedHourglass


def net(seed: int = 0, **changes: int) -> StackedHourglass:
    torch.manual_seed(seed)
    return StackedHourglass(HourglassConfig(**{"joints": 3, "stacks": 2, "channels": 16, "depth": 4, **changes}))


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_papers_net_has_the_official_parameters_without_the_dead_ones() -> None:
    """REFERENCE.md, 1.1: 8,429,088 with 16 joints, of which 1,858,688 are skip convolutions that are never used."""
    with torch.device("meta"):
        papers = StackedHourglass(HourglassConfig(joints=16, stacks=2, channels=256, depth=4))

    assert sum(p.numel() for p in papers.parameters()) == 8_429_088 - 1_858_688


@pytest.mark.parametrize("stacks", [1, 3])
def test_every_parameter_moves_the_heatmaps(stacks: int) -> None:
    model = net(stacks=stacks)
    model(images(4, 3, 64, 64)).heatmaps_BSJHW.square().sum().backward()

    # In train mode a bias before a batch norm has no effect, by nature.
    dead = [
        name for name, p in model.named_parameters() if p.grad is None or not (p.grad.any() or name.endswith("bias"))
    ]
    assert dead == []


@pytest.mark.parametrize(("channels_in", "channels_out", "skips"), [(16, 16, 0), (16, 32, 2)])
def test_only_a_block_that_changes_its_channels_has_a_skip_convolution(
    channels_in: int, channels_out: int, skips: int
) -> None:
    assert len(list(Residual(channels_in, channels_out).skip.parameters())) == skips


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (192, 256)])
def test_inputs_and_pyramid_sizes(height: int, width: int) -> None:
    output = net().eval()(images(2, 3, height, width))

    assert output.heatmaps_BSJHW.shape == (2, 2, 3, height // 4, width // 4)
    assert output.features.penultimate_BCHW.shape == (2, 16, height // 4, width // 4)
    assert [tuple(scale.shape) for scale in output.features.pyramid] == [
        (2, 16, height // 4 >> level, width // 4 >> level) for level in range(5)
    ]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_pyramid_has_one_scale_more_than_the_hourglass_is_deep(depth: int) -> None:
    model = net(depth=depth).eval()

    assert len(model(images(1, 3, 64, 64)).features.pyramid) == depth + 1 == model.config.scales


@pytest.mark.parametrize(("height", "width"), [(100, 100), (64, 100), (32, 64), (100, 64)])
def test_a_side_that_does_not_add_up_is_refused_with_its_size(height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"multiples of 64.*{height}x{width}"):
        net()(images(1, 3, height, width))


def test_a_shallow_hourglass_takes_finer_multiples() -> None:
    assert net(depth=1).eval()(images(1, 3, 72, 40)).heatmaps_BSJHW.shape[-2:] == (18, 10)


def second_stack(model: StackedHourglass, x: Tensor) -> Tensor:
    finest, _ = model.hourglasses[1](x)
    return model.outs[1](model.necks[1](finest))


def test_the_input_of_a_stack_reaches_the_next_one() -> None:
    """With nothing merged into it, the second stack sees what the first saw: the output of the stem."""
    model = net().eval()
    for merge in (*model.merge_features, *model.merge_heatmaps):
        nn.init.zeros_(merge.weight)
        nn.init.zeros_(merge.bias)
    x = images(2, 3, 64, 64)

    with torch.no_grad():
        expected = second_stack(model, model.stem(x))
        found = model(x).heatmaps_BSJHW[:, 1]

    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_features_and_heatmaps_of_a_stack_are_merged_into_the_next() -> None:
    model = net().eval()
    x = images(2, 3, 64, 64)

    with torch.no_grad():
        stem = model.stem(x)
        neck = model.necks[0](model.hourglasses[0](stem)[0])
        merged = stem + model.merge_features[0](neck) + model.merge_heatmaps[0](model.outs[0](neck))
        expected = second_stack(model, merged)
        found = model(x).heatmaps_BSJHW[:, 1]

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_features_are_those_of_the_last_stack() -> None:
    model = net().eval()
    with torch.no_grad():
        output = model(images(2, 3, 64, 64))

        torch.testing.assert_close(model.outs[1](output.features.penultimate_BCHW), output.heatmaps_BSJHW[:, 1])
        torch.testing.assert_close(model.necks[1](output.features.pyramid[0]), output.features.penultimate_BCHW)


def test_coarser_features_are_the_decoder_before_upsampling() -> None:
    """What an hourglass adds to its skip branch is the next scale, enlarged."""
    torch.manual_seed(0)
    hourglass = Hourglass(2, 8).eval()
    x = images(1, 8, 8, 8)
    with torch.no_grad():
        out, coarser = hourglass(x)
        enlarged = coarser[0].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

        torch.testing.assert_close(out, hourglass.up(x) + enlarged)
    assert [scale.shape[-1] for scale in coarser] == [4, 2]


def test_a_batch_of_one_agrees_with_its_row_of_a_batch() -> None:
    model = net().eval()
    x = images(3, 3, 64, 64)
    with torch.no_grad():
        whole: PoseOutput = model(x)
        alone: PoseOutput = model(x[1:2])

    torch.testing.assert_close(alone.heatmaps_BSJHW, whole.heatmaps_BSJHW[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"joints": 0}, {"stacks": 0}, {"depth": 0}, {"channels": 4}, {"channels": 20}, {"channels": 0}],
    ids=str,
)
def test_a_size_that_cannot_be_built_is_an_error(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        HourglassConfig(**{"joints": 3, **changes})
