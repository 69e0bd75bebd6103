"""Parts of the cycles report on small inputs: bands, pairs, links to the theory page, published tables.

Shapes: N people of the pool, M selected.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from alpose.trainer.cli import main
from alpose.trainer.cycles.results import Results
from alpose.trainer.measures import metrics
from alpose.trainer.measures.statistics import RESAMPLES, holm, mean_interval, paired_t_test
from alpose.trainer.pages import cycles_figures as curves
from alpose.trainer.pages import cycles_tables as pairs
from alpose.trainer.pages.cycles import write_report
from alpose.trainer.pages.published import DATASETS, papers, published_tables
from alpose.trainer.pages.run_folder import REPORT, THEORY, RunInfo, fill_gap, link_or_gap

from .runs import facts, row, scores


def test_the_band_over_people_is_the_bootstrap_of_the_curve_itself() -> None:
    """Against the slow twin: people repeated as they were drawn, and the curve computed anew; scores tie."""
    pool = scores(40, [0])
    failed_N = metrics.Failure().failed(pool.image_pck_N)[0]
    kept_K = np.arange(1, 41) / 40
    generator, drawn = np.random.default_rng(0), []
    for _ in range(curves.OVER_PEOPLE):
        rows_N = generator.integers(0, 40, 40)
        drawn.append(metrics.risk_coverage(pool.score_N[rows_N], failed_N[rows_N]))
    band = curves.risk_over_people(pool, kept_K)

    assert band is not None
    inner = np.quantile(np.array(drawn), (0.03, 0.97), axis=0)
    outer = np.quantile(np.array(drawn), (0.015, 0.985), axis=0)
    assert (band[0] <= inner[0] + 1e-9).all()
    assert (band[1] >= inner[1] - 1e-9).all()
    assert (band[0] >= outer[0] - 1e-9).all()
    assert (band[1] <= outer[1] + 1e-9).all()


def test_several_seeds_have_a_band_and_one_seed_of_a_single_number_has_none() -> None:
    """Test PCK: from three seeds the interval of their mean; from one, nothing, and the words say why."""
    of_three = facts([row("ll", seed, test_pck=0.5 + 0.1 * seed) for seed in range(3)])
    of_one = facts([row("ll", 0, test_pck=0.5)])

    (_, value, interval), *_ = curves.accuracy_points(of_three, "ll")[-1:]
    expected = mean_interval(np.array([[0.5], [0.6], [0.7]]))
    assert value == pytest.approx(0.6)
    assert expected is not None
    assert interval == pytest.approx((expected[0][0], expected[1][0]))
    assert [interval for _, _, interval in curves.accuracy_points(of_one, "ll")] == [None]
    assert "one seed gives it no interval" in curves.band_words(of_one)
    assert "75 % of the time at best" in curves.band_words(of_three)


def test_a_selected_pck_of_one_seed_has_its_interval_over_people_around_it() -> None:
    """The interval of the people's mean, moved to the value; people without a PCK do not count."""
    pck_M = np.array([0.1, 0.2, 0.3, 0.4, np.nan], dtype=np.float32)
    expected = mean_interval(pck_M[:4, None].astype(np.float64), resamples=curves.OVER_PEOPLE)
    interval = curves.over_selected(0.27, pck_M)

    assert expected is not None
    assert interval == pytest.approx((expected[0][0] + 0.02, expected[1][0] + 0.02), abs=1e-6)
    assert curves.over_selected(0.27, pck_M[3:]) is None
    assert RESAMPLES > curves.OVER_PEOPLE


SELECTED = {
    "random": [0.50, 0.52, 0.49, 0.53],
    "ll": [0.40, 0.42, 0.43, 0.44],
    "ll++": [0.39, 0.43, 0.41, 0.42],
    "oracle-pck": [0.1, 0.1, 0.2, 0.1],
}


def paired() -> RunInfo:
    """Four seeds of two methods, random and an oracle."""
    return facts([row(m, seed, selected_pck=value) for m, of in SELECTED.items() for seed, value in enumerate(of)])


def test_every_pair_stands_once_with_holm_over_both_directions() -> None:
    """Three methods, six one-tailed tests; the row is the better one, the oracle is not there."""
    found = pairs.matrices(paired(), 0.05)
    assert list(found) == ["PCK of what was selected, stage 1"]
    (table,) = found.values()
    order = ["ll++", "ll", "random"]
    keys = [(a, b) for a in order for b in order if a != b]
    p_values = [paired_t_test(SELECTED[a], SELECTED[b], "less").p or 0.0 for a, b in keys]
    adjusted = dict(zip(keys, holm(p_values), strict=True))

    assert [row.title for row in table.rows] == [column.text for column in table.columns] == order
    cells = {(line.title, order[place]): cell for line in table.rows for place, cell in enumerate(line.cells)}
    assert cells["ll", "random"].text == "\N{MINUS SIGN}0.0875"
    assert cells["ll", "random"].best
    assert cells["ll", "random"].small.replace("\xa0", " ") == f"Holm = {adjusted['ll', 'random']:.3f}"
    assert cells["random", "ll"].text == cells["random", "ll++"].text == ""
    assert not cells["ll++", "ll"].best
    assert re.fullmatch(r"Holm = 0\.\d{3} (> )?[\d\u202f]+ seeds", cells["ll++", "ll"].small.replace("\xa0", " "))


