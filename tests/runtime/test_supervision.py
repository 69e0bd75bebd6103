"""A verdict in supervision's own form, with the real library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from alpose.runtime import Monitor
from alpose.runtime.errors import MissingExtraError

from ..fakes import scripted

FRAME_HW3 = np.full((48, 64, 3), 100, dtype=np.uint8)


def test_supervision_takes_a_verdict_filters_and_draws_it(make: Callable[..., Monitor]) -> None:
    sv: Any = pytest.importorskip("supervision", reason="the extra alpose[supervision] is not installed")
    scores = np.array([0.2, 1.3, np.nan], dtype=np.float32)
    monitor = make(engine=scripted.Scripted(lambda _: {"failure_probability": 0.75, "scores": scores}))
    verdict = monitor(FRAME_HW3, (10, 10, 50, 40))
    key_points = verdict.to_supervision()

    assert isinstance(key_points, sv.KeyPoints)
    assert len(key_points) == 1
    assert np.array_equal(key_points.xy, verdict.keypoints[None])
    confidence = getattr(key_points, "keypoint_confidence", None)
    confidence = key_points.confidence if confidence is None else confidence
    assert confidence.tolist() == [[pytest.approx(0.2), 1.0, 0.0]]
    assert key_points["failure_probability"] == pytest.approx([0.75])
    likely_right = key_points[np.asarray(key_points["failure_probability"]) < 0.5]
    assert len(likely_right) == 0
    links = [(a + 1, b + 1) for a, b in monitor.bundle.skeleton.links]
    drawn_HW3 = sv.EdgeAnnotator(edges=links).annotate(np.zeros((480, 640, 3), np.uint8), key_points)
    assert drawn_HW3.any()


def test_without_the_library_the_error_says_what_to_install(
    make: Callable[..., Monitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    verdict = make(engine=scripted.Scripted())(FRAME_HW3)
    with pytest.raises(MissingExtraError, match=r"pip install 'alpose\[supervision\]'"):
        verdict.to_supervision()
