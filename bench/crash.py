"""Does the queue keep its word when its process is killed, and what does a put cost?

``python -m bench.crash --trials 1000``; ``bench/parts/crash.py`` says what a trial is. A kill ends a process, not the machine:
what a power cut does rests on the disk's honouring of the sync that every put waits for.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from alpose.runtime.errors import ConfigError, WrongAnswerError
from alpose.runtime.io import write_json
from alpose.trainer.device import DeviceContext

from .parts.crash import BOUNDED, KILLS_PER_FILE, LONGEST_S, ROOMY, Outcome
from .parts.measure import RESULTS, Bench, load_average, machine_facts, spread, table
from .parts.put import measure

BINS_MS = 10.0
ROOT = Path(__file__).resolve().parents[1]


@click.command(cls=Bench, name="crash")
@click.option("--trials", default=1000, show_default=True, help="Kills.")
@click.option("--seed", default=0, show_default=True)
@click.option("--rounds", default=200, show_default=True, help="Puts that are timed, after the trials.")
@click.option("--folder", type=click.Path(path_type=Path), help="On the disk to test; the system's temporary folder.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "crash.json", show_default=True)
def main(trials: int, seed: int, rounds: int, folder: Path | None, out: Path) -> None:
    """Kill a writing process at random moments; look for what was lost or torn."""
    if trials < 1:
        raise ConfigError(f"trials must be at least 1, got {trials}")
    before = load_average()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        running = _outcomes(trials, seed, Path(scratch))
        outcomes = list(tqdm(running, total=trials, unit="kill", disable=None))
        took = measure(Path(scratch), rounds)
    result = summary(outcomes)
    result["put"] = took
    result["machine"] = machine_facts(DeviceContext(torch.device("cpu"), torch.float32))
    result["machine"]["sqlite"] = sqlite3.sqlite_version
    result["load_average"] = {"before": before, "after": load_average()}
    result["settings"] = {
        "trials": trials,
        "seed": seed,
        "kills_per_file": KILLS_PER_FILE,
        "longest_s": LONGEST_S,
        "bounded_bytes": BOUNDED,
        "roomy_bytes": ROOMY,
    }
    write_json(out, result)
    counts = result["counts"]
    click.echo(table(["", "records"], [[name, f"{n:,}"] for name, n in counts.items()]))
    each = took["seconds_per_call"].items()
    rows = [[name, f"{1e3 * s['median']:.1f}", f"{1e3 * s['p99']:.1f}"] for name, s in each]
    click.echo(table(["", "p50 ms", "p99 ms"], rows))
    click.echo(f"{trials} kills; written to {out}")
    broken = ("lost", "torn", "chunks lost", "tallied frames lost", "bytes over the bound")
    if any(counts[name] for name in broken) or result["problems"]:
        raise WrongAnswerError(f"the queue did not keep its word: {counts}, {result['problems'][:5]}")


def _outcomes(trials: int, seed: int, folder: Path) -> Iterator[Outcome]:
    """From a process of their own: what forks writers must not carry torch's threads."""
    command = [sys.executable, "-m", "bench.parts.crash", str(trials), str(seed), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            values: dict[str, Any] = json.loads(line)
            for name in ("killed_at", "problems"):
                values[name] = tuple(values[name])
            yield Outcome(**values)
    if process.returncode:
        raise WrongAnswerError(f"the trials ended with status {process.returncode}: see above")


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts over all trials, and when and where the kills fell."""
    # Trials on one file go on where the last one ended: what a file came to is in its last one.
    files = [
        outcomes[min(start + KILLS_PER_FILE, len(outcomes)) - 1] for start in range(0, len(outcomes), KILLS_PER_FILE)
    ]
    moments = [outcome.after_ms for outcome in outcomes]
    bins = Counter(int(moment // BINS_MS) for moment in moments)
    return {
        "bench": "crash",
        "counts": {
            "acknowledged as stored": sum(file.acknowledged for file in files),
            "still there": sum(file.there for file in files),
            "pictures of these shared with another record": sum(file.shared for file in files),
            "evicted by rule": sum(file.evicted for file in files),
            "erased on purpose": sum(file.erased for file in files),
            "lost": sum(outcome.lost for outcome in outcomes),
            "torn": sum(outcome.torn for outcome in outcomes),
            "chunks of the score log acknowledged": sum(file.chunks for file in files),
            "chunks lost": sum(outcome.chunks_lost for outcome in outcomes),
            "frames tallied": sum(file.tallied for file in files),
            "tallied frames lost": sum(outcome.tallies_lost for outcome in outcomes),
            "bytes over the bound": sum(outcome.over_bound for outcome in outcomes),
        },
        "problems": [problem for outcome in outcomes for problem in outcome.problems],
        "trials": {
            "two writers": sum(outcome.writers == 2 for outcome in outcomes),
            "full queue": sum(outcome.bounded for outcome in outcomes),
        },
        "killed_at": dict(Counter(place for outcome in outcomes for place in outcome.killed_at).most_common()),
        "kill_moment_ms": {
            **asdict(spread(moments)),
            "bin_ms": BINS_MS,
            "kills": [bins[number] for number in range(max(bins) + 1)],
        },
    }


if __name__ == "__main__":
    main()
