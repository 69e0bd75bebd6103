"""Objectives and scores of the auxiliary heads by hand, by brute force, and against the defects they are free of."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alpose.runtime.errors import CheckpointError, ConfigError
from alpose.runtime.skeleton import COCO, LSP, MPII, Skeleton
from alpose.trainer import checkpoint
from alpose.trainer.checkpoint import PoseModel, new_auxiliary
from alpose.trainer.cycles import run as run_module
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.run import RunConfig
from alpose.trainer.data.catalog import Sizes, open_dataset
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.heatmaps import draw
from alpose.trainer.methods.catalog import heads_of
from alpose.trainer.methods.committee import bootstrap_weights, committee_loss, disagreement
from alpose.trainer.methods.gaussian_heads import aleatoric_loss, find_peaks, link_loss, skeleton_likelihood
from alpose.trainer.models.auxiliary import AuxiliaryConfig, tree_of
from alpose.trainer.models.hourglass import Features
from alpose.trainer.presets import preset
from alpose.trainer.training import HeadsHow, HeadTraining, train_heads

AUXILIARY = heads_of("auxiliary")
MakeModel = Callable[..., PoseModel]
MakeCrops = Callable[..., Crops]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- The tree


def test_the_tree_of_lsp_and_mpii_is_the_published_one() -> None:
    """REFERENCE.md, 1.12: 13 and 15 links; LSP's ring over the hips is cut at the hips, as there."""

    def names(skeleton: Skeleton) -> set[tuple[str, str]]:
        return {(skeleton.joints[a], skeleton.joints[b]) for a, b in tree_of(skeleton)}

    sides = [{("neck", f"{s}_shoulder"), (f"{s}_shoulder", f"{s}_elbow"), (f"{s}_elbow", f"{s}_wrist"),
              (f"{s}_shoulder", f"{s}_hip"), (f"{s}_hip", f"{s}_knee"), (f"{s}_knee", f"{s}_ankle")}
             for s in ("left", "right")]  # fmt: skip
    assert names(LSP) == {("head_top", "neck")} | sides[0] | sides[1]
    assert len(tree_of(MPII)) == 15
    assert ("thorax", "pelvis") in names(MPII)


@pytest.mark.parametrize("skeleton", [LSP, MPII, COCO], ids=lambda s: s.name)
def test_a_tree_reaches_every_joint_once_and_parents_come_first(skeleton: Skeleton) -> None:
    links = tree_of(skeleton)
    known = {parent for parent, _ in links} - {child for _, child in links}

    assert len(known) == 1
    for parent, child in links:
        assert parent in known
        assert child not in known
        assert (parent, child) in skeleton.links or (child, parent) in skeleton.links
        known.add(child)
    assert known == set(range(len(skeleton)))


def test_joints_that_nothing_connects_are_trees_of_their_own() -> None:
    apart = Skeleton("apart", ("a", "b", "c", "d", "e"), ((3, 2), (0, 1), (2, 2)), ())

    assert tree_of(apart) == ((0, 1), (2, 3))


# --- Objectives


def test_the_aleatoric_likelihood_is_that_of_a_gaussian_of_the_plane() -> None:
    log_variance, residual = torch.tensor([[0.5]], dtype=torch.float64), torch.tensor([[[3.0, 4.0]]]).double()
    counts = torch.tensor([[True]])
    normal = torch.distributions.Normal(torch.zeros(2).double(), math.exp(0.25))

    ours = aleatoric_loss(log_variance, residual, counts)

    assert float(ours) == pytest.approx(12.5 * math.exp(-0.5) + 0.5)
    assert float(ours) + math.log(2 * math.pi) == pytest.approx(-float(normal.log_prob(residual[0, 0]).sum()))


def _newton(loss: Callable[[Tensor], Tensor]) -> float:
    s = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    for _ in range(60):
        (slope,) = torch.autograd.grad(loss(s), s, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), s)
        s = (s - slope.detach() / bend).detach().requires_grad_()
    return float(s.detach())


