"""The folder of the real nets, for the tests that want them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def models() -> Path:
    folder = os.environ.get("ALPOSE_MODELS")
    if not folder:
        pytest.skip("ALPOSE_MODELS is not set: it names the folder of the real nets")
    return Path(folder)
