"""A model and its loss heads on your own data; or an existing model, trained on with what came back from the field.

The people that a fit holds out train nothing and choose nothing: they say what the training was worth, and an export
calibrates on them (it leaves out everybody whose id stands in the checkpoint).

Shapes: N people.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from alpose.runtime.errors import ConfigError
from alpose.runtime.io import write_json

from . import checkpoint
from .checkpoint import PoseModel
from .data.crops import Crops, prepare
from .data.records import Bools
from .device import DeviceContext, environment
from .fit_data import FitData, Source, open_fit_data
from .measures.metrics import Failure, auroc, mean_error, profile_of
from .methods.catalog import heads_of
from .methods.selection import judge_scored
from .models.heads import HeadName, LossHead
from .presets import NetName, Preset, PresetName, Recipe, preset, read_recipe, with_net, with_net_of
from .scoring import score
from .training import train_heads, train_pose
from .training_log import Curves, OpenLog, TrainingLogs
from .training_state import Epoch, discard

FACTS = "fit.json"

if TYPE_CHECKING:
    from .foreign.measuring import ForeignFit
    from .foreign.net import ForeignNet

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
    """Of the pose net; by default the recipe's."""
    compile: bool = False
    """Whether the pose net is trained through ``torch.compile``, whatever the recipe says."""
    recipe: Recipe | Path | None = None
    """A recipe of one's own, or the path of a TOML file of what differs from the preset's."""
    group_by: str | None = None
    """Field of the labels' images, such as driver, camera or clip: people of one group have one role."""
    flip_pairs: str | None = None
    """Joints that change places in a mirror, in place of what their names say: ``leftear:rightear,2:3``."""
    failure: Failure = field(default_factory=Failure)
    """When a pose counts as failed."""
    hold_out: float = 0.25
    """Share of the images of each folder that has no ``val`` part of its own."""
    old_data: bool = True
    """Whether the people that trained the checkpoint train again: without them it forgets them."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model on people that trained nothing."""

    people: int
    failures: int
    pck: float | None
    auroc: Mapping[str, float | None]
    """Of failure, by loss head."""


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
    epochs: Mapping[str, int]
    """That ran, of the pose net and of each head; the curves stand in ``losses.csv``."""

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


@overload
def fit(
    config: FitConfig, out: Path, machine: DeviceContext, *, data_root: Path | None, cache: Path,
    logs: Sequence[OpenLog] = (),
) -> Fit: ...  # fmt: skip


@overload
def fit(
    config: ForeignNet, data: str | Path | Sequence[str | Path], *, out: str | Path, **options: Any
) -> ForeignFit: ...


def fit(config: FitConfig | ForeignNet, *arguments: Any, **options: Any) -> Fit | ForeignFit:
    """Fit a model of a config, :func:`fit_model`; or what tells the failures of a wrapped net.

    See :func:`alpose.trainer.foreign.fitting.fit_net` for the second.
    """
    if isinstance(config, FitConfig):
        return fit_model(config, *arguments, **options)
    from .foreign.fitting import fit_net

    return fit_net(config, *arguments, **options)


