"""The page of fabricated runs: what a reader must find on it, and what must never be on it."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path

import pytest

from alpose.runtime.skeleton import LSP
from alpose.trainer.detect.comparing import Estimate, Interval
from alpose.trainer.detect.evaluation import evaluate
from alpose.trainer.detect.results import Comparison, DetectResults
from alpose.trainer.detect.stored import DetectorInfo, set_file
from alpose.trainer.measures.statistics import mean_sd
from alpose.trainer.pages import formatting as fmt
from alpose.trainer.pages.cycles_tables import best_of
from alpose.trainer.pages.detect import finding, outcome, render, write_report
from alpose.trainer.pages.detect_figures import Forest, forest, ticks
from alpose.trainer.pages.detect_tables import MEASURES, detector_table, joint_by_joint, joint_table

from ..detect.runs import SETS, write_run
from .runs import cells


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetectResults, str]:
    run = write_run(tmp_path_factory.mktemp("run"), people=150)
    results = evaluate(run, resamples=40)
    return run, results, write_report(run).read_text()


def with_estimates(results: DetectResults, question: str, **by_set: tuple[float, float, float]) -> DetectResults:
    """The same with other differences: mean, low and high by set, ``-`` written as ``_``."""

    def changed(c: Comparison) -> Comparison:
        span = by_set.get(c.set.replace("-", "_"))
        if c.question != question or span is None:
            return c
        mean, low, high = span
        people = Interval(low, high)
        return replace(c, difference=replace(c.difference, estimate=Estimate(mean=mean, people=people, seeds=people)))

    return replace(results, comparisons=tuple(map(changed, results.comparisons)))


def estimate(low: float | None, high: float | None) -> Estimate:
    return Estimate(mean=0.0, people=Interval(low, high), seeds=Interval(-1.0, 1.0))


def test_the_interval_decides_the_words() -> None:
    """Over people; an end at zero leaves nothing out."""
    spans = [(0.001, 0.2), (-0.2, -0.001), (-0.1, 0.1), (0.0, 0.1), (None, None)]

    assert [outcome(estimate(*span)) for span in spans] == ["better", "worse", "even", "even", "unknown"]


def test_the_finding_says_who_beats_what_and_by_how_much(made: tuple[Path, DetectResults, str]) -> None:
    _, results, page = made
    mean = {(r.detector, r.set): fmt.number(r.auroc.mean) for r in results.ratings}
    first = finding(results)[0]
    free = results.sets[1].best_free

    assert first.startswith("fused beats the best free score on lsp-test (AUROC ")
    assert f"AUROC {mean['fused', 'lsp-test']} against {mean[free or '', 'lsp-test']} of {free}: +" in first
    assert "and lspet (AUROC" in first
    assert "fold" not in first
    assert html.escape(first, quote=True).replace("&#x27;", "&#39;") in page


def test_a_split_verdict_is_told_set_by_set(made: tuple[Path, DetectResults, str]) -> None:
    _, results, _ = made
    split = with_estimates(results, "shipped-free", lsp_test=(0.01, -0.01, 0.03), lspet=(-0.02, -0.03, -0.01))
    first = finding(split)[0]

    assert "beats" not in first
    assert "cannot be told from the best free score on lsp-test (" in first
    assert ", and is worse than the best free score on lspet (" in first
    assert "−0.020, 95\N{NO-BREAK SPACE}% interval −0.030 to −0.010" in first


@pytest.mark.parametrize(
    ("span", "words"),
    [((0.02, 0.01, 0.03), "It is better than the"), ((0.0, -0.01, 0.01), "It reaches the"),
     ((-0.02, -0.03, -0.01), "It falls short of the")],
)  # fmt: skip
def test_the_ceiling_is_passed_reached_or_missed(
    made: tuple[Path, DetectResults, str], span: tuple[float, float, float], words: str
) -> None:
    said = " ".join(finding(with_estimates(made[1], "shipped-ceiling", lspet=span)))

    assert f"{words} ceiling (in-domain) on lspet (" in said


def test_the_rest_of_the_finding(made: tuple[Path, DetectResults, str]) -> None:
    """Way, slim form, cost."""
    _, results, _ = made
    same = with_estimates(results, "slim-shipped", lsp_test=(0, -0.01, 0.01), lspet=(0, -0.01, 0.01))
    said = " ".join(finding(same))
    way = mean_sd(results.over_seeds("fused", "lspet", "way_to_oracle")).mean

    assert f"{fmt.percent(way)} on lspet." in said
    assert "The slim form fused-slim cannot be told from it on lsp-test (0.000, −0.010 to +0.010) and lspet" in said
    assert "It costs 4.0\N{NO-BREAK SPACE}% of the pose net's own latency, with 99\u202f104 parameters." in said


def test_the_finding_tells_where_the_seeds_agree(made: tuple[Path, DetectResults, str]) -> None:
    _, results, _ = made
    p_by_set = {"lsp-test": 0.004, "lspet": 0.21}
    changed = tuple(replace(c, difference=replace(c.difference, holm=p_by_set.get(c.set))) for c in results.comparisons)
    both = replace(results, comparisons=changed)

    assert (
        "Over the 3 seeds its lead is more than chance would explain on lsp-test (Holm-adjusted p = 0.004), but not "
        "on lspet (Holm-adjusted p = 0.210)."
    ) in " ".join(finding(both))


def test_nothing_ships_yet(tmp_path: Path) -> None:
    """Who is ahead is read off the choice set alone: the winner of the test sets is not named."""
    detectors = (
        DetectorInfo(name="entropy", kind="free", what=""),
        DetectorInfo(name="robust", kind="candidate", what=""),
        DetectorInfo(name="overfitted", kind="candidate", what=""),
    )
    run = write_run(tmp_path, seeds=2, people=40, detectors=detectors, sets=(SETS[0], SETS[2]),
                    noise={"entropy": 1.0, "robust": 0.5, "overfitted": 2.0})  # fmt: skip
    results = evaluate(run, resamples=10)
    moved = tuple(
        replace(r, auroc=replace(r.auroc, mean=1.0)) if (r.detector, r.set) == ("overfitted", "lspet") else r
        for r in results.ratings
    )
    (sentence,) = finding(replace(results, ratings=moved))

    assert "No detector is marked as the one that ships yet" in sentence
    assert "(fold) robust is ahead" in sentence
    assert "Does the shipped detector" not in write_report(run).read_text()


def test_one_seed_has_no_test_and_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path, seeds=1, people=40, sets=SETS[2:], noise={"entropy": 1.0, "fused": 0.5})
    evaluate(run, resamples=10)
    page = write_report(run).read_text()

    assert "No t-test over the 1 seed: 1 pair, at least 2 are needed." in page
    assert "One seed, one base model: there is no standard deviation." in page
    assert "±" not in page


def test_a_set_table_has_means_over_seeds_and_the_best_in_bold(made: tuple[Path, DetectResults, str]) -> None:
    _, results, page = made
    shown = {name: row for name, row in cells(page, "Detectors on lspet").items() if row}
    rivals = {r.detector: r.auroc.mean or 0.0 for r in results.ratings if r.set == "lspet"}
    rivals = {name: mean for name, mean in rivals.items() if name not in ("in-domain", "oracle-loss")}
    best = max(rivals, key=rivals.__getitem__)
    place = next(place for place, column in enumerate(MEASURES) if column.title == "Chosen PCK")

    assert list(shown) == ["fused", "fused-slim", "entropy", "peak", "ll++conv", "robust", "robust-plain", "flip",
                           "in-domain", "oracle-loss"]  # fmt: skip
    assert [name for name, row in shown.items() if row[0][2]] == [best]
    assert shown["robust"][0][0] == fmt.number(rivals["robust"])
    assert shown["robust"][1 + place][0] == fmt.spread(mean_sd(results.over_seeds("robust", "lspet", "chosen_pck")))
    assert not any(bold for name in ("in-domain", "oracle-loss") for _, _, bold in shown[name])
    assert len(shown["flip"]) == 1 + len(MEASURES)


def test_detectors_stand_by_kind_with_what_ships_first(made: tuple[Path, DetectResults, str]) -> None:
    rows = detector_table(made[1], made[1].sets[1]).rows

    assert [row.title for row in rows[1:2]] == ["fused"]
    assert [row.title for row in rows if row.reference] == ["oracle-loss"]


def test_best_is_what_is_printed_the_same() -> None:
    means = {"a": 0.90012, "b": 0.90008, "c": 0.8, "d": None}

    assert best_of(means, "higher", fmt.number) == {"a", "b"}
    assert best_of(means, "lower", fmt.number) == {"c"}
    assert best_of({"a": 0.5, "b": 0.5}, "higher", fmt.number) == set()


def forest_of(results: DetectResults, name: str) -> Forest:
    found = forest(results, name)
    assert found is not None
    return found


def test_the_forest_is_in_order_and_inside_its_axis(made: tuple[Path, DetectResults, str]) -> None:
    _, results, _ = made
    found = forest_of(results, "lspet")
    means = {c.detector: c.difference.estimate.mean or 0.0 for c in results.comparisons
             if c.set == "lspet" and c.question in ("shipped-free", "any-free")}  # fmt: skip

    assert [row.name for row in found.rows] == sorted(set(means) - {"oracle-loss"}, key=lambda name: -means[name])
    for row in found.rows:
        assert 0 <= min(row.low, row.far_low) <= row.place <= max(row.high, row.far_high) <= 100
        assert (row.place > found.zero) == (means[row.name] > 0)


def test_a_hopeless_candidate_does_not_press_the_others_together(made: tuple[Path, DetectResults, str]) -> None:
    """It is drawn as going on beyond the left end; its number stands beside it."""
    results = replace(made[1], comparisons=tuple(
        replace(c, difference=replace(c.difference, estimate=Estimate(
            mean=-0.45, people=Interval(-0.46, -0.44), seeds=Interval(-0.47, -0.43))))
        if c.detector == "robust-plain" else c for c in made[1].comparisons))  # fmt: skip
    before, after = forest_of(made[1], "lspet"), forest_of(results, "lspet")
    last = after.rows[-1]

    assert (last.name, last.place, last.cut, last.text) == ("robust-plain", 0.0, True, "−0.450")
    assert after.zero == pytest.approx(200 / 3, abs=0.01)
    assert not any(row.cut for row in before.rows)


def test_ticks_are_round_and_hold_zero() -> None:
    assert ticks(-0.043, 0.081) == [-0.02, 0.0, 0.02, 0.04, 0.06, 0.08] or 0.0 in ticks(-0.043, 0.081)
    assert ticks(-0.01, 0.01) == [-0.01, 0.0, 0.01]


def test_without_the_stored_scores_the_page_has_no_curves_and_says_so(
    made: tuple[Path, DetectResults, str], tmp_path: Path
) -> None:
    """What is committed is detect.json; the scores are large."""
    _, results, page = made
    results.save(tmp_path)
    alone = write_report(tmp_path).read_text()

    assert page.count("ROC: up and left") == 3
    assert alone.count("ROC: up and left") == 0
    assert alone.count("No curves of ") == 3
    assert str(set_file(tmp_path, 0, "lspet")) in html.unescape(alone)
    assert "Not all of the run is here" not in page
    assert cells(alone, "Detectors on lspet") == cells(page, "Detectors on lspet")


def test_how_often_a_test_set_was_looked_at_is_on_the_page(made: tuple[Path, DetectResults, str]) -> None:
    table = made[2].split('aria-label="Sets"')[1].split("</table>")[0]

    assert "<td>2 times</td>" in table
    assert "<td>1 time</td>" in table
    assert table.count("<td>—</td>") == 1  # nobody counted looks at the choice set


def test_everything_that_was_tried_has_its_sentence_and_its_price(made: tuple[Path, DetectResults, str]) -> None:
    part = made[2].split('id="tried"')[1].split("</section>")[0]
    costs = cells(made[2], "Costs")

    for detector in made[1].catalogue.detectors:
        assert html.escape(detector.what).replace("&#x27;", "&#39;") in part
    assert "ablates robust" in part
    assert "less robust-plain" in part
    assert [text for text, _, _ in costs["flip"]][:3] == ["—", "5.10", "102\N{NO-BREAK SPACE}%"]
    assert [text for text, _, _ in costs["fused-slim"]][:3] == ["7\u202f000", "0.0500", "0.8\N{NO-BREAK SPACE}%"]


def test_joints_stand_beside_the_peaks(made: tuple[Path, DetectResults, str]) -> None:
    """Every detector that knows joints is in the table of its set; the one that ships and the peaks, joint by joint."""
    _, results, page = made
    text = html.unescape(page)
    for name in ("fold", "lsp-test", "lspet"):
        together = joint_table(results, name)
        by_joint = joint_by_joint(results, name)
        assert together is not None and by_joint is not None  # noqa: PT018
        assert [row.title for row in together.rows if row.cells] == ["fused", "fused-slim", "peak"]
        assert [row.title for row in by_joint.rows] == [joint.replace("_", " ") for joint in LSP.joints]
    rows = [row.measures.together for row in results.joints if (row.detector, row.set) == ("fused", "lspet")]
    shown = fmt.number(mean_sd([row.auroc for row in rows]).mean)
    assert f"lspet AUROC {shown} (" in text
    assert "Which joints are wrong" in page


def test_a_run_without_stored_confidences_has_no_table_of_joints(made: tuple[Path, DetectResults, str]) -> None:
    run, results, _ = made
    old = replace(results, joints=())
    assert joint_table(old, "lspet") is None
    assert joint_by_joint(old, "lspet") is None
    assert "Which joints are wrong" not in render(run, old)
    assert "wrong joints" not in " ".join(finding(old))
