"""EGL++ against a forward and a backward pass of its own for every (image, label) pair, and on whole pools."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from alpose.runtime.errors import ConfigError, DataError
from alpose.trainer import checkpoint
from alpose.trainer.checkpoint import PoseModel
from alpose.trainer.cycles import run as run_module
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.results import Scores, load_npz, save_npz
from alpose.trainer.cycles.run import RunConfig
from alpose.trainer.data.augment import to_input
from alpose.trainer.data.catalog import open_dataset
from alpose.trainer.data.crops import Crops, prepare
from alpose.trainer.device import DeviceContext
from alpose.trainer.heatmaps import draw, to_cells
from alpose.trainer.methods import egl
from alpose.trainer.methods.egl import expected_gradient, squared_gradients
from alpose.trainer.methods.neighbour_weights import by_reconstruction, conditional
from alpose.trainer.methods.options import EglConfig, EmbeddingName, LabelSource
from alpose.trainer.objectives import heatmap_mse
from alpose.trainer.presets import preset
from alpose.trainer.scoring import Scored, score

FEW = EglConfig(neighbours=4, perplexity=3.0, rank=None)


@pytest.fixture(scope="module")
def model(make_model: Callable[..., PoseModel]) -> PoseModel:
    """Two stacks; batch-norm statistics away from their start, as after training."""
    made = make_model(stacks=2, depth=1)
    generator = torch.Generator().manual_seed(0)
    for module in made.pose.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))  # type: ignore[union-attr]
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))  # type: ignore[union-attr]
    return made


@pytest.fixture(scope="module")
def pool(make_crops: Callable[..., Crops]) -> Crops:
    return make_crops(4, seed=1)


@pytest.fixture(scope="module")
def labelled(make_crops: Callable[..., Crops]) -> Crops:
    return make_crops(24, seed=2, unlabelled=0.3)


@pytest.fixture(scope="module")
def scored(model: PoseModel, pool: Crops, labelled: Crops, cpu: DeviceContext) -> tuple[Scored, Scored]:
    return score(model, pool, cpu), score(model, labelled, cpu)


def each_by_itself(pose: nn.Module, image_3HW: Tensor, target_KJHW: Tensor, counts_KJ: Tensor) -> Tensor:
    """Squared gradient norms (K,): the training loss of one image with one label, forward and backward."""
    layers = [module for module in pose.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    norms = []
    for target_JHW, counts_J in zip(target_KJHW, counts_KJ, strict=True):
        pose.zero_grad(set_to_none=True)
        heatmap_mse(pose(image_3HW[None]).heatmaps_BSJHW, target_JHW[None], counts_J[None]).mean().backward()
        parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
        norms.append(sum(float((p.grad**2).sum()) for p in parameters if p.grad is not None))
    pose.zero_grad(set_to_none=True)
    return torch.tensor(norms)


def labels(images: int = 2, count: int = 5, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, targets, which joints count, and weights."""
    generator = torch.Generator().manual_seed(seed)
    weight_BK = torch.rand(images, count, generator=generator, dtype=torch.float64)
    counts_BKJ = torch.rand(images, count, 3, generator=generator) > 0.3
    counts_BKJ[..., 0] = True
    return (torch.rand(images, 3, 64, 64, generator=generator), 10 * torch.rand(images, count, 3, 16, 16, generator=generator),
            counts_BKJ, weight_BK / weight_BK.sum(dim=1, keepdim=True))  # fmt: skip


def test_every_product_is_the_gradient_that_autograd_gives_for_that_label(model: PoseModel) -> None:
    model.pose.eval()
    for one in zip(*labels(), strict=True):
        expected_K = each_by_itself(model.pose, *one[:3]) * one[3]
        np.testing.assert_allclose(squared_gradients(model.pose, *one, None), expected_K, rtol=1e-5)


