"""The command line of ``alpose-export``, where it is not covered by the tests of what it calls."""

from __future__ import annotations

import subprocess
import sys

import pytest

from alpose.trainer.failures import FAILURES

HELP = """
import sys
sys.modules |= dict.fromkeys(("torch", "scipy", "sklearn"))  # importing one of them is an error
from {module} import main
main({arguments})
"""


@pytest.mark.parametrize(
    ("module", "command"),
    [("alpose.export.cli", "bundle"), ("alpose.trainer.cli", "fit"), ("alpose.trainer.cli", "cycles")],
)
def test_the_help_lists_the_definitions_of_a_failure_without_heavy_imports(module: str, command: str) -> None:
    code = HELP.format(module=module, arguments=[command, "--help"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"--failure [{'|'.join(FAILURES)}]" in done.stdout
