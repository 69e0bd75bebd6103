"""What a training remembers between epochs: its rate, its best weights, and a file to go on from.

A training that was killed goes on from its last saved epoch and ends with the same weights as one that was not.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from alpose.runtime.errors import CheckpointError, ConfigError
from alpose.runtime.io import replacing

from .checkpoint import PoseModel
from .data.crops import Crops
from .device import DeviceContext
from .models.heads import LossHead

log = logging.getLogger("alpose")

Schedule = Literal["one-cycle", "plateau", "constant"]

SAVE_EVERY_S = 20.0
"""A training saves its state at the end of an epoch, at most this often."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The losses of one epoch."""

    epoch: int
    train_loss: float
    validation_loss: float
    lr: float
    head_loss: dict[str, float]


class Stepper:
    """Learning rate by step (one-cycle) or by validation loss (plateau)."""

    PATIENCE, COOLDOWN, LOWEST = 8, 2, 3e-6  # of the code published with the LL++ paper

    def __init__(self, schedule: Schedule, lr: float, optimiser: Optimizer, *, epochs: int, steps: int) -> None:
        self._optimiser = optimiser
        self._cycle = OneCycleLR(
            optimiser, lr, total_steps=steps * epochs + 1, pct_start=0.15, div_factor=10.0, final_div_factor=100.0,
            cycle_momentum=False,
        ) if schedule == "one-cycle" else None  # fmt: skip
        self._plateau = ReduceLROnPlateau(
            optimiser, factor=0.5, patience=self.PATIENCE, cooldown=self.COOLDOWN, min_lr=self.LOWEST
        ) if schedule == "plateau" else None  # fmt: skip

    @property
    def lr(self) -> float:
        """The rate now."""
        return float(self._optimiser.param_groups[0]["lr"])

    def step(self) -> None:
        """Call after every optimiser step."""
        if self._cycle:
            self._cycle.step()

    def epoch(self, loss: float) -> None:
        """Call after every epoch, with its validation loss."""
        if self._plateau:
            self._plateau.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the schedulers keep functions and the optimiser among their fields too."""
        inner, plain = self._cycle or self._plateau, (int, float, str, bool, list, type(None))
        return {k: v for k, v in inner.state_dict().items() if isinstance(v, plain)} if inner else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        inner = self._cycle or self._plateau
        if inner:
            inner.load_state_dict(state)


class TrainingState:
    """Keeps the best epoch of a training, and saves and resumes the training between epochs."""

    def __init__(
        self, path: Path | None, pose: nn.Module, optimiser: Optimizer, schedule: Stepper,
        heads: Mapping[str, LossHead], head_optimisers: Mapping[str, Optimizer], machine: DeviceContext, *,
        identity: str,
    ) -> None:  # fmt: skip
        self._path, self._machine, self._identity = path, machine, identity
        self._modules: dict[str, nn.Module] = {"pose": pose, **{f"head.{name}": head for name, head in heads.items()}}
        self._stateful: dict[str, Any] = {**self._modules, "optimiser": optimiser, "schedule": schedule,
                                          **{f"optimiser.{n}": o for n, o in head_optimisers.items()}}  # fmt: skip
        self._best_loss = math.inf
        self._best: dict[str, dict[str, Tensor]] = {}
        self._saved_at = time.monotonic()
        self.epoch = 0
        self.history: list[Epoch] = []

    def resume(self) -> int:
        """The epoch to go on with: 0 without a file, or with one of another training."""
        if self._path is None or not self._path.exists():
            return 0
        try:
            stored = torch.load(self._path, map_location=self._machine.device, weights_only=True)
        except Exception as error:
            raise CheckpointError(
                f"{self._path} cannot be read, delete it to train from the start ({error})"
            ) from error
        if not isinstance(stored, dict) or "identity" not in stored:
            raise CheckpointError(f"{self._path} is not the state of a training, delete it to train from the start")
        if stored["identity"] != self._identity:
            log.warning("%s belongs to another training; starting from epoch 0", self._path)
            return 0
        for name, part in self._stateful.items():
            part.load_state_dict(stored["state"][name])
        self._best_loss, self._best, self.epoch = stored["best_loss"], stored["best"], stored["epoch"]
        self.history = [Epoch(**value) for value in stored["history"]]
        return self.epoch

    def end_epoch(self, done: Epoch) -> None:
        """Note an epoch; raise when the training has diverged."""
        refuse_divergence(
            done.epoch, {"pose net": done.train_loss, "validation": done.validation_loss, **done.head_loss}
        )
        self.epoch = done.epoch + 1
        self.history.append(done)
        log.debug("epoch %d: train %.4f validation %.4f lr %.2e", done.epoch, done.train_loss,
                  done.validation_loss, done.lr)  # fmt: skip
        if done.validation_loss <= self._best_loss:
            self._best_loss = done.validation_loss
            self._best = {name: {k: v.detach().clone() for k, v in module.state_dict().items()}
                          for name, module in self._modules.items()}  # fmt: skip
        if self._path and self._machine.leads and time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._save(self._path)

    def _save(self, path: Path) -> None:
        with replacing(path) as temporary:
            torch.save({
                "identity": self._identity, "epoch": self.epoch, "best_loss": self._best_loss, "best": self._best,
                "history": [asdict(epoch) for epoch in self.history],
                "state": {name: part.state_dict() for name, part in self._stateful.items()},
            }, temporary)  # fmt: skip
        self._saved_at = time.monotonic()

    def restore_best(self) -> None:
        """Give every module the weights of its best epoch, in eval mode."""
        for name, module in self._modules.items():
            module.load_state_dict(self._best[name])
            module.eval()


def discard(state: Path) -> None:
    """Remove the state of a training whose checkpoint is safe."""
    for path in (state, *state.parent.glob(f".{state.name}.*tmp")):
        path.unlink(missing_ok=True)


def identity(model: PoseModel, heads: Mapping[str, LossHead], crops: Crops, *options: object) -> str:
    """Everything that a training starts from: people and labels, options, and the weights themselves."""
    configs = {name: head.config for name, head in heads.items()}
    everything = (crops.data.fingerprint(), crops.config, model.target, configs, options)
    digest = hashlib.sha256(repr(everything).encode())
    for module in (model.pose, *heads.values()):
        for name, value in module.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def refuse_divergence(epoch: int, losses: Mapping[str, float]) -> None:
    """Raise when a mean loss is not a number."""
    diverged = ", ".join(f"{name}: {loss}" for name, loss in losses.items() if not math.isfinite(loss))
    if diverged:
        raise ConfigError(f"training diverged in epoch {epoch} ({diverged}): lower the rate")
