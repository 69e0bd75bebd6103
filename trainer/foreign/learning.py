"""Training of the detectors of somebody else's net on stored evidence, and what they say of it.

Shapes: N views, L labelled joints, D evidence of a joint, P numbers of the taps' summary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.errors import DataError

from ..device import DeviceContext
from ..epck import EpckTraining, HeadDataset, fit, soft_right
from ..methods.catalog import head_named, resolve
from ..models.hourglass import Features
from ..training import HeadBatch, HeadTraining, run_epochs
from .evidence import Evidence
from .heads import (
    COMPONENTS,
    TAP_HEADS,
    AveragedHead,
    Detector,
    DetectorConfig,
    FreeScore,
    HeadKind,
    JointHead,
    PooledHead,
    build_detector,
    parts_of,
)
from .reader import NetReader

PIECE = 1024
"""Views whose evidence is in memory as float32 at a time."""
DIRECTIONS_FROM = 750
"""Views, spread over all, that the directions of the features are taken from; with all their joints that is enough."""
MOST_STANDARDISED = 4000
"""Views, spread over all, that mean and deviation of a summary's channels are taken from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """How heads of a foreign net are trained; chosen on held-out people and damaged views of LSP's training half."""

    joints: EpckTraining = field(default_factory=EpckTraining)
    pooled: HeadTraining = field(default_factory=lambda: HeadTraining(epochs=20, batch=64, lr=1e-3, pairing="all"))
    maps: HeadTraining = field(default_factory=lambda: HeadTraining(epochs=20, batch=64, lr=1e-4, pairing="all"))
    """Of ``ll++conv``, which learns its views by heart at ten times the rate."""
    components: int = COMPONENTS


def config_of(
    kind: HeadKind, reader: NetReader, joints: tuple[int, ...], components: int = COMPONENTS
) -> DetectorConfig:
    """The config of a head that fits a net."""
    channels = len(reader.facts) - reader.count
    with_features, maps = kind in ("epck", "facts+features"), kind == "ll++conv"
    taps = reader.pyramid if maps else [(tap.channels, 1) for tap in reader.taps.values()] if kind in TAP_HEADS else []
    return DetectorConfig(
        kind=kind, joints=joints, facts=reader.count, channels=channels if with_features else 0,
        components=min(components, channels) if with_features else 0,
        pooled=tuple(channels for channels, _ in taps), sides=tuple(side for _, side in taps) if maps else (),
        fact=reader.facts.index("score"),
    )  # fmt: skip


def learn(
    config: DetectorConfig, net_joints: int, evidence: Evidence, how: Learning, machine: DeviceContext, *, seed: int,
    parts: Mapping[str, Detector] | None = None,
) -> Detector:  # fmt: skip
    """A detector trained on views; its weights depend on seed and kind alone.

    ``parts`` are detectors that were trained on the same views with the same seed, by kind: ``epck`` takes its two from them.

    Raises:
        DataError: no joint is labelled and measurable.
    """
    parts = parts or {}
    digest = hashlib.sha256(f"{seed}/foreign/{config.kind}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        detector = build_detector(config, net_joints)
        if isinstance(detector, FreeScore):
            detector.fit_range(torch.from_numpy(np.asarray(evidence.evidence_NJD, np.float32)))
        elif isinstance(detector, AveragedHead):
            for member, part in zip(detector.members(), parts_of(config), strict=True):
                made = parts.get(part.kind) or learn(part, net_joints, evidence, how, machine, seed=seed)
                member.load_state_dict(made.state_dict())
        elif isinstance(detector, JointHead):
            _learn_joints(detector, evidence, how, machine, seed)
        elif isinstance(detector, PooledHead):
            _learn_pooled(detector, evidence, how.maps if detector.config.sides else how.pooled, seed)
    return detector.eval()


def predict(detector: Detector, evidence: Evidence) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Predicted loss (N,) and the confidence (N, L) of the labelled joints."""
    losses, confidences = [], []
    with torch.inference_mode():
        for start in range(0, len(evidence), PIECE):
            rows = slice(start, start + PIECE)
            evidence_NLD = torch.from_numpy(np.asarray(evidence.evidence_NJD[rows], np.float32))
            summary_NP = torch.from_numpy(np.asarray(getattr(evidence, detector.stored)[rows], np.float32))
            losses.append(detector.loss(evidence_NLD, summary_NP).numpy())
            confidences.append(detector.confidence(evidence_NLD).numpy())
    return np.concatenate(losses), np.concatenate(confidences)


def _learn_joints(head: JointHead, evidence: Evidence, how: Learning, machine: DeviceContext, seed: int) -> None:
    wanted = head.config.facts + head.config.channels
    pieces = []
    if head.config.components:
        step = max(1, len(evidence) // DIRECTIONS_FROM)
        head.fit_directions(torch.from_numpy(np.asarray(evidence.evidence_NJD[::step, :, :wanted], np.float32)))
    for start in range(0, len(evidence), PIECE):
        part_NLD = torch.from_numpy(np.asarray(evidence.evidence_NJD[start : start + PIECE, :, :wanted], np.float32))
        pieces.append(head.reduced(part_NLD))
    distance_NL = torch.from_numpy(np.array(evidence.distance_NJ))
    dataset = HeadDataset({"head": torch.cat(pieces)}, distance_NL, torch.from_numpy(np.array(evidence.counts_NJ)))
    fit({"head": head}, dataset, how.joints, machine, seed=seed)


def _learn_pooled(head: PooledHead, evidence: Evidence, how: HeadTraining, seed: int) -> None:
    """By the objective of the head's name, from the share of wrong joints in place of a heatmap's loss."""
    counts_NL = torch.from_numpy(np.array(evidence.counts_NJ))
    right_NL = soft_right(torch.from_numpy(np.array(evidence.distance_NJ)), 0.25).masked_fill(~counts_NL, 0.0)
    true_N = 1 - right_NL.sum(dim=1) / counts_NL.sum(dim=1).clamp_min(1)
    rows_M = torch.nonzero(counts_NL.any(dim=1))[:, 0]
    if len(rows_M) < 2:
        raise DataError("loss heads learn from pairs of people with labelled joints who can be measured: there are "
                        f"{len(rows_M)}")  # fmt: skip
    # As they are stored: coarse maps of many views would fill the memory as float32.
    summary_NP = torch.from_numpy(np.array(getattr(evidence, head.stored)))
    head.standardise(summary_NP[rows_M[:: max(1, len(rows_M) // MOST_STANDARDISED)]].float())
    head.train()
    objective = resolve(head_named(head.config.kind).loss)
    optimiser = torch.optim.AdamW(head.parameters(), how.lr, weight_decay=1e-2)
    size = min(how.batch, len(rows_M))

    def batches(_: int) -> Iterator[Tensor]:
        shuffled_M = rows_M[torch.randperm(len(rows_M))]
        yield from shuffled_M[: len(rows_M) // size * size].split(size)

    class Prepared(torch.nn.Module):
        """Hands the head what it was made for: the objectives call it on the batch's features."""

        def forward(self, features: Features) -> Tensor:
            predicted_B: Tensor = head.head(features)
            return predicted_B

    prepared = Prepared()

    def step(index_B: Tensor) -> dict[str, Tensor]:
        none = torch.zeros(0)
        batch = HeadBatch(head.features(summary_NP[index_B].float()), none, none, none, true_N[index_B],
                          torch.arange(len(index_B)), (), how, seed)  # fmt: skip
        loss: Tensor = objective(prepared, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return {head.config.kind: loss.detach().double()}

    run_epochs(range(how.epochs), batches, step, lambda epoch, mean: None)
    head.eval()
