"""The detectors that are compared: names, kinds and one sentence each, as the report shows them."""

from __future__ import annotations

from collections.abc import Mapping

from ..models.heads import HeadName
from .stored import DetectorInfo, Kind

SHIPPED, SLIM, TINY = "epck", "epck-slim", "auditor-tiny"

PAPERS: tuple[HeadName, ...] = ("ll", "ll++", "ll++conv")
"""Loss heads as the papers train them; the base model of a seed carries them."""

_KIND: dict[str, tuple[Kind, str, str | None]] = {
    "peak": ("free", "one minus the mean height of the last heatmaps' peaks", None),
    "entropy": ("free", "mean entropy of the last heatmaps", None),
    "multipeak": ("free", "entropy over the peaks of each heatmap", None),
    "stacks": ("free", "how little the first stack's maps hold where the last ones look", None),
    "ll": ("paper", "Learning Loss: four-scale head, margin ranking", None),
    "ll++": ("paper", "LearningLoss++: averaged features, KL objective", None),
    "ll++conv": ("paper", "LearningLoss++, convolutional", None),
    "aleatoric": ("paper", "predicted variance of the joints' positions", None),
    "vl4pose": ("paper", "skeleton likelihood: how unlikely the predicted limbs are", None),
    "ensemble": ("paper", "disagreement of five heatmap heads on the same features", None),
    "ll++conv-damaged": (
        "candidate", "the convolutional head, trained on damaged views and all pairs of a batch", "ll++conv"
    ),
    SHIPPED: (
        "shipped", "expected PCK: each joint's probability of being right, read where its heatmap looks; damaged views",
        None,
    ),
    SLIM: ("slim", "the same from the heights of the peaks alone", SHIPPED),
    "epck-maps": ("candidate", "without the features: heatmaps alone", SHIPPED),
    "epck-mild": ("candidate", "trained on the views of the papers' heads, without damage, in place of damaged ones", SHIPPED),
    "epck-image": ("candidate", "every joint taught by the image's share of right joints in place of its own truth", SHIPPED),
    "epck-unfitted": ("candidate", "trained also on the people who only validated the pose net", SHIPPED),
    "epck-out-of-fold": (
        "candidate", "trained also on people whom forks of the pose net had been made to forget", SHIPPED
    ),
    "epck-distilled": (
        "candidate", "trained also on unlabelled people of the pool, by what the committee makes of them", SHIPPED
    ),
    "auditor-tiny": (
        "candidate", "heatmaps of an hourglass of its own, one stack of 16 channels, read where the net looks", None
    ),
    "epck+auditor-tiny": ("candidate", "monotone logistic fusion of the head and that small net", SHIPPED),
    "epck+free": ("candidate", "monotone logistic fusion of the head, the peaks and the entropy", SHIPPED),
    "flip": ("costed", "heatmaps of the mirrored image read where the first ones look: a second pass", None),
    "auditor": ("costed", "heatmaps of a second net of the same size, read where the first one looks", None),
    "committee": ("costed", "the same, of all other seeds' nets", None),
    "epck+auditor": ("costed", "monotone logistic fusion of the head and the second net", None),
    "in-domain": ("ceiling", "the shipped head trained on labels of the very domain, other people", None),
    "true-loss": ("oracle", "the true loss itself", None),
}  # fmt: skip

NAMES: tuple[str, ...] = tuple(_KIND)
FREE: tuple[str, ...] = tuple(name for name, (kind, _, _) in _KIND.items() if kind == "free")
AUXILIARY_NAMES = ("aleatoric", "vl4pose", "ensemble")
FUSED: dict[str, tuple[str, ...]] = {
    "epck+free": (SHIPPED, "peak", "entropy"),
    "epck+auditor-tiny": (SHIPPED, "auditor-tiny"),
    "epck+auditor": (SHIPPED, "auditor"),
}
"""What fusions are made of."""
OF_OTHER_NETS = ("auditor", "committee", "epck-distilled", "epck+auditor")
"""Want the base model of another seed."""


Cost = tuple[int, float | None, float | None]
"""Parameters, milliseconds and share of the pose net's time; None where no clock could run."""


def infos(names: tuple[str, ...], costs: Mapping[str, Cost]) -> tuple[DetectorInfo, ...]:
    """Catalogue entries of detectors.

    Args:
        names: which.
        costs: parameters, milliseconds and share of the pose net's time by detector, where they were measured.
    """
    found = []
    for name in names:
        kind, what, ablates = _KIND[name]
        parameters, latency_ms, share = costs.get(name, (None, None, None))
        found.append(DetectorInfo(
            name=name, kind=kind, what=what, parameters=parameters, latency_ms=latency_ms, latency_share=share,
            probability=kind not in ("oracle", "ceiling"), ablates=ablates if ablates in names else None,
        ))  # fmt: skip
    return tuple(found)
