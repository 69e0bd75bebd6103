"""Calls the official code (github meghshukla/ActiveLearningForHumanPose) from a checkout of it, on any device.

That code is AGPL-3.0: none of it is here, and a benchmark runs it only where a user has put it. It asks for GPUs by
name and imports packages that its network does not use; what is here answers both, and leaves no trace behind.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from alpose.runtime.errors import ConfigError, DataNotFoundError

HOME = "https://github.com/meghshukla/ActiveLearningForHumanPose"

_NETWORK, _LOSS = "models.stacked_hourglass.StackedHourglass", "utils"

_STUBBED = ("adjustText", "umap", "matplotlib", "matplotlib.pyplot", "matplotlib.patches")
"""Imported beside the loss for its pictures. The real matplotlib would have its style changed for all of us."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is measured of the official code."""

    pose_net: Callable[..., nn.Module]
    """``(arch, auxnet, intermediate_features)``; the net takes images (B, H, W, 3)."""
    heatmap_loss: Callable[[Tensor, Tensor], Tensor]
    """Predicted (B, S, J, H, W) and target (B, J, H, W) to the loss of every image and stack."""
    commit: str | None


def load(path: Path) -> Reference:
    """Import network and loss from a checkout; its modules are gone from ``sys.modules`` afterwards."""
    code = path.resolve() / "code"
    for name in (_NETWORK, _LOSS):
        file = code / f"{name.replace('.', '/')}.py"
        if not file.exists():
            raise DataNotFoundError(f"{file} does not exist: --reference wants a checkout of {HOME}")
    with _importing_from(code):
        try:
            network, loss = importlib.import_module(_NETWORK), importlib.import_module(_LOSS)
        except ImportError as error:
            raise ConfigError(
                f"{code} cannot be imported ({error}): install what it wants, or leave out --reference"
            ) from error
        return Reference(network.PoseNet, loss.heatmap_loss, _commit(path))


@contextmanager
def redirected(device: torch.device) -> Iterator[None]:
    """Inside, there is one GPU by name, and whoever asks for it gets ``device``."""
    plain: Callable[..., Tensor] = torch.Tensor.to

    def elsewhere(value: object) -> object:
        return device if str(value).startswith("cuda") and isinstance(value, str | torch.device) else value

    def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return plain(tensor, *map(elsewhere, args), **{name: elsewhere(value) for name, value in kwargs.items()})

    def tensor_cuda(tensor: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return plain(tensor, device)

    def module_cuda(module: nn.Module, *_args: Any, **_kwargs: Any) -> nn.Module:
        return module.to(device)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.Tensor, "to", to))
        stack.enter_context(patch.object(torch.Tensor, "cuda", tensor_cuda))
        stack.enter_context(patch.object(nn.Module, "cuda", module_cuda))
        stack.enter_context(patch.object(torch.cuda, "device_count", lambda: 1))
        yield


@contextmanager
def _importing_from(code: Path) -> Iterator[None]:
    """``code`` leads ``sys.path``; its modules and our stubs exist inside only, and it gets no ``__pycache__``."""
    tops = {path.stem for path in code.iterdir() if path.is_dir() or path.suffix == ".py"}
    tops |= {name.partition(".")[0] for name in _STUBBED}

    def take_out() -> dict[str, ModuleType]:
        names = [name for name in sys.modules if name.partition(".")[0] in tops]
        return {name: sys.modules.pop(name) for name in names}

    ours = take_out()
    wrote = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(code))
    sys.modules.update({name: _Stub(name) for name in _STUBBED})
    try:
        yield
    finally:
        sys.path.remove(str(code))
        sys.dont_write_bytecode = wrote
        take_out()
        sys.modules.update(ours)


class _Stub(ModuleType):
    """A module that has every name; each is a stub again and does nothing when called."""

    def __getattr__(self, name: str) -> _Stub:
        if name.startswith("__"):  # import machinery asks for these and must hear the truth
            raise AttributeError(name)
        return _Stub(f"{self.__name__}.{name}")

    def __call__(self, *_args: Any, **_kwargs: Any) -> None:
        return None


def _commit(path: Path) -> str | None:
    """The commit of the checkout; None for a copy without git."""
    if not (path / ".git").exists():
        return None
    try:
        run = subprocess.run(["git", "-C", str(path), "rev-parse", "--short=12", "HEAD"],
                             capture_output=True, text=True, timeout=10, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None