def test_official_aleatoric_puts_the_variance_of_the_plane_on_one_axis() -> None:
    """REFERENCE.md, 1.11: 0.5 s in place of s; the best variance is |r|², twice the variance per axis."""
    residual, counts = torch.tensor([[[3.0, 4.0]]]).double(), torch.tensor([[True]])

    assert _newton(lambda s: aleatoric_loss(s[None], residual, counts)) == pytest.approx(math.log(25 / 2))
    official = _newton(lambda s: aleatoric_loss(s[None], residual, counts, official=True))
    assert official == pytest.approx(math.log(25))


def test_a_link_is_as_likely_as_a_gaussian_says() -> None:
    said = torch.tensor([[[7.0, 0.8]]]).double()
    length, counts = torch.tensor([[9.5]]).double(), torch.tensor([[True]])
    normal = torch.distributions.Normal(torch.tensor(7.0).double(), math.exp(0.4))

    loss = float(link_loss(said, length, counts))

    assert loss == pytest.approx(0.5 * 2.5**2 * math.exp(-0.8) + 0.4)
    assert loss + 0.5 * math.log(2 * math.pi) == pytest.approx(-float(normal.log_prob(length)))


def test_absent_joints_weigh_nothing_and_dilute_the_official_mean() -> None:
    """REFERENCE.md, 1.11 and 1.12: the official mean divides by all, so that three absent of four make a quarter."""
    counts = torch.tensor([[True, False], [False, False]])
    s, residual = rand(2, 2), rand(2, 2, 2, seed=1)
    said, length = rand(2, 2, 2, seed=2), rand(2, 2, seed=3)
    residual[~counts], length[~counts] = torch.nan, torch.inf
    one = torch.tensor([[True]])

    for loss, alone in (
        (aleatoric_loss(s, residual, counts), aleatoric_loss(s[:1, :1], residual[:1, :1], one)),
        (link_loss(said, length, counts), link_loss(said[:1, :1], length[:1, :1], one)),
    ):
        assert float(loss) == pytest.approx(float(alone))
    official = link_loss(said, length, counts, official=True)
    assert float(official) == pytest.approx(float(link_loss(said, length, counts)) / 4)
    assert float(aleatoric_loss(s, residual, torch.zeros_like(counts))) == 0.0


def test_disagreement_is_the_mean_distance_between_two_members() -> None:
    """By hand: of joint 0 the members see (10, 10), (13, 14) and (10, 10), of joint 1 all the same."""
    where = torch.full((1, 3, 2, 2), 20.3)
    where[0, :, 0] = torch.tensor([[10.0, 10.0], [13.0, 14.0], [10.0, 10.0]])
    maps = draw(where.flatten(0, 1), 32, sigma=1.75, peak=30.0).unflatten(0, (1, 3))

    assert float(disagreement(maps)) == pytest.approx((5 + 5 + 0) / 3 / 2, rel=1e-3)
    # However high a member draws its bells.
    louder = maps * torch.tensor([1.0, 0.1, 4.0])[:, None, None, None]
    torch.testing.assert_close(disagreement(louder), disagreement(maps), rtol=1e-3, atol=1e-4)


def test_a_member_learns_from_its_own_resample() -> None:
    maps, truth, counts = rand(2, 2, 1, 4, 4), rand(2, 1, 4, 4, seed=1), torch.ones(2, 1, dtype=torch.bool)
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    error = ((maps - truth[:, None]) ** 2).mean(dim=(2, 3, 4)).float()

    expected = (2 * error[0, 0] + error[1, 1]) / 4
    assert float(committee_loss(maps, truth, counts, weight)) == pytest.approx(float(expected), rel=1e-5)


def test_resamples_are_poisson_and_stay_with_their_person() -> None:
    ids = tuple(f"person/{n}" for n in range(4000))
    weight_BK = bootstrap_weights(ids, 3, seed=5)

    torch.testing.assert_close(weight_BK[100:120], bootstrap_weights(ids[100:120], 3, seed=5))
    for count in range(4):
        expected = math.exp(-1) / math.factorial(count)
        share = float((weight_BK == count).float().mean())
        assert share == pytest.approx(expected, abs=5 * math.sqrt(expected / 12_000))
    assert abs(float(torch.corrcoef(weight_BK.T)[0, 1])) < 5 / math.sqrt(4000)


# --- Peaks


