"""``python -m alpose.tools.demo``: the whole loop in a few minutes, every step by the command that a user would type."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from alpose.runtime.io import read_json, write_atomically, write_json

from ..dataset import IMAGES
from ..inbox import Inbox
from .page import Outcome, render
from .simulation import Stream, Watched, correct, watch, write_dataset

FRAMES = 1200
"""Of each device's stream."""
BUDGET = 300
"""Frames that are annotated, a quarter of them from the control stream."""
EPOCHS = 40
"""Of training on with them: as many as the first model had."""
CONTROL = 60
TRIGGER = "Budget(per_hour=5400) | Control(rate=0.06)"
"""At ten frames a second a stream lasts two minutes: 5,400 an hour are 180 of 1,200 frames."""
DEVICES = ("car-1", "car-2")


@dataclass(slots=True)
class Steps:
    """Runs commands, shows them, and remembers how long each took."""

    done: list[tuple[str, float]] = field(default_factory=list)

    def run(self, program: str, *arguments: object, quiet: bool = False) -> str:
        """One command; its output, which is shown unless it is for programs."""
        words = [program, *map(str, arguments)]
        if not quiet:
            click.secho(f"\n$ {shlex.join(words)}", bold=True)
        began = time.perf_counter()
        finished = subprocess.run(  # our own commands
            [sys.executable, "-m", _MODULES[program], *words[1:]], stdout=subprocess.PIPE, text=True, check=False
        )
        if not quiet:
            self.done.append((shlex.join(words), time.perf_counter() - began))
        if finished.returncode:
            raise click.ClickException(
                f"{shlex.join(words)} ended with {finished.returncode}: {finished.stdout[-500:]}"
            )
        if not quiet:
            click.echo(finished.stdout.rstrip())
        return finished.stdout


_MODULES = {
    "alpose-train": "alpose.trainer",
    "alpose-export": "alpose.export",
    "alpose-harvest": "alpose.tools",
    "alpose-monitor": "alpose.runtime",
}


