from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import LSP
from alpose.trainer.data.augment import AugmentConfig, augment, to_input

SIZE, CONTEXT = 64, 16
SIDE = SIZE + 2 * CONTEXT
STILL: dict[str, float] = {"rotation_deg": 0, "scale": 0, "shift": 0, "flip": 0, "colour": 0}


def run(
    pixels: Tensor, joints: Tensor, labelled: Tensor, seed: int = 0, *, flip_order: Any = None, **config: float
) -> tuple[Tensor, Tensor, Tensor]:
    return augment(
        pixels, joints, labelled, shape_px=(SIZE, SIZE), flip_order=flip_order or tuple(range(joints.shape[1])),
        config=AugmentConfig(**{**STILL, **config}), generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def noise(batch: int, joints: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (batch, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    return pixels, torch.rand(batch, joints, 2, generator=generator) * SIZE, torch.ones(batch, joints, dtype=torch.bool)


def dots(joints_BJ2: Tensor) -> Tensor:
    """Image b shows one blurred white dot, at its joint b modulo J."""
    axis = torch.arange(SIDE) - CONTEXT
    which = torch.arange(len(joints_BJ2)) % joints_BJ2.shape[1]
    place_B2 = joints_BJ2[torch.arange(len(joints_BJ2)), which]
    bell_B2S = torch.exp(-((axis - place_B2[..., None]) ** 2) / (2 * 2.0**2))
    return (
        (255 * bell_B2S[:, 1, :, None] * bell_B2S[:, 0, None, :])
        .round()
        .to(torch.uint8)[..., None]
        .expand(-1, -1, -1, 3)
    )


def centre_of_light(images_B3SS: Tensor) -> Tensor:
    grey_BSS = images_B3SS.double().mean(dim=1)
    axis = torch.arange(grey_BSS.shape[-1], dtype=torch.float64)
    total_B = grey_BSS.sum(dim=(1, 2))
    return (
        torch.stack([(grey_BSS * axis).sum(dim=(1, 2)), (grey_BSS * axis[:, None]).sum(dim=(1, 2))], 1)
        / total_B[:, None]
    )


def test_without_change_the_view_is_the_bare_crop() -> None:
    pixels, joints, labelled = noise(2)
    images, moved, counts = run(pixels, joints, labelled)
    inside = slice(CONTEXT, CONTEXT + SIZE)

    # The grid is float32: a coordinate of up to 96 px is off by about 1e-5 px, so a value by about 1e-5 of a step.
    torch.testing.assert_close(images, to_input(pixels[:, inside, inside]), rtol=0, atol=1e-4)
    torch.testing.assert_close(moved, joints, rtol=0, atol=1e-4)
    torch.testing.assert_close(counts, labelled)


@pytest.mark.parametrize(
    "config",
    [{"rotation_deg": 60}, {"scale": 0.3}, {"shift": 0.15}, {"flip": 1.0},
     {"rotation_deg": 45, "scale": 0.25, "shift": 0.1, "flip": 1.0}, {"rotation_deg": 180, "scale": 0.3, "shift": 0.2}],
    ids=str,
)  # fmt: skip
def test_a_dot_at_a_joint_is_found_at_the_joint_of_the_view(config: Any) -> None:
    batch = 4 * len(LSP)
    joints = 8 + 48 * torch.rand(batch, len(LSP), 2, generator=torch.Generator().manual_seed(1))
    labelled = torch.ones(batch, len(LSP), dtype=torch.bool)

    images, moved, counts = run(dots(joints), joints, labelled, flip_order=LSP.flip_order(), **config)

    # A mirrored left knee looks like a right knee.
    order = LSP.flip_order() if config.get("flip") else tuple(range(len(LSP)))
    called = torch.tensor([order[b % len(LSP)] for b in range(batch)])
    place_B2, rows = moved[torch.arange(batch), called], torch.arange(batch)
    # A dot of sigma 2 (enlarged up to 1.3 times) is whole when it is 10 px from the edge.
    whole_B = ((place_B2 > 10) & (place_B2 < SIZE - 11)).all(dim=1)
    assert whole_B.sum() > batch / 4
    assert counts[rows, called][whole_B].all()
    error = (centre_of_light(images) - place_B2)[whole_B].abs().max().item()
    assert error < 0.05


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_masks_swap_sides_with_their_joints(flip: float) -> None:
    pixels, joints, labelled = noise(5, joints=3)
    labelled[:, 0] = False

    _, _, counts = run(pixels, joints.clamp(1, SIZE - 2), labelled, flip_order=(1, 0, 2), flip=flip)

    assert counts.tolist() == [[True, False, True] if flip else [False, True, True]] * 5


def test_where_left_and_right_are_not_known_no_image_is_mirrored() -> None:
    """A mirrored left ear that is still called left would teach the net the wrong side; nothing else changes."""
    pixels, joints, labelled = noise(20)
    mixed: dict[str, Any] = {"rotation_deg": 45.0, "scale": 0.2, "shift": 0.1, "colour": 0.2}
    for without, with_flip in zip(run(pixels, joints, labelled, **mixed), run(pixels, joints, labelled, flip=1.0, **mixed),
                                  strict=True):  # fmt: skip
        assert torch.equal(without, with_flip)


def test_views_are_those_of_the_plain_formulas() -> None:
    """The slow twin: a grid by a product of matrices, an inverse by elimination, one colour after the other."""
    pixels, joints, labelled = noise(5)
    config = AugmentConfig(flip=0.5)
    images, moved, counts = augment(
        pixels, joints, labelled, shape_px=(SIZE, SIZE), flip_order=(1, 0, 2), config=config,
        generator=torch.Generator().manual_seed(4),
    )  # fmt: skip

    draw_B9 = torch.rand(5, 9, generator=torch.Generator().manual_seed(4)) * 2 - 1
    for row, draw_9 in enumerate(draw_B9.double()):
        angle, zoom = draw_9[0] * math.radians(config.rotation_deg), 1 + draw_9[1] * config.scale
        mirrored, shift_2 = bool((draw_9[4] + 1) / 2 < 0.5), draw_9[2:4] * config.shift * SIZE
        rotation_22 = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        map_22 = rotation_22 / zoom @ torch.diag(torch.tensor([-1.0 if mirrored else 1.0, 1.0], dtype=torch.float64))
        theta_23 = torch.cat([map_22 * (SIZE / SIDE), (shift_2 * 2 / SIDE)[:, None]], dim=1)
        grid = functional.affine_grid(theta_23[None], [1, 3, SIZE, SIZE], align_corners=False)
        input_13SS = pixels[row : row + 1].permute(0, 3, 1, 2).double() / 255
        view_3SS = functional.grid_sample(input_13SS, grid, align_corners=False)[0]
        contrasted = (view_3SS - view_3SS.mean()) * (1 + draw_9[5] * config.colour) + view_3SS.mean()
        expected = (contrasted * (1 + draw_9[6:9] * config.colour)[:, None, None]).clamp(0, 1)
        torch.testing.assert_close(images[row].double(), expected, rtol=0, atol=2e-4)

        centre = (SIZE - 1) / 2
        places_J2 = (joints[row].double() - centre - shift_2) @ torch.linalg.inv(map_22).T + centre
        places_J2 = places_J2[[1, 0, 2]] if mirrored else places_J2
        torch.testing.assert_close(moved[row].double(), places_J2, rtol=0, atol=1e-4)
        assert counts[row].tolist() == ((places_J2 > -0.5) & (places_J2 < SIZE - 0.5)).all(dim=1).tolist()


@pytest.mark.parametrize(
    "place", [(-0.51, 30.0), (63.51, 30.0), (30.0, -0.51), (30.0, 63.51), (-1e30, 0.0), (float("nan"),) * 2]
)
def test_joints_outside_the_view_do_not_count(place: tuple[float, float]) -> None:
    pixels, joints, labelled = noise(1)
    joints[0] = torch.tensor([place, (-0.49, 63.49), (30.0, 30.0)])

    assert run(pixels, joints, labelled)[2].tolist() == [[False, True, True]]


def test_what_counts_is_labelled_and_inside() -> None:
    pixels, joints, labelled = noise(40)
    labelled[::2, 1] = False
    _, moved, counts = run(pixels, joints, labelled, rotation_deg=45, scale=0.25, shift=0.3)
    inside = ((moved > -0.5) & (moved < SIZE - 0.5)).all(dim=2)

    torch.testing.assert_close(counts, labelled & inside)
    assert not inside.all()


def test_the_same_seed_gives_the_same_views_and_another_seed_others() -> None:
    pixels, joints, labelled = noise(3)
    config: Any = {"rotation_deg": 45.0, "scale": 0.25, "shift": 0.1, "flip": 0.5, "colour": 0.2}
    first, again, other = (run(pixels, joints, labelled, seed, **config) for seed in (1, 1, 2))

    for one, same in zip(first, again, strict=True):
        torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


def test_inputs_are_not_edited() -> None:
    given = noise(4)
    before = [value.clone() for value in given]
    run(*given, flip_order=(1, 0, 2), rotation_deg=45, scale=0.25, shift=0.1, flip=1.0, colour=0.2)

    for now, then in zip(given, before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


def test_context_fills_what_a_bare_crop_would_leave_black() -> None:
    white = torch.full((20, SIDE, SIDE, 3), 255, dtype=torch.uint8)
    _, joints, labelled = noise(20)
    images, _, _ = run(white, joints, labelled, shift=0.2)

    assert images.min() > 0.999


def test_to_input_is_rgb_planes_between_zero_and_one() -> None:
    pixels = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    pixels[0, 0, 1] = torch.tensor([255, 0, 51], dtype=torch.uint8)
    planes = to_input(pixels)

    assert planes.shape == (1, 3, 2, 2)
    np.testing.assert_allclose(planes[0, :, 0, 1], [1.0, 0.0, 0.2], rtol=1e-6)
    assert int(pixels[0, 0, 1, 0]) == 255


@pytest.mark.parametrize(
    "changes",
    [{"rotation_deg": -1}, {"rotation_deg": 181}, {"scale": 0.95}, {"scale": -0.1}, {"shift": 0.6}, {"flip": 1.1},
     {"flip": -0.1}, {"colour": 1.0}, {"rotation_deg": float("nan")}, {"flip": float("nan")}],
    ids=str,
)  # fmt: skip
def test_a_range_that_cannot_be_is_an_error(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="augmentation"):
        AugmentConfig(**changes)


@pytest.mark.parametrize("config", [{}, {"rotation_deg": 60}, {"scale": 0.3}, {"shift": 0.15}, {"flip": 1.0}], ids=str)
def test_in_a_view_that_is_not_square_a_dot_is_found_at_its_joint(config: Any) -> None:
    """48 wide and 80 high, with context: one dot in each image."""
    height, width, batch = 80, 48, 40
    joints = torch.tensor([8.0, 8.0]) + torch.tensor([32.0, 64.0]) * torch.rand(
        batch, 1, 2, generator=torch.Generator().manual_seed(1)
    )
    y, x = torch.arange(height + 2 * CONTEXT) - CONTEXT, torch.arange(width + 2 * CONTEXT) - CONTEXT
    bell = torch.exp(-((y[None, :, None] - joints[:, :, 1, None]) ** 2 + (x - joints[:, :, 0, None]) ** 2) / 8)
    pixels = (255 * bell).round().to(torch.uint8)[..., None].expand(-1, -1, -1, 3)

    images, moved, counts = augment(
        pixels, joints, torch.ones(batch, 1, dtype=torch.bool), shape_px=(height, width), flip_order=(0,),
        config=AugmentConfig(**{**STILL, **config}), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip

    assert images.shape == (batch, 3, height, width)
    place_B2 = moved[:, 0]
    whole_B = ((place_B2 > 10) & (place_B2 < torch.tensor([width, height]) - 11)).all(dim=1)
    assert whole_B.sum() > batch / 8
    assert counts[whole_B].all()
    grey = images.double().mean(dim=1)
    total = grey.sum(dim=(1, 2))
    found_B2 = torch.stack([(grey * torch.arange(width)).sum(dim=(1, 2)),
                            (grey * torch.arange(height)[:, None]).sum(dim=(1, 2))], 1) / total[:, None]  # fmt: skip
    assert (found_B2 - place_B2)[whole_B].abs().max() < 0.1
