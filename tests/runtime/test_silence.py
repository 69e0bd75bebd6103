"""A Monitor sends nothing and writes nothing that it was not asked to: tried with an empty HOME, and under strace."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alpose.runtime.engines.onnx import TELEMETRY, import_onnxruntime

from ..fakes.engines import write_onnx_bundle

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys, time
import numpy as np
from alpose import runtime
with runtime.Monitor(sys.argv[1], engine="cpu", queue=sys.argv[2], trigger=runtime.Threshold(0)) as monitor:
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        monitor(np.zeros((60, 80, 3), np.uint8))
        time.sleep(0.02)
"""


def test_a_monitor_leaves_no_file_in_an_empty_home_and_opens_no_connection(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle, home, trace = write_onnx_bundle(tmp_path / "driver.alpose"), tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    keep = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")}
    command = [sys.executable, "-c", RUN, str(bundle), str(tmp_path / "flagged.db")]
    strace = shutil.which("strace")
    if strace is not None:
        traced = [strace, "-f", "-qq", "-e", "trace=socket,connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
        if subprocess.run([*traced, "true"], check=False, capture_output=True).returncode == 0:
            command = [*traced, *command]
    run = subprocess.run(
        command, env={**keep, "HOME": str(home)}, check=False, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert list(home.rglob("*")) == []
    said = trace.read_text() if trace.exists() else ""
    assert not re.findall(r".*AF_INET.*", said)
    assert "connect(" not in said


def test_telemetry_is_off_whatever_the_app_had_set(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv(TELEMETRY, "0")
    runtime = import_onnxruntime()
    assert os.environ[TELEMETRY] == "1"
    assert runtime.__name__ == "onnxruntime"


def test_one_function_alone_imports_onnxruntime() -> None:
    """Everything else that needs it calls that function first."""
    found = set()
    for folder in ("runtime", "trainer", "export", "tools", "bench", "src/alpose"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                alone = any(name.split(".")[0] == "onnxruntime" for name in names)
                if alone and "import_onnxruntime(" not in text:
                    found.add(str(path.relative_to(ROOT)))
    assert not found, f"call alpose.runtime.engines.onnx.import_onnxruntime in {sorted(found)}"
