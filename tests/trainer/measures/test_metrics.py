from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import from_json, to_json
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton
from alpose.trainer.data.records import Floats, PoseData
from alpose.trainer.measures.failures import FAILURES, FailureName
from alpose.trainer.measures.metrics import (
    Failure,
    Judged,
    Profile,
    augrc,
    aurc,
    auroc,
    correlation,
    gap_closed,
    judge,
    mean_error,
    neighbour_thresholds,
    normaliser,
    precision,
    profile_for,
    profile_of,
    risk_coverage,
)

from ...fakes.people import made_people


def people(skeleton: Skeleton, count: int, head: Floats | None = None) -> PoseData:
    """Everything labelled and visible; a torso of which one diagonal is 100 long and the other 60."""
    joints_NJ2 = np.zeros((count, len(skeleton), 2), dtype=np.float32)
    if skeleton.name != "mpii":
        for joint, place in {
            "left_shoulder": (100, 0),
            "right_hip": (0, 0),
            "right_shoulder": (0, 60),
            "left_hip": (0, 0),
        }.items():
            joints_NJ2[:, skeleton.index(joint)] = place
    return made_people(skeleton, joints_NJ2, boxes_N4=np.zeros((count, 4), np.float32), head_N=head)


def hide(data: PoseData, row: int, *joints: str) -> None:
    for joint in joints:
        data.labelled_NJ[row, data.skeleton.index(joint)] = False
        data.visible_NJ[row, data.skeleton.index(joint)] = False


def distances(data: PoseData, value: float = 0.0) -> Floats:
    return np.full(data.labelled_NJ.shape, value, dtype=np.float32)


def peaks(data: PoseData, value: float = 1.0) -> Floats:
    return np.full(data.labelled_NJ.shape, value, dtype=np.float32)


STANDARD, OFFICIAL = profile_for("standard", LSP), profile_for("official-2021", LSP)


# --- Normalisers


def test_standard_measures_by_the_left_shoulder_and_right_hip() -> None:
    assert normaliser(people(LSP, 1), STANDARD).tolist() == [100.0]


@pytest.mark.parametrize("lost", ["left_shoulder", "right_hip"])
def test_standard_falls_back_to_the_other_diagonal(lost: str) -> None:
    data = people(LSP, 2)
    hide(data, 1, lost)

    assert normaliser(data, STANDARD).tolist() == [100.0, 60.0]


@pytest.mark.parametrize("lost", [("left_shoulder", "left_hip"), ("right_hip", "right_shoulder")])
def test_a_person_without_a_diagonal_is_left_out_and_counted(lost: tuple[str, str]) -> None:
    data = people(LSP, 2)
    hide(data, 0, *lost)

    judged = judge(data, distances(data), peaks(data), STANDARD)

    assert not judged.counts_NJ[0].any()
    assert judged.counts_NJ[1].all()
    assert np.isnan(judged.image_pck()).tolist() == [True, False]
    assert judged.pck() == 1.0


def test_a_torso_without_length_is_left_out() -> None:
    data = people(LSP, 1)
    data.joints_NJ2[:] = 7.0

    assert np.isnan(normaliser(data, STANDARD)).tolist() == [True]


def test_official_takes_the_longer_diagonal_whatever_the_flags_say() -> None:
    data = people(LSP, 2)
    hide(data, 1, "left_shoulder", "right_shoulder", "left_hip", "right_hip")
    data.joints_NJ2[1, LSP.index("right_shoulder")] = (0, 400)

    assert normaliser(data, OFFICIAL).tolist() == [100.0, 400.0]


@pytest.mark.parametrize(("name", "expected"), [("standard", [30.0, math.nan]), ("official-2021", [50.0, math.nan])])
def test_mpii_measures_by_the_head(name: Any, expected: list[float]) -> None:
    data = people(MPII, 2, head=np.array([50, np.nan], dtype=np.float32))

    np.testing.assert_allclose(normaliser(data, profile_for(name, MPII)), expected, rtol=1e-6)


