"""What choosing from a pool costs: pictures per second by model, and time and memory of the picks.

``python -m bench.pool --model MODEL --pool FOLDER``; each number comes from a process of its own, whose memory is its own. A pool that is
scored is also picked from. Larger picks are made of embeddings alone, which gather around scenes as those of a fleet do: a
million pictures would take hours to score.

Shapes: N people, D embedding.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from alpose.runtime.crop import CropRule
from alpose.runtime.io import write_json
from alpose.runtime.skeleton import LSP
from alpose.tools.pool import choose
from alpose.trainer.checkpoint import new_head, new_model, save
from alpose.trainer.device import device_context
from alpose.trainer.pool.pictures import Files, Listing
from alpose.trainer.pool.scorers import About
from alpose.trainer.pool.scores import PoolScores, score_pool
from alpose.trainer.presets import preset

from .parts.measure import RESULTS, Bench, load_average, machine_facts, spread, table

SCENES = 2000
CHUNK = 65_536
SAYS = {
    "score": "every picture read, decoded, hashed, cut and answered, as one person, and the model opened before; then picks from these people",
    "pick": "the choice from scores that are at hand, embeddings memory-mapped as float16",
    "own_bytes": "the most memory that was the process's own; pages of the mapped file are the system's, which takes them back at need",
}


def write_embeddings(path: Path, count: int, width: int) -> None:
    """Unit vectors around scenes, float16."""
    rng = np.random.default_rng([count, width])
    scene_SD = rng.normal(size=(SCENES, width)).astype(np.float32)
    made_ND = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, width))
    for start in range(0, count, CHUNK):
        rows = min(CHUNK, count - start)
        part_ND = scene_SD[rng.integers(0, SCENES, rows)] + 0.35 * rng.normal(size=(rows, width)).astype(np.float32)
        made_ND[start : start + rows] = part_ND / np.linalg.norm(part_ND, axis=1, keepdims=True)
    made_ND.flush()


def made_scores(path: Path) -> PoolScores:
    """A pool of one person a picture with these embeddings."""
    embedding_ND = np.load(path, mmap_mode="c", allow_pickle=False)
    count = len(embedding_ND)
    names = tuple(f"camera-{row % 50}/{row:09d}.jpg" for row in range(count))
    listing = Listing(Files("/pool"), names, names, 0)
    about = About(name="made", sha256="0" * 64, skeleton=LSP, rule=CropRule(width_px=64, height_px=64), methods=("epck",),
                  calibrated=False, computed="", facts={})  # fmt: skip
    id_N = np.array([f"{row:032x}" for row in range(count)], "S32")
    failure_N = np.random.default_rng(0).beta(2, 3, count).astype(np.float32)
    place_N2 = np.zeros((count, 2), np.int32)
    return PoolScores(
        listing, about, id_N, np.arange(count), failure_N, None, embedding_ND, {}, {}, {}, 0, Path(), place_N2, ()
    )


class OwnMemory:
    """The peak of what a process has of its own, looked at now and then."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> OwnMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, _own_bytes())
            if self._stop.wait(0.02):
                return


