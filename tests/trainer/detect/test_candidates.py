"""What candidates read, the errors that are made up for them, and the terms of their objectives."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from alpose.runtime.skeleton import LSP
from alpose.trainer.checkpoint import PoseModel, TargetConfig, new_head, new_model
from alpose.trainer.data.crops import CropConfig
from alpose.trainer.detect.candidates import CANDIDATES, CandidateHead, listwise, pairwise, train_candidates
from alpose.trainer.detect.comparing import bootstrap, bootstrap_views
from alpose.trainer.detect.further_evidence import (
    GROUPS,
    ErrorRates,
    FurtherEvidence,
    Mixture,
    error_rates,
    facing_of,
    partner_distance,
    picture,
    pixels,
    with_errors,
)
from alpose.trainer.device import DeviceContext
from alpose.trainer.epck import EpckTraining, HeadDataset
from alpose.trainer.heatmaps import draw
from alpose.trainer.methods.catalog import DETECTORS, SHIPPED
from alpose.trainer.models.expected_pck import ExpectedPckHead
from alpose.trainer.models.hourglass import STRIDE, HourglassConfig
from alpose.trainer.passes import Predicted

J, CELLS = len(LSP), 16
UNIT_PX = 6.0
"""The PCK threshold of everybody here."""


def upright(people: int = 1) -> Tensor:
    """People seen from the front, each elsewhere, in pixels of a view of 64 (B, J, 2)."""
    place = {
        "ankle": (6, 58),
        "knee": (6, 46),
        "hip": (5, 34),
        "wrist": (16, 34),
        "elbow": (13, 24),
        "shoulder": (9, 14),
    }
    pose = []
    for name in LSP.joints:
        side, _, part = name.partition("_")
        x, y = place.get(part, (0, 12 if name == "neck" else 4))
        pose.append((32 + (x if side == "left" else -x if side == "right" else 0), y))
    shift_B12 = torch.linspace(-10, 10, people)[:, None, None] * torch.tensor([1.0, 0.0])
    return torch.tensor(pose, dtype=torch.float32) + shift_B12


@pytest.fixture(scope="module")
def model() -> PoseModel:
    config = HourglassConfig(joints=J, stacks=2, channels=8, depth=2)
    made = new_model(config, LSP, CropConfig(size_px=64), TargetConfig(), 0)
    made.pose.eval()
    return made


def seen_by(model: PoseModel, joints_BJ2: Tensor, keypoints_BJ2: Tensor) -> Predicted:
    """Sharp maps at these keypoints, whatever the net would say."""
    images_B3SS = torch.rand(len(joints_BJ2), 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = model.pose(images_B3SS).features
    cells_BJ2 = (keypoints_BJ2 - (STRIDE - 1) / 2) / STRIDE
    maps_BJHW = draw(cells_BJ2, CELLS, sigma=1.0, peak=model.target.peak)
    counts_BJ = torch.ones(joints_BJ2.shape[:2], dtype=torch.bool)
    return Predicted(
        np.arange(len(joints_BJ2)), images_B3SS, joints_BJ2, counts_BJ, torch.stack([maps_BJHW] * 2, dim=1),
        features._replace(heatmaps=(maps_BJHW, maps_BJHW)), keypoints_BJ2, torch.ones(joints_BJ2.shape[:2]),
        (keypoints_BJ2 - joints_BJ2).norm(dim=2) / UNIT_PX, counts_BJ,
    )  # fmt: skip


def evidence_of(model: PoseModel) -> FurtherEvidence:
    coarse = sum(scale.shape[1] for scale in seen_by(model, upright(), upright()).features.pyramid[-2:])
    turned_NJ2 = torch.cat(
        [upright(40) + torch.randn(40, J, 2, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    )
    return FurtherEvidence(model, UNIT_PX / STRIDE, torch.zeros(coarse + 1), Mixture.learn(turned_NJ2, LSP, 0))


def test_every_candidate_is_a_detector_that_differs_from_the_one_that_ships() -> None:
    for name, candidate in CANDIDATES.items():
        assert DETECTORS[name].kind == "candidate"
        assert DETECTORS[name].ablates == SHIPPED
        assert set(candidate.reads) <= set(GROUPS)


def test_legs_that_were_exchanged_are_less_likely_than_legs_that_were_not(model: PoseModel) -> None:
    order = list(range(J))
    for name in ("hip", "knee", "ankle"):
        pair = [LSP.joints.index(f"{side}_{name}") for side in ("left", "right")]
        order[pair[0]], order[pair[1]] = pair[1], pair[0]
    further = evidence_of(model)
    right, exchanged = (
        further.read(seen_by(model, upright(), pose))["skeleton"] for pose in (upright(), upright()[:, order])
    )

    knee = LSP.joints.index("left_knee")
    assert right[0, knee, 0] > exchanged[0, knee, 0] + 1  # the pose itself
    assert right[0, knee, 2] < 0 < exchanged[0, knee, 2]  # what exchanging the knees back would give


def test_people_from_the_front_and_from_behind_face_opposite_ways() -> None:
    behind_BJ2 = upright()[:, list(LSP.flip_order())]
    upside_down_BJ2 = -upright()

    assert float(facing_of(upright(), LSP)) == pytest.approx(-float(facing_of(behind_BJ2, LSP)))
    assert float(facing_of(upright(), LSP)) == pytest.approx(float(facing_of(upside_down_BJ2, LSP)))
    assert float(facing_of(upright(), LSP)) != 0


def test_a_map_that_stands_on_the_partner_is_seen_there(model: PoseModel) -> None:
    knees = [LSP.joints.index(f"{side}_knee") for side in ("left", "right")]
    doubled_BJ2 = upright().clone()
    doubled_BJ2[:, knees[0]] = doubled_BJ2[:, knees[1]]
    further = evidence_of(model)
    apart, doubled = (further.read(seen_by(model, upright(), pose))["partner"] for pose in (upright(), doubled_BJ2))

    assert (doubled[0, knees, 0] > apart[0, knees, 0] + 0.5).all()
    assert doubled[0, knees[0], 3] == pytest.approx(1, abs=1e-4)


def test_the_mass_of_a_sharp_map_is_near_its_peak_and_of_a_double_one_is_not(model: PoseModel) -> None:
    seen = seen_by(model, upright(), upright())
    other_BJHW = seen.features.heatmaps[-1].roll(8, dims=3)
    double = seen._replace(features=seen.features._replace(heatmaps=(seen.features.heatmaps[0],
                                                                    seen.features.heatmaps[-1] + other_BJHW)))  # fmt: skip
    sharp, spread = (evidence_of(model).read(each)["mass"] for each in (seen, double))

    assert (spread[..., 1] < sharp[..., 1] - 0.2).all()
    assert (spread[..., 2] > sharp[..., 2]).all()


@pytest.mark.parametrize("joints", [3, 14])
def test_the_picture_comes_back_as_it_was_dealt_out(joints: int) -> None:
    images_B3SS = torch.rand(2, 3, 32, 32)

    torch.testing.assert_close(picture(pixels(images_B3SS, joints)), images_B3SS)


# --- Errors


def test_errors_are_told_apart_by_where_the_keypoint_is() -> None:
    distance_NJ = torch.tensor([[0.5, 1.5, 3.0, 3.0, torch.nan]])
    partner_NJ = torch.tensor([[9.0, 9.0, 0.5, 9.0, 0.5]])
    counts_NJ = torch.tensor([[True, True, True, True, False]])

    assert error_rates(distance_NJ, partner_NJ, counts_NJ) == ErrorRates(jitter=0.25, inversion=0.25, miss=0.25)


@pytest.mark.parametrize("kind", ErrorRates._fields)
def test_an_error_moves_the_map_where_its_kind_says(kind: str, model: PoseModel) -> None:
    seen = seen_by(model, upright(8), upright(8) + 1.0)
    rates = ErrorRates(0.0, 0.0, 0.0)._replace(**{kind: 1.0})
    moved = with_errors(seen, rates, model, UNIT_PX / STRIDE, torch.Generator().manual_seed(0))
    wrong_BJ = (moved.keypoints_BJ2 - seen.keypoints_BJ2).norm(dim=2) > 1.0

    assert wrong_BJ.float().mean() > 0.3
    torch.testing.assert_close(moved.features.heatmaps[-1].amax(dim=(2, 3)), seen.features.heatmaps[-1].amax(dim=(2, 3)),
                               atol=0.3 * model.target.peak, rtol=0)  # fmt: skip
    torch.testing.assert_close(moved.distance_BJ, (moved.keypoints_BJ2 - seen.joints_BJ2).norm(dim=2) / UNIT_PX,
                               atol=0.02, rtol=0.02)  # fmt: skip
    if kind == "inversion":
        paired_BJ = wrong_BJ & partner_distance(moved, LSP).isfinite()
        assert (partner_distance(moved, LSP)[paired_BJ] < 1).all()


def test_where_nothing_goes_wrong_nothing_is_moved(model: PoseModel) -> None:
    seen = seen_by(model, upright(4), upright(4))
    same = with_errors(seen, ErrorRates(0.0, 0.0, 0.0), model, 1.0, torch.Generator().manual_seed(0))

    assert torch.equal(same.features.heatmaps[-1], seen.features.heatmaps[-1])


# --- Objectives and training


@pytest.mark.parametrize("term", [pairwise, listwise])
def test_a_term_is_smaller_where_the_order_is_right(term: object) -> None:
    target_BJ = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.4]])
    counts_BJ = torch.ones(3, 2)
    logits_BJ = 4 * target_BJ - 2

    assert callable(term)
    assert term(logits_BJ, target_BJ, counts_BJ) < term(-logits_BJ, target_BJ, counts_BJ)


def test_a_joint_that_does_not_count_has_no_say_in_the_order() -> None:
    target_BJ, counts_BJ = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    one, other = torch.tensor([[2.0, 5.0], [-2.0, -5.0]]), torch.tensor([[2.0, -5.0], [-2.0, 5.0]])

    for term in (pairwise, listwise):
        assert torch.equal(term(one, target_BJ, counts_BJ), term(other, target_BJ, counts_BJ))


def test_candidates_learn_what_only_their_evidence_tells(model: PoseModel) -> None:
    """The shipped head's evidence is noise; whether joints are right stands in the further evidence alone."""
    shipped = new_head(model, SHIPPED, 0)
    assert isinstance(shipped, ExpectedPckHead)
    generator = torch.Generator().manual_seed(0)
    wrong_N11 = torch.rand(400, 1, 1, generator=generator) < 0.5
    further = {group: torch.randn(400, J, 4, generator=generator) for group in GROUPS[:-1]}
    further["pixels"] = torch.where(wrong_N11, 0.9, 0.1).expand(-1, J, 220).clone()
    further["mass"] = wrong_N11.float().expand(-1, J, 4).clone()
    noise_NJD = torch.randn(400, J, shipped.depth, generator=generator)
    distance_NJ = torch.where(wrong_N11[..., 0], 3.0, 0.2).expand(-1, J)
    plain = HeadDataset({SHIPPED: noise_NJD, **further}, distance_NJ, torch.ones(400, J, dtype=torch.bool))
    cpu = DeviceContext(torch.device("cpu"), torch.float32)
    made = train_candidates(["epck-mass", "epck-pixels", "epck-partner"], plain, lambda: plain,
                            EpckTraining(epochs=20), cpu, 0)  # fmt: skip

    for name, knows in (("epck-mass", True), ("epck-pixels", True), ("epck-partner", False)):
        made[name].eval()
        with torch.inference_mode():
            score_M = made[name].score(torch.randn(400, J, shipped.depth, generator=generator),
                                       {**further, "partner": torch.randn(400, J, 4, generator=generator)})  # fmt: skip
        apart = score_M[wrong_N11[:, 0, 0]].mean() - score_M[~wrong_N11[:, 0, 0]].mean()
        assert (apart > 1.0) == knows, name


