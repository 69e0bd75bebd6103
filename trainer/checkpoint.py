"""One checkpoint: pose net, its loss heads, and all that is needed to use them, as safetensors + JSON.

``model.safetensors`` holds weights (``pose.*``, ``head.NAME.*``, ``auxiliary.NAME.*``), ``model.json`` everything else
and the sha256 of the weights. Nothing is pickled, and a pair of files that do not belong together is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from alpose.runtime.crop import CropRule
from alpose.runtime.errors import CheckpointError, ConfigError, DataError
from alpose.runtime.io import read_json, write_atomically, write_json
from alpose.runtime.skeleton import Skeleton

from .data.crops import CropConfig
from .device import MEMORY_FORMAT
from .methods.catalog import head_named
from .methods.options import MEMBERS
from .models import NetConfig, PoseNet, build_net, channels_of, net_from_json, net_to_json
from .models.auxiliary import AuxiliaryConfig, AuxiliaryHead, build_auxiliary, tree_of
from .models.heads import HeadConfig, HeadName, LossHead, build_head
from .models.hourglass import STRIDE

SCHEMA = 1
WEIGHTS, FACTS = "model.safetensors", "model.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetConfig:
    """The heatmaps that a pose net is trained towards."""

    sigma: float = 1.75
    """Standard deviation of the bell in heatmap cells."""
    peak: float = 30.0

    def __post_init__(self) -> None:
        if not (0 < self.sigma < math.inf and 0 < self.peak < math.inf):
            raise ConfigError(f"target: sigma and peak must be positive, got {self}")


@dataclass(frozen=True, slots=True)
class PoseModel:
    """A pose net with its loss heads and the conventions it was trained under."""

    pose: PoseNet
    heads: Mapping[HeadName, LossHead]
    skeleton: Skeleton
    crop: CropConfig
    target: TargetConfig
    facts: Mapping[str, Any]
    """Provenance in plain JSON values: data, config, metrics."""
    auxiliary: Mapping[str, AuxiliaryHead] = field(default_factory=dict)
    """Heads of the samplers that need more than heatmaps and losses; most models have none."""

    def __post_init__(self) -> None:
        size_px = self.crop.size_px
        if size_px % 64 or self.crop.rule != CropRule(width_px=size_px, height_px=size_px, margin=self.crop.margin):
            raise ConfigError(
                f"crop: our own nets take square crops around a box on black, of a size_px that is a multiple of 64, got "
                f"{self.crop}"
            )

    @property
    def size(self) -> int:
        """Side of the heatmaps in cells."""
        return self.crop.size_px // STRIDE

    def with_heads(self, heads: Mapping[HeadName, LossHead]) -> PoseModel:
        """The same pose net with these heads besides its own."""
        return replace(self, heads={**self.heads, **heads})

    def with_auxiliary(self, heads: Mapping[str, AuxiliaryHead]) -> PoseModel:
        """The same pose net with these auxiliary heads besides its own."""
        return replace(self, auxiliary={**self.auxiliary, **heads})

    def to(self, device: torch.device) -> PoseModel:
        """Move the weights, convolutions in channels-last order."""
        with torch.inference_mode(False):  # weights that were moved in inference mode could never be trained again
            self.pose.to(device, memory_format=MEMORY_FORMAT)  # type: ignore[call-overload]
            for head in (*self.heads.values(), *self.auxiliary.values()):
                head.to(device)
        return self


def new_model(config: NetConfig, skeleton: Skeleton, crop: CropConfig, target: TargetConfig, seed: int) -> PoseModel:
    """A pose net with fresh weights that depend on ``seed`` alone, without heads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pose = build_net(config)
    return PoseModel(pose, {}, skeleton, crop, target, {})


def new_head(model: PoseModel, name: HeadName, seed: int) -> LossHead:
    """A head with fresh weights that fits a model's features; the weights depend on ``seed`` and ``name`` alone."""
    with _seeded(f"{seed}/{name}"):
        return build_head(head_config(model, name))


def new_auxiliary(model: PoseModel, name: str, seed: int, *, members: int = MEMBERS) -> AuxiliaryHead:
    """An auxiliary head with fresh weights that fits a model; they depend on ``seed``, ``name`` and ``members`` alone."""
    net = model.pose.config
    config = AuxiliaryConfig(
        name=name, widths=net.widths, sizes=net.sizes(model.size), joints=len(model.skeleton),
        links=tree_of(model.skeleton), peak=model.target.peak, members=members,
    )  # fmt: skip
    with _seeded(f"{seed}/auxiliary {name}"):
        return build_auxiliary(config)


