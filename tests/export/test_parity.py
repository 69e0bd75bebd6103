from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from alpose.export.parity import (
    LIMITS,
    ParityError,
    ParityLimits,
    answer,
    compare,
    exceeded,
    rank_correlation,
    require,
    weighted_quantile,
)
from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.skeleton import LSP
from alpose.runtime.types import Outputs
from alpose.trainer.data.crops import CropConfig, Crops
from alpose.trainer.measures.metrics import Failure, profile_for

from ..fakes.people import made_people

COUNT, JOINTS = 60, len(LSP)
PROFILE = profile_for("standard", LSP)


@pytest.fixture
def crops() -> Crops:
    rng = np.random.default_rng(1)
    joints = rng.uniform(20, 108, (COUNT, JOINTS, 2)).astype(np.float32)
    for name, place in {"right_hip": (40, 90), "left_hip": (80, 90), "right_shoulder": (40, 40),
                        "left_shoulder": (80, 40)}.items():  # fmt: skip
        joints[:, LSP.index(name)] = place
    data = made_people(LSP, joints * 2, boxes_N4=np.tile(np.array([0, 0, 256, 256], np.float32), (COUNT, 1)))
    scale = np.full(COUNT, 2.0, dtype=np.float32)
    return Crops(
        data, CropConfig(size_px=128), np.zeros((COUNT, 1, 1, 3), dtype=np.uint8), np.arange(COUNT), scale, joints, ()
    )


@pytest.fixture
def reference(crops: Crops) -> Outputs:
    """A net whose every third pose is wrong, and which half knows it."""
    rng = np.random.default_rng(0)
    keypoints = crops.joints_NJ2 + rng.normal(0, 1, crops.joints_NJ2.shape)
    wrong = np.arange(COUNT) % 3 == 0
    keypoints[wrong] += 60
    embedding = rng.normal(size=(COUNT, 5))
    return Outputs(
        keypoints.astype(np.float32),
        rng.uniform(0.35, 1, (COUNT, JOINTS)).astype(np.float32),
        rng.normal(size=COUNT).astype(np.float32),
        (0.3 * wrong + rng.uniform(0, 0.6, COUNT)).astype(np.float32),
        (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32),
    )


def change(outputs: Outputs, **arrays: Any) -> Outputs:
    return replace(outputs, **{name: np.asarray(value, dtype=np.float32) for name, value in arrays.items()})


def test_an_engine_that_answers_the_same_keeps_every_limit(reference: Outputs, crops: Crops) -> None:
    figures = compare(reference, reference, crops=crops, profile=PROFILE)
    assert (figures.crops, figures.joints, figures.unjudged) == (COUNT, COUNT * JOINTS, 0)
    assert (figures.keypoint_max_px, figures.loss_rank_correlation) == (0.0, 1.0)
    assert (figures.pck_change, figures.auroc_change) == (0.0, 0.0)
    assert figures.pck == pytest.approx(2 / 3, abs=0.02)
    assert figures.auroc is not None
    assert 0.7 < figures.auroc < 1
    for limits in LIMITS.values():
        assert exceeded(figures, limits) == ()
        assert require(figures, limits, "it") is figures


def test_keypoints_count_by_their_score(reference: Outputs) -> None:
    scores = reference.scores_NJ.copy()
    scores[:, 0] = 0.29
    scores[:, 1] = 0.3
    moved = reference.keypoints_NJ2.copy()
    moved[:, 0] += 50  # where the net sees nothing
    moved[:, 1, 0] += 3
    moved[:, 1, 1] += 4
    figures = compare(change(reference, scores_NJ=scores), change(reference, scores_NJ=scores, keypoints_NJ2=moved))
    assert (figures.unjudged, figures.joints) == (COUNT, COUNT * (JOINTS - 1))
    assert figures.keypoint_median_px == 0.0
    assert figures.keypoint_max_px == pytest.approx(5.0, abs=1e-4)
    assert figures.keypoint_p99_px == pytest.approx(5.0, abs=1e-4)
    assert (figures.pck, figures.pck_change, figures.auroc, figures.auroc_change) == (None, None, None, None)


def test_without_a_joint_to_judge_keypoints_are_unknown_and_unjudged(reference: Outputs) -> None:
    blind = change(reference, scores_NJ=reference.scores_NJ * 0.1)
    figures = compare(blind, blind)
    assert (figures.joints, figures.keypoint_median_px, figures.keypoint_max_px) == (0, None, None)
    assert exceeded(figures, LIMITS["fp32"]) == ()


def test_the_weighted_quantile_is_that_of_repeated_values() -> None:
    rng = np.random.default_rng(2)
    values, weights = rng.normal(size=40), rng.integers(1, 9, 40)
    repeated = np.sort(np.repeat(values, weights))
    for share in (0.01, 0.3, 0.5, 0.99, 1.0):
        slow = repeated[max(int(np.ceil(share * len(repeated))) - 1, 0)]
        assert weighted_quantile(values, weights.astype(np.float64), share) == slow


