from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from alpose.runtime.errors import DataError
from alpose.trainer.checkpoint import PoseModel, new_head
from alpose.trainer.data.augment import to_input
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext, evaluating
from alpose.trainer.heatmaps import decode, draw, entropy, multipeak_entropy, to_cells, to_pixels
from alpose.trainer.methods.catalog import heads_of
from alpose.trainer.objectives import true_loss
from alpose.trainer.passes import predict
from alpose.trainer.scoring import Scored, score
from alpose.trainer.training import PoseTraining, train_pose

MakeCrops = Callable[..., Crops]
MakeModel = Callable[..., PoseModel]


@pytest.fixture(scope="module")
def crops(make_crops: MakeCrops) -> Crops:
    """Eleven people; one joint in five is not labelled, and the fourth person has none."""
    made: Crops = make_crops(11, unlabelled=0.2)
    made.data.labelled_NJ[3] = made.data.visible_NJ[3] = False
    return made


@pytest.fixture(scope="module")
def model(make_model: MakeModel, make_crops: MakeCrops, cpu: DeviceContext) -> PoseModel:
    """Trained a little, so that people are told apart, and with every head."""
    made: PoseModel = make_model(stacks=2, depth=2)
    train_pose(made, make_crops(10), PoseTraining(epochs=8, batch=8, lr=2e-2, schedule="constant"), cpu, seed=0)
    return made.with_heads({name: new_head(made, name, 0) for name in heads_of("loss")})


@pytest.fixture(scope="module")
def scored(model: PoseModel, crops: Crops, cpu: DeviceContext) -> Scored:
    return score(model, crops, cpu)


def assert_close(one: Scored, other: Scored) -> None:
    """Convolutions of other batch sizes may add up in another order."""
    theirs = other.save_arrays()
    for name, value in one.save_arrays().items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_the_size_of_a_batch_does_not_matter(
    batch: int, model: PoseModel, crops: Crops, cpu: DeviceContext, scored: Scored
) -> None:
    assert_close(score(model, crops, cpu, batch=batch), scored)


def test_another_order_of_people_gives_the_same_numbers_in_that_order(
    model: PoseModel, crops: Crops, cpu: DeviceContext, scored: Scored
) -> None:
    order = np.random.default_rng(0).permutation(11)[:7]

    assert_close(score(model, crops.subset(order), cpu, batch=3), scored.take(order))


def test_weights_that_are_rounded_once_are_those_that_autocast_rounds(model: PoseModel, crops: Crops) -> None:
    machine = DeviceContext(torch.device("cpu"), torch.bfloat16)
    before = {name: value.clone() for name, value in model.pose.state_dict().items()}

    (seen,) = predict(model, crops, machine, batch=11, what="looking")
    with evaluating(model.pose), machine.autocast():
        expected = model.pose(seen.images_B3SS).heatmaps_BSJHW

    assert seen.heatmaps_BSJHW.dtype == torch.bfloat16
    assert torch.equal(seen.heatmaps_BSJHW, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.pose.state_dict().items())


def test_scores_differ_between_people(scored: Scored) -> None:
    for name, value in scored.save_arrays().items():
        assert np.ptp(np.nan_to_num(value), axis=0).max() > 0, name


def test_every_number_is_what_its_definition_says(model: PoseModel, crops: Crops, scored: Scored) -> None:
    images = to_input(torch.from_numpy(crops.read_bare(np.arange(11))))
    with torch.no_grad():
        output = model.pose.eval()(images)
        last = output.heatmaps_BSJHW[:, -1]
        cells, peak = decode(last)
        target = draw(to_cells(torch.from_numpy(crops.joints_NJ2), 4), 16, sigma=1.75, peak=30.0)
        expected: dict[str, Any] = {
            "predicted_NJ2": to_pixels(cells, 4),
            "peak_NJ": peak / 30,
            "true_loss_N": true_loss(output.heatmaps_BSJHW, target, torch.from_numpy(crops.labelled_NJ)),
            "entropy_N": entropy(last, 1.0),
            # Five cells of 64 are one of 16.
            "multipeak_N": multipeak_entropy(last, temperature=1.0, min_distance=1),
            "embedding_ND": output.features.penultimate_BCHW.mean(dim=(2, 3)),
            "coarsest_ND": output.features.pyramid[-1].mean(dim=(2, 3)),
            **{f"head.{name}": head.eval()(output.features) for name, head in model.heads.items()},
        }
    found = scored.save_arrays()
    expected["true_loss_N"][3] = torch.nan

    assert set(found) == {*expected, "distance_NJ"}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_distances_are_in_pixels_of_the_frame(crops: Crops, scored: Scored) -> None:
    """Predicted and labelled position both taken back to the frame, where the labels came from."""
    predicted_NJ2 = scored.predicted_NJ2 * crops.scale_N[:, None, None]
    distance_NJ = np.hypot(*np.moveaxis(predicted_NJ2 - crops.data.joints_NJ2, 2, 0))

    np.testing.assert_allclose(scored.distance_NJ, distance_NJ, rtol=1e-4, atol=1e-3)