def test_the_low_rank_form_is_exact_at_full_rank_and_rises_to_it(model: PoseModel) -> None:
    model.pose.eval()
    for one in zip(*labels(), strict=True):
        exact = float((each_by_itself(model.pose, *one[:3]) * one[3]).sum())
        sums = [float(squared_gradients(model.pose, *one, rank).sum()) for rank in (1, 2, 3, 4, 5)]
        assert sums == sorted(sums)
        assert sums[0] > 0.2 * exact
        assert sums[3] > 0.98 * exact
        # Four of five leave something out; five and more take the labels as they are.
        assert sums[3] < exact * (1 - 1e-5)
        assert sums[4] == pytest.approx(exact, rel=1e-5)


def test_principal_directions_carry_the_same_energy() -> None:
    """Without a net: all of them together are as long as the residuals, in every direction."""
    generator = torch.Generator().manual_seed(0)
    residual_KSJHW = torch.randn(6, 2, 3, 4, 4, generator=generator)
    residual_KSJHW[5] = residual_KSJHW[4]  # rank 5: five directions are all there is
    weight_K = torch.rand(6, generator=generator).double()
    probe_P = torch.randn(96, generator=generator)
    exact, low = (egl.cotangents(residual_KSJHW, weight_K, rank).flatten(1) for rank in (None, 5))
    assert low.shape == (5, 96)
    assert float(((low @ probe_P) ** 2).sum()) == pytest.approx(float(((exact @ probe_P) ** 2).sum()), rel=1e-4)
    gram = low @ low.T
    np.testing.assert_allclose(gram - gram.diag().diag(), 0, atol=1e-4)


def test_what_stands_where_nothing_is_labelled_is_not_looked_at(model: PoseModel) -> None:
    model.pose.eval()
    image, target, counts, weight = (part[0] for part in labels())
    before = squared_gradients(model.pose, image, target, counts, weight, 2)
    damaged = target.masked_fill(~counts[:, :, None, None], torch.nan)
    assert torch.equal(squared_gradients(model.pose, image, damaged, counts, weight, 2), before)


@pytest.mark.parametrize("rank", [None, 2])
def test_many_images_at_once_as_on_a_gpu_give_the_same(model: PoseModel, rank: int | None) -> None:
    model.pose.eval()
    rows = labels(images=3)
    alone = torch.stack([squared_gradients(model.pose, *one, rank) for one in zip(*rows, strict=True)])
    together = vmap(lambda *one: squared_gradients(model.pose, one[0], one[1], one[2], one[3], rank))(*rows)
    np.testing.assert_allclose(together, alone, rtol=1e-4)


@pytest.mark.parametrize("embedding", ["coarsest", "penultimate"])
@pytest.mark.parametrize("source", ["truth", "predicted"])
def test_a_pool_is_scored_as_its_definition_says(
    embedding: EmbeddingName, source: LabelSource, model: PoseModel, pool: Crops, labelled: Crops, cpu: DeviceContext,
    scored: tuple[Scored, Scored],
) -> None:  # fmt: skip
    config = replace(FEW, embedding=embedding, labels=source)
    found_N = expected_gradient(model, pool, labelled, *scored, cpu, config)

    here = [s.coarsest_ND if embedding == "coarsest" else s.embedding_ND for s in scored]
    lends = np.flatnonzero(labelled.labelled_NJ.any(axis=1))
    square_NL = torch.cdist(torch.from_numpy(here[0]).double(), torch.from_numpy(here[1][lends]).double()) ** 2
    q_NL = conditional(square_NL, 3.0)[0]
    drawn = draw(to_cells(torch.from_numpy(labelled.joints_NJ2), 4), 16, sigma=1.75, peak=30.0)
    counts = torch.from_numpy(labelled.labelled_NJ)
    pose = model.pose.eval()
    if source == "predicted":
        with torch.no_grad():
            drawn = pose(to_input(torch.from_numpy(labelled.read_bare(np.arange(24))))).heatmaps_BSJHW[:, -1]
        counts = torch.ones_like(counts)
    for row, image in enumerate(to_input(torch.from_numpy(pool.read_bare(np.arange(len(pool)))))):
        nearest = q_NL[row].argsort(descending=True)[:4]
        weight_K = q_NL[row, nearest] / q_NL[row, nearest].sum()
        who = torch.from_numpy(lends)[nearest]
        norm_K = each_by_itself(pose, image, drawn[who], counts[who])
        assert found_N[row] == pytest.approx(float((weight_K * norm_K).sum()), rel=2e-3)