def test_mpii_without_head_boxes_is_an_error() -> None:
    with pytest.raises(DataError, match="head"):
        normaliser(people(MPII, 1), profile_for("standard", MPII))


def test_coco_is_measured_by_the_torso() -> None:
    profile = profile_for("standard", COCO)

    assert profile.threshold == 0.2
    assert normaliser(people(COCO, 1), profile).tolist() == [100.0]


def test_an_unknown_profile_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="standard, official-2021"):
        profile_for("mine", LSP)  # type: ignore[arg-type]


# --- PCK


def test_a_joint_is_right_strictly_below_the_threshold() -> None:
    data = people(LSP, 1)
    distance_NJ = distances(data)
    # 0.2 of 100 px; float32 cannot hold 0.2, so the limit itself is a hair off 20 px.
    distance_NJ[0, :3] = 19.99, 20.001, 1e9

    judged = judge(data, distance_NJ, peaks(data), STANDARD)

    assert judged.right_NJ[0, :3].tolist() == [True, False, False]
    assert judged.pck() == 12 / 14
    assert judge(data, distance_NJ, peaks(data), STANDARD, threshold=0.21).pck() == 13 / 14


def test_a_distance_of_the_whole_limit_is_wrong() -> None:
    data = people(LSP, 1)
    profile = Profile(name="standard", threshold=0.25, normaliser="", macro=False)

    assert judge(data, distances(data, 25.0), peaks(data), profile).pck() == 0.0
    assert judge(data, distances(data, 24.999), peaks(data), profile).pck() == 1.0


def test_unlabelled_joints_do_not_count_whatever_their_distance() -> None:
    data = people(LSP, 1)
    hide(data, 0, "neck", "head_top", "left_knee")
    distance_NJ = distances(data)
    distance_NJ[0, [LSP.index("neck"), LSP.index("head_top"), LSP.index("left_knee")]] = np.nan, np.inf, 1e30
    distance_NJ[0, LSP.index("right_knee")] = 50

    judged = judge(data, distance_NJ, peaks(data), STANDARD)

    assert judged.pck() == 10 / 11
    assert judged.image_pck().tolist() == pytest.approx([10 / 11])


def test_mpii_standard_leaves_out_pelvis_and_thorax() -> None:
    data = people(MPII, 1, head=np.array([50], dtype=np.float32))
    distance_NJ = distances(data)
    distance_NJ[0, [MPII.index("pelvis"), MPII.index("thorax"), 0]] = 1000
    distance_NJ[0, 1] = 14.9  # half of 0.6 x 50 is 15
    distance_NJ[0, 2] = 15.1

    assert judge(data, distance_NJ, peaks(data), profile_for("standard", MPII)).pck() == 12 / 14
    # Of the whole head half is 25: joints 1 and 2 are right, and pelvis and thorax count.
    assert judge(data, distance_NJ, peaks(data), profile_for("official-2021", MPII)).pck() == 13 / 16


def two_people_of_unequal_joints() -> tuple[PoseData, Floats]:
    """Person 0 has every joint, all right but the neck; person 1 has its torso and neck alone, all wrong."""
    data = people(LSP, 2)
    torso = ("left_shoulder", "right_hip", "right_shoulder", "left_hip", "neck")
    hide(data, 1, *(joint for joint in LSP.joints if joint not in torso))
    distance_NJ = distances(data)
    distance_NJ[0, LSP.index("neck")] = 1000
    distance_NJ[1] = 1000
    return data, distance_NJ


def test_standard_counts_joints_equally() -> None:
    data, distance_NJ = two_people_of_unequal_joints()

    assert judge(data, distance_NJ, peaks(data), STANDARD).pck() == 13 / 19


