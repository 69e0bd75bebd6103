"""The confidence of joints: maps that are right where the truth is known, and what is measured about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from alpose.runtime.errors import DataError
from alpose.runtime.io import from_json, to_json
from alpose.trainer.measures import joint_calibration
from alpose.trainer.measures.joint_calibration import ENOUGH, JointReport, calibrate_joints
from alpose.trainer.measures.keypoint_measures import average_precision

GAIN, OFFSET = np.array([1.5, 0.7, 1.0]), np.array([0.4, -0.8, 0.0])


def people(count: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    logit_NJ = rng.normal(0, 2, (count, 3))
    return logit_NJ, rng.random((count, 3)) < expit(logit_NJ * GAIN + OFFSET)


def test_with_many_labels_every_joint_gets_its_own_map() -> None:
    logit_NJ, right_NJ = people(60_000)
    found = joint_calibration.fit(logit_NJ, right_NJ, np.ones_like(right_NJ))
    assert found.own_J.all()
    np.testing.assert_allclose(found.gain_J, GAIN, atol=0.06)
    np.testing.assert_allclose(found.offset_J, OFFSET, atol=0.06)


def test_few_labels_are_drawn_to_the_common_map_and_none_take_it() -> None:
    logit_NJ, right_NJ = people(4_000)
    counts_NJ = np.ones_like(right_NJ)
    counts_NJ[100:, 0] = False
    counts_NJ[ENOUGH:, 1] = False  # never both so many right and so many wrong
    found = joint_calibration.fit(logit_NJ, right_NJ, counts_NJ)
    assert found.own_J.tolist() == [True, False, True]
    common = found.offset_J[1]
    alone = joint_calibration.fit(logit_NJ[:100, :1], right_NJ[:100, :1], counts_NJ[:100, :1])
    assert abs(found.offset_J[0] - common) < abs(alone.offset_J[0] - common)
    never = joint_calibration.fit(logit_NJ, right_NJ | True, np.ones_like(right_NJ))
    assert not never.own_J.any()
    assert (never.confidence(logit_NJ) > 0.99).all()
    assert (never.gain_J >= 0).all()


def test_a_joint_that_says_nothing_gets_the_rate() -> None:
    right_NJ = np.arange(400).reshape(-1, 1) % 4 > 0
    found = joint_calibration.fit(np.full((400, 1), 0.3), right_NJ, np.ones_like(right_NJ))
    assert found.confidence(np.array([[0.3]])) == pytest.approx(0.75, abs=0.01)


def test_it_is_measured_on_people_that_did_not_fit() -> None:
    logit_NJ, right_NJ = people(8_000)
    counts_NJ = np.ones_like(right_NJ)
    counts_NJ[:, 2] = False
    fits_N = np.arange(8_000) % 2 == 0
    noise_NJ = np.random.default_rng(1).random(right_NJ.shape)
    report = calibrate_joints(logit_NJ, right_NJ, counts_NJ, noise_NJ, fits_N, ("a", "b", "c"), "head")
    assert report.measured == 8_000
    assert report.ece < 0.03
    assert report.auroc is not None and report.auroc > 0.75  # noqa: PT018
    assert report.auroc_score == pytest.approx(0.5, abs=0.03)
    assert [each.measured for each in report.joints] == [4_000, 4_000, 0]
    assert report.joints[2].auroc is None and report.joints[2].ece is None  # noqa: PT018
    assert from_json(JointReport, to_json(report)).joints == report.joints
    assert report.correlation_oks is None and report.ap is None  # noqa: PT018  # nobody said how like the poses are
    with pytest.raises(DataError, match="no joint of these people is labelled"):
        calibrate_joints(logit_NJ, right_NJ, counts_NJ & False, noise_NJ, fits_N, ("a", "b", "c"), "head")


def test_poses_are_ranked_by_the_confidence_and_by_the_score_of_all_joints() -> None:
    """OKS that follows the confidence of every joint, labelled or not: a perfect rank, and the best precision that there is."""
    logit_NJ, right_NJ = people(400)
    sure_N = joint_calibration.fit(logit_NJ, right_NJ, np.ones_like(right_NJ)).confidence(logit_NJ).mean(axis=1)
    oks_N, counts_NJ = sure_N.copy(), np.random.default_rng(2).random(right_NJ.shape) < 0.8
    oks_N[::7] = np.nan  # nothing to say of these people
    noise_NJ = np.random.default_rng(1).random(right_NJ.shape)
    report = calibrate_joints(
        logit_NJ, right_NJ, counts_NJ, noise_NJ, np.arange(400) < 200, ("a", "b", "c"), "head", oks_N
    )

    assert report.correlation_oks is not None and report.correlation_oks > 0.98  # noqa: PT018  # another fit, another line
    assert report.correlation_oks_score == pytest.approx(0, abs=0.2)
    assert report.ap is not None and report.ap_score is not None  # noqa: PT018
    assert report.ap_score == average_precision(oks_N[200:], noise_NJ[200:].mean(axis=1))
    best = average_precision(oks_N[200:], oks_N[200:])
    assert best is not None and report.ap == pytest.approx(best, abs=0.01)  # noqa: PT018
    assert report.ap > report.ap_score
