"""What a head is worth on real pose nets of others: ``docs/results/models.json`` from runs of ``alpose-train detect --pose``.

::

    alpose-train detect --pose movenet-lightning.onnx --crop box --dataset lsp --views 3 --out runs/movenet-lightning
    python -m bench.models runs/* -o docs/results/models.json

Each run is taken as it is, with the time that it measured.
"""

from __future__ import annotations

from pathlib import Path

import click

from alpose.runtime.io import fields_to_json, write_json
from alpose.trainer.foreign.detect import RESULT, load_result


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False))
def main(runs: tuple[Path, ...], out: Path) -> None:
    """Write one file of all runs."""
    write_json(out, {"nets": [fields_to_json(load_result(run / RESULT)) for run in runs]})


if __name__ == "__main__":
    main()
