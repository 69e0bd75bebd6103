"""What tells failures of somebody else's net: scores that cost nothing, and heads that learn from stored evidence.

Every detector is a module that takes a :class:`~.reader.Reading` and the pooled taps, and gives the predicted loss of each
image (higher means worse) and the confidence of each joint.

Shapes: N images, J joints of the net, L joints that are labelled, D evidence of a joint, F facts among it, C features among
it, K components that the features are reduced to, P pooled features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from alpose.runtime.errors import ConfigError

from ..methods.catalog import head_named
from ..models.heads import HeadConfig, build_head
from ..models.hourglass import Features
from ..models.joint_network import JointNetwork, share_to_logit
from .reader import Reading

Reduction = Literal["mean", "worst"]
HeadKind = Literal["free", "epck", "facts", "facts+features", "ll", "ll++"]
HEADS: tuple[HeadKind, ...] = ("epck", "facts", "facts+features", "ll", "ll++")
"""Those that are learned; where nothing tells them apart the first is taken.

``epck`` averages the logits of ``facts``, which carry over to other pictures better, and ``facts+features``, which know more of
pictures like those that trained them.
"""
JOINT_HEADS: tuple[HeadKind, ...] = ("epck", "facts", "facts+features")
"""Those that give every joint a probability."""

COMPONENTS = 32
"""Directions that the features at the joints are reduced to, so that a few thousand views suffice to learn from them."""
_LOW_IS_BAD = (
    "score",
    "visibility",
    "presence",
    "peak",
    "map's peak",
    "map at the point",
    "flag",
    "centre",
    "candidate",
)
_HIGH_IS_BAD = ("entropy", "map's entropy", "distance to the map's peak", "distance to the regression",
                "mirror's map at the point")  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """One detector of a net's failures."""

    kind: HeadKind
    joints: tuple[int, ...]
    """Of the net, those that are labelled: nothing else enters a score."""
    facts: int = 0
    """Leading numbers of the evidence that are read."""
    channels: int = 0
    """Features behind them."""
    components: int = 0
    """What the features are reduced to."""
    pooled: tuple[int, ...] = ()
    """Channels of each tap."""
    fact: int = 0
    """The number of a free score among the evidence."""
    reduction: Reduction = "mean"
    sign: int = 1
    """-1 where a low number is bad."""

    @property
    def depth(self) -> int:
        """Numbers of each joint that a head learns from."""
        return self.facts + self.components


