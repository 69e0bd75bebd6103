"""``python -m alpose.tools.demo``: the whole loop in a few minutes, every step by the command that a user would type.

Two commands run at a time where neither waits for the other: those that only prepare the comparison run beside the loop.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import numpy.typing as npt

from alpose.runtime.io import read_json, write_atomically, write_json
from alpose.trainer import checkpoint
from alpose.trainer.cli_options import default_cache
from alpose.trainer.data.catalog import open_dataset
from alpose.trainer.data.crops import prepare
from alpose.trainer.device import device_context, environment
from alpose.trainer.measures.metrics import Failure
from alpose.trainer.presets import preset
from alpose.trainer.scoring import score

from ..inbox import Inbox
from .page import MODELS, Labelled, Measured, Outcome, Result, render
from .simulation import Stream, Watched, correct, image_pck, watch, write_dataset

T = TypeVar("T")

METHODS = "random,coreset,ll++,epck"
"""Of the benchmark: chance, the embedding alone, and two loss heads."""
FRAMES = 1200
"""Of each device's stream."""
FRESH = 600
"""Frames of the device on which all models are measured; the second half is from a turned camera."""
BUDGET = 200
"""Frames that are annotated, a quarter of them from the control stream."""
EPOCHS = 12
"""Of training on with them."""
HOLD_OUT = 0.25
"""Share of the labelled frames that trains nothing: it measures a fit and calibrates an export."""
TRIGGER = "Budget(per_hour=5400) | Control(rate=0.06)"
"""At ten frames a second a stream lasts two minutes: 5,400 an hour are 180 of 1,200 frames."""
DEVICES = ("car-1", "car-2")
SEED_STEP = 1000
"""Between the streams of two seeds."""


@dataclass(slots=True)
class Steps:
    """Runs commands, shows them, and remembers how long each took."""

    precision: str
    done: list[tuple[str, float]] = field(default_factory=list)

    def run(self, program: str, *arguments: object, quiet: bool = False, beside: bool = False) -> str:
        """One command; its output, which is shown unless it is for programs.

        One that runs ``beside`` others is shown when it has ended, so that its lines do not mix with theirs.
        """
        words = [program, *map(str, arguments)]
        if program == "alpose-train" and self.precision != "auto":
            words += ["--precision", self.precision]
        if not (quiet or beside):
            click.secho(f"\n$ {shlex.join(words)}", bold=True)
        began = time.perf_counter()
        finished = subprocess.run(  # our own commands
            [sys.executable, "-m", _MODULES[program], *words[1:]], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if beside else None, text=True, check=False,
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )  # fmt: skip
        took = time.perf_counter() - began
        if finished.returncode:
            said = f"{finished.stdout[-500:]}{(finished.stderr or '')[-500:]}"
            raise click.ClickException(f"{shlex.join(words)} ended with {finished.returncode}: {said}")
        if not quiet:
            self.done.append((shlex.join(words), took))
            heading = click.style(f"\n$ {shlex.join(words)}\n", bold=True) if beside else ""
            click.echo(f"{heading}{finished.stdout.rstrip()}")
        return finished.stdout


