"""The exit codes of docs/command-line.md, and its rules for what is written, asked of every command of the four programs."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from alpose.runtime.queue import images
from alpose.tools.sample import fill

from .fakes import disk, scripted
from .test_commands import ALL, COMMANDS, PAGE

READS = {
    "alpose-monitor run": "{} --source pictures",
    "alpose-monitor queue ls": "{}",
    "alpose-monitor queue show": "{}",
    "alpose-monitor queue check": "{}",
    "alpose-monitor queue recover": "{} --into new.db",
    "alpose-monitor queue purge": "{} --everything --yes",
    "alpose-monitor queue acknowledge": "{} abc",
    "alpose-monitor queue delete": "{} abc --yes",
    "alpose-monitor replay": "{} --budget 20",
    "alpose-monitor doctor": "{} --soak 0",
    "alpose-train data verify": "--dataset {}",
    "alpose-train data info": "--dataset {}",
    "alpose-train pose describe": "{}",
    "alpose-train cycles": "--dataset {} --preset smoke --out run",
    "alpose-train report": "{}",
    "alpose-train detect": "--dataset {} --preset smoke --out run",
    "alpose-train harvest-gain": "--dataset lsp --data-root {} --preset smoke --budgets 5 --out run",
    "alpose-train fit": "--data {} --preset smoke --out run",
    "alpose-train theory": "{}",
    "alpose-train select": "--model {} --pool pictures --budget 5 --to coco --out out",
    "alpose-export bundle": "{} -o out.alpose",
    "alpose-export verify": "{}",
    "alpose-export engine": "{}",
    "alpose-harvest pull": "{} --into new",
    "alpose-harvest status": "{}",
    "alpose-harvest unseal": "{} --key fleet",
    "alpose-harvest select": "{} --budget 5",
    "alpose-harvest gallery": "{}",
    "alpose-harvest mcap": "{}",
    "alpose-harvest export": "{} --to cvat",
    "alpose-harvest import": "{} --into dataset --inbox inbox",
    "alpose-harvest report": "{}",
}
"""What every command reads, as {}, and the least that it needs beside it."""
MAKES = {"alpose-monitor queue keygen", "alpose-export keygen", "alpose-train data fetch"}
"""Commands that read no file."""
NOT_THERE = {"alpose-harvest pull": 3, "alpose-monitor doctor": 1}
"""A device that cannot be reached is skipped, and a doctor finds; all others: 2."""
EMPTY_FILE = {"alpose-harvest pull": 3} | dict.fromkeys((
    "alpose-monitor queue ls", "alpose-monitor queue show", "alpose-monitor queue check", "alpose-monitor queue recover",
    "alpose-monitor queue purge", "alpose-monitor queue acknowledge", "alpose-monitor queue delete",
    "alpose-monitor replay", "alpose-train pose describe", "alpose-export bundle", "alpose-harvest import",
), 1)  # fmt: skip
"""Commands that read a file; the others want a folder: 2."""
EMPTY_FOLDER = {"alpose-harvest pull": 3} | dict.fromkeys((
    "alpose-monitor doctor", "alpose-train select", "alpose-export bundle", "alpose-harvest import",
), 1)  # fmt: skip
"""A model without its files is damaged, and a folder without answers brings none; where it is no bundle, run, dataset or
inbox at all: 2, and so where a file is wanted."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty.db").touch()
    (tmp_path / "pictures/0.png").write_bytes(images.encode(np.zeros((8, 8, 3), np.uint8), "image/png").data)
    return tmp_path


def call(path: str, words: str) -> Result:
    """What a shell would start; an exception that is no exit status is raised."""
    program, *names = path.split()
    return CliRunner().invoke(COMMANDS[program], [*names, *shlex.split(words)], catch_exceptions=False)


def words_for(path: str, given: str) -> str:
    if path == "alpose-harvest import":
        sample("flagged.db")
        assert call("alpose-harvest pull", "flagged.db --into inbox").exit_code == 0
    if path == "alpose-export engine" and given == "empty":
        pytest.importorskip("tensorrt")
    if path == "alpose-harvest unseal":
        pytest.importorskip("nacl")
    return READS[path].format(given)


def sample(name: str) -> None:
    fill(Path(name), count=2, device="car-17")


