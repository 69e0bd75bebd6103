"""From stored scores to ``detect.json``: what is computed, what is refused, and that it reads back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alpose.runtime.errors import AlposeError, ConfigError, DataError, DataNotFoundError
from alpose.trainer.cycles.results import load_npz, save_npz
from alpose.trainer.detect.evaluation import evaluate
from alpose.trainer.detect.measures import measure, truth_of
from alpose.trainer.detect.results import HEADLINE, Comparison, DetectResults
from alpose.trainer.detect.stored import Catalogue, DetectorInfo, SetInfo, SetScores, set_file
from alpose.trainer.measures.metrics import auroc
from alpose.trainer.measures.statistics import holm

from .runs import SETS, write_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DetectResults]:
    run = write_run(tmp_path_factory.mktemp("run"))
    return run, evaluate(run, resamples=60)


def one(results: DetectResults, question: str, name: str, detector: str | None = None) -> Comparison:
    found = [c for c in results.comparisons if (c.question, c.set) == (question, name)]
    return next(c for c in found if detector is None or c.detector == detector)


def test_every_detector_has_a_row_per_set_and_seed(made: tuple[Path, DetectResults]) -> None:
    """The ceiling was scored on one set alone."""
    _, results = made
    keys = {(row.detector, row.set, row.seed) for row in results.rows}

    assert len(keys) == len(results.rows) == (9 * 3 + 1) * 3
    assert {on for detector, on, _ in keys if detector == "in-domain"} == {"lspet"}


def test_rows_are_the_measures_of_the_stored_scores(made: tuple[Path, DetectResults]) -> None:
    run, results = made
    row = next(row for row in results.rows if (row.detector, row.set, row.seed) == ("fused", "lspet", 1))
    stored = SetScores.load(run, 1, "lspet")
    again = measure(stored.scores["fused"][2:], truth_of(stored, macro=False), probability=True)

    assert replace(row.measures, way_to_oracle=None) == again
    assert row.measures.calibration_error is not None


def test_who_has_no_pck_is_left_out_and_counted(made: tuple[Path, DetectResults]) -> None:
    _, results = made

    assert [(found.people, found.left_out) for found in results.sets] == [(238, 2)] * 3


def test_the_best_free_score_is_chosen_per_set_and_the_way_starts_at_it(made: tuple[Path, DetectResults]) -> None:
    """Its own way is 0, the true loss's own score goes all of it, whoever lies between lies between."""
    _, results = made
    for found in results.sets:
        means = {r.detector: r.auroc.mean or 0.0 for r in results.ratings if r.set == found.name}
        way = {name: results.over_seeds(name, found.name, "way_to_oracle") for name in means}

        assert found.best_free == max(("entropy", "peak"), key=means.__getitem__)
        assert way[found.best_free] == [0.0] * 3
        assert way["oracle-loss"] == pytest.approx([1.0] * 3)
        assert all(value is not None and 0 < value < 1 for value in way["fused"])


def test_the_questions_that_are_asked(made: tuple[Path, DetectResults]) -> None:
    _, results = made
    pairs = {(c.question, c.detector, c.against) for c in results.comparisons if c.set == "lspet"}
    free = {name for question, name, _ in pairs if question == "any-free"}

    assert ("shipped-free", "fused", "entropy") in pairs
    assert ("shipped-ceiling", "fused", "in-domain") in pairs
    assert ("slim-shipped", "fused-slim", "fused") in pairs
    assert ("ablation", "robust", "robust-plain") in pairs
    assert ("joint-peak", "fused", "peak") in pairs
    assert free == {"peak", "ll++conv", "robust", "robust-plain", "fused-slim", "flip", "in-domain", "oracle-loss"}
    assert not any(c.question == "shipped-ceiling" for c in results.comparisons if c.set != "lspet")
    assert one(results, "slim-shipped", "lspet").difference.alternative == "less"


def test_a_difference_is_of_the_rows(made: tuple[Path, DetectResults]) -> None:
    _, results = made
    ours, theirs = (results.over_seeds(name, "lsp-test", "auroc") for name in ("fused", "entropy"))
    difference = one(results, "shipped-free", "lsp-test").difference

    assert difference.per_seed == pytest.approx([a - b for a, b in zip(ours, theirs, strict=True) if a and b])


def test_the_headline_is_one_family_of_tests_and_choice_sets_have_none(made: tuple[Path, DetectResults]) -> None:
    _, results = made
    headline = [c for c in results.comparisons if c.question in HEADLINE]
    p_values = [p for c in headline if (p := c.difference.p) is not None]

    assert len(p_values) == 5  # shipped and slim on two test sets, the ceiling on one
    assert [c.difference.holm for c in headline if c.difference.p is not None] == holm(p_values)
    for c in results.comparisons:
        if c.set == "fold":
            assert (c.difference.p, c.difference.holm) == (None, None)
            assert c.difference.reason == "choices were made on this set"
            assert c.difference.estimate.people.low is not None


