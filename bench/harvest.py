"""Time and memory of choosing a batch out of a large inbox.

``python -m bench.harvest``; a real ``inbox.db`` of each size is written, and then read and chosen from in a fresh process,
whose peak of memory is its own.

Shapes: N records, D embedding.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from alpose.runtime.io import write_json
from alpose.runtime.queue import Picture, Record
from alpose.runtime.queue.record import encode
from alpose.runtime.skeleton import LSP
from alpose.tools.inbox import Inbox
from alpose.tools.inbox_database import open_database
from alpose.tools.select import select
from alpose.trainer.device import device_context

from .parts.measure import RESULTS, Bench, load_average, machine_facts, spread, table

DEVICES, SCENES, CONTROL_SHARE, CONTROL_RATE = 50, 2000, 0.05, 0.001
BUNDLE = "b" * 64
CHUNK = 20_000
SAYS = {
    "columns": "everything that a choice looks at, from inbox.db into arrays (Inbox.columns)",
    "select": "the batch from these arrays: greedy over failure x distance x fairness, and the control stream's draw",
}
TARGET = {"manifests": 1_000_000, "seconds": 120, "bytes": 4 << 30}
"""What the design asks for, on two cores."""


# --- Inboxes


def write_inbox(folder: Path, count: int, width: int, seed: int = 0) -> None:
    """An inbox of ``count`` records, whose rows are those of a pull but for their hashes.

    Frames gather around scenes and come unevenly from the devices, as from a fleet. Manifests are of real length; only
    one is encoded and the others share its text, so that a million are written in minutes.
    """
    rng = np.random.default_rng([seed, count, width])
    scene_SD = rng.normal(size=(SCENES, width)).astype(np.float32)
    share_V = rng.dirichlet(np.full(DEVICES, 0.5))
    manifest = _manifest(width)
    db, _ = open_database(folder / "inbox.db")
    db.execute("PRAGMA synchronous = OFF")
    db.execute("BEGIN")
    db.execute("INSERT INTO source VALUES (1, 'bench', '')")
    for first in range(0, count, CHUNK):
        rows = min(CHUNK, count - first)
        embedding_ND = scene_SD[rng.integers(0, SCENES, rows)] + 0.35 * rng.normal(size=(rows, width)).astype(
            np.float32
        )
        embedding_ND /= np.linalg.norm(embedding_ND, axis=1, keepdims=True)
        arrays = np.zeros((rows, 12 * len(LSP) + 2 * width), dtype=np.uint8)
        arrays[:, 12 * len(LSP) :] = embedding_ND.astype("<f2").view(np.uint8)
        device_N, failure_N = rng.choice(DEVICES, rows, p=share_V), rng.beta(2, 3, rows)
        control_N, draw_N = rng.random(rows) < CONTROL_SHARE, rng.uniform(0, CONTROL_RATE, rows)
        db.executemany(
            "INSERT INTO record (id, source, device, bundle, captured_ns, flagged, failure_probability, control_draw, "
            "control_rate, pictures, sealed, joints, embedding, sha256, manifest, arrays, fetched) "
            "VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?, 1, 0, ?, ?, ?, ?, ?, 0)",
            (
                (f"{first + row:032x}", f"car-{device_N[row]}", BUNDLE, first + row, int(not control_N[row]),
                 float(failure_N[row]), float(draw_N[row]) if control_N[row] else None,
                 CONTROL_RATE if control_N[row] else None, len(LSP), width, "0" * 64, manifest, arrays[row].tobytes())
                for row in range(rows)
            ),
        )  # fmt: skip
    db.execute("COMMIT")
    db.close()


def _manifest(width: int) -> str:
    data = b"bench"
    record = Record(
        id="0" * 32, captured_ns=1, captured_monotonic_ns=1, device="car-00", bundle=BUNDLE, frame_width=640,
        frame_height=480, box=(10.0, 20.0, 300.0, 400.0), place="track",
        keypoints_J2=np.zeros((len(LSP), 2), dtype=np.float32), scores_J=np.zeros(len(LSP), dtype=np.float32),
        predicted_loss=0.5, failure_probability=0.5, embedding_D=np.zeros(width, dtype=np.float16), flagged=True,
        reasons=(("budget", 0.83, 0.71), ("jump", 3.2, 2.5)), threshold=0.71, inclusion_probability=1.0,
    )  # fmt: skip
    return encode(record, [Picture.of(data, width=640, height=480, captured_ns=1)]).manifest.decode()


# --- One measurement, in a process of its own


def choose_once(folder: Path, budget: int, strategy: Any) -> dict[str, Any]:
    """Seconds of both halves, and the process's peak of memory after them."""
    before = _peak_bytes()
    started = time.perf_counter()
    with Inbox(folder) as inbox:
        columns = inbox.columns()
    read = time.perf_counter()
    selection = select(columns, budget, np.random.default_rng(0), strategy=strategy)
    done = time.perf_counter()
    return {
        "columns_s": read - started, "select_s": done - read, "peak_bytes": _peak_bytes(), "peak_before_bytes": before,
        "chosen": len(selection.choices), "counted": selection.counted,
    }  # fmt: skip


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(
    sizes: Sequence[int], widths: Sequence[int], budget: int, strategies: Sequence[str], rounds: int, scratch: Path
) -> Iterator[dict[str, Any]]:
    """Every size, width and strategy."""
    for count in sizes:
        for width in widths:
            with tempfile.TemporaryDirectory(dir=scratch, prefix="bench-harvest-") as folder:
                write_inbox(Path(folder), count, width)
                size = (Path(folder) / "inbox.db").stat().st_size
                for strategy in strategies:
                    runs = [_run(Path(folder), budget, strategy) for _ in range(rounds)]
                    yield {
                        "manifests": count, "embedding": width, "strategy": strategy, "database_bytes": size,
                        "columns_s": asdict(spread([run["columns_s"] for run in runs])),
                        "select_s": asdict(spread([run["select_s"] for run in runs])),
                        "peak_bytes": max(run["peak_bytes"] for run in runs), "runs": runs,
                    }  # fmt: skip


