from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from alpose.runtime.errors import CheckpointError, ConfigError
from alpose.trainer import training, training_state
from alpose.trainer.checkpoint import PoseModel, load, new_head
from alpose.trainer.cycles.results import Results
from alpose.trainer.data.augment import AugmentConfig, augment
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext
from alpose.trainer.heatmaps import draw, to_cells
from alpose.trainer.methods.catalog import KL_LOSS, MARGIN_LOSS, trained_with
from alpose.trainer.models.heads import LossHead
from alpose.trainer.objectives import Pairing, heatmap_mse, margin_ranking, pair_kl, true_loss
from alpose.trainer.training import HeadTraining, PoseTraining, train_heads, train_pose, validation_mask
from alpose.trainer.training_state import Epoch, Schedule, discard

HEADS = (*trained_with(MARGIN_LOSS), *trained_with(KL_LOSS))
MakeCrops = Callable[..., Crops]
MakeModel = Callable[..., PoseModel]

SHORT = PoseTraining(epochs=3, batch=5, lr=1e-3, schedule="constant")
STILL = AugmentConfig(rotation_deg=0, scale=0, shift=0, flip=0, colour=0)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return any(not torch.equal(one[key], other[key]) for key in one)


def some_heads(model: PoseModel, *names: str, seed: int = 0) -> dict[str, LossHead]:
    return {name: new_head(model, name, seed) for name in names}


@pytest.fixture
def crops(make_crops: MakeCrops) -> Crops:
    return make_crops(14, unlabelled=0.2)


def spoil(crops: Crops, rows_N: Any) -> Crops:
    """The same people with other pixels and joints in these rows."""
    pixels, joints = crops.pixels_NTS3.copy(), crops.joints_NJ2.copy()
    pixels[rows_N] = 255 - pixels[rows_N]
    joints[rows_N] = 63 - joints[rows_N]
    return replace(crops, pixels_NTS3=pixels, joints_NJ2=joints)


# --- Validation split


def ids(count: int) -> tuple[str, ...]:
    return tuple(f"lsp/im{row:05d}" for row in range(count))


def test_a_person_keeps_its_side_while_the_set_grows() -> None:
    many = validation_mask(ids(500), 0.1, 3)

    np.testing.assert_array_equal(validation_mask(ids(300), 0.1, 3), many[:300])
    order = np.random.default_rng(0).permutation(500)
    shuffled = tuple(ids(500)[row] for row in order)
    np.testing.assert_array_equal(validation_mask(shuffled, 0.1, 3), many[order])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_validation_share_is_kept(share: float) -> None:
    """Binomial: five standard deviations."""
    found = int(validation_mask(ids(4000), share, 0).sum())

    assert abs(found - 4000 * share) < 5 * math.sqrt(4000 * share * (1 - share))


def test_another_seed_validates_by_other_people() -> None:
    assert (validation_mask(ids(500), 0.1, 0) != validation_mask(ids(500), 0.1, 1)).any()


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.01, 0.1, 0.89])
def test_a_handful_of_people_has_both_sides(count: int, seed: int, share: float) -> None:
    mask_N = validation_mask(ids(count), share, seed)

    assert mask_N.any()
    assert not mask_N.all()


def test_people_who_validate_never_train_the_pose_net(crops: Crops, make_model: MakeModel, cpu: DeviceContext) -> None:
    config = replace(SHORT, epochs=1, validation=0.3)
    valid_N = validation_mask(crops.data.ids, 0.3, 0)
    ends = []
    for given in (crops, spoil(crops, valid_N), spoil(crops, np.flatnonzero(~valid_N)[:1])):
        model = make_model()
        history = train_pose(model, given, config, cpu, seed=0)
        ends.append((weights(model.pose), history[0].validation_loss))

    assert_same(ends[0][0], ends[1][0])
    assert ends[0][1] != ends[1][1]  # they were looked at
    assert differ(ends[0][0], ends[2][0])


# --- The pose net


@pytest.fixture(scope="module")
def learnt(make_crops: MakeCrops, make_model: MakeModel, cpu: DeviceContext) -> tuple[PoseModel, tuple[Epoch, ...]]:
    """A net that was trained on eight people, and what it had to say."""
    model = make_model(channels=16, depth=2)
    config = PoseTraining(epochs=20, batch=6, lr=3e-2, schedule="one-cycle", augment=STILL)
    return model, train_pose(model, make_crops(8), config, cpu, seed=0)


