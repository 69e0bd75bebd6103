"""The theory of Learning Loss: closed forms against integrals and draws, the papers' tables, and a fabricated run.

Shapes: N people, P pairs.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import integrate, special, stats

from alpose.runtime.errors import ConfigError, DataError, DataNotFoundError
from alpose.trainer.cli import main
from alpose.trainer.cycles.results import Results, Row, Scores, save_npz, stage_folder
from alpose.trainer.objectives import margin_ranking, pair_kl
from alpose.trainer.theory.mathematics import (
    PAPER_SCALE,
    TABLE_1,
    TABLE_2,
    TABLE_SCALE,
    Floats,
    Gamma,
    alignment,
    expected_share,
    expected_share_closed,
    fit_gamma,
    kl_pull,
    ks_distance,
    ks_of_true_gammas,
    margin_pull,
    near_probability,
    near_probability_closed,
)
from alpose.trainer.theory.theory_run import near_share, ordered_pairs, rest_of, study

MARGIN = 1.0


def test_table_1_of_the_paper_to_every_printed_digit() -> None:
    """At θ = 0.0666; at the θ that is printed, 0.066, the values differ and are these."""
    for near, printed in TABLE_1.items():
        assert round(near_probability_closed(near, 4, TABLE_SCALE), 3) == printed

    exact = [near_probability_closed(near, 4, PAPER_SCALE) for near in TABLE_1]
    assert exact == pytest.approx([0.0944, 0.1871, 0.2766, 0.3614, 0.4408, 0.5311, 0.6110], abs=5e-5)


def test_table_2_of_the_paper_to_every_printed_digit() -> None:
    """As Table 1."""
    for gap, printed in TABLE_2.items():
        assert round(expected_share_closed(gap, 4, TABLE_SCALE), 2) == printed

    exact = [expected_share_closed(gap, 4, PAPER_SCALE) for gap in TABLE_2]
    assert exact == pytest.approx([0.5, 0.3844, 0.3030, 0.2480, 0.2093, 0.1809], abs=5e-5)


def test_the_closed_form_for_k_4_is_the_short_one() -> None:
    for z in (0.0, 0.1, 1.0, 3.0, 20.0):
        short = 1 - math.exp(-z) * (1 + 11 * z / 16 + 3 * z**2 / 16 + z**3 / 48)
        assert near_probability_closed(z * 0.5, 4, 0.5) == pytest.approx(short, abs=1e-14)


@pytest.mark.parametrize("shape", [1, 2, 4, 7])
def test_closed_forms_agree_with_draws(shape: int) -> None:
    """400,000 pairs know a probability to 0.0008, and a conditional mean in a window of 0.1 to about 0.002."""
    rng = np.random.default_rng(shape)
    x_P, y_P = rng.gamma(shape, 0.3, (2, 400_000))
    for near in (0.1, 0.5):
        assert near_probability_closed(near, shape, 0.3) == pytest.approx((abs(x_P - y_P) <= near).mean(), abs=4e-3)
    window_P = abs(y_P - x_P - 0.4) < 0.05
    share = (x_P / (x_P + y_P))[window_P].mean()
    assert expected_share_closed(0.4, shape, 0.3) == pytest.approx(share, abs=8e-3)


@pytest.mark.parametrize("shape", [1, 3, 4, 9])
@pytest.mark.parametrize("gap", [0.0, 0.02, 0.3, 2.0, 9.0])
def test_closed_forms_agree_with_the_quadrature_for_any_shape(shape: int, gap: float) -> None:
    """Two derivations of the same number, to ten digits."""
    law = Gamma(shape, 0.7)
    assert near_probability(gap, law) == pytest.approx(near_probability_closed(gap, shape, 0.7), abs=1e-12)
    assert expected_share(gap, law) == pytest.approx(expected_share_closed(gap, shape, 0.7), abs=1e-8)


@pytest.mark.parametrize("shape", [0.3, 1.7, 3.2, 15.5, 40.0])
@pytest.mark.parametrize("z", [0.01, 0.5, 4.0, 30.0])
def test_near_probability_of_any_shape_is_the_bessel_struve_form(shape: float, z: float) -> None:
    """The difference of two gammas has density ∝ |d|^ν K_ν(|d|), ν = k - ½, whose integral is DLMF 10.43.2."""
    v = shape - 0.5
    closed = z * (special.kv(v, z) * special.modstruve(v - 1, z) + special.kv(v - 1, z) * special.modstruve(v, z))
    assert near_probability(z * 2.5, Gamma(shape, 2.5)) == pytest.approx(closed, abs=1e-12)


@pytest.mark.parametrize("shape", [1.7, 3.2, 15.5])
def test_expected_share_of_any_shape_is_the_integral_of_eq_6(shape: float) -> None:
    law, gap = Gamma(shape, 0.9), 1.3

    def both(x: float) -> float:
        return float(law.density(np.array(x)) * law.density(np.array(x + gap)))

    top, _ = integrate.quad(lambda x: x / (2 * x + gap) * both(x), 0, 60, limit=200)
    bottom, _ = integrate.quad(both, 0, 60, limit=200)
    assert expected_share(gap, law) == pytest.approx(top / bottom, abs=1e-7)


def test_a_very_narrow_law_is_a_normal_one() -> None:
    """k = 12,000, as of a model that has learned nothing: the difference has variance 2kθ², and φ is nearly ½."""
    law = Gamma(12_000, 0.001)
    sd = math.sqrt(2 * 12_000) * 0.001
    assert near_probability(sd, law) == pytest.approx(math.erf(math.sqrt(0.5)), abs=1e-4)
    assert expected_share(sd, law) == pytest.approx(0.5 - sd / (4 * law.mean), rel=1e-4)


def test_a_law_has_the_density_and_quantiles_of_scipy() -> None:
    law, x_N = Gamma(3.2, 0.8), np.array([0.1, 1.0, 7.0])
    theirs = stats.gamma(3.2, scale=0.8)
    np.testing.assert_allclose(law.density(x_N), theirs.pdf(x_N), rtol=1e-12)
    np.testing.assert_allclose(law.below(x_N), theirs.cdf(x_N), rtol=1e-12)
    np.testing.assert_allclose(law.quantile(law.below(x_N)), x_N, rtol=1e-10)


def test_the_fit_is_the_maximum_of_the_likelihood() -> None:
    """scipy's own search finds the same place, and so does the derivative."""
    loss_N = np.random.default_rng(0).gamma(4, 0.0666, 5000)
    law = fit_gamma(loss_N)
    shape, _, scale = stats.gamma.fit(loss_N, floc=0)

    assert (law.shape, law.scale) == pytest.approx((shape, scale), rel=1e-5)
    assert law.mean == pytest.approx(loss_N.mean(), rel=1e-12)
    assert law.shape == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("losses", "message"), [([1.0], "at least 2"), ([0.0, 1.0], "above 0"), ([math.nan, 1.0], "above 0"), ([2.0, 2.0], "all 2")]
)  # fmt: skip
def test_what_cannot_be_fitted_says_why(losses: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_gamma(np.array(losses))


@pytest.mark.parametrize("bad", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf)])
def test_a_law_refuses_what_is_no_gamma(bad: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        Gamma(*bad)


def test_a_negative_difference_is_an_error() -> None:
    for function in (near_probability_closed, expected_share_closed):
        with pytest.raises(ConfigError, match="at least 0"):
            function(-0.1, 4, 1.0)
    with pytest.raises(ConfigError, match="at least 0"):
        near_probability(math.nan, Gamma(4, 1))


def test_ks_distance_is_scipys_and_tells_a_gamma_from_another_law() -> None:
    """A gamma sample lies within what true gammas do; a log-normal one does not."""
    rng = np.random.default_rng(3)
    for loss_N, is_gamma in ((rng.gamma(4, 0.07, 2000), True), (rng.lognormal(0, 0.7, 2000), False)):
        law = fit_gamma(loss_N)
        distance = ks_distance(loss_N, law)
        theirs = stats.kstest(loss_N, stats.gamma(law.shape, scale=law.scale).cdf).statistic
        assert distance == pytest.approx(theirs, rel=1e-9)
        assert (distance < ks_of_true_gammas(2000, law, draws=60)) is is_gamma


def test_pulls_are_the_gradients_of_the_objectives() -> None:
    """Against autograd of the very objectives that train the heads, with a tie of the true losses among the pairs."""
    rng = np.random.default_rng(1)
    true_B, predicted_B = rng.gamma(4, 0.5, 40), rng.normal(0, 1, 40)
    true_B[20] = true_B[0]  # disjoint pairing: 0 with 20
    objectives = ((margin_ranking, margin_pull(true_B[:20], true_B[20:], predicted_B[:20], predicted_B[20:], MARGIN)),
                  (pair_kl, kl_pull(true_B[:20], true_B[20:], predicted_B[:20], predicted_B[20:])))  # fmt: skip
    for objective, pull_P in objectives:
        leaf_B = torch.tensor(predicted_B, requires_grad=True)
        objective(leaf_B, torch.tensor(true_B)).backward()
        assert leaf_B.grad is not None
        np.testing.assert_allclose(leaf_B.grad[:20] * 20, pull_P, atol=1e-12)
        np.testing.assert_allclose(leaf_B.grad[20:] * 20, -pull_P, atol=1e-12)


def test_the_papers_pairs_of_fig_1() -> None:
    """LL++ all but ignores (a, b) and corrects (a, c): 0.003 and 0.327; Learning Loss pulls alike at both."""
    true, predicted = np.array([0.45, 0.47, 2.87]), np.array([1.48, 1.51, 1.63])
    i_P, j_P = np.array([0, 0]), np.array([1, 2])
    four = true[i_P], true[j_P], predicted[i_P], predicted[j_P]

    assert np.abs(kl_pull(*four)) == pytest.approx([0.0034, 0.327], abs=5e-4)
    assert np.abs(margin_pull(*four, MARGIN)).tolist() == [1, 1]


def test_alignment_of_the_papers_example() -> None:
    """θ_i = [1, 2, 1], θ_j = [1, 1, 1], w = [0, 3, 0], l_i < l_j: the loss is 4, and each step takes [0, 1, 0] away."""
    i_D, j_D, weight_D = np.array([1.0, 2, 1]), np.array([1.0, 1, 1]), np.array([0.0, 3, 0])
    path = alignment(i_D, j_D, weight_D, 1, 3)
    assert path[:6].tolist() == [[0, 3, 0], [0, 2, 0], [0, 1, 0], [0, 0, 0], [0, -1, 0], [0, -1, 0]]
    assert (alignment(i_D, j_D, weight_D, 3, 1) == weight_D).all(), "already in order: no step"

    smooth = alignment(i_D, j_D, weight_D, 1, 3, margin=None, steps=80)
    assert smooth[-1] == pytest.approx([0, -math.log(3), 0], abs=1e-6)


def test_near_share_counts_every_pair() -> None:
    true_N = np.random.default_rng(2).gamma(4, 1, 60)
    i_P, j_P = np.triu_indices(60, 1)
    for near in (0.0, 0.2, 5.0):
        assert near_share(true_N, near) == pytest.approx((abs(true_N[i_P] - true_N[j_P]) <= near).mean(), abs=1e-12)


def test_pairs_are_ordered_and_never_of_one_person() -> None:
    """All of 50; of 3,000 a draw, which is the same each time."""
    for count, pairs in ((50, 1225), (3000, 2_000_000)):
        true_N = np.random.default_rng(0).gamma(4, 1, count)
        i_P, j_P = ordered_pairs(true_N)
        assert len(i_P) == pairs
        assert (true_N[i_P] <= true_N[j_P]).all()
        assert (i_P != j_P).all()


def test_the_rest_of_a_sequence() -> None:
    """Also with equal values and NaN, and None where the part is no part in order."""
    everyone = np.array([3.0, 1, math.nan, 1, 2, math.nan], dtype=np.float32)
    rest = rest_of(everyone, np.array([1, math.nan, 2], dtype=np.float32))

    assert rest is not None
    np.testing.assert_array_equal(everyone[rest], [3, 1, math.nan])
    assert rest_of(everyone, np.array([2, 1], dtype=np.float32)) is None


def made_run(folder: Path, methods: tuple[str, ...] = ("random", "ll", "ll++"), *, base: bool = True) -> Path:
    """500 people with gamma losses, 200 of them labelled at random; ll predicts the log-loss, ll++ it with noise, epck a
    share of joints."""
    rng = np.random.default_rng(0)
    true_N = rng.gamma(4, 0.5, 500).astype(np.float32)
    heads = {"ll": np.log(true_N), "ll++": np.log(true_N) + rng.normal(0, 0.3, 500).astype(np.float32),
             "epck": true_N / 10}  # fmt: skip
    labelled_N = np.zeros(500, dtype=np.bool_)
    labelled_N[rng.permutation(500)[:200]] = True
    rows = []
    for method in methods:
        score_N = heads.get(method, true_N)[~labelled_N]
        folder_of = stage_folder(folder, 0, method, 1)
        scores = Scores(tuple(f"p/{row}" for row in range(300)), score_N, true_N[~labelled_N],
                        np.ones(300, dtype=np.float32), np.arange(10))  # fmt: skip
        scores.save(folder_of / "scores.npz")
        rows.append(made_row(method))
    if base:
        save_npz(folder / "seed-0" / "base" / "scored.npz",
                 {"true_loss_N": true_N, **{f"head.{name}": value_N for name, value_N in heads.items()}})  # fmt: skip
    config = {"methods": list(methods), "seeds": 1, "stages": 1, "recipe": {"heads": {"margin": MARGIN}}}
    Results(config, {}, tuple(rows)).save(folder)
    return folder


def made_row(method: str) -> Row:
    values: dict[str, Any] = dict.fromkeys(Row.__dataclass_fields__)
    return Row(**values | {"method": method, "seed": 0, "stage": 1, "labelled": 200, "pool": 300, "selected": 10,
                           "failures": 0, "unscored": 0, "score_seconds": 0.0, "neighbours": {}})  # fmt: skip


def test_a_run_is_measured_as_its_pairs_are(tmp_path: Path) -> None:
    """Each number against a plain loop over all pairs of the labelled people."""
    found = study(made_run(tmp_path), near=0.2)
    labelled, pool = found.groups
    head, smooth = labelled.margin_heads["ll"], labelled.kl_heads["ll++"]
    true_N, predicted_N, noisy_N = (
        labelled.people.true_N,
        labelled.people.predicted["ll"],
        labelled.people.predicted["ll++"],
    )
    slow = slow_pairs(true_N, predicted_N, noisy_N, 0.2 * true_N.mean())

    assert (labelled.people.name, len(true_N), pool.people.name, len(pool.people.true_N)) == (
        "labelled",
        200,
        "pool",
        300,
    )
    np.testing.assert_allclose(predicted_N, np.log(true_N), atol=1e-6)
    assert labelled.pairs == labelled.all_pairs == 19_900
    assert head.wrong_order == 0
    assert head.updates == pytest.approx(slow["updates"])
    assert head.near_updates == pytest.approx(slow["near_updates"])
    assert head.noise == pytest.approx(slow["noise"])
    assert smooth.noise == pytest.approx(slow["kl_noise"])
    assert labelled.near_measured[2] == pytest.approx(slow["near"])
    assert head.noise_by_near[2] == head.noise


def slow_pairs(true_N: Floats, predicted_N: Floats, noisy_N: Floats, near: float) -> dict[str, float]:
    """By the definitions, pair by pair."""
    pairs = near_pairs = updates = both = 0
    pull = near_pull = 0.0
    for i in range(len(true_N)):
        for j in range(i):
            is_near = abs(true_N[i] - true_N[j]) <= near
            moves = MARGIN - np.sign(true_N[i] - true_N[j]) * (predicted_N[i] - predicted_N[j]) > 0
            kl = abs(1 / (1 + math.exp(noisy_N[j] - noisy_N[i])) - true_N[i] / (true_N[i] + true_N[j]))
            pairs, near_pairs, updates, both = (
                pairs + 1,
                near_pairs + is_near,
                updates + moves,
                both + (is_near and moves),
            )
            pull, near_pull = pull + kl, near_pull + kl * is_near
    return {"near": near_pairs / pairs, "updates": updates / pairs, "near_updates": both / near_pairs,
            "noise": both / updates, "kl_noise": near_pull / pull}  # fmt: skip


def test_the_fit_of_a_gamma_run_predicts_what_is_measured(tmp_path: Path) -> None:
    """The losses are gamma: the formulae hold within what 300 people can tell."""
    _, pool = study(made_run(tmp_path)).groups

    assert pool.fits
    assert pool.near_measured == pytest.approx(pool.near_fit, abs=0.03)
    assert pool.share_measured[:4] == pytest.approx(pool.share_fit[:4], abs=0.03)


def test_a_run_without_the_scores_of_the_labelled_still_has_its_pool(tmp_path: Path) -> None:
    """And says what is missing."""
    found = study(made_run(tmp_path, base=False))

    assert [group.people.name for group in found.groups] == ["pool"]
    assert "scored.npz is not there" in found.problems[0]
    assert "people of the pool" in found.sentence()


def test_a_run_without_a_learning_loss_head_says_so(tmp_path: Path) -> None:
    assert "this run trained none" in study(made_run(tmp_path, ("random",), base=False)).sentence()


def test_a_head_that_does_not_learn_from_pairs_is_no_learningloss_head(tmp_path: Path) -> None:
    """``epck`` predicts a share of joints: a softmax over two of them says nothing of p, and it has no margin."""
    found = study(made_run(tmp_path, ("random", "ll", "ll++", "epck")))

    for group in found.groups:
        assert (list(group.margin_heads), list(group.kl_heads)) == (["ll"], ["ll++"])
        assert "epck" not in group.people.predicted
    assert "this run trained none" in study(made_run(tmp_path / "alone", ("epck",), base=False)).sentence()


def test_an_unknown_seed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="not 7"):
        study(made_run(tmp_path), seed=7)