def test_peaks_are_found_with_their_weights() -> None:
    where = torch.tensor([[[10.0, 20.0], [40.0, 30.0]]])
    maps = draw(where[:, :1], 64, sigma=1.75, peak=30.0) + draw(where[:, 1:], 64, sigma=1.75, peak=29.0)

    cells, log_weight = find_peaks(maps, 3, min_distance=8)

    assert cells[0, 0, :2].tolist() == [[10.0, 20.0], [40.0, 30.0]]
    assert float(log_weight[0, 0, 0].exp()) == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-3)
    torch.testing.assert_close(log_weight.exp().sum(dim=2), torch.ones(1, 1))


@pytest.mark.parametrize("exclude_border", [False, True])
def test_a_map_without_peaks_is_judged_by_its_highest_cell(exclude_border: bool) -> None:
    """REFERENCE.md, 1.12: the official code stops on a flat map and on a person whose joint is cut off."""
    maps = torch.zeros(1, 3, 64, 64)
    maps[0, 1] = draw(torch.tensor([[[61.0, 33.0]]]), 64, sigma=1.75, peak=30.0)[0, 0]
    maps[0, 2] = -5.0

    cells, log_weight = find_peaks(maps, 4, min_distance=8, exclude_border=exclude_border)

    assert cells[0, :, 0].tolist() == [[0.0, 0.0], [61.0, 33.0], [0.0, 0.0]]
    assert log_weight[0, [0, 2], 0].tolist() == [0.0, 0.0]
    said = torch.tensor([[[30.0, 1.0], [30.0, 1.0]]])
    for over in ("expected", "official-sum"):
        assert torch.isfinite(skeleton_likelihood(cells, log_weight, said, ((0, 1), (1, 2)), over=over)).all()


# --- VL4Pose's likelihood


