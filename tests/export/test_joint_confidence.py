"""The confidence of joints in the graph: what calibration in numpy says, from the head or from the score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit

from alpose.export.graph import MonitorGraph, TorchEngine
from alpose.export.graph_parts import Head, JointConfidence, score_logit
from alpose.runtime.errors import DataError
from alpose.trainer.checkpoint import PoseModel, new_head
from alpose.trainer.data.augment import to_input
from alpose.trainer.measures.joint_calibration import JointCalibration

GAIN, OFFSET = np.array([1.5, 0.7, 1.0]), np.array([0.4, -0.8, 0.0])


def test_the_graph_computes_the_numpy_twin_and_json_keeps_it() -> None:
    given = JointCalibration(GAIN, OFFSET, np.array([True, False, True]))
    logit_NJ = np.random.default_rng(0).normal(0, 2, (50, 3)).astype(np.float32)
    np.testing.assert_allclose(
        JointConfidence(given)(torch.from_numpy(logit_NJ)), given.confidence(logit_NJ), atol=1e-6
    )
    read = JointCalibration.from_json(given.to_json())
    assert np.array_equal(read.gain_J, given.gain_J)
    with pytest.raises(DataError, match="one gain that is not negative"):
        JointCalibration(-GAIN, OFFSET, given.own_J)


def test_a_head_that_knows_joints_speaks_for_them_and_others_leave_it_to_the_score(
    tiny_model: PoseModel, tiny_frames: Any
) -> None:
    model = tiny_model.with_heads({"epck": new_head(tiny_model, "epck", 0)})
    graph = MonitorGraph.from_model(model, "epck")
    said, evidence_N3, logit_NJ = TorchEngine(graph).answers_and_evidence(tiny_frames)
    assert said.confidence_NJ is not None
    np.testing.assert_allclose(said.confidence_NJ, expit(logit_NJ), atol=1e-6)
    wrong_N = 1 - said.confidence_NJ.mean(axis=1)
    np.testing.assert_allclose(evidence_N3[:, 0], np.log(wrong_N / (1 - wrong_N)), atol=1e-4)  # the same numbers

    by_score = TorchEngine(MonitorGraph.from_model(model, "ll"))(tiny_frames)
    assert by_score.confidence_NJ is not None
    np.testing.assert_allclose(by_score.confidence_NJ, by_score.scores_NJ.clip(1e-3, 1 - 1e-3), atol=1e-5)
    assert not Head(torch.nn.Identity(), 1.0).knows_joints
    assert torch.isfinite(score_logit(torch.tensor([[-1.0, 0.0, 1.0, 7.0]]))).all()


@pytest.mark.parametrize("name", ["epck", "epck-slim"])
def test_the_head_in_the_graph_is_the_trainers_with_fewer_nodes(
    name: str, tiny_model: PoseModel, tiny_frames: Any
) -> None:
    model = tiny_model.with_heads({name: new_head(tiny_model, name, 0)})
    head: Any = model.heads[name].eval()
    features = model.pose.eval()(to_input(torch.from_numpy(tiny_frames))).features
    with torch.no_grad():
        evidence_NJD = head.evidence(features)
        head.standardise(evidence_NJD * torch.linspace(0.5, 2, len(evidence_NJD))[:, None, None] + 0.3)
        expected_NJ = head.logits(evidence_NJD)
    deviation_JD = head.deviation_JD.clone()

    _, evidence_N3, logit_NJ = TorchEngine(MonitorGraph.from_model(model, name)).answers_and_evidence(tiny_frames)

    assert expected_NJ.std() > 0.01
    np.testing.assert_allclose(logit_NJ, expected_NJ, atol=1e-4)
    np.testing.assert_allclose(evidence_N3[:, 0], head.logit_of(expected_NJ), atol=1e-4)
    assert torch.equal(head.deviation_JD, deviation_JD), "the model stays as it was"
