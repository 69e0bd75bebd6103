"""Compare two checkouts: the same commands with the same seeds, and what they write.

    python -m bench.compare OLD NEW [--work DIR] [--only cycles,detect,…]

Both are run with this interpreter, each from its own sources. What both write is compared value by value; times, versions,
paths and hashes of files that hold them are left out (``IGNORED``). Inputs (frames, queues) are made once, by OLD, so that NEW
also opens files that OLD wrote. The exit status is 0 when everything is equal.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

METHODS = "random,coreset,entropy,multipeak,epck,epck-slim,ll,ll-gap,ll++,ll++conv,egl++,aleatoric,vl4pose,ensemble,oracle-loss,oracle-pck"
IGNORED = re.compile(
    r"(^|\.)(environment|card\.html|created|began|seconds|.*_seconds|seconds_.*|commit|alpose|versions?|latency.*|.*_ms|ms|costs?|path|file|folder|"
    r"engine|engines|at_ns|written|timings?|sha256|size_bytes|speed|host|tool|batch_of|date_created|measured)(\.|$)"
)
NAMING = ("question", "name", "detector", "against", "method", "set", "seed", "stage")
FRAMES = """
import numpy as np
from alpose.trainer.data.synthetic import read_people
people = read_people(seed=5, count=60, domain="hard")
rows = [people.image(row) for row in range(60)]
np.savez("frames.npz", boxes=people.boxes_N4, **{f"frame_{row}": image for row, image in enumerate(rows)})
"""
WATCH = """
import json, numpy as np
from alpose import runtime
held = np.load("frames.npz")
said, arrays = [], {}
with runtime.Monitor("toy.alpose", queue="watched.db", trigger=POLICY, engine="cpu", threads=1, device_id="car-1", seed=3) as monitor:
    for row in range(60):
        verdict = monitor(held[f"frame_{row}"], box=held["boxes"][row], time_ns=1_750_000_000_000_000_000 + row * 10**9)
        arrays[f"keypoints_{row}"], arrays[f"scores_{row}"] = verdict.keypoints, verdict.scores
        said.append([verdict.predicted_loss, verdict.failure_probability, verdict.flagged, verdict.kept,
                     [str(reason) for reason in verdict.reasons], verdict.inclusion_probability])
        monitor.flush()
json.dump(said, open("verdicts.json", "w"))
np.savez("verdicts.npz", **arrays)
""".replace("POLICY", repr("Episodes(Budget(per_hour=1200)) | Control(rate=0.2)"))
POLICIES = (
    "Budget(per_hour=600)",
    "Episodes(Budget(per_hour=600), best=2) | Control(rate=0.1)",
    "Threshold(0.5) & Novel(0.1) | Jump(0.3)",
    "Catch(0.9) | Cooldown(5)",
)


class Checkout:
    """Runs commands of one checkout in a folder of its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root.resolve(), folder
        folder.mkdir(parents=True)

    def run(self, *words: str, ok: tuple[int, ...] = (0,)) -> str:
        """The output of ``python …``; every other exit status than ``ok`` is an error."""
        environment = os.environ | {
            "PYTHONPATH": f"{self.root / 'src'}", "ALPOSE_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode not in ok:
            raise click.ClickException(
                f"{self.root.name}: {' '.join(words)[:300]}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
            )
        return done.stdout

    def json(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.folder / name).read_text())


def cycles(old: Checkout, new: Checkout) -> Iterator[str]:
    """``results.json`` of two benchmarks: every method without retraining, three methods with it."""
    common = ("-m", "alpose.trainer", "cycles", "--dataset", "synthetic", "--preset", "smoke", "--device", "cpu")
    for name, more in (
        ("smoke", ("--seeds", "2", "--methods", METHODS, "--select-only")),
        ("stages", ("--seeds", "1", "--stages", "2", "--methods", "random,ll++,epck")),
    ):
        for one in (old, new):
            one.run(*common, *more, "--out", f"runs/{name}")
        yield from differences(old.json(f"runs/{name}/results.json"), new.json(f"runs/{name}/results.json"), name)
        yield from same_bytes(old, new, f"runs/{name}/seed-0/base/model.safetensors")


def detect(old: Checkout, new: Checkout) -> Iterator[str]:
    """``detect.json`` of all detectors on two smoke nets."""
    for one in (old, new):
        one.run("-m", "alpose.trainer", "detect", "--dataset", "synthetic", "--preset", "smoke", "--seeds", "2",
                "--device", "cpu", "--out", "runs/detect")  # fmt: skip
    yield from differences(old.json("runs/detect/detect.json"), new.json("runs/detect/detect.json"), "detect")


