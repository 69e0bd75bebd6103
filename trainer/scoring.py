"""One pass of a model over people, and everything that any method or metric needs from it.

Heatmaps live for one batch; what remains of a person is a few hundred numbers.

Shapes: N people, B batch, J joints, D embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed

from alpose.runtime.errors import DataError

from .checkpoint import PoseModel
from .data.crops import Crops
from .data.records import Floats
from .device import DeviceContext, evaluating
from .heatmaps import draw, entropy, multipeak_form, to_cells
from .methods.catalog import METHODS, head_named, resolve
from .methods.options import ScoreOptions
from .models.auxiliary import AuxiliaryHead
from .models.heads import HeadName
from .models.hourglass import STRIDE, Features
from .objectives import true_loss
from .passes import Predicted, predict

ENTROPY_TEMPERATURE = ScoreOptions().temperature
"""Divides maps whose training peak is 30 where no other is asked for; exported graphs know this one alone."""

REFERENCE_PEAK = 30.0
"""What maps are scaled to before entropies and peaks are taken of them."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model says of people, and how wrong it is where labels tell."""

    predicted_NJ2: Floats
    """Pixels of the crop."""
    distance_NJ: Floats
    """Predicted to labelled position in *frame* pixels; meaningless where nothing is labelled."""
    peak_NJ: Floats
    """Height of the heatmap's peak as a share of the training peak."""
    true_loss_N: Floats
    """Masked heatmap MSE averaged over stacks; NaN where nothing is labelled."""
    entropy_N: Floats
    multipeak_N: Floats
    embedding_ND: Floats
    """Average of the features before the heatmaps."""
    coarsest_ND: Floats
    """Average of the features of the coarsest scale."""
    predicted_loss: Mapping[HeadName, Floats]
    auxiliary: Mapping[str, Floats] = field(default_factory=dict)
    """Scores of the model's auxiliary heads; higher is chosen first."""
    forms: Mapping[str, Floats] = field(default_factory=dict)
    """Scores of those methods that are computed from the heatmaps and were asked for."""

    def save_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As named arrays for an npz file."""
        arrays = {name: getattr(self, name) for name in COLUMNS}
        for field_, prefix in PREFIXES.items():
            arrays |= {prefix + name: value_N for name, value_N in getattr(self, field_).items()}
        return arrays

    def take(self, rows_M: npt.NDArray[np.integer]) -> Scored:
        """These people, in this order."""
        return Scored.from_arrays({name: value_N[rows_M] for name, value_N in self.save_arrays().items()})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Scored:
        """Back from :meth:`save_arrays`."""
        fields: dict[str, Any] = {name: arrays[name] for name in COLUMNS}
        for field_, prefix in PREFIXES.items():
            named = {name: value_N for name, value_N in arrays.items() if name.startswith(prefix)}
            fields[field_] = {name.removeprefix(prefix): value_N for name, value_N in named.items()}
        return cls(**fields)


PREFIXES = {"predicted_loss": "head.", "auxiliary": "auxiliary.", "forms": "form."}
"""Fields that are many arrays, and what their names begin with among :meth:`Scored.save_arrays`."""

COLUMNS = tuple(name for name in Scored.__slots__ if name not in PREFIXES)
"""What all scores have."""


def score(
    model: PoseModel, crops: Crops, machine: DeviceContext, *, batch: int = 32, what: str = "scoring",
    options: ScoreOptions | None = None, forms: Collection[str] = (), shared: bool = False,
) -> Scored:  # fmt: skip
    """Run a model over people once.

    Args:
        model: pose net with any heads, auxiliary ones too.
        crops: people; labels are used for distances and true losses alone.
        machine: where to compute.
        batch: people at a time.
        what: name in progress.
        options: of entropies, peaks and heads.
        forms: methods whose scores are computed from the heatmaps (``Method.of_maps``), to compute besides.
        shared: every process of a ``torchrun`` job calls this: each scores its share of the batches, and all get everybody.
    """
    options = options or ScoreOptions()
    with evaluating(*model.heads.values(), *model.auxiliary.values()):
        kept = [
            {name: value.cpu() for name, value in reduce_batch(model, seen, options, forms).items()}
            for seen in predict(model, crops, machine, batch=batch, what=what, shared=shared)
        ]
    if shared and machine.world > 1:
        kept = _of_all_processes(kept, machine)
    arrays = {name: torch.cat([part[name] for part in kept]).numpy() for name in kept[0]}
    offset_NJ2 = arrays["predicted_NJ2"] - crops.joints_NJ2
    arrays["distance_NJ"] = crops.distance(offset_NJ2)
    arrays["true_loss_N"] = np.where(crops.labelled_NJ.any(axis=1), arrays["true_loss_N"], np.nan)
    scored = Scored.from_arrays({name: value.astype(np.float32) for name, value in arrays.items()})
    _refuse_nan(scored, crops)
    return scored


def _of_all_processes(mine: list[dict[str, Tensor]], machine: DeviceContext) -> list[dict[str, Tensor]]:
    """The batches of every process in the order of the people: process r has those of r, r + world, …"""
    parts: list[list[dict[str, Tensor]]] = [[] for _ in range(machine.world)]
    distributed.all_gather_object(parts, mine)
    return [part for turn in zip_longest(*parts) for part in turn if part is not None]


def reduce_batch(model: PoseModel, seen: Predicted, options: ScoreOptions, forms: Collection[str]) -> dict[str, Tensor]:
    """What remains of a batch: some numbers per person, by the names of the arrays of :class:`Scored`."""
    maps, features = reference_maps(model, seen), seen.features
    return {
        "predicted_NJ2": seen.keypoints_BJ2,
        "peak_NJ": seen.peak_BJ,
        "true_loss_N": true_loss_of(model, seen, seen.labelled_BJ),
        "entropy_N": entropy(maps, options.temperature),
        "multipeak_N": multipeak_form(
            maps, "whole-map", temperature=options.temperature, exclude_border=options.border == "dropped"
        ),
        "embedding_ND": features.penultimate_BCHW.mean(dim=(2, 3)),
        "coarsest_ND": features.pyramid[-1].mean(dim=(2, 3)),
        **{f"head.{name}": head(features) for name, head in model.heads.items()},
        **{f"auxiliary.{name}": auxiliary_score(head, features, maps, options)
           for name, head in model.auxiliary.items()},
        **{f"form.{name}": resolve(METHODS[name].of_maps)(maps) for name in forms},
    }  # fmt: skip


def reference_maps(model: PoseModel, seen: Predicted) -> Tensor:
    """The last stack's heatmaps (B, J, H, W), scaled to a training peak of :data:`REFERENCE_PEAK`."""
    return seen.heatmaps_BSJHW[:, -1].float() * (REFERENCE_PEAK / model.target.peak)


