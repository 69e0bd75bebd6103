"""The command line of ``alpose-export``, where it is not covered by the tests of what it calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from alpose.export import write
from alpose.export.cli import main
from alpose.trainer.measures.failures import FAILURES
from alpose.trainer.measures.metrics import Failure

HELP = """
import sys
sys.modules |= dict.fromkeys(("torch", "scipy", "sklearn"))  # importing one of them is an error
from {module} import main
main({arguments})
"""


@pytest.mark.parametrize(
    ("module", "command", "refused"),
    [
        ("alpose.export.cli", "bundle", ()),
        ("alpose.trainer.cli", "fit", ()),
        ("alpose.trainer.cli", "cycles", ("mean-error",)),
    ],
)
def test_the_help_lists_the_definitions_of_a_failure_without_heavy_imports(
    module: str, command: str, refused: tuple[str, ...]
) -> None:
    code = HELP.format(module=module, arguments=[command, "--help"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"--failure [{'|'.join(name for name in FAILURES if name not in refused)}]" in done.stdout


@pytest.mark.parametrize(
    ("fitted", "stated", "expected"),
    [
        (None, [], Failure()),
        ({"name": "mean-error", "limit": 0.2}, [], Failure("mean-error", 0.2)),
        ({"name": "mean-error", "limit": 0.2}, ["--failure-limit", "0.3"], Failure("mean-error", 0.3)),
        ({"name": "mean-error", "limit": 0.2}, ["--failure", "any-joint"], Failure("any-joint")),
    ],
)
def test_a_bundle_has_the_definition_of_a_failure_that_its_model_was_fitted_for(
    fitted: Any, stated: list[str], expected: Failure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def export(path: Path, out: Path, *, config: write.ExportConfig, **_: Any) -> Path:
        asked.append(config.failure)
        return out

    monkeypatch.setattr(write, "export_checkpoint", export)
    facts = {} if fitted is None else {"failure": fitted}
    (tmp_path / "model.json").write_text(json.dumps({"kind": "alpose pose model", "facts": facts}))
    done = CliRunner().invoke(main, [str(tmp_path), "-o", str(tmp_path / "x.alpose"), *stated], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert asked == [expected]
