"""``alpose-train detect``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..cli_options import BASES, CACHE, DATA_ROOT, DATASET, DEVICE, PRECISION, PRESET, SEEDS, default_cache, default_out


@click.command()
@DATASET
@click.option(
    "--out",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the run lives. An unfinished run there is continued. [default: runs/detect-DATASET]",
)
@DATA_ROOT
@PRESET
@SEEDS
@click.option("--detectors", help="Comma-separated. [default: all]")
@BASES
@CACHE
@DEVICE
@PRECISION
def detect(
    dataset: str, folder: Path | None, data_root: Path | None, preset_name: Any, seeds: int | None,
    detectors: str | None, bases: Path | None, cache: Path | None, device: str | None, precision: Any,
) -> None:  # fmt: skip
    """Compare detectors of failure on fixed base models: free scores, loss heads, candidates, ceilings.

    Writes OUT/detect.json and OUT/detect.html. Interrupt it whenever you like: the same command goes on.

    \b
    alpose-train detect --dataset synthetic --preset smoke --seeds 2
    alpose-train detect --dataset lsp --data-root DATA --preset laptop --seeds 3
    """
    from ..device import machine
    from ..epck import EpckTraining
    from ..presets import preset
    from ..run import RunConfig
    from .detectors import NAMES
    from .evaluation import evaluate
    from .experiment import DetectConfig, run_detect
    from .finding import finding
    from .report import write_report

    chosen = preset(preset_name)
    base = RunConfig(
        dataset=dataset, preset=preset_name, recipe=chosen.recipe, methods=("random",), seeds=seeds or chosen.seeds,
        stages=1, budget=1, initial=chosen.initial, sizes=chosen.sizes, select_only=True,
    )  # fmt: skip
    names = tuple(name.strip() for name in detectors.split(",") if name.strip()) if detectors else NAMES
    folder = folder or default_out(dataset, "detect-")
    config = DetectConfig(base=base, epck=EpckTraining(), detectors=names)
    run_detect(
        config, folder, machine(device, precision), data_root=data_root, cache=cache or default_cache(), bases=bases
    )
    for line in finding(evaluate(folder)):
        click.echo(line)
    click.echo(f"results: {folder / 'detect.json'}")
    click.echo(f"report:  {write_report(folder)}")
