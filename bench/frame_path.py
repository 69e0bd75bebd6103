"""How long a frame's way is: the files that one flagged frame passes, and the calls down to the hand-over.

::

    python -m bench.frame_path

Counted on the camera's thread, for a frame that is kept, on a Monitor that has seen one before. A call is one of a Python
function of this package; ``Monitor.__call__`` is the first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import alpose.runtime
from alpose.runtime import Monitor, Threshold
from tests.fakes import scripted

HOME = str(Path(alpose.runtime.__file__).parent)


class Trace:
    """Which of our files are entered while it is on, and the path of calls that led deepest and to the hand-over."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.deepest: list[str] = []
        self.to_handover: list[str] = []
        self._stack: list[str] = []

    def __enter__(self) -> Trace:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event not in ("call", "return") or not file.startswith(HOME):
            return
        if event == "return":
            if self._stack:
                self._stack.pop()
            return
        name = f"{Path(file).relative_to(HOME)}:{frame.f_code.co_name}"
        self.files[str(Path(file).relative_to(HOME))] = self.files.get(str(Path(file).relative_to(HOME)), 0) + 1
        self._stack.append(name)
        if len(self._stack) > len(self.deepest):
            self.deepest = list(self._stack)
        if frame.f_code.co_name == "add" and "HandOver" in type(frame.f_locals.get("self")).__name__:
            self.to_handover = list(self._stack)


def measure() -> tuple[Trace, Trace]:
    """Traces of start-up and of one flagged frame."""
    frame_HW3 = np.full((48, 64, 3), 100, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        bundle = scripted.write_bundle(Path(folder) / "driver.alpose")
        with Trace() as start:
            monitor = Monitor(bundle, Path(folder) / "q.db", Threshold(0.1), scripted.Scripted(), track=True)
        monitor(frame_HW3)
        with Trace() as call:
            verdict = monitor(frame_HW3)
        assert verdict.kept
        monitor.close()
    return start, call


def main() -> None:
    """Print both."""
    start, call = measure()
    print(f"start-up and one frame: {len(start.files.keys() | call.files.keys())} files")
    print(f"one flagged frame: {len(call.files)} files, {sum(call.files.values())} calls")
    print(f"calls to the hand-over: {len(call.to_handover)}")
    print("  " + "\n  ".join(call.to_handover))
    print(f"deepest: {len(call.deepest)}")
    print("  " + "\n  ".join(call.deepest))
    print("files: " + " ".join(sorted(call.files)))


if __name__ == "__main__":
    main()
