from __future__ import annotations

import json
import subprocess
import sys

import pytest

FORBIDDEN = {"torch", "onnx", "onnxruntime", "scipy", "sklearn", "cv2", "matplotlib", "h5py", "safetensors", "click"}


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


def test_the_check_would_see_a_forbidden_module() -> None:
    assert FORBIDDEN & modules_after("import alpose.runtime, click") == {"click"}