def test_reliability_is_of_probabilities_alone_and_of_all_seeds(made: tuple[Path, DetectResults]) -> None:
    _, results = made

    assert {r.detector for r in results.reliabilities} == {"fused", "fused-slim"}
    assert all(sum(r.people) == 3 * 238 for r in results.reliabilities)


def test_it_reads_back_as_it_was(made: tuple[Path, DetectResults]) -> None:
    run, results = made

    assert DetectResults.load(run) == results
    assert Catalogue.load(run) == results.catalogue


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path, seeds=1, people=30, sets=SETS[2:])
    before = evaluate(run, resamples=10).save(run).read_bytes()
    evaluate(run, resamples=10)

    assert (run / "detect.json").read_bytes() == before


def test_some_seeds_of_a_run_that_still_computes(tmp_path: Path) -> None:
    run = write_run(tmp_path, people=30, sets=SETS[2:], noise={"fused": 0.5, "entropy": 1.0})
    set_file(run, 2, "lspet").unlink()

    with pytest.raises(DataNotFoundError, match=r"lspet.npz does not exist: seed 2 has not scored lspet"):
        evaluate(run, resamples=10)
    assert evaluate(run, seeds=[0, 1], resamples=10).catalogue.seeds == (0, 1)
    with pytest.raises(ConfigError, match="has the seeds 0, 1, 2"):
        evaluate(run, seeds=[5])


def spoil(run: Path, seed: int, name: str, **arrays: object) -> None:
    path = set_file(run, seed, name)
    stored = load_npz(path) | {key.replace("__", "."): np.asarray(value) for key, value in arrays.items()}
    save_npz(path, {key: value for key, value in stored.items() if value.shape})


def test_what_cannot_be_evaluated_says_what_to_do(tmp_path: Path) -> None:
    run = write_run(tmp_path, seeds=2, people=30, sets=SETS[1:2], noise={"fused": 0.5, "entropy": 1.0})
    good = SetScores.load(run, 1, "lsp-test")
    gone_N = good.scores["entropy"].copy()
    gone_N[[5, 9]] = np.nan
    cases: list[tuple[dict[str, object], str]] = [
        ({"score__entropy": gone_N}, r"entropy is NaN or infinite for 2 of 28 people .* lsp-test/00005: nan\); score"),
        ({"score__entropy": None}, "entropy has not scored lsp-test under the seeds 1, but has under others"),
        ({"score__entropy": gone_N[:5]}, r"entropy has shape \(5,\) for 30 ids"),
        ({"score__fused": good.scores["entropy"]}, "fused on lsp-test: .* scores are not probabilities"),
        ({"ids": np.array(good.ids[::-1])}, "ids of lsp-test under seed 1 are not those under seed 0"),
        ({"labelled_NJ": ~good.labelled_NJ}, "labelled_NJ of lsp-test under seed 1 are not those|true_loss_N is NaN"),
        ({"right_NJ": good.right_NJ[:, :3]}, r"right_NJ has shape \(30, 3\)"),
    ]
    for arrays, words in cases:
        spoil(run, 1, "lsp-test", **arrays)
        with pytest.raises(AlposeError, match=words):
            evaluate(run, resamples=5)
        good.save(run, 1, "lsp-test")
    evaluate(run, resamples=5)


def test_nan_of_somebody_who_does_not_count_is_no_matter(tmp_path: Path) -> None:
    """An oracle knows nothing of people without labels."""
    run = write_run(tmp_path, seeds=1, people=30, sets=SETS[2:])
    oracle_N = SetScores.load(run, 0, "lspet").scores["oracle-loss"].copy()
    oracle_N[:2] = np.nan
    spoil(run, 0, "lspet", **{"score.oracle-loss": oracle_N})

    assert evaluate(run, resamples=5).sets[0].left_out == 2


def test_scores_that_no_catalogue_names_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path, seeds=1, people=30, sets=SETS[1:])
    spoil(run, 0, "lspet", score__forgotten=np.zeros(30))

    assert [found.unlisted for found in evaluate(run, resamples=5).sets] == [(), ("forgotten",)]


def test_without_free_scores_there_is_nothing_to_beat(tmp_path: Path) -> None:
    run = write_run(tmp_path, seeds=1, people=30, noise={"fused": 0.5, "oracle-loss": 0.0})
    results = evaluate(run, resamples=5)

    assert {found.best_free for found in results.sets} == {None}
    assert results.comparisons == ()
    assert results.over_seeds("fused", "lspet", "way_to_oracle") == [None]


