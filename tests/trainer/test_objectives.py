from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alpose.trainer.objectives import (
    LOSS_FLOOR,
    PAIRINGS,
    Pairing,
    heatmap_mse,
    margin_ranking,
    pair_kl,
    pairs,
    true_loss,
)

PAIRING = pytest.mark.parametrize("pairing", PAIRINGS)
OBJECTIVES = pytest.mark.parametrize("objective", [margin_ranking, pair_kl])


def doubles(*values: float, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


# --- Pairs


@pytest.mark.parametrize(
    ("batch", "expected"),
    [(0, []), (1, []), (2, [(0, 1)]), (5, [(0, 2), (1, 3)]), (8, [(0, 4), (1, 5), (2, 6), (3, 7)])],
)
def test_disjoint_pairs_are_i_with_i_plus_half_and_leave_an_odd_one_over(
    batch: int, expected: list[tuple[int, int]]
) -> None:
    first, second = pairs(batch, "disjoint")

    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


@pytest.mark.parametrize("batch", [0, 1, 2, 7])
def test_all_pairs_are_every_two_images_once(batch: int) -> None:
    first, second = pairs(batch, "all")
    found = set(zip(first.tolist(), second.tolist(), strict=True))

    assert found == {(i, j) for j in range(batch) for i in range(j)}
    assert len(first) == batch * (batch - 1) // 2


# --- Learning loss (Eq. 1)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        # The paper's example below Eq. 2: predictions 6 and 3.
        ((6.0, 3.0), (2.0, 1.0), 0.0),
        ((6.0, 3.0), (1.0, 2.0), 4.0),
        ((1.0, 0.5), (2.0, 1.0), 0.5),
        ((1.0, 0.5), (1.0, 2.0), 1.5),
        ((0.0, 0.0), (1.0, 2.0), 1.0),
    ],
)
def test_margin_ranking_by_hand(predicted: tuple[float, float], true: tuple[float, float], expected: float) -> None:
    assert margin_ranking(doubles(*predicted), doubles(*true)).item() == expected


def test_margin_ranking_pushes_the_worse_image_up_by_one_and_the_better_down() -> None:
    predicted = doubles(3.0, 6.0, 0.0, 9.0, grad=True)
    # Pair (0, 2) has its order right by 3 > 1, pair (1, 3) has it wrong by 3.
    margin_ranking(predicted, doubles(2.0, 2.0, 1.0, 1.0)).backward()

    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0.0, -0.5, 0.0, 0.5]


def test_a_tie_in_the_true_loss_costs_the_margin_and_moves_nothing() -> None:
    predicted = doubles(3.0, -1.0, grad=True)
    loss = margin_ranking(predicted, doubles(0.7, 0.7), margin=1.25)
    loss.backward()

    assert loss.item() == 1.25
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0.0, 0.0]


@PAIRING
def test_margin_ranking_is_the_mean_over_its_pairs(pairing: Pairing) -> None:
    rng = np.random.default_rng(1)
    predicted, true = rng.normal(size=9), rng.gamma(4, 0.066, 9)
    first, second = pairs(9, pairing)
    costs = [
        max(0.0, -math.copysign(1, true[i] - true[j]) * (predicted[i] - predicted[j]) + 0.4)
        for i, j in zip(first.tolist(), second.tolist(), strict=True)
    ]

    loss = margin_ranking(torch.from_numpy(predicted), torch.from_numpy(true), margin=0.4, pairing=pairing)

    assert loss.item() == pytest.approx(sum(costs) / len(costs), rel=1e-12)


# --- LearningLoss++ (Eq. 3 and 4)

losses = st.floats(2 * LOSS_FLOOR, 50)
gaps = st.floats(-30, 30)


