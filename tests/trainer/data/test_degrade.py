"""Pictures made worse: within bounds, as strongly as asked, and the same again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alpose.trainer.checkpoint import PoseModel, new_head
from alpose.trainer.data import degrade as degradation
from alpose.trainer.data.crops import Crops
from alpose.trainer.data.degrade import degrade, views_of
from alpose.trainer.device import DeviceContext
from alpose.trainer.training import HeadTraining, train_heads

SIDE = 32


def images(batch: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def worse(value: Tensor, strength: float | Tensor, seed: int = 0) -> Tensor:
    strength_B = strength if isinstance(strength, Tensor) else torch.full((len(value),), strength)
    return degrade(value, strength_B, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_a_picture_stays_a_picture(strength: float) -> None:
    before = images(64)
    for extreme in (before, before.round(), torch.zeros_like(before), torch.ones_like(before)):
        after = worse(extreme, strength)
        assert after.shape == before.shape
        assert 0 <= float(after.min()) <= float(after.max()) <= 1


def test_no_strength_changes_nothing() -> None:
    before = images(64)

    assert torch.equal(worse(before, 0.0), before)


def test_every_picture_has_its_own_strength() -> None:
    before, strength_B = images(64), torch.arange(64) % 2 * 1.0
    changed_B = (worse(before, strength_B) != before).flatten(1).any(dim=1)

    assert not changed_B[strength_B == 0].any()
    assert changed_B[strength_B == 1].float().mean() > 0.7


def test_more_strength_changes_more() -> None:
    before = images(128)
    changes = [float((worse(before, strength) - before).abs().mean()) for strength in (0.0, 0.25, 0.5, 1.0)]

    assert changes == sorted(changes)
    assert changes[1] > 0


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_its_input_does_not_change(strength: float) -> None:
    before = images(16)
    after = worse(before, strength)
    after.zero_()

    assert torch.equal(before, images(16))


def test_the_same_seed_gives_the_same_damage() -> None:
    before = images(16)

    assert torch.equal(worse(before, 0.8), worse(before, 0.8))
    assert not torch.equal(worse(before, 0.8), worse(before, 0.8, seed=1))


def test_what_is_drawn_does_not_depend_on_strength() -> None:
    """So that the pictures after these are the same whatever happened to these."""
    states = []
    for strength in (0.0, 1.0):
        generator = torch.Generator().manual_seed(0)
        degrade(images(8), torch.full((8,), strength), generator)
        states.append(generator.get_state())

    assert torch.equal(*states)


def test_noise_of_the_device_changes_the_noisy_images_alone() -> None:
    given, strength_B = images(64), torch.ones(64)

    def damaged(where: Any, seed: int = 0) -> Tensor:
        return degrade(given, strength_B, torch.Generator().manual_seed(seed), where)

    host, device = damaged("host"), damaged("device")
    differ_B = (host != device).flatten(1).any(dim=1)
    assert 0.2 < differ_B.float().mean() < 0.6  # two in five at full strength
    assert torch.equal(device, damaged("device"))
    assert torch.equal(host, damaged(None))  # what a CPU draws
    spread = [(value - torch.minimum(host, device)).abs()[differ_B].mean() for value in (host, device)]
    assert spread[1] == pytest.approx(float(spread[0]), rel=0.05)


def test_occluders_cover_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of at most half the side each, filled with one colour or with another picture's own pixels."""
    for other in ("_blur", "_expose"):
        monkeypatch.setattr(f"alpose.trainer.data.degrade.{other}", lambda images, *_, **__: images)
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    before = images(200)
    after = worse(before, 1.0)
    covered_BSS = (after != before).any(dim=1)
    share_B = covered_BSS.float().mean(dim=(1, 2))

    assert (share_B > 0).float().mean() > 0.5
    assert share_B.max() <= 2 * (0.5 + 1 / SIDE) ** 2
    theirs_BSS = (after == before.flip(0)).all(dim=1) & covered_BSS
    assert theirs_BSS.any()
    for image, covered_SS, theirs_SS in zip(after, covered_BSS, theirs_BSS, strict=True):
        assert len(image[:, covered_SS & ~theirs_SS].unique(dim=1).T) <= 2  # colours


@pytest.mark.parametrize("count", [1, 5, 24])
def test_images_are_damaged_as_if_every_damage_were_computed_for_all(count: int) -> None:
    """The slow twin: each kind of damage on the whole batch, then kept where it was drawn; not a bit differs."""
    before = images(count)
    strength_B = torch.rand(count, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(9)
    slow = before
    for _ in range(degradation.OCCLUDERS):
        slow = degradation._occlude(slow, before.flip(0), strength_B, generator)
    draw_B7 = torch.rand(count, 7, generator=generator)

    def keep(on_B: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        return torch.where(on_B.view(-1, 1, 1, 1), changed, slow)

    kind_B, blurred_B = draw_B7[:, 0], draw_B7[:, 1] < strength_B
    slow = keep(blurred_B & (kind_B < 0.2), degradation._blur(slow, factor=2))
    slow = keep(blurred_B & (kind_B >= 0.2) & (kind_B < 0.3), degradation._blur(slow, factor=4))
    slow = keep(draw_B7[:, 2] < 0.5 * strength_B, degradation._expose(slow, draw_B7[:, 3], draw_B7[:, 4]))
    noise = torch.randn(slow.shape, generator=generator)
    slow = keep(draw_B7[:, 5] < 0.4 * strength_B, degradation._add_noise(slow, noise, draw_B7[:, 6]))

    assert torch.equal(degrade(before, strength_B, torch.Generator().manual_seed(9)), slow)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_every_strength_has_its_geometry(strength: float) -> None:
    views = views_of(strength)

    assert views.rotation_deg == 30 + 60 * strength
    assert views_of(1.0).scale >= views.scale >= views_of(0.0).scale


def test_loss_heads_learn_on_damaged_views_where_asked(
    make_model: Callable[..., PoseModel], make_crops: Callable[..., Crops], cpu: DeviceContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One strength for each batch; without damage the views are as they were."""
    model, crops = make_model(stacks=1, depth=2), make_crops(16)
    strengths: list[list[float]] = []

    def spy(value: Tensor, strength_B: Tensor, generator: torch.Generator) -> Tensor:
        strengths.append(strength_B.tolist())
        return degrade(value, strength_B, generator)

    monkeypatch.setattr("alpose.trainer.training.degrade", spy)

    def learnt(**how: Any) -> Tensor:
        head = new_head(model, "ll++", 0)
        config = HeadTraining(epochs=2, batch=4, lr=1e-2)
        train_heads(model, {"ll++": head}, crops, config, cpu, seed=0, validation=0.1, **how)
        assert not head.training
        return torch.cat([value.flatten() for value in head.state_dict().values()])

    plain = learnt()
    assert not strengths
    damaged = learnt(damaged=True)
    assert len({len(set(batch)) for batch in strengths}) == 1
    assert len({batch[0] for batch in strengths}) == len(strengths) > 2
    assert all(0 <= batch[0] <= 1 for batch in strengths)
    assert torch.equal(learnt(damaged=True), damaged)
    assert torch.equal(learnt(damaged=False), plain)
    assert not torch.equal(damaged, plain)


def test_a_picture_that_is_not_square_stays_one() -> None:
    before = torch.rand(32, 3, 40, 24, generator=torch.Generator().manual_seed(0))

    after = worse(before, 1.0)

    assert after.shape == before.shape
    assert 0 <= float(after.min()) <= float(after.max()) <= 1
    changed_B = (after != before).flatten(1).any(dim=1)
    assert changed_B.sum() > 16