class Detector(nn.Module):
    """Base: predicted loss (N,) and confidence (N, J) from what a net says."""

    joints_L: Tensor
    place_J: Tensor
    known_J: Tensor

    def __init__(self, config: DetectorConfig, joints: int) -> None:
        super().__init__()
        self.config = config
        place_J = [config.joints.index(j) if j in config.joints else 0 for j in range(joints)]
        self.register_buffer("joints_L", torch.tensor(config.joints), persistent=False)
        self.register_buffer("place_J", torch.tensor(place_J), persistent=False)
        known_J = torch.tensor([j in config.joints for j in range(joints)])
        self.register_buffer("known_J", known_J, persistent=False)

    def forward(self, reading: Reading, pooled_NP: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted loss (N,) and confidence (N, J); a joint without labels has the others' mean."""
        evidence_NLD = reading.evidence_NJD[:, self.joints_L]
        confidence_NL = self.confidence(evidence_NLD)
        confidence_NJ = torch.where(
            self.known_J, confidence_NL[:, self.place_J], confidence_NL.mean(dim=1, keepdim=True)
        )
        return self.loss(evidence_NLD, pooled_NP), confidence_NJ

    def loss(self, evidence_NLD: Tensor, pooled_NP: Tensor) -> Tensor:
        """Predicted loss (N,) from the evidence of the labelled joints."""
        raise NotImplementedError

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """How right each labelled joint is likely to be, (N, L), in [0, 1]."""
        raise NotImplementedError


class FreeScore(Detector):
    """One number of the evidence, averaged over the joints or at its worst: nothing is learned but its usual range."""

    middle_L: Tensor
    spread_L: Tensor

    def __init__(self, config: DetectorConfig, joints: int) -> None:
        super().__init__(config, joints)
        self.register_buffer("middle_L", torch.zeros(len(config.joints)))
        self.register_buffer("spread_L", torch.ones(len(config.joints)))

    def fit_range(self, evidence_NLD: Tensor) -> None:
        """Take the range that makes a confidence of the number, from people that train."""
        value_NL = evidence_NLD[:, :, self.config.fact].float()
        self.middle_L.copy_(value_NL.mean(dim=0))
        self.spread_L.copy_(value_NL.std(dim=0, correction=0).clamp_min(1e-6))

    def loss(self, evidence_NLD: Tensor, pooled_NP: Tensor) -> Tensor:
        """The number with its sign: higher is worse."""
        value_NL = self.config.sign * evidence_NLD[:, :, self.config.fact]
        return value_NL.amax(dim=1) if self.config.reduction == "worst" else value_NL.mean(dim=1)

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """A monotone image of the number in (0, 1); calibration makes a probability of it."""
        value_NL = evidence_NLD[:, :, self.config.fact]
        return torch.sigmoid(-self.config.sign * (value_NL - self.middle_L) / self.spread_L)


class JointHead(JointNetwork, Detector):
    """The expected-PCK head on stored evidence: a probability to be right for every labelled joint."""

    directions_CK: Tensor

    def __init__(self, config: DetectorConfig, joints: int) -> None:
        super().__init__(config, joints)
        self.register_buffer("directions_CK", torch.zeros(config.channels, config.components))
        self.build(len(config.joints), config.depth)

    def fit_directions(self, evidence_NLD: Tensor) -> None:
        """Take the directions of most variance of the features at the joints, each feature in its own deviation."""
        config = self.config
        if not config.components:
            return
        features_MC = evidence_NLD[:, :, config.facts : config.facts + config.channels].flatten(0, 1)
        deviation_C = features_MC.std(dim=0, correction=0)
        quiet_C = deviation_C < 1e-3
        scaled_MC = (features_MC - features_MC.mean(dim=0)) / deviation_C.masked_fill(quiet_C, 1.0)
        scaled_MC[:, quiet_C] = 0.0
        _, vectors_CC = torch.linalg.eigh((scaled_MC.T @ scaled_MC).double())
        directions_CK = (
            vectors_CC[:, -config.components :].flip(1).float() / deviation_C.masked_fill(quiet_C, 1.0)[:, None]
        )
        # Of the two signs the one whose largest part is positive, so that every machine takes the same.
        largest_K = directions_CK.gather(0, directions_CK.abs().argmax(dim=0, keepdim=True))
        self.directions_CK.copy_(directions_CK * largest_K.sign())

    def reduced(self, evidence_NLD: Tensor) -> Tensor:
        """What the network reads: facts, and the features' components, (N, L, F + K)."""
        facts_NLF = evidence_NLD[:, :, : self.config.facts]
        if not self.config.components:
            return facts_NLF
        features_NLC = evidence_NLD[:, :, self.config.facts : self.config.facts + self.config.channels]
        return torch.cat([facts_NLF, features_NLC @ self.directions_CK], dim=2)

    def loss(self, evidence_NLD: Tensor, pooled_NP: Tensor) -> Tensor:
        """Logit of the share of labelled joints that are expected to be wrong."""
        return self.logit(self.reduced(evidence_NLD))

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """Probability of each labelled joint to be right."""
        return torch.sigmoid(self.logits(self.reduced(evidence_NLD)))


def parts_of(config: DetectorConfig) -> tuple[DetectorConfig, DetectorConfig]:
    """The two heads that ``epck`` averages."""
    return replace(config, kind="facts", channels=0, components=0), replace(config, kind="facts+features")


class AveragedHead(Detector):
    """The logits of two heads on the joints, averaged: one that reads facts alone, one that reads features too."""

    def __init__(self, config: DetectorConfig, joints: int) -> None:
        super().__init__(config, joints)
        self.heads = nn.ModuleList([JointHead(part, joints) for part in parts_of(config)])

    def members(self) -> list[JointHead]:
        """The heads."""
        return [head for head in self.heads if isinstance(head, JointHead)]

    def logits(self, evidence_NLD: Tensor) -> Tensor:
        """Averaged logit of each labelled joint, (N, L)."""
        said = [head.logits(head.reduced(evidence_NLD)) for head in self.members()]
        return torch.stack(said).mean(dim=0)

    def loss(self, evidence_NLD: Tensor, pooled_NP: Tensor) -> Tensor:
        """Logit of the share of labelled joints that are expected to be wrong."""
        return share_to_logit(1 - torch.sigmoid(self.logits(evidence_NLD)).mean(dim=1))

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """Probability of each labelled joint to be right."""
        return torch.sigmoid(self.logits(evidence_NLD))


class PooledHead(Detector):
    """A loss head of Learning Loss or LearningLoss++ on the taps' averages; joints keep the net's own score."""

    mean_P: Tensor
    deviation_P: Tensor

    def __init__(self, config: DetectorConfig, joints: int) -> None:
        super().__init__(config, joints)
        if not config.pooled:
            raise ConfigError(f"{config.kind} reads feature taps, and this net's spec names none: state --taps")
        # The convention of the papers: ll looks at every scale by itself, ll++ at one vector.
        channels = config.pooled if config.kind == "ll" else (sum(config.pooled),)
        self.head = build_head(HeadConfig(name=config.kind, channels=channels, sizes=(1,) * len(channels)))
        self.register_buffer("mean_P", torch.zeros(sum(config.pooled)))
        self.register_buffer("deviation_P", torch.ones(sum(config.pooled)))

    def standardise(self, pooled_NP: Tensor) -> None:
        """Take mean and deviation of every feature from the people that train the head."""
        self.mean_P.copy_(pooled_NP.mean(dim=0))
        self.deviation_P.copy_(pooled_NP.std(dim=0, correction=0).clamp_min(1e-3))

    def features(self, pooled_NP: Tensor) -> Features:
        """The standardised averages as maps of one cell, as the heads take them."""
        scaled_NP11 = ((pooled_NP - self.mean_P) / self.deviation_P)[:, :, None, None]
        scales = scaled_NP11.split(self.config.pooled, dim=1) if self.config.kind == "ll" else (scaled_NP11,)
        return Features(tuple(scales), scales[-1])

    def loss(self, evidence_NLD: Tensor, pooled_NP: Tensor) -> Tensor:
        """What the head predicts."""
        predicted_N: Tensor = self.head(self.features(pooled_NP))
        return predicted_N

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """The net's own score."""
        return evidence_NLD[:, :, self.config.fact].clamp(0.0, 1.0)


def build_detector(config: DetectorConfig, joints: int) -> Detector:
    """Build a detector with the weights that torch's generator gives."""
    if config.kind == "free":
        return FreeScore(config, joints)
    if config.kind in ("ll", "ll++"):
        head_named(config.kind)
        return PooledHead(config, joints)
    return AveragedHead(config, joints) if config.kind == "epck" else JointHead(config, joints)


def free_scores(facts: Sequence[str], joints: Sequence[int]) -> dict[str, DetectorConfig]:
    """Every score that costs nothing, by name: the mean over the labelled joints and the worst of them, of each fact whose
    direction is known; ``mean score`` and ``lowest score``, the net's own, come first.
    """
    found = {}
    for place, name in enumerate(facts):
        kind = name.rstrip("0123456789").strip()
        sign = -1 if kind in _LOW_IS_BAD or kind.startswith(("peak ",)) else 1
        if sign == 1 and kind not in _HIGH_IS_BAD and not kind.startswith("entropy "):
            continue
        for reduction in ("mean", "worst"):
            word = "mean" if reduction == "mean" else ("lowest" if sign < 0 else "highest")
            if word != "mean" and kind in ("flag", "centre", "candidate"):
                continue  # one number of an image
            found[f"{word} {name}"] = DetectorConfig(
                kind="free", joints=tuple(joints), fact=place, reduction=reduction, sign=sign
            )
    own = {name: found[name] for name in ("mean score", "lowest score")}
    return own | found
