"""One pass over a held-out set, and the score that every detector gives each view.

Shapes: N people or views, B batch, J joints, H W heatmap, K other nets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..augmented_views import augmented_views
from ..data.crops import Crops
from ..device import MEMORY_FORMAT, evaluating
from ..epck import HeadDataset, join
from ..heatmaps import entropy, multipeak_form
from ..measures.metrics import Judged
from ..methods.catalog import SHIPPED
from ..passes import Predicted
from ..scoring import auxiliary_score, reference_maps, true_loss_of
from .ablations import Ablations, Training, opinions, read_at_peaks


@dataclass(frozen=True, slots=True)
class ScoredViews:
    """A held-out set as one base model sees it."""

    rows_N: npt.NDArray[np.int64]
    right_NJ: npt.NDArray[np.bool_]
    counts_NJ: npt.NDArray[np.bool_]
    true_loss_N: npt.NDArray[np.float32]
    away_NJ: npt.NDArray[np.float32]
    """Predicted to labelled position, in pixels of the view."""
    scores: Mapping[str, npt.NDArray[np.float32]]
    """(N,) by detector; higher is worse, each on its own scale."""
    evidence: HeadDataset | None
    """Evidence of the shipped head and the truth, where it was asked for."""
    joints: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """(N, J) by detector, of those that know joints; higher is more probably right, each on its own scale."""

    def image_pck(self) -> npt.NDArray[np.float32]:
        """Share of joints that are right, (N,); NaN where none can be judged."""
        return Judged(self.right_NJ, self.counts_NJ, macro=False).image_pck()


def score_views(
    training: Training, ablations: Ablations, crops: Crops, names: Collection[str], *, views: int, what: str,
    keep_evidence: bool = False,
) -> ScoredViews:  # fmt: skip
    """Let every detector score people.

    Args:
        training: the base model, those of other seeds (the first is the auditor, all are the committee), the seed.
        ablations: heads beside those of the model.
        crops: the people.
        names: of the detectors.
        views: damaged views of each person; 0 is everybody once.
        what: name in progress.
        keep_evidence: whether the shipped head's evidence is kept, for the ceiling of a small set.
    """
    model, shipped = training.model, ablations.epck[SHIPPED]
    kept: list[dict[str, Tensor]] = []
    evidence: list[HeadDataset] = []
    heads = (*model.heads.values(), *model.auxiliary.values(), *ablations.epck.values(), *ablations.loss.values(),
             *ablations.candidates.values())  # fmt: skip
    # Another seed for views than the one that trained: the same damage must not be seen twice.
    for seen in augmented_views(model, crops, training.machine, views=views, seed=training.seed + 1000,
                                what=f"{what}, seed {training.seed}"):  # fmt: skip
        with evaluating(model.pose, *heads):
            joints = _joints(training, ablations, seen, names)
            scores = _free(training, seen) | _heads(training, ablations, seen, joints)
            scores |= _candidates(ablations, seen)
            scores |= {
                name: 1 - value_BJ.mean(dim=1) for name, value_BJ in joints.items() if name not in ablations.epck
            }
            batch = _truth(training, seen) | {f"score.{name}": value.float() for name, value in scores.items()}
            batch |= {f"joint.{name}": value.float() for name, value in joints.items()}
            kept.append({name: value.cpu() for name, value in batch.items()})
            if keep_evidence:
                of_shipped = {SHIPPED: shipped.evidence(seen.features).cpu()}
                evidence.append(HeadDataset(of_shipped, seen.distance_BJ.cpu(), seen.counts_BJ.cpu()))
    arrays: dict[str, npt.NDArray[Any]] = {name: torch.cat([part[name] for part in kept]).numpy() for name in kept[0]}
    loss_N = np.where(arrays["counts_NJ"].any(axis=1), arrays["true_loss_N"], np.nan).astype(np.float32)
    return ScoredViews(
        arrays["rows_N"], arrays["right_NJ"], arrays["counts_NJ"], loss_N, arrays["away_NJ"],
        _named("score.", arrays), join(evidence) if evidence else None, _named("joint.", arrays),
    )  # fmt: skip


def _named(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _truth(training: Training, seen: Predicted) -> dict[str, Tensor]:
    return {
        "rows_N": torch.from_numpy(seen.rows_B),
        "right_NJ": (seen.distance_BJ < 1) & seen.counts_BJ,
        "counts_NJ": seen.counts_BJ,
        "away_NJ": (seen.keypoints_BJ2 - seen.joints_BJ2).norm(dim=2).float(),
        "true_loss_N": true_loss_of(training.model, seen, seen.counts_BJ),
    }


def _free(training: Training, seen: Predicted) -> dict[str, Tensor]:
    """What the heatmaps tell of an image at no cost."""
    maps = reference_maps(training.model, seen)
    return {"entropy": entropy(maps, 1.0), "multipeak": multipeak_form(maps, "whole-map")}


def _heads(
    training: Training, ablations: Ablations, seen: Predicted, joints: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    maps, features, model = reference_maps(training.model, seen), seen.features, training.model
    scores: dict[str, Tensor] = {name: auxiliary_score(head, features, maps) for name, head in model.auxiliary.items()}
    scores |= {name: head(features) for heads in (model.heads, ablations.loss) for name, head in heads.items()}
    return scores | {name: head.logit_of(joints[name]) for name, head in ablations.epck.items()}


def _candidates(ablations: Ablations, seen: Predicted) -> dict[str, Tensor]:
    if ablations.further is None:
        return {}
    further = ablations.further.read(seen)
    evidence_BJD = ablations.epck[SHIPPED].evidence(seen.features)
    return {name: head.score(evidence_BJD, further) for name, head in ablations.candidates.items()}


def _joints(training: Training, ablations: Ablations, seen: Predicted, names: Collection[str]) -> dict[str, Tensor]:
    """What detectors that look at each joint by itself say of it, (B, J): higher is more probably right.

    Logits of the heads, and shares of the training peak. The last four cost a further pass, of this net or another.
    """
    model, machine, peak = training.model, training.machine, training.model.target.peak
    joints = {name: head.logits(head.evidence(seen.features)) for name, head in ablations.epck.items()}
    joints["peak"] = seen.heatmaps_BSJHW[:, -1].float().flatten(2).amax(dim=2) / peak
    joints["stacks"] = read_at_peaks(seen, seen.features.heatmaps[0], peak)
    if {"flip", "epck+flip"} & set(names):
        with machine.autocast():
            mirrored = model.pose(seen.images_B3SS.flip(3).contiguous(memory_format=MEMORY_FORMAT)).features
        back_BJHW = mirrored.heatmaps[-1].float().flip(3)[:, list(model.skeleton.flip_order())]
        joints["flip"] = read_at_peaks(seen, back_BJHW, peak)
    if training.others and {"auditor", "committee", "epck+auditor"} & set(names):
        opinion_KBJ = opinions(seen, training.others, machine)
        joints |= {"auditor": opinion_KBJ[0], "committee": opinion_KBJ.mean(dim=0)}
    return joints