def test_every_command_is_asked() -> None:
    assert set(READS) | MAKES == set(ALL)
    for path, code in (*NOT_THERE.items(), ("alpose-monitor run", 3)):
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{path}` |")]
        assert row.split("|")[code + 1 if code == 1 else 3].strip(), "an exit code of its own stands on the page"


@pytest.mark.parametrize("path", ALL)
def test_an_option_that_is_unknown_or_has_no_value_is_wrong_usage(path: str) -> None:
    assert call(path, "--no-such-option").exit_code == 2
    for parameter in ALL[path].params:
        if not getattr(parameter, "is_flag", True):
            assert call(path, parameter.opts[0]).exit_code == 2


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize(
    ("given", "own", "usual"),
    [("missing", NOT_THERE, 2), ("empty.db", EMPTY_FILE, 2), ("empty", EMPTY_FOLDER, 2)],
    ids=["missing", "empty file", "empty folder"],
)
def test_what_is_not_there_or_empty(
    place: Path, path: str, given: str, own: dict[str, int], usual: int
) -> None:  # fmt: skip
    result = call(path, words_for(path, given))
    assert result.exit_code == own.get(path, usual), result.output
    assert given in result.output
    if given == "missing":
        assert not (place / "new").exists(), "where nothing answers, no inbox is begun"
        assert not (place / "missing").exists()


@pytest.mark.parametrize(
    ("path", "words", "code"),
    [
        ("alpose-monitor run", "driver.alpose --source missing.mp4", 2),
        ("alpose-monitor run", "driver.alpose --source empty", 1),
        ("alpose-monitor run", "driver.alpose --source pictures --trigger Treshold(0.5)", 2),
        ("alpose-monitor queue show", "flagged.db abc", 2),
        ("alpose-monitor queue show", "flagged.db --save out.gif", 2),
        ("alpose-monitor queue purge", "flagged.db --everything", 1),  # the question is answered with the end of input
        ("alpose-harvest unseal", "inbox --key missing", 2),
        ("alpose-harvest select", "inbox --budget 0", 2),
        ("alpose-harvest export", "inbox --to cvat --batch no", 2),
        ("alpose-harvest export", "inbox --to cvat", 1),  # nothing was chosen yet
    ],
)
def test_other_ways_to_go_wrong(place: Path, path: str, words: str, code: int) -> None:
    pytest.importorskip("nacl")
    scripted.write_bundle(place / "driver.alpose")
    sample("flagged.db")
    assert call("alpose-harvest pull", "flagged.db --into inbox").exit_code == 0
    assert call(path, words).exit_code == code


WRITES = {
    "alpose-monitor queue keygen": "{}/fleet",
    "alpose-export keygen": "{}/key",
    "alpose-monitor queue show": "flagged.db --save {}/worst.jpg",
    "alpose-monitor queue recover": "flagged.db --into {}/saved.db",
    "alpose-train data info": "--dataset synthetic --draw {}/sheet.png",
    "alpose-harvest pull": "flagged.db --into {}/inbox",
    "alpose-harvest gallery": "inbox --out {}/gallery.html",
    "alpose-harvest mcap": "inbox --out {}/flagged.mcap",
    "alpose-harvest export": "inbox --to cvat --out {}/batch",
}
"""The commands that write a file or a folder and are quick; the rest writes by the same functions."""


@pytest.mark.parametrize("path", WRITES)
def test_folders_on_the_way_are_made_and_a_full_disk_is_one_line(place: Path, path: str) -> None:
    pytest.importorskip("mcap" if path.endswith("mcap") else "nacl")
    sample("flagged.db")
    assert call("alpose-harvest pull", "flagged.db --into inbox").exit_code == 0
    assert call("alpose-harvest select", "inbox --budget 2").exit_code == 0
    result = call(path, WRITES[path].format("some/where"))
    assert result.exit_code == 0, result.output
    assert any((place / "some/where").iterdir())

    (place / "full").mkdir()
    with disk.mounted(place / "full", "size=64k"):
        (place / "full/deep").mkdir()
        disk.fill(place / "full")
        result = call(path, WRITES[path].format("full/deep"))
        assert result.exit_code == (3 if path == "alpose-monitor run" else 1), result.output
        assert os.strerror(errno.ENOSPC) in result.output or "full" in result.output
        assert result.stderr.count("Error: ") == 1
        left = [found for found in (place / "full/deep").rglob("*") if found.is_file() and found.stat().st_size]
        assert not left, "nothing half-written stays"
