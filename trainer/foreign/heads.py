"""What tells failures of somebody else's net: scores that cost nothing, and heads that learn from stored evidence.

Every detector is a module that takes a :class:`~.reader.Reading` and a summary of the taps, and gives the predicted loss of
each image (higher means worse) and the confidence of each joint.

Shapes: N images, J joints of the net, L joints that are labelled, D evidence of a joint, F facts among it, C features among
it, K components that the features are reduced to, P numbers of the taps' summary: their averages, or their coarse maps; M
hidden units of a joint, S and Q units that all joints share and read.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from alpose.runtime.errors import ConfigError

from ..methods.catalog import head_named
from ..models.heads import HeadConfig, build_head
from ..models.hourglass import Features
from ..models.joint_network import JointNetwork, share_to_logit
from .reader import NetReader, Reading

Reduction = Literal["mean", "worst"]
HeadKind = Literal["free", "epck", "facts", "facts+features", "ll", "ll++", "ll++conv"]
HEADS: tuple[HeadKind, ...] = ("epck", "facts", "facts+features", "ll", "ll++", "ll++conv")
"""Those that are learned; where nothing tells them apart the first is taken.

``epck`` averages the logits of ``facts``, which carry over to other pictures better, and ``facts+features``, which know more of
pictures like those that trained them.
"""
JOINT_HEADS: tuple[HeadKind, ...] = ("epck", "facts", "facts+features")
"""Those that give every joint a probability."""
TAP_HEADS: tuple[HeadKind, ...] = ("ll", "ll++", "ll++conv")
"""Those that read taps as a whole, of which the last reads coarse maps and the others averages."""

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
_HIGH_IS_BAD = ("entropy", "distance to the map's peak", "distance to the regression",
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
    """Channels of each tap, as its head sees it."""
    sides: tuple[int, ...] = ()
    """Cells along a side of each tap; none where taps are averages."""
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

    stored: ClassVar[Literal["evidence_NJD", "pooled_NC", "maps_NM"]] = "evidence_NJD"
    """Where stored evidence has the summary; most detectors need none beside the joints' evidence."""
    joints_L: Tensor
    spread_LJ: Tensor

    def __init__(self, config: DetectorConfig, joints: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("joints_L", torch.tensor(config.joints), persistent=False)
        # Every labelled joint has its own confidence, the others the mean of those.
        spread_LJ = torch.full((len(config.joints), joints), 1 / len(config.joints))
        spread_LJ[:, list(config.joints)] = torch.eye(len(config.joints))
        self.register_buffer("spread_LJ", spread_LJ, persistent=False)

    def summary(self, reader: NetReader, tensors: Sequence[Tensor]) -> Tensor:
        """What it reads of the taps as a whole, (N, P)."""
        return tensors[0].new_zeros(tensors[0].shape[0], 0)

    def forward(self, reading: Reading, summary_NP: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted loss (N,) and confidence (N, J); a joint without labels has the others' mean."""
        evidence_NLD = reading.evidence_NJD.index_select(1, self.joints_L)
        return self.loss(evidence_NLD, summary_NP), self.confidence(evidence_NLD) @ self.spread_LJ

    def for_graph(self, reader: NetReader) -> tuple[NetReader, Detector]:
        """What a graph computes: a reader of no more than this detector looks at, and the detector as it then reads.

        Both together answer as before, but for rounding. A fact of one image's maps, and the entropy of a net's own answers, which
        calibration weighs beside every head, stay.
        """
        raise NotImplementedError

    def _reading_one(self, reader: NetReader) -> tuple[NetReader, Detector]:
        """Of a detector that reads one fact."""
        name = reader.facts[self.config.fact]
        narrow = reader.narrowed([name, *(each for each in reader.facts[: reader.count] if is_entropy(each))])
        other = copy.deepcopy(self)
        other.config = replace(self.config, fact=narrow.facts.index(name))
        return narrow, other

    def loss(self, evidence_NLD: Tensor, summary_NP: Tensor) -> Tensor:
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

    def for_graph(self, reader: NetReader) -> tuple[NetReader, Detector]:
        """Only its fact is read."""
        return self._reading_one(reader)

    def fit_range(self, evidence_NLD: Tensor) -> None:
        """Take the range that makes a confidence of the number, from people that train."""
        value_NL = evidence_NLD[:, :, self.config.fact].float()
        self.middle_L.copy_(value_NL.mean(dim=0))
        self.spread_L.copy_(value_NL.std(dim=0, correction=0).clamp_min(1e-6))

    def loss(self, evidence_NLD: Tensor, summary_NP: Tensor) -> Tensor:
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

    def for_graph(self, reader: NetReader) -> tuple[NetReader, Detector]:
        """Components are taken of whole maps, and scaling is in the weights."""
        return folded([self], reader)

    def loss(self, evidence_NLD: Tensor, summary_NP: Tensor) -> Tensor:
        """Logit of the share of labelled joints that are expected to be wrong."""
        return self.logit(self.reduced(evidence_NLD))

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """Probability of each labelled joint to be right."""
        return torch.sigmoid(self.logits(self.reduced(evidence_NLD)))


class FoldedHead(Detector):
    """Heads on the joints as a graph computes them: scaling is in the weights, and averaged heads are one.

    Args:
        heads: whose logits are averaged; all read the same leading facts, and those that read features the same components.
        joints: of the net.
    """

    def __init__(self, heads: Sequence[JointHead], joints: int) -> None:
        config = max((head.config for head in heads), key=lambda config: config.depth)
        super().__init__(replace(config, channels=0), joints)
        count, labelled = len(heads), len(config.joints)
        own, bias, shared = [], [], []
        for head in heads:
            scaled_LDM = head.own / head.deviation_JD[:, :, None]
            bias.append(head.own_bias - (head.mean_JD / head.deviation_JD)[:, None] @ head.own)
            own.append(functional.pad(scaled_LDM, (0, 0, 0, config.depth - head.config.depth)))
            shared.append(head.shared.weight.T.unflatten(0, (labelled, -1)))
        # Each head's shared units see its own units alone.
        blocks_LMS = [torch.block_diag(*(part_LMS[joint] for part_LMS in shared)) for joint in range(labelled)]
        parts = {
            "own_LDM": torch.cat(own, dim=2),
            "own_bias_L1M": torch.cat(bias, dim=2),
            "out_LM1": torch.cat([head.out_own for head in heads], dim=1) / count,
            "shared_QS": torch.cat(blocks_LMS),
            "shared_bias_S": torch.stack([head.shared.bias for head in heads]).flatten(),
            "out_SL": torch.cat([head.out_shared.weight.T for head in heads]) / count,
            "out_bias_L": torch.stack([head.out_shared.bias for head in heads]).mean(dim=0),
        }
        for name, value in parts.items():
            self.register_buffer(name, value.detach().clone())

    own_LDM: Tensor
    own_bias_L1M: Tensor
    out_LM1: Tensor
    shared_QS: Tensor
    shared_bias_S: Tensor
    out_SL: Tensor
    out_bias_L: Tensor

    def logits(self, evidence_NLD: Tensor) -> Tensor:
        """Logit of each labelled joint, (N, L)."""
        own_LNM = functional.relu(evidence_NLD.transpose(0, 1) @ self.own_LDM + self.own_bias_L1M)
        shared_NS = functional.relu(own_LNM.transpose(0, 1).flatten(1) @ self.shared_QS + self.shared_bias_S)
        return (own_LNM @ self.out_LM1)[..., 0].T + (shared_NS @ self.out_SL + self.out_bias_L)

    def loss(self, evidence_NLD: Tensor, summary_NP: Tensor) -> Tensor:
        """Logit of the share of labelled joints that are expected to be wrong."""
        return share_to_logit(1 - torch.sigmoid(self.logits(evidence_NLD)).mean(dim=1))

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """Probability of each labelled joint to be right."""
        return torch.sigmoid(self.logits(evidence_NLD))

    def for_graph(self, reader: NetReader) -> tuple[NetReader, Detector]:
        """It is made for one."""
        return reader, self


def folded(heads: Sequence[JointHead], reader: NetReader) -> tuple[NetReader, Detector]:
    """Heads whose logits are averaged, as one; and the reader of what they read."""
    wide = max(heads, key=lambda head: head.config.depth)
    directions_CK = wide.directions_CK if wide.config.components else None
    return reader.narrowed(directions_CK=directions_CK), FoldedHead(heads, reader.joints).eval()


def parts_of(config: DetectorConfig) -> tuple[DetectorConfig, DetectorConfig]:
    """The two heads that ``epck`` averages."""
    return replace(config, kind="facts", channels=0, components=0), replace(config, kind="facts+features")


class AveragedHead(Detector):
    """The logits of two heads on the joints, averaged: one that reads facts alone, one that reads features too."""

    def __init__(self, config: DetectorConfig, joints: int) -> None:
        super().__init__(config, joints)
        self.heads = nn.ModuleList([JointHead(part, joints) for part in parts_of(config)])

    def for_graph(self, reader: NetReader) -> tuple[NetReader, Detector]:
        """One head in place of two."""
        return folded(self.members(), reader)

    def members(self) -> list[JointHead]:
        """The heads."""
        return [head for head in self.heads if isinstance(head, JointHead)]

    def logits(self, evidence_NLD: Tensor) -> Tensor:
        """Averaged logit of each labelled joint, (N, L)."""
        said = [head.logits(head.reduced(evidence_NLD)) for head in self.members()]
        return torch.stack(said).mean(dim=0)

    def loss(self, evidence_NLD: Tensor, summary_NP: Tensor) -> Tensor:
        """Logit of the share of labelled joints that are expected to be wrong."""
        return share_to_logit(1 - torch.sigmoid(self.logits(evidence_NLD)).mean(dim=1))

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """Probability of each labelled joint to be right."""
        return torch.sigmoid(self.logits(evidence_NLD))


class PooledHead(Detector):
    """A loss head of Learning Loss or LearningLoss++ on the taps' averages, or the convolutional one of LearningLoss++ on coarse
    maps of them; joints keep the net's own score."""

    mean_P: Tensor
    deviation_P: Tensor

    def __init__(self, config: DetectorConfig, joints: int) -> None:
        super().__init__(config, joints)
        if not config.pooled:
            raise ConfigError(f"{config.kind} reads feature taps, and this net's spec names none: state --taps")
        sides = config.sides or (1,) * len(config.pooled)
        self.stored = "maps_NM" if config.sides else "pooled_NC"  # type: ignore[misc]
        # The convention of the papers: ll++ looks at one vector, the others at every scale by itself.
        self.scales = (
            ((sum(config.pooled), 1),) if config.kind == "ll++" else tuple(zip(config.pooled, sides, strict=True))
        )
        widths, sizes = zip(*self.scales, strict=True)
        self.head = build_head(HeadConfig(name=config.kind, channels=widths, sizes=sizes))
        count = sum(channels * side**2 for channels, side in self.scales)
        self.register_buffer("mean_P", torch.zeros(count))
        self.register_buffer("deviation_P", torch.ones(count))

    def for_graph(self, reader: NetReader) -> tuple[NetReader, Detector]:
        """Of the joints nothing is read but the net's own score."""
        return self._reading_one(reader)

    def summary(self, reader: NetReader, tensors: Sequence[Tensor]) -> Tensor:
        """Averages or coarse maps."""
        return reader.coarse(tensors) if self.config.sides else reader.pooled(tensors)

    def standardise(self, summary_NP: Tensor) -> None:
        """Take mean and deviation of every channel from the people that train the head."""
        means, deviations = [], []
        for scale_NCss in self._maps(summary_NP):
            cells = scale_NCss.shape[2] ** 2
            means.append(scale_NCss.mean(dim=(0, 2, 3)).repeat_interleave(cells))
            deviations.append(scale_NCss.std(dim=(0, 2, 3), correction=0).clamp_min(1e-3).repeat_interleave(cells))
        self.mean_P.copy_(torch.cat(means))
        self.deviation_P.copy_(torch.cat(deviations))

    def features(self, summary_NP: Tensor) -> Features:
        """The standardised summary as maps, as the heads take them; averages are maps of one cell."""
        scales = self._maps((summary_NP - self.mean_P) / self.deviation_P)
        return Features(scales, scales[-1])

    def _maps(self, summary_NP: Tensor) -> tuple[Tensor, ...]:
        parts = summary_NP.split([channels * side**2 for channels, side in self.scales], dim=1)
        return tuple(part.reshape(-1, channels, side, side)
                     for part, (channels, side) in zip(parts, self.scales, strict=True))  # fmt: skip

    def loss(self, evidence_NLD: Tensor, summary_NP: Tensor) -> Tensor:
        """What the head predicts."""
        predicted_N: Tensor = self.head(self.features(summary_NP))
        return predicted_N

    def confidence(self, evidence_NLD: Tensor) -> Tensor:
        """The net's own score."""
        return evidence_NLD[:, :, self.config.fact].clamp(0.0, 1.0)


def build_detector(config: DetectorConfig, joints: int) -> Detector:
    """Build a detector with the weights that torch's generator gives."""
    if config.kind == "free":
        return FreeScore(config, joints)
    if config.kind in TAP_HEADS:
        head_named(config.kind)
        return PooledHead(config, joints)
    return AveragedHead(config, joints) if config.kind == "epck" else JointHead(config, joints)


def is_entropy(fact: str) -> bool:
    """Whether a fact is the entropy of a map or a distribution."""
    return fact.startswith("entropy")


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
