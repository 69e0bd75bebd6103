"""Views of people: what is measured in them, and of whom nothing is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from alpose.trainer.augmented_views import augmented_views
from alpose.trainer.checkpoint import PoseModel
from alpose.trainer.data.augment import AugmentConfig, to_input
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.epck import EpckTraining, train_epck
from alpose.trainer.heatmaps import decode, to_pixels
from alpose.trainer.measures.metrics import judge, profile_of
from alpose.trainer.models.expected_pck import ExpectedPckHead
from alpose.trainer.passes import Predicted, threshold_px
from alpose.trainer.scoring import score

MakeCrops = Callable[..., Crops]
MakeModel = Callable[..., PoseModel]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> PoseModel:
    made: PoseModel = make_model(stacks=2, depth=2)
    made.pose.eval()
    return made


@pytest.fixture(scope="module")
def crops(make_crops: MakeCrops) -> Crops:
    """Eleven people. The third has no length to measure by, the fourth no label."""
    made: Crops = make_crops(11, unlabelled=0.2)
    made.data.boxes_N4[2] = math.nan
    made.data.labelled_NJ[3] = made.data.visible_NJ[3] = False
    return made


def seen(model: PoseModel, crops: Crops, cpu: DeviceContext, *, views: int = 2, seed: int = 0, batch: int = 4,
         augment_by: AugmentConfig | None = None) -> list[Predicted]:  # fmt: skip
    return list(augmented_views(model, crops, cpu, views=views, seed=seed, batch=batch, augment_by=augment_by))


def test_everybody_as_they_are_is_judged_as_pck_judges(model: PoseModel, crops: Crops, cpu: DeviceContext) -> None:
    parts = seen(model, crops, cpu, views=0)
    profile = profile_of("standard", crops.data)
    scored = score(model, crops, cpu)
    judged = judge(crops.data, scored.distance_NJ, np.ones_like(scored.distance_NJ), profile)
    counts_NJ = torch.cat([part.counts_BJ for part in parts]).numpy()
    distance_NJ = torch.cat([part.distance_BJ for part in parts]).numpy()

    assert np.concatenate([part.rows_B for part in parts]).tolist() == list(range(11))
    np.testing.assert_array_equal(counts_NJ, judged.counts_NJ)
    np.testing.assert_array_equal((distance_NJ < 1) & counts_NJ, judged.right_NJ & judged.counts_NJ)
    images = torch.cat([part.images_B3SS for part in parts])
    torch.testing.assert_close(images, to_input(torch.from_numpy(crops.read_bare(np.arange(11)))))


@pytest.mark.parametrize("augment_by", [None, AugmentConfig(rotation_deg=90, scale=0.6, shift=0.0)], ids=str)
def test_the_threshold_grows_with_the_zoom(
    augment_by: AugmentConfig | None, model: PoseModel, crops: Crops, cpu: DeviceContext
) -> None:
    """How much a view zooms is seen from its joints: their distances over those in the crop."""
    unit_N, zooms = threshold_px(crops), []
    for part in seen(model, crops, cpu, views=3, augment_by=augment_by):
        own_BJ2 = torch.from_numpy(crops.joints_NJ2[part.rows_B])
        zoom_B = (part.joints_BJ2[:, 2] - part.joints_BJ2[:, :2].mean(dim=1)).norm(dim=1) / (
            own_BJ2[:, 2] - own_BJ2[:, :2].mean(dim=1)  # these two points are the same in a mirror image
        ).norm(dim=1)
        off_BJ = (to_pixels(decode(part.features.heatmaps[-1])[0], 4) - part.joints_BJ2).norm(dim=2)
        expected_BJ = off_BJ / (zoom_B * unit_N[torch.from_numpy(part.rows_B)])[:, None]
        torch.testing.assert_close(part.distance_BJ, expected_BJ, rtol=1e-3, atol=1e-3, equal_nan=True)
        zooms += zoom_B.tolist()

    assert min(zooms) < 0.85
    assert max(zooms) > 1.15


@pytest.mark.parametrize("views", [0, 2])
def test_who_cannot_be_measured_counts_nowhere(views: int, model: PoseModel, crops: Crops, cpu: DeviceContext) -> None:
    for part in seen(model, crops, cpu, views=views):
        nobody_B = np.isin(part.rows_B, [2, 3])
        assert not part.counts_BJ[torch.from_numpy(nobody_B)].any()
        assert part.counts_BJ[torch.from_numpy(~nobody_B)].any()
        assert part.distance_BJ[part.counts_BJ].isfinite().all()


def test_who_cannot_be_measured_puts_no_nan_in_a_head(
    model: PoseModel, crops: Crops, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alpose.trainer.checkpoint import new_head

    heads = {name: new_head(model, name, 0) for name in ("epck", "epck-slim")}
    gradients: list[torch.Tensor] = []
    real = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: object) -> object:
        gradients.extend(p.grad.clone() for group in self.param_groups for p in group["params"])
        return real(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    made = {name: head for name, head in heads.items() if isinstance(head, ExpectedPckHead)}
    train_epck(model, made, crops, EpckTraining(views=2, epochs=2, batch=3), cpu, seed=0, validation=0.1)

    assert gradients
    assert all(value.isfinite().all() for value in gradients)
    assert all(value.isfinite().all() for head in heads.values() for value in head.state_dict().values())


def test_a_seed_decides_the_views(model: PoseModel, crops: Crops, cpu: DeviceContext) -> None:
    first, again, other = (seen(model, crops, cpu, seed=seed) for seed in (0, 0, 1))

    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.images_B3SS, two.images_B3SS)
        assert torch.equal(one.distance_BJ.nan_to_num(), two.distance_BJ.nan_to_num())
    assert not torch.equal(first[0].images_B3SS, other[0].images_B3SS)
    assert not torch.equal(first[0].images_B3SS, first[3].images_B3SS)  # the next view of the same people
    assert first[0].rows_B.tolist() == first[3].rows_B.tolist()


def test_views_that_are_asked_for_are_not_damaged(
    model: PoseModel, crops: Crops, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("damaged")

    monkeypatch.setattr("alpose.trainer.augmented_views.degrade", refuse)
    assert seen(model, crops, cpu, augment_by=AugmentConfig())
    with pytest.raises(AssertionError, match="damaged"):
        seen(model, crops, cpu)


def test_the_net_looks_in_eval_mode_and_keeps_its_own(make_model: MakeModel, crops: Crops, cpu: DeviceContext) -> None:
    net = make_model(stacks=2, depth=2)
    before = {key: value.clone() for key, value in net.pose.state_dict().items()}
    modes = []
    net.pose.train()
    net.pose.register_forward_hook(lambda module, *_: modes.append(module.training))
    for _ in augmented_views(net, crops, cpu, views=1, seed=0):
        assert net.pose.training

    assert modes == [False]
    assert all(torch.equal(value, before[key]) for key, value in net.pose.state_dict().items())


def test_someone_of_one_joint_can_be_seen(make_model: MakeModel, make_crops: MakeCrops, cpu: DeviceContext) -> None:
    from alpose.runtime.skeleton import Skeleton

    dot, plain = Skeleton("dot", ("top",), (), ()), make_crops(4)
    data = replace(
        plain.data, skeleton=dot, joints_NJ2=plain.data.joints_NJ2[:, :1], labelled_NJ=plain.data.labelled_NJ[:, :1],
        visible_NJ=plain.data.visible_NJ[:, :1],
    )  # fmt: skip
    net = replace(make_model(joints=1), skeleton=dot)

    for part in seen(net, replace(plain, data=data, joints_NJ2=plain.joints_NJ2[:, :1]), cpu):
        assert part.distance_BJ.shape == (4, 1)
        assert part.distance_BJ.isfinite().all()