def test_a_joint_that_nobody_labelled_is_not_judged_by_the_picture() -> None:
    head = CandidateHead(3, 2, pictured=True).eval()
    head.leave_out(torch.tensor([False, True, False]), 0.5)
    one, other = (torch.cat([torch.zeros(1, 3, 2), pixels(torch.full((1, 3, 32, 32), value), 3)], dim=2)
                  for value in (0.1, 0.9))  # fmt: skip

    assert float(head.logits(one)[0, 1].detach()) == pytest.approx(math.log(1), abs=1e-6)
    assert torch.equal(head.logits(one)[0, 1], head.logits(other)[0, 1])


# --- Intervals where every base model has people of its own


def test_a_person_with_one_view_is_drawn_as_everybody_is() -> None:
    rng = np.random.default_rng(0)
    failed_N = rng.random(60) < 0.4
    score_DN = np.stack([failed_N + rng.normal(size=60), rng.normal(size=60)])
    together = bootstrap(["a", "b"], score_DN[:, None], failed_N[None], resamples=200)
    apart = bootstrap_views(["a", "b"], [score_DN], [failed_N], [np.arange(60)], same_people=True, resamples=200)

    assert replace(apart.estimate("a"), seeds=together.estimate("a").seeds) == together.estimate("a")


def test_more_views_of_the_same_people_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    failed_P = rng.random(60) < 0.4
    score_DP = np.stack([failed_P + rng.normal(size=60), rng.normal(size=60)])
    once = bootstrap_views(["a", "b"], [score_DP], [failed_P], [np.arange(60)], same_people=True, resamples=200)
    often = bootstrap_views(["a", "b"], [np.repeat(score_DP, 5, axis=1)], [np.repeat(failed_P, 5)],
                            [np.repeat(np.arange(60), 5)], same_people=True, resamples=200)  # fmt: skip

    assert often.estimate("a") == once.estimate("a")


def test_the_same_people_under_every_net_are_drawn_together() -> None:
    """Three nets that say the same of the same people know no more than one; of other people they would."""
    rng = np.random.default_rng(0)
    failed_P = rng.random(60) < 0.4
    score_DP = np.stack([failed_P + rng.normal(size=60), rng.normal(size=60)])

    def width(nets: int, same_people: bool) -> float:
        boot = bootstrap_views(["a", "b"], [score_DP] * nets, [failed_P] * nets, [np.arange(60)] * nets,
                               same_people=same_people, resamples=400)  # fmt: skip
        people = boot.estimate("a").people
        assert people.low is not None
        assert people.high is not None
        return people.high - people.low

    assert width(3, same_people=True) == pytest.approx(width(1, same_people=True))
    assert width(3, same_people=False) < 0.8 * width(1, same_people=True)
