"""Auxiliary heads: what a pose net's features say of its uncertainty, for the samplers that need more than heatmaps.

Like loss heads they take :class:`Features`, learn on the frozen pose net and never touch it; unlike them they do not
predict a loss, but the parameters of a likelihood (``aleatoric``, ``vl4pose``) or heatmaps of their own (``ensemble``).

Shapes: B batch, J joints, L links of the skeleton's tree, K members, C channels, h w a pyramid scale, H W heatmap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from alpose.runtime.errors import ConfigError
from alpose.runtime.skeleton import Skeleton

from ..methods.catalog import head_named, resolve
from ..methods.options import MEMBERS
from .hourglass import Features

if TYPE_CHECKING:
    from ..cycles.run import Run

Links = tuple[tuple[int, int], ...]


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


def check_links(method: str, run: Run, _labelled_N: object) -> None:
    """Refuse a benchmark whose skeleton has no links to judge."""
    if not any(a != b for a, b in run.people.data.skeleton.links):
        raise _no_links(method)


def _no_links(name: str) -> ConfigError:
    return ConfigError(f"{name} judges the lengths of links, the skeleton has none: add them to the dataset, or leave the "
                       "method out of --methods")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class AuxiliaryConfig:
    """Which auxiliary head, and the features it will see."""

    name: str
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
        if head_named(self.name).group != "auxiliary":
            raise ConfigError(f"{self.name!r} is not an auxiliary head, it predicts a loss")
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
            raise _no_links(self.name)
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


def build_auxiliary(config: AuxiliaryConfig) -> AuxiliaryHead:
    """The head that a config names, with the weights that torch's generator gives."""
    head: AuxiliaryHead = resolve(head_named(config.name).module)(config)
    return head
