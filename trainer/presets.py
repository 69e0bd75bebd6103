"""Presets: functions that return a whole, frozen configuration of net, training and experiment.

A variant is a ``dataclasses.replace`` of one of these, or a TOML file of what differs (:func:`read_recipe`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from alpose.runtime.errors import AlposeError, ConfigError
from alpose.runtime.io import from_json, to_json

from .checkpoint import TargetConfig
from .data.augment import AugmentConfig
from .data.catalog import Sizes
from .data.crops import CropConfig
from .models import NetConfig
from .models.hourglass import HourglassConfig
from .models.hrnet import HRNetConfig
from .training import HeadTraining, PoseTraining

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same library, before it became part of Python
    import tomli as tomllib

PresetName = Literal["smoke", "demo", "laptop", "paper"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)

Start = Literal["warm", "cold"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NetSize:
    """Size of the stacked hourglass."""

    stacks: int = 2
    channels: int = 256
    depth: int = 4

    def config(self, joints: int) -> HourglassConfig:
        """For this many joints."""
        return HourglassConfig(joints=joints, **asdict(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class HRNetSize:
    """Size of an HRNet, see :class:`HRNetConfig`; by default HRNet-W32."""

    width: int = 32
    modules: tuple[int, ...] = (1, 4, 3)
    blocks: int = 4
    stem: int = 64

    def config(self, joints: int) -> HRNetConfig:
        """For this many joints."""
        return HRNetConfig(joints=joints, **asdict(self))


NetName = Literal["hrnet-w32", "hrnet-tiny"]
NETS: dict[NetName, HRNetSize] = {
    "hrnet-w32": HRNetSize(),
    "hrnet-tiny": HRNetSize(width=8, modules=(1, 1), blocks=1, stem=8),
}
"""Nets that can stand in for the hourglass of a preset; the tiny one knows next to nothing, for tests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that makes a model, given the data and a seed. Runs of one recipe can share base models."""

    crop: CropConfig = field(default_factory=CropConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    net: NetSize | HRNetSize = field(default_factory=NetSize)
    pose: PoseTraining = field(default_factory=PoseTraining)
    """Training of the base model, and of every stage's model from a cold start."""
    retrain: PoseTraining = field(default_factory=PoseTraining)
    """Training on the enlarged set from a warm start."""
    heads: HeadTraining = field(default_factory=HeadTraining)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A recipe with the size of the experiment that suits it."""

    recipe: Recipe
    initial: int = 1000
    """Labelled people at the start, where the dataset does not fix them."""
    budget: int = 1000
    """People labelled per stage."""
    stages: int = 5
    seeds: int = 5
    sizes: Sizes = field(default_factory=Sizes)
    """Of the synthetic dataset."""


def smoke() -> Preset:
    """Seconds on anything; its models know next to nothing. For tests."""
    train = PoseTraining(epochs=2, batch=8, lr=2e-3, schedule="one-cycle")
    recipe = Recipe(
        crop=CropConfig(size_px=64),
        net=NetSize(stacks=1, channels=8),
        pose=train,
        retrain=train,
        heads=HeadTraining(epochs=2, batch=8),
    )
    return Preset(recipe=recipe, initial=32, budget=16, stages=2, seeds=1, sizes=Sizes(initial=32, pool=64, test=24))


def demo() -> Preset:
    """A few minutes on two CPU cores, on the synthetic dataset; differences between methods can be seen."""
    train = PoseTraining(epochs=40, batch=32, lr=4e-3, schedule="one-cycle")
    recipe = Recipe(
        crop=CropConfig(size_px=64),
        target=TargetConfig(sigma=1.0),
        net=NetSize(stacks=1, channels=48, depth=3),
        pose=train,
        retrain=PoseTraining(epochs=12, batch=32, lr=2e-3, schedule="one-cycle"),
        heads=HeadTraining(epochs=16, batch=32, lr=1e-3),
    )
    return Preset(recipe=recipe, initial=400, budget=200, stages=1, seeds=1,
                  sizes=Sizes(initial=400, pool=1200, test=300))  # fmt: skip


def laptop() -> Preset:
    """LSP → LSPET on two CPU cores: a base model and stage 1 of every method in well under an hour.

    The papers' net at a quarter of its width and half its resolution. So small a net underfits: it gets a one-cycle
    schedule with a high rate, and milder views than the papers'.
    """
    mild = AugmentConfig(rotation_deg=30, scale=0.2, shift=0.05)
    recipe = Recipe(
        crop=CropConfig(size_px=128),
        net=NetSize(stacks=2, channels=64),
        pose=PoseTraining(epochs=80, batch=16, lr=4e-3, schedule="one-cycle", augment=mild),
        retrain=PoseTraining(epochs=20, batch=16, lr=2e-3, schedule="one-cycle", augment=mild),
        heads=HeadTraining(epochs=40, batch=32, lr=3e-4),
    )
    return Preset(recipe=recipe, stages=2, seeds=1)


def paper() -> Preset:
    """The papers' scale: 2 stacks of 256 channels at 256 px, 80 epochs, five stages, five seeds. It needs a GPU."""
    train = PoseTraining(epochs=80, batch=16, lr=3e-4, schedule="plateau",
                         augment=AugmentConfig(rotation_deg=45, scale=0.25, shift=0.2, flip=0.5))  # fmt: skip
    return Preset(recipe=Recipe(pose=train, retrain=train, heads=HeadTraining(epochs=80, batch=32, lr=3e-4)))


