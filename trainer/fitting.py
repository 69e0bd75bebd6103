"""A model and its loss heads on your own data; or an existing model, trained on with what came back from the field.

The people that a fit holds out train nothing and choose nothing: they say what the training was worth, and an export
calibrates on them (it leaves out everybody whose id stands in the checkpoint).

Shapes: N people.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alpose.runtime.errors import ConfigError, DataError
from alpose.runtime.io import write_json
from alpose.runtime.skeleton import Skeleton

from . import checkpoint
from .checkpoint import PoseModel
from .data.catalog import open_dataset
from .data.crops import CropConfig, Crops, prepare
from .data.records import PoseData, join, trained, who_trained
from .device import DeviceContext, environment
from .methods.catalog import heads_of
from .methods.selection import judge_scored
from .metrics import Failure, auroc, profile_of
from .models.heads import HeadName, LossHead
from .presets import NetName, Preset, PresetName, preset, with_net, with_net_of
from .scoring import score
from .training import train_heads, train_pose
from .training_state import discard

log = logging.getLogger("alpose")

FACTS = "fit.json"
DEFAULT_HEADS: tuple[HeadName, ...] = ("epck",)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """What to train on, from what, and how long."""

    data: tuple[str, ...]
    """COCO keypoints folders, or benchmarks by name."""
    start: Path | None = None
    """The checkpoint that is trained on; None begins a new model."""
    preset: PresetName | None = None
    """Recipe; by default that of the checkpoint, or ``laptop``."""
    net: NetName | None = None
    """A pose net in place of the preset's, of a new model."""
    heads: tuple[HeadName, ...] | None = None
    """By default those of the checkpoint, or ``epck``."""
    epochs: int | None = None
    """Of the pose net; by default the preset's."""
    hold_out: float = 0.25
    """Share of the images of each folder that has no ``val`` part of its own."""
    old_data: bool = True
    """Whether the people that trained the checkpoint train again: without them it forgets them."""
    group_by: str | None = None
    """A field of the images, such as ``driver``, ``camera`` or ``clip``: who shares it is held out, or validates, together."""
    flip_pairs: str | None = None
    """Joints that change places in a mirror, in place of what their names say: ``leftear:rightear,2:3``."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("--data: name at least one COCO keypoints folder")
        unknown = [name for name in self.heads or () if name not in heads_of("loss")]
        if unknown:
            raise ConfigError(f"--heads: {', '.join(unknown)} unknown; known: {', '.join(heads_of('loss'))}")
        if not 0 < self.hold_out < 0.9:
            raise ConfigError(f"--hold-out is a share of the images in (0, 0.9), got {self.hold_out}")
        if self.net and self.start:
            raise ConfigError(
                f"--net {self.net}: a checkpoint that is trained on keeps its net; leave out --net or --from"
            )
        if self.epochs is not None and self.epochs < 1:
            raise ConfigError(f"--epochs must be at least 1, got {self.epochs}")


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset in its two roles."""

    name: str
    train: PoseData
    held_out: PoseData

    def with_skeleton(self, skeleton: Skeleton) -> Source:
        """The same people with the model's links and mirror pairs."""
        return Source(self.name, self.train.with_skeleton(skeleton), self.held_out.with_skeleton(skeleton))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model on people that trained nothing."""

    people: int
    failures: int
    pck: float | None
    auroc: Mapping[str, float | None]
    """Of failure (image PCK below one half), by loss head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What came out; ``fit.json``."""

    checkpoint: Path
    trained_on: Mapping[str, int]
    """People by dataset."""
    before: Mapping[str, Measured]
    """Of the checkpoint that it began with, by dataset; empty for a new model."""
    after: Mapping[str, Measured]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "checkpoint": self.checkpoint.name}

    def table(self) -> str:
        """For people."""
        lines = [f"{'held out of':<24} {'people':>6} {'PCK':>16}  AUROC of failure"]
        for name, after in self.after.items():
            before = self.before.get(name)
            pck = _arrow(before.pck if before else None, after.pck, before is not None)
            heads = "  ".join(
                f"{head} {_arrow(before.auroc.get(head) if before else None, value, before is not None)}"
                for head, value in after.auroc.items()
            )
            lines.append(f"{name:<24} {after.people:>6} {pck:>16}  {heads}")
        return "\n".join(lines)


def fit(config: FitConfig, out: Path, machine: DeviceContext, *, data_root: Path | None, cache: Path) -> Fit:
    """Train, measure, and write a checkpoint; a fit that was interrupted goes on at its last epoch.

    Args:
        config: what.
        out: folder of the new checkpoint.
        machine: where to compute; under ``torchrun`` every process calls this.
        data_root: where datasets are that go by a name.
        cache: where crops are cached.
    """
    old = checkpoint.load(config.start) if config.start else None
    if checkpoint.exists(out):
        raise ConfigError(f"{out} holds a checkpoint already: choose another --out")
    chosen = with_net(preset(config.preset or (old.facts.get("preset", "laptop") if old else "laptop")), config.net)
    if old:
        chosen = with_net_of(chosen, old.pose.config)
    seen = who_trained(old.facts) if old else frozenset()
    new = [_source(name, chosen, data_root, config, seen) for name in config.data]
    before = _old_sources(old, chosen, data_root, new, seen) if old and config.old_data else []
    sources = [*before, *new]
    model = _fresh(old, chosen, sources, config.seed)
    sources = [source.with_skeleton(model.skeleton) for source in sources]
    train = prepare(_together([source.train for source in sources]), model.crop, cache)
    bare = replace(model.crop, context=0.0)
    held_out = {source.name: prepare(source.held_out, bare, cache) for source in sources if len(source.held_out)}

    measured_before = {name: measure(old.to(machine.device), crops, machine, f"before, {name}")
                       for name, crops in held_out.items()} if old else {}  # fmt: skip
    started = time.perf_counter()
    state = out / "training.pt"
    model = _train(model, old, train, config, chosen, machine, state)
    seconds = time.perf_counter() - started
    measured_after = {name: measure(model, crops, machine, f"after, {name}") for name, crops in held_out.items()}
    result = Fit(
        checkpoint=out,
        trained_on={source.name: len(source.train) for source in sources},
        before=measured_before,
        after=measured_after,
        seconds=seconds,
    )
    facts = _facts(config, chosen, sources, train, old, result, machine)
    if machine.leads:
        checkpoint.save(replace(model, facts={**model.facts, **facts}), out)
        write_json(out / FACTS, result.to_json())
        discard(state)
    machine.wait()
    return result


def measure(model: PoseModel, crops: Crops, machine: DeviceContext, what: str) -> Measured:
    """PCK of a model, and how well its heads tell the people on whom it fails."""
    scored = score(model, crops, machine, what=what)
    judged = judge_scored(crops.data, scored, profile_of("standard", crops.data))
    failed_N, defined_N = Failure().failed(judged.image_pck())
    return Measured(
        people=len(crops),
        failures=int(failed_N.sum()),
        pck=judged.pck(),
        auroc={name: auroc(value_N[defined_N], failed_N[defined_N]) for name, value_N in scored.predicted_loss.items()},
    )


def _source(name: str, chosen: Preset, data_root: Path | None, config: FitConfig, seen: Collection[str]) -> Source:
    """A folder is split by its own parts where it has them, else by image; a benchmark as it always is."""
    dataset = open_dataset(name, data_root, sizes=chosen.sizes, hold_out=config.hold_out, flip_pairs=config.flip_pairs,
                           group_by=config.group_by, seen=seen)  # fmt: skip
    return Source(name, dataset.train, dataset.test)


def _old_sources(
    old: PoseModel, chosen: Preset, data_root: Path | None, new: Sequence[Source], seen: frozenset[str]
) -> list[Source]:
    """The people that trained the checkpoint, from the datasets that it names; those given anew are not repeated."""
    facts = old.facts
    datasets: Sequence[str] = facts.get("datasets") or [facts["dataset"]] if "dataset" in facts else []
    if not datasets:
        raise ConfigError("--from: this checkpoint does not say what trained it: give that data with --data and "
                          "--without-old-data")  # fmt: skip
    sizes = preset(facts["preset"]).sizes if "preset" in facts else chosen.sizes
    sources = []
    again = {_place(source.name) for source in new}
    given = {key for source in new for part in (source.train, source.held_out) for key in part.people_keys()}
    if seen <= given:  # under another name, or in a copy
        return []
    for name in datasets:
        if _place(name) in again:
            continue
        try:
            benchmark = open_dataset(name, data_root, sizes=sizes)
        except (ConfigError, DataError, FileNotFoundError) as error:
            raise ConfigError(
                f"the data that trained this checkpoint cannot be read again ({name}: {error}). Without it the model "
                "forgets it; name its place with --data-root, or go on with --without-old-data"
            ) from error
        everyone = benchmark.train
        test = benchmark.test
        if Path(name).is_dir():  # its own split, whatever it was: who trained is known by id
            everyone = join(everyone.name, everyone, test)
            test = everyone.subset(np.flatnonzero(~trained(everyone, seen)))
        again_N = np.array([key in given for key in everyone.people_keys()], dtype=np.bool_)
        found = everyone.subset(np.flatnonzero(trained(everyone, seen, exactly=True) & ~again_N))
        if not len(found) and not again_N.any():
            raise ConfigError(
                f"{name} holds nobody of those who trained this checkpoint: is it another version of the data?"
            )
        if len(found):
            sources.append(Source(name, found, test))
    return sources


def _place(name: str) -> str:
    """One name for a folder, however its path is written."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _together(parts: Sequence[PoseData]) -> PoseData:
    return parts[0] if len(parts) == 1 else join("+".join(part.name for part in parts), *parts)