def test_official_averages_the_joints_pck() -> None:
    """Nine joints of person 0 alone: 1; four torso joints: 1/2; the neck: 0."""
    data, distance_NJ = two_people_of_unequal_joints()

    assert judge(data, distance_NJ, peaks(data), OFFICIAL).pck() == pytest.approx((9 * 1 + 4 * 0.5 + 0) / 14)


def test_official_average_skips_a_joint_that_nobody_has() -> None:
    data, distance_NJ = two_people_of_unequal_joints()

    assert judge(data, distance_NJ, peaks(data), OFFICIAL).pck(np.array([1])) == 0.0
    hide(data, 0, "head_top")
    hide(data, 1, "head_top")
    assert judge(data, distance_NJ, peaks(data), OFFICIAL).pck() == pytest.approx((8 * 1 + 4 * 0.5 + 0) / 13)


def test_official_drops_occluded_joints_and_standard_keeps_them() -> None:
    data = people(LSP, 1)
    data.visible_NJ[0, 0] = False
    distance_NJ = distances(data)
    distance_NJ[0, 0] = 1000

    assert judge(data, distance_NJ, peaks(data), STANDARD).pck() == 13 / 14
    assert judge(data, distance_NJ, peaks(data), OFFICIAL).pck() == 1.0


def test_official_calls_a_low_peak_a_miss() -> None:
    """7.5 of a training peak of 30 is the lowest that counts."""
    data = people(LSP, 1)
    peak_NJ = peaks(data)
    peak_NJ[0, :2] = 0.2499, 0.25

    assert judge(data, distances(data), peak_NJ, OFFICIAL).pck() == pytest.approx(13 / 14)
    assert judge(data, distances(data), peak_NJ, STANDARD).pck() == 1.0


def test_judging_does_not_edit_the_labels() -> None:
    data = people(MPII, 2, head=np.array([50, np.nan], dtype=np.float32))
    judge(data, distances(data), peaks(data), profile_for("standard", MPII))

    assert data.labelled_NJ.all()
    assert data.visible_NJ.all()


def test_pck_of_rows_and_of_nobody() -> None:
    judged = Judged(np.array([[True, False], [True, True]]), np.array([[True, True], [True, False]]), macro=False)

    assert judged.pck() == 2 / 3
    assert judged.pck(np.array([0])) == 0.5
    assert judged.pck(np.array([1, 1, 0])) == 3 / 4
    assert judged.pck(np.array([], dtype=np.int64)) is None
    assert judged.image_pck().tolist() == [0.5, 1.0]


@pytest.mark.parametrize("macro", [False, True])
def test_pck_of_people_who_cannot_be_scored_is_none(macro: bool) -> None:
    nothing = np.zeros((2, 3), dtype=np.bool_)

    assert Judged(~nothing, nothing, macro).pck() is None


def test_neighbours_are_the_published_grid_around_the_threshold() -> None:
    grid = np.linspace(0, 1, 20)
    for skeleton, threshold in ((LSP, 0.2), (MPII, 0.5)):
        above = int(np.searchsorted(grid, threshold))

        assert neighbour_thresholds(profile_for("official-2021", skeleton)) == pytest.approx(
            grid[above - 1 : above + 1]
        )
        assert neighbour_thresholds(profile_for("standard", skeleton)) == ()


# --- Does the score find the failures?

scores_with_ties = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30)


def split(images: list[tuple[int, bool]]) -> tuple[Floats, Any]:
    return np.array([s for s, _ in images], dtype=np.float32), np.array([f for _, f in images], dtype=np.bool_)


@given(images=scores_with_ties)
@settings(deadline=None, max_examples=60)
def test_auroc_agrees_with_sklearn(images: list[tuple[int, bool]]) -> None:
    score_N, failed_N = split(images)
    if failed_N.all() or not failed_N.any():
        assert auroc(score_N, failed_N) is None
    else:
        assert auroc(score_N, failed_N) == pytest.approx(roc_auc_score(failed_N, score_N), abs=1e-12)