_BY_NAME: dict[PresetName, Callable[[], Preset]] = {"smoke": smoke, "demo": demo, "laptop": laptop, "paper": paper}


def preset(name: PresetName) -> Preset:
    """The preset of a name."""
    if name not in _BY_NAME:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return _BY_NAME[name]()


def read_recipe(path: Path, base: Recipe) -> Recipe:
    """Read a recipe of one's own: a TOML file of the values that differ from those of ``base``.

    Its tables are the fields of :class:`Recipe`: ``[pose]``, ``[pose.augment]``, ``[retrain]``, ``[heads]``, ``[crop]``,
    ``[target]``, ``[net]``. What ``[pose]`` says is also true of training on from a checkpoint, unless ``[retrain]``
    says otherwise.

    Raises:
        ConfigError: the file is not TOML, or a value in it is not one that the recipe takes.
    """
    try:
        own = tomllib.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"--recipe {path}: byte {error.object[error.start]:#04x} in line {line} is not UTF-8, as TOML must be: "
                          "save the file as UTF-8") from error  # fmt: skip
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--recipe {path}: cannot be read as TOML: {error}: docs/loop.md shows a recipe") from error
    try:
        merged = _merged(to_json(base), own)
        merged["retrain"] = _merged(_merged(to_json(base.retrain), own.get("pose", {})), own.get("retrain", {}))
        return from_json(Recipe, merged, "recipe")
    except AlposeError as error:
        raise ConfigError(f"--recipe {path}: {error}") from error


def with_recipe(chosen: Preset, path: Path | None) -> Preset:
    """The preset with what differs in a file of :func:`read_recipe`; None leaves its own recipe."""
    return chosen if path is None else replace(chosen, recipe=read_recipe(path, chosen.recipe))


def _merged(base: Any, own: Any, where: str = "") -> Any:
    """The values of ``base`` with those of ``own`` in their place, table by table; ``where`` names the table."""
    if not isinstance(base, dict):
        return own
    if not isinstance(own, dict):
        keys = list(base)
        raise ConfigError(f"{where} = {own!r}: {where} is a table of {', '.join(keys)}: write [{where}] and below it a line such "
                          f"as {keys[0]} = {json.dumps(base[keys[0]])}")  # fmt: skip
    below = f"{where}." if where else ""
    return {**base, **{name: _merged(base.get(name), value, f"{below}{name}") for name, value in own.items()}}


def with_net(chosen: Preset, name: NetName | None) -> Preset:
    """The preset with another pose net; None leaves its own."""
    if name is None:
        return chosen
    if name not in NETS:
        raise ConfigError(f"unknown net {name!r}; known: {', '.join(NETS)}")
    return _with_size(chosen, NETS[name])


def with_net_of(chosen: Preset, config: NetConfig) -> Preset:
    """The preset with the net that a checkpoint has."""
    own = {name: value for name, value in asdict(config).items() if name != "joints"}
    return _with_size(chosen, HRNetSize(**own) if isinstance(config, HRNetConfig) else NetSize(**own))


def _with_size(chosen: Preset, size: NetSize | HRNetSize) -> Preset:
    return replace(chosen, recipe=replace(chosen.recipe, net=size))
