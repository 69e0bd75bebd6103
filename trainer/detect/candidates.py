"""Heads that were tried and do not ship: the shipped head with more to read, other people to learn from, or another objective.

A row of ``detect`` is a :class:`Candidate`; it learns from the very views that train the shipped head.

Shapes: N people or views, B batch, J joints, D evidence of a joint, E further numbers of it, F failures, G successes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..device import DeviceContext
from ..epck import EpckTraining, HeadDataset, Term, fit, join
from ..methods.catalog import SHIPPED
from ..models.joint_network import JointNetwork, share_to_logit
from .further_evidence import GROUPS, PIXELS, picture

TERM_WEIGHT = 0.1
LIST_TEMPERATURE = 0.25
"""Of the shares of wrong joints whose order a list learns."""
BRANCH = (12, 16, 16)
"""Channels of the shallow branch, each half as fine as the one before."""


def pairwise(logits_BJ: Tensor, target_BJ: Tensor, counts_BJ: Tensor) -> Tensor:
    """Rank every failure of a batch above every success: the logistic loss of their pairs' margins."""
    guess_B, wrong_B = _shares(logits_BJ, target_BJ, counts_BJ)
    margin_FG = guess_B[wrong_B > 0.5][:, None] - guess_B[wrong_B <= 0.5]
    return TERM_WEIGHT * functional.softplus(-margin_FG).sum() / max(margin_FG.numel(), 1)


def listwise(logits_BJ: Tensor, target_BJ: Tensor, counts_BJ: Tensor) -> Tensor:
    """Order a whole batch by its shares of wrong joints (ListNet, Cao et al., ICML 2007: the top-one probabilities)."""
    guess_B, wrong_B = _shares(logits_BJ, target_BJ, counts_BJ)
    wanted_B = (wrong_B / LIST_TEMPERATURE).softmax(dim=0)
    return -TERM_WEIGHT * (wanted_B * guess_B.log_softmax(dim=0)).sum()


def _shares(logits_BJ: Tensor, target_BJ: Tensor, counts_BJ: Tensor) -> tuple[Tensor, Tensor]:
    """Logit of the expected share of wrong joints, and the true share, of the joints that count, (B,)."""
    counted_B = counts_BJ.sum(dim=1).clamp_min(1.0)
    guess_B = 1 - (torch.sigmoid(logits_BJ) * counts_BJ).sum(dim=1) / counted_B
    return share_to_logit(guess_B), 1 - (target_BJ * counts_BJ).sum(dim=1) / counted_B


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is different from the shipped head."""

    reads: tuple[str, ...] = ()
    """Of :data:`GROUPS`."""
    errors: bool = False
    """Whether views with errors made up after PoseFix train it besides."""
    term: Term | None = None
    members: int = 1
    """Heads, of which the mean is taken."""


CANDIDATES: dict[str, Candidate] = {
    "epck-partner": Candidate(reads=("partner",)),
    "epck-errors": Candidate(errors=True),
    "epck-facing": Candidate(reads=("facing",)),
    "epck-coarse": Candidate(reads=("coarse",)),
    "epck-pixels": Candidate(reads=("pixels",)),
    "epck-skeleton": Candidate(reads=("skeleton",)),
    "epck-mass": Candidate(reads=("mass",)),
    "epck-pairwise": Candidate(term=pairwise),
    "epck-listwise": Candidate(term=listwise),
    "epck-three": Candidate(members=3),
    "epck-all": Candidate(reads=GROUPS, errors=True, term=pairwise, members=3),
}


class CandidateHead(JointNetwork):
    """The network of the shipped head on more evidence; a picture at the end of it goes through a branch of its own."""

    def __init__(self, joints: int, depth: int, *, pictured: bool) -> None:
        super().__init__()
        self.build(joints, depth)
        channels = (3, *BRANCH)
        layers = [part for inner, outer in itertools.pairwise(channels)
                  for part in (nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.ReLU())]  # fmt: skip
        flat = BRANCH[-1] * (PIXELS // 2 ** len(BRANCH)) ** 2
        self.branch: nn.Sequential | None = None
        if pictured:
            self.branch = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(flat, joints))

    def logits(self, evidence_BJD: Tensor) -> Tensor:
        """Logit of each joint's probability to be right, (B, J)."""
        own_BJ = super().logits(evidence_BJD[..., : self.depth])
        return own_BJ if self.branch is None else own_BJ + self.branch(picture(evidence_BJD[..., self.depth :]))

    def standardise(self, evidence_NJD: Tensor) -> None:
        """Take mean and deviation of the evidence, not of the picture."""
        super().standardise(evidence_NJD[..., : self.depth])

    @torch.no_grad()
    def leave_out(self, untaught_J: Tensor, share: float) -> None:
        """As of every head; the picture says nothing of these joints either."""
        super().leave_out(untaught_J, share)
        if self.branch is not None:
            last = self.branch[-1]
            assert isinstance(last, nn.Linear)
            last.weight[untaught_J], last.bias[untaught_J] = 0.0, 0.0