def random_person(joints: int, peaks: int, links: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    cells = 20 * rand(2, joints, peaks, 2, seed=seed)
    log_weight = torch.log_softmax(3 * rand(2, joints, peaks, seed=seed + 1), dim=2)
    said = torch.stack([15 * rand(2, links, seed=seed + 2), 4 * rand(2, links, seed=seed + 3)], dim=2)
    return cells, log_weight, said


LINKS = ((2, 0), (2, 3), (3, 1), (3, 4))


def choices(cells: Tensor, log_weight: Tensor, said: Tensor, links: Any) -> list[float]:
    """Log-likelihood of every choice of one peak per joint, of the first person, in a plain loop."""
    found = []
    for chosen in itertools.product(range(cells.shape[2]), repeat=cells.shape[1]):
        total = sum(float(log_weight[0, joint, peak]) for joint, peak in enumerate(chosen))
        for (parent, child), (mean, log_variance) in zip(links, said[0].tolist(), strict=True):
            d = math.dist(cells[0, parent, chosen[parent]].tolist(), cells[0, child, chosen[child]].tolist())
            total -= 0.5 * (math.log(2 * math.pi) + log_variance + (mean - d) ** 2 * math.exp(-log_variance))
        found.append(total)
    return found


def test_the_expected_likelihood_is_the_sum_over_every_choice_of_peaks() -> None:
    person = random_person(5, 3, 4)
    every = choices(*person, LINKS)

    assert len(every) == 3**5
    assert float(skeleton_likelihood(*person, LINKS)[0]) == pytest.approx(np.logaddexp.reduce(every))


def test_it_does_not_depend_on_the_root() -> None:
    cells, log_weight, said = random_person(5, 3, 4)
    turned = ((0, 2), (2, 3), (3, 1), (3, 4))
    mine = (cells, log_weight, said)

    torch.testing.assert_close(skeleton_likelihood(*mine, turned), skeleton_likelihood(*mine, LINKS))


def test_with_one_peak_both_forms_are_the_likelihood_of_the_pose() -> None:
    """By hand: lengths 5 and 2, means 4 and 2, log-variances 0 and ln 4."""
    cells = torch.tensor([[[[0.0, 0.0]], [[3.0, 4.0]], [[3.0, 6.0]]]])
    said = torch.tensor([[[4.0, 0.0], [2.0, math.log(4)]]])
    by_hand = -0.5 * (math.log(2 * math.pi) + 1) - 0.5 * (math.log(2 * math.pi) + math.log(4))

    for over in ("expected", "official-sum"):
        found = skeleton_likelihood(cells, torch.zeros(1, 3, 1), said, ((0, 1), (1, 2)), over=over)
        assert float(found) == pytest.approx(by_hand, rel=1e-6)


def test_official_sum_falls_with_every_peak_and_the_expectation_does_not() -> None:
    """REFERENCE.md, 1.12: a sum of log-likelihoods over peaks, by hand for one link of which one end has two peaks."""
    cells = torch.tensor([[[[0.0, 0.0], [0.0, 0.0]], [[3.0, 4.0], [0.0, 9.0]]]]).double()
    said = torch.tensor([[[5.0, 0.0]]]).double()
    tiny = math.log(1e-9)
    two = torch.tensor([[[0.0, -math.inf], [math.log1p(-1e-9), tiny]]]).double()
    one = torch.tensor([[[0.0, -math.inf], [0.0, -math.inf]]]).double()

    def said_of(log_weight: Tensor, over: Any) -> float:
        return float(skeleton_likelihood(cells, log_weight, said, ((0, 1),), over=over))

    half = 0.5 * math.log(2 * math.pi)
    assert said_of(one, "official-sum") == pytest.approx(-half)
    assert said_of(two, "official-sum") == pytest.approx(-half + (-half - 0.5 * 4**2 + tiny), rel=1e-6)
    assert said_of(two, "expected") == pytest.approx(said_of(one, "expected"), abs=1e-8)


# --- Heads in a model


@pytest.fixture
def model(make_model: MakeModel) -> PoseModel:
    plain = make_model(seed=3)
    return plain.with_auxiliary({name: new_auxiliary(plain, name, 0) for name in AUXILIARY})


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_heads_say_what_their_scores_need(model: PoseModel) -> None:
    for batch in (1, 3):
        output = model.pose.eval()(rand(batch, 3, 64, 64).float())
        shapes = {name: tuple(head(output.features).shape) for name, head in model.auxiliary.items()}
        assert shapes == {
            "aleatoric": (batch, 3), "aleatoric-official": (batch, 3), "vl4pose": (batch, 2, 2),
            "vl4pose-official": (batch, 2, 2), "ensemble": (batch, 5, 3, 16, 16),
        }  # fmt: skip


def test_log_variances_and_lengths_stay_usable_however_large_the_features_are(model: PoseModel) -> None:
    output = model.pose.eval()(rand(2, 3, 64, 64).float())
    huge = Features(tuple(1e12 * scale for scale in output.features.pyramid), 1e12 * output.features.penultimate_BCHW)

    for name in ("aleatoric", "vl4pose"):
        head = model.auxiliary[name]
        said = head(huge)
        assert torch.isfinite(torch.exp(-(said if name == "aleatoric" else said[..., 1]))).all()
    assert (model.auxiliary["vl4pose"](huge)[..., 0] >= 0).all()


def test_vl4pose_finds_the_lengths_of_links(make_model: MakeModel, make_crops: MakeCrops, cpu: DeviceContext) -> None:
    """A pool of one length: its mean is learnt and its variance falls."""
    plain, crops = make_model(seed=3), make_crops(24)
    crops.joints_NJ2[:] = np.array([[20, 20], [44, 20], [32, 52]], dtype=np.float32)
    head = new_auxiliary(plain, "vl4pose", 0)
    still = HeadTraining(epochs=40, batch=8, lr=4e-3, augment=replace(HeadTraining().augment, rotation_deg=0, scale=0,
                                                                     shift=0, flip=0))  # fmt: skip
    train_heads(plain, {"vl4pose": head}, crops, still, cpu, seed=0, validation=0.1)

    said = head(plain.pose.eval()(rand(2, 3, 64, 64).float()).features)
    true = math.hypot(12, 32) / 4
    assert said[..., 0].mean().item() == pytest.approx(true, abs=0.5)
    assert said[..., 1].mean().item() < 0.0


# --- Checkpoints


def test_a_checkpoint_without_them_has_the_files_it_always_had(model: PoseModel, tmp_path: Path) -> None:
    bare = replace(model, auxiliary={})
    checkpoint.save(bare, tmp_path)

    assert "auxiliary" not in json.loads((tmp_path / "model.json").read_text())
    assert checkpoint.load(tmp_path).auxiliary == {}


@pytest.mark.parametrize("damage", [[], {"vl4pose": {"name": "vl4pose"}}, {"vl5pose": None}], ids=str)
def test_damaged_facts_of_auxiliary_heads_are_an_error(damage: Any, model: PoseModel, tmp_path: Path) -> None:
    checkpoint.save(model, tmp_path)
    facts = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**facts, "auxiliary": damage}))

    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path)


