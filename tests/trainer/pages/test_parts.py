"""Parts of the report on small inputs: bands, pairs, the t-SNE map, lookalikes, links, published tables.

Shapes: N people of the pool, L labelled, M selected, Q people looked at, K lookalikes of each, D embedding, P people.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from alpose.trainer import metrics
from alpose.trainer.cli import main
from alpose.trainer.data.crops import Crops
from alpose.trainer.methods.nearest_neighbours import SIDE_PX, _small, nearest_neighbours
from alpose.trainer.methods.options import EglConfig
from alpose.trainer.methods.selection import Selection
from alpose.trainer.pages import cycles_figures as curves
from alpose.trainer.pages import cycles_tables as pairs
from alpose.trainer.pages import map as tsne
from alpose.trainer.pages.cycles import write_report
from alpose.trainer.pages.people import neighbours
from alpose.trainer.pages.published import DATASETS, papers, published_tables
from alpose.trainer.pages.run_folder import REPORT, THEORY, RunInfo, StageFiles, fill_gap, link_or_gap, run_info
from alpose.trainer.results import Lookalikes, Results, Row, Scores, save_npz
from alpose.trainer.scoring import Scored
from alpose.trainer.statistics import RESAMPLES, holm, mean_interval, paired_t_test

from .runs import row


def facts(rows: Sequence[Row], **config: Any) -> RunInfo:
    """Of a run with these rows."""
    return run_info(Results({"dataset": "lsp", **config}, {}, tuple(rows)))


def scores(N: int, selected_M: Sequence[int], seed: int = 0) -> Scores:
    """A pool whose scores tie here and there."""
    generator = np.random.default_rng(seed)
    loss_N, pck_N = generator.gamma(2, 1, N).astype(np.float32), generator.uniform(0, 1, N).astype(np.float32)
    return Scores(tuple(f"p{n}" for n in range(N)), np.round(loss_N).astype(np.float32), loss_N, pck_N,
                  np.array(selected_M, dtype=np.int64))  # fmt: skip


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


def write_map_run(run: Path) -> tuple[RunInfo, StageFiles, np.ndarray]:
    """Two far clusters of embeddings in the pool, labelled people before and after; ``ll`` picks from the second."""
    generator = np.random.default_rng(0)
    far_N = np.arange(60) % 2
    pool_ND = generator.normal(0, 0.3, (60, 4)) + 10 * far_N[:, None]
    pool = scores(60, np.flatnonzero(far_N)[:10].tolist())
    other = Scores(pool.ids, pool.score_N, pool.true_loss_N, pool.image_pck_N, np.arange(10))
    labelled_LD, loss_L = generator.normal(0, 0.3, (6, 4)), np.full(6, 77, dtype=np.float32)
    embedding_ND = np.concatenate([labelled_LD[:3], pool_ND, labelled_LD[3:]]).astype(np.float32)
    save_npz(run / "seed-0" / "base" / "scored.npz",
             {"coarsest_ND": embedding_ND, "true_loss_N": np.concatenate([loss_L[:3], pool.true_loss_N, loss_L[3:]])})  # fmt: skip
    stored = StageFiles({("random", 0): other, ("ll", 0): pool}, {}, {}, {}, ())
    return facts([row("random", 0), row("ll", 0)]), stored, far_N


def test_the_map_keeps_neighbours_together_and_shows_who_was_selected(tmp_path: Path) -> None:
    """Everybody's nearest on the map is of the same cluster; dots of ``ll`` are its ten people."""
    told, stored, far_N = write_map_run(tmp_path)
    found = tsne.map_of(tmp_path, told, stored)
    assert not isinstance(found, str)
    kept = np.load(tmp_path / tsne.MAP, allow_pickle=False)
    row_P, xy_P2 = kept["row_P"], kept["xy_P2"]
    cluster_P = np.where(row_P < 0, 0, far_N[row_P])
    distance_PP = np.linalg.norm(xy_P2[:, None] - xy_P2, axis=2) + np.diag(np.full(len(xy_P2), np.inf))

    assert (cluster_P[distance_PP.argmin(axis=1)] == cluster_P).all()
    assert (found.pool, found.pool_shown, found.labelled_shown) == (60, 60, 6)
    small = {item.method: item for item in found.by_method}["ll"]
    assert (small.shown, small.of, small.selected.count("M")) == (10, 10, 10)
    assert set(small.selected.split("M")) <= set(found.others.split("M"))


