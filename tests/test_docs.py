"""Every command block of README and docs/ is run, in order, page by page, in an empty folder.

The fence says what a block needs: ```` ```sh ```` runs always; ```` ```sh real-data ```` where ``$ALPOSE_DATA`` is set
(the page writes DATA); ```` ```sh long ```` (minutes to hours), ```` ```sh gpu ```` and ```` ```sh setup ````
(networks, installs) are read by people alone.

Many pages begin by making the same toy bundle. It is made once, and every page that begins so gets a copy.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alpose.runtime.engines.catalog import engine_kinds
from alpose.runtime.triggers import TRIGGERS
from alpose.tools.formats import FORMATS
from alpose.trainer.foreign.recognition.families import FAMILIES
from alpose.trainer.methods.catalog import METHODS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
DOORS = ("alpose.runtime", "alpose.runtime.queue", "alpose.runtime.triggers", "alpose.runtime.bundle", "alpose.runtime.doctor",
         "alpose.trainer", "alpose.export", "alpose.tools.formats")  # fmt: skip
"""Packages with an ``__all__``: what programs import."""
BLOCK = re.compile(r"^```sh *(?P<needs>[a-z-]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {"", "real-data", "long", "gpu", "setup"}


TOY = """\
alpose-train cycles --dataset synthetic --preset smoke --methods random,epck --select-only --out runs/smoke
alpose-export runs/smoke/seed-0/base --calibration synthetic-hard --failure mean-error --failure-limit 0.6 -o toy.alpose
"""


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(match["needs"], match["code"]) for match in BLOCK.finditer(page.read_text())]


def run(code: str, folder: Path, where: str) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ALPOSE_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=folder, env=environment,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, f"{where}:\n{code}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    run(TOY, folder, "the toy bundle")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_from_top_to_bottom(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = os.environ.get("ALPOSE_DATA")
    wanted = [code for needs, code in blocks(page) if needs == "" or (needs == "real-data" and data)]
    if not wanted:
        pytest.skip("no block of this page runs here")
    if wanted[0].startswith(TOY):
        shutil.copytree(request.getfixturevalue("toy"), tmp_path, dirs_exist_ok=True)
        wanted[0] = wanted[0].removeprefix(TOY)
    if data:
        (tmp_path / "DATA").symlink_to(data)
    for code in wanted:
        run(code, tmp_path, page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fences_name_what_a_block_needs(page: Path) -> None:
    for needs, code in blocks(page):
        assert needs in NEEDS, code


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE], ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("triggers.md", [f"`{name}(" for name in TRIGGERS]),
        ("cycles.md", [f"`{name}`" for name in METHODS]),
        ("annotation.md", [f"`{name}`" for name in FORMATS]),
        ("models.md", [f"`{name}`" for name in FAMILIES]),
    ],
)
def test_the_page_has_a_row_for_everything_registered(page: str, names: list[str]) -> None:
    lines = (ROOT / "docs" / page).read_text().splitlines()
    first_cells = "\n".join(line.split("|")[1] for line in lines if line.startswith("|"))
    lacks = [name.strip("`(") for name in names if name not in first_cells]
    assert not lacks, f"no table of docs/{page} has a row for {', '.join(lacks)}: add one (docs/extending.md)"


def test_the_page_on_monitors_names_every_engine() -> None:
    page = (ROOT / "docs" / "monitor.md").read_text()
    lacks = [kind.name for kind in engine_kinds() if f'`"{kind.name}' not in page]
    assert not lacks, f"docs/monitor.md does not name {', '.join(lacks)}: add a row to its table of engines"


def test_every_page_has_a_place_in_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (*PAGES[1:], *REFERENCE)]
    lacks = [page for page in pages if not re.search(rf"\s{re.escape(page)}$", navigation, re.MULTILINE)]
    assert not lacks, f"nav in mkdocs.yml does not name {', '.join(lacks)}"


def test_everything_public_stands_in_the_reference() -> None:
    shown = [name for page in REFERENCE for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]
    public = {f"{door}.{name}" for door in DOORS for name in importlib.import_module(door).__all__}
    objects: dict[int, str] = {}
    for name in shown:
        module, _, last = name.rpartition(".")
        objects[id(getattr(importlib.import_module(module), last))] = name
    lacks = [name for name in sorted(public)
             if id(getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])) not in objects]  # fmt: skip
    assert not lacks, f"no page of docs/reference shows {', '.join(lacks)}"
    assert len(objects) == len(shown), "something is shown twice"


def test_the_notebook_runs_from_top_to_bottom_and_is_committed_without_outputs(tmp_path: Path) -> None:
    cells = [cell for cell in json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
             if cell["cell_type"] == "code"]  # fmt: skip
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in cells))
    run(f"MPLBACKEND=agg python {script}", tmp_path, "quickstart.ipynb")


def test_the_architecture_names_files_that_are_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = {path.name for folder in ("runtime", "trainer", "export", "tools", "tests")
             for path in (ROOT / folder).rglob("*.py")}  # fmt: skip
    folders = {f"{name}/" for name in re.findall(r"`(?:\w+/)*(\w+)/`", page)}
    there = {f"{path.name}/" for path in ROOT.glob("*/**") if path.is_dir()} | {
        f"{path.name}/" for path in ROOT.iterdir()
    }

    assert set(re.findall(r"\b\w+\.py\b", page)) <= files
    assert folders <= there
