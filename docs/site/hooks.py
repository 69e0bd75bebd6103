"""What the site needs beyond its pages: pages that lie elsewhere, links that work here and on a forge, help texts, the notebook.

Pages link as they do in the repository: ``../runtime/QUEUE.md``, ``../README.md``, ``../runtime/frames.py``. On the site the
first two are pages of their own (:data:`ELSEWHERE`), and a file of source code is a page that shows it.
"""

from __future__ import annotations

import base64
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient

from alpose.export.cli import main as export
from alpose.runtime.commands import main as monitor
from alpose.tools.cli import main as harvest
from alpose.trainer.cli import main as train

log = logging.getLogger("mkdocs.hooks.alpose")

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "runtime/QUEUE.md": "queue-format.md",
}
"""Pages of the site that lie outside docs/, by their path in the repository."""
NOTEBOOK = "docs/quickstart.ipynb"
NOTEBOOK_PAGE = "quickstart-notebook.md"
COMMANDS = {"alpose-monitor": monitor, "alpose-train": train, "alpose-export": export, "alpose-harvest": harvest}

FENCE = re.compile(r"^(?P<indent> *)```sh +(?P<needs>[a-z-]+) *$", re.MULTILINE)
TITLES = {"real-data": "with the real datasets", "long": "minutes to hours", "gpu": "on a GPU", "setup": ""}
"""What a block of commands is called whose fence says what it needs; see tests/test_docs.py."""
CODE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()(?!https?:|#|mailto:)([^)#\s]+)((?:#[^)]*)?\))")
LANGUAGES = {".py": "python", ".json": "json", ".toml": "toml", ".sh": "sh", ".yml": "yaml", ".yaml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not hold."""
    for path, page in ELSEWHERE.items():
        files.append(_made(config, page, (ROOT / path).read_text(encoding="utf-8")))
    for name, command in COMMANDS.items():
        files.append(_made(config, f"commands/{name}.md", help_page(name, command)))
    text, pictures = notebook_page(ROOT / NOTEBOOK)
    files.append(_made(config, NOTEBOOK_PAGE, text))
    for name, data in pictures.items():
        files.append(File.generated(config, name, content=data))
    shown: set[str] = set()
    for file in list(files.documentation_pages()):
        for link in _links(file.content_string):
            target = _in_repository(file.src_uri, link)
            if _is_source(target) and target not in shown:
                shown.add(target)
                files.append(_made(config, _source_page(target), source_page(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where their page is on the site, and give blocks of commands their titles."""
    here = page.file.src_uri
    if here == "index.md":
        page.meta.setdefault("hide", ["navigation"])  # there is one page in it

    def moved(link: re.Match[str]) -> str:
        target = _in_repository(here, link[2])
        if target in ELSEWHERE:
            target = ELSEWHERE[target]
        elif _is_source(target):
            target = _source_page(target)
        elif target.startswith("docs/"):
            target = target.removeprefix("docs/")
        else:
            return link[0]  # mkdocs warns
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[3]}"

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return FENCE.sub(_titled, "".join(parts))


def help_page(name: str, command: click.Command) -> str:
    """Every help text of a command, as a terminal shows it."""
    lines = [f"# {name}\n\nWhat `{name} --help` prints, and the same of each of its commands. "
             "[Exit codes, shell completion, `--json`](../command-line.md).\n"]  # fmt: skip
    for path, context in _commands(name, command, None):
        level = "##" if context.parent is None or context.parent.parent is None else "###"
        lines.append(f"{level} {path}\n\n```text\n{context.get_help().rstrip()}\n```\n")
    return "\n".join(lines)


def _commands(path: str, command: click.Command, parent: click.Context | None) -> Iterator[tuple[str, click.Context]]:
    settings: dict[str, Any] = {**command.context_settings, "terminal_width": 90, "max_content_width": 90}
    context = click.Context(command, info_name=path.split()[-1], parent=parent, **settings)
    yield path, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _commands(f"{path} {name}", below, context)


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Run the notebook from top to bottom; its cells and what they print as Markdown, and its pictures by name."""
    log.info("Running %s", path.name)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", extra_arguments=["--log-level=40"]).execute()
    parts, pictures = [], {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for place, output in enumerate(cell.outputs):
            data: dict[str, Any] = output.get("data", {})
            if "image/png" in data:
                name = f"pictures/notebook-{number}-{place}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell above shows]({name})")
            elif output.output_type == "stream" or "text/plain" in data:
                text = output.text if output.output_type == "stream" else data["text/plain"]
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


def source_page(path: str) -> str:
    """A file of the repository as a page."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n````{language}\n{text}\n````\n"


def _made(config: MkDocsConfig, name: str, text: str) -> File:
    return File.generated(config, name, content=text)


def _links(text: str) -> list[str]:
    return [link for part in CODE.split(text)[::2] for _, link, _ in LINK.findall(part)]


def _in_repository(page: str, link: str) -> str:
    """The path in the repository to which a page of the site links."""
    home = next((path for path, moved in ELSEWHERE.items() if moved == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), link))


def _is_source(path: str) -> bool:
    return not path.startswith(("docs/", "..")) and path not in ELSEWHERE and (ROOT / path).is_file()


def _source_page(path: str) -> str:
    return f"source/{path}.md"


def _titled(fence: re.Match[str]) -> str:
    title = TITLES[fence["needs"]]
    return f"{fence['indent']}```sh" + (f' title="{title}"' if title else "")