@click.command()
@click.option("--out", default="runs/demo", show_default=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--frames", default=FRAMES, show_default=True, type=click.IntRange(40), help="Of each device's stream.")
@click.option("--budget", default=BUDGET, show_default=True, type=click.IntRange(8), help="Frames that are annotated.")
@click.option("--epochs", default=EPOCHS, show_default=True, type=click.IntRange(1), help="Of training on.")
def main(out: Path, frames: int, budget: int, epochs: int) -> None:
    """Train, export, watch, harvest, annotate, train again, on rendered people; ends with one page that links all."""
    began = time.perf_counter()
    logging.getLogger("alpose.monitor").setLevel(logging.ERROR)  # that it watches without a queue is meant here
    steps = Steps()
    base = out / "benchmark" / "seed-0" / "base"
    steps.run("alpose-train", "cycles", "--dataset", "synthetic", "--preset", "demo", "--out", out / "benchmark")
    steps.run("alpose-export", base, "-o", out / "first.alpose", "--replace")

    click.secho("\nTwo devices watch; in the middle of their streams people become harder to see.", bold=True)
    watched = {}
    for number, device in enumerate(DEVICES):
        queue = out / f"{device}.db"
        _forget(queue)
        stream = Stream.of(device, 100 + number, frames)
        watched[device] = watch(stream, out / "first.alpose", queue, TRIGGER, seed=number)
        click.echo(f"{device}: {frames} frames, {watched[device].kept_N.sum()} kept, "
                   f"{watched[device].failed_N.sum()} failed")  # fmt: skip

    inbox, batch, dataset = out / "inbox", out / "batch", out / "dataset"
    for folder in (inbox, batch, dataset):
        _emptied(folder)
    queues = [out / f"{device}.db" for device in DEVICES]
    steps.run("alpose-harvest", "pull", *queues, "--into", inbox, "--acknowledge")
    steps.run(
        "alpose-harvest", "select", inbox, "--budget", budget, "--control", budget // 4, "--name", "week-1", "--seed", 0
    )
    steps.run("alpose-harvest", "gallery", inbox, "--out", out / "gallery.html", "--force")
    steps.run("alpose-harvest", "export", inbox, "--to", "coco", "--batch", "week-1", "--out", batch)
    with Inbox(inbox) as opened:
        corrected = correct(batch, opened, {device: one.stream for device, one in watched.items()})
    steps.run("alpose-harvest", "import", corrected, "--into", dataset, "--inbox", inbox, "--unchanged", "accept")
    steps.run("alpose-harvest", "report", dataset)
    field_report = json.loads(steps.run("alpose-harvest", "report", dataset, "--json", quiet=True))

    steps.run("alpose-train", "fit", "--data", dataset, "--from", base, "--epochs", epochs,
              "--out", _emptied(out / "second"))  # fmt: skip
    steps.run("alpose-export", out / "second", "--calibration", dataset, "--previous", out / "first.alpose",
              "-o", out / "second.alpose", "--replace")  # fmt: skip
    at_random = random_dataset(out / "dataset-random", watched, _labelled(dataset))
    steps.run("alpose-train", "fit", "--data", at_random, "--from", base, "--epochs", epochs,
              "--out", _emptied(out / "random"))  # fmt: skip
    steps.run("alpose-export", out / "random", "--calibration", at_random, "-o", out / "random.alpose", "--replace")

    outcome = _outcome(out, watched, field_report, dataset, frames)
    write_json(out / "demo.json", outcome.to_json())
    page = write_atomically(out / "index.html", render(outcome, steps.done, time.perf_counter() - began).encode())
    click.echo("")
    click.secho(outcome.table(), bold=True)
    click.echo(f"\n{time.perf_counter() - began:.0f} s in all. Open {page} in a browser.")


def random_dataset(folder: Path, watched: dict[str, Watched], count: int) -> Path:
    """As many frames, picked by chance from everything that was seen, with the same truth."""
    rng = np.random.default_rng(0)
    everyone = [one.stream.person(number) for one in watched.values() for number in range(len(one.stream))]
    return write_dataset(_emptied(folder), [everyone[place] for place in rng.permutation(len(everyone))[:count]])


def _outcome(out: Path, watched: dict[str, Watched], report: Any, dataset: Path, frames: int) -> Outcome:
    """Where every model is measured: on a third device that nobody has labelled, after the change."""
    fresh = Stream.of("car-3", 900, frames)
    after = {name: watch(fresh, out / f"{name}.alpose", None, None, seed=0) for name in ("first", "second", "random")}
    failed_N = np.concatenate([one.failed_N for one in watched.values()])
    half = frames // 2
    picked = read_json(dataset / "annotations" / "field.json")["images"]
    failed_of = {device: one.failed_N for device, one in watched.items()}
    found = sum(bool(failed_of[image["alpose"]["device"]][
        watched[image["alpose"]["device"]].stream.number_of(image["alpose"]["captured_ns"])]) for image in picked)  # fmt: skip
    return Outcome(
        frames=len(failed_N),
        failures=int(failed_N.sum()),
        picked=len(picked),
        found=found,
        found_by_chance=len(picked) * float(failed_N.mean()),
        true_pck=float(np.nanmean(np.concatenate([one.pck_N for one in watched.values()]))),
        field=report["fleet"],
        before={"easy": _mean(after["first"].pck_N[:half]), "hard": _mean(after["first"].pck_N[half:])},
        after={"easy": _mean(after["second"].pck_N[:half]), "hard": _mean(after["second"].pck_N[half:])},
        by_chance={"easy": _mean(after["random"].pck_N[:half]), "hard": _mean(after["random"].pck_N[half:])},
        failures_before=int(after["first"].failed_N.sum()),
        failures_after=int(after["second"].failed_N.sum()),
        failures_by_chance=int(after["random"].failed_N.sum()),
        fresh=frames,
    )


def _mean(values: Any) -> float:
    return float(np.nanmean(values))


def _labelled(dataset: Path) -> int:
    return sum(1 for _ in (dataset / IMAGES).iterdir())


def _emptied(folder: Path) -> Path:
    """Without what an earlier run has left."""
    if folder.exists():
        shutil.rmtree(folder)
    return folder


def _forget(queue: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        Path(f"{queue}{ending}").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
