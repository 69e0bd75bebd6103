"""Options that several commands of ``alpose-train`` share, and their defaults."""

from __future__ import annotations

import os
from pathlib import Path

import click

DATASET = click.option(
    "--dataset",
    required=True,
    metavar="lsp|mpii|synthetic|FOLDER",
    help="A benchmark by name, or a COCO keypoints folder.",
)
PRESET = click.option(
    "--preset",
    "preset_name",
    default="laptop",
    show_default=True,
    type=click.Choice(["smoke", "demo", "laptop", "paper"]),
    help="Size of net, training and experiment.",
)
SEEDS = click.option("--seeds", type=click.IntRange(1), help="Base models, numbered from 0. [default: the preset's]")
BASES = click.option(
    "--bases",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Take the base models of this run over, in place of training them again.",
)
DATA_ROOT = click.option(
    "--data-root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    envvar="ALPOSE_DATA",
    help="Where the datasets are that go by a name. [env: ALPOSE_DATA]",
)
CACHE = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="ALPOSE_CACHE",
    help="Where crops are cached. [env: ALPOSE_CACHE; default: ~/.cache/alpose]",
)
DEVICE = click.option("--device", help="Such as cpu or cuda:1. [default: the GPU if there is one]")
PRECISION = click.option(
    "--precision",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "fp32", "bf16"]),
    help="auto: bfloat16 where the machine has it natively.",
)


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/alpose`` or ``~/.cache/alpose``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alpose"


def default_out(dataset: str, prefix: str = "") -> Path:
    """Where a run of a dataset lives unless told: ``runs/NAME``, for a folder by its own name."""
    return Path("runs") / f"{prefix}{Path(dataset).resolve().name if Path(dataset).is_dir() else dataset}"
