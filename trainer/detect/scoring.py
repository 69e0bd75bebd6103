"""One pass over a held-out set, and what every detector says of it.

Shapes: N people or views, B batch, J joints, H W heatmap, K other nets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..augmented_views import augmented_views
from ..checkpoint import PoseModel
from ..data.crops import Crops
from ..device import Machine, evaluating
from ..epck import HeadDataset, join
from ..heatmaps import entropy, multipeak_form
from ..methods.catalog import SHIPPED
from ..metrics import Judged
from ..passes import Predicted
from ..scoring import auxiliary_score, reference_maps, true_loss_of
from .students import Students, others_say, read_at_peaks


@dataclass(frozen=True, slots=True)
class View:
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
    model: PoseModel, others: Sequence[PoseModel], students: Students, crops: Crops, machine: Machine,
    names: Collection[str], *, views: int, seed: int, what: str, keep_evidence: bool = False,
) -> View:  # fmt: skip
    """Let every detector score people.

    Args:
        model: base model with the papers' heads.
        others: base models of other seeds; the first is the auditor, all are the committee.
        students: heads beside those of the model.
        crops: the people.
        machine: where.
        names: of the detectors.
        views: damaged views of each person; 0 is everybody once.
        seed: decides the views.
        what: name in progress.
        keep_evidence: whether the shipped head's evidence is kept, for the ceiling of a small set.
    """
    kept: list[dict[str, Tensor]] = []
    evidence: list[HeadDataset] = []
    shipped = students.epck[SHIPPED]
    # Another seed for views than the one that trained: the same damage must not be seen twice.
    for seen in augmented_views(model, crops, machine, views=views, seed=seed + 1000, what=what):
        with evaluating(
            model.pose, *model.heads.values(), *model.auxiliary.values(), *students.epck.values(),
            *students.loss.values(),
        ):  # fmt: skip
            kept.append({name: value.cpu() for name, value in _truth(model, seen).items()})
            scores = (
                _free(model, seen)
                | _heads(model, students, seen)
                | _second_opinions(model, others, students, machine, seen, names)
            )
            kept[-1] |= {f"score.{name}": value.float().cpu() for name, value in scores.items()}
            if keep_evidence:
                of_shipped = {SHIPPED: shipped.evidence(seen.features).cpu()}
                evidence.append(HeadDataset(of_shipped, seen.distance_BJ.cpu(), seen.counts_BJ.cpu()))
    arrays: dict[str, npt.NDArray[Any]] = {name: torch.cat([part[name] for part in kept]).numpy() for name in kept[0]}
    loss_N = np.where(arrays["counts_NJ"].any(axis=1), arrays["true_loss_N"], np.nan).astype(np.float32)
    own = {name.removeprefix("score."): value for name, value in arrays.items() if name.startswith("score.")}
    return View(
        arrays["rows_N"], arrays["right_NJ"], arrays["counts_NJ"], loss_N, own, join(evidence) if evidence else None
    )


def _truth(model: PoseModel, seen: Predicted) -> dict[str, Tensor]:
    return {
        "rows_N": torch.from_numpy(seen.rows_B),
        "right_NJ": (seen.distance_BJ < 1) & seen.counts_BJ,
        "counts_NJ": seen.counts_BJ,
        "true_loss_N": true_loss_of(model, seen, seen.counts_BJ),
    }


def _free(model: PoseModel, seen: Predicted) -> dict[str, Tensor]:
    """What the heatmaps say for nothing."""
    maps, peak = reference_maps(model, seen), model.target.peak
    return {
        "peak": 1 - seen.heatmaps_BSJHW[:, -1].float().flatten(2).amax(dim=2).mean(dim=1) / peak,
        "entropy": entropy(maps, 1.0),
        "multipeak": multipeak_form(maps, "whole-map"),
        "stacks": 1 - read_at_peaks(seen, seen.features.heatmaps[0], peak).mean(dim=1),
    }


def _heads(model: PoseModel, students: Students, seen: Predicted) -> dict[str, Tensor]:
    maps, features = reference_maps(model, seen), seen.features
    scores: dict[str, Tensor] = {name: auxiliary_score(head, features, maps) for name, head in model.auxiliary.items()}
    return scores | {name: head(features) for heads in (model.heads, students.loss, students.epck)
                     for name, head in heads.items()}  # fmt: skip


def _second_opinions(
    model: PoseModel, others: Sequence[PoseModel], students: Students, machine: Machine, seen: Predicted,
    names: Collection[str],
) -> dict[str, Tensor]:  # fmt: skip
    """What costs a further pass, of this net or another."""
    scores = {name: 1 - others_say(seen, [net], machine)[0].mean(dim=1) for name, net in students.nets.items()}
    if "flip" in names:
        with machine.autocast():
            mirrored = model.pose(seen.images_B3SS.flip(3).contiguous(memory_format=torch.channels_last)).features
        back_BJHW = mirrored.heatmaps[-1].float().flip(3)[:, list(model.skeleton.flip_order())]
        scores["flip"] = 1 - read_at_peaks(seen, back_BJHW, model.target.peak).mean(dim=1)
    if others and {"auditor", "committee", "epck+auditor"} & set(names):
        said_KB = others_say(seen, others, machine).mean(dim=2)
        scores |= {"auditor": 1 - said_KB[0], "committee": 1 - said_KB.mean(dim=0)}
    return scores