def test_rank_correlation_is_spearmans_and_defined_for_constants() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=50).astype(np.float32), rng.normal(size=50).astype(np.float32)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    flat = np.ones(50, dtype=np.float32)
    assert (rank_correlation(flat, flat), rank_correlation(a, flat)) == (1.0, 0.0)
    assert rank_correlation(flat + 1e-7 * (a > 0), flat) == 1.0, "rounding has no ranks"


@pytest.mark.parametrize(
    ("figure", "spoil"),
    [
        ("keypoint_max_px is 0.2", lambda o: {"keypoints_NJ2": o.keypoints_NJ2 + np.array([0.2, 0])}),
        ("score_max is 0.01", lambda o: {"scores_NJ": o.scores_NJ + 0.01}),
        ("probability_max is 0.02", lambda o: {"failure_probability_N": o.failure_probability_N + 0.02}),
        ("embedding_max is ", lambda o: {"embedding_ND": o.embedding_ND[:, ::-1]}),
        ("loss_rank_correlation is -1, must be at least 0.9999", lambda o: {"predicted_loss_N": -o.predicted_loss_N}),
    ],
)
def test_a_passed_limit_is_named_with_value_and_limit(reference: Outputs, figure: str, spoil: Any) -> None:
    figures = compare(reference, change(reference, **spoil(reference)))
    with pytest.raises(ParityError, match=f"the fp32 graph differs .* on {COUNT} crops: {figure}"):
        require(figures, LIMITS["fp32"], "the fp32 graph")
    assert len(exceeded(figures, LIMITS["fp32"])) == 1


def test_falls_of_pck_and_auroc_are_named_and_gains_are_not(reference: Outputs, crops: Crops) -> None:
    worse = reference.keypoints_NJ2.copy()
    worse[1::3, :4] += 60
    figures = compare(reference, change(reference, keypoints_NJ2=worse), crops=crops, profile=PROFILE)
    assert figures.pck_change is not None
    assert figures.pck_change < -0.05
    limits = ParityLimits(pck_change=0.05, auroc_change=0.05)
    assert [words.split()[0] for words in exceeded(figures, limits)] == ["pck_change"]
    blind = change(reference, failure_probability_N=reference.failure_probability_N[::-1])
    assert exceeded(compare(reference, blind, crops=crops, profile=PROFILE), limits)[0].startswith("auroc_change is -")
    assert exceeded(compare(blind, reference, crops=crops, profile=PROFILE), limits) == ()


def test_auroc_follows_the_definition_of_failure(reference: Outputs, crops: Crops) -> None:
    keypoints = crops.joints_NJ2.copy()
    keypoints[::2, 0] += 50  # one joint of every other person
    one = change(reference, keypoints_NJ2=keypoints, failure_probability_N=np.arange(COUNT) % 2 == 0)
    assert compare(one, one, crops=crops, profile=PROFILE).auroc is None  # nobody fails by half
    assert compare(one, one, crops=crops, profile=PROFILE, failure=Failure("any-joint")).auroc == 0.0 + 1.0


def test_answers_of_another_form_or_not_finite_are_refused_by_name(reference: Outputs, crops: Crops) -> None:
    broken = reference.predicted_loss_N.copy()
    broken[3:5] = np.nan
    with pytest.raises(ParityError, match=f"predicted_loss has 2 of {COUNT} values that are not finite"):
        compare(reference, change(reference, predicted_loss_N=broken))
    with pytest.raises(ParityError, match=r"scores is float32 \(60, 13\), expected float32 \(60, 14\)"):
        compare(reference, change(reference, scores_NJ=reference.scores_NJ[:, 1:]))
    with pytest.raises(ConfigError, match="crops without a profile"):
        compare(reference, reference, crops=crops)
    with pytest.raises(DataError, match="60 answers do not fit the labels of 10 crops"):
        compare(reference, reference, crops=crops.subset(range(10)), profile=PROFILE)
    with pytest.raises(ConfigError, match="parity limit pck_change must be a number of at least 0, got -1"):
        ParityLimits(pck_change=-1)


def test_an_engine_is_asked_batch_by_batch(reference: Outputs) -> None:
    sizes = []

    class Engine:
        name = "fake"

        def __call__(self, frames_NHW3: npt.NDArray[np.uint8]) -> Outputs:
            sizes.append(len(frames_NHW3))
            rows = frames_NHW3[:, 0, 0, 0]
            return Outputs(*(value[rows] for value in reference.named().values()))

    frames = np.zeros((11, 2, 2, 3), dtype=np.uint8)
    frames[:, 0, 0, 0] = np.arange(11)
    given = answer(Engine(), frames, batch=4)
    assert sizes == [4, 4, 3]
    np.testing.assert_array_equal(given.keypoints_NJ2, reference.keypoints_NJ2[:11])
    with pytest.raises(DataError, match="no crops"):
        answer(Engine(), frames[:0])