@given(images=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_aurc_is_the_mean_over_every_order_of_the_ties(images: list[tuple[int, bool]]) -> None:
    areas = []
    for order in permutations(images):
        if [score for score, _ in order] == sorted(score for score, _ in images):
            failures = np.cumsum([failed for _, failed in order])
            areas.append(np.mean(failures / np.arange(1, len(images) + 1)))

    assert aurc(*split(images)) == pytest.approx(np.mean(areas), abs=1e-12)


@given(images=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6))
@settings(deadline=None, max_examples=40)
def test_augrc_is_the_mean_area_over_every_order_of_the_ties(images: list[tuple[int, bool]]) -> None:
    """Kept and failed as a share of all, joined by lines from nobody kept to everybody."""
    areas = []
    for order in permutations(images):
        if [score for score, _ in order] == sorted(score for score, _ in images):
            missed = np.cumsum([0, *(failed for _, failed in order)]) / len(images)
            areas.append(np.mean((missed[1:] + missed[:-1]) / 2))

    assert augrc(*split(images)) == pytest.approx(np.mean(areas), abs=1e-12)


@given(images=scores_with_ties)
@settings(deadline=None, max_examples=40)
def test_augrc_follows_from_auroc_and_the_failure_rate(images: list[tuple[int, bool]]) -> None:
    """Unlike AURC it is a line in the AUROC (Traub et al.)."""
    score_N, failed_N = split(images)
    rate, area = failed_N.mean(), auroc(score_N, failed_N)

    assert augrc(score_N, failed_N) == pytest.approx((1 - (area or 0.0)) * rate * (1 - rate) + rate**2 / 2, abs=1e-12)
    assert augrc(score_N[:0], failed_N[:0]) is None


def test_risk_coverage_by_hand() -> None:
    score_N = np.array([0.9, 0.1, 0.5, 0.3], dtype=np.float32)
    failed_N = np.array([True, False, False, True])

    assert risk_coverage(score_N, failed_N).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 2 / 4])


def test_aurc_of_nobody_is_none() -> None:
    assert aurc(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.bool_)) is None


def test_correlation_agrees_with_scipy_over_finite_pairs() -> None:
    rng = np.random.default_rng(0)
    score_N = rng.normal(size=50).astype(np.float32)
    loss_N = (score_N + rng.normal(size=50)).astype(np.float32)
    loss_N[::7] = np.nan
    score_N[3] = -np.inf
    score_N[10:13] = score_N[10]  # ties
    fine = np.isfinite(score_N) & np.isfinite(loss_N)

    spearman, pearson = correlation(score_N, loss_N)

    assert 0 < fine.sum() < 50
    assert spearman == pytest.approx(stats.spearmanr(score_N[fine], loss_N[fine]).statistic, abs=1e-6)
    assert pearson == pytest.approx(stats.pearsonr(score_N[fine], loss_N[fine]).statistic, abs=1e-6)


@pytest.mark.parametrize(
    ("score", "loss"),
    [
        ([1, 1, 1], [1, 2, 3]),
        ([1, 2, 3], [2, 2, 2]),
        ([1], [2]),
        ([], []),
        ([1, math.nan, math.nan], [1, 2, 3]),
    ],
    ids=str,
)
def test_correlation_of_what_does_not_vary_is_none(score: list[float], loss: list[float]) -> None:
    found = correlation(np.array(score, dtype=np.float32), np.array(loss, dtype=np.float32))

    assert found == (None, None)


def test_precision_is_the_share_of_failures() -> None:
    assert precision(np.array([True, False, False, True, True])) == 3 / 5
    assert precision(np.zeros(0, dtype=np.bool_)) is None


