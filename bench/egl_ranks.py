"""How well EGL++ of a low rank orders people, on a trained net: beside the exact sum over all neighbours.

    python -m bench.egl_ranks MODEL --data-root DATA

The pool is the first people of LSP's test half, the neighbours are of its training half. What the default rank costs is in
``bench.methods``.

Shapes: N people, R ranks.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.stats import spearmanr

from alpose.runtime.io import write_json
from alpose.trainer.checkpoint import load
from alpose.trainer.data.catalog import find
from alpose.trainer.data.crops import prepare
from alpose.trainer.data.lsp import read_lsp
from alpose.trainer.device import device_context
from alpose.trainer.methods.egl import expected_gradient
from alpose.trainer.methods.options import EglConfig
from alpose.trainer.scoring import score

from .parts.measure import RESULTS, Bench, machine_facts

TRAINED = 1000
"""LSP's own cut: the first images train."""
DRAWS = 2000
"""Resamples of the people behind an interval."""


@click.command(name="bench.egl_ranks", cls=Bench)
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data-root", type=click.Path(path_type=Path, exists=True, file_okay=False), envvar="ALPOSE_DATA", required=True,
              help="Where LSP lies. [env: ALPOSE_DATA]")  # fmt: skip
@click.option("--people", default=64, show_default=True, type=click.IntRange(3), help="Of the pool.")
@click.option("--labelled", default=300, show_default=True, type=click.IntRange(30), help="Who can be a neighbour.")
@click.option("--ranks", default="4,5,6,8", show_default=True, help="Which, with commas.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: bench/results/egl-ranks.json]")
def main(model: Path, data_root: Path, people: int, labelled: int, ranks: str, out: Path | None) -> None:
    """Rank correlation of EGL++ of low ranks with the exact one, and what share of the sum they hold."""
    machine, net, default = device_context("cpu", "fp32"), load(model), EglConfig()
    everybody = read_lsp(find("lsp", data_root))
    rows = np.arange(TRAINED, TRAINED + people), np.arange(labelled)
    with tempfile.TemporaryDirectory() as cache:
        bare = replace(net.crop, context=0.0)
        pool, near = (prepare(everybody.subset(rows_N), bare, Path(cache)) for rows_N in rows)
        scored = [score(net, crops, machine) for crops in (pool, near)]

        def scores(rank: int | None) -> Any:
            config = replace(default, rank=rank)
            return expected_gradient(net, pool, near, scored[0], scored[1], machine, config, what=f"rank {rank}")

        exact_N = scores(None).astype(np.float64)
        found = {rank: _beside(scores(rank).astype(np.float64), exact_N) for rank in map(int, ranks.split(","))}
    result = {
        "bench": "egl_ranks",
        "machine": machine_facts(machine),
        "settings": {"net": asdict(net.pose.config), "size_px": net.crop.size_px, "people": people, "labelled": labelled,
                     "neighbours": default.neighbours, "default_rank": default.rank},
        "ranks": found,
    }  # fmt: skip
    for rank, of in found.items():
        print(
            f"rank {rank}: rank correlation {of['spearman']:.4f} ({of['spearman_95'][0]:.4f} to {of['spearman_95'][1]:.4f}), "
            f"{of['share_mean']:.3f} of the sum, at least {of['share_min']:.3f}"
        )
    print(f"\nwritten: {write_json(out or RESULTS / 'egl-ranks.json', result)}")


def _beside(low_N: Any, exact_N: Any) -> dict[str, Any]:
    """Of the scores of a low rank: rank correlation with the exact ones, its interval over people, share of the sum."""
    rng, share_N = np.random.default_rng(0), low_N / exact_N
    drawn = [float(spearmanr(low_N[rows_N], exact_N[rows_N])[0])
             for rows_N in rng.integers(len(exact_N), size=(DRAWS, len(exact_N)))]  # fmt: skip
    return {
        "spearman": float(spearmanr(low_N, exact_N)[0]), "spearman_95": np.quantile(drawn, (0.025, 0.975)).tolist(),
        "share_mean": float(share_N.mean()), "share_min": float(share_N.min()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