def _run(folder: Path, budget: int, strategy: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "bench.harvest",
        "--one",
        str(folder),
        "--budget",
        str(budget),
        "--strategy",
        strategy,
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    value: dict[str, Any] = json.loads(run.stdout)
    return value


def show(result: Mapping[str, Any]) -> str:
    """The result for people."""
    settings = result["settings"]
    rows = [
        (f"{m['manifests']:,}", str(m["embedding"]), m["strategy"], f"{m['columns_s']['median']:.2f}",
         f"{m['select_s']['median']:.2f}", f"{m['peak_bytes'] / 2**30:.2f}", f"{m['database_bytes'] / 2**30:.2f}")
        for m in result["measurements"]
    ]  # fmt: skip
    head = ("manifests", "embedding", "strategy", "columns s", "select s", "peak GiB", "inbox.db GiB")
    return f"budget {settings['budget']}, {settings['rounds']} rounds, {DEVICES} devices, {SCENES} scenes\n\n" + table(
        head, rows
    )


@click.command(name="bench.harvest", cls=Bench)
@click.option("--sizes", default="10000,100000,1000000", show_default=True, help="Manifests, comma-separated.")
@click.option("--widths", default="64,256", show_default=True, help="Lengths of the embeddings.")
@click.option("--budget", default=500, show_default=True, type=click.IntRange(1))
@click.option("--strategy", "strategies", default="value", show_default=True, help="Comma-separated.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--disk", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(),
              show_default="here", help="Folder for the inboxes; the largest takes 2 GB.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default=RESULTS / "harvest.json")
@click.option("--one", type=click.Path(path_type=Path), hidden=True)
def main(
    sizes: str, widths: str, budget: int, strategies: str, rounds: int, disk: Path, out: Path, one: Path | None
) -> None:
    """Seconds and memory of alpose-harvest select at 10^4 to 10^6 manifests."""
    if one is not None:
        print(json.dumps(choose_once(one, budget, strategies)))
        return
    before = load_average()
    measured = list(
        measure(_numbers(sizes), _numbers(widths), budget, strategies.split(","), rounds, disk.resolve())
    )  # fmt: skip
    result = {
        "bench": "harvest",
        "machine": machine_facts(device_context("cpu", "fp32")),
        "load_average": {"before": before, "after": load_average()},
        "settings": {"budget": budget, "rounds": rounds, "devices": DEVICES, "scenes": SCENES,
                     "control_share": CONTROL_SHARE},
        "works": SAYS, "target": TARGET, "measurements": measured,
    }  # fmt: skip
    print(show(result))
    print(f"\nwritten: {write_json(out, result)}")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