def test_a_map_is_computed_once_and_again_when_a_selection_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, stored, _ = write_map_run(tmp_path)
    calls = []

    def layout(points_PD: np.ndarray) -> np.ndarray:
        calls.append(len(points_PD))
        return points_PD[:, :2].astype(np.float32)

    monkeypatch.setattr(tsne, "layout", layout)
    first = tsne.map_of(tmp_path, told, stored)

    assert tsne.map_of(tmp_path, told, stored) == first
    assert len(calls) == 1
    fewer = StageFiles({("random", 0): stored.scores["random", 0]}, {}, {}, {}, ())
    assert tsne.map_of(tmp_path, told, fewer) != first
    assert len(calls) == 2
    (tmp_path / tsne.MAP).write_bytes(b"half a file")
    assert tsne.map_of(tmp_path, told, stored) == first
    assert len(calls) == 3


def test_a_map_that_cannot_be_is_told_why(tmp_path: Path) -> None:
    """No file, a file of other people, a collapsed model."""
    told, stored, _ = write_map_run(tmp_path)
    path = tmp_path / "seed-0" / "base" / "scored.npz"
    whole = dict(np.load(path, allow_pickle=False))

    save_npz(path, whole | {"coarsest_ND": np.ones_like(whole["coarsest_ND"])})
    assert "collapsed" in str(tsne.map_of(tmp_path, told, stored))
    save_npz(path, whole | {"true_loss_N": whole["true_loss_N"] + 1})
    assert "not of the people in this pool" in str(tsne.map_of(tmp_path, told, stored))
    path.unlink()
    assert "scored.npz is not there" in str(tsne.map_of(tmp_path, told, stored))
    assert not (tmp_path / tsne.MAP).exists()


def scored(embedding_ND: np.ndarray, crops: Crops) -> Scored:
    """Embeddings, and the truth as prediction."""
    plain: dict[str, Any] = {name: np.zeros(len(crops), dtype=np.float32) for name in Scored.__dataclass_fields__}
    maps: dict[str, Any] = {n: {} for n, f in Scored.__dataclass_fields__.items() if "Mapping" in str(f.type)}
    near = {"coarsest_ND": embedding_ND.astype(np.float32), "embedding_ND": -embedding_ND.astype(np.float32)}
    return Scored(**{**plain, **maps, **near, "predicted_NJ2": crops.joints_NJ2})


@pytest.mark.parametrize("method", ["random", "ll", "egl++"])
def test_lookalikes_are_the_nearest_labelled_people(
    method: str, make_crops: Callable[..., Crops], tmp_path: Path
) -> None:
    """Against brute force; the first picks, then the lowest scores but for random; egl++ weighs them."""
    pool, labelled = make_crops(30, seed=1), make_crops(25, seed=2)
    labelled.data.labelled_NJ[4] = False  # nobody's lookalike
    generator = np.random.default_rng(3)
    pool_ND, labelled_LD = generator.normal(size=(30, 5)), generator.normal(size=(25, 5))
    selection = Selection(np.arange(29, 9, -1), np.arange(30, dtype=np.float32))
    found = nearest_neighbours(method, pool, scored(pool_ND, pool), labelled, scored(labelled_LD, labelled), selection,
                       EglConfig(neighbours=10, perplexity=5))  # fmt: skip
    found.save(tmp_path / "lookalikes.npz")
    back = Lookalikes.load(tmp_path / "lookalikes.npz")
    rows = [29, 28, 27, 26, 25, 24, *([] if method == "random" else [0, 1])]

    assert back.ids == tuple(pool.data.ids[n] for n in rows)
    assert back.first == 6
    distance_QL = np.linalg.norm(pool_ND[rows][:, None] - labelled_LD, axis=2)
    distance_QL[:, 4] = np.inf
    nearest_QK = np.argsort(distance_QL, axis=1)[:, :5]
    ids = [[back.near_ids[n] for n in near_K] for near_K in back.row_QK.tolist()]
    assert ids == [[labelled.data.ids[n] for n in near_K] for near_K in nearest_QK.tolist()]
    assert back.distance_QK == pytest.approx(np.take_along_axis(distance_QL, nearest_QK, 1), rel=1e-5)
    assert np.isfinite(back.weight_QK).all() == (method == "egl++")
    assert len(back.near_crops_USS3) == len(set(back.near_ids)) <= 5 * len(rows)
    page = neighbours(back)
    assert page is not None
    assert page.weighted == (method == "egl++")
    assert [group.title for group in page.groups[5:]] == [
        "Selected sixth",
        *["Among the lowest scores"] * (len(rows) - 6),
    ]


def test_large_crops_are_kept_small() -> None:
    """A pixel's place is scaled with its picture."""
    large = np.zeros((1, 2 * SIDE_PX, 2 * SIDE_PX, 3), dtype=np.uint8)
    large[0, 100:102, 60:62] = 255
    small, scale = _small(large)

    assert small.shape == (1, SIDE_PX, SIDE_PX, 3)
    assert scale == 0.5
    assert np.argwhere(small[0, ..., 0] > 200).tolist() == [[50, 30]]


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