class MeanHead(nn.Module):
    """Heads that read the same, and what they expect on average."""

    def __init__(self, heads: Sequence[CandidateHead], reads: Sequence[str]) -> None:
        super().__init__()
        self.heads, self.reads = nn.ModuleList(heads), tuple(reads)

    def score(self, shipped_BJD: Tensor, further: Mapping[str, Tensor]) -> Tensor:
        """Logit of the share of joints that are expected to be wrong, (B,), of the shipped head's evidence and the rest."""
        evidence_BJD = together(shipped_BJD, further, self.reads)
        heads = (head for head in self.heads if isinstance(head, CandidateHead))
        right_BJ = torch.stack([torch.sigmoid(head.logits(evidence_BJD)) for head in heads]).mean(dim=0)
        return share_to_logit(1 - right_BJ.mean(dim=1))


def together(shipped_BJD: Tensor, further: Mapping[str, Tensor], reads: Sequence[str]) -> Tensor:
    """The shipped head's evidence and these groups in the order of :data:`GROUPS`, the picture last, (B, J, D + E)."""
    return torch.cat([shipped_BJD, *(further[group] for group in GROUPS if group in reads)], dim=2)


def train_candidates(
    names: Sequence[str], plain: HeadDataset, with_errors: Callable[[], HeadDataset], config: EpckTraining,
    machine: DeviceContext, seed: int,
) -> dict[str, MeanHead]:  # fmt: skip
    """Train those of :data:`CANDIDATES` that are named.

    Args:
        names: of detectors.
        plain: what the shipped head learns from, with every group of evidence.
        with_errors: the same of views with made-up errors.
        config: of the shipped head.
        machine: where to compute.
        seed: of the weights and of the order.
    """
    wanted = {name: candidate for name, candidate in CANDIDATES.items() if name in names}
    both = join([plain, with_errors()]) if any(candidate.errors for candidate in wanted.values()) else None
    made = {}
    for name, candidate in wanted.items():
        source = both if candidate.errors and both else plain
        evidence_NJD = together(source.evidence[SHIPPED], source.evidence, candidate.reads)
        pictured = "pixels" in candidate.reads
        depth = evidence_NJD.shape[2] - (source.evidence["pixels"].shape[2] if pictured else 0)
        heads: dict[str, JointNetwork] = {}
        for member in range(candidate.members):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed + 1000 * member)
                heads[f"{name} {member}"] = CandidateHead(evidence_NJD.shape[1], depth, pictured=pictured)
        fit(heads, source._replace(evidence=dict.fromkeys(heads, evidence_NJD)), config, machine, seed=seed,
            term=candidate.term)  # fmt: skip
        made[name] = MeanHead([head for head in heads.values() if isinstance(head, CandidateHead)], candidate.reads)
    return made
