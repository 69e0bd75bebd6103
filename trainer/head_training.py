"""Loss heads of every kind, trained on a frozen pose net: each kind has its own views and its own objective."""

from __future__ import annotations

from collections.abc import Mapping

from .checkpoint import PoseModel
from .data.crops import Crops
from .device import Machine
from .epck import EpckTraining, train_epck
from .models.expected_pck import ExpectedPckHead
from .models.heads import HeadName, LossHead
from .training import HeadTraining, train_heads


def train_all_heads(
    model: PoseModel,
    heads: Mapping[HeadName, LossHead],
    crops: Crops,
    config: HeadTraining,
    machine: Machine,
    *,
    seed: int,
    validation: float,
    what: str = "loss heads",
) -> dict[str, list[float]]:
    """Train heads in place on a frozen pose net, which does not change by a bit.

    Args:
        model: the pose net.
        heads: of any kind; those of expected PCK learn from damaged views and joints, the others from pairs of images.
        crops: all labelled people; those that validated the pose net train no head.
        config: of the heads that learn from pairs.
        machine: where.
        seed: decides order and views.
        validation: share of the people that validated the pose net.
        what: name in progress and log.

    Returns:
        Each head's mean loss per epoch.
    """
    joints: dict[str, ExpectedPckHead] = {
        name: head for name, head in heads.items() if isinstance(head, ExpectedPckHead)
    }
    pairs = {name: head for name, head in heads.items() if name not in joints}
    losses: dict[str, list[float]] = {}
    if pairs:
        losses |= train_heads(model, pairs, crops, config, machine, seed=seed, validation=validation, what=what)
    if joints:
        what = what.replace("loss head", "expected-PCK head")
        losses |= train_epck(model, joints, crops, EpckTraining(), machine, seed=seed, validation=validation, what=what)
    return losses