@contextmanager
def _seeded(purpose: str) -> Iterator[None]:
    """Torch's generator seeded by a hash inside, and as it was after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:7], "little"))
        yield


def head_config(model: PoseModel, name: HeadName) -> HeadConfig:
    """The config of a head that fits a model: its features and, for heads that read them, its heatmaps."""
    net, head = model.pose.config, head_named(name)
    config = HeadConfig(name=name, channels=channels_of(net), sizes=net.sizes(model.size), **head.options)
    return replace(config, joints=len(model.skeleton), peak=model.target.peak) if head.reads_maps else config


def save(model: PoseModel, folder: Path) -> Path:
    """Write a checkpoint; the JSON goes last, so that a half-written one is no checkpoint."""
    weights = {f"pose.{key}": value for key, value in model.pose.state_dict().items()}
    for name, head in model.heads.items():
        weights |= {f"head.{name}.{key}": value for key, value in head.state_dict().items()}
    for asked, auxiliary in model.auxiliary.items():
        weights |= {f"auxiliary.{asked}.{key}": value for key, value in auxiliary.state_dict().items()}
    content = safetensors.torch.save({key: value.cpu().contiguous() for key, value in weights.items()})
    facts = {
        "schema": SCHEMA,
        "kind": "alpose pose model",
        "sha256": hashlib.sha256(content).hexdigest(),
        "pose": net_to_json(model.pose.config),
        "heads": {name: asdict(head.config) for name, head in model.heads.items()},
        "skeleton": model.skeleton.to_json(),
        "crop": asdict(model.crop),
        "target": asdict(model.target),
        "facts": dict(model.facts),
    }
    if model.auxiliary:
        facts["auxiliary"] = {name: asdict(head.config) for name, head in model.auxiliary.items()}
    # The JSON of an older checkpoint must not stand beside the new weights, not even for a moment.
    (folder / FACTS).unlink(missing_ok=True)
    write_atomically(folder / WEIGHTS, content)
    return write_json(folder / FACTS, facts)


def exists(folder: Path) -> bool:
    """Whether a complete checkpoint is there."""
    return (folder / FACTS).exists()


def load(path: Path, device: torch.device | None = None) -> PoseModel:
    """Read a checkpoint from its folder or from the path of its weights; weights are float32, in eval mode.

    Raises :class:`CheckpointError`, naming the file, for anything that is not a whole and matching pair.
    """
    folder = path.parent if path.name in (WEIGHTS, FACTS) else path
    facts_path, weights_path = folder / FACTS, folder / WEIGHTS
    for part in (facts_path, weights_path):
        if not part.exists():
            raise CheckpointError(f"{part} does not exist: a checkpoint is {WEIGHTS} with {FACTS} beside it")
    try:
        facts = read_json(facts_path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(facts, dict) or facts.get("kind") != "alpose pose model" or facts.get("schema") != SCHEMA:
        raise CheckpointError(f"{facts_path} does not describe an alpose pose model of schema {SCHEMA}")
    if not isinstance(facts.get("heads"), dict) or not isinstance(facts.get("facts"), dict):
        raise CheckpointError(f"{facts_path} is damaged: its heads and facts must be objects")
    if not isinstance(facts.get("auxiliary", {}), dict):
        raise CheckpointError(f"{facts_path} is damaged: its auxiliary heads must be an object")
    content = weights_path.read_bytes()
    if hashlib.sha256(content).hexdigest() != facts.get("sha256"):
        raise CheckpointError(f"{weights_path} is not the file that {facts_path.name} was written for: sha256 differs")
    try:
        weights = safetensors.torch.load(content)
        pose = build_net(net_from_json(facts["pose"]))
        pose.load_state_dict(_part(weights, "pose."))
        heads: dict[HeadName, LossHead] = {}
        for name, value in facts["heads"].items():
            heads[name] = build_head(_head_config(value))
            heads[name].load_state_dict(_part(weights, f"head.{name}."))
        auxiliary: dict[str, AuxiliaryHead] = {}
        for name, value in facts.get("auxiliary", {}).items():
            auxiliary[name] = build_auxiliary(AuxiliaryConfig.from_json(value))
            auxiliary[name].load_state_dict(_part(weights, f"auxiliary.{name}."))
        model = PoseModel(pose.eval(), heads, Skeleton.from_json(facts["skeleton"]), CropConfig(**facts["crop"]),
                          TargetConfig(**facts["target"]), facts["facts"], auxiliary)  # fmt: skip
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is not a usable checkpoint: {error}") from error
    if len(model.skeleton) != pose.config.joints:
        raise CheckpointError(f"{facts_path} has a skeleton of {len(model.skeleton)} joints for a net of "
                              f"{pose.config.joints} joints")  # fmt: skip
    for head in (*heads.values(), *auxiliary.values()):
        head.eval()
    return model.to(device or torch.device("cpu"))


def _head_config(value: Mapping[str, Any]) -> HeadConfig:
    channels = value["channels"]  # JSON has lists where we have tuples
    return HeadConfig(**{**value, "sizes": tuple(value["sizes"]),
                         "channels": channels if isinstance(channels, int) else tuple(channels)})  # fmt: skip


def _part(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