def fit_model(
    config: FitConfig, out: Path, machine: DeviceContext, *, data_root: Path | None, cache: Path,
    logs: Sequence[OpenLog] = (),
) -> Fit:  # fmt: skip
    """Train, measure, and write a checkpoint; a fit that was interrupted goes on at its last epoch.

    Args:
        config: what.
        out: folder of the new checkpoint.
        machine: where to compute; under ``torchrun`` every process calls this.
        data_root: where datasets are that go by a name.
        cache: where crops are cached.
        logs: what makes the logs that get every loss and measure besides ``losses.csv`` and ``measures.csv``.
    """
    old = checkpoint.load(config.start) if config.start else None
    if checkpoint.exists(out):
        raise ConfigError(f"{out} holds a checkpoint already: choose another --out")
    name, chosen = _preset(config, old)
    old_sizes = preset(old.facts["preset"]).sizes if old and "preset" in old.facts else chosen.sizes
    data = open_fit_data(config.data, old, data_root, sizes=chosen.sizes, old_sizes=old_sizes, hold_out=config.hold_out,
                         old_data=config.old_data, group_by=config.group_by, flip_pairs=config.flip_pairs)  # fmt: skip
    model = _fresh(old, chosen.recipe, data.sources, config.seed)
    data = data.with_skeleton(model.skeleton)
    train = prepare(data.train, model.crop, cache)
    how = chosen.recipe.retrain if old else chosen.recipe.pose
    validates_N = data.validates(train.data, how.validation, config.seed)
    bare = replace(model.crop, context=0.0)
    held_out = {source.name: prepare(source.held_out, bare, cache) for source in data.sources if len(source.held_out)}

    before = {source: measure(old.to(machine.device), crops, machine, config.failure, f"before, {source}")
              for source, crops in held_out.items()} if old else {}  # fmt: skip
    settings = {"data": ", ".join(config.data), "from": str(config.start or ""), "preset": name, "seed": config.seed}
    told = TrainingLogs(out, [make(out, settings) for make in logs]) if machine.leads else None
    started = time.perf_counter()
    model, curves = _train(model, old, train, validates_N, config, chosen.recipe, machine, out / "training.pt", told)
    seconds = time.perf_counter() - started
    result = Fit(
        checkpoint=out,
        trained_on={source.name: len(source.train) for source in data.sources},
        before=before,
        after={source: measure(model, crops, machine, config.failure, f"after, {source}")
               for source, crops in held_out.items()},
        seconds=seconds,
        epochs={part: len(losses) for part, losses in curves.items()},
    )  # fmt: skip
    if machine.leads:
        facts = _facts(config, name, chosen.recipe, data, train, validates_N, old, result, machine)
        checkpoint.save(replace(model, facts={**model.facts, **facts}), out)
        write_json(out / FACTS, result.to_json())
        discard(out / "training.pt")
        assert told is not None
        told.measures(_rows(result.before, result.after), len(curves["pose"]))
        told.close()
    machine.wait()
    return result


def _preset(config: FitConfig, old: PoseModel | None) -> tuple[PresetName, Preset]:
    """The preset with the recipe that is really trained by."""
    name = config.preset or (old.facts.get("preset", "laptop") if old else "laptop")
    chosen = with_net(preset(name), config.net)
    if isinstance(config.recipe, Recipe):
        chosen = replace(chosen, recipe=config.recipe)
    elif config.recipe is not None:
        chosen = replace(chosen, recipe=read_recipe(config.recipe, chosen.recipe))
    if old:
        chosen = with_net_of(chosen, old.pose.config)
    recipe = chosen.recipe
    part = "retrain" if old else "pose"
    if config.epochs:
        recipe = replace(recipe, **{part: replace(getattr(recipe, part), epochs=config.epochs)})
    if config.compile:
        recipe = replace(recipe, **{part: replace(getattr(recipe, part), compile=True)})
    return name, replace(chosen, recipe=recipe)


def measure(model: PoseModel, crops: Crops, machine: DeviceContext, failure: Failure, what: str) -> Measured:
    """PCK of a model, and how well its heads tell the people on whom it fails."""
    scored = score(model, crops, machine, what=what)
    judged = judge_scored(crops.data, scored, profile_of("standard", crops.data))
    errors_N = mean_error(scored.distance_NJ, crops.labelled_NJ, crops.side_N)
    failed_N, defined_N = failure.failed(judged.image_pck(), errors_N)
    return Measured(
        people=len(crops),
        failures=int(failed_N.sum()),
        pck=judged.pck(),
        auroc={name: auroc(value_N[defined_N], failed_N[defined_N]) for name, value_N in scored.predicted_loss.items()},
    )


