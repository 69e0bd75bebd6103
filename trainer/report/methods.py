"""Every method: its place in the tables, its meaning in a few words, and how its line is drawn.

Colours are Okabe and Ito's (2008), darkened for white paper and lightened for a dark screen; dash and marker
tell the lines apart without colour.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RANDOM = "random"
ORACLES = ("oracle-loss", "oracle-pck")
"""These select with the true labels: ceilings, not competitors."""


@dataclass(frozen=True, slots=True)
class Look:
    """How one method is drawn, in all figures and tables."""

    light: str
    """Colour on white paper."""
    dark: str
    """Colour on a dark screen."""
    dash: tuple[float, ...] = ()
    """Lengths on and off in units of the line width; empty is a solid line."""
    marker: str = "o"
    """matplotlib's name."""
    meaning: str = ""


LOOKS = {
    "random": Look("#737b86", "#98a3b3", (4, 2), "x", "drawn uniformly from the pool"),
    "coreset": Look("#b97a00", "#f0b23c", (), "s", "k-centre greedy: far from all that is labelled"),
    "entropy": Look("#2a8cc4", "#6cc3f2", (), "^", "entropy of the heatmaps"),
    "multipeak": Look("#00835f", "#2cc699", (), "v", "entropy over the peaks of the heatmaps"),
    "multipeak-2021": Look("#00835f", "#2cc699", (2, 2), "v", "the same, by the code published with LearningLoss++"),
    "multipeak-2022": Look("#00835f", "#2cc699", (5, 1.5), "v", "the same, by the published code's last release"),
    "epck": Look("#b3261e", "#ff7b72", (), "H", "expected PCK: a head that says of each joint whether it is right"),
    "epck-slim": Look("#b3261e", "#ff7b72", (2, 2), "H", "the same, from the heights of the peaks alone"),
    "ll": Look("#b8478a", "#ee9bc9", (), "D", "Learning Loss: a head that ranks pairs, with a margin"),
    "ll-gap": Look("#6a45a8", "#b49cf0", (6, 1.5), "P", "Learning Loss on globally averaged features"),
    "ll++": Look("#00569c", "#5aa4f5", (), "o", "LearningLoss++: a head with the KL objective"),
    "ll++conv": Look("#c44a00", "#ff8a4a", (), "h", "LearningLoss++ with the convolutional head"),
    "egl++": Look("#7a3b12", "#d99b6c", (), "p", "EGL++: expected gradient if the labels were a neighbour's"),
    "egl++-lle": Look("#7a3b12", "#d99b6c", (2, 2), "p", "EGL++ with neighbours by locally linear embedding"),
    "aleatoric": Look("#2f6f73", "#7fd0d4", (), "d", "a head that predicts how far off each joint is"),
    "aleatoric-official": Look("#2f6f73", "#7fd0d4", (2, 2), "d", "the same, by the published code's formula"),
    "vl4pose": Look("#8a1f3c", "#f07f99", (), ">", "VL4Pose: how unlikely the limbs' lengths are"),
    "vl4pose-official": Look("#8a1f3c", "#f07f99", (2, 2), ">", "the same, by the published code's formula"),
    "ensemble": Look("#7a6a00", "#d6c84a", (), "*", "query by committee: heads that disagree about the heatmaps"),
    "ensemble-nets": Look("#7a6a00", "#d6c84a", (2, 2), "*", "query by committee: whole nets of other seeds"),
    "oracle-loss": Look("#1c2430", "#eef2f7", (1, 1.5), "1", "picks by the true loss: needs labels"),
    "oracle-pck": Look("#1c2430", "#eef2f7", (5, 1.5, 1, 1.5), "2", "picks by the true PCK: needs labels"),
}

SPARE = (
    Look("#7a6a00", "#d6c84a", (3, 1), "<"),
    Look("#8a1f3c", "#f07f99", (3, 1), ">"),
    Look("#2f6f73", "#7fd0d4", (3, 1), "d"),
    Look("#5a5aa8", "#a9a9f5", (3, 1), "*"),
)
"""For methods this file does not know yet."""


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct methods as the tables list them: known ones, then new ones as they came, then oracles."""
    distinct = dict.fromkeys(names)
    known = [name for name in LOOKS if name in distinct and name not in ORACLES]
    new = [name for name in distinct if name not in LOOKS]
    return (*known, *new, *(name for name in ORACLES if name in distinct))


def looks(methods: tuple[str, ...]) -> dict[str, Look]:
    """A look for each method; new ones take the spare looks in turn."""
    new = [name for name in methods if name not in LOOKS]
    spare = {name: SPARE[place % len(SPARE)] for place, name in enumerate(new)}
    return {name: LOOKS.get(name) or spare[name] for name in methods}


def is_scorer(method: str) -> bool:
    """Neither random nor an oracle: a method that has to find failures by itself."""
    return method != RANDOM and method not in ORACLES
