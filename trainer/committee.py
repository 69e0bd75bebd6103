"""``ensemble-nets``: query by committee of whole nets, trained from other seeds by the recipe of the base model.

The net that a stage starts from is one member; the others are trained here and asked about the pool, nothing else. They
lie in the folder of the method, ``seed-S/ensemble-nets/stage-T/member-M/``, with the state of a training that was
stopped: each is trained once, and goes on where it was.

Shapes: N people, K members, J joints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from . import checkpoint
from .auxiliary import mean_distance
from .base_model import new_model, train
from .data.crops import Crops
from .data.records import Floats
from .models.hourglass import STRIDE
from .results import stage_folder
from .resume import discard
from .run import Run
from .scoring import Scored, score

METHOD = "ensemble-nets"


def member_seed(seed: int, member: int) -> int:
    """Of weights, views and batches; a hash, so that no member is the base net of another seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}/member {member}".encode()).digest()[:6], "little")


def train_members(run: Run, seed: int, stage: int, labelled: Crops) -> list[Path]:
    """Train those members that are not there yet, on everybody labelled so far; their folders.

    As the benchmark's own net: in the first stage from fresh weights, later from those of the stage before (warm) or
    from fresh ones again (cold).
    """
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
        trained = train(run, start, labelled, recipe, seed=own, state=folder / "training.pt", what=what)
        if run.machine.leads:
            checkpoint.save(trained, folder)
            discard(folder / "training.pt")
        run.machine.wait()
    return folders


def net_disagreement(run: Run, members: Sequence[Path], pool: Crops, own: Scored) -> Floats:
    """How far apart two members find a joint, in heatmap cells: mean over joints and pairs (N,).

    Args:
        run: where to compute.
        members: folders of the other nets.
        pool: unlabelled people; their labels are not looked at.
        own: what the net that the stage starts from said of them.
    """
    places_KNJ2 = [own.predicted_NJ2]
    for number, folder in enumerate(members, start=2):
        model = checkpoint.load(folder, run.machine.device)
        what = f"{METHOD}, member {number}"
        places_KNJ2.append(score(model, pool, run.machine, what=what).predicted_NJ2)
    cells_NKJ2 = torch.from_numpy(np.stack(places_KNJ2, axis=1)) / STRIDE
    return np.asarray(mean_distance(cells_NKJ2).numpy(), dtype=np.float32)