def test_a_few_images_can_be_learnt(learnt: tuple[PoseModel, tuple[Epoch, ...]]) -> None:
    model, history = learnt

    assert [epoch.epoch for epoch in history] == list(range(20))
    assert history[-1].train_loss < 0.5 * history[0].train_loss
    assert not model.pose.training


def test_training_follows_its_seed_and_no_other_random_numbers(
    crops: Crops, make_model: MakeModel, cpu: DeviceContext
) -> None:
    ends = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        model = make_model()
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002 - the global state is what must not matter
        ends.append((train_pose(model, crops, SHORT, cpu, seed=seed), weights(model.pose)))

    assert ends[0][0] == ends[1][0]
    assert_same(ends[0][1], ends[1][1])
    assert differ(ends[0][1], ends[2][1])


def test_a_training_is_the_plain_loop_to_the_last_bit(crops: Crops, make_model: MakeModel, cpu: DeviceContext) -> None:
    """The slow twin: each step written out, for the pose net and a head of each objective beside it."""
    config, how = replace(SHORT, epochs=2, augment=AugmentConfig()), HeadTraining(how="joint", margin=0.5)
    found, plain = make_model(stacks=2), make_model(stacks=2)
    heads, plain_heads = some_heads(found, "ll", "ll++conv"), some_heads(plain, "ll", "ll++conv")
    train_pose(found, crops, config, cpu, seed=3, heads=heads, head_config=how, best=False)

    people = crops.subset(np.flatnonzero(~validation_mask(crops.data.ids, config.validation, 3)))
    plain.to(cpu.device).pose.train()
    optimiser = torch.optim.AdamW(plain.pose.parameters(), config.lr, weight_decay=0.0, fused=True)
    head_optimisers = {
        name: torch.optim.Adam(head.parameters(), how.lr, fused=True) for name, head in plain_heads.items()
    }
    for epoch in range(2):
        digest = hashlib.sha256(f"3/augment/{epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        for rows_B in training.batches_of(len(people), config.batch, 3, epoch):
            images, joints, counts = augment(
                torch.from_numpy(people.read(rows_B)), torch.from_numpy(people.joints_NJ2[rows_B]),
                torch.from_numpy(people.labelled_NJ[rows_B]), shape_px=(64, 64), flip_order=plain.skeleton.flip_order(),
                config=config.augment, generator=generator,
            )  # fmt: skip
            target = draw(to_cells(joints, 4), 16, sigma=plain.target.sigma, peak=plain.target.peak)
            output = plain.pose(images.contiguous(memory_format=torch.channels_last))
            optimiser.zero_grad()
            heatmap_mse(output.heatmaps_BSJHW, target, counts).mean().backward()
            optimiser.step()
            seen_B = counts.any(dim=1)
            true_M = true_loss(output.heatmaps_BSJHW, target, counts)[seen_B]
            for name, head in plain_heads.items():
                predicted_M = head(output.features.detached())[seen_B]
                loss = margin_ranking(predicted_M, true_M, margin=0.5) if name == "ll" else pair_kl(predicted_M, true_M)
                head_optimisers[name].zero_grad()
                loss.backward()
                head_optimisers[name].step()

    assert_same(weights(found.pose), weights(plain.pose))
    for name, head in heads.items():
        assert_same(weights(head), weights(plain_heads[name]))


def test_an_epoch_shows_full_batches_of_different_people_in_an_order_of_its_own() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        batches = list(training.batches_of(23, 5, seed, epoch))
        assert [len(rows_B) for rows_B in batches] == [5] * 4
        orders.append(np.concatenate(batches).tolist())
        assert len(set(orders[-1])) == 20

    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # Nobody is left out for good: three miss an epoch, another three the next.
    assert len({row for epoch in range(8) for rows_B in training.batches_of(23, 5, 0, epoch) for row in rows_B}) == 23


@pytest.mark.parametrize("what", ["pose", "heads"])
def test_every_step_of_every_epoch_sees_new_views(
    what: str, crops: Crops, make_model: MakeModel, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []

    def recorded(pixels: Tensor, joints: Tensor, *rest: Tensor, generator: torch.Generator, **how: Any) -> Any:
        # The random numbers that the views will be made of.
        seen.append(torch.rand(4, generator=generator.clone_state()))
        return augment(pixels, joints, *rest, generator=generator, **how)

    monkeypatch.setattr(training, "augment", recorded)
    model = make_model()
    if what == "pose":
        train_pose(model, crops, SHORT, cpu, seed=0)
    else:
        train_heads(model, some_heads(model, "ll"), crops, HeadTraining(epochs=3, batch=5), cpu, seed=0, validation=0.1)

    assert len(seen) == 6
    assert len({tuple(drawn.tolist()) for drawn in seen}) == 6


def test_the_epoch_with_the_lowest_validation_loss_wins(
    crops: Crops, make_model: MakeModel, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss: Iterator[float]
    monkeypatch.setattr(training, "validation_loss", lambda *_: next(loss))
    two, three = make_model(), make_model()
    loss = iter([3.0, 1.0])
    train_pose(two, crops, replace(SHORT, epochs=2), cpu, seed=0)
    loss = iter([3.0, 1.0, 2.0])
    history = train_pose(three, crops, SHORT, cpu, seed=0)

    assert [epoch.validation_loss for epoch in history] == [3.0, 1.0, 2.0]
    assert_same(weights(three.pose), weights(two.pose))


def test_the_rate_halves_on_a_plateau_of_nine_epochs(
    make_crops: MakeCrops, make_model: MakeModel, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch sets the mark; eight more without a better one are borne, the ninth halves."""
    monkeypatch.setattr(training, "validation_loss", lambda *_: 1.0)
    config = PoseTraining(epochs=11, batch=4, lr=1e-3, schedule="plateau")

    history = train_pose(make_model(), make_crops(5), config, cpu, seed=0)

    assert [epoch.lr for epoch in history] == [1e-3] * 9 + [5e-4] * 2


def test_a_step_reads_no_number_back_from_the_device(
    make_crops: MakeCrops, make_model: MakeModel, cpu: DeviceContext
) -> None:
    """Each would make a GPU wait: there are as many in two steps as in six."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if op in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                self.count += 1
            return op(*args, **(kwargs or {}))

    counts = []
    for people in (10, 26):
        validates_N = np.arange(people) < 2
        with Reads() as reads:  # type: ignore[no-untyped-call]
            train_pose(
                make_model(), make_crops(people), PoseTraining(epochs=1, batch=4), cpu, seed=0, validates_N=validates_N
            )
        counts.append(reads.count)

    assert counts[0] == counts[1]


@pytest.mark.parametrize(("how", "mode"), [(True, None), ("reduce-overhead", "reduce-overhead")])
def test_a_net_is_compiled_in_the_mode_that_is_asked_for(
    how: Any, mode: str | None, crops: Crops, make_model: MakeModel, cpu: DeviceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def compile_(net: torch.nn.Module, mode: str | None) -> torch.nn.Module:
        asked.append(mode)
        return net

    monkeypatch.setattr(torch, "compile", compile_)
    plain, fast = make_model(), make_model()
    train_pose(plain, crops, SHORT, cpu, seed=0)
    train_pose(fast, crops, replace(SHORT, compile=how), cpu, seed=0)

    assert asked == [mode]
    assert_same(weights(plain.pose), weights(fast.pose))


@pytest.mark.parametrize("count", [2, 4])
def test_fewer_people_than_a_batch_still_train(
    count: int, make_crops: MakeCrops, make_model: MakeModel, cpu: DeviceContext
) -> None:
    """A net of depth 1 keeps more than one cell: batch norm cannot train on a single number."""
    model = make_model(depth=1)
    before = weights(model.pose)
    train_pose(model, make_crops(count), replace(SHORT, epochs=1), cpu, seed=0)

    assert differ(before, weights(model.pose))


def test_one_person_cannot_both_train_and_validate(
    make_crops: MakeCrops, make_model: MakeModel, cpu: DeviceContext
) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match="1 labelled"):
        train_pose(model, make_crops(1), SHORT, cpu, seed=0)
    with pytest.raises(ConfigError, match="1 labelled"):
        train_heads(model, some_heads(model, "ll"), make_crops(1), HeadTraining(), cpu, seed=0, validation=0.1)


def test_training_does_not_edit_labels_or_pixels(crops: Crops, make_model: MakeModel, cpu: DeviceContext) -> None:
    before = copy.deepcopy(
        (crops.joints_NJ2, crops.labelled_NJ, crops.pixels_NTS3, crops.data.joints_NJ2, crops.data.visible_NJ)
    )
    model = make_model()
    heads = some_heads(model, "ll", "ll++conv")
    train_pose(model, crops, SHORT, cpu, seed=0, heads=heads)
    train_heads(model, heads, crops, HeadTraining(epochs=1, batch=5), cpu, seed=0, validation=0.1)

    after = (crops.joints_NJ2, crops.labelled_NJ, crops.pixels_NTS3, crops.data.joints_NJ2, crops.data.visible_NJ)
    for now, then in zip(after, before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("garbage", [-500.0, 31.0, 1e30, math.inf, math.nan])
def test_positions_of_unlabelled_joints_change_nothing(
    garbage: float, crops: Crops, make_model: MakeModel, cpu: DeviceContext
) -> None:
    assert not crops.labelled_NJ.all()
    ends = []
    for value in (0.0, garbage):
        joints_NJ2 = np.where(crops.labelled_NJ[..., None], crops.joints_NJ2, np.float32(value)).astype(np.float32)
        model = make_model()
        heads = some_heads(model, "ll", "ll++")
        given = replace(crops, joints_NJ2=joints_NJ2)
        history = train_pose(model, given, replace(SHORT, epochs=2), cpu, seed=0, heads=heads)
        ends.append((history, weights(model.pose), weights(heads["ll"]), weights(heads["ll++"])))

    assert ends[0][0] == ends[1][0]
    for one, other in zip(ends[0][1:], ends[1][1:], strict=True):
        assert_same(one, other)


def test_joints_without_pairs_are_never_mirrored_and_that_is_said_once(
    crops: Crops, make_model: MakeModel, cpu: DeviceContext, caplog: pytest.LogCaptureFixture
) -> None:
    nameless = replace(crops.data.skeleton, name="numbers", joints=("1", "2", "3"), flip_pairs=())
    ends = []
    for flip in (0.0, 1.0):
        model = replace(make_model(), skeleton=nameless)
        views = AugmentConfig(flip=flip)
        train_pose(model, crops, replace(SHORT, epochs=2, augment=views), cpu, seed=0)
        train_heads(model, some_heads(model, "ll"), crops, HeadTraining(epochs=1, batch=5), cpu, seed=0, validation=0.1)
        ends.append(weights(model.pose))

    assert_same(*ends)
    (said,) = [record.getMessage() for record in caplog.records if "mirrored" in record.getMessage()]
    assert "skeleton numbers names no pairs of left and right joints: training images are not mirrored" in said


def test_a_training_that_diverges_says_so(crops: Crops, make_model: MakeModel, cpu: DeviceContext) -> None:
    with pytest.raises(ConfigError, match="diverged in epoch"):
        train_pose(make_model(), crops, replace(SHORT, lr=1e30), cpu, seed=0)


def test_a_joint_head_that_diverges_is_named(crops: Crops, make_model: MakeModel, cpu: DeviceContext) -> None:
    model = make_model()
    with pytest.raises(ConfigError, match=r"diverged.*ll\+\+: "):
        train_pose(model, crops, SHORT, cpu, seed=0, heads=some_heads(model, "ll++"),
                   head_config=HeadTraining(epochs=2, batch=5, lr=1e30))  # fmt: skip


# --- Heads


@pytest.mark.parametrize("pairing", ["disjoint", "all"])
def test_a_head_can_learn_a_few_images(
    pairing: Pairing, learnt: tuple[PoseModel, tuple[Epoch, ...]], make_crops: MakeCrops, cpu: DeviceContext
) -> None:
    """On people that the net has not seen its losses differ."""
    heads = some_heads(learnt[0], "ll", "ll++conv")
    config = HeadTraining(epochs=40, batch=8, lr=5e-3, augment=STILL, pairing=pairing, margin=0.1)

    history = train_heads(learnt[0], heads, make_crops(10, seed=1, unlabelled=0.3), config, cpu, seed=0, validation=0.1)

    for losses in history.values():
        assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


def test_the_margin_belongs_to_learning_loss_alone(crops: Crops, make_model: MakeModel, cpu: DeviceContext) -> None:
    """Fresh heads predict nearly the same for every image, so a pair costs the margin."""
    model = make_model()
    first: dict[float, dict[str, list[float]]] = {
        margin: train_heads(model, some_heads(model, *HEADS), crops, HeadTraining(epochs=1, batch=5, margin=margin),
                            cpu, seed=0, validation=0.1)
        for margin in (1.0, 5.0)
    }  # fmt: skip

    for name in ("ll", "ll-gap"):
        assert first[5.0][name] == pytest.approx([5.0], abs=0.5)
        assert first[1.0][name] == pytest.approx([1.0], abs=0.5)
    for name in ("ll++", "ll++conv"):
        assert first[5.0][name] == first[1.0][name]


def test_joint_heads_do_not_touch_the_pose_net(crops: Crops, make_model: MakeModel, cpu: DeviceContext) -> None:
    plain, joint = make_model(), make_model()
    heads = some_heads(joint, *HEADS)
    fresh = {name: weights(head) for name, head in heads.items()}

    alone = train_pose(plain, crops, SHORT, cpu, seed=0)
    beside = train_pose(joint, crops, SHORT, cpu, seed=0, heads=heads)

    assert_same(weights(plain.pose), weights(joint.pose))
    assert [replace(epoch, head_loss={}) for epoch in beside] == list(alone)
    assert all(set(epoch.head_loss) == set(HEADS) for epoch in beside)
    for name, head in heads.items():
        assert differ(weights(head), fresh[name])


# --- Killed and resumed


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_state, "SAVE_EVERY_S", -1.0)


class Killed(BaseException):
    pass


def kill_in(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise in the middle of an epoch."""
    real = training.batches_of

    def batches(count: int, batch: int, seed: int, now: int) -> Iterator[Any]:
        for place, rows_B in enumerate(real(count, batch, seed, now)):
            if now == epoch and place == 1:
                raise Killed
            yield rows_B

    monkeypatch.setattr(training, "batches_of", batches)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize(
    ("schedule", "killed", "names"),
    [
        ("constant", (1,), ()),
        ("one-cycle", (2,), ()),
        ("plateau", (1, 3), ()),
        ("one-cycle", (0, 3), ("ll", "ll++conv")),
    ],
    ids=str,
)
def test_a_training_that_was_killed_ends_with_the_same_bits(
    schedule: Schedule, killed: tuple[int, ...], names: tuple[str, ...],
    crops: Crops, make_model: MakeModel, cpu: DeviceContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = PoseTraining(epochs=4, batch=5, lr=2e-3, schedule=schedule)

    def run(state: Path | None) -> tuple[tuple[Epoch, ...], list[dict[str, Tensor]]]:
        model = make_model()
        heads = some_heads(model, *names)
        history = train_pose(model, crops, config, cpu, seed=0, state=state, heads=heads)
        return history, [weights(module) for module in (model.pose, *heads.values())]

    straight = run(None)
    state = tmp_path / "sub" / "training.pt"
    for epoch in killed:
        with monkeypatch.context() as patch:
            kill_in(epoch, patch)
            with pytest.raises(Killed):
                run(state)
    assert state.exists() == (killed[-1] > 0)
    resumed = run(state)

    assert resumed[0] == straight[0]
    for one, other in zip(resumed[1], straight[1], strict=True):
        assert_same(one, other)


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("what", ["seed", "rate", "people", "labels", "net", "start", "heads", "target"])
def test_the_state_of_another_training_is_not_taken_up(
    what: str, crops: Crops, make_model: MakeModel, make_crops: MakeCrops, cpu: DeviceContext, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    started = make_model()
    with monkeypatch.context() as patch:
        kill_in(2, patch)
        with pytest.raises(Killed):
            train_pose(started, crops, SHORT, cpu, seed=0, state=tmp_path / "training.pt")
    seed, config, given = int(what == "seed"), SHORT, crops
    if what == "rate":
        config = replace(SHORT, lr=2e-3)
    if what == "people":
        given = make_crops(14, seed=1)
    if what == "labels":
        labelled_NJ = ~crops.labelled_NJ
        data = replace(crops.data, labelled_NJ=labelled_NJ, visible_NJ=labelled_NJ)
        given = replace(crops, data=data)

    def other() -> tuple[PoseModel, dict[str, LossHead]]:
        model = make_model(seed=5 if what == "start" else 0, channels=16 if what == "net" else 8)
        if what == "target":
            model = replace(model, target=replace(model.target, sigma=1.0))
        return model, some_heads(model, "ll") if what == "heads" else {}

    fresh, fresh_heads = other()
    expected = train_pose(fresh, given, config, cpu, seed=seed, heads=fresh_heads)
    model, heads = other()
    with caplog.at_level(logging.WARNING, "alpose"):
        found = train_pose(model, given, config, cpu, seed=seed, state=tmp_path / "training.pt", heads=heads)

    assert found == expected
    assert_same(weights(model.pose), weights(fresh.pose))
    assert "training.pt belongs to another training" in caplog.text


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("damage", ["empty", "garbage", "cut", "other"])
def test_a_damaged_state_is_an_error_that_names_the_file(
    damage: str, crops: Crops, make_model: MakeModel, cpu: DeviceContext, tmp_path: Path
) -> None:
    state = tmp_path / "training.pt"
    train_pose(make_model(), crops, replace(SHORT, epochs=1), cpu, seed=0, state=state)
    content = state.read_bytes()
    state.write_bytes({"empty": b"", "garbage": b"garbage", "cut": content[: len(content) // 2]}.get(damage, content))
    if damage == "other":
        torch.save([1, 2], state)

    with pytest.raises(CheckpointError, match=r"training\.pt.*delete"):
        train_pose(make_model(), crops, replace(SHORT, epochs=1), cpu, seed=0, state=state)


@pytest.mark.usefixtures("save_always")
def test_discard_removes_the_state_and_what_a_killed_save_left(
    crops: Crops, make_model: MakeModel, cpu: DeviceContext, tmp_path: Path
) -> None:
    state = tmp_path / "training.pt"
    discard(state)
    train_pose(make_model(), crops, replace(SHORT, epochs=1), cpu, seed=0, state=state)
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]
    (tmp_path / ".training.pt.tmp").write_bytes(b"half")
    discard(state)

    assert list(tmp_path.iterdir()) == []


# --- Several processes


def test_two_processes_end_with_one_model(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_processes.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*launch, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    runpy.run_path(str(script))["main"](tmp_path)  # the same in this process alone
    first, second = (torch.load(tmp_path / f"weights-2-{rank}.pt", weights_only=True) for rank in range(2))
    told = {
        (world, rank): json.loads((tmp_path / f"history-{world}-{rank}.json").read_text())
        for world, rank in ((2, 0), (2, 1), (1, 0))
    }

    assert_same(first, second)
    assert told[2, 0] == told[2, 1]
    # Both see the same views in the same order, and weigh them alike: without batch statistics the same loss, to
    # rounding. Batch norms differ besides in whom they average: 7 images, or 4 and 3.
    for norm, tolerance in (("group norm", 1e-5), ("batch norm", 0.02)):
        one, two = told[1, 0][norm], told[2, 0][norm]
        for name in ("train_loss", "validation_loss"):
            assert [epoch[name] for epoch in two] == pytest.approx([epoch[name] for epoch in one], rel=tolerance)
    # A whole benchmark: one set of files, whose base model learned the same.
    runs = [Results.load(tmp_path / f"run-{world}") for world in (1, 2)]
    assert [run.environment["processes"] for run in runs] == [1, 2]
    assert [[(row.method, row.selected, row.pool) for row in run.rows] for run in runs] == 2 * [
        [("random", 8, 16), ("ll++conv", 8, 16)]
    ]
    bases = [load(tmp_path / f"run-{world}/seed-0/base").facts["losses"] for world in (1, 2)]
    assert bases[1] == [pytest.approx(losses, rel=0.02) for losses in bases[0]]


# --- Options


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs.*0"),
        ({"batch": 0}, "batch.*0"),
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"schedule": "cosine"}, "cosine"),
        ({"compile": "max-autotune"}, "reduce-overhead, got 'max-autotune'"),
        ({"validation": 0.0}, "validation"),
        ({"validation": 0.95}, "validation"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_a_pose_training_that_cannot_be_is_an_error(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PoseTraining(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 0}, "epochs.*0"),
        ({"batch": 1}, "batch.*got 1"),
        ({"batch": 0}, "batch.*got 0"),
        ({"lr": -1.0}, "lr"),
        ({"margin": 0.0}, "margin"),
        ({"pairing": "some"}, "some"),
        ({"how": "both"}, "both"),
    ],
)
def test_a_head_training_that_cannot_be_is_an_error(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        HeadTraining(**changes)
