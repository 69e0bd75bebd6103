"""``bench.harvest`` in a toy size: it says what it measured, on an inbox that is one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alpose.tools.inbox import Inbox
from bench.harvest import CONTROL_SHARE, write_inbox

ROOT = Path(__file__).resolve().parents[2]


def test_the_inbox_is_one_and_has_what_a_fleet_sends(tmp_path: Path) -> None:
    write_inbox(tmp_path, 3000, 8)
    with Inbox(tmp_path) as inbox:
        columns = inbox.columns()

    assert len(columns) == 3000
    assert np.allclose(np.linalg.norm(columns.embedding_ND.astype(np.float32), axis=1), 1, atol=1e-2)
    assert len(set(columns.id_N.tolist())) == 3000
    assert columns.control_N.mean() == pytest.approx(CONTROL_SHARE, abs=0.02)
    assert columns.pictures_N.all()
    assert not (columns.chosen_N | columns.deleted_N).any()


def test_it_measures_every_size_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "harvest.json"
    command = [sys.executable, "-m", "bench.harvest", "--sizes", "300,600", "--widths", "8", "--budget", "20", "--rounds",
               "2", "--disk", str(tmp_path), "--out", str(out)]  # fmt: skip
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "peak GiB" in run.stdout

    result = json.loads(out.read_text())
    assert {"processor", "cores", "packages", "commit"} <= result["machine"].keys()
    assert [(m["manifests"], m["embedding"]) for m in result["measurements"]] == [(300, 8), (600, 8)]
    for measurement in result["measurements"]:
        assert len(measurement["runs"]) == 2
        for half in ("columns_s", "select_s"):
            values = [one[half] for one in measurement["runs"]]
            assert min(values) == measurement[half]["min"] <= measurement[half]["median"] <= max(values)
        assert all(one["chosen"] == 20 for one in measurement["runs"])
        assert measurement["peak_bytes"] == max(one["peak_bytes"] for one in measurement["runs"])
    assert not list(tmp_path.glob("bench-harvest-*"))
