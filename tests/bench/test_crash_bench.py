"""The bench runs end to end in a toy size and says what it measured; nothing here asserts a speed."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from bench import crash


def test_a_few_kills_end_in_a_result(tmp_path: Path) -> None:
    out = tmp_path / "crash.json"
    run = CliRunner().invoke(
        crash.main, ["--trials", "7", "--rounds", "2", "--folder", str(tmp_path), "--out", str(out)]
    )
    assert run.exit_code == 0, run.output
    result = json.loads(out.read_text())
    assert (result["counts"]["lost"], result["counts"]["torn"], result["problems"]) == (0, 0, [])
    assert sum(result["kill_moment_ms"]["kills"]) == result["settings"]["trials"] == 7
    assert result["counts"]["acknowledged as stored"] > 0
    assert set(result["put"]["seconds_per_call"]) >= {"put", "put, group of 8"}
    assert result["machine"]["sqlite"]
    assert "7 kills" in run.output