def test_the_command_prints_both_tables() -> None:
    """And as JSON."""
    plain, as_json = (CliRunner().invoke(main, ["theory", *more]) for more in ([], ["--json"]))

    assert plain.exit_code == as_json.exit_code == 0
    agree = [line.split()[1:] for line in plain.output.splitlines() if line.startswith("agree")]
    assert [" ".join(words) for words in agree] == ["7 of 7 1 of 7", "6 of 6 5 of 6"]
    tables = json.loads(as_json.output)
    assert tables["table_1"][4] == pytest.approx(
        {"delta": 0.1, "printed": 0.437, "theta=0.0666": 0.4373, "theta=0.066": 0.4408}, abs=5e-5
    )


def test_the_command_measures_a_run_and_writes_its_page(tmp_path: Path) -> None:
    """The page holds every figure, needs no network, and is the same each time."""
    run = made_run(tmp_path)
    plain = CliRunner().invoke(main, ["theory", str(run)])
    first = (run / "theory.html").read_bytes()
    as_json = CliRunner().invoke(main, ["theory", str(run), "--json"])

    assert plain.exit_code == as_json.exit_code == 0
    assert "updates of ll" in plain.output
    page = first.decode()
    assert page.count('<svg role="img"') == 10
    assert "://" not in page
    assert "<script" not in page
    assert (run / "theory.html").read_bytes() == first
    value, found = json.loads(as_json.output), study(run)
    assert value["near"] == 0.1
    assert value["groups"]["labelled"]["margin_heads"]["ll"] == json.loads(
        json.dumps(asdict(found.groups[0].margin_heads["ll"]))
    )
