"""The card of fabricated bundles: what people who deploy must find on it, and what must never be in it.

Shapes: N people.
"""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alpose.export import quality, shift
from alpose.export.card import blocks, figure, moment, parity_rows, render_card, share, text, title
from alpose.runtime.bundle.manifest import tensors
from alpose.runtime.crop import CropRule
from alpose.runtime.errors import DataError
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton
from alpose.trainer.measures.metrics import Failure, profile_for
from alpose.trainer.pages.formatting import MINUS, TIMES
from alpose.trainer.pages.pose import diagram


def bundle(skeleton: Skeleton = LSP, **changes: Any) -> dict[str, Any]:
    inputs, outputs = tensors(CropRule(width_px=128, height_px=128), len(skeleton), 64, confidence=False)
    facts = {
        "name": "made-up",
        "created": "2026-01-31T12:30:00+00:00",
        "alpose": "0.1.0",
        "skeleton": skeleton.to_json(),
        "crop": {"size_px": 128, "margin": 1.3},
        "precision": "fp16",
        "head": "ll++conv",
        "inputs": inputs,
        "outputs": outputs,
        "parity": {"frames": 500, "keypoints_p99": {"value": 0.0142, "limit": 0.25, "unit": "px"}},
        "provenance": {"trained": {"data": "somewhere", "people": 1234}, "checkpoint": "abc"},
        "opset": 18,
    }
    return facts | changes


def people(seed: int, count: int, base: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    evidence_N3 = rng.normal(size=(count, 3))
    chance_N = 1 / (1 + np.exp(-(evidence_N3 @ np.array([1.0, 0.4, 1.5]) + base)))
    return evidence_N3, rng.random(count) < chance_N


def report_of(count: int = 900, **changes: Any) -> quality.CalibrationReport:
    failure = Failure()
    words = failure.words(profile_for("standard", LSP))
    facts: dict[str, Any] = {
        "failure": failure,
        "profile": "standard",
        "definition": words,
        "data": "held-out <people>",
    }
    ids = [f"p{n}" for n in range(count)]
    return quality.calibrate(*people(0, count), ids, **(facts | changes))


@pytest.fixture(scope="module")
def report() -> quality.CalibrationReport:
    return report_of()


@pytest.fixture(scope="module")
def page(report: quality.CalibrationReport) -> str:
    elsewhere = shift.apply(report, *people(2, 700, base=1.5), data="elsewhere")
    return render_card(bundle(), report, elsewhere=[elsewhere])


def words_of(page: str) -> str:
    """What a reader sees, as one line."""
    body = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).replace("\N{NO-BREAK SPACE}", " ").split())


def test_every_threshold_stands_with_its_promise_and_its_cost(page: str, report: quality.CalibrationReport) -> None:
    seen = words_of(page)
    for made in report.thresholds:
        assert made.threshold is not None
        assert made.flagged is not None
        row = (
            f"{100 * made.catch:.0f} % with 90 % confidence {made.threshold:.6f}".rstrip("0")
            + f" {round(100 * made.flagged)} %"
        )
        assert row in seen
        assert f"{made.caught} of {made.failures}" in seen
    assert f"{report.failure_rate:.0%}".replace("%", " %") in seen
    assert report.definition in seen


def test_the_numbers_of_calibration_and_ranking_are_on_the_page(page: str, report: quality.CalibrationReport) -> None:
    seen = words_of(page)
    values = (report.ece, report.brier, report.auroc, report.aurc, report.aurc_oracle)
    for value in (*values, *report.auroc_alone.values()):
        assert f"{value:.3f}" in seen
    for each in report.bins:
        assert f">{each.count}</text>" in page


def test_what_it_was_made_of_and_how_to_use_it_is_on_the_page(page: str) -> None:
    seen = words_of(page)
    wanted = (
        "Trained Data somewhere People 1 234",
        "Other Checkpoint abc",
        "0.0142 px 0.25 px",
        "the box 1.3 times as large",
        f"128 {TIMES} 128 pixels",
        f"N {TIMES} 14 {TIMES} 2",
        f"N {TIMES} 128 {TIMES} 128 {TIMES} 3",
        "2026-01-31 12:30 UTC",
    )
    for words in wanted:
        assert words in seen
    for joint in LSP.joints:
        assert f"<li>{joint.replace('_', ' ')}</li>" in page


def test_limits_are_said_and_a_shift_is_shown(page: str, report: quality.CalibrationReport) -> None:
    seen = words_of(page)
    assert "these thresholds are not guaranteed" in seen
    assert "On elsewhere the calibration error was" in seen
    found = shift.apply(report, *people(2, 700, base=1.5), data="elsewhere")
    assert f"700 people, of whom {100 * found.failures / 700:.0f} % failed" in seen
    assert "The calibration was fitted to the net in fp32" in seen
    whole = words_of(render_card(bundle(precision="fp32"), replace(report, undefined=3)))
    assert "fitted to the net in fp32" not in whole
    assert "The labels of 3 people do not tell" in whole


