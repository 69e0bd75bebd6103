"""Training of the expected-PCK head: that it learns, from whom, and that it learns the same again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer.checkpoint import PoseModel, new_head
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.epck import EpckTraining, HeadDataset, fit, join, soft_right, train_epck
from alpose.trainer.measures.metrics import auroc
from alpose.trainer.models.expected_pck import ExpectedPckHead

MakeCrops = Callable[..., Crops]
MakeModel = Callable[..., PoseModel]

JOINTS = 3
SHORT = EpckTraining(views=2, epochs=2, batch=8)


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> PoseModel:
    made: PoseModel = make_model(stacks=2, depth=2)
    made.pose.eval()
    return made


def heads_of(model: PoseModel, *names: Any) -> dict[str, ExpectedPckHead]:
    heads: dict[str, ExpectedPckHead] = {}
    for name in names or ("epck", "epck-slim"):
        head = new_head(model, name, 0)
        assert isinstance(head, ExpectedPckHead)
        heads[name] = head
    return heads


def planted(heads: Mapping[str, ExpectedPckHead], people: int, seed: int) -> HeadDataset:
    """People whose joints are wrong where their peak is low; everything else is noise."""
    generator = torch.Generator().manual_seed(seed)
    person_N1 = torch.rand(people, 1, generator=generator)
    peak_NJ = (person_N1 + 0.4 * torch.rand(people, JOINTS, generator=generator) - 0.2).clamp(0, 1)
    evidence = {}
    for name, head in heads.items():
        evidence[name] = torch.randn(people, JOINTS, head.depth, generator=generator)
        evidence[name][..., 0] = peak_NJ
    return HeadDataset(evidence, torch.where(peak_NJ < 0.5, 3.0, 0.2), torch.ones(people, JOINTS, dtype=torch.bool))


def weights(heads: Mapping[str, ExpectedPckHead]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value.clone() for name, head in heads.items() for key, value in head.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def test_heads_learn_a_planted_relation(model: PoseModel, cpu: DeviceContext) -> None:
    heads = heads_of(model)
    losses = fit(heads, planted(heads, 1500, 1), EpckTraining(), cpu, seed=0)

    fresh = planted(heads, 500, 2)
    wrong_NJ = (fresh.distance_NJ > 1).numpy()
    for name, head in heads.items():
        assert not head.training
        assert losses[name][-1] < 0.6 * losses[name][0]
        with torch.no_grad():
            logit_N = head.logit(fresh.evidence[name]).numpy()
            right_NJ = torch.sigmoid(head.logits(fresh.evidence[name])).numpy()
        failed_N = wrong_NJ.mean(axis=1) > 0.5
        assert 100 < failed_N.sum() < 400
        assert (auroc(logit_N, failed_N) or 0) > 0.96, name
        assert (auroc(-right_NJ.ravel(), wrong_NJ.ravel()) or 0) > 0.95, name
        assert abs(right_NJ.mean() - (~wrong_NJ).mean()) < 0.05, name


def test_the_same_seed_gives_the_same_head_whoever_learns_beside_it(model: PoseModel, cpu: DeviceContext) -> None:
    def learnt(*names: Any, seed: int = 0) -> dict[str, Tensor]:
        heads = heads_of(model, *names)
        fit(heads, planted(heads_of(model), 64, 1), SHORT, cpu, seed=seed)
        return weights(heads)

    torch.manual_seed(11)
    both, state = learnt(), torch.get_rng_state()
    torch.manual_seed(11)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's random numbers are used up
    torch.manual_seed(12)
    assert same(learnt(), both)
    assert same(learnt("epck-slim"), both)
    assert same(learnt("epck"), both)
    assert not same(learnt(seed=1), both)


def test_what_does_not_count_teaches_nothing(model: PoseModel, cpu: DeviceContext) -> None:
    """Not its distance, which may be NaN, and not its asked-for target."""

    def learnt(distance: float, target: float | None) -> dict[str, Tensor]:
        heads = heads_of(model)
        dataset = planted(heads, 64, 1)
        counts_NJ = torch.rand(64, JOINTS, generator=torch.Generator().manual_seed(3)) < 0.7
        counts_NJ[5] = False
        dataset = dataset._replace(
            counts_NJ=counts_NJ, distance_NJ=dataset.distance_NJ.masked_fill(~counts_NJ, distance)
        )
        target_NJ = None if target is None else torch.full((64, JOINTS), 0.4).masked_fill(~counts_NJ, target)
        losses = fit(heads, dataset, SHORT, cpu, seed=0, target_NJ=target_NJ)
        assert all(math.isfinite(loss) for of_head in losses.values() for loss in of_head)
        return weights(heads)

    assert same(learnt(math.nan, None), learnt(0.1, None))
    assert same(learnt(math.nan, math.nan), learnt(0.1, 0.9))


def test_what_does_not_count_is_not_taken_for_wrong(model: PoseModel, cpu: DeviceContext) -> None:
    heads = heads_of(model, "epck-slim")
    dataset = planted(heads, 400, 1)
    counts_NJ = torch.rand(400, JOINTS, generator=torch.Generator().manual_seed(3)) < 0.4
    fit(heads, dataset._replace(counts_NJ=counts_NJ), replace(SHORT, epochs=8, batch=32), cpu, seed=0)

    with torch.no_grad():
        right_NJ = torch.sigmoid(heads["epck-slim"].logits(dataset.evidence["epck-slim"]))
    assert float(right_NJ.mean()) == pytest.approx(float((dataset.distance_NJ < 1).float().mean()), abs=0.1)


def test_a_joint_that_nobody_labelled_does_not_blur_the_others(model: PoseModel, cpu: DeviceContext) -> None:
    heads = heads_of(model)
    dataset = planted(heads, 128, 1)
    dataset.counts_NJ[:, 2] = False
    fit(heads, dataset, SHORT, cpu, seed=0)

    for name, head in heads.items():
        with torch.no_grad():
            logits_NJ = head.logits(dataset.evidence[name])
        lowest_J, highest_J = logits_NJ.aminmax(dim=0)
        assert (lowest_J == highest_J).tolist() == [False, False, True], name


def test_nobody_to_learn_from_is_an_error(model: PoseModel, make_crops: MakeCrops, cpu: DeviceContext) -> None:
    heads = heads_of(model)
    dataset = planted(heads, 8, 1)
    with pytest.raises(DataError, match=r"labelled joints of people who can be measured.*there is none"):
        fit(heads, dataset._replace(counts_NJ=torch.zeros_like(dataset.counts_NJ)), SHORT, cpu, seed=0)
    with pytest.raises(DataError, match="expected-PCK heads: there is nobody to look at"):
        train_epck(model, heads, make_crops(1), SHORT, cpu, seed=0, validation=0.1)


def test_what_is_not_a_number_stops_the_training(model: PoseModel, cpu: DeviceContext) -> None:
    heads = heads_of(model)
    dataset = planted(heads, 16, 1)
    dataset.evidence["epck"][3, 0, 0] = math.inf
    with pytest.raises(ConfigError, match=r"diverged in epoch 0.*epck"):
        fit(heads, dataset, SHORT, cpu, seed=0)


@pytest.mark.parametrize("people", [1, 3, 500])
def test_fewer_people_than_a_batch_also_teach(people: int, model: PoseModel, cpu: DeviceContext) -> None:
    heads = heads_of(model)
    fit(heads, planted(heads, people, 1), replace(SHORT, epochs=1, batch=128), cpu, seed=0)

    assert all(value.isfinite().all() for value in weights(heads).values())


def test_datasets_are_joined_and_taken_in_order(model: PoseModel) -> None:
    heads = heads_of(model)
    a, b = planted(heads, 3, 1), planted(heads, 2, 2)
    part = join([a, b]).take(torch.tensor([4, 0]))

    for name in heads:
        assert torch.equal(part.evidence[name], torch.stack([b.evidence[name][1], a.evidence[name][0]]))
    assert torch.equal(part.distance_NJ, torch.stack([b.distance_NJ[1], a.distance_NJ[0]]))


@pytest.mark.parametrize(("people", "views"), [(0, 16), (1, 16), (900, 16), (10_000, 6), (60_000, 1), (10**6, 1)])
def test_more_people_are_seen_less_often_each(people: int, views: int) -> None:
    assert EpckTraining().views_for(people) == views


@pytest.mark.parametrize(
    "changes",
    [{"views": 0}, {"epochs": 0}, {"batch": -1}, {"lr": math.nan}, {"softness": 0.0}, {"weight_decay": -0.1}],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        EpckTraining(**changes)


def test_a_keypoint_at_the_threshold_is_half_right() -> None:
    distance = torch.tensor([0.0, 0.75, 1.0, 1.25, 5.0])
    right = soft_right(distance, 0.25)

    assert float(right[2]) == 0.5
    assert (right.diff() < 0).all()
    assert float(right[1] + right[3]) == pytest.approx(1)
    assert float(right[0]) > 0.98
