"""Query by committee: ``ensemble`` asks heads on the features of one net, ``ensemble-nets`` asks whole nets.

The members of ``ensemble-nets`` are trained from other seeds by the recipe of the base model. The net that a stage starts
from is one of them; the others lie in the folder of the method, ``seed-S/ensemble-nets/stage-T/member-M/``, with the state
of a training that was stopped: each is trained once, and resumes where it was.

Shapes: N people, B batch, K members, J joints, H W heatmap, P pairs of members.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import checkpoint
from ..cycles.base_model import new_model, train
from ..cycles.results import stage_folder
from ..data.records import Floats
from ..heatmaps import decode
from ..models.auxiliary import AuxiliaryConfig, AuxiliaryHead
from ..models.hourglass import STRIDE, Features
from ..objectives import heatmap_mse
from ..scoring import score as score_people
from ..training_state import discard
from .options import ScoreOptions
from .selection import Pool, PoolImages

if TYPE_CHECKING:
    from ..training import HeadBatch

METHOD = "ensemble-nets"


# --- Heads on one net


class HeadCommittee(AuxiliaryHead):
    """K small heads that each read heatmaps off the penultimate features: 3x3 convolution, ReLU, 1x1 convolution.

    They start from different weights and see different resamples of the people (bagging: Breiman, 1996). The last
    layers start at zero: what members disagree about is then what they learnt, and no noise of their beginning.
    """

    def __init__(self, config: AuxiliaryConfig) -> None:
        super().__init__(config)
        middle = max(4, config.widths[0] // 2)
        self.hidden = nn.ModuleList(nn.Conv2d(config.widths[0], middle, 3, padding=1) for _ in range(config.members))
        self.out = nn.ModuleList(nn.Conv2d(middle, config.joints, 1) for _ in range(config.members))
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Features) -> Tensor:
        """Heatmaps of every member (B, K, J, H, W)."""
        last = features.penultimate_BCHW
        maps = [out(functional.relu(hidden(last))) for hidden, out in zip(self.hidden, self.out, strict=True)]
        return self.config.peak * torch.stack(maps, dim=1)


def objective(head: AuxiliaryHead, batch: HeadBatch) -> Tensor:
    """Heatmap MSE of every member on its own resample of people."""
    weight_BK = bootstrap_weights(batch.ids, head.config.members, batch.seed)
    maps_BKJHW = head(batch.features)
    return committee_loss(maps_BKJHW, batch.target_BJHW, batch.counts_BJ, weight_BK.to(maps_BKJHW.device))


def committee_loss(heatmaps_BKJHW: Tensor, target_BJHW: Tensor, counts_BJ: Tensor, weight_BK: Tensor) -> Tensor:
    """Heatmap MSE of every member on its own resample of people; ``weight_BK`` says how often each person is in it."""
    return (heatmap_mse(heatmaps_BKJHW, target_BJHW, counts_BJ) * weight_BK).mean()


def bootstrap_weights(ids: tuple[str, ...], members: int, seed: int) -> Tensor:
    """How often each person is in each member's resample (B, K): Poisson(1), the bootstrap's limit.

    A hash of (seed, member, id) decides, so that a person keeps its weights while the labelled set grows.
    """
    steps = torch.tensor([math.exp(-1) * sum(1 / math.factorial(n) for n in range(top + 1)) for top in range(7)],
                         dtype=torch.float64)  # fmt: skip
    uniform_BK = torch.tensor(
        [[_uniform(seed, member, id_) for member in range(members)] for id_ in ids], dtype=torch.float64
    )
    return torch.searchsorted(steps, uniform_BK, right=True).float()


def _uniform(seed: int, member: int, id_: str) -> float:
    digest = hashlib.sha256(f"{seed}/resample {member}/{id_}".encode()).digest()
    return int.from_bytes(digest[:6], "little") / 2**48


def score(head: AuxiliaryHead, features: Features, _heatmaps_BJHW: Tensor, _options: ScoreOptions) -> Tensor:
    """The disagreement of the members (B,)."""
    return disagreement(head(features))


def disagreement(heatmaps_BKJHW: Tensor) -> Tensor:
    """How far apart two members find a joint, in cells: mean over joints and pairs of members, (B,).

    Of the committee's maps only the places of their peaks count. The variance of the maps themselves says how high the
    bells are: a net that knows nothing draws flat maps, about which all members agree, so that it ranks a pool the wrong
    way round.
    """
    members = heatmaps_BKJHW.shape[1]
    return mean_distance(decode(heatmaps_BKJHW.flatten(0, 1))[0].unflatten(0, (-1, members)))


def mean_distance(cells_BKJ2: Tensor) -> Tensor:
    """Between the places that two members name for a joint: mean over joints and pairs of members (B,)."""
    members = cells_BKJ2.shape[1]
    one_P, other_P = torch.triu_indices(members, members, offset=1, device=cells_BKJ2.device)
    apart_BPJ = torch.linalg.vector_norm(cells_BKJ2[:, one_P] - cells_BKJ2[:, other_P], dim=3)
    return apart_BPJ.mean(dim=(1, 2))


# --- Whole nets


def member_seed(seed: int, member: int) -> int:
    """Of weights, views and batches; a hash, so that no member is the base net of another seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/member {member}".encode()).digest()[:6], "little")


def train_members(images: PoolImages) -> list[Path]:
    """Train those members that are not there yet, on everybody labelled so far; their folders.

    As the benchmark's own net: in the first stage from fresh weights, later from those of the stage before (warm) or
    from fresh ones again (cold).
    """
    run, seed, stage = images.run, images.seed, images.stage
    folders, config = [], run.config
    for member in range(1, config.scores.members):
        folder = stage_folder(run.folder, seed, METHOD, stage) / f"member-{member}"
        folders.append(folder)
        if checkpoint.exists(folder):
            continue
        own, warm = member_seed(seed, member), stage > 1 and config.start == "warm"
        before = stage_folder(run.folder, seed, METHOD, stage - 1) / folder.name
        start = checkpoint.load(before, run.machine.device) if warm else new_model(run, own)
        recipe = config.recipe.retrain if warm else config.recipe.pose
        what = f"member {member + 1} of {config.scores.members} of {METHOD}, stage {stage} of seed {seed}"
        trained = train(run, start, images.labelled, recipe, seed=own, state=folder / "training.pt", what=what)
        run.machine.once(checkpoint.save, trained, folder)
        run.machine.once(discard, folder / "training.pt")
    return folders


def net_scores(pool: Pool) -> Floats:
    """How far apart two members find a joint, in heatmap cells: mean over joints and pairs (N,)."""
    images = pool.need_images(METHOD)
    machine, places_KNJ2 = images.run.machine, [pool.scored.predicted_NJ2]
    for number, folder in enumerate(train_members(images), start=2):
        model = checkpoint.load(folder, machine.device)
        places_KNJ2.append(score_people(model, images.pool, machine, what=f"{METHOD}, member {number}").predicted_NJ2)
    cells_NKJ2 = torch.from_numpy(np.stack(places_KNJ2, axis=1)) / STRIDE
    return np.asarray(mean_distance(cells_NKJ2).numpy(), dtype=np.float32)
