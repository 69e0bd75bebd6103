"""kill -9 at random moments. ``python -m bench.crash`` is the long form; ``bench/parts/crash.py`` says what a trial is."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
if str(ROOT) not in sys.path:  # bench is no part of the package
    sys.path.append(str(ROOT))

crash = pytest.importorskip("bench.parts.crash", reason="bench is not in an installed package")

TRIALS = 50


def test_fifty_kills_at_random_moments_lose_and_tear_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.parts.crash", str(TRIALS), str(os.getpid()), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    outcomes: list[dict[str, Any]] = [json.loads(line) for line in run.stdout.splitlines()]

    assert len(outcomes) == TRIALS
    assert [outcome for outcome in outcomes if outcome["problems"]] == [], run.stderr
    assert sum(outcome["lost"] for outcome in outcomes) == 0
    assert sum(outcome["torn"] for outcome in outcomes) == 0
    assert sum(outcome["over_bound"] for outcome in outcomes) == 0
    assert sum(outcome["chunks_lost"] + outcome["tallies_lost"] for outcome in outcomes) == 0
    # They were trials of something: records were acknowledged, evicted, and writers died in the middle of a put.
    assert sum(outcome["acknowledged"] for outcome in outcomes) > 200
    assert sum(outcome["evicted"] for outcome in outcomes) > 50
    assert any(outcome["shared"] for outcome in outcomes)
    assert any("put" in place for outcome in outcomes for place in outcome["killed_at"])


def test_a_crash_trial_would_notice_a_lost_a_torn_and_a_foreign_record(tmp_path: Path, kit: Any) -> None:
    path, told = tmp_path / "flagged.db", crash.Told()
    with crash.Queue(path, max_bytes=crash.ROOMY) as queue:
        for n in range(4):
            id = queue.new_id()
            picture = crash.Picture.of(id.encode() + b"x" * 500, width=9, height=9, captured_ns=0)
            stored = queue.put(kit.record(id, n, camera=""), [picture])
            told.stored[id], told.begun = stored.sha256, told.begun | {id}
    sound = crash.examine(path, 0, told)
    assert (sound.lost, sound.torn, sound.problems) == (0, 0, ())

    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM record WHERE seq = 1")
        db.execute("DELETE FROM picture WHERE key / 256 = 1")
        db.execute("UPDATE picture SET data = zeroblob(532) WHERE key / 256 = 2")
        db.execute("UPDATE record SET arrays = zeroblob(length(arrays)) WHERE seq = 3")
    told.begun.discard([*told.stored][3])
    told.chunks, told.tallied = {"0" * 64}, 7
    broken = crash.examine(path, 0, told)
    assert (broken.chunks_lost, broken.tallies_lost) == (1, 7)
    assert broken.lost == 2  # the one that is gone, and the one whose manifest cannot be read
    assert broken.torn == 2
    assert any("nobody put" in problem for problem in broken.problems)
    assert any("counters" in problem for problem in broken.problems)