def softmax_of_pairs(predicted: Tensor, true: Tensor, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """p and q of every pair, (P, 2), written out."""
    first, second = pairs(len(predicted), pairing)
    true_P2 = torch.stack([true[first], true[second]], dim=1)
    q_P2 = torch.softmax(torch.stack([predicted[first], predicted[second]], dim=1), dim=1)
    return true_P2 / true_P2.sum(dim=1, keepdim=True), q_P2


@PAIRING
@given(images=st.lists(st.tuples(gaps, losses), min_size=2, max_size=7))
@settings(deadline=None, max_examples=40)
def test_pair_kl_is_the_divergence_of_the_softmax(pairing: Pairing, images: list[tuple[float, float]]) -> None:
    predicted, true = doubles(*(p for p, _ in images)), doubles(*(t for _, t in images))
    p_P2, q_P2 = softmax_of_pairs(predicted, true, pairing)
    expected = torch.nn.functional.kl_div(q_P2.log(), p_P2, reduction="batchmean")

    # torch's softplus is linear above 20, which is off by at most exp(-20) < 3e-9.
    assert pair_kl(predicted, true, pairing=pairing).item() == pytest.approx(expected.item(), rel=1e-9, abs=3e-9)


@PAIRING
@given(images=st.lists(st.tuples(gaps, losses), min_size=2, max_size=7))
@settings(deadline=None, max_examples=40)
def test_gradient_of_pair_kl_is_q_minus_p(pairing: Pairing, images: list[tuple[float, float]]) -> None:
    predicted, true = doubles(*(p for p, _ in images), grad=True), doubles(*(t for _, t in images))
    p_P2, q_P2 = softmax_of_pairs(predicted.detach(), true, pairing)
    expected = torch.zeros(len(images), dtype=torch.float64)
    for place, (i, j) in enumerate(zip(*pairs(len(images), pairing), strict=True)):
        expected[i] += (q_P2 - p_P2)[place, 0] / len(p_P2)
        expected[j] -= (q_P2 - p_P2)[place, 0] / len(p_P2)

    pair_kl(predicted, true, pairing=pairing).backward()

    assert predicted.grad is not None
    torch.testing.assert_close(predicted.grad, expected, rtol=1e-9, atol=3e-9)


@PAIRING
def test_gradient_by_the_last_weights_is_equation_4(pairing: Pairing) -> None:
    generator = torch.Generator().manual_seed(0)
    theta_BD = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    true = torch.rand(8, generator=generator, dtype=torch.float64) + 0.1
    w = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    p_P2, q_P2 = softmax_of_pairs((theta_BD @ w).detach(), true, pairing)
    first, second = pairs(8, pairing)

    pair_kl(theta_BD @ w, true, pairing=pairing).backward()

    assert w.grad is not None
    expected = ((q_P2 - p_P2)[:, :1] * (theta_BD[first] - theta_BD[second])).mean(dim=0)
    torch.testing.assert_close(w.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("pair", "printed", "places"),
    [
        # Figure 1 of the paper, images (a, b) and (a, c); the digits are those of REFERENCE.md, section 3.2.
        (((1.48, 0.45), (1.51, 0.47)), 0.0034, 4),
        (((1.48, 0.45), (1.63, 2.87)), 0.327, 3),
    ],
)
def test_the_papers_worked_example(
    pair: tuple[tuple[float, float], tuple[float, float]], printed: float, places: int
) -> None:
    (predicted_i, true_i), (predicted_j, true_j) = pair
    predicted = doubles(predicted_i, predicted_j, grad=True)

    pair_kl(predicted, doubles(true_i, true_j)).backward()

    assert predicted.grad is not None
    assert round(abs(predicted.grad[0].item()), places) == printed
    assert predicted.grad.sum().item() == pytest.approx(0, abs=1e-15)


def test_learning_loss_answers_both_pairs_of_the_worked_example_alike() -> None:
    predicted = doubles(1.48, 1.51, 1.63, grad=True)
    true = doubles(0.45, 0.47, 2.87)
    gradients = []
    for other in (1, 2):
        (gradient,) = torch.autograd.grad(margin_ranking(predicted[[0, other]], true[[0, other]]), predicted)
        gradients.append((gradient[0].item(), gradient[other].item()))

    assert gradients == [(1.0, -1.0), (1.0, -1.0)]


@pytest.mark.parametrize("true", [0.3, 0.0])
def test_equal_images_predicted_equal_cost_nothing(true: float) -> None:
    predicted = doubles(2.0, 2.0, grad=True)
    loss = pair_kl(predicted, doubles(true, true))
    loss.backward()

    # Cross-entropy ln 2 less the entropy of a fair coin, ln 2.
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0.0, 0.0]


def test_the_entropy_of_p_is_subtracted() -> None:
    """p = 1/2 and a gap of d: KL = -ln(4 q (1 - q)) / 2 by the definition; without H(p) it would be ln 2 more."""
    q = 1 / (1 + math.exp(-1.5))

    loss = pair_kl(doubles(1.5, 0.0), doubles(0.3, 0.3)).item()

    assert loss == pytest.approx(-math.log(4 * q * (1 - q)) / 2, rel=1e-12)


def test_log_losses_are_a_minimum() -> None:
    true = doubles(0.2, 0.9, 3.0, 0.05, 7.0)
    predicted = (true.log() + 4.0).requires_grad_()
    loss = pair_kl(predicted, true, pairing="all")
    loss.backward()

    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert predicted.grad is not None
    assert predicted.grad.abs().max().item() < 1e-12