def bundle(old: Checkout, new: Checkout) -> Iterator[str]:
    """Calibration, thresholds and golden answers of a bundle."""
    for one in (old, new):
        one.run("-m", "alpose.export", "runs/smoke/seed-0/base", "--calibration", "synthetic-hard", "--failure", "mean-error",
                "--failure-limit", "0.6", "-o", "toy.alpose")  # fmt: skip
        one.run("-m", "alpose.export", "verify", "toy.alpose")
    yield from differences(old.json("toy.alpose/bundle.json"), new.json("toy.alpose/bundle.json"), "bundle.json")
    yield from same_arrays(old, new, "toy.alpose/golden.npz")


def queue(old: Checkout, new: Checkout) -> Iterator[str]:
    """Verdicts on sixty frames, the records that they leave, and what other policies would have kept of them."""
    old.run("-c", FRAMES)
    shutil.copy(old.folder / "frames.npz", new.folder)
    for one in (old, new):
        one.run("-c", WATCH)
    yield from differences(old.json("verdicts.json"), new.json("verdicts.json"), "verdicts")
    yield from same_arrays(old, new, "verdicts.npz")
    shutil.copy(old.folder / "watched.db", new.folder / "old-watched.db")
    shutil.copy(old.folder / "watched.db", old.folder / "old-watched.db")
    for name in ("watched.db", "old-watched.db"):
        random = ("id", "sha256", "bundle", "episode") if name == "watched.db" else ()
        first, second = (
            [
                {key: value for key, value in record.items() if key not in random}
                for record in json.loads(one.run("-m", "alpose.runtime", "queue", "ls", name, "--json"))["records"]
            ]
            for one in (old, new)
        )
        yield from differences(first, second, name)
    for policy in POLICIES:
        was, now = (
            one.run("-m", "alpose.runtime", "replay", "old-watched.db", "--trigger", policy, "--seed", "1", "--json")
            for one in (old, new)
        )
        yield from differences(json.loads(was), json.loads(now), f"replay {policy}")


def harvest(old: Checkout, new: Checkout) -> Iterator[str]:
    """A batch selected from two queues, and the field report of its labels."""
    for car, seed in (("car-17", "1"), ("car-18", "2")):
        old.run("-m", "alpose.tools.sample", f"{car}.db", "--frames", "60", "--seed", seed)
        shutil.copy(old.folder / f"{car}.db", new.folder)
    for one in (old, new):
        tools = ("-m", "alpose.tools")
        one.run(*tools, "pull", "car-17.db", "car-18.db", "--into", "inbox")
        for strategy in ("value", "top", "coreset", "random"):
            one.run(
                *tools, "select", "inbox", "--budget", "20", "--name", strategy, "--strategy", strategy, "--seed", "0"
            )
        one.run(*tools, "export", "inbox", "--to", "coco", "--batch", "value", "--out", "batch")
        moved = one.json("batch/annotations/person_keypoints_default.json") if (
            one.folder / "batch/annotations/person_keypoints_default.json"
        ).exists() else json.loads(next((one.folder / "batch/annotations").glob("*.json")).read_text())  # fmt: skip
        rng = np.random.default_rng(0)
        for person in moved["annotations"]:
            points_J3 = np.reshape(np.asarray(person["keypoints"], dtype=float), (-1, 3))
            points_J3[:, :2] += rng.normal(0, 30, points_J3[:, :2].shape) * (rng.random(len(points_J3)) < 0.5)[:, None]
            person["keypoints"] = points_J3.ravel().tolist()
        (one.folder / "corrected.json").write_text(json.dumps(moved))
        one.run(*tools, "import", "corrected.json", "--into", "dataset", "--inbox", "inbox", "--unchanged", "accept")
        (one.folder / "field.json").write_text(one.run(*tools, "report", "dataset", "--json"))
    for strategy in ("value", "top", "coreset", "random"):
        yield from differences(
            old.json(f"inbox/batches/{strategy}.json"), new.json(f"inbox/batches/{strategy}.json"), f"batch {strategy}"
        )
    yield from differences(
        old.json("dataset/annotations/field.json"), new.json("dataset/annotations/field.json"), "dataset"
    )
    yield from differences(old.json("field.json"), new.json("field.json"), "field report")


def fit(old: Checkout, new: Checkout) -> Iterator[str]:
    """The weights of a model trained on with labels from the field."""
    for one in (old, new):
        one.run("-m", "alpose.trainer", "fit", "--data", "dataset", "--from", "runs/smoke/seed-0/base", "--epochs", "2",
                "--device", "cpu", "--out", "second")  # fmt: skip
    yield from same_bytes(old, new, "second/model.safetensors")