def test_only_someone_without_a_label_has_no_true_loss(scored: Scored) -> None:
    assert np.flatnonzero(np.isnan(scored.true_loss_N)).tolist() == [3]


def test_labels_change_distances_and_true_losses_alone(
    model: PoseModel, crops: Crops, cpu: DeviceContext, scored: Scored
) -> None:
    other = score(model, replace(crops, joints_NJ2=63 - crops.joints_NJ2), cpu).save_arrays()

    changed = {k for k, v in scored.save_arrays().items() if not np.array_equal(v, other[k], equal_nan=True)}
    assert changed == {"distance_NJ", "true_loss_N"}


def test_context_does_not_reach_the_scores(model: PoseModel, crops: Crops, cpu: DeviceContext, scored: Scored) -> None:
    bare = replace(
        crops, config=replace(crops.config, context=0.0), pixels_NTS3=crops.pixels_NTS3[:, 16:80, 16:80].copy()
    )

    for name, value in score(model, bare, cpu).save_arrays().items():
        np.testing.assert_array_equal(value, scored.save_arrays()[name], err_msg=name)


def test_scoring_leaves_weights_and_modes_as_they_were(model: PoseModel, crops: Crops, cpu: DeviceContext) -> None:
    model.pose.train()
    model.pose.zero_grad(set_to_none=True)
    before = {key: value.clone() for key, value in model.pose.state_dict().items()}
    score(model, crops, cpu, batch=4)

    assert model.pose.training
    assert all(torch.equal(value, before[key]) for key, value in model.pose.state_dict().items())
    assert all(p.grad is None for p in model.pose.parameters())
    assert not any(value.is_inference() for value in model.pose.parameters()), "the net could not be trained on"


def test_scores_survive_their_arrays_and_take_rows(scored: Scored) -> None:
    back = Scored.from_arrays(scored.save_arrays())
    taken = back.take(np.array([4, 0, 4]))

    for name, value in scored.save_arrays().items():
        np.testing.assert_array_equal(back.save_arrays()[name], value)
        np.testing.assert_array_equal(taken.save_arrays()[name], value[[4, 0, 4]])
        assert value.dtype == np.float32
    assert set(back.predicted_loss) == set(heads_of("loss"))


@pytest.mark.parametrize("part", ["pose", "head"])
def test_weights_that_are_not_numbers_are_refused_with_a_name(
    part: str, make_model: MakeModel, crops: Crops, cpu: DeviceContext
) -> None:
    broken = make_model()
    broken = broken.with_heads({"ll++": new_head(broken, "ll++", 0)})
    module = broken.pose if part == "pose" else broken.heads["ll++"]
    with torch.no_grad():
        next(module.parameters()).fill_(torch.nan)

    with pytest.raises(DataError, match=r"not finite for 11 of 11 people, first dots/0-0"):
        score(broken, crops, cpu)


def test_one_person_whose_score_is_not_a_number_is_named(
    make_model: MakeModel, crops: Crops, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    head = new_head(model, "ll", 0)
    model = model.with_heads({"ll": head})
    monkeypatch.setattr(head, "forward", lambda features: torch.tensor([0.0] * 6 + [torch.inf] + [0.0] * 4))

    with pytest.raises(DataError, match=r"head\.ll is not finite for 1 of 11 people, first dots/0-6"):
        score(model, crops, cpu)
