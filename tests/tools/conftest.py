"""An inbox with two devices' frames, and a batch that was chosen from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alpose.tools import sample
from alpose.tools.batch import Batch
from alpose.tools.inbox import Inbox

from .harvest import BUDGET, bring, call


@pytest.fixture(scope="session")
def harvested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two devices' frames of rendered people."""
    folder = tmp_path_factory.mktemp("harvested")
    for seed, (device, count) in enumerate((("car-17", 14), ("car-3", 8))):
        sample.fill(folder / f"{device}.db", count=count, device=device, seed=seed)
        bring(folder / "inbox", folder / f"{device}.db")
    return folder / "inbox"


@pytest.fixture
def inbox(harvested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(harvested, tmp_path / "inbox"))


@pytest.fixture
def batch(inbox: Path) -> Batch:
    call("select", inbox, "--budget", BUDGET, "--name", "week-1", "--seed", 3)
    with Inbox(inbox) as opened:
        return opened.batch("week-1")
