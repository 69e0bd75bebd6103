"""Run by ``torchrun``, and once without it, in test_training: trains and leaves what each process ended with."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alpose.trainer.checkpoint import new_head
from alpose.trainer.device import machine
from alpose.trainer.models.heads import HeadName, LossHead
from alpose.trainer.training import HeadTraining, PoseTraining, train_heads, train_pose


def tiny() -> Any:
    """The conftest beside this file."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(out: Path) -> None:
    """Pose net with a joint head, then a frozen one; the uneven batch gives the first process more rows."""
    torch.set_num_threads(1)
    used = machine("cpu", "fp32")
    crops, model = tiny()._make_crops(24), tiny()._make_model()
    joint: dict[HeadName, LossHead] = {"ll++": new_head(model, "ll++", 0)}
    frozen: dict[HeadName, LossHead] = {"ll": new_head(model, "ll", 0)}
    history = train_pose(
        model, crops, PoseTraining(epochs=3, batch=7, lr=1e-3, schedule="plateau"), used, seed=0, heads=joint
    )
    train_heads(model, frozen, crops, HeadTraining(epochs=1, batch=7), used, seed=0, validation=0.1)
    modules: dict[str, nn.Module] = {"pose": model.pose, "ll++": joint["ll++"], "ll": frozen["ll"]}
    weights = {f"{part}.{key}": v for part, module in modules.items() for key, v in module.state_dict().items()}
    torch.save(weights, out / f"weights-{used.world}-{used.rank}.pt")
    told = [asdict(epoch) for epoch in history]
    (out / f"history-{used.world}-{used.rank}.json").write_text(json.dumps(told))
    if used.world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
