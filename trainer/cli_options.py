"""What the commands of ``alpose-train`` share: options, their defaults, and how errors are told."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alpose.runtime import command_line

from .measures.failures import DEFAULT_LIMITS, FAILURES, FailureName

if TYPE_CHECKING:
    from .device import DeviceContext

TRAIN_PACKAGES = ("cv2", "h5py", "jinja2", "matplotlib", "safetensors", "scipy", "sklearn", "torch", "tqdm")
"""Import names of the train extra."""


class OneLineErrors(command_line.OneLineErrors):
    """The group of ``alpose-train``, and of ``alpose-export``, which trains nothing and needs the same packages."""

    packages = dict.fromkeys(TRAIN_PACKAGES, "train")
    wanted_by = "alpose-train"
    interrupted = "Stopped. The same command goes on from here."


FOLDER = click.Path(path_type=Path, file_okay=False)
EXISTING_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
PRESET = click.Choice(["smoke", "demo", "laptop", "paper"])
NET = click.Choice(["hrnet-w32", "hrnet-tiny"])


RECIPE = click.option("--recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="TOML",
                      help="What differs from the preset: rates, batches, augmentation, epochs; see docs/loop.md.")  # fmt: skip


def run_options(default_out: str) -> Callable[[Any], Any]:
    """The options of a command that runs the benchmark's base models; ``default_out`` is named in the help."""
    options = (
        click.option("--dataset", "--data", "dataset", required=True, metavar="lsp|mpii|synthetic|FOLDER",
                     help="A benchmark by name, or a COCO keypoints folder."),
        click.option("--out", "folder", type=FOLDER, help="Where the run lives. An unfinished run there is continued. "
                     f"[default: {default_out}]"),
        click.option("--preset", "preset_name", type=PRESET, default="laptop", show_default=True,
                     help="Size of net, training and experiment."),
        RECIPE,
        click.option("--seeds", type=click.IntRange(1), metavar="MODELS",
                     help="How many base models, each of a seed of its own, from 0. [default: the preset's]"),
        click.option("--bases", type=EXISTING_FOLDER,
                     help="Take over the base models of this run instead of training them again."),
    )  # fmt: skip
    return lambda command: _decorated(command, options)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command finds its data and computes."""

    data_root: Path | None
    cache: Path
    device: str | None
    precision: Any

    def machine(self) -> DeviceContext:
        """The device, opened: this is what imports torch."""
        from .device import device_context

        return device_context(self.device, self.precision)


def place_options(command: Callable[..., None], datasets: bool = True) -> Callable[..., None]:
    """Add the options that make up a :class:`Place`, which the command is given as ``place``.

    A command without ``datasets`` reads none by a name.
    """

    @wraps(command)
    def call(
        cache: Path | None, device: str | None, precision: Any, data_root: Path | None = None, **others: Any
    ) -> None:
        command(place=Place(data_root, cache or default_cache(), device, precision), **others)

    root = click.option("--data-root", type=EXISTING_FOLDER, envvar="ALPOSE_DATA",
                        help="Where the datasets are that go by a name. [env: ALPOSE_DATA]")  # fmt: skip
    return _decorated(call, (
        *([root] if datasets else []),
        click.option("--cache", type=FOLDER, envvar="ALPOSE_CACHE",
                     help="Where crops and scores are cached. [env: ALPOSE_CACHE; default: ~/.cache/alpose]"),
        click.option("--device", help="Such as cpu or cuda:1. [default: the GPU if there is one]"),
        click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16"]),
                     help="auto: bfloat16 where the machine has it natively."),
    ))  # fmt: skip


def failure_options(
    command: Callable[..., None], default: str | None = "image-pck", names: tuple[FailureName, ...] = FAILURES, note: str = ""
) -> Callable[..., None]:  # fmt: skip
    """Add the options that choose when a pose counts as failed; a default of None is that of the model."""
    if default is None:
        note += " [default: as the model was fitted, or image-pck]"
    limit, limits = "PCK, 0 to 1, under which a pose fails", str(DEFAULT_LIMITS["image-pck"])
    if "mean-error" in names:
        limit += ", or mean error in sides of the crop over which it does"
        limits += f", or {DEFAULT_LIMITS['mean-error']}"
    return _decorated(command, (
        click.option("--failure", default=default, show_default=default is not None, type=click.Choice(names),
                     help=f"What counts as a failed pose.{note}"),
        click.option("--failure-limit", type=float, metavar="LIMIT", help=f"{limit}. [default: {limits}]"),
    ))  # fmt: skip


def names_in(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/alpose`` or ``~/.cache/alpose``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alpose"


def default_out(dataset: str, prefix: str = "") -> Path:
    """Where a run of a dataset lives unless told: ``runs/NAME``, for a folder by its own name."""
    return Path("runs") / f"{prefix}{Path(dataset).resolve().name if Path(dataset).is_dir() else dataset}"


def _decorated(command: Any, options: tuple[Any, ...]) -> Any:
    for option in reversed(options):  # the first is listed first
        command = option(command)
    return command