def written(old: Checkout, new: Checkout) -> Iterator[str]:
    """Whether NEW opens what OLD wrote: run folder, checkpoint, bundle, inbox."""
    for name in ("runs/smoke", "toy.alpose", "inbox", "dataset"):
        shutil.copytree(old.folder / name, new.folder / "old" / name)
    new.run("-m", "alpose.trainer", "report", "old/runs/smoke")
    new.run("-m", "alpose.export", "verify", "old/toy.alpose")
    new.run("-m", "alpose.export", "old/runs/smoke/seed-0/base", "--calibration", "synthetic-hard", "--failure", "mean-error",
            "--failure-limit", "0.6", "-o", "again.alpose")  # fmt: skip
    new.run("-m", "alpose.tools", "status", "old/inbox")
    new.run("-m", "alpose.tools", "gallery", "old/inbox")
    reported = json.loads(new.run("-m", "alpose.tools", "report", "old/dataset", "--json"))
    yield from differences(old.json("field.json"), reported, "field report of the old dataset")


def differences(old: Any, new: Any, where: str, key: str = "") -> Iterator[str]:
    """Every place in which two JSON values differ, keys that hold times and versions left out."""
    if IGNORED.search(key):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            below = f"{key}.{name}" if key else str(name)
            if name not in old or name not in new:
                if not IGNORED.search(below):
                    yield f"{where}: {below} is only in {'NEW' if name in new else 'OLD'}"
            else:
                yield from differences(old[name], new[name], where, below)
    elif (was := named(old)) and (now := named(new)) and len(old) != len(new):
        yield from differences(was, now, where, key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, where, f"{key}[{place}]")
    elif old != new and not (old != old and new != new):  # NaN equals NaN here
        yield f"{where}: {key} was {str(old)[:120]}, is {str(new)[:120]}"


def named(items: Any) -> dict[str, Any] | None:
    """Rows by the fields that tell them apart, so that lists of which one has more rows can be compared; None where none do."""
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return None
    rows = {" ".join(str(item[name]) for name in NAMING if name in item): item for item in items}
    return rows if len(rows) == len(items) and "" not in rows else None


def same_bytes(old: Checkout, new: Checkout, name: str) -> Iterator[str]:
    """Whether a file of weights holds the same tensors; what stands in its header may differ."""
    from safetensors.numpy import load_file

    first, second = load_file(old.folder / name), load_file(new.folder / name)
    if first.keys() != second.keys():
        yield f"{name}: other tensors: {sorted(first.keys() ^ second.keys())[:8]}"
        return
    for key, value in first.items():
        if not np.array_equal(value, second[key]):
            yield f"{name}: {key} differs by up to {np.abs(value.astype(float) - second[key]).max():g}"


def same_arrays(old: Checkout, new: Checkout, name: str) -> Iterator[str]:
    """Whether two npz files hold the same arrays, bit for bit."""
    with np.load(old.folder / name) as first, np.load(new.folder / name) as second:
        if set(first) != set(second):
            yield f"{name}: other arrays: {sorted(set(first) ^ set(second))}"
            return
        for key in first:
            if not np.array_equal(first[key], second[key], equal_nan=first[key].dtype.kind == "f"):
                yield f"{name}: {key} differs"


COMPARED: dict[str, Callable[[Checkout, Checkout], Iterator[str]]] = {
    "cycles": cycles, "bundle": bundle, "queue": queue, "harvest": harvest, "fit": fit, "detect": detect, "written": written,
}  # fmt: skip


@click.command()
@click.argument("old", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", default=",".join(COMPARED), show_default=True, help="What to compare, in this order.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="A new folder for what both write. [default: a temporary one]"
)
def main(old: Path, new: Path, only: str, work: Path | None) -> None:
    """Run the commands of OLD and NEW with equal seeds, and say in what their results differ."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (work or Path(temporary)).resolve()
        pair = Checkout(old, folder / "old"), Checkout(new, folder / "new")
        unequal = False
        for name in only.split(","):
            found = list(COMPARED[name](*pair))
            unequal |= bool(found)
            summary = (COMPARED[name].__doc__ or "").strip()
            print(f"{'equal    ' if not found else 'DIFFERENT'}  {name}: {summary}", flush=True)
            for line in found[:20]:
                print(f"             {line}", flush=True)
            if len(found) > 20:
                print(f"             … and {len(found) - 20} more", flush=True)
    sys.exit(int(unequal))


if __name__ == "__main__":
    main()
