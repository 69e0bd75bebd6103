"""Options of single methods, which the command line takes as ``NAME=VALUE,…``; without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from alpose.runtime.errors import ConfigError

Border = Literal["kept", "dropped"]
MEMBERS = 5
"""Of a committee."""
EmbeddingName = Literal["coarsest", "penultimate"]
LabelSource = Literal["truth", "predicted"]


def read_options(
    flag: str, text: str, known: Mapping[str, Callable[[str], Any]], wants: Mapping[str, str]
) -> dict[str, Any]:
    """Read ``NAME=VALUE,…``.

    Args:
        flag: the option of the command line, for errors.
        text: what stands behind it.
        known: what turns the text of each value into the value; ValueError where it cannot.
        wants: what a value that cannot be read should be, in words; by default a number.

    Raises:
        ConfigError: an unknown name, one that stands twice, no value, or one that cannot be read.
    """
    values: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or name not in known or name in values:
            raise ConfigError(f"{flag}: {part!r} is not one of {', '.join(known)}, once, as NAME=VALUE")
        try:
            values[name] = known[name](value)
        except ValueError as error:
            raise ConfigError(f"{flag}: {part!r} wants {wants.get(name, 'a number')}") from error
    return values


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreOptions:
    """What the samplers' scores leave open. The official forms of a method have no options."""

    temperature: float = 1.0
    """Of ``entropy`` and ``multipeak``: divides maps whose training peak is 30 before the softmax."""
    border: Border = "kept"
    """Of ``multipeak``: whether peaks within its distance of the edge count."""
    peaks: int = 5
    """Of ``vl4pose``: candidates per joint; its official form has one, as the published configuration."""
    members: int = MEMBERS
    """Of ``ensemble`` its heads, of ``ensemble-nets`` its nets, the one that the stage starts from among them."""

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"--scores: temperature must be above 0, got {self.temperature:g}")
        if self.border not in get_args(Border):
            raise ConfigError(f"--scores: border is {' or '.join(get_args(Border))}, got {self.border!r}")
        if self.peaks < 1:
            raise ConfigError(f"--scores: peaks must be at least 1, got {self.peaks}")
        if self.members < 2:
            raise ConfigError(f"--scores: a committee needs at least 2 members to disagree, got {self.members}")

    @classmethod
    def parse(cls, text: str) -> ScoreOptions:
        """From the command line: such as ``temperature=3,border=dropped,peaks=3,members=7``."""
        whole = dict.fromkeys(("peaks", "members"), "a whole number")
        return cls(
            **read_options("--scores", text, {"temperature": float, "border": str, "peaks": int, "members": int}, whole)
        )

    def of_a_pass(self) -> str:
        """What decides about the scores of a given model, as text; empty for the default.

        Scores that are older than an option are those of its default.
        """
        own = {"temperature": self.temperature, "border": self.border, "peaks": self.peaks}
        default = ScoreOptions()
        return ",".join(f"{name}={value}" for name, value in own.items() if value != getattr(default, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class EglConfig:
    """What the paper leaves open, and where its official code does otherwise."""

    embedding: EmbeddingName = "coarsest"
    """Averaged features that neighbours are near in: of the coarsest scale (paper) or before the heatmaps (code)."""
    labels: LabelSource = "truth"
    """Heatmaps a neighbour lends: drawn from its labels (paper), or what the model predicts for it (code)."""
    neighbours: int = 30
    """K; the paper does not say, the code has 30."""
    perplexity: float = 20.0
    """Of ``egl++``; ``egl++-lle`` has none. The paper does not say; the code says 20 and, by its base of the logarithm,
    computes 75.3."""
    rank: int | None = 6
    """Vector-Jacobian products per image: None for the exact sum, one for each neighbour. A net that knows nothing needs
    fewer than a trained one; ``bench.egl_ranks`` measures what share of the exact sum they hold, and how they order people."""

    def __post_init__(self) -> None:
        for value, known in ((self.embedding, get_args(EmbeddingName)), (self.labels, get_args(LabelSource))):
            if value not in known:
                raise ConfigError(f"--egl: {value!r} is not {' or '.join(known)}")
        if self.neighbours < 1:
            raise ConfigError(f"--egl: neighbours must be at least 1, got {self.neighbours}")
        if not 1 < self.perplexity < math.inf:
            raise ConfigError(f"--egl: perplexity must be over 1, got {self.perplexity:g}")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"--egl: rank must be at least 1, or exact, got {self.rank}")

    @classmethod
    def parse(cls, text: str) -> EglConfig:
        """From the command line: such as ``labels=predicted,embedding=penultimate,neighbours=10,rank=exact``."""
        known: dict[str, Callable[[str], Any]] = {
            "embedding": str, "labels": str, "neighbours": int, "perplexity": float,
            "rank": lambda value: None if value == "exact" else int(value),
        }  # fmt: skip
        wants = {"neighbours": "a whole number", "rank": "a whole number or exact"}
        return cls(**read_options("--egl", text, known, wants))

    def check(self, lenders: int, method: str = "egl++") -> None:
        """Refuse fewer labelled people than a selection will want."""
        wanted, how, less = self.neighbours, f"{self.neighbours} neighbours", "neighbours=10"
        if method == "egl++":
            wanted = max(wanted, math.floor(self.perplexity) + 1)
            how, less = f"{how} at perplexity {self.perplexity:g}", f"{less},perplexity=5"
        if lenders < wanted:
            raise ConfigError(
                f"{method} needs at least {wanted} labelled people with a joint in view for {how}, there are {lenders} "
                f"at the start: raise --initial, ask for less with --egl {less}, or leave it out of --methods"
            )
