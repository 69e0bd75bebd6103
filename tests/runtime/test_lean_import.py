from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FORBIDDEN = {
    "torch", "onnx", "onnxruntime", "tensorrt", "cuda", "scipy", "sklearn", "cv2", "matplotlib", "h5py", "safetensors",
    "click", "PIL", "simplejpeg", "nacl", "prometheus_client",
    "asyncio", "http", "multiprocessing", "concurrent", "socket", "ssl",  # slow ones of the standard library
}  # fmt: skip


def modules_after(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(run.stdout))


@pytest.mark.parametrize("name", ["alpose", "alpose.runtime"])
def test_an_import_stays_lean(name: str) -> None:
    loaded = modules_after(f"import {name}")

    assert name in loaded
    assert not FORBIDDEN & {module.split(".")[0] for module in loaded}
    assert not {module for module in loaded if module.startswith(("alpose.trainer", "alpose.export", "alpose.tools"))}
    engines = {module for module in loaded if module.startswith("alpose.runtime.engines.")}
    assert engines <= {f"alpose.runtime.engines.{module}" for module in ("catalog", "device")}, "opened engines alone"


def test_the_check_would_see_a_forbidden_module() -> None:
    assert FORBIDDEN & modules_after("import alpose.runtime, click") == {"click"}


def test_the_door_leads_to_everything_a_user_meets() -> None:
    statement = "from alpose import runtime\nmissing = [n for n in runtime.__all__ if not hasattr(runtime, n)]\nassert not missing"
    modules_after(statement)
    wanted = {"Monitor", "Verdict", "Queue", "Bundle", "Skeleton", "Threshold", "Catch", "Budget", "Control", "Novel",
              "Cooldown", "Jump", "Limbs", "Episodes", "AnyOf", "AllOf", "parse"}  # fmt: skip
    import alpose.runtime

    assert wanted <= set(alpose.runtime.__all__)


def test_a_whole_monitor_without_engine_and_encoder_stays_lean(tmp_path: Path) -> None:
    """The ten lines with an engine of one's own: nothing optional is needed, and nothing heavy comes along."""
    fakes = Path(__file__).resolve().parents[1] / "fakes" / "scripted.py"
    loaded = modules_after(
        f"import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('scripted', {str(fakes)!r})\n"
        f"scripted = importlib.util.module_from_spec(spec)\n"
        f"spec.loader.exec_module(scripted)\n"
        f"import numpy as np\n"
        f"from alpose import runtime\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        f"bundle = scripted.write_bundle(folder / 'driver.alpose')\n"
        f"queue = runtime.Queue(folder / 'q.db', store='keypoints')\n"
        f"with runtime.Monitor(bundle, queue, runtime.Threshold(0), scripted.Scripted()) as monitor:\n"
        f"    assert monitor(np.zeros((48, 64, 3), np.uint8)).kept\n"
        f"    assert monitor.flush(10)\n"
        f"assert len(queue.peek()) == 1"
    )
    assert not FORBIDDEN & {module.split(".")[0] for module in loaded}
