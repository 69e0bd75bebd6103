"""The report of fabricated runs: what a reader must find in it. What every page must be is in ``tests/test_pages.py``.

Shapes: N people of the pool.
"""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose.runtime.errors import DataNotFoundError
from alpose.runtime.skeleton import LSP
from alpose.trainer.cycles.results import Results, Row, Scores, load_npz, save_npz, stage_folder
from alpose.trainer.measures.statistics import holm, paired_t_test
from alpose.trainer.methods.catalog import METHODS
from alpose.trainer.pages.cycles import write_report
from alpose.trainer.pages.cycles_figures import risk_curve
from alpose.trainer.pages.cycles_tables import MEASURES

from .runs import NOISE, cells, write_run

DASH = ("—", "", False)
Run = tuple[Results, str]
SCORERS = [method for method in NOISE if method != "random" and "oracle" not in method]


def changed(run: Path, results: Results, change: Callable[[Row], Row | None]) -> str:
    """The page of the same run with other rows; None leaves one out."""
    rows = tuple(new for row in results.rows if (new := change(row)) is not None)
    Results(results.config, {}, rows).save(run)
    return html.unescape(write_report(run).read_text())


def values(results: Results, method: str, stage: int, field: str) -> list[float]:
    """One field over the seeds, straight from the rows."""
    return [getattr(row, field) for row in results.rows if (row.method, row.stage) == (method, stage)]


def printed(numbers: list[float]) -> str:
    """What a cell of ``mean ± sd`` has to say."""
    mean = f"{statistics.fmean(numbers):.3f}"
    sd = "" if len(numbers) == 1 else f" ± {statistics.stdev(numbers):.3f}"
    return (mean + sd).replace("-", "\N{MINUS SIGN}")


def finding(page: str) -> str:
    """The sentence under the title."""
    found = re.search(r'<p class="finding">(.*?)</p>', page, re.S)
    assert found is not None
    return html.unescape(found[1])


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All methods, 5 seeds, 3 stages: results and page."""
    run = tmp_path_factory.mktemp("full")
    return write_run(run, seeds=5, stages=3), write_report(run).read_text()


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All methods, 1 seed, 1 stage: results and page."""
    run = tmp_path_factory.mktemp("small")
    return write_run(run), write_report(run).read_text()


@pytest.mark.parametrize(("run", "stages"), [("small_run", 1), ("full_run", 3)])
def test_tables_say_what_the_rows_say(run: str, stages: int, request: pytest.FixtureRequest) -> None:
    """Every method is there, A, B and C are formatted from the rows, and curves want stages."""
    results, page = request.getfixturevalue(run)
    selected, accuracy, detection = (cells(page, f"Table {letter}") for letter in "ABC")

    for method in NOISE:
        for stage in range(1, stages + 1):
            assert selected[method][stage - 1][0] == printed(values(results, method, stage, "selected_pck"))
            assert accuracy[method][stage - 1][0] == printed(values(results, method, stage, "test_pck"))
        for place, field in ((1, "auroc"), (2, "aurc"), (3, "spearman"), (4, "pearson")):
            assert detection[method][place][0] == printed(values(results, method, 1, field))
    assert accuracy["base model"][0][0] == printed(values(results, "ll", 1, "base_test_pck"))
    assert page.count('id="curves"') == (stages > 1)


def test_the_best_mean_is_bold_and_oracles_do_not_compete(full_run: Run) -> None:
    """Lowest of Table A, highest of Table B, as printed."""
    results, page = full_run
    rivals = ["random", *SCORERS]
    for letter, field, best in (("A", "selected_pck", min), ("B", "test_pck", max)):
        table = cells(page, f"Table {letter}")
        for stage in (1, 2, 3):
            mean = {m: f"{statistics.fmean(values(results, m, stage, field)):.3f}" for m in rivals}
            bold = {method for method in NOISE if table[method][stage - 1][2]}
            assert bold == {method for method in rivals if mean[method] == best(mean.values())}


def test_holm_adjusted_tests_against_random(full_run: Run) -> None:
    """The p-values are those of the rows, adjusted over the whole table, oracles not among them."""
    results, page = full_run
    keys = [(method, stage) for method in SCORERS for stage in (1, 2, 3)]
    pairs = [[values(results, name, stage, "selected_pck") for name in (m, "random")] for m, stage in keys]
    p_values = [test.p for ours, theirs in pairs if (test := paired_t_test(ours, theirs, "less")).p is not None]
    table = cells(page, "Table A")

    for (method, stage), p, adjusted in zip(keys, p_values, holm(p_values), strict=True):
        shown = [f"= {value:.3f}" if value >= 0.001 else "&lt; 0.001" for value in (p, adjusted)]
        assert table[method][stage - 1][1] == f"p {shown[0]} · Holm {shown[1]}"
    assert [table[method][0][1] for method in ("random", "oracle-loss", "oracle-pck")] == ["", "", ""]
    assert f"all {len(keys)} tests" in page


