"""Files that alpose 0.1.0 wrote are still opened, and say the same.

``tests/fixtures/written-by-0.1.0.zip`` holds the smallest of each kind, made of rendered people by the commands of 0.1.0:

- ``run``: a benchmark (``cycles --dataset synthetic --preset smoke --methods random,epck --select-only``), with its checkpoint,
- ``toy.alpose``: its bundle (``--failure mean-error --failure-limit 0.6``),
- ``flagged.db``: the queue of a Monitor after thirty frames, and ``queue.json``, what ``queue ls --json`` printed of it,
- ``inbox``, ``batch``, ``dataset``: its harvest, and ``field.json``, what ``report --json`` printed of the dataset.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpose import runtime

Run = Callable[..., str]
FIXTURE = Path(__file__).parent / "fixtures" / "written-by-0.1.0.zip"
POLICIES = (
    "Episodes(Budget(per_hour=20)) | Control(per_hour=2)",
    "Episodes(Budget(15) | Budget(5) & Jump(0.5)) | Control(per_hour=2)",
    "Episodes(Budget(20) & Novel(0.1)) | Control(rate=0.001)",
    "Episodes(Catch(0.9), best=2, gap_s=1.0, longest_s=30) | Control(per_hour=2)",
    "Threshold(0.5) & Cooldown(3) | Limbs(5)",
)
"""Texts as they stand in the environment files and start scripts of users."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The files, unpacked where they may be changed."""
    with zipfile.ZipFile(FIXTURE) as archive:
        archive.extractall(tmp_path)
    return tmp_path


@pytest.fixture
def run(old: Path) -> Run:
    """Run a command in the folder of the old files; its standard output."""

    def command(module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", f"alpose.{module}", *arguments],
            cwd=old,
            env=os.environ | {"ALPOSE_CACHE": str(old / "cache"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{module} {arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return command


def records(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)["records"]
    return found


def test_a_queue_lists_the_same_records(old: Path, run: Run) -> None:
    was = records((old / "queue.json").read_text())
    now = records(run("runtime", "queue", "ls", "flagged.db", "--json"))
    assert len(was) == 12
    for before, after in zip(was, now, strict=True):
        assert {key: after[key] for key in before} == before
    run("runtime", "queue", "check", "flagged.db")


def test_a_monitor_goes_on_with_an_old_queue_and_bundle(old: Path, run: Run) -> None:
    frame_HW3 = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    with runtime.Monitor(old / "toy.alpose", queue=old / "flagged.db", trigger="Threshold(0)", engine="cpu") as monitor:
        assert monitor.device_id == "car-1"
        verdict = monitor(frame_HW3, box=(10, 10, 100, 100))
        assert verdict.kept
        assert verdict.keypoints.shape == (14, 2)
    assert len(records(run("runtime", "queue", "ls", "flagged.db", "--json"))) == 13


@pytest.mark.parametrize("policy", POLICIES)
def test_texts_of_policies_mean_what_they_meant(policy: str, run: Run) -> None:
    (answer,) = json.loads(run("runtime", "replay", "flagged.db", "--trigger", policy, "--json"))["policies"]
    assert answer["frames"] == 30
    assert runtime.parse(str(runtime.parse(policy))) == runtime.parse(policy)


def test_a_bundle_verifies(run: Run) -> None:
    assert "passed" in run("export", "verify", "toy.alpose")


def test_an_inbox_is_pulled_into_selected_from_and_shown(old: Path, run: Run) -> None:
    chosen = json.loads((old / "inbox" / "batches" / "week-1.json").read_text())
    assert "12" in run("tools", "status", "inbox")
    run("tools", "pull", "flagged.db", "--into", "inbox")
    run("tools", "select", "inbox", "--budget", "8", "--name", "again", "--seed", "1", "--strategy", "top")
    again = json.loads((old / "inbox" / "batches" / "again.json").read_text())
    assert again["choices"]
    assert not {one["id"] for one in chosen["choices"]} & {one["id"] for one in again["choices"]}, "chosen twice"
    run("tools", "gallery", "inbox", "--out", "gallery.html")
    (labels,) = (old / "batch" / "annotations").glob("*.json")
    said = run("tools", "import", str(labels), "--into", "fresh", "--inbox", "inbox", "--unchanged", "accept")
    assert "3 added" in said


def test_a_dataset_is_reported_on_and_trained_on(old: Path, run: Run) -> None:
    was = json.loads((old / "field.json").read_text())["fleet"]
    now = json.loads(run("tools", "report", "dataset", "--json"))["fleet"]
    for key in ("frames", "flagged", "lost", "labelled", "labelled_control"):
        assert now[key] == was[key], key
    assert now["pck"] == pytest.approx(was["pck"])
    # Three pictures are too few to hold some out: the old model is trained on with rendered people instead.
    run("trainer", "fit", "--data", "synthetic", "--from", "run/seed-0/base", "--epochs", "1", "--out", "second")
    assert (old / "second" / "model.safetensors").exists()


def test_a_run_is_reported_on_and_its_checkpoint_exported(old: Path, run: Run) -> None:
    run("trainer", "report", "run")
    assert (old / "run" / "report.html").stat().st_size > 10_000
    run("export", "run/seed-0/base", "--calibration", "synthetic-hard", "--failure", "mean-error", "--failure-limit", "0.6",
        "-o", "again.alpose")  # fmt: skip
    was, now = (
        json.loads((old / f"{name}.alpose" / "bundle.json").read_text())["calibration"] for name in ("toy", "again")
    )
    for key in ("data", "failure", "profile", "fitted", "fitted_failures", "measured", "measured_failures"):
        assert now[key] == was[key], key
