"""Run by ``torchrun``, and once without it, in test_training: trains and leaves what each process ended with."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alpose.trainer.checkpoint import PoseModel, new_head
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.run import RunConfig
from alpose.trainer.data.catalog import Sizes
from alpose.trainer.data.crops import Crops
from alpose.trainer.device import DeviceContext, device_context
from alpose.trainer.models.heads import LossHead
from alpose.trainer.scoring import score
from alpose.trainer.training import HeadTraining, PoseTraining, train_heads, train_pose


def tiny() -> Any:
    """The conftest beside this file."""
    sys.path.insert(0, str(Path(__file__).parents[2]))  # run by its path, this file belongs to no package
    return importlib.import_module("tests.trainer.conftest")


def without_batch_statistics(module: nn.Module) -> None:
    """Put group norms, which normalise each image by itself, where batch norms were."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(1, child.num_features))
        else:
            without_batch_statistics(child)


def benchmark() -> RunConfig:
    """A base model with its head, and what two methods select by it."""
    return RunConfig.from_preset("smoke", "synthetic", methods=("random", "ll++conv"), budget=8, initial=24,
                                 sizes=Sizes(initial=24, pool=16, test=8), select_only=True)  # fmt: skip


def scoring_is_shared(model: PoseModel, crops: Crops, used: DeviceContext) -> None:
    """Each process runs the net over its share of five batches, and all have the scores of everybody."""
    runs: list[int] = []
    model.pose.register_forward_hook(lambda *_: runs.append(1))
    alone = score(model, crops, used, batch=5).save_arrays()
    assert len(runs) == 5
    shared = score(model, crops, used, batch=5, shared=True).save_arrays()
    assert len(runs) == 5 + len(range(5)[used.rank :: used.world])
    for name, value_N in alone.items():
        np.testing.assert_array_equal(shared[name], value_N)


def main(out: Path) -> None:
    """Pose net with a joint head, then a frozen one; the uneven batch gives the first process more rows."""
    torch.set_num_threads(1)
    used = device_context("cpu", "fp32")
    crops, model = tiny()._make_crops(24), tiny()._make_model()
    alone = tiny()._make_model()
    without_batch_statistics(alone.pose)
    each_by_itself = train_pose(
        alone, crops, PoseTraining(epochs=4, batch=7, lr=1e-3, schedule="plateau"), used, seed=0
    )
    joint: dict[str, LossHead] = {"ll++": new_head(model, "ll++", 0)}
    frozen: dict[str, LossHead] = {"ll": new_head(model, "ll", 0)}
    history = train_pose(
        model, crops, PoseTraining(epochs=3, batch=7, lr=1e-3, schedule="plateau"), used, seed=0, heads=joint
    )
    train_heads(model, frozen, crops, HeadTraining(epochs=1, batch=7), used, seed=0, validation=0.1)
    modules: dict[str, nn.Module] = {"pose": model.pose, "ll++": joint["ll++"], "ll": frozen["ll"]}
    weights = {f"{part}.{key}": v for part, module in modules.items() for key, v in module.state_dict().items()}
    torch.save(weights, out / f"weights-{used.world}-{used.rank}.pt")
    scoring_is_shared(model, crops, used)
    told = {"batch norm": [asdict(epoch) for epoch in history], "group norm": [asdict(e) for e in each_by_itself]}
    (out / f"history-{used.world}-{used.rank}.json").write_text(json.dumps(told))
    run_benchmark(benchmark(), out / f"run-{used.world}", used, data_root=None, cache=out / f"cache-{used.world}")
    if used.world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