def test_one_seed_is_said_to_be_one_seed(small_run: Run) -> None:
    """No ±, no test, and the finding warns."""
    assert "No tests: 1 seed, at least 3 are needed." in small_run[1]
    assert "This is one seed: no test is possible" in finding(small_run[1])
    assert "±" not in small_run[1].split('id="published"')[0]


def test_the_finding_names_the_best_and_its_numbers(full_run: Run) -> None:
    """Lowest mean at stage 1 against random's, and the gap to the oracle."""
    results, page = full_run
    mean = {method: statistics.fmean(values(results, method, 1, "selected_pck")) for method in ("random", *SCORERS)}
    best = min(mean, key=mean.__getitem__)
    closed = statistics.fmean(values(results, best, 1, "gap_closed"))
    sentence = finding(page)

    assert f"the people that {best} chose" in sentence
    assert f"PCK {mean[best]:.3f} against {mean['random']:.3f}" in sentence
    assert f"{100 * closed:.0f} % of the way" in sentence
    assert "That is more than chance would explain" in sentence


LOST = {"random": 0.3, "ll": 0.5}
SHIFTS = {"random": (0.0, 0.0, 0.0, 0.0), "ll": (-0.1, 0.1, -0.1, 0.05)}
CHANCES: dict[str, tuple[Callable[[Row], float], str]] = {
    "no method is below random": (lambda row: LOST[row.method] + 0.01 * row.seed**2,
                                  "no method found worse predictions than random selection did: the best, ll"),
    "lower, but not by more than seeds differ": (lambda row: 0.4 + SHIFTS[row.method][row.seed],
                                                 "That is not more than chance would explain"),
    "a constant difference has no t": (lambda row: 0.3 + 0.1 * (row.method == "random"),
                                       "Stage 1, no test of ll: the differences do not vary over the seeds."),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANCES)
def test_what_chance_explains_is_told_as_such(case: str, tmp_path: Path) -> None:
    selected_pck, words = CHANCES[case]
    results = write_run(tmp_path, ["random", "ll"], seeds=4)
    page = changed(tmp_path, results, lambda row: replace(row, selected_pck=selected_pck(row)))

    assert words in page
    assert "That is more than chance would explain" not in page


def test_a_large_pool_makes_a_small_file(tmp_path: Path) -> None:
    """10,000 people, 1000 selected: ten such methods with their galleries stay well under 5 MB."""
    write_run(tmp_path, ["ll"], N=10_000, budget=1000)

    assert write_report(tmp_path).stat().st_size < 300_000


def test_an_unfinished_run_says_what_is_missing(tmp_path: Path) -> None:
    """Rows, scores and galleries that are not there or damaged are named, and the rest is reported."""
    results = write_run(tmp_path, ["random", "coreset", "entropy", "ll", "ll++"], seeds=2, stages=2)
    gone = {("ll", 1), ("entropy", 0), ("entropy", 1)}
    files = {name: stage_folder(tmp_path, 0, name, 1) / "scores.npz" for name in ("random", "coreset", "ll++")}
    files["ll++"].unlink()
    (files["ll++"].parent / "gallery.npz").unlink()
    files["coreset"].write_bytes(b"PK\x03\x04 half a file")
    save_npz(files["random"], load_npz(files["random"]) | {"selected_M": np.array([10_000])})  # outside its pool
    page = changed(tmp_path, results, lambda row: None if (row.method, row.seed) in gone else row)

    for words in ("ll: 2 selections missing (seed 1 stage 1, seed 1 stage 2).", "entropy: 4 selections missing",
                  "ll++, seed 0, stage 1: scores.npz is missing.", "ll++, seed 0, stage 1: gallery.npz is missing.",
                  "coreset, seed 0, stage 1: scores.npz is damaged.", "random, seed 0, stage 1: scores.npz is damaged.",
                  "The run is unfinished"):  # fmt: skip
        assert words in page
    assert cells(page, "Table A")["entropy"] == [DASH] * 2
    assert cells(page, "Table A")["ll"][0][1] == "1 of 2 seeds"


def test_a_mean_over_fewer_seeds_is_not_best(tmp_path: Path) -> None:
    """A lucky first seed does not win against methods that have finished all of theirs."""
    results = write_run(tmp_path, ["random", "ll", "ll++"], seeds=3)

    def lucky(row: Row) -> Row | None:
        return row if row.method != "ll++" else replace(row, selected_pck=0.0) if row.seed == 0 else None

    table = cells(changed(tmp_path, results, lucky), "Table A")
    assert table["ll++"] == [("0.000", "1 of 3 seeds", False)]
    assert table["ll"][0][2]


def test_a_run_without_a_row_is_reported(tmp_path: Path) -> None:
    """The first look at a run that has just begun; the base model is there before any row."""
    bases = ({"seed": 0, "test_pck": 0.7125, "train_seconds": 420.0},)
    Results({"methods": ["random", "ll"], "seeds": 1, "stages": 1}, {}, (), bases).save(tmp_path)
    page = write_report(tmp_path).read_text()

    assert "ll: 1 selection missing" in page
    assert "has finished a stage yet" in finding(page)
    assert cells(page, "Table B")["base model"][0][0] == f"{0.7125:.3f}"
    assert "Training a base model took 7.0 min" in page