def test_before_and_after_stand_beside_each_other(page: str, report: quality.CalibrationReport) -> None:
    assert "Before:" not in words_of(page)
    fresh_N3, failed_N = people(3, 600, base=2.0)
    previous = shift.apply(report_of(500, data="an older set"), fresh_N3, failed_N, data="here")
    page = render_card(bundle(), report, previous=previous)
    seen = words_of(page)
    assert "Before: calibrated on an older set" in seen
    assert f"ECE before {previous.ece:.3f}" in seen
    for catch in previous.catches:
        assert f"{catch.threshold:.6f}".rstrip("0") in seen
    assert page.count('aria-label="share of failures against predicted probability"') == 2


def test_a_threshold_that_missed_its_share_is_marked(report: quality.CalibrationReport) -> None:
    rng = np.random.default_rng(0)
    blind = shift.apply(report, rng.normal(size=(400, 3)), rng.random(400) < 0.3, data="noise")
    assert any(each.observed < each.catch for each in blind.catches)
    marked = render_card(bundle(), report, elsewhere=[blind]).count('<span class="missed">')
    assert marked == sum(each.observed < each.catch for each in blind.catches)


def test_too_few_failures_say_so_in_place_of_thresholds() -> None:
    seen = words_of(render_card(bundle(), report_of(60)))
    assert "Nothing can be promised yet" in seen or "No threshold:" in seen
    assert "failures measured: the numbers are rough" in seen


def test_without_calibration_the_page_says_so_first() -> None:
    page = render_card(bundle(COCO, precision="fp32", parity={}, provenance={}), None)
    seen = words_of(page)
    assert "exported without labelled data" in seen
    assert "Nothing was recorded about its origin" in seen
    assert 'id="catch"' not in page
    assert 'id="parity"' not in page


def test_facts_that_are_missing_are_named() -> None:
    facts = bundle()
    del facts["crop"], facts["opset"]
    with pytest.raises(DataError, match="a card needs crop, opset among its facts"):
        render_card(facts, None)


@pytest.mark.parametrize("skeleton", [LSP, MPII, COCO])
def test_known_joints_stand_apart_on_a_body_with_right_on_the_readers_left(skeleton: Skeleton) -> None:
    drawing = diagram(skeleton)
    points_J2 = np.array(drawing.points)
    assert drawing.standing
    assert drawing.links.count("M") == len(skeleton.links)
    apart_JJ = np.linalg.norm(points_J2[:, None] - points_J2, axis=2) + 99 * np.eye(len(skeleton))
    assert apart_JJ.min() > 8, "two circles of radius 4 overlap"
    for a, b in skeleton.flip_pairs:
        right, left = (a, b) if skeleton.joints[a].startswith("right") else (b, a)
        assert points_J2[right, 0] < 0 < points_J2[left, 0]
        assert points_J2[right, 1] == points_J2[left, 1]


def test_unknown_joints_stand_on_a_circle() -> None:
    drawing = diagram(Skeleton("hand", ("wrist_base", "thumb_tip", "index_tip"), ((0, 1), (0, 2)), ()))
    assert not drawing.standing
    np.testing.assert_allclose(np.linalg.norm(drawing.points, axis=1), 50.0)


def test_numbers_and_names_as_people_read_them() -> None:
    assert [share(value) for value in (0.5, 0.987, 0.9912, 0.9999, 1.0, None)] == [
        "50\N{NO-BREAK SPACE}%", "99\N{NO-BREAK SPACE}%", "99.1\N{NO-BREAK SPACE}%", "> 99.9\N{NO-BREAK SPACE}%",
        "100\N{NO-BREAK SPACE}%", "—",
    ]  # fmt: skip
    assert [figure(value) for value in (0.05, 0.00213, 0.99998, 0.0, -0.0001, 523.4)] == [
        "0.05", "0.00213", "0.99998", "0", f"{MINUS}0.0001", "523",
    ]  # fmt: skip
    assert moment("2026-01-31T14:30:00+02:00") == "2026-01-31 12:30 UTC"
    assert moment("some day") == "some day"
    assert title("test_pck") == "Test PCK"
    assert text({"stacks": 2, "wide": True, "of": [1, None]}) == "stacks 2, wide yes, of 1, —"
    assert list(blocks({"a": 1, "b": {"c": 2}})) == ["B", "Other"]
    nested = parity_rows({"keypoints": {"median": {"value": 0.5, "unit": "px"}, "max": 2}})
    assert [(row.title, *(cell.text for cell in row.cells)) for row in nested] == [
        ("Keypoints: median", "0.5 px", "—"),
        ("Keypoints: max", "2", "—"),
    ]