@PAIRING
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "true",
    [(0.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 5.0), (1e30, 1.0, 1e-30, 0.0), (1e-38, 1e-38, 2e-38, 1.0)],
    ids=str,
)
@pytest.mark.parametrize(
    "predicted", [(0.0, 0.0, 0.0, 0.0), (1e4, -1e4, -1e4, 1e4), (500.0, 0.0, -500.0, 90.0)], ids=str
)
def test_zeros_and_huge_gaps_give_finite_losses_and_gradients(
    pairing: Pairing, dtype: torch.dtype, true: tuple[float, ...], predicted: tuple[float, ...]
) -> None:
    predicted_B = torch.tensor(predicted, dtype=dtype, requires_grad=True)
    loss = pair_kl(predicted_B, torch.tensor(true, dtype=dtype), pairing=pairing)
    loss.backward()

    assert predicted_B.grad is not None
    assert torch.isfinite(loss)
    assert torch.isfinite(predicted_B.grad).all()
    assert predicted_B.grad.abs().max() <= 1


def test_a_hopeless_gap_costs_its_size() -> None:
    """KL → d - ln 2 for p = 1/2 and a large gap d."""
    assert pair_kl(doubles(1e5, 0.0), doubles(1.0, 1.0)).item() == pytest.approx(1e5 / 2 - math.log(2), rel=1e-12)


@OBJECTIVES
@PAIRING
def test_a_batch_of_one_costs_zero_and_keeps_the_graph(objective: Any, pairing: Pairing) -> None:
    predicted = doubles(5.0, grad=True)
    loss = objective(predicted, doubles(1.0), pairing=pairing)
    loss.backward()

    assert loss.shape == ()
    assert loss.item() == 0
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [0.0]


@OBJECTIVES
@PAIRING
def test_objectives_do_not_edit_what_they_are_given(objective: Any, pairing: Pairing) -> None:
    predicted, true = doubles(1.0, 2.0, 3.0), doubles(0.0, 2.0, 1.0)
    objective(predicted, true, pairing=pairing)

    assert (predicted.tolist(), true.tolist()) == ([1.0, 2.0, 3.0], [0.0, 2.0, 1.0])


# --- Heatmap loss


def maps(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heatmaps = torch.randn(3, 2, 4, 5, 6, generator=generator)
    target = torch.randn(3, 4, 5, 6, generator=generator)
    labelled = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    return heatmaps, target, labelled


def test_heatmap_mse_equals_a_plain_loop() -> None:
    heatmaps, target, labelled = maps()
    expected = np.zeros((3, 2))
    for image in range(3):
        joints = [j for j in range(4) if labelled[image, j]]
        for stack in range(2):
            squares = [
                (heatmaps[image, stack, j, y, x].item() - target[image, j, y, x].item()) ** 2
                for j in joints
                for y in range(5)
                for x in range(6)
            ]
            expected[image, stack] = sum(squares) / len(squares) if squares else 0.0

    found = heatmap_mse(heatmaps, target, labelled)

    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(true_loss(heatmaps, target, labelled), expected.mean(axis=1), rtol=1e-5)


def test_unlabelled_joints_have_no_gradient_and_labelled_ones_do() -> None:
    heatmaps, target, labelled = maps()
    heatmaps.requires_grad_()
    heatmap_mse(heatmaps, target, labelled).sum().backward()

    assert heatmaps.grad is not None
    has_gradient_BJ = (heatmaps.grad != 0).flatten(3).any(dim=3).all(dim=1)
    torch.testing.assert_close(has_gradient_BJ, labelled)
    assert not (heatmaps.grad.abs().sum(dim=(1, 3, 4))[~labelled]).any()


@pytest.mark.parametrize("garbage", [0.0, 1e30, math.inf, math.nan])
def test_targets_of_unlabelled_joints_do_not_matter(garbage: float) -> None:
    heatmaps, target, labelled = maps()
    heatmaps.requires_grad_()
    spoiled = target.clone()
    spoiled[~labelled] = garbage

    plain, odd = heatmap_mse(heatmaps, target, labelled), heatmap_mse(heatmaps, spoiled, labelled)
    (plain_gradient,) = torch.autograd.grad(plain.sum(), heatmaps)
    (odd_gradient,) = torch.autograd.grad(odd.sum(), heatmaps)

    torch.testing.assert_close(odd, plain, rtol=0, atol=0)
    torch.testing.assert_close(odd_gradient, plain_gradient, rtol=0, atol=0)


def test_the_true_loss_carries_no_gradient() -> None:
    heatmaps, target, labelled = maps()

    assert not true_loss(heatmaps.requires_grad_(), target, labelled).requires_grad


def test_low_precision_maps_are_compared_in_float32() -> None:
    heatmaps, target, labelled = maps()

    assert heatmap_mse(heatmaps.bfloat16(), target, labelled).dtype == torch.float32
