"""Every command block of README and docs/ is run, in order, page by page, in an empty folder.

The fence says what a block needs: ```` ```sh ```` runs always; ```` ```sh real-data ```` where ``$ALPOSE_DATA`` is set
(the page writes DATA); ```` ```sh long ```` (minutes to hours), ```` ```sh gpu ```` and ```` ```sh setup ````
(networks, installs) are read by people alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh *(?P<needs>[a-z-]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {"", "real-data", "long", "gpu", "setup"}


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(match["needs"], match["code"]) for match in BLOCK.finditer(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    data = os.environ.get("ALPOSE_DATA")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ALPOSE_CACHE": str(tmp_path / "cache"),
    }
    wanted = [code for needs, code in blocks(page) if needs == "" or (needs == "real-data" and data)]
    if not wanted:
        pytest.skip("no block of this page runs here")
    if data:
        (tmp_path / "DATA").symlink_to(data)
    for code in wanted:
        run = subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=tmp_path, env=environment,
                             capture_output=True, text=True, check=False)  # fmt: skip
        assert run.returncode == 0, f"{page.name}:\n{code}\n{run.stdout}\n{run.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fences_name_what_a_block_needs(page: Path) -> None:
    for needs, code in blocks(page):
        assert needs in NEEDS, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), target
