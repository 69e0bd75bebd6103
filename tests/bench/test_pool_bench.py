"""The benchmark of a pool, in small."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bench.parts.measure import spread
from bench.pool import OwnMemory, pick_once, show, write_embeddings


def test_picks_are_made_from_a_mapped_file_and_shown(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "embedding.npy", 300, 8)
    picking = []
    for by in ("top", "value", "coreset"):
        run = pick_once(tmp_path / "embedding.npy", by, 20)
        assert run["picks"] == 20
        picking.append(
            {"people": 300, "by": by, "seconds": asdict(spread([run["seconds"]])), "own_bytes": run["own_bytes"]}
        )
    scoring = [{"model": "mine", "pictures": 10, "seconds": 2.0, "picks_s": {"top": 0.1}, "own_bytes": 2**20}]
    shown = show({"scoring": scoring, "picking": picking, "settings": {"budget": 20}})
    assert "5.0" in shown
    assert shown.count("300") == 3


def test_memory_that_is_a_process_s_own_is_seen() -> None:
    with OwnMemory() as memory:
        pass
    assert memory.peak_bytes >= 0