def true_loss_of(model: PoseModel, seen: Predicted, counts_BJ: Tensor) -> Tensor:
    """Heatmap MSE over the joints that count, averaged over stacks, (B,)."""
    target = draw(to_cells(seen.joints_BJ2, STRIDE), model.size, sigma=model.target.sigma, peak=model.target.peak)
    return true_loss(seen.heatmaps_BSJHW, target, counts_BJ)


def auxiliary_score(
    head: AuxiliaryHead, features: Features, maps_BJHW: Tensor, options: ScoreOptions | None = None
) -> Tensor:
    """What an auxiliary head says of people, (B,), from float32 features and maps of a training peak of 30."""
    score_B: Tensor = resolve(head_named(head.config.name).score)(head, features, maps_BJHW, options or ScoreOptions())
    return score_B


def _refuse_nan(scored: Scored, crops: Crops) -> None:
    """A score that is not a number would be sorted somewhere, silently."""
    for name, value in scored.save_arrays().items():
        if name in ("true_loss_N", "distance_NJ"):
            continue
        bad_N = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
        if bad_N.any():
            first = crops.data.ids[int(np.flatnonzero(bad_N)[0])]
            raise DataError(f"{name} is not finite for {int(bad_N.sum())} of {len(bad_N)} people, first {first}: "
                            "the model's weights or its input are damaged")  # fmt: skip
