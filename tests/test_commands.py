"""What all four commands promise together: JSON from everything that tells something, and one page of exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from alpose.export.cli import main as export
from alpose.runtime.commands import main as monitor
from alpose.tools.cli import main as harvest
from alpose.trainer.cli import main as train

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "command-line.md").read_text()
COMMANDS = {"alpose-monitor": monitor, "alpose-train": train, "alpose-export": export, "alpose-harvest": harvest}
WRITES = {
    "alpose-monitor queue keygen", "alpose-export keygen",
    "alpose-train data fetch", "alpose-train cycles", "alpose-train report", "alpose-train detect", "alpose-train harvest-gain",
    "alpose-export bundle", "alpose-export engine", "alpose-harvest gallery",
}  # fmt: skip
"""Commands without ``--json``: they write a file, and print where it is."""


def leaves(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from leaves(f"{path} {name}", below)
    else:
        yield path, command


ALL = dict(pair for name, command in COMMANDS.items() for pair in leaves(name, command))


@pytest.mark.parametrize("path", ALL)
def test_a_command_that_tells_something_has_json(path: str) -> None:
    options = {name for parameter in ALL[path].params for name in parameter.opts}
    assert ("--json" in options) != (path in WRITES)


@pytest.mark.parametrize("path", ALL)
def test_an_exit_code_of_its_own_stands_on_the_page(path: str) -> None:
    """A help text that speaks of 3, or of a finding that is a 1, has a row."""
    text = " ".join((ALL[path].help or "").split())
    if re.search(
        r"[Ee]xit status.*\b3 |; exit status 1 when|Exit status 1 if|something FAILED, 2|; the exit status", text
    ):
        assert f"| `{path}` |" in PAGE


@pytest.mark.parametrize("path", ALL)
def test_a_number_says_what_it_counts(path: str) -> None:
    """FRAMES, FPS, SHARE, 30d: not INTEGER or FLOAT, and the help says the rest."""
    numbers = (click.types.IntParamType, click.types.FloatParamType, click.types.FuncParamType)
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Option) and not parameter.is_flag and isinstance(parameter.type, numbers):
            assert parameter.metavar, f"{path} {parameter.opts[0]} has no unit"
            assert parameter.help


@pytest.mark.parametrize("name", COMMANDS)
def test_a_shell_completes_commands_and_options(name: str) -> None:
    complete = ShellComplete(COMMANDS[name], {}, name, f"_{name.upper().replace('-', '_')}_COMPLETE")
    assert {item.value for item in complete.get_completions([], "")} >= {
        below for below, command in COMMANDS[name].commands.items() if not command.hidden
    }
