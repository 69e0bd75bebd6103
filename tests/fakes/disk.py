"""A small disk: full, read-only or neither."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest


class mounted:
    """A file system in memory over a folder; skips the test where mounting is not allowed."""

    def __init__(self, folder: Path, options: str) -> None:
        self._folder, self._options = folder, options

    def __enter__(self) -> None:
        if shutil.which("mount") is None:
            pytest.skip("there is no mount command")
        command = ["mount", "-t", "tmpfs", "-o", self._options, "tmpfs", str(self._folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self._folder)], check=True)


def fill(folder: Path, *, free_bytes: int = 0) -> None:
    """Leave no byte free on a small disk, or so many, in whole pages."""
    with (folder / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with (folder / "ballast").open("r+b") as file:
        file.truncate((folder / "ballast").stat().st_size - free_bytes)