def test_the_level_decides_what_is_settled_and_is_said() -> None:
    """At a level below the smallest p nothing is bold."""
    (strict,) = pairs.matrices(paired(), 1e-6).values()

    assert not any(cell.best for line in strict.rows for cell in line.cells)
    assert "level of 1e-06" in " ".join(pairs.matrix_notes(paired(), 1e-6))
    assert "one-tailed" in " ".join(pairs.matrix_notes(paired(), 0.05))


def test_one_seed_has_no_matrix_and_two_have_no_tests() -> None:
    """Both are said in words."""
    one = facts([row(m, 0, selected_pck=0.4) for m in ("random", "ll")])
    two = facts([row(m, s, selected_pck=0.4 + 0.1 * s * (m == "ll")) for m in ("random", "ll") for s in range(2)])

    assert pairs.matrices(one, 0.05) == {}
    assert "no scatter" in pairs.matrix_notes(one, 0.05)[0]
    (table,) = pairs.matrices(two, 0.05).values()
    assert "Holm" not in "".join(cell.small for line in table.rows for cell in line.cells)
    assert any("No tests: 2 seeds" in line for line in pairs.matrix_notes(two, 0.05))


def test_report_and_theory_name_each_other_in_either_order(tmp_path: Path) -> None:
    """Whichever is there first is completed when the other comes; nothing else of it changes."""
    for first, second in ((REPORT, THEORY), (THEORY, REPORT)):
        run = tmp_path / first
        run.mkdir()
        (run / first).write_text(f"<nav>{link_or_gap(run, first)}</nav>")
        assert "href" not in (run / first).read_text()
        (run / second).write_text(f"<nav>{link_or_gap(run, second)}</nav>")
        fill_gap(run, first)
        for page, other in ((first, second), (second, first)):
            assert f'<a href="{other}">' in (run / page).read_text()


def test_a_report_links_a_theory_page_and_renders_old_runs(tmp_path: Path) -> None:
    """Rows alone: no map, no lookalikes, and a link once the page is there."""
    Results({"dataset": "own"}, {}, (row("random", 0, selected_pck=0.5), row("ll", 0, selected_pck=0.4))).save(tmp_path)
    before = write_report(tmp_path).read_text()
    (tmp_path / THEORY).write_text(link_or_gap(tmp_path / "nowhere", THEORY))
    after = write_report(tmp_path).read_text()

    assert 'href="theory.html"' not in before
    assert 'id="alike"' not in before
    assert "No map: no scores" in before
    assert 'href="theory.html"' in after
    assert 'href="report.html"' in (tmp_path / THEORY).read_text()


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_published_table_says_what_can_be_compared(dataset: str) -> None:
    """Two tables, on LSP a figure too; each with words, five stages, and our row under each of theirs."""
    rows = [row(m, s, test_pck=0.7, selected_pck=0.3) for m in ("random", "ll", "egl++") for s in range(2)]
    found = published_tables(facts(rows, dataset=dataset))

    assert len(found) == (2 if dataset == "mpii" else 3)
    for item in found:
        assert item.can.startswith("Comparable:")
        assert item.cannot
        assert [line.small for line in item.table.rows[:4]] == ["published", "this run"] * 2
    accuracy = found[1].table
    assert [head.small for head in accuracy.columns][::4] == ["2\u202f000 labelled", "6\u202f000 labelled"]
    last = accuracy.rows[-2].cells[-1]
    assert (last.text, last.small) == ({"mpii": "0.8400 ± 0.0038"}.get(dataset, "0.8468 ± 0.0036"), "")
    assert accuracy.rows[-1].cells[0].text == "0.700 ± 0.000"
    assert accuracy.rows[0].cells[0].small == {"mpii": "p 0.003"}.get(dataset, "p 0.285")


def test_the_page_has_the_words_of_every_table(tmp_path: Path) -> None:
    """They are not only in the code."""
    Results({"dataset": "mpii"}, {}, (row("random", 0, selected_pck=0.5), row("ll", 0, selected_pck=0.4))).save(
        tmp_path
    )
    page = html.unescape(write_report(tmp_path, level=0.1).read_text())

    for table in papers()["tables"]:
        assert table["can"] in page
        assert all(line in page for line in (*table["cannot"], *table["datasets"]["mpii"]["cannot"]))


def test_the_level_is_asked_for_on_the_command_line(tmp_path: Path) -> None:
    """The page says at which level it calls a difference settled."""
    Results({"dataset": "own"}, {}, tuple(paired().rows.values())).save(tmp_path)
    outcome = CliRunner().invoke(main, ["report", str(tmp_path), "--level", "0.1"])

    assert outcome.exit_code == 0, outcome.output
    assert "Bold: below the level of 0.1." in (tmp_path / "report.html").read_text()
    assert CliRunner().invoke(main, ["report", str(tmp_path), "--level", "1"]).exit_code == 2
