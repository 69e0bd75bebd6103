"""One pass of a model over people, and everything that any method or metric needs from it.

Heatmaps live for one batch; what remains of a person is a few hundred numbers.

Shapes: N people, B batch, J joints, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alpose.runtime.errors import DataError

from .auxiliary import auxiliary_score
from .checkpoint import PoseModel
from .data.augment import to_input
from .data.crops import Crops
from .data.records import Floats
from .device import Machine, evaluating
from .feed import Feed
from .heatmaps import decode, draw, entropy, multipeak_entropy, to_cells, to_pixels
from .models.auxiliary import AuxiliaryName
from .models.heads import HeadName
from .models.hourglass import STRIDE
from .objectives import true_loss
from .progress import progress

ENTROPY_TEMPERATURE = 1.0
"""Divides maps whose training peak is 30 (smaller peaks are scaled up to it first)."""

REFERENCE_PEAK = 30.0


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
    auxiliary: Mapping[AuxiliaryName, Floats] = field(default_factory=dict)
    """Scores of the model's auxiliary heads; higher is chosen first."""

    def save_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As named arrays for an npz file."""
        own = {name: getattr(self, name) for name in self.__slots__ if name not in ("predicted_loss", "auxiliary")}
        own |= {f"auxiliary.{name}": value_N for name, value_N in self.auxiliary.items()}
        return own | {f"head.{name}": value_N for name, value_N in self.predicted_loss.items()}

    def take(self, rows_M: npt.NDArray[np.integer]) -> Scored:
        """These people, in this order."""
        return Scored.from_arrays({name: value_N[rows_M] for name, value_N in self.save_arrays().items()})

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Scored:
        """Back from :meth:`save_arrays`."""
        heads: dict[Any, Floats] = {k.removeprefix("head."): v for k, v in arrays.items() if k.startswith("head.")}
        asked: dict[Any, Floats] = {
            k.removeprefix("auxiliary."): v for k, v in arrays.items() if k.startswith("auxiliary.")
        }
        own = {name: arrays[name] for name in cls.__slots__ if name not in ("predicted_loss", "auxiliary")}
        return cls(predicted_loss=heads, auxiliary=asked, **own)


def score(model: PoseModel, crops: Crops, machine: Machine, *, batch: int = 32, what: str = "scoring") -> Scored:
    """Run a model over people once.

    Args:
        model: pose net with any heads, auxiliary ones too.
        crops: people; labels are used for distances and true losses alone.
        machine: where.
        batch: people at a time.
        what: name in progress.
    """
    feed = _stream(crops, machine)
    model.to(machine.device)
    blocks = np.array_split(np.arange(len(crops)), max(1, math.ceil(len(crops) / batch)))
    with evaluating(model.pose, *model.heads.values(), *model.auxiliary.values()):
        kept = [
            {name: value.cpu() for name, value in _score_batch(model, feed, index_B, machine).items()}
            for index_B in progress(blocks, what, len(blocks))
        ]
    arrays = {name: torch.cat([part[name] for part in kept]).numpy() for name in kept[0]}
    offset_NJ2 = arrays["predicted_NJ2"] - crops.joints_NJ2
    arrays["distance_NJ"] = np.linalg.norm(offset_NJ2, axis=2) * crops.scale_N[:, None]
    arrays["true_loss_N"] = np.where(crops.labelled_NJ.any(axis=1), arrays["true_loss_N"], np.nan)
    scored = Scored.from_arrays({name: value.astype(np.float32) for name, value in arrays.items()})
    _refuse_nan(scored, crops)
    return scored


def _stream(crops: Crops, machine: Machine) -> Feed:
    """A pool is read once: it is not worth keeping on the device."""
    return Feed(crops, machine, torch.from_numpy(crops.joints_NJ2).to(machine.device),
                torch.from_numpy(crops.labelled_NJ).to(machine.device), None)  # fmt: skip


def _score_batch(model: PoseModel, feed: Feed, index_B: npt.NDArray[np.int64], machine: Machine) -> dict[str, Tensor]:
    batch = feed.batch(index_B)
    images = to_input(feed.bare(batch.pixels_BTT3)).contiguous(memory_format=torch.channels_last)
    with machine.autocast():
        output = model.pose(images)
    last_BJHW = output.heatmaps_BSJHW[:, -1].float()
    cells_BJ2, peak_BJ = decode(last_BJHW)
    target = draw(to_cells(batch.joints_BJ2, STRIDE), model.size, sigma=model.target.sigma, peak=model.target.peak)
    # Distances of the papers' settings are for 64 cells.
    near = max(1, round(5 * model.size / 64))
    maps = last_BJHW * (REFERENCE_PEAK / model.target.peak)
    features = type(output.features)(
        tuple(scale.float() for scale in output.features.pyramid), output.features.penultimate_BCHW.float()
    )
    own = {f"head.{name}": head(features) for name, head in model.heads.items()}
    own |= {f"auxiliary.{name}": auxiliary_score(head, features, maps) for name, head in model.auxiliary.items()}
    return {
        "predicted_NJ2": to_pixels(cells_BJ2, STRIDE),
        "peak_NJ": peak_BJ / model.target.peak,
        "true_loss_N": true_loss(output.heatmaps_BSJHW, target, batch.labelled_BJ),
        "entropy_N": entropy(maps, ENTROPY_TEMPERATURE),
        "multipeak_N": multipeak_entropy(maps, temperature=ENTROPY_TEMPERATURE, min_distance=near),
        "embedding_ND": features.penultimate_BCHW.mean(dim=(2, 3)),
        "coarsest_ND": features.pyramid[-1].mean(dim=(2, 3)),
    } | own


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