_MODULES = {
    "alpose-train": "alpose.trainer",
    "alpose-export": "alpose.export",
    "alpose-harvest": "alpose.tools",
    "alpose-monitor": "alpose.runtime",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How large the loop is."""

    frames: int = FRAMES
    budget: int = BUDGET
    epochs: int = EPOCHS


@click.command()
@click.option("--out", default="runs/demo", show_default=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--frames", default=FRAMES, show_default=True, type=click.IntRange(40), help="Of each device's stream.")
@click.option("--budget", default=BUDGET, show_default=True, type=click.IntRange(8), help="Frames that are annotated.")
@click.option("--epochs", default=EPOCHS, show_default=True, type=click.IntRange(1), help="Of training on.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1),
              help="How often the loop is run, each time with other people and another first model.")  # fmt: skip
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "bf16"]),
              help="Of the trainings; auto: bfloat16 where the machine has it natively.")  # fmt: skip
def main(out: Path, frames: int, budget: int, epochs: int, seeds: int, precision: str) -> None:
    """Train, export, watch, harvest, annotate, train again, on rendered people; ends with one page that links all."""
    began = time.perf_counter()
    logging.getLogger("alpose.monitor").setLevel(logging.ERROR)  # that it watches without a queue is meant here
    settings, steps = Settings(frames=frames, budget=budget, epochs=epochs), Steps(precision)
    benchmark = ["alpose-train", "cycles", "--dataset", "synthetic", "--preset", "demo", "--methods", METHODS]
    steps.run(*benchmark, "--seeds", seeds, "--out", out / "benchmark", "--select-only")
    beside = ThreadPoolExecutor(1)
    outcomes: list[Outcome] = []

    def write() -> Path:
        """The numbers and the page of the seeds so far: a run that is stopped leaves those that ended."""
        result, seconds = Result(tuple(outcomes)), time.perf_counter() - began
        write_json(out / "demo.json", {
            **result.to_json(), "frames": frames, "budget": budget, "epochs": epochs, "seconds": seconds,
            "cpu_seconds": _cpu_seconds(), "environment": environment(device_context("cpu", "fp32")) | {"precision": precision},
            "commands": [{"command": command, "seconds": took} for command, took in steps.done],
        })  # fmt: skip
        return write_atomically(out / "index.html", render(result, steps.done, seconds).encode())

    try:
        retrained = beside.submit(steps.run, *benchmark, "--out", out / "benchmark", beside=True)
        for seed in range(seeds):
            folder = out / f"seed-{seed}" if seed else out
            outcomes.append(turn(folder, out / "benchmark" / f"seed-{seed}" / "base", seed, settings, steps, beside))
            write()
        _result(retrained, lambda: steps.run(*benchmark, "--out", out / "benchmark"))
    finally:
        beside.shutdown(cancel_futures=True)
    page = write()
    click.secho(f"\n{Result(tuple(outcomes)).table()}", bold=True)
    click.echo(f"\n{time.perf_counter() - began:.0f} s in all, {_cpu_seconds():.0f} s of computing. Open {page} in a browser.")  # fmt: skip


def turn(
    out: Path, base: Path, seed: int, settings: Settings, steps: Steps, beside: ThreadPoolExecutor
) -> Outcome:  # fmt: skip
    """One turn of the loop from the base model, in ``out``; what it is compared with is trained beside it."""
    streams = [Stream.of(device, SEED_STEP * seed + 100 + number, settings.frames) for number, device in enumerate(DEVICES)]  # fmt: skip
    at_random = beside.submit(train_random, out, base, streams, seed, settings, steps)
    without = beside.submit(train_without, out, base, seed, settings, steps)

    steps.run("alpose-export", base, "-o", out / "first.alpose", "--replace")
    click.secho("\nTwo devices watch; from the middle of their streams on, some pictures are from a turned camera.", bold=True)  # fmt: skip
    watched: dict[str, Watched] = {}
    for number, stream in enumerate(streams):
        queue = out / f"{stream.device}.db"
        _forget(queue)
        seen = watch(stream, out / "first.alpose", queue, TRIGGER, seed=2 * seed + number)
        watched[stream.device] = seen
        click.echo(f"{stream.device}: {len(stream)} frames, {stream.turned_N.sum()} from the turned camera, "
                   f"{seen.kept_N.sum()} kept, {seen.failed_N.sum()} failed")  # fmt: skip

    inbox, batch, dataset = out / "inbox", out / "batch", out / "dataset"
    for folder in (inbox, batch, dataset):
        _emptied(folder)
    steps.run("alpose-harvest", "pull", *(out / f"{device}.db" for device in DEVICES), "--into", inbox, "--acknowledge")
    budget = settings.budget
    steps.run("alpose-harvest", "select", inbox, "--budget", budget, "--control", budget // 4, "--name", "week-1",
              "--seed", seed)  # fmt: skip
    steps.run("alpose-harvest", "gallery", inbox, "--out", out / "gallery.html", "--force")
    steps.run("alpose-harvest", "export", inbox, "--to", "coco", "--batch", "week-1", "--out", batch)
    with Inbox(inbox) as opened:
        corrected = correct(batch, opened, {stream.device: stream for stream in streams})
    steps.run("alpose-harvest", "import", corrected, "--into", dataset, "--inbox", inbox, "--unchanged", "accept")
    steps.run("alpose-harvest", "report", dataset)
    field_report = json.loads(steps.run("alpose-harvest", "report", dataset, "--json", quiet=True))

    _fit(out / "second", dataset, base, seed, settings.epochs, steps)
    steps.run("alpose-export", out / "second", "--calibration", dataset, "--previous", out / "first.alpose",
              "-o", out / "second.alpose", "--replace")  # fmt: skip
    _result(without, lambda: train_without(out, base, seed, settings, steps, beside=False))
    failed_N = np.concatenate([one.failed_N for one in watched.values()])
    everyone = {device: place for place, device in enumerate(watched)}
    picked = read_json(dataset / "annotations" / "field.json")["images"]
    picked_M = np.array([
        everyone[image["alpose"]["device"]] * settings.frames
        + watched[image["alpose"]["device"]].stream.number_of(image["alpose"]["captured_ns"])
        for image in picked
    ])  # fmt: skip
    turned_N = np.concatenate([stream.turned_N for stream in streams])
    checkpoints = {"first": base, "without": out / "without", "random": out / "random", "harvest": out / "second"}
    assert tuple(checkpoints) == tuple(MODELS)
    return Outcome(
        seed=seed,
        frames=len(failed_N),
        turned=int(turned_N.sum()),
        failures=int(failed_N.sum()),
        labelled={
            name: Labelled(frames=len(row_M), turned=int(turned_N[row_M].sum()), failures=int(failed_N[row_M].sum()))
            for name, row_M in (("random", at_random.result()), ("harvest", picked_M))
        },
        true_pck=float(np.nanmean(np.concatenate([one.pck_N for one in watched.values()]))),
        field=field_report["fleet"],
        measured=measure(Stream.of("car-3", SEED_STEP * seed + 900, FRESH, turned=1.0), checkpoints),
    )


def train_random(
    out: Path, base: Path, streams: Sequence[Stream], seed: int, settings: Settings, steps: Steps
) -> npt.NDArray[np.int64]:  # fmt: skip
    """Train on with as many frames, picked by chance from everything that the devices saw; their numbers."""
    everyone = [(stream.data, row) for stream in streams for row in range(len(stream))]
    picked_M = np.random.default_rng(seed).permutation(len(everyone))[: settings.budget]
    dataset = write_dataset(_emptied(out / "dataset-random"), [everyone[place] for place in picked_M])
    _fit(out / "random", dataset, base, seed, settings.epochs, steps, beside=True)
    return picked_M


def train_without(out: Path, base: Path, seed: int, settings: Settings, steps: Steps, beside: bool = True) -> None:
    """Train on without a new label: with the people that trained the first model, for as many steps as the others."""
    known = frozenset(checkpoint.load(base).facts["labelled_ids"])
    people = open_dataset("synthetic", sizes=preset("demo").sizes).train
    old = [(people, row) for row, id_ in enumerate(people.ids) if id_ in known]
    dataset = write_dataset(_emptied(out / "dataset-old"), old)
    learning = (1 - HOLD_OUT) * len(old), len(old) + (1 - HOLD_OUT) * settings.budget
    epochs = round(settings.epochs * learning[1] / learning[0])
    _fit(out / "without", dataset, base, seed, epochs, steps, "--without-old-data", beside=beside)


def _fit(
    out: Path, dataset: Path, base: Path, seed: int, epochs: int, steps: Steps, *more: str, beside: bool = False
) -> None:  # fmt: skip
    steps.run("alpose-train", "fit", "--data", dataset, "--from", base, *more, "--heads", "epck", "--epochs", epochs,
              "--hold-out", HOLD_OUT, "--seed", seed, "--out", _emptied(out), beside=beside)  # fmt: skip


def measure(fresh: Stream, checkpoints: Mapping[str, Path]) -> dict[str, Measured]:
    """PCK of every model on a third device, whose frames nobody has labelled."""
    machine = device_context("cpu", "fp32")
    found = {}
    for name, folder in checkpoints.items():
        model = replace(checkpoint.load(folder, machine.device), heads={})
        crops = prepare(fresh.data, replace(model.crop, context=0.0), default_cache())
        pck_N = image_pck(crops.data, score(model, crops, machine, what=f"{name} on {fresh.device}").distance_NJ)
        found[name] = Measured(
            before=float(np.nanmean(pck_N[: len(fresh) // 2])),
            turned=float(np.nanmean(pck_N[fresh.turned_N])),
            failures=int(Failure().failed(pck_N)[0].sum()),
            frames=len(fresh),
        )
    return found


def _cpu_seconds() -> float:
    """Seconds of computing of this process and of every command that has ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _result(beside: Future[T], call: Callable[[], T]) -> T:
    """What runs beside; it is run here where it has not begun yet."""
    return call() if beside.cancel() else beside.result()


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
