"""Auxiliary heads: what a pose net's features say of its uncertainty, for the samplers that need more than heatmaps.

Like loss heads they take :class:`Features`, learn on the frozen pose net and never touch it; unlike them they do not
predict a loss, but the parameters of a likelihood (``aleatoric``, ``vl4pose``) or heatmaps of their own (``ensemble``).

Shapes: B batch, J joints, L links of the skeleton's tree, K members, C channels, h w a pyramid scale, H W heatmap.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import Skeleton

from .hourglass import Features

AuxiliaryName = Literal["aleatoric", "aleatoric-official", "vl4pose", "vl4pose-official", "ensemble"]
AUXILIARY: tuple[AuxiliaryName, ...] = get_args(AuxiliaryName)

Links = tuple[tuple[int, int], ...]

WIDTH = 128
"""Units between the averaged features and the parameters."""
MEMBERS = 5
"""Heads of the committee."""
LOG_VARIANCE_REACH = 10.0
"""Log-variances stay within this of their start: exp() of them never overflows, even in a head that diverges."""


def tree_of(skeleton: Skeleton) -> Links:
    """The skeleton's links as a tree of (parent, child), every parent before its children.

    Breadth first from the head (a joint called head, else nose, else the first), so that links that close a ring are
    left out: on LSP the 13 and on MPII the 15 links of the published VL4Pose. Joints that no link reaches from there
    begin trees of their own; one without any link is in none.
    """
    neighbours: dict[int, list[int]] = {joint: [] for joint in range(len(skeleton))}
    for a, b in skeleton.links:
        neighbours[a].append(b)
        neighbours[b].append(a)
    names = [name.lower() for name in skeleton.joints]
    first = next((j for word in ("head", "nose") for j, name in enumerate(names) if word in name), 0)
    tree: list[tuple[int, int]] = []
    reached: set[int] = set()
    for root in (first, *range(len(skeleton))):
        waiting = [] if root in reached else [root]
        reached.add(root)
        for parent in waiting:  # grows while it is walked through
            for child in neighbours[parent]:
                if child not in reached:
                    reached.add(child)
                    waiting.append(child)
                    tree.append((parent, child))
    return tuple(tree)


def check_skeleton(name: str, skeleton: Skeleton) -> None:
    """Refuse an auxiliary head that a skeleton cannot have."""
    if name.startswith("vl4pose") and not any(a != b for a, b in skeleton.links):
        raise ConfigError(
            f"{name} judges the lengths of links, skeleton {skeleton.name!r} has none: add them to the dataset, or "
            "leave the method out of --methods"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxiliaryConfig:
    """Which auxiliary head, and the features it will see."""

    name: AuxiliaryName
    widths: tuple[int, ...]
    """Channels of each pyramid scale, finest first; the penultimate features have the finest's."""
    sizes: tuple[int, ...]
    """Side of each pyramid scale, finest first; the first is the heatmaps'."""
    joints: int
    links: Links
    """(parent, child), parents first: :func:`tree_of`."""
    peak: float = 30.0
    """Height of the training heatmaps."""
    members: int = MEMBERS

    def __post_init__(self) -> None:
        if self.name not in AUXILIARY:
            raise ConfigError(f"unknown auxiliary head {self.name!r}; known: {', '.join(AUXILIARY)}")
        if not self.sizes or len(self.widths) != len(self.sizes) or min(*self.widths, *self.sizes, self.joints) < 1:
            raise ConfigError(f"auxiliary head: scales want as many widths, and joints, all positive, got {self}")
        if not self.peak > 0:
            raise ConfigError(f"auxiliary head: the heatmaps' peak must be positive, got {self.peak}")
        children = [child for _, child in self.links]
        known = all(0 <= joint < self.joints for link in self.links for joint in link)
        late = any(parent in children[place:] for place, (parent, _) in enumerate(self.links))
        if not known or len(set(children)) != len(children) or late:
            raise ConfigError(f"auxiliary head: links are no tree with parents first: {self.links}")
        if self.name.startswith("vl4pose") and not self.links:
            raise ConfigError(f"{self.name} judges the lengths of links, there are none")
        if self.members < 2:
            raise ConfigError(f"a committee needs at least 2 members to disagree, got {self.members}")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AuxiliaryConfig:
        """Back from ``asdict`` and JSON, where tuples became lists."""
        links = tuple((int(parent), int(child)) for parent, child in value["links"])
        return cls(**{**value, "widths": tuple(value["widths"]), "sizes": tuple(value["sizes"]), "links": links})

    @property
    def official(self) -> bool:
        """Whether its objective and score are those of the published code, defects included."""
        return self.name.endswith("-official")