def test_by_locally_linear_embedding_labels_weigh_what_rebuilds_the_embedding(
    model: PoseModel, pool: Crops, labelled: Crops, cpu: DeviceContext, scored: tuple[Scored, Scored]
) -> None:
    found_N = expected_gradient(model, pool, labelled, *scored, cpu, FEW, method="egl++-lle")

    usable = np.flatnonzero(egl.can_be_neighbour(labelled))
    near = by_reconstruction(
        *(torch.from_numpy(s) for s in (scored[0].coarsest_ND, scored[1].coarsest_ND[usable])), count=4
    )
    drawn = draw(to_cells(torch.from_numpy(labelled.joints_NJ2), 4), 16, sigma=1.75, peak=30.0)
    counts, pose = torch.from_numpy(labelled.labelled_NJ), model.pose.eval()
    for row, image in enumerate(to_input(torch.from_numpy(pool.read_bare(np.arange(len(pool)))))):
        who = torch.from_numpy(usable)[near.row_NK[row]]
        norm_K = each_by_itself(pose, image, drawn[who], counts[who])
        assert found_N[row] == pytest.approx(float((near.weight_NK[row] * norm_K).sum()), rel=2e-3)
    assert not np.allclose(found_N, expected_gradient(model, pool, labelled, *scored, cpu, FEW), rtol=1e-3)


def test_without_a_perplexity_only_the_neighbours_have_to_be_there() -> None:
    config = EglConfig(neighbours=10, perplexity=20)
    config.check(10, "egl++-lle")
    with pytest.raises(
        ConfigError, match=r"egl\+\+-lle needs at least 10 .* for 10 neighbours, there are 9 .*neighbours=10,"
    ):
        config.check(9, "egl++-lle")
    with pytest.raises(ConfigError, match=r"egl\+\+ needs at least 21 .* at perplexity 20, there are 10"):
        config.check(10)


def test_the_model_is_left_as_it_was_and_labels_of_the_pool_do_not_matter(
    model: PoseModel, pool: Crops, labelled: Crops, cpu: DeviceContext, scored: tuple[Scored, Scored]
) -> None:
    model.pose.train()
    before = {name: value.clone() for name, value in model.pose.state_dict().items()}
    found = expected_gradient(model, pool, labelled, *scored, cpu, FEW)
    moved = replace(pool, joints_NJ2=63 - pool.joints_NJ2)
    again = expected_gradient(model, moved, labelled, *scored, cpu, FEW)

    np.testing.assert_array_equal(found, again)
    assert all(module.training for module in model.pose.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.pose.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.pose.parameters())


def test_someone_without_a_joint_in_view_is_nobodys_neighbour(
    model: PoseModel, pool: Crops, labelled: Crops, cpu: DeviceContext, scored: tuple[Scored, Scored]
) -> None:
    joints = labelled.joints_NJ2.copy()
    joints[[0, 5]] = -20.0
    out_of_view = replace(labelled, joints_NJ2=joints)
    assert not egl.can_be_neighbour(out_of_view)[[0, 5]].any()
    others = np.flatnonzero(egl.can_be_neighbour(out_of_view))
    found = expected_gradient(model, pool, out_of_view, *scored, cpu, FEW)
    without = expected_gradient(model, pool, labelled.subset(others), scored[0], scored[1].take(others), cpu, FEW)
    np.testing.assert_array_equal(found, without)