def _fresh(old: PoseModel | None, chosen: Preset, sources: Sequence[Source], seed: int) -> PoseModel:
    """The model that is trained: a copy of the old one, or a new one of the preset's size."""
    skeleton = sources[-1].train.skeleton
    if old is None:
        recipe = chosen.recipe
        return checkpoint.new_model(recipe.net.config(len(skeleton)), skeleton, recipe.crop, recipe.target, seed)
    if old.skeleton.joints != skeleton.joints:
        raise ConfigError(f"--from: the checkpoint has the joints of {old.skeleton.name!r}, {sources[-1].name} those of "
                          f"{skeleton.name!r}")  # fmt: skip
    crop = CropConfig(size_px=old.crop.size_px, margin=old.crop.margin, context=chosen.recipe.crop.context)
    # Old checkpoints found fewer pairs by name, and a new statement is meant.
    return replace(old, pose=copy.deepcopy(old.pose), heads={}, auxiliary={}, crop=crop, facts={}, skeleton=skeleton)


def _train(
    model: PoseModel,
    old: PoseModel | None,
    train: Crops,
    config: FitConfig,
    chosen: Preset,
    machine: DeviceContext,
    state: Path,
) -> PoseModel:
    recipe = chosen.recipe
    how = recipe.retrain if old else recipe.pose
    how = replace(how, epochs=config.epochs or how.epochs)
    train_pose(model, train, how, machine, seed=config.seed, state=state, what="pose net")
    warm = old.heads if old else {}
    names = config.heads or tuple(warm) or DEFAULT_HEADS
    heads: dict[HeadName, LossHead] = {
        name: copy.deepcopy(warm[name]) if name in warm else checkpoint.new_head(model, name, config.seed)
        for name in names
    }
    train_heads(model, heads, train, replace(recipe.heads, how="frozen"), machine, seed=config.seed,
                validation=how.validation)  # fmt: skip
    return model.with_heads(heads)


def _facts(
    config: FitConfig, chosen: Preset, sources: Sequence[Source], train: Crops, old: PoseModel | None, result: Fit,
    machine: DeviceContext,
) -> dict[str, Any]:  # fmt: skip
    """Provenance; ``labelled_people`` is what keeps a later calibration apart from the training."""
    name = config.preset or (old.facts.get("preset", "laptop") if old else "laptop")
    return {
        "what": "fit",
        "dataset": config.data[-1],
        "datasets": [source.name for source in sources],
        "preset": name,
        "seed": config.seed,
        "recipe": asdict(chosen.recipe),
        "labelled": len(train),
        # Who trained once stays known, whether or not it trained again.
        "labelled_ids": sorted({*train.data.ids, *(old.facts.get("labelled_ids", ()) if old else ())}),
        "labelled_people": sorted({*train.data.people_keys(), *(who_trained(old.facts) if old else ())}),
        "train_seconds": result.seconds,
        "held_out": result.to_json()["after"],
        "environment": environment(machine),
    }


def _arrow(before: float | None, after: float | None, both: bool) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return f"{shown(before)} -> {shown(after)}" if both else shown(after)