@pytest.mark.parametrize(
    ("selected", "pool", "oracle", "expected"),
    [
        (0.8, 0.8, 0.2, 0.0),
        (0.2, 0.8, 0.2, 1.0),
        (0.5, 0.75, 0.25, 0.5),
        (0.9, 0.8, 0.6, -0.5),
        (None, 0.8, 0.2, None),
        (0.5, None, 0.2, None),
        (0.5, 0.8, None, None),
        (0.5, 0.8, 0.8, None),
        (0.5, 0.6, 0.8, None),
    ],
)
def test_gap_closed(selected: float | None, pool: float | None, oracle: float | None, expected: float | None) -> None:
    assert gap_closed(selected, pool, oracle) == (None if expected is None else pytest.approx(expected))


def test_mpii_people_without_head_boxes_are_measured_by_the_torso() -> None:
    """People whom annotators labelled with MPII's joints."""
    data = replace(people(MPII, 2), joints_NJ2=np.random.default_rng(0).uniform(0, 99, (2, 16, 2)).astype(np.float32))
    profile = profile_of("standard", data)

    assert (profile.by, profile.threshold, profile.skip) == ("torso", 0.2, ())
    assert np.isfinite(normaliser(data, profile)).all()
    assert profile_of("standard", people(LSP, 1)) == profile_for("standard", LSP)


# --- What counts as a failure


def test_the_three_definitions_on_people_made_by_hand() -> None:
    right_NJ = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
    counts_NJ = np.ones((5, 4), dtype=bool)
    counts_NJ[3, :] = False  # nothing of this one can be scored ...
    counts_NJ[2, 1:] = False  # ... and of this one only what is right
    labelled_NJ = np.ones((5, 4), dtype=bool)
    labelled_NJ[4] = [True, False, False, False]
    distance_NJ = np.array(
        [[1.0] * 4, [0, 0, 40, 40], [50, 0, 0, 0], [2.0] * 4, [30, 999, 999, np.nan]], dtype=np.float32
    )
    judged, side_N = Judged(right_NJ, counts_NJ, macro=False), np.full(5, 100.0, dtype=np.float32)

    def made(name: FailureName, limit: float | None = None) -> tuple[list[bool], list[bool]]:
        error_N = mean_error(distance_NJ, labelled_NJ, side_N)
        failed_N, defined_N = Failure(name, limit).failed(judged.image_pck(), error_N)
        return failed_N.tolist(), defined_N.tolist()

    # Exactly half right is not under a half.
    assert made("image-pck") == ([False, False, False, False, True], [True, True, True, False, True])
    assert made("image-pck", 0.75) == ([False, True, False, False, True], [True, True, True, False, True])
    assert made("any-joint") == ([False, True, False, False, True], [True, True, True, False, True])
    assert made("mean-error") == ([False, True, True, False, True], [True] * 5)
    assert made("mean-error", 0.25) == ([False, False, False, False, True], [True] * 5)


def test_definitions_are_checked_stored_and_said_in_words() -> None:
    profile = profile_for("standard", LSP)
    assert "fewer than half of its joints" in Failure().words(profile)
    assert "0.2 of the torso" in Failure().words(profile)
    assert "one joint or more" in Failure("any-joint").words(profile)
    assert "10 % of the side of the crop" in Failure("mean-error").words(profile)
    assert [Failure(name).label for name in FAILURES] == [
        "image PCK below 0.5", "any joint wrong", "mean error, in sides of the crop, above 0.1"
    ]  # fmt: skip
    for failure in (Failure(), Failure("any-joint"), Failure("mean-error", 0.07)):
        assert from_json(Failure, json.loads(json.dumps(to_json(failure)))) == failure
    for name, limit in (("pck", None), ("any-joint", 0.5), ("image-pck", 0.0), ("mean-error", 2.0)):
        with pytest.raises(ConfigError, match=r"failure|limit"):
            Failure(name, limit)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"Failure\.name must be one of"):
        from_json(Failure, {"name": "x"})
    with pytest.raises(DataError, match="needs the distances"):
        Failure("mean-error").failed(np.zeros(1))