def test_damage_is_refused_by_name(
    model: PoseModel, pool: Crops, labelled: Crops, cpu: DeviceContext, scored: tuple[Scored, Scored]
) -> None:
    damaged = scored[0].coarsest_ND.copy()
    damaged[2, 0] = np.nan
    with pytest.raises(DataError, match=r"embeddings of the pool are not finite \(first at row 2\)"):
        expected_gradient(model, pool, labelled, replace(scored[0], coarsest_ND=damaged), scored[1], cpu, FEW)
    with pytest.raises(ConfigError, match="want at least 30 labelled people"):
        expected_gradient(model, pool, labelled, *scored, cpu)


def test_options_are_read_from_the_command_line() -> None:
    assert EglConfig.parse("") == EglConfig()
    assert EglConfig.parse(
        "labels=predicted, embedding=penultimate,neighbours=10,perplexity=7.5,rank=exact"
    ) == EglConfig(labels="predicted", embedding="penultimate", neighbours=10, perplexity=7.5, rank=None)
    for text in (
        "rank",
        "rank=many",
        "k=3",
        "rank=0",
        "labels=mine",
        "rank=2,rank=3",
        "perplexity=1",
        "neighbours=2.5",
    ):
        with pytest.raises(ConfigError, match=r"egl"):
            EglConfig.parse(text)


def cycles_config(**changes: Any) -> RunConfig:
    return RunConfig.from_preset("smoke", "synthetic", **{"methods": ("egl++",), "select_only": True, **changes})


def test_too_few_lenders_are_refused_before_training(
    tmp_path: Path, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_dataset("synthetic", None, sizes=preset("smoke").sizes)
    labelled_NJ = whole.train.labelled_NJ.copy()
    labelled_NJ[:3] = False  # of 32 labelled at the start
    people = replace(whole.train, labelled_NJ=labelled_NJ, visible_NJ=labelled_NJ & whole.train.visible_NJ)
    monkeypatch.setattr(run_module, "open_dataset", lambda *_, **__: replace(whole, train=people))
    with pytest.raises(ConfigError, match=r"egl\+\+ needs at least 30 labelled people.*there are 29.*--initial"):
        run_benchmark(cycles_config(), tmp_path, cpu, data_root=None, cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("model.json"))


def test_a_run_selects_the_highest_and_scores_of_an_older_version_are_made_again(
    tmp_path: Path, cpu: DeviceContext
) -> None:
    few = cycles_config(egl=replace(FEW, rank=1))
    results = run_benchmark(few, tmp_path / "run", cpu, data_root=None, cache=tmp_path / "cache")

    base = tmp_path / "run/seed-0/base"
    stored = Scores.load(tmp_path / "run/seed-0/egl++/stage-1/scores.npz")
    assert stored.selected_M.tolist() == np.argsort(-stored.score_N, kind="stable")[:16].tolist()
    people = prepare(open_dataset("synthetic", None, sizes=few.sizes).train, few.recipe.crop, tmp_path / "cache")
    everyone = Scored.from_arrays(
        {k: v for k, v in load_npz(base / "scored.npz").items() if k not in ("made_of", "seconds")}
    )
    first, rest = np.arange(32), np.arange(32, 96)
    expected = expected_gradient(checkpoint.load(base), people.subset(rest), people.subset(first), everyone.take(rest),
                                 everyone.take(first), cpu, few.egl)  # fmt: skip
    np.testing.assert_array_equal(stored.score_N, expected)

    older = load_npz(base / "scored.npz")
    del older["coarsest_ND"]
    save_npz(base / "scored.npz", older)
    (tmp_path / "run/seed-0/egl++/stage-1/row.json").unlink()
    again = run_benchmark(few, tmp_path / "run", cpu, data_root=None, cache=tmp_path / "cache")
    assert replace(again.rows[0], score_seconds=0.0) == replace(results.rows[0], score_seconds=0.0)