def _own_bytes() -> int:
    """Linux tells; 0 elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def pick_once(path: Path, by: str, budget: int) -> dict[str, Any]:
    """Seconds and memory of one choice."""
    scores = made_scores(path)
    before = _own_bytes()
    with OwnMemory() as memory:
        started = time.perf_counter()
        picks = choose(scores, by, budget, seed=0)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "own_bytes": memory.peak_bytes, "own_before_bytes": before, "picks": len(picks)}


def score_once(model: Path, pool: Path, ways: Sequence[str], budget: int) -> dict[str, Any]:
    """Pictures per second of one model on a pool, on the processor, and seconds of the picks from it."""
    with tempfile.TemporaryDirectory() as cache, OwnMemory() as memory:
        started = time.perf_counter()
        scores = score_pool(model, pool, Path(cache), machine=device_context("cpu"))
        seconds = time.perf_counter() - started
        picks_s = {}
        for by in ways:
            started = time.perf_counter()
            choose(scores, by, min(budget, len(scores)), seed=0)
            picks_s[by] = time.perf_counter() - started
        return {"model": scores.about.name, "pictures": len(scores.listing), "people": len(scores), "seconds": seconds,
                "embedding": scores.embedding_ND.shape[1], "picks_s": picks_s, "own_bytes": memory.peak_bytes}  # fmt: skip


def measure_picks(
    sizes: Sequence[int], width: int, ways: Sequence[str], budget: int, rounds: int, disk: Path
) -> Iterator[Any]:
    """Every size and way."""
    for count in sizes:
        with tempfile.TemporaryDirectory(dir=disk, prefix="bench-pool-") as folder:
            path = Path(folder) / "embedding.npy"
            write_embeddings(path, count, width)
            for by in ways:
                runs = [_run("--pick", path, "--by", by, "--budget", budget) for _ in range(rounds)]
                yield {"people": count, "embedding": width, "by": by, "seconds": asdict(spread([run["seconds"] for run in runs])),
                       "own_bytes": max(run["own_bytes"] for run in runs), "runs": runs}  # fmt: skip


def _run(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.pool", *map(str, arguments)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    value: dict[str, Any] = json.loads(run.stdout)
    return value


def show(result: Mapping[str, Any]) -> str:
    """The result for people."""
    scoring = [(one["model"], f"{one['pictures']:,}", f"{one['pictures'] / one['seconds']:.1f}", f"{one['own_bytes'] / 2**20:.0f}",
                ", ".join(f"{by} {seconds:.1f}" for by, seconds in one["picks_s"].items())) for one in result["scoring"]]  # fmt: skip
    picking = [(f"{one['people']:,}", one["by"], f"{one['seconds']['median']:.2f}", f"{one['own_bytes'] / 2**20:.0f}")
               for one in result["picking"]]  # fmt: skip
    return (f"{table(('model', 'pictures', 'pictures/s', 'own MiB', 'picks s'), scoring)}\n\nbudget {result['settings']['budget']}\n\n"
            f"{table(('people', 'by', 's', 'own MiB'), picking)}")  # fmt: skip


@click.command(name="bench.pool", cls=Bench)
@click.option(
    "--model",
    "models",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Folder of a model. Repeatable.",
)
@click.option("--pool", "pools", multiple=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Pictures of one person each, that the model of the same place scores. Repeatable.")  # fmt: skip
@click.option("--own", is_flag=True, help="Also a net of ours of the laptop preset, on the last --pool; its weights are fresh, which "
              "its speed does not see.")  # fmt: skip
@click.option(
    "--sizes", default="10000,100000,1000000", show_default=True, help="People to pick from, comma-separated."
)
@click.option("--width", default=256, show_default=True, type=click.IntRange(1), help="Of the embeddings.")
@click.option("--by", default="top,value,coreset", show_default=True, help="Comma-separated.")
@click.option("--budget", default=500, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--disk", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(), show_default="here",
              help="Folder for the embeddings.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS / "pool.json")
@click.option("--score", type=click.Path(path_type=Path), hidden=True)
@click.option("--pick", type=click.Path(path_type=Path), hidden=True)
def main(
    models: tuple[Path, ...], pools: tuple[Path, ...], own: bool, sizes: str, width: int, by: str, budget: int, rounds: int,
    disk: Path, out: Path, score: Path | None, pick: Path | None,
) -> None:  # fmt: skip
    """Pictures per second, and time and memory of the picks, of alpose-train select."""
    ways = by.split(",")
    if pick is not None:
        print(json.dumps(pick_once(pick, by, budget)))
        return
    if score is not None:
        print(json.dumps(score_once(score, pools[0], ways, budget)))
        return
    if len(pools) != len(models) + own:
        raise click.UsageError(f"each model scores a pool: {len(models) + own} times --pool, got {len(pools)}")
    before = load_average()
    with tempfile.TemporaryDirectory(dir=disk.resolve(), prefix="bench-pool-") as folder:
        wanted = [model.resolve() for model in models] + ([own_net(Path(folder) / "laptop")] if own else [])
        scoring = [_run("--score", model, "--pool", pool.resolve(), "--by", by, "--budget", budget)
                   for model, pool in zip(wanted, pools, strict=True)]  # fmt: skip
    people = [int(size) for size in sizes.split(",") if size]
    picking = list(measure_picks(people, width, ways, budget, rounds, disk.resolve()))
    result = {
        "bench": "pool", "machine": machine_facts(device_context("cpu")),
        "load_average": {"before": before, "after": load_average()},
        "settings": {"budget": budget, "rounds": rounds, "scenes": SCENES}, "works": SAYS, "scoring": scoring, "picking": picking,
    }  # fmt: skip
    print(show(result))
    print(f"\nwritten: {write_json(out, result)}")


def own_net(folder: Path) -> Path:
    """A net of ours with the default head."""
    recipe = preset("laptop").recipe
    model = new_model(recipe.net.config(len(LSP)), LSP, recipe.crop, recipe.target, 0)
    return save(model.with_heads({"epck": new_head(model, "epck", 0)}), folder).parent


if __name__ == "__main__":
    main()
