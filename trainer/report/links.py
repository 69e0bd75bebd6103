"""The report and the theory page of one run name each other, whichever of them is written first."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from alpose.runtime.io import write_atomically

REPORT, THEORY = "report.html", "theory.html"
OTHER = {REPORT: THEORY, THEORY: REPORT}
TITLES = {REPORT: "Report of this run", THEORY: "Theory beside this run"}


def link_or_place(run: Path, page: str) -> Markup:
    """What a page writes: the link to its other, or a place for it where that does not exist yet."""
    return link(OTHER[page]) if (run / OTHER[page]).exists() else place(OTHER[page])


def complete(run: Path, page: str) -> None:
    """Put the link to its other into a page that was written before it; the rest of its bytes stay."""
    path = run / page
    if not path.exists():
        return
    text, other = path.read_text(encoding="utf-8"), OTHER[page]
    if place(other) in text:
        write_atomically(path, text.replace(place(other), link(other)).encode())


def link(page: str) -> Markup:
    """Relative, so that a run folder can be moved."""
    return Markup('<a href="{}">{}</a>').format(page, TITLES[page])


def place(page: str) -> Markup:
    """A comment of HTML; what comes from a run is escaped and cannot be one."""
    return Markup("<!-- {} -->").format(page)
