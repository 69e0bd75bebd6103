from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alpose.runtime.errors import ConfigError
from alpose.trainer.methods.catalog import heads_of
from alpose.trainer.models.heads import ConvHead, Ending, HeadConfig, HeadName, LossHead, build_head
from alpose.trainer.models.hourglass import Features

JOINTS = 3

ALL = pytest.mark.parametrize("name", heads_of("loss"))
SIZES = [(64, 32, 16, 8, 4), (56, 28, 14, 7, 3), (48, 24, 12, 6, 3), (10, 3), (11, 4), (8, 5), (16, 8, 4, 2, 1), (6,)]


def head(name: HeadName, sizes: tuple[int, ...] = (8, 4, 2), channels: int = 8, **changes: Any) -> LossHead:
    torch.manual_seed(0)
    maps = {"joints": JOINTS, "peak": 30.0, "evidence": "peaks" if name == "epck-slim" else "maps+features"}
    changes = (maps if name.startswith("epck") else {}) | changes
    return build_head(HeadConfig(name=name, channels=channels, sizes=sizes, **changes)).eval()


def features(batch: int, sizes: tuple[int, ...] = (8, 4, 2), channels: int = 8, *, grad: bool = False) -> Features:
    generator = torch.Generator().manual_seed(1)

    def scale(size: int) -> Tensor:
        return torch.randn(batch, channels, size, size, generator=generator).requires_grad_(grad)

    maps = tuple(3 * torch.randn(batch, JOINTS, sizes[0], sizes[0], generator=generator) for _ in range(2))
    return Features(tuple(scale(size) for size in sizes), scale(sizes[0]), maps)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def dense(*widths: int) -> int:
    return sum(a * b + b for a, b in pairwise(widths))


def conv(channels: int, kernel: int) -> int:
    return channels * channels * kernel**2 + channels


@pytest.mark.parametrize("ending", ["conv", "gap"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_the_convolutional_head_takes_sizes_that_do_not_divide(sizes: tuple[int, ...], ending: Ending) -> None:
    assert head("ll++conv", sizes, ending=ending)(features(2, sizes)).shape == (2,)


@pytest.mark.parametrize(
    ("fine", "coarse", "expected"),
    [
        # (kernel, stride) by section 4.2 of the paper: both are the floor of the ratio; a second convolution of
        # stride 1 cuts what is left over.
        (64, 32, [(2, 2)]),
        (7, 3, [(2, 2)]),  # floor((7 - 2) / 2) + 1 = 3: nothing is left over
        (10, 3, [(3, 3)]),
        (11, 4, [(2, 2), (2, 1)]),  # 11 -> 5 -> 4
        (8, 5, [(1, 1), (4, 1)]),  # 8 -> 8 -> 5
        (19, 5, [(3, 3), (2, 1)]),  # 19 -> 6 -> 5
    ],
)
def test_scales_are_folded_by_the_floor_division_rule(fine: int, coarse: int, expected: list[tuple[int, int]]) -> None:
    model = head("ll++conv", (fine, coarse), ending="gap")
    assert isinstance(model, ConvHead)

    found = [(m.kernel_size[0], m.stride[0]) for m in model.downs.modules() if isinstance(m, nn.Conv2d)]

    assert found == expected
    assert model.downs[0](torch.zeros(1, 8, fine, fine)).shape == (1, 8, coarse, coarse)


def test_the_official_parameter_counts_follow_from_these_formulae() -> None:
    """REFERENCE.md, 1.3 and 1.5: 43,777 and 2,142,209 at HEAD, whose hidden widths are 128, 64, 32, 16."""
    widths = (256, 128, 64, 32, 16, 1)

    assert dense(*widths) == 43_777
    assert 4 * conv(256, 2) + conv(256, 4) + dense(*widths) == 2_142_209


@pytest.mark.parametrize(
    ("name", "ending", "expected"),
    [
        # The widths of the commit that was published with the LL++ paper: one hidden layer of 8 more.
        ("ll-gap", "conv", dense(256, 128, 64, 32, 16, 8, 1)),
        ("ll++", "conv", dense(256, 128, 64, 32, 16, 8, 1)),
        ("ll++conv", "conv", 4 * conv(256, 2) + conv(256, 4) + dense(256, 128, 64, 32, 16, 8, 1)),
        ("ll++conv", "gap", 4 * conv(256, 2) + dense(256, 128, 64, 32, 16, 8, 1)),
        # Yoo and Kweon: 128 per scale, then one.
        ("ll", "conv", 5 * dense(256, 128) + dense(5 * 128, 1)),
    ],
)
def test_parameter_counts_at_the_papers_size(name: HeadName, ending: Ending, expected: int) -> None:
    with torch.device("meta"):
        model = build_head(HeadConfig(name=name, channels=256, sizes=(64, 32, 16, 8, 4), ending=ending))

    assert parameters(model) == expected


@pytest.mark.parametrize(
    ("name", "uses"),
    [("ll", {0, 1, 2}), ("ll++conv", {0, 1, 2}), ("ll-gap", {"penultimate"}), ("ll++", {"penultimate"})],
)
def test_a_head_looks_at_its_features_and_no_others(name: HeadName, uses: set[Any]) -> None:
    seen = features(4, grad=True)
    head(name)(seen).sum().backward()
    tensors: dict[Any, Tensor] = {**dict(enumerate(seen.pyramid)), "penultimate": seen.penultimate_BCHW}

    assert {key for key, value in tensors.items() if value.grad is not None and bool(value.grad.any())} == uses


@pytest.mark.parametrize(
    ("built", "came"),
    [((8, 4, 2), (16, 8, 4)), ((8, 4, 2), (8, 4)), ((8, 4), (8, 4, 2))],
    ids=str,
)
def test_the_convolutional_head_refuses_a_net_of_another_size(built: tuple[int, ...], came: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="pyramid"):
        head("ll++conv", built)(features(1, came))


def test_the_convolutional_head_refuses_maps_that_are_not_square() -> None:
    wide = Features(tuple(torch.zeros(1, 8, size // 2, size) for size in (8, 4, 2)), torch.zeros(1, 8, 4, 8))

    with pytest.raises(ConfigError, match="pyramid"):
        head("ll++conv")(wide)


@pytest.mark.parametrize("sizes", [(), (4, 8), (8, 4, 5), (4, 2, 0), (0,), (8, -2)], ids=str)
@ALL
def test_sizes_that_are_no_pyramid_are_an_error(name: HeadName, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="pyramid"):
        HeadConfig(name=name, channels=8, sizes=sizes)


@pytest.mark.parametrize("changes", [{"name": "ll+"}, {"ending": "max"}], ids=str)
def test_an_unknown_head_or_ending_is_an_error_that_names_it(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes.values())).replace("+", r"\+")):
        HeadConfig(**{"name": "ll", "channels": 8, "sizes": (8, 4), **changes})