# --- In a benchmark


def config(*methods: str, how: HeadsHow) -> RunConfig:
    recipe = preset("smoke").recipe
    return RunConfig.from_preset("smoke", "synthetic", recipe=replace(recipe, heads=replace(recipe.heads, how=how)),
                                 methods=methods, stages=1, budget=8, sizes=Sizes(initial=32, pool=24, test=8))  # fmt: skip


@pytest.mark.parametrize("how", ["frozen", "joint"])
def test_methods_added_later_leave_the_pose_net_and_the_rows_as_they_were(
    how: HeadsHow, tmp_path: Path, cpu: DeviceContext
) -> None:
    """Also where loss heads learn beside the pose net: auxiliary heads never do."""
    go = {"folder": tmp_path / "run", "machine": cpu, "data_root": None, "cache": tmp_path / "cache"}
    before = run_benchmark(config("ll++", how=how), **go)  # type: ignore[arg-type]
    pose = state(checkpoint.load(tmp_path / "run/seed-0/base").pose)
    after = run_benchmark(config("ll++", "vl4pose", "ensemble", how=how), **go)  # type: ignore[arg-type]

    base = checkpoint.load(tmp_path / "run/seed-0/base")
    assert equal(state(base.pose), pose)
    assert (set(base.heads), set(base.auxiliary)) == ({"ll++"}, {"vl4pose", "ensemble"})
    assert set(base.facts["auxiliary_losses"]) == {"vl4pose", "ensemble"}
    assert [row for row in after.rows if row.method == "ll++"] == list(before.rows)
    assert [row.method for row in after.rows] == ["ll++", "vl4pose", "ensemble"]
    # A stage's model has the head of its own method, trained on its own features.
    trained = checkpoint.load(tmp_path / "run/seed-0/vl4pose/stage-1/model")
    assert (set(trained.heads), set(trained.auxiliary)) == (set(), {"vl4pose"})
    assert not equal(state(trained.auxiliary["vl4pose"]), state(base.auxiliary["vl4pose"]))


# --- What cannot be


def test_mc_dropout_is_refused_with_its_reason() -> None:
    with pytest.raises(ConfigError, match=r"there is no mc-dropout: .* no net here has dropout"):
        config("mc-dropout", how="frozen")


def test_vl4pose_without_links_is_refused_before_training(
    tmp_path: Path, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_dataset("synthetic", None, sizes=Sizes(initial=32, pool=24, test=8))
    bare = replace(whole.train.skeleton, links=())
    people, test = replace(whole.train, skeleton=bare), replace(whole.test, skeleton=bare)
    monkeypatch.setattr(run_module, "open_dataset", lambda *_, **__: replace(whole, train=people, test=test))

    with pytest.raises(ConfigError, match=r"vl4pose judges the lengths of links.*--methods"):
        run_benchmark(config("vl4pose", how="frozen"), tmp_path, cpu, data_root=None, cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("model.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "bald"}, "bald"),
        ({"widths": (8,)}, "scales want as many widths"),
        ({"links": ((0, 1), (2, 1))}, "no tree"),
        ({"links": ((1, 2), (0, 1))}, "no tree"),
        ({"links": ((0, 3),)}, "no tree"),
        ({"links": ()}, "the skeleton has none"),
        ({"members": 1}, "disagree"),
        ({"peak": 0.0}, "peak"),
    ],
    ids=str,
)
def test_an_impossible_head_is_an_error(changes: dict[str, Any], message: str) -> None:
    plain: dict[str, Any] = {
        "name": "vl4pose",
        "widths": (8, 8),
        "sizes": (16, 8),
        "joints": 3,
        "links": ((0, 1), (0, 2)),
    }
    with pytest.raises(ConfigError, match=message):
        AuxiliaryConfig(**{**plain, **changes})