class AuxiliaryHead(nn.Module):
    """Base of all: holds its config and says what it returns."""

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, features: Features) -> Tensor:
        """What the subclass says, (B, ...), also for B = 1."""
        raise NotImplementedError


class _Averaged(nn.Module):
    """Every scale and the penultimate map averaged → FC → ReLU → FC: (B, outputs)."""

    def __init__(self, config: AuxiliaryConfig, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(sum(config.widths) + config.widths[0], WIDTH)
        self.out = nn.Linear(WIDTH, outputs)

    def forward(self, features: Features) -> Tensor:
        maps = (*features.pyramid, features.penultimate_BCHW)
        averaged = torch.cat([scale_BChw.mean(dim=(2, 3)) for scale_BChw in maps], dim=1)
        result: Tensor = self.out(functional.relu(self.hidden(averaged)))
        return result


class AleatoricHead(AuxiliaryHead):
    """Log-variance of each joint's position (after Kendall and Gal, NeurIPS 2017, Eq. 5, on coordinates)."""

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__(config)
        self.net = _Averaged(config, config.joints)
        self.start = 2 * math.log(max(1.0, config.sizes[0] / 32))

    def forward(self, features: Features) -> Tensor:
        """Log-variances s (B, J): ln of squared heatmap cells, per axis."""
        return self.start + _bounded(self.net(features))


class LinkHead(AuxiliaryHead):
    """Length of each link of the skeleton and its log-variance (VL4Pose: Shukla et al., BMVC 2022).

    The net works in an eighth of the map, about a limb: from zero a length in cells takes an Adam of small steps
    longer than the whole training.
    """

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__(config)
        self.net = _Averaged(config, 2 * len(config.links))
        self.unit = config.sizes[0] / 8

    def forward(self, features: Features) -> Tensor:
        """(B, L, 2): mean length in heatmap cells, and the log of its variance in squared cells."""
        raw_BL2 = self.net(features).unflatten(1, (-1, 2))
        length_BL = self.unit * functional.softplus(raw_BL2[..., 0])
        log_variance_BL = 2 * math.log(self.unit) + _bounded(raw_BL2[..., 1])
        return torch.stack([length_BL, log_variance_BL], dim=-1)


class Committee(AuxiliaryHead):
    """K small heads that each read heatmaps off the penultimate features: 3x3 convolution, ReLU, 1x1 convolution.

    They start from different weights and see different resamples of the people (bagging: Breiman, 1996). The last
    layers start at zero: what members disagree about is then what they learnt, and no noise of their beginning.
    """

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__(config)
        middle = max(4, config.widths[0] // 2)
        self.hidden = nn.ModuleList(nn.Conv2d(config.widths[0], middle, 3, padding=1) for _ in range(config.members))
        self.out = nn.ModuleList(nn.Conv2d(middle, config.joints, 1) for _ in range(config.members))
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Features) -> Tensor:
        """Heatmaps of every member (B, K, J, H, W)."""
        last = features.penultimate_BCHW
        maps = [out(functional.relu(hidden(last))) for hidden, out in zip(self.hidden, self.out, strict=True)]
        return self.config.peak * torch.stack(maps, dim=1)


def build_auxiliary(config: AuxiliaryConfig) -> AuxiliaryHead:
    """The head that a config names, with the weights that torch's generator gives."""
    match config.name:
        case "aleatoric" | "aleatoric-official":
            return AleatoricHead(config)
        case "vl4pose" | "vl4pose-official":
            return LinkHead(config)
        case "ensemble":
            return Committee(config)


def seeded_auxiliary(config: AuxiliaryConfig, seed: int) -> AuxiliaryHead:
    """A head with fresh weights that depend on ``seed`` and its name alone; torch's generator is left as it was."""
    digest = hashlib.sha256(f"{seed}/auxiliary {config.name}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        return build_auxiliary(config)


def _bounded(raw: Tensor) -> Tensor:
    return LOG_VARIANCE_REACH * torch.tanh(raw / LOG_VARIANCE_REACH)
