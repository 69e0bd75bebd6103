from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpose.runtime.errors import CheckpointError, ConfigError
from alpose.trainer import checkpoint
from alpose.trainer.checkpoint import FACTS, WEIGHTS, PoseModel, TargetConfig, exists, load, new_head, save
from alpose.trainer.methods.catalog import heads_of

HEADS = heads_of("loss")
MakeModel = Callable[..., PoseModel]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> PoseModel:
    """Every head, and batch-norm statistics that are not the initial ones."""
    plain = make_model(seed=3)
    plain.pose.train()
    with torch.no_grad():
        plain.pose(torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    heads = {name: new_head(plain, name, 0) for name in HEADS}
    return replace(plain.with_heads(heads), facts={"pck": 0.5, "none": None, "list": [1, "two"]})


@pytest.fixture
def folder(model: PoseModel, tmp_path: Path) -> Path:
    save(model, tmp_path / "model")
    return tmp_path / "model"


def weights(model: PoseModel) -> dict[str, torch.Tensor]:
    found = {f"pose.{key}": value for key, value in model.pose.state_dict().items()}
    for name, head in model.heads.items():
        found |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def rewrite_facts(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    facts = json.loads((folder / FACTS).read_text())
    changed = change(facts)
    (folder / FACTS).write_text(json.dumps(facts if changed is None else changed))


# --- Round trip


def test_a_checkpoint_comes_back_bit_for_bit(model: PoseModel, folder: Path) -> None:
    back = load(folder)

    assert same(weights(back), weights(model))
    assert (back.skeleton, back.crop, back.target, back.facts) == (
        model.skeleton,
        model.crop,
        model.target,
        model.facts,
    )
    assert back.pose.config == model.pose.config
    assert {name: head.config for name, head in back.heads.items()} == {
        name: head.config for name, head in model.heads.items()
    }
    assert not any(module.training for module in (back.pose, *back.heads.values()))


def test_a_checkpoint_is_two_files_of_the_same_bytes_each_time_and_either_names_it(
    model: PoseModel, make_model: MakeModel, folder: Path, tmp_path: Path
) -> None:
    save(model, tmp_path / "again")

    assert sorted(path.name for path in folder.iterdir()) == [FACTS, WEIGHTS]
    for name in (WEIGHTS, FACTS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
        assert same(weights(load(folder / name)), weights(model))
    other = make_model(seed=8)
    save(other, folder)
    assert same(weights(load(folder)), weights(other))


@pytest.mark.parametrize("dies_before", [WEIGHTS, FACTS])
def test_a_save_that_is_killed_half_way_never_leaves_a_checkpoint_that_cannot_be_read(
    folder: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, dies_before: str
) -> None:
    real = os.replace

    def killed(source: Any, target: Any) -> None:
        if Path(target).name == dies_before:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(make_model(seed=8), folder)
    monkeypatch.undo()

    assert not exists(folder) or load(folder)


# --- Damage


@pytest.mark.parametrize("name", [WEIGHTS, FACTS])
def test_half_a_checkpoint_is_an_error_that_names_what_is_missing(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).unlink()

    with pytest.raises(CheckpointError, match=f"{name} does not exist"):
        load(folder)
    for nowhere in (folder / "typo", tmp_path / "nothing"):  # not looked for in the parent
        assert not exists(nowhere)
        with pytest.raises(CheckpointError, match=nowhere.name):
            load(nowhere)


def test_weights_of_another_checkpoint_are_refused(folder: Path, make_model: MakeModel, tmp_path: Path) -> None:
    save(make_model(seed=8), tmp_path / "other")
    (folder / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())

    with pytest.raises(CheckpointError, match=f"{WEIGHTS}.*sha256 differs"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 1, 8, 100, 0.5, -1])
@pytest.mark.parametrize("name", [WEIGHTS, FACTS])
def test_a_truncated_file_is_an_error_that_names_it(folder: Path, name: str, keep: float) -> None:
    content = (folder / name).read_bytes()
    length = int(keep * len(content)) if isinstance(keep, float) else keep
    for damaged in (content[:length] if name == WEIGHTS or keep != -1 else content[:-2], bytes(range(200))):
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match=name):
            load(folder)


@given(data=st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_byte_of_the_weights_is_noticed(folder: Path, data: st.DataObject) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    before, after = content[place], data.draw(st.integers(0, 255))
    content[place] = after
    (folder / WEIGHTS).write_bytes(content)

    try:
        if before != after:
            with pytest.raises(CheckpointError, match=WEIGHTS):
                load(folder)
    finally:
        content[place] = before
        (folder / WEIGHTS).write_bytes(content)


@given(data=st.data())
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_byte_of_the_facts_raises_nothing_else(folder: Path, data: st.DataObject) -> None:
    """Some bytes (a letter of a joint's name) cannot be told from what was meant; no other error may come out."""
    content = bytearray((folder / FACTS).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    before = content[place]
    content[place] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789"-.eE,[]{}: ')))
    (folder / FACTS).write_bytes(content)

    try:
        load(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)  # noqa: PT017 - a load that succeeds is fine too
    finally:
        content[place] = before
        (folder / FACTS).write_bytes(content)


def with_sha(folder: Path, content: bytes) -> None:
    """Put other weights there and vouch for them, as someone who means harm would."""
    (folder / WEIGHTS).write_bytes(content)
    rewrite_facts(folder, lambda facts: facts.update(sha256=hashlib.sha256(content).hexdigest()))


class Harm:
    ran = False

    def __reduce__(self) -> Any:
        return (setattr, (Harm, "ran", True))


def test_a_pickle_and_what_torch_saved_are_refused_and_not_run(folder: Path, model: PoseModel, tmp_path: Path) -> None:
    torch.save(weights(model), tmp_path / "weights.pt")
    saved = (tmp_path / "weights.pt").read_bytes()
    for content in (pickle.dumps(Harm()), pickle.dumps({"pose.weight": Harm()}, protocol=0), saved):
        with_sha(folder, content)
        with pytest.raises(CheckpointError, match=str(folder)):
            load(folder)

    assert not Harm.ran


@pytest.mark.parametrize("lost", ["pose.outs.0.weight", "head.ll++conv.mlp.0.bias"])
def test_weights_without_a_tensor_are_refused_by_its_name(folder: Path, lost: str) -> None:
    stored = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    del stored[lost]
    with_sha(folder, safetensors.torch.save(stored))

    with pytest.raises(CheckpointError, match=lost.split(".", 2)[-1] if lost.startswith("head") else "outs.0.weight"):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: [],
        lambda facts: {**facts, "kind": "something else"},
        lambda facts: {**facts, "schema": 99},
        *(lambda facts, key=key: {k: v for k, v in facts.items() if k != key}
          for key in ("sha256", "pose", "heads", "skeleton", "crop", "target", "facts")),
        *(lambda facts, key=key, value=value: {**facts, key: value}
          for key in ("sha256", "pose", "heads", "skeleton", "crop", "target", "facts")
          for value in (None, 3, [], ["ll"], "text")),
        lambda facts: {**facts, "pose": {**facts["pose"], "channels": 16}},
        lambda facts: {**facts, "pose": {**facts["pose"], "channels": "8"}},
        lambda facts: {**facts, "pose": {**facts["pose"], "new": 1}},
        lambda facts: {**facts, "heads": {"ll": None}},
        lambda facts: {**facts, "heads": {**facts["heads"], "ll": facts["heads"]["ll++"]}},
        lambda facts: {**facts, "crop": {**facts["crop"], "size_px": 100}},
        lambda facts: {**facts, "crop": {**facts["crop"], "size_px": "64"}},
        lambda facts: {**facts, "target": {"sigma": -1}},
        *(lambda facts, joints=joints: {**facts, "skeleton": {**facts["skeleton"], "joints": joints}}
          for joints in (["a", "b"], ["left_dot", "right_dot", "top", "tail"])),
    ],
)  # fmt: skip
def test_facts_that_do_not_fit_are_an_error_that_names_the_checkpoint(
    folder: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    rewrite_facts(folder, change)

    with pytest.raises(CheckpointError, match=str(folder)):
        load(folder)


# --- Fresh weights


def test_a_fresh_net_depends_on_its_seed_alone(make_model: MakeModel) -> None:
    torch.manual_seed(1)
    one = weights(make_model(seed=5))
    torch.manual_seed(2)

    assert same(one, weights(make_model(seed=5)))
    assert not same(one, weights(make_model(seed=6)))


def test_heads_of_one_shape_and_seed_differ_by_name(make_model: MakeModel) -> None:
    model = make_model()

    assert not same(new_head(model, "ll-gap", 0).state_dict(), new_head(model, "ll++", 0).state_dict())


def test_making_a_model_or_a_head_leaves_the_global_random_numbers_alone(make_model: MakeModel) -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    new_head(make_model(seed=9), "ll++conv", 1)

    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_with_heads_keeps_the_others_and_leaves_the_original_alone(make_model: MakeModel) -> None:
    plain = make_model()
    one = plain.with_heads({"ll": new_head(plain, "ll", 0)})
    both = one.with_heads({"ll++": new_head(plain, "ll++", 0)})

    assert (set(plain.heads), set(one.heads), set(both.heads)) == (set(), {"ll"}, {"ll", "ll++"})
    assert both.pose is plain.pose


@pytest.mark.parametrize("changes", [{"sigma": 0}, {"sigma": -1}, {"peak": 0}, {"sigma": float("nan")}], ids=str)
def test_a_target_that_cannot_be_drawn_is_an_error(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="target"):
        TargetConfig(**changes)


def test_a_head_fits_the_features_of_its_net(make_model: MakeModel) -> None:
    deep = make_model(depth=2)

    assert new_head(deep, "ll++conv", 0).config.sizes == (16, 8, 4)
    assert checkpoint.new_head(deep, "ll", 0).config.channels == 8
