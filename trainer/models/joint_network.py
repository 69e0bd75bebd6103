"""The network that turns evidence of joints into the probability that each of them is right.

It knows nothing of where evidence comes from: of the heatmaps and features of our own nets
(:mod:`~alpose.trainer.models.expected_pck`), or of somebody else's net (:mod:`alpose.trainer.foreign`).

Shapes: B batch, N views, J joints, D evidence of a joint, M hidden units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

OWN, SHARED = 16, 32
"""Hidden units of each joint, and of all joints together."""
DROPOUT = 0.4
CERTAIN = 1e-4
"""Shares of wrong joints nearer than this to 0 or 1 are told apart no more."""


class JointNetwork(nn.Module):
    """A small network per joint, with a view of all joints; made by :meth:`build`."""

    mean_JD: Tensor
    deviation_JD: Tensor

    def build(
        self, joints: int, depth: int, *, per_joint: bool = True, shared: int = SHARED, dropout: float = DROPOUT
    ) -> None:
        """Draw the weights.

        Args:
            joints: J.
            depth: D.
            per_joint: whether every joint has hidden units of its own.
            shared: hidden units of all joints together.
            dropout: share of the hidden units that are dropped in training.
        """
        self.depth, self.per_joint = depth, per_joint
        self.register_buffer("mean_JD", torch.zeros(joints, depth))
        self.register_buffer("deviation_JD", torch.ones(joints, depth))
        if per_joint:
            self.own = nn.Parameter(torch.randn(joints, depth, OWN) / math.sqrt(depth))
            self.own_bias = nn.Parameter(torch.zeros(joints, 1, OWN))
            self.out_own = nn.Parameter(0.05 * torch.randn(joints, OWN, 1))
        self.shared = nn.Linear(joints * (OWN if per_joint else depth), shared)
        self.out_shared = nn.Linear(shared, joints)
        self.drop = nn.Dropout(dropout)

    def logit(self, evidence_BJD: Tensor) -> Tensor:
        """Logit of the share of joints that are expected to be wrong, (B,)."""
        return self.logit_of(self.logits(evidence_BJD))

    def logit_of(self, logits_BJ: Tensor) -> Tensor:
        """The same from what :meth:`logits` says of the joints, (B,)."""
        return share_to_logit(1 - torch.sigmoid(logits_BJ).mean(dim=1))

    def logits(self, evidence_BJD: Tensor) -> Tensor:
        """Logit of each joint's probability to be right, (B, J)."""
        scaled_BJD = (evidence_BJD - self.mean_JD) / self.deviation_JD
        if not self.per_joint:
            return self.out_shared(self.drop(functional.relu(self.shared(scaled_BJD.flatten(1)))))
        own_JBM = self.drop(functional.relu(scaled_BJD.transpose(0, 1) @ self.own + self.own_bias))
        shared_BM = self.drop(functional.relu(self.shared(own_JBM.transpose(0, 1).flatten(1))))
        return (own_JBM @ self.out_own)[..., 0].transpose(0, 1) + self.out_shared(shared_BM)

    def standardise(self, evidence_NJD: Tensor) -> None:
        """Take mean and deviation of every number of the evidence from the people that train the head."""
        self.mean_JD.copy_(evidence_NJD.mean(dim=0))
        # A number that never changes says nothing, and must not be blown up where it changes one day.
        one_alone = len(evidence_NJD) == 1  # has no deviation
        self.deviation_JD.copy_(evidence_NJD.std(dim=0, correction=int(not one_alone)).clamp_min(1e-3))

    @torch.no_grad()
    def leave_out(self, untaught_J: Tensor, share: float) -> None:
        """Let joints that nobody could teach say of everybody what all joints are on average.

        Their weights are what they were drawn as; in the mean over joints that would be noise.

        Args:
            untaught_J: mask.
            share: of right joints in training, in (0, 1).
        """
        if self.per_joint:
            self.out_own[untaught_J] = 0.0
        self.out_shared.weight[untaught_J] = 0.0
        self.out_shared.bias[untaught_J] = math.log(share / (1 - share))


def share_to_logit(share_B: Tensor) -> Tensor:
    """``ln(s / (1 - s))``: what a share of wrong joints becomes, so that a calibration can be linear in it."""
    share_B = share_B.clamp(CERTAIN, 1 - CERTAIN)
    return torch.log(share_B) - torch.log1p(-share_B)