def test_rows_alone_are_enough_and_no_results_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A wrong folder is the likeliest mistake."""
    with pytest.raises(DataNotFoundError, match=re.escape(str(tmp_path / "results.json"))):
        write_report(tmp_path)
    results = write_run(tmp_path, ["random", "ll"], seeds=2, stages=2)
    Results({}, {}, results.rows).save(tmp_path)
    page = write_report(tmp_path).read_text()

    assert cells(page, "Table A")["ll"][1][0] == printed(values(results, "ll", 2, "selected_pck"))
    assert "not recorded" in page


def test_values_that_are_not_defined_are_dashes(tmp_path: Path) -> None:
    results = write_run(tmp_path, ["random", "ll", "ll++"], seeds=3)
    names = [*(measure.field for measure in MEASURES), "selected_pck", "pool_pck", "test_pck", "train_seconds",
             "base_test_pck"]  # fmt: skip
    nothing: dict[str, Any] = dict.fromkeys(names)
    page = changed(tmp_path, results, lambda row: replace(row, **nothing) if row.method == "ll" else row)

    assert cells(page, "Table A")["ll"] == cells(page, "Table B")["ll"] == [DASH]
    assert cells(page, "Table C")["ll"] == [DASH] * len(MEASURES)


def test_select_only_has_dashes_and_a_footnote(tmp_path: Path) -> None:
    """Table B stays, and says why it is empty."""
    write_run(tmp_path, ["random", "ll"], select_only=True)
    page = write_report(tmp_path).read_text()

    assert cells(page, "Table B")["ll"] == [DASH]
    assert "--select-only" in page


PRINTED = {"lsp": "0.209 ± 0.018", "mpii": "0.309 ± 0.029", "coco": None}


@pytest.mark.parametrize(("dataset", "first"), PRINTED.items())
def test_published_numbers_stand_beside_ours(tmp_path: Path, dataset: str, first: str | None) -> None:
    """LL++conv at stage 1 as in Table 3a, this run's value under it; none for other data sets."""
    results = write_run(tmp_path, ["random", "ll++conv"], dataset=dataset)
    part = write_report(tmp_path).read_text().partition('id="published"')[2]

    assert bool(part) == (first is not None)
    if first is not None:
        assert part.index(first) < part.index(printed(values(results, "ll++conv", 1, "selected_pck")))
        assert "<strong>differs</strong>" in part


def test_neighbouring_thresholds_of_the_official_profile(tmp_path: Path) -> None:
    """Each threshold has a column per stage; a row without them has a dash."""
    results = write_run(tmp_path, ["random", "ll"], profile="official-2021")
    at: dict[str, dict[str, float | None]] = {"0.1579": {"selected_pck": 0.123}, "0.2105": {"selected_pck": None}}
    page = changed(tmp_path, results, lambda row: replace(row, neighbours=at) if row.method == "ll" else row)

    table = cells(page, "Neighbouring thresholds")
    assert table["ll"] == [("0.123", "", False), DASH]
    assert table["random"] == [DASH] * 2


def test_a_joint_without_label_is_not_drawn(small_run: Run) -> None:
    """Of 14 true joints the first person lacks one, and with it the links that end there."""
    links, joints = re.findall(r'<path class="true" d="([^"]*)"/>', small_run[1])[:2]

    assert joints.count("M") == len(LSP) - 1
    assert links.count("M") == sum(3 not in link for link in LSP.links)


def scores_of(score_N: Sequence[float], pck_N: Sequence[float]) -> Scores:
    """A record of a pool of which nobody was selected."""
    score, pck = (np.array(column, dtype=np.float32) for column in (score_N, pck_N))
    return Scores(tuple("abcdefgh"[: len(score)]), score, pck, pck, np.array([], dtype=np.int64))


def test_risk_curve_of_hand_worked_scores() -> None:
    """The two failures score highest: no risk up to half coverage, then 1/3 and 1/2; no PCK, no point."""
    kept_K, risk_K = risk_curve(scores_of([0.1, 0.9, 0.2, 0.8, 5.0], [0.9, 0.1, 0.5, 0.4, np.nan]))

    assert kept_K == pytest.approx([0.25, 0.5, 0.75, 1])
    assert risk_K == pytest.approx([0, 0, 1 / 3, 1 / 2])
    assert [len(part) for part in risk_curve(scores_of([1.0, 2.0], [np.nan, np.nan]))] == [0, 0]


def test_no_two_methods_of_the_benchmark_look_the_same() -> None:
    looks = [method.look for method in METHODS.values()]
    assert len({(look.light, look.dash, look.marker) for look in looks}) == len(looks)


def test_the_page_states_the_definition_of_a_failure_of_its_run(tmp_path: Path, small_run: Run) -> None:
    write_run(tmp_path, ["random", "ll"], failure={"name": "image-pck", "limit": 0.3})
    page = write_report(tmp_path).read_text()

    assert page.count("image PCK below 0.3") == small_run[1].count("image PCK below 0.5") > 3
    assert "below 0.5" not in page
