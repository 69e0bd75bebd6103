"""One pass over a held-out set, and the score that every detector gives each view.

Shapes: N people or views, B batch, J joints, H W heatmap, K other nets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..augmented_views import augmented_views
from ..data.crops import Crops
from ..device import evaluating
from ..epck import HeadDataset, join
from ..heatmaps import entropy, multipeak_form
from ..methods.catalog import SHIPPED
from ..metrics import Judged
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
    scores: Mapping[str, npt.NDArray[np.float32]]
    """(N,) by detector; higher is worse, each on its own scale."""
    evidence: HeadDataset | None
    """Evidence of the shipped head and the truth, where it was asked for."""

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
    heads = (*model.heads.values(), *model.auxiliary.values(), *ablations.epck.values(), *ablations.loss.values())
    # Another seed for views than the one that trained: the same damage must not be seen twice.
    for seen in augmented_views(model, crops, training.machine, views=views, seed=training.seed + 1000,
                                what=f"{what}, seed {training.seed}"):  # fmt: skip
        with evaluating(model.pose, *heads):
            scores = _free(training, seen) | _heads(training, ablations, seen)
            scores |= _second_opinions(training, ablations, seen, names)
            batch = _truth(training, seen) | {f"score.{name}": value.float() for name, value in scores.items()}
            kept.append({name: value.cpu() for name, value in batch.items()})
            if keep_evidence:
                of_shipped = {SHIPPED: shipped.evidence(seen.features).cpu()}
                evidence.append(HeadDataset(of_shipped, seen.distance_BJ.cpu(), seen.counts_BJ.cpu()))
    arrays: dict[str, npt.NDArray[Any]] = {name: torch.cat([part[name] for part in kept]).numpy() for name in kept[0]}
    loss_N = np.where(arrays["counts_NJ"].any(axis=1), arrays["true_loss_N"], np.nan).astype(np.float32)
    return ScoredViews(
        arrays["rows_N"], arrays["right_NJ"], arrays["counts_NJ"], loss_N,
        {name.removeprefix("score."): value for name, value in arrays.items() if name.startswith("score.")},
        join(evidence) if evidence else None,
    )  # fmt: skip


def _truth(training: Training, seen: Predicted) -> dict[str, Tensor]:
    return {
        "rows_N": torch.from_numpy(seen.rows_B),
        "right_NJ": (seen.distance_BJ < 1) & seen.counts_BJ,
        "counts_NJ": seen.counts_BJ,
        "true_loss_N": true_loss_of(training.model, seen, seen.counts_BJ),
    }


def _free(training: Training, seen: Predicted) -> dict[str, Tensor]:
    """What the heatmaps tell at no cost."""
    maps, peak = reference_maps(training.model, seen), training.model.target.peak
    return {
        "peak": 1 - seen.heatmaps_BSJHW[:, -1].float().flatten(2).amax(dim=2).mean(dim=1) / peak,
        "entropy": entropy(maps, 1.0),
        "multipeak": multipeak_form(maps, "whole-map"),
        "stacks": 1 - read_at_peaks(seen, seen.features.heatmaps[0], peak).mean(dim=1),
    }


def _heads(training: Training, ablations: Ablations, seen: Predicted) -> dict[str, Tensor]:
    maps, features, model = reference_maps(training.model, seen), seen.features, training.model
    scores: dict[str, Tensor] = {name: auxiliary_score(head, features, maps) for name, head in model.auxiliary.items()}
    return scores | {name: head(features) for heads in (model.heads, ablations.loss, ablations.epck)
                     for name, head in heads.items()}  # fmt: skip


def _second_opinions(
    training: Training, ablations: Ablations, seen: Predicted, names: Collection[str]
) -> dict[str, Tensor]:
    """What costs a further pass, of this net or another."""
    model, machine = training.model, training.machine
    scores = {name: 1 - opinions(seen, [net], machine)[0].mean(dim=1) for name, net in ablations.nets.items()}
    if "flip" in names:
        with machine.autocast():
            mirrored = model.pose(seen.images_B3SS.flip(3).contiguous(memory_format=torch.channels_last)).features
        back_BJHW = mirrored.heatmaps[-1].float().flip(3)[:, list(model.skeleton.flip_order())]
        scores["flip"] = 1 - read_at_peaks(seen, back_BJHW, model.target.peak).mean(dim=1)
    if training.others and {"auditor", "committee", "epck+auditor"} & set(names):
        opinion_KB = opinions(seen, training.others, machine).mean(dim=2)
        scores |= {"auditor": 1 - opinion_KB[0], "committee": 1 - opinion_KB.mean(dim=0)}
    return scores
