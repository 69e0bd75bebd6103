from __future__ import annotations

from typing import ClassVar

import click
import pytest
from click.testing import CliRunner

from alpose.runtime.command_line import OneLineErrors
from alpose.runtime.errors import ConfigError, QueueError


class Group(OneLineErrors):
    packages: ClassVar = {"tomography": "scan"}
    wanted_by = "alpose-scan"


@click.group(cls=Group)
def main() -> None: ...


@main.command()
@click.argument("what")
def fail(what: str) -> None:
    raise {
        "option": ConfigError("threads must be at least 1, got 0"),
        "gone": FileNotFoundError(2, "No such file or directory", "fleet"),
        "damaged": QueueError("damaged", "the queue is damaged"),
        "full": OSError(28, "No space left on device"),
        "missing": ModuleNotFoundError("No module named 'tomography.slices'", name="tomography.slices"),
        "bug": ModuleNotFoundError("No module named 'tpyo'", name="tpyo"),
        "stop": KeyboardInterrupt(),
        "file": PermissionError(13, "Permission denied", "ro/fleet"),
    }[what]


@pytest.mark.parametrize(
    ("what", "status", "said"),
    [
        ("option", 2, "Error: threads must be at least 1, got 0\n"),
        ("gone", 2, "Error: fleet: No such file or directory\n"),
        ("damaged", 1, "Error: the queue is damaged\n"),
        ("full", 1, "Error: No space left on device\n"),
        ("missing", 1, "Error: alpose-scan needs tomography.slices, which is not installed. "
                       "Install it with: pip install 'alpose[scan]'\n"),
        ("stop", 130, "\nStopped.\n"),
    ],
)  # fmt: skip
def test_what_is_expected_is_one_line_and_an_exit_status(what: str, status: int, said: str) -> None:
    result = CliRunner().invoke(main, ["fail", what])
    assert (result.exit_code, result.output) == (status, said)


def test_a_bug_stays_a_traceback() -> None:
    assert isinstance(CliRunner().invoke(main, ["fail", "bug"]).exception, ModuleNotFoundError)


def test_a_file_that_cannot_be_written_is_one_line() -> None:
    run = CliRunner().invoke(main, ["fail", "file"])
    assert run.exit_code == 1
    assert run.output == "Error: ro/fleet: Permission denied\n"