def _fresh(old: PoseModel | None, recipe: Recipe, sources: Sequence[Source], seed: int) -> PoseModel:
    """The model that is trained: a copy of the old one, or a new one of the preset's size."""
    skeleton = sources[-1].train.skeleton
    if old is None:
        return checkpoint.new_model(recipe.net.config(len(skeleton)), skeleton, recipe.crop, recipe.target, seed)
    if old.skeleton.joints != skeleton.joints:
        raise ConfigError(f"--from: the checkpoint has the joints of {old.skeleton.name!r}, {sources[-1].name} those of "
                          f"{skeleton.name!r}")  # fmt: skip
    crop = replace(old.crop, context=recipe.crop.context)
    # Old checkpoints found fewer pairs by name, and a new statement is meant.
    return replace(old, pose=copy.deepcopy(old.pose), heads={}, auxiliary={}, crop=crop, facts={}, skeleton=skeleton)


def _train(
    model: PoseModel, old: PoseModel | None, train: Crops, validates_N: Bools, config: FitConfig, recipe: Recipe,
    machine: DeviceContext, state: Path, told: TrainingLogs | None,
) -> tuple[PoseModel, dict[str, Sequence[tuple[float | None, ...]]]]:  # fmt: skip
    how = recipe.retrain if old else recipe.pose

    def tell(curves: Curves, logged: int) -> None:
        if told is not None:
            told.resumed("pose", logged)
            told.losses(curves)

    history = train_pose(model, train, how, machine, seed=config.seed, state=state, what="pose net",
                         validates_N=validates_N, on_epoch=lambda history: tell(_pose_curve(history), len(history) - 1))  # fmt: skip
    warm = old.heads if old else {}
    names = config.heads or tuple(warm) or DEFAULT_HEADS
    heads: dict[HeadName, LossHead] = {
        name: copy.deepcopy(warm[name]) if name in warm else checkpoint.new_head(model, name, config.seed)
        for name in names
    }
    learners = train.subset(np.flatnonzero(~validates_N))
    losses = train_heads(model, heads, learners, replace(recipe.heads, how="frozen"), machine, seed=config.seed,
                         validation=0.0)  # fmt: skip
    curves = _pose_curve(history) | {name: [(loss, None, None) for loss in of] for name, of in losses.items()}
    tell(curves, len(history))
    return model.with_heads(heads), curves


def _pose_curve(history: Sequence[Epoch]) -> dict[str, Sequence[tuple[float | None, ...]]]:
    return {"pose": [(epoch.train_loss, epoch.validation_loss, epoch.lr) for epoch in history]}


def _facts(
    config: FitConfig, name: PresetName, recipe: Recipe, data: FitData, train: Crops, validates_N: Bools,
    old: PoseModel | None, result: Fit, machine: DeviceContext,
) -> dict[str, Any]:  # fmt: skip
    """Where the new checkpoint comes from; who was labelled is what keeps a later calibration apart from the training."""
    return {
        "what": "fit",
        "dataset": config.data[-1],
        "datasets": [source.name for source in data.sources],
        "preset": name,
        "seed": config.seed,
        "recipe": asdict(recipe),
        "epochs": dict(result.epochs),
        "failure": asdict(config.failure),
        "labelled": len(train),
        # Who trained once stays known, whether or not it trained again.
        **data.facts(train.data, validates_N, old.facts.get("labelled_ids", ()) if old else ()),
        "train_seconds": result.seconds,
        "held_out": result.to_json()["after"],
        "environment": environment(machine),
    }


def _rows(before: Mapping[str, Measured], after: Mapping[str, Measured]) -> list[tuple[str, str, str, float | None]]:
    """What a model was and is worth, one number a row."""
    return [
        (when, name, measure, value)
        for when, measured in (("before", before), ("after", after))
        for name, one in measured.items()
        for measure, value in (
            ("people", one.people), ("failures", one.failures), ("pck", one.pck),
            *((f"auroc/{head}", value) for head, value in one.auroc.items()),
        )
    ]  # fmt: skip


def _arrow(before: float | None, after: float | None, both: bool) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return f"{shown(before)} -> {shown(after)}" if both else shown(after)
