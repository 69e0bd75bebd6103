"""A bundle whose engine is a script, and Monitors on it that are closed at the end of their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alpose.runtime import Monitor

from ..fakes import scripted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = scripted.write_bundle(tmp_path_factory.mktemp("bundle") / "driver.alpose")
    return path


@pytest.fixture
def make(folder: Path) -> Iterator[Callable[..., Monitor]]:
    made: list[Monitor] = []

    def monitor(queue: Any = None, trigger: Any = None, engine: Any = None, **options: Any) -> Monitor:
        made.append(Monitor(folder, queue, trigger, engine or scripted.Scripted(), seed=0, **options))
        return made[-1]

    yield monitor
    for one in made:
        one.close()