def test_the_official_profile_takes_the_mean_of_the_joints(tmp_path: Path) -> None:
    run = write_run(tmp_path, seeds=1, people=40, sets=SETS[2:], config={"profile": "official-2021"})
    stored = SetScores.load(run, 0, "lspet")
    counts_J = stored.labelled_NJ.sum(axis=0)
    expected = ((stored.right_NJ & stored.labelled_NJ).sum(axis=0) / counts_J).mean()

    assert evaluate(run, resamples=5).sets[0].pck[0] == pytest.approx(expected)


def test_the_oracle_of_a_set_is_the_true_loss_itself(made: tuple[Path, DetectResults]) -> None:
    run, results = made
    stored = SetScores.load(run, 0, "fold")
    failed_N = truth_of(stored, macro=False).failed_N

    assert results.sets[0].oracle_auroc[0] == pytest.approx(auroc(stored.true_loss_N[2:], failed_N))


def info(name: str, **changes: object) -> DetectorInfo:
    values: dict[str, object] = {"name": name, "kind": "candidate", "what": "", **changes}
    return DetectorInfo(**values)  # type: ignore[arg-type]


def test_catalogues_that_contradict_themselves_are_refused() -> None:
    sets = (SetInfo(name="a", what="", role="test"),)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: Catalogue(detectors=(), sets=sets, seeds=(0,)), "names no detector"),
        (lambda: Catalogue(detectors=(info("x"), info("x")), sets=sets, seeds=(0,)), "the detector x twice"),
        (lambda: Catalogue(detectors=(info("x"),), sets=sets, seeds=(0, 0)), "the seed 0 twice"),
        (lambda: Catalogue(detectors=(info("x", ablates="y"),), sets=sets, seeds=(0,)), "x ablates 'y'"),
        (lambda: Catalogue(detectors=(info("x", ablates="x"),), sets=sets, seeds=(0,)), "no other detector"),
        (
            lambda: Catalogue(detectors=(info("x", kind="shipped"), info("y", kind="shipped")), sets=sets, seeds=(0,)),
            "x and y are all of kind 'shipped'",
        ),
        (lambda: Catalogue(detectors=(info("x"),), sets=sets, seeds=(0,), looks={"b": 1}), "looks at b"),
        (lambda: info("x", kind="magic"), "kind 'magic' is none of"),
        (lambda: info("x", latency_ms=-1.0), "latency_ms is -1.0"),
        (lambda: SetInfo(name="../a", what="", role="test"), "a name is letters"),
        (lambda: SetInfo(name="a", what="", role="train"), "role 'train' is none of test, choice"),  # type: ignore[arg-type]
    ]
    for make, words in cases:
        with pytest.raises(DataError, match=words):
            make()


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"detectors.json does not exist"):
        evaluate(tmp_path)
    with pytest.raises(DataNotFoundError, match=r"detect.json does not exist: .*evaluate"):
        DetectResults.load(tmp_path)


def test_joints_are_measured_as_stored_and_older_files_have_none(
    made: tuple[Path, DetectResults], tmp_path: Path
) -> None:
    run, results = made
    stored = SetScores.load(run, 1, "lspet")
    row = next(r for r in results.joints if (r.detector, r.set, r.seed) == ("fused", "lspet", 1))
    counts_NJ, right_NJ = stored.labelled_NJ, stored.right_NJ
    doubt_L, wrong_L = 1 - stored.confidences["fused"][counts_NJ].astype(np.float64), ~right_NJ[counts_NJ]

    assert {r.detector for r in results.joints} == {"peak", "fused", "fused-slim"}
    assert row.measures.together.auroc == pytest.approx(auroc(doubt_L, wrong_L))
    assert sum(one.wrong for one in row.measures.joints) == row.measures.together.wrong == int(wrong_L.sum())
    assert sum(one.measured for one in row.measures.joints) == int(counts_NJ.sum())

    content = json.loads((run / "detect.json").read_text())
    del content["joints"], content["catalogue"]["joints"]
    for each in content["rows"]:
        del each["measures"]["augrc"]
    (tmp_path / "detect.json").write_text(json.dumps(content))
    assert DetectResults.load(tmp_path).joints == ()


def test_confidences_are_one_for_each_joint(made: tuple[Path, DetectResults]) -> None:
    stored = SetScores.load(made[0], 0, "lspet")
    with pytest.raises(DataError, match="confidences of peak have shape"):
        replace(stored, confidences={"peak": stored.confidences["peak"][:, 1:]})
